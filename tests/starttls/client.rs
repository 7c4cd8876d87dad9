//! Our client: each scenario under each policy.

use std::sync::Arc;

use postrider::delivery::Outcome;
use postrider::smtp::reply::Severity;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, GeneralSubtree, IsCa, Issuer, KeyPair,
    NameConstraints, SanType,
};
use tokio::sync::Semaphore;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::authority::Authority;
use crate::far::{CLOSE, Far, SILENCE, SLOWLY, Says, Seen};
use crate::ground::{MX, Shown, deliver, demands_certificate, demands_tls};
use crate::support::client::Client;
use crate::support::flow;
use crate::support::server::{TestServer, queued_id};
use crate::{SET, ids};

/// Deliveries at once: each has a store of its own.
const AT_ONCE: usize = 24;

fn says(pairs: &[(&'static str, &[u8])]) -> Says {
    pairs.iter().map(|(stage, said)| (*stage, said.to_vec())).collect()
}

fn text(pairs: &[(&'static str, &str)]) -> Says {
    pairs.iter().map(|(stage, said)| (*stage, said.as_bytes().to_vec())).collect()
}

fn slowly(said: &str) -> Vec<u8> {
    [&[SLOWLY], said.as_bytes()].concat()
}

/// What the far end may say in a scenario. Empty: it is in `alone` or `certificates`.
fn scenarios(id: &str) -> Vec<Says> {
    let codes = |stage: &'static str, codes: &[u16]| -> Vec<Says> {
        codes.iter().map(|code| text(&[(stage, &format!("{code} said so\r\n"))])).collect()
    };
    match id {
        "k01" => vec![text(&[("starttls", "220 Ready\r\n250-injected\r\n250 AUTH PLAIN\r\n")])],
        "k02" => {
            vec![text(&[("ehlo", "250 mx1.far.test\r\n")]), text(&[("ehlo", "250-mx1.far.test\r\n250 XSTARTTLS\r\n")])]
        }
        "k03" => {
            let mut all = codes("starttls", &[454, 500, 501, 502, 503, 530, 554, 221, 250, 354, 421]);
            all.push(says(&[("starttls", b"220 go ahead\r\n"), ("no handshake", b"x")]));
            all.push(says(&[("starttls", b"\xff\xfe garbage\0\r\n")]));
            all.push(says(&[("starttls", CLOSE)]));
            all.push(says(&[("starttls", SILENCE)]));
            all
        }
        "k04" => {
            let codes_of = [220, 221, 250, 354, 421, 450, 500, 501, 530, 554];
            let mut all = codes("greeting", &codes_of);
            all.extend(codes("ehlo", &codes_of));
            all.extend(codes("ehlo-tls", &codes_of));
            for code in codes_of {
                all.push(text(&[("ehlo", "502 what?\r\n"), ("helo", &format!("{code} said so\r\n"))]));
            }
            all.extend(codes("quit", &codes_of));
            all.extend(codes("mail", &codes_of));
            // RSET follows a refused recipient.
            all.extend(codes_of.iter().map(|code| {
                text(&[("rcpt", "450 later\r\n"), ("data", "503 nobody\r\n"), ("rset", &format!("{code} said so\r\n"))])
            }));
            all
        }
        "k07" => {
            let lines = "250-X-LINE\r\n".repeat(10_000) + "250 STARTTLS\r\n";
            let mechanisms = format!("250-mx1\r\n250-AUTH{}\r\n250 STARTTLS\r\n", " X-MECHANISM".repeat(500));
            let bare = |text: &str| says(&[("ehlo", text.as_bytes())]);
            vec![
                bare(&lines),
                bare(&format!("250-{}\r\n250 STARTTLS\r\n", "x".repeat(1 << 20))),
                bare("250-a\0b\r\n250 STARTTLS\r\n"),
                says(&[("ehlo", &[b"250-".as_slice(), &[0xff; 200], b"\r\n250 STARTTLS\r\n"].concat())]),
                bare("250-mx1\r\n250-SIZE 10\r\n250-SIZE 100000\r\n250 STARTTLS\r\n"),
                bare("250-mx1\r\n250-SIZE 0\r\n250 STARTTLS\r\n"),
                bare("250-mx1\r\n250-SIZE 18446744073709551616\r\n250 STARTTLS\r\n"),
                bare(&mechanisms),
            ]
        }
        "k08" => {
            let forms = [
                "000 x\r\n",
                "999 x\r\n",
                "25\r\n",
                "250x\r\n",
                "2.0 x\r\n",
                "-250 x\r\n",
                "250-a\r\n550 b\r\n",
                "\r\n",
                " 250 x\r\n",
            ];
            let mut all: Vec<Says> = Vec::new();
            for stage in ["greeting", "mail", "dot"] {
                all.extend(forms.iter().map(|form| text(&[(stage, *form)])));
                all.push(text(&[(stage, &"250-more\r\n".repeat(20_000))]));
            }
            all
        }
        "k09" => [
            "550 5.7.2\r\n",
            "550 5.999.999 x\r\n",
            "550 2.1.0 x\r\n",
            "250 5.1.1 x\r\n",
            "450 5\r\n",
            "550 5.\r\n",
            "550 99999999999.1.1 x\r\n",
        ]
        .iter()
        .flat_map(|form| ["mail", "rcpt", "dot"].map(|stage| text(&[(stage, *form)])))
        .collect(),
        "k10" => vec![says(&[("dot", CLOSE)])],
        "k11" => vec![text(&[("dot", "250 kept\r\n421 4.3.2 bye\r\n")])],
        "k12" => vec![
            says(&[("data", SILENCE)]),
            says(&[("data", &slowly("354 go on\r\n"))]),
            says(&[("data", &slowly(&format!("354 {}\r\n", "x".repeat(5000))))]),
        ],
        "k13" => vec![
            text(&[("mail", "250 ok\r\n250 ok\r\n")]),
            text(&[("rcpt", "250 ok\r\n250 ok\r\n")]),
            text(&[("data", "354 go on\r\n250 kept\r\n")]),
            text(&[("rcpt", "250-ok\r\n")]),
        ],
        "k15" => vec![
            text(&[("rcpt", "551 5.1.6 please try <you@elsewhere.test>\r\n"), ("data", "503 nobody\r\n")]),
            text(&[("rcpt", "251 2.1.5 will forward to <you@elsewhere.test>\r\n")]),
        ],
        "k16" => {
            let nasty = "\x1b[2J\x1b]0;pwn\x07<script>alert(1)</script>\u{e9}\u{202e}";
            vec![
                text(&[("rcpt", &format!("550 5.1.1 {nasty}\r\n")), ("data", "503 nobody\r\n")]),
                says(&[("rcpt", b"550 5.1.1 a\rX-Injected: 1\xff\xfe\r\n"), ("data", b"503 nobody\r\n")]),
                text(&[("dot", &format!("250 {nasty}\r\n"))]),
            ]
        }
        other => panic!("what is {other}?"),
    }
}

/// What holds whatever was said.
fn judge(what: &str, policy: &str, outcome: &Outcome, seen: &Seen) {
    if demands_tls(policy) {
        assert_eq!(seen.clear, 0, "{what}: in clear: {seen:?}");
    }
    assert!(seen.secrets.is_empty(), "{what}: {seen:?}");
    assert!(seen.clear + seen.tls <= 1, "{what}: sent twice: {seen:?}");
    assert!(seen.connections <= 4, "{what}: {seen:?}");
    let said = match outcome {
        Outcome::Delivered(delivered) => {
            assert!(seen.taken == 1, "{what}: nobody has it: {seen:?}");
            delivered.reply.as_ref().map(ToString::to_string).unwrap_or_default()
        }
        Outcome::Defer { why, .. } | Outcome::Fail(why) => {
            // Where the far end has said yes to it, it is known to be unsure or it is delivered.
            assert!(seen.taken == 0 || why.unsure, "{what}: {why:?}");
            format!("{} {:?}", why.reason, why.reply)
        }
        other => panic!("{what}: {other:?}"),
    };
    assert!(!said.chars().any(|c| c.is_control() || c == '\u{202e}'), "{what}: {said:?}");
}

/// Only words about the mail, 5yz to MAIL, RCPT, DATA or the message, end it; and REQUIRETLS, which says so itself.
fn may_fail(policy: &str, says: &Says, outcome: &Outcome) -> bool {
    let Outcome::Fail(why) = outcome else { return true };
    let is_refused =
        ["mail", "rcpt", "data", "dot"].iter().any(|stage| says.get(stage).is_some_and(|said| said.starts_with(b"5")));
    let is_large = says.get("ehlo").is_some_and(|said| said.windows(8).any(|eight| eight == b"SIZE 10\r"));
    let by_greeting = says.get("greeting").is_some_and(|said| said.starts_with(b"5"));
    let last = why.reply.as_ref().is_none_or(|reply| reply.severity() == Severity::Permanent);
    is_refused && last || is_large || by_greeting || policy == "RFC8689-REQUIRETLS"
}

fn policies() -> Vec<String> {
    let policies = flow::list(SET, "client_side_policies");
    assert_eq!(policies.len(), 8);
    policies
}

async fn run(ids: &[String]) -> usize {
    let mut running = tokio::task::JoinSet::new();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let all = ids.iter().flat_map(|id| policies().into_iter().map(move |policy| (id.clone(), policy)));
    for (id, policy) in all {
        for (number, says) in scenarios(&id).into_iter().enumerate() {
            let (id, policy, places) = (id.clone(), policy.clone(), places.clone());
            running.spawn(async move {
                let _place = places.acquire().await.unwrap();
                let what = format!("{id}.{number} under {policy}");
                let (outcome, seen) = deliver(&policy, &says, Shown::good()).await;
                judge(&what, &policy, &outcome, &seen);
                assert!(may_fail(&policy, &says, &outcome), "{what}: {outcome:?}");
                particular(&id, &what, &policy, &outcome, &seen);
            });
        }
    }
    running.join_all().await.len()
}

/// What the rule of this scenario says besides.
fn particular(id: &str, what: &str, policy: &str, outcome: &Outcome, seen: &Seen) {
    let delivered = matches!(outcome, Outcome::Delivered(_));
    let number: usize = what.split(['.', ' ']).nth(1).unwrap().parse().unwrap();
    match id {
        // An attack: never the answer to an EHLO, and no message, unless nobody demands TLS and it goes on another connection.
        "k01" => assert!(seen.tls == 0 && (!delivered || !demands_tls(policy)), "{what}: {outcome:?}"),
        "k02" => assert_eq!(delivered, !demands_tls(policy), "{what}: {outcome:?}"),
        "k03" => assert!(!delivered || !demands_tls(policy), "{what}: {outcome:?}"),
        "k10" => {
            let Outcome::Defer { why, .. } = outcome else { panic!("{what}: {outcome:?}") };
            assert!(why.unsure && seen.connections == 1, "{what}: {why:?}");
        }
        "k11" => assert!(delivered && seen.tls == 1, "{what}: {outcome:?}"),
        "k12" if number == 1 => assert!(delivered, "{what}: a byte at a time is no fault: {outcome:?}"),
        "k12" => assert!(matches!(outcome, Outcome::Defer { .. }), "{what}: {outcome:?}"),
        "k13" => assert!(!delivered, "{what}: out of step: {outcome:?}"),
        "k15" => {
            assert_eq!((delivered, seen.connections), (number == 1, 1), "{what}: {outcome:?}");
            // With 251 the far end goes on by itself; with 551 the sender is told where, and nobody is sent there.
            assert_eq!(format!("{outcome:?}").contains("elsewhere.test"), number == 0, "{what}: {outcome:?}");
        }
        _ => {}
    }
}

/// A certificate, and whether it is one that who demands one may take.
struct Certificate {
    name: &'static str,
    shown: Shown,
}

fn built(
    names: Vec<SanType>,
    change: impl Fn(&mut CertificateParams),
    authority: impl Fn(&mut CertificateParams),
) -> Shown {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority(&mut params);
    let anchor = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = names;
    change(&mut params);
    let certificate = params.signed_by(&own, &issuer).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(own.serialize_der()).unwrap();
    shown(vec![certificate, anchor.clone()], key, &anchor, rcgen::PublicKeyData::subject_public_key_info(&own))
}

fn shown(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    anchor: &CertificateDer<'static>,
    public_key: Vec<u8>,
) -> Shown {
    let mut roots = RootCertStore::empty();
    roots.add(anchor.clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    // Not `with_single_cert`, which looks at what it is to show.
    let identity = CertifiedKey::new(chain, provider.key_provider.load_private_key(key).unwrap());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
    Shown { config, roots, public_key, anchor: anchor.to_vec() }
}

/// From tests/data/starttls/weak.
fn weak(name: &str) -> Shown {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/starttls/weak");
    let read = |file: String| CertificateDer::from_pem_file(folder.join(file)).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).unwrap();
    let (certificate, anchor) = (read(format!("{name}.pem")), read(format!("{name}-authority.pem")));
    shown(vec![certificate, anchor.clone()], key, &anchor, vec![0; 32])
}

/// `k06`. A revoked one is like any other to us: a mail server that asks authorities about each host it talks to tells
/// them whom it talks to, and RFC 8461 4.2 and RFC 7672 do not ask for it.
fn certificates() -> Vec<Certificate> {
    let dns = |name: &str| vec![SanType::DnsName(name.try_into().unwrap())];
    let same = |_: &mut CertificateParams| {};
    let named = |name: &str| built(dns(name), same, same);
    let dated = |from: i32, to: i32| {
        let change = move |params: &mut CertificateParams| {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
        };
        built(dns(MX), change, same)
    };
    let mut own = named(MX);
    own.roots = Authority::new().roots();
    let constraint = |params: &mut CertificateParams| {
        let only = vec![GeneralSubtree::DnsName("other.test".into())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees: only, excluded_subtrees: Vec::new() });
    };
    let critical = |params: &mut CertificateParams| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55555, 1], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
    };
    let common_name = |params: &mut CertificateParams| params.distinguished_name.push(DnType::CommonName, MX);
    [
        ("self-signed", own),
        ("expired", dated(2001, 2002)),
        ("not yet valid", dated(2090, 2091)),
        ("wrong name", named("mx2.far.test")),
        ("common name only", built(Vec::new(), common_name, same)),
        ("wildcard inside", named("mx1.*.test")),
        ("wildcard at the top", named("*.test")),
        ("address", built(vec![SanType::IpAddress([127, 0, 0, 1].into())], same, same)),
        ("NUL in the name", named("mx1.far.test\0.evil.test")),
        ("name constraint", built(dns(MX), same, constraint)),
        ("critical extension", built(dns(MX), critical, same)),
        ("SHA-1", weak("sha1")),
        ("RSA of 512 bits", weak("rsa512")),
    ]
    .into_iter()
    .map(|(name, shown)| Certificate { name, shown })
    .collect()
}

