//! MTA-STS (RFC 8461): what a domain says about TLS at its mail exchangers, over HTTPS.
//!
//! Promises: a policy that is known is used until it ends, whatever DNS and HTTPS say meanwhile, so that
//! who can suppress them gains nothing; it is kept in the store; it is fetched anew when its id changes
//! and before it ends; a fetch that failed is not repeated at once, and never makes a known policy
//! forgotten. A domain is asked by one task at a time.
//!
//! The grammar is strict where leniency could weaken a policy, and fields that nobody knows are passed
//! over (RFC 8461 3.2).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Millis};
use crate::delivery::https::{Https, HttpsError};
use crate::delivery::shelf::Shelf;
use crate::delivery::tls_report::Flaw;
use crate::dns::{DnsError, Resolver};
use crate::message::Domain;

/// Octets of a policy (RFC 8461 3.3 lets a sender bound it; 64 kB is its example).
const POLICY_BYTES_MAX: usize = 64 * 1024;
/// mx lines of a policy.
const MX_PATTERNS_MAX: usize = 256;
/// Seconds; RFC 8461 3.2.
const MAX_AGE_SECS_MAX: u64 = 31_557_600;
/// Milliseconds before a fetch that failed is tried again (RFC 8461 3.3: at least five minutes).
const FETCH_AGAIN: Millis = 5 * 60 * 1000;
/// Milliseconds after which a policy is fetched again although its id is the same, unless half its time
/// is over sooner.
const REFRESH_AFTER: Millis = 24 * 3600 * 1000;
/// Domains remembered in memory; what is forgotten there is still in the store.
const REMEMBERED_MAX: usize = 10_000;
/// Policies refreshed in one round.
const REFRESHED_MAX: usize = 100;
/// Locks under which domains are asked.
const LOCKS: usize = 64;
/// In the store.
const SHELF: u8 = b'p';

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Enforce,
    Testing,
    None,
}

/// A policy as fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub mode: Mode,
    /// Lower case, in the order of the file.
    pub mx: Vec<String>,
    pub max_age_secs: u64,
}

/// A policy with where it stands in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub id: String,
    pub fetched_at: Millis,
    pub policy: Policy,
}

impl Kept {
    fn is_over(&self, now: Millis) -> bool {
        now >= self.fetched_at.saturating_add(self.policy.max_age_secs.saturating_mul(1000))
    }

    fn wants_refresh(&self, now: Millis) -> bool {
        let half = self.policy.max_age_secs.saturating_mul(500);
        now >= self.fetched_at.saturating_add(half.min(REFRESH_AFTER))
    }
}

impl Policy {
    /// RFC 8461 3.2: lines of `key: value`, LF or CRLF.
    pub fn parse(text: &[u8]) -> Result<Policy, String> {
        let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
        let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
        for line in text.split('\n') {
            let line = line.strip_suffix('\r').unwrap_or(line).trim_matches([' ', '\t']);
            if line.is_empty() {
                continue;
            }
            let (key, value) = line.split_once(':').ok_or_else(|| format!("{line:?} has no colon"))?;
            let (key, value) = (key.trim_end_matches([' ', '\t']), value.trim_matches([' ', '\t']));
            // Of a field that stands twice the first one counts.
            match key {
                "version" => version = version.or(Some(value)),
                "mode" => mode = mode.or(Some(value)),
                "max_age" => max_age = max_age.or(Some(value)),
                "mx" => mx.push(pattern(value)?),
                _ => {}
            }
        }
        if version != Some("STSv1") {
            return Err("it does not say version: STSv1".to_owned());
        }
        let mode = match mode {
            Some("enforce") => Mode::Enforce,
            Some("testing") => Mode::Testing,
            Some("none") => Mode::None,
            _ => return Err("its mode is none of enforce, testing, none".to_owned()),
        };
        let digits = max_age.filter(|text| !text.is_empty() && text.len() <= 10);
        let max_age = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let max_age = max_age.and_then(|text| text.parse::<u64>().ok()).ok_or("its max_age is no number of seconds")?;
        if mx.is_empty() && mode != Mode::None {
            return Err("it names no mx".to_owned());
        }
        if mx.len() > MX_PATTERNS_MAX {
            return Err(format!("it names more than {MX_PATTERNS_MAX} mx"));
        }
        Ok(Policy { mode, mx, max_age_secs: max_age.min(MAX_AGE_SECS_MAX) })
    }

    /// Is the host one of those that the policy names? `*.` stands for exactly one label (RFC 8461 4.1).
    pub fn lists(&self, host: &Domain) -> bool {
        self.mx.iter().any(|pattern| match pattern.strip_prefix("*.") {
            Some(rest) => host.as_str().split_once('.').is_some_and(|(_, parent)| parent == rest),
            None => host.as_str() == pattern,
        })
    }

