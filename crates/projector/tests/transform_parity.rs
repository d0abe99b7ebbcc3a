//! The transform against torch's and torchvision's own numbers (`golden/make_nn.py`), its inverse, and phi_0.

use projector::mask::{self, ObjectStatistics};
use projector::transform::{self, Space};
use proto::{Box2d, ColourTransform, InitialTransform, Params, SpatialTransform, Transform, TransformSearch};
use tch::{Kind, Tensor};

mod harness;
use harness::{FLOAT, golden};

const COLOURS: [(&str, ColourTransform); 5] = [
    ("brightness", ColourTransform::Brightness),
    ("contrast", ColourTransform::Contrast),
    ("saturation", ColourTransform::Saturation),
    ("hue", ColourTransform::Hue),
    ("gamma", ColourTransform::Gamma),
];

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn assert_near(what: &str, a: &Tensor, b: &Tensor, limit: f64) {
    let error = largest_difference(a, b);
    println!("{what}: {error:.1e}");
    assert!(error <= limit, "{what}: {error}");
}

fn spatial(scale: [f64; 2], shift: [f64; 2]) -> Transform {
    Transform { scale, shift, ..Transform::IDENTITY }
}

/// A turned and slanted transform, far from the limits.
fn slanted() -> Transform {
    Transform { rotation: 30.0, perspective: [0.15, -0.1], ..spatial([0.9, 0.9], [0.1, -0.05]) }
}

#[test]
fn rotation_and_perspective_are_where_the_formula_says() {
    // A bright pixel is found again.
    let (x, y) = (9.0, 21.0);
    let size = 64.0;
    let image = Tensor::zeros([1, 3, 64, 64], FLOAT);
    let coordinate = |pixel: f64| 2.0 * pixel / (size - 1.0) - 1.0;
    let pixel = |coordinate: f64| (coordinate + 1.0) * (size - 1.0) / 2.0;
    for transform in [slanted(), Transform { rotation: -75.0, ..spatial([1.2, 1.2], [0.0, 0.1]) }] {
        let to = transform.point([coordinate(x), coordinate(y)]);
        let [column, row] = to.map(|c| pixel(c).round() as i64);
        let source = image.shallow_clone().detach().copy();
        let _ = source.narrow(2, row - 1, 3).narrow(3, column - 1, 3).fill_(1.0);
        let seen = transform::apply(&source, &[transform], true);
        let value = seen.double_value(&[0, 0, y as i64, x as i64]);
        assert!(value > 0.9, "{value} at the place");
    }
}

#[test]
fn a_point_moves_by_scale_rotation_shift_and_perspective_in_this_order() {
    let transform = Transform { rotation: 90.0, perspective: [0.5, 0.25], ..spatial([2.0, 3.0], [0.1, 0.2]) };
    // (1, 1) becomes (2, 3), (-3, 2), (-2.9, 2.2), and is divided by 1.75.
    let [x, y] = transform.point([1.0, 1.0]);
    assert!((x + 2.9 / 1.75).abs() < 1e-12 && (y - 2.2 / 1.75).abs() < 1e-12, "{x}, {y}");
}

