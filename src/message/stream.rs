//! Streams: kinds of mail that do not wait behind each other. Left out: what a stream may do (shares
//! are in `queue::lane`, limits in `queue::pace`).

/// Where mail goes that names no stream, and our own notices.
pub const DEFAULT: &str = "transactional";

/// Password resets and the like: leaves even while sending is suspended, unless the configuration says
/// otherwise.
pub const SECURITY: &str = "security";

/// Newsletters and the like.
pub const BULK: &str = "bulk";

/// The streams that are always there.
pub const BUILT_IN: [&str; 3] = [DEFAULT, BULK, SECURITY];

/// Most streams, the built-in ones included: a stream has a small number in the keys of the due index,
/// and each needs some share of what there is.
pub const STREAMS_MAX: usize = 16;

/// Longest name, in characters.
pub const NAME_CHARS_MAX: usize = 32;

/// The field by which a message asks for a stream. It is ours alone and never sent on.
pub const FIELD: &str = "X-Postrider-Stream";

/// For records that were written before there were streams.
pub fn default_name() -> String {
    DEFAULT.to_owned()
}

/// Letters, digits, hyphens, underscores and dots: a name stands in a header field and in metrics.
pub fn is_name(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= NAME_CHARS_MAX && text.chars().all(legal)
}
