//! A server of ours, as far as its configuration goes, and the zone that others see it in.

use std::path::PathBuf;
use std::sync::Arc;

use postrider::app::world::{Finding, Level, Looked, Topic, World};
use postrider::config::{self, Config};
use postrider::dns::Resolver;
use postrider::intake::sign::Signer;
use postrider::message::Domain;
use serde_json::Value;

use super::zone::{Zone, ZoneServer};

pub fn domain() -> Domain {
    Domain::parse("my.test").unwrap()
}

/// A configuration, and its zone being served.
pub struct Place {
    pub folder: tempfile::TempDir,
    pub zone: ZoneServer,
    text: String,
}

impl Place {
    /// `more`: of `[delivery]` first, then other sections.
    pub async fn new(zone: Zone, more: &str) -> Place {
        let (folder, zone) = (tempfile::tempdir().unwrap(), zone.serve().await);
        let text = format!(
            "hostname = \"mail.my.test\"\ndata_dir = \"{0}\"\n[domains.\"my.test\"]\ncatchall = \"box\"\n\
             [targets.box]\nkind = \"maildir\"\npath = \"{0}/box\"\n[listeners.mx]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\n\
             [dns]\nnameservers = [\"{1}\"]\ntimeout = \"1s\"\n[delivery]\nallow_private_addresses = true\n{more}",
            folder.path().display(),
            zone.addr()
        );
        Place { folder, zone, text }
    }

    /// With name servers that never say anything.
    pub async fn deaf(more: &str) -> (Place, std::net::UdpSocket) {
        let mut place = Place::new(Zone::new(), more).await;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let (here, deaf) = (place.zone.addr().to_string(), socket.local_addr().unwrap().to_string());
        place.text = place.text.replace(&here, &deaf);
        (place, socket)
    }

    pub fn config(&self) -> Config {
        config::parse("test.toml", &self.text).unwrap_or_else(|problems| panic!("{problems}\n{}", self.text))
    }

    pub fn file(&self) -> PathBuf {
        let file = self.folder.path().join("postrider.toml");
        std::fs::write(&file, &self.text).unwrap();
        file
    }

    pub fn signer(&self) -> Signer {
        Signer::load(&self.config()).unwrap()
    }

    pub fn world(&self) -> World {
        let config = self.config();
        let resolver = Resolver::new(&config.dns).unwrap();
        World::new(Arc::new(config), resolver, Some(self.signer()))
    }

    /// Of the domain's records those of one kind.
    pub async fn records(&self, topic: Topic) -> Vec<Looked> {
        of(self.world().records(&domain()).await, topic)
    }

    pub async fn record(&self, topic: Topic) -> Looked {
        let mut found = self.records(topic).await;
        assert!(!found.is_empty(), "{topic:?}");
        found.remove(0)
    }

    /// Of all findings those of one kind.
    pub async fn findings(&self, topic: Topic) -> Vec<Finding> {
        let all = Arc::new(self.world()).check(|_, _| {}).await;
        all.into_iter().filter(|finding| finding.check == topic).collect()
    }

    pub async fn finding(&self, topic: Topic) -> Finding {
        let mut found = self.findings(topic).await;
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }
}

pub fn of(looked: Vec<Looked>, topic: Topic) -> Vec<Looked> {
    looked.into_iter().filter(|looked| looked.finding.check == topic).collect()
}

/// The lines to publish.
pub fn lines(finding: &Finding) -> Vec<String> {
    finding.publish.iter().map(|record| record.line()).collect()
}

pub fn level(finding: &Finding) -> (Level, &str) {
    (finding.level, finding.found.as_str())
}

/// All that a good server has, but for its keys.
pub fn good() -> Zone {
    Zone::new()
        .mx("my.test", 10, "mail.my.test")
        .a("mail.my.test", "127.0.0.1")
        .ptr("127.0.0.1", "mail.my.test")
        .txt("my.test", "v=spf1 mx -all")
        .txt("mail.my.test", "v=spf1 a -all")
        .txt("_dmarc.my.test", "v=DMARC1; p=reject; rua=mailto:dmarc@my.test")
        .txt("_smtp._tls.my.test", "v=TLSRPTv1; rua=mailto:tls@my.test")
        .mx("gmail.com", 5, "mx.far.test")
        .a("mx.far.test", "127.0.0.1")
}

pub fn with_keys(zone: Zone, signer: &Signer) -> Zone {
    signer.standings(&domain()).iter().fold(zone, |zone, key| zone.txt(&key.name, &key.record))
}

pub fn objects(text: &[u8]) -> Vec<Value> {
    let text = String::from_utf8(text.to_vec()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}
