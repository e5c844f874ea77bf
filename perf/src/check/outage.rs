//! Checks of outage: control dies, the dataplane dies, the dataplane hangs.
//!
//! What must hold while no worker lives (design 3): what is ours is dropped, never passed. A kernel without our state
//! would reset clients or answer with the node's own address; both would be visible on the client's link, so that is
//! where it is looked for.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tidegate_api::show::{Control, Show, Shown};

use crate::capture::{Capture, Captured, NOT_NEIGHBOUR_DISCOVERY, RST};
use crate::check::serving::told;
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::gateway::Program;
use crate::rig::{Rig, RunningClient};
use crate::topology::{
    CLIENT, ECHO_PORT, FABRIC, FAMILIES, Family, GATEWAY_LAN_V4, GATEWAY_LAN_V6, GATEWAY_WAN_MAC, GATEWAY_WAN_V4,
    GATEWAY_WAN_V6, VIP_ECHO, VIP_ONLINK, VIP_WEB, WEB_PORT,
};

/// Size and rate of downloads that run across the outage: five seconds.
const DOWNLOAD_BYTES: u64 = 1_000_000;
/// See [`DOWNLOAD_BYTES`].
const DOWNLOAD_RATE: u64 = 200_000;
/// New connections while control is away, per family.
const CONNECTIONS: u32 = 200;
/// How long the service may take to come back.
const RESUME_LIMIT: Duration = Duration::from_secs(2);

fn start_downloads(rig: &Rig) -> Result<Vec<(Family, RunningClient)>> {
    let start = |family: Family| {
        let (client, _) = rig.start_download(VIP_WEB.at(family, WEB_PORT), DOWNLOAD_BYTES, DOWNLOAD_RATE)?;
        Ok((family, client))
    };
    FAMILIES.into_iter().map(start).collect()
}

fn download_rows(downloads: Vec<(Family, RunningClient)>) -> Found {
    let mut rows = Vec::new();
    for (family, client) in downloads {
        let outcome = client.outcome()?;
        rows.push(Row::new(
            format!("{family} running download"),
            told(&outcome),
            "completes, content as sent",
            outcome.ok,
        ));
    }
    Ok(rows)
}

/// Control gives a sign of life at least this often.
const SIGN_MAX: Duration = Duration::from_secs(10);

/// What the dataplane says of control.
fn control_heard(rig: &Rig) -> Result<Control> {
    match rig.gateway.show(Show::Control)? {
        Shown::Control(control) => Ok(control),
        other => bail!("asked for control, got {other:?}"),
    }
}

