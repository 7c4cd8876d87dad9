//! A configuration for the tests of this folder. Nothing of it is in the program.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::{self, Account, Config, Credential, Senders};

/// `mail.example.com` with the defaults of `conf/postrider.toml`, no accounts, no listeners.
pub fn config(data_dir: &Path) -> Config {
    let text = format!("hostname = \"mail.example.com\"\ndata_dir = \"{}\"\n", data_dir.display());
    Config { listeners: BTreeMap::new(), ..config::parse("testing.toml", &text).unwrap() }
}

pub fn account(credential: Credential) -> Account {
    Account {
        credential,
        label: String::new(),
        active: true,
        senders: Senders::OwnDomains,
        stream: "transactional".to_owned(),
        streams: Vec::new(),
        force_from: None,
        daily_limit: None,
        rate_limit: None,
        max_attachments: None,
        notify: None,
        hold: false,
        max_recipients: 1000,
    }
}
