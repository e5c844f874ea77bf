use std::fs;

use proptest::prelude::*;
use tidegate_api::resource::{
    Backend, Body, Decap, DeliveryMode, Egress, Gateway, MacAddress, OrphanTcp, Peer, PeerVtep, PolicyOptions,
    Protocol, Service, ServicePort, SourceBackend, StaticNat, Vtep,
};

use super::*;
use crate::kernel::{Address, Layout, Link};

/// The gateway of the tests: one VTEP and one source per family.
pub(crate) fn gateway() -> Gateway {
    let vtep = |underlay: &str, overlay: &str, mac| Vtep {
        underlay: underlay.parse().unwrap(),
        mac: MacAddress([2, 0, 0, 0, 9, mac]),
        overlay: overlay.parse().unwrap(),
        vni: 1,
        port: 8472,
    };
    Gateway {
        vtep_v4: Some(vtep("198.51.100.1", "10.244.9.0", 4)),
        vtep_v6: Some(vtep("2001:db8:2::1", "fd00:10:244:9::", 6)),
        fullnat_sources: vec!["10.244.9.2".parse().unwrap(), "fd00:10:244:9::2".parse().unwrap()],
        pod_cidrs: vec!["10.244.9.0/24".parse().unwrap(), "fd00:10:244:9::/64".parse().unwrap()],
        hash_key: "00112233445566778899aabbccddeeff".into(),
        orphan_tcp: OrphanTcp::Drop,
        clamp_mss: true,
        decap: None,
        health_port: Some(10256),
        policy: PolicyOptions::default(),
        gateways: vec![],
    }
}

/// Worker `number` as a peer, both families.
pub(crate) fn peer(number: u8) -> Peer {
    let vtep = |underlay: String, prefix: String, mac| PeerVtep {
        underlay: underlay.parse().unwrap(),
        mac: MacAddress([2, 0, 0, 0, mac, number]),
        vni: 1,
        port: 8472,
        pod_cidrs: vec![prefix.parse().unwrap()],
    };
    Peer {
        v4: Some(vtep(format!("198.51.100.1{number}"), format!("10.244.{number}.0/24"), 4)),
        v6: Some(vtep(format!("2001:db8:2::1{number}"), format!("fd00:10:244:{number}::/64"), 6)),
    }
}

pub(crate) fn backend(address: &str, port: u16, weight: u16) -> Backend {
    Backend {
        address: address.parse().unwrap(),
        port,
        weight,
        local_weight: weight,
        node: "w1".into(),
        pod: "p1".into(),
    }
}

/// A Service of one TCP port.
pub(crate) fn service(addresses: &[&str], port: u16, backends: &[Backend]) -> Service {
    Service {
        uid: "uid-1".into(),
        created_at_s: 100,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port,
            mode: DeliveryMode::Fullnat,
            backends: backends.to_vec(),
            ..ServicePort::default()
        }],
        ..Service::default()
    }
}

pub(crate) fn named(name: &str, version: &str, body: impl Into<Wrapped>) -> Resource {
    Resource { name: name.into(), version: version.into(), body: body.into().0 }
}

pub(crate) struct Wrapped(Body);

impl From<Gateway> for Wrapped {
    fn from(body: Gateway) -> Self {
        Wrapped(Body::Gateway(body))
    }
}

impl From<Peer> for Wrapped {
    fn from(body: Peer) -> Self {
        Wrapped(Body::Peer(body))
    }
}

impl From<Service> for Wrapped {
    fn from(body: Service) -> Self {
        Wrapped(Body::Service(body))
    }
}

impl From<Egress> for Wrapped {
    fn from(body: Egress) -> Self {
        Wrapped(Body::Egress(body))
    }
}

impl From<StaticNat> for Wrapped {
    fn from(body: StaticNat) -> Self {
        Wrapped(Body::StaticNat(body))
    }
}

