//! Frontends: where Services are reached.
//!
//! Owns the way from (address, protocol, port) to the Service that answers there and the kind of frontend it is, for both
//! families. It refuses to know what a Service is beyond its id, and which rules follow from a kind.
//!
//! The more specific address goes first, then the more specific port:
//!
//! 1. exactly this address, protocol and port;
//! 2. this address and protocol, any port (a frontend whose port is 0);
//! 3. the longest prefix around the address with this protocol and port, or with this protocol and any port; then the
//!    next shorter one.
//!
//! The first is one hash lookup. The others cost nothing where no such frontend exists, and are otherwise met by packets
//! that the first does not know.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::{Prefix, PrefixMap};

use super::exact::{self, ExactMap, Tagged};
use super::{ServiceId, mapped, unmapped};

/// One address, protocol and port that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Address in network order; IPv4 in mapped form.
    pub address: [u8; 16],
    /// IANA protocol number.
    pub protocol: u8,
    /// Port, host order; 0: every port that no other frontend of the address has.
    pub port: u16,
}

/// A prefix all of whose addresses are served at a protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixFrontend {
    /// The addresses; host bits have no meaning.
    pub prefix: IpNet,
    /// IANA protocol number.
    pub protocol: u8,
    /// Port, host order; 0: every port.
    pub port: u16,
}

/// What sort of address a frontend is, which decides about the rules that apply there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FrontendKind {
    /// An address of the load balancer: source ranges apply (S-080).
    Vip = 0,
    /// One of `externalIPs`: as a VIP, without source ranges (S-066).
    External = 1,
    /// One of `clusterIPs`: the internal traffic policy applies (S-060).
    Cluster = 2,
    /// A node address with a node port (S-065).
    Node = 3,
}

impl FrontendKind {
    const ALL: [FrontendKind; 4] =
        [FrontendKind::Vip, FrontendKind::External, FrontendKind::Cluster, FrontendKind::Node];
}

/// Who answers at a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Served {
    /// The Service port.
    pub service: ServiceId,
    /// What sort of frontend it is.
    pub kind: FrontendKind,
}

/// [`Served`] as slots hold it: the kind in the two topmost bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed(u32);

const KIND_SHIFT: u32 = 30;

/// Ids from here on cannot be packed; what would need one is not served.
pub const SERVICES_MAX: u32 = (1 << KIND_SHIFT) - 1;

impl exact::Value for Packed {
    const VACANT: Self = Packed(u32::MAX);
}

impl Packed {
    /// `None` for an id that does not fit, [`ServiceId::NONE`] among them.
    fn pack(served: Served) -> Option<Packed> {
        (served.service.0 < SERVICES_MAX).then_some(Packed((served.kind as u32) << KIND_SHIFT | served.service.0))
    }

    #[inline]
    fn unpack(self) -> Served {
        let kind = FrontendKind::ALL[(self.0 >> KIND_SHIFT) as usize];
        Served { service: ServiceId(self.0 & SERVICES_MAX), kind }
    }
}

/// Who answers at which protocol and port of a prefix. Few.
type PrefixPorts = Vec<(u32, Packed)>;

/// All frontends. Kind: table.
#[derive(Clone, Default)]
pub struct Frontends {
    v4: ExactMap<Tagged<[u8; 4]>, Packed>,
    v6: ExactMap<Tagged<[u8; 16]>, Packed>,
    /// Exact frontends whose port is 0.
    any_port: u32,
    prefixes_v4: Arc<PrefixMap<Ipv4Net, PrefixPorts>>,
    prefixes_v6: Arc<PrefixMap<Ipv6Net, PrefixPorts>>,
}

impl Frontends {
    /// Who answers at an IPv4 address. Read side.
    #[inline]
    pub fn lookup_v4(&self, address: &[u8; 4], protocol: u8, port: u16) -> Option<Served> {
        let tag = tag(protocol, port);
        match self.v4.get(&Tagged { address: *address, tag }) {
            Some(packed) => Some(packed.unpack()),
            None if self.any_port == 0 && self.prefixes_v4.is_empty() => None,
            None => self.wider_v4(address, tag),
        }
    }

