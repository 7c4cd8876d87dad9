//! What the text of a configuration comes to mean.

use std::time::Duration;

use postrider::config::{
    self, AddressOrDomain, ArcMode, Credential, Destination, EventLog, PickupDone, PickupFormat, Senders, Target,
    WayOut,
};
use postrider::events::kind::Kind;
use postrider::message::{Address, Domain};
use proptest::prelude::*;

use super::{conf, lines, load, refused, with};

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

#[test]
fn two_keys_are_enough() {
    let config = load(&with(""));
    assert_eq!(config.hostname, domain("mail.example.com"));
    assert_eq!(config.postmaster.to_string(), "postmaster@mail.example.com");
    let ports: Vec<u16> = config.listeners.values().flat_map(|l| &l.bind).map(|address| address.port()).collect();
    assert_eq!(ports, [25, 587, 465]);
    assert_eq!(config.delivery.default, WayOut::Direct);
    assert_eq!(config.delivery.helo_name, config.hostname);
    assert_eq!(config.delivery.retry.schedule.len(), 7);
    assert_eq!(config.delivery.retry.delay_notice, Some(Duration::from_secs(4 * 3600)));
    assert!(config.tls.is_none());
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("self-signed"));
}

#[test]
fn sealers_are_trusted_against_dmarc() {
    let checks = load(&with("")).checks;
    assert_eq!((checks.arc, checks.seal_forwards), (ArcMode::Annotate, true));
    assert!(checks.trusted_sealers.is_empty());
    let said = |more: &str| {
        let text = format!("[checks]\ntrusted_sealers = [\"Gmail.COM\"]\nseal_forwards = false\n{more}");
        let config = load(&with(&text));
        assert_eq!(config.checks.trusted_sealers, [domain("gmail.com")]);
        assert!(!config.checks.seal_forwards);
        config.warnings.iter().any(|warning| warning.starts_with("checks.trusted_sealers: changes nothing"))
    };
    assert!(!said(""));
    assert!(said("dmarc = \"annotate\"\n"));
    assert!(said("dmarc = \"off\"\n"));
}

#[test]
fn postmaster_is_at_the_first_domain_of_the_file() {
    let config = load(&with("[domains.\"zebra.example\"]\ncatchall = \"discard\"\n[domains.\"apple.example\"]\n"));
    assert_eq!(config.postmaster.to_string(), "postmaster@zebra.example");
}

#[test]
fn a_postmaster_that_leads_nowhere_is_a_warning() {
    let nowhere = load(&with("[domains.\"example.com\"]\n"));
    assert!(nowhere.warnings.iter().any(|w| w.starts_with("postmaster:")), "{:?}", nowhere.warnings);
    let elsewhere = load(&with("postmaster = \"ops@partner.example\"\n[domains.\"example.com\"]\n"));
    assert!(!elsewhere.warnings.iter().any(|w| w.starts_with("postmaster:")), "{:?}", elsewhere.warnings);
}

#[test]
fn bounces_of_other_domains_come_back_to_that_of_default_from_or_the_first() {
    let domains =
        "[domains.\"zebra.example\"]\ncatchall = \"discard\"\n[domains.\"apple.example\"]\nbounce = \"back\"\n";
    for (from, stranger) in [
        ("", "bounce@zebra.example"),
        ("news@apple.example", "back@apple.example"),
        ("news@partner.example", "bounce@zebra.example"),
    ] {
        let sender = format!("[sender]\nreturn_path = \"bounce\"\ndefault_from = \"{from}\"\n");
        let config = load(&with(&format!("{domains}{sender}")));
        let wanted = |author: &str| config.bounce_address(Address::parse(author).ok().as_ref()).unwrap().to_string();
        assert_eq!(wanted("x@other.example"), stranger, "{from}");
        assert_eq!(wanted(""), stranger, "{from}");
        assert_eq!(wanted("x@apple.example"), "back@apple.example", "{from}");
    }
    assert_eq!(load(&with(domains)).bounce_address(Address::parse("x@apple.example").ok().as_ref()), None);
}

