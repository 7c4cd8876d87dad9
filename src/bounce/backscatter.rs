//! Who may be sent a notice: nobody who may not have written. Pure.
//!
//! What comes in from outside says it is from whom it likes. A notice to such a sender would reach somebody
//! who never wrote (backscatter), so it is sent only where the domain of MAIL FROM stands behind the
//! message: by SPF, or by DKIM or DMARC for the same domain. Those who submit here have shown who they are.

use crate::message::{Findings, ReversePath};
use crate::queue::record::Message;

/// Why no notice may go to the sender of this message; none if one may.
pub fn refusal(message: &Message) -> Option<String> {
    if message.origin.door.is_trusted() || message.origin.account.is_some() {
        return None;
    }
    let ReversePath::Address(sender) = &message.mail_from else { return None };
    let domain = sender.domain().as_str();
    let Some(findings) = &message.findings else {
        return Some(format!("nothing was checked that would show whether it is from {domain}"));
    };
    if is_authentic(findings, domain) {
        return None;
    }
    let spf = findings.spf.as_ref().map_or("off", |spf| spf.result.as_str());
    let dmarc = findings.dmarc.as_ref().map_or("off", |dmarc| dmarc.result.as_str());
    Some(format!(
        "nothing shows that it is from {domain} (SPF {spf}, DMARC {dmarc}, no good DKIM signature of {domain})"
    ))
}

/// Does the domain of MAIL FROM stand behind the message?
fn is_authentic(findings: &Findings, domain: &str) -> bool {
    let passes = |result: &str, of: &str| result == "pass" && covers(of, domain);
    findings.spf.as_ref().is_some_and(|spf| spf.result == "pass" && spf.domain.eq_ignore_ascii_case(domain))
        || findings.dkim.iter().any(|dkim| passes(&dkim.result, &dkim.domain))
        || findings.dmarc.as_ref().is_some_and(|dmarc| passes(&dmarc.result, &dmarc.domain))
}

/// The domain itself, or one above it.
fn covers(of: &str, domain: &str) -> bool {
    let (of, domain) = (of.to_ascii_lowercase(), domain.to_ascii_lowercase());
    of == domain || (of.contains('.') && domain.strip_suffix(&of).is_some_and(|rest| rest.ends_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::findings::{DkimFinding, DmarcFinding, SpfFinding};

    fn spf(result: &str, domain: &str) -> Findings {
        let spf = Some(SpfFinding { result: result.into(), domain: domain.into() });
        Findings { spf, ..Findings::default() }
    }

    fn dkim(result: &str, domain: &str) -> Findings {
        let (result, domain, selector) = (result.into(), domain.into(), "s".into());
        Findings { dkim: vec![DkimFinding { result, domain, selector }], ..Findings::default() }
    }

    fn dmarc(result: &str, domain: &str) -> Findings {
        let (result, policy, domain) = (result.into(), "none".into(), domain.into());
        Findings { dmarc: Some(DmarcFinding { result, policy, domain }), ..Findings::default() }
    }

    #[test]
    fn only_the_domain_of_the_sender_stands_behind_it() {
        for (findings, authentic) in [
            (Findings::default(), false),
            (spf("pass", "news.far.test"), true),
            (spf("pass", "NEWS.FAR.test"), true),
            // Of EHLO, or of somebody else.
            (spf("pass", "mx.far.test"), false),
            (spf("softfail", "news.far.test"), false),
            (dkim("pass", "news.far.test"), true),
            (dkim("pass", "far.test"), true),
            (dkim("pass", "r.test"), false),
            (dkim("pass", "test"), false),
            (dkim("pass", "x.news.far.test"), false),
            (dkim("fail", "far.test"), false),
            (dmarc("pass", "far.test"), true),
            (dmarc("pass", "other.test"), false),
            (dmarc("none", "far.test"), false),
        ] {
            assert_eq!(is_authentic(&findings, "news.far.test"), authentic, "{findings:?}");
        }
    }
}
