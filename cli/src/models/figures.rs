//! The paper's Figures 3 and 4 for one generator: where its objects are, and how large. Only [`write`] touches files.

use std::fmt::Write;
use std::path::Path;

use proto::Box2d;

/// Cells of the map of centres along each axis.
const CELLS: usize = 32;
/// Bars of a histogram.
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

fn head(width: f64, title: &str) -> String {
    let height = SIDE + 2.0 * MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n<title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"{MARGIN}\" y=\"24\" font-size=\"14\">{title}</text>\n"
    )
}

/// A name, escaped for SVG.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Figure 3: how often the centre is in each part of the image.
fn centres(name: &str, resolution: u32, boxes: &[Box2d]) -> String {
    let mut counts = [[0u32; CELLS]; CELLS];
    for b in boxes {
        counts[cell(b.y + b.height / 2.0, resolution, CELLS)][cell(b.x + b.width / 2.0, resolution, CELLS)] += 1;
    }
    let most = counts.iter().flatten().max().copied().unwrap_or(0).max(1);
    let title = format!("{}: centres of {} objects", plain(name), boxes.len());
    let mut svg = head(SIDE + 2.0 * MARGIN, &title);
    let size = SIDE / CELLS as f64;
    for (row, line) in counts.iter().enumerate() {
        for (column, &count) in line.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (x, y) = (MARGIN + column as f64 * size, MARGIN + row as f64 * size);
            let shade = (f64::from(count) / f64::from(most)).sqrt();
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{size:.1}\" height=\"{size:.1}\" fill=\"#1f4e8c\" fill-opacity=\"{shade:.2}\"/>"
            );
        }
    }
    let end = MARGIN + SIDE;
    let middle = MARGIN + SIDE / 2.0;
    let _ = writeln!(
        svg,
        "<rect x=\"{MARGIN}\" y=\"{MARGIN}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"none\" stroke=\"#555\"/>\n\
         <path d=\"M{middle} {MARGIN}V{end}M{MARGIN} {middle}H{end}\" stroke=\"#999\" stroke-dasharray=\"4 4\"/>\n\
         <text x=\"{MARGIN}\" y=\"{0}\">0</text><text x=\"{end}\" y=\"{0}\" text-anchor=\"end\">{resolution} pixels; darkest: {most}</text>",
        end + 18.0
    );
    svg + "</svg>\n"
}

/// Figure 4: how high and how wide the boxes are.
fn sizes(name: &str, resolution: u32, boxes: &[Box2d]) -> String {
    let title = format!("{}: sizes of {} objects", plain(name), boxes.len());
    let mut svg = head(2.0 * SIDE + 3.0 * MARGIN, &title);
    for (panel, (what, of)) in
        [("height", (|b: &Box2d| b.height) as fn(&Box2d) -> f64), ("width", |b| b.width)].iter().enumerate()
    {
        let mut counts = [0u32; BARS];
        boxes.iter().for_each(|b| counts[cell(of(b), resolution, BARS)] += 1);
        let most = f64::from(counts.iter().max().copied().unwrap_or(0).max(1));
        let (left, bottom) = (MARGIN + panel as f64 * (SIDE + MARGIN), MARGIN + SIDE);
        let step = SIDE / BARS as f64;
        for (i, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let high = SIDE * f64::from(count) / most;
            let (x, y, wide) = (left + i as f64 * step, bottom - high, step - 1.0);
            let _ = writeln!(svg, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\" fill=\"#1f4e8c\"/>");
        }
        let mean = boxes.iter().map(of).sum::<f64>() / boxes.len().max(1) as f64;
        let at = left + SIDE * mean / f64::from(resolution);
        let end = left + SIDE;
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {MARGIN}V{bottom}H{end}\" fill=\"none\" stroke=\"#555\"/>\n\
             <path d=\"M{at:.1} {MARGIN}V{bottom}\" stroke=\"#b3261e\" stroke-dasharray=\"4 4\"/>\n\
             <text x=\"{left}\" y=\"{0}\">0</text><text x=\"{end}\" y=\"{0}\" text-anchor=\"end\">{what}, {resolution} pixels</text>\
             <text x=\"{end}\" y=\"{1}\" text-anchor=\"end\" fill=\"#b3261e\">mean {mean:.1}, at most {2} in a bar</text>",
            bottom + 18.0,
            MARGIN - 6.0,
            counts.iter().max().copied().unwrap_or(0)
        );
    }
    svg + "</svg>\n"
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
