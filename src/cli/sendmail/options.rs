//! The flags of sendmail(8), as far as callers use them. What has no meaning here is taken and ignored;
//! none of them makes us write a file (CVE-2016-10033: -X and -O did).

use std::ffi::OsString;
use std::path::PathBuf;

use super::{EX_USAGE, Trouble};
use crate::message::Ret;

pub(super) const HELP: &str = "\
Usage: postrider sendmail [FLAGS] [RECIPIENT...] < MESSAGE        (also as `sendmail`; `mailq` is -bp)

  -t             recipients from To, Cc and Bcc, besides those named; Bcc is taken out
  -i, -oi        a line with a lone dot does not end the message
  -f, -r ADDRESS the envelope's sender; <> for none
  -F NAME        the sender's full name, where the message has no From
  -N WHEN        reports of delivery: never, or some of success,failure,delay
  -R full|hdrs   how much of the message a report returns
  -V ENVID       a name for this message in reports
  -B 7BIT|8BITMIME
  -v             say what the server said
  -bs            speak SMTP on standard input and output
  -bp            list the queue
  --config FILE  the server's configuration, if it can be read

Other flags of sendmail are taken and ignored. Without a readable configuration the server is at 127.0.0.1:587, or
where POSTRIDER_SENDMAIL_SERVER says. Exit status as in sysexits.h: 0 it is queued or safely kept until the server
takes it, 64 usage, 65 the message, 67 no such recipient, 69 refused, 75 try again later, 77 not allowed.";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    Deliver,
    Smtp,
    List,
    /// What other servers do by a flag, and ours does by itself.
    Nothing,
    Help,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub mode: Mode,
    pub config: Option<PathBuf>,
    pub from_header: bool,
    pub ignores_dots: bool,
    /// As given; empty: the null sender.
    pub sender: Option<String>,
    pub full_name: Option<String>,
    /// As for RCPT (RFC 3461 4.1).
    pub notify: Option<String>,
    pub ret: Option<Ret>,
    pub envid: Option<String>,
    pub seven_bit: bool,
    pub verbose: bool,
    pub recipients: Vec<String>,
}

/// Flags with a value, in the same word or the next.
const WITH_VALUE: &str = "frFNVRBoOCXLhpAbDe";
/// Flags whose value, if any, is in the same word.
const WITH_ENDING: &str = "qd";
const PLAIN: &str = "tivnmGUscI";

pub(super) fn parse(words: &[OsString]) -> Result<Options, Trouble> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(word) = word.to_str() else { return Err(usage("an argument is no text")) };
        let mut next = |flag: &str| {
            let value = words.next().and_then(|word| word.to_str());
            value.map(str::to_owned).ok_or_else(|| usage(format!("{flag} needs a value")))
        };
        match word {
            "--" => {
                for rest in words.by_ref() {
                    options.recipients.push(rest.to_str().ok_or_else(|| usage("an argument is no text"))?.to_owned());
                }
            }
            "--config" => options.config = Some(next("--config")?.into()),
            "--help" => options.mode = Mode::Help,
            _ if word.starts_with("--config=") => options.config = Some(word["--config=".len()..].into()),
            _ if word.len() > 1 && word.starts_with('-') => cluster(&mut options, &word[1..], &mut next)?,
            _ => {
                options.recipients.push(word.to_owned());
                // As getopt of the systems that sendmail comes from: the first recipient ends the flags.
                for rest in words.by_ref() {
                    options.recipients.push(rest.to_str().ok_or_else(|| usage("an argument is no text"))?.to_owned());
                }
            }
        }
    }
    Ok(options)
}

/// `ti`, `oi`, `fa@example.com`: letters, of which the last may have a value.
fn cluster(
    options: &mut Options,
    letters: &str,
    next: &mut impl FnMut(&str) -> Result<String, Trouble>,
) -> Result<(), Trouble> {
    let mut chars = letters.chars();
    while let Some(flag) = chars.next() {
        let rest = chars.as_str();
        if WITH_VALUE.contains(flag) {
            let value = if rest.is_empty() { next(&format!("-{flag}"))? } else { rest.to_owned() };
            return valued(options, flag, value);
        }
        if WITH_ENDING.contains(flag) {
            if flag == 'q' {
                options.mode = Mode::Nothing;
            }
            return Ok(());
        }
        match flag {
            't' => options.from_header = true,
            'i' => options.ignores_dots = true,
            'v' => options.verbose = true,
            // newaliases
            'I' => options.mode = Mode::Nothing,
            _ if PLAIN.contains(flag) => {}
            _ => return Err(usage(format!("there is no flag -{flag}"))),
        }
    }
    Ok(())
}

