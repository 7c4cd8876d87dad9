//! The ARC sets of a message (RFC 8617 4.2): three fields for each who has sealed it, numbered from 1.
//!
//! Promises: sets come in order, without a gap, each of its three fields once, and with the states that a
//! chain may have; what is not so is said, and no signature has been looked at yet.

use super::authres;
use super::canonical::{self, Form};
use super::header::{Field, Headers};
use super::tags::Tags;

/// Sets in one message (RFC 8617 4.2.1).
pub const SETS_MAX: usize = 50;

pub const RESULTS: &str = "ARC-Authentication-Results";
pub const SIGNATURE: &str = "ARC-Message-Signature";
pub const SEAL: &str = "ARC-Seal";

/// What one who has sealed the message has put there.
#[derive(Clone, Debug)]
pub struct Set<'a> {
    pub results: Field<'a>,
    pub signature: Field<'a>,
    pub seal: Field<'a>,
    pub seal_tags: Tags<'a>,
}

/// Why the sets are no chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("more than {SETS_MAX} sets")]
    TooMany,
    #[error("a field cannot be read")]
    Unreadable,
    #[error("a set has a field twice")]
    Twice,
    #[error("a set is not complete")]
    Incomplete,
    #[error("the states of the seals do not fit")]
    States,
    /// Somebody before us has found it broken, and sealed that.
    #[error("sealed as failed")]
    SealedAsFailed,
}

impl Broken {
    /// For a comment in a field.
    pub fn text(self) -> &'static str {
        match self {
            Broken::TooMany => "more than 50 sets",
            Broken::Unreadable => "a field cannot be read",
            Broken::Twice => "a set has a field twice",
            Broken::Incomplete => "a set is not complete",
            Broken::States => "the states of the seals do not fit",
            Broken::SealedAsFailed => "sealed as failed",
        }
    }
}

#[derive(Default)]
struct Partial<'a> {
    results: Option<Field<'a>>,
    signature: Option<Field<'a>>,
    seal: Option<(Field<'a>, Tags<'a>)>,
}

/// The chain, oldest set first; empty if there is none.
pub fn sets<'a>(headers: &Headers<'a>) -> Result<Vec<Set<'a>>, Broken> {
    let mut partial: Vec<Partial<'a>> = Vec::new();
    let fields =
        || headers.fields().iter().filter(|field| [RESULTS, SIGNATURE, SEAL].iter().any(|name| field.is(name)));
    if fields().count() > 3 * SETS_MAX {
        return Err(Broken::TooMany);
    }
    for field in fields() {
        let tags = Tags::parse(field.value).filter(|_| !field.is(RESULTS));
        let number = match &tags {
            _ if field.is(RESULTS) => authres::instance(field.value),
            Some(tags) => tags.number("i").and_then(|number| u32::try_from(number).ok()),
            None => None,
        };
        let number = number.filter(|number| *number > 0).ok_or(Broken::Unreadable)? as usize;
        if number > SETS_MAX {
            return Err(Broken::TooMany);
        }
        if partial.len() < number {
            partial.resize_with(number, Partial::default);
        }
        let Some(set) = partial.get_mut(number - 1) else { return Err(Broken::TooMany) };
        let known = match tags {
            None => set.results.replace(*field).is_some(),
            Some(_) if field.is(SIGNATURE) => set.signature.replace(*field).is_some(),
            Some(tags) => set.seal.replace((*field, tags)).is_some(),
        };
        if known {
            return Err(Broken::Twice);
        }
    }
    let whole = |set: Partial<'a>| {
        let (seal, seal_tags) = set.seal?;
        Some(Set { results: set.results?, signature: set.signature?, seal, seal_tags })
    };
    let sets: Option<Vec<Set<'a>>> = partial.into_iter().map(whole).collect();
    let sets = sets.ok_or(Broken::Incomplete)?;
    check_states(&sets)?;
    Ok(sets)
}

/// RFC 8617 5.2, steps 2 and 3: the first has nothing to pass, every other says that what was there passed.
fn check_states(sets: &[Set<'_>]) -> Result<(), Broken> {
    if sets.last().and_then(|set| set.seal_tags.get("cv")) == Some("fail") {
        return Err(Broken::SealedAsFailed);
    }
    for (at, set) in sets.iter().enumerate() {
        let wanted = if at == 0 { "none" } else { "pass" };
        if set.seal_tags.get("cv") != Some(wanted) {
            return Err(Broken::States);
        }
    }
    Ok(())
}

/// What the newest seal of these sets signs, before the seal itself (RFC 8617 5.1.1).
pub fn write_before_seal(sets: &[Set<'_>], out: &mut Vec<u8>) {
    for (at, set) in sets.iter().enumerate() {
        canonical::write(Form::Relaxed, &set.results, out);
        canonical::write(Form::Relaxed, &set.signature, out);
        if at + 1 < sets.len() {
            canonical::write(Form::Relaxed, &set.seal, out);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(i: usize, cv: &str) -> String {
        format!(
            "ARC-Seal: i={i}; cv={cv}; b=x\r\nARC-Message-Signature: i={i}; b=x\r\narc-authentication-results: i={i}; a.test\r\n"
        )
    }

    fn judged(header: &str) -> Result<usize, Broken> {
        sets(&Headers::parse(format!("{header}From: a@b.test\r\n\r\n").as_bytes())).map(|sets| sets.len())
    }

    #[test]
    fn a_chain_has_every_set_once_and_whole() {
        let two = set(2, "pass") + &set(1, "none");
        assert_eq!(judged(""), Ok(0));
        assert_eq!(judged(&set(1, "none")), Ok(1));
        assert_eq!(judged(&two), Ok(2));
        assert_eq!(judged(&(set(1, "none") + &set(2, "pass"))), Ok(2), "in whatever order");
        let mut chain = String::new();
        for i in 1..=50 {
            chain = set(i, if i == 1 { "none" } else { "pass" }) + &chain;
        }
        assert_eq!(judged(&chain), Ok(50));
        assert_eq!(judged(&(set(51, "pass") + &chain)), Err(Broken::TooMany));
        for (header, why) in [
            (set(51, "pass"), Broken::TooMany),
            (set(2, "pass"), Broken::Incomplete),
            (set(3, "pass") + &set(1, "none"), Broken::Incomplete),
            (set(0, "none"), Broken::Unreadable),
            (set(1, "none") + &set(1, "none"), Broken::Twice),
            (set(1, "pass"), Broken::States),
            (set(2, "none") + &set(1, "none"), Broken::States),
            (set(2, "pass") + &set(1, "fail"), Broken::States),
            (set(2, "Pass") + &set(1, "none"), Broken::States),
            (set(2, "fail") + &set(1, "none"), Broken::SealedAsFailed),
            (set(1, "none").replace("cv=none; ", ""), Broken::States),
            (set(1, "none").replace("ARC-Seal: i=1; ", "ARC-Seal: "), Broken::Unreadable),
            (set(1, "none").replace("i=1; cv", "i=1; i=1; cv"), Broken::Unreadable),
            (set(1, "none").replace("ARC-Seal", "X-Seal"), Broken::Incomplete),
            (set(1, "none").replace("ARC-Message", "X-Message"), Broken::Incomplete),
            (set(1, "none").replace("results: i=1; ", "results: "), Broken::Unreadable),
        ] {
            assert_eq!(judged(&header), Err(why), "{header}");
        }
    }
}
