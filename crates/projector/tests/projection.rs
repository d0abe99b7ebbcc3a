//! The method through its front door, with a tiny random generator: the same answer however the work is cut.

use projector::{Checkpoint, Generator, Lanes, Model, ObjectStatistics, Projection, Solution};
use proto::{ClassStart, ColourTransform, LastDescent, LatentSearch, Params, Precision, SpatialTransform, Told, Transform};
use tch::{Device, Kind, Tensor};

mod harness;
use harness::{basin_cma, ending_in, model, run, short, targets};

fn losses(solutions: &[Solution]) -> Vec<Vec<f64>> {
    solutions.iter().map(|s| s.seeds.iter().map(|s| s.loss).collect()).collect()
}

#[test]
fn one_two_or_three_devices_and_one_or_many_images_give_the_same_bits() {
    let model = model();
    let params = short(basin_cma());
    let one = Lanes::new(&model, &[Device::Cpu]);
    let together = run(&model, &one, &params, targets(&model, 4));
    for devices in [2, 3] {
        let lanes = Lanes::new(&model, &vec![Device::Cpu; devices]);
        let other = run(&model, &lanes, &params, targets(&model, 4));
        assert_eq!(losses(&together), losses(&other), "{devices} devices");
        assert!(together.iter().zip(&other).all(|(a, b)| a.seeds == b.seeds && a.transform == b.transform));
    }
    let alone: Vec<Solution> = targets(&model, 4).into_iter().flat_map(|t| run(&model, &one, &params, vec![t])).collect();
    assert_eq!(losses(&together), losses(&alone), "one by one");
}

/// Where a batch of another shape rounds otherwise, a ReLU near its corner may turn: a part in a thousand of a gradient. `slow` keeps
/// what that does to a loss below this; lanes that are exchanged, or moments, change it by parts in a hundred.
const ROUNDING: f64 = 1e-4;

/// One descent in steps so small that it does not carry rounding on. CMA-ES would, from one generation to the next (docs/src/adr/0003).
fn slow(steps: u32) -> Params {
    let descent = proto::Descent { lr_z: 0.002, ..Params::paper().descent };
    Params { transform: None, descent, ..short(LatentSearch::Adam { steps }) }
}

#[test]
fn smaller_batches_give_the_same_losses_up_to_rounding() {
    let model = model();
    let params = slow(10);
    let whole = run(&model, &Lanes::new(&model, &[Device::Cpu]), &params, targets(&model, 2));
    for block in [1, 2, 4] {
        let cut = run(&model, &Lanes::with_block(&model, &[Device::Cpu], block), &params, targets(&model, 2));
        for (a, b) in losses(&whole).concat().into_iter().zip(losses(&cut).concat()) {
            assert!((a - b).abs() <= ROUNDING * a.abs(), "{a} and {b} in blocks of {block}");
        }
    }
}

#[test]
fn lanes_of_several_images_in_one_batch_give_the_same_losses_up_to_rounding() {
    let model = model();
    let near = |a: f64, b: f64| assert!((a - b).abs() <= ROUNDING * a.abs(), "{a} and {b}");
    // Without and with transforms, which differ between the images; 13 lanes are one image's six, and six and one of the next two.
    // The first goes on with Adam's moments after 50 steps.
    let transform = short(LatentSearch::Start).transform;
    for (params, block) in [(slow(60), 64), (slow(10), 13), (Params { transform, ..slow(10) }, 64)] {
        let apart = run_fixed(&model, &Lanes::new(&model, &[Device::Cpu]), &params);
        for devices in [1, 2] {
            let lanes = Lanes::shared(&model, &vec![Device::Cpu; devices], block);
            let together = run_fixed(&model, &lanes, &params);
            assert_eq!(lanes.block(), block);
            for (a, b) in apart.iter().zip(&together) {
                assert_eq!((a.seeds.len(), a.history.descent.len()), (b.seeds.len(), b.history.descent.len()));
                for (a, b) in a.seeds.iter().zip(&b.seeds) {
                    near(a.loss, b.loss);
                    near(a.inverted_loss, b.inverted_loss);
                    near(a.lpips, b.lpips);
                }
            }
        }
    }
}

