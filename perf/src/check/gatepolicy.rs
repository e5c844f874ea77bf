//! GatewayPolicies of the API: clients that are denied or limited beside others that notice nothing, rules that only
//! count, and an object that is wrong.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tidegate_api::show::{RulingRow, Show, Shown};

use super::policy::{is_stopped, told};
use super::{Found, Row};
use crate::client::{Outcome, Spread, Streamed, unix_ms};
use crate::cluster::Cluster;
use crate::rig::{Rig, RunningClient, wait_until, way};
use crate::topology::{FAMILIES, Family, VIP_WEB, WEB_PORT, client_address};

/// Name of the policy.
const NAME: &str = "lab";
/// The client that is denied, one that is limited, and two that nobody speaks of.
const DENIED: u8 = 21;
const LIMITED: u8 = 22;
const OTHERS: [u8; 2] = [10, 11];
/// From an object's change until packets follow it; P-031 asks for two seconds.
const APPLIED_LIMIT: Duration = Duration::from_secs(2);
/// How long streams go on, and when one of them is denied.
const STREAM_MS: u64 = 6_000;
const DENIED_AFTER: Duration = Duration::from_millis(1_500);
/// Silence after which nothing more is waited for, milliseconds.
const SILENCE_MS: u64 = 3_000;
/// Longest wait for an answer that should not come, and for one that should, milliseconds.
const REFUSED_MS: u64 = 400;
const ANSWER_MS: u64 = 3_000;
/// What a source may do, connections a second and at once, and what it tries at once.
const RATE: u32 = 5;
const BURST: u32 = 10;
const CONNECTS: u32 = 50;
/// Less than the second after which a kernel asks again.
const CONNECT_MS: u64 = 800;

/// One policy about the web Service.
fn policy(mode: &str, rule: &str) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: GatewayPolicy\nmetadata: {{ name: {NAME} }}\nspec:\n  mode: {mode}\n  \
         rules: [{{ {rule}, services: [{{ namespace: shop, name: web }}], ports: [{{ port: {WEB_PORT} }}] }}]\n"
    )
}

/// Whom a rule is for: one client by both of its addresses.
fn clients(host: u8) -> String {
    let (v4, v6) = (client_address(Family::V4, host), client_address(Family::V6, host));
    format!("clients: [{{ cidr: \"{v4}/32\" }}, {{ cidr: \"{v6}/128\" }}]")
}

/// What the gateway has counted of the rule.
fn counted(rig: &Rig) -> Result<RulingRow> {
    let name = format!("GatewayPolicy/{NAME}");
    match rig.gateway.show(Show::Policies)? {
        Shown::Policies(policies) => {
            let found = policies.rules.into_iter().find(|row| row.policy == name && row.rule == Some(0));
            found.with_context(|| format!("`show policies` has no rule 0 of {name}"))
        }
        other => bail!("asked for policies, got {other:?}"),
    }
}

/// Waits until the client gets through, or does not, in both families.
fn applied(rig: &Rig, check: &str, host: u8, through: bool, rows: &mut Vec<Row>) -> Result<()> {
    for family in FAMILIES {
        let target = VIP_WEB.at(family, WEB_PORT);
        let timeout_ms = if through { ANSWER_MS } else { REFUSED_MS };
        let mut last = String::new();
        let took = wait_until(APPLIED_LIMIT, || {
            let from = SocketAddr::new(client_address(family, host), rig.ports.take(1));
            let outcome: Outcome = rig.client("who", &way(target, from, timeout_ms))?;
            last = if outcome.ok { "answered".into() } else { format!("{} {}", outcome.failure, outcome.error) };
            Ok(outcome.ok == through && (through || outcome.failure == "timeout"))
        })?;
        let measured = took.map_or(last, |took| format!("after {} ms", took.as_millis()));
        let expected = if through { "answered" } else { "silence" };
        rows.push(Row::new(format!("{check} {family}"), measured, expected, took.is_some()));
    }
    Ok(())
}

