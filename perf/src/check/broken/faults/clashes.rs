//! What two want and one can have: addresses, prefixes, a device, and two gateways that do not agree.

use std::net::IpAddr;

use super::{
    Break, Case, EXTERNAL, Fault, NODE, SERVICE, VIP, by, edit, explained, explained_leaving, leaves, of_both,
    of_gateway, request, way_out,
};
use crate::topology::{
    CLIENT, CLIENT_MAC, Family, GATEWAY, GATEWAY_2, GATEWAY_2_NODE, GATEWAY_NODE, Node, Vip, WEB_PORT, on_link,
};

/// A node beside [`NODE`], whose prefix it wants.
const OTHER: Node = Node { number: 3 };
/// A VIP on the clients' link that another machine has.
const TAKEN: Vip = on_link(222);
/// A program that passes everything to the kernel, put on the device in place of ours in one step: the gateway would put its
/// own back between two. `clang` and ip-link(8) do it.
const FOREIGN_PROGRAM: &str = "echo '__attribute__((section(\"xdp\"), used)) int other(void *context) { return 2; }' \
                               > other.c; clang -O2 -g -target bpf -c other.c -o other.o && ip -force link set dev wan0 \
                               xdp obj other.o sec xdp";

/// A Service that asks for one address.
fn asks_for(name: &str, address: impl std::fmt::Display) -> Break {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\n  annotations: {{ \
         tidegate.io/addresses: \"{address}\" }}\nspec: {{ type: LoadBalancer, clusterIP: 10.96.9.9, ports: [{{ port: \
         {WEB_PORT} }}] }}\n"
    );
    Break::Add { file: format!("{name}.yaml"), text }
}

/// Gives the gateway's kernel an address; and that address and its device, as ip-address(8) has them.
fn on_loopback(family: Family, address: IpAddr) -> (Break, String) {
    let nodad = if family == Family::V4 { "" } else { " nodad" };
    let place = format!("{address}/{} dev lo", if family == Family::V4 { 32 } else { 128 });
    (by(GATEWAY, format!("ip address add {place}{nodad}"), format!("ip address del {place}")), place)
}

/// The list, of one gateway.
pub(super) fn all() -> Vec<Fault> {
    vec![
        of_both(
            "pod prefix of two nodes",
            "pods of the second node do not answer",
            "give each Node a `podCIDR` of its own; the first one that came keeps it",
            |family| {
                let (own, wanted) = (OTHER.pod_cidr(family), NODE.pod_cidr(family));
                let vtep = if family == Family::V4 { "v4" } else { "v6" };
                of_gateway(
                    Some(family),
                    edit(format!("node-{}.yaml", OTHER.name()), own, &wanted),
                    format!(
                        "state Node {}: Refused: the dataplane refused it: {vtep}.pod_cidrs[0]: prefix {wanted} \
                         already belongs to peer {}",
                        OTHER.name(),
                        NODE.name()
                    ),
                )
            },
        ),
        of_both(
            "reserved address used by a Service",
            "the Service is not served",
            "give the Service another address, or the gateway another one in `control.fullnatSources`",
            |family| {
                let reserved = GATEWAY_NODE.fullnat_source(family);
                of_gateway(
                    Some(family),
                    asks_for("reserved", reserved),
                    format!(
                        "state Service shop/reserved: Refused: the dataplane refused it: addresses[0]: {reserved} is \
                         reserved by gateway {}",
                        GATEWAY_NODE.name()
                    ),
                )
            },
        ),
        of_both(
            "address of two Services",
            "the younger Service is not served at that port",
            "give one of them another address or port",
            |family| {
                let vip = VIP.of(family);
                of_gateway(
                    Some(family),
                    asks_for("younger", vip),
                    format!(
                        "state Service shop/younger: ClaimedTwice: older or first by name (S-067): {vip} \
                         {WEB_PORT}/TCP belongs to shop/{SERVICE}"
                    ),
                )
            },
        ),
        of_both(
            "another machine answers for a VIP",
            "clients on the link reach that machine; the VIP is not announced",
            "take the address from the machine with that MAC; of a worker with kube-proxy in mode ipvs, set `strictARP`",
            |family| {
                let (vip, length) = (TAKEN.of(family), if family == Family::V4 { 24 } else { 64 });
                let nodad = if family == Family::V4 { "" } else { " nodad" };
                let breaks = vec![
                    by(
                        CLIENT,
                        format!("ip addr add {vip}/{length} dev eth0{nodad}"),
                        format!("ip addr del {vip}/{length} dev eth0"),
                    ),
                    asks_for("taken", vip),
                ];
                let says = format!(
                    "state Service shop/taken: AddressConflict: {CLIENT_MAC} answers for {vip} on wan0: it is not announced"
                );
                let command = "tidegate doctor --config node.yaml".to_owned();
                Case {
                    family: Some(family),
                    breaks,
                    probe: None,
                    traffic: None,
                    at: GATEWAY.into(),
                    command,
                    says: vec![says],
                }
            },
        ),
        of_both(
            "VIP on the gateway's kernel",
            "nothing is served at that address: its packets go to the kernel",
            "take the address from the device; Tidegate needs none there",
            |family| {
                let vip = VIP.of(family);
                let (breaks, mends) = on_loopback(family, vip);
                let says = vec![
                    format!(
                        "lacks      address {vip} of Service shop/{SERVICE}: also an address of this machine's kernel, on lo"
                    ),
                    format!("ip address del {mends}"),
                    "TO THE KERNEL".to_owned(),
                    format!(
                        "state Service shop/{SERVICE}: AddressConflict: {vip} is also an address of the gateway's own kernel, \
                         on lo, and is left to it; on the gateway: ip address del {mends}"
                    ),
                ];
                let command = format!("{}; tidegate doctor --config node.yaml", explained(family));
                Case { probe: Some(request(family)), command, says, ..of_gateway(Some(family), breaks, String::new()) }
            },
        ),
        of_both(
            "source of fullnat on the gateway's kernel",
            "Services in `fullnat` are not served in that family; dropped with `NoSource`",
            "take the address from the device, or another one into `control.fullnatSources`",
            |family| {
                let source = GATEWAY_NODE.fullnat_source(family);
                let (breaks, mends) = on_loopback(family, source);
                let says = vec![
                    format!(
                        "fullnat source {source} (control.fullnatSources): also an address of this machine's kernel, on lo"
                    ),
                    format!(
                        "state Service shop/{SERVICE}: AddressConflict: fullnat source {source} is also an address of the \
                         gateway's own kernel, on lo, and is not used; on the gateway: ip address del {mends}"
                    ),
                ];
                let command = format!("{}; tidegate doctor --config node.yaml", explained(family));
                Case { probe: Some(request(family)), command, says, ..of_gateway(Some(family), breaks, String::new()) }
            },
        ),
        Fault {
            given: way_out(),
            ..of_both(
                "address of an egress policy on the gateway's kernel",
                "pods of that policy are refused in that family; counted as `EgressNoAddress`",
                "take the address from the device; Tidegate needs none there",
                |family| {
                    let address = EXTERNAL.of(family);
                    let (breaks, mends) = on_loopback(family, address);
                    let says = vec![
                        format!(
                            "lacks      address {address} of EgressPolicy out: also an address of this machine's kernel, \
                             on lo"
                        ),
                        format!("ip address del {mends}"),
                        format!(
                            "state EgressPolicy out: AddressConflict: {address} is also an address of the gateway's own \
                             kernel, on lo, and is left to it; on the gateway: ip address del {mends}; no pod gets out by it \
                             over {family}"
                        ),
                    ];
                    let command = format!("{}; tidegate doctor --config node.yaml", explained_leaving(family));
                    Case {
                        probe: Some(leaves(family)),
                        command,
                        says,
                        ..of_gateway(Some(family), breaks, String::new())
                    }
                },
            )
        },
        of_both(
            "foreign XDP program",
            "nothing is served on that device: all packets go to the kernel",
            "stop the program's owner, then the command that `doctor` prints; the gateway puts its own back within 2 s",
            |family| {
                let breaks = by(GATEWAY, FOREIGN_PROGRAM, "ip link set dev wan0 xdp off; rm -f other.c other.o");
                let says = "interface wan0: wan0 has an XDP program that is not ours (\"other\", id".to_owned();
                Case { probe: Some(request(family)), ..of_gateway(Some(family), breaks, says) }
            },
        ),
    ]
}

/// The list, of two gateways.
pub(super) fn of_two_gateways() -> Vec<Fault> {
    let second = GATEWAY_2_NODE.name();
    let mends = format!("cp gateway-key {GATEWAY_2}/gateway-key");
    let breaks = by(GATEWAY, format!("echo 'another key, of the second gateway' > {GATEWAY_2}/gateway-key"), mends);
    let case = Case {
        family: None,
        breaks: vec![breaks],
        probe: None,
        traffic: None,
        at: GATEWAY.into(),
        command: "tidegate show gateways".into(),
        says: vec![format!("{second}: "), format!("were not of that key; compare the fingerprint that {second} shows")],
    };
    vec![Fault {
        name: "two gateways with different keys",
        symptom: "each believes the other dead, and both announce all VIPs; counted as `refused_wrong_key`",
        remedy: "write the same key into both files; they are read again every five seconds",
        is_of_one_family: false,
        given: Vec::new(),
        cases: vec![case],
    }]
}
