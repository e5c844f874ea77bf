//! The frame that a bare IP packet comes in as: from a client by the device that leads back to it, or from a node in VXLAN.
//!
//! Owns the choice of the device and of the node where the question names none, and the headers that are put around. Every
//! error is a text for the operator that names what is missing.

use tidegate_api::explain::Question;

use crate::compile::address_of;
use crate::family::Family;
use crate::stage::route::{self, Hop};
use crate::table::{DeviceId, Tables, TunnelId};
use crate::wire::encap::{self, EncapTemplate, Inner, Tunnel, Underlay};
use crate::wire::ethernet::{self, Mac};
use crate::wire::{Family as Version, ipv4, ipv6};

/// Longest packet that is looked at, bytes: what fits a frame of the pool, and more than any link here carries.
const BYTES_MAX: usize = 9216;
/// Whoever hands us frames, when nobody says who.
pub(super) const SENDER: Mac = Mac([2, 0, 0, 0, 0, 0]);
/// Any source port of VXLAN will do.
const SOURCE_PORT: u16 = 50_000;

/// Why there is no frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoFrame {
    /// For people.
    pub message: String,
    /// The tunnel that the packet would come through, where none can come through it.
    pub tunnel: Option<TunnelId>,
}

impl<T: Into<String>> From<T> for NoFrame {
    fn from(message: T) -> NoFrame {
        NoFrame { message: message.into(), tunnel: None }
    }
}

/// Device and frame of what is asked about.
///
/// # Errors
/// What is not there, or missing from the question.
pub fn frame(tables: &Tables, question: &Question) -> Result<(DeviceId, Vec<u8>), NoFrame> {
    if question.bytes.len() > BYTES_MAX {
        return Err(format!("the packet has {} bytes; at most {BYTES_MAX} are looked at", question.bytes.len()).into());
    }
    let named = question.device.as_deref().map(|name| device(tables, name)).transpose()?;
    if question.is_frame {
        if question.node.is_some() {
            return Err("a node is for packets without a frame of their own".into());
        }
        let id = named.map_or_else(|| by_mac(tables, &question.bytes), Ok)?;
        return Ok((id, question.bytes.clone()));
    }
    match question.bytes.first().map(|first| first >> 4) {
        Some(4) if question.bytes.len() >= 20 => around::<[u8; 4]>(tables, question, named, Version::V4),
        Some(6) if question.bytes.len() >= 40 => around::<[u8; 16]>(tables, question, named, Version::V6),
        _ => Err("the packet does not begin with a whole IPv4 or IPv6 header".into()),
    }
}

fn around<A: Family>(
    tables: &Tables,
    question: &Question,
    named: Option<DeviceId>,
    family: Version,
) -> Result<(DeviceId, Vec<u8>), NoFrame> {
    let (source, _) = A::addresses(&question.bytes);
    let back = route::toward(tables, source, 0);
    let tunnel = match (&question.node, named, back) {
        (Some(name), _, _) => Some(tunnel(tables, name, family)?),
        (None, None, Ok(Hop::Tunnel(id))) => Some(id),
        _ => None,
    };
    if let Some(tunnel) = tunnel {
        return in_vxlan(tables, tunnel, named, family, &question.bytes);
    }
    let id = match (named, back) {
        (Some(id), _) => id,
        (None, Ok(hop)) => route::departure(tables, hop, 0).map_err(|reason| reason.name())?.device,
        (None, Err(_)) => {
            return Err(format!("no route leads back to {}: name the device it comes in by", source.ip()).into());
        }
    };
    let mut frame = Vec::with_capacity(14 + question.bytes.len());
    frame.extend_from_slice(&mac(tables, id)?);
    frame.extend_from_slice(&SENDER.0);
    frame.extend_from_slice(&ethertype(family).to_be_bytes());
    frame.extend_from_slice(&question.bytes);
    Ok((id, frame))
}

