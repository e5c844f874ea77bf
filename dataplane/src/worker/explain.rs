//! What the worker would do with a packet: the sweeps of [`super`] for one frame, without the last one's hands.
//!
//! Reads everything, changes nothing: no counter, flow, port or rate moves, and the entropy it draws from is a copy.

use tidegate_api::explain::{Explanation, Step as Telling, Verdict};

use super::{Slot, Worker, look_up, other};
use crate::counters::Counters;
use crate::drops::DropReason;
use crate::explain::{Asked, Handed, Story, Told, answered, dropped, evidence};
use crate::family::Family;
use crate::packet::{Key, Kind, Packet};
use crate::pipeline::{self, Decision, Moment, Step};
use crate::stage::parse::{self, Ingress};
use crate::stage::{fragment, local, owner};
use crate::state::Tuple;
use crate::state::fragment::Ports;
use crate::table::Tables;
use crate::table::owner::WorkerId;
use crate::wire::packet::{Fragment, parse_l3};
use crate::wire::{Family as Version, edit};

impl Worker {
    /// What would become of a frame; one that was handed over is not asked again whose it is.
    #[cold]
    pub(crate) fn explain(&self, asked: &Asked, now_ns: u64) -> Told {
        let tables = self.reader.tables();
        let (bytes, handed) = (asked.bytes.as_slice(), asked.handed);
        let mut slot = Slot::EMPTY;
        (slot.hops, slot.owner) = (0, self.state.worker);
        let read = if asked.is_back { returned(tables, asked, &mut slot) } else { arrived(tables, asked, &mut slot) };
        let (mut story, l3) = match read {
            Ok(read) => read,
            Err((story, reason)) => return self.mine(tables, story, dropped(reason)),
        };
        look_up::<true>(tables, l3, &self.state, &mut slot);
        let mut ports = handed.and_then(|handed| handed.ports);
        if handed.is_some() {
            slot.owner = self.state.worker;
        }
        if ports.is_none()
            && slot.owner == self.state.worker
            && slot.key == Key::None
            && fragment::is_followed(&slot.packet)
        {
            match self.ports_of(&slot.packet, l3) {
                Ok(known) => {
                    ports = Some(known);
                    self.lead(&mut slot, l3, known);
                }
                Err(verdict) => {
                    story.steps.push(self.owned());
                    return self.mine(tables, story, verdict);
                }
            }
        } else if let Some(ports) = ports {
            self.lead(&mut slot, l3, ports);
            slot.owner = self.state.worker;
        }
        let owner = match &slot.key {
            _ if slot.owner != self.state.worker => Some(slot.owner),
            Key::V4(tuple) => self.elsewhere(&slot.packet, tuple),
            Key::V6(tuple) => self.elsewhere(&slot.packet, tuple),
            Key::None => None,
        };
        if let Some(to) = owner {
            return Told::Theirs(Handed { to, ports });
        }
        story.steps.push(self.owned());
        let verdict = match &slot.key {
            Key::V4(tuple) => return self.story_of(story, &slot, asked, tuple, now_ns),
            Key::V6(tuple) => return self.story_of(story, &slot, asked, tuple, now_ns),
            Key::None => match local::decide(tables, &slot.packet, l3) {
                Ok(answer) => match local::denied(tables, &slot.packet, l3, answer) {
                    Some(denied) => {
                        story.denied(&denied, None);
                        dropped(denied.reason)
                    }
                    None => pipeline::objection_to_answer(&slot.packet, bytes, answer)
                        .map_or_else(|| answered(answer, slot.packet.l3.protocol), dropped),
                },
                Err(reason) => dropped(reason),
            },
        };
        self.mine(tables, story, verdict)
    }

    fn owned(&self) -> Telling {
        Telling::Owned { worker: self.id, workers: u32::from(self.reader.tables().owners.workers()) }
    }

    /// The ports that a fragment of ours is looked up by; otherwise what becomes of it.
    fn ports_of(&self, packet: &Packet, l3: &[u8]) -> Result<Ports, Verdict> {
        match packet.l3.family {
            Version::V4 => self.ports_in::<[u8; 4]>(packet, l3),
            Version::V6 => self.ports_in::<[u8; 16]>(packet, l3),
        }
    }

    fn ports_in<A: Family>(&self, packet: &Packet, l3: &[u8]) -> Result<Ports, Verdict> {
        fragment::admit::<A>(self.reader.tables(), packet, l3).map_err(dropped)?;
        let (key, piece) = fragment::read::<A>(packet, l3);
        match self.state.fragments.foresee(&key, piece, fragment::ports(packet)) {
            Ok(ports) => ports.ok_or(Verdict::Followed),
            Err(refusal) => Err(dropped(fragment::reason(refusal))),
        }
    }

