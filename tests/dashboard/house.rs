//! A server with a dashboard, a far end that answers as its recipients are called, and a browser's first
//! steps over HTTP: a cookie, forms, their token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use postrider::message::MessageId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::client::Client;
use crate::server::{TestServer, queued_id};
use crate::zone::{Zone, ZoneServer};

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// What a far end says, with what a browser must not take for more than text.
pub const LATER: &str = "450 4.2.1 later <script>alert('later')</script>";
pub const NEVER: &str = "550 5.1.1 no such user <img src=x onerror=alert('never')>";

pub const BUSY: &str = "421 4.7.0 slow down <b>please</b>";

/// Takes mail, but for `later@` until it is told to, and never for `never@`; it hangs up on who writes to `busy@`.
#[derive(Clone)]
pub struct FarEnd {
    pub port: u16,
    is_later: Arc<AtomicBool>,
}

impl FarEnd {
    pub async fn start() -> FarEnd {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = FarEnd { port: listener.local_addr().unwrap().port(), is_later: Arc::default() };
        let serving = far.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let far = serving.clone();
                tokio::spawn(async move { drop(far.talk(stream).await) });
            }
        });
        far
    }

    /// From now on `later@` is taken.
    pub fn later_has_come(&self) {
        self.is_later.store(true, Ordering::SeqCst);
    }

    async fn talk(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        stream.write_all(b"220 far.test ESMTP\r\n").await?;
        let (mut line, mut in_content) = (String::new(), false);
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let said = line.trim_end();
            let reply = match said {
                "." if in_content => {
                    in_content = false;
                    "250 2.0.0 taken"
                }
                _ if in_content => continue,
                "DATA" => {
                    in_content = true;
                    "354 go on"
                }
                "QUIT" => "221 2.0.0 bye",
                _ if said.starts_with("RCPT TO:<later@") && !self.is_later.load(Ordering::SeqCst) => LATER,
                _ if said.starts_with("RCPT TO:<never@") => NEVER,
                _ if said.starts_with("RCPT TO:<busy@") => BUSY,
                _ => "250 2.0.0 fine",
            };
            stream.write_all(format!("{reply}\r\n").as_bytes()).await?;
            if reply.starts_with("421") {
                return Ok(());
            }
        }
    }
}

pub struct House {
    pub server: TestServer,
    pub http: SocketAddr,
    pub far: FarEnd,
    _zone: ZoneServer,
    _folder: tempfile::TempDir,
}

impl House {
    pub async fn new() -> House {
        House::with("").await
    }

    /// `delivery`: further lines of that section, and other sections.
    pub async fn with(delivery: &str) -> House {
        let far = FarEnd::start().await;
        let zone = Zone::new().mx("far.test", 10, "mx.far.test").mx("wide.test", 10, "mx.far.test");
        let zone = zone.a("mx.far.test", "127.0.0.1").serve().await;
        let text = format!(
            "[networks]\ntrusted = [\"127.0.0.0/8\"]\n[domains.\"home.test\"]\n\
             [aliases]\n\"box@home.test\" = \"box\"\n[targets.box]\nkind = \"maildir\"\npath = \"DATA_DIR/box\"\n\
             [admin]\nbind = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\n[dns]\nnameservers = [\"{}\"]\n\
             [streams.bulk]\nsuppress = true\n\
             [delivery]\nmx_port = {}\nallow_private_addresses = true\n{delivery}\n",
            zone.addr(),
            far.port
        );
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::start(folder.path(), &text).await;
        let http = server.app.listeners().iter().find(|listener| listener.role == "http").unwrap().address;
        House { server, http, far, _zone: zone, _folder: folder }
    }

    pub async fn send(&self, to: &str, subject: &str) -> MessageId {
        self.send_content(to, &format!("From: Shop <shop@home.test>\r\nSubject: {subject}\r\n\r\nHello.\r\n")).await
    }

    pub async fn send_content(&self, to: &str, content: &str) -> MessageId {
        let mut client = Client::connect(self.server.submission).await.unwrap();
        client.command("EHLO shop.home.test", "250").await.unwrap();
        queued_id(&client.send("shop@home.test", &[to], content).await.unwrap())
    }

    /// As a browser that has logged in.
    pub async fn log_in(&self) -> Visitor {
        let body = format!("token={TOKEN}");
        let answer = ask(self.http, "POST /login", &[FORM], &body).await;
        assert_eq!(answer.status, 303, "{}", answer.head);
        let cookie = answer.field("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let mut visitor = Visitor { http: self.http, cookie, csrf: String::new() };
        let page = visitor.get("/suppressions").await;
        let (_, rest) = page.body.split_once("name=\"csrf\" value=\"").unwrap();
        visitor.csrf = rest.split('"').next().unwrap().to_owned();
        visitor
    }
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

pub const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

/// `more`: header fields, a line each.
pub async fn ask(to: SocketAddr, request: &str, more: &[&str], body: &str) -> Answer {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let host =
        if more.iter().any(|line| line.starts_with("Host:")) { String::new() } else { format!("Host: {to}\r\n") };
    let fields: String = more.iter().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    let text =
        format!("{request} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {length}\r\n{fields}\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

#[derive(Clone)]
pub struct Visitor {
    pub http: SocketAddr,
    pub cookie: String,
    pub csrf: String,
}

impl Visitor {
    pub async fn get(&self, path: &str) -> Answer {
        ask(self.http, &format!("GET {path}"), &[&format!("Cookie: {}", self.cookie)], "").await
    }

    /// A form of ours, with what is in it besides the token.
    pub async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let token = [("csrf", self.csrf.as_str())];
        self.send(path, &[], &form(token.iter().chain(fields))).await
    }

    pub async fn send(&self, path: &str, more: &[&str], body: &str) -> Answer {
        let cookie = format!("Cookie: {}", self.cookie);
        let fields: Vec<&str> = [FORM, cookie.as_str()].into_iter().chain(more.iter().copied()).collect();
        ask(self.http, &format!("POST {path}"), &fields, body).await
    }
}

pub fn form<'f>(fields: impl IntoIterator<Item = &'f (&'f str, &'f str)>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}
