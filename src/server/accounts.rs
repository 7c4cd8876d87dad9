//! Who is it? Passwords checked against `[accounts]`.
//!
//! A failed login always costs one argon2id hash and gets the same reply, whether the account does
//! not exist, is inactive, or the password is wrong, so that neither words nor time tell which names
//! exist. Hashes run on blocking threads, so many at once as there are cores, and a good one is
//! remembered for [`REMEMBERED_MILLIS`] (as a keyed digest bound to the configured hash), so that a
//! busy client does not pay for each connection.
//!
//! SCRAM-SHA-256 needs what only the password itself gives; an argon2id hash cannot serve it. Clients
//! prefer SCRAM where it is offered, so it is offered only if every active account has `password`.
//!
//! Leaves out: how often one may try (`limits`), SASLprep of passwords (compared as sent).

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argon2::password_hash::phc::{Output, PasswordHash, Salt};
use argon2::password_hash::{CustomizedPasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::{constant_time, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use tokio::sync::{OnceCell, Semaphore};

use super::step::{Login, ScramKeys};
use crate::clock::{Clock, Millis};
use crate::config::{Account, Config, Credential, Secret};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;
use crate::smtp::scram;

/// argon2id parameters of new hashes: memory in KiB, passes, lanes (OWASP's first choice).
const HASH_KIB: u32 = 19_456;
const HASH_PASSES: u32 = 2;
const HASH_LANES: u32 = 1;
/// Milliseconds for which a good password is not hashed again.
pub const REMEMBERED_MILLIS: Millis = 60_000;
/// Good passwords remembered at once.
pub const REMEMBERED_MAX: usize = 1_000;
/// Different password checks that wait or run at once; more get 454.
pub const CHECKS_MAX: usize = 1_000;
/// SCRAM keys kept at once, those of names without an account included.
pub const SCRAM_KEYS_MAX: usize = 1_000;
/// RFC 7677 4: at least 4096. The keys are never stored, so more would only slow clients down.
const SCRAM_ITERATIONS: u32 = 4_096;
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 18;

type Digest = [u8; 32];

/// Why accounts cannot be checked or a hash not be made.
#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    #[error("the system gives no random numbers: {0}")]
    NoRandom(#[from] getrandom::Error),
    #[error("the password cannot be hashed: {0}")]
    Hash(argon2::password_hash::Error),
}

/// A login that is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub name: String,
    /// Recipients of one message.
    pub max_recipients: usize,
}

/// The accounts of one configuration; [`Accounts::next`] makes those of the next.
pub struct Accounts {
    config: Arc<Config>,
    clock: Clock,
    /// Keys for this process only: what is remembered is worth nothing elsewhere.
    memory_key: hmac::Key,
    scram_key: hmac::Key,
    /// A hash that no password has, with the parameters of the configured ones.
    nobody: Secret,
    /// KiB of memory for hashes that run, [`HASH_KIB`] for each core.
    hash_memory: Arc<Semaphore>,
    hash_memory_kib: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    remembered: HashMap<Digest, Millis>,
    running: HashMap<Digest, Running>,
    scram: HashMap<String, Arc<DerivedKeys>>,
}

/// A check that others with the same question wait for too.
#[derive(Default)]
struct Running {
    waiting: usize,
    result: Arc<OnceCell<bool>>,
}

struct DerivedKeys {
    salt: Vec<u8>,
    stored_key: Digest,
    server_key: Digest,
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").field("configured", &self.config.accounts.len()).finish_non_exhaustive()
    }
}

