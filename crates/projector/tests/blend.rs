//! Poisson blending against a dense solution of Pérez' Equation 7, and properties that hold at any size.

use nalgebra::{DMatrix, DVector};
use projector::blend::{Region, blend};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Largest difference from the exact blend; pictures are in [-1, 1].
const EXACT: f32 = 1e-5;

struct Pair {
    width: usize,
    height: usize,
    target: Vec<f32>,
    source: Vec<f32>,
}

impl Pair {
    /// Noise: every pixel has its own gradient.
    fn noise(width: usize, height: usize) -> Pair {
        let mut rng = ChaCha8Rng::seed_from_u64((1000 * width + height) as u64);
        let mut picture = || (0..3 * width * height).map(|_| rng.random_range(-1.0..1.0)).collect();
        Pair { width, height, target: picture(), source: picture() }
    }

    fn blend(&self, region: Region) -> Vec<f32> {
        blend(&self.target, &self.source, &region, self.width, self.height).expect("a blend")
    }

    fn mask(&self, inside: impl Fn(usize, usize) -> bool) -> Vec<bool> {
        (0..self.width * self.height).map(|i| inside(i % self.width, i / self.width)).collect()
    }

    fn neighbours(&self, i: usize) -> Vec<usize> {
        let (x, y) = (i % self.width, i / self.width);
        let mut found = vec![];
        found.extend((x > 0).then(|| i - 1));
        found.extend((x + 1 < self.width).then(|| i + 1));
        found.extend((y > 0).then(|| i - self.width));
        found.extend((y + 1 < self.height).then(|| i + self.width));
        found
    }

    /// Equation 7, one row for each pixel of the mask, by elimination.
    fn direct(&self, mask: &[bool]) -> Vec<f32> {
        let unknown: Vec<usize> = (0..mask.len()).filter(|&i| mask[i]).collect();
        let column = |i: usize| unknown.binary_search(&i).expect("a pixel of the mask");
        let mut matrix = DMatrix::<f64>::zeros(unknown.len(), unknown.len());
        let mut right = DMatrix::<f64>::zeros(unknown.len(), 3);
        for (row, &p) in unknown.iter().enumerate() {
            for q in self.neighbours(p) {
                matrix[(row, row)] += 1.0;
                if mask[q] {
                    matrix[(row, column(q))] -= 1.0;
                }
                for channel in 0..3 {
                    let at = |i: usize| channel * mask.len() + i;
                    right[(row, channel)] += f64::from(self.source[at(p)]) - f64::from(self.source[at(q)]);
                    if !mask[q] {
                        right[(row, channel)] += f64::from(self.target[at(q)]);
                    }
                }
            }
        }
        let elimination = matrix.lu();
        let mut blended = self.target.clone();
        for channel in 0..3 {
            let solved: DVector<f64> = elimination.solve(&right.column(channel).into_owned()).expect("one solution");
            unknown.iter().zip(solved.iter()).for_each(|(&i, v)| blended[channel * mask.len() + i] = *v as f32);
        }
        blended
    }

    /// Largest residual of Equation 7 in the mask.
    fn residual(&self, blended: &[f32], mask: &[bool]) -> f32 {
        let sum = |picture: &[f32], channel: usize, p: usize| -> f32 {
            let at = |i: usize| picture[channel * mask.len() + i];
            self.neighbours(p).into_iter().map(|q| at(p) - at(q)).sum()
        };
        (0..mask.len())
            .filter(|&p| mask[p])
            .flat_map(|p| (0..3).map(move |channel| (channel, p)))
            .map(|(channel, p)| (sum(blended, channel, p) - sum(&self.source, channel, p)).abs())
            .fold(0.0, f32::max)
    }

    /// Both solvers' blends of a box are the expected one, and the target outside.
    fn assert_box(&self, sides: [usize; 4], expected: &[f32]) {
        let mask = self.mask(within(sides));
        for (solver, region) in [("sine", rectangle(sides)), ("multigrid", Region::Mask(&mask))] {
            let (blended, size) = (self.blend(region), (self.width, self.height));
            let error = distance(&blended, expected);
            assert!(error < EXACT, "{solver} is {error} from the blend of the box {sides:?} in {size:?}");
            self.keeps_the_target_outside(&blended, &mask);
        }
    }

