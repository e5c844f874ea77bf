//! The rules that apply to one subject in one direction, laid out for looking up.
//!
//! A rule matches a peer by its identity (a set holds it), by its address (a prefix holds it), or because it is for
//! everybody. These are looked up one by one, and the earliest rule of each tier counts, so that nobody has to know which
//! pairs of identity and address there are. By address: one [`Steps`] per family leads to the list of rules that match.
//! By identity: the few sets of most programs are asked one after the other, at most [`SETS_ASKED_MAX`]; if there are
//! more, the smaller ones are merged into one map from identity to list. A set that is asked can change without any
//! program being made anew, and the largest sets, which change most, are those that are asked.
//!
//! Equal sets of rules share one list. What grows faster than the rules do is bounded: a program that would take more than
//! [`WORK_MAX`] steps to lay out is kept as a list of policies, correct but slow, and counted. Kind: table.

use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::resource::Action;

use crate::flat::Flat;
use crate::link::{Linked, Target};
use crate::ports::{First, Lists, NO_RULE, earlier};
use crate::query::{Decided, Direction, PolicyId, Verdict};
use crate::steps::Steps;
use crate::walk::{self, Membership};

/// Policies laid out.
mod layout;

/// Sets that a program asks one after the other.
pub const SETS_ASKED_MAX: usize = 4;
/// Entries of lists that are made while a program is laid out. Ten thousand rules of usual policies take some ten
/// thousand.
pub const WORK_MAX: usize = 4_000_000;

/// What applies to some subjects in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    direction: Direction,
    form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "nearly all are the large one, and each is shared by itself")]
enum Form {
    Laid(Laid),
    /// In the order of evaluation.
    Walked(Vec<Arc<Linked>>),
}

/// A program that is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Laid {
    /// The policy that isolates the subjects, the first by name.
    isolated_by: Option<PolicyId>,
    /// In the order of evaluation: what to do, and whose rule it is.
    rules: Box<[(Action, PolicyId, u16)]>,
    lists: Lists,
    /// Rules for everybody.
    everybody: u32,
    /// Set and list, the largest set first.
    asked: Box<[(u32, u32)]>,
    /// Lists of identities in sets that are not asked.
    merged: Flat<u32>,
    v4: Steps<u32, u32>,
    v6: Steps<u128, u32>,
}

impl Program {
    /// What the policies that concern a direction come to, which are in the order of evaluation. `members` gives the
    /// identities of a set. Also the sets that went into the program, which must be made anew when they change.
    pub(crate) fn new<'a>(
        direction: Direction,
        policies: &[Arc<Linked>],
        members: impl Fn(u32) -> &'a [u32],
    ) -> (Self, Vec<u32>) {
        match layout::lay_out(direction, policies, members) {
            Some((laid, merged)) => (Program { direction, form: Form::Laid(laid) }, merged),
            None => (Program { direction, form: Form::Walked(policies.to_vec()) }, Vec::new()),
        }
    }

    /// What the program says of a peer and a target.
    pub(crate) fn decide(&self, sets: &impl Membership, peer: (u32, IpAddr), target: Target<'_>) -> Verdict {
        match &self.form {
            Form::Laid(laid) => laid.resolve(laid.find(sets, peer, target)),
            Form::Walked(policies) => walk::decide(policies, self.direction, sets, peer, target),
        }
    }

    /// The rule of the admin tier that a peer and a target are passed on by, if the first one there that matches does that.
    pub(crate) fn passes(&self, sets: &impl Membership, peer: (u32, IpAddr), target: Target<'_>) -> Option<Decided> {
        match &self.form {
            Form::Laid(laid) => {
                let [admin, ..] = laid.find(sets, peer, target);
                let (action, policy, number) = laid.rules.get(admin as usize)?;
                (*action == Action::Pass).then_some(Decided::Rule(*policy, *number))
            }
            Form::Walked(policies) => walk::passes(policies, self.direction, sets, peer, target),
        }
    }

    /// Whether it was too large to be laid out.
    pub fn is_walked(&self) -> bool {
        matches!(self.form, Form::Walked(_))
    }

    /// Memory it takes, without policies it only refers to.
    pub fn bytes(&self) -> usize {
        let Form::Laid(laid) = &self.form else { return size_of::<Self>() };
        let rules = std::mem::size_of_val(&*laid.rules) + std::mem::size_of_val(&*laid.asked);
        size_of::<Self>() + laid.lists.bytes() + rules + laid.merged.bytes() + laid.v4.bytes() + laid.v6.bytes()
    }
}

impl Laid {
    /// The first rules that match, by tier.
    #[inline]
    fn find(&self, sets: &impl Membership, (identity, address): (u32, IpAddr), target: Target<'_>) -> First {
        let mut first = self.lists.at(self.everybody, target);
        let by_address = match address {
            IpAddr::V4(v4) => self.v4.at(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.at(v6.to_bits()),
        };
        first = earlier(first, self.lists.at(by_address, target));
        if identity != 0 {
            for (set, list) in &self.asked {
                if sets.holds(*set, identity) {
                    first = earlier(first, self.lists.at(*list, target));
                }
            }
            if let Some(list) = self.merged.get(identity) {
                first = earlier(first, self.lists.at(list, target));
            }
        }
        first
    }

    /// What the tiers say, in their order (P-100 … P-104).
    #[inline]
    fn resolve(&self, first: First) -> Verdict {
        let [admin, namespace, baseline] = first;
        if let Some(verdict) = self.says(admin) {
            return verdict;
        }
        if let Some(policy) = self.isolated_by {
            let isolated = Verdict { allow: false, decided_by: Decided::Isolation(policy) };
            return self.says(namespace).unwrap_or(isolated);
        }
        self.says(baseline).unwrap_or(Verdict::DEFAULT)
    }

    /// What a rule says finally.
    #[inline]
    fn says(&self, rule: u32) -> Option<Verdict> {
        if rule == NO_RULE {
            return None;
        }
        let (action, policy, number) = self.rules.get(rule as usize)?;
        let allow = match action {
            Action::Accept => true,
            Action::Deny => false,
            Action::Pass => return None,
        };
        Some(Verdict { allow, decided_by: Decided::Rule(*policy, *number) })
    }
}
