//! Drawings that stand alone as SVG files, and inside of a page.
//!
//! Their style is one text, so that a page can name its hash. They have a background of their own: a viewer without dark mode shows dark
//! on light.

use maud::{Markup, PreEscaped, html};

use super::{Axis, Bar, Drawn, ROW};
use crate::format::clipped;
use crate::html::Untrusted;

/// The style of all drawings.
pub const STYLE: &str = "\
.figure .ground{fill:#ffffff}.figure text{fill:#1d2126;font:13px system-ui,sans-serif}.figure .quiet{fill:#666d76;font-size:12px}\
.figure .end{text-anchor:end}.figure .middle{text-anchor:middle}.figure .grid{stroke:#e2e3e0}.figure .bar{fill:#7ba2b6}\
.figure .whisker{stroke:#1d2126;stroke-width:1.25}.figure .line{fill:none;stroke:#9c4327;stroke-width:2}\
@media (prefers-color-scheme:dark){.figure .ground{fill:#1b1f23}.figure text{fill:#e5e7e9}.figure .quiet{fill:#9aa2aa}\
.figure .grid{stroke:#2d3237}.figure .bar{fill:#4f7f96}.figure .whisker{stroke:#e5e7e9}.figure .line{stroke:#e0936f}}";

/// Where bars begin and end; their names end before, their numbers follow.
const BARS: (f64, f64) = (190.0, 600.0);
/// Where names end and numbers begin.
const NAMES_END: f64 = BARS.0 - 10.0;
const TOP: usize = 40;
const NAME: usize = 26;
/// Bars at each end of a list that is too long to draw all of it.
const HALF: usize = 30;

/// Bars with whiskers of one standard error (the paper's Figure 9).
pub fn bars(title: &str, bars: &[Bar]) -> String {
    let (axis, drawn) = (Axis::over(bars), Drawn::of(bars, HALF, HALF));
    let bottom = TOP + drawn.rows() * ROW;
    let between = TOP + drawn.first.len() * ROW;
    let content = html! {
        @for (at, label) in axis.ticks() {
            @let x = x(at);
            path.grid d={ "M" (x) " " (TOP) "V" (bottom) } {}
            text class="quiet middle" x=(x) y=(bottom + 17) { (label) }
        }
        @for (row, bar) in drawn.placed() { (drawn_bar(&axis, bar, TOP + row * ROW)) }
        @if drawn.left_out > 0 {
            text class="quiet end" x=(NAMES_END) y=(between + 16) { (drawn.left_out) " more" }
        }
    };
    figure((760, bottom + 28), title, &content)
}

fn x(at: f64) -> String {
    pixels(BARS.0 + (BARS.1 - BARS.0) * at)
}

pub fn pixels(value: f64) -> String {
    format!("{value:.1}")
}

/// `y`: top of the bar's row.
fn drawn_bar(axis: &Axis, bar: &Bar, y: usize) -> Markup {
    let (middle, baseline) = (y + 12, y + 16);
    let number = bar.spread.mean.map_or("-".to_owned(), |mean| format!("{mean:.3}"));
    html! {
        text.end x=(NAMES_END) y=(baseline) { (Untrusted(&clipped(bar.name, NAME))) }
        @if let Some(mean) = bar.spread.mean {
            rect.bar x=(BARS.0) y=(y + 5) width=(pixels((BARS.1 - BARS.0) * axis.at(mean))) height="14" {}
        }
        @if let Some((mean, error)) = bar.spread.mean.zip(bar.spread.standard_error) {
            @let (low, high) = (x(axis.at(mean - error)), x(axis.at(mean + error)));
            @let (up, down) = (middle - 4, middle + 4);
            path.whisker d=(format!("M{low} {middle}H{high}M{low} {up}V{down}M{high} {up}V{down}")) {}
        }
        text.end x="656" y=(baseline) { (number) }
        text.quiet x="668" y=(baseline) { "n = " (bar.images) }
    }
}

/// How two sets of numbers from 0 to 1 are distributed.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel<'a> {
    pub name: &'a str,
    /// For each of equally wide cells the numbers in it, of either set.
    pub counts: [&'a [u32]; 2],
}

/// Pixels of a panel, around it, and below it.
const PANEL: (f64, f64) = (320.0, 150.0);
const MARGIN: (f64, f64) = (40.0, 70.0);
const BELOW: f64 = 50.0;

/// Histograms, two in a row: the first set as bars, the second as a line over them, each as parts of its own number.
pub fn histograms(title: &str, names: [&str; 2], panels: &[Panel]) -> String {
    let rows = panels.len().div_ceil(2) as f64;
    let size = (2.0 * PANEL.0 + 3.0 * MARGIN.0, MARGIN.1 + rows * (PANEL.1 + BELOW));
    let left = [MARGIN.0, MARGIN.0 + PANEL.0 + MARGIN.0];
    let content = html! {
        rect.bar x=(left[0]) y="36" width="16" height="10" {}
        text x=(left[0] + 24.0) y="46" { (Untrusted(names[0])) }
        path.line d={ "M" (left[1]) " 41h16" } {}
        text x=(left[1] + 24.0) y="46" { (Untrusted(names[1])) }
        @for (i, drawn) in panels.iter().enumerate() {
            (panel(drawn, left[i % 2], MARGIN.1 + (i / 2) as f64 * (PANEL.1 + BELOW)))
        }
    };
    figure((size.0 as usize, size.1 as usize), title, &content)
}

