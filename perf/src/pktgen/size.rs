//! Frame sizes: one, or a mixture that repeats.
//!
//! Owns how a mixture is written down and the order in which its sizes come. Sizes are those of the wire, with the four
//! bytes of the check sequence that no memory holds, as RFC 2544 counts them.

use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};

/// Bytes of the frame check sequence.
pub const FCS_BYTES: u16 = 4;
/// Smallest frame of Ethernet.
pub const SIZE_BYTES_MIN: u16 = 64;
/// Largest size that can be asked for; what a device takes is its own affair.
pub const SIZE_BYTES_MAX: u16 = 9000;
/// Most sizes before a mixture repeats.
const CYCLE_MAX: usize = 4096;

/// Letters of RFC 6985, section 4, each with its size. Its `z`, the MTU, is not among them: it differs from device to device.
const GENES: [(char, u16); 8] =
    [('a', 64), ('b', 128), ('c', 256), ('d', 512), ('e', 1024), ('f', 1280), ('g', 1518), ('h', 2112)];

/// Sizes in the order they are sent, again and again.
///
/// ```text
/// 64                      one size
/// imix                    the simple mixture: 64:7,570:4,1518:1
/// 84:1,1400:3             a mixture of one's own, SIZE:WEIGHT, spread evenly
/// aaadg, 7a4d1g           a genome of RFC 6985, in exactly this order
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    name: String,
    cycle: Vec<u16>,
}

impl Sizes {
    /// Every frame of one size in bytes.
    ///
    /// # Errors
    /// When Ethernet knows no such frame.
    pub fn one(bytes: u16) -> Result<Sizes> {
        Sizes::new(bytes.to_string(), vec![bytes])
    }

    fn new(name: String, cycle: Vec<u16>) -> Result<Sizes> {
        ensure!(
            !cycle.is_empty() && cycle.len() <= CYCLE_MAX,
            "a mixture has 1 to {CYCLE_MAX} frames before it repeats"
        );
        let range = SIZE_BYTES_MIN..=SIZE_BYTES_MAX;
        if let Some(size) = cycle.iter().find(|size| !range.contains(size)) {
            bail!("frames have {SIZE_BYTES_MIN} to {SIZE_BYTES_MAX} bytes with their check sequence, not {size}");
        }
        Ok(Sizes { name, cycle })
    }

    /// As it was written.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The sizes before they repeat, in bytes.
    pub fn cycle(&self) -> &[u16] {
        &self.cycle
    }

    /// The largest, in bytes.
    pub fn largest(&self) -> u16 {
        self.cycle.iter().copied().max().unwrap_or(SIZE_BYTES_MIN)
    }

    /// The same with nothing smaller than `bytes`: what headers need there must be.
    #[must_use]
    pub fn at_least(&self, bytes: u16) -> Sizes {
        Sizes { name: self.name.clone(), cycle: self.cycle.iter().map(|size| (*size).max(bytes)).collect() }
    }
}

impl FromStr for Sizes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Sizes> {
        if text == "imix" {
            return Ok(Sizes { name: text.into(), ..mixture("64:7,570:4,1518:1")? });
        }
        if let Ok(bytes) = text.parse() {
            return Sizes::one(bytes);
        }
        if text.contains(':') { mixture(text) } else { genome(text) }
    }
}

/// `SIZE:WEIGHT,…`: each size as often as its weight says, spread as evenly as can be.
fn mixture(text: &str) -> Result<Sizes> {
    let parts = text.split(',').map(|part| {
        let (size, weight) = part.split_once(':').with_context(|| format!("{part:?} is not SIZE:WEIGHT"))?;
        let (size, weight): (u16, usize) = (size.trim().parse()?, weight.trim().parse()?);
        ensure!((1..=CYCLE_MAX).contains(&weight), "weights are 1 to {CYCLE_MAX}, not {weight}");
        Ok((size, weight))
    });
    // In one text: of an argument only the outermost is told.
    let parts = parts.collect::<Result<Vec<_>>>().map_err(|error| anyhow!("sizes {text:?}: {error:#}"))?;
    let total: usize = parts.iter().map(|(_, weight)| weight).sum();
    ensure!(total <= CYCLE_MAX, "a mixture has at most {CYCLE_MAX} frames before it repeats, not {total}");
    let mut sent = vec![0; parts.len()];
    let mut cycle = Vec::with_capacity(total);
    for place in 1..=total {
        // Whoever is furthest behind its share goes next.
        let behind = |part: usize| {
            let (of_all, so_far): (i64, i64) = (place as i64 * parts[part].1 as i64, sent[part] * total as i64);
            of_all - so_far
        };
        let next = (0..parts.len()).max_by_key(|part| (behind(*part), parts.len() - part)).unwrap_or(0);
        sent[next] += 1;
        cycle.push(parts[next].0);
    }
    Sizes::new(text.into(), cycle)
}

/// Letters of RFC 6985, each with a count before it or without.
fn genome(text: &str) -> Result<Sizes> {
    let mut cycle = Vec::new();
    let mut count = String::new();
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            count.push(letter);
            continue;
        }
        let known = GENES.iter().find(|(gene, _)| *gene == letter);
        let (_, size) = known.with_context(|| {
            format!("sizes {text:?}: {letter:?} is no size; letters are a to h (RFC 6985), else write SIZE:WEIGHT,…")
        })?;
        let times: usize = if count.is_empty() { 1 } else { count.parse().context("count of a size")? };
        ensure!(cycle.len() + times <= CYCLE_MAX, "a mixture has at most {CYCLE_MAX} frames before it repeats");
        cycle.extend(std::iter::repeat_n(*size, times));
        count.clear();
    }
    ensure!(count.is_empty(), "sizes {text:?}: a count without a size after it");
    Sizes::new(text.into(), cycle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(text: &str) -> Vec<u16> {
        text.parse::<Sizes>().unwrap().cycle().to_vec()
    }

    #[test]
    fn mixtures_have_their_shares_spread_evenly() {
        let imix = sizes("imix");
        let count = |size| imix.iter().filter(|one| **one == size).count();
        assert_eq!((count(64), count(570), count(1518), imix.len()), (7, 4, 1, 12));
        // No two of the middle size are neighbours.
        assert!(imix.windows(2).all(|two| two != [570, 570]), "{imix:?}");
        assert_eq!(sizes("84:1,1400:3"), [1400, 84, 1400, 1400]);
        assert_eq!(sizes("9000"), [9000]);
    }

    #[test]
    fn genomes_keep_their_order() {
        assert_eq!(sizes("aadg"), [64, 64, 512, 1518]);
        assert_eq!(sizes("2a1d2h"), [64, 64, 512, 2112, 2112]);
        assert_eq!(sizes("bcef"), [128, 256, 1024, 1280]);
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (text, reason) in [
            ("63", "64 to 9000"),
            ("9001", "64 to 9000"),
            ("", "1 to 4096"),
            ("az", "letters are a to h"),
            ("a3", "a count without a size"),
            ("64:0", "weights are"),
            ("64:5000", "weights are"),
            ("64:x", "sizes \"64:x\""),
            ("9999a", "at most 4096"),
        ] {
            let error = text.parse::<Sizes>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn small_sizes_can_be_raised() {
        let raised = "imix".parse::<Sizes>().unwrap().at_least(84);
        assert_eq!(raised.cycle().iter().min(), Some(&84));
        assert_eq!(raised.largest(), 1518);
    }
}
