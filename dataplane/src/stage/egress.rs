//! # Egress: what pods send to the outside
//!
//! reads   `table::pod`, `egress`, `owner`; ports, mappings and flows of this worker     writes  nothing; returns a decision
//! drops   `NotOurs`, `SpoofedSource`, `OrphanSegment`, `ProtocolUnsupported`, `NoTunnel`, `EgressNoAddress`,
//!         `EgressPortsExhausted`, `EgressQuota`, `EgressProtocolTaken`, `EgressElsewhere`
//! cost    cold: a new flow looks up its pod, policy, route and port; established packets never come here
//! spec    N-001 … N-012, N-030, N-035, N-040 … N-045, N-075, N-088, N-093 … N-095, N-097, N-110 … N-112, T-193, RFC 4787, 5382, 5508
//! tests   `dataplane/tests/golden/egress.rs`
//!
//! A pod under a policy leaves with an address of that policy or not at all: whatever is missing, the packet is refused and
//! the pod is told (N-111). All of a pod's flows have the same external address (N-002), found by a keyed hash that moves few
//! pods when addresses come or go.
//!
//! What its policies leave out is routed as it is and not remembered (N-110): its answers need not come this way, and there is
//! nothing about it that another gateway could not do as well.

use tidegate_api::resource::MappingClass;

use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::{Domain, Packet};
use crate::pipeline::{Answer, Granted, Moment, NewFlow, Refused, Step, Trace};
use crate::stage::flow::{self, Begun};
use crate::stage::route::{self, Hop};
use crate::stage::{policy, portless};
use crate::state::external::{Alone, PortsExhausted, Search};
use crate::state::ports::Taker;
use crate::state::quota::Quota;
use crate::state::{Entry, Grant, Learn, State, Tuple, mark, ticks};
use crate::table::egress::{EgressRow, PortClass};
use crate::table::pod::PodRow;
use crate::table::{EgressId, Tables};
use crate::wire::{protocol, tcp};

/// The policy that decides about a pod's packets to `destination`: the first that is for it. One that nobody knows is for
/// everything, and has no address (N-111).
pub(crate) fn deciding<'t, A: Family>(
    tables: &'t Tables,
    pod: &PodRow,
    destination: A,
) -> Option<(EgressId, Option<&'t EgressRow>)> {
    pod.egress.iter().find_map(|id| match tables.egress.policy(*id) {
        None => Some((*id, None)),
        Some(row) => destination.is_for(row).then_some((*id, Some(row))),
    })
}

/// Whether some policy of the pod leaves this destination out (N-043).
fn is_left_out<A: Family>(tables: &Tables, pod: &PodRow, destination: A) -> bool {
    pod.egress.iter().filter_map(|id| tables.egress.policy(*id)).any(|row| destination.said_by(row) == Some(false))
}

/// The external address of `pod` among `addresses`: highest random weight, so that those of few pods change with the list.
fn paired<A: Family>(tables: &Tables, addresses: &[A], pod: A) -> Option<A> {
    let weight = |address: &A| {
        let of =
            Tuple { source: pod, destination: *address, source_port: 0, destination_port: 0, protocol: 0, domain: 0 };
        A::hash_flow(&tables.settings.hash_key, &of)
    };
    match addresses {
        [only] => Some(*only),
        many => many.iter().copied().max_by_key(weight),
    }
}

/// The external address that `pod` has under a policy.
pub(crate) fn external_under<A: Family>(tables: &Tables, policy: &EgressRow, pod: A) -> Option<A> {
    paired(tables, A::external_of(policy), pod)
}

/// Whether answers to what leaves with `external` come to this gateway. Where they do not, the port may be another pod's (N-112).
fn is_carried<A: Family>(tables: &Tables, external: A) -> bool {
    external.external(tables).and_then(|id| tables.egress.external(id)).is_some_and(|row| row.is_carried)
}

/// Where a pod's packet to `destination` leaves: back in, if that is an external address (N-010).
pub fn way<A: Family>(tables: &Tables, destination: A, hash: u64) -> Result<Hop, DropReason> {
    if destination.external(tables).is_some() {
        return Ok(Hop::Hairpin);
    }
    match route::toward(tables, destination, hash)? {
        // Pods are never translated for one another (N-110).
        Hop::Tunnel(_) => Err(DropReason::NotOurs),
        hop => Ok(hop),
    }
}