impl Accounts {
    pub fn new(config: Arc<Config>, clock: Clock) -> Result<Accounts, AccountsError> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let hash_memory_kib = cores.min(1024) * HASH_KIB;
        Ok(Accounts {
            nobody: nobodys_hash(&config)?,
            config,
            clock,
            memory_key: random_key()?,
            scram_key: random_key()?,
            hash_memory: Arc::new(Semaphore::new(hash_memory_kib as usize)),
            hash_memory_kib,
            state: Mutex::default(),
        })
    }

    /// Those of another configuration. Good passwords are remembered on as far as they are still the same.
    pub fn next(&self, config: Arc<Config>) -> Result<Accounts, AccountsError> {
        let state = {
            let state = self.lock();
            // Of an account that is not active there are keys that fit no password.
            let source = |config: &Config, name: &str| {
                config.accounts.get(name).filter(|account| account.active).map(|account| account.credential.clone())
            };
            let is_same = |name: &String| source(&config, name) == source(&self.config, name);
            let scram = state.scram.iter().filter(|(name, _)| is_same(name));
            let scram = scram.map(|(name, keys)| (name.clone(), keys.clone())).collect();
            // What is remembered is bound to the hash that it fitted.
            State { remembered: state.remembered.clone(), running: HashMap::new(), scram }
        };
        Ok(Accounts {
            nobody: nobodys_hash(&config)?,
            config,
            clock: self.clock.clone(),
            memory_key: self.memory_key.clone(),
            scram_key: self.scram_key.clone(),
            hash_memory: self.hash_memory.clone(),
            hash_memory_kib: self.hash_memory_kib,
            state: Mutex::new(state),
        })
    }

    /// Recipients of one message of an account that logged in under an earlier configuration. None: with what it
    /// showed then it would not be let in now.
    pub fn still_lets_in(&self, name: &str, before: &Accounts) -> Option<usize> {
        let account = self.config.accounts.get(name).filter(|account| account.active)?;
        (credential(&self.config, name) == credential(&before.config, name)).then_some(account.max_recipients)
    }

    /// True if SCRAM-SHA-256 would work for everyone who may log in.
    pub fn offers_scram(&self) -> bool {
        let mut active = self.config.accounts.values().filter(|account| account.active).peekable();
        active.peek().is_some() && active.all(|account| matches!(account.credential, Credential::Password(_)))
    }

    /// Checks a user name and password from PLAIN or LOGIN.
    pub async fn verify(&self, login: Login) -> Result<Verified, Refusal> {
        let account = self.config.accounts.get(&login.account);
        // The right password of an account that is not active would be known by the time it takes.
        let right = match account.filter(|account| account.active).map(|account| &account.credential) {
            Some(Credential::Password(password)) if self.is_same(password, &login.password) => true,
            Some(Credential::Hash(hash)) => self.fits(&login, hash).await?,
            Some(Credential::Password(_)) | None => self.fits(&login, &self.nobody).await?,
        };
        match account {
            Some(Account { active: true, max_recipients, .. }) if right => {
                Ok(Verified { name: login.account, max_recipients: *max_recipients })
            }
            Some(account) if !account.active => Err(refused(&login.account, "the account is not active")),
            Some(_) => Err(refused(&login.account, "wrong password")),
            None => Err(refused(&login.account, "there is no such account")),
        }
    }

    /// In constant time, also for passwords of different lengths.
    fn is_same(&self, one: &Secret, other: &Secret) -> bool {
        let [one, other] = [one, other].map(|secret| hmac::sign(&self.memory_key, secret.0.as_bytes()));
        constant_time::verify_slices_are_equal(one.as_ref(), other.as_ref()).is_ok()
    }

    /// Does the password fit this hash? Remembers a yes; logins that ask the same share one hash.
    async fn fits(&self, login: &Login, hash: &Secret) -> Result<bool, Refusal> {
        let question = self.question(login, hash);
        let now = self.clock.now();
        let (asked, result) = {
            let mut state = self.lock();
            // A time ahead of now: the clock was set back.
            if state.remembered.get(&question).is_some_and(|at| (*at..*at + REMEMBERED_MILLIS).contains(&now)) {
                return Ok(true);
            }
            if state.running.len() >= CHECKS_MAX && !state.running.contains_key(&question) {
                return Err(later(format!("{CHECKS_MAX} password checks are waiting already")));
            }
            let running = state.running.entry(question).or_default();
            running.waiting += 1;
            (Asked { accounts: self, question }, running.result.clone())
        };
        let fits = *result.get_or_try_init(|| self.hash(&login.password, hash)).await?;
        if fits {
            self.remember(question, now);
        }
        drop(asked);
        Ok(fits)
    }

    fn question(&self, login: &Login, hash: &Secret) -> Digest {
        let mut context = hmac::Context::with_key(&self.memory_key);
        for part in [login.account.as_bytes(), login.password.0.as_bytes(), hash.0.as_bytes()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        to_digest(context.sign().as_ref())
    }

    fn remember(&self, question: Digest, now: Millis) {
        let mut state = self.lock();
        if state.remembered.len() >= REMEMBERED_MAX {
            state.remembered.retain(|_, at| (*at..*at + REMEMBERED_MILLIS).contains(&now));
        }
        if state.remembered.len() >= REMEMBERED_MAX
            && let Some(oldest) = state.remembered.iter().min_by_key(|(_, at)| **at).map(|(question, _)| *question)
        {
            state.remembered.remove(&oldest);
        }
        state.remembered.insert(question, now);
    }

    /// Runs one hash on a blocking thread, within the memory for hashes.
    async fn hash(&self, password: &Secret, hash: &Secret) -> Result<bool, Refusal> {
        let parsed = PasswordHash::new(&hash.0).map_err(|error| later(format!("a configured hash: {error}")))?;
        let kib = Params::try_from(&parsed).map_err(|error| later(format!("a configured hash: {error}")))?.m_cost();
        let password = password.clone();
        self.off_thread(kib, move || match Argon2::default().verify_password(password.0.as_bytes(), &parsed) {
            Ok(()) => Ok(true),
            Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
            Err(error) => Err(later(format!("argon2: {error}"))),
        })
        .await?
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        kib: u32,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        // A hash that wants more than all the memory runs alone.
        let kib = kib.clamp(HASH_KIB, self.hash_memory_kib);
        let permit = self.hash_memory.clone().acquire_many_owned(kib).await;
        let permit = permit.map_err(|_| later("the server is stopping".into()))?;
        // The permit goes along: the work runs to its end even if the client has gone.
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        task.await.map_err(|error| later(format!("a password check did not finish: {error}")))
    }

    /// What SCRAM needs of this account (RFC 5802 3), or something that looks the same for a name
    /// that has none and for an account that has only a hash.
    pub async fn scram_keys(&self, account: &str) -> Result<ScramKeys, Refusal> {
        let known = self.config.accounts.get(account).filter(|account| account.active);
        let password = known.and_then(|account| match &account.credential {
            Credential::Password(password) => Some((password, account.max_recipients)),
            Credential::Hash(_) => None,
        });
        let cached = self.lock().scram.get(account).cloned();
        let keys = match cached {
            Some(keys) => keys,
            // Derived in the same way and kept as long, known or not.
            None => self.derive(account, password.map(|(password, _)| password)).await?,
        };
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| later(AccountsError::from(error).to_string()))?;
        Ok(ScramKeys {
            account: account.to_owned(),
            known: password.is_some(),
            salt: keys.salt.clone(),
            iterations: SCRAM_ITERATIONS,
            stored_key: keys.stored_key,
            server_key: keys.server_key,
            max_recipients: password.map_or(0, |(_, max)| max),
            server_nonce: STANDARD_NO_PAD.encode(nonce),
        })
    }

    /// The end of SCRAM: who it is if the proof was `good`, the refusal if not.
    pub fn scram_result(&self, account: &str, good: bool) -> Result<Verified, Refusal> {
        match self.config.accounts.get(account) {
            Some(Account { active: true, max_recipients, credential: Credential::Password(_), .. }) if good => {
                Ok(Verified { name: account.to_owned(), max_recipients: *max_recipients })
            }
            Some(account_found) if account_found.active => Err(refused(account, "wrong password (SCRAM)")),
            Some(_) => Err(refused(account, "the account is not active")),
            None => Err(refused(account, "there is no such account")),
        }
    }

    async fn derive(&self, account: &str, password: Option<&Secret>) -> Result<Arc<DerivedKeys>, Refusal> {
        let salt = self.scram_secret("salt", account)[..SALT_BYTES].to_vec();
        let password = match password {
            Some(password) => password.0.as_bytes().to_vec(),
            None => self.scram_secret("nobody", account).to_vec(),
        };
        let keys = self.off_thread(HASH_KIB, move || Arc::new(derive_keys(&password, salt))).await?;
        let mut state = self.lock();
        if state.scram.len() >= SCRAM_KEYS_MAX
            && let Some(victim) = state.scram.keys().next().cloned()
        {
            state.scram.remove(&victim);
        }
        state.scram.insert(account.to_owned(), keys.clone());
        Ok(keys)
    }

    fn scram_secret(&self, purpose: &str, account: &str) -> Digest {
        to_digest(hmac::sign(&self.scram_key, format!("{purpose}\0{account}").as_bytes()).as_ref())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits for a check; the last one to go takes the check with it, also when cancelled.
struct Asked<'a> {
    accounts: &'a Accounts,
    question: Digest,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut state = self.accounts.lock();
        if let Some(running) = state.running.get_mut(&self.question) {
            running.waiting -= 1;
            if running.waiting == 0 {
                state.running.remove(&self.question);
            }
        }
    }
}