pub(crate) fn incremental(resources: Vec<Resource>) -> Update {
    Update { nonce: 1, resources, ..Update::default() }
}

pub(crate) fn full(resources: Vec<Resource>) -> Update {
    Update { full: true, ..incremental(resources) }
}

/// A machine with wan0 (2) and lan0 (3), addressed as the tests' gateway.
pub(crate) fn machine() -> Layout {
    let mut layout = Layout::default();
    for (ifindex, name) in [(2, "wan0"), (3, "lan0")] {
        let last = u8::try_from(ifindex).unwrap();
        layout.links.insert(ifindex, Link { name: name.into(), mac: Some([2, 0, 0, 0, 0, last]), mtu: 1500, up: true });
    }
    for (ifindex, address, prefix) in [
        (2, "192.0.2.1", "192.0.2.0/24"),
        (2, "2001:db8:1::1", "2001:db8:1::/64"),
        (2, "fe80::2", "fe80::/64"),
        (3, "198.51.100.1", "198.51.100.0/24"),
        (3, "2001:db8:2::1", "2001:db8:2::/64"),
        (3, "fe80::3", "fe80::/64"),
    ] {
        let (address, prefix) = (address.parse().unwrap(), prefix.parse().unwrap());
        layout.addresses.insert(Address { ifindex, address, prefix });
    }
    layout
}

fn refusal(resource: Resource) -> String {
    let machine = machine();
    let outcome = Objects::default().apply(incremental(vec![resource]), Some(&machine));
    assert!(outcome.changes.is_empty(), "{:?}", outcome.changes);
    outcome.rejected.into_iter().next().expect("refused").reason
}

#[test]
fn good_objects_of_both_families_are_taken() {
    let mut objects = Objects::default();
    let web = service(&["203.0.113.10", "2001:db8:f::10"], 80, &[backend("10.244.1.5", 8080, 1)]);
    let update = full(vec![named("gw", "1", gateway()), named("w1", "1", peer(1)), named("shop/web", "1", web)]);
    let outcome = objects.apply(update.clone(), Some(&machine()));
    assert_eq!(outcome.rejected, []);
    assert_eq!((outcome.changes.len(), objects.len()), (3, 3));
    let again = objects.apply(update, Some(&machine()));
    assert!(again.changes.is_empty() && again.rejected.is_empty(), "the same again is no change");
}

#[test]
fn bad_gateways_are_refused_by_field() {
    type Spoil = fn(&mut Gateway);
    let table: [(Spoil, &str); 16] = [
        (|g| g.vtep_v4.as_mut().unwrap().port = 0, "vtep_v4.port: must not be 0"),
        (|g| g.vtep_v6.as_mut().unwrap().port = 0, "vtep_v6.port: must not be 0"),
        (|g| g.vtep_v4.as_mut().unwrap().vni = 1 << 24, "vtep_v4.vni: 16777216 does not fit 24 bits"),
        (|g| g.vtep_v4.as_mut().unwrap().mac = MacAddress([0; 6]), "vtep_v4.mac: is all zero"),
        (
            |g| g.vtep_v6.as_mut().unwrap().mac = MacAddress([1, 0, 0x5e, 0, 0, 1]),
            "vtep_v6.mac: 01:00:5e:00:00:01 is a multicast",
        ),
        (
            |g| g.vtep_v4.as_mut().unwrap().underlay = "2001:db8:2::1".parse().unwrap(),
            "vtep_v4.underlay: 2001:db8:2::1 is not IPv4",
        ),
        (
            |g| g.vtep_v6.as_mut().unwrap().overlay = "10.0.0.1".parse().unwrap(),
            "vtep_v6.overlay: 10.0.0.1 is not IPv6",
        ),
        (
            |g| g.vtep_v4.as_mut().unwrap().underlay = "198.51.100.9".parse().unwrap(),
            "vtep_v4.underlay: 198.51.100.9 is not an address of this machine",
        ),
        (
            |g| g.vtep_v6.as_mut().unwrap().underlay = "2001:db8:2::9".parse().unwrap(),
            "vtep_v6.underlay: 2001:db8:2::9 is not an address of this machine",
        ),
        (
            |g| g.fullnat_sources[0] = "10.244.9.0".parse().unwrap(),
            "fullnat_sources[0]: 10.244.9.0 is the overlay address",
        ),
        (
            |g| g.fullnat_sources[1] = "fd00:10:244:8::2".parse().unwrap(),
            "fullnat_sources[1]: fd00:10:244:8::2 lies in none",
        ),
        (|g| g.fullnat_sources[1] = g.fullnat_sources[0], "fullnat_sources[1]: 10.244.9.2 is listed twice"),
        (
            |g| g.fullnat_sources[0] = "0.0.0.0".parse().unwrap(),
            "fullnat_sources[0]: 0.0.0.0 is the unspecified address",
        ),
        (|g| g.pod_cidrs[0] = "0.0.0.0/0".parse().unwrap(), "pod_cidrs[0]: 0.0.0.0/0 would take all traffic"),
        (|g| g.hash_key = "abc".into(), "hash_key: is not 16 bytes"),
        (|g| g.hash_key = "+0112233445566778899aabbccddeeff".into(), "hash_key: is not 16 bytes"),
    ];
    for (spoil, expected) in table {
        let mut body = gateway();
        spoil(&mut body);
        let got = refusal(named("gw", "1", body));
        assert!(got.starts_with(expected), "{got}\nis not\n{expected}");
    }
}

