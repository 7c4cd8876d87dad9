//! Text of strangers on its way to people: into replies, notices, logs, terminals.

/// True for what could make a text look like another one, or like more than one line: control characters, line
/// and paragraph separators, marks that turn the writing direction.
pub fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text on one line, with a question mark for each of those.
pub fn harmless(text: String) -> String {
    if text.chars().any(steers) { text.chars().map(|c| if steers(c) { '?' } else { c }).collect() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_all_scripts_stay() {
        assert!("Grüße, שלום, مرحبا, 你好 – €".chars().all(|c| !steers(c)));
        for c in ['\0', '\r', '\n', '\u{1b}', '\u{85}', '\u{2028}', '\u{202e}', '\u{2066}', '\u{200f}'] {
            assert!(steers(c), "{c:?}");
        }
    }
}
