//! The checks of the demo: each asks the lab something from outside and compares the answer with the specification.
//!
//! Owns the list of checks and their table; each check lives in the file of its subject. A check leaves the rig as it
//! found it. What cannot be checked has failed: nothing is skipped.

use std::time::Instant;

use crate::rig::Rig;

/// Serving: every way through a VIP that must work on a quiet day.
mod serving;
/// Change: endpoints and Services that come and go.
mod change;
/// The operator's view: `tidegate show`.
mod operator;
/// The operator's machines: `tidegate doctor`.
mod doctor;
/// Broken set-ups, and the tools that name them.
pub mod broken;
/// A real Prometheus, the dashboard and the alerts.
pub mod prometheus;
/// Commands of the documents, typed at the gateway.
mod documented;
/// Watching: `tidegate capture` and `tidegate top`.
mod watching;
/// Flow export, heard by a collector.
mod flows;
/// Nodes: Services whose pods see the client.
mod nodes;
/// A worker that dies without a word.
mod dead;
/// Egress: pods that leave the cluster with an address of their policy.
mod egress;
/// Static NAT: addresses and ports that are always the same pod's.
mod fixed;
/// The same by the API, and with two gateways of which one dies.
mod carrier;
/// Edges of egress: hops, sizes, fragments, and what a NAT looks like from outside.
mod edges;
/// Services whose pods see the client and answer through the gateway.
mod symmetric;
/// Policy: whom network policies let through.
mod policy;
/// Gateway policies: which clients may reach a Service, and how often.
mod gatepolicy;
/// Ending: pods that are replaced on their own node, and pods that all terminate.
mod ending;
/// Accounting: a flood and the counters of everyone who saw it.
mod accounting;
/// The generator of one's own choice, with the gateway between its two ends.
mod pktgen;
/// Outage: programs that die or hang.
mod outage;
/// Cluster: control follows an API server.
mod cluster;
/// Gateways: two of them, of which one dies, hangs, is cut off or drained.
mod gateways;
/// Routes: VIPs reach a router by BGP, and leave it when the gateway should not be used.
mod routes;

/// One line of the demo's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What was looked at.
    pub check: String,
    /// What was found.
    pub measured: String,
    /// What should be found, with the clause of the specification.
    pub expected: String,
    /// Whether the two agree.
    pub pass: bool,
}

impl Row {
    /// A line of the table.
    pub fn new(check: impl Into<String>, measured: impl Into<String>, expected: impl Into<String>, pass: bool) -> Row {
        Row { check: check.into(), measured: measured.into(), expected: expected.into(), pass }
    }
}

/// What a check found, or why it could not look.
pub type Found = anyhow::Result<Vec<Row>>;

/// Where control takes its objects from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests.
    Directory,
    /// An API server.
    Cluster,
}

/// A named check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Name for `tidegate-lab check`.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Whether the gateway must run.
    pub needs_gateway: bool,
    /// Gateways the lab must have.
    pub gateways: u32,
    /// Where control takes its objects from.
    pub source: Source,
    /// Whether it is part of the demo.
    pub in_demo: bool,
    /// The check itself.
    run: fn(&mut Rig) -> Found,
}

const fn check(name: &'static str, about: &'static str, run: fn(&mut Rig) -> Found) -> Check {
    Check { name, about, needs_gateway: true, gateways: 1, source: Source::Directory, in_demo: true, run }
}

const fn check_of_two(name: &'static str, about: &'static str, run: fn(&mut Rig) -> Found) -> Check {
    Check { gateways: 2, ..check(name, about, run) }
}

const fn check_of_cluster(name: &'static str, about: &'static str, run: fn(&mut Rig) -> Found) -> Check {
    Check { source: Source::Cluster, in_demo: false, ..check(name, about, run) }
}