#[test]
fn bad_peers_are_refused_by_field() {
    type Spoil = fn(&mut Peer);
    let table: [(Spoil, &str); 10] = [
        (
            |p| p.v4.as_mut().unwrap().pod_cidrs.push("198.51.100.0/24".parse().unwrap()),
            "v4.pod_cidrs[1]: 198.51.100.0/24 holds 198.51.100.1, this machine's own",
        ),
        (
            |p| p.v6.as_mut().unwrap().pod_cidrs.push("2001:db8::/32".parse().unwrap()),
            "v6.pod_cidrs[1]: 2001:db8::/32 holds 2001:db8:",
        ),
        (|p| (p.v4, p.v6) = (None, None), "v4: neither v4 nor v6"),
        (|p| p.v4.as_mut().unwrap().port = 0, "v4.port: must not be 0"),
        (|p| p.v6.as_mut().unwrap().vni = u32::MAX, "v6.vni: 4294967295 does not fit 24 bits"),
        (|p| p.v6.as_mut().unwrap().mac.0[0] = 3, "v6.mac: 03:00:00:00:06:01 is a multicast"),
        (|p| p.v4.as_mut().unwrap().underlay = "224.0.0.1".parse().unwrap(), "v4.underlay: 224.0.0.1 is a multicast"),
        (
            |p| p.v6.as_mut().unwrap().underlay = "::ffff:10.0.0.1".parse().unwrap(),
            "v6.underlay: ::ffff:10.0.0.1 is an IPv4-mapped",
        ),
        (
            |p| p.v4.as_mut().unwrap().pod_cidrs.push("fd00::/64".parse().unwrap()),
            "v4.pod_cidrs[1]: fd00:: is not IPv4",
        ),
        (|p| p.v6.as_mut().unwrap().pod_cidrs.push("::/0".parse().unwrap()), "v6.pod_cidrs[1]: ::/0 would take all"),
    ];
    for (spoil, expected) in table {
        let mut body = peer(1);
        spoil(&mut body);
        let got = refusal(named("w1", "1", body));
        assert!(got.starts_with(expected), "{got}\nis not\n{expected}");
    }
}

