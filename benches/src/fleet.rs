//! A fleet: as many Services as a large cluster has, and the compiler that holds them.
//!
//! Owns the making of objects (Services of both families by turns, ten endpoints each, with names as long as real ones)
//! and of single changes to them. Pinhole and kernel are silent: what they cost is theirs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tidegate_api::message::Update;
use tidegate_api::resource::{Backend, Body, Kind, Protocol, Resource, ResourceKey, Service, ServicePort};
use tidegate_dataplane::compile::{Arrived, Compiler, Pinholes, Turned};
use tidegate_dataplane::kernel::NeighbourKey;
use tidegate_dataplane::kernel::request::NeighbourRequests;
use tidegate_dataplane::table::Tables;
use tidegate_dataplane::table::publish::{Publisher, Reader};
use tidegate_io::{Owned, OwnedChange};

/// Services of the fleet (design 10).
pub const SERVICES: u32 = 50_000;
/// Endpoints of each.
pub const ENDPOINTS: u8 = 10;
/// Versions of one Service that differ from the one before by one endpoint: it leaves, and comes back.
const VERSIONS: u32 = 2;

/// A pinhole and a kernel that are told, and do nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Pinholes for Silent {
    fn update(&mut self, _: &Owned) -> io::Result<()> {
        Ok(())
    }

    fn change(&mut self, _: &OwnedChange) -> io::Result<()> {
        Ok(())
    }
}

impl NeighbourRequests for Silent {
    fn keep(&mut self, _: NeighbourKey) -> io::Result<bool> {
        Ok(true)
    }

    fn probe(&mut self, _: NeighbourKey) -> io::Result<()> {
        Ok(())
    }

    fn release(&mut self, _: NeighbourKey) -> io::Result<()> {
        Ok(())
    }
}

/// A compiler that begins with `tables`, and a reader of what it publishes.
pub fn compiler(tables: Tables) -> (Compiler, Reader) {
    let (compiler, [reader]) = compiler_for(tables);
    (compiler, reader)
}

/// A compiler that begins with `tables`, and some readers of what it publishes.
pub fn compiler_for<const READERS: usize>(tables: Tables) -> (Compiler, [Reader; READERS]) {
    let (publisher, readers) = Publisher::new(tables);
    let readers = std::array::from_fn(|_| readers());
    (Compiler::new(["wan0", "lan0"], publisher, Box::new(Silent), Box::new(Silent)), readers)
}

fn key(n: u32) -> ResourceKey {
    ResourceKey { kind: Kind::Service, name: format!("team-{:03}/service-{n:06}", n % 500) }
}

/// Address `host` of Service `n`: IPv4 for even ones.
fn address(n: u32, host: u8) -> IpAddr {
    let [_, a, b, c] = n.to_be_bytes();
    if n.is_multiple_of(2) {
        // Two bits of the number are enough in the first octet.
        IpAddr::V4(if host == 0 { Ipv4Addr::new(20, a, b, c) } else { Ipv4Addr::new(100 + host, a, b, c) })
    } else {
        let n = [u16::from(a), u16::from_be_bytes([b, c])];
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xf000 | u16::from(host), 0, 0, n[0], n[1], 1))
    }
}

/// Service `n` in its `version`: every second one lacks the last endpoint.
pub fn service(n: u32, version: u32) -> Resource {
    let endpoints = if version.is_multiple_of(VERSIONS) { ENDPOINTS } else { ENDPOINTS - 1 };
    let backend = |at: u8| Backend {
        address: address(n, at),
        port: 8080,
        weight: 1,
        local_weight: 1,
        node: format!("worker-{:04}", (n + u32::from(at) * 7) % 1000),
        pod: format!("service-{n:06}-7d9c5b7f6c-x{at:03}z"),
    };
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        backends: (1..=endpoints).map(backend).collect(),
        ..ServicePort::default()
    };
    let body = Service {
        uid: format!("6f1c2b7e-0d7a-4a53-9a52-{n:012}"),
        created_at_s: 1_700_000_000 + i64::from(n),
        addresses: vec![address(n, 0)],
        ports: vec![port],
        ..Service::default()
    };
    Resource { name: key(n).name, version: format!("{version}"), body: Body::Service(body) }
}

/// All objects in one update.
pub fn full(services: u32) -> Update {
    Update { nonce: 1, full: true, resources: (0..services).map(|n| service(n, 0)).collect(), ..Update::default() }
}

/// Service `n` in its `version`, alone.
pub fn one(n: u32, version: u32) -> Update {
    Update { nonce: 1, full: false, resources: vec![service(n, version)], ..Update::default() }
}

/// The end of Service `n`.
pub fn end(n: u32) -> Update {
    Update { nonce: 1, full: false, removed: vec![key(n)], ..Update::default() }
}

/// Gives the compiler one update, and what happened.
pub fn turn(compiler: &mut Compiler, update: Update, now_ns: u64) -> Turned {
    compiler.turn(Arrived { updates: vec![update.into()], ..Arrived::default() }, now_ns)
}
