//! The trials: what is asked of a gateway whose devices do zero-copy.
//!
//! Owns the list and what each answer should be. A trial whose failure leaves nothing to look at is marked as needed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use tidegate_api::show::{Counters, DropRow, PortRow, WorkerRow};

use super::wire::{self, Packet};
use super::{QUEUES, Stage, machine};
use crate::capture::{Capture, Captured};
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::gateway::Program;
use crate::generator::mac;
use crate::topology::{
    CLIENT, CLIENT_HOSTS, CLIENT_MAC, ECHO_PORT, FABRIC, FAMILIES, FULLNAT_V4, FULLNAT_V6, Family, GATEWAY,
    GATEWAY_LAN_MAC, GATEWAY_NODE, GATEWAY_WAN_MAC, POD_TCP_PORT, POD_UDP_PORT, VIP_ECHO, VIP_WEB, VNI, WEB_PORT, pods,
};

/// Datagrams per family, each from a source port of its own.
const DATAGRAMS: u32 = 16;
/// Connections per family, enough for every queue to get its share.
const CONNECTIONS: u32 = 120;
/// Bytes of each transfer.
const TRANSFER_BYTES: u64 = 300_000;
/// Longest wait of a client for one step: everything is slow in an emulated machine.
const STEP_MS: u64 = 20_000;
/// Wait for the last acknowledgements before captures begin and end.
const SETTLE: Duration = Duration::from_millis(1500);
/// Longest wait for counters to come to rest.
const AT_REST_LIMIT: Duration = Duration::from_secs(5);
/// Captured: TCP and UDP of the overlay, without link-local chatter.
const LAN_FILTER: &str = "udp port 8472";
/// Captured: what clients ask of the VIPs.
const WAN_FILTER: &str = "net 203.0.113.0/24 or net 2001:db8:f::/64";

