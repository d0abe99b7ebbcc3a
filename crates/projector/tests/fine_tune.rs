//! Fine-tuning and weight deltas through the front door, with a tiny random generator.

use projector::{Delta, Dropped, Lanes, Model, Solution, Tuned};
use proto::{DeltaCodec, FineTune, LatentSearch, Params, Regulariser, Stage};
use tch::{Device, Tensor};

mod harness;
use harness::{basin_cma, converged, finish, model, one_core, projection, resumed, run, short, targets};

const CODECS: [DeltaCodec; 6] = [
    DeltaCodec::Float32,
    DeltaCodec::Bfloat16,
    DeltaCodec::Int8,
    DeltaCodec::Int4,
    DeltaCodec::LowRank { rank: 2 },
    DeltaCodec::Auto { psnr: 40.0 },
];

fn tune() -> FineTune {
    FineTune { steps: 60, lr: 1e-3, ..FineTune::default() }
}

fn solve(model: &Model, tune: FineTune) -> Solution {
    let params = Params { fine_tune: Some(tune), ..short(LatentSearch::Adam { steps: 10 }) };
    harness::solve(model, &Lanes::new(model, &[Device::Cpu]), &params)
}

fn kept(solution: &Solution) -> &Tuned {
    solution.fine_tuned.as_ref().expect("it was asked for").as_ref().expect("it helps")
}

fn written(delta: &Delta) -> Vec<u8> {
    let mut bytes = Vec::new();
    delta.write("a model", &mut bytes).expect("memory");
    bytes
}

/// The image of a generator with a delta, as `Tuned` has it.
fn image(model: &Model, delta: &Delta) -> Vec<f32> {
    let generator = model.generator.replicate(Device::Cpu);
    delta.apply(&*generator);
    let row = |values: &[f32]| Tensor::from_slice(values).unsqueeze(0);
    let image = tch::no_grad(|| generator.generate(&row(&delta.z), &row(&delta.c)));
    Vec::try_from(image.flatten(0, -1)).expect("floats")
}

#[test]
fn it_lowers_the_loss_and_stays_near_the_model() {
    let model = model();
    let solution = solve(&model, tune());
    let (before, after) = (&solution.seeds[solution.best], kept(&solution));
    let found = &after.distances;
    println!("loss {:.4} -> {:.4}, LPIPS {:.4} -> {:.4}", before.loss, found.loss, before.lpips, found.lpips);
    assert!(found.loss < 0.8 * before.loss && after.steps == 60);
    assert_eq!(solution.history.fine_tune.len(), 60);
    assert!((solution.history.fine_tune[0] - before.loss).abs() < 1e-5, "the first step starts at the search's answer");
    assert!(after.pictures.generated != solution.generated, "the search's answer is kept beside it");

    let strict = solve(&model, FineTune { lambda: 1e5, ..tune() });
    let far = |solution: &Solution| {
        let change: f32 = image(&model, &kept(solution).delta).iter().zip(&solution.generated).map(|(a, b)| (a - b).abs()).sum();
        f64::from(change) / solution.generated.len() as f64
    };
    assert!(far(&strict) < 0.5 * far(&solution), "{} and {}", far(&strict), far(&solution));
}

#[test]
fn every_reading_of_the_regulariser_holds_the_weights_back() {
    let model = model();
    let free = kept(&solve(&model, FineTune { lambda: 0.0, ..tune() })).distances.loss;
    for regulariser in [Regulariser::MeanSquares, Regulariser::Norm, Regulariser::SquaredNorm] {
        let lambda = if regulariser == Regulariser::MeanSquares { 1e6 } else { 10.0 };
        let held = solve(&model, FineTune { lambda, regulariser, ..tune() });
        // A strict one may leave nothing that helps.
        let held = held.fine_tuned.expect("asked for").map_or(f64::INFINITY, |tuned| tuned.distances.loss);
        assert!(held > free, "{regulariser:?}: {held} and {free}");
    }
}

