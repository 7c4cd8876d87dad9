//! A server without a network: the framing and the session, and a pump that answers its questions from
//! the settings of a conversation. Every reply is checked for form on its way out.

#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(dead_code)] // each test that takes this file in uses another part of it

use std::collections::VecDeque;
use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use bytes::Bytes;
use postrider::config::{ListenerTls, Role};
use postrider::message::envelope::{BodyType, Notify, Ret};
use postrider::message::{Domain, Draft};
use postrider::server::session::Session;
use postrider::server::step::{Answer, DataEnd, Policy, Question, ScramKeys, Step};
use postrider::smtp::Reply;
use postrider::smtp::reply::Refusal;
use postrider::smtp::wire::{ChunkDecoder, DataDecoder, LINE_END_BYTES, LineCutter, Progress};

use super::conversation::{Heard, Setting, Taken, Transport};

enum Mode {
    Lines,
    Data(DataDecoder, Vec<u8>),
    Chunk { last: bool, discard: bool },
    Handshake,
    Closed,
}

pub struct Bare {
    setting: Setting,
    session: Session,
    mode: Mode,
    cutter: LineCutter,
    chunks: (ChunkDecoder, Vec<u8>),
    buffer: Vec<u8>,
    /// Octets that one read brings.
    read_bytes: usize,
    replies: VecDeque<String>,
    pub drafts: Vec<Draft>,
}

impl Bare {
    pub fn new(setting: &Setting, read_bytes: usize) -> Bare {
        let (session, greeting) = Session::new(policy(setting));
        let mut bare = Bare {
            setting: setting.clone(),
            session,
            mode: Mode::Lines,
            cutter: LineCutter::new(),
            chunks: (ChunkDecoder::new(setting.max_size), Vec::new()),
            buffer: Vec::new(),
            read_bytes,
            replies: VecDeque::new(),
            drafts: Vec::new(),
        };
        if setting.tls == "implicit" {
            bare.session.tls_started("TLSv1.3".into());
        }
        bare.say(&greeting);
        bare
    }

    pub fn start_tls_if_due(&mut self) {
        if matches!(self.mode, Mode::Handshake) {
            self.start_tls();
        }
    }

    fn say(&mut self, reply: &Reply) {
        let mut wire = Vec::new();
        reply.write_to(&mut wire);
        let text = String::from_utf8(wire).unwrap();
        let body = text.strip_suffix("\r\n").unwrap();
        for line in body.split("\r\n") {
            // RFC 5321 4.2 and 4.5.3.1.5.
            assert!(line.len() <= 510 && !line.chars().any(char::is_control), "{line:?}");
            assert!(matches!(reply.code, 200..=599) && line.starts_with(&reply.code.to_string()), "{line:?}");
        }
        self.replies.push_back(body.replace("\r\n", " "));
    }

    fn pump(&mut self) {
        loop {
            let step = match &mut self.mode {
                Mode::Handshake | Mode::Closed => return,
                Mode::Lines => match self.cutter.cut(&self.buffer) {
                    Ok(None) => return,
                    Ok(Some(length)) => {
                        let rest = self.buffer.split_off(length + LINE_END_BYTES);
                        let line = std::mem::replace(&mut self.buffer, rest);
                        self.session.line(&line[..length])
                    }
                    Err(error) => self.session.bad_line(error),
                },
                Mode::Data(decoder, content) => {
                    let fed = decoder.feed(&self.buffer, content);
                    self.buffer.drain(..fed.consumed);
                    if fed.progress == Progress::More {
                        return;
                    }
                    assert_eq!(fed.progress, Progress::Ended);
                    let content = Bytes::from(std::mem::take(content));
                    let end = decoder.flaw().map_or(DataEnd::Complete(content.into()), DataEnd::from);
                    self.mode = Mode::Lines;
                    self.session.data_read(end)
                }
                Mode::Chunk { last, discard } => {
                    let fed = self.chunks.0.feed(&self.buffer, &mut self.chunks.1);
                    self.buffer.drain(..fed.consumed);
                    if fed.progress == Progress::More {
                        return;
                    }
                    let end = match (self.chunks.0.flaw(), &last) {
                        _ if *discard => DataEnd::Partial,
                        (Some(flaw), _) => flaw.into(),
                        (None, false) => DataEnd::Partial,
                        (None, true) => {
                            let content = Bytes::from(std::mem::take(&mut self.chunks.1));
                            let decoder = std::mem::replace(&mut self.chunks.0, ChunkDecoder::new(0));
                            decoder.finish().map_or(DataEnd::Complete(content.into()), DataEnd::from)
                        }
                    };
                    self.mode = Mode::Lines;
                    self.session.chunk_read(end)
                }
            };
            self.follow(step);
        }
    }

