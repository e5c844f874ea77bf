//! kube-proxy on the lab's workers: the rules it writes in nftables mode, without the program.
//!
//! Owns the text of the rules and their loading. Refuses to know who asks for them. Written after what kube-proxy says of
//! itself (KEP-3866 and the comments of its nftables proxier): a map from (address, protocol, port) to a verdict, a chain
//! per Service and per endpoint, `numgen random` among endpoints, and the mark 0x4000 for what is to be masqueraded. With
//! `externalTrafficPolicy: Local` a client from outside gets an endpoint of this very node and is not masqueraded; without
//! an endpoint here its packets are dropped. With `Cluster` it gets any endpoint and is masqueraded.
//!
//! The rules are replaced in one transaction, and what packets enter by stays: the chains at the hooks and the map of
//! addresses are filled again, never made again. A packet looks up the kernel's generation of the rules at every hook and
//! at every set, not once: with chains that are made again, one in some hundred changes meets a packet that sees the new
//! chain before the change and the old one after it, and so none at all; the node then has no route to the VIP and says so.
//! For the same reason the choice among endpoints is a rule per endpoint and no anonymous map. Chains of endpoints that
//! are gone stay empty. Afterwards the connection tracker forgets datagram flows to pods that are gone, as kube-proxy has
//! it do.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;

use crate::manifest::{LabService, Port};
use crate::process::{self, in_namespace};
use crate::topology::{FAMILIES, Family, Node, Pod, pods, workers};

/// How long loading may take on a busy machine.
const LOAD_LIMIT: Duration = Duration::from_secs(20);
/// Pods of the whole cluster.
const CLUSTER_CIDR_V4: &str = "10.244.0.0/16";
/// The same for IPv6.
const CLUSTER_CIDR_V6: &str = "fd00:10:244::/48";

/// Makes the rules of every worker say `services`.
///
/// # Errors
/// When nft (Debian package nftables) is missing or refuses the rules.
pub fn program(services: &[LabService]) -> Result<()> {
    workers().try_for_each(|worker| program_one(worker, services))
}

/// Makes the rules of one worker say `services`; of none: as if kube-proxy did not know them.
///
/// # Errors
/// As [`program`].
pub fn program_one(worker: Node, services: &[LabService]) -> Result<()> {
    let mut nft = in_namespace(&worker.name(), "nft");
    nft.args(["-f", "-"]);
    let text: String = FAMILIES.iter().map(|family| rules(worker, *family, services)).collect();
    process::run(nft, &text, LOAD_LIMIT)?.success(&format!("nft in {} with\n{text}", worker.name()))?;
    let datagrams = |service: &&LabService| service.ports.iter().any(|port| port.protocol == "UDP");
    services.iter().filter(datagrams).try_for_each(|service| forget_stale(worker, service))
}

/// Ends the kernel's memory of datagrams that went to pods which are no endpoints any more: the rules are asked for the
/// first packet of a flow only, so a client that keeps its source port would never come to another pod (T-020, T-023).
/// Nothing is forgotten while nobody serves.
fn forget_stale(worker: Node, service: &LabService) -> Result<()> {
    let serving: Vec<Pod> = service.pods.iter().chain(&service.terminating).copied().collect();
    if serving.is_empty() {
        return Ok(());
    }
    for family in FAMILIES {
        let (name, vip) = (if family == Family::V4 { "ipv4" } else { "ipv6" }, service.vip.of(family).to_string());
        let way = |what| [what, "-f", name, "-p", "udp", "--orig-dst", &vip].map(String::from);
        let mut list = in_namespace(&worker.name(), "conntrack");
        list.args(way("-L"));
        let known = process::run(list, "", LOAD_LIMIT)?.success(&format!("conntrack in {}", worker.name()))?;
        for pod in pods().filter(|pod| !serving.contains(pod)) {
            let address = pod.address(family).to_string();
            if !known.split_whitespace().any(|word| word.strip_prefix("src=") == Some(&address)) {
                continue;
            }
            let mut delete = in_namespace(&worker.name(), "conntrack");
            delete.args(way("-D")).args(["--reply-src", &address]);
            // It fails when there is nothing to delete: the flow may have ended since.
            process::run(delete, "", LOAD_LIMIT)?;
        }
    }
    Ok(())
}

