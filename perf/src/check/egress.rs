//! Pods on their way out: the agent on a worker sends a selected pod's packets through the gateway, which gives them the
//! address of the pod's policy. flannel's own rules for masquerading are in place, as on any node.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::enclosure;
use crate::lab::vxlan_device;
use crate::process::{self, Daemon, in_namespace};
use crate::rig::{Rig, wait_until, way};
use crate::topology::{
    CLIENT, FAMILIES, Family, GATEWAY_NODE, POD_TCP_PORT, POD_UDP_PORT, Pod, VNI, Vip, on_link, workers,
};

/// The pod that a policy selects, and one on the same worker that none does.
pub(super) const SELECTED: Pod = Pod { number: 1 };
pub(super) const OTHER: Pod = Pod { number: 2 };
/// What the outside sees of selected pods.
pub(super) const EXTERNAL: Vip = on_link(240);
/// Ports of a second server outside.
pub(super) const SECOND_TCP_PORT: u16 = 8081;
/// The same for datagrams.
const SECOND_UDP_PORT: u16 = 5354;
/// From the agent's start until a packet comes through.
pub(super) const SETTLED_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for one answer, milliseconds.
pub(super) const ANSWER_MS: u64 = 3000;
/// File of the policy and its pod.
pub(super) const MANIFESTS: &str = "egress.yaml";
/// Size of a transfer.
const TRANSFER_BYTES: u64 = 20_000_000;

/// The agent on the worker and the server outside; everything they made goes with them.
pub(super) struct Scene {
    _outside: Vec<Daemon>,
    agent: Option<Daemon>,
    /// The agent's program and its file.
    program: PathBuf,
    config: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        drop(self.agent.take());
        let (program, config) = (self.program.display(), self.config.display());
        let took = shell(&format!(
            "{program} --config {config} remove; nft delete table ip flannel; nft delete table ip6 flannel"
        ));
        if let Err(error) = took {
            eprintln!("lab: what the agent made stays: {error:#}");
        }
    }
}

pub(super) fn shell(script: &str) -> Result<String> {
    let mut command = in_namespace(&SELECTED.node().name(), "sh");
    command.args(["-c", script]);
    process::run(command, "", Duration::from_secs(10))?.success(script)
}

/// flannel's chain for masquerading, as its nftables manager writes it (`pkg/trafficmngr/nftables`).
pub(super) fn masquerade() -> Result<()> {
    let mut text = String::new();
    for (ip, cluster, own, multicast) in [
        ("ip", "10.244.0.0/16", SELECTED.node().pod_cidr(Family::V4), "224.0.0.0/4"),
        ("ip6", "fd00:10:244::/48", SELECTED.node().pod_cidr(Family::V6), "ff00::/8"),
    ] {
        text += &format!(
            "table {ip} flannel {{\nchain postrtg {{ type nat hook postrouting priority srcnat;\n\
             meta mark 0x4000 return\n\
             {ip} saddr {own} {ip} daddr {cluster} return\n{ip} saddr {cluster} {ip} daddr {own} return\n\
             {ip} saddr != {own} {ip} daddr {cluster} return\n\
             {ip} saddr {cluster} {ip} daddr != {multicast} masquerade fully-random\n\
             {ip} saddr != {cluster} {ip} daddr {cluster} masquerade fully-random\n}}\n}}\n"
        );
    }
    let mut nft = in_namespace(&SELECTED.node().name(), "nft");
    nft.args(["-f", "-"]);
    process::run(nft, &text, Duration::from_secs(10))?.success("rules of flannel")?;
    Ok(())
}

