//! Searches: which rate passes without loss, which with hardly any, and which comes through at most.
//!
//! Owns the decisions between trials; refuses to know how a trial is done, so that tests search in a model.
//!
//! - **MRR**, maximum receive rate: as fast as the generator can, loss ignored; the median of several trials.
//! - **NDR** and **PDR**, no drop rate and partial drop rate: the highest rate whose loss ratio is zero, or at most 0.5 %.
//!   Binary search (RFC 2544, section 26.1) with loss verification (ETSI GS NFV-TST 009, section 12.3.3): a trial that fails
//!   is repeated, and if it passes then, the loss was a passing one and is told beside the result.
//!
//! A generator that cannot reach a rate is not held against the device: the rate of a trial is the one that was sent.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::pktgen::trial::Outcome;

/// Loss ratio that a PDR allows.
pub const PARTIAL_LOSS: f64 = 0.005;
/// Trials of a binary search, at most: more bits than any precision has.
const STEPS_MAX: usize = 40;
/// A rate this far below what was asked for is the generator's limit.
const KEPT: f64 = 0.97;

/// How a search is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Manner {
    /// Length of each trial.
    pub trial: Duration,
    /// Trials of an MRR.
    pub trials: u32,
    /// The search ends when upper and lower bound differ by at most this part of the upper.
    pub precision: f64,
    /// How often a trial that failed is repeated.
    pub repeats: u32,
    /// Highest rate to try; 0: what the generator can do.
    pub rate_max_per_s: u64,
}

impl Manner {
    fn check(&self) -> Result<()> {
        ensure!(!self.trial.is_zero() && self.trials > 0, "trials have a length and a number");
        ensure!((0.000_1..=0.5).contains(&self.precision), "precision is 0.0001 to 0.5, not {}", self.precision);
        Ok(())
    }
}

/// One trial, as a search tells of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What came of it.
    pub outcome: Outcome,
    /// Whether its loss was allowed.
    pub passed: bool,
}

/// What a search has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// What was searched for: `mrr`, `ndr` or `pdr`.
    pub what: String,
    /// Loss ratio that was allowed; none for MRR.
    pub loss_ratio_max: Option<f64>,
    /// The rate in packets per second: received for MRR, sent for the others. 0: no rate passed.
    pub rate_per_s: f64,
    /// The part of it that it is known to.
    pub precision: f64,
    /// The device passed as much as the generator could send: its own rate is higher.
    pub generator_was_the_limit: bool,
    /// Trials that failed once and passed when repeated.
    pub passing_losses: u32,
    /// The trial of that rate.
    pub best: Option<Outcome>,
    /// All trials, in order.
    pub steps: Vec<Step>,
}

/// The maximum receive rate: the median of several trials at full speed.
///
/// # Errors
/// When a trial fails.
pub fn mrr(manner: &Manner, mut trial: impl FnMut(u64, Duration) -> Result<Outcome>) -> Result<Found> {
    manner.check()?;
    let mut steps = Vec::new();
    for _ in 0..manner.trials {
        steps.push(Step { outcome: trial(manner.rate_max_per_s, manner.trial)?, passed: true });
    }
    let mut outcomes: Vec<&Outcome> = steps.iter().map(|step| &step.outcome).collect();
    outcomes.sort_by(|one, other| one.received_per_s.total_cmp(&other.received_per_s));
    let best = outcomes.get(outcomes.len() / 2).map(|outcome| (*outcome).clone());
    let (least, most) = (outcomes.first(), outcomes.last());
    let spread = least.zip(most).map_or(0.0, |(least, most)| 1.0 - least.received_per_s / most.received_per_s.max(1.0));
    Ok(Found {
        what: "mrr".into(),
        loss_ratio_max: None,
        rate_per_s: best.as_ref().map_or(0.0, |best| best.received_per_s),
        precision: spread,
        generator_was_the_limit: best.as_ref().is_some_and(|best| best.loss_ratio == 0.0),
        passing_losses: 0,
        best,
        steps,
    })
}

/// The highest rate whose loss ratio is at most `loss_ratio_max`.
///
/// # Errors
/// When a trial fails.
pub fn highest_rate(
    what: &str,
    loss_ratio_max: f64,
    manner: &Manner,
    mut trial: impl FnMut(u64, Duration) -> Result<Outcome>,
) -> Result<Found> {
    manner.check()?;
    let mut found = Found {
        what: what.into(),
        loss_ratio_max: Some(loss_ratio_max),
        rate_per_s: 0.0,
        precision: manner.precision,
        generator_was_the_limit: false,
        passing_losses: 0,
        best: None,
        steps: Vec::new(),
    };
    let mut try_rate = |found: &mut Found, rate: u64| -> Result<Outcome> {
        for again in 0..=manner.repeats {
            let outcome = trial(rate, manner.trial)?;
            let passed = outcome.loss_ratio <= loss_ratio_max && outcome.sent > 0;
            found.steps.push(Step { outcome: outcome.clone(), passed });
            if passed {
                found.passing_losses += u32::from(again > 0);
                if outcome.sent_per_s > found.rate_per_s {
                    (found.rate_per_s, found.best) = (outcome.sent_per_s, Some(outcome.clone()));
                }
            }
            if passed || again == manner.repeats {
                return Ok(outcome);
            }
        }
        Ok(Outcome::default())
    };
    // At full speed first: it says how far up the search can go, and how much comes through.
    let full = try_rate(&mut found, manner.rate_max_per_s)?;
    if found.best.is_some() {
        let kept = manner.rate_max_per_s > 0 && full.sent_per_s >= KEPT * manner.rate_max_per_s as f64;
        found.generator_was_the_limit = !kept;
        return Ok(found);
    }
    let (mut lower, mut upper) = (0.0_f64, full.sent_per_s);
    // What came through under overload is the best guess there is.
    let mut next = full.received_per_s.clamp(0.0, 0.98 * upper);
    for _ in 0..STEPS_MAX {
        if upper - lower <= manner.precision * upper || next < 1.0 {
            break;
        }
        let outcome = try_rate(&mut found, rounded(next))?;
        let passed = outcome.loss_ratio <= loss_ratio_max && outcome.sent > 0;
        let was_kept = outcome.sent_per_s >= KEPT * next;
        match passed {
            true if was_kept => lower = next,
            // More cannot be sent, so more cannot be asked.
            true => (lower, upper) = (outcome.sent_per_s, outcome.sent_per_s),
            false => upper = next.min(outcome.sent_per_s),
        }
        next = (lower + upper) / 2.0;
    }
    Ok(found)
}

