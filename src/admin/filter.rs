//! Which messages are meant: filters for lists, selections for actions. An unknown field is an
//! error, because a mistyped filter must not mean "all".

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::view::{Listed, Status};
use crate::clock::Millis;
use crate::message::MessageId;

/// Messages on a page, if nothing is said.
pub const PAGE_MESSAGES_DEFAULT: usize = 100;
/// Messages on a page at most.
pub const PAGE_MESSAGES_MAX: usize = 1000;
/// Ids in one selection at most.
pub const SELECTION_IDS_MAX: usize = 10_000;

/// What a message and its recipients must be like. All that is given must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// A recipient (or the alias that led to it): a whole address, or its domain or local part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The envelope sender, in the same way; `<>` is the null sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The recipient's domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The stream that it goes by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Received longer ago than this: `4h`.
    #[serde(with = "duration", skip_serializing_if = "Option::is_none")]
    pub older_than: Option<Duration>,
}

impl Filter {
    /// Takes everything.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// What this filter leaves of a message: none, if no recipient fits.
    pub fn apply(&self, mut listed: Listed, now: Millis) -> Option<Listed> {
        if !self.takes_message(&listed, now) {
            return None;
        }
        listed.recipients.retain(|recipient| {
            let address = recipient.address.to_string();
            let alias = recipient.alias.as_ref().map(ToString::to_string);
            let to_fits = self.to.as_deref().is_none_or(|wanted| {
                address_fits(wanted, &address) || alias.as_deref().is_some_and(|alias| address_fits(wanted, alias))
            });
            to_fits
                && self.status.is_none_or(|status| status == recipient.status)
                && self.domain.as_deref().is_none_or(|d| d.eq_ignore_ascii_case(recipient.address.domain().as_str()))
        });
        (!listed.recipients.is_empty()).then_some(listed)
    }

    fn takes_message(&self, listed: &Listed, now: Millis) -> bool {
        let old_enough = self.older_than.is_none_or(|age| {
            u128::from(listed.received_at) + age.as_millis() < u128::from(now) // overflow-free
        });
        old_enough
            && self.stream.as_deref().is_none_or(|wanted| wanted == listed.stream)
            && self.from.as_deref().is_none_or(|wanted| address_fits(wanted, &listed.from.to_string()))
    }
}

/// `bob@example.com` fits that address, `example.com` and `@example.com` its domain, `bob` its local
/// part, `<>` the empty (null) address. Without regard to case.
pub(super) fn address_fits(wanted: &str, address: &str) -> bool {
    let wanted = wanted.trim_start_matches('<').trim_end_matches('>').to_lowercase();
    let address = address.to_lowercase();
    match (wanted.strip_prefix('@'), address.rsplit_once('@')) {
        (Some(domain), Some((_, own))) => domain == own,
        (None, Some((local, domain))) => wanted == address || wanted == domain || wanted == local,
        (_, None) => wanted == address,
    }
}

/// Which part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Messages; at most [`PAGE_MESSAGES_MAX`].
    pub limit: usize,
    /// Only ids greater than this one.
    pub after: Option<MessageId>,
}

impl Default for Page {
    fn default() -> Page {
        Page { limit: PAGE_MESSAGES_DEFAULT, after: None }
    }
}

/// What an action is done to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    pub pick: Pick,
    /// Count only.
    pub dry_run: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// All recipients of these messages that the filter takes.
    Ids(Vec<MessageId>, Filter),
    /// Whatever the filter takes; an empty one takes the whole queue, and was asked for as such.
    Matching(Filter),
}

/// A selection as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelectionBody {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<MessageId>,
    #[serde(skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    /// Must be true to mean the whole queue.
    pub all: bool,
    pub dry_run: bool,
}

/// Why a selection is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    #[error("nothing is selected: name ids, a filter, or ask for all")]
    Nothing,
    #[error("all does not go together with ids or a filter")]
    AllAndSome,
    #[error("more than {SELECTION_IDS_MAX} ids in one request")]
    TooMany,
}

impl TryFrom<SelectionBody> for Selection {
    type Error = SelectionError;
    fn try_from(body: SelectionBody) -> Result<Selection, SelectionError> {
        if body.ids.len() > SELECTION_IDS_MAX {
            return Err(SelectionError::TooMany);
        }
        let pick = match (body.ids.is_empty(), body.filter.is_empty(), body.all) {
            (true, true, false) => return Err(SelectionError::Nothing),
            (true, true, true) => Pick::Matching(Filter::default()),
            (_, _, true) => return Err(SelectionError::AllAndSome),
            (true, false, false) => Pick::Matching(body.filter),
            (false, _, false) => Pick::Ids(body.ids, body.filter),
        };
        Ok(Selection { pick, dry_run: body.dry_run })
    }
}

/// `90s`, `5m`, `4h`, `2d`: a whole number and a unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let complaint = || format!("{text:?} is not a duration; write a number and a unit: 90s, 5m, 4h, 2d");
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(complaint)?;
    let (number, unit) = text.split_at(unit_at);
    let seconds_each = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(complaint()),
    };
    let number: u64 = number.parse().map_err(|_| complaint())?;
    number.checked_mul(seconds_each).map(Duration::from_secs).ok_or_else(complaint)
}

mod duration {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(age: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match age {
            Some(age) => serializer.serialize_str(&format!("{}s", age.as_secs())),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        match Option::<String>::deserialize(deserializer)? {
            Some(text) => super::parse_duration(&text).map(Some).map_err(D::Error::custom),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_fit_whole_by_domain_and_by_local_part() {
        for wanted in ["Bob@example.com", "<bob@example.com>", "example.com", "@EXAMPLE.com", "bob"] {
            assert!(address_fits(wanted, "bob@example.com"), "{wanted}");
        }
        for wanted in ["ob@example.com", "example", "@ample.com", "<>", ""] {
            assert!(!address_fits(wanted, "bob@example.com"), "{wanted}");
        }
        assert!(address_fits("<>", ""));
    }

    #[test]
    fn nothing_is_not_all() {
        let select = |json: &str| serde_json::from_str::<SelectionBody>(json).unwrap().try_into();
        assert_eq!(select("{}"), Err::<Selection, _>(SelectionError::Nothing));
        assert_eq!(select(r#"{"filter":{}}"#), Err::<Selection, _>(SelectionError::Nothing));
        assert_eq!(select(r#"{"filter":{"to":"a"},"all":true}"#), Err::<Selection, _>(SelectionError::AllAndSome));
        let all = Selection { pick: Pick::Matching(Filter::default()), dry_run: false };
        assert_eq!(select(r#"{"all":true}"#), Ok::<_, SelectionError>(all));
        assert!(serde_json::from_str::<SelectionBody>(r#"{"fliter":{"to":"a"}}"#).is_err());
        assert!(serde_json::from_str::<SelectionBody>(r#"{"filter":{"too":"a"}}"#).is_err());
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("4h"), Ok(Duration::from_secs(14_400)));
        for bad in ["", "4", "h", "4w", "-4h", "99999999999999999999s", "99999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
