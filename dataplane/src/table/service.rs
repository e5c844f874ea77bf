//! Services: who answers at each frontend, and with which endpoints.
//!
//! Owns the frontends ([`super::frontend`]) and the rows their ids mean. One row stands for one Service port of one family;
//! all frontends of that port and family point to it, whatever their kind. It refuses to know how eligible endpoints were
//! chosen and what becomes of a packet.
//!
//! What a Service asks for beyond an even spread over its endpoints is in its [`Terms`], behind one pointer: most Services
//! have none, and a row is one cache line.

use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::frontend::Frontends;
pub use super::frontend::{Frontend, FrontendKind, PrefixFrontend, Served};
use super::gatepolicy::Gate;
use super::maglev::Ring;
use super::rows::Rows;
use super::terms::Terms;
use super::{BackendId, Family, ServiceId};

/// How packets reach a backend (design 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Destination and source translated; replies come back through this gateway.
    Fullnat,
    /// Destination translated, source kept; the node sends replies back through this gateway.
    Symmetric,
    /// The VIP kept: the packet goes to a node that has an endpoint, which answers the client itself.
    NodeDsr,
}

impl Mode {
    /// The name the contract uses.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Fullnat => "fullnat",
            Mode::Symmetric => "symmetric",
            Mode::NodeDsr => "node-dsr",
        }
    }
}

/// Endpoints to choose from. Kind: table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSet {
    /// Endpoints of `ring`, in the order its picks count: sorted by [`super::maglev::member_key`].
    pub members: Arc<[BackendId]>,
    /// Choice among `members`; `None` when there is no eligible one (S-070).
    pub ring: Option<Arc<Ring>>,
}

impl EndpointSet {
    /// The member for a hash ([`super::maglev::flow_hash`]); `None` without eligible endpoints (S-070). Read side.
    #[inline]
    pub fn pick(&self, hash: u64) -> Option<BackendId> {
        self.members.get(self.ring.as_ref()?.pick(hash)).copied()
    }

    /// Whether no member takes new flows.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ring.is_none()
    }
}

/// One Service port of one family. Kind: table.
#[derive(Clone, Debug)]
pub struct ServiceRow {
    /// How packets reach a backend.
    pub mode: Mode,
    /// Family of frontends and members.
    pub family: Family,
    /// IANA protocol number.
    pub protocol: u8,
    /// Port at the VIPs, host order; 0: every port.
    pub port: u16,
    /// Endpoints still serving, draining ones included; at 0 a UDP flow keeps its backend (S-102).
    pub serving: u32,
    /// The Cluster set (S-043): all endpoints, by [`tidegate_api::resource::Backend::weight`].
    pub cluster: EndpointSet,
    /// What the Service asks for beyond an even spread over `cluster`; `None`: nothing.
    pub terms: Option<Arc<Terms>>,
    /// `namespace/name` of the Service.
    pub name: Arc<str>,
}

/// Rows in a chunk. A copy of a row counts three references, and one of the spine counts one for each chunk; with 50,000
/// rows, 128 in a chunk make the fewest of both together.
const ROWS_PER_CHUNK: usize = 128;

/// All frontends and Services. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    frontends: Frontends,
    rows: Rows<Option<ServiceRow>, ROWS_PER_CHUNK>,
    /// Nodes that have endpoints, same index as `rows`, where `node-dsr` was asked for.
    nodes: Rows<Option<Arc<EndpointSet>>>,
    /// What gateway policies say of clients, same index as `rows`.
    gates: Rows<Option<Arc<Gate>>>,
    /// Rows with a gate.
    gated: u32,
    /// Rows whose clients meet one worker each: those with affinity, those whose gate limits sources, those that keep clients'
    /// addresses.
    sticky: u32,
    /// Whether any row ever kept its clients' addresses: flows that began then go on.
    was_symmetric: bool,
}

impl ServiceTable {
    /// Who answers at an IPv4 address. Read side.
    #[inline]
    pub fn lookup_v4(&self, address: &[u8; 4], protocol: u8, port: u16) -> Option<Served> {
        self.frontends.lookup_v4(address, protocol, port)
    }

