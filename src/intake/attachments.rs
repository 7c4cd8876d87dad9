//! The limit on what comes with a message: the sum of its decoded attachments, and the notice to whoever
//! is to know of one that was refused.
//!
//! An attachment is a part that says so, or that has a file name. A message that is shorter than the
//! limit is not looked at: decoding makes nothing longer. One that is too complex to be taken apart
//! counts with all its bytes. What has gone ahead into the store is read back, and pays for its memory.

use std::fmt::Write;

use tokio::time::timeout;

use crate::message::header::Headers;
use crate::message::{Draft, MessageId, mime};
use crate::queue::memory;
use crate::queue::record::streamed_numbers;
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

use super::to_operator::Notice;
use super::{Intake, ROOM_WAIT, store_trouble};

/// Bytes of the refused message's header section that a notice quotes.
const HEADERS_QUOTED_MAX: usize = 16 * 1024;
/// Recipients that a notice names.
const RECIPIENTS_NAMED_MAX: usize = 50;

impl Intake {
    /// Refuses a message with too much attached, and tells `accounts.*.notify` of it, once for each
    /// message that is handed in.
    pub(super) async fn check_attachments(
        &self,
        draft: &Draft,
        headers: &Headers<'_>,
        id: MessageId,
    ) -> Result<(), Refusal> {
        let Some(name) = draft.origin.account.as_deref() else { return Ok(()) };
        let Some(account) = self.config.accounts.get(name) else { return Ok(()) };
        let Some(limit) = account.max_attachments.filter(|limit| draft.content.len() > *limit) else { return Ok(()) };
        let size = self.attached(draft).await?;
        if size <= limit {
            return Ok(());
        }
        let refusal = Refusal {
            reply: Reply::new(552, (3, 4), format!("the attachments have {size} bytes, more than the {limit} allowed")),
            reason: format!("the attachments have {size} bytes; accounts.{name}.max_attachments is {limit}"),
        };
        if let Some(notify) = &account.notify {
            let label = if account.label.is_empty() { name.to_owned() } else { format!("{name} ({})", account.label) };
            let subject = format!("Refused: a message of {label}, its attachments are too large");
            let text = told(draft, headers, &label, &refusal, id);
            let notice = self.to_operator(&Notice { to: notify, subject, text, id, kind: "refused" });
            // The notice has no account, so this ends here.
            if let Err(error) = Box::pin(self.accept(notice)).await {
                tracing::error!(%id, reason = error.reason, "the notice of a refused message could not be queued");
            }
        }
        Err(refusal)
    }

    /// Bytes of all attachments together, decoded.
    async fn attached(&self, draft: &Draft) -> Result<u64, Refusal> {
        let Some(rest) = draft.content.rest() else { return Ok(sum(draft.content.head())) };
        let held = timeout(ROOM_WAIT, self.queue.memory().take_beside(memory::steps_of(draft.content.len()))).await;
        let _held = held.ok().flatten().ok_or_else(|| Refusal {
            reply: Reply::new(452, (3, 1), "no room for the message right now, try again later"),
            reason: "no room in queue.memory to look at the attachments".to_owned(),
        })?;
        let (queue, id, chunks) = (self.queue.clone(), rest.id, rest.chunks);
        let mut whole = draft.content.head().to_vec();
        let measured = tokio::task::spawn_blocking(move || {
            for number in streamed_numbers(chunks) {
                whole.extend_from_slice(&queue.body_chunk(id, number)?);
            }
            Ok(sum(&whole))
        });
        let measured = measured.await.map_err(|_| Refusal::inner("the look at the attachments was broken off"))?;
        measured.map_err(|error| store_trouble(&error))
    }
}

/// The text of the notice.
fn told(draft: &Draft, headers: &Headers<'_>, label: &str, refusal: &Refusal, id: MessageId) -> String {
    let recipients: Vec<String> =
        draft.envelope.recipients.iter().take(RECIPIENTS_NAMED_MAX).map(|to| to.address.to_string()).collect();
    let more = draft.envelope.recipients.len().saturating_sub(RECIPIENTS_NAMED_MAX);
    let mut text = String::from("A message was refused and has not been sent.\n\n");
    // Writing into a String cannot fail.
    let _ = writeln!(text, "Account:    {label}");
    let _ = writeln!(text, "Sender:     <{}>", draft.envelope.mail_from);
    let _ = writeln!(text, "Recipients: {}", recipients.join("\n            "));
    if more > 0 {
        let _ = writeln!(text, "            and {more} more");
    }
    let subject = headers.get("subject").map(|field| field.text()).unwrap_or_default();
    let _ = writeln!(text, "Subject:    {}", subject.trim());
    let _ = writeln!(text, "Size:       {} bytes", draft.content.len());
    let _ = writeln!(text, "Id:         {id}");
    let _ = writeln!(text, "Reason:     {}\n\nIts header:\n", refusal.reason);
    let quoted = headers.header_bytes();
    let quoted = String::from_utf8_lossy(quoted.get(..HEADERS_QUOTED_MAX).unwrap_or(quoted)).into_owned();
    for line in quoted.lines() {
        let line: String = line.chars().filter(|c| !c.is_control() || *c == '\t').collect();
        let _ = writeln!(text, "> {line}");
    }
    text
}

/// Of a whole message.
fn sum(message: &[u8]) -> u64 {
    let Ok(parts) = mime::parts(message) else { return message.len() as u64 };
    let is_attached =
        |part: &&mime::Part<'_>| part.filename.is_some() || part.disposition.as_deref() == Some("attachment");
    parts.iter().filter(is_attached).map(|part| part.decoded().len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_count_decoded_and_inline_text_does_not() {
        let message = "From: a@b.example\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n\
            --x\r\n\r\nhello, a text of some length that is no attachment\r\n\
            --x\r\nContent-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\nQUJDREVG\r\n\
            --x\r\nContent-Type: text/plain; name=\"a.txt\"\r\n\r\n12345\r\n\
            --x\r\nContent-Disposition: inline\r\n\r\nread with the rest\r\n\
            --x\r\nContent-Disposition: attachment\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=41=42\r\n--x--\r\n";
        assert_eq!(sum(message.as_bytes()), 6 + 5 + 2);
        assert_eq!(sum(b"From: a@b.example\r\n\r\nplain\r\n"), 0);
    }
}
