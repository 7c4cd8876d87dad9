//! A day's counts as XML (RFC 9990 3.1, appendix A) and as a message (RFC 9990 3.5.2).

use crate::checks::feedback::{Counts, Disposition, Published, Reason, Row};
use crate::clock::{Millis, rfc5322};
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
    pub fn xml(&self, counts: &Counts) -> String {
        let mut xml = Writer { text: "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned() };
        xml.text.push_str("<feedback xmlns=\"urn:ietf:params:xml:ns:dmarc-2.0\">\n");
        xml.leaf("version", "1.0");
        xml.element("report_metadata", |xml| self.metadata(xml, counts));
        xml.element("policy_published", |xml| self.published(xml, &counts.published));
        let mut rows: Vec<_> = counts.rows.iter().collect();
        rows.sort();
        for (row, count) in rows {
            xml.element("record", |xml| record(xml, row, *count));
        }
        xml.text.push_str("</feedback>\n");
        xml.text
    }

    fn metadata(&self, xml: &mut Writer, counts: &Counts) {
        let (begin, end) = daily::seconds(self.day);
        xml.leaf("org_name", self.organization.as_str());
        xml.leaf("email", &self.contact.to_string());
        xml.leaf("report_id", &self.id());
        xml.element("date_range", |xml| {
            xml.leaf("begin", &begin.to_string());
            xml.leaf("end", &end.to_string());
        });
        if counts.left_out > 0 {
            xml.leaf("error", &format!("{} messages more are in no record: too many sources", counts.left_out));
        }
        xml.leaf("generator", concat!("postrider ", env!("CARGO_PKG_VERSION")));
    }

    fn published(&self, xml: &mut Writer, published: &Published) {
        let mode = |strict| if strict { "s" } else { "r" };
        xml.leaf("domain", self.domain.as_str());
        xml.leaf("discovery_method", "treewalk");
        xml.leaf("p", &published.p);
        xml.leaf("sp", &published.sp);
        xml.leaf("np", &published.np);
        xml.leaf("fo", &published.fo);
        xml.leaf("adkim", mode(published.adkim_strict));
        xml.leaf("aspf", mode(published.aspf_strict));
        xml.leaf("testing", if published.testing { "y" } else { "n" });
    }

    /// The same however often the report is made.
    fn id(&self) -> String {
        daily::id(self.day, self.domain, self.organization)
    }

    fn file_name(&self) -> String {
        let (begin, end) = daily::seconds(self.day);
        format!("{}!{}!{begin}!{end}.xml.gz", self.organization, self.domain)
    }

    /// The message, without what `intake` adds.
    pub fn message(&self, to: &[Address], packed: &[u8], now: Millis) -> Vec<u8> {
        let (organization, domain, id, file) = (self.organization, self.domain, self.id(), self.file_name());
        let names: Vec<String> = to.iter().map(ToString::to_string).collect();
        let boundary = format!("=_dmarc_{}", self.day);
        let text = format!(
            "From: <{}>\r\nTo: {}\r\nDate: {}\r\nMessage-ID: <{id}>\r\n\
             Subject: Report Domain: {domain}\r\n Submitter: {organization}\r\n Report-ID: <{id}>\r\n\
             Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/mixed;\r\n boundary=\"{boundary}\"\r\n\r\n\
             --{boundary}\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n\
             This is the DMARC aggregate report of {organization}\r\nabout mail that said it was from {domain}.\r\n\r\n\
             --{boundary}\r\nContent-Type: application/gzip\r\nContent-Transfer-Encoding: base64\r\n\
             Content-Disposition: attachment;\r\n filename=\"{file}\"\r\n\r\n{}--{boundary}--\r\n",
            self.contact,
            names.join(",\r\n "),
            rfc5322(now),
            daily::encode(packed),
        );
        text.into_bytes()
    }
}

fn record(xml: &mut Writer, row: &Row, count: u64) {
    xml.element("row", |xml| {
        xml.leaf("source_ip", &row.source.to_string());
        xml.leaf("count", &count.to_string());
        xml.element("policy_evaluated", |xml| {
            xml.leaf("disposition", disposition(row.disposition));
            xml.leaf("dkim", verdict(row.dkim_aligned));
            xml.leaf("spf", verdict(row.spf_aligned));
            if let Some(reason) = row.reason {
                xml.element("reason", |xml| xml.leaf("type", reason_name(reason)));
            }
        });
    });
    xml.element("identifiers", |xml| {
        xml.leaf("header_from", &row.header_from);
        xml.leaf("envelope_from", &row.envelope_from);
    });
    xml.element("auth_results", |xml| {
        for signature in &row.dkim {
            xml.element("dkim", |xml| {
                xml.leaf("domain", &signature.domain);
                xml.leaf("selector", &signature.selector);
                xml.leaf("result", &signature.result);
            });
        }
        if let Some((domain, result)) = &row.spf {
            xml.element("spf", |xml| {
                xml.leaf("domain", domain);
                xml.leaf("scope", "mfrom");
                xml.leaf("result", result);
            });
        }
    });
}

fn disposition(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::None => "none",
        Disposition::Pass => "pass",
        Disposition::Quarantine => "quarantine",
        Disposition::Reject => "reject",
    }
}

fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::LocalPolicy => "local_policy",
        Reason::PolicyTestMode => "policy_test_mode",
    }
}

fn verdict(aligned: bool) -> &'static str {
    if aligned { "pass" } else { "fail" }
}

/// Elements with text, and nothing else of XML.
struct Writer {
    text: String,
}

impl Writer {
    fn element(&mut self, name: &str, inside: impl FnOnce(&mut Writer)) {
        self.text.push_str(&format!("<{name}>\n"));
        inside(self);
        self.text.push_str(&format!("</{name}>\n"));
    }

    fn leaf(&mut self, name: &str, value: &str) {
        self.text.push_str(&format!("<{name}>"));
        for c in value.chars() {
            match c {
                '&' => self.text.push_str("&amp;"),
                '<' => self.text.push_str("&lt;"),
                '>' => self.text.push_str("&gt;"),
                // XML has no way to write these.
                c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => self.text.push('\u{fffd}'),
                c => self.text.push(c),
            }
        }
        self.text.push_str(&format!("</{name}>\n"));
    }
}