    fn keeps_the_target_outside(&self, blended: &[f32], mask: &[bool]) {
        for (i, (blended, target)) in blended.iter().zip(&self.target).enumerate() {
            let inside = mask[i % mask.len()];
            assert!(inside || blended.to_bits() == target.to_bits(), "value {i} is not the target's");
        }
    }
}

fn rectangle([left, top, right, bottom]: [usize; 4]) -> Region<'static> {
    Region::Rectangle { left, top, right, bottom }
}

fn within([left, top, right, bottom]: [usize; 4]) -> impl Fn(usize, usize) -> bool {
    move |x, y| (left..right).contains(&x) && (top..bottom).contains(&y)
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Boxes in a picture of `w` x `h`, by the edges that they touch: from none to three.
fn boxes(w: usize, h: usize) -> Vec<[usize; 4]> {
    let sides = |size: usize| [(1, size - 1), (2, size - 3), (0, size - 2), (3, size), (0, size)];
    let all = sides(w).into_iter().flat_map(|x| sides(h).into_iter().map(move |y| [x.0, y.0, x.1, y.1]));
    let thin = [[4, 3, 5, 4], [4, 0, 5, h], [0, 2, w, 3], [0, 0, 1, 1], [w - 1, 0, w, h], [1, h - 1, w, h]];
    all.filter(|b| *b != [0, 0, w, h]).chain(thin).collect()
}

#[test]
fn both_solvers_equal_elimination_on_boxes_touching_any_edges() {
    let pair = Pair::noise(13, 10);
    for sides in boxes(13, 10) {
        pair.assert_box(sides, &pair.direct(&pair.mask(within(sides))));
    }
}

#[test]
fn masks_of_any_shape_equal_elimination() {
    let pair = Pair::noise(21, 17);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let noise = |share: f64, rng: &mut ChaCha8Rng| (0..21 * 17).map(|_| rng.random_bool(share)).collect();
    let masks: [(&str, Vec<bool>); 9] = [
        ("a disc", pair.mask(|x, y| (x as f64 - 10.0).hypot(y as f64 - 8.0) < 7.0)),
        ("a ring over an edge", pair.mask(|x, y| (30..70).contains(&(x * x + (y + 2) * (y + 2) / 3)))),
        ("two islands", pair.mask(|x, y| x < 5 && y < 6 || x > 8 && y > 9)),
        ("a comb", pair.mask(|x, y| x % 2 == 0 || y == 3)),
        ("a chess board", pair.mask(|x, y| (x + y) % 2 == 0)),
        ("half of all", noise(0.5, &mut rng)),
        ("most of all", noise(0.95, &mut rng)),
        ("all but one", pair.mask(|x, y| (x, y) != (4, 11))),
        ("only one", pair.mask(|x, y| (x, y) == (0, 16))),
    ];
    for (name, mask) in masks {
        let blended = pair.blend(Region::Mask(&mask));
        let error = distance(&blended, &pair.direct(&mask));
        assert!(error < EXACT, "{error} from elimination on {name}");
        pair.keeps_the_target_outside(&blended, &mask);
    }
}

#[test]
fn pictures_of_one_row_or_column_are_pictures() {
    for (width, height) in [(9, 1), (1, 9)] {
        let pair = Pair::noise(width, height);
        for sides in [[2, 7], [0, 4], [3, 9]] {
            let sides = if height == 1 { [sides[0], 0, sides[1], 1] } else { [0, sides[0], 1, sides[1]] };
            pair.assert_box(sides, &pair.direct(&pair.mask(within(sides))));
        }
    }
}

#[test]
fn in_large_pictures_the_solvers_agree_and_the_gradient_is_the_sources() {
    let pair = Pair::noise(300, 203);
    for sides in [[1, 1, 299, 202], [20, 31, 250, 170], [0, 10, 300, 190], [57, 0, 300, 203], [0, 0, 257, 129]] {
        let mask = pair.mask(within(sides));
        let (sine, multigrid) = (pair.blend(rectangle(sides)), pair.blend(Region::Mask(&mask)));
        let apart = distance(&sine, &multigrid);
        assert!(apart < EXACT, "{apart} apart on {sides:?}");
        let residual = pair.residual(&sine, &mask);
        assert!(residual < EXACT, "residual {residual} on {sides:?}");
    }
    let mask = pair.mask(|x, y| (x as f64 - 150.0).hypot(y as f64 - 90.0) < 80.0 && x % 40 != 7);
    let residual = pair.residual(&pair.blend(Region::Mask(&mask)), &mask);
    assert!(residual < EXACT, "residual {residual} on the mask");
}

/// Such a difference is a membrane already: the blend is the target itself, right up to the border.
#[test]
fn a_difference_without_curvature_leaves_nothing_of_the_source() {
    let mut pair = Pair::noise(160, 120);
    for channel in 0..3 {
        for i in 0..160 * 120 {
            let (x, y) = ((i % 160) as f32 / 160.0, (i / 160) as f32 / 160.0);
            let at = channel * 160 * 120 + i;
            pair.source[at] = pair.target[at] + x * x - y * y + 2.0 * x * y - x + 0.3 * channel as f32;
        }
    }
    pair.assert_box([10, 1, 159, 101], &pair.target);
}

#[test]
fn a_source_that_differs_by_a_constant_is_shifted_onto_the_target() {
    let mut pair = Pair::noise(40, 30);
    let sides = [5, 0, 40, 22];
    let mask = pair.mask(within(sides));
    let expected = pair.source.clone();
    pair.target = expected.iter().enumerate().map(|(i, v)| if mask[i % mask.len()] { 9.0 } else { *v }).collect();
    pair.source.iter_mut().for_each(|v| *v -= 0.25);
    pair.assert_box(sides, &expected);
}

#[test]
fn the_whole_picture_is_the_source_and_nothing_is_the_target() {
    let pair = Pair::noise(8, 6);
    assert_eq!(pair.blend(rectangle([0, 0, 8, 6])), pair.source);
    assert_eq!(pair.blend(Region::Mask(&[true; 48])), pair.source);
    assert_eq!(pair.blend(rectangle([3, 2, 3, 5])), pair.target);
    assert_eq!(pair.blend(rectangle([5, 2, 3, 5])), pair.target);
    assert_eq!(pair.blend(Region::Mask(&[false; 48])), pair.target);
}

#[test]
fn what_is_no_picture_is_refused_by_name() {
    let pair = Pair::noise(8, 6);
    let message = |target: &[f32], source: &[f32], region: Region| {
        blend(target, source, &region, 8, 6).expect_err("it must be refused").to_string()
    };
    let whole = rectangle([0, 0, 8, 6]);
    assert_eq!(message(&pair.target[1..], &pair.source, whole), "the target has 143 values, not 144");
    assert_eq!(message(&pair.target, &[], whole), "the source has 0 values, not 144");
    assert_eq!(message(&pair.target, &pair.source, Region::Mask(&[true; 47])), "the mask has 47 values, not 48");
    let beyond = message(&pair.target, &pair.source, rectangle([2, 0, 9, 6]));
    assert_eq!(beyond, "the rectangle ends at (9, 6), beyond the picture of 8 x 6 pixels");
    for (value, channel, x, y) in [(f32::NAN, 1, 3, 2), (f32::NEG_INFINITY, 2, 7, 5)] {
        let mut source = pair.source.clone();
        source[channel * 48 + y * 8 + x] = value;
        let refused = message(&pair.target, &source, rectangle([1, 1, 3, 3]));
        assert_eq!(refused, format!("the source is not finite in channel {channel}, column {x}, row {y}"));
    }
}
