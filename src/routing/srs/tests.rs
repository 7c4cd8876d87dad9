//! What is sealed comes back as it was, and nothing else does.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

const NOW: Millis = 1_795_300_000_000;

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

fn marks() -> (tempfile::TempDir, Marks) {
    let folder = tempfile::tempdir().unwrap();
    let marks = Marks::open(folder.path()).unwrap();
    (folder, marks)
}

fn upper(address: &Address) -> Address {
    Address::new(&address.local().to_ascii_uppercase(), address.domain().clone()).unwrap()
}

#[test]
fn a_sender_comes_back_as_it_was_for_three_weeks() {
    let (_folder, marks) = marks();
    let at = domain("our.example");
    for sender in ["Bob@far.example", "a=b@far.example", "b+x.y@far.example", "ü@far.example"] {
        let sealed = seal(&marks, &address(sender), &at, NOW).unwrap();
        assert!(sealed.local().starts_with("SRS0=") && *sealed.domain() == at, "{sealed}");
        assert!(is_sealed(&sealed));
        for days in [0, 1, VALID_DAYS] {
            assert_eq!(open(&marks, &sealed, NOW + days * DAY), Ok(address(sender)));
        }
        assert_eq!(open(&marks, &sealed, NOW + (VALID_DAYS + 1) * DAY), Err(Fault::Expired));
        // A server on the way may have changed the case.
        let found = open(&marks, &upper(&sealed), NOW).unwrap();
        assert_eq!(found.lookup_key(), address(&sender.to_ascii_uppercase()).lookup_key());
    }
}

#[test]
fn what_others_have_sealed_goes_back_to_the_first_of_them() {
    let (_folder, marks) = marks();
    let first = address("SRS0=ab12=X2=orig.example=joe@one.example");
    let second = seal(&marks, &first, &domain("two.example"), NOW).unwrap();
    assert!(second.local().starts_with("SRS1=") && second.local().ends_with("=one.example==ab12=X2=orig.example=joe"));
    assert_eq!(open(&marks, &second, NOW), Ok(first.clone()));
    assert_eq!(open(&marks, &second, NOW + VALID_DAYS * DAY), Ok(first.clone()));
    assert_eq!(open(&marks, &second, NOW + (VALID_DAYS + 1) * DAY), Err(Fault::Forged));
    // A third leaves the second out.
    let third = seal(&marks, &second, &domain("our.example"), NOW).unwrap();
    assert!(third.local().ends_with("=one.example==ab12=X2=orig.example=joe"), "{third}");
    assert_eq!(open(&marks, &third, NOW), Ok(first));
    let plus = address("srs0+ab12=X2=orig.example=joe@one.example");
    let sealed = seal(&marks, &plus, &domain("our.example"), NOW).unwrap();
    assert_eq!(open(&marks, &sealed, NOW), Ok(address("SRS0+ab12=X2=orig.example=joe@one.example")));
}

#[test]
fn any_change_is_seen() {
    let (_folder, marks) = marks();
    for sender in ["bob@far.example", "SRS0=ab12=X2=orig.example=joe@one.example"] {
        let sealed = seal(&marks, &address(sender), &domain("our.example"), NOW).unwrap();
        let local = sealed.local().to_owned();
        for at in 5..local.len() {
            for by in ["a", "7", "=", "z"] {
                let changed = format!("{}{by}{}", &local[..at], &local[at + 1..]);
                if changed.eq_ignore_ascii_case(&local) {
                    continue;
                }
                let Ok(changed) = Address::new(&changed, domain("our.example")) else { continue };
                assert_eq!(open(&marks, &changed, NOW), Err(Fault::Forged), "{changed}");
            }
            let cut = Address::new(&local[..at], domain("our.example"));
            assert!(cut.is_err() || open(&marks, &cut.unwrap(), NOW) == Err(Fault::Forged));
        }
        let moved = Address::new(&local, domain("other.example")).unwrap();
        assert_eq!(open(&marks, &moved, NOW), Err(Fault::Forged), "at another domain of ours");
        let (_other_folder, other) = self::marks();
        assert_eq!(open(&other, &sealed, NOW), Err(Fault::Forged), "with another key");
    }
}

#[test]
fn what_does_not_fit_is_not_sealed() {
    let (_folder, marks) = marks();
    let at = domain("our.example");
    let room = 64 - "SRS0=12345678=12=far.example=".len();
    let longest = format!("{}@far.example", "x".repeat(room));
    assert_eq!(seal(&marks, &address(&longest), &at, NOW).unwrap().local().len(), 64);
    for sender in [format!("x{longest}"), "\"a b\"@far.example".to_owned(), "a@[192.0.2.1]".to_owned()] {
        assert_eq!(seal(&marks, &address(&sender), &at, NOW), None, "{sender}");
    }
}

#[test]
fn other_addresses_do_not_look_sealed() {
    for text in ["srs@x.example", "srs0@x.example", "srs2=a@x.example", "xsrs0=a@x.example", "\"SRS0=a\"@x.example"] {
        assert!(!is_sealed(&address(text)), "{text}");
    }
    for text in ["srs0=a@x.example", "SRS1+@x.example", "Srs0-b@x.example"] {
        assert!(is_sealed(&address(text)), "{text}");
        let (_folder, marks) = marks();
        assert_eq!(open(&marks, &address(text), NOW), Err(Fault::Forged));
    }
}

/// Senders of all kinds, from a seed that is always the same: whatever can be sealed comes back as it was.
#[test]
fn whatever_is_sealed_is_opened_to_the_same() {
    const LETTERS: &[u8] = b"abcXYZ0189!#$%&'*+-/=?^_`{|}~.";
    let (_folder, marks) = marks();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut sealed_seen = 0;
    for _ in 0..20_000 {
        let prefix = ["", "", "SRS0=", "srs1=", "SRS0+a=b=", "SRS1=h=c.example=="][next(6)];
        let local: String = (0..1 + next(30)).map(|_| char::from(LETTERS[next(LETTERS.len())])).collect();
        let Ok(sender) = Address::parse(&format!("{prefix}{local}@d{}.example", next(1000))) else { continue };
        let at = domain(["our.example", "o.example"][next(2)]);
        let now = NOW + next(4000) as u64 * DAY;
        let Some(sealed) = seal(&marks, &sender, &at, now) else { continue };
        sealed_seen += 1;
        let later = now + next(VALID_DAYS as usize + 1) as u64 * DAY;
        let found = open(&marks, &sealed, later).unwrap_or_else(|fault| panic!("{sender} {sealed}: {fault}"));
        match Sealed::read(&sender) {
            Some(Sealed::One { first, rest, .. }) => {
                assert_eq!(found.to_string(), format!("SRS0{rest}@{}", domain(first)));
            }
            Some(Sealed::Zero { rest }) => assert_eq!(found.to_string(), format!("SRS0{rest}@{}", sender.domain())),
            None => assert_eq!(found, sender),
        }
    }
    assert!(sealed_seen > 5_000, "{sealed_seen}");
}
