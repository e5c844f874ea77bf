//! What a worker tells the ledger: ports that pods got, and gave back.
//!
//! It owns the end of a bounded queue and never waits: what finds no room is counted, and a record is missing rather than a
//! packet late. It refuses to know names and files; see [`crate::clerk`].

use crossbeam::channel::{Sender, TrySendError};

use crate::table::EgressId;

/// A port that a pod got, or gave back. Addresses are IPv4 mapped, ports in host order. Kind: leaves the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEvent {
    /// Whether it was given out; else it was taken back.
    pub begun: bool,
    /// By which policy; of what is taken back it is not known.
    pub policy: EgressId,
    /// IANA number.
    pub protocol: u8,
    /// What the outside sees.
    pub external: ([u8; 16], u16),
    /// Whose it is.
    pub internal: ([u8; 16], u16),
    /// Towards whom; `None`: towards everyone.
    pub remote: Option<([u8; 16], u16)>,
}

/// Where events leave.
#[derive(Debug, Default)]
pub struct Outbox {
    sender: Option<Sender<PortEvent>>,
    /// Something was told to begin; ends before that are nobody's.
    is_used: bool,
    lost: u64,
}

impl Outbox {
    /// Events go there from now on.
    pub fn open(&mut self, sender: Sender<PortEvent>) {
        self.sender = Some(sender);
    }

    /// Tells an event, unless nobody listens.
    pub fn tell(&mut self, event: PortEvent) {
        let Some(sender) = self.sender.as_ref().filter(|_| event.begun || self.is_used) else { return };
        self.is_used = true;
        if let Err(TrySendError::Full(_)) = sender.try_send(event) {
            self.lost += 1;
        }
    }

    /// Events that found no room since this was asked last.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(begun: bool) -> PortEvent {
        let at = ([1; 16], 2);
        PortEvent { begun, policy: EgressId(0), protocol: 6, external: at, internal: at, remote: None }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nothing_waits() {
        let mut outbox = Outbox::default();
        outbox.tell(event(true)); // nobody listens
        let (sender, receiver) = crossbeam::channel::bounded(2);
        outbox.open(sender);
        outbox.tell(event(false)); // of a policy that is not recorded
        assert!(receiver.is_empty());
        for begun in [true, false, true] {
            outbox.tell(event(begun));
        }
        assert_eq!((receiver.len(), outbox.take_lost(), outbox.take_lost()), (2, 1, 0));
    }
}
