//! Services in `fullnat`: both directions of a connection, both families.

use tidegate_dataplane::rig::{self, LAN, Net, Rig, Segment, WAN};

fn rig(net: Net) -> Rig {
    let mut tables = rig::tables();
    rig::add_service(&mut tables, 1, net.vip(1), 80, 6, &[(net.pod(0, 5), 8080, 1)]);
    Rig::new(tables).unwrap()
}

#[test]
fn a_connection_goes_through_both_ways() {
    for net in Net::BOTH {
        let mut rig = rig(net);
        let (client, vip) = ((net.client(7), 40_000), (net.vip(1), 80));
        rig.inject(WAN, &rig::tcp(client, vip, Segment("S", 100, 0), b""));
        rig.turn();
        let sent = rig.sent(LAN);
        assert_eq!(sent.len(), 1, "{net:?}: {:?}", rig.worker.counters().nonzero());
        let (mac, outer, inner) = rig::into_peer(&sent[0]).unwrap();
        assert_eq!(mac, rig::peer_mac(0));
        let _ = outer;
        let parsed = etherparse::PacketHeaders::from_ethernet_slice(inner).unwrap();
        let tcp = parsed.transport.unwrap().tcp().unwrap();
        assert_eq!(tcp.destination_port, 8080);
        let source_port = tcp.source_port;
        let reply = rig::tcp_between(
            rig::FROM_ROUTER,
            (net.pod(0, 5), 8080),
            (net.source(), source_port),
            Segment("SA", 500, 101),
            b"",
        );
        rig.inject(LAN, &rig::from_peer(net, 0, &reply[14..]));
        rig.turn();
        let sent = rig.sent(WAN);
        assert_eq!(sent.len(), 1, "{net:?}: {:?}", rig.worker.counters().nonzero());
        let parsed = etherparse::PacketHeaders::from_ethernet_slice(&sent[0]).unwrap();
        let tcp = parsed.transport.unwrap().tcp().unwrap();
        assert_eq!((tcp.source_port, tcp.destination_port), (80, 40_000));
    }
}
