//! Delivery to a program: one run for each recipient, with the message on its standard input.
//!
//! Promises: there is no shell; arguments are what was written and what was filled in, one each; the
//! program gets an environment made for it and no open file but its input and output; it runs in a process
//! group of its own, which is ended when the time is over or the server stops; what it says is read up to
//! a bound. Exit 0 is done, 75 (EX_TEMPFAIL) is tried again, any other is a refusal. A program that was
//! ended by a signal may have done its work: it is tried again, and that is told as unsure. What cannot
//! be started is tried again.
//!
//! What the named groups of a pattern alias have found is filled in as any other value, and stands in the
//! environment. It is found anew for each try, by the aliases as they are then.
//!
//! The message begins with Return-Path, X-Original-To (where an alias led here) and Delivered-To, and its
//! lines end in LF, as in a Maildir. A program need not read it. Left out: other users than our own,
//! and what a program leaves running when it ends by itself.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, timeout, timeout_at};

use super::http::one_line;
use super::local_form::{LineEnds, head};
use super::{Body, Delivered, Job, Outcome};
use crate::config::Config;
use crate::config::targets::{LooksLikeOption, PipeCommand, Word};
use crate::message::Address;
use crate::queue::record::{Failure, Message, Recipient};
use crate::routing::inbound;
use crate::store::StoreError;

/// Bytes of what the program says that are kept, each of standard output and standard error.
const OUTPUT_BYTES_MAX: usize = 4096;
/// Characters of it that are told.
const OUTPUT_CHARS_SHOWN: usize = 300;
/// Bytes read of it at once.
const READ_BYTES: usize = 4096;
/// What a program has started in the background may hold its output open; nobody waits longer for that.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);
/// How long a process that was killed may take to be gone.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// `sysexits.h`: try again.
const EX_TEMPFAIL: i32 = 75;
/// Where programs look for other programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One `[targets.*]` of kind `pipe`, ready to be used from many tasks.
#[derive(Clone, Debug)]
pub struct Pipe {
    name: String,
    command: PipeCommand,
    timeout: Duration,
    /// For the groups of pattern aliases.
    config: Option<Arc<Config>>,
}

/// What is known of one recipient.
struct Known<'a> {
    message: &'a Message,
    recipient: &'a Recipient,
    /// By name.
    groups: BTreeMap<String, String>,
}

/// How a run ended.
enum End {
    Exited(ExitStatus),
    TimedOut,
    /// The message could not be read from our own store.
    Unread(StoreError),
    /// The system could not tell.
    Lost(std::io::Error),
}

impl Pipe {
    pub fn new(name: &str, command: &PipeCommand, timeout: Duration) -> Pipe {
        Pipe { name: name.to_owned(), command: command.clone(), timeout, config: None }
    }

    /// Tells the program what the groups of pattern aliases have found.
    pub fn with_aliases(self, config: Arc<Config>) -> Pipe {
        Pipe { config: Some(config), ..self }
    }

    /// The same after the configuration was read anew, in which its own section is what it was.
    pub fn with_config(&self, config: Arc<Config>) -> Pipe {
        self.clone().with_aliases(config)
    }

    /// Runs the program once for each recipient of the job.
    pub async fn deliver(&self, job: &Job) -> Vec<(u32, Outcome)> {
        let mut outcomes = Vec::with_capacity(job.recipients.len());
        let mut broken: Option<Failure> = None;
        for (number, recipient) in &job.recipients {
            let outcome = match &broken {
                Some(why) => defer(why.clone()),
                None => self.run(job, recipient).await,
            };
            // What does not start or does not end will not do better for the others now.
            if let (None, Outcome::Defer { why, .. }) = (&broken, &outcome)
                && why.status != TRY_AGAIN
            {
                broken = Some(Failure { unsure: false, ..why.clone() });
            }
            outcomes.push((*number, outcome));
        }
        outcomes
    }

