//! Every key of the configuration.
//!
//! One table. Checking a tree against it finds unknown keys, with the nearest known one. Values are read
//! elsewhere.

use std::collections::BTreeMap;

use super::nearest::nearest;
use super::problem::ProblemKind;
use super::report::Report;
use super::tree::{Entry, Table, Value, join};

#[derive(Clone, Copy, Debug)]
enum Support {
    /// Read into the configuration.
    Now,
    /// `[[sections]]`, read into the configuration.
    Sections,
}

use Support::{Now, Sections};

/// `*` stands for a name that the user chooses.
const KEYS: &[(&str, Support)] = &[
    ("hostname", Now),
    ("data_dir", Now),
    ("postmaster", Now),
    ("include", Now),
    // doors
    ("listeners.*.role", Now),
    ("listeners.*.bind", Now),
    ("listeners.*.tls", Now),
    ("listeners.*.proxy_protocol", Now),
    ("networks.trusted", Now),
    ("networks.proxies", Now),
    ("networks.blocked", Now),
    ("tls.certificate", Now),
    ("tls.private_key", Now),
    ("tls.extra", Sections),
    ("tls.extra.certificate", Now),
    ("tls.extra.private_key", Now),
    ("tls.acme.enabled", Now),
    ("tls.acme.contact", Now),
    ("tls.acme.directory", Now),
    ("tls.acme.challenge", Now),
    ("tls.acme.bind", Now),
    // who may submit
    ("accounts.*.password_hash", Now),
    ("accounts.*.password", Now),
    ("accounts.*.label", Now),
    ("accounts.*.active", Now),
    ("accounts.*.senders", Now),
    ("accounts.*.force_from", Now),
    ("accounts.*.stream", Now),
    ("accounts.*.streams", Now),
    ("accounts.*.daily_limit", Now),
    ("accounts.*.rate_limit", Now),
    ("accounts.*.max_recipients", Now),
    ("accounts.*.max_attachments", Now),
    ("accounts.*.notify", Now),
    ("accounts.*.hold", Now),
    // domains that are ours
    ("domains.*.catchall", Now),
    ("domains.*.bounce", Now),
    ("domains.*.subaddress", Now),
    ("domains.*.max_size", Now),
    ("domains.*.previous_names", Now),
    ("domains.*.dkim.selectors", Now),
    ("domains.*.dkim.key_files", Now),
    // where inbound mail goes
    ("aliases.*", Now),
    ("aliases.limits.*.limit", Now),
    ("aliases.limits.*.period", Now),
    ("aliases.limits.*.automatic", Now),
    ("targets.*.kind", Now),
    ("targets.*.url", Now),
    ("targets.*.secret", Now),
    ("targets.*.format", Now),
    ("targets.*.timeout", Now),
    ("targets.*.path", Now),
    ("targets.*.address", Now),
    ("targets.*.command", Now),
    ("targets.*.host", Now),
    ("targets.*.port", Now),
    ("targets.*.tls", Now),
    // the ways out
    ("delivery.default", Now),
    ("delivery.file_path", Now),
    ("delivery.helo_name", Now),
    ("delivery.source_addresses", Now),
    ("delivery.concurrency", Now),
    ("delivery.mx_port", Now),
    ("delivery.allow_private_addresses", Now),
    ("delivery.redirect_all_to", Now),
    ("delivery.allow_recipients", Now),
    ("delivery.retry.schedule", Now),
    ("delivery.retry.expire", Now),
    ("delivery.retry.delay_notice", Now),
    ("delivery.retry.max_attempts", Now),
    ("delivery.tls.policy", Now),
    ("delivery.tls.mta_sts", Now),
    ("delivery.tls.dane", Now),
    ("delivery.tls.tls_rpt", Now),
    ("destinations.*.connections", Now),
    ("destinations.*.messages_per_connection", Now),
    ("destinations.*.recipients_per_message", Now),
    ("destinations.*.rate", Now),
    ("destinations.*.idle_timeout", Now),
    ("streams.*.smart_host", Now),
    ("streams.*.concurrency", Now),
    ("streams.*.block_size", Now),
    ("streams.*.block_pause", Now),
    ("streams.*.daily_limit", Now),
    ("streams.*.verp", Now),
    ("streams.*.suppress", Now),
    ("streams.*.exempt_from_suspend", Now),
    ("smart_hosts.*.kind", Now),
    ("smart_hosts.*.host", Now),
    ("smart_hosts.*.port", Now),
    ("smart_hosts.*.tls", Now),
    ("smart_hosts.*.verify_certificate", Now),
    ("smart_hosts.*.username", Now),
    ("smart_hosts.*.password", Now),
    ("smart_hosts.*.from_filter", Now),
    ("smart_hosts.*.priority", Now),
    ("smart_hosts.*.active", Now),
    ("smart_hosts.*.max_size", Now),
    ("smart_hosts.*.pop_before_smtp", Now),
    ("smart_hosts.*.debug", Now),
    ("smart_hosts.*.graph_url", Now),
    ("smart_hosts.*.oauth.provider", Now),
    ("smart_hosts.*.oauth.flow", Now),
    ("smart_hosts.*.oauth.tenant", Now),
    ("smart_hosts.*.oauth.client_id", Now),
    ("smart_hosts.*.oauth.client_secret", Now),
    ("smart_hosts.*.oauth.refresh_token", Now),
    ("smart_hosts.*.oauth.token_url", Now),
    ("smart_hosts.*.oauth.scope", Now),
    ("sender.default_from", Now),
    ("sender.from_filter", Now),
    ("sender.reply_to", Now),
    ("sender.return_path", Now),
    ("archive", Sections),
    ("archive.path", Now),
    ("archive.per", Now),
    // trust
    ("checks.spf", Now),
    ("checks.dkim", Now),
    ("checks.dmarc", Now),
    ("checks.arc", Now),
    ("checks.trusted_sealers", Now),
    ("checks.rdns", Now),
    ("checks.dnsbl", Now),
    ("checks.milters", Now),
    ("checks.seal_forwards", Now),
    ("loops.period", Now),
    ("loops.limit", Now),
    ("loops.replies", Now),
    ("loops.key", Now),
    ("loops.on_limit", Now),
    ("loops.max_hops", Now),
    ("loops.trusted", Now),
    ("loops.automatic", Now),
    ("bounces.suppress_after", Now),
    ("bounces.within", Now),
    ("bounces.spread", Now),
    ("bounces.hard_at_once", Now),
    ("bounces.reset_on_inbound", Now),
    // more doors
    ("pickup.*.path", Now),
    ("pickup.*.account", Now),
    ("pickup.*.format", Now),
    ("pickup.*.settle", Now),
    ("pickup.*.done", Now),
    ("pickup.*.max_per_minute", Now),
    ("fetch.*.protocol", Now),
    ("fetch.*.host", Now),
    ("fetch.*.port", Now),
    ("fetch.*.tls", Now),
    ("fetch.*.username", Now),
    ("fetch.*.password", Now),
    ("fetch.*.oauth.provider", Now),
    ("fetch.*.oauth.flow", Now),
    ("fetch.*.oauth.tenant", Now),
    ("fetch.*.oauth.client_id", Now),
    ("fetch.*.oauth.client_secret", Now),
    ("fetch.*.oauth.refresh_token", Now),
    ("fetch.*.oauth.token_url", Now),
    ("fetch.*.oauth.scope", Now),
    ("fetch.*.folder", Now),
    ("fetch.*.interval", Now),
    ("fetch.*.after", Now),
    ("fetch.*.deliver_to", Now),
    // running it
    ("queue.durability", Now),
    ("queue.min_free", Now),
    ("queue.memory", Now),
    ("limits.max_size", Now),
    ("limits.max_recipients", Now),
    ("limits.connections", Now),
    ("limits.connections_per_ip", Now),
    ("limits.connection_rate", Now),
    ("limits.errors_per_session", Now),
    ("limits.auth_failures", Now),
    ("limits.command_timeout", Now),
    ("limits.data_timeout", Now),
    ("dns.nameservers", Now),
    ("dns.timeout", Now),
    ("admin.bind", Now),
    ("admin.token", Now),
    ("events.keep", Now),
    ("events.log", Now),
    ("events.webhooks.*.url", Now),
    ("events.webhooks.*.secret", Now),
    ("events.webhooks.*.only", Now),
    ("log.level", Now),
    ("log.format", Now),
];

