//! Drawings of a study: SVG files that stand alone, and inside of a page. Pure.
//!
//! Their style is one text, so that a page can name its hash. It has a ground of its own: a viewer that knows no dark mode shows dark
//! on light.

use std::fmt::{self, Write};

use results::report::Text;
use results::report::chart::tick_step;

/// The style of all drawings.
pub const STYLE: &str = "\
.figure .ground{fill:#ffffff}.figure text{fill:#1d2126;font:13px system-ui,sans-serif}.figure .quiet{fill:#666d76;font-size:12px}\
.figure .end{text-anchor:end}.figure .middle{text-anchor:middle}.figure .grid{stroke:#e2e3e0}.figure .bar{fill:#7ba2b6}\
.figure .whisker{stroke:#1d2126;stroke-width:1.25}.figure .line{fill:none;stroke:#9c4327;stroke-width:2}\
@media (prefers-color-scheme:dark){.figure .ground{fill:#1b1f23}.figure text{fill:#e5e7e9}.figure .quiet{fill:#9aa2aa}\
.figure .grid{stroke:#2d3237}.figure .bar{fill:#4f7f96}.figure .whisker{stroke:#e5e7e9}.figure .line{stroke:#e0936f}}";

/// A class with its error.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar<'a> {
    /// Of the class.
    pub name: &'a str,
    /// Its images.
    pub images: usize,
    /// Over them; none of none.
    pub mean: Option<f64>,
    /// Of the mean; none of one image.
    pub standard_error: Option<f64>,
}

/// Pixels of a bar and its gap.
const ROW: usize = 24;
/// Where bars begin and end; their names end before, their numbers follow.
const BARS: (f64, f64) = (190.0, 600.0);
/// Letters of a name that fit.
const NAME: usize = 26;
/// Bars above which only the ends of the list are drawn, half of them each.
const MOST: usize = 60;

/// Bars with whiskers of one standard error (the paper's Figure 9).
pub fn bars(title: &str, bars: &[Bar]) -> String {
    draw(|svg| write_bars(svg, title, bars))
}

fn write_bars(svg: &mut String, title: &str, bars: &[Bar]) -> fmt::Result {
    let ends = if bars.len() > MOST { [&bars[..MOST / 2], &bars[bars.len() - MOST / 2..]] } else { [bars, &[]] };
    let left_out = bars.len() - ends[0].len() - ends[1].len();
    let end = |b: &Bar| b.mean.unwrap_or(0.0) + b.standard_error.unwrap_or(0.0);
    let largest = bars.iter().map(end).fold(0.0, f64::max);
    let step = tick_step(largest / 4.0);
    let ticks = if largest > 0.0 { (largest / step).ceil() as usize } else { 1 };
    let x = |value: f64| BARS.0 + (BARS.1 - BARS.0) * (value / (step * ticks as f64)).clamp(0.0, 1.0);

    let rows = ends[0].len() + ends[1].len() + usize::from(left_out > 0);
    let (top, bottom) = (40, 40 + rows * ROW);
    open(svg, 760, bottom + 28, title)?;
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    for i in 0..=ticks {
        let (value, at) = (i as f64 * step, x(i as f64 * step));
        writeln!(svg, "<path class=\"grid\" d=\"M{at:.1} {top}V{bottom}\"/>")?;
        writeln!(svg, "<text class=\"quiet middle\" x=\"{at:.1}\" y=\"{}\">{value:.decimals$}</text>", bottom + 17)?;
    }
    let mut y = top;
    for (half, bars) in ends.iter().enumerate() {
        if half == 1 && left_out > 0 {
            writeln!(svg, "<text class=\"quiet end\" x=\"{}\" y=\"{}\">{left_out} more</text>", BARS.0 - 10.0, y + 16)?;
            y += ROW;
        }
        for bar in *bars {
            write_bar(svg, bar, x, y)?;
            y += ROW;
        }
    }
    Ok(())
}

