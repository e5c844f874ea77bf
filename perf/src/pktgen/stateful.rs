//! What keeps connections: how many it can begin in a second, and how many it can hold (RFC 9693).
//!
//! Owns the two phases. In the first the initiator sends one packet of every connection, each a new one to the device
//! under test, and the responder keeps what arrives. In the second the responder sends each of these back: only what the
//! device still knows comes through to the initiator, so every connection is *validated* one by one. The next trial has
//! connections that were never seen; whoever measures has the device forget the old ones meanwhile.
//!
//! And TCP: connections by handshake, SYN, SYN-ACK and ACK, answered by a sink that keeps nothing itself.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tidegate_io::mem::now_ns;
use tidegate_io::{BATCH_MAX, Batch, Frame, Magazine, Port};

use crate::pktgen::layout::{self, Layout, TCP};
use crate::pktgen::mould::{Mould, Stamp};
use crate::pktgen::pace::Pace;
use crate::pktgen::search::rounded;
use crate::pktgen::size::FCS_BYTES;
use crate::pktgen::trial::Lane;

/// Connections of one trial, at most: the responder keeps a packet of each.
pub const CONNECTIONS_MAX: u32 = 4_000_000;
/// Longest packet that is kept.
const KEPT_BYTES_MAX: usize = 512;
/// Nothing for so long: nothing more comes.
const QUIET_NS: u64 = 200_000_000;
/// Packets between two looks at the clock.
const BATCH: usize = if BATCH_MAX < 32 { BATCH_MAX } else { 32 };
/// Flags of TCP.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;

/// What came of one trial in two phases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// Connections that were begun.
    pub connections: u32,
    /// Per second, as it came to be.
    pub begun_per_s: f64,
    /// Those whose first packet arrived.
    pub arrived: u32,
    /// Those whose answer came back.
    pub validated: u32,
}

impl Validated {
    /// Whether every connection was there.
    pub fn is_whole(&self) -> bool {
        self.connections > 0 && self.validated == self.connections
    }
}

/// What a search among connections has found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// `establishment-rate` in connections per second, or `capacity` in connections.
    pub what: String,
    /// The figure; 0: no trial was whole.
    pub figure: f64,
    /// The part of it that it is known to.
    pub precision: f64,
    /// The search ended at what it was allowed, not at what the device can.
    pub limit_reached: bool,
    /// All trials.
    pub trials: Vec<Validated>,
}

/// Both sides of a device that keeps connections.
#[derive(Debug)]
pub struct Sides<'a, P> {
    lane: &'a mut Lane<P>,
    /// The first packet of each connection as it arrived, by number of its flow.
    kept: Vec<Option<Box<[u8]>>>,
}

/// Moves packets between sides that have no device between them.
pub type Between<'a> = &'a mut dyn FnMut();

