//! The agent between real namespaces: the kernel's VXLAN, flannel's and Calico's rules, gateways that are plain routers.
#![cfg(feature = "kernel-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, SocketAddr};

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
        serve_outside();
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
        // A strict reverse path filter on the tunnel finds the way that answers come back by.
        at("w", "for d in flannel.1 veth-p1; do echo 1 > /proc/sys/net/ipv4/conf/$d/rp_filter; done");
        assert_eq!(who_tcp("p1", to_server(4, 100)), Ok(gateway(4, 1)));
        let (text, code) = status();
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("shop/p-11") && text.contains("via 10.244.9.0 dev flannel.1"), "{text}");
    });
}

/// N-110, T-193: destinations and exceptions, in the kernel as in the file; connections from before a pod was selected never
/// show the node's address, at a gateway or behind it.
#[test]
fn exceptions_and_older_connections() {
    isolated("exceptions_and_older_connections", || {
        build();
        serve_outside();
        for masquerade in [Masquerade::FlannelNftables, Masquerade::CalicoAddress] {
            masquerade.put();
            exceptions_and_older(masquerade);
            assert!(task(&["remove"]).status.success());
            masquerade.take();
        }
    });
}

fn exceptions_and_older(masquerade: Masquerade) {
    let mut older = FAMILIES.map(|family| Caller::connect("p1", to_server(family, 100)).unwrap());
    for (family, caller) in FAMILIES.iter().zip(&mut older) {
        assert_eq!(caller.ask(), Ok(node(*family)), "{masquerade:?}");
    }
    let with = |more: &str| wanted(&[1], &[11], "").replace("] }\n", &format!("], {more} }}\n"));
    tell(&with("except: [203.0.113.101, \"2001:db8:f::101\"]"));
    let _agent = Agent::start(&[]);
    settled();
    ["out", "gw1"].into_iter().for_each(forget);
    for caller in &mut older {
        assert!(caller.ask().is_err(), "{masquerade:?}: it has lost its address");
    }
    for family in FAMILIES {
        assert_eq!(who_tcp("p1", to_server(family, 100)), Ok(gateway(family, 1)));
        assert_eq!(who_tcp("p1", to_server(family, 101)), Ok(node(family)), "an exception");
    }
    let of_node = |at| seen(at, 100).into_iter().filter(|source| FAMILIES.map(node).contains(source)).count();
    assert_eq!((of_node("gw1"), of_node("out"), seen("gw1", 101).len()), (0, 0, 0), "{masquerade:?}");
    tell(&with("destinations: [203.0.113.100/31, \"2001:db8:f::101\"]"));
    settled();
    for (family, number, by_gateway) in [(4, 100, true), (4, 101, true), (6, 100, false), (6, 101, true)] {
        let expected = if by_gateway { gateway(family, 1) } else { node(family) };
        assert_eq!(who_udp("p1", to_server(family, number)), Ok(expected), "{family} {number}");
    }
}

