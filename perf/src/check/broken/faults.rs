//! The list of broken set-ups.
//!
//! Owns how each is broken, who notices, which command names it and with which words. Refuses to know how that is run.

use std::net::{IpAddr, SocketAddr};

use crate::lab::vxlan_device;
use crate::manifest::{HTTP, LabService};
use crate::topology::{
    CLIENT, CLIENT_HOSTS, FABRIC, FAMILIES, Family, GATEWAY, GATEWAY_NODE, GATEWAY_WAN_MAC, GATEWAY_WAN_V4,
    GATEWAY_WAN_V6, Node, POD_TCP_PORT, Pod, ROUTER_V4, ROUTER_V6, VNI, VXLAN_PORT, Vip, WEB_PORT, client_address,
    on_link,
};

/// Frames that say where they went wrong.
mod frames;
/// What two want and one can have.
mod clashes;

/// The node whose set-up is broken, and one of its pods.
const NODE: Node = Node { number: 2 };
const POD: Pod = Pod { number: 3 };
/// A pod of another node.
const STRANGER: Pod = Pod { number: 5 };
/// The Service whose pods are all on that node.
const VIP: Vip = Vip::routed(30);
const SERVICE: &str = "broken";

/// The Service that clients ask.
pub(super) fn broken_service() -> LabService {
    LabService { pods: vec![POD, Pod { number: 4 }], ..LabService::new(SERVICE, VIP, &[HTTP]) }
}

/// A shell command in a namespace.
#[derive(Clone)]
pub(super) struct Line {
    pub namespace: String,
    pub command: String,
}

/// One change that breaks something.
pub(super) enum Break {
    /// Two shell commands.
    Run {
        /// Breaks it.
        line: Line,
        /// Mends it, in the same namespace.
        mend: String,
    },
    /// Other words in a manifest.
    Edit { file: String, from: String, to: String },
    /// Another manifest.
    Add { file: String, text: String },
}

/// A fault in one family, or one that has none.
pub(super) struct Case {
    /// Absent: it has none.
    pub family: Option<Family>,
    /// In this order.
    pub breaks: Vec<Break>,
    /// Fails while it is broken, and works otherwise. Absent: nothing is lost at once.
    pub probe: Option<Line>,
    /// What goes on while the tool looks; absent: the probe.
    pub traffic: Option<Line>,
    /// Namespace of the tool.
    pub at: String,
    /// The tool, as an operator calls it.
    pub command: String,
    /// What it says: all of it while it is broken, none of it otherwise.
    pub says: Vec<String>,
}

/// A broken set-up.
pub(super) struct Fault {
    /// What is wrong, in a few words.
    pub name: &'static str,
    /// What people see of it.
    pub symptom: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// Whether only one family can have it.
    pub is_of_one_family: bool,
    /// What has to be there beforehand, in order, and is taken away afterwards.
    pub given: Vec<Break>,
    /// One for each family, or one without.
    pub cases: Vec<Case>,
}

fn of_both(name: &'static str, symptom: &'static str, remedy: &'static str, case: impl Fn(Family) -> Case) -> Fault {
    Fault { name, symptom, remedy, is_of_one_family: false, given: Vec::new(), cases: FAMILIES.map(case).into() }
}

fn line(namespace: impl Into<String>, command: impl Into<String>) -> Line {
    Line { namespace: namespace.into(), command: command.into() }
}

fn by(namespace: impl Into<String>, breaks: impl Into<String>, mends: impl Into<String>) -> Break {
    Break::Run { line: line(namespace, breaks), mend: mends.into() }
}

fn edit(file: impl Into<String>, from: impl Into<String>, to: impl Into<String>) -> Break {
    Break::Edit { file: file.into(), from: from.into(), to: to.into() }
}

/// A request to the Service.
fn request(family: Family) -> Line {
    line(CLIENT, format!("curl -g -sS -m 1 -o /dev/null 'http://{}/who'", VIP.at(family, WEB_PORT)))
}

/// A pod that speaks to the gateway through the tunnel, where nobody answers.
fn speaks(family: Family) -> Line {
    let gateway = SocketAddr::new(GATEWAY_NODE.fullnat_source(family), WEB_PORT);
    line(POD.name(), format!("curl -g -sS -m 0.3 'http://{gateway}/'"))
}

/// Capture of one frame, and what is to be said of it.
fn captured(filter: &str, more: &str) -> String {
    format!("tidegate capture {filter} -c 1 --seconds 1 -w one.pcapng; tidegate explain --pcap one.pcapng{more}")
}

