//! The examples of the RFCs, and servers that do not keep to them.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn with_password(username: &str, password: &str) -> Login {
    Login { username: username.into(), secret: Secret::Password(config::Secret(password.into())) }
}

fn with_token(username: &str, token: &str) -> Login {
    Login { username: username.into(), secret: Secret::Token(config::Secret(token.into())) }
}

fn place(nonce: &str) -> Place<'_> {
    Place { host: "server.example.com", port: 587, nonce }
}

/// The message in an AUTH command.
fn initial(command: &str, mechanism: Mechanism) -> String {
    let encoded = command.strip_prefix(&format!("AUTH {} ", mechanism.name())).unwrap();
    text(encoded)
}

fn text(encoded: &str) -> String {
    String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap()
}

struct Scram {
    mechanism: Mechanism,
    nonce: &'static str,
    challenge: &'static str,
    proof: &'static str,
    signature: &'static str,
}

/// RFC 5802 5.
const SHA_1: Scram = Scram {
    mechanism: Mechanism::ScramSha1,
    nonce: "fyko+d2lbbFgONRv9qkxdawL",
    challenge: "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
    proof: "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
    signature: "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
};

/// RFC 7677 3.
const SHA_256: Scram = Scram {
    mechanism: Mechanism::ScramSha256,
    nonce: "rOprNGfwEbeRWgbNEkqO",
    challenge: "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
    proof: "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
    signature: "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
};

/// An exchange of the example that has shown its proof.
fn proven(example: &Scram, login: &Login) -> Exchange {
    let (mut exchange, command) = Exchange::start(example.mechanism, login, place(example.nonce));
    assert_eq!(initial(&command, example.mechanism), format!("n,,n=user,r={}", example.nonce));
    let answer = exchange.challenged(login, &STANDARD.encode(example.challenge)).unwrap();
    assert_eq!(text(&answer), example.proof);
    exchange
}

#[test]
fn scram_examples_of_rfc_5802_and_rfc_7677() {
    let login = with_password("user", "pencil");
    for example in [SHA_1, SHA_256] {
        let mut exchange = proven(&example, &login);
        assert_eq!(exchange.accepted(), Err(LoginFault::Broken), "the server has proved nothing yet");
        assert_eq!(exchange.challenged(&login, &STANDARD.encode(example.signature)).unwrap(), "");
        assert_eq!(exchange.accepted(), Ok(()));
        // And no more is said.
        assert_eq!(exchange.challenged(&login, ""), Err(LoginFault::Broken));
    }
}

#[test]
fn a_server_that_does_not_know_the_password_is_not_logged_in_to() {
    let login = with_password("user", "pencil");
    for signature in [
        "",
        "v=",
        "v=!",
        "e=other-error",
        "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=",
        "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95A==",
        SHA_1.signature,
    ] {
        let mut exchange = proven(&SHA_256, &login);
        let result = exchange.challenged(&login, &STANDARD.encode(signature));
        assert_eq!(result, Err(LoginFault::Broken), "{signature}");
    }
}

#[test]
fn scram_challenges_that_are_none() {
    let login = with_password("user", "pencil");
    let too_many = format!("r=ab,s=QSXCR+Q6sek8bf92,i={}", ITERATIONS_MAX + 1);
    for challenge in [
        "",
        "r=a,s=QSXCR+Q6sek8bf92,i=4096",
        "r=bc,s=QSXCR+Q6sek8bf92,i=4096",
        "r=ab,s=!,i=4096",
        "r=ab,s=QSXCR+Q6sek8bf92,i=0",
        "r=ab,s=QSXCR+Q6sek8bf92,i=-1",
        "r=ab,s=QSXCR+Q6sek8bf92,i=4294967296",
        "r=ab,s=QSXCR+Q6sek8bf92",
        "r=ab,i=4096,s=QSXCR+Q6sek8bf92",
        "m=x,r=ab,s=QSXCR+Q6sek8bf92,i=4096",
        &too_many,
    ] {
        let (mut exchange, _) = Exchange::start(Mechanism::ScramSha256, &login, place("a"));
        let result = exchange.challenged(&login, &STANDARD.encode(challenge));
        assert_eq!(result, Err(LoginFault::Broken), "{challenge}");
    }
    let (mut exchange, _) = Exchange::start(Mechanism::ScramSha256, &login, place("a"));
    assert_eq!(exchange.challenged(&login, "not base64"), Err(LoginFault::Broken));
}

