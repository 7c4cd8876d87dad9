//! The process' log on standard error: its level and format, and the thread that writes it.
//!
//! The message path only puts its lines into memory: a write for each of them, with all workers in turn
//! at one lock, was a tenth of the work a message costs. Lines are written together, [`GATHER`] after the
//! first of them at the latest; warnings and errors at once. Where standard error takes nothing any
//! more, mail goes on and lines are lost: the next one that is written says how many.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::subscriber::Interest;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::Failure;
use crate::app::reload::SetLog;
use crate::config::{Log, LogFormat};
use crate::delivery::smtp::dialogue;
use crate::dns;
use crate::message::text::steers;

/// Longest time a line waits for others.
const GATHER: Duration = Duration::from_millis(10);
/// As much is written without waiting for more, in bytes.
const WRITE_AT: usize = 64 * 1024;
/// Most that waits to be written, in bytes; what comes on top of it is lost.
const WAITING_MAX: usize = 4 * 1024 * 1024;
/// Longest wait for the last lines at the end of the process.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// How the targets of our own lines begin.
const OURS: &str = "postrider";

/// Starts the log: ours at the configured level, but for dialogues that somebody has asked for; libraries only from
/// warnings up. What is logged
/// before the guard is dropped is written.
pub(super) fn start(log: &Log) -> Result<Guard, Failure> {
    let level = level(log).map_err(|error| Failure::usage(error).remedy("use info"))?;
    // The most that there is of ours: how much of it is written is what `ours` says.
    let most = format!("warn,{},{OURS}=trace", dns::NO_TROUBLE);
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("cannot start the log: {error}"));
    let filter = EnvFilter::try_new(most).map_err(|error| failed(&error))?;
    let ours = Ours(Arc::new(AtomicUsize::new(number(level))));
    let lines = Lines::start(std::io::stderr()).map_err(|error| failed(&error))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines.clone());
    let started = match log.format {
        LogFormat::Text => {
            let builder = builder.with_target(false).with_ansi(std::io::stderr().is_terminal());
            builder.finish().with(ours.clone()).try_init()
        }
        LogFormat::Json => {
            builder.json().flatten_event(true).with_span_list(false).finish().with(ours.clone()).try_init()
        }
    };
    started.map_err(|error| failed(&error))?;
    Ok(Guard { lines, ours })
}

fn level(log: &Log) -> Result<LevelFilter, String> {
    log.level.parse().map_err(|error| format!("log.level {:?}: {error}", log.level))
}

/// What is logged of ours: up to which level, which may change at any time. Each place in the code that logs asks
/// once, and again after a change, so nothing is looked at for each line.
#[derive(Clone, Debug)]
struct Ours(Arc<AtomicUsize>);

/// Levels by number, and back.
const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

fn number(level: LevelFilter) -> usize {
    LEVELS.iter().position(|known| *known == level).unwrap_or(0)
}

impl Ours {
    fn takes(&self, meta: &Metadata<'_>) -> bool {
        let level = LEVELS.get(self.0.load(Ordering::Relaxed)).copied().unwrap_or(LevelFilter::INFO);
        let is_ours = meta.target().starts_with(OURS) && meta.target() != dialogue::TARGET;
        !is_ours || *meta.level() <= level
    }

    fn set(&self, log: &Log) -> Result<(), String> {
        let new = number(level(log)?);
        if self.0.swap(new, Ordering::Relaxed) != new {
            tracing::callsite::rebuild_interest_cache();
        }
        Ok(())
    }
}

impl<S: tracing::Subscriber> Layer<S> for Ours {
    fn register_callsite(&self, meta: &'static Metadata<'static>) -> Interest {
        if self.takes(meta) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, meta: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.takes(meta)
    }
}

/// Sees to it that the last lines are written.
pub(super) struct Guard {
    lines: Lines,
    ours: Ours,
}

impl Guard {
    /// For changes of `[log]`.
    pub(super) fn setter(&self) -> SetLog {
        let ours = self.ours.clone();
        Box::new(move |log| ours.set(log))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.lines.finish();
    }
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    lost: u64,
    /// Somebody wants them written now.
    urgent: bool,
    /// The thread has taken lines and is writing them.
    writing: bool,
}

/// Where lines are put; writes of any size are whole lines here.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<(Mutex<Waiting>, Condvar, Condvar)>);