impl<'a, P: Port> Sides<'a, P> {
    /// The initiator is the lane's port, the responder its sink.
    ///
    /// # Errors
    /// When the lane has no sink of its own.
    pub fn new(lane: &'a mut Lane<P>) -> Result<Sides<'a, P>> {
        ensure!(
            lane.sink.is_some(),
            "a stateful test needs a device for the initiator and another one for the responder"
        );
        Ok(Sides { lane, kept: Vec::new() })
    }

    /// Both phases: as many connections as the mould has flows, begun at this rate.
    ///
    /// # Errors
    /// When there are too many, or a packet cannot be kept.
    pub fn trial(&mut self, mould: &Mould, number: u16, rate_per_s: u64, between: Between<'_>) -> Result<Validated> {
        let connections = mould.traffic().flows;
        ensure!(connections <= CONNECTIONS_MAX, "a trial has at most {CONNECTIONS_MAX} connections, not {connections}");
        ensure!(mould.traffic().stamped, "connections are told apart by stamps");
        let (largest, most) = (mould.size_bytes_max(), KEPT_BYTES_MAX + usize::from(FCS_BYTES));
        ensure!(largest <= most as u64, "the responder keeps frames of at most {most} bytes, not of {largest}");
        self.kept.clear();
        self.kept.resize_with(connections as usize, || None);
        let took_ns = self.begin(mould, number, rate_per_s, between)?;
        let arrived = self.kept.iter().flatten().count();
        let validated = self.validate(mould, number, rate_per_s, between)?;
        Ok(Validated {
            connections,
            begun_per_s: f64::from(connections) * 1e9 / took_ns.max(1) as f64,
            arrived: u32::try_from(arrived)?,
            validated,
        })
    }

    /// Phase one; nanoseconds of sending.
    fn begin(&mut self, mould: &Mould, number: u16, rate_per_s: u64, between: Between<'_>) -> Result<u64> {
        let Sides { lane, kept } = self;
        let Lane { port, magazine, sink } = &mut **lane;
        let Some((responder, stock)) = sink else { bail!("no responder") };
        let streams = mould.traffic().streams();
        let write = |frame: &mut Frame, flow: u32, now| {
            let stream = u16::try_from(flow % streams).unwrap_or(u16::MAX);
            mould.write(frame, 0, flow, Stamp { trial: number, stream, sequence: flow / streams, sent_ns: now })
        };
        send_each((port, magazine), mould.traffic().flows, rate_per_s, write, || {
            between();
            let mut count = 0;
            take_in(responder, stock, |bytes| {
                let Some((flow, _)) = flow_of(bytes, number, streams) else { return };
                count += 1;
                if bytes.len() <= KEPT_BYTES_MAX
                    && let Some(place) = kept.get_mut(flow)
                {
                    *place = Some(bytes.into());
                }
            });
            count
        })
    }

    /// Phase two; how many answers came back.
    fn validate(&mut self, mould: &Mould, number: u16, rate_per_s: u64, between: Between<'_>) -> Result<u32> {
        let Sides { lane, kept } = self;
        let Lane { port, magazine, sink } = &mut **lane;
        let Some((responder, stock)) = sink else { bail!("no responder") };
        let streams = mould.traffic().streams();
        let mut came = vec![false; kept.len()];
        let mut answers = kept.iter().flatten();
        let count = u32::try_from(kept.iter().flatten().count())?;
        let write = |frame: &mut Frame, _, _| {
            let Some(packet) = answers.next() else { return false };
            let fits = frame.fill(packet);
            let layout = layout::find(frame.bytes());
            layout.inspect(|layout| layout::turn_round(frame.bytes_mut(), layout));
            fits && layout.is_some()
        };
        send_each((responder, stock), count, rate_per_s, write, || {
            between();
            let mut count = 0;
            take_in(port, magazine, |bytes| {
                if let Some(place) = flow_of(bytes, number, streams).and_then(|(flow, _)| came.get_mut(flow)) {
                    *place = true;
                    count += 1;
                }
            });
            count
        })?;
        Ok(u32::try_from(came.iter().filter(|came| **came).count())?)
    }
}

/// Number of the flow that a packet of this trial belongs to.
fn flow_of(bytes: &[u8], trial: u16, streams: u32) -> Option<(usize, Layout)> {
    let layout = layout::find(bytes)?;
    let stamp = Stamp::read(bytes.get(layout.payload..layout.end)?)?;
    let flow = stamp.sequence.checked_mul(streams)?.checked_add(u32::from(stamp.stream))?;
    (stamp.trial == trial).then_some((usize::try_from(flow).ok()?, layout))
}

/// Hands every packet that has arrived to `look`.
fn take_in<P: Port>(port: &mut P, magazine: &mut Magazine, mut look: impl FnMut(&[u8])) {
    let mut arrived = Batch::new();
    port.rx(&mut arrived);
    for frame in arrived.drain(..) {
        look(frame.bytes());
        magazine.give(frame);
    }
    port.recycle(magazine);
    port.kick();
}

/// Sends packets 0 to `count`, each once, and goes on until nothing more arrives; `receive` says how much did. Nanoseconds
/// from the first packet to the last.
fn send_each<P: Port>(
    (port, magazine): (&mut P, &mut Magazine),
    count: u32,
    rate_per_s: u64,
    mut write: impl FnMut(&mut Frame, u32, u64) -> bool,
    mut receive: impl FnMut() -> usize,
) -> Result<u64> {
    let began_ns = now_ns();
    let mut pace = Pace::new(rate_per_s, began_ns);
    let (mut batch, mut next, mut took_ns, mut last_ns) = (Batch::new(), 0, 0, began_ns);
    let mut failure = None;
    while failure.is_none() {
        let now = now_ns();
        let left = usize::try_from(count - next)?;
        for _ in 0..pace.due(now, BATCH.saturating_sub(batch.len()).min(left)) {
            let Some(mut frame) = magazine.take() else { break };
            if !write(&mut frame, next, now) {
                failure = Some(anyhow::anyhow!("packet {next} cannot be written"));
            }
            batch.push(frame);
            next += 1;
        }
        port.tx(&mut batch);
        port.kick();
        port.recycle(magazine);
        let is_sent = next == count && batch.is_empty();
        if !is_sent || took_ns == 0 {
            (took_ns, last_ns) = (now_ns() - began_ns, now_ns());
        }
        if receive() > 0 {
            last_ns = now_ns();
        } else if is_sent && now_ns() - last_ns >= QUIET_NS {
            break;
        }
    }
    batch.drain(..).for_each(|frame| magazine.give(frame));
    failure.map_or(Ok(took_ns), Err)
}

/// The highest rate at which all connections of a trial are there afterwards, by binary search below `rate_max_per_s`.
///
/// # Errors
/// When a trial fails.
pub fn establishment_rate(
    rate_max_per_s: u64,
    precision: f64,
    mut trial: impl FnMut(u64) -> Result<Validated>,
) -> Result<Found> {
    ensure!(rate_max_per_s > 0, "a search for a rate needs the highest one to try");
    let mut found = Found { what: "establishment-rate".into(), precision, ..Found::default() };
    let (mut lower, mut upper, mut next) = (0.0, rate_max_per_s as f64, rate_max_per_s as f64);
    while found.trials.len() < 40 {
        let outcome = trial(rounded(next))?;
        found.trials.push(outcome);
        // What was sent counts, where that is less than what was asked for.
        let rate = next.min(outcome.begun_per_s);
        if outcome.is_whole() {
            found.figure = rate.max(found.figure);
            found.limit_reached = found.trials.len() == 1;
            lower = rate;
            if rate < 0.97 * next {
                found.limit_reached = true;
                break;
            }
        } else {
            upper = next.min(rate.max(1.0));
        }
        if found.limit_reached || upper - lower <= precision * upper || upper < 2.0 {
            break;
        }
        next = (lower + upper) / 2.0;
    }
    Ok(found)
}

/// As many connections as are all there after they were begun: twice as many until they are not, then by binary search.
///
/// # Errors
/// When a trial fails.
pub fn capacity(
    first: u32,
    most: u32,
    precision: f64,
    mut trial: impl FnMut(u32) -> Result<Validated>,
) -> Result<Found> {
    ensure!(first > 0 && first <= most && most <= CONNECTIONS_MAX, "connections are 1 to {CONNECTIONS_MAX}");
    let mut found = Found { what: "capacity".into(), precision, ..Found::default() };
    let (mut lower, mut upper, mut next) = (0, None, first);
    while found.trials.len() < 60 {
        let outcome = trial(next)?;
        found.trials.push(outcome);
        if outcome.is_whole() {
            (lower, found.figure) = (next, f64::from(next));
        } else {
            upper = Some(next);
        }
        next = match upper {
            None if next == most => {
                found.limit_reached = true;
                break;
            }
            None => next.saturating_mul(2).min(most),
            Some(upper) if f64::from(upper - lower) <= (precision * f64::from(upper)).max(1.0) => break,
            Some(upper) => lower + (upper - lower) / 2,
        };
    }
    Ok(found)
}

/// What came of connections by handshake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Handshakes {
    /// Connections per second that were asked for; 0: as many as go.
    pub asked_per_s: u64,
    /// SYNs that were sent.
    pub begun: u64,
    /// SYNs that the sink answered.
    pub answered: u64,
    /// SYN-ACKs that came back, and were acknowledged.
    pub established: u64,
    /// Acknowledgements that reached the sink: whole handshakes.
    pub completed: u64,
    /// Time of sending in seconds.
    pub took_s: f64,
    /// Whole handshakes per second of it.
    pub completed_per_s: f64,
}

