//! One message on one connection: its commands, and what has been decided about each recipient. A server
//! that takes some of the recipients only (452) gets the others in a further transaction at once, as
//! long as it takes some each time.

use std::collections::VecDeque;

use super::commands::Mail;
use super::step::Framing;
use crate::delivery::Outcome;

#[derive(Debug)]
pub struct Transaction {
    pub mail: Mail,
    /// One per recipient, in their order.
    pub fates: Vec<Fate>,
    pub mail_refused: bool,
    /// A RCPT was accepted after MAIL was refused: the server's idea of the transaction is not ours.
    pub confused: bool,
    /// DATA, or RSET where nothing is to be sent.
    pub ends_with: Command,
    pub framing: Framing,
    pub unsent: VecDeque<Command>,
    pub unanswered: VecDeque<Command>,
}

#[derive(Debug, PartialEq)]
pub enum Fate {
    Open,
    Accepted,
    /// The server takes no more recipients in this transaction; what it means if there is no other.
    Postponed(Outcome),
    Decided(Outcome),
}

#[derive(Clone, Copy, Debug)]
pub enum Command {
    Reset,
    Mail,
    /// Index into the recipients.
    Rcpt(usize),
    Data,
}

impl Command {
    pub fn name(self) -> &'static str {
        match self {
            Command::Reset => "RSET",
            Command::Mail => "MAIL",
            Command::Rcpt(_) => "RCPT",
            Command::Data => "DATA",
        }
    }
}

impl Transaction {
    pub fn new(mail: Mail) -> Transaction {
        let fates = mail.recipients.iter().map(|_| Fate::Open).collect();
        Transaction {
            mail,
            fates,
            mail_refused: false,
            confused: false,
            ends_with: Command::Data,
            framing: Framing::Dot,
            unsent: VecDeque::new(),
            unanswered: VecDeque::new(),
        }
    }

    /// Recipients whose fate is open, by index.
    pub fn open(&self) -> Vec<usize> {
        (0..self.fates.len()).filter(|at| self.fates.get(*at) == Some(&Fate::Open)).collect()
    }

    pub fn has_accepted(&self) -> bool {
        self.fates.contains(&Fate::Accepted)
    }

    /// Known to lead nowhere, so not worth a round trip.
    pub fn is_pointless(&self, command: Command) -> bool {
        match command {
            Command::Reset | Command::Mail => false,
            Command::Rcpt(_) => self.mail_refused,
            Command::Data => !self.has_accepted(),
        }
    }

    pub fn decide_open(&mut self, outcome: impl Fn() -> Outcome) {
        for fate in self.fates.iter_mut().filter(|fate| **fate == Fate::Open) {
            *fate = Fate::Decided(outcome());
        }
    }

    pub fn decide_accepted(&mut self, outcome: impl Fn() -> Outcome) {
        for fate in self.fates.iter_mut().filter(|fate| **fate == Fate::Accepted) {
            *fate = Fate::Decided(outcome());
        }
    }

    pub fn decide_postponed(&mut self) {
        for fate in &mut self.fates {
            if let Fate::Postponed(outcome) = fate {
                *fate = Fate::Decided(outcome.clone());
            }
        }
    }

    /// Opens the fate of those that were postponed, for a further transaction; false if there are none.
    pub fn reopen(&mut self) -> bool {
        let postponed = self.fates.iter_mut().filter(|fate| matches!(fate, Fate::Postponed(_)));
        let count = postponed.map(|fate| *fate = Fate::Open).count();
        (self.mail_refused, self.confused) = (false, false);
        count > 0
    }

    /// Those that are not in it may be offered to another host.
    pub fn decided(self) -> Vec<(u32, Outcome)> {
        let fates = self.mail.recipients.iter().zip(self.fates);
        fates
            .filter_map(|(recipient, fate)| match fate {
                Fate::Decided(outcome) => Some((recipient.number, outcome)),
                Fate::Open | Fate::Accepted | Fate::Postponed(_) => None,
            })
            .collect()
    }
}
