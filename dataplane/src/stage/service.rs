//! # Service: choose a backend for a new flow
//!
//! reads   `table::service`, `terms`, `ranges`, `overrides`, `maglev`; affinity, pointers and connections of this worker
//! writes  nothing; returns the backend and what is to be remembered of the choice
//! drops   `NoFrontend`, `ProtocolUnsupported`, `SourceDenied`, `NoLocalEndpoint`, `InternalPolicyLocal`, `NodePortLocal`
//! cost    two hash lookups, one ring slot, one backend row; with terms what those ask for, see `stage::schedule`
//! spec    S-048, S-051, S-058 … S-066, S-068 … S-074, S-080 … S-082, S-090 … S-096, L-009, L-020, T-122; Maglev, NSDI 2016, 3.4
//! tests   `dataplane/tests/golden/service.rs`, `terms.rs`, `affinity.rs`, `schedule.rs`
//!
//! In two steps. [`admit`] decides whether this client is served at this frontend and by which set of endpoints; [`choose`]
//! picks one of them. A Service without terms takes neither detour.

use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::{Domain, Packet};
use crate::pipeline::Moment;
use crate::stage::schedule::{self, Connections, Facts};
use crate::state::affinity::Remembered;
use crate::state::schedule::SetKind;
use crate::state::{Learn, State, Tuple, ticks, ticks_of_seconds};
use crate::table::ranges::Ranges;
use crate::table::route::RouteTarget;
use crate::table::service::{EndpointSet, FrontendKind, Mode, ServiceRow};
use crate::table::terms::{HashFields, Scheduler, Terms, TrafficPolicy, Weights};
use crate::table::{BackendId, ServiceId, Tables};
use crate::wire::protocol;

/// What a Service offers a client.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'tables> {
    /// The Service port.
    pub service: ServiceId,
    /// Its row.
    pub row: &'tables ServiceRow,
    /// Where the choice is made; not empty.
    pub set: &'tables EndpointSet,
    /// Whether that is a set of nodes, which deliver by themselves.
    pub is_nodes: bool,
    /// Whether the pod sees the client's address, and its answers come back here.
    pub keeps_client: bool,
    which: SetKind,
    terms: Option<(&'tables Terms, &'tables Weights)>,
}

/// A backend, and what is to be remembered of the choice when the flow begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The backend.
    pub backend: BackendId,
    /// What to remember.
    pub learn: Learn,
}

/// What the Service at the destination of `tuple` offers this client; `None`: it has no endpoint, refuse (S-070).
///
/// # Errors
/// Why the client is not served and not told so either.
pub fn admit<'tables, A: Family>(
    tables: &'tables Tables,
    packet: &Packet,
    tuple: &Tuple<A>,
) -> Result<Option<Offer<'tables>>, DropReason> {
    if !matches!(tuple.protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return Err(DropReason::ProtocolUnsupported);
    }
    let served = tuple.destination.service(tables, tuple.protocol, tuple.destination_port);
    let served = served.ok_or(DropReason::NoFrontend)?;
    let row = tables.services.row(served.service).ok_or(DropReason::NoFrontend)?;
    let service = served.service;
    let keeps_client = row.mode == Mode::Symmetric && !is_inside(tables, packet, tuple);
    let which = SetKind::Cluster;
    let mut offer = Offer { service, row, set: &row.cluster, is_nodes: false, keeps_client, which, terms: None };
    if row.mode == Mode::NodeDsr && node_takes(tables, packet, tuple, served.kind) {
        (offer.set, offer.is_nodes) = (tables.services.nodes(service).unwrap_or(offer.set), true);
    }
    match &row.terms {
        None => Ok((!offer.set.is_empty()).then_some(offer)),
        Some(terms) => under_terms(tables, packet, tuple, served.kind, offer, terms),
    }
}

