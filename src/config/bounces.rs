//! Reads when an address is put on the suppression list.

use std::time::Duration;

use super::Bounces;
use super::problem::ProblemKind;
use super::section::Section;

const DAY: Duration = Duration::from_secs(86_400);
const BOUNCES_MAX: i64 = 1000;
const WITHIN_MAX: Duration = Duration::from_secs(400 * 86_400);

pub(super) fn bounces(root: &Section<'_>) -> Bounces {
    let section = root.section("bounces");
    let bounces = Bounces {
        suppress_after: section.count("suppress_after", 1..=BOUNCES_MAX, 5),
        within: section.duration("within", DAY / 24..=WITHIN_MAX, DAY * 30),
        spread: section.duration("spread", Duration::ZERO..=WITHIN_MAX, DAY * 7),
        hard_at_once: section.boolean("hard_at_once", false),
        reset_on_inbound: section.boolean("reset_on_inbound", true),
    };
    if bounces.spread >= bounces.within
        && let Some(item) = section.item("spread").or_else(|| section.item("within"))
    {
        let what = "bounces that count are never further apart than this, so no address would be put on the list";
        item.problem(ProblemKind::BadValue, what, "Let spread be shorter than within.");
    }
    bounces
}
