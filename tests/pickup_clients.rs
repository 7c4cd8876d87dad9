//! What programs write into a pickup folder, as they write it: byte by byte the habits of .NET Framework and
//! .NET, CDO, MailKit, SmartSerialMail, Exchange's queue export, PowerShell and mail programs. Each has to give
//! the right envelope and body, and a blind copy leaves in no header.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use support::server::TestServer;
use support::sink::{Sink, Taken};
use support::zone::Zone;

/// What the body is for all that write dots: an ellipsis, a lone dot, two dots, and text.
const BODY: &str = "Dear customer,\r\n...\r\n.\r\n..two\r\n.hidden\r\nYours\r\n";

struct Case {
    name: &'static str,
    /// The folder it goes to.
    folder: &'static str,
    file: Vec<u8>,
    from: &'static str,
    to: Vec<&'static str>,
    body: String,
    /// Must be found in the header that arrives.
    kept: Vec<&'static str>,
}

fn stuffed(body: &str) -> String {
    body.split_inclusive("\r\n")
        .map(|line| if line.starts_with('.') { format!(".{line}") } else { line.into() })
        .collect()
}

/// System.Net.Mail: one X-Receiver for each To, Cc and Bcc, no Bcc field, header in the order of its
/// HeaderCollection.
fn dot_net(name: &str, body: &str) -> Vec<u8> {
    format!(
        "X-Sender: shop@home.test\r\nX-Receiver: to@far.test\r\nX-Receiver: =?utf-8?Q?J=C3=BCrgen?= <cc@far.test>\r\n\
         X-Receiver: blind@far.test\r\nMIME-Version: 1.0\r\nFrom: \"The Shop\" <shop@home.test>\r\nTo: to@far.test\r\n\
         Cc: =?utf-8?Q?J=C3=BCrgen?= <cc@far.test>\r\nDate: 21 Nov 2026 22:26:57 +0100\r\nSubject: {name}\r\n\
         Content-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n{body}\r\n\r\n"
    )
    .into_bytes()
}

fn everybody() -> Vec<&'static str> {
    vec!["blind@far.test", "cc@far.test", "to@far.test"]
}

fn with_blank_end() -> String {
    format!("{BODY}\r\n\r\n")
}

fn dot_nets() -> Vec<Case> {
    let case = |name, folder, file| Case {
        name,
        folder,
        file,
        from: "shop@home.test",
        to: everybody(),
        body: with_blank_end(),
        kept: vec!["From: \"The Shop\" <shop@home.test>", "Cc: =?utf-8?Q?J=C3=BCrgen?= <cc@far.test>"],
    };
    vec![
        // .NET Framework: SpecifiedPickupDirectory and PickupDirectoryFromIis; dots as in SMTP.
        case("net-framework", "auto", dot_net("net-framework", &stuffed(BODY))),
        case(
            "net-framework-iis",
            "iis",
            [dot_net("net-framework-iis", &stuffed(BODY)), b".\r\nnot sent\r\n".into()].concat(),
        ),
        // .NET Core 3 and later: no doubled dots.
        case("net-core", "auto", dot_net("net-core", BODY)),
    ]
}

/// CDO.Message with cdoSendUsingPickup.
fn cdo() -> Case {
    let file = format!(
        "x-sender: shop@home.test\r\nx-receiver: to@far.test\r\nx-receiver: blind@far.test\r\n\
         thread-index: AdxgYyhP\r\nThread-Topic: cdo\r\nFrom: <shop@home.test>\r\nTo: <to@far.test>\r\nSubject: cdo\r\n\
         Date: Sat, 21 Nov 2026 22:26:57 +0100\r\nMessage-ID: <000001dc6063$1f0a$0201a8c0@home.test>\r\n\
         MIME-Version: 1.0\r\nContent-Type: text/plain;\r\n\tcharset=\"us-ascii\"\r\nContent-Transfer-Encoding: 7bit\r\n\
         X-Mailer: Microsoft CDO for Windows 2000\r\nContent-Class: urn:content-classes:message\r\n\
         Importance: normal\r\nPriority: normal\r\nX-MimeOLE: Produced By Microsoft MimeOLE V10.0\r\n\r\n{}",
        stuffed(BODY)
    );
    Case {
        name: "cdo",
        folder: "auto",
        file: file.into_bytes(),
        from: "shop@home.test",
        to: vec!["blind@far.test", "to@far.test"],
        body: BODY.into(),
        kept: vec!["Message-ID: <000001dc6063$1f0a$0201a8c0@home.test>", "charset=\"us-ascii\""],
    }
}