#[test]
fn bad_tunnel_ends_are_refused_by_field() {
    type Spoil = fn(&mut Decap);
    let table: [(Spoil, &str); 7] = [
        (|d| d.addresses.clear(), "decap.addresses: is empty"),
        (|d| d.addresses.push(d.addresses[0]), "decap.addresses[1]: 192.0.2.1 is listed twice"),
        (|d| d.addresses[0] = "224.0.0.1".parse().unwrap(), "decap.addresses[0]: 224.0.0.1 is a multicast"),
        (|d| d.addresses[0] = "2001:db8::1".parse().unwrap(), "decap.addresses[0]: 2001:db8::1 has no source"),
        (
            |d| d.sources[0] = "0.0.0.0/0".parse().unwrap(),
            "decap.sources[0]: 0.0.0.0/0 would take packets from anybody",
        ),
        (|d| d.gue_port = Some(0), "decap.gue_port: must not be 0"),
        (|d| d.gue_port = Some(8472), "decap.gue_port: is the port of the overlay"),
    ];
    for (spoil, expected) in table {
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        let mut decap = Decap { addresses, sources: vec!["198.51.100.0/24".parse().unwrap()], gue_port: Some(6080) };
        let body = |decap: &Decap| Gateway { decap: Some(decap.clone()), ..gateway() };
        assert_eq!(validate::resource(&named("gw", "1", body(&decap))), Ok(()));
        spoil(&mut decap);
        let got = refusal(named("gw", "1", body(&decap)));
        assert!(got.starts_with(expected), "{got}\nis not\n{expected}");
    }
}

fn sent(sources: &str, address: &str) -> SourceBackend {
    SourceBackend { sources: sources.parse().unwrap(), address: address.parse().unwrap() }
}

