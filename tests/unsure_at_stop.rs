//! A server that is made to stop at once while others have its mail and have not answered: what it writes down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod kept;
    pub mod served;
    pub mod zone;
}

use serde_json::Value;
use support::client::Client;
use support::kept::lines;
use support::served::Served;
use support::zone::Zone;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// Takes a message up to its end, and says nothing of it; gives the open connection.
async fn take_and_say_nothing(listener: &TcpListener) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(listener.accept().await.unwrap().0);
    stream.write_all(b"220 mx.far.test\r\n").await.unwrap();
    let (mut line, mut in_content) = (String::new(), false);
    loop {
        line.clear();
        assert!(stream.read_line(&mut line).await.unwrap() > 0, "it leaves too early");
        let answer: &[u8] = match line.trim_end() {
            "." if in_content => return stream,
            _ if in_content => continue,
            "DATA" => {
                in_content = true;
                b"354 go on\r\n"
            }
            _ => b"250 ok\r\n",
        };
        stream.write_all(answer).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_past_the_final_dot_is_unsure_in_the_story_after_the_second_signal() {
    let folder = tempfile::tempdir().unwrap();
    let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
    let conf = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"DATA_DIR\"\n[networks]\ntrusted = [\"127.0.0.0/8\"]\n\
         [listeners.local]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]\ntls = \"off\"\n\
         [queue]\nmin_free = \"1MiB\"\n[domains.\"home.test\"]\n[delivery]\nmx_port = {}\n\
         allow_private_addresses = true\n[dns]\nnameservers = [\"{}\"]\n",
        far.local_addr().unwrap().port(),
        zone.addr()
    );
    let server = Served::start(folder.path(), &conf, 1).await;
    let mut client = Client::connect(server.door("local")).await.unwrap();
    let letter = "From: me@home.test\r\nSubject: x\r\n\r\nhello\r\n";
    let reply = client.send("me@home.test", &["you@far.test"], letter).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    let mut held = take_and_say_nothing(&far).await;
    server.stop_at_once().await;
    let mut rest = String::new();
    assert_eq!(held.read_line(&mut rest).await.unwrap_or(0), 0, "nothing follows the message: {rest}");

    let server = Served::start(folder.path(), &conf, 1).await;
    let output = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(["log", "--json", "--config"])
        .arg(folder.path().join("postrider.toml"))
        .output()
        .await
        .unwrap();
    let told = lines(&String::from_utf8(output.stdout).unwrap());
    let unsure: Vec<&Value> = told.iter().filter(|line| line["event"] == "unsure").collect();
    assert_eq!(unsure.len(), 1, "{told:?}");
    assert_eq!(unsure[0]["recipient"], "you@far.test");
    let why = &unsure[0]["why"];
    assert!(why["unsure"] == true && why["reason"].as_str().unwrap().contains("may have arrived"), "{why}");
    server.stop_at_once().await;
}
