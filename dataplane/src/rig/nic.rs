//! A NIC with receive-side scaling, as its specification reads: the hash bit after bit, from the bytes of a frame.
//!
//! Owns nothing but settings; shares no code with the tables, so that both can be compared.

use tidegate_io::netdev::{Hashed, Rss};

use crate::state::Entropy;

/// The Toeplitz hash of `input` under `key`, which has four bytes more (Microsoft, *RSS hashing functions*): with every bit of
/// the input, a window of 32 bits moves on by one bit of the key, and is added where that bit is one.
pub fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let bits =
        |bytes: &[u8]| bytes.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)).collect::<Vec<u8>>();
    let key = bits(key);
    let windows = key.windows(32).map(|window| window.iter().fold(0u32, |word, bit| word << 1 | u32::from(*bit)));
    bits(input).iter().zip(windows).filter(|(bit, _)| **bit == 1).fold(0, |hash, (_, window)| hash ^ window)
}

/// A NIC, and what it is set to.
#[derive(Clone, Debug)]
pub struct Nic {
    /// Its settings.
    pub rss: Rss,
}

impl Nic {
    /// One that spreads TCP and UDP of both families by both ends over so many queues, evenly, by a random key: 128 entries.
    pub fn new(queues: u16, random: &mut Entropy) -> Nic {
        let key = (0..5).flat_map(|_| random.draw().to_be_bytes()).collect();
        let indirection = (0..u32::from(queues)).cycle().take(128).collect();
        let (ends, other) = (Some(Hashed::Ends), Some(Hashed::Addresses));
        Nic { rss: Rss { key, indirection, is_toeplitz: true, hashed: [ends, ends, other, ends, ends, other] } }
    }

    /// The queue of an Ethernet frame without tags. Fragments have no ports to look at, and of protocols other than TCP and
    /// UDP both addresses are taken.
    pub fn queue(&self, frame: &[u8]) -> u32 {
        let hash = input(frame).map_or(0, |input| toeplitz(&self.rss.key, &input));
        let entries = u32::try_from(self.rss.indirection.len()).unwrap_or(1);
        self.rss.indirection.get((hash % entries) as usize).copied().unwrap_or(0)
    }
}

fn input(frame: &[u8]) -> Option<Vec<u8>> {
    const PROTOCOLS: [u8; 2] = [6, 17];
    let l3 = frame.get(14..)?;
    let (addresses, protocol, ports_at) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let is_whole = u16::from_be_bytes([*l3.get(6)?, *l3.get(7)?]) & 0x3fff == 0;
            let header = usize::from(l3.first()? & 0xf) * 4;
            (l3.get(12..20)?, *l3.get(9)?, is_whole.then_some(header))
        }
        // Next header 44, a fragment's, is neither TCP nor UDP.
        [0x86, 0xdd] => (l3.get(8..40)?, *l3.get(6)?, Some(40)),
        _ => return None,
    };
    let ports = match ports_at {
        Some(at) if PROTOCOLS.contains(&protocol) => l3.get(at..at + 4)?,
        _ => &[],
    };
    Some([addresses, ports].concat())
}
