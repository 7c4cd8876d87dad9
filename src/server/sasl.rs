//! SASL, server side: PLAIN (RFC 4616), LOGIN and SCRAM-SHA-256 (RFC 5802, RFC 7677) as RFC 4954 carries
//! them: base64 lines, `=` for an empty initial response, `*` to cancel.
//!
//! Promises: an [`Exchange`] is consumed by each line, so no step can be taken twice or out of order; a
//! wrong proof and an unknown account look alike; comparing takes the same time for all of them.
//!
//! Leaves out: who the accounts are (the pump asks `accounts`), channel binding (no -PLUS is offered),
//! and SASLprep beyond refusing control characters: a name or password outside ASCII has to be
//! typed in the same Unicode form in which it was configured.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::step::{Login, ScramKeys};
use crate::config::Secret;
use crate::smtp::Reply;
use crate::smtp::scram::{self, Hash, unescape_name};

/// Longest user name, in octets.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest password, in octets.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Longest nonce a client may choose, in octets.
const NONCE_BYTES_MAX: usize = 256;

/// What AUTH can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    Login,
    ScramSha256,
}

impl Mechanism {
    /// By its name in upper case.
    pub fn named(name: &str) -> Option<Mechanism> {
        match name {
            "PLAIN" => Some(Mechanism::Plain),
            "LOGIN" => Some(Mechanism::Login),
            "SCRAM-SHA-256" => Some(Mechanism::ScramSha256),
            _ => None,
        }
    }

    /// For the EHLO reply, best first.
    pub fn offered(scram: bool) -> &'static str {
        if scram { "SCRAM-SHA-256 PLAIN LOGIN" } else { "PLAIN LOGIN" }
    }
}

/// Why an exchange ended without a log-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslError {
    Cancelled,
    NotBase64,
    Malformed,
    /// Well formed, and not good.
    Invalid,
}

impl SaslError {
    /// RFC 4954 4 and 6.
    pub fn reply(self) -> Reply {
        match self {
            SaslError::Cancelled => Reply::new(501, (7, 0), "authentication cancelled"),
            SaslError::NotBase64 => Reply::new(501, (5, 2), "the response is not base64"),
            SaslError::Malformed => Reply::new(501, (5, 2), "the response does not fit the mechanism"),
            SaslError::Invalid => Reply::new(535, (7, 8), "user name or password is wrong"),
        }
    }
}

/// What comes of a line.
#[derive(Debug)]
pub enum Turn {
    /// Send this challenge (not encoded yet); the answer goes to the exchange.
    Challenge(Exchange, Vec<u8>),
    /// Check these; the exchange is over.
    Check(Login),
    /// Fetch the keys of this account, then [`ScramHello::challenge`].
    FetchKeys(String, ScramHello),
    /// The SCRAM proof is good; [`ScramSuccess`] goes on.
    Proven(ScramSuccess),
    /// The SCRAM proof for this account is not good.
    Disproven(String),
    Refused(SaslError),
    /// The client has seen that we know its password too: log in.
    Finished,
}

/// An exchange that waits for a line.
#[derive(Debug)]
pub struct Exchange(Waiting);

#[derive(Debug)]
enum Waiting {
    Plain,
    LoginName,
    LoginPassword { account: String },
    ScramFirst,
    ScramProof(Box<ScramChallenge>),
    ScramLast,
}

impl Exchange {
    /// Begins with what AUTH carried: `initial` as sent, if there was one.
    pub fn start(mechanism: Mechanism, initial: Option<&str>) -> Turn {
        let (waiting, prompt): (Waiting, &[u8]) = match mechanism {
            Mechanism::Plain => (Waiting::Plain, b""),
            Mechanism::Login => (Waiting::LoginName, b"Username:"),
            Mechanism::ScramSha256 => (Waiting::ScramFirst, b""),
        };
        match initial {
            None => Turn::Challenge(Exchange(waiting), prompt.to_vec()),
            Some("=") => Exchange(waiting).take(Vec::new()),
            Some(line) => Exchange(waiting).respond(line.as_bytes()),
        }
    }

