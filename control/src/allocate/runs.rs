//! A set of addresses, kept as runs without gaps.
//!
//! Owns the one question of the allocator that would otherwise take a walk over addresses: where the occupied run around
//! an address ends. A pool that fills up from its start is one run, however many Services have addresses of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::addresspool::{after, before};

/// A set of addresses of both families.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// First address of each run → its last; between two runs of a family there is at least one address.
    last_of: BTreeMap<IpAddr, IpAddr>,
}

impl Runs {
    /// The last address of the run that holds `address`; absent when the set does not have it.
    pub(super) fn end_of(&self, address: IpAddr) -> Option<IpAddr> {
        self.run(address).map(|(_, last)| last)
    }

    /// Adds an address; one that is there stays.
    pub(super) fn insert(&mut self, address: IpAddr) {
        if self.run(address).is_some() {
            return;
        }
        let mut run = (address, address);
        if let Some((first, _)) = before(address).and_then(|before| self.run(before)) {
            run.0 = first;
        }
        if let Some((first, last)) = after(address).and_then(|after| self.run(after)) {
            self.last_of.remove(&first);
            run.1 = last;
        }
        self.last_of.insert(run.0, run.1);
    }

    /// Removes an address if it is there.
    pub(super) fn remove(&mut self, address: IpAddr) {
        let Some((first, last)) = self.run(address) else { return };
        self.last_of.remove(&first);
        if let (true, Some(before)) = (first < address, before(address)) {
            self.last_of.insert(first, before);
        }
        if let (true, Some(after)) = (address < last, after(address)) {
            self.last_of.insert(after, last);
        }
    }

    fn run(&self, address: IpAddr) -> Option<(IpAddr, IpAddr)> {
        let (first, last) = self.last_of.range(..=address).next_back()?;
        (address <= *last).then_some((*first, *last))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ip((v4, number): (bool, u8)) -> IpAddr {
        match v4 {
            true => IpAddr::from([255, 255, 255, number]),
            false => IpAddr::from([0, 0, 0, 0, 0, 0, 0, u16::from(number)]),
        }
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_its_addresses(steps in proptest::collection::vec((any::<bool>(), (any::<bool>(), 200u8..=255)), 0..200)) {
            let (mut runs, mut oracle) = (Runs::default(), BTreeSet::new());
            for (insert, at) in steps {
                match insert {
                    true => { runs.insert(ip(at)); oracle.insert(ip(at)); }
                    false => { runs.remove(ip(at)); oracle.remove(&ip(at)); }
                }
                for v4 in [false, true] {
                    for number in 190u8..=255 {
                        let start = ip((v4, number));
                        let mut end = oracle.contains(&start).then_some(start);
                        while let Some(next) = end.and_then(after).filter(|next| oracle.contains(next)) {
                            end = Some(next);
                        }
                        prop_assert_eq!(runs.end_of(start), end);
                    }
                }
                // No run touches its neighbour.
                prop_assert!(runs.last_of.values().all(|last| after(*last).is_none_or(|next| !runs.last_of.contains_key(&next))));
            }
        }
    }
}
