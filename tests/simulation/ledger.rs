//! What the world outside knows: what was offered and answered, what has arrived where. It believes nothing that
//! the server says of itself but its answers, and compares both at the end.

use std::collections::{BTreeMap, BTreeSet};

use postrider::message::MessageId;

/// What the sender was told of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing yet, or nothing any more: the server ended before it had answered.
    Nothing,
    Accepted(MessageId),
    Refused,
}

#[derive(Debug)]
pub struct Mail {
    /// Empty: the null sender.
    pub sender: String,
    pub recipients: Vec<String>,
    pub body: String,
    pub told: Told,
}

/// One that a far end has taken.
#[derive(Debug)]
struct Copy {
    /// Our server has the answer, and nothing else of the attempt was left to do.
    is_settled: bool,
}

/// All that has come for a recipient of a message, or of a notice.
#[derive(Debug, Default)]
struct Arrivals {
    copies: Vec<Copy>,
    /// Copies more than one that are nobody's fault: an answer was lost, or a crash came in between.
    excuses: usize,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub mails: Vec<Mail>,
    /// By message or notice (its Message-ID), and recipient.
    arrivals: BTreeMap<(String, String), Arrivals>,
    /// Message-IDs of the notices about a recipient, with what they say of it.
    notices: BTreeMap<(String, String), BTreeSet<String>>,
    /// A person has taken them out of the queue, and was told so.
    cancelled: BTreeSet<String>,
    /// Everything that happens, in its order.
    pub trace: Vec<String>,
    /// What must not be.
    pub faults: Vec<String>,
}

/// What the server says became of a recipient.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claimed {
    pub delivered: usize,
    /// Failed, or expired.
    pub bounced: usize,
    pub cancelled: usize,
    pub is_queued: bool,
    /// How often the sender was told of it, as it says.
    pub notices: usize,
    /// A notice for this sender was given up in the end.
    pub is_notice_lost: bool,
}

/// Who sent it, in the header.
fn own_name(number: usize) -> String {
    format!("mail-{number}")
}

impl Ledger {
    pub fn note(&mut self, line: impl Into<String>) {
        self.trace.push(line.into());
    }

    pub fn fault(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.trace.push(format!("FAULT {what}"));
        self.faults.push(what);
    }

    pub fn content(number: usize, body: &str) -> String {
        format!(
            "From: Somebody <somebody@home.test>\r\nSubject: {number}\r\nMessage-ID: <{name}@sim.test>\r\nX-Number: \
             {number}\r\n\r\n{body}",
            name = own_name(number)
        )
    }

