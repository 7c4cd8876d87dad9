//! What the dispatcher answers to those who ask how it stands. Nothing is changed by asking.

use super::{Dispatcher, destination};
use crate::clock::Millis;
use crate::config::Rate;
use crate::delivery::Destination;
use crate::delivery::groups::Group;
use crate::delivery::standing::{Kind, PLACES_MAX, Place, Places, Question, Standing};
use crate::routing::outbound::{self, Way};

impl Dispatcher {
    pub(super) fn answer(&mut self, Question { message, recipient, servers, answer }: Question) {
        let (config, now) = (&self.parts.config, self.parts.clock.now());
        let way = outbound::choose_for(config, &message, recipient.released.is_some()).way;
        let mut place = destination(config, &way, &recipient);
        let domain = recipient.address.domain();
        if matches!(place, Destination::Domain(_)) && matches!(way, Way::Direct { .. }) && !config.is_own(domain) {
            place = match self.groups.find(domain, now) {
                Some(known) => known,
                None if servers.is_empty() => place,
                None => Destination::Group(Group::new(&servers)),
            };
        }
        let section = match &place {
            Destination::Domain(_) | Destination::Group(_) => {
                config.destinations.section(domain, &servers, self.groups.limits(&place))
            }
            other => section_of(other),
        };
        // Who asked may have gone.
        let _ = answer.send(self.standing(&place, section, now));
    }

    fn standing(&self, place: &Destination, section: String, now: Millis) -> Standing {
        let (limits, throttle) = (self.groups.limits(place), self.throttles.get(place));
        let (running, waiting, opens_at) = self.turns.look(place).unwrap_or_default();
        let rate = |rate: Rate| (rate.count, u64::try_from(rate.per.as_millis()).unwrap_or(u64::MAX));
        Standing {
            destination: match place {
                Destination::Domain(domain) => domain.to_string(),
                Destination::Group(group) => group.name().to_owned(),
                Destination::Host(name) | Destination::Target(name) => name.clone(),
                Destination::Capture => "what is captured".to_owned(),
            },
            section,
            connections: limits.connections,
            window: throttle.map_or(limits.connections, |throttle| throttle.window(limits.connections)),
            until: throttle.map_or(0, |throttle| throttle.until(now)),
            complaint: throttle.map(|throttle| (throttle.why().to_owned(), throttle.at())),
            rate: limits.rate.map(rate),
            opens_at,
            running,
            waiting,
        }
    }

    /// Where there is something to do, or trouble.
    pub(super) fn overview(&self) -> Places {
        let now = self.parts.clock.now();
        let busy = self.turns.busy().map(|(place, running, waiting)| (place, (running as u64).saturating_add(waiting)));
        let quiet = self.throttles.iter().filter(|(place, _)| self.turns.look(place).is_none());
        let mut found: Vec<(bool, u64, &Destination)> = busy
            .chain(quiet.map(|(place, _)| (place, 0)))
            .map(|(place, work)| (self.throttles.get(place).is_none(), work, place))
            .collect();
        found.sort_by(|one, other| (one.0, other.1, one.2).cmp(&(other.0, one.1, other.2)));
        let left_out = found.len().saturating_sub(PLACES_MAX);
        let places = found.into_iter().take(PLACES_MAX).map(|(_, _, place)| Place {
            kind: match place {
                Destination::Domain(_) | Destination::Group(_) => Kind::Servers,
                Destination::Host(_) => Kind::SmartHost,
                Destination::Target(_) => Kind::Target,
                Destination::Capture => Kind::Capture,
            },
            standing: self.standing(place, section_of(place), now),
        });
        Places { places: places.collect(), left_out }
    }
}

/// Where the limits of a destination are configured, if its domain is not asked for.
fn section_of(place: &Destination) -> String {
    match place {
        Destination::Target(name) => format!("targets.{name}"),
        Destination::Host(_) => "destinations.default".to_owned(),
        Destination::Capture => "delivery.default".to_owned(),
        Destination::Domain(_) | Destination::Group(_) => "destinations".to_owned(),
    }
}