/// Streams of one client, one of each family.
fn streams(rig: &Rig, host: u8) -> Result<Vec<(String, RunningClient)>> {
    let start = |family: Family| {
        let from = SocketAddr::new(client_address(family, host), rig.ports.take(1));
        let mut arguments = way(VIP_WEB.at(family, WEB_PORT), from, SILENCE_MS);
        arguments.extend([format!("--for-ms={STREAM_MS}"), "--tcp".into()]);
        let mut client = rig.start_client("stream", &arguments)?;
        let first = client.line()?;
        match first.trim() {
            "streaming" => Ok((format!("{family} stream of {}", from.ip()), client)),
            other => bail!("{family} stream from the start: {other}"),
        }
    };
    FAMILIES.into_iter().map(start).collect()
}

/// P-031, P-120: what GatewayPolicies do to clients of a Service, live.
pub(super) fn clients_of(rig: &mut Rig) -> Found {
    let cluster = rig.cluster()?;
    let mut rows = Vec::new();
    // In any case, or every later check would fail for this one.
    let found = denied(rig, &cluster, &mut rows)
        .and_then(|()| limited(rig, &cluster, &mut rows))
        .and_then(|()| in_audit(rig, &cluster, &mut rows))
        .and_then(|()| wrong(rig, &cluster, &mut rows));
    cluster.delete_gateway_policy(NAME)?;
    found?;
    applied(rig, "no policy:", DENIED, true, &mut rows)?;
    let refused = cluster.denied();
    rows.push(Row::new("roles", format!("{refused:?}"), "nothing denied (C-023)", refused.is_empty()));
    Ok(rows)
}

/// One client is denied beside others.
fn denied(rig: &Rig, cluster: &Cluster, rows: &mut Vec<Row>) -> Result<()> {
    let its = streams(rig, DENIED)?;
    let others = OTHERS.into_iter().map(|host| streams(rig, host)).collect::<Result<Vec<_>>>()?;
    thread::sleep(DENIED_AFTER);
    cluster.apply(&policy("Enforce", &format!("action: Deny, {}", clients(DENIED))))?;
    let denied_ms = unix_ms();
    for (name, client) in its {
        rows.push(is_stopped(format!("denied: {name}"), &client.last()?, denied_ms));
    }
    for (name, client) in others.into_iter().flatten() {
        let streamed: Streamed = client.last().with_context(|| name.clone())?;
        let pass = streamed.sent > 0 && streamed.lost == 0 && streamed.error.is_empty();
        rows.push(Row::new(format!("beside it: {name}"), told(&streamed), "nothing lost", pass));
    }
    applied(rig, "the denied client:", DENIED, false, rows)?;
    applied(rig, "another:", OTHERS[0], true, rows)?;
    let stopped = counted(rig)?.denied;
    rows.push(Row::new("counted", stopped.to_string(), "packets stopped by rule 0", stopped > 0));
    cluster.apply(&policy("Enforce", "action: Allow"))?;
    applied(rig, "taken away:", DENIED, true, rows)
}

