//! The edges of egress, with kernels on both sides: how far a pod sees, what becomes of packets that are too large or come in
//! pieces, two ends that connect to each other, and what a STUN client says of the gateway.
//!
//! Beyond the clients' namespace there is one more network, over a link that carries 1,280 bytes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};

use super::egress::{
    ANSWER_MS, EXTERNAL, MANIFESTS, SELECTED, arguments, begin_with, manifests, policy, remote, seen_as, selected,
    server, tcp, told,
};
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::enclosure;
use crate::process::{self, Daemon, in_namespace};
use crate::rig::{Rig, wait_until, way};
use crate::stun::Behaviour;
use crate::topology::{
    CLIENT, FAMILIES, Family, GATEWAY, GATEWAY_WAN_V4, GATEWAY_WAN_V6, POD_TCP_PORT, POD_UDP_PORT, Vip, client_address,
};

/// Addresses of a policy that lie on no link of the gateway.
const ROUTED: Vip = Vip::routed(240);
/// Namespace beyond the narrow link.
const BEYOND: &str = "beyond";
/// What the narrow link carries: the least that IPv6 allows.
const NARROW_MTU: u32 = 1280;
/// Size of an upload over it.
const UPLOAD_BYTES: u64 = 4_000_000;
/// Size of datagrams and echoes that come in pieces.
const LONG_BYTES: u16 = 8_000;
/// Ports of the STUN server.
const STUN_PORTS: [u16; 2] = [3478, 3479];
/// Port of the outer end of a connection without a server.
const MEETING_PORT: u16 = 7000;
/// Hosts whose addresses the STUN server and that end have; see `CLIENT_HOSTS`.
const STUN_HOSTS: [u8; 2] = [21, 22];
const MEETING_HOST: u8 = 23;

/// The server beyond; its namespace goes with it.
struct Beyond {
    _server: Daemon,
}

fn sh(namespace: &str, script: &str) -> Result<String> {
    let mut command = in_namespace(namespace, "sh");
    command.args(["-e", "-c", script]);
    process::run(command, "", Duration::from_secs(10))?.success(script)
}

fn beyond(family: Family) -> IpAddr {
    family.pick([198, 51, 102, 2].into(), "2001:db8:66::2".parse().unwrap_or(std::net::Ipv6Addr::UNSPECIFIED))
}

impl Beyond {
    fn begin(rig: &Rig) -> Result<Beyond> {
        let [v4, v6] = FAMILIES.map(|family| client_address(family, 10));
        let mut add = std::process::Command::new("ip");
        add.args(["netns", "add", BEYOND]);
        process::run(add, "", Duration::from_secs(5))?.success("adding a namespace")?;
        sh(
            CLIENT,
            &format!(
                "ip link add narrow mtu {NARROW_MTU} type veth peer name eth0 netns {BEYOND} mtu 1500
                 ethtool -K narrow tx off gro off >/dev/null; ethtool -K eth0 gro off >/dev/null
                 echo 0 > /proc/sys/net/ipv6/conf/narrow/accept_dad
                 ip link set narrow up; ip addr add 198.51.102.1/24 dev narrow
                 ip addr add 2001:db8:66::1/64 dev narrow nodad
                 echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
            ),
        )?;
        sh(
            BEYOND,
            "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set lo up; ethtool -K eth0 tx off >/dev/null
             ip link set eth0 up; ip addr add 198.51.102.2/24 dev eth0; ip addr add 2001:db8:66::2/64 dev eth0 nodad
             ip route add default via 198.51.102.1; ip route add ::/0 via 2001:db8:66::1",
        )?;
        sh(
            GATEWAY,
            &format!("ip route add 198.51.102.0/24 via {v4} dev wan0; ip route add 2001:db8:66::/64 via {v6} dev wan0"),
        )?;
        let mut pod = in_namespace(BEYOND, enclosure::this_program()?);
        pod.args(["pod", "--name", "beyond"]);
        let mut server = Daemon::start("beyond", pod, &rig.lab.state_dir.join("beyond.log"))?;
        server.wait_for_line("pod ready", Duration::from_secs(10))?;
        Ok(Beyond { _server: server })
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        let ends = [
            sh(GATEWAY, "ip route del 198.51.102.0/24 dev wan0; ip route del 2001:db8:66::/64 dev wan0"),
            sh(
                CLIENT,
                "ip link del narrow; echo 0 > /proc/sys/net/ipv4/ip_forward
                 echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
            ),
        ];
        let mut remove = std::process::Command::new("ip");
        remove.args(["netns", "del", BEYOND]);
        let removed = process::run(remove, "", Duration::from_secs(5)).and_then(|done| done.success("namespace"));
        for error in ends.into_iter().chain([removed]).filter_map(Result::err) {
            eprintln!("lab: what lies beyond stays: {error:#}");
        }
    }
}