/// Three images, each with a transform of its own where the parameters have any.
fn run_fixed(model: &Model, lanes: &Lanes, params: &Params) -> Vec<Solution> {
    let mut projection = Projection::new(params, model, &ObjectStatistics::BIGGAN, targets(model, 3));
    for i in (0..3).filter(|_| params.transform.is_some()) {
        let scale = 1.1 + 0.2 * i as f64;
        let colour = vec![(ColourTransform::Brightness, 0.9)];
        projection.fix_transform(i, Transform { scale: [scale; 2], shift: [0.1, -0.05], colour });
    }
    while !projection.finished() {
        projection.step(lanes).expect("device works");
    }
    projection.finish(lanes).expect("device works").into_iter().map(|s| s.expect("converges")).collect()
}

/// A generator on a device whose memory holds so many lanes.
struct Small(Box<dyn Generator>, i64);

impl Generator for Small {
    fn generate(&self, z: &Tensor, c: &Tensor) -> Tensor {
        assert!(z.size()[0] <= self.1, "CUDA out of memory. Tried to allocate 2.00 GiB");
        self.0.generate(z, c)
    }
    fn embed(&self, class: i64) -> Tensor {
        self.0.embed(class)
    }
    fn latent_dim(&self) -> i64 {
        self.0.latent_dim()
    }
    fn embed_dim(&self) -> i64 {
        self.0.embed_dim()
    }
    fn num_classes(&self) -> i64 {
        self.0.num_classes()
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
    let mut model = model();
    let params = slow(4);
    let expected = losses(&run(&model, &Lanes::new(&model, &[Device::Cpu]), &params, targets(&model, 3)));
    let images = targets(&model, 3);
    model.generator = Box::new(Small(model.generator, 7));
    let lanes = Lanes::shared(&model, &[Device::Cpu], 16);
    let found = losses(&run(&model, &lanes, &params, images));
    // Six lanes of one image fit, those of two do not.
    assert_eq!(lanes.block(), 8);
    for (a, b) in expected.concat().into_iter().zip(found.concat()) {
        assert!((a - b).abs() <= ROUNDING * a.abs(), "{a} and {b}");
    }
}

#[test]
fn bfloat16_lowers_the_loss_nearly_as_far_and_what_is_reported_is_float32() {
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    let with = |precision| {
        let params = Params { transform: None, precision, ..short(LatentSearch::Adam { steps: 120 }) };
        run(&model, &lanes, &params, targets(&model, 2))
    };
    let (exact, rounded) = (with(Precision::Fp32), with(Precision::Bf16));
    let mean = |solutions: &[Solution]| losses(solutions).concat().iter().sum::<f64>() / 12.0;
    assert_ne!(losses(&exact), losses(&rounded));
    // Of what float32 takes off the loss.
    let curves = exact.iter().flat_map(|solution| &solution.history.descent);
    let start = curves.map(|curve| curve[0]).sum::<f64>() / 12.0;
    let share = (start - mean(&rounded)) / (start - mean(&exact));
    assert!((share - 1.0).abs() < 0.01, "{start} becomes {} and {}", mean(&exact), mean(&rounded));
    // On a CPU there is no TF32.
    assert_eq!(losses(&exact), losses(&with(Precision::Tf32)));
    // The answer's picture is that of z and c in float32.
    let best = &rounded[0].seeds[rounded[0].best];
    let row = |numbers: &[f32]| Tensor::from_slice(numbers).unsqueeze(0);
    let image = tch::no_grad(|| model.generator.generate(&row(&best.z), &row(&best.c))).flatten(0, -1);
    assert!((image - Tensor::from_slice(&rounded[0].generated)).abs().max().double_value(&[]) < 1e-5);
}

#[test]
fn interrupted_at_any_step_and_resumed_gives_the_same_bits() {
    let model = model();
    let ours = [LastDescent::Refined, LastDescent::Halving].map(ending_in);
    let others = [basin_cma(), LatentSearch::CmaAdam { generations: 3, steps: 8 }, LatentSearch::Lbfgs { evaluations: 6 }];
    for latent in others.into_iter().chain(ours) {
        let params = short(latent);
        let lanes = Lanes::new(&model, &[Device::Cpu]);
        let undisturbed = run(&model, &lanes, &params, targets(&model, 2));
        let mut projection = Projection::new(&params, &model, &ObjectStatistics::BIGGAN, targets(&model, 2));
        while !projection.finished() {
            projection.step(&lanes).expect("device works");
            let saved: Vec<Vec<u8>> =
                (0..2).map(|i| postcard::to_stdvec(projection.checkpoint(i)).expect("serialises")).collect();
            projection = Projection::new(&params, &model, &ObjectStatistics::BIGGAN, targets(&model, 2));
            for (i, bytes) in saved.iter().enumerate() {
                let checkpoint: Checkpoint = postcard::from_bytes(bytes).expect("deserialises");
                projection.resume(i, checkpoint).expect("fits");
            }
        }
        let resumed: Vec<Solution> =
            projection.finish(&lanes).expect("device works").into_iter().map(|s| s.expect("converges")).collect();
        assert_eq!(losses(&undisturbed), losses(&resumed));
    }
}

#[test]
fn another_seed_gives_another_answer_and_the_same_seed_the_same() {
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
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
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    let solve = |last| run(&model, &lanes, &Params { transform: None, ..short(ending_in(last)) }, targets(&model, 1)).remove(0);
    let (halved, whole) = (solve(LastDescent::Halving), solve(LastDescent::Fresh));
    // Of 6 seeds with 8 steps each: 6 with 2, 3 with 5, 2 with 10 (in all 47 of 48 lane-steps).
    assert_eq!((halved.seeds.len(), halved.lane_steps), (2, whole.lane_steps - 1));
    assert!(halved.history.descent.iter().all(|curve| curve.len() == 2 + 5 + 10), "{:?}", halved.history.descent);
    for curve in &halved.history.descent {
        assert!(whole.history.descent.iter().any(|other| other[..2] == curve[..2]), "it began as one of the six");
    }
}

#[test]
fn the_last_descent_can_begin_where_the_search_was_best() {
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    let last = LastDescent::Refined;
    let latent = LatentSearch::BasinCma { generations: 4, steps: 5, final_steps: 1, told: Told::Refined, sigma: 1.0, last };
    let solution = run(&model, &lanes, &Params { transform: None, ..short(latent) }, targets(&model, 1)).remove(0);
    let best = solution.history.latent.iter().copied().fold(f64::INFINITY, f64::min);
    // A step of Adam without a past moves every value by the whole rate, so it is near, not lower.
    let inverted = solution.seeds.iter().map(|s| s.inverted_loss).fold(f64::INFINITY, f64::min);
    assert!(inverted < 1.1 * best, "{inverted} after {best}");
}

#[test]
fn without_a_search_the_result_is_where_it_would_start() {
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    let solve = |latent| run(&model, &lanes, &Params { transform: None, ..short(latent) }, targets(&model, 1)).remove(0);
    let (start, adam) = (solve(LatentSearch::Start), solve(LatentSearch::Adam { steps: 1 }));
    assert_eq!(start.lane_steps, 0);
    let before: Vec<f32> = adam.history.descent.iter().map(|curve| curve[0] as f32).collect();
    assert_eq!(start.seeds.iter().map(|s| s.loss as f32).collect::<Vec<_>>(), before);
}

#[test]
fn class_vectors_can_start_elsewhere_and_z_starts_the_same() {
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    let solve = |class_start| {
        let params = Params { transform: None, class_start, ..short(LatentSearch::Start) };
        run(&model, &lanes, &params, targets(&model, 1)).remove(0).seeds
    };
    let own: Vec<f32> = Vec::try_from(model.generator.embed(0)).expect("a vector");
    let (class, random, gaussian) = (solve(ClassStart::Class), solve(ClassStart::RandomClass), solve(ClassStart::Gaussian));
    assert!(class.iter().all(|s| s.c == own));
    let others: Vec<Vec<f32>> =
        (1..model.generator.num_classes()).map(|k| Vec::try_from(model.generator.embed(k)).expect("a vector")).collect();
    assert!(random.iter().all(|s| others.contains(&s.c)), "a class that is not the image's");
    assert!(gaussian.iter().all(|s| s.c != own && !others.contains(&s.c)));
    assert!(gaussian.windows(2).all(|pair| pair[0].c != pair[1].c), "each seed has its own");
    for other in [random, gaussian] {
        assert!(class.iter().zip(&other).all(|(a, b)| a.z == b.z));
    }
}

#[test]
fn every_method_lowers_the_loss_and_keeps_z_within_the_limit() {
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    let methods = [
        LatentSearch::Adam { steps: 30 },
        LatentSearch::Lbfgs { evaluations: 30 },
        LatentSearch::Cma { generations: 30 },
        LatentSearch::CmaAdam { generations: 10, steps: 20 },
        LatentSearch::BasinCma {
            generations: 3,
            steps: 5,
            final_steps: 15,
            told: Told::Sampled,
            sigma: 1.0,
            last: LastDescent::Fresh,
        },
        basin_cma(),
        ending_in(LastDescent::Refined),
        ending_in(LastDescent::Halving),
    ];
    let start =
        run(&model, &lanes, &Params { transform: None, ..short(LatentSearch::Cma { generations: 1 }) }, targets(&model, 1));
    let start = start[0].seeds.iter().map(|s| s.loss).sum::<f64>() / 6.0;
    for latent in methods {
        for transform in [false, true] {
            let mut params = short(latent.clone());
            if !transform {
                params.transform = None;
            }
            let solution = run(&model, &lanes, &params, targets(&model, 1)).remove(0);
            let best = &solution.seeds[solution.best];
            println!("{latent:?} transform {transform}: {:.4} from {start:.4}", best.loss);
            assert!(best.loss < start, "{latent:?}");
            assert!(solution.seeds.iter().all(|s| s.loss >= best.loss));
            assert!(solution.seeds.iter().flat_map(|s| &s.z).all(|z| z.abs() <= 2.0));
            assert_eq!(solution.transform.is_some(), transform);
            assert_eq!(solution.transformed.len(), 3 * 32 * 32);
        }
    }
}

#[test]
fn lbfgs_moves_the_class_vector_as_far_as_the_learning_rates_allow() {
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    let moved = |lr_c: f64| {
        let mut params = Params { transform: None, ..short(LatentSearch::Lbfgs { evaluations: 40 }) };
        params.descent.lr_c = lr_c;
        let solution = run(&model, &lanes, &params, targets(&model, 1)).remove(0);
        let own = Vec::<f32>::try_from(model.generator.embed(targets(&model, 1)[0].class)).expect("a vector");
        let far = |c: &Vec<f32>| c.iter().zip(&own).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        solution.seeds.iter().map(|seed| far(&seed.c)).fold(0.0, f32::max)
    };
    let rate_of_z = Params::paper().descent.lr_z;
    let [none, papers, free] = [0.0, Params::paper().descent.lr_c, rate_of_z].map(moved);
    println!("moved {none}, {papers}, {free}");
    assert!(none == 0.0 && papers > 0.0 && papers < 0.05 * free, "{papers} and {free}");
}

#[test]
fn the_other_profile_and_an_anisotropic_transform_with_all_colours_run() {
    use proto::ColourTransform::*;
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    let master = Params::pix2latent();
    let mut params = short(basin_cma());
    params.transform = params.transform.map(|t| proto::TransformSearch {
        spatial: SpatialTransform::Anisotropic,
        colour: vec![Brightness, Contrast, Saturation, Hue, Gamma],
        ..t
    });
    let solution = run(&model, &lanes, &params, targets(&model, 1)).remove(0);
    let transform = solution.transform.expect("there is a stage one");
    assert_ne!(transform.scale[0], transform.scale[1]);
    assert_eq!(transform.colour.len(), 5);
    params.transform = master.transform.map(|t| proto::TransformSearch { generations: 3, steps: 2, ..t });
    assert!(run(&model, &lanes, &params, targets(&model, 1))[0].transform.is_some());
}

#[test]
fn an_image_that_diverges_leaves_the_others_alone() {
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    let params = short(basin_cma());
    let mut batch = targets(&model, 3);
    let good = run(&model, &lanes, &params, targets(&model, 3));
    batch[1].image = Tensor::full([3, 32, 32], f64::NAN, (Kind::Float, Device::Cpu));
    let mut projection = Projection::new(&params, &model, &ObjectStatistics::BIGGAN, batch);
    while !projection.finished() {
        projection.step(&lanes).expect("device works");
    }
    let solutions = projection.finish(&lanes).expect("device works");
    assert!(solutions[1].is_err());
    for i in [0, 2] {
        assert_eq!(solutions[i].as_ref().expect("converges").seeds, good[i].seeds);
    }
}