    /// Who answers at an IPv6 address. Read side.
    #[inline]
    pub fn lookup_v6(&self, address: &[u8; 16], protocol: u8, port: u16) -> Option<Served> {
        let tag = tag(protocol, port);
        match self.v6.get(&Tagged { address: *address, tag }) {
            Some(packed) => Some(packed.unpack()),
            None if self.any_port == 0 && self.prefixes_v6.is_empty() => None,
            None => self.wider_v6(address, tag),
        }
    }

    #[cold]
    fn wider_v4(&self, address: &[u8; 4], tag: u32) -> Option<Served> {
        let any = self.v4.get(&Tagged { address: *address, tag: any_port(tag) });
        any.or_else(|| around(&self.prefixes_v4, &Ipv4Net::from(Ipv4Addr::from(*address)), tag)).map(Packed::unpack)
    }

    #[cold]
    fn wider_v6(&self, address: &[u8; 16], tag: u32) -> Option<Served> {
        let any = self.v6.get(&Tagged { address: *address, tag: any_port(tag) });
        any.or_else(|| around(&self.prefixes_v6, &Ipv6Net::from(Ipv6Addr::from(*address)), tag)).map(Packed::unpack)
    }

    /// Who is entered for exactly this frontend; no wider one counts.
    pub fn get(&self, frontend: &Frontend) -> Option<Served> {
        let tag = tag(frontend.protocol, frontend.port);
        let packed = match unmapped(&frontend.address) {
            Some(address) => self.v4.get(&Tagged { address, tag }),
            None => self.v6.get(&Tagged { address: frontend.address, tag }),
        };
        packed.map(Packed::unpack)
    }

    /// Who is entered for exactly this prefix, protocol and port.
    pub fn get_prefix(&self, frontend: &PrefixFrontend) -> Option<Served> {
        let ports = match frontend.prefix.trunc() {
            IpNet::V4(prefix) => self.prefixes_v4.get(&prefix),
            IpNet::V6(prefix) => self.prefixes_v6.get(&prefix),
        };
        of_port(ports?, tag(frontend.protocol, frontend.port)).map(Packed::unpack)
    }

    /// Every frontend that is one address, IPv4 first, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (Frontend, Served)> {
        let v4 = self.v4.iter().map(|(key, packed)| (frontend(mapped(&key.address), key.tag), packed.unpack()));
        let v6 = self.v6.iter().map(|(key, packed)| (frontend(key.address, key.tag), packed.unpack()));
        v4.chain(v6)
    }

    /// Every frontend that is a prefix, IPv4 first.
    pub fn prefixes(&self) -> impl Iterator<Item = (PrefixFrontend, Served)> {
        let v4 = self.prefixes_v4.iter().map(|(prefix, ports)| (IpNet::V4(*prefix), ports));
        let v6 = self.prefixes_v6.iter().map(|(prefix, ports)| (IpNet::V6(*prefix), ports));
        v4.chain(v6).flat_map(|(prefix, ports)| {
            ports.iter().map(move |(tag, packed)| {
                let Frontend { protocol, port, .. } = frontend([0; 16], *tag);
                (PrefixFrontend { prefix, protocol, port }, packed.unpack())
            })
        })
    }

    /// Frontends that are one address, both families.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Chunks of exact frontends that `before` does not have: what the edits since have copied.
    pub fn chunks_copied(&self, before: &Self) -> usize {
        self.v4.chunks_copied(&before.v4) + self.v6.chunks_copied(&before.v6)
    }

    /// Whether there is no frontend of any sort.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.prefixes_v4.is_empty() && self.prefixes_v6.is_empty()
    }

    /// Enters who answers at a frontend (`None`: nobody) and returns who did. Build side: one or two chunks.
    pub fn set(&mut self, frontend: Frontend, served: Option<Served>) -> Option<Served> {
        let tag = tag(frontend.protocol, frontend.port);
        let packed = served.and_then(Packed::pack);
        let value = packed.unwrap_or(exact::Value::VACANT);
        let before = match unmapped(&frontend.address) {
            Some(address) => self.v4.insert(Tagged { address, tag }, value),
            None => self.v6.insert(Tagged { address: frontend.address, tag }, value),
        };
        if frontend.port == 0 {
            self.any_port = self.any_port + u32::from(packed.is_some()) - u32::from(before.is_some());
        }
        before.map(Packed::unpack)
    }

    /// Enters who answers at a prefix (`None`: nobody) and returns who did. Build side: copies the family's prefixes once
    /// per generation.
    pub fn set_prefix(&mut self, frontend: PrefixFrontend, served: Option<Served>) -> Option<Served> {
        let (tag, packed) = (tag(frontend.protocol, frontend.port), served.and_then(Packed::pack));
        let before = match frontend.prefix.trunc() {
            IpNet::V4(prefix) => set_port(Arc::make_mut(&mut self.prefixes_v4), prefix, tag, packed),
            IpNet::V6(prefix) => set_port(Arc::make_mut(&mut self.prefixes_v6), prefix, tag, packed),
        };
        before.map(Packed::unpack)
    }
}