/// What the agent on the worker is told.
fn wanted() -> String {
    let end = |family: Family| {
        let (node, name) = (GATEWAY_NODE, if family == Family::V4 { "ipv4" } else { "ipv6" });
        format!(
            "    {name}: {{ overlay: \"{}\", mac: \"{}\", underlay: \"{}\", vni: {VNI} }}\n",
            node.overlay(family),
            node.vtep_mac(family),
            node.underlay(family)
        )
    };
    let nodes: String = workers()
        .flat_map(|node| FAMILIES.map(|family| node.underlay(family)))
        .map(|address| {
            let length = if address.is_ipv4() { 32 } else { 128 };
            format!(", \"{address}/{length}\"")
        })
        .collect();
    format!(
        "devices: {{ ipv4: {}, ipv6: {} }}\n\
         cluster: [10.244.0.0/16, \"fd00:10:244::/48\", 10.96.0.0/12, \"fd00:10:96::/112\"{nodes}]\n\
         gateways:\n  - name: gw-1\n{}{}egress:\n  - name: out\n    pods:\n      - name: shop/{}\n        addresses: [\"{}\", \"{}\"]\n",
        vxlan_device(Family::V4),
        vxlan_device(Family::V6),
        end(Family::V4),
        end(Family::V6),
        SELECTED.name(),
        SELECTED.address(Family::V4),
        SELECTED.address(Family::V6)
    )
}

/// The policy, and the pod it selects.
pub(super) fn manifests() -> String {
    policy(EXTERNAL) + "---\n" + &selected()
}

/// A policy with these addresses.
pub(super) fn policy(external: Vip) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: out }}\nspec:\n  \
         podSelector: {{ matchLabels: {{ leaves: by-gateway }} }}\n  addresses: [\"{}\", \"{}\"]\n  log: true\n",
        external.v4, external.v6,
    )
}