/// Who demands a certificate gets no mail under a bad one; to the others it is as good as none.
async fn bad_certificates() -> usize {
    let mut count = 0;
    for policy in policies() {
        for Certificate { name, shown } in certificates() {
            let what = format!("k06 {name} under {policy}");
            let (outcome, seen) = deliver(&policy, &Says::new(), shown).await;
            judge(&what, &policy, &outcome, &seen);
            let delivered = matches!(outcome, Outcome::Delivered(_));
            // DANE-EE names the key, and looks at nothing else (RFC 7672 3.1.1); DANE-TA names the authority.
            // What cannot be read has no key to compare; of the weak ones the record names another.
            let is_odd = matches!(name, "SHA-1" | "RSA of 512 bits" | "critical extension");
            let wanted = match policy.as_str() {
                "dane-ee" => !is_odd,
                "dane-ta" => name == "self-signed",
                policy => !demands_certificate(policy),
            };
            assert_eq!(delivered, wanted, "{what}: {outcome:?}");
            count += 1;
        }
    }
    count
}

/// `k05`: the password of a smart host goes under TLS, or not at all.
async fn smart_host() {
    for (says, tls) in [
        (text(&[("ehlo", "250-s.test\r\n250-AUTH PLAIN LOGIN\r\n250 STARTTLS\r\n")]), "required"),
        (text(&[("ehlo", "250-s.test\r\n250 AUTH PLAIN LOGIN\r\n")]), "required"),
        (text(&[("ehlo", "250-s.test\r\n250 AUTH PLAIN LOGIN\r\n")]), "opportunistic"),
        (
            text(&[("ehlo", "250-s.test\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n"), ("starttls", "454 not now\r\n")]),
            "opportunistic",
        ),
    ] {
        let far = Far::start(says, Shown::good().config).await;
        let folder = tempfile::tempdir().unwrap();
        let conf = format!(
            "[networks]\ntrusted = [\"127.0.0.0/8\"]\n[domains.\"own.test\"]\n[delivery]\ndefault = \"smart_hosts\"\n\
             [smart_hosts.s]\nhost = \"127.0.0.1\"\nport = {}\ntls = \"{tls}\"\nverify_certificate = false\n\
             username = \"app\"\npassword = \"pencil\"\n",
            far.address.port()
        );
        let server = TestServer::start(folder.path(), &conf).await;
        let mut client = Client::connect(server.submission).await.unwrap();
        let reply = client.send("a@own.test", &["one@far.test"], crate::ground::CONTENT).await.unwrap();
        let id = queued_id(&reply);
        server.wait_for(id, |event| matches!(event, postrider::events::Event::Deferred { .. })).await;
        server.stop().await;
        let seen = far.seen();
        assert!(seen.secrets.is_empty() && seen.clear + seen.tls == 0, "{tls}: {seen:?}");
    }
}

/// `k14` is the business of `lmtp.rs`, where the far ends speak that: who gets no reply is deferred. Here: that a far end
/// of SMTP that answers as one of LMTP does, with a reply too many, is out of step.
async fn lmtp() {
    let replies = text(&[("dot", "250 one\r\n250 two\r\n")]);
    for policy in policies() {
        let (outcome, seen) = deliver(&policy, &replies, Shown::good()).await;
        judge(&format!("k14 under {policy}"), &policy, &outcome, &seen);
        assert!(matches!(outcome, Outcome::Delivered(_)), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_under_every_policy() {
    let (others, said): (Vec<String>, Vec<String>) =
        ids("client_side", 16).into_iter().partition(|id| ["k05", "k06", "k14"].contains(&id.as_str()));
    assert_eq!((others.len(), said.len()), (3, 13));
    let deliveries = run(&said).await;
    smart_host().await;
    let certificates = bad_certificates().await;
    assert_eq!(certificates, 8 * 13);
    lmtp().await;
    println!("{} deliveries", deliveries + certificates + 12);
}
