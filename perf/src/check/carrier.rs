//! Pods on their way out, with an agent that follows the API: policies come and go there, an API that is away changes
//! nothing, and of two gateways the one that carries a policy's address dies.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tidegate_api::show::{Show, Shown};

use super::egress::{
    ANSWER_MS, EXTERNAL, OTHER, SELECTED, SETTLED_LIMIT, manifests, masquerade, outside, policy, remote, seen_as,
    server, shell, tcp, told,
};
use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::cluster::{Cluster, PATIENCE};
use crate::gateway::{Gateway, Program};
use crate::lab::vxlan_device;
use crate::manifest::NAMESPACE;
use crate::process::{Daemon, in_namespace};
use crate::rig::{Rig, wait_until};
use crate::topology::{FAMILIES, Family, POD_TCP_PORT, Pod};

/// From a gateway's death until new connections work.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(2);
/// How long the API is away.
const AWAY: Duration = Duration::from_secs(4);
/// How long nobody must answer, milliseconds.
const SILENCE_MS: u64 = 700;
/// What the agent made, by the tools of the kernel.
const MADE: &str = "ip rule; ip -6 rule; ip route show table all proto 117; ip -6 route show table all proto 117; \
                    nft list table inet tidegate-node | grep -v counter";

/// The agent on the pods' worker and servers outside; everything they made goes with them.
pub(super) struct Scene {
    _outside: Vec<Daemon>,
    agent: Option<Daemon>,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
}

impl Scene {
    /// An agent that follows the API of `cluster`.
    pub(super) fn begin(rig: &Rig, cluster: &Cluster) -> Result<Scene> {
        masquerade()?;
        let (directory, program) = (&rig.lab.state_dir, rig.gateway.program("tidegate-node"));
        let config = directory.join("node-agent-of-api.yaml");
        let text = format!(
            "devices: {{ ipv4: {}, ipv6: {} }}\ncluster: [10.96.0.0/12, \"fd00:10:96::/112\"]\nkubernetes:\n  \
             node: {}\n  kubeconfig: {}\n  stateFile: {}\n",
            vxlan_device(Family::V4),
            vxlan_device(Family::V6),
            SELECTED.node().name(),
            cluster.kubeconfig_of_agent(directory)?.display(),
            directory.join("node-agent/wanted.json").display()
        );
        std::fs::write(&config, text)?;
        let log = directory.join("node-agent-of-api.log");
        let mut scene = Scene { _outside: outside(rig)?, agent: None, program, config, log };
        scene.start()?;
        Ok(scene)
    }

