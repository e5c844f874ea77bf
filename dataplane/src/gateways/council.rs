//! What one gateway knows of the others, and what it decides.
//!
//! Owns members, VIPs and the state of announcing; it is told what came, what time it is and what has been done, and says
//! what to do and what to send. It knows no socket and no clock, so that whole sets of councils run in a simulation.
//!
//! The rules, each of which is one line below:
//!
//! 1. *Claim at once*: whoever is the owner of a VIP by what it hears announces it.
//! 2. *Yield last*: whoever is not the owner goes on until the owner's own heartbeat says that it announces: that its view,
//!    which its announcements reckon with, makes it the owner. So a VIP that changes hands is announced by two for a moment,
//!    and never by nobody.
//! 3. *Listen first*: a gateway that begins, or learns of another, claims nothing new until all are heard or their time is
//!    over.
//! 4. *Who does not serve a VIP does not own it*: a gateway whose digest of VIPs differs tells which it has. One that has
//!    not caught up within [`GRACE_NS`] (its control is gone, say) is passed over for what it lacks. It tells of a VIP when
//!    it has done what it decided about it, since whoever stood in yields by that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::show::WrongKey;

use super::election::{self, Can};
use super::liveness::{Member, State};
use super::message::{GATEWAYS_MAX, Id, Message, Refusal, Seat};
use super::{Nanos, Site};

/// What is said to the others, and when.
mod say;
/// VIPs that another gateway announces as we do.
mod dual;
/// What one gateway knows, for people.
mod show;

/// A VIP that another gateway lacks is its own affair for so long: Services reach gateways at different moments.
pub const GRACE_NS: Nanos = 1_000_000_000;
/// Least time between two messages: news travel at once, and not in bursts.
const GAP_NS: Nanos = 10_000_000;

/// How this gateway takes part.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of its Node.
    pub node: String,
    /// When this run began, nanoseconds since 1970, later than any run before.
    pub epoch: u64,
    /// Between two heartbeats.
    pub interval_ns: Nanos,
    /// Silence after which a gateway is dead.
    pub dead_after_ns: Nanos,
    /// Why it stays alone; `None`: it has a key and speaks with others.
    pub alone: Option<String>,
}

/// What to announce from now on, and what no longer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Decisions are numbered from 1.
    pub number: u64,
    /// VIPs to announce no longer.
    pub withdraw: Vec<IpNet>,
    /// VIPs to announce after that, and whether they are new: then strangers are asked about before, otherwise meanwhile.
    pub announce: Vec<(IpNet, bool)>,
}

/// How far behind the newest one a heartbeat may be that is taken for the same one by another way. It changes nothing.
const REPEATED_WITHIN: u64 = 64;

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Heartbeats sent, one for each address of each gateway.
    pub sent: u64,
    /// Heartbeats taken in.
    pub heard: u64,
    /// The same ones once more: each is sent to every address of a gateway.
    pub repeated: u64,
    /// Datagrams that are no message.
    pub malformed: u64,
    /// Of a version that is not spoken here.
    pub version: u64,
    /// Without a tag of our key.
    pub wrong_key: u64,
    /// Older than what was heard before.
    pub replayed: u64,
    /// Of a gateway that is not in the set.
    pub stranger: u64,
    /// Under our own name.
    pub namesake: u64,
    /// VIPs taken over from others, or found without an owner.
    pub taken_over: u64,
    /// VIPs given to others.
    pub yielded: u64,
}

#[derive(Clone, Debug)]
struct Vip {
    /// Numbers of members, in the order in which they should announce it.
    order: Vec<u8>,
    mark: u32,
    since_ns: Nanos,
    /// It came after this gateway had settled, and was never announced here.
    is_new: bool,
    announced: bool,
    /// When that was decided last.
    decided_ns: Nanos,
}

