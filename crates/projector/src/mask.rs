//! Boxes as weight maps, and phi_0: the transform that brings a box to where the generator has its objects.

use proto::{Box2d, InitialTransform, Transform, TransformSearch};
use tch::{Device, Kind, Tensor};

use crate::target::Target;
use crate::transform::Space;

/// Where a generator has its objects (paper, Figures 3 and 4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ObjectStatistics {
    /// Width and height of the images in pixels; the other fields refer to it.
    pub resolution: f64,
    /// Usual centre (y, x) in pixels.
    pub center: (f64, f64),
    /// Usual size (height, width) in pixels.
    pub size: (f64, f64),
}

impl ObjectStatistics {
    /// BigGAN on ImageNet. The paper's Section 3.4 swaps the two names; these follow the authors' code.
    pub const BIGGAN: ObjectStatistics = ObjectStatistics { resolution: 256.0, center: (137.0, 127.0), size: (213.0, 210.0) };

    /// The same, scaled to another resolution.
    pub fn at(&self, resolution: f64) -> ObjectStatistics {
        let ratio = resolution / self.resolution;
        ObjectStatistics {
            resolution,
            center: (self.center.0 * ratio, self.center.1 * ratio),
            size: (self.size.0 * ratio, self.size.1 * ratio),
        }
    }
}

/// A box that ends less than this many pixels from the border of the image touches it.
const BORDER: f64 = 0.75;

/// One inside the box and zero outside, `[1, 1, r, r]`, float on the CPU. No box: all ones.
///
/// A pixel is inside if its centre is; of two that share an edge the centre belongs to the right or lower one. A box that
/// holds no centre gets the pixel nearest to its own.
pub fn binary(bbox: Option<Box2d>, resolution: i64) -> Tensor {
    let mask = Tensor::zeros([1, 1, resolution, resolution], (Kind::Float, Device::Cpu));
    let [(top, bottom), (left, right)] = extent(bbox, resolution);
    let _ = mask.narrow(2, top, bottom - top + 1).narrow(3, left, right - left + 1).fill_(1.0);
    mask
}

/// One on the object's pixels and zero elsewhere, `[1, 1, r, r]`, float on the CPU.
pub fn of(target: &Target, resolution: i64) -> Tensor {
    match &target.mask {
        Some(mask) => mask.view([1, 1, resolution, resolution]),
        None => binary(target.bbox, resolution),
    }
}

/// The loss' weights: one inside the box, `background` outside.
pub fn weights(binary: &Tensor, background: f64) -> Tensor {
    binary.clamp(background, 1.0)
}

/// First and last row, first and last column of the box's pixels.
fn extent(bbox: Option<Box2d>, resolution: i64) -> [(i64, i64); 2] {
    let Some(Box2d { x, y, width, height }) = bbox else {
        return [(0, resolution - 1); 2];
    };
    [(y, height), (x, width)].map(|(start, length)| {
        let first = ((start - 0.5).ceil() as i64).max(0);
        let last = ((start + length - 0.5).ceil() as i64 - 1).min(resolution - 1);
        if first <= last {
            return (first, last);
        }
        let nearest = ((start + length / 2.0).floor() as i64).clamp(0, resolution - 1);
        (nearest, nearest)
    })
}

/// phi_0 of a search: maps the box (in pixels of the target; `None`: the whole image) to the statistics' box.
///
/// One scale for both axes, so that nothing is distorted: the side that needs more room fits. Colours start at the identity.
pub fn initial_transform(
    bbox: Option<Box2d>,
    resolution: i64,
    statistics: &ObjectStatistics,
    search: &TransformSearch,
) -> Transform {
    let space = Space::new(search);
    let usual = statistics.at(resolution as f64);
    let (scale, [y, x]) = match search.initial {
        InitialTransform::Identity => return space.identity(),
        InitialTransform::Authors => authors(extent(bbox, resolution), &usual),
        InitialTransform::Exact => exact(bbox, search.align_corners, &usual),
    };
    let initial = Transform { scale: [scale, scale], shift: [x, y], ..Transform::IDENTITY };
    space.transform(&space.vector(&initial))
}

/// phi_0 of an object that goes on beyond the image where its box touches the border: with a multiple of the scales of
/// `initial`, and with the sides that do not touch it where they are. `None`: the box touches no border.
pub fn truncated_transform(
    initial: &Transform,
    bbox: Option<Box2d>,
    resolution: i64,
    statistics: &ObjectStatistics,
    multiple: f64,
) -> Option<Transform> {
    let r = resolution as f64;
    let Box2d { x, y, width, height } = bbox?;
    let usual = statistics.at(r);
    let sides = [(x, width, usual.center.1, usual.size.1), (y, height, usual.center.0, usual.size.0)];
    let touches = sides.map(|(start, length, ..)| [start < BORDER, start + length > r - BORDER]);
    if touches == [[false; 2]; 2] {
        return None;
    }
    let mut transform = initial.clone();
    for (axis, (_, _, center, size)) in sides.into_iter().enumerate() {
        let [from, to] = [center - size / 2.0, center + size / 2.0].map(|pixels| 2.0 * pixels / r - 1.0);
        // The point of the generator's frame that stays where it is in the image.
        let fixed = match touches[axis] {
            [true, false] => to,
            [false, true] => from,
            _ => (from + to) / 2.0,
        };
        transform.scale[axis] *= multiple;
        transform.shift[axis] += initial.scale[axis] * (1.0 - multiple) * fixed;
    }
    Some(transform)
}

/// Branch `legacy`: a box's size is one less than its pixels, its centre a whole number, and the shift forgets the scale.
fn authors(extent: [(i64, i64); 2], usual: &ObjectStatistics) -> (f64, [f64; 2]) {
    let [height, width] = extent.map(|(first, last)| (last - first) as f64);
    let [y, x] = extent.map(|(first, last)| ((first + last) / 2) as f64);
    let half = usual.resolution / 2.0;
    let scale = (height / usual.size.0).max(width / usual.size.1);
    (scale, [(y - usual.center.0) / half, (x - usual.center.1) / half])
}

/// `x_in = scale * x_out + shift` at the boxes' centres.
fn exact(bbox: Option<Box2d>, align_corners: bool, usual: &ObjectStatistics) -> (f64, [f64; 2]) {
    let r = usual.resolution;
    let Box2d { x, y, width, height } = bbox.unwrap_or(Box2d { x: 0.0, y: 0.0, width: r, height: r });
    let (smallest, largest) = Transform::SCALE_LIMITS;
    let scale = (height / usual.size.0).max(width / usual.size.1).clamp(smallest, largest);
    // Coordinates in pixels; the first pixel reaches from 0 to 1.
    let coordinate = |pixels: f64| {
        if align_corners { (2.0 * pixels - 1.0) / (r - 1.0) - 1.0 } else { 2.0 * pixels / r - 1.0 }
    };
    let shift = |from: f64, to: f64| coordinate(from) - scale * coordinate(to);
    (scale, [shift(y + height / 2.0, usual.center.0), shift(x + width / 2.0, usual.center.1)])
}
