//! The method through its front door, with a tiny random generator: the same answer however the work is cut.

use projector::lanes::{Request, Transforms, Work};
use projector::{Generator, Lanes, Model, Solution};
use proto::{
    ClassStart, ColourTransform, LastDescent, LatentSearch, Params, Precision, SpatialTransform, Surround, Told, Transform,
};
use tch::{Device, Kind, Tensor};

mod harness;
use harness::{
    FLOAT, basin_cma, converged, ending_in, finish, moving, one_core, plain, projection, resumed, run, short, solve, targets,
};

fn losses(solutions: &[Solution]) -> Vec<Vec<f64>> {
    solutions.iter().map(|s| s.seeds.iter().map(|s| s.loss).collect()).collect()
}

#[test]
fn one_two_or_three_devices_and_one_or_many_images_give_the_same_bits() {
    let (model, one) = one_core();
    for params in [short(basin_cma()), moving()] {
        let together = run(&model, &one, &params, targets(&model, 4));
        for devices in [2, 3] {
            let lanes = Lanes::new(&model, &vec![Device::Cpu; devices]);
            let other = run(&model, &lanes, &params, targets(&model, 4));
            assert_eq!(losses(&together), losses(&other), "{devices} devices");
            assert!(
                together
                    .iter()
                    .zip(&other)
                    .all(|(a, b)| (&a.seeds, &a.z, &a.c) == (&b.seeds, &b.z, &b.c) && a.transform == b.transform)
            );
        }
        let alone: Vec<Solution> = targets(&model, 4).into_iter().flat_map(|t| run(&model, &one, &params, vec![t])).collect();
        assert_eq!(losses(&together), losses(&alone), "one by one");
    }
}

/// Where a batch of another shape rounds otherwise, a ReLU near its corner may turn: a part in a thousand of a gradient. `slow` keeps
/// what that does to a loss below this; lanes that are exchanged, or moments, change it by parts in a hundred.
const ROUNDING: f64 = 1e-4;

fn assert_near(a: f64, b: f64, rounding: f64) {
    assert!((a - b).abs() <= rounding * a.abs(), "{a} and {b}");
}

/// One descent in steps so small that it does not carry rounding on. CMA-ES would, from one generation to the next (docs/src/adr/0003).
fn slow(steps: u32) -> Params {
    let descent = proto::Descent { lr_z: 0.002, ..Params::paper().descent };
    Params { descent, ..plain(LatentSearch::Adam { steps }) }
}

#[test]
fn smaller_batches_give_the_same_losses_up_to_rounding() {
    let (model, lanes) = one_core();
    let whole = run(&model, &lanes, &slow(10), targets(&model, 2));
    for block in [1, 2, 4] {
        println!("blocks of {block}");
        let cut = run(&model, &Lanes::with_block(&model, &[Device::Cpu], block), &slow(10), targets(&model, 2));
        losses(&whole).concat().into_iter().zip(losses(&cut).concat()).for_each(|(a, b)| assert_near(a, b, ROUNDING));
    }
}

#[test]
fn lanes_of_several_images_in_one_batch_give_the_same_losses_up_to_rounding() {
    let (model, one) = one_core();
    // Without and with transforms, which differ between the images; 13 lanes are one image's six, and six and one of the next two.
    // The first goes on with Adam's moments after 50 steps. On eight kinds of kernels 60 steps carry rounding to 3.3e-4 of a loss;
    // exchanged moments change it by 6.7e-3.
    let transform = short(LatentSearch::Start).transform;
    let cases = [(slow(60), 64, 10.0 * ROUNDING), (slow(10), 13, ROUNDING), (Params { transform, ..slow(10) }, 64, ROUNDING)];
    for (params, block, rounding) in cases {
        let apart = run_fixed(&model, &one, &params);
        for devices in [1, 2] {
            let lanes = Lanes::shared(&model, &vec![Device::Cpu; devices], block);
            let together = run_fixed(&model, &lanes, &params);
            assert_eq!(lanes.block(), block);
            for (a, b) in apart.iter().zip(&together) {
                assert_eq!((a.seeds.len(), a.history.descent.len()), (b.seeds.len(), b.history.descent.len()));
                for (a, b) in a.seeds.iter().zip(&b.seeds) {
                    assert_near(a.loss, b.loss, rounding);
                    assert_near(a.inverted_loss, b.inverted_loss, rounding);
                    // LPIPS is a small difference of features of length one. So its rounding is measured by the loss that it is part of.
                    assert_near(a.loss, a.loss + params.loss.beta * (b.lpips - a.lpips), rounding);
                }
            }
        }
    }
}

