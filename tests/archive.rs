//! `[[archive]]`: a copy of what was sent, under safe names, in nobody's way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod support {
    pub mod courier;
    pub mod zone;
}

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use postrider::delivery::smtp::Timeouts;
use postrider::events::{Entry, Event};
use postrider::message::{Address, Envelope, MessageId, ReversePath};
use support::courier::Courier;
use support::zone::Zone;

fn settings(base: &Path, archives: &str) -> String {
    let out = base.display().to_string();
    format!("default = \"file\"\nfile_path = \"{out}/sent/{{id}}.eml\"\n{archives}").replace("OUT", &out)
}

/// Mail "leaves" into files, so that sending always works; the archives are `archives`, below `OUT`.
async fn courier(base: &Path, archives: &str) -> Courier {
    Courier::start(&settings(base, archives), 25, Zone::new(), Timeouts::RFC5321).await
}

async fn submit(courier: &Courier, subject: &str, to: &[&str]) -> MessageId {
    let to = to.iter().map(|to| Address::parse(to).unwrap());
    let envelope = Envelope::new(ReversePath::Address(Address::parse("a@own.test").unwrap()), to);
    courier.submit(envelope, &format!("From: a@own.test\r\nSubject: {subject}\r\n\r\nHello.\r\n")).await
}

fn archived(story: &[Entry]) -> Vec<PathBuf> {
    let path = |entry: &Entry| match &entry.event {
        Event::Archived { to, .. } => Some(PathBuf::from(to)),
        _ => None,
    };
    story.iter().filter_map(path).collect()
}