/// One gateway's knowledge and decisions.
#[derive(Debug)]
pub struct Council {
    settings: Settings,
    id: Id,
    /// Fingerprint of the key that heartbeats are sent with.
    key: Option<String>,
    /// All gateways of the set in the order of names, this one among them.
    members: Vec<Member>,
    site: Site,
    vips: BTreeMap<IpNet, Vip>,
    /// Under whose name VIPs are elected that have the same owner as others.
    groups: BTreeMap<IpNet, IpNet>,
    /// How many VIPs have a mark.
    marks: BTreeMap<u32, u32>,
    vips_digest: u64,
    /// VIPs that the others are not told of: which decision looked at each, if one did.
    untold: BTreeMap<IpNet, Option<u64>>,
    /// Digest of the others.
    told_digest: u64,
    generation: u64,
    objects: u64,
    healthy: bool,
    draining: bool,
    /// Until then nothing new is claimed, unless all are heard before; `None`: settled.
    listens_until_ns: Option<Nanos>,
    /// It has settled once: others may count on it.
    has_settled: bool,
    /// All VIPs are to be looked at again.
    stale: bool,
    /// These are.
    touched: BTreeSet<IpNet>,
    /// These are there no more, or others under the same address, and were announced.
    removed: Vec<IpNet>,
    decided: Vec<Seat>,
    decisions: u64,
    /// Decisions on their way to the links, with their views.
    outstanding: VecDeque<(u64, Vec<Seat>)>,
    acted: Vec<Seat>,
    acted_since_ns: Nanos,
    announced: u32,
    withheld: u32,
    sequence: u64,
    /// Low halves of sequence numbers and when they were sent, as far back as an echo proves anything.
    sent: VecDeque<(u32, Nanos)>,
    last_sent_ns: Option<Nanos>,
    /// There is news to send.
    hurry: bool,
    /// First hash of the next part of the holdings.
    part_from: u32,
    dual_owner_ns: u64,
    dual_looked_ns: Nanos,
    /// What is counted.
    pub counts: Counts,
}

impl Council {
    /// A gateway that knows nobody yet.
    pub fn new(settings: Settings) -> Council {
        let own = Member::new(&settings.node, Vec::new(), true);
        Council {
            id: own.id,
            key: None,
            members: vec![own],
            settings,
            site: Site::default(),
            vips: BTreeMap::new(),
            groups: BTreeMap::new(),
            marks: BTreeMap::new(),
            vips_digest: 0,
            untold: BTreeMap::new(),
            told_digest: 0,
            generation: 0,
            objects: 0,
            healthy: true,
            draining: false,
            listens_until_ns: None,
            has_settled: false,
            stale: true,
            touched: BTreeSet::new(),
            removed: Vec::new(),
            decided: Vec::new(),
            decisions: 0,
            outstanding: VecDeque::new(),
            acted: Vec::new(),
            acted_since_ns: 0,
            announced: 0,
            withheld: 0,
            sequence: 0,
            sent: VecDeque::new(),
            last_sent_ns: None,
            hurry: true,
            part_from: 0,
            dual_owner_ns: 0,
            dual_looked_ns: 0,
            counts: Counts::default(),
        }
    }

    /// The machine or the set is another one.
    pub fn site(&mut self, site: Site, now_ns: Nanos) {
        let named = |member: &Member| !member.is_own;
        let before: BTreeSet<String> =
            self.members.iter().filter(|member| named(member)).map(|m| m.name.clone()).collect();
        let mut wanted: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
        if self.settings.alone.is_none() {
            let others = site.others.iter().filter(|other| other.node != self.settings.node);
            wanted.extend(others.take(GATEWAYS_MAX - 1).map(|other| (other.node.as_str(), other.addresses.clone())));
        }
        let after: BTreeSet<String> = wanted.keys().map(|name| (*name).to_owned()).collect();
        for member in self.members.iter_mut().filter(|member| named(member)) {
            if let Some(addresses) = wanted.remove(member.name.as_str()) {
                member.addresses = addresses;
            }
        }
        self.members.retain(|member| member.is_own || after.contains(&member.name));
        if wanted.keys().len() > 0 {
            self.listens_until_ns = Some(now_ns.saturating_add(self.settings.dead_after_ns));
        }
        self.members.extend(wanted.into_iter().map(|(name, addresses)| Member::new(name, addresses, false)));
        self.members.sort_by(|a, b| a.name.cmp(&b.name));
        self.site = site;
        if before != after {
            self.order();
        }
        (self.stale, self.hurry) = (true, true);
    }

    /// These VIPs are elected under the name of another.
    pub fn groups(&mut self, groups: BTreeMap<IpNet, IpNet>) {
        if groups != self.groups {
            self.groups = groups;
            self.order();
            (self.stale, self.hurry) = (true, true);
        }
    }

    fn order(&mut self) {
        let names: Vec<&str> = self.members.iter().map(|member| member.name.as_str()).collect();
        for (prefix, vip) in &mut self.vips {
            vip.order = election::order(names.iter().copied(), self.groups.get(prefix).unwrap_or(prefix));
        }
    }

