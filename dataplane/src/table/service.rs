//! Frontends and the Service behind each.
//!
//! Owns two exact maps, one per family, from (address, protocol, port) to a [`ServiceId`], and the rows those ids mean. One
//! row stands for one Service port of one family; all VIPs of that family point to it. It refuses to know how eligible
//! endpoints were chosen and what becomes of a packet.

use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::exact::{ExactMap, Tagged};
use super::maglev::Ring;
use super::rows::Rows;
use super::{BackendId, Family, ServiceId, mapped, unmapped};

/// One address, protocol and port that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// VIP in network order; IPv4 in mapped form.
    pub address: [u8; 16],
    /// IANA protocol number.
    pub protocol: u8,
    /// Port at the VIP, host order.
    pub port: u16,
}

/// How packets reach a backend (design 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Destination and source translated; replies come back through this gateway.
    Fullnat,
}

impl Mode {
    /// The name the contract uses.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Fullnat => "fullnat",
        }
    }
}

/// One Service port of one family. Kind: table.
#[derive(Clone, Debug)]
pub struct ServiceRow {
    /// How packets reach a backend.
    pub mode: Mode,
    /// Family of VIPs and members.
    pub family: Family,
    /// IANA protocol number.
    pub protocol: u8,
    /// Port at the VIPs, host order.
    pub port: u16,
    /// Endpoints still serving, draining ones included; at 0 a UDP flow keeps its backend (S-102).
    pub serving: u32,
    /// Endpoints of `ring`, in the order its picks count: sorted by [`super::maglev::member_key`].
    pub members: Arc<[BackendId]>,
    /// Choice among `members`; `None` when there is no eligible one (S-070).
    pub ring: Option<Arc<Ring>>,
    /// `namespace/name` of the Service.
    pub name: Arc<str>,
}

impl ServiceRow {
    /// The member for a flow hash ([`super::maglev::flow_hash`]); `None` without eligible endpoints (S-070). Read side.
    #[inline]
    pub fn pick(&self, hash: u64) -> Option<BackendId> {
        self.members.get(self.ring.as_ref()?.pick(hash)).copied()
    }
}

/// All frontends and Services. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    frontends_v4: ExactMap<Tagged<[u8; 4]>, ServiceId>,
    frontends_v6: ExactMap<Tagged<[u8; 16]>, ServiceId>,
    rows: Rows<Option<ServiceRow>>,
}

impl ServiceTable {
    /// The Service at an IPv4 frontend. Read side.
    #[inline]
    pub fn lookup_v4(&self, address: &[u8; 4], protocol: u8, port: u16) -> Option<ServiceId> {
        self.frontends_v4.get(&Tagged { address: *address, tag: tag(protocol, port) })
    }

    /// The Service at an IPv6 frontend. Read side.
    #[inline]
    pub fn lookup_v6(&self, address: &[u8; 16], protocol: u8, port: u16) -> Option<ServiceId> {
        self.frontends_v6.get(&Tagged { address: *address, tag: tag(protocol, port) })
    }

    /// The Service at a frontend of either family.
    pub fn lookup(&self, frontend: &Frontend) -> Option<ServiceId> {
        match unmapped(&frontend.address) {
            Some(address) => self.lookup_v4(&address, frontend.protocol, frontend.port),
            None => self.lookup_v6(&frontend.address, frontend.protocol, frontend.port),
        }
    }

    /// The row of an id; `None` when vacant. Read side.
    #[inline]
    pub fn row(&self, id: ServiceId) -> Option<&ServiceRow> {
        self.rows.get(id.0)?.as_ref()
    }

    /// Every frontend with its Service, IPv4 first, in no order that means anything.
    pub fn frontends(&self) -> impl Iterator<Item = (Frontend, ServiceId)> {
        let v4 = self.frontends_v4.iter().map(|(key, id)| (frontend(mapped(&key.address), key.tag), id));
        let v6 = self.frontends_v6.iter().map(|(key, id)| (frontend(key.address, key.tag), id));
        v4.chain(v6)
    }

    /// Every Service row with its id.
    pub fn rows(&self) -> impl Iterator<Item = (ServiceId, &ServiceRow)> {
        self.rows.iter().filter_map(|(id, row)| Some((ServiceId(id), row.as_ref()?)))
    }

    /// Frontends of both families.
    pub fn frontends_len(&self) -> usize {
        self.frontends_v4.len() + self.frontends_v6.len()
    }

    /// Points a frontend at a Service and returns the one it had. Build side: one or two chunks.
    pub fn set_frontend(&mut self, frontend: Frontend, id: ServiceId) -> Option<ServiceId> {
        let tag = tag(frontend.protocol, frontend.port);
        match unmapped(&frontend.address) {
            Some(address) => self.frontends_v4.insert(Tagged { address, tag }, id),
            None => self.frontends_v6.insert(Tagged { address: frontend.address, tag }, id),
        }
    }

    /// Removes a frontend and returns the Service it had. Build side: one chunk, rarely more.
    pub fn clear_frontend(&mut self, frontend: &Frontend) -> Option<ServiceId> {
        self.set_frontend(*frontend, ServiceId::NONE)
    }

    /// Writes a Service row. Build side: one chunk.
    pub fn set_row(&mut self, id: ServiceId, row: ServiceRow) {
        self.rows.set(id.0, Some(row));
    }

    /// Makes an id vacant. Its frontends must have gone before, or they lead nowhere. Build side: one chunk.
    pub fn clear_row(&mut self, id: ServiceId) {
        self.rows.clear(id.0);
    }

    /// A number that two gateways have in common when they were told the same objects, in whatever order (design 5): which
    /// frontends exist, which Service port answers each, and how flows spread over its endpoints. Ids do not enter, since
    /// they follow the order of events. Walks everything: for a report now and then, not for each publish.
    pub fn digest(&self) -> u64 {
        // Addition forgets the order in which ids were given out; every term is keyed by its own whole content.
        let rows = self.rows().map(|(_, row)| row_digest(row));
        let frontends = self.frontends().filter_map(|(frontend, id)| {
            let mut hasher = SipHasher13::new_with_key(b"tidegate vip+svc");
            hasher.write(&frontend.address);
            hasher.write(&[frontend.protocol]);
            hasher.write(&frontend.port.to_be_bytes());
            hasher.write(&row_digest(self.row(id)?).to_be_bytes());
            Some(hasher.finish())
        });
        rows.chain(frontends).fold(0, u64::wrapping_add)
    }
}

fn row_digest(row: &ServiceRow) -> u64 {
    let mut hasher = SipHasher13::new_with_key(b"tidegate service");
    hasher.write(row.name.as_bytes());
    // The name is the one part of variable length: no other row can end it elsewhere.
    hasher.write(&[0xff, row.protocol, u8::from(row.family == Family::V6)]);
    hasher.write(row.mode.name().as_bytes());
    hasher.write(&row.port.to_be_bytes());
    hasher.write(&row.serving.to_be_bytes());
    hasher.write(&row.ring.as_ref().map_or(0, |ring| ring.digest()).to_be_bytes());
    hasher.finish()
}

#[inline]
fn tag(protocol: u8, port: u16) -> u32 {
    u32::from(protocol) << 16 | u32::from(port)
}

fn frontend(address: [u8; 16], tag: u32) -> Frontend {
    let [_, protocol, high, low] = tag.to_be_bytes();
    Frontend { address, protocol, port: u16::from_be_bytes([high, low]) }
}
