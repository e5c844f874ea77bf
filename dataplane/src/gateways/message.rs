//! The message that gateways send each other: one datagram, authenticated, versioned.
//!
//! Owns its bytes and what is refused. Refuses to know who may be believed what: a message that is well formed and carries
//! a tag of our key is handed on as it is.
//!
//! ```text
//!  magic "TgHb" (4) | version (1) | flags (1) | length before the tag (2)
//!  epoch (8) | sequence (8) | generation (8) | objects (8) | vips (8) | announced (4) | view age, ms (4)
//!  name:     length (1), UTF-8
//!  MACs:     count (1), 6 each                      of the served devices, to tell gateways from strangers
//!  prefixes: count (1), length (1) address (4, 16)  connected to served devices; length | 128·(IPv6)
//!  view:     count (1), id (4) flags (1)            the gateways its announcements reckon with
//!  echoes:   count (1), id (4) epoch (8) low half of sequence (4)      the last it heard of each
//!  holdings: present (1); first (4) last (4) count (2), 4 each         hashes of the VIPs it serves, a part of them
//!  tag:      HMAC-SHA256 over all before it (32)    RFC 2104
//! ```
//!
//! Numbers are in network order. There is exactly one encoding of a message, so that parsing and writing undo each other,
//! and every byte counts: whatever is left over, cut off or turned round is refused.

use std::net::IpAddr;

use ipnet::IpNet;

use super::key::{Keys, TAG_BYTES};

/// Longest message: fits into one packet of any underlay, VXLAN or VLAN around it or not.
pub const MESSAGE_BYTES_MAX: usize = 1400;
/// Gateways in one set, at most.
pub const GATEWAYS_MAX: usize = 32;
/// Link-layer addresses told, at most.
pub const MACS_MAX: usize = 8;
/// Connected prefixes told, at most.
pub const PREFIXES_MAX: usize = 16;
/// Longest name in bytes, that of a Node.
pub const NAME_BYTES_MAX: usize = 253;

const MAGIC: [u8; 4] = *b"TgHb";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 56;
/// What a part of the holdings takes beside its hashes.
const PART_BYTES: usize = 10;
const READY: u8 = 1;
const DRAINING: u8 = 2;
const V6: u8 = 128;

const LONGEST: usize = HEAD_BYTES
    + 1
    + NAME_BYTES_MAX
    + 1
    + 6 * MACS_MAX
    + 1
    + 17 * PREFIXES_MAX
    + 1
    + 5 * GATEWAYS_MAX
    + 1
    + 16 * GATEWAYS_MAX
    + 1
    + PART_BYTES
    + TAG_BYTES;
const _: () = assert!(LONGEST + 4 * 8 <= MESSAGE_BYTES_MAX, "the fullest message has room for eight hashes");

/// Short name of a gateway: the beginning of the hash of its Node's name, see [`super::election::id`].
pub type Id = u32;

/// One gateway of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat {
    /// Which gateway.
    pub id: Id,
    /// It gives up what it announces to others.
    pub draining: bool,
}

/// The last message heard of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Which gateway.
    pub id: Id,
    /// Its epoch.
    pub epoch: u64,
    /// Low half of the sequence number.
    pub sequence: u32,
}

/// All VIPs of the sender whose hash lies in a range.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Part {
    /// First hash of the range.
    pub first: u32,
    /// Last hash of the range.
    pub last: u32,
    /// Hashes there are, rising.
    pub hashes: Vec<u32>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Message {
    /// Name of the sender's Node.
    pub node: String,
    /// When the sender began, nanoseconds since 1970, and always later than its run before.
    pub epoch: u64,
    /// Rises with every message of an epoch.
    pub sequence: u64,
    /// Its workers turn and it has tables.
    pub ready: bool,
    /// It gives up what it announces to others.
    pub draining: bool,
    /// Generation of its tables.
    pub generation: u64,
    /// Digest of its Services and its hash key.
    pub objects: u64,
    /// Digest of the VIPs that lie on its links.
    pub vips: u64,
    /// How many of them it announces.
    pub announced: u32,
    /// Milliseconds since which `view` is what its announcements reckon with.
    pub view_age_ms: u32,
    /// Link-layer addresses of its served devices.
    pub macs: Vec<[u8; 6]>,
    /// Connected prefixes of its served devices, without host bits, rising.
    pub prefixes: Vec<IpNet>,
    /// The gateways that its announcements reckon with, rising.
    pub view: Vec<Seat>,
    /// What it heard last of each gateway.
    pub echoes: Vec<Echo>,
    /// A part of the VIPs it serves.
    pub part: Option<Part>,
}

