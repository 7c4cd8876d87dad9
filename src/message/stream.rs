//! Streams: kinds of mail that do not wait behind each other. Left out: what a stream may do (shares
//! are in `queue::lane`).

/// Where mail goes that names no stream, and our own notices.
pub const DEFAULT: &str = "transactional";

/// The streams that are always there.
pub const BUILT_IN: [&str; 3] = [DEFAULT, "bulk", "security"];

/// For records that were written before there were streams.
pub fn default_name() -> String {
    DEFAULT.to_owned()
}
