//! The overlay: tunnels, their packet sizes and who may send through them.

use tidegate_dataplane::config::Dataplane;
use tidegate_io::netdev::NetDevice;

use super::underlay::Underlay;
use super::{ends, fine};
use crate::{Finding, Machine, Verdict};

/// What VXLAN puts in front of a packet: Ethernet, IP, UDP and its own header (RFC 7348 section 5), over IPv4 …
const OVERHEAD_V4: (u32, &str) = (50, "IPv4");
/// … and over IPv6.
const OVERHEAD_V6: (u32, &str) = (70, "IPv6");
/// What pods of most clusters expect: an Ethernet's packets less the overhead over IPv4.
const POD_MTU_USUAL: u32 = 1450;

/// Of a gateway: whether what pods send fits the devices it passes. Tunnels leave by the underlay's device; where nobody knows it,
/// by the smallest.
pub fn sizes(machine: &Machine, dataplane: &Dataplane, underlay: &Underlay) -> Vec<Finding> {
    let devices = dataplane.interfaces.iter().filter_map(|interface| machine.device(&interface.name).ok());
    let Some(smallest) = devices.min_by_key(|device| device.mtu) else { return Vec::new() };
    let tunnels = tunnels(machine);
    let pods = tunnels.iter().map(|tunnel| tunnel.mtu).max().unwrap_or(POD_MTU_USUAL);
    let of_family = |is_v4: bool| {
        let known = underlay.device(machine, is_v4).and_then(|name| machine.device(&name).ok());
        let device = known.as_ref().unwrap_or(&smallest);
        size(&device.name, device.mtu, pods, !tunnels.is_empty(), is_v4)
    };
    [true, false].map(of_family).into()
}

fn size(device: &str, mtu: u32, pods: u32, known: bool, is_v4: bool) -> Finding {
    let whose = if known { "this machine's tunnel has" } else { "pods of most clusters have" };
    let (overhead, family) = if is_v4 { OVERHEAD_V4 } else { OVERHEAD_V6 };
    let room = mtu.saturating_sub(overhead);
    let found = format!("MTU {mtu} leaves {room} bytes for pods' packets in tunnels over {family}, {whose} {pods}");
    if room >= pods {
        return fine("mtu", device, found);
    }
    // Whether nodes have IPv6 addresses for tunnels cannot be seen from here.
    let verdict = if is_v4 { Verdict::Warn } else { Verdict::Note };
    Finding::new("mtu", device, verdict, found)
        .mended_by(format!("ip link set dev {device} mtu {}, or a smaller MTU for pods", pods + overhead))
}

/// Of a worker: devices through which its pods and the gateways reach each other.
pub fn look(machine: &Machine) -> Vec<Finding> {
    let tunnels = tunnels(machine);
    if tunnels.is_empty() {
        return vec![
            Finding::new("cni", "", Verdict::Note, "no VXLAN device in this network namespace")
                .mended_by("on a worker, let the CNI use VXLAN (flannel: Backend.Type vxlan)"),
        ];
    }
    let mut findings = forwarding(machine);
    for tunnel in &tunnels {
        findings.push(rp_filter(machine, &tunnel.name));
        let found = format!("MTU {}, {}", tunnel.mtu, if tunnel.running { "up" } else { "down" });
        findings.push(match tunnel.running {
            true => fine("cni", &tunnel.name, found),
            false => Finding::new("cni", &tunnel.name, Verdict::Fail, found)
                .mended_by(format!("ip link set dev {} up", tunnel.name)),
        });
    }
    findings.extend(ends::look(machine, &tunnels));
    findings
}

/// VXLAN devices.
fn tunnels(machine: &Machine) -> Vec<NetDevice> {
    let devices = machine.devices().into_iter().filter_map(|name| machine.device(&name).ok());
    devices.filter(|device| device.driver == "vxlan").collect()
}