/// Whether a node delivers what this client sends to such a frontend: clients from outside (S-058), and addresses that
/// kube-proxy on the node knows as its own.
#[inline(never)]
fn node_takes<A: Family>(tables: &Tables, packet: &Packet, tuple: &Tuple<A>, kind: FrontendKind) -> bool {
    matches!(kind, FrontendKind::Vip | FrontendKind::External) && !is_inside(tables, packet, tuple)
}

#[inline(never)]
fn under_terms<'tables, A: Family>(
    tables: &'tables Tables,
    packet: &Packet,
    tuple: &Tuple<A>,
    kind: FrontendKind,
    cluster: Offer<'tables>,
    terms: &'tables Terms,
) -> Result<Option<Offer<'tables>>, DropReason> {
    // S-072, and before endpoints are looked at (S-073). What S-082 allows besides, a node that speaks from the VIP itself,
    // never leaves that node.
    let may_come = |ranges: &Ranges| ranges.contain(&tuple.source.mapped());
    if kind == FrontendKind::Vip && !terms.ranges.as_deref().is_none_or(may_come) {
        return Err(DropReason::SourceDenied);
    }
    let cluster = Offer { terms: Some((terms, &terms.weights)), ..cluster };
    if cluster.is_nodes {
        return Ok(Some(cluster));
    }
    let any = (!cluster.set.is_empty()).then_some(cluster);
    let is_local = terms.external_policy == TrafficPolicy::Local;
    match kind {
        // S-060: a gateway has no endpoint of its own.
        FrontendKind::Cluster if terms.internal_policy == TrafficPolicy::Local => match any {
            Some(_) => Err(DropReason::InternalPolicyLocal),
            None => Ok(None),
        },
        FrontendKind::Cluster => Ok(any),
        _ if !is_local || is_inside(tables, packet, tuple) => Ok(any), // S-058
        // S-065: a node port is the node's own, and S-048 is for VIPs only.
        FrontendKind::Node => any.map_or(Ok(None), |_| Err(DropReason::NodePortLocal)),
        FrontendKind::Vip | FrontendKind::External => match &terms.local {
            Some((set, weights)) if !set.is_empty() => {
                Ok(Some(Offer { set, which: SetKind::Local, terms: Some((terms, weights)), ..cluster }))
            }
            // S-071: others exist, but none that is known by its node.
            _ => any.map_or(Ok(None), |_| Err(DropReason::NoLocalEndpoint)),
        },
    }
}

/// S-058: whether the client is a pod, or a node that speaks from inside the overlay.
fn is_inside<A: Family>(tables: &Tables, packet: &Packet, tuple: &Tuple<A>) -> bool {
    packet.domain == Domain::Overlay
        || tuple.source.route(tables).is_some_and(|row| matches!(row.target, RouteTarget::Tunnel(_)))
}

/// One endpoint of `offer`; `None` when its scheduler finds every one too busy (L-042): refuse.
pub fn choose<A: Family>(
    tables: &Tables,
    state: &State,
    offer: &Offer<'_>,
    tuple: &Tuple<A>,
    moment: Moment,
) -> Option<Chosen> {
    match offer.terms {
        None => {
            let backend = offer.set.pick(A::hash_flow(&tables.settings.hash_key, tuple))?;
            Some(Chosen { backend, learn: Learn::default() })
        }
        Some((terms, weights)) => choose_by(tables, state, offer, terms, weights, tuple, moment),
    }
}

/// One node of `offer`. Always by hash, whatever the scheduler: gateways have to agree about nodes (L-010), and a segment in
/// the middle of a connection has to find its own (S-077). With affinity the client's address alone decides, and
/// kube-proxy's own affinity about the pod (S-093).
pub fn choose_node<A: Family>(tables: &Tables, offer: &Offer<'_>, tuple: &Tuple<A>) -> Option<BackendId> {
    let hash = match offer.terms {
        Some((terms, _)) if terms.is_sticky() => hash_client(tables, terms, tuple),
        Some((terms, _)) => hash_fields(tables, terms, tuple),
        None => A::hash_flow(&tables.settings.hash_key, tuple),
    };
    offer.set.pick(hash)
}