/// The next frame that the pod sends into the tunnel.
fn heard(family: Family) -> String {
    captured(&format!("--device lan0 --forms before --inner 'src host {}'", POD.address(family)), "")
}

/// The next frame of VXLAN that is dropped.
fn dropped(family: Family) -> String {
    let version = if family == Family::V4 { "ip" } else { "ip6" };
    captured(&format!("--dropped '{version} and udp port {VXLAN_PORT}'"), "")
}

/// What becomes of a request to the Service.
fn explained(family: Family) -> String {
    let from = SocketAddr::new(client_address(family, *CLIENT_HOSTS.start()), 40_000);
    format!("tidegate explain tcp '{from}' '{}'", VIP.at(family, WEB_PORT))
}

fn differs(what: &str, tables: impl std::fmt::Display, packet: impl std::fmt::Display) -> String {
    format!("{what}: tables have {tables}, the packet carries {packet}")
}

fn lacks(what: &str, found: &str, needed: &str) -> String {
    format!("{what}: {found}; needed: {needed}")
}

/// The Service's endpoints of a family, each with the same words behind it.
fn endpoints(family: Family, behind: &str) -> String {
    let all: Vec<String> = broken_service().pods.iter().map(|pod| format!("{}{behind}", pod.address(family))).collect();
    all.join(", ")
}

