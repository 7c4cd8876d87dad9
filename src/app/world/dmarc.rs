//! DMARC: is there one record that can be used, does mail of ours pass under it, and do reports arrive?

use super::domain::{or_none, shown};
use super::records;
use super::{Finding, Level, Looked, Topic, World};
use crate::checks::dmarc::{Applying, Policy, applying, report_addresses};
use crate::dns::DnsError;
use crate::message::Domain;

impl World {
    pub(super) async fn dmarc(&self, domain: &Domain) -> Looked {
        let wanted = records::dmarc(domain);
        let of = domain.as_str();
        let not_now = || {
            let error = DnsError::Temporary(format!("the DMARC record of {domain} could not be looked up"));
            Finding::unknown(Topic::Dmarc, of, &error)
        };
        let texts = match or_none(self.resolver.txt(&wanted.name).await) {
            Ok(texts) => texts,
            Err(error) => return Looked::unknown(wanted, Finding::unknown(Topic::Dmarc, of, &error)),
        };
        let own: Vec<&String> = texts.iter().filter(|text| text.to_ascii_lowercase().starts_with("v=dmarc1")).collect();
        if own.len() > 1 {
            let found = format!(
                "there are {} records: {}",
                own.len(),
                own.iter().map(|text| shown(text)).collect::<Vec<_>>().join(", ")
            );
            let finding = Finding::new(Topic::Dmarc, of, Level::Problem, found)
                .remedy("keep one of them")
                .why("Several records count as none.");
            return Looked::differs(wanted, finding);
        }
        let Ok(applying) = applying(&self.resolver, domain).await else { return Looked::unknown(wanted, not_now()) };
        let missing =
            "Large providers refuse mail in numbers from domains without DMARC, and anybody may use the name.";
        let Some(applying) = applying else {
            let finding = match texts.first() {
                Some(text) => {
                    Finding::new(Topic::Dmarc, of, Level::Problem, format!("{} is no record of DMARC", shown(text)))
                }
                None => Finding::new(Topic::Dmarc, of, Level::Problem, "there is none"),
            };
            let finding = finding.why(missing);
            return if texts.is_empty() { Looked::missing(wanted, finding) } else { Looked::differs(wanted, finding) };
        };
        let Some(policy) = applying.policy else {
            let found = format!(
                "{} cannot be used: p= is none of none, quarantine, reject",
                own.first().map_or(String::new(), |text| shown(text))
            );
            return Looked::differs(wanted, Finding::new(Topic::Dmarc, of, Level::Problem, found).why(missing));
        };
        let finding = self.dmarc_policy(domain, &applying, policy).await;
        let is_there = match own.first() {
            Some(text) => wanted.with(text.as_str()),
            // Of its own it would be as strict as the one that applies.
            None => wanted.with(format!("v=DMARC1; p={}; rua=mailto:postmaster@{domain}", policy.text())),
        };
        Looked::there(is_there, finding.unwrap_or_else(not_now))
    }

    /// None: the name servers could not tell.
    async fn dmarc_policy(&self, domain: &Domain, applying: &Applying, policy: Policy) -> Option<Finding> {
        let of = domain.as_str();
        let place = if applying.at == of { String::new() } else { format!(" (the record of {} applies)", applying.at) };
        let asked = format!("p={}{place}", policy.text());
        let signs = self.signer.as_ref().map(|signer| !signer.standings(domain).is_empty());
        if signs == Some(false) {
            return Some(
                Finding::new(
                    Topic::Dmarc,
                    of,
                    Level::Warning,
                    format!("{asked}, but no key of ours signs for this domain"),
                )
                .remedy(format!("`postrider dkim new {domain}` makes one"))
                .why("Mail that is passed on keeps its signature, but not its SPF: without one it fails DMARC."),
            );
        }
        let aligned = "our signatures are of this domain, so what they sign passes";
        if !applying.wants_reports {
            return Some(
                Finding::new(Topic::Dmarc, of, Level::Note, format!("{asked}; {aligned}; it asks for no reports"))
                    .remedy(format!("add rua=mailto:postmaster@{domain}"))
                    .why("Reports show who sends in the name of the domain, and whether all of your own mail passes."),
            );
        }
        let at = Domain::parse(&applying.at).ok()?;
        let agreed = report_addresses(&self.resolver, &at).await.ok()?;
        let mut refused = applying
            .destinations
            .iter()
            .filter(|to| agreed.iter().all(|known| known.address.domain() != to.address.domain()));
        if let Some(refused) = refused.next() {
            let (host, to) = (refused.address.domain(), &refused.address);
            let name = format!("{at}._report._dmarc.{host}");
            let record =
                records::Record::new(name, "TXT", "v=DMARC1", "by whoever runs the domain that the reports go to");
            return Some(
                Finding::new(
                    Topic::Dmarc,
                    of,
                    Level::Warning,
                    format!("{asked}; {host} has not agreed to get reports for <{to}>"),
                )
                .publish(record)
                .why("Reports go to another organization only where that says in DNS that it wants them."),
            );
        }
        let found = format!("{asked}; {aligned}");
        if policy == Policy::None || applying.testing {
            return Some(
                Finding::new(Topic::Dmarc, of, Level::Note, found)
                    .remedy("once reports show no mail of yours failing: p=quarantine, then p=reject")
                    .why("With p=none others may still use the name of the domain."),
            );
        }
        Some(Finding::ok(Topic::Dmarc, of, found))
    }
}
