//! T_phi: scale and shift of the frame, then global colours (paper, Section 3.3), its inverse, and phi as a vector for CMA-ES. Rotation and
//! perspective are ours: the paper leaves them to future work.
//!
//! Spatial part: torch's `affine_grid` and `grid_sample`, bilinear. Outside the source the value is zero, which is middle grey
//! in images and weight zero in masks. Colours: `torchvision.transforms.functional.adjust_*` on floats, where the authors
//! enhance 8-bit images with PIL; nothing is quantised here.
//!
//! Everything is differentiable. The paper's search never asks for gradients through it (Section 3.4); a descent in the target's frame does.

use proto::{ColourTransform, SpatialTransform, Transform, TransformSearch};
use tch::Tensor;

/// Deviation of a factor over that of a spatial parameter: 0.15 against 0.05 (the authors' branch `legacy`).
const FACTOR_STRETCH: f64 = 3.0;

/// Red, green and blue in grey (torchvision).
const GREY: [f64; 3] = [0.2989, 0.587, 0.114];

/// A point behind the eye is moved this near to the plane of the eye, which is far outside of any picture.
const IN_FRONT: f64 = 1e-3;

/// The search space of stage one: the free parameters of a transform, and their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    spatial: SpatialTransform,
    rotation: bool,
    perspective: bool,
    colour: Vec<ColourTransform>,
}

impl Space {
    /// The space of a search.
    pub fn new(search: &TransformSearch) -> Space {
        Space {
            spatial: search.spatial,
            rotation: search.rotation.is_some(),
            perspective: search.perspective,
            colour: search.colour.clone(),
        }
    }

    /// Length of a vector.
    pub fn dim(&self) -> usize {
        self.affine() + usize::from(self.rotation) + 2 * usize::from(self.perspective) + self.colour.len()
    }

    /// Numbers of scale and shift.
    fn affine(&self) -> usize {
        match self.spatial {
            SpatialTransform::None => 0,
            SpatialTransform::Isotropic => 3,
            SpatialTransform::Anisotropic => 4,
        }
    }

    /// Place of the rotation in a vector.
    pub fn rotation(&self) -> Option<usize> {
        self.rotation.then_some(self.affine())
    }

    /// The transform that changes nothing.
    pub fn identity(&self) -> Transform {
        Transform { colour: self.colour.iter().map(|&kind| (kind, range(kind).0)).collect(), ..Transform::IDENTITY }
    }

    /// `(s, t_x, t_y)` or `(s_x, s_y, t_x, t_y)`; the rotation in radians; the perspective of x and y; then a coordinate t for each
    /// colour: `factor = 1 + 3 (t - 1)`, `hue = t`.
    ///
    /// An isotropic space takes the scale of x. A colour that the transform lacks is at its identity.
    pub fn vector(&self, transform: &Transform) -> Vec<f64> {
        let Transform { scale, shift, rotation, perspective, colour } = transform;
        let mut vector = match self.spatial {
            SpatialTransform::None => vec![],
            SpatialTransform::Isotropic => vec![scale[0], shift[0], shift[1]],
            SpatialTransform::Anisotropic => vec![scale[0], scale[1], shift[0], shift[1]],
        };
        vector.extend(self.rotation.then_some(rotation.to_radians()));
        vector.extend(perspective.iter().filter(|_| self.perspective));
        vector.extend(self.colour.iter().map(|&kind| {
            let (identity, stretch, _) = range(kind);
            let parameter = colour.iter().find(|(k, _)| *k == kind).map_or(identity, |(_, p)| *p);
            identity + (parameter - identity) / stretch
        }));
        vector
    }