/// What a packet out of the overlay to no address of ours begins. `before` is a flow of the same tuple that ends with this.
#[allow(clippy::too_many_arguments)]
pub fn start<A: Family, T: Trace>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    tuple: &Tuple<A>,
    hash: u64,
    moment: Moment,
    before: Option<&Entry<A>>,
    trace: &mut T,
) -> Result<Begun<A>, DropReason> {
    let pod = tuple.source.pod(tables).ok_or(DropReason::NotOurs)?;
    let own = tables.egress.whole_of(&tuple.source.mapped());
    let chosen = deciding(tables, pod, tuple.destination);
    if own.is_none() && chosen.is_none() {
        return untranslated(tables, packet, tuple, hash);
    }
    if !route::source_allowed(tables, packet.tunnel, tuple.source) {
        return Err(DropReason::SpoofedSource); // P-047
    }
    let class = PortClass::of(tuple.protocol);
    let speaks = || own.is_some() || chosen.and_then(|(_, row)| row).is_none_or(|row| row.other_protocols);
    if class.is_none() && !(portless::is_bare(tuple.protocol) && speaks()) {
        return Err(DropReason::ProtocolUnsupported); // N-095: in silence
    }
    let opens = packet.l3.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN;
    if matches!(tuple.protocol, protocol::TCP | protocol::SCTP) && !opens {
        return Err(DropReason::OrphanSegment); // N-088
    }
    let forward = way(tables, tuple.destination, hash)?;
    let passed = match policy::check(tables, tuple, (tuple.destination, tuple.destination_port)) {
        Ok(passed) => passed,
        Err(denied) => return Ok(Begun::Deny(denied)),
    };
    if let Err(answer) = flow::passable(tables, packet, forward) {
        return Ok(Begun::Answer(answer));
    }
    let by = Taker { pod: pod.backend.0, namespace: pod.namespace };
    let refused = |reason, address: Option<A>, exhausted, short| {
        let (answer, address, pod) = (Answer::Prohibited { otherwise: reason }, address.map(A::mapped), by.pod);
        Ok(Begun::Refuse(Refused { answer, address, class, pod, exhausted, short }))
    };
    let granted = match (own.and_then(|own| A::unmapped(&own)), chosen) {
        (Some(own), _) if !is_carried(tables, own) => return Err(DropReason::EgressElsewhere),
        (Some(own), _) => Ok(fixed(own, class, by, tuple)),
        (None, Some((policy, Some(row)))) => {
            let Some(external) = external_under(tables, row, tuple.source) else {
                return refused(DropReason::EgressNoAddress, None, None, None);
            };
            if !is_carried(tables, external) {
                return Err(DropReason::EgressElsewhere);
            }
            let given = match class {
                Some(class) => give(tables, state, tuple, &Wants { policy, row, external, class, by }, moment, before),
                None => alone_with(state, external, policy, by, tuple),
            };
            given.map_err(|lack| (lack, external))
        }
        _ => return refused(DropReason::EgressNoAddress, None, None, None),
    };
    let (source, granted) = match granted {
        Ok(granted) => granted,
        Err((Lack::Remote, external)) => return refused(DropReason::EgressProtocolTaken, Some(external), None, None),
        Err((Lack::Quota(short), external)) => {
            return refused(DropReason::EgressQuota, Some(external), None, short);
        }
        Err((Lack::Ports, external)) => {
            let exhausted = Some(destination_hash(state, tuple));
            return refused(DropReason::EgressPortsExhausted, Some(external), exhausted, None);
        }
    };
    trace.note(Step::Source(source.1));
    Ok(Begun::Flow(NewFlow {
        original: *tuple,
        source,
        to: (tuple.destination, tuple.destination_port_after(&source)),
        leaves: Domain::Wire,
        backend: pod.backend,
        backend_epoch: tables.backends.epoch(pod.backend),
        routes_epoch: tables.settings.routes_epoch,
        forward,
        reply: Some(Hop::Tunnel(packet.tunnel)),
        learn: Learn::default(),
        granted: Some(granted),
        passed,
    }))
}

/// A packet to what the pod's policies leave out: it goes on with the pod's own address, if a route leads there (N-110, T-193).
fn untranslated<A: Family>(
    tables: &Tables,
    packet: &Packet,
    tuple: &Tuple<A>,
    hash: u64,
) -> Result<Begun<A>, DropReason> {
    let pod = tuple.source.pod(tables).ok_or(DropReason::NotOurs)?;
    if tuple.destination.external(tables).is_some() || !is_left_out(tables, pod, tuple.destination) {
        return Err(DropReason::NotOurs);
    }
    if !route::source_allowed(tables, packet.tunnel, tuple.source) {
        return Err(DropReason::SpoofedSource);
    }
    let hop = way(tables, tuple.destination, hash)?;
    if let Err(denied) = policy::check(tables, tuple, (tuple.destination, tuple.destination_port)) {
        return Ok(Begun::Deny(denied));
    }
    match flow::passable(tables, packet, hop) {
        Ok(()) => Ok(Begun::Route(hop)),
        Err(answer) => Ok(Begun::Answer(answer)),
    }
}