async fn done(courier: &Courier, id: MessageId) -> Vec<Entry> {
    courier.wait(id, |_| courier.queue.message(id).unwrap().is_none()).await;
    // What was looked at may be older than the end.
    courier.story(id)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_copy_a_message_or_a_recipient() {
    let base = tempfile::tempdir().unwrap();
    let archives = "[[archive]]\npath = \"OUT/each/{recipient_domain}/{recipient}.eml\"\nper = \"recipient\"\n\
                    [[archive]]\npath = \"OUT/all/{date}/{stream}-{subject}-{id}.eml\"\n";
    let courier = courier(base.path(), archives).await;
    // To three destinations, whose attempts end one by one.
    let id = submit(&courier, "a/b", &["one@far.test", "two@far.test", "three@near.test", "four@else.test"]).await;
    let story = done(&courier, id).await;
    let mut files = archived(&story);
    files.sort();
    let at = |name: &str| base.path().join(name);
    assert_eq!(
        files,
        [
            at(&format!("all/2027-01-15/transactional-a_b-{id}.eml")),
            at("each/else.test/four@else.test.eml"),
            at("each/far.test/one@far.test.eml"),
            at("each/far.test/two@far.test.eml"),
            at("each/near.test/three@near.test.eml"),
        ]
    );
    let sent = fs::read_to_string(at(&format!("sent/{id}.eml"))).unwrap();
    for file in files {
        let copy = fs::read_to_string(&file).unwrap();
        assert!(sent.ends_with(&copy) && copy.contains("Hello."), "{copy}");
        assert!(!file.with_file_name(format!(".{id}~0.part")).exists());
    }
    // What did not leave is not kept: the notice for our own mailbox, say.
    let own = submit(&courier, "x", &["a@own.test"]).await;
    assert!(archived(&done(&courier, own).await).is_empty());
    courier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_is_replaced_and_no_subject_leads_elsewhere() {
    let base = tempfile::tempdir().unwrap();
    let courier = courier(base.path(), "[[archive]]\npath = \"OUT/kept/{subject}.eml\"\n").await;
    let mut names = Vec::new();
    for subject in ["=?utf-8?Q?../../etc/pass=0Awd?=", "=?utf-8?Q?../../etc/pass=0Awd?=", "..", "CON", "CON"] {
        let id = submit(&courier, subject, &["one@far.test"]).await;
        let files = archived(&done(&courier, id).await);
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].parent().unwrap(), base.path().join("kept"));
        names.push(files[0].file_name().unwrap().to_str().unwrap().to_owned());
    }
    assert_eq!(names[1], names[0].replace(".eml", " (2).eml"));
    assert_eq!(names[3..], ["_CON.eml", "_CON (2).eml"]);
    courier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_archive_holds_nothing_up_and_is_tried_again() {
    let base = tempfile::tempdir().unwrap();
    let (kept, elsewhere) = (base.path().join("kept"), base.path().join("elsewhere"));
    fs::create_dir(&kept).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    // Somebody has put a link where a folder should be.
    symlink(&elsewhere, kept.join("far.test")).unwrap();
    let courier = courier(base.path(), "[[archive]]\npath = \"OUT/kept/{recipient_domain}/{id}.eml\"\n").await;
    let id = submit(&courier, "x", &["one@far.test"]).await;
    let failed = |story: &[Entry]| story.iter().any(|entry| matches!(entry.event, Event::NotArchived { .. }));
    let story = courier.wait(id, failed).await;
    assert!(story.iter().any(|entry| matches!(entry.event, Event::Delivered { .. })), "{story:#?}");
    assert!(
        story.iter().any(|entry| matches!(&entry.event, Event::NotArchived { why, next: Some(_), .. }
        if why.reason.contains("archive.path"))),
        "{story:#?}"
    );
    assert!(base.path().join(format!("sent/{id}.eml")).is_file());
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);

    fs::remove_file(kept.join("far.test")).unwrap();
    let due = courier.waiting(id)[0].1;
    courier.set_clock(due);
    let story = done(&courier, id).await;
    assert_eq!(archived(&story), [kept.join(format!("far.test/{id}.eml"))]);
    assert!(!story.iter().any(|entry| matches!(entry.event, Event::NoticeSent { .. })), "{story:#?}");
    courier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_cannot_be_written_is_given_up_and_no_sender_told() {
    let base = tempfile::tempdir().unwrap();
    let archives = "[delivery.retry]\nschedule = [\"1h\"]\nmax_attempts = 2\ndelay_notice = \"1s\"\n\
                    [[archive]]\npath = \"OUT/not-mounted/kept/{id}.eml\"\n";
    let courier = courier(base.path(), archives).await;
    let id = submit(&courier, "x", &["one@far.test"]).await;
    let failed = |story: &[Entry]| story.iter().any(|entry| matches!(entry.event, Event::NotArchived { .. }));
    courier.wait(id, failed).await;
    courier.set_clock(courier.waiting(id)[0].1);
    let story = done(&courier, id).await;
    let last = story.last().unwrap();
    assert!(matches!(last.event, Event::NotArchived { next: None, .. }), "{story:#?}");
    assert!(!story.iter().any(|entry| matches!(entry.event, Event::NoticeSent { .. })), "{story:#?}");
    courier.stop().await;
}

/// Between the delivery and the copy the server ends; and then the archive is taken out of the configuration.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_due_survives_a_restart() {
    let base = tempfile::tempdir().unwrap();
    let archive = "[[archive]]\npath = \"OUT/mounted-later/kept/{id}.eml\"\n";
    let first = courier(base.path(), archive).await;
    let failed = |story: &[Entry]| story.iter().any(|entry| matches!(entry.event, Event::NotArchived { .. }));
    let (one, two) = (submit(&first, "x", &["one@far.test"]).await, submit(&first, "y", &["two@far.test"]).await);
    for id in [one, two] {
        first.wait(id, failed).await;
    }
    let due = first.waiting(one)[0].1;
    let folder = first.stop().await;

    fs::create_dir(base.path().join("mounted-later")).unwrap();
    let settings_of_second = settings(base.path(), archive);
    let second = Courier::start_in(folder, &settings_of_second, 25, Zone::new(), Timeouts::RFC5321).await;
    assert_eq!(second.waiting(one).len(), 1);
    // The other one is due later.
    let later = second.waiting(two)[0].1;
    let (soon, id_soon, id_late) = if due < later { (due, one, two) } else { (later, two, one) };
    second.set_clock(soon);
    let story = done(&second, id_soon).await;
    assert_eq!(archived(&story), [base.path().join(format!("mounted-later/kept/{id_soon}.eml"))]);
    let sent = story.iter().filter(|entry| matches!(entry.event, Event::Delivered { .. })).count();
    assert_eq!(sent, 1, "{story:#?}");
    let folder = second.stop().await;

    let third = Courier::start_in(folder, &settings(base.path(), ""), 25, Zone::new(), Timeouts::RFC5321).await;
    third.set_clock(due.max(later));
    let story = done(&third, id_late).await;
    assert!(
        matches!(&story.last().unwrap().event, Event::NotArchived { why, next: None, .. }
        if why.reason.contains("not in the configuration")),
        "{story:#?}"
    );
    third.stop().await;
}