    /// The transform of a vector of `dim` numbers, inside the limits. Undoes `vector` there.
    ///
    /// The authors limit the colour only; the limits of the spatial part are so wide that a search meets them by accident.
    pub fn transform(&self, vector: &[f64]) -> Transform {
        assert_eq!(vector.len(), self.dim(), "a vector of another space");
        let clamp = |value: f64, (low, high): (f64, f64)| value.clamp(low, high);
        let scale = |s: f64| clamp(s, Transform::SCALE_LIMITS);
        let shift = |t: f64| clamp(t, Transform::SHIFT_LIMITS);
        let (affine, rest) = vector.split_at(self.affine());
        let (scale, shift) = match *affine {
            [s, tx, ty] => ([scale(s), scale(s)], [shift(tx), shift(ty)]),
            [sx, sy, tx, ty] => ([scale(sx), scale(sy)], [shift(tx), shift(ty)]),
            _ => ([1.0, 1.0], [0.0, 0.0]),
        };
        let (rotation, rest) = rest.split_at(usize::from(self.rotation));
        let rotation = rotation.first().map_or(0.0, |angle| clamp(angle.to_degrees(), Transform::ROTATION_LIMITS));
        let (perspective, colour) = rest.split_at(2 * usize::from(self.perspective));
        let perspective = match *perspective {
            [x, y] => [clamp(x, Transform::PERSPECTIVE_LIMITS), clamp(y, Transform::PERSPECTIVE_LIMITS)],
            _ => [0.0, 0.0],
        };
        let colour = self.colour.iter().zip(colour).map(|(&kind, t)| {
            let (identity, stretch, limits) = range(kind);
            (kind, clamp(identity + stretch * (t - identity), limits))
        });
        Transform { scale, shift, rotation, perspective, colour: colour.collect() }
    }

    /// The transforms of vectors as `transform` makes them, with gradients. The vectors are `[dim]` or `[n, dim]`.
    pub fn tensors(&self, vectors: &Tensor) -> Tensors {
        let rows = vectors.reshape([-1, self.dim() as i64]);
        let at = |i: usize| rows.select(1, i as i64);
        let clamp = |i: usize, (low, high): (f64, f64)| at(i).clamp(low, high);
        let scale = |i: usize| clamp(i, Transform::SCALE_LIMITS);
        let shift = |i: usize| clamp(i, Transform::SHIFT_LIMITS);
        let axes = |x: Tensor, y: Tensor| Tensor::stack(&[x, y], 1);
        let mut next = self.affine();
        let mut rotation = None;
        if self.rotation {
            let (low, high) = Transform::ROTATION_LIMITS;
            rotation = Some(clamp(next, (low.to_radians(), high.to_radians())));
            next += 1;
        }
        let mut perspective = None;
        if self.perspective {
            let limits = Transform::PERSPECTIVE_LIMITS;
            perspective = Some(axes(clamp(next, limits), clamp(next + 1, limits)));
            next += 2;
        }
        let spatial = match self.spatial {
            SpatialTransform::None => None,
            SpatialTransform::Isotropic => Some((axes(scale(0), scale(0)), axes(shift(1), shift(2)))),
            SpatialTransform::Anisotropic => Some((axes(scale(0), scale(1)), axes(shift(2), shift(3)))),
        };
        let spatial = spatial.map(|(scale, shift)| Spatial { scale, shift, rotation, perspective });
        let colour = self.colour.iter().enumerate().map(|(i, &kind)| {
            let (identity, stretch, (low, high)) = range(kind);
            let parameter = (at(next + i) - identity) * stretch + identity;
            (kind, parameter.clamp(low, high).view([-1, 1, 1, 1]).to_kind(tch::Kind::Float))
        });
        Tensors { spatial, colour: colour.collect() }
    }
}

/// Transforms as tensors, so that gradients reach them.
pub struct Tensors {
    /// `None`: the identity.
    spatial: Option<Spatial>,
    /// Parameters in order of application, `[n, 1, 1, 1]` each.
    colour: Vec<(ColourTransform, Tensor)>,
}

/// The spatial part of n transforms.
struct Spatial {
    /// Scales of x and y, `[n, 2]`.
    scale: Tensor,
    /// Shifts of x and y, `[n, 2]`.
    shift: Tensor,
    /// In radians, `[n]`; `None`: no rotation.
    rotation: Option<Tensor>,
    /// Perspective of x and y, `[n, 2]`; `None`: none.
    perspective: Option<Tensor>,
}