/// The same of a later fragment, whose first one began nothing.
pub fn later<A: Family>(tables: &Tables, packet: &Packet, tuple: &Tuple<A>, hash: u64) -> Option<Begun<A>> {
    let is_pods = packet.domain == Domain::Overlay && portless::is_outside(tables, &tuple.destination);
    if is_pods { untranslated(tables, packet, tuple, hash).ok() } else { None }
}

impl<A: Family> Tuple<A> {
    /// The destination port of a packet whose source becomes `source`: of echo both are its identifier.
    fn destination_port_after(&self, source: &(A, u16)) -> u16 {
        if self.protocol == A::ICMP { source.1 } else { self.destination_port }
    }
}

/// Why a flow gets no port.
enum Lack {
    /// Its pod or namespace holds as many as it may; the share of the quota that others may have left.
    Quota(Option<Quota>),
    /// None is left.
    Ports,
    /// Another pod speaks this protocol with the destination.
    Remote,
}

/// What a new flow is given a port by.
struct Wants<'t, A> {
    policy: EgressId,
    row: &'t EgressRow,
    external: A,
    class: PortClass,
    by: Taker,
}

/// A pod that has an external address alone keeps its ports there.
fn fixed<A: Family>(own: A, class: Option<PortClass>, by: Taker, tuple: &Tuple<A>) -> ((A, u16), Granted<A>) {
    let timer = class.map_or(0, |class| timer(None, class, tuple));
    let grant = Grant { policy: EgressId::NONE, class, by, is_mapped: false, timer, is_recorded: false };
    ((own, tuple.source_port), Granted { grant, reuses: None, ends: None, is_scarce: false, short: None })
}

/// An external address as it is, for a protocol without ports: if nobody else speaks it with the destination (N-095).
fn alone_with<A: Family>(
    state: &State,
    external: A,
    policy: EgressId,
    by: Taker,
    tuple: &Tuple<A>,
) -> Result<((A, u16), Granted<A>), Lack> {
    let answer = Tuple { source: external, ..*tuple }.reversed(Domain::Wire as u8);
    let is_others = |entry: &Entry<A>| entry.original_tuple() != *tuple;
    if A::flows(state).lookup(&answer).is_some_and(|hit| is_others(A::flows(state).entry(hit.flow))) {
        return Err(Lack::Remote);
    }
    let grant = Grant { policy, class: None, by, is_mapped: false, timer: 0, is_recorded: false };
    Ok(((external, 0), Granted { grant, reuses: None, ends: None, is_scarce: false, short: None }))
}

/// The number of the timer of a flow.
fn timer<A>(row: Option<&EgressRow>, class: PortClass, tuple: &Tuple<A>) -> u8 {
    match (class, row) {
        (PortClass::Echo, _) => mark::TIMER_ECHO,
        (PortClass::Udp, Some(row)) => row.timer(tuple.destination_port),
        _ => 0,
    }
}

/// Whether a pod and its namespace may hold one port more (N-040), and the quota of which this worker's share runs short.
/// Quotas of namespaces are dealt among workers, and lent (`state::quota`).
fn may_hold(tables: &Tables, state: &State, wants: &Wants<'_, impl Family>) -> Result<Option<Quota>, Lack> {
    let (ports, most) = (&state.egress.ports, wants.row.ports_per_namespace_max);
    if ports.holder(wants.by.pod).held >= wants.row.ports_per_pod_max {
        return Err(Lack::Quota(None));
    }
    if most == u32::MAX {
        return Ok(None);
    }
    let quota = Quota { namespace: wants.by.namespace, most };
    let share = state.egress.quotas.share(quota, quota.dealt(state.worker.0, tables.owners.workers()));
    let held = ports.held_by_namespace(wants.by.namespace);
    let shared = (tables.owners.workers() > 1).then_some(quota);
    if held >= share {
        return Err(Lack::Quota(shared));
    }
    Ok(shared.filter(|_| u64::from(held) * 4 >= u64::from(share) * 3))
}

