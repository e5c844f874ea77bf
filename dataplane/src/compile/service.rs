//! Services: one row per (Service port, family), its frontends, its endpoints and its rings.
//!
//! Works on what changed: an endpoint that comes or goes touches its own row, its Service's row and nothing else, and a
//! ring is built only if no other Service has the same set. What cannot be kept stable is given a new id: a Service made
//! again under its old name is another one (S-005), and its flows of before belong to the one that is gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;
use tidegate_api::resource::{Backend, DeliveryMode, Protocol, Service, ServicePort, SourceBackend};

use super::backend::{Backends, QUARANTINE};
use super::suspect::Suspects;
use super::{Nanos, mapped_ip};
use crate::table::backend::BackendState;
use crate::table::maglev::{RingCache, member_key};
use crate::table::overrides::Overrides;
use crate::table::ranges::Ranges;
use crate::table::service::{EndpointSet, Frontend, FrontendKind, Mode, PrefixFrontend, ServiceRow, ServiceTable};
use crate::table::terms::{HashFields, Scheduler, Terms, TrafficPolicy, Weights, identity};
use crate::table::{BackendId, Family, ServiceId, Tables};

/// Weights that grow.
mod ramp;

#[cfg(test)]
mod tests;

use ramp::Ramp;

/// All Services that have rows.
#[derive(Debug, Default)]
pub struct Services {
    by_name: HashMap<String, Compiled>,
    backends: Backends,
    rings: RingCache,
    given: u32,
    free: VecDeque<(Nanos, ServiceId)>,
    /// Nodes that new flows avoid.
    suspects: Suspects,
    /// Ports with an endpoint whose weight still grows.
    growing: BTreeSet<(String, PortKey)>,
}

/// One Service.
#[derive(Debug)]
struct Compiled {
    uid: String,
    ports: BTreeMap<PortKey, CompiledPort>,
}

/// What tells the rows of one Service apart: protocol, port, family.
pub type PortKey = (Protocol, u16, Family);

/// One port of one family.
#[derive(Debug)]
struct CompiledPort {
    id: ServiceId,
    frontends: Frontends,
    asked: Asked,
    /// Endpoints that are there, by address and port: the order of the rings.
    backends: BTreeMap<([u8; 16], u16), Endpoint>,
    /// Weights as the row has them, while some grow.
    grown: Vec<[u16; 2]>,
}

/// Where a port is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frontends {
    exact: BTreeMap<Frontend, FrontendKind>,
    prefixes: BTreeSet<PrefixFrontend>,
}

/// One endpoint that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endpoint {
    id: BackendId,
    /// In the Cluster set and in the Local set.
    weights: [u16; 2],
    ramp: Ramp,
}

/// What a port asks for, endpoints and frontends aside.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    mode: DeliveryMode,
    external_policy: TrafficPolicy,
    internal_policy: TrafficPolicy,
    ranges: Option<Arc<Ranges>>,
    affinity_timeout_s: u32,
    source_backends: Vec<SourceBackend>,
    scheduler: Scheduler,
    hash: HashFields,
    slow_start_s: u16,
    one_packet: bool,
}

impl Asked {
    fn of(port: &ServicePort, ranges: Option<Arc<Ranges>>) -> Asked {
        Asked {
            mode: port.mode,
            external_policy: port.external_policy,
            internal_policy: port.internal_policy,
            ranges,
            affinity_timeout_s: port.affinity_timeout_s.unwrap_or(0),
            source_backends: port.source_backends.clone(),
            scheduler: port.scheduler,
            hash: port.hash,
            slow_start_s: port.slow_start_s,
            one_packet: port.one_packet,
        }
    }

    /// Nothing beyond an even spread: such a row needs no terms.
    fn is_plain(&self) -> bool {
        self.external_policy == TrafficPolicy::Cluster
            && self.internal_policy == TrafficPolicy::Cluster
            && self.ranges.is_none()
            && self.affinity_timeout_s == 0
            && self.source_backends.is_empty()
            && self.scheduler == Scheduler::Mh
            && self.hash == HashFields::Flow
            && !self.one_packet
    }

    /// Whether anybody chooses by `local_weight`.
    fn is_local(&self) -> bool {
        self.external_policy == TrafficPolicy::Local || self.mode == DeliveryMode::NodeDsr
    }
}