/// RFC 5802 3, with SHA-256 (RFC 7677).
fn derive_keys(password: &[u8], salt: Vec<u8>) -> DerivedKeys {
    let iterations = NonZeroU32::new(SCRAM_ITERATIONS).unwrap_or(NonZeroU32::MIN);
    let keys = scram::Keys::derive(scram::Hash::Sha256, password, &salt, iterations);
    DerivedKeys { stored_key: to_digest(&keys.stored_key), server_key: to_digest(&keys.server_key), salt }
}

/// SHA-256 has 32 octets.
fn to_digest(octets: &[u8]) -> Digest {
    let mut digest = [0; 32];
    for (to, from) in digest.iter_mut().zip(octets) {
        *to = *from;
    }
    digest
}

/// RFC 4954 6: one reply for every reason.
fn refused(account: &str, why: &str) -> Refusal {
    Refusal {
        reply: Reply::new(535, (7, 8), "user name or password is wrong"),
        reason: format!("login as {account:?}: {why}"),
    }
}

/// RFC 4954 6: trouble of ours.
fn later(reason: String) -> Refusal {
    Refusal { reply: Reply::new(454, (7, 0), "logins cannot be checked right now, please try again"), reason }
}

fn random_key() -> Result<hmac::Key, AccountsError> {
    let mut key = [0; 32];
    getrandom::fill(&mut key)?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &key))
}

