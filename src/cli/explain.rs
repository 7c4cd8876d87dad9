//! `postrider explain`: why a message is where it is, asked of the running server; or what would become of
//! one, worked out on the configuration alone.

use std::path::Path;

use super::client::Client;
use super::text::{Paint, clean, moment, print, relative, table};
use super::{Failure, load, print_json, story};
use crate::admin::explain::{Cause, Condition, Explained, Explanation};
use crate::app::explain::route::{self, NoAnswer, Question, Routed, Step, Verdict};
use crate::clock::{Clock, Millis};
use crate::config::value::parse_size;
use crate::config::{Config, Places};
use crate::delivery::smtp::SmtpTransport;
use crate::dns::Resolver;
use crate::message::address::parse_reverse_path;
use crate::message::{Address, Domain, MessageId, ReversePath};

pub(super) const EXAMPLES: &str = "\
Examples:
  postrider explain 0d3c9k2p5v8xq                                     why does it wait, and until when?
  postrider explain --from shop@example.com --to bob@example.net      what would become of such a message?
  postrider explain --from bob@example.net --to sales@example.com --listener mx
  postrider explain --from shop@example.com --to bob@example.net --account shop --size 20MiB --dns
  postrider explain --config new.toml --from a@example.com --to b@example.net --tls-required --json

With an id the running server is asked. With --from and --to nothing is sent and no server is needed; the
configuration may be one that is not in use yet. --dns looks up where the mail would go and which TLS that demands.";

/// Two commands in one: what clap would make of it shows neither.
const USAGE: &str = "\
postrider explain [OPTIONS] <ID>
       postrider explain [OPTIONS] --from <ADDRESS> --to <ADDRESS>";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
pub(super) struct Args {
    /// Of a message that is queued, or was
    #[arg(required_unless_present = "from", conflicts_with_all = ["from", "to"])]
    id: Option<MessageId>,
    /// Envelope sender and From; '<>' is the null sender
    #[arg(long, value_name = "ADDRESS", requires = "to", value_parser = sender)]
    from: Option<ReversePath>,
    /// Recipient
    #[arg(long, value_name = "ADDRESS", requires = "from")]
    to: Option<Address>,
    /// Submitted by this account
    #[arg(long, value_name = "NAME", requires = "from", conflicts_with = "listener")]
    account: Option<String>,
    /// Coming in over this listener, without a login
    #[arg(long, value_name = "NAME", requires = "from")]
    listener: Option<String>,
    /// Size of the message: 20MiB
    #[arg(long, value_name = "SIZE", requires = "from", value_parser = size)]
    size: Option<u64>,
    /// With REQUIRETLS (RFC 8689)
    #[arg(long, requires = "from")]
    tls_required: bool,
    /// Look up the servers of the recipient's domain, and what TLS they have to show
    #[arg(long, requires = "from")]
    dns: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

fn sender(text: &str) -> Result<ReversePath, String> {
    let path = if text.starts_with('<') { text.to_owned() } else { format!("<{text}>") };
    parse_reverse_path(&path).map_err(|error| error.to_string())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "a size is a number with B, KiB, MiB or GiB, such as 20MiB".to_owned())
}

pub(super) async fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let config = load(path)?;
    let places = Places::read(path);
    let json = args.json;
    let Args { id, from, to, account, listener, size, tls_required, dns, .. } = args;
    match (id, from, to) {
        (Some(id), _, _) => {
            let mut explanation = Client::new(&config.data_dir).explain(id).await?;
            for recipient in &mut explanation.recipients {
                recipient.place = recipient.key.as_deref().and_then(|key| places.of(key));
            }
            if json {
                return print_json(&explanation);
            }
            print_lines(&lines(&explanation, Paint::for_stdout()))
        }
        (None, Some(from), Some(to)) => {
            let question = Question { from, to, account, listener, size, tls_required };
            let mut routed = route::route(&config, &places, &question, Clock::System.now())
                .map_err(|NoAnswer { what, remedy }| Failure::usage(what).remedy(remedy))?;
            if dns {
                look_up(&config, &places, &question, &mut routed).await?;
            }
            if json {
                return print_json(&routed);
            }
            print_lines(&route_lines(&routed, Paint::for_stdout()))
        }
        _ => Err(Failure::usage("name an id, or --from and --to")),
    }
}

fn print_lines(lines: &[String]) -> Result<(), Failure> {
    for line in lines {
        print(line)?;
    }
    Ok(())
}

/// In this process: no mail server is spoken to.
async fn look_up(config: &Config, places: &Places, question: &Question, routed: &mut Routed) -> Result<(), Failure> {
    let resolver = Resolver::new(&config.dns).map_err(|error| Failure::new(format!("dns: {error}")))?;
    let smtp = SmtpTransport::new(config, resolver).map_err(|error| Failure::new(error.to_string()))?;
    for name in &routed.domains {
        let Ok(domain) = Domain::parse(name) else { continue };
        let prospect = smtp.prospect(&domain, route::wish(question)).await;
        routed.steps.extend(route::looked_up(places, name, &prospect));
    }
    Ok(())
}

fn lines(explanation: &Explanation, paint: Paint) -> Vec<String> {
    let Explanation { id, now, queued, from, stream, recipients, left_out, troubles } = explanation;
    let from = match from {
        Some(ReversePath::Null) => " from the null sender".to_owned(),
        Some(ReversePath::Address(from)) => format!(" from {from}"),
        None => String::new(),
    };
    let stream = stream.as_ref().map_or(String::new(), |stream| format!(", stream {stream}"));
    let state = if *queued { "is queued" } else { "is done" };
    let mut lines = vec![paint.bold(&clean(&format!("{id}{from}{stream} {state}")))];
    lines.extend(troubles.iter().map(|trouble| paint.red(&clean(&format!("This server: {trouble}")))));
    if recipients.is_empty() {
        lines.push("Its story tells of no recipient; see `postrider queue show`.".to_owned());
    }
    for recipient in recipients {
        lines.extend(recipient_lines(recipient, *now, paint));
    }
    if *left_out > 0 {
        lines.push(format!("and {left_out} more that are queued; see `postrider queue show {id}`"));
    }
    lines
}

