//! `postrider sendmail`: what programs call that know no SMTP (cron, PHP's `mail()`, mutt). Also when the
//! binary is called `sendmail` or `mailq`.
//!
//! It needs no rights on the queue: it submits by SMTP on loopback, as any program on this machine may
//! where `networks.trusted` has loopback. Where the server cannot be reached, or cannot take mail just
//! now, the message is put into `data_dir/maildrop`, from where the server takes it. Exit status 0 means
//! that the server has it, or that it is safely there; all others are those of sysexits(3), and then
//! nothing was sent: a recipient that is refused keeps the message from the others too, so that whoever
//! called can put it right.
//!
//! The configuration may well be unreadable for who calls. Then the server is at 127.0.0.1:587 and the
//! folder `/var/lib/postrider/maildrop`, or where `POSTRIDER_SENDMAIL_SERVER` and
//! `POSTRIDER_SENDMAIL_MAILDROP` say.
//!
//! What it cannot do: reach that folder where `data_dir` may not be entered by others (mode 0711 is enough).
//! A connection that is lost after the last line of a message leaves open whether the server has it; then the
//! folder gets it, and it may go twice, under the same Message-ID, rather than not at all.
//!
//! Left out: the modes of a daemon (-bd, -q does nothing), rewriting by tables, `.forward`.

mod letter;
mod maildrop;
mod options;
mod place;
mod submit;

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use super::text::clean;
use letter::Letter;
use options::{Mode, Options};
use place::Place;
use submit::Failed;

/// Bytes of a message that are read; the server has its own, smaller limit.
const INPUT_BYTES_MAX: u64 = 256 * 1024 * 1024;

pub(super) const EX_OK: u8 = 0;
pub(super) const EX_USAGE: u8 = 64;
pub(super) const EX_DATAERR: u8 = 65;
pub(super) const EX_NOUSER: u8 = 67;
pub(super) const EX_UNAVAILABLE: u8 = 69;
pub(super) const EX_OSERR: u8 = 71;
pub(super) const EX_IOERR: u8 = 74;
pub(super) const EX_TEMPFAIL: u8 = 75;
pub(super) const EX_NOPERM: u8 = 77;
pub(super) const EX_CONFIG: u8 = 78;

/// Why it was not done.
#[derive(Debug, PartialEq, Eq)]
struct Trouble {
    status: u8,
    text: String,
}

impl Trouble {
    fn new(status: u8, text: impl Into<String>) -> Trouble {
        Trouble { status, text: text.into() }
    }
}

/// Is it meant by these arguments? Then it is done.
pub(super) fn called(arguments: &[OsString]) -> Option<ExitCode> {
    let name = arguments.first().and_then(|first| Path::new(first).file_name()).unwrap_or_default();
    let rest = |from: usize| arguments.get(from..).unwrap_or_default();
    if name == OsStr::new("sendmail") {
        return Some(run(rest(1), None));
    }
    if name == OsStr::new("mailq") {
        let words: Vec<OsString> = std::iter::once("-bp".into()).chain(rest(1).iter().cloned()).collect();
        return Some(run(&words, None));
    }
    (arguments.get(1).is_some_and(|word| word == "sendmail")).then(|| run(rest(2), None))
}

/// `config`: said in front of the command.
pub(super) fn run(words: &[OsString], config: Option<&Path>) -> ExitCode {
    let done = options::parse(words).and_then(|mut options| {
        options.config = options.config.or_else(|| config.map(Path::to_owned));
        act(&options)
    });
    match done {
        Ok(()) => ExitCode::from(EX_OK),
        Err(trouble) => {
            let _ = writeln!(io::stderr(), "sendmail: {}", trouble.text);
            ExitCode::from(trouble.status)
        }
    }
}

fn act(options: &Options) -> Result<(), Trouble> {
    let say =
        |text: &str| super::text::print(text).map_err(|error| Trouble::new(EX_IOERR, format!("cannot write: {error}")));
    match options.mode {
        Mode::Help => say(options::HELP),
        Mode::Nothing => Ok(()),
        Mode::List => list(options),
        Mode::Smtp => submit::relay(&Place::find(options)?),
        Mode::Deliver => deliver(options),
    }
}

