//! Sets of inode numbers.

use crate::ids::{Nid, to_usize};

/// Inode numbers below a bound, one bit each. The least one is found in as many steps as there are levels, at most six.
pub(super) struct NidSet {
    /// The first level has the members. A bit of each further one says that a word of the level below is not zero; the last
    /// level is one word.
    levels: Vec<Vec<u64>>,
}

impl NidSet {
    /// An empty set for numbers below `bound`.
    pub(super) fn new(bound: u64) -> Self {
        let mut words = bound.div_ceil(64).max(1);
        let mut levels = vec![vec![0; to_usize(words)]];
        while words > 1 {
            words = words.div_ceil(64);
            levels.push(vec![0; to_usize(words)]);
        }
        Self { levels }
    }

    pub(super) fn contains(&self, nid: Nid) -> bool {
        self.levels[0].get(to_usize(nid.0 / 64)).is_some_and(|word| word >> (nid.0 % 64) & 1 != 0)
    }

    /// Adds a number; one that is not below the bound is left out.
    pub(super) fn insert(&mut self, nid: Nid) {
        let mut at = nid.0;
        for level in &mut self.levels {
            let Some(word) = level.get_mut(to_usize(at / 64)) else { return };
            *word |= 1 << (at % 64);
            at /= 64;
        }
    }

    /// Takes the least number out.
    pub(super) fn pop_first(&mut self) -> Option<Nid> {
        let mut at = 0;
        for level in self.levels.iter().rev() {
            let word = level[to_usize(at)];
            if word == 0 {
                return None;
            }
            at = at * 64 + u64::from(word.trailing_zeros());
        }
        let first = Nid(at);
        for level in &mut self.levels {
            let word = &mut level[to_usize(at / 64)];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                break;
            }
            at /= 64;
        }
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_sorted_set(bound in 1..300_000_u64, numbers in prop::collection::vec(any::<u64>(), 0..200)) {
            let (mut set, mut model) = (NidSet::new(bound), BTreeSet::new());
            for number in numbers.into_iter().map(|number| number % bound) {
                prop_assert_eq!(set.contains(Nid(number)), model.contains(&number));
                set.insert(Nid(number));
                model.insert(number);
                if number % 3 == 0 {
                    prop_assert_eq!(set.pop_first().map(|nid| nid.0), model.pop_first());
                }
            }
            while let Some(first) = model.pop_first() {
                prop_assert_eq!(set.pop_first(), Some(Nid(first)));
            }
            prop_assert_eq!(set.pop_first(), None);
        }
    }

    #[test]
    fn numbers_behind_the_bound_are_left_out() {
        let mut set = NidSet::new(64);
        set.insert(Nid(u64::MAX));
        set.insert(Nid(64));
        assert!(!set.contains(Nid(64)) && set.pop_first().is_none());
    }
}