    /// A far end has the whole of a message. Gives what to name when the answer is known.
    pub fn arrived(&mut self, from: &str, to: &[String], content: &str) -> Vec<(String, String)> {
        let field = |name: &str| {
            let value = content.lines().take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix(name));
            value.map(|value| value.trim().to_owned())
        };
        let name = if content.contains("report-type=delivery-status") {
            self.notice(from, to, content, field("Message-ID:").unwrap_or_default())
        } else {
            let number = field("X-Number:").and_then(|number| number.parse().ok());
            self.message(from, to, content, number)
        };
        let keys: Vec<_> = to.iter().map(|recipient| (name.clone(), recipient.clone())).collect();
        for key in &keys {
            let arrivals = self.arrivals.entry(key.clone()).or_default();
            arrivals.copies.push(Copy { is_settled: false });
            let (copies, excuses) = (arrivals.copies.len(), arrivals.excuses);
            if copies > 1 + excuses {
                self.fault(format!("I3: copy {copies} of {} for {}, with {excuses} excuses", key.0, key.1));
            }
        }
        keys
    }

    fn message(&mut self, from: &str, to: &[String], content: &str, number: Option<usize>) -> String {
        let Some((number, mail)) = number.and_then(|number| Some((number, self.mails.get(number)?))) else {
            self.fault(format!("I2: something that nobody has sent came for {to:?}: {content}"));
            return String::new();
        };
        let mut faults = Vec::new();
        if mail.told == Told::Refused {
            faults.push(format!("I2: message {number} was refused, and came for {to:?}"));
        }
        if mail.sender != from {
            faults.push(format!("I4: message {number} is from {}, and came from {from}", mail.sender));
        }
        for recipient in to {
            if !mail.recipients.contains(recipient) {
                faults.push(format!("I4: message {number} came for {recipient}, who is none of its recipients"));
            }
            if self.cancelled.contains(recipient) {
                faults.push(format!("I2: message {number} came for {recipient} after it was cancelled"));
            }
        }
        let body = content.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        if body != mail.body || !content.ends_with(&Ledger::content(number, &mail.body)) {
            faults.push(format!("I4: message {number} came as {content:?}"));
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
        own_name(number)
    }

    fn notice(&mut self, from: &str, to: &[String], content: &str, name: String) -> String {
        if !from.is_empty() {
            self.fault(format!("I5: a notice from {from} instead of <>"));
        }
        let mut about = None;
        for line in content.lines() {
            if let Some(address) = line.strip_prefix("Final-Recipient: rfc822;") {
                about = Some(address.trim().to_owned());
            }
            let Some(action) = line.strip_prefix("Action: ") else { continue };
            let Some(recipient) = about.take() else {
                self.fault(format!("I5: a notice about nobody: {content}"));
                continue;
            };
            match self.mails.iter().find(|mail| mail.recipients.contains(&recipient)) {
                None => self.fault(format!("I5: a notice about {recipient}, to whom nobody wrote, for {to:?}")),
                Some(mail) if mail.sender.is_empty() => {
                    self.fault(format!("I5: {to:?} is told of {recipient}, whose message is from <>"));
                }
                Some(mail) if *to != [mail.sender.clone()] => {
                    self.fault(format!("I5: {to:?} is told of {recipient}, and {} has written", mail.sender));
                }
                Some(_) => {}
            }
            let known = self.notices.entry((recipient.clone(), action.to_owned())).or_default();
            known.insert(name.clone());
            if known.len() > 1 {
                let known = known.clone();
                self.fault(format!("I5: {recipient} is told of as {action} in {known:?}"));
            }
        }
        name
    }

    /// Our server has had the answer. `is_last`: nothing else is left to do in that attempt.
    pub fn answered(&mut self, keys: &[(String, String)], is_last: bool) {
        for key in keys {
            if let Some(copy) = self.arrivals.get_mut(key).and_then(|arrivals| arrivals.copies.last_mut()) {
                copy.is_settled = is_last;
            }
        }
    }

    /// Our server will not get the answer.
    pub fn unanswered(&mut self, keys: &[(String, String)]) {
        for key in keys {
            let arrivals = self.arrivals.entry(key.clone()).or_default();
            arrivals.excuses += 1;
            if let Some(copy) = arrivals.copies.last_mut() {
                copy.is_settled = true;
            }
        }
    }

    /// Everything that was under way has ended: those who wait for an answer get none.
    pub fn crashed(&mut self) {
        for arrivals in self.arrivals.values_mut() {
            for copy in arrivals.copies.iter_mut().filter(|copy| !copy.is_settled) {
                copy.is_settled = true;
                arrivals.excuses += 1;
            }
        }
    }

    pub fn cancel(&mut self, recipient: &str) {
        self.cancelled.insert(recipient.to_owned());
    }

    /// Compares what has arrived with what the server says.
    pub fn compare(&mut self, number: usize, recipient: &str, claimed: Claimed) {
        let mail = &self.mails[number];
        let is_accepted = matches!(mail.told, Told::Accepted(_));
        let (sender, is_known) = (mail.sender.clone(), mail.told != Told::Nothing);
        let key = (own_name(number), recipient.to_owned());
        let (copies, excuses) =
            self.arrivals.get(&key).map_or((0, 0), |arrivals| (arrivals.copies.len(), arrivals.excuses));
        let Claimed { delivered, bounced, cancelled, is_queued, notices, is_notice_lost } = claimed;
        let told = |action: &str| self.notices.get(&(recipient.to_owned(), action.to_owned())).map_or(0, BTreeSet::len);
        let of = format!("message {number} for {recipient} ({claimed:?}, {copies} copies, {excuses} excuses)");
        let mut faults = Vec::new();
        let fates = delivered + bounced + cancelled + usize::from(is_queued);
        if is_accepted && fates == 0 {
            faults.push(format!("I1: {of} is lost"));
        }
        if fates > 1 {
            faults.push(format!("{of} has more than one fate"));
        }
        if delivered > 0 && copies == 0 {
            faults.push(format!("I1: {of} is said to be delivered, and never came"));
        }
        if is_known && !is_accepted && fates > 0 {
            faults.push(format!("I2: {of} was refused and has a fate"));
        }
        if bounced > 0 && copies > excuses {
            faults.push(format!("{of} has come, and is said to have failed"));
        }
        let failed = told("failed");
        match (bounced > 0 && !sender.is_empty(), failed) {
            (false, 0) | (true, 1) => {}
            // Its way ends where nothing is taken.
            (true, 0) if (is_notice_lost || sender.ends_with("@closed.test")) && notices == 1 => {}
            (wanted, found) => {
                faults.push(format!("I5: {of}: {found} notices of failure to {sender:?}, wanted: {wanted}"));
            }
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
    }
}
