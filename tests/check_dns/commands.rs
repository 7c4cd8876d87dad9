//! The commands, for people and for programs.

use std::path::Path;
use std::process::{Output, Stdio};

use super::place::{Place, good, objects, with_keys};
use super::remote::Remotes;
use super::zone::Zone;

async fn postrider(place: &Place, arguments: &[&str]) -> Output {
    use std::os::unix::fs::PermissionsExt;
    // Who is asked about the clock.
    let programs = place.folder.path().join("programs");
    std::fs::create_dir_all(&programs).unwrap();
    let path = programs.join("timedatectl");
    std::fs::write(&path, "#!/bin/sh\necho yes\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
    let search = format!("{}:/usr/bin:/bin", programs.display());
    command.args(arguments).arg("--config").arg(place.file()).env("PATH", search).stdin(Stdio::null());
    command.output().await.unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

async fn good_place(port: u16) -> Place {
    let more = format!("source_addresses = [\"127.0.0.1\", \"192.0.2.1\"]\nmx_port = {port}\n");
    let zone = good().a("mail.my.test", "192.0.2.1").ptr("192.0.2.1", "mail.my.test");
    let place = Place::new(zone.clone(), &more).await;
    place.zone.replace(with_keys(zone, &place.signer()));
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_world_ends_with_0_and_every_finding_is_a_line() {
    let script = "S: 220 mx.far.test ESMTP\nC: QUIT\ngone\n";
    let remotes = Remotes::play(&[&format!("{script}---\n{script}")]).await;
    let place = good_place(remotes.port).await;
    let output = postrider(&place, &["check", "--dns"]).await;
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    for line in [
        "ok       MX            my.test: 10 mail.my.test",
        "ok       SPF           my.test: 127.0.0.1 gets \"pass\"; 192.0.2.1 gets \"pass\"",
        "ok       DKIM          pr-ed._domainkey.my.test: the record has the key that signs",
        "ok       PTR           192.0.2.1: mail.my.test, which leads back, and is what this server greets with",
        "ok       clock         this machine: kept by NTP, says timedatectl",
        "ok       TLSRPT        my.test: reports go to tls@my.test",
    ] {
        assert!(said.lines().any(|said| said == line), "{line}\n{said}");
    }
    assert!(said.lines().any(|line| line.starts_with("ok       port 25 out")), "{said}");
    assert!(said.lines().last().unwrap().starts_with("0 problems, "), "{said}");
    let output = postrider(&place, &["check", "--dns", "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let all = objects(&output.stdout);
    let checks: Vec<&str> = all.iter().map(|one| one["check"].as_str().unwrap()).collect();
    for check in [
        "configuration",
        "resolver",
        "dnssec",
        "clock",
        "disk",
        "certificate",
        "host",
        "source",
        "ptr",
        "port25",
        "mx",
        "spf",
        "dkim",
        "dmarc",
        "mta_sts",
        "tls_rpt",
    ] {
        assert!(checks.contains(&check), "{check}: {checks:?}");
    }
    assert!(all.iter().all(|one| one["level"] != "problem"), "{all:?}");
    remotes.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_ends_with_1_and_says_what_to_publish_and_why() {
    let place = Place::new(Zone::new().a("my.test", "127.0.0.1"), "source_addresses = [\"192.0.2.1\"]\n").await;
    let output = postrider(&place, &["check", "--dns"]).await;
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for line in [
        "problem  SPF           my.test: there is no record",
        "         publish: my.test. IN TXT \"v=spf1 mx a:mail.my.test -all\"",
        "         publish: my.test. IN MX 10 mail.my.test.",
        "         publish: 1.2.0.192.in-addr.arpa. IN PTR mail.my.test.",
        "         publish: mail.my.test. IN A 192.0.2.1",
        "         Without it mail for the domain goes elsewhere, or back to its sender.",
        "note     DKIM          my.test: not looked at: there are no keys that can be read",
    ] {
        assert!(said.lines().any(|said| said == line), "{line}\n{said}");
    }
    assert!(!Path::new(&place.folder.path().join("dkim")).exists(), "a look makes no keys");
    let all = objects(&postrider(&place, &["check", "--dns", "--json"]).await.stdout);
    let mx = all.iter().find(|one| one["check"] == "mx").unwrap();
    assert_eq!(mx["level"], "problem");
    assert_eq!(mx["publish"], serde_json::json!([{"name": "my.test", "type": "MX", "value": "10 mail.my.test."}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_read_is_a_finding_beside_the_others() {
    let place = Place::new(good(), "source_addresses = [\"127.0.0.1\"]\n").await;
    place.signer();
    std::fs::write(place.folder.path().join("dkim/my.test/pr-rsa.pem"), "nonsense").unwrap();
    let all = objects(&postrider(&place, &["check", "--dns", "--json"]).await.stdout);
    let level = |check: &str, of: &str| {
        all.iter().find(|one| one["check"] == check && one["of"] == of).map(|one| &one["level"])
    };
    assert_eq!(level("dkim", "keys"), Some(&"problem".into()), "{all:?}");
    assert_eq!(level("mx", "my.test"), Some(&"ok".into()), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_does_not_load_ends_with_2() {
    let place = Place::new(Zone::new(), "nonsense = 1\n").await;
    for arguments in [&["check", "--dns"][..], &["check", "--dns", "--json"], &["dns", "my.test"]] {
        let output = postrider(&place, arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("nonsense"), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_marks_what_is_there_and_its_lines_can_be_put_into_a_zone() {
    let zone = Zone::new()
        .mx("my.test", 10, "mail.my.test")
        .a("mail.my.test", "127.0.0.1")
        .txt("my.test", "v=spf1 a:x.test ~all");
    let place = Place::new(zone, "source_addresses = [\"127.0.0.1\"]\n").await;
    let output = postrider(&place, &["dns", "my.test"]).await;
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for line in [
        "; mail comes in here (it is there)",
        "my.test. IN MX 10 mail.my.test.",
        "; SPF: only this server sends for the domain (DIFFERS: \"v=spf1 a:x.test ~all\": 127.0.0.1 gets \"softfail\")",
        "my.test. IN TXT \"v=spf1 ip4:127.0.0.1 a:x.test ~all\"",
        "; DKIM (MISSING)",
        ";   version: STSv1",
    ] {
        assert!(said.lines().any(|said| said == line), "{line}\n{said}");
    }
    let is_record = |line: &str| ["MX", "TXT"].iter().any(|kind| line.contains(&format!(". IN {kind} ")));
    assert!(said.lines().all(|line| line.starts_with(';') || is_record(line)), "{said}");
    assert!(said.lines().last().unwrap().starts_with("; 1 there, 6 missing, 1 different"), "{said}");

    // A stricter record that is there is not to be replaced by ours.
    place.zone.replace(good());
    let said = text(&postrider(&place, &["dns", "my.test"]).await.stdout);
    assert!(said.contains("\n_dmarc.my.test. IN TXT \"v=DMARC1; p=reject; rua=mailto:dmarc@my.test\"\n"), "{said}");
    assert!(said.contains("\n_smtp._tls.my.test. IN TXT \"v=TLSRPTv1; rua=mailto:tls@my.test\"\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_says_to_programs_which_records_are_there() {
    let zone = Zone::new()
        .mx("my.test", 10, "mail.my.test")
        .a("mail.my.test", "127.0.0.1")
        .txt("my.test", "v=spf1 a:x.test ~all");
    let place = Place::new(zone, "source_addresses = [\"127.0.0.1\"]\n").await;
    let all = objects(&postrider(&place, &["dns", "my.test", "--json"]).await.stdout);
    let marks: Vec<(&str, &str)> =
        all.iter().map(|one| (one["name"].as_str().unwrap(), one["published"].as_str().unwrap())).collect();
    let wanted = [
        ("my.test", "there"),
        ("my.test", "differs"),
        ("mail.my.test", "missing"),
        ("pr-rsa._domainkey.my.test", "missing"),
        ("pr-ed._domainkey.my.test", "missing"),
        ("_dmarc.my.test", "missing"),
        ("_mta-sts.my.test", "missing"),
        ("_smtp._tls.my.test", "missing"),
    ];
    assert_eq!(marks, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_prints_the_records_also_where_nobody_can_say_what_is_there() {
    let (place, socket) = Place::deaf("").await;
    let output = postrider(&place, &["dns", "my.test", "--offline"]).await;
    assert_eq!(output.status.code(), Some(0));
    let mut packet = [0; 512];
    assert!(socket.recv_from(&mut packet).is_err(), "DNS was asked");
    assert!(
        text(&output.stdout)
            .contains("; mail comes in here (not known whether it is there: DNS was not asked)\nmy.test. IN MX")
    );
    let output = postrider(&place, &["dns", "my.test", "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let all = objects(&output.stdout);
    assert!(all.len() == 8 && all.iter().all(|one| one["published"] == "unknown"), "{all:?}");
    assert!(all[0]["found"].as_str().unwrap().contains("name servers do not answer"), "{all:?}");
    assert!(socket.recv_from(&mut packet).is_ok(), "DNS was asked this time");
}
