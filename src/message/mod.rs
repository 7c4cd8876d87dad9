//! Words for a message: address, header, envelope, draft. No I/O, no clock, no tokio.

pub mod address;
pub mod arc;
pub mod authres;
pub mod body;
pub mod canonical;
pub mod content;
pub mod draft;
pub mod envelope;
pub mod findings;
pub mod header;
pub mod hold;
pub mod id;
pub mod ip;
pub mod mailbox;
pub mod mime;
pub mod stream;
pub mod tags;
pub mod text;

pub use address::{Address, AddressError, Domain, ReversePath};
pub use content::Content;
pub use draft::{Door, Draft, Origin, Peer};
pub use envelope::{BodyType, DsnRequest, Envelope, Notify, OriginalRecipient, Recipient, Ret, TlsWish};
pub use findings::Findings;
pub use hold::{HeldBy, Hold};
pub use id::MessageId;
