//! What else on this machine handles packets: kube-proxy, the CNI's masquerading, firewalls; and what control complains of.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tidegate_dataplane::config::NodeFile;

use super::fine;
use crate::{Finding, Machine, Verdict};

/// Rules of nf_tables, read from what nft(8) prints.
mod ruleset;

/// The device on which kube-proxy in mode ipvs holds addresses of Services.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// Chains and tables of CNIs that change the sources of pods' packets.
const MASQUERADERS: [(&str, &str); 5] = [
    ("FLANNEL-POSTRTG", "flannel"),
    ("flannel-ipv4", "flannel"),
    ("flannel-ipv6", "flannel"),
    ("cali-nat-outgoing", "Calico"),
    ("CILIUM_POST_nat", "Cilium"),
];

/// What rules that change sources have in them: nf_tables' own, and targets of iptables as nft(8) prints those.
const CHANGES_SOURCE: [&str; 4] = ["masquerade", "snat ", "MASQUERADE", "\"SNAT\""];
/// The table of `tidegate-node`'s exemptions.
const AGENT_TABLE: &str = "tidegate-node";
/// Rules that are named; of more, how many there are.
const NAMED_MAX: usize = 4;
/// Control's list of problems.
const PROBLEMS_FILE: &str = "problems.json";
/// Problems of control that are told one by one.
const PROBLEMS_MAX: usize = 16;

pub fn on_gateway(machine: &Machine, file: &NodeFile) -> Vec<Finding> {
    let mut findings: Vec<Finding> = kube_proxy(machine).into_iter().collect();
    findings.push(firewall(machine.rules()));
    findings.extend(state(machine, file));
    findings
}

pub fn on_worker(machine: &Machine) -> Vec<Finding> {
    kube_proxy(machine).into_iter().chain([masquerade(machine.rules(), |is_v4| machine.own_address(is_v4))]).collect()
}

/// Whether kube-proxy makes this machine answer for VIPs (its `strictARP` sets these two settings).
fn kube_proxy(machine: &Machine) -> Option<Finding> {
    let has_addresses = machine.devices().iter().any(|device| device == IPVS_DEVICE);
    match (machine.kube_proxy_mode(), has_addresses) {
        (None, false) => None,
        (mode, true) => {
            let setting = |name: &str| machine.network_setting(&format!("ipv4/conf/all/{name}")).unwrap_or(0);
            let (ignore, announce) = (setting("arp_ignore"), setting("arp_announce"));
            let mode = mode.unwrap_or_else(|| "ipvs".into());
            let found = format!("mode {mode}, {IPVS_DEVICE} is there, arp_ignore {ignore}, arp_announce {announce}");
            if ignore >= 1 && announce >= 2 {
                return Some(fine("kube-proxy", "", found));
            }
            let fix = "set ipvs.strictARP: true in kube-proxy's configuration and restart it";
            Some(Finding::new("kube-proxy", "", Verdict::Fail, format!("{found}: it answers for VIPs")).mended_by(fix))
        }
        (Some(mode), false) => Some(fine("kube-proxy", "", format!("mode {mode}"))),
    }
}

/// Rules that packets on AF_XDP never meet.
fn firewall(rules: io::Result<String>) -> Finding {
    let rules = match rules {
        Ok(rules) => rules,
        Err(error) => return not_listed("firewall", &error),
    };
    let hooks = ["input", "forward", "prerouting", "ingress"];
    let chains = ruleset::chains(&rules);
    let passed_by = chains.iter().filter(|chain| {
        chain.kind == "filter" && hooks.contains(&chain.hook) && (chain.policy == "drop" || !chain.rules.is_empty())
    });
    let told: Vec<String> = passed_by
        .map(|chain| {
            let first = chain.rules.first().map(|rule| format!(", the first: {rule}")).unwrap_or_default();
            let rules = if chain.rules.len() == 1 { "rule" } else { "rules" };
            let (count, policy) = (chain.rules.len(), chain.policy);
            format!("{} at {}: {count} {rules} and policy {policy}{first}", chain.place(), chain.hook)
        })
        .collect();
    if told.is_empty() {
        return fine("firewall", "", "no filter rules that gateway traffic would pass by");
    }
    let found = format!("{}; traffic that Tidegate handles meets none of them", some(&told));
    Finding::new("firewall", "", Verdict::Note, found).mended_by(
        "say the same in a GatewayPolicy or NetworkPolicy; the rules go on holding for the kernel's own traffic",
    )
}