/// One trial.
pub(super) struct Trial {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// Without it the others have no meaning.
    pub(super) needed: bool,
    pub(super) run: fn(&mut Stage<'_>) -> Found,
}

pub(super) const fn needed(name: &'static str, about: &'static str, run: fn(&mut Stage<'_>) -> Found) -> Trial {
    Trial { name, about, needed: true, run }
}

pub(super) const fn trial(name: &'static str, about: &'static str, run: fn(&mut Stage<'_>) -> Found) -> Trial {
    Trial { name, about, needed: false, run }
}

/// Two devices that do zero-copy, in the order of running.
pub(super) const BOTH: &[Trial] = &[
    needed("start", "both programs, with mode: zero-copy", start),
    needed("mode", "what the kernel says of every queue", mode),
    trial("traffic", "clients ask, pods answer; every packet compared", traffic),
    trial("queues", "each queue took its share", queues),
    trial("killed", "SIGKILL of the dataplane; the next one gets the queues, in the other order", killed),
    trial("end", "an orderly end, and what the logs say", end),
];

/// One device that does not: refused where zero-copy is demanded, served beside the other where it is not.
pub(super) const MIXED: &[Trial] = &[
    trial("refused", "mode: zero-copy on a device that cannot", refused),
    needed("start", "both programs, with mode: auto", start_auto),
    needed("mode", "what the kernel says of every queue", mode),
    trial("traffic", "clients ask, pods answer; every packet compared", traffic),
    trial("queues", "each queue took its share", queues),
    trial("end", "an orderly end, and what the logs say", end),
];

impl Stage<'_> {
    /// The answer to a question when it is as it should be at rest, or what it is after a while: the device tells that
    /// it has sent something when it comes to it.
    pub(super) fn settled<T: DeserializeOwned>(&mut self, question: &str, at_rest: impl Fn(&T) -> bool) -> Result<T> {
        let deadline = Instant::now() + AT_REST_LIMIT;
        loop {
            let answer = self.gateway.show(question)?;
            if at_rest(&answer) || Instant::now() > deadline {
                return Ok(answer);
            }
            sleep(Duration::from_millis(200));
        }
    }
}

/// The address of the driver's header is one for which the machine's memory was arranged, or the driver has none.
fn header(stage: &mut Stage<'_>) -> Result<Row> {
    let symbols = stage.gateway.run("grep ' xsk_hdr' /proc/kallsyms || true")?;
    let address = symbols.split_whitespace().next().map(|address| u64::from_str_radix(address, 16)).transpose()?;
    let (first, length) = machine::MODULES;
    let kept = address.is_none_or(|address| (first..first + length).contains(&address));
    let told = address.map_or_else(|| "none".to_owned(), |address| format!("at {address:#x}"));
    Ok(Row::new("the driver's header", told, "none, or in memory kept zero", kept))
}

pub(super) fn start(stage: &mut Stage<'_>) -> Found {
    let mut rows = vec![header(stage)?];
    for program in [Program::Dataplane, Program::Control] {
        stage.gateway.start(program)?;
        rows.push(Row::new(program.name(), "ready", "ready", true));
    }
    Ok(rows)
}

/// A demand that cannot be met ends the start, with a text that names the device and what to do.
fn refused(stage: &mut Stage<'_>) -> Found {
    let measured = match stage.gateway.start(Program::Dataplane) {
        Ok(()) => "started".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let pass = ["wan0", "virtio_net", "no zero-copy", "mode: auto"].iter().all(|part| measured.contains(part));
    let shown = measured.lines().find(|line| line.contains("ERROR")).unwrap_or(&measured);
    Ok(vec![Row::new("start", shown, "an error that names device and way out", pass)])
}

fn start_auto(stage: &mut Stage<'_>) -> Found {
    let directory = crate::enclosure::STATE_DIR;
    stage.gateway.run(&format!("sed -i 's/mode: zero-copy/mode: auto/' {directory}/node.yaml"))?;
    start(stage)
}

/// The mode of every queue, as the kernel tells it (getsockopt XDP_OPTIONS behind `tidegate show ports`).
pub(super) fn mode(stage: &mut Stage<'_>) -> Found {
    let rows: Vec<PortRow> = stage.gateway.show("ports")?;
    let found: BTreeMap<String, String> =
        rows.into_iter().map(|row| (format!("{}/{}", row.device, row.queue), row.mode)).collect();
    let mut expected = BTreeMap::new();
    for (device, mapped) in ["wan0", "lan0"].into_iter().zip(stage.scene.mapped) {
        let mode = if mapped { "zero-copy" } else { "copy" };
        expected.extend((0..QUEUES).map(|queue| (format!("{device}/{queue}"), mode.to_owned())));
    }
    let told = found.iter().map(|(port, mode)| format!("{port} {mode}")).collect::<Vec<_>>().join(", ");
    let modes = Row::new("tidegate show ports", told, "zero-copy wherever the device can", found == expected);
    let workers = stage.gateway.show::<Vec<WorkerRow>>("workers")?;
    let told =
        workers.iter().map(|row| format!("{}: {}", row.worker, row.ports.join(" "))).collect::<Vec<_>>().join("; ");
    let all = workers.len() == stage.workers as usize && workers.iter().all(|row| !row.ports.is_empty());
    Ok(vec![modes, Row::new("tidegate show workers", told, format!("{} with ports", stage.workers), all)])
}

/// Real clients and pods, captured on both sides of the guest.
pub(super) fn traffic(stage: &mut Stage<'_>) -> Found {
    await_service(stage)?;
    let state_dir = stage.rig.lab.state_dir.clone();
    let wan = Capture::start_whole(&state_dir, CLIENT, "eth0", "guest-wan", WAN_FILTER)?;
    let lan = Capture::start_whole(&state_dir, FABRIC, GATEWAY, "guest-lan", LAN_FILTER)?;
    let mut rows = Vec::new();
    for family in FAMILIES {
        rows.push(datagrams(stage, family)?);
        rows.push(connections(stage, family)?);
        rows.extend(transfers(stage, family)?);
    }
    sleep(SETTLE);
    let (wan, lan) = (wan.finish()?, lan.finish()?);
    for family in FAMILIES {
        rows.push(match bytes(&wan, &lan, family) {
            Ok(told) => Row::new(format!("{family} captures"), told, BYTES_EXPECTED, true),
            Err(error) => Row::new(format!("{family} captures"), format!("{error:#}"), BYTES_EXPECTED, false),
        });
    }
    rows.push(books(stage)?);
    Ok(rows)
}

const BYTES_EXPECTED: &str = "same packets out as in, checksums right";

/// Waits until Services and neighbours are known: control reads its directory after it is ready.
pub(super) fn await_service(stage: &Stage<'_>) -> Result<()> {
    for family in FAMILIES {
        let mut arguments = stage.rig.way(VIP_WEB.at(family, WEB_PORT), 2000);
        // A fresh source port for every attempt.
        arguments.retain(|argument| !argument.starts_with("--from"));
        arguments.push("--limit-ms=40000".into());
        let outcome: Outcome = stage.rig.client("await", &arguments)?;
        ensure!(outcome.ok, "{family}: no answer from the VIP: {} {}", outcome.failure, outcome.error);
        // One connection from each client: a packet that waits for the link-layer address of its next hop may be dropped.
        let clients = stage.rig.spread(VIP_WEB.at(family, WEB_PORT), u32::try_from(CLIENT_HOSTS.len())?)?;
        ensure!(clients.failed == 0, "{family}: {:?}", clients.errors);
    }
    // Its last packets must not be in one capture only.
    sleep(SETTLE);
    Ok(())
}

fn datagrams(stage: &mut Stage<'_>, family: Family) -> Result<Row> {
    let mut by_pod: BTreeMap<String, u32> = BTreeMap::new();
    let mut failures = Vec::new();
    for _ in 0..DATAGRAMS {
        let outcome: Outcome = stage.rig.client("udp", &stage.rig.way(VIP_ECHO.at(family, ECHO_PORT), STEP_MS))?;
        let source = outcome.who.as_ref().map(|who| who.remote.ip());
        if outcome.ok && source == Some(family.pick(FULLNAT_V4, FULLNAT_V6)) {
            *by_pod.entry(outcome.pod).or_default() += 1;
        } else {
            failures.push(format!("{} {} {source:?}", outcome.failure, outcome.error));
        }
    }
    let measured = match failures.first() {
        None => format!("all, by {} pods", by_pod.len()),
        Some(first) => format!("{} not: {first}", failures.len()),
    };
    let expected = "answered; pods see the gateway (V-024)";
    Ok(Row::new(format!("{family} {DATAGRAMS} datagrams"), measured, expected, failures.is_empty()))
}

fn connections(stage: &mut Stage<'_>, family: Family) -> Result<Row> {
    let spread = stage.rig.spread(VIP_WEB.at(family, WEB_PORT), CONNECTIONS)?;
    let first = spread.errors.first().cloned().unwrap_or_default();
    let measured = format!("{} in {} ms, by {} pods {first}", spread.ok, spread.took_ms, spread.by_pod.len());
    let pass = spread.ok == CONNECTIONS && spread.failed == 0;
    Ok(Row::new(format!("{family} {CONNECTIONS} connections"), measured, "all answered", pass))
}

fn transfers(stage: &mut Stage<'_>, family: Family) -> Found {
    let mut rows = Vec::new();
    for task in ["download", "upload"] {
        let mut arguments = stage.rig.way(VIP_WEB.at(family, WEB_PORT), STEP_MS);
        arguments.push(format!("--bytes={TRANSFER_BYTES}"));
        let outcome: Outcome = stage.rig.client(task, &arguments)?;
        let measured = match outcome.ok {
            true => format!("whole, in {} ms", outcome.took_ms),
            false => format!("{} {}", outcome.failure, outcome.error),
        };
        let check = format!("{family} {task} of {} kB", TRANSFER_BYTES / 1000);
        rows.push(Row::new(check, measured, "checksum equal", outcome.ok));
    }
    Ok(rows)
}

/// Compares the captures of both sides and says how many packets agreed.
fn bytes(wan: &Captured, lan: &Captured, family: Family) -> Result<String> {
    let read = |captured: &Captured, side: &str| -> Result<Vec<Packet>> {
        let mut packets = Vec::new();
        for (number, bytes) in captured.frames()?.iter().enumerate() {
            let packet = wire::read(bytes).with_context(|| format!("frame {} at {side}: {bytes:02x?}", number + 1))?;
            packets.extend(packet.filter(|packet| packet.source.is_ipv4() == (family == Family::V4)));
        }
        Ok(packets)
    };
    let (wan, lan) = (read(wan, "the client")?, read(lan, "the fabric")?);
    let vips = [VIP_WEB.at(family, WEB_PORT), VIP_ECHO.at(family, ECHO_PORT)];
    let (asked, answered): (Vec<&Packet>, Vec<&Packet>) = wan.iter().partition(|packet| vips.contains(&packet.target));
    let underlay = GATEWAY_NODE.underlay(family);
    let (sent, returned): (Vec<&Packet>, Vec<&Packet>) =
        lan.iter().partition(|packet| packet.outer.as_ref().is_some_and(|outer| outer.source == underlay));
    for packet in &sent {
        check_sent(packet, family).with_context(|| format!("towards a pod: {packet:?}"))?;
    }
    for packet in &answered {
        ensure!(vips.contains(&packet.source), "answered from {}", packet.source);
        ensure!(packet.link == [mac(GATEWAY_WAN_MAC)?, mac(CLIENT_MAC)?], "answered over {:02x?}", packet.link);
    }
    wire::compare(asked.iter().copied(), sent.iter().copied()).context("towards pods")?;
    wire::compare(returned.iter().copied(), answered.iter().copied()).context("towards clients")?;
    wire::compare_flows(&asked, &sent).context("towards pods")?;
    let clients: BTreeSet<_> = asked.iter().map(|packet| packet.flow()).collect();
    let least = (DATAGRAMS + CONNECTIONS) as usize;
    ensure!(clients.len() >= least, "only {} flows were captured", clients.len());
    Ok(format!("{} to pods, {} to clients, {} flows", sent.len(), answered.len(), clients.len()))
}

/// What the gateway must have written around and into a packet for a pod.
fn check_sent(packet: &Packet, family: Family) -> Result<()> {
    let pod = pods().find(|pod| pod.address(family) == packet.target.ip()).context("no pod has this address")?;
    ensure!([POD_TCP_PORT, POD_UDP_PORT].contains(&packet.target.port()), "port {}", packet.target.port());
    ensure!(packet.source.ip() == family.pick(FULLNAT_V4, FULLNAT_V6), "source {} (V-024)", packet.source);
    let outer = packet.outer.as_ref().context("not inside VXLAN")?;
    let ends: [IpAddr; 2] = [outer.source, outer.target];
    ensure!(ends == [GATEWAY_NODE.underlay(family), pod.node().underlay(family)], "outer addresses {ends:?} (V-022)");
    ensure!((outer.vni, outer.hops) == (VNI, 64), "VNI {}, {} hops (V-020, V-006)", outer.vni, outer.hops);
    let inner_link = [mac(&GATEWAY_NODE.vtep_mac(family))?, mac(&pod.node().vtep_mac(family))?];
    ensure!(packet.inner_link == inner_link, "inner link {:02x?} (V-022)", packet.inner_link);
    ensure!(packet.link[0] == mac(GATEWAY_LAN_MAC)?, "link {:02x?}", packet.link);
    Ok(())
}

/// The dataplane's own accounts, which must agree with themselves.
pub(super) fn books(stage: &mut Stage<'_>) -> Result<Row> {
    let counters: Counters = stage.settled("counters", |counters: &Counters| counters.imbalance == 0)?;
    let drops: Vec<DropRow> = stage.gateway.show("drops")?;
    let drops = drops.iter().filter(|row| row.packets > 0).map(|row| format!("{} {}", row.packets, row.reason));
    let measured = format!("imbalance {}; drops: {}", counters.imbalance, drops.collect::<Vec<_>>().join(", "));
    Ok(Row::new("books", measured, "every packet accounted for", counters.imbalance == 0))
}

/// Every queue received; nothing was refused or lost in a ring. Frames are copied where they cross between devices of
/// different modes, which have memories of their own, and nowhere else.
pub(super) fn queues(stage: &mut Stage<'_>) -> Found {
    let mut rows = Vec::new();
    let at_rest = |rows: &Vec<PortRow>| rows.iter().all(|row| count(row, "tx_packets") == count(row, "tx_completed"));
    for port in stage.settled("ports", at_rest)? {
        let count = |name: &str| count(&port, name);
        let faults = ["rx_violations", "tx_violations", "tx_rejected", "rx_dropped", "rx_ring_full"];
        let sum: u64 = faults.iter().map(|name| count(name)).fold(0, u64::saturating_add);
        let (received, sent, completed) = (count("rx_packets"), count("tx_packets"), count("tx_completed"));
        let copied = count("tx_copied");
        let measured =
            format!("{received} received, {sent} sent, {completed} completed, {copied} copied, {sum} faults");
        let crossing = stage.scene.mapped.contains(&false) && sent > 0;
        let pass = received > 0 && sent == completed && sum == 0 && (copied > 0) == crossing;
        rows.push(Row::new(format!("{}/{}", port.device, port.queue), measured, "some received, none lost", pass));
    }
    Ok(rows)
}

/// A counter of a port; one that is missing is beyond every bound.
pub(super) fn count(port: &PortRow, name: &str) -> u64 {
    port.counters.get(name).copied().unwrap_or(u64::MAX)
}

/// A dataplane that dies in the middle leaves queues that the next one can have, zero-copy again. That one is given them
/// in the other order, in which it sends on the other queue.
fn killed(stage: &mut Stage<'_>) -> Found {
    let status = stage.gateway.end(Program::Dataplane, "KILL")?;
    let mut rows = vec![Row::new("SIGKILL", format!("status {status}"), "status 137", status == 137)];
    let directory = crate::enclosure::STATE_DIR;
    let order = "s/^( *)- name: (wan0|lan0)$/&\\n\\1  queues: [1, 0]/";
    stage.gateway.run(&format!("sed -E -i '{order}' {directory}/node.yaml"))?;
    stage.gateway.start(Program::Dataplane)?;
    rows.extend(mode(stage)?);
    await_service(stage)?;
    for family in FAMILIES {
        rows.push(connections(stage, family)?);
    }
    rows.extend(queues(stage)?);
    rows.push(sent_on(stage, 1)?);
    rows.push(books(stage)?);
    Ok(rows)
}

fn sent_on(stage: &mut Stage<'_>, queue: u32) -> Result<Row> {
    let ports = stage.gateway.show::<Vec<PortRow>>("ports")?;
    let sent: Vec<u64> =
        ports.iter().filter(|port| port.queue == queue).map(|port| count(port, "tx_completed")).collect();
    let pass = sent.len() == 2 && sent.iter().all(|sent| (1..u64::MAX).contains(sent));
    Ok(Row::new(format!("sent on queue {queue}"), format!("{sent:?}"), "some on both devices", pass))
}

pub(super) fn end(stage: &mut Stage<'_>) -> Found {
    let mut rows = Vec::new();
    for program in [Program::Control, Program::Dataplane] {
        let status = stage.gateway.end(program, "TERM")?;
        rows.push(Row::new(
            format!("SIGTERM, {}", program.name()),
            format!("status {status}"),
            "status 0",
            status == 0,
        ));
    }
    let directory = crate::enclosure::STATE_DIR;
    for (check, command) in [
        ("panics", format!("cat {directory}/*.log | grep 'panicked at'")),
        // What a driver says whose rings were left in disorder.
        ("kernel's log", "dmesg | grep -E 'BUG:|WARNING:|Oops|Call Trace|virtio.*(error|broken|is not)'".into()),
    ] {
        let found = stage.gateway.machine.run(&command, Duration::from_secs(30))?.text;
        let pass = found.is_empty();
        rows.push(Row::new(check, if pass { "nothing" } else { &found }, "nothing", pass));
    }
    Ok(rows)
}
