//! What one gateway has heard of another, and whether that one lives.
//!
//! Owns the last message, when it came, and the proof that it is of now. A message may have been recorded; one that echoes
//! a recent message of ours cannot have been. So a gateway lives while two things hold: it was heard lately, and what was
//! heard echoed something that we said lately. Without the second (it does not hear us, or somebody plays old messages) it
//! counts for nothing: if it truly does not hear us it believes us dead and announces everything, and so do we.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::show::WrongKey;

use super::Nanos;
use super::election::{self, Can};
use super::message::{Id, Message, Part};

/// After this long without life a gateway may come back with an older epoch (a clock set back and its state lost): what it
/// echoes proves that it is of now.
const FORGOTTEN_NS: Nanos = 10_000_000_000;

/// One gateway of the set, or this one.
#[derive(Clone, Debug)]
pub struct Member {
    /// Name of its Node.
    pub name: String,
    /// Its short name.
    pub id: Id,
    /// Where it is sent heartbeats; none of our own.
    pub addresses: Vec<IpAddr>,
    /// This is us.
    pub is_own: bool,
    /// What was heard of it.
    pub last: Option<Last>,
    /// Nanoseconds for which it and we announced the same VIP, as far as known.
    pub dual_owner_ns: u64,
    /// That is so now.
    pub is_dual: bool,
    /// For how long that was so by what it said last before it was proven to live.
    pub unproven_dual_ns: u64,
    /// Heartbeats from its addresses that were not of our key, since the last one that was.
    pub wrong_key: Option<WrongKey>,
}

/// The last that was heard of a gateway.
#[derive(Clone, Debug)]
pub struct Last {
    /// The message, without its part of the holdings.
    pub message: Message,
    /// When it came.
    pub heard_ns: Nanos,
    /// When we said what it has echoed last.
    pub proven_ns: Option<Nanos>,
    holdings: Holdings,
}

/// What a gateway serves, put together from the parts that it tells.
#[derive(Clone, Debug, Default)]
struct Holdings {
    /// All of it, once told from the first part to the last.
    whole: Option<BTreeSet<u32>>,
    parts: BTreeSet<u32>,
    /// First hash of the part that comes next.
    next: Option<u32>,
}

/// How a gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing was heard of it yet.
    Unheard,
    /// It was heard, and is not any more.
    Lost,
    /// It is heard and does not hear us.
    OneWay,
    /// It lives and has nothing to serve with: no tables, or workers that do not turn.
    NotReady,
    /// It lives and gives up what it announces.
    Draining,
    /// It lives.
    Live,
}

impl Member {
    /// A gateway of which nothing is known.
    pub fn new(name: &str, addresses: Vec<IpAddr>, is_own: bool) -> Member {
        let id = election::id(name);
        Member {
            name: name.into(),
            id,
            addresses,
            is_own,
            last: None,
            dual_owner_ns: 0,
            is_dual: false,
            unproven_dual_ns: 0,
            wrong_key: None,
        }
    }

    /// Takes in a message, which echoes one of ours sent at `proof_ns`. False, and nothing taken in: it is older than one
    /// that was heard.
    pub fn hear(&mut self, mut message: Message, proof_ns: Option<Nanos>, now_ns: Nanos) -> bool {
        let part = message.part.take();
        let Some(last) = &mut self.last else {
            let mut holdings = Holdings::default();
            holdings.take(part);
            self.last = Some(Last { message, heard_ns: now_ns, proven_ns: proof_ns, holdings });
            return true;
        };
        let newer = (message.epoch, message.sequence) > (last.message.epoch, last.message.sequence);
        let forgotten = now_ns.saturating_sub(last.heard_ns) >= FORGOTTEN_NS && proof_ns.is_some();
        if !newer && !forgotten {
            return false;
        }
        if message.epoch != last.message.epoch {
            (last.holdings, last.proven_ns) = (Holdings::default(), None);
        }
        last.holdings.take(part);
        last.proven_ns = last.proven_ns.max(proof_ns);
        (last.message, last.heard_ns) = (message, now_ns);
        true
    }

    /// How it is, where a gateway is dead after `dead_after_ns` of silence.
    pub fn state(&self, now_ns: Nanos, dead_after_ns: Nanos) -> State {
        let Some(last) = &self.last else { return State::Unheard };
        if now_ns.saturating_sub(last.heard_ns) >= dead_after_ns {
            return State::Lost;
        }
        if last.proven_ns.is_none_or(|at| now_ns.saturating_sub(at) >= 2 * dead_after_ns) {
            return State::OneWay;
        }
        match &last.message {
            message if !message.ready => State::NotReady,
            message if message.draining => State::Draining,
            _ => State::Live,
        }
    }

    /// When its state changes by silence alone, if it does.
    pub fn expires_ns(&self, now_ns: Nanos, dead_after_ns: Nanos) -> Option<Nanos> {
        let last = self.last.as_ref()?;
        let proven = last.proven_ns.map(|at| at.saturating_add(2 * dead_after_ns));
        [Some(last.heard_ns.saturating_add(dead_after_ns)), proven]
            .into_iter()
            .flatten()
            .filter(|at| *at > now_ns)
            .min()
    }

