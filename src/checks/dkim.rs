//! DKIM (RFC 6376, RFC 8301, RFC 8463): which signatures of a message hold?
//!
//! Promises: only so many signatures are looked at, each with one look-up in DNS; a body is hashed once for
//! each form, off the async threads when large; what cannot be looked up is neither good nor bad; a
//! signature that leaves From or a part of the body open, or whose key is weak, revoked or for something else,
//! does not pass.
//!
//! `signature` reads what is signed, `key` finds the key and verifies. ARC uses both.

mod key;
pub(crate) mod signature;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::dns::Resolver;
use crate::message::Content;
use crate::message::body::{BodyHashes, Hash, relaxed_hash, simple_hash};
use crate::message::canonical::{self, Form};
use crate::message::findings::DkimFinding;
use crate::message::header::{Field, Headers};
use crate::message::tags::Tags;

pub(super) use key::Records;
pub(super) use signature::{Algorithm, Kind, Signature, Signed, Why, is_below};

/// Signatures looked at; further ones are passed over (RFC 6376 6.1 lets verifiers limit them).
const SIGNATURES_MAX: usize = 10;
/// Bodies from this size on are hashed on a blocking thread, bytes.
const HASH_ASIDE_BYTES: usize = 256 * 1024;

/// One signature, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Dkim {
    /// In the words of RFC 8601 2.7.1.
    pub result: &'static str,
    /// Why, in words of our own; empty for a pass.
    pub comment: &'static str,
    /// d=, empty if it is no legal domain.
    pub domain: String,
    /// s=, empty if it is no legal selector.
    pub selector: String,
    /// The first eight characters of b= (RFC 6008).
    pub signature_start: String,
    /// The domain is trying DKIM out: if it does not pass, the message counts as not signed.
    pub is_test: bool,
}

/// For [`crate::message::Findings`]: `none` stands alone.
pub(super) fn findings(outcomes: &[Dkim]) -> Vec<DkimFinding> {
    if outcomes.is_empty() {
        return vec![DkimFinding { result: "none".to_owned(), domain: String::new(), selector: String::new() }];
    }
    let finding = |outcome: &Dkim| DkimFinding {
        result: outcome.result.to_owned(),
        domain: outcome.domain.clone(),
        selector: outcome.selector.clone(),
    };
    outcomes.iter().map(finding).collect()
}

/// What is needed to verify signatures of one message.
pub(super) struct Verifier<'a> {
    pub resolver: &'a Resolver,
    pub headers: &'a Headers<'a>,
    /// Seconds since 1970.
    pub now: u64,
    pub deadline: Instant,
}

/// An outcome for each of the first signatures; empty if the message has none.
pub(super) async fn evaluate(verifier: &Verifier<'_>, bodies: &Bodies) -> Vec<Dkim> {
    let fields: Vec<&Field<'_>> = verifier.headers.all("DKIM-Signature").take(SIGNATURES_MAX).collect();
    if fields.is_empty() {
        return Vec::new();
    }
    if verifier.headers.within_limits().is_err() {
        return vec![signature::about(None, ("permerror", "header section too large"))];
    }
    let mut outcomes = Vec::with_capacity(fields.len());
    for field in fields {
        let tags = Tags::parse(field.value);
        let (why, is_test) = match &tags {
            None => (("neutral", "signature cannot be read"), false),
            Some(tags) => match Signature::read(tags, Kind::Dkim) {
                Err(why) => (why, false),
                Ok(signature) => verifier.judge(&signature, field, tags, bodies).await,
            },
        };
        outcomes.push(Dkim { is_test, ..signature::about(tags.as_ref(), why) });
    }
    outcomes
}

impl Verifier<'_> {
    /// The result, and whether the key is for trying out.
    async fn judge(
        &self,
        signature: &Signature<'_>,
        field: &Field<'_>,
        tags: &Tags<'_>,
        bodies: &Bodies,
    ) -> (Why, bool) {
        match timeout_at(self.deadline, self.verify(signature, field, tags, bodies)).await {
            // RFC 6376 3.6.1: a failure then counts as no signature. A pass is one all the same.
            Ok((Ok(()), _)) => (("pass", ""), false),
            Ok((Err((_, why)), true)) => (("neutral", why), true),
            Ok((Err(why), false)) => (why, false),
            Err(_) => (("temperror", "not verified in time"), false),
        }
    }

    /// Does a signature over the message hold? And is its key for trying out?
    pub async fn verify(
        &self,
        signature: &Signature<'_>,
        field: &Field<'_>,
        tags: &Tags<'_>,
        bodies: &Bodies,
    ) -> (Result<(), Why>, bool) {
        if let Err(why) = signature.acceptable(self.now) {
            return (Err(why), false);
        }
        let Some(body_hash) = bodies.get(signature.body).await else {
            return (Err(("temperror", "the body could not be hashed")), false);
        };
        let mut data = Vec::with_capacity(2048);
        for field in canonical::meant(self.headers, &signature.names) {
            canonical::write(signature.header, field, &mut data);
        }
        canonical::write_unsigned(signature.header, field, tags, &mut data);
        self.verify_data(&signature.signed, &data, signature.body_hash == body_hash).await
    }

    /// Has one of the keys in DNS signed this data?
    pub async fn verify_data(&self, signed: &Signed, data: &[u8], body_fits: bool) -> (Result<(), Why>, bool) {
        let keys = match Records::fetch(self.resolver, signed).await {
            Ok(records) => records.keys(signed),
            Err(why) => Err(why),
        };
        let keys = match keys {
            Ok(keys) => keys,
            Err(why) => return (Err(why), false),
        };
        let is_test = keys.iter().all(|key| key.is_test);
        if !body_fits {
            return (Err(("fail", "body hash did not verify")), is_test);
        }
        match keys.iter().any(|key| key.has_signed(data, &signed.bytes)) {
            true => (Ok(()), is_test),
            false => (Err(("fail", "signature did not verify")), is_test),
        }
    }
}

/// The hashes of one body: made when first asked for, or known since it passed.
pub(super) struct Bodies {
    /// What is in memory of it; not used where the hashes are known.
    body: Bytes,
    passed: Option<BodyHashes>,
    relaxed: tokio::sync::OnceCell<Hash>,
    simple: tokio::sync::OnceCell<Hash>,
}

impl Bodies {
    pub fn new(content: &Content, headers: &Headers<'_>) -> Bodies {
        Bodies {
            body: content.head().slice_ref(headers.body()),
            passed: content.rest().map(|rest| rest.hashes),
            relaxed: tokio::sync::OnceCell::new(),
            simple: tokio::sync::OnceCell::new(),
        }
    }

    /// By SHA-256: the other algorithm of RFC 6376 is not acceptable.
    async fn get(&self, form: Form) -> Option<Hash> {
        if let Some(passed) = &self.passed {
            return match form {
                Form::Relaxed => Some(passed.relaxed),
                Form::Simple => passed.simple,
            };
        }
        let (known, hash): (_, fn(&[u8]) -> Hash) = match form {
            Form::Relaxed => (&self.relaxed, relaxed_hash),
            Form::Simple => (&self.simple, simple_hash),
        };
        let hashed = known.get_or_try_init(|| async {
            if self.body.len() < HASH_ASIDE_BYTES {
                return Ok(hash(&self.body));
            }
            let body = self.body.clone();
            tokio::task::spawn_blocking(move || hash(&body)).await
        });
        hashed.await.ok().copied()
    }
}
