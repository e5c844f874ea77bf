//! Static NAT, from end to end: an address outside that is one pod's own, and single ports that lead to a pod. The pod is behind
//! VXLAN on a worker that masquerades as flannel does; the agent there sends its packets, and its answers, to the gateway. It
//! learns of the pod from an API of the worker's own, by StaticNats alone: no policy selects the pod, except in the end.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tidegate_api::show::{FlowFilter, Show, Shown};

use super::carrier::{Scene, api_of_worker, by_node};
use super::egress::{
    ANSWER_MS, EXTERNAL, MANIFESTS, OTHER, SELECTED, SETTLED_LIMIT, arguments, let_ping, policy, remote, seen_as,
    selected, server, settle, tcp, told,
};
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::rig::{Rig, wait_until, way};
use crate::topology::{FAMILIES, Family, POD_TCP_PORT, POD_UDP_PORT, VNI, Vip, on_link};

/// All of the pod's: 1:1.
const OWN: Vip = on_link(241);
/// Of which two ports lead to the pod.
const DOOR: Vip = on_link(242);
/// Those ports.
const DOOR_TCP_PORT: u16 = 80;
const DOOR_UDP_PORT: u16 = 53;
/// Size of a transfer in either direction.
const TRANSFER_BYTES: u64 = 5_000_000;
/// How long nobody must answer, milliseconds.
const SILENCE_MS: u64 = 700;

/// A StaticNat of each family to the pod, by its name.
fn nats(name: &str, address: Vip, ports: &str) -> String {
    let one = |family: Family| {
        format!(
            "---\napiVersion: tidegate.io/v1alpha1\nkind: StaticNat\nmetadata: {{ name: {} }}\nspec:\n  \
             address: \"{}\"\n  pod: {{ namespace: shop, name: {} }}\n{ports}",
            named(name, family),
            address.of(family),
            SELECTED.name()
        )
    };
    FAMILIES.map(one).concat()
}

fn named(name: &str, family: Family) -> String {
    format!("{name}-{}", if family == Family::V4 { "v4" } else { "v6" })
}

/// 1:1, then forwarded ports, without any policy; then these beside one.
pub(super) fn nat(rig: &mut Rig) -> Found {
    let cluster = api_of_worker(rig)?;
    // The gateway has a directory, the agent its API; nothing else tells it of the pod.
    let tell = |rig: &Rig, manifests: &str| -> Result<()> {
        rig.manifests.put_text(MANIFESTS, manifests)?;
        cluster.apply(manifests)
    };
    tell(rig, &(selected() + &nats("own", OWN, "")))?;
    let scene = Scene::begin(rig, &cluster)?;
    let_ping()?;
    settle(rig, |family| OWN.of(family))?;
    let mut rows = Vec::new();
    for family in FAMILIES {
        rows.extend(goes_out(rig, family)?);
        rows.extend(comes_in(rig, family)?);
    }
    let ports = format!(
        "  ports: [{{ port: {DOOR_TCP_PORT}, targetPort: {POD_TCP_PORT} }}, \
         {{ port: {DOOR_UDP_PORT}, protocol: UDP, targetPort: {POD_UDP_PORT} }}]\n"
    );
    let forwards = selected() + &nats("door", DOOR, &ports);
    tell(rig, &forwards)?;
    for family in FAMILIES {
        cluster.delete("staticnats", "", &named("own", family))?;
    }
    rows.extend(with_ports(rig, "port", by_node, "N-113")?);
    tell(rig, &(policy(EXTERNAL) + "---\n" + &forwards))?;
    rows.extend(with_ports(rig, "port, a policy", |family| EXTERNAL.of(family), "N-110")?);
    for family in FAMILIES {
        rows.extend(comes_back_in(rig, family)?);
    }
    drop(scene);
    rig.manifests.remove_text(MANIFESTS)?;
    let denied = cluster.denied();
    rows.push(Row::new("roles", format!("{denied:?}"), "nothing denied (C-023)", denied.is_empty()));
    Ok(rows)
}

