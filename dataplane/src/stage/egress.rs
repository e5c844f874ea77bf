//! # Egress: what pods send to the outside, and what comes back without a flow
//!
//! reads   `table::pod`, `egress`, `owner`; ports, mappings and flows of this worker     writes  nothing; returns a decision
//! drops   `NotOurs`, `SpoofedSource`, `OrphanSegment`, `ProtocolUnsupported`, `NoTunnel`, `NoMapping`, `Filtered`,
//!         `EgressNoAddress`, `EgressPortsExhausted`, `EgressQuota`
//! cost    cold: a new flow looks up its pod, policy, route and port; established packets never come here
//! spec    N-001 … N-012, N-023, N-030, N-035, N-040 … N-045, N-088, N-094, N-097, N-101, N-110, N-111, RFC 4787, 5382, 5508
//! tests   `dataplane/tests/golden/egress.rs`
//!
//! A pod under a policy leaves with an address of that policy or not at all: whatever is missing, the packet is refused and
//! the pod is told (N-111). All of a pod's flows have the same external address (N-002), found by a keyed hash that moves few
//! pods when addresses come or go.
//!
//! What comes from outside to an external address without a flow may belong to a mapping, if its sender may use that; it is
//! then led to the pod, and nothing is remembered of it: only what the pod itself sends keeps a mapping (N-008).

use tidegate_api::resource::{Filtering, MappingClass};

use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::{Domain, Key, Kind, Packet};
use crate::pipeline::{Answer, Granted, Moment, NewFlow, Refresh, Refused, Step, Trace};
use crate::stage::flow::{self, Begun, Standing};
use crate::stage::policy;
use crate::stage::route::{self, Hop};
use crate::state::external::{Alone, PortsExhausted, Search};
use crate::state::ports::Taker;
use crate::state::{Direction, Entry, Grant, IsVoid, Learn, State, Tuple, mark, ticks};
use crate::table::egress::{EgressRow, PortClass};
use crate::table::local::LocalKind;
use crate::table::pod::{NO_SERVICE, PodRow};
use crate::table::{BackendId, EgressId, ExternalId, Tables};
use crate::wire::packet::Fragment;
use crate::wire::{Family as Version, icmp, icmpv6, protocol, tcp};

/// Whether packets out of the overlay to `destination` may be pods' to the outside: it is no address that Services or
/// `fullnat` have.
#[inline]
pub fn is_outside<A: Family>(tables: &Tables, destination: &A) -> bool {
    let kind = destination.kind(tables);
    !kind.intersects(LocalKind::SERVED | LocalKind::FULLNAT_SOURCE | LocalKind::VTEP_OVERLAY)
}

/// What an echo message is looked up by.
#[cold]
pub fn echo_key(tables: &Tables, packet: &Packet, l3: &[u8]) -> Key {
    if packet.kind != Kind::Ip {
        return Key::None;
    }
    match packet.l3.family {
        Version::V4 => echo_tuple::<[u8; 4]>(tables, packet, l3).map_or(Key::None, Key::V4),
        Version::V6 => echo_tuple::<[u8; 16]>(tables, packet, l3).map_or(Key::None, Key::V6),
    }
}

/// The tuple of an echo message that can belong to a pod's flow: both ports are its identifier (N-094).
pub fn echo_tuple<A: Family>(tables: &Tables, packet: &Packet, l3: &[u8]) -> Option<Tuple<A>> {
    let at = &packet.l3;
    if tables.egress.is_empty() || at.fragment != Fragment::None || !at.is_icmp_echo() {
        return None;
    }
    let (source, destination) = A::addresses(l3);
    let request = if at.family == Version::V4 { icmp::ECHO_REQUEST } else { icmpv6::ECHO_REQUEST };
    let is_request = at.icmp_type == request;
    let fits = match packet.domain {
        Domain::Overlay => source.pod(tables).is_some() && is_outside(tables, &destination),
        Domain::Wire => {
            let row = destination.external(tables).and_then(|id| tables.egress.external(id));
            // A request to an address that pods share is answered here (T-088).
            row.is_some_and(|row| !is_request || row.whole.is_some())
        }
    };
    fits.then_some(Tuple {
        source,
        destination,
        source_port: at.source_port,
        destination_port: at.destination_port,
        protocol: at.protocol,
        domain: packet.domain as u8,
    })
}