#[inline(never)]
fn choose_by<A: Family>(
    tables: &Tables,
    state: &State,
    offer: &Offer<'_>,
    terms: &Terms,
    weights: &Weights,
    tuple: &Tuple<A>,
    moment: Moment,
) -> Option<Chosen> {
    if let Some(backend) = overridden(offer.set, terms, weights, tuple) {
        return Some(Chosen { backend, learn: Learn::default() });
    }
    let mut learn = Learn { service: offer.service, ..Learn::default() };
    let mut by_client = false;
    if terms.is_sticky() {
        learn.affinity_ticks = ticks_of_seconds(terms.affinity_timeout_s).max(1);
        let remembered = state.affinity.recall(&tuple.source.mapped(), offer.service, ticks(moment.now_ns));
        if let Remembered::Backend(backend) = remembered
            && takes_new_flows(offer.set, weights, backend)
        {
            return Some(Chosen { backend, learn });
        }
        // S-095: what needs no memory is found again without it, and by every gateway.
        by_client = terms.scheduler == Scheduler::Mh || remembered == Remembered::NoPlace;
    }
    if by_client {
        let backend = offer.set.pick(hash_client(tables, terms, tuple))?;
        return Some(Chosen { backend, learn });
    }
    let facts = Facts {
        connections: |backend: BackendId| {
            let (active, inactive) = state.usage.connections(backend.0);
            Connections { active, inactive }
        },
        pointer: state.schedule.pointer(offer.service, offer.which),
        hash: hash_fields(tables, terms, tuple),
        entropy: moment.entropy,
    };
    let (at, pointer) = schedule::choose(terms.scheduler, offer.set, weights, &facts)?;
    learn.pointer = pointer.map(|pointer| (offer.which, pointer));
    Some(Chosen { backend: *offer.set.members.get(at)?, learn })
}

/// The endpoint that the client's own address is sent to, whatever its affinity, while that takes new flows.
fn overridden<A: Family>(set: &EndpointSet, terms: &Terms, weights: &Weights, tuple: &Tuple<A>) -> Option<BackendId> {
    let member = terms.overrides.as_ref()?.member(&tuple.source.mapped())?;
    set.members.get(member).copied().filter(|_| weights.at(member) > 0)
}

/// S-092: an endpoint that left the set, or drains in it, is no choice any more.
fn takes_new_flows(set: &EndpointSet, weights: &Weights, backend: BackendId) -> bool {
    set.members.iter().position(|member| *member == backend).is_some_and(|at| weights.at(at) > 0)
}

/// S-095: the client's address and the Service port, however it was reached.
fn hash_client<A: Family>(tables: &Tables, terms: &Terms, tuple: &Tuple<A>) -> u64 {
    let mut key = tables.settings.hash_key;
    key.iter_mut().zip(terms.identity.to_be_bytes()).for_each(|(byte, identity)| *byte ^= identity);
    A::hash_flow(&key, &Tuple { source: tuple.source, ..nothing() })
}

/// L-009, L-036, L-037: the fields that the scheduler looks at; the others count as zero.
fn hash_fields<A: Family>(tables: &Tables, terms: &Terms, tuple: &Tuple<A>) -> u64 {
    let fields = match (terms.scheduler, terms.hash) {
        (Scheduler::Sh, _) => Tuple { source: tuple.source, ..nothing() },
        (Scheduler::Dh, _) => Tuple { destination: tuple.destination, ..nothing() },
        (_, HashFields::Flow) => *tuple,
        (_, HashFields::WithoutSourcePort) => Tuple { source_port: 0, ..*tuple },
        (_, HashFields::DestinationPort) => Tuple { destination_port: tuple.destination_port, ..nothing() },
    };
    A::hash_flow(&tables.settings.hash_key, &fields)
}

fn nothing<A: Family>() -> Tuple<A> {
    let none = A::new_zeroed();
    Tuple { source: none, destination: none, source_port: 0, destination_port: 0, protocol: 0, domain: 0 }
}