#[test]
fn an_object_that_is_cut_off_goes_on_beyond_the_border() {
    let statistics = ObjectStatistics { resolution: 32.0, center: (16.0, 16.0), size: (24.0, 24.0) };
    // The usual box of the generator, from -0.75 to 0.75, in the image.
    let edges = |t: &Transform| [t.point([-0.75, -0.75]), t.point([0.75, 0.75])];
    let search = TransformSearch { initial: InitialTransform::Exact, align_corners: false, ..search() };
    let double = |bbox: Box2d| {
        let initial = mask::initial_transform(Some(bbox), 32, &statistics, &search);
        let cut = mask::truncated_transform(&initial, Some(bbox), 32, &statistics, 2.0);
        cut.map(|cut| (edges(&initial), edges(&cut)))
    };
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} and {b}");
    assert!(double(Box2d { x: 8.0, y: 8.0, width: 16.0, height: 16.0 }).is_none(), "nothing is cut off");
    // Cut off above: the lower side stays, the object is twice as high as its box, and its middle across stays.
    let (before, after) = double(Box2d { x: 8.0, y: 0.0, width: 16.0, height: 16.0 }).expect("it touches the upper border");
    near(after[1][1], before[1][1]);
    near(after[1][1] - after[0][1], 2.0 * (before[1][1] - before[0][1]));
    near(after[0][0] + after[1][0], before[0][0] + before[1][0]);
    // Cut off on both sides: the middle stays.
    let (before, after) = double(Box2d { x: 0.0, y: 4.0, width: 32.0, height: 20.0 }).expect("it touches two borders");
    near(after[0][0] + after[1][0], before[0][0] + before[1][0]);
}

#[test]
fn rotation_and_perspective_are_undone() {
    let middle = |t: &Tensor| t.narrow(2, 22, 20).narrow(3, 22, 20);
    for transform in [slanted(), Transform { perspective: [0.0, 0.0], ..slanted() }, Transform { rotation: 0.0, ..slanted() }] {
        let smooth = (Tensor::arange(64, FLOAT) / 9.0).sin().view([1, 1, 1, 64])
            * (Tensor::arange(64, FLOAT) / 7.0).cos().view([1, 1, 64, 1]);
        let smooth = smooth.repeat([1, 3, 1, 1]);
        let transforms = [transform];
        let there = transform::apply(&smooth, &transforms, true);
        let back = transform::invert(&there, &transforms, true);
        assert_near(&format!("{transforms:?}"), &middle(&back), &middle(&smooth), 0.02);
        let back = transform::apply(&transform::invert(&smooth, &transforms, true), &transforms, true);
        assert_near(&format!("{transforms:?}, the other way"), &middle(&back), &middle(&smooth), 0.02);
    }
}

#[test]
fn a_space_with_rotation_and_perspective_has_gradients_for_each_number() {
    let search = TransformSearch { rotation: Some(20.0), perspective: true, ..search() };
    let space = Space::new(&search);
    let transform = Transform { colour: vec![(ColourTransform::Brightness, 1.1)], ..slanted() };
    let vector = space.vector(&transform);
    assert_eq!((space.dim(), vector.len()), (7, 7));
    let again = space.transform(&vector);
    assert!((again.rotation - 30.0).abs() < 1e-9 && again.perspective == transform.perspective, "{again:?}");
    let image = ((Tensor::arange(64, FLOAT) / 9.0).sin().view([1, 1, 1, 64])
        * (Tensor::arange(64, FLOAT) / 7.0).cos().view([1, 1, 64, 1]))
    .repeat([1, 3, 1, 1])
    .to_kind(Kind::Double)
        * 0.5;
    let weights = (Tensor::arange(64 * 64, FLOAT) / 300.0).cos().view([1, 1, 64, 64]).to_kind(Kind::Double);
    let at = |vector: &Tensor| (transform::invert_tensors(&image, &space.tensors(vector), true) * &weights).mean(Kind::Double);
    let leaf = Tensor::from_slice(&vector).set_requires_grad(true);
    let gradient = Tensor::run_backward(&[at(&leaf)], &[&leaf], false, false).remove(0);
    for i in 0..7 {
        let moved = |step: f64| {
            let mut moved = vector.clone();
            moved[i] += step;
            at(&Tensor::from_slice(&moved)).double_value(&[])
        };
        let (ours, numeric) = (gradient.double_value(&[i as i64]), (moved(1e-5) - moved(-1e-5)) / 2e-5);
        println!("{i}: {ours:.6} {numeric:.6}");
        assert!((ours - numeric).abs() < 0.02 * numeric.abs().max(1e-3), "{i}: {ours} and {numeric}");
    }
    // Rows are transforms beside each other.
    let rows = Tensor::stack(&[Tensor::from_slice(&vector), Tensor::from_slice(&space.vector(&space.identity()))], 0);
    let both = transform::invert_tensors(&image, &space.tensors(&rows), true);
    assert_near("the second row is the identity", &both.narrow(0, 1, 1), &image, 1e-6);
}

