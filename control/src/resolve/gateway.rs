//! The own Node and the node file → this gateway: its VTEPs and the addresses reserved for `fullnat`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{Gateway, GatewayPeer, Vtep};

use crate::config::Control;
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
    for (index, source) in control.fullnat_sources.iter().enumerate() {
        let vtep = if source.is_ipv4() { &v4 } else { &v6 };
        check_source(*source, node, vtep)
            .map_err(|reason| format!("control.fullnatSources[{index}] in the node file: {source} {reason}"))?;
    }
    let mut fullnat_sources = control.fullnat_sources.clone();
    fullnat_sources.sort();
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
        gateways: others,
    })
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