/// What one family's words are in nftables.
fn words(family: Family) -> (&'static str, &'static str, &'static str) {
    match family {
        Family::V4 => ("ip", "ipv4_addr", CLUSTER_CIDR_V4),
        Family::V6 => ("ip6", "ipv6_addr", CLUSTER_CIDR_V6),
    }
}

/// The rules of one family that a node has for `services`.
pub(crate) fn rules(worker: Node, family: Family, services: &[LabService]) -> String {
    let (ip, address, cluster_cidr) = words(family);
    let ports = || services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    let (mut chains, mut verdicts, mut drops) = (String::new(), Vec::new(), Vec::new());
    for (service, port) in ports() {
        let key = format!("{} . {} . {}", service.vip.of(family), protocol(port), port.port);
        let name = format!("{}-{}", service.name, protocol(port));
        let usable = usable(service);
        let here: Vec<Pod> = if service.local { usable_on(service, worker) } else { usable.clone() };
        // A node's own choice may be a pod that the cluster's is not: every one has its chain.
        for pod in service.pods.iter().chain(&service.terminating) {
            let _ = write!(
                chains,
                "chain endpoint-{name}-{pod} {{\n{ip} saddr {at} jump mark-for-masquerade\nmeta l4proto {protocol} dnat to \
                 {end}\n}}\n",
                pod = pod.name(),
                at = pod.address(family),
                protocol = protocol(port),
                end = std::net::SocketAddr::new(pod.address(family), port.target_port),
            );
        }
        chains += &choice(&format!("service-{name}"), &name, &usable);
        if here.is_empty() {
            drops.push(format!("{key} : drop"));
            continue;
        }
        let _ = writeln!(chains, "chain external-{name} {{");
        if service.local {
            // S-058: pods take the short way to any endpoint, and so does the node itself, masqueraded.
            let _ = writeln!(chains, "{ip} saddr {cluster_cidr} goto service-{name}");
            let _ = writeln!(chains, "fib saddr type local jump mark-for-masquerade");
            let _ = writeln!(chains, "fib saddr type local goto service-{name}");
            let _ = writeln!(chains, "goto local-{name}");
            chains += "}\n";
            chains = choice(&format!("local-{name}"), &name, &here) + &chains;
        } else {
            let _ = writeln!(chains, "jump mark-for-masquerade\ngoto service-{name}\n}}");
        }
        verdicts.push(format!("{key} : goto external-{name}"));
    }
    let chains = ordered(&chains);
    // What is there on every call: the ways in, and the maps that the rules of the ways in look at.
    let frame = format!(
        "table {ip} kube-proxy {{\n\
         chain mark-for-masquerade {{\n}}\nchain masquerading {{\n}}\n\
         map service-ips {{\ntype {address} . inet_proto . inet_service : verdict\n}}\n\
         map no-endpoint-services {{\ntype {address} . inet_proto . inet_service : verdict\n}}\n\
         chain services {{\n}}\n\
         chain nat-prerouting {{\ntype nat hook prerouting priority dstnat;\n}}\n\
         chain nat-output {{\ntype nat hook output priority -100;\n}}\n\
         chain nat-postrouting {{\ntype nat hook postrouting priority srcnat;\n}}\n\
         chain filter-prerouting {{\ntype filter hook prerouting priority dstnat - 10;\n}}\n}}\n"
    );
    let fill = |map: &str, elements: &[String]| {
        let list = elements.join(", ");
        if list.is_empty() { list } else { format!("add element {ip} kube-proxy {map} {{ {list} }}\n") }
    };
    format!(
        "{frame}flush table {ip} kube-proxy\n\
         flush map {ip} kube-proxy service-ips\nflush map {ip} kube-proxy no-endpoint-services\n\
         table {ip} kube-proxy {{\n\
         chain mark-for-masquerade {{\nmeta mark set meta mark or 0x4000\n}}\n\
         chain masquerading {{\nmeta mark and 0x4000 == 0 return\nmeta mark set meta mark xor 0x4000\n\
         masquerade fully-random\n}}\n\
         {chains}\
         chain services {{\n{ip} daddr . meta l4proto . th dport vmap @service-ips\n}}\n\
         chain nat-prerouting {{\njump services\n}}\n\
         chain nat-output {{\njump services\n}}\n\
         chain nat-postrouting {{\njump masquerading\n}}\n\
         chain filter-prerouting {{\n\
         {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services\n}}\n}}\n{}{}",
        fill("service-ips", &verdicts),
        fill("no-endpoint-services", &drops),
    )
}

