//! Mail to other servers by SMTP.

pub mod addresses;
pub mod client;
pub mod commands;
pub mod extensions;
pub mod mx;
pub mod replies;
