//! The geometry of two-stage detectors (Ren et al. 2015, He et al. 2017) as torchvision computes it: anchors, box coding,
//! non-maximum suppression, RoIAlign over a pyramid, and the pasting of masks. libtorch has none of it.
//!
//! Boxes are `[n, 4]`: left, top, right, bottom in pixels. Everything stays on the device of its arguments.

use tch::{Device, Kind, Tensor};

/// Heights over widths of the anchors.
const ASPECT_RATIOS: [f32; 3] = [0.5, 1.0, 2.0];
/// Largest logarithm of a change in size (torchvision: `bbox_xform_clip`), `ln(1000 / 16)`.
const LARGEST_LOG: f64 = 4.135_166_556_742_356;
/// Samples of a bin along each axis.
const SAMPLES: i64 = 2;
/// A box of this side belongs to the level with this stride (Lin et al. 2017, Equation 1).
const CANONICAL: (f64, f64) = (224.0, 4.0);
/// Keeps sizes on the border of two levels in the upper one in spite of rounding.
const LEVEL_EPS: f64 = 1e-6;

/// The four columns of boxes `[n, 4]`.
fn sides(boxes: &Tensor) -> [Tensor; 4] {
    std::array::from_fn(|i| boxes.select(1, i as i64))
}

/// Anchors of one level, `[height * width * 3, 4]`: three shapes around each cell of its `(height, width)`, each cell of
/// `stride` (vertical, horizontal) pixels.
pub fn anchors(size: i64, (height, width): (i64, i64), stride: (i64, i64), device: Device) -> Tensor {
    let tall = Tensor::from_slice(&ASPECT_RATIOS).sqrt();
    let (w, h) = (tall.reciprocal() * size, tall * size);
    let shapes = (Tensor::stack(&[-&w, -&h, w, h], 1) / 2.0).round().to_device(device);
    let steps = |n: i64, step: i64| Tensor::arange(n, (Kind::Float, device)) * step;
    let (y, x) = (steps(height, stride.0).view([-1, 1]), steps(width, stride.1).view([1, -1]));
    let (y, x) = (y.expand([height, width], false), x.expand([height, width], false));
    let cells = Tensor::stack(&[&x, &y, &x, &y], 2);
    (cells.view([-1, 1, 4]) + shapes.view([1, -1, 4])).view([-1, 4])
}

/// Applies changes `[n, 4 k]` (horizontal, vertical, log width, log height, times `weights`) to boxes `[n, 4]`: `[n, k, 4]`.
pub fn decode(changes: &Tensor, boxes: &Tensor, weights: [f64; 4]) -> Tensor {
    let (n, columns) = changes.size2().expect("changes are two-dimensional");
    let changes = changes.view([n, columns / 4, 4]);
    let [left, top, right, bottom] = sides(boxes).map(|side| side.unsqueeze(1));
    let change = |i: usize| changes.select(2, i as i64) / weights[i];
    let axis = |low: &Tensor, high: &Tensor, shift: Tensor, growth: Tensor| {
        let extent = high - low;
        let centre = shift * &extent + (low + &extent * 0.5);
        let half = growth.clamp_max(LARGEST_LOG).exp() * extent * 0.5;
        (&centre - &half, centre + half)
    };
    let (left, right) = axis(&left, &right, change(0), change(2));
    let (top, bottom) = axis(&top, &bottom, change(1), change(3));
    Tensor::stack(&[left, top, right, bottom], 2)
}

/// Boxes `[.., 4]` cut off at the border of an image of `(height, width)`.
pub fn clip(boxes: &Tensor, (height, width): (i64, i64)) -> Tensor {
    let last = boxes.dim() as i64 - 1;
    let side = |i: i64, limit: i64| boxes.select(last, i).clamp(0, limit);
    Tensor::stack(&[side(0, width), side(1, height), side(2, width), side(3, height)], last)
}

/// Indices of the boxes whose width and height are at least `smallest`.
pub fn large(boxes: &Tensor, smallest: f64) -> Tensor {
    let [left, top, right, bottom] = sides(boxes);
    (right - left).ge(smallest).logical_and(&(bottom - top).ge(smallest)).nonzero().squeeze_dim(1)
}

/// Intersection over union of each box with each, `[n, n]`; NaN for two without area.
fn overlaps(boxes: &Tensor) -> Tensor {
    let [left, top, right, bottom] = sides(boxes);
    let across = |low: &Tensor, high: &Tensor| {
        let high = high.unsqueeze(0).minimum(&high.unsqueeze(1));
        (high - low.unsqueeze(0).maximum(&low.unsqueeze(1))).clamp_min(0)
    };
    let area = (&right - &left) * (&bottom - &top);
    let common = across(&left, &right) * across(&top, &bottom);
    let union = area.unsqueeze(1) + area.unsqueeze(0) - &common;
    common / union
}

