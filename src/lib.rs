//! postrider: an SMTP relay and inbound MX server in one process.
//!
//! # The way of a message
//!
//! ```text
//!  SMTP ──► server (listener, connection, session) ─┐                        ┌─► smtp (MX), smart_hosts (smtp, graph)
//!  folder ─► intake::pickup ────────────────────────┤
//!  mailboxes elsewhere ─► intake::fetch ────────────┼─► intake ─► queue ─► delivery ─► webhook, maildir, lmtp, pipe, file, archive
//!  socket ─► admin ─────────────────────────────────┘   │ checks   ▲        │
//!                                                       │ routing  │        └─► settle ─► events
//!                                                       │ sign     └── bounce (a notice comes back in
//!                                                                      through intake)
//! ```
//!
//! # The parts, in the order in which they may import each other
//!
//! - **Words**, without I/O, clock or runtime: [`message`] (address, header, MIME bounds, envelope,
//!   draft, findings, ids), [`smtp`] (replies, commands, framing), and [`queue::record`] and
//!   [`events`]' enum, which are data only.
//! - **Services**: [`config`] (TOML to checked types), [`current`] (what may be replaced while it is in use),
//!   [`store`] (RocksDB tables), [`secret`] (keys that the server makes for itself, and marks made with them), [`dns`],
//!   [`clock`], [`trail`] (how far a test of a connection has come).
//! - **Stages**, which do not import each other and return facts: [`checks`] (SPF, DKIM, DMARC, ARC, DNS lists),
//!   [`routing`] (who gets it, and the loop guard), [`queue`] (commit, due index, claims, schedule),
//!   [`bounce`] (writing notices, reading those of others, the suppression list), [`events`] (the journal, and the
//!   queues of event webhooks).
//! - **Flows**: [`intake`] (the one door in, with rights and signatures), [`delivery`] (dispatcher,
//!   transports, and what an outcome means). Delivery calls intake for notices, never the reverse.
//! - **Doors**: [`server`] (SMTP in), [`admin`] (HTTP on a unix socket and on a port: the API, and pages for people).
//! - **Wiring**: [`app`] builds and joins the parts, [`cli`] is the command line.
//! - Only in tests and under a fuzzer: [`fuzzing`], what must hold of each parser whatever the bytes are.
//!
//! # Where to look for
//!
//! - Streams (kinds of mail with a share of the way out and perhaps a host of their own): `config::streams`,
//!   `queue::shares`. Suspending them, or a host, or all that leaves: `queue::suspend`, `queue::gate`.
//! - What programs drop as files: `intake::pickup`. What they give to `sendmail`: `cli::sendmail`, by SMTP or
//!   through a folder of the same kind.
//! - Smart hosts (named servers in place of those in DNS): `routing::outbound` chooses, `delivery::smart_hosts`
//!   goes from one to the next. Their tokens: `delivery::oauth`;
//!   Microsoft's mailboxes without SMTP: `delivery::graph`.
//! - Tests of connections for a person, leg by leg: [`trail`] has the words, `delivery::host_test` smart hosts,
//!   `delivery::target_test` targets, `intake::fetch::test` mailboxes, `app::account_test` logins of our own.
//! - What DNS says of us, and what else around a server keeps mail from arriving: `app::world`, whose `records` has the
//!   lines to publish.
//! - Targets of inbound mail: `config::targets` and `config::command` read them, `delivery::transport` sets them up;
//!   one that has answered 410 is paused in `delivery::paused`, what none takes in time is a dead letter
//!   (`delivery::settle`). Who may be told of a failure: `bounce::backscatter`.
//! - Mailboxes elsewhere: `intake::fetch` (its `run` has what a crash leaves, `imap` and `pop3` the clients).
//! - What TLS a mail exchanger has to show (DANE, MTA-STS, REQUIRETLS): `delivery::smtp::tls_policy`; the
//!   reports of it: `delivery::tls_report`.
//! - The DMARC policy of a sender's domain: `checks::dmarc`; what is told to it: `checks::feedback` counts,
//!   `delivery::dmarc_report` sends.
//! - Programs that are asked about what comes in from outside: `checks::milter`, `intake::milters`.
//! - Why a message waits, and what would become of one: `app::explain`, which asks `queue::gate`, the dispatcher
//!   (`delivery::standing`) and, for what is not there yet, `intake::rehearse`.
//! - Certificates: `server::tls` reads them and chooses by name, `server::acme` gets them from an authority. Whose
//!   connection it is, behind a proxy: `server::proxy_protocol` reads it, `server::listener` knows whom to believe.
//! - A configuration that changes while the server runs: `app::reload` takes it whole or not at all, `app::doors` opens and
//!   closes what listens, `config::source` knows what has changed, `app::files` notices that something has.
//! - How much one client may take: `server::limits`; how long it may take for it: `server::connection`. What a running
//!   server has given up: `cli::confine`.
//! - When a message is tried again: `queue::schedule`. What keeps a kill from making copies:
//!   `delivery::receipts`. Copies of what was sent: `delivery::archive`.
//! - What is kept in place of being sent: `routing::capture` says who, and which addresses stand for what a far end
//!   does; `queue::captured` is the index, `admin::captured` what people see, `app::captured` does it.
//! - What keeps mail from going round: `routing::loops`, with `routing::sent` and `routing::notice_id`;
//!   what we may tell outsiders: `intake::notices`. Return paths of forwarded mail: `routing::srs`.
//! - Mail that comes back: `routing::return_path` has the addresses, `bounce::read` reads it, `intake::bounces` asks
//!   for proof. Who gets no more mail because of that: `bounce::suppression` has the rule, `intake::suppress` the list.
//! - What happened: `events` has the enum, its names (`kind`), the journal and the search in it, who watches (`live`), and
//!   what webhooks are still to be told (`outbox`); `delivery::event_webhooks` tells it; `cli::events` is `postrider log`.
//! - The pages for people: `admin::dashboard`, a file each; what their charts are of: `admin::history`, which
//!   `app::history` fills. How many messages are queued, without looking at them: `store::census`.
//! - The life of DKIM keys, from new to taken away: `intake::sign::life`.
//! - What signatures sign: `message::canonical` and `message::body`; who verifies them: `checks::dkim`, `checks::arc`;
//!   who makes them: `intake::sign`, and `intake::seal` for what aliases send elsewhere.
//!
//! # What holds everywhere
//!
//! - A 250 after DATA or the last BDAT means that body, envelope and schedule are synced.
//! - Every message enters through [`intake::Intake::accept`]; so a check or a limit exists once. Only the
//!   message of a host's test is not queued: it goes straight to the host, and nowhere else.
//! - Only [`store`] names RocksDB, only [`dns`] resolves, only [`app`] spawns long-lived tasks.
//! - There is no global state: configuration, clock and store are handed in.
//! - Trouble of our own is a 4yz reply, never a 5yz; what a peer or a file sends cannot panic.
//! - Nothing in memory grows with the length of the queue; every cache, buffer and list has a named
//!   bound.
//!
//! # What is not here
//!
//! Mailboxes to read (no IMAP, no POP3), spam scoring, a configuration language, plug-ins.

pub mod message;
pub mod smtp;

pub mod clock;
pub mod config;
pub mod current;
pub mod dns;
pub mod secret;
pub mod store;
pub mod trail;

pub mod bounce;
pub mod checks;
pub mod events;
pub mod queue;
pub mod routing;

pub mod delivery;
pub mod intake;

pub mod admin;
pub mod server;

pub mod app;
pub mod cli;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