impl Lines {
    fn start(out: impl Write + Send + 'static) -> std::io::Result<Lines> {
        let lines = Lines::default();
        let writer = lines.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.write_all_that_come(out))?;
        Ok(lines)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, line: &[u8], urgent: bool) {
        let mut waiting = self.waiting();
        if waiting.lines.len() + line.len() > WAITING_MAX {
            waiting.lost += 1;
            return;
        }
        let before = waiting.lines.len();
        waiting.lines.extend_from_slice(line);
        let full = before < WRITE_AT && waiting.lines.len() >= WRITE_AT;
        waiting.urgent |= urgent;
        drop(waiting);
        if before == 0 || full || urgent {
            self.0.1.notify_one();
        }
    }

    fn write_all_that_come(self, mut out: impl Write) {
        let (_, put, written) = &*self.0;
        let mut taken = Vec::new();
        // Lines that nobody has been told of yet.
        let mut untold = 0;
        loop {
            let mut waiting = self.waiting();
            waiting.writing = false;
            written.notify_all();
            waiting =
                put.wait_while(waiting, |waiting| waiting.lines.is_empty()).unwrap_or_else(PoisonError::into_inner);
            let more = |waiting: &mut Waiting| !waiting.urgent && waiting.lines.len() < WRITE_AT;
            waiting = put.wait_timeout_while(waiting, GATHER, more).unwrap_or_else(PoisonError::into_inner).0;
            std::mem::swap(&mut taken, &mut waiting.lines);
            untold += std::mem::take(&mut waiting.lost);
            (waiting.urgent, waiting.writing) = (false, true);
            drop(waiting);
            // A full disk: some of it may be there, and ends in the middle of a line.
            let is_cut = out.write_all(&taken).is_err();
            if is_cut {
                untold += taken.iter().filter(|byte| **byte == b'\n').count() as u64;
            }
            if untold > 0 {
                let line = format!("WARN up to {untold} lines of the log are lost: standard error did not take them\n");
                let line = if is_cut { format!("\n{line}") } else { line };
                untold = if out.write_all(line.as_bytes()).is_ok() { 0 } else { untold };
            }
            taken.clear();
        }
    }

    fn finish(&self) {
        let mut waiting = self.waiting();
        waiting.urgent = true;
        self.0.1.notify_one();
        let unwritten = |waiting: &mut Waiting| waiting.writing || !waiting.lines.is_empty();
        let _ = self.0.2.wait_timeout_while(waiting, LAST_WAIT, unwritten);
    }
}

/// One line's way in.
struct Line<'a> {
    lines: &'a Lines,
    urgent: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.lines.put(&harmless(line), self.urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What strangers gave us may be in a line, but neither end it nor turn it round: such characters are written as JSON
/// would, in either format. ESC is left: colours are made of it, and in what is logged it is escaped already.
fn harmless(line: &[u8]) -> Cow<'_, [u8]> {
    let (text, end) = line.split_at(line.strip_suffix(b"\n").map_or(line.len(), <[u8]>::len));
    // The first octets of all that are escaped below.
    let may_steer = |byte: &u8| matches!(byte, 0..=0x08 | 0x0a..=0x1a | 0x1c..=0x1f | 0x7f | 0xc2 | 0xe2);
    if !text.iter().any(may_steer) {
        return Cow::Borrowed(line);
    }
    let mut written = String::with_capacity(line.len() + 64);
    for c in String::from_utf8_lossy(text).chars() {
        match c {
            '\t' | '\u{1b}' => written.push(c),
            c if steers(c) => written.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => written.push(c),
        }
    }
    let mut written = written.into_bytes();
    written.extend_from_slice(end);
    Cow::Owned(written)
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: self, urgent: false }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Line<'a> {
        Line { lines: self, urgent: *meta.level() <= Level::WARN }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc;

    /// Takes each write when the test says so.
    struct Gate(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn gate() -> (Lines, mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>) {
        let ((open, opened), (wrote, written)) = (mpsc::channel(), mpsc::channel());
        (Lines::start(Gate(opened, wrote)).unwrap(), open, written)
    }

    #[test]
    fn what_is_logged_neither_ends_a_line_nor_turns_it_round() {
        let shown = |line: &str| String::from_utf8(harmless(line.as_bytes()).into_owned()).unwrap();
        assert_eq!(shown("plain: Grüße \u{1b}[2m…\n"), "plain: Grüße \u{1b}[2m…\n");
        assert_eq!(shown("a\r\nFAKE\n"), "a\\u000d\\u000aFAKE\n");
        assert_eq!(shown("a\u{202e}b\u{2028}c\u{85}d"), "a\\u202eb\\u2028c\\u0085d");
    }

    #[test]
    fn lines_come_out_in_order_and_together() {
        let (lines, open, written) = gate();
        lines.put(b"first\n", true);
        open.send(()).unwrap();
        assert_eq!(written.recv().unwrap(), b"first\n");
        for number in 0..3 {
            lines.put(format!("{number}\n").as_bytes(), number == 2);
        }
        (0..3).for_each(|_| open.send(()).unwrap());
        lines.finish();
        drop(lines);
        assert_eq!(written.try_iter().flatten().collect::<Vec<u8>>(), b"0\n1\n2\n");
    }

    /// Has no room for the first so many octets.
    struct Full(usize, mpsc::Sender<Vec<u8>>);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 > 0 {
                self.0 = self.0.saturating_sub(bytes.len());
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_on_a_full_disk_says_what_was_lost_when_there_is_room() {
        let (wrote, written) = mpsc::channel();
        // The two lines, and the line that tells of them.
        let lines = Lines::start(Full(50, wrote)).unwrap();
        lines.put(b"one\ntwo\n", true);
        lines.finish();
        assert!(written.try_recv().is_err());
        lines.put(b"three\n", true);
        lines.finish();
        let all: Vec<u8> = written.try_iter().flatten().collect();
        let all = String::from_utf8(all).unwrap();
        let told = "three\nWARN up to 2 lines of the log are lost: standard error did not take them\n";
        assert_eq!(all, told);
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up_and_says_what_was_lost() {
        let (lines, open, written) = gate();
        lines.put(b"taken\n", true);
        let long = vec![b'x'; WAITING_MAX / 2 - 16];
        (0..5).for_each(|_| lines.put(&long, false));
        assert!(lines.waiting().lines.len() <= WAITING_MAX);
        drop(open);
        lines.finish();
        let all: Vec<u8> = written.try_iter().flatten().collect();
        let end = String::from_utf8(all[all.len() - 80..].to_vec()).unwrap();
        assert!(end.contains("lines of the log are lost"), "{end}");
    }
}
