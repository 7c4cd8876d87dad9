//! Reads what concerns the doors: listeners and networks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong};
use super::tree::Value;
use super::{Listener, ListenerTls, Networks, Role};

/// A trusted network, or one of proxies, may not be wider than these: what may submit without a password, or
/// say for others who they are, must be somebody's own machines, or the server is an open relay.
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
    let listener = |role, port, tls| Listener { role, bind: any(port), tls, proxy_protocol: false };
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
    let proxy_protocol = section.boolean("proxy_protocol", false);
    let (role, addresses) = (role?, addresses?);
    if role == Role::Submission && tls == ListenerTls::Off && open {
        section.report.warn(format!(
            "listeners.{name}: tls is \"off\", so AUTH is offered to clients on loopback addresses only"
        ));
    }
    Some(Listener { role, bind: addresses, tls, proxy_protocol })
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

pub(super) fn read_socket_address(text: &str) -> Result<SocketAddr, Wrong> {
    let remedy = "Write an IP address, a colon and a port, such as \"[::]:25\" or \"127.0.0.1:25\".";
    text.parse().map_err(|_| Wrong::value(format!("{text:?} is not an address with a port"), remedy))
}

pub(super) fn networks(root: &Section<'_>, listeners: &BTreeMap<String, Listener>) -> Networks {
    let section = root.section("networks");
    let networks = Networks {
        trusted: section.list("trusted", NETWORKS_FORM, read_trusted).unwrap_or_default(),
        proxies: section.list("proxies", NETWORKS_FORM, read_proxies).unwrap_or_default(),
        blocked: section.list("blocked", NETWORKS_FORM, read_network).unwrap_or_default(),
    };
    check_proxies(root, listeners);
    networks
}

/// A listener behind a proxy needs to know the proxy, and a proxy that no listener listens to is a mistake.
fn check_proxies(root: &Section<'_>, listeners: &BTreeMap<String, Listener>) {
    let (section, proxies) = (root.section("networks"), root.section("networks").item("proxies"));
    let is_empty = |item: &Item<'_>| matches!(&item.node.value, Value::Array(items) if items.is_empty());
    let has_proxies = proxies.as_ref().is_some_and(|item| !is_empty(item));
    let behind: Vec<&str> =
        listeners.iter().filter(|(_, listener)| listener.proxy_protocol).map(|(name, _)| name.as_str()).collect();
    match behind.first() {
        Some(name) if !has_proxies => {
            let item = root.section("listeners").section(name).item("proxy_protocol");
            if let Some(item) = item {
                item.problem(
                    ProblemKind::Reference,
                    "no proxy is known, so this listener would refuse everybody",
                    "Name the proxies, such as proxies = [\"10.0.0.1\"] in [networks], or set proxy_protocol = false.",
                );
            }
        }
        None if has_proxies => section.report.warn(
            "networks.proxies: no listener has proxy_protocol = true, so what comes from these addresses is taken for \
             the proxies' own; set it on the listeners that they connect to",
        ),
        _ => {}
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
    if is_wide(&network) {
        let remedy = "Name the networks of your own machines only; everybody else needs an account.";
        return Err(Wrong::value(format!("{text:?} would make this server an open relay"), remedy));
    }
    Ok(network)
}

fn read_proxies(text: &str) -> Result<IpNet, Wrong> {
    let network = read_network(text)?;
    if is_wide(&network) {
        let remedy = "Name the addresses of your own proxies only.";
        return Err(Wrong::value(format!("{text:?} would let strangers say that they are anybody"), remedy));
    }
    Ok(network)
}

fn is_wide(network: &IpNet) -> bool {
    match network {
        IpNet::V4(v4) => v4.prefix_len() < TRUSTED_V4_BITS_MIN,
        // fc00::/7 is nobody else's (RFC 4193).
        IpNet::V6(v6) => {
            let local = v6.prefix_len() >= 7 && v6.addr().octets().first().is_some_and(|byte| byte & 0xfe == 0xfc);
            (v6.prefix_len() < TRUSTED_V6_BITS_MIN && !local) || covers_ipv4(v6)
        }
    }
}

/// Wide enough to hold all of ::ffff:0:0/96?
fn covers_ipv4(network: &Ipv6Net) -> bool {
    network.contains(&Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)) && network.prefix_len() < 96
}
