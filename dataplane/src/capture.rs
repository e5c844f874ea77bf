//! Capture: copies of packets as they came in and as they left, for whoever asks.
//!
//! Owns a worker's end of a capture, the [`Tap`]: what is wanted, how much at most, and where copies go. Refuses to know who
//! asks, and how it is decided what becomes of a packet: the worker watches itself ([`crate::worker`]) and shows each
//! packet with its [`Outcome`].
//!
//! A copy is a piece of memory of its own that moves round two rings: empty to the worker, full to the server. The server
//! allocates them all before the worker hears of the capture, and gets them back when it ends. A worker that finds no
//! empty one leaves the packet out and counts it: it never waits, allocates or frees.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use tidegate_api::capture::{Forms, Tally, Wanted};

use crate::counters::Event;
use crate::drops::DropReason;
use crate::table::{DeviceId, ServiceId};

/// Programs that say which packets are wanted.
pub mod filter;

use filter::{Fault, Program};

/// Captures at once: each costs every worker a copy of each packet.
pub const CAPTURES_MAX: usize = 4;
/// Copies that each worker has for one capture: what a reader may be late by; 4 MiB where packets are kept whole.
pub const COPIES: usize = 1024;
/// Largest copy: no frame is longer.
pub const COPY_BYTES_MAX: usize = 4096;
/// Copies beyond the rate that may come at once, as time.
const BURST_NS: u64 = 50_000_000;

const _: () = assert!(Event::COUNT <= 64, "events that moved are bits of a word");

/// What became of a packet, as far as one worker could see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Outcome {
    /// So many frames left.
    Sent(u32),
    /// It waits for its neighbour.
    Held,
    /// It waits for the first fragment of its datagram.
    Waits,
    /// Another worker goes on with it.
    HandedOver,
    /// It ended here as it should.
    #[default]
    Consumed,
    /// It had waited, and left now.
    Released,
    /// It was dropped.
    Dropped(DropReason),
}

/// What is told of a packet beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Number of the packet at this worker.
    pub number: u64,
    /// When its turn began, monotonic nanoseconds.
    pub at_ns: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// Service that it belongs to; [`ServiceId::NONE`]: none, or not known.
    pub service: ServiceId,
    /// Events that it moved, a bit each by number.
    pub counted: u64,
    /// Generation of the tables that decided.
    pub generation: u64,
}

impl Told {
    const NOTHING: Told =
        Told { number: 0, at_ns: 0, outcome: Outcome::Consumed, service: ServiceId::NONE, counted: 0, generation: 0 };
}

/// One form of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Form<'a> {
    /// Whether it left, or came in.
    pub after: bool,
    /// Device that it left by, or came in by.
    pub device: DeviceId,
    /// The frame.
    pub frame: &'a [u8],
    /// The IP packet in it, without VXLAN; empty: there is none.
    pub inner: &'a [u8],
}

/// A copy of one form.
#[derive(Debug)]
pub struct Copied {
    /// What became of the packet.
    pub told: Told,
    /// Whether it left, or came in.
    pub after: bool,
    /// Device.
    pub device: DeviceId,
    /// Bytes that the frame had.
    pub length: u32,
    /// Those that were kept.
    pub bytes: Vec<u8>,
    /// Forms left out before this one.
    pub left_out: u64,
}

/// The way of copies between one worker and the server.
#[derive(Debug)]
pub struct Rings {
    empty: ArrayQueue<Copied>,
    full: ArrayQueue<Copied>,
}

impl Rings {
    /// Rings with all copies empty, for `snap_bytes` each.
    pub fn new(snap_bytes: usize) -> Arc<Rings> {
        let rings = Rings { empty: ArrayQueue::new(COPIES), full: ArrayQueue::new(COPIES) };
        for _ in 0..COPIES {
            let bytes = Vec::with_capacity(snap_bytes.min(COPY_BYTES_MAX));
            let (told, device) = (Told::NOTHING, DeviceId::NONE);
            rings.give_back(Copied { told, after: false, device, length: 0, bytes, left_out: 0 });
        }
        Arc::new(rings)
    }

    /// The oldest copy that nobody has taken yet.
    pub fn take(&self) -> Option<Copied> {
        self.full.pop()
    }

