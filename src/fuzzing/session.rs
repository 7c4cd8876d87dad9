//! A whole session of the server, from the bytes of a client, however they were cut.

use bytes::Bytes;

use super::wire::line_of;
use super::{is_stray, reads};
use crate::config::{ListenerTls, Role};
use crate::message::{Domain, Draft};
use crate::server::session::Session;
use crate::server::step::{Answer, DataEnd, Policy, Question, ScramKeys, Step};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;
use crate::smtp::wire::{ChunkDecoder, DataDecoder, LineCutter, Progress};

const MAX_SIZE: u64 = 2000;
const NAME: &str = "mail.own.test";

enum Mode {
    Lines,
    Data(DataDecoder, Vec<u8>),
    Chunk { last: bool, discard: bool },
    Over,
}

/// The pump without a network, which answers every question by itself.
struct Pump {
    session: Session,
    mode: Mode,
    cutter: LineCutter,
    chunks: (ChunkDecoder, Vec<u8>),
    buffer: Vec<u8>,
    said: Vec<u8>,
    drafts: Vec<Draft>,
    /// What one read brings has decided something, as it must behind STARTTLS and a refused DATA.
    depends_on_reads: bool,
}

/// The second byte of the input chooses the listener, the rest is what the client says.
pub fn session(input: &[u8]) {
    let (choice, input) = input.split_first().unwrap_or((&0, &[]));
    let (pieces, whole) = reads(input);
    let together = Pump::new(*choice).run(std::iter::once(whole));
    let cut = Pump::new(*choice).run(pieces);
    if !together.depends_on_reads && !cut.depends_on_reads {
        let text = |pump: &Pump| String::from_utf8_lossy(&pump.said).into_owned();
        assert_eq!(text(&together), text(&cut), "what is answered depends on how it was cut");
        assert_eq!(together.drafts.len(), cut.drafts.len(), "what is taken depends on how it was cut");
    }
    together.drafts.iter().chain(&cut.drafts).for_each(check_draft);
}

