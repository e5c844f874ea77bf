//! What would become of a packet, in plain values for people.
//!
//! Owns the words for a decision: which steps it took, what each of them looked at, where the packet ends. The decision itself
//! is [`crate::pipeline::decide`]'s, made by the owning worker with its live tables and state ([`crate::worker`] asks itself);
//! nothing is applied. Refuses to know the socket.

use std::net::SocketAddr;

use tidegate_api::explain::{Explanation, Reason, Step, Verdict};
use tidegate_api::resource::{MacAddress, Scheduler};

use crate::compile::address_of;
use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::{Domain, Kind, Packet};
use crate::pipeline::{self, Answer, Decision};
use crate::stage::flow::may_cut;
use crate::stage::policy::{Blame, Decided, Denied, Direction as Side, Passed};
use crate::stage::route::{self, Hop};
use crate::stage::{egress, gatepolicy, inward};
use crate::state::affinity::Remembered;
use crate::state::fragment::Ports;
use crate::state::{Direction, Entry, Hit, State, TICK_NS_LOG2, Tuple, mark, ticks, ticks_since};
use crate::table::egress::{EgressRow, PortClass};
use crate::table::owner::{BLOCK_PORTS, WorkerId};
use crate::table::pod::NO_SERVICE;
use crate::table::service::{FrontendKind, Mode};
use crate::table::{BackendId, DeviceId, EgressId, Tables};
use crate::wire::packet::Fragment;
use crate::wire::{Family as Version, ipv4, ipv6, protocol};

/// The frame that a bare packet comes in as.
pub mod envelope;
/// What the pinhole leaves to the kernel.
pub(crate) mod pinhole;
/// Where a packet and the tables do not say the same.
pub(crate) mod evidence;

/// What a worker is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Device it comes in by.
    pub device: DeviceId,
    /// The frame; the IP packet alone, if that was taken back.
    pub bytes: Vec<u8>,
    /// A pod sent it to another pod's external address, and it comes back in as if from the wire (N-010).
    pub is_back: bool,
    /// How another worker has handed it over, if one has.
    pub handed: Option<Handed>,
}

/// What a worker says of a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// It is this worker's, and this becomes of it.
    Mine(Box<Explanation>),
    /// The same, and it comes back in as this IP packet.
    Back(Box<Explanation>, Vec<u8>),
    /// It is that one's.
    Theirs(Handed),
}

/// Workers asked about one half of a packet's way: one that owns nothing of it, the one it names, of a fragment the one that
/// owns its flow, and the one that this one names, where affinity of a Service has come or gone (design 4).
const ASKED_MAX: usize = 4;

/// The whole way of a frame that comes in by `device`: `ask` asks a worker, `first` before all others. `None`: workers do not
/// agree whose it is, since tables are changing.
///
/// # Errors
/// Those of `ask`.
pub fn whole<E>(
    first: usize,
    device: DeviceId,
    frame: &[u8],
    mut ask: impl FnMut(usize, &Asked) -> Result<Told, E>,
) -> Result<Option<Explanation>, E> {
    let mut asked = Asked { device, bytes: frame.to_vec(), is_back: false, handed: None };
    let (mut worker, mut before) = (first, Vec::new());
    for _ in 0..2 * ASKED_MAX {
        match ask(worker, &asked)? {
            Told::Mine(mut explanation) => {
                explanation.steps.splice(0..0, before);
                return Ok(Some(*explanation));
            }
            Told::Back(explanation, bytes) => {
                before = explanation.steps;
                asked = Asked { device, bytes, is_back: true, handed: None };
            }
            Told::Theirs(other) => (worker, asked.handed) = (usize::from(other.to.0), Some(other)),
        }
    }
    Ok(None)
}

/// How a packet comes to a worker from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handed {
    /// To whom.
    pub to: WorkerId,
    /// The ports that it is looked up by; only of a fragment.
    pub ports: Option<Ports>,
}

/// Steps as they are told, and the tables that have the names.
pub(crate) struct Story<'t> {
    tables: &'t Tables,
    /// So far.
    pub steps: Vec<Step>,
}