impl Services {
    /// Makes the rows of the Service `name` say `wanted` (`None`: there is no such Service). True when any row differs.
    pub fn write(&mut self, name: &str, wanted: Option<&Service>, tables: &mut Tables, now: Nanos) -> bool {
        let mut changed = false;
        let same =
            self.by_name.get(name).is_some_and(|compiled| wanted.is_some_and(|service| service.uid == compiled.uid));
        let mut ports = match self.by_name.remove(name) {
            Some(compiled) if same => compiled.ports,
            Some(compiled) => {
                for (_, port) in compiled.ports {
                    self.remove_port(port, tables, now);
                    changed = true;
                }
                BTreeMap::new()
            }
            None => BTreeMap::new(),
        };
        let Some(service) = wanted else { return changed };
        let wanted = wanted_ports(service);
        let gone: Vec<PortKey> = ports.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
        for key in gone {
            if let Some(port) = ports.remove(&key) {
                self.remove_port(port, tables, now);
                changed = true;
            }
        }
        let row_name: Arc<str> = name.into();
        let ranges = [Family::V4, Family::V6].map(|family| Ranges::of(&service.source_ranges, family).map(Arc::new));
        for (key, (port, frontends)) in wanted {
            let ranges = &ranges[usize::from(key.2 == Family::V6)];
            let asked = Asked::of(port, ranges.clone());
            changed |= self.write_port(&row_name, key, port, asked, frontends, &mut ports, tables, now);
        }
        self.by_name.insert(name.to_owned(), Compiled { uid: service.uid.clone(), ports });
        changed
    }

    /// What time brings: weights that have grown since the rows were written (L-048). True when any row differs.
    pub fn tick(&mut self, tables: &mut Tables, now: Nanos) -> bool {
        let mut changed = false;
        for (name, key) in std::mem::take(&mut self.growing) {
            let Some(mut compiled) = self.by_name.get_mut(&name).and_then(|service| service.ports.remove(&key)) else {
                continue;
            };
            if compiled.weights(now) != compiled.grown {
                let row = self.row(&name.as_str().into(), key, &mut compiled, now);
                Arc::make_mut(&mut tables.services).set_row(compiled.id, row);
                changed = true;
            } else if compiled.is_growing(now) {
                self.growing.insert((name.clone(), key));
            }
            if let Some(service) = self.by_name.get_mut(&name) {
                service.ports.insert(key, compiled);
            }
        }
        changed
    }

    /// Whether time alone will change rows: [`Services::tick`] has something to do now or later.
    pub fn is_growing(&self) -> bool {
        !self.growing.is_empty()
    }

    /// The row of one port and family of the Service `name`.
    pub fn id_of(&self, name: &str, key: PortKey) -> Option<ServiceId> {
        Some(self.by_name.get(name)?.ports.get(&key)?.id)
    }

    /// The rows of the Service `name`.
    pub fn ids_of(&self, name: &str) -> impl Iterator<Item = ServiceId> {
        self.by_name.get(name).into_iter().flat_map(|compiled| compiled.ports.values().map(|port| port.id))
    }

    /// Nodes that new flows avoid.
    pub fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// The same, to be changed. Who does so writes the Services concerned.
    pub fn suspects_mut(&mut self) -> &mut Suspects {
        &mut self.suspects
    }

    /// Which ids of backends are at which address.
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Who gives out ids of backends.
    pub fn backends_mut(&mut self) -> &mut Backends {
        &mut self.backends
    }

    /// Rings that are there.
    pub fn rings_mut(&mut self) -> &mut RingCache {
        &mut self.rings
    }

    /// Whether nobody has a row at any place where `service` is reached.
    pub(super) fn has_room(service: &Service, tables: &Tables) -> bool {
        wanted_ports(service).values().all(|(_, frontends)| frontends.are_free(&tables.services))
    }

    /// Whether no id was ever given and no node is avoided: rows written elsewhere on the same terms can be taken over.
    pub(super) fn is_untouched(&self) -> bool {
        self.given == 0 && self.backends.is_untouched() && self.suspects.are_none()
    }

