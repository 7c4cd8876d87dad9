//! DKIM keys on disk, and the records that `postrider dns` prints for them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

#[path = "support/plain.rs"]
mod plain;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use plain::domain;
use postrider::cli::dns;
use postrider::intake::sign::{SignError, Signer};

#[test]
fn missing_keys_are_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = plain::config(folder.path());
    let first = Signer::load(&config).unwrap().records(&domain(plain::DOMAIN));
    assert_eq!(Signer::load(&config).unwrap().records(&domain(plain::DOMAIN)), first);
    let names: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["pr-rsa._domainkey.own.test", "pr-ed._domainkey.own.test"]);
    assert!(first[0].1.starts_with("v=DKIM1; k=rsa; p=MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A"));
    assert!(first[1].1.starts_with("v=DKIM1; k=ed25519; p=") && first[1].1.len() == 22 + 44);
    let keys = folder.path().join("dkim/own.test");
    let mut files: Vec<String> =
        fs::read_dir(&keys).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["pr-ed.pem", "pr-rsa.pem"]);
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(keys.join("pr-rsa.pem")), 0o600);
    assert_eq!(mode(keys.clone()), 0o700);
    assert!(Signer::load(&config).unwrap().records(&domain("other.test")).is_empty());
}

#[test]
fn keys_from_elsewhere_are_used_and_others_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = plain::config(folder.path());
    let own = domain(plain::DOMAIN);
    Signer::load(&config).unwrap();
    let made = folder.path().join("dkim/own.test/pr-ed.pem");
    let elsewhere = folder.path().join("s1.pem");
    fs::copy(&made, &elsewhere).unwrap();
    let load = |config: &postrider::config::Config| Signer::load(config).map(|signer| signer.records(&own));

    // Beside the selectors, and in the place of one.
    let dkim = &mut config.domains.get_mut(&own).unwrap().dkim;
    dkim.key_files.insert("s1".to_owned(), elsewhere.clone());
    let records = load(&config).unwrap();
    assert_eq!(records.len(), 3);
    assert_eq!((records[2].0.as_str(), &records[2].1), ("s1._domainkey.own.test", &records[1].1));
    let dkim = &mut config.domains.get_mut(&own).unwrap().dkim;
    dkim.key_files.insert("pr-rsa".to_owned(), elsewhere.clone());
    assert_eq!(load(&config).unwrap()[0].1, records[1].1);

    fs::write(&elsewhere, "not a key").unwrap();
    let error = load(&config).unwrap_err();
    assert!(matches!(&error, SignError::BadKey { path, .. } if *path == elsewhere), "{error}");
    fs::remove_file(&elsewhere).unwrap();
    assert!(matches!(load(&config), Err(SignError::Read { .. })));

    let mut config = plain::config(folder.path());
    for (selector, fits) in
        [("next-rsa", true), ("next-ed", true), ("next", false), ("../x-rsa", false), ("a b", false)]
    {
        let dkim = &mut config.domains.get_mut(&own).unwrap().dkim;
        dkim.selectors = vec!["pr-rsa".to_owned(), "pr-ed".to_owned(), selector.to_owned()];
        assert_eq!(load(&config).is_ok(), fits, "{selector}");
    }
}

/// The text of a configuration with this below the domain's `[….dkim]`.
fn with_dkim(folder: &std::path::Path, lines: &str) -> postrider::config::Config {
    let text =
        format!("hostname = \"mail.own.test\"\ndata_dir = {folder:?}\n[domains.\"{}\".dkim]\n{lines}", plain::DOMAIN);
    postrider::config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn the_key_of_a_selector_that_is_named_may_lie_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let own = domain(plain::DOMAIN);
    let first = Signer::load(&plain::config(folder.path())).unwrap().records(&own);
    let elsewhere = folder.path().join("s1.pem");
    fs::rename(folder.path().join("dkim/own.test/pr-rsa.pem"), &elsewhere).unwrap();
    fs::remove_dir_all(folder.path().join("dkim")).unwrap();
    let file = format!("key_files = {{ \"s1\" = {elsewhere:?} }}\n");
    let records = |lines: &str| {
        let config = with_dkim(folder.path(), lines);
        let signer = Signer::load(&config).unwrap();
        let signed = signer.sign(&own, b"From: a@own.test\r\n\r\nx\r\n").unwrap();
        let names: Vec<String> = signed.into_iter().map(|signature| signature.name).collect();
        let records = signer.records(&own);
        assert_eq!(names, records.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
        assert_eq!(records[0], ("s1._domainkey.own.test".to_owned(), first[0].1.clone()));
        names
    };
    assert_eq!(records(&format!("selectors = [\"s1\"]\n{file}")), ["s1._domainkey.own.test"]);
    // As the guides had it.
    assert_eq!(records(&format!("selectors = []\n{file}")), ["s1._domainkey.own.test"]);
    // Who brings a key and names no others wants no others.
    assert_eq!(records(&file), ["s1._domainkey.own.test"]);
    assert!(!folder.path().join("dkim").exists(), "no key was made that nobody has asked for");
    let both = records(&format!("selectors = [\"s1\", \"s2-ed\"]\n{file}"));
    assert_eq!(both, ["s1._domainkey.own.test", "s2-ed._domainkey.own.test"]);
}

#[test]
fn a_key_is_made_as_its_name_says_else_by_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let own = domain(plain::DOMAIN);
    for (selectors, kinds) in [
        (["a", "b"], ["rsa", "ed25519"]),
        (["x-ed", "x-rsa"], ["ed25519", "rsa"]),
        (["y-rsa", "z-rsa"], ["rsa", "rsa"]),
    ] {
        let config = with_dkim(folder.path(), &format!("selectors = {selectors:?}\n"));
        let records = Signer::load(&config).unwrap().records(&own);
        for ((name, record), (selector, kind)) in records.iter().zip(selectors.iter().zip(kinds)) {
            assert_eq!(*name, format!("{selector}._domainkey.own.test"));
            assert!(record.starts_with(&format!("v=DKIM1; k={kind}; ")), "{name}: {record}");
        }
    }
}

