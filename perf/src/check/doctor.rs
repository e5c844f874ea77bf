//! `tidegate doctor` on a gateway and on a worker: nothing fails on a healthy one, and what was broken on purpose is named with
//! its value and the command that mends it. The command is then run, and the finding is gone.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::check::{Found, Row};
use crate::lab::vxlan_device;
use crate::process::{self, in_namespace};
use crate::rig::Rig;
use crate::topology::{Family, GATEWAY, workers};

const LIMIT: Duration = Duration::from_secs(20);

/// A machine that is broken in one way.
struct Break {
    /// What is broken.
    name: &'static str,
    /// Shell command that breaks it.
    by: String,
    /// Check and subject of the finding, and a part of its text.
    finding: [&'static str; 3],
    /// Verdict, as in JSON.
    verdict: &'static str,
    /// Shell command that mends it; none: the fix of the finding does.
    mended_by: Option<&'static str>,
}

/// A healthy gateway and a healthy worker; then what is broken there.
pub(super) fn looks(rig: &mut Rig) -> Found {
    let gateway = GATEWAY.to_owned();
    let worker = workers().next().context("the lab has workers")?.name();
    let config = rig.gateway.config().display().to_string();
    let as_gateway = ["--config", config.as_str()];
    let tunnel = vxlan_device(Family::V4);
    let breaks_gateway = [
        Break {
            name: "small MTU",
            by: "ip link set dev lan0 mtu 1400".into(),
            finding: ["mtu", "lan0", "MTU 1400 leaves 1350 bytes"],
            verdict: "warn",
            mended_by: None,
        },
        Break {
            name: "kube-proxy in mode ipvs",
            by: "ip link add kube-ipvs0 type bridge".into(),
            finding: ["kube-proxy", "", "arp_ignore 0"],
            verdict: "fail",
            mended_by: Some("ip link del kube-ipvs0"),
        },
        Break {
            name: "firewall",
            by: "nft add table inet f; nft add chain inet f i '{ type filter hook input priority 0; }'; \
                 nft add rule inet f i tcp dport 9 drop"
                .into(),
            finding: ["firewall", "", "chain i of table inet f at input: 1 rule and policy accept"],
            verdict: "note",
            mended_by: Some("nft delete table inet f"),
        },
        Break {
            name: "no IPv6 on a device",
            by: "ip link add fresh0 type bridge && echo 1 > /proc/sys/net/ipv6/conf/fresh0/disable_ipv6".into(),
            finding: ["address-family", "fresh0", "IPv6 is switched off"],
            verdict: "warn",
            mended_by: None,
        },
    ];
    let breaks_worker = [
        Break {
            name: "strict rp_filter",
            by: format!("echo 1 > /proc/sys/net/ipv4/conf/{tunnel}/rp_filter"),
            finding: ["rp-filter", tunnel, "rp_filter 1, of all devices 0: strict"],
            verdict: "warn",
            mended_by: None,
        },
        Break {
            name: "no forwarding, IPv4",
            by: "echo 0 > /proc/sys/net/ipv4/ip_forward".into(),
            finding: ["forwarding", "IPv4", "off"],
            verdict: "fail",
            mended_by: None,
        },
        Break {
            name: "no forwarding, IPv6",
            by: "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding".into(),
            finding: ["forwarding", "IPv6", "off"],
            verdict: "fail",
            mended_by: None,
        },
    ];
    let mut rows = vec![healthy(rig, &gateway, &as_gateway)?, healthy(rig, &worker, &["--worker"])?];
    for broken in &breaks_gateway {
        let extra = config_with(rig, "fresh0")?;
        let with_fresh = ["--config", extra.as_str()];
        let arguments = if broken.finding[1] == "fresh0" { &with_fresh } else { &as_gateway };
        rows.push(told(rig, &gateway, arguments, broken)?);
    }
    shell(&gateway, "ip link del fresh0")?;
    for broken in &breaks_worker {
        rows.push(told(rig, &worker, &["--worker"], broken)?);
    }
    rows.push(healthy(rig, &worker, &["--worker"])?);
    Ok(rows)
}

/// A copy of the node file that names another device.
fn config_with(rig: &Rig, device: &str) -> Result<String> {
    let text = std::fs::read_to_string(rig.gateway.config())?;
    let path = rig.gateway.config().with_file_name("doctor.yaml");
    std::fs::write(&path, text.replace("name: wan0", &format!("name: {device}")))?;
    Ok(path.display().to_string())
}

/// Nothing fails where nothing is broken.
fn healthy(rig: &Rig, namespace: &str, arguments: &[&str]) -> Result<Row> {
    let (findings, well) = ask(rig, namespace, arguments)?;
    let failed: Vec<String> =
        findings.iter().filter(|finding| finding["verdict"] == "fail").map(Value::to_string).collect();
    let measured = format!("{} findings, failed: {failed:?}", findings.len());
    Ok(Row::new(format!("{namespace} healthy"), measured, "exit status 0, nothing fails", well && failed.is_empty()))
}

/// Breaks, asks, mends by the finding's own command where it has one, and asks again.
fn told(rig: &Rig, namespace: &str, arguments: &[&str], broken: &Break) -> Result<Row> {
    let [check, subject, part] = broken.finding;
    let of_it = |findings: &[Value]| {
        let is_it = |finding: &&Value| {
            finding["check"] == check
                && finding["subject"] == subject
                && finding["found"].as_str().unwrap_or("").contains(part)
        };
        findings.iter().find(is_it).cloned()
    };
    shell(namespace, &broken.by)?;
    let asked = ask(rig, namespace, arguments);
    let fix = match (broken.mended_by, &asked) {
        (Some(fix), _) => fix.to_owned(),
        (None, Ok((findings, _))) => {
            of_it(findings).and_then(|finding| Some(finding["fix"].as_str()?.to_owned())).unwrap_or_default()
        }
        (None, Err(_)) => String::new(),
    };
    // The alternative that a finding may name behind a comma is for people.
    shell(namespace, fix.split(", or ").next().unwrap_or_default())?;
    let (findings, well) = asked?;
    let finding = of_it(&findings).unwrap_or_default();
    let after = of_it(&ask(rig, namespace, arguments)?.0);
    let pass = finding["verdict"] == broken.verdict && (broken.verdict != "fail" || !well) && after.is_none();
    let measured = format!("{} ({}); mended by {fix:?}: {}", finding["found"], finding["verdict"], after.is_none());
    Ok(Row::new(
        format!("{namespace} {}", broken.name),
        measured,
        format!("{}, and gone after its fix", broken.verdict),
        pass,
    ))
}

/// Findings on a machine, and whether the exit status says that all is well.
fn ask(rig: &Rig, namespace: &str, arguments: &[&str]) -> Result<(Vec<Value>, bool)> {
    let mut command = in_namespace(namespace, rig.gateway.program("tidegate"));
    command.args(["doctor", "--json"]).args(arguments);
    let finished = process::run(command, "", LIMIT)?;
    let findings = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("doctor in {namespace}: {} {}", finished.stdout, finished.stderr))?;
    Ok((findings, finished.status.success()))
}

fn shell(namespace: &str, line: &str) -> Result<()> {
    let mut command = in_namespace(namespace, "sh");
    command.args(["-c", line]);
    process::run(command, "", LIMIT)?.success(line)?;
    Ok(())
}
