//! The two charts, as SVG that takes its colours from the page.

use std::fmt::{self, Write};

use proto::History;

use super::{Counted, Real, Text};
use crate::summary::Spread;

/// One class, or super-class.
pub struct Bar<'a> {
    pub name: &'a str,
    pub images: u64,
    pub spread: Spread,
}

/// Pixels of a bar and its gap.
const ROW: usize = 24;
/// Classes above which only the ends of the list are drawn.
const MOST_BARS: usize = 40;
const FIRST_BARS: usize = 30;
const LAST_BARS: usize = MOST_BARS - FIRST_BARS;

/// Horizontal bars with whiskers. Lengths are percentages, so that the text keeps its size on any screen; names and numbers
/// stand outside of the drawing, in the padding that the page gives it. Names are a list, since only HTML can cut them to fit.
pub fn write_bars(page: &mut String, by: &str, bars: &[Bar]) -> fmt::Result {
    let (first, last) = if bars.len() > MOST_BARS { (FIRST_BARS, LAST_BARS) } else { (bars.len(), 0) };
    let end = |b: &Bar| b.spread.mean.unwrap_or(0.0) + b.spread.standard_error.unwrap_or(0.0);
    let largest = bars.iter().map(end).fold(0.0, f64::max);
    let step = tick_step(largest / 4.0);
    let ticks = if largest > 0.0 { (largest / step).ceil() as usize } else { 1 };
    let percent = |value: f64| 100.0 * (value / (step * ticks as f64)).clamp(0.0, 1.0);

    let rows = first + last + usize::from(last > 0);
    let height = rows * ROW;
    writeln!(
        page,
        "<div class=\"bars\"><svg width=\"100%\" height=\"{}\" role=\"img\" aria-label=\"Mean LPIPS and standard error by {by}; the table below has the numbers\">",
        height + 24,
    )?;
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    for i in 0..=ticks {
        let value = i as f64 * step;
        let x = percent(value);
        writeln!(
            page,
            "<line class=\"grid\" x1=\"{x:.2}%\" x2=\"{x:.2}%\" y1=\"0\" y2=\"{height}\"/><text class=\"tick\" x=\"{x:.2}%\" y=\"{}\">{value:.decimals$}</text>",
            height + 17,
        )?;
    }
    let mut names = String::new();
    let mut y = 0;
    for (i, bar) in bars.iter().enumerate() {
        if i >= first && i < bars.len() - last {
            if i == first {
                write!(names, "<li class=\"quiet\">⋮ {} more</li>", bars.len() - first - last)?;
                y += ROW;
            }
            continue;
        }
        write!(
            page,
            "<g><title>{}: {} ± {}, {}</title>",
            Text(bar.name),
            Real(bar.spread.mean),
            Real(bar.spread.standard_error),
            Counted(bar.images, "image"),
        )?;
        write!(names, "<li title=\"{0}\"><bdi>{0}</bdi></li>", Text(bar.name))?;
        if let Some(mean) = bar.spread.mean {
            write!(page, "<rect class=\"bar\" x=\"0\" y=\"{}\" width=\"{:.2}%\" height=\"14\"/>", y + 5, percent(mean))?;
            if let Some(error) = bar.spread.standard_error {
                let (low, high, middle) = (percent(mean - error), percent(mean + error), y + 12);
                write!(page, "<line class=\"whisker\" x1=\"{low:.2}%\" x2=\"{high:.2}%\" y1=\"{middle}\" y2=\"{middle}\"/>")?;
                for x in [low, high] {
                    write!(
                        page,
                        "<line class=\"whisker\" x1=\"{x:.2}%\" x2=\"{x:.2}%\" y1=\"{}\" y2=\"{}\"/>",
                        middle - 4,
                        middle + 4
                    )?;
                }
            }
        }
        // The number's place is the padding right of 100 %; a nested drawing moves the origin there.
        writeln!(
            page,
            "<svg x=\"100%\" overflow=\"visible\"><text class=\"value\" x=\"50\" y=\"{0}\">{1}</text><text class=\"n\" x=\"60\" y=\"{0}\">n = {2}</text></svg></g>",
            y + 16,
            Real(bar.spread.mean),
            bar.images,
        )?;
        y += ROW;
    }
    writeln!(page, "</svg><ul aria-hidden=\"true\">{names}</ul></div>")
}

/// 1, 2 or 5 times a power of ten, not below `least`.
pub fn tick_step(least: f64) -> f64 {
    if least <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= least * 0.999).unwrap_or(10.0 * power)
}

const WIDTH: f64 = 176.0;
const HEIGHT: f64 = 96.0;
const LEFT: f64 = 38.0;
const RIGHT: f64 = WIDTH - 3.0;
const TOP: f64 = 6.0;
const BOTTOM: f64 = HEIGHT - 17.0;
/// Seeds drawn beside the best one; of more, every so many.
const OTHER_SEEDS: usize = 17;
const OTHER_POINTS: usize = 40;
const BEST_POINTS: usize = 120;

