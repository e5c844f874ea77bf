//! Pictures of recorded figures, as SVG.
//!
//! Owns how figures look: bars from zero, the same colour for the same forwarder in every panel, the value beside its bar.
//! Refuses to measure or to leave anything out: what a record has is drawn.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::ladder::{Ladder, Rung};

/// Width of a picture, pixels.
pub(crate) const WIDTH: u32 = 960;
/// Height of a bar with what is around it, pixels.
const ROW: i32 = 22;
/// Height of a panel's title, pixels.
const TITLE: i32 = 34;
/// Where bars begin, pixels from the left: names stand before.
const NAMES: i32 = 300;
/// What is left for the value behind the longest bar, pixels.
const VALUES: i32 = 90;
/// Colours that people who do not see all colours can tell apart (Okabe and Ito).
pub(crate) const COLOURS: [RGBColor; 5] = [
    RGBColor(0x99, 0x99, 0x99),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0xcc, 0x79, 0xa7),
];

/// One panel: what it shows, and its figure of a rung, if there is one.
type Panel = (&'static str, fn(&Rung) -> Option<f64>);

const PANELS: [Panel; 5] = [
    ("Packets per second, more is better", |rung| Some(rung.mrr_per_s)),
    ("Processor time per packet, ns, less is better", |rung| rung.cpu_ns_per_packet),
    ("Latency at half of that rate, p99, us", |rung| Some(rung.latency.p99_us)),
    ("Latency of rare packets, p50, us", |rung| Some(rung.rare.p50_us)),
    ("Processor time while idle, percent of a core", |rung| rung.idle_percent),
];

/// The ladder as bars, a panel for each figure.
///
/// # Errors
/// When it cannot be drawn.
pub fn ladder(ladder: &Ladder) -> Result<String> {
    let rows = i32::try_from(ladder.rungs.len())?;
    let panels = i32::try_from(PANELS.len())?;
    let height = panels * (TITLE + rows * ROW) + 3 * ROW;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, u32::try_from(height)?)).into_drawing_area();
        draw(&area, ladder, height).map_err(|error| anyhow!("drawing: {error}"))?;
    }
    Ok(text)
}

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(crate) type Failure<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn draw<'a>(area: &Area<'a>, ladder: &Ladder, height: i32) -> Result<(), Failure<'a>> {
    area.fill(&WHITE)?;
    let mut names: Vec<&str> = ladder.rungs.iter().map(|rung| rung.name.as_str()).collect();
    names.dedup();
    let style = |size: i32, h_pos| ("sans-serif", size).into_font().color(&BLACK).pos(Pos::new(h_pos, VPos::Center));
    let mut top = 0;
    for (title, figure) in PANELS {
        area.draw_text(title, &style(16, HPos::Left), (8, top + TITLE / 2))?;
        top += TITLE;
        let longest = ladder.rungs.iter().filter_map(figure).fold(f64::MIN_POSITIVE, f64::max);
        for rung in &ladder.rungs {
            let middle = top + ROW / 2;
            area.draw_text(&format!("{}, {}", rung.name, rung.family), &style(13, HPos::Right), (NAMES - 8, middle))?;
            let value = figure(rung);
            // A part of some hundred pixels.
            #[allow(clippy::cast_possible_truncation)]
            let length = (value.unwrap_or_default() / longest * f64::from(WIDTH as i32 - NAMES - VALUES)) as i32;
            let number = names.iter().position(|name| *name == rung.name).unwrap_or_default();
            let colour = COLOURS.get(number % COLOURS.len()).copied().unwrap_or(BLACK);
            area.draw(&Rectangle::new([(NAMES, top + 3), (NAMES + length, top + ROW - 3)], colour.filled()))?;
            let said = value.map_or_else(|| "not counted".to_owned(), said);
            area.draw_text(&said, &style(13, HPos::Left), (NAMES + length + 6, middle))?;
            top += ROW;
        }
    }
    let place = &ladder.surroundings;
    let place = format!("{}, {} cores, kernel {}, {} build", place.processor, place.cores, place.kernel, place.build);
    area.draw_text(&place, &style(12, HPos::Left), (8, height - 2 * ROW))?;
    let conditions = ladder.conditions.split(';').next().unwrap_or_default();
    area.draw_text(conditions, &style(12, HPos::Left), (8, height - ROW))?;
    area.present()
}

/// A figure with three digits that count.
pub(crate) fn said(value: f64) -> String {
    match value {
        1_000_000.0.. => format!("{:.2} M", value / 1e6),
        10_000.0.. => format!("{:.0} k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        _ => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pktgen::histogram::Quantiles;
    use crate::pktgen::surroundings::Surroundings;

    #[test]
    fn every_figure_of_a_record_is_in_the_picture_and_what_was_not_counted_is_said() {
        let rung = |name: &str, family: &str, mrr: f64, cpu| Rung {
            name: name.into(),
            family: family.into(),
            mrr_per_s: mrr,
            offered_per_s: mrr,
            cpu_ns_per_packet: cpu,
            of_it_receiving_ns: None,
            latency: Quantiles { p99_us: 71.5, ..Quantiles::default() },
            idle_percent: Some(0.4),
            rare: Quantiles { p50_us: 33.25, ..Quantiles::default() },
            rounds_mrr_per_s: vec![],
        };
        let rungs = vec![
            rung("raw", "IPv4", 1_234_567.0, Some(812.0)),
            rung("raw", "IPv6", 54_321.0, None),
            rung("<kernel> & co", "IPv6", 321.0, Some(2_345.0)),
        ];
        let surroundings = Surroundings { processor: "a processor".into(), cores: 2, ..Surroundings::default() };
        let picture =
            ladder(&Ladder { surroundings, conditions: "veth; and more".into(), rungs, updates: vec![] }).unwrap();
        for words in [
            "raw, IPv4",
            "raw, IPv6",
            "&lt;kernel&gt; &amp; co, IPv6",
            "1.23 M",
            "54 k",
            "321",
            "812",
            "2345",
            "71.5",
            "33.2",
            "0.4",
            "not counted",
            "a processor, 2 cores",
            "veth\n",
        ] {
            assert!(picture.contains(words), "{words} in {picture}");
        }
        assert_eq!(picture.matches("<rect").count(), 1 + PANELS.len() * 3, "a bar for each, and the ground");
    }
}
