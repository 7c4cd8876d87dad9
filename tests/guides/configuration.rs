//! Configurations in the guides pass `postrider check`, alone where they are whole, else as a part of the whole one above
//! them, or of a small one.

use std::path::Path;
use std::process::Command;

use rcgen::{KeyPair, PKCS_ED25519};

use crate::support::pages::{Block, pages, root};

/// What pieces are a part of where nothing whole stands above them.
const SMALL: &str = r#"hostname = "mail.example.com"
data_dir = "/var/lib/postrider"
[accounts.shop]
password = "pencil"
[domains."example.com"]
[targets.crm]
kind = "webhook"
url = "https://crm.example.com/hooks/mail"
[targets.inbox]
kind = "maildir"
path = "/var/mail/inbox"
"#;

fn is_whole(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("hostname"))
}

fn header(line: &str) -> Option<&str> {
    let line = line.split('#').next().unwrap().trim();
    line.starts_with('[').then_some(line)
}

/// `piece` in `whole`, in the place of the sections that both have.
fn joined(whole: &str, piece: &str) -> String {
    let taken: Vec<&str> = piece.lines().filter_map(header).collect();
    let mut kept = true;
    let mut text = String::new();
    for line in whole.lines() {
        if let Some(header) = header(line) {
            kept = !taken.contains(&header);
        }
        if kept {
            text.push_str(line);
            text.push('\n');
        }
    }
    text + piece
}

/// The files that it names are made below `folder`; gives the text that names those, and the variables it wants.
fn with_secrets(text: &str, folder: &Path) -> (String, Vec<String>) {
    let etc = format!("{}/", folder.display());
    let text = text.replace("/etc/postrider/", &etc);
    let pair = rcgen::generate_simple_self_signed(vec!["mail.example.com".to_owned()]).unwrap();
    for file in text.split('"').filter(|word| word.starts_with(&etc)) {
        let path = Path::new(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let content = match path.file_name().unwrap().to_str().unwrap() {
            "fullchain.pem" => pair.cert.pem(),
            "privkey.pem" => pair.signing_key.serialize_pem(),
            name if name.ends_with(".pem") => KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem(),
            _ => "0123456789abcdef0123456789abcdef\n".to_owned(),
        };
        std::fs::write(path, content).unwrap();
    }
    let variables = text.split("{ env = \"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
    (text, variables)
}

fn check(place: &str, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (text, variables) = with_secrets(text, folder.path());
    let file = folder.path().join("postrider.toml");
    std::fs::write(&file, &text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(["check", "--config"]).arg(&file);
    command.envs(variables.iter().map(|name| (name, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{place}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_configuration_in_the_guides_is_good() {
    let mut count = 0;
    for page in pages() {
        let mut whole = SMALL.to_owned();
        for Block { place, language, text, .. } in page.blocks() {
            if language != "toml" {
                continue;
            }
            count += 1;
            if is_whole(&text) {
                check(&place, &text);
                whole = text;
            } else {
                check(&place, &joined(&whole, &text));
            }
        }
    }
    assert!(count > 20, "{count} configurations were found");
}

/// The example that is meant for who opens the folder: each as it stands.
#[test]
fn every_example_is_good() {
    for entry in std::fs::read_dir(root().join("conf")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") && !path.ends_with("postrider.toml") {
            check(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Five lines send; with those that a test network asks for they are still a handful.
#[test]
fn what_a_newcomer_has_to_write_has_under_twelve_lines() {
    for page in pages() {
        if !matches!(page.name.as_str(), "README.md" | "docs/first-message.md") {
            continue;
        }
        for block in page.blocks() {
            let lines = block.text.lines().filter(|line| !line.trim().is_empty()).count();
            assert!(block.language != "toml" || lines < 12, "{}: {lines} lines", block.place);
        }
    }
}
