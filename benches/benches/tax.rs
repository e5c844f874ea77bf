//! What telling of flows costs: one packet in a thousand noted for the exporter, against none, by turns in one run.
//!
//! All counters are on in both: there is no way to turn them off. It is the same worker with the same million established flows
//! that is told to sample, or not to, from pass to pass; the ring is emptied between passes, as the exporter's thread does
//! beside them.

#![allow(missing_docs)]

use std::sync::Arc;

use anyhow::ensure;
use tidegate_benches::field::{Field, Way, on_core};
use tidegate_benches::summary;
use tidegate_dataplane::flows::{Notes, Sampler};
use tidegate_dataplane::rig::Net;

/// Established flows.
const FLOWS: u32 = 1_000_000;
/// One packet in so many is noted.
const SAMPLING: u32 = 1000;
/// Packets of a pass.
const PACKETS: u64 = 200_000;
/// Passes with and passes without.
const ROUNDS: usize = 61;

fn main() -> anyhow::Result<()> {
    for (net, name) in Net::BOTH.into_iter().zip(["ipv4", "ipv6"]) {
        let mut field = Field::with_flows(net, Way::ToBackend, FLOWS)?.timed_by(on_core);
        let notes = Notes::new();
        let (mut told, mut more) = (0u64, Vec::new());
        for round in 0..ROUNDS as u64 {
            let mut times = [0.0; 2];
            // Each goes first in every other round.
            for at in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                field.sample(match at {
                    0 => Sampler::default(),
                    _ => Sampler::new(SAMPLING, Arc::clone(&notes), round),
                });
                times[at] = field.measure_hits(PACKETS).as_secs_f64();
            }
            told += std::iter::from_fn(|| notes.take()).count() as u64;
            // The first warms up.
            if round > 0 {
                more.push((times[1] / times[0] - 1.0) * 100.0);
            }
        }
        more.sort_by(f64::total_cmp);
        let percent = more.get(more.len() / 2).copied().unwrap_or(f64::NAN);
        let expected = PACKETS * ROUNDS as u64 / u64::from(SAMPLING);
        ensure!(told * 10 > expected * 9 && told * 10 < expected * 13, "{told} packets told of, {expected} expected");
        let spread = [more.len() / 4, more.len() * 3 / 4].map(|at| more.get(at).copied().unwrap_or(f64::NAN));
        let figure = format!("export_tax/cycles_{name}");
        println!(
            "{figure}: {percent:.2} % more (quartiles {:.2} and {:.2}), {told} packets told of",
            spread[0], spread[1]
        );
        summary::count(&summary::target(), &figure, percent)?;
        field.end();
    }
    Ok(())
}