/// A family as nft(8) names it, of tables and of addresses.
fn ip_table(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

fn node_file() -> String {
    format!("node-{}.yaml", NODE.name())
}

fn slice_file(family: Family) -> String {
    format!("endpointslice-{SERVICE}-{}.yaml", if family == Family::V4 { "ipv4" } else { "ipv6" })
}

/// A worker that `tidegate doctor` looks over.
fn of_worker(family: Option<Family>, breaks: Break, probe: Option<Line>, says: &str) -> Case {
    let command = "tidegate doctor --worker".to_owned();
    Case { family, breaks: vec![breaks], probe, traffic: None, at: NODE.name(), command, says: vec![says.into()] }
}

/// The same, and the command that it prints.
fn gone(case: Case, fix: String) -> Case {
    Case { says: case.says.into_iter().chain([fix]).collect(), ..case }
}

/// The gateway that `tidegate doctor` looks over.
fn of_gateway(family: Option<Family>, breaks: Break, says: String) -> Case {
    let command = "tidegate doctor --config node.yaml".to_owned();
    Case { family, breaks: vec![breaks], probe: None, traffic: None, at: GATEWAY.into(), command, says: vec![says] }
}

/// The list.
pub(super) fn all() -> Vec<Fault> {
    let mut faults = tunnels();
    faults.extend(frames::all());
    faults.extend(links());
    faults.extend(services());
    faults.extend(clashes::all());
    faults.extend(machines());
    faults
}

/// Those that take two gateways.
pub(super) fn of_two_gateways() -> Vec<Fault> {
    clashes::of_two_gateways()
}

/// What gateways and nodes believe of each other's tunnels.
fn tunnels() -> Vec<Fault> {
    let node = NODE.name();
    let who = format!("node {node}");
    vec![
        of_both(
            "VTEP MAC of a node",
            "its pods do not answer; the node receives and discards",
            "restart flannel on the node, which writes the annotation `backend-data` anew",
            |family| {
                let (right, wrong) = (NODE.vtep_mac(family), NODE.vtep_mac(family).replace("f4:02", "f4:ee"));
                Case {
                    family: Some(family),
                    breaks: vec![edit(node_file(), &right, &wrong)],
                    probe: Some(request(family)),
                    traffic: Some(speaks(family)),
                    at: GATEWAY.into(),
                    command: heard(family),
                    says: vec![differs(&format!("VTEP MAC of {who}"), wrong, right)],
                }
            },
        ),
        of_both(
            "VTEP MAC of the gateway",
            "requests arrive at pods, answers are dropped with `VxlanOtherHost`",
            "on the node, compare `ip neigh show dev flannel.1` with the annotation of the gateway's Node",
            |family| {
                let (right, device) = (GATEWAY_NODE.vtep_mac(family), vxlan_device(family));
                let wrong = right.replace("f4:09", "f4:ee");
                let (overlay, underlay) = (GATEWAY_NODE.overlay(family), GATEWAY_NODE.underlay(family));
                let neighbour =
                    |mac: &str| format!("ip neigh replace {overlay} lladdr {mac} dev {device} nud permanent");
                let breaks = format!("bridge fdb append {wrong} dev {device} dst {underlay}; {}", neighbour(&wrong));
                let mends = format!("{}; bridge fdb del {wrong} dev {device} dst {underlay}", neighbour(&right));
                Case {
                    family: Some(family),
                    breaks: vec![by(&node, breaks, mends)],
                    probe: Some(request(family)),
                    traffic: None,
                    at: GATEWAY.into(),
                    command: dropped(family),
                    says: vec![differs(&format!("VTEP MAC of this gateway, in frames of {who}"), right, wrong)],
                }
            },
        ),
        of_both(
            "VNI of a node",
            "its pods do not answer; frames of it are dropped with `VxlanUnknownPeer`",
            "give all nodes the same `Backend.VNI` in flannel's configuration",
            |family| {
                let mac = NODE.vtep_mac(family);
                let data = |vni: u32| format!("{{\"VNI\":{vni},\"VtepMAC\":\"{mac}\"}}");
                Case {
                    family: Some(family),
                    breaks: vec![edit(node_file(), data(VNI), data(7))],
                    probe: Some(request(family)),
                    traffic: Some(speaks(family)),
                    at: GATEWAY.into(),
                    command: dropped(family),
                    says: vec![differs(&format!("VNI of {who}"), 7, VNI)],
                }
            },
        ),
        of_both(
            "underlay address of a node",
            "its pods do not answer; frames of it are dropped with `VxlanUnknownPeer`",
            "have flannel on the node take the right interface (`--iface`), so that its annotation `public-ip` is right",
            |family| {
                let right = NODE.underlay(family);
                let wrong = Node { number: 67 }.underlay(family);
                let name = if family == Family::V4 { "public-ip" } else { "public-ipv6" };
                Case {
                    family: Some(family),
                    breaks: vec![edit(node_file(), format!("{name}: {right}"), format!("{name}: {wrong}"))],
                    probe: Some(request(family)),
                    traffic: Some(speaks(family)),
                    at: GATEWAY.into(),
                    command: dropped(family),
                    says: vec![differs(&format!("VTEP of {who}, which has {}", POD.address(family)), wrong, right)],
                }
            },
        ),
        of_both(
            "spoofed source",
            "a pod sends with the address of a pod of another node; dropped with `SpoofedSource`",
            "find the pod on the node that the packet carries; a pod that may not have `CAP_NET_ADMIN` cannot do this",
            |family| {
                let address = STRANGER.address(family);
                let address = if family == Family::V4 { format!("{address}/32") } else { format!("{address}/128") };
                let sender = STRANGER.address(family);
                let tunnel = format!("via {} dev {} onlink", GATEWAY_NODE.overlay(family), vxlan_device(family));
                let vip = VIP.of(family);
                Case {
                    family: Some(family),
                    breaks: vec![
                        by(
                            POD.name(),
                            format!("ip addr add {address} dev lo"),
                            format!("ip addr del {address} dev lo"),
                        ),
                        by(&node, format!("ip route add {vip} {tunnel}"), format!("ip route del {vip} {tunnel}")),
                    ],
                    probe: None,
                    traffic: Some(line(
                        POD.name(),
                        format!("curl -g -sS -m 0.3 --interface {sender} 'http://{}/who'", VIP.at(family, WEB_PORT)),
                    )),
                    at: GATEWAY.into(),
                    command: dropped(family),
                    says: vec![differs(&format!("node of source {sender}"), STRANGER.node().name(), &node)],
                }
            },
        ),
    ]
}

/// Neighbours and hops.
fn links() -> Vec<Fault> {
    vec![
        of_both(
            "missing neighbour",
            "a node does not answer; dropped with `NeighbourUnresolved`",
            "`ip neigh show to ADDRESS` on the gateway; is the node up, on this link, and in the same VLAN?",
            |family| {
                let address = NODE.underlay(family);
                Case {
                    family: Some(family),
                    breaks: vec![
                        by(NODE.name(), "ip link set dev eth0 arp off", "ip link set dev eth0 arp on"),
                        by(GATEWAY, format!("ip neigh flush to {address} dev lan0"), "true"),
                    ],
                    probe: Some(request(family)),
                    traffic: None,
                    at: GATEWAY.into(),
                    command: explained(family),
                    says: vec![
                        format!("MAC of next hop {address}, which is node {}, on lan0: none", NODE.name()),
                        format!(
                            "needed: an answer to {}",
                            if family == Family::V4 { "ARP" } else { "neighbour discovery" }
                        ),
                    ],
                }
            },
        ),
        of_both(
            "next hop that changed its MAC",
            "a node does not answer, and is heard well",
            "on the gateway `ip neigh flush to ADDRESS`; a `permanent` entry must be changed by whoever made it",
            |family| {
                let address = NODE.underlay(family);
                let (right, wrong) = ("02:00:00:00:02:12", "02:00:00:00:02:ee");
                Case {
                    family: Some(family),
                    breaks: vec![by(
                        GATEWAY,
                        format!("ip neigh replace {address} lladdr {wrong} dev lan0 nud permanent"),
                        format!("ip neigh del {address} dev lan0"),
                    )],
                    probe: Some(request(family)),
                    traffic: Some(speaks(family)),
                    at: GATEWAY.into(),
                    command: heard(family),
                    says: vec![differs(
                        &format!("MAC of next hop {address}, which is node {}", NODE.name()),
                        wrong,
                        right,
                    )],
                }
            },
        ),
        of_both(
            "own VTEP address gone",
            "pods of all nodes do not answer over that family; dropped with `NoTunnel`",
            "give the address back to the device that is named, and look for what took it: the machine's network \
             configuration has to have it",
            |family| {
                let (own, device) = (GATEWAY_NODE.underlay(family), "lan0");
                let (length, nodad) = if family == Family::V4 { (24, "") } else { (64, " nodad") };
                let place = format!("{own}/{length} dev {device}");
                let breaks = by(GATEWAY, format!("ip address del {place}"), format!("ip address add {place}{nodad}"));
                let gateway = GATEWAY_NODE.name();
                let says = vec![
                    lacks(
                        &format!("VTEP of gateway {gateway} over {family}, {own}"),
                        "on no device of this machine",
                        &format!("ip address add {own}/LENGTH dev {device}"),
                    ),
                    format!("underlay {family}: {own}, at which tunnels of nodes end, is on no device of this machine"),
                ];
                let command = format!("{}; tidegate doctor --config node.yaml", explained(family));
                Case { probe: Some(request(family)), command, says, ..of_gateway(Some(family), breaks, String::new()) }
            },
        ),
        of_both(
            "device towards the nodes is down",
            "pods of all nodes do not answer; dropped with `NoTunnel`",
            "the command that is named; look at the cable and at the switch's port",
            |family| {
                // The kernel forgets addresses of IPv6 on a device that goes down.
                let v6 = GATEWAY_NODE.underlay(Family::V6);
                let mends = format!("ip link set dev lan0 up; ip address add {v6}/64 dev lan0 nodad");
                let breaks = by(GATEWAY, "ip link set dev lan0 down", mends);
                let mut says = vec![
                    lacks("device lan0", "down, or without a carrier", "up (ip link set dev lan0 up)"),
                    "interface lan0: down, or without a carrier".into(),
                    "not ready: lan0 is down, or without a carrier".into(),
                ];
                if family == Family::V4 {
                    let to = NODE.underlay(family);
                    says.push(format!("way to node {}, {to}: no route; needed: a route to {to}", NODE.name()));
                }
                let command =
                    format!("{}; tidegate doctor --config node.yaml; tidegate health --ready", explained(family));
                Case { probe: Some(request(family)), command, says, ..of_gateway(Some(family), breaks, String::new()) }
            },
        ),
        of_both(
            "routes in a table of their own",
            "clients get no answer; dropped with `NoRoute`",
            "put the routes that gateway traffic needs into table `main` as well: rules of policy routing are not followed",
            |family| {
                let (ip, net, metric) = match family {
                    Family::V4 => ("ip -4", "192.0.2.0/24", ""),
                    Family::V6 => ("ip -6", "2001:db8:1::/64", " metric 256"),
                };
                let device = format!("{net} dev wan0 proto kernel scope link{metric}");
                let breaks = format!(
                    "{ip} route add {net} dev wan0 table 77; {ip} rule add priority 77 to {net} lookup 77; {ip} route del {net} \
                     dev wan0"
                );
                let mends = format!(
                    "{ip} route add {device}; {ip} rule del priority 77; {ip} route del {net} dev wan0 table 77"
                );
                let client = client_address(family, *CLIENT_HOSTS.start());
                let rule = format!("77: from all to {net} lookup 77");
                let flag = &ip[3..];
                let says = vec![
                    format!("route to client {client}: none in the kernel's tables local and main"),
                    format!("rules of policy routing (ip {flag} rule): {rule}"),
                    format!("routing {family}: rules that Tidegate does not follow: {rule}"),
                ];
                let command = format!("{} --device wan0; tidegate doctor --config node.yaml", explained(family));
                let breaks = by(GATEWAY, breaks, mends);
                Case { probe: Some(request(family)), command, says, ..of_gateway(Some(family), breaks, String::new()) }
            },
        ),
        of_both(
            "MAC of the gateway",
            "a client or router sends to a MAC that is another's; dropped with `OtherHost`",
            "flush the neighbour's entry on the sender; look for a machine that answers for the gateway's address",
            |family| {
                let (gateway, wrong) = (family.pick(GATEWAY_WAN_V4, GATEWAY_WAN_V6), "02:00:00:00:01:ee");
                Case {
                    family: Some(family),
                    breaks: vec![by(
                        CLIENT,
                        format!("ip neigh replace {gateway} lladdr {wrong} dev eth0 nud permanent"),
                        format!("ip neigh del {gateway} dev eth0"),
                    )],
                    probe: Some(request(family)),
                    traffic: None,
                    at: GATEWAY.into(),
                    command: captured(&format!("--dropped 'dst host {}'", VIP.of(family)), " --device wan0"),
                    says: vec![differs("MAC of wan0", GATEWAY_WAN_MAC, wrong)],
                }
            },
        ),
        of_both(
            "TTL that ends at the gateway",
            "nothing is answered but ICMP time exceeded",
            "raise the sender's TTL, or look for a loop in the routes towards the gateway",
            |family| {
                let setting = match family {
                    Family::V4 => "/proc/sys/net/ipv4/ip_default_ttl",
                    Family::V6 => "/proc/sys/net/ipv6/conf/eth0/hop_limit",
                };
                Case {
                    family: Some(family),
                    breaks: vec![by(CLIENT, format!("echo 1 > {setting}"), format!("echo 64 > {setting}"))],
                    probe: Some(request(family)),
                    traffic: None,
                    at: GATEWAY.into(),
                    command: captured(&format!("--device wan0 --forms before 'dst host {}'", VIP.of(family)), ""),
                    says: vec![format!(
                        "{} of the packet: 1; needed: 2, to be forwarded",
                        if family == Family::V4 { "TTL" } else { "hop limit" }
                    )],
                }
            },
        ),
        of_both(
            "dead node",
            "some new connections are not answered for a few seconds, then none go there any more",
            "look after the node; its endpoints get new connections again when it answers",
            |family| Case {
                family: Some(family),
                breaks: vec![by(
                    FABRIC,
                    format!("ip link set {} down", NODE.name()),
                    format!("ip link set {} up", NODE.name()),
                )],
                probe: Some(request(family)),
                traffic: None,
                at: GATEWAY.into(),
                command: format!("tidegate show backends shop/{SERVICE}"),
                says: vec![
                    format!("node {}: no answer from {} on TCP port", NODE.name(), NODE.underlay(family)),
                    "s, and 2 s is the limit".into(),
                ],
            },
        ),
    ]
}

/// What objects ask for.
fn services() -> Vec<Fault> {
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: closed, namespace: shop }\nspec:\n  \
                  podSelector: {}\n  policyTypes: [Ingress]\n  ingress: [{ from: [{ ipBlock: { cidr: 10.0.0.0/8 } }] }]\n";
    vec![
        of_both(
            "no ready endpoint",
            "connections are refused at once",
            "`kubectl get endpointslices -l kubernetes.io/service-name=NAME`: why are the pods not ready?",
            |family| Case {
                family: Some(family),
                breaks: vec![
                    edit(slice_file(family), "ready: true", "ready: false"),
                    edit(slice_file(family), "serving: true", "serving: false"),
                ],
                probe: Some(request(family)),
                traffic: None,
                at: GATEWAY.into(),
                command: explained(family),
                says: vec![lacks(
                    &format!("{family} endpoints of shop/{SERVICE} port {WEB_PORT}"),
                    &format!("0 ready, 2 not ready ({})", endpoints(family, &format!(" on {}", NODE.name()))),
                    "1 ready",
                )],
            },
        ),
        of_both(
            "endpoint outside the pod CIDRs",
            "some connections are not answered: packets to that endpoint follow the kernel's routes",
            "find out who gave the endpoint that address: a second CNI on the node, or whoever wrote the EndpointSlice; \
             else add the prefix to the Node's `podCIDRs`",
            |family| {
                let wrong = if family == Family::V4 { "10.99.2.11" } else { "fd00:99:2::11" };
                let known = FAMILIES.map(|family| NODE.pod_cidr(family)).join(", ");
                let says = format!(
                    "state Service shop/{SERVICE}: NotInOverlay: no tunnel leads to endpoints on {} ({wrong}: neither an \
                     address of that Node nor in its pod CIDRs, which are {known})",
                    NODE.name()
                );
                let breaks = edit(slice_file(family), format!("- {}\n", POD.address(family)), format!("- {wrong}\n"));
                Case { probe: Some(request(family)), ..of_gateway(Some(family), breaks, says) }
            },
        ),
        of_both(
            "source range",
            "some clients get no answer; dropped with `SourceDenied`",
            "correct `spec.loadBalancerSourceRanges` of the Service",
            |family| {
                let ranges = match family {
                    Family::V4 => "10.0.0.0 to 10.255.255.255",
                    Family::V6 => "fd00:: to fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                };
                Case {
                    family: Some(family),
                    breaks: vec![edit(
                        format!("service-{SERVICE}.yaml"),
                        "spec:\n",
                        "spec:\n  loadBalancerSourceRanges: [10.0.0.0/8, \"fd00::/8\"]\n",
                    )],
                    probe: Some(request(family)),
                    traffic: None,
                    at: GATEWAY.into(),
                    command: explained(family),
                    says: vec![differs(
                        &format!("source ranges of shop/{SERVICE}"),
                        ranges,
                        client_address(family, *CLIENT_HOSTS.start()),
                    )],
                }
            },
        ),
        of_both(
            "local traffic policy without a node",
            "clients get no answer; dropped with `NoLocalEndpoint`",
            "endpoints that are no pods have no `nodeName`: set `externalTrafficPolicy: Cluster`",
            |family| Case {
                family: Some(family),
                breaks: vec![
                    edit(slice_file(family), format!("  nodeName: {}\n", NODE.name()), ""),
                    edit(
                        format!("service-{SERVICE}.yaml"),
                        "externalTrafficPolicy: Cluster",
                        "externalTrafficPolicy: Local",
                    ),
                ],
                probe: Some(request(family)),
                traffic: None,
                at: GATEWAY.into(),
                command: explained(family),
                says: vec![lacks(
                    &format!("{family} endpoints of shop/{SERVICE} port {WEB_PORT} that are local to a node"),
                    &format!(
                        "2 serve, none of them has a node and is ready ({})",
                        endpoints(family, " without a node")
                    ),
                    "1 that is ready and has a nodeName",
                )],
            },
        ),
        Fault {
            given: way_out(),
            ..of_both(
                "ports of an egress policy are used up",
                "new connections of a pod to the outside are refused; counted as `EgressQuota`",
                "raise `spec.limits`, or find out what the pod does with its connections",
                |family| Case {
                    family: Some(family),
                    breaks: vec![edit("egress.yaml", "limits: {}", "limits: { portsPerPod: 1 }")],
                    probe: Some(leaves(family)),
                    traffic: None,
                    at: GATEWAY.into(),
                    command: explained_leaving(family),
                    says: vec![
                        format!("ports of pod {}: ", POD.address(family)),
                        " held; needed: fewer than 1, the most that EgressPolicy out allows".into(),
                    ],
                },
            )
        },
        of_both(
            "network policy",
            "some clients get no answer; dropped with `PolicyDeniedIngress`",
            "add the clients, as pods' nodes see them, to `spec.ingress` of the NetworkPolicy that is named",
            |family| Case {
                family: Some(family),
                breaks: vec![
                    Break::Add { file: "pods.yaml".into(), text: crate::check::policy::pod_objects("app: web") },
                    Break::Add { file: "closed.yaml".into(), text: policy.into() },
                ],
                probe: Some(request(family)),
                traffic: None,
                at: GATEWAY.into(),
                command: explained(family),
                says: vec![
                    differs(
                        "sources that NetworkPolicy/shop/closed accepts",
                        "10.0.0.0/8",
                        client_address(family, *CLIENT_HOSTS.start()),
                    ),
                    format!("), TCP {POD_TCP_PORT}"),
                ],
            },
        ),
    ]
}

/// The addresses with which the pod leaves.
const EXTERNAL: Vip = on_link(241);

/// A policy by which the pod leaves, and the way.
fn way_out() -> Vec<Break> {
    vec![
        Break::Add { file: "egress.yaml".into(), text: egress_objects() },
        by(NODE.name(), outward("add"), outward("del")),
    ]
}

/// The pod speaks to somebody outside at a port where nobody listens: the answer is a reset, unless the gateway refuses first.
fn leaves(family: Family) -> Line {
    let to = SocketAddr::new(outside(family), 9);
    line(POD.name(), format!("curl -g -v -m 1 'http://{to}/' 2>&1 | grep refused"))
}

/// What becomes of that.
fn explained_leaving(family: Family) -> String {
    let (from, to) = (SocketAddr::new(POD.address(family), 40_000), SocketAddr::new(outside(family), 9));
    format!("tidegate explain tcp '{from}' '{to}'")
}

/// A policy by which the pod leaves, and the pod.
fn egress_objects() -> String {
    let external = EXTERNAL;
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: out }}\nspec:\n  \
         podSelector: {{ matchLabels: {{ leaves: by-gateway }} }}\n  addresses: [\"{}\", \"{}\"]\n  limits: {{}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{ name: {}, namespace: shop, labels: {{ leaves: by-gateway }} }}\n\
         spec: {{ nodeName: {} }}\nstatus: {{ podIPs: [{{ ip: \"{}\" }}, {{ ip: \"{}\" }}] }}\n",
        external.v4,
        external.v6,
        POD.name(),
        NODE.name(),
        POD.address(Family::V4),
        POD.address(Family::V6)
    )
}

