//! What one worker remembers between packets: flows, waiting frames, rates, usage.
//!
//! It owns every fact that packets create. It refuses to know how a packet is decided (that is `pipeline` and `stage`) and
//! what is configured (that is `table`): rows of tables appear here as bare numbers with an epoch beside them.
//!
//! All of it is *state* in the sense of the architecture: owned by one worker, changed through `&mut`, no atomics, no
//! locks, fixed in size from the start. Nothing here allocates after `new`, and nothing reads a clock: time is an
//! argument, as nanoseconds where it is precise and as [`Ticks`] where it is stored in a flow.

pub mod tuple;
pub mod index;
pub mod entry;
pub mod flow;
mod opening;
pub mod dispensable;
pub mod tcp;
pub mod sctp;
pub mod one_way;
pub mod nat;
pub mod ports;
pub mod quota;
pub mod mapping;
pub mod egress;
pub mod external;
pub mod hold;
pub mod fragment;
pub mod identification;
pub mod limit;
pub mod answers;
pub mod sources;
pub mod usage;
pub mod ruling;
pub mod affinity;
pub mod schedule;
pub mod connections;
pub mod worker;

#[cfg(test)]
mod oracle;

pub use egress::Grant;
pub use entry::{Entry, FlowState, Fold, NewFlow, mark};
pub use flow::{Candidate, FlowId, FlowTable, Hit, InsertError, Swept, Victim};
pub use tuple::{Address, DOMAIN_OVERLAY, DOMAIN_WIRE, Tuple};
pub use worker::{Capacity, EgressError, Entropy, IsVoid, Learn, State};

/// Moments as flows store them: the number of the 2^20 ns interval, modulo 2^32 (it wraps after 52 days).
pub type Ticks = u32;

/// Nanoseconds of a tick, as a power of two, so that the conversion is a shift.
pub const TICK_NS_LOG2: u32 = 20;

/// The tick that `now_ns` lies in.
#[inline]
#[must_use]
pub const fn ticks(now_ns: u64) -> Ticks {
    ((now_ns >> TICK_NS_LOG2) & 0xffff_ffff) as u32
}

/// Ticks that span at least `seconds`.
#[must_use]
pub const fn ticks_of_seconds(seconds: u32) -> Ticks {
    let ticks = (seconds as u64 * 1_000_000_000).div_ceil(1 << TICK_NS_LOG2);
    if ticks > TICKS_MAX as u64 { TICKS_MAX } else { (ticks & 0xffff_ffff) as u32 }
}

/// The longest time a flow can be told to wait; beyond half of the wrap, past and future look the same.
pub const TICKS_MAX: Ticks = 1 << 30;

/// Ticks that went by between `then` and `now`, over any wrap; 0 if `then` is not in the past.
///
/// A flow that was touched with a newer clock reading than the sweep's is not billions of ticks old.
#[inline]
#[must_use]
pub const fn ticks_since(then: Ticks, now: Ticks) -> Ticks {
    let elapsed = now.wrapping_sub(then);
    if elapsed > u32::MAX / 2 { 0 } else { elapsed }
}

/// Which of its two ways a packet of a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// As the packet that opened the flow.
    Original = 0,
    /// Back to the one who opened it.
    Reply = 1,
}

impl Direction {
    /// The other way.
    #[inline]
    #[must_use]
    pub const fn reversed(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }

    /// Its place in an array with one element per direction: 0 or 1.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_a_shift_and_timeouts_round_up() {
        assert_eq!(ticks(0), 0);
        assert_eq!(ticks((1 << 20) - 1), 0);
        assert_eq!(ticks(1 << 20), 1);
        assert_eq!(ticks(1 << 52), 0, "wraps after 2^32 ticks");
        for seconds in [1, 10, 30, 120, 240, 7440, 432_000] {
            assert!(u64::from(ticks_of_seconds(seconds)) << TICK_NS_LOG2 >= u64::from(seconds) * 1_000_000_000);
            assert!(u64::from(ticks_of_seconds(seconds) - 1) << TICK_NS_LOG2 < u64::from(seconds) * 1_000_000_000);
        }
        assert_eq!(ticks_of_seconds(u32::MAX), TICKS_MAX);
    }

    #[test]
    fn elapsed_ticks_survive_the_wrap_and_clocks_that_disagree() {
        assert_eq!(ticks_since(5, 9), 4);
        assert_eq!(ticks_since(u32::MAX - 1, 3), 5);
        assert_eq!(ticks_since(9, 5), 0);
        assert_eq!(ticks_since(3, u32::MAX - 1), 0);
        assert_eq!(ticks_since(7, 7), 0);
    }
}
