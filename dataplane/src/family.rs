//! The two IP families as one trait, so that each stage is written once.

use std::net::IpAddr;

use crate::packet::Key;
use crate::state::egress::Egress;
use crate::state::mapping::Mappings;
use crate::state::ports::PortBook;
use crate::state::{Address, FlowTable, State, Tuple};
use crate::table::egress::EgressRow;
use crate::table::local::LocalKind;
use crate::table::pod::PodRow;
use crate::table::route::RouteRow;
use crate::table::service::Served;
use crate::table::{self, ExternalId, Tables, maglev};
use crate::wire::checksum::Delta;
use crate::wire::packet::L3;
use crate::wire::{self, Malformed, edit, ipv4, ipv6, protocol, quote};

/// What differs between IPv4 (`[u8; 4]`) and IPv6 (`[u8; 16]`).
pub trait Family: Address {
    /// Its name.
    const VERSION: wire::Family;
    /// Protocol number of this family's ICMP.
    const ICMP: u8;

    /// Source and destination of the IP header at the start of `l3`, which parse has accepted.
    fn addresses(l3: &[u8]) -> (Self, Self);
    /// The address as the standard library has it.
    fn ip(self) -> IpAddr;
    /// The address as sixteen bytes, IPv4 mapped (RFC 4291 section 2.5.5.2).
    fn mapped(self) -> [u8; 16];
    /// The reverse of [`Family::mapped`]; `None` for an address of the other family.
    fn unmapped(mapped: &[u8; 16]) -> Option<Self>;
    /// The lookup key of a tuple.
    fn key(tuple: Tuple<Self>) -> Key;
    /// What this address means to the gateway.
    fn kind(&self, tables: &Tables) -> LocalKind;
    /// Who answers at this address, protocol and port.
    fn service(&self, tables: &Tables, protocol: u8, port: u16) -> Option<Served>;
    /// Whether the Service at this address, protocol and port keeps a client at one backend (S-090).
    fn is_sticky(&self, tables: &Tables, protocol: u8, port: u16) -> bool;
    /// The most specific route.
    fn route<'t>(&self, tables: &'t Tables) -> Option<&'t RouteRow>;
    /// The addresses reserved for `fullnat`.
    fn sources(tables: &Tables) -> &[Self];
    /// This family's flows.
    fn flows(state: &State) -> &FlowTable<Self>;
    /// This family's flows, to change.
    fn flows_mut(state: &mut State) -> &mut FlowTable<Self>;
    /// The pod that this is the address of, if some policy selects it.
    fn pod<'t>(&self, tables: &'t Tables) -> Option<&'t PodRow>;
    /// The external address that this is.
    fn external(&self, tables: &Tables) -> Option<ExternalId>;
    /// The external addresses of a policy.
    fn external_of(policy: &EgressRow) -> &[Self];
    /// Whether `policy` is for this destination; none where it says nothing of it.
    fn said_by(&self, policy: &EgressRow) -> Option<bool>;
    /// Whether `policy` is for this destination.
    fn is_for(&self, policy: &EgressRow) -> bool {
        self.said_by(policy) == Some(true)
    }
    /// This family's mappings.
    fn mappings(egress: &Egress) -> &Mappings<Self>;
    /// This family's mappings, to change.
    fn mappings_mut(egress: &mut Egress) -> &mut Mappings<Self>;
    /// The same beside the ports.
    fn mappings_and_ports(egress: &mut Egress) -> (&mut Mappings<Self>, &mut PortBook);
    /// The keyed hash that chooses a backend, equal on all gateways that share `key` (L-009).
    fn hash_flow(key: &[u8; 16], tuple: &Tuple<Self>) -> u64;
    /// The tuple of the packet that the ICMP error `message` quotes; `domain` is given to it.
    ///
    /// # Errors
    /// When the quote names no flow.
    fn quoted(message: &[u8], domain: u8) -> Result<Tuple<Self>, Malformed>;
    /// Takes a hop off the packet at the start of `l3` and gives it the addresses and ports of `to`, checksums included.
    /// False: it is not what `at` says, or has no hop left, and must not be sent.
    fn forward(l3: &mut [u8], at: &L3, to: &Tuple<Self>) -> bool;
    /// Gives an ICMP error the addresses of `to` and its quote the tuple `quote_to`. False: the quote was not understood
    /// and the packet must not be sent.
    fn translate_error(l3: &mut [u8], at: &L3, to: &Tuple<Self>, quote_to: &Tuple<Self>) -> bool;
}