/// As `postrider queue list`.
fn list(options: &Options) -> Result<(), Trouble> {
    let mut words: Vec<OsString> = ["postrider", "queue", "list"].map(OsString::from).into();
    if let Some(config) = &options.config {
        words.extend(["--config".into(), config.into()]);
    }
    match super::run(words) {
        code if code == ExitCode::SUCCESS => Ok(()),
        _ => Err(Trouble::new(EX_UNAVAILABLE, "the queue can be seen by the user who runs the server, and by root")),
    }
}

fn deliver(options: &Options) -> Result<(), Trouble> {
    let place = Place::find(options)?;
    if place.is_trusted == Some(false) {
        return Err(not_trusted());
    }
    let letter = Letter::write(read(options)?, options, &place)?;
    let failed = match submit::submit(&place, &letter, options) {
        Ok(reply) => {
            if options.verbose {
                // Whoever wants to see it may have left.
                let _ = super::text::print(&clean(&reply));
            }
            return Ok(());
        }
        Err(failed) => failed,
    };
    let why = match failed {
        // The listener wants TLS, or does not know that we are trusted; the folder tells.
        Failed::Refused { code: 530, text, .. } if maildrop::is_open(&place.maildrop) => text,
        Failed::Refused { code, text, of_recipient } => return Err(refused(code, &text, of_recipient)),
        Failed::Away(why) => why,
    };
    match maildrop::put(&place.maildrop, &letter, options) {
        Ok(()) if options.verbose => {
            let _ = super::text::print(&format!("{}; the message waits in {}", clean(&why), place.maildrop.display()));
            Ok(())
        }
        Ok(()) => Ok(()),
        Err(maildrop::NotPut::Forbidden) => Err(not_trusted()),
        Err(maildrop::NotPut::Failed(error)) => Err(Trouble::new(
            EX_TEMPFAIL,
            format!("{}; and the message cannot be kept in {}: {error}", clean(&why), place.maildrop.display()),
        )),
    }
}

fn not_trusted() -> Trouble {
    Trouble::new(
        EX_NOPERM,
        "programs on this machine may not send without an account: put 127.0.0.0/8 into networks.trusted, or submit by \
         SMTP with a password",
    )
}

/// RFC 5321 4.2.3 and RFC 3463 in the words of sysexits.
fn refused(code: u16, text: &str, of_recipient: bool) -> Trouble {
    let enhanced = text.split_whitespace().nth(1).unwrap_or_default();
    let status = match (code, enhanced) {
        (530 | 535 | 538, _) => EX_NOPERM,
        _ if of_recipient && enhanced.starts_with("5.1.") => EX_NOUSER,
        (550 | 553 | 554, "5.7.1") => EX_NOPERM,
        _ if enhanced.starts_with("5.6.") => EX_DATAERR,
        (501 | 555, _) => EX_DATAERR,
        _ => EX_UNAVAILABLE,
    };
    Trouble::new(status, format!("the server refused it, nothing was sent: {}", clean(text)))
}

/// The message, to its end or, without -i, to a lone dot.
fn read(options: &Options) -> Result<Vec<u8>, Trouble> {
    let mut raw = Vec::new();
    io::stdin()
        .lock()
        .take(INPUT_BYTES_MAX + 1)
        .read_to_end(&mut raw)
        .map_err(|error| Trouble::new(EX_IOERR, format!("the message cannot be read: {error}")))?;
    if raw.len() as u64 > INPUT_BYTES_MAX {
        return Err(Trouble::new(EX_DATAERR, format!("the message has more than {INPUT_BYTES_MAX} bytes")));
    }
    if !options.ignores_dots {
        let mut at = 0;
        for line in raw.split_inclusive(|byte| *byte == b'\n') {
            if line == b".\n" || line == b".\r\n" {
                break;
            }
            at += line.len();
        }
        raw.truncate(at);
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_become_the_words_of_sysexits() {
        for (code, text, of_recipient, status) in [
            (530, "530 5.7.0 log in first", false, EX_NOPERM),
            (550, "550 5.1.1 no such address", true, EX_NOUSER),
            (550, "550 5.7.1 may not", false, EX_NOPERM),
            (552, "552 5.3.4 too large", false, EX_UNAVAILABLE),
            (550, "550 5.6.0 two From fields", false, EX_DATAERR),
            (554, "554 no", false, EX_UNAVAILABLE),
        ] {
            assert_eq!(refused(code, text, of_recipient).status, status, "{text}");
        }
    }
}