fn panel(panel: &Panel, left: f64, top: f64) -> Markup {
    let parts = panel.counts.map(|counts| {
        let all = counts.iter().sum::<u32>().max(1);
        counts.iter().map(|&count| f64::from(count) / f64::from(all)).collect::<Vec<_>>()
    });
    let largest = parts.iter().flatten().fold(0.0, |a: f64, &b| a.max(b)).max(1e-9);
    let (right, bottom) = (left + PANEL.0, top + PANEL.1);
    let y = |part: f64| bottom - (PANEL.1 - 16.0) * part / largest;
    let x = |cell: usize, cells: usize| left + PANEL.0 * cell as f64 / cells as f64;
    let [bars, line] = &parts;
    let outline: String =
        line.iter().enumerate().map(|(cell, &part)| format!("V{:.1}H{:.1}", y(part), x(cell + 1, line.len()))).collect();
    html! {
        @for (i, label) in ["0", "0.5", "1"].iter().enumerate() {
            @let at = left + PANEL.0 * i as f64 / 2.0;
            path.grid d={ "M" (at) " " (top) "V" (bottom) } {}
            text class="quiet middle" x=(at) y=(bottom + 16.0) { (label) }
        }
        @for (cell, &part) in bars.iter().enumerate().filter(|(_, part)| **part > 0.0) {
            @let (from, to) = (x(cell, bars.len()), x(cell + 1, bars.len()));
            rect.bar x=(pixels(from)) y=(pixels(y(part))) width=(pixels(to - from - 1.0)) height=(pixels(bottom - y(part))) {}
        }
        path.line d={ "M" (left) " " (bottom) (outline) "V" (bottom) } {}
        text x=(left) y=(top - 4.0) { (Untrusted(panel.name)) }
        text class="quiet end" x=(right) y=(top - 4.0) { "at most " (format!("{:.0}", 100.0 * largest)) " % in a cell" }
    }
}

/// A file with this content below its title. The size is in pixels.
pub fn figure((width, height): (usize, usize), title: &str, content: &Markup) -> String {
    let svg = html! {
        svg.figure xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height)
            role="img" aria-label=(Untrusted(title))
        {
            style { (PreEscaped(STYLE)) }
            rect.ground width=(width) height=(height) {}
            text x="20" y="24" { (Untrusted(title)) }
            (content)
        }
    };
    svg.into_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::Spread;

    fn bar(name: &str, mean: f64) -> Bar<'_> {
        Bar { name, images: 4, spread: Spread { mean: Some(mean), standard_error: Some(0.1), median: None } }
    }

    #[test]
    fn bars_are_as_long_as_their_means_and_whiskers_as_their_errors() {
        let odd = Bar { name: "Odd", images: 0, spread: Spread::default() };
        let svg = bars("LPIPS", &[bar("<Bag>", 0.9), bar("Coat", 0.4), odd]);
        // 410 pixels are 1.0.
        assert!(svg.contains("width=\"369.0\"") && svg.contains("width=\"164.0\""), "{svg}");
        assert!(svg.contains("M518.0 52H600.0") && svg.contains("M313.0 76H395.0"), "{svg}");
        assert!(svg.contains("&lt;Bag&gt;") && svg.contains("n = 0") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn only_the_ends_of_many_bars_are_drawn() {
        let names: Vec<String> = (0..100).map(|i| format!("class {i}")).collect();
        let all: Vec<Bar> = names.iter().map(|name| bar(name, 0.5)).collect();
        let svg = bars("LPIPS", &all);
        assert_eq!(svg.matches("n = 4").count(), 2 * HALF);
        assert!(svg.contains("40 more") && svg.contains("class 29<") && !svg.contains("class 30<") && svg.contains("class 70<"));
    }

    #[test]
    fn histograms_are_in_parts_of_their_own_number() {
        let panel = Panel { name: "width", counts: [&[0, 8], &[1, 3]] };
        let svg = histograms("where", ["generator", "data set"], &[panel]);
        // All of one set is in the second cell: as high as it gets. A quarter and three quarters of the other.
        assert!(svg.contains("<rect class=\"bar\" x=\"200.0\" y=\"86.0\" width=\"159.0\" height=\"134.0\"></rect>"), "{svg}");
        assert!(svg.contains("M40 220V186.5H200.0V119.5H360.0V220"), "{svg}");
        assert!(svg.contains("at most 100 % in a cell"), "{svg}");
    }
}
