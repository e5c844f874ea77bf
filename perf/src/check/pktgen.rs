//! Checks of `tidegate-pktgen`: its two ends in two network namespaces, the gateway and its VXLAN between them.
//!
//! Nothing about speed is asked. What is sent is received or lost and nothing else, no packet comes twice or as another,
//! and the gateway, which counts for itself, has seen at least as many as the sink, and at most as many as were sent.
//!
//! Frames of 9,000 bytes are sent without the gateway, which takes no packets in several frames: between two devices of an
//! MTU of their own.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::check::accounting::{at_rest, books, pin_neighbours};
use crate::check::{Found, Row};
use crate::pktgen::report::{self, Report};
use crate::process::{self, in_namespace};
use crate::rig::Rig;
use crate::topology::{
    CLIENT, ECHO_PORT, FABRIC, FAMILIES, Family, GATEWAY, GATEWAY_WAN_MAC, VIP_ECHO, VIP_WEB, VXLAN_PORT, WEB_PORT,
    workers,
};

/// Longest life of the generator.
const LIMIT: Duration = Duration::from_secs(60);
/// Packets of a trial.
const PACKETS: u64 = 5_000;
/// Packets per second.
const RATE: u64 = 10_000;
/// Connections of those that are begun.
const CONNECTIONS: u32 = 500;

/// Devices for large frames, both in the client's namespace.
const JUMBO: [&str; 2] = ["jumbo0", "jumbo1"];
/// Packets of a trial with large frames.
const JUMBO_PACKETS: u64 = 1_000;

/// A trial, a search, connections by handshake and by two phases, frames of 9,000 bytes: both families.
pub(super) fn pktgen(rig: &mut Rig) -> Found {
    pin_neighbours(true)?;
    let rows = all(rig);
    pin_neighbours(false)?;
    rows
}

fn all(rig: &Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        rows.push(trial(rig, family)?);
        rows.push(search(rig, family)?);
        rows.push(handshakes(rig, family)?);
        rows.push(two_phases(rig, family)?);
    }
    rows.extend(books(rig)?);
    let made = ip(&format!(
        "link add {} mtu 9000 type veth peer name {} mtu 9000\nlink set {} up\nlink set {} up\n",
        JUMBO[0], JUMBO[1], JUMBO[0], JUMBO[1]
    ));
    let large = made.and_then(|()| jumbo(rig));
    ip(&format!("link del {}\n", JUMBO[0]))?;
    rows.extend(large?);
    Ok(rows)
}

/// Runs lines of ip(8) in the client's namespace.
fn ip(lines: &str) -> Result<()> {
    let mut command = in_namespace(CLIENT, "ip");
    command.args(["-batch", "-"]);
    process::run(command, lines, LIMIT)?.success("devices for large frames").map(drop)
}