/// The recipe of MailKit's FAQ: MimeMessage.WriteTo into a file named by a GUID; Bcc in the header.
fn mailkit() -> Case {
    let file = format!(
        "From: Shop <shop@home.test>\r\nDate: Sat, 21 Nov 2026 22:26:57 +0100\r\nSubject: mailkit\r\n\
         Message-Id: <CJ5K2W@home.test>\r\nTo: To <to@far.test>\r\nCc: cc@far.test\r\nBcc: blind@far.test\r\n\
         MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{BODY}"
    );
    Case {
        name: "mailkit",
        folder: "auto",
        file: file.into_bytes(),
        from: "shop@home.test",
        to: everybody(),
        body: BODY.into(),
        kept: vec!["Message-Id: <CJ5K2W@home.test>"],
    }
}

/// One file a recipient, with a byte order mark.
fn smart_serial_mail() -> Case {
    let text = "From: Shop <shop@home.test>\r\nTo: Jürgen <to@far.test>\r\nSubject: smart-serial-mail\r\n\
                X-Mailer: SmartSerialMail 7.1\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
                Content-Transfer-Encoding: 8bit\r\n\r\nGrüße\r\n..\r\n";
    Case {
        name: "smart-serial-mail",
        folder: "auto",
        file: [b"\xef\xbb\xbf", text.as_bytes()].concat(),
        from: "shop@home.test",
        to: vec!["to@far.test"],
        body: "Grüße\r\n..\r\n".into(),
        kept: vec!["To: =?utf-8?B?SsO8cmdlbg==?= <to@far.test>"],
    }
}

/// Export-Message of an Exchange queue: the envelope in front, the way so far behind it.
fn exchange_replay() -> Vec<Case> {
    let file = |name: &str| {
        format!(
            "X-Sender: <bounces@home.test> BODY=7bit RET=HDRS ENVID=q+2B1 auth=<>\r\n\
             X-Receiver: <to@far.test> NOTIFY=NEVER ORcpt=rfc822;to@far.test\r\n\
             X-Receiver: <blind@far.test>; X-ExtendedProps=MS-Exch=1\r\nX-CreatedBy: MSExchange14\r\n\
             X-HeloDomain: ex01.home.test\r\nX-ExtendedMessageProps:\r\n  Microsoft.Exchange.Transport.Id=1\r\n\
             X-Source: FromLocal\r\nX-SourceIPAddress: 10.0.0.7\r\nX-EndOfInjectedXHeaders: 1077\r\n\
             Received: from EX01.home.test (10.0.0.7) by EX01.home.test (10.0.0.7) with\r\n Microsoft SMTP Server id \
             15.1; Sat, 21 Nov 2026 22:26:57 +0100\r\nFrom: Shop <shop@home.test>\r\nTo: list@far.test\r\n\
             Bcc: never@far.test\r\nSubject: {name}\r\nMessage-ID: <1@ex01.home.test>\r\n\
             Date: Sat, 21 Nov 2026 22:26:57 +0100\r\nX-Receiver: stale@far.test\r\n\r\n..a body that nobody stuffed\r\n"
        )
        .into_bytes()
    };
    let case = |name, folder| Case {
        name,
        folder,
        file: file(name),
        from: "bounces@home.test",
        to: vec!["blind@far.test", "to@far.test"],
        // Every line with a dot has two: the old habit is seen where none was. `replay` says better.
        body: if folder == "replay" { "..a body that nobody stuffed\r\n" } else { ".a body that nobody stuffed\r\n" }
            .into(),
        kept: vec!["Received: from EX01.home.test", "To: list@far.test"],
    };
    vec![case("exchange-replay", "replay"), case("exchange-replay-auto", "auto")]
}

/// PowerShell's Out-File, or Notepad's Unicode: UTF-16LE with a byte order mark.
fn powershell() -> Case {
    let text = "From: shop@home.test\r\nTo: to@far.test\r\nSubject: powershell\r\n\r\nGrüße 😀\r\n.\r\n";
    let file = std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    Case {
        name: "powershell",
        folder: "auto",
        file,
        from: "shop@home.test",
        to: vec!["to@far.test"],
        body: "Grüße 😀\r\n.\r\n".into(),
        kept: vec!["Content-Type: text/plain; charset=utf-8"],
    }
}

/// Saved from a mail program: LF, its own marks, the way it came by, sent again in other hands.
fn saved() -> Case {
    let text = "X-Mozilla-Status: 0001\nX-Mozilla-Status2: 00800000\nReturn-Path: <x@elsewhere.test>\n\
                Received: from a.test by b.test; Sat, 21 Nov 2026 22:00:00 +0100\nX-Sender: php@elsewhere.test\n\
                From: shop@home.test\nSender: office@home.test\nTo: friends: to@far.test, cc@far.test;\nBCC: <blind@far.test>\n\
                Subject: saved\n\nHi\n.\n";
    Case {
        name: "saved",
        folder: "exchange",
        file: text.into(),
        from: "shop@home.test",
        to: everybody(),
        body: "Hi\r\n.\r\n".into(),
        kept: vec!["X-Sender: php@elsewhere.test", "Received: from a.test"],
    }
}