#[test]
fn bad_services_are_refused_by_field() {
    type Spoil = fn(&mut Service);
    let table: [(Spoil, &str); 32] = [
        (|s| s.ports[0].backends[0].port = 0, "ports[0].backends[0].port: must not be 0"),
        (|s| s.ports.push(s.ports[0].clone()), "ports[1]: 80/TCP is listed twice"),
        (|s| s.addresses.push(s.addresses[1]), "addresses[2]: 2001:db8:f::10 is listed twice"),
        (|s| s.addresses[0] = "127.0.0.1".parse().unwrap(), "addresses[0]: 127.0.0.1 is a loopback"),
        (|s| s.addresses[1] = "::1".parse().unwrap(), "addresses[1]: ::1 is a loopback"),
        (|s| s.addresses[1] = "fe80::1".parse().unwrap(), "addresses[1]: fe80::1 is a link-local"),
        (|s| s.addresses[0] = "169.254.1.1".parse().unwrap(), "addresses[0]: 169.254.1.1 is a link-local"),
        (|s| s.addresses[0] = "255.255.255.255".parse().unwrap(), "addresses[0]: 255.255.255.255 is the broadcast"),
        (|s| s.addresses[0] = "0.1.2.3".parse().unwrap(), "addresses[0]: 0.1.2.3 is in 0.0.0.0/8"),
        (|s| s.addresses[1] = "ff02::1".parse().unwrap(), "addresses[1]: ff02::1 is a multicast"),
        (
            |s| s.ports[0].backends[0].address = "::".parse().unwrap(),
            "ports[0].backends[0].address: :: is the unspecified",
        ),
        (
            |s| s.ports[0].backends.push(backend("10.244.1.5", 8080, 0)),
            "ports[0].backends[1]: 10.244.1.5 port 8080 is listed twice",
        ),
        (
            |s| s.external_addresses = vec![s.addresses[0]],
            "external_addresses[0]: 203.0.113.10 stands in another list too",
        ),
        (|s| s.cluster_addresses = vec!["ff02::1".parse().unwrap()], "cluster_addresses[0]: ff02::1 is a multicast"),
        (
            |s| s.node_addresses = vec!["192.0.2.9".parse().unwrap()],
            "node_addresses[0]: 192.0.2.9 is not an address of",
        ),
        (|s| s.node_addresses = vec!["2001:db8:1::9".parse().unwrap()], "node_addresses[0]: 2001:db8:1::9 is not an"),
        (|s| s.prefixes = vec!["0.0.0.0/0".parse().unwrap()], "prefixes[0]: 0.0.0.0/0 would take all traffic"),
        (|s| s.prefixes = vec!["::/0".parse().unwrap()], "prefixes[0]: ::/0 would take all traffic"),
        (|s| s.prefixes = vec!["224.0.0.0/24".parse().unwrap()], "prefixes[0]: 224.0.0.0 is a multicast"),
        (|s| s.prefixes = vec!["192.0.2.0/24".parse().unwrap()], "prefixes[0]: 192.0.2.0/24 holds 192.0.2.1, this"),
        (|s| s.prefixes = vec!["2001:db8::/32".parse().unwrap()], "prefixes[0]: 2001:db8::/32 holds 2001:db8:"),
        (|s| s.prefixes = vec!["203.0.113.0/24".parse().unwrap(); 2], "prefixes[1]: 203.0.113.0/24 is listed twice"),
        (|s| s.ports[0].node_port = Some(0), "ports[0].node_port: must not be 0"),
        (
            |s| {
                s.ports[0].node_port = Some(30_080);
                s.ports.push(tidegate_api::resource::ServicePort { port: 81, ..s.ports[0].clone() })
            },
            "ports[1].node_port: 30080/TCP is listed twice",
        ),
        (
            |s| (s.ports[0].port, s.ports[0].node_port) = (0, Some(30_080)),
            "ports[0].node_port: one port cannot stand for every port",
        ),
        (|s| s.ports[0].affinity_timeout_s = Some(0), "ports[0].affinity_timeout_s: 0 is not between"),
        (|s| s.ports[0].affinity_timeout_s = Some(86_401), "ports[0].affinity_timeout_s: 86401 is not between"),
        (|s| s.ports[0].one_packet = true, "ports[0].one_packet: is for UDP only"),
        (
            |s| (s.ports[0].one_packet, s.ports[0].protocol) = (true, Protocol::Udp),
            "ports[0].one_packet: needs a mode that keeps the client's address",
        ),
        (
            |s| s.ports[0].source_backends = vec![sent("10.1.0.0/17", "2001:db8::5")],
            "ports[0].source_backends[0].address: 2001:db8::5 is not IPv4",
        ),
        (
            |s| s.ports[0].source_backends = vec![sent("2001:db8::/48", "fd00::5"); 2],
            "ports[0].source_backends[1]: 2001:db8::/48 is listed twice",
        ),
        (|s| s.ports[0].backends[0].node.clear(), "ports[0].backends[0].local_weight: is not 0 and no node is named"),
    ];
    for (spoil, expected) in table {
        let mut body = service(&["203.0.113.10", "2001:db8:f::10"], 80, &[backend("10.244.1.5", 8080, 1)]);
        spoil(&mut body);
        let got = refusal(named("shop/web", "1", body));
        assert!(got.starts_with(expected), "{got}\nis not\n{expected}");
    }
}

#[test]
fn the_last_good_version_stays_in_force() {
    let mut objects = Objects::default();
    let good = service(&["203.0.113.10"], 80, &[]);
    objects.apply(incremental(vec![named("shop/web", "1", good.clone())]), None);
    let mut bad = good.clone();
    bad.ports[0].node_port = Some(0);
    for update in [incremental as fn(_) -> _, full] {
        let outcome = objects.apply(update(vec![named("shop/web", "2", bad.clone())]), None);
        assert_eq!(outcome.rejected[0].version, "2");
        assert!(outcome.changes.is_empty());
        assert_eq!(objects.versions()[&key(Kind::Service, "shop/web")], "1");
    }
    let outcome = objects.apply(full(vec![]), None);
    assert_eq!((outcome.changes.len(), objects.len()), (1, 0), "a full update removes what it does not list");
}

