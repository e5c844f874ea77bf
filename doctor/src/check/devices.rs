//! Devices that a gateway opens.

use tidegate_dataplane::config::{Dataplane, Interface, Mode};
use tidegate_dataplane::table::spread::Spread;
use tidegate_io::afxdp::{self, OpenConfig, OpenError};
use tidegate_io::netdev::{FlowType, NetDevice, Rss};

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
    findings.extend(clients(machine, dataplane));
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
    let families = [("udp4", "IPv4", FlowType::Udp4), ("udp6", "IPv6", FlowType::Udp6)];
    families
        .into_iter()
        .filter_map(|(flow, family, sort)| match device.hashed(sort)?.has_ports() {
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

/// Whether packets of clients arrive where they belong, by the devices' own answers.
fn clients(machine: &Machine, dataplane: &Dataplane) -> Vec<Finding> {
    let Some(deciding) = dataplane.spreads_clients() else { return Vec::new() };
    let Ok(device) = machine.device(&deciding.name) else { return Vec::new() };
    let queues = deciding.queues.clone().unwrap_or_else(|| (0..device.rx_queues).collect());
    let rss = match device.rss() {
        Ok(rss) => rss,
        Err(error) => return vec![hashed(&device.name, &format!("its RSS cannot be read: {error}"))],
    };
    let others = dataplane.interfaces.iter().filter(|other| other.name != deciding.name);
    let others = others.filter_map(|other| Some((other.name.as_str(), machine.device(&other.name).ok()?.rss().ok()?)));
    follows((&device.name, &rss), &queues, dataplane.worker_count(), &others.collect::<Vec<_>>())
}

/// The same by their RSS: that of the device that decides, with its open queues, and those of the others.
fn follows(deciding: (&str, &Rss), queues: &[u32], workers: u16, others: &[(&str, Rss)]) -> Vec<Finding> {
    let (name, rss) = deciding;
    if let Err(reason) = Spread::new(rss, queues, workers) {
        return vec![hashed(name, &reason.to_string())];
    }
    let mut findings = vec![fine("rss", name, "clients belong to the worker on whose queue they arrive")];
    let differ = others.iter().filter(|(_, other)| (&other.key, &other.indirection) != (&rss.key, &rss.indirection));
    findings.extend(differ.map(|(other, _)| {
        let found = format!("spreads otherwise than {name}: what clients send to this device is handed over");
        let queues = rss.indirection.iter().max().map_or(1, |last| last + 1);
        let is_even = rss.indirection.iter().zip((0..queues).cycle()).all(|(queue, even)| *queue == even);
        let table = if is_even { format!("equal {queues}") } else { format!("and the weights of {name}") };
        // The key itself is nothing for a report.
        let key = format!("$(ethtool -x {name} | grep -A1 'hash key' | tail -n1)");
        Finding::new("rss", *other, Verdict::Note, found)
            .mended_by(format!("where clients come here too: ethtool -X {other} hkey {key} {table}"))
    }));
    findings
}

fn hashed(device: &str, reason: &str) -> Finding {
    let found =
        format!("clients are spread by a keyed hash, and handed over where it differs from the NIC's: {reason}");
    Finding::new("rss", device, Verdict::Note, found)
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
    use tidegate_io::netdev::Hashed;

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
    fn clients_belong_where_they_arrive_if_the_nic_can_be_followed() {
        let wan = Rss {
            key: (0..40).collect(),
            indirection: (0..128).map(|n| n % 2).collect(),
            is_toeplitz: true,
            hashed: [Some(Hashed::Ends); 6],
        };
        let findings = follows(("wan0", &wan), &[0, 1], 2, &[("lan0", wan.clone())]);
        assert_eq!(told(&findings, "rss"), ["Ok wan0 | clients belong to the worker on whose queue they arrive | -"]);

        let other = Rss { key: vec![7; 40], ..wan.clone() };
        let lines = told(&follows(("wan0", &wan), &[0, 1], 2, &[("lan0", other)]), "rss");
        assert!(lines[1].starts_with("Note lan0 | spreads otherwise than wan0"), "{lines:?}");
        assert!(lines[1].contains("ethtool -X lan0 hkey $(ethtool -x wan0 |"), "{lines:?}");
        assert!(lines[1].ends_with("equal 2"), "{lines:?}");

        let xor = Rss { is_toeplitz: false, ..wan.clone() };
        let lines = told(&follows(("wan0", &xor), &[0, 1], 2, &[]), "rss");
        assert!(lines[0].starts_with("Note wan0 | clients are spread by a keyed hash"), "{lines:?}");
        assert!(lines[0].contains("is not Toeplitz's"), "{lines:?}");

        // Loopback has no RSS; with one worker, or where it is not wanted, nobody asks.
        for (section, told_of) in [
            ("interfaces: [{ name: lo }], workers: 2", 1),
            ("interfaces: [{ name: lo }], workers: 1", 0),
            ("interfaces: [{ name: lo }], workers: 2, clients: { spread: hash }", 0),
        ] {
            let findings = clients(&Machine::default(), &dataplane(section));
            assert_eq!(told(&findings, "rss").len(), told_of, "{section}: {findings:?}");
        }
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