/// Three images, each with a transform of its own where the parameters have any.
fn run_fixed(model: &Model, lanes: &Lanes, params: &Params) -> Vec<Solution> {
    let mut projection = projection(model, params, targets(model, 3));
    for i in (0..3).filter(|_| params.transform.is_some()) {
        let scale = 1.1 + 0.2 * i as f64;
        let colour = vec![(ColourTransform::Brightness, 0.9)];
        projection.fix_transform(i, Transform { scale: [scale; 2], shift: [0.1, -0.05], colour, ..Transform::IDENTITY });
    }
    converged(finish(projection, lanes))
}

/// A generator on a device whose memory holds only this number of lanes.
struct Small(Box<dyn Generator>, i64);

impl Generator for Small {
    fn generate(&self, z: &Tensor, c: &Tensor) -> Tensor {
        assert!(z.size()[0] <= self.1, "CUDA out of memory. Tried to allocate 2.00 GiB");
        self.0.generate(z, c)
    }
    fn embeddings(&self) -> Tensor {
        self.0.embeddings()
    }
    fn latent_dim(&self) -> i64 {
        self.0.latent_dim()
    }
    fn latent_layer(&self) -> Tensor {
        self.0.latent_layer()
    }
    fn resolution(&self) -> i64 {
        self.0.resolution()
    }
    fn weights(&self) -> Vec<(String, Tensor)> {
        self.0.weights()
    }
    fn converted(&self, device: Device, kind: Kind) -> Box<dyn Generator> {
        Box::new(Small(self.0.converted(device, kind), self.1))
    }
}

#[test]
fn a_batch_that_is_too_large_for_the_memory_is_halved() {
    let (mut model, lanes) = one_core();
    let params = slow(4);
    let expected = losses(&run(&model, &lanes, &params, targets(&model, 3)));
    let images = targets(&model, 3);
    model.generator = Box::new(Small(model.generator, 7));
    let lanes = Lanes::shared(&model, &[Device::Cpu], 16);
    let found = losses(&run(&model, &lanes, &params, images));
    // Six lanes of one image fit, those of two do not.
    assert_eq!(lanes.block(), 8);
    expected.concat().into_iter().zip(found.concat()).for_each(|(a, b)| assert_near(a, b, ROUNDING));
}

#[test]
fn bfloat16_lowers_the_loss_nearly_as_far_and_what_is_reported_is_float32() {
    let (model, lanes) = one_core();
    let with = |precision| {
        let params = Params { precision, ..plain(LatentSearch::Adam { steps: 120 }) };
        run(&model, &lanes, &params, targets(&model, 2))
    };
    let (exact, rounded) = (with(Precision::Fp32), with(Precision::Bf16));
    let mean = |solutions: &[Solution]| losses(solutions).concat().iter().sum::<f64>() / 12.0;
    assert_ne!(losses(&exact), losses(&rounded));
    // The part of the fall in float32 that bfloat16 reaches.
    let curves = exact.iter().flat_map(|solution| &solution.history.descent);
    let start = curves.map(|curve| curve[0]).sum::<f64>() / 12.0;
    let share = (start - mean(&rounded)) / (start - mean(&exact));
    assert!((share - 1.0).abs() < 0.01, "{start} becomes {} and {}", mean(&exact), mean(&rounded));
    // On a CPU there is no TF32.
    assert_eq!(losses(&exact), losses(&with(Precision::Tf32)));
    // The answer's picture is that of z and c in float32.
    let best = rounded[0].best;
    let row = |numbers: &[f32]| Tensor::from_slice(numbers).unsqueeze(0);
    let image = tch::no_grad(|| model.generator.generate(&row(&rounded[0].z[best]), &row(&rounded[0].c[best]))).flatten(0, -1);
    assert!((image - Tensor::from_slice(&rounded[0].generated)).abs().max().double_value(&[]) < 1e-5);
}

