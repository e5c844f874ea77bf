//! What the pinhole leaves to the kernel, told from the tables that it is made from.
//!
//! Owns the rules of `io/bpf/pinhole.bpf.c` in the words of tables: a worker that is asked about a packet which never comes to
//! it would call it not ours, and that sounds like a loss. A frame is walked as the program does, which reads less than parse
//! and passes what it cannot read ([`ours`]); a test has the program itself decide about the same frames. Of what is left and
//! parse can read it is told what would have to be there ([`passed`]). Refuses to know what the kernel does with it.

use std::net::IpAddr;

use crate::compile::local::is_traffic;
use crate::compile::{address_of, mapped_ip};
use crate::counters::Counters;
use crate::family::Family as _;
use crate::packet::{Domain, Key, Kind, Packet};
use crate::pipeline;
use crate::stage::parse::{self, Ingress};
use crate::table::Tables;
use crate::table::local::LocalKind;
use crate::table::service::FrontendKind;
use crate::wire::packet::{Fragment, L3};
use crate::wire::{Family as Version, arp, ethernet, ipv4, ipv6, ndp, protocol};

/// Entries of an address that are named; of more, how many there are.
const NAMED_MAX: usize = 4;

/// A packet for which the pinhole has no entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The address that it is to, or asks for.
    pub address: IpAddr,
    /// The entry that there would have to be: `TCP port 22 of 192.0.2.1`.
    pub sought: String,
    /// Entries that the address does have.
    pub entries: Vec<String>,
}

/// Why the pinhole leaves a frame to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// It carries something else than IP or ARP: this EtherType, or length (IEEE 802.3), host order.
    Ethertype(u16),
    /// Its headers end too early, or are none.
    Malformed,
    /// It has no entry for it.
    Passed(Passed),
}

/// Why the pinhole leaves a frame that comes in at `ingress` to the kernel; `None`: it comes to a worker. What parse can read
/// of one that is left `read` is told.
pub fn left(tables: &Tables, ingress: Ingress, frame: &[u8], mut read: impl FnMut(&Packet, &[u8])) -> Option<Left> {
    let left = ours(tables, frame).err()?;
    let (mut packet, mut scratch) = (Packet::NOTHING, Box::<Counters>::default());
    let Ok(l3) = parse::read(tables, ingress, frame, &mut scratch, &mut packet) else { return Some(left) };
    read(&packet, l3);
    Some(passed(tables, frame, &packet, l3).map_or(left, Left::Passed))
}

/// What the pinhole would need to hand a packet to a worker, in the words of parse; `None`: it has no better. `frame` is the
/// packet as it comes in, `packet` and `l3` what parse made of it.
fn passed(tables: &Tables, frame: &[u8], packet: &Packet, l3: &[u8]) -> Option<Passed> {
    // Out of a tunnel that ends here: the pinhole has seen its end.
    let link = ethernet::parse_ethernet(frame).ok()?;
    if packet.domain == Domain::Overlay || packet.l3_offset != link.l3_offset {
        return None;
    }
    if packet.kind == Kind::Arp {
        let asked = arp::Repr::parse(l3).ok()?;
        let target = IpAddr::from(asked.target);
        let is_request = asked.operation == arp::Operation::Request;
        let what = if is_request { "ARP requests for" } else { "ARP replies about" };
        let is_ours = is_request && kind(tables, target).contains(LocalKind::ANNOUNCED);
        return (!is_ours).then(|| told(tables, target, format!("{what} {target}")));
    }
    let at = &packet.l3;
    let destination = match at.family {
        Version::V4 => ipv4::addresses(l3).1.ip(),
        Version::V6 => ipv6::addresses(l3).1.ip(),
    };
    let roles = kind(tables, destination);
    if is_traffic(roles) || ends(tables, at, destination) {
        return None;
    }
    if key(destination).is_none() {
        return Some(told(tables, destination, destination.to_string()));
    }
    if at.family == Version::V6 && at.is_icmp() && at.icmp_type == ndp::SOLICITATION {
        let target = IpAddr::from(ndp::parse_solicitation(l3, at).ok()?.target);
        let is_ours = kind(tables, target).contains(LocalKind::ANNOUNCED);
        return (!is_ours).then(|| told(tables, target, format!("neighbour solicitations for {target}")));
    }
    let name = |number: u8| match number {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    };
    let port = match at.fragment {
        Fragment::Later { .. } => None,
        _ if at.is_icmp_error() => match pipeline::classify(packet, l3) {
            Key::V4(tuple) => Some((tuple.protocol, tuple.destination_port)),
            Key::V6(tuple) => Some((tuple.protocol, tuple.destination_port)),
            Key::None => None,
        },
        _ => matches!(at.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
            .then_some((at.protocol, at.destination_port)),
    };
    match port {
        Some((protocol, port)) if is_endpoint(tables, destination, protocol, port) => None,
        Some((protocol, port)) => {
            Some(told(tables, destination, format!("{destination}, nor for its {} port {port}", name(protocol))))
        }
        None => Some(told(tables, destination, destination.to_string())),
    }
}

/// So many bytes from `at` on.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Left> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().ok_or(Left::Malformed)
}

