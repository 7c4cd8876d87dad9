//! Signs messages for tests, with any tags, right or wrong: DKIM fields and ARC sets. Written by the text of
//! RFC 6376 3.4 and RFC 8617 5.1 without the server's code, so that the two can disagree.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "test code")]

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Keys for the selectors `rsa` and `ed`, of whatever domain.
pub struct Maker {
    rsa: RsaKeyPair,
    ed: Ed25519KeyPair,
}

impl Maker {
    pub fn new() -> Maker {
        Maker { rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(), ed: Ed25519KeyPair::generate().unwrap() }
    }

    /// p= of the selector's record.
    pub fn public(&self, selector: &str) -> String {
        match selector {
            "ed" => STANDARD.encode(self.ed.public_key().as_ref()),
            _ => {
                let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = self.rsa.public_key().as_der().unwrap();
                STANDARD.encode(der.as_ref())
            }
        }
    }

    pub fn record(&self, selector: &str) -> String {
        let kind = if selector == "ed" { "ed25519" } else { "rsa" };
        format!("v=DKIM1; k={kind}; p={}", self.public(selector))
    }

    fn sign(&self, data: &str) -> (String, String) {
        let mut signature = vec![0; self.rsa.public_modulus_len()];
        self.rsa.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), data.as_bytes(), &mut signature).unwrap();
        let ed = self.ed.sign(digest(&SHA256, data.as_bytes()).as_ref());
        (STANDARD.encode(signature), STANDARD.encode(ed.as_ref()))
    }

    fn of_kind(&self, tags: &str, data: &str) -> String {
        let (rsa, ed) = self.sign(data);
        if tags.contains("a=ed25519") { ed } else { rsa }
    }

    /// A field that signs the message: `tags` are all but bh= and b=.
    pub fn field(&self, name: &str, tags: &str, message: &str) -> String {
        let (header, body) = message.split_once("\r\n\r\n").unwrap();
        let form = tag(tags, "c").unwrap_or("simple/simple".to_owned());
        let (header_form, body_form) = form.split_once('/').unwrap_or((&form, "simple"));
        let body = if body_form == "relaxed" { relaxed_body(body) } else { simple_body(body) };
        let limit = tag(tags, "l").and_then(|l| l.parse().ok()).unwrap_or(usize::MAX).min(body.len());
        let bh = STANDARD.encode(digest(&SHA256, &body.as_bytes()[..limit]));
        let unsigned = format!("{name}: {tags}; bh={bh};\r\n b=");
        let mut data = String::new();
        let mut fields: Vec<String> = fields(header);
        for wanted in tag(tags, "h").unwrap_or_default().split(':') {
            let is = |field: &String| field.split(':').next().unwrap().trim().eq_ignore_ascii_case(wanted.trim());
            if let Some(at) = fields.iter().rposition(is) {
                data += &canonical(header_form, &fields.remove(at));
                data += "\r\n";
            }
        }
        data += &canonical(header_form, &unsigned);
        format!("{unsigned}{}\r\n", self.of_kind(tags, &data))
    }

    /// The message with a DKIM signature in front.
    pub fn signed(&self, tags: &str, message: &str) -> String {
        self.field("DKIM-Signature", tags, message) + message
    }

    /// The message with one ARC set more. `results` is what the sealer has found.
    pub fn sealed(&self, domain: &str, cv: &str, results: &str, message: &str) -> String {
        let number = message.lines().filter(|line| line.starts_with("ARC-Seal:")).count() + 1;
        let tags = format!("i={number}; a=rsa-sha256; c=relaxed/relaxed; d={domain}; s=rsa; h=From:To:Subject");
        self.sealed_with(&tags, &format!("i={number}; a=rsa-sha256; cv={cv}; d={domain}; s=rsa"), results, message)
    }

    /// As [`Maker::sealed`], with the tags of both signatures.
    pub fn sealed_with(&self, message_tags: &str, seal_tags: &str, results: &str, message: &str) -> String {
        let number = tag(seal_tags, "i").unwrap();
        let results = format!("ARC-Authentication-Results: i={number}; {results}\r\n");
        let signature = self.field("ARC-Message-Signature", message_tags, message);
        let unsigned = format!("ARC-Seal: {seal_tags};\r\n b=");
        let mut data = String::new();
        let (header, _) = message.split_once("\r\n\r\n").unwrap();
        let before = fields(header);
        for i in 1..number.parse::<usize>().unwrap_or(1) {
            for name in ["ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal"] {
                let start = format!("{name}: i={i};");
                if let Some(field) = before.iter().find(|field| field.starts_with(&start)) {
                    data += &canonical("relaxed", field);
                    data += "\r\n";
                }
            }
        }
        for field in [&results, &signature] {
            data += &canonical("relaxed", field.trim_end());
            data += "\r\n";
        }
        data += &canonical("relaxed", &unsigned);
        format!("{unsigned}{}\r\n{signature}{results}{message}", self.of_kind(seal_tags, &data))
    }
}

fn tag(tags: &str, name: &str) -> Option<String> {
    tags.split(';').filter_map(|tag| tag.split_once('=')).find(|(n, _)| n.trim() == name).map(|(_, v)| v.trim().into())
}

/// The fields of a header section, without their last line ends.
pub fn fields(header: &str) -> Vec<String> {
    let mut fields: Vec<String> = Vec::new();
    for line in header.split("\r\n") {
        match fields.last_mut() {
            Some(last) if line.starts_with([' ', '\t']) => *last = format!("{last}\r\n{line}"),
            _ => fields.push(line.to_owned()),
        }
    }
    fields
}

/// RFC 6376 3.4.1 and 3.4.2, step by step.
pub fn canonical(form: &str, field: &str) -> String {
    if form == "simple" {
        return field.to_owned();
    }
    let (name, value) = field.split_once(':').unwrap();
    let mut value = value.replace("\r\n", "").replace('\t', " ");
    while value.contains("  ") {
        value = value.replace("  ", " ");
    }
    format!("{}:{}", name.trim_end_matches([' ', '\t']).to_lowercase(), value.trim_matches(' '))
}

/// RFC 6376 3.4.3.
pub fn simple_body(body: &str) -> String {
    let mut body = body.to_owned();
    while body.ends_with("\r\n") {
        body.truncate(body.len() - 2);
    }
    body + "\r\n"
}

/// RFC 6376 3.4.4.
pub fn relaxed_body(body: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in body.split("\r\n") {
        let mut line = line.replace('\t', " ");
        while line.contains("  ") {
            line = line.replace("  ", " ");
        }
        lines.push(line.trim_end_matches(' ').to_owned());
    }
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines.iter().map(|line| format!("{line}\r\n")).collect()
}