/// IIS takes Sender before From, and whoever has only blind recipients.
fn iis() -> Case {
    let text = "From: shop@home.test\r\nSender: office@home.test\r\nBcc: blind@far.test\r\nSubject: iis\r\n\r\n..a\r\n.b\r\n.\r\nc\r\n";
    Case {
        name: "iis",
        folder: "iis",
        file: text.into(),
        from: "office@home.test",
        to: vec!["blind@far.test"],
        body: ".a\r\nb\r\n".into(),
        kept: vec!["To: undisclosed-recipients:;"],
    }
}

fn cases() -> Vec<Case> {
    let mut cases = dot_nets();
    cases.extend([cdo(), mailkit(), smart_serial_mail(), powershell(), saved(), iis()]);
    cases.extend(exchange_replay());
    cases
}

const CONF: &str = r#"
[networks]
trusted = []
[accounts.shop]
password = "secret"
streams = ["bulk"]
[domains."home.test"]
[delivery]
mx_port = PORT
allow_private_addresses = true
[delivery.tls]
policy = "opportunistic"
[dns]
nameservers = ["ZONE"]
"#;

fn folders(base: &Path) -> String {
    let mut text = String::new();
    for format in ["auto", "exchange", "iis", "replay"] {
        let path = base.join(format);
        fs::create_dir(&path).unwrap();
        text += &format!(
            "[pickup.{format}]\npath = \"{}\"\naccount = \"shop\"\nformat = \"{format}\"\nsettle = \"1s\"\n",
            path.display()
        );
    }
    text
}

/// As each of them does it: in place, in pieces, and where .NET runs on Unix under a shared lock.
fn drop_file(base: &Path, case: &Case) {
    let mut file = File::create(base.join(case.folder).join(format!("{}.eml", case.name))).unwrap();
    file.try_lock_shared().unwrap();
    let half = case.file.len() / 2;
    file.write_all(&case.file[..half]).unwrap();
    file.flush().unwrap();
    file.write_all(&case.file[half..]).unwrap();
}

fn header_and_body(content: &[u8]) -> (String, String) {
    let text = String::from_utf8(content.to_vec()).unwrap();
    let (header, body) = text.split_once("\r\n\r\n").unwrap();
    (header.to_owned(), body.to_owned())
}

fn find<'t>(taken: &'t [Taken], name: &str) -> &'t Taken {
    let subject = format!("\r\nSubject: {name}\r\n");
    let found: Vec<_> =
        taken.iter().filter(|taken| String::from_utf8_lossy(&taken.content).contains(&subject)).collect();
    assert_eq!(found.len(), 1, "{name} arrived {} times", found.len());
    found[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_client_give_the_right_envelope_and_body_and_hide_blind_copies() {
    let base = tempfile::tempdir().unwrap();
    let sink = Sink::start().await;
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
    let conf = CONF.replace("PORT", &sink.address.port().to_string()).replace("ZONE", &zone.addr().to_string());
    let conf = conf + &folders(base.path());
    let server = TestServer::start(&base.path().join("data"), &conf).await;
    let cases = cases();
    for case in &cases {
        drop_file(base.path(), case);
    }
    sink.wait_for(cases.len()).await;
    for case in &cases {
        let arrived = sink.taken();
        let taken = find(&arrived, case.name);
        let (header, body) = header_and_body(&taken.content);
        assert_eq!(taken.mail_from, case.from, "{}", case.name);
        let mut to = taken.recipients.clone();
        to.sort();
        assert_eq!(to, case.to, "{}", case.name);
        assert_eq!(body, case.body, "{}", case.name);
        for kept in &case.kept {
            assert!(header.contains(kept), "{}: {kept} is not in\n{header}", case.name);
        }
        let lower = header.to_ascii_lowercase();
        // Who is the only one may read its own address in Received.
        let told = if case.to.len() == 1 { lower.replace("for <blind@far.test>;", "") } else { lower.clone() };
        assert!(!told.contains("blind@") && !told.contains("\nbcc:"), "{}\n{header}", case.name);
        assert!(!lower.contains("x-createdby") && !lower.contains("x-postrider-stream"), "{}\n{header}", case.name);
        assert!(lower.contains("with pickup id") && lower.contains("\ndkim-signature:"), "{}\n{header}", case.name);
    }
    server.stop().await;
    for format in ["auto", "exchange", "iis", "replay"] {
        assert_eq!(fs::read_dir(base.path().join(format)).unwrap().count(), 0, "{format} is empty");
    }
}