fn write_bar(svg: &mut String, bar: &Bar, x: impl Fn(f64) -> f64, y: usize) -> fmt::Result {
    let (middle, text) = (y + 12, y + 16);
    let name = match bar.name.char_indices().nth(NAME) {
        Some((end, _)) => format!("{}…", &bar.name[..end]),
        None => bar.name.to_owned(),
    };
    write!(svg, "<text class=\"end\" x=\"{}\" y=\"{text}\">{}</text>", BARS.0 - 10.0, Text(&name))?;
    let mut number = "-".to_owned();
    if let Some(mean) = bar.mean {
        number = format!("{mean:.3}");
        write!(svg, "<rect class=\"bar\" x=\"{}\" y=\"{}\" width=\"{:.1}\" height=\"14\"/>", BARS.0, y + 5, x(mean) - BARS.0)?;
        if let Some(error) = bar.standard_error {
            let (low, high, up, down) = (x(mean - error), x(mean + error), middle - 4, middle + 4);
            write!(
                svg,
                "<path class=\"whisker\" d=\"M{low:.1} {middle}H{high:.1}M{low:.1} {up}V{down}M{high:.1} {up}V{down}\"/>"
            )?;
        }
    }
    writeln!(
        svg,
        "<text class=\"end\" x=\"656\" y=\"{text}\">{number}</text><text class=\"quiet\" x=\"668\" y=\"{text}\">n = {}</text>",
        bar.images
    )
}

/// How two sets of numbers from 0 to 1 are distributed.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel<'a> {
    /// What is measured.
    pub name: &'a str,
    /// In each of equally wide cells how many there are, of either set.
    pub counts: [&'a [u32]; 2],
}

/// Pixels of a panel, and around it.
const PANEL: (f64, f64) = (320.0, 150.0);
const MARGIN: (f64, f64) = (40.0, 70.0);

/// Histograms, two in a row: the first set as bars, the second as a line over them, each in parts of its own number.
pub fn histograms(title: &str, names: [&str; 2], panels: &[Panel]) -> String {
    draw(|svg| write_histograms(svg, title, names, panels))
}

fn write_histograms(svg: &mut String, title: &str, names: [&str; 2], panels: &[Panel]) -> fmt::Result {
    let rows = panels.len().div_ceil(2) as f64;
    let height = MARGIN.1 + rows * (PANEL.1 + 50.0);
    open(svg, (2.0 * PANEL.0 + 3.0 * MARGIN.0) as usize, height as usize, title)?;
    let (left, second) = (MARGIN.0, MARGIN.0 + PANEL.0 + MARGIN.0);
    writeln!(
        svg,
        "<rect class=\"bar\" x=\"{left}\" y=\"36\" width=\"16\" height=\"10\"/><text x=\"{}\" y=\"46\">{}</text>",
        left + 24.0,
        Text(names[0])
    )?;
    writeln!(
        svg,
        "<path class=\"line\" d=\"M{second} 41h16\"/><text x=\"{}\" y=\"46\">{}</text>",
        second + 24.0,
        Text(names[1])
    )?;
    for (i, panel) in panels.iter().enumerate() {
        write_panel(svg, panel, [left, second][i % 2], MARGIN.1 + (i / 2) as f64 * (PANEL.1 + 50.0))?;
    }
    Ok(())
}

