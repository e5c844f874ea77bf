//! The agent between real namespaces: the kernel's VXLAN, flannel's and Calico's rules, gateways that are plain routers.
#![cfg(feature = "kernel-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;

use support::*;

fn to_server(family: u8, number: u8) -> SocketAddr {
    SocketAddr::new(server(family, number), PORT)
}

/// N-113, V-027, V-033: whoever masquerades, a selected pod's packets reach the gateway with its own address, and what is
/// not selected is masqueraded as before.
#[test]
fn selected_pods_leave_by_a_gateway_whoever_masquerades() {
    isolated("selected_pods_leave_by_a_gateway_whoever_masquerades", || {
        build();
        serve("out");
        tell(&wanted(&[1], &[11], ""));
        let _agent = Agent::start(&[]);
        settled();
        for masquerade in MASQUERADES {
            masquerade.put();
            ["out", "gw1", "gw2"].into_iter().for_each(forget);
            for family in FAMILIES {
                let to = to_server(family, 100);
                assert_eq!(who_tcp("p1", to), Ok(gateway(family, 1)), "{masquerade:?} TCP");
                assert_eq!(who_udp("p1", to), Ok(gateway(family, 1)), "{masquerade:?} UDP");
                assert!(ping("p1", to.ip()), "{masquerade:?} ICMP {family}");
                let other = to_server(family, 101);
                assert_eq!(who_tcp("p2", other), Ok(node(family)), "{masquerade:?} TCP, not selected");
                assert_eq!(who_udp("p2", other), Ok(node(family)), "{masquerade:?} UDP, not selected");
                assert!(ping("p2", other.ip()), "{masquerade:?} ICMP {family}, not selected");
            }
            let pods = FAMILIES.map(|family| pod(family, 11));
            assert_eq!(seen("gw1", 100), pods, "{masquerade:?}: at the gateway");
            assert_eq!(seen("out", 100), FAMILIES.map(|family| gateway(family, 1)), "{masquerade:?}: outside");
            assert!(seen("gw1", 101).is_empty(), "{masquerade:?}");
            masquerade.take();
        }
        let (text, code) = status();
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("shop/p-11") && text.contains("via 10.244.9.0 dev flannel.1"), "{text}");
    });
}
