//! DKIM signatures for what leaves with a From of ours: one RSA and one Ed25519 signature
//! (RFC 6376, RFC 8463), relaxed/relaxed, over one body hash.
//!
//! Keys are read at the start and when one changes its state (`life`). Those that are missing are made, so
//! that a fresh server signs from its first message: written whole or not at all, readable by the owner only,
//! never over an existing file.
//! Signing takes a third of a millisecond of CPU (RSA) and no I/O; the caller decides on which thread.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_auth::common::crypto::Algorithm;
use mail_auth::dkim::{Canonicalization, Signature as Tags};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use crate::clock::Clock;
use crate::config::{Config, OwnDomain};
use crate::message::Domain;
use crate::message::body::{Hash, relaxed_hash};
use crate::message::canonical::{self, Form};
use crate::message::header::{Field, Headers};

pub mod check;
pub mod life;
pub mod sealing;

use life::{Lives, State};

/// A key file that is larger is none.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
/// RFC 8301 3.2: shorter keys are not believed.
const RSA_BITS_MIN: usize = 1024;
/// Keys, and so signatures, of one domain.
const KEYS_PER_DOMAIN_MAX: usize = 8;
const TOO_MANY: &str = "a domain can have 8 keys at most";

/// Signed in every message, once more than they occur, so that nobody can add one (RFC 6376 8.15).
const OVERSIGNED: [&str; 8] = ["From", "To", "Cc", "Subject", "Date", "Reply-To", "List-Unsubscribe", "Content-Type"];
/// Signed as often as they occur.
const SIGNED: [&str; 23] = [
    "Sender",
    "Message-ID",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Transfer-Encoding",
    "Content-ID",
    "Content-Description",
    "Content-Disposition",
    "Resent-Date",
    "Resent-From",
    "Resent-Sender",
    "Resent-To",
    "Resent-Cc",
    "Resent-Message-ID",
    "List-Id",
    "List-Help",
    "List-Unsubscribe-Post",
    "List-Subscribe",
    "List-Post",
    "List-Owner",
    "List-Archive",
    "Auto-Submitted",
];

/// Why there is no key or no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("DKIM key {path}: cannot be read: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("DKIM key {path}: cannot be made: {error}")]
    Write { path: PathBuf, error: io::Error },
    #[error("DKIM key {path}: {why}")]
    BadKey { path: PathBuf, why: &'static str },
    #[error(
        "DKIM states in {path}: {why}; correct the file, or take it away: then the selectors of the configuration sign"
    )]
    BadStates { path: PathBuf, why: String },
    #[error("DKIM keys of {domain}: {why}")]
    NoNewKey { domain: Domain, why: String },
    #[error("DKIM selector {selector:?} of {domain}: {why}")]
    BadSelector { domain: Domain, selector: String, why: &'static str },
    /// Of a key that the configuration names.
    #[error("{file}:{line}: {key}: {error}")]
    Written { file: String, line: u32, key: String, error: Box<SignError> },
    #[error("{0} is not one of our domains, so there is no DKIM key for it")]
    NotOurs(Domain),
    #[error("the message has no From field to sign")]
    NoFrom,
    #[error("the DKIM key {0} failed to sign")]
    Failed(String),
}

/// A signature, ready to be put in front of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The complete field, `DKIM-Signature: ` to CRLF.
    pub field: Vec<u8>,
    /// Where its key is published: `selector._domainkey.domain`.
    pub name: String,
}

/// The keys of our domains. A clone shares them.
#[derive(Clone)]
pub struct Signer {
    keys: Arc<RwLock<Arc<Keys>>>,
}

type Keys = BTreeMap<Domain, DomainKeys>;

#[derive(Default)]
struct DomainKeys {
    /// The states by which it was read.
    lives: Lives,
    keys: Vec<Key>,
    /// Names of records that nobody needs any more.
    done: Vec<String>,
}

/// A key and what is to be done about its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub selector: String,
    /// `selector._domainkey.domain`.
    pub name: String,
    /// The text of the TXT record there.
    pub record: String,
    pub state: State,
}

struct Key {
    selector: String,
    /// `selector._domainkey.domain`.
    name: String,
    /// The text of the TXT record there.
    record: String,
    state: State,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ed25519(Ed25519KeyPair),
}

/// What a missing key is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rsa,
    Ed25519,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys = self.now();
        f.debug_list().entries(keys.values().flat_map(|domain| &domain.keys).map(|key| &key.name)).finish()
    }
}