    /// Who answers at an IPv6 address. Read side.
    #[inline]
    pub fn lookup_v6(&self, address: &[u8; 16], protocol: u8, port: u16) -> Option<Served> {
        self.frontends.lookup_v6(address, protocol, port)
    }

    /// The Service entered for exactly this frontend, of either family.
    pub fn lookup(&self, frontend: &Frontend) -> Option<ServiceId> {
        self.frontends.get(frontend).map(|served| served.service)
    }

    /// The row of an id; `None` when vacant. Read side.
    #[inline]
    pub fn row(&self, id: ServiceId) -> Option<&ServiceRow> {
        self.rows.get(id.0)?.as_ref()
    }

    /// The nodes that have an endpoint, where `node-dsr` was asked for; those whose way is not proven have no share of the
    /// ring. They are chosen from when the row's mode is [`Mode::NodeDsr`]. Read side.
    #[inline]
    pub fn nodes(&self, id: ServiceId) -> Option<&EndpointSet> {
        self.nodes.get(id.0)?.as_deref()
    }

    /// What gateway policies say of clients of this row. Read side, slow path.
    #[inline]
    pub fn gate(&self, id: ServiceId) -> Option<&Gate> {
        self.gates.get(id.0)?.as_deref()
    }

    /// Whether any row has a gate: without one nobody need ask [`ServiceTable::gate`]. Read side.
    #[inline]
    pub fn any_gate(&self) -> bool {
        self.gated > 0
    }

    /// Whether any Service has affinity or limits its sources: without one nobody need ask [`ServiceTable::is_sticky_v4`].
    /// Read side.
    #[inline]
    pub fn any_sticky(&self) -> bool {
        self.sticky > 0
    }

    /// Whether answers of pods may be to clients whose address was kept, now or when their flow began. Read side.
    #[inline]
    pub fn any_symmetric(&self) -> bool {
        self.was_symmetric
    }

    /// Whether all connections of a client to this IPv4 address, protocol and port must meet one worker: the Service there
    /// has affinity, limits its sources or keeps the client's address. Read side.
    #[inline]
    pub fn is_sticky_v4(&self, address: &[u8; 4], protocol: u8, port: u16) -> bool {
        self.any_sticky() && self.is_sticky(self.lookup_v4(address, protocol, port))
    }

    /// As [`ServiceTable::is_sticky_v4`] for IPv6.
    #[inline]
    pub fn is_sticky_v6(&self, address: &[u8; 16], protocol: u8, port: u16) -> bool {
        self.any_sticky() && self.is_sticky(self.lookup_v6(address, protocol, port))
    }

    fn is_sticky(&self, served: Option<Served>) -> bool {
        served.is_some_and(|served| {
            self.row(served.service).is_some_and(is_sticky) || self.gate(served.service).is_some_and(Gate::limits)
        })
    }

    /// All frontends.
    pub fn frontends(&self) -> &Frontends {
        &self.frontends
    }

    /// Every Service row with its id.
    pub fn rows(&self) -> impl Iterator<Item = (ServiceId, &ServiceRow)> {
        self.rows.iter().filter_map(|(id, row)| Some((ServiceId(id), row.as_ref()?)))
    }

    /// Chunks of rows that `before` does not have: what the edits since have copied.
    pub fn chunks_copied(&self, before: &Self) -> usize {
        self.rows.chunks_copied(&before.rows)
    }

    /// Frontends of both families that are one address.
    pub fn frontends_len(&self) -> usize {
        self.frontends.len()
    }

    /// Points a frontend at a Service and returns the one it had. Build side: one or two chunks.
    pub fn set_frontend(&mut self, frontend: Frontend, kind: FrontendKind, id: ServiceId) -> Option<ServiceId> {
        self.frontends.set(frontend, Some(Served { service: id, kind })).map(|before| before.service)
    }

    /// Removes a frontend and returns the Service it had. Build side: one chunk, rarely more.
    pub fn clear_frontend(&mut self, frontend: &Frontend) -> Option<ServiceId> {
        self.frontends.set(*frontend, None).map(|before| before.service)
    }

    /// Points a prefix at a Service (`None`: at nobody) and returns the one it had. Prefixes are VIPs. Build side.
    pub fn set_prefix(&mut self, frontend: PrefixFrontend, id: Option<ServiceId>) -> Option<ServiceId> {
        let served = id.map(|service| Served { service, kind: FrontendKind::Vip });
        self.frontends.set_prefix(frontend, served).map(|before| before.service)
    }