fn hasher() -> Result<Argon2<'static>, AccountsError> {
    let params =
        Params::new(HASH_KIB, HASH_PASSES, HASH_LANES, None).map_err(|error| AccountsError::Hash(error.into()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn credential<'c>(config: &'c Config, name: &str) -> Option<&'c Credential> {
    config.accounts.get(name).map(|account| &account.credential)
}

/// Random octets in the form of a hash. Checking it takes as long as checking the first configured
/// one (the default parameters if there is none), and no password fits.
fn nobodys_hash(config: &Config) -> Result<Secret, AccountsError> {
    let configured = config.accounts.values().find_map(|account| match &account.credential {
        Credential::Hash(hash) => PasswordHash::new(&hash.0).ok(),
        Credential::Password(_) => None,
    });
    let mut random = [0; 32];
    getrandom::fill(&mut random)?;
    let [salt, output] = [random.get(..SALT_BYTES), Some(&random[..])].map(Option::unwrap_or_default);
    let mut hash = match configured {
        Some(hash) => hash,
        None => PasswordHash {
            algorithm: argon2::ARGON2ID_IDENT,
            version: Some(Version::V0x13.into()),
            params: hasher()?.params().try_into().map_err(AccountsError::Hash)?,
            salt: None,
            hash: None,
        },
    };
    hash.salt = Some(Salt::new(salt).map_err(|error| AccountsError::Hash(error.into()))?);
    hash.hash = Some(Output::new(output).map_err(|error| AccountsError::Hash(error.into()))?);
    Ok(Secret(hash.to_string()))
}

