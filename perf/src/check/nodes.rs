//! Checks of `node-dsr`: the worker's own kube-proxy delivers, the pod sees the client, the answer takes another way.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tidegate_api::message::{NodeDelivery, WayState};
use tidegate_api::show::{ServiceRow, Show, Shown};

use crate::check::serving::told;
use crate::check::{Found, Row};
use crate::client::{Outcome, Spread};
use crate::kube_proxy;
use crate::lab::vxlan_device;
use crate::manifest::{ECHO, HTTP, LabService};
use crate::process::{self, in_namespace};
use crate::rig::{Rig, wait_until, way};
use crate::topology::{CLIENT_HOSTS, ECHO_PORT, FAMILIES, Family, Node, Pod, VIP_KEEP, WEB_PORT, client_address};

/// How long a way may take to be proven: kube-proxy's rules are there, so that the first question is answered.
pub(super) const PROVEN_LIMIT: Duration = Duration::from_secs(10);
/// How long a node that stops to deliver may stay: a period of ten seconds, two silences of one, and the machine's own slack.
const FAILED_LIMIT: Duration = Duration::from_secs(30);
/// Connections per pod. Four deviations of a third of three times as many are below a tenth.
pub(super) const PER_POD: u32 = 1200;
/// The share of a pod may differ by so much from even, in percent.
const UNEVEN_PERCENT: u32 = 10;
/// Connections that go on while pods are replaced, per family.
const ROLLING: u32 = 4000;
/// How long a pod that is told to end still serves: longer than it takes everybody to hear of it.
const GRACE: Duration = Duration::from_millis(1500);

pub(super) fn pod(number: u8) -> Pod {
    Pod { number }
}

/// TCP 80 and UDP 53 with `externalTrafficPolicy: Local` on these pods.
pub(super) fn keep(pods: &[u8]) -> LabService {
    let pods = pods.iter().copied().map(pod).collect();
    LabService { local: true, pods, ..LabService::new("keep", VIP_KEEP, &[HTTP, ECHO]) }
}

/// Tells kube-proxy and the gateway, in this order; the other way round the gateway would ask once in vain.
pub(super) fn tell(rig: &mut Rig, service: &LabService) -> Result<()> {
    kube_proxy::program(std::slice::from_ref(service))?;
    rig.manifests.put(service)
}

/// Takes the Service away again.
pub(super) fn forget(rig: &mut Rig, service: &LabService) -> Result<()> {
    rig.manifests.delete(service)?;
    kube_proxy::program(&[])?;
    let gone = wait_until(PROVEN_LIMIT, || Ok(frontends(rig)?.is_empty()))?;
    gone.map(drop).context("the Service is still in the tables")
}

/// The frontends of the Service.
pub(super) fn frontends(rig: &Rig) -> Result<Vec<ServiceRow>> {
    match rig.gateway.show(Show::Services)? {
        Shown::Services(rows) => Ok(rows.into_iter().filter(|row| row.service == "shop/keep").collect()),
        other => bail!("asked for Services, got {other:?}"),
    }
}

/// The nodes that new connections of `family` may go to.
fn proven(rig: &Rig, family: Family) -> Result<BTreeSet<String>> {
    let row = frontends(rig)?.into_iter().find(|row| row.address == VIP_KEEP.of(family) && row.port == WEB_PORT);
    let row = row.filter(|row| row.mode == "node-dsr");
    let nodes = row.map(|row| row.nodes).unwrap_or_default();
    let takes = |node: &NodeDelivery| node.state == WayState::Proven && node.weight > 0;
    Ok(nodes.into_iter().filter(takes).map(|node| node.node).collect())
}

pub(super) fn nodes_of(service: &LabService) -> BTreeSet<String> {
    service.pods.iter().map(|pod| pod.node().name()).collect()
}

/// Waits until new connections go to exactly these nodes; `None`: any family, both.
pub(super) fn await_nodes(
    rig: &Rig,
    families: &[Family],
    nodes: &BTreeSet<String>,
    limit: Duration,
) -> Result<Duration> {
    let mut seen = Vec::new();
    let took = wait_until(limit, || {
        seen = families.iter().map(|family| proven(rig, *family)).collect::<Result<Vec<_>>>()?;
        Ok(seen.iter().all(|seen| seen == nodes))
    })?;
    took.with_context(|| format!("nodes {seen:?} after {} s, not {nodes:?}", limit.as_secs()))
}

