//! The pinhole's maps as this side writes them: keys as the program builds them, and only the differences.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::error;

/// A kernel map and what is known to be in it.
#[derive(Debug)]
pub(super) struct Table {
    map: MapHandle,
    known: BTreeMap<Vec<u8>, u32>,
}

impl Table {
    /// Reads what an earlier process left in the map.
    pub(super) fn read(map: MapHandle) -> io::Result<Table> {
        let mut known = BTreeMap::new();
        for key in map.keys() {
            let value = map.lookup(&key, MapFlags::ANY).map_err(error)?;
            // A value that cannot be read differs from all wanted ones, so it will be written again.
            known.insert(key, value.and_then(|bytes| bytes.try_into().ok()).map_or(u32::MAX, u32::from_ne_bytes));
        }
        Ok(Table { map, known })
    }

    pub(super) fn map(&self) -> &MapHandle {
        &self.map
    }

    pub(super) fn add(&mut self, wanted: &BTreeMap<Vec<u8>, u32>) -> io::Result<()> {
        wanted.iter().try_for_each(|(key, value)| self.write(key.clone(), Some(*value)))
    }

    pub(super) fn remove_all_but(&mut self, wanted: &BTreeMap<Vec<u8>, u32>) -> io::Result<()> {
        let gone: Vec<Vec<u8>> = self.known.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        gone.into_iter().try_for_each(|key| self.write(key, None))
    }

    /// Gives `key` a value or, with `None`, takes it out; nothing is done where that is so already.
    pub(super) fn write(&mut self, key: Vec<u8>, value: Option<u32>) -> io::Result<()> {
        match value {
            _ if self.known.get(&key).copied() == value => {}
            Some(value) => {
                self.map.update(&key, &value.to_ne_bytes(), MapFlags::ANY).map_err(|cause| self.full(&cause))?;
                self.known.insert(key, value);
            }
            None => {
                match self.map.delete(&key) {
                    Err(cause) if cause.kind() != libbpf_rs::ErrorKind::NotFound => return Err(error(cause)),
                    _ => self.known.remove(&key),
                };
            }
        }
        Ok(())
    }

    fn full(&self, cause: &libbpf_rs::Error) -> io::Error {
        let (name, most) = (self.map.name().to_string_lossy(), self.map.max_entries());
        io::Error::other(format!("map {name} of the pinhole (at most {most} entries): {cause}"))
    }
}

/// A prefix: its length in bits, and its address with the host bits cleared.
type Prefix = (u8, Vec<u8>);

/// Prefixes of one family with the flags that were asked for.
///
/// The kernel's longest match finds one entry, so each entry of the trie carries the flags of the shorter prefixes around
/// it as well as its own.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    flags: BTreeMap<Prefix, u32>,
    /// How many there are of each length: few lengths, so that few shorter prefixes can lie around one.
    lengths: BTreeMap<u8, usize>,
}

impl Prefixes {
    pub(super) fn new(flags: BTreeMap<Prefix, u32>) -> Prefixes {
        let mut lengths = BTreeMap::new();
        flags.keys().for_each(|(length, _)| *lengths.entry(*length).or_default() += 1);
        Prefixes { flags, lengths }
    }

    /// All keys and values of the trie.
    pub(super) fn trie(&self) -> BTreeMap<Vec<u8>, u32> {
        self.flags.keys().map(|prefix| (key(prefix), self.around(prefix))).collect()
    }