#[test]
fn names_are_escaped_under_scram() {
    let login = with_password("a=b,c", "x");
    let (_, command) = Exchange::start(Mechanism::ScramSha1, &login, place("n"));
    assert_eq!(initial(&command, Mechanism::ScramSha1), "n,,n=a=3Db=2Cc,r=n");
}

/// RFC 2195 2.
#[test]
fn cram_md5_example() {
    let login = with_password("tim", "tanstaaftanstaaf");
    let (mut exchange, command) = Exchange::start(Mechanism::CramMd5, &login, place("n"));
    assert_eq!(command, "AUTH CRAM-MD5");
    assert_eq!(exchange.accepted(), Err(LoginFault::Broken));
    let challenge = "PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+";
    let answer = exchange.challenged(&login, challenge).unwrap();
    assert_eq!(answer, "dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw");
    assert_eq!(exchange.accepted(), Ok(()));
}

/// RFC 4616 4.
#[test]
fn plain_example() {
    let login = with_password("tim", "tanstaaftanstaaf");
    let (exchange, command) = Exchange::start(Mechanism::Plain, &login, place("n"));
    assert_eq!(command, "AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm");
    assert_eq!(exchange.accepted(), Ok(()));
}

#[test]
fn login_answers_in_order_whatever_the_prompts_say() {
    let login = with_password("tim", "secret");
    for prompts in [["VXNlcm5hbWU6", "UGFzc3dvcmQ6"], ["Username:", "Password:"], ["", ""]] {
        let (mut exchange, command) = Exchange::start(Mechanism::Login, &login, place("n"));
        assert_eq!(command, "AUTH LOGIN");
        assert_eq!(text(&exchange.challenged(&login, prompts[0]).unwrap()), "tim");
        assert_eq!(exchange.accepted(), Err(LoginFault::Broken), "it has not even asked for the password");
        assert_eq!(text(&exchange.challenged(&login, prompts[1]).unwrap()), "secret");
        assert_eq!(exchange.accepted(), Ok(()));
    }
}

/// RFC 7628 4.1 and 4.3.
#[test]
fn oauthbearer_example_and_its_error() {
    let login = with_token("user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==");
    let place = Place { port: 143, ..place("n") };
    let (mut exchange, command) = Exchange::start(Mechanism::OauthBearer, &login, place);
    assert_eq!(
        command,
        "AUTH OAUTHBEARER bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9QmVhcmVyI\
         HZGOWRmdDRxbVRjMk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
    );
    assert_eq!(exchange.accepted(), Ok(()));
    let error = "{\"status\":\"invalid_token\",\"schemes\":\"bearer mac\",\"scope\":\"https://mail.example.com/\"}";
    assert_eq!(exchange.challenged(&login, &STANDARD.encode(error)).unwrap(), "AQ==");
    assert_eq!(exchange.explanation(&login), Some(error));
    assert_eq!(exchange.accepted(), Err(LoginFault::Broken), "it has just said that the token is not good");
}

#[test]
fn xoauth2_and_its_error() {
    let login = with_token("a@own.test", "token");
    let (mut exchange, command) = Exchange::start(Mechanism::Xoauth2, &login, place("n"));
    assert_eq!(initial(&command, Mechanism::Xoauth2), "user=a@own.test\x01auth=Bearer token\x01\x01");
    assert_eq!(exchange.challenged(&login, &STANDARD.encode("{\"status\":\"401\"}\r\n")).unwrap(), "");
    assert_eq!(exchange.explanation(&login), Some("{\"status\":\"401\"}??"));
    let (mut exchange, _) = Exchange::start(Mechanism::Xoauth2, &login, place("n"));
    exchange.challenged(&login, &STANDARD.encode("bad: token")).unwrap();
    assert_eq!(exchange.explanation(&login), None, "it repeats the token");
}