impl Signer {
    /// Reads the keys of all domains, and makes those under `data_dir/dkim` that are missing. Blocks
    /// (files; about a tenth of a second for each RSA key made).
    pub fn load(config: &Config) -> Result<Signer, SignError> {
        Ok(Signer { keys: Arc::new(RwLock::new(Arc::new(load_all(config)?))) })
    }

    /// As [`Signer::load`], in place of what is held. After an error that stays.
    pub fn reload(&self, config: &Config) -> Result<(), SignError> {
        let keys = Arc::new(load_all(config)?);
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// Are the states on disk those that are held? Keys are not read.
    pub fn is_current(&self, config: &Config) -> Result<bool, SignError> {
        let held = self.now();
        for domain in config.domains.keys() {
            let lives = life::lives(&config.data_dir, domain)?;
            if held.get(domain).is_none_or(|held| held.lives != lives) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Does a key of a domain wait for something to happen?
    pub fn is_changing(&self, domain: &Domain) -> bool {
        self.now().get(domain).is_some_and(|held| held.lives.is_changing())
    }

    fn now(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A signature with each key of the domain. `content` is the whole message as it will leave; the
    /// fields go in front of it.
    pub fn sign(&self, domain: &Domain, content: &[u8]) -> Result<Vec<Signature>, SignError> {
        let headers = Headers::parse(content);
        self.sign_hashed(domain, &headers, relaxed_hash(headers.body()))
    }

    /// As [`Signer::sign`], where the body has been hashed in the relaxed form.
    pub fn sign_hashed(&self, domain: &Domain, headers: &Headers<'_>, body: Hash) -> Result<Vec<Signature>, SignError> {
        let keys = self.now();
        let keys = &keys.get(domain).ok_or_else(|| SignError::NotOurs(domain.clone()))?.keys;
        let (names, signed) = signed_fields(headers);
        if headers.get("From").is_none() {
            return Err(SignError::NoFrom);
        }
        let mut data = Vec::with_capacity(2048);
        signed.iter().for_each(|field| canonical::write(Form::Relaxed, field, &mut data));
        let template = Tags {
            v: 1,
            d: domain.as_str().to_owned(),
            bh: body.to_vec(),
            h: names,
            t: Clock::System.now() / 1000,
            ch: Canonicalization::Relaxed,
            cb: Canonicalization::Relaxed,
            ..Tags::default()
        };
        let signing = keys.iter().filter(|key| key.state == State::Signing);
        signing.map(|key| key.signature(&template, &data)).collect()
    }

    /// What to publish for a domain: (name, text of the TXT record). Empty if it is not ours.
    pub fn records(&self, domain: &Domain) -> Vec<(String, String)> {
        self.standings(domain).into_iter().map(|key| (key.name, key.record)).collect()
    }

    /// The keys of a domain whose records are to be in DNS.
    pub fn standings(&self, domain: &Domain) -> Vec<Standing> {
        let standing = |key: &Key| Standing {
            selector: key.selector.clone(),
            name: key.name.clone(),
            record: key.record.clone(),
            state: key.state.clone(),
        };
        self.now().get(domain).map(|domain| domain.keys.iter().map(standing).collect()).unwrap_or_default()
    }

    /// Names of records that may be taken away.
    pub fn done(&self, domain: &Domain) -> Vec<String> {
        self.now().get(domain).map(|domain| domain.done.clone()).unwrap_or_default()
    }
}

impl Key {
    fn signature(&self, template: &Tags, canonical: &[u8]) -> Result<Signature, SignError> {
        let mut tags = Tags { a: self.pair.algorithm(), s: self.selector.clone(), ..template.clone() };
        let mut data = canonical.to_vec();
        // RFC 6376 3.7: the field itself comes last, with an empty b= and without its CRLF.
        tags.write(&mut data, false);
        tags.b = self.pair.sign(&data).ok_or_else(|| SignError::Failed(self.name.clone()))?;
        let mut field = Vec::with_capacity(1024);
        tags.write(&mut field, true);
        Ok(Signature { field, name: self.name.clone() })
    }
}

impl Pair {
    fn algorithm(&self) -> Algorithm {
        match self {
            Pair::Rsa(_) => Algorithm::RsaSha256,
            Pair::Ed25519(_) => Algorithm::Ed25519Sha256,
        }
    }

    fn sign(&self, data: &[u8]) -> Option<Vec<u8>> {
        match self {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), data, &mut signature).ok()?;
                Some(signature)
            }
            // RFC 8463 3: Ed25519 over the SHA-256 of the data.
            Pair::Ed25519(pair) => Some(pair.sign(digest(&SHA256, data).as_ref()).as_ref().to_vec()),
        }
    }

    fn record(&self) -> Option<String> {
        Some(match self {
            Pair::Rsa(pair) => {
                // SubjectPublicKeyInfo, as everybody publishes it (erratum 3017 to RFC 6376).
                let der: PublicKeyX509Der<'_> = pair.public_key().as_der().ok()?;
                format!("v=DKIM1; k=rsa; p={}", BASE64.encode(der.as_ref()))
            }
            Pair::Ed25519(pair) => format!("v=DKIM1; k=ed25519; p={}", BASE64.encode(pair.public_key().as_ref())),
        })
    }

    /// With the text for DNS.
    fn with_record(path: &Path, pem: &[u8]) -> Result<(Pair, String), SignError> {
        let pair = Pair::from_pem(path, pem)?;
        let record = pair.record();
        let record = record.ok_or_else(|| SignError::BadKey { path: path.to_owned(), why: "has no public key" })?;
        Ok((pair, record))
    }

    /// From PEM: PKCS#8, or PKCS#1 for RSA.
    fn from_pem(path: &Path, pem: &[u8]) -> Result<Pair, SignError> {
        let bad = |why| SignError::BadKey { path: path.to_owned(), why };
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| bad("is not a private key in PEM form"))?;
        let rsa = match &der {
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok(),
            PrivateKeyDer::Pkcs8(der) => {
                if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()) {
                    return Ok(Pair::Ed25519(pair));
                }
                RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok()
            }
            _ => None,
        };
        let rsa = rsa.ok_or_else(|| bad("is neither an RSA key (2048 to 8192 bits) nor an Ed25519 key"))?;
        if rsa.public_modulus_len() * 8 < RSA_BITS_MIN {
            return Err(bad("is shorter than 1024 bits; make one of 2048 bits"));
        }
        Ok(Pair::Rsa(Box::new(rsa)))
    }
}

