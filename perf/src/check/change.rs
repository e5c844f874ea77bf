//! Checks of change: an endpoint leaves, none is left, a Service appears.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::check::serving::told;
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::manifest::{ECHO, HTTP, LabService};
use crate::rig::{Rig, RunningClient, wait_until, way};
use crate::topology::{ECHO_PORT, FAMILIES, Family, Pod, VIP_ECHO, VIP_EMPTY, VIP_LATE, VIP_WEB, WEB_PORT, pods};

/// How long the gateway may take to follow a change before the check gives up; the row shows how long it took.
const FOLLOW_LIMIT: Duration = Duration::from_secs(15);
/// Size and rate of the downloads that run while an endpoint leaves: four seconds.
const DOWNLOAD_BYTES: u64 = 1_200_000;
/// See [`DOWNLOAD_BYTES`].
const DOWNLOAD_RATE: u64 = 300_000;
/// Downloads started at most until enough of them are at the pod that leaves.
const DOWNLOADS_MAX: usize = 48;
/// Downloads wanted at that pod, per family.
const DOWNLOADS_WANTED: usize = 2;
/// New connections made afterwards, per family.
const CONNECTIONS: u32 = 300;

fn names(service: &LabService) -> Vec<String> {
    service.pods.iter().map(|pod| pod.name()).collect()
}

/// The Service without one of its pods.
fn without(service: &LabService, pod: Pod) -> LabService {
    LabService { pods: service.pods.iter().copied().filter(|other| *other != pod).collect(), ..service.clone() }
}

/// Starts slow downloads until enough run at `pod`; the others end at once.
fn downloads_at(rig: &Rig, family: Family, pod: Pod) -> Result<Vec<RunningClient>> {
    let mut wanted = Vec::new();
    for _ in 0..DOWNLOADS_MAX {
        let (running, at) = rig.start_download(VIP_WEB.at(family, WEB_PORT), DOWNLOAD_BYTES, DOWNLOAD_RATE)?;
        if at == pod.name() {
            wanted.push(running);
        }
        if wanted.len() == DOWNLOADS_WANTED {
            return Ok(wanted);
        }
    }
    bail!("{DOWNLOADS_MAX} downloads, {} of them at {}", wanted.len(), pod.name());
}

/// S-100: established connections to an endpoint that left go on; new ones avoid it.
pub(super) fn endpoint_removed(rig: &mut Rig) -> Found {
    let web = LabService::new("web", VIP_WEB, &[HTTP]);
    let leaving = pods().last().context("no pods")?;
    let mut running = Vec::new();
    for family in FAMILIES {
        running.push((family, downloads_at(rig, family, leaving)?));
    }
    let fewer = without(&web, leaving);
    rig.manifests.put_endpoints(&fewer)?;
    let followed = rig.await_active_pods("shop/web", &names(&fewer), FOLLOW_LIMIT);
    let mut rows = Vec::new();
    if let Ok(took) = &followed {
        let still = running.iter_mut().all(|(_, clients)| clients.iter_mut().all(RunningClient::is_running));
        let measured = format!("after {} ms; downloads still run: {still}", took.as_millis());
        rows.push(Row::new("gateway follows", measured, "< 1 s; still running", still && took.as_millis() < 1000));
        for family in FAMILIES {
            let spread = rig.spread(VIP_WEB.at(family, WEB_PORT), CONNECTIONS)?;
            let there = spread.by_pod.get(&leaving.name()).copied().unwrap_or(0);
            let measured = format!("{} answered, {} failed, {there} at {}", spread.ok, spread.failed, leaving.name());
            let expected = format!("{CONNECTIONS} answered, 0 there");
            rows.push(Row::new(
                format!("{family} new connections"),
                measured,
                expected,
                spread.failed == 0 && there == 0,
            ));
        }
        for (family, clients) in running {
            let outcomes: Vec<Outcome> = clients.into_iter().map(RunningClient::outcome).collect::<Result<_>>()?;
            let pass = outcomes.iter().all(|outcome| outcome.ok);
            let measured = outcomes.iter().map(told).collect::<Vec<_>>().join(", ");
            rows.push(Row::new(
                format!("{family} running downloads"),
                measured,
                "complete, content as sent (S-100)",
                pass,
            ));
        }
    }
    rig.manifests.put_endpoints(&web)?;
    rig.await_active_pods("shop/web", &names(&web), FOLLOW_LIMIT)?;
    followed.map(|_| rows)
}

