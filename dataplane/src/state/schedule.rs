//! Where the schedulers that take turns have got to.
//!
//! Owns two pointers per Service row: one into its Cluster set and one into its Local set. It refuses to know who moves
//! them and why. A pointer names the endpoint chosen last, not only its place, so that endpoints may come and go around
//! it.

use std::io;

use tidegate_io::mem::{HugePages, Slab};
use zerocopy::FromZeros;

use crate::table::{BackendId, ServiceId};

/// Where one scheduler has got to. All zero: it has not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromZeros)]
#[repr(C)]
pub struct Pointer {
    /// The endpoint chosen last, plus one; 0: none was.
    last: u32,
    /// Its index among the members then.
    at: u32,
    /// What `wrr` calls the current weight: members from this weight on have a turn. 0: it has not begun.
    pub current: u32,
}

impl Pointer {
    /// A pointer at `members[at]`, which was chosen.
    #[must_use]
    pub fn to(members: &[BackendId], at: usize, current: u16) -> Pointer {
        let last = members.get(at).map_or(0, |backend| backend.0.wrapping_add(1));
        Pointer { last, at: u32::try_from(at).unwrap_or(0), current: current.into() }
    }

    /// Index of the member that comes after the one chosen last; 0 at the beginning. When that one has gone, the member
    /// that stands in its place is next. It may be one beyond the last member.
    #[must_use]
    pub fn next(&self, members: &[BackendId]) -> usize {
        let Some(last) = self.last.checked_sub(1).map(BackendId) else { return 0 };
        let at = usize::try_from(self.at).unwrap_or(0);
        if members.get(at) == Some(&last) {
            return at + 1;
        }
        members.iter().position(|member| *member == last).map_or_else(|| at.min(members.len()), |found| found + 1)
    }
}

/// Which set of a Service row a pointer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// All endpoints.
    Cluster,
    /// Those that are local to a node (S-048).
    Local,
}

#[derive(Debug, Clone, Copy, Default, FromZeros)]
#[repr(C)]
struct Row {
    pointers: [Pointer; 2],
}

/// All pointers of one worker, by number of the Service row. Kind: state.
#[derive(Debug)]
pub struct Schedule {
    rows: Slab<Row>,
}

impl Schedule {
    /// Pointers for rows below `services_max`, none of which has begun.
    ///
    /// # Errors
    /// What mmap(2) reports.
    pub fn new(services_max: u32, huge: HugePages) -> io::Result<Schedule> {
        Ok(Schedule { rows: Slab::new(services_max, huge)? })
    }

    /// A pointer; one that has not begun for rows beyond the capacity.
    #[must_use]
    pub fn pointer(&self, service: ServiceId, set: SetKind) -> Pointer {
        self.rows.get(service.0).map_or(Pointer::default(), |row| row.pointers[set as usize])
    }

    /// Moves a pointer. Beyond the capacity nothing moves.
    pub fn advance(&mut self, service: ServiceId, set: SetKind, pointer: Pointer) {
        if let Some(row) = self.rows.get_mut(service.0) {
            row.pointers[set as usize] = pointer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_survives_who_comes_and_goes() {
        let members = |ids: &[u32]| ids.iter().map(|id| BackendId(*id)).collect::<Vec<_>>();
        let all = members(&[10, 20, 30]);
        assert_eq!(Pointer::default().next(&all), 0);
        let pointer = Pointer::to(&all, 1, 0);
        assert_eq!(pointer.next(&all), 2);
        assert_eq!(pointer.next(&members(&[5, 10, 20, 30])), 3, "one came before it");
        assert_eq!(pointer.next(&members(&[20, 30])), 1, "one before it went");
        assert_eq!(pointer.next(&members(&[10, 30])), 1, "it went itself: its successor is next");
        assert_eq!(pointer.next(&members(&[10])), 1);
        assert_eq!(pointer.next(&[]), 0);
        assert_eq!(Pointer::to(&all, 9, 0), Pointer { at: 9, ..Pointer::default() });
    }

    #[test]
    fn sets_have_their_own_pointers_and_strangers_none() {
        let mut schedule = Schedule::new(4, HugePages::Off).unwrap();
        let pointer = Pointer::to(&[BackendId(7)], 0, 3);
        schedule.advance(ServiceId(2), SetKind::Local, pointer);
        assert_eq!(schedule.pointer(ServiceId(2), SetKind::Local), pointer);
        assert_eq!(schedule.pointer(ServiceId(2), SetKind::Cluster), Pointer::default());
        for stranger in [4, u32::MAX] {
            schedule.advance(ServiceId(stranger), SetKind::Cluster, pointer);
            assert_eq!(schedule.pointer(ServiceId(stranger), SetKind::Cluster), Pointer::default());
        }
    }
}