    /// These VIPs lie on a link now, or do not any more.
    pub fn vips(&mut self, changes: impl IntoIterator<Item = (IpNet, bool)>, now_ns: Nanos) {
        for (prefix, there) in changes {
            if there == self.vips.contains_key(&prefix) {
                continue;
            }
            let mark = election::mark(&prefix);
            self.touched.insert(prefix);
            if there {
                let named = self.groups.get(&prefix).unwrap_or(&prefix);
                let order = election::order(self.members.iter().map(|member| member.name.as_str()), named);
                let is_new = self.has_settled;
                let vip = Vip { order, mark, since_ns: now_ns, is_new, announced: false, decided_ns: now_ns };
                self.vips.insert(prefix, vip);
                *self.marks.entry(mark).or_default() += 1;
                self.vips_digest = self.vips_digest.wrapping_add(spread(mark));
                self.untold.insert(prefix, None);
            } else {
                let before = self.vips.remove(&prefix);
                self.removed.extend(before.filter(|vip| vip.announced).map(|_| prefix));
                if let Some(count) = self.marks.get_mut(&mark) {
                    *count -= 1;
                    if *count == 0 {
                        self.marks.remove(&mark);
                    }
                }
                self.vips_digest = self.vips_digest.wrapping_sub(spread(mark));
                if self.untold.remove(&prefix).is_none() {
                    self.told_digest = self.told_digest.wrapping_sub(spread(mark));
                }
            }
        }
    }

    /// This generation was published, of objects with this digest.
    pub fn published(&mut self, generation: u64, objects: u64) {
        (self.generation, self.objects) = (generation, objects);
    }

    /// Whether the workers turn.
    pub fn set_healthy(&mut self, healthy: bool) {
        if healthy != self.healthy {
            (self.healthy, self.stale, self.hurry) = (healthy, true, true);
        }
    }

    /// Gives up what is announced to others, or takes that back.
    pub fn drain(&mut self, draining: bool) {
        if draining != self.draining {
            (self.draining, self.stale, self.hurry) = (draining, true, true);
        }
    }

    /// Whether it gives up what is announced.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether there are tables.
    pub fn has_tables(&self) -> bool {
        self.site.has_tables
    }

    /// Heartbeats are sent with the key of this fingerprint.
    pub fn set_key(&mut self, fingerprint: String) {
        self.key = Some(fingerprint);
    }

    /// A datagram from an address that is no message of our set.
    pub fn refuse(&mut self, refusal: Refusal, from: IpAddr) {
        match refusal {
            Refusal::Malformed => self.counts.malformed += 1,
            Refusal::Version(_) => self.counts.version += 1,
            Refusal::WrongKey => {
                self.counts.wrong_key += 1;
                if let Some(member) = self.members.iter_mut().find(|member| member.addresses.contains(&from)) {
                    let count = member.wrong_key.as_ref().map_or(0, |wrong| wrong.count);
                    member.wrong_key = Some(WrongKey { from, count: count + 1 });
                }
            }
        }
    }