/// N-111, T-193: with no gateway there is no way out, whatever happens to gateways, devices and the agent; another gateway
/// takes over. A sender goes on all the time, and whoever is seen outside has to be a gateway.
#[test]
fn without_a_gateway_nothing_leaves() {
    isolated("without_a_gateway_nothing_leaves", || {
        build();
        Masquerade::FlannelNftables.put();
        serve_outside();
        let both = |live: &[u8]| wanted(live, &[11], "");
        tell(&both(&[1]));
        let agent = Agent::start(&[]);
        settled();
        forget("out");
        let sender = Sender::start("p1", 100);
        let way = |expected: Option<u8>| {
            for family in FAMILIES {
                let to = to_server(family, 100);
                match expected {
                    Some(number) => assert_eq!(who_tcp("p1", to), Ok(gateway(family, number))),
                    None => assert!(silent("p1", to), "IPv{family} leaves"),
                }
                assert_eq!(who_udp("p2", to_server(family, 101)), Ok(node(family)), "not selected");
            }
        };
        way(Some(1));
        for (live, number) in [(&[2][..], Some(2)), (&[], None), (&[1], Some(1)), (&[], None), (&[2], Some(2))] {
            tell(&both(live));
            until("the change", || {
                let (text, code) = status();
                let there =
                    !text.contains("to do") && (code == 0 || number.is_none() && text.contains("no gateway: dropped"));
                if there { Ok(()) } else { Err(text) }
            });
            way(number);
        }
        // Dead: what it made goes on to work.
        agent.end("KILL");
        way(Some(2));
        // Somebody takes away one protection, then the other: each holds alone, and both come back.
        at("w", "nft delete table inet tidegate-node");
        let told: Vec<IpAddr> =
            FAMILIES.iter().filter_map(|family| who_tcp("p1", to_server(*family, 100)).ok()).collect();
        assert!(!told.iter().any(|address| FAMILIES.map(node).contains(address)), "{told:?}");
        let agent = Agent::start(&[]);
        settled();
        way(Some(2));
        agent.end("KILL");
        at("w", "for f in -4 -6; do while ip $f rule del priority 1501 2>/dev/null; do :; done; done");
        way(None);
        let agent = Agent::start(&[]);
        settled();
        way(Some(2));
        // The device goes down and comes back, as when flannel starts anew.
        at("w", "ip link set flannel.1 down; ip link set flannel-v6.1 down");
        until("both families are dropped", || {
            let (text, _) = status();
            if text.matches("no gateway: dropped").count() == 2 { Ok(()) } else { Err(text) }
        });
        way(None);
        at("w", "ip link set flannel.1 up; ip link set flannel-v6.1 up");
        settled();
        way(Some(2));
        let sent = sender.stop();
        assert!(sent > 200, "{sent} packets are no continuous sender");
        let expected: Vec<IpAddr> =
            FAMILIES.iter().flat_map(|family| [1, 2].map(|number| gateway(*family, number))).collect();
        let strangers: Vec<IpAddr> = seen("out", 100).into_iter().filter(|source| !expected.contains(source)).collect();
        assert!(strangers.is_empty(), "seen outside: {strangers:?}");
        agent.end("TERM");
    });
}

/// Delivery mode `symmetric`: pods see the client, and the answer returns through the gateway that the question came by,
/// whichever that is, also for pods that leave by another one. Connections that come straight to the node stay as they are.
#[test]
fn answers_return_by_the_gateway_they_came_from() {
    isolated("answers_return_by_the_gateway_they_came_from", || {
        build();
        Masquerade::FlannelNftables.put();
        serve_in("p1");
        serve_in("p2");
        // Node ports as kube-proxy serves them with externalTrafficPolicy Local; p1 is selected, p2 is not.
        nft(
            "w",
            "table inet ports {\nchain in { type nat hook prerouting priority dstnat;
             ip daddr 198.51.100.11 tcp dport 30001 dnat ip to 10.244.1.11:7000
             ip6 daddr 2001:db8:2::11 tcp dport 30001 dnat ip6 to [fd00:10:244:1::11]:7000\n}\n}\n",
        );
        let vip = |family, number, port| {
            SocketAddr::new(pick(family, &format!("203.0.113.{number}"), &format!("2001:db8:f::{number}")), port)
        };
        let client = |family, number: u8| match number {
            1 => pick(family, "192.0.2.10", "2001:db8:1:1::10"),
            _ => pick(family, "192.0.2.74", "2001:db8:1:2::10"),
        };
        // Without the agent the answer of a pod goes its own way and is not understood.
        assert!(Caller::connect("out", vip(4, 1, 7002)).is_err());
        // Without the nodes' own prefixes among the exceptions: the tunnel has to find its way nevertheless.
        let wishes = wanted(&[1, 2], &[11], "symmetric: [10.244.1.0/24, \"fd00:10:244:1::/64\"]")
            .replace("198.51.100.0/24, ", "")
            .replace(", \"2001:db8:2::/64\"", "");
        tell(&wishes);
        let agent = Agent::start(&[]);
        settled();
        let exchange = || {
            for family in FAMILIES {
                for port in [7001, 7002] {
                    let mut callers: Vec<(u8, Caller)> = [1, 2]
                        .map(|number| (number, Caller::connect("out", vip(family, number, port)).unwrap()))
                        .into();
                    for _ in 0..3 {
                        for (number, caller) in &mut callers {
                            assert_eq!(
                                caller.ask(),
                                Ok(client(family, *number)),
                                "IPv{family}, port {port}, gateway {number}"
                            );
                        }
                    }
                }
                let node_port = SocketAddr::new(node(family), 30001);
                let seen = Caller::connect("out", node_port).unwrap().ask();
                assert_eq!(seen, Ok(pick(family, "198.51.100.254", "2001:db8:2::254")), "node port");
            }
        };
        exchange();
        // A strict reverse path filter that takes marks into account lets all of that pass.
        at("w", "for d in all flannel.1 eth0; do echo 1 > /proc/sys/net/ipv4/conf/$d/rp_filter; done");
        let (text, code) = status();
        assert!(code == 1 && text.contains("problem: clients from outside are dropped on flannel.1"), "{text}");
        assert!(Caller::connect("out", vip(4, 1, 7002)).is_err(), "strict, and marks do not count");
        at("w", "echo 1 > /proc/sys/net/ipv4/conf/all/src_valid_mark");
        assert_eq!(status().1, 0);
        exchange();
        // Numbers of gateways outlive the agent, and with them its connections.
        let mut caller = Caller::connect("out", vip(4, 2, 7001)).unwrap();
        let marks = |text: &str| -> Vec<String> {
            text.lines()
                .filter(|line| line.starts_with("gw-"))
                .map(|line| line.split_whitespace().nth(4).unwrap().into())
                .collect()
        };
        let before = marks(&status().0);
        agent.end("KILL");
        let turned = wishes.replace("gw-1, live", "gw-0, live");
        tell(&turned);
        let agent = Agent::start(&[]);
        settled();
        assert_eq!(marks(&status().0), before);
        assert_eq!(caller.ask(), Ok(client(4, 2)));
        let routers = FAMILIES.map(|family| pick(family, "198.51.100.254", "2001:db8:2::254"));
        for gateway in ["gw1", "gw2"] {
            assert!(seen_to(gateway, routers).is_empty(), "answers of node ports went to {gateway}");
        }
        agent.end("TERM");
    });
}

