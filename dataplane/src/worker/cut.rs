//! Cutting: a finished packet that is larger than its path leaves as fragments, in order (V-010, N-014, T-167).
//!
//! Owns the frames of the pieces: all of them are there before the first one leaves, so that nobody gets half a packet for
//! want of memory. Refuses to know when a packet may be cut (`stage::flow` says) and how (`wire::fragment` does).
//!
//! The pieces have the addresses, ports and checksum of the packet as it leaves: cutting comes last, before the outside is
//! put on. A packet that is a fragment is cut further. IPv6 is never cut.

use arrayvec::ArrayVec;
use tidegate_io::Frame;

use super::other::Hands;
use crate::counters::Event;
use crate::drops::DropReason;
use crate::limits;
use crate::packet::Packet;
use crate::pipeline;
use crate::stage::route::{self, Hop};
use crate::wire::fragment::Pieces;
use crate::wire::packet::{L3, parse_l3};

/// Pieces, each with what parse says of it.
type Cut = ArrayVec<(Frame, L3), { limits::PIECES_PER_PACKET }>;

impl Hands<'_> {
    /// Sends a packet over `hop` in pieces that fit.
    #[cold]
    pub(super) fn cut(&mut self, frame: Frame, packet: &Packet, hop: Hop, hash: u64) {
        let mut pieces = Cut::new();
        if let Err(reason) = self.pieces(&frame, packet, hop, &mut pieces) {
            pieces.drain(..).for_each(|(piece, _)| self.exits.give_back(piece));
            return self.exits.discard(frame, reason, self.counters);
        }
        self.exits.give_back(frame);
        self.counters.count(Event::Cut);
        self.counters.count(Event::Consumed);
        self.counters.add(Event::Generated, pieces.len() as u64);
        for (mut piece, l3) in pieces {
            let packet = Packet { l3_offset: 0, ecn: None, l3, ..*packet };
            let verdict = pipeline::depart(self.tables, self.counters, &packet, &mut piece, hop, hash);
            self.carry_out(verdict, piece);
        }
    }

    fn pieces(&mut self, frame: &Frame, packet: &Packet, hop: Hop, cut: &mut Cut) -> Result<(), DropReason> {
        let whole = frame.bytes().get(usize::from(packet.l3_offset)..).ok_or(DropReason::TooBig)?;
        let l3 = parse_l3(whole)?;
        let mtu = route::mtu(self.tables, hop);
        let plan = Pieces::plan(&l3, mtu).ok_or(DropReason::TooBig)?;
        for number in 0..plan.len().min(cut.capacity()) {
            let mut piece = self.exits.take(frame.group()).ok_or(DropReason::NoFrames)?;
            let made = piece.set_len(usize::from(mtu).min(whole.len()));
            let len = if made { plan.emit(number, whole, piece.bytes_mut()) } else { None };
            let l3 = len.filter(|len| piece.set_len(*len)).and_then(|_| parse_l3(piece.bytes()).ok());
            let Some(l3) = l3 else {
                self.exits.give_back(piece);
                return Err(DropReason::TooBig);
            };
            cut.push((piece, l3));
        }
        Ok(())
    }
}