/// Greedy non-maximum suppression: indices of the boxes that are kept, best score first (of equal scores, the first box).
/// A box goes if a kept one with a better score overlaps it by more than `threshold`.
pub fn suppress(boxes: &Tensor, scores: &Tensor, threshold: f64) -> Tensor {
    let order = scores.argsort_stable(true, 0, true);
    // Row i, column j: i would remove j.
    let removes = overlaps(&boxes.index_select(0, &order)).gt(threshold).triu(1).to_kind(Kind::Float);
    // A box is kept if no kept one removes it. Each pass settles at least one more box, counted from the best, so this ends, and
    // it ends with the only solution: that of the loop over boxes. Passes are as many as the longest chain of removals.
    let mut kept = Tensor::ones_like(scores);
    loop {
        let next = kept.unsqueeze(0).matmul(&removes).squeeze_dim(0).eq(0).to_kind(Kind::Float);
        if next == kept {
            return order.index_select(0, &kept.nonzero().squeeze_dim(1));
        }
        kept = next;
    }
}

/// [`suppress`] among the boxes of each group `[n]` (integers), best score first over all groups.
pub fn suppress_by_group(boxes: &Tensor, scores: &Tensor, groups: &Tensor, threshold: f64) -> Tensor {
    let (unique, ..) = groups.unique_dim(0, true, false, false);
    let kept: Vec<Tensor> = (0..unique.size()[0])
        .map(|i| {
            let members = groups.eq_tensor(&unique.get(i)).nonzero().squeeze_dim(1);
            let kept = suppress(&boxes.index_select(0, &members), &scores.index_select(0, &members), threshold);
            members.index_select(0, &kept)
        })
        .collect();
    if kept.is_empty() {
        return Tensor::zeros([0], (Kind::Int64, boxes.device()));
    }
    // In the order of the boxes first, so that a tie goes to the first box whatever its group.
    let kept = Tensor::cat(&kept, 0).sort(0, false).0;
    kept.index_select(0, &scores.index_select(0, &kept).argsort_stable(true, 0, true))
}

/// Where the samples of RoIAlign lie along one axis.
struct Samples {
    /// `[n, bins, samples of a bin, 2]`: the two cells to interpolate between.
    cells: Tensor,
    /// Their weights; both are 0 for a sample outside.
    weights: Tensor,
}

/// Samples along an axis with `length` cells, from `start` to `end` in cells, all `[n]`.
fn samples(start: &Tensor, end: &Tensor, length: &Tensor, bins: i64) -> Samples {
    let spread = |t: &Tensor| t.view([-1, 1, 1]);
    let steps = |n: i64| Tensor::arange(n, (Kind::Float, start.device()));
    let bin = spread(&((end - start).clamp_min(1.0) / bins));
    let within = (steps(SAMPLES) + 0.5).view([1, 1, -1]) * &bin / SAMPLES;
    let position = spread(start) + steps(bins).view([1, -1, 1]) * bin + within;
    let inside = position.ge(-1.0).logical_and(&position.le_tensor(&spread(length)));
    let last = spread(length) - 1.0;
    let position = position.clamp_min(0.0).minimum(&last);
    let low = position.floor();
    let upper = position - &low;
    let high = (&low + 1.0).minimum(&last);
    let weights = Tensor::stack(&[1.0 - &upper, upper], -1) * inside.unsqueeze(-1);
    Samples { cells: Tensor::stack(&[low, high], -1).to_kind(Kind::Int64), weights }
}

/// Feature maps of one image at several strides, each half as fine as the one before.
pub struct Pyramid {
    /// `[sum of height * width, channels]`: the vectors of all cells of all maps.
    cells: Tensor,
    /// For each map: cells before it, height, width.
    maps: Vec<[i64; 3]>,
    /// The logarithm to base 2 of the finest map's stride in pixels.
    finest: i64,
}

impl Pyramid {
    /// Takes maps `[1, channels, h, w]`, the finest first, whose stride is `2^finest` pixels.
    pub fn new(maps: &[Tensor], finest: i64) -> Pyramid {
        let flat: Vec<Tensor> = maps.iter().map(|m| m.squeeze_dim(0).permute([1, 2, 0]).flatten(0, 1)).collect();
        let mut before = 0;
        let sizes = maps.iter().map(|m| {
            let (_, _, h, w) = m.size4().expect("feature maps are four-dimensional");
            let entry = [before, h, w];
            before += h * w;
            entry
        });
        Pyramid { cells: Tensor::cat(&flat, 0), maps: sizes.collect(), finest }
    }

