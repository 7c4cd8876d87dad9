//! A whole dialogue of ours with a server that says anything: what goes on the wire is well-formed, and every
//! recipient has at most one fate.

use std::collections::BTreeSet;

use super::is_stray;
use crate::delivery::Outcome;
use crate::delivery::smtp::client::Client;
use crate::delivery::smtp::commands::{Mail, MailRecipient, Smtputf8};
use crate::delivery::smtp::replies::ReplyReader;
use crate::delivery::smtp::step::{Framing, Loss, Step, Timeouts, Tls};
use crate::message::{Address, Domain, DsnRequest, Notify, ReversePath};

const RECIPIENTS: [&str; 3] = ["a@far.test", "\"b c\"@far.test", "d@far.test"];
const CONTENT: &[u8] = b"Subject: x\r\n\r\ntext\r\n";

/// The first byte chooses how we connect and what we bring.
pub fn client(input: &[u8]) {
    let Some((choice, said)) = input.split_first() else { return };
    let tls = [Tls::Never, Tls::IfOffered, Tls::Required, Tls::Implicit][*choice as usize & 3];
    let mut client = Client::new("far.test".into(), Domain::parse("own.test").unwrap(), tls, Timeouts::RFC5321);
    if choice & 4 != 0 {
        client = client.lmtp();
    }
    let mut reader = ReplyReader::default();
    reader.push(said);
    let mut messages = 0;
    let mut step = client.start();
    loop {
        step = match step {
            Step::Talk { send, .. } => {
                assert!(send.is_empty() || (send.ends_with(b"\r\n") && !is_stray(&send)), "{:?}", send.escape_ascii());
                match reader.next() {
                    Ok(Some(reply)) => client.reply(reply),
                    Ok(None) => Step::Over(client.lost(Loss::Closed)),
                    Err(error) => Step::Over(client.lost(Loss::Garbage(error))),
                }
            }
            Step::StartTls => client.secured("TLSv1.3".into()),
            Step::Content(framing) => {
                assert!(tls != Tls::Required || client.is_under_tls(), "in clear where TLS is required");
                client.end_content(match framing {
                    Framing::Dot => [CONTENT, b".\r\n"].concat(),
                    Framing::Counted => CONTENT.to_vec(),
                })
            }
            Step::Ready if messages < 2 => {
                messages += 1;
                client.begin(mail(*choice))
            }
            Step::Ready => return,
            Step::Done(fates) => {
                check(&fates);
                assert_eq!(fates.len(), RECIPIENTS.len(), "a recipient without a fate");
                if messages == 2 {
                    return;
                }
                messages += 1;
                client.begin(mail(*choice))
            }
            Step::Over(over) => {
                check(&over.decided);
                return;
            }
        };
    }
}

fn check(fates: &[(u32, Outcome)]) {
    let numbers: BTreeSet<u32> = fates.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers.len(), fates.len(), "a recipient with two fates");
    assert!(numbers.iter().all(|number| (*number as usize) < RECIPIENTS.len()));
}

fn mail(choice: u8) -> Mail {
    let recipient = |(number, address): (usize, &&str)| MailRecipient {
        number: number as u32,
        address: Address::parse(address).unwrap(),
        notify: Notify::default(),
        original: None,
    };
    Mail {
        mail_from: if choice & 8 == 0 {
            ReversePath::Null
        } else {
            ReversePath::Address(Address::parse("me@own.test").unwrap())
        },
        size: CONTENT.len() as u64,
        eight_bit: choice & 16 != 0,
        smtputf8: if choice & 32 != 0 { Smtputf8::Needed } else { Smtputf8::No },
        dsn: DsnRequest::default(),
        require_tls: choice & 64 != 0,
        without_bdat: choice & 128 != 0,
        recipients: RECIPIENTS.iter().enumerate().map(recipient).collect(),
    }
}