fn not_listed(check: &'static str, error: &io::Error) -> Finding {
    Finding::new(check, "", Verdict::Note, format!("rules cannot be listed with nft(8): {error}"))
}

/// The first few, and how many more there are.
fn some(told: &[String]) -> String {
    let mut text = told.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join("; ");
    if let Some(more) = told.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        text += &format!("; and {more} more");
    }
    text
}

/// Who changes sources of pods' packets. `own`: the address that this machine's packets of a family (true: IPv4) leave with.
fn masquerade(rules: io::Result<String>, own: impl Fn(bool) -> Option<IpAddr>) -> Finding {
    let rules = match rules {
        Ok(rules) => rules,
        Err(error) => return not_listed("masquerade", &error),
    };
    let chains = ruleset::chains(&rules);
    let of_cni = chains.iter().filter_map(|chain| {
        let is_it = |(name, _): &&(&str, &str)| [chain.name, chain.table_name()].contains(name);
        let (_, cni) = MASQUERADERS.iter().find(is_it)?;
        let changes = |rule: &&&str| CHANGES_SOURCE.iter().any(|word| rule.contains(word));
        Some((*cni, chain, *chain.rules.iter().find(changes)?))
    });
    let of_cni: Vec<_> = of_cni.collect();
    let Some((cni, chain, _)) = of_cni.first() else { return fine("masquerade", "", "no CNI's rules for it") };
    if chains.iter().any(|chain| chain.table_name() == AGENT_TABLE) {
        return fine("masquerade", "", format!("{cni}'s ({}), with exemptions by tidegate-node", chain.place()));
    }
    let told = of_cni.iter().map(|(cni, chain, rule)| {
        // A table of both families is told with the address of IPv4.
        let address = own(!chain.table.starts_with("ip6 ")).map(|address| format!(" {address}")).unwrap_or_default();
        format!(
            "{cni}'s rule in {} ({rule}) gives pods' packets the node's address{address} instead of their own",
            chain.place()
        )
    });
    let told: Vec<String> = told.collect();
    let found = format!("{}; 0 exemptions by tidegate-node", some(&told));
    Finding::new("masquerade", "", Verdict::Note, found)
        .mended_by("where egress policies select pods of this node, run tidegate-node here")
}

/// What control wrote down: problems with objects, and conditions of Services that do not hold.
fn state(machine: &Machine, file: &NodeFile) -> Vec<Finding> {
    let relative = |path: &Path| path.strip_prefix("/").unwrap_or(path).display().to_string();
    let directory = file.state_dir.join("status");
    let list = directory.join(PROBLEMS_FILE);
    let text = match machine.read(&relative(&list)) {
        Ok(Some(text)) => text,
        // No control has been here.
        Ok(None) => return Vec::new(),
        Err(error) => return vec![Finding::new("state", list.display().to_string(), Verdict::Warn, error.to_string())],
    };
    let Ok(Problems { problems }) = serde_json::from_str(&text) else {
        return vec![Finding::new("state", list.display().to_string(), Verdict::Warn, "is no list of problems")];
    };
    let mut told: Vec<(String, String, PathBuf)> = problems
        .into_iter()
        .filter(|problem| problem.severity != "notice")
        .map(|problem| {
            let field = problem.field.map(|field| format!("{field}: ")).unwrap_or_default();
            let object = problem.object.or(problem.file).unwrap_or_default();
            (object, format!("{}: {field}{}", problem.reason, problem.message), list.clone())
        })
        .collect();
    let names = machine.names(&relative(&directory));
    for name in names.iter().filter(|name| name.ends_with(".json") && *name != PROBLEMS_FILE) {
        let path = directory.join(name);
        let status = machine.text(&relative(&path)).and_then(|text| serde_json::from_str::<ServiceStatus>(&text).ok());
        // Another file of control's.
        let Some(status) = status else { continue };
        told.extend(status.conditions.into_iter().filter(|condition| condition.status == "False").map(|condition| {
            let words = format!("{}: {}", condition.reason, condition.message);
            (format!("Service {}", status.service), words, path.clone())
        }));
    }
    if told.is_empty() {
        return vec![fine("state", list.display().to_string(), "control has no problems")];
    }
    let more = told.len().saturating_sub(PROBLEMS_MAX);
    told.truncate(PROBLEMS_MAX);
    let finding = |(object, words, path): (String, String, PathBuf)| {
        Finding::new("state", object, Verdict::Warn, words).mended_by(format!("cat {}", path.display()))
    };
    let mut findings: Vec<Finding> = told.into_iter().map(finding).collect();
    if more > 0 {
        let found = format!("control has {more} more problems");
        let fix = format!("cat {}/*.json", directory.display());
        findings.push(Finding::new("state", directory.display().to_string(), Verdict::Warn, found).mended_by(fix));
    }
    findings
}