/// Whether the pods saw the clients' own addresses, and how evenly they were asked.
pub(super) fn judge(spread: &Spread, service: &LabService, count: u32, family: Family) -> (String, bool) {
    let clients: BTreeSet<IpAddr> = CLIENT_HOSTS.map(|host| client_address(family, host)).collect();
    let pods: BTreeSet<String> = service.pods.iter().map(|pod| pod.name()).collect();
    let even = count / u32::try_from(pods.len()).unwrap_or(1).max(1);
    let is_even = |asked: &u32| asked.abs_diff(even) * 100 <= even * UNEVEN_PERCENT;
    let right = spread.by_pod.keys().eq(pods.iter()) && spread.by_pod.values().all(is_even);
    let strangers = spread.sources.difference(&clients).count();
    let measured = format!(
        "{} answered, {} failed {:?}, {:?}, {} sources, {strangers} strangers",
        spread.ok,
        spread.failed,
        spread.errors.first(),
        spread.by_pod,
        spread.sources.len()
    );
    (measured, right && spread.failed == 0 && spread.ok == count && strangers == 0 && spread.sources == clients)
}

/// S-056, S-050, S-057: with 1, 2 and 3 pods, and with two of three pods on one node.
pub(super) fn kept(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    let sets: [&[u8]; 4] = [&[1], &[1, 3], &[1, 3, 5], &[1, 2, 3]];
    for pods in sets {
        let service = keep(pods);
        tell(rig, &service)?;
        let took = await_nodes(rig, &FAMILIES, &nodes_of(&service), PROVEN_LIMIT)?;
        let count = PER_POD * u32::try_from(pods.len())?;
        for family in FAMILIES {
            let spread = rig.spread(VIP_KEEP.at(family, WEB_PORT), count)?;
            let (measured, pass) = judge(&spread, &service, count, family);
            let name = format!("{family} pods {pods:?}");
            rows.push(Row::new(
                name,
                measured,
                format!("{count}, even ±{UNEVEN_PERCENT} %, clients seen (S-056)"),
                pass,
            ));
            let answer: Outcome = rig.client("udp", &rig.way(VIP_KEEP.at(family, ECHO_PORT), 1000))?;
            let saw = answer.who.as_ref().map(|who| who.remote.ip());
            let pass = saw == Some(client_address(family, *CLIENT_HOSTS.start()));
            rows.push(Row::new(format!("{family} UDP pods {pods:?}"), told(&answer), "client seen (S-056)", pass));
        }
        let measured = format!("{} ms", took.as_millis());
        rows.push(Row::new(format!("proven, pods {pods:?}"), measured, "< 2 s", took < Duration::from_secs(2)));
    }
    rows.push(followed_another_way(rig)?);
    forget(rig, &keep(&[1]))?;
    Ok(rows)
}

/// The gateway saw packets to nodes and no answer: usage of the node rows.
fn followed_another_way(rig: &Rig) -> Result<Row> {
    let rows = rig.backends("shop/keep")?;
    let nodes: Vec<_> = rows.iter().filter(|row| row.backend_port == 0 && row.new_flows > 0).collect();
    let names: BTreeSet<&str> = nodes.iter().map(|row| row.node.as_str()).collect();
    let pods = rows.iter().filter(|row| row.backend_port != 0).map(|row| row.new_flows).sum::<u64>();
    let measured = format!("flows to nodes {names:?}, {pods} to pods");
    Ok(Row::new("`show backends`", measured, "flows counted for nodes, none for pods", names.len() >= 2 && pods == 0))
}

fn set_reverse_path_filter(worker: Node, value: u8) -> Result<()> {
    let mut shell = in_namespace(&worker.name(), "sh");
    let device = vxlan_device(Family::V4);
    shell.args(["-c", &format!("echo {value} > /proc/sys/net/ipv4/conf/{device}/rp_filter")]);
    process::run(shell, "", Duration::from_secs(5))?.success("setting rp_filter")?;
    Ok(())
}

/// The reason that stands beside a node of the Service.
fn reason(rig: &Rig, family: Family, node: &str) -> Result<String> {
    let rows = frontends(rig)?;
    let row = rows.iter().find(|row| row.address == VIP_KEEP.of(family) && row.port == WEB_PORT);
    let found = row.and_then(|row| row.nodes.iter().find(|told| told.node == node));
    Ok(found.map(|told| format!("{:?}: {}", told.state, told.reason)).unwrap_or_default())
}