/// What somebody takes away comes back, what somebody else made is left alone, and in the end nothing is left.
#[test]
fn it_repairs_and_leaves_without_a_trace() {
    isolated("it_repairs_and_leaves_without_a_trace", || {
        build();
        Masquerade::FlannelNftables.put();
        serve_outside();
        // The second gateway is one of flannel's nodes already, the first is not.
        for family in FAMILIES {
            at("w", &peer(family, 8, pick(family, "198.51.100.2", "2001:db8:2::2")));
        }
        let before = dump();
        let symmetric = "symmetric: [10.244.1.0/24, \"fd00:10:244:1::/64\"]";
        tell(&wanted(&[1, 2], &[11, 12], symmetric));
        let agent = Agent::start(&[]);
        settled();
        let settled_dump = dump();
        assert_ne!(settled_dump, before);
        // A second start finds everything as it should be.
        agent.end("TERM");
        assert_eq!(dump(), settled_dump, "the agent's end changes nothing");
        let rounds = || Agent::log().matches("made=").count();
        let count = rounds();
        let agent = Agent::start(&[]);
        settled();
        std::thread::sleep(std::time::Duration::from_millis(700));
        assert_eq!(rounds(), count, "{}", Agent::log());
        for harm in [
            "ip rule del priority 1501",
            "ip -6 rule del priority 1500",
            "ip route flush table 7300",
            "ip route del default via 10.244.9.0 dev flannel.1 table $(ip route show table all | sed -n 's/.*via 10.244.9.0.*table \\([0-9]*\\).*/\\1/p' | head -n 1)",
            "ip neigh del 10.244.9.0 dev flannel.1",
            "bridge fdb del 0a:58:0a:f4:09:04 dev flannel.1 dst 198.51.100.1 self",
            "nft flush chain inet tidegate-node untranslated",
            "nft delete table inet tidegate-node",
            "nft flush set inet tidegate-node pods4",
        ] {
            at("w", harm);
            settled();
            for family in FAMILIES {
                for pod in ["p1", "p2"] {
                    let told = who_tcp(pod, to_server(family, 100)).unwrap();
                    assert!([1, 2].map(|number| gateway(family, number)).contains(&told), "{harm}: {told}");
                }
            }
        }
        // flannel learns of the first gateway while we use it: the entries are flannel's from then on.
        for family in FAMILIES {
            at("w", &peer(family, 9, pick(family, "198.51.100.1", "2001:db8:2::1")));
        }
        settled();
        agent.end("TERM");
        let output = task(&["remove"]);
        assert!(output.status.success(), "{output:?}");
        for family in FAMILIES {
            assert_eq!(who_tcp("p1", to_server(family, 100)), Ok(node(family)), "as before");
            let (device, to, mac, length) = if family == 4 {
                ("flannel.1", "10.244.9.0", "0a:58:0a:f4:09:04", 24)
            } else {
                ("flannel-v6.1", "fd00:10:244:9::", "0a:58:0a:f4:09:06", 64)
            };
            at(
                "w",
                &format!(
                    "ip neigh del {to} dev {device}; bridge fdb del {mac} dev {device} self; ip route del {to}/{length}"
                ),
            );
        }
        assert_eq!(dump(), before);
        // The same by a signal.
        let agent = Agent::start(&["--remove-on-exit"]);
        settled();
        agent.end("TERM");
        assert_eq!(dump(), before);
        // Again, without a file: there is nothing to remove.
        std::fs::remove_file(format!("{HOME}/node-agent.yaml")).unwrap();
        assert!(task(&["remove"]).status.success());
        assert!(!task(&["--check"]).status.success());
        assert_eq!(dump(), before);
    });
}

