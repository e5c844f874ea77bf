//! Network policies at the gateway: clients that a policy does not allow do not get through, and what changes meanwhile
//! reaches connections that stand.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::rig::{Rig, wait_until, way};
use crate::topology::{
    ECHO_PORT, FAMILIES, Family, POD_TCP_PORT, POD_UDP_PORT, VIP_ECHO, VIP_WEB, WEB_PORT, client_address, pods,
};

/// Files of the pods and of the policy.
const PODS: &str = "pods.yaml";
const POLICY: &str = "networkpolicy.yaml";
/// A client that is allowed, and one that is not.
const FRIEND: u8 = 10;
const STRANGER: u8 = 21;
/// From a file's change until packets follow it; P-031 asks for two seconds.
const APPLIED_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for an answer that should not come, and for one that should, milliseconds.
const SILENCE_MS: u64 = 400;
const ANSWER_MS: u64 = 3000;
/// A download that runs for ten seconds.
const DOWNLOAD_BYTES: u64 = 2_000_000;
const DOWNLOAD_RATE: u64 = 200_000;
/// How often policies change beside it, and for how long.
const FLIP: Duration = Duration::from_millis(100);
const FLIPS: u32 = 80;

/// All pods of the lab, labelled.
fn pod_objects() -> String {
    let pod = |pod: crate::topology::Pod| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {}, namespace: shop, labels: {{ app: web }} }}\n\
             spec: {{ nodeName: {} }}\nstatus: {{ podIPs: [{{ ip: \"{}\" }}, {{ ip: \"{}\" }}] }}\n---\n",
            pod.name(),
            pod.node().name(),
            pod.address(Family::V4),
            pod.address(Family::V6)
        )
    };
    pods().map(pod).collect()
}

fn policy(name: &str, ingress: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
         podSelector: {{ matchLabels: {{ app: web }} }}\n  policyTypes: [Ingress]\n  ingress: {ingress}\n"
    )
}

/// A rule that lets one client of each family reach these ports of pods.
fn from(host: u8, ports: &str) -> String {
    let (v4, v6) = (client_address(Family::V4, host), client_address(Family::V6, host));
    format!(
        "[{{ from: [{{ ipBlock: {{ cidr: \"{v4}/32\" }} }}, {{ ipBlock: {{ cidr: \"{v6}/128\" }} }}], ports: {ports} }}]"
    )
}

fn ask(rig: &Rig, task: &str, target: SocketAddr, host: u8, timeout_ms: u64) -> Result<Outcome> {
    let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
    let from = SocketAddr::new(client_address(family, host), rig.ports.take(1));
    rig.client(task, &way(target, from, timeout_ms))
}

/// Waits until the client `host` gets through, or does not, over TCP and UDP and in both families.
fn applied(rig: &Rig, check: &str, host: u8, through: bool, rows: &mut Vec<Row>) -> Result<()> {
    for family in FAMILIES {
        for (task, target) in [("who", VIP_WEB.at(family, WEB_PORT)), ("udp", VIP_ECHO.at(family, ECHO_PORT))] {
            let mut last = None;
            let timeout_ms = if through { ANSWER_MS } else { SILENCE_MS };
            let took = wait_until(APPLIED_LIMIT, || {
                let outcome = ask(rig, task, target, host, timeout_ms)?;
                let expected = outcome.ok == through && (through || outcome.failure == "timeout");
                last = Some(outcome);
                Ok(expected)
            })?;
            let measured = match (took, last) {
                (Some(took), _) => format!("after {} ms", took.as_millis()),
                (None, Some(outcome)) if outcome.ok => "answered".into(),
                (None, Some(outcome)) => format!("{} {}", outcome.failure, outcome.error),
                (None, None) => "never asked".into(),
            };
            let protocol = if task == "who" { "TCP" } else { "UDP" };
            let expected = if through { "answered" } else { "silence (P-040)" };
            rows.push(Row::new(format!("{check} {family} {protocol}"), measured, expected, took.is_some()));
        }
    }
    Ok(())
}

/// P-003, P-004, P-021, P-025, P-031, P-035, P-040: whom a NetworkPolicy lets reach pods through VIPs, live.
pub(super) fn ingress(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    rig.manifests.put_text(PODS, &pod_objects())?;
    applied(rig, "no policy:", STRANGER, true, &mut rows)?;

    // A connection that stands is asked again.
    let mut running = Vec::new();
    for family in FAMILIES {
        running.push((family, rig.start_download(VIP_WEB.at(family, WEB_PORT), DOWNLOAD_BYTES, DOWNLOAD_RATE)?.0));
    }
    rig.manifests.put_text(POLICY, &policy("web", "[]"))?;
    let denied = Instant::now();
    applied(rig, "default deny:", FRIEND, false, &mut rows)?;
    for (family, download) in running {
        let outcome = download.outcome()?;
        let measured = match outcome.ok {
            true => "completed".into(),
            false => format!("{} after {} ms, {} bytes", outcome.failure, denied.elapsed().as_millis(), outcome.bytes),
        };
        rows.push(Row::new(format!("{family} download that ran"), measured, "stalls (P-031)", !outcome.ok));
    }

    // Ports are the pods' own.
    let own = format!("[{{ port: {POD_TCP_PORT} }}, {{ protocol: UDP, port: {POD_UDP_PORT} }}]");
    rig.manifests.put_text(POLICY, &policy("web", &from(FRIEND, &own)))?;
    applied(rig, "a client by its address:", FRIEND, true, &mut rows)?;
    applied(rig, "any other:", STRANGER, false, &mut rows)?;
    let services = format!("[{{ port: {WEB_PORT} }}, {{ protocol: UDP, port: {ECHO_PORT} }}]");
    rig.manifests.put_text(POLICY, &policy("web", &from(FRIEND, &services)))?;
    applied(rig, "by the Service's ports:", FRIEND, false, &mut rows)?;

    rig.manifests.put_text(POLICY, &policy("web", &from(FRIEND, &own)))?;
    applied(rig, "by the pods' ports again:", FRIEND, true, &mut rows)?;
    rows.extend(flipped(rig, &own)?);
    rig.manifests.remove_text(POLICY)?;
    rig.manifests.remove_text(PODS)?;
    applied(rig, "policy gone:", STRANGER, true, &mut rows)?;
    Ok(rows)
}

/// P-035: two policies that both allow a download take turns, and it loses nothing.
fn flipped(rig: &Rig, ports: &str) -> Found {
    let mut running = Vec::new();
    for family in FAMILIES {
        running.push((family, rig.start_download(VIP_WEB.at(family, WEB_PORT), DOWNLOAD_BYTES, DOWNLOAD_RATE)?.0));
    }
    for flip in 0..FLIPS {
        let ingress = if flip % 2 == 0 { "[{}]".into() } else { from(FRIEND, ports) };
        rig.manifests.put_text(POLICY, &policy("web", &ingress))?;
        std::thread::sleep(FLIP);
    }
    let mut rows = Vec::new();
    for (family, download) in running {
        let outcome = download.outcome()?;
        let measured = format!("{} bytes in {} ms {}", outcome.bytes, outcome.took_ms, outcome.failure);
        let check = format!("{family} download while policies flip {FLIPS} times");
        rows.push(Row::new(check, measured, "completes (P-035)", outcome.ok));
    }
    Ok(rows)
}
