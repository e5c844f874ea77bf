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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::table::maglev::{member_key, ring_size};

    fn any_frontend() -> impl Strategy<Value = Frontend> {
        // Few values, so that frontends differ in one field only, and IPv6 ones that end as IPv4 ones do.
        let address = (0..2u8, 0..3u8).prop_map(|(family, host)| match family {
            0 => mapped(&[203, 0, 113, host]),
            _ => [0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, host],
        });
        let protocol = prop::sample::select(vec![6u8, 17]);
        (address, protocol, 80..83u16).prop_map(|(address, protocol, port)| Frontend { address, protocol, port })
    }

    proptest! {
        #[test]
        fn frontends_match_exactly(ops in prop::collection::vec((any_frontend(), prop::option::weighted(0.7, 0..9u32)), 0..80)) {
            let mut table = ServiceTable::default();
            let mut oracle = BTreeMap::new();
            for (frontend, id) in ops {
                let id = id.map(ServiceId);
                let before = match id {
                    Some(id) => table.set_frontend(frontend, id),
                    None => table.clear_frontend(&frontend),
                };
                let expected = match id {
                    Some(id) => oracle.insert(frontend, id),
                    None => oracle.remove(&frontend),
                };
                prop_assert_eq!(before, expected);
            }
            prop_assert_eq!(table.frontends().collect::<BTreeMap<_, _>>(), oracle.clone());
            prop_assert_eq!(table.frontends_len(), oracle.len());
            for host in 0..3 {
                for protocol in [6, 17, 132] {
                    for port in 79..84 {
                        let (v4, mut v6) = ([203, 0, 113, host], [0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 0]);
                        v6[15] = host;
                        let expected = |address| oracle.get(&Frontend { address, protocol, port }).copied();
                        prop_assert_eq!(table.lookup_v4(&v4, protocol, port), expected(mapped(&v4)));
                        prop_assert_eq!(table.lookup_v6(&v6, protocol, port), expected(v6));
                        prop_assert_eq!(table.lookup_v6(&mapped(&v4), protocol, port), None, "families stay apart");
                        prop_assert_eq!(table.lookup(&Frontend { address: v6, protocol, port }), expected(v6));
                    }
                }
            }
        }
    }

    /// A Service as objects tell it, before ids.
    #[derive(Clone, Debug)]
    struct Told {
        name: String,
        protocol: u8,
        port: u16,
        vips: Vec<[u8; 16]>,
        pods: Vec<([u8; 16], u16, u16)>,
        serving: u32,
    }

    fn told(n: u8) -> Told {
        let v6 = |host| [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n, host];
        let vip = |host| if n.is_multiple_of(2) { mapped(&[203, 0, n, host]) } else { v6(host) };
        let pods = (0..n % 5).map(|pod| (vip(100 + pod), 8080, 1));
        Told {
            name: format!("shop/web-{n}"),
            protocol: 6,
            port: 80 + u16::from(n),
            vips: (0..1 + n % 3).map(vip).collect(),
            pods: pods.collect(),
            serving: u32::from(n % 5),
        }
    }

    /// The table after these Services were told in this order, ids being given in that order.
    fn table_of(services: &[Told]) -> ServiceTable {
        let mut table = ServiceTable::default();
        let mut backends = 0..;
        for (id, service) in (7..).map(ServiceId).zip(services) {
            let members: Vec<_> =
                service.pods.iter().map(|(pod, port, weight)| (member_key(pod, *port), *weight)).collect();
            let row = ServiceRow {
                mode: Mode::Fullnat,
                family: super::super::family_of(&service.vips[0]),
                protocol: service.protocol,
                port: service.port,
                serving: service.serving,
                members: members.iter().map(|_| BackendId(backends.next().unwrap())).collect(),
                ring: Ring::build(&members, ring_size(members.len())).map(Arc::new),
                name: service.name.as_str().into(),
            };
            table.set_row(id, row);
            for vip in &service.vips {
                table.set_frontend(Frontend { address: *vip, protocol: service.protocol, port: service.port }, id);
            }
        }
        table
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Design 5: the order of events is forgotten.
        #[test]
        fn the_digest_is_of_objects_alone(order in Just((0..20u8).collect::<Vec<_>>()).prop_shuffle()) {
            let expected = table_of(&(0..20).map(told).collect::<Vec<_>>()).digest();
            let mut shuffled: Vec<Told> = order.iter().map(|n| told(*n)).collect();
            shuffled.iter_mut().for_each(|service| service.pods.reverse());
            prop_assert_eq!(table_of(&shuffled).digest(), expected);
            let mut table = table_of(&shuffled);
            // A Service that came and went leaves nothing.
            let passing = Frontend { address: [9; 16], protocol: 17, port: 53 };
            table.set_row(ServiceId(900), table.row(ServiceId(7)).unwrap().clone());
            table.set_frontend(passing, ServiceId(900));
            prop_assert_ne!(table.digest(), expected);
            table.clear_frontend(&passing);
            table.clear_row(ServiceId(900));
            prop_assert_eq!(table.digest(), expected);
        }
    }

    #[test]
    fn the_digest_tells_every_difference() {
        let base: Vec<Told> = (0..6).map(told).collect();
        let digest = table_of(&base).digest();
        let change = |edit: &dyn Fn(&mut Told)| {
            let mut services = base.clone();
            edit(&mut services[4]);
            table_of(&services).digest()
        };
        let changed = [
            change(&|service| service.name.push('x')),
            change(&|service| service.protocol = 17),
            change(&|service| service.port += 1),
            change(&|service| service.vips.truncate(1)),
            change(&|service| service.vips[0][15] ^= 1),
            change(&|service| service.pods[0].0[15] ^= 1),
            change(&|service| service.pods[0].1 += 1),
            change(&|service| service.pods[0].2 = 5),
            change(&|service| service.pods.clear()),
            change(&|service| service.serving += 1),
        ];
        assert_eq!(changed.len(), changed.iter().collect::<std::collections::HashSet<_>>().len());
        assert!(!changed.contains(&digest));
        assert_eq!(ServiceTable::default().digest(), 0);
    }

    #[test]
    fn a_row_picks_a_member_or_none() {
        let table = table_of(&[told(4), told(5)]);
        let row = table.row(ServiceId(7)).unwrap();
        let picked: std::collections::BTreeSet<_> = (0..100u64).filter_map(|n| row.pick(n << 57)).collect();
        assert_eq!(picked.into_iter().collect::<Vec<_>>(), row.members.to_vec());
        // S-070: no endpoint, no pick.
        assert_eq!(table.row(ServiceId(8)).unwrap().pick(1), None);
        assert!(table.row(ServiceId(9)).is_none() && table.row(ServiceId::NONE).is_none());
        assert_eq!(table.rows().map(|(id, _)| id.0).collect::<Vec<_>>(), [7, 8]);
    }

    #[test]
    fn a_row_fits_its_budget() {
        // 50,000 Services × 10 endpoints ≤ 100 MB (design 10) leaves no room for fat rows.
        const { assert!(size_of::<Option<ServiceRow>>() <= 64) };
    }
}