/// The names for h=, and the fields in that order. Of several fields with one name the last comes
/// first (RFC 6376 5.4.2).
pub(super) fn signed_fields<'h, 'a>(headers: &'h Headers<'a>) -> (Vec<String>, Vec<&'h Field<'a>>) {
    let (mut names, mut fields) = (Vec::new(), Vec::new());
    let all = OVERSIGNED.iter().map(|name| (name, true)).chain(SIGNED.iter().map(|name| (name, false)));
    for (name, once_more) in all {
        let found: Vec<&Field<'a>> = headers.all(name).collect();
        names.extend(std::iter::repeat_n((*name).to_owned(), found.len() + usize::from(once_more)));
        fields.extend(found.iter().rev());
    }
    (names, fields)
}

fn load_all(config: &Config) -> Result<Keys, SignError> {
    let load = |(domain, own): (&Domain, &OwnDomain)| Ok((domain.clone(), load_domain(config, domain, own)?));
    config.domains.iter().map(load).collect()
}

/// The keys of the configuration, then those that were made besides.
fn load_domain(config: &Config, domain: &Domain, own: &OwnDomain) -> Result<DomainKeys, SignError> {
    let (data_dir, dkim) = (config.data_dir.as_path(), &own.dkim);
    let lives = life::lives(data_dir, domain)?;
    let extra = dkim.key_files.keys().filter(|selector| !dkim.selectors.contains(selector));
    let configured: Vec<&String> = dkim.selectors.iter().chain(extra).collect();
    let made = lives.selectors().filter(|selector| !configured.contains(selector));
    let (mut keys, mut done) = (Vec::new(), Vec::new());
    for (position, selector) in configured.iter().copied().chain(made).enumerate() {
        let placed = |error| check::placed(config, domain, selector, error);
        let bad = |why| placed(SignError::BadSelector { domain: domain.clone(), selector: selector.clone(), why });
        if keys.len() >= KEYS_PER_DOMAIN_MAX {
            return Err(bad(TOO_MANY));
        }
        let name = Domain::parse(&format!("{selector}._domainkey.{domain}"))
            .map_err(|_| bad("is not a name in DNS (letters, digits, hyphens, dots)"))?;
        let state = lives.state(selector);
        if state == State::Done {
            done.push(name.to_string());
            continue;
        }
        let (path, pem) = match dkim.key_files.get(selector) {
            Some(path) => (path.clone(), read(path).map_err(placed)?),
            None if !configured.contains(&selector) => {
                let path = key_path(data_dir, domain, selector);
                (path.clone(), read(&path)?)
            }
            None => {
                let path = key_path(data_dir, domain, selector);
                let kind = || {
                    kind(position, selector)
                        .ok_or_else(|| bad("end the name in -rsa or -ed, or give a file in key_files"))
                };
                let pem = read_or_make(data_dir, &path, kind)?;
                (path, pem)
            }
        };
        let (pair, record) = Pair::with_record(&path, &pem).map_err(placed)?;
        keys.push(Key { selector: selector.to_ascii_lowercase(), name: name.to_string(), record, state, pair });
    }
    Ok(DomainKeys { lives, keys, done })
}