/// The paths of all known keys, each with whether it has a value (and is not the header of sections).
pub fn known_keys() -> Vec<(&'static str, bool)> {
    KEYS.iter().map(|(path, support)| (*path, matches!(support, Now))).collect()
}

/// `[[sections]]`, of which there may be several.
pub(super) fn lists() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(|(_, support)| matches!(support, Sections)).map(|(path, _)| *path)
}

/// The path of a key with `*` for the names that its user chose; one that is not known stays as it is.
pub(super) fn pattern(path: &[String]) -> String {
    let all = Known::all();
    let mut known = Some(&all);
    let mut names = Vec::new();
    for name in path {
        let literal = known.and_then(|known| known.children.get(name.as_str()));
        let any = known.and_then(|known| known.children.get("*"));
        names.push(if literal.is_none() && any.is_some() { "*" } else { name });
        known = literal.or(any);
    }
    names.join(".")
}

/// The table above as a tree.
#[derive(Default)]
struct Known {
    support: Option<Support>,
    children: BTreeMap<&'static str, Known>,
}

impl Known {
    fn all() -> Known {
        let mut root = Known::default();
        for (path, support) in KEYS {
            let leaf = path.split('.').fold(&mut root, |node, name| node.children.entry(name).or_default());
            leaf.support = Some(*support);
        }
        root
    }