fn coloured(colour: &[(ColourTransform, f64)]) -> Transform {
    Transform { colour: colour.to_vec(), ..spatial([1.0; 2], [0.0; 2]) }
}

/// The image that is changed and changed back is the same.
fn assert_undone(image: &Tensor, transform: Transform) {
    let transform = [transform];
    let changed = transform::apply(image, &transform, true);
    assert!(largest_difference(&changed, image) > 1e-3, "{transform:?} does nothing");
    assert_near(&format!("{transform:?}"), &transform::invert(&changed, &transform, true), image, 1e-5);
}

fn search() -> TransformSearch {
    Params::paper().transform.expect("the paper searches a transform")
}

/// Slow waves in each channel, `[1, 3, r, r]`, between -0.4 and 0.4.
fn waves(resolution: i64) -> Tensor {
    let t = Tensor::linspace(0.0, 1.0, resolution, FLOAT);
    let channels = [(3.0, 1.0), (2.0, 4.0), (5.0, 2.0)].map(|(a, b)| {
        let rows: Tensor = (&t * a).sin();
        let columns: Tensor = (&t * b).cos();
        rows.unsqueeze(1) * columns.unsqueeze(0) * 0.4
    });
    Tensor::stack(&channels, 0).unsqueeze(0)
}

#[test]
fn sampling_equals_torch() {
    let (_, golden) = golden("sampling");
    let rows: Vec<Vec<f64>> = Vec::try_from(&golden["parameters"].to_kind(Kind::Double)).expect("a matrix");
    let transforms: Vec<Transform> = rows.iter().map(|p| spatial([p[0], p[1]], [p[2], p[3]])).collect();
    for (corners, name) in [(true, "align_corners"), (false, "align_edges")] {
        let (forward, inverse) = (format!("forward.{name}"), format!("inverse.{name}"));
        assert_near(&forward, &transform::apply(&golden["image"], &transforms, corners), &golden[&forward], 1e-5);
        assert_near(&inverse, &transform::invert(&golden["image"], &transforms, corners), &golden[&inverse], 1e-5);
        let mask = transform::apply_to_mask(&golden["image"].narrow(1, 0, 1), &transforms, corners);
        assert_near("mask", &mask, &golden[&forward].narrow(1, 0, 1), 1e-5);
    }
}

#[test]
fn colours_equal_torchvision() {
    let (_, golden) = golden("colour");
    let image = &golden["image"];
    for (name, kind) in COLOURS {
        let factors: Vec<f32> = Vec::try_from(&golden[&format!("{name}.factors")]).expect("a vector");
        for (i, factor) in factors.into_iter().enumerate() {
            let ours = transform::apply(&(image * 2.0 - 1.0), &[coloured(&[(kind, f64::from(factor))])], true);
            let theirs = golden[name].get(i as i64);
            assert_near(&format!("{name} {factor}"), &((ours + 1.0) / 2.0), &theirs, 2e-5);
        }
    }
}

#[test]
fn undoing_a_colour_is_exact_where_nothing_is_clipped() {
    // Between 0.3 and 0.7 in [0, 1], far from both ends.
    let image = waves(32);
    for (_, kind) in COLOURS {
        for parameter in if kind == ColourTransform::Hue { [-0.4, 0.1, 0.5] } else { [0.7, 1.1, 1.4] } {
            assert_undone(&image, coloured(&[(kind, parameter)]));
        }
    }
}

#[test]
fn undoing_all_colours_is_exact_where_nothing_is_clipped() {
    let colours = [
        (ColourTransform::Gamma, 1.1),
        (ColourTransform::Contrast, 1.3),
        (ColourTransform::Hue, 0.05),
        (ColourTransform::Brightness, 0.9),
        (ColourTransform::Saturation, 0.8),
    ];
    assert_undone(&waves(32), coloured(&colours));
}

