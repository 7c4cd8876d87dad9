//! The commands, one after the other, as a person would come to them.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use postrider::events::Event;

use crate::house::{House, Protocol};
use crate::remote::Remotes;

const TAKES: &str = "S: 220 relay.test ESMTP\nC: EHLO...\nS: 250-relay.test\nS: 250 SIZE 1000000\nC: MAIL...\nS: 250 ok\n\
                     C: RCPT...\nS: 250 ok\nC: RSET\nS: 250 ok\nC: QUIT\nS: 221 bye";

pub async fn all() -> String {
    let mut say = Protocol::default();
    without_a_server(&mut say);
    let remotes = Remotes::play(&[&[TAKES, TAKES].join("\n---\n")]).await;
    let house = House::new(remotes.port).await;
    queue(&mut say, &house).await;
    doors(&mut say, &house);
    say.title("smart-host");
    say.say(&house.config, "smart-host test relay --to you@far.test");
    say.say(&house.config, "smart-host test relay --json --to you@far.test");
    say.say(&house.config, "smart-host test rely");
    remotes.finish().await;
    store_while_it_runs(&mut say, &house);
    let House { server, config, folder, .. } = house;
    server.stop().await;
    store_of_a_stopped_server(&mut say, &config);
    drop(folder);
    say.finish()
}

fn write(folder: &Path, text: &str) -> PathBuf {
    let file = folder.join("postrider.toml");
    std::fs::write(&file, text.replace("DATA_DIR", folder.to_str().unwrap())).unwrap();
    file
}

fn without_a_server(say: &mut Protocol) {
    say.title("without a server");
    let folder = tempfile::tempdir().unwrap();
    let least = "hostname = \"mail.home.test\"\ndata_dir = \"DATA_DIR\"\n[domains.\"home.test\"]\n";
    let config = write(folder.path(), least);
    for words in [
        "check",
        "check --json",
        "check --explain-retry",
        "check --health",
        "dns home.test --offline",
        "dns home.test --offline --json",
        "dns other.test --offline",
        "dkim new home.test --selector own-ed",
        "dkim new home.test --selector other-ed --json",
        "dkim rotate home.test",
        "dkim rotate home.test --json",
        "account list",
        "account list --json",
        "queue list",
        "explain --from me@home.test --to you@far.test",
        "explain --from you@far.test --to nobody@home.test --json",
        "store check",
    ] {
        say.say(&config, words);
    }
    say.say_with(&config, "account hash", "s3cret\n");
    say.say_with(&config, "account hash --json", "s3cret\n");
    say.say_with(&config, "account hash", "");
    let wrong = write(folder.path(), "hostname = \"mail.home.test\"\ndata_dri = \"DATA_DIR\"\n");
    say.say(&wrong, "check");
    say.say(&wrong, "check --json");
    say.say(&wrong, "queue list");
}

async fn queue(say: &mut Protocol, house: &House) {
    say.title("queue");
    let config = &house.config;
    say.say(config, "queue list");
    let done = house.submit("app", "me@home.test", "you@far.test", "one").await;
    house.server.wait_done(done).await;
    let waits = house.submit("app", "me@home.test", "you@lost.test", "two").await;
    house.server.wait_for(waits, |event| matches!(event, Event::Deferred { .. })).await;
    let held = house.submit("kept", "me@home.test", "you@far.test", "three").await;
    let (waits, held) = (waits.to_string(), held.to_string());
    for words in [
        "queue list",
        "queue list --json",
        "queue list --status held --stream transactional",
        "queue list --stream bulk",
        "queue list --older 4",
        "log",
        "log one@home.test --failed",
        "log you@lost.test",
        "log you@lost.test --failed --json",
        "log --since yesterday",
        &format!("queue show {waits}"),
        &format!("queue show {waits} --json"),
        "queue show 0000000000077",
        "queue retry",
        "queue retry --domain lost.test --dry-run",
        "queue retry --domain lost.test --dry-run --json",
        "queue hold --from me@home.test --to lost.test",
        "queue hold --stream bulk --json",
        &format!("queue release {waits} --dry-run"),
        &format!("queue release {waits} --dry-run --json"),
        "queue export --all --to-dir ~/export --dry-run",
        "queue export --all --to-dir ~/export",
        &format!("queue export {held} {waits} --stream transactional --to-dir ~/again --json --domain far.test"),
        &format!("queue export {waits} --to-dir ~/once"),
        "queue import ~/export --dry-run",
        "queue import ~/export --dry-run --json",
        "queue import ~/again",
        "queue import ~/once --json",
        "queue import ~/nowhere",
    ] {
        say.say(config, words);
    }
    let others: Vec<String> = house
        .server
        .queue()
        .await
        .iter()
        .map(|listed| listed.id.to_string())
        .filter(|id| *id != waits && *id != held)
        .collect();
    assert_eq!(others.len(), 2);
    for words in [
        format!("queue cancel {}", others.join(" ")),
        "queue cancel --status captured --json".to_owned(),
        "send --from me@home.test --to box@home.test --subject four".to_owned(),
        "send --from me@home.test --to box@home.test --subject five --json".to_owned(),
        "send --from me@home.test --to nobody@home.test".to_owned(),
    ] {
        say.say(config, &words);
    }
    for listed in house.server.queue().await.iter().filter(|listed| listed.id.to_string() != waits) {
        if listed.id.to_string() != held {
            house.server.wait_done(listed.id).await;
        }
    }
    say.title("explain");
    for words in [
        format!("explain {held}"),
        format!("explain {held} --json"),
        format!("explain {done}"),
        "explain 0000000000077".to_owned(),
        "explain --from me@home.test --to you@far.test --account app".to_owned(),
        "explain --from me@home.test --to you@far.test --account app --json".to_owned(),
    ] {
        say.say(config, &words);
    }
}

