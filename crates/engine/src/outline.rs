//! Outlines of objects as pixels: COCO's polygons and run lengths. Pure.
//!
//! Polygons become pixels exactly as pycocotools makes them (`rleFrPoly` of COCO's maskApi.c), so that a mask here is the mask of
//! everybody else's evaluation: the border is walked on a grid five times as fine, and each column of pixels is filled between
//! the crossings of its centre line.

use crate::codec::Bitmap;

/// Finer grid along the border.
const FINE: f64 = 5.0;

/// What any of the polygons holds. Points are x and y in turn, in pixels.
pub fn polygons(polygons: &[Vec<f64>], width: u32, height: u32) -> Bitmap {
    let mut inside = vec![0u8; width as usize * height as usize];
    for polygon in polygons {
        let crossings = crossings(polygon, width, height);
        columns(&crossings, width, height, |at| inside[at] = 1);
    }
    Bitmap { width, height, inside }
}

/// COCO's run lengths, which fill the image column by column.
pub fn runs(lengths: &[u32], width: u32, height: u32) -> Bitmap {
    let mut inside = vec![0u8; width as usize * height as usize];
    let ends = lengths.iter().scan(0u64, |end, &length| {
        *end += u64::from(length);
        Some(*end)
    });
    columns(&ends.collect::<Vec<_>>(), width, height, |at| inside[at] = 1);
    Bitmap { width, height, inside }
}

/// Calls `fill` with the place, row by row, of each pixel that lies after an odd number of `changes`: sorted places, column by column.
fn columns(changes: &[u64], width: u32, height: u32, mut fill: impl FnMut(usize)) {
    let (width, height) = (u64::from(width), u64::from(height));
    for pair in changes.chunks(2) {
        let end = pair.get(1).copied().unwrap_or(u64::MAX).min(width * height);
        for place in pair[0]..end {
            fill(((place % height) * width + place / height) as usize);
        }
    }
}

/// Where, column by column, the polygon's border crosses the columns' centre lines; sorted.
fn crossings(polygon: &[f64], width: u32, height: u32) -> Vec<u64> {
    let (w, h) = (f64::from(width), f64::from(height));
    // C's cast, which cuts towards zero. What lies far outside is brought near: a border has as many points as it is long.
    let fine = |v: f64, size: f64| (FINE * v.clamp(-size, 2.0 * size) + 0.5) as i64;
    let corners: Vec<(i64, i64)> = polygon.chunks_exact(2).map(|p| (fine(p[0], w), fine(p[1], h))).collect();
    // A border may be much longer than its crossings, so only the last of its points is kept.
    let (mut last, mut places): (Option<(i64, i64)>, Vec<u64>) = (None, Vec::new());
    for (i, &from) in corners.iter().enumerate() {
        edge(from, corners[(i + 1) % corners.len()], |(u1, v1)| {
            let Some((u0, v0)) = last.replace((u1, v1)) else { return };
            if u0 == u1 {
                return;
            }
            let x = ((if u1 < u0 { u1 } else { u1 - 1 }) as f64 + 0.5) / FINE - 0.5;
            if x.floor() != x || x < 0.0 || x > w - 1.0 {
                return;
            }
            let y = ((v0.min(v1) as f64 + 0.5) / FINE - 0.5).clamp(0.0, h).ceil();
            places.push(x as u64 * u64::from(height) + y as u64);
        });
    }
    places.sort_unstable();
    places
}

/// Visits the points of the fine grid along an edge, both ends included.
fn edge((mut x0, mut y0): (i64, i64), (mut x1, mut y1): (i64, i64), mut visit: impl FnMut((i64, i64))) {
    let (dx, dy) = ((x1 - x0).abs(), (y1 - y0).abs());
    let flat = dx >= dy;
    let flip = if flat { x0 > x1 } else { y0 > y1 };
    if flip {
        ((x0, y0), (x1, y1)) = ((x1, y1), (x0, y0));
    }
    let length = dx.max(dy);
    let slope = if flat { (y1 - y0) as f64 / dx.max(1) as f64 } else { (x1 - x0) as f64 / dy as f64 };
    for d in 0..=length {
        let t = if flip { length - d } else { d };
        visit(match flat {
            true => (x0 + t, (y0 as f64 + slope * t as f64 + 0.5) as i64),
            false => ((x0 as f64 + slope * t as f64 + 0.5) as i64, y0 + t),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polygons_and_runs_are_the_pixels_of_pycocotools() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../dataset/tests/golden/outlines.json")).expect("JSON");
        for case in golden.as_array().expect("a list") {
            let size = |name: &str| case[name].as_u64().expect("a size") as u32;
            let (width, height) = (size("width"), size("height"));
            let expected: Vec<u32> = serde_json::from_value(case["runs"].clone()).expect("lengths");
            let expected = runs(&expected, width, height);
            let given: Vec<Vec<f64>> = serde_json::from_value(case["polygons"].clone()).expect("polygons");
            assert!(polygons(&given, width, height) == expected, "{}", case["name"]);
            let sum: u64 = expected.inside.iter().map(|&v| u64::from(v)).sum();
            assert_eq!(Some(sum), case["area"].as_u64(), "{}", case["name"]);
        }
    }

    #[test]
    fn a_polygon_that_is_far_too_large_costs_no_more_than_the_image() {
        let mask = polygons(&[vec![-1e300, -1e300, 1e300, -1e300, 1e300, 1e300, -1e300, 1e300]], 5, 4);
        assert!(mask.inside.iter().all(|&v| v == 1));
    }
}
