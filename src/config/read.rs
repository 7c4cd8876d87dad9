//! Text to configuration: the top of it, and what needs more than one section to check.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::chains::{self, Map};
use super::destinations::{self, Names, Origin};
use super::problem::ProblemKind;
use super::report::Report;
use super::section::{Section, Wrong, read_address, read_domain};
use super::source::Source;
use super::tree::Place;
use super::value::render_size;
use super::{Config, OwnDomain, Problems};
use super::{accounts, certificates, domains, doors, events, fetch, files, groups, keys};
use super::{running, sender, smart_hosts, streams, targets, trust, ways_out};
use crate::message::{Address, Domain};

/// Reads and checks the configuration in a file, and the files that it includes and names.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let report = Report::default();
    let file_name = &path.display().to_string();
    match files::read_text(path) {
        Ok(text) => read(file_name, &text, report),
        Err(reason) => {
            let (what, remedy) = (format!("cannot read it: {reason}"), "Name a configuration with --config FILE.");
            report.problem(ProblemKind::Unreadable, &Place::file(file_name), "", what, remedy);
            Err(nothing(file_name, report))
        }
    }
}

/// As [`load`], with the text given. Includes are looked for beside `file_name`.
pub fn parse(file_name: &str, text: &str) -> Result<Config, Problems> {
    read(file_name, text, Report::default())
}

/// Where the server of this configuration keeps its files, as far as that can be read, whatever else is wrong.
pub fn data_dir_of(path: &Path) -> Option<PathBuf> {
    let (report, file_name) = (Report::default(), path.display().to_string());
    let tree = files::read_tree(&file_name, &files::read_text(path).ok()?, &report);
    data_dir(&Section::root(&tree, &file_name, &report))
}

fn read(file_name: &str, text: &str, report: Report) -> Result<Config, Problems> {
    let tree = files::read_tree(file_name, text, &report);
    keys::check(&tree, &report);
    let config = config(&Section::root(&tree, file_name, &report));
    match config {
        Some(config) => {
            let source = Source::new(file_name, &tree, report.take_found());
            Ok(Config { warnings: report.finish()?, source, ..config })
        }
        None => Err(nothing(file_name, report)),
    }
}

/// The problems that left no configuration. There always are some; if not, that is one.
fn nothing(file_name: &str, report: Report) -> Problems {
    let (what, remedy) = ("nothing could be read, for no reason found", "Please report this.");
    if report.is_empty() {
        report.problem(ProblemKind::Unreadable, &Place::file(file_name), "", what, remedy);
    }
    report.finish().err().unwrap_or_else(|| Problems::new(Vec::new()))
}

/// None only if there were problems.
fn config(root: &Section<'_>) -> Option<Config> {
    let names = Names::gather(root);
    let hostname = hostname(root);
    let data_dir = data_dir(root);
    let postmaster = postmaster(root, &names, hostname.as_ref());
    let listeners = doors::listeners(root);
    let networks = doors::networks(root, &listeners);
    let tls = certificates::tls(root, postmaster.as_ref(), &listeners);
    let accounts = accounts::accounts(root);
    let domains = domains::domains(root, &names);
    let (mut aliases, mut origins) = destinations::aliases(root, &names);
    aliases.limits = trust::alias_limits(root);
    let targets = targets::targets(root);
    let delivery = ways_out::delivery(root, hostname.as_ref());
    let destinations = groups::destinations(root);
    let mailboxes = fetch::mailboxes(root);
    let smart_hosts = smart_hosts::smart_hosts(root, &mailboxes);
    let fetch = fetch::fetched(root, mailboxes, &names);
    let streams = streams::streams(root, &smart_hosts);
    let sender = sender::sender(root, &names, &domains);
    sender::warn_of_bounces(root, &sender, &smart_hosts, &domains);
    domains::check_names(root, &domains, &aliases, &sender, takes_bounces(&sender, &streams));
    sender::check_verp(root, &sender, &streams, &domains);
    if let Some(delivery) = &delivery {
        smart_hosts::check_default(root, delivery.default, &smart_hosts, &sender);
        smart_hosts::warn_of_unused(root, delivery.default, &smart_hosts, &streams);
    }
    let archive = ways_out::archive(root);
    let checks = trust::checks(root);
    let loops = trust::loops(root, &names);
    let bounces = super::bounces::bounces(root);
    let pickup = trust::pickup(root, &accounts, &names);
    let queue = running::queue(root);
    let limits = running::limits(root);
    let dns = running::dns(root);
    let admin = running::admin(root);
    let events = events::events(root);
    let log = running::log(root);
    origins.extend(catchalls(root, &names));
    origins.extend(fetch::origins(root, &fetch));
    if let Some(postmaster) = &postmaster {
        let map =
            Map { domains: &domains, aliases: &aliases, postmaster, takes_bounces: takes_bounces(&sender, &streams) };
        chains::check(&map, &origins, root.report);
    }
    warn_of_sizes(&domains, limits.max_size, root.report);
    warn_of_memory(queue.memory, limits.max_size, root.report);
    Some(Config {
        hostname: hostname?,
        data_dir: data_dir?,
        postmaster: postmaster?,
        listeners,
        networks,
        tls: tls.pair,
        tls_extra: tls.extra,
        acme: tls.acme,
        accounts,
        domains,
        aliases,
        targets,
        delivery: delivery?,
        destinations,
        streams,
        smart_hosts,
        sender,
        archive,
        checks,
        loops,
        bounces,
        pickup,
        fetch,
        queue,
        limits,
        dns,
        admin,
        events,
        log,
        warnings: Vec::new(),
        source: Source::default(),
    })
}

