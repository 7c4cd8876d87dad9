//! The messages of each case: a few lines for each, and as large as is wanted.

/// Octets of the largest message that is made; what is to be larger is cut. POSTRIDER_BOMBS=full makes them as large as the
/// default `limits.max_size`, which takes minutes in a build for tests.
pub fn size_max() -> usize {
    let is_full = std::env::var("POSTRIDER_BOMBS").is_ok_and(|how| how == "full");
    (if is_full { 34 } else { 6 }) << 20
}

fn head(more: &str) -> String {
    format!("From: ann@known.test\r\nTo: x@home.test\r\nSubject: bomb\r\nMIME-Version: 1.0\r\n{more}")
}

pub fn with(fields: &str, body: &str) -> Vec<u8> {
    format!("{}\r\n{body}", head(fields)).into_bytes()
}

fn mixed(boundary: &str) -> String {
    format!("Content-Type: multipart/mixed; boundary={boundary}\r\n")
}

pub fn times(count: usize, mut make: impl FnMut(usize) -> String) -> String {
    let mut all = String::new();
    for number in 0..count {
        if all.len() > size_max() {
            break;
        }
        all += &make(number);
    }
    all
}

fn filled(piece: &str, octets: usize) -> String {
    piece.repeat(octets.min(size_max()) / piece.len())
}

/// The messages of a case of this size.
pub fn make(id: &str, n: usize) -> Vec<Vec<u8>> {
    match id {
        "b01" => {
            let levels = times(n, |level| format!("{}\r\n--b{level}\r\n", mixed(&format!("b{level}"))));
            // Each of these might be a boundary of any of the levels.
            let nearly = filled("--\r\n", size_max().saturating_sub(levels.len()));
            let nested = head("") + &levels;
            vec![(nested.clone() + &nearly).into_bytes(), nested.into_bytes()]
        }
        "b02" => {
            vec![[head("").as_bytes(), times(n, |_| "Content-Type: message/rfc822\r\n\r\n".into()).as_bytes()].concat()]
        }
        "b03" => vec![with(&mixed("b"), &times(n, |_| "--b\r\n\r\n\r\n".into()))],
        "b04" => boundaries(),
        "b05" => vec![with(&times(n, |number| format!("X-{number}: y\r\n")), "x\r\n")],
        "b06" => vec![with(&format!("X: {}\r\n", filled("y", n)), "x\r\n")],
        "b07" => vec![with(&format!("X: y\r\n{}", times(n, |_| " z\r\n".into())), "x\r\n")],
        "b08" => {
            vec![with(&format!("Cc: {}z@b.test\r\n", times(n, |number| format!("a{number}@b.test,\r\n "))), "x\r\n")]
        }
        "b09" => [("a:", ";"), ("(", ")"), ("\"\\\"", "\"")]
            .iter()
            .flat_map(|(open, close)| {
                let nested = format!("{}x@y.test{}", filled(open, n * open.len()), filled(close, n * close.len()));
                ["Reply-To", "Cc"].map(|name| with(&format!("{name}: {nested}\r\n"), "x\r\n"))
            })
            .collect(),
        "b10" => {
            let word = "=?utf-8?Q?w=C3=B6rd?= ";
            let charset = format!("=?{}?Q?x?=", "c".repeat(200_000));
            [
                times(n, |_| word.into()),
                word.repeat(10_000),
                "=?utf-8?B?".repeat(n / 10),
                charset,
                "=?utf-8?Q?=?utf-8?Q?x?=?=".repeat(n / 20),
            ]
            .iter()
            .map(|subject| with(&format!("X-Subject: {subject}\r\nComments: {subject}\r\n"), "x\r\n"))
            .collect()
        }
        "b11" => {
            let pieces = |order: &dyn Fn(usize) -> usize| times(n, |number| format!(";\r\n name*{}*=x", order(number)));
            [
                pieces(&|k| k),
                pieces(&|k| n - k),
                pieces(&|_| 7),
                pieces(&|k| k + 1),
                ";\r\n name*99999999999999999999*=x".into(),
            ]
            .iter()
            .map(|name| {
                with(&format!("{}\r\n--b\r\nContent-Type: text/plain{name}\r\n\r\nx\r\n--b--\r\n", mixed("b")), "")
            })
            .collect()
        }
        "b12" => [
            ("base64", filled(" ", 10 << 20)),
            ("base64", filled("YWJj\r\n", 30 << 20)),
            ("quoted-printable", filled("=", 10 << 20)),
            ("quoted-printable", filled("=3D=\r\n", 10 << 20)),
            ("x-uuencode", "begin 644 x\r\n".to_owned() + &filled("M86)C\r\n", 10 << 20)),
            ("binary", filled("\u{1}\u{2}", 10 << 20)),
            ("nobody knows", filled("x\r\n", 10 << 20)),
            ("base64\r\nContent-Transfer-Encoding: quoted-printable", filled("=3D", 10 << 20)),
        ]
        .iter()
        .map(|(encoding, body)| with(&format!("Content-Transfer-Encoding: {encoding}\r\n"), body))
        .collect(),
        "b13" => [
            format!("text/plain{}", times(20_000, |k| format!(";\r\n p{k}=v"))),
            "text/plain; charset=utf-8; charset=utf-7; charset=iso-2022-jp".to_owned(),
            "text/plain; charset=utf-7".to_owned(),
            "text/plain; charset=iso-2022-jp".to_owned(),
        ]
        .iter()
        .map(|kind| with(&format!("Content-Type: {kind}\r\n"), &filled("\u{1b}$B\u{1b}(B+AGE-", 10 << 20)))
        .collect(),
        "b14" => vec![with(&format!("References: {}\r\n", times(n, |k| format!("<{k}@x.test>\r\n "))), "x\r\n")],
        "b15" => vec![with(
            &times(n, |_| {
                format!("Received: from {} by b.test;\r\n\tSat, 21 Nov 2026 22:26:57 +0100\r\n", "a".repeat(940))
            }),
            "x\r\n",
        )],
        "b16" => {
            let dkim = times(n, |k| {
                format!("DKIM-Signature: v=1; a=rsa-sha256; d=d{k}.test; s=s; h=from; bh=YWJj; b=YWJj\r\n")
            });
            let arc = times(n, |k| {
                let i = k + 1;
                format!(
                    "ARC-Seal: i={i}; a=rsa-sha256; cv=pass; d=d.test; s=s; b=YWJj\r\nARC-Message-Signature: i={i}; \
                     a=rsa-sha256; d=d.test; s=s; h=from; bh=YWJj; b=YWJj\r\nARC-Authentication-Results: i={i}; x; spf=pass\r\n"
                )
            });
            vec![with(&dkim, "x\r\n"), with(&arc, "x\r\n")]
        }
        "b17" => reports(),
        "b18" => {
            let groups = times(n, |k| {
                format!("Final-Recipient: rfc822; r{k}@home.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n")
            });
            let fields = times(n, |k| format!("X-{k}: y\r\n"));
            [groups, fields]
                .iter()
                .map(|status| {
                    let kind = "Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n";
                    let body = format!(
                        "--b\r\n\r\nfailed\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n{status}\r\n--b--\r\n"
                    );
                    with(kind, &body)
                })
                .collect()
        }
        "b19" => vec![with(&format!("X: {}\r\n", filled("y", n)), "x\r\n"), with("", &(filled("z", n) + "\r\n"))],
        "b20" => vec![with("", &filled("\r\n", n * 2)), with("", &filled("..\r\n", n * 4)), with("", &filled("\0", n))],
        other => panic!("what is {other}?"),
    }
}

