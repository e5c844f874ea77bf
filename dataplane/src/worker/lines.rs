//! Where what a worker writes lies in memory: no two workers write to one pair of cache lines, so none takes lines from
//! another but those that are handed over.
//!
//! The bench `workers` shows what is left of it in packets per second, beside a floor that shares nothing.

use std::ops::Range;

use tidegate_io::mem::LINE_PAIR_BYTES;

use super::Worker;
use crate::rig;
use crate::rig::fleet::{Fleet, Plan};

/// The bytes of a value, as addresses.
pub(crate) fn of<T: ?Sized>(value: &T) -> Range<usize> {
    let start = std::ptr::from_ref(value).cast::<()>().addr();
    start..start + size_of_val(value)
}

/// What a worker writes while it turns. Tables of flows are not among it: each is a mapping of its own, in whole pages.
fn written(worker: &Worker) -> Vec<(&'static str, Range<usize>)> {
    let [outbound, inbound] = worker.links.written();
    vec![
        ("worker", of(worker)),
        ("slots", of(&*worker.slots)),
        ("parcels", of(&*worker.parcels)),
        ("exits", of(&*worker.exits.ports)),
        ("committed counters", of(&*worker.counters.shared())),
        ("seat", worker.reader.written()),
        ("rings out", outbound),
        ("rings in", inbound),
    ]
}

#[test]
fn no_two_workers_write_to_one_pair_of_lines() {
    let fleet = Fleet::with(rig::tables(), Plan::of(4)).unwrap();
    let all: Vec<_> = fleet
        .workers
        .iter()
        .flat_map(|worker| written(worker).into_iter().map(|(what, bytes)| (worker.id, what, bytes)))
        .collect();
    let pairs = |bytes: &Range<usize>| bytes.start / LINE_PAIR_BYTES..bytes.end.div_ceil(LINE_PAIR_BYTES);
    for (worker, what, bytes) in &all {
        assert!(!bytes.is_empty(), "{what} of worker {worker}");
        // Not by luck of the allocator: whatever lies there begins with a pair.
        assert_eq!(bytes.start % LINE_PAIR_BYTES, 0, "{what} of worker {worker} begins within a pair");
        for (other, beside, others) in all.iter().filter(|(other, ..)| other != worker) {
            let (one, two) = (pairs(bytes), pairs(others));
            let apart = one.end <= two.start || two.end <= one.start;
            assert!(apart, "{what} of worker {worker} at {bytes:x?}, {beside} of worker {other} at {others:x?}");
        }
    }
}
