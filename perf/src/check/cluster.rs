//! Checks of the cluster: Services as users of the Kubernetes API make, change and delete them, with real clients.
//!
//! The sequences are those of the Kubernetes end-to-end suite for load balancers. What a first client is told counts: a
//! status says that a client may come, so that nobody is asked twice here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::check::serving::told;
use crate::check::{Found, Row};
use crate::client::{Outcome, Spread};
use crate::cluster::{Cluster, PATIENCE, ingress, is_held};
use crate::gateway::Program;
use crate::manifest::{HTTP, LabService, NAMESPACE};
use crate::rig::{Rig, RunningClient, wait_until};
use crate::topology::{FAMILIES, Pod, VIP_LATE, VIP_WEB, WEB_PORT, pods};

/// A first request may take so long: less than the second after which a client would ask again by itself.
const FIRST_MS: u64 = 900;
/// How long nobody must answer.
const SILENCE_MS: u64 = 300;
/// How long the dataplane hangs while status must not appear.
const HANGING: Duration = Duration::from_millis(700);
/// Connections while the API server is away, per family: about seven seconds of them.
const CONNECTIONS: u32 = 3500;
/// Services of the crowd.
const CROWD: usize = 200;
/// How often control is killed while the crowd gets addresses.
const KILLS: usize = 3;

/// A Service without addresses, for pods behind a port 80; `more` is the rest of its spec.
fn service_yaml(name: &str, annotations: &Value, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: {NAMESPACE}, annotations: {annotations} }}\n\
         spec: {{ type: LoadBalancer, ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack, selector: {{ app: {name} }}, \
         {more} ports: [{{ name: http, port: 80, targetPort: 8080 }}] }}\n"
    )
}

/// Its endpoints. The addresses are those of another Service and go nowhere.
fn endpoints(name: &str, pods: &[Pod]) -> LabService {
    LabService { pods: pods.to_vec(), ..LabService::new(name, VIP_LATE, &[HTTP]) }
}

/// Makes a Service with all pods behind it and waits for its addresses.
fn make(rig: &mut Rig, cluster: &Cluster, name: &str, annotations: &Value) -> Result<(Vec<IpAddr>, Duration)> {
    let began = Instant::now();
    cluster.apply(&service_yaml(name, annotations, ""))?;
    rig.manifests.put_endpoints(&endpoints(name, &pods().collect::<Vec<_>>()))?;
    let service = cluster.await_service(name, |service| ingress(service).len() == 2)?;
    Ok((addresses(&service)?, began.elapsed()))
}

fn addresses(service: &Value) -> Result<Vec<IpAddr>> {
    ingress(service).iter().map(|text| text.parse().with_context(|| text.clone())).collect()
}

/// Deletes a Service and its endpoints.
fn unmake(rig: &mut Rig, cluster: &Cluster, name: &str) -> Result<()> {
    cluster.delete_service(name)?;
    for family in ["ipv4", "ipv6"] {
        cluster.delete_slice(&format!("{name}-{family}"))?;
    }
    let gone =
        wait_until(PATIENCE, || Ok(rig.backends(&format!("{NAMESPACE}/{name}")).is_ok_and(|rows| rows.is_empty())))?;
    gone.map(drop).context("the Service is still in the tables")
}

/// One request to each address.
fn ask(rig: &Rig, addresses: &[IpAddr], port: u16, timeout_ms: u64) -> Result<Vec<Outcome>> {
    addresses.iter().map(|address| rig.who(SocketAddr::new(*address, port), timeout_ms)).collect()
}

/// A row about one request to each address: all must fit.
fn asked(
    rig: &Rig,
    name: &str,
    at: (&[IpAddr], u16),
    expected: &str,
    timeout_ms: u64,
    fits: impl Fn(&Outcome) -> bool,
) -> Result<Row> {
    let outcomes = ask(rig, at.0, at.1, timeout_ms)?;
    let measured = outcomes.iter().map(told).collect::<Vec<_>>().join(", ");
    Ok(Row::new(name, measured, expected, outcomes.len() == 2 && outcomes.iter().all(fits)))
}

