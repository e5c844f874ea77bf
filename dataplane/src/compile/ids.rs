//! Ids of tunnels and neighbours, given out and taken back.
//!
//! Flows remember these 16-bit ids for as long as they live and read the row at the moment of use, so an id that comes
//! to mean something else sends packets to the wrong place. Two rules keep that from happening: an id is not given out
//! a second time while fewer than [`FRESH_MAX`] were ever given out, and from then on each second use is told to the
//! caller, who bumps `routes_epoch`, which makes every flow ask again.

use std::collections::VecDeque;

/// Ids given out before any is given out again.
pub const FRESH_MAX: u16 = 60_000;
/// Ids there are; `u16::MAX` means none.
const IDS_MAX: u16 = u16::MAX;

/// Which ids are free.
#[derive(Debug, Default)]
pub struct Ids {
    given: u16,
    /// Free again, the one freed first at the front.
    free: VecDeque<u16>,
}

/// An id that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// The id.
    pub id: u16,
    /// Something else had it before: flows must be made to ask again.
    pub again: bool,
}

impl Ids {
    /// A free id; `None` when all are in use.
    pub fn give(&mut self) -> Option<Given> {
        if self.given >= FRESH_MAX
            && let Some(id) = self.free.pop_front()
        {
            return Some(Given { id, again: true });
        }
        let id = Some(self.given).filter(|id| *id < IDS_MAX)?;
        self.given += 1;
        Some(Given { id, again: false })
    }

    /// Takes an id back. It must have been given out and not taken back since.
    pub fn take_back(&mut self, id: u16) {
        debug_assert!(id < self.given, "id {id} was given out");
        self.free.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_used_again_only_late_and_then_says_so() {
        let mut ids = Ids::default();
        for expected in 0..FRESH_MAX {
            assert_eq!(ids.give(), Some(Given { id: expected, again: false }));
            ids.take_back(expected);
        }
        assert_eq!(ids.give(), Some(Given { id: 0, again: true }));
        assert_eq!(ids.give(), Some(Given { id: 1, again: true }), "the one freed first");
    }

    #[test]
    fn ids_run_out_without_harm() {
        let mut ids = Ids::default();
        for expected in 0..IDS_MAX {
            assert_eq!(ids.give(), Some(Given { id: expected, again: false }));
        }
        assert_eq!(ids.give(), None);
        ids.take_back(7);
        assert_eq!(ids.give(), Some(Given { id: 7, again: true }));
    }
}
