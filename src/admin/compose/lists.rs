//! Lists in JSON that end: of one that is longer than a message may have, one more is kept than that, so that whoever
//! looks at it can tell, and the rest is read over. What a list costs is then bounded by us, and not by who sent it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

/// Addresses of one list.
pub(super) const ADDRESSES_MAX: usize = 1000;
/// Fields of the client's own.
pub(super) const FIELDS_MAX: usize = 100;
/// Attachments of one message.
pub(super) const ATTACHMENTS_MAX: usize = 100;

/// One address or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Many {
    One(String),
    Several(Vec<String>),
}

impl Default for Many {
    fn default() -> Many {
        Many::Several(Vec::new())
    }
}

impl Many {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Many::Several(all) if all.is_empty())
    }

    pub(super) fn texts(&self) -> &[String] {
        match self {
            Many::One(text) => std::slice::from_ref(text),
            Many::Several(texts) => texts,
        }
    }
}

impl Serialize for Many {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Many::One(text) => text.serialize(serializer),
            Many::Several(texts) => texts.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Many {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Many, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Many;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("an address, or a list of addresses")
            }

            fn visit_str<E>(self, text: &str) -> Result<Many, E> {
                Ok(Many::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Many, A::Error> {
                first(list, ADDRESSES_MAX + 1).map(Many::Several)
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

pub(super) fn attachments<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Attachments<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Attachments<T> {
        type Value = Vec<T>;

        fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
            to.write_str("a list of attachments")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<T>, A::Error> {
            first(list, ATTACHMENTS_MAX + 1)
        }
    }
    deserializer.deserialize_seq(Attachments(std::marker::PhantomData))
}

pub(super) fn fields<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Fields;
    impl<'de> Visitor<'de> for Fields {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
            to.write_str("header fields and their values")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = BTreeMap::new();
            while fields.len() <= FIELDS_MAX {
                let Some((name, value)) = map.next_entry()? else { return Ok(fields) };
                fields.insert(name, value);
            }
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(fields)
        }
    }
    deserializer.deserialize_map(Fields)
}

fn first<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(mut list: A, most: usize) -> Result<Vec<T>, A::Error> {
    let mut kept = Vec::new();
    while kept.len() < most {
        let Some(one) = list.next_element()? else { return Ok(kept) };
        kept.push(one);
    }
    while list.next_element::<IgnoredAny>()?.is_some() {}
    Ok(kept)
}
