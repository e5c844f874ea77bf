//! Source addresses for translation.
//!
//! Owns the lists of reserved addresses that `fullnat` translates clients to, and the range of ports at each. It refuses to
//! know which ports are in use: that is state of the worker that owns them.

use std::sync::Arc;

/// Lowest translated source port: never a privileged one (N-004).
pub const PORT_MIN: u16 = 1024;

/// Highest translated source port.
pub const PORT_MAX: u16 = 65535;

/// Ports of one source address towards one backend port: 64,512.
pub const PORTS_PER_SOURCE: u32 = PORT_MAX as u32 - PORT_MIN as u32 + 1;
const _: () = assert!(PORTS_PER_SOURCE == 64_512);

/// Reserved source addresses. Kind: table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatTable {
    /// IPv4 addresses in network order, sorted.
    pub sources_v4: Arc<[[u8; 4]]>,
    /// IPv6 addresses in network order, sorted.
    pub sources_v6: Arc<[[u8; 16]]>,
}

impl NatTable {
    /// A table of these addresses, sorted, each once: equal on gateways told the same (design 5).
    pub fn new(v4: impl IntoIterator<Item = [u8; 4]>, v6: impl IntoIterator<Item = [u8; 16]>) -> Self {
        NatTable { sources_v4: distinct(v4), sources_v6: distinct(v6) }
    }
}

fn distinct<A: Ord>(addresses: impl IntoIterator<Item = A>) -> Arc<[A]> {
    let mut addresses: Vec<A> = addresses.into_iter().collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_sorted_and_distinct_in_both_families() {
        let table = NatTable::new([[10, 0, 0, 2], [10, 0, 0, 1], [10, 0, 0, 2]], [[2; 16], [1; 16], [1; 16]]);
        assert_eq!(*table.sources_v4, [[10, 0, 0, 1], [10, 0, 0, 2]]);
        assert_eq!(*table.sources_v6, [[1; 16], [2; 16]]);
        assert_eq!(table, NatTable::new([[10, 0, 0, 1], [10, 0, 0, 2]], [[1; 16], [2; 16]]));
    }
}