/// The walk of `owner` there.
fn ours(tables: &Tables, frame: &[u8]) -> Result<(), Left> {
    let mut at = 14;
    let mut ethertype = u16::from_be_bytes(field(frame, at - 2)?);
    for _ in 0..2 {
        if ethernet::is_tag(ethertype) {
            at += 4;
            ethertype = u16::from_be_bytes(field(frame, at - 2)?);
        }
    }
    let l3 = frame.get(at..).unwrap_or_default();
    match ethertype {
        ethernet::IPV4 => ours_v4(tables, l3),
        ethernet::IPV6 => ours_v6(tables, l3),
        ethernet::ARP => {
            let target = IpAddr::from(field::<4>(l3, 24)?);
            let [.., high, low] = field::<8>(l3, 0)?;
            let is_request = field::<4>(l3, 2)? == [8, 0, 6, 4] && [high, low] == [0, 1];
            let is_ours = is_request && kind(tables, target).contains(LocalKind::ANNOUNCED);
            of(is_ours, tables, target, format!("ARP about {target}"))
        }
        other => Err(Left::Ethertype(other)),
    }
}

fn ours_v4(tables: &Tables, l3: &[u8]) -> Result<(), Left> {
    let header = field::<20>(l3, 0)?;
    let len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || len < header.len() {
        return Err(Left::Malformed);
    }
    let destination = IpAddr::from(field::<4>(l3, 16)?);
    let is_later = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    match header[9] {
        _ if is_traffic(kind(tables, destination)) => Ok(()),
        protocol::IPIP | protocol::IPV6 => {
            of(is_end(tables, destination), tables, destination, destination.to_string())
        }
        _ if is_later => of(false, tables, destination, destination.to_string()),
        protocol::ICMP => {
            let is_error = matches!(field::<8>(l3, len)?[0], 3 | 11 | 12);
            of(is_error && quotes_v4(tables, destination, l3, len + 8), tables, destination, destination.to_string())
        }
        number => port(tables, destination, number, l3, len),
    }
}

fn ours_v6(tables: &Tables, l3: &[u8]) -> Result<(), Left> {
    let header = field::<40>(l3, 0)?;
    if header[0] >> 4 != 6 {
        return Err(Left::Malformed);
    }
    let destination = IpAddr::from(field::<16>(l3, 24)?);
    let no_entry = || destination.to_string();
    match header[6] {
        _ if is_traffic(kind(tables, destination)) => Ok(()),
        _ if key(destination).is_none() => of(false, tables, destination, no_entry()),
        protocol::ICMPV6 if field::<24>(l3, 40).is_ok_and(|message| message[0] == ndp::SOLICITATION) => {
            let target = IpAddr::from(field::<16>(l3, 48)?);
            let is_ours = kind(tables, target).contains(LocalKind::ANNOUNCED);
            of(is_ours, tables, target, format!("neighbour solicitations for {target}"))
        }
        protocol::ICMPV6 => {
            let is_error = matches!(field::<8>(l3, 40)?[0], 1..=4);
            of(is_error && quotes_v6(tables, destination, l3, 48), tables, destination, no_entry())
        }
        protocol::IPIP | protocol::IPV6 => of(is_end(tables, destination), tables, destination, no_entry()),
        protocol::FRAGMENT => {
            let [next, _, high, low, ..] = field::<8>(l3, 40)?;
            let is_later = u16::from_be_bytes([high, low]) & 0xfff8 != 0;
            match next {
                protocol::IPIP | protocol::IPV6 => of(is_end(tables, destination), tables, destination, no_entry()),
                _ if is_later => of(false, tables, destination, no_entry()),
                next => port(tables, destination, next, l3, 48),
            }
        }
        number => port(tables, destination, number, l3, 40),
    }
}