fn folder_of(data_dir: &Path, domain: &Domain) -> PathBuf {
    data_dir.join("dkim").join(domain.as_str())
}

fn key_path(data_dir: &Path, domain: &Domain, selector: &str) -> PathBuf {
    folder_of(data_dir, domain).join(format!("{selector}.pem"))
}

/// What the end of the name says; else the first is RSA, the second Ed25519.
fn kind(position: usize, selector: &str) -> Option<Kind> {
    match position {
        _ if selector.ends_with("-rsa") => Some(Kind::Rsa),
        _ if selector.ends_with("-ed") || selector.ends_with("-ed25519") => Some(Kind::Ed25519),
        0 => Some(Kind::Rsa),
        1 => Some(Kind::Ed25519),
        _ if selector.ends_with("rsa") => Some(Kind::Rsa),
        _ if selector.ends_with("ed") || selector.ends_with("ed25519") => Some(Kind::Ed25519),
        _ => None,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SignError> {
    read_file(path).map_err(|error| SignError::Read { path: path.to_owned(), error })
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut pem = Vec::new();
    File::open(path)?.take(KEY_FILE_BYTES_MAX).read_to_end(&mut pem)?;
    Ok(pem)
}

fn read_or_make(
    data_dir: &Path,
    path: &Path,
    kind: impl FnOnce() -> Result<Kind, SignError>,
) -> Result<Vec<u8>, SignError> {
    match read_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let failed = |error| SignError::Write { path: path.to_owned(), error };
            let pem = generate(kind()?).ok_or_else(|| failed(io::Error::other("no key could be generated")))?;
            write_new(data_dir, path, pem.as_bytes()).map_err(failed)?;
            // Somebody else may have been faster: what is there counts.
            read(path)
        }
        other => other.map_err(|error| SignError::Read { path: path.to_owned(), error }),
    }
}

/// A new key as PKCS#8 in PEM.
fn generate(kind: Kind) -> Option<String> {
    let der = match kind {
        Kind::Rsa => {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048).ok()?;
            let der: Pkcs8V1Der<'_> = pair.as_der().ok()?;
            der.as_ref().to_vec()
        }
        // Version 1, because older OpenSSL does not read version 2.
        Kind::Ed25519 => Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).ok()?.as_ref().to_vec(),
    };
    let mut pem = "-----BEGIN PRIVATE KEY-----\n".to_owned();
    let text = BASE64.encode(der);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    Some(pem)
}

/// Writes a file that is there whole after a crash, or not at all; leaves one that exists alone.
fn write_new(data_dir: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(data_dir);
    make_folders(data_dir, folder)?;
    let unique = getrandom::u64().map_err(|e| io::Error::other(e.to_string()))?;
    let temporary = folder.join(format!(".new-{unique:016x}"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| own(data_dir, &temporary));
    // A link, unlike a rename, does not replace a key that another process has just made.
    let linked = written.and_then(|()| match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    fs::remove_file(&temporary)?;
    linked?;
    File::open(folder)?.sync_all()
}

/// The folders down to `folder`, for the owner only; each is recorded in the one above it.
fn make_folders(data_dir: &Path, folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folders(data_dir, above)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if folder != data_dir {
        own(data_dir, folder)?;
    }
    match folder.parent() {
        Some(above) if !above.as_os_str().is_empty() => File::open(above)?.sync_all(),
        _ => Ok(()),
    }
}

/// Gives a file to the owner of the data folder: `postrider dns` may be run by root before the server,
/// which has to read the key, runs as somebody else.
fn own(data_dir: &Path, path: &Path) -> io::Result<()> {
    let (wanted, has) = (fs::metadata(data_dir)?, fs::metadata(path)?);
    match has.uid() == wanted.uid() {
        true => Ok(()),
        false => std::os::unix::fs::chown(path, Some(wanted.uid()), Some(wanted.gid())),
    }
}
