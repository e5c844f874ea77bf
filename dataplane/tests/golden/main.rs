//! Golden features: frames in, frames out byte for byte, and exactly the counters that move.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use std::net::IpAddr;

use tidegate_api::resource::Service;
use tidegate_dataplane::rig::catalog::Catalog;
use tidegate_dataplane::rig::sketch::{End, Sketch, tcp, udp};
use tidegate_dataplane::rig::{self, Net, Rig};
use tidegate_dataplane::table::Tables;

mod parse;
mod flow;
mod service;
mod terms;
mod overrides;
mod affinity;
mod schedule;
mod node;
mod symmetric;
mod nat;
mod egress;
mod protocols;
mod identification;
mod pieces;
mod hairpin;
mod policy;
mod gatepolicy;
mod route;
mod encap;
mod decap;
mod local;
mod error;
mod overload;
mod fragment;
mod sctp;
mod tcp;
mod workers;
mod nic;
mod sticky;
mod books;
mod drops;
mod explain;
mod capture;
mod flows;
mod listing;
mod mutations;

/// TCP port 80 and UDP port 53 of `vip(1)` with one pod behind peer 0; TCP 81 and UDP 54 of it without any; TCP 80 of
/// the announced `vip(200)` with one pod behind peer 1.
fn tables() -> Tables {
    let mut tables = rig::tables();
    for net in Net::BOTH {
        let base = if net == Net::BOTH[0] { 0 } else { 10 };
        rig::add_service(&mut tables, base + 1, net.vip(1), 80, 6, &[(net.pod(0, 5), 8080, 1)]);
        rig::add_service(&mut tables, base + 2, net.vip(1), 53, 17, &[(net.pod(0, 5), 5353, 1)]);
        rig::add_service(&mut tables, base + 3, net.vip(1), 81, 6, &[]);
        rig::add_service(&mut tables, base + 4, net.vip(1), 54, 17, &[]);
        rig::add_service(&mut tables, base + 5, net.vip(200), 80, 6, &[(net.pod(1, 6), 8080, 1)]);
    }
    tables
}

/// One to three workers, and whether a NIC is followed that spreads clients over them; both families.
fn everywhere() -> impl Iterator<Item = ((u16, bool), Net)> {
    const TEAMS: [(u16, bool); 5] = [(1, false), (2, false), (3, false), (2, true), (3, true)];
    TEAMS.into_iter().flat_map(|team| Net::BOTH.map(|net| (team, net)))
}

fn town() -> Rig {
    Rig::new(tables()).unwrap()
}

fn client(net: Net) -> End {
    (net.client(7), 40_000)
}

fn web(net: Net) -> End {
    (net.vip(1), 80)
}

fn names(net: Net) -> End {
    (net.vip(1), 53)
}

fn web_pod(net: Net) -> End {
    (net.pod(0, 5), 8080)
}

fn names_pod(net: Net) -> End {
    (net.pod(0, 5), 5353)
}

/// From the client to the Service.
fn to_web(net: Net) -> Sketch {
    tcp(client(net), web(net))
}

/// From the client to the UDP Service.
fn to_names(net: Net) -> Sketch {
    udp(client(net), names(net)).data(*b"who?")
}

/// Opens a connection from [`client`] to [`web`]: SYN, SYN-ACK, ACK. The client's next number is 101, the pod's 501.
/// Returns the source port it was given; nothing is left unlooked at.
fn connect(rig: &mut Rig, net: Net) -> u16 {
    rig.rx_wan(&to_web(net).syn(100));
    let syn = tcp((net.source(), 0), web_pod(net)).syn(100).mss(mss(net)).ttl(63);
    let (port, _) = rig.expect_overlay(net, 0, &syn);
    rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), port)).syn_ack(500, 101));
    rig.expect_wan(&tcp(web(net), client(net)).syn_ack(500, 101).mss(mss(net)).ttl(63));
    rig.rx_wan(&to_web(net).ack(101, 501));
    rig.expect_overlay(net, 0, &tcp((net.source(), port), web_pod(net)).ack(101, 501).ttl(63));
    rig.moved();
    port
}

/// Sends one datagram to [`names`] and returns the source port it was given; nothing is left unlooked at.
fn ask(rig: &mut Rig, net: Net) -> u16 {
    rig.rx_wan(&to_names(net));
    let (port, _) = rig.expect_overlay(net, 0, &udp((net.source(), 0), names_pod(net)).data(*b"who?").ttl(63));
    rig.moved();
    port
}

/// What an MSS is clamped to: 1500 - 50 - 40 or 1500 - 70 - 60 (V-009, V-013).
fn mss(net: Net) -> u16 {
    if net == Net::BOTH[0] { 1410 } else { 1370 }
}

/// What the overlay carries: 1450 or 1430.
fn inner_mtu(net: Net) -> u16 {
    1500 - net.overhead()
}

/// What one packet of a known flow moves.
const HIT_OUT: &[(&str, u64)] = &[("received", 1), ("flow_hit", 1), ("encapsulated", 1), ("sent", 1)];
/// What one packet of a known flow, coming out of the overlay, moves.
const HIT_BACK: &[(&str, u64)] = &[("received", 1), ("flow_hit", 1), ("decapsulated", 1), ("sent", 1)];
/// What the first packet of a flow moves.
const STARTS: &[(&str, u64)] =
    &[("received", 1), ("slow_walk", 1), ("flow_installed", 1), ("encapsulated", 1), ("sent", 1)];

/// What a dropped packet moves that walked the stages.
fn walked(reason: &'static str) -> [(&'static str, u64); 3] {
    [("received", 1), ("slow_walk", 1), (reason, 1)]
}

/// `more` beside `these`.
fn and(these: &[(&'static str, u64)], more: &[(&'static str, u64)]) -> Vec<(&'static str, u64)> {
    [these, more].concat()
}

/// A gateway with these Services, as the contract tells them.
fn gateway_of(services: &[(&str, Service)]) -> (Rig, Catalog) {
    let (mut tables, mut catalog) = (rig::tables(), Catalog::default());
    for (name, service) in services {
        catalog.put(&mut tables, name, service);
    }
    (Rig::new(tables).unwrap(), catalog)
}

/// Addresses and ports of the pods that packets were sent to since the last look, in order.
fn went_to(rig: &mut Rig) -> Vec<End> {
    let end = |frame: &Vec<u8>| {
        let (_, _, inner) = rig::into_peer(frame).expect("VXLAN");
        let inner = etherparse::SlicedPacket::from_ethernet(inner).unwrap();
        let address = match inner.net.unwrap() {
            etherparse::NetSlice::Ipv4(ip) => IpAddr::V4(ip.header().destination_addr()),
            etherparse::NetSlice::Ipv6(ip) => IpAddr::V6(ip.header().destination_addr()),
            etherparse::NetSlice::Arp(_) => panic!("not IP"),
        };
        let port = match inner.transport.unwrap() {
            etherparse::TransportSlice::Tcp(tcp) => tcp.destination_port(),
            etherparse::TransportSlice::Udp(udp) => udp.destination_port(),
            other => panic!("{other:?}"),
        };
        (address, port)
    };
    rig.sent(rig::LAN).iter().map(end).collect()
}

/// Opens a connection and says which pod it went to; `None`: it went nowhere.
fn pod_of(rig: &mut Rig, from: End, to: End) -> Option<IpAddr> {
    rig.rx_wan(&tcp(from, to).syn(1));
    went_to(rig).pop().map(|(address, _)| address)
}
