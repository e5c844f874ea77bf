//! The pinhole's maps as this side writes them: keys as the program builds them, and only the differences.

use std::collections::{BTreeMap, BTreeSet};
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

    pub(super) fn add(&mut self, wanted: &BTreeMap<Vec<u8>, u32>) -> io::Result<()> {
        for (key, value) in wanted {
            if self.known.get(key) != Some(value) {
                self.map.update(key, &value.to_ne_bytes(), MapFlags::ANY).map_err(|cause| self.full(&cause))?;
                self.known.insert(key.clone(), *value);
            }
        }
        Ok(())
    }

    pub(super) fn remove_all_but(&mut self, wanted: &BTreeMap<Vec<u8>, u32>) -> io::Result<()> {
        let gone: Vec<Vec<u8>> = self.known.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in gone {
            match self.map.delete(&key) {
                Err(cause) if cause.kind() != libbpf_rs::ErrorKind::NotFound => return Err(error(cause)),
                _ => self.known.remove(&key),
            };
        }
        Ok(())
    }

    fn full(&self, cause: &libbpf_rs::Error) -> io::Error {
        let (name, most) = (self.map.name().to_string_lossy(), self.map.max_entries());
        io::Error::other(format!("map {name} of the pinhole (at most {most} entries): {cause}"))
    }
}

/// Keys and values of a trie whose lookup yields the flags of every prefix that contains an address.
///
/// The kernel's longest match finds one entry, so each entry carries the flags of the shorter ones around it.
pub(super) fn trie(prefixes: &BTreeMap<(u8, Vec<u8>), u32>) -> BTreeMap<Vec<u8>, u32> {
    let lengths: BTreeSet<u8> = prefixes.keys().map(|(length, _)| *length).collect();
    let mut entries = BTreeMap::new();
    for (length, bytes) in prefixes.keys() {
        let around =
            lengths.range(..=length).filter_map(|shorter| prefixes.get(&(*shorter, masked(bytes.clone(), *shorter))));
        let flags = around.fold(0, |flags, more| flags | more);
        let key = [&u32::from(*length).to_ne_bytes()[..], bytes].concat();
        entries.insert(key, flags);
    }
    entries
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
            let entries = trie(&prefixes);
            let longest = (0u8..=32).rev().find_map(|length| {
                let key = [&u32::from(length).to_ne_bytes()[..], &masked(address.to_vec(), length)].concat();
                entries.get(&key).copied()
            });
            prop_assert_eq!(longest.unwrap_or(0), expected);
        }
    }
}