    /// Lets a copy be used again.
    pub fn give_back(&self, copy: Copied) {
        // There are never more than there is room for.
        let _room = self.empty.push(copy);
    }
}

/// One capture at one worker. Kind: state, made and taken back by the server.
#[derive(Debug)]
pub struct Tap {
    /// Number of the capture.
    pub number: u64,
    filter: Program,
    inner: Program,
    device: Option<DeviceId>,
    only_dropped: bool,
    forms: Forms,
    snap_bytes: usize,
    /// What one form costs of a second.
    cost_ns: u64,
    /// Until when the rate is used up.
    used_ns: u64,
    rings: Arc<Rings>,
    left_out: u64,
    /// What it came to so far.
    pub tally: Tally,
}

impl Tap {
    /// The tap for `wanted`, at the device by that name if one is wanted. Copies go round `rings`.
    ///
    /// # Errors
    /// What is wrong with a filter.
    pub fn new(number: u64, wanted: &Wanted, device: Option<DeviceId>, rings: Arc<Rings>) -> Result<Tap, Fault> {
        Ok(Tap {
            number,
            filter: Program::new(&wanted.filter)?,
            inner: Program::new(&wanted.inner)?,
            device,
            only_dropped: wanted.only_dropped,
            forms: wanted.forms,
            snap_bytes: (wanted.snap_bytes as usize).clamp(1, COPY_BYTES_MAX),
            cost_ns: 1_000_000_000 / u64::from(wanted.rate_per_s.max(1)),
            used_ns: 0,
            rings,
            left_out: 0,
            tally: Tally::default(),
        })
    }