#[test]
fn interrupted_at_any_step_and_resumed_gives_the_same_bits() {
    let (model, lanes) = one_core();
    let ours = [LastDescent::Refined, LastDescent::Halving].map(ending_in);
    let others = [basin_cma(), LatentSearch::CmaAdam { generations: 3, steps: 8 }, LatentSearch::Lbfgs { evaluations: 6 }];
    for params in others.into_iter().chain(ours).map(short).chain([moving()]) {
        let undisturbed = run(&model, &lanes, &params, targets(&model, 2));
        let mut projection = projection(&model, &params, targets(&model, 2));
        while !projection.finished() {
            projection.step(&lanes).expect("device works");
            projection = resumed(&model, &params, &projection, 2);
        }
        assert_eq!(losses(&undisturbed), losses(&converged(finish(projection, &lanes))));
    }
}

#[test]
fn another_seed_gives_another_answer_and_the_same_seed_the_same() {
    let (model, lanes) = one_core();
    let params = short(basin_cma());
    let with = |seed| {
        let mut targets = targets(&model, 1);
        targets[0].seed = seed;
        losses(&run(&model, &lanes, &params, targets))
    };
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
}

#[test]
fn halving_leaves_the_survivors_with_their_curves() {
    let (model, lanes) = one_core();
    let [halved, whole] = [LastDescent::Halving, LastDescent::Fresh].map(|last| solve(&model, &lanes, &plain(ending_in(last))));
    // Of 6 seeds with 8 steps each: 6 with 2, 3 with 5, 2 with 10 (in all 47 of 48 lane-steps).
    assert_eq!((halved.seeds.len(), halved.lane_steps), (2, whole.lane_steps - 1));
    assert!(halved.history.descent.iter().all(|curve| curve.len() == 2 + 5 + 10), "{:?}", halved.history.descent);
    for curve in &halved.history.descent {
        assert!(whole.history.descent.iter().any(|other| other[..2] == curve[..2]), "it began as one of the six");
    }
}

#[test]
fn each_seed_has_a_transform_of_its_own_that_moves() {
    let (model, lanes) = one_core();
    let mut params = moving();
    params.loss.background = 0.0;
    let moved = solve(&model, &lanes, &params);
    // 6 seeds with 4 steps, 3 with 3, 2 with 6.
    assert_eq!((moved.seeds.len(), moved.lane_steps), (2, 24 + 9 + 12));
    assert_eq!(moved.transform, moved.seeds[moved.best].transform);
    assert_ne!(moved.seeds[0].transform, moved.seeds[1].transform);
    assert!(moved.seeds.iter().all(|seed| seed.loss == seed.inverted_loss), "the loss is that of the target's frame");
    let Some(Transform { rotation, perspective, .. }) = &moved.transform else { panic!("it has a transform") };
    assert!(*rotation != 0.0 && perspective.iter().all(|p| *p != 0.0));
    // Without a gradient they stay where they were drawn: the first seed at the first guess.
    params.descent.lr_transform = 0.0;
    params.latent = LatentSearch::Adam { steps: 2 };
    let drawn = solve(&model, &lanes, &params);
    let first = drawn.seeds[0].transform.as_ref().expect("it has a transform");
    assert_eq!((first.rotation, first.perspective), (0.0, [0.0, 0.0]));
    let angles: Vec<f64> = drawn.seeds[1..].iter().map(|seed| seed.transform.as_ref().expect("it has one").rotation).collect();
    assert!(angles.iter().all(|angle| *angle != 0.0) && angles.iter().any(|angle| angle.abs() > 5.0), "{angles:?}");
}

