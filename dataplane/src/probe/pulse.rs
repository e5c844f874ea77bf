//! The pulse of nodes: is one there at all?
//!
//! Owns when each node is asked and what follows from answers and silence. No sockets, no clock: moments and randomness are
//! arguments. It knows nothing of Services: a [`Way`](super::Way) says what a node delivers, a pulse that it lives.
//!
//! A worker that dies without a word stays in EndpointSlices until the node controller has waited for it, forty seconds by
//! default. Meanwhile new flows would go there and time out. So every peer's underlay address is asked every two seconds
//! by an ordinary SYN, at a port where kube-proxy listens (S-114): that of its own health, or of a Service's health check.
//!
//! ```text
//!   never answered ──answer──► answers ──two silences──► suspected ──answer──► answers
//! ```
//!
//! - *Anything that knows our number is an answer*, a reset too: whoever refuses a port lives. What kube-proxy delivers is
//!   the ways' question.
//! - *Who has never answered is not suspected*: a firewall that drops our questions looks the same as a dead node. Such a
//!   node is asked seldom and at each port in turn.
//! - A suspicion is no verdict. Whoever uses it takes it for a reason to go elsewhere while there is an elsewhere.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::schedule::Nanos;
use super::segment::{Answer, Exchange};
use crate::table::Family;

const SECOND: Nanos = 1_000_000_000;
/// Time between two questions to a node that answers (S-114).
pub const PERIOD: Nanos = 2 * SECOND;
/// The same for one that is suspected, and at first.
pub const PERIOD_EAGER: Nanos = SECOND;
/// The same for one that has not answered [`EAGER_TRIES`] times and never did.
pub const PERIOD_MUTE: Nanos = 10 * SECOND;
/// Questions at first, several for each port.
pub const EAGER_TRIES: u32 = 6;
/// How long an answer may take: a kernel answers by itself, nobody has to be scheduled for it.
pub const PATIENCE: Nanos = SECOND;
/// Silences in a row after which a node is suspected (S-114).
pub const SILENCES_MAX: u32 = 2;
/// How long a node is silent at least before it is suspected.
pub const SUSPECTED_AFTER: Nanos = PATIENCE * SILENCES_MAX as Nanos;
/// Questions in a second; with more nodes than that allows, the period grows for all.
pub const PER_SECOND: u32 = 1000;
/// Ports that one node is asked at.
pub const PORTS_MAX: usize = 4;

/// Whose pulse: a node and a family of its underlay.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pulse {
    /// Name of the node.
    pub node: Arc<str>,
    /// Family of both addresses.
    pub family: Family,
}

/// How to feel it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrist {
    /// Whose it is.
    pub pulse: Pulse,
    /// Our underlay address.
    pub ours: IpAddr,
    /// The node's.
    pub theirs: IpAddr,
    /// TCP ports to ask at, in turn while none answers, host order. At most [`PORTS_MAX`] are used; none: nothing is asked.
    pub ports: Vec<u16>,
}

/// A node became suspected (true), or answers again.
pub type Felt = Vec<(Pulse, bool)>;

/// A question to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Our address.
    pub ours: IpAddr,
    /// The node's.
    pub theirs: IpAddr,
    /// The node's port, host order.
    pub port: u16,
    /// With which numbers.
    pub exchange: Exchange,
}

/// All nodes that are felt.
#[derive(Debug, Default)]
pub struct Pulses {
    nodes: HashMap<Pulse, Node>,
    by_address: HashMap<IpAddr, Pulse>,
    /// When each is due: to be asked, or to have answered.
    due: BTreeSet<(Nanos, Pulse)>,
    /// Earliest moment for the next question.
    gate: Nanos,
    /// Questions that are open.
    open: usize,
}

#[derive(Debug)]
struct Node {
    wrist: Wrist,
    state: State,
    /// Silences since the last answer.
    silences: u32,
    /// Which port is asked next.
    turn: usize,
    open: Option<(u16, Exchange)>,
    due: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Mute,
    Answers,
    Suspected,
}

