//! The HTML of a message, to be looked at in a frame of a browser without harm.
//!
//! It is not rewritten to be harmless, which always misses something: the answer carries a policy by which the
//! browser runs no script, loads nothing from elsewhere, submits no form and knows no cookie of ours. Only
//! `cid:` addresses of images that come with the message are replaced, by the images themselves, because a
//! frame of that kind cannot show who it is to ask for them.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::read::safe_type;
use crate::message::MessageId;
use crate::message::mime::{self, Part};

/// What the browser may do with it.
pub const CONTENT_SECURITY_POLICY: &str = "sandbox; default-src 'none'; img-src data: 'self'; \
     style-src 'unsafe-inline'; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// Bytes of images that are put into the page; what is beyond is left to links.
const IMAGE_BYTES_MAX: usize = 16 << 20;
/// Letters in front of a content id.
const SCHEME: &str = "cid:";

/// The HTML of a message with its images. None: it has no HTML, or is beyond the bounds of `message::mime`.
pub fn for_a_frame(id: MessageId, raw: &[u8]) -> Option<String> {
    let content = mime::read(raw).ok()?;
    let html = content.html?;
    Some(with_images(&html, &mut Images::new(id, &content.attachments)))
}

/// The images of a message by their ids, each made once.
struct Images<'p> {
    id: MessageId,
    parts: HashMap<String, (usize, &'p Part<'p>)>,
    left: usize,
}

impl<'p> Images<'p> {
    fn new(id: MessageId, attachments: &'p [Part<'p>]) -> Images<'p> {
        let numbered = attachments.iter().enumerate();
        let named = numbered.filter_map(|(at, part)| {
            let is_image = safe_type(&part.content_type).starts_with("image/");
            part.content_id.clone().filter(|_| is_image).map(|content_id| (content_id, (at + 1, part)))
        });
        Images { id, parts: named.collect(), left: IMAGE_BYTES_MAX }
    }

    /// What stands in the page in place of `cid:…`.
    fn address(&mut self, content_id: &str) -> Option<String> {
        let (number, part) = self.parts.get(content_id)?;
        let bytes = part.decoded();
        let needed = bytes.len().saturating_mul(4) / 3;
        if needed > self.left {
            return Some(format!("/api/v1/captured/{}/attachments/{number}", self.id));
        }
        self.left -= needed;
        Some(format!("data:{};base64,{}", part.content_type, STANDARD.encode(&bytes)))
    }
}

fn with_images(html: &str, images: &mut Images<'_>) -> String {
    let mut out = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(at) = find(rest) {
        let (before, found) = rest.split_at(at);
        out.push_str(before);
        let after = found.get(SCHEME.len()..).unwrap_or_default();
        let end = after.find(|c: char| c.is_whitespace() || "\"'<>()`".contains(c)).unwrap_or(after.len());
        let (written, behind) = after.split_at(end);
        match images.address(&decoded(written)) {
            Some(address) => {
                out.push_str(&address);
                rest = behind;
            }
            None => {
                out.push_str(found.get(..SCHEME.len()).unwrap_or_default());
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Where the next `cid:` is, in any case of its letters.
fn find(text: &str) -> Option<usize> {
    text.as_bytes().windows(SCHEME.len()).position(|four| four.eq_ignore_ascii_case(SCHEME.as_bytes()))
}

/// RFC 2392 2: the id is escaped as in a URL; `&amp;` is how HTML writes an ampersand.
fn decoded(written: &str) -> String {
    let text = written.replace("&amp;", "&");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    let hex = |digit: u8| char::from(digit).to_digit(16);
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if let (b'%', [high, low, behind @ ..]) = (first, after)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            bytes.push((high << 4 | low) as u8);
            rest = behind;
            continue;
        }
        bytes.push(*first);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn framed(html: &str) -> String {
        let raw = format!(
            "Content-Type: multipart/related; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n{html}\r\n\
             --b\r\nContent-Type: image/png\r\nContent-ID: <a%b@x>\r\nContent-Transfer-Encoding: base64\r\n\r\nAQID\r\n\
             --b\r\nContent-Type: text/html; name=x\r\nContent-ID: <page@x>\r\n\r\n<script>\r\n--b--\r\n"
        );
        for_a_frame(MessageId::from_u64(1), raw.as_bytes()).unwrap()
    }

    #[test]
    fn images_of_the_message_are_put_into_it_and_nothing_else() {
        let image = "data:image/png;base64,AQID";
        assert_eq!(framed("<img src=\"cid:a%25b@x\">"), format!("<img src=\"{image}\">"));
        assert_eq!(framed("<td style='background:url(CID:a%b@x)'>"), format!("<td style='background:url({image})'>"));
        assert_eq!(
            framed("<img src=cid:a%25b@x><p>cid: cid:cid:a%25b@x"),
            format!("<img src={image}><p>cid: cid:{image}")
        );
        for other in ["<img src=\"cid:none@x\">", "<iframe src=\"cid:page@x\">", "cid:", "ü cid:%"] {
            assert_eq!(framed(other), other);
        }
    }

    #[test]
    fn more_than_fits_is_left_to_links() {
        let part = Part {
            content_type: "image/png".to_owned(),
            charset: None,
            filename: None,
            content_id: Some("big@x".to_owned()),
            disposition: None,
            encoding: mime::Encoding::Identity,
            body: &[0; IMAGE_BYTES_MAX / 2],
        };
        let parts = [part];
        let html = with_images("cid:big@x cid:big@x", &mut Images::new(MessageId::from_u64(1), &parts));
        assert!(html.starts_with("data:image/png;base64,AAAA"));
        assert!(html.ends_with("AA= /api/v1/captured/0000000000001/attachments/1"), "{}", html.len());
    }
}
