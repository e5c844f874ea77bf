//! Checks of accounting: every frame of a flood is found again, in three places that do not know each other.
//!
//! The generator counts what its socket completed. The kernel counts what the gateway's sockets lost, and the pinhole
//! what it handed over and what it let pass. The worker counts what it received. The first must be the sum of the
//! others; and the books of design section 9 must balance, whatever became of the packets.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use tidegate_api::show::{Counters, PortRow, Show, Shown, StageRow};

use crate::capture::Capture;
use crate::check::{Found, Row};
use crate::client::Spread;
use crate::enclosure;
use crate::generator::Sent;
use crate::process::{self, in_namespace};
use crate::rig::{Rig, wait_until};
use crate::topology::{
    CLIENT, CLIENT_HOSTS, CLIENT_MAC, ECHO_PORT, FAMILIES, Family, GATEWAY, GATEWAY_WAN_MAC, GATEWAY_WAN_V4,
    GATEWAY_WAN_V6, VIP_ECHO, VIP_EMPTY, VIP_WEB, WEB_PORT, client_address,
};

/// Frames of each flood.
const FRAMES: u64 = 50_000;
/// Frames per second.
const RATE: u64 = 50_000;
/// Distinct flows of each flood.
const FLOWS: u32 = 2_000;
/// Longest life of the generator.
const FLOOD_LIMIT: Duration = Duration::from_secs(60);
/// How long counters may take to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(10);
/// How long a counter must not move to be at rest.
const REST: Duration = Duration::from_millis(300);

/// What became of frames that arrived at a device, from its row in `tidegate show ports --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrived {
    /// Frames the worker received.
    pub(super) received: u64,
    /// Frames the socket lost: ring full, or no frame to put them in (the kernel's own statistics).
    pub(super) lost: u64,
    /// Frames the pinhole let pass to the kernel, or dropped for want of a socket.
    not_ours: u64,
}

impl Arrived {
    /// Sums over the queues of `device`; the pinhole is one per device, whichever rows show its counters.
    fn read(ports: &[PortRow], device: &str) -> Result<Arrived> {
        let mut arrived = Arrived { received: 0, lost: 0, not_ours: 0 };
        for row in ports.iter().filter(|row| row.device == device) {
            let counter = |name: &str| {
                let names = || row.counters.keys().cloned().collect::<Vec<_>>().join(" ");
                row.counters.get(name).copied().with_context(|| format!("no counter {name} among: {}", names()))
            };
            arrived.received += counter("rx_packets")? + counter("rx_violations")?;
            // A frame dropped for an empty fill ring is among rx_dropped (net/xdp/xsk.c, __xsk_rcv).
            arrived.lost += counter("rx_dropped")? + counter("rx_ring_full")?;
            let not_ours = counter("pinhole_passed")? + counter("pinhole_dropped_dead")?;
            arrived.not_ours = arrived.not_ours.max(not_ours + counter("pinhole_passed_dead")?);
        }
        Ok(arrived)
    }

    pub(super) fn since(self, before: Arrived) -> Arrived {
        Arrived {
            received: self.received - before.received,
            lost: self.lost - before.lost,
            not_ours: self.not_ours - before.not_ours,
        }
    }

    fn sum(self) -> u64 {
        self.received + self.lost + self.not_ours
    }
}

/// Arrivals at `wan0` when they have come to rest, and a moment at which that was so.
pub(super) fn at_rest(rig: &Rig) -> Result<(Arrived, SystemTime)> {
    let read = || Arrived::read(&rig.gateway.ports_by_command()?, "wan0");
    let mut last = read()?;
    let mut moment = SystemTime::now();
    let rested = wait_until(REST_LIMIT, || {
        std::thread::sleep(REST / 2);
        moment = SystemTime::now();
        std::thread::sleep(REST / 2);
        let now = read()?;
        let same = now == last;
        last = now;
        Ok(same)
    })?;
    rested.with_context(|| format!("wan0 does not come to rest: {last:?}"))?;
    Ok((last, moment))
}

