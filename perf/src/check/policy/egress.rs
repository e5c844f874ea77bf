//! NetworkPolicies of pods that leave the cluster with an address of their own: judged before the source is translated
//! and for the real destination.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use super::streams::{is_stopped, told};
use super::{ANSWER_MS, APPLIED_LIMIT, POLICY, SILENCE_MS};
use crate::check::egress::{MANIFESTS, SECOND_TCP_PORT, SELECTED, arguments, begin, manifests, server};
use crate::check::{Found, Row};
use crate::client::{Outcome, Streamed, unix_ms};
use crate::enclosure;
use crate::process::{Daemon, in_namespace};
use crate::rig::{Rig, wait_until};
use crate::topology::{CLIENT, FAMILIES, Family, POD_SCTP_PORT, POD_TCP_PORT, POD_UDP_PORT};

/// What is tried: the first server over TCP, the second one, datagrams, an association, echo requests.
const WAYS: [&str; 5] = ["TCP", "TCP to another port", "UDP", "SCTP", "ping"];
/// Ports of the server that answers INITs, beside those of the other two; only that for SCTP is asked at.
const OTHER_PORTS: [u16; 2] = [8_090, 5_363];
/// How long a stream that is to be stopped goes on, and when it is denied.
const STREAM_MS: u64 = 5_000;
const DENIED_AFTER: Duration = Duration::from_millis(1_500);

fn policy(rules: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: out, namespace: shop }}\n\
         spec: {{ podSelector: {{ matchLabels: {{ role: client }} }}, policyTypes: [Egress], egress: {rules} }}\n"
    )
}

/// The pod's manifests with one more label.
fn labelled(role: &str) -> String {
    manifests().replace("labels: { leaves: by-gateway }", &format!("labels: {{ leaves: by-gateway, role: {role} }}"))
}

/// Whether something goes through, and what it said.
fn attempt(rig: &Rig, way: &str, family: Family, through: bool) -> Result<(bool, String)> {
    let timeout_ms = if through { ANSWER_MS } else { SILENCE_MS };
    let (task, port) = match way {
        "TCP" => ("who", POD_TCP_PORT),
        "TCP to another port" => ("who", SECOND_TCP_PORT),
        "UDP" => ("udp", POD_UDP_PORT),
        "SCTP" => ("associate", POD_SCTP_PORT),
        _ => ("ping", 0),
    };
    let target = SocketAddr::new(server(family)?, port);
    let arguments = match task {
        "ping" => vec![format!("--target={target}"), format!("--timeout-ms={timeout_ms}"), "--count=1".into()],
        _ => arguments(rig, SELECTED, target, timeout_ms),
    };
    let outcome: Outcome = rig.client_in(&SELECTED.name(), task, &arguments)?;
    let said = if outcome.ok { "answered".into() } else { format!("{} {}", outcome.failure, outcome.error) };
    Ok((outcome.ok == through && (through || outcome.failure == "timeout"), said))
}

/// Waits until each of [`WAYS`] goes through, or does not, in both families.
fn applied(rig: &Rig, check: &str, through: [bool; 5], rows: &mut Vec<Row>) -> Result<()> {
    for family in FAMILIES {
        for (way, through) in WAYS.into_iter().zip(through) {
            let mut said = String::new();
            let took = wait_until(APPLIED_LIMIT, || {
                let (expected, last) = attempt(rig, way, family, through)?;
                said = last;
                Ok(expected)
            })?;
            let measured = took.map_or(said.clone(), |took| format!("{said} after {} ms", took.as_millis()));
            let expected = if through { "answered" } else { "silence (P-042)" };
            rows.push(Row::new(format!("{check} {family} {way}"), measured, expected, took.is_some()));
        }
    }
    Ok(())
}