/// The part of a tuple that is written into headers.
#[inline(always)]
fn ends<A: Copy>(of: &Tuple<A>) -> edit::Tuple<A> {
    edit::Tuple {
        source: of.source,
        destination: of.destination,
        source_port: of.source_port,
        destination_port: of.destination_port,
    }
}

/// Addresses with no ports: what an ICMP error's own header can take.
fn addresses_only<A: Copy>(of: &Tuple<A>) -> edit::Tuple<A> {
    edit::Tuple { source: of.source, destination: of.destination, source_port: 0, destination_port: 0 }
}

fn from_ends<A>(ends: edit::Tuple<A>, protocol: u8, domain: u8) -> Tuple<A> {
    let edit::Tuple { source, destination, source_port, destination_port } = ends;
    Tuple { source, destination, source_port, destination_port, protocol, domain }
}

impl Family for [u8; 4] {
    const VERSION: wire::Family = wire::Family::V4;
    const ICMP: u8 = protocol::ICMP;

    #[inline(always)]
    fn addresses(l3: &[u8]) -> (Self, Self) {
        ipv4::addresses(l3)
    }

    #[inline]
    fn ip(self) -> IpAddr {
        IpAddr::from(self)
    }

    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        table::mapped(&self)
    }

    #[inline(always)]
    fn unmapped(mapped: &[u8; 16]) -> Option<Self> {
        table::unmapped(mapped)
    }

    #[inline(always)]
    fn key(tuple: Tuple<Self>) -> Key {
        Key::V4(tuple)
    }

    #[inline(always)]
    fn kind(&self, tables: &Tables) -> LocalKind {
        tables.locals.kind_v4(self)
    }

    #[inline(always)]
    fn service(&self, tables: &Tables, protocol: u8, port: u16) -> Option<Served> {
        tables.services.lookup_v4(self, protocol, port)
    }

    #[inline(always)]
    fn is_sticky(&self, tables: &Tables, protocol: u8, port: u16) -> bool {
        tables.services.is_sticky_v4(self, protocol, port)
    }

    #[inline(always)]
    fn route<'t>(&self, tables: &'t Tables) -> Option<&'t RouteRow> {
        tables.routes.lookup_v4(self)
    }

    #[inline(always)]
    fn sources(tables: &Tables) -> &[Self] {
        &tables.nat.sources_v4
    }

    #[inline(always)]
    fn flows(state: &State) -> &FlowTable<Self> {
        &state.v4
    }

    #[inline(always)]
    fn flows_mut(state: &mut State) -> &mut FlowTable<Self> {
        &mut state.v4
    }

    #[inline]
    fn pod<'t>(&self, tables: &'t Tables) -> Option<&'t PodRow> {
        tables.pods.pod_v4(self)
    }

    #[inline]
    fn external(&self, tables: &Tables) -> Option<ExternalId> {
        tables.egress.external_v4(self)
    }

    fn external_of(policy: &EgressRow) -> &[Self] {
        &policy.addresses_v4
    }

    fn said_by(&self, policy: &EgressRow) -> Option<bool> {
        policy.says_of_v4(self)
    }

    fn mappings(egress: &Egress) -> &Mappings<Self> {
        &egress.v4
    }

    fn mappings_mut(egress: &mut Egress) -> &mut Mappings<Self> {
        &mut egress.v4
    }

    fn mappings_and_ports(egress: &mut Egress) -> (&mut Mappings<Self>, &mut PortBook) {
        (&mut egress.v4, &mut egress.ports)
    }

    #[inline(always)]
    fn hash_flow(key: &[u8; 16], of: &Tuple<Self>) -> u64 {
        maglev::flow_hash(key, &of.source, of.source_port, &of.destination, of.destination_port, of.protocol)
    }

    fn quoted(message: &[u8], domain: u8) -> Result<Tuple<Self>, Malformed> {
        let quote = quote::parse(wire::Family::V4, message)?;
        let ends = quote.tuple_v4().ok_or(Malformed::QuoteBadHeader)?;
        Ok(from_ends(ends, quote.protocol, domain))
    }

    #[inline(always)]
    fn forward(l3: &mut [u8], at: &L3, to: &Tuple<Self>) -> bool {
        edit::forward_v4(l3, at, &ends(to))
    }

    fn translate_error(l3: &mut [u8], at: &L3, to: &Tuple<Self>, quote_to: &Tuple<Self>) -> bool {
        let Some(message) = l3.get_mut(usize::from(at.l4_offset)..usize::from(at.total_len)) else { return false };
        let Ok(quoted) = quote::parse(wire::Family::V4, message) else { return false };
        quote::rewrite_v4(message, &quoted, &ends(quote_to)) && edit::translate_v4(l3, at, &addresses_only(to))
    }
}