/// Why a datagram is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too short, too long, or not what a message looks like.
    #[error("not a message of a gateway")]
    Malformed,
    /// A version that is not spoken here.
    #[error("version {0} is not spoken here, {VERSION} is")]
    Version(u8),
    /// The tag is not of one of our keys, or a byte has changed on the way.
    #[error("not of our key")]
    WrongKey,
}

impl Message {
    /// The bytes of this message, tagged with the first of `keys`. Lists that are too long are cut.
    pub fn encode(&self, keys: &Keys) -> Vec<u8> {
        let mut out = Vec::with_capacity(MESSAGE_BYTES_MAX);
        out.extend(MAGIC);
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.extend([VERSION, flag(self.ready, READY) | flag(self.draining, DRAINING), 0, 0]);
        for number in [self.epoch, self.sequence, self.generation, self.objects, self.vips] {
            out.extend(number.to_be_bytes());
        }
        out.extend(self.announced.to_be_bytes());
        out.extend(self.view_age_ms.to_be_bytes());
        counted(&mut out, self.node.as_bytes(), NAME_BYTES_MAX, |out, byte| out.push(*byte));
        counted(&mut out, &self.macs, MACS_MAX, |out, mac| out.extend(mac));
        counted(&mut out, &self.prefixes, PREFIXES_MAX, put_prefix);
        counted(&mut out, &self.view, GATEWAYS_MAX, |out, seat| {
            out.extend(seat.id.to_be_bytes());
            out.push(u8::from(seat.draining));
        });
        counted(&mut out, &self.echoes, GATEWAYS_MAX, |out, echo| {
            out.extend(echo.id.to_be_bytes());
            out.extend(echo.epoch.to_be_bytes());
            out.extend(echo.sequence.to_be_bytes());
        });
        out.push(u8::from(self.part.is_some()));
        if let Some(part) = &self.part {
            out.extend(part.first.to_be_bytes());
            out.extend(part.last.to_be_bytes());
            out.extend(u16::try_from(part.hashes.len()).unwrap_or(u16::MAX).to_be_bytes());
            part.hashes.iter().take(usize::from(u16::MAX)).for_each(|hash| out.extend(hash.to_be_bytes()));
        }
        let length = u16::try_from(out.len()).unwrap_or(u16::MAX).to_be_bytes();
        out[6..8].copy_from_slice(&length);
        let tag = keys.tag(&out);
        out.extend(tag);
        out
    }

    /// How many hashes a part of the holdings may have beside what else this message says.
    pub fn room(&self) -> usize {
        let lists = self.node.len() + 6 * self.macs.len() + 17 * self.prefixes.len();
        let used = HEAD_BYTES + 6 + lists + 5 * self.view.len() + 16 * self.echoes.len() + PART_BYTES + TAG_BYTES;
        MESSAGE_BYTES_MAX.saturating_sub(used) / 4
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// See [`Refusal`]. Nothing but magic, version and length is looked at before the tag has proven right.
    pub fn decode(datagram: &[u8], keys: &Keys) -> Result<Message, Refusal> {
        let body = datagram.len().checked_sub(TAG_BYTES).ok_or(Refusal::Malformed)?;
        let (said, tag) = datagram.split_at_checked(body).ok_or(Refusal::Malformed)?;
        let mut bytes = Bytes(said);
        if datagram.len() > MESSAGE_BYTES_MAX || bytes.array()? != MAGIC {
            return Err(Refusal::Malformed);
        }
        let [version, flags] = bytes.array()?;
        if version != VERSION {
            return Err(Refusal::Version(version));
        }
        if usize::from(u16::from_be_bytes(bytes.array()?)) != said.len() {
            return Err(Refusal::Malformed);
        }
        if !keys.verify(said, tag) {
            return Err(Refusal::WrongKey);
        }
        if flags & !(READY | DRAINING) != 0 {
            return Err(Refusal::Malformed);
        }
        let message = Message {
            ready: flags & READY != 0,
            draining: flags & DRAINING != 0,
            epoch: bytes.u64()?,
            sequence: bytes.u64()?,
            generation: bytes.u64()?,
            objects: bytes.u64()?,
            vips: bytes.u64()?,
            announced: bytes.u32()?,
            view_age_ms: bytes.u32()?,
            node: bytes.name()?,
            macs: bytes.list(MACS_MAX, Bytes::array)?,
            prefixes: bytes.list(PREFIXES_MAX, Bytes::prefix)?,
            view: bytes.list(GATEWAYS_MAX, |bytes| Ok(Seat { id: bytes.u32()?, draining: bytes.truth()? }))?,
            echoes: bytes.list(GATEWAYS_MAX, |bytes| {
                Ok(Echo { id: bytes.u32()?, epoch: bytes.u64()?, sequence: bytes.u32()? })
            })?,
            part: bytes.part()?,
        };
        let rising = message.view.is_sorted_by(|a, b| a.id < b.id) && message.prefixes.is_sorted_by(|a, b| a < b);
        if rising && bytes.0.is_empty() { Ok(message) } else { Err(Refusal::Malformed) }
    }
}

fn counted<T>(out: &mut Vec<u8>, list: &[T], max: usize, put: impl Fn(&mut Vec<u8>, &T)) {
    let count = list.len().min(max);
    out.push(u8::try_from(count).unwrap_or(u8::MAX));
    list.iter().take(count).for_each(|entry| put(out, entry));
}

fn put_prefix(out: &mut Vec<u8>, prefix: &IpNet) {
    match prefix.network() {
        IpAddr::V4(address) => {
            out.push(prefix.prefix_len());
            out.extend(address.octets());
        }
        IpAddr::V6(address) => {
            // A length of 128 would need a ninth bit; no link has such a prefix.
            out.push(prefix.prefix_len().min(127) | V6);
            out.extend(address.octets());
        }
    }
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Refusal::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Refusal> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.array().map(u64::from_be_bytes)
    }