/// Forwarded ports, once the pod's own connections are seen as `own` and the gateway lets somebody in.
fn with_ports(rig: &Rig, what: &str, own: impl Fn(Family) -> IpAddr, clause: &str) -> Found {
    settle(rig, &own)?;
    for family in FAMILIES {
        let opened = wait_until(SETTLED_LIMIT, || Ok(rig.who(DOOR.at(family, DOOR_TCP_PORT), SILENCE_MS)?.ok))?;
        opened.with_context(|| format!("nobody gets in by {}", DOOR.at(family, DOOR_TCP_PORT)))?;
    }
    let mut rows = Vec::new();
    for family in FAMILIES {
        rows.extend(forwarded(rig, family, what, (own(family), clause))?);
    }
    Ok(rows)
}

/// The pod's own connections: with its address, and with its own ports.
fn goes_out(rig: &Rig, family: Family) -> Found {
    let at = |port| Ok::<_, anyhow::Error>(SocketAddr::new(server(family)?, port));
    let mut rows = Vec::new();
    for (what, task, port) in [("TCP", "who", POD_TCP_PORT), ("UDP", "udp", POD_UDP_PORT)] {
        let from = SocketAddr::new(SELECTED.address(family), rig.ports.take(1));
        let outcome: Outcome = rig.client_in(&SELECTED.name(), task, &way(at(port)?, from, ANSWER_MS))?;
        let expected = SocketAddr::new(OWN.of(family), from.port());
        let pass = remote(&outcome) == Some(expected);
        rows.push(Row::new(format!("{family} 1:1 {what} out"), told(&outcome), format!("seen as {expected}"), pass));
    }
    let ping: Outcome = rig.client_in(&SELECTED.name(), "ping", &[format!("--target={}", at(0)?)])?;
    let measured = if ping.ok { "answered".to_owned() } else { told(&ping) };
    rows.push(Row::new(format!("{family} 1:1 ping out"), measured, "answered", ping.ok));
    let mut upload = arguments(rig, SELECTED, at(POD_TCP_PORT)?, 20_000);
    upload.push(format!("--bytes={TRANSFER_BYTES}"));
    rows.push(moved(format!("{family} 1:1 upload"), &rig.client_in(&SELECTED.name(), "upload", &upload)?));
    let outcome = tcp(rig, OTHER, at(POD_TCP_PORT)?, ANSWER_MS)?;
    let node = OTHER.node().underlay(family);
    rows.push(seen_as(format!("{family} a pod without static NAT"), &outcome, node, "N-113"));
    rows.push(explained(rig, family, SocketAddr::new(SELECTED.address(family), 40_000), at(POD_TCP_PORT)?, "own")?);
    Ok(rows)
}

/// Somebody outside: at any port of the pod's own address.
fn comes_in(rig: &Rig, family: Family) -> Found {
    let mut rows = reached(rig, family, "1:1", OWN, (POD_TCP_PORT, POD_UDP_PORT))?;
    let mut download = rig.way(OWN.at(family, POD_TCP_PORT), 20_000);
    download.push(format!("--bytes={TRANSFER_BYTES}"));
    rows.push(moved(format!("{family} 1:1 download"), &rig.client("download", &download)?));
    let closed = rig.who(OWN.at(family, 9), ANSWER_MS)?;
    let pass = closed.failure == "refused";
    rows.push(Row::new(format!("{family} 1:1 closed port of the pod"), told(&closed), "refused, by the pod", pass));
    Ok(rows)
}

/// Two ports lead in, no other does; the pod's own connections are as if none did.
fn forwarded(rig: &Rig, family: Family, what: &str, (own, clause): (IpAddr, &str)) -> Found {
    let mut rows = reached(rig, family, what, DOOR, (DOOR_TCP_PORT, DOOR_UDP_PORT))?;
    let closed = rig.who(DOOR.at(family, POD_TCP_PORT), SILENCE_MS)?;
    rows.push(Row::new(
        format!("{family} {what}: another"),
        told(&closed),
        "no answer (N-023)",
        closed.failure == "timeout",
    ));
    let outcome = tcp(rig, SELECTED, SocketAddr::new(server(family)?, POD_TCP_PORT), ANSWER_MS)?;
    rows.push(seen_as(format!("{family} {what}: the pod's own connection"), &outcome, own, clause));
    let client = rig.source(family);
    rows.push(explained(rig, family, client, DOOR.at(family, DOOR_TCP_PORT), "door")?);
    Ok(rows)
}