    /// Whether nobody takes copies any more: the server has gone without a word.
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.rings) == 1
    }

    /// Counts a packet, and says whether it is wanted.
    pub fn wants<'a>(&mut self, outcome: Outcome, forms: impl Iterator<Item = Form<'a>> + Clone) -> bool {
        self.tally.seen += 1;
        let wanted = (!self.only_dropped || matches!(outcome, Outcome::Dropped(_)))
            && self.device.is_none_or(|device| forms.clone().any(|form| form.device == device))
            && forms.clone().any(|form| self.passes(&form));
        self.tally.matched += u64::from(wanted);
        wanted
    }

    fn passes(&self, form: &Form<'_>) -> bool {
        let is_inside = || !form.inner.is_empty() && self.inner.passes(form.inner);
        self.filter.passes(form.frame) && (self.inner.is_empty() || is_inside())
    }

    /// Copies one form of a packet that is wanted, if this form is.
    pub fn copy(&mut self, told: &Told, form: &Form<'_>) {
        match (self.forms, form.after) {
            (Forms::Both, _) | (Forms::Before, false) | (Forms::After, true) => {}
            (Forms::Before, true) | (Forms::After, false) => return,
        }
        if self.used_ns > told.at_ns + BURST_NS {
            (self.left_out, self.tally.left_out_rate) = (self.left_out + 1, self.tally.left_out_rate + 1);
            return;
        }
        let Some(mut copy) = self.rings.empty.pop() else { return self.miss(1) };
        self.used_ns = self.used_ns.max(told.at_ns) + self.cost_ns;
        let kept = form.frame.len().min(self.snap_bytes).min(copy.bytes.capacity());
        copy.bytes.clear();
        copy.bytes.extend_from_slice(form.frame.get(..kept).unwrap_or_default());
        (copy.told, copy.after, copy.device) = (*told, form.after, form.device);
        copy.length = u32::try_from(form.frame.len()).unwrap_or(u32::MAX);
        copy.left_out = std::mem::take(&mut self.left_out);
        self.tally.told += 1;
        // As many fit as there are.
        let _room = self.rings.full.push(copy);
    }

    /// Counts forms that could not be copied.
    pub fn miss(&mut self, forms: u64) {
        (self.left_out, self.tally.left_out_full) = (self.left_out + forms, self.tally.left_out_full + forms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DeviceId = DeviceId(0);
    const B: DeviceId = DeviceId(1);

    fn tap(wanted: &Wanted, device: Option<DeviceId>) -> (Tap, Arc<Rings>) {
        let rings = Rings::new(wanted.snap_bytes as usize);
        (Tap::new(1, wanted, device, Arc::clone(&rings)).unwrap(), rings)
    }

    fn everything() -> Wanted {
        serde_json::from_str("{}").unwrap()
    }

    fn told(number: u64, at_ns: u64) -> Told {
        Told { number, at_ns, ..Told::NOTHING }
    }

    fn form(after: bool, device: DeviceId, frame: &[u8]) -> Form<'_> {
        Form { after, device, frame, inner: frame }
    }

    #[test]
    fn a_full_ring_and_the_rate_leave_packets_out_and_count_them() {
        let (mut slow, rings) = tap(&Wanted { rate_per_s: 1_000_000, ..everything() }, None);
        for number in 0..COPIES as u64 + 10 {
            slow.copy(&told(number, 1 << 40), &form(false, A, &[7; 60]));
        }
        assert_eq!((slow.tally.told, slow.tally.left_out_full, slow.tally.left_out_rate), (COPIES as u64, 10, 0));
        let first = rings.take().unwrap();
        assert_eq!((first.told.number, first.left_out, first.bytes.len()), (0, 0, 60));
        rings.give_back(first);
        slow.copy(&told(5000, 1 << 40), &form(true, B, &[8; 5000]));
        let last = std::iter::from_fn(|| rings.take()).last().unwrap();
        assert_eq!((last.told.number, last.left_out, last.length), (5000, 10, 5000));
        assert_eq!(last.bytes.len(), COPY_BYTES_MAX);

        // A hundred a second, from a standing start: a burst, then one every ten milliseconds.
        let (mut bounded, rings) = tap(&Wanted { rate_per_s: 100, ..everything() }, None);
        for at in 0..1000u64 {
            bounded.copy(&told(at, (1 << 40) + at * 1_000_000), &form(false, A, &[7; 60]));
            while let Some(copy) = rings.take() {
                rings.give_back(copy);
            }
        }
        assert!((100..=110).contains(&bounded.tally.told), "{:?}", bounded.tally);
        assert_eq!(bounded.tally.told + bounded.tally.left_out_rate, 1000);
    }

    #[test]
    fn either_form_makes_a_packet_wanted_and_forms_are_chosen() {
        use tidegate_api::capture::Instruction;
        let of = |code, jump_true, jump_false, k| Instruction { code, jump_true, jump_false, k };
        // The first byte is 9.
        let nine = vec![of(0x30, 0, 0, 0), of(0x15, 0, 1, 9), of(0x06, 0, 0, 1), of(0x06, 0, 0, 0)];
        let forms = [form(false, A, &[1, 2]), form(true, B, &[9, 2])];
        let (mut by_after, rings) = tap(&Wanted { filter: nine.clone(), forms: Forms::Before, ..everything() }, None);
        assert!(by_after.wants(Outcome::Sent(1), forms.iter().copied()));
        assert!(!by_after.wants(Outcome::Sent(1), forms[..1].iter().copied()));
        assert_eq!((by_after.tally.seen, by_after.tally.matched), (2, 1));
        forms.iter().for_each(|form| by_after.copy(&told(1, 0), form));
        assert!(!rings.take().unwrap().after);
        assert!(rings.take().is_none());
        let (mut inside, _rings) = tap(&Wanted { inner: nine, only_dropped: true, ..everything() }, Some(B));
        assert!(!inside.wants(Outcome::Sent(1), forms.iter().copied()), "not dropped");
        let dropped = Outcome::Dropped(DropReason::NoBackend);
        assert!(inside.wants(dropped, forms.iter().copied()));
        let (not_ip, elsewhere) = (Form { inner: &[], ..forms[1] }, Form { device: A, ..forms[1] });
        assert!(!inside.wants(dropped, [not_ip].into_iter()) && !inside.wants(dropped, [elsewhere].into_iter()));
    }

    #[test]
    fn whoever_takes_copies_is_missed_when_gone() {
        let (tap, rings) = tap(&everything(), None);
        assert!(!tap.is_abandoned());
        drop(rings);
        assert!(tap.is_abandoned());
    }
}
