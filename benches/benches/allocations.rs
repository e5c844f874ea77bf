//! Counts: allocations per packet after warm-up, and bytes per flow.

#![allow(missing_docs)]

use std::alloc::System;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tidegate_api::message::Update;
use tidegate_benches::field::{Field, PASS_FRAMES, Way};
use tidegate_benches::fleet::{self, SERVICES};
use tidegate_benches::summary;
use tidegate_dataplane::rig::{self, LAN, LAN_MAC, Net, ROUTER_MAC, WAN, WAN_MAC};
use tidegate_dataplane::stage::parse::Ingress;
use tidegate_dataplane::stage::verdict::Exits;
use tidegate_dataplane::state::index::SLOTS_PER_FLOW;
use tidegate_dataplane::state::{Capacity, Entropy, Entry, State};
use tidegate_dataplane::table::Tables;
use tidegate_dataplane::table::publish::Publisher;
use tidegate_dataplane::worker::Worker;
use tidegate_io::afxdp::{self, InterfaceConfig, OpenConfig, Opened};
use tidegate_io::mem::now_ns;
use tidegate_io::pinhole::{Owned, OwnedFlags};
use tidegate_io::{Batch, HugePages, Port};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Set in the process that runs in namespaces of its own.
const INSIDE: &str = "TIDEGATE_BENCH_INSIDE";

fn allocations(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change.allocations + change.reallocations
}

/// Allocations per packet of prepared passes over the worker in memory.
fn in_memory() -> anyhow::Result<f64> {
    let (mut counted, mut packets) = (0, 0);
    for net in Net::BOTH {
        for way in [Way::ToBackend, Way::ToClient, Way::Overlay] {
            let mut field = Field::with_flows(net, way, 10_000)?;
            field.pass();
            let (more, handled) = field.counted_pass(|| Region::new(ALLOCATOR), |region| allocations(&region));
            counted += more;
            packets += handled;
        }
    }
    ensure!(packets >= 6 * PASS_FRAMES, "the passes carried only {packets} packets");
    Ok(counted as f64 / packets as f64)
}

