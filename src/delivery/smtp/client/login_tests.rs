//! Conversations with a login in them: every mechanism, and everything that can go wrong.

#![allow(clippy::unwrap_used, clippy::panic)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::tests::{done, mail, reply, sent};
use super::*;
use crate::config;
use crate::delivery::smtp::auth::{Login, LoginFault, Secret};

const PASSWORD: &str = "pencil";
const TOKEN: &str = "vF9dft4qmTc2Nvb3";

fn account(secret: Secret) -> Account {
    Account {
        login: Some(Login { username: "user".into(), secret }),
        may_show_secret: false,
        debug: false,
        host: "smtp.far.test".into(),
        port: 587,
        nonce: "rOprNGfwEbeRWgbNEkqO".into(),
    }
}

fn password() -> Account {
    account(Secret::Password(config::Secret(PASSWORD.into())))
}

fn token() -> Account {
    account(Secret::Token(config::Secret(TOKEN.into())))
}

fn client(tls: Tls, account: Account) -> Client {
    let own = Domain::parse("own.test").unwrap();
    Client::new("smtp.far.test [192.0.2.1]:587".into(), own, tls, Timeouts::RFC5321).with_account(account)
}

/// The command after EHLO, on a connection under implicit TLS where these mechanisms are offered.
fn greeted(account: Account, mechanisms: &str) -> (Client, Step) {
    let mut client = client(Tls::Implicit, account);
    assert_eq!(client.start(), Step::StartTls);
    let step = client.secured("TLSv1.3".into());
    assert_eq!(step, Step::Talk { send: vec![], timeout: Timeouts::RFC5321.greeting, secret: false });
    assert_eq!(sent(&client.reply(reply(220, &["hi"]))), "EHLO own.test\r\n");
    let step = client.reply(reply(250, &["smtp.far.test", "STARTTLS", mechanisms]));
    (client, step)
}

fn challenge(client: &mut Client, text: &str) -> Step {
    client.reply(reply(334, &[&STANDARD.encode(text)]))
}

fn message(step: &Step) -> String {
    let line = sent(step);
    let encoded = line.trim_end().rsplit(' ').next().unwrap();
    String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap()
}

fn trouble(step: Step) -> Trouble {
    match step {
        Step::Over(Over { decided, trouble }) => {
            assert_eq!(decided, []);
            assert!(trouble.failure.status.starts_with("4."), "{trouble:?}");
            trouble
        }
        other => panic!("{other:?}"),
    }
}

fn fault(step: Step) -> (LoginFault, String) {
    let trouble = trouble(step);
    assert_eq!(trouble.stage, Stage::Login);
    assert!(!trouble.clear_may_help);
    (trouble.login.unwrap(), trouble.failure.status)
}