/// An argon2id hash in PHC form for `password_hash`. Takes tens of milliseconds.
pub fn hash_password(password: &str) -> Result<String, AccountsError> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt)?;
    let hasher = hasher()?;
    let params = hasher.params().clone();
    let hash: PasswordHash =
        hasher.hash_password_with_params(password.as_bytes(), &salt, params).map_err(AccountsError::Hash)?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::path::Path;

    use super::*;
    use crate::server::testing;

    fn accounts(list: &[(&str, Credential, bool)], clock: Clock) -> Accounts {
        let mut config = testing::config(Path::new("/nonexistent"));
        for (name, credential, active) in list {
            let account = Account { active: *active, ..testing::account(credential.clone()) };
            config.accounts.insert((*name).to_owned(), account);
        }
        Accounts::new(Arc::new(config), clock).unwrap()
    }

    fn hashed(password: &str) -> Credential {
        Credential::Hash(Secret(hash_password(password).unwrap()))
    }

    fn plain(password: &str) -> Credential {
        Credential::Password(Secret(password.into()))
    }

    fn login(account: &str, password: &str) -> Login {
        Login { account: account.into(), password: Secret(password.into()) }
    }

    #[test]
    fn hashes_are_argon2id_and_salted() {
        let hash = hash_password("hunter2").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(hash, hash_password("hunter2").unwrap());
    }

    #[tokio::test]
    async fn only_the_right_password_of_an_active_account_passes() {
        let accounts = accounts(
            &[
                ("hash", hashed("one"), true),
                ("word", plain("two"), true),
                ("old", hashed("three"), false),
                ("gone", plain("four"), false),
            ],
            Clock::manual(0),
        );
        let good = accounts.verify(login("hash", "one")).await.unwrap();
        assert_eq!(good, Verified { name: "hash".into(), max_recipients: 1000 });
        assert_eq!(accounts.verify(login("word", "two")).await.unwrap().name, "word");
        let mut reasons = Vec::new();
        for (account, password) in [
            ("hash", "two"),
            ("hash", ""),
            ("word", "one"),
            ("old", "three"),
            ("gone", "four"),
            ("none", "one"),
            ("", ""),
        ] {
            let refusal = accounts.verify(login(account, password)).await.unwrap_err();
            assert_eq!(refusal.reply.to_string(), "535 5.7.8 user name or password is wrong", "{account}");
            reasons.push(refusal.reason);
        }
        assert!(reasons[0].contains("wrong password") && reasons[3].contains("not active"));
        assert!(reasons[5].contains("no such account"));
        assert!(!accounts.offers_scram());
    }

    /// The work itself is counted, not its time: who waits for memory that is not there has got as
    /// far as a hash.
    #[tokio::test]
    async fn every_failure_costs_a_hash_and_a_remembered_success_none() {
        let clock = Clock::manual(1_000);
        let list = [
            ("hash", hashed("one"), true),
            ("word", plain("two"), true),
            ("off", plain("three"), false),
            ("old", hashed("four"), false),
        ];
        let accounts = accounts(&list, clock.clone());
        let costs_a_hash = async |account: &str, password: &str| {
            let all = accounts.hash_memory.clone().acquire_many_owned(accounts.hash_memory_kib).await.unwrap();
            let verify = accounts.verify(login(account, password));
            tokio::pin!(verify);
            let at_once = std::future::poll_fn(|context| std::task::Poll::Ready(verify.as_mut().poll(context))).await;
            drop(all);
            match at_once {
                std::task::Poll::Ready(_) => false,
                std::task::Poll::Pending => {
                    let _ = verify.await;
                    true
                }
            }
        };
        let inactive = [("off", "three"), ("old", "four"), ("old", "four"), ("old", "bad")];
        let others = [("none", "one"), ("hash", "bad"), ("hash", "bad"), ("word", "bad"), ("", "")];
        for (account, password) in inactive.into_iter().chain(others) {
            assert!(costs_a_hash(account, password).await, "{account} {password}");
        }
        assert!(costs_a_hash("hash", "one").await, "the first time");
        assert!(!costs_a_hash("hash", "one").await, "remembered");
        assert!(costs_a_hash("hash", "two").await, "not with another password");
        assert!(!costs_a_hash("word", "two").await);
        clock.advance(REMEMBERED_MILLIS);
        assert!(costs_a_hash("hash", "one").await, "for a while only");
        assert!(accounts.lock().running.is_empty());
    }

    #[tokio::test]
    async fn the_same_login_at_the_same_time_is_one_hash() {
        let accounts = accounts(&[("hash", hashed("one"), true)], Clock::manual(0));
        let all = accounts.hash_memory.clone().acquire_many_owned(accounts.hash_memory_kib).await.unwrap();
        let mut logins: Vec<_> = (0..20).map(|_| Box::pin(accounts.verify(login("hash", "one")))).collect();
        for verify in &mut logins {
            std::future::poll_fn(|context| std::task::Poll::Ready(verify.as_mut().poll(context).is_pending())).await;
        }
        assert_eq!(accounts.lock().running.len(), 1);
        // The one that does the work goes away; another takes over.
        drop(logins.remove(0));
        drop(all);
        for verify in logins {
            assert!(verify.await.is_ok());
        }
        assert!(accounts.lock().running.is_empty());
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let accounts = accounts(&[], Clock::manual(0));
        for number in 0..REMEMBERED_MAX as u64 + 5 {
            accounts.remember(to_digest(&[&[0; 24], &number.to_be_bytes()[..]].concat()), number);
        }
        let state = accounts.lock();
        assert_eq!(state.remembered.len(), REMEMBERED_MAX);
        assert!(!state.remembered.contains_key(&[0; 32]), "the oldest went");
    }

    #[tokio::test]
    async fn scram_keys_fit_the_password_and_look_alike_for_nobody() {
        let accounts = accounts(&[("word", plain("pencil"), true), ("off", plain("x"), false)], Clock::manual(0));
        assert!(accounts.offers_scram());
        let keys = accounts.scram_keys("word").await.unwrap();
        assert!(keys.known);
        assert_eq!((keys.iterations, keys.max_recipients), (4096, 1000));
        let again = derive_keys(b"pencil", keys.salt.clone());
        assert_eq!((keys.stored_key, keys.server_key), (again.stored_key, again.server_key));
        assert_eq!(accounts.scram_result("word", true).unwrap().max_recipients, 1000);
        for (name, good) in [("word", false), ("off", true), ("none", true)] {
            assert_eq!(accounts.scram_result(name, good).unwrap_err().reply.code, 535);
        }
        let second = accounts.scram_keys("word").await.unwrap();
        assert_eq!(second.salt, keys.salt);
        assert_ne!(second.server_nonce, keys.server_nonce);
        assert!(!keys.server_nonce.contains(','));

        for nobody in ["none", "off"] {
            let (one, two) = (accounts.scram_keys(nobody).await.unwrap(), accounts.scram_keys(nobody).await.unwrap());
            assert!(!one.known);
            assert_eq!((one.salt.len(), &one.salt, one.stored_key), (keys.salt.len(), &two.salt, two.stored_key));
            assert_ne!(one.salt, keys.salt);
        }
        let kept = accounts.lock().scram.len();
        for number in kept..SCRAM_KEYS_MAX {
            accounts.lock().scram.insert(format!("filler {number}"), Arc::new(derive_nothing()));
        }
        accounts.scram_keys("one more").await.unwrap();
        assert_eq!(accounts.lock().scram.len(), SCRAM_KEYS_MAX);
    }

    /// A client that asked before has the keys of nobody derived for the name, which no password fits.
    #[tokio::test]
    async fn scram_keys_of_an_account_are_new_once_it_is_active() {
        let before = accounts(&[("word", plain("pencil"), false)], Clock::manual(0));
        before.scram_keys("word").await.unwrap();
        let with = |active| accounts(&[("word", plain("pencil"), active)], Clock::manual(0)).config;
        let after = before.next(with(true)).unwrap();
        let keys = after.scram_keys("word").await.unwrap();
        assert_eq!(keys.stored_key, derive_keys(b"pencil", keys.salt.clone()).stored_key);
        assert!(after.next(with(true)).unwrap().lock().scram.contains_key("word"), "kept while nothing changes");
        assert!(!after.next(with(false)).unwrap().lock().scram.contains_key("word"));
    }

    fn derive_nothing() -> DerivedKeys {
        DerivedKeys { salt: vec![], stored_key: [0; 32], server_key: [0; 32] }
    }

    /// RFC 7677 3: user `user`, password `pencil`; the server's signature is checked.
    #[test]
    fn keys_match_the_example_of_the_rfc() {
        let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        let keys = derive_keys(b"pencil", decode("W22ZaJ0SNY7soEsUEjb6gQ=="));
        let auth_message = "n=user,r=rOprNGfwEbeRWgbNEkqO,\
            r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
            c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let key = hmac::Key::new(hmac::HMAC_SHA256, &keys.server_key);
        let signature = hmac::sign(&key, auth_message.as_bytes());
        assert_eq!(signature.as_ref(), decode("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
    }
}
