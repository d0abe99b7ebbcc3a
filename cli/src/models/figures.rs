//! The paper's Figures 3 and 4 for one generator: where its objects are, and how large. Only [`write`] touches files.

use std::path::Path;

use maud::{Markup, html};
use proto::Box2d;
use results::chart::figure::{figure, pixels};

/// Cells of the map of centres along each axis.
const CELLS: usize = 32;
const BARS: usize = 32;
/// Pixels of a drawing's side and of its margin.
const SIDE: f64 = 320.0;
const MARGIN: f64 = 48.0;

/// Writes `centres.svg`, `sizes.svg` and `boxes.csv`. Boxes are in pixels of images `resolution` wide.
pub fn write(dir: &Path, name: &str, resolution: u32, boxes: &[Box2d]) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("centres.svg"), centres(name, resolution, boxes))?;
    std::fs::write(dir.join("sizes.svg"), sizes(name, resolution, boxes))?;
    let rows = boxes.iter().map(|b| format!("{},{},{},{}\n", b.x, b.y, b.width, b.height));
    std::fs::write(dir.join("boxes.csv"), std::iter::once("x,y,width,height\n".to_owned()).chain(rows).collect::<String>())
}

fn cell(value: f64, resolution: u32, cells: usize) -> usize {
    ((value / f64::from(resolution) * cells as f64) as usize).min(cells - 1)
}

/// Figure 3: how often the centre is in each part of the image.
fn centres(name: &str, resolution: u32, boxes: &[Box2d]) -> String {
    let mut counts = [[0u32; CELLS]; CELLS];
    for b in boxes {
        counts[cell(b.y + b.height / 2.0, resolution, CELLS)][cell(b.x + b.width / 2.0, resolution, CELLS)] += 1;
    }
    let most = counts.iter().flatten().max().copied().unwrap_or(0).max(1);
    let size = SIDE / CELLS as f64;
    let at = |cell: usize| pixels(MARGIN + cell as f64 * size);
    let shade = |count: u32| format!("{:.2}", (f64::from(count) / f64::from(most)).sqrt());
    let (middle, end) = (MARGIN + SIDE / 2.0, MARGIN + SIDE);
    let content = html! {
        @for (row, line) in counts.iter().enumerate() {
            @for (column, &count) in line.iter().enumerate().filter(|(_, count)| **count > 0) {
                rect x=(at(column)) y=(at(row)) width=(pixels(size)) height=(pixels(size))
                    class="bar" fill-opacity=(shade(count)) {}
            }
        }
        rect x=(MARGIN) y=(MARGIN) width=(SIDE) height=(SIDE) fill="none" stroke="#555" {}
        path d={ "M" (middle) " " (MARGIN) "V" (end) "M" (MARGIN) " " (middle) "H" (end) }
            stroke="#999" stroke-dasharray="4 4" {}
        text x=(MARGIN) y=(end + 18.0) { "0" }
        text.end x=(end) y=(end + 18.0) { (resolution) " pixels; strongest colour: " (most) }
    };
    let side = (SIDE + 2.0 * MARGIN) as usize;
    figure((side, side), &format!("{name}: centres of {} objects", boxes.len()), &content)
}

/// Figure 4: how high and how wide the boxes are.
fn sizes(name: &str, resolution: u32, boxes: &[Box2d]) -> String {
    let content = html! {
        (panel("height", boxes.iter().map(|b| b.height).collect(), resolution, MARGIN))
        (panel("width", boxes.iter().map(|b| b.width).collect(), resolution, SIDE + 2.0 * MARGIN))
    };
    let size = (2.0 * SIDE + 3.0 * MARGIN, SIDE + 2.0 * MARGIN);
    figure((size.0 as usize, size.1 as usize), &format!("{name}: sizes of {} objects", boxes.len()), &content)
}

fn panel(what: &str, values: Vec<f64>, resolution: u32, left: f64) -> Markup {
    let mut counts = [0u32; BARS];
    values.iter().for_each(|value| counts[cell(*value, resolution, BARS)] += 1);
    let most = counts.iter().max().copied().unwrap_or(0);
    let (end, bottom, step) = (left + SIDE, MARGIN + SIDE, SIDE / BARS as f64);
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let at = pixels(left + SIDE * mean / f64::from(resolution));
    html! {
        @for (i, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            @let high = SIDE * f64::from(count) / f64::from(most);
            @let x = pixels(left + i as f64 * step);
            rect x=(x) y=(pixels(bottom - high)) width=(pixels(step - 1.0)) height=(pixels(high)) class="bar" {}
        }
        path d={ "M" (left) " " (MARGIN) "V" (bottom) "H" (end) } fill="none" stroke="#555" {}
        path d={ "M" (at) " " (MARGIN) "V" (bottom) } stroke="#b3261e" stroke-dasharray="4 4" {}
        text x=(left) y=(bottom + 18.0) { "0" }
        text.end x=(end) y=(bottom + 18.0) { (what) ", " (resolution) " pixels" }
        text.end x=(end) y=(MARGIN - 6.0) style="fill:#b3261e" { "mean " (format!("{mean:.1}")) ", at most " (most) " in a bar" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_figures_show_every_object_once() {
        let boxes = [Box2d { x: 0.0, y: 0.0, width: 8.0, height: 4.0 }, Box2d { x: 24.0, y: 30.0, width: 8.0, height: 2.0 }];
        let (map, bars) = (centres("a<b", 32, &boxes), sizes("a<b", 32, &boxes));
        let cells = map.matches("fill-opacity=\"1.00\"").count();
        assert_eq!(cells, 2, "{map}");
        // The centre of the first box is at 4 of 32 pixels across and 2 down.
        assert!(map.contains("<rect x=\"88.0\" y=\"68.0\""), "{map}");
        assert!(bars.contains("mean 8.0") && bars.contains("mean 3.0") && bars.contains("a&lt;b: sizes of 2 objects"), "{bars}");
    }
}
