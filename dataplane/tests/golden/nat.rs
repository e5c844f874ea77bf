//! Source addresses and ports: distinct, unpredictable, exact to the last one, and counted when there are no more.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_dataplane::rig::sketch::{tcp, udp};
use tidegate_dataplane::rig::{self, LAN, Net, Rig};
use tidegate_dataplane::table::nat::NatTable;

use crate::{STARTS, to_names, walked};

#[test]
fn flows_of_one_backend_have_distinct_unprivileged_ports_that_do_not_count_up() {
    // N-004, RFC 6056 section 3.3
    for net in Net::BOTH {
        let mut rig = crate::town();
        let mut ports = Vec::new();
        for n in 0..300u16 {
            rig.rx_wan(&udp((net.client(n), 1), crate::names(net)).data(*b"x"));
            let expected = udp((net.source(), 0), crate::names_pod(net)).data(*b"x").ttl(63);
            ports.push(rig.expect_overlay(net, 0, &expected).0);
        }
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 300);
        let near = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 16).count();
        assert!(near < 10, "{near} neighbours");
    }
}

#[test]
fn the_choice_depends_on_the_secret() {
    for net in Net::BOTH {
        let port = |seed| {
            let mut rig = Rig::with(crate::tables(), 64, 256, seed).unwrap();
            rig.rx_wan(&to_names(net));
            rig.expect_overlay(net, 0, &udp((net.source(), 0), crate::names_pod(net)).data(*b"who?").ttl(63)).0
        };
        assert_eq!(port(1), port(1));
        assert_ne!(port(1), port(2));
    }
}

#[test]
fn every_port_of_a_backend_can_be_used_and_the_next_flow_is_a_counted_drop() {
    // Design 6: capacity k × 64,512 per backend port. Another backend still has all of its ports.
    let net = Net::BOTH[0];
    let mut rig = Rig::with(crate::tables(), 70_000, 1024, 1).unwrap();
    let fill = 64_512u32;
    for n in 0..fill {
        let [_, _, high, low] = n.to_be_bytes();
        let client = std::net::Ipv4Addr::new(198, 19, high, low).into();
        rig.rx_wan(&udp((client, 5), crate::names(net)).data(*b"x"));
        if n % 256 == 255 {
            assert_eq!(rig.sent(LAN).len(), 256, "flow {n}");
        }
    }
    assert_eq!(rig.worker.state().v4.live(), fill);
    rig.moved();
    rig.rx_wan(&to_names(net));
    rig.expect_silence();
    rig.expect_counted(&walked("PortsExhausted"));
    rig.rx_wan(&crate::to_web(net).syn(1).mss(500));
    rig.expect_overlay(net, 0, &tcp((net.source(), 0), crate::web_pod(net)).syn(1).mss(500).ttl(63));
    rig.expect_counted(STARTS);
    // A second source address doubles the capacity.
    let second = [10, 244, 9, 3];
    rig.publish(|tables| {
        tables.nat = Arc::new(NatTable::new([[10, 244, 9, 2], second], tables.nat.sources_v6.to_vec()))
    });
    rig.rx_wan(&to_names(net));
    let source = std::net::Ipv4Addr::from(second).into();
    rig.expect_overlay(net, 0, &udp((source, 0), crate::names_pod(net)).data(*b"who?").ttl(63));
}

#[test]
fn without_a_source_address_nothing_is_sent() {
    for net in Net::BOTH {
        let mut tables = crate::tables();
        tables.nat = Arc::new(NatTable::default());
        let mut rig = Rig::new(tables).unwrap();
        rig.rx_wan(&to_names(net));
        rig.expect_silence();
        rig.expect_counted(&walked("NoSource"));
    }
}

#[test]
fn a_pod_on_a_port_of_its_own_shares_source_ports_with_others() {
    // The same pair serves any number of backends: nothing but the reply tuple must be unique.
    let net = Net::BOTH[0];
    let mut tables = rig::tables();
    for n in 0..4u8 {
        rig::add_service(&mut tables, u32::from(n), net.vip(n + 1), 53, 17, &[(net.pod(0, n + 1), 53, 1)]);
    }
    let mut rig = Rig::with(tables, 4096, 2048, 1).unwrap();
    let mut pairs = BTreeSet::new();
    for n in 0..2000u16 {
        let vip = net.vip((n % 4) as u8 + 1);
        rig.rx_wan(&udp((net.client(n), 1), (vip, 53)).data(*b"x"));
        let to = (net.pod(0, (n % 4) as u8 + 1), 53);
        let (port, _) = rig.expect_overlay(net, 0, &udp((net.source(), 0), to).data(*b"x").ttl(63));
        assert!(pairs.insert((to, port)));
    }
}

#[test]
fn a_port_is_free_again_when_its_flow_has_ended() {
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 16, 256, 1).unwrap();
        for round in 0..40u16 {
            rig.rx_wan(&udp((net.client(round), 1), crate::names(net)).data(*b"x"));
            assert_eq!(rig.sent(LAN).len(), 1, "round {round}");
            // Two minutes without an answer (N-104), and a lap of the sweep.
            rig.now_ns += 121_000_000_000;
            (0..5).for_each(|_| {
                rig.now_ns += 1_000_000_000;
                rig.turn();
            });
            assert_eq!(rig.worker.state().live(), 0);
        }
        let moved = rig.moved();
        assert_eq!((moved["flow_installed"], moved["flow_expired"]), (40, 40));
    }
}
