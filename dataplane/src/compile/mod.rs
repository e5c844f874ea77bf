//! The compiler thread: resolved objects plus kernel facts become rows.
//!
//! Owns the accepted objects, the kernel facts, every id in the tables, the publisher and the pinholes. It is the only
//! thread that writes any of them, so nothing here is locked. It knows no packet and no Kubernetes, and time is an
//! argument.
//!
//! A turn takes everything that has arrived (updates from control, news from the kernel, neighbours that workers want),
//! changes what is touched, publishes once, and then acts on the outside world, in this order:
//!
//! 1. *Publish.* Workers know a new VIP before the first packet for it can reach them.
//! 2. *Wait*, briefly, until they have reached the generation, when the pinhole has something to add or to take.
//! 3. *Pinhole.* An address added now leads to workers that serve it; until now its packets passed to the kernel as they
//!    always had. An address taken away goes from the workers first and from the pinhole after, so that in between its
//!    packets are dropped and counted and never met by a kernel that has no flow of theirs.
//! 4. *Answers.* `Accepted` leaves when all of that is done: a client told so may send packets at once.
//! 5. *Wishes to the kernel* about neighbours.
//!
//! Each file below owns one noun of the tables and says what it does when things change.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZero;
use std::sync::Arc;

use ipnet::IpNet;
use tidegate_api::message::{Accepted, AddressConflict, NodeSuspicion, Rejection, ServiceDelivery, Update};
use tidegate_api::resource::{Body, Gateway, Kind, MacAddress, Peer, Resource, ResourceKey, Service};
use tidegate_io::{Owned, OwnedChange};

use crate::gateways::{Herald, Site};
use crate::kernel::request::NeighbourRequests;
use crate::kernel::saved::Machine;
use crate::kernel::{Change, Held, KernelFacts, NeighbourKey};
use crate::objects::place::{Place, places};
use crate::objects::{self, InForce, Objects, Outcome, validate};
use crate::port_office::PortMove;
use crate::probe::pulse::Felt;
use crate::probe::schedule::Found;
use crate::probe::{Probes, Unwatched};
use crate::routes::Routes;
use crate::table::publish::Publisher;
use crate::table::route::RouteRow;
use crate::table::{DeviceId, Tables, mapped, unmapped};

/// Services → rows, frontends, members, rings.
pub mod service;
/// Services → rings, ahead of time.
pub mod forge;
/// Services → rows, ahead of time.
pub mod draft;
/// In `node-dsr`: endpoints by node → rows, rings, and what control is told.
pub mod node;
/// Nodes that have fallen silent → whom new flows avoid.
pub mod suspect;
/// Endpoints → rows with ids that outlive them.
pub mod backend;
/// Addresses that are ours, and what the pinhole takes for us.
pub mod local;
/// VIPs to be announced by route.
pub mod announced;
/// Source addresses for `fullnat`.
pub mod nat;
/// Pods that policies select → rows by address.
pub mod pod;
/// Egress policies and external addresses.
pub mod egress;
/// Network policies → rules, and the flows they matter to.
pub mod policy;
/// Gateway policies → what they say of each Service port.
pub mod gatepolicy;
/// Kernel routes and pod prefixes → routes.
pub mod route;
/// Peers → tunnels.
pub mod tunnel;
/// Next hops and wanted addresses → neighbours.
pub mod neighbour;
/// Links → devices.
pub mod device;
/// Ids that are 16 bits wide.
pub mod ids;
/// Sets of prefixes.
mod net;
/// The thread, its queue, and the handle others speak to it by.
pub mod thread;
#[cfg(test)]
pub(crate) mod tests;

use announced::Announced;
use device::Devices;
use draft::Told;
use egress::Egresses;
use gatepolicy::GatewayPolicies;
use local::{Locals, News};
use neighbour::{Ask, Neighbours};
use node::Nodes;
use pod::Pods;
use policy::Policies;
use route::{KernelRoutes, PodPrefix};
use service::Services;
use tunnel::{Surroundings, Tunnels};

/// Nanoseconds on a clock that never goes back.
pub type Nanos = u64;

/// The pinholes of all devices: what they take for us is set here.
pub trait Pinholes: Send {
    /// Makes what is ours on every device exactly `owned`.
    ///
    /// # Errors
    /// What the kernel says; some devices may have been changed.
    fn update(&mut self, owned: &Owned) -> io::Result<()>;

