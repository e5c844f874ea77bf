//! How often each rule of a network policy has let something pass or stopped it.
//!
//! Owns a fixed number of counters, found by a number that says which rule (the table makes it). It refuses to know rules.
//! Counted when a flow begins or a packet is stopped, never for packets of flows that go on. There may be more rules than
//! places: then the one that was used least among some gives way, so that what is busy is counted.

use std::io;

use tidegate_io::mem::{HugePages, Slab};
use zerocopy::FromZeros;

/// Places; a power of two.
const PLACES: u32 = 8192;
/// Places that a rule may have.
const PROBED: u32 = 16;

/// What one rule has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
#[repr(C)]
pub struct Ruling {
    /// Which rule; 0: nobody has this place.
    pub key: u64,
    /// Flows that it let begin.
    pub allowed: u64,
    /// Packets that it stopped.
    pub denied: u64,
    /// Flows that began and that it would have stopped, had it not been in audit.
    pub would_deny: u64,
}

impl Ruling {
    fn used(&self) -> u64 {
        self.allowed + self.denied + self.would_deny
    }
}

/// What a rule said once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A flow may begin.
    Allowed,
    /// A packet may not pass.
    Denied,
    /// In audit: a flow that begins would not have.
    WouldDeny,
}

/// What all rules have done. Kind: state.
#[derive(Debug)]
pub struct Rulings {
    places: Slab<Ruling>,
}

impl Rulings {
    /// Nothing yet.
    ///
    /// # Errors
    /// What mmap(2) reports.
    pub fn new() -> io::Result<Rulings> {
        Ok(Rulings { places: Slab::new(PLACES, HugePages::Off)? })
    }

    /// Counts a verdict of the rule `key`.
    pub fn count(&mut self, key: u64, said: Said) {
        let Some(ruling) = self.place(key).and_then(|at| self.places.get_mut(at)) else { return };
        if ruling.key != key {
            *ruling = Ruling { key, ..Ruling::default() };
        }
        *match said {
            Said::Allowed => &mut ruling.allowed,
            Said::Denied => &mut ruling.denied,
            Said::WouldDeny => &mut ruling.would_deny,
        } += 1;
    }

    /// What every rule has done that was used.
    pub fn all(&self) -> impl Iterator<Item = Ruling> {
        (0..PLACES).filter_map(|at| self.places.get(at)).filter(|ruling| ruling.key != 0).copied()
    }

    /// The place of a rule, or the one that it gets.
    fn place(&self, key: u64) -> Option<u32> {
        let first = (key >> 32) as u32;
        let mut least: Option<(u64, u32)> = None;
        for at in (0..PROBED).map(|n| first.wrapping_add(n) & (PLACES - 1)) {
            let ruling = self.places.get(at)?;
            if ruling.key == key {
                return Some(at);
            }
            let used = ruling.used();
            if least.is_none_or(|(other, _)| used < other) {
                least = Some((used, at));
            }
        }
        least.map(|(_, at)| at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn rules_are_counted_apart_and_the_busy_ones_stay() {
        let mut rulings = Rulings::new().unwrap();
        let mut oracle: HashMap<u64, [u64; 3]> = HashMap::new();
        let key = |n: u64| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for n in 0..3000 {
            for (at, said) in [(0, Said::Allowed), (1, Said::Denied), (2, Said::WouldDeny), (0, Said::Allowed)] {
                rulings.count(key(n), said);
                oracle.entry(key(n)).or_default()[at] += 1;
            }
        }
        let counts = |ruling: Ruling| (ruling.key, [ruling.allowed, ruling.denied, ruling.would_deny]);
        assert_eq!(rulings.all().map(counts).collect::<HashMap<_, _>>(), oracle);
        (0..100_000).for_each(|n| rulings.count(key(n + 5000), Said::Denied));
        let kept = rulings.all().filter(|ruling| oracle.contains_key(&ruling.key)).count();
        assert!(kept > 2900 && rulings.all().count() <= 8192, "{kept}");
    }
}
