//! The two IP families as one trait, so that each stage is written once.

use crate::packet::Key;
use crate::state::{Address, FlowTable, State, Tuple};
use crate::table::local::LocalKind;
use crate::table::route::RouteRow;
use crate::table::{self, ServiceId, Tables, maglev};
use crate::wire::packet::L3;
use crate::wire::{Malformed, edit, ipv4, ipv6, protocol, quote};

/// What differs between IPv4 (`[u8; 4]`) and IPv6 (`[u8; 16]`).
pub trait Family: Address {
    /// Protocol number of this family's ICMP.
    const ICMP: u8;
    /// IP and TCP header together, without options: what an MSS leaves out.
    const TCP_HEADERS_BYTES: u16;

    /// Source and destination of the IP header at the start of `l3`, which parse has accepted.
    fn addresses(l3: &[u8]) -> (Self, Self);
    /// The address as sixteen bytes, IPv4 mapped (RFC 4291 section 2.5.5.2).
    fn mapped(self) -> [u8; 16];
    /// The reverse of [`Family::mapped`]; `None` for an address of the other family.
    fn unmapped(mapped: &[u8; 16]) -> Option<Self>;
    /// The lookup key of a tuple.
    fn key(tuple: Tuple<Self>) -> Key;
    /// What this address means to the gateway.
    fn kind(&self, tables: &Tables) -> LocalKind;
    /// The Service at exactly this address, protocol and port.
    fn service(&self, tables: &Tables, protocol: u8, port: u16) -> Option<ServiceId>;
    /// The most specific route.
    fn route<'t>(&self, tables: &'t Tables) -> Option<&'t RouteRow>;
    /// The addresses reserved for `fullnat`.
    fn sources(tables: &Tables) -> &[Self];
    /// This family's flows.
    fn flows(state: &State) -> &FlowTable<Self>;
    /// This family's flows, to change.
    fn flows_mut(state: &mut State) -> &mut FlowTable<Self>;
    /// The keyed hash that chooses a backend, equal on all gateways that share `key` (L-009).
    fn hash_flow(key: &[u8; 16], tuple: &Tuple<Self>) -> u64;
    /// The tuple of the packet that the ICMP error `message` quotes; `domain` is given to it.
    ///
    /// # Errors
    /// When the quote names no flow.
    fn quoted(message: &[u8], domain: u8) -> Result<Tuple<Self>, Malformed>;
    /// Gives the packet at the start of `l3` the addresses and ports of `to`, checksums included.
    fn translate(l3: &mut [u8], l4_offset: usize, protocol: u8, to: &Tuple<Self>);
    /// Gives an ICMP error the addresses of `to` and its quote the tuple `quote_to`. False: the quote was not understood
    /// and the packet must not be sent.
    fn translate_error(l3: &mut [u8], at: &L3, to: &Tuple<Self>, quote_to: &Tuple<Self>) -> bool;
    /// Lowers the time to live by one, checksum included.
    fn decrement_ttl(l3: &mut [u8]);
    /// Sets the ECN bits, checksum included.
    fn set_ecn(l3: &mut [u8], ecn: u8);
}


impl Family for [u8; 4] {
    const ICMP: u8 = protocol::ICMP;
    const TCP_HEADERS_BYTES: u16 = 40;

    #[inline]
    fn addresses(l3: &[u8]) -> (Self, Self) {
        ipv4::addresses(l3)
    }

    #[inline]
    fn mapped(self) -> [u8; 16] {
        table::mapped(&self)
    }

    #[inline]
    fn unmapped(mapped: &[u8; 16]) -> Option<Self> {
        table::unmapped(mapped)
    }

    #[inline]
    fn key(tuple: Tuple<Self>) -> Key {
        Key::V4(tuple)
    }

    #[inline]
    fn kind(&self, tables: &Tables) -> LocalKind {
        tables.locals.kind_v4(self)
    }

    #[inline]
    fn service(&self, tables: &Tables, protocol: u8, port: u16) -> Option<ServiceId> {
        tables.services.lookup_v4(self, protocol, port)
    }