    async fn run(&self, job: &Job, recipient: &Recipient) -> Outcome {
        let own = recipient.alias.as_ref().unwrap_or(&recipient.address);
        let groups = self.config.as_ref().map(|config| inbound::groups(config, own)).unwrap_or_default();
        let known = Known { message: &job.message, recipient, groups };
        let arguments = match self.command.arguments(|word| known.value(word)) {
            Ok(arguments) => arguments,
            Err(LooksLikeOption(word)) => return Outcome::Fail(self.looks_like_option(&word, &known.value(&word))),
        };
        let program = self.command.program();
        let mut command = Command::new(program);
        command
            .args(&arguments)
            .env_clear()
            .envs(known.environment(&self.name))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let reason = format!(
                    "{} cannot be started: {error}; make it a file that the user postrider runs as may run, or \
                     correct targets.{}.command",
                    program.display(),
                    self.name
                );
                return defer(self.failure("4.3.5", reason));
            }
        };
        let (end, said) = self.attend(child, &job.message, recipient, &job.body).await;
        self.judge(program, end, &said)
    }

    /// Feeds it and listens to it until it ends.
    async fn attend(&self, mut child: Child, message: &Message, recipient: &Recipient, body: &Body) -> (End, String) {
        let mut group = GroupGuard::of(&child);
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let deadline = Instant::now() + self.timeout;
        let (mut said, mut complained) = (Vec::new(), Vec::new());
        let end = {
            let talk = async { tokio::join!(listen(output, &mut said), listen(errors, &mut complained)) };
            let feed = feed(input, head(message, recipient), body);
            let mut talk = std::pin::pin!(talk);
            let mut feed = std::pin::pin!(feed);
            let (mut is_fed, mut is_silent) = (false, false);
            let end = loop {
                tokio::select! {
                    ended = child.wait() => break ended.map_or_else(End::Lost, End::Exited),
                    () = tokio::time::sleep_until(deadline) => break End::TimedOut,
                    fed = &mut feed, if !is_fed => {
                        is_fed = true;
                        if let Err(error) = fed {
                            break End::Unread(error);
                        }
                    }
                    _ = &mut talk, if !is_silent => is_silent = true,
                }
            };
            match &end {
                End::Exited(_) => group.disarm(),
                End::TimedOut | End::Unread(_) | End::Lost(_) => {
                    group.kill();
                    // Else it is left to the runtime, which looks after processes that nobody waits for.
                    let _ = timeout(KILL_GRACE, child.wait()).await;
                    group.disarm();
                }
            }
            if !is_silent {
                let _ = timeout_at(Instant::now() + OUTPUT_GRACE, talk).await;
            }
            end
        };
        // Why it failed is what it says on standard error, where programs keep to that.
        let shown = if complained.is_empty() { said } else { complained };
        (end, one_line(&shown, OUTPUT_CHARS_SHOWN))
    }

    fn judge(&self, program: &Path, end: End, said: &str) -> Outcome {
        let program = program.display();
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        let unsure = |why: Failure| defer(Failure { unsure: true, ..why });
        match end {
            End::Exited(status) => match (status.code(), status.signal()) {
                (Some(0), _) => {
                    Outcome::Delivered(Delivered { to: format!("pipe to {program}"), ..Delivered::default() })
                }
                (Some(EX_TEMPFAIL), _) => {
                    let reason = format!("{program} ended with 75, which asks for another try{said}");
                    defer(self.failure(TRY_AGAIN, reason))
                }
                (Some(code), _) => {
                    Outcome::Fail(self.failure(status_of(code), format!("{program} ended with {code}{said}")))
                }
                (None, signal) => {
                    let signal = signal.map_or("a signal".to_owned(), |signal| format!("signal {signal}"));
                    unsure(self.failure(TRY_AGAIN, format!("{program} was ended by {signal}{said}")))
                }
            },
            End::TimedOut => {
                let seconds = self.timeout.as_secs_f32();
                let reason = format!("{program} had not ended after {seconds} s (targets.{}.timeout){said}", self.name);
                unsure(self.failure("4.4.2", reason))
            }
            End::Unread(error) => defer(self.failure("4.3.0", format!("the stored message cannot be read: {error}"))),
            End::Lost(error) => unsure(self.failure("4.3.0", format!("it is not known how {program} ended: {error}"))),
        }
    }

    fn looks_like_option(&self, word: &Word, value: &str) -> Failure {
        let status = if *word == Word::Sender { "5.1.7" } else { "5.1.3" };
        let name = word.name();
        let reason = format!(
            "{{{name}}} is {value:?} and would be an option for {}; write \"--\" in front of it in targets.{}.command, \
             or join it to other text",
            self.command.program().display(),
            self.name
        );
        self.failure(status, reason)
    }

    fn failure(&self, status: &str, reason: String) -> Failure {
        Failure::local(status, self.name.as_str(), reason)
    }
}