#[test]
fn fields_that_matter_are_named_once_more_than_they_occur() {
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer::load(&plain::config(folder.path())).unwrap();
    let content = b"From: a@own.test\r\nTo: b@x.test\r\nTo: c@x.test\r\nSubject: x\r\n\r\nx\r\n";
    let field = String::from_utf8(signer.sign(&domain(plain::DOMAIN), content).unwrap().remove(0).field).unwrap();
    let field: String = field.split_whitespace().collect();
    let names = field.split(";h=").nth(1).unwrap().split(';').next().unwrap().to_ascii_lowercase();
    let count = |name: &str| names.split(':').filter(|found| *found == name).count();
    let expected =
        [("from", 2), ("to", 3), ("subject", 2), ("date", 1), ("reply-to", 1), ("cc", 1), ("list-unsubscribe", 1)];
    for (name, times) in expected {
        assert_eq!(count(name), times, "{name} in {names}");
    }
}

#[test]
fn what_cannot_be_signed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer::load(&plain::config(folder.path())).unwrap();
    let own = domain(plain::DOMAIN);
    assert!(matches!(signer.sign(&own, b"Subject: x\r\n\r\nx\r\n"), Err(SignError::NoFrom)));
    assert!(matches!(signer.sign(&domain("other.test"), b"From: a@b.test\r\n\r\n"), Err(SignError::NotOurs(_))));
    let signatures = signer.sign(&own, b"From: a@own.test\r\n\r\nx\r\n").unwrap();
    let names: Vec<&str> = signatures.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["pr-rsa._domainkey.own.test", "pr-ed._domainkey.own.test"]);
    for signature in signatures {
        assert!(signature.field.starts_with(b"DKIM-Signature: v=1; a=") && signature.field.ends_with(b";\r\n"));
    }
}

/// OpenSSL reads the keys we make, so a sysadmin can take them elsewhere; and we read those it makes.
#[test]
fn keys_are_exchanged_with_openssl() {
    let openssl = |args: &[&str]| Command::new("openssl").args(args).output();
    if !openssl(&["version"]).is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: openssl is not installed; no key was exchanged with it");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut config = plain::config(folder.path());
    Signer::load(&config).unwrap();
    for name in ["pr-rsa", "pr-ed"] {
        let path = folder.path().join(format!("dkim/own.test/{name}.pem"));
        assert!(openssl(&["pkey", "-noout", "-in", path.to_str().unwrap()]).unwrap().status.success(), "{name}");
    }
    let own = domain(plain::DOMAIN);
    for (name, args) in [
        ("pkcs1", &["genrsa", "-traditional", "-out"][..]),
        ("pkcs8", &["genpkey", "-algorithm", "rsa", "-out"]),
        ("ed", &["genpkey", "-algorithm", "ed25519", "-out"]),
    ] {
        let path = folder.path().join(format!("{name}.pem"));
        assert!(openssl(&[args, &[path.to_str().unwrap()]].concat()).unwrap().status.success());
        config.domains.get_mut(&own).unwrap().dkim.key_files.insert(name.to_owned(), path);
    }
    assert_eq!(Signer::load(&config).unwrap().records(&own).len(), 5);
}

#[test]
fn records_for_the_zone_file_and_for_programs() {
    let folder = tempfile::tempdir().unwrap();
    let config = plain::config(folder.path());
    let signer = Signer::load(&config).unwrap();
    let records = dns::records(&config, &signer, &domain(plain::DOMAIN));
    let zone = dns::zone_lines(&records);
    for line in [
        "own.test. IN MX 10 mail.own.test.",
        "own.test. IN TXT \"v=spf1 mx a:mail.own.test -all\"",
        "mail.own.test. IN TXT \"v=spf1 a -all\"",
        "_dmarc.own.test. IN TXT \"v=DMARC1; p=none; rua=mailto:postmaster@own.test\"",
        "_smtp._tls.own.test. IN TXT \"v=TLSRPTv1; rua=mailto:postmaster@own.test\"",
    ] {
        assert!(zone.lines().any(|l| l == line), "{line}\n{zone}");
    }
    let rsa = zone.lines().find(|line| line.starts_with("pr-rsa._domainkey")).unwrap();
    let strings: Vec<&str> = rsa.split('"').skip(1).step_by(2).collect();
    assert!(strings.len() == 2 && strings.iter().all(|string| string.len() <= 255));
    assert_eq!(strings.concat(), signer.records(&domain(plain::DOMAIN))[0].1);
    let json = dns::json_lines(&records);
    let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 8);
    assert_eq!(lines[0], serde_json::json!({"name": "own.test", "type": "MX", "value": "10 mail.own.test."}));
    assert_eq!(lines[3]["value"], strings.concat());
}