impl Family for [u8; 16] {
    const VERSION: wire::Family = wire::Family::V6;
    const ICMP: u8 = protocol::ICMPV6;

    #[inline(always)]
    fn addresses(l3: &[u8]) -> (Self, Self) {
        ipv6::addresses(l3)
    }

    #[inline]
    fn ip(self) -> IpAddr {
        IpAddr::from(self)
    }

    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        self
    }

    #[inline(always)]
    fn unmapped(mapped: &[u8; 16]) -> Option<Self> {
        table::unmapped(mapped).is_none().then_some(*mapped)
    }

    #[inline(always)]
    fn key(tuple: Tuple<Self>) -> Key {
        Key::V6(tuple)
    }

    #[inline(always)]
    fn kind(&self, tables: &Tables) -> LocalKind {
        tables.locals.kind_v6(self)
    }

    #[inline(always)]
    fn service(&self, tables: &Tables, protocol: u8, port: u16) -> Option<Served> {
        tables.services.lookup_v6(self, protocol, port)
    }

    #[inline(always)]
    fn is_sticky(&self, tables: &Tables, protocol: u8, port: u16) -> bool {
        tables.services.is_sticky_v6(self, protocol, port)
    }

    #[inline(always)]
    fn route<'t>(&self, tables: &'t Tables) -> Option<&'t RouteRow> {
        tables.routes.lookup_v6(self)
    }

    #[inline(always)]
    fn sources(tables: &Tables) -> &[Self] {
        &tables.nat.sources_v6
    }

    #[inline(always)]
    fn flows(state: &State) -> &FlowTable<Self> {
        &state.v6
    }

    #[inline(always)]
    fn flows_mut(state: &mut State) -> &mut FlowTable<Self> {
        &mut state.v6
    }

    #[inline]
    fn pod<'t>(&self, tables: &'t Tables) -> Option<&'t PodRow> {
        tables.pods.pod_v6(self)
    }

    #[inline]
    fn external(&self, tables: &Tables) -> Option<ExternalId> {
        tables.egress.external_v6(self)
    }

    fn external_of(policy: &EgressRow) -> &[Self] {
        &policy.addresses_v6
    }

    fn said_by(&self, policy: &EgressRow) -> Option<bool> {
        policy.says_of_v6(self)
    }

    fn mappings(egress: &Egress) -> &Mappings<Self> {
        &egress.v6
    }

    fn mappings_mut(egress: &mut Egress) -> &mut Mappings<Self> {
        &mut egress.v6
    }

    fn mappings_and_ports(egress: &mut Egress) -> (&mut Mappings<Self>, &mut PortBook) {
        (&mut egress.v6, &mut egress.ports)
    }

    #[inline(always)]
    fn hash_flow(key: &[u8; 16], of: &Tuple<Self>) -> u64 {
        maglev::flow_hash(key, &of.source, of.source_port, &of.destination, of.destination_port, of.protocol)
    }

    fn quoted(message: &[u8], domain: u8) -> Result<Tuple<Self>, Malformed> {
        let quote = quote::parse(wire::Family::V6, message)?;
        let ends = quote.tuple_v6().ok_or(Malformed::QuoteBadHeader)?;
        Ok(from_ends(ends, quote.protocol, domain))
    }

    #[inline(always)]
    fn forward(l3: &mut [u8], at: &L3, to: &Tuple<Self>) -> bool {
        edit::forward_v6(l3, at, &ends(to))
    }

    fn translate_error(l3: &mut [u8], at: &L3, to: &Tuple<Self>, quote_to: &Tuple<Self>) -> bool {
        let Some(message) = l3.get_mut(usize::from(at.l4_offset)..usize::from(at.total_len)) else { return false };
        let Ok(quoted) = quote::parse(wire::Family::V6, message) else { return false };
        quote::rewrite_v6(message, &quoted, &ends(quote_to), Delta::NONE)
            && edit::translate_v6(l3, at, &addresses_only(to))
    }
}