/// The final descent of each seed, the best one on top; the latent search where a method has no final descent. The loss
/// axis is logarithmic if it can be.
pub fn write_curves(page: &mut String, history: &History, best: usize) -> fmt::Result {
    let latent = [history.latent.clone()];
    let (curves, best, unit): (&[Vec<f64>], usize, &'static str) =
        if history.descent.iter().any(|c| !c.is_empty()) { (&history.descent, best, "step") } else { (&latent, 0, "generation") };
    let others: Vec<usize> = (0..curves.len()).filter(|i| *i != best).collect();
    let stride = others.len().div_ceil(OTHER_SEEDS).max(1);
    let mut drawn: Vec<(usize, Vec<(usize, f64)>)> =
        others.into_iter().step_by(stride).map(|i| (i, thinned(&curves[i], OTHER_POINTS))).collect();
    let best_curve = curves.get(best).map(|c| thinned(c, BEST_POINTS)).unwrap_or_default();
    drawn.push((best, best_curve));
    drawn.retain(|(_, points)| !points.is_empty());

    let values = drawn.iter().flat_map(|(_, points)| points.iter().map(|p| p.1));
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return Ok(());
    }
    let last = drawn.iter().flat_map(|(_, points)| points.iter().map(|p| p.0)).max().unwrap_or(0);
    let scale = |v: f64| if low > 0.0 { v.ln() } else { v };
    let (floor, span) = (scale(low), (scale(high) - scale(low)).max(1e-12));
    let x = |i: usize| LEFT + (RIGHT - LEFT) * i as f64 / last.max(1) as f64;
    let y = |v: f64| BOTTOM - (BOTTOM - TOP) * ((scale(v) - floor) / span).clamp(0.0, 1.0);

    let end = curves.get(best).and_then(|c| c.last()).copied();
    write!(
        page,
        "<svg class=\"curves\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"{} over {}, best ends at {}\"><path class=\"axis\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>",
        Counted(curves.len() as u64, "curve"),
        Counted(last as u64 + 1, unit),
        Real(end),
    )?;
    for (i, points) in &drawn {
        let class = if *i == best { "best" } else { "other" };
        write!(page, "<polyline class=\"{class}\" points=\"")?;
        for (j, (i, v)) in points.iter().enumerate() {
            write!(page, "{}{:.1},{:.1}", if j > 0 { " " } else { "" }, x(*i), y(*v))?;
        }
        page.push_str("\"/>");
    }
    let axis = |v: f64| if v.abs() < 0.01 || v.abs() >= 1000.0 { format!("{v:.0e}") } else { format!("{v:.2}") };
    write!(
        page,
        "<text class=\"loss\" x=\"{0}\" y=\"{1}\">{2}</text><text class=\"loss\" x=\"{0}\" y=\"{BOTTOM}\">{3}</text>\
         <text class=\"steps\" x=\"{RIGHT}\" y=\"{4}\">{5}</text></svg>",
        LEFT - 5.0,
        TOP + 7.0,
        axis(high),
        axis(low),
        HEIGHT - 4.0,
        Counted(last as u64 + 1, unit),
    )
}

/// At most `most` points of a curve, the first and the last among them; values that are no number are left out.
fn thinned(curve: &[f64], most: usize) -> Vec<(usize, f64)> {
    let last = curve.len().saturating_sub(1);
    let kept = curve.len().min(most);
    (0..kept)
        .map(|i| if kept > 1 { i * last / (kept - 1) } else { 0 })
        .map(|i| (i, curve[i]))
        .filter(|(_, v)| v.is_finite())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!([0.07, 0.1, 0.13, 0.3, 0.6].map(tick_step), [0.1, 0.1, 0.2, 0.5, 1.0]);
        assert_eq!(tick_step(0.0), 1.0);
    }

    #[test]
    fn a_thinned_curve_keeps_its_ends() {
        let curve: Vec<f64> = (0..301).map(f64::from).collect();
        let points = thinned(&curve, 40);
        assert_eq!((points.len(), points[0], points[39]), (40, (0, 0.0), (300, 300.0)));
        assert_eq!(thinned(&[1.0], 40), [(0, 1.0)]);
        assert_eq!(thinned(&[1.0, f64::NAN, 2.0], 40), [(0, 1.0), (2, 2.0)]);
        assert!(thinned(&[], 40).is_empty());
    }

    #[test]
    fn odd_histories_are_drawn_or_left_out() {
        let mut page = String::new();
        write_curves(&mut page, &History::default(), 3).expect("a String takes every write");
        assert!(page.is_empty());
        let flat = History { descent: vec![vec![1.0; 5], vec![]], ..History::default() };
        write_curves(&mut page, &flat, 9).expect("a String takes every write");
        let negative = History { latent: vec![3.0, -1.0, 0.0], ..History::default() };
        write_curves(&mut page, &negative, 2).expect("a String takes every write");
        assert!(page.contains("3 generations") && !page.contains("NaN"), "{page}");
    }
}
