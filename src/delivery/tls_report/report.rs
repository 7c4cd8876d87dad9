//! A day's counts as JSON (RFC 8460 4.4) and as a message (RFC 8460 5.3).

use serde_json::{Value, json};

use super::count::{Counted, Counts};
use crate::clock::{DAY, Millis, rfc3339, rfc5322};
use crate::delivery::daily;
use crate::message::{Address, Domain};

/// What a report needs besides the counts.
pub struct About<'a> {
    pub organization: &'a Domain,
    pub contact: &'a Address,
    pub domain: &'a Domain,
    pub day: u64,
}

impl About<'_> {
    fn begin(&self) -> Millis {
        self.day.saturating_mul(DAY)
    }

    fn end(&self) -> Millis {
        self.begin().saturating_add(DAY - 1000)
    }

    /// The same however often the report is made.
    pub fn id(&self) -> String {
        daily::id(self.day, self.domain, self.organization)
    }

    fn file_name(&self) -> String {
        format!("{}!{}!{}!{}.json.gz", self.organization, self.domain, self.begin() / 1000, self.end() / 1000)
    }

    pub fn json(&self, counts: &Counts) -> Value {
        json!({
            "organization-name": self.organization.as_str(),
            "date-range": { "start-datetime": seconds(self.begin()), "end-datetime": seconds(self.end()) },
            "contact-info": self.contact.to_string(),
            "report-id": self.id(),
            "policies": counts.policies.iter().map(|policy| self.policy(policy)).collect::<Vec<_>>(),
        })
    }

    fn policy(&self, counted: &Counted) -> Value {
        let details = counted.bad.iter().map(|bad| {
            let mut detail = json!({ "result-type": bad.flaw.name(), "failed-session-count": bad.count });
            let more = [
                ("receiving-mx-hostname", bad.host.clone()),
                ("receiving-ip", bad.ip.map(|ip| ip.to_string())),
                ("failure-reason-code", Some(bad.detail.clone()).filter(|text| !text.is_empty())),
            ];
            for (key, value) in more {
                if let (Some(value), Some(detail)) = (value, detail.as_object_mut()) {
                    detail.insert(key.to_owned(), value.into());
                }
            }
            detail
        });
        json!({
            "policy": {
                "policy-type": counted.kind,
                "policy-string": counted.lines,
                "policy-domain": self.domain.as_str(),
                "mx-host": counted.mx,
            },
            "summary": {
                "total-successful-session-count": counted.good,
                "total-failure-session-count": counted.bad.iter().map(|bad| bad.count).sum::<u64>(),
            },
            "failure-details": details.collect::<Vec<_>>(),
        })
    }

    /// The message, without what `intake` adds.
    pub fn message(&self, to: &[Address], packed: &[u8], now: Millis) -> Vec<u8> {
        let (organization, domain, id, file) = (self.organization, self.domain, self.id(), self.file_name());
        let names: Vec<String> = to.iter().map(ToString::to_string).collect();
        let boundary = format!("=_tlsrpt_{}", self.day);
        let mut text = format!(
            "From: <{}>\r\nTo: {}\r\nDate: {}\r\nMessage-ID: <{id}>\r\n\
             Subject: Report Domain: {domain}\r\n Submitter: {organization}\r\n Report-ID: <{id}>\r\n\
             TLS-Report-Domain: {domain}\r\nTLS-Report-Submitter: {organization}\r\nTLS-Required: No\r\n\
             Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=\"tlsrpt\";\r\n boundary=\"{boundary}\"\r\n\r\n\
             --{boundary}\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n\
             This is the TLS report of {organization} about mail to {domain}.\r\n\r\n\
             --{boundary}\r\nContent-Type: application/tlsrpt+gzip\r\nContent-Transfer-Encoding: base64\r\n\
             Content-Disposition: attachment;\r\n filename=\"{file}\"\r\n\r\n",
            self.contact,
            names.join(",\r\n "),
            rfc5322(now),
        );
        text.push_str(&daily::encode(packed));
        text.push_str(&format!("--{boundary}--\r\n"));
        text.into_bytes()
    }
}

/// RFC 3339 in whole seconds.
fn seconds(millis: Millis) -> String {
    let text = rfc3339(millis);
    format!("{}Z", text.split('.').next().unwrap_or_default())
}