impl Tensors {
    /// Constant tensors; all transforms have the same colours in the same order.
    pub(crate) fn new(transforms: &[Transform], like: &Tensor) -> Tensors {
        let tensor = |values: Vec<f64>| Tensor::from_slice(&values).to_device(like.device());
        let moves = transforms.iter().any(|t| Transform { colour: vec![], ..t.clone() } != Transform::IDENTITY);
        let axes = |pick: fn(&Transform) -> [f64; 2]| tensor(transforms.iter().flat_map(pick).collect()).view([-1, 2]);
        let colour = kinds(transforms).into_iter().enumerate().map(|(i, kind)| {
            let values = tensor(transforms.iter().map(|t| t.colour[i].1).collect());
            (kind, values.view([-1, 1, 1, 1]).to_kind(like.kind()))
        });
        let spatial = moves.then(|| Spatial {
            scale: axes(|t| t.scale),
            shift: axes(|t| t.shift),
            rotation: transforms
                .iter()
                .any(|t| t.rotation != 0.0)
                .then(|| tensor(transforms.iter().map(|t| t.rotation.to_radians()).collect())),
            perspective: transforms.iter().any(|t| t.perspective != [0.0, 0.0]).then(|| axes(|t| t.perspective)),
        });
        Tensors { spatial, colour: colour.collect() }
    }

    /// Number of transforms.
    fn count(&self) -> i64 {
        match (&self.spatial, self.colour.first()) {
            (Some(spatial), _) => spatial.scale.size()[0],
            (None, Some((_, parameter))) => parameter.size()[0],
            (None, None) => 1,
        }
    }
}

impl Spatial {
    /// Where each pixel of the result comes from, `[n, h, w, 2]`.
    fn grid(&self, size: [i64; 4], kind: tch::Kind, align_corners: bool, inverse: bool) -> Tensor {
        let [n, ..] = size;
        let affine = |theta: &Tensor| {
            let theta = theta.to_kind(kind).expand([n, 2, 3], false);
            Tensor::affine_grid_generator(&theta, size, align_corners)
        };
        let Spatial { scale, shift, .. } = self;
        if self.rotation.is_none() && self.perspective.is_none() {
            let (scale, shift) =
                if inverse { (scale.reciprocal(), -shift / scale) } else { (scale.shallow_clone(), shift.shallow_clone()) };
            // [[s_x, 0, t_x], [0, s_y, t_y]]
            return affine(&Tensor::cat(&[scale.diag_embed(0, 1, 2), shift.unsqueeze(-1)], 2));
        }
        let matrix = if inverse { self.matrix().inverse() } else { self.matrix() };
        let numerator = affine(&matrix.narrow(1, 0, 2));
        if self.perspective.is_none() {
            return numerator;
        }
        let denominator = affine(&matrix.narrow(1, 2, 1).expand([-1, 2, 3], false));
        numerator / denominator.clamp_min(IN_FRONT)
    }

    /// The homographies `[n, 3, 3]` in homogeneous coordinates, double.
    fn matrix(&self) -> Tensor {
        let double = |t: &Tensor| t.to_kind(tch::Kind::Double);
        let (scale, shift) = (double(&self.scale), double(&self.shift));
        let n = scale.size()[0];
        let angle = self.rotation.as_ref().map_or_else(|| scale.new_zeros([n], (tch::Kind::Double, scale.device())), double);
        let (cos, sin) = (angle.cos(), angle.sin());
        let rotation = Tensor::stack(&[&cos, &-&sin, &sin, &cos], 1).view([n, 2, 2]);
        let top = Tensor::cat(&[rotation * scale.unsqueeze(1), shift.unsqueeze(-1)], 2);
        let perspective = self.perspective.as_ref().map_or_else(|| scale.zeros_like(), double);
        let bottom = Tensor::cat(&[&perspective, &scale.new_ones([n, 1], (tch::Kind::Double, scale.device()))], 1);
        Tensor::cat(&[top, bottom.unsqueeze(1)], 1)
    }
}

/// The parameter of a colour that changes nothing, how far the space of the search stretches it, and its limits.
fn range(kind: ColourTransform) -> (f64, f64, (f64, f64)) {
    match kind {
        ColourTransform::Hue => (0.0, 1.0, Transform::HUE_LIMITS),
        _ => (1.0, FACTOR_STRETCH, Transform::FACTOR_LIMITS),
    }
}

/// What lies outside of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Padding {
    /// Zero: middle grey.
    Zero,
    /// The pixels of the border, repeated.
    Border,
}