fn recipient_lines(recipient: &Explained, now: Millis, paint: Paint) -> Vec<String> {
    let Explained { address, alias, state, cause, why, key, place, next, last, then, can, .. } = recipient;
    let address = address.as_ref().map_or("unknown".to_owned(), ToString::to_string);
    let alias = alias.as_ref().map_or(String::new(), |alias| format!(" (for {alias})"));
    let sentence = clean(&format!("{address}{alias}: {why}."));
    let sentence = match (state, cause) {
        (_, Cause::Delivered) => paint.green(&sentence),
        (_, Cause::Failed | Cause::Expired | Cause::Damaged) => paint.red(&sentence),
        (Condition::Waiting | Condition::Held, _) => paint.yellow(&sentence),
        _ => sentence,
    };
    let mut lines = vec![sentence];
    let mut row = |name: &str, text: String| lines.push(format!("  {name:<11} {}", clean(&text)));
    if let Some(key) = key {
        row("setting", at(key, place.as_deref()));
    }
    match (state, next) {
        (Condition::Waiting, Some(next)) => row("next try", format!("{} UTC, {}", moment(*next), relative(*next, now))),
        (Condition::Waiting, None) => {
            row("next try", "not before somebody acts, or what holds it has ended".to_owned())
        }
        _ => {}
    }
    if let Some(last) = last.as_ref().filter(|_| *state != Condition::Done) {
        row("last try", story::failure(last));
    }
    for (number, line) in then.iter().enumerate() {
        row(if number == 0 { "then" } else { "" }, line.clone());
    }
    let rows: Vec<Vec<String>> = can.iter().map(|can| vec![can.command.clone(), can.effect.clone()]).collect();
    for (number, line) in table(&rows).into_iter().enumerate() {
        lines.push(format!("  {:<11} {line}", if number == 0 { "you can" } else { "" }));
    }
    lines
}

/// A key and where it is written.
fn at(key: &str, place: Option<&str>) -> String {
    match place {
        Some(place) => format!("{key} ({place})"),
        None => format!("{key} (not written, so its default counts)"),
    }
}

fn route_lines(routed: &Routed, paint: Paint) -> Vec<String> {
    let rows: Vec<Vec<String>> = routed.steps.iter().map(row).collect();
    let mut lines: Vec<String> = table(&rows)
        .into_iter()
        .zip(&routed.steps)
        .map(|(line, step)| match step.verdict {
            Verdict::Good | Verdict::Note => line,
            Verdict::Held => paint.yellow(&line),
            Verdict::Refused => paint.red(&line),
        })
        .collect();
    let reply = clean(&routed.reply);
    lines.push(match routed.accepted {
        true => paint.green(&format!("It would be taken: {reply}")),
        false => paint.red(&format!("It would be refused at {}: {reply}", routed.at)),
    });
    lines
}

fn row(step: &Step) -> Vec<String> {
    let mark = match step.verdict {
        Verdict::Good => "ok",
        Verdict::Note => "",
        Verdict::Held => "held",
        Verdict::Refused => "NO",
    };
    let key = step.key.as_deref().map_or(String::new(), |key| match &step.place {
        Some(place) => format!("  [{key}, {place}]"),
        None => format!("  [{key}]"),
    });
    vec![step.topic.name().to_owned(), mark.to_owned(), clean(&format!("{}{key}", step.what))]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::admin::explain::Remedy;

    #[test]
    fn an_explanation_reads_as_one() {
        let explanation = Explanation {
            id: MessageId::from_u64(7),
            now: 1_795_300_017_000,
            queued: true,
            from: Some(ReversePath::Address(Address::parse("shop@home.test").unwrap())),
            stream: Some("bulk".into()),
            recipients: vec![Explained {
                address: Some(Address::parse("you@far.test").unwrap()),
                alias: None,
                state: Condition::Waiting,
                cause: Cause::DailyLimit,
                why: "It waits because\r\nof a limit".into(),
                key: Some("streams.bulk.daily_limit".into()),
                place: Some("p.toml:7".into()),
                next: Some(1_795_300_077_000),
                attempts: 0,
                last: None,
                then: vec!["it goes straight".into(), "mx.far.test: TLS if it is offered".into()],
                can: vec![Remedy::new("postrider queue cancel 7", "take it out")],
            }],
            left_out: 0,
            troubles: Vec::new(),
        };
        let id = MessageId::from_u64(7);
        assert_eq!(
            lines(&explanation, Paint::none()),
            [
                format!("{id} from shop@home.test, stream bulk is queued").as_str(),
                "you@far.test: It waits because of a limit.",
                "  setting     streams.bulk.daily_limit (p.toml:7)",
                "  next try    2026-11-21 22:27:57 UTC, in 60 s",
                "  then        it goes straight",
                "              mx.far.test: TLS if it is offered",
                "  you can     postrider queue cancel 7  take it out",
            ]
        );
        let json = serde_json::to_value(&explanation).unwrap();
        assert_eq!(json["recipients"][0]["cause"], "daily_limit");
        assert_eq!(json["recipients"][0]["next"], "2026-11-21T22:27:57.000Z");
        assert_eq!(serde_json::from_value::<Explanation>(json).unwrap(), explanation);
    }
}
