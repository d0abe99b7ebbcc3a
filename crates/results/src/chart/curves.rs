//! Loss curves of an image, inside a page.

use std::fmt::Write;

use maud::{Markup, html};
use proto::History;

use crate::format::{counted, decimal};

/// Pixels.
const WIDTH: f64 = 176.0;
const HEIGHT: f64 = 96.0;
const LEFT: f64 = 38.0;
const RIGHT: f64 = WIDTH - 3.0;
const TOP: f64 = 6.0;
const BOTTOM: f64 = HEIGHT - 17.0;
/// Seeds drawn beside the best one; of more, evenly spread ones.
const OTHER_SEEDS: usize = 17;
const OTHER_POINTS: usize = 40;
const BEST_POINTS: usize = 120;

/// A curve by its seed: steps with their losses.
type Curve = (usize, Vec<(usize, f64)>);

/// The final descent of each seed, the best one on top; the latent search where a method has no final descent. The loss axis is
/// logarithmic if it can be. Empty without a finite loss.
pub fn curves(history: &History, best: usize) -> Markup {
    let latent = [history.latent.clone()];
    let (curves, best, unit): (&[Vec<f64>], usize, &str) =
        if history.descent.iter().any(|c| !c.is_empty()) { (&history.descent, best, "step") } else { (&latent, 0, "generation") };
    let drawn = thinned_curves(curves, best);
    let values = drawn.iter().flat_map(|(_, points)| points.iter().map(|p| p.1));
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return html! {};
    }
    let last = drawn.iter().flat_map(|(_, points)| points.iter().map(|p| p.0)).max().unwrap_or(0);
    let scale = |v: f64| if low > 0.0 { v.ln() } else { v };
    let (floor, span) = (scale(low), (scale(high) - scale(low)).max(1e-12));
    let x = |i: usize| LEFT + (RIGHT - LEFT) * i as f64 / last.max(1) as f64;
    let y = |v: f64| BOTTOM - (BOTTOM - TOP) * ((scale(v) - floor) / span).clamp(0.0, 1.0);
    let points = |points: &[(usize, f64)]| {
        let mut text = String::new();
        for (j, (i, v)) in points.iter().enumerate() {
            write!(text, "{}{:.1},{:.1}", if j > 0 { " " } else { "" }, x(*i), y(*v)).expect("a String takes every write");
        }
        text
    };

    let end = curves.get(best).and_then(|c| c.last()).copied();
    let steps = counted(last as u64 + 1, unit);
    let label = format!("{} over {steps}, best ends at {}", counted(curves.len() as u64, "curve"), decimal(end, 3));
    html! {
        svg.curves width=(WIDTH) height=(HEIGHT) viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(label) {
            path.axis d={ "M" (LEFT) " " (TOP) "V" (BOTTOM) "H" (RIGHT) } {}
            @for (seed, curve) in &drawn {
                polyline class=(if *seed == best { "best" } else { "other" }) points=(points(curve)) {}
            }
            text.loss x=(LEFT - 5.0) y=(TOP + 7.0) { (axis_label(high)) }
            text.loss x=(LEFT - 5.0) y=(BOTTOM) { (axis_label(low)) }
            text.steps x=(RIGHT) y=(HEIGHT - 4.0) { (steps) }
        }
    }
}

/// The curves that are drawn, the best one last; without those that have no finite value.
fn thinned_curves(curves: &[Vec<f64>], best: usize) -> Vec<Curve> {
    let others: Vec<usize> = (0..curves.len()).filter(|i| *i != best).collect();
    let stride = others.len().div_ceil(OTHER_SEEDS).max(1);
    let others = others.into_iter().step_by(stride).map(|i| (i, thinned(&curves[i], OTHER_POINTS)));
    let best = curves.get(best).map(|curve| (best, thinned(curve, BEST_POINTS)));
    others.chain(best).filter(|(_, points)| !points.is_empty()).collect()
}

/// At most `most` points of a curve, the first and the last among them; values that are not finite are left out.
fn thinned(curve: &[f64], most: usize) -> Vec<(usize, f64)> {
    let last = curve.len().saturating_sub(1);
    let kept = curve.len().min(most);
    (0..kept)
        .map(|i| if kept > 1 { i * last / (kept - 1) } else { 0 })
        .map(|i| (i, curve[i]))
        .filter(|(_, v)| v.is_finite())
        .collect()
}

fn axis_label(loss: f64) -> String {
    if loss.abs() < 0.01 || loss.abs() >= 1000.0 { format!("{loss:.0e}") } else { format!("{loss:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(curves(&History::default(), 3).into_string().is_empty());
        let flat = History { descent: vec![vec![1.0; 5], vec![]], ..History::default() };
        let negative = History { latent: vec![3.0, -1.0, 0.0], ..History::default() };
        let page = curves(&flat, 9).into_string() + &curves(&negative, 2).into_string();
        assert!(page.contains("3 generations") && !page.contains("NaN"), "{page}");
    }
}