#[test]
fn what_does_not_fit_into_the_command_waits_to_be_asked_for() {
    let overhead = "AUTH XOAUTH2 \r\n".len();
    let message = "user=a\x01auth=Bearer \x01\x01".len();
    let fits = (AUTH_LINE_BYTES_MAX - overhead) / 4 * 3 - message;
    let login = with_token("a", &"t".repeat(fits));
    let (exchange, command) = Exchange::start(Mechanism::Xoauth2, &login, place("n"));
    assert!(command.len() + 2 <= AUTH_LINE_BYTES_MAX && command.len() > AUTH_LINE_BYTES_MAX - 8);
    assert_eq!(exchange.accepted(), Ok(()));
    let login = with_token("a", &"t".repeat(fits + 3));
    let (mut exchange, command) = Exchange::start(Mechanism::Xoauth2, &login, place("n"));
    assert_eq!(command, "AUTH XOAUTH2");
    assert_eq!(exchange.accepted(), Err(LoginFault::Broken));
    assert!(text(&exchange.challenged(&login, "").unwrap()).starts_with("user=a\x01auth=Bearer ttt"));
    assert_eq!(exchange.accepted(), Ok(()));
}

/// What is offered, what we have, whether nobody listens, and what is chosen then.
type Choice<'a> = (&'a [Mechanism], &'a Login, bool, Result<Mechanism, LoginFault>);

#[test]
fn the_strongest_that_may_be_used() {
    use Mechanism::*;
    let (password, token) = (with_password("a", "b"), with_token("a", "b"));
    let all = [Xoauth2, Login, Plain, OauthBearer, CramMd5, ScramSha1, ScramSha256];
    let table: [Choice<'_>; 14] = [
        (&all, &password, true, Ok(ScramSha256)),
        (&all, &password, false, Ok(ScramSha256)),
        (&all[..6], &password, true, Ok(ScramSha1)),
        (&all[..5], &password, true, Ok(CramMd5)),
        (&all[..5], &password, false, Ok(CramMd5)),
        (&all[..4], &password, true, Ok(Plain)),
        (&all[..4], &password, false, Err(LoginFault::NotPrivate)),
        (&all[..2], &password, true, Ok(Login)),
        (&all[..1], &password, true, Err(LoginFault::NoMechanism)),
        (&all, &token, true, Ok(OauthBearer)),
        (&all, &token, false, Err(LoginFault::NotPrivate)),
        (&all[..1], &token, true, Ok(Xoauth2)),
        (&[ScramSha256], &token, true, Err(LoginFault::NoMechanism)),
        (&[], &password, true, Err(LoginFault::NoMechanism)),
    ];
    for (offered, login, is_private, expected) in table {
        assert_eq!(choose(offered, login, is_private), expected, "{offered:?} {is_private}");
    }
    for (name, secret) in [("", "x"), ("a", ""), ("a\0b", "x"), ("a", "x\r\ny"), ("a", "\x01")] {
        for login in [with_password(name, secret), with_token(name, secret)] {
            assert_eq!(choose(&all, &login, true), Err(LoginFault::Unusable), "{name:?}");
        }
    }
}

#[test]
fn nothing_shows_the_secret() {
    let login = with_password("user", "pencil");
    let (mut exchange, command) = Exchange::start(Mechanism::Plain, &login, place("n"));
    let encoded = command.rsplit_once(' ').unwrap().1;
    for shown in [format!("{login:?}"), format!("{exchange:?}")] {
        assert!(!shown.contains("pencil") && !shown.contains(encoded), "{shown}");
    }
    assert!(exchange.is_repeated_in(&login, &format!("unknown command {encoded}")));
    assert!(exchange.is_repeated_in(&login, "wrong password: pencil"));
    assert!(!exchange.is_repeated_in(&login, "wrong password for user"));
    assert!(exchange.challenged(&login, "").is_err());
    let (mut exchange, _) = Exchange::start(Mechanism::Login, &login, place("n"));
    exchange.challenged(&login, "").unwrap();
    let password = exchange.challenged(&login, "").unwrap();
    assert!(exchange.is_repeated_in(&login, &format!("what is {password}?")));
}
