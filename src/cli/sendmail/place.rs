//! Where the server is, who calls, and what domain short addresses are at.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::options::Options;
use super::{EX_CONFIG, Trouble};
use crate::cli::CONFIG_DEFAULT;
use crate::config::{self, Config, Listener, ListenerTls, Role};
use crate::intake::pickup::MAILDROP;
use crate::message::Domain;

/// `host:port` in place of the listener of the configuration.
const SERVER_VARIABLE: &str = "POSTRIDER_SENDMAIL_SERVER";
/// In place of `data_dir/maildrop`.
const MAILDROP_VARIABLE: &str = "POSTRIDER_SENDMAIL_MAILDROP";
const SERVER_DEFAULT: &str = "127.0.0.1:587";
const DATA_DIR_DEFAULT: &str = "/var/lib/postrider";

#[derive(Clone, Debug)]
pub(super) struct Place {
    /// `host:port`
    pub server: String,
    /// Why who speaks plain SMTP to it will not get far.
    pub obstacle: Option<String>,
    pub maildrop: PathBuf,
    /// For addresses without one.
    pub domain: Domain,
    /// May programs on this machine send without an account? None: the server knows.
    pub is_trusted: Option<bool>,
    pub user: User,
}

/// Who calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    pub login: String,
    pub full_name: String,
}

impl Place {
    pub(super) fn find(options: &Options) -> Result<Place, Trouble> {
        let config = read_config(options)?;
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let door = config.as_ref().map(Door::find).unwrap_or_default();
        let (server, obstacle) = match variable(SERVER_VARIABLE) {
            Some(server) => (Some(server), None),
            None => (door.address, door.obstacle),
        };
        let data_dir = config.as_ref().map_or_else(|| DATA_DIR_DEFAULT.into(), |config| config.data_dir.clone());
        let domain = match &config {
            Some(config) => Some(domain_of(config)),
            None => system_domain(),
        };
        let domain = domain.or_else(|| Domain::parse("localhost").ok());
        Ok(Place {
            server: server.unwrap_or_else(|| SERVER_DEFAULT.to_owned()),
            obstacle,
            maildrop: variable(MAILDROP_VARIABLE).map_or_else(|| data_dir.join(MAILDROP), PathBuf::from),
            domain: domain.ok_or_else(|| Trouble::new(EX_CONFIG, "this machine has no name"))?,
            is_trusted: config.as_ref().map(Config::trusts_loopback),
            user: User::calling(),
        })
    }
}

/// None: this user cannot read it, and need not.
fn read_config(options: &Options) -> Result<Option<Config>, Trouble> {
    let path = options.config.as_deref().unwrap_or(Path::new(CONFIG_DEFAULT));
    match fs::File::open(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && options.config.is_some() => {
            return Err(Trouble::new(EX_CONFIG, format!("{}: {error}", path.display())));
        }
        Err(_) => return Ok(None),
    }
    match config::load(path) {
        Ok(config) => Ok(Some(config)),
        // Where only its secrets are hidden from us, it is as good as unreadable.
        Err(_) if options.config.is_none() => Ok(None),
        Err(problems) => Err(Trouble::new(EX_CONFIG, format!("the configuration cannot be used\n{problems}"))),
    }
}

/// The door for submission to knock at, by the configuration.
#[derive(Debug, Default, PartialEq, Eq)]
struct Door {
    address: Option<String>,
    obstacle: Option<String>,
}

impl Door {
    /// The first that wants no TLS, else the first where it comes with STARTTLS: nobody is let in there without it,
    /// but the folder for messages is left.
    fn find(config: &Config) -> Door {
        let submission = || config.listeners.iter().filter(|(_, listener)| listener.role == Role::Submission);
        let address = |listener: &Listener| listener.bind.iter().find(|address| address.port() != 0).map(reachable);
        let first = |is_meant: fn(ListenerTls) -> bool| {
            let mut meant = submission().filter(|(_, listener)| is_meant(listener.tls));
            meant.find_map(|(name, listener)| Some((name, address(listener)?)))
        };
        if let Some((_, address)) = first(|tls| matches!(tls, ListenerTls::Off | ListenerTls::Opportunistic)) {
            return Door { address: Some(address), obstacle: None };
        }
        let how = "and sendmail speaks plain SMTP; add a listener of role \"submission\" with tls = \"opportunistic\"";
        if let Some((name, address)) = first(|tls| tls == ListenerTls::Required) {
            let obstacle =
                format!("listeners.{name}, at {address}, wants TLS before any mail (tls = \"required\"), {how}");
            return Door { address: Some(address), obstacle: Some(obstacle) };
        }
        let implicit = first(|tls| tls == ListenerTls::Implicit);
        let obstacle = implicit.map(|(name, address)| {
            format!("listeners.{name}, at {address}, is for TLS alone (tls = \"implicit\"), {how}")
        });
        Door { address: None, obstacle }
    }
}