fn check_draft(draft: &Draft) {
    assert!(!draft.envelope.recipients.is_empty(), "a message for nobody");
    assert!(!is_stray(draft.content.head()), "a message that two servers read differently");
    assert!(draft.content.len() <= MAX_SIZE);
    for recipient in &draft.envelope.recipients {
        let text = recipient.address.to_string();
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

impl Pump {
    fn new(choice: u8) -> Pump {
        let is_submission = choice & 1 != 0;
        let tls = [ListenerTls::Off, ListenerTls::Opportunistic, ListenerTls::Required, ListenerTls::Implicit];
        let tls = tls[choice as usize >> 1 & 3];
        let (mut session, greeting) = Session::new(Policy {
            hostname: Domain::parse(NAME).unwrap(),
            listener: "fuzz".into(),
            role: if is_submission { Role::Submission } else { Role::Mx },
            tls,
            peer_ip: [192, 0, 2, 7].into(),
            trusted: choice & 8 != 0,
            loopback: choice & 16 != 0,
            scram: true,
            max_size: MAX_SIZE,
            max_recipients: 3,
            errors_max: 5,
        });
        if tls == ListenerTls::Implicit {
            session.tls_started("TLSv1.3".into());
        }
        let chunks = (ChunkDecoder::new(MAX_SIZE), Vec::new());
        let (cutter, buffer, said, drafts) = Default::default();
        let mut pump =
            Pump { session, mode: Mode::Lines, cutter, chunks, buffer, said, drafts, depends_on_reads: false };
        pump.say(&greeting);
        pump
    }

    fn run<'a>(mut self, pieces: impl Iterator<Item = &'a [u8]>) -> Pump {
        for piece in pieces {
            self.buffer.extend_from_slice(piece);
            while self.goes_on() {}
        }
        self
    }

    fn say(&mut self, reply: &Reply) {
        let from = self.said.len();
        reply.write_to(&mut self.said);
        let text = std::str::from_utf8(&self.said[from..]).unwrap();
        for line in text.strip_suffix("\r\n").unwrap().split("\r\n") {
            // RFC 5321 4.2 and 4.5.3.1.5.
            assert!(line.len() <= 510 && !line.chars().any(char::is_control), "{line:?}");
        }
    }

    /// One step; false if there is none without more input.
    fn goes_on(&mut self) -> bool {
        let step = match &mut self.mode {
            Mode::Over => return false,
            Mode::Lines => match line_of(&mut self.cutter, &mut self.buffer) {
                None => return false,
                Some(Ok(line)) => self.session.line(&line),
                Some(Err(error)) => self.session.bad_line(error),
            },
            Mode::Data(decoder, content) => {
                let fed = decoder.feed(&self.buffer, content);
                self.buffer.drain(..fed.consumed);
                if fed.progress == Progress::More {
                    return false;
                }
                let content = Bytes::from(std::mem::take(content));
                let end = decoder.flaw().map_or(DataEnd::Complete(content.into()), DataEnd::from);
                self.mode = Mode::Lines;
                self.session.data_read(end)
            }
            Mode::Chunk { last, discard } => {
                let fed = self.chunks.0.feed(&self.buffer, &mut self.chunks.1);
                self.buffer.drain(..fed.consumed);
                let end = match fed.progress {
                    Progress::More => return false,
                    Progress::Endless => DataEnd::Endless,
                    Progress::Ended => match (self.chunks.0.flaw(), *last) {
                        _ if *discard => DataEnd::Partial,
                        (Some(flaw), _) => flaw.into(),
                        (None, false) => DataEnd::Partial,
                        (None, true) => {
                            let content = Bytes::from(std::mem::take(&mut self.chunks.1));
                            let decoder = std::mem::replace(&mut self.chunks.0, ChunkDecoder::new(0));
                            decoder.finish().map_or(DataEnd::Complete(content.into()), DataEnd::from)
                        }
                    },
                };
                self.mode = Mode::Lines;
                self.session.chunk_read(end)
            }
        };
        self.follow(step);
        true
    }

    fn follow(&mut self, mut step: Step) {
        while let Step::Ask(question) = step {
            let answer = self.find_out(question);
            step = self.session.answer(answer);
        }
        match step {
            Step::Reply(reply) => self.say(&reply),
            Step::ReplyAlone(reply) => {
                self.say(&reply);
                self.depends_on_reads = true;
                if !self.buffer.is_empty() {
                    self.mode = Mode::Over;
                }
            }
            Step::StartTls(reply) => {
                self.say(&reply);
                self.depends_on_reads = true;
                match self.buffer.is_empty() {
                    true => self.session.tls_started("TLSv1.3".into()),
                    false => self.mode = Mode::Over,
                }
            }
            Step::ReadData(reply) => {
                assert_eq!(reply.code, 354);
                self.say(&reply);
                self.mode = Mode::Data(DataDecoder::new(MAX_SIZE), Vec::new());
            }
            Step::ReadChunk { size, first, last, discard } => {
                if first {
                    self.chunks = (ChunkDecoder::new(MAX_SIZE), Vec::new());
                }
                if discard {
                    self.chunks.0.discard();
                }
                self.chunks.0.begin(size);
                self.mode = Mode::Chunk { last, discard };
            }
            Step::Close(reply) => {
                self.say(&reply);
                self.mode = Mode::Over;
            }
            Step::Ask(_) => {}
        }
    }

    fn find_out(&mut self, question: Question) -> Answer {
        let ok = |text| Answer::Ok(Reply::new(250, (0, 0), text));
        let refused = |code, text| Answer::Refused(Refusal::plain(Reply::new(code, (7, 1), text)));
        match question {
            Question::Authenticate(login) if login.account == "shop" && login.password.0 == "secret" => {
                Answer::Account { name: login.account, max_recipients: 3 }
            }
            Question::Authenticate(_) | Question::ScramResult { good: false, .. } => refused(535, "no"),
            Question::Scram { account } => Answer::Scram(keys(account)),
            Question::ScramResult { account, good: true } => Answer::Account { name: account, max_recipients: 3 },
            Question::Sender { .. } => ok("sender"),
            Question::Recipient { recipient, .. } if recipient.lookup_local().len() % 5 == 4 => refused(550, "no"),
            Question::Recipient { .. } => ok("recipient"),
            Question::Accept(draft) => {
                self.drafts.push(*draft);
                ok("queued")
            }
        }
    }
}

fn keys(account: String) -> ScramKeys {
    ScramKeys {
        known: account == "shop",
        account,
        salt: b"salt".to_vec(),
        iterations: 4096,
        stored_key: [1; 32],
        server_key: [2; 32],
        max_recipients: 3,
        server_nonce: "nonce".into(),
    }
}
