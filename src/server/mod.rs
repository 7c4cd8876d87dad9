//! SMTP in: `listener` accepts, `connection` pumps bytes, `session` decides, `sasl` and `accounts`
//! know who it is, `limits` how much, `tls` under which certificate, `acme` where it comes from; `proxy_protocol` reads for whom a proxy
//! speaks; `outside` is what lies behind it.

pub mod accounts;
pub mod acme;
pub mod connection;
pub mod limits;
pub mod listener;
pub mod outside;
pub mod proxy_protocol;
pub mod sasl;
pub mod session;
pub mod step;
#[cfg(test)]
mod testing;
pub mod tls;
