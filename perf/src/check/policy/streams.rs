//! Streams of numbered messages through VIPs while policies change: what is denied stops, what is allowed loses nothing.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tidegate_api::show::{Show, Shown};

use super::{APPLIED_LIMIT, FRIEND, PODS, POLICY, STRANGER, WEB, applied, from, pod_objects, policy, signal};
use crate::check::{Found, Row};
use crate::client::{Streamed, unix_ms};
use crate::rig::{Rig, RunningClient};
use crate::topology::{
    ECHO_PORT, FAMILIES, Family, POD_TCP_PORT, POD_UDP_PORT, VIP_ECHO, VIP_WEB, WEB_PORT, client_address,
};

/// How often policies change, and how many times: a minute.
const FLIP: Duration = Duration::from_millis(100);
const FLIPS: u32 = 600;
/// Longer than the changes take; the rest is for a machine that does other work.
const STANDS_MS: u64 = 66_000;
/// Of a stream that is stopped: how long it goes on asking, and when it is denied.
const STOPPED_MS: u64 = 5_000;
const DENIED_AFTER: Duration = Duration::from_millis(1_500);
/// Silence after which nothing more is waited for, milliseconds.
const SILENCE_MS: u64 = 3_000;

/// A stream and what it is called.
type Running = (String, RunningClient);

/// A stream of each family and protocol, of the client that policies speak of.
fn start(rig: &Rig, for_ms: u64) -> Result<Vec<Running>> {
    let mut running = Vec::new();
    for family in FAMILIES {
        for (name, target, tcp) in
            [("TCP", VIP_WEB.at(family, WEB_PORT), true), ("UDP", VIP_ECHO.at(family, ECHO_PORT), false)]
        {
            let mut arguments = rig.way(target, SILENCE_MS);
            arguments.push(format!("--for-ms={for_ms}"));
            arguments.extend(tcp.then(|| "--tcp".into()));
            let mut client = rig.start_client("stream", &arguments)?;
            let first = client.line()?;
            if first.trim() != "streaming" {
                bail!("{family} {name} stream from the start: {first}");
            }
            running.push((format!("{family} {name} stream"), client));
        }
    }
    Ok(running)
}

pub(in crate::check) fn told(streamed: &Streamed) -> String {
    let Streamed { sent, lost, longest_gap_ms, error, .. } = streamed;
    format!("{lost} of {sent} lost, silent for {longest_gap_ms} ms at most {error}")
}

/// P-031: streams that a policy denies from now on stop; and leaves that policy in place.
pub(super) fn stopped(rig: &Rig) -> Found {
    let running = start(rig, STOPPED_MS)?;
    thread::sleep(DENIED_AFTER);
    rig.manifests.put_text(POLICY, &policy("web", "[]"))?;
    let denied_ms = unix_ms();
    running.into_iter().map(|(name, client)| Ok(is_stopped(name, &client.last()?, denied_ms))).collect()
}

/// Whether a stream's last answer came early enough after the change.
pub(in crate::check) fn is_stopped(name: String, streamed: &Streamed, denied_ms: u64) -> Row {
    let after = i128::from(streamed.last_answer_ms) - i128::from(denied_ms);
    let limit = APPLIED_LIMIT.as_millis();
    let pass = streamed.last_answer_ms > 0 && streamed.lost > 0 && after <= i128::try_from(limit).unwrap_or(0);
    Row::new(
        name,
        format!("last answer after {after} ms, {}", told(streamed)),
        format!("within {limit} ms (P-031)"),
        pass,
    )
}

/// The digest of all that is enforced.
fn digest(rig: &Rig) -> Result<String> {
    match rig.gateway.show(Show::Policies)? {
        Shown::Policies(policies) => Ok(policies.digest),
        other => bail!("asked for policies, got {other:?}"),
    }
}

/// Packets that policies dropped so far.
fn denied(rig: &Rig) -> Result<u64> {
    match rig.gateway.show(Show::Drops)? {
        Shown::Drops(rows) => {
            Ok(rows.iter().filter(|row| row.reason.starts_with("PolicyDenied")).map(|row| row.packets).sum())
        }
        other => bail!("asked for drops, got {other:?}"),
    }
}