    fn follow(&mut self, mut step: Step) {
        loop {
            match step {
                Step::Reply(reply) => self.say(&reply),
                Step::ReplyAlone(reply) => {
                    self.say(&reply);
                    if !self.buffer.is_empty() {
                        self.mode = Mode::Closed;
                    }
                }
                Step::Ask(question) => {
                    let answer = self.find_out(question);
                    step = self.session.answer(answer);
                    continue;
                }
                Step::StartTls(reply) => {
                    self.say(&reply);
                    // RFC 3207 4.2, CVE-2011-0411.
                    self.mode = if self.buffer.is_empty() { Mode::Handshake } else { Mode::Closed };
                }
                Step::ReadData(reply) => {
                    assert_eq!(reply.code, 354);
                    self.say(&reply);
                    self.mode = Mode::Data(DataDecoder::new(self.setting.max_size), Vec::new());
                }
                Step::ReadChunk { size, first, last, discard } => {
                    if first {
                        self.chunks = (ChunkDecoder::new(self.setting.max_size), Vec::new());
                    }
                    assert!(first || discard || self.session.is_between_chunks());
                    if discard {
                        self.chunks.0.discard();
                    }
                    self.chunks.0.begin(size);
                    self.mode = Mode::Chunk { last, discard };
                }
                Step::Close(reply) => {
                    self.say(&reply);
                    self.mode = Mode::Closed;
                }
            }
            return;
        }
    }

    fn find_out(&mut self, question: Question) -> Answer {
        match question {
            Question::Authenticate(login) => match self.account(&login.account) {
                Some((password, max)) if password == login.password.0 => account(login.account, max),
                _ => refused(535, (7, 8), "user name or password is wrong"),
            },
            Question::Scram { account } => Answer::Scram(self.scram_keys(account)),
            Question::ScramResult { account: name, good: true } => {
                let (_, max) = self.account(&name).unwrap();
                account(name, max)
            }
            Question::ScramResult { good: false, .. } => refused(535, (7, 8), "user name or password is wrong"),
            Question::Sender { .. } => Answer::Ok(Reply::new(250, (1, 0), "ok")),
            Question::Recipient { account, recipient, .. } => {
                let domain = recipient.domain().as_str();
                let is_ours = domain == HOSTNAME || self.setting.domains.iter().any(|own| own == domain);
                let is_known = self.setting.recipients.contains(&recipient.lookup_key());
                if is_ours && (is_known || recipient.lookup_local() == "postmaster") {
                    Answer::Ok(Reply::new(250, (1, 5), "ok"))
                } else if is_ours {
                    refused(550, (1, 1), "no such address")
                } else if self.setting.role == "submission" && (account.is_some() || self.setting.trusted) {
                    Answer::Ok(Reply::new(250, (1, 5), "ok"))
                } else {
                    refused(550, (7, 1), "relaying denied")
                }
            }
            Question::Accept(draft) => {
                assert!(!draft.envelope.recipients.is_empty());
                self.drafts.push(*draft);
                Answer::Ok(Reply::new(250, (0, 0), "queued"))
            }
        }
    }

    fn account(&self, name: &str) -> Option<(String, usize)> {
        let found = self.setting.accounts.iter().find(|account| account.name == name)?;
        Some((found.password.clone(), found.max_recipients))
    }

    fn scram_keys(&self, name: String) -> ScramKeys {
        let known = self.account(&name);
        let password = known.as_ref().map_or("", |(password, _)| password);
        let mut salted = [0u8; 32];
        let rounds = NonZeroU32::new(4096).unwrap();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, b"salt", password.as_bytes(), &mut salted);
        let key = |label: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salted), label);
        ScramKeys {
            account: name,
            known: known.is_some(),
            salt: b"salt".to_vec(),
            iterations: 4096,
            stored_key: digest::digest(&digest::SHA256, key(b"Client Key").as_ref()).as_ref().try_into().unwrap(),
            server_key: key(b"Server Key").as_ref().try_into().unwrap(),
            max_recipients: known.map_or(0, |(_, max)| max),
            server_nonce: "thisissomeservernonce".into(),
        }
    }
}

