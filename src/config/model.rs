//! The sections as types, where there are many of them: what is in them is documented in `conf/postrider.toml`.

pub mod certificate;
pub mod inbound;
pub mod outbound;
pub mod trust;
