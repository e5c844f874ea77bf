//! The read side: questions of `tidegate show` and their answers.
//!
//! Answers are rows of plain values, ready for a table or `--json`. Rates are left to the reader: counters only.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::message::NodeDelivery;
use crate::resource::{MacAddress, Protocol, Scheduler};

/// A question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Show {
    /// Services and their frontends.
    Services,
    /// Backends of all Services, or of one.
    Backends {
        /// `namespace/name`; absent: all.
        service: Option<String>,
    },
    /// Flows, at most `limit`, copied by the owning worker between two turns.
    Flows {
        /// Most rows to return.
        limit: u32,
        /// Which flows; absent: all.
        #[serde(default, skip_serializing_if = "FlowFilter::takes_all")]
        filter: FlowFilter,
    },
    /// VXLAN peers.
    Tunnels,
    /// Routes in the tables, kernel's and overlay's.
    Routes,
    /// Neighbours in the tables.
    Neighbours,
    /// Workers: core, generation, turns, flows.
    Workers,
    /// Ports: device, queue, mode, ring statistics.
    Ports,
    /// All counters by name, and the books of design section 9.
    Counters,
    /// Drop reasons with counts and meaning.
    Drops,
    /// The gateways of the set: who lives, who announces how much.
    Gateways,
    /// Routes to VIPs in the kernel, for routing daemons.
    Announcements,
    /// Network policies: what each rule has let begin and stopped.
    Policies,
    /// Ports of external addresses, and the pods that hold most.
    Egress,
    /// Whether control is there, and when it was heard last.
    Control,
    /// Whether workers, links and rings are as packets need them.
    Readiness,
}

/// Which flows are asked for: those that everything fits that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowFilter {
    /// IANA protocol number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// Whoever began it, as it came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpNet>,
    /// Where it was sent to, as it came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<IpNet>,
    /// Its translated source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpNet>,
    /// Where it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<IpNet>,
    /// `namespace/name` of its Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

impl FlowFilter {
    /// Whether nothing is asked of a flow.
    pub fn takes_all(&self) -> bool {
        *self == FlowFilter::default()
    }

    /// Whether a flow of this protocol and with these addresses fits, whatever its Service: client, VIP, source, backend.
    pub fn takes(&self, protocol: u8, [client, vip, source, backend]: [IpAddr; 4]) -> bool {
        let fits = |asked: &Option<IpNet>, address: IpAddr| asked.is_none_or(|asked| asked.contains(&address));
        self.protocol.is_none_or(|asked| asked == protocol)
            && fits(&self.client, client)
            && fits(&self.vip, vip)
            && fits(&self.source, source)
            && fits(&self.backend, backend)
    }
}

/// An answer; the variant matches the question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", content = "rows", rename_all = "kebab-case")]
pub enum Shown {
    /// Answer to [`Show::Services`].
    Services(Vec<ServiceRow>),
    /// Answer to [`Show::Backends`].
    Backends(Vec<BackendRow>),
    /// Answer to [`Show::Flows`].
    Flows(Vec<FlowRow>),
    /// Answer to [`Show::Tunnels`].
    Tunnels(Vec<TunnelRow>),
    /// Answer to [`Show::Routes`].
    Routes(Vec<RouteRow>),
    /// Answer to [`Show::Neighbours`].
    Neighbours(Vec<NeighbourRow>),
    /// Answer to [`Show::Workers`].
    Workers(Vec<WorkerRow>),
    /// Answer to [`Show::Ports`].
    Ports(Vec<PortRow>),
    /// Answer to [`Show::Counters`].
    Counters(Counters),
    /// Answer to [`Show::Drops`].
    Drops(Vec<DropRow>),
    /// Answer to [`Show::Gateways`].
    Gateways(Gateways),
    /// Answer to [`Show::Announcements`].
    Announcements(Announcements),
    /// Answer to [`Show::Policies`].
    Policies(Policies),
    /// Answer to [`Show::Egress`].
    Egress(EgressShown),
    /// Answer to [`Show::Control`].
    Control(Control),
    /// Answer to [`Show::Readiness`].
    Readiness(Readiness),
}

