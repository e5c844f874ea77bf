//! The schedule: when to ask whom, and what follows from answers and silence.
//!
//! Owns every target with what it said last. No sockets, no clock: moments and randomness are arguments.
//!
//! - A new target is asked at once, then every second until it answers, for [`EAGER_TRIES`] times: kube-proxy writes its
//!   rules only after the VIP stands in the Service's status. After that, and once it has answered, every [`PERIOD`].
//! - Silence for [`PATIENCE`] is a failure. One failure of a proven way is asked about again at once, the second says that
//!   it has failed. One answer says that it is proven.
//! - At most [`PER_SECOND`] questions leave in a second. With more targets than that allows, the period grows for all.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tidegate_api::message::WayState;

use super::segment::{Answer, Exchange};
use super::{Finding, Target, Way};
use crate::table::Family;

/// Nanoseconds since some moment, never going back.
pub type Nanos = u64;

const SECOND: Nanos = 1_000_000_000;
/// Time between two questions to a target whose state is settled (design 6).
pub const PERIOD: Nanos = 10 * SECOND;
/// The same while it has not answered yet.
pub const PERIOD_EAGER: Nanos = SECOND;
/// How many times that is.
pub const EAGER_TRIES: u32 = 10;
/// How long an answer may take. Three times what a SYN over a bad path in one building takes.
pub const PATIENCE: Nanos = SECOND;
/// Silences in a row after which a way has failed.
pub const FAILURES_MAX: u32 = 2;
/// Questions in a second: a tenth of a core, and 10,000 targets in the normal period.
pub const PER_SECOND: u32 = 1000;
/// Ports that questions leave from. Above those that Linux gives to its own connections by default
/// (net.ipv4.ip_local_port_range), so that no connection of the machine is in the way.
pub const PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

/// Everything that is watched.
#[derive(Debug, Default)]
pub struct Schedule {
    watched: HashMap<Way, Watched>,
    by_service: HashMap<Arc<str>, Vec<Way>>,
    /// When each is due: to be asked, or to have answered.
    due: BTreeSet<(Nanos, Way)>,
    /// Who was asked from which port and has not answered.
    asked: HashMap<(Family, u16), Way>,
    /// Earliest moment for the next question.
    gate: Nanos,
}

#[derive(Debug)]
struct Watched {
    target: Target,
    state: WayState,
    /// Silences since the last answer.
    failures: u32,
    /// The question that is open.
    exchange: Option<Exchange>,
    due: Nanos,
}

/// A question to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// About what and how.
    pub target: Target,
    /// With which numbers.
    pub exchange: Exchange,
}

/// What one step found.
pub type Found = Vec<(Way, Finding)>;

impl Schedule {
    /// From now on, `targets` and no others are watched for `service`.
    pub fn watch(&mut self, service: &Arc<str>, targets: Vec<Target>, now: Nanos) {
        let before = self.by_service.remove(service).unwrap_or_default();
        for way in before.into_iter().filter(|way| !targets.iter().any(|target| target.way == *way)) {
            if let Some(gone) = self.watched.remove(&way) {
                self.due.remove(&(gone.due, way.clone()));
                self.close(&way, gone.exchange);
            }
        }
        let ways: Vec<Way> = targets.iter().map(|target| target.way.clone()).collect();
        for target in targets {
            match self.watched.get_mut(&target.way) {
                Some(watched) if watched.target == target => {}
                Some(watched) => {
                    // Reached in another way: what is known stands until it is asked, now.
                    watched.target = target.clone();
                    self.put_off(&target.way, now);
                }
                None => {
                    let way = target.way.clone();
                    let fresh = Watched { target, state: WayState::Unproven, failures: 0, exchange: None, due: now };
                    self.watched.insert(way.clone(), fresh);
                    self.due.insert((now, way));
                }
            }
        }
        if !ways.is_empty() {
            self.by_service.insert(Arc::clone(service), ways);
        }
    }

