//! A certificate authority that speaks ACME (RFC 8555) on loopback, strictly: it checks nonces, signatures and
//! URLs of every request, connects to the responder as a real one would, checks the signature of the request
//! for the certificate, and can be told to misbehave.
//! Include it with `#[path = "support/fake_acme.rs"]` beside `authority`.

#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::http::{Method, Request, Response};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postrider::clock::Clock;
use rcgen::{CertificateParams, KeyPair, PublicKeyData, SignatureAlgorithm};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::authority::{Authority, P256_KEY, P256_POINT_BYTES};

/// RFC 8737 6.1: id-pe-acmeIdentifier, as DER, critical, and an octet string in an octet string.
const ACME_IDENTIFIER: &[u8] = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x01\x1f\x01\x01\xff\x04\x22\x04\x20";
/// What goes wrong next; each once.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The nonce of the next request is refused although it is good.
    BadNonce,
    /// The next order is refused, with this Retry-After in seconds.
    RateLimited(u64),
    /// The next order is answered by something that is no authority.
    Nonsense,
    /// The next order's account is not known.
    NoAccount,
    /// The next challenge is not looked at, and found wanting.
    Challenge,
    /// The next certificate is never ready.
    Stalls,
    /// The next certificate is for another key.
    OtherKey,
    /// The next certificate is for another name.
    OtherName,
}

pub struct FakeAcme {
    pub authority: Arc<Authority>,
    port: u16,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

/// What has been asked of it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub accounts: usize,
    pub contacts: Vec<String>,
    pub orders: usize,
    pub challenges: usize,
    /// DER, in order.
    pub certificates: Vec<Vec<u8>>,
    /// What a client did against the protocol.
    pub wrongs: Vec<String>,
}

#[derive(Default)]
struct State {
    nonces: HashSet<String>,
    serial: usize,
    accounts: HashMap<String, Key>,
    orders: HashMap<String, Order>,
    faults: VecDeque<Fault>,
    /// Where the port of the challenge on the name's machine is.
    responder: watch::Sender<Option<SocketAddr>>,
    challenge: &'static str,
    seen: Seen,
}

#[derive(Clone)]
struct Key {
    point: Vec<u8>,
    thumbprint: String,
}

#[derive(Clone)]
struct Order {
    account: String,
    name: String,
    token: String,
    /// pending, valid, invalid.
    challenge: &'static str,
    error: Option<String>,
    stalls: bool,
    chain: Option<String>,
}

impl State {
    fn take(&mut self, fault: &Fault) -> bool {
        match self.faults.iter().position(|other| other == fault) {
            Some(at) => self.faults.remove(at).is_some(),
            None => false,
        }
    }

    fn next(&mut self, what: &str) -> String {
        self.serial += 1;
        format!("{what}-{}", self.serial)
    }

    fn nonce(&mut self) -> String {
        let nonce = self.next("nonce");
        self.nonces.insert(nonce.clone());
        nonce
    }
}

impl FakeAcme {
    /// In the clear, for a server in the test's own process. `challenge`: what it offers.
    pub async fn start(challenge: &'static str, clock: Clock) -> FakeAcme {
        FakeAcme::serve(challenge, clock, None).await
    }

    /// Under TLS, as `localhost`, with a certificate of its own authority.
    pub async fn start_https(challenge: &'static str, clock: Clock) -> FakeAcme {
        let authority = Authority::new();
        let config = authority.issue(&["localhost"]).server_config();
        FakeAcme::serve(challenge, clock, Some((authority, TlsAcceptor::from(Arc::new(config))))).await
    }