fn answered(rig: &Rig, name: &str, addresses: &[IpAddr]) -> Result<Row> {
    asked(rig, name, (addresses, WEB_PORT), "first request of each family answered", FIRST_MS, |outcome| outcome.ok)
}

fn silent(rig: &Rig, name: &str, addresses: &[IpAddr]) -> Result<Row> {
    asked(rig, name, (addresses, WEB_PORT), "silence", SILENCE_MS, |outcome| outcome.failure == "timeout")
}

/// Waits until one request to each address fits, and tells how long that took.
fn becomes(
    rig: &Rig,
    name: &str,
    at: (&[IpAddr], u16),
    expected: &str,
    fits: impl Fn(&Outcome) -> bool,
) -> Result<Row> {
    let mut last = Vec::new();
    let took = wait_until(PATIENCE, || {
        last = ask(rig, at.0, at.1, SILENCE_MS)?;
        Ok(last.len() == 2 && last.iter().all(&fits))
    })?;
    let seen = last.iter().map(told).collect::<Vec<_>>().join(", ");
    let within = took.is_some_and(|took| took < Duration::from_secs(2));
    let measured = took.map_or(format!("not so: {seen}"), |took| format!("after {} ms: {seen}", took.as_millis()));
    Ok(Row::new(name, measured, format!("{expected}, < 2 s"), within))
}

/// C-001, C-003, C-012: a new Service gets an address of each family; from the moment its status says so, they answer.
pub(super) fn new(rig: &mut Rig) -> Found {
    let cluster = rig.cluster()?;
    let mut rows = Vec::new();
    let (given, took) = make(rig, &cluster, "fresh", &json!({}))?;
    rows.push(answered(rig, "as soon as status says so", &given)?);
    let measured = format!("{given:?} after {} ms", took.as_millis());
    let families: BTreeSet<bool> = given.iter().map(IpAddr::is_ipv4).collect();
    let pass = families.len() == 2 && took < Duration::from_secs(5);
    rows.push(Row::new("addresses", measured, "one of each family, ≤ 5 s (C-012)", pass));
    let held = is_held(&cluster.service("fresh"));
    wait_until(PATIENCE, || Ok(cluster.events("fresh").iter().any(|reason| reason == "EnsuredLoadBalancer")))?;
    let events = cluster.events("fresh");
    let pass = held && events == ["EnsuringLoadBalancer", "EnsuredLoadBalancer"];
    rows.push(Row::new("finalizer, events", format!("{held}, {events:?}"), "held; Ensuring, Ensured (C-001)", pass));
    unmake(rig, &cluster, "fresh")?;
    rows.push(silent(rig, "deleted", &given)?);
    // While no worker has it, nobody is told that it works.
    rig.gateway.stop(Program::Dataplane)?;
    let hanging = hold_back(rig, &cluster);
    rig.gateway.resume(Program::Dataplane)?;
    let early = hanging?;
    let service = cluster.await_service("later", |service| ingress(service).len() == 2)?;
    rows.push(answered(rig, "after a dataplane that hung", &addresses(&service)?)?);
    rows.push(Row::new("status meanwhile", format!("{early:?}"), "[] (C-001)", early.is_empty()));
    unmake(rig, &cluster, "later")?;
    let denied = cluster.denied();
    rows.push(Row::new("roles of an installation", format!("{denied:?}"), "nothing denied (C-023)", denied.is_empty()));
    Ok(rows)
}

/// What the status of a new Service says after a while in which the dataplane cannot take it.
fn hold_back(rig: &mut Rig, cluster: &Cluster) -> Result<Vec<String>> {
    cluster.apply(&service_yaml("later", &json!({}), ""))?;
    rig.manifests.put_endpoints(&endpoints("later", &pods().collect::<Vec<_>>()))?;
    cluster.await_service("later", is_held)?;
    std::thread::sleep(HANGING);
    Ok(ingress(&cluster.service("later")))
}

