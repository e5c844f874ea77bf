//! How many flows a table holds, and what each costs as it fills: 1 million, 10 million, and as many more as half of this
//! machine's free memory allows, up to 100 million.
//!
//! - *Insert*: both directions into the index and the entry written, mean over the flows that fill the table from one share
//!   of its capacity to the next. The last five percent are beyond the promise; inserts that found no room are counted.
//! - *Lookup*: either direction of flows chosen at random, in batches of 64 through all phases, at half and at 95 % of the
//!   capacity.
//! - *Expiry*: all flows have timed out; the sweep takes them out.
//! - *Memory*: resident bytes for each flow.
//!
//! No packets: a table alone, on one core.

#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, ensure};
use tidegate_benches::summary;
use tidegate_dataplane::state::{
    Address, Candidate, DOMAIN_OVERLAY, DOMAIN_WIRE, Entropy, FlowState, FlowTable, InsertError, NewFlow, Tuple,
};
use tidegate_io::HugePages;

const TCP: u8 = 6;
const MILLION: u32 = 1_000_000;
/// Most flows that are tried.
const FLOWS_MAX: u32 = 100 * MILLION;
/// Shares of the capacity, percent, at which something is measured.
const SHARES: [u32; 5] = [50, 75, 90, 95, 100];
const LOOKUPS: usize = 1 << 20;
const BATCH: usize = 64;

fn main() -> anyhow::Result<()> {
    measure::<[u8; 4]>("ipv4", 80, |number| number.to_be_bytes())?;
    measure::<[u8; 16]>("ipv6", 144, |number| {
        let mut address = [0x20; 16];
        address[12..].copy_from_slice(&number.to_be_bytes());
        address
    })
}

/// `bytes`: what a flow takes by arithmetic. `address`: one for each number.
fn measure<A: Address>(family: &str, bytes: u64, address: impl Fn(u32) -> A) -> anyhow::Result<()> {
    let room = u32::try_from(available()? / 2 / bytes).unwrap_or(u32::MAX).min(FLOWS_MAX);
    let mut sizes = vec![MILLION, 10 * MILLION];
    sizes.push(room / MILLION * MILLION);
    sizes.retain(|size| *size <= room);
    sizes.dedup();
    ensure!(!sizes.is_empty(), "no memory for a million flows");
    for size in sizes {
        fill(family, size, &address)?;
    }
    Ok(())
}

fn fill<A: Address>(family: &str, size: u32, address: &impl Fn(u32) -> A) -> anyhow::Result<()> {
    // Odd: one client for each flow, in no order.
    let client = |flow: u32| address(flow.wrapping_mul(0x9e37_79b1));
    let original = |flow: u32| Tuple {
        source: client(flow),
        destination: address(0xcb00_7101),
        source_port: 40_000,
        destination_port: 443,
        protocol: TCP,
        domain: DOMAIN_WIRE,
    };
    let translated = |flow: u32| Tuple {
        destination: address(0x0af4_0100 + flow % 250),
        destination_port: 8443,
        domain: DOMAIN_OVERLAY,
        ..original(flow)
    };
    let before = resident();
    let mut table = FlowTable::<A>::new(size, [3, 5], HugePages::Auto)?;
    let name = |what: &str| format!("capacity/{what}_{family}/{}", size / MILLION * MILLION);
    let tell = |what: &str, figure: f64| {
        println!("{}: {figure:.1}", name(what));
        summary::count(&summary::target(), &name(what), figure)
    };
    let (mut next, mut refused) = (0, 0);
    // The last five percent of a large table take longer than all the rest.
    for share in SHARES.into_iter().filter(|share| *share < 100 || size <= 10 * MILLION) {
        let until = u32::try_from(u64::from(size) * u64::from(share) / 100)?;
        let (first, begun) = (next, Instant::now());
        while next < until {
            let new = NewFlow {
                original: original(next),
                translated: translated(next),
                state: FlowState::CLOSE,
                mark: 0,
                backend: next % 1000,
                backend_epoch: 1,
                routes_epoch: 1,
                tunnel: 1,
                next_hop: 1,
                last_ack: [0; 2],
            };
            match table.insert(&new, 0) {
                Ok(_) => {}
                Err(InsertError::Full) if share > 95 => refused += 1,
                Err(error) => return Err(error).with_context(|| format!("flow {next} of {size}")),
            }
            next += 1;
        }
        tell(&format!("insert_to_{share}"), begun.elapsed().as_secs_f64() * 1e9 / f64::from(until - first))?;
        if matches!(share, 50 | 95) {
            tell(&format!("lookup_at_{share}"), look_up(&table, next, &original, &translated)?)?;
        }
    }
    if refused > 0 {
        tell("refused_to_100", f64::from(refused))?;
    }
    tell("bytes_per_flow", (resident() - before) / f64::from(table.live()))?;
    let (live, begun) = (table.live(), Instant::now());
    let later = tidegate_dataplane::state::ticks(3_600_000_000_000);
    let expired = table.expire(later, u32::MAX, |_, entry| _ = black_box(entry));
    tell("expire", begun.elapsed().as_secs_f64() * 1e9 / f64::from(live))?;
    ensure!(expired == live && table.live() == 0, "{expired} of {live} flows ended");
    Ok(())
}

/// Nanoseconds per lookup. The keys are made outside the measured time.
fn look_up<A: Address>(
    table: &FlowTable<A>,
    flows: u32,
    original: &impl Fn(u32) -> Tuple<A>,
    translated: &impl Fn(u32) -> Tuple<A>,
) -> anyhow::Result<f64> {
    let mut random = Entropy::new(1);
    let keys: Vec<Tuple<A>> = (0..LOOKUPS)
        .map(|_| {
            let drawn = random.draw();
            let flow = u32::try_from(((drawn >> 32) * u64::from(flows)) >> 32).unwrap_or(0);
            if drawn & 1 == 0 { original(flow) } else { translated(flow).reversed(DOMAIN_OVERLAY) }
        })
        .collect();
    let (mut found, begun) = (0, Instant::now());
    for keys in keys.chunks(BATCH) {
        let mut probes = [(0, None::<Candidate>); BATCH];
        for (probe, key) in probes.iter_mut().zip(keys) {
            probe.0 = table.hash(key);
            table.prefetch_index(probe.0);
        }
        for probe in &mut probes[..keys.len()] {
            probe.1 = table.candidate(probe.0);
        }
        for probe in &mut probes[..keys.len()] {
            probe.1 = probe.1.and_then(|candidate| table.follow(candidate, probe.0));
        }
        for ((hash, candidate), key) in probes.iter().zip(keys) {
            found += usize::from(candidate.and_then(|candidate| table.confirm(candidate, key, *hash)).is_some());
        }
    }
    let time = begun.elapsed();
    ensure!(found == keys.len(), "{found} of {} flows found", keys.len());
    Ok(time.as_secs_f64() * 1e9 / keys.len() as f64)
}

/// Memory that is there for the asking, bytes.
fn available() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    Ok(line.split_whitespace().next().context("no number")?.parse::<u64>()? * 1024)
}

/// Memory of ours that is resident, bytes: shared too, since the table is a mapping of its own.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(f64::NAN) * 1024.0
}
