//! Reads when an address is put on the suppression list.

use std::time::Duration;

use super::Bounces;
use super::problem::ProblemKind;
use super::section::Section;
use super::value::{SECOND_UP, ZERO_UP, render_duration};

const DAY: Duration = Duration::from_secs(86_400);
const BOUNCES_MAX: i64 = 1000;
const SPREAD: Duration = Duration::from_secs(7 * 86_400);
/// Several bounces of one address seldom come in less time than this.
const WITHIN_USUAL: Duration = Duration::from_secs(3600);

/// What is asked for must be possible: bounces that count are never as far apart as `within`.
fn default_spread(within: Duration) -> Duration {
    if within > SPREAD { SPREAD } else { Duration::from_secs(within.as_secs() / 2) }
}

pub(super) fn bounces(root: &Section<'_>) -> Bounces {
    let section = root.section("bounces");
    let within = section.duration("within", SECOND_UP, DAY * 30);
    let bounces = Bounces {
        suppress_after: section.count("suppress_after", 1..=BOUNCES_MAX, 5),
        within,
        spread: section.duration("spread", ZERO_UP, default_spread(within)),
        hard_at_once: section.boolean("hard_at_once", false),
        reset_on_inbound: section.boolean("reset_on_inbound", true),
    };
    let several = bounces.suppress_after > 1;
    if several && within < WITHIN_USUAL {
        section.report.warn(format!(
            "bounces.within is {}: hardly any address gets {} bounces in that time",
            render_duration(within),
            bounces.suppress_after
        ));
    }
    if several
        && bounces.spread >= within
        && let Some(item) = section.item("spread").or_else(|| section.item("within"))
    {
        let what = "bounces that count are never further apart than this, so no address would be put on the list";
        item.problem(ProblemKind::BadValue, what, "Let spread be shorter than within.");
    }
    bounces
}