    /// As lines of a TLS report (RFC 8460 4.3.2.1).
    pub fn lines(&self) -> Vec<String> {
        let mode = match self.mode {
            Mode::Enforce => "enforce",
            Mode::Testing => "testing",
            Mode::None => "none",
        };
        let head = ["version: STSv1".to_owned(), format!("mode: {mode}")];
        let mx = self.mx.iter().map(|pattern| format!("mx: {pattern}"));
        head.into_iter().chain(mx).chain([format!("max_age: {}", self.max_age_secs)]).collect()
    }
}

fn pattern(value: &str) -> Result<String, String> {
    let bare = value.strip_prefix("*.").unwrap_or(value);
    let domain = Domain::parse(bare).ok().filter(|domain| domain.literal().is_none());
    let domain = domain.ok_or_else(|| format!("{value:?} is no mx pattern"))?;
    Ok(if bare.len() < value.len() { format!("*.{domain}") } else { domain.to_string() })
}

/// The id in the records of `_mta-sts.DOMAIN`; none if there is not exactly one (RFC 8461 3.1).
pub fn record_id(texts: &[String]) -> Option<String> {
    let mut ours = texts.iter().filter(|text| text.split(';').next().is_some_and(|v| v.trim_end() == "v=STSv1"));
    let (Some(only), None) = (ours.next(), ours.next()) else { return None };
    let id = only.split(';').skip(1).find_map(|field| {
        let (key, value) = field.split_once('=')?;
        (key.trim() == "id").then(|| value.trim())
    })?;
    let legal = (1..=32).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    legal.then(|| id.to_owned())
}

/// What is known of a domain's policy.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub kept: Option<Arc<Kept>>,
    /// There should be a policy, or a newer one, and this is why there is not.
    pub flaw: Option<(Flaw, String)>,
    /// The domain says that it has no policy any more (mode `none`).
    pub is_given_up: bool,
}

#[derive(Clone, Debug, Default)]
struct Remembered {
    found: Found,
    /// No fetch before.
    not_before: Millis,
}

/// The policies of all domains.
#[derive(Debug)]
pub struct Policies {
    resolver: Resolver,
    https: Arc<Https>,
    shelf: Shelf,
    clock: Clock,
    remembered: Mutex<HashMap<Domain, Remembered>>,
    locks: Vec<tokio::sync::Mutex<()>>,
}

impl Policies {
    pub fn new(resolver: Resolver, https: Arc<Https>, shelf: Shelf, clock: Clock) -> Policies {
        let locks = (0..LOCKS).map(|_| tokio::sync::Mutex::new(())).collect();
        Policies { resolver, https, shelf, clock, remembered: Mutex::default(), locks }
    }

    /// The policy that applies to mail for the domain now. Mode `none` is no policy.
    pub async fn of(&self, domain: &Domain) -> Found {
        if domain.literal().is_some() {
            return Found::default();
        }
        let _lock = self.lock(domain).await;
        let texts = self.resolver.txt(&format!("_mta-sts.{domain}")).await;
        let id = match texts {
            Ok(texts) => record_id(&texts),
            Err(DnsError::NoSuchDomain | DnsError::Unusable(_)) => None,
            // Nobody knows, so what was known counts.
            Err(DnsError::Temporary(_) | DnsError::Setup(_)) => None,
        };
        let mut found = self.look(domain, id.as_deref()).await;
        found.is_given_up = found.kept.as_ref().is_some_and(|kept| kept.policy.mode == Mode::None);
        found.kept = found.kept.filter(|kept| kept.policy.mode != Mode::None);
        found
    }

    /// Under the domain's lock.
    async fn look(&self, domain: &Domain, id: Option<&str>) -> Found {
        let now = self.clock.now();
        let known = self.recall(domain, now);
        let Some(id) = id else { return Found { flaw: None, ..known.found } };
        let is_fresh = known.found.kept.as_ref().is_some_and(|kept| kept.id == id && !kept.wants_refresh(now));
        if is_fresh || now < known.not_before {
            return known.found;
        }
        let fetched = self.fetch(domain).await;
        let remembered = match fetched {
            Ok(policy) => {
                let kept = Kept { id: id.to_owned(), fetched_at: now, policy };
                self.shelf.put(SHELF, domain.as_str(), &kept).await;
                Remembered { found: Found { kept: Some(Arc::new(kept)), ..Found::default() }, not_before: 0 }
            }
            Err(flaw) => {
                let found = Found { kept: known.found.kept, flaw: Some(flaw), is_given_up: false };
                Remembered { found, not_before: now.saturating_add(FETCH_AGAIN) }
            }
        };
        let found = remembered.found.clone();
        self.remember(domain, remembered);
        found
    }

    /// From memory, else from the store; nothing that is over.
    fn recall(&self, domain: &Domain, now: Millis) -> Remembered {
        let known = self.remembered().get(domain).cloned();
        let mut known = known.unwrap_or_else(|| {
            let kept = self.shelf.get::<Kept>(SHELF, domain.as_str()).map(Arc::new);
            let known = Remembered { found: Found { kept, ..Found::default() }, not_before: 0 };
            self.remember(domain, known.clone());
            known
        });
        known.found.kept = known.found.kept.filter(|kept| !kept.is_over(now));
        known
    }