/// Frames of up to 9,000 bytes from one device to the other: plain and in VXLAN, received or only counted.
fn jumbo(rig: &Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        let (target, ends) = match family {
            Family::V4 => ("203.0.113.10:80", ["198.51.100.1", "198.51.100.2"]),
            Family::V6 => ("[2001:db8:f::10]:80", ["2001:db8:2::1", "2001:db8:2::2"]),
        };
        let vxlan = [
            format!("--vxlan-from={}", ends[0]),
            format!("--vxlan-to={}", ends[1]),
            "--inner-mac=02:00:00:00:00:07".into(),
        ];
        let kinds: [(&str, &str, u64, &[String]); 4] = [
            ("9000", "--verify", 9_000, &[]),
            ("64:1,1518:1,3845:1,9000:3", "--verify", 0, &[]),
            ("9000", "--verify", 9_000, &vxlan),
            ("9000", "--count-only", 9_000, &[]),
        ];
        for (sizes, how, size_bytes, more) in kinds {
            let mut command = Command::new(rig.gateway.program("tidegate-pktgen"));
            command.args(["--json", "run", how, "--to-mac=02:00:00:00:00:02", "--flows=100", "--rate=5000"]);
            command.args([format!("--tx={}@{CLIENT}", JUMBO[0]), format!("--rx={}@{CLIENT}", JUMBO[1])]);
            command.args([format!("--target={target}"), format!("--sizes={sizes}")]);
            command.arg(format!("--packets={JUMBO_PACKETS}")).args(more);
            let text = process::run(command, "", LIMIT)?.success("tidegate-pktgen")?;
            let report: Report =
                serde_json::from_str(&text).with_context(|| format!("tidegate-pktgen said {text:?}"))?;
            let report::Result::Trial(outcome) = report.result else { bail!("a trial told {:?}", report.result) };
            let measured = format!(
                "{} sent, {} bytes = {} received + {} lost, {} corrupt, {} of others",
                outcome.sent, outcome.sent_bytes, outcome.received, outcome.lost, outcome.corrupt, outcome.foreign
            );
            let others = outcome.corrupt + outcome.foreign + outcome.duplicates + outcome.rejected;
            let pass = outcome.sent == JUMBO_PACKETS
                && (size_bytes == 0 || outcome.sent_bytes == JUMBO_PACKETS * size_bytes)
                && outcome.received > JUMBO_PACKETS / 2
                && outcome.sent == outcome.received + outcome.lost
                && others == 0;
            let tunnel = if more.is_empty() { "" } else { " in VXLAN" };
            let what = format!("{family} frames of {sizes}{tunnel} {how}");
            rows.push(Row::new(what, measured, "whole and right, sent = received + lost", pass));
        }
    }
    let refused = small(rig)?;
    let pass =
        refused.contains("jumbo0 has an MTU of 1500") && refused.contains("frames of 9000 bytes need one of 8982");
    rows.push(Row::new("frames of 9000 at an MTU of 1500", refused, "refused with device, size and fix", pass));
    Ok(rows)
}

/// What is said of frames that a device is too small for.
fn small(rig: &Rig) -> Result<String> {
    ip(&format!("link set {} mtu 1500\n", JUMBO[0]))?;
    let mut command = Command::new(rig.gateway.program("tidegate-pktgen"));
    command.args(["run", "--sizes=9000", "--target=203.0.113.10:80", "--to-mac=02:00:00:00:00:02"]);
    command.args([format!("--tx={}@{CLIENT}", JUMBO[0]), format!("--rx={}@{CLIENT}", JUMBO[1])]);
    let finished = process::run(command, "", LIMIT)?;
    ensure!(!finished.status.success(), "frames of 9000 bytes were sent by a device with an MTU of 1500");
    Ok(finished.stderr.trim().to_owned())
}

/// Runs the generator between the client's end of `wan0` and the workers' end of `lan0`.
fn run(rig: &Rig, family: Family, words: &[&str], more: &[String]) -> Result<Report> {
    let mut command = Command::new(rig.gateway.program("tidegate-pktgen"));
    command.arg("--json").args(words).arg(format!("--tx=eth0@{CLIENT}")).arg(format!("--rx={GATEWAY}@{FABRIC}"));
    command.arg(format!("--to-mac={GATEWAY_WAN_MAC}")).args(more);
    for worker in workers() {
        command.arg(format!("--expect-vxlan={}", std::net::SocketAddr::new(worker.underlay(family), VXLAN_PORT)));
    }
    let text = process::run(command, "", LIMIT)?.success("tidegate-pktgen")?;
    serde_json::from_str(&text).with_context(|| format!("tidegate-pktgen said {text:?}"))
}