/// How this machine reaches a listener.
fn reachable(address: &SocketAddr) -> String {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port()).to_string()
}

/// The server's name, or the domain of ours that it is a host of.
fn domain_of(config: &Config) -> Domain {
    let hostname = config.hostname.as_str();
    let parents = hostname.match_indices('.').filter_map(|(at, _)| hostname.get(at + 1..));
    let mut own = parents.filter_map(|parent| Domain::parse(parent).ok()).filter(|parent| config.is_own(parent));
    let own = if config.is_own(&config.hostname) { None } else { own.next() };
    own.unwrap_or_else(|| config.hostname.clone())
}

/// As Debian's mailname(5) has it, or the name of the machine.
fn system_domain() -> Option<Domain> {
    let mailname = fs::read_to_string("/etc/mailname").ok();
    let mailname = mailname.and_then(|name| Domain::parse(name.trim()).ok());
    mailname.or_else(|| Domain::parse(rustix::system::uname().nodename().to_str().ok()?).ok())
}

impl User {
    fn calling() -> User {
        let uid = rustix::process::getuid().as_raw();
        let known = fs::read_to_string("/etc/passwd").ok().and_then(|passwd| User::in_passwd(&passwd, uid));
        known.unwrap_or_else(|| User { login: format!("user{uid}"), full_name: String::new() })
    }

    fn in_passwd(passwd: &str, uid: u32) -> Option<User> {
        let uid = uid.to_string();
        let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let line = line.into_iter().find(|fields| fields.get(2) == Some(&uid.as_str()))?;
        let login = (*line.first()?).to_owned();
        // The name is the first of several, and & stands for the login.
        let full_name = line.get(4).and_then(|gecos| gecos.split(',').next()).unwrap_or_default();
        Some(User { full_name: full_name.replace('&', &login), login })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn conf(text: &str) -> Config {
        config::parse("test.toml", &format!("data_dir = \"/x\"\n{text}")).unwrap_or_else(|p| unreachable!("{p}"))
    }

    #[test]
    fn the_server_and_the_domain_come_from_the_configuration() {
        let listeners = "[listeners.a]\nrole = \"submission\"\nbind = [\"0.0.0.0:465\"]\ntls = \"implicit\"\n\
                         [listeners.b]\nrole = \"submission\"\nbind = [\"[::]:1587\"]\n";
        let config = conf(&format!("hostname = \"mail.my.test\"\n[domains.\"my.test\"]\n{listeners}"));
        assert_eq!(Door::find(&config).address.as_deref(), Some("[::1]:1587"));
        assert_eq!(domain_of(&config).as_str(), "my.test");
        let config = conf("hostname = \"mail.my.test\"\n[domains.\"mail.my.test\"]\n[domains.\"my.test\"]\n");
        assert_eq!(domain_of(&config).as_str(), "mail.my.test");
        assert_eq!(domain_of(&conf("hostname = \"mail.my.test\"\n")).as_str(), "mail.my.test");
    }

    #[test]
    fn a_listener_that_wants_tls_is_the_last_one_knocked_at() {
        let listener = |name: &str, port: u16, tls: &str| {
            format!("[listeners.{name}]\nrole = \"submission\"\nbind = [\"127.0.0.1:{port}\"]\ntls = \"{tls}\"\n")
        };
        let door = |listeners: &[String]| {
            let Door { address, obstacle } =
                Door::find(&conf(&format!("hostname = \"mail.my.test\"\n{}", listeners.concat())));
            (address.unwrap_or_default(), obstacle.unwrap_or_default())
        };
        let (required, implicit) = (listener("a", 587, "required"), listener("b", 465, "implicit"));
        for plain in ["opportunistic", "off"] {
            let (address, obstacle) = door(&[required.clone(), implicit.clone(), listener("z", 2525, plain)]);
            assert_eq!((address.as_str(), obstacle.as_str()), ("127.0.0.1:2525", ""));
        }
        let (address, obstacle) = door(&[required, implicit.clone()]);
        assert!(
            address == "127.0.0.1:587" && obstacle.starts_with("listeners.a, at 127.0.0.1:587, wants"),
            "{obstacle}"
        );
        let (address, obstacle) = door(&[implicit]);
        assert!(address.is_empty() && obstacle.starts_with("listeners.b, at 127.0.0.1:465, is for TLS"), "{obstacle}");
        // The one that is there if nothing is said.
        assert!(door(&[]).1.starts_with("listeners.submission, at [::1]:587, wants"), "{:?}", door(&[]));
    }

    #[test]
    fn names_come_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:& Example,Room 7:/home/ann:/bin/sh\n";
        let ann = User::in_passwd(passwd, 1000).unwrap();
        assert_eq!((ann.login.as_str(), ann.full_name.as_str()), ("ann", "ann Example"));
        assert_eq!(User::in_passwd(passwd, 7), None);
    }
}