/// The pod that it selects.
pub(super) fn selected() -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {}, namespace: shop, labels: {{ leaves: by-gateway }} }}\n\
         spec: {{ nodeName: {} }}\nstatus: {{ podIPs: [{{ ip: \"{}\" }}, {{ ip: \"{}\" }}] }}\n",
        SELECTED.name(),
        SELECTED.node().name(),
        SELECTED.address(Family::V4),
        SELECTED.address(Family::V6)
    )
}

pub(super) fn begin(rig: &mut Rig) -> Result<Scene> {
    begin_with(rig, &manifests(), EXTERNAL)
}

/// The same with other manifests, by which the pod is seen as `external`.
pub(super) fn begin_with(rig: &mut Rig, manifests: &str, external: Vip) -> Result<Scene> {
    masquerade()?;
    let outside = outside(rig)?;
    let (config, program) = (rig.lab.state_dir.join("node-agent.yaml"), rig.gateway.program("tidegate-node"));
    std::fs::write(&config, wanted())?;
    let mut scene = Scene { _outside: outside, agent: None, program, config };
    rig.manifests.put_text(MANIFESTS, manifests)?;
    let_ping()?;
    let mut agent = in_namespace(&SELECTED.node().name(), &scene.program);
    agent.arg("--config").arg(&scene.config);
    scene.agent = Some(Daemon::start("tidegate-node", agent, &rig.lab.state_dir.join("node-agent.log"))?);
    settle(rig, |family| external.of(family))?;
    Ok(scene)
}

/// Lets the pod send echo requests without privileges, so that pinging needs no raw socket.
pub(super) fn let_ping() -> Result<()> {
    let mut ping = in_namespace(&SELECTED.name(), "sh");
    ping.args(["-c", "echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range"]);
    process::run(ping, "", Duration::from_secs(5))?.success("letting the pod ping")?;
    Ok(())
}

/// Waits until the pod is seen as `expected` says in both families.
pub(super) fn settle(rig: &Rig, expected: impl Fn(Family) -> IpAddr) -> Result<()> {
    for family in FAMILIES {
        let mut last = String::new();
        let settled = wait_until(SETTLED_LIMIT, || {
            let outcome = tcp(rig, SELECTED, SocketAddr::new(server(family)?, POD_TCP_PORT), 1000)?;
            last = told(&outcome);
            Ok(remote(&outcome).is_some_and(|from| from.ip() == expected(family)))
        })?;
        settled.with_context(|| format!("the pod does not get out over {family} with its address: {last}"))?;
    }
    Ok(())
}

/// Two servers outside, at different ports.
pub(super) fn outside(rig: &Rig) -> Result<Vec<Daemon>> {
    let mut outside = Vec::new();
    for (name, tcp, udp) in [("outside", POD_TCP_PORT, POD_UDP_PORT), ("outside-2", SECOND_TCP_PORT, SECOND_UDP_PORT)] {
        let mut server = in_namespace(CLIENT, enclosure::this_program()?);
        server.args(["pod", "--name", name, &format!("--tcp-port={tcp}"), &format!("--udp-port={udp}")]);
        let mut server = Daemon::start(name, server, &rig.lab.state_dir.join(format!("{name}.log")))?;
        server.wait_for_line("pod ready", Duration::from_secs(10))?;
        outside.push(server);
    }
    Ok(outside)
}

/// The servers' address: the one with which the client's kernel answers an external address, since datagrams are answered
/// from there whatever they were sent to.
pub(super) fn server(family: Family) -> Result<IpAddr> {
    let mut command = in_namespace(CLIENT, "ip");
    command.args(["route", "get", &EXTERNAL.of(family).to_string()]);
    let text = process::run(command, "", Duration::from_secs(5))?.success("ip route get")?;
    let source = text.split_whitespace().skip_while(|word| *word != "src").nth(1).context("no source address")?;
    Ok(source.parse()?)
}

pub(super) fn arguments(rig: &Rig, pod: Pod, target: SocketAddr, timeout_ms: u64) -> Vec<String> {
    let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
    way(target, SocketAddr::new(pod.address(family), rig.ports.take(1)), timeout_ms)
}

pub(super) fn tcp(rig: &Rig, pod: Pod, target: SocketAddr, timeout_ms: u64) -> Result<Outcome> {
    rig.client_in(&pod.name(), "who", &arguments(rig, pod, target, timeout_ms))
}

/// Whom the server saw.
pub(super) fn remote(outcome: &Outcome) -> Option<SocketAddr> {
    outcome.who.as_ref().map(|who| who.remote)
}

pub(super) fn told(outcome: &Outcome) -> String {
    match remote(outcome) {
        Some(remote) => format!("seen as {remote}"),
        None => format!("{} {}", outcome.failure, outcome.error),
    }
}

pub(super) fn seen_as(check: String, outcome: &Outcome, expected: IpAddr, clause: &str) -> Row {
    let pass = remote(outcome).is_some_and(|from| from.ip() == expected);
    Row::new(check, told(outcome), format!("seen as {expected} ({clause})"), pass)
}

/// N-110, N-001, N-113: fixed address in both families, one port for all servers, the neighbour pod left alone.
pub(super) fn leaves(rig: &mut Rig) -> Found {
    let _scene = begin(rig)?;
    let mut rows = Vec::new();
    for family in FAMILIES {
        let address = server(family)?;
        let at = |port| SocketAddr::new(address, port);
        let external = EXTERNAL.of(family);
        rows.push(seen_as(
            format!("{family} TCP"),
            &tcp(rig, SELECTED, at(POD_TCP_PORT), ANSWER_MS)?,
            external,
            "N-110",
        ));
        rows.push(seen_as(
            format!("{family} a pod that no policy selects"),
            &tcp(rig, OTHER, at(POD_TCP_PORT), ANSWER_MS)?,
            OTHER.node().underlay(family),
            "N-113",
        ));
        // One socket's port, two servers.
        let from = SocketAddr::new(SELECTED.address(family), rig.ports.take(1));
        let ask = |port| rig.client_in(&SELECTED.name(), "udp", &way(at(port), from, ANSWER_MS));
        let datagrams: [Outcome; 2] = [ask(POD_UDP_PORT)?, ask(SECOND_UDP_PORT)?];
        let seen: Vec<Option<SocketAddr>> = datagrams.iter().map(remote).collect();
        let same = seen[0].is_some_and(|first| first.ip() == external) && seen[0] == seen[1];
        let measured = datagrams.iter().map(told).collect::<Vec<_>>().join(", then ");
        rows.push(Row::new(format!("{family} UDP to two servers"), measured, "the same port (N-001)", same));
        let ping: Outcome = rig.client_in(&SELECTED.name(), "ping", &[format!("--target={}", at(0))])?;
        let measured = if ping.ok { format!("3 of 3 in {} ms", ping.took_ms) } else { told(&ping) };
        rows.push(Row::new(format!("{family} ping"), measured, "3 of 3 answered (N-094)", ping.ok));
        rows.push(transfer(rig, family)?);
        rows.push(recorded(rig, seen[0])?);
    }
    rig.manifests.remove_text(MANIFESTS)?;
    Ok(rows)
}

/// A long transfer arrives whole.
fn transfer(rig: &Rig, family: Family) -> Result<Row> {
    let mut arguments = arguments(rig, SELECTED, SocketAddr::new(server(family)?, POD_TCP_PORT), 20_000);
    arguments.push(format!("--bytes={TRANSFER_BYTES}"));
    let outcome: Outcome = rig.client_in(&SELECTED.name(), "upload", &arguments)?;
    let measured =
        if outcome.ok { format!("{TRANSFER_BYTES} bytes in {} ms", outcome.took_ms) } else { told(&outcome) };
    Ok(Row::new(format!("{family} upload"), measured, "content as sent", outcome.ok))
}

/// N-044: the ledger names the pod behind what a server saw.
fn recorded(rig: &Rig, seen: Option<SocketAddr>) -> Result<Row> {
    let external = seen.context("no datagram was answered")?;
    let ledger = rig.lab.state_dir.join("saved/nat");
    let mut measured = String::new();
    let found = wait_until(Duration::from_secs(3), || {
        let ledger = ledger.display().to_string();
        let answer = rig.gateway.command(&["nat", "who", &external.to_string(), "--ledger", &ledger, "--json"])?;
        measured = if answer.status.success() { answer.stdout } else { answer.stderr };
        Ok(measured.contains(&format!("\"shop/{}\"", SELECTED.name())))
    })?;
    Ok(Row::new(
        format!("tidegate nat who {external}"),
        measured,
        format!("shop/{} (N-044)", SELECTED.name()),
        found.is_some(),
    ))
}

/// N-111: with the gateway gone the pod reaches nobody, and nobody sees it with another address.
pub(super) fn fails_closed(rig: &mut Rig) -> Found {
    let scene = begin(rig)?;
    let mut rows = Vec::new();
    rig.gateway.kill(crate::gateway::Program::Dataplane)?;
    for family in FAMILIES {
        let outcome = tcp(rig, SELECTED, SocketAddr::new(server(family)?, POD_TCP_PORT), 1000)?;
        rows.push(Row::new(format!("{family} without a gateway"), told(&outcome), "no answer (N-111)", !outcome.ok));
        let outcome = tcp(rig, OTHER, SocketAddr::new(server(family)?, POD_TCP_PORT), ANSWER_MS)?;
        rows.push(seen_as(
            format!("{family} meanwhile a pod that no policy selects"),
            &outcome,
            OTHER.node().underlay(family),
            "N-113",
        ));
    }
    rig.gateway.revive()?;
    for family in FAMILIES {
        let mut last = None;
        let back = wait_until(SETTLED_LIMIT, || {
            let outcome = tcp(rig, SELECTED, SocketAddr::new(server(family)?, POD_TCP_PORT), 1000)?;
            let good = remote(&outcome).is_some_and(|from| from.ip() == EXTERNAL.of(family));
            last = Some(outcome);
            Ok(good)
        })?;
        let measured = match (back, &last) {
            (Some(took), _) => format!("after {} ms", took.as_millis()),
            (None, Some(outcome)) => told(outcome),
            (None, None) => "never asked".into(),
        };
        rows.push(Row::new(
            format!("{family} when it is back"),
            measured,
            format!("seen as {}", EXTERNAL.of(family)),
            back.is_some(),
        ));
    }
    drop(scene);
    rig.manifests.remove_text(MANIFESTS)?;
    Ok(rows)
}