#[test]
fn undoing_scale_and_shift_restores_what_stayed_in_the_frame() {
    for resolution in [32, 64, 256] {
        let image = waves(resolution);
        for corners in [true, false] {
            // Larger frames keep all of the image; the smaller one keeps its middle, which the inner half covers.
            for transform in
                [spatial([1.2, 1.2], [0.05, -0.1]), spatial([1.4, 1.1], [0.1, 0.0]), spatial([0.8, 0.8], [0.1, -0.05])]
            {
                let transform = [transform];
                let there = transform::apply(&image, &transform, corners);
                let back = transform::invert(&there, &transform, corners);
                let inner = |t: &Tensor| t.narrow(2, resolution / 4, resolution / 2).narrow(3, resolution / 4, resolution / 2);
                // Linear interpolation twice: proportional to the squared pixel.
                let limit = 5.0 / (resolution * resolution) as f64;
                assert_near(&format!("{resolution} {corners} {transform:?}"), &inner(&back), &inner(&image), limit);
            }
        }
    }
}

#[test]
fn colours_do_not_change_what_undoing_scale_and_shift_gives() {
    // Linear colours commute with interpolation, if contrast is undone about the mean of the frame it was done in.
    let image = waves(64);
    let psi = spatial([1.3, 1.3], [0.2, -0.1]);
    let colour = vec![(ColourTransform::Contrast, 0.8), (ColourTransform::Saturation, 1.2), (ColourTransform::Brightness, 1.2)];
    let phi = Transform { colour, ..psi.clone() };
    let round = |t: Transform| {
        let t = [t];
        transform::invert(&transform::apply(&image, &t, true), &t, true).narrow(2, 16, 32).narrow(3, 16, 32)
    };
    assert_near("both", &round(phi), &round(psi), 1e-5);
}

#[test]
fn the_identity_changes_nothing() {
    for (spatial, dim) in [(SpatialTransform::None, 5), (SpatialTransform::Isotropic, 8), (SpatialTransform::Anisotropic, 9)] {
        let space = Space::new(&TransformSearch { spatial, colour: COLOURS.map(|(_, kind)| kind).to_vec(), ..search() });
        assert_eq!(space.dim(), dim);
        assert_eq!(space.transform(&space.vector(&space.identity())), space.identity());
        let image = waves(32);
        assert!(largest_difference(&transform::apply(&image, &[space.identity()], false), &image) <= 1e-6);
        assert!(largest_difference(&transform::invert(&image, &[space.identity()], false), &image) <= 1e-6);
    }
}

#[test]
fn one_image_takes_many_transforms_and_one_transform_many_images() {
    let transforms =
        [0.8, 1.0, 1.2].map(|f| Transform { colour: vec![(ColourTransform::Brightness, f)], ..spatial([f, f], [0.1, 0.2 * f]) });
    let image = waves(32);
    let images = Tensor::cat(&[&image, &(&image * 0.5), &-&image], 0);
    for change in [transform::apply, transform::invert] {
        let many = change(&image, &transforms, true);
        let each = change(&images, &transforms, true);
        let shared = change(&images, &transforms[2..], true);
        for i in 0..3 {
            let one = |images: &Tensor, t: usize| change(images, &transforms[t..=t], true);
            let index = i as i64;
            assert!(largest_difference(&many.narrow(0, index, 1), &one(&image, i)) <= 1e-6);
            assert!(largest_difference(&each.narrow(0, index, 1), &one(&images.narrow(0, index, 1), i)) <= 1e-6);
            assert!(largest_difference(&shared.narrow(0, index, 1), &one(&images.narrow(0, index, 1), 2)) <= 1e-6);
        }
    }
}