/// Allocations per packet of the worker's turns on AF_XDP over veth, in namespaces that end with the process.
fn af_xdp() -> anyhow::Result<f64> {
    let mut inside = Command::new("unshare");
    inside.args(["--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]);
    inside.arg(std::env::current_exe()?).env(INSIDE, "1").stderr(Stdio::inherit());
    let output = inside.output().context("unshare (this needs root)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "the turn on AF_XDP failed: {text}");
    text.trim().parse().with_context(|| format!("not a figure: {text:?}"))
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().context("ip")?;
    ensure!(status.success(), "ip {arguments}");
    Ok(())
}

fn mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

fn open(interfaces: &[&str]) -> anyhow::Result<Opened> {
    let interfaces = interfaces.iter().map(|name| InterfaceConfig { name: (*name).into(), queues: None }).collect();
    Ok(afxdp::open(&OpenConfig { interfaces, frames: 4096, ..OpenConfig::default() })?)
}

fn inside() -> anyhow::Result<f64> {
    ip(&format!("link add wan0 address {} type veth peer name far0 address {}", mac(WAN_MAC), mac(ROUTER_MAC)))?;
    ip(&format!("link add lan0 address {} type veth peer name far1", mac(LAN_MAC)))?;
    ["wan0", "far0", "lan0", "far1"].iter().try_for_each(|device| ip(&format!("link set {device} up")))?;
    let mut gateway = open(&["wan0", "lan0"])?;
    let mut far = open(&["far0"])?;

    let mut tables = rig::tables();
    let mut prefixes = Vec::new();
    for (id, net) in (1..).zip(Net::BOTH) {
        rig::add_service(&mut tables, id, net.vip(1), 80, 17, &[(net.pod(0, 5), 8080, 1), (net.pod(1, 6), 8080, 1)]);
        prefixes.push((net.vip(1), if net.vip(1).is_ipv4() { 32 } else { 128 }, OwnedFlags::TRAFFIC));
    }
    gateway.pinholes[0].update(&Owned { prefixes, ..Owned::default() })?;

    let mut ports = gateway.ports.into_iter().map(|port| Box::new(port) as Box<dyn Port>).zip([WAN, LAN]);
    let magazines = gateway.pools.iter().map(|pool| pool.magazine()).collect();
    let exits = Exits::new(ports.by_ref().collect(), magazines).map_err(anyhow::Error::msg)?;
    let ingress = vec![Ingress { device: WAN, mac: WAN_MAC }, Ingress { device: LAN, mac: LAN_MAC }];
    let capacity = Capacity { flows_v4: 65_536, flows_v6: 65_536, backends: 1 << 16, huge: HugePages::Auto };
    let state = State::new(capacity, [3, 5], now_ns())?;
    let (_publisher, readers) = Publisher::new(tables);
    let (wants, _) = crossbeam::channel::bounded(1);
    let (_, mailbox) = crossbeam::channel::bounded(1);
    let mut worker = Worker::new(0, readers(), exits, ingress, state, Entropy::new(7), wants, mailbox);

    let mut magazine = far.pools[0].magazine();
    let port = &mut far.ports[0];
    let (mut counted, mut packets) = (0, 0);
    const ROUNDS: u16 = 400;
    for round in 0..ROUNDS {
        let mut batch = Batch::new();
        for n in 0..32u16 {
            let net = Net::BOTH[usize::from(n % 2)];
            let Some(mut frame) = magazine.take() else { break };
            // Half of the packets begin flows, half belong to known ones.
            let flow = if n < 16 { n } else { round };
            ensure!(frame.fill(&rig::udp((net.client(flow), 40_000 + n), (net.vip(1), 80), &[0; 22])), "room");
            batch.push(frame);
        }
        port.tx(&mut batch);
        batch.drain(..).for_each(|frame| magazine.give(frame));
        port.kick();
        port.recycle(&mut magazine);
        let region = Region::new(ALLOCATOR);
        let received: usize = (0..20).map(|_| worker.turn(now_ns())).sum();
        if round >= ROUNDS / 4 {
            counted += allocations(&region);
            packets += received;
        }
    }
    worker.stop();
    ensure!(packets > 5_000, "only {packets} packets arrived: {:?}", worker.counters().nonzero());
    let sent = worker.counters().nonzero().get("sent").copied().unwrap_or_default();
    ensure!(sent > 5_000, "only {sent} packets were forwarded: {:?}", worker.counters().nonzero());
    Ok(f64::from(u32::try_from(counted)?) / packets as f64)
}

/// What a change at 50,000 Services makes the compiler thread allocate, which is as much as it copies at most, and
/// what all tables hold in the end.
fn at_scale() -> anyhow::Result<[(&'static str, f64); 4]> {
    const CHANGES: u32 = 100;
    let (mut compiler, mut reader) = fleet::compiler(Tables::default());
    fleet::turn(&mut compiler, fleet::full(SERVICES), 1);
    reader.refresh();
    let mut bytes = |make: &dyn Fn(u32) -> Update| {
        let mut counted: Vec<usize> = Vec::new();
        for n in 0..CHANGES {
            let update = make(n);
            let region = Region::new(ALLOCATOR);
            fleet::turn(&mut compiler, update, 1);
            counted.push(region.change().bytes_allocated);
            reader.refresh();
            compiler.tick(1);
        }
        // The median: growing a vector or a map now and then is not what a change costs.
        counted.sort_unstable();
        counted[counted.len() / 2] as f64
    };
    let endpoint = bytes(&|n| fleet::one(n * 499 % SERVICES, 1));
    let added = bytes(&|n| fleet::one(SERVICES + n, 0));
    let removed = bytes(&|n| fleet::end(SERVICES + n));
    let tables = compiler.tables().clone();
    drop((compiler, reader));
    let region = Region::new(ALLOCATOR);
    drop(tables);
    let held = region.change().bytes_deallocated as f64 / 1e6;
    Ok([
        ("publish/bytes_endpoint_change", endpoint),
        ("publish/bytes_service_added", added),
        ("publish/bytes_service_removed", removed),
        ("memory/tables_50000", held),
    ])
}

fn main() -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        println!("{}", inside()?);
        return Ok(());
    }
    let target = summary::target();
    let index = u32::try_from(size_of::<u64>())? * SLOTS_PER_FLOW;
    let at_scale = at_scale()?;
    let counted = [
        ("allocations/in_memory_turn", in_memory()?),
        ("allocations/af_xdp_turn", af_xdp()?),
        ("memory/entry_ipv4", size_of::<Entry<[u8; 4]>>() as f64 + f64::from(index)),
        ("memory/entry_ipv6", size_of::<Entry<[u8; 16]>>() as f64 + f64::from(index)),
    ];
    for (name, figure) in counted.into_iter().chain(at_scale) {
        println!("{name}: {figure}");
        summary::count(&target, name, figure)?;
    }
    Ok(())
}
