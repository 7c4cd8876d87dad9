//! The conversations of `tests/sessions`: on the bare session, whole and cut into reads of 1, 2 and 7
//! octets; and over TCP, with the whole server and TLS where they want it.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/bare.rs"]
mod bare;
#[path = "support/conversation.rs"]
mod conversation;
#[path = "support/tcp.rs"]
mod tcp;

use bare::Bare;
use conversation::Conversation;
// `tcp` takes its configuration from a file that names these as the library does.
use postrider::config;
use tcp::Tcp;

fn conversations() -> Vec<Conversation> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sessions");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        Conversation::parse(&name, &std::fs::read_to_string(path).unwrap()).unwrap_or_else(|fault| panic!("{fault}"))
    };
    files.iter().filter(|path| path.extension().is_some_and(|e| e == "smtp")).map(read).collect()
}

#[test]
fn every_conversation_goes_as_written() {
    let conversations = conversations();
    assert!(conversations.len() >= 15, "only {} conversations found", conversations.len());
    let mut faults = Vec::new();
    for conversation in &conversations {
        let reads: &[usize] = if conversation.setting.split { &[usize::MAX, 1, 2, 7] } else { &[usize::MAX] };
        for &read_bytes in reads {
            let mut server = Bare::new(&conversation.setting, read_bytes);
            if let Err(fault) = conversation.run(&mut server) {
                faults.push(format!("{fault} (reads of {read_bytes})"));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_conversation_goes_as_written_over_tcp() {
    let run = |conversation: &Conversation| conversation.run(&mut Tcp::new(&conversation.setting)).err();
    let faults: Vec<_> = conversations().iter().filter_map(run).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The engine itself: a conversation that goes otherwise is noticed.
#[test]
fn a_wrong_conversation_fails() {
    let head = "domain: example.test\nrecipient: ok@example.test\n\nS: 220\n";
    for wrong in [
        "C: NOOP\nS: 500",
        "C: NOOP\nS: 250 closes",
        "C: QUIT\nS: 221\nC: NOOP\nS: 250",
        "C: EHLO a\nS: 250\nS~ PIPELINEING",
        "C: EHLO a\nS: 250\nS! PIPELINING",
        "C: NOOP\nC: NOOP\nS: 250",
        "draft: from=<> to=<a@b>",
        "C: EHLO a\nS: 250\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<ok@example.test>\nS: 250\nC: BDAT 1 LAST\nC> \"x\"\nS: 250",
    ] {
        let conversation = Conversation::parse("wrong", &format!("{head}{wrong}\n")).unwrap();
        assert!(conversation.run(&mut Bare::new(&conversation.setting, usize::MAX)).is_err(), "{wrong}");
    }
    assert!(Conversation::parse("wrong", "\nX: what\n").is_err());
    assert!(conversation::fits("250-... 250 ...", "250-a 250-b 250 c") && !conversation::fits("25", "250 ok"));
    assert!(conversation::fits("5..", "550 5.1.1 no") && !conversation::fits("5..", "450 4.1.1 no"));
}
