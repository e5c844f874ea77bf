//! Filters against two who know them: libpcap, which compiled them, and the kernel, which checks and runs any program.
//!
//! The kernel is asked through a pair of datagram sockets in memory: what the filter at the receiving end returns is what
//! arrives of a datagram. That needs no privilege and no network.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use pcap::{Capture, Linktype};
use proptest::prelude::*;
use socket2::{SockFilter, SockRef, Socket};
use tidegate_api::capture::Instruction;
use tidegate_dataplane::capture::filter::Program;
use tidegate_dataplane::rig::expect::from_peer;
use tidegate_dataplane::rig::sketch::{ping, tcp, udp};
use tidegate_dataplane::rig::{FROM_ROUTER, Net};

fn read(shown: &str) -> Instruction {
    let fields: Vec<u32> = shown.split(' ').map(|field| field.parse().unwrap()).collect();
    Instruction { code: fields[0] as u16, jump_true: fields[1] as u8, jump_false: fields[2] as u8, k: fields[3] }
}

fn primitive() -> impl Strategy<Value = String> {
    let nets = || prop::sample::select(Net::BOTH.to_vec());
    let way = prop::sample::select(vec!["", "src ", "dst "]);
    prop_oneof![
        (way.clone(), nets(), 0u16..4).prop_map(|(way, net, n)| format!("{way}host {}", net.client(n))),
        (way.clone(), nets()).prop_map(|(way, net)| format!("{way}host {}", net.vip(1))),
        (way.clone(), prop::sample::select(vec!["tcp ", "udp ", ""]), prop::sample::select(vec![80, 53, 8472, 40_001]))
            .prop_map(|(way, protocol, port)| format!("{protocol}{way}port {port}")),
        (way, 0u16..30_000).prop_map(|(way, low)| format!("{way}portrange {low}-{}", low + 30_000)),
        prop::sample::select(vec![
            "ip",
            "ip6",
            "arp",
            "tcp",
            "udp",
            "icmp",
            "icmp6",
            "vlan",
            "greater 100",
            "less 80",
            "ip multicast",
            "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
            "ip[8] > 63",
            "udp[8:4] == 0x08000000",
            "ether[0] & 1 != 0",
            "len > 60 and len % 2 == 0",
            "ip6 protochain 6",
            "net 198.18.0.0/15",
            "ip6 net 2001:db8:c::/48",
            "(ip[2:2] - ((ip[0] & 0xf) << 2)) / 4 > 5",
        ])
        .prop_map(String::from),
    ]
}

fn expression() -> impl Strategy<Value = String> {
    primitive().prop_recursive(3, 12, 3, |inside| {
        prop_oneof![
            (inside.clone(), inside.clone()).prop_map(|(a, b)| format!("({a}) and ({b})")),
            (inside.clone(), inside.clone()).prop_map(|(a, b)| format!("({a}) or ({b})")),
            inside.prop_map(|a| format!("not ({a})")),
        ]
    })
}

fn packet() -> impl Strategy<Value = Vec<u8>> {
    let plain =
        (prop::sample::select(Net::BOTH.to_vec()), 0u16..4, 0u8..5, 0usize..60).prop_map(|(net, n, kind, size)| {
            let (from, web) = ((net.client(n), 40_000 + n), (net.vip(1), 80));
            match kind {
                0 => tcp(from, web).syn(7).frame(FROM_ROUTER),
                1 => tcp(from, web).segment("PA", 7, 9).frame(FROM_ROUTER),
                2 => udp(from, (net.vip(1), 53)).data(vec![7; size]).frame(FROM_ROUTER),
                3 => ping(from.0, web.0).frame(FROM_ROUTER),
                _ => from_peer(net, 0, &tcp((net.pod(0, 5), 8080), (net.source(), 32_000)).segment("A", 5, 6)),
            }
        });
    prop_oneof![
        4 => plain.clone(),
        2 => (plain.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut bytes, at, byte)| {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        }),
        1 => (plain, any::<prop::sample::Index>()).prop_map(|(bytes, to)| bytes[..to.index(bytes.len())].to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..100),
    ]
}

