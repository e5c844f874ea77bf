//! The ladder in memory: cycles per packet on the main paths, each beside the floor of the same minute.
//!
//! Owns passes by turns and what is told of them. Parsing and finding a flow, the two stages every packet goes through, are
//! measured alone as well; what a path costs beyond them is its edit, its envelope, and getting in and out.

use std::hint::black_box;

use serde::{Deserialize, Serialize};
use tidegate_dataplane::counters::Counters;
use tidegate_dataplane::pipeline;
use tidegate_dataplane::rig::{self, Net, WAN, WAN_MAC};
use tidegate_dataplane::stage::parse::{self, Ingress};
use tidegate_dataplane::state::{Entropy, Tuple};
use tidegate_io::HugePages;
use tidegate_io::mem::now_ns;

use crate::course::{Course, Path, Plan};
use crate::field::{Field, PASS_FRAMES, Way};
use crate::floor::Floor;
use crate::summary::CYCLES_PER_NS;

/// Packets whose lines are fetched together.
const BATCH: usize = 64;
/// Packets of one pass over a stage alone.
const STAGE_PACKETS: usize = 1 << 16;

/// One figure in cycles of a 2.3 GHz counter per packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rung {
    /// What is measured.
    pub name: String,
    /// Best decile of all passes.
    pub best: f64,
    /// Their median.
    pub median: f64,
    /// Best decile of the floor's passes in between; none for stages.
    pub floor: Option<f64>,
}

impl Rung {
    fn of(name: String, mut ours: Vec<f64>, mut floors: Vec<f64>) -> Rung {
        let (best, median) = marks(&mut ours);
        let floor = (!floors.is_empty()).then(|| marks(&mut floors).0);
        Rung { name, best, median, floor }
    }

    /// How often the floor goes into it.
    pub fn ratio(&self) -> Option<f64> {
        self.floor.map(|floor| self.best / floor)
    }
}

/// The best decile and the median.
pub fn marks(figures: &mut [f64]) -> (f64, f64) {
    figures.sort_by(f64::total_cmp);
    let at = |part: usize| figures.get(figures.len() / part).copied().unwrap_or_default();
    (at(10), at(2))
}

/// Passes of the floor and of a path by turns.
///
/// # Errors
/// When there is no memory, or packets went another way.
pub fn path(floor: &mut Floor, plan: Plan, name: &str, passes: usize) -> anyhow::Result<Rung> {
    let mut course = Course::new(plan)?;
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..passes {
        let (floor_ns, packets) = floor.pass();
        floors.push(floor_ns as f64 * CYCLES_PER_NS / packets as f64);
        ours.push(course.pass(plan.frames)? as f64 * CYCLES_PER_NS / plan.frames as f64);
        course.rest();
    }
    Ok(Rung::of(name.to_owned(), ours, floors))
}

/// Passes over one stage: cycles per packet of each.
fn stage(name: &str, passes: usize, mut pass: impl FnMut() -> usize) -> Rung {
    let one = |_| {
        let begun = now_ns();
        let packets = pass();
        (now_ns() - begun) as f64 * CYCLES_PER_NS / packets.max(1) as f64
    };
    Rung::of(name.into(), (0..passes).map(one).collect(), Vec::new())
}

/// Parsing alone, both families: frames that lie in the first-level cache.
pub fn parsing(passes: usize) -> Vec<Rung> {
    let tables = rig::tables();
    let ingress = Ingress { device: WAN, mac: WAN_MAC };
    let one = |(net, family): (Net, &str)| {
        let bytes = rig::udp((net.client(1), 1), (net.vip(1), 80), &[0; 22]);
        let mut counters = Counters::default();
        stage(&format!("stage_parse_{family}"), passes, || {
            for _ in 0..STAGE_PACKETS {
                if let Ok(packet) = parse::run(&tables, ingress, black_box(&bytes), &mut counters) {
                    black_box(pipeline::classify(&packet, &bytes[usize::from(packet.l3_offset)..]));
                }
            }
            STAGE_PACKETS
        })
    };
    Net::BOTH.into_iter().zip(["ipv4", "ipv6"]).map(one).collect()
}

/// Finding one of so many IPv4 flows, in batches.
///
/// # Errors
/// When there is no memory.
pub fn finding(flows: u32, passes: usize) -> anyhow::Result<Rung> {
    let field = Field::with_flows(Net::BOTH[0], Way::ToBackend, flows)?;
    let table = &field.worker().state().v4;
    let mut tuples: Vec<Tuple<[u8; 4]>> = Vec::new();
    let _ = table.visit(0, u32::MAX, |_, entry| tuples.push(entry.original_tuple()));
    let mut random = Entropy::new(1);
    let mut keys = Vec::with_capacity(STAGE_PACKETS);
    let mut figures = Vec::new();
    for _ in 0..passes {
        keys.clear();
        let pick = |draw: u64| usize::try_from(draw % tuples.len().max(1) as u64).unwrap_or(0);
        keys.extend((0..STAGE_PACKETS).filter_map(|_| tuples.get(pick(random.draw())).copied()));
        let begun = now_ns();
        for keys in keys.chunks(BATCH) {
            let mut probes = [(0, None); BATCH];
            for (probe, key) in probes.iter_mut().zip(keys) {
                probe.0 = table.hash(key);
                table.prefetch_index(probe.0);
            }
            probes.iter_mut().for_each(|probe| probe.1 = table.candidate(probe.0));
            for ((hash, candidate), key) in probes.iter().zip(keys) {
                black_box(candidate.and_then(|candidate| table.confirm(candidate, key, *hash)));
            }
        }
        figures.push((now_ns() - begun) as f64 * CYCLES_PER_NS / keys.len().max(1) as f64);
    }
    field.end();
    Ok(Rung::of("stage_find_flow_ipv4".into(), figures, Vec::new()))
}

/// Ways that packets of a `fullnat` Service take.
const PATHS: [Path; 4] = [Path::ToPod, Path::ToClient, Path::Overlay, Path::New];

/// Stages and main paths, both families.
///
/// # Errors
/// As [`path`].
pub fn climb(flows: u32, passes: usize) -> anyhow::Result<Vec<Rung>> {
    let mut rungs = parsing(passes);
    rungs.push(finding(flows, passes)?);
    let mut floor = Floor::new(HugePages::Auto)?;
    for (way, net, name) in crate::instructions::paths().filter(|(way, ..)| PATHS.contains(way)) {
        rungs.push(path(&mut floor, Plan::new(way, net, flows, PASS_FRAMES), &name, passes)?);
    }
    Ok(rungs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No figure is judged; each has one, and paths have the floor of the same run.
    #[test]
    fn every_rung_is_there() {
        let rungs = climb(2_000, 2).unwrap();
        assert_eq!(rungs.len(), 2 + 1 + 2 * PATHS.len());
        assert!(rungs.iter().all(|rung| rung.best > 0.0 && rung.median >= rung.best), "{rungs:?}");
        assert_eq!(rungs.iter().filter(|rung| rung.ratio().is_some()).count(), 2 * PATHS.len());
    }
}