/// A burst of connections from one source, of which the limit lets some begin.
fn limited(rig: &Rig, cluster: &Cluster, rows: &mut Vec<Row>) -> Result<()> {
    let limits = format!("limits: {{ newConnectionsPerSecond: {RATE}, burst: {BURST}, ipv6PrefixLength: 128 }}");
    cluster.apply(&policy("Enforce", &format!("action: Limit, {}, {limits}", clients(LIMITED))))?;
    // In force once a connection of this source is counted.
    let in_force = wait_until(APPLIED_LIMIT, || {
        let from = SocketAddr::new(client_address(Family::V4, LIMITED), rig.ports.take(1));
        let _: Outcome = rig.client("who", &way(VIP_WEB.at(Family::V4, WEB_PORT), from, ANSWER_MS))?;
        Ok(counted(rig).is_ok_and(|row| row.allowed > 0))
    })?;
    in_force.context("the limit does not count")?;
    // The gateway meets this client over IPv6, too, before a crowd of answers would wait for its link address.
    let from = SocketAddr::new(client_address(Family::V6, LIMITED), rig.ports.take(1));
    let _: Outcome = rig.client("who", &way(VIP_WEB.at(Family::V6, WEB_PORT), from, ANSWER_MS))?;
    // As long as it takes until the whole burst is there again.
    thread::sleep(Duration::from_secs(u64::from(BURST.div_ceil(RATE))));
    for family in FAMILIES {
        let (before, began) = (counted(rig)?, Instant::now());
        let spread: Spread = rig.client(
            "spread",
            &[
                format!("--target={}", VIP_WEB.at(family, WEB_PORT)),
                format!("--count={CONNECTS}"),
                format!("--parallel={CONNECTS}"),
                format!("--from={}", client_address(family, LIMITED)),
                format!("--first-port={}", rig.ports.take(u16::try_from(CONNECTS)?)),
                format!("--timeout-ms={CONNECT_MS}"),
            ],
        )?;
        let after = counted(rig)?;
        // What has come back to the bucket while they knocked.
        let more = u32::try_from(began.elapsed().as_millis())? * RATE / 1000 + 1;
        let (begun, stopped) = (after.allowed - before.allowed, after.denied - before.denied);
        let pass = (BURST..=BURST + more).contains(&spread.ok)
            && begun == u64::from(spread.ok)
            && stopped >= u64::from(spread.failed);
        let measured = format!("{} answered, {} not; rule: {begun} begun, {stopped} stopped", spread.ok, spread.failed);
        let expected = format!("{BURST} of {CONNECTS} and at most {more} more; the rest counted");
        rows.push(Row::new(format!("limited: {family} at once"), measured, expected, pass));
    }
    applied(rig, "beside the limit:", OTHERS[0], true, rows)
}

/// A rule in audit counts and stops nobody.
fn in_audit(rig: &Rig, cluster: &Cluster, rows: &mut Vec<Row>) -> Result<()> {
    cluster.apply(&policy("Audit", &format!("action: Deny, {}", clients(DENIED))))?;
    wait_until(APPLIED_LIMIT, || Ok(counted(rig).is_ok_and(|row| row.audit)))?.context("no rule in audit")?;
    let before = counted(rig)?;
    applied(rig, "in audit:", DENIED, true, rows)?;
    applied(rig, "in audit, another:", OTHERS[0], true, rows)?;
    let after = counted(rig)?;
    let (would, did) = (after.would_deny - before.would_deny, after.denied - before.denied);
    rows.push(Row::new("in audit: counted", would.to_string(), "2: one flow of each family", would == 2));
    rows.push(Row::new("in audit: denied", did.to_string(), "0: it was in force before, and is not now", did == 0));
    Ok(())
}

/// A wrong object says so in its condition, and what it said before holds.
fn wrong(rig: &Rig, cluster: &Cluster, rows: &mut Vec<Row>) -> Result<()> {
    cluster.apply(&policy("Enforce", &format!("action: Deny, {}", clients(DENIED))))?;
    applied(rig, "before the slip:", DENIED, false, rows)?;
    cluster.apply(&policy("Enforce", "action: Deny, clients: [{ cidr: 192.0.2.0/240 }]"))?;
    let slipped = cluster.await_gateway_policy(NAME, |policy| condition(policy)["status"] == "False")?;
    let said = condition(&slipped)["message"].as_str().unwrap_or_default().to_owned();
    let pass = said.contains("spec.rules[0].clients[0]");
    rows.push(Row::new("the slip: its condition", said, "names the field", pass));
    applied(rig, "the slip: as before", DENIED, false, rows)?;
    applied(rig, "the slip: another", OTHERS[0], true, rows)?;
    cluster.apply(&policy("Enforce", "action: Allow"))?;
    cluster.await_gateway_policy(NAME, |policy| condition(policy)["status"] == "True")?;
    applied(rig, "the slip mended:", DENIED, true, rows)
}

/// The condition `Valid` of a policy.
fn condition(policy: &serde_json::Value) -> serde_json::Value {
    let conditions = policy["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == "Valid").cloned().unwrap_or_default()
}
