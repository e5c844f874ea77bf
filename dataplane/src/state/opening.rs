//! Flows that are opening: the handshakes that nobody has finished yet, oldest first.
//!
//! It owns their order and how many there may be. It refuses to know who is to go when there are too many, and when an
//! entry begins or ends.
//!
//! A SYN costs its sender nothing, not even an address of its own, so what a SYN makes must not be able to push out what
//! a whole handshake has made (L-022). Flows that are opening therefore form a class with a share of the table. When the
//! share is used up the oldest of them goes, which is exactly the one whose client has had the most time to answer. A
//! handshake that ends in a reset stays where it is until its time is over.
//!
//! The order is a list through the entries themselves and takes no memory:
//!
//! - While an entry is in the list, its byte counters hold the numbers of its two neighbours.
//! - Its packet counters are full meanwhile. So the next packet of the flow takes the way of an overflow, which is where
//!   somebody looks whether the handshake is over, and packets of established flows need not ask.
//! - Price: the packets of a handshake are counted for the backend, one by one, and not in the entry.

use tidegate_io::mem::Slab;

use super::Address;
use super::entry::Entry;

/// No entry: the end of the list.
const NONE: u32 = u32::MAX;

/// The list. Kind: state.
#[derive(Debug)]
pub(super) struct Opening {
    oldest: u32,
    newest: u32,
    len: u32,
    len_max: u32,
}

impl Opening {
    /// An empty list for at most `len_max` flows, at least one.
    pub(super) fn new(len_max: u32) -> Opening {
        Opening { oldest: NONE, newest: NONE, len: 0, len_max: len_max.max(1) }
    }

    /// Flows in it.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Flows it is meant for.
    pub(super) fn len_max(&self) -> u32 {
        self.len_max
    }

    /// Changes what it is meant for; nothing ends by that.
    pub(super) fn set_len_max(&mut self, len_max: u32) {
        self.len_max = len_max.max(1);
    }

    /// Row of the entry that has been in it for longest.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Puts the entry in `row`, which has counted nothing, at the end.
    pub(super) fn join<A: Address>(&mut self, entries: &mut Slab<Entry<A>>, row: u32) {
        entries.at_mut(row).join([self.newest, NONE]);
        match self.newest {
            NONE => self.oldest = row,
            newest => entries.at_mut(newest).neighbours_mut()[1] = row,
        }
        self.newest = row;
        self.len += 1;
    }

    /// Takes the entry in `row` out, wherever it stands; it counts for itself from now on. Nothing happens if it is not
    /// in the list.
    pub(super) fn leave<A: Address>(&mut self, entries: &mut Slab<Entry<A>>, row: u32) {
        let Some([older, newer]) = entries.at_mut(row).leave() else { return };
        match older {
            NONE => self.oldest = newer,
            older => entries.at_mut(older).neighbours_mut()[1] = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => entries.at_mut(newer).neighbours_mut()[0] = older,
        }
        self.len -= 1;
    }

    /// All rows in it, oldest first; the same backwards, or the list is broken.
    #[cfg(test)]
    pub(super) fn order<A: Address>(&self, entries: &Slab<Entry<A>>) -> Vec<u32> {
        let walk = |from: u32, way: usize| {
            let next = |row: &u32| Some(entries.at(*row).neighbours()[way]).filter(|row| *row != NONE);
            std::iter::successors((from != NONE).then_some(from), next).collect::<Vec<_>>()
        };
        let (forth, back) = (walk(self.oldest, 1), walk(self.newest, 0));
        assert!(forth.iter().eq(back.iter().rev()), "{forth:?} {back:?}");
        assert_eq!(forth.len(), self.len as usize);
        forth
    }
}
