//! The key that a domain seals with (ARC): the first of its RSA keys that signs. Ed25519 seals would be
//! right, too, but those who read seals mostly know RSA only (RFC 8617 was written before RFC 8463).

use std::sync::Arc;

use super::{Key, Keys, Pair, SignError, Signer, State};
use crate::message::Domain;

/// A key for seals.
pub struct Sealing {
    keys: Arc<Keys>,
    domain: Domain,
    position: usize,
}

impl Signer {
    /// None if the domain is not ours, or has no RSA key that signs.
    pub fn sealing(&self, domain: &Domain) -> Option<Sealing> {
        let keys = self.now();
        let fits = |key: &Key| key.state == State::Signing && matches!(key.pair, Pair::Rsa(_));
        let position = keys.get(domain)?.keys.iter().position(fits)?;
        Some(Sealing { keys, domain: domain.clone(), position })
    }
}

impl Sealing {
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    pub fn selector(&self) -> &str {
        self.key().map_or("", |key| key.selector.as_str())
    }

    /// By rsa-sha256.
    pub fn sign(&self, data: &[u8]) -> Result<Vec<u8>, SignError> {
        let signature = self.key().and_then(|key| key.pair.sign(data));
        signature.ok_or_else(|| SignError::Failed(format!("{}._domainkey.{}", self.selector(), self.domain)))
    }

    fn key(&self) -> Option<&Key> {
        self.keys.get(&self.domain)?.keys.get(self.position)
    }
}
