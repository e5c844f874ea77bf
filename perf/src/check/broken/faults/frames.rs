//! Frames that say where they went wrong: a VLAN tag that nobody has asked for, a tunnel to another port.
//!
//! This kernel has neither VLAN devices nor bridges that know VLANs, so tagged frames are written to a packet socket
//! (packet(7)), which perl can do.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, VlanId};
use tidegate_api::resource::MacAddress;

use super::{Break, Case, Fault, NODE, POD, VIP, by, captured, differs, dropped, ip_table, of_both, request, speaks};
use crate::topology::{
    CLIENT, CLIENT_HOSTS, CLIENT_MAC, Family, GATEWAY, GATEWAY_LAN_MAC, GATEWAY_NODE, GATEWAY_WAN_MAC, VNI, VXLAN_PORT,
    WEB_PORT, client_address,
};

/// The tag.
const VLAN: u16 = 7;
/// The port that IANA has given out for VXLAN (RFC 7348); Linux and flannel use another.
const IANA_VXLAN_PORT: u16 = 4789;
/// Link-layer address of the node in the underlay.
const NODE_MAC: &str = "02:00:00:00:02:12";
/// Writes the frame that is its argument, in hexadecimal digits, ten times a second for half a minute.
const WRITER: &str = "socket(my $s, 17, 3, 0) or die; my ($i) = `ip -o link show eth0` =~ /^(\\d+)/; \
                      my $to = pack(\"SnlSCCa8\", 17, 3, $i, 0, 0, 6, \"\"); \
                      for (1..300) { send($s, pack(\"H*\", $ARGV[0]), 0, $to); select(undef, undef, undef, 0.1) }";

/// The list.
pub(super) fn all() -> Vec<Fault> {
    let node = NODE.name();
    vec![
        of_both(
            "VLAN tag towards the gateway",
            "answers go out without the tag, and nobody there takes them",
            "make the switch's port towards the gateway an access port of that VLAN",
            |family| {
                let from = SocketAddr::new(client_address(family, *CLIENT_HOSTS.start()), 40_001);
                let frame = tagged([CLIENT_MAC, GATEWAY_WAN_MAC], from, VIP.at(family, WEB_PORT));
                case(
                    family,
                    written(CLIENT, &frame),
                    captured(&format!("--device wan0 --forms before 'vlan {VLAN}'"), ""),
                    differs("VLAN tag on wan0", "none", VLAN),
                )
            },
        ),
        of_both(
            "VLAN tag inside a tunnel",
            "packets of one network of the node do not arrive; dropped with `VxlanInnerVlan`",
            "let the node's bridge or CNI hand over frames without tags to its VXLAN device",
            |family| {
                let [from, to] = [POD.address(family), GATEWAY_NODE.fullnat_source(family)];
                let macs = [NODE, GATEWAY_NODE].map(|node| node.vtep_mac(family));
                let [source_mac, destination_mac] = [&*macs[0], &*macs[1]];
                let inner =
                    tagged([source_mac, destination_mac], SocketAddr::new(from, 40_001), SocketAddr::new(to, WEB_PORT));
                case(
                    family,
                    written(&node, &in_vxlan(family, &inner)),
                    dropped(family),
                    differs(&format!("VLAN in the tunnel of node {node}"), "none", VLAN),
                )
            },
        ),
        of_both(
            "VXLAN port of a node",
            "its pods do not answer; the gateway's kernel gets their frames, and has nothing at that port",
            "the same `Backend.Port` in flannel's configuration as `control.vxlanPort` in the node file",
            |family| {
                let ip = ip_table(family);
                let breaks = format!(
                    "nft 'add table {ip} port; add chain {ip} port out {{ type filter hook output priority 0; }}; add \
                     rule {ip} port out udp dport {VXLAN_PORT} udp dport set {IANA_VXLAN_PORT}'"
                );
                let what = format!("VXLAN port of this gateway, in frames of node {node}");
                Case {
                    probe: Some(request(family)),
                    traffic: Some(speaks(family)),
                    ..case(
                        family,
                        by(&node, breaks, format!("nft delete table {ip} port")),
                        format!(
                            "timeout 2 tcpdump -i lan0 -c 1 -w one.pcap '{ip} and udp port {IANA_VXLAN_PORT}'; \
                             tidegate explain --pcap one.pcap"
                        ),
                        differs(&what, VXLAN_PORT, IANA_VXLAN_PORT),
                    )
                }
            },
        ),
    ]
}

/// One that the gateway names, and that harms nobody else.
fn case(family: Family, breaks: Break, command: String, says: String) -> Case {
    let (breaks, says) = (vec![breaks], vec![says]);
    Case { family: Some(family), breaks, probe: None, traffic: None, at: GATEWAY.into(), command, says }
}

/// Somebody in a namespace writes a frame to the link, again and again.
fn written(namespace: &str, frame: &[u8]) -> Break {
    let digits: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let breaks = format!("perl -e '{WRITER}' {digits} </dev/null >/dev/null 2>&1 & echo $! > writer.pid");
    by(namespace, breaks, "kill $(cat writer.pid) 2>/dev/null; rm writer.pid")
}

/// A SYN in a frame with a tag; link-layer addresses of source and destination.
fn tagged(macs: [&str; 2], from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let [source, destination] = macs.map(mac);
    let begun = PacketBuilder::ethernet2(source, destination).single_vlan(VlanId::try_new(VLAN).unwrap_or_default());
    let begun = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => begun.ipv4(from.octets(), to.octets(), 64),
        (from, to) => begun.ipv6(octets(from), octets(to), 64),
    };
    let segment = begun.tcp(from.port(), to.port(), 1, 65_000).syn();
    let mut frame = Vec::with_capacity(segment.size(0));
    segment.write(&mut frame, &[]).unwrap_or_default();
    frame
}

/// A frame as the node's VTEP sends it to the gateway's (RFC 7348 section 5).
fn in_vxlan(family: Family, inner: &[u8]) -> Vec<u8> {
    let (from, to) = (NODE.underlay(family), GATEWAY_NODE.underlay(family));
    let begun = PacketBuilder::ethernet2(mac(NODE_MAC), mac(GATEWAY_LAN_MAC));
    let begun: PacketBuilderStep<IpHeaders> = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => begun.ipv4(from.octets(), to.octets(), 64),
        (from, to) => begun.ipv6(octets(from), octets(to), 64),
    };
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((VNI << 8).to_be_bytes());
    payload.extend(inner);
    let mut frame = Vec::new();
    begun.udp(50_000, VXLAN_PORT).write(&mut frame, &payload).unwrap_or_default();
    frame
}

fn mac(text: &str) -> [u8; 6] {
    text.parse::<MacAddress>().unwrap_or_default().0
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
