//! # Local: answer what is asked of us
//!
//! reads   `table::local`, `table::device`     writes  ARP replies, neighbour advertisements, echo replies, in place
//! drops   `NotOurs`, `FragmentUntracked`, `IcmpUnhandled`, `IcmpBadChecksum`, `QuoteMalformed`, `ProtocolUnsupported`,
//!         `SpoofedSource`, `ArpMalformed`, `NdpMalformed`, `NoHeadroom`
//! cost    one hash lookup; never on the way of an established flow
//! spec    RFC 826, RFC 4861 section 7.2.4, S-074, N-094, V-016     tests   `dataplane/tests/golden/local.rs`
//!
//! Announced addresses are answered on the wire with the MAC of the device that heard the question, the VTEP's overlay
//! address inside VXLAN with the VTEP's MAC. Nothing is learned from what others say.

use tidegate_io::Frame;

use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::{Domain, Kind, Packet};
use crate::pipeline::Answer;
use crate::stage::policy::Denied;
use crate::stage::{encap, gatepolicy, route};
use crate::table::Tables;
use crate::table::local::LocalKind;
use crate::wire::ethernet::Mac;
use crate::wire::packet::{Fragment, l4_checksum_verifies};
use crate::wire::{Family as Version, arp, edit, icmp, icmpv6, ipv4, ipv6, ndp};

/// What to do with a packet that can belong to no flow.
///
/// # Errors
/// Why it is dropped.
#[cold]
pub fn decide(tables: &Tables, packet: &Packet, l3: &[u8]) -> Result<Answer, DropReason> {
    if packet.kind == Kind::Arp {
        let request = arp::Repr::parse(l3)?;
        let asked = request.operation == arp::Operation::Request && answers(tables, packet, request.target);
        return if asked { Ok(Answer::Arp) } else { Err(DropReason::NotOurs) };
    }
    match packet.l3.family {
        Version::V4 => decide_ip(tables, packet, ipv4::addresses(l3)),
        Version::V6 if packet.l3.is_icmp() && packet.l3.icmp_type == ndp::SOLICITATION => {
            let asked = ndp::parse_solicitation(l3, &packet.l3)?;
            if answers(tables, packet, asked.target) { Ok(Answer::Advertise) } else { Err(DropReason::NotOurs) }
        }
        Version::V6 => decide_ip(tables, packet, ipv6::addresses(l3)),
    }
}

fn decide_ip<A: Family>(tables: &Tables, packet: &Packet, (source, destination): (A, A)) -> Result<Answer, DropReason> {
    let kind = destination.kind(tables);
    let ours = LocalKind::SERVED | LocalKind::FULLNAT_SOURCE | LocalKind::VTEP_OVERLAY | LocalKind::EXTERNAL;
    if !kind.intersects(ours) {
        return Err(DropReason::NotOurs);
    }
    if packet.l3.fragment != Fragment::None {
        return Err(DropReason::FragmentUntracked);
    }
    if !packet.l3.is_icmp() {
        return Err(DropReason::ProtocolUnsupported);
    }
    if packet.domain == Domain::Overlay && !route::source_allowed(tables, packet.tunnel, source) {
        return Err(DropReason::SpoofedSource); // P-047
    }
    if packet.l3.is_icmp_error() {
        return Err(DropReason::QuoteMalformed); // those that can be read have a key and never come here
    }
    let request = match packet.l3.family {
        Version::V4 => icmp::ECHO_REQUEST,
        Version::V6 => icmpv6::ECHO_REQUEST,
    };
    // Overlay addresses are answered to the overlay only: the wire has no business with them. Of the addresses of
    // Services only VIPs are ours to answer from.
    let overlay = kind.intersects(LocalKind::FULLNAT_SOURCE | LocalKind::VTEP_OVERLAY);
    let reachable =
        kind.intersects(LocalKind::VIP | LocalKind::EXTERNAL) || (packet.domain == Domain::Overlay && overlay);
    if packet.l3.icmp_type == request && reachable { Ok(Answer::Echo) } else { Err(DropReason::IcmpUnhandled) }
}

