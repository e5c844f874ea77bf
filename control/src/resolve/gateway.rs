//! The own Node and the node file → this gateway: its VTEPs and the addresses reserved for `fullnat`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{Decap, Gateway, GatewayPeer, Vtep};

use crate::config::{self, Control};
use crate::model::node::{Node, Tunnel};

/// The other gateways of the set: Nodes with the label, in the order of names. A Node tells where it is reached by its
/// internal addresses, and those of its tunnels.
pub fn others<'a>(nodes: impl Iterator<Item = &'a Node>, own: &str, control: &Control) -> Vec<GatewayPeer> {
    let gateways = nodes.filter(|node| node.name != own && node.labels.contains(&control.gateway_label));
    let peer = |node: &Node| {
        let tunnels = node.overlay.iter().flat_map(|overlay| [&overlay.v4, &overlay.v6]).flatten();
        let addresses: BTreeSet<IpAddr> =
            node.addresses.iter().copied().chain(tunnels.map(|tunnel| tunnel.underlay)).collect();
        GatewayPeer { node: node.name.clone(), addresses: addresses.into_iter().collect() }
    };
    gateways.map(peer).collect()
}

/// This gateway, from its own Node; `others` are those of its set.
///
/// # Errors
/// What in the Node or in the node file keeps this machine from being a gateway, naming the field.
pub fn resolve(node: &Node, control: &Control, others: Vec<GatewayPeer>) -> Result<Gateway, String> {
    let overlay = node
        .overlay
        .as_ref()
        .map_err(|reason| format!("this gateway's own Node is not part of the VXLAN overlay: {reason}"))?;
    let family = |tunnel: &Result<Tunnel, String>, v4: bool| -> Result<Vtep, String> {
        let tunnel = tunnel.as_ref().map_err(Clone::clone)?;
        let cidrs = node.pod_cidrs_of(v4);
        let first = cidrs.first().ok_or_else(|| format!("no {} pod CIDR", if v4 { "IPv4" } else { "IPv6" }))?;
        Ok(Vtep {
            underlay: tunnel.underlay,
            mac: tunnel.mac,
            overlay: first.network(), // V-022: the first address of the pod CIDR
            vni: tunnel.vni,
            port: control.vxlan_port,
        })
    };
    let (v4, v6) = (family(&overlay.v4, true), family(&overlay.v6, false));
    if let (Err(v4), Err(v6)) = (&v4, &v6) {
        return Err(format!("this gateway's own Node has no usable address family: IPv4: {v4}; IPv6: {v6}"));
    }
    let vtep = |source: IpAddr| if source.is_ipv4() { &v4 } else { &v6 };
    for (index, source) in control.fullnat_sources.iter().enumerate() {
        check_source(*source, node, vtep(*source))
            .map_err(|reason| format!("control.fullnatSources[{index}] in the node file: {source} {reason}"))?;
    }
    let mut fullnat_sources = control.fullnat_sources.clone();
    for (index, host) in control.fullnat_hosts.iter().enumerate() {
        let field = |reason: String| format!("control.fullnatHosts[{index}] in the node file: {reason}");
        // A family that the Node has no tunnel for has nothing to translate.
        for cidr in node.pod_cidrs.iter().filter(|cidr| vtep(cidr.network()).is_ok()) {
            let source = numbered(cidr, *host).ok_or_else(|| field(format!("{cidr} has no address {host}")))?;
            check_source(source, node, vtep(source)).map_err(|reason| field(format!("{source} {reason}")))?;
            fullnat_sources.push(source);
        }
    }
    fullnat_sources.sort();
    fullnat_sources.dedup();
    let mut pod_cidrs: Vec<IpNet> = node.pod_cidrs.clone();
    pod_cidrs.sort();
    Ok(Gateway {
        vtep_v4: v4.ok(),
        vtep_v6: v6.ok(),
        fullnat_sources,
        pod_cidrs,
        hash_key: control.hash_key.to_ascii_lowercase(),
        orphan_tcp: control.orphan_tcp,
        clamp_mss: control.clamp_mss,
        decap: control.decap.as_ref().map(decap),
        health_port: Some(control.node_health_port).filter(|port| *port != 0),
        policy: control.policy.options(),
        gateways: others,
    })
}

fn decap(asked: &config::Decap) -> Decap {
    let (mut addresses, mut sources) = (asked.addresses.clone(), asked.sources.clone());
    addresses.sort();
    sources.sort();
    Decap { addresses, sources, gue_port: asked.gue_port }
}

/// Address number `host` of a prefix, counted from its first one.
fn numbered(cidr: &IpNet, host: u32) -> Option<IpAddr> {
    let source = match cidr.network() {
        IpAddr::V4(first) => IpAddr::from(first.to_bits().checked_add(host)?.to_be_bytes()),
        IpAddr::V6(first) => IpAddr::from(first.to_bits().checked_add(host.into())?.to_be_bytes()),
    };
    cidr.contains(&source).then_some(source)
}

/// V-024: inside the own pod CIDRs, so that workers route replies here, and never an address the kernel uses.
fn check_source(source: IpAddr, node: &Node, vtep: &Result<Vtep, String>) -> Result<(), String> {
    let own = node.pod_cidrs_of(source.is_ipv4());
    let Some(cidr) = own.iter().find(|cidr| cidr.contains(&source)) else {
        let own: Vec<String> = own.iter().map(ToString::to_string).collect();
        let own = if own.is_empty() { "none of this family".into() } else { own.join(", ") };
        return Err(format!("lies in none of the pod CIDRs of Node {} ({own})", node.name));
    };
    match vtep {
        Err(reason) => Err(format!("cannot be used: this gateway has no VTEP of its family ({reason})")),
        Ok(vtep) if vtep.overlay == source => Err("is the overlay address of the VTEP itself".into()),
        Ok(_) if source.is_ipv4() && cidr.broadcast() == source && cidr.prefix_len() < 31 => {
            Err(format!("is the broadcast address of {cidr}"))
        }
        Ok(_) => Ok(()),
    }
}

/// Families in which `fullnat` cannot work because no source address is reserved.
pub fn families_without_source(gateway: &Gateway) -> Vec<&'static str> {
    let lacks = |vtep: &Option<Vtep>, v4: bool| {
        vtep.is_some() && !gateway.fullnat_sources.iter().any(|source| source.is_ipv4() == v4)
    };
    let mut families = Vec::new();
    if lacks(&gateway.vtep_v4, true) {
        families.push("IPv4");
    }
    if lacks(&gateway.vtep_v6, false) {
        families.push("IPv6");
    }
    families
}