/// The packet as the far end of `tunnel` would send it to us.
fn in_vxlan(
    tables: &Tables,
    tunnel: TunnelId,
    named: Option<DeviceId>,
    family: Version,
    packet: &[u8],
) -> Result<(DeviceId, Vec<u8>), NoFrame> {
    let row = tables.tunnels.row(tunnel).ok_or("that node is not a peer of the overlay any more")?;
    let none = |message| NoFrame { message, tunnel: Some(tunnel) };
    let vtep = tables.locals.vtep(row.family).ok_or_else(|| none("this gateway has no VTEP of that family".into()))?;
    let departs = |_| route::departure(tables, Hop::Tunnel(tunnel), 0).ok().map(|departure| departure.device);
    let id = named.or_else(|| departs(())).ok_or_else(|| none(format!("no device leads to node {}", row.name)))?;
    let underlay = match row.family {
        Version::V4 => Underlay::V4 { source: v4(&row.underlay)?, destination: v4(&vtep.underlay)? },
        Version::V6 => Underlay::V6 { source: row.underlay, destination: vtep.underlay },
    };
    let template = EncapTemplate::new(&Tunnel {
        underlay,
        port: vtep.port,
        vni: row.vni,
        source_mac: Mac(row.inner_mac),
        destination_mac: Mac(vtep.mac),
        ttl: 64,
        dont_fragment: false,
    });
    let len = u16::try_from(packet.len()).map_err(|_| "the packet is too long")?;
    let sum = encap::inner_sum_of_all(packet);
    let inner = Inner { family, len, source_port: SOURCE_PORT, id: 0, tos: 0, sum };
    let mut frame = vec![0; template.len()];
    template.write(&mut frame, &inner).ok_or("the packet is too long for VXLAN")?;
    encap::set_outer_macs(&mut frame, Mac(mac(tables, id)?), SENDER);
    frame.extend_from_slice(packet);
    Ok((id, frame))
}

fn device(tables: &Tables, name: &str) -> Result<DeviceId, String> {
    let found = tables.devices.rows().find(|(_, row)| &*row.name == name).map(|(id, _)| id);
    found.ok_or_else(|| {
        let names: Vec<_> = tables.devices.rows().map(|(_, row)| row.name.to_string()).collect();
        format!("no device {name} here; there are {}", names.join(", "))
    })
}

fn by_mac(tables: &Tables, frame: &[u8]) -> Result<DeviceId, String> {
    let to = frame.get(..6).ok_or("the frame is shorter than an Ethernet header")?;
    let found = tables.devices.rows().find(|(_, row)| row.mac == to).map(|(id, _)| id);
    found.ok_or_else(|| "no device here has the frame's destination MAC: name the device it comes in by".into())
}

fn mac(tables: &Tables, id: DeviceId) -> Result<[u8; 6], String> {
    tables.devices.row(id).map(|row| row.mac).ok_or_else(|| "the device is gone".into())
}

fn tunnel(tables: &Tables, name: &str, family: Version) -> Result<TunnelId, String> {
    let of_family = |row: &crate::table::tunnel::TunnelRow| row.family == family;
    let found = tables.tunnels.rows().find(|(_, row)| &*row.name == name && of_family(row)).map(|(id, _)| id);
    found.ok_or_else(|| {
        let names: Vec<_> =
            tables.tunnels.rows().filter(|(_, row)| of_family(row)).map(|(_, row)| row.name.to_string()).collect();
        format!("no node {name} in the overlay of that family; there are {}", names.join(", "))
    })
}

fn v4(mapped: &[u8; 16]) -> Result<[u8; 4], String> {
    crate::table::unmapped(mapped).ok_or_else(|| format!("{} is no IPv4 address", address_of(mapped)))
}

fn ethertype(family: Version) -> u16 {
    match family {
        Version::V4 => ethernet::IPV4,
        Version::V6 => ethernet::IPV6,
    }
}

const _: () = {
    assert!(ipv4::HEADER_LEN == 20);
    assert!(ipv6::HEADER_LEN == 40);
};