#[test]
fn a_frontend_has_one_owner() {
    // S-067, as the fence behind control.
    for vip in ["203.0.113.10", "2001:db8:f::10"] {
        let mut objects = Objects::default();
        objects.apply(incremental(vec![named("shop/old", "1", service(&[vip], 80, &[]))]), None);
        let outcome = objects.apply(incremental(vec![named("shop/new", "1", service(&[vip], 80, &[]))]), None);
        assert!(outcome.rejected[0].reason.contains("already belongs to service shop/old"), "{:?}", outcome.rejected);
        // Another port or protocol of the same address is free.
        let mut other = service(&[vip], 80, &[]);
        other.ports[0].protocol = Protocol::Udp;
        assert!(objects.apply(incremental(vec![named("shop/udp", "1", other)]), None).rejected.is_empty());
        // In one update the older wins, whatever the order in it.
        let mut objects = Objects::default();
        let older = Service { created_at_s: 1, ..service(&[vip], 80, &[]) };
        let both = vec![named("a", "1", service(&[vip], 80, &[])), named("b", "1", older)];
        let outcome = objects.apply(incremental(both), None);
        assert_eq!(outcome.rejected[0].key.name, "a");
        assert_eq!(objects.len(), 1);
    }
}

#[test]
fn objects_may_trade_claims_in_one_update_and_keep_theirs_when_that_fails() {
    let [one, two] = ["203.0.113.1", "2001:db8:f::2"];
    let mut objects = Objects::default();
    let of = |name: &str, version: &str, vip: &str| named(name, version, service(&[vip], 80, &[]));
    objects.apply(incremental(vec![of("a", "1", one), of("b", "1", two)]), None);
    let outcome = objects.apply(incremental(vec![of("a", "2", two), of("b", "2", one)]), None);
    assert!(outcome.rejected.is_empty(), "{:?}", outcome.rejected);
    // b wants what c holds and is refused; a wanted b's old address, which b therefore keeps.
    objects.apply(incremental(vec![of("c", "1", "203.0.113.3")]), None);
    let outcome = objects.apply(incremental(vec![of("a", "3", one), of("b", "3", "203.0.113.3")]), None);
    assert_eq!(outcome.rejected.len(), 2, "{:?}", outcome.rejected);
    assert_eq!(objects.versions()[&key(Kind::Service, "a")], "2");
    assert_eq!(objects.versions()[&key(Kind::Service, "b")], "2");
}

#[test]
fn a_state_directory_is_tried_out_and_left_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("state");
    saved::try_out(&inner).unwrap();
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 0);
    // Below a file there is no directory, whoever asks.
    fs::write(directory.path().join("file"), "").unwrap();
    assert!(saved::try_out(&directory.path().join("file/state")).is_err());
}

#[test]
fn a_service_cannot_answer_for_a_peer_or_its_pods() {
    let mut objects = Objects::default();
    objects.apply(full(vec![named("gw", "1", gateway()), named("w1", "1", peer(1))]), None);
    for (vip, expected) in [
        ("198.51.100.11", "addresses[0]: 198.51.100.11 is the underlay address of peer w1"),
        ("2001:db8:2::11", "addresses[0]: 2001:db8:2::11 is the underlay address of peer w1"),
        ("10.244.1.5", "addresses[0]: 10.244.1.5 lies in pod prefix 10.244.1.0/24 of peer w1"),
        ("fd00:10:244:1::5", "addresses[0]: fd00:10:244:1::5 lies in pod prefix fd00:10:244:1::/64 of peer w1"),
    ] {
        let bad = || named("shop/bad", "1", service(&[vip], 80, &[]));
        let outcome = objects.apply(incremental(vec![bad()]), None);
        assert_eq!(outcome.rejected.iter().map(|refused| refused.reason.as_str()).collect::<Vec<_>>(), [expected]);
        // Together with the peer, in one update, it is the same.
        let outcome = objects.apply(full(vec![bad(), named("w1", "2", peer(1))]), None);
        assert_eq!((outcome.rejected.len(), objects.len()), (1, 1), "{:?}", outcome.rejected);
        // A peer that comes later is not kept out by a Service.
        let mut objects = Objects::default();
        assert!(objects.apply(full(vec![bad()]), None).rejected.is_empty());
        assert!(objects.apply(incremental(vec![named("w1", "1", peer(1))]), None).rejected.is_empty());
        assert!(
            objects.apply(incremental(vec![named("shop/bad", "2", service(&[], 80, &[]))]), None).rejected.is_empty()
        );
    }
}

