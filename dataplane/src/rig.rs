//! A gateway in memory: tables, a worker and two ports, for tests, benches and fuzzing.
//!
//! Owns one small network in both families: clients behind a router on device 0, two VXLAN peers on device 1, pods behind
//! them. The tables are made through the same build side that the compiler thread uses, the worker is the real one, and
//! packets are built by etherparse, which knows nothing of this crate's formats.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use etherparse::PacketBuilder;
use tidegate_io::memory::{self, MemoryPeer};
use tidegate_io::{HugePages, Pool};

use crate::mailbox::Request;
use crate::stage::parse::Ingress;
use crate::stage::verdict::Exits;
use crate::state::{Capacity, Entropy, State};
use crate::table::backend::{BackendRow, BackendState};
use crate::table::device::DeviceRow;
use crate::table::local::{LocalKind, VtepRow};
use crate::table::maglev::{self, Ring};
use crate::table::nat::NatTable;
use crate::table::neighbour::{NeighbourRow, NeighbourState};
use crate::table::publish::Publisher;
use crate::table::route::{NextHops, RouteRow, RouteTarget};
use crate::table::service::{EndpointSet, Frontend, FrontendKind, Mode, ServiceRow};
use crate::table::terms::{HashFields, Scheduler, Terms, TrafficPolicy, Weights};
use crate::table::tunnel::TunnelRow;
use crate::table::{self, BackendId, DeviceId, Family, NeighbourId, ServiceId, Tables, TunnelId};
use crate::wire::encap::{EncapTemplate, Tunnel, Underlay};
use crate::wire::ethernet::Mac;
use crate::worker::{Want, Worker};

/// Packets described in a line, written by etherparse.
pub mod sketch;
/// Services as the contract tells them.
pub mod catalog;
/// Pods, egress policies and static NAT as the contract tells them.
pub mod outside;
/// The same with Services and network policies.
pub mod policed;
/// What left, byte for byte, and exactly what was counted.
pub mod expect;
/// A NIC that spreads what arrives over its queues.
pub mod nic;
/// The same network with several workers.
pub mod fleet;

/// Device towards clients.
pub const WAN: DeviceId = DeviceId(0);
/// Device towards VXLAN peers.
pub const LAN: DeviceId = DeviceId(1);
/// MAC of [`WAN`].
pub const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC of [`LAN`].
pub const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// MAC of the router that clients are behind.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];
/// MAC of our VTEP, inside VXLAN.
pub const VTEP_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0];
/// Network identifier of the overlay.
pub const VNI: u32 = 1;
/// UDP port of the overlay.
pub const PORT: u16 = 8472;
/// Peers of the overlay.
pub const PEERS: u8 = 2;

/// MAC of peer `n`'s device (0-based) on the underlay.
pub const fn peer_mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 3, n]
}

/// MAC of peer `n`'s VTEP.
pub const fn peer_vtep_mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 4, n]
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net(pub Family);

impl Net {
    /// Both families.
    pub const BOTH: [Net; 2] = [Net(Family::V4), Net(Family::V6)];