/// Begins a connection of each flow, once around, at this rate for at most this long.
///
/// # Errors
/// When the lane has no sink of its own.
pub fn handshakes<P: Port>(
    lane: &mut Lane<P>,
    mould: &Mould,
    rate_per_s: u64,
    limit: Duration,
    reset: bool,
    between: Between<'_>,
) -> Result<Handshakes> {
    let Lane { port, magazine, sink } = lane;
    let Some((responder, stock)) = sink else {
        bail!("handshakes need a device for the client and another one for the server")
    };
    let began_ns = now_ns();
    let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    let mut told = Handshakes { asked_per_s: rate_per_s, ..Handshakes::default() };
    let mut pace = Pace::new(rate_per_s, began_ns);
    let (mut batch, mut answers) = (Batch::new(), Batch::new());
    let (mut replies, mut ends) = (Batch::new(), Batch::new());
    let (flows, mut took_ns, mut last_ns) = (u64::from(mould.traffic().flows), 0, began_ns);
    let mut fits = true;
    loop {
        let now = now_ns();
        let is_sending = told.begun < flows && now - began_ns < limit_ns;
        let left = usize::try_from(flows - told.begun).unwrap_or(BATCH);
        // Acknowledgements first: a client that begins more than it can finish measures itself.
        let room = if is_sending && replies.is_empty() && ends.is_empty() {
            BATCH.saturating_sub(batch.len()).min(left)
        } else {
            0
        };
        for _ in 0..pace.due(now, room) {
            let Some(mut frame) = magazine.take() else { break };
            let flow = u32::try_from(told.begun).unwrap_or(u32::MAX);
            fits &= mould.write(&mut frame, 0, flow, Stamp { trial: 0, stream: 0, sequence: 0, sent_ns: 0 });
            batch.push(frame);
            told.begun += 1;
        }
        port.tx(&mut replies);
        if replies.is_empty() {
            port.tx(&mut ends);
        }
        port.tx(&mut batch);
        port.kick();
        port.recycle(magazine);
        between();
        let (came_there, completed) = answer(responder, stock, &mut answers);
        told.answered += came_there;
        told.completed += completed;
        let came_back = acknowledge(port, magazine, &mut replies, reset.then_some(&mut ends));
        told.established += came_back;
        if is_sending || !batch.is_empty() {
            (took_ns, last_ns) = (now_ns() - began_ns, now_ns());
        }
        if came_there + completed + came_back > 0 {
            last_ns = now_ns();
        }
        if !is_sending && batch.is_empty() && now_ns() - last_ns >= QUIET_NS || !fits {
            break;
        }
    }
    let left = batch.drain(..).chain(replies.drain(..)).chain(ends.drain(..));
    left.for_each(|frame| magazine.give(frame));
    answers.drain(..).for_each(|frame| stock.give(frame));
    ensure!(fits, "a frame cannot hold a SYN");
    told.took_s = took_ns.max(1) as f64 / 1e9;
    told.completed_per_s = told.completed as f64 / told.took_s;
    Ok(told)
}