    /// Changes what is ours on every device by `change`. Costs what it names.
    ///
    /// # Errors
    /// What the kernel says; some devices may have been changed. Then only [`Pinholes::update`] makes them right again.
    fn change(&mut self, change: &OwnedChange) -> io::Result<()>;

    /// Looks whether they are where they were put, and puts them back where somebody took them off. Called every tick.
    fn look_after(&mut self, _now: Nanos) {}
}

/// Everything the compiler decides with, and what it decided last.
pub struct Compiler {
    objects: Objects,
    facts: KernelFacts,
    devices: Devices,
    services: Services,
    nodes: Nodes,
    /// Services whose nodes are to be written anew.
    nodes_due: BTreeSet<Arc<str>>,
    probes: Box<dyn Probes>,
    pods: Pods,
    egresses: Egresses,
    policies: Policies,
    gates: GatewayPolicies,
    tunnels: Tunnels,
    neighbours: Neighbours,
    locals: Locals,
    kernel_routes: KernelRoutes,
    route_rows: BTreeMap<IpNet, RouteRow>,
    publisher: Publisher,
    pinholes: Box<dyn Pinholes>,
    requests: Box<dyn NeighbourRequests>,
    /// The pinholes have been told all that was ours, and everything since.
    guarded: bool,
    /// They may have to be told anew.
    guard_due: bool,
    /// They are left as they were found.
    guard_held: bool,
    /// What was refused last, so that control asking again and again is told once.
    refused: HashMap<ResourceKey, (String, String)>,
    /// Who decides which VIPs this gateway answers for on its links; absent: all.
    herald: Option<Box<dyn Herald>>,
    /// What it was told last.
    heralded: Site,
    /// Who announces VIPs by route, and which; absent: nobody.
    routes: Option<(Box<dyn Routes>, Announced)>,
}

/// What has arrived since the last turn.
#[derive(Default)]
pub struct Arrived {
    /// Updates, in order.
    pub updates: Vec<Told>,
    /// News from the kernel, in order.
    pub changes: Vec<Change>,
    /// Neighbours that workers want.
    pub wants: Vec<(DeviceId, [u8; 16])>,
    /// What the prober found, in order.
    pub found: Found,
    /// Nodes that fell silent or answer again, in order.
    pub felt: Felt,
    /// VIPs to answer for on links, or not to, in order.
    pub announce: Vec<(IpNet, bool)>,
    /// External ports that change hands, in order.
    pub port_moves: Vec<PortMove>,
}

impl Arrived {
    /// Whether nothing has arrived.
    pub fn is_empty(&self) -> bool {
        self.updates.is_empty()
            && self.changes.is_empty()
            && self.wants.is_empty()
            && self.found.is_empty()
            && self.felt.is_empty()
            && self.announce.is_empty()
            && self.port_moves.is_empty()
    }
}

/// What one turn did.
#[derive(Debug, Default)]
pub struct Turned {
    /// What became of each update, in order.
    pub accepted: Vec<Accepted>,
    /// Accepted objects that differ from before, so that they should be saved, in the order of updates.
    pub taken: Vec<InForce>,
    /// Whether a generation was published.
    pub published: bool,
}

/// What differs from the turn before.
#[derive(Clone, Debug, Default)]
struct Moved {
    layout: bool,
    gateway: bool,
    peers: bool,
    /// Where Services came, went or moved.
    places: Vec<Place>,
}

impl Moved {
    /// Notes the places at which an object came, went or moved.
    fn note_places(&mut self, change: &objects::Change) {
        let of = |resource: &Option<Arc<Resource>>| -> Vec<Place> {
            resource.iter().flat_map(|resource| places(resource)).map(|(_, place)| place).collect()
        };
        if let (None, Some(after)) = (&change.before, &change.after) {
            return self.places.extend(places(after).map(|(_, place)| place));
        }
        let (before, after) = (of(&change.before), of(&change.after));
        if before != after {
            self.places.extend(before.into_iter().chain(after));
        }
    }
}