/// Somebody outside.
fn outside(family: Family) -> IpAddr {
    client_address(family, *CLIENT_HOSTS.start())
}

/// On the node: the way to that one leads through the gateway, or does not any more.
fn outward(verb: &str) -> String {
    let way = |family| {
        let (to, via, device) = (outside(family), GATEWAY_NODE.overlay(family), vxlan_device(family));
        format!("ip route {verb} {to} via {via} dev {device} onlink")
    };
    FAMILIES.map(way).join(" && ")
}

/// Machines, as `tidegate doctor` sees them.
fn machines() -> Vec<Fault> {
    let node = NODE.name();
    let rp_filter = format!("/proc/sys/net/ipv4/conf/{}/rp_filter", vxlan_device(Family::V4));
    vec![
        of_both(
            "MTU too small for tunnels",
            "small answers arrive, large ones stall where ICMP is filtered",
            "`ip link set dev lan0 mtu 1500`, and the same on every switch between gateway and nodes",
            |family| {
                let room = if family == Family::V4 { 1350 } else { 1330 };
                of_gateway(
                    Some(family),
                    by(GATEWAY, "ip link set dev lan0 mtu 1400", "ip link set dev lan0 mtu 1500"),
                    format!("MTU 1400 leaves {room} bytes for pods' packets in tunnels over {family}"),
                )
            },
        ),
        of_both(
            "forwarding is off on a node",
            "its pods do not answer",
            "the command that `doctor` prints; look for what switched it off",
            |family| {
                let setting = match family {
                    Family::V4 => "/proc/sys/net/ipv4/ip_forward",
                    Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
                };
                of_worker(
                    Some(family),
                    by(&node, format!("echo 0 > {setting}"), format!("echo 1 > {setting}")),
                    Some(request(family)),
                    &format!(
                        "forwarding {family}: off: net/{} is 0, and 1 is needed",
                        &setting["/proc/sys/net/".len()..]
                    ),
                )
            },
        ),
        of_both(
            "route to the gateway is gone on a node",
            "its pods do not answer",
            "the command that `doctor` prints; look for what took the route: the agent of the CNI on the node makes it",
            |family| {
                let (device, vtep) = (vxlan_device(family), GATEWAY_NODE.overlay(family));
                let route = format!("{} via {vtep} dev {device} onlink", GATEWAY_NODE.pod_cidr(family));
                let breaks = by(&node, format!("ip route del {route}"), format!("ip route add {route}"));
                let says = format!("tunnel {device}: no route to the pods behind the VTEP {vtep}, which is");
                gone(of_worker(Some(family), breaks, Some(request(family)), &says), format!("ip route add {route}"))
            },
        ),
        of_both(
            "neighbour entry of the gateway is gone on a node",
            "its pods do not answer",
            "the command that `doctor` prints; look for what took the entry: the agent of the CNI on the node makes it",
            |family| {
                let (device, vtep) = (vxlan_device(family), GATEWAY_NODE.overlay(family));
                let mac = GATEWAY_NODE.vtep_mac(family);
                let add = format!("ip neigh replace {vtep} dev {device} nud permanent lladdr {mac}");
                let breaks = by(&node, format!("ip neigh del {vtep} dev {device}"), &add);
                let says = format!("tunnel {device}: no neighbour {vtep}, by which the route to");
                gone(of_worker(Some(family), breaks, Some(request(family)), &says), add)
            },
        ),
        of_both(
            "forwarding entry of the gateway is gone on a node",
            "its pods do not answer",
            "the command that `doctor` prints, with the address of the gateway in the underlay",
            |family| {
                let (device, vtep) = (vxlan_device(family), GATEWAY_NODE.overlay(family));
                let (mac, underlay) = (GATEWAY_NODE.vtep_mac(family), GATEWAY_NODE.underlay(family));
                let entry = format!("{mac} dev {device} dst {underlay}");
                let breaks = by(&node, format!("bridge fdb del {entry}"), format!("bridge fdb append {entry}"));
                let says = format!("tunnel {device}: no forwarding entry for {mac}, which is the VTEP {vtep}");
                let fix = format!("bridge fdb append {mac} dev {device} dst ADDRESS");
                gone(of_worker(Some(family), breaks, Some(request(family)), &says), fix)
            },
        ),
        Fault {
            name: "dataplane that hangs",
            symptom: "nothing is served, and `tidegate show` waits",
            remedy: "the command that `doctor` prints; the log says what it was about",
            is_of_one_family: false,
            given: Vec::new(),
            cases: vec![Case {
                probe: Some(request(Family::V4)),
                ..of_gateway(
                    None,
                    by(GATEWAY, "kill -STOP $(pidof tidegate-dataplane)", "kill -CONT $(pidof tidegate-dataplane)"),
                    "the dataplane does not answer within 5 s".into(),
                )
            }],
        },
        Fault {
            name: "strict rp_filter on a node",
            symptom: "`node-dsr` and `symmetric`: the node receives clients' packets and discards them",
            remedy: "the command that `doctor` prints",
            is_of_one_family: true,
            given: Vec::new(),
            cases: vec![of_worker(
                Some(Family::V4),
                by(&node, format!("echo 1 > {rp_filter}"), format!("echo 0 > {rp_filter}")),
                None,
                &format!(
                    "rp-filter {}: rp_filter 1, of all devices 0: strict, and 0 or 2 is needed",
                    vxlan_device(Family::V4)
                ),
            )],
        },
        Fault {
            name: "kube-proxy answers for VIPs",
            symptom: "clients on the link reach now the gateway, now a node",
            remedy: "set `ipvs.strictARP: true` in kube-proxy's configuration and restart it",
            is_of_one_family: true,
            given: Vec::new(),
            cases: vec![of_gateway(
                None,
                by(GATEWAY, "ip link add kube-ipvs0 type bridge", "ip link del kube-ipvs0"),
                "mode ipvs, kube-ipvs0 is there, arp_ignore 0, arp_announce 0: it answers for VIPs".into(),
            )],
        },
        Fault {
            name: "kernel firewall that is passed by",
            symptom: "what its rules forbid is delivered",
            remedy: "say the same in a GatewayPolicy or a NetworkPolicy",
            is_of_one_family: false,
            given: Vec::new(),
            cases: vec![of_gateway(
                None,
                by(
                    GATEWAY,
                    "nft add table inet f; nft add chain inet f i '{ type filter hook input priority 0; }'; \
                     nft add rule inet f i tcp dport 80 drop",
                    "nft delete table inet f",
                ),
                "chain i of table inet f at input: 1 rule and policy accept, the first: tcp dport 80 drop; traffic \
                 that Tidegate handles meets none of them"
                    .into(),
            )],
        },
        of_both(
            "masquerading on a node",
            "pods that an EgressPolicy selects leave with the node's address",
            "run `tidegate-node` on the node",
            |family| {
                let ip = ip_table(family);
                let rule = format!("{ip} saddr {} masquerade", NODE.pod_cidr(family));
                let router = family.pick(ROUTER_V4, ROUTER_V6);
                let breaks = format!(
                    "nft add table {ip} nat; nft add chain {ip} nat FLANNEL-POSTRTG; \
                     nft add rule {ip} nat FLANNEL-POSTRTG {rule}; ip route add default via {router}"
                );
                of_worker(
                    Some(family),
                    by(&node, breaks, format!("nft delete table {ip} nat; ip route del default via {router}")),
                    None,
                    &format!(
                        "flannel's rule in chain FLANNEL-POSTRTG of table {ip} nat ({rule}) gives pods' packets the \
                         node's address {} instead of their own; 0 exemptions by tidegate-node",
                        NODE.underlay(family)
                    ),
                )
            },
        ),
    ]
}
