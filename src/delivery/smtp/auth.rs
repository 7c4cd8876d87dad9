//! SASL, client side, as RFC 4954 carries it: SCRAM (RFC 5802, RFC 7677), CRAM-MD5 (RFC 2195), PLAIN
//! (RFC 4616) and LOGIN with a password; OAUTHBEARER (RFC 7628) and XOAUTH2 with a token. No socket.
//!
//! Promises: the strongest mechanism that the server offers is taken; what shows the secret itself is
//! never said where others may listen; under SCRAM a login counts only once the server has proved that
//! it knows the password too; a server cannot make us work longer than [`ITERATIONS_MAX`] allows; no
//! secret is shown by Debug or stands in a text that is meant for people.
//!
//! Leaves out: where tokens come from, channel binding (-PLUS), acting for somebody else, and SASLprep:
//! a password outside ASCII has to be configured in the Unicode form that the server has.

use std::fmt;
use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::md5;
use crate::config;
use crate::smtp::scram::{self, Hash, Keys};

/// Octets of an AUTH command with its CRLF (RFC 4954 4). What does not fit waits to be asked for.
const AUTH_LINE_BYTES_MAX: usize = 12_288;
/// Iterations that a server may ask of us: some tenths of a second of work. RFC 7677 4 asks for 4096.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Characters of a server's explanation that are passed on.
const EXPLANATION_CHARS_MAX: usize = 200;

/// Who we are to a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Login {
    pub username: String,
    pub secret: Secret,
}

/// What proves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Secret {
    Password(config::Secret),
    /// An OAuth 2 access token.
    Token(config::Secret),
}

impl Secret {
    fn text(&self) -> &str {
        match self {
            Secret::Password(config::Secret(text)) | Secret::Token(config::Secret(text)) => text,
        }
    }
}

impl Login {
    /// Characters that would end a field early cannot be sent.
    pub fn is_usable(&self) -> bool {
        let fits = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
        fits(&self.username) && fits(self.secret.text())
    }
}

/// What we can do, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    ScramSha256,
    ScramSha1,
    CramMd5,
    Plain,
    Login,
    OauthBearer,
    Xoauth2,
}

impl Mechanism {
    const ALL: [Mechanism; 7] = [
        Mechanism::ScramSha256,
        Mechanism::ScramSha1,
        Mechanism::CramMd5,
        Mechanism::Plain,
        Mechanism::Login,
        Mechanism::OauthBearer,
        Mechanism::Xoauth2,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha1 => "SCRAM-SHA-1",
            Mechanism::CramMd5 => "CRAM-MD5",
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
            Mechanism::OauthBearer => "OAUTHBEARER",
            Mechanism::Xoauth2 => "XOAUTH2",
        }
    }

    pub fn named(name: &str) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|mechanism| mechanism.name().eq_ignore_ascii_case(name))
    }

    fn takes(self, secret: &Secret) -> bool {
        let with_token = matches!(self, Mechanism::OauthBearer | Mechanism::Xoauth2);
        with_token == matches!(secret, Secret::Token(_))
    }

    /// Whoever listens has the secret afterwards.
    fn shows_secret(self) -> bool {
        !matches!(self, Mechanism::ScramSha256 | Mechanism::ScramSha1 | Mechanism::CramMd5)
    }
}

/// How a login went wrong. All of them are about the host and our account there, never about the mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoginFault {
    /// The server does not take this user name and secret (535, 5.7.30 …): somebody has to act, or a
    /// token has to be fetched anew.
    Refused,
    /// The server cannot check it right now (454 and other 4xx).
    Later,
    /// No mechanism that both sides know and that the secret fits.
    NoMechanism,
    /// What is left would show the secret to everybody on the way.
    NotPrivate,
    /// The server breaks the rules of the mechanism, or did not prove that it knows the password.
    Broken,
    /// The user name or the secret cannot be sent.
    Unusable,
}

/// The best that is offered and may be used.
pub fn choose(offered: &[Mechanism], login: &Login, is_private: bool) -> Result<Mechanism, LoginFault> {
    if !login.is_usable() {
        return Err(LoginFault::Unusable);
    }
    let fits = |mechanism: &Mechanism| offered.contains(mechanism) && mechanism.takes(&login.secret);
    let mut fitting = Mechanism::ALL.into_iter().filter(fits).peekable();
    if fitting.peek().is_none() {
        return Err(LoginFault::NoMechanism);
    }
    fitting.find(|mechanism| is_private || !mechanism.shows_secret()).ok_or(LoginFault::NotPrivate)
}