#[test]
fn an_image_without_a_box_gets_no_transform_whatever_is_beside_it() {
    let (model, lanes) = one_core();
    let whole = || projector::Target { bbox: None, ..targets(&model, 1).remove(0) };
    let alone = run(&model, &lanes, &moving(), vec![whole()]).remove(0);
    assert_eq!(alone.transform, None);
    assert!(alone.seeds.iter().all(|seed| seed.transform.is_none() && seed.loss == seed.inverted_loss));
    // The search is the same as without a transform in the parameters.
    let mut plain = Params { transform: None, ..moving() };
    (plain.descent.lr_transform, plain.descent.late_c) = (0.0, false);
    assert_eq!(alone.seeds, run(&model, &lanes, &plain, vec![whole()]).remove(0).seeds);
    let beside = run(&model, &lanes, &moving(), targets(&model, 2).into_iter().chain([whole()]).collect());
    assert_eq!(beside[2].seeds, alone.seeds);
    assert!(beside[..2].iter().all(|other| other.transform.is_some()));
}

#[test]
fn a_search_that_has_converged_ends_early_whatever_is_beside_it() {
    let (model, lanes) = one_core();
    let with = |improvement| {
        let converged = Some(proto::Converged { improvement, steps: 10 });
        Params { latent: LatentSearch::Halving { steps: vec![4, 3, 120], converged }, ..moving() }
    };
    // Nothing lowers a loss by all of it: the first look, after 50 steps of the last part, ends the search.
    let ended = solve(&model, &lanes, &with(1.0));
    assert_eq!(ended.lane_steps, 24 + 9 + 2 * 50);
    let whole = solve(&model, &lanes, &with(0.0));
    assert_eq!(whole.lane_steps, 24 + 9 + 2 * 120);
    assert!(whole.seeds[whole.best].loss < ended.seeds[ended.best].loss);
    // Another image neither delays nor hastens it.
    let beside = run(&model, &lanes, &with(1.0), targets(&model, 3)).remove(0);
    assert_eq!((beside.lane_steps, beside.seeds), (ended.lane_steps, ended.seeds));
}

#[test]
fn seeds_start_from_the_likely_classes_and_the_result_says_which_won() {
    let (model, lanes) = one_core();
    let descent = proto::Descent { lr_z: 0.0, lr_c: 0.0, ..moving().descent };
    let params = Params { class_start: ClassStart::Likely, descent, ..moving() };
    let embedding = |class| Vec::<f32>::try_from(model.generator.embed(class)).expect("a vector");
    let likely = |likely: Vec<(i64, f64)>| {
        let target = projector::Target { likely, ..targets(&model, 1).remove(0) };
        run(&model, &lanes, &params, vec![target]).remove(0)
    };
    let several = likely(vec![(2, 0.5), (0, 0.3), (1, 0.2)]);
    for (seed, c) in several.seeds.iter().zip(&several.c) {
        assert_eq!(*c, embedding(seed.class.expect("several classes are likely").into()), "the class that it says");
    }
    assert_eq!(several.seeds[several.best].class, Some(several.class as u32));
    // A class that is known, or the only likely one, is that of the image.
    for one in [likely(vec![]), likely(vec![(0, 0.9)])] {
        assert!(one.class == 0 && one.seeds.iter().all(|seed| seed.class.is_none()));
        assert!(one.c.iter().all(|c| *c == embedding(0)));
    }
}

