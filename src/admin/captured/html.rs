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

/// Bytes that are put into the page; images beyond it are left to links, and references beyond it as they are.
const IMAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a content id as it is written in the page; what is longer is none.
const ID_BYTES_MAX: usize = 256;
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
    parts: HashMap<String, Image<'p>>,
    left: usize,
}

struct Image<'p> {
    number: usize,
    part: &'p Part<'p>,
    /// Bytes of its address, once somebody has asked.
    needed: Option<usize>,
    made: Option<String>,
}

impl Image<'_> {
    fn needed(&mut self) -> usize {
        let head = "data:;base64,".len() + self.part.content_type.len();
        *self.needed.get_or_insert_with(|| head + self.part.decoded().len().div_ceil(3).saturating_mul(4))
    }

    fn made(&mut self) -> String {
        let part = self.part;
        let make = || format!("data:{};base64,{}", part.content_type, STANDARD.encode(part.decoded()));
        self.made.get_or_insert_with(make).clone()
    }
}

impl<'p> Images<'p> {
    fn new(id: MessageId, attachments: &'p [Part<'p>]) -> Images<'p> {
        let numbered = attachments.iter().enumerate();
        let named = numbered.filter_map(|(at, part)| {
            let is_image = safe_type(&part.content_type).starts_with("image/");
            let image = Image { number: at + 1, part, needed: None, made: None };
            part.content_id.clone().filter(|_| is_image).map(|content_id| (content_id, image))
        });
        Images { id, parts: named.collect(), left: IMAGE_BYTES_MAX }
    }

    /// What stands in the page in place of `cid:…`. However often it stands there, no more than fits comes of it.
    fn address(&mut self, content_id: &str) -> Option<String> {
        let image = self.parts.get_mut(content_id)?;
        let address = match image.needed() <= self.left {
            true => image.made(),
            false => format!("/api/v1/captured/{}/attachments/{}", self.id, image.number),
        };
        self.left = self.left.checked_sub(address.len())?;
        Some(address)
    }
}

fn with_images(html: &str, images: &mut Images<'_>) -> String {
    let mut out = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(at) = find(rest) {
        let (before, found) = rest.split_at(at);
        out.push_str(before);
        let after = found.get(SCHEME.len()..).unwrap_or_default();
        match written(after).and_then(|(written, behind)| Some((images.address(&decoded(written))?, behind))) {
            Some((address, behind)) => {
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

/// The id that the text begins with, and what follows. None: it is too long for one.
fn written(text: &str) -> Option<(&str, &str)> {
    let is_end = |c: char| c.is_whitespace() || "\"'<>()`".contains(c);
    let mut letters = text.char_indices().take_while(|(at, _)| *at <= ID_BYTES_MAX);
    match letters.find(|(_, c)| is_end(*c)) {
        Some((at, _)) => Some(text.split_at(at)),
        None if text.len() <= ID_BYTES_MAX => Some((text, "")),
        None => None,
    }
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

    fn image(content_id: &str, body: &'static [u8]) -> Part<'static> {
        Part {
            content_type: "image/png".to_owned(),
            charset: None,
            filename: None,
            content_id: Some(content_id.to_owned()),
            disposition: None,
            encoding: mime::Encoding::Identity,
            body,
        }
    }

    #[test]
    fn a_page_that_names_an_image_again_and_again_takes_no_more_than_fits() {
        let parts = [image("a", b""), image("big", &[0; IMAGE_BYTES_MAX + 1])];
        for name in ["a", "big"] {
            let html = format!("<p>cid:{name}").repeat(1 << 20);
            let shown = with_images(&html, &mut Images::new(MessageId::from_u64(1), &parts));
            assert!(shown.len() <= html.len() + IMAGE_BYTES_MAX, "{name}: {}", shown.len());
            assert!(shown.ends_with(&format!("<p>cid:{name}")), "{name}");
        }
    }

    /// With each `cid:` looked at to the end of what follows, this would be some 10^10 steps.
    #[test]
    fn a_page_of_ids_without_an_end_is_read_once() {
        let parts = [image("a", b"x"), image(&"x".repeat(ID_BYTES_MAX), b"x")];
        let mut images = Images::new(MessageId::from_u64(1), &parts);
        let html = "cid:".repeat(64 << 10);
        assert!(with_images(&html, &mut images) == html);
        let longest = format!("cid:{}", "x".repeat(ID_BYTES_MAX));
        assert_eq!(with_images(&longest, &mut images), "data:image/png;base64,eA==");
        let longer = format!("{longest}x");
        assert_eq!(with_images(&longer, &mut images), longer);
    }

    #[test]
    fn more_than_fits_is_left_to_links() {
        let part = image("big@x", &[0; IMAGE_BYTES_MAX / 2]);
        let parts = [part];
        let html = with_images("cid:big@x cid:big@x", &mut Images::new(MessageId::from_u64(1), &parts));
        assert!(html.starts_with("data:image/png;base64,AAAA"));
        assert!(html.ends_with("AA= /api/v1/captured/0000000000001/attachments/1"), "{}", html.len());
    }
}