    /// Gives a prefix other flags (`None`: it goes) and returns what the trie must be told.
    pub(super) fn set(&mut self, prefix: Prefix, flags: Option<u32>) -> Vec<(Vec<u8>, Option<u32>)> {
        let (length, bits) = (prefix.0, prefix.1.len() * 8);
        let before = match flags {
            Some(flags) => self.flags.insert(prefix.clone(), flags),
            None => self.flags.remove(&prefix),
        };
        if before.is_none() && flags.is_some() {
            *self.lengths.entry(length).or_default() += 1;
        } else if before.is_some() && flags.is_none() {
            let count = self.lengths.entry(length).or_default();
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
        let mut writes = vec![(key(&prefix), flags.map(|_| self.around(&prefix)))];
        if usize::from(length) < bits {
            // Longer prefixes inside carry these flags too.
            let longer = self.flags.range((length + 1, Vec::new())..).map(|(prefix, _)| prefix);
            let inside = longer.filter(|(_, bytes)| masked(bytes.clone(), length) == prefix.1);
            writes.extend(inside.map(|inside| (key(inside), Some(self.around(inside)))));
        }
        writes
    }

    /// Flags of a prefix and of every shorter one that contains it.
    fn around(&self, (length, bytes): &Prefix) -> u32 {
        let shorter = self.lengths.range(..=length).map(|(shorter, _)| (*shorter, masked(bytes.clone(), *shorter)));
        shorter.filter_map(|prefix| self.flags.get(&prefix)).fold(0, |flags, more| flags | more)
    }
}

/// `struct bpf_lpm_trie_key`: the length in the machine's order, then the address.
fn key((length, bytes): &Prefix) -> Vec<u8> {
    [&u32::from(*length).to_ne_bytes()[..], bytes].concat()
}

/// `bytes` with everything after the first `length` bits cleared.
pub(super) fn masked(mut bytes: Vec<u8>, length: u8) -> Vec<u8> {
    let whole = usize::from(length / 8);
    for (index, byte) in bytes.iter_mut().enumerate().skip(whole) {
        *byte &= if index == whole { !(0xff_u8 >> (length % 8)) } else { 0 };
    }
    bytes
}

/// `struct endpoint`: the address as IPv6, the port in network order, the protocol, padding.
pub(super) fn endpoint_key(address: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    let address: Ipv6Addr = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    [&address.octets()[..], &port.to_be_bytes(), &[protocol, 0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(masked(vec![255, 255, 255, 255], 0), [0, 0, 0, 0]);
        assert_eq!(masked(vec![255, 255, 255, 255], 12), [255, 0xf0, 0, 0]);
        assert_eq!(masked(vec![255, 255, 255, 255], 24), [255, 255, 255, 0]);
        assert_eq!(masked(vec![255, 255, 255, 255], 32), [255, 255, 255, 255]);
    }

    #[test]
    fn endpoints_are_keyed_as_the_program_builds_them() {
        let key = endpoint_key("192.0.2.1".parse().unwrap(), 17, 8472);
        assert_eq!(key, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1, 0x21, 0x18, 17, 0]);
    }

    proptest! {
        /// The oracle adds up the flags of all prefixes that contain the address; the trie gets one longest match.
        #[test]
        fn one_longest_match_yields_the_flags_of_all_prefixes(
            prefixes in prop::collection::btree_map((0u8..=32, 0u8..4), 1u32..4, 0..12),
            address in prop::array::uniform4(0u8..4),
        ) {
            let prefixes: BTreeMap<(u8, Vec<u8>), u32> =
                prefixes.into_iter().map(|((length, byte), flags)| ((length, masked(vec![byte; 4], length)), flags)).collect();
            let contains = |length: u8, bytes: &[u8]| masked(address.to_vec(), length) == bytes;
            let expected = prefixes.iter().filter(|((length, bytes), _)| contains(*length, bytes)).fold(0, |sum, (_, flags)| sum | flags);
            let entries = Prefixes::new(prefixes.clone()).trie();
            let longest = (0u8..=32).rev().find_map(|length| {
                let key = [&u32::from(length).to_ne_bytes()[..], &masked(address.to_vec(), length)].concat();
                entries.get(&key).copied()
            });
            prop_assert_eq!(longest.unwrap_or(0), expected);
        }

        /// Whatever comes and goes, in whatever order: the trie is what it would be had all been asked for at once.
        #[test]
        fn changes_one_by_one_make_the_same_trie(
            steps in prop::collection::vec((
                prop::sample::select(vec![0u8, 8, 12, 24, 31, 32]),
                0u8..4,
                prop::option::weighted(0.7, 1u32..4),
            ), 0..40),
        ) {
            let (mut prefixes, mut kernel) = (Prefixes::default(), BTreeMap::new());
            let mut asked = BTreeMap::new();
            for (length, byte, flags) in steps {
                let prefix = (length, masked(vec![byte; 4], length));
                for (key, value) in prefixes.set(prefix.clone(), flags) {
                    match value {
                        Some(value) => drop(kernel.insert(key, value)),
                        None => drop(kernel.remove(&key)),
                    }
                }
                match flags {
                    Some(flags) => drop(asked.insert(prefix, flags)),
                    None => drop(asked.remove(&prefix)),
                }
                prop_assert_eq!(&kernel, &Prefixes::new(asked.clone()).trie());
            }
        }
    }
}