impl std::fmt::Debug for Frontends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).entries(self.prefixes()).finish()
    }
}

/// The longest prefix around `address` that has the protocol and port of `tag`, or any port.
fn around<P: Prefix>(prefixes: &PrefixMap<P, PrefixPorts>, address: &P, tag: u32) -> Option<Packed> {
    // From the shortest to the longest: the last word counts.
    prefixes
        .cover_values(address)
        .filter_map(|ports| of_port(ports, tag).or_else(|| of_port(ports, any_port(tag))))
        .last()
}

fn of_port(ports: &PrefixPorts, wanted: u32) -> Option<Packed> {
    ports.iter().find(|(tag, _)| *tag == wanted).map(|(_, packed)| *packed)
}

fn set_port<P: Prefix>(
    prefixes: &mut PrefixMap<P, PrefixPorts>,
    prefix: P,
    tag: u32,
    packed: Option<Packed>,
) -> Option<Packed> {
    let mut ports = prefixes.remove(&prefix).unwrap_or_default();
    let before = of_port(&ports, tag);
    ports.retain(|(other, _)| *other != tag);
    ports.extend(packed.map(|packed| (tag, packed)));
    if !ports.is_empty() {
        prefixes.insert(prefix, ports);
    }
    before
}

#[inline]
fn tag(protocol: u8, port: u16) -> u32 {
    u32::from(protocol) << 16 | u32::from(port)
}

/// The tag of the same protocol and any port.
#[inline]
fn any_port(tag: u32) -> u32 {
    tag & !0xffff
}

