//! Frames that wait until their neighbour's address is known.
//!
//! It owns those frames and two limits: how many may wait for one neighbour, and how many in all. It refuses to ask for
//! neighbours and to send: the caller says what became of one, and gets its frames back in the order they came.
//!
//! RFC 4861 section 7.2.2: a sender "MUST, while waiting for address resolution to complete, retain a small queue of
//! packets". When it is full the RFC replaces the oldest; here the newest is refused, since the first packets of a flow
//! are worth more than their retransmissions, and the refused frame is in hand to be counted.

use tidegate_io::Frame;

use crate::table::DeviceId;

/// Frames that wait in all.
pub const FRAMES_MAX: usize = 256;
/// Frames that wait for one neighbour.
pub const FRAMES_PER_NEIGHBOUR_MAX: usize = 3;
/// How long a frame waits: MAX_MULTICAST_SOLICIT times RETRANS_TIMER of RFC 4861 section 10, when resolution fails.
pub const WAIT_NS: u64 = 3_000_000_000;

/// What became of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// Nothing yet.
    Waiting,
    /// Its address is known: frames can go.
    Resolved,
    /// It will not be: frames are dropped.
    Failed,
}

/// One frame that waits.
#[derive(Debug)]
pub struct Held<F = Frame> {
    /// Device it will leave through.
    pub device: DeviceId,
    /// Address of the neighbour there, IPv4 mapped.
    pub address: [u8; 16],
    /// The frame, ready but for the addresses of its Ethernet header.
    pub frame: F,
    since_ns: u64,
}

/// The frames that wait.
#[derive(Debug)]
pub struct Hold<F = Frame> {
    /// In order of arrival.
    held: Vec<Held<F>>,
}

impl<F> Default for Hold<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F> Hold<F> {
    /// Nothing waits. All the memory that will ever be used is allocated here.
    #[must_use]
    pub fn new() -> Hold<F> {
        Hold { held: Vec::with_capacity(FRAMES_MAX) }
    }

    /// Number of frames that wait.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing waits.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Makes a frame wait from `now_ns` on.
    ///
    /// # Errors
    ///
    /// The frame itself, if one of the two limits is reached.
    pub fn push(&mut self, device: DeviceId, address: [u8; 16], frame: F, now_ns: u64) -> Result<(), F> {
        let waiting = self.held.iter().filter(|held| (held.device, held.address) == (device, address)).count();
        if self.held.len() >= FRAMES_MAX || waiting >= FRAMES_PER_NEIGHBOUR_MAX {
            return Err(frame);
        }
        self.held.push(Held { device, address, frame, since_ns: now_ns });
        Ok(())
    }

    /// Hands out, in order of arrival, the frames whose neighbour no longer has the outlook [`Outlook::Waiting`].
    pub fn take_ready(
        &mut self,
        outlook: impl Fn(DeviceId, &[u8; 16]) -> Outlook,
        mut on_frame: impl FnMut(Held<F>, Outlook),
    ) {
        self.take(
            |held| outlook(held.device, &held.address) != Outlook::Waiting,
            |held| {
                let outlook = outlook(held.device, &held.address);
                on_frame(held, outlook);
            },
        );
    }

    /// Hands out the frames that have waited for [`WAIT_NS`] or more.
    pub fn expire(&mut self, now_ns: u64, on_frame: impl FnMut(Held<F>)) {
        self.take(|held| now_ns.saturating_sub(held.since_ns) >= WAIT_NS, on_frame);
    }

    /// Hands out everything, at the end.
    pub fn drain(&mut self) -> impl Iterator<Item = Held<F>> + '_ {
        self.held.drain(..)
    }

    fn take(&mut self, is_due: impl Fn(&Held<F>) -> bool, on_frame: impl FnMut(Held<F>)) {
        self.held.extract_if(.., |held| is_due(held)).for_each(on_frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceId = DeviceId(1);

    #[test]
    fn both_limits_refuse_the_newest_and_hand_it_back() {
        let mut hold = Hold::new();
        for frame in 0..3 {
            assert_eq!(hold.push(DEVICE, [7; 16], frame, 0), Ok(()));
        }
        assert_eq!(hold.push(DEVICE, [7; 16], 3, 0), Err(3));
        // The same address on another device is another neighbour.
        assert_eq!(hold.push(DeviceId(2), [7; 16], 3, 0), Ok(()));
        for frame in 4..256 {
            let address = [u8::try_from(frame / 3).unwrap() + 100; 16];
            assert_eq!(hold.push(DEVICE, address, frame, 0), Ok(()));
        }
        assert_eq!(hold.push(DEVICE, [99; 16], 256, 0), Err(256));
        assert_eq!(hold.len(), FRAMES_MAX);
        assert!(hold.drain().map(|held| held.frame).eq(0..256), "in order of arrival");
        assert_eq!(hold.push(DEVICE, [7; 16], 0, 0), Ok(()));
    }

    #[test]
    fn frames_leave_in_order_when_their_neighbour_is_known_or_given_up() {
        let mut hold = Hold::new();
        for (neighbour, frame) in [(1, 'a'), (2, 'b'), (1, 'c'), (3, 'd'), (2, 'e')] {
            hold.push(DeviceId(neighbour), [9; 16], frame, 0).unwrap();
        }
        let mut taken = Vec::new();
        let outlook = |device: DeviceId, address: &[u8; 16]| match (device.0, address) {
            (1, [9, ..]) => Outlook::Resolved,
            (2, [9, ..]) => Outlook::Failed,
            _ => Outlook::Waiting,
        };
        hold.take_ready(outlook, |held, outlook| taken.push((held.frame, held.device.0, outlook)));
        let expected = [
            ('a', 1, Outlook::Resolved),
            ('b', 2, Outlook::Failed),
            ('c', 1, Outlook::Resolved),
            ('e', 2, Outlook::Failed),
        ];
        assert_eq!(taken, expected);
        assert_eq!(hold.drain().map(|held| held.frame).collect::<String>(), "d");
        assert!(hold.is_empty());
    }

    #[test]
    fn frames_wait_for_three_seconds_and_never_allocate() {
        let mut hold = Hold::new();
        let room = hold.held.capacity();
        hold.push(DEVICE, [1; 16], 'a', 1_000).unwrap();
        hold.push(DEVICE, [1; 16], 'b', 2_000).unwrap();
        let mut expired = String::new();
        hold.expire(1_000 + WAIT_NS - 1, |held| expired.push(held.frame));
        assert_eq!(expired, "");
        hold.expire(1_000 + WAIT_NS, |held| expired.push(held.frame));
        assert_eq!((expired.as_str(), hold.len()), ("a", 1));
        // A clock that is behind expires nothing.
        hold.expire(0, |held| expired.push(held.frame));
        assert_eq!((expired.as_str(), hold.len()), ("a", 1));
        assert_eq!(hold.held.capacity(), room);
    }
}