/// T-022, T-026, T-027, C-011: what users change of a Service, one thing after the other.
pub(super) fn changes(rig: &mut Rig) -> Found {
    const NAME: &str = "changing";
    let cluster = rig.cluster()?;
    let (given, _) = make(rig, &cluster, NAME, &json!({}))?;
    let mut rows = vec![answered(rig, "made", &given)?];
    let spec = |change: &dyn Fn(&mut Value)| cluster.edit(NAME, |service| change(&mut service["spec"]));
    let all: Vec<Pod> = pods().collect();

    spec(&|spec| spec["ports"][0]["port"] = json!(8081))?;
    rows.push(becomes(rig, "another port", (&given, 8081), "answered (T-022)", |outcome| outcome.ok)?);
    rows.push(asked(rig, "the old port", (&given, WEB_PORT), "no answer", SILENCE_MS, |outcome| !outcome.ok)?);
    spec(&|spec| spec["ports"][0]["port"] = json!(WEB_PORT))?;
    rows.push(becomes(rig, "the old port again", (&given, WEB_PORT), "answered", |outcome| outcome.ok)?);

    rig.manifests.put_endpoints(&endpoints(NAME, &[]))?;
    let refused = |outcome: &Outcome| outcome.failure == "refused";
    rows.push(becomes(rig, "scaled to nothing", (&given, WEB_PORT), "refused (S-070)", refused)?);
    rig.manifests.put_endpoints(&endpoints(NAME, &all))?;
    rows.push(becomes(rig, "scaled up again", (&given, WEB_PORT), "answered", |outcome| outcome.ok)?);

    spec(&|spec| spec["loadBalancerSourceRanges"] = json!(["198.51.100.0/24", "2001:db8:2::/64"]))?;
    rows.push(becomes(rig, "source ranges of others", (&given, WEB_PORT), "silence (S-072)", |outcome| {
        outcome.failure == "timeout"
    })?);
    spec(&|spec| drop(spec.as_object_mut().and_then(|spec| spec.remove("loadBalancerSourceRanges"))))?;
    rows.push(becomes(rig, "no source ranges", (&given, WEB_PORT), "answered", |outcome| outcome.ok)?);

    rows.extend(affinity(rig, &cluster, NAME, &given)?);
    let now = addresses(&cluster.service(NAME))?;
    rows.push(Row::new("addresses after all that", format!("{now:?}"), "as before (C-011)", now == given));
    rows.extend(types(rig, &cluster, NAME, &given)?);
    Ok(rows)
}

/// T-027: one client and one pod with affinity, one client and many pods without.
fn affinity(rig: &Rig, cluster: &Cluster, name: &str, given: &[IpAddr]) -> Found {
    let mut rows = Vec::new();
    for (kind, expected) in [("ClientIP", "one pod (T-027)"), ("None", "many pods (T-027)")] {
        cluster.edit(name, |service| service["spec"]["sessionAffinity"] = json!(kind))?;
        for address in given {
            let mut seen = BTreeSet::new();
            let as_expected = wait_until(Duration::from_secs(5), || {
                seen.clear();
                for _ in 0..15 {
                    seen.insert(rig.who(SocketAddr::new(*address, WEB_PORT), FIRST_MS)?.pod);
                }
                Ok((seen.len() == 1) == (kind == "ClientIP"))
            })?;
            let pass = as_expected.is_some() && !seen.contains("");
            rows.push(Row::new(format!("affinity {kind} at {address}"), format!("{seen:?}"), expected, pass));
        }
    }
    Ok(rows)
}