/// Who connects from outside to a selected pod, by a static translation of a gateway, is answered through that
/// gateway, whichever it is. Node ports, the node's own connections and pods that nobody selected stay as they are.
#[test]
fn connections_from_outside_to_selected_pods_return_by_their_gateway() {
    isolated("connections_from_outside_to_selected_pods_return_by_their_gateway", || {
        build();
        Masquerade::FlannelNftables.put();
        serve_in("p1");
        serve_in("p2");
        nft(
            "w",
            "table inet ports {\nchain in { type nat hook prerouting priority dstnat;
             ip daddr 198.51.100.11 tcp dport 30001 dnat ip to 10.244.1.11:7000
             ip6 daddr 2001:db8:2::11 tcp dport 30001 dnat ip6 to [fd00:10:244:1::11]:7000\n}\n}\n",
        );
        tell(&wanted(&[1, 2], &[11], ""));
        let agent = Agent::start(&[]);
        settled();
        for family in FAMILIES {
            for (number, client) in [
                (1, pick(family, "192.0.2.10", "2001:db8:1:1::10")),
                (2, pick(family, "192.0.2.74", "2001:db8:1:2::10")),
            ] {
                let door = pick(family, &format!("203.0.113.{number}"), &format!("2001:db8:f::{number}"));
                let mut caller = Caller::connect("out", SocketAddr::new(door, 7001)).unwrap();
                assert_eq!(caller.ask(), Ok(client), "IPv{family}, gateway {number}");
                assert!(Caller::connect("out", SocketAddr::new(door, 7002)).is_err(), "IPv{family}: not selected");
            }
            let node_port = SocketAddr::new(node(family), 30001);
            let router = pick(family, "198.51.100.254", "2001:db8:2::254");
            assert_eq!(Caller::connect("out", node_port).unwrap().ask(), Ok(router), "IPv{family}: node port");
            let straight = SocketAddr::new(pod(family, 11), PORT);
            assert_eq!(Caller::connect("out", straight).unwrap().ask(), Ok(router), "IPv{family}: routed to the pod");
            assert!(Caller::connect("w", straight).unwrap().ask().is_ok(), "IPv{family}: the node's own");
            assert!(Caller::connect("p2", straight).unwrap().ask().is_ok(), "IPv{family}: another pod");
        }
        let routers = FAMILIES.map(|family| pick(family, "198.51.100.254", "2001:db8:2::254"));
        for gateway in ["gw1", "gw2"] {
            assert!(seen_to(gateway, routers).is_empty(), "answers of others went to {gateway}");
        }
        agent.end("TERM");
    });
}

/// Two agents would undo each other: the second one is refused, and says why, until the first is gone, however that ends.
#[test]
fn a_node_has_one_agent() {
    isolated("a_node_has_one_agent", || {
        build();
        tell(&wanted(&[1], &[11], ""));
        let agent = Agent::start(&[]);
        settled();
        let second = task(&[]);
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        assert_eq!(second.status.code(), Some(2), "{said}");
        assert!(said.contains("another agent runs on this node"), "{said}");
        agent.end("KILL");
        let agent = Agent::start(&[]);
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(!Agent::log().contains("another agent"), "{}", Agent::log());
        agent.end("TERM");
    });
}