#[test]
fn gradients_are_finite_even_at_black_and_grey() {
    let image = waves(32);
    let _ = image.narrow(2, 0, 4).fill_(-1.0);
    let _ = image.narrow(2, 4, 4).fill_(0.0);
    let image = image.set_requires_grad(true);
    let colour = [0.7, 0.8, 1.2, 0.1, 0.7].into_iter().zip(COLOURS).map(|(p, (_, kind))| (kind, p)).collect();
    let phi = [Transform { colour, ..spatial([1.2, 0.9], [0.1, 0.0]) }];
    let twice = transform::invert(&transform::apply(&image, &phi, true), &phi, true);
    let gradient = Tensor::run_backward(&[twice.square().sum(Kind::Float)], &[&image], false, false).remove(0);
    assert!(bool::try_from(gradient.isfinite().all()).expect("one value"));
    assert!(gradient.abs().max().double_value(&[]) > 0.0);
}

#[test]
fn a_vector_is_the_transform_with_stretched_colours() {
    let space = Space::new(&search());
    assert_eq!(space.dim(), 4);
    let t = space.transform(&[0.9, 0.1, -0.2, 1.05]);
    assert_eq!((t.scale, t.shift), ([0.9, 0.9], [0.1, -0.2]));
    assert!((t.colour[0].1 - 1.15).abs() < 1e-12, "a deviation of 0.05 is one of 0.15 in brightness");
    for (a, b) in space.vector(&t).iter().zip([0.9, 0.1, -0.2, 1.05]) {
        assert!((a - b).abs() < 1e-12);
    }
    let anisotropic = Space::new(&TransformSearch { spatial: SpatialTransform::Anisotropic, ..search() });
    assert_eq!(anisotropic.vector(&spatial([0.9, 1.1], [0.1, -0.2])), [0.9, 1.1, 0.1, -0.2, 1.0]);
}

#[test]
fn a_wild_vector_still_gives_a_transform_with_an_inverse() {
    let t = Space::new(&search()).transform(&[-3.0, 7.0, -7.0, 9.0]);
    assert_eq!(t, Transform { scale: [0.02; 2], shift: [1.0, -1.0], ..coloured(&[(ColourTransform::Brightness, 1.5)]) });
    let weights = transform::apply_to_mask(&Tensor::ones([1, 1, 32, 32], FLOAT), &[t], true);
    assert!(weights.sum(Kind::Float).double_value(&[]) > 100.0, "a part of the image stays in the frame");
}

fn pixels(bbox: Option<Box2d>, resolution: i64) -> Vec<(i64, i64)> {
    let mask = mask::binary(bbox, resolution);
    assert_eq!(mask.size(), [1, 1, resolution, resolution]);
    let places: Vec<Vec<i64>> = Vec::try_from(&mask.squeeze().nonzero()).expect("a matrix");
    places.iter().map(|p| (p[0], p[1])).collect()
}

#[test]
fn a_pixel_is_in_the_box_if_its_centre_is() {
    let bbox = |x, y, width, height| Some(Box2d { x, y, width, height });
    assert_eq!(pixels(bbox(1.0, 2.0, 2.0, 1.0), 4), [(2, 1), (2, 2)]);
    assert_eq!(pixels(bbox(0.6, 1.4, 2.0, 1.0), 4), [(1, 1), (1, 2)], "centres, not edges");
    assert_eq!(pixels(bbox(0.5, 0.0, 1.0, 1.0), 4), [(0, 0)], "the left edge belongs to the box, the right does not");
    assert_eq!(pixels(bbox(1.6, 2.6, 0.1, 0.1), 4), [(2, 1)], "a tiny box keeps the nearest pixel");
    assert_eq!(pixels(bbox(-5.0, -5.0, 100.0, 5.6), 4), [(0, 0), (0, 1), (0, 2), (0, 3)]);
    assert_eq!(pixels(bbox(9.0, 9.0, 2.0, 2.0), 4), [(3, 3)]);
    assert_eq!(pixels(None, 4).len(), 16);
}

