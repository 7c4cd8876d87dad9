//! A bar on standard error for work that takes over a second; nothing where that is no terminal.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Before this nothing is shown.
const QUIET: Duration = Duration::from_secs(1);
/// How often the bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// Characters of the bar itself.
const BAR_CHARS: usize = 24;

/// How far a piece of work is. Dropping it wipes the bar.
#[derive(Debug)]
pub(super) struct Progress {
    what: &'static str,
    /// About; 0: nobody knows.
    total: u64,
    begun: Instant,
    drawn: Option<Instant>,
    is_shown: bool,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: u64) -> Progress {
        let is_shown =
            std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb");
        Progress { what, total, begun: Instant::now(), drawn: None, is_shown }
    }

    pub(super) fn set(&mut self, done: u64) {
        let last = self.drawn.map_or(QUIET, |_| DRAW_EVERY);
        if !self.is_shown || self.drawn.unwrap_or(self.begun).elapsed() < last {
            return;
        }
        self.drawn = Some(Instant::now());
        let line = line(self.what, done, self.total, self.begun.elapsed());
        // A bar that cannot be drawn is no reason to stop.
        let _ = write!(std::io::stderr().lock(), "\r\x1b[K{line}");
    }

    /// Draws while `work` runs, which tells how far it is, of how much.
    pub(super) async fn following<T>(mut self, told: &Cell<(u64, u64)>, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(DRAW_EVERY) => {
                    let (done, total) = told.get();
                    self.total = total;
                    self.set(done);
                }
            }
        }
    }

    /// Draws while `work` runs, for work that does not say how far it is.
    pub(super) async fn during<T>(mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(DRAW_EVERY) => self.set(0),
            }
        }
    }

    /// Wipes the bar so that a line can be printed; it comes back with the next step.
    pub(super) fn clear(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(what: &str, done: u64, total: u64, took: Duration) -> String {
    let seconds = took.as_secs();
    if total == 0 {
        let count = if done > 0 { format!(" {done}") } else { String::new() };
        return format!("{what}{count}, {seconds} s");
    }
    // The total is an estimate: a bar that is full and goes on would be a lie.
    let percent = (u128::from(done) * 100 / u128::from(total)).min(99);
    let full = BAR_CHARS * percent as usize / 100;
    format!("{what} [{}{}] {percent:>2} %, {seconds} s", "#".repeat(full), "-".repeat(BAR_CHARS - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_never_full_before_the_end() {
        let took = Duration::from_secs(3);
        assert_eq!(line("checking", 50, 100, took), "checking [############------------] 50 %, 3 s");
        assert_eq!(line("checking", 500, 100, took), "checking [#######################-] 99 %, 3 s");
        assert_eq!(line("compacting", 0, 0, took), "compacting, 3 s");
        assert_eq!(line("importing", 7, 0, took), "importing 7, 3 s");
    }
}