/// S-102: a UDP client with a fixed source port gets another pod when its own left, and was faithful before.
pub(super) fn udp_reselects(rig: &mut Rig) -> Found {
    let echo = LabService::new("echo", VIP_ECHO, &[ECHO]);
    let mut rows = Vec::new();
    for family in FAMILIES {
        let arguments = way(VIP_ECHO.at(family, ECHO_PORT), rig.source(family), 300);
        let ask = |rig: &Rig| rig.client::<Outcome>("udp", &arguments);
        let (first, again) = (ask(rig)?, ask(rig)?);
        let Some(leaving) = pods().find(|pod| pod.name() == first.pod) else {
            rows.push(Row::new(format!("{family} before"), told(&first), "a pod answers", false));
            continue;
        };
        let fewer = without(&echo, leaving);
        rig.manifests.put_endpoints(&fewer)?;
        let began = Instant::now();
        let mut other = Outcome::default();
        let found = wait_until(FOLLOW_LIMIT, || {
            other = ask(rig)?;
            Ok(other.ok && other.pod != first.pod)
        })?;
        // Once it has moved it must not go back.
        let after = ask(rig)?;
        let pass = first.pod == again.pod && found.is_some() && after.pod == other.pod;
        let measured = format!(
            "{} {}, removed, {} {} after {} ms",
            first.pod,
            again.pod,
            other.pod,
            after.pod,
            began.elapsed().as_millis()
        );
        rows.push(Row::new(format!("{family} same source port"), measured, "a b, a ≠ b, both twice (S-102)", pass));
        rig.manifests.put_endpoints(&echo)?;
        rig.await_active_pods("shop/echo", &names(&echo), FOLLOW_LIMIT)?;
    }
    Ok(rows)
}

/// S-070: nobody behind the Service: the client is told at once.
pub(super) fn no_endpoints(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        for (kind, task, port) in [("TCP", "who", WEB_PORT), ("UDP", "udp", ECHO_PORT)] {
            let outcome: Outcome = rig.client(task, &rig.way(VIP_EMPTY.at(family, port), 3000))?;
            let pass = outcome.failure == "refused" && outcome.took_ms < 1000;
            rows.push(Row::new(format!("{family} {kind}"), told(&outcome), "refused in < 1 s (S-070)", pass));
        }
    }
    Ok(rows)
}

/// A Service that appears in the directory answers within a second.
pub(super) fn new_service(rig: &mut Rig) -> Found {
    let late = LabService::new("late", VIP_LATE, &[HTTP]);
    let mut waiting = Vec::new();
    for family in FAMILIES {
        let target = VIP_LATE.at(family, WEB_PORT);
        let mut client = rig.start_client(
            "await",
            &[format!("--target={target}"), "--timeout-ms=100".into(), "--limit-ms=10000".into()],
        )?;
        client.line()?;
        waiting.push((family, client));
    }
    let began = Instant::now();
    rig.manifests.put(&late)?;
    let mut rows = Vec::new();
    for (family, client) in waiting {
        let outcome = client.outcome()?;
        let took = began.elapsed();
        let measured =
            if outcome.ok { format!("{} after {} ms", outcome.pod, took.as_millis()) } else { told(&outcome) };
        rows.push(Row::new(
            format!("{family} first answer"),
            measured,
            "< 1 s after the file",
            outcome.ok && took.as_millis() < 1000,
        ));
    }
    rig.manifests.delete(&late)?;
    let gone = wait_until(FOLLOW_LIMIT, || Ok(rig.backends("shop/late").map_or(true, |rows| rows.is_empty())))?;
    let measured = gone.map_or("still there".into(), |took| format!("gone after {} ms", took.as_millis()));
    rows.push(Row::new("deleted again", measured, "gone from the tables", gone.is_some()));
    Ok(rows)
}