    /// Whether `vip` lies on a link of it, as it tells.
    pub fn holds(&self, vip: &IpNet) -> bool {
        self.last.as_ref().is_some_and(|last| last.message.prefixes.iter().any(|prefix| prefix.contains(vip)))
    }

    /// Whether it certainly does not serve the VIP with this mark. `vips` is the digest of ours.
    pub fn lacks(&self, mark: u32, vips: u64) -> bool {
        let Some(last) = &self.last else { return false };
        last.message.vips != vips && last.holdings.whole.as_ref().is_some_and(|whole| !whole.contains(&mark))
    }

    /// Its digest of VIPs, if it was heard.
    pub fn vips(&self) -> Option<u64> {
        self.last.as_ref().map(|last| last.message.vips)
    }
}

impl State {
    /// Whether the gateway lives, ready or not.
    pub fn is_alive(self) -> bool {
        matches!(self, State::NotReady | State::Draining | State::Live)
    }

    /// What it can announce.
    pub fn can(self) -> Can {
        match self {
            State::Live => Can::Yes,
            State::Draining => Can::IfNobodyElse,
            _ => Can::Not,
        }
    }

    /// As shown.
    pub fn name(self) -> &'static str {
        match self {
            State::Unheard => "never heard",
            State::Lost => "lost",
            State::OneWay => "one-way",
            State::NotReady => "not ready",
            State::Draining => "draining",
            State::Live => "live",
        }
    }
}

impl Holdings {
    fn take(&mut self, part: Option<Part>) {
        let Some(Part { first, last, hashes }) = part else { return };
        if first == 0 {
            self.parts.clear();
        } else if self.next != Some(first) {
            self.next = None; // one in between was lost; the next round tells it
            return;
        }
        self.parts.extend(hashes);
        self.next = last.checked_add(1);
        if self.next.is_none() {
            self.whole = Some(std::mem::take(&mut self.parts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    fn at(epoch: u64, sequence: u64) -> Message {
        Message { node: "b".into(), epoch, sequence, ready: true, ..Message::default() }
    }

    #[test]
    fn replayed_messages_are_refused_and_a_lost_clock_is_forgiven_in_time() {
        let mut member = Member::new("b", vec![], false);
        assert!(member.hear(at(5, 10), Some(0), MS));
        for (epoch, sequence) in [(5, 10), (5, 9), (4, 99)] {
            assert!(!member.hear(at(epoch, sequence), Some(0), 2 * MS), "{epoch} {sequence}");
        }
        assert!(member.hear(at(5, 12), None, 3 * MS) && member.hear(at(6, 1), None, 4 * MS));
        let later = 5 * MS + FORGOTTEN_NS;
        assert!(!member.hear(at(2, 1), None, later), "without proof it may be a recording for ever");
        assert!(member.hear(at(2, 1), Some(later), later));
    }

    #[test]
    fn life_needs_a_fresh_message_with_a_fresh_echo() {
        let (dead, now) = (300 * MS, 10_000 * MS);
        let mut member = Member::new("b", vec![], false);
        assert_eq!(member.state(now, dead), State::Unheard);
        member.hear(at(1, 1), None, now);
        assert_eq!(member.state(now, dead), State::OneWay);
        member.hear(at(1, 2), Some(now), now + MS);
        assert_eq!(member.state(now + 2 * MS, dead), State::Live);
        assert_eq!(member.expires_ns(now + 2 * MS, dead), Some(now + MS + dead));
        assert_eq!(member.state(now + MS + dead, dead), State::Lost);
        // Heard on and on without an echo: deaf.
        for step in 0..20 {
            member.hear(at(1, 3 + step), None, now + step * 50 * MS);
        }
        assert_eq!(member.state(now + 950 * MS, dead), State::OneWay);
        // A new run has to prove itself anew.
        member.hear(at(2, 1), None, now + 951 * MS);
        assert_eq!(member.state(now + 951 * MS, dead), State::OneWay);
        member.hear(Message { draining: true, ..at(2, 2) }, Some(now + 951 * MS), now + 952 * MS);
        assert_eq!(member.state(now + 952 * MS, dead), State::Draining);
        member.hear(Message { ready: false, ..at(2, 3) }, Some(now + 951 * MS), now + 953 * MS);
        assert_eq!(member.state(now + 953 * MS, dead), State::NotReady);
    }

    #[test]
    fn holdings_are_believed_when_they_are_whole() {
        let part = |first, last, hashes: &[u32]| Some(Part { first, last, hashes: hashes.into() });
        let mut member = Member::new("b", vec![], false);
        let mut sequence = 0;
        let mut tell = |member: &mut Member, part| {
            sequence += 1;
            assert!(member.hear(Message { part, vips: 1, ..at(1, sequence) }, None, MS));
        };
        tell(&mut member, part(0, 9, &[3]));
        assert!(!member.lacks(4, 2) && !member.lacks(77, 2), "not told to the end");
        tell(&mut member, part(20, u32::MAX, &[]));
        assert!(!member.lacks(4, 2), "a part was lost");
        tell(&mut member, part(0, 9, &[3]));
        tell(&mut member, part(10, u32::MAX, &[77]));
        assert!(member.lacks(4, 2) && !member.lacks(3, 2) && !member.lacks(77, 2));
        assert!(!member.lacks(4, 1), "equal digests: it has what we have");
    }
}