impl<'t> Story<'t> {
    /// The second half of a packet's way.
    pub fn begin_again(tables: &'t Tables) -> Story<'t> {
        Story { tables, steps: vec![Step::TakenBack] }
    }

    /// A frame of so many bytes has come in.
    pub fn begin(tables: &'t Tables, device: DeviceId, bytes: usize) -> Story<'t> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Story { tables, steps: vec![Step::Received { device: device_name(tables, device), bytes }] }
    }

    /// It could be read: what it is.
    pub fn packet(&mut self, packet: &Packet, l3: &[u8]) {
        if packet.domain == Domain::Overlay
            && let Some(row) = self.tables.tunnels.row(packet.tunnel)
        {
            let (node, underlay) = (row.name.to_string(), address_of(&row.underlay));
            self.steps.push(Step::Decapsulated { node, underlay, vni: row.vni });
        }
        if packet.kind == Kind::Arp {
            return self.steps.push(Step::Arp);
        }
        let at = &packet.l3;
        let (source, destination) = match at.family {
            Version::V4 => {
                let (source, destination) = ipv4::addresses(l3);
                (source.ip(), destination.ip())
            }
            Version::V6 => {
                let (source, destination) = ipv6::addresses(l3);
                (source.ip(), destination.ip())
            }
        };
        let has_ports = at.has_l4() && matches!(at.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        self.steps.push(Step::Packet {
            protocol: at.protocol,
            source,
            source_port: has_ports.then_some(at.source_port),
            destination,
            destination_port: has_ports.then_some(at.destination_port),
            bytes: at.total_len,
            ttl: at.ttl,
            fragment: at.fragment != Fragment::None,
        });
    }

    /// What was decided about a packet with a tuple, as the story of it.
    #[allow(clippy::too_many_arguments)]
    pub fn decision<A: Family>(
        &mut self,
        state: &State,
        packet: &Packet,
        tuple: &Tuple<A>,
        hash: u64,
        heard: &[pipeline::Step],
        decision: &Decision<A>,
        now_ns: u64,
    ) -> Verdict {
        for step in heard {
            match step {
                pipeline::Step::Hit(_) => {
                    if let Some(hit) = A::flows(state).lookup(tuple) {
                        self.steps.push(flow_of::<A>(state, hit, now_ns));
                    }
                }
                pipeline::Step::Miss => self.steps.push(Step::NoFlow),
                pipeline::Step::Revalidate => self.steps.push(Step::Revalidated),
                // Told with the flow that has them.
                pipeline::Step::Backend(_) | pipeline::Step::Source(_) => {}
            }
        }
        if !matches!(decision, Decision::Forward { .. } | Decision::Translate { .. }) {
            self.asked_for(state, tuple, now_ns);
        }
        match decision {
            Decision::Forward { flow, direction, hop, .. } => {
                let entry = A::flows(state).entry(*flow);
                let to = match direction {
                    Direction::Original => entry.translated_tuple(),
                    Direction::Reply => entry.original_tuple().reversed(tuple.domain),
                };
                self.backend(BackendId(entry.backend), entry.original_tuple().destination_port);
                self.bound(Bound::by_entry(self.tables, entry), state, now_ns);
                self.translated((to.source, to.source_port), (to.destination, to.destination_port));
                self.leaves(packet, *hop, hash)
            }
            Decision::Translate { flow, hop, .. } => {
                self.steps.push(flow_of::<A>(state, Hit { flow: *flow, direction: Direction::Original }, now_ns));
                self.bound(Bound::by_entry(self.tables, A::flows(state).entry(*flow)), state, now_ns);
                self.leaves(packet, *hop, hash)
            }
            Decision::Start { flow, .. } => {
                self.backend(flow.backend, tuple.destination_port);
                self.bound(Bound::by_start(self.tables, flow), state, now_ns);
                self.passed(&flow.passed);
                self.translated(flow.source, flow.to);
                self.leaves(packet, flow.forward, hash)
            }
            Decision::Deliver { to, hop, passed } => {
                self.bound(Some(Bound::by_mapping(tuple, to)), state, now_ns);
                self.passed(passed);
                self.translated((to.source, to.source_port), (to.destination, to.destination_port));
                self.leaves(packet, *hop, hash)
            }
            Decision::Route(hop) => self.leaves(packet, *hop, hash),
            Decision::Pass { backend, hop } => {
                self.backend(*backend, tuple.destination_port);
                self.leaves(packet, *hop, hash)
            }
            Decision::Deny(denied) => {
                let ends = match denied.by {
                    Blame::Gate(_) => None,
                    _ => self.judged(state, tuple, heard, now_ns),
                };
                self.denied(denied, ends);
                dropped(denied.reason)
            }
            Decision::Refuse(refused) => answered(refused.answer, packet.l3.protocol),
            Decision::Answer(answer) => {
                self.steps.extend(match answer {
                    Answer::TimeExceeded => Some(evidence::of_ttl(packet)),
                    Answer::TooBig { mtu } => Some(evidence::of_length(packet, *mtu)),
                    _ => None,
                });
                answered(*answer, packet.l3.protocol)
            }
            Decision::Drop(reason) => {
                let backend = heard.iter().find_map(|step| match step {
                    pipeline::Step::Backend(id) => Some(*id),
                    _ => None,
                });
                if let Some(id) = backend {
                    self.backend(id, tuple.destination_port);
                    self.steps.extend(evidence::of_sources::<A>(self.tables, state, id, *reason));
                } else if let Some(hit) = A::flows(state).lookup(tuple).filter(|_| heard.iter().any(is_hit)) {
                    let entry = A::flows(state).entry(hit.flow);
                    self.backend(BackendId(entry.backend), entry.original_tuple().destination_port);
                }
                dropped(*reason)
            }
        }
    }

    /// Whom the packet asks for, as far as anybody is there.
    fn asked_for<A: Family>(&mut self, state: &State, tuple: &Tuple<A>, now_ns: u64) {
        let tables = self.tables;
        let served = tuple.destination.service(tables, tuple.protocol, tuple.destination_port);
        let row = served.and_then(|served| Some((served, tables.services.row(served.service)?)));
        if let Some((served, row)) = row {
            let is_outside = matches!(served.kind, FrontendKind::Vip | FrontendKind::External);
            let is_nodes = is_outside && row.mode == Mode::NodeDsr;
            let of_nodes = || tables.services.nodes(served.service).map(|nodes| nodes.members.len());
            let members = is_nodes.then(of_nodes).flatten().unwrap_or(row.cluster.members.len());
            let affinity_s = row.terms.as_ref().map(|terms| terms.affinity_timeout_s).unwrap_or_default();
            let remembered = || state.affinity.recall(&tuple.source.mapped(), served.service, ticks(now_ns));
            self.steps.push(Step::Service {
                service: row.name.to_string(),
                port: row.port,
                kind: kind_name(served.kind).to_owned(),
                mode: if is_outside { row.mode } else { Mode::Fullnat }.name().to_owned(),
                scheduler: match is_nodes {
                    true => Scheduler::Mh,
                    false => row.terms.as_ref().map(|terms| terms.scheduler).unwrap_or_default(),
                },
                endpoints: u32::try_from(members).unwrap_or(u32::MAX),
                affinity_s,
                is_remembered: affinity_s > 0 && !is_nodes && matches!(remembered(), Remembered::Backend(_)),
            });
            let is_vip = served.kind == FrontendKind::Vip;
            let ranges = row.terms.as_ref().and_then(|terms| terms.ranges.as_deref()).filter(|_| is_vip);
            self.steps.extend(ranges.and_then(|ranges| evidence::of_client(&row.name, ranges, tuple.source)));
            return;
        }
        if tuple.domain == Domain::Overlay as u8
            && let Some(pod) = tuple.source.pod(tables)
        {
            let name = |id| tables.egress.policy(id).map(|row| row.name.to_string());
            let policies = pod.egress.iter().filter_map(|id| name(*id)).collect();
            let own = tables.egress.whole_of(&tuple.source.mapped()).map(|own| address_of(&own));
            let chosen = egress::deciding(tables, pod, tuple.destination).filter(|_| own.is_none());
            let row = chosen.and_then(|(_, row)| row);
            let under = row.and_then(|row| egress::external_under(tables, row, tuple.source)).map(A::ip);
            let policy = chosen.map(|_| row.map(|row| row.name.to_string()).unwrap_or_default());
            self.steps.push(Step::Egress { pod: tuple.source.ip(), policies, policy, address: own.or(under) });
        }
        if tuple.destination.external(tables).is_some() {
            let has_it = |row: &EgressRow| A::external_of(row).contains(&tuple.destination);
            let policies = tables.egress.policies().filter(|(_, row)| has_it(row));
            let policies = policies.map(|(_, row)| row.name.to_string()).collect();
            self.steps.push(Step::External { address: tuple.destination.ip(), policies });
        }
    }

    /// What a pod is seen as, if it has to do with that. Names of StaticNats whoever has the objects puts in.
    fn bound<A: Family>(&mut self, bound: Option<Bound<A>>, state: &State, now_ns: u64) {
        let Some(Bound { inside, outside, remote, protocol, made }) = bound else { return };
        let tables = self.tables;
        let found = A::mappings(&state.egress).of_outside(outside, protocol, ticks(now_ns));
        let mapping = found.filter(|mapping| mapping.inside == inside && !mapping.is_resting);
        let policy = match (&made, mapping) {
            (Made::Fixed, _) => None,
            (_, Some(mapping)) => tables.egress.policy(EgressId(mapping.policy)),
            _ => inside.0.pod(tables).and_then(|pod| egress::deciding(tables, pod, remote)?.1),
        };
        let class = PortClass::of(protocol);
        let sort = match (&made, class) {
            (Made::Fixed, _) if tables.egress.whole_of(&inside.0.mapped()) == Some(outside.0.mapped()) => "one-to-one",
            (Made::Fixed, _) => "forwarded-port",
            (_, None) => "whole-protocol",
            (Made::Now { is_mapped: true } | Made::Before { is_mapped: true }, _) => "endpoint-independent",
            _ => "address-and-port-dependent",
        };
        let pair = |(address, port): (A, u16)| SocketAddr::new(address.ip(), port);
        self.steps.push(Step::Binding {
            sort: sort.to_owned(),
            policy: policy.map(|row| row.name.to_string()).unwrap_or_default(),
            static_nat: String::new(),
            internal: pair(inside),
            external: pair(outside),
            block: (!matches!(made, Made::Fixed) && class.is_some()).then(|| block_of(outside.1)),
            is_new: matches!(made, Made::Now { .. }) && mapping.is_none(),
        });
    }

    /// Who has it; `asked`: the port that the client asked for.
    fn backend(&mut self, id: BackendId, asked: u16) {
        let Some(row) = self.tables.backends.row(id) else { return };
        // A pod's own row is told by its address, and by what it is seen as.
        if row.service.is_none() || row.service == NO_SERVICE {
            return;
        }
        let node = self.tables.tunnels.row(row.node).map(|tunnel| tunnel.name.to_string()).unwrap_or_default();
        let address = address_of(&row.address);
        let port = if row.node.is_none() { row.port_for(asked) } else { 0 };
        self.steps.push(Step::Backend { address, port, node, pod: String::new() });
    }

    /// To whom it would have gone, and both ends as policies see them; `None`: a node picks the pod.
    fn judged<A: Family>(
        &mut self,
        state: &State,
        tuple: &Tuple<A>,
        heard: &[pipeline::Step],
        now_ns: u64,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let tables = self.tables;
        let pair = |(address, port): (A, u16)| SocketAddr::new(address.ip(), port);
        let known = || A::flows(state).lookup(tuple).filter(|_| heard.iter().any(is_hit));
        let chosen = heard.iter().find_map(|step| match step {
            pipeline::Step::Backend(id) => Some(*id),
            _ => None,
        });
        if let Some(id) = chosen {
            self.backend(id, tuple.destination_port);
            let row = tables.backends.row(id).filter(|row| row.node.is_none())?;
            let to = (A::unmapped(&row.address)?, row.port_for(tuple.destination_port));
            return Some((pair((tuple.source, tuple.source_port)), pair(to)));
        }
        if let Some(hit) = known() {
            let entry = A::flows(state).entry(hit.flow);
            let (original, translated) = (entry.original_tuple(), entry.translated_tuple());
            self.backend(BackendId(entry.backend), original.destination_port);
            let ends = ((original.source, original.source_port), (translated.destination, translated.destination_port));
            return (!entry.is_one_way()).then(|| (pair(ends.0), pair(ends.1)));
        }
        let to = inward::leads_to(tables, state, tuple, ticks(now_ns));
        if let Some(to) = to {
            self.bound(Bound::inward(tables, tuple, to), state, now_ns);
        }
        let to = to.unwrap_or((tuple.destination, tuple.destination_port));
        Some((pair((tuple.source, tuple.source_port)), pair(to)))
    }

    fn passed(&mut self, passed: &Passed) {
        if let Some(key) = gatepolicy::key_of(self.tables, &passed.gate) {
            self.gate(key, true);
        }
        for (side, by) in [(Side::Egress, passed.egress), (Side::Ingress, passed.ingress)] {
            if let Some(by) = by {
                self.ruling(side, by, true, None);
            }
        }
    }

    /// Who stopped it; `ends` as policies see them.
    pub fn denied(&mut self, denied: &Denied, ends: Option<(SocketAddr, SocketAddr)>) {
        match denied.by {
            Blame::Policy(by) => self.ruling(denied.direction(), by, false, ends),
            Blame::Gate(key) => self.gate(key, false),
            Blame::Unknown => self.steps.push(Step::Policy {
                direction: side_name(denied.direction()).to_owned(),
                policy: "unknownPod: deny".to_owned(),
                key: 0,
                rule: None,
                allowed: false,
                ends,
            }),
        }
    }

    /// Names of gateway policies are not among the tables: whoever has the objects puts them in.
    fn gate(&mut self, key: u64, allowed: bool) {
        let direction = "clients".to_owned();
        self.steps.push(Step::Policy { direction, policy: String::new(), key, rule: None, allowed, ends: None });
    }

    fn ruling(&mut self, side: Side, by: Decided, allowed: bool, ends: Option<(SocketAddr, SocketAddr)>) {
        let (policy, rule) = match by {
            Decided::Default => (None, None),
            Decided::Isolation(policy) | Decided::Itself(policy) => (Some(policy), None),
            Decided::Rule(policy, rule) => (Some(policy), Some(rule)),
        };
        let name = policy.and_then(|policy| self.tables.policy.rules.policy(policy));
        let (direction, policy) = (side_name(side).to_owned(), name.unwrap_or_default().to_owned());
        self.steps.push(Step::Policy { direction, policy, key: 0, rule, allowed, ends });
    }

    fn translated<A: Family>(&mut self, source: (A, u16), destination: (A, u16)) {
        let pair = |(address, port): (A, u16)| SocketAddr::new(address.ip(), port);
        self.steps.push(Step::Translated { source: pair(source), destination: pair(destination) });
    }

    /// The way out over `hop`.
    fn leaves(&mut self, packet: &Packet, hop: Hop, hash: u64) -> Verdict {
        let tables = self.tables;
        let departure = match route::departure(tables, hop, hash) {
            _ if hop == Hop::Hairpin => return Verdict::Returns,
            Ok(departure) => departure,
            Err(reason) => return dropped(reason),
        };
        let mtu = route::mtu(tables, hop);
        if let Hop::Tunnel(id) = hop
            && let Some(row) = tables.tunnels.row(id)
        {
            let (node, underlay) = (row.name.to_string(), address_of(&row.underlay));
            let mac = MacAddress(row.inner_mac);
            self.steps.push(Step::Encapsulated { node, underlay, mac, vni: row.vni, mtu });
        }
        let (device, address) = (device_name(tables, departure.device), address_of(&departure.address));
        self.steps.push(Step::NextHop {
            device: device.clone(),
            address,
            mac: departure.mac.map(MacAddress),
            mtu: tables.devices.row(departure.device).map_or(0, |row| row.mtu),
        });
        let in_fragments = packet.l3.total_len > mtu;
        if in_fragments && !may_cut(&packet.l3, mtu) {
            return dropped(DropReason::TooBig);
        }
        match departure.mac {
            Some(_) => Verdict::Sent { device, in_fragments },
            None => Verdict::Waits { device, address },
        }
    }
}

fn is_hit(step: &pipeline::Step) -> bool {
    matches!(step, pipeline::Step::Hit(_))
}

/// A pod's end and what it is seen as.
struct Bound<A> {
    inside: (A, u16),
    outside: (A, u16),
    remote: A,
    protocol: u8,
    made: Made,
}

/// How it came about.
enum Made {
    /// By a StaticNat.
    Fixed,
    /// By an EgressPolicy, and by a mapping of the pod's port or for this flow alone.
    Before { is_mapped: bool },
    /// The same with this packet.
    Now { is_mapped: bool },
}

impl<A: Family> Bound<A> {
    /// Of a flow; `None`: no pod's with the outside.
    fn by_entry(tables: &Tables, entry: &Entry<A>) -> Option<Bound<A>> {
        let (original, translated) = (entry.original_tuple(), entry.translated_tuple());
        if entry.is_egress() {
            let is_mapped = entry.mark & mark::MAPPED != 0;
            return Some(Bound::outward(
                tables,
                &original,
                (translated.source, translated.source_port),
                Made::Before { is_mapped },
            ));
        }
        Bound::inward(tables, &original, (translated.destination, translated.destination_port))
    }

    /// Of one that begins.
    fn by_start(tables: &Tables, flow: &pipeline::NewFlow<A>) -> Option<Bound<A>> {
        match &flow.granted {
            Some(granted) => {
                let is_mapped = granted.grant.is_mapped;
                Some(Bound::outward(tables, &flow.original, flow.source, Made::Now { is_mapped }))
            }
            None => Bound::inward(tables, &flow.original, flow.to),
        }
    }

    /// Of a packet that comes in by a mapping.
    fn by_mapping(came: &Tuple<A>, to: &Tuple<A>) -> Bound<A> {
        Bound {
            inside: (to.destination, to.destination_port),
            outside: (came.destination, came.destination_port),
            remote: came.source,
            protocol: came.protocol,
            made: Made::Before { is_mapped: true },
        }
    }

    /// A pod's packet that leaves.
    fn outward(tables: &Tables, original: &Tuple<A>, outside: (A, u16), made: Made) -> Bound<A> {
        let is_own = tables.egress.whole_of(&original.source.mapped()) == Some(outside.0.mapped());
        Bound {
            inside: (original.source, original.source_port),
            outside,
            remote: original.destination,
            protocol: original.protocol,
            made: if is_own { Made::Fixed } else { made },
        }
    }

    /// One that somebody outside sends to an external address.
    fn inward(tables: &Tables, original: &Tuple<A>, inside: (A, u16)) -> Option<Bound<A>> {
        let row = tables.egress.external(original.destination.external(tables)?)?;
        let is_fixed =
            row.whole.is_some() || row.forwards.contains_key(&(original.protocol, original.destination_port));
        Some(Bound {
            inside,
            outside: (original.destination, original.destination_port),
            remote: original.source,
            protocol: original.protocol,
            made: if is_fixed { Made::Fixed } else { Made::Before { is_mapped: true } },
        })
    }
}

/// First and last port of a block of ports.
fn block_of(port: u16) -> (u16, u16) {
    let first = port - port % BLOCK_PORTS;
    (first, first + (BLOCK_PORTS - 1))
}

fn side_name(side: Side) -> &'static str {
    if side == Side::Egress { "egress" } else { "ingress" }
}

/// The end of a packet that is dropped.
pub(crate) fn dropped(reason: DropReason) -> Verdict {
    Verdict::Dropped(of_reason(reason))
}

/// The end of a packet of this protocol that is answered.
pub(crate) fn answered(answer: Answer, number: u8) -> Verdict {
    let (with, reason) = match answer {
        Answer::Arp => ("ARP reply".to_owned(), None),
        Answer::Advertise => ("neighbour advertisement".to_owned(), None),
        Answer::Echo => ("echo reply".to_owned(), None),
        Answer::Reset { otherwise } if number == protocol::SCTP => ("SCTP ABORT".to_owned(), Some(otherwise)),
        Answer::Reset { otherwise } => ("TCP reset".to_owned(), Some(otherwise)),
        Answer::Unreachable => ("ICMP port unreachable".to_owned(), None),
        Answer::Prohibited { otherwise } => ("ICMP administratively prohibited".to_owned(), Some(otherwise)),
        Answer::TimeExceeded => ("ICMP time exceeded".to_owned(), None),
        Answer::TooBig { mtu } => (format!("ICMP packet too big, {mtu} bytes fit"), None),
    };
    Verdict::Answered { with, reason: reason.map(of_reason) }
}

fn of_reason(reason: DropReason) -> Reason {
    Reason {
        reason: reason.name().to_owned(),
        stage: reason.stage().to_owned(),
        severity: reason.severity().name().to_owned(),
        help: reason.help().to_owned(),
    }
}

fn flow_of<A: Family>(state: &State, hit: Hit, now_ns: u64) -> Step {
    let entry = A::flows(state).entry(hit.flow);
    let (original, translated) = (entry.original_tuple(), entry.translated_tuple());
    let pair = |address: A, port| SocketAddr::new(address.ip(), port);
    let idle_ticks = ticks_since(entry.last_seen_ticks, ticks(now_ns));
    Step::Flow {
        original: hit.direction == Direction::Original,
        egress: entry.is_egress(),
        state: entry.state.name().to_owned(),
        client: pair(original.source, original.source_port),
        vip: pair(original.destination, original.destination_port),
        source: pair(translated.source, translated.source_port),
        backend: pair(translated.destination, translated.destination_port),
        idle_s: (u64::from(idle_ticks) << TICK_NS_LOG2) / 1_000_000_000,
        packets: (entry.counted(Direction::Original).packets, entry.counted(Direction::Reply).packets),
    }
}

fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::Vip => "vip",
        FrontendKind::External => "external",
        FrontendKind::Cluster => "cluster",
        FrontendKind::Node => "node",
    }
}

fn device_name(tables: &Tables, id: DeviceId) -> String {
    tables.devices.row(id).map_or_else(|| "?".to_owned(), |row| row.name.to_string())
}
