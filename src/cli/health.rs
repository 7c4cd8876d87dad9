//! `postrider check --health`: does the running server take mail? For containers and scripts, whose
//! images have no HTTP client that speaks over a Unix socket.

use std::path::Path;

use super::{Failure, client, print_json, text};
use crate::admin::Readiness;
use crate::admin::text::size;

/// Prints how it stands; an error where mail cannot be taken.
pub(super) async fn run(config: &Path, json: bool) -> Result<(), Failure> {
    let readiness = client(config)?.readiness().await?;
    if json {
        print_json(&readiness)?;
    }
    let obstacles = obstacles(&readiness);
    if !readiness.ready {
        return Err(Failure::new(format!("the server takes no mail: {}", obstacles.join("; ")))
            .remedy("it does again by itself once that is over; its log tells more"));
    }
    if !json {
        text::print("the server takes mail")?;
    }
    Ok(())
}

/// Why no mail is taken.
fn obstacles(readiness: &Readiness) -> Vec<String> {
    let mut found = Vec::new();
    if readiness.store.state != "good" {
        let why = readiness.store.why.as_deref().unwrap_or("no reason is known");
        found.push(format!("the store has failed ({why})"));
    }
    let disk = &readiness.disk;
    if disk.is_short_of_files() {
        found.push("the disk takes hardly any more files (inodes)".to_owned());
    } else if !disk.accepting {
        found.push(format!("{} of disk are free, queue.min_free is {}", size(disk.free), size(disk.min_free)));
    }
    if readiness.memory.used >= readiness.memory.limit {
        found.push("queue.memory is used up".to_owned());
    }
    if found.is_empty() {
        found.push("it is stopping".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::admin::reload::Configuration;
    use crate::admin::{Disk, Memory, ResolverState, StoreState};

    fn readiness() -> Readiness {
        Readiness {
            ready: false,
            store: StoreState { state: "good".to_owned(), since: None, why: None, damages: Vec::new() },
            disk: Disk { free: 9, min_free: 5, accepting: true },
            memory: Memory { used: 0, limit: 10 },
            listeners: Vec::new(),
            signing: Vec::new(),
            resolver: ResolverState::Unknown,
            suspended: Vec::new(),
            configuration: Configuration::default(),
        }
    }

    #[test]
    fn each_obstacle_is_named() {
        assert_eq!(obstacles(&readiness()), ["it is stopping"]);
        let mut bad = readiness();
        bad.store.state = "failed".to_owned();
        bad.store.why = Some("no space left".to_owned());
        bad.disk = Disk { free: 3, min_free: 5, accepting: false };
        bad.memory = Memory { used: 10, limit: 10 };
        let texts = obstacles(&bad);
        assert_eq!(texts.len(), 3);
        assert!(texts.first().unwrap().contains("no space left"));
        assert!(texts.get(1).unwrap().contains("3 B of disk are free, queue.min_free is 5 B"));
    }
}