#[test]
fn a_host_that_takes_the_default_from_and_not_the_bounce_address_is_a_warning() {
    let text = |filter: &str, return_path: &str| {
        with(&format!(
            "[domains.\"my.example\"]\n[sender]\ndefault_from = \"news@my.example\"\nreturn_path = \"{return_path}\"\n\
             [smart_hosts.out]\nhost = \"smtp.example.net\"\nfrom_filter = [{filter}]\n"
        ))
    };
    for (filter, return_path, is_said) in [
        ("\"news@my.example\"", "bounce", true),
        ("\"news@my.example\"", "client", false),
        ("\"my.example\"", "bounce", false),
        ("\"other.example\"", "bounce", false),
    ] {
        let warnings = load(&text(filter, return_path)).warnings;
        let said = warnings.iter().any(|warning| warning.contains("not bounce@my.example"));
        assert_eq!(said, is_said, "{filter} {return_path}: {warnings:?}");
    }
}

/// Nothing is wrong with such a file, but it does not do what it says.
#[test]
fn what_has_no_effect_on_the_way_out_is_warned_of_by_key_and_line() {
    let hosts = "[smart_hosts.out]\nhost = \"smtp.example.net\"\n";
    let pin = "[streams.bulk]\nsmart_host = \"out\"\n";
    let filter = "from_filter = [\"example.com\"]\n";
    let unused = "is never used: delivery.default is \"direct\"";
    let pinned = "has no effect while delivery.default is \"file\"";
    for (default, more, wanted) in [
        ("direct", "", Some(("smart_hosts.out", unused, "[smart_hosts.out]"))),
        ("direct", filter, None),
        ("direct", pin, None),
        ("direct", "active = false\n", None),
        ("smart_hosts", "", None),
        ("capture", pin, None),
        ("file", pin, Some(("streams.bulk.smart_host", pinned, "smart_host ="))),
        ("file", "", None),
    ] {
        let text = with(&format!("[delivery]\ndefault = \"{default}\"\n{hosts}{more}"));
        let warnings = load(&text).warnings;
        let found: Vec<&String> =
            warnings.iter().filter(|warning| [unused, pinned].iter().any(|part| warning.contains(part))).collect();
        let Some((key, what, at)) = wanted else {
            assert!(found.is_empty(), "{default} {more}: {found:?}");
            continue;
        };
        let line = 1 + text.lines().position(|line| line.starts_with(at)).unwrap();
        assert_eq!(found.len(), 1, "{default} {more}: {warnings:?}");
        assert!(found[0].starts_with(key) && found[0].contains(&format!(":{line}) {what}")), "{line}: {found:?}");
    }
}

#[test]
fn an_alias_that_leads_nowhere_is_a_warning() {
    let text = "postmaster = \"ops@partner.example\"\n[domains.\"example.com\"]\n[aliases]\n\"a@example.com\" = \"b@example.com\"\n";
    let warnings = load(&with(text)).warnings;
    assert!(warnings.iter().any(|w| w.contains("leads to b@example.com")), "{warnings:?}");
}

#[test]
fn what_weakens_the_server_is_a_warning() {
    let text = "[queue]\ndurability = \"relaxed\"\n[listeners.s]\nrole = \"submission\"\nbind = [\"0.0.0.0:587\"]\ntls = \"off\"\n\
                [targets.hook]\nkind = \"webhook\"\nurl = \"http://crm.example.com/\"\n\
                [targets.local]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:3000/\"\n\
                [domains.\"example.com\"]\nmax_size = \"1GiB\"\ncatchall = \"hook\"\n[domains.\"example.com\".dkim]\nselectors = []\n";
    let warnings = load(&with(text)).warnings;
    let said = |part: &str| warnings.iter().filter(|warning| warning.contains(part)).count();
    for part in ["durability", "listeners.s", "targets.hook", "max_size", "without a signature", "self-signed"] {
        assert_eq!(said(part), 1, "{part}: {warnings:?}");
    }
    assert_eq!(said("targets.local"), 0, "{warnings:?}");
}

