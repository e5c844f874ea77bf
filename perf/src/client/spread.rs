//! Many connections, each from a source of its own, and who answered them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Outcome, Way, judged, millis, who};

/// Connections under way at the same time unless told otherwise.
const PARALLEL: usize = 16;
/// Errors that [`Spread`] quotes.
const ERRORS_MAX: usize = 5;

/// Options of [`spread`].
#[derive(Debug, Clone, Args)]
pub struct SpreadOptions {
    /// Address and port to speak to.
    #[arg(long)]
    pub target: SocketAddr,
    /// Number of connections.
    #[arg(long, default_value_t = 3000)]
    pub count: u32,
    /// Own addresses, taken in turn.
    #[arg(long, value_delimiter = ',')]
    pub from: Vec<IpAddr>,
    /// First source port; it goes up by one when all addresses have used it.
    #[arg(long, default_value_t = 20_000)]
    pub first_port: u16,
    /// Longest wait for one step in milliseconds.
    #[arg(long, default_value_t = 5000)]
    pub timeout_ms: u64,
    /// Wait between two connections of each that is under way, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Connections under way at the same time.
    #[arg(long, default_value_t = PARALLEL)]
    pub parallel: usize,
}

/// Outcome of many connections.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Connections that were answered.
    pub ok: u32,
    /// Connections that were not.
    pub failed: u32,
    /// Answers by pod.
    pub by_pod: BTreeMap<String, u32>,
    /// Source addresses the pods saw.
    pub sources: BTreeSet<IpAddr>,
    /// The first few failures.
    pub errors: Vec<String>,
    /// Milliseconds for all.
    pub took_ms: u64,
}

/// Makes many connections from distinct sources and counts who answered.
///
/// # Errors
/// When the sources do not fit into the port range.
pub fn spread(options: &SpreadOptions) -> Result<Spread> {
    let addresses = u32::try_from(options.from.len())?;
    if addresses == 0 {
        bail!("spread needs at least one source address: --from ADDRESS[,ADDRESS...]");
    }
    if u32::from(options.first_port) + options.count.div_ceil(addresses) > 65_535 {
        bail!("{} connections from {addresses} addresses do not fit above port {}", options.count, options.first_port);
    }
    let began = Instant::now();
    let next = AtomicU32::new(0);
    let total = Mutex::new(Spread::default());
    std::thread::scope(|scope| {
        for _ in 0..options.parallel {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= options.count {
                        return;
                    }
                    let outcome = judged(|| who(&way_of(options, number, addresses)));
                    if let Ok(mut total) = total.lock() {
                        total.count(outcome);
                    }
                    std::thread::sleep(Duration::from_millis(options.pause_ms));
                }
            });
        }
    });
    let mut total = total.into_inner().unwrap_or_default();
    total.took_ms = millis(began.elapsed());
    Ok(total)
}

/// Opens all connections, says `held`, waits for `silence` and then asks over each of them.
///
/// # Errors
/// When the outcome cannot be told.
pub fn held(options: &SpreadOptions, silence: Duration) -> Result<Spread> {
    let began = Instant::now();
    let addresses = u32::try_from(options.from.len())?.max(1);
    let ways: Vec<Way> = (0..options.count).map(|number| way_of(options, number, addresses)).collect();
    let held: Vec<_> = ways.iter().map(super::hold).collect();
    println!("held");
    std::thread::sleep(silence);
    let mut total = Spread::default();
    for (way, held) in ways.iter().zip(held) {
        total.count(judged(|| held?.ask(way)));
    }
    total.took_ms = millis(began.elapsed());
    Ok(total)
}

fn way_of(options: &SpreadOptions, number: u32, addresses: u32) -> Way {
    let address = options.from[usize::try_from(number % addresses).unwrap_or(0)];
    let port = options.first_port + u16::try_from(number / addresses).unwrap_or(0);
    Way { target: options.target, from: Some(SocketAddr::new(address, port)), timeout_ms: options.timeout_ms }
}

impl Spread {
    fn count(&mut self, outcome: Outcome) {
        match outcome.who {
            Some(who) => {
                self.ok += 1;
                *self.by_pod.entry(who.pod).or_default() += 1;
                self.sources.insert(who.remote.ip());
            }
            None => {
                self.failed += 1;
                if self.errors.len() < ERRORS_MAX {
                    self.errors.push(outcome.error);
                }
            }
        }
    }
}
