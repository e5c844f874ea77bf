//! What else on this machine handles packets: kube-proxy, the CNI's masquerading, firewalls; and what control complains of.

use std::io;

use tidegate_dataplane::config::NodeFile;

use super::fine;
use crate::{Finding, Machine, Verdict};

/// The device on which kube-proxy in mode ipvs holds addresses of Services.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// Chains of CNIs that change the sources of pods' packets.
const MASQUERADERS: [(&str, &str); 4] = [
    ("FLANNEL-POSTRTG", "flannel"),
    ("flannel-ipv4", "flannel"),
    ("cali-nat-outgoing", "Calico"),
    ("CILIUM_POST_nat", "Cilium"),
];

pub fn on_gateway(machine: &Machine, file: &NodeFile) -> Vec<Finding> {
    let mut findings: Vec<Finding> = kube_proxy(machine).into_iter().collect();
    findings.push(firewall(machine.rules()));
    findings.extend(state(machine, file));
    findings
}

pub fn on_worker(machine: &Machine) -> Vec<Finding> {
    kube_proxy(machine).into_iter().chain([masquerade(machine.rules())]).collect()
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
        Err(error) => {
            return Finding::new("firewall", "", Verdict::Note, format!("rules cannot be listed with nft(8): {error}"));
        }
    };
    let mut hooks: Vec<&str> = Vec::new();
    for line in rules.lines().map(str::trim).filter(|line| line.starts_with("type filter hook ")) {
        let hook = line.split(' ').nth(3).unwrap_or_default();
        if ["input", "forward", "prerouting", "ingress"].contains(&hook) && !hooks.contains(&hook) {
            hooks.push(hook);
        }
    }
    if hooks.is_empty() {
        return fine("firewall", "", "no filter rules that gateway traffic would pass by");
    }
    let found = format!("filter chains at {}: traffic that Tidegate handles passes by them", hooks.join(", "));
    Finding::new("firewall", "", Verdict::Note, found).mended_by(
        "say the same in a GatewayPolicy or NetworkPolicy; the rules go on holding for the kernel's own traffic",
    )
}

/// Who changes sources of pods' packets.
fn masquerade(rules: io::Result<String>) -> Finding {
    let rules = match rules {
        Ok(rules) => rules,
        Err(error) => {
            return Finding::new(
                "masquerade",
                "",
                Verdict::Note,
                format!("rules cannot be listed with nft(8): {error}"),
            );
        }
    };
    let found = MASQUERADERS.iter().find(|(chain, _)| rules.contains(chain)).map(|(chain, cni)| (*chain, *cni));
    match (found, rules.contains("tidegate-node")) {
        (None, _) => fine("masquerade", "", "no CNI's rules for it"),
        (Some((chain, cni)), true) => {
            fine("masquerade", "", format!("{cni}'s ({chain}), with tidegate-node's exemptions"))
        }
        (Some((chain, cni)), false) => {
            let found = format!("{cni}'s ({chain}), and no exemptions by tidegate-node");
            Finding::new("masquerade", "", Verdict::Note, found)
                .mended_by("where egress policies select pods of this node, run tidegate-node here")
        }
    }
}

/// Problems that control wrote down.
fn state(machine: &Machine, file: &NodeFile) -> Option<Finding> {
    let path = file.state_dir.join("status/problems.json");
    let relative = path.strip_prefix("/").unwrap_or(&path).display().to_string();
    let text = machine.text(&relative)?;
    let subject = path.display().to_string();
    // One object a problem; its reason is enough here.
    let count = text.matches("\"reason\"").count();
    match count {
        0 => Some(fine("state", subject, "control has no problems")),
        _ => Some(
            Finding::new("state", subject, Verdict::Warn, format!("control has {count} problems with objects"))
                .mended_by(format!("read {}", path.display())),
        ),
    }
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
        let text = "table inet f {\n\tchain i {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n\tchain o {\n\t\ttype \
                    filter hook output priority filter; policy accept;\n\t}\n}\n";
        let found = firewall(Ok(text.into()));
        assert_eq!((found.verdict, found.found.contains("at input:")), (Verdict::Note, true));
        assert_eq!(firewall(Ok("table ip nat {\n}\n".into())).verdict, Verdict::Ok);
        assert_eq!(firewall(Err(io::ErrorKind::NotFound.into())).verdict, Verdict::Note);
    }

    #[test]
    fn masquerading_is_fine_where_the_agent_makes_exemptions() {
        let flannel = "table ip nat {\n\tchain FLANNEL-POSTRTG {\n\t}\n}\n";
        assert_eq!(masquerade(Ok(flannel.into())).verdict, Verdict::Note);
        assert_eq!(masquerade(Ok(format!("{flannel}table inet tidegate-node {{\n}}\n"))).verdict, Verdict::Ok);
        assert_eq!(masquerade(Ok(String::new())).verdict, Verdict::Ok);
    }

    #[test]
    fn problems_of_control_are_counted() {
        let text = "node: n\nstateDir: /var/lib/tidegate\ndataplane: { interfaces: [{ name: wan0 }] }";
        let file = NodeFile::parse(text, Path::new("node.yaml")).unwrap();
        let path = "var/lib/tidegate/status/problems.json";
        let (_root, some) = machine(&[(path, r#"[{"reason": "A"}, {"reason": "B"}]"#)]);
        assert_eq!(
            state(&some, &file).map(|finding| finding.found),
            Some("control has 2 problems with objects".into())
        );
        let (_root, none) = machine(&[(path, "[]")]);
        assert_eq!(state(&none, &file).map(|finding| finding.verdict), Some(Verdict::Ok));
        let (_root, absent) = machine(&[]);
        assert_eq!(state(&absent, &file), None);
    }
}