#[test]
fn accounts_have_rights() {
    let text = "[domains.\"example.com\"]\ncatchall = \"discard\"\n[accounts.shop]\npassword = \"secret\"\n\
                [accounts.ceo]\npassword = \"secret\"\nsenders = [\"ceo@example.org\", \"Example.NET\"]\n";
    let config = load(&with(text));
    let (shop, ceo) = (&config.accounts["shop"], &config.accounts["ceo"]);
    assert_eq!(shop.senders, Senders::OwnDomains);
    assert!(shop.active && shop.max_recipients == 1000);
    let address = |text| Address::parse(text).unwrap();
    assert!(config.may_send_as(shop, &address("any@example.com")));
    assert!(!config.may_send_as(shop, &address("ceo@example.org")));
    assert!(config.may_send_as(ceo, &address("CEO@example.org")));
    assert!(config.may_send_as(ceo, &address("any@example.net")));
    assert!(!config.may_send_as(ceo, &address("any@example.com")));
}

#[test]
fn an_account_has_a_stream() {
    let account = |stream: &str| with(&format!("[accounts.shop]\npassword = \"secret\"\n{stream}"));
    assert_eq!(load(&account("")).accounts["shop"].stream, "transactional");
    assert_eq!(load(&account("stream = \"bulk\"\n")).accounts["shop"].stream, "bulk");
    let problems = refused(&account("stream = \"newsletters\"\n"));
    assert_eq!(problems.len(), 1, "{problems:?}");
    let choices = "The streams are transactional, bulk, security;";
    assert!(problems[0].contains("accounts.shop.stream") && problems[0].contains(choices), "{problems:?}");
    let own = load(&account("stream = \"newsletters\"\nstreams = [\"bulk\"]\n[streams.newsletters]\n"));
    assert!(own.accounts["shop"].may_use("newsletters") && own.accounts["shop"].may_use("bulk"));
    assert!(!own.accounts["shop"].may_use("security"));
}

#[test]
fn streams_are_always_there_and_only_security_is_exempt() {
    let config = load(&with("[streams.bulk]\nblock_size = 5\n[streams.news]\nconcurrency = 1\ndaily_limit = 9\n"));
    let names: Vec<&String> = config.streams.keys().collect();
    assert_eq!(names, ["bulk", "news", "security", "transactional"]);
    let exempt: Vec<&String> =
        config.streams.iter().filter(|(_, stream)| stream.exempt_from_suspend).map(|(name, _)| name).collect();
    assert_eq!(exempt, ["security"]);
    let block = config.streams["bulk"].block.unwrap();
    assert_eq!((block.size, block.pause), (5, Duration::from_secs(120)));
    assert_eq!((config.streams["news"].concurrency, config.streams["news"].daily_limit), (Some(1), Some(9)));
    let many: String = (0..14).map(|number| format!("[streams.s{number}]\n")).collect();
    let problems = refused(&with(&many));
    assert!(problems.len() == 1 && problems[0].contains("more than 16 streams"), "{problems:?}");
}

#[test]
fn secrets_come_from_files_and_lose_one_line_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "two\nlines\n\n").unwrap();
    let text = with(&format!(
        "[accounts.a]\npassword = {{ file = \"{}\" }}\n[accounts.b]\npassword = {{ env = \"CARGO_PKG_NAME\" }}\n",
        path.display()
    ));
    let config = load(&text);
    let password = |name: &str| match &config.accounts[name].credential {
        Credential::Password(secret) => secret.0.clone(),
        Credential::Hash(_) => panic!("not a password"),
    };
    assert_eq!(password("a"), "two\nlines\n");
    assert_eq!(password("b"), "postrider");
    assert!(!format!("{config:?}").contains("lines"));
}

#[test]
fn no_problem_shows_a_secret() {
    let text = with(
        "[accounts.a]\npassword = \"hunter2\"\npassword_hash = \"hunter2\"\n[accounts.b]\npassword_hash = \"hunter2\"\n\
                     [targets.t]\nkind = \"webhook\"\nurl = \"https://u:hunter2@example.com/\"\nsecret = [\"hunter2\"]\n",
    );
    let problems = refused(&text);
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert!(!problems.join("").contains("hunter2"), "{problems:?}");
}

