//! Choosing the external port of a pod's new flow.
//!
//! It owns the choice: unpredictable (RFC 6056) and exact to the last port of those that this worker gives out. It refuses to know
//! policies and quotas.
//!
//! The search is the walk of [`super::nat`]: all ports from a random start with a random stride, each once. A port that flows to
//! different destinations share is free for a destination if the tuple of its answers is in no flow. When ports run short, a port
//! whose flow to the same destination has closed is taken instead of a free one that is hard to find: its connection is over, and
//! a server tells an old segment from a new connection by its number (RFC 6191).

use super::mapping::Mapping;
use super::nat::{scale, stride};
use super::ports::PortBook;
use super::{DOMAIN_WIRE, FlowId, FlowState, FlowTable, State, Ticks, Tuple, mark, ticks_since};
use crate::family::Family;
use crate::table::egress::{OwnPorts, PortClass};

/// Ports looked at before one whose connection has closed will do, or a mapping that rests.
const LOOK_PORTS: u32 = 64;
/// A search of so many steps means that nine ports of ten are taken.
const SCARCE_STEPS: u32 = 16;
/// How many are looked up at once after the first ones were taken.
const PROBES_AT_ONCE: u32 = 16;

/// No port is left for this flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every external port that this worker gives out is taken")]
pub struct PortsExhausted;

/// A port to be shared with flows to other destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Host order.
    pub port: u16,
    /// A flow to the same destination, closed, that ends for it.
    pub reuses: Option<FlowId>,
    /// Whether ports towards the destination run short.
    pub is_scarce: bool,
}

/// A port for one mapping alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alone<A> {
    /// Host order.
    pub port: u16,
    /// A mapping at rest that ends for it.
    pub ends: Option<Mapping<A>>,
    /// Whether ports run short.
    pub is_scarce: bool,
}

/// Where ports are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Search<'t, A> {
    /// The external address.
    pub external: A,
    /// Whose ports.
    pub class: PortClass,
    /// Those that this worker gives out.
    pub ports: OwnPorts<'t>,
    /// IANA protocol number.
    pub protocol: u8,
    /// Any number that nobody can foresee.
    pub entropy: u64,
    /// The moment.
    pub now: Ticks,
}