    async fn serve(challenge: &'static str, clock: Clock, tls: Option<(Authority, TlsAcceptor)>) -> FakeAcme {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (authority, acceptor) =
            tls.map_or_else(|| (Authority::new(), None), |(authority, acceptor)| (authority, Some(acceptor)));
        let authority = Arc::new(authority);
        let state = Arc::new(Mutex::new(State { challenge, ..State::default() }));
        let host = if acceptor.is_some() { "localhost" } else { "127.0.0.1" };
        let desk = Desk {
            base: format!("{scheme}://{host}:{port}"),
            authority: authority.clone(),
            state: state.clone(),
            clock,
        };
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (desk, acceptor) = (desk.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => desk.talk(stream).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                desk.talk(stream).await;
                            }
                        }
                    }
                });
            }
        });
        FakeAcme { authority, port, scheme, state, task }
    }

    pub fn directory(&self) -> String {
        let host = if self.scheme == "https" { "localhost" } else { "127.0.0.1" };
        format!("{}://{host}:{}/directory", self.scheme, self.port)
    }

    /// Where the name's port of the challenge leads. None: it is told later, and waited for.
    pub fn looks_at(&self, responder: Option<SocketAddr>) {
        self.state.lock().unwrap().responder.send_replace(responder);
    }

    pub fn will(&self, fault: Fault) {
        self.state.lock().unwrap().faults.push_back(fault);
    }

    pub fn seen(&self) -> Seen {
        self.state.lock().unwrap().seen.clone()
    }
}

impl Drop for FakeAcme {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Desk {
    base: String,
    authority: Arc<Authority>,
    state: Arc<Mutex<State>>,
    clock: Clock,
}

type Answer = Response<Full<Bytes>>;

/// A request that has stood the checks.
struct Asked {
    /// The account, or the new account's key.
    by: Result<String, Key>,
    payload: Value,
}

fn json_answer(status: u16, value: &Value) -> Answer {
    let builder = Response::builder().status(status).header("content-type", "application/json");
    builder.body(Full::new(Bytes::from(value.to_string()))).unwrap()
}

fn problem(status: u16, kind: &str, detail: &str) -> Answer {
    json_answer(
        status,
        &json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": status }),
    )
}

fn with(mut answer: Answer, name: &'static str, value: &str) -> Answer {
    answer.headers_mut().insert(name, value.parse().unwrap());
    answer
}

fn decoded(text: &Value) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text.as_str().unwrap()).unwrap()
}

impl Desk {
    async fn talk(self, stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
        let service = service_fn(move |request: Request<Incoming>| {
            let desk = self.clone();
            async move {
                let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let answer = desk.answer(&method, &path, &body).await;
                let nonce = desk.state.lock().unwrap().nonce();
                Ok::<_, Infallible>(with(answer, "replay-nonce", &nonce))
            }
        });
        // A client that has gone, or a server that was stopped in the middle.
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, method: &Method, path: &str, body: &[u8]) -> Answer {
        let base = &self.base;
        match (method.as_str(), path) {
            ("GET", "/directory") => {
                return json_answer(
                    200,
                    &json!({
                        "newNonce": format!("{base}/new-nonce"),
                        "newAccount": format!("{base}/new-account"),
                        "newOrder": format!("{base}/new-order"),
                        "revokeCert": format!("{base}/revoke"),
                        "keyChange": format!("{base}/key-change"),
                    }),
                );
            }
            ("HEAD", "/new-nonce") => return json_answer(200, &json!({})),
            ("POST", _) => {}
            _ => return problem(405, "malformed", "no such method here"),
        }
        let asked = match self.check(path, body) {
            Ok(asked) => asked,
            Err(refusal) => return *refusal,
        };
        let (kind, id) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
        match (kind, asked.by) {
            ("new-account", Err(key)) => self.new_account(key, &asked.payload),
            ("new-order", Ok(account)) => self.new_order(&account, &asked.payload),
            ("account", Ok(_)) => {
                let contact = asked.payload["contact"][0].as_str().unwrap_or_default().to_owned();
                self.state.lock().unwrap().seen.contacts.push(contact);
                json_answer(200, &json!({ "status": "valid" }))
            }
            ("order", Ok(account)) => self.of(id, &account, |desk, order| json_answer(200, &desk.order(id, order))),
            ("authorization", Ok(account)) => {
                self.of(id, &account, |desk, order| json_answer(200, &desk.authorization(id, order)))
            }
            ("challenge", Ok(account)) => self.look(id, &account).await,
            ("finalize", Ok(account)) => self.finalize(id, &account, &asked.payload),
            ("certificate", Ok(account)) => self.of(id, &account, |_, order| {
                let chain = order.chain.clone().unwrap_or_default();
                let builder = Response::builder().header("content-type", "application/pem-certificate-chain");
                builder.body(Full::new(Bytes::from(chain))).unwrap()
            }),
            _ => problem(404, "malformed", "there is nothing here for you"),
        }
    }