    /// The map that each box is read from, `[n]`.
    fn level(&self, boxes: &Tensor) -> Tensor {
        let [left, top, right, bottom] = sides(boxes);
        let side = ((right - left) * (bottom - top)).sqrt();
        let level = ((side / CANONICAL.0).log2() + CANONICAL.1 + LEVEL_EPS).floor();
        (level - self.finest).clamp(0, self.maps.len() as i64 - 1).to_kind(Kind::Int64)
    }

    /// RoIAlign (He et al. 2017) as torchvision's with `aligned=False`: boxes `[n, 4]` in pixels give `[n, channels, bins, bins]`,
    /// each bin the mean of four samples, each sample interpolated between four cells. In memory the channels come last.
    pub fn align(&self, boxes: &Tensor, bins: i64) -> Tensor {
        let level = self.level(boxes);
        let of_level = |value: &dyn Fn(usize) -> f64| {
            let values: Vec<f64> = (0..self.maps.len()).map(value).collect();
            Tensor::from_slice(&values).to_device(boxes.device()).index_select(0, &level)
        };
        let scale = of_level(&|i| (-(self.finest + i as i64) as f64).exp2()).to_kind(Kind::Float);
        let size = |axis: usize| of_level(&|i| self.maps[i][axis] as f64);
        let (before, width) = (size(0).to_kind(Kind::Int64), size(2).to_kind(Kind::Int64));
        let [left, top, right, bottom] = sides(boxes).map(|side| side * &scale);
        let y = samples(&top, &bottom, &size(1).to_kind(Kind::Float), bins);
        let x = samples(&left, &right, &size(2).to_kind(Kind::Float), bins);
        // Bins down, bins across, then samples and cells of both axes: the 16 cells that a bin is a weighted sum of.
        let down = |t: &Tensor| t.view([-1, bins, 1, 2 * SAMPLES, 1]);
        let across = |t: &Tensor| t.view([-1, 1, bins, 1, 2 * SAMPLES]);
        let start = before.view([-1, 1, 1, 1, 1]);
        let cells = start + down(&y.cells) * width.view([-1, 1, 1, 1, 1]) + across(&x.cells);
        let weights = down(&y.weights) * across(&x.weights) / (SAMPLES * SAMPLES);
        let summands = 4 * SAMPLES * SAMPLES;
        let bags = Tensor::arange_start_step(0, cells.numel() as i64, summands, (Kind::Int64, boxes.device()));
        let sum = 0;
        let (cells, weights) = (cells.flatten(0, -1), weights.flatten(0, -1));
        let (means, ..) = Tensor::embedding_bag(&self.cells, &cells, &bags, false, sum, false, Some(&weights), false);
        means.view([-1, bins, bins, self.cells.size()[1]]).permute([0, 3, 1, 2])
    }
}

/// The mask `[side, side]` of a box `[4]` as a picture of `(height, width)` that is 0 outside, as torchvision's
/// `paste_masks_in_image`: the box's corners are cut down to whole pixels after a border of one mask cell was added.
pub fn paste(mask: &Tensor, bounds: &Tensor, (height, width): (i64, i64)) -> Tensor {
    let side = mask.size()[1];
    let growth = (side + 2) as f64 / side as f64;
    let axis = |low: i64, high: i64| {
        let (low, high) = (bounds.get(low), bounds.get(high));
        let half = (&high - &low) * 0.5 * growth;
        let centre = (high + low) * 0.5;
        let pixel = |t: Tensor| t.double_value(&[]) as i64;
        (pixel(&centre - &half), pixel(centre + half))
    };
    let ((left, right), (top, bottom)) = (axis(0, 2), axis(1, 3));
    let (w, h) = ((right - left + 1).max(1), (bottom - top + 1).max(1));
    let mask = mask.constant_pad_nd([1, 1, 1, 1]).view([1, 1, side + 2, side + 2]);
    let mask = mask.upsample_bilinear2d([h, w], false, None, None).view([h, w]);
    // The part of a side of the box that lies in the picture.
    let visible = |low: i64, length: i64, limit: i64| (low.max(0), (low + length).min(limit));
    let ((x0, x1), (y0, y1)) = (visible(left, w, width), visible(top, h, height));
    let picture = Tensor::zeros([height, width], (Kind::Float, mask.device()));
    if x0 < x1 && y0 < y1 {
        let part = mask.narrow(0, y0 - top, y1 - y0).narrow(1, x0 - left, x1 - x0);
        picture.narrow(0, y0, y1 - y0).narrow(1, x0, x1 - x0).copy_(&part);
    }
    picture
}