    fn truth(&mut self) -> Result<bool, Refusal> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Refusal::Malformed),
        }
    }

    fn list<T>(&mut self, max: usize, one: impl Fn(&mut Self) -> Result<T, Refusal>) -> Result<Vec<T>, Refusal> {
        let count = usize::from(self.u8()?);
        if count > max {
            return Err(Refusal::Malformed);
        }
        (0..count).map(|_| one(self)).collect()
    }

    fn name(&mut self) -> Result<String, Refusal> {
        let name = String::from_utf8(self.list(NAME_BYTES_MAX, Bytes::u8)?).map_err(|_| Refusal::Malformed)?;
        if name.is_empty() { Err(Refusal::Malformed) } else { Ok(name) }
    }

    fn prefix(&mut self) -> Result<IpNet, Refusal> {
        let length = self.u8()?;
        let address: IpAddr = if length & V6 == 0 { self.array::<4>()?.into() } else { self.array::<16>()?.into() };
        let prefix = IpNet::new(address, length & !V6).map_err(|_| Refusal::Malformed)?;
        if prefix.network() == address { Ok(prefix) } else { Err(Refusal::Malformed) }
    }

    fn part(&mut self) -> Result<Option<Part>, Refusal> {
        if !self.truth()? {
            return Ok(None);
        }
        let (first, last) = (self.u32()?, self.u32()?);
        let count = u16::from_be_bytes(self.array()?);
        let hashes = (0..count).map(|_| self.u32()).collect::<Result<Vec<_>, _>>()?;
        let within = hashes.iter().all(|hash| (first..=last).contains(hash));
        match first <= last && within && hashes.is_sorted_by(|a, b| a < b) {
            true => Ok(Some(Part { first, last, hashes })),
            false => Err(Refusal::Malformed),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn keys() -> Keys {
        Keys::parse("sixteen bytes or more of secret").unwrap()
    }

    fn full() -> Message {
        Message {
            node: "gw-1".into(),
            epoch: 7,
            sequence: 9,
            ready: true,
            draining: false,
            generation: 41,
            objects: 0x0123_4567_89ab_cdef,
            vips: 3,
            announced: 2,
            view_age_ms: 1500,
            macs: vec![[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 2, 1]],
            prefixes: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()],
            view: vec![Seat { id: 1, draining: false }, Seat { id: 9, draining: true }],
            echoes: vec![Echo { id: 9, epoch: 5, sequence: 77 }],
            part: Some(Part { first: 0, last: u32::MAX, hashes: vec![1, 5, u32::MAX] }),
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused() {
        let bytes = full().encode(&keys());
        assert_eq!(Message::decode(&bytes, &keys()), Ok(full()));
        for length in 0..bytes.len() {
            assert!(Message::decode(&bytes[..length], &keys()).is_err(), "cut to {length}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Message::decode(&bytes, &keys()).is_err(), "bit {bit}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Message::decode(&longer, &keys()), Err(Refusal::Malformed));
        let mut newer = bytes;
        newer[4] = 2;
        assert_eq!(Message::decode(&newer, &keys()), Err(Refusal::Version(2)));
    }

    #[test]
    fn either_of_two_keys_is_accepted_and_no_third() {
        let (old, new) = ("the old key of this set of gateways", "the new key of this set of gateways");
        let both = |first: &str, second: &str| Keys::parse(&format!("{first}\n{second}\n")).unwrap();
        let alone = |key: &str| Keys::parse(key).unwrap();
        let bytes = full().encode(&both(new, old));
        for keys in [both(old, new), both(new, old), alone(new)] {
            assert_eq!(Message::decode(&bytes, &keys), Ok(full()));
        }
        for keys in [alone(old), keys()] {
            assert_eq!(Message::decode(&bytes, &keys), Err(Refusal::WrongKey));
        }
    }

    #[test]
    fn the_fullest_message_fits_and_its_room_is_what_is_left() {
        let mut message = full();
        message.node = "n".repeat(NAME_BYTES_MAX);
        message.macs = vec![[2; 6]; MACS_MAX + 3];
        let prefix = |n: u8| format!("2001:db8:{n:x}::/64").parse().unwrap();
        message.prefixes = (0u8..).take(PREFIXES_MAX).map(prefix).collect();
        message.view = (0u32..).take(GATEWAYS_MAX).map(|id| Seat { id, draining: false }).collect();
        message.echoes = (0u32..).take(GATEWAYS_MAX).map(|id| Echo { id, epoch: 1, sequence: 1 }).collect();
        message.macs.truncate(MACS_MAX);
        let hashes: Vec<u32> = (0u32..).take(message.room()).collect();
        assert!(hashes.len() >= 8, "{}", hashes.len());
        message.part = Some(Part { first: 0, last: 1000, hashes });
        let bytes = message.encode(&keys());
        assert!(bytes.len() <= MESSAGE_BYTES_MAX && bytes.len() + 4 > MESSAGE_BYTES_MAX, "{}", bytes.len());
        assert_eq!(Message::decode(&bytes, &keys()), Ok(message));
    }

    prop_compose! {
        fn messages()(
            node in "[a-z0-9.-]{1,60}", numbers: [u64; 5], words: [u32; 2], flags: [bool; 2],
            macs in prop::collection::vec(any::<[u8; 6]>(), 0..=MACS_MAX),
            prefixes in prop::collection::btree_set((any::<[u8; 16]>(), any::<bool>(), 0u8..=32), 0..=PREFIXES_MAX),
            view in prop::collection::btree_map(any::<u32>(), any::<bool>(), 0..=GATEWAYS_MAX),
            echoes in prop::collection::vec(any::<(u32, u64, u32)>(), 0..=GATEWAYS_MAX),
            hashes in prop::option::of(prop::collection::btree_set(any::<u32>(), 0..20)),
        ) -> Message {
            let prefix = |(address, v4, length): ([u8; 16], bool, u8)| {
                let address: IpAddr = if v4 { [address[0], address[1], address[2], address[3]].into() } else { address.into() };
                IpNet::new(address, length).unwrap().trunc()
            };
            let prefixes: std::collections::BTreeSet<IpNet> = prefixes.into_iter().map(prefix).collect();
            let [epoch, sequence, generation, objects, vips] = numbers;
            Message {
                node, epoch, sequence, generation, objects, vips, macs,
                ready: flags[0], draining: flags[1], announced: words[0], view_age_ms: words[1],
                prefixes: prefixes.into_iter().collect(),
                view: view.into_iter().map(|(id, draining)| Seat { id, draining }).collect(),
                echoes: echoes.into_iter().map(|(id, epoch, sequence)| Echo { id, epoch, sequence }).collect(),
                part: hashes.map(|hashes| Part { first: 0, last: u32::MAX, hashes: hashes.into_iter().collect() }),
            }
        }
    }

    proptest! {
        #[test]
        fn decode_of_encode_is_identity(message in messages()) {
            prop_assert_eq!(Message::decode(&message.encode(&keys()), &keys()), Ok(message));
        }

        #[test]
        fn arbitrary_bytes_never_panic_even_with_the_right_tag(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::decode(&bytes, &keys());
            // What only somebody with the key could send: the parser stands alone then.
            if let Some(head) = bytes.first_chunk_mut::<5>() {
                head.copy_from_slice(b"TgHb\x01");
            }
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            if let Some(at) = bytes.get_mut(6..8) {
                at.copy_from_slice(&length);
            }
            let tag = keys().tag(&bytes);
            bytes.extend(tag);
            if let Ok(message) = Message::decode(&bytes, &keys()) {
                prop_assert_eq!(message.encode(&keys()), bytes, "one encoding only");
            }
        }
    }
}