impl Pulses {
    /// From now on these nodes and no others are felt. Of one that is not felt any more nothing is told: who ended that
    /// knows.
    pub fn watch(&mut self, wrists: Vec<Wrist>, now: Nanos) {
        let wrists: HashMap<Pulse, Wrist> = wrists
            .into_iter()
            .filter(|wrist| !wrist.ports.is_empty() && wrist.ours.is_ipv4() == wrist.theirs.is_ipv4())
            .map(|wrist| (wrist.pulse.clone(), wrist))
            .collect();
        let gone: Vec<Pulse> = self.nodes.keys().filter(|pulse| !wrists.contains_key(*pulse)).cloned().collect();
        for pulse in gone {
            self.close(&pulse);
            if let Some(node) = self.nodes.remove(&pulse) {
                self.due.remove(&(node.due, pulse));
            }
        }
        self.by_address = wrists.values().map(|wrist| (wrist.theirs, wrist.pulse.clone())).collect();
        for (pulse, wrist) in wrists {
            match self.nodes.get_mut(&pulse) {
                Some(node) if node.wrist == wrist => {}
                Some(node) => {
                    // Asked in another way: what is known stands until it is asked, now.
                    (node.wrist, node.turn) = (wrist, 0);
                    self.put_off(&pulse, now);
                }
                None => {
                    let fresh = Node { wrist, state: State::Mute, silences: 0, turn: 0, open: None, due: now };
                    self.nodes.insert(pulse.clone(), fresh);
                    self.due.insert((now, pulse));
                }
            }
        }
    }

    /// What is due: silences that have lasted too long, and at most `questions_max` questions. `random` yields numbers that
    /// nobody can foresee.
    pub fn step(&mut self, now: Nanos, questions_max: usize, mut random: impl FnMut() -> u64) -> (Vec<Touch>, Felt) {
        let (mut touches, mut felt) = (Vec::new(), Felt::new());
        while let Some((due, pulse)) = self.due.first().cloned() {
            if due > now {
                break;
            }
            if self.nodes.get(&pulse).is_some_and(|node| node.open.is_some()) {
                felt.extend(self.silent(&pulse, now));
                continue;
            }
            if touches.len() >= questions_max || self.gate > now {
                break;
            }
            match self.ask(&pulse, now, random()) {
                Some(touch) => touches.push(touch),
                None => break,
            }
        }
        (touches, felt)
    }

    /// Whether `answer` is one to a question of ours, and what is news by it.
    pub fn answer(&mut self, answer: &Answer, now: Nanos) -> Option<Felt> {
        let pulse = self.by_address.get(&answer.from)?.clone();
        let node = self.nodes.get_mut(&pulse)?;
        let (port, exchange) = node.open?;
        if answer.from_port != port || !answer.knows(exchange) {
            return None;
        }
        let news = node.state == State::Suspected;
        (node.state, node.silences) = (State::Answers, 0);
        self.put_off(&pulse, now + PERIOD);
        Some(if news { vec![(pulse, false)] } else { Felt::new() })
    }

    /// When [`Pulses::step`] has something to do again; `None`: nobody is felt.
    pub fn next_due(&self) -> Option<Nanos> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Whether nobody is felt.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether an answer is awaited.
    pub fn is_waiting(&self) -> bool {
        self.open > 0
    }

    fn ask(&mut self, pulse: &Pulse, now: Nanos, bits: u64) -> Option<Touch> {
        let ports = super::schedule::PORTS;
        let count = u64::from(ports.end() - ports.start()) + 1;
        // Several nodes may be asked from one port: answers differ by who sends them.
        let source_port = ports.start() + u16::try_from((bits >> 32) % count).ok()?;
        let exchange = Exchange { source_port, sequence: u32::try_from(bits & 0xffff_ffff).ok()? };
        self.put_off(pulse, now + PATIENCE);
        let node = self.nodes.get_mut(pulse)?;
        let used = node.wrist.ports.len().min(PORTS_MAX);
        let port = *node.wrist.ports.get(node.turn % used.max(1))?;
        node.open = Some((port, exchange));
        self.open += 1;
        let step = SECOND / Nanos::from(PER_SECOND);
        self.gate = self.gate.max(now.saturating_sub(SECOND / 10)) + step;
        Some(Touch { ours: node.wrist.ours, theirs: node.wrist.theirs, port, exchange })
    }