    /// RFC 8555 6.2 to 6.5: signature, nonce, URL, and whose key.
    fn check(&self, path: &str, body: &[u8]) -> Result<Asked, Box<Answer>> {
        let envelope: Value = serde_json::from_slice(body).unwrap();
        let protected: Value = serde_json::from_slice(&decoded(&envelope["protected"])).unwrap();
        let mut state = self.state.lock().unwrap();
        let wrong = |state: &mut State, what: &str| {
            state.seen.wrongs.push(format!("{path}: {what}"));
            Box::new(problem(400, "malformed", what))
        };
        if state.take(&Fault::BadNonce) {
            return Err(Box::new(problem(400, "badNonce", "try another nonce")));
        }
        if !state.nonces.remove(protected["nonce"].as_str().unwrap_or_default()) {
            return Err(wrong(&mut state, "a nonce that was not given, or was used"));
        }
        if protected["url"] != format!("{}{path}", self.base) || protected["alg"] != "ES256" {
            return Err(wrong(&mut state, "another URL or algorithm"));
        }
        let by = match protected["kid"].as_str() {
            Some(account) => Ok(account.to_owned()),
            None => Err(key(&protected["jwk"])),
        };
        let known = match &by {
            Ok(account) => state.accounts.get(account).cloned(),
            Err(key) => Some(key.clone()),
        };
        let Some(key) = known else { return Err(Box::new(problem(400, "accountDoesNotExist", "no such account"))) };
        let (protected, payload) = (envelope["protected"].as_str().unwrap(), envelope["payload"].as_str().unwrap());
        let signed = format!("{protected}.{payload}");
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.point);
        if public.verify(signed.as_bytes(), &decoded(&envelope["signature"])).is_err() {
            return Err(wrong(&mut state, "a signature that is not good"));
        }
        let payload = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap_or(Value::Null);
        Ok(Asked { by, payload })
    }

    fn new_account(&self, key: Key, payload: &Value) -> Answer {
        let mut state = self.state.lock().unwrap();
        if payload["termsOfServiceAgreed"] != true {
            return problem(403, "userActionRequired", "agree to the terms");
        }
        let url = format!("{}/account/{}", self.base, state.next("a"));
        state.accounts.insert(url.clone(), key);
        state.seen.accounts += 1;
        let contact = payload["contact"][0].as_str().unwrap_or_default().to_owned();
        state.seen.contacts.push(contact);
        with(json_answer(201, &json!({ "status": "valid" })), "location", &url)
    }

    fn new_order(&self, account: &str, payload: &Value) -> Answer {
        let mut state = self.state.lock().unwrap();
        state.seen.orders += 1;
        let limited = state.faults.iter().find_map(|fault| match fault {
            Fault::RateLimited(seconds) => Some(*seconds),
            _ => None,
        });
        if let Some(seconds) = limited {
            state.take(&Fault::RateLimited(seconds));
            return with(problem(429, "rateLimited", "too many orders"), "retry-after", &seconds.to_string());
        }
        if state.take(&Fault::Nonsense) {
            return Response::builder().status(502).body(Full::new(Bytes::from("<html>bad gateway</html>"))).unwrap();
        }
        if state.take(&Fault::NoAccount) {
            state.accounts.remove(account);
            return problem(400, "accountDoesNotExist", "no such account");
        }
        let identifiers = payload["identifiers"].as_array().unwrap();
        assert_eq!((identifiers.len(), &identifiers[0]["type"]), (1, &json!("dns")));
        let name = identifiers[0]["value"].as_str().unwrap().to_owned();
        let (id, token, stalls) = (state.next("o"), state.next("token"), state.take(&Fault::Stalls));
        let order =
            Order { account: account.to_owned(), name, token, challenge: "pending", error: None, stalls, chain: None };
        let answer = json_answer(201, &self.order(&id, &order));
        state.orders.insert(id.clone(), order);
        with(answer, "location", &format!("{}/order/{id}", self.base))
    }

    /// Something of an order, for its owner.
    fn of(&self, id: &str, account: &str, answer: impl FnOnce(&Desk, &Order) -> Answer) -> Answer {
        let order = self.state.lock().unwrap().orders.get(id).filter(|order| order.account == account).cloned();
        match order {
            Some(order) => answer(self, &order),
            None => problem(404, "malformed", "no such order"),
        }
    }

    fn order(&self, id: &str, order: &Order) -> Value {
        let base = &self.base;
        let status = match (order.challenge, &order.chain) {
            ("invalid", _) => "invalid",
            ("valid", Some(_)) if order.stalls => "processing",
            ("valid", Some(_)) => "valid",
            ("valid", None) => "ready",
            _ => "pending",
        };
        let mut value = json!({
            "status": status,
            "identifiers": [{ "type": "dns", "value": order.name }],
            "authorizations": [format!("{base}/authorization/{id}")],
            "finalize": format!("{base}/finalize/{id}"),
        });
        if status == "valid" {
            value["certificate"] = format!("{base}/certificate/{id}").into();
        }
        value
    }

    fn authorization(&self, id: &str, order: &Order) -> Value {
        let mut challenge = json!({
            "type": self.state.lock().unwrap().challenge,
            "url": format!("{}/challenge/{id}", self.base),
            "token": order.token,
            "status": order.challenge,
        });
        if let Some(error) = &order.error {
            challenge["error"] = json!({ "type": "urn:ietf:params:acme:error:unauthorized", "detail": error });
        }
        let other =
            json!({ "type": "dns-01", "url": format!("{}/no/{id}", self.base), "token": "no", "status": "pending" });
        json!({
            "identifier": { "type": "dns", "value": order.name },
            "status": order.challenge,
            "challenges": [other, challenge],
        })
    }

    /// Connects to the responder.
    async fn look(&self, id: &str, account: &str) -> Answer {
        let (order, key, mut responder, kind, fails) = {
            let mut state = self.state.lock().unwrap();
            state.seen.challenges += 1;
            let fails = state.take(&Fault::Challenge);
            let Some(order) = state.orders.get(id).filter(|order| order.account == account).cloned() else {
                return problem(404, "malformed", "no such order");
            };
            (order, state.accounts[account].clone(), state.responder.subscribe(), state.challenge, fails)
        };
        let text = format!("{}.{}", order.token, key.thumbprint);
        let responder = responder.wait_for(Option::is_some).await.unwrap().unwrap();
        let found = match kind {
            _ if fails => Err("the name leads elsewhere".to_owned()),
            "http-01" => ask_http(responder, &order, &text).await,
            _ => ask_tls(responder, &order, &text).await,
        };
        let mut state = self.state.lock().unwrap();
        let order = state.orders.get_mut(id).unwrap();
        (order.challenge, order.error) = match found {
            Ok(()) => ("valid", None),
            Err(error) => ("invalid", Some(error)),
        };
        let url = format!("{}/challenge/{id}", self.base);
        json_answer(200, &json!({ "type": kind, "url": url, "token": order.token, "status": "processing" }))
    }

    fn finalize(&self, id: &str, account: &str, payload: &Value) -> Answer {
        let mut state = self.state.lock().unwrap();
        let (other_key, other_name) = (state.take(&Fault::OtherKey), state.take(&Fault::OtherName));
        let Some(order) =
            state.orders.get(id).filter(|order| order.account == account && order.challenge == "valid").cloned()
        else {
            return problem(403, "orderNotReady", "not yet");
        };
        let key = match requested_key(&decoded(&payload["csr"]), &order.name) {
            Ok(key) => key,
            Err(why) => {
                state.seen.wrongs.push(why.clone());
                return problem(400, "badCSR", &why);
            }
        };
        let name = if other_name { "other.test".to_owned() } else { order.name.clone() };
        let mut params = CertificateParams::new(vec![name]).unwrap();
        let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(self.clock.now());
        params.not_before = now - Duration::from_secs(3600);
        params.not_after = params.not_before + Duration::from_secs(90 * 24 * 3600);
        let chain = match other_key {
            true => self.authority.certify(params, &KeyPair::generate().unwrap()),
            false => self.authority.certify(params, &key),
        };
        state.seen.certificates.push(chain[0].to_vec());
        let order = state.orders.get_mut(id).unwrap();
        order.chain = Some(super::authority::pem_chain(&chain));
        let order = order.clone();
        drop(state);
        json_answer(200, &self.order(id, &order))
    }
}