#[test]
fn what_surrounds_the_object_has_no_influence_unless_it_is_grey() {
    let (model, lanes) = one_core();
    let z = |i: usize| Vec::<f32>::try_from((Tensor::arange(8, FLOAT) * (0.9 + i as f64)).sin()).expect("a vector");
    let inverted = |surround, transform: &Transform, noise: f64| {
        let mut target = targets(&model, 1).remove(0);
        let inside = projector::mask::binary(target.bbox, 32).squeeze_dim(0);
        let around = (Tensor::arange(3 * 32 * 32, FLOAT) * 1.3).sin().view([3, 32, 32]) * noise;
        target.image = &target.image * &inside + (&target.image + around) * (1.0 - inside);
        let mut params = Params::paper();
        params.loss.surround = surround;
        let transforms = Transforms::Shared(transform.clone());
        let request = Request { z: vec![z(0)], c: None, transforms, work: Work::Evaluate, adam: None, exact: true };
        lanes.run(&params, vec![(&target, request)]).expect("device works").remove(0).inverted[0]
    };
    let whole = Transform { colour: vec![(ColourTransform::Brightness, 1.0)], ..Transform::IDENTITY };
    // The object is exactly right, and other things are around it.
    let [grey, target] = [Surround::Grey, Surround::Target].map(|surround| inverted(surround, &whole, 0.5));
    assert!(target < 1e-5 && grey > 100.0 * target, "{target} and {grey}");
    // Nothing is around it that the generator did not make, but its frame ends near the object's box.
    let smaller = Transform { scale: [0.98; 2], ..whole };
    let [grey, target] = [Surround::Grey, Surround::Target].map(|surround| inverted(surround, &smaller, 0.0));
    assert!(target < grey, "{target} and {grey}");
}

#[test]
fn in_the_targets_frame_the_background_counts_as_far_as_the_generators_frame_reaches() {
    let (model, lanes) = one_core();
    let generated = targets(&model, 1).remove(0);
    let z: Vec<f32> = Vec::try_from((Tensor::arange(8, FLOAT) * 0.9).sin()).expect("a vector");
    // Losses of the descent: nothing is wrong but the rows of the target from `first` on.
    let loss = |background: f64, scale: f64, first: i64| {
        let transform = Transform { scale: [scale; 2], colour: vec![(ColourTransform::Brightness, 1.0)], ..Transform::IDENTITY };
        let request = |work| {
            let transforms = Transforms::Shared(transform.clone());
            Request { z: vec![z.clone()], c: None, transforms, work, adam: None, exact: true }
        };
        let mut params = moving();
        params.loss = proto::Loss { background, surround: Surround::Target, ..params.loss };
        let inverted = {
            let mut response = lanes.run(&params, vec![(&generated, request(Work::Render))]).expect("device works").remove(0);
            let pictures = response.rendered.remove(0).pictures.expect("a single lane is the best");
            Tensor::from_slice(&pictures.inverted).view([3, 32, 32])
        };
        let bbox = Some(proto::Box2d { x: 8.0, y: 8.0, width: 12.0, height: 8.0 });
        let target = projector::Target { image: inverted, bbox, ..targets(&model, 1).remove(0) };
        let _ = target.image.narrow(1, first, 32 - first).neg_();
        let response = lanes.run(&params, vec![(&target, request(Work::Evaluate))]).expect("device works").remove(0);
        (response.loss[0], response.inverted[0])
    };
    let (without, inside) = loss(0.0, 1.0, 28);
    assert!(without < 1e-5 && inside < 1e-5, "no background: {without}, {inside}");
    let (all, inside) = loss(0.1, 1.0, 28);
    assert!(all > 0.01 && inside < 1e-5, "the last rows count, and not as the object: {all}, {inside}");
    // The generator's frame ends at row 24.
    let (beyond, _) = loss(0.1, 0.5, 26);
    assert!(beyond < 1e-5, "beyond the generator's frame there is nothing to compare: {beyond}");
}

