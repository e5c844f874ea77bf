//! How a NIC spreads clients over its queues, as a table.
//!
//! Owns the hash that NICs compute for receive-side scaling, and what it leads to here: the worker whose queue a packet
//! arrives on. Refuses to know devices (`io` reads them), and whose a packet is, which is `stage/owner.rs`.
//!
//! The hash is Toeplitz's: for every bit of the input that is one, the 32 bits of the key from that place on are added to
//! the result without carry (Microsoft, *RSS hashing functions*, Windows driver documentation). Seen from the other side,
//! a bit of the result is the parity of the input under a mask, which is the key shifted by that bit's place. Only the low
//! bits choose an entry of the indirection table, seven of them for 128 entries; so a lookup is as many parities over two
//! 64-bit words for IPv4 and over five for IPv6, from masks of 40 bytes each. Tables by nibble, the usual way, need a load for
//! each of 24 or 72 nibbles.

use sha2::{Digest, Sha256};
use tidegate_io::netdev::{FlowType, Hashed, Rss};

use super::Family;
use super::owner::WorkerId;
use crate::state::tuple::{Address, DOMAIN_WIRE, Tuple};
use crate::wire::protocol;

/// Words of the longest input: two IPv6 addresses of 128 bits, and two ports in the upper half of the last.
pub const INPUT_WORDS: usize = 5;
/// Bytes of a key that such an input can meet: its 36 and 4 more.
const KEY_BYTES: usize = 40;
const _: () = assert!(KEY_BYTES == INPUT_WORDS * 8);
/// Most bits of the hash that choose an entry.
const INDEX_BITS_MAX: usize = 16;
/// In place of a worker: nobody serves that queue.
const NOBODY: u16 = u16::MAX;

/// What of a packet is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fields {
    /// Not known: the spread says nothing.
    Unknown,
    /// Both addresses.
    Addresses,
    /// Both addresses and both ports.
    Ends,
}

/// What tells a hash key from others: the first 64 bits of its SHA-256, in hexadecimal digits. It is nothing to choose a
/// queue by, unlike the key.
pub fn digest(key: &[u8]) -> String {
    Sha256::digest(key).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Which worker's queue packets of a client arrive on.
#[derive(Clone)]
pub struct Spread {
    /// Masks of the low bits of the hash, the most significant first; of the input, bit 63 of word 0 is the first bit.
    masks: [[u64; INPUT_WORDS]; INDEX_BITS_MAX],
    /// Bits that choose an entry.
    index_bits: usize,
    /// Worker of each entry of the indirection table, or [`NOBODY`]; two to the power of `index_bits`.
    workers: Box<[u16]>,
    /// By family and protocol ([`fields_at`]).
    fields: [[Fields; 3]; 2],
}

/// Why a device's spread cannot say whose a client is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSpread {
    /// XOR, CRC32, one of the vendor's own, or a symmetric one.
    #[error("its hash is not Toeplitz's of packets as they are (`ethtool -x` names it)")]
    Function,
    /// Too short for IPv6, or not told at all.
    #[error("it tells {0} bytes of its hash key, and 40 are needed")]
    Key(usize),
    /// What chooses an entry is the low bits of the hash.
    #[error("its indirection table has {0} entries, which is not a power of two up to 65536")]
    Entries(usize),
    /// Neither addresses nor addresses and ports, of any protocol.
    #[error("it does not say which fields it hashes (`ethtool -n DEV rx-flow-hash tcp4`)")]
    Fields,
    /// Ports are dealt evenly, and a worker without clients has no use for its own.
    #[error("{entries} of {of} entries of its indirection table lead to worker {worker}, of {workers}: too uneven")]
    Uneven {
        /// The worker with fewest.
        worker: u16,
        /// Its entries.
        entries: u32,
        /// All entries.
        of: u32,
        /// How many workers there are.
        workers: u16,
    },
}