    /// Writes a Service row; its mode becomes what follows from the nodes that are there. Build side: one chunk.
    pub fn set_row(&mut self, id: ServiceId, row: ServiceRow) {
        let row = ServiceRow { mode: mode(row.mode, self.nodes(id)), ..row };
        self.sticky = self.sticky + u32::from(is_sticky(&row)) - u32::from(self.row(id).is_some_and(is_sticky));
        self.was_symmetric |= is_symmetric(&row);
        self.rows.set(id.0, Some(row));
    }

    /// Writes the nodes of a row that is there, and makes its mode what follows from them. Build side: two chunks.
    pub fn set_nodes(&mut self, id: ServiceId, nodes: Option<EndpointSet>) {
        let mode = |row: &ServiceRow| mode(row.mode, nodes.as_ref());
        if let Some(row) = self.row(id).filter(|row| row.mode != mode(row)).cloned() {
            self.rows.set(id.0, Some(ServiceRow { mode: mode(&row), ..row }));
        }
        if nodes.is_some() || self.nodes(id).is_some() {
            self.nodes.set(id.0, nodes.map(Arc::new));
        }
    }

    /// Writes what gateway policies say of clients of a row, and returns whether that differs. Build side: one chunk.
    pub fn set_gate(&mut self, id: ServiceId, gate: Option<Arc<Gate>>) -> bool {
        let before = self.gates.get(id.0).and_then(Option::as_ref);
        if before == gate.as_ref() {
            return false;
        }
        let count =
            |gate: Option<&Arc<Gate>>| (u32::from(gate.is_some()), u32::from(gate.is_some_and(|gate| gate.limits())));
        let ((was_gated, was_limiting), (gated, limiting)) = (count(before), count(gate.as_ref()));
        self.gated = self.gated + gated - was_gated;
        self.sticky = self.sticky + limiting - was_limiting;
        self.gates.set(id.0, gate);
        true
    }

    /// Makes an id vacant. Its frontends must have gone before, or they lead nowhere. Build side: one chunk.
    pub fn clear_row(&mut self, id: ServiceId) {
        self.sticky -= u32::from(self.row(id).is_some_and(is_sticky));
        self.rows.clear(id.0);
        self.set_gate(id, None);
        if self.nodes(id).is_some() {
            self.nodes.clear(id.0);
        }
    }

    /// A number that two gateways have in common when they were told the same objects, in whatever order (design 5): which
    /// frontends exist, which Service port answers each, and how flows spread over its endpoints. Ids do not enter, since
    /// they follow the order of events. Walks everything: for a report now and then, not for each publish.
    pub fn digest(&self) -> u64 {
        // Addition forgets the order in which ids were given out; every term is keyed by its own whole content.
        let rows = self.rows().map(|(_, row)| row_digest(row));
        let exact = self.frontends.iter().filter_map(|(frontend, served)| {
            let mut hasher = SipHasher13::new_with_key(b"tidegate vip+svc");
            hasher.write(&frontend.address);
            hasher.write(&[frontend.protocol, served.kind as u8]);
            hasher.write(&frontend.port.to_be_bytes());
            hasher.write(&row_digest(self.row(served.service)?).to_be_bytes());
            Some(hasher.finish())
        });
        let prefixes = self.frontends.prefixes().filter_map(|(frontend, served)| {
            let mut hasher = SipHasher13::new_with_key(b"tidegate net+svc");
            hasher.write(frontend.prefix.to_string().as_bytes());
            hasher.write(&[0xff, frontend.protocol]);
            hasher.write(&frontend.port.to_be_bytes());
            hasher.write(&row_digest(self.row(served.service)?).to_be_bytes());
            Some(hasher.finish())
        });
        rows.chain(exact).chain(prefixes).fold(0, u64::wrapping_add)
    }
}

