//! RSS: packets of clients arrive where the gateway says that they belong (decision 0025).
//!
//! Owns what is asked of a gateway behind a device that spreads flows by a hash and a table of its own. The device's hash
//! is QEMU's, which shares no code with the dataplane's; a packet whose queue the two do not agree on is handed over and
//! counted. Only the clients' questions are asked, at a port that no Service has, so that nothing comes back in VXLAN,
//! whose queue has nothing to do with it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tidegate_api::show::{Counters, PortRow, WorkerRow};

use super::Stage;
use super::trial::{Trial, await_service, count, end, mode, needed, queues, start, traffic, trial};
use crate::check::{Found, Row};
use crate::enclosure::{self, STATE_DIR};
use crate::gateway::Program;
use crate::generator::Sent;
use crate::process::{self, in_namespace};
use crate::topology::{CLIENT, FAMILIES, Family, VIP_ECHO};

/// Flows of each kind and family, a packet of each.
const FLOWS: u64 = 300;
/// Packets per second: the emulated device has room for a few hundred.
const RATE: u64 = 500;
/// A port at which no Service is.
const NOBODYS_PORT: u16 = 9;
/// Longest run of the generator.
const FLOOD_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for a command that looks at the whole machine.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// Entries of virtio-net's indirection table, and bytes of its key.
const ENTRIES: u32 = 128;
const KEY_BYTES: usize = 40;

/// Two devices that do zero-copy and RSS, in the order of running.
pub(super) const RSS: &[Trial] = &[
    needed("start", "both programs, with mode: zero-copy", start),
    needed("mode", "what the kernel says of every queue", mode),
    needed("read", "what device and dataplane say of the spread", read),
    trial("clients", "flows of clients, each at the queue of its owner", clients),
    trial("traffic", "clients ask, pods answer; every packet compared", traffic),
    trial("queues", "each queue took its share", queues),
    trial("changed", "another key than the dataplane has read: hand-overs, and doctor says so", changed),
    trial("again", "the next dataplane reads the new key", again),
    trial("end", "an orderly end, and what the logs say", end),
];

/// The device tells its key and table, and the dataplane follows them.
fn read(stage: &mut Stage<'_>) -> Found {
    let told = stage.gateway.run("ethtool -x wan0")?;
    let key = key_of(&told).with_context(|| format!("no key in {told}"))?;
    let bytes = key.split(':').count();
    let is_toeplitz = told.lines().any(|line| line.trim() == "toeplitz: on");
    let device = Row::new(
        "ethtool -x wan0",
        format!("a key of {bytes} bytes, toeplitz {}", if is_toeplitz { "on" } else { "off" }),
        format!("a key of {KEY_BYTES} bytes, toeplitz on"),
        bytes == KEY_BYTES && is_toeplitz,
    );
    let workers: Vec<WorkerRow> = stage.gateway.show("workers")?;
    let share = ENTRIES / stage.workers;
    let fits = |row: &WorkerRow| {
        let of_device = row.clients.as_ref().filter(|clients| clients.device == "wan0");
        of_device.is_some_and(|clients| (clients.entries, clients.of) == (share, ENTRIES))
    };
    let told = |row: &WorkerRow| match &row.clients {
        None => format!("{}: hash", row.worker),
        Some(clients) => format!("{}: {} {}/{}", row.worker, clients.device, clients.entries, clients.of),
    };
    let shares: Vec<String> = workers.iter().map(told).collect();
    let expected = format!("wan0 {share}/{ENTRIES} each");
    Ok(vec![device, Row::new("clients by", shares.join("; "), expected, workers.iter().all(fits))])
}

/// The hash key in what `ethtool -x` says: the line under its heading.
fn key_of(told: &str) -> Option<&str> {
    told.lines().skip_while(|line| !line.starts_with("RSS hash key:")).nth(1).map(str::trim)
}

fn clients(stage: &mut Stage<'_>) -> Found {
    await_service(stage)?;
    every_flow(stage, |arrived| arrived.handed_over == 0, "0 handed over, some at each queue")
}