#[test]
fn prefixes_underlays_and_reserved_addresses_have_one_owner() {
    let mut objects = Objects::default();
    objects.apply(full(vec![named("gw", "1", gateway()), named("w1", "1", peer(1))]), None);
    let refused = |objects: &mut Objects, resource| {
        objects.apply(incremental(vec![resource]), None).rejected.pop().expect("refused").reason
    };
    let mut twin = peer(2);
    twin.v6.as_mut().unwrap().pod_cidrs = peer(1).v6.unwrap().pod_cidrs;
    let reason = refused(&mut objects, named("w2", "1", twin));
    assert_eq!(reason, "v6.pod_cidrs[0]: prefix fd00:10:244:1::/64 already belongs to peer w1");
    let mut twin = peer(2);
    twin.v4.as_mut().unwrap().underlay = "198.51.100.1".parse().unwrap();
    let reason = refused(&mut objects, named("w2", "1", twin));
    assert_eq!(reason, "v4.underlay: underlay address 198.51.100.1 of network 1 already belongs to gateway gw");
    assert!(refused(&mut objects, named("gw2", "1", gateway())).contains("already belongs to gateway gw"));
    for reserved in ["10.244.9.2", "fd00:10:244:9::"] {
        let reason = refused(&mut objects, named("s", "1", service(&[reserved], 80, &[])));
        assert_eq!(reason, format!("addresses[0]: {reserved} is reserved by gateway gw"));
    }
    objects.apply(incremental(vec![named("s", "1", service(&["10.244.9.7"], 80, &[]))]), None);
    let mut greedy = gateway();
    greedy.fullnat_sources.push("10.244.9.7".parse().unwrap());
    let reason = refused(&mut objects, named("gw", "2", greedy));
    assert_eq!(reason, "fullnat_sources[2]: 10.244.9.7 is an address of a Service (service s)");
}

#[test]
fn who_wants_an_address_is_told_what_it_is() {
    for [address, other, pod] in
        [["192.0.2.10", "192.0.2.11", "10.244.1.5"], ["2001:db8::10", "2001:db8::11", "fd00:10:244:1::5"]]
    {
        let mut objects = Objects::default();
        let egress = |address: &str| {
            let text = format!("{{\"addresses\":[\"{address}\"]}}");
            serde_json::from_str::<Egress>(&text).unwrap()
        };
        let nat = |address: &str| {
            let (external, internal) = (address.parse().unwrap(), pod.parse().unwrap());
            StaticNat { external, internal, ports: Vec::new() }
        };
        let accepted = objects.apply(full(vec![named("gw", "1", gateway()), named("out", "1", egress(address))]), None);
        assert!(accepted.rejected.is_empty(), "{:?}", accepted.rejected);
        let mut refused = |resource| {
            let rejected = objects.apply(incremental(vec![resource]), None).rejected;
            rejected.into_iter().map(|refused| refused.reason).collect::<Vec<_>>()
        };
        let reason = format!("external: {address} is an external address of pods (egress policy out)");
        assert_eq!(refused(named("door", "1", nat(address))), [reason]);
        let mut greedy = gateway();
        greedy.fullnat_sources = vec![address.parse().unwrap()];
        greedy.pod_cidrs.clear();
        let reason = format!("fullnat_sources[0]: {address} is an external address of pods (egress policy out)");
        assert_eq!(refused(named("gw", "2", greedy.clone())), [reason]);
        assert_eq!(refused(named("door", "2", nat(other))), [""; 0]);
        greedy.fullnat_sources = vec![other.parse().unwrap()];
        let reason = format!("fullnat_sources[0]: address {other} already belongs to static NAT door");
        assert_eq!(refused(named("gw", "3", greedy)), [reason]);
    }
}

