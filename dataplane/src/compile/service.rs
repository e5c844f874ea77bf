//! Services: one row per (Service port, family), its frontends, its endpoints and its ring.
//!
//! Works on what changed: an endpoint that comes or goes touches its own row, its Service's row and nothing else, and a
//! ring is built only if no other Service has the same set. What cannot be kept stable is given a new id: a Service made
//! again under its old name is another one (S-005), and its flows of before belong to the one that is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tidegate_api::resource::{DeliveryMode, Protocol, Service, ServicePort};

use super::backend::{Backends, QUARANTINE};
use super::{Nanos, mapped_ip};
use crate::table::backend::BackendState;
use crate::table::maglev::{RingCache, member_key};
use crate::table::service::{EndpointSet, Frontend, FrontendKind, Mode, ServiceRow};
use crate::table::{BackendId, Family, ServiceId, Tables};

/// All Services that have rows.
#[derive(Debug, Default)]
pub struct Services {
    by_name: HashMap<String, Compiled>,
    backends: Backends,
    rings: RingCache,
    given: u32,
    free: VecDeque<(Nanos, ServiceId)>,
}

/// One Service.
#[derive(Debug)]
struct Compiled {
    uid: String,
    ports: BTreeMap<PortKey, CompiledPort>,
}

type PortKey = (Protocol, u16, Family);

/// One port of one family.
#[derive(Debug)]
struct CompiledPort {
    id: ServiceId,
    vips: BTreeSet<[u8; 16]>,
    /// Endpoints that are there, by address and port: the order of the ring.
    backends: BTreeMap<([u8; 16], u16), (BackendId, u16)>,
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
                for (key, port) in compiled.ports {
                    self.remove_port(key, port, tables, now);
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
                self.remove_port(key, port, tables, now);
                changed = true;
            }
        }
        let row_name: Arc<str> = name.into();
        for (key, (port, vips)) in wanted {
            changed |= self.write_port(&row_name, key, port, vips, &mut ports, tables, now);
        }
        self.by_name.insert(name.to_owned(), Compiled { uid: service.uid.clone(), ports });
        changed
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
        vips: BTreeSet<[u8; 16]>,
        ports: &mut BTreeMap<PortKey, CompiledPort>,
        tables: &mut Tables,
        now: Nanos,
    ) -> bool {
        let fresh = !ports.contains_key(&key);
        let mut compiled = ports.remove(&key).unwrap_or_else(|| CompiledPort {
            id: self.id(tables, now),
            vips: BTreeSet::new(),
            backends: BTreeMap::new(),
        });
        let moved = self.write_backends(key.2, port, &mut compiled, tables, now);
        if fresh || moved {
            let row = self.row(name, key, port.mode, &compiled);
            Arc::make_mut(&mut tables.services).set_row(compiled.id, row);
        }
        let frontends_moved = compiled.vips != vips;
        if frontends_moved {
            let services = Arc::make_mut(&mut tables.services);
            for vip in compiled.vips.difference(&vips) {
                let frontend = frontend(*vip, key);
                // Another Service may have taken it over in the same update.
                if services.lookup(&frontend) == Some(compiled.id) {
                    services.clear_frontend(&frontend);
                }
            }
            for vip in vips.difference(&compiled.vips) {
                services.set_frontend(frontend(*vip, key), FrontendKind::Vip, compiled.id);
            }
            compiled.vips = vips;
        }
        ports.insert(key, compiled);
        fresh || moved || frontends_moved
    }

    /// True when an endpoint came, went, or changed its weight.
    fn write_backends(
        &mut self,
        family: Family,
        port: &ServicePort,
        compiled: &mut CompiledPort,
        tables: &mut Tables,
        now: Nanos,
    ) -> bool {
        let of_family = port.backends.iter().filter(|backend| backend.address.is_ipv4() == (family == Family::V4));
        let wanted: BTreeMap<([u8; 16], u16), u16> =
            of_family.map(|backend| ((mapped_ip(backend.address), backend.port), backend.weight)).collect();
        if compiled.backends.len() == wanted.len()
            && compiled
                .backends
                .iter()
                .zip(&wanted)
                .all(|((key, (_, weight)), (other, wanted))| key == other && weight == wanted)
        {
            return false;
        }
        let table = Arc::make_mut(&mut tables.backends);
        compiled.backends.retain(|(address, port), (id, _)| {
            let stays = wanted.contains_key(&(*address, *port));
            if !stays {
                self.backends.leave(*id, (compiled.id, *address, *port), table, now);
            }
            stays
        });
        for ((address, port), weight) in wanted {
            let state = if weight == 0 { BackendState::Draining } else { BackendState::Active };
            let known = compiled.backends.get(&(address, port)).map(|(id, _)| *id);
            let id = self.backends.set(known, (compiled.id, address, port), family, state, table, now);
            compiled.backends.insert((address, port), (id, weight));
        }
        true
    }

    fn row(
        &mut self,
        name: &Arc<str>,
        (protocol, port, family): PortKey,
        mode: DeliveryMode,
        compiled: &CompiledPort,
    ) -> ServiceRow {
        // No way to a node is proven yet, and while none is, delivery is `fullnat`.
        let (DeliveryMode::Fullnat | DeliveryMode::NodeDsr) = mode;
        // Draining members stay in the ring's order with weight 0: their slots go to others, nobody else's move (L-008).
        let members: Vec<_> = compiled
            .backends
            .iter()
            .map(|((address, port), (_, weight))| (member_key(address, *port), *weight))
            .collect();
        ServiceRow {
            mode: Mode::Fullnat,
            family,
            protocol: protocol.number(),
            port,
            serving: u32::try_from(members.len()).unwrap_or(u32::MAX),
            cluster: EndpointSet {
                members: compiled.backends.values().map(|(id, _)| *id).collect(),
                ring: self.rings.get(&members, 0),
            },
            terms: None,
            name: Arc::clone(name),
        }
    }

    fn remove_port(&mut self, key: PortKey, port: CompiledPort, tables: &mut Tables, now: Nanos) {
        let services = Arc::make_mut(&mut tables.services);
        for vip in &port.vips {
            let frontend = frontend(*vip, key);
            if services.lookup(&frontend) == Some(port.id) {
                services.clear_frontend(&frontend);
            }
        }
        services.clear_row(port.id);
        let backends = Arc::make_mut(&mut tables.backends);
        for ((address, number), (id, _)) in &port.backends {
            self.backends.leave(*id, (port.id, *address, *number), backends, now);
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

/// Ports by family, with the VIPs of that family. A family without VIPs has no row: nothing could reach it.
fn wanted_ports(service: &Service) -> BTreeMap<PortKey, (&ServicePort, BTreeSet<[u8; 16]>)> {
    let mut wanted = BTreeMap::new();
    for family in [Family::V4, Family::V6] {
        let of_family = service.addresses.iter().filter(|address| address.is_ipv4() == (family == Family::V4));
        let vips: BTreeSet<_> = of_family.map(|address| mapped_ip(*address)).collect();
        for port in service.ports.iter().filter(|_| !vips.is_empty()) {
            wanted.insert((port.protocol, port.port, family), (port, vips.clone()));
        }
    }
    wanted
}

fn frontend(address: [u8; 16], (protocol, port, _): PortKey) -> Frontend {
    Frontend { address, protocol: protocol.number(), port }
}
