//! The method through its front door, with a tiny random generator: the same answer however the work is cut.

use projector::{Checkpoint, Lanes, ObjectStatistics, Projection, Solution};
use proto::{ClassStart, LastDescent, LatentSearch, Params, SpatialTransform, Told};
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

#[test]
fn smaller_batches_give_the_same_losses_up_to_rounding() {
    let model = model();
    // One descent: CMA-ES on top of it would carry rounding from one generation to the next (docs/adr/0003).
    let params = Params { transform: None, ..short(LatentSearch::Adam { steps: 10 }) };
    let whole = run(&model, &Lanes::new(&model, &[Device::Cpu]), &params, targets(&model, 2));
    for block in [1, 2, 4] {
        let cut = run(&model, &Lanes::with_block(&model, &[Device::Cpu], block), &params, targets(&model, 2));
        for (a, b) in losses(&whole).concat().into_iter().zip(losses(&cut).concat()) {
            assert!((a - b).abs() <= 1e-4 * a.abs(), "{a} and {b} in blocks of {block}");
        }
    }
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
