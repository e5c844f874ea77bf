//! VXLAN peers.
//!
//! Owns one row per peer and family with the outer headers it gets, prepared, and the exact map from (outer source, network
//! identifier) to the peer (V-015). Rows are read by index at the moment of use, so a changed peer needs no epoch. It
//! refuses to know which addresses live behind a peer: routes do.

use std::sync::Arc;

use super::exact::{ExactMap, Tagged};
use super::route::NextHops;
use super::rows::Rows;
use super::{Family, TunnelId, mapped};
use crate::wire::encap::EncapTemplate;

/// One VXLAN peer of one family. Kind: table.
#[derive(Clone, Debug)]
pub struct TunnelRow {
    /// Family of outer and inner packets.
    pub family: Family,
    /// Outer headers, prepared; the outer MACs are left zero for the neighbour to fill in.
    pub template: EncapTemplate,
    /// Outer destination in network order; IPv4 in mapped form.
    pub underlay: [u8; 16],
    /// Ways to `underlay`, chosen by flow hash; empty: no route.
    pub next_hops: NextHops,
    /// Largest inner IP packet, bytes.
    pub inner_mtu: u16,
    /// Inner destination MAC: the peer's VTEP.
    pub inner_mac: [u8; 6],
    /// Network identifier the peer receives on, 24 bits.
    pub vni: u32,
    /// Name of the peer's node.
    pub name: Arc<str>,
    /// False while the peer is gone but flows may still name it: nothing is sent to it or accepted from it.
    pub live: bool,
}

/// Peers in a chunk: their rows are long, and a gateway has one or two per node.
const PEERS_PER_CHUNK: usize = 64;

/// All peers. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct TunnelTable {
    rows: Rows<Option<TunnelRow>, PEERS_PER_CHUNK>,
    by_underlay: ExactMap<Tagged<[u8; 16]>, TunnelId>,
}

impl TunnelTable {
    /// The row of an id; `None` when vacant. Read side.
    #[inline]
    pub fn row(&self, id: TunnelId) -> Option<&TunnelRow> {
        self.rows.get(u32::from(id.0))?.as_ref()
    }

    /// The live peer that sends from this outer IPv4 source on this network (V-015). Read side.
    #[inline]
    pub fn by_underlay_v4(&self, source: &[u8; 4], vni: u32) -> Option<TunnelId> {
        self.by_underlay.get(&Tagged { address: mapped(source), tag: vni })
    }

    /// The live peer that sends from this outer IPv6 source on this network (V-015). Read side.
    #[inline]
    pub fn by_underlay_v6(&self, source: &[u8; 16], vni: u32) -> Option<TunnelId> {
        // A mapped address never stands on the wire as an IPv6 source of ours; the row's family keeps the two apart.
        self.by_underlay
            .get(&Tagged { address: *source, tag: vni })
            .filter(|id| self.row(*id).is_some_and(|row| row.family == Family::V6))
    }

    /// Every peer with its id, dead ones too.
    pub fn rows(&self) -> impl Iterator<Item = (TunnelId, &TunnelRow)> {
        let ids = (0..TunnelId::NONE.0).map(TunnelId);
        ids.zip(self.rows.iter()).filter_map(|(id, (_, row))| Some((id, row.as_ref()?)))
    }

    /// Writes a row. Build side: one chunk, and chunks of the map only if underlay, network or life changed.
    /// [`TunnelId::NONE`] is no id: nothing happens.
    pub fn set(&mut self, id: TunnelId, row: TunnelRow) {
        self.put(id, Some(row));
    }

    /// Makes an id vacant. Build side.
    pub fn clear(&mut self, id: TunnelId) {
        self.put(id, None);
    }

    fn put(&mut self, id: TunnelId, row: Option<TunnelRow>) {
        if id.is_none() {
            return;
        }
        let before = self.row(id).and_then(key);
        let after = row.as_ref().and_then(key);
        if before != after {
            // An underlay address may have moved to another id meanwhile: only our own entry goes.
            if let Some(before) = before.filter(|before| self.by_underlay.get(before) == Some(id)) {
                self.by_underlay.remove(&before);
            }
            if let Some(after) = after {
                self.by_underlay.insert(after, id);
            }
        }
        self.rows.set(u32::from(id.0), row);
    }
}

