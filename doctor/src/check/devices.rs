//! Devices that a gateway opens.

use tidegate_dataplane::config::{Dataplane, Interface, Mode};
use tidegate_io::afxdp::{self, OpenConfig, OpenError};
use tidegate_io::netdev::NetDevice;

use super::fine;
use crate::{Finding, Machine, Verdict};

/// Drivers with AF_XDP zero-copy in Linux (those that implement XDP_SETUP_XSK_POOL). A driver that is not here may have
/// learnt it since: `tidegate show ports` tells what a socket really got.
const ZERO_COPY_DRIVERS: [&str; 11] =
    ["dpaa2-eth", "i40e", "ice", "idpf", "igb", "igc", "ixgbe", "mlx5_core", "nfp", "stmmac", "ti_prueth"];

pub fn look(machine: &Machine, dataplane: &Dataplane) -> Vec<Finding> {
    let whole = dataplane.open_config();
    let mut findings = Vec::new();
    for (interface, opened) in dataplane.interfaces.iter().zip(&whole.interfaces) {
        let alone = OpenConfig { interfaces: vec![opened.clone()], ..whole.clone() };
        let refused =
            afxdp::preflight(&alone).into_iter().filter(|error| !matches!(error, OpenError::FewFrames { .. }));
        findings.extend(refused.map(|error| refusal(&interface.name, &error)));
        if let Ok(device) = machine.device(&interface.name) {
            findings.extend(facts(machine, dataplane, interface, &device));
        }
    }
    let few = afxdp::preflight(&whole).into_iter().filter(|error| matches!(error, OpenError::FewFrames { .. }));
    findings.extend(few.map(|error| refusal("", &error)));
    findings
}

/// The dataplane's own words: what is wrong, a semicolon, what to do.
fn refusal(device: &str, error: &OpenError) -> Finding {
    let text = error.to_string();
    let (found, fix) = text.split_once("; ").map_or((text.as_str(), None), |(found, fix)| (found, Some(fix)));
    Finding { fix: fix.map(str::to_owned), ..Finding::new("interface", device, Verdict::Fail, found) }
}

fn facts(machine: &Machine, dataplane: &Dataplane, interface: &Interface, device: &NetDevice) -> Vec<Finding> {
    let name = &device.name;
    let queues = interface.queues.as_ref().map_or(device.rx_queues as usize, Vec::len);
    let mut findings = Vec::new();
    if device.running {
        let found = format!("up, MTU {}, {queues} of {} queues served", device.mtu, device.rx_queues);
        findings.push(fine("interface", name, found));
    } else {
        findings.push(
            Finding::new("interface", name, Verdict::Fail, "down, or without a carrier")
                .mended_by(format!("ip link set dev {name} up, and look at the cable or the other end")),
        );
    }
    if queues < device.rx_queues as usize {
        let found =
            format!("{queues} of {} queues are served: what arrives on another one has no worker", device.rx_queues);
        findings.push(
            Finding::new("rss", name, Verdict::Warn, found)
                .mended_by(format!("ethtool -X {name} equal {queues}, or ethtool -L {name} combined {queues}")),
        );
    }
    findings.extend(driver(dataplane, device));
    findings.extend(spread(device));
    findings.extend(numa(machine, dataplane, name));
    if machine.network_setting(&format!("ipv6/conf/{name}/disable_ipv6")) == Some(1) {
        findings.push(
            Finding::new("address-family", name, Verdict::Warn, "IPv6 is switched off")
                .mended_by(format!("sysctl -w net/ipv6/conf/{name}/disable_ipv6=0")),
        );
    }
    findings
}

fn driver(dataplane: &Dataplane, device: &NetDevice) -> Option<Finding> {
    let (name, driver) = (&device.name, &device.driver);
    if matches!(dataplane.mode, Mode::Copy | Mode::Skb) {
        let found = format!("{driver}; copies are asked for (dataplane.mode)");
        return Some(Finding::new("driver", name, Verdict::Note, found));
    }
    match driver.as_str() {
        known if ZERO_COPY_DRIVERS.contains(&known) => Some(fine("driver", name, format!("{driver}, zero-copy"))),
        "virtio_net" => Some(
            Finding::new(
                "driver",
                name,
                Verdict::Warn,
                "virtio_net, which as a module may send zero-copy packets with a damaged header",
            )
            .mended_by("set dataplane.mode: copy"),
        ),
        "" => None,
        _ => {
            let found = format!("{driver}, which is not known for zero-copy; `tidegate show ports` tells what it gave");
            Some(Finding::new("driver", name, Verdict::Note, found))
        }
    }
}

