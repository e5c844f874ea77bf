//! The lab's map: names, addresses and link-layer addresses of everything in it.
//!
//! Owns the numbers; refuses to know how a namespace is made. Nothing here is random, so that two runs can be compared
//! line by line; two labs may run at once since each has its own namespaces.
//!
//! ```text
//!                    wan0 ┌────┐ lan0                 ┌─ w1 ── p1 p2
//!  client ────────────────┤ gw ├──────── fabric ──────┼─ w2 ── p3 p4
//!  192.0.2.10-30          └────┘      198.51.100.0/24 ├─ w3 ── p5 p6
//!  2001:db8:1::10-30                  2001:db8:2::/64 │    flannel.1 (outer IPv4), flannel-v6.1 (outer IPv6)
//!    │ back                                           │
//!    └───────────── the workers' router ──────────────┘
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Network namespace of the clients.
pub const CLIENT: &str = "client";
/// Network namespace of the gateway.
pub const GATEWAY: &str = "gw";
/// Network namespace of the second gateway, where there is one.
pub const GATEWAY_2: &str = "gw2";
/// Network namespace of the clients' switch, where there are two gateways.
pub const LAN: &str = "lan";
/// Network namespace of the bridge between gateway and workers.
pub const FABRIC: &str = "fabric";

/// Number of workers, `w1` …
pub const WORKERS: u8 = 3;
/// Pods on each worker.
pub const PODS_PER_WORKER: u8 = 2;
/// All pods, `p1` …
pub const PODS: u8 = WORKERS * PODS_PER_WORKER;
/// Number that stands for the gateway in overlay addresses: 10.244.9.0/24.
pub const GATEWAY_NUMBER: u8 = 9;

/// Number that stands for the second gateway: 10.244.8.0/24.
pub const GATEWAY_2_NUMBER: u8 = 8;

/// Port of the pods' HTTP server.
pub const POD_TCP_PORT: u16 = 8080;
/// Port of the pods' UDP server.
pub const POD_UDP_PORT: u16 = 5353;
/// Port where the pods answer INITs of SCTP.
pub const POD_SCTP_PORT: u16 = 3868;
/// VXLAN network identifier, flannel's default (V-020).
pub const VNI: u32 = 1;
/// VXLAN UDP port, Linux' and flannel's default (V-020).
pub const VXLAN_PORT: u16 = 8472;
/// MTU of every underlay link in bytes.
pub const UNDERLAY_MTU: u32 = 1500;
/// MTU of `flannel.1` and of the pods: link minus 50 (V-009).
pub const OVERLAY_MTU_V4: u32 = UNDERLAY_MTU - 50;
/// MTU of `flannel-v6.1`: link minus 70 (V-009).
pub const OVERLAY_MTU_V6: u32 = UNDERLAY_MTU - 70;

/// Link-layer address of the gateway's `wan0`.
pub const GATEWAY_WAN_MAC: &str = "02:00:00:00:01:01";
/// Link-layer address of the gateway's `lan0`.
pub const GATEWAY_LAN_MAC: &str = "02:00:00:00:02:01";
/// Link-layer address of the second gateway's `wan0`.
pub const GATEWAY_2_WAN_MAC: &str = "02:00:00:00:01:02";
/// Link-layer address of the second gateway's `lan0`.
pub const GATEWAY_2_LAN_MAC: &str = "02:00:00:00:02:02";
/// Link-layer address of the client's `eth0`.
pub const CLIENT_MAC: &str = "02:00:00:00:01:10";
/// Link-layer address nobody has: answers to the generator's made-up clients go there and end on the wire.
pub const NOBODY_MAC: &str = "02:00:00:00:de:ad";

/// Gateway's address towards clients.
pub const GATEWAY_WAN_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Gateway's address towards clients.
pub const GATEWAY_WAN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// Gateway's address in the underlay.
pub const GATEWAY_LAN_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Gateway's address in the underlay.
pub const GATEWAY_LAN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// The workers' own router towards clients, which the client's namespace is as well: answers that do not come through the
/// gateway arrive there.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// The same for IPv6.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x254);
/// Source the gateway gives to Service traffic in `fullnat`.
pub const FULLNAT_V4: Ipv4Addr = Ipv4Addr::new(10, 244, GATEWAY_NUMBER, 2);
/// Source the gateway gives to Service traffic in `fullnat`.
pub const FULLNAT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, GATEWAY_NUMBER as u16, 0, 0, 0, 2);