#[test]
fn every_mechanism_to_its_good_end() {
    let (mut client, step) = greeted(password(), "AUTH LOGIN PLAIN");
    assert_eq!(message(&step), "\0user\0pencil");
    assert_eq!(client.reply(reply(235, &["2.7.0 welcome"])), Step::Ready);
    assert_eq!(sent(&client.begin(mail(1))), "MAIL FROM:<>\r\n");

    let (mut client, step) = greeted(password(), "AUTH LOGIN");
    assert_eq!(sent(&step), "AUTH LOGIN\r\n");
    assert_eq!(message(&challenge(&mut client, "Username:")), "user");
    assert_eq!(message(&challenge(&mut client, "Password:")), "pencil");
    assert_eq!(client.reply(reply(235, &[""])), Step::Ready);

    let (mut client, step) = greeted(password(), "AUTH PLAIN CRAM-MD5");
    assert_eq!(sent(&step), "AUTH CRAM-MD5\r\n");
    assert!(message(&challenge(&mut client, "<1@far.test>")).starts_with("user "));
    assert_eq!(client.reply(reply(235, &["ok"])), Step::Ready);

    let (mut client, step) = greeted(password(), "AUTH PLAIN SCRAM-SHA-1 SCRAM-SHA-256");
    assert!(sent(&step).starts_with("AUTH SCRAM-SHA-256 "));
    let first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    let proof = message(&challenge(&mut client, first));
    assert!(proof.ends_with(",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="), "{proof}");
    let last = challenge(&mut client, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    assert_eq!(sent(&last), "\r\n");
    assert_eq!(client.reply(reply(235, &["ok"])), Step::Ready);

    let (mut client, step) = greeted(token(), "AUTH PLAIN XOAUTH2 OAUTHBEARER");
    let expected = format!("n,a=user,\x01host=smtp.far.test\x01port=587\x01auth=Bearer {TOKEN}\x01\x01");
    assert_eq!(message(&step), expected);
    assert_eq!(client.reply(reply(235, &["ok"])), Step::Ready);

    let (mut client, step) = greeted(token(), "AUTH PLAIN XOAUTH2");
    assert_eq!(message(&step), format!("user=user\x01auth=Bearer {TOKEN}\x01\x01"));
    assert_eq!(client.reply(reply(235, &["ok"])), Step::Ready);
}

#[test]
fn a_refused_login_is_trouble_of_the_host() {
    let table = [
        (535, "5.7.8 wrong", LoginFault::Refused, "4.7.8"),
        (535, "wrong", LoginFault::Refused, "4.7.8"),
        (535, "5.7.139 locked", LoginFault::Refused, "4.7.139"),
        (550, "5.7.30 basic authentication is not supported", LoginFault::Refused, "4.7.30"),
        (501, "5.5.2 what", LoginFault::Refused, "4.5.2"),
        (454, "4.7.0 later", LoginFault::Later, "4.7.0"),
        (454, "later", LoginFault::Later, "4.7.0"),
        (432, "4.7.12 change it", LoginFault::Later, "4.7.12"),
        (421, "4.3.2 bye", LoginFault::Later, "4.3.2"),
    ];
    for (code, text, expected, status) in table {
        let (mut client, _) = greeted(password(), "AUTH PLAIN");
        assert_eq!(fault(client.reply(reply(code, &[text]))), (expected, status.to_owned()), "{code} {text}");
    }
}

#[test]
fn no_reply_to_a_login_is_taken_for_another() {
    for mechanisms in ["AUTH SCRAM-SHA-256", "AUTH CRAM-MD5", "AUTH PLAIN", "AUTH LOGIN", "AUTH XOAUTH2"] {
        for code in 200..600 {
            let account = if mechanisms.ends_with("XOAUTH2") { token() } else { password() };
            let (mut client, _) = greeted(account, mechanisms);
            match client.reply(reply(code, &["AAAA"])) {
                Step::Ready => assert!(code == 235 && matches!(mechanisms, "AUTH PLAIN" | "AUTH XOAUTH2"), "{code}"),
                Step::Talk { secret, .. } => assert!(code == 334 && secret, "{code}"),
                over => assert_ne!(fault(over).1, ""),
            }
        }
    }
}

#[test]
fn scram_without_the_proof_of_the_server_is_no_login() {
    let (mut client, _) = greeted(password(), "AUTH SCRAM-SHA-256");
    let first = "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    assert!(message(&challenge(&mut client, first)).contains(",p="));
    assert_eq!(fault(client.reply(reply(235, &["2.7.0 welcome"]))).0, LoginFault::Broken);

    let (mut client, _) = greeted(password(), "AUTH SCRAM-SHA-256");
    challenge(&mut client, first);
    let last = challenge(&mut client, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    assert_eq!(fault(last), (LoginFault::Broken, "4.7.5".to_owned()));
}

#[test]
fn a_mechanism_that_is_not_taken_makes_room_for_the_next() {
    let (mut client, step) = greeted(password(), "AUTH PLAIN CRAM-MD5");
    assert_eq!(sent(&step), "AUTH CRAM-MD5\r\n");
    assert!(sent(&client.reply(reply(504, &["5.5.4 no"]))).starts_with("AUTH PLAIN "));
    assert_eq!(fault(client.reply(reply(534, &["5.7.9 too weak"]))), (LoginFault::Refused, "4.7.9".to_owned()));
    // A wrong password is not tried in another way: the account could get locked.
    let (mut client, _) = greeted(password(), "AUTH PLAIN CRAM-MD5");
    challenge(&mut client, "<1@far.test>");
    assert_eq!(fault(client.reply(reply(535, &["5.7.8 no"]))).0, LoginFault::Refused);
}

#[test]
fn a_token_that_is_not_good_is_explained() {
    for (mechanism, dummy) in [("OAUTHBEARER", "AQ==\r\n"), ("XOAUTH2", "\r\n")] {
        let (mut client, _) = greeted(token(), &format!("AUTH {mechanism}"));
        assert_eq!(sent(&challenge(&mut client, "{\"status\":\"invalid_token\"}")), dummy);
        let trouble = trouble(client.reply(reply(535, &["5.7.3 no"])));
        assert_eq!((trouble.login, trouble.failure.status.as_str()), (Some(LoginFault::Refused), "4.7.3"));
        assert!(trouble.failure.reason.contains("invalid_token"), "{}", trouble.failure.reason);
    }
}

#[test]
fn without_a_way_to_log_in_nothing_is_sent() {
    for (account, offered) in [(password(), "AUTH GSSAPI XOAUTH2"), (password(), "SIZE"), (token(), "AUTH PLAIN")] {
        assert_eq!(fault(greeted(account, offered).1), (LoginFault::NoMechanism, "4.7.4".to_owned()));
    }
    // HELO offers nothing.
    let mut client = client(Tls::Never, password());
    client.start();
    client.reply(reply(220, &["hi"]));
    client.reply(reply(502, &["what"]));
    assert_eq!(fault(client.reply(reply(250, &["hi"]))).0, LoginFault::NoMechanism);
    let unusable = account(Secret::Password(config::Secret("a\r\nb".into())));
    assert_eq!(fault(greeted(unusable, "AUTH PLAIN").1), (LoginFault::Unusable, "4.3.5".to_owned()));
}

fn in_clear(tls: Tls, account: Account, offered: &str) -> Step {
    let mut client = client(tls, account);
    client.start();
    client.reply(reply(220, &["hi"]));
    client.reply(reply(250, &["smtp.far.test", offered]))
}

#[test]
fn secrets_are_not_said_in_clear() {
    for tls in [Tls::Never, Tls::IfOffered] {
        for offered in ["AUTH PLAIN LOGIN", "AUTH LOGIN"] {
            assert_eq!(fault(in_clear(tls, password(), offered)), (LoginFault::NotPrivate, "4.7.11".to_owned()));
        }
        for offered in ["AUTH XOAUTH2", "AUTH OAUTHBEARER"] {
            assert_eq!(fault(in_clear(tls, token(), offered)).0, LoginFault::NotPrivate);
        }
        assert_eq!(sent(&in_clear(tls, password(), "AUTH PLAIN CRAM-MD5")), "AUTH CRAM-MD5\r\n");
    }
    let here = Account { may_show_secret: true, ..password() };
    assert!(sent(&in_clear(Tls::Never, here, "AUTH PLAIN")).starts_with("AUTH PLAIN "));
}

#[test]
fn tls_comes_before_the_login() {
    for tls in [Tls::IfOffered, Tls::Required] {
        let mut client = client(tls, password());
        client.start();
        client.reply(reply(220, &["hi"]));
        let step = client.reply(reply(250, &["smtp.far.test", "AUTH CRAM-MD5 PLAIN", "STARTTLS"]));
        assert_eq!(sent(&step), "STARTTLS\r\n");
        assert_eq!(client.reply(reply(220, &["go"])), Step::StartTls);
        assert_eq!(sent(&client.secured("TLSv1.3".into())), "EHLO own.test\r\n");
        // What was offered in clear is forgotten.
        assert!(sent(&client.reply(reply(250, &["smtp.far.test", "AUTH PLAIN"]))).starts_with("AUTH PLAIN "));
    }
    let trouble = trouble(in_clear(Tls::Required, password(), "AUTH PLAIN"));
    assert_eq!((trouble.stage, trouble.login), (Stage::Tls, None));
    assert!(!trouble.failure.reason.contains("delivery.tls.policy"), "{}", trouble.failure.reason);
}

#[test]
fn implicit_tls_never_falls_back() {
    let mut client = client(Tls::Implicit, password());
    assert_eq!(client.start(), Step::StartTls);
    let trouble = client.handshake_failed("bad certificate");
    assert_eq!((trouble.stage, trouble.clear_may_help), (Stage::Tls, false));
    assert_eq!(trouble.failure.status, "4.7.5");
}

#[test]
fn a_connection_lost_in_the_login_is_trouble_there() {
    let (mut client, _) = greeted(password(), "AUTH PLAIN");
    let over = client.lost(Loss::Closed);
    assert_eq!((over.trouble.stage, over.trouble.login), (Stage::Login, None));
    assert_eq!(over.trouble.failure.status, "4.4.2");
}

#[test]
fn a_server_that_wants_a_login_later_says_nothing_about_the_mail() {
    let wants =
        [(530, "5.7.0 authentication required"), (550, "5.7.30 no"), (535, "no"), (530, "5.7.57 not logged in")];
    for (code, text) in wants {
        for pipelining in ["PIPELINING", "SIZE"] {
            // At MAIL, at RCPT, at DATA, after the dot.
            for earlier in 0..4 {
                let nobody = Account { login: None, ..password() };
                let mut client = client(Tls::Never, nobody);
                client.start();
                client.reply(reply(220, &["hi"]));
                assert_eq!(client.reply(reply(250, &["smtp.far.test", pipelining])), Step::Ready);
                client.begin(mail(1));
                for code in [250, 250, 354].into_iter().take(earlier) {
                    client.reply(reply(code, &["ok"]));
                }
                if earlier == 3 {
                    client.end_content(b".\r\n".to_vec());
                }
                assert_eq!(fault(client.reply(reply(code, &[text]))).0, LoginFault::Refused, "{code} {earlier}");
            }
        }
    }
    // A mail exchanger that says so means the mail; see also its other tests.
    let own = Domain::parse("own.test").unwrap();
    let mut client = Client::new("mx".into(), own, Tls::IfOffered, Timeouts::RFC5321);
    client.start();
    client.reply(reply(220, &["hi"]));
    client.reply(reply(250, &["mx"]));
    client.begin(mail(1));
    assert!(matches!(done(client.reply(reply(550, &["5.7.30 no"])))[..], [(0, Outcome::Fail(_))]));
}

#[test]
fn no_text_and_no_debug_shows_a_secret() {
    let (mut client, step) = greeted(password(), "AUTH PLAIN");
    let line = sent(&step);
    let encoded = line.trim_end().rsplit(' ').next().unwrap().to_owned();
    let mut shown = vec![format!("{step:?}"), format!("{client:?}")];
    let over = client.reply(reply(500, &[&format!("5.5.1 unknown command: {encoded}")]));
    shown.push(format!("{over:?}"));
    let (mut client, _) = greeted(password(), "AUTH PLAIN");
    shown.push(format!("{:?}", client.reply(reply(535, &["user/pencil is wrong"]))));
    let (client, step) = greeted(token(), "AUTH XOAUTH2");
    shown.extend([format!("{step:?}"), format!("{client:?}")]);
    for text in shown {
        assert!(!text.contains(PASSWORD) && !text.contains(TOKEN) && !text.contains(&encoded), "{text}");
    }
}