/// What the policies are after so many changes. Every one of them lets the streams through, each for another reason.
fn variant(flip: u32) -> String {
    let own = format!("[{{ port: {POD_TCP_PORT} }}, {{ protocol: UDP, port: {POD_UDP_PORT} }}]");
    let stranger = from(STRANGER, "[]");
    let by_turn = policy("turns", &from(FRIEND, "[{ port: http }, { protocol: UDP, port: dns }]"));
    let cluster = |priority: u32| {
        let peer = "namespaces: { matchLabels: { kubernetes.io/metadata.name: shop } }";
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{ name: between }}\n\
             spec: {{ tier: Admin, priority: {priority}, subject: {{ {peer} }}, \
             ingress: [{{ action: Deny, from: [{{ {peer} }}] }}] }}\n"
        )
    };
    match flip % 6 {
        0 => policy("web", "[{}]"),
        1 => policy("web", &from(FRIEND, &own)),
        2 => [policy("web", "[]"), policy("other", &from(FRIEND, "[]")), cluster(flip % 7)].join("---\n"),
        3 => [policy("web", &stranger), by_turn].join("---\n"),
        4 => {
            let range = "[{ port: 8000, endPort: 9000 }, { protocol: UDP, port: 5000, endPort: 6000 }]";
            [policy("web", &from(FRIEND, range)), policy("other", &stranger), cluster(3)].join("---\n")
        }
        _ => {
            let (v4, v6) = (client_address(Family::V4, STRANGER), client_address(Family::V6, STRANGER));
            policy(
                "web",
                &format!(
                    "[{{ from: [{{ ipBlock: {{ cidr: 0.0.0.0/0, except: [\"{v4}/32\"] }} }}, \
                     {{ ipBlock: {{ cidr: \"::/0\", except: [\"{v6}/128\"] }} }}] }}]"
                ),
            )
        }
    }
}

/// P-035: six sets of policies that all allow the streams take turns for a minute, and pods are relabelled meanwhile, so
/// that they become others to policies; nothing is lost. Then the streams of P-031.
pub(in crate::check) fn flips(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    rig.manifests.put(&signal())?;
    rig.manifests.put_text(PODS, &pod_objects(WEB))?;
    rig.manifests.put_text(POLICY, &variant(1))?;
    applied(rig, "before:", STRANGER, false, &mut rows)?;
    let running = start(rig, STANDS_MS)?;
    let (denied_before, began) = (denied(rig)?, Instant::now());
    let mut digests = BTreeSet::new();
    for flip in 0..FLIPS {
        rig.manifests.put_text(POLICY, &variant(flip))?;
        if flip % 7 == 3 {
            rig.manifests.put_text(PODS, &pod_objects(&format!("{WEB}, turn: t{}", flip % 5)))?;
        }
        if flip % 23 == 0 {
            digests.insert(digest(rig)?);
        }
        thread::sleep((FLIP * (flip + 1)).saturating_sub(began.elapsed()));
    }
    let measured = format!("{} states seen in {} looks, {} s", digests.len(), FLIPS / 23, began.elapsed().as_secs());
    rows.push(Row::new(format!("{FLIPS} changes"), measured, "several states seen", digests.len() >= 4));
    for (name, client) in running {
        let streamed: Streamed = client.last().with_context(|| name.clone())?;
        let pass = streamed.sent > 0 && streamed.lost == 0 && streamed.error.is_empty();
        rows.push(Row::new(name, told(&streamed), "nothing lost (P-035)", pass));
    }
    let denied = denied(rig)? - denied_before;
    rows.push(Row::new("packets dropped by policies", denied.to_string(), "0 (P-035)", denied == 0));
    rig.manifests.put_text(POLICY, &variant(1))?;
    rows.extend(stopped(rig)?);
    rig.manifests.remove_text(POLICY)?;
    rig.manifests.remove_text(PODS)?;
    applied(rig, "policies gone:", STRANGER, true, &mut rows)?;
    rig.manifests.delete(&signal())?;
    Ok(rows)
}
