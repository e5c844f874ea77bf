//! The kernel itself as the other side, in a network namespace that vanishes with the test.
//!
//! Each test runs itself once more under unshare(1) and does its work there. Without root that fails, and so does the
//! test: a kernel test that skips itself proves nothing.

use std::net::IpAddr;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::monitor::Monitor;
use super::request::{Kernel, NeighbourRequests};
use super::*;

const INSIDE: &str = "TIDEGATE_TEST_NAMESPACE";

/// Runs `body` in a namespace of its own; `name` is the full path of the calling test.
pub(crate) fn in_namespace(name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1", name])
        .env(INSIDE, "1")
        .output()
        .expect("unshare(1) is needed");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} in its namespace (this needs root):\n{text}");
    assert!(text.contains("1 passed"), "{name} did not run:\n{text}");
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip(8) is needed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Two veth pairs; `far0` and `far1` in a namespace of their own answer ARP and NDP.
fn wire_up() {
    ip("link set lo up");
    Command::new("mkdir").args(["-p", "/run/netns"]).status().unwrap();
    Command::new("mount").args(["-t", "tmpfs", "none", "/run/netns"]).status().unwrap();
    ip("netns add far");
    for (number, (v4, v6)) in [("192.0.2", "2001:db8:1:"), ("198.51.100", "2001:db8:2:")].into_iter().enumerate() {
        ip(&format!(
            "link add near{number} address 02:00:00:00:00:0{number} type veth peer name far{number} netns far"
        ));
        ip(&format!("-n far link set far{number} address 02:00:00:00:01:0{number}"));
        ip(&format!("addr add {v4}.1/24 dev near{number}"));
        ip(&format!("addr add {v6}:1/64 dev near{number} nodad"));
        ip(&format!("-n far addr add {v4}.2/24 dev far{number}"));
        ip(&format!("-n far addr add {v6}:2/64 dev far{number} nodad"));
        ip(&format!("link set near{number} up"));
        ip(&format!("-n far link set far{number} up"));
    }
}

struct Watched {
    facts: KernelFacts,
    news: mpsc::Receiver<Change>,
    _monitor: Monitor,
}

impl Watched {
    fn start() -> Self {
        let (tell, news) = mpsc::channel();
        let (facts, monitor) = Monitor::start(None, move |change| tell.send(change).is_ok()).unwrap();
        Watched { facts, news, _monitor: monitor }
    }

    fn until(&mut self, what: &str, holds: impl Fn(&KernelFacts) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(&self.facts) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.news.recv_timeout(left) {
                Ok(change) => drop(self.facts.apply(change)),
                Err(_) => panic!("never saw: {what}\n{:#?}", self.facts),
            }
        }
    }
}

fn route<'a>(facts: &'a KernelFacts, prefix: &str) -> Option<&'a Route> {
    let prefix: IpNet = prefix.parse().unwrap();
    facts.layout.routes.iter().find(|route| route.prefix == prefix && route.table == Table::Main)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn links_addresses_and_routes_are_read_and_followed() {
    in_namespace("kernel::tests::links_addresses_and_routes_are_read_and_followed", || {
        wire_up();
        let mut watched = Watched::start();
        watched.until("both links up", |facts| facts.layout.links.values().filter(|link| link.up).count() == 3);
        let (index, link) = watched.facts.layout.link("near0").map(|(index, link)| (index, link.clone())).unwrap();
        assert_eq!((link.mac, link.mtu), (Some([2, 0, 0, 0, 0, 0]), 1500));
        for (own, prefix) in [("192.0.2.1", "192.0.2.0/24"), ("2001:db8:1::1", "2001:db8:1::/64")] {
            assert_eq!(watched.facts.layout.owner(address(own)), Some("near0"));
            let connected = route(&watched.facts, prefix).unwrap();
            assert_eq!(connected.hops, [Hop { gateway: None, ifindex: index, weight: 1, down: false }]);
            let own: IpNet = format!("{own}/{}", if own.contains(':') { 128 } else { 32 }).parse().unwrap();
            let local = watched.facts.layout.routes.iter().find(|route| route.prefix == own);
            assert_eq!(local.map(|route| (route.table, route.kind)), Some((Table::Local, RouteKind::Local)));
        }
        for (prefix, via) in [("203.0.113.0/24", "192.0.2.2"), ("2001:db8:f::/64", "2001:db8:1::2")] {
            ip(&format!("route add {prefix} via {via} metric 50 mtu 1400"));
            watched.until("the route added", |facts| route(facts, prefix).is_some());
            let got = route(&watched.facts, prefix).unwrap();
            assert_eq!((got.metric, got.mtu, got.hops[0].gateway), (50, Some(1400), Some(address(via))));
            ip(&format!("route del {prefix}"));
            watched.until("the route gone", |facts| route(facts, prefix).is_none());
        }
        for prefix in ["100.64.0.0/10", "2001:db8:dead::/48"] {
            for kind in ["blackhole", "unreachable", "prohibit"] {
                ip(&format!("route replace {kind} {prefix}"));
                watched.until(kind, |facts| route(facts, prefix).is_some_and(|route| route.kind == RouteKind::Discard));
                ip(&format!("route del {kind} {prefix}"));
                watched.until("gone", |facts| route(facts, prefix).is_none());
            }
        }
        // An IPv4 route over an IPv6 router, as unnumbered fabrics have it (RFC 5549).
        ip("route add 203.0.113.0/24 via inet6 fe80::2 dev near0");
        watched.until("via inet6", |facts| {
            route(facts, "203.0.113.0/24").is_some_and(|route| route.hops[0].gateway == Some(address("fe80::2")))
        });
    });
}