/// Whether it is ours; otherwise what there would have to be.
fn of(is_ours: bool, tables: &Tables, address: IpAddr, sought: String) -> Result<(), Left> {
    if is_ours { Ok(()) } else { Err(Left::Passed(told(tables, address, sought))) }
}

fn port(tables: &Tables, address: IpAddr, number: u8, l3: &[u8], at: usize) -> Result<(), Left> {
    let is_ours = has_ports(number) && is_endpoint(tables, address, number, u16::from_be_bytes(field(l3, at + 2)?));
    of(is_ours, tables, address, address.to_string())
}

fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// Whether an error quotes what was sent from one of our ports; `at`: where the quote begins.
fn quotes_v4(tables: &Tables, address: IpAddr, l3: &[u8], at: usize) -> bool {
    let Ok(quoted) = field::<20>(l3, at) else { return false };
    let len = usize::from(quoted[0] & 0x0f) * 4;
    let is_first = u16::from_be_bytes([quoted[6], quoted[7]]) & 0x1fff == 0;
    is_first && len >= quoted.len() && quotes_port(tables, address, quoted[9], l3, at + len)
}

fn quotes_v6(tables: &Tables, address: IpAddr, l3: &[u8], at: usize) -> bool {
    field::<40>(l3, at).is_ok_and(|quoted| quotes_port(tables, address, quoted[6], l3, at + quoted.len()))
}

fn quotes_port(tables: &Tables, address: IpAddr, number: u8, l3: &[u8], at: usize) -> bool {
    let Ok([high, low, ..]) = field::<4>(l3, at) else { return false };
    has_ports(number) && is_endpoint(tables, address, number, u16::from_be_bytes([high, low]))
}

/// An address as tables have it; `None`: an IPv4 address in an IPv6 header, which is nobody's there (RFC 4942 section 2.2).
fn key(address: IpAddr) -> Option<[u8; 16]> {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        _ => Some(mapped_ip(address)),
    }
}

/// Whether a tunnel without ports ends at an address.
fn is_end(tables: &Tables, address: IpAddr) -> bool {
    let decap = tables.locals.decap();
    decap.zip(key(address)).is_some_and(|(decap, key)| decap.ends_at(&key))
}

fn kind(tables: &Tables, address: IpAddr) -> LocalKind {
    key(address).map_or(LocalKind::NONE, |key| tables.locals.kind(&key))
}

/// Whether a packet is one of a tunnel without ports that ends at an address.
fn ends(tables: &Tables, at: &L3, address: IpAddr) -> bool {
    let is_tunnel = matches!(at.protocol, protocol::IPIP | protocol::IPV6);
    is_tunnel && is_end(tables, address)
}

/// Whether one port of the kernel's address is ours.
fn is_endpoint(tables: &Tables, address: IpAddr, protocol: u8, port: u16) -> bool {
    let Some(mapped) = key(address) else { return false };
    let ends_here = |family| {
        let vtep = tables.locals.vtep(family);
        vtep.is_some_and(|vtep| vtep.underlay == mapped && vtep.port == port)
    };
    let family = if address.is_ipv4() { Version::V4 } else { Version::V6 };
    let gue = tables.locals.decap().is_some_and(|decap| decap.ends_at(&mapped) && decap.is_gue(port));
    let served = match address {
        IpAddr::V4(v4) => tables.services.lookup_v4(&v4.octets(), protocol, port),
        IpAddr::V6(v6) => tables.services.lookup_v6(&v6.octets(), protocol, port),
    };
    let is_node_port = served.is_some_and(|served| matches!(served.kind, FrontendKind::Node));
    (protocol == protocol::UDP && (ends_here(family) || gue))
        || (is_node_port && kind(tables, address).contains(LocalKind::NODE))
}

fn told(tables: &Tables, address: IpAddr, sought: String) -> Passed {
    let mut entries = Vec::new();
    let Some(mapped) = key(address) else { return Passed { address, sought, entries } };
    let family = if address.is_ipv4() { Version::V4 } else { Version::V6 };
    if let Some(vtep) = tables.locals.vtep(family).filter(|vtep| vtep.underlay == mapped) {
        entries.push(format!("UDP port {} (VXLAN)", vtep.port));
    }
    if tables.locals.decap().is_some_and(|decap| decap.ends_at(&mapped)) {
        entries.push("tunnels of IP in IP and GUE".to_owned());
    }
    if kind(tables, address).contains(LocalKind::NODE) {
        let all = tables.services.frontends().iter();
        let ports =
            all.filter(|(at, served)| matches!(served.kind, FrontendKind::Node) && address_of(&at.address) == address);
        let mut ports: Vec<u16> = ports.map(|(at, _)| at.port).collect();
        ports.sort_unstable();
        ports.dedup();
        let more = ports.len().saturating_sub(NAMED_MAX);
        entries.extend(ports.iter().take(NAMED_MAX).map(|port| format!("node port {port}")));
        if more > 0 {
            entries.push(format!("{more} more node ports"));
        }
    }
    Passed { address, sought, entries }
}

