//! What DKIM needs to know of a body.

/// The body without the lines at its end that hold nothing but blanks. In the relaxed
/// canonicalisation of RFC 6376 3.4.4 they do not count.
pub fn without_blank_end(body: &[u8]) -> &[u8] {
    let mut end = body.len();
    // Whole lines only: blanks behind text stay, as does the line end of the last line with text.
    let mut at = end;
    while let Some(last) = at.checked_sub(1).and_then(|last| body.get(last)) {
        match last {
            b' ' | b'\t' => at -= 1,
            b'\n' if at >= 2 && body.get(at - 2) == Some(&b'\r') => {
                end = at;
                at -= 2;
            }
            _ => return body.get(..end).unwrap_or(body),
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::without_blank_end;

    #[test]
    fn only_blank_lines_go() {
        for (body, kept) in [
            ("", ""),
            ("\r\n", ""),
            ("  \t", ""),
            (" \r\n\t\r\n", ""),
            ("a\r\n", "a\r\n"),
            ("a", "a"),
            ("a  \r\n \t\r\n\r\n  ", "a  \r\n"),
            ("a \t ", "a \t "),
            (" \r\n a\r\n", " \r\n a\r\n"),
            ("a\n\r\n", "a\n\r\n"),
            ("a\r", "a\r"),
            ("\n", "\n"),
        ] {
            assert_eq!(without_blank_end(body.as_bytes()), kept.as_bytes(), "{body:?}");
        }
    }
}