impl Compiler {
    /// A compiler for devices by these names. Nothing is published yet beyond what `publisher` has.
    pub fn new<'a>(
        devices: impl IntoIterator<Item = &'a str>,
        publisher: Publisher,
        pinholes: Box<dyn Pinholes>,
        requests: Box<dyn NeighbourRequests>,
    ) -> Self {
        Compiler {
            objects: Objects::default(),
            facts: KernelFacts::default(),
            devices: Devices::new(devices),
            services: Services::default(),
            nodes: Nodes::default(),
            nodes_due: BTreeSet::new(),
            probes: Box::new(Unwatched),
            pods: Pods::default(),
            egresses: Egresses::default(),
            policies: Policies::default(),
            gates: GatewayPolicies::default(),
            tunnels: Tunnels::default(),
            neighbours: Neighbours::default(),
            locals: Locals::default(),
            kernel_routes: KernelRoutes::default(),
            route_rows: BTreeMap::new(),
            publisher,
            pinholes,
            requests,
            guarded: false,
            guard_due: true,
            guard_held: false,
            refused: HashMap::new(),
            herald: None,
            heralded: Site::default(),
            routes: None,
        }
    }

    /// Has `herald` decide which VIPs this gateway answers for on its links: none until it says so. To be called before
    /// anything else; without, all are answered for.
    pub fn set_herald(&mut self, herald: Box<dyn Herald>) {
        self.locals.own_nothing();
        self.herald = Some(herald);
    }

    /// Has VIPs announced by `routes` too; with `withdraw_when_empty` only those with a usable endpoint (M-021). To be called
    /// before anything else.
    pub fn set_routes(&mut self, routes: Box<dyn Routes>, withdraw_when_empty: bool) {
        self.routes = Some((routes, Announced::new(withdraw_when_empty)));
    }

    /// Has the ways to nodes watched by `probes`; without, none is ever proven. To be called before anything else.
    pub fn set_probes(&mut self, probes: Box<dyn Probes>) {
        self.probes = probes;
    }

    /// The first turn: the machine as it is, and the objects saved by an earlier run. Those are not judged against the
    /// machine: an address that is not up yet may come, and the rows wait for it.
    ///
    /// Both at once, because a pinhole that an earlier process left behind still guards what was ours; telling it less
    /// for a moment would hand our packets to the kernel. Without any saved object it is left as it was found, until
    /// control has spoken.
    pub fn restore(&mut self, facts: KernelFacts, saved: Vec<Resource>, now: Nanos) {
        let mut tables = self.publisher.current().clone();
        let mut moved = Moved { gateway: true, peers: true, layout: true, ..Moved::default() };
        self.take_changes(vec![Change::All(facts)], &mut moved, &mut tables);
        // No worker runs yet: every core is free.
        let forged = forge::forge(&saved, std::thread::available_parallelism().map_or(1, NonZero::get));
        forged.give(self.services.rings_mut());
        let update = Update { full: true, resources: saved, ..Update::default() };
        let outcome = self.objects.apply(update, None);
        for refused in &outcome.rejected {
            tracing::warn!(object = %refused.key, reason = refused.reason, "a saved object is not used");
        }
        for change in &outcome.changes {
            if let Some((_, announced)) = &mut self.routes {
                announced.object(change.before.as_deref(), change.after.as_deref());
            }
            if change.key.kind == Kind::Service {
                self.services.suspects_mut().service(change.before.as_deref(), change.after.as_deref());
                self.write_service(change.after.as_deref(), &change.key.name, &mut tables, now);
            }
            self.write_egress(change, &mut tables, now);
            self.policies.take(change);
            self.gates.take(change);
        }
        moved.places.extend(self.objects.places().keys());
        self.guard_held = self.objects.is_empty();
        self.finish(tables, true, moved, now);
    }

    /// Takes in what has arrived, publishes at most once, and acts.
    pub fn turn(&mut self, arrived: Arrived, now: Nanos) -> Turned {
        let mut turned = Turned::default();
        let mut tables = self.publisher.current().clone();
        let mut moved = Moved::default();
        let mut changed = self.take_changes(arrived.changes, &mut moved, &mut tables);
        for Told { update, forged, draft } in arrived.updates {
            self.guard_held = false;
            let mut adopted = self.adopt(draft, &mut tables);
            forged.give(self.services.rings_mut());
            let nonce = update.nonce;
            self.make_room(&update);
            let outcome = self.objects.apply(update, Some(&self.facts.layout));
            self.tell_refused(&outcome);
            turned.taken.extend(outcome.taken);
            for change in &outcome.changes {
                self.policies.take(change);
                self.gates.take(change);
                match change.key.kind {
                    Kind::Gateway => moved.gateway = true,
                    Kind::Peer => moved.peers = true,
                    Kind::Pod | Kind::Egress | Kind::StaticNat => {
                        moved.note_places(change);
                        if let Some((_, announced)) = &mut self.routes {
                            announced.object(change.before.as_deref(), change.after.as_deref());
                        }
                        changed |= self.write_egress(change, &mut tables, now);
                    }
                    Kind::Identity | Kind::IdentitySet | Kind::Policy | Kind::GatewayPolicy => {}
                    Kind::Service => {
                        moved.note_places(change);
                        if let Some((_, announced)) = &mut self.routes {
                            announced.object(change.before.as_deref(), change.after.as_deref());
                        }
                        self.services.suspects_mut().service(change.before.as_deref(), change.after.as_deref());
                        changed |= match adopted.take(&change.key.name) {
                            true => self.write_adopted(change.after.as_deref(), &change.key.name, &mut tables, now),
                            false => self.write_service(change.after.as_deref(), &change.key.name, &mut tables, now),
                        };
                    }
                }
            }
            self.disown(adopted, &mut tables, now);
            turned.accepted.push(Accepted { nonce, generation: 0, rejected: outcome.rejected });
        }
        for (way, finding) in arrived.found {
            let (service, node) = (&way.service, &way.node);
            tracing::info!(%service, port = way.port, %node, state = ?finding.state, reason = finding.reason, "way to a node");
            self.nodes_due.extend(self.nodes.learn(way, finding));
        }
        let touched = self.services.suspects_mut().learn(arrived.felt, now);
        changed |= self.write_services_on(&touched, &mut tables, now);
        let mut new_rows = false;
        for (device, address) in arrived.wants {
            new_rows |= self.neighbours.want(device, address, &self.facts, &self.devices, now);
        }
        if new_rows {
            changed |= self.neighbours.write(&self.facts, &self.devices, Arc::make_mut(&mut tables.neighbours));
        }
        if !arrived.announce.is_empty() {
            let moved = self.locals.announce(&arrived.announce, self.objects.places(), &mut tables.locals);
            (changed, self.guard_due) = (changed | moved, self.guard_due | moved);
            changed |= self.carry(&mut tables);
        }
        for moved in &arrived.port_moves {
            move_ports(&mut tables, moved);
            changed = true;
        }
        turned.published = self.finish(tables, changed, moved, now);
        let generation = self.publisher.generation();
        turned.accepted.iter_mut().for_each(|accepted| accepted.generation = generation);
        turned
    }

    /// Where much comes at once, an index that grows step by step would be moved several times.
    fn make_room(&mut self, update: &Update) {
        const MUCH: usize = 1000;
        if update.resources.len() < MUCH || self.objects.of_kind(Kind::Service).next().is_some() {
            return;
        }
        let endpoints = |resource: &Resource| match &resource.body {
            Body::Service(service) => service.ports.iter().map(|port| port.backends.len()).sum(),
            _ => 0,
        };
        self.services.backends_mut().reserve(update.resources.iter().map(endpoints).sum());
    }

    fn tell_refused(&mut self, outcome: &Outcome) {
        const TOLD_MAX: usize = 10_000;
        for change in &outcome.changes {
            self.refused.remove(&change.key);
        }
        if self.refused.len() > TOLD_MAX {
            self.refused.clear();
        }
        for Rejection { key, version, reason } in &outcome.rejected {
            let told = (version.clone(), reason.clone());
            if self.refused.get(key) != Some(&told) {
                tracing::warn!(object = %key, version, reason, "refused");
                self.refused.insert(key.clone(), told);
            }
        }
    }

    /// What time brings: neighbours to ask about, weights that grow, retired tables to free, a pinhole to tell again.
    pub fn tick(&mut self, now: Nanos) {
        let neighbours_moved = self.neighbours.tick(&self.facts, &self.devices, now);
        if neighbours_moved || self.services.is_growing() {
            let mut tables = self.publisher.current().clone();
            if neighbours_moved {
                self.neighbours.write(&self.facts, &self.devices, Arc::make_mut(&mut tables.neighbours));
            }
            let weights_moved = self.services.tick(&mut tables, now);
            if neighbours_moved || weights_moved {
                self.finish(tables, true, Moved::default(), now);
            }
        }
        self.ask_kernel();
        self.guard();
        self.pinholes.look_after(now);
        self.publisher.collect();
    }

    /// What control is to be told about the delivery of Services, once.
    pub fn take_deliveries(&mut self) -> Vec<ServiceDelivery> {
        self.nodes.take_news()
    }

    /// Nodes that do not answer.
    pub fn suspects(&self) -> &suspect::Suspects {
        self.services.suspects()
    }

    /// The same, once after that changed.
    pub fn take_suspects(&mut self) -> Option<Vec<NodeSuspicion>> {
        self.services.suspects_mut().take_news()
    }

    /// Addresses of ours that this machine's own kernel has taken, with its device, if that may have changed since this was
    /// asked last.
    pub fn take_taken(&mut self) -> Option<Vec<AddressConflict>> {
        let taken = self.locals.take_taken()?;
        let of_it = self.facts.layout.held().filter(|held| taken.contains(&held.address.addr()));
        let conflict = |held: Held<'_>| AddressConflict {
            address: held.address.addr(),
            mac: MacAddress(held.mac.unwrap_or_default()),
            device: held.device.to_owned(),
            withheld: true,
            kernel: Some(held.address.prefix_len()),
        };
        Some(of_it.map(conflict).collect())
    }

    /// The generation every worker has reached.
    pub fn reached(&self) -> u64 {
        self.publisher.reached()
    }

    /// The generation published last.
    pub fn generation(&self) -> u64 {
        self.publisher.generation()
    }

    /// The tables published last.
    pub fn tables(&self) -> &Tables {
        self.publisher.current()
    }

    /// All accepted objects.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// What the kernel said.
    pub fn facts(&self) -> &KernelFacts {
        &self.facts
    }

    /// This machine, as far as packets depend on it.
    pub fn machine(&self) -> Machine {
        Machine::of(&self.facts.layout, self.neighbours.known(&self.facts, &self.devices))
    }

    /// Folds news from the kernel in. Neighbours are written at once; the rest is noted in `moved`.
    fn take_changes(&mut self, changes: Vec<Change>, moved: &mut Moved, tables: &mut Tables) -> bool {
        let mut keys: HashSet<NeighbourKey> = HashSet::new();
        let mut all = false;
        for change in changes {
            match &change {
                Change::All(_) => (all, moved.layout) = (true, true),
                Change::Layout(_) => moved.layout = true,
                Change::Neighbours(list) => keys.extend(list.iter().map(|(key, _)| *key)),
            }
            self.facts.apply(change);
        }
        if moved.layout {
            self.devices.follow(&self.facts.layout);
            self.kernel_routes = KernelRoutes::read(&self.facts.layout, &self.devices);
            self.devices.write(Arc::make_mut(&mut tables.devices));
        }
        if !all && keys.is_empty() {
            return false;
        }
        let mut table = (*tables.neighbours).clone();
        let changed = if all {
            self.neighbours.write(&self.facts, &self.devices, &mut table)
        } else {
            self.neighbours.write_some(keys.iter(), &self.facts, &self.devices, &mut table)
        };
        if changed {
            tables.neighbours = Arc::new(table);
        }
        changed
    }

    fn write_service(&mut self, wanted: Option<&Resource>, name: &str, tables: &mut Tables, now: Nanos) -> bool {
        let service = service_of(wanted);
        let changed = self.services.write(name, service, tables, now);
        self.nodes_due.remove(name);
        self.write_nodes(service, name, tables, now) | changed
    }

    /// The same for a Service whose own rows are written.
    fn write_adopted(&mut self, wanted: Option<&Resource>, name: &str, tables: &mut Tables, now: Nanos) -> bool {
        self.write_nodes(service_of(wanted), name, tables, now);
        true
    }

    /// Writes the Services that have an endpoint on one of `nodes`. That is rare, so they are looked for and not kept in an
    /// index.
    fn write_services_on(&mut self, nodes: &BTreeSet<Arc<str>>, tables: &mut Tables, now: Nanos) -> bool {
        if nodes.is_empty() {
            return false;
        }
        let concerned = |resource: &Resource| match &resource.body {
            Body::Service(service) => service
                .ports
                .iter()
                .flat_map(|port| &port.backends)
                .any(|backend| nodes.contains(backend.node.as_str())),
            _ => false,
        };
        let all = self.objects.of_kind(Kind::Service);
        let concerned: Vec<Arc<Resource>> = all.filter(|resource| concerned(resource)).cloned().collect();
        let mut changed = false;
        for resource in concerned {
            changed |= self.write_service(Some(&resource), &resource.name, tables, now);
        }
        changed
    }

    /// Says whose pulse is to be felt, if that differs.
    fn feel(&mut self, gateway: Option<&Gateway>, tables: &mut Tables, now: Nanos) -> bool {
        let peers = peers(&self.objects).map(|(name, _)| name);
        let Some((wrists, forgotten)) = self.services.suspects_mut().wrists(gateway, peers, &self.tunnels) else {
            return false;
        };
        self.probes.feel(wrists);
        self.write_services_on(&forgotten, tables, now)
    }

    /// Takes in a pod, a policy or an address that is always a pod's; the latter two are written by
    /// [`Compiler::settle_egress`].
    fn write_egress(&mut self, change: &objects::Change, tables: &mut Tables, now: Nanos) -> bool {
        let (name, body) = (&change.key.name, change.after.as_ref().map(|resource| &resource.body));
        match (change.key.kind, body) {
            (Kind::Pod, body) => {
                let pod = if let Some(Body::Pod(pod)) = body { Some(pod) } else { None };
                self.pods.write(name, pod, self.services.backends_mut(), &mut self.egresses, tables, now)
            }
            (Kind::Egress, body) => {
                let egress = if let Some(Body::Egress(egress)) = body { Some(egress) } else { None };
                self.egresses.policy(name, egress);
                false
            }
            (Kind::StaticNat, body) => {
                let nat = if let Some(Body::StaticNat(nat)) = body { Some(nat) } else { None };
                self.egresses.fixed(name, nat);
                false
            }
            _ => false,
        }
    }

    /// Writes policies and external addresses, after the roles of addresses are written; flows of the pods they are for
    /// look again.
    fn settle_egress(&mut self, tables: &mut Tables) -> bool {
        let locals = &self.locals;
        let touched = self.egresses.settle(|address| locals.is_external(address), &mut tables.egress);
        for policy in &touched.policies {
            self.pods.touch(policy, tables);
        }
        for pod in &touched.pods {
            Pods::touch_address(*pod, tables);
        }
        touched.changed | self.carry(tables)
    }

    /// Writes which external addresses are carried here. Flows that there are go on by what they know.
    fn carry(&self, tables: &mut Tables) -> bool {
        let is_carried = |address: &[u8; 16]| self.locals.is_owned(address_of(address));
        let differs = tables.egress.externals().any(|(_, row)| row.is_carried != is_carried(&row.address));
        differs && Arc::make_mut(&mut tables.egress).carry(is_carried)
    }

    fn write_nodes(&mut self, service: Option<&Service>, name: &str, tables: &mut Tables, now: Nanos) -> bool {
        let written = self.nodes.write(name, service, &mut self.services, &self.tunnels, tables, now);
        self.nodes_due.extend(written.touched);
        if let Some(targets) = written.targets {
            self.probes.watch(&name.into(), targets);
        }
        written.changed
    }

    /// Writes the nodes of Services that something has happened to beside their own objects.
    fn write_due_nodes(&mut self, tables: &mut Tables, now: Nanos) -> bool {
        let peers = self.tunnels.take_touched();
        self.nodes_due.extend(self.nodes.on(peers.iter().map(String::as_str)));
        let mut changed = false;
        while let Some(name) = self.nodes_due.pop_first() {
            let resource = self.objects.get(&objects::key(Kind::Service, &name)).cloned();
            let Some(Body::Service(service)) = resource.as_deref().map(|resource| &resource.body) else { continue };
            changed |= self.write_nodes(Some(service), &name, tables, now);
        }
        changed
    }

    /// Writes what depends on several things at once, publishes if anything `changed`, and tells the outside world.
    fn finish(&mut self, mut tables: Tables, mut changed: bool, moved: Moved, now: Nanos) -> bool {
        let gateway = gateway(&self.objects).cloned();
        let moved_around = moved.layout || moved.gateway;
        if moved.layout || moved.gateway || moved.peers {
            changed |= self.write_ways(gateway.as_ref(), &mut tables);
        }
        if self.services.suspects_mut().take_ports_moved() || moved_around || moved.peers {
            changed |= self.feel(gateway.as_ref(), &mut tables, now);
        }
        changed |= self.write_due_nodes(&mut tables, now);
        if moved.layout || moved.gateway {
            changed |= self.write_surroundings(gateway.as_ref(), &mut tables);
        }
        let egress_due = self.egresses.is_used() && (moved_around || !moved.places.is_empty());
        if !moved.places.is_empty() {
            let moved = self.locals.follow(moved.places.into_iter(), self.objects.places(), &mut tables.locals);
            (changed, self.guard_due) = (changed | moved, self.guard_due | moved);
        }
        if egress_due || self.egresses.is_due() {
            changed |= self.settle_egress(&mut tables);
        }
        changed |= self.policies.settle(self.services.backends(), &mut tables);
        changed |= self.gates.settle(&self.services, &mut tables);
        if moved.gateway {
            changed |= write_settings(gateway.as_ref(), &mut tables);
        }
        // Devices are rows too; telling whether one differs is not worth a comparison of all.
        changed |= moved.layout;
        if self.neighbours.take_again() | self.tunnels.take_again() {
            tables.settings.routes_epoch = tables.settings.routes_epoch.wrapping_add(1);
            changed = true;
        }
        if changed {
            self.publisher.publish(tables);
        }
        self.guard();
        self.tell_herald(gateway.as_ref().filter(|_| moved_around), moved_around);
        self.tell_routes();
        if self.neighbours.is_fresh() {
            self.neighbours.tick(&self.facts, &self.devices, now);
        }
        self.ask_kernel();
        changed
    }

    /// Tells who announces what has been published.
    fn tell_herald(&mut self, gateway: Option<&Gateway>, moved_around: bool) {
        let vips = self.locals.take_moved();
        let Some(herald) = &mut self.herald else { return };
        if let Some(groups) = self.egresses.take_groups() {
            herald.groups(groups.into_iter().map(|(address, group)| (address.into(), group.into())).collect());
        }
        // VIPs first: those that are there when it all begins are none that have come since.
        if !vips.is_empty() {
            herald.vips(vips);
        }
        if moved_around {
            let site = Site {
                others: gateway.map(|gateway| gateway.gateways.clone()).unwrap_or_default(),
                has_tables: gateway.is_some(),
                links: self.devices.links(&self.facts.layout),
            };
            if site != self.heralded {
                self.heralded = site.clone();
                herald.site(site);
            }
        }
        let key = u128::from_be_bytes(self.publisher.current().settings.hash_key);
        let [high, low] = [key >> 64, key & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or_default());
        let objects = self.objects.digest() ^ self.policies.digest() ^ self.gates.digest();
        herald.published(self.publisher.generation(), objects ^ high ^ low.rotate_left(1));
    }

    /// Tells which VIPs to announce by route: workers and pinholes know them by now.
    fn tell_routes(&mut self) {
        let served = self.locals.take_served();
        let Some((routes, announced)) = &mut self.routes else { return };
        announced.served(served);
        let news = announced.take();
        if !news.is_empty() {
            routes.vips(news);
        }
    }

    /// Routes, tunnels and the neighbours they lead to.
    fn write_ways(&mut self, gateway: Option<&Gateway>, tables: &mut Tables) -> bool {
        let mut used = HashSet::new();
        let around = Surroundings { gateway, layout: &self.facts.layout, routes: &self.kernel_routes };
        let mut table = (*tables.tunnels).clone();
        let (mut pods, tunnels_changed) =
            self.tunnels.write(peers(&self.objects), &around, &mut self.neighbours, &mut used, &mut table);
        if tunnels_changed {
            tables.tunnels = Arc::new(table);
        }
        let own = gateway.map(|gateway| gateway.pod_cidrs.as_slice()).unwrap_or_default();
        pods.extend(own.iter().map(|prefix| PodPrefix { prefix: prefix.trunc(), tunnel: None, mtu: u16::MAX }));
        let rows = route::plan(&self.kernel_routes, &pods, &mut self.neighbours, &mut used);
        let routes_changed = rows != self.route_rows;
        if routes_changed {
            route::write(&rows, Arc::make_mut(&mut tables.routes));
            self.route_rows = rows;
        }
        self.neighbours.keep_hops(&used);
        let mut neighbours = (*tables.neighbours).clone();
        let neighbours_changed = self.neighbours.write(&self.facts, &self.devices, &mut neighbours);
        if neighbours_changed {
            tables.neighbours = Arc::new(neighbours);
        }
        if tunnels_changed || routes_changed {
            tables.settings.routes_epoch = tables.settings.routes_epoch.wrapping_add(1);
        }
        tunnels_changed || routes_changed || neighbours_changed
    }

    /// Local addresses and translated sources, after the gateway object or the machine changed.
    fn write_surroundings(&mut self, gateway: Option<&Gateway>, tables: &mut Tables) -> bool {
        let layout = &self.facts.layout;
        let mut changed = self.locals.surround(gateway, layout, &self.devices);
        if changed {
            self.locals.follow_all(self.objects.places(), &mut tables.locals);
            self.guard_due = true;
        }
        let nat = nat::compile(gateway, layout);
        if nat != *tables.nat {
            tables.nat = Arc::new(nat);
            changed = true;
        }
        changed
    }

    /// Tells the pinholes what is ours, if that differs from what they were told.
    fn guard(&mut self) {
        if self.guard_held || !std::mem::take(&mut self.guard_due) {
            return;
        }
        let Some(news) = self.locals.news(!self.guarded) else { return };
        self.await_workers();
        let told = match &news {
            News::All(owned) => self.pinholes.update(owned),
            News::Change(change) => self.pinholes.change(change),
        };
        self.guarded = told.is_ok();
        if let Err(error) = told {
            tracing::error!(%error, "the pinhole could not be told what is ours; trying again");
            self.guard_due = true;
        }
    }

    /// Waits a moment for workers to reach the newest generation. One that hangs must not hold up everybody's changes:
    /// the packets it would drop for a moment longer are its own.
    fn await_workers(&self) {
        const PATIENCE_MS: u32 = 20;
        for _ in 0..PATIENCE_MS * 10 {
            if self.publisher.reached() >= self.publisher.generation() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }

    fn ask_kernel(&mut self) {
        for ask in self.neighbours.take_asks() {
            let (key, result) = match ask {
                Ask::Keep(key) => {
                    let answer = self.requests.keep(key);
                    if let Ok(managed) = answer {
                        self.neighbours.kept(key, managed, &self.devices);
                    }
                    (key, answer.map(drop))
                }
                Ask::Probe(key) => (key, self.requests.probe(key)),
                Ask::Release(key) => (key, self.requests.release(key)),
            };
            if let Err(error) = result {
                tracing::debug!(address = %key.address, ifindex = key.ifindex, ?ask, %error, "asking the kernel for a neighbour");
            }
        }
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        // Every worker that is left holds the tables it works with; the rest is freed here, on this thread.
        self.publisher.collect();
    }
}

