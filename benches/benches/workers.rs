//! Two workers beside one, in memory: what the second one brings, and what it costs the first.
//!
//! Each worker has a thread and a core of its own; tables, readers and counters are shared as in a gateway. Passes of one
//! worker and of two take turns in one run, and so do the floor on one thread and on two, which share nothing but the
//! machine. The floor says what the memory allows. Two gateways of one worker each, which share neither tables nor frames nor
//! counters, say what the cores allow: virtual ones may be halves of one, which the floor, who mostly waits, does not notice.
//! What the workers of one gateway lose beyond those would be lines that they take from each other.

#![allow(missing_docs)]

use std::sync::Barrier;

use anyhow::ensure;
use tidegate_benches::course::{Arrival, Course, Path, Plan};
use tidegate_benches::field::PASS_FRAMES;
use tidegate_benches::floor::Floor;
use tidegate_benches::ladder::marks;
use tidegate_benches::summary::{self, CYCLES_PER_NS};
use tidegate_dataplane::rig::Net;
use tidegate_io::HugePages;
use tidegate_io::pin::{cores, pin_to};

/// Established flows of all workers together.
const FLOWS: u32 = 1_000_000;
/// Passes of each.
const ROUNDS: usize = 40;
/// Passes of the floor that are timed as one.
const FLOOR_PASSES: usize = 4;
const WORKERS: u16 = 2;

fn main() -> anyhow::Result<()> {
    if cores().len() < usize::from(WORKERS) {
        println!("workers: this needs two cores");
        return Ok(());
    }
    for (net, family) in Net::BOTH.into_iter().zip(["ipv4", "ipv6"]) {
        compare(net, family)?;
    }
    Ok(())
}

fn compare(net: Net, family: &str) -> anyhow::Result<()> {
    let frames = PASS_FRAMES * usize::from(WORKERS);
    let plan = Plan::new(Path::ToPod, net, FLOWS, frames);
    let mut courses = [
        Course::new(plan)?,
        Course::new(Plan { workers: WORKERS, ..plan })?,
        Course::new(Plan { workers: WORKERS, arrival: Arrival::Anywhere, ..plan })?,
    ];
    let half = Plan { flows: FLOWS / u32::from(WORKERS), frames: PASS_FRAMES, ..plan };
    let mut strangers = [Course::new(half)?, Course::new(half)?];
    let mut floors = [Floor::new(HugePages::Auto)?, Floor::new(HugePages::Auto)?];
    let [mut one, mut owned, mut blind, mut apart, mut alone, mut together] = [const { Vec::new() }; 6];
    for _ in 0..ROUNDS {
        for (course, figures) in courses.iter_mut().zip([&mut one, &mut owned, &mut blind]) {
            figures.push(course.pass_side_by_side(frames)? as f64 * CYCLES_PER_NS / frames as f64);
        }
        apart.push(Course::pass_apart(&mut strangers, PASS_FRAMES)? as f64 * CYCLES_PER_NS / frames as f64);
        let [first, _] = &mut floors;
        alone.push(floor(std::slice::from_mut(first))?);
        together.push(floor(&mut floors)?);
    }
    // Of each the best decile: packets of all workers by the time that the last one ended.
    let [one, owned, blind, apart, alone, together] =
        [one, owned, blind, apart, alone, together].map(|mut figures| marks(&mut figures).0);
    println!("{family}: one worker {one:.1} cycles per packet, two {owned:.1}, half of them handed over {blind:.1}");
    println!("{family}: two gateways of one worker each {apart:.1}");
    println!("{family}: the floor on one thread {alone:.1}, on two {together:.1}");
    let figures =
        [("owned", one / owned), ("handed_over", one / blind), ("apart", one / apart), ("floor", alone / together)];
    for (name, figure) in figures {
        println!("workers/{name}_{family}: {figure:.2} times the packets of one");
        summary::count(&summary::target(), &format!("workers/{name}_{family}"), figure)?;
    }
    Ok(())
}

/// The floor on as many threads as there are floors: cycles by packets of all of them.
fn floor(floors: &mut [Floor]) -> anyhow::Result<f64> {
    let barrier = Barrier::new(floors.len());
    let count = floors.len();
    let spent: Vec<anyhow::Result<f64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = floors
            .iter_mut()
            .zip(cores())
            .map(|(floor, core)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let pinned = pin_to(core);
                    barrier.wait();
                    pinned?;
                    let passes = (0..FLOOR_PASSES).map(|_| floor.pass());
                    let (ns, packets) = passes.fold((0, 0), |sum, pass| (sum.0 + pass.0, sum.1 + pass.1));
                    Ok(ns as f64 * CYCLES_PER_NS / packets as f64)
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    ensure!(spent.len() == count, "a thread has panicked");
    let sum: f64 = spent.into_iter().sum::<anyhow::Result<f64>>()?;
    Ok(sum / (count * count) as f64)
}
