//! Shares of something that there is so much of and no more: claims, attempts at once. Pure.
//!
//! A part is reserved, each lane its own by weight; what is not reserved goes to whoever comes. So a
//! lane gets its reserve at once, whatever the others hold, and one that is alone may have all but the
//! reserves of the others.

/// What each lane holds, and how much more it may have.
#[derive(Clone, Debug)]
pub struct Shares {
    total: usize,
    reserved: Vec<usize>,
    held: Vec<usize>,
    /// Sum over all lanes of what they hold or have reserved, whichever is more; never above `total`.
    taken: usize,
}

impl Shares {
    /// `weights` by lane; `reserve` of `total` is reserved.
    pub fn new(total: usize, reserve: usize, weights: &[u32]) -> Shares {
        let sum = weights.iter().map(|weight| *weight as usize).sum::<usize>().max(1);
        let reserved: Vec<usize> = weights.iter().map(|weight| reserve.min(total) * *weight as usize / sum).collect();
        Shares { total, taken: reserved.iter().sum(), held: vec![0; reserved.len()], reserved }
    }

    /// Another total, another reserve, more lanes; who holds something goes on holding it.
    pub fn renew(&mut self, total: usize, reserve: usize, weights: &[u32]) {
        let held = std::mem::take(&mut self.held);
        *self = Shares::new(total, reserve, weights);
        self.held.iter_mut().zip(held).for_each(|(new, held)| *new = held);
        self.taken = self.held.iter().zip(&self.reserved).map(|(held, reserved)| *held.max(reserved)).sum();
    }

    /// How many more this lane may have.
    pub fn room(&self, lane: usize) -> usize {
        let (Some(held), Some(reserved)) = (self.held.get(lane), self.reserved.get(lane)) else { return 0 };
        self.total.saturating_sub(self.taken) + reserved.saturating_sub(*held)
    }

    pub fn held(&self, lane: usize) -> usize {
        self.held.get(lane).copied().unwrap_or(0)
    }

    /// False, and nothing is taken, if there is no room.
    pub fn take(&mut self, lane: usize) -> bool {
        if self.room(lane) == 0 {
            return false;
        }
        if let (Some(held), Some(reserved)) = (self.held.get_mut(lane), self.reserved.get(lane)) {
            if *held >= *reserved {
                self.taken += 1;
            }
            *held += 1;
        }
        true
    }

    pub fn give(&mut self, lane: usize) {
        if let (Some(held), Some(reserved)) = (self.held.get_mut(lane), self.reserved.get(lane))
            && *held > 0
        {
            *held -= 1;
            if *held >= *reserved {
                self.taken -= 1;
            }
        }
    }
}

/// Whether a lane can have a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It has nothing to do.
    None,
    /// It has, and no room for it now.
    Blocked,
    Ready,
}

/// Turns by weight: smooth weighted round robin, so that a light lane's turn comes between a heavy
/// one's and not after all of them.
#[derive(Clone, Debug)]
pub struct Turns {
    weights: Vec<u32>,
    credits: Vec<i64>,
}

impl Turns {
    pub fn new(weights: Vec<u32>) -> Turns {
        Turns { credits: vec![0; weights.len()], weights }
    }

    /// Whose turn it is among those that are ready. A lane that is not saves up nothing more; one that
    /// has nothing to do keeps nothing.
    pub fn next(&mut self, wish: impl Fn(usize) -> Wish) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;
        for (lane, (weight, credit)) in self.weights.iter().zip(&mut self.credits).enumerate() {
            match wish(lane) {
                Wish::Ready if *weight > 0 => {}
                Wish::Blocked => continue,
                _ => {
                    *credit = 0;
                    continue;
                }
            }
            total += i64::from(*weight);
            *credit += i64::from(*weight);
            if best.is_none_or(|(_, most)| *credit > most) {
                best = Some((lane, *credit));
            }
        }
        let (lane, _) = best?;
        if let Some(credit) = self.credits.get_mut(lane) {
            *credit -= total;
        }
        Some(lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_alone_leaves_the_reserves_of_the_others() {
        let mut shares = Shares::new(100, 50, &[3, 1, 1]);
        let count = (0..1000).filter(|_| shares.take(0)).count();
        assert_eq!(count, 80);
        assert_eq!((shares.room(1), shares.room(2)), (10, 10));
        assert_eq!((0..1000).filter(|_| shares.take(1)).count(), 10);
        shares.give(0);
        assert!(shares.take(1) && !shares.take(1) && shares.take(2));
    }

    #[test]
    fn turns_follow_the_weights() {
        let mut turns = Turns::new(vec![3, 0, 1]);
        let only = |one: usize| move |lane: usize| if lane == one { Wish::Ready } else { Wish::None };
        let taken: Vec<Option<usize>> = (0..8).map(|_| turns.next(|_| Wish::Ready)).collect();
        assert_eq!(taken, [0, 0, 2, 0, 0, 0, 2, 0].map(Some));
        assert_eq!(turns.next(only(1)), None);
        // Whoever had nothing to do has saved up nothing.
        for _ in 0..100 {
            assert_eq!(turns.next(only(2)), Some(2));
        }
        // When all are blocked in between, the order stays.
        let next = (0..8).filter_map(|_| {
            assert_eq!(turns.next(|_| Wish::Blocked), None);
            turns.next(|_| Wish::Ready)
        });
        let next: Vec<usize> = next.collect();
        assert_eq!(next.iter().filter(|lane| **lane == 2).count(), 2);
    }

    proptest! {
        /// Whatever is taken and given: never more than there is, and each gets its reserve.
        #[test]
        fn never_too_many_and_the_reserve_is_there(
            total in 0usize..60, reserve in 0usize..60, weights in prop::collection::vec(0u32..5, 1..6),
            steps in prop::collection::vec((0usize..6, any::<bool>()), 0..300),
        ) {
            let mut shares = Shares::new(total, reserve, &weights);
            for (lane, take) in steps {
                if take {
                    let room = shares.room(lane);
                    prop_assert_eq!(shares.take(lane), room > 0);
                } else {
                    shares.give(lane);
                }
                prop_assert!(shares.held.iter().sum::<usize>() <= total);
                for other in 0..weights.len() {
                    prop_assert!(shares.held(other) + shares.room(other) >= shares.reserved[other]);
                }
            }
        }
    }
}
