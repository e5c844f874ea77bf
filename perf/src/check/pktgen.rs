//! Checks of `tidegate-pktgen`: its two ends in two network namespaces, the gateway and its VXLAN between them.
//!
//! Nothing about speed is asked. What is sent is received or lost and nothing else, no packet comes twice or as another,
//! and the gateway, which counts for itself, has seen at least as many as the sink, and at most as many as were sent.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::check::accounting::{at_rest, books, pin_neighbours};
use crate::check::{Found, Row};
use crate::pktgen::report::{self, Report};
use crate::process;
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

/// A trial, a search, connections by handshake and by two phases: both families.
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
    Ok(rows)
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