    /// The client's next line, without its CRLF.
    pub fn respond(self, line: &[u8]) -> Turn {
        if line == b"*" {
            return Turn::Refused(SaslError::Cancelled);
        }
        match STANDARD.decode(line) {
            Ok(message) => self.take(message),
            Err(_) => Turn::Refused(SaslError::NotBase64),
        }
    }

    fn take(self, message: Vec<u8>) -> Turn {
        let Ok(message) = String::from_utf8(message) else {
            return Turn::Refused(SaslError::Malformed);
        };
        let next = match self.0 {
            Waiting::Plain => plain(&message).map(Turn::Check),
            Waiting::LoginName => account_name(&message)
                .map(|account| Turn::Challenge(Exchange(Waiting::LoginPassword { account }), b"Password:".to_vec())),
            Waiting::LoginPassword { account } => {
                password(&message).map(|p| Turn::Check(Login { account, password: p }))
            }
            Waiting::ScramFirst => {
                ScramHello::parse(&message).map(|hello| Turn::FetchKeys(hello.account.clone(), hello))
            }
            Waiting::ScramProof(challenge) => challenge.judge(&message),
            Waiting::ScramLast if message.is_empty() => Ok(Turn::Finished),
            Waiting::ScramLast => Err(SaslError::Malformed),
        };
        next.unwrap_or_else(Turn::Refused)
    }
}

/// RFC 4616 2: authzid NUL authcid NUL password. Acting for somebody else is not offered.
fn plain(message: &str) -> Result<Login, SaslError> {
    let mut parts = message.split('\0');
    let (Some(authzid), Some(authcid), Some(secret), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(SaslError::Malformed);
    };
    let login = Login { account: account_name(authcid)?, password: password(secret)? };
    if authzid.is_empty() || authzid == authcid { Ok(login) } else { Err(SaslError::Invalid) }
}

fn account_name(text: &str) -> Result<String, SaslError> {
    let legal = !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control);
    if legal { Ok(text.to_owned()) } else { Err(SaslError::Invalid) }
}

fn password(text: &str) -> Result<Secret, SaslError> {
    let legal = !text.is_empty() && text.len() <= PASSWORD_BYTES_MAX && !text.chars().any(char::is_control);
    if legal { Ok(Secret(text.to_owned())) } else { Err(SaslError::Invalid) }
}

/// The client's first message (RFC 5802 7): `n,,n=user,r=nonce`.
pub struct ScramHello {
    account: String,
    /// Repeated by the client in its proof, so that nobody can have changed it.
    gs2_header: String,
    bare: String,
    nonce: String,
}

impl ScramHello {
    fn parse(message: &str) -> Result<ScramHello, SaslError> {
        let mut parts = message.splitn(3, ',');
        let (Some(binding), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(SaslError::Malformed);
        };
        // "y": the client could bind to the channel but saw no -PLUS, which is right. "p=": it insists.
        match binding {
            "n" | "y" => {}
            _ if binding.starts_with("p=") => return Err(SaslError::Invalid),
            _ => return Err(SaslError::Malformed),
        }
        let mut attributes = bare.split(',');
        // A mandatory extension ("m=") would stand before the name and is refused by not being one.
        let name = attributes.next().and_then(|a| a.strip_prefix("n=")).ok_or(SaslError::Malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(SaslError::Malformed)?;
        let account = account_name(&unescape_name(name).ok_or(SaslError::Malformed)?)?;
        match authzid.strip_prefix("a=") {
            None if !authzid.is_empty() => return Err(SaslError::Malformed),
            Some(other) if unescape_name(other).as_ref() != Some(&account) => return Err(SaslError::Invalid),
            _ => {}
        }
        let legal_nonce =
            !nonce.is_empty() && nonce.len() <= NONCE_BYTES_MAX && nonce.bytes().all(|byte| byte.is_ascii_graphic());
        if !legal_nonce {
            return Err(SaslError::Malformed);
        }
        let gs2_header = format!("{binding},{authzid},");
        Ok(ScramHello { account, gs2_header, bare: bare.to_owned(), nonce: nonce.to_owned() })
    }

    /// The server's first message: `r=nonces,s=salt,i=iterations`.
    pub fn challenge(self, keys: ScramKeys) -> Turn {
        let nonce = format!("{}{}", self.nonce, keys.server_nonce);
        let message = format!("r={nonce},s={},i={}", STANDARD.encode(&keys.salt), keys.iterations);
        let challenge = ScramChallenge {
            signed: format!("{},{message}", self.bare),
            expected_binding: STANDARD.encode(&self.gs2_header),
            nonce,
            keys,
        };
        Turn::Challenge(Exchange(Waiting::ScramProof(Box::new(challenge))), message.into_bytes())
    }
}

impl fmt::Debug for ScramHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramHello").field("account", &self.account).finish_non_exhaustive()
    }
}