/// `ethtool -X` while the dataplane runs: what it has read is no longer so.
fn changed(stage: &mut Stage<'_>) -> Found {
    let key = key_of(&stage.gateway.run("ethtool -x wan0")?).context("no key")?.to_owned();
    // The first byte last: as random as it was.
    let (first, rest) = key.split_once(':').context("a key of one byte")?;
    stage.gateway.run(&format!("ethtool -X wan0 hkey {rest}:{first}"))?;
    // Two queues: about half arrive at the other one.
    let is_half = |arrived: &Arrived| (FLOWS / 4..FLOWS * 3 / 4).contains(&arrived.handed_over);
    let mut rows = every_flow(stage, is_half, "about half handed over: this can be seen")?;
    // What it hashes of one sort as well, of which no packet comes here.
    stage.gateway.run("ethtool -N wan0 rx-flow-hash udp6 sd")?;
    let looked = stage.gateway.machine.run(&format!("tidegate doctor --config {STATE_DIR}/node.yaml"), LOOK_LIMIT)?;
    let finding = looked.text.lines().find(|line| line.contains("not spread as when")).unwrap_or("nothing of it");
    let told = ["rss wan0", "a hash key of digest", "udp6 hashed by sd, at start by sdfn"];
    let pass = told.iter().all(|part| finding.contains(part)) && finding.matches(" hashed by ").count() == 1;
    rows.push(Row::new("tidegate doctor", finding, "key and udp6 then and now, nothing else", pass));
    stage.gateway.run("ethtool -N wan0 rx-flow-hash udp6 sdfn")?;
    Ok(rows)
}

fn again(stage: &mut Stage<'_>) -> Found {
    stage.gateway.end(Program::Dataplane, "TERM")?;
    stage.gateway.start(Program::Dataplane)?;
    let mut rows = read(stage)?;
    rows.extend(clients(stage)?);
    Ok(rows)
}

/// How flows of one kind arrived.
#[derive(Debug)]
struct Arrived {
    /// Packets by queue of `wan0`.
    by_queue: Vec<u64>,
    /// Those that another worker had to take.
    handed_over: u64,
}

/// Datagrams and SYNs of both families: a packet of each flow.
fn every_flow(stage: &mut Stage<'_>, fits: impl Fn(&Arrived) -> bool, expected: &str) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        for payload in ["udp", "tcp-syn"] {
            let arrived = arrive(stage, family, payload)?;
            let all: u64 = arrived.by_queue.iter().sum();
            let measured = format!("{} handed over of {all}; by queue {:?}", arrived.handed_over, arrived.by_queue);
            let is_spread = arrived.by_queue.iter().all(|packets| *packets >= FLOWS / 4);
            let pass = all >= FLOWS && is_spread && fits(&arrived);
            rows.push(Row::new(format!("{family} {FLOWS} flows, {payload}"), measured, expected, pass));
        }
    }
    Ok(rows)
}

fn arrive(stage: &mut Stage<'_>, family: Family, payload: &str) -> Result<Arrived> {
    let before = arrived(stage, 0)?;
    let mut command = in_namespace(CLIENT, enclosure::this_program()?);
    command.args(["flood", "--payload", payload, &format!("--target={}", VIP_ECHO.at(family, NOBODYS_PORT))]);
    command.args([format!("--count={FLOWS}"), format!("--flows={FLOWS}"), format!("--rate={RATE}")]);
    let text = process::run(command, "", FLOOD_LIMIT)?.success("the generator")?;
    let sent: Sent = serde_json::from_str(&text).with_context(|| format!("the generator said {text:?}"))?;
    ensure!(sent.completed == FLOWS, "the generator completed {} of {FLOWS}", sent.completed);
    let after = arrived(stage, before.by_queue.iter().copied().fold(FLOWS, u64::saturating_add))?;
    let by_queue =
        after.by_queue.iter().zip(&before.by_queue).map(|(after, before)| after.saturating_sub(*before)).collect();
    Ok(Arrived { by_queue, handed_over: after.handed_over.saturating_sub(before.handed_over) })
}

/// What has arrived since the start, as soon as it is so much; what there is after a while otherwise.
fn arrived(stage: &mut Stage<'_>, least: u64) -> Result<Arrived> {
    let on_wan = |ports: &[PortRow]| -> Vec<u64> {
        let mut of_wan: Vec<&PortRow> = ports.iter().filter(|port| port.device == "wan0").collect();
        of_wan.sort_by_key(|port| port.queue);
        of_wan.into_iter().map(|port| count(port, "rx_packets")).collect()
    };
    let ports: Vec<PortRow> = stage
        .settled("ports", |ports: &Vec<PortRow>| on_wan(ports).into_iter().fold(0, u64::saturating_add) >= least)?;
    let counters: Counters = stage.gateway.show("counters")?;
    let handed_over = counters.totals.get("handed_over").copied().context("no counter of hand-overs")?;
    Ok(Arrived { by_queue: on_wan(&ports), handed_over })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_line_under_its_heading() {
        let told = "RX flow hash indirection table for wan0 with 2 RX ring(s):\n    0:      0     1\n\
                    RSS hash key:\n6d:5a:56\nRSS hash function:\n    toeplitz: on\n    xor: off\n";
        assert_eq!(key_of(told), Some("6d:5a:56"));
        assert_eq!(key_of("RSS hash function:\n    toeplitz: on\n"), None);
    }
}
