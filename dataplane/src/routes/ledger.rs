//! What should stand in the kernel, what does, and what to do next.
//!
//! Owns the difference of the two, prefix by prefix, so that each step costs what has changed. It knows no netlink: steps are
//! taken by the keeper, which tells how they went.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Nanos;

/// After a refusal the kernel is asked again in so many nanoseconds.
const AGAIN_NS: Nanos = 5_000_000_000;

/// Something to do in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Add this route. `doubted`: it may be there.
    Add {
        /// Its prefix.
        prefix: IpNet,
        /// It may be there: then all is well.
        doubted: bool,
    },
    /// Remove this route.
    Remove(IpNet),
}

/// What is wanted and what is.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    wanted: BTreeSet<IpNet>,
    there: BTreeSet<IpNet>,
    /// They were there, and news about them may have been lost.
    doubted: BTreeSet<IpNet>,
    /// They may differ.
    due: BTreeSet<IpNet>,
    /// The kernel did not take these; when to ask again.
    refused: BTreeMap<IpNet, Nanos>,
}

impl Ledger {
    /// There should be a route, or should not.
    pub fn want(&mut self, prefix: IpNet, wanted: bool) {
        let moved = if wanted { self.wanted.insert(prefix) } else { self.wanted.remove(&prefix) };
        if moved {
            self.refused.remove(&prefix);
            self.due.insert(prefix);
        }
    }

    /// The kernel says that a route is gone. True when we have not taken it away ourselves.
    pub fn lost(&mut self, prefix: IpNet) -> bool {
        let lost = self.there.remove(&prefix) && self.wanted.contains(&prefix);
        if lost {
            self.due.insert(prefix);
        }
        lost
    }

    /// News may have been lost: every route is looked at again.
    pub fn doubt(&mut self) {
        self.due.extend(&self.there);
        self.doubted.extend(&self.there);
    }

    /// The device is gone, and with it all that was there; which is returned.
    pub fn forget(&mut self) -> BTreeSet<IpNet> {
        self.due = self.wanted.clone();
        self.refused.clear();
        self.doubted.clear();
        std::mem::take(&mut self.there)
    }

    /// At most `steps_max` steps towards what is wanted. Each is to be answered by [`Ledger::done`].
    pub fn next(&mut self, steps_max: usize, now_ns: Nanos) -> Vec<Step> {
        let again: Vec<IpNet> =
            self.refused.iter().filter(|(_, again)| **again <= now_ns).map(|(prefix, _)| *prefix).collect();
        for prefix in again {
            self.refused.remove(&prefix);
            self.due.insert(prefix);
        }
        let mut steps = Vec::new();
        while steps.len() < steps_max {
            let Some(prefix) = self.due.pop_first() else { break };
            let doubted = self.doubted.remove(&prefix);
            match (self.wanted.contains(&prefix), self.there.contains(&prefix)) {
                (true, there) if !there || doubted => steps.push(Step::Add { prefix, doubted }),
                (false, true) => steps.push(Step::Remove(prefix)),
                _ => {}
            }
        }
        steps
    }

    /// A step was taken; `done`: it went well.
    pub fn done(&mut self, step: Step, done: bool, now_ns: Nanos) {
        match step {
            Step::Add { prefix, .. } if done => {
                self.there.insert(prefix);
            }
            Step::Add { prefix, .. } => {
                self.there.remove(&prefix);
                self.refused.insert(prefix, now_ns.saturating_add(AGAIN_NS));
            }
            // One that cannot be removed is not there: the device is ours alone.
            Step::Remove(prefix) => {
                self.there.remove(&prefix);
            }
        }
    }

    /// Whether steps are left.
    pub fn is_busy(&self) -> bool {
        !self.due.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(host: u8) -> IpNet {
        IpNet::new([10, 0, 0, host].into(), 32).unwrap()
    }

    #[test]
    fn steps_follow_what_is_wanted() {
        let mut ledger = Ledger::default();
        ledger.want(net(1), true);
        let add = Step::Add { prefix: net(1), doubted: false };
        assert_eq!(ledger.next(9, 0), [add]);
        ledger.done(add, true, 0);
        assert!(ledger.next(9, 0).is_empty());
        assert!(ledger.lost(net(1)), "somebody else took it away");
        assert_eq!(ledger.next(9, 0), [add]);
        ledger.done(add, true, 0);
        ledger.doubt();
        let doubted = Step::Add { prefix: net(1), doubted: true };
        assert_eq!(ledger.next(9, 0), [doubted]);
        ledger.done(doubted, true, 0);
        ledger.want(net(1), false);
        assert_eq!(ledger.next(9, 0), [Step::Remove(net(1))]);
        ledger.done(Step::Remove(net(1)), true, 0);
        assert!(!ledger.lost(net(1)), "that was us");
        assert!(!ledger.is_busy());
    }

    #[test]
    fn a_refusal_is_asked_again_in_time() {
        let mut ledger = Ledger::default();
        ledger.want(net(1), true);
        let steps = ledger.next(9, 0);
        ledger.done(steps[0], false, 0);
        assert!(ledger.next(9, AGAIN_NS - 1).is_empty());
        assert_eq!(ledger.next(9, AGAIN_NS), steps);
        ledger.done(steps[0], false, AGAIN_NS);
        ledger.want(net(1), false);
        assert!(ledger.next(9, 9 * AGAIN_NS).is_empty(), "nobody wants it any more");
    }

    #[derive(Clone, Debug)]
    enum Op {
        Want(u8, bool),
        Take(u8),
        Doubt,
        Forget,
        Step(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u8..8, any::<bool>()).prop_map(|(host, wanted)| Op::Want(host, wanted)),
            1 => (0u8..8).prop_map(Op::Take),
            1 => Just(Op::Doubt),
            1 => Just(Op::Forget),
            3 => (0usize..5).prop_map(Op::Step),
        ]
    }

    /// Takes steps in a kernel that is a set.
    fn step(ledger: &mut Ledger, kernel: &mut BTreeSet<IpNet>, steps_max: usize) {
        for step in ledger.next(steps_max, 0) {
            let done = match step {
                Step::Add { prefix, doubted } => {
                    let added = kernel.insert(prefix);
                    assert!(added || doubted, "what is there is not added again without a doubt");
                    true
                }
                Step::Remove(prefix) => {
                    assert!(kernel.remove(&prefix), "what is not there is not removed");
                    true
                }
            };
            ledger.done(step, done, 0);
        }
    }

    proptest! {
        #[test]
        fn the_kernel_ends_up_with_what_is_wanted(ops in prop::collection::vec(op(), 0..60)) {
            let (mut ledger, mut kernel, mut wanted) = (Ledger::default(), BTreeSet::new(), BTreeSet::new());
            for op in ops {
                match op {
                    Op::Want(host, yes) => {
                        ledger.want(net(host), yes);
                        if yes { wanted.insert(net(host)) } else { wanted.remove(&net(host)) };
                    }
                    Op::Take(host) => {
                        let was_there = kernel.remove(&net(host));
                        prop_assert_eq!(ledger.lost(net(host)), was_there && wanted.contains(&net(host)));
                    }
                    Op::Doubt => ledger.doubt(),
                    Op::Forget => {
                        prop_assert_eq!(&ledger.forget(), &kernel);
                        kernel.clear();
                    }
                    Op::Step(most) => step(&mut ledger, &mut kernel, most),
                }
            }
            step(&mut ledger, &mut kernel, usize::MAX);
            prop_assert_eq!(kernel, wanted);
            prop_assert!(!ledger.is_busy());
        }
    }
}
