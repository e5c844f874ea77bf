//! # Verdict: send every frame of a batch where its verdict says
//!
//! reads   verdicts     writes  transmit queues, the hold, magazines; every frame ends up in exactly one of them
//! drops   `TxRingFull`, `NoEgressPort`, `NeighbourUnresolved`, `TooBig`; counts every other reason
//! cost    one table read by index; one ring write per frame, in batches
//! spec    design 9: a packet leaves with exactly one verdict     tests   `dataplane/tests/books.rs`

use tidegate_io::{Batch, Frame, GroupId, Magazine, Port};

use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::limits;
use crate::pipeline::Verdict;
use crate::state::State;
use crate::table::DeviceId;

/// A port with what waits to be sent on it in this turn. Written with every packet, so no other worker's lie in its lines.
#[repr(align(128))]
pub struct Exit {
    /// The port.
    pub port: Box<dyn Port>,
    /// Frames accepted for it, not yet in its ring.
    pub pending: Batch,
    /// Which of the worker's magazines its frames come from.
    pub magazine: usize,
}

/// The exits of a worker, found by device.
pub struct Exits {
    /// All ports of the worker.
    pub ports: Vec<Exit>,
    /// Free frames, one magazine per mode group.
    pub magazines: Vec<Magazine>,
    by_device: [u8; limits::DEVICES_MAX],
}

const NO_PORT: u8 = u8::MAX;

impl Exits {
    /// Exits over `ports`, each with the device it belongs to. With several ports of a device the first one sends.
    ///
    /// # Errors
    /// When there are more ports or devices than [`limits::DEVICES_MAX`], or a port without a magazine of its group.
    pub fn new(ports: Vec<(Box<dyn Port>, DeviceId)>, magazines: Vec<Magazine>) -> Result<Exits, String> {
        let mut by_device = [NO_PORT; limits::DEVICES_MAX];
        let mut exits = Vec::with_capacity(ports.len());
        for (index, (port, device)) in ports.into_iter().enumerate() {
            let group = port.facts().group;
            let magazine = magazines
                .iter()
                .position(|magazine| magazine.group() == group)
                .ok_or_else(|| format!("port {} has no frames of its group", port.facts().device))?;
            let slot = by_device
                .get_mut(usize::from(device.0))
                .ok_or_else(|| format!("more than {} devices", limits::DEVICES_MAX))?;
            let number = u8::try_from(index).ok().filter(|number| *number != NO_PORT);
            let number = number.ok_or_else(|| "more than 254 ports on one worker".to_string())?;
            if *slot == NO_PORT {
                *slot = number;
            }
            exits.push(Exit { port, pending: Batch::new(), magazine });
        }
        Ok(Exits { ports: exits, magazines, by_device })
    }

    /// Queues a frame for `device`.
    #[inline(always)]
    pub fn send(&mut self, device: DeviceId, frame: Frame, counters: &mut Counters) {
        let number = self.by_device.get(usize::from(device.0)).copied().unwrap_or(NO_PORT);
        let Some(exit) = self.ports.get_mut(usize::from(number)) else {
            return self.discard(frame, DropReason::NoEgressPort, counters);
        };
        if let Err(full) = exit.pending.try_push(frame) {
            self.send_on_full(usize::from(number), full.element(), counters);
        }
    }

    #[cold]
    #[inline(never)]
    fn send_on_full(&mut self, number: usize, frame: Frame, counters: &mut Counters) {
        let Some(exit) = self.ports.get_mut(number) else {
            return self.discard(frame, DropReason::NoEgressPort, counters);
        };
        counters.add(Event::Sent, exit.port.tx(&mut exit.pending) as u64);
        if let Err(refused) = exit.pending.try_push(frame) {
            self.discard(refused.element(), DropReason::TxRingFull, counters);
        }
    }

    /// Drops a frame for `reason`.
    #[cold]
    #[inline(never)]
    pub fn discard(&mut self, frame: Frame, reason: DropReason, counters: &mut Counters) {
        counters.drop(reason);
        self.give_back(frame);
    }

    /// Returns a frame to the magazine of its group.
    #[inline]
    pub fn give_back(&mut self, frame: Frame) {
        let group = frame.group();
        // One group nearly always; a linear look over a handful otherwise.
        if let Some(magazine) = self.magazines.iter_mut().find(|magazine| magazine.group() == group) {
            magazine.give(frame);
        }
    }

    /// A free frame of `group`, if there is one.
    pub fn take(&mut self, group: GroupId) -> Option<Frame> {
        self.magazines.iter_mut().find(|magazine| magazine.group() == group)?.take()
    }

    /// Hands what is pending to the rings, wakes the kernel, takes completed frames home and refills receive rings.
    pub fn flush(&mut self, counters: &mut Counters) {
        for number in 0..self.ports.len() {
            let Some(exit) = self.ports.get_mut(number) else { continue };
            if !exit.pending.is_empty() {
                counters.add(Event::Sent, exit.port.tx(&mut exit.pending) as u64);
            }
            exit.port.kick();
            if let Some(magazine) = self.magazines.get_mut(exit.magazine) {
                exit.port.recycle(magazine);
            }
            if !exit.pending.is_empty() {
                // The ring had no room: once more after completions were taken, then it is a drop.
                counters.add(Event::Sent, exit.port.tx(&mut exit.pending) as u64);
                let left = std::mem::take(&mut exit.pending);
                for frame in left {
                    self.discard(frame, DropReason::TxRingFull, counters);
                }
            }
        }
    }

    /// Frames accepted by rings and not yet reported sent.
    pub fn in_flight(&self) -> u64 {
        let flying = |exit: &Exit| {
            let counters = exit.port.counters();
            counters.tx_packets.saturating_sub(counters.tx_completed) + exit.pending.len() as u64
        };
        self.ports.iter().map(flying).sum()
    }
}

/// Carries out one verdict.
#[inline]
pub fn carry_out(
    verdict: Verdict,
    frame: Frame,
    now_ns: u64,
    state: &mut State,
    exits: &mut Exits,
    counters: &mut Counters,
    mut want: impl FnMut(DeviceId, [u8; 16]),
) {
    match verdict {
        Verdict::Send(device) => exits.send(device, frame, counters),
        Verdict::Drop(reason) => exits.discard(frame, reason, counters),
        // Whoever decided so takes it back in before it comes here.
        Verdict::Hairpin => exits.discard(frame, DropReason::NoEgressPort, counters),
        // Who can cut it has done so before.
        Verdict::Cut(_) => exits.discard(frame, DropReason::TooBig, counters),
        Verdict::Hold { device, address } => {
            want(device, address);
            match state.hold.push(device, address, frame, now_ns) {
                Ok(()) => counters.count(Event::NeighbourHeld),
                Err(frame) => exits.discard(frame, DropReason::NeighbourUnresolved, counters),
            }
        }
    }
}
