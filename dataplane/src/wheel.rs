//! The wheel: keeps one worker turning, and lets it sleep when there is nothing to do.
//!
//! It owns the only clock reading of the packet path, one per turn, and the decision to sleep. In one turn of a thousand
//! that find packets, at random, it has the worker read the clock between its stages. A worker marks itself
//! offline before it sleeps, which counts as having reached any generation, and reads the tables anew on waking before its
//! first packet.
//!
//! Other workers wake it with a bell when they hand packets over ([`tidegate_io::mem::Bell`]).

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrayvec::ArrayVec;
use tidegate_io::mem::{IDLE_BEFORE_SLEEP_NS, now_ns, sleep_on};

use crate::counters::Event;
use crate::limits;
use crate::state::Entropy;
use crate::worker::Worker;

/// What a worker without packets does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Turns on: least latency, most power.
    Poll,
    /// Sleeps on its descriptors after [`IDLE_BEFORE_SLEEP_NS`] without a packet.
    Sleep,
}

/// Turns `worker` until `stop` is set, then gives back what it holds.
pub fn turn_until(worker: &mut Worker, idle: Idle, stop: &AtomicBool) {
    let mut busy_ns = now_ns();
    let mut had_packets = false;
    worker.time_by(now_ns);
    let mut entropy = Entropy::new(busy_ns ^ u64::from(worker.id));
    let mut until_timed = turns_until_timed(&mut entropy);
    while !stop.load(Ordering::Relaxed) {
        let now = now_ns();
        if had_packets {
            worker.busy_ns += now.saturating_sub(busy_ns);
        }
        had_packets = if until_timed == 0 { worker.timed_turn(now) } else { worker.turn(now) } > 0;
        if had_packets {
            busy_ns = now;
            until_timed = until_timed.checked_sub(1).unwrap_or_else(|| turns_until_timed(&mut entropy));
        } else if idle == Idle::Sleep && now.saturating_sub(busy_ns) > IDLE_BEFORE_SLEEP_NS {
            sleep(worker);
        }
    }
    worker.stop();
}

/// Turns with packets before the next one that is measured: from 0 to twice the average, so that no rhythm of the traffic
/// hides from it.
#[cold]
fn turns_until_timed(entropy: &mut Entropy) -> u64 {
    entropy.draw() % (2 * limits::TURNS_PER_TIMED - 1)
}

/// Sleeps until a port has a packet, another worker hands one over, or for [`limits::SLEEP_MAX`].
fn sleep(worker: &mut Worker) {
    let bell = worker.links.bell().map(Arc::clone);
    if let Some(bell) = &bell {
        bell.lie_down();
        // What was handed over before the bell knew of us is not rung for.
        if worker.links.has_mail() {
            return bell.get_up();
        }
    }
    worker.counters.count(Event::Sleeps);
    worker.reader.go_offline();
    let ports = worker.exits.ports.iter().filter_map(|exit| exit.port.descriptor());
    let bells = bell.iter().map(|bell| bell.descriptor());
    let descriptors: ArrayVec<BorrowedFd<'_>, { limits::DEVICES_MAX }> =
        bells.chain(ports).take(limits::DEVICES_MAX).collect();
    // A failed wait is an early wake-up: the next turn finds out what is wrong, and nothing spins on it.
    if sleep_on(&descriptors, limits::SLEEP_MAX).is_err() {
        std::thread::sleep(Duration::from_millis(1));
    }
    if let Some(bell) = &bell {
        bell.get_up();
    }
}