    fn start(&mut self) -> Result<()> {
        let mut agent = in_namespace(&SELECTED.node().name(), &self.program);
        agent.arg("--config").arg(&self.config);
        self.agent = Some(Daemon::start("tidegate-node", agent, &self.log)?);
        Ok(())
    }
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

/// An API server of the worker's own, for an agent there. It has the lab's objects and [`OTHER`].
pub(super) fn api_of_worker(rig: &Rig) -> Result<Cluster> {
    let directory = rig.lab.state_dir.join("api-of-worker");
    std::fs::create_dir_all(&directory)?;
    let cluster = Cluster::start(&SELECTED.node().name(), SELECTED.node().underlay(Family::V4), &directory)?;
    cluster.load(rig.manifests.directory())?;
    cluster.apply(&pod(OTHER))?;
    Ok(cluster)
}

/// A Pod of the API; only [`SELECTED`] has the label that the policy asks for.
fn pod(pod: Pod) -> String {
    let label = if pod == SELECTED { "by-gateway" } else { "by-itself" };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {}, namespace: {NAMESPACE}, labels: {{ leaves: {label} }} }}\n\
         spec: {{ nodeName: {}, containers: [{{ name: web, image: web }}] }}\n\
         status: {{ phase: Running, podIPs: [{{ ip: \"{}\" }}, {{ ip: \"{}\" }}] }}\n",
        pod.name(),
        pod.node().name(),
        pod.address(Family::V4),
        pod.address(Family::V6)
    )
}

fn ask(rig: &Rig, pod: Pod, family: Family, timeout_ms: u64) -> Result<Outcome> {
    tcp(rig, pod, SocketAddr::new(server(family)?, POD_TCP_PORT), timeout_ms)
}

/// Waits until a pod is seen as `expected` says in both families; a row with how long that took.
fn becomes(rig: &Rig, what: &str, expected: impl Fn(Family) -> std::net::IpAddr, limit: Duration) -> Result<Row> {
    let mut last = String::new();
    let took = wait_until(SETTLED_LIMIT, || {
        for family in FAMILIES {
            let outcome = ask(rig, SELECTED, family, 300)?;
            if remote(&outcome).is_none_or(|from| from.ip() != expected(family)) {
                last = format!("{family}: {}", told(&outcome));
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    let measured = took.map_or_else(|| format!("not so: {last}"), |took| format!("after {} ms", took.as_millis()));
    let text = format!("seen as {} and {}", expected(Family::V4), expected(Family::V6));
    Ok(Row::new(what, measured, text, took.is_some_and(|took| took <= limit)))
}

pub(super) fn by_node(family: Family) -> std::net::IpAddr {
    SELECTED.node().underlay(family)
}

fn by_policy(family: Family) -> std::net::IpAddr {
    EXTERNAL.of(family)
}

/// N-110, N-111: an EgressPolicy made, used and deleted by the API; an API that is away changes nothing.
pub(super) fn by_api(rig: &mut Rig) -> Found {
    let cluster = rig.cluster()?;
    cluster.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {NAMESPACE} }}\n"))?;
    cluster.apply(&pod(OTHER))?;
    let mut scene = Scene::begin(rig, &cluster)?;
    let mut rows = vec![becomes(rig, "without a policy", by_node, SETTLED_LIMIT)?];
    // Its Pods come by themselves.
    cluster.apply(&policy(EXTERNAL))?;
    // The API has not told of the pod yet, as of any pod in its first moment: it could be one that the policy is for.
    let held = wait_until(SETTLED_LIMIT, || Ok(!ask(rig, SELECTED, Family::V4, SILENCE_MS)?.ok))?;
    for family in FAMILIES {
        let outcome = ask(rig, SELECTED, family, SILENCE_MS)?;
        let pass = held.is_some() && !outcome.ok;
        rows.push(Row::new(format!("{family} a pod not heard of"), told(&outcome), "no answer (N-111)", pass));
        let outcome = ask(rig, OTHER, family, ANSWER_MS)?;
        rows.push(seen_as(format!("{family} one that no policy selects"), &outcome, by_node(family), "N-113"));
    }
    cluster.apply(&pod(SELECTED))?;
    rows.push(becomes(rig, "the pod appears", by_policy, SETTLED_LIMIT)?);
    rows.push(status(&cluster)?);
    rows.extend(away(rig, &cluster, &mut scene)?);
    cluster.delete("egresspolicies", "", "out")?;
    rows.push(becomes(rig, "the policy is deleted", by_node, SETTLED_LIMIT)?);
    for of in [SELECTED, OTHER] {
        cluster.delete("pods", NAMESPACE, &of.name())?;
    }
    let denied = cluster.denied();
    rows.push(Row::new("roles", format!("{denied:?}"), "nothing denied (C-023)", denied.is_empty()));
    Ok(rows)
}

/// What the policy says of itself.
fn status(cluster: &Arc<Cluster>) -> Result<Row> {
    let mut last = String::new();
    let addresses = FAMILIES.map(|family| EXTERNAL.of(family).to_string());
    let found = wait_until(PATIENCE, || {
        let status = &cluster.object("egresspolicies", "out")["status"];
        last = status.to_string();
        let carrier = &status["gateways"][0];
        Ok(carrier["name"] == "gw-1"
            && carrier["addresses"] == serde_json::json!(addresses)
            && status["portsUsed"].as_i64().is_some_and(|used| used > 0)
            && status["portsRefused"] == 0
            && status["pods"] == 1)
    })?;
    let measured = found.map_or_else(|| last.clone(), |took| format!("after {} ms", took.as_millis()));
    Ok(Row::new("status", measured, "gw-1, its addresses, ports used, none refused", found.is_some()))
}

/// Nothing of the kernel's changes while the API is away, not by a restart of the agent either.
fn away(rig: &Rig, cluster: &Cluster, scene: &mut Scene) -> Found {
    let before = shell(MADE)?;
    cluster.go_away()?;
    let rows = (|| {
        std::thread::sleep(AWAY / 2);
        drop(scene.agent.take());
        scene.start()?;
        std::thread::sleep(AWAY / 2);
        let mut rows = Vec::new();
        for family in FAMILIES {
            let outcome = ask(rig, SELECTED, family, ANSWER_MS)?;
            rows.push(seen_as(
                format!("{family} the API is away, agent restarted"),
                &outcome,
                by_policy(family),
                "N-111",
            ));
        }
        let after = shell(MADE)?;
        let lines = before.lines().count();
        let measured = if after == before { format!("{lines} lines, none changed") } else { after };
        let pass = lines > 10 && !measured.contains('\n');
        rows.push(Row::new("rules, routes, filter meanwhile", measured, "as before", pass));
        Ok(rows)
    })();
    cluster.come_back()?;
    rows
}

fn carrier(gateway: &Gateway, family: Family) -> Result<Option<String>> {
    match gateway.show(Show::Egress)? {
        Shown::Egress(shown) => Ok(shown.carriers.get(&EXTERNAL.of(family)).cloned()),
        other => bail!("asked for egress, got {other:?}"),
    }
}

/// N-112: the gateway that carries the pod's address is killed; the other takes the address over, and the agent follows. The
/// API is the worker's own here: it has no part in that.
pub(super) fn takeover(rig: &mut Rig) -> Found {
    let cluster = api_of_worker(rig)?;
    cluster.apply(&manifests())?;
    rig.manifests.put_text(super::egress::MANIFESTS, &manifests())?;
    let scene = Scene::begin(rig, &cluster)?;
    let mut rows = vec![becomes(rig, "before", by_policy, SETTLED_LIMIT)?];
    for family in FAMILIES {
        let second = rig.second.as_ref().context("this lab has one gateway")?;
        let told = [carrier(&rig.gateway, family)?, carrier(second, family)?];
        let agreed = told[0].is_some() && told[0] == told[1];
        rows.push(Row::new(format!("{family} carrier"), format!("{told:?}"), "one, and both know", agreed));
        let name = told[0].clone().context("nobody carries the address")?;
        let dying = if name == "gw-1" { &mut rig.gateway } else { rig.second.as_mut().context("one gateway")? };
        dying.kill(Program::Dataplane)?;
        let killed = Instant::now();
        let row = becomes(rig, &format!("{family} after SIGKILL of {name}"), by_policy, TAKEOVER_LIMIT)?;
        let heir = if name == "gw-1" { rig.second.as_ref().context("one gateway")? } else { &rig.gateway };
        let now = carrier(heir, family)?;
        let pass = now.is_some() && now.as_deref() != Some(&name);
        rows.push(row);
        rows.push(Row::new(
            format!("{family} carrier {} ms later", killed.elapsed().as_millis()),
            format!("{now:?}"),
            "the other one",
            pass,
        ));
        let dead = if name == "gw-1" { &mut rig.gateway } else { rig.second.as_mut().context("one gateway")? };
        dead.revive()?;
        rows.push(becomes(rig, &format!("{family} when {name} is back"), by_policy, SETTLED_LIMIT)?);
        // It comes back to where its name leads, and connections with it.
        let returned = wait_until(SETTLED_LIMIT, || Ok(carrier(&rig.gateway, family)?.as_deref() == Some(&name)))?;
        let measured = returned.map_or("no".into(), |took| format!("after {} ms", took.as_millis()));
        rows.push(Row::new(format!("{family} carrier again"), measured, name, returned.is_some()));
        rows.push(becomes(rig, &format!("{family} then"), by_policy, SETTLED_LIMIT)?);
    }
    drop(scene);
    rig.manifests.remove_text(super::egress::MANIFESTS)?;
    Ok(rows)
}