    /// Takes in what another gateway says.
    ///
    /// # Errors
    /// Why it is not believed, for people.
    pub fn hear(&mut self, message: Message, now_ns: Nanos) -> Result<(), &'static str> {
        let proof_ns = self.proof(&message);
        let dead_after_ns = self.settings.dead_after_ns;
        let Some(number) = self.members.iter().position(|member| member.name == message.node) else {
            self.counts.stranger += 1;
            return Err("it is not of this set");
        };
        if self.members[number].is_own {
            self.counts.namesake += 1;
            return Err("it has our own name");
        }
        self.look_at_dual(now_ns);
        let member = &mut self.members[number];
        let was_alive = member.state(now_ns, dead_after_ns).is_alive();
        let told = |last: &super::liveness::Last| {
            let said = &last.message;
            (said.epoch, said.view.clone(), said.prefixes.clone(), said.vips)
        };
        let before = member.last.as_ref().map(told);
        let new_part = message.part.is_some();
        let is_repeated = member.last.as_ref().is_some_and(|last| {
            let behind = last.message.sequence.checked_sub(message.sequence);
            last.message.epoch == message.epoch && behind.is_some_and(|behind| behind < REPEATED_WITHIN)
        });
        if !member.hear(message, proof_ns, now_ns) {
            if is_repeated {
                self.counts.repeated += 1;
                return Ok(());
            }
            self.counts.replayed += 1;
            return Err("it is older than what was heard before");
        }
        self.counts.heard += 1;
        member.wrong_key = None;
        self.hurry |=
            proof_ns.is_none() || before.as_ref().map(|told| told.0) != member.last.as_ref().map(|l| l.message.epoch);
        self.stale |= before != member.last.as_ref().map(told) || new_part;
        let is_alive = member.state(now_ns, dead_after_ns).is_alive();
        self.stale |= was_alive != is_alive;
        if !was_alive {
            self.count_unheard_dual(number, is_alive, now_ns);
        }
        self.look_at_dual(now_ns);
        Ok(())
    }

    /// When we sent what this message echoes of us.
    fn proof(&self, message: &Message) -> Option<Nanos> {
        let echo = message.echoes.iter().find(|echo| echo.id == self.id && echo.epoch == self.settings.epoch)?;
        self.sent.iter().find(|(sequence, _)| *sequence == echo.sequence).map(|(_, at)| *at)
    }

    /// What is to be done about announcements, if anything. Call after whatever happened, and when time has passed.
    pub fn decide(&mut self, now_ns: Nanos) -> Option<Decision> {
        self.settle(now_ns);
        let cans = self.cans(now_ns);
        let seats = self.seats(&cans);
        let view_moved = seats != self.decided;
        if !view_moved && !self.stale && self.touched.is_empty() {
            return None;
        }
        self.look_at_dual(now_ns);
        let touched = std::mem::take(&mut self.touched);
        let mut decision = Decision::default();
        decision.withdraw.append(&mut self.removed);
        let all = view_moved || std::mem::take(&mut self.stale);
        let looked: Vec<IpNet> = if all { self.vips.keys().copied().collect() } else { touched.into_iter().collect() };
        for prefix in looked {
            let Some(vip) = self.vips.get(&prefix) else { continue };
            let wanted = self.wants(&prefix, vip, &cans, now_ns);
            if wanted == vip.announced {
                continue;
            }
            let Some(vip) = self.vips.get_mut(&prefix) else { continue };
            (vip.announced, vip.decided_ns) = (wanted, now_ns);
            if wanted {
                decision.announce.push((prefix, std::mem::take(&mut vip.is_new)));
                self.counts.taken_over += 1;
            } else {
                decision.withdraw.push(prefix);
                self.counts.yielded += 1;
            }
        }
        // What was touched was looked at: of what came, the others are told when this is done.
        let mut has_come = false;
        for decided in self.untold.values_mut().filter(|decided| decided.is_none()) {
            (*decided, has_come) = (Some(self.decisions + 1), true);
        }
        if !view_moved && !has_come && decision == Decision::default() {
            return None;
        }
        self.decisions += 1;
        decision.number = self.decisions;
        self.decided.clone_from(&seats);
        self.outstanding.push_back((self.decisions, seats));
        self.look_at_dual(now_ns);
        Some(decision)
    }

    /// Rule 3.
    fn settle(&mut self, now_ns: Nanos) {
        if let Some(until) = self.listens_until_ns {
            let alive = |member: &Member| member.is_own || member.state(now_ns, self.settings.dead_after_ns).is_alive();
            if now_ns < until && !self.members.iter().all(alive) {
                return;
            }
            (self.listens_until_ns, self.stale) = (None, true);
        }
        // Until there are tables nothing is known of a set.
        if !self.has_settled && self.site.has_tables {
            self.has_settled = true;
            (self.stale, self.hurry) = (true, true);
        }
    }

    /// What each member can announce, by number.
    fn cans(&self, now_ns: Nanos) -> Vec<Can> {
        let can = |member: &Member| match member.is_own {
            true if !self.is_ready() => Can::Not,
            true if self.draining => Can::IfNobodyElse,
            true => Can::Yes,
            false => member.state(now_ns, self.settings.dead_after_ns).can(),
        };
        self.members.iter().map(can).collect()
    }

    fn seats(&self, cans: &[Can]) -> Vec<Seat> {
        let seated = self.members.iter().zip(cans).filter(|(_, can)| **can != Can::Not);
        let mut seats: Vec<Seat> =
            seated.map(|(member, can)| Seat { id: member.id, draining: *can == Can::IfNobodyElse }).collect();
        seats.sort_unstable();
        seats
    }

    fn is_ready(&self) -> bool {
        self.healthy && self.site.has_tables && self.has_settled
    }

    /// Whether to announce a VIP: rules 1 to 4.
    fn wants(&self, prefix: &IpNet, vip: &Vip, cans: &[Can], now_ns: Nanos) -> bool {
        let old = now_ns.saturating_sub(vip.since_ns) >= GRACE_NS;
        let can = |number: u8| match (self.members.get(usize::from(number)), cans.get(usize::from(number))) {
            (Some(member), Some(can)) if member.is_own => *can,
            (Some(member), Some(can))
                if self.reaches(member, prefix) && !(old && member.lacks(vip.mark, self.vips_digest)) =>
            {
                *can
            }
            _ => Can::Not,
        };
        match election::owner(&vip.order, can).and_then(|number| self.members.get(usize::from(number))) {
            None => vip.announced,
            Some(owner) if owner.is_own => vip.announced || self.listens_until_ns.is_none(),
            Some(owner) => vip.announced && !self.is_announced_by(owner, prefix, vip),
        }
    }

    /// Whether a VIP can be had by another gateway: it lies on a link of that one, or on nobody's, where routes lead to it.
    fn reaches(&self, member: &Member, prefix: &IpNet) -> bool {
        let on_any_link = || {
            let ours = self.site.links.iter().any(|link| link.holds(prefix));
            ours || self.members.iter().any(|member| member.holds(prefix))
        };
        member.holds(prefix) || (self.groups.contains_key(prefix) && !on_any_link())
    }

    /// For how long this gateway has owned a VIP; `None`: it does not.
    pub fn owned_for_ns(&self, prefix: &IpNet, now_ns: Nanos) -> Option<Nanos> {
        let vip = self.vips.get(prefix).filter(|vip| vip.announced && self.is_ready())?;
        Some(now_ns.saturating_sub(vip.decided_ns))
    }

    /// Name of the gateway that owns a VIP, as far as is known here.
    pub fn owner(&self, prefix: &IpNet, now_ns: Nanos) -> Option<String> {
        let vip = self.vips.get(prefix)?;
        if vip.announced {
            return Some(self.settings.node.clone());
        }
        let cans = self.cans(now_ns);
        let can = |number: u8| match (self.members.get(usize::from(number)), cans.get(usize::from(number))) {
            (Some(member), Some(can)) if !member.is_own && self.reaches(member, prefix) => *can,
            _ => Can::Not,
        };
        let owner = election::owner(&vip.order, can).and_then(|number| self.members.get(usize::from(number)))?;
        Some(owner.name.clone())
    }

    /// Whether another gateway announces a VIP, by the view that it tells.
    fn is_announced_by(&self, member: &Member, prefix: &IpNet, vip: &Vip) -> bool {
        let Some(last) = &member.last else { return false };
        let view = &last.message.view;
        let known = |seat: &Seat| self.members.iter().any(|member| member.id == seat.id);
        let can = |number: u8| match self.members.get(usize::from(number)) {
            Some(other) if other.is_own || self.reaches(other, prefix) => election::in_view(view, other.id),
            _ => Can::Not,
        };
        let owner = election::owner(&vip.order, can).and_then(|number| self.members.get(usize::from(number)));
        view.iter().all(known) && owner.is_some_and(|owner| owner.id == member.id)
    }

    /// The speaker has done what a decision asked for.
    pub fn acted(&mut self, number: u64, now_ns: Nanos) {
        while self.outstanding.front().is_some_and(|(decided, _)| *decided <= number) {
            let Some((_, view)) = self.outstanding.pop_front() else { return };
            if view != self.acted {
                (self.acted, self.acted_since_ns, self.hurry) = (view, now_ns, true);
            }
        }
        let (told_digest, vips) = (&mut self.told_digest, &self.vips);
        let before = self.untold.len();
        self.untold.retain(|prefix, decided| {
            let is_done = decided.is_some_and(|decided| decided <= number);
            if let Some(vip) = vips.get(prefix).filter(|_| is_done) {
                *told_digest = told_digest.wrapping_add(spread(vip.mark));
            }
            !is_done
        });
        self.hurry |= self.untold.len() < before;
    }

    /// So many VIPs are announced now, and so many are not because of strangers.
    pub fn announces(&mut self, announced: u32, withheld: u32) {
        (self.announced, self.withheld) = (announced, withheld);
    }

    /// Whom to send messages, each with its addresses.
    pub fn others(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.is_own)
    }

    /// Link-layer addresses of the others, and our own.
    pub fn known_macs(&self) -> Vec<[u8; 6]> {
        let told = self.members.iter().filter_map(|member| member.last.as_ref()).flat_map(|last| &last.message.macs);
        told.copied().chain(self.site.links.iter().map(|link| link.mac)).collect()
    }

    /// Whether another gateway lives and is ready.
    pub fn has_heirs(&self, now_ns: Nanos) -> bool {
        self.others().any(|member| member.state(now_ns, self.settings.dead_after_ns) == State::Live)
    }

    /// How many VIPs are announced here, as the speaker says.
    pub fn announced(&self) -> u32 {
        self.announced
    }
}

/// A mark as 64 bits that add up to a digest: splitmix64, Steele and others, OOPSLA 2014.
fn spread(mark: u32) -> u64 {
    let mut z = u64::from(mark).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