/// The pod asks the port that leads to itself: out by its policy's address, and back in by the other one.
fn comes_back_in(rig: &Rig, family: Family) -> Found {
    let door = DOOR.at(family, DOOR_TCP_PORT);
    let outcome = tcp(rig, SELECTED, door, ANSWER_MS)?;
    let mut rows =
        vec![seen_as(format!("{family} the pod by its own port outside"), &outcome, EXTERNAL.of(family), "N-010")];
    let (from, to) = (SocketAddr::new(SELECTED.address(family), 40_000).to_string(), door.to_string());
    let text = rig.gateway.command(&["explain", "tcp", &from, &to])?.success("explain")?;
    let (_, second) = text.split_once("back in").with_context(|| text.clone())?;
    let wanted = [format!("StaticNat {}", named("door", family)), format!("network {VNI}"), "SENT by".to_owned()];
    let missing: Vec<&String> = wanted.iter().filter(|wanted| !second.contains(*wanted)).collect();
    let expected = format!("behind \"back in\": {}", wanted.join(", "));
    let measured = if missing.is_empty() { "all told".to_owned() } else { format!("not {missing:?} in {second}") };
    rows.push(Row::new(format!("{family} explain, both halves"), measured, expected, missing.is_empty()));
    Ok(rows)
}

/// A client reaches the pod by TCP and UDP, is seen as itself, and is answered through the gateway.
fn reached(rig: &Rig, family: Family, what: &str, address: Vip, (tcp, udp): (u16, u16)) -> Found {
    let mut rows = Vec::new();
    for (protocol, task, port) in [("TCP", "who", tcp), ("UDP", "udp", udp)] {
        let from = rig.source(family);
        let outcome: Outcome = rig.client(task, &way(address.at(family, port), from, ANSWER_MS))?;
        let pass = outcome.ok && outcome.pod == SELECTED.name() && remote(&outcome) == Some(from);
        let measured = format!("{} {}", outcome.pod, told(&outcome));
        let expected = format!("{} sees {from}", SELECTED.name());
        rows.push(Row::new(format!("{family} {what} {protocol} in"), measured, expected, pass));
        rows.push(returned(rig, format!("{family} {what} {protocol} answers"), from, address.at(family, port))?);
    }
    Ok(rows)
}

/// The gateway has seen both directions of the flow, as its state tells: the answers came back to it.
fn returned(rig: &Rig, check: String, client: SocketAddr, to: SocketAddr) -> Result<Row> {
    let mut measured = "no such flow".to_owned();
    let found = wait_until(Duration::from_secs(3), || {
        let Shown::Flows(flows) = rig.gateway.show(Show::Flows { limit: 100_000, filter: FlowFilter::default() })?
        else {
            bail!("asked for flows")
        };
        let pair = |(address, port): (IpAddr, u16)| SocketAddr::new(address, port);
        let ours = flows.iter().find(|flow| pair(flow.client) == client && pair(flow.vip) == to);
        measured = ours.map_or(measured.clone(), |flow| flow.state.clone());
        Ok(ours.is_some_and(|flow| !["syn-sent", "unreplied"].contains(&flow.state.as_str())))
    })?;
    Ok(Row::new(check, measured, "seen by the gateway", found.is_some()))
}

/// `tidegate explain` names the object.
fn explained(rig: &Rig, family: Family, from: SocketAddr, to: SocketAddr, name: &str) -> Result<Row> {
    let (from, to) = (from.to_string(), to.to_string());
    let text = rig.gateway.command(&["explain", "tcp", &from, &to])?.success("explain")?;
    let line = text.lines().find(|line| line.starts_with("binding")).context(text.clone())?;
    let expected = format!("StaticNat {}", named(name, family));
    let pass = line.contains(&expected) && text.contains(&format!("network {VNI}"));
    Ok(Row::new(format!("{family} explain"), line, expected, pass))
}

fn moved(check: String, outcome: &Outcome) -> Row {
    let measured = if outcome.ok { format!("{TRANSFER_BYTES} bytes in {} ms", outcome.took_ms) } else { told(outcome) };
    Row::new(check, measured, "content as sent", outcome.ok)
}
