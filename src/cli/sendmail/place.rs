//! Where the server is, who calls, and what domain short addresses are at.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::options::Options;
use super::{EX_CONFIG, Trouble};
use crate::cli::CONFIG_DEFAULT;
use crate::config::{self, Config, ListenerTls, Role};
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
        let server = variable(SERVER_VARIABLE).or_else(|| config.as_ref().and_then(listener));
        let data_dir = config.as_ref().map_or_else(|| DATA_DIR_DEFAULT.into(), |config| config.data_dir.clone());
        let domain = match &config {
            Some(config) => Some(domain_of(config)),
            None => system_domain(),
        };
        let domain = domain.or_else(|| Domain::parse("localhost").ok());
        Ok(Place {
            server: server.unwrap_or_else(|| SERVER_DEFAULT.to_owned()),
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

/// The first door for submission that can be entered without TLS.
fn listener(config: &Config) -> Option<String> {
    let submission = config.listeners.values().filter(|listener| listener.role == Role::Submission);
    let plain = submission.filter(|listener| listener.tls != ListenerTls::Implicit);
    let address = plain.flat_map(|listener| &listener.bind).find(|address| address.port() != 0)?;
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    Some(SocketAddr::new(ip, address.port()).to_string())
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
        assert_eq!(listener(&config).as_deref(), Some("[::1]:1587"));
        assert_eq!(domain_of(&config).as_str(), "my.test");
        let config = conf("hostname = \"mail.my.test\"\n[domains.\"mail.my.test\"]\n[domains.\"my.test\"]\n");
        assert_eq!(domain_of(&config).as_str(), "mail.my.test");
        assert_eq!(domain_of(&conf("hostname = \"mail.my.test\"\n")).as_str(), "mail.my.test");
    }

    #[test]
    fn names_come_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:& Example,Room 7:/home/ann:/bin/sh\n";
        let ann = User::in_passwd(passwd, 1000).unwrap();
        assert_eq!((ann.login.as_str(), ann.full_name.as_str()), ("ann", "ann Example"));
        assert_eq!(User::in_passwd(passwd, 7), None);
    }
}
