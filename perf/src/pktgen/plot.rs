//! Pictures of what a run has found, as SVG: the trials of a search, what became of the packets of one trial.
//!
//! Owns how they look. Every figure in a picture stands in the [report](crate::pktgen::report), too.

use anyhow::{Result, anyhow, bail};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::pktgen::histogram::Quantiles;
use crate::pktgen::report::{self, Report};
use crate::pktgen::search::Found;
use crate::pktgen::trial::Outcome;
use crate::plot::{Area, COLOURS, Failure, WIDTH, said};

/// Height of a picture, pixels.
const HEIGHT: i32 = 420;
/// Where axes lie, pixels from the left and from the top.
const LEFT: i32 = 110;
const RIGHT: i32 = 820;
const TOP: i32 = 60;
const BOTTOM: i32 = 320;
/// Height of a line of text or of a bar, pixels.
const ROW: i32 = 24;
/// Least loss ratio that fills the picture's height: less would make much of a single packet.
const LOSS_SCALE_MIN: f64 = 0.001;
/// Colour of trials that passed, and of those that did not.
const PASSED: RGBColor = COLOURS[1];
const FAILED: RGBColor = COLOURS[3];

/// The picture of a search or of a trial.
///
/// # Errors
/// For other results, and when it cannot be drawn.
pub fn picture(report: &Report) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT as u32)).into_drawing_area();
        let drawn = match &report.result {
            report::Result::Search(found) => frame(&area, report).and_then(|()| search(&area, found)),
            report::Result::Trial(outcome) => frame(&area, report).and_then(|()| trial(&area, "One trial", outcome)),
            report::Result::Latency { part, outcome, .. } => {
                let title = format!("{:.0} % of the maximum receive rate", part * 100.0);
                frame(&area, report).and_then(|()| trial(&area, &title, outcome))
            }
            report::Result::Stateful(_) | report::Result::Handshakes(_) => bail!("there is no picture of connections"),
        };
        drawn.and_then(|()| area.present()).map_err(|error| anyhow!("drawing: {error}"))?;
    }
    Ok(text)
}

fn style(size: i32, h_pos: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK).pos(Pos::new(h_pos, VPos::Center))
}

/// The ground, and under which conditions the figures came to be.
fn frame<'a>(area: &Area<'a>, report: &Report) -> Result<(), Failure<'a>> {
    area.fill(&WHITE)?;
    let (place, sent) = (&report.surroundings, &report.sent);
    let place = format!("{}, {} cores, kernel {}, {} build", place.processor, place.cores, place.kernel, place.build);
    let vxlan = if sent.vxlan { " in VXLAN" } else { "" };
    let sent = format!(
        "{} {}{vxlan}, sizes {}, {} flows {}; {} {} to {} {}",
        sent.family,
        sent.protocol,
        sent.sizes,
        sent.flows,
        sent.order,
        report.tx.driver,
        report.tx.mode,
        report.rx.driver,
        report.rx.mode
    );
    area.draw_text(&sent, &style(12, HPos::Left), (8, HEIGHT - 2 * ROW))?;
    area.draw_text(&place, &style(12, HPos::Left), (8, HEIGHT - ROW))
}

/// A part (0 to 1) of some pixels.
#[allow(clippy::cast_possible_truncation, reason = "a part of some hundred pixels")]
fn part(part: f64, pixels: i32) -> i32 {
    (part.clamp(0.0, 1.0) * f64::from(pixels)) as i32
}

