//! Parcels: what one worker hands to another, as the hand-over benches send it.

use std::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use tidegate_io::mem::spsc::{Consumer, Producer};

/// Parcels that a worker publishes at once: a batch.
pub const BATCH: usize = 64;
/// Parcels a ring holds.
pub const RING: usize = 1024;
/// Parcels in use at once: most of a ring.
const STOCK: usize = 512;

/// Two cache lines, as much as a frame's token and what its first worker learned of the packet may be.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Parcel(pub [u64; 16]);

const _: () = assert!(size_of::<Parcel>() >= size_of::<tidegate_dataplane::handover::Parcel>());

/// A batch that parcels are taken into.
pub type Taken = ArrayVec<Parcel, BATCH>;

/// An empty batch.
pub fn batch() -> Taken {
    ArrayVec::new()
}

/// Parcels to send.
pub fn stock() -> Vec<Parcel> {
    (0..STOCK as u64).map(|n| Parcel([n; 16])).collect()
}

/// Sends a batch of what is in `stock`, as far as there is room.
pub fn send(ring: &mut Producer<Parcel>, stock: &mut Vec<Parcel>) {
    for _ in 0..BATCH {
        let Some(parcel) = stock.pop() else { break };
        if let Err(parcel) = ring.stage(parcel) {
            stock.push(parcel);
            break;
        }
    }
    ring.publish();
}

/// Sends back what arrives until `stop` is set.
pub fn echo(mut from: Consumer<Parcel>, mut to: Producer<Parcel>, stop: &AtomicBool) {
    let (mut taken, mut stock) = (batch(), Vec::with_capacity(STOCK));
    while !stop.load(Ordering::Relaxed) {
        from.pop_into(&mut taken);
        stock.extend(taken.drain(..));
        if stock.is_empty() {
            std::thread::yield_now();
            continue;
        }
        send(&mut to, &mut stock);
    }
}