    /// Takes over everything about rows from one that has written them. What is known of nodes stays.
    pub(super) fn take_over(&mut self, other: Services) {
        let suspects = std::mem::take(&mut self.suspects);
        *self = Services { suspects, ..other };
    }

    /// Names of Services that have rows.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    #[allow(clippy::too_many_arguments)]
    fn write_port(
        &mut self,
        name: &Arc<str>,
        key: PortKey,
        port: &ServicePort,
        asked: Asked,
        frontends: Frontends,
        ports: &mut BTreeMap<PortKey, CompiledPort>,
        tables: &mut Tables,
        now: Nanos,
    ) -> bool {
        let known = ports.remove(&key);
        let fresh = known.is_none();
        let mut compiled = known.unwrap_or_else(|| CompiledPort {
            id: self.id(tables, now),
            frontends: Frontends::default(),
            asked: asked.clone(),
            backends: BTreeMap::new(),
            grown: Vec::new(),
        });
        let terms_moved = compiled.asked != asked;
        compiled.asked = asked;
        let moved = self.write_backends(key.2, port, &mut compiled, terms_moved, tables, now);
        if fresh || moved || terms_moved {
            let row = self.row(name, key, &mut compiled, now);
            Arc::make_mut(&mut tables.services).set_row(compiled.id, row);
        }
        let frontends_moved = compiled.frontends != frontends;
        if frontends_moved {
            let services = Arc::make_mut(&mut tables.services);
            compiled.frontends.clear(services, compiled.id, &frontends);
            frontends.set(services, compiled.id, &compiled.frontends);
            compiled.frontends = frontends;
        }
        ports.insert(key, compiled);
        fresh || moved || terms_moved || frontends_moved
    }

    /// True when an endpoint came, went, or changed a weight. `all`: the state of every row is to be looked at.
    fn write_backends(
        &mut self,
        family: Family,
        port: &ServicePort,
        compiled: &mut CompiledPort,
        all: bool,
        tables: &mut Tables,
        now: Nanos,
    ) -> bool {
        let wanted = wanted_backends(family, port, &self.suspects);
        let known = compiled.backends.iter().map(|(key, endpoint)| (key, &endpoint.weights));
        let moved = !known.eq(wanted.iter());
        if !moved && !all {
            return false;
        }
        let table = Arc::make_mut(&mut tables.backends);
        let first = compiled.backends.is_empty();
        compiled.backends.retain(|(address, port), endpoint| {
            let stays = wanted.contains_key(&(*address, *port));
            if !stays {
                self.backends.leave(endpoint.id, (compiled.id, *address, *port), table, now);
            }
            stays
        });
        for ((address, port), weights) in wanted {
            let counted = if compiled.asked.is_local() { &weights[..] } else { &weights[..1] };
            let is_active = counted.iter().any(|weight| *weight > 0);
            let state = if is_active { BackendState::Active } else { BackendState::Draining };
            let known = compiled.backends.get(&(address, port));
            // Endpoints that come together with their Service have nobody to leave the work to.
            let ramp = known.map_or(if first { Ramp::Full } else { Ramp::Since(now) }, |endpoint| endpoint.ramp);
            let known = known.map(|endpoint| endpoint.id);
            let id = self.backends.set(known, (compiled.id, address, port), family, state, table, now);
            compiled.backends.insert((address, port), Endpoint { id, weights, ramp });
        }
        moved
    }

