//! Why a gate is closed, for people and for programs.

use crate::clock::{Millis, rfc3339};
use crate::queue::pace::Wait;
use crate::queue::suspend::Suspension;

/// Why a gate is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    Suspended { what: Suspension, since: Millis },
    Paced { stream: String, wait: Wait },
}

impl Closed {
    /// When it opens by itself; none: that cannot be told, or a person has to open it.
    pub fn until(&self) -> Option<Millis> {
        match self {
            Closed::Paced { wait: Wait::Day { until, .. } | Wait::Pause { until, .. }, .. } => Some(*until),
            Closed::Suspended { .. } | Closed::Paced { .. } => None,
        }
    }
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, wait) = match self {
            Closed::Suspended { what, since } => {
                let since = rfc3339(*since);
                return write!(f, "{what} is suspended since {since} (`postrider resume{}`)", option(what));
            }
            Closed::Paced { stream, wait } => (stream, wait),
        };
        match wait {
            Wait::Day { limit, until } => write!(
                f,
                "the stream {name} has had the {limit} recipients of a day (streams.{name}.daily_limit); it goes on at {}",
                rfc3339(*until)
            ),
            Wait::Pause { block, until } => write!(
                f,
                "the stream {name} pauses behind a block of {block} (streams.{name}.block_pause); it goes on at {}",
                rfc3339(*until)
            ),
            Wait::Block(block) => write!(
                f,
                "a block of {block} of the stream {name} is under way (streams.{name}.block_size); a pause comes first"
            ),
            Wait::Attempts(most) => write!(
                f,
                "{most} attempts of the stream {name} are under way, which is all it may have at once (streams.{name}.concurrency)"
            ),
        }
    }
}

/// How `postrider resume` is told of it.
pub fn option(what: &Suspension) -> String {
    match what {
        Suspension::All | Suspension::Target(_) => String::new(),
        Suspension::Stream(name) => format!(" --stream {name}"),
        Suspension::SmartHost(name) => format!(" --smart-host {name}"),
        Suspension::Fetch => " --fetch".to_owned(),
    }
}
