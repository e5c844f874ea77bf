//! 5,000 connections a second from one address to one server, for a minute of the gateway's own time: none is refused, though
//! each port would have to wait four minutes (N-041, N-100, RFC 6191).

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use tidegate_dataplane::rig::outside::{self, external};
use tidegate_dataplane::rig::sketch::tcp;
use tidegate_dataplane::rig::{LAN, Net, Rig, WAN};

const PER_SECOND: u64 = 5_000;
const SECONDS: u64 = 60;

#[test]
fn five_thousand_connections_a_second_to_one_server_are_all_let_out() {
    // Where the source port stands: behind Ethernet and IP.
    for (net, at) in Net::BOTH.into_iter().zip([34, 54]) {
        let_out(net, at);
    }
}

fn let_out(net: Net, port_at: usize) {
    let (tables, _) = outside::town();
    let mut rig = Rig::with(tables, 1 << 17, 1024, 3).unwrap();
    let (ours, server) = (external(net, 1), (net.client(9), 443));
    let began = rig.now_ns;
    for n in 0..PER_SECOND * SECONDS {
        rig.now_ns = began + n * (1_000_000_000 / PER_SECOND);
        // Pods whose ports come round after 64,512 of them, as a kernel's do.
        let from = (net.pod(0, 5 + (n % 2) as u8), 1024 + (n / 2 % 64_512) as u16);
        rig.rx_overlay(net, 0, &tcp(from, server).syn(n as u32));
        let frame = rig.sent(WAN).pop().unwrap_or_else(|| panic!("connection {n} is refused\n{}", rig.told()));
        let port = u16::from_be_bytes([frame[port_at], frame[port_at + 1]]);
        let next = (n as u32).wrapping_add(1);
        rig.rx_wan(&tcp(server, (ours, port)).syn_ack(500, next));
        rig.rx_overlay(net, 0, &tcp(from, server).segment("FA", next, 501));
        rig.rx_wan(&tcp(server, (ours, port)).segment("FA", 501, next.wrapping_add(1)));
        rig.rx_overlay(net, 0, &tcp(from, server).ack(next.wrapping_add(1), 502));
        assert_eq!((rig.sent(LAN).len(), rig.sent(WAN).len()), (2, 2), "connection {n}\n{}", rig.told());
    }
    let counted = rig.moved();
    assert_eq!((counted.get("answered_prohibited"), counted.get("EgressPortsExhausted")), (None, None));
    assert!(counted["port_reused"] > PER_SECOND * 40, "{counted:?}");
    rig.expect_balance();
    rig.expect_all_frames_home();
}