    /// What is due: silences that have lasted too long, and at most `questions_max` questions. `random` yields numbers that
    /// nobody can foresee.
    pub fn step(
        &mut self,
        now: Nanos,
        questions_max: usize,
        mut random: impl FnMut() -> u64,
    ) -> (Vec<Question>, Found) {
        let (mut questions, mut found) = (Vec::new(), Found::new());
        while let Some((due, way)) = self.due.first().cloned() {
            if due > now {
                break;
            }
            if self.watched.get(&way).is_some_and(|watched| watched.exchange.is_some()) {
                found.extend(self.silent(&way, now));
                continue;
            }
            if questions.len() >= questions_max || self.gate > now {
                break;
            }
            match self.ask(&way, now, &mut random) {
                Some(question) => questions.push(question),
                None => break,
            }
        }
        (questions, found)
    }

    /// What `answer` says: who it is about with the exchange it ends, and what is found if that is news.
    pub fn answer(&mut self, answer: &Answer, now: Nanos) -> Option<(Question, Option<(Way, Finding)>)> {
        let family = if answer.from.is_ipv4() { Family::V4 } else { Family::V6 };
        let way = self.asked.get(&(family, answer.to_port))?.clone();
        let watched = self.watched.get_mut(&way)?;
        let exchange = watched.exchange.filter(|exchange| answer.fits(&watched.target, *exchange))?;
        let question = Question { target: watched.target.clone(), exchange };
        watched.failures = 0;
        let news = watched.state != WayState::Proven;
        watched.state = WayState::Proven;
        self.put_off(&way, now + PERIOD);
        let finding = Finding { state: WayState::Proven, reason: String::new() };
        Some((question, news.then_some((way, finding))))
    }

    /// When [`Schedule::step`] has something to do again; `None`: nothing is watched.
    pub fn next_due(&self) -> Option<Nanos> {
        self.due.first().map(|(due, _)| *due)
    }

    /// How many targets are watched.
    pub fn len(&self) -> usize {
        self.watched.len()
    }

    /// Whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// Whether an answer is awaited.
    pub fn is_waiting(&self) -> bool {
        !self.asked.is_empty()
    }

    fn ask(&mut self, way: &Way, now: Nanos, random: &mut impl FnMut() -> u64) -> Option<Question> {
        // Of a port that is taken, another is drawn; with all of them taken, whoever is silent frees some soon.
        const DRAWS: u32 = 64;
        let count = u64::from(PORTS.end() - PORTS.start()) + 1;
        let (port, sequence) = (0..DRAWS).find_map(|_| {
            let bits = random();
            let port = PORTS.start() + u16::try_from((bits >> 32) % count).ok()?;
            let taken = self.asked.contains_key(&(way.family, port));
            (!taken).then_some((port, u32::try_from(bits & 0xffff_ffff).ok()?))
        })?;
        let exchange = Exchange { source_port: port, sequence };
        let watched = self.watched.get_mut(way)?;
        let question = Question { target: watched.target.clone(), exchange };
        self.put_off(way, now + PATIENCE);
        if let Some(watched) = self.watched.get_mut(way) {
            watched.exchange = Some(exchange);
        }
        self.asked.insert((way.family, port), way.clone());
        // Kept to a tenth of a second's worth, so that a thread that slept may catch up with that much and no more.
        let step = SECOND / Nanos::from(PER_SECOND);
        self.gate = self.gate.max(now.saturating_sub(SECOND / 10)) + step;
        Some(question)
    }

    /// A question was not answered in time.
    fn silent(&mut self, way: &Way, now: Nanos) -> Option<(Way, Finding)> {
        let watched = self.watched.get_mut(way)?;
        watched.failures = watched.failures.saturating_add(1);
        let failures = watched.failures;
        let (state, again) = match watched.state {
            WayState::Proven if failures < FAILURES_MAX => (WayState::Proven, now),
            WayState::Proven => (WayState::Failed, now + PERIOD_EAGER),
            state if failures < EAGER_TRIES => (state, now + PERIOD_EAGER - PATIENCE),
            state => (state, now + PERIOD - PATIENCE),
        };
        let first = failures == 1 && state == WayState::Unproven;
        let news = first || state != watched.state;
        watched.state = state;
        let finding = Finding { state, reason: reason(&watched.target) };
        self.put_off(way, again);
        news.then(|| (way.clone(), finding))
    }