/// Each trial at the rate that it sent and the loss that it had, in order; and the rates between which the answer lies.
fn search<'a>(area: &Area<'a>, found: &Found) -> Result<(), Failure<'a>> {
    let outcomes = || found.steps.iter().map(|step| &step.outcome);
    let rate_max = outcomes().map(|outcome| outcome.sent_per_s).fold(f64::MIN_POSITIVE, f64::max);
    let allowed = found.loss_ratio_max.unwrap_or(0.0);
    let loss_max = outcomes().map(|outcome| outcome.loss_ratio).fold(allowed.max(LOSS_SCALE_MIN), f64::max);
    let x = |rate: f64| LEFT + part(rate / rate_max, RIGHT - LEFT);
    let y = |loss: f64| BOTTOM - part(loss / loss_max, BOTTOM - TOP);
    let title = format!("{}: loss in percent over packets sent per second, trial by trial", found.what.to_uppercase());
    area.draw_text(&title, &style(16, HPos::Left), (8, ROW))?;
    area.draw(&PathElement::new(vec![(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], BLACK))?;
    for step in 0..=2 {
        let (rate, loss) = (rate_max * f64::from(step) / 2.0, loss_max * f64::from(step) / 2.0);
        area.draw_text(&said(rate), &style(13, HPos::Center), (x(rate), BOTTOM + ROW / 2))?;
        area.draw_text(&format!("{:.3} %", loss * 100.0), &style(13, HPos::Right), (LEFT - 8, y(loss)))?;
    }
    if allowed > 0.0 {
        area.draw(&PathElement::new(vec![(LEFT, y(allowed)), (RIGHT, y(allowed))], COLOURS[0]))?;
        let text = format!("{:.2} % may be lost", allowed * 100.0);
        area.draw_text(&text, &style(12, HPos::Left), (RIGHT + 6, y(allowed)))?;
    }
    let failed = found.steps.iter().filter(|step| !step.passed).map(|step| step.outcome.sent_per_s);
    let upper = failed.filter(|rate| *rate >= found.rate_per_s).fold(f64::INFINITY, f64::min);
    let figure = format!("{} {}/s", found.what, said(found.rate_per_s));
    let bounds = [(found.rate_per_s, PASSED, figure, TOP - ROW / 2), (upper, FAILED, "too much".into(), BOTTOM + ROW)];
    for (rate, colour, text, height) in bounds.into_iter().filter(|(rate, ..)| rate.is_finite()) {
        area.draw(&PathElement::new(vec![(x(rate), TOP), (x(rate), BOTTOM)], colour))?;
        area.draw_text(&text, &style(12, HPos::Center), (x(rate), height))?;
    }
    for (number, step) in (1..).zip(&found.steps) {
        let at = (x(step.outcome.sent_per_s), y(step.outcome.loss_ratio));
        let colour = if step.passed { PASSED } else { FAILED };
        area.draw(&Circle::new(at, 5, colour.filled()))?;
        area.draw_text(&number.to_string(), &style(11, HPos::Left), (at.0 + 7, at.1 - 7))?;
    }
    Ok(())
}