    fn pick(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        match self.0 {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(v4)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(v6)),
        }
    }

    /// Client `n`, behind the router.
    pub fn client(self, n: u16) -> IpAddr {
        let [high, low] = n.to_be_bytes();
        self.pick([198, 18, high, low], [0x2001, 0xdb8, 0xc, 0, 0, 0, 0, n])
    }

    /// A client on the link of [`WAN`] itself.
    pub fn neighbour(self, n: u8) -> IpAddr {
        self.pick([192, 0, 2, n], [0x2001, 0xdb8, 1, 0, 0, 0, 0, n.into()])
    }

    /// The gateway's own address on [`WAN`].
    pub fn gateway(self) -> IpAddr {
        self.neighbour(1)
    }

    /// Service address `n`; those below 200 are routed to us, the others announced on [`WAN`].
    pub fn vip(self, n: u8) -> IpAddr {
        if n < 200 {
            self.pick([203, 0, 113, n], [0x2001, 0xdb8, 0xf, 0, 0, 0, 0, n.into()])
        } else {
            self.neighbour(n)
        }
    }

    /// The address reserved for `fullnat`.
    pub fn source(self) -> IpAddr {
        self.pick([10, 244, 9, 2], [0xfd00, 0x10, 0x244, 9, 0, 0, 0, 2])
    }

    /// Our VTEP's overlay address.
    pub fn vtep(self) -> IpAddr {
        self.pick([10, 244, 9, 0], [0xfd00, 0x10, 0x244, 9, 0, 0, 0, 0])
    }

    /// Our VTEP's underlay address.
    pub fn underlay(self) -> IpAddr {
        self.pick([198, 51, 100, 1], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 1])
    }

    /// Peer `n`'s underlay address.
    pub fn peer(self, n: u8) -> IpAddr {
        self.pick([198, 51, 100, 11 + n], [0x2001, 0xdb8, 2, 0, 0, 0, 0, u16::from(n) + 0x11])
    }

    /// Pod `p` of peer `n`.
    pub fn pod(self, n: u8, p: u8) -> IpAddr {
        self.pick([10, 244, n + 1, p], [0xfd00, 0x10, 0x244, u16::from(n) + 1, 0, 0, 0, p.into()])
    }

    fn id(self) -> u16 {
        match self.0 {
            Family::V4 => 0,
            Family::V6 => 1,
        }
    }

    /// The tunnel to peer `n`.
    pub fn tunnel(self, n: u8) -> TunnelId {
        TunnelId(self.id() * u16::from(PEERS) + u16::from(n))
    }

    /// The neighbour row of the router.
    pub fn router(self) -> NeighbourId {
        NeighbourId(self.id() * 10)
    }

    /// The neighbour row of peer `n` on the underlay.
    pub fn peer_neighbour(self, n: u8) -> NeighbourId {
        NeighbourId(self.id() * 10 + 1 + u16::from(n))
    }

    /// What VXLAN takes from the link (V-009).
    pub fn overhead(self) -> u16 {
        match self.0 {
            Family::V4 => 50,
            Family::V6 => 70,
        }
    }
}