/// Pins the neighbours of the client's link, so that no resolution mixes with the flood; and undoes it.
pub(super) fn pin_neighbours(pin: bool) -> Result<()> {
    let state = if pin { "permanent" } else { "stale" };
    let towards_gateway: String = [GATEWAY_WAN_V4.to_string(), GATEWAY_WAN_V6.to_string()]
        .iter()
        .map(|address| format!("neigh replace {address} lladdr {GATEWAY_WAN_MAC} dev eth0 nud {state}\n"))
        .collect();
    let towards_client: String = FAMILIES
        .map(|family| client_address(family, *CLIENT_HOSTS.start()))
        .iter()
        .map(|address| format!("neigh replace {address} lladdr {CLIENT_MAC} dev wan0 nud {state}\n"))
        .collect();
    for (namespace, lines) in [(CLIENT, towards_gateway), (GATEWAY, towards_client)] {
        let mut command = in_namespace(namespace, "ip");
        command.args(["-batch", "-"]);
        process::run(command, &lines, FLOOD_LIMIT)?.success("pinning neighbours")?;
    }
    Ok(())
}

fn send(target: &str, payload: &str) -> Result<Sent> {
    send_so_much(target, payload, FRAMES, RATE, FLOWS)
}

fn send_so_much(target: &str, payload: &str, frames: u64, rate: u64, flows: u32) -> Result<Sent> {
    let mut command = in_namespace(CLIENT, enclosure::this_program()?);
    command.args(["flood", "--target", target, "--payload", payload]);
    command.args([format!("--count={frames}"), format!("--rate={rate}"), format!("--flows={flows}")]);
    let text = process::run(command, "", FLOOD_LIMIT)?.success("the generator")?;
    serde_json::from_str(&text).with_context(|| format!("the generator said {text:?}"))
}

/// Connections that are held while SYNs flood.
const HELD: u32 = 1_000;
/// SYNs of the flood: ten times the share that handshakes have of the lab's 65,536 flows.
const SYNS: u32 = 10 * 65_536 / 4;
/// SYNs per second.
const SYN_RATE: u64 = 20_000;
/// How long the connections say nothing: longer than the flood lasts.
const SILENCE: Duration = Duration::from_secs(14);

/// L-022, N-100: a flood of SYNs from made-up clients while a thousand connections stand.
pub(super) fn syn_flood(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        let evicted = |rig: &Rig| -> Result<u64> {
            Ok(rig.gateway.counters()?.totals.get("half_open_evicted").copied().unwrap_or_default())
        };
        let before = evicted(rig)?;
        let target = VIP_WEB.at(family, WEB_PORT);
        let sources: Vec<String> = CLIENT_HOSTS.map(|host| client_address(family, host).to_string()).collect();
        let first_port = rig.ports.take(u16::try_from(HELD.div_ceil(u32::try_from(sources.len())?))?);
        let arguments = [
            format!("--target={target}"),
            format!("--count={HELD}"),
            format!("--from={}", sources.join(",")),
            format!("--first-port={first_port}"),
            format!("--silence-ms={}", SILENCE.as_millis()),
        ];
        let mut held = rig.start_client("hold", &arguments)?;
        held.line()?;
        let began = Instant::now();
        let sent = send_so_much(&target.to_string(), "tcp-syn", SYNS.into(), SYN_RATE, SYNS)?;
        let lasted = began.elapsed();
        let spread: Spread = held.last()?;
        let measured = format!("{} answered, {} failed {:?}", spread.ok, spread.failed, spread.errors.first());
        let pass = spread.ok == HELD && lasted < SILENCE;
        rows.push(Row::new(format!("{family} held connections"), measured, format!("{HELD} answered (N-100)"), pass));
        let gone = evicted(rig)? - before;
        let measured = format!("{} SYNs, {gone} handshakes gave way", sent.completed);
        let pass = sent.completed == u64::from(SYNS) && gone > u64::from(SYNS) / 2;
        rows.push(Row::new(format!("{family} flood"), measured, "most SYNs beyond the share (L-022)", pass));
    }
    Ok(rows)
}

