//! Configurations that are not taken.

use postrider::admin::Backend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::house::{BASE, House, comes_in};

const ALIAS: &str = "[aliases]\n\"a@home.test\" = \"box\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_is_refused_with_file_line_and_remedy_and_nothing_changes() {
    let house = House::start(ALIAS).await;
    let listeners = house.app.listeners();
    let good = format!("{BASE}{ALIAS}");
    let last = good.lines().count() + 1;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let line = |start: &str| good.lines().position(|line| line.starts_with(start)).unwrap() + 1;
    let file = house.file.display().to_string();
    let crate_key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let made = rcgen::generate_simple_self_signed(vec!["mail.home.test".to_owned()]).unwrap();
    std::fs::write(house.path("other.key"), crate_key).unwrap();
    std::fs::write(house.path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::create_dir(house.path("drop")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(house.path("drop"), mode).unwrap();

    std::fs::write(house.path("s1.pem"), "junk\n").unwrap();

    let pair = "[tls]\ncertificate = \"DATA_DIR/cert.pem\"\nprivate_key = \"DATA_DIR/other.key\"\n";
    let cases: Vec<(String, String, &str)> = vec![
        (format!("{good}[limit]\n"), format!("{file}:{last}: limit: "), "limits"),
        (format!("{good}\"b@home.test\" = \"nowhere\"\n"), format!("{file}:{last}: aliases"), "nowhere"),
        (format!("{good}x = \n"), format!("{file}:{last}"), "."),
        (format!("{good}{pair}"), format!("{file}:{}: tls: ", last + 1), "does not belong to the first certificate"),
        (
            format!("{good}[domains.\"Other.test\".dkim]\nkey_files = {{ \"s1\" = \"DATA_DIR/s1.pem\" }}\n"),
            format!("{file}:{}: domains.\"other.test\".dkim.key_files.s1: ", last + 1),
            "is not a private key in PEM form",
        ),
        (
            format!("{good}[listeners.new]\nrole = \"mx\"\nbind = [\"127.0.0.1:{port}\"]\n"),
            format!("{file}:{}: listeners.new.bind: ", last + 2),
            "another program",
        ),
        (
            format!("{good}[admin]\nbind = \"127.0.0.1:{port}\"\ntoken = \"0123456789abcdef0123456789abcdef\"\n"),
            format!("{file}:{}: admin.bind: ", last + 1),
            "another program",
        ),
        (
            good.replace("DATA_DIR/data", "DATA_DIR/other"),
            format!("{file}:{}: data_dir: this cannot be changed while the server runs", line("data_dir")),
            "Restart the server",
        ),
        (
            good.replace("[queue]", "[queue]\nmemory = \"1GiB\""),
            format!("{file}:{}: queue.memory: this cannot be changed", line("[queue]") + 1),
            "Restart the server",
        ),
        (
            format!(
                "{good}[accounts.app]\npassword = \"x\"\n[pickup.drop]\npath = \"DATA_DIR/drop\"\naccount = \"app\"\n"
            ),
            format!("{file}:{}: pickup.drop.path: ", last + 3),
            "Nothing was changed",
        ),
    ];
    for (text, place, words) in cases {
        let problems = house.refuses_text(&text).await.join("\n");
        assert!(problems.contains(&place) && problems.contains(words), "wanted {place} … {words}, got {problems}");
        assert_eq!(house.app.listeners(), listeners);
        let id = comes_in(&house, "a@home.test").await;
        house.wait_done(id).await;
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_remembered_until_the_files_are_right_again() {
    let house = House::start(ALIAS).await;
    let operator = house.app.operator().clone();
    let configuration = async || operator.readiness().await.unwrap().configuration;
    assert_eq!(configuration().await.refused, None);
    house.refuses_text(&format!("{BASE}{ALIAS}[limit]\n")).await;
    let refused = configuration().await.refused.unwrap();
    assert_eq!(refused.problems.len(), 1);
    assert_eq!(refused.problems[0].key, "limit");
    let metrics = operator.metrics().await;
    assert!(metrics.contains("postrider_config_reloads_total{result=\"refused\"} 1"), "{metrics}");
    assert!(metrics.contains("postrider_config_refused 1"), "{metrics}");
    assert!(operator.readiness().await.unwrap().ready, "mail is taken all the same");
    house.write(&format!("{BASE}{ALIAS}"));
    house.reload().await;
    assert_eq!(configuration().await.refused, None);
    house.takes("[aliases]\n\"b@home.test\" = \"box\"\n").await;
    let metrics = operator.metrics().await;
    assert!(metrics.contains("postrider_config_reloads_total{result=\"applied\"} 1"), "{metrics}");
    drop(operator);
    house.stop().await;
}

/// Over the network `/readyz` is open to everybody.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_configuration_is_told_to_no_stranger() {
    let admin = "[admin]\nbind = \"127.0.0.1:0\"\ntoken = \"0123456789abcdef0123456789abcdef\"\n";
    let house = House::start(admin).await;
    house.refuses_text(&format!("{BASE}{admin}[accounts.app]\npassword_hash = \"pencil-case\"\n")).await;
    let operator = house.app.operator().clone();
    let problems = operator.readiness().await.unwrap().configuration.refused.unwrap().problems;
    assert_eq!(problems.len(), 1);
    let mut stream = tokio::net::TcpStream::connect(house.address("admin")).await.unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"refused\":{\"at\":"), "{answer}");
    assert!(answer.contains("\"problems\":[]") && !answer.contains("password_hash"), "{answer}");
    drop(operator);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_listener_that_cannot_be_opened_keeps_the_others_closed() {
    let house = House::start("").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text =
        format!("{BASE}[listeners.a]\nrole = \"mx\"\nbind = [\"{free}\", \"{}\"]\n", taken.local_addr().unwrap());
    house.refuses_text(&text).await;
    // Nothing listens there: it can be had.
    drop(std::net::TcpListener::bind(free).unwrap());
    drop(taken);
    house.write(&text);
    house.reload().await;
    assert_eq!(house.app.listeners().iter().filter(|open| open.name == "a").count(), 2);
    house.stop().await;
}