/// The policy that decides about a pod's packets to `destination`: the first that is for it. One that nobody knows is for
/// everything, and has no address (N-111).
fn deciding<'t, A: Family>(
    tables: &'t Tables,
    pod: &PodRow,
    destination: A,
) -> Option<(EgressId, Option<&'t EgressRow>)> {
    pod.egress.iter().find_map(|id| match tables.egress.policy(*id) {
        None => Some((*id, None)),
        Some(row) => destination.is_for(row).then_some((*id, Some(row))),
    })
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
        return Err(DropReason::NotOurs);
    }
    if !route::source_allowed(tables, packet.tunnel, tuple.source) {
        return Err(DropReason::SpoofedSource); // P-047
    }
    let class = PortClass::of(tuple.protocol).ok_or(DropReason::ProtocolUnsupported)?;
    let opens = packet.l3.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN;
    if tuple.protocol == protocol::TCP && !opens {
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
    let refused = |reason, address: Option<A>, exhausted| {
        let answer = Answer::Prohibited { otherwise: reason };
        Ok(Begun::Refuse(Refused { answer, address: address.map(A::mapped), class, pod: by.pod, exhausted }))
    };
    let granted = match (own.and_then(|own| A::unmapped(&own)), chosen) {
        (Some(own), _) => Ok(fixed(own, class, by, tuple)),
        (None, Some((policy, Some(row)))) => {
            let Some(external) = paired(tables, A::external_of(row), tuple.source) else {
                return refused(DropReason::EgressNoAddress, None, None);
            };
            let wants = Wants { policy, row, external, class, by };
            give(tables, state, tuple, &wants, moment, before).map_err(|lack| (lack, external))
        }
        _ => return refused(DropReason::EgressNoAddress, None, None),
    };
    let (source, granted) = match granted {
        Ok(granted) => granted,
        Err((Lack::Quota, external)) => return refused(DropReason::EgressQuota, Some(external), None),
        Err((Lack::Ports, external)) => {
            return refused(DropReason::EgressPortsExhausted, Some(external), Some(destination_hash(state, tuple)));
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

impl<A: Family> Tuple<A> {
    /// The destination port of a packet whose source becomes `source`: of echo both are its identifier.
    fn destination_port_after(&self, source: &(A, u16)) -> u16 {
        if self.protocol == A::ICMP { source.1 } else { self.destination_port }
    }
}

/// Why a flow gets no port.
enum Lack {
    /// Its pod or namespace holds as many as it may.
    Quota,
    /// None is left.
    Ports,
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
fn fixed<A: Family>(own: A, class: PortClass, by: Taker, tuple: &Tuple<A>) -> ((A, u16), Granted<A>) {
    let grant = Grant {
        policy: EgressId::NONE,
        class,
        by,
        is_mapped: false,
        timer: timer(None, class, tuple),
        is_recorded: false,
    };
    ((own, tuple.source_port), Granted { grant, reuses: None, ends: None, is_scarce: false })
}

/// The number of the timer of a flow.
fn timer<A>(row: Option<&EgressRow>, class: PortClass, tuple: &Tuple<A>) -> u8 {
    match (class, row) {
        (PortClass::Echo, _) => mark::TIMER_ECHO,
        (PortClass::Udp, Some(row)) => row.timer(tuple.destination_port),
        _ => 0,
    }
}

/// Whether a pod and its namespace may hold one port more. Namespaces' shares are dealt among workers (N-040).
fn may_hold(tables: &Tables, state: &State, wants: &Wants<'_, impl Family>) -> bool {
    let ports = &state.egress.ports;
    let workers = u32::from(tables.owners.workers());
    let all = wants.row.ports_per_namespace_max;
    let share = all / workers + u32::from(u32::from(state.worker.0) < all % workers);
    ports.holder(wants.by.pod).held < wants.row.ports_per_pod_max
        && (all == u32::MAX || ports.held_by_namespace(wants.by.namespace) < share)
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
    let grant = Grant { policy, class, by, is_mapped, timer: timer(Some(row), class, tuple), is_recorded: row.log };
    let inside = (tuple.source, tuple.source_port);
    if is_mapped {
        let known = A::mappings(&state.egress).of_inside(inside, tuple.protocol, now);
        // Of another address than the pod has now, or of who had the pod's address before: not this one's.
        let usable = known.filter(|mapping| mapping.pod == by.pod && A::external_of(row).contains(&mapping.outside.0));
        if let Some(mapping) = usable {
            if mapping.is_resting && !may_hold(tables, state, wants) {
                return Err(Lack::Quota);
            }
            return Ok((mapping.outside, Granted { grant, reuses: None, ends: None, is_scarce: false }));
        }
        if let Some(mapping) = known {
            // Its flows end at their next packet or within a lap of the sweep; until then the pod's port has none other.
            if !mapping.is_resting {
                return Err(Lack::Ports);
            }
            let found = alone(tables, state, tuple, wants, moment)?;
            let granted = Granted { grant, reuses: None, ends: Some(mapping), is_scarce: found.is_scarce };
            // Only one can end; a port whose mapping would have to end too is left for the next time.
            return match found.ends {
                Some(other) if other.id != mapping.id => Err(Lack::Ports),
                _ => Ok(((external, found.port), granted)),
            };
        }
    }
    // One that begins anew in the place of another holds no more than before.
    if before.is_none() && !may_hold(tables, state, wants) {
        return Err(Lack::Quota);
    }
    if is_mapped {
        let found = alone(tables, state, tuple, wants, moment)?;
        let granted = Granted { grant, reuses: None, ends: found.ends, is_scarce: found.is_scarce };
        return Ok(((external, found.port), granted));
    }
    // N-087: a connection that begins anew keeps its port.
    let kept = before.filter(|entry| entry.is_egress() && entry.mark & mark::MAPPED == 0).map(Entry::translated_tuple);
    if let Some(kept) = kept.filter(|kept| kept.source == external) {
        return Ok(((external, kept.source_port), Granted { grant, reuses: None, ends: None, is_scarce: false }));
    }
    let (search, is_reserved) = search(tables, state, tuple, wants, moment).ok_or(Lack::Ports)?;
    if state.egress.ports.is_exhausted(destination_hash(state, tuple), moment.now_ns) {
        return Err(Lack::Ports);
    }
    let remote = (tuple.destination, tuple.destination_port);
    let found = search.shared(A::flows(state), &state.egress.ports, remote, is_reserved);
    let found = found.map_err(|PortsExhausted| Lack::Ports)?;
    Ok(((external, found.port), Granted { grant, reuses: found.reuses, ends: None, is_scarce: found.is_scarce }))
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

/// What a packet from outside to the external address `id` begins that belongs to no flow.
pub fn inbound<A: Family>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    tuple: &Tuple<A>,
    hash: u64,
    id: ExternalId,
    moment: Moment,
) -> Result<Begun<A>, DropReason> {
    let row = tables.egress.external(id).ok_or(DropReason::NoMapping)?;
    let forwarded = row.forwards.get(&(tuple.protocol, tuple.destination_port)).copied();
    let opens = packet.l3.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN;
    let is_tcp = tuple.protocol == protocol::TCP;
    if let Some((pod, port)) = forwarded.or_else(|| row.whole.map(|pod| (pod, tuple.destination_port))) {
        if is_tcp && !opens {
            return Err(DropReason::OrphanSegment);
        }
        let pod = A::unmapped(&pod).ok_or(DropReason::NoMapping)?;
        return led_in(tables, packet, tuple, hash, (pod, port));
    }
    let class = PortClass::of(tuple.protocol).ok_or(DropReason::ProtocolUnsupported)?;
    let outside = (tuple.destination, tuple.destination_port);
    let found = A::mappings(&state.egress).of_outside(outside, tuple.protocol, ticks(moment.now_ns));
    let mapping = found.filter(|mapping| !mapping.is_resting).ok_or(DropReason::NoMapping)?;
    let pod = mapping.inside.0.pod(tables).filter(|pod| pod.backend.0 == mapping.pod);
    let policy = tables.egress.policy(EgressId(mapping.policy)).filter(|_| pod.is_some());
    let policy = policy.ok_or(DropReason::NoMapping)?;
    let may_send = match policy.mapping(class).filtering {
        Filtering::EndpointIndependent => true,
        Filtering::AddressDependent => A::mappings(&state.egress).is_permitted(outside, tuple.protocol, tuple.source),
    };
    if !may_send {
        return Err(DropReason::Filtered); // N-009, N-023: in silence
    }
    if is_tcp {
        return if opens { led_in(tables, packet, tuple, hash, mapping.inside) } else { Err(DropReason::NoMapping) };
    }
    let passed = match policy::check(tables, tuple, mapping.inside) {
        Ok(passed) => passed,
        Err(denied) => return Ok(Begun::Deny(denied)),
    };
    let hop = toward_pod(tables, mapping.inside.0, hash)?;
    if let Err(answer) = flow::passable(tables, packet, hop) {
        return Ok(Begun::Answer(answer));
    }
    let (destination, port) = mapping.inside;
    let source_port = if tuple.protocol == A::ICMP { port } else { tuple.source_port };
    Ok(Begun::Deliver { to: Tuple { destination, destination_port: port, source_port, ..*tuple }, hop, passed })
}

/// A flow that somebody outside begins with a pod: its source stays.
fn led_in<A: Family>(
    tables: &Tables,
    packet: &Packet,
    tuple: &Tuple<A>,
    hash: u64,
    inside: (A, u16),
) -> Result<Begun<A>, DropReason> {
    let pod = inside.0.pod(tables).ok_or(DropReason::NoMapping)?;
    let passed = match policy::check(tables, tuple, inside) {
        Ok(passed) => passed,
        Err(denied) => return Ok(Begun::Deny(denied)),
    };
    let forward = toward_pod(tables, inside.0, hash)?;
    let reply = way(tables, tuple.source, hash)?;
    if let Err(answer) = flow::passable(tables, packet, forward) {
        return Ok(Begun::Answer(answer));
    }
    Ok(Begun::Flow(NewFlow {
        original: *tuple,
        source: (tuple.source, tuple.source_port),
        to: inside,
        leaves: Domain::Overlay,
        backend: pod.backend,
        backend_epoch: tables.backends.epoch(pod.backend),
        routes_epoch: tables.settings.routes_epoch,
        forward,
        reply: Some(reply),
        learn: Learn::default(),
        granted: None,
        passed,
    }))
}

fn toward_pod<A: Family>(tables: &Tables, pod: A, hash: u64) -> Result<Hop, DropReason> {
    match route::toward(tables, pod, hash)? {
        hop @ Hop::Tunnel(_) => Ok(hop),
        _ => Err(DropReason::NoTunnel),
    }
}

/// Whether the flow of `entry` depends on a pod rather than a Service.
#[cold]
pub fn is_pods<A: Family>(tables: &Tables, entry: &Entry<A>) -> bool {
    entry.is_egress() || tables.backends.row(BackendId(entry.backend)).is_some_and(|row| row.service == NO_SERVICE)
}

/// Whether policies and addresses still say what they said when the flow of `entry` began.
fn stands<A: Family>(tables: &Tables, entry: &Entry<A>) -> bool {
    let (original, translated) = (entry.original_tuple(), entry.translated_tuple());
    if !entry.is_egress() {
        return still_leads_in(tables, entry.backend, &original, &translated);
    }
    let Some(pod) = original.source.pod(tables).filter(|pod| pod.backend.0 == entry.backend) else { return false };
    if let Some(own) = tables.egress.whole_of(&original.source.mapped()) {
        return own == translated.source.mapped();
    }
    let row = deciding(tables, pod, original.destination).and_then(|(_, row)| row);
    let Some((row, class)) = row.zip(PortClass::of(original.protocol)) else { return false };
    let is_mapped = row.mapping(class).class == MappingClass::EndpointIndependent;
    let as_it_was = is_mapped == (entry.mark & mark::MAPPED != 0);
    as_it_was && A::external_of(row).contains(&translated.source)
}

/// The same of a flow that somebody outside began: its port is still the pod's, or mappings may still let him in.
fn still_leads_in<A: Family>(tables: &Tables, backend: u32, original: &Tuple<A>, translated: &Tuple<A>) -> bool {
    let row = original.destination.external(tables).and_then(|id| tables.egress.external(id));
    let pod = translated.destination.pod(tables).filter(|pod| pod.backend.0 == backend);
    let Some((row, pod)) = row.zip(pod) else { return false };
    let to = (translated.destination.mapped(), translated.destination_port);
    let forwarded = row.forwards.get(&(original.protocol, original.destination_port)).copied();
    if let Some(at) = forwarded.or_else(|| row.whole.map(|pod| (pod, original.destination_port))) {
        return at == to;
    }
    let policy = deciding(tables, pod, original.source).and_then(|(_, row)| row);
    policy.is_some_and(|row| {
        let is_mapped = row.mapping(PortClass::Tcp).class == MappingClass::EndpointIndependent;
        is_mapped && A::external_of(row).contains(&original.destination)
    })
}

/// Whether the flow of a pod goes on after something it depends on has changed, and where it leaves then (N-101).
pub fn revalidate<A: Family>(tables: &Tables, entry: &Entry<A>, direction: Direction, hash: u64) -> Standing {
    if !stands(tables, entry) {
        return Standing::End;
    }
    let (original, translated) = (entry.original_tuple(), entry.translated_tuple());
    if let Err(denied) = policy::check_again(tables, &original, (translated.destination, translated.destination_port)) {
        return Standing::Deny(denied);
    }
    let (forward, reply) = if entry.is_egress() {
        (way(tables, original.destination, hash), toward_pod(tables, original.source, hash))
    } else {
        (toward_pod(tables, translated.destination, hash), way(tables, original.source, hash))
    };
    let needed = match direction {
        Direction::Original => forward,
        Direction::Reply => reply,
    };
    if let Err(reason) = needed {
        return Standing::Refuse(reason);
    }
    Standing::Keep(Refresh {
        backend_epoch: tables.backends.epoch(BackendId(entry.backend)),
        routes_epoch: tables.settings.routes_epoch,
        forward: forward.ok(),
        reply: reply.ok(),
    })
}

fn is_allowed<A: Family>(tables: &Tables, entry: &Entry<A>) -> bool {
    let translated = entry.translated_tuple();
    policy::check_again(tables, &entry.original_tuple(), (translated.destination, translated.destination_port)).is_ok()
}

/// Judges, for the sweep, flows whose pod or policy has changed since they were looked at (N-101).
#[derive(Clone, Copy, Debug)]
pub struct Judge<'t>(pub &'t Tables);

impl Judge<'_> {
    #[inline]
    fn is_void<A: Family>(self, entry: &mut Entry<A>) -> bool {
        let epoch = self.0.backends.epoch(BackendId(entry.backend));
        if entry.backend_epoch == epoch {
            return false;
        }
        let stands = stands(self.0, entry);
        // One that network policies stop now is left as it is: its next packet has to ask them (P-031).
        if stands && is_allowed(self.0, entry) {
            entry.backend_epoch = epoch;
        }
        !stands
    }
}

impl IsVoid for Judge<'_> {
    fn v4(&self, entry: &mut Entry<[u8; 4]>) -> bool {
        self.is_void(entry)
    }

    fn v6(&self, entry: &mut Entry<[u8; 16]>) -> bool {
        self.is_void(entry)
    }
}