/// T-026, C-002, C-010: load balancer no more, again, and gone; its addresses may be had by others then.
fn types(rig: &mut Rig, cluster: &Cluster, name: &str, given: &[IpAddr]) -> Found {
    let mut rows = Vec::new();
    cluster.edit(name, |service| service["spec"]["type"] = json!("ClusterIP"))?;
    let service = cluster.await_service(name, |service| !is_held(service))?;
    rows.push(silent(rig, "type ClusterIP", given)?);
    let left = ingress(&service);
    rows.push(Row::new("its status", format!("{left:?}"), "[] with the finalizer gone (T-026)", left.is_empty()));
    cluster.edit(name, |service| service["spec"]["type"] = json!("LoadBalancer"))?;
    let service = cluster.await_service(name, |service| ingress(service).len() == 2)?;
    let again = addresses(&service)?;
    rows.push(answered(rig, "type LoadBalancer again", &again)?);
    let held = is_held(&service);
    rows.push(Row::new("its finalizer", held.to_string(), "there again (T-026)", held));
    unmake(rig, cluster, name)?;
    rows.push(silent(rig, "deleted", &again)?);
    let events = cluster.events(name);
    let last = events.last().map(String::as_str);
    let pass = last == Some("DeletedLoadBalancer");
    rows.push(Row::new("the last event", format!("{last:?}"), "DeletedLoadBalancer (C-002)", pass));
    let wanted: Vec<String> = again.iter().map(ToString::to_string).collect();
    let annotations = json!({ "tidegate.io/load-balancer-ips": wanted.join(",") });
    let (got, _) = make(rig, cluster, "heir", &annotations)?;
    rows.push(Row::new("who asks for its addresses", format!("{got:?}"), "gets them (C-002)", got == again));
    rows.push(answered(rig, "there", &got)?);
    unmake(rig, cluster, "heir")?;
    Ok(rows)
}

/// Connections through the web Service beside a check.
fn load(rig: &Rig) -> Result<Vec<RunningClient>> {
    let start = |family| rig.start_spread(VIP_WEB.at(family, WEB_PORT), CONNECTIONS, 25);
    FAMILIES.into_iter().map(start).collect()
}

/// Zero of them may fail.
fn load_rows(load: Vec<RunningClient>, spanned: Duration) -> Found {
    let mut rows = Vec::new();
    for (client, family) in load.into_iter().zip(FAMILIES) {
        let spread: Spread = client.last()?;
        let first = spread.errors.first();
        let measured = format!("{} answered in {} ms, {} failed {first:?}", spread.ok, spread.took_ms, spread.failed);
        let spans = u128::from(spread.took_ms) > spanned.as_millis();
        let pass = spread.failed == 0 && spread.ok == CONNECTIONS && spans;
        let expected = format!("{CONNECTIONS} in more than {} ms, 0 failed", spanned.as_millis());
        rows.push(Row::new(format!("{family} meanwhile"), measured, expected, pass));
    }
    Ok(rows)
}

/// The API server goes away and control dies: nothing changes for anybody. Later, what was changed meanwhile is there.
pub(super) fn outage(rig: &mut Rig) -> Found {
    let cluster = rig.cluster()?;
    let web = LabService::new("web", VIP_WEB, &[HTTP]);
    let fewer = LabService { pods: pods().filter(|pod| pod.number != 6).collect(), ..web.clone() };
    let load = load(rig)?;
    let began = Instant::now();
    cluster.go_away()?;
    let away = while_away(rig, &cluster, &fewer);
    let away_for = began.elapsed();
    // In any case, or every later check would fail for this one.
    cluster.come_back()?;
    let back = Instant::now();
    let mut rows = vec![away?];
    rig.await_active_pods("shop/web", &names(&fewer), PATIENCE)?;
    let followed = back.elapsed();
    let service = cluster.await_service("waiting", |service| ingress(service).len() == 2)?;
    rows.push(answered(rig, "a Service made meanwhile", &addresses(&service)?)?);
    let (followed, told) = (followed.as_millis(), back.elapsed().as_millis());
    let measured =
        format!("endpoints after {followed} ms, status after {told} ms, away for {} ms", away_for.as_millis());
    // The Lease of the control that was killed has to run out before the next one writes.
    rows.push(Row::new("changes appear", measured, "< 5 s, < 10 s", followed < 5000 && told < 10_000));
    rows.extend(load_rows(load, away_for)?);
    rig.manifests.put_endpoints(&web)?;
    rig.await_active_pods("shop/web", &names(&web), PATIENCE)?;
    unmake(rig, &cluster, "waiting")?;
    Ok(rows)
}

fn names(service: &LabService) -> Vec<String> {
    service.pods.iter().map(|pod| pod.name()).collect()
}