/// Where a peer is found by what it sends; a dead one is not found.
fn key(row: &TunnelRow) -> Option<Tagged<[u8; 16]>> {
    row.live.then_some(Tagged { address: row.underlay, tag: row.vni })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::table::unmapped;
    use crate::wire::encap::{Tunnel, Underlay};

    fn row(underlay: [u8; 16], vni: u32, live: bool) -> TunnelRow {
        let (family, outer) = match unmapped(&underlay) {
            Some(destination) => (Family::V4, Underlay::V4 { source: [198, 51, 100, 1], destination }),
            None => (Family::V6, Underlay::V6 { source: [0x20; 16], destination: underlay }),
        };
        let template = EncapTemplate::new(&Tunnel {
            underlay: outer,
            port: 8472,
            vni,
            source_mac: Default::default(),
            destination_mac: Default::default(),
            ttl: 64,
            dont_fragment: false,
        });
        TunnelRow {
            family,
            template,
            underlay,
            next_hops: NextHops::new(),
            inner_mtu: 1430,
            inner_mac: [2; 6],
            vni,
            name: "worker-1".into(),
            live,
        }
    }

    fn underlay(v4: bool, host: u8) -> [u8; 16] {
        if v4 { mapped(&[198, 51, 100, host]) } else { [host; 16] }
    }

    proptest! {
        /// V-015: a peer is found by outer source and network while it lives, and nobody else is.
        #[test]
        fn living_peers_are_found_by_what_they_send(
            ops in prop::collection::vec((0..5u16, prop::option::of((any::<bool>(), 0..3u8, 1..3u32, any::<bool>()))), 0..60),
        ) {
            let mut table = TunnelTable::default();
            let mut oracle = HashMap::<u16, ([u8; 16], u32, bool)>::new();
            for (id, change) in ops {
                let change = change.map(|(v4, host, vni, live)| (underlay(v4, host), vni, live));
                // One id per underlay address and network, as the compiler thread keeps it: whoever had it before goes.
                let same = |other: &([u8; 16], u32, bool)| change.is_some_and(|new| (new.0, new.1) == (other.0, other.1));
                let taken: Vec<u16> = oracle.iter().filter(|(_, other)| same(other)).map(|(id, _)| *id).collect();
                for other in taken.into_iter().filter(|other| *other != id) {
                    table.clear(TunnelId(other));
                    oracle.remove(&other);
                }
                match change {
                    Some((address, vni, live)) => {
                        table.set(TunnelId(id), row(address, vni, live));
                        oracle.insert(id, (address, vni, live));
                    }
                    None => {
                        table.clear(TunnelId(id));
                        oracle.remove(&id);
                    }
                }
            }
            let rows: HashMap<_, _> = table.rows().map(|(id, row)| (id.0, (row.underlay, row.vni, row.live))).collect();
            prop_assert_eq!(&rows, &oracle);
            for (host, vni) in (0..4).flat_map(|host| (0..4).map(move |vni| (host, vni))) {
                let expected = |address| {
                    let found = oracle.iter().find(|(_, peer)| **peer == (address, vni, true));
                    found.map(|(id, _)| TunnelId(*id))
                };
                let (v4, v6) = ([198, 51, 100, host], [host; 16]);
                prop_assert_eq!(table.by_underlay_v4(&v4, vni), expected(mapped(&v4)));
                prop_assert_eq!(table.by_underlay_v6(&v6, vni), expected(v6));
                prop_assert_eq!(table.by_underlay_v6(&mapped(&v4), vni), None, "families stay apart");
            }
        }
    }

    #[test]
    fn an_address_that_moved_to_another_peer_stays_there() {
        let mut table = TunnelTable::default();
        table.set(TunnelId(1), row([1; 16], 1, true));
        table.set(TunnelId(2), row([1; 16], 1, true));
        table.set(TunnelId(1), row([1; 16], 1, false));
        assert_eq!(table.by_underlay_v6(&[1; 16], 1), Some(TunnelId(2)));
        table.clear(TunnelId(2));
        assert_eq!(table.by_underlay_v6(&[1; 16], 1), None, "the dead one is not found again");
        table.set(TunnelId::NONE, row([1; 16], 1, true));
        assert!(table.row(TunnelId::NONE).is_none());
    }
}
