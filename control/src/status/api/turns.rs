//! Statuses of objects of our own kinds on their way, one at a time for each object and manager.
//!
//! Two writes of one status that are on their way at once arrive in any order, and the older one would stay. Owns which one
//! is on its way, the newest of those that wait for it, and what was written a moment ago: whoever follows the API has not
//! seen that yet, and would have it written again (C-006). Refuses to know how it is written.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use serde_json::Value;

use crate::source::ObjectKind;
use crate::status::own::OwnStatus;

/// What was written so lately is not written again: it will be seen.
const SEEN_AFTER: Duration = Duration::from_secs(5);
/// Objects that are remembered before those of long ago are forgotten.
const REMEMBERED_MIN: usize = 256;

/// Kind, name and manager: what has one status to write.
type Key = (ObjectKind, String, Option<String>);

/// A status, and the term in which it was decided; `None`: it is this gateway's own part.
#[derive(Debug, PartialEq)]
pub(super) struct Turn {
    pub(super) term: Option<u64>,
    pub(super) own: Box<OwnStatus>,
}

impl Turn {
    fn key(&self) -> Key {
        (self.own.kind, self.own.name.clone(), self.own.manager.clone())
    }
}

#[derive(Debug)]
struct Slot {
    /// What is on its way, or was written last.
    term: Option<u64>,
    status: Value,
    /// When it was written; `None`: it is on its way.
    written_at: Option<Instant>,
    waiting: Option<Turn>,
}

/// All that are on their way.
#[derive(Debug, Default)]
pub(super) struct Turns {
    slots: HashMap<Key, Slot>,
    /// Number of slots at which those of long ago are looked for.
    full_at: usize,
}

impl Turns {
    /// What is to be written now of what shall be written: it, or nothing.
    pub(super) fn take(&mut self, turn: Turn, now: Instant) -> Option<Turn> {
        if self.slots.len() >= self.full_at {
            let is_recent = |at: Option<Instant>| at.is_none_or(|at| now.saturating_duration_since(at) < SEEN_AFTER);
            self.slots.retain(|_, slot| is_recent(slot.written_at));
            self.full_at = REMEMBERED_MIN.max(2 * self.slots.len());
        }
        let key = turn.key();
        let Some(slot) = self.slots.get_mut(&key) else {
            self.begin(key, &turn);
            return Some(turn);
        };
        let is_same = slot.term == turn.term && slot.status == turn.own.status;
        match slot.written_at {
            None => {
                slot.waiting = (!is_same).then_some(turn);
                None
            }
            Some(at) if is_same && now.saturating_duration_since(at) < SEEN_AFTER => None,
            Some(_) => {
                self.begin(key, &turn);
                Some(turn)
            }
        }
    }

    /// What was on its way has been answered, well or not; and what is to be written then.
    pub(super) fn finish(&mut self, done: &Turn, is_written: bool, now: Instant) -> Option<Turn> {
        let key = done.key();
        let slot = self.slots.get_mut(&key)?;
        let next = slot.waiting.take();
        match &next {
            Some(next) => self.begin(key, next),
            None if is_written => slot.written_at = Some(now),
            // The next news is told whatever it says.
            None => drop(self.slots.remove(&key)),
        }
        next
    }

    fn begin(&mut self, key: Key, turn: &Turn) {
        let slot = Slot { term: turn.term, status: turn.own.status.clone(), written_at: None, waiting: None };
        self.slots.insert(key, slot);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turn(term: u64, name: &str, status: u64) -> Turn {
        Turn {
            term: Some(term),
            own: Box::new(OwnStatus::new(ObjectKind::EgressPolicy, name, &json!({ "is": status }))),
        }
    }

    #[test]
    fn one_at_a_time_and_the_newest_last() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        assert_eq!(turns.take(turn(1, "out", 1), now), Some(turn(1, "out", 1)));
        assert_eq!(turns.take(turn(1, "out", 2), now), None, "the first is on its way");
        assert_eq!(turns.take(turn(1, "out", 3), now), None);
        assert_eq!(turns.take(turn(1, "other", 1), now), Some(turn(1, "other", 1)), "another object");
        assert_eq!(turns.finish(&turn(1, "out", 1), true, now), Some(turn(1, "out", 3)), "the newest");
        assert_eq!(turns.finish(&turn(1, "out", 3), true, now), None);
        // What waited is taken back by who says again what is on its way.
        assert_eq!(turns.take(turn(1, "out", 4), now), Some(turn(1, "out", 4)));
        assert_eq!(turns.take(turn(1, "out", 5), now), None);
        assert_eq!(turns.take(turn(1, "out", 4), now), None);
        assert_eq!(turns.finish(&turn(1, "out", 4), true, now), None);
    }

    #[test]
    fn what_was_just_written_is_not_written_again() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        let first = turns.take(turn(1, "out", 1), now).unwrap();
        assert_eq!(turns.finish(&first, true, now), None);
        assert_eq!(turns.take(turn(1, "out", 1), now + SEEN_AFTER / 2), None, "it is not seen yet");
        assert_eq!(turns.take(turn(1, "out", 1), now + SEEN_AFTER), Some(turn(1, "out", 1)), "somebody took it away");
        assert_eq!(turns.finish(&turn(1, "out", 1), true, now + SEEN_AFTER), None);
        assert_eq!(turns.take(turn(2, "out", 1), now + SEEN_AFTER), Some(turn(2, "out", 1)), "another term");
        // What could not be written is written when it is told again.
        assert_eq!(turns.finish(&turn(2, "out", 1), false, now + SEEN_AFTER), None);
        assert_eq!(turns.take(turn(2, "out", 1), now + SEEN_AFTER), Some(turn(2, "out", 1)));
    }

    #[test]
    fn what_was_written_long_ago_is_forgotten() {
        let (mut turns, mut now) = (Turns::default(), Instant::now());
        for number in 0..100 * REMEMBERED_MIN {
            let taken = turns.take(turn(1, &number.to_string(), 1), now).unwrap();
            assert_eq!(turns.finish(&taken, true, now), None);
            now += SEEN_AFTER / 16;
        }
        assert!(turns.slots.len() <= REMEMBERED_MIN + 16, "{}", turns.slots.len());
    }
}
