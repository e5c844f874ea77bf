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

/// All peers. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct TunnelTable {
    rows: Rows<Option<TunnelRow>>,
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
