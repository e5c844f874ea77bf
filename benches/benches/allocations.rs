//! Counts: allocations per packet after warm-up, and bytes per flow.

#![allow(missing_docs)]

use std::alloc::System;
use std::path::{Path, PathBuf};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tidegate_benches::field::{Field, PASS_FRAMES, Way};
use tidegate_benches::summary;
use tidegate_dataplane::rig::Net;
use tidegate_dataplane::state::Entry;
use tidegate_dataplane::state::index::SLOTS_PER_FLOW;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations per packet of one prepared pass.
fn in_memory() -> f64 {
    let (mut allocations, mut packets) = (0, 0);
    for net in Net::BOTH {
        for way in [Way::ToBackend, Way::ToClient, Way::Overlay] {
            let mut field = Field::with_flows(net, way, 10_000).expect("memory");
            field.pass();
            let (counted, handled) = field.counted_pass(
                || Region::new(ALLOCATOR),
                |region| {
                    let change = region.change();
                    change.allocations + change.reallocations
                },
            );
            allocations += counted;
            packets += handled;
        }
    }
    assert!(packets >= 6 * PASS_FRAMES, "the passes carried packets");
    allocations as f64 / packets as f64
}

fn main() -> anyhow::Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let index = u32::try_from(size_of::<u64>())? * SLOTS_PER_FLOW;
    for (name, figure) in [
        ("allocations/in_memory_turn", in_memory()),
        ("memory/entry_ipv4", size_of::<Entry<[u8; 4]>>() as f64 + f64::from(index)),
        ("memory/entry_ipv6", size_of::<Entry<[u8; 16]>>() as f64 + f64::from(index)),
    ] {
        println!("{name}: {figure}");
        summary::count(&target, name, figure)?;
    }
    Ok(())
}