/// Who does not let whoever asks be answered: gateway policies about every port of every Service are about its VIPs too.
pub fn denied(tables: &Tables, packet: &Packet, l3: &[u8], answer: Answer) -> Option<Denied> {
    if answer != Answer::Echo || tables.policy.echo_gate.is_none() {
        return None;
    }
    match packet.l3.family {
        Version::V4 => denied_echo(tables, ipv4::addresses(l3)),
        Version::V6 => denied_echo(tables, ipv6::addresses(l3)),
    }
}

fn denied_echo<A: Family>(tables: &Tables, (source, destination): (A, A)) -> Option<Denied> {
    let is_vip = destination.kind(tables).contains(LocalKind::VIP);
    is_vip.then(|| gatepolicy::check_echo(tables, &source.mapped()).err()).flatten()
}

/// Do we speak for this address on the link the question came from?
fn answers<A: Family>(tables: &Tables, packet: &Packet, target: A) -> bool {
    let kind = target.kind(tables);
    match packet.domain {
        Domain::Wire => kind.intersects(LocalKind::ANNOUNCED),
        Domain::Overlay => kind.intersects(LocalKind::VTEP_OVERLAY),
    }
}

/// The MAC that answers on the link the question came from.
fn own_mac(tables: &Tables, packet: &Packet) -> Option<Mac> {
    match packet.domain {
        Domain::Wire => tables.devices.row(packet.device).map(|device| Mac(device.mac)),
        Domain::Overlay => tables.locals.vtep(packet.l3.family).map(|vtep| Mac(vtep.mac)),
    }
}

/// Turns an ARP request into its reply.
///
/// # Errors
/// When the request is none, or the frame too short.
pub fn arp(tables: &Tables, packet: &Packet, frame: &mut Frame) -> Result<(), DropReason> {
    let at = usize::from(packet.l3_offset);
    let request = arp::Repr::parse(frame.bytes().get(at..).ok_or(DropReason::ArpMalformed)?)?;
    let mac = own_mac(tables, packet).ok_or(DropReason::NotOurs)?;
    encap::resize(frame, at + arp::PACKET_LEN)?;
    let out = frame.bytes_mut().get_mut(at..).ok_or(DropReason::NoHeadroom)?;
    request.answer(mac).emit(out).map(|_| ()).ok_or(DropReason::NoHeadroom)
}

/// Turns a neighbour solicitation into the advertisement that answers it.
///
/// # Errors
/// When it is none, or the frame too short.
pub fn advertise(tables: &Tables, packet: &Packet, frame: &mut Frame) -> Result<(), DropReason> {
    let at = usize::from(packet.l3_offset);
    let l3 = frame.bytes().get(at..).ok_or(DropReason::NdpMalformed)?;
    let advertisement = {
        let asked = ndp::parse_solicitation(l3, &packet.l3)?;
        let mac = own_mac(tables, packet).ok_or(DropReason::NotOurs)?;
        asked.answer(mac, true, true)
    };
    encap::resize(frame, at + advertisement.len())?;
    let out = frame.bytes_mut().get_mut(at..).ok_or(DropReason::NoHeadroom)?;
    advertisement.emit(out).map(|_| ()).ok_or(DropReason::NoHeadroom)
}

/// Turns an echo request into its reply.
///
/// # Errors
/// `IcmpUnhandled` when it is no whole echo request, `IcmpBadChecksum`.
pub fn echo(packet: &Packet, frame: &mut Frame) -> Result<(), DropReason> {
    let at = usize::from(packet.l3_offset);
    encap::resize(frame, at + usize::from(packet.l3.total_len))?;
    let l3 = frame.bytes_mut().get_mut(at..).ok_or(DropReason::IcmpUnhandled)?;
    echo_in(packet, l3)
}

/// The same in a packet that begins at `l3[0]` and has nothing after it.
///
/// # Errors
/// As [`echo`].
pub(crate) fn echo_in(packet: &Packet, l3: &mut [u8]) -> Result<(), DropReason> {
    if !l4_checksum_verifies(l3, &packet.l3) {
        return Err(DropReason::IcmpBadChecksum); // N-031
    }
    if edit::answer_echo(l3, &packet.l3) { Ok(()) } else { Err(DropReason::IcmpUnhandled) }
}
