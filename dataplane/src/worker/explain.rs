//! What the worker would do with a packet: the sweeps of [`super`] for one frame, without the last one's hands.
//!
//! Reads everything, changes nothing: no counter, flow, port or rate moves, and the entropy it draws from is a copy.

use tidegate_api::explain::{Explanation, Step as Telling, Verdict};

use super::{Slot, Worker, look_up, other};
use crate::counters::Counters;
use crate::explain::{Handed, Story, Told, answered, dropped, evidence};
use crate::family::Family;
use crate::packet::{Key, Packet};
use crate::pipeline::{self, Decision, Moment, Step};
use crate::stage::parse::{self, Ingress};
use crate::stage::{fragment, local, owner};
use crate::state::Tuple;
use crate::state::fragment::Ports;
use crate::table::owner::WorkerId;
use crate::table::{DeviceId, Tables};
use crate::wire::Family as Version;

impl Worker {
    /// What would become of a frame that came in by `device`; one that was handed over is not asked again whose it is.
    #[cold]
    pub(crate) fn explain(&self, device: DeviceId, bytes: &[u8], handed: Option<Handed>, now_ns: u64) -> Told {
        let tables = self.reader.tables();
        let mut story = Story::begin(tables, device, bytes.len());
        let mut slot = Slot::EMPTY;
        (slot.hops, slot.owner) = (0, self.state.worker);
        // What parsing counts is counted elsewhere.
        let mut scratch = Box::<Counters>::default();
        let mac = tables.devices.row(device).map(|row| row.mac).unwrap_or_default();
        let ingress = Ingress { device, mac };
        let l3 = match parse::read(tables, ingress, bytes, &mut scratch, &mut slot.packet) {
            Ok(l3) => l3,
            Err(reason) => {
                story.steps.extend(evidence::of_frame(tables, ingress, bytes));
                return self.mine(tables, story, dropped(reason));
            }
        };
        story.packet(&slot.packet, l3);
        story.steps.extend(evidence::of_frame(tables, ingress, bytes));
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
            Key::V4(tuple) => self.story_of(&mut story, &slot, bytes, tuple, now_ns),
            Key::V6(tuple) => self.story_of(&mut story, &slot, bytes, tuple, now_ns),
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
        Told::Mine(Box::new(Explanation {
            worker: self.id,
            generation: tables.generation,
            steps: story.steps,
            verdict,
        }))
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
        story: &mut Story<'_>,
        slot: &Slot,
        frame: &[u8],
        tuple: &Tuple<A>,
        now_ns: u64,
    ) -> Verdict {
        let (tables, state, packet) = (self.reader.tables(), &self.state, &slot.packet);
        let moment = Moment { now_ns, entropy: self.entropy.clone().draw() };
        let mut heard: Vec<Step> = Vec::new();
        let decision = pipeline::decide(tables, state, packet, tuple, slot.hash, moment, &mut heard);
        let decision = pipeline::objection(tables, state, packet, frame, &decision).map_or(decision, Decision::Drop);
        story.decision(state, packet, tuple, slot.hash, &heard, &decision, now_ns)
    }
}
