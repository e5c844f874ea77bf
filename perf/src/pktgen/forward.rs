//! The plainest forwarder there can be on AF_XDP: what comes in by one device leaves by another, its link-layer addresses
//! exchanged. Nothing is parsed, nothing decided.
//!
//! What it passes is the ceiling of this kind of I/O on a machine, which figures of a gateway are to be compared with.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use tidegate_io::mem::{IDLE_BEFORE_SLEEP_NS, now_ns, sleep_on};
use tidegate_io::{Batch, Magazine, Port};

use crate::pktgen::layout;
use crate::pktgen::stateful;

/// Longest sleep: how soon a flag is seen.
const SLEEP: Duration = Duration::from_millis(20);

/// Packets that passed, there and back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Passed {
    /// From the first device to the second.
    pub there: u64,
    /// From the second to the first.
    pub back: u64,
}

/// Forwards between two ports until `stop`.
///
/// # Errors
/// When the kernel does not let it sleep.
pub fn forward<P: Port>(ports: &mut [(P, Magazine); 2], stop: &AtomicBool) -> Result<Passed> {
    let mut passed = Passed::default();
    let mut batches = [Batch::new(), Batch::new()];
    let mut busy_ns = now_ns();
    while !stop.load(Ordering::Relaxed) {
        let [near, far] = ports;
        let [there, back] = &mut batches;
        let (one, other) = (pass(near, far, there), pass(far, near, back));
        passed.there += one;
        passed.back += other;
        for (port, magazine) in ports.iter_mut() {
            port.kick();
            port.recycle(magazine);
        }
        let now = now_ns();
        if one + other > 0 {
            busy_ns = now;
        } else if now.saturating_sub(busy_ns) > IDLE_BEFORE_SLEEP_NS {
            let descriptors: Vec<_> = ports.iter().filter_map(|(port, _)| port.descriptor()).collect();
            sleep_on(&descriptors, SLEEP)?;
        }
    }
    let [near, far] = ports;
    let [mut there, mut back] = batches;
    there.drain(..).chain(back.drain(..)).for_each(|frame| near.1.give(frame));
    far.1.flush();
    Ok(passed)
}

/// One direction's share of a turn.
fn pass<P: Port>(from: &mut (P, Magazine), to: &mut (P, Magazine), batch: &mut Batch) -> u64 {
    let before = batch.len();
    from.0.rx(batch);
    for frame in batch.iter_mut().skip(before) {
        layout::turn_link_round(frame.bytes_mut());
    }
    to.0.tx(batch) as u64
}

/// What a port that answers has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Answered {
    /// SYNs answered.
    pub handshakes: u64,
    /// Acknowledgements of clients.
    pub completed: u64,
}

/// Answers SYNs at a port until `stop`, for clients elsewhere.
///
/// # Errors
/// When the kernel does not let it sleep.
pub fn answer<P: Port>(port: &mut P, magazine: &mut Magazine, stop: &AtomicBool) -> Result<Answered> {
    let mut told = Answered::default();
    let mut answers = Batch::new();
    while !stop.load(Ordering::Relaxed) {
        let (answered, completed) = stateful::answer(port, magazine, &mut answers);
        told.handshakes += answered;
        told.completed += completed;
        if answered + completed == 0 {
            let descriptors: Vec<_> = port.descriptor().into_iter().collect();
            sleep_on(&descriptors, SLEEP)?;
        }
    }
    answers.drain(..).for_each(|frame| magazine.give(frame));
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_io::memory;
    use tidegate_io::{HugePages, Pool};

    #[test]
    fn packets_pass_both_ways_with_their_link_addresses_exchanged() {
        let pool = Pool::new(256, 2048, HugePages::Off).unwrap();
        let pair = || memory::pair(&pool, memory::Config { ring_entries: 64, ..memory::Config::default() });
        let ((near, mut outside_near), (far, mut outside_far)) = (pair(), pair());
        let mut ports = [(near, pool.magazine()), (far, pool.magazine())];
        assert!(outside_near.inject(b"to....from..there") && outside_far.inject(b"TO....FROM..back!"));
        let stop = AtomicBool::new(false);
        let passed = std::thread::scope(|scope| {
            let running = scope.spawn(|| forward(&mut ports, &stop));
            std::thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
            running.join().unwrap().unwrap()
        });
        assert_eq!(passed, Passed { there: 1, back: 1 });
        assert_eq!(outside_far.take_sent().as_deref(), Some(&b"from..to....there"[..]));
        assert_eq!(outside_near.take_sent().as_deref(), Some(&b"FROM..TO....back!"[..]));
    }
}