#[test]
fn aliases_and_targets() {
    let text = "[domains.\"example.com\"]\ncatchall = [\"box\", \"bob@partner.example\"]\n[domains.\"plain.example\"]\nsubaddress = \"\"\n\
                [targets.box]\nkind = \"maildir\"\npath = \"/var/mail/box\"\n\
                [aliases]\n\"Sales@Example.com\" = \"box\"\n\"no@example.com\" = \"reject\"\n\
                '/z-(?P<id>[0-9]+)@example\\.com/' = \"discard\"\n'/a-.*/' = \"box\"\n";
    let config = load(&with(text));
    let own = &config.domains[&domain("example.com")];
    assert_eq!(
        own.catchall,
        [Destination::Target("box".to_owned()), Destination::Address(Address::parse("bob@partner.example").unwrap())]
    );
    assert_eq!(own.subaddress, Some('+'));
    assert_eq!(config.domains[&domain("plain.example")].subaddress, None);
    assert_eq!(config.aliases.exact["sales@example.com"], [Destination::Target("box".to_owned())]);
    assert_eq!(config.aliases.exact["no@example.com"], [Destination::Reject]);
    let patterns: Vec<&str> = config.aliases.patterns.iter().map(|p| p.text.as_str()).collect();
    assert_eq!(patterns, ["/z-(?P<id>[0-9]+)@example\\.com/", "/a-.*/"], "in the order of the file");
    let ticket = &config.aliases.patterns[0].regex;
    assert!(ticket.is_match("z-12@example.com"));
    assert!(!ticket.is_match("xz-12@example.com") && !ticket.is_match("z-12@example.com.evil"));
    assert!(matches!(&config.targets["box"], Target::Maildir { path } if path.ends_with("box")));
}

#[test]
fn loop_exceptions_are_senders_and_accounts() {
    let text =
        "[accounts.monitor]\npassword = \"x\"\n[loops]\ntrusted = [\"monitor\", \"a@b.example\", \"c.example\"]\n";
    let loops = load(&with(text)).loops;
    assert_eq!(loops.trusted_accounts, ["monitor"]);
    let address = AddressOrDomain::Address(Address::parse("a@b.example").unwrap());
    assert_eq!(loops.trusted, [address, AddressOrDomain::Domain(domain("c.example"))]);
}

#[test]
fn name_servers_have_a_port() {
    let dns = load(&with("[dns]\nnameservers = [\"192.0.2.53\", \"[::1]:5353\"]\n")).dns;
    assert_eq!(dns.nameservers, ["192.0.2.53:53".parse().unwrap(), "[::1]:5353".parse().unwrap()]);
}