/// All of them, with connections mapped by endpoint: who connects to each other has to know a port before.
pub(super) fn all(rig: &mut Rig) -> Found {
    let by_endpoint =
        manifests().replacen("  log: true\n", "  log: true\n  tcp: { mapping: EndpointIndependent }\n", 1);
    let scene = begin_with(rig, &by_endpoint, EXTERNAL)?;
    let beyond = Beyond::begin(rig)?;
    let mut rows = Vec::new();
    for family in FAMILIES {
        rows.push(reaches(rig, family, EXTERNAL)?);
        rows.push(traced(rig, family)?);
        rows.push(uploaded(rig, family)?);
        rows.push(learnt(family)?);
        rows.extend(long(rig, family)?);
        rows.push(met(rig, family)?);
        rows.push(stunned(rig, family)?);
    }
    drop(beyond);
    drop(scene);
    rig.manifests.remove_text(MANIFESTS)?;
    Ok(rows)
}

/// An address of the policy that lies on no link of the gateway: a router sends what comes to it to the gateway, as a next hop.
pub(super) fn routed(rig: &mut Rig) -> Found {
    let scene = begin_with(rig, &(policy(ROUTED) + "---\n" + &selected()), ROUTED)?;
    let far = Beyond::begin(rig)?;
    let mut rows = Vec::new();
    for family in FAMILIES {
        rows.push(way_back(family)?);
        rows.push(reaches(rig, family, ROUTED)?);
        let target = SocketAddr::new(beyond(family), POD_UDP_PORT);
        let datagram: Outcome = rig.client_in(&SELECTED.name(), "udp", &arguments(rig, SELECTED, target, ANSWER_MS))?;
        rows.push(seen_as(format!("{family} UDP"), &datagram, ROUTED.of(family), "N-110"));
        let ping: Outcome = rig.client_in(&SELECTED.name(), "ping", &[format!("--target={target}")])?;
        let measured = if ping.ok { "answered".into() } else { told(&ping) };
        rows.push(Row::new(format!("{family} ping"), measured, "answered (N-094)", ping.ok));
        rows.push(uploaded(rig, family)?);
        rows.push(asked_for(family)?);
    }
    drop(far);
    drop(scene);
    rig.manifests.remove_text(MANIFESTS)?;
    Ok(rows)
}

/// The router sends the address to the gateway's own, and has no link that it is on.
fn way_back(family: Family) -> Result<Row> {
    let way = sh(CLIENT, &format!("ip route get {}", ROUTED.of(family)))?;
    let gateway = family.pick(GATEWAY_WAN_V4, GATEWAY_WAN_V6);
    let expected = format!("via {gateway} ");
    let measured = way.lines().next().unwrap_or_default().trim().to_owned();
    let pass = way.contains(&expected);
    Ok(Row::new(format!("{family} way of the router back"), measured, expected, pass))
}

/// Nobody asks a link for such an address, and the gateway tells none of it.
fn asked_for(family: Family) -> Result<Row> {
    let neighbours = sh(CLIENT, &format!("ip neigh show to {}", ROUTED.of(family)))?;
    let measured = if neighbours.trim().is_empty() { "none".to_owned() } else { neighbours.trim().to_owned() };
    let pass = measured == "none";
    Ok(Row::new(format!("{family} neighbour of that address"), measured, "none (M-020)", pass))
}

/// The gateway has heard of the way there.
fn reaches(rig: &Rig, family: Family, external: Vip) -> Result<Row> {
    let target = SocketAddr::new(beyond(family), POD_TCP_PORT);
    let mut last = String::new();
    let took = wait_until(Duration::from_secs(10), || {
        let outcome = tcp(rig, SELECTED, target, 1000)?;
        last = told(&outcome);
        Ok(remote(&outcome).is_some_and(|from| from.ip() == external.of(family)))
    })?;
    Ok(Row::new(format!("{family} beyond"), last, format!("seen as {}", external.of(family)), took.is_some()))
}

/// T-085, T-186: every router on the way tells the pod, the gateway too, and each by its own address.
fn traced(_rig: &Rig, family: Family) -> Result<Row> {
    let text = sh(
        &SELECTED.name(),
        &format!("traceroute {} -n -q 1 -w 2 -m 6 {}", if family == Family::V4 { "-4" } else { "-6" }, beyond(family)),
    )?;
    let hops: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    // Worker, gateway, the clients' namespace, and who was asked.
    let router = client_address(family, 10).to_string();
    let end = beyond(family).to_string();
    let routers = ["192.0.2.", "2001:db8:1::", "198.51.102.1", "2001:db8:66::1"];
    let seen = |n: usize| hops.get(n).copied().unwrap_or("*");
    let pass = hops.len() == 4
        && seen(0) != "*"
        && seen(1) != "*"
        && (seen(2) == router || routers.iter().any(|prefix| seen(2).starts_with(prefix)))
        && seen(3) == end;
    Ok(Row::new(format!("{family} traceroute"), hops.join(" "), "four hops that tell who they are (T-085)", pass))
}

