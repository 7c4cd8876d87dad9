//! SMTP to the server on this machine: one message (RFC 6409), or whatever standard input says (-bs).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::letter::Letter;
use super::options::Options;
use super::place::Place;
use super::{EX_TEMPFAIL, Trouble};
use crate::message::{Address, Ret};
use crate::smtp::wire::DotStuffer;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// RFC 5321 4.5.3.2.6.
const END_TIMEOUT: Duration = Duration::from_secs(600);
/// Octets of one line of a reply, and lines of one.
const LINE_BYTES_MAX: u64 = 4096;
const LINES_MAX: usize = 200;

/// Why the server does not have it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// For good.
    Refused { code: u16, text: String, of_recipient: bool },
    /// It cannot be reached, or not just now.
    Away(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Away(format!("the connection to the server was lost: {error}"))
    }
}

fn connect(place: &Place) -> Result<TcpStream, Failed> {
    let server = &place.server;
    let away = |error: io::Error| Failed::Away(format!("no server answers at {server}: {error}"));
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in server.to_socket_addrs().map_err(away)? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(away(last))
}

/// Gives what the server said.
pub(super) fn submit(place: &Place, letter: &Letter, options: &Options) -> Result<String, Failed> {
    let mut talk = Talk::new(connect(place)?)?;
    talk.expect(2)?;
    let hello = talk.say(&format!("EHLO {}", name()), 2)?;
    let offered = |keyword: &str| {
        let words = hello.lines().filter_map(|line| line.get(4..)?.split(' ').next());
        words.into_iter().any(|word| word.eq_ignore_ascii_case(keyword))
    };
    talk.say(&mail(letter, options, &offered), 2)?;
    let notify = options.notify.as_ref().filter(|_| offered("DSN"));
    let notify = notify.map_or_else(String::new, |notify| format!(" NOTIFY={notify}"));
    for recipient in &letter.recipients {
        let done = talk.say(&format!("RCPT TO:<{recipient}>{notify}"), 2);
        done.map_err(|failed| match failed {
            Failed::Refused { code, text, .. } => Failed::Refused { code, text, of_recipient: true },
            away => away,
        })?;
    }
    talk.say("DATA", 3)?;
    let mut wire = Vec::with_capacity(letter.content.len() + 1024);
    let mut stuffer = DotStuffer::new();
    // Our own lines are all ended by CRLF.
    let written = stuffer.encode(&letter.content, &mut wire).and_then(|()| stuffer.finish(&mut wire));
    written.map_err(|flaw| Failed::Away(format!("the message cannot be written: {flaw:?}")))?;
    talk.write(&wire)?;
    talk.patience(END_TIMEOUT)?;
    let reply = talk.expect(2)?;
    // It has it; what comes now changes nothing.
    let _ = talk.write(b"QUIT\r\n");
    Ok(reply)
}

fn mail(letter: &Letter, options: &Options, offered: &dyn Fn(&str) -> bool) -> String {
    let mut line = format!("MAIL FROM:<{}>", letter.sender);
    if offered("SIZE") {
        line += &format!(" SIZE={}", letter.content.len());
    }
    if offered("8BITMIME") && !options.seven_bit && !letter.content.is_ascii() {
        line += " BODY=8BITMIME";
    }
    let all = letter.recipients.iter().chain(letter.sender.address());
    if offered("SMTPUTF8") && all.into_iter().any(Address::needs_smtputf8) {
        line += " SMTPUTF8";
    }
    if offered("DSN") {
        line += match options.ret {
            Some(Ret::Full) => " RET=FULL",
            Some(Ret::Headers) => " RET=HDRS",
            None => "",
        };
        if let Some(envid) = &options.envid {
            line += &format!(" ENVID={}", xtext(envid));
        }
    }
    line
}

/// RFC 3461 4.
pub(super) fn xtext(text: &str) -> String {
    let encoded = text.bytes().map(|byte| match byte {
        b'!'..=b'~' if byte != b'+' && byte != b'=' => char::from(byte).to_string(),
        _ => format!("+{byte:02X}"),
    });
    encoded.collect()
}

fn name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_str().unwrap_or_default();
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if is_name { name.to_owned() } else { "[127.0.0.1]".to_owned() }
}

struct Talk {
    stream: BufReader<TcpStream>,
}

impl Talk {
    fn new(stream: TcpStream) -> io::Result<Talk> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(COMMAND_TIMEOUT))?;
        stream.set_write_timeout(Some(COMMAND_TIMEOUT))?;
        Ok(Talk { stream: BufReader::new(stream) })
    }

    fn patience(&self, patience: Duration) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(patience))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    fn say(&mut self, command: &str, class: u16) -> Result<String, Failed> {
        self.write(format!("{command}\r\n").as_bytes())?;
        self.expect(class)
    }

    /// A reply whose code begins with `class`.
    fn expect(&mut self, class: u16) -> Result<String, Failed> {
        let (code, text) = self.reply()?;
        match code / 100 {
            found if found == class => Ok(text),
            5 => Err(Failed::Refused { code, text, of_recipient: false }),
            _ => Err(Failed::Away(format!("the server takes nothing now: {}", text.trim_end()))),
        }
    }

    fn reply(&mut self) -> io::Result<(u16, String)> {
        let mut text = String::new();
        for _ in 0..LINES_MAX {
            let mut line = Vec::new();
            self.stream.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            text.push_str(&line);
            text.push('\n');
            let code = line.get(..3).and_then(|code| code.parse().ok());
            match (code, line.as_bytes().get(3)) {
                (Some(_), Some(b'-')) => {}
                (Some(code), _) => return Ok((code, text)),
                (None, _) => break,
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "that is no SMTP"))
    }
}

/// -bs: every octet goes to the server as it comes, and back.
pub(super) fn relay(place: &Place) -> Result<(), Trouble> {
    if let Some(obstacle) = &place.obstacle {
        let _ = writeln!(io::stderr(), "sendmail: {obstacle}");
    }
    let stream = match connect(place) {
        Ok(stream) => stream,
        Err(Failed::Away(why) | Failed::Refused { text: why, .. }) => {
            let _ = super::super::text::print("421 4.3.2 the server cannot be reached, try again later\r");
            return Err(Trouble::new(EX_TEMPFAIL, why));
        }
    };
    let lost = |error: io::Error| Trouble::new(EX_TEMPFAIL, format!("the connection to the server was lost: {error}"));
    let mut to_server = stream.try_clone().map_err(lost)?;
    // Ends with the process, if standard input outlives the server's side.
    std::thread::spawn(move || {
        let _ = copy(&mut io::stdin().lock(), &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    copy(&mut &stream, &mut io::stdout().lock()).map_err(lost)
}

/// Each piece at once: the other side waits for it.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                to.write_all(buffer.get(..read).unwrap_or_default())?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