/// Four floods: datagrams that are served, and SYNs to a Service without endpoints, both families.
pub(super) fn flood(rig: &mut Rig) -> Found {
    pin_neighbours(true)?;
    let rows = floods(rig);
    pin_neighbours(false)?;
    rows
}

fn floods(rig: &Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        rows.push(one_flood(rig, family, "UDP", "udp", VIP_ECHO.at(family, ECHO_PORT).to_string())?);
        rows.push(one_flood(rig, family, "SYN", "tcp-syn", VIP_EMPTY.at(family, WEB_PORT).to_string())?);
    }
    rows.push(stages(rig)?);
    rows.extend(books(rig)?);
    Ok(rows)
}

/// Some of so many turns were measured: how long a packet was at each stage, and all of them saw the same packets.
fn stages(rig: &Rig) -> Result<Row> {
    let Shown::Workers(workers) = rig.gateway.show(Show::Workers)? else { bail!("asked for workers") };
    let measured: Vec<&StageRow> =
        workers.iter().flat_map(|row| &row.stages).filter(|stage| stage.each_ns().is_some()).collect();
    let told: Vec<String> =
        measured.iter().map(|row| format!("{} {:.0}", row.stage, row.each_ns().unwrap_or_default())).collect();
    let packets = measured.first().map_or(0, |row| row.packets.iter().sum::<u64>());
    let is_sane = |row: &&&StageRow| row.each_ns().is_some_and(|each_ns| each_ns > 0.0 && each_ns < 1e6);
    let pass = measured.iter().filter(is_sane).count() >= 6 && workers.iter().all(|row| row.stages.len() == 7);
    let measured = format!("ns of {packets} packets: {}", told.join(", "));
    Ok(Row::new("stages of measured turns", measured, "six and more, all below 1 ms", pass))
}

/// The books balance once nothing is on its way (design 9).
pub(super) fn balance(rig: &mut Rig) -> Found {
    books(rig)
}

pub(super) fn books(rig: &Rig) -> Found {
    let mut counters = Counters::default();
    let balanced = wait_until(REST_LIMIT, || {
        counters = rig.gateway.counters()?;
        Ok(counters.imbalance == 0)
    })?;
    let measured = format!("imbalance {}, {} counters", counters.imbalance, counters.totals.len());
    let pass = balanced.is_some() && !counters.totals.is_empty();
    Ok(vec![Row::new("books", measured, "imbalance 0 (design 9)", pass)])
}

fn one_flood(rig: &Rig, family: Family, kind: &str, payload: &str, target: String) -> Result<Row> {
    // What the client's own kernel sends meanwhile (listener reports, solicitations) passes a tap; the generator's
    // frames do not, since AF_XDP hands them straight to the device.
    let own = Capture::start(&rig.lab.state_dir, CLIENT, "eth0", "flood", &format!("ether src {CLIENT_MAC}"))?;
    let (before, began) = at_rest(rig)?;
    let sent = send(&target, payload)?;
    if sent.completed != FRAMES {
        bail!("the generator completed {} of {FRAMES} frames: {sent:?}", sent.completed);
    }
    let (after, ended) = at_rest(rig)?;
    let kernels_own = own.finish()?.count_between(began, ended)?;
    let arrived = after.since(before);
    let measured = format!(
        "{} + {kernels_own} of the kernel = {} received + {} lost + {} passed",
        sent.completed, arrived.received, arrived.lost, arrived.not_ours
    );
    let rate = sent.completed / sent.took_ms.max(1);
    let check = format!("{family} {kind} flood, {rate} kpps");
    let pass = sent.completed + kernels_own == arrived.sum() && arrived.received > 0;
    Ok(Row::new(check, measured, "generator = gateway + socket + pinhole", pass))
}
