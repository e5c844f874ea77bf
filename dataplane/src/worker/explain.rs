//! What the worker would do with a packet: the sweeps of [`super`] for one frame, without the last one's hands.
//!
//! Reads everything, changes nothing: no counter, flow, port or rate moves, and the entropy it draws from is a copy.

use tidegate_api::explain::{Explanation, Verdict};

use super::{Slot, Worker, look_up, other};
use crate::counters::Counters;
use crate::drops::DropReason;
use crate::explain::{Story, Told, answered, dropped, evidence};
use crate::family::Family;
use crate::packet::{Key, Packet};
use crate::pipeline::{self, Moment, Step};
use crate::stage::parse::{self, Ingress};
use crate::stage::{fragment, local};
use crate::state::Tuple;
use crate::table::owner::WorkerId;
use crate::table::{DeviceId, Tables};
use crate::wire::Family as Version;

impl Worker {
    /// What would become of a frame that came in by `device`; one that was handed over is not asked again whose it is.
    #[cold]
    pub(crate) fn explain(&self, device: DeviceId, bytes: &[u8], is_handed: bool, now_ns: u64) -> Told {
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
        if is_handed {
            look_up::<false>(tables, l3, &self.state, &mut slot);
            slot.owner = self.state.worker;
        } else {
            look_up::<true>(tables, l3, &self.state, &mut slot);
        }
        let owner = match &slot.key {
            _ if slot.owner != self.state.worker => Some(slot.owner),
            Key::V4(tuple) => self.elsewhere(&slot.packet, tuple),
            Key::V6(tuple) => self.elsewhere(&slot.packet, tuple),
            Key::None => None,
        };
        if let Some(owner) = owner {
            return Told::Theirs(owner);
        }
        story
            .steps
            .push(tidegate_api::explain::Step::Owned { worker: self.id, workers: u32::from(tables.owners.workers()) });
        let verdict = match &slot.key {
            Key::V4(tuple) => self.story_of(&mut story, &slot, tuple, now_ns),
            Key::V6(tuple) => self.story_of(&mut story, &slot, tuple, now_ns),
            Key::None if fragment::is_followed(&slot.packet) => followed(tables, &slot.packet, l3),
            Key::None => match local::decide(tables, &slot.packet, l3) {
                Ok(answer) => match local::denied(tables, &slot.packet, l3, answer) {
                    Some(denied) => {
                        story.denied(&denied, None);
                        dropped(denied.reason)
                    }
                    None => answered(answer),
                },
                Err(reason) => dropped(reason),
            },
        };
        self.mine(tables, story, verdict)
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

    fn story_of<A: Family>(&self, story: &mut Story<'_>, slot: &Slot, tuple: &Tuple<A>, now_ns: u64) -> Verdict {
        let (tables, state, packet) = (self.reader.tables(), &self.state, &slot.packet);
        let moment = Moment { now_ns, entropy: self.entropy.clone().draw() };
        let mut heard: Vec<Step> = Vec::new();
        let decision = pipeline::decide(tables, state, packet, tuple, slot.hash, moment, &mut heard);
        story.decision(state, packet, tuple, slot.hash, &heard, &decision, now_ns)
    }
}

fn followed(tables: &Tables, packet: &Packet, l3: &[u8]) -> Verdict {
    let admitted: Result<(), DropReason> = match packet.l3.family {
        Version::V4 => fragment::admit::<[u8; 4]>(tables, packet, l3),
        Version::V6 => fragment::admit::<[u8; 16]>(tables, packet, l3),
    };
    admitted.map_or_else(dropped, |()| Verdict::Followed)
}
