//! Values that are small, large or nothing: what is taken, what with a warning, and what they come to mean.

use std::time::Duration;

use postrider::config::{Config, Target};

use super::{load, refused, with};

const HOME: &str = "[domains.\"example.com\"]\ncatchall = \"discard\"\n";
const BOX: &str = "[fetch.box]\nprotocol = \"imap\"\nhost = \"imap.example.net\"\nusername = \"box\"\npassword = \"x\"\n\
                   deliver_to = \"box@example.com\"\n";

/// Is the value the one that was written?
type Holds<'t> = &'t dyn Fn(&Config) -> bool;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The configuration of this and a domain, and what is warned about besides the certificate.
fn warned(more: &str) -> (Config, Vec<String>) {
    let config = load(&with(&format!("{HOME}{more}")));
    let warnings = config.warnings.iter().filter(|warning| !warning.contains("self-signed")).cloned().collect();
    (config, warnings)
}

/// What is small probably is a mistake, so it is warned about; but whoever wants it gets it.
#[test]
fn what_is_small_is_taken_with_one_warning_that_names_it() {
    let domain = "[domains.\"example.org\"]\ncatchall = \"discard\"\nmax_size = \"1B\"\n";
    let host = "[smart_hosts.far]\nhost = \"far.example\"\nfrom_filter = [\"example.org\"]\nmax_size = \"100B\"\n";
    let interval = format!("{BOX}interval = \"1s\"\n");
    let own = postrider::message::Domain::parse("example.org").unwrap();
    let cases: [(&str, &str, Holds<'_>); 9] = [
        ("[limits]\nmax_size = \"1KiB\"\n", "limits.max_size is 1KiB: ", &|config| config.limits.max_size == 1024),
        (domain, "domains.\"example.org\".max_size is 1B: ", &|config| config.domains[&own].max_size == Some(1)),
        (host, "smart_hosts.far.max_size is 100B: ", &|config| config.smart_hosts[0].max_size == Some(100)),
        (&interval, "fetch.box.interval is 1s: ", &|config| config.fetch["box"].interval == seconds(1)),
        ("[events]\nkeep = \"1s\"\n", "events.keep is 1s: ", &|config| config.events.keep == seconds(1)),
        ("[bounces]\nwithin = \"10s\"\n", "bounces.within is 10s: ", &|config| {
            (config.bounces.within, config.bounces.spread) == (seconds(10), seconds(5))
        }),
        (
            "[queue]\nmemory = \"16MiB\"\n",
            "queue.memory is 16MiB, less than one message of limits.max_size (35MiB): ",
            &|config| config.queue.memory == 16 << 20,
        ),
        ("[limits]\nmax_size = \"1GiB\"\n", "queue.memory is 512MiB, less than one message", &|config| {
            config.limits.max_size == 1 << 30
        }),
        // What one message takes, however large, it always has.
        (
            "[queue]\nmemory = \"1KiB\"\n[limits]\nmax_size = \"1MiB\"\n",
            "queue.memory is 1KiB; 1MiB is used",
            &|config| config.queue.memory == 1 << 20,
        ),
    ];
    for (text, warning, is_as_written) in cases {
        let (config, warnings) = warned(text);
        assert!(is_as_written(&config), "{text}");
        assert_eq!(warnings.len(), 1, "{text}: {warnings:?}");
        assert!(warnings[0].starts_with(warning), "{text}: {warnings:?}");
    }
    for (text, key) in [
        ("[limits]\nmax_size = \"0B\"\n", "limits.max_size: "),
        ("[queue]\nmemory = \"0KiB\"\n", "queue.memory: "),
        ("[events]\nkeep = \"0s\"\n", "events.keep: "),
        ("[bounces]\nwithin = \"0s\"\n", "bounces.within: "),
        (&format!("{BOX}interval = \"0s\"\n"), "fetch.box.interval: "),
    ] {
        let problems = refused(&with(&format!("{HOME}{text}")));
        assert!(problems[0].contains(key), "nothing at all is no value: {problems:?}");
    }
}

#[test]
fn nothing_turns_blocks_and_rates_off() {
    let account = "[accounts.shop]\npassword = \"x\"\nrate_limit = \"\"\n";
    let (config, warnings) = warned(&format!("{account}[streams.bulk]\nblock_size = 0\n"));
    assert_eq!((config.streams["bulk"].block, config.accounts["shop"].rate_limit), (None, None));
    assert!(warnings.is_empty(), "{warnings:?}");
    let (_, warnings) = warned("[streams.bulk]\nblock_size = 0\nblock_pause = \"1m\"\n");
    assert!(warnings[0].starts_with("streams.bulk.block_pause has no effect"), "{warnings:?}");
}

#[test]
fn a_short_time_for_bounces_asks_for_a_spread_that_fits_into_it() {
    const DAY: u64 = 86_400;
    for (within, wanted) in [("30d", 7 * DAY), ("8d", 7 * DAY), ("7d", 7 * DAY / 2), ("1d", DAY / 2), ("1h", 1800)] {
        let (config, warnings) = warned(&format!("[bounces]\nwithin = \"{within}\"\n"));
        assert_eq!(config.bounces.spread, seconds(wanted), "{within}");
        assert!(warnings.is_empty(), "{within}: {warnings:?}");
    }
    let both = "[bounces]\nwithin = \"7d\"\nspread = \"7d\"\n";
    let problems = refused(&with(&format!("{HOME}{both}")));
    assert!(problems[0].contains("bounces.spread: bounces that count are never further apart"), "{problems:?}");
    // Where one is enough, nothing has to be apart.
    let (config, warnings) = warned(&format!("{both}suppress_after = 1\n"));
    assert_eq!((config.bounces.suppress_after, warnings), (1, Vec::new()));
}

#[test]
fn times_may_be_as_long_as_anybody_wants() {
    let text = "[targets.script]\nkind = \"pipe\"\ncommand = [\"/bin/true\"]\ntimeout = \"1h\"\n\
                [targets.hook]\nkind = \"webhook\"\nurl = \"https://crm.example.com/x\"\ntimeout = \"10m\"\n\
                [limits]\ncommand_timeout = \"2d\"\n[loops]\nperiod = \"500d\"\n[bounces]\nwithin = \"500d\"\n\
                [streams.bulk]\nblock_size = 1\nblock_pause = \"30d\"\n";
    let (config, warnings) = warned(&format!("{text}{BOX}interval = \"7d\"\n"));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(matches!(config.targets["script"], Target::Pipe { timeout, .. } if timeout == seconds(3600)));
    assert!(matches!(config.targets["hook"], Target::Webhook { timeout, .. } if timeout == seconds(600)));
    assert_eq!(config.fetch["box"].interval, seconds(7 * 86_400));
    let (_, warnings) = warned("[events]\nkeep = \"500d\"\n[destinations.default]\nidle_timeout = \"10m\"\n");
    assert!(warnings.iter().any(|warning| warning.starts_with("events.keep is 500d: ")), "{warnings:?}");
    let idle = "destinations.default.idle_timeout is 10m: ";
    assert!(warnings.iter().any(|warning| warning.starts_with(idle)), "{warnings:?}");
}

#[test]
fn a_short_token_is_a_warning_and_an_empty_one_a_problem() {
    let admin = |token: &str| with(&format!("[admin]\nbind = \"127.0.0.1:8025\"\ntoken = \"{token}\"\n"));
    let config = load(&admin("secret"));
    assert_eq!(config.admin.unwrap().token.0, "secret");
    let warning = config.warnings.iter().find(|warning| warning.starts_with("admin.token ")).unwrap();
    assert!(warning.contains("can be guessed") && warning.contains("`openssl rand -hex 32`"), "{warning}");
    let config = load(&admin("0123456789abcdef"));
    assert!(!config.warnings.iter().any(|warning| warning.contains("admin.token")), "{:?}", config.warnings);
    let problems = refused(&admin(""));
    assert!(problems[0].contains("admin.token: the secret is empty"), "{problems:?}");
}