/// The mode of a row that was written with `asked` and has these nodes. Nodes beside `symmetric` are of what was asked before.
fn mode(asked: Mode, nodes: Option<&EndpointSet>) -> Mode {
    match (asked, nodes) {
        (Mode::Symmetric, _) => Mode::Symmetric,
        (_, Some(nodes)) if !nodes.is_empty() => Mode::NodeDsr,
        _ => Mode::Fullnat,
    }
}

/// With affinity; or with the client's address kept, since an answer out of the overlay names nothing else of its flow.
fn is_sticky(row: &ServiceRow) -> bool {
    row.terms.as_ref().is_some_and(|terms| terms.is_sticky()) || is_symmetric(row)
}

fn is_symmetric(row: &ServiceRow) -> bool {
    row.mode == Mode::Symmetric
}

fn row_digest(row: &ServiceRow) -> u64 {
    let mut hasher = SipHasher13::new_with_key(b"tidegate service");
    hasher.write(row.name.as_bytes());
    // The name is the one part of variable length: no other row can end it elsewhere.
    hasher.write(&[0xff, row.protocol, u8::from(row.family == Family::V6)]);
    // Not the mode: which nodes are proven differs between gateways without any difference of objects.
    hasher.write(&row.port.to_be_bytes());
    hasher.write(&row.serving.to_be_bytes());
    hasher.write(&row.cluster.ring.as_ref().map_or(0, |ring| ring.digest()).to_be_bytes());
    hasher.write(&row.terms.as_ref().map_or(0, |terms| terms.digest()).to_be_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::maglev::{member_key, ring_size};
    use crate::table::mapped;

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
                cluster: EndpointSet {
                    members: members.iter().map(|_| BackendId(backends.next().unwrap())).collect(),
                    ring: Ring::build(&members, ring_size(members.len())).map(Arc::new),
                },
                terms: None,
                name: service.name.as_str().into(),
            };
            table.set_row(id, row);
            for vip in &service.vips {
                let frontend = Frontend { address: *vip, protocol: service.protocol, port: service.port };
                table.set_frontend(frontend, FrontendKind::Vip, id);
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
            table.set_frontend(passing, FrontendKind::Vip, ServiceId(900));
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
        let picked: std::collections::BTreeSet<_> = (0..100u64).filter_map(|n| row.cluster.pick(n << 57)).collect();
        assert_eq!(picked.into_iter().collect::<Vec<_>>(), row.cluster.members.to_vec());
        // S-070: no endpoint, no pick.
        assert_eq!(table.row(ServiceId(8)).unwrap().cluster.pick(1), None);
        assert!(table.row(ServiceId(9)).is_none() && table.row(ServiceId::NONE).is_none());
        assert_eq!(table.rows().map(|(id, _)| id.0).collect::<Vec<_>>(), [7, 8]);
    }

    #[test]
    fn the_mode_is_the_rows_and_its_nodes() {
        let mut table = table_of(&[told(4)]);
        let id = ServiceId(7);
        let row = table.row(id).unwrap().clone();
        let nodes = EndpointSet { members: row.cluster.members.clone(), ring: row.cluster.ring.clone() };
        let is = |table: &ServiceTable| (table.row(id).unwrap().mode, table.any_sticky(), table.any_symmetric());
        table.set_nodes(id, Some(nodes.clone()));
        assert_eq!(is(&table), (Mode::NodeDsr, false, false));
        // From one to the other and back, in whichever order row and nodes are written.
        table.set_row(id, ServiceRow { mode: Mode::Symmetric, ..row.clone() });
        assert_eq!(is(&table), (Mode::Symmetric, true, true));
        table.set_nodes(id, None);
        assert_eq!(is(&table), (Mode::Symmetric, true, true));
        table.set_nodes(id, Some(nodes));
        assert_eq!(is(&table), (Mode::Symmetric, true, true));
        table.set_row(id, row);
        assert_eq!(is(&table), (Mode::NodeDsr, false, true), "answers of what began go on");
        table.set_nodes(id, None);
        assert_eq!(is(&table), (Mode::Fullnat, false, true));
        table.clear_row(id);
        assert!(!table.any_sticky());
    }

    #[test]
    fn a_row_fits_its_budget() {
        // 50,000 Services × 10 endpoints ≤ 100 MB (design 10) leaves no room for fat rows.
        const { assert!(size_of::<Option<ServiceRow>>() <= 64) };
    }
}