/// What was sent and what became of it, and how late packets were.
fn trial<'a>(area: &Area<'a>, title: &str, outcome: &Outcome) -> Result<(), Failure<'a>> {
    let title = format!(
        "{title}: {} packets sent, {}/s; {} lost ({:.4} %)",
        outcome.sent,
        said(outcome.sent_per_s),
        outcome.lost,
        outcome.loss_ratio * 100.0
    );
    area.draw_text(&title, &style(16, HPos::Left), (8, ROW))?;
    let Quantiles { count, mean_us, p50_us, p99_us, p99_9_us, max_us } = outcome.latency;
    if count == 0 {
        return area.draw_text("no latency: no packet was received", &style(13, HPos::Left), (8, TOP + ROW / 2));
    }
    area.draw_text("Latency in us", &style(13, HPos::Left), (8, TOP + ROW / 2))?;
    let bars = [("mean", mean_us), ("p50", p50_us), ("p99", p99_us), ("p99.9", p99_9_us), ("longest", max_us)];
    let longest = bars.iter().map(|(_, us)| *us).fold(f64::MIN_POSITIVE, f64::max);
    for (row, (name, us)) in (1..).zip(bars) {
        let (top, length) = (TOP + row * ROW, part(us / longest, RIGHT - LEFT));
        let colour = if name == "mean" { COLOURS[0] } else { PASSED };
        area.draw_text(name, &style(13, HPos::Right), (LEFT - 8, top + ROW / 2))?;
        area.draw(&Rectangle::new([(LEFT, top + 3), (LEFT + length, top + ROW - 3)], colour.filled()))?;
        area.draw_text(&said(us), &style(13, HPos::Left), (LEFT + length + 6, top + ROW / 2))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pktgen::report::{Sent, Side};
    use crate::pktgen::search::Step;
    use crate::pktgen::surroundings::Surroundings;

    fn report(result: report::Result) -> Report {
        let side = |mode: &str| Side { driver: "veth".into(), mode: mode.into(), queues: 1 };
        let surroundings = Surroundings { processor: "a processor".into(), cores: 2, ..Surroundings::default() };
        let sent = Sent { family: "ipv6".into(), sizes: "9000".into(), vxlan: true, ..Sent::default() };
        Report { surroundings, tx: side("copy"), rx: side("zero-copy"), sent, result }
    }

    fn outcome(sent_per_s: f64, loss_ratio: f64) -> Outcome {
        Outcome { sent: 1_000, sent_per_s, loss_ratio, lost: 7, ..Outcome::default() }
    }

    #[test]
    fn every_trial_of_a_search_and_its_bounds_are_in_the_picture() {
        let step = |rate, loss, passed| Step { outcome: outcome(rate, loss), passed };
        let found = Found {
            what: "pdr".into(),
            loss_ratio_max: Some(0.005),
            rate_per_s: 1_250_000.0,
            precision: 0.01,
            generator_was_the_limit: false,
            passing_losses: 0,
            best: None,
            steps: vec![step(2_000_000.0, 0.25, false), step(1_500_000.0, 0.06, false), step(1_250_000.0, 0.001, true)],
        };
        let picture = picture(&report(report::Result::Search(found.clone()))).unwrap();
        for words in
            ["PDR: loss", "pdr 1.25 M/s", "2.00 M", "25.000 %", "0.50 % may be lost", "too much", "ipv6", "in VXLAN"]
        {
            assert!(picture.contains(words), "{words} in {picture}");
        }
        assert_eq!(picture.matches("<circle").count(), 3);
        // The axes, what may be lost, and two bounds: the lowest rate that is too much lies at three quarters.
        let at = LEFT + part(0.75, RIGHT - LEFT);
        assert_eq!(picture.matches("<polyline").count(), 4, "{picture}");
        assert!(picture.contains(&format!("{at},{TOP} {at},{BOTTOM}")), "{picture}");
        // A search in which nothing was lost has no upper bound, and one without a trial no point.
        let best = Found { steps: found.steps[2..].to_vec(), ..found.clone() };
        let one = super::picture(&report(report::Result::Search(best))).unwrap();
        assert!(!one.contains("too much") && one.matches("<circle").count() == 1);
        let none = super::picture(&report(report::Result::Search(Found { steps: Vec::new(), ..found }))).unwrap();
        assert_eq!(none.matches("<circle").count(), 0);
    }

    #[test]
    fn every_quantile_of_a_trial_is_in_the_picture() {
        let latency =
            Quantiles { count: 9, mean_us: 12.5, p50_us: 11.25, p99_us: 71.5, p99_9_us: 250.0, max_us: 4_321.0 };
        let one = Outcome { latency, ..outcome(54_321.0, 0.007) };
        let latency = report::Result::Latency { mrr_per_s: 1.0, part: 0.5, outcome: one.clone() };
        for (result, title) in
            [(report::Result::Trial(one), "One trial"), (latency, "50 % of the maximum receive rate")]
        {
            let picture = picture(&report(result)).unwrap();
            for words in
                [title, "54 k/s", "7 lost (0.7000 %)", "12.5", "11.2", "71.5", "250", "4321", "a processor, 2 cores"]
            {
                assert!(picture.contains(words), "{words} in {picture}");
            }
            assert_eq!(picture.matches("<rect").count(), 1 + 5, "a bar for each, and the ground");
        }
        let counted = picture(&report(report::Result::Trial(outcome(1.0, 0.0)))).unwrap();
        assert!(counted.contains("no latency") && counted.matches("<rect").count() == 1);
        let connections = report::Result::Handshakes(crate::pktgen::stateful::Handshakes::default());
        assert!(picture(&report(connections)).is_err());
    }
}