/// The place that we log in at, and what is random about it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub host: &'a str,
    pub port: u16,
    /// Printable, without a comma, and different each time.
    pub nonce: &'a str,
}

/// An exchange that waits for the server's next challenge, or for its verdict.
pub struct Exchange {
    pub mechanism: Mechanism,
    waiting: Waiting,
    /// What the server said about a token before its verdict.
    explanation: Option<String>,
    /// Our messages, encoded.
    said: Vec<String>,
}

enum Waiting {
    /// The first message did not fit into the command.
    Unsent(Vec<u8>, Box<Waiting>),
    LoginName,
    LoginPassword,
    CramMd5,
    Scram(ScramFirst),
    /// For the signature that the server owes us.
    ScramSignature(Vec<u8>),
    /// A challenge here is an explanation of why the token is not good.
    TokenVerdict,
    /// All is said.
    Verdict,
}

struct ScramFirst {
    hash: Hash,
    bare: String,
    nonce: String,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

impl Exchange {
    /// The exchange, and the AUTH command that begins it, without its CRLF.
    pub fn start(mechanism: Mechanism, login: &Login, place: Place<'_>) -> (Exchange, String) {
        let (message, waiting) = first(mechanism, login, place);
        let mut said = Vec::new();
        let bare = format!("AUTH {}", mechanism.name());
        let (command, waiting) = match message {
            None => (bare, waiting),
            Some(message) => {
                let encoded = STANDARD.encode(&message);
                let whole = format!("{bare} {encoded}");
                said.push(encoded);
                match whole.len() + 2 <= AUTH_LINE_BYTES_MAX {
                    true => (whole, waiting),
                    false => (bare, Waiting::Unsent(message, Box::new(waiting))),
                }
            }
        };
        (Exchange { mechanism, waiting, explanation: None, said }, command)
    }

    /// The text of a 334. Gives the answer, without its CRLF.
    pub fn challenged(&mut self, login: &Login, text: &str) -> Result<String, LoginFault> {
        let waiting = std::mem::replace(&mut self.waiting, Waiting::Verdict);
        let answer = match waiting {
            Waiting::Unsent(message, then) => {
                self.waiting = *then;
                message
            }
            // The prompts have no fixed text (and some servers do not encode them): only their order counts.
            Waiting::LoginName => {
                self.waiting = Waiting::LoginPassword;
                login.username.clone().into_bytes()
            }
            Waiting::LoginPassword => login.secret.text().as_bytes().to_vec(),
            Waiting::CramMd5 => cram_md5(login, &decoded(text)?),
            Waiting::Scram(first) => {
                let (answer, signature) = first.prove(login, &decoded(text)?)?;
                self.waiting = Waiting::ScramSignature(signature);
                answer
            }
            Waiting::ScramSignature(signature) => {
                let message = String::from_utf8(decoded(text)?).map_err(|_| LoginFault::Broken)?;
                let shown = message.split(',').next().and_then(|first| first.strip_prefix("v="));
                let shown = shown.and_then(|shown| STANDARD.decode(shown).ok()).ok_or(LoginFault::Broken)?;
                if !scram::same(&shown, &signature) {
                    return Err(LoginFault::Broken);
                }
                Vec::new()
            }
            Waiting::TokenVerdict => {
                self.explanation = decoded(text).ok().map(|said| readable(&said));
                // RFC 7628 3.2.3 has a dummy for this; XOAUTH2 has an empty line.
                if self.mechanism == Mechanism::OauthBearer { vec![1] } else { Vec::new() }
            }
            Waiting::Verdict => return Err(LoginFault::Broken),
        };
        let answer = STANDARD.encode(answer);
        self.said.push(answer.clone());
        Ok(answer)
    }

    /// The server says 235. Is that enough?
    pub fn accepted(&self) -> Result<(), LoginFault> {
        match self.waiting {
            // LOGIN with nothing said, or SCRAM without the server's proof, is no login.
            Waiting::Verdict | Waiting::TokenVerdict if self.explanation.is_none() => Ok(()),
            _ => Err(LoginFault::Broken),
        }
    }

    /// What the server said about a token before its verdict, if that may be shown.
    pub fn explanation(&self, login: &Login) -> Option<&str> {
        self.explanation.as_deref().filter(|text| !self.is_repeated_in(login, text))
    }