struct ScramChallenge {
    /// Client's first message without its header, and our first.
    signed: String,
    expected_binding: String,
    nonce: String,
    keys: ScramKeys,
}

impl fmt::Debug for ScramChallenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramChallenge").field("account", &self.keys.account).finish_non_exhaustive()
    }
}

impl ScramChallenge {
    /// The client's final message: `c=header,r=nonces,p=proof`.
    fn judge(&self, message: &str) -> Result<Turn, SaslError> {
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(SaslError::Malformed)?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|a| a.strip_prefix("c=")).ok_or(SaslError::Malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(SaslError::Malformed)?;
        if attributes.any(|extension| extension.starts_with("m=")) {
            return Err(SaslError::Malformed);
        }
        let proof = STANDARD.decode(proof).map_err(|_| SaslError::Malformed)?;
        let signed = format!("{},{without_proof}", self.signed);
        let fits = binding == self.expected_binding && nonce == self.nonce;
        let proven = scram::proof_fits(Hash::Sha256, &self.keys.stored_key, signed.as_bytes(), &proof);
        let good = proven && fits && self.keys.known;
        if !good {
            return Ok(Turn::Disproven(self.keys.account.clone()));
        }
        let signature = Hash::Sha256.sign(&self.keys.server_key, signed.as_bytes());
        Ok(Turn::Proven(ScramSuccess {
            account: self.keys.account.clone(),
            message: format!("v={}", STANDARD.encode(signature)),
        }))
    }
}

/// A good proof, which we answer with one of our own.
#[derive(Debug)]
pub struct ScramSuccess {
    pub account: String,
    message: String,
}