#[test]
fn multipath_routes_carry_their_weights() {
    in_namespace("kernel::tests::multipath_routes_carry_their_weights", || {
        wire_up();
        let mut watched = Watched::start();
        let cases = [
            ("203.0.113.0/24", ["192.0.2.2", "198.51.100.2"]),
            ("2001:db8:f::/64", ["2001:db8:1::2", "2001:db8:2::2"]),
        ];
        for (prefix, [first, second]) in cases {
            ip(&format!("route add {prefix} nexthop via {first} weight 3 nexthop via {second} weight 1"));
            watched.until("a multipath route", |facts| route(facts, prefix).is_some_and(|route| route.hops.len() == 2));
            let got = route(&watched.facts, prefix).unwrap();
            let hops: Vec<_> = got.hops.iter().map(|hop| (hop.gateway, hop.weight, hop.down)).collect();
            assert_eq!(hops, [(Some(address(first)), 3, false), (Some(address(second)), 1, false)]);
        }
        // The far end goes: the hops over it are down, whichever message the kernel chose to send.
        ip("-n far link set far1 down");
        watched.until("link down", |facts| facts.layout.link("near1").is_some_and(|(_, link)| !link.up));
        for (prefix, _) in cases {
            watched.until("hop down", |facts| {
                route(facts, prefix).is_none_or(|route| route.hops.len() == 1 || route.hops[1].down)
            });
        }
        // Routes of a device that is shut off vanish; IPv4 announces none of them.
        ip("link set near1 down");
        for prefix in ["198.51.100.0/24", "2001:db8:2::/64"] {
            watched.until("connected route gone", |facts| route(facts, prefix).is_none());
        }
    });
}

#[test]
fn neighbours_are_kept_resolved_and_their_loss_is_told() {
    in_namespace("kernel::tests::neighbours_are_kept_resolved_and_their_loss_is_told", || {
        wire_up();
        let mut watched = Watched::start();
        watched.until("both links up", |facts| facts.layout.links.values().filter(|link| link.up).count() == 3);
        let ifindex = watched.facts.layout.link("near0").unwrap().0;
        let mut kernel = Kernel::open().unwrap();
        for (there, absent) in [("192.0.2.2", "192.0.2.77"), ("2001:db8:1::2", "2001:db8:1::77")] {
            let key = NeighbourKey { ifindex, address: address(there) };
            assert!(kernel.keep(key).unwrap(), "this kernel knows NTF_EXT_MANAGED");
            watched.until("resolved and managed", |facts| {
                let entry = facts.neighbours.get(&key);
                entry.is_some_and(|entry| entry.managed && entry.usable_mac() == Some([2, 0, 0, 0, 1, 0]))
            });
            let lost = NeighbourKey { ifindex, address: address(absent) };
            kernel.keep(lost).unwrap();
            watched.until("failed", |facts| facts.neighbours.get(&lost).is_some_and(Neighbour::failed));
            // It turns up later: the kernel goes on asking by itself.
            let far = format!("{absent}/{}", if absent.contains(':') { 64 } else { 24 });
            ip(&format!("-n far addr add {far} dev far0"));
            watched.until("resolved late", |facts| {
                facts.neighbours.get(&lost).is_some_and(|entry| entry.usable_mac().is_some())
            });
            kernel.release(key).unwrap();
            watched.until("released", |facts| facts.neighbours.get(&key).is_none_or(|entry| !entry.managed));
            ip(&format!("neigh replace {there} lladdr 02:00:00:00:99:99 nud permanent dev near0"));
            watched.until("permanent", |facts| {
                facts.neighbours.get(&key).is_some_and(|entry| entry.state == nud::PERMANENT)
            });
            assert_eq!(watched.facts.neighbours[&key].usable_mac(), Some([2, 0, 0, 0, 0x99, 0x99]));
            ip(&format!("neigh del {there} dev near0"));
            watched
                .until("deleted", |facts| facts.neighbours.get(&key).is_none_or(|entry| entry.usable_mac().is_none()));
        }
        assert!(kernel.keep(NeighbourKey { ifindex: 9999, address: address("192.0.2.9") }).is_err());
    });
}
