//! The conversation with one milter about one message, over a connection that is there already.
//!
//! Promises: it ends, as each answer has its time ([`Times`]);
//! one piece of the body is held at a time; an answer that does not belong where it comes, or that cannot
//! be read, is an error. The message is complete when it is asked, so an answer about one recipient
//! counts for all of it.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::fields::{Change, FieldError, Fields};
use super::macros;
use super::verdict::{self, Verdict};
use super::wire::{self, Command, DATA_BYTES_MAX, Options, Replies, Reply, WireError, protocol};
use super::{About, Body};

/// How long a milter may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// To take what is written, and to answer it (Postfix' milter_command_timeout).
    pub command: Duration,
    /// For an answer, or a sign of life, after the message (milter_content_timeout).
    pub content_end: Duration,
}

impl Times {
    pub const USUAL: Times = Times { command: Duration::from_secs(30), content_end: Duration::from_secs(300) };
}

/// Bytes to a milter that wait for more.
const WRITE_BYTES: usize = 64 * 1024;
/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;
/// Changes that a milter may ask for.
const CHANGES_MAX: usize = 1000;
/// Bytes of the reason for a quarantine.
const REASON_BYTES_MAX: usize = 300;

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("it does not answer {after} within {limit:?}")]
    Late { after: &'static str, limit: Duration },
    #[error("it closed the connection after {0}")]
    Closed(&'static str),
    #[error("the connection broke at {after}: {error}")]
    Broken { after: &'static str, error: std::io::Error },
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("it answered {after} with {what:?}, which has no place there")]
    Misplaced { after: &'static str, what: &'static str },
    #[error("it wants to {0}, which was not offered")]
    NotOffered(&'static str),
    #[error("it speaks version {0} of the protocol")]
    Version(u32),
    #[error("the reply that it has for the client is none: {0:?}")]
    BadReply(String),
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("it wants more than {CHANGES_MAX} changes")]
    TooManyChanges,
    #[error("the message could not be read back: {0}")]
    Unreadable(#[from] crate::store::StoreError),
    #[error("a field of the message is longer than a milter takes")]
    LongField,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub verdict: Verdict,
    /// The reason it gave for holding the message.
    pub quarantine: Option<String>,
}

/// What an answer means for the way on.
enum Next {
    On,
    /// Past what is left of this kind.
    Skip,
    End(Verdict),
}

/// Tells the milter of the message, and does to its fields what it asks for.
pub async fn converse<S>(stream: S, times: Times, about: &About<'_>, fields: &mut Fields<'_>) -> Result<Ended, Trouble>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let replies = Replies::default();
    let (out, buffer) = (Vec::new(), vec![0; READ_BYTES]);
    let mut talk = Talk { stream, times, replies, out, buffer, options: Options::OFFERED };
    let ended = match talk.run(about, fields).await? {
        Some(verdict) => Ended { verdict, quarantine: None },
        None => talk.end(fields).await?,
    };
    // It has said what there was to say, so whether it hears this does not matter.
    if talk.write("quit", &Command::Quit).await.is_ok() {
        let _ = talk.flush("quit").await;
    }
    Ok(ended)
}

struct Talk<S> {
    stream: S,
    times: Times,
    replies: Replies,
    /// To be written.
    out: Vec<u8>,
    /// To read into.
    buffer: Vec<u8>,
    options: Options,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    /// Until the whole message is told, or the milter has seen enough.
    async fn run(&mut self, about: &About<'_>, fields: &Fields<'_>) -> Result<Option<Verdict>, Trouble> {
        self.negotiate().await?;
        if let Some(verdict) = self.envelope(about).await? {
            return Ok(Some(verdict));
        }
        if let Some(verdict) = self.headers(fields).await? {
            return Ok(Some(verdict));
        }
        self.body(&about.body).await
    }

    async fn negotiate(&mut self) -> Result<(), Trouble> {
        let after = "the negotiation";
        self.write(after, &Command::Negotiate(Options::OFFERED)).await?;
        match self.answer(after, self.times.command).await? {
            Reply::Negotiate(options) if (wire::VERSION_MIN..=wire::VERSION).contains(&options.version) => {
                self.options = options;
                Ok(())
            }
            Reply::Negotiate(options) => Err(Trouble::Version(options.version)),
            other => Err(misplaced(after, &other)),
        }
    }

    async fn envelope(&mut self, about: &About<'_>) -> Result<Option<Verdict>, Trouble> {
        use protocol::*;
        let (name, ip, port) = (about.client_name(), about.ip(), 0);
        let connect = Command::Connect { name, ip, port };
        let connected = self.step("connect", (NO_CONNECT, NO_REPLY_CONNECT), &connect, &macros::connect(about)).await?;
        if let Next::End(verdict) = connected {
            return Ok(Some(verdict));
        }
        let helo = Command::Helo(about.helo());
        if let Next::End(verdict) = self.step("helo", (NO_HELO, NO_REPLY_HELO), &helo, &macros::helo(about)).await? {
            return Ok(Some(verdict));
        }
        let words = about.mail();
        let mail = Command::Mail(&words);
        if let Next::End(verdict) = self.step("mail", (NO_MAIL, NO_REPLY_MAIL), &mail, &macros::mail(about)).await? {
            return Ok(Some(verdict));
        }
        for recipient in &about.envelope.recipients {
            let words = [format!("<{}>", recipient.address)];
            let rcpt = Command::Rcpt(&words);
            let macros = macros::rcpt(about, recipient);
            match self.step("rcpt", (NO_RCPT, NO_REPLY_RCPT), &rcpt, &macros).await? {
                Next::On => {}
                Next::Skip => break,
                Next::End(verdict) => return Ok(Some(verdict.about(&recipient.address))),
            }
        }
        let without = if self.options.version < wire::VERSION_WITH_DATA { u32::MAX } else { NO_DATA };
        match self.step("data", (without, NO_REPLY_DATA), &Command::Data, &macros::later(about)).await? {
            Next::End(verdict) => Ok(Some(verdict)),
            _ => Ok(None),
        }
    }

    async fn headers(&mut self, fields: &Fields<'_>) -> Result<Option<Verdict>, Trouble> {
        use protocol::*;
        let verbatim = self.options.wants(LEADING_SPACE);
        for field in fields.list() {
            let header = Command::Header { name: field.name(), value: &field.value(verbatim) };
            match self.step("a field", (NO_HEADERS, NO_REPLY_HEADER), &header, &[]).await? {
                Next::On => {}
                Next::Skip => break,
                Next::End(verdict) => return Ok(Some(verdict)),
            }
        }
        let flags = (NO_END_OF_HEADER, NO_REPLY_END_OF_HEADER);
        match self.step("the end of the header", flags, &Command::EndOfHeader, &[]).await? {
            Next::End(verdict) => Ok(Some(verdict)),
            _ => Ok(None),
        }
    }

    async fn body(&mut self, body: &Body<'_>) -> Result<Option<Verdict>, Trouble> {
        use protocol::*;
        if self.options.wants(NO_BODY) {
            return Ok(None);
        }
        for piece in body.pieces() {
            let piece = piece?;
            for part in piece.chunks(DATA_BYTES_MAX) {
                match self.step("a piece of the body", (NO_BODY, NO_REPLY_BODY), &Command::Body(part), &[]).await? {
                    Next::On => {}
                    Next::Skip => return Ok(None),
                    Next::End(verdict) => return Ok(Some(verdict)),
                }
            }
        }
        Ok(None)
    }

    /// The end of the message: changes, then the verdict.
    async fn end(&mut self, fields: &mut Fields<'_>) -> Result<Ended, Trouble> {
        let after = "the end of the message";
        self.write(after, &Command::EndOfBody).await?;
        let verbatim = self.options.wants(protocol::LEADING_SPACE);
        let mut quarantine = None;
        for _ in 0..CHANGES_MAX {
            let change = match self.answer(after, self.times.content_end).await? {
                Reply::AddHeader { name, value } => Change::Add { name, value },
                Reply::InsertHeader { index, name, value } => Change::Insert { index, name, value },
                Reply::ChangeHeader { index, name, value } => Change::Replace { index, name, value },
                Reply::Quarantine(reason) => {
                    quarantine = Some(verdict::plain(&reason, REASON_BYTES_MAX));
                    continue;
                }
                other => {
                    let verdict = verdict::of(&other, after)?.unwrap_or(Verdict::Accept);
                    return Ok(Ended { verdict, quarantine });
                }
            };
            fields.apply(&change, verbatim)?;
        }
        Err(Trouble::TooManyChanges)
    }

    /// One command, unless the milter does without it (the first flag), and the answer to it, unless it gives
    /// none (the second).
    async fn step(
        &mut self,
        after: &'static str,
        (without, no_reply): (u32, u32),
        command: &Command<'_>,
        macros: &[(&'static str, String)],
    ) -> Result<Next, Trouble> {
        if self.options.wants(without) || without == u32::MAX {
            return Ok(Next::On);
        }
        if !macros.is_empty() {
            self.write(after, &Command::Macros { of: command.byte(), values: macros }).await?;
        }
        self.write(after, command).await?;
        if self.options.wants(no_reply) {
            return Ok(Next::On);
        }
        let may_skip = matches!(command, Command::Rcpt(_) | Command::Header { .. } | Command::Body(_));
        match self.answer(after, self.times.command).await? {
            Reply::Skip if may_skip => Ok(Next::Skip),
            reply => Ok(verdict::of(&reply, after)?.map_or(Next::On, Next::End)),
        }
    }

    async fn write(&mut self, after: &'static str, command: &Command<'_>) -> Result<(), Trouble> {
        if !command.write(&mut self.out) {
            return Err(Trouble::LongField);
        }
        if self.out.len() >= WRITE_BYTES { self.flush(after).await } else { Ok(()) }
    }

    async fn flush(&mut self, after: &'static str) -> Result<(), Trouble> {
        let limit = self.times.command;
        let written = timeout(limit, async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        });
        let written = written.await.map_err(|_| Trouble::Late { after, limit })?;
        self.out.clear();
        written.map_err(|error| Trouble::Broken { after, error })
    }

    /// The next reply; each sign that it is still at work gives it the time anew.
    async fn answer(&mut self, after: &'static str, limit: Duration) -> Result<Reply, Trouble> {
        self.flush(after).await?;
        loop {
            let reply = timeout(limit, self.reply(after)).await.map_err(|_| Trouble::Late { after, limit })??;
            if reply != Reply::Progress {
                return Ok(reply);
            }
        }
    }

    async fn reply(&mut self, after: &'static str) -> Result<Reply, Trouble> {
        loop {
            if let Some(reply) = self.replies.take()? {
                return Ok(reply);
            }
            let read = self.stream.read(&mut self.buffer).await.map_err(|error| Trouble::Broken { after, error })?;
            match self.buffer.get(..read) {
                None | Some([]) => return Err(Trouble::Closed(after)),
                Some(bytes) => self.replies.push(bytes),
            }
        }
    }
}

pub(super) fn misplaced(after: &'static str, reply: &Reply) -> Trouble {
    match reply {
        Reply::NotOffered(what) => Trouble::NotOffered(what),
        other => Trouble::Misplaced { after, what: other.name() },
    }
}