#[cfg(test)]
#[cfg(feature = "kernel-tests")]
mod tests {
    use std::cell::Cell;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use tidegate_api::resource::{Decap, Protocol, Service};
    use tidegate_io::Pinhole;

    use super::*;
    use crate::compile::tests::{Told, on_machine, update};
    use crate::objects::tests::{backend, full, gateway, named, peer, service};
    use crate::table::DeviceId;

    const WAN: Ingress = Ingress { device: DeviceId(0), mac: [2, 0, 0, 0, 0, 2] };
    /// Destinations: VIPs, one of them announced, a prefix of them, addresses of this machine with and without a tunnel's end, of
    /// nobody, and groups.
    const V4: [&str; 11] = [
        "203.0.113.10",
        "192.0.2.80",
        "198.18.7.7",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.77",
        "10.244.9.2",
        "224.0.0.18",
        "192.0.2.90",
        "198.18.7.8",
        "192.0.2.1",
    ];
    const V6: [&str; 11] = [
        "2001:db8:f::10",
        "2001:db8:1::80",
        "2001:2::7",
        "2001:db8:1::1",
        "2001:db8:2::1",
        "2001:db8:f::77",
        "fd00:10:244:9::2",
        "ff02::1:ff00:80",
        "2001:db8:1::90",
        "::ffff:203.0.113.10",
        "::ffff:198.51.100.1",
    ];
    const TCP: u8 = protocol::TCP;
    const UDP: u8 = protocol::UDP;

    /// Tables, and the program with the entries that go with them.
    fn both() -> (Tables, Pinhole) {
        let (mut compiler, notebook) = on_machine();
        let decap = Decap {
            addresses: ["192.0.2.1", "2001:db8:1::1"].map(|end| end.parse().unwrap()).into(),
            sources: ["198.51.100.0/24", "2001:db8:2::/64"].map(|source| source.parse().unwrap()).into(),
            gue_port: Some(6080),
        };
        let mut gateway = gateway();
        gateway.decap = Some(decap);
        let backends = [backend("10.244.1.5", 8080, 1), backend("fd00:10:244:1::5", 8080, 1)];
        let web = service(&["203.0.113.10", "192.0.2.80", "2001:db8:f::10", "2001:db8:1::80"], 80, &backends);
        let many = Service {
            prefixes: ["198.18.0.0/15", "2001:2::/48"].map(|prefix| prefix.parse().unwrap()).into(),
            ..service(&[], 80, &backends)
        };
        let mut nodes = service(&[], 443, &backends);
        nodes.node_addresses = ["192.0.2.1", "2001:db8:1::1"].map(|own| own.parse().unwrap()).into();
        nodes.ports[0].node_port = Some(30_080);
        let mut by_sctp = nodes.clone();
        (by_sctp.ports[0].protocol, by_sctp.ports[0].node_port) = (Protocol::Sctp, Some(30_090));
        let objects = vec![
            named("gw", "1", gateway),
            named("w1", "1", peer(1)),
            named("shop/web", "1", web),
            named("shop/many", "1", many),
            named("shop/nodes", "1", nodes),
            named("shop/signal", "1", by_sctp),
        ];
        assert_eq!(update(&mut compiler, full(objects)).rejected, []);
        let mut program = Pinhole::trial().unwrap();
        for told in notebook.take() {
            match told {
                Told::Owned(owned) => program.update(&owned).unwrap(),
                Told::Change(change) => program.change(&change).unwrap(),
                Told::Ask(..) => {}
            }
        }
        (compiler.tables().clone(), program)
    }

    /// What a frame is made of; often what the rules look at, so that each of them is met.
    #[derive(Clone, Debug)]
    struct Made {
        /// 0..9: IPv4; ..18: IPv6; ..21: ARP; else something else.
        sort: u8,
        tags: usize,
        end: usize,
        target: usize,
        first: u8,
        second: u8,
        from: u16,
        to: u16,
        icmp: u8,
        /// Of IPv4 in words.
        header: u8,
        offset: u16,
        /// Whether lengths and sums are right, as far as anybody looks.
        is_sound: bool,
        /// Of 60ths that are left; more: all.
        kept: usize,
    }