/// A rate in whole packets per second, at least one.
pub(crate) fn rounded(rate: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "a rate is far below 2^64, and what is not saturates")]
    let whole = rate.round() as u64;
    whole.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MANNER: Manner =
        Manner { trial: Duration::from_secs(1), trials: 3, precision: 0.01, repeats: 0, rate_max_per_s: 0 };

    /// A device that passes so many packets per second, and a generator that sends so many at most.
    fn model(device: f64, generator: f64) -> impl FnMut(u64, Duration) -> Result<Outcome> {
        move |rate, _| {
            let asked = if rate == 0 { generator } else { (rate as f64).min(generator) };
            let outcome = Outcome {
                asked_per_s: rate,
                sent: rounded(asked),
                sent_per_s: asked,
                took_s: 1.0,
                ..Outcome::default()
            };
            Ok(outcome.with_received(rounded(asked.min(device))))
        }
    }

    proptest! {
        #[test]
        fn the_rate_of_a_model_is_found_to_the_precision(device in 1_000.0..1e7, headroom in 1.05..20.0, precision in 0.001..0.1) {
            let manner = Manner { precision, ..MANNER };
            let ndr = highest_rate("ndr", 0.0, &manner, model(device, device * headroom)).unwrap();
            prop_assert!(ndr.rate_per_s <= device + 1.0 && ndr.rate_per_s >= device * (1.0 - precision) - 1.0, "{}", ndr.rate_per_s);
            let pdr = highest_rate("pdr", PARTIAL_LOSS, &manner, model(device, device * headroom)).unwrap();
            let limit = device / (1.0 - PARTIAL_LOSS);
            prop_assert!(pdr.rate_per_s <= limit + 1.0 && pdr.rate_per_s >= limit * (1.0 - precision) - 1.0, "{}", pdr.rate_per_s);
            prop_assert!(!ndr.generator_was_the_limit);
        }
    }

    #[test]
    fn a_device_faster_than_the_generator_is_told_as_such() {
        let ndr = highest_rate("ndr", 0.0, &MANNER, model(2e6, 1e6)).unwrap();
        assert!(ndr.generator_was_the_limit && ndr.steps.len() == 1);
        assert!((ndr.rate_per_s - 1e6).abs() < 1.0);
        let asked = highest_rate("ndr", 0.0, &Manner { rate_max_per_s: 500_000, ..MANNER }, model(2e6, 1e6)).unwrap();
        assert!(!asked.generator_was_the_limit && (asked.rate_per_s - 5e5).abs() < 1.0);
        assert!(mrr(&MANNER, model(2e6, 1e6)).unwrap().generator_was_the_limit);
    }

    #[test]
    fn maximum_receive_rate_ignores_loss_and_takes_the_median() {
        let mut rates = [3e5, 1e5, 2e5].into_iter();
        let found = mrr(&MANNER, |rate, time| model(rates.next().unwrap(), 1e6)(rate, time)).unwrap();
        assert!((found.rate_per_s - 2e5).abs() < 1.0 && found.steps.len() == 3 && !found.generator_was_the_limit);
    }

    #[test]
    fn a_passing_loss_is_verified_and_told() {
        let (mut calls, mut good) = (0, model(5e5, 1e6));
        let shaky = |rate: u64, time| {
            calls += 1;
            let outcome = good(rate, time)?;
            // Each first try at a rate loses one packet.
            Ok(if calls % 2 == 1 { outcome.clone().with_received(outcome.received.saturating_sub(1)) } else { outcome })
        };
        let found = highest_rate("ndr", 0.0, &Manner { repeats: 1, ..MANNER }, shaky).unwrap();
        assert!(found.passing_losses > 0 && found.rate_per_s > 0.98 * 5e5, "{found:?}");
    }

    #[test]
    fn a_device_that_always_loses_has_no_rate() {
        let dead = |rate, time| Ok(model(1e6, 1e6)(rate, time)?.with_received(0));
        let found = highest_rate("ndr", 0.0, &MANNER, dead).unwrap();
        assert!(found.best.is_none() && found.rate_per_s == 0.0);
        let wrong = Manner { precision: 0.0, ..MANNER };
        assert!(highest_rate("ndr", 0.0, &wrong, model(1.0, 2.0)).is_err());
    }
}