/// An address in the form rows hold.
pub fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => table::mapped(&v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn net(address: IpAddr, length: u8) -> ipnet::IpNet {
    // Every length given below is valid for its family.
    ipnet::IpNet::new(address, length).map_or(ipnet::IpNet::from(address), |net| net.trunc())
}

/// The network without any Service.
pub fn tables() -> Tables {
    let mut tables = Tables::default();
    let devices = Arc::make_mut(&mut tables.devices);
    let [v4, v6] = Net::BOTH;
    for (id, name, mac, at) in
        [(WAN, "wan0", WAN_MAC, Net::gateway as fn(Net) -> IpAddr), (LAN, "lan0", LAN_MAC, Net::underlay)]
    {
        let (IpAddr::V4(address_v4), IpAddr::V6(address_v6)) = (at(v4), at(v6)) else { continue };
        let (address_v4, address_v6) = (address_v4.octets(), address_v6.octets());
        let ifindex = u32::from(id.0) + 10;
        devices.set(id, DeviceRow { name: name.into(), ifindex, mac, mtu: 1500, address_v4, address_v6 });
    }
    for family in Net::BOTH {
        add_family(&mut tables, family);
    }
    let sources = |family: Net| mapped(family.source());
    let v4_source = table::unmapped(&sources(v4));
    tables.nat = Arc::new(NatTable::new(v4_source, [sources(v6)]));
    tables
}

fn add_family(tables: &mut Tables, family: Net) {
    let neighbours = Arc::make_mut(&mut tables.neighbours);
    let resolved =
        |device, mac, address| NeighbourRow { device, mac, state: NeighbourState::Resolved, address: mapped(address) };
    neighbours.set(family.router(), resolved(WAN, ROUTER_MAC, family.neighbour(254)));
    let routes = Arc::make_mut(&mut tables.routes);
    let hops = |id| -> RouteTarget { RouteTarget::NextHops(NextHops::from_iter([id])) };
    let (link, whole, pods) = match family.0 {
        Family::V4 => (24, 0, 24),
        Family::V6 => (64, 0, 64),
    };
    routes.insert(net(family.client(0), whole), RouteRow { target: hops(family.router()), mtu: 1500 });
    routes.insert(net(family.gateway(), link), RouteRow { target: RouteTarget::Connected(WAN), mtu: 1500 });
    routes.insert(net(family.underlay(), link), RouteRow { target: RouteTarget::Connected(LAN), mtu: 1500 });
    for n in 0..PEERS {
        neighbours.set(family.peer_neighbour(n), resolved(LAN, peer_mac(n), family.peer(n)));
        let target = RouteTarget::Tunnel(family.tunnel(n));
        routes.insert(net(family.pod(n, 0), pods), RouteRow { target, mtu: 1500 - family.overhead() });
        Arc::make_mut(&mut tables.tunnels).set(family.tunnel(n), tunnel(family, n));
    }
    let locals = Arc::make_mut(&mut tables.locals);
    locals.add(&mapped(family.source()), LocalKind::FULLNAT_SOURCE);
    locals.add(&mapped(family.vtep()), LocalKind::VTEP_OVERLAY);
    locals.add(&mapped(family.underlay()), LocalKind::VTEP_UNDERLAY);
    let vtep = VtepRow {
        underlay: mapped(family.underlay()),
        mac: VTEP_MAC,
        overlay: mapped(family.vtep()),
        vni: VNI,
        port: PORT,
    };
    locals.set_vtep(family.0, Some(vtep));
}

fn tunnel(family: Net, n: u8) -> TunnelRow {
    let underlay = match (family.underlay(), family.peer(n)) {
        (IpAddr::V4(source), IpAddr::V4(to)) => Underlay::V4 { source: source.octets(), destination: to.octets() },
        (source, to) => Underlay::V6 { source: mapped(source), destination: mapped(to) },
    };
    let template = EncapTemplate::new(&Tunnel {
        underlay,
        port: PORT,
        vni: VNI,
        source_mac: Mac(VTEP_MAC),
        destination_mac: Mac(peer_vtep_mac(n)),
        ttl: 64,
        dont_fragment: false,
    });
    TunnelRow {
        family: family.0,
        template,
        underlay: mapped(family.peer(n)),
        next_hops: NextHops::from_iter([family.peer_neighbour(n)]),
        inner_mtu: 1500 - family.overhead(),
        inner_mac: peer_vtep_mac(n),
        vni: VNI,
        name: format!("w{}", n + 1).into(),
        live: true,
    }
}

/// An endpoint for [`add_service`]: address, port, weight.
pub type Endpoint = (IpAddr, u16, u16);

/// Adds one port of a Service at `vip`, with row and backend ids from `id` on (backends: `id * 1000 + n`).
pub fn add_service(tables: &mut Tables, id: u32, vip: IpAddr, port: u16, protocol: u8, endpoints: &[Endpoint]) {
    let (service, family) = (ServiceId(id), table::family_of(&mapped(vip)));
    let backends = Arc::make_mut(&mut tables.backends);
    let mut eligible = Vec::new();
    for (n, (address, backend_port, weight)) in (0..).zip(endpoints) {
        let backend = BackendId(id * 1000 + n);
        let state = if *weight == 0 { BackendState::Draining } else { BackendState::Active };
        let address = mapped(*address);
        backends
            .set(backend, BackendRow { address, family, port: *backend_port, service, state, ..Default::default() });
        if *weight > 0 {
            eligible.push((maglev::member_key(&address, *backend_port), *weight, backend));
        }
    }
    eligible.sort_unstable();
    let members: Vec<_> = eligible.iter().map(|(key, weight, _)| (*key, *weight)).collect();
    let ring = Ring::build(&members, maglev::ring_size(members.len())).map(Arc::new);
    let services = Arc::make_mut(&mut tables.services);
    services.set_row(
        service,
        ServiceRow {
            mode: Mode::Fullnat,
            family,
            protocol,
            port,
            serving: u32::try_from(endpoints.len()).unwrap_or(u32::MAX),
            cluster: EndpointSet { members: eligible.iter().map(|(_, _, backend)| *backend).collect(), ring },
            terms: None,
            name: format!("test/service-{id}").into(),
        },
    );
    services.set_frontend(Frontend { address: mapped(vip), protocol, port }, FrontendKind::Vip, service);
    let announced = Net::BOTH.iter().any(|family| (200..=255).any(|n| family.vip(n) == vip));
    let kind = if announced { LocalKind::VIP | LocalKind::ANNOUNCED } else { LocalKind::VIP };
    Arc::make_mut(&mut tables.locals).add(&mapped(vip), kind);
}

/// Gives service `id` affinity of so many seconds, or takes it away.
pub fn toggle_affinity(tables: &mut Tables, id: u32, timeout_s: u32) {
    let service = ServiceId(id);
    let Some(mut row) = tables.services.row(service).cloned() else { return };
    row.terms = row.terms.is_none().then(|| {
        Arc::new(Terms {
            identity: id.into(),
            external_policy: TrafficPolicy::Cluster,
            internal_policy: TrafficPolicy::Cluster,
            ranges: None,
            affinity_timeout_s: timeout_s,
            scheduler: Scheduler::Mh,
            hash: HashFields::Flow,
            overrides: None,
            one_packet: false,
            weights: Weights::new(row.cluster.members.iter().map(|_| 1), Scheduler::Mh),
            local: None,
        })
    });
    Arc::make_mut(&mut tables.services).set_row(service, row);
}

/// Delivers service `id` of [`add_service`] as `symmetric`.
pub fn deliver_symmetric(tables: &mut Tables, id: u32) {
    deliver(tables, id, Mode::Symmetric);
}

/// Delivers it as `fullnat` again.
pub fn deliver_fullnat(tables: &mut Tables, id: u32) {
    deliver(tables, id, Mode::Fullnat);
}

fn deliver(tables: &mut Tables, id: u32, mode: Mode) {
    let Some(row) = tables.services.row(ServiceId(id)).cloned() else { return };
    Arc::make_mut(&mut tables.services).set_row(ServiceId(id), ServiceRow { mode, ..row });
}

/// Delivers service `id` of [`add_service`] as `node-dsr`, to these nodes: number of the peer, weight (0: not proven).
/// Backends: `id * 1000 + 500 + n` for peer `n`. Nodes that were there before and are not now are gone.
pub fn deliver_to_nodes(tables: &mut Tables, id: u32, nodes: &[(u8, u16)]) {
    let service = ServiceId(id);
    let Some(family) = tables.services.row(service).map(|row| row.family) else { return };
    let net = Net(family);
    let backend = |n: u8| BackendId(id * 1000 + 500 + u32::from(n));
    let backends = Arc::make_mut(&mut tables.backends);
    for n in 0..PEERS {
        let state = match nodes.iter().find(|(node, _)| *node == n) {
            Some((_, 0)) | None if backends.row(backend(n)).is_none() => continue,
            Some((_, 0)) | None => BackendState::Gone,
            Some(_) => BackendState::Active,
        };
        let (address, node) = (mapped(net.peer(n)), net.tunnel(n));
        let new = BackendRow { address, family, port: 0, node, service, state, epoch: 0 };
        backends.set(backend(n), new);
    }
    let key = |n: u8| maglev::node_key(&format!("w{}", n + 1));
    let mut members: Vec<_> = nodes.iter().map(|(n, weight)| (key(*n), *weight, backend(*n))).collect();
    members.sort_unstable();
    let keys: Vec<_> = members.iter().map(|(key, weight, _)| (*key, *weight)).collect();
    let ring = Ring::build(&keys, maglev::ring_size(keys.len())).map(Arc::new);
    let members = members.iter().map(|(_, _, backend)| *backend).collect();
    Arc::make_mut(&mut tables.services).set_nodes(service, Some(EndpointSet { members, ring }));
}

/// Takes the `n`th endpoint of service `id` away, as the compiler does: the row stays, gone.
pub fn remove_endpoint(
    tables: &mut Tables,
    id: u32,
    vip: IpAddr,
    port: u16,
    protocol: u8,
    endpoints: &[Endpoint],
    n: u32,
) {
    let gone = BackendId(id * 1000 + n);
    let service = ServiceId(id);
    let row = tables.services.row(service).cloned();
    let left: Vec<_> = (0..).zip(endpoints).filter(|(at, _)| *at != n).collect();
    let mut eligible: Vec<_> = left
        .iter()
        .filter(|(_, (_, _, weight))| *weight > 0)
        .map(|(at, (address, port, weight))| {
            (maglev::member_key(&mapped(*address), *port), *weight, BackendId(id * 1000 + at))
        })
        .collect();
    eligible.sort_unstable();
    let members: Vec<_> = eligible.iter().map(|(key, weight, _)| (*key, *weight)).collect();
    if let Some(mut row) = row {
        row.cluster = EndpointSet {
            members: eligible.iter().map(|(_, _, backend)| *backend).collect(),
            ring: Ring::build(&members, maglev::ring_size(members.len())).map(Arc::new),
        };
        row.serving = u32::try_from(left.len()).unwrap_or(u32::MAX);
        let services = Arc::make_mut(&mut tables.services);
        services.set_row(service, row);
        services.set_frontend(Frontend { address: mapped(vip), protocol, port }, FrontendKind::Vip, service);
    }
    Arc::make_mut(&mut tables.backends).set_state(gone, BackendState::Gone);
}

/// A worker over two memory ports.
pub struct Rig {
    /// The worker.
    pub worker: Worker,
    /// Publishes tables to it.
    pub publisher: Publisher,
    /// The far end of [`WAN`] and of [`LAN`].
    pub peers: [MemoryPeer; 2],
    /// Neighbours it asked for.
    pub wants: Receiver<Want>,
    /// Its mailbox.
    pub mailbox: Sender<Request>,
    /// The memory its frames come from.
    pub pool: Pool,
    /// The time it is given, nanoseconds.
    pub now_ns: u64,
    /// Turns it was given.
    pub(crate) turns: u64,
    /// Its counters when a test last looked.
    pub(crate) seen: BTreeMap<&'static str, u64>,
}

impl Rig {
    /// A worker with `tables` published, room for 4096 flows of each family, and a fixed seed.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn new(tables: Tables) -> Result<Rig, Box<dyn std::error::Error>> {
        Rig::with(tables, 4096, 1024, 1)
    }

    /// A worker with `tables` published.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn with(tables: Tables, flows: u32, frames: u32, seed: u64) -> Result<Rig, Box<dyn std::error::Error>> {
        let now_ns = 1 << 40;
        let pool = Pool::new(frames, 2048, HugePages::Off)?;
        let port = |name: &str, ifindex, mac| {
            // Small pools get small rings, or one port's fill ring would take every frame.
            let ring_entries = if frames < 1024 { (frames as usize / 8).max(8) } else { 512 };
            let config =
                memory::Config { device: name.into(), ifindex, mac, ring_entries, ..memory::Config::default() };
            memory::pair(&pool, config)
        };
        let (wan, wan_peer) = port("wan0", 10, WAN_MAC);
        let (lan, lan_peer) = port("lan0", 11, LAN_MAC);
        let exits = Exits::new(vec![(Box::new(wan), WAN), (Box::new(lan), LAN)], vec![pool.magazine()])?;
        let ingress = vec![Ingress { device: WAN, mac: WAN_MAC }, Ingress { device: LAN, mac: LAN_MAC }];
        let capacity = Capacity { flows_v4: flows, flows_v6: flows, backends: 1 << 20, huge: HugePages::Off };
        let state = State::new(capacity, [seed, !seed], now_ns)?;
        let (publisher, readers) = Publisher::new(tables);
        let (want, wants) = bounded(64);
        let (mailbox, questions) = bounded(8);
        let worker = Worker::new(0, readers(), exits, ingress, state, Entropy::new(seed), want, questions);
        let peers = [wan_peer, lan_peer];
        Ok(Rig { worker, publisher, peers, wants, mailbox, pool, now_ns, turns: 0, seen: BTreeMap::new() })
    }

    /// Gives the worker a frame on `device`; false when there was no room.
    pub fn inject(&mut self, device: DeviceId, frame: &[u8]) -> bool {
        self.peers.get_mut(usize::from(device.0)).is_some_and(|peer| peer.inject(frame))
    }

    /// One turn, 10 µs after the last.
    pub fn turn(&mut self) -> usize {
        self.now_ns += 10_000;
        self.turns += 1;
        self.worker.turn(self.now_ns)
    }

    /// Everything sent on `device` since the last look.
    pub fn sent(&mut self, device: DeviceId) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.peers.get_mut(usize::from(device.0)).and_then(MemoryPeer::take_sent) {
            frames.push(frame);
        }
        frames
    }

    /// Publishes the tables as `change` leaves them.
    pub fn publish(&mut self, change: impl FnOnce(&mut Tables)) {
        let mut tables = self.publisher.current().clone();
        change(&mut tables);
        self.publisher.publish(tables);
    }
}

