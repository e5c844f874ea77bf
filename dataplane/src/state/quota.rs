//! A worker's share of quotas that bound what all workers give out (N-040).
//!
//! Owns which part of a quota this worker may use. A quota is dealt evenly and then lent: whoever uses little gives half of
//! what it has left to one that runs short. Shares are numbers of this worker alone; one gives up first, then the other gets,
//! so that all of them together are never more than the quota. It refuses to know what is held and who asks whom.
//!
//! What was lent belongs to a namespace and a size of its quota: where a policy says another number, everything is dealt anew.

use std::collections::HashMap;

use arrayvec::ArrayVec;

/// Quotas that may be short at once; others are noticed later.
const WANTED_MAX: usize = 8;
/// Quotas of which something was lent.
const LENT_MAX: usize = 1 << 16;

/// One quota: number of the namespace, and how much all workers together may give out to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    /// The namespace.
    pub namespace: u32,
    /// Ports.
    pub most: u32,
}

impl Quota {
    /// What worker `worker` of `workers` may give out before anything is lent.
    #[must_use]
    pub fn dealt(self, worker: u16, workers: u16) -> u32 {
        let workers = u32::from(workers.max(1));
        self.most / workers + u32::from(u32::from(worker) < self.most % workers)
    }
}

/// Shares of one worker. Kind: state.
#[derive(Debug, Default)]
pub struct Quotas {
    /// What was got less what was given.
    lent: HashMap<Quota, i64>,
    wanted: ArrayVec<Quota, WANTED_MAX>,
}

impl Quotas {
    /// What this worker, which was dealt `dealt`, may give out now.
    #[must_use]
    pub fn share(&self, quota: Quota, dealt: u32) -> u32 {
        if self.lent.is_empty() {
            return dealt;
        }
        let share = i64::from(dealt) + self.lent.get(&quota).copied().unwrap_or(0);
        u32::try_from(share.max(0)).unwrap_or(u32::MAX)
    }

    /// Gives up half of what is left of the share when `held` are held, the last one too; how much. Allocates: it is asked for
    /// seldom.
    #[cold]
    pub fn lend(&mut self, quota: Quota, dealt: u32, held: u32) -> u32 {
        let left = self.share(quota, dealt).saturating_sub(held).div_ceil(2);
        if left == 0 || self.lent.len() >= LENT_MAX && !self.lent.contains_key(&quota) {
            return 0;
        }
        *self.lent.entry(quota).or_default() -= i64::from(left);
        left
    }

    /// Takes what another worker has given up.
    #[cold]
    pub fn grant(&mut self, quota: Quota, count: u32) {
        *self.lent.entry(quota).or_default() += i64::from(count);
    }

    /// Notes that a share runs short.
    #[cold]
    pub fn want(&mut self, quota: Quota) {
        if !self.wanted.contains(&quota) {
            let _full = self.wanted.try_push(quota);
        }
    }

    /// Quotas noted since the last time this was asked.
    pub fn take_wanted(&mut self) -> impl Iterator<Item = Quota> {
        std::mem::take(&mut self.wanted).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whoever lends to whom, all together never hold more than the quota, and one alone can come to hold all of it.
        #[test]
        fn shares_are_never_more_than_the_quota(
            most in 0u32..200,
            workers in 1u16..9,
            steps in prop::collection::vec((0u16..8, 0u16..8, 0u32..4, any::<bool>()), 0..200),
        ) {
            let quota = Quota { namespace: 7, most };
            let mut all: Vec<(Quotas, u32)> = (0..workers).map(|_| Default::default()).collect();
            let dealt = |worker: u16| quota.dealt(worker, workers);
            for (from, to, count, takes) in steps {
                let (from, to) = (from % workers, to % workers);
                let share = all[usize::from(to)].0.share(quota, dealt(to));
                let held = &mut all[usize::from(to)].1;
                *held = if takes { (*held + count).min(share) } else { held.saturating_sub(count) };
                if from != to {
                    let (quotas, held) = &mut all[usize::from(from)];
                    let given = quotas.lend(quota, dealt(from), *held);
                    all[usize::from(to)].0.grant(quota, given);
                }
                prop_assert!(all.iter().map(|(_, held)| held).sum::<u32>() <= most);
                let shares = (0..workers).map(|worker| all[usize::from(worker)].0.share(quota, dealt(worker)));
                prop_assert_eq!(shares.sum::<u32>(), most);
            }
            for worker in &mut all {
                worker.1 = 0;
            }
            for _ in 0..16 {
                for from in 1..workers {
                    let given = all[usize::from(from)].0.lend(quota, dealt(from), 0);
                    all[0].0.grant(quota, given);
                }
            }
            prop_assert_eq!(all[0].0.share(quota, dealt(0)), most);
            // Another number is dealt anew.
            let other = Quota { most: most + 1, ..quota };
            prop_assert_eq!(all[0].0.share(other, other.dealt(0, workers)), other.dealt(0, workers));
        }
    }

    #[test]
    fn wants_are_noted_once() {
        let mut quotas = Quotas::default();
        let quota = |namespace| Quota { namespace, most: 5 };
        (0..20).flat_map(|n| [n, n]).for_each(|n| quotas.want(quota(n)));
        assert_eq!(quotas.take_wanted().count(), WANTED_MAX);
        assert_eq!(quotas.take_wanted().count(), 0);
    }
}