/// New connections while a node is out: all answered, none there.
fn elsewhere(rig: &Rig, family: Family, out: Pod) -> Result<Row> {
    let spread = rig.spread(VIP_KEEP.at(family, WEB_PORT), 300)?;
    let there = spread.by_pod.get(&out.name()).copied().unwrap_or(0);
    let measured = format!("{} answered, {} failed, {there} at {}", spread.ok, spread.failed, out.name());
    Ok(Row::new(format!("{family} meanwhile"), measured, "300 answered, 0 there", spread.ok == 300 && there == 0))
}

/// V-026: a strict `rp_filter` on one worker.
pub(super) fn strict(rig: &mut Rig) -> Found {
    let service = keep(&[1, 3, 5]);
    tell(rig, &service)?;
    await_nodes(rig, &FAMILIES, &nodes_of(&service), PROVEN_LIMIT)?;
    set_reverse_path_filter(pod(3).node(), 1)?;
    let others = nodes_of(&keep(&[1, 5]));
    let followed = await_nodes(rig, &[Family::V4], &others, FAILED_LIMIT);
    let mut rows = Vec::new();
    if let Ok(took) = &followed {
        rows.push(Row::new(
            "w2 leaves the set",
            format!("after {} ms", took.as_millis()),
            "< 20 s",
            took.as_secs() < 20,
        ));
        let why = reason(rig, Family::V4, "w2")?;
        rows.push(Row::new("its reason", why.clone(), "names rp_filter", why.contains("rp_filter")));
        rows.push(elsewhere(rig, Family::V4, pod(3))?);
        let six = proven(rig, Family::V6)?;
        rows.push(Row::new("IPv6", format!("{six:?}"), "all nodes", six == nodes_of(&service)));
    }
    set_reverse_path_filter(pod(3).node(), 0)?;
    followed?;
    let back = await_nodes(rig, &FAMILIES, &nodes_of(&service), FAILED_LIMIT)?;
    rows.push(Row::new("w2 is back", format!("after {} ms", back.as_millis()), "< 15 s", back.as_secs() < 15));
    forget(rig, &service)?;
    Ok(rows)
}

/// S-063: one worker whose kube-proxy has no rules for the VIP, both families; then none has.
pub(super) fn without_rules(rig: &mut Rig) -> Found {
    let service = keep(&[1, 3, 5]);
    tell(rig, &service)?;
    await_nodes(rig, &FAMILIES, &nodes_of(&service), PROVEN_LIMIT)?;
    let mut rows = Vec::new();
    kube_proxy::program_one(pod(5).node(), &[])?;
    let took = await_nodes(rig, &FAMILIES, &nodes_of(&keep(&[1, 3])), FAILED_LIMIT)?;
    rows.push(Row::new("w3 leaves the set", format!("after {} ms", took.as_millis()), "< 20 s", took.as_secs() < 20));
    for family in FAMILIES {
        let why = reason(rig, family, "w3")?;
        rows.push(Row::new(format!("{family} reason"), why.clone(), "names kube-proxy", why.contains("kube-proxy")));
        rows.push(elsewhere(rig, family, pod(5))?);
    }
    kube_proxy::program(&[])?;
    await_nodes(rig, &FAMILIES, &BTreeSet::new(), FAILED_LIMIT)?;
    for family in FAMILIES {
        let outcome = rig.who(VIP_KEEP.at(family, WEB_PORT), 3000)?;
        let seen = outcome.who.as_ref().map(|who| who.remote.ip());
        let pass = outcome.ok && seen != Some(client_address(family, *CLIENT_HOSTS.start()));
        rows.push(Row::new(
            format!("{family} no node left"),
            told(&outcome),
            "fullnat: answered, client not seen",
            pass,
        ));
    }
    let frontends = frontends(rig)?;
    let modes: BTreeSet<&str> = frontends.iter().map(|row| row.mode.as_str()).collect();
    rows.push(Row::new("mode", format!("{modes:?}"), "fullnat", modes == BTreeSet::from(["fullnat"])));
    kube_proxy::program(std::slice::from_ref(&service))?;
    await_nodes(rig, &FAMILIES, &nodes_of(&service), FAILED_LIMIT)?;
    forget(rig, &service)?;
    Ok(rows)
}