/// The sink's turn: answers SYNs, counts acknowledgements. Keeps nothing of either.
pub fn answer<P: Port>(port: &mut P, magazine: &mut Magazine, answers: &mut Batch) -> (u64, u64) {
    let (mut answered, mut completed) = (0, 0);
    let mut arrived = Batch::new();
    if answers.is_empty() {
        port.rx(&mut arrived);
    }
    for mut frame in arrived.drain(..) {
        let layout = layout::find(frame.bytes()).filter(|layout| layout.protocol == TCP);
        let flags = layout.and_then(|layout| frame.bytes().get(layout.transport + 13).copied());
        match (layout, flags) {
            (Some(layout), Some(flags)) if flags & (SYN | ACK | RST) == SYN => {
                turn_segment(frame.bytes_mut(), &layout, SYN | ACK);
                answered += 1;
                answers.push(frame);
                continue;
            }
            (Some(_), Some(flags)) if flags & (SYN | ACK | RST) == ACK => completed += 1,
            _ => {}
        }
        magazine.give(frame);
    }
    port.tx(answers);
    port.kick();
    port.recycle(magazine);
    (answered, completed)
}

/// The client's turn: acknowledges SYN-ACKs once `replies` and `ends` are sent; what ends each connection goes into `ends`, to
/// be sent after the replies.
fn acknowledge<P: Port>(
    port: &mut P,
    magazine: &mut Magazine,
    replies: &mut Batch,
    mut ends: Option<&mut Batch>,
) -> u64 {
    let mut established = 0;
    let mut arrived = Batch::new();
    if replies.is_empty() && ends.as_ref().is_none_or(|ends| ends.is_empty()) {
        port.rx(&mut arrived);
    }
    for mut frame in arrived.drain(..) {
        let layout = layout::find(frame.bytes()).filter(|layout| layout.protocol == TCP);
        let flags = layout.and_then(|layout| frame.bytes().get(layout.transport + 13).copied());
        let (Some(layout), true) = (layout, flags.is_some_and(|flags| flags & (SYN | ACK | RST) == SYN | ACK)) else {
            magazine.give(frame);
            continue;
        };
        turn_segment(frame.bytes_mut(), &layout, ACK);
        established += 1;
        if let Some(ends) = &mut ends
            && let Some(mut end) = magazine.take()
        {
            if end.fill(frame.bytes()) {
                set_flags(end.bytes_mut(), &layout, RST | ACK);
            }
            ends.push(end);
        }
        replies.push(frame);
    }
    established
}