/// Any program that is right but for chance: cells are written before they are read, as the kernel wants it.
fn program() -> impl Strategy<Value = Vec<Instruction>> {
    let of = |code: u16, k: u32| Instruction { code, jump_true: 0, jump_false: 0, k };
    let load = (prop::sample::select(vec![0x20u16, 0x28, 0x30, 0x40, 0x48, 0x50, 0xb1]), 0u32..40);
    let plain = prop::sample::select(vec![0x80u16, 0x81, 0x07, 0x87, 0x84]).prop_map(|code| (code, 0u32));
    let immediate = (prop::sample::select(vec![0x00u16, 0x01]), 0u32..1000);
    let cell = (prop::sample::select(vec![0x60u16, 0x61, 0x02, 0x03]), 0u32..4);
    let arithmetic = (
        prop::sample::select(vec![
            0x04u16, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x94, 0x9c, 0xa4, 0xac,
        ]),
        0u32..70,
    );
    let shift = (prop::sample::select(vec![0x64u16, 0x74]), 0u32..40);
    let odd = (any::<u16>().prop_map(|code| code & 0xff), 0u32..20);
    let straight = prop_oneof![4 => load, 2 => plain, 2 => immediate, 2 => cell, 4 => arithmetic, 1 => shift]
        .prop_map(move |(code, k)| of(code, k));
    let jump =
        (prop::sample::select(vec![0x05u16, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d]), 0u8..6, 0u8..6, 0u32..6)
            .prop_map(|(code, jump_true, jump_false, k)| Instruction { code, jump_true, jump_false, k });
    let early = (0u32..200).prop_map(move |k| of(0x06, k));
    let odd = odd.prop_map(move |(code, k)| of(code, k));
    let one = prop_oneof![60 => straight, 20 => jump, 5 => early, 1 => odd];
    (prop::collection::vec(one, 0..30), prop_oneof![Just(of(0x16, 0)), (0u32..200).prop_map(move |k| of(0x06, k))])
        .prop_map(move |(middle, last)| {
            let begin = (0..4).map(|cell| of(0x02, cell));
            begin.chain(middle).chain([last]).collect()
        })
}

/// What arrives of `packet` behind the kernel's filter; `None`: the kernel refuses the program.
fn kernel(program: &[Instruction], packet: &[u8]) -> Option<usize> {
    let (near, far) = UnixDatagram::pair().unwrap();
    let filter: Vec<_> =
        program.iter().map(|one| SockFilter::new(one.code, one.jump_true, one.jump_false, one.k)).collect();
    SockRef::from(&far).attach_filter(&filter).ok()?;
    far.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    // What the filter drops is refused here or lost, by version of the kernel.
    if near.send(packet).is_err() {
        return Some(0);
    }
    // A datagram of no bytes, of which no more than none was wanted, is as good as lost.
    Some(Socket::from(std::os::fd::OwnedFd::from(far)).read(&mut [0; 4096]).unwrap_or(0))
}

proptest! {
    #[test]
    fn a_filter_means_what_libpcap_says(text in expression(), packets in prop::collection::vec(packet(), 1..12)) {
        let Ok(compiled) = Capture::dead(Linktype::ETHERNET).unwrap().compile(&text, true) else {
            // "expression rejects all packets", mostly.
            return Ok(());
        };
        let instructions: Vec<_> = compiled.get_instructions().iter().map(|one| read(&one.to_string())).collect();
        let program = Program::new(&instructions);
        let uses_backward_jumps = text.contains("protochain");
        let Ok(program) = program else {
            prop_assert!(uses_backward_jumps, "{text}: {program:?}");
            return Ok(());
        };
        for packet in packets.iter().filter(|packet| !packet.is_empty()) {
            prop_assert_eq!(program.passes(packet), compiled.filter(packet), "{}: {:02x?}", text, packet);
        }
    }

    #[test]
    fn a_program_is_accepted_and_answers_as_in_the_kernel(instructions in program(), packet in prop::collection::vec(0u8..100, 1..60)) {
        let ours = Program::new(&instructions);
        let theirs = kernel(&instructions, &packet);
        prop_assert_eq!(ours.is_ok(), theirs.is_some(), "{:?} {:?}", ours, instructions);
        if let (Ok(ours), Some(theirs)) = (ours, theirs) {
            prop_assert_eq!((ours.run(&packet) as usize).min(packet.len()), theirs, "{:?}", instructions);
        }
    }

    #[test]
    fn no_program_is_too_strange_to_be_judged(
        fields in prop::collection::vec((any::<u16>(), any::<u8>(), any::<u8>(), any::<u32>()), 0..20),
        packet in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let instructions: Vec<Instruction> = fields.into_iter().map(Instruction::from).collect();
        if let Ok(program) = Program::new(&instructions) {
            program.run(&packet);
        }
    }
}