#[test]
fn an_object_listed_twice_and_an_unknown_removal_do_no_harm() {
    let mut objects = Objects::default();
    let twice = vec![named("s", "1", service(&["203.0.113.1"], 80, &[])), named("s", "2", service(&[], 81, &[]))];
    let mut update = incremental(twice);
    update.removed.push(key(Kind::Peer, "nobody"));
    let outcome = objects.apply(update, None);
    assert!(outcome.rejected[0].reason.contains("twice in one update"));
    assert_eq!(objects.versions()[&key(Kind::Service, "s")], "1");
}

proptest! {
    /// Whatever is sent in whatever order, no two objects in force claim the same thing, and the books of claims hold
    /// exactly what the objects in force claim.
    #[test]
    fn claims_are_exactly_those_of_what_is_in_force(
        steps in proptest::collection::vec((any::<bool>(), proptest::collection::vec((0..5u8, 0..4u8, 0..3u16, any::<bool>()), 0..6)), 1..12)
    ) {
        let mut objects = Objects::default();
        for (number, (whole, entries)) in steps.into_iter().enumerate() {
            let mut update = Update { full: whole, ..Update::default() };
            for (name, vip, port, remove) in entries {
                let name = format!("s{name}");
                if remove {
                    update.removed.push(key(Kind::Service, &name));
                } else {
                    let vip = if vip % 2 == 0 { format!("203.0.113.{}", vip + 1) } else { format!("2001:db8:f::{}", vip + 1) };
                    update.resources.push(named(&name, &number.to_string(), service(&[&vip], 80 + port, &[])));
                }
            }
            objects.apply(update, None);
            let expected: Vec<_> = objects.iter().flat_map(|r| claims(r).into_iter().map(|(_, claim)| (claim, r.key()))).collect();
            prop_assert_eq!(expected.len(), objects.claims.len());
            for (claim, holder) in expected {
                prop_assert_eq!(&objects.claims[&claim], &holder);
            }
            let vip_uses: usize = objects.iter().map(|r| places(r).count()).sum();
            prop_assert_eq!(objects.places.values().map(|count| *count as usize).sum::<usize>(), vip_uses);
        }
    }
}

#[test]
fn what_is_saved_is_loaded_and_a_broken_file_is_kept_aside() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("state");
    assert!(saved::load(&place).is_empty(), "no file: no objects");
    let mut objects = Objects::default();
    let web = service(&["203.0.113.10", "2001:db8:f::10"], 80, &[backend("10.244.1.5", 8080, 0)]);
    objects
        .apply(full(vec![named("gw", "1", gateway()), named("w1", "7", peer(1)), named("shop/web", "3", web)]), None);
    saved::save(&place, &objects.snapshot()).unwrap();
    let mut loaded = Objects::default();
    assert!(loaded.apply(full(saved::load(&place)), None).rejected.is_empty());
    assert_eq!(loaded.snapshot(), objects.snapshot());
    assert_eq!(loaded.versions(), objects.versions());

    for broken in ["{", "{\"format\":2,\"resources\":[{}]}", "{\"format\":99,\"resources\":[]}", ""] {
        fs::write(place.join(saved::FILE_NAME), broken).unwrap();
        assert!(saved::load(&place).is_empty());
        assert!(!place.join(saved::FILE_NAME).exists());
        assert_eq!(fs::read_to_string(place.join("objects.json.unusable")).unwrap(), broken);
    }
}