    /// Makes the key of a fragment whose ports are known.
    fn lead(&self, slot: &mut Slot, l3: &[u8], ports: Ports) {
        let (tables, packet) = (self.reader.tables(), slot.packet);
        match packet.l3.family {
            Version::V4 => {
                let tuple = fragment::tuple(&packet, l3, ports);
                (slot.key, slot.owner, slot.hash) =
                    (Key::V4(tuple), owner::of(tables, &tuple), self.state.v4.hash(&tuple));
            }
            Version::V6 => {
                let tuple = fragment::tuple(&packet, l3, ports);
                (slot.key, slot.owner, slot.hash) =
                    (Key::V6(tuple), owner::of(tables, &tuple), self.state.v6.hash(&tuple));
            }
        }
    }

    fn mine(&self, tables: &Tables, story: Story<'_>, verdict: Verdict) -> Told {
        Told::Mine(Box::new(self.explanation(tables, story, verdict)))
    }

    fn explanation(&self, tables: &Tables, story: Story<'_>, verdict: Verdict) -> Explanation {
        Explanation { worker: self.id, generation: tables.generation, steps: story.steps, verdict }
    }

    fn elsewhere<A: Family>(&self, packet: &Packet, tuple: &Tuple<A>) -> Option<WorkerId> {
        let is_alone = self.links.is_alone();
        self.state
            .was_sticky
            .then(|| other::elsewhere(self.reader.tables(), &self.state, is_alone, packet, tuple))
            .flatten()
    }

    fn story_of<A: Family>(
        &self,
        mut story: Story<'_>,
        slot: &Slot,
        asked: &Asked,
        tuple: &Tuple<A>,
        now_ns: u64,
    ) -> Told {
        let (tables, state, packet) = (self.reader.tables(), &self.state, &slot.packet);
        let moment = Moment { now_ns, entropy: self.entropy.clone().draw() };
        let mut heard: Vec<Step> = Vec::new();
        let decision = pipeline::decide(tables, state, packet, tuple, slot.hash, moment, &mut heard);
        let decision =
            pipeline::objection(tables, state, packet, &asked.bytes, &decision).map_or(decision, Decision::Drop);
        let verdict = story.decision(state, packet, tuple, slot.hash, &heard, &decision, now_ns);
        let back = (verdict == Verdict::Returns && !asked.is_back).then(|| self.back(packet, &asked.bytes, &decision));
        match back.flatten() {
            Some(bytes) => Told::Back(Box::new(self.explanation(tables, story, verdict)), bytes),
            None => self.mine(tables, story, verdict),
        }
    }

    /// The IP packet that comes back in; `None` of a fragment: whether it is held then depends on who came before.
    fn back<A: Family>(&self, packet: &Packet, frame: &[u8], decision: &Decision<A>) -> Option<Vec<u8>> {
        let to = match decision {
            Decision::Forward { flow, direction, .. } => A::flows(&self.state).entry(*flow).leaving(*direction),
            Decision::Start { flow, .. } => flow.leaving(),
            _ => return None,
        };
        let at = usize::from(packet.l3_offset);
        let mut l3 = frame.get(at..at + usize::from(packet.l3.total_len))?.to_vec();
        if let Some(ecn) = packet.ecn {
            edit::set_ecn(&mut l3, packet.l3.family, ecn);
        }
        (packet.l3.fragment == Fragment::None && A::forward(&mut l3, &packet.l3, &to)).then_some(l3)
    }
}

/// How a story begins, and the packet from its IP header on; or how it ends already.
type Begun<'t, 'f> = Result<(Story<'t>, &'f [u8]), (Story<'t>, DropReason)>;

/// Reads a frame from the wire.
fn arrived<'t, 'f>(tables: &'t Tables, asked: &'f Asked, slot: &mut Slot) -> Begun<'t, 'f> {
    let mut story = Story::begin(tables, asked.device, asked.bytes.len());
    // What parsing counts is counted elsewhere.
    let mut scratch = Box::<Counters>::default();
    let mac = tables.devices.row(asked.device).map(|row| row.mac).unwrap_or_default();
    let ingress = Ingress { device: asked.device, mac };
    let read = parse::read(tables, ingress, &asked.bytes, &mut scratch, &mut slot.packet);
    if let Ok(l3) = read {
        story.packet(&slot.packet, l3);
    }
    story.steps.extend(evidence::of_frame(tables, ingress, &asked.bytes));
    match read {
        Ok(l3) => Ok((story, l3)),
        Err(reason) => Err((story, reason)),
    }
}

/// Reads a packet that was taken back, as [`other::Hands`] does it.
fn returned<'t, 'f>(tables: &'t Tables, asked: &'f Asked, slot: &mut Slot) -> Begun<'t, 'f> {
    let mut story = Story::begin_again(tables);
    slot.packet.device = asked.device;
    match parse_l3(&asked.bytes) {
        Ok(l3) => slot.packet = Packet { kind: Kind::Ip, l3, ..slot.packet },
        Err(_) => return Err((story, DropReason::NoRoute)),
    }
    story.packet(&slot.packet, &asked.bytes);
    Ok((story, &asked.bytes))
}
