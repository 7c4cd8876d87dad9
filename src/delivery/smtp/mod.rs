//! Mail to other servers by SMTP.

pub mod addresses;
pub mod client;
pub mod commands;
pub mod connection;
pub mod extensions;
pub mod mx;
pub mod replies;
pub mod step;
pub mod tls;
pub mod transaction;