/// What keeps a gateway from its work, as far as it sees itself. All empty: it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Readiness {
    /// The newest generation of tables.
    pub generation: u64,
    /// Workers that work with older ones, with their generation.
    pub behind: Vec<(u32, u64)>,
    /// Served devices that are down, without a carrier, or gone.
    pub down: Vec<String>,
    /// Ports, as `device/queue`, whose fill ring is empty: the kernel has nothing to receive into.
    pub starved: Vec<String>,
}

impl Readiness {
    /// Whether there is nothing of it.
    pub fn is_ready(&self) -> bool {
        self.behind.is_empty() && self.down.is_empty() && self.starved.is_empty()
    }
}

/// Words for people, without an end of line.
impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let newest = self.generation;
        let behind = self.behind.iter();
        let behind =
            behind.map(|(worker, at)| format!("worker {worker} is at generation {at}, the newest is {newest}"));
        let down = self.down.iter().map(|device| format!("{device} is down, or without a carrier"));
        let starved = self.starved.iter().map(|port| format!("the fill ring of {port} is empty"));
        f.write_str(&behind.chain(down).chain(starved).collect::<Vec<_>>().join("; "))
    }
}

/// Who tells the dataplane what to do, as the dataplane hears it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Control {
    /// Name and version of the one that is connected and has the say; absent: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Whether any has spoken since the dataplane started.
    pub has_spoken: bool,
    /// Milliseconds since control was heard last, or since the dataplane started where none has been heard.
    pub silent_ms: u64,
}

impl Control {
    /// Milliseconds without a word after which something is wrong: control gives a sign of life every ten seconds or sooner.
    pub const SILENT_MS_MAX: u64 = 60_000;

    /// Whether one is connected and was heard of late.
    pub fn is_well(&self) -> bool {
        self.client.is_some() && self.silent_ms <= Self::SILENT_MS_MAX
    }
}

/// Words for people, without an end of line: `connected (tidegate-control 0.1.0), heard 3 s ago`.
impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let silent_s = self.silent_ms / 1000;
        match &self.client {
            Some(client) if self.is_well() => write!(f, "connected ({client}), heard {silent_s} s ago"),
            Some(client) => write!(f, "connected ({client}), but silent for {silent_s} s: it hangs"),
            None if self.has_spoken => write!(f, "not connected, heard last {silent_s} s ago"),
            None => write!(f, "not connected, and not heard since the dataplane started {silent_s} s ago"),
        }
    }
}

/// What is used of external addresses.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct EgressShown {
    /// One row per address and protocol.
    pub addresses: Vec<EgressAddressRow>,
    /// The pods that hold most, most first; those that were refused something, too.
    pub pods: Vec<EgressPodRow>,
    /// Node of the gateway that carries each address, which is one at a time: only there are its ports given out. Addresses
    /// that nobody carries are not among them.
    #[serde(default)]
    pub carriers: BTreeMap<IpAddr, String>,
    /// Policies that have no address here: none of theirs is free, as where the kernel has it.
    #[serde(default)]
    pub bare: Vec<String>,
}

/// Ports of one external address and protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EgressAddressRow {
    /// The address.
    pub address: IpAddr,
    /// Policies that have it; empty: it is one pod's own, or has forwarded ports only.
    pub policies: Vec<String>,
    /// `tcp`, `udp` or `echo` (identifiers of ICMP echo).
    pub protocol: String,
    /// Ports that are given out: 64,512.
    pub ports: u64,
    /// Ports in use: some flow or mapping has them.
    pub used: u64,
    /// Ports that nobody uses and that rest after use: neither in `used` nor free, since only the pod that had one gets it
    /// before there is no other (N-042).
    pub resting: u64,
    /// Mappings in use, and flows that share a port with others.
    pub held: u64,
    /// New flows that found no port, or whose pod or namespace holds all it may.
    pub refused: u64,
}