impl Spread {
    /// What `rss` says to `workers` workers, to whom the open `queues` of that device were dealt by their place in this list.
    ///
    /// # Errors
    /// Why it says nothing.
    pub fn new(rss: &Rss, queues: &[u32], workers: u16) -> Result<Spread, NoSpread> {
        if !rss.is_toeplitz {
            return Err(NoSpread::Function);
        }
        let key: &[u8; KEY_BYTES] = rss.key.first_chunk().ok_or(NoSpread::Key(rss.key.len()))?;
        let entries = rss.indirection.len();
        if !entries.is_power_of_two() || entries > 1 << INDEX_BITS_MAX {
            return Err(NoSpread::Entries(entries));
        }
        let fields = fields(rss);
        if fields.as_flattened().iter().all(|fields| *fields == Fields::Unknown) {
            return Err(NoSpread::Fields);
        }
        let places = 0..workers.max(1);
        let dealt: Vec<(u32, u16)> = queues.iter().copied().zip(places.cycle()).collect();
        let worker_of =
            |queue: &u32| dealt.iter().find(|(open, _)| open == queue).map_or(NOBODY, |(_, worker)| *worker);
        let index_bits = entries.ilog2() as usize;
        let spread = Spread {
            masks: masks(key, index_bits),
            index_bits,
            workers: rss.indirection.iter().map(worker_of).collect(),
            fields,
        };
        spread.check(workers)
    }

    /// Nobody may have less than half of an even share.
    fn check(self, workers: u16) -> Result<Spread, NoSpread> {
        let share = |worker: &u16| self.entries_of(WorkerId(*worker));
        let Some(worker) = (0..workers).min_by_key(share) else { return Ok(self) };
        let ((entries, of), enough) = (share(&worker), u32::from(workers) * 2);
        if entries * enough < of {
            return Err(NoSpread::Uneven { worker, entries, of, workers });
        }
        Ok(self)
    }

    /// How many entries of the indirection table lead to `worker`, and how many there are.
    pub fn entries_of(&self, worker: WorkerId) -> (u32, u32) {
        let count = |matching: usize| u32::try_from(matching).unwrap_or(u32::MAX);
        (count(self.workers.iter().filter(|of| **of == worker.0).count()), count(self.workers.len()))
    }

    /// Which entries of the indirection table lead to `worker`, ascending from 0.
    pub fn places_of(&self, worker: WorkerId) -> Vec<u32> {
        (0..).zip(&self.workers).filter(|(_, of)| **of == worker.0).map(|(place, _)| place).collect()
    }

    /// The worker whose queue packets with `tuple` arrive on, if they come from the wire and the device is known to hash such
    /// packets. Read side. A call of its own: inlined, it takes registers from every packet of
    /// gateways without it.
    #[inline(never)]
    pub fn owner<A: Address>(&self, tuple: &Tuple<A>) -> Option<WorkerId> {
        let [_, fields] = &self.fields;
        let fields = if A::FAMILY == Family::V4 { &self.fields[0] } else { fields };
        let ports = u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port);
        let ports = match fields[fields_at(tuple.protocol)?] {
            _ if tuple.domain != DOMAIN_WIRE => return None,
            Fields::Unknown => return None,
            Fields::Addresses => 0,
            Fields::Ends => ports,
        };
        let input = A::rss_input(tuple.source, tuple.destination, ports);
        let worker = self.workers.get(self.index(&input)).copied().filter(|worker| *worker != NOBODY)?;
        Some(WorkerId(worker))
    }

    /// The low bits of the hash of `input`.
    #[inline(always)]
    fn index(&self, input: &[u64; INPUT_WORDS]) -> usize {
        let [a, b, c, d, e] = *input;
        let mut index = 0;
        // Word by word: of a loop over words the compiler does not see that most are zero for IPv4.
        for [k0, k1, k2, k3, k4] in self.masks.iter().take(self.index_bits) {
            let common = (a & k0) ^ (b & k1) ^ (c & k2) ^ (d & k3) ^ (e & k4);
            index = index << 1 | (common.count_ones() & 1) as usize;
        }
        index
    }
}

impl std::fmt::Debug for Spread {
    /// Without the masks, which are the key.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Spread").field("workers", &self.workers).field("fields", &self.fields).finish_non_exhaustive()
    }
}

