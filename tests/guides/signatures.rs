//! `docs/inbound.md`: what it tells applications to write tells our requests from others; the JSON it shows is what comes.

use std::path::Path;

use serde_json::Value;
use tokio::process::Command;

use crate::support::client::Client;
use crate::support::endpoint::{Endpoint, Request, answer};
use crate::support::pages::page;
use crate::support::server::{TestServer, queued_id};
use crate::support::zone::Zone;
use crate::{Language, run, show};

const HEADING: &str = "Verifying the signature";

/// A message as a webhook with this secret gets it.
async fn request(secret: &str) -> Request {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::answering(&[&answer("200 OK", "", "")]).await;
    let zone = Zone::new().serve().await;
    let conf = format!(
        "[domains.\"example.com\"]\n[aliases]\n\"sales@example.com\" = \"crm\"\n[targets.crm]\nkind = \"webhook\"\n\
         url = \"{}\"\nsecret = \"{secret}\"\n[dns]\nnameservers = [\"{}\"]\n",
        endpoint.url,
        zone.addr()
    );
    let server = TestServer::start(folder.path(), &conf).await;
    let content =
        "From: Bob <bob@example.net>\r\nTo: Sales <sales+web@example.com>\r\nSubject: Grüße\r\n\r\nTwo boxes.\r\n";
    let mut client = Client::connect(server.mx).await.unwrap();
    let reply = client.send("bob@example.net", &["sales+web@example.com"], content).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    server.stop().await;
    endpoint.take().remove(0)
}

/// What is written behind the page's code: reads a request from the files `headers` and `body`, says true or false.
fn program(language: Language, secret: &str) -> String {
    let code = page("docs/inbound.md").block(HEADING, language.word());
    match language {
        Language::Python => format!(
            "{code}\nimport json\nheaders, body = json.load(open('headers')), open('body', 'rb').read()\n\
             print(str(is_genuine('{secret}', headers, body)).lower())\n"
        ),
        Language::Node => format!(
            "{code}\nconst {{ readFileSync }} = require('node:fs');\n\
             console.log(isGenuine('{secret}', JSON.parse(readFileSync('headers')), readFileSync('body')));\n"
        ),
        Language::Php => format!(
            "{code}\n$headers = json_decode(file_get_contents('headers'), true);\n\
             echo is_genuine('{secret}', $headers, file_get_contents('body')) ? 'true' : 'false', \"\\n\";\n"
        ),
        // A file of its own beside the page's, which is of no program yet.
        Language::Go => format!(
            "package main\n\nimport (\n\t\"encoding/json\"\n\t\"fmt\"\n\t\"net/http\"\n\t\"os\"\n)\n\nfunc main() {{\n\
             \tvar given map[string]string\n\ttext, _ := os.ReadFile(\"headers\")\n\tbody, _ := os.ReadFile(\"body\")\n\
             \tif json.Unmarshal(text, &given) != nil {{\n\t\tpanic(\"headers\")\n\t}}\n\theaders := http.Header{{}}\n\
             \tfor name, value := range given {{\n\t\theaders.Set(name, value)\n\t}}\n\
             \tfmt.Println(IsGenuine(\"{secret}\", headers, body))\n}}\n"
        ),
    }
}

/// What a program says of a request with these headers.
async fn says(language: Language, folder: &Path, secret: &str, headers: &Value, body: &[u8]) -> Option<bool> {
    let mut command: Command = language.program()?;
    std::fs::write(folder.join("headers"), headers.to_string()).unwrap();
    std::fs::write(folder.join("body"), body).unwrap();
    std::fs::write(folder.join(format!("program.{}", language.word())), program(language, secret)).unwrap();
    command.arg(format!("program.{}", language.word()));
    if language == Language::Go {
        let code = page("docs/inbound.md").block(HEADING, "go");
        std::fs::write(folder.join("hooks.go"), code.replace("package hooks", "package main")).unwrap();
        command.arg("hooks.go");
    }
    let output = run(command.current_dir(folder)).await;
    assert!(output.status.success(), "{language:?}: {}", show(&output));
    match show(&output).trim() {
        "true" => Some(true),
        "false" => Some(false),
        other => panic!("{language:?}: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_code_takes_our_requests_and_no_others() {
    const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    for secret in [WHSEC, "my pass phrase"] {
        let request = request(secret).await;
        let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
        let headers: Value = names.iter().map(|name| (*name, request.header(name).unwrap())).collect();
        let with = |name: &str, value: &str| {
            let mut headers = headers.clone();
            headers[name] = value.into();
            headers
        };
        let signature = request.header("webhook-signature").unwrap();
        let old: u64 = request.header("webhook-timestamp").unwrap().parse::<u64>().unwrap() - 3600;
        let mut changed = request.body.clone();
        changed[10] ^= 1;
        let body = request.body.as_slice();
        let cases = [
            ("as it came", headers.clone(), body, true),
            ("two keys while one is exchanged", with("webhook-signature", &format!("v1,AAAA {signature}")), body, true),
            ("another body", headers.clone(), changed.as_slice(), false),
            ("another id", with("webhook-id", "msg_x_0"), body, false),
            ("an hour ago", with("webhook-timestamp", &old.to_string()), body, false),
            ("no time", with("webhook-timestamp", "now"), body, false),
            ("no signature", with("webhook-signature", ""), body, false),
            ("nothing at all", Value::Object(serde_json::Map::new()), body, false),
        ];
        let folder = tempfile::tempdir().unwrap();
        for language in Language::ALL {
            for (name, headers, body, genuine) in &cases {
                let Some(said) = says(language, folder.path(), secret, headers, body).await else { break };
                assert_eq!(said, *genuine, "{language:?}, {name}, {secret}");
            }
        }
        let headers = headers.clone();
        if let Some(said) = says(Language::Python, folder.path(), "another secret", &headers, body).await {
            assert!(!said);
        }
    }
}

/// The keys of `shown` and of `real`, below each other, are the same. Where the page shows null or nothing, anything fits.
fn same_keys(path: &str, shown: &Value, real: &Value) {
    match (shown, real) {
        (Value::Object(shown), Value::Object(real)) => {
            let names = |of: &serde_json::Map<String, Value>| of.keys().cloned().collect::<Vec<_>>();
            let (mut wanted, mut there) = (names(shown), names(real));
            wanted.sort();
            there.sort();
            assert_eq!(wanted, there, "{path}");
            for (name, value) in shown {
                same_keys(&format!("{path}.{name}"), value, &real[name]);
            }
        }
        (Value::Array(shown), Value::Array(real)) => {
            if let (Some(shown), Some(real)) = (shown.first(), real.first()) {
                same_keys(&format!("{path}[]"), shown, real);
            }
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_in_the_guide_has_the_keys_that_come() {
    let shown: Value = serde_json::from_str(&page("docs/inbound.md").block("Webhooks", "json")).unwrap();
    same_keys("", &shown, &request("my pass phrase").await.json());
}
