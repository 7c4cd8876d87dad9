//! A configuration for the tests of this folder. Nothing of it is in the program.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::config::*;
use crate::message::{Address, Domain};

/// `mail.example.com` with the defaults of `conf/postrider.toml`, no accounts, no listeners.
pub fn config(data_dir: &Path) -> Config {
    let hostname = Domain::parse("mail.example.com").unwrap();
    Config {
        hostname: hostname.clone(),
        data_dir: data_dir.to_owned(),
        postmaster: Address::parse("ops@example.com").unwrap(),
        listeners: BTreeMap::new(),
        networks: Networks::default(),
        tls: None,
        accounts: BTreeMap::new(),
        domains: BTreeMap::new(),
        aliases: Aliases::default(),
        targets: BTreeMap::new(),
        delivery: Delivery {
            default: WayOut::Direct,
            helo_name: hostname,
            concurrency: 500,
            mx_port: 25,
            allow_private_addresses: false,
            retry: Retry {
                schedule: vec![Duration::from_secs(60)],
                expire: Duration::from_secs(432_000),
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
        queue: Queue { durability: Durability::Sync, min_free: 1 << 30, memory: 512 << 20 },
        limits: Limits {
            max_size: 35 << 20,
            max_recipients: 100,
            connections: 10_000,
            connections_per_ip: 50,
            connection_rate: Rate { count: 60, per: Duration::from_secs(60) },
            errors_per_session: 10,
            auth_failures: Rate { count: 10, per: Duration::from_secs(900) },
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(600),
        },
        dns: Dns { nameservers: Vec::new(), timeout: Duration::from_secs(5) },
        log: Log { level: "info".into(), format: LogFormat::Text },
        warnings: Vec::new(),
    }
}

pub fn account(credential: Credential) -> Account {
    Account { credential, label: String::new(), active: true, senders: Senders::OwnDomains, max_recipients: 1000 }
}
