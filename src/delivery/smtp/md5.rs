//! HMAC-MD5 (RFC 2104, RFC 1321), for CRAM-MD5 alone, which some servers offer as their best.
//!
//! The cryptography that we use elsewhere has no MD5, with good reason: it must not be used for anything
//! new. Under HMAC it still hides a password from those who listen.

const BLOCK_BYTES: usize = 64;

/// RFC 1321 3.4: how far each step turns its sum, four for each round.
const TURNS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

pub fn hmac(key: &[u8], text: &[u8]) -> [u8; 16] {
    let hashed;
    let key = if key.len() > BLOCK_BYTES {
        hashed = md5(key);
        hashed.as_slice()
    } else {
        key
    };
    let padded = |pad: u8| {
        let rest = std::iter::repeat_n(&0, BLOCK_BYTES - key.len());
        key.iter().chain(rest).map(|octet| octet ^ pad).collect::<Vec<u8>>()
    };
    let inner = md5(&[padded(0x36).as_slice(), text].concat());
    md5(&[padded(0x5c).as_slice(), &inner].concat())
}

fn md5(text: &[u8]) -> [u8; 16] {
    // RFC 1321 3.1 and 3.2: a one bit, zeros, the count of bits.
    let zeros = (BLOCK_BYTES + 55 - text.len() % BLOCK_BYTES) % BLOCK_BYTES;
    let bits = (text.len() as u64).wrapping_mul(8);
    let padded = [text, &[0x80], &vec![0; zeros], &bits.to_le_bytes()].concat();
    let mut sum = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    for block in padded.chunks_exact(BLOCK_BYTES) {
        let mut words = [0u32; 16];
        for (word, octets) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = octets.iter().rev().fold(0, |word, octet| word << 8 | u32::from(*octet));
        }
        sum = add_block(sum, &words);
    }
    let mut digest = [0; 16];
    for (octets, word) in digest.chunks_exact_mut(4).zip(sum) {
        octets.copy_from_slice(&word.to_le_bytes());
    }
    digest
}

/// RFC 1321 3.4: four rounds of sixteen steps.
fn add_block(sum: [u32; 4], words: &[u32; 16]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = sum;
    for step in 0..64usize {
        let (mixed, word) = match step / 16 {
            0 => (b & c | !b & d, step),
            1 => (b & d | c & !d, 5 * step + 1),
            2 => (b ^ c ^ d, 3 * step + 5),
            _ => (c ^ (b | !d), 7 * step),
        };
        // The table T of the RFC is the sine of the step's number.
        let sine = (((step + 1) as f64).sin().abs() * 4_294_967_296.0) as u32;
        let turned = a
            .wrapping_add(mixed)
            .wrapping_add(words[word % 16])
            .wrapping_add(sine)
            .rotate_left(TURNS[step / 16][step % 4]);
        (a, d, c, b) = (d, c, b, b.wrapping_add(turned));
    }
    let [w, x, y, z] = sum;
    [w.wrapping_add(a), x.wrapping_add(b), y.wrapping_add(c), z.wrapping_add(d)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digest: [u8; 16]) -> String {
        digest.iter().map(|octet| format!("{octet:02x}")).collect()
    }

    /// RFC 1321 A.5.
    #[test]
    fn test_suite_of_rfc_1321() {
        let digits = "1234567890".repeat(8);
        let table = [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("a", "0cc175b9c0f1b6a831c399e269772661"),
            ("abc", "900150983cd24fb0d6963f7d28e17f72"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            ("abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"),
            ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", "d174ab98d277d9f5a5611c2c9f419d9f"),
            (digits.as_str(), "57edf4a22be3c955ac49da2e2107b67a"),
        ];
        for (text, digest) in table {
            assert_eq!(hex(md5(text.as_bytes())), digest, "{text}");
        }
    }

    /// RFC 2202 2: cases 1, 2 and 6.
    #[test]
    fn hmac_cases_of_rfc_2202() {
        assert_eq!(hex(hmac(&[0x0b; 16], b"Hi There")), "9294727a3638bb1c13f48ef8158bfc9d");
        assert_eq!(hex(hmac(b"Jefe", b"what do ya want for nothing?")), "750c783e6ab0b503eaa86e310a5db738");
        let long = b"Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(hex(hmac(&[0xaa; 80], long)), "6b1ab7fe4bd7bf8f0b62e6ce61b9d0cd");
    }
}