fn write_panel(svg: &mut String, panel: &Panel, left: f64, top: f64) -> fmt::Result {
    let parts = panel.counts.map(|counts| {
        let all = counts.iter().sum::<u32>().max(1);
        counts.iter().map(|&count| f64::from(count) / f64::from(all)).collect::<Vec<_>>()
    });
    let largest = parts.iter().flatten().fold(0.0, |a: f64, &b| a.max(b)).max(1e-9);
    let (right, bottom) = (left + PANEL.0, top + PANEL.1);
    let y = |part: f64| bottom - (PANEL.1 - 16.0) * part / largest;
    let x = |cell: usize, cells: usize| left + PANEL.0 * cell as f64 / cells as f64;
    for (i, label) in ["0", "0.5", "1"].iter().enumerate() {
        let at = left + PANEL.0 * i as f64 / 2.0;
        writeln!(
            svg,
            "<path class=\"grid\" d=\"M{at} {top}V{bottom}\"/><text class=\"quiet middle\" x=\"{at}\" y=\"{}\">{label}</text>",
            bottom + 16.0
        )?;
    }
    let [bars, line] = &parts;
    for (cell, &part) in bars.iter().enumerate().filter(|(_, part)| **part > 0.0) {
        let (from, to) = (x(cell, bars.len()), x(cell + 1, bars.len()));
        let (width, height) = (to - from - 1.0, bottom - y(part));
        writeln!(svg, "<rect class=\"bar\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>", y(part))?;
    }
    write!(svg, "<path class=\"line\" d=\"M{left} {bottom}")?;
    for (cell, &part) in line.iter().enumerate() {
        write!(svg, "V{:.1}H{:.1}", y(part), x(cell + 1, line.len()))?;
    }
    writeln!(svg, "V{bottom}\"/>")?;
    writeln!(
        svg,
        "<text x=\"{left}\" y=\"{0}\">{1}</text><text class=\"quiet end\" x=\"{right}\" y=\"{0}\">at most {2:.0} % in a cell</text>",
        top - 4.0,
        Text(panel.name),
        100.0 * largest
    )
}

fn draw(write: impl FnOnce(&mut String) -> fmt::Result) -> String {
    let mut svg = String::new();
    write(&mut svg).expect("a String takes every write");
    svg + "</svg>\n"
}

fn open(svg: &mut String, width: usize, height: usize, title: &str) -> fmt::Result {
    writeln!(
        svg,
        "<svg class=\"figure\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{0}\">\n<style>{STYLE}</style>\n<rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n\
         <text x=\"20\" y=\"24\">{0}</text>",
        Text(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, mean: f64) -> Bar<'_> {
        Bar { name, images: 4, mean: Some(mean), standard_error: Some(0.1) }
    }

    #[test]
    fn bars_are_as_long_as_their_means_and_whiskers_as_their_errors() {
        let svg = bars(
            "LPIPS",
            &[bar("<Bag>", 0.9), bar("Coat", 0.4), Bar { name: "Odd", images: 0, mean: None, standard_error: None }],
        );
        // 410 pixels are 1.0.
        assert!(svg.contains("width=\"369.0\"") && svg.contains("width=\"164.0\""), "{svg}");
        assert!(svg.contains("M518.0 52H600.0") && svg.contains("M313.0 76H395.0"), "{svg}");
        assert!(svg.contains("&lt;Bag&gt;") && svg.contains("n = 0") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn of_many_bars_the_ends_are_drawn() {
        let names: Vec<String> = (0..100).map(|i| format!("class {i}")).collect();
        let all: Vec<Bar> = names.iter().map(|name| bar(name, 0.5)).collect();
        let svg = bars("LPIPS", &all);
        assert_eq!(svg.matches("n = 4").count(), MOST);
        assert!(svg.contains("40 more") && svg.contains("class 29<") && !svg.contains("class 30<") && svg.contains("class 70<"));
    }

    #[test]
    fn histograms_are_in_parts_of_their_own_number() {
        let panel = Panel { name: "width", counts: [&[0, 8], &[1, 3]] };
        let svg = histograms("where", ["generator", "data set"], &[panel]);
        // All of one set is in the second cell: as high as it gets. A quarter and three quarters of the other.
        assert!(svg.contains("<rect class=\"bar\" x=\"200.0\" y=\"86.0\" width=\"159.0\" height=\"134.0\"/>"), "{svg}");
        assert!(svg.contains("M40 220V186.5H200.0V119.5H360.0V220"), "{svg}");
        assert!(svg.contains("at most 100 % in a cell"), "{svg}");
    }
}