#[test]
fn where_z_is_at_its_limit_no_gradient_points_outwards() {
    let (model, lanes) = one_core();
    let target = targets(&model, 1).remove(0);
    let params = plain(LatentSearch::Lbfgs { evaluations: 6 });
    let outside: Vec<f32> = (0..8).map(|i| if i % 2 == 0 { 2.5 } else { -2.5 }).collect();
    let rows: Vec<Vec<f32>> = (0..4).map(|k| outside.iter().map(|v| if k % 2 == 0 { *v } else { -v }).collect()).collect();
    let request =
        Request { z: rows.clone(), c: None, transforms: Transforms::None, work: Work::Gradient, adam: None, exact: true };
    let response = lanes.run(&params, vec![(&target, request)]).expect("device works").remove(0);
    let mut inward = 0;
    for (z, gradient) in rows.iter().zip(&response.gradient) {
        for (z, gradient) in z.iter().zip(gradient) {
            // A step goes against the gradient.
            assert!(z * gradient >= 0.0, "{gradient} at {z} leads further out");
            inward += usize::from(*gradient != 0.0);
        }
    }
    assert!(inward > 0, "gradients that lead back stay");
}

#[test]
fn the_last_descent_can_begin_where_the_search_was_best() {
    let (model, lanes) = one_core();
    let last = LastDescent::Refined;
    let latent = LatentSearch::BasinCma { generations: 4, steps: 5, final_steps: 1, told: Told::Refined, sigma: 1.0, last };
    let solution = solve(&model, &lanes, &plain(latent));
    let best = solution.history.latent.iter().copied().fold(f64::INFINITY, f64::min);
    // A step of Adam without a past moves every value by the whole rate, so it is near, not lower.
    let inverted = solution.seeds.iter().map(|s| s.inverted_loss).fold(f64::INFINITY, f64::min);
    assert!(inverted < 1.1 * best, "{inverted} after {best}");
}

#[test]
fn without_a_search_the_result_is_where_it_would_start() {
    let (model, lanes) = one_core();
    let [start, adam] =
        [LatentSearch::Start, LatentSearch::Adam { steps: 1 }].map(|latent| solve(&model, &lanes, &plain(latent)));
    assert_eq!(start.lane_steps, 0);
    let before: Vec<f32> = adam.history.descent.iter().map(|curve| curve[0] as f32).collect();
    assert_eq!(start.seeds.iter().map(|s| s.loss as f32).collect::<Vec<_>>(), before);
}

#[test]
fn class_vectors_can_start_elsewhere_and_z_starts_the_same() {
    let (model, lanes) = one_core();
    let [class, random, gaussian] = [ClassStart::Class, ClassStart::RandomClass, ClassStart::Gaussian]
        .map(|class_start| solve(&model, &lanes, &Params { class_start, ..plain(LatentSearch::Start) }));
    let embedding = |class| Vec::<f32>::try_from(model.generator.embed(class)).expect("a vector");
    let own = embedding(0);
    assert!(class.c.iter().all(|c| *c == own));
    let others: Vec<Vec<f32>> = (1..model.generator.num_classes()).map(embedding).collect();
    assert!(random.c.iter().all(|c| others.contains(c)), "a class that is not the image's");
    assert!(gaussian.c.iter().all(|c| *c != own && !others.contains(c)));
    assert!(gaussian.c.windows(2).all(|pair| pair[0] != pair[1]), "each seed has its own");
    assert!(class.z == random.z && class.z == gaussian.z);
}

