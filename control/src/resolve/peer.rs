//! Another Node of the overlay → a peer: pod prefixes → MAC of its VTEP → underlay address (V-022).

use tidegate_api::resource::{Peer, PeerVtep};

use crate::model::node::{Node, Tunnel};

/// The peer a Node is.
///
/// # Errors
/// Why it is none: not part of flannel's VXLAN, or without a usable family.
pub fn resolve(node: &Node, port: u16) -> Result<Peer, String> {
    let overlay = node.overlay.as_ref().map_err(Clone::clone)?;
    let family = |tunnel: &Result<Tunnel, String>, v4: bool| -> Result<PeerVtep, String> {
        let tunnel = tunnel.as_ref().map_err(Clone::clone)?;
        let mut pod_cidrs = node.pod_cidrs_of(v4);
        if pod_cidrs.is_empty() {
            return Err(format!("no {} pod CIDR", if v4 { "IPv4" } else { "IPv6" }));
        }
        pod_cidrs.sort();
        Ok(PeerVtep { underlay: tunnel.underlay, mac: tunnel.mac, vni: tunnel.vni, port, pod_cidrs })
    };
    match (family(&overlay.v4, true), family(&overlay.v6, false)) {
        (Err(v4), Err(v6)) => Err(format!("no usable address family: IPv4: {v4}; IPv6: {v6}")),
        (v4, v6) => Ok(Peer { v4: v4.ok(), v6: v6.ok() }),
    }
}
