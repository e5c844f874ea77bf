//! Instructions and time per packet on the main paths.
//!
//! ```text
//! paths check     counts instructions and compares them with benches/instructions.json
//! paths accept    counts and records them there
//! paths go        goes every path once, for callgrind to look at
//! paths time [NAME] [FLOWS] [PASSES]    cycles per packet beside the floor of the same run
//! ```

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context;
use tidegate_benches::course::Course;
use tidegate_benches::field::PASS_FRAMES;
use tidegate_benches::floor::Floor;
use tidegate_benches::instructions;
use tidegate_benches::summary::CYCLES_PER_NS;
use tidegate_io::HugePages;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["check"] => check(),
        ["accept"] => accept(),
        ["go"] => instructions::go(None),
        ["go", only] => instructions::go(Some(*only)),
        ["time", rest @ ..] => time(rest),
        _ => Err(anyhow::anyhow!("usage: paths check | accept | go [NAME] | time [NAME] [FLOWS] [PASSES]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> anyhow::Result<()> {
    let (recorded, counted) = (instructions::recorded()?, instructions::count()?);
    print!("{}", instructions::table(&recorded, &counted));
    instructions::compare(&recorded, &counted)
}

fn accept() -> anyhow::Result<()> {
    let counted = instructions::count()?;
    print!("{}", instructions::table(&instructions::recorded().unwrap_or(counted.clone()), &counted));
    instructions::accept(&counted)
}

/// Passes of the floor and of a path by turns: the best decile and the median of each.
fn time(words: &[&str]) -> anyhow::Result<()> {
    let name = words.first().copied().unwrap_or_default();
    let flows: u32 = words.get(1).map_or(Ok(1_000_000), |word| word.parse()).context("flows")?;
    let passes: usize = words.get(2).map_or(Ok(60), |word| word.parse()).context("passes")?;
    let mut floor = Floor::new(HugePages::Auto)?;
    println!("{:<22} {:>8} {:>8} {:>8} {:>8} {:>6}", "cycles/packet", "best 10%", "median", "floor", "median", "ratio");
    for (path, net, name) in instructions::paths().filter(|(_, _, full)| full.contains(name)) {
        let mut course = Course::new(path, net, flows, PASS_FRAMES)?;
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..passes {
            let (floor_ns, packets) = floor.pass();
            floors.push(floor_ns as f64 * CYCLES_PER_NS / packets as f64);
            ours.push(course.pass(PASS_FRAMES)? as f64 * CYCLES_PER_NS / PASS_FRAMES as f64);
            course.rest();
        }
        let ((best, median), (floor_best, floor_median)) = (marks(&mut ours), marks(&mut floors));
        println!(
            "{name:<22} {best:>8.1} {median:>8.1} {floor_best:>8.1} {floor_median:>8.1} {:>6.2}",
            best / floor_best
        );
    }
    Ok(())
}

/// The best decile and the median.
fn marks(figures: &mut [f64]) -> (f64, f64) {
    figures.sort_by(f64::total_cmp);
    let at = |part: usize| figures.get(figures.len() / part).copied().unwrap_or_default();
    (at(10), at(2))
}