    fn made() -> impl Strategy<Value = Made> {
        let protocols = [1, 4, TCP, UDP, 41, 44, 47, 58, 132, 0, 60];
        let ports = [8472u16, 4789, 6080, 30_080, 30_090, 80, 22];
        let kinds = [0u8, 1, 3, 4, 8, 11, 12, 128, 135, 135];
        let offsets = [0u16, 0, 0, 0x2000, 0x4000, 1, 8, 0x2008];
        let place = (0u8..23, 0usize..4, 0..V4.len(), 0..V4.len());
        let pick = prop::sample::select::<u8>;
        let words = (pick(protocols.to_vec()), pick(protocols.to_vec()), pick(kinds.to_vec()));
        let port = || prop::sample::select(ports.to_vec());
        let shape = (4u8..9, prop::sample::select(offsets.to_vec()), any::<bool>(), 0usize..180);
        (place, words, (port(), port()), shape).prop_map(|(place, words, (from, to), shape)| {
            let ((sort, tags, end, target), (first, second, icmp)) = (place, words);
            let (header, offset, is_sound, kept) = shape;
            // Most frames have no tag, and most headers no options.
            let (tags, header) = (tags.saturating_sub(1), if is_sound { header.max(5) } else { header });
            Made { sort, tags, end, target, first, second, from, to, icmp, header, offset, is_sound, kept }
        })
    }

    fn v4(text: &str) -> [u8; 4] {
        text.parse::<Ipv4Addr>().unwrap().octets()
    }

    fn v6(text: &str) -> [u8; 16] {
        text.parse::<Ipv6Addr>().unwrap().octets()
    }

    impl Made {
        fn frame(&self) -> Vec<u8> {
            let mut out = WAN.mac.to_vec();
            out.extend([2, 0, 0, 0, 9, 9]);
            for at in 0..self.tags {
                out.extend(if at == 0 { [0x81, 0, 0, 7] } else { [0x88, 0xa8, 0, 7] });
            }
            match self.sort {
                0..9 => {
                    out.extend([8, 0]);
                    let payload = self.behind_v4();
                    out.extend(self.v4_header(self.first, self.offset, "10.0.0.7", V4[self.end], payload.len()));
                    out.extend(payload);
                }
                9..18 => {
                    out.extend([0x86, 0xdd]);
                    let payload = self.behind_v6();
                    out.extend(self.v6_header(self.first, "2001:db8:9::7", V6[self.end], payload.len()));
                    out.extend(payload);
                }
                18..21 => {
                    out.extend([8, 6, 0, 1, 8, 0, 6, if self.is_sound { 4 } else { 6 }, 0, self.icmp % 3]);
                    out.extend([2, 0, 0, 0, 9, 9, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0]);
                    out.extend(v4(V4[self.target]));
                }
                _ => out.extend([0x88, 0xcc, 1, 2, 3, 4]),
            }
            // The kernel runs nothing over less than an Ethernet header.
            let kept = if self.kept < 60 { (out.len() * self.kept / 60).max(14) } else { out.len() };
            out.truncate(kept);
            out
        }

        fn ports(&self) -> Vec<u8> {
            let mut out = [self.from.to_be_bytes(), self.to.to_be_bytes()].concat();
            // A segment's header of five words, or a datagram of twenty bytes.
            out.extend([0, 20, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 9, 0, 0, 0, 0]);
            out
        }