    fn child(&self, name: &str) -> Option<&Known> {
        self.children.get(name).or_else(|| self.children.get("*"))
    }
}

/// Reports every key of `root` that is unknown.
pub(super) fn check(root: &Table, report: &Report) {
    let known = Known::all();
    Check { known: &known, report }.table(root, &known, "");
}

struct Check<'a> {
    known: &'a Known,
    report: &'a Report,
}

impl Check<'_> {
    fn table(&self, table: &Table, known: &Known, path: &str) {
        for (name, entry) in table.in_order() {
            let key = join(path, name);
            match known.child(name) {
                Some(child) => self.entry(entry, child, &key),
                None => self.unknown(name, entry, known, &key),
            }
        }
    }

    fn entry(&self, entry: &Entry, known: &Known, key: &str) {
        if known.children.is_empty() {
            return;
        }
        let is_list = matches!(known.support, Some(Sections));
        match &entry.node.value {
            Value::Table(table) if !is_list => self.table(table, known, key),
            Value::Array(items) if is_list => {
                for item in items {
                    if let Value::Table(table) = &item.value {
                        self.table(table, known, key);
                    }
                }
            }
            // Its reader says how they are written.
            _ if is_list => {}
            other => {
                let what = format!("must be a section, not {}", other.type_name());
                let remedy = format!("Write [{key}] on a line of its own and its keys below.");
                self.report.problem(ProblemKind::WrongType, &entry.node.place, key, what, remedy);
            }
        }
    }

    fn unknown(&self, name: &str, entry: &Entry, siblings: &Known, key: &str) {
        let names: Vec<&str> = siblings.children.keys().copied().filter(|name| *name != "*").collect();
        let remedy = if let Some(near) = nearest(name, names.iter().copied()) {
            format!("Did you mean \"{near}\"?")
        } else if let Some(home) = self.home(name) {
            home
        } else {
            format!("Known here: {}.", names.join(", "))
        };
        self.report.problem(ProblemKind::UnknownKey, &entry.key, key, "unknown key", remedy);
    }

    /// Where a key of exactly this name belongs, if there is one place only.
    fn home(&self, name: &str) -> Option<String> {
        if self.known.children.contains_key(name) {
            return Some("It belongs at the top of the file, before the first [section].".to_owned());
        }
        let ends = |path: &&str| path.rsplit_once('.').is_some_and(|(_, last)| last == name);
        let mut homes = KEYS.iter().map(|(path, _)| *path).filter(ends);
        let (first, second) = (homes.next()?, homes.next());
        let section = first.rsplit_once('.').map(|(section, _)| section.replace('*', "NAME"))?;
        second.is_none().then(|| format!("It belongs in [{section}]."))
    }
}
