//! Health: do the workers turn?
//!
//! Owns the judgement, from the turns that workers count anyway: a packet's way costs nothing more for it. It refuses to
//! know who asks and what follows; every asker has a [`Pulse`] of its own.
//!
//! A worker without packets sleeps for at most [`limits::SLEEP_MAX`](crate::limits::SLEEP_MAX), turns once and commits its
//! counters, and a busy one commits every few dozen turns. So turns that stand still for much longer mean that it hangs,
//! whatever the reason.
//!
//! On a crowded machine the asker is held up as workers are, and would find their turns unmoved since it looked last. What
//! counts is therefore the time that the asker itself was awake: of a long gap between two looks only [`STEP_NS`] count.

use std::sync::Arc;

use crate::counters::{Event, SharedCounters};

/// Nanoseconds of the asker's own time after which a worker that has not turned hangs: 25 times what an idle worker
/// sleeps.
pub const PATIENCE_NS: u64 = 250_000_000;
/// Most nanoseconds that count between two looks. Look at least this often.
pub const STEP_NS: u64 = 50_000_000;

/// The turns of all workers, as one asker has seen them.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    workers: Vec<Beat>,
    looked_ns: Option<u64>,
}

/// One worker.
#[derive(Clone, Debug)]
struct Beat {
    counters: Arc<SharedCounters>,
    turns: u64,
    /// Nanoseconds for which the turns have stood still.
    still_ns: u64,
}

/// How the workers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// All of them turn, or sleep and wake up.
    Turning,
    /// This one does not turn.
    Stuck {
        /// Number of the worker.
        worker: usize,
    },
}

impl Pulse {
    /// Of workers whose counters these are, in the order of their numbers.
    pub fn new(workers: impl IntoIterator<Item = Arc<SharedCounters>>) -> Pulse {
        let beat = |counters: Arc<SharedCounters>| Beat { turns: turns(&counters), counters, still_ns: 0 };
        Pulse { workers: workers.into_iter().map(beat).collect(), looked_ns: None }
    }

    /// How they are at `now_ns`, on any clock that never goes back.
    pub fn feel(&mut self, now_ns: u64) -> Health {
        let before_ns = self.looked_ns.replace(now_ns).unwrap_or(now_ns);
        let passed_ns = now_ns.saturating_sub(before_ns).min(STEP_NS);
        for beat in &mut self.workers {
            let turns = turns(&beat.counters);
            beat.still_ns = if turns == beat.turns { beat.still_ns.saturating_add(passed_ns) } else { 0 };
            beat.turns = turns;
        }
        match self.workers.iter().position(|beat| beat.still_ns >= PATIENCE_NS) {
            Some(worker) => Health::Stuck { worker },
            None => Health::Turning,
        }
    }
}

fn turns(counters: &SharedCounters) -> u64 {
    counters.events(Event::Turns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;

    const MS: u64 = 1_000_000;

    fn turn(counters: &mut Counters) {
        counters.count(Event::Turns);
        counters.commit();
    }

    #[test]
    fn a_worker_that_stands_still_is_found_and_named() {
        let mut workers = [Counters::default(), Counters::default()];
        let mut pulse = Pulse::new(workers.iter().map(Counters::shared));
        let mut now = 5_000 * MS;
        for _ in 0..100 {
            workers.iter_mut().for_each(turn);
            assert_eq!(pulse.feel(now), Health::Turning);
            now += 50 * MS;
        }
        let stopped = now;
        let found = (0..100).find_map(|_| {
            turn(&mut workers[0]);
            let health = pulse.feel(now);
            now += 10 * MS;
            (health != Health::Turning).then_some((health, now - stopped))
        });
        let (health, after) = found.unwrap();
        assert_eq!(health, Health::Stuck { worker: 1 });
        assert!((PATIENCE_NS - STEP_NS..PATIENCE_NS + 50 * MS).contains(&after), "{after}");
        turn(&mut workers[1]);
        assert_eq!(pulse.feel(now), Health::Turning, "it turns again");
    }

    #[test]
    fn who_was_held_up_itself_blames_nobody() {
        let mut worker = Counters::default();
        turn(&mut worker);
        let mut pulse = Pulse::new([worker.shared()]);
        assert_eq!(pulse.feel(0), Health::Turning);
        for look in 1..5 {
            assert_eq!(pulse.feel(look * 60_000 * MS), Health::Turning, "a minute without a look is one step");
        }
        assert_eq!(pulse.feel(300_000 * MS), Health::Stuck { worker: 0 });
        assert_eq!(Pulse::default().feel(0), Health::Turning);
    }
}
