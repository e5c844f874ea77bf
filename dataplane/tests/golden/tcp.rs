//! TCP through a gateway in the sequences that have broken others: the kernel's packetdrill scripts for nf_conntrack, and
//! VPP's for its NAT. Every packet is seen to leave translated, and the state that it leaves behind is looked at.

use std::sync::Arc;

use tidegate_dataplane::rig::sketch::{Sketch, tcp};
use tidegate_dataplane::rig::{Net, Rig};
use tidegate_dataplane::state::FlowState;
use tidegate_dataplane::table::tunnel::TunnelRow;

use crate::sctp::state;
use crate::{client, connect, town, web, web_pod};

/// A connection as both ends number it: the client's next number is 101, the pod's 501.
struct Talk {
    rig: Rig,
    net: Net,
    port: u16,
}

fn talks() -> impl Iterator<Item = Talk> {
    Net::BOTH.into_iter().map(|net| {
        let mut rig = town();
        let port = connect(&mut rig, net);
        Talk { rig, net, port }
    })
}

impl Talk {
    /// The client sends this and the pod gets it.
    #[track_caller]
    fn client(&mut self, flags: &str, sequence: u32, ack: u32) -> FlowState {
        let said = tcp(client(self.net), web(self.net)).segment(flags, sequence, ack);
        self.client_says(said)
    }

    #[track_caller]
    fn client_says(&mut self, said: Sketch) -> FlowState {
        let pod = tcp((self.net.source(), self.port), web_pod(self.net));
        self.rig.rx_wan(&said);
        self.rig.expect_overlay(self.net, 0, &said.between(pod.from, pod.to).ttl(63));
        state(&self.rig)
    }

    /// The pod sends this and the client gets it.
    #[track_caller]
    fn pod(&mut self, flags: &str, sequence: u32, ack: u32) -> FlowState {
        let said = tcp(web_pod(self.net), (self.net.source(), self.port)).segment(flags, sequence, ack);
        self.rig.rx_overlay(self.net, 0, &said);
        self.rig.expect_wan(&said.between(web(self.net), client(self.net)).ttl(63));
        state(&self.rig)
    }

    /// The client's SYN begins a flow of its own: another source port.
    #[track_caller]
    fn opens_anew(&mut self, sequence: u32) -> FlowState {
        let syn = tcp(client(self.net), web(self.net)).segment("S", sequence, 0);
        self.rig.moved();
        self.rig.rx_wan(&syn);
        let seen = syn.between((self.net.source(), 0), web_pod(self.net)).ttl(63);
        (self.port, _) = self.rig.expect_overlay(self.net, 0, &seen);
        assert_eq!(self.rig.moved().get("flow_replaced"), Some(&1));
        state(&self.rig)
    }
}

#[test]
pub(crate) fn only_the_exact_reset_ends_an_established_connection() {
    // T-180, conntrack_rst_invalid.pkt; N-026 (plausible sequence), N-086
    for mut talk in talks() {
        for sequence in [0, 101 + 1_000_000, 101 + 42, 100] {
            let state = talk.client("R", sequence, 0);
            assert!(state.is_established(), "{sequence}: {state:?}");
        }
        assert_eq!(talk.client("R", 101, 0), FlowState::CLOSE);
    }
}

#[test]
fn an_inexact_reset_passes_once_the_connection_closes() {
    // T-181, conntrack_inexact_rst.pkt
    for mut talk in talks() {
        talk.pod("FA", 501, 101);
        assert_eq!(talk.client("A", 101, 502), FlowState::CLOSE_WAIT_REPLY);
        assert_eq!(talk.client("R", 101, 0), FlowState::CLOSE);
        assert_eq!(talk.pod("R", 9_999, 0), FlowState::CLOSE);
    }
}

#[test]
fn a_port_used_again_inside_a_live_connection() {
    // T-182, conntrack_synack_reuse.pkt; N-103: SYN, challenge ACK, RST, SYN
    for mut talk in talks() {
        assert!(talk.client("S", 70_000, 0).is_established());
        assert!(talk.pod("A", 501, 101).is_established());
        assert_eq!(talk.client("R", 101, 0), FlowState::CLOSE);
        assert_eq!(talk.opens_anew(70_000), FlowState::SYN_SENT);
        assert_eq!(talk.pod("SA", 900, 70_001), FlowState::SYN_RECV);
        assert!(talk.client("A", 70_001, 901).is_established());
    }
}

#[test]
fn a_syn_that_an_old_incarnation_answers() {
    // T-183, conntrack_syn_challenge_ack.pkt: all pass, and the connection stands in the end
    for mut talk in talks() {
        talk.client("R", 101, 0);
        assert_eq!(talk.opens_anew(3_000), FlowState::SYN_SENT);
        assert_eq!(talk.pod("A", 8_000, 9_000), FlowState::SYN_SENT);
        assert_eq!(talk.client("R", 9_000, 0), FlowState::CLOSE);
        assert_eq!(talk.opens_anew(3_000), FlowState::SYN_SENT);
        assert_eq!(talk.pod("SA", 20, 3_001), FlowState::SYN_RECV);
        assert!(talk.client("A", 3_001, 21).is_established());
    }
}

