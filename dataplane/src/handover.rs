//! Hand-over: packets that arrive at one worker and belong to another.
//!
//! Owns the rings between workers, one for each ordered pair, and the bells by which a sleeping worker hears that
//! something has come. Refuses to know whose a packet is: that is [`crate::stage::owner`].
//!
//! What changes hands is a [`Parcel`]: the frame's token, what parse said of it, and the key it is looked up by, so the
//! receiver neither parses nor counts again. The bytes stay where they are. A worker stages parcels while it works on a
//! batch and publishes once per ring and turn. Nobody ever waits: a full ring is a counted drop.
//!
//! A ring has one producer and one consumer, so it needs no lock and its order is kept: the packets of a flow that arrive
//! at one worker reach their owner in the order they came.

use std::io;
use std::sync::Arc;

use arrayvec::ArrayVec;
use tidegate_io::mem::{Bell, spsc};
use tidegate_io::{Frame, Homing};

use crate::drops::DropReason;
use crate::limits;
use crate::packet::{Key, Packet};
use crate::table::owner::WorkerId;

/// A packet that changes hands. Kind: frame.
#[derive(Debug)]
pub struct Parcel {
    frame: Homing,
    /// What parse said of it.
    pub packet: Packet,
    /// What it is looked up by; [`Key::None`]: it is a fragment whose ports are not known yet.
    pub key: Key,
    /// How often it has changed hands, this time included.
    pub hops: u8,
}

const _: () = assert!(size_of::<Parcel>() <= 128, "two cache lines");

impl Parcel {
    /// Wraps a frame up.
    #[inline]
    pub fn new(frame: Frame, packet: &Packet, key: Key, hops: u8) -> Parcel {
        Parcel { frame: Homing::new(frame), packet: *packet, key, hops }
    }

    /// The frame inside.
    #[inline]
    pub fn frame(&self) -> &Frame {
        self.frame.frame()
    }

    /// The frame, taken out.
    #[inline]
    pub fn into_frame(self) -> Frame {
        self.frame.into_frame()
    }
}

/// The way to one other worker.
#[derive(Debug)]
struct Outbound {
    ring: spsc::Producer<Parcel>,
    /// Something was staged since the last publish.
    staged: bool,
    bell: Arc<Bell>,
}

/// One worker's ends of all rings.
#[derive(Debug, Default)]
pub struct Links {
    /// By number of the worker; none to itself.
    outbound: Box<[Option<Outbound>]>,
    inbound: Box<[spsc::Consumer<Parcel>]>,
    bell: Option<Arc<Bell>>,
    /// Where to look first: nobody is always the last.
    first: usize,
}

/// What one turn takes over at once.
pub type Parcels = ArrayVec<Parcel, { limits::BATCH_PACKETS }>;

/// The links of `workers` workers, in their order, with rings of `capacity` parcels.
///
/// # Errors
/// What the system says about a bell.
pub fn matrix(workers: u16, capacity: usize) -> io::Result<Vec<Links>> {
    if workers <= 1 {
        return Ok(vec![Links::default()]);
    }
    let bells: Vec<Arc<Bell>> = (0..workers).map(|_| Bell::new().map(Arc::new)).collect::<io::Result<_>>()?;
    let mut inbound: Vec<Vec<spsc::Consumer<Parcel>>> = (0..workers).map(|_| Vec::new()).collect();
    let mut outbound: Vec<Vec<Option<Outbound>>> = Vec::new();
    for from in 0..usize::from(workers) {
        let mut ways = Vec::new();
        for (to, bell) in bells.iter().enumerate() {
            let way = (from != to).then(|| spsc::ring(capacity));
            ways.push(way.map(|(ring, end)| {
                inbound[to].push(end);
                Outbound { ring, staged: false, bell: Arc::clone(bell) }
            }));
        }
        outbound.push(ways);
    }
    let links = outbound.into_iter().zip(inbound).zip(bells).map(|((outbound, inbound), bell)| Links {
        outbound: outbound.into(),
        inbound: inbound.into(),
        bell: Some(bell),
        first: 0,
    });
    Ok(links.collect())
}

impl Links {
    /// What this worker writes here, for a test of what lies beside it.
    #[cfg(test)]
    pub(crate) fn written(&self) -> [std::ops::Range<usize>; 2] {
        [crate::worker::lines::of(&*self.outbound), crate::worker::lines::of(&*self.inbound)]
    }

    /// Whether there is no other worker.
    #[inline]
    pub fn is_alone(&self) -> bool {
        self.inbound.is_empty()
    }

    /// Other workers.
    #[inline]
    pub fn others(&self) -> usize {
        self.inbound.len()
    }

    /// Stages a parcel for another worker.
    ///
    /// # Errors
    /// The frame and why: `HandOverLoop` for one that has changed hands too often, `HandOverFull` when the ring has no
    /// room (or there is no such worker).
    #[inline]
    pub fn send(&mut self, to: WorkerId, parcel: Parcel) -> Result<(), (Frame, DropReason)> {
        if parcel.hops > limits::HAND_OVERS_MAX {
            return Err((parcel.into_frame(), DropReason::HandOverLoop));
        }
        let Some(Some(way)) = self.outbound.get_mut(usize::from(to.0)) else {
            return Err((parcel.into_frame(), DropReason::HandOverFull));
        };
        way.staged = true;
        way.ring.stage(parcel).map_err(|parcel| (parcel.into_frame(), DropReason::HandOverFull))
    }

    /// Makes what was staged visible, and wakes those who sleep.
    #[inline]
    pub fn publish(&mut self) {
        for way in self.outbound.iter_mut().flatten() {
            if way.staged {
                way.staged = false;
                way.ring.publish();
                way.bell.ring();
            }
        }
    }

