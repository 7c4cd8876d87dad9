//! RFC 4648 6 without padding, in lower case: bytes in a text that survives what mail does to case.

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Five bits a character; what is left over of the last one is zero.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut held, mut count) = (0u32, 0u32);
    let mut push = |value: u32| text.extend(ALPHABET.get((value & 31) as usize).map(|letter| char::from(*letter)));
    for byte in bytes {
        held = (held << 8 | u32::from(*byte)) & 0xfff;
        count += 8;
        while count >= 5 {
            count -= 5;
            push(held >> count);
        }
    }
    if count > 0 {
        push(held << (5 - count));
    }
    text
}

/// What a character stands for, in either case.
pub fn value(letter: char) -> Option<u32> {
    let letter = u8::try_from(letter.to_ascii_lowercase()).ok()?;
    let at = ALPHABET.iter().position(|known| *known == letter)?;
    u32::try_from(at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foob", "mzxw6yq"), ("fooba", "mzxw6ytb")]
        {
            assert_eq!(encode(bytes.as_bytes()), text);
        }
        assert_eq!(
            (value('A'), value('a'), value('7'), value('1'), value('é')),
            (Some(0), Some(0), Some(31), None, None)
        );
    }
}