fn trial(rig: &Rig, family: Family) -> Result<Row> {
    let (before, _) = at_rest(rig)?;
    let more = [
        format!("--target={}", VIP_ECHO.at(family, ECHO_PORT)),
        format!("--packets={PACKETS}"),
        format!("--rate={RATE}"),
        "--flows=200".into(),
        "--order=zipf".into(),
        "--sizes=imix".into(),
    ];
    // The largest of the mixture would have to be fragmented after VXLAN has been put on.
    let more = more.map(|word| word.replace("imix", "64:7,570:4,1400:1"));
    let report = run(rig, family, &["run", "--verify"], &more)?;
    let report::Result::Trial(outcome) = report.result else { bail!("a trial told {:?}", report.result) };
    let (after, _) = at_rest(rig)?;
    let arrived = after.since(before);
    let measured = format!(
        "{} sent = {} received + {} lost, {} twice, {} corrupt; gateway {} + {} lost",
        outcome.sent,
        outcome.received,
        outcome.lost,
        outcome.duplicates,
        outcome.corrupt,
        arrived.received,
        arrived.lost
    );
    let pass = outcome.sent == PACKETS
        && outcome.received > 0
        && outcome.sent == outcome.received + outcome.lost
        && (outcome.duplicates, outcome.corrupt, outcome.foreign) == (0, 0, 0)
        && outcome.latency.count == outcome.received
        && arrived.received + arrived.lost >= outcome.sent
        && arrived.received >= outcome.received;
    Ok(Row::new(format!("{family} pktgen trial"), measured, "sent = received + lost, gateway agrees", pass))
}

fn search(rig: &Rig, family: Family) -> Result<Row> {
    let more = [
        format!("--target={}", VIP_ECHO.at(family, ECHO_PORT)),
        "--trial-seconds=0.05".into(),
        "--precision=0.2".into(),
        "--rate-max=20000".into(),
        "--count-only".into(),
    ];
    let report = run(rig, family, &["search", "pdr"], &more)?;
    let report::Result::Search(found) = report.result else { bail!("a search told {:?}", report.result) };
    let good = found.steps.iter().filter(|step| step.passed).count();
    let measured = format!("{} trials, {good} passed, {:.0}/s", found.steps.len(), found.rate_per_s);
    let whole = |step: &crate::pktgen::search::Step| {
        let outcome = &step.outcome;
        outcome.sent > 0
            && outcome.sent == outcome.received + outcome.lost
            && (outcome.loss_ratio <= 0.005) == step.passed
    };
    let pass = found.steps.iter().all(whole) && (good > 0) == (found.rate_per_s > 0.0) && !found.steps.is_empty();
    Ok(Row::new(format!("{family} pktgen search"), measured, "each trial's books balance", pass))
}

fn handshakes(rig: &Rig, family: Family) -> Result<Row> {
    let more = [
        format!("--target={}", VIP_WEB.at(family, WEB_PORT)),
        format!("--flows={CONNECTIONS}"),
        "--rate=2000".into(),
        "--reset".into(),
    ];
    let report = run(rig, family, &["handshakes"], &more)?;
    let report::Result::Handshakes(told) = report.result else { bail!("handshakes told {:?}", report.result) };
    let measured = format!(
        "{} begun, {} answered, {} back, {} whole",
        told.begun, told.answered, told.established, told.completed
    );
    let falls = told.begun >= told.answered && told.answered >= told.established && told.established >= told.completed;
    let pass = told.begun == u64::from(CONNECTIONS) && falls && told.completed > 0;
    Ok(Row::new(format!("{family} pktgen handshakes"), measured, "none more than begun, some whole", pass))
}

fn two_phases(rig: &Rig, family: Family) -> Result<Row> {
    let more = [
        format!("--target={}", VIP_ECHO.at(family, ECHO_PORT)),
        "--first-flow=1000000".into(),
        format!("--connections={CONNECTIONS}"),
        "--connections-max=1000".into(),
        "--rate-max=5000".into(),
    ];
    let report = run(rig, family, &["rfc9693", "capacity"], &more)?;
    let report::Result::Stateful(found) = report.result else { bail!("two phases told {:?}", report.result) };
    let trials: Vec<_> = found.trials.iter().map(|one| (one.connections, one.arrived, one.validated)).collect();
    let pass = trials.iter().all(|(begun, arrived, valid)| begun >= arrived && arrived >= valid)
        && trials.first().is_some_and(|(_, _, valid)| *valid > 0);
    Ok(Row::new(format!("{family} pktgen RFC 9693"), format!("{trials:?}"), "begun, arrived, validated", pass))
}