/// T-025, T-023 (another node), S-108: the only endpoint moves from node to node.
pub(super) fn moves(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    let mut sources = FAMILIES.map(|family| (family, way(VIP_KEEP.at(family, ECHO_PORT), rig.source(family), 300)));
    for number in [1, 3, 5] {
        let service = keep(&[number]);
        tell(rig, &service)?;
        await_nodes(rig, &FAMILIES, &nodes_of(&service), PROVEN_LIMIT)?;
        for (family, datagram) in &mut sources {
            let outcome = rig.who(VIP_KEEP.at(*family, WEB_PORT), 3000)?;
            let saw = outcome.who.as_ref().map(|who| who.remote.ip());
            let pass = outcome.pod == pod(number).name() && saw == Some(client_address(*family, *CLIENT_HOSTS.start()));
            rows.push(Row::new(
                format!("{family} TCP on p{number}"),
                told(&outcome),
                "reached, client seen (T-025)",
                pass,
            ));
            let mut answer = Outcome::default();
            let found = wait_until(Duration::from_secs(5), || {
                answer = rig.client("udp", datagram)?;
                Ok(answer.ok && answer.pod == pod(number).name())
            })?;
            let name = format!("{family} UDP, same source port, on p{number}");
            rows.push(Row::new(name, told(&answer), "answered from there (T-023, S-108)", found.is_some()));
        }
    }
    forget(rig, &keep(&[5]))?;
    Ok(rows)
}

/// T-024, S-104: all pods are replaced one by one while clients go on.
pub(super) fn rolling(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for mode in ["fullnat", "node-dsr"] {
        let asking = |service: LabService| LabService { mode: Some(mode), ..service };
        let mut service = asking(keep(&[1, 3, 5]));
        tell(rig, &service)?;
        let expected = if mode == "node-dsr" { nodes_of(&service) } else { BTreeSet::new() };
        await_nodes(rig, &FAMILIES, &expected, PROVEN_LIMIT)?;
        wait_until(PROVEN_LIMIT, || Ok(rig.who(VIP_KEEP.at(Family::V6, WEB_PORT), 500)?.ok))?;
        let clients = FAMILIES.map(|family| (family, rig.start_spread(VIP_KEEP.at(family, WEB_PORT), ROLLING, 25)));
        let began = Instant::now();
        for (old, new) in [(1, 4), (3, 6), (5, 2)] {
            // A Deployment's surge: the new one is ready, then the old one is told to end, serves on, and is gone.
            service.pods.push(pod(new));
            tell(rig, &service)?;
            std::thread::sleep(GRACE / 3);
            service.pods.retain(|pod| pod.number != old);
            service.terminating.push(pod(old));
            tell(rig, &service)?;
            std::thread::sleep(GRACE);
            service.terminating.clear();
            tell(rig, &service)?;
            end(pod(old), true)?;
        }
        let rolled = began.elapsed();
        for (family, client) in clients {
            let spread: Spread = client?.last()?;
            let measured = format!(
                "{} answered, {} failed {:?}; {:?}",
                spread.ok,
                spread.failed,
                spread.errors.first(),
                spread.by_pod
            );
            let overlapped = spread.took_ms >= u64::try_from(rolled.as_millis()).unwrap_or(u64::MAX) / 2;
            let all = spread.by_pod.len() >= 4;
            let pass = spread.failed == 0 && spread.ok == ROLLING && overlapped && all;
            rows.push(Row::new(
                format!("{mode} {family}"),
                measured,
                format!("{ROLLING} answered, 0 failed (S-104)"),
                pass,
            ));
        }
        let after = asking(keep(&[2, 4, 6]));
        await_nodes(rig, &FAMILIES, &if mode == "node-dsr" { nodes_of(&after) } else { expected }, PROVEN_LIMIT)?;
        for family in FAMILIES {
            let spread = rig.spread(VIP_KEEP.at(family, WEB_PORT), 300)?;
            let pods: Vec<&str> = spread.by_pod.keys().map(String::as_str).collect();
            let pass = spread.ok == 300 && pods == ["p2", "p4", "p6"];
            rows.push(Row::new(
                format!("{mode} {family} afterwards"),
                format!("{} from {pods:?}", spread.ok),
                "new pods",
                pass,
            ));
        }
        forget(rig, &after)?;
        [1, 3, 5].into_iter().try_for_each(|old| end(pod(old), false))?;
    }
    Ok(rows)
}

/// Makes a pod as good as gone, or brings it back: nothing reaches it, and it says nothing about that.
fn end(pod: Pod, ended: bool) -> Result<()> {
    let mut nft = in_namespace(&pod.name(), "nft");
    nft.args(["-f", "-"]);
    let gone = "table inet gone {\nchain input {\ntype filter hook input priority 0; policy drop;\n}\n}\n";
    let text = format!("add table inet gone\ndelete table inet gone\n{}", if ended { gone } else { "" });
    process::run(nft, &text, Duration::from_secs(5))?.success("ending a pod")?;
    Ok(())
}