/// What one pod holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EgressPodRow {
    /// `namespace/name`; empty when it is not known any more.
    pub pod: String,
    /// Its address.
    pub address: IpAddr,
    /// Mappings and flows it holds.
    pub held: u64,
    /// New flows refused.
    pub refused: u64,
}

/// One frontend of a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// `namespace/name`.
    pub service: String,
    /// VIP, external address, cluster address or node address; the first address of a prefix.
    pub address: IpAddr,
    /// Length of the prefix, where the frontend is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_len: Option<u8>,
    /// L4 protocol.
    pub protocol: Protocol,
    /// Port at that address; 0: every port.
    pub port: u16,
    /// Delivery mode in force, as in the contract.
    pub mode: String,
    /// Port of the Service that it leads to: another than `port` where that is a node port.
    #[serde(default)]
    pub service_port: u16,
    /// How an endpoint is chosen for a new flow; nodes are always chosen by `mh`.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// Seconds for which a client stays with its endpoint; absent: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_timeout_s: Option<u32>,
    /// Where `node-dsr` was asked for: every node with an endpoint and what is known of the way there.
    #[serde(default)]
    pub nodes: Vec<NodeDelivery>,
    /// Backends of this family with weight above 0.
    pub backends: u32,
    /// Slots of the Maglev table; 0 without backends.
    pub maglev_slots: u32,
    /// Packets client → VIP and back, and new flows, folded from the flow entries. Counted per Service port and family: all
    /// frontends that lead to one show the same figures.
    pub packets: u64,
    /// Bytes of those packets, IP length.
    pub bytes: u64,
    /// Flows started.
    pub new_flows: u64,
}

/// One backend of one Service port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendRow {
    /// `namespace/name`.
    pub service: String,
    /// Port at the VIP.
    pub port: u16,
    /// L4 protocol.
    pub protocol: Protocol,
    /// Pod address; of a node that takes packets in `node-dsr`, its underlay address.
    pub address: IpAddr,
    /// Pod port; 0 of such a node.
    pub backend_port: u16,
    /// Weight; 0 while draining.
    pub weight: u16,
    /// `active`, `draining` (no new flows), `suspected` (its node does not answer) or `gone` (only flows that still end).
    pub state: String,
    /// Why it is suspected: which node was asked, for how long it has been silent, and how long it may be; else empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Node and pod as told by control.
    pub node: String,
    /// Pod name.
    pub pod: String,
    /// Live flows.
    pub flows: u64,
    /// Packets both directions.
    pub packets: u64,
    /// Bytes both directions, IP length.
    pub bytes: u64,
    /// Flows started.
    pub new_flows: u64,
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowRow {
    /// Worker that owns it.
    pub worker: u32,
    /// IANA protocol number.
    pub protocol: u8,
    /// Client address and port.
    pub client: (IpAddr, u16),
    /// VIP and port.
    pub vip: (IpAddr, u16),
    /// Translated source and port.
    pub source: (IpAddr, u16),
    /// Backend address and port.
    pub backend: (IpAddr, u16),
    /// TCP state or `-`.
    pub state: String,
    /// Seconds since the last packet.
    pub idle_s: u64,
    /// Packets since the worker last carried its count to the backend, at most four seconds ago; original direction, then
    /// reply. What the flow does now: its backend has the rest.
    pub packets: (u64, u64),
    /// Bytes of those packets.
    pub bytes: (u64, u64),
}

/// One VXLAN peer and family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunnelRow {
    /// Node name.
    pub peer: String,
    /// Outer destination.
    pub underlay: IpAddr,
    /// Inner destination MAC.
    pub mac: MacAddress,
    /// Network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Pod prefixes behind it.
    pub prefixes: Vec<String>,
    /// Largest inner packet in bytes.
    pub inner_mtu: u32,
    /// `ready`, or why not (`no route`, `neighbour unresolved`, …).
    pub state: String,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteRow {
    /// Destination prefix.
    pub prefix: String,
    /// Next hops: `via ADDRESS dev NAME`, `dev NAME` for connected ones, `tunnel NODE` for the overlay.
    pub next_hops: Vec<String>,
    /// `kernel` or `overlay`.
    pub origin: String,
    /// MTU in bytes.
    pub mtu: u32,
}