#[test]
fn every_method_lowers_the_loss_and_keeps_z_within_the_limit() {
    let (model, lanes) = one_core();
    let last = LastDescent::Fresh;
    let methods = [
        LatentSearch::Adam { steps: 30 },
        LatentSearch::Lbfgs { evaluations: 30 },
        LatentSearch::Cma { generations: 30 },
        LatentSearch::CmaAdam { generations: 10, steps: 20 },
        LatentSearch::BasinCma { generations: 3, steps: 5, final_steps: 15, told: Told::Sampled, sigma: 1.0, last },
        basin_cma(),
        ending_in(LastDescent::Refined),
        ending_in(LastDescent::Halving),
        LatentSearch::Halving { steps: vec![10, 10, 10], converged: None },
    ];
    let start = solve(&model, &lanes, &plain(LatentSearch::Cma { generations: 1 }));
    let start = start.seeds.iter().map(|s| s.loss).sum::<f64>() / 6.0;
    for latent in methods {
        for params in [plain(latent.clone()), short(latent.clone())] {
            let solution = solve(&model, &lanes, &params);
            let (best, transform) = (&solution.seeds[solution.best], params.transform.is_some());
            println!("{latent:?} transform {transform}: {:.4} from {start:.4}", best.loss);
            assert!(best.loss < start, "{latent:?}");
            assert!(solution.seeds.iter().all(|s| s.loss >= best.loss));
            assert!(solution.z.iter().flatten().all(|z| z.abs() <= 2.0));
            assert_eq!(solution.transform.is_some(), transform);
            assert_eq!(solution.transformed.len(), 3 * 32 * 32);
        }
    }
}

#[test]
fn lbfgs_moves_the_class_vector_as_far_as_the_learning_rates_allow() {
    let (model, lanes) = one_core();
    let moved = |lr_c: f64| {
        let mut params = plain(LatentSearch::Lbfgs { evaluations: 40 });
        params.descent.lr_c = lr_c;
        let solution = solve(&model, &lanes, &params);
        let own = Vec::<f32>::try_from(model.generator.embed(targets(&model, 1)[0].class)).expect("a vector");
        let far = |c: &Vec<f32>| c.iter().zip(&own).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        solution.c.iter().map(far).fold(0.0, f32::max)
    };
    let rate_of_z = Params::paper().descent.lr_z;
    let [none, papers, free] = [0.0, Params::paper().descent.lr_c, rate_of_z].map(moved);
    println!("moved {none}, {papers}, {free}");
    assert!(none == 0.0 && papers > 0.0 && papers < 0.05 * free, "{papers} and {free}");
}

#[test]
fn the_other_profile_and_an_anisotropic_transform_with_all_colours_run() {
    use proto::ColourTransform::*;
    let (model, lanes) = one_core();
    let master = Params::pix2latent();
    let mut params = short(basin_cma());
    params.transform = params.transform.map(|t| proto::TransformSearch {
        spatial: SpatialTransform::Anisotropic,
        colour: vec![Brightness, Contrast, Saturation, Hue, Gamma],
        ..t
    });
    let solution = solve(&model, &lanes, &params);
    let transform = solution.transform.expect("there is a stage one");
    assert_ne!(transform.scale[0], transform.scale[1]);
    assert_eq!(transform.colour.len(), 5);
    params.transform = master.transform.map(|t| proto::TransformSearch { generations: 3, steps: 2, ..t });
    assert!(solve(&model, &lanes, &params).transform.is_some());
}

#[test]
fn an_image_that_diverges_leaves_the_others_alone() {
    let (model, lanes) = one_core();
    let params = short(basin_cma());
    let mut batch = targets(&model, 3);
    let good = run(&model, &lanes, &params, targets(&model, 3));
    batch[1].image = Tensor::full([3, 32, 32], f64::NAN, FLOAT);
    let solutions = finish(projection(&model, &params, batch), &lanes);
    assert!(solutions[1].is_err());
    for i in [0, 2] {
        let solution = solutions[i].as_ref().expect("converges");
        assert_eq!((&solution.seeds, &solution.z, &solution.c), (&good[i].seeds, &good[i].z, &good[i].c));
    }
}
