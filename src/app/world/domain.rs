//! What DNS says of a domain of ours, beside SPF and DMARC: where its mail comes in, the keys of its signatures, and
//! what is said of TLS.

use super::records::{self, Record};
use super::{Finding, Level, Looked, Published, Topic, World};
use crate::config::Role;
use crate::delivery::smtp::{Mode, Policy, record_id};
use crate::delivery::tls_report::Wanted;
use crate::dns::{DnsError, MxAnswer, MxHost};
use crate::intake::sign::life::{State, is_among};
use crate::message::Domain;

/// Octets of a policy (RFC 8461 3.3).
const POLICY_BYTES_MAX: usize = 64 * 1024;
/// RFC 8461 3.2 recommends weeks; below a day senders hardly keep it.
const POLICY_SECS_MIN: u64 = 86_400;
/// Characters of a record that are shown.
const SHOWN_CHARS_MAX: usize = 200;

/// A text from DNS for people.
pub(super) fn shown(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).take(SHOWN_CHARS_MAX).collect();
    if text.chars().count() > SHOWN_CHARS_MAX { format!("\"{line}…\"") } else { format!("\"{line}\"") }
}

/// "There is no such name" is "nothing there".
pub(super) fn or_none<T>(answer: Result<Vec<T>, DnsError>) -> Result<Vec<T>, DnsError> {
    match answer {
        Err(DnsError::NoSuchDomain) => Ok(Vec::new()),
        other => other,
    }
}

impl Looked {
    /// `record`: as it is in DNS, so that nobody puts a weaker one in its place.
    pub(super) fn there(record: Record, finding: Finding) -> Looked {
        Looked { record, published: Published::There, finding }
    }

    pub(super) fn missing(record: Record, finding: Finding) -> Looked {
        Looked { published: Published::Missing, finding: finding.publish(record.clone()), record }
    }

    pub(super) fn differs(record: Record, finding: Finding) -> Looked {
        Looked { published: Published::Differs, finding: finding.publish(record.clone()), record }
    }

    pub(super) fn unknown(record: Record, finding: Finding) -> Looked {
        Looked { record, published: Published::Unknown, finding }
    }
}

impl World {
    /// Does mail for the domain come to us?
    pub(super) async fn mx(&self, domain: &Domain) -> Looked {
        let wanted = records::mx(&self.config, domain);
        let expects = self.expects_mail(domain);
        let level = if expects { Level::Problem } else { Level::Note };
        let finding = |found: String| {
            let finding = Finding::new(Topic::Mx, domain.as_str(), level, found);
            match expects {
                true => finding.why("Without it mail for the domain goes elsewhere, or back to its sender."),
                false => finding.why("No alias or catchall wants mail for this domain here, so that may be meant so."),
            }
        };
        match self.resolver.mx(domain).await {
            Ok(MxAnswer::Hosts(hosts)) => self.mx_hosts(domain, wanted, &hosts, finding).await,
            Ok(MxAnswer::Null) => {
                Looked::differs(wanted, finding("a null MX: the domain takes no mail at all".to_owned()))
            }
            Ok(MxAnswer::Implicit) => Looked::missing(
                wanted,
                finding("there is none, so mail goes to the address of the domain itself, if it has one".to_owned()),
            ),
            Ok(MxAnswer::NoSuchDomain) => {
                let finding =
                    Finding::new(Topic::Mx, domain.as_str(), Level::Problem, "the domain does not exist in DNS")
                        .remedy("register it, or see that its name servers are entered with the registry")
                        .why("Mail from a domain that does not exist is refused nearly everywhere.");
                Looked::missing(wanted, finding)
            }
            Err(error) => Looked::unknown(wanted, Finding::unknown(Topic::Mx, domain.as_str(), &error)),
        }
    }

    async fn mx_hosts(
        &self,
        domain: &Domain,
        wanted: Record,
        hosts: &[MxHost],
        finding: impl Fn(String) -> Finding,
    ) -> Looked {
        let list: Vec<String> = hosts.iter().map(|mx| format!("{} {}", mx.preference, mx.host)).collect();
        let list = list.join(", ");
        let own = [&self.config.hostname, &self.config.delivery.helo_name];
        let Some(first) = hosts.first() else { return Looked::missing(wanted, finding("there is none".to_owned())) };
        let mut ours = None;
        for mx in hosts {
            if own.contains(&&mx.host) || self.is_same_host(&mx.host).await {
                ours = Some(mx);
                break;
            }
        }
        let Some(ours) = ours else {
            return Looked::differs(wanted, finding(format!("{list}: none of them is this server")));
        };
        let wanted = wanted.with(format!("{} {}.", ours.preference, ours.host));
        if ours.preference > first.preference {
            let found = format!("{list}: this server is not the first, so most mail goes elsewhere");
            return Looked::there(wanted, Finding::new(Topic::Mx, domain.as_str(), Level::Note, found));
        }
        Looked::there(wanted, Finding::ok(Topic::Mx, domain.as_str(), list))
    }