#[test]
fn latents_and_transform_move_if_they_are_given_a_rate() {
    let model = model();
    let fixed = solve(&model, tune());
    let (z, c) = (&fixed.z[fixed.best], &fixed.c[fixed.best]);
    assert_eq!((&kept(&fixed).delta.z, &kept(&fixed).delta.c), (z, c));
    assert_eq!(kept(&fixed).delta.transform, fixed.transform);
    let latents = solve(&model, FineTune { lr_latents: 1e-2, ..tune() });
    assert!(kept(&latents).delta.z != *z && kept(&latents).delta.c != *c);
    assert!(kept(&latents).delta.z.iter().all(|z| z.abs() <= 2.0));
    let moved = solve(&model, FineTune { lr_transform: 1e-3, ..tune() });
    let transform = kept(&moved).delta.transform.as_ref().expect("there is one");
    assert_ne!(Some(transform), moved.transform.as_ref());
    assert_eq!(transform.scale[0], transform.scale[1], "the search was isotropic");
    assert!(kept(&moved).distances.loss < fixed.seeds[fixed.best].loss);
}

#[test]
fn it_ends_at_the_goal_and_what_is_no_help_is_dropped() {
    let model = model();
    let whole = solve(&model, tune());
    let early = solve(&model, FineTune { lpips_goal: 0.8 * whole.seeds[whole.best].lpips, ..tune() });
    let (whole, early) = (kept(&whole), kept(&early));
    assert!(early.steps < 60 && early.distances.loss > whole.distances.loss, "{} steps", early.steps);
    let needless = solve(&model, FineTune { lpips_goal: 1.0, ..tune() });
    assert_eq!(needless.fine_tuned.expect("asked for").err(), Some(Dropped::Needless));
    let solution = solve(&model, FineTune { lr: 1.0, steps: 3, ..tune() });
    let dropped = solution.fine_tuned.expect("asked for").expect_err("such steps are no help");
    assert!(matches!(dropped, Dropped::Worse { before, after } if after > before), "{dropped}");
    let solution = solve(&model, FineTune { lr: 1.0, steps: 60, lambda: 1e9, regulariser: Regulariser::SquaredNorm, ..tune() });
    assert!(solution.fine_tuned.expect("asked for").is_err());
    assert!(solution.seeds[solution.best].loss.is_finite());
}

#[test]
fn devices_neighbours_and_interruptions_change_no_bit() {
    let (model, one) = one_core();
    let params = Params { fine_tune: Some(tune()), ..short(basin_cma()) };
    let files = |solutions: &[Solution]| solutions.iter().map(|s| written(&kept(s).delta)).collect::<Vec<_>>();
    let together = files(&run(&model, &one, &params, targets(&model, 3)));
    let three = Lanes::new(&model, &[Device::Cpu; 3]);
    assert!(together == files(&run(&model, &three, &params, targets(&model, 3))), "three devices");
    let alone: Vec<Solution> = targets(&model, 3).into_iter().flat_map(|t| run(&model, &one, &params, vec![t])).collect();
    assert!(together == files(&alone), "one by one");

    // Fine-tuning itself is not saved: it starts again from the search's answer.
    let mut projection = projection(&model, &params, targets(&model, 3));
    while projection.stage(0) != Some(Stage::FineTune) {
        projection.step(&one).expect("device works");
    }
    projection.step(&one).expect("device works");
    let resumed = resumed(&model, &params, &projection, 3);
    assert_eq!(resumed.stage(0), Some(Stage::FineTune));
    assert!(together == files(&converged(finish(resumed, &one))), "resumed");
}

