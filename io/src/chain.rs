//! Chains: packets that lie in several frames.
//!
//! A chunk of AF_XDP ends with its page, so a packet of 9,000 bytes takes three. Only ports that were opened for such
//! ([`OpenConfig::multi_buffer`](crate::afxdp::OpenConfig)) give and take them; everywhere else a packet is a frame, and
//! a frame knows nothing of others.
//!
//! [`Chains`] is a batch with a mark between frames that belong together. There is no half of a packet in it: packets go
//! in and out whole.

use crate::frame::{BATCH_MAX, Batch, Frame};

/// Frames of one packet, at most: as many pieces as a packet of the kernel has (`MAX_SKB_FRAGS`, include/linux/skbuff.h, and
/// one more, as it is commonly built).
pub const CHAIN_FRAMES_MAX: usize = 17 + 1;

// Every frame has a bit, and a whole packet always finds room in an empty batch.
const _: () = assert!(BATCH_MAX <= u64::BITS as usize && CHAIN_FRAMES_MAX <= BATCH_MAX);

/// Packets on their way together, each in one frame or in several that follow each other.
#[derive(Debug, Default)]
pub struct Chains {
    pub(crate) frames: Batch,
    /// Bit n: the packet of frame n goes on in frame n + 1. Never set for the last.
    goes_on: u64,
}

impl Chains {
    /// No packets.
    #[must_use]
    pub fn new() -> Chains {
        Chains::default()
    }

    /// How many packets there are.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len() - self.goes_on.count_ones() as usize
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Frames for which there is room.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        self.frames.remaining_capacity()
    }

    /// Appends a packet that lies in the frames of `packet`, one to [`CHAIN_FRAMES_MAX`], which is empty then; false (and
    /// nothing changes) if there is no room for all of them.
    #[inline]
    #[must_use]
    pub fn push(&mut self, packet: &mut Batch) -> bool {
        let count = packet.len();
        if count == 0 || count > CHAIN_FRAMES_MAX || count > self.room() {
            return false;
        }
        self.goes_on |= ((1 << (count - 1)) - 1) << self.frames.len();
        self.frames.extend(packet.drain(..));
        true
    }

    /// The packets in order, each as its frames.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &[Frame]> {
        let (mut frames, mut goes_on) = (&self.frames[..], self.goes_on);
        std::iter::from_fn(move || {
            let count = goes_on.trailing_ones() + 1;
            let (packet, after) = frames.split_at_checked(count as usize)?;
            (frames, goes_on) = (after, goes_on >> count);
            Some(packet)
        })
    }

    /// Takes all frames out, of whichever packets.
    pub fn drain(&mut self) -> impl Iterator<Item = Frame> {
        self.goes_on = 0;
        self.frames.drain(..)
    }

    /// Takes whole packets from the front, of as many frames as can be but `frames_max`: each frame, and whether its packet
    /// goes on in the next.
    #[inline]
    pub(crate) fn take(&mut self, frames_max: usize) -> impl ExactSizeIterator<Item = (Frame, bool)> {
        let mut count = frames_max.min(self.frames.len());
        while count > 0 && self.goes_on >> (count - 1) & 1 == 1 {
            count -= 1;
        }
        let goes_on = self.goes_on;
        self.goes_on = if count < self.frames.len() { goes_on >> count } else { 0 };
        self.frames.drain(..count).enumerate().map(move |(at, frame)| (frame, goes_on >> at & 1 == 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HugePages, Magazine, Pool};
    use proptest::prelude::*;

    /// The packet of so many frames, each of which says whose it is.
    fn packet(magazine: &mut Magazine, number: u8, frames: usize) -> Batch {
        let mut packet = Batch::new();
        for piece in 0..frames {
            let mut frame = magazine.take().unwrap();
            assert!(frame.fill(&[number, u8::try_from(piece).unwrap()]));
            packet.push(frame);
        }
        packet
    }

    proptest! {
        /// The oracle is a list of packets, each a list of its pieces.
        #[test]
        fn chains_are_a_list_of_lists(steps in prop::collection::vec((any::<bool>(), 0usize..22), 0..60)) {
            let pool = Pool::new(256, 2048, HugePages::Off).unwrap();
            let mut magazine = pool.magazine();
            let (mut chains, mut oracle, mut number) = (Chains::new(), Vec::<Vec<[u8; 2]>>::new(), 0);
            let bytes = |frame: &Frame| [frame.bytes()[0], frame.bytes()[1]];
            for (is_push, count) in steps {
                let held: usize = oracle.iter().map(Vec::len).sum();
                if is_push {
                    let mut packet = packet(&mut magazine, number, count);
                    let pieces: Vec<[u8; 2]> = packet.iter().map(bytes).collect();
                    let fits = (1..=CHAIN_FRAMES_MAX).contains(&count) && held + count <= BATCH_MAX;
                    prop_assert_eq!(chains.push(&mut packet), fits);
                    prop_assert_eq!(packet.len(), if fits { 0 } else { count });
                    packet.drain(..).for_each(|frame| magazine.give(frame));
                    if fits {
                        oracle.push(pieces);
                        number += 1;
                    }
                } else {
                    let frames_max = count * 4;
                    let mut taken = vec![vec![]];
                    for (frame, goes_on) in chains.take(frames_max) {
                        taken.last_mut().unwrap().push(bytes(&frame));
                        if !goes_on {
                            taken.push(vec![]);
                        }
                        magazine.give(frame);
                    }
                    prop_assert_eq!(taken.pop(), Some(vec![]), "no half of a packet");
                    let mut left = frames_max;
                    let fits = oracle.iter().take_while(|pieces| {
                        let fits = pieces.len() <= left;
                        left = left.saturating_sub(pieces.len());
                        fits
                    });
                    let fits = fits.count();
                    let expected: Vec<_> = oracle.drain(..fits).collect();
                    prop_assert_eq!(taken, expected);
                }
                let told: Vec<Vec<[u8; 2]>> = chains.iter().map(|packet| packet.iter().map(bytes).collect()).collect();
                prop_assert_eq!(&told, &oracle);
                prop_assert_eq!((chains.len(), chains.is_empty()), (oracle.len(), oracle.is_empty()));
            }
            chains.drain().for_each(|frame| magazine.give(frame));
            prop_assert_eq!((chains.len(), chains.room()), (0, BATCH_MAX));
            magazine.flush();
            prop_assert_eq!(pool.outstanding(), 0);
        }
    }
}