    fn row(&mut self, name: &Arc<str>, key: PortKey, compiled: &mut CompiledPort, now: Nanos) -> ServiceRow {
        let (protocol, port, family) = key;
        let weights = compiled.weights(now);
        if compiled.is_growing(now) {
            self.growing.insert((name.to_string(), key));
        } else {
            compiled.backends.values_mut().for_each(|endpoint| endpoint.ramp = Ramp::Full);
        }
        compiled.grown.clone_from(&weights);
        let members: Arc<[BackendId]> = compiled.backends.values().map(|endpoint| endpoint.id).collect();
        let mut set = |which: usize| {
            // Draining members stay in the ring's order with weight 0: their slots go to others, nobody else's move
            // (L-008).
            let keys = compiled.backends.keys().map(|(address, port)| member_key(address, *port));
            let members_of_ring: Vec<_> = keys.zip(weights.iter().map(|of| of[which])).collect();
            EndpointSet { members: Arc::clone(&members), ring: self.rings.get(&members_of_ring, 0) }
        };
        let asked = &compiled.asked;
        let cluster = set(CLUSTER);
        let of = |which: usize| Weights::new(weights.iter().map(|of| of[which]), asked.scheduler);
        let local = asked.external_policy == TrafficPolicy::Local;
        let terms = (!asked.is_plain()).then(|| Terms {
            identity: identity(name, protocol.number(), port),
            external_policy: asked.external_policy,
            internal_policy: asked.internal_policy,
            ranges: asked.ranges.clone(),
            affinity_timeout_s: asked.affinity_timeout_s,
            overrides: compiled.overrides(family).map(Arc::new),
            scheduler: asked.scheduler,
            hash: asked.hash,
            one_packet: asked.one_packet,
            weights: of(CLUSTER),
            local: local.then(|| (set(LOCAL), of(LOCAL))),
        });
        ServiceRow {
            // The table makes it another where nodes take packets (`super::node`).
            mode: if asked.mode == DeliveryMode::Symmetric { Mode::Symmetric } else { Mode::Fullnat },
            family,
            protocol: protocol.number(),
            port,
            serving: u32::try_from(members.len()).unwrap_or(u32::MAX),
            cluster,
            terms: terms.map(Arc::new),
            name: Arc::clone(name),
        }
    }

    fn remove_port(&mut self, port: CompiledPort, tables: &mut Tables, now: Nanos) {
        let services = Arc::make_mut(&mut tables.services);
        port.frontends.clear(services, port.id, &Frontends::default());
        services.clear_row(port.id);
        let backends = Arc::make_mut(&mut tables.backends);
        for ((address, number), endpoint) in &port.backends {
            self.backends.leave(endpoint.id, (port.id, *address, *number), backends, now);
        }
        self.free.push_back((now, port.id));
    }

    fn id(&mut self, tables: &mut Tables, now: Nanos) -> ServiceId {
        if let Some((since, id)) = self.free.front().copied()
            && now.saturating_sub(since) >= QUARANTINE
        {
            self.free.pop_front();
            self.backends.orphan(id, Arc::make_mut(&mut tables.backends));
            return id;
        }
        let id = ServiceId(self.given);
        self.given += 1;
        id
    }
}

/// Place of the weights of the Cluster set.
pub(super) const CLUSTER: usize = 0;
/// Place of those of the Local set.
pub(super) const LOCAL: usize = 1;

impl CompiledPort {
    /// Weights of all endpoints at `now`, in their order.
    fn weights(&self, now: Nanos) -> Vec<[u16; 2]> {
        let duration = self.ramp_duration();
        let endpoints = || self.backends.values();
        let most = endpoints().flat_map(|endpoint| endpoint.weights).max().unwrap_or(0);
        let scale = if self.is_growing(now) { ramp::scale(most) } else { 1 };
        endpoints()
            .map(|endpoint| endpoint.weights.map(|weight| endpoint.ramp.weight(weight, scale, duration, now)))
            .collect()
    }

    /// Clients that are sent to an endpoint by their address: its place among the members. Those of an endpoint that is
    /// not there are not entered, so that they are scheduled as all others.
    fn overrides(&self, family: Family) -> Option<Overrides> {
        let asked = &self.asked.source_backends;
        if asked.is_empty() {
            return None;
        }
        let mut members: HashMap<[u8; 16], u16> = HashMap::new();
        for (member, (address, _)) in (0..=u16::MAX).zip(self.backends.keys()) {
            members.entry(*address).or_insert(member);
        }
        let member = |entry: &SourceBackend| Some((entry.sources, *members.get(&mapped_ip(entry.address))?));
        Overrides::of(asked.iter().filter_map(member), family)
    }

    fn is_growing(&self, now: Nanos) -> bool {
        let duration = self.ramp_duration();
        self.backends.values().any(|endpoint| endpoint.ramp.is_growing(duration, now))
    }

    /// How long weights grow; 0: they do not. Where a weight is no share of anything they never do.
    fn ramp_duration(&self) -> Nanos {
        let is_share = match self.asked.scheduler {
            Scheduler::Mh | Scheduler::Wrr | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq | Scheduler::Sh => true,
            Scheduler::Rr | Scheduler::Lc | Scheduler::Dh | Scheduler::Fo | Scheduler::Ovf => false,
        };
        if is_share { Nanos::from(self.asked.slow_start_s) * 1_000_000_000 } else { 0 }
    }
}