    /// A question was not answered in time.
    fn silent(&mut self, pulse: &Pulse, now: Nanos) -> Option<(Pulse, bool)> {
        let node = self.nodes.get_mut(pulse)?;
        node.silences = node.silences.saturating_add(1);
        node.turn = node.turn.wrapping_add(1);
        let before = node.state;
        let again = match node.state {
            State::Answers if node.silences < SILENCES_MAX => now,
            State::Answers => {
                node.state = State::Suspected;
                now + PERIOD_EAGER - PATIENCE
            }
            State::Suspected => now + PERIOD_EAGER - PATIENCE,
            State::Mute if node.silences < EAGER_TRIES => now + PERIOD_EAGER - PATIENCE,
            State::Mute => now + PERIOD_MUTE - PATIENCE,
        };
        let news = before != node.state;
        self.put_off(pulse, again);
        news.then(|| (pulse.clone(), true))
    }

    /// Ends what is open and makes the node due at `due`.
    fn put_off(&mut self, pulse: &Pulse, due: Nanos) {
        self.close(pulse);
        let Some(node) = self.nodes.get_mut(pulse) else { return };
        self.due.remove(&(node.due, pulse.clone()));
        node.due = due;
        self.due.insert((due, pulse.clone()));
    }

    fn close(&mut self, pulse: &Pulse) {
        if self.nodes.get_mut(pulse).and_then(|node| node.open.take()).is_some() {
            self.open -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tcp;

    const MS: Nanos = 1_000_000;

    fn wrist(family: Family, number: u8, ports: &[u16]) -> Wrist {
        let address = |number: u8| -> IpAddr {
            match family {
                Family::V4 => format!("198.51.100.{number}").parse().unwrap(),
                Family::V6 => format!("2001:db8:2::{number:x}").parse().unwrap(),
            }
        };
        let pulse = Pulse { node: format!("w{number}").into(), family };
        Wrist { pulse, ours: address(1), theirs: address(number + 10), ports: ports.to_vec() }
    }

    /// Nodes with their ports that answer, and how.
    type Alive<'a> = &'a [(&'a str, u16, u8)];

    struct Trial {
        pulses: Pulses,
        now: Nanos,
        entropy: crate::state::Entropy,
        asked: Vec<Touch>,
    }

    impl Trial {
        fn new(wrists: Vec<Wrist>) -> Trial {
            let mut pulses = Pulses::default();
            pulses.watch(wrists, 0);
            Trial { pulses, now: 0, entropy: crate::state::Entropy::new(3), asked: Vec::new() }
        }

        /// Lets time go by in steps of 50 ms; news with the moment they came.
        fn pass(&mut self, seconds: u64, alive: Alive<'_>) -> Vec<(u64, String, bool)> {
            let mut all = Vec::new();
            let began = self.now;
            for _ in 0..seconds * 20 {
                self.now += 50 * MS;
                let (touches, mut felt) = self.pulses.step(self.now, 100, || self.entropy.draw());
                for touch in touches {
                    let name = self.pulses.by_address[&touch.theirs].node.to_string();
                    if let Some((_, _, flags)) =
                        alive.iter().find(|(node, port, _)| *node == name && *port == touch.port)
                    {
                        felt.extend(self.pulses.answer(&answer(&touch, *flags), self.now).unwrap());
                    }
                    self.asked.push(touch);
                }
                let at_ms = (self.now - began) / MS;
                all.extend(felt.into_iter().map(|(pulse, suspected)| (at_ms, pulse.node.to_string(), suspected)));
            }
            all
        }
    }

    fn answer(touch: &Touch, flags: u8) -> Answer {
        Answer {
            from: touch.theirs,
            from_port: touch.port,
            to_port: touch.exchange.source_port,
            flags,
            acknowledgment: touch.exchange.sequence.wrapping_add(1),
        }
    }

    const OPEN: u8 = tcp::SYN | tcp::ACK;
    const REFUSED: u8 = tcp::RST | tcp::ACK;

    // S-114: two seconds, two failures.
    #[test]
    fn a_node_that_falls_silent_is_suspected_in_seconds_and_back_when_it_answers() {
        for family in [Family::V4, Family::V6] {
            for flags in [OPEN, REFUSED] {
                let mut trial = Trial::new(vec![wrist(family, 1, &[10256]), wrist(family, 2, &[10256])]);
                let both: Alive = &[("w1", 10256, flags), ("w2", 10256, flags)];
                assert_eq!(trial.pass(20, both), []);
                assert!((18..=22).contains(&trial.asked.len()), "{}: one in two seconds each", trial.asked.len());
                let news = trial.pass(10, &both[..1]);
                assert_eq!(news.len(), 1, "{news:?}");
                assert!(news[0].0 <= 4200 && (news[0].1.as_str(), news[0].2) == ("w2", true), "{news:?}");
                let news = trial.pass(5, both);
                assert!(news.len() == 1 && news[0].0 <= 1200 && !news[0].2, "{news:?}");
            }
        }
    }

    #[test]
    fn one_silence_is_no_suspicion_and_who_never_answered_has_none() {
        let mut trial = Trial::new(vec![wrist(Family::V4, 1, &[10256])]);
        assert_eq!(trial.pass(100, &[]), [], "a firewall looks like this");
        assert!(trial.asked.len() < 20, "{}: seldom", trial.asked.len());
        trial.pass(20, &[("w1", 10256, OPEN)]);
        for _ in 0..10 {
            // Silent for one question only.
            while trial.pulses.is_empty() || !trial.pulses.is_waiting() {
                trial.now += 50 * MS;
                trial.pulses.step(trial.now, 1, || 7);
            }
            assert_eq!(trial.pass(5, &[("w1", 10256, OPEN)]), []);
        }
    }

    #[test]
    fn ports_are_tried_in_turn_and_the_one_that_answers_is_kept() {
        let mut trial = Trial::new(vec![wrist(Family::V6, 1, &[10256, 32_000, 32_001])]);
        let alive: Alive = &[("w1", 32_000, REFUSED)];
        trial.pass(5, alive);
        trial.asked.clear();
        assert_eq!(trial.pass(20, alive), []);
        assert!(trial.asked.iter().all(|touch| touch.port == 32_000), "{:?}", trial.asked);
        // That port is closed off: another says that the node lives, before it is suspected.
        assert_eq!(trial.pass(20, &[("w1", 32_001, OPEN), ("w1", 10256, OPEN)]), []);
    }

    #[test]
    fn an_answer_to_another_question_says_nothing() {
        let mut trial = Trial::new(vec![wrist(Family::V4, 1, &[10256])]);
        let (touches, _) = trial.pulses.step(MS, 1, || 0x1234_5678_9abc_def0);
        let right = answer(&touches[0], OPEN);
        for wrong in [
            Answer { acknowledgment: right.acknowledgment ^ 1, ..right },
            Answer { to_port: right.to_port ^ 1, ..right },
            Answer { from_port: 80, ..right },
            Answer { from: "198.51.100.77".parse().unwrap(), ..right },
            Answer { flags: tcp::ACK, ..right },
        ] {
            assert_eq!(trial.pulses.answer(&wrong, MS), None, "{wrong:?}");
        }
        assert_eq!(trial.pulses.answer(&right, MS), Some(vec![]));
        assert_eq!(trial.pulses.answer(&right, MS), None, "once");
        assert!(!trial.pulses.is_waiting());
    }

    #[test]
    fn the_rate_is_bounded_and_who_is_not_felt_any_more_leaves_nothing() {
        let many = |number: u32| Wrist {
            pulse: Pulse { node: format!("n{number}").into(), family: Family::V6 },
            ours: "2001:db8::1".parse().unwrap(),
            theirs: std::net::Ipv6Addr::from(u128::from(number) + (0xfd00 << 112)).into(),
            ports: vec![1],
        };
        let mut trial = Trial::new((0..3000).map(many).collect());
        trial.pass(1, &[]);
        assert!(trial.asked.len() <= usize::try_from(PER_SECOND).unwrap() * 11 / 10, "{}", trial.asked.len());
        trial.pulses.watch(vec![many(1)], trial.now);
        assert!(trial.pulses.open <= 1 && trial.pulses.due.len() == 1 && trial.pulses.by_address.len() == 1);
        trial.pulses.watch(vec![Wrist { ports: vec![], ..many(1) }], trial.now);
        assert!(trial.pulses.is_empty() && trial.pulses.next_due().is_none() && !trial.pulses.is_waiting());
    }
}
