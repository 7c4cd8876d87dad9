//! Reads where milters listen: `inet:HOST:PORT`, `inet6:HOST:PORT` and `unix:/path` as Postfix writes them,
//! `inet:PORT@HOST` and `local:/path` as Sendmail does.

use std::net::IpAddr;
use std::path::Path;

use super::section::{Section, Wrong};
use super::{Milter, MilterHost, MilterPlace, ProblemKind};
use crate::message::Domain;

/// Each message waits for all of them.
const MILTERS_MAX: usize = 16;
const FORM: &str = "a list such as [\"inet:127.0.0.1:11332\"]";
const REMEDY: &str = "Write \"inet:127.0.0.1:11332\", \"inet6:[::1]:11332\" or \"unix:/run/milter.sock\".";

pub(super) fn milters(section: &Section<'_>) -> Vec<Milter> {
    let Some(item) = section.item("milters") else { return Vec::new() };
    let mut milters: Vec<Milter> = Vec::new();
    for element in item.elements(FORM).unwrap_or_default() {
        let Some(milter) = element.read("a list of strings", read) else { continue };
        if milters.iter().any(|other| other.place == milter.place) {
            element.problem(ProblemKind::Duplicate, "this milter is in the list already", "Take one of them out.");
        }
        milters.push(milter);
    }
    if milters.len() > MILTERS_MAX {
        let what = format!("{} milters, more than {MILTERS_MAX}", milters.len());
        item.problem(ProblemKind::BadValue, what, "Take some of them out: each message waits for all.");
    }
    milters
}

fn read(text: &str) -> Result<Milter, Wrong> {
    let wrong = |why: &str| Wrong::value(format!("{text:?} is no address of a milter: {why}"), REMEDY);
    let Some((kind, rest)) = text.split_once(':') else {
        return Err(wrong("it does not begin with inet:, inet6: or unix:"));
    };
    let place = match kind {
        "unix" | "local" if !Path::new(rest).is_absolute() || rest.contains('\0') => {
            return Err(wrong("the path of its socket does not begin with /"));
        }
        "unix" | "local" => MilterPlace::Unix(rest.into()),
        "inet" | "inet6" => {
            let (host, port) = host_and_port(rest).ok_or_else(|| wrong("it has no port"))?;
            let port = port.parse().ok().filter(|port| *port != 0);
            let port: u16 = port.ok_or_else(|| wrong("its port is not a number from 1 to 65535"))?;
            let host = read_host(host).ok_or_else(|| wrong("its host is neither an IP address nor a name"))?;
            if kind == "inet6" && matches!(host, MilterHost::Ip(IpAddr::V4(_))) {
                return Err(wrong("inet6 with an IPv4 address"));
            }
            MilterPlace::Inet { host, port, only_v6: kind == "inet6" }
        }
        _ => return Err(wrong("it does not begin with inet:, inet6: or unix:")),
    };
    Ok(Milter { name: text.to_owned(), place })
}

/// `host:port`, or `port@host`.
fn host_and_port(text: &str) -> Option<(&str, &str)> {
    match text.split_once('@') {
        Some((port, host)) => Some((host, port)),
        None => text.rsplit_once(':'),
    }
}

fn read_host(text: &str) -> Option<MilterHost> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse() {
        return Some(MilterHost::Ip(ip));
    }
    // A name without a dot is one of the local network, or of a container beside ours.
    Domain::parse(text).ok().filter(|name| name.literal().is_none()).map(MilterHost::Name)
}
