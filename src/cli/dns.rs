//! `postrider dns DOMAIN`: the records to publish for one of our domains, as lines for a zone file or as JSON, each
//! with whether it is there already. Keys that are missing are made on the way, so that the records can be published
//! before the server first starts. Of DKIM keys it says which wait for their record, and whose record may be taken
//! away.
//!
//! What is there stands in comments: the lines can be put into a zone as they are. Where the name servers do not
//! answer, or with --offline, the records are printed all the same.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use super::progress::Progress;
use super::text::clean;
use crate::app::world::records::zone_line;
pub use crate::app::world::records::{Record, dkim, json_lines, records, zone_lines};
use crate::app::world::{Level, Looked, Published, World};
use crate::config::Config;
use crate::dns::Resolver;
use crate::intake::sign::Signer;
use crate::message::Domain;

/// DNS is asked no longer.
const LOOK_TIME_MAX: Duration = Duration::from_secs(45);

/// Prints the records of `domain`, or why there are none.
pub async fn run(config: Config, domain: &str, json: bool, offline: bool) -> ExitCode {
    let Some(known) = Domain::parse(domain).ok().filter(|domain| config.is_own(domain)) else {
        eprintln!("postrider: {}", not_ours(&config, domain));
        return ExitCode::from(2);
    };
    match answer(Arc::new(config), known, json, offline).await {
        Ok(text) => {
            // A reader that has seen enough (`| head`) is no failure, and no panic.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("postrider: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn answer(config: Arc<Config>, domain: Domain, json: bool, offline: bool) -> Result<String, String> {
    let folder = config.data_dir.display();
    // As the server does at its first start, whichever of the two comes first.
    std::fs::create_dir_all(&config.data_dir).map_err(|error| {
        format!("data_dir {folder} cannot be made: {error}; run this as the user that runs the server, or make it for that user")
    })?;
    let signer = Signer::load(&config).map_err(|error| error.to_string())?;
    let records = records(&config, &signer, &domain);
    let looked =
        if offline { Err("DNS was not asked".to_owned()) } else { look(config.clone(), signer, &domain).await };
    let marked = marked(records, looked);
    Ok(if json { as_json(&marked) } else { as_lines(&marked) })
}

/// What DNS says, or why that is not known.
async fn look(config: Arc<Config>, signer: Signer, domain: &Domain) -> Result<Vec<Looked>, String> {
    let resolver = Resolver::new(&config.dns).map_err(|error| error.to_string())?;
    let world = World::new(config, resolver, Some(signer));
    let look = async {
        let resolver = world.look_at_resolver().await;
        if resolver.level == Level::Problem {
            return Err(resolver.found);
        }
        Ok(world.records(domain).await)
    };
    let looked = Progress::new("looking into DNS", 0).during(timeout(LOOK_TIME_MAX, look)).await;
    looked.unwrap_or_else(|_| Err(format!("DNS had not answered after {} s", LOOK_TIME_MAX.as_secs())))
}

/// A record, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Marked {
    #[serde(flatten)]
    record: Record,
    published: Published,
    /// What was found instead, or why it is not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    found: String,
}

fn marked(records: Vec<Record>, looked: Result<Vec<Looked>, String>) -> Vec<Marked> {
    let looked = match looked {
        Ok(looked) => looked,
        Err(why) => {
            let unknown = |record| Marked { record, published: Published::Unknown, found: why.clone() };
            return records.into_iter().map(unknown).collect();
        }
    };
    let mark = |record: Record| {
        let same = |one: &&Looked| one.record.name == record.name && one.record.kind == record.kind;
        match looked.iter().find(same) {
            // What is there, and what has to be added to it, is known only now.
            Some(Looked { record: better, published, finding }) => {
                let found = if *published == Published::Missing { String::new() } else { finding.found.clone() };
                let record = Record { value: better.value.clone(), ..record };
                Marked { record, published: *published, found }
            }
            None => Marked { record, published: Published::Unknown, found: String::new() },
        }
    };
    records.into_iter().map(mark).collect()
}

fn as_lines(marked: &[Marked]) -> String {
    let mut text = String::new();
    for Marked { record, published, found } in marked {
        let mark = match published {
            Published::There => " (it is there)".to_owned(),
            Published::Missing if record.state == Some("done") => String::new(),
            Published::Missing => " (MISSING)".to_owned(),
            Published::Differs => format!(" (DIFFERS: {})", clean(found)),
            Published::Unknown => format!(" (not known whether it is there: {})", clean(found)),
        };
        text.push_str(&zone_line(record, &mark));
    }
    let many = |wanted: Published| {
        marked.iter().filter(|one| one.published == wanted && one.record.state != Some("done")).count()
    };
    let (there, missing, differ) = (many(Published::There), many(Published::Missing), many(Published::Differs));
    // Writing to a String cannot fail.
    let _ =
        writeln!(text, "; {there} there, {missing} missing, {differ} different; `postrider check --dns` tells more");
    text
}

fn as_json(marked: &[Marked]) -> String {
    let lines = marked.iter().filter_map(|one| serde_json::to_string(one).ok());
    lines.map(|line| line + "\n").collect()
}

pub(super) fn not_ours(config: &Config, domain: &str) -> String {
    let known: Vec<&str> = config.domains.keys().map(Domain::as_str).collect();
    let shown: String = domain.chars().filter(|c| !c.is_control()).collect();
    match known.is_empty() {
        true => format!(
            "{shown} is not in [domains]: there are none yet\n  → add [domains.\"{shown}\"] to the configuration"
        ),
        false => format!(
            "{shown} is not in [domains]; there are {}\n  → name one of them, or add [domains.\"{shown}\"]",
            known.join(", ")
        ),
    }
}