/// N-111: a policy of which not even the selectors can be read, and a restart: who was selected stays so, also who comes anew
/// with the same labels; and where nothing is kept of it, nobody gets out of whom that cannot be told. `status` says so.
#[test]
fn a_policy_that_cannot_be_read_lets_nobody_out() {
    isolated("a_policy_that_cannot_be_read_lets_nobody_out", || {
        build();
        Masquerade::FlannelNftables.put();
        serve_outside();
        let server = api();
        server.apply(&manifest_of_node("gw-1", 9, 1, "tidegate.io/gateway: ''")).unwrap();
        server.apply(&manifest_of_pod(11, "app: web")).unwrap();
        let out = |selector: &str| {
            format!(
                "apiVersion: tidegate.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: out }}\n\
                 spec: {{ podSelector: {selector}, addresses: [192.0.2.1, \"2001:db8:1:1::1\"] }}\n"
            )
        };
        server.apply(&out("{ matchLabels: { app: web } }")).unwrap();
        tell(&of_the_api());
        let agent = Agent::start(&[]);
        all_is_well();
        for family in FAMILIES {
            assert_eq!(who_tcp("p1", to_server(family, 100)), Ok(gateway(family, 1)));
        }
        server.apply(&out("{ matchExpressions: [{ key: app, operator: In }] }")).unwrap();
        told_of_problem("EgressPolicy out", "it is left as it was");
        agent.end("KILL");
        forget("out");
        let agent = Agent::start(&[]);
        told_of_problem("EgressPolicy out", "it is left as it was");
        server.apply(&manifest_of_pod(12, "app: web")).unwrap();
        until("the second pod", || {
            let (text, _) = status();
            if text.matches("shop/p-12").count() == 2 && !text.contains("to do") { Ok(()) } else { Err(text) }
        });
        for (pod, family) in FAMILIES.iter().flat_map(|family| ["p1", "p2"].map(|pod| (pod, *family))) {
            assert_eq!(who_tcp(pod, to_server(family, 100)), Ok(gateway(family, 1)), "{pod}, IPv{family}");
        }
        // Without what was kept.
        agent.end("KILL");
        std::fs::remove_file(format!("{HOME}/state/wanted.json")).unwrap();
        let agent = Agent::start(&[]);
        told_of_problem("EgressPolicy out", "whom it selects nobody can tell");
        for (pod, family) in FAMILIES.iter().flat_map(|family| ["p1", "p2"].map(|pod| (pod, *family))) {
            assert!(silent(pod, to_server(family, 100)), "{pod}, IPv{family}");
        }
        let expected = FAMILIES.map(|family| gateway(family, 1));
        let strangers: Vec<IpAddr> = seen("out", 100).into_iter().filter(|source| !expected.contains(source)).collect();
        assert!(strangers.is_empty(), "seen outside: {strangers:?}");
        server.apply(&out("{ matchLabels: { app: web } }")).unwrap();
        all_is_well();
        for family in FAMILIES {
            assert_eq!(who_tcp("p2", to_server(family, 100)), Ok(gateway(family, 1)), "mended");
        }
        agent.end("TERM");
    });
}