impl Frontends {
    /// Whether they are nobody's.
    fn are_free(&self, services: &ServiceTable) -> bool {
        self.exact.keys().all(|frontend| services.lookup(frontend).is_none())
            && self.prefixes.iter().all(|prefix| services.frontends().get_prefix(prefix).is_none())
    }

    /// Takes away what is not in `other` too, unless another Service has taken it over in the same update.
    fn clear(&self, services: &mut ServiceTable, id: ServiceId, other: &Frontends) {
        for frontend in self.exact.keys().filter(|frontend| !other.exact.contains_key(*frontend)) {
            if services.lookup(frontend) == Some(id) {
                services.clear_frontend(frontend);
            }
        }
        for prefix in self.prefixes.difference(&other.prefixes) {
            if services.frontends().get_prefix(prefix).is_some_and(|served| served.service == id) {
                services.set_prefix(*prefix, None);
            }
        }
    }

    /// Enters what is not in `before`.
    fn set(&self, services: &mut ServiceTable, id: ServiceId, before: &Frontends) {
        for (frontend, kind) in self.exact.iter().filter(|(frontend, kind)| before.exact.get(*frontend) != Some(*kind))
        {
            services.set_frontend(*frontend, *kind, id);
        }
        for prefix in self.prefixes.difference(&before.prefixes) {
            services.set_prefix(*prefix, Some(id));
        }
    }
}

/// Endpoints of one family with their weights in both sets. Those on suspected nodes have no share of a set in which
/// others have one (S-114).
pub(super) fn wanted_backends(
    family: Family,
    port: &ServicePort,
    suspects: &Suspects,
) -> BTreeMap<([u8; 16], u16), [u16; 2]> {
    let of_family = port.backends.iter().filter(|backend| backend.address.is_ipv4() == (family == Family::V4));
    let is_suspected = |backend: &Backend| suspects.contains(&backend.node, family);
    let others = of_family.clone().filter(|backend| !is_suspected(backend));
    let others =
        others.fold([0; 2], |[cluster, local], backend| [cluster | backend.weight, local | backend.local_weight]);
    let weights = |backend: &Backend| {
        let mut weights = [backend.weight, backend.local_weight];
        if is_suspected(backend) {
            for (weight, others) in weights.iter_mut().zip(others) {
                *weight = if others > 0 { 0 } else { *weight };
            }
        }
        weights
    };
    of_family.map(|backend| ((mapped_ip(backend.address), backend.port), weights(backend))).collect()
}

/// Ports by family, with the frontends of that family. A family without any has no row: nothing could reach it.
pub(super) fn wanted_ports(service: &Service) -> BTreeMap<PortKey, (&ServicePort, Frontends)> {
    let mut wanted = BTreeMap::new();
    for family in [Family::V4, Family::V6] {
        let of_family = |address: &IpAddr| address.is_ipv4() == (family == Family::V4);
        for port in &service.ports {
            let protocol = port.protocol.number();
            let mut frontends = Frontends::default();
            let mut add = |addresses: &[IpAddr], number: u16, kind| {
                for address in addresses.iter().filter(|address| of_family(address) && port.is_at(**address)) {
                    let address = mapped_ip(*address);
                    frontends.exact.insert(Frontend { address, protocol, port: number }, kind);
                }
            };
            if let Some(number) = port.node_port {
                add(&service.node_addresses, number, FrontendKind::Node);
            }
            add(&service.cluster_addresses, port.port, FrontendKind::Cluster);
            add(&service.external_addresses, port.port, FrontendKind::External);
            add(&service.addresses, port.port, FrontendKind::Vip);
            let prefixes = service.prefixes.iter().filter(|prefix| of_family(&prefix.addr()) && port.is_at(**prefix));
            let prefixes = prefixes.map(IpNet::trunc);
            frontends.prefixes = prefixes.map(|prefix| PrefixFrontend { prefix, protocol, port: port.port }).collect();
            if frontends != Frontends::default() {
                wanted.insert((port.protocol, port.port, family), (port, frontends));
            }
        }
    }
    wanted
}