/// An Ethernet frame from `from` to `to` with `ttl`, begun.
pub fn ip(
    macs: ([u8; 6], [u8; 6]),
    from: IpAddr,
    to: IpAddr,
    ttl: u8,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let builder = PacketBuilder::ethernet2(macs.0, macs.1);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), ttl),
        (from, to) => builder.ipv6(mapped(from), mapped(to), ttl),
    }
}

/// MACs of a frame that a client's router sends to the gateway.
pub const FROM_ROUTER: ([u8; 6], [u8; 6]) = (ROUTER_MAC, WAN_MAC);

/// A UDP frame from a client.
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let builder = ip(FROM_ROUTER, from.0, to.0, 64).udp(from.1, to.1);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    // Writing into a vector does not fail.
    let _ = builder.write(&mut frame, payload);
    frame
}

/// What [`tcp`] sets in a segment: flags as letters (S, A, F, R, P), sequence and acknowledgement numbers.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a>(pub &'a str, pub u32, pub u32);

/// A TCP frame from a client.
pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), segment: Segment<'_>, payload: &[u8]) -> Vec<u8> {
    tcp_between(FROM_ROUTER, from, to, segment, payload)
}

/// A TCP frame with these MACs. A SYN carries an MSS of 1460.
pub fn tcp_between(
    macs: ([u8; 6], [u8; 6]),
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    Segment(flags, sequence, acknowledgement): Segment<'_>,
    payload: &[u8],
) -> Vec<u8> {
    let mut builder = ip(macs, from.0, to.0, 64).tcp(from.1, to.1, sequence, 65_000);
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'A' => builder.ack(acknowledgement),
            'F' => builder.fin(),
            'R' => builder.rst(),
            _ => builder.psh(),
        };
    }
    if flags.contains('S') {
        let mss = [etherparse::TcpOptionElement::MaximumSegmentSize(1460)];
        builder = match builder.options(&mss) {
            Ok(builder) => builder,
            Err(_) => unreachable!("one MSS option fits every header"),
        };
    }
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    let _ = builder.write(&mut frame, payload);
    frame
}