pub const HOSTNAME: &str = "mail.example.test";

fn policy(setting: &Setting) -> Policy {
    Policy {
        hostname: Domain::parse(HOSTNAME).unwrap(),
        listener: "test".into(),
        role: if setting.role == "submission" { Role::Submission } else { Role::Mx },
        tls: match setting.tls.as_str() {
            "opportunistic" => ListenerTls::Opportunistic,
            "required" => ListenerTls::Required,
            "implicit" => ListenerTls::Implicit,
            _ => ListenerTls::Off,
        },
        peer_ip: if setting.loopback { [127, 0, 0, 1].into() } else { [192, 0, 2, 7].into() },
        trusted: setting.trusted,
        loopback: setting.loopback,
        scram: true,
        max_size: setting.max_size,
        max_recipients: setting.max_recipients,
        errors_max: setting.errors,
    }
}

fn account(name: String, max_recipients: usize) -> Answer {
    Answer::Account { name, max_recipients }
}

fn refused(code: u16, enhanced: (u16, u16), text: &'static str) -> Answer {
    Answer::Refused(Refusal::plain(Reply::new(code, enhanced, text)))
}

impl Transport for Bare {
    fn send(&mut self, bytes: &[u8]) {
        for read in bytes.chunks(self.read_bytes) {
            self.buffer.extend_from_slice(read);
            self.pump();
        }
    }

    fn hear(&mut self) -> Heard {
        match self.replies.pop_front() {
            Some(reply) => Heard::Reply(reply),
            None if matches!(self.mode, Mode::Closed) => Heard::Closed,
            None => Heard::Silence,
        }
    }

    fn start_tls(&mut self) {
        assert!(matches!(self.mode, Mode::Handshake), "no handshake is due");
        self.session.tls_started("TLSv1.3".into());
        self.mode = Mode::Lines;
    }

    fn taken(&mut self) -> Vec<Taken> {
        self.drafts.drain(..).map(|draft| tell(&draft)).collect()
    }
}

pub fn tell(draft: &Draft) -> Taken {
    let envelope = &draft.envelope;
    let peer = draft.origin.peer.as_ref().unwrap();
    let joined = |texts: Vec<String>| texts.join(",");
    let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".into());
    let recipients = &envelope.recipients;
    Taken::from([
        ("from", format!("<{}>", envelope.mail_from)),
        ("to", joined(recipients.iter().map(|r| format!("<{}>", r.address)).collect())),
        ("content", String::from_utf8_lossy(draft.content.head()).into_owned()),
        ("account", word(&draft.origin.account)),
        ("helo", peer.helo.clone()),
        ("esmtp", if peer.esmtp { "yes" } else { "no" }.into()),
        ("tls", if peer.tls.is_some() { "yes" } else { "no" }.into()),
        ("body", if envelope.body == BodyType::SevenBit { "7bit" } else { "8bitmime" }.into()),
        ("smtputf8", if envelope.smtputf8 { "yes" } else { "no" }.into()),
        (
            "ret",
            match envelope.dsn.ret {
                None => "none",
                Some(Ret::Full) => "full",
                Some(Ret::Headers) => "hdrs",
            }
            .into(),
        ),
        ("envid", word(&envelope.dsn.envid)),
        ("notify", joined(recipients.iter().map(|r| notify(r.notify)).collect())),
        (
            "orcpt",
            joined(
                recipients
                    .iter()
                    .map(|r| r.original.as_ref().map_or("none".into(), |o| format!("{};{}", o.kind, o.address)))
                    .collect(),
            ),
        ),
    ])
}

fn notify(notify: Notify) -> String {
    match notify {
        Notify::Never => "never".into(),
        Notify::On { success, failure, delay } => [(success, "success"), (failure, "failure"), (delay, "delay")]
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| *name)
            .collect::<Vec<_>>()
            .join("+"),
    }
}