/// N-110, N-111: a pod that a StaticNat gives a whole address leaves by a gateway and is answered through the one that a client
/// came by; one to which ports lead is answered so, and leaves by the node as before. No policy selects either.
#[test]
fn pods_of_static_nats_are_answered_through_gateways() {
    isolated("pods_of_static_nats_are_answered_through_gateways", || {
        build();
        Masquerade::FlannelNftables.put();
        serve_outside();
        ["p1", "p2"].into_iter().for_each(serve_in);
        let server = api();
        let gateways = [1, 2]
            .map(|number| manifest_of_node(&format!("gw-{number}"), 10 - number, number, "tidegate.io/gateway: ''"));
        server.apply(&gateways.concat()).unwrap();
        server.apply(&(manifest_of_pod(11, "app: web") + "---\n" + &manifest_of_pod(12, "app: web"))).unwrap();
        tell(&of_the_api());
        let agent = Agent::start(&[]);
        all_is_well();
        let door = |family, number: u8, port| {
            let door = pick(family, &format!("203.0.113.{number}"), &format!("2001:db8:f::{number}"));
            SocketAddr::new(door, port)
        };
        // Port 7001 of a gateway leads to p1, 7002 to p2.
        for (family, port) in FAMILIES.iter().flat_map(|family| [7001, 7002].map(|port| (*family, port))) {
            assert!(Caller::connect("out", door(family, 1, port)).is_err(), "IPv{family}, {port}: nothing asks for it");
        }
        let whole = |addresses: [&str; 2]| {
            let to_p1 = "pod: { namespace: shop, name: p-11 }";
            nat("here-v4", addresses[0], to_p1) + &nat("here-v6", addresses[1], to_p1)
        };
        let ports = "ports: [{ port: 7002, targetPort: 7000 }]";
        let by_name = format!("pod: {{ namespace: shop, name: p-12 }}, {ports}");
        let by_address = format!("internalAddress: \"{}\", {ports}", pod(6, 12));
        let doors = nat("door-v4", "192.0.2.201", &by_name) + &nat("door-v6", "2001:db8:1:1::201", &by_address);
        server.apply(&(whole(["192.0.2.200", "2001:db8:1:1::200"]) + &doors)).unwrap();
        until("both pods", || {
            let (text, code) = status();
            let both = text.matches("StaticNat here-v").count() == 2 && text.contains("gw-2");
            if both && code == 0 { Ok(()) } else { Err(text) }
        });
        let by_gateways = |family| [1, 2].map(|number| gateway(family, number));
        let exchange = || {
            for family in FAMILIES {
                let told = [who_tcp("p1", to_server(family, 100)), who_udp("p1", to_server(family, 100))];
                for told in told.map(Result::unwrap) {
                    assert!(by_gateways(family).contains(&told), "IPv{family}: the pod's own connection by {told}");
                }
                assert_eq!(who_tcp("p2", to_server(family, 101)), Ok(node(family)), "only ports lead to p2");
                assert_eq!(who_udp("p2", to_server(family, 101)), Ok(node(family)), "only ports lead to p2");
                for port in [7001, 7002] {
                    let clients = [
                        (1, pick(family, "192.0.2.10", "2001:db8:1:1::10")),
                        (2, pick(family, "192.0.2.74", "2001:db8:1:2::10")),
                    ];
                    for (number, client) in clients {
                        let mut caller = Caller::connect("out", door(family, number, port)).unwrap();
                        for _ in 0..2 {
                            assert_eq!(caller.ask(), Ok(client), "IPv{family}, port {port}, gateway {number}");
                        }
                    }
                }
                for number in [11, 12] {
                    let straight = SocketAddr::new(pod(family, number), PORT);
                    let router = pick(family, "198.51.100.254", "2001:db8:2::254");
                    assert_eq!(
                        Caller::connect("out", straight).unwrap().ask(),
                        Ok(router),
                        "IPv{family}: straight to {number}"
                    );
                }
            }
        };
        exchange();
        // What cannot be read any more stays, over a restart too.
        forget("out");
        server.apply(&whole(["nowhere", "nowhere"])).unwrap();
        told_of_problem("StaticNat here-v6", "it is left as it was");
        exchange();
        agent.end("KILL");
        let agent = Agent::start(&[]);
        told_of_problem("StaticNat here-v6", "it is left as it was");
        exchange();
        // No gateway is left: the pod does not get out, and the other one leaves as it did.
        for number in [1, 2] {
            server.delete("nodes", "", &format!("gw-{number}")).unwrap();
        }
        until("no gateway", || {
            let (text, _) = status();
            let closed = text.matches("no gateway: dropped").count() == 2 && !text.contains("to do");
            if closed { Ok(()) } else { Err(text) }
        });
        for family in FAMILIES {
            assert!(silent("p1", to_server(family, 100)), "IPv{family}");
            assert_eq!(who_tcp("p2", to_server(family, 101)), Ok(node(family)));
        }
        // One that never could be read.
        agent.end("KILL");
        std::fs::remove_file(format!("{HOME}/state/wanted.json")).unwrap();
        server.apply(&gateways.concat()).unwrap();
        let agent = Agent::start(&[]);
        told_of_problem("StaticNat here-v4", "the pod that it names does not get out");
        for family in FAMILIES {
            assert!(silent("p1", to_server(family, 100)), "IPv{family}");
            assert_eq!(who_tcp("p2", to_server(family, 101)), Ok(node(family)));
        }
        let expected: Vec<IpAddr> = FAMILIES.iter().flat_map(|family| by_gateways(*family)).collect();
        let strangers: Vec<IpAddr> = seen("out", 100).into_iter().filter(|source| !expected.contains(source)).collect();
        assert!(strangers.is_empty(), "seen outside: {strangers:?}");
        // Gone: as before.
        for name in ["here-v4", "here-v6", "door-v4", "door-v6"] {
            server.delete("staticnats", "", name).unwrap();
        }
        all_is_well();
        for family in FAMILIES {
            assert_eq!(who_tcp("p1", to_server(family, 100)), Ok(node(family)), "as before");
            assert!(Caller::connect("out", door(family, 1, 7002)).is_err(), "IPv{family}: as before");
        }
        agent.end("TERM");
    });
}