#[test]
pub(crate) fn a_stale_syn_ack_moves_nothing() {
    // T-184, conntrack_synack_old.pkt; N-103
    for mut talk in talks() {
        talk.client("R", 101, 0);
        talk.opens_anew(3_000);
        assert_eq!(talk.pod("SA", 20, 1_001), FlowState::SYN_SENT);
        assert_eq!(talk.pod("SA", 30, 3_001), FlowState::SYN_RECV);
        assert!(talk.client("A", 3_001, 31).is_established());
    }
}

#[test]
fn a_segment_that_was_acknowledged_long_ago_passes() {
    // T-185, conntrack_ack_loss_stall.pkt; N-104
    for mut talk in talks() {
        let piece = |talk: &Talk, n: u32| {
            tcp(client(talk.net), web(talk.net)).segment("PA", 101 + n * 1000, 501).data([7; 1000])
        };
        for n in 0..67 {
            let said = piece(&talk, n);
            talk.client_says(said);
            talk.pod("A", 501, 101 + (n + 1) * 1000);
        }
        let first = piece(&talk, 0);
        assert!(talk.client_says(first).is_established());
    }
}

#[test]
fn handshakes_whose_packets_are_sent_again() {
    // T-080, open_retransmit1/2; N-089
    for net in Net::BOTH {
        let orders: [&[(bool, &str, u32, u32)]; 3] = [
            &[(true, "S", 9, 0), (false, "SA", 50, 10), (false, "SA", 50, 10), (true, "A", 10, 51)],
            &[(true, "S", 9, 0), (false, "SA", 50, 10), (true, "S", 9, 0), (false, "SA", 50, 10), (true, "A", 10, 51)],
            &[(false, "SA", 50, 10), (true, "A", 10, 51), (false, "SA", 50, 10), (true, "A", 10, 51)],
        ];
        for order in orders {
            let mut rig = town();
            rig.rx_wan(&tcp(client(net), web(net)).segment("S", 9, 0));
            let seen = tcp((net.source(), 0), web_pod(net)).segment("S", 9, 0).ttl(63);
            let (port, _) = rig.expect_overlay(net, 0, &seen);
            let mut talk = Talk { rig, net, port };
            for (is_client, flags, sequence, ack) in order {
                if *is_client {
                    talk.client(flags, *sequence, *ack);
                } else {
                    talk.pod(flags, *sequence, *ack);
                }
            }
            assert!(state(&talk.rig).is_established(), "{order:?}");
            assert!(talk.client("PA", 10, 51).is_established());
        }
    }
}

#[test]
fn a_connection_that_both_closed_begins_again() {
    // T-078, T-079, half_reopen: a SYN of the server's passes and changes nothing; the client's opens anew (N-087, Q-9)
    for mut talk in talks() {
        assert_eq!(talk.client("FA", 101, 501), FlowState::FIN_WAIT);
        assert_eq!(talk.pod("A", 501, 102), FlowState::CLOSE_WAIT);
        assert_eq!(talk.pod("FA", 501, 102), FlowState::LAST_ACK);
        assert_eq!(talk.client("A", 102, 502), FlowState::TIME_WAIT);
        assert_eq!(talk.pod("S", 7_000, 0), FlowState::TIME_WAIT);
        assert_eq!(talk.opens_anew(50_000), FlowState::SYN_SENT);
        assert_eq!(talk.pod("SA", 8_000, 50_001), FlowState::SYN_RECV);
        assert!(talk.client("A", 50_001, 8_001).is_established(), "both ⇒ alive");
    }
}

#[test]
fn a_refused_connection_is_tried_again_at_once() {
    // T-152, conntrack_nat_rst; T-076
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&tcp(client(net), web(net)).segment("S", 9, 0));
        let seen = tcp((net.source(), 0), web_pod(net)).segment("S", 9, 0).ttl(63);
        let (port, _) = rig.expect_overlay(net, 0, &seen);
        let mut talk = Talk { rig, net, port };
        assert_eq!(talk.pod("RA", 0, 10), FlowState::CLOSE);
        assert_eq!(talk.opens_anew(9), FlowState::SYN_SENT);
        assert_eq!(talk.pod("SA", 8_000, 10), FlowState::SYN_RECV);
        assert!(talk.client("A", 10, 8_001).is_established());
    }
}

#[test]
fn segments_sizes_are_lowered_to_the_path_and_never_raised() {
    // T-087, mss_clamping: 1400 over a path of 1000, with clamping off, over a path of 1500; V-013
    for net in Net::BOTH {
        let headers = if net == Net::BOTH[0] { 40 } else { 60 };
        for (room, clamp, expected) in [(1000, true, 1000), (1000, false, 1400), (1500, true, 1400)] {
            let mut rig = town();
            rig.publish(|tables| {
                let row = tables.tunnels.row(net.tunnel(0)).cloned().unwrap();
                let row = TunnelRow { inner_mtu: room + headers, ..row };
                Arc::make_mut(&mut tables.tunnels).set(net.tunnel(0), row);
                tables.settings.clamp_mss = clamp;
            });
            let syn = tcp(client(net), web(net)).segment("S", 9, 0).mss(1400);
            rig.rx_wan(&syn);
            let seen = syn.between((net.source(), 0), web_pod(net)).mss(expected).ttl(63);
            let (port, _) = rig.expect_overlay(net, 0, &seen);
            let answer = tcp(web_pod(net), (net.source(), port)).segment("SA", 50, 10).mss(1400);
            rig.rx_overlay(net, 0, &answer);
            rig.expect_wan(&answer.between(web(net), client(net)).mss(expected).ttl(63));
        }
    }
}