/// Control's list of problems.
#[derive(Debug, Deserialize)]
struct Problems {
    problems: Vec<Problem>,
}

/// An entry of it, as far as it is told here.
#[derive(Debug, Deserialize)]
struct Problem {
    severity: String,
    reason: String,
    file: Option<String>,
    object: Option<String>,
    field: Option<String>,
    message: String,
}

/// What control has written about one Service, as far as it is told here.
#[derive(Debug, Deserialize)]
struct ServiceStatus {
    service: String,
    conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    status: String,
    reason: String,
    message: String,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::{machine, told};
    use super::*;

    const DEVICES: &str = "Inter-|   Receive\n face |bytes\n    lo: 0 0\nkube-ipvs0: 0 0\n";

    #[test]
    fn a_node_that_answers_for_vips_is_told() {
        let settings = |ignore, announce| {
            [
                ("proc/self/net/dev", DEVICES),
                ("proc/sys/net/ipv4/conf/all/arp_ignore", ignore),
                ("proc/sys/net/ipv4/conf/all/arp_announce", announce),
            ]
        };
        let (_root, lax) = machine(&settings("0", "0"));
        let text = told(&kube_proxy(&lax).into_iter().collect::<Vec<_>>(), "kube-proxy").join("");
        assert!(text.starts_with("Fail  | mode ipvs, kube-ipvs0 is there, arp_ignore 0"), "{text}");
        let (_root, strict) = machine(&settings("1", "2"));
        assert_eq!(kube_proxy(&strict).map(|finding| finding.verdict), Some(Verdict::Ok));
    }

    #[test]
    fn rules_that_are_passed_by_are_told() {
        let text = "table inet f {\n\tchain i {\n\t\ttype filter hook input priority filter; policy drop;\n\t\ttcp \
                    dport 22 accept\n\t}\n\tchain o {\n\t\ttype filter hook output priority filter; policy \
                    drop;\n\t}\n\tchain e {\n\t\ttype filter hook forward priority filter; policy accept;\n\t}\n}\n";
        let found = firewall(Ok(text.into()));
        assert_eq!(found.verdict, Verdict::Note);
        assert_eq!(
            found.found,
            "chain i of table inet f at input: 1 rule and policy drop, the first: tcp dport 22 accept; traffic that \
             Tidegate handles meets none of them"
        );
        assert_eq!(firewall(Ok("table ip nat {\n}\n".into())).verdict, Verdict::Ok);
        assert_eq!(firewall(Err(io::ErrorKind::NotFound.into())).verdict, Verdict::Note);
        let many: String = (0..9)
            .map(|n| {
                format!(
                    "table ip t{n} {{\n\tchain c {{\n\t\ttype filter hook ingress device \"x\" priority 0; policy \
                     drop;\n\t}}\n}}\n"
                )
            })
            .collect();
        assert!(
            firewall(Ok(many)).found.contains("table ip t3 at ingress: 0 rules and policy drop; and 5 more; traffic")
        );
    }

