//! Pods: whose an overlay address is, and what follows from that.
//!
//! Owns one row per address of a pod that some policy selects, found by that address. It refuses to know names (those are
//! the compiler's) and which flows a pod has. A pod's row stands beside a row of [`super::backend`], whose epoch its flows
//! remember: it moves whenever anything that decides about the pod's traffic does.
//!
//! A pod that changes costs one or two chunks of rows and keys, whatever the number of pods.

use std::sync::Arc;

use super::exact::ExactMap;
use super::rows::Rows;
use super::{BackendId, EgressId, PodId, ServiceId, mapped, unmapped};

/// The Service port that pods are endpoints of among backends: one that no Service has.
pub const NO_SERVICE: ServiceId = ServiceId(u32::MAX - 1);

/// One address of a pod. Kind: table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRow {
    /// The row whose epoch its flows remember, and under whose number they are counted; none: the row is vacant.
    pub backend: BackendId,
    /// Number of its namespace, dense from 0.
    pub namespace: u32,
    /// What network policies know it as; 0: no policy looks at it.
    pub identity: u32,
    /// Egress policies that select it, first choice first; empty: none does.
    pub egress: Arc<[EgressId]>,
}

/// All pods. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct PodTable {
    v4: ExactMap<[u8; 4], PodId>,
    v6: ExactMap<[u8; 16], PodId>,
    rows: Rows<PodRow>,
}

impl PodTable {
    /// The pod of an IPv4 address. Read side.
    #[inline]
    pub fn pod_v4(&self, address: &[u8; 4]) -> Option<&PodRow> {
        self.row(self.v4.get(address)?)
    }

    /// The pod of an IPv6 address. Read side.
    #[inline]
    pub fn pod_v6(&self, address: &[u8; 16]) -> Option<&PodRow> {
        self.row(self.v6.get(address)?)
    }

    /// The pod of an address in mapped form.
    pub fn pod(&self, address: &[u8; 16]) -> Option<&PodRow> {
        match unmapped(address) {
            Some(address) => self.pod_v4(&address),
            None => self.pod_v6(address),
        }
    }

    fn row(&self, id: PodId) -> Option<&PodRow> {
        self.rows.get(id.0).filter(|row| !row.backend.is_none())
    }

    /// Every pod's row with its address in mapped form.
    pub fn rows(&self) -> impl Iterator<Item = ([u8; 16], &PodRow)> {
        let all = self.v4.iter().map(|(address, id)| (mapped(&address), id)).chain(self.v6.iter());
        all.filter_map(|(address, id)| Some((address, self.row(id)?)))
    }

    /// Addresses of pods.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether no pod is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Chunks of keys and of rows that `before` does not have: what the edits since have copied.
    pub fn chunks_copied(&self, before: &Self) -> usize {
        self.v4.chunks_copied(&before.v4) + self.v6.chunks_copied(&before.v6) + self.rows.chunks_copied(&before.rows)
    }

    /// Gives an address (mapped form) the row `id`, with this in it. Build side: a few chunks.
    pub fn set(&mut self, address: &[u8; 16], id: PodId, row: PodRow) {
        self.rows.set(id.0, row);
        match unmapped(address) {
            Some(address) => self.v4.insert(address, id),
            None => self.v6.insert(*address, id),
        };
    }

    /// Takes the row from an address (mapped form); its id may be given to another. Build side: a few chunks.
    pub fn remove(&mut self, address: &[u8; 16]) {
        let id = match unmapped(address) {
            Some(address) => self.v4.remove(&address),
            None => self.v6.remove(address),
        };
        if let Some(id) = id {
            self.rows.clear(id.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(backend: u32) -> PodRow {
        PodRow { backend: BackendId(backend), namespace: 3, identity: 0, egress: [EgressId(1)].into() }
    }

    #[test]
    fn pods_are_found_by_either_address_and_a_change_copies_little() {
        let mut table = PodTable::default();
        let v6 = [0x20; 16];
        table.set(&mapped(&[10, 0, 0, 1]), PodId(0), row(7));
        table.set(&v6, PodId(1), row(8));
        assert_eq!(table.pod_v4(&[10, 0, 0, 1]), Some(&row(7)));
        assert_eq!((table.pod(&v6), table.len()), (Some(&row(8)), 2));
        for n in 0..50_000u32 {
            let [_, b, c, d] = n.to_be_bytes();
            table.set(&mapped(&[10, b + 1, c, d]), PodId(n + 2), row(n));
        }
        let before = table.clone();
        table.set(&mapped(&[10, 1, 0, 0]), PodId(2), row(9));
        assert!(table.chunks_copied(&before) <= 3);
        table.remove(&v6);
        assert_eq!((table.pod(&v6), before.pod(&v6)), (None, Some(&row(8))));
    }
}