#[test]
fn every_codec_gives_the_image_back_that_was_measured() {
    let model = model();
    let mut sizes = Vec::new();
    for codec in CODECS {
        let solution = solve(&model, FineTune { delta: codec, ..tune() });
        let tuned = kept(&solution);
        let bytes = written(&tuned.delta);
        let delta = Delta::read(bytes.as_slice(), "a model", &*model.generator).expect("ours");
        println!("{codec:?}: {} bytes, {:.1} dB, {:?}", bytes.len(), tuned.psnr, tuned.delta.codes());
        assert!(image(&model, &delta) == tuned.pictures.generated, "{codec:?}");
        assert_eq!((&delta.z, &delta.transform), (&tuned.delta.z, &tuned.delta.transform));
        assert!(written(&delta) == bytes, "{codec:?}: written again it is another");
        match codec {
            // Only what theta_0 + (theta - theta_0) rounds.
            DeltaCodec::Float32 => assert!(tuned.psnr > 120.0, "{}", tuned.psnr),
            DeltaCodec::Auto { psnr } => assert!(tuned.psnr >= psnr, "{}", tuned.psnr),
            _ => assert!(tuned.psnr > 10.0, "{codec:?}: {}", tuned.psnr),
        }
        sizes.push(bytes.len());
    }
    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2] && sizes[2] > sizes[3] && sizes[3] > sizes[5], "{sizes:?}");
}

#[test]
fn a_delta_of_another_model_or_a_damaged_one_is_refused() {
    let model = model();
    for codec in CODECS {
        let bytes = written(&kept(&solve(&model, FineTune { delta: codec, steps: 10, ..tune() })).delta);
        let read = |bytes: &[u8], digest: &str| Delta::read(bytes, digest, &*model.generator);
        let error = read(&bytes, "another model").expect_err("it is another");
        assert!(error.to_string().contains("belongs to the model with digest a model"), "{error}");
        for cut in [0, 1, 100, bytes.len() / 2, bytes.len() - 1] {
            assert!(read(&bytes[..cut], "a model").is_err(), "{codec:?} cut at {cut}");
        }
        for at in (0..bytes.len()).step_by(bytes.len() / 50) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            assert!(read(&damaged, "a model").is_err(), "{codec:?} damaged at {at}");
        }
    }
}

#[test]
fn hostile_deltas_are_refused_with_the_tensor_named() {
    let model = model();
    let bytes = written(&kept(&solve(&model, FineTune { delta: DeltaCodec::Int8, steps: 10, ..tune() })).delta);
    let plain = zstd::decode_all(bytes.as_slice()).expect("ours");
    let read = |plain: &[u8]| {
        let bytes = zstd::encode_all(plain, 1).expect("memory");
        Delta::read(bytes.as_slice(), "a model", &*model.generator).expect_err("hostile").to_string()
    };
    let replace = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut plain = plain.clone();
        let mut found = 0;
        for at in 0..plain.len() - from.len() {
            if plain[at..].starts_with(from.as_bytes()) {
                plain[at..at + to.len()].copy_from_slice(to.as_bytes());
                found += 1;
            }
        }
        assert!(found > 0, "{from}");
        plain
    };
    let error = read(&replace("gen_z.weight", "gen_y.weight"));
    assert!(error.contains("gen_y.weight") && error.contains("not a weight of the generator"), "{error}");
    let error = read(&replace("conv_to_rgb.bias.scale", "conv_to_rgb.bias.scald"));
    assert!(error.contains("conv_to_rgb.bias.scal"), "{error}");
    let error = read(&replace("basin delta", "basin delte"));
    assert!(error.contains("the file is not a delta"), "{error}");
    let error = read(&replace(r#"code\":\"int8"#, r#"code\":\"int9"#));
    assert!(error.contains("int9"), "{error}");
    // The last tensor is the last layer's scale: make it NaN.
    let mut nan = plain.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(read(&nan).contains("not finite"));
    // A bomb: a gigabyte of zeros in some kilobytes.
    let bomb = zstd::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 30), 3).expect("memory");
    let error = Delta::read(bomb.as_slice(), "a model", &*model.generator).expect_err("too large");
    assert!(error.to_string().contains("unpacks to more than"), "{error}");
}