/// Whether tunnels of one node reach more than one queue.
fn spread(device: &NetDevice) -> Vec<Finding> {
    if device.rx_queues < 2 {
        return Vec::new();
    }
    let families = [("udp4", "IPv4"), ("udp6", "IPv6")].into_iter().zip(device.spreads_udp_by_ports());
    families
        .filter_map(|((flow, family), spread)| match spread? {
            true => Some(fine("rss", &device.name, format!("UDP over {family} is spread by ports"))),
            false => {
                let found =
                    format!("UDP over {family} is spread by addresses alone: all tunnels of a node share a queue");
                let fix = format!("ethtool -N {} rx-flow-hash {flow} sdfn", device.name);
                Some(Finding::new("rss", &device.name, Verdict::Warn, found).mended_by(fix))
            }
        })
        .collect()
}

/// Cores and device on one memory node.
fn numa(machine: &Machine, dataplane: &Dataplane, device: &str) -> Option<Finding> {
    // -1 where there is one node, or none is known.
    let node = machine.number(&format!("sys/class/net/{device}/device/numa_node"))?;
    let away: Vec<String> = dataplane
        .cores
        .iter()
        .filter(|core| machine.names(&format!("sys/devices/system/node/node{node}/cpu{core}")).is_empty())
        .map(ToString::to_string)
        .collect();
    if away.is_empty() {
        return Some(fine("numa", device, format!("on memory node {node}, as its workers' cores")));
    }
    let found = format!("on memory node {node}, cores {} are not", away.join(", "));
    let fix = format!("choose cores of /sys/devices/system/node/node{node}/cpulist in dataplane.cores");
    Some(Finding::new("numa", device, Verdict::Warn, found).mended_by(fix))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tidegate_dataplane::config::NodeFile;

    use super::super::tests::{machine, told};
    use super::*;

    fn dataplane(text: &str) -> Dataplane {
        NodeFile::parse(&format!("node: n\ndataplane: {{ {text} }}"), Path::new("node.yaml")).unwrap().dataplane
    }

    fn nic() -> NetDevice {
        NetDevice {
            name: "wan0".into(),
            ifindex: 1,
            mac: [2; 6],
            mtu: 1500,
            running: true,
            rx_queues: 1,
            driver: "ice".into(),
            features: Vec::new(),
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_told_once_with_what_to_do() {
        let findings = look(&Machine::default(), &dataplane("interfaces: [{ name: no-such0 }]"));
        assert_eq!(
            told(&findings, "interface"),
            [
                "Fail no-such0 | there is no interface no-such0 | check the name with `ip link` (a network namespace has its own)"
            ]
        );
    }

    #[test]
    fn too_few_frames_are_told_for_all_devices_together() {
        let findings = look(&Machine::default(), &dataplane("interfaces: [{ name: lo }], frames: 4096, workers: 1"));
        let text = told(&findings, "interface").join("\n");
        assert!(text.contains("lo | up, MTU"), "{text}");
    }

    #[test]
    fn queues_drivers_and_sizes() {
        let (_root, files) = machine(&[
            ("sys/class/net/wan0/device/numa_node", "1"),
            ("sys/devices/system/node/node1/cpu3/online", "1"),
            ("proc/sys/net/ipv6/conf/wan0/disable_ipv6", "1"),
        ]);
        let section = dataplane("interfaces: [{ name: wan0, queues: [0] }], cores: [2, 3], workers: 2");
        let device = NetDevice { rx_queues: 4, driver: "virtio_net".into(), running: false, ..nic() };
        let findings = facts(&files, &section, &section.interfaces[0], &device);
        let all =
            ["interface", "rss", "driver", "numa", "address-family"].map(|check| told(&findings, check).join(" / "));
        let [interface, rss, driver, numa, family] = &all;
        assert!(interface.starts_with("Fail wan0 | down"), "{interface}");
        assert!(
            rss.starts_with("Warn wan0 | 1 of 4 queues are served") && rss.contains("ethtool -X wan0 equal 1"),
            "{rss}"
        );
        assert!(
            driver.starts_with("Warn wan0 | virtio_net") && driver.ends_with("set dataplane.mode: copy"),
            "{driver}"
        );
        assert!(numa.starts_with("Warn wan0 | on memory node 1, cores 2 are not"), "{numa}");
        assert!(family.contains("sysctl -w net/ipv6/conf/wan0/disable_ipv6=0"), "{family}");

        let fine = facts(&Machine::below("/nowhere"), &section, &section.interfaces[0], &nic());
        assert!(fine.iter().all(|finding| finding.verdict == Verdict::Ok), "{fine:?}");
        let copy = dataplane("interfaces: [{ name: wan0 }], mode: copy");
        assert_eq!(told(&facts(&files, &copy, &copy.interfaces[0], &nic()), "driver").len(), 1);
    }
}