/// Makes a segment the answer to itself: turned round, what it acknowledges follows from what it said.
fn turn_segment(bytes: &mut [u8], layout: &Layout, flags: u8) {
    layout::turn_round(bytes, layout);
    let at = layout.transport;
    let Some(header) = bytes.get_mut(at..at + 14) else { return };
    let said = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    // A SYN uses one sequence number (RFC 9293, section 3.4); what it acknowledged is where the other side goes on.
    let goes_on = [header[8], header[9], header[10], header[11]];
    header[4..8].copy_from_slice(&goes_on);
    header[8..12].copy_from_slice(&said.wrapping_add(1).to_be_bytes());
    set_flags(bytes, layout, flags);
}

fn set_flags(bytes: &mut [u8], layout: &Layout, flags: u8) {
    if let Some(place) = bytes.get_mut(layout.transport + 13) {
        *place = flags;
    }
    layout.sum_again(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pktgen::flows::Order;
    use crate::pktgen::memory::Wire;
    use crate::pktgen::mould::{Protocol, Traffic, tests::traffic};
    use tidegate_io::fault::Faults;
    use tidegate_io::{HugePages, Pool, memory};

    fn kind(v6: bool, protocol: Protocol, flows: u32, stamped: bool) -> Mould {
        let kind = traffic(v6, protocol, None, "64");
        Mould::new(&Traffic { flows, order: Order::Sequential, stamped, targets: 1, ..kind }).unwrap()
    }

    #[test]
    fn connections_are_validated_one_by_one() {
        for v6 in [false, true] {
            let mut wire = Wire::new(Faults::default(), 1).unwrap();
            let mould = kind(v6, Protocol::Udp, 70_000, true);
            let whole = wire.stateful(&mould, 0, &mut |_| true).unwrap();
            assert_eq!((whole.arrived, whole.validated, whole.is_whole()), (70_000, 70_000, true));
            // A device that forgets every tenth answer.
            let mut number = 0;
            let forgets = wire.stateful(&mould, 0, &mut |back: bool| {
                number += u32::from(back);
                !back || number % 10 != 0
            });
            let forgets = forgets.unwrap();
            assert_eq!((forgets.arrived, forgets.validated, forgets.is_whole()), (70_000, 63_000, false));
        }
    }

    #[test]
    fn connections_of_packets_that_are_not_kept_are_refused() {
        let mut wire = Wire::new(Faults::default(), 1).unwrap();
        let large = traffic(true, Protocol::Udp, None, "517");
        let error = wire.stateful(&Mould::new(&large).unwrap(), 0, &mut |_| true).unwrap_err().to_string();
        assert!(error.contains("at most 516 bytes, not of 517"), "{error}");
    }

    #[test]
    fn handshakes_are_whole_in_both_families() {
        for (v6, reset) in [(false, false), (true, true)] {
            let mut wire = Wire::new(Faults::default(), 1).unwrap();
            let mould = kind(v6, Protocol::TcpSyn, 5_000, false);
            let told = wire.handshakes(&mould, Duration::from_secs(30), reset).unwrap();
            assert_eq!((told.begun, told.answered, told.established, told.completed), (5_000, 5_000, 5_000, 5_000));
        }
        let mut wire = Wire::new(Faults { drop: 3_000, ..Faults::default() }, 1).unwrap();
        let told =
            wire.handshakes(&kind(false, Protocol::TcpSyn, 5_000, false), Duration::from_secs(30), false).unwrap();
        assert!(
            told.answered < 5_000 && told.completed < told.established && told.established == told.answered,
            "{told:?}"
        );
    }

    /// As many as a batch holds come back at once, as after a pause, and each connection is ended.
    #[test]
    fn every_connection_is_ended_however_many_come_back_at_once() {
        let pool = Pool::new(1024, 2048, HugePages::Off).unwrap();
        let (mut port, mut peer) = memory::pair(&pool, memory::Config::default());
        let mut magazine = pool.magazine();
        for v6 in [false, true] {
            let mould = kind(v6, Protocol::TcpSyn, 100, false);
            let (mut replies, mut ends) = (Batch::new(), Batch::new());
            let mut frame = magazine.take().unwrap();
            for flow in 0..u32::try_from(BATCH_MAX).unwrap() {
                assert!(mould.write(&mut frame, 0, flow, Stamp { trial: 0, stream: 0, sequence: 0, sent_ns: 0 }));
                let layout = layout::find(frame.bytes()).unwrap();
                turn_segment(frame.bytes_mut(), &layout, SYN | ACK);
                assert!(peer.inject(frame.bytes()));
            }
            magazine.give(frame);
            let established = acknowledge(&mut port, &mut magazine, &mut replies, Some(&mut ends));
            assert_eq!((established, replies.len(), ends.len()), (64, 64, 64));
            for (reply, end) in replies.iter().zip(&ends) {
                let layout = layout::find(reply.bytes()).unwrap();
                let flags = |frame: &Frame| frame.bytes()[layout.transport + 13];
                assert_eq!((flags(reply), flags(end)), (ACK, RST | ACK));
                assert!(layout.is_intact(reply.bytes()) && layout.is_intact(end.bytes()));
                assert_eq!(reply.bytes()[..layout.transport + 12], end.bytes()[..layout.transport + 12]);
            }
            // Nothing more is taken in before they are sent.
            assert!(peer.inject(b"fourteen bytes"));
            assert_eq!(acknowledge(&mut port, &mut magazine, &mut Batch::new(), Some(&mut ends)), 0);
            assert_eq!(port.counters().rx_packets, 64 * (1 + u64::from(v6)) + u64::from(v6));
            replies.drain(..).chain(ends.drain(..)).for_each(|frame| magazine.give(frame));
            acknowledge(&mut port, &mut magazine, &mut replies, Some(&mut ends));
        }
    }

    /// A device that takes so many connections per second, and holds so many.
    fn model(connections: u32, rate: u64, takes: u64, holds: u32) -> Validated {
        let part = if rate <= takes { 1.0 } else { takes as f64 / rate as f64 };
        let validated = u32::try_from(rounded(f64::from(connections) * part)).unwrap().min(holds);
        Validated { connections, begun_per_s: rate as f64, arrived: connections, validated }
    }

    #[test]
    fn rate_and_capacity_of_a_model_are_found() {
        for takes in [900, 54_321, 999_999] {
            let found = establishment_rate(2_000_000, 0.01, |rate| Ok(model(10_000, rate, takes, u32::MAX))).unwrap();
            let figure = found.figure;
            // A rate a hair above loses less than one of ten thousand connections.
            assert!(figure <= takes as f64 * 1.001 && figure >= takes as f64 * 0.985, "{figure} of {takes}");
            assert!(!found.limit_reached);
        }
        assert!(establishment_rate(1000, 0.01, |rate| Ok(model(10, rate, 5000, 99))).unwrap().limit_reached);
        for holds in [1, 999, 65_536, 1_234_567] {
            let found = capacity(1, CONNECTIONS_MAX, 0.001, |count| Ok(model(count, 1, 1, holds))).unwrap();
            assert!(found.figure <= f64::from(holds) && found.figure >= f64::from(holds) * 0.998 - 1.0, "{found:?}");
        }
        assert!(capacity(10, 1000, 0.01, |count| Ok(model(count, 1, 1, u32::MAX))).unwrap().limit_reached);
        assert!(capacity(0, 10, 0.01, |count| Ok(model(count, 1, 1, 1))).is_err());
    }
}