fn hostname(root: &Section<'_>) -> Option<Domain> {
    let remedy = "Add the full name of this machine, such as hostname = \"mail.example.com\".";
    root.required("hostname", remedy)?.read("a domain", |text| {
        let domain = read_domain(text)?;
        if domain.as_str().contains('_') {
            return Err(Wrong::value(format!("{text:?} is not a host name"), "Use letters, digits, hyphens and dots."));
        }
        Ok(domain)
    })
}

fn data_dir(root: &Section<'_>) -> Option<PathBuf> {
    let remedy = "Add a folder for the queue, such as data_dir = \"/var/lib/postrider\".";
    root.required("data_dir", remedy)?.absolute_path()
}

/// Default: postmaster at the first of our domains in the order of the file, else at this host.
fn postmaster(root: &Section<'_>, names: &Names, hostname: Option<&Domain>) -> Option<Address> {
    if let Some(item) = root.item("postmaster") {
        return item.read("an address", read_address);
    }
    let domain = names.domains.first().or(hostname)?;
    Address::new("postmaster", domain.clone()).ok()
}

/// Catchalls to follow. Their values were read, and complained about, with their domains.
fn catchalls<'a>(root: &Section<'a>, names: &Names) -> Vec<Origin<'a>> {
    let quiet = Report::default();
    let sections = root.section("domains").named().into_iter();
    let items = sections.filter_map(|(_, section)| section.item("catchall"));
    let origin = |item: super::section::Item<'a>| {
        let silent = super::section::Item { report: &quiet, ..item.clone() };
        let destinations = destinations::destinations(&silent, names);
        Origin { item, address: None, destinations }
    };
    items.map(origin).collect()
}

/// A large message comes in and leaves in pieces, but not by every door and to every target.
fn warn_of_memory(memory: u64, max_size: u64, report: &Report) {
    if memory < max_size {
        let (memory, max_size) = (render_size(memory), render_size(max_size));
        report.warn(format!(
            "queue.memory is {memory}, less than one message of limits.max_size ({max_size}): a large message may need \
             all of it, and others wait, or get 452, meanwhile; ten times limits.max_size leaves room"
        ));
    }
}

fn warn_of_sizes(domains: &BTreeMap<Domain, OwnDomain>, limit: u64, report: &Report) {
    for (domain, own) in domains {
        if own.max_size.is_some_and(|size| size > limit) {
            report
                .warn(format!("domains.\"{domain}\".max_size is more than limits.max_size, which applies to all mail"));
        }
    }
}

/// As [`Config::takes_bounces`].
fn takes_bounces(sender: &super::Sender, streams: &BTreeMap<String, super::Stream>) -> bool {
    sender.return_path != super::ReturnPath::Client || streams.values().any(|stream| stream.verp)
}