/// Makes ports of an external address another worker's; of one that is gone meanwhile nothing is left to move.
pub fn move_ports(tables: &mut Tables, moved: &PortMove) {
    let id = match unmapped(&moved.address) {
        Some(address) => tables.egress.external_v4(&address),
        None => tables.egress.external_v6(&moved.address),
    };
    if let Some(id) = id {
        let owners = Arc::clone(&tables.owners);
        let egress = Arc::make_mut(&mut tables.egress);
        egress.move_ports(&owners, id, moved.class, &moved.ports, moved.to, moved.landed);
    }
}

fn write_settings(gateway: Option<&Gateway>, tables: &mut Tables) -> bool {
    let mut settings = tables.settings;
    let defaults = Gateway::default();
    let gateway = gateway.unwrap_or(&defaults);
    settings.hash_key = validate::hash_key(&gateway.hash_key).unwrap_or_default();
    settings.orphan_tcp = gateway.orphan_tcp;
    settings.clamp_mss = gateway.clamp_mss;
    if settings.policy != gateway.policy {
        // Everybody's flows look again.
        settings.policy = gateway.policy;
        settings.routes_epoch = settings.routes_epoch.wrapping_add(1);
    }
    let changed = settings != tables.settings;
    tables.settings = settings;
    changed
}

fn service_of(resource: Option<&Resource>) -> Option<&Service> {
    match &resource?.body {
        Body::Service(service) => Some(service),
        _ => None,
    }
}

/// The gateway object in force.
pub fn gateway(objects: &Objects) -> Option<&Gateway> {
    objects.of_kind(Kind::Gateway).find_map(|resource| match &resource.body {
        Body::Gateway(gateway) => Some(gateway),
        _ => None,
    })
}

fn peers(objects: &Objects) -> impl Iterator<Item = (&str, &Peer)> {
    objects.of_kind(Kind::Peer).filter_map(|resource| match &resource.body {
        Body::Peer(peer) => Some((resource.name.as_str(), peer)),
        _ => None,
    })
}

/// An address in the form rows hold: IPv4 mapped.
pub fn mapped_ip(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped(&v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// An address in mapped form as people write it.
pub fn address_of(mapped: &[u8; 16]) -> IpAddr {
    match crate::table::unmapped(mapped) {
        Some(v4) => IpAddr::V4(Ipv4Addr::from(v4)),
        None => IpAddr::V6(Ipv6Addr::from(*mapped)),
    }
}
