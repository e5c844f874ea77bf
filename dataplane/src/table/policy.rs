//! Network policies: who may reach whom, as flows ask at their first packet.
//!
//! Owns the rules in force, laid out by the crate [`tidegate_policy`], and the epochs by which flows that pods have begun with
//! Services learn that something about their *source* has changed. What changes about a destination moves the epoch of its
//! row among [`super::backend`], which every flow compares anyway; a flow out of the overlay has a second end that rules
//! know, and its entry has no room for another number. So it compares the epoch of routes together with one of these, found
//! by its source's address without looking anything up. Another pod that shares the place costs a second look, no more.
//!
//! It refuses to know pods and their addresses ([`super::pod`]) and packets.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use siphasher::sip::SipHasher13;
use tidegate_policy::{Decided, Direction, Table as Rules};

use super::gatepolicy::Gate;

/// Places of epochs of sources; a power of two.
const SOURCES: usize = 64;

/// All policies. Kind: table.
#[derive(Clone, Debug)]
pub struct PolicyTable {
    /// The rules.
    pub rules: Rules,
    /// What gateway policies say of whoever sends a VIP an echo request.
    pub echo_gate: Option<Arc<Gate>>,
    source_epochs: [u16; SOURCES],
}

impl Default for PolicyTable {
    fn default() -> Self {
        PolicyTable { rules: Rules::default(), echo_gate: None, source_epochs: [0; SOURCES] }
    }
}

impl PolicyTable {
    /// Whether no policy is about anybody: everything is allowed. Read side.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Epoch of a pod as the source of flows to Services, by its address. Read side, fast path of flows out of the overlay.
    #[inline]
    pub fn source_epoch(&self, address: &[u8]) -> u16 {
        self.source_epochs[place(address)]
    }

    /// What a verdict is counted under; `None`: no policy decided. Slow path.
    pub fn key_of(&self, direction: Direction, decided: Decided) -> Option<u64> {
        let (policy, rule) = match decided {
            // That a pod reaches itself is nobody's doing.
            Decided::Default | Decided::Itself(_) => return None,
            Decided::Isolation(policy) => (policy, None),
            Decided::Rule(policy, rule) => (policy, Some(rule)),
        };
        self.rules.policy(policy).map(|name| ruling_key(name, direction, rule))
    }

    /// Moves the epoch of a pod as a source. Build side.
    pub fn touch_source(&mut self, address: &[u8]) {
        let epoch = &mut self.source_epochs[place(address)];
        *epoch = epoch.wrapping_add(1);
    }
}

/// What verdicts of a rule are counted under, wherever: a number made of the policy's name, the direction and the rule's
/// number; without one, of the isolation that no rule lifts.
pub fn ruling_key(policy: &str, direction: Direction, rule: Option<u16>) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x7275_6c69, 0x6e67_7321);
    (policy, direction as u8, rule.map_or(0, |rule| u32::from(rule) + 1)).hash(&mut hasher);
    hasher.finish().max(1)
}

/// The same for rule `rule` of a gateway policy.
pub fn gate_ruling_key(policy: &str, rule: u16) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x7275_6c69, 0x6e67_7321);
    ("gateway", policy, rule).hash(&mut hasher);
    hasher.finish().max(1)
}

/// Where the epoch of an address stands: by the part that differs among pods of a node, the same in either form of an IPv4
/// address.
#[inline]
fn place(address: &[u8]) -> usize {
    usize::from(address.last().copied().unwrap_or(0)) & (SOURCES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::mapped;

    #[test]
    fn a_source_moves_its_own_epoch_in_either_form() {
        let mut table = PolicyTable::default();
        assert!(table.is_empty());
        table.touch_source(&mapped(&[10, 244, 1, 5]));
        assert_eq!(table.source_epoch(&[10, 244, 1, 5]), 1);
        assert_eq!((table.source_epoch(&[10, 244, 1, 6]), table.source_epoch(&[])), (0, 0));
        table.touch_source(&[0x20; 16]);
        assert_eq!(table.source_epoch(&[0x20; 16]), 1);
    }
}