impl ScramSuccess {
    /// RFC 4954 has no data in a 235, so our final message is a challenge with an empty answer.
    pub fn challenge(self) -> Turn {
        Turn::Challenge(Exchange(Waiting::ScramLast), self.message.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn start(mechanism: Mechanism, message: &str) -> Turn {
        Exchange::start(mechanism, Some(&STANDARD.encode(message)))
    }

    #[test]
    fn plain_takes_exactly_two_nuls_and_no_other_identity() {
        // The example of RFC 4616 4.
        let Turn::Check(login) = Exchange::start(Mechanism::Plain, Some("AHRpbQB0YW5zdGFhZnRhbnN0YWFm")) else {
            panic!()
        };
        assert_eq!((login.account.as_str(), login.password.0.as_str()), ("tim", "tanstaaftanstaaf"));
        assert!(matches!(start(Mechanism::Plain, "tim\0tim\0x"), Turn::Check(_)));
        for bad in ["", "\0tim", "tim", "\0tim\0x\0", "\0\0x", "\0tim\0", "root\0tim\0x", "\0t\nm\0x", "\0a\0b\0c\0d"] {
            assert!(matches!(start(Mechanism::Plain, bad), Turn::Refused(..)), "{bad:?}");
        }
        for bad in ["!!!", "AHRpbQB0YW5zdGFhZnRhbnN0YWFm=", "AHRpbQB0YW5z dGFhZnRhbnN0YWFm", "AHRpbQ"] {
            let turn = Exchange::start(Mechanism::Plain, Some(bad));
            assert!(matches!(turn, Turn::Refused(SaslError::NotBase64)), "{bad:?}");
        }
    }

    #[test]
    fn login_asks_twice_and_can_be_cancelled() {
        let Turn::Challenge(exchange, prompt) = Exchange::start(Mechanism::Login, None) else { panic!() };
        assert_eq!(prompt, b"Username:");
        let Turn::Challenge(exchange, prompt) = exchange.respond(b"dGlt") else { panic!() };
        assert_eq!(prompt, b"Password:");
        assert!(matches!(exchange.respond(b"*"), Turn::Refused(SaslError::Cancelled)));
        assert!(matches!(start(Mechanism::Login, "tim"), Turn::Challenge(..)));
    }

    /// RFC 7677 3.
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCES: &str = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const PROOF: &str = "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    /// The keys of the password "pencil".
    fn keys() -> ScramKeys {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let iterations = std::num::NonZeroU32::new(4096).unwrap();
        let derived = scram::Keys::derive(Hash::Sha256, b"pencil", &salt, iterations);
        ScramKeys {
            account: "user".into(),
            known: true,
            salt,
            iterations: 4096,
            stored_key: derived.stored_key.try_into().unwrap(),
            server_key: derived.server_key.try_into().unwrap(),
            max_recipients: 10,
            server_nonce: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".into(),
        }
    }

    fn challenged(first: &str, keys: ScramKeys) -> (Exchange, String) {
        let Turn::FetchKeys(account, hello) = start(Mechanism::ScramSha256, first) else { panic!("{first}") };
        assert_eq!(account, "user");
        let Turn::Challenge(exchange, message) = hello.challenge(keys) else { panic!() };
        (exchange, String::from_utf8(message).unwrap())
    }

    fn answer(exchange: Exchange, message: &str) -> Turn {
        exchange.respond(STANDARD.encode(message).as_bytes())
    }

    #[test]
    fn scram_example_of_rfc_7677() {
        let (exchange, message) = challenged(FIRST, keys());
        assert_eq!(message, format!("r={NONCES},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"));
        let Turn::Proven(success) = answer(exchange, &format!("c=biws,r={NONCES},{PROOF}")) else { panic!() };
        let Turn::Challenge(exchange, message) = success.challenge() else { panic!() };
        assert_eq!(message, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert!(matches!(exchange.respond(b""), Turn::Finished));
    }

    #[test]
    fn scram_proofs_that_do_not_fit() {
        let wrong = [
            format!("c=biws,r={NONCES}x,{PROOF}"),
            format!("c=eSws,r={NONCES},{PROOF}"),
            format!("c=biws,r={NONCES},p=AAAA"),
            format!("c=biws,r={NONCES},p="),
            format!("c=biws,r={NONCES},p=eHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="),
            format!("c=biws,r={NONCES},x=y,{PROOF}"),
        ];
        for message in wrong {
            let turn = answer(challenged(FIRST, keys()).0, &message);
            assert!(matches!(&turn, Turn::Disproven(a) if a == "user"), "{message}: {turn:?}");
        }
        for message in [
            "",
            "c=biws",
            "c=biws,p=AAAA",
            &format!("r={NONCES},c=biws,{PROOF}"),
            &format!("c=biws,r={NONCES},m=1,{PROOF}"),
        ] {
            let turn = answer(challenged(FIRST, keys()).0, message);
            assert!(matches!(turn, Turn::Refused(SaslError::Malformed)), "{message}");
        }
        let unknown = ScramKeys { known: false, ..keys() };
        let turn = answer(challenged(FIRST, unknown).0, &format!("c=biws,r={NONCES},{PROOF}"));
        assert!(matches!(turn, Turn::Disproven(_)));
    }

    #[test]
    fn scram_first_messages() {
        for good in ["y,,n=user,r=x", "n,a=user,n=user,r=x", "n,,n=user,r=x,ext=1"] {
            assert!(matches!(start(Mechanism::ScramSha256, good), Turn::FetchKeys(..)), "{good}");
        }
        for bad in [
            "",
            "n,,",
            "p=tls-unique,,n=user,r=x",
            "n,,m=ext,n=user,r=x",
            "n,,n=,r=x",
            "n,,n=user",
            "n,,n=user,r=",
            "n,,n=us=er,r=x",
            "n,a=root,n=user,r=x",
            "n,root,n=user,r=x",
            "x,,n=user,r=x",
            "n,,n=user,r=a b",
        ] {
            assert!(matches!(start(Mechanism::ScramSha256, bad), Turn::Refused(..)), "{bad}");
        }
    }
}
