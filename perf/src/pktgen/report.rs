//! What is told of a run: one JSON document for programs, one table for people.
//!
//! Owns words and columns. The document says under which conditions its figures came to be; figures without them mean
//! nothing.

use serde::{Deserialize, Serialize};

use crate::pktgen::device::Station;
use crate::pktgen::mould::Traffic;
use crate::pktgen::search;
use crate::pktgen::stateful::{self, Handshakes};
use crate::pktgen::surroundings::{self, Surroundings};
use crate::pktgen::trial::Outcome;

/// One side's device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Its driver.
    pub driver: String,
    /// How frames pass.
    pub mode: String,
    /// Queues that are used.
    pub queues: usize,
}

impl Side {
    /// What is told of a device; not its name.
    pub fn of(station: &Station) -> Side {
        let queues = station.place.queues.len();
        Side { driver: station.driver.clone(), mode: station.mode.into(), queues }
    }
}

/// What was sent, in words.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// What packets carried.
    pub protocol: String,
    /// Sizes as they were asked for.
    pub sizes: String,
    /// The least size with headers and stamp: smaller ones were raised to it.
    pub size_bytes_min: u16,
    /// Distinct flows.
    pub flows: u32,
    /// In which order.
    pub order: String,
    /// Whether it was sent in VXLAN.
    pub vxlan: bool,
}

impl Sent {
    /// Of this traffic.
    pub fn of(traffic: &Traffic) -> Sent {
        Sent {
            family: if traffic.target.is_ipv4() { "ipv4" } else { "ipv6" }.into(),
            protocol: format!("{:?}", traffic.protocol).to_lowercase(),
            sizes: traffic.sizes.name().into(),
            size_bytes_min: traffic.size_bytes_min(),
            flows: traffic.flows,
            order: traffic.order.to_string(),
            vxlan: traffic.tunnel.is_some(),
        }
    }
}

/// What a run has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Result {
    /// One trial.
    Trial(Outcome),
    /// A search for a rate.
    Search(search::Found),
    /// Latency at a part of the maximum receive rate.
    Latency {
        /// The maximum receive rate in packets per second.
        mrr_per_s: f64,
        /// The part of it that was sent.
        part: f64,
        /// The trial at that rate.
        outcome: Outcome,
    },
    /// A search among connections.
    Stateful(stateful::Found),
    /// Connections by handshake.
    Handshakes(Handshakes),
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub surroundings: Surroundings,
    /// The device that sent.
    pub tx: Side,
    /// The device that received.
    pub rx: Side,
    /// What was sent.
    pub sent: Sent,
    /// What came of it.
    pub result: Result,
}

impl Report {
    /// Of a run here.
    pub fn new(tx: Side, rx: Side, traffic: &Traffic, result: Result) -> Report {
        Report { surroundings: surroundings::here(), tx, rx, sent: Sent::of(traffic), result }
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let Report { surroundings, tx, rx, sent, .. } = self;
        let vxlan = if sent.vxlan { " in VXLAN" } else { "" };
        let mut rows = vec![
            (
                "where",
                format!("{}, {} cores, kernel {}", surroundings.processor, surroundings.cores, surroundings.kernel),
            ),
            ("sent by", format!("{} {}, {} queues", tx.driver, tx.mode, tx.queues)),
            ("received by", format!("{} {}, {} queues", rx.driver, rx.mode, rx.queues)),
            (
                "packets",
                format!(
                    "{} {}{vxlan}, sizes {}, at least {} bytes",
                    sent.family, sent.protocol, sent.sizes, sent.size_bytes_min
                ),
            ),
            ("flows", format!("{} {}", sent.flows, sent.order)),
        ];
        match &self.result {
            Result::Trial(outcome) => rows.extend(trial_rows(outcome)),
            Result::Search(found) => {
                let name = match found.what.as_str() {
                    "mrr" => "MRR",
                    "ndr" => "NDR",
                    _ => "PDR",
                };
                let limit = if found.generator_was_the_limit { "; the generator was the limit" } else { "" };
                let precision = if found.what == "mrr" { "spread" } else { "known to" };
                rows.push((
                    name,
                    format!("{:.0}/s, {precision} {:.2} %{limit}", found.rate_per_s, found.precision * 100.0),
                ));
                rows.push((
                    "trials",
                    format!("{}, losses that did not repeat: {}", found.steps.len(), found.passing_losses),
                ));
                found.best.iter().for_each(|best| rows.extend(trial_rows(best)));
            }
            Result::Latency { mrr_per_s, part, outcome } => {
                rows.push(("MRR", format!("{mrr_per_s:.0}/s")));
                rows.push(("latency at", format!("{:.0} % of it", part * 100.0)));
                rows.extend(trial_rows(outcome));
            }
            Result::Stateful(found) => {
                let limit = if found.limit_reached { "; no limit of the device was met" } else { "" };
                let unit = if found.what == "capacity" { "" } else { "/s" };
                rows.push((
                    "connections",
                    format!(
                        "{} {:.0}{unit}, known to {:.2} %{limit}",
                        found.what,
                        found.figure,
                        found.precision * 100.0
                    ),
                ));
                rows.push(("trials", found.trials.len().to_string()));
            }
            Result::Handshakes(told) => {
                rows.push((
                    "handshakes",
                    format!("{} of {} whole, {:.0}/s", told.completed, told.begun, told.completed_per_s),
                ));
            }
        }
        if surroundings.build != "release" {
            rows.push(("build", "debug: these figures mean nothing".into()));
        }
        rows.iter().map(|(name, text)| format!("{name:<12} {text}\n")).collect()
    }
}

/// Part of the rate asked for from which on it was met.
const KEPT_UP: f64 = 0.99;

fn trial_rows(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let latency = &outcome.latency;
    let asked = match outcome.asked_per_s {
        0 => String::new(),
        asked if outcome.sent_per_s < KEPT_UP * asked as f64 => {
            format!(" of {asked}/s asked for: the generator did not keep up")
        }
        asked => format!(" of {asked}/s asked for"),
    };
    let mut rows = vec![
        ("sent", format!("{} in {:.3} s: {:.0}/s{asked}", outcome.sent, outcome.took_s, outcome.sent_per_s)),
        ("received", format!("{}: {:.0}/s", outcome.received, outcome.received_per_s)),
        ("lost", format!("{} ({:.4} %)", outcome.lost, outcome.loss_ratio * 100.0)),
    ];
    if latency.count > 0 {
        rows.push(("not in order", format!("{} reordered, {} twice", outcome.reordered, outcome.duplicates)));
        rows.push((
            "latency",
            format!("p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us", latency.p50_us, latency.p99_us, latency.p99_9_us),
        ));
    }
    let others = outcome.stale + outcome.foreign + outcome.corrupt;
    if others > 0 {
        let (stale, foreign, corrupt) = (outcome.stale, outcome.foreign, outcome.corrupt);
        rows.push(("beside that", format!("{stale} of earlier trials, {foreign} of others, {corrupt} corrupt")));
    }
    rows
}