    fn remember(&self, domain: &Domain, what: Remembered) {
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED_MAX && !remembered.contains_key(domain) {
            remembered.clear();
        }
        remembered.insert(domain.clone(), what);
    }

    async fn fetch(&self, domain: &Domain) -> Result<Policy, (Flaw, String)> {
        let host = format!("mta-sts.{domain}");
        let got = self.https.get(&host, "/.well-known/mta-sts.txt", "text/plain", POLICY_BYTES_MAX).await;
        let body = got.map_err(|error| match error {
            HttpsError::Certificate(why) => (Flaw::StsWebpkiInvalid, why),
            HttpsError::Unreachable(why) | HttpsError::Answer(why) => (Flaw::StsPolicyFetchError, why),
        })?;
        Policy::parse(&body).map_err(|why| (Flaw::StsPolicyInvalid, format!("the policy at {host}: {why}")))
    }

    /// Fetches again what is in the store and has lost half of its time, and forgets what is over, so that
    /// a domain that seldom gets mail keeps its policy (RFC 8461 10.2).
    pub async fn refresh(&self) {
        let now = self.clock.now();
        let (mut old, mut over) = (Vec::new(), Vec::new());
        for (name, kept) in self.shelf.all::<Kept>(SHELF) {
            match Domain::parse(&name) {
                Ok(_) if kept.is_over(now) => over.push(name),
                Ok(domain) if kept.wants_refresh(now) && old.len() < REFRESHED_MAX => old.push(domain),
                _ => {}
            }
        }
        self.shelf.forget(SHELF, &over).await;
        for domain in old {
            self.of(&domain).await;
        }
    }

    async fn lock(&self, domain: &Domain) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        domain.hash(&mut hasher);
        let lock = self.locks.get(hasher.finish() as usize % LOCKS)?;
        Some(lock.lock().await)
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<Domain, Remembered>> {
        // Nothing panics while it is held.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "version: STSv1\nmode: enforce\nmx: mx.far.test\nmx: *.Mail.far.test\nmax_age: 604800\n";

    #[test]
    fn a_policy_is_read() {
        let policy = Policy::parse(GOOD.replace('\n', "\r\n").as_bytes()).unwrap();
        assert_eq!((policy.mode, policy.max_age_secs), (Mode::Enforce, 604_800));
        assert_eq!(policy.mx, ["mx.far.test", "*.mail.far.test"]);
        assert_eq!(Policy::parse(policy.lines().join("\n").as_bytes()).unwrap(), policy);
        for (host, listed) in [
            ("mx.far.test", true),
            ("a.mail.far.test", true),
            ("mail.far.test", false),
            ("a.b.mail.far.test", false),
            ("xmail.far.test", false),
            ("mx.far.test.evil.test", false),
        ] {
            assert_eq!(policy.lists(&Domain::parse(host).unwrap()), listed, "{host}");
        }
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for (from, to) in [
            ("STSv1", "STSv2"),
            ("version: STSv1\n", ""),
            ("enforce", "Enforce"),
            ("mode: enforce\n", ""),
            ("604800", "-1"),
            ("604800", "1e9"),
            ("604800", "99999999999"),
            ("max_age: 604800", ""),
            ("mx: mx.far.test\nmx: *.Mail.far.test\n", ""),
            ("mx.far.test", "*"),
            ("mx.far.test", "mx.*.test"),
            ("mx.far.test", "[192.0.2.1]"),
            ("mx: mx.far.test", "mx mx.far.test"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert!(Policy::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Policy::parse(b"\xff").is_err());
        assert!(Policy::parse(GOOD.replace("enforce", "none").replace("mx: ", "x: ").as_bytes()).is_ok());
        let twice = Policy::parse(format!("{GOOD}mode: none\nmax_age: 1\nnews: x\n").as_bytes()).unwrap();
        assert_eq!((twice.mode, twice.max_age_secs), (Mode::Enforce, 604_800));
    }

    #[test]
    fn one_record_with_an_id() {
        let id = |texts: &[&str]| record_id(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(id(&["v=STSv1; id=20160831085700Z;"]), Some("20160831085700Z".into()));
        assert_eq!(id(&["v=spf1 -all", "v=STSv1;id=1;x=y"]), Some("1".into()));
        let long = format!("v=STSv1; id={}", "x".repeat(33));
        for none in [&["v=STSv1; id=1", "v=STSv1; id=2"][..], &["v=STSv1;"], &["v=STSv10; id=1"], &["id=1; v=STSv1"]] {
            assert_eq!(id(none), None, "{none:?}");
        }
        assert_eq!(id(&[&long]), None);
        assert_eq!(id(&["v=STSv1; id=a-b"]), None);
    }
}