/// A port of the external address for a new flow.
fn give<A: Family>(
    tables: &Tables,
    state: &State,
    tuple: &Tuple<A>,
    wants: &Wants<'_, A>,
    moment: Moment,
    before: Option<&Entry<A>>,
) -> Result<((A, u16), Granted<A>), Lack> {
    let Wants { policy, row, external, class, by } = *wants;
    let now = ticks(moment.now_ns);
    let is_mapped = row.mapping(class).class == MappingClass::EndpointIndependent;
    let timer = timer(Some(row), class, tuple);
    let grant = Grant { policy, class: Some(class), by, is_mapped, timer, is_recorded: row.log };
    let inside = (tuple.source, tuple.source_port);
    if is_mapped {
        let known = A::mappings(&state.egress).of_inside(inside, tuple.protocol, now);
        // Of another address than the pod has now, or of who had the pod's address before: not this one's.
        let usable = known.filter(|mapping| mapping.pod == by.pod && A::external_of(row).contains(&mapping.outside.0));
        if let Some(mapping) = usable {
            let short = if mapping.is_resting { may_hold(tables, state, wants)? } else { None };
            return Ok((mapping.outside, Granted { grant, reuses: None, ends: None, is_scarce: false, short }));
        }
        if let Some(mapping) = known {
            // Its flows end at their next packet or within a lap of the sweep; until then the pod's port has none other.
            if !mapping.is_resting {
                return Err(Lack::Ports);
            }
            let found = alone(tables, state, tuple, wants, moment)?;
            let ends = Some(mapping);
            let granted = Granted { grant, reuses: None, ends, is_scarce: found.is_scarce, short: None };
            // Only one can end; a port whose mapping would have to end too is left for the next time.
            return match found.ends {
                Some(other) if other.id != mapping.id => Err(Lack::Ports),
                _ => Ok(((external, found.port), granted)),
            };
        }
    }
    // One that begins anew in the place of another holds no more than before.
    let short = if before.is_none() { may_hold(tables, state, wants)? } else { None };
    if is_mapped {
        let found = alone(tables, state, tuple, wants, moment)?;
        let granted = Granted { grant, reuses: None, ends: found.ends, is_scarce: found.is_scarce, short };
        return Ok(((external, found.port), granted));
    }
    // N-087: a connection that begins anew keeps its port.
    let kept = before.filter(|entry| entry.is_egress() && entry.mark & mark::MAPPED == 0).map(Entry::translated_tuple);
    if let Some(kept) = kept.filter(|kept| kept.source == external) {
        let granted = Granted { grant, reuses: None, ends: None, is_scarce: false, short };
        return Ok(((external, kept.source_port), granted));
    }
    let (search, is_reserved) = search(tables, state, tuple, wants, moment).ok_or(Lack::Ports)?;
    if state.egress.ports.is_exhausted(destination_hash(state, tuple), moment.now_ns) {
        return Err(Lack::Ports);
    }
    let remote = (tuple.destination, tuple.destination_port);
    // N-075: its checksum is over the whole packet, and fragments have none: the port stays as it is where it can.
    let keeps = class == PortClass::Sctp && !is_reserved(tuple.source_port);
    if keeps && search.is_free(A::flows(state), &state.egress.ports, remote, tuple.source_port) {
        let granted = Granted { grant, reuses: None, ends: None, is_scarce: false, short };
        return Ok(((external, tuple.source_port), granted));
    }
    let found = search.shared(A::flows(state), &state.egress.ports, remote, is_reserved);
    let found = found.map_err(|PortsExhausted| Lack::Ports)?;
    Ok(((external, found.port), Granted { grant, reuses: found.reuses, ends: None, is_scarce: found.is_scarce, short }))
}

/// A port that is to be one mapping's alone.
fn alone<A: Family>(
    tables: &Tables,
    state: &State,
    tuple: &Tuple<A>,
    wants: &Wants<'_, A>,
    moment: Moment,
) -> Result<Alone<A>, Lack> {
    let (search, is_reserved) = search(tables, state, tuple, wants, moment).ok_or(Lack::Ports)?;
    search.alone(state, is_reserved).map_err(|PortsExhausted| Lack::Ports)
}

fn search<'t, A: Family>(
    tables: &'t Tables,
    state: &State,
    tuple: &Tuple<A>,
    wants: &Wants<'_, A>,
    moment: Moment,
) -> Option<(Search<'t, A>, impl Fn(u16) -> bool + 't)> {
    let id = wants.external.external(tables)?;
    let forwards = &tables.egress.external(id)?.forwards;
    let number = tuple.protocol;
    let is_reserved = move |port| !forwards.is_empty() && forwards.contains_key(&(number, port));
    let search = Search {
        external: wants.external,
        class: wants.class,
        ports: tables.egress.ports_of(&tables.owners, id, wants.class, state.worker),
        protocol: number,
        entropy: moment.entropy,
        now: ticks(moment.now_ns),
    };
    Some((search, is_reserved))
}

/// What a destination for which no port was left is remembered by.
fn destination_hash<A: Family>(state: &State, tuple: &Tuple<A>) -> u64 {
    A::flows(state).hash(&Tuple { source: A::new_zeroed(), source_port: 0, ..*tuple })
}

pub(super) fn toward_pod<A: Family>(tables: &Tables, pod: A, hash: u64) -> Result<Hop, DropReason> {
    match route::toward(tables, pod, hash)? {
        hop @ Hop::Tunnel(_) => Ok(hop),
        _ => Err(DropReason::NoTunnel),
    }
}
