//! Reads what concerns the doors: listeners, networks, the certificate.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong};
use super::{Certificate, Listener, ListenerTls, Networks, Role};

/// A trusted network may not be wider than these: what may submit without a password must be
/// somebody's own machines, or the server is an open relay.
const TRUSTED_V4_BITS_MIN: u8 = 8;
const TRUSTED_V6_BITS_MIN: u8 = 16;

const BIND_FORM: &str = "a list of addresses with ports such as [\"[::]:25\"]";
const NETWORKS_FORM: &str = "a list of networks such as [\"127.0.0.0/8\", \"::1\"]";

pub(super) fn listeners(root: &Section<'_>) -> BTreeMap<String, Listener> {
    let section = root.section("listeners");
    if root.item("listeners").is_none() {
        return default_listeners();
    }
    let mut taken = BTreeMap::new();
    let mut listeners = BTreeMap::new();
    for (name, section) in section.named() {
        if section.exists()
            && let Some(listener) = listener(name, &section, &mut taken)
        {
            listeners.insert(name.to_owned(), listener);
        }
    }
    if section.exists() && section.named().is_empty() {
        section.report.warn("listeners: the section is empty, so nothing comes in by SMTP");
    }
    listeners
}

/// The three that RFC 5321, RFC 6409 and RFC 8314 name.
fn default_listeners() -> BTreeMap<String, Listener> {
    let any = |port| vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))];
    let listener = |role, port, tls| Listener { role, bind: any(port), tls };
    BTreeMap::from([
        ("mx".to_owned(), listener(Role::Mx, 25, ListenerTls::Opportunistic)),
        ("submission".to_owned(), listener(Role::Submission, 587, ListenerTls::Required)),
        ("submissions".to_owned(), listener(Role::Submission, 465, ListenerTls::Implicit)),
    ])
}

/// `taken`: addresses bound so far, each with the key that binds it.
fn listener(name: &str, section: &Section<'_>, taken: &mut BTreeMap<SocketAddr, String>) -> Option<Listener> {
    let roles = [("mx", Role::Mx), ("submission", Role::Submission)];
    let role = section
        .required("role", "Add role = \"mx\" for mail coming in, or role = \"submission\" for mail going out.")
        .and_then(|item| item.choice(&roles, &[]));
    let modes = [
        ("off", ListenerTls::Off),
        ("opportunistic", ListenerTls::Opportunistic),
        ("required", ListenerTls::Required),
        ("implicit", ListenerTls::Implicit),
    ];
    let bind = section.required("bind", "Add the addresses to listen on, such as bind = [\"[::]:25\"].");
    let addresses = bind.and_then(|bind| bind_addresses(&bind, taken));
    let open = addresses.iter().flatten().any(|address| !address.ip().to_canonical().is_loopback());
    // On loopback nobody is in between, so what an application needs there is as little as possible.
    let default_tls =
        if role == Some(Role::Submission) && open { ListenerTls::Required } else { ListenerTls::Opportunistic };
    let tls = section.choice("tls", &modes, default_tls);
    let (role, addresses) = (role?, addresses?);
    if role == Role::Submission && tls == ListenerTls::Off && open {
        section.report.warn(format!(
            "listeners.{name}: tls is \"off\", so AUTH is offered to clients on loopback addresses only"
        ));
    }
    Some(Listener { role, bind: addresses, tls })
}

fn bind_addresses(bind: &Item<'_>, taken: &mut BTreeMap<SocketAddr, String>) -> Option<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for element in bind.elements(BIND_FORM)? {
        let Some(address) = element.read(BIND_FORM, read_socket_address) else { continue };
        match taken.get(&address) {
            Some(other) if address.port() != 0 => {
                let what = format!("{address} is bound by {other} already");
                element.problem(ProblemKind::Duplicate, what, "Give each listener ports of its own.");
            }
            _ => {
                taken.insert(address, bind.path.clone());
            }
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        bind.problem(ProblemKind::BadValue, "there is no address to listen on", format!("Write {BIND_FORM}."));
    }
    Some(addresses)
}

fn read_socket_address(text: &str) -> Result<SocketAddr, Wrong> {
    let remedy = "Write an IP address, a colon and a port, such as \"[::]:25\" or \"127.0.0.1:25\".";
    text.parse().map_err(|_| Wrong::value(format!("{text:?} is not an address with a port"), remedy))
}

pub(super) fn networks(root: &Section<'_>) -> Networks {
    let section = root.section("networks");
    Networks {
        trusted: section.list("trusted", NETWORKS_FORM, read_trusted).unwrap_or_default(),
        blocked: section.list("blocked", NETWORKS_FORM, read_network).unwrap_or_default(),
    }
}

/// A network, or one address. IPv4 mapped into IPv6 becomes plain IPv4.
fn read_network(text: &str) -> Result<IpNet, Wrong> {
    let remedy = "Write an IP address, or a network such as \"10.0.0.0/8\" or \"2001:db8::/32\".";
    let network = match text.parse::<IpNet>() {
        Ok(network) => network.trunc(),
        Err(_) => text
            .parse::<IpAddr>()
            .map(IpNet::from)
            .map_err(|_| Wrong::value(format!("{text:?} is not a network"), remedy))?,
    };
    Ok(match network {
        IpNet::V6(v6) => unmap(v6),
        v4 => v4,
    })
}

fn unmap(network: Ipv6Net) -> IpNet {
    let v4 = network.addr().to_ipv4_mapped().zip(network.prefix_len().checked_sub(96));
    v4.and_then(|(address, bits)| Ipv4Net::new(address, bits).ok()).map_or(IpNet::V6(network), IpNet::V4)
}

fn read_trusted(text: &str) -> Result<IpNet, Wrong> {
    let network = read_network(text)?;
    let wide = match network {
        IpNet::V4(v4) => v4.prefix_len() < TRUSTED_V4_BITS_MIN,
        // fc00::/7 is nobody else's (RFC 4193).
        IpNet::V6(v6) => {
            let local = v6.prefix_len() >= 7 && v6.addr().octets().first().is_some_and(|byte| byte & 0xfe == 0xfc);
            (v6.prefix_len() < TRUSTED_V6_BITS_MIN && !local) || covers_ipv4(&v6)
        }
    };
    if wide {
        let remedy = "Name the networks of your own machines only; everybody else needs an account.";
        return Err(Wrong::value(format!("{text:?} would make this server an open relay"), remedy));
    }
    Ok(network)
}

/// Wide enough to hold all of ::ffff:0:0/96?
fn covers_ipv4(network: &Ipv6Net) -> bool {
    network.contains(&Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)) && network.prefix_len() < 96
}

pub(super) fn certificate(root: &Section<'_>) -> Option<Certificate> {
    let section = root.section("tls");
    let (certificate, private_key) = (section.item("certificate"), section.item("private_key"));
    match (&certificate, &private_key) {
        (Some(_), None) => section.missing("private_key", "Add the key's file, or take the certificate out."),
        (None, Some(_)) => section.missing("certificate", "Add the certificate's file, or take the key out."),
        (None, None) => section.report.warn(
            "tls: no certificate is configured, so a self-signed one is used; clients that verify will refuse it",
        ),
        (Some(_), Some(_)) => {}
    }
    let certificate = certificate.and_then(|item| item.readable_file());
    let private_key = private_key.and_then(|item| item.readable_file());
    Some(Certificate { certificate: certificate?, private_key: private_key? })
}