        fn v4_header(&self, protocol: u8, offset: u16, from: &str, to: &str, payload: usize) -> Vec<u8> {
            let words = usize::from(self.header.max(5));
            let mut out = vec![0x40 | self.header, 0];
            let length = if self.is_sound { words * 4 + payload } else { 60 };
            out.extend(u16::try_from(length).unwrap().to_be_bytes());
            out.extend([0, 1]);
            out.extend(offset.to_be_bytes());
            out.extend([64, protocol, 0, 0]);
            out.extend(v4(from));
            out.extend(v4(to));
            out.resize(words * 4, 1);
            if self.is_sound {
                let sum = out.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
                let folded = (sum & 0xffff) + (sum >> 16);
                let sum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
                out[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            out
        }

        fn v6_header(&self, next: u8, from: &str, to: &str, payload: usize) -> Vec<u8> {
            let mut out = vec![0x60, 0, 0, 0];
            let length = if self.is_sound { payload } else { 40 };
            out.extend(u16::try_from(length).unwrap().to_be_bytes());
            out.extend([next, if self.icmp == ndp::SOLICITATION { 255 } else { 64 }]);
            out.extend(v6(from));
            out.extend(v6(to));
            out
        }

        /// An error quotes what came from one of the addresses.
        fn behind_v4(&self) -> Vec<u8> {
            match self.first {
                protocol::ICMP => {
                    let quoted = self.v4_header(self.second, self.offset, V4[self.end], "10.0.0.7", 20);
                    [vec![self.icmp, 0, 0, 0, 0, 0, 0, 0], quoted, self.ports()].concat()
                }
                protocol::IPIP => {
                    [self.v4_header(self.second, 0, "10.0.0.7", V4[self.target], 20), self.ports()].concat()
                }
                UDP if self.to == 8472 => [self.ports()[..4].to_vec(), self.in_vxlan()].concat(),
                _ => self.ports(),
            }
        }

        fn behind_v6(&self) -> Vec<u8> {
            match self.first {
                protocol::FRAGMENT => {
                    let [high, low] = self.offset.to_be_bytes();
                    [vec![self.second, 0, high, low, 0, 0, 0, 9], self.ports()].concat()
                }
                protocol::ICMPV6 if self.icmp == ndp::SOLICITATION => {
                    [vec![self.icmp, 0, 0, 0, 0, 0, 0, 0], v6(V6[self.target]).to_vec()].concat()
                }
                protocol::ICMPV6 => {
                    let quoted = self.v6_header(self.second, V6[self.end], "2001:db8:9::7", 20);
                    [vec![self.icmp, 0, 0, 0, 0, 0, 0, 0], quoted, self.ports()].concat()
                }
                protocol::IPV6 => {
                    [self.v6_header(self.second, "2001:db8:9::7", V6[self.target], 20), self.ports()].concat()
                }
                UDP if self.to == 8472 => [self.ports()[..4].to_vec(), self.in_vxlan()].concat(),
                _ => self.ports(),
            }
        }

        /// The rest of a datagram of VXLAN, with a frame in it (RFC 7348 section 5).
        fn in_vxlan(&self) -> Vec<u8> {
            let inner = Made { sort: self.sort, tags: 0, to: 80, first: TCP, kept: 60, ..self.clone() }.frame();
            let length = u16::try_from(8 + 8 + inner.len()).unwrap();
            [length.to_be_bytes().to_vec(), vec![0, 0, 8, 0, 0, 0, 0, 0, 1, 0], inner].concat()
        }
    }

    /// The program itself is the oracle, run by the kernel over the same frames.
    #[test]
    fn the_program_decides_as_is_told() {
        let (tables, program) = both();
        // Ours; left, and parse could not read it; left, and it could.
        let seen: [Cell<u32>; 3] = Default::default();
        let compare = |frame: &[u8]| {
            let mut is_read = false;
            let left = left(&tables, WAN, frame, |_, _| is_read = true);
            let seen = &seen[left.as_ref().map_or(0, |_| 1 + usize::from(is_read))];
            seen.set(seen.get() + 1);
            let takes = program.takes(frame).unwrap();
            assert_eq!(left.is_none(), takes, "{left:?}: {frame:02x?}");
        };
        // Each destination with each protocol and each port, whole; then what lies between.
        for end in 0..V4.len() {
            for sort in [0, 9, 18] {
                for first in [1, 4, TCP, UDP, 41, 44, 47, 58, 132] {
                    for (to, icmp) in [(8472, 3), (6080, 1), (30_080, 135), (30_090, 8), (22, 11), (80, 4)] {
                        for offset in [0, 0x2000, 8] {
                            let made = Made {
                                sort,
                                tags: 0,
                                end,
                                target: (end + 1) % V4.len(),
                                first,
                                second: if to == 30_090 { 132 } else { TCP },
                                from: to,
                                to,
                                icmp,
                                header: 5,
                                offset,
                                is_sound: true,
                                kept: 60,
                            };
                            for tags in 0..4 {
                                compare(&Made { tags, ..made.clone() }.frame());
                            }
                        }
                    }
                }
            }
        }
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(20_000));
        let compared = runner.run(&made(), |made| {
            compare(&made.frame());
            Ok(())
        });
        compared.unwrap();
        assert!(seen.iter().all(|count| count.get() > 200), "{seen:?}");
    }
}
