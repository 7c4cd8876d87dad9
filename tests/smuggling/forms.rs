//! The set: forms of a false end, where they stand, how the bytes are cut, and how they come in.

use crate::support::flow;

pub const SET: &str = include_str!("../data/smtp-smuggling/payloads.yml");
pub const HEAD: &[u8] = b"From: shop@home.test\r\nTo: you@far.test\r\nSubject: honest\r\n";
/// Octets of a message that is taken.
pub const MAX_SIZE: usize = 128 * 1024;
/// Pieces of a message whose bytes come one by one: so many before the form, and behind it.
const SINGLES: usize = 40;

pub struct Form {
    pub id: String,
    pub bytes: Vec<u8>,
    /// CRLF.CRLF, and only that.
    pub is_end: bool,
}

pub fn forms() -> Vec<Form> {
    let maps = flow::maps(SET).into_iter().filter(|map| map.contains_key("inbound"));
    let forms: Vec<Form> = maps
        .map(|map| Form {
            id: flow::text(&map, "id"),
            bytes: map.get("raw_bytes_hex").map_or_else(|| map["bytes"].clone(), |hex| flow::hex(hex)),
            is_end: map["inbound"] == b"end",
        })
        .collect();
    assert_eq!((forms.len(), forms.iter().filter(|form| form.is_end).count()), (29, 1));
    forms
}

/// One of the lists of the set.
pub fn named(list: &str, count: usize) -> Vec<String> {
    let names = flow::list(SET, list);
    assert_eq!(names.len(), count, "{list}");
    names
}

/// The second message, to this victim.
pub fn tail(victim: &str) -> Vec<u8> {
    let line = SET.lines().find_map(|line| line.strip_prefix("smuggled_tail: ")).unwrap();
    let (text, _) = crate::support::conversation::quoted(line).unwrap();
    let text = String::from_utf8(text).unwrap();
    text.replace("{THIRD}", "far.test").replace("{VICTIM}", victim).into_bytes()
}

/// A message with a form in it.
pub struct Content {
    pub bytes: Vec<u8>,
    /// Where the form begins.
    pub at: usize,
    pub form_len: usize,
    /// It is refused for its size, whatever else is in it.
    pub is_over: bool,
}

impl Content {
    /// `pad`: the middle of the form lies at this octet, where that is possible.
    pub fn new(position: &str, form: &Form, tail: &[u8], pad: Option<usize>) -> Content {
        let (before, after): (Vec<u8>, Vec<u8>) = match position {
            "after-body-line" => ([HEAD, b"\r\nbody"].concat(), tail.to_vec()),
            "first-bytes-after-354" => (Vec::new(), tail.to_vec()),
            "inside-header-block" => ([HEAD, b"X: y"].concat(), tail.to_vec()),
            "before-blank-line" => (HEAD[..HEAD.len() - 2].to_vec(), [b"\r\nbody\r\n", tail].concat()),
            "last-bytes-then-legal-end" => ([HEAD, b"\r\nbody"].concat(), Vec::new()),
            "after-message-already-over-SIZE-limit" => (
                [HEAD, b"\r\n", b"long line\r\n".repeat(MAX_SIZE / 11 + 1).as_slice(), b"body"].concat(),
                tail.to_vec(),
            ),
            "after-line-over-limit" => ([HEAD, b"\r\n", b"x".repeat(1100).as_slice()].concat(), tail.to_vec()),
            "inside-base64-part" => {
                let part =
                    b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: \
                    application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\nYWJjYWJj";
                ([HEAD, part].concat(), [b"YWJj\r\n--b--\r\n", tail].concat())
            }
            other => panic!("where is {other}?"),
        };
        let is_over = before.len() > MAX_SIZE;
        let middle = before.len() + form.bytes.len() / 2;
        let padding = match pad {
            Some(pad) if pad > middle + 16 && !before.is_empty() => padding(pad - middle),
            _ => Vec::new(),
        };
        let at = padding.len() + before.len();
        Content {
            bytes: [padding, before, form.bytes.clone(), after].concat(),
            at,
            form_len: form.bytes.len(),
            is_over,
        }
    }

    /// Has a CR or LF by itself, or a NUL: to be refused, through whichever door.
    pub fn is_unclean(&self) -> bool {
        is_unclean(&self.bytes)
    }
}

/// Header fields of so many octets together.
fn padding(mut octets: usize) -> Vec<u8> {
    let mut fields = Vec::new();
    while octets > 0 {
        let len = if octets > 1000 { 900 } else { octets };
        fields.extend_from_slice(b"X-Pad: ");
        fields.resize(fields.len() + len - 9, b'x');
        fields.extend_from_slice(b"\r\n");
        octets -= len;
    }
    fields
}

pub fn is_unclean(bytes: &[u8]) -> bool {
    let rest = String::from_utf8_lossy(bytes).replace("\r\n", "");
    rest.contains(['\r', '\n', '\0'])
}

/// The octet on which a read is to end that cuts the form in two.
pub fn boundary(split: &str) -> Option<usize> {
    split.strip_prefix("at-read-buffer-boundary-").or(split.strip_prefix("at-")).map(|octets| octets.parse().unwrap())
}

/// Ways to cut a message as the split says: each a list of places.
pub fn cuts(split: &str, content: &Content) -> Vec<Vec<usize>> {
    let (len, at, end) = (content.bytes.len(), content.at, content.at + content.form_len);
    let singles: Vec<usize> = (at.saturating_sub(SINGLES)..(end + SINGLES).min(len)).collect();
    match split {
        "one-segment" => vec![Vec::new()],
        "every-byte-own-segment" | "tls-record-per-byte" => vec![singles],
        "split-at-each-offset" => (at..=end).map(|place| vec![place]).collect(),
        // Each CRLF cut in two, and what else ends a line somewhere.
        "tls-record-boundary-inside-CRLF" => {
            vec![(at..end).filter(|at| content.bytes[*at] == b'\r').map(|at| at + 1).collect()]
        }
        "1s-pause-inside" => vec![vec![at + content.form_len.div_ceil(2)]],
        split => vec![(1..).map(|n| n * boundary(split).unwrap()).take_while(|place| *place < len).collect()],
    }
}

/// The pieces that the cuts make.
pub fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let (mut pieces, mut from) = (Vec::new(), 0);
    for cut in cuts.iter().copied().filter(|cut| *cut <= bytes.len()).chain([bytes.len()]) {
        if cut > from {
            pieces.push(&bytes[from..cut]);
            from = cut;
        }
    }
    pieces
}