/// Where the fields of a protocol with ports stand.
#[inline(always)]
fn fields_at(number: u8) -> Option<usize> {
    match number {
        protocol::TCP => Some(0),
        protocol::UDP => Some(1),
        protocol::SCTP => Some(2),
        _ => None,
    }
}

fn fields(rss: &Rss) -> [[Fields; 3]; 2] {
    let of = |wanted: FlowType| {
        let told = FlowType::ALL.iter().zip(rss.hashed).find(|(flows, _)| **flows == wanted);
        match told.and_then(|(_, hashed)| hashed) {
            Some(Hashed::Addresses) => Fields::Addresses,
            Some(Hashed::Ends) => Fields::Ends,
            Some(Hashed::PortsAndMore | Hashed::Other) | None => Fields::Unknown,
        }
    };
    [[FlowType::Tcp4, FlowType::Udp4, FlowType::Sctp4], [FlowType::Tcp6, FlowType::Udp6, FlowType::Sctp6]]
        .map(|family| family.map(of))
}

/// The mask of each of the low `bits` bits of the hash, the most significant first: bit n of the input, counted from the
/// first, meets bit n + 31 - b of the key in bit b of the hash.
fn masks(key: &[u8; KEY_BYTES], bits: usize) -> [[u64; INPUT_WORDS]; INDEX_BITS_MAX] {
    let is_set = |at: usize| key.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
    let mut masks = [[0; INPUT_WORDS]; INDEX_BITS_MAX];
    for (mask, bit) in masks.iter_mut().zip((0..bits).rev()) {
        for (n, word) in mask.iter_mut().enumerate() {
            *word = (0..64).fold(0, |word, at| word << 1 | u64::from(is_set(n * 64 + at + 31 - bit)));
        }
    }
    masks
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::rig::nic::toeplitz;
    use crate::state::tuple::DOMAIN_OVERLAY;

    /// The secret key of *Verifying the RSS hash calculation* (Windows driver documentation).
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    /// A device whose queue is the entry, so that the "worker" of a packet is the low bits of its hash.
    fn plain(entries: u32, hashed: Hashed) -> Rss {
        let indirection = (0..entries).collect();
        Rss { key: KEY.to_vec(), indirection, is_toeplitz: true, hashed: [Some(hashed); 6] }
    }

    /// The low 16 bits of the hash, by the masks.
    fn low_bits<A: Address>(key: &[u8], tuple: &Tuple<A>, with_ports: bool) -> usize {
        let key = key.first_chunk().unwrap();
        let spread =
            Spread { masks: masks(key, 16), index_bits: 16, workers: Box::default(), fields: [[Fields::Ends; 3]; 2] };
        let ports = u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port);
        spread.index(&A::rss_input(tuple.source, tuple.destination, if with_ports { ports } else { 0 }))
    }

    fn bytes<const N: usize>(tuple: &Tuple<[u8; N]>, with_ports: bool) -> Vec<u8> {
        let ports = [tuple.source_port.to_be_bytes(), tuple.destination_port.to_be_bytes()].concat();
        [&tuple.source[..], &tuple.destination, if with_ports { &ports } else { &[] }].concat()
    }

    #[test]
    fn the_published_vectors_hold() {
        // Verifying the RSS hash calculation, IPv4 and IPv6 tables: destination, source, hash without and with ports.
        let table = [
            ("161.142.100.80:1766", "66.9.149.187:2794", 0x323e_8fc2_u32, 0x51cc_c178_u32),
            ("65.69.140.83:4739", "199.92.111.2:14230", 0xd718_262a, 0xc626_b0ea),
            ("12.22.207.184:38024", "24.19.198.95:12898", 0xd2d0_a5de, 0x5c2b_394a),
            ("209.142.163.6:2217", "38.27.205.30:48228", 0x8298_9176, 0xafc7_327f),
            ("202.188.127.2:1303", "153.39.163.191:44251", 0x5d18_09c5, 0x10e8_28a2),
            ("[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x2cc1_8cd5, 0x4020_7d3d),
            ("[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0x0f0c_461c, 0xdde5_1bbf),
            (
                "[fe80::200:f8ff:fe21:67cf]:38024",
                "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251",
                0x4b61_e985,
                0x02d1_feef,
            ),
        ];
        for (to, from, without, with) in table {
            let (to, from): (SocketAddr, SocketAddr) = (to.parse().unwrap(), from.parse().unwrap());
            let (source_port, destination_port) = (from.port(), to.port());
            let got = match (from, to) {
                (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                    let (source, destination) = (from.ip().octets(), to.ip().octets());
                    let tuple =
                        Tuple { source, destination, source_port, destination_port, protocol: 6, domain: DOMAIN_WIRE };
                    let whole = [false, true].map(|ports| toeplitz(&KEY, &bytes(&tuple, ports)));
                    (whole, [false, true].map(|ports| low_bits(&KEY, &tuple, ports)))
                }
                (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                    let (source, destination) = (from.ip().octets(), to.ip().octets());
                    let tuple =
                        Tuple { source, destination, source_port, destination_port, protocol: 6, domain: DOMAIN_WIRE };
                    let whole = [false, true].map(|ports| toeplitz(&KEY, &bytes(&tuple, ports)));
                    (whole, [false, true].map(|ports| low_bits(&KEY, &tuple, ports)))
                }
                _ => unreachable!("two families"),
            };
            assert_eq!(got.0, [without, with], "{from} to {to}");
            assert_eq!(got.1, [without, with].map(|hash| (hash & 0xffff) as usize), "{from} to {to}");
        }
    }

    fn tuple<const N: usize>(ends: [u8; N], others: [u8; N], ports: (u16, u16), protocol: u8) -> Tuple<[u8; N]> {
        let (source_port, destination_port) = ports;
        Tuple { source: ends, destination: others, source_port, destination_port, protocol, domain: DOMAIN_WIRE }
    }

    /// One tuple: what the spread says is what the naive hash leads to by the indirection table and the dealing of queues.
    fn agrees<const N: usize>(
        rss: &Rss,
        queues: &[u32],
        workers: u16,
        tuple: &Tuple<[u8; N]>,
    ) -> Result<(), TestCaseError>
    where
        [u8; N]: Address,
    {
        let spread = Spread::new(rss, queues, workers);
        prop_assume!(spread.is_ok());
        let spread = spread.unwrap();
        let flows = match (tuple.protocol, N) {
            (6, 4) => Some(0),
            (17, 4) => Some(1),
            (132, 4) => Some(2),
            (6, _) => Some(3),
            (17, _) => Some(4),
            (132, _) => Some(5),
            _ => None,
        };
        let hash = match flows.and_then(|flows: usize| rss.hashed[flows]) {
            Some(Hashed::Ends) => Some(toeplitz(&rss.key, &bytes(tuple, true))),
            Some(Hashed::Addresses) => Some(toeplitz(&rss.key, &bytes(tuple, false))),
            _ => None,
        };
        let queue = hash.map(|hash| rss.indirection[hash as usize % rss.indirection.len()]);
        let place = queue.and_then(|queue| queues.iter().position(|open| *open == queue));
        let expected = place.map(|place| WorkerId(u16::try_from(place).unwrap() % workers));
        prop_assert_eq!(spread.owner(tuple), expected);
        prop_assert_eq!(spread.owner(&Tuple { domain: DOMAIN_OVERLAY, ..*tuple }), None);
        Ok(())
    }

    fn hashed() -> impl Strategy<Value = [Option<Hashed>; 6]> {
        let one = prop_oneof![
            4 => Just(Some(Hashed::Ends)),
            2 => Just(Some(Hashed::Addresses)),
            1 => Just(Some(Hashed::Other)),
            1 => Just(None)
        ];
        prop::array::uniform6(one)
    }

    proptest! {
        #[test]
        fn random_spreads_are_what_the_bit_by_bit_hash_says(
            key in prop::collection::vec(any::<u8>(), 40..60),
            bits in 0u32..10,
            queues in prop::sample::subsequence((0..16).collect::<Vec<u32>>(), 1..16).prop_shuffle(),
            entries in prop::collection::vec(0..16u32, 512),
            hashed in hashed(),
            workers in 1u16..5,
            four in any::<([u8; 4], [u8; 4])>(),
            six in any::<([u8; 16], [u8; 16])>(),
            ports in any::<(u16, u16)>(),
            protocol in prop::sample::select(vec![6, 17, 132, 47]),
        ) {
            let rss = Rss { key, indirection: entries[..1 << bits].to_vec(), is_toeplitz: true, hashed };
            agrees(&rss, &queues, workers, &tuple(four.0, four.1, ports, protocol))?;
            agrees(&rss, &queues, workers, &tuple(six.0, six.1, ports, protocol))?;
        }
    }

    #[test]
    fn spreads_that_cannot_be_followed_are_refused_with_the_reason() {
        let good = plain(128, Hashed::Ends);
        let queues: Vec<u32> = (0..128).collect();
        let refused = |rss: Rss, queues: &[u32], workers| Spread::new(&rss, queues, workers).unwrap_err();
        assert_eq!(refused(Rss { is_toeplitz: false, ..good.clone() }, &queues, 2), NoSpread::Function);
        assert_eq!(refused(Rss { key: KEY[..39].to_vec(), ..good.clone() }, &queues, 2), NoSpread::Key(39));
        assert_eq!(refused(plain(0, Hashed::Ends), &queues, 2), NoSpread::Entries(0));
        assert_eq!(refused(plain(96, Hashed::Ends), &queues, 2), NoSpread::Entries(96));
        assert_eq!(refused(plain(1 << 17, Hashed::Ends), &queues, 2), NoSpread::Entries(1 << 17));
        assert_eq!(refused(plain(128, Hashed::Other), &queues, 2), NoSpread::Fields);
        assert_eq!(refused(Rss { hashed: [None; 6], ..good.clone() }, &queues, 2), NoSpread::Fields);
        // `ethtool -X wan0 equal 2` with four workers.
        let two = Rss { indirection: (0..128).map(|n| n % 2).collect(), ..good.clone() };
        let uneven = NoSpread::Uneven { worker: 2, entries: 0, of: 128, workers: 4 };
        assert_eq!(refused(two.clone(), &[0, 1, 2, 3], 4), uneven);
        assert!(uneven.to_string().contains("0 of 128 entries"), "{uneven}");
        assert!(Spread::new(&two, &[0, 1, 2, 3], 2).is_ok());
        // Nobody serves queue 1; what would come there is spread by the hash, but not half of everything.
        assert!(matches!(refused(two, &[0], 2), NoSpread::Uneven { worker: 1, .. }));
    }

    #[test]
    fn a_key_is_told_by_its_digest() {
        // `printf '' | sha256sum`
        assert_eq!(digest(&[]), "e3b0c44298fc1c14");
        let mut other = KEY;
        other[39] ^= 1;
        assert_ne!(digest(&KEY), digest(&other));
    }

    #[test]
    fn queues_are_dealt_by_their_place_and_those_of_nobody_say_nothing() {
        // Queues 5, 2, 9 and 7 are open, in this order: workers 0, 1, 0 and 1.
        let rss = Rss { indirection: [5, 2, 9, 7, 5, 2, 3, 7].into(), ..plain(8, Hashed::Ends) };
        let spread = Spread::new(&rss, &[5, 2, 9, 7], 2).unwrap();
        assert_eq!(*spread.workers, [0, 1, 0, 1, 0, 1, NOBODY, 1]);
        assert_eq!([0, 1, 2].map(|worker| spread.entries_of(WorkerId(worker))), [(3, 8), (4, 8), (0, 8)]);
        assert_eq!(
            [0, 1, 2].map(|worker| spread.places_of(WorkerId(worker))),
            [vec![0, 2, 4], vec![1, 3, 5, 7], vec![]]
        );
        assert!(!format!("{spread:?}").contains("masks"));
    }
}