/// What the gateway does while objects change that it cannot see, and control begins anew.
fn while_away(rig: &mut Rig, cluster: &Cluster, fewer: &LabService) -> Result<Row> {
    cluster.apply(&service_yaml("waiting", &json!({}), ""))?;
    rig.manifests.put_endpoints(&endpoints("waiting", &fewer.pods))?;
    rig.manifests.put_endpoints(fewer)?;
    std::thread::sleep(Duration::from_millis(700));
    rig.gateway.kill(Program::Control)?;
    rig.gateway.spawn(Program::Control)?;
    std::thread::sleep(Duration::from_millis(1500));
    // Rows without a pod are of endpoints that have left.
    let pods = rig.backends("shop/web")?.into_iter().map(|row| row.pod).filter(|pod| !pod.is_empty());
    let active: BTreeSet<String> = pods.collect();
    let early = ingress(&cluster.service("waiting"));
    let measured = format!("backends {active:?}, status {early:?}");
    Ok(Row::new("while away", measured, "all pods, no address", active.len() == 6 && early.is_empty()))
}

/// Addresses of the crowd by Service: those that have one of each family.
fn given_to_crowd(cluster: &Cluster) -> BTreeMap<String, Vec<String>> {
    let services = cluster.services();
    let named = services.iter().filter_map(|service| Some((service["metadata"]["name"].as_str()?, ingress(service))));
    named
        .filter(|(name, given)| name.starts_with("crowd-") && given.len() == 2)
        .map(|(name, given)| (name.into(), given))
        .collect()
}

/// T-031, M-006: control is killed while it gives out addresses: none changes, none is given twice.
pub(super) fn crowd(rig: &mut Rig) -> Found {
    let cluster = rig.cluster()?;
    cluster.apply(
        "apiVersion: tidegate.io/v1alpha1\nkind: AddressPool\nmetadata: { name: crowd }\nspec:\n  autoAssign: false\n  \
         addresses: [100.64.0.0/23, \"2001:db8:64::/119\"]\n",
    )?;
    let load = load(rig)?;
    let began = Instant::now();
    let annotations = json!({ "tidegate.io/address-pool": "crowd" });
    for number in 0..CROWD {
        cluster.apply(&service_yaml(
            &format!("crowd-{number}"),
            &annotations,
            "allocateLoadBalancerNodePorts: false,",
        ))?;
    }
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut changed = Vec::new();
    let mut at_kills = Vec::new();
    for wanted in (1..=KILLS).map(|kill| CROWD * kill / (KILLS + 1)).chain([CROWD]) {
        let enough = wait_until(PATIENCE, || Ok(given_to_crowd(&cluster).len() >= wanted))?;
        enough.with_context(|| format!("{} of {wanted} have addresses", given_to_crowd(&cluster).len()))?;
        let now = given_to_crowd(&cluster);
        if wanted < CROWD {
            rig.gateway.kill(Program::Control)?;
            rig.gateway.spawn(Program::Control)?;
            at_kills.push(now.len());
        }
        changed.extend(seen.iter().filter(|(name, given)| now.get(*name) != Some(given)).map(|(name, _)| name.clone()));
        seen = now;
    }
    let took = began.elapsed();
    let distinct: BTreeSet<&String> = seen.values().flatten().collect();
    let measured = format!("{} by {CROWD} Services; {} changed; killed at {at_kills:?}", distinct.len(), changed.len());
    let pass = distinct.len() == 2 * CROWD && changed.is_empty();
    let mut rows = vec![Row::new("addresses", measured, format!("{} distinct, none changed", 2 * CROWD), pass)];
    rows.extend(load_rows(load, took.min(Duration::from_secs(3)))?);
    for name in seen.keys() {
        cluster.begin_deletion(name)?;
    }
    let gone = wait_until(PATIENCE, || {
        let left = cluster.services();
        Ok(!left
            .iter()
            .any(|service| service["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("crowd-"))))
    })?;
    let measured = gone.map_or("still there".into(), |took| format!("gone after {} ms", took.as_millis()));
    rows.push(Row::new("deleted", measured, "all gone", gone.is_some()));
    cluster.delete_pool("crowd")?;
    Ok(rows)
}