/// All checks, in the order of the demo.
pub const CHECKS: &[Check] = &[
    Check {
        name: "overlay",
        about: "the workers' own VXLAN, pod to pod",
        needs_gateway: false,
        gateways: 1,
        source: Source::Directory,
        in_demo: true,
        run: serving::overlay,
    },
    check("http", "HTTP through routed and on-link VIPs; whom the pod saw", serving::http),
    check("curl", "the same with curl", serving::curl),
    check("ping", "echo requests to VIPs", serving::ping),
    check("udp", "UDP through a VIP", serving::udp),
    check("spread", "3,000 connections over 6 pods", serving::spread),
    check("transfer", "large download and upload", serving::transfer),
    check("show", "every question of `tidegate show`", operator::show),
    check("explain", "what `tidegate explain` says, and what then happens", operator::explain),
    check("metrics", "counters for Prometheus", operator::metrics),
    check("doctor", "what `tidegate doctor` says of healthy machines and of broken ones", doctor::looks),
    Check { in_demo: false, ..check("broken", "broken set-ups: a tool names the object and both values", broken::all) },
    Check {
        in_demo: false,
        ..check_of_two("broken-gateways", "the same of two gateways that do not agree", broken::of_two)
    },
    check("capture", "what `tidegate capture` writes, read by tcpdump; overload, SIGKILL", watching::capture),
    Check {
        in_demo: false,
        ..check("flow-export", "flows told in files and over IPFIX, read by nfcapd", flows::export)
    },
    check("top", "one frame of `tidegate top` about each subject", watching::top),
    Check {
        in_demo: false,
        ..check("documented", "commands of the documents, typed at the gateway", documented::typed)
    },
    check("flood", "64-byte frames counted by the generator, the sockets and the pinhole", accounting::flood),
    Check {
        in_demo: false,
        ..check("pktgen", "the generator of one's own choice: trial, search, connections", pktgen::pktgen)
    },
    check("syn-flood", "SYNs of made-up clients while connections stand", accounting::syn_flood),
    check("endpoint-removed", "running downloads continue, new connections avoid it", change::endpoint_removed),
    check("udp-reselect", "UDP with a fixed source port finds another pod", change::udp_reselects),
    check("no-endpoints", "a Service without endpoints refuses at once", change::no_endpoints),
    check("nodes", "node-dsr: pods see the client, load is even", nodes::kept),
    check("node-strict", "a node with a strict rp_filter leaves the set", nodes::strict),
    check("node-rules", "a node whose kube-proxy does not know the VIP leaves the set", nodes::without_rules),
    check("node-moves", "the only endpoint moves from node to node, TCP and UDP", nodes::moves),
    check("node-dies", "a worker falls silent: new connections avoid it, both modes", dead::worker),
    check("node-cycled", "UDP with a fixed source port while the pod is swapped on its node", ending::cycled),
    check("terminating", "pods that all terminate still serve, both modes", ending::terminating),
    check("rolling", "a rolling update of all pods under load, both modes", nodes::rolling),
    check("new-service", "a Service added to the directory answers", change::new_service),
    check("policy", "NetworkPolicies at the gateway, live, with connections that stand", policy::ingress),
    check("policy-egress", "NetworkPolicies of pods that leave with their policy's address", policy::egress),
    Check {
        in_demo: false,
        ..check("policy-flips", "streams stand for a minute while policies change ten times a second", policy::flips)
    },
    check("egress", "pods leave with their policy's address, flannel's rules present", egress::leaves),
    check("egress-closed", "no gateway: selected pods do not get out some other way", egress::fails_closed),
    check("egress-edges", "pods' traceroute, path MTU, fragments, simultaneous open, STUN", edges::all),
    check("egress-routed", "an address of a policy that a router sends to the gateway", edges::routed),
    check("static-nat", "a pod with an address of its own, and forwarded ports; flannel's rules present", fixed::nat),
    check("symmetric", "pods see clients, answers return through the gateway by the agent", symmetric::kept),
    check("control-killed", "SIGKILL of control", outage::control_killed),
    check("dataplane-stopped", "SIGSTOP of the dataplane", outage::dataplane_stopped),
    check("dataplane-killed", "SIGKILL of the dataplane", outage::dataplane_killed),
    check("routes-bird", "VIPs by BGP: BIRD on the gateway, FRR on the router", routes::bird),
    check("routes-frr", "VIPs by BGP: FRR on the gateway, BIRD on the router", routes::frr),
    check_of_two("gateway-killed", "SIGKILL of one of two gateways' dataplanes", gateways::killed),
    check_of_two("gateway-stopped", "SIGSTOP of one of two gateways' dataplanes", gateways::stopped),
    check_of_two("gateways-cut", "heartbeats between two gateways are cut, and come back", gateways::cut),
    check_of_two("gateway-drained", "planned drains of two gateways in turn, node-dsr under load", gateways::drained),
    check_of_two("egress-takeover", "SIGKILL of the gateway that carries a policy's address", carrier::takeover),
    check_of_two("stranger", "a machine on the link answers for a VIP", gateways::stranger),
    Check {
        in_demo: true,
        ..check_of_cluster("cluster-new", "a Service of the API gets addresses and answers", cluster::new)
    },
    check_of_cluster(
        "prometheus",
        "a real Prometheus: both pages, the dashboard's queries, alerts",
        prometheus::scraped,
    ),
    check_of_cluster("egress-cluster", "an EgressPolicy of the API, and an agent that follows it", carrier::by_api),
    Check {
        in_demo: true,
        ..check_of_cluster(
            "gateway-policy",
            "GatewayPolicies of the API: deny, limit, audit, a slip",
            gatepolicy::clients_of,
        )
    },
    check_of_cluster("cluster-changes", "ports, endpoints, type and fields of a Service of the API", cluster::changes),
    check_of_cluster("cluster-rolling", "a rolling update through the API under load, both modes", nodes::rolling),
    check_of_cluster("cluster-outage", "the API server goes away under load, control restarts", cluster::outage),
    check_of_cluster("cluster-crowd", "SIGKILL of control while it gives out addresses", cluster::crowd),
    check("books", "every packet is accounted for after all that", accounting::balance),
];

