//! Fine-tuning, editability after it (paper, Section 3.5), and the codecs of weight deltas.

use std::path::Path;

use anyhow::{Context, Result};
use engine::LoadedModel;
use projector::loss::LossTarget;
use projector::{Checkpoint, Edit, Generator, Lanes, Projection, Solution, Target, Tuned, transform};
use proto::{DeltaCodec, FineTune, LatentSearch, Params, Stage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::codecs::{self, Codec};
use crate::page::Record;
use crate::samples::targets;

/// Steps of the bad start: Adam without a transform (the authors' code).
const ADAM_STEPS: u32 = 500;

/// Starts of fine-tuning that are compared.
const STARTS: [&str; 3] = ["BasinCMA + transform", "Adam, no transform", "a random z"];

#[derive(Serialize, Deserialize)]
pub struct Editing {
    model: String,
    fine_tune: FineTune,
    starts: Vec<Start>,
    /// Generators whose deltas the codecs store.
    generators: usize,
    codecs: Vec<Codec>,
    codecs_biggan_256: Vec<Codec>,
}

/// Sums over the images of one start. Pairs are before and after fine-tuning.
#[derive(Default, Serialize, Deserialize)]
struct Start {
    name: String,
    images: usize,
    kept: usize,
    /// LPIPS as the loss has it.
    weighted: [f64; 2],
    /// In the target's frame inside the box.
    lpips: [f64; 2],
    /// The same of the target itself, transformed and back: no projection can be nearer.
    floor: f64,
    l1: [f64; 2],
    /// Edits to another class, and those among them that the classifier takes for that class.
    edits: usize,
    agreed: [usize; 2],
    /// Images whose weighted LPIPS falls by at least half.
    halved: usize,
    bytes: usize,
}

/// Runs `n` samples from all starts, and measures the codecs.
pub fn run(model: &LoadedModel, samples: &Path, work: &Path, n: usize, tune: &FineTune) -> Result<Editing> {
    std::fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    let lanes = Lanes::new(&model.model, &engine::Devices::automatic().0);
    let fast = Params::fast();
    let adam = Params { transform: None, latent: LatentSearch::Adam { steps: ADAM_STEPS }, ..fast.clone() };
    let random = Params { latent: LatentSearch::Adam { steps: 1 }, seeds: 1, ..adam.clone() };
    let all = targets(model, samples, |_| true)?;
    let chosen: Vec<&(String, Target)> = (0..n).map(|i| &all[i * all.len() / n]).collect();
    let (mut starts, mut deltas) = (Vec::new(), Vec::new());
    for (name, params) in STARTS.into_iter().zip([fast, adam, random]) {
        let params = Params { fine_tune: Some(tune.clone()), ..params };
        let mut start = Start { name: name.into(), ..Start::default() };
        for (image, target) in &chosen {
            let saved = work.join(format!("{name}-{image}"));
            let solution = tuned(model, &lanes, &params, target, &saved)?;
            start.add(model, &params, target, &solution)?;
            let lpips = solution.fine_tuned.as_ref().and_then(|t| t.as_ref().ok()).map(|t| t.distances.lpips);
            eprintln!("{name} {image}: LPIPS {:.4} -> {lpips:.4?}", solution.seeds[solution.best].lpips);
            if name == STARTS[0] {
                // Stored without loss, for the codecs to be measured against.
                let exact = Params { fine_tune: Some(FineTune { delta: DeltaCodec::Float32, ..tune.clone() }), ..params.clone() };
                let solution = tuned(model, &lanes, &exact, target, &saved)?;
                deltas.extend(solution.fine_tuned.and_then(Result::ok).map(|tuned| tuned.delta));
            }
        }
        starts.push(start);
    }
    Ok(Editing {
        model: model.reference.name.clone(),
        fine_tune: tune.clone(),
        starts,
        generators: deltas.len(),
        codecs: codecs::measure(&model.model, &deltas)?,
        codecs_biggan_256: codecs::measure_biggan_256()?,
    })
}

impl Record for Editing {
    const NAME: &'static str = "editing-figures";
    const PAGE: &'static str = include_str!("../pages/editing-figures.md");

    fn derived(&self) -> Value {
        let fine_tune = serde_json::to_string(&self.fine_tune).expect("parameters are JSON");
        json!({ "adam_steps": ADAM_STEPS, "fine_tune_json": fine_tune })
    }
}

/// Searches, or resumes after a search that was saved, and fine-tunes.
fn tuned(model: &LoadedModel, lanes: &Lanes, params: &Params, target: &Target, saved: &Path) -> Result<Solution> {
    let mut projection = Projection::new(params, &model.model, &model.statistics, vec![target.shallow_clone()]);
    if let Some(checkpoint) = std::fs::read(saved).ok().and_then(|bytes| postcard::from_bytes::<Checkpoint>(&bytes).ok()) {
        projection.resume(0, checkpoint)?;
    } else {
        while projection.stage(0).is_some_and(|stage| stage != Stage::FineTune) {
            projection.step(lanes)?;
        }
        std::fs::write(saved, postcard::to_stdvec(projection.checkpoint(0))?)?;
    }
    while !projection.finished() {
        projection.step(lanes)?;
    }
    Ok(projection.finish(lanes)?.remove(0)?)
}

impl Start {
    fn add(&mut self, model: &LoadedModel, params: &Params, target: &Target, solution: &Solution) -> Result<()> {
        let best = &solution.seeds[solution.best];
        let tuned: Option<&Tuned> = solution.fine_tuned.as_ref().and_then(|tuned| tuned.as_ref().ok());
        let after = tuned.map_or((best.l1, best.lpips), |t| (t.distances.l1, t.distances.lpips));
        self.images += 1;
        self.l1 = [self.l1[0] + best.l1, self.l1[1] + after.0];
        self.lpips = [self.lpips[0] + best.lpips, self.lpips[1] + after.1];
        self.floor += floor(model, params, target, solution);
        // Without a kept generator nothing changes.
        let weighted = tuned.map_or((1.0, 1.0), |t| t.lpips);
        self.weighted = [self.weighted[0] + weighted.0, self.weighted[1] + weighted.1];
        self.halved += usize::from(weighted.1 <= weighted.0 / 2.0);
        let base = &*model.model.generator;
        let (edits, agreed) = edits(model, base, &solution.z[solution.best], &solution.c[solution.best])?;
        self.edits += edits;
        self.agreed[0] += agreed;
        if let Some(tuned) = tuned {
            let generator = base.replicate(Device::Cpu);
            tuned.delta.apply(&*generator);
            self.agreed[1] += self::edits(model, &*generator, &tuned.delta.z, &tuned.delta.c)?.1;
            self.kept += 1;
            self.bytes += codecs::written(&tuned.delta)?.len();
        } else {
            self.agreed[1] += agreed;
        }
        Ok(())
    }
}

/// LPIPS in the box of the target that was transformed and back.
fn floor(model: &LoadedModel, params: &Params, target: &Target, solution: &Solution) -> f64 {
    let (Some(search), Some(found)) = (&params.transform, &solution.transform) else { return 0.0 };
    let _no_grad = tch::no_grad_guard();
    let (image, found) = (target.image.unsqueeze(0), std::slice::from_ref(found));
    let there = transform::apply(&image, found, search.align_corners);
    let back = transform::invert(&there, found, search.align_corners);
    let inside = projector::mask::binary(target.bbox, i64::from(model.reference.resolution));
    LossTarget::new(&model.model.lpips, &params.loss, &image, &inside).terms(&model.model.lpips, &back).1.double_value(&[0])
}

/// Edits to each other class, and how many the classifier takes for that class.
fn edits(model: &LoadedModel, generator: &dyn Generator, z: &[f32], c: &[f32]) -> Result<(usize, usize)> {
    let classifier = model.head.as_ref().context("the model has no classifier")?;
    let classes = generator.num_classes();
    let (zs, cs): (Vec<Tensor>, Vec<Tensor>) =
        (0..classes).map(|class| Edit { class: Some((class, 1.0)), ..Edit::default() }.latents(generator, z, c)).unzip();
    let images = tch::no_grad(|| generator.generate(&Tensor::cat(&zs, 0), &Tensor::cat(&cs, 0)));
    let found: Vec<i64> = Vec::try_from(classifier.logits(&model.model.lpips, &images).argmax(1, false))?;
    let now = nearest(generator, c);
    let others = (0..classes).filter(|class| *class != now);
    Ok((others.clone().count(), others.filter(|class| found[*class as usize] == *class).count()))
}

/// The class whose embedding is nearest to c.
fn nearest(generator: &dyn Generator, c: &[f32]) -> i64 {
    let c = Tensor::from_slice(c);
    let distance = |class: i64| (generator.embed(class) - &c).square().sum(tch::Kind::Double).double_value(&[]);
    (0..generator.num_classes()).min_by(|a, b| distance(*a).total_cmp(&distance(*b))).expect("there are classes")
}
