//! Checks of serving: HTTP, curl, echo requests, UDP, the spread over pods, large transfers.

use std::time::Duration;

use crate::check::{Found, Row};
use crate::client::Outcome;
use crate::content::Checksum;
use crate::process::{self, in_namespace};
use crate::rig::Rig;
use crate::topology::{
    CLIENT, ECHO_PORT, FAMILIES, FULLNAT_V4, FULLNAT_V6, POD_TCP_PORT, PODS, Pod, VIP_ECHO, VIP_ONLINK, VIP_WEB,
    WEB_PORT,
};

/// Connections of the spread (S-051).
const CONNECTIONS: u32 = 3000;
/// Size of the large transfers in bytes.
const LARGE_BYTES: u64 = 64 << 20;
/// Size of curl's download in bytes.
const CURL_BYTES: u64 = 1_000_000;
/// Longest life of curl.
const CURL_LIMIT: Duration = Duration::from_secs(30);

/// What an exchange came to, for the table.
pub(super) fn told(outcome: &Outcome) -> String {
    if outcome.ok {
        format!("{} in {} ms", outcome.pod, outcome.took_ms)
    } else {
        format!("{} after {} ms: {}", outcome.failure, outcome.took_ms, outcome.error)
    }
}

/// The lab by itself: pod to pod of another worker through the kernel's VXLAN devices.
pub(super) fn overlay(_rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        let (asking, asked) = (Pod { number: 1 }, Pod { number: PODS });
        let target = std::net::SocketAddr::new(asked.address(family), POD_TCP_PORT);
        let mut command = in_namespace(&asking.name(), crate::enclosure::this_program()?);
        command.args(["client", "who", &format!("--target={target}")]);
        let text = process::run(command, "", CURL_LIMIT)?.success("client who")?;
        let outcome: Outcome = serde_json::from_str(&text)?;
        let source = outcome.who.as_ref().map(|who| who.remote.ip());
        let pass = outcome.pod == asked.name() && source == Some(asking.address(family));
        rows.push(Row::new(format!("{family} p1 to p6"), told(&outcome), "p6 answers, sees p1's address", pass));
    }
    Ok(rows)
}

/// HTTP through a routed and an on-link VIP; the pod must see the gateway's reserved address (V-024).
pub(super) fn http(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        for (kind, vip) in [("routed", VIP_WEB), ("on-link", VIP_ONLINK)] {
            let outcome = rig.who(vip.at(family, WEB_PORT), 3000)?;
            let seen = outcome.who.as_ref().map(|who| who.remote.ip());
            let expected = family.pick(FULLNAT_V4, FULLNAT_V6);
            let measured = match seen {
                Some(seen) => format!("{}, saw {seen}", told(&outcome)),
                None => told(&outcome),
            };
            let check = format!("{family} {kind} VIP {}", vip.of(family));
            rows.push(Row::new(
                check,
                measured,
                format!("answer; pod sees {expected} (V-024)"),
                seen == Some(expected),
            ));
        }
    }
    Ok(rows)
}

/// An independent client: curl downloads through the VIP and the content is compared here.
pub(super) fn curl(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        let file = rig.lab.state_dir.join("curl.body");
        let url = format!("http://{}/bytes/{CURL_BYTES}", VIP_WEB.at(family, WEB_PORT));
        let mut command = in_namespace(CLIENT, "curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "20", "--write-out", "%{http_code}"]);
        command.arg("--output").arg(&file).arg(&url);
        let finished = process::run(command, "", CURL_LIMIT)?;
        let mut sum = Checksum::default();
        sum.add(&std::fs::read(&file).unwrap_or_default());
        let pass = finished.status.success() && sum.text() == crate::content::expected(CURL_BYTES);
        let measured = format!("{}{}, checksum {}", finished.stdout, finished.stderr.trim(), sum.text());
        rows.push(Row::new(format!("{family} {url}"), measured, "200, content as sent", pass));
        // The next family writes its own.
        drop(std::fs::remove_file(&file));
    }
    Ok(rows)
}

/// Echo requests to a routed and an on-link VIP (S-074).
pub(super) fn ping(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        for vip in [VIP_WEB, VIP_ONLINK] {
            let outcome: Outcome = rig.client("ping", &[format!("--target={}", vip.at(family, 0))])?;
            let measured = if outcome.ok { format!("3 of 3 in {} ms", outcome.took_ms) } else { told(&outcome) };
            rows.push(Row::new(
                format!("{family} {}", vip.of(family)),
                measured,
                "3 of 3 answered (S-074)",
                outcome.ok,
            ));
        }
    }
    Ok(rows)
}

/// A datagram through a VIP; the same source port stays with its pod.
pub(super) fn udp(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        let way = rig.way(VIP_ECHO.at(family, ECHO_PORT), 2000);
        let first: Outcome = rig.client("udp", &way)?;
        let second: Outcome = rig.client("udp", &way)?;
        let pass = first.ok && second.ok && first.pod == second.pod;
        let measured = format!("{}, then {}", told(&first), told(&second));
        rows.push(Row::new(format!("{family} {}", VIP_ECHO.of(family)), measured, "same pod twice", pass));
    }
    Ok(rows)
}

/// 3,000 connections, each from a source of its own: all answered, each pod's share within 10 % (S-051).
pub(super) fn spread(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        let spread = rig.spread(VIP_WEB.at(family, WEB_PORT), CONNECTIONS)?;
        let fair = CONNECTIONS / u32::from(PODS);
        let (least, most) = (fair - fair / 10, fair + fair / 10);
        let counts: Vec<u32> = spread.by_pod.values().copied().collect();
        let pass = spread.failed == 0
            && counts.len() == usize::from(PODS)
            && counts.iter().all(|count| (least..=most).contains(count));
        let failed = spread.errors.first().map(|error| format!(", {} failed: {error}", spread.failed));
        let measured = format!("{counts:?} in {} ms{}", spread.took_ms, failed.unwrap_or_default());
        let expected = format!("{least} to {most} each, none fails (S-051)");
        rows.push(Row::new(format!("{family} {CONNECTIONS} connections"), measured, expected, pass));
    }
    Ok(rows)
}

/// A large download and a large upload, every byte compared.
pub(super) fn transfer(rig: &mut Rig) -> Found {
    let mut rows = Vec::new();
    for family in FAMILIES {
        for task in ["download", "upload"] {
            let mut arguments = rig.way(VIP_WEB.at(family, WEB_PORT), 10_000);
            arguments.push(format!("--bytes={LARGE_BYTES}"));
            let outcome: Outcome = rig.client(task, &arguments)?;
            let rate = LARGE_BYTES / 1000 / outcome.took_ms.max(1);
            let measured = if outcome.ok { format!("{}, {rate} MB/s", told(&outcome)) } else { told(&outcome) };
            let expected = format!("{} MiB, checksum equal", LARGE_BYTES >> 20);
            rows.push(Row::new(format!("{family} {task}"), measured, expected, outcome.ok));
        }
    }
    Ok(rows)
}