    /// Another name with an address of ours.
    async fn is_same_host(&self, host: &Domain) -> bool {
        let (theirs, ours) =
            tokio::join!(self.resolver.addresses(host), self.resolver.addresses(&self.config.hostname));
        let (Ok(theirs), Ok(ours)) = (theirs, ours) else { return false };
        theirs.iter().any(|ip| ours.contains(ip))
    }

    fn expects_mail(&self, domain: &Domain) -> bool {
        let takes = self.config.listeners.values().any(|listener| listener.role == Role::Mx);
        let end = format!("@{domain}");
        let aliases = &self.config.aliases;
        let named = aliases.exact.keys().any(|key| key.ends_with(&end)) || !aliases.patterns.is_empty();
        let caught = self.config.domains.get(domain).is_some_and(|own| !own.catchall.is_empty());
        takes && (named || caught)
    }

    /// Can what we sign be verified?
    pub(super) async fn dkim(&self, domain: &Domain) -> Vec<Looked> {
        let Some(signer) = &self.signer else {
            let finding = Finding::new(
                Topic::Dkim,
                domain.as_str(),
                Level::Note,
                "not looked at: there are no keys that can be read",
            )
            .remedy(format!(
                "`postrider dns {domain}` makes them and prints their records; so does the server's first start"
            ));
            let record = Record::new(format!("_domainkey.{domain}"), "TXT", "", "DKIM");
            return vec![Looked::unknown(record, finding)];
        };
        let states: Vec<State> = signer.standings(domain).into_iter().map(|key| key.state).collect();
        let mut all = Vec::new();
        for record in records::dkim(signer, domain) {
            let state = states.get(all.len());
            all.push(self.dkim_key(record, state).await);
        }
        if all.is_empty() {
            let found = "no key signs for this domain";
            let finding = Finding::new(Topic::Dkim, domain.as_str(), Level::Warning, found)
                .remedy(format!("`postrider dkim new {domain}` makes one"))
                .why("Large providers refuse, or put into the spam folder, what is not signed.");
            all.push(Looked::unknown(Record::new(format!("_domainkey.{domain}"), "TXT", "", "DKIM"), finding));
        }
        all
    }

    /// `state`: none of a key that is done with.
    async fn dkim_key(&self, record: Record, state: Option<&State>) -> Looked {
        let name = record.name.clone();
        let texts = match or_none(self.resolver.txt(&name).await) {
            Ok(texts) => texts,
            Err(error) => return Looked::unknown(record, Finding::unknown(Topic::Dkim, name, &error)),
        };
        let Some(state) = state else {
            let (published, found) = match texts.is_empty() {
                true => (Published::Missing, "is gone, as it may be: nothing needs it any more"),
                false => (Published::There, "may be taken away: nothing that is queued needs it any more"),
            };
            return Looked { published, finding: Finding::ok(Topic::Dkim, name, found), record };
        };
        if is_among(&record.value, &texts) {
            let found = match state {
                State::Signing => "the record has the key that signs",
                State::Waiting { .. } => "the record is there: the key signs as soon as the server sees it",
                State::Retired { .. } => "the record is there still, as it has to be",
                State::Done => "nothing needs it any more",
            };
            return Looked::there(record, Finding::ok(Topic::Dkim, name, found));
        }
        let revoked = texts.iter().any(|text| text.contains("p=;") || text.trim_end().ends_with("p="));
        let (is_there, found) = match texts.first() {
            None => (false, "there is no record".to_owned()),
            Some(_) if revoked => (true, "the record says that the key was revoked (an empty p=)".to_owned()),
            Some(text) => (true, format!("the record has another key than ours: {}", shown(text))),
        };
        let (level, why) = match state {
            State::Signing => {
                (Level::Problem, "Signatures that nobody can verify count as none, and then DMARC fails too.")
            }
            State::Waiting { .. } => {
                (Level::Note, "The key signs once its record is seen; until then the old one does.")
            }
            State::Retired { .. } | State::Done => {
                (Level::Warning, "What this key has signed and is still on its way cannot be verified.")
            }
        };
        let finding = Finding::new(Topic::Dkim, name, level, found).why(why);
        if is_there { Looked::differs(record, finding) } else { Looked::missing(record, finding) }
    }