    #[test]
    fn masquerading_is_fine_where_the_agent_makes_exemptions() {
        let own = |is_v4| Some(if is_v4 { "198.51.100.12" } else { "2001:db8:2::12" }.parse().unwrap());
        let empty = "table ip nat {\n\tchain FLANNEL-POSTRTG {\n\t}\n}\n";
        assert_eq!(masquerade(Ok(empty.into()), own).verdict, Verdict::Ok, "a chain without rules changes nothing");
        let flannel = "table ip nat {\n\tchain FLANNEL-POSTRTG {\n\t\tmeta mark 0x4000 return\n\t\tip saddr \
                       10.244.0.0/16 xt target \"MASQUERADE\"\n\t}\n}\ntable ip6 flannel-ipv6 {\n\tchain postrtg \
                       {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t\tip6 saddr fd00::/8 \
                       masquerade fully-random\n\t}\n}\n";
        let found = masquerade(Ok(flannel.into()), own);
        assert_eq!(found.verdict, Verdict::Note);
        assert_eq!(
            found.found,
            "flannel's rule in chain FLANNEL-POSTRTG of table ip nat (ip saddr 10.244.0.0/16 xt target \
             \"MASQUERADE\") gives pods' packets the node's address 198.51.100.12 instead of their own; flannel's \
             rule in chain postrtg of table ip6 flannel-ipv6 (ip6 saddr fd00::/8 masquerade fully-random) gives pods' \
             packets the node's address 2001:db8:2::12 instead of their own; 0 exemptions by tidegate-node"
        );
        let exempt = format!("{flannel}table inet tidegate-node {{\n\tchain c {{\n\t}}\n}}\n");
        assert_eq!(masquerade(Ok(exempt), own).verdict, Verdict::Ok);
        assert_eq!(masquerade(Ok(String::new()), own).verdict, Verdict::Ok);
    }

    #[test]
    fn problems_of_control_are_named() {
        let text = "node: n\nstateDir: /var/lib/tidegate\ndataplane: { interfaces: [{ name: wan0 }] }";
        let file = NodeFile::parse(text, Path::new("node.yaml")).unwrap();
        let path = "var/lib/tidegate/status/problems.json";
        let problems = r#"{"problems": [{"severity": "error", "reason": "Refused", "object": "Node w3", "message": "no"},
            {"severity": "notice", "reason": "NotAPeer", "object": "Node w4", "message": "so what"},
            {"severity": "warning", "reason": "UnknownField", "file": "a.yaml", "field": "spec.x", "message": "is none"}]}"#;
        let service = r#"{"service": "shop/web", "conditions": [
            {"type": "Programmed", "status": "True", "reason": "Programmed", "message": ""},
            {"type": "AddressesOurs", "status": "False", "reason": "AddressConflict", "message": "02:.. answers"}]}"#;
        let (service_path, other) = ("var/lib/tidegate/status/shop.web.json", "var/lib/tidegate/status/latency.json");
        let (_root, some) = machine(&[(path, problems), (service_path, service), (other, r#"{"a": 1}"#)]);
        assert_eq!(
            told(&state(&some, &file), "state"),
            [
                "Warn Node w3 | Refused: no | cat /var/lib/tidegate/status/problems.json",
                "Warn a.yaml | UnknownField: spec.x: is none | cat /var/lib/tidegate/status/problems.json",
                "Warn Service shop/web | AddressConflict: 02:.. answers | cat /var/lib/tidegate/status/shop.web.json",
            ]
        );
        let one = r#"{"severity": "error", "reason": "A", "message": "b"}"#;
        let (_root, many) = machine(&[(path, &format!("{{\"problems\": [{}]}}", [one; PROBLEMS_MAX + 3].join(",")))]);
        let findings = state(&many, &file);
        assert_eq!(findings.len(), PROBLEMS_MAX + 1);
        assert!(findings.last().is_some_and(|last| last.found == "control has 3 more problems"), "{findings:?}");
        let (_root, none) = machine(&[(path, "{ \"problems\": [] }")]);
        assert_eq!(told(&state(&none, &file), "state").len(), 1);
        assert_eq!(state(&none, &file)[0].verdict, Verdict::Ok);
        let (_root, torn) = machine(&[(path, "[{")]);
        assert_eq!(state(&torn, &file)[0].found, "is no list of problems");
        let (_root, absent) = machine(&[]);
        assert_eq!(state(&absent, &file), []);
    }
}