/// First and last of the client's addresses: 192.0.2.N and 2001:db8:1::N, N written in decimal.
pub const CLIENT_HOSTS: std::ops::RangeInclusive<u8> = 10..=30;
/// Next hop, with [`NOBODY_MAC`], of the networks the generator's made-up clients live in.
pub const NOBODY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 250);
/// Next hop, with [`NOBODY_MAC`], of the networks the generator's made-up clients live in.
pub const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x250);
/// Network of the generator's made-up IPv4 clients (RFC 2544 reserves it for benchmarks), /15.
pub const FLOOD_NET_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Network of the generator's made-up IPv6 clients (RFC 5180 reserves it for benchmarks), /48.
pub const FLOOD_NET_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0);

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both families, in the order checks report them.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

impl Family {
    /// The one of two addresses that belongs to this family.
    pub fn pick(self, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
        match self {
            Family::V4 => v4.into(),
            Family::V6 => v6.into(),
        }
    }
}

/// A pair of Service addresses, one per family, answered by the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
}

impl Vip {
    /// 203.0.113.`host` and 2001:db8:f::`host`: routed to the gateway.
    pub const fn routed(host: u8) -> Vip {
        Vip { v4: Ipv4Addr::new(203, 0, 113, host), v6: Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, spell(host)) }
    }

    /// The address of `family`.
    pub fn of(self, family: Family) -> IpAddr {
        family.pick(self.v4, self.v6)
    }

    /// Address of `family` and port.
    pub fn at(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.of(family), port)
    }
}

/// The Service `shop/web`: TCP 80 on all pods.
pub const VIP_WEB: Vip = Vip::routed(10);
/// The Service `shop/echo`: UDP 53 on all pods.
pub const VIP_ECHO: Vip = Vip::routed(11);
/// The Service `shop/empty`: TCP 80 and UDP 53, nobody answers.
pub const VIP_EMPTY: Vip = Vip::routed(12);
/// The Service that appears while the demo runs.
pub const VIP_LATE: Vip = Vip::routed(13);
/// The Service `shop/onlink`: TCP 80, addresses in the client's own network, so the gateway answers ARP and NDP.
pub const VIP_ONLINK: Vip =
    Vip { v4: Ipv4Addr::new(192, 0, 2, 200), v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x200) };
/// The Service of the `node-dsr` checks.
pub const VIP_KEEP: Vip = Vip::routed(20);
/// The Service of the policy checks: SCTP 2905 on all pods.
pub const VIP_SIGNAL: Vip = Vip::routed(14);
/// TCP port of the web Services.
pub const WEB_PORT: u16 = 80;
/// UDP port of the echo Service.
pub const ECHO_PORT: u16 = 53;
/// SCTP port of the signal Service.
pub const SIGNAL_PORT: u16 = 2905;

/// Decimal digits read as hexadecimal ones: 21 gives 0x21, so that an IPv6 address shows the same digits.
const fn spell(number: u8) -> u16 {
    let number = number as u16;
    number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10
}

/// Address of the client with this host number, see [`CLIENT_HOSTS`].
pub fn client_address(family: Family, host: u8) -> IpAddr {
    family.pick(Ipv4Addr::new(192, 0, 2, host), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, spell(host)))
}

/// A node of the overlay: a worker, or the gateway under [`GATEWAY_NUMBER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// 1..=[`WORKERS`], or [`GATEWAY_NUMBER`].
    pub number: u8,
}

/// The workers.
pub fn workers() -> impl Iterator<Item = Node> {
    (1..=WORKERS).map(|number| Node { number })
}

/// The gateway as a node of the overlay.
pub const GATEWAY_NODE: Node = Node { number: GATEWAY_NUMBER };
/// The second gateway as a node of the overlay.
pub const GATEWAY_2_NODE: Node = Node { number: GATEWAY_2_NUMBER };

/// The first `count` gateways, of which there are at most two.
pub fn gateways(count: u32) -> impl Iterator<Item = Node> {
    [GATEWAY_NODE, GATEWAY_2_NODE].into_iter().zip(0..count).map(|(node, _)| node)
}