    /// Is there a policy, can it be fetched, and does it name the servers that there are?
    pub(super) async fn mta_sts(&self, domain: &Domain) -> Looked {
        let wanted = records::mta_sts(&self.config, domain);
        let of = domain.as_str();
        let texts = match or_none(self.resolver.txt(&wanted.name).await) {
            Ok(texts) => texts,
            Err(error) => return Looked::unknown(wanted, Finding::unknown(Topic::MtaSts, of, &error)),
        };
        let ours: Vec<&String> = texts.iter().filter(|text| text.starts_with("v=STSv1")).collect();
        let Some(text) = ours.first() else {
            let finding = Finding::new(Topic::MtaSts, of, Level::Note, "there is none")
                .remedy(format!(
                    "first serve https://mta-sts.{domain}/.well-known/mta-sts.txt; \
                     `postrider dns {domain}` prints what it has to say"
                ))
                .why("With it other servers insist on TLS to this one, and nobody on the way can read or divert mail.");
            return Looked::missing(wanted, finding);
        };
        if record_id(&texts).is_none() {
            let found = format!("{} is no record of MTA-STS: there has to be exactly one, with an id", shown(text));
            let finding = Finding::new(Topic::MtaSts, of, Level::Problem, found)
                .why("Other servers pass it over, and use no TLS policy.");
            return Looked::differs(wanted, finding);
        }
        let host = format!("mta-sts.{domain}");
        let is_there = wanted.with(text.as_str());
        let got = self.https.get(&host, "/.well-known/mta-sts.txt", "text/plain", POLICY_BYTES_MAX).await;
        let policy = got.map_err(|error| error.to_string()).and_then(|body| Policy::parse(&body));
        let finding = match policy {
            Err(why) => Finding::new(
                Topic::MtaSts,
                of,
                Level::Problem,
                format!("the record is there, but not the policy: {why}"),
            )
            .remedy(format!(
                "serve https://{host}/.well-known/mta-sts.txt with a certificate that others trust, as text/plain, \
                     without a redirect:\n{}",
                records::policy(&self.config).trim_end()
            ))
            .why("Who has fetched an older policy goes by that until it ends, and everybody else by none."),
            Ok(policy) => self.sts_policy(domain, &policy).await,
        };
        Looked::there(is_there, finding)
    }

    async fn sts_policy(&self, domain: &Domain, policy: &Policy) -> Finding {
        let of = domain.as_str();
        let mode = match policy.mode {
            Mode::Enforce => "enforce",
            Mode::Testing => "testing",
            Mode::None => "none",
        };
        let hosts = match self.resolver.mx(domain).await {
            Ok(MxAnswer::Hosts(hosts)) => hosts.into_iter().map(|mx| mx.host).collect(),
            Ok(MxAnswer::Implicit) => vec![domain.clone()],
            _ => Vec::new(),
        };
        let left_out: Vec<&str> = hosts.iter().filter(|host| !policy.lists(host)).map(Domain::as_str).collect();
        if policy.mode != Mode::None && !left_out.is_empty() {
            let level = if policy.mode == Mode::Enforce { Level::Problem } else { Level::Warning };
            let lines: Vec<String> = left_out.iter().map(|host| format!("mx: {host}")).collect();
            return Finding::new(
                Topic::MtaSts,
                of,
                level,
                format!("mode {mode}; the policy does not name {}", left_out.join(", ")),
            )
            .remedy(format!("add to the policy, and give the record a new id: {}", lines.join("; ")))
            .why("Servers that keep to a policy in mode enforce bring no mail to a host that it does not name.");
        }
        if policy.max_age_secs < POLICY_SECS_MIN {
            let found = format!("mode {mode}, for {} s only", policy.max_age_secs);
            return Finding::new(Topic::MtaSts, of, Level::Note, found)
                .remedy("max_age: 604800 or more")
                .why("Who can keep a sender from DNS for so long makes it forget the policy.");
        }
        Finding::ok(Topic::MtaSts, of, format!("mode {mode}, and it names every mail server of the domain"))
    }

    pub(super) async fn tls_rpt(&self, domain: &Domain) -> Looked {
        let wanted = records::tls_rpt(domain);
        let of = domain.as_str();
        let texts = match or_none(self.resolver.txt(&wanted.name).await) {
            Ok(texts) => texts,
            Err(error) => return Looked::unknown(wanted, Finding::unknown(Topic::TlsRpt, of, &error)),
        };
        let to = Wanted::parse(&texts);
        let why = "Without it nobody tells you that mail did not come in because of TLS.";
        match texts.first() {
            None => Looked::missing(wanted, Finding::new(Topic::TlsRpt, of, Level::Note, "there is none").why(why)),
            Some(text) if to.is_empty() => {
                let found =
                    format!("{} names nobody to report to: there has to be exactly one record, with rua=", shown(text));
                Looked::differs(wanted, Finding::new(Topic::TlsRpt, of, Level::Warning, found).why(why))
            }
            Some(text) => {
                let ours = texts.iter().find(|text| text.starts_with("v=TLSRPTv1"));
                let wanted = wanted.with(ours.unwrap_or(text).as_str());
                let to: Vec<String> = to.mail.iter().map(ToString::to_string).chain(to.https).collect();
                Looked::there(wanted, Finding::ok(Topic::TlsRpt, of, format!("reports go to {}", to.join(", "))))
            }
        }
    }
}
