//! With Debian's Chromium in front, without a screen: `browse.js` drives it and looks at what it shows, with
//! axe-core for those who do not see it. `POSTRIDER_TEST_CHROMIUM` names the program, `POSTRIDER_TEST_NODE` a
//! folder with puppeteer-core and axe-core in it; without them nothing is shown, which is said loudly.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use postrider::admin::{Action, Backend, Filter, Pick, Selection};
use postrider::events::Event;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::house::{House, TOKEN};

/// Someone who wants to know who reads which mail.
async fn tracker() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, asked) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counting = asked.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counting.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, asked)
}

fn html(tracker: u16, script: &str) -> String {
    format!(
        "From: Shop <shop@home.test>\r\nTo: you@far.test\r\nSubject: An order\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/html\r\n\r\n<html lang=\"en\"><body><h1>Your order</h1>{script}\
         <img src=\"http://127.0.0.1:{tracker}/seen.png\" alt=\"\"><link rel=stylesheet href=\"http://127.0.0.1:{tracker}/x.css\">\
         <div style=\"background: url(http://127.0.0.1:{tracker}/y.png)\">Thanks.</div></body></html>\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_a_browser_reads_retries_suspends_and_is_kept_safe() {
    let (chromium, node) = (std::env::var_os("POSTRIDER_TEST_CHROMIUM"), std::env::var_os("POSTRIDER_TEST_NODE"));
    let (Some(chromium), Some(node)) = (chromium, node) else {
        eprintln!("SKIPPED: POSTRIDER_TEST_CHROMIUM or POSTRIDER_TEST_NODE is not set; no browser was used");
        return;
    };
    let house = House::new().await;
    let later = house.send("later@far.test", "Waits <b>for</b> its time").await;
    let never = house.send("never@far.test", "Never arrives").await;
    house.server.wait_for(later, |event| matches!(event, Event::Deferred { .. })).await;
    house.server.wait_for(never, |event| matches!(event, Event::Failed { .. })).await;
    // By hand later than everything that the browser does with it.
    let held = house.send("later@far.test", "Held by hand").await;
    house.server.wait_for(held, |event| matches!(event, Event::Deferred { .. })).await;
    let hold = Selection { pick: Pick::Ids(vec![held], Filter::default()), dry_run: false };
    assert_eq!(house.server.app.operator().change(Action::Hold, hold).await.unwrap().recipients, 1);
    house.far.later_has_come();

    let (port, asked) = tracker().await;
    let staging = House::with("default = \"capture\"").await;
    let mut captured = Vec::new();
    for script in ["", "<script>document.title = 'taken'; fetch('/suspend', {method: 'POST'})</script>"] {
        let id = staging.send_content("you@far.test", &html(port, script)).await;
        staging.server.wait_for(id, |event| matches!(event, Event::Captured { .. })).await;
        captured.push(id);
    }

    let wish = json!({
        "chromium": Path::new(&chromium),
        "origin": format!("http://{}", house.http),
        "staging": format!("http://{}", staging.http),
        "tracker": format!("http://127.0.0.1:{port}"),
        "token": TOKEN,
        "later": later,
        "never": never,
        "held": held,
        "captured": captured[0],
        "evil": captured[1],
        "shots": std::env::var("POSTRIDER_TEST_SHOTS").ok(),
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dashboard/browse.js");
    let output = Command::new("node")
        .arg(script)
        .env("NODE_PATH", Path::new(&node).join("node_modules"))
        .env("POSTRIDER_BROWSE", wish.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.trim_end().ends_with("all is well"), "{stdout}\n{stderr}");
    println!("{stdout}");

    assert_eq!(asked.load(Ordering::SeqCst), 0, "reading mail told somebody of it");
    house.server.wait_done(later).await;
    assert!(house.server.app.operator().readiness().await.unwrap().suspended.is_empty());
    assert!(staging.server.app.operator().readiness().await.unwrap().suspended.is_empty());
    house.server.stop().await;
    staging.server.stop().await;
}