#[test]
fn weights_are_the_background_outside_the_box() {
    let binary = mask::binary(Some(Box2d { x: 0.0, y: 0.0, width: 1.0, height: 1.0 }), 2);
    let weights = Vec::<f32>::try_from(mask::weights(&binary, 0.3).flatten(0, -1)).expect("a vector");
    assert_eq!(weights, [1.0, 0.3, 0.3, 0.3]);
}

/// Centre and length of a mask's rows (dimension 2) or columns (3), in pixels.
fn measure(mask: &Tensor, dim: i64) -> (f64, f64) {
    let profile = mask.amax(&[5 - dim][..], false).flatten(0, -1);
    let profile = Vec::<f32>::try_from(&profile).expect("a vector");
    let total: f64 = profile.iter().map(|&v| f64::from(v)).sum();
    let moment: f64 = profile.iter().enumerate().map(|(i, &v)| (i as f64 + 0.5) * f64::from(v)).sum();
    (moment / total, total)
}

#[test]
fn the_exact_start_moves_the_box_onto_the_statistics_box() {
    for (resolution, bbox) in [
        (256, Box2d { x: 90.0, y: 30.0, width: 60.0, height: 90.0 }),
        (256, Box2d { x: 20.0, y: 100.0, width: 200.0, height: 100.0 }),
        (32, Box2d { x: 6.0, y: 9.0, width: 10.0, height: 14.0 }),
    ] {
        for align_corners in [true, false] {
            let search = TransformSearch { initial: InitialTransform::Exact, align_corners, ..search() };
            let phi = mask::initial_transform(Some(bbox), resolution, &ObjectStatistics::BIGGAN, &search);
            let moved = transform::apply_to_mask(&mask::binary(Some(bbox), resolution), &[phi], align_corners);
            let usual = ObjectStatistics::BIGGAN.at(resolution as f64);
            let scale = (bbox.height / usual.size.0).max(bbox.width / usual.size.1);
            let ((y, height), (x, width)) = (measure(&moved, 2), measure(&moved, 3));
            println!("{resolution} {align_corners}: centre {y:.3} {x:.3}, size {height:.3} {width:.3}");
            for (found, expected) in
                [(y, usual.center.0), (x, usual.center.1), (height, bbox.height / scale), (width, bbox.width / scale)]
            {
                assert!((found - expected).abs() < 0.05, "{resolution} {align_corners}: {found} for {expected}");
            }
        }
    }
}

#[test]
fn the_authors_start_is_their_formula() {
    // Rows 60 to 179, columns 100 to 179.
    let bbox = Some(Box2d { x: 100.0, y: 60.0, width: 80.0, height: 120.0 });
    let phi = mask::initial_transform(bbox, 256, &ObjectStatistics::BIGGAN, &search());
    let s = 119.0 / 213.0;
    assert_eq!(phi.scale, [s, s]);
    assert_eq!(phi.shift, [(139.0 - 127.0) / 128.0, (119.0 - 137.0) / 128.0]);
    assert_eq!(phi.colour, [(ColourTransform::Brightness, 1.0)]);

    let whole = mask::initial_transform(None, 256, &ObjectStatistics::BIGGAN, &search());
    assert_eq!(whole.scale, [255.0 / 210.0; 2]);
    assert_eq!(whole.shift, [0.0, -10.0 / 128.0]);
}

#[test]
fn the_start_keeps_to_the_space() {
    let bbox = Some(Box2d { x: 3.0, y: 4.0, width: 9.0, height: 5.0 });
    let start = |search| mask::initial_transform(bbox, 32, &ObjectStatistics::BIGGAN, &search);
    let only_colour = TransformSearch { spatial: SpatialTransform::None, ..search() };
    assert_eq!(start(only_colour.clone()), Space::new(&only_colour).identity());
    let identity = TransformSearch { initial: InitialTransform::Identity, ..search() };
    assert_eq!(start(identity.clone()), Space::new(&identity).identity());
}