/// A pair of addresses in the clients' own network, so that a gateway announces them: 192.0.2.`host` and
/// 2001:db8:1::`host`.
pub const fn on_link(host: u8) -> Vip {
    Vip { v4: Ipv4Addr::new(192, 0, 2, host), v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, spell(host)) }
}

impl Node {
    /// Namespace name, and for workers also the name of the Node object.
    pub fn name(self) -> String {
        match self.number {
            GATEWAY_NUMBER => "gw-1".into(),
            GATEWAY_2_NUMBER => "gw-2".into(),
            number => format!("w{number}"),
        }
    }

    /// Address in the underlay.
    pub fn underlay(self, family: Family) -> IpAddr {
        if self.number == GATEWAY_NUMBER {
            return family.pick(GATEWAY_LAN_V4, GATEWAY_LAN_V6);
        }
        if self.number == GATEWAY_2_NUMBER {
            let v6 = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
            return family.pick(Ipv4Addr::new(198, 51, 100, 2), v6);
        }
        let host = 10 + self.number;
        family.pick(Ipv4Addr::new(198, 51, 100, host), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, spell(host)))
    }

    /// First address of the pod prefix: the VTEP's own address in the overlay (V-022).
    pub fn overlay(self, family: Family) -> IpAddr {
        self.in_prefix(family, 0)
    }

    /// Pod prefix in CIDR form.
    pub fn pod_cidr(self, family: Family) -> String {
        match family {
            Family::V4 => format!("{}/24", self.overlay(family)),
            Family::V6 => format!("{}/64", self.overlay(family)),
        }
    }

    /// Source a gateway gives to Service traffic in `fullnat`.
    pub fn fullnat_source(self, family: Family) -> IpAddr {
        self.in_prefix(family, 2)
    }

    /// Link-layer address of the VTEP of this family.
    pub fn vtep_mac(self, family: Family) -> String {
        match family {
            Family::V4 => format!("0a:58:0a:f4:{:02x}:04", self.number),
            Family::V6 => format!("0a:58:0a:f4:{:02x}:06", self.number),
        }
    }

    fn in_prefix(self, family: Family, host: u8) -> IpAddr {
        family.pick(
            Ipv4Addr::new(10, 244, self.number, host),
            Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, spell(host)),
        )
    }
}

/// A pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod {
    /// 1..=[`PODS`].
    pub number: u8,
}

/// All pods.
pub fn pods() -> impl Iterator<Item = Pod> {
    (1..=PODS).map(|number| Pod { number })
}

impl Pod {
    /// Namespace name and name of the Pod object.
    pub fn name(self) -> String {
        format!("p{}", self.number)
    }

    /// The worker it runs on.
    pub fn node(self) -> Node {
        Node { number: (self.number - 1) / PODS_PER_WORKER + 1 }
    }

    /// Its address.
    pub fn address(self, family: Family) -> IpAddr {
        self.node().in_prefix(family, 11 + (self.number - 1) % PODS_PER_WORKER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_map() {
        let last = Pod { number: 6 };
        assert_eq!(last.node().name(), "w3");
        assert_eq!(last.address(Family::V4).to_string(), "10.244.3.12");
        assert_eq!(last.address(Family::V6).to_string(), "fd00:10:244:3::12");
        assert_eq!(Node { number: 2 }.underlay(Family::V6).to_string(), "2001:db8:2::12");
        assert_eq!(GATEWAY_NODE.pod_cidr(Family::V6), "fd00:10:244:9::/64");
        assert_eq!(client_address(Family::V6, 21).to_string(), "2001:db8:1::21");
        assert_eq!(FULLNAT_V6.to_string(), "fd00:10:244:9::2");
        assert_eq!(GATEWAY_NODE.fullnat_source(Family::V6), FULLNAT_V6);
        assert_eq!(GATEWAY_NODE.fullnat_source(Family::V4), FULLNAT_V4);
        let second: Vec<String> = gateways(2).map(Node::name).collect();
        assert_eq!(second, ["gw-1", "gw-2"]);
        assert_eq!(GATEWAY_2_NODE.underlay(Family::V6).to_string(), "2001:db8:2::2");
        assert_eq!(on_link(201).v6.to_string(), "2001:db8:1::201");
        assert_eq!(VIP_ONLINK.at(Family::V6, 80).to_string(), "[2001:db8:1::200]:80");
    }
}