impl<A: Family> Search<'_, A> {
    /// A port for a flow to `remote`. Ports that `is_reserved` are left out.
    ///
    /// # Errors
    /// [`PortsExhausted`], and only if it is so.
    pub fn shared(
        &self,
        flows: &FlowTable<A>,
        book: &PortBook,
        remote: (A, u16),
        is_reserved: impl Fn(u16) -> bool,
    ) -> Result<Shared, PortsExhausted> {
        let pool = book.pool(&self.external.mapped(), self.class);
        let answer = |port| self.answer(remote, port);
        let mut walk = self.walk(flows).ok_or(PortsExhausted)?;
        let mut closed: Option<(Ticks, Shared)> = None;
        for step in 0..walk.len {
            if step % PROBES_AT_ONCE == 1 {
                let mut ahead = walk;
                (0..PROBES_AT_ONCE)
                    .for_each(|_| flows.prefetch_index(flows.hash(&answer(ahead.next_port(self.ports)))));
            }
            let port = walk.next_port(self.ports);
            if is_reserved(port) || !pool.is_shareable(port) {
                continue;
            }
            match flows.lookup(&answer(port)) {
                None => return Ok(Shared { port, reuses: None, is_scarce: step >= SCARCE_STEPS }),
                Some(hit) => {
                    let entry = flows.entry(hit.flow);
                    let is_over =
                        matches!(entry.state, FlowState::TIME_WAIT | FlowState::CLOSE | FlowState::SCTP_CLOSED);
                    let is_ours = entry.is_egress() && entry.mark & mark::MAPPED == 0;
                    let silent = ticks_since(entry.last_seen_ticks, self.now);
                    if is_over && is_ours && closed.is_none_or(|(longest, _)| silent > longest) {
                        closed = Some((silent, Shared { port, reuses: Some(hit.flow), is_scarce: true }));
                    }
                }
            }
            if let Some((_, closed)) = closed
                && step >= LOOK_PORTS
            {
                return Ok(closed);
            }
        }
        closed.map(|(_, closed)| closed).ok_or(PortsExhausted)
    }

    /// Whether this worker gives `port` out and no flow to `remote` has it.
    pub fn is_free(&self, flows: &FlowTable<A>, book: &PortBook, remote: (A, u16), port: u16) -> bool {
        self.ports.contains(port)
            && book.pool(&self.external.mapped(), self.class).is_shareable(port)
            && flows.lookup(&self.answer(remote, port)).is_none()
    }

    /// A port that nothing uses, or else one whose mapping rests (N-042: "pool pressure").
    ///
    /// # Errors
    /// [`PortsExhausted`] when there is neither.
    pub fn alone(&self, state: &State, is_reserved: impl Fn(u16) -> bool) -> Result<Alone<A>, PortsExhausted> {
        let (book, address) = (&state.egress.ports, self.external.mapped());
        let (pool, tally) = (book.pool(&address, self.class), book.tally(&address, self.class));
        let walk = self.walk(A::flows(state)).ok_or(PortsExhausted)?;
        if tally.used < self.ports.len() || tally.resting == 0 {
            let mut walk = walk;
            let free = (0..walk.len)
                .map(|_| walk.next_port(self.ports))
                .find(|port| pool.is_free(*port) && !is_reserved(*port));
            if let Some(port) = free {
                let is_scarce = u64::from(tally.used) * 8 > u64::from(self.ports.len()) * 7;
                return Ok(Alone { port, ends: None, is_scarce });
            }
        }
        if tally.resting == 0 {
            return Err(PortsExhausted);
        }
        self.rested(state, walk, is_reserved)
    }

    /// The port of the mapping that has rested for longest among some.
    #[cold]
    fn rested(
        &self,
        state: &State,
        mut walk: Walk,
        is_reserved: impl Fn(u16) -> bool,
    ) -> Result<Alone<A>, PortsExhausted> {
        let mappings = A::mappings(&state.egress);
        let pool = state.egress.ports.pool(&self.external.mapped(), self.class);
        let mut best: Option<Mapping<A>> = None;
        let mut seen = 0;
        for _ in 0..walk.len {
            let port = walk.next_port(self.ports);
            if !pool.is_alone(port) || is_reserved(port) {
                continue;
            }
            let found = mappings.of_outside((self.external, port), self.protocol, self.now);
            let Some(mapping) = found.filter(|mapping| mapping.is_resting) else { continue };
            if best.is_none_or(|best| mapping.rested_ticks > best.rested_ticks) {
                best = Some(mapping);
            }
            seen += 1;
            if seen == LOOK_PORTS {
                break;
            }
        }
        best.map(|mapping| Alone { port: mapping.outside.1, ends: Some(mapping), is_scarce: true })
            .ok_or(PortsExhausted)
    }

    fn answer(&self, remote: (A, u16), port: u16) -> Tuple<A> {
        Tuple {
            source: remote.0,
            destination: self.external,
            source_port: remote.1,
            destination_port: port,
            protocol: self.protocol,
            domain: DOMAIN_WIRE,
        }
    }

    fn walk(&self, flows: &FlowTable<A>) -> Option<Walk> {
        let len = self.ports.len();
        let random = flows.scramble(self.entropy);
        (len > 0).then(|| Walk { at: scale(random >> 32, len), stride: stride(random, len), len })
    }
}

/// A place in the walk through all ports.
#[derive(Clone, Copy, Debug)]
struct Walk {
    at: u32,
    stride: u32,
    len: u32,
}

impl Walk {
    fn next_port(&mut self, ports: OwnPorts<'_>) -> u16 {
        let port = ports.at(self.at);
        // Both are below `len`, which is below 2^17.
        self.at += self.stride;
        if self.at >= self.len {
            self.at -= self.len;
        }
        port
    }
}
