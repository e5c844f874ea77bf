//! Which flow the next packet belongs to: one after the other, each as likely as the next, or few of them most of the time.
//!
//! Owns the order of flows; refuses to know what a flow is. All of it comes from a seed, so that two runs send the same.

use std::str::FromStr;

use anyhow::{Result, bail, ensure};

/// Most flows of one generator: sources are made of addresses and ports.
pub const FLOWS_MAX: u32 = 1 << 24;

/// In which order flows come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Order {
    /// 0, 1, 2, … and from the beginning again.
    Sequential,
    /// Any flow at any time.
    Uniform,
    /// The flow of rank `r` with a probability that goes as `1 / r^exponent`.
    Zipf(f64),
}

impl FromStr for Order {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Order> {
        match text.split_once(':') {
            None if text == "sequential" => Ok(Order::Sequential),
            None if text == "uniform" => Ok(Order::Uniform),
            None if text == "zipf" => Ok(Order::Zipf(1.0)),
            Some(("zipf", exponent)) => match exponent.parse() {
                Ok(exponent) if (0.01..=5.0).contains(&exponent) => Ok(Order::Zipf(exponent)),
                _ => bail!("the exponent of Zipf's law is 0.01 to 5, not {exponent:?}"),
            },
            _ => bail!("flows come sequential, uniform, zipf or zipf:EXPONENT, not {text:?}"),
        }
    }
}

impl std::fmt::Display for Order {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Order::Sequential => out.write_str("sequential"),
            Order::Uniform => out.write_str("uniform"),
            Order::Zipf(exponent) => write!(out, "zipf:{exponent}"),
        }
    }
}

/// Numbers that look random: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not zero. Biased by less than `limit` in 2^32.
    #[inline]
    pub fn below(&mut self, limit: u32) -> u32 {
        let high = ((self.draw() >> 32) * u64::from(limit)) >> 32;
        u32::try_from(high).unwrap_or(0)
    }
}

/// One column of the alias table: with this probability (of 2^32) itself, otherwise another.
#[derive(Debug, Clone, Copy)]
struct Column {
    keep: u32,
    alias: u32,
}

/// Says which flow is next.
#[derive(Debug, Clone)]
pub struct Picker {
    flows: u32,
    next: u32,
    random: Random,
    uniform: bool,
    /// For Zipf: Vose's alias method ("A linear algorithm for generating random numbers with a given distribution", IEEE
    /// Transactions on Software Engineering 17, 1991), so that a draw costs the same for any number of flows.
    columns: Vec<Column>,
}

impl Picker {
    /// Picks among `flows` flows.
    ///
    /// # Errors
    /// When there are none or too many.
    pub fn new(order: Order, flows: u32, seed: u64) -> Result<Picker> {
        ensure!((1..=FLOWS_MAX).contains(&flows), "flows are 1 to {FLOWS_MAX}, not {flows}");
        let columns = match order {
            Order::Zipf(exponent) => columns(flows, exponent),
            _ => Vec::new(),
        };
        Ok(Picker { flows, next: 0, random: Random::new(seed), uniform: order == Order::Uniform, columns })
    }

    /// The flow of the next packet, below the number of flows.
    #[inline]
    pub fn pick(&mut self) -> u32 {
        if !self.columns.is_empty() {
            let place = self.random.below(self.flows);
            let Some(column) = self.columns.get(place as usize) else { return place };
            return if self.random.below(u32::MAX) < column.keep { place } else { column.alias };
        }
        if self.uniform {
            return self.random.below(self.flows);
        }
        let flow = self.next;
        self.next = if flow + 1 == self.flows { 0 } else { flow + 1 };
        flow
    }
}

fn columns(flows: u32, exponent: f64) -> Vec<Column> {
    let weights: Vec<f64> = (1..=flows).map(|rank| f64::from(rank).powf(-exponent)).collect();
    let scale = f64::from(flows) / weights.iter().sum::<f64>();
    let mut left: Vec<f64> = weights.into_iter().map(|weight| weight * scale).collect();
    let mut columns: Vec<Column> = (0..flows).map(|flow| Column { keep: u32::MAX, alias: flow }).collect();
    let (mut small, mut large): (Vec<u32>, Vec<u32>) = (0..flows).partition(|flow| left[*flow as usize] < 1.0);
    while let (Some(poor), Some(rich)) = (small.pop(), large.last().copied()) {
        let share = left[poor as usize];
        columns[poor as usize] = Column { keep: of_u32(share), alias: rich };
        left[rich as usize] -= 1.0 - share;
        if left[rich as usize] < 1.0 {
            large.pop();
            small.push(rich);
        }
    }
    columns
}

/// A probability as a share of 2^32.
#[expect(clippy::cast_possible_truncation, reason = "a probability times 2^32 saturates")]
fn of_u32(probability: f64) -> u32 {
    (probability * f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(order: &str, flows: u32, draws: u32) -> Vec<u32> {
        let mut picker = Picker::new(order.parse().unwrap(), flows, 7).unwrap();
        let mut counts = vec![0; flows as usize];
        (0..draws).for_each(|_| counts[picker.pick() as usize] += 1);
        counts
    }

    #[test]
    fn sequential_goes_round() {
        let mut picker = Picker::new(Order::Sequential, 3, 0).unwrap();
        assert_eq!((0..7).map(|_| picker.pick()).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn uniform_is_even() {
        let counts = counts("uniform", 100, 1_000_000);
        // Mean 10,000, standard deviation 100.
        assert!(counts.iter().all(|count| (9_400..10_600).contains(count)), "{counts:?}");
    }

    #[test]
    fn zipf_follows_its_law() {
        for exponent in [0.8, 1.0, 1.3] {
            let (flows, draws) = (1_000_u32, 2_000_000_u32);
            let counts = counts(&format!("zipf:{exponent}"), flows, draws);
            let norm: f64 = (1..=flows).map(|rank| f64::from(rank).powf(-exponent)).sum();
            for rank in [1_u32, 2, 3, 10, 100] {
                let expected = f64::from(draws) * f64::from(rank).powf(-exponent) / norm;
                let seen = f64::from(counts[rank as usize - 1]);
                let sigma = expected.sqrt();
                assert!((seen - expected).abs() < 6.0 * sigma, "{exponent}, rank {rank}: {seen} for {expected}");
            }
            assert_eq!(counts.iter().sum::<u32>(), draws);
        }
    }

    #[test]
    fn seeds_repeat_and_nonsense_is_refused() {
        let draws = |seed| {
            let mut picker = Picker::new(Order::Zipf(1.1), 50, seed).unwrap();
            (0..100).map(|_| picker.pick()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        for text in ["zipf:0", "zipf:9", "zipf:x", "random", "uniform:1"] {
            assert!(text.parse::<Order>().is_err(), "{text}");
        }
        assert!(Picker::new(Order::Uniform, 0, 1).is_err() && Picker::new(Order::Uniform, FLOWS_MAX + 1, 1).is_err());
        assert_eq!("zipf:1.5".parse::<Order>().unwrap().to_string(), "zipf:1.5");
    }
}
