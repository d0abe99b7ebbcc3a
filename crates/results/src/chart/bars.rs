//! Horizontal bars with whiskers, inside a page.
//!
//! Lengths are percentages, so that the text keeps its size on any screen; names and numbers stand outside of the drawing, in the
//! padding that the page gives it. Names are a list, since only HTML can cut them to fit.

use maud::{Markup, html};

use super::{Axis, Bar, Drawn, ROW};
use crate::format::{counted, decimal};
use crate::html::Untrusted;

/// Bars at each end of a list that is too long to draw all of it.
const FIRST: usize = 30;
const LAST: usize = 10;

/// `by`: what the bars are, for a reader who does not see them.
pub fn bars(by: &str, bars: &[Bar]) -> Markup {
    let (axis, drawn) = (Axis::over(bars), Drawn::of(bars, FIRST, LAST));
    let height = drawn.rows() * ROW;
    let label = format!("Mean LPIPS and standard error by {by}; the table below has the numbers");
    html! {
        div.bars {
            svg width="100%" height=(height + 24) role="img" aria-label=(label) {
                @for (at, label) in axis.ticks() {
                    @let x = percent(at);
                    line.grid x1=(x) x2=(x) y1="0" y2=(height) {}
                    text.tick x=(x) y=(height + 17) { (label) }
                }
                @for (row, bar) in drawn.placed() { (drawn_bar(&axis, bar, row * ROW)) }
            }
            ul aria-hidden="true" {
                @for bar in drawn.first { (name(bar)) }
                @if drawn.left_out > 0 { li.quiet { "⋮ " (drawn.left_out) " more" } }
                @for bar in drawn.last { (name(bar)) }
            }
        }
    }
}

fn name(bar: &Bar) -> Markup {
    html! { li title=(Untrusted(bar.name)) { bdi { (Untrusted(bar.name)) } } }
}

/// `y`: top of the bar's row.
fn drawn_bar(axis: &Axis, bar: &Bar, y: usize) -> Markup {
    let [mean, error] = [bar.spread.mean, bar.spread.standard_error].map(|value| decimal(value, 3));
    let whisker = bar.spread.mean.zip(bar.spread.standard_error);
    let (middle, baseline) = (y + 12, y + 16);
    html! {
        g {
            title { (Untrusted(bar.name)) ": " (mean) " ± " (error) ", " (counted(bar.images, "image")) }
            @if let Some(mean) = bar.spread.mean {
                rect.bar x="0" y=(y + 5) width=(percent(axis.at(mean))) height="14" {}
            }
            @if let Some((mean, error)) = whisker {
                @let ends = [mean - error, mean + error].map(|value| percent(axis.at(value)));
                line.whisker x1=(ends[0]) x2=(ends[1]) y1=(middle) y2=(middle) {}
                @for x in &ends { line.whisker x1=(x) x2=(x) y1=(middle - 4) y2=(middle + 4) {} }
            }
            // The number's place is the padding right of 100 %; a nested drawing moves the origin there.
            svg x="100%" overflow="visible" {
                text.value x="50" y=(baseline) { (mean) }
                text.n x="60" y=(baseline) { "n = " (bar.images) }
            }
        }
    }
}

fn percent(at: f64) -> String {
    format!("{:.2}%", 100.0 * at)
}