/// V-051, T-186: an upload of large segments goes on when a router outside tells how much the path carries.
fn uploaded(rig: &Rig, family: Family) -> Result<Row> {
    let mut arguments = arguments(rig, SELECTED, SocketAddr::new(beyond(family), POD_TCP_PORT), 20_000);
    arguments.push(format!("--bytes={UPLOAD_BYTES}"));
    let outcome: Outcome = rig.client_in(&SELECTED.name(), "upload", &arguments)?;
    let measured = if outcome.ok { format!("{UPLOAD_BYTES} bytes in {} ms", outcome.took_ms) } else { told(&outcome) };
    Ok(Row::new(format!("{family} upload over {NARROW_MTU} bytes"), measured, "content as sent (V-051)", outcome.ok))
}

/// The pod's kernel believed the error: it is about a packet of its own.
fn learnt(family: Family) -> Result<Row> {
    let text = sh(&SELECTED.name(), &format!("ip route get {}", beyond(family)))?;
    let learnt = text.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap_or("nothing").to_owned();
    let pass = learnt == NARROW_MTU.to_string();
    Ok(Row::new(format!("{family} path MTU that the pod learnt"), learnt, NARROW_MTU.to_string(), pass))
}

/// N-060, T-081: datagrams and echoes in pieces, both ways.
fn long(rig: &Rig, family: Family) -> Result<Vec<Row>> {
    let address = server(family)?;
    let mut datagram = arguments(rig, SELECTED, SocketAddr::new(address, POD_UDP_PORT), ANSWER_MS);
    datagram.push(format!("--bytes={LONG_BYTES}"));
    let datagram: Outcome = rig.client_in(&SELECTED.name(), "echo", &datagram)?;
    let ping = |count: u16| {
        let target = format!("--target={}", SocketAddr::new(address, 0));
        rig.client_in(&SELECTED.name(), "ping", &[target, format!("--count={count}"), format!("--bytes={LONG_BYTES}")])
    };
    // Over IPv6 the answer's first pieces may be what tells who answers how large they may be.
    let mut echo: Outcome = ping(1)?;
    if !echo.ok {
        echo = ping(3)?;
    }
    let row = |what: &str, outcome: &Outcome| {
        let measured = if outcome.ok { "came back".into() } else { told(outcome) };
        Row::new(format!("{family} {what} of {LONG_BYTES} bytes"), measured, "comes back whole (N-060)", outcome.ok)
    };
    Ok(vec![row("datagram", &datagram), row("ping", &echo)])
}

/// N-021, RFC 5382 REQ-2a: both ends connect. The outside begins; nobody lets it in before the pod has asked (N-023).
fn met(rig: &Rig, family: Family) -> Result<Row> {
    let from = SocketAddr::new(SELECTED.address(family), rig.ports.take(1));
    let asked: Outcome =
        rig.client_in(&SELECTED.name(), "who", &way(SocketAddr::new(server(family)?, POD_TCP_PORT), from, ANSWER_MS))?;
    let external = remote(&asked).context("the pod's port cannot be learnt")?;
    let outside = SocketAddr::new(client_address(family, MEETING_HOST), MEETING_PORT);
    let mut outer = rig.start_client_in(CLIENT, "meet", &way(external, outside, 10_000))?;
    outer.line()?;
    std::thread::sleep(Duration::from_millis(300));
    let mut inner = rig.start_client_in(&SELECTED.name(), "meet", &way(outside, from, 10_000))?;
    inner.line()?;
    let (inner, outer): (Outcome, Outcome) = (inner.outcome()?, outer.outcome()?);
    let measured = match (inner.ok, outer.ok) {
        (true, true) => format!("connected after {} ms", outer.took_ms),
        _ => format!("pod: {}; outside: {}", told(&inner), told(&outer)),
    };
    Ok(Row::new(format!("{family} both connect"), measured, "one connection (N-021)", inner.ok && outer.ok))
}

/// T-098, N-001, N-009: what somebody outside says of the gateway.
fn stunned(rig: &Rig, family: Family) -> Result<Row> {
    let addresses = STUN_HOSTS.map(|host| client_address(family, host));
    let mut program = in_namespace(CLIENT, enclosure::this_program()?);
    program.arg("stun-server").arg("--addresses").args(addresses.map(|address| address.to_string()));
    program.arg("--ports").args(STUN_PORTS.map(|port| port.to_string()));
    let log = rig.lab.state_dir.join(format!("stun-{family}.log"));
    let mut server = Daemon::start("stun", program, &log)?;
    server.wait_for_line("stun ready", Duration::from_secs(5))?;
    let target = SocketAddr::new(addresses[0], STUN_PORTS[0]);
    let from = SocketAddr::new(SELECTED.address(family), rig.ports.take(2));
    let found: Behaviour =
        rig.client_in(&SELECTED.name(), "stun", &[format!("--target={target}"), format!("--from={from}")])?;
    let measured = format!("mapping {}, filtering {}, seen as {}", found.mapping, found.filtering, found.seen_as);
    let pass = (found.mapping.as_str(), found.filtering.as_str()) == ("endpoint-independent", "address-dependent")
        && found.seen_as.ip() == EXTERNAL.of(family);
    Ok(Row::new(format!("{family} STUN"), measured, "endpoint-independent, address-dependent (T-098)", pass))
}
