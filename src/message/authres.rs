//! What an Authentication-Results field says (RFC 8601 2.2), also where it is the content of an
//! ARC-Authentication-Results field (RFC 8617 4.1.1).
//!
//! Whoever reads this decides whether to believe it. Comments are skipped, quoted strings unquoted; a
//! result that cannot be read is left out.

/// Results taken from one field.
const RESULTS_MAX: usize = 128;
/// Properties taken of one result.
const PROPERTIES_MAX: usize = 32;

/// What one method found: `dmarc=fail header.from=example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// In lower case, as are the result and the names of properties.
    pub method: String,
    pub result: String,
    pub properties: Vec<(String, String)>,
}

impl Finding {
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The number in front of ARC-Authentication-Results, `i=1;`.
pub fn instance(value: &[u8]) -> Option<u32> {
    let text = without_comments(value)?;
    let (name, number) = segments(&text).next()?.split_once('=')?;
    let number = number.trim();
    let legal = matches!(number.len(), 1..=2) && number.bytes().all(|b| b.is_ascii_digit()) && name.trim() == "i";
    number.parse().ok().filter(|_| legal)
}

/// All results. Of fields that are not closed properly (a quote, a comment) there are none.
pub fn findings(value: &[u8]) -> Vec<Finding> {
    let Some(text) = without_comments(value) else { return Vec::new() };
    segments(&text).filter_map(finding).take(RESULTS_MAX).collect()
}

/// The text, each comment (RFC 5322 3.2.2) one blank; none if one is not closed.
fn without_comments(value: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(value);
    let mut kept = String::with_capacity(text.len());
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for c in text.chars() {
        let skipped = depth > 0;
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted || depth > 0 => escaped = true,
            '"' if depth == 0 => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if depth > 0 => depth -= 1,
            _ => {}
        }
        match (skipped, depth > 0) {
            (false, false) => kept.push(c),
            (false, true) => kept.push(' '),
            _ => {}
        }
    }
    (depth == 0 && !quoted).then_some(kept)
}

/// What stands between semicolons that are not quoted.
fn segments(text: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        c == ';' && !quoted
    })
}

fn finding(segment: &str) -> Option<Finding> {
    let mut rest = segment;
    let (method, result) = pair(&mut rest)?;
    let method = method.split('/').next().unwrap_or_default().trim().to_owned();
    let mut properties = Vec::new();
    while let Some(property) = pair(&mut rest).filter(|_| properties.len() < PROPERTIES_MAX) {
        properties.push(property);
    }
    Some(Finding { method, result: result.to_ascii_lowercase(), properties })
}

/// Takes `name = value` from the front.
fn pair(rest: &mut &str) -> Option<(String, String)> {
    let (name, after) = rest.split_once('=')?;
    let name = name.trim();
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '"') {
        return None;
    }
    let after = after.trim_start();
    let (value, after) = match after.strip_prefix('"') {
        Some(quoted) => unquoted(quoted)?,
        None => {
            let end = after.find(char::is_whitespace).unwrap_or(after.len());
            let (value, after) = after.split_at_checked(end)?;
            (value.to_owned(), after)
        }
    };
    *rest = after;
    Some((name.to_ascii_lowercase(), value))
}

/// The content of a quoted string, and what follows it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                escaped = false;
                value.push(c);
            }
            '\\' => escaped = true,
            '"' => return Some((value, text.get(at + 1..)?)),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_what_others_write() {
        let value = b" i = 1 (one); mx.google.com;\r\n dkim=pass header.i=@ietf.org header.s=ietf1 header.b=\"j/q=\";\r\n \
            spf=pass (google.com: domain of a(b)\\) ; dmarc=pass header.from=evil.test) smtp.mailfrom=jmap@ietf.org;\r\n \
            dmarc/1 = FAIL (p=NONE) reason=\"a; dmarc=pass \\\" x\" header.From = Stalw.art";
        assert_eq!(instance(value), Some(1));
        let found = findings(value);
        let names: Vec<&str> = found.iter().map(|f| f.method.as_str()).collect();
        assert_eq!(names, ["i", "dkim", "spf", "dmarc"]);
        assert_eq!(found[1].property("header.b"), Some("j/q="));
        assert_eq!(found[2].property("smtp.mailfrom"), Some("jmap@ietf.org"));
        assert_eq!((found[3].result.as_str(), found[3].property("header.from")), ("fail", Some("Stalw.art")));
        assert_eq!(found[3].property("reason"), Some("a; dmarc=pass \" x"));
    }

    #[test]
    fn what_is_not_closed_says_nothing() {
        for value in
            ["i=1; a.test; dmarc=pass (x", "i=1; a.test; dmarc=pass reason=\"x", "", "(", "\"", "i=1; a.test; none"]
        {
            assert!(!findings(value.as_bytes()).iter().any(|f| f.method == "dmarc"), "{value:?}");
        }
        for (value, number) in [
            ("i=1", Some(1)),
            ("i=50;", Some(50)),
            ("i=100;", None),
            ("a=1;", None),
            ("i=;", None),
            ("x; i=1", None),
            ("i=+1;", None),
        ] {
            assert_eq!(instance(value.as_bytes()), number, "{value:?}");
        }
    }

    proptest::proptest! {
        /// Any bytes can be read, and what is read is bounded.
        #[test]
        fn noise_is_read(value in "([a-z=;:. \\\\\"()\t]|\r\n|\u{e4}|\0){0,120}") {
            instance(value.as_bytes());
            proptest::prop_assert!(findings(value.as_bytes()).len() <= RESULTS_MAX);
        }

        /// Whatever is in a comment or in quotes is no result.
        #[test]
        fn nothing_inside_counts(inner in "[a-z=;. ]{0,40}") {
            let value = format!("i=1; a.test; spf=pass ({inner}) reason=\"{inner}\"; dmarc=fail ({inner}) header.from=a.test");
            let found = findings(value.as_bytes());
            let methods: Vec<&str> = found.iter().map(|f| f.method.as_str()).collect();
            proptest::prop_assert_eq!(methods, ["i", "spf", "dmarc"]);
        }
    }
}