/// Looks until what the dataplane says of control fits.
fn control_row(
    rig: &Rig,
    what: &str,
    expected: &str,
    within: Duration,
    fits: impl Fn(&Control) -> bool,
) -> Result<Row> {
    let deadline = Instant::now() + within;
    loop {
        let heard = control_heard(rig)?;
        let is_so = fits(&heard);
        if is_so || Instant::now() >= deadline {
            return Ok(Row::new(what, heard.to_string(), expected, is_so));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A control that has nothing to say is told from one that hangs, and one that hangs from one that is gone.
fn control_listened_to(rig: &mut Rig) -> Found {
    // Nothing changes in the cluster meanwhile.
    let far = SIGN_MAX + Duration::from_secs(2);
    let (mut silent_ms, begun) = (0, Instant::now());
    while begun.elapsed() < far {
        silent_ms = silent_ms.max(control_heard(rig)?.silent_ms);
        std::thread::sleep(Duration::from_millis(100));
    }
    let is_heard = u128::from(silent_ms) <= SIGN_MAX.as_millis();
    let mut rows = vec![Row::new("idle control", format!("silent for {silent_ms} ms"), "at most 10 s", is_heard)];
    rig.gateway.stop(Program::Control)?;
    std::thread::sleep(far);
    let hangs = control_row(rig, "stopped control", "connected, and silent", Duration::ZERO, |heard| {
        heard.client.is_some() && u128::from(heard.silent_ms) > SIGN_MAX.as_millis()
    });
    // Healed in any case, or every later check would fail for this one.
    rig.gateway.resume(Program::Control)?;
    rows.push(hangs?);
    rows.push(control_row(rig, "resumed control", "heard", SIGN_MAX, |heard| {
        heard.is_well() && heard.silent_ms < 1000
    })?);
    Ok(rows)
}

/// Without control old connections go on and new ones are made; a new control changes nothing for either. The gateway says
/// itself how control is.
pub(super) fn control_killed(rig: &mut Rig) -> Found {
    let mut rows = control_listened_to(rig)?;
    let downloads = start_downloads(rig)?;
    rig.gateway.kill(Program::Control)?;
    let gone = |heard: &Control| heard.client.is_none() && heard.has_spoken;
    rows.push(control_row(rig, "killed control", "not connected", RESUME_LIMIT, gone)?);
    for family in FAMILIES {
        let spread = rig.spread(VIP_WEB.at(family, WEB_PORT), CONNECTIONS)?;
        let measured = format!("{} answered, {} failed", spread.ok, spread.failed);
        rows.push(Row::new(
            format!("{family} new connections"),
            measured,
            format!("{CONNECTIONS} answered"),
            spread.failed == 0,
        ));
    }
    let ready = rig.gateway.start_program(Program::Control)?;
    rows.push(Row::new("control again", format!("ready after {} ms", ready.as_millis()), "ready", true));
    rows.push(control_row(rig, "new control", "connected and heard", SIGN_MAX, Control::is_well)?);
    rows.extend(download_rows(downloads)?);
    Ok(rows)
}

/// A worker that hangs: silence, and afterwards everything goes on, the old connections too.
pub(super) fn dataplane_stopped(rig: &mut Rig) -> Found {
    let downloads = start_downloads(rig)?;
    let mut rows =
        outage(rig, |rig| rig.gateway.stop(Program::Dataplane), |rig| rig.gateway.resume(Program::Dataplane))?;
    rows.extend(download_rows(downloads)?);
    Ok(rows)
}

/// A dataplane that dies: silence, and a new one serves from what the old one saved.
pub(super) fn dataplane_killed(rig: &mut Rig) -> Found {
    // These end with the flow table; they are here to keep segments without a flow coming.
    let downloads = start_downloads(rig)?;
    let rows = outage(rig, |rig| rig.gateway.kill(Program::Dataplane), |rig| rig.gateway.spawn(Program::Dataplane));
    drop(downloads);
    rows
}

fn outage(rig: &mut Rig, hurt: impl Fn(&mut Rig) -> Result<()>, heal: impl Fn(&mut Rig) -> Result<()>) -> Found {
    let at_client = Capture::start(&rig.lab.state_dir, CLIENT, "eth0", "outage-client", "")?;
    let at_bridge = Capture::start(&rig.lab.state_dir, FABRIC, crate::topology::GATEWAY, "outage-fabric", "")?;
    hurt(rig)?;
    let during = knock(rig);
    // Healed in any case, or every later check would fail for this one.
    let resumed = resume(rig, heal);
    let (at_client, at_bridge) = (at_client.finish()?, at_bridge.finish()?);
    let mut rows = during?;
    rows.extend(resumed?);
    rows.extend(silence(&at_client, &at_bridge)?);
    Ok(rows)
}

/// Asks in every way while nobody is there: no answer, and no refusal either.
fn knock(rig: &Rig) -> Found {
    let mut answers = Vec::new();
    let mut asked = 0;
    for family in FAMILIES {
        let asks = [
            ("who", VIP_WEB.at(family, WEB_PORT)),
            ("who", VIP_ONLINK.at(family, WEB_PORT)),
            ("udp", VIP_ECHO.at(family, ECHO_PORT)),
        ];
        for (task, target) in asks {
            let outcome: Outcome = rig.client(task, &rig.way(target, 400))?;
            asked += 1;
            // A kernel that cannot resolve an on-link VIP says so itself: that is silence too.
            if !matches!(outcome.failure.as_str(), "timeout" | "unreachable") {
                answers.push(format!("{target}: {}", told(&outcome)));
            }
        }
        let arguments = [format!("--target={}", VIP_WEB.at(family, 0)), "--timeout-ms=300".into(), "--count=1".into()];
        let outcome: Outcome = rig.client("ping", &arguments)?;
        asked += 1;
        if outcome.failure != "timeout" {
            answers.push(format!("ping {}: {}", VIP_WEB.of(family), told(&outcome)));
        }
    }
    let measured = if answers.is_empty() { format!("{asked} asked, silence") } else { answers.join("; ") };
    Ok(vec![Row::new("during the outage", measured, "silence", answers.is_empty())])
}

/// Heals and measures from there to the first answer, per family.
fn resume(rig: &mut Rig, heal: impl Fn(&mut Rig) -> Result<()>) -> Found {
    let mut waiting = Vec::new();
    for family in FAMILIES {
        let target = format!("--target={}", VIP_WEB.at(family, WEB_PORT));
        let mut client = rig.start_client("await", &[target, "--timeout-ms=100".into(), "--limit-ms=15000".into()])?;
        client.line()?;
        waiting.push((family, client));
    }
    let began = Instant::now();
    heal(rig)?;
    let mut rows = Vec::new();
    for (family, client) in waiting {
        let outcome = client.outcome()?;
        let took = began.elapsed();
        let measured =
            if outcome.ok { format!("{} after {} ms", outcome.pod, took.as_millis()) } else { told(&outcome) };
        rows.push(Row::new(format!("{family} service resumes"), measured, "< 2 s", outcome.ok && took < RESUME_LIMIT));
    }
    Ok(rows)
}

/// Port of nodes at which a gateway feels whether they live.
const PULSE_PORT: u16 = 10256;

/// Reads both captures: no RST, and nothing the node itself said to Service traffic.
fn silence(at_client: &Captured, at_bridge: &Captured) -> Found {
    let from_gateway = format!("ether src {GATEWAY_WAN_MAC}");
    let row = |check: &str, lines: Vec<String>| {
        let measured = match lines.first() {
            Some(line) => format!("{}: {line}", lines.len()),
            None => "0".into(),
        };
        Row::new(check, measured, "0", lines.is_empty())
    };
    let seen = at_client.lines("")?.len();
    let own = format!(
        "{from_gateway} and (src host {GATEWAY_WAN_V4} or src host {GATEWAY_WAN_V6} or src net fe80::/10) \
         and {NOT_NEIGHBOUR_DISCOVERY}"
    );
    // The bridge sees our own VXLAN leave with the node's address as it must, and the questions by which nodes' pulse is
    // felt; ICMP and RST would be the kernel's.
    let own_underlay = format!(
        "((src host {GATEWAY_LAN_V4} and (icmp or tcp)) or (src host {GATEWAY_LAN_V6} and {NOT_NEIGHBOUR_DISCOVERY} \
         and not udp)) and not (tcp dst port {PULSE_PORT})"
    );
    Ok(vec![
        Row::new("frames captured at the client", seen.to_string(), "> 0", seen > 0),
        row("RST seen by the client", at_client.lines(&format!("{from_gateway} and ({RST})"))?),
        row("node's own address seen by the client", at_client.lines(&own)?),
        row("node's own answers in the underlay", at_bridge.lines(&own_underlay)?),
    ])
}