#[test]
fn includes_are_merged_in_order_of_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("conf.d")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("conf.d/20-b.toml", "[domains.\"b.example\"]\ncatchall = \"discard\"\n");
    write("conf.d/10-c.toml", "[domains.\"c.example\"]\ncatchall = \"discard\"\n[limits]\nmax_recipients = 7\n");
    write("conf.d/ignored.conf", "nonsense");
    write("main.toml", &with("include = [\"conf.d/*.toml\", \"conf.d/none*.toml\"]\n[limits]\nmax_size = \"1MiB\"\n"));
    let config = config::load(&folder.path().join("main.toml")).unwrap();
    assert_eq!(config.domains.len(), 2);
    assert_eq!(config.postmaster.to_string(), "postmaster@c.example");
    assert_eq!((config.limits.max_recipients, config.limits.max_size), (7, 1 << 20));
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem() {
    let missing = config::load(std::path::Path::new("/nonexistent/postrider.toml")).unwrap_err();
    assert_eq!(lines(&missing).len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latin1.toml");
    std::fs::write(&path, b"hostname = \"mail.example.com\"\n# b\xfccher\n").unwrap();
    let problems = config::load(&path).unwrap_err();
    assert!(problems.to_string().contains("line 2 is not UTF-8"), "{problems}");
}

#[test]
fn a_syntax_error_hides_nothing_else_and_invents_nothing() {
    // The broken line holds `data_dir`, so that it is missing is no news.
    let problems = refused("hostname = \"mail.example.com\"\ndata_dir /var\n[log]\nlevel = \"inf\"\n");
    assert_eq!(problems.iter().filter(|p| p.contains("missing")).count(), 0, "{problems:?}");
}

#[test]
fn a_summary_says_what_it_amounts_to() {
    let text = postrider::cli::check::summary(std::path::Path::new("inbound.toml"), &load(&conf("inbound.toml")));
    for part in [
        "inbound.toml: good\n",
        "mx: [::]:25 as mx, TLS opportunistic",
        "5 exact, 1 by pattern, 1 catchall",
        "crm (webhook), inbox (maildir)",
        "way out    direct",
        "TLS out    where it is offered; demanded where MTA-STS says so; demanded where DANE says so (if the name",
        "warning    tls: no certificate",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn many_aliases_are_read() {
    let mut text = with(
        "[targets.box]\nkind = \"maildir\"\npath = \"/var/mail/box\"\n[domains.\"example.com\"]\ncatchall = \"box\"\n[aliases]\n",
    );
    for number in 0..5000 {
        text += &format!("\"user{number}@example.com\" = [\"box\", \"other{number}@example.com\"]\n");
    }
    assert_eq!(load(&text).aliases.exact.len(), 5000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is cut out of the reference or put into it: an answer, never a panic.
    #[test]
    fn damage_is_answered(at in 0usize..16_000, length in 0usize..200, put in "[\\[\\]\"'=a-z.{}\n0-9#\\\\]{0,20}") {
        let text = conf("postrider.toml").replace("#: ", "");
        let cut = |mut at: usize| {
            at = at.min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let damaged = format!("{}{put}{}", &text[..cut(at)], &text[cut(at + length)..]);
        if let Err(problems) = config::parse("postrider.toml", &damaged) {
            prop_assert!(!problems.is_empty());
        }
    }
}

#[test]
fn staging_is_checked_and_warned_about() {
    let config = load(&with(
        "[delivery]\ndefault = \"file\"\nredirect_all_to = \"qa@a.example\"\nallow_recipients = [\"a.example\"]\n",
    ));
    assert_eq!(config.delivery.default, WayOut::File);
    assert!(config.delivery.allows(&Address::parse("x@A.example").unwrap()));
    assert!(!config.delivery.allows(&Address::parse("x@b.example").unwrap()));
    for key in ["delivery.redirect_all_to", "delivery.allow_recipients"] {
        assert_eq!(config.warnings.iter().filter(|warning| warning.starts_with(key)).count(), 1, "{key}");
    }
    let none = load(&with("[delivery]\nredirect_all_to = \"\"\nallow_recipients = []\n"));
    assert_eq!(none.delivery.redirect_all_to, None);
    assert!(none.delivery.allows(&Address::parse("x@b.example").unwrap()));
    let both = refused(&with("[delivery]\nredirect_all_to = \"qa@a.example\"\nallow_recipients = [\"b.example\"]\n"));
    assert!(both[0].contains("nothing would leave"), "{both:?}");
    let path = refused(&with("[delivery]\nfile_path = \"/var/out/{date}.eml\"\n"));
    assert!(path[0].contains("delivery.file_path") && path[0].contains("does not have {id}"), "{path:?}");
}

#[test]
fn hosts_that_take_tokens() {
    let hosts = |more: &str| {
        let text = format!(
            "[smart_hosts.office]\nhost = \"smtp.example.net\"\nusername = \"app@example.com\"\n{more}client_id = \"app\"\nclient_secret = \"hush\"\n"
        );
        load(&with(&text)).smart_hosts
    };
    let microsoft = "[smart_hosts.office.oauth]\nprovider = \"microsoft\"\ntenant = \"contoso.example\"\n";
    let host = hosts(&format!("{microsoft}flow = \"client_credentials\"\n")).remove(0);
    assert_eq!(host.kind, config::SmartHostKind::Smtp);
    assert_eq!(host.login, None);
    let oauth = host.oauth.unwrap();
    assert_eq!(oauth.username, "app@example.com");
    assert_eq!(oauth.token_url, "https://login.microsoftonline.com/contoso.example/oauth2/v2.0/token");
    assert_eq!(oauth.flow, config::OauthFlow::ClientCredentials);
    assert!(!format!("{oauth:?}").contains("hush"));

    let google = "[smart_hosts.office.oauth]\nprovider = \"google\"\nflow = \"refresh_token\"\nrefresh_token = \"r\"\n";
    let oauth = hosts(google).remove(0).oauth.unwrap();
    assert_eq!(oauth.token_url, "https://oauth2.googleapis.com/token");
    assert_eq!(oauth.flow, config::OauthFlow::RefreshToken(config::Secret("r".into())));

    let host = hosts(&format!("kind = \"graph\"\n{microsoft}flow = \"client_credentials\"\n")).remove(0);
    assert_eq!(host.kind, config::SmartHostKind::Graph { url: "https://graph.microsoft.com".into() });
    assert!(host.speaks_smtp());
}

#[test]
fn a_mailbox_to_log_in_to_first() {
    let text = |tls: &str| {
        with(&format!(
            "[smart_hosts.old]\nhost = \"smtp.example.net\"\npop_before_smtp = \"box\"\n\
             [fetch.box]\nprotocol = \"pop3\"\nhost = \"pop.example.net\"\nusername = \"u\"\npassword = \"p\"\n{tls}"
        ))
    };
    for (tls, mode, port) in
        [("", config::PopTls::Implicit, 995), ("tls = \"required\"\n", config::PopTls::Required, 110)]
    {
        let account = load(&text(tls)).smart_hosts.remove(0).pop_before_smtp.unwrap();
        assert_eq!((account.name.as_str(), account.tls, account.port), ("box", mode, port));
    }
}

#[test]
fn mailboxes_to_fetch_from() {
    let account = "host = \"mail.example.net\"\nusername = \"u\"\npassword = \"p\"\n";
    let text = |protocol: &str, more: &str| {
        with(&format!(
            "[domains.\"example.com\"]\n[aliases]\n\"sales@example.com\" = \"discard\"\n\
             [fetch.box]\nprotocol = \"{protocol}\"\n{account}{more}"
        ))
    };
    let imap = load(&text("imap", "deliver_to = \"sales@example.com\"\n"));
    assert_eq!(imap.warnings.iter().filter(|warning| warning.contains("fetch")).count(), 0, "{:?}", imap.warnings);
    let imap = &imap.fetch["box"];
    assert_eq!((imap.port, imap.folder.as_str(), &imap.after), (993, "INBOX", &config::After::Seen));
    assert_eq!(imap.interval, Duration::from_secs(300));
    let pop = load(&text("pop3", "tls = \"required\"\n"));
    assert_eq!((pop.fetch["box"].port, &pop.fetch["box"].after), (110, &config::After::Leave));
    assert!(pop.warnings.iter().any(|warning| warning.contains("without deliver_to")), "{:?}", pop.warnings);
    let moved = load(&text("imap", "after = \"move:Done:now\"\ndeliver_to = \"nobody@example.com\"\n"));
    assert_eq!(moved.fetch["box"].after, config::After::Move("Done:now".into()));
    assert!(
        moved.warnings.iter().any(|warning| warning.contains("nobody@example.com, which no alias")),
        "{:?}",
        moved.warnings
    );
}

/// A mailbox that a smart host logs in to is fetched from only where the file says something about that.
#[test]
fn a_mailbox_to_log_in_to_may_be_fetched_from_too() {
    let text = |more: &str| {
        with(&format!(
            "[domains.\"example.com\"]\n[smart_hosts.old]\nhost = \"smtp.example.net\"\npop_before_smtp = \"box\"\n\
             [fetch.box]\nprotocol = \"pop3\"\nhost = \"pop.example.net\"\nusername = \"u\"\npassword = \"p\"\n{more}"
        ))
    };
    assert!(load(&text("")).fetch.is_empty());
    assert!(load(&text("after = \"delete\"\n")).fetch.contains_key("box"));
}

#[test]
fn milters_in_every_way_they_are_written() {
    use postrider::config::{MilterHost, MilterPlace};
    let inet = |host: &str, port: u16, only_v6: bool| {
        let name = |_| MilterHost::Name(domain(host));
        MilterPlace::Inet { host: host.parse().map_or_else(name, MilterHost::Ip), port, only_v6 }
    };
    let forms = [
        ("inet:127.0.0.1:11332", inet("127.0.0.1", 11332, false)),
        ("inet:11332@127.0.0.2", inet("127.0.0.2", 11332, false)),
        ("inet:localhost:1", inet("localhost", 1, false)),
        ("inet:65535@rspamd", inet("rspamd", 65535, false)),
        ("inet:[::1]:11332", inet("::1", 11332, false)),
        ("inet6:[::2]:11332", inet("::2", 11332, true)),
        ("inet6:::3:11332", inet("::3", 11332, true)),
        ("inet6:11332@::4", inet("::4", 11332, true)),
        ("inet6:filter.example.com:11332", inet("filter.example.com", 11332, true)),
        ("unix:/run/a.sock", MilterPlace::Unix("/run/a.sock".into())),
        ("local:/run/b.sock", MilterPlace::Unix("/run/b.sock".into())),
    ];
    let list: Vec<String> = forms.iter().map(|(text, _)| format!("{text:?}")).collect();
    let milters = load(&with(&format!("[checks]\nmilters = [{}]\n", list.join(", ")))).checks.milters;
    let found: Vec<_> = milters.into_iter().map(|milter| (milter.name, milter.place)).collect();
    assert_eq!(found, forms.map(|(text, place)| (text.to_owned(), place)));
    assert!(load(&with("")).checks.milters.is_empty());

    let many: Vec<String> = (1..=17).map(|port| format!("\"inet:127.0.0.1:{port}\"")).collect();
    let said = refused(&with(&format!("[checks]\nmilters = [{}]\n", many.join(", "))));
    assert!(said[0].contains("17 milters, more than 16"), "{said:?}");
}

#[test]
fn events_are_kept_for_a_month_and_told_to_nobody_unless_wanted() {
    let events = load(&with("")).events;
    assert_eq!((events.keep, events.log), (Duration::from_secs(30 * 24 * 3600), EventLog::All));
    assert!(events.webhooks.is_empty());
    let text = "[events]\nkeep = \"2d\"\nlog = \"failed\"\n[events.webhooks.crm]\nurl = \"http://127.0.0.1:1/x\"\n\
                only = [\"delivered\", \"bounced\"]\n[events.webhooks.all]\nurl = \"https://crm.example.com/\"\n";
    let events = load(&with(text)).events;
    assert_eq!((events.keep, events.log), (Duration::from_secs(2 * 24 * 3600), EventLog::Failed));
    assert_eq!(events.webhooks["crm"].only.as_deref(), Some([Kind::Delivered, Kind::Bounced].as_slice()));
    assert_eq!(events.webhooks["all"].only, None);
}

#[test]
fn a_pickup_folder_has_an_account_and_a_format() {
    let folder = |more: &str| {
        with(&format!("[accounts.shop]\npassword = \"x\"\n[pickup.main]\npath = \"/drop\"\naccount = \"shop\"\n{more}"))
    };
    let main = load(&folder("")).pickup["main"].clone();
    assert_eq!((main.format, main.done, main.max_per_minute), (PickupFormat::Auto, PickupDone::Delete, 0));
    let more = "format = \"iis\"\ndone = \"archive\"\nmax_per_minute = 100\nsettle = \"0s\"\n";
    let main = load(&folder(more)).pickup["main"].clone();
    assert_eq!((main.format, main.done, main.max_per_minute), (PickupFormat::Iis, PickupDone::Archive, 100));
    assert_eq!(main.settle, Duration::ZERO);
    for wrong in ["format = \"django\"\n", "done = \"keep\"\n", "max_per_minute = -1\n"] {
        assert_eq!(refused(&folder(wrong)).len(), 1, "{wrong}");
    }
}

#[test]
fn local_programs_are_trusted_where_loopback_is() {
    for (trusted, is_trusted) in [("127.0.0.0/8", true), ("::1/128", true), ("10.0.0.0/8", false)] {
        let text = with(&format!("[networks]\ntrusted = [\"{trusted}\"]\n"));
        assert_eq!(load(&text).trusts_loopback(), is_trusted, "{trusted}");
    }
    assert!(!load(&with("")).trusts_loopback());
}
