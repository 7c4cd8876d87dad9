//! `postrider demo --exit`, as a newcomer runs it: three doors, three stories, nothing left behind.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::process::{Command, Stdio};

#[test]
fn three_stories_are_delivered_and_nothing_is_left() {
    // Below /tmp, because the path of a socket is short.
    let temporary = tempfile::tempdir_in("/tmp").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    let output =
        command.args(["demo", "--exit"]).env("TMPDIR", temporary.path()).stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    assert_eq!(stdout.matches("\n  delivered\n").count(), 3, "{stdout}");
    assert!(stdout.ends_with("\n3 of 3 messages delivered.\n"), "{stdout}");

    // What a story has to tell: the door, the login, TLS, the signatures, and the way an alias leads.
    assert!(stdout.contains("accepted from demo over submission (TLSv1"), "{stdout}");
    assert!(stdout.contains("signed pr-rsa._domainkey.demo.test and pr-ed._domainkey.demo.test"), "{stdout}");
    assert!(stdout.contains("accepted from the pickup folder main as demo (file demo.eml)"), "{stdout}");
    assert!(stdout.contains("delivered for hello@demo.test to "), "{stdout}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "the demo's folder goes with it");
}
