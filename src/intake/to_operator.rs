//! Mail of our own to those who run the server: one text, from MAILER-DAEMON, with the null sender, past
//! every suspension.

use bytes::Bytes;

use crate::clock::rfc5322;
use crate::message::{Address, Door, Draft, Envelope, MessageId, Origin, ReversePath, header, stream};

use super::Intake;

/// What they are told.
pub(super) struct Notice<'a> {
    pub to: &'a Address,
    pub subject: String,
    /// Lines end with LF.
    pub text: String,
    /// Makes its Message-ID, with `kind`.
    pub id: MessageId,
    pub kind: &'static str,
}

impl Intake {
    /// A draft of it, for [`Intake::accept`].
    pub(super) fn to_operator(&self, notice: &Notice<'_>) -> Draft {
        let Notice { to, subject, text, id, kind } = notice;
        let own = self.config.domains.keys().next().unwrap_or(&self.config.hostname);
        let mut content = Vec::new();
        for (field, value) in [
            // It goes even while sending is suspended.
            (stream::FIELD, stream::SECURITY.to_owned()),
            ("From", format!("Mail server <MAILER-DAEMON@{own}>")),
            ("To", format!("<{to}>")),
            ("Subject", subject.clone()),
            ("Date", rfc5322(self.clock.now())),
            ("Message-ID", format!("<{id}.{kind}@{}>", self.config.hostname)),
            ("Auto-Submitted", "auto-generated".to_owned()),
            ("MIME-Version", "1.0".to_owned()),
            ("Content-Type", "text/plain; charset=utf-8".to_owned()),
            ("Content-Transfer-Encoding", "8bit".to_owned()),
        ] {
            content.extend_from_slice(&header::field(field, &value));
        }
        content.extend_from_slice(b"\r\n");
        content.extend_from_slice(text.replace('\n', "\r\n").as_bytes());
        let mut envelope = Envelope::new(ReversePath::Null, [(*to).clone()]);
        envelope.smtputf8 = to.needs_smtputf8();
        let origin = Origin { door: Door::Bounce, account: None, peer: None };
        Draft { envelope, content: Bytes::from(content).into(), origin }
    }
}
