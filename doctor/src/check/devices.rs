//! Devices that a gateway opens.

use tidegate_api::show::{Show, Shown, WorkerRow};
use tidegate_dataplane::config::{Dataplane, Interface, Mode, NodeFile};
use tidegate_dataplane::table::spread::{Spread, digest};
use tidegate_io::afxdp::{self, OpenConfig, OpenError};
use tidegate_io::netdev::{FlowType, NetDevice, Rss};

use super::running::Heard;
use super::{fine, running};
use crate::{Finding, Machine, Verdict};

/// Drivers with AF_XDP zero-copy in Linux (those that implement XDP_SETUP_XSK_POOL). A driver that is not here may have
/// learnt it since: `tidegate show ports` tells what a socket really got.
const ZERO_COPY_DRIVERS: [&str; 11] =
    ["dpaa2-eth", "i40e", "ice", "idpf", "igb", "igc", "ixgbe", "mlx5_core", "nfp", "stmmac", "ti_prueth"];

/// What helps where a device's RSS is no longer what the dataplane follows.
const FOLLOW: &str = "set it back with ethtool; or systemctl restart tidegate-dataplane, after which connections by \
                      fullnat begin anew; or live with hand-overs; dataplane.clients: { spread: hash } never depends on it";

pub fn look(machine: &Machine, file: &NodeFile) -> Vec<Finding> {
    let dataplane = &file.dataplane;
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
    findings.extend(clients(machine, file));
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

/// Whether packets of clients arrive where they belong, by the devices' own answers and by what a dataplane that runs made
/// of them when it started.
fn clients(machine: &Machine, file: &NodeFile) -> Vec<Finding> {
    let dataplane = &file.dataplane;
    let Some(deciding) = dataplane.spreads_clients() else { return Vec::new() };
    let Ok(device) = machine.device(&deciding.name) else { return Vec::new() };
    let queues = deciding.queues.clone().unwrap_or_else(|| (0..device.rx_queues).collect());
    let untold = |error: String| {
        let found = format!("the dataplane does not tell what it made of this device's RSS when it started: {error}");
        vec![Finding::new("rss", &device.name, Verdict::Note, found)]
    };
    let (workers, mut findings) = match running::ask(machine, file, Show::Workers) {
        Ok(Heard::Told(Shown::Workers(workers))) => (workers, Vec::new()),
        Ok(Heard::Nobody | Heard::Leftover) => (Vec::new(), Vec::new()),
        Ok(Heard::Told(other)) => (Vec::new(), untold(format!("{other:?}"))),
        Err(error) => (Vec::new(), untold(error.to_string())),
    };
    let rss = device.rss().map_err(|error| format!("its RSS cannot be read: {error}"));
    if let Some(changed) = changed(&device.name, rss.as_ref(), &queues, &workers) {
        findings.push(changed);
        return findings;
    }
    let rss = match rss {
        Ok(rss) => rss,
        Err(reason) => {
            findings.push(hashed(&device.name, &reason));
            return findings;
        }
    };
    let others = dataplane.interfaces.iter().filter(|other| other.name != deciding.name);
    let others = others.filter_map(|other| Some((other.name.as_str(), machine.device(&other.name).ok()?.rss().ok()?)));
    let others: Vec<_> = others.collect();
    findings.extend(follows((&device.name, &rss), &queues, dataplane.worker_count(), &others));
    findings
}

/// What of a device's RSS is not as it was when the dataplane with these workers started: it was read then, and packets of
/// clients that arrive otherwise now are handed over. Without workers, or where both agree, nothing.
fn changed(name: &str, rss: Result<&Rss, &String>, queues: &[u32], workers: &[WorkerRow]) -> Option<Finding> {
    let count = u16::try_from(workers.len()).ok().filter(|count| *count > 1)?;
    let now = rss.map_err(Clone::clone).and_then(|rss| {
        Spread::new(rss, queues, count).map_err(|no_spread| no_spread.to_string())?;
        Ok(rss)
    });
    let is_followed = workers.iter().any(|row| row.clients.is_some());
    let found = match now {
        Err(reason) if is_followed => {
            format!(
                "clients belong where its RSS laid them when the dataplane started, which cannot be told now: {reason}"
            )
        }
        Err(_) => return None,
        Ok(_) if !is_followed => {
            "clients are spread by a keyed hash since the dataplane started, and its RSS could be followed now"
                .to_owned()
        }
        Ok(rss) => {
            let differences = differences(name, rss, queues, workers);
            if differences.is_empty() {
                return None;
            }
            let differences = differences.join("; ");
            format!("not spread as when the dataplane started, so that clients' packets are handed over: {differences}")
        }
    };
    Some(Finding::new("rss", name, Verdict::Warn, found).mended_by(FOLLOW))
}

/// Each with both values. What a dataplane of another version does not tell is not compared.
fn differences(name: &str, rss: &Rss, queues: &[u32], workers: &[WorkerRow]) -> Vec<String> {
    let Some(then) = workers.iter().find_map(|row| row.clients.as_ref()) else { return Vec::new() };
    if then.device != name {
        return vec![format!("the node file names {name}, at start it was {}", then.device)];
    }
    let mut found = Vec::new();
    let key = digest(&rss.key);
    if !then.key_digest.is_empty() && then.key_digest != key {
        found.push(format!("a hash key of digest {key}, at start {}", then.key_digest));
    }
    for (flows, hashed) in rss.told() {
        match then.fields.get(flows.name()) {
            Some(then) if then != hashed.name() => {
                found.push(format!("{} hashed by {}, at start by {then}", flows.name(), hashed.name()));
            }
            _ => {}
        }
    }
    let opened: Vec<(u32, u32)> = workers
        .iter()
        .flat_map(|row| row.ports.iter().map(move |port| (row.worker, port)))
        .filter_map(|(worker, port)| {
            let (device, queue) = port.rsplit_once('/')?;
            (device == name).then_some((queue.parse().ok()?, worker))
        })
        .collect();
    if opened.len() != queues.len() {
        found.push(format!("{} queues, at start {}", queues.len(), opened.len()));
    }
    if rss.indirection.len() != then.of as usize {
        found.push(format!("an indirection table of {} entries, at start {}", rss.indirection.len(), then.of));
        return found;
    }
    let owner_then = |place: u32| {
        let has = |row: &&WorkerRow| row.clients.as_ref().is_some_and(|clients| clients.places.contains(&place));
        workers.iter().find(has).map(|row| row.worker)
    };
    let owner_now = |queue: u32| opened.iter().find(|(open, _)| *open == queue).map(|(_, worker)| *worker);
    let moved = (0..).zip(&rss.indirection).filter(|(place, queue)| owner_now(**queue) != owner_then(*place));
    let moved: Vec<_> = moved.collect();
    let tells_places = workers.iter().filter_map(|row| row.clients.as_ref()).any(|clients| !clients.places.is_empty());
    if let Some((place, queue)) = moved.first().filter(|_| tells_places) {
        let whose = |worker: Option<u32>| worker.map_or("nobody".to_owned(), |worker| format!("worker {worker}"));
        found.push(format!(
            "{} of {} entries of its indirection table lead elsewhere, the first of them, {place}, to queue {queue} of {}, \
             at start to {}",
            moved.len(),
            then.of,
            whose(owner_now(**queue)),
            whose(owner_then(*place))
        ));
    }
    found
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

    use tidegate_api::show::ClientsByRss;
    use tidegate_io::netdev::Hashed;

    use super::super::tests::{machine, told};
    use super::*;

    fn node_file(text: &str) -> NodeFile {
        NodeFile::parse(&format!("node: n\ndataplane: {{ {text} }}"), Path::new("node.yaml")).unwrap()
    }

    fn dataplane(text: &str) -> Dataplane {
        node_file(text).dataplane
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
        let findings = look(&Machine::below("/nowhere"), &node_file("interfaces: [{ name: no-such0 }]"));
        assert_eq!(
            told(&findings, "interface"),
            [
                "Fail no-such0 | there is no interface no-such0 | check the name with `ip link` (a network namespace has its own)"
            ]
        );
    }

    #[test]
    fn too_few_frames_are_told_for_all_devices_together() {
        let findings =
            look(&Machine::below("/nowhere"), &node_file("interfaces: [{ name: lo }], frames: 4096, workers: 1"));
        let text = told(&findings, "interface").join("\n");
        assert!(text.contains("lo | up, MTU"), "{text}");
    }

    #[test]
    fn clients_belong_where_they_arrive_if_the_nic_can_be_followed() {
        let wan = wan();
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
            let findings = clients(&Machine::below("/nowhere"), &node_file(section));
            assert_eq!(told(&findings, "rss").len(), told_of, "{section}: {findings:?}");
        }
    }

    fn wan() -> Rss {
        Rss {
            key: (0..40).collect(),
            indirection: (0..128).map(|n| n % 2).collect(),
            is_toeplitz: true,
            hashed: [Some(Hashed::Ends); 6],
        }
    }

    /// Two workers of a dataplane that follows what it read of `wan0` when it started, or nothing.
    fn running(read: Option<&Rss>) -> Vec<WorkerRow> {
        let row = |worker: u32| {
            let clients = read.map(|rss| {
                let places = (0..).zip(&rss.indirection).filter(|(_, queue)| **queue == worker).map(|(at, _)| at);
                let places: Vec<u32> = places.collect();
                let fields = rss.told().map(|(flows, hashed)| (flows.name().into(), hashed.name().into())).collect();
                let entries = u32::try_from(places.len()).unwrap();
                let of = u32::try_from(rss.indirection.len()).unwrap();
                ClientsByRss { device: "wan0".into(), entries, of, places, key_digest: digest(&rss.key), fields }
            });
            WorkerRow {
                worker,
                core: None,
                clients,
                generation: 1,
                turns: 0,
                idle_turns: 0,
                sleeps: 0,
                flows: 0,
                flows_max: 1,
                half_open: 0,
                half_open_max: 1,
                held: 0,
                ports: vec![format!("wan0/{worker}"), format!("lan0/{worker}")],
                counters: Default::default(),
                stages: Vec::new(),
            }
        };
        (0..2).map(row).collect()
    }

    #[test]
    fn rss_that_changed_since_the_start_is_told_with_both_values_and_the_command() {
        let wan = wan();
        let told = |rss: Result<&Rss, &String>, queues: &[u32], workers: &[WorkerRow]| {
            let found = changed("wan0", rss, queues, workers);
            told(&found.into_iter().collect::<Vec<_>>(), "rss").pop()
        };
        let followed = running(Some(&wan));
        assert_eq!(told(Ok(&wan), &[0, 1], &followed), None);
        // One worker, or none that runs: there is nothing that could differ.
        assert_eq!(told(Ok(&Rss { key: vec![7; 40], ..wan.clone() }), &[0, 1], &followed[..1]), None);
        assert_eq!(told(Ok(&wan), &[0, 1], &[]), None);

        let [mut weights, mut fields] = [wan.clone(), wan.clone()];
        weights.indirection[5..8].copy_from_slice(&[0, 1, 9]);
        (fields.hashed[1], fields.hashed[4]) = (Some(Hashed::Addresses), Some(Hashed::Addresses));
        let (old, new) = (digest(&wan.key), digest(&[7; 40]));
        for (now, queues, expected) in [
            (Rss { key: vec![7; 40], ..wan.clone() }, vec![0, 1], format!("a hash key of digest {new}, at start {old}")),
            (fields, vec![0, 1], "udp4 hashed by sd, at start by sdfn; udp6 hashed by sd, at start by sdfn".into()),
            (
                weights,
                vec![0, 1],
                "3 of 128 entries of its indirection table lead elsewhere, the first of them, 5, to queue 0 of worker 0, \
                 at start to worker 1"
                    .into(),
            ),
            (
                Rss { indirection: wan.indirection.repeat(2), ..wan.clone() },
                vec![0, 1],
                "an indirection table of 256 entries, at start 128".into(),
            ),
            (wan.clone(), vec![0, 1, 2], "3 queues, at start 2".into()),
        ] {
            let found = told(Ok(&now), &queues, &followed).unwrap();
            let start = "not spread as when the dataplane started, so that clients' packets are handed over";
            assert_eq!(found, format!("Warn wan0 | {start}: {expected} | {FOLLOW}"));
        }
        // It could be followed then and cannot now, and the other way round.
        let xor = Rss { is_toeplitz: false, ..wan.clone() };
        let found = told(Ok(&xor), &[0, 1], &followed).unwrap();
        assert!(found.starts_with("Warn wan0 | clients belong where its RSS laid them") && found.contains("Toeplitz"));
        let gone = "its RSS cannot be read: gone".to_owned();
        assert!(
            told(Err(&gone), &[0, 1], &followed).unwrap().contains("cannot be told now: its RSS cannot be read: gone")
        );
        let hashed = running(None);
        assert!(told(Ok(&wan), &[0, 1], &hashed).unwrap().contains("by a keyed hash since the dataplane started"));
        assert_eq!(told(Ok(&xor), &[0, 1], &hashed), None);
        // Another version's dataplane tells less: what it does not tell is not compared.
        let mut older = followed.clone();
        for row in &mut older {
            let clients = row.clients.as_mut().unwrap();
            (clients.places, clients.key_digest, clients.fields) = Default::default();
        }
        assert_eq!(told(Ok(&Rss { key: vec![7; 40], ..wan.clone() }), &[0, 1], &older), None);
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