    /// Moves parcels to the end of `into` until it is full or there are none; returns how many. Each call begins at
    /// another worker's ring.
    pub fn take_into(&mut self, into: &mut Parcels) -> usize {
        let before = into.len();
        let (late, early) = self.inbound.split_at_mut(self.first.min(self.inbound.len()));
        for ring in early.iter_mut().chain(late) {
            ring.pop_into(into);
        }
        self.first = if self.first + 1 < self.inbound.len() { self.first + 1 } else { 0 };
        into.len() - before
    }

    /// Whether a parcel waits here.
    pub fn has_mail(&mut self) -> bool {
        self.inbound.iter_mut().any(|ring| !ring.is_empty())
    }

    /// The bell that others ring for this worker; `None` without others.
    pub fn bell(&self) -> Option<&Arc<Bell>> {
        self.bell.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_io::{HugePages, Magazine, Pool};

    fn parcel(magazine: &mut Magazine, byte: u8, hops: u8) -> Parcel {
        let mut frame = magazine.take().unwrap();
        assert!(frame.fill(&[byte; 20]));
        Parcel::new(frame, &Packet::NOTHING, Key::None, hops)
    }

    fn bytes(parcels: &mut Parcels, magazine: &mut Magazine) -> Vec<u8> {
        let byte = |parcel: Parcel| {
            let frame = parcel.into_frame();
            let byte = frame.bytes()[0];
            magazine.give(frame);
            byte
        };
        parcels.drain(..).map(byte).collect()
    }

    #[test]
    fn one_worker_has_nobody_to_hand_anything_to() {
        let mut links = matrix(1, 8).unwrap();
        assert_eq!((links.len(), links[0].is_alone(), links[0].bell().is_none()), (1, true, true));
        let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let (frame, reason) = links[0].send(WorkerId(0), parcel(&mut magazine, 1, 1)).unwrap_err();
        assert_eq!(reason, DropReason::HandOverFull);
        magazine.give(frame);
    }

    #[test]
    fn parcels_reach_whom_they_are_for_in_order_once_they_are_published() {
        let pool = Pool::new(256, 2048, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let mut links = matrix(3, 8).unwrap();
        for (from, byte) in [(0, 1), (2, 2), (0, 3), (2, 4)] {
            links[from].send(WorkerId(1), parcel(&mut magazine, byte, 1)).unwrap();
        }
        links[1].send(WorkerId(2), parcel(&mut magazine, 5, 2)).unwrap();
        let mut parcels = Parcels::new();
        assert!(!links[1].has_mail());
        assert_eq!(links[1].take_into(&mut parcels), 0);
        links.iter_mut().for_each(Links::publish);
        assert!(links[1].has_mail() && links[2].has_mail() && !links[0].has_mail());
        assert_eq!(links[1].take_into(&mut parcels), 4);
        let mut got = bytes(&mut parcels, &mut magazine);
        let place = |byte| got.iter().position(|got| *got == byte).unwrap();
        assert!(place(1) < place(3) && place(2) < place(4), "{got:?}");
        got.sort_unstable();
        assert_eq!(got, [1, 2, 3, 4]);
        assert_eq!(links[2].take_into(&mut parcels), 1);
        assert_eq!(parcels[0].hops, 2);
        assert_eq!(bytes(&mut parcels, &mut magazine), [5]);
    }

    #[test]
    fn a_full_ring_and_a_third_hand_over_give_the_frame_back_with_their_reason() {
        let pool = Pool::new(256, 2048, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let mut links = matrix(2, 4).unwrap();
        for byte in 0..4 {
            links[0].send(WorkerId(1), parcel(&mut magazine, byte, 1)).unwrap();
        }
        for (hops, expected) in [(1, DropReason::HandOverFull), (3, DropReason::HandOverLoop)] {
            let (frame, reason) = links[0].send(WorkerId(1), parcel(&mut magazine, 9, hops)).unwrap_err();
            assert_eq!(reason, expected);
            magazine.give(frame);
        }
        // What nobody takes goes home with the rings.
        drop((links, magazine));
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn no_ring_is_always_the_last() {
        let pool = Pool::new(512, 2048, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let mut links = matrix(3, 64).unwrap();
        let mut from = [0; 2];
        for _ in 0..8 {
            for (sender, byte) in [(0, 0), (1, 1)] {
                while links[sender]
                    .send(WorkerId(2), parcel(&mut magazine, byte, 1))
                    .map_err(|(frame, _)| magazine.give(frame))
                    .is_ok()
                {}
                links[sender].publish();
            }
            let mut parcels = Parcels::new();
            assert_eq!(links[2].take_into(&mut parcels), limits::BATCH_PACKETS);
            bytes(&mut parcels, &mut magazine).into_iter().for_each(|byte| from[usize::from(byte)] += 1);
        }
        assert_eq!(from, [256, 256]);
    }

    #[test]
    fn who_sleeps_is_rung_for_and_only_by_what_is_published() {
        let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let mut links = matrix(2, 8).unwrap();
        let bell = Arc::clone(links[1].bell().unwrap());
        let rung = || tidegate_io::mem::sleep_on(&[bell.descriptor()], std::time::Duration::ZERO).unwrap() == 1;
        bell.lie_down();
        links[0].publish();
        assert!(!rung());
        links[0].send(WorkerId(1), parcel(&mut magazine, 1, 1)).unwrap();
        assert!(!rung());
        links[0].publish();
        assert!(rung());
        bell.get_up();
        assert!(!rung());
    }
}
