//! Network policies at the gateway: clients that a policy does not allow do not get through, and what changes meanwhile
//! reaches connections that stand.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::manifest::{LabService, SIGNAL};
use crate::rig::{Rig, wait_until, way};
use crate::topology::{
    ECHO_PORT, FAMILIES, Family, POD_SCTP_PORT, POD_TCP_PORT, POD_UDP_PORT, SIGNAL_PORT, VIP_ECHO, VIP_SIGNAL, VIP_WEB,
    WEB_PORT, client_address, pods,
};

/// Pods that leave the cluster.
mod egress;
/// Streams of numbered messages beside policies that change.
mod streams;

pub(super) use egress::egress;
pub(super) use streams::{flips, is_stopped, told};

/// Files of the pods and of the policy.
const PODS: &str = "pods.yaml";
const POLICY: &str = "networkpolicy.yaml";
/// Labels of the pods.
const WEB: &str = "app: web";
/// A client that is allowed, and one that is not.
const FRIEND: u8 = 10;
const STRANGER: u8 = 21;
/// From a file's change until packets follow it; P-031 asks for two seconds.
const APPLIED_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for an answer that should not come, and for one that should, milliseconds.
const SILENCE_MS: u64 = 400;
const ANSWER_MS: u64 = 3000;

/// A Service over SCTP, beside those over TCP and UDP that every lab has.
fn signal() -> LabService {
    LabService::new("signal", VIP_SIGNAL, &[SIGNAL])
}

/// All pods of the lab, labelled, with names for their ports.
pub(super) fn pod_objects(labels: &str) -> String {
    let pod = |pod: crate::topology::Pod| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {}, namespace: shop, labels: {{ {labels} }} }}\n\
             spec: {{ nodeName: {}, containers: [{{ name: c, ports: [{{ name: http, containerPort: {POD_TCP_PORT} }}, \
             {{ name: dns, containerPort: {POD_UDP_PORT}, protocol: UDP }}, \
             {{ name: diameter, containerPort: {POD_SCTP_PORT}, protocol: SCTP }}] }}] }}\nstatus: {{ podIPs: [{{ ip: \"{}\" }}, {{ ip: \"{}\" }}] }}\n---\n",
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

/// Waits until the client `host` gets through, or does not, over TCP, UDP and SCTP and in both families.
fn applied(rig: &Rig, check: &str, host: u8, through: bool, rows: &mut Vec<Row>) -> Result<()> {
    for family in FAMILIES {
        let mut tasks = [
            ("TCP", "who", VIP_WEB.at(family, WEB_PORT)),
            ("UDP", "udp", VIP_ECHO.at(family, ECHO_PORT)),
            ("SCTP", "associate", VIP_SIGNAL.at(family, SIGNAL_PORT)),
        ];
        if !through {
            // TCP last: a connection that was let in, and is then refused, repeats itself at both ends for a long time.
            tasks.reverse();
        }
        for (protocol, task, target) in tasks {
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
            let expected = if through { "answered" } else { "silence (P-040)" };
            rows.push(Row::new(format!("{check} {family} {protocol}"), measured, expected, took.is_some()));
        }
    }
    Ok(())
}

/// P-003, P-004, P-021, P-025, P-031, P-035, P-040: whom a NetworkPolicy lets reach pods through VIPs, live.
pub(super) fn ingress(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    rig.manifests.put(&signal())?;
    rig.manifests.put_text(PODS, &pod_objects(WEB))?;
    applied(rig, "no policy:", STRANGER, true, &mut rows)?;

    // What stands is asked again.
    rows.extend(streams::stopped(rig)?);
    applied(rig, "default deny:", FRIEND, false, &mut rows)?;

    // Ports are the pods' own.
    let ports = |tcp: u16, udp: u16, sctp: u16| {
        format!("[{{ port: {tcp} }}, {{ protocol: UDP, port: {udp} }}, {{ protocol: SCTP, port: {sctp} }}]")
    };
    let own = ports(POD_TCP_PORT, POD_UDP_PORT, POD_SCTP_PORT);
    rig.manifests.put_text(POLICY, &policy("web", &from(FRIEND, &own)))?;
    applied(rig, "a client by its address:", FRIEND, true, &mut rows)?;
    applied(rig, "any other:", STRANGER, false, &mut rows)?;
    let services = ports(WEB_PORT, ECHO_PORT, SIGNAL_PORT);
    rig.manifests.put_text(POLICY, &policy("web", &from(FRIEND, &services)))?;
    applied(rig, "by the Service's ports:", FRIEND, false, &mut rows)?;

    rig.manifests.put_text(POLICY, &policy("web", &from(FRIEND, &own)))?;
    applied(rig, "by the pods' ports again:", FRIEND, true, &mut rows)?;
    selected(rig, &own, &mut rows)?;
    rig.manifests.remove_text(POLICY)?;
    rig.manifests.remove_text(PODS)?;
    applied(rig, "policy gone:", STRANGER, true, &mut rows)?;
    rig.manifests.delete(&signal())?;
    Ok(rows)
}

/// P-010, P-020, P-023, P-024: exceptions, names, ranges, labels, and the other direction.
fn selected(rig: &Rig, own: &str, rows: &mut Vec<Row>) -> Result<()> {
    let put = |ingress: &str| rig.manifests.put_text(POLICY, &policy("web", ingress));
    let (v4, v6) = (client_address(Family::V4, STRANGER), client_address(Family::V6, STRANGER));
    put(&format!(
        "[{{ from: [{{ ipBlock: {{ cidr: 192.0.2.0/24, except: [\"{v4}/32\"] }} }}, \
         {{ ipBlock: {{ cidr: \"2001:db8:1::/64\", except: [\"{v6}/128\"] }} }}], ports: {own} }}]"
    ))?;
    applied(rig, "a block without one:", FRIEND, true, rows)?;
    applied(rig, "the one:", STRANGER, false, rows)?;
    for (check, ports, through) in [
        (
            "ports by name:",
            "[{ port: http }, { protocol: UDP, port: dns }, { protocol: SCTP, port: diameter }]".to_owned(),
            true,
        ),
        (
            "names of other protocols:",
            "[{ protocol: UDP, port: http }, { protocol: SCTP, port: dns }, { port: diameter }]".to_owned(),
            false,
        ),
        ("a range:", range(POD_TCP_PORT, POD_UDP_PORT, POD_SCTP_PORT), true),
        ("a range that ends before:", range(POD_TCP_PORT - 1, POD_UDP_PORT - 1, POD_SCTP_PORT - 1), false),
    ] {
        put(&from(FRIEND, &ports))?;
        applied(rig, check, FRIEND, through, rows)?;
    }
    rig.manifests.put_text(PODS, &pod_objects("app: api"))?;
    applied(rig, "pods with another label:", STRANGER, true, rows)?;
    rig.manifests.put_text(PODS, &pod_objects(WEB))?;
    applied(rig, "the label again:", STRANGER, false, rows)?;
    let none = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: web, namespace: shop }\n\
                spec: { podSelector: {}, policyTypes: [Egress] }\n";
    rig.manifests.put_text(POLICY, none)?;
    applied(rig, "no egress, answers (T-062):", STRANGER, true, rows)
}

/// Ports up to these.
fn range(tcp: u16, udp: u16, sctp: u16) -> String {
    format!(
        "[{{ port: 8000, endPort: {tcp} }}, {{ protocol: UDP, port: 5000, endPort: {udp} }}, \
         {{ protocol: SCTP, port: 3000, endPort: {sctp} }}]"
    )
}