/// The check with this name.
pub fn find(name: &str) -> Option<&'static Check> {
    CHECKS.iter().find(|check| check.name == name)
}

impl Check {
    /// Runs the check, starting the gateway's programs first if they do not run. Never fails: what goes wrong is a row.
    pub fn run(&self, rig: &mut Rig) -> Vec<Row> {
        let began = Instant::now();
        let mut found = rig.take_objects_from(self.source);
        if self.needs_gateway {
            found = found.and_then(|()| rig.gateway.revive());
        }
        if let Some(second) = rig.second.as_mut().filter(|_| self.needs_gateway) {
            found = found.and_then(|()| second.revive());
        }
        let mut rows = match found.and_then(|()| (self.run)(rig)) {
            Ok(rows) => rows,
            Err(error) => vec![Row::new("ran", format!("{error:#}"), "can be checked", false)],
        };
        if rows.is_empty() {
            rows.push(Row::new("ran", "nothing", "a measurement", false));
        }
        for row in &mut rows {
            row.check = format!("{}: {}", self.name, row.check);
        }
        let verdict = if rows.iter().all(|row| row.pass) { "pass" } else { "FAIL" };
        eprintln!("{:>8.1} s  {verdict}  {}: {}", began.elapsed().as_secs_f32(), self.name, self.about);
        rows
    }
}

/// Longest text of a measurement in the table, in characters; the rest of a failure is printed below it.
pub const MEASURED_MAX: usize = 96;

/// A measurement as the table shows it: its first line, cut.
fn in_short(measured: &str) -> String {
    let line = measured.lines().next().unwrap_or_default();
    let short: String = line.chars().take(MEASURED_MAX).collect();
    if short.len() < line.len() { short + " …" } else { short }
}

/// The rows as a table with aligned columns.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![["check".to_string(), "measured".into(), "expected".into(), String::new()]];
    for row in rows {
        let verdict = if row.pass { "PASS" } else { "FAIL" };
        lines.push([row.check.clone(), in_short(&row.measured), row.expected.clone(), verdict.into()]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let mut text = String::new();
    for (number, [check, measured, expected, verdict]) in lines.iter().enumerate() {
        let [first, second, third] = widths;
        text += &format!("{check:first$} | {measured:second$} | {expected:third$} | {verdict}\n");
        if number == 0 {
            let rule = [first + 1, second + 2, third + 2, 5].map(|width| "-".repeat(width)).join("+");
            text += &format!("{rule}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up() {
        let rows = [Row::new("a", "1", "one", true), Row::new("longer", "2\nmore", "two", false)];
        let text = table(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0].find('|'), lines[3].find('|'));
        assert!(lines[2].ends_with("PASS") && lines[3].ends_with("FAIL"));
    }

    #[test]
    fn long_measurements_are_cut() {
        let rows = [Row::new("a", "ü".repeat(500), "short", false)];
        assert!(table(&rows).lines().all(|line| line.chars().count() < MEASURED_MAX + 40));
    }

    #[test]
    fn names_are_unique() {
        for check in CHECKS {
            assert_eq!(CHECKS.iter().filter(|other| other.name == check.name).count(), 1, "{}", check.name);
            assert!(find(check.name).is_some());
        }
    }
}
