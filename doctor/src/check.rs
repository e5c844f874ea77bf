//! What is looked at, in the order in which it is told.

use tidegate_dataplane::config::NodeFile;

use crate::{Finding, Machine, Verdict};

/// Kernel, clock, BPF file system, privileges.
mod kernel;
/// Memory and the cores of workers.
mod cores;
/// Devices that a gateway opens.
mod devices;
/// The gateway's own ends of tunnels, and the rules by which its kernel routes.
mod underlay;
/// The overlay: tunnels, their packet sizes and who may send through them.
mod overlay;
/// Whether a worker's tunnels lead to everybody they know.
mod ends;
/// What else on this machine handles packets: kube-proxy, the CNI's masquerading, firewalls.
mod others;
/// Whether the dataplane that runs here hears its control.
mod control;
/// What that dataplane tells of itself.
mod running;

/// A machine that is to be a gateway.
pub fn gateway(machine: &Machine, file: &NodeFile) -> Vec<Finding> {
    let mut findings = kernel::look(machine, Some(file));
    findings.extend(cores::look(machine, &file.dataplane));
    findings.extend(devices::look(machine, file));
    let underlay = underlay::Underlay::read(machine, file);
    findings.extend(underlay.look());
    findings.extend(overlay::sizes(machine, &file.dataplane, &underlay));
    findings.extend(underlay::rules(machine.foreign_rules()));
    findings.extend(others::on_gateway(machine, file));
    findings.push(control::look(machine, file));
    findings
}

/// A machine that is a worker behind a gateway.
pub fn worker(machine: &Machine) -> Vec<Finding> {
    let mut findings = kernel::look(machine, None);
    findings.extend(overlay::look(machine));
    findings.extend(others::on_worker(machine));
    findings
}

/// A finding of `check` that is fine.
fn fine(check: &'static str, subject: impl Into<String>, found: impl Into<String>) -> Finding {
    Finding::new(check, subject, Verdict::Ok, found)
}

/// Why each check matters, once for all its findings.
pub fn why(check: &str) -> &'static str {
    WHY.iter().find(|(name, _)| *name == check).map_or("", |(_, why)| why)
}

const WHY: &[(&str, &str)] = &[
    ("node-file", "both processes of a gateway read it at start and refuse one they do not understand"),
    ("kernel", "AF_XDP with need-wakeup and BPF links came step by step; below 5.15 it is not tried"),
    ("privilege", "sockets, XDP programs and packet memory are the kernel's to give"),
    ("bpf-fs", "the next process finds the XDP program by its pins, so that a restart needs no CAP_SYS_ADMIN"),
    ("clock", "heartbeats between gateways, certificates of the API server and the NAT ledger rely on it"),
    ("clocksource", "a worker reads the clock once a turn; anything but tsc costs up to a microsecond each time"),
    ("huge-pages", "frames and flows in huge pages save page walks on every packet"),
    ("core", "a worker polls: it should have a whole core that nothing else runs on"),
    ("governor", "cores that are slowed down while idle answer the first packets late"),
    ("irqbalance", "it moves interrupts to the cores that workers poll on"),
    ("interface", "what AF_XDP needs of a device; the dataplane refuses to start otherwise"),
    ("driver", "zero-copy spares a copy of every packet and most system calls"),
    (
        "rss",
        "a queue that gets no packets is a worker that idles: VXLAN tells its flows apart by the UDP source port alone",
    ),
    ("numa", "packet memory on the other socket costs a trip over the interconnect for every line"),
    ("address-family", "gateways serve both families; a device without IPv6 has no neighbours for it"),
    ("underlay", "nodes send their packets to this address; without it every tunnel of that family is dead"),
    ("routing", "Tidegate routes by the tables local and main; where the kernel goes another way it does not follow"),
    ("tunnel", "pods reach a gateway by a route, a neighbour and a forwarding entry together, and by no two of them"),
    (
        "mtu",
        "a tunnel adds 50 bytes over IPv4 and 70 over IPv6; what does not fit is answered with an ICMP error, or lost where a firewall eats those",
    ),
    ("rp-filter", "strict filtering drops what comes through the tunnel with clients' addresses (node-dsr, symmetric)"),
    ("forwarding", "a worker passes packets on between tunnel and pods"),
    ("cni", "the overlay that gateways take part in"),
    ("masquerade", "egress policies and node-dsr need pods' packets to leave the node with pods' addresses"),
    (
        "kube-proxy",
        "in mode ipvs it puts every VIP on a device of each node, which then answers ARP for it unless strictARP is on",
    ),
    ("firewall", "packets that Tidegate handles never pass the kernel's firewall on a gateway; policies do its work"),
    ("dataplane", "it carries the traffic: what is Tidegate's is not served while it is away or stands still"),
    (
        "control",
        "without it traffic goes on as it was told last, and nothing that changes in the cluster has any effect",
    ),
    ("state", "problems that the control process has with objects of the cluster"),
];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The findings of `check` in words: verdict, subject, what was found, fix.
    pub fn told(findings: &[Finding], check: &str) -> Vec<String> {
        let of_check = findings.iter().filter(|finding| finding.check == check);
        of_check
            .map(|finding| {
                let fix = finding.fix.as_deref().unwrap_or("-");
                format!("{:?} {} | {} | {fix}", finding.verdict, finding.subject, finding.found)
            })
            .collect()
    }

    /// A machine made of files.
    pub fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let machine = Machine::below(root.path());
        (root, machine)
    }

    #[test]
    fn every_check_says_why_it_matters_and_none_is_told_twice() {
        for (at, (name, why)) in WHY.iter().enumerate() {
            assert!(!why.is_empty() && WHY[..at].iter().all(|(other, _)| other != name), "{name}");
        }
        for finding in worker(&Machine::default()) {
            assert!(!finding.why.is_empty(), "{}", finding.check);
        }
    }
}