/// Strict is 1, and the larger of `all` and the device holds (Documentation/networking/ip-sysctl.rst); IPv6 has none.
fn rp_filter(machine: &Machine, tunnel: &str) -> Finding {
    let [all, own] = ["all", tunnel].map(|name| machine.network_setting(&format!("ipv4/conf/{name}/rp_filter")));
    let (Some(all), Some(own)) = (all, own) else {
        return Finding::new("rp-filter", tunnel, Verdict::Warn, "cannot be read");
    };
    let found = format!("rp_filter {own}, of all devices {all}");
    match all.max(own) {
        1 => Finding::new("rp-filter", tunnel, Verdict::Warn, format!("{found}: strict, and 0 or 2 is needed"))
            .mended_by(format!("sysctl -w net/ipv4/conf/{tunnel}/rp_filter=2")),
        _ => fine("rp-filter", tunnel, found),
    }
}

fn forwarding(machine: &Machine) -> Vec<Finding> {
    [("IPv4", "ipv4/ip_forward"), ("IPv6", "ipv6/conf/all/forwarding")]
        .into_iter()
        .map(|(family, path)| match machine.network_setting(path) {
            Some(0) => {
                let found = format!("off: net/{path} is 0, and 1 is needed");
                Finding::new("forwarding", family, Verdict::Fail, found).mended_by(format!("sysctl -w net/{path}=1"))
            }
            Some(_) => fine("forwarding", family, "on"),
            None => Finding::new("forwarding", family, Verdict::Note, "cannot be read: the kernel may not have it"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{machine, told};
    use super::*;

    #[test]
    fn pods_packets_must_fit_with_the_tunnel_around_them() {
        for (mtu, pods, v4, v6) in [
            (1500, 1450, Verdict::Ok, Verdict::Note),
            (1450, 1450, Verdict::Warn, Verdict::Note),
            (9000, 8930, Verdict::Ok, Verdict::Ok),
        ] {
            let verdicts = [true, false].map(|is_v4| size("wan0", mtu, pods, true, is_v4).verdict);
            assert_eq!(verdicts, [v4, v6], "{mtu} {pods}");
        }
        let both = [true, false].map(|is_v4| size("wan0", 1450, 1450, false, is_v4));
        let text = told(&both, "mtu").join("\n");
        assert!(text.contains(
            "MTU 1450 leaves 1400 bytes for pods' packets in tunnels over IPv4, pods of most clusters have 1450"
        ));
        assert!(text.contains("ip link set dev wan0 mtu 1500") && text.contains("mtu 1520"), "{text}");
    }

    #[test]
    fn the_stricter_filter_holds() {
        for (all, own, verdict) in [
            ("0", "0", Verdict::Ok),
            ("1", "0", Verdict::Warn),
            ("0", "1", Verdict::Warn),
            ("1", "2", Verdict::Ok),
            ("2", "1", Verdict::Ok),
        ] {
            let files =
                [("proc/sys/net/ipv4/conf/all/rp_filter", all), ("proc/sys/net/ipv4/conf/flannel.1/rp_filter", own)];
            let (_root, machine) = machine(&files);
            assert_eq!(rp_filter(&machine, "flannel.1").verdict, verdict, "{all} {own}");
        }
        let (_root, machine) = machine(&[]);
        assert_eq!(rp_filter(&machine, "flannel.1").found, "cannot be read");
    }

    #[test]
    fn a_worker_forwards_both_families() {
        let files = [("proc/sys/net/ipv4/ip_forward", "0"), ("proc/sys/net/ipv6/conf/all/forwarding", "1")];
        let (_root, machine) = machine(&files);
        assert_eq!(
            told(&forwarding(&machine), "forwarding"),
            [
                "Fail IPv4 | off: net/ipv4/ip_forward is 0, and 1 is needed | sysctl -w net/ipv4/ip_forward=1",
                "Ok IPv6 | on | -"
            ]
        );
    }
}