/// Puts an IP packet (a frame of [`udp`] or [`tcp`] without its first 14 bytes) into VXLAN as peer `n` sends it to us.
pub fn from_peer(family: Net, n: u8, ip_packet: &[u8]) -> Vec<u8> {
    let ethertype: u16 = match family.0 {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    };
    let mut inner = vec![8, 0, 0, 0, 0, 0, 1, 0];
    inner.extend_from_slice(&VTEP_MAC);
    inner.extend_from_slice(&peer_vtep_mac(n));
    inner.extend_from_slice(&ethertype.to_be_bytes());
    inner.extend_from_slice(ip_packet);
    let builder = ip((peer_mac(n), LAN_MAC), family.peer(n), family.underlay(), 64).udp(50_000, PORT);
    let mut frame = Vec::with_capacity(builder.size(inner.len()));
    let _ = builder.write(&mut frame, &inner);
    frame
}

/// What is inside a VXLAN frame we sent: outer Ethernet destination, outer IP packet, inner frame.
pub fn into_peer(frame: &[u8]) -> Option<([u8; 6], &[u8], &[u8])> {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    let etherparse::TransportSlice::Udp(udp) = sliced.transport? else { return None };
    let payload = udp.payload();
    let flags = *payload.first()?;
    (flags == 8 && udp.destination_port() == PORT).then_some(())?;
    Some((frame.first_chunk().copied()?, frame.get(14..)?, payload.get(8..)?))
}