/// P-020, P-022 … P-026, P-031, P-042, T-048: whom pods with an address outside may reach, live.
pub(in crate::check) fn egress(rig: &mut Rig) -> Found {
    let _scene = begin(rig)?;
    let _signals = signals(rig)?;
    let mut rows = Vec::new();
    let put = |rules: &str| rig.manifests.put_text(POLICY, &policy(rules));
    let to = |except: bool, ports: &str| -> Result<String> {
        let mut peers = Vec::new();
        for family in FAMILIES {
            let address = server(family)?;
            let (wide, length) = if address.is_ipv4() { ("0.0.0.0/0", 32) } else { ("::/0", 128) };
            let except = if except { format!(", except: [\"{address}/{length}\"]") } else { String::new() };
            peers.push(format!("{{ ipBlock: {{ cidr: \"{wide}\"{except} }} }}"));
        }
        Ok(format!("[{{ to: [{}]{ports} }}]", peers.join(", ")))
    };
    rig.manifests.put_text(MANIFESTS, &labelled("client"))?;
    put("[{}]")?;
    applied(rig, "all allowed:", [true; 5], &mut rows)?;
    rows.extend(stopped(rig)?);
    applied(rig, "none allowed:", [false; 5], &mut rows)?;
    put(&to(false, "")?)?;
    applied(rig, "a block:", [true; 5], &mut rows)?;
    put(&to(true, "")?)?;
    applied(rig, "a block without the server:", [false; 5], &mut rows)?;
    for (check, ports, through) in [
        ("a port:", format!(", ports: [{{ port: {POD_TCP_PORT} }}]"), [true, false, false, false, false]),
        (
            "ranges:",
            format!(
                ", ports: [{{ port: {POD_TCP_PORT}, endPort: {SECOND_TCP_PORT} }}, {{ protocol: UDP, port: 5000, endPort: {POD_UDP_PORT} }}, \
                 {{ protocol: SCTP, port: 3000, endPort: {POD_SCTP_PORT} }}]"
            ),
            [true, true, true, true, false],
        ),
        ("names, which servers outside have none of:", ", ports: [{ port: http }]".into(), [false; 5]),
    ] {
        put(&to(false, &ports)?)?;
        applied(rig, check, through, &mut rows)?;
    }
    rig.manifests.put_text(MANIFESTS, &labelled("server"))?;
    applied(rig, "the pod with another label:", [true; 5], &mut rows)?;
    rig.manifests.put_text(MANIFESTS, &labelled("client"))?;
    applied(rig, "the label again:", [false; 5], &mut rows)?;
    rig.manifests.remove_text(POLICY)?;
    applied(rig, "policy gone:", [true; 5], &mut rows)?;
    rig.manifests.remove_text(MANIFESTS)?;
    Ok(rows)
}

/// A server outside that answers INITs.
fn signals(rig: &Rig) -> Result<Daemon> {
    let mut server = in_namespace(CLIENT, enclosure::this_program()?);
    let [tcp, udp] = OTHER_PORTS;
    server.args(["pod", "--name=signals", &format!("--tcp-port={tcp}"), &format!("--udp-port={udp}")]);
    server.arg(format!("--sctp-port={POD_SCTP_PORT}"));
    let mut server = Daemon::start("signals", server, &rig.lab.state_dir.join("signals.log"))?;
    server.wait_for_line("pod ready", Duration::from_secs(10))?;
    Ok(server)
}

/// P-031: streams to the outside that are denied from now on stop; and leaves that policy in place.
fn stopped(rig: &Rig) -> Found {
    let mut running = Vec::new();
    for family in FAMILIES {
        for (name, port, tcp) in [("TCP", POD_TCP_PORT, true), ("UDP", POD_UDP_PORT, false)] {
            let mut arguments = arguments(rig, SELECTED, SocketAddr::new(server(family)?, port), ANSWER_MS);
            arguments.push(format!("--for-ms={STREAM_MS}"));
            arguments.extend(tcp.then(|| "--tcp".into()));
            let mut client = rig.start_client_in(&SELECTED.name(), "stream", &arguments)?;
            let first = client.line()?;
            if first.trim() != "streaming" {
                bail!("{family} {name} stream from the start: {first}");
            }
            running.push((format!("{family} {name} stream to the outside"), client));
        }
    }
    thread::sleep(DENIED_AFTER);
    rig.manifests.put_text(POLICY, &policy("[]"))?;
    let denied_ms = unix_ms();
    let mut rows = Vec::new();
    for (name, client) in running {
        let streamed: Streamed = client.last()?;
        if streamed.last_answer_ms < denied_ms.saturating_sub(1_000) {
            bail!("{name} stopped before it was denied: {}", told(&streamed));
        }
        rows.push(is_stopped(name, &streamed, denied_ms));
    }
    Ok(rows)
}