fn boundaries() -> Vec<Vec<u8>> {
    let mut all = vec![
        with(&mixed("b"), &times(2000, |_| format!("--b\r\n{}\r\n", mixed("b")))),
        with(&mixed("b"), &times(5000, |k| format!("--b\r\n{}\r\n--bb{k}\r\n\r\nx\r\n", mixed(&format!("bb{k}"))))),
    ];
    for length in [0, 1, 70, 71, 200_000] {
        let boundary = "y".repeat(length);
        all.push(with(&mixed(&format!("\"{boundary}\"")), &format!("--{boundary}\r\n\r\nx\r\n--{boundary}--\r\n")));
    }
    for form in ["\"b \"", "\"b\\\"c\"", "(comment) b (another)", "b; boundary=c", "'b'"] {
        all.push(with(&mixed(form), "--b \r\n\r\nx\r\n--b\"c\r\n\r\ny\r\n--b--\r\n"));
    }
    all
}

/// `b17`: reports of others come as mail like any other, and nothing in them is unpacked or read as XML; so what a zip
/// holds makes no difference to us, which is what is measured.
fn reports() -> Vec<Vec<u8>> {
    use std::io::Write;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..512 {
        packed.write_all(&vec![b'0'; 1 << 20]).unwrap();
    }
    let packed = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, packed.finish().unwrap());
    let lines = packed
        .as_bytes()
        .chunks(76)
        .map(|line| format!("{}\r\n", std::str::from_utf8(line).unwrap()))
        .collect::<String>();
    let entities =
        "<!DOCTYPE f [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]><feedback>&b;</feedback>";
    let deep = times(1_000_000, |_| "<a>".into());
    [
        ("application/gzip", lines.as_str()),
        ("application/tlsrpt+gzip", &lines),
        ("application/zip", &lines),
        ("text/xml", entities),
        ("text/xml", &deep),
    ]
    .iter()
    .map(|(kind, body)| {
        let encoding = if kind.starts_with("text") { "7bit" } else { "base64" };
        with(
            &format!("Content-Type: {kind}; name=\"a!b!1!2.xml.gz\"\r\nContent-Transfer-Encoding: {encoding}\r\n"),
            body,
        )
    })
    .collect()
}
