//! A small configuration for tests: one domain of ours, everything else at its default.
//!
//! Include it with `#[path = "support/plain.rs"] mod plain;`.

#![allow(dead_code, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use postrider::config::*;
use postrider::message::{Address, Domain};

pub const HOSTNAME: &str = "mail.own.test";
pub const DOMAIN: &str = "own.test";

pub fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

pub fn config(data_dir: &Path) -> Config {
    let per_minute = |count| Rate { count, per: Duration::from_secs(60) };
    Config {
        hostname: domain(HOSTNAME),
        data_dir: data_dir.to_owned(),
        postmaster: Address::parse("ops@own.test").unwrap(),
        listeners: BTreeMap::new(),
        networks: Networks::default(),
        tls: None,
        accounts: BTreeMap::new(),
        domains: BTreeMap::from([(domain(DOMAIN), own_domain())]),
        aliases: Aliases::default(),
        targets: BTreeMap::new(),
        delivery: Delivery {
            default: WayOut::Direct,
            helo_name: domain(HOSTNAME),
            concurrency: 500,
            mx_port: 25,
            allow_private_addresses: false,
            retry: Retry {
                schedule: vec![Duration::from_secs(60)],
                expire: Duration::from_secs(5 * 86400),
                delay_notice: None,
                max_attempts: 0,
            },
            tls: OutboundTls::Opportunistic,
        },
        checks: Checks { spf: CheckMode::Annotate, dkim: CheckMode::Annotate, dmarc: DmarcMode::Enforce },
        loops: Loops {
            period: Duration::from_secs(3600),
            limit: 5,
            key: LoopKey::SenderAndAlias,
            on_limit: OnLimit::Reject,
            max_hops: 50,
            trusted: Vec::new(),
            trusted_accounts: Vec::new(),
            automatic: OnAutomatic::Accept,
        },
        pickup: BTreeMap::new(),
        queue: Queue { durability: Durability::Sync, min_free: 0, memory: 512 << 20 },
        limits: Limits {
            max_size: 35 << 20,
            max_recipients: 100,
            connections: 10_000,
            connections_per_ip: 50,
            connection_rate: per_minute(60),
            errors_per_session: 10,
            auth_failures: per_minute(10),
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(600),
        },
        dns: Dns { nameservers: Vec::new(), timeout: Duration::from_secs(5) },
        log: Log { level: "info".to_owned(), format: LogFormat::Text },
        warnings: Vec::new(),
    }
}

pub fn own_domain() -> OwnDomain {
    OwnDomain {
        catchall: Vec::new(),
        bounce: "bounce".to_owned(),
        subaddress: Some('+'),
        max_size: None,
        dkim: Dkim { selectors: vec!["pr-rsa".to_owned(), "pr-ed".to_owned()], key_files: BTreeMap::new() },
    }
}
