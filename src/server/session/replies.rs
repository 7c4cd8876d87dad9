//! What the session says. One function a reply, so that a text is written once and found at once.

use crate::server::sasl::Mechanism;
use crate::server::step::Policy;
use crate::smtp::Reply;
use crate::smtp::wire::LineError;

pub fn greeting(policy: &Policy) -> Reply {
    Reply::bare(220, format!("{} ESMTP postrider", policy.hostname))
}

/// RFC 5321 4.1.1.1. `auth` and `starttls` only where they would be taken, REQUIRETLS only under TLS
/// (RFC 8689 2).
pub fn ehlo(policy: &Policy, starttls: bool, auth: bool, under_tls: bool) -> Reply {
    let mut text = format!(
        "{}\nPIPELINING\nSIZE {}\n8BITMIME\nSMTPUTF8\nCHUNKING\nENHANCEDSTATUSCODES\nDSN",
        policy.hostname, policy.max_size
    );
    if starttls {
        text.push_str("\nSTARTTLS");
    }
    if under_tls {
        text.push_str("\nREQUIRETLS");
    }
    if auth {
        text.push_str("\nAUTH ");
        text.push_str(Mechanism::offered(policy.scram));
    }
    Reply::bare(250, text)
}

pub fn helo(policy: &Policy) -> Reply {
    Reply::bare(250, policy.hostname.to_string())
}

pub fn ok() -> Reply {
    Reply::new(250, (0, 0), "ok")
}

pub fn bye() -> Reply {
    Reply::new(221, (0, 0), "bye")
}

pub fn go_ahead() -> Reply {
    Reply::bare(354, "end with <CRLF>.<CRLF>")
}

pub fn chunk_read(octets: u64) -> Reply {
    Reply::new(250, (0, 0), format!("{octets} octets received"))
}

pub fn help() -> Reply {
    Reply::new(214, (0, 0), "RFC 5321 says it all; ask the postmaster of this host about the rest")
}

/// RFC 5321 3.5.3 and 7.3: the same for every address.
pub fn will_not_verify() -> Reply {
    Reply::new(252, (5, 0), "send some mail, and it will be tried")
}

pub fn no_expn() -> Reply {
    Reply::new(502, (5, 1), "EXPN is not offered")
}

pub fn start_tls() -> Reply {
    Reply::new(220, (0, 0), "go ahead")
}

pub fn tls_not_offered() -> Reply {
    Reply::new(502, (5, 1), "STARTTLS is not offered")
}

pub fn tls_already() -> Reply {
    Reply::new(503, (5, 1), "TLS is already active")
}

/// RFC 8689 4.1.
pub fn requiretls_needs_tls() -> Reply {
    Reply::new(530, (7, 10), "REQUIRETLS is for connections under TLS: issue STARTTLS first")
}

/// RFC 3207 4.
pub fn tls_first() -> Reply {
    Reply::new(530, (7, 0), "Must issue a STARTTLS command first")
}

/// RFC 4954 6.
pub fn auth_needs_tls() -> Reply {
    Reply::new(538, (7, 11), "encryption is required before AUTH")
}

pub fn auth_first() -> Reply {
    Reply::new(530, (7, 0), "authentication required")
}

pub fn auth_not_offered() -> Reply {
    Reply::new(502, (5, 1), "AUTH is not offered here")
}

pub fn auth_already() -> Reply {
    Reply::new(503, (5, 1), "already authenticated")
}

pub fn unknown_mechanism() -> Reply {
    Reply::new(504, (5, 4), "authentication mechanism not offered")
}

pub fn authenticated() -> Reply {
    Reply::new(235, (7, 0), "authenticated")
}

pub fn hello_first() -> Reply {
    Reply::new(503, (5, 1), "say EHLO first")
}

pub fn mail_first() -> Reply {
    Reply::new(503, (5, 1), "say MAIL first")
}

pub fn in_transaction() -> Reply {
    Reply::new(503, (5, 1), "not during a mail transaction; RSET ends it")
}

pub fn no_recipients() -> Reply {
    Reply::new(554, (5, 1), "no valid recipients")
}

/// RFC 3030 2: DATA and BDAT do not mix, and nothing comes between chunks.
pub fn in_chunks() -> Reply {
    Reply::new(503, (5, 1), "only BDAT or RSET may follow BDAT")
}

pub fn nothing_sent() -> Reply {
    Reply::new(503, (5, 1), "no message: the chunks hold no octets")
}

pub fn needs_smtputf8() -> Reply {
    crate::smtp::command::CommandError::NeedsSmtpUtf8.reply()
}

pub fn same_recipient() -> Reply {
    Reply::new(250, (1, 5), "ok, named before")
}

pub fn too_many_recipients(max: usize) -> Reply {
    Reply::new(452, (5, 3), format!("too many recipients: at most {max} in a message"))
}

pub fn too_large(max_size: u64) -> Reply {
    Reply::new(552, (3, 4), format!("the message is larger than {max_size} octets"))
}

pub fn bare_line_end() -> Reply {
    Reply::new(554, (6, 0), "a line ends with a bare CR or LF; lines must end with CRLF")
}

pub fn nul() -> Reply {
    Reply::new(554, (6, 0), "the message holds a NUL octet")
}

pub fn no_room() -> Reply {
    Reply::new(452, (3, 1), "no room for the message right now, try again later")
}

pub fn not_stored() -> Reply {
    Reply::new(451, (3, 0), "the message could not be stored right now, try again later")
}

pub fn too_many_errors() -> Reply {
    Reply::new(421, (7, 0), "too many errors, closing")
}

/// The account is gone, not active any more, or has another password. Who knows that one is let in again.
pub fn log_in_again() -> Reply {
    Reply::new(421, (7, 0), "your account has changed, please log in again")
}

pub fn too_idle() -> Reply {
    Reply::new(421, (7, 0), "too many commands that move no mail, closing")
}

/// The pump did not do what the last step said.
pub fn out_of_step() -> Reply {
    Reply::new(421, (3, 0), "temporary trouble on this server, closing")
}

pub fn bad_line(error: LineError) -> Reply {
    match error {
        LineError::BareLf | LineError::BareCr => {
            Reply::new(500, (5, 2), format!("{error}; lines must end with CRLF, closing"))
        }
        LineError::TooLong => Reply::new(500, (5, 2), format!("{error}, closing")),
        LineError::TlsHandshake => Reply::new(500, (5, 1), "TLS starts with the command STARTTLS here, closing"),
    }
}