/// One neighbour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NeighbourRow {
    /// Address.
    pub address: IpAddr,
    /// Device name.
    pub device: String,
    /// Link-layer address, if known.
    pub mac: Option<MacAddress>,
    /// Kernel's state name (`REACHABLE`, `STALE`, …) or `unresolved`.
    pub state: String,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerRow {
    /// Number of the worker.
    pub worker: u32,
    /// Core it is pinned to.
    pub core: Option<u32>,
    /// The device whose RSS gives it clients; absent: a keyed hash does, or there is one worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<ClientsByRss>,
    /// Generation it has reached.
    pub generation: u64,
    /// Turns made.
    pub turns: u64,
    /// Turns that found no packet.
    pub idle_turns: u64,
    /// Times it slept on its descriptors.
    pub sleeps: u64,
    /// Live flows.
    pub flows: u64,
    /// Capacity of the flow table.
    pub flows_max: u64,
    /// Flows of a handshake that no client has finished; they are among `flows`.
    #[serde(default)]
    pub half_open: u64,
    /// Their share: one more takes the place of the oldest.
    #[serde(default)]
    pub half_open_max: u64,
    /// Frames held back (waiting for a neighbour, queued for transmission).
    pub held: u64,
    /// Ports it serves, as `device/queue`.
    pub ports: Vec<String>,
    /// What it counted, by name; `dropped` for all reasons together, `busy_ns` for time spent in turns that found packets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
    /// How long packets were at each part of a turn, in the order of a turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageRow>,
}

/// What a device's RSS gives a worker of clients, as it was when the dataplane started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientsByRss {
    /// Name of the device.
    pub device: String,
    /// Entries of its indirection table that lead to this worker.
    pub entries: u32,
    /// All its entries.
    pub of: u32,
    /// Which entries lead to this worker, ascending from 0; none from a dataplane that does not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<u32>,
    /// A digest of its hash key, which itself is not told; empty from a dataplane that does not tell.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key_digest: String,
    /// What it hashes of packets of each sort: `tcp4` and its kin to `sd` (both addresses), `sdfn` (both ports as well), or other words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
}

/// How long packets were at one stage of a worker, in one turn of about a thousand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRow {
    /// `hand_over`, `receive`, `parse`, `look_up`, `forward`, `upkeep`, `transmit`.
    pub stage: String,
    /// Time of all packets of these turns together, nanoseconds.
    pub time_ns: u64,
    /// Those packets by the average of their turn: up to 4 ns each, 8 ns, and so on, doubling; the last ones: beyond.
    pub packets: Vec<u64>,
}

impl StageRow {
    /// Nanoseconds per packet, on average; none without packets.
    #[allow(clippy::cast_precision_loss, reason = "an average for people")]
    pub fn each_ns(&self) -> Option<f64> {
        let packets: u64 = self.packets.iter().sum();
        (packets > 0).then(|| self.time_ns as f64 / packets as f64)
    }
}

/// One port: device and queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortRow {
    /// Device name.
    pub device: String,
    /// Queue number.
    pub queue: u32,
    /// `zero-copy`, `copy`, `skb`, `memory`, `pcap`: read back from the kernel, not what was asked for.
    pub mode: String,
    /// Link-layer address of the device.
    pub mac: MacAddress,
    /// MTU in bytes.
    pub mtu: u32,
    /// Counters of the port and its socket by name (`rx_packets`, `tx_completed`, `rx_ring_full`, `pinhole_redirect`, …).
    pub counters: BTreeMap<String, u64>,
    /// How full the rings to and from the kernel are (`rx`, `tx`, `fill`, `completion`): entries in use, and how many there are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rings: BTreeMap<String, (u32, u32)>,
}

/// All counters.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Totals over workers by name.
    pub totals: BTreeMap<String, u64>,
    /// `rx + generated - (tx completed + tx rejected + dropped + consumed + to kernel + held)`; 0 when the books balance.
    pub imbalance: i64,
}