/// A StaticNat with its address, and where it leads.
fn nat(name: &str, address: &str, to: &str) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: StaticNat\nmetadata: {{ name: {name} }}\n\
         spec: {{ address: \"{address}\", {to} }}\n---\n"
    )
}

/// An API server on the worker with the worker's Node, and a file that leads the agent there with its rights.
fn api() -> tidegate_apiserver::ApiServer {
    let server = within("w", || tidegate_apiserver::ApiServer::start(Default::default()).unwrap());
    let read = ["get", "list", "watch"];
    let rules = tidegate_apiserver::rbac::Rules::default().and(&[""], &["nodes", "namespaces", "pods"], &read).and(
        &["tidegate.io"],
        &["egresspolicies", "staticnats"],
        &read,
    );
    server.add_user("agent", rules);
    std::fs::write(format!("{HOME}/kubeconfig"), server.kubeconfig("agent")).unwrap();
    server.apply(&manifest_of_node("w1", 1, 11, "")).unwrap();
    server.apply("apiVersion: v1\nkind: Namespace\nmetadata: { name: shop }\n").unwrap();
    server
}

/// The agent's file.
fn of_the_api() -> String {
    format!(
        "devices: {{ ipv4: flannel.1, ipv6: flannel-v6.1 }}\ncluster: [10.96.0.0/12]\n\
         kubernetes: {{ node: w1, kubeconfig: {HOME}/kubeconfig, stateFile: {HOME}/state/wanted.json }}\n"
    )
}

/// Waits until `status` ends with 0.
fn all_is_well() {
    until("all is as it is wanted", || {
        let (text, code) = status();
        if code == 0 { Ok(()) } else { Err(text) }
    });
}

/// Waits until `status` tells of an object that cannot be read and has nothing to do, and ends with 1.
fn told_of_problem(object: &str, what: &str) {
    until("the problem", || {
        let (text, code) = status();
        let problem = text.lines().any(|line| line.starts_with(&format!("problem: {object}: ")) && line.contains(what));
        if problem && code == 1 && !text.contains("to do") { Ok(()) } else { Err(text) }
    });
}

fn manifest_of_node(name: &str, overlay: u8, underlay: u8, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{ {labels} }}\n  annotations:\n    \
         flannel.alpha.coreos.com/kube-subnet-manager: 'true'\n    flannel.alpha.coreos.com/backend-type: vxlan\n    \
         flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"0a:58:0a:f4:{overlay:02x}:04\"}}'\n    \
         flannel.alpha.coreos.com/backend-v6-data: '{{\"VNI\":1,\"VtepMAC\":\"0a:58:0a:f4:{overlay:02x}:06\"}}'\n    \
         flannel.alpha.coreos.com/public-ip: 198.51.100.{underlay}\n    \
         flannel.alpha.coreos.com/public-ipv6: 2001:db8:2::{underlay}\n\
         spec: {{ podCIDRs: [10.244.{overlay}.0/24, \"fd00:10:244:{overlay}::/64\"] }}\n---\n"
    )
}

fn manifest_of_pod(number: u8, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: p-{number}, namespace: shop, labels: {{ {labels} }} }}\n\
         spec: {{ nodeName: w1, containers: [{{ name: web, image: web }}] }}\n\
         status: {{ phase: Running, podIPs: [{{ ip: {} }}, {{ ip: \"{}\" }}] }}\n---\n",
        pod(4, number),
        pod(6, number)
    )
}