    /// Ends what is open and makes the target due at `due`.
    fn put_off(&mut self, way: &Way, due: Nanos) {
        let Some(watched) = self.watched.get_mut(way) else { return };
        self.due.remove(&(watched.due, way.clone()));
        watched.due = due;
        self.due.insert((due, way.clone()));
        let exchange = watched.exchange.take();
        self.close(way, exchange);
    }

    fn close(&mut self, way: &Way, exchange: Option<Exchange>) {
        if let Some(exchange) = exchange {
            self.asked.remove(&(way.family, exchange.source_port));
        }
    }
}

/// What to look at when a node does not answer, the usual cause first.
fn reason(target: &Target) -> String {
    let Target { way, vip, ours, peer } = target;
    let first = match way.family {
        Family::V4 => "rp_filter of its VXLAN device must be 0 or 2 (1 drops clients' addresses)",
        Family::V6 => "no firewall rule there may drop clients' addresses on its VXLAN device",
    };
    format!(
        "no answer from {vip} port {} over node {} ({}): {first}; its kube-proxy must have rules for {vip}; the underlay \
         must let it answer from {vip} to {}",
        way.port, way.node, peer.underlay, ours.underlay
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::segment::tests::target;
    use crate::wire::tcp;

    const MS: Nanos = 1_000_000;

    fn random() -> impl FnMut() -> u64 {
        let mut entropy = crate::state::Entropy::new(7);
        move || entropy.draw()
    }

    fn answer(question: &Question) -> Answer {
        Answer {
            from: question.target.vip,
            from_port: question.target.way.port,
            to_port: question.exchange.source_port,
            flags: tcp::SYN | tcp::ACK,
            acknowledgment: question.exchange.sequence.wrapping_add(1),
        }
    }

    /// A schedule, its time, and nodes that answer or not.
    struct Trial {
        schedule: Schedule,
        now: Nanos,
        random: Box<dyn FnMut() -> u64>,
        asked: u32,
    }

    impl Trial {
        fn new(targets: Vec<Target>) -> Trial {
            let mut schedule = Schedule::default();
            schedule.watch(&"shop/web".into(), targets, 0);
            Trial { schedule, now: 0, random: Box::new(random()), asked: 0 }
        }

        /// Lets `seconds` go by in steps of 50 ms; nodes in `alive` answer at once.
        fn pass(&mut self, seconds: u64, alive: &[&str]) -> Found {
            let mut all = Found::new();
            for _ in 0..seconds * 20 {
                self.now += 50 * MS;
                let (questions, found) = self.schedule.step(self.now, 100, &mut self.random);
                all.extend(found);
                for question in questions {
                    self.asked += 1;
                    if alive.contains(&&*question.target.way.node) {
                        let (back, found) = self.schedule.answer(&answer(&question), self.now).unwrap();
                        assert_eq!(back, question);
                        all.extend(found);
                    }
                }
            }
            all
        }
    }

    fn states(found: &Found) -> Vec<(&str, WayState)> {
        found.iter().map(|(way, finding)| (&*way.node, finding.state)).collect()
    }

    #[test]
    fn a_node_is_proven_by_one_answer_and_failed_by_two_silences() {
        for family in [Family::V4, Family::V6] {
            let mut trial = Trial::new(vec![target(family, "w1"), target(family, "w2")]);
            let found = trial.pass(1, &["w1"]);
            assert_eq!(states(&found), [("w1", WayState::Proven)]);
            let found = trial.pass(1, &["w1"]);
            assert_eq!(states(&found), [("w2", WayState::Unproven)], "its reason is news");
            assert!(
                found[0].1.reason.contains("kube-proxy") && found[0].1.reason.contains("w2"),
                "{}",
                found[0].1.reason
            );
            assert_eq!(found[0].1.reason.contains("rp_filter"), family == Family::V4);
            assert!(trial.pass(40, &["w1"]).is_empty(), "nothing new");
            // A silence that is over when it is asked again is no news; two are.
            trial.pass(10, &["w1"]);
            let found = trial.pass(13, &[]);
            assert_eq!(states(&found), [("w1", WayState::Failed)], "within a period and two patiences");
            let found = trial.pass(13, &["w1", "w2"]);
            let mut found = states(&found);
            found.sort_unstable_by_key(|(node, _)| *node);
            assert_eq!(found, [("w1", WayState::Proven), ("w2", WayState::Proven)]);
        }
    }

    #[test]
    fn questions_are_eager_at_first_and_then_every_ten_seconds() {
        let mut trial = Trial::new(vec![target(Family::V4, "w1")]);
        trial.pass(10, &[]);
        assert!((9..=11).contains(&trial.asked), "{}", trial.asked);
        trial.asked = 0;
        trial.pass(100, &[]);
        assert!((9..=12).contains(&trial.asked), "{}", trial.asked);
        trial.asked = 0;
        trial.pass(100, &["w1"]);
        assert!((9..=11).contains(&trial.asked), "{}", trial.asked);
    }

    #[test]
    fn an_answer_to_another_question_says_nothing() {
        let mut trial = Trial::new(vec![target(Family::V4, "w1")]);
        let (questions, _) = trial.schedule.step(MS, 1, &mut trial.random);
        let right = answer(&questions[0]);
        for wrong in [
            Answer { acknowledgment: right.acknowledgment ^ 1, ..right },
            Answer { to_port: right.to_port ^ 1, ..right },
            Answer { from: "203.0.113.99".parse().unwrap(), ..right },
        ] {
            assert!(trial.schedule.answer(&wrong, MS).is_none());
        }
        assert!(trial.schedule.answer(&right, MS).is_some());
        assert!(trial.schedule.answer(&right, MS).is_none(), "once");
        assert!(!trial.schedule.is_waiting());
    }

    #[test]
    fn the_rate_is_bounded_and_everybody_has_a_turn() {
        let targets: Vec<Target> = (0..3000).map(|n| target(Family::V6, &format!("w{n}"))).collect();
        let mut trial = Trial::new(targets);
        trial.pass(1, &[]);
        assert!(trial.asked <= PER_SECOND * 11 / 10, "{} in the first second", trial.asked);
        let mut nodes = BTreeSet::new();
        for _ in 0..200 {
            trial.now += 50 * MS;
            let (questions, _) = trial.schedule.step(trial.now, usize::MAX, &mut trial.random);
            nodes.extend(questions.into_iter().map(|question| question.target.way.node));
        }
        assert!(nodes.len() > 1900, "{} asked in ten seconds", nodes.len());
        assert!(trial.schedule.asked.len() <= usize::try_from(PER_SECOND).unwrap() * 12 / 10);
    }

    #[test]
    fn what_is_no_longer_watched_leaves_nothing() {
        let service: Arc<str> = "shop/web".into();
        let mut trial = Trial::new(vec![target(Family::V4, "w1"), target(Family::V6, "w1")]);
        let (questions, _) = trial.schedule.step(MS, 9, &mut trial.random);
        assert_eq!(questions.len(), 2);
        trial.schedule.watch(&service, vec![target(Family::V6, "w1")], MS);
        let v4 = questions.iter().find(|question| question.target.way.family == Family::V4).unwrap();
        assert!(trial.schedule.answer(&answer(v4), MS).is_none());
        assert_eq!(trial.schedule.len(), 1);
        // Reached in another way: asked again at once, and the old answer is not believed.
        let mut moved = target(Family::V6, "w1");
        moved.vip = "2001:db8:f::11".parse().unwrap();
        trial.schedule.watch(&service, vec![moved], 2 * MS);
        assert_eq!(trial.schedule.next_due(), Some(2 * MS));
        trial.schedule.watch(&service, vec![], 3 * MS);
        assert!(trial.schedule.is_empty() && trial.schedule.next_due().is_none() && !trial.schedule.is_waiting());
        assert!(trial.schedule.due.is_empty() && trial.schedule.by_service.is_empty());
    }
}