    #[inline]
    fn route<'t>(&self, tables: &'t Tables) -> Option<&'t RouteRow> {
        tables.routes.lookup_v4(self)
    }

    #[inline]
    fn sources(tables: &Tables) -> &[Self] {
        &tables.nat.sources_v4
    }

    #[inline]
    fn flows(state: &State) -> &FlowTable<Self> {
        &state.v4
    }

    #[inline]
    fn flows_mut(state: &mut State) -> &mut FlowTable<Self> {
        &mut state.v4
    }

    #[inline]
    fn hash_flow(key: &[u8; 16], of: &Tuple<Self>) -> u64 {
        maglev::flow_hash(key, &of.source, of.source_port, &of.destination, of.destination_port, of.protocol)
    }

    fn quoted(message: &[u8], domain: u8) -> Result<Tuple<Self>, Malformed> {
        let quote = quote::parse_v4(message)?;
        Ok(Tuple {
            source: quote.source,
            destination: quote.destination,
            source_port: quote.source_port,
            destination_port: quote.destination_port,
            protocol: quote.protocol,
            domain,
        })
    }

    #[inline]
    fn translate(l3: &mut [u8], l4_offset: usize, protocol: u8, to: &Tuple<Self>) {
        edit::translate_v4(l3, l4_offset, protocol, to.source, to.destination, to.source_port, to.destination_port);
    }

    fn translate_error(l3: &mut [u8], at: &L3, to: &Tuple<Self>, quote_to: &Tuple<Self>) -> bool {
        quote::translate_v4(l3, at, to, quote_to)
    }

    #[inline]
    fn decrement_ttl(l3: &mut [u8]) {
        edit::decrement_ttl_v4(l3);
    }

    #[inline]
    fn set_ecn(l3: &mut [u8], ecn: u8) {
        edit::set_ecn_v4(l3, ecn);
    }
}

impl Family for [u8; 16] {
    const ICMP: u8 = protocol::ICMPV6;
    const TCP_HEADERS_BYTES: u16 = 60;

    #[inline]
    fn addresses(l3: &[u8]) -> (Self, Self) {
        ipv6::addresses(l3)
    }

    #[inline]
    fn mapped(self) -> [u8; 16] {
        self
    }

    #[inline]
    fn unmapped(mapped: &[u8; 16]) -> Option<Self> {
        table::unmapped(mapped).is_none().then_some(*mapped)
    }

    #[inline]
    fn key(tuple: Tuple<Self>) -> Key {
        Key::V6(tuple)
    }

    #[inline]
    fn kind(&self, tables: &Tables) -> LocalKind {
        tables.locals.kind_v6(self)
    }

    #[inline]
    fn service(&self, tables: &Tables, protocol: u8, port: u16) -> Option<ServiceId> {
        tables.services.lookup_v6(self, protocol, port)
    }

    #[inline]
    fn route<'t>(&self, tables: &'t Tables) -> Option<&'t RouteRow> {
        tables.routes.lookup_v6(self)
    }

    #[inline]
    fn sources(tables: &Tables) -> &[Self] {
        &tables.nat.sources_v6
    }

    #[inline]
    fn flows(state: &State) -> &FlowTable<Self> {
        &state.v6
    }

    #[inline]
    fn flows_mut(state: &mut State) -> &mut FlowTable<Self> {
        &mut state.v6
    }

    #[inline]
    fn hash_flow(key: &[u8; 16], of: &Tuple<Self>) -> u64 {
        maglev::flow_hash(key, &of.source, of.source_port, &of.destination, of.destination_port, of.protocol)
    }

    fn quoted(message: &[u8], domain: u8) -> Result<Tuple<Self>, Malformed> {
        let quote = quote::parse_v6(message)?;
        Ok(Tuple {
            source: quote.source,
            destination: quote.destination,
            source_port: quote.source_port,
            destination_port: quote.destination_port,
            protocol: quote.protocol,
            domain,
        })
    }

    #[inline]
    fn translate(l3: &mut [u8], l4_offset: usize, protocol: u8, to: &Tuple<Self>) {
        edit::translate_v6(l3, l4_offset, protocol, to.source, to.destination, to.source_port, to.destination_port);
    }

    fn translate_error(l3: &mut [u8], at: &L3, to: &Tuple<Self>, quote_to: &Tuple<Self>) -> bool {
        quote::translate_v6(l3, at, to, quote_to)
    }

    #[inline]
    fn decrement_ttl(l3: &mut [u8]) {
        edit::decrement_ttl_v6(l3);
    }

    #[inline]
    fn set_ecn(l3: &mut [u8], ecn: u8) {
        edit::set_ecn_v6(l3, ecn);
    }
}