/// T: from the image's frame into the generator's. `images` and result are `[n, 3, h, w]` in [-1, 1].
///
/// One transform for each image, or one for all, or one image for all transforms. All transforms have the same colours in
/// the same order.
pub fn apply(images: &Tensor, transforms: &[Transform], align_corners: bool) -> Tensor {
    apply_tensors(images, &Tensors::new(transforms, images), align_corners, Padding::Zero)
}

/// [`apply`] with gradients.
pub(crate) fn apply_tensors(images: &Tensor, transforms: &Tensors, align_corners: bool, padding: Padding) -> Tensor {
    let warped = warp(images, transforms, align_corners, false, padding);
    if transforms.colour.is_empty() {
        return warped;
    }
    let mut x = to_unit(&warped);
    for (kind, parameter) in &transforms.colour {
        x = adjust(*kind, &x, parameter);
    }
    from_unit(&x)
}

/// The pixels of inverted images `[n, 3, h, w]` that the generator's frame reaches, `[n, 1, h, w]`, bool, without gradients.
pub(crate) fn reached(inverted: &Tensor, transforms: &Tensors, align_corners: bool) -> Tensor {
    // A pixel at the frame's edge is a mixture with the padding; rounding must not make one of the others.
    const WHOLE: f64 = 0.999;
    tch::no_grad(|| {
        let ones = inverted.narrow(1, 0, 1).ones_like();
        warp(&ones, transforms, align_corners, true, Padding::Zero).ge(WHOLE)
    })
}

/// The spatial part of T for weights `[n, 1, h, w]`; zero outside of the source.
pub fn apply_to_mask(mask: &Tensor, transforms: &[Transform], align_corners: bool) -> Tensor {
    apply_tensors_to_mask(mask, &Tensors::new(transforms, mask), align_corners)
}

/// [`apply_to_mask`] with gradients.
pub(crate) fn apply_tensors_to_mask(mask: &Tensor, transforms: &Tensors, align_corners: bool) -> Tensor {
    warp(mask, transforms, align_corners, false, Padding::Zero)
}

/// T^-1: from the generator's frame into the image's. Shapes and broadcasting as for `apply`.
///
/// As the authors do, the spatial part is undone first (psi^-1 = (1/s, -t/s)); then the colours, the last one first. They
/// commute but for clipping, interpolation and what lies outside of the source. The colours' inverses are exact where
/// nothing was clipped. The inverse of brightness is 1/gamma as in the authors' code; the paper's -gamma has no identity.
pub fn invert(images: &Tensor, transforms: &[Transform], align_corners: bool) -> Tensor {
    invert_tensors(images, &Tensors::new(transforms, images), align_corners)
}

/// [`invert`] with gradients.
pub fn invert_tensors(images: &Tensor, transforms: &Tensors, align_corners: bool) -> Tensor {
    let warped = warp(images, transforms, align_corners, true, Padding::Zero);
    if transforms.colour.is_empty() {
        return warped;
    }
    let mut x = to_unit(&warped);
    // The generator's frame, whose mean grey contrast was about.
    let mut frame = to_unit(images);
    for (i, (kind, parameter)) in transforms.colour.iter().enumerate().rev() {
        x = restore(*kind, &x, parameter, &frame);
        if transforms.colour[..i].iter().any(|(kind, _)| *kind == ColourTransform::Contrast) {
            frame = restore(*kind, &frame, parameter, &frame);
        }
    }
    from_unit(&x)
}

/// Samples at `T(x_out)`, or for the inverse at `T^-1(x_out)`.
fn warp(images: &Tensor, transforms: &Tensors, align_corners: bool, inverse: bool, padding: Padding) -> Tensor {
    let (count, channels, h, w) = images.size4().expect("images are [n, channels, h, w]");
    let given = transforms.count();
    let n = count.max(given);
    assert!([1, n].contains(&count) && [1, n].contains(&given), "{count} images and {given} transforms");
    let images = images.expand([n, channels, h, w], false);
    let Some(spatial) = &transforms.spatial else { return images };
    let grid = spatial.grid([n, channels, h, w], images.kind(), align_corners, inverse);
    let (bilinear, padding) = (0, if padding == Padding::Zero { 0 } else { 1 });
    images.grid_sampler(&grid, bilinear, padding, align_corners)
}

