//! The cases of configuration and state: what a server that runs is given, and what it is to start with.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use postrider::store::{Batch, FORMAT_VERSION, Store, StoreError, Table};

use crate::support::client::Client;
use crate::support::served::Served;
use crate::{SET, flow, pickup};

const CONF: &str = r#"
hostname = "mail.home.test"
data_dir = "DATA_DIR"
[listeners.mx]
role = "mx"
bind = ["127.0.0.1:0"]
[queue]
min_free = "1MiB"
[domains."home.test"]
"#;
/// As `pickup::AS_NOBODY`.
const AS_NOBODY: &str = "state::a_folder_that_is_not_ours_is_refused";

#[tokio::test(flavor = "multi_thread")]
async fn every_case_of_configuration_and_state_ends_as_its_rule_says() {
    let cases = flow::maps(&flow::below(SET, "config_and_state"));
    assert_eq!(cases.len(), 4);
    for case in cases {
        match flow::text(&case, "id").as_str() {
            "c01" => reloads().await,
            "c02" => folders(),
            "c03" => two_of_them().await,
            "c04" => later_format(),
            other => panic!("what is {other}?"),
        }
    }
}

/// Exit status, and all that was said.
async fn postrider(words: &[&str], file: &Path) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
    let output = command.args(words).arg("--config").arg(file).kill_on_drop(true).output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// `c01`: the old one stays, and why is said.
async fn reloads() {
    let folder = tempfile::tempdir().unwrap();
    let server = Served::start(folder.path(), CONF, 1).await;
    let door = server.door("mx");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let file = folder.path().join("postrider.toml");
    let good = fs::read_to_string(&file).unwrap();
    for (more, told) in [
        ("[domains.\"home.test\"".to_owned(), "postrider.toml:"),
        ("[tls]\ncertificate = \"/nowhere/c.pem\"\nkey = \"/nowhere/k.pem\"\n".to_owned(), "/nowhere/"),
        (format!("[listeners.more]\nrole = \"mx\"\nbind = [\"127.0.0.1:{port}\"]\n"), &port.to_string()),
    ] {
        fs::write(&file, format!("{good}{more}")).unwrap();
        let (status, said) = postrider(&["reload"], &file).await;
        assert!(status.is_some_and(|status| status != 0) && said.contains(told), "{more}: {status:?} {said}");
        let mut client = Client::connect(door).await.unwrap();
        assert!(client.say("NOOP").await.unwrap().starts_with("250"), "{more}");
    }
    fs::write(&file, good).unwrap();
    let (status, said) = postrider(&["reload"], &file).await;
    assert_eq!(status, Some(0), "{said}");
    server.stop_at_once().await;
}

/// `c02`: one that is missing is made and one that is open to others is closed, for that is what was meant; one that is
/// not ours to do that with is refused. (Full disks are in the tests of faults.)
fn folders() {
    let base = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let missing = base.path().join("missing/store");
    drop(Store::open(&missing).unwrap());
    assert_eq!(mode(&missing), 0o700);
    let open = base.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    drop(Store::open(&open).unwrap());
    assert_eq!(mode(&open), 0o700);
    let file = base.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(Store::open(&file).is_err());
    pickup::run_as_nobody(AS_NOBODY);
}

#[test]
#[ignore = "run by the case c02, as somebody who is not root"]
fn a_folder_that_is_not_ours_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let read_only = base.path().join("read-only");
    fs::create_dir(&read_only).unwrap();
    fs::set_permissions(&read_only, PermissionsExt::from_mode(0o500)).unwrap();
    // Root's, wherever this runs.
    for path in [read_only.as_path(), &read_only.join("store"), Path::new("/usr"), Path::new("/usr/store")] {
        let error = Store::open(path).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.len() > 20), "{}: {error:?}", path.display());
    }
}

/// `c03`: the second ends, and says why; the first goes on.
async fn two_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let server = Served::start(folder.path(), CONF, 1).await;
    let (status, said) = postrider(&["serve"], &folder.path().join("postrider.toml")).await;
    assert!(status.is_some_and(|status| status != 0) && said.contains("another postrider"), "{status:?} {said}");
    let mut client = Client::connect(server.door("mx")).await.unwrap();
    assert!(client.say("NOOP").await.unwrap().starts_with("250"));
    server.stop_at_once().await;
}

/// `c04`
fn later_format() {
    let folder = tempfile::tempdir().unwrap();
    {
        let store = Store::open(folder.path()).unwrap();
        let mut batch = Batch::new();
        batch.put(Table::Meta, *b"format", (FORMAT_VERSION + 1).to_be_bytes().to_vec());
        batch.put(Table::Meta, *b"zz-kept", b"as it was".to_vec());
        store.write(&[batch], true).unwrap();
    }
    for _ in 0..2 {
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found } if found == FORMAT_VERSION + 1), "{error}");
    }
}
