//! postrider

pub mod message;
pub mod smtp;

pub mod clock;
pub mod config;
pub mod dns;
pub mod store;

pub mod bounce;
pub mod checks;
pub mod events;
pub mod queue;
pub mod routing;

pub mod delivery;
pub mod intake;

pub mod admin;
pub mod server;

pub mod app;
pub mod cli;