fn frontend(address: [u8; 16], tag: u32) -> Frontend {
    let [_, protocol, high, low] = tag.to_be_bytes();
    Frontend { address, protocol, port: u16::from_be_bytes([high, low]) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    /// Few values, so that frontends differ in one field only, and IPv6 ones that end as IPv4 ones do.
    fn any_address() -> impl Strategy<Value = [u8; 16]> {
        (0..2u8, 0..3u8).prop_map(|(family, host)| match family {
            0 => mapped(&[203, 0, 113, host]),
            _ => [0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, host],
        })
    }

    fn address_of(bytes: &[u8; 16]) -> IpAddr {
        match unmapped(bytes) {
            Some(v4) => IpAddr::from(v4),
            None => IpAddr::from(*bytes),
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Exact(Frontend, Option<Served>),
        Prefix(PrefixFrontend, Option<Served>),
    }

    fn any_op() -> impl Strategy<Value = Op> {
        let served = (0..9u32, prop::sample::select(FrontendKind::ALL.to_vec()))
            .prop_map(|(id, kind)| Served { service: ServiceId(id), kind });
        let port = prop::sample::select(vec![0u16, 80, 81]);
        let protocol = prop::sample::select(vec![6u8, 17]);
        (any_address(), protocol, port, prop::option::weighted(0.7, served), prop::option::weighted(0.4, 0..4u8))
            .prop_map(|(address, protocol, port, served, wide)| match wide {
                None => Op::Exact(Frontend { address, protocol, port }, served),
                Some(wide) => {
                    let address = address_of(&address);
                    let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
                    let prefix = IpNet::new(address, bits - wide).unwrap().trunc();
                    Op::Prefix(PrefixFrontend { prefix, protocol, port }, served)
                }
            })
    }

    /// The order of the head of this file, said naively.
    fn expected(
        exact: &BTreeMap<Frontend, Served>,
        prefixes: &BTreeMap<PrefixFrontend, Served>,
        asked: Frontend,
    ) -> Option<Served> {
        let any = Frontend { port: 0, ..asked };
        exact.get(&asked).or_else(|| exact.get(&any)).copied().or_else(|| {
            let address = address_of(&asked.address);
            let fits = |front: &&PrefixFrontend| {
                front.prefix.contains(&address)
                    && front.protocol == asked.protocol
                    && (front.port == asked.port || front.port == 0)
            };
            let best = prefixes.keys().filter(fits).max_by_key(|front| (front.prefix.prefix_len(), front.port))?;
            prefixes.get(best).copied()
        })
    }

    proptest! {
        /// S-068, T-111, T-121: whatever was entered, the most specific frontend answers.
        #[test]
        fn the_most_specific_frontend_answers(ops in prop::collection::vec(any_op(), 0..60)) {
            let mut table = Frontends::default();
            let (mut exact, mut prefixes) = (BTreeMap::new(), BTreeMap::new());
            for op in ops {
                match op {
                    Op::Exact(front, served) => {
                        let before = table.set(front, served);
                        prop_assert_eq!(before, match served {
                            Some(served) => exact.insert(front, served),
                            None => exact.remove(&front),
                        });
                    }
                    Op::Prefix(front, served) => {
                        let before = table.set_prefix(front, served);
                        prop_assert_eq!(before, match served {
                            Some(served) => prefixes.insert(front, served),
                            None => prefixes.remove(&front),
                        });
                    }
                }
            }
            prop_assert_eq!(table.iter().collect::<BTreeMap<_, _>>(), exact.clone());
            prop_assert_eq!(table.prefixes().collect::<BTreeMap<_, _>>(), prefixes.clone());
            prop_assert_eq!((table.len(), table.is_empty()), (exact.len(), exact.is_empty() && prefixes.is_empty()));
            for host in 0..8 {
                for protocol in [6, 17, 132] {
                    for port in [0, 79, 80, 81] {
                        let v4 = [203, 0, 113, host];
                        let mut v6 = [0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 0];
                        v6[15] = host;
                        let ask = |address| expected(&exact, &prefixes, Frontend { address, protocol, port });
                        prop_assert_eq!(table.lookup_v4(&v4, protocol, port), ask(mapped(&v4)));
                        prop_assert_eq!(table.lookup_v6(&v6, protocol, port), ask(v6));
                        prop_assert_eq!(table.lookup_v6(&mapped(&v4), protocol, port), None, "families stay apart");
                        let front = Frontend { address: v6, protocol, port };
                        prop_assert_eq!(table.get(&front), exact.get(&front).copied());
                    }
                }
            }
            prop_assert!(prefixes.iter().all(|(front, served)| table.get_prefix(front) == Some(*served)));
        }
    }

    #[test]
    fn an_id_that_does_not_fit_is_nobody() {
        let mut table = Frontends::default();
        let front = Frontend { address: mapped(&[203, 0, 113, 1]), protocol: 6, port: 80 };
        for (id, fits) in [(0, true), (SERVICES_MAX - 1, true), (SERVICES_MAX, false), (u32::MAX, false)] {
            let served = Served { service: ServiceId(id), kind: FrontendKind::Node };
            table.set(front, Some(served));
            assert_eq!(table.get(&front), fits.then_some(served));
        }
    }
}