/// Endpoints that get new connections: ready ones, and terminating ones that serve when there is no ready one (KEP-1669).
fn usable(service: &LabService) -> Vec<Pod> {
    ready_or_serving(service.pods.clone(), service.terminating.clone())
}

fn usable_on(service: &LabService, worker: Node) -> Vec<Pod> {
    let on = |pods: &[Pod]| pods.iter().copied().filter(|pod| pod.node() == worker).collect();
    ready_or_serving(on(&service.pods), on(&service.terminating))
}

fn ready_or_serving(ready: Vec<Pod>, terminating: Vec<Pod>) -> Vec<Pod> {
    if ready.is_empty() { terminating } else { ready }
}

fn protocol(port: &Port) -> String {
    port.protocol.to_lowercase()
}

/// A chain that picks one of `pods` at random, each with the same chance; nothing at all without any.
fn choice(chain: &str, service: &str, pods: &[Pod]) -> String {
    let picks: String = (1..=pods.len())
        .rev()
        .zip(pods)
        .map(|(left, pod)| {
            let one_of = if left > 1 { format!("numgen random mod {left} == 0 ") } else { String::new() };
            format!("{one_of}goto endpoint-{service}-{}\n", pod.name())
        })
        .collect();
    format!("chain {chain} {{\n{picks}}}\n")
}

/// Chains that others jump to first: nft wants to know them.
fn ordered(chains: &str) -> String {
    let blocks: Vec<&str> = chains.split_inclusive("\n}\n").collect();
    let rank = |block: &&str| {
        ["chain endpoint-", "chain service-", "chain local-", "chain external-"]
            .iter()
            .position(|kind| block.starts_with(kind))
    };
    let mut blocks = blocks;
    blocks.sort_by_key(rank);
    blocks.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{ECHO, HTTP};
    use crate::topology::Vip;

    #[test]
    fn local_means_an_endpoint_of_this_node_and_no_masquerade() {
        let mut service = LabService::new("keep", Vip::routed(20), &[HTTP, ECHO]);
        service.local = true;
        service.pods = vec![Pod { number: 1 }, Pod { number: 3 }];
        let on = |worker| rules(Node { number: worker }, Family::V4, std::slice::from_ref(&service));
        let w1 = on(1);
        assert!(w1.contains("203.0.113.20 . tcp . 80 : goto external-keep-tcp"), "{w1}");
        assert!(w1.contains("chain local-keep-tcp {\ngoto endpoint-keep-tcp-p1\n}"), "{w1}");
        let two = "chain service-keep-tcp {\nnumgen random mod 2 == 0 goto endpoint-keep-tcp-p1\ngoto endpoint-keep-tcp-p3\n}";
        assert!(w1.contains(two), "{w1}");
        assert!(w1.contains("dnat to 10.244.1.11:8080") && w1.contains("dnat to 10.244.2.11:5353"), "{w1}");
        assert!(!w1.contains("jump mark-for-masquerade\ngoto service"), "{w1}");
        let w3 = on(3);
        assert!(w3.contains("203.0.113.20 . udp . 53 : drop") && !w3.contains("goto external"), "{w3}");
        let v6 = rules(Node { number: 1 }, Family::V6, std::slice::from_ref(&service));
        assert!(v6.contains("dnat to [fd00:10:244:1::11]:8080"), "{v6}");
        // A node whose only endpoint terminates still serves (S-048).
        service.terminating = vec![Pod { number: 5 }];
        assert!(rules(Node { number: 3 }, Family::V4, &[service.clone()]).contains("goto endpoint-keep-tcp-p5"));
        service.local = false;
        assert!(rules(Node { number: 3 }, Family::V4, &[service]).contains("jump mark-for-masquerade\ngoto service"));
    }
}