fn doors(say: &mut Protocol, house: &House) {
    let config = &house.config;
    say.title("account");
    ["account list", "account list --json"].into_iter().for_each(|words| say.say(config, words));
    say.title("check --health");
    ["check --health", "check --health --json"].into_iter().for_each(|words| say.say(config, words));
    say.title("suspend, resume");
    for words in [
        "suspend --stream bulk",
        "suspend --json",
        "suspend --stream blk",
        "suspend",
        "resume --json",
        "resume --stream bulk",
        "resume --stream blk",
        "resume",
    ] {
        say.say(config, words);
    }
    say.title("suppress");
    for words in [
        "suppress list",
        "suppress add bob@far.test @gone.test",
        "suppress add carl@far.test --global --json",
        "suppress add nobody",
        "suppress list",
        "suppress list --json",
        "suppress explain bob@far.test",
        "suppress explain bob@far.test --json",
        "suppress export",
        "suppress export --json",
        "suppress remove bob@far.test",
        "suppress remove carl@far.test --json",
        "suppress remove dora@far.test",
    ] {
        say.say(config, words);
    }
    std::fs::write(house.folder.path().join("list.txt"), "dora@far.test\n@lost.test\n").unwrap();
    std::fs::write(house.folder.path().join("bad.txt"), "dora@far.test\nno address\n").unwrap();
    for words in [
        "suppress import ~/list.txt --dry-run",
        "suppress import ~/list.txt",
        "suppress import ~/list.txt --json",
        "suppress import ~/bad.txt",
    ] {
        say.say(config, words);
    }
    say.title("pickup");
    // Not settled for a long time, so that the server's own watch leaves them alone.
    let later = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    for (name, from) in [("a.eml", "me@home.test"), ("b.eml", "me@far.test")] {
        let made = house.folder.path().join(name);
        std::fs::write(&made, format!("From: <{from}>\r\nTo: <box@home.test>\r\nSubject: x\r\n\r\nhello\r\n")).unwrap();
        std::fs::File::options().write(true).open(&made).unwrap().set_modified(later).unwrap();
        std::fs::rename(&made, house.folder.path().join("drop").join(name)).unwrap();
    }
    for words in
        ["pickup check", "pickup check --json", "pickup once drop", "pickup once drop --json", "pickup once drip"]
    {
        say.say(config, words);
    }
}

fn store_while_it_runs(say: &mut Protocol, house: &House) {
    say.title("store, while the server runs");
    for words in [
        "store check",
        "store backup ~/backup",
        "store backup ~/backup",
        "store backup ~/other --json",
        "store compact",
        "store compact --json",
        "store restore ~/backup",
    ] {
        say.say(&house.config, words);
    }
}

fn store_of_a_stopped_server(say: &mut Protocol, config: &Path) {
    say.title("store, with the server stopped");
    for words in [
        "store check",
        "store check --json",
        "store compact",
        "store backup ~/third",
        "store restore ~/backup",
        "store restore ~/backup --force",
        "store restore ~/other --force --json",
        "queue export --to lost.test --to-dir ~/offline",
        "queue import ~/offline --json",
        "queue list",
    ] {
        say.say(config, words);
    }
}
