//! A small configuration for the tests of this folder: `example.com` with a catchall,
//! `plain.example` without, two webhooks and a Maildir.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::*;
use crate::message::{Address, Domain};

pub fn config() -> Config {
    let hook =
        || Target::Webhook { url: "https://hooks.example/".to_owned(), secret: None, timeout: Duration::from_secs(15) };
    let domains = [("example.com", vec![Destination::Target("catch".to_owned())]), ("plain.example", Vec::new())];
    Config {
        hostname: domain("mail.example.com"),
        data_dir: "/nonexistent".into(),
        postmaster: Address::parse("ops@elsewhere.example").unwrap(),
        listeners: BTreeMap::new(),
        networks: Networks::default(),
        tls: None,
        accounts: BTreeMap::new(),
        domains: domains.into_iter().map(|(name, catchall)| (domain(name), own_domain(catchall))).collect(),
        aliases: Aliases::default(),
        targets: BTreeMap::from([
            ("crm".to_owned(), hook()),
            ("catch".to_owned(), hook()),
            ("sales-box".to_owned(), Target::Maildir { path: "/nonexistent/sales".into() }),
        ]),
        delivery: delivery(),
        checks: Checks { spf: CheckMode::Off, dkim: CheckMode::Off, dmarc: DmarcMode::Off },
        loops: loops(),
        pickup: BTreeMap::new(),
        queue: Queue { durability: Durability::Sync, min_free: 0, memory: 0 },
        limits: limits(),
        dns: Dns { nameservers: Vec::new(), timeout: Duration::from_secs(5) },
        log: Log { level: "info".to_owned(), format: LogFormat::Text },
        warnings: Vec::new(),
    }
}

pub fn loops() -> Loops {
    Loops {
        period: Duration::from_secs(3600),
        limit: 5,
        key: LoopKey::SenderAndAlias,
        on_limit: OnLimit::Reject,
        max_hops: 50,
        trusted: Vec::new(),
        trusted_accounts: Vec::new(),
        automatic: OnAutomatic::Accept,
    }
}

pub fn pattern(text: &str, destinations: Vec<Destination>) -> PatternAlias {
    PatternAlias { text: format!("/{text}/"), regex: regex::Regex::new(text).unwrap(), destinations }
}

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

fn own_domain(catchall: Vec<Destination>) -> OwnDomain {
    OwnDomain {
        catchall,
        bounce: "bounce".to_owned(),
        subaddress: Some('+'),
        max_size: None,
        dkim: Dkim { selectors: Vec::new(), key_files: BTreeMap::new() },
    }
}

fn delivery() -> Delivery {
    Delivery {
        default: WayOut::Direct,
        helo_name: domain("mail.example.com"),
        concurrency: 1,
        mx_port: 25,
        allow_private_addresses: false,
        retry: Retry {
            schedule: vec![Duration::from_secs(60)],
            expire: Duration::from_secs(60),
            delay_notice: None,
            max_attempts: 0,
        },
        tls: OutboundTls::Opportunistic,
    }
}

fn limits() -> Limits {
    let rate = Rate { count: 1, per: Duration::from_secs(60) };
    Limits {
        max_size: 1 << 20,
        max_recipients: 100,
        connections: 1,
        connections_per_ip: 1,
        connection_rate: rate,
        errors_per_session: 10,
        auth_failures: rate,
        command_timeout: Duration::from_secs(60),
        data_timeout: Duration::from_secs(60),
    }
}