fn kinds(transforms: &[Transform]) -> Vec<ColourTransform> {
    let kinds = |t: &Transform| t.colour.iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
    let first = transforms.first().map_or(vec![], kinds);
    assert!(transforms.iter().all(|t| kinds(t) == first), "transforms with different colours in one batch");
    first
}

fn to_unit(images: &Tensor) -> Tensor {
    (images + 1.0) / 2.0
}

fn from_unit(x: &Tensor) -> Tensor {
    x * 2.0 - 1.0
}

/// The colour transform of `x` `[n, 3, h, w]` in [0, 1] with parameter `p` `[1 or n, 1, 1, 1]`.
fn adjust(kind: ColourTransform, x: &Tensor, p: &Tensor) -> Tensor {
    match kind {
        ColourTransform::Brightness => (x * p).clamp(0.0, 1.0),
        ColourTransform::Contrast => blend(x, &mean_grey(x), p),
        ColourTransform::Saturation => blend(x, &grey(x), p),
        ColourTransform::Hue => turn_hue(x, p),
        ColourTransform::Gamma => power(x, p),
    }
}

/// Undoes `adjust`. `frame` is the whole result of `adjust`; `x` may be another view of it.
fn restore(kind: ColourTransform, x: &Tensor, p: &Tensor, frame: &Tensor) -> Tensor {
    match kind {
        ColourTransform::Brightness => (x / p).clamp(0.0, 1.0),
        ColourTransform::Contrast => unblend(x, &mean_grey(frame), p),
        ColourTransform::Saturation => unblend(x, &grey(x), p),
        ColourTransform::Hue => turn_hue(x, &-p),
        ColourTransform::Gamma => power(x, &p.reciprocal()),
    }
}

/// `[n, 1, h, w]`
fn grey(x: &Tensor) -> Tensor {
    let [r, g, b] = channels(x);
    r * GREY[0] + g * GREY[1] + b * GREY[2]
}

/// `[n, 1, 1, 1]`
fn mean_grey(x: &Tensor) -> Tensor {
    grey(x).mean_dim(&[1i64, 2, 3][..], true, None)
}

fn blend(x: &Tensor, grey: &Tensor, f: &Tensor) -> Tensor {
    let blended: Tensor = x * f + grey * (1.0 - f);
    blended.clamp(0.0, 1.0)
}

/// Undoes `blend` by the grey of its result. With weights of sum a, `blend` takes grey g to `f g + (1 - f) a g`; a is 0.9999.
fn unblend(x: &Tensor, grey: &Tensor, f: &Tensor) -> Tensor {
    let rest = 1.0 - f;
    let grey = grey / (f + &rest * GREY.iter().sum::<f64>());
    let original: Tensor = (x - grey * rest) / f;
    original.clamp(0.0, 1.0)
}

/// Adds turns to the hue of HSV; value and chroma stay.
fn turn_hue(x: &Tensor, turns: &Tensor) -> Tensor {
    let [r, g, b] = channels(x);
    let value = x.amax(&[1i64][..], true);
    let chroma = &value - x.amin(&[1i64][..], true);
    let divisor = chroma.where_self(&chroma.gt(0.0), &chroma.ones_like());
    let [from_r, from_g, from_b] = [&r, &g, &b].map(|channel| (&value - channel) / &divisor);
    // In sixths of a turn, from red.
    let not_red = (&from_r - &from_b + 2.0).where_self(&g.eq_tensor(&value), &(&from_g - &from_r + 4.0));
    let hue = (&from_b - &from_g).where_self(&r.eq_tensor(&value), &not_red);
    let hue = hue + turns * 6.0;
    let turned = [5.0, 3.0, 1.0].map(|offset| {
        let k = (&hue + offset).remainder(6.0);
        &value - &chroma * k.minimum(&(4.0 - &k)).clamp(0.0, 1.0)
    });
    Tensor::cat(&turned, 1)
}

/// `x^p`, with gradient zero at zero.
fn power(x: &Tensor, p: &Tensor) -> Tensor {
    let positive = x.gt(0.0);
    let base = x.where_self(&positive, &x.ones_like());
    base.pow(p).where_self(&positive, &x.zeros_like()).clamp(0.0, 1.0)
}

/// Three times `[n, 1, h, w]`.
fn channels(x: &Tensor) -> [Tensor; 3] {
    [0, 1, 2].map(|i| x.narrow(1, i, 1))
}