/// A result for this recipient alone; after any other delay the rest of the recipients is not tried.
const TRY_AGAIN: &str = "4.2.0";

fn defer(why: Failure) -> Outcome {
    Outcome::Defer { why, not_before_secs: None }
}

/// RFC 3463 for what `sysexits.h` says.
fn status_of(code: i32) -> &'static str {
    match code {
        65 => "5.6.0",
        67 => "5.1.1",
        68 => "5.1.2",
        77 => "5.7.1",
        _ => "5.3.0",
    }
}

impl Known<'_> {
    fn value(&self, word: &Word) -> String {
        let address: &Address = &self.recipient.address;
        match word {
            Word::Id => self.message.id.to_string(),
            Word::Sender => self.message.mail_from.to_string(),
            Word::Recipient => address.to_string(),
            Word::Local => address.local().to_owned(),
            Word::Domain => address.domain().to_string(),
            Word::Alias => self.recipient.alias.as_ref().unwrap_or(address).to_string(),
            Word::Group(name) => self.groups.get(name).cloned().unwrap_or_default(),
        }
    }

    /// The whole environment of the program of this target.
    fn environment(&self, target: &str) -> Vec<(String, String)> {
        let mut all = vec![("PATH".to_owned(), PATH.to_owned()), ("LANG".to_owned(), "C.UTF-8".to_owned())];
        let mut add = |name: &str, value: &str| all.push((format!("POSTRIDER_{}", variable(name)), clean(value)));
        for (name, word) in Word::ALL {
            add(name, &self.value(&word));
        }
        for (name, value) in &self.groups {
            add(&format!("group_{name}"), value);
        }
        add("target", target);
        add("size", &self.message.size.to_string());
        all
    }
}

/// A name that every shell can read: of A to Z, digits and underscores.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// One line, and nothing that an old shell takes for a function (CVE-2014-6271).
fn clean(value: &str) -> String {
    let line: String = value.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    if line.trim_start().starts_with("()") { format!("_{line}") } else { line }
}

/// Writes the message; a program that does not want it closes its end, or ends.
async fn feed(input: Option<ChildStdin>, head: String, body: &Body) -> Result<(), StoreError> {
    let Some(mut input) = input else { return Ok(()) };
    let mut block = head.into_bytes();
    let mut pending = Vec::new();
    let mut lines = LineEnds::new(&mut pending);
    let mut pieces = body.pieces();
    // Each piece is dropped before the next is read.
    while let Some(piece) = pieces.next().await? {
        // Into memory, which does not fail.
        let _ = lines.write(&piece);
        drop(piece);
        block.append(lines.taken());
        if input.write_all(&block).await.is_err() {
            return Ok(());
        }
        block.clear();
    }
    let _ = lines.finish();
    block.append(&mut pending);
    let _ = input.write_all(&block).await;
    let _ = input.shutdown().await;
    Ok(())
}

/// Reads to the end, and keeps the beginning.
async fn listen(output: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut output) = output else { return };
    let mut buffer = [0; READ_BYTES];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend(buffer.iter().take(count.min(room)));
    }
}

/// Ends the process group when it is dropped: with the attempt, so also when the server stops.
struct GroupGuard(Option<Pid>);

impl GroupGuard {
    fn of(child: &Child) -> GroupGuard {
        GroupGuard(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }

    /// The group's first process must not have been waited for yet, or its number may be another's.
    fn kill(&self) {
        if let Some(group) = self.0 {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_environment_are_capitals_digits_and_underscores() {
        assert_eq!(
            ["group_id", "group_Order.no[1]", "group_größe"].map(variable),
            ["GROUP_ID", "GROUP_ORDER_NO_1_", "GROUP_GR__E"]
        );
    }

    #[test]
    fn values_of_the_environment_are_one_line_and_no_function() {
        for (value, made) in [
            ("a@b.example", "a@b.example"),
            ("() { :;}; id", "_() { :;}; id"),
            (" () { :;}; id", "_ () { :;}; id"),
            ("a\r\nb\0c", "a__b_c"),
            ("$(id)`id`", "$(id)`id`"),
        ] {
            assert_eq!(clean(value), made);
        }
    }
}