/// RFC 7638
fn key(jwk: &Value) -> Key {
    let (x, y) = (jwk["x"].as_str().unwrap(), jwk["y"].as_str().unwrap());
    let canonical = format!("{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"{x}\",\"y\":\"{y}\"}}");
    let thumbprint = URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes()));
    let point = [vec![4], decoded(&jwk["x"]), decoded(&jwk["y"])].concat();
    Key { point, thumbprint }
}

/// RFC 8555 8.3
async fn ask_http(responder: SocketAddr, order: &Order, text: &str) -> Result<(), String> {
    let mut stream = TcpStream::connect(responder).await.map_err(|error| error.to_string())?;
    let request = format!(
        "GET /.well-known/acme-challenge/{} HTTP/1.1\r\nHost: {}\r\nUser-Agent: fake\r\n\r\n",
        order.token, order.name
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    match answer.starts_with("HTTP/1.1 200 ") && body.trim_end() == text {
        true => Ok(()),
        false => Err(format!("{answer:?} is not the answer")),
    }
}

/// RFC 8737 3
async fn ask_tls(responder: SocketAddr, order: &Order, text: &str) -> Result<(), String> {
    let stream = TcpStream::connect(responder).await.map_err(|error| error.to_string())?;
    // It is the certificate itself that is looked at.
    let mut config = super::authority::any_certificate();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let name = ServerName::try_from(order.name.clone()).unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = connected.map_err(|error| error.to_string())?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(b"acme-tls/1") {
        return Err("another protocol was agreed on".to_owned());
    }
    let certificate = &session.peer_certificates().unwrap()[0];
    // The one name and no other (subjectAltName: a sequence of one dNSName).
    let name = order.name.as_bytes();
    let length = name.len() as u8;
    let names = [b"\x06\x03\x55\x1d\x11\x04", &[length + 4, 0x30, length + 2, 0x82, length][..], name].concat();
    if !certificate.windows(names.len()).any(|window| window == names) {
        return Err("the certificate is not for the one name".to_owned());
    }
    let wanted = [ACME_IDENTIFIER, digest(&SHA256, text.as_bytes()).as_ref()].concat();
    match certificate.windows(wanted.len()).any(|window| window == wanted) {
        true => Ok(()),
        false => Err("the certificate does not carry the answer".to_owned()),
    }
}

struct RequestedKey(Vec<u8>);

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// The key of a request for a certificate (RFC 2986) that is signed with it and names `name`.
fn requested_key(request: &[u8], name: &str) -> Result<RequestedKey, String> {
    let key = request.windows(P256_KEY.len()).position(|window| window == P256_KEY).ok_or("no key on P-256")?;
    let point = &request[key + P256_KEY.len()..][..P256_POINT_BYTES];
    let (_, whole) = element(request).ok_or("not well formed")?;
    let (info, _) = element(whole).ok_or("not well formed")?;
    let (algorithm, _) = element(&whole[info..]).ok_or("not well formed")?;
    let (_, signature) = element(&whole[info + algorithm..]).ok_or("not well formed")?;
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
    public.verify(&whole[..info], &signature[1..]).map_err(|_| "not signed with its key")?;
    let names = [&[0x82, name.len() as u8], name.as_bytes()].concat();
    match request.windows(names.len()).any(|window| window == names) {
        true => Ok(RequestedKey(point.to_vec())),
        false => Err("for another name".to_owned()),
    }
}

/// The length of the first element with its head, and its content, of DER.
fn element(input: &[u8]) -> Option<(usize, &[u8])> {
    let (head, length) = match *input.get(1)? {
        short @ 0..=0x7f => (2, usize::from(short)),
        0x81 => (3, usize::from(*input.get(2)?)),
        0x82 => (4, usize::from(*input.get(2)?) << 8 | usize::from(*input.get(3)?)),
        _ => return None,
    };
    Some((head + length, input.get(head..head + length)?))
}
