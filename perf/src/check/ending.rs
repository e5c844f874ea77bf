//! Checks of pods that end: one that is replaced on its own node, and a whole Service that terminates.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;

use crate::check::nodes::{PROVEN_LIMIT, await_nodes, forget, keep, nodes_of, pod, tell};
use crate::check::serving::told;
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::manifest::LabService;
use crate::rig::{Rig, wait_until, way};
use crate::topology::{ECHO_PORT, FAMILIES, Family, VIP_KEEP, WEB_PORT};

/// How long the next pod may take to answer a client that keeps its source port.
const FOLLOW_LIMIT: Duration = Duration::from_secs(15);
/// How long everybody may take to hear that pods terminate.
const HEARD: Duration = Duration::from_millis(500);
/// Connections made to pods that terminate, per family and mode.
const CONNECTIONS: u32 = 300;

/// The Service on these pods, in this mode.
fn keep_in(mode: &'static str, pods: &[u8]) -> LabService {
    LabService { mode: Some(mode), ..keep(pods) }
}

/// Tells everybody and waits until new connections go where they should.
fn settle(rig: &mut Rig, service: &LabService, mode: &str) -> Result<()> {
    tell(rig, service)?;
    let all = service.pods.iter().chain(&service.terminating);
    let nodes = if mode == "node-dsr" {
        nodes_of(&LabService { pods: all.copied().collect(), ..service.clone() })
    } else {
        BTreeSet::new()
    };
    await_nodes(rig, &FAMILIES, &nodes, PROVEN_LIMIT)?;
    wait_until(PROVEN_LIMIT, || Ok(rig.who(VIP_KEEP.at(Family::V6, WEB_PORT), 500)?.ok))?;
    Ok(())
}

/// T-023 (same node): the gateway goes on sending to the node, and the node finds the new pod.
pub(super) fn cycled(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for mode in ["node-dsr", "fullnat"] {
        let sources = FAMILIES.map(|family| (family, way(VIP_KEEP.at(family, ECHO_PORT), rig.source(family), 300)));
        for number in [3, 4, 3] {
            settle(rig, &keep_in(mode, &[number]), mode)?;
            for (family, datagram) in &sources {
                let mut answer = Outcome::default();
                let found = wait_until(FOLLOW_LIMIT, || {
                    answer = rig.client("udp", datagram)?;
                    Ok(answer.ok && answer.pod == pod(number).name())
                })?;
                rows.push(Row::new(
                    format!("{mode} {family} UDP, same source port, on p{number}"),
                    told(&answer),
                    "answered from there (T-023)",
                    found.is_some(),
                ));
            }
        }
        forget(rig, &keep_in(mode, &[3]))?;
    }
    Ok(rows)
}

/// T-029, S-043, S-048: every pod is told to end and takes its time.
pub(super) fn terminating(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for mode in ["node-dsr", "fullnat"] {
        let ready = keep_in(mode, &[1, 3]);
        settle(rig, &ready, mode)?;
        let ending = LabService { pods: Vec::new(), terminating: ready.pods.clone(), ..ready.clone() };
        settle(rig, &ending, mode)?;
        // Nothing that could be waited for changes.
        std::thread::sleep(HEARD);
        for family in FAMILIES {
            let spread = rig.spread(VIP_KEEP.at(family, WEB_PORT), CONNECTIONS)?;
            let expected: BTreeSet<String> = ending.terminating.iter().map(|pod| pod.name()).collect();
            let pass = spread.ok == CONNECTIONS && spread.failed == 0 && spread.by_pod.keys().eq(expected.iter());
            rows.push(Row::new(
                format!("{mode} {family}, all pods terminating"),
                format!(
                    "{} answered, {} failed {:?}, {:?}",
                    spread.ok,
                    spread.failed,
                    spread.errors.first(),
                    spread.by_pod
                ),
                format!("{CONNECTIONS} answered (T-029)"),
                pass,
            ));
            let answer: Outcome = rig.client("udp", &rig.way(VIP_KEEP.at(family, ECHO_PORT), 1000))?;
            rows.push(Row::new(
                format!("{mode} {family} UDP, all pods terminating"),
                told(&answer),
                "answered (T-029)",
                answer.ok && expected.contains(&answer.pod),
            ));
        }
        forget(rig, &ending)?;
    }
    Ok(rows)
}