fn valued(options: &mut Options, flag: char, value: String) -> Result<(), Trouble> {
    match (flag, value.as_str()) {
        ('f' | 'r', _) => options.sender = Some(value),
        ('F', _) => options.full_name = Some(value),
        ('N', _) => options.notify = Some(notify(&value)?),
        ('V', _) => options.envid = Some(value),
        ('R', "full") => options.ret = Some(Ret::Full),
        ('R', "hdrs") => options.ret = Some(Ret::Headers),
        ('R', _) => return Err(usage("-R wants full or hdrs")),
        ('B', _) => options.seven_bit = value.eq_ignore_ascii_case("7bit"),
        ('o', "i") => options.ignores_dots = true,
        ('b', "m") => options.mode = Mode::Deliver,
        ('b', "s") => options.mode = Mode::Smtp,
        ('b', "p") => options.mode = Mode::List,
        ('b', "i") => options.mode = Mode::Nothing,
        ('b', _) => return Err(usage(format!("-b{value} is not supported; `postrider serve` runs the server"))),
        _ => {}
    }
    Ok(())
}

fn notify(value: &str) -> Result<String, Trouble> {
    let words: Vec<String> = value.split(',').map(|word| word.trim().to_ascii_uppercase()).collect();
    let is_known = |word: &String| ["SUCCESS", "FAILURE", "DELAY"].contains(&word.as_str());
    match words.as_slice() {
        [never] if never == "NEVER" => Ok(never.clone()),
        words if words.iter().all(is_known) => Ok(words.join(",")),
        _ => Err(usage("-N wants never, or some of success,failure,delay")),
    }
}

fn usage(text: impl Into<String>) -> Trouble {
    Trouble::new(EX_USAGE, format!("{} (see `postrider sendmail --help`)", text.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(line: &str) -> Options {
        let words: Vec<OsString> = line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect();
        parse(&words).unwrap_or_else(|trouble| unreachable!("{line}: {trouble:?}"))
    }

    #[test]
    fn what_programs_write_is_understood() {
        let php = parsed("-t -i");
        assert!(php.from_header && php.ignores_dots);
        assert_eq!(parsed("-ti"), php);
        assert_eq!(parsed("-t -oi"), php);
        let cron = parsed("-FCronDaemon -odi -oem -oi -t -f root");
        assert_eq!((cron.full_name.as_deref(), cron.sender.as_deref()), (Some("CronDaemon"), Some("root")));
        assert!(cron.from_header && cron.ignores_dots);
        let mutt = parsed("-oem -oi -f a@example.com -N never -R hdrs -B 8BITMIME -- b@example.net -c@example.net");
        assert_eq!(mutt.recipients, ["b@example.net", "-c@example.net"]);
        assert_eq!((mutt.notify.as_deref(), mutt.ret), (Some("NEVER"), Some(Ret::Headers)));
        assert_eq!(parsed("-fa@x.example b -f c").recipients, ["b", "-f", "c"]);
        assert_eq!(parsed("-bs").mode, Mode::Smtp);
        assert_eq!(parsed("-bp").mode, Mode::List);
        assert_eq!(parsed("-q30m").mode, Mode::Nothing);
        assert_eq!(
            parsed("-X /etc/passwd -O QueueDirectory=/tmp -C /x -d8.1 -G -U a@x.example").recipients,
            ["a@x.example"]
        );
        assert_eq!(parsed("-N success,Delay a").notify.as_deref(), Some("SUCCESS,DELAY"));
    }

    #[test]
    fn what_is_not_is_a_usage_error() {
        for line in ["-z", "-f", "-bd", "-N sometimes", "-R half", "--frob"] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(parse(&words).unwrap_err().status, EX_USAGE, "{line}");
        }
    }
}