    /// Whether a server has repeated the secret in what it says, plainly or as we sent it.
    pub fn is_repeated_in(&self, login: &Login, text: &str) -> bool {
        let said = self.said.iter().map(String::as_str).filter(|said| !said.is_empty());
        said.chain([login.secret.text()]).any(|shown| text.contains(shown))
    }
}

/// Our first message, if the client begins, and what is waited for after it.
fn first(mechanism: Mechanism, login: &Login, place: Place<'_>) -> (Option<Vec<u8>>, Waiting) {
    let Place { host, port, nonce } = place;
    let (name, secret) = (&login.username, login.secret.text());
    let said = |message: String| Some(message.into_bytes());
    let scram = |hash| {
        let bare = format!("n={},r={nonce}", scram::escape_name(name));
        let message = said(format!("n,,{bare}"));
        (message, Waiting::Scram(ScramFirst { hash, bare, nonce: nonce.to_owned() }))
    };
    match mechanism {
        Mechanism::ScramSha256 => scram(Hash::Sha256),
        Mechanism::ScramSha1 => scram(Hash::Sha1),
        Mechanism::CramMd5 => (None, Waiting::CramMd5),
        Mechanism::Plain => (said(plain_message(login)), Waiting::Verdict),
        Mechanism::Login => (None, Waiting::LoginName),
        Mechanism::OauthBearer => {
            let name = scram::escape_name(name);
            let message = format!("n,a={name},\x01host={host}\x01port={port}\x01auth=Bearer {secret}\x01\x01");
            (said(message), Waiting::TokenVerdict)
        }
        Mechanism::Xoauth2 => (said(format!("user={name}\x01auth=Bearer {secret}\x01\x01")), Waiting::TokenVerdict),
    }
}

/// RFC 4616 2.
fn plain_message(login: &Login) -> String {
    format!("\0{}\0{}", login.username, login.secret.text())
}

/// RFC 2195 2.
fn cram_md5(login: &Login, challenge: &[u8]) -> Vec<u8> {
    let digest = md5::hmac(login.secret.text().as_bytes(), challenge);
    let hex: String = digest.iter().map(|octet| format!("{octet:02x}")).collect();
    format!("{} {hex}", login.username).into_bytes()
}

impl ScramFirst {
    /// RFC 5802 7: `r=nonces,s=salt,i=iterations` is answered with our proof. Gives that, and the signature
    /// that the server must show then.
    fn prove(&self, login: &Login, challenge: &[u8]) -> Result<(Vec<u8>, Vec<u8>), LoginFault> {
        let challenge = std::str::from_utf8(challenge).map_err(|_| LoginFault::Broken)?;
        // A mandatory extension ("m=") would stand before the nonces and is refused by not being them.
        let mut parts = challenge.split(',');
        let mut part = |prefix| parts.next().and_then(|part| part.strip_prefix(prefix)).ok_or(LoginFault::Broken);
        let (nonces, salt, iterations) = (part("r=")?, part("s=")?, part("i=")?);
        let theirs = nonces.strip_prefix(self.nonce.as_str()).ok_or(LoginFault::Broken)?;
        if theirs.is_empty() {
            return Err(LoginFault::Broken);
        }
        let salt = STANDARD.decode(salt).map_err(|_| LoginFault::Broken)?;
        let iterations: NonZeroU32 = iterations.parse().map_err(|_| LoginFault::Broken)?;
        if iterations.get() > ITERATIONS_MAX {
            return Err(LoginFault::Broken);
        }
        let keys = Keys::derive(self.hash, login.secret.text().as_bytes(), &salt, iterations);
        // "biws" is the header "n,,": no channel binding.
        let without_proof = format!("c=biws,r={nonces}");
        let signed = format!("{},{challenge},{without_proof}", self.bare);
        let proof = STANDARD.encode(keys.proof(self.hash, signed.as_bytes()));
        let signature = self.hash.sign(&keys.server_key, signed.as_bytes());
        Ok((format!("{without_proof},p={proof}").into_bytes(), signature))
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, LoginFault> {
    STANDARD.decode(text.trim()).map_err(|_| LoginFault::Broken)
}

/// A server's explanation (JSON, RFC 7628 3.2.2) as one line of ASCII.
fn readable(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.chars().take(EXPLANATION_CHARS_MAX).map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests;