/// One drop reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DropRow {
    /// Stable name.
    pub reason: String,
    /// Stage that drops.
    pub stage: String,
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// Meaning, for people.
    pub help: String,
    /// Packets dropped.
    pub packets: u64,
}

/// The gateways of the set, as one of them knows them.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Gateways {
    /// Why this gateway is alone and announces everything; absent: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<String>,
    /// All of them in the order of names, this one among them.
    pub rows: Vec<GatewayRow>,
    /// Fingerprint of the key that heartbeats are sent with, 8 hexadecimal digits: equal where the key is. Absent: there is
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Counters of heartbeats, announcements and probes by name.
    pub counters: BTreeMap<String, u64>,
}

/// One gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayRow {
    /// Name of its Node.
    pub node: String,
    /// This is the gateway that answers.
    pub is_own: bool,
    /// `live`, `draining`, `not ready` (no tables, or workers that do not turn), `one-way` (it does not hear us), `lost`,
    /// `never heard`; of our own also `listening`.
    pub state: String,
    /// Where it is sent heartbeats.
    pub addresses: Vec<IpAddr>,
    /// Milliseconds since its last heartbeat.
    pub heard_ms: Option<u64>,
    /// Generation of its tables.
    pub generation: u64,
    /// Digest of its Services and its hash key, 16 hexadecimal digits.
    pub objects: String,
    /// Whether that, and its VIPs, are the same as ours.
    pub is_equal: Option<bool>,
    /// How many VIPs it announces on its links.
    pub announced: u32,
    /// Milliseconds for which it announced what we announced too; of our own: for which anybody did.
    pub dual_owner_ms: u64,
    /// Heartbeats from its addresses that were not of our key, since the last one that was; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrong_key: Option<WrongKey>,
}

/// Heartbeats that were not of our key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongKey {
    /// Whence the last one came.
    pub from: IpAddr,
    /// How many there were.
    pub count: u64,
}

/// Routes to VIPs in the kernel, which a routing daemon hands on.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Announcements {
    /// Device that the routes lead to; absent: this gateway announces none by route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Why there are no routes now; absent: there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<String>,
    /// The routes that there should be, in the order of prefixes.
    pub rows: Vec<AnnouncementRow>,
    /// Counters by name (`discarded_packets`, `restored_routes`, `keepers_lost`).
    pub counters: BTreeMap<String, u64>,
}

/// One route to VIPs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnnouncementRow {
    /// Its prefix.
    pub prefix: String,
    /// How many VIPs it stands for: more than one where routes are aggregated.
    pub vips: u32,
    /// `announced` (it stands in the kernel), `withdrawn`, or `refused: ` and why.
    pub state: String,
}

/// Network policies in force, and what they have done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// Of all objects that rules are made of, as hex digits: equal at gateways that enforce the same.
    pub digest: String,
    /// Identities of pods that rules know.
    pub identities: u64,
    /// Distinct sets of rules, laid out.
    pub programs: u64,
    /// Those of them that are read rule by rule, because they are too large to be laid out.
    pub programs_walked: u64,
    /// Memory of all that, bytes.
    pub bytes: u64,
    /// One per rule, and one per policy and direction that isolates.
    pub rules: Vec<RulingRow>,
}

/// One rule of a network or gateway policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulingRow {
    /// `kind/namespace/name`, or `kind/name`.
    pub policy: String,
    /// `ingress` or `egress`; `clients` for gateway policies.
    pub direction: String,
    /// Number of the rule in its object, from 0; absent: that the policy isolates, where no rule matched.
    pub rule: Option<u16>,
    /// Flows that it let begin.
    pub allowed: u64,
    /// Packets that it stopped.
    pub denied: u64,
    /// Flows that began and that it would have stopped, while it was in audit.
    #[serde(default)]
    pub would_deny: u64,
    /// It denies nothing and only counts.
    #[serde(default)]
    pub audit: bool,
}
