//! Checks of `symmetric`: the gateway picks the pod, which sees the client; its answers return through the gateway, because
//! the agent on its worker sends them there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tidegate_api::show::{FlowFilter, Show, Shown};

use super::nodes::{PER_POD, PROVEN_LIMIT, frontends, judge, keep};
use crate::check::serving::told;
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::kube_proxy;
use crate::lab::vxlan_device;
use crate::manifest::LabService;
use crate::process::{self, Daemon, in_namespace};
use crate::rig::{Rig, wait_until};
use crate::topology::{
    CLIENT_HOSTS, ECHO_PORT, FAMILIES, Family, GATEWAY_NODE, Node, VIP_KEEP, VNI, WEB_PORT, client_address, workers,
};

/// From an agent's start until all on its worker is as it wants it.
const SETTLED_LIMIT: Duration = Duration::from_secs(30);

/// The agents, one a worker; everything that they made goes with them.
struct Agents {
    running: Vec<Daemon>,
    program: PathBuf,
    configs: Vec<(Node, PathBuf)>,
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.running.clear();
        for (node, config) in &self.configs {
            let mut remove = in_namespace(&node.name(), &self.program);
            remove.arg("--config").arg(config).arg("remove");
            let took = process::run(remove, "", Duration::from_secs(10)).and_then(|done| done.success("remove"));
            if let Err(error) = took {
                eprintln!("lab: what the agent of {} made stays: {error:#}", node.name());
            }
        }
    }
}

impl Agents {
    fn start(rig: &Rig) -> Result<Agents> {
        let program = rig.gateway.program("tidegate-node");
        let mut agents = Agents { running: Vec::new(), program, configs: Vec::new() };
        for node in workers() {
            let config = rig.lab.state_dir.join(format!("symmetric-{}.yaml", node.name()));
            std::fs::write(&config, wanted(node))?;
            let mut agent = in_namespace(&node.name(), &agents.program);
            agent.arg("--config").arg(&config);
            let log = rig.lab.state_dir.join(format!("symmetric-{}.log", node.name()));
            agents.configs.push((node, config));
            agents.running.push(Daemon::start("tidegate-node", agent, &log)?);
        }
        for (node, config) in &agents.configs {
            let mut last = String::new();
            let settled = wait_until(SETTLED_LIMIT, || {
                let mut status = in_namespace(&node.name(), &agents.program);
                status.arg("--config").arg(config).arg("status");
                let status = process::run(status, "", Duration::from_secs(10))?;
                last = format!("{}{}", status.stdout, status.stderr);
                Ok(status.status.success())
            })?;
            settled.with_context(|| format!("the agent of {} does not settle:\n{last}", node.name()))?;
        }
        Ok(agents)
    }
}

/// What the agent of `node` is told: its own pods answer through the gateway.
fn wanted(node: Node) -> String {
    let end = |family: Family| {
        let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let gateway = GATEWAY_NODE;
        format!(
            "    {name}: {{ overlay: \"{}\", mac: \"{}\", underlay: \"{}\", vni: {VNI} }}\n",
            gateway.overlay(family),
            gateway.vtep_mac(family),
            gateway.underlay(family)
        )
    };
    format!(
        "devices: {{ ipv4: {}, ipv6: {} }}\ncluster: [10.244.0.0/16, \"fd00:10:244::/48\"]\n\
         gateways:\n  - name: gw-1\n{}{}symmetric: [\"{}\", \"{}\"]\n",
        vxlan_device(Family::V4),
        vxlan_device(Family::V6),
        end(Family::V4),
        end(Family::V6),
        node.pod_cidr(Family::V4),
        node.pod_cidr(Family::V6)
    )
}

/// The mode that frontends of the Service have, if they agree.
fn mode(rig: &Rig) -> Result<String> {
    let mut modes: Vec<String> = frontends(rig)?.into_iter().map(|row| row.mode).collect();
    modes.dedup();
    Ok(modes.join(" and "))
}

fn await_mode(rig: &Rig, expected: &str) -> Result<Row> {
    let mut last = String::new();
    wait_until(PROVEN_LIMIT, || {
        last = mode(rig)?;
        Ok(last == expected)
    })?;
    Ok(Row::new(format!("mode {expected}"), last.clone(), expected, last == expected))
}

/// Every flow has its client's address behind the gateway too, and the gateway sees the pods' answers. How many packets a flow
/// tells of begins anew now and then, so that not each of them has one to tell of.
fn both_ways(rig: &Rig) -> Result<Row> {
    let Shown::Flows(flows) = rig.gateway.show(Show::Flows { limit: 100_000, filter: FlowFilter::default() })? else {
        bail!("asked for flows")
    };
    let vips = FAMILIES.map(|family| VIP_KEEP.of(family));
    let flows: Vec<_> = flows.iter().filter(|flow| vips.contains(&flow.vip.0)).collect();
    let answered = flows.iter().filter(|flow| flow.packets.1 > 0).count();
    let hidden = flows.iter().filter(|flow| flow.source.0 != flow.client.0).count();
    let measured = format!("{answered} of {} flows have answers to tell of, {hidden} have another source", flows.len());
    Ok(Row::new("both ways", measured, "answers seen, no other source", answered > 0 && hidden == 0))
}

/// `fullnat` while no Node says that it returns answers, then `symmetric` with the clients' own addresses, then back.
pub(super) fn kept(rig: &mut Rig) -> Found {
    let service = LabService { mode: Some("symmetric"), ..keep(&[1, 3, 5]) };
    // No rule of a kube-proxy has a part in it: what comes is to the pods' own addresses.
    kube_proxy::program(&[])?;
    rig.manifests.put(&service)?;
    let mut rows = vec![await_mode(rig, "fullnat")?];
    let agents = Agents::start(rig)?;
    workers().try_for_each(|node| rig.manifests.put_node(node, true))?;
    rows.push(await_mode(rig, "symmetric")?);
    let count = PER_POD * u32::try_from(service.pods.len())?;
    for family in FAMILIES {
        let spread = rig.spread(VIP_KEEP.at(family, WEB_PORT), count)?;
        let (measured, pass) = judge(&spread, &service, count, family);
        let expected = format!("{count}, even, clients seen, answers from the VIP");
        rows.push(Row::new(format!("{family} TCP"), measured, expected, pass));
        let answer: Outcome = rig.client("udp", &rig.way(VIP_KEEP.at(family, ECHO_PORT), 2000))?;
        let saw = answer.who.as_ref().map(|who| who.remote.ip());
        let pass = answer.ok && saw == Some(client_address(family, *CLIENT_HOSTS.start()));
        rows.push(Row::new(format!("{family} UDP"), told(&answer), "client seen", pass));
    }
    rows.push(both_ways(rig)?);
    // Who runs no agent any more takes the label away first.
    workers().try_for_each(|node| rig.manifests.put_node(node, false))?;
    rows.push(await_mode(rig, "fullnat")?);
    drop(agents);
    let outcome: Outcome = rig.who(VIP_KEEP.at(Family::V6, WEB_PORT), 3000)?;
    rows.push(Row::new("afterwards", told(&outcome), "answered", outcome.ok));
    rig.manifests.delete(&service)?;
    let gone = wait_until(PROVEN_LIMIT, || Ok(frontends(rig)?.is_empty()))?;
    gone.context("the Service is still in the tables")?;
    Ok(rows)
}
