//! Fine-tuning and what is left of editability after it (paper, Section 3.5), and the codecs of weight deltas.

use std::path::Path;

use anyhow::{Context, Result};
use engine::LoadedModel;
use projector::loss::LossTarget;
use projector::{Checkpoint, Delta, Edit, Generator, Lanes, Projection, Solution, Target, Tuned, transform};
use proto::{DeltaCodec, FineTune, LatentSearch, Params};
use tch::{Device, Tensor};

use crate::deltas;
use crate::samples::targets;

/// Steps of the bad start: Adam without a transform (the authors' code).
const ADAM_STEPS: u32 = 500;

/// Starts of fine-tuning that are compared.
const STARTS: [&str; 3] = ["BasinCMA + transform", "Adam, no transform", "a random z"];

/// What came of a start.
#[derive(Default)]
struct Row {
    images: usize,
    kept: usize,
    /// Sums over the images: LPIPS as the loss has it, and in the target's frame inside the box.
    weighted: [f64; 2],
    lpips: [f64; 2],
    /// The same of the target itself, transformed and back: no projection can be nearer.
    floor: f64,
    l1: [f64; 2],
    /// Edits to another class that the classifier agrees with: of the model, and of the tuned generator.
    edits: usize,
    agreed: [usize; 2],
    halved: usize,
    bytes: usize,
}

/// Runs `n` samples from both starts, and measures the codecs.
pub fn run(model: &LoadedModel, samples: &Path, work: &Path, n: usize, tune: &FineTune) -> Result<String> {
    let lanes = Lanes::new(&model.model, &engine::Devices::automatic().0);
    let fast = Params::fast();
    let adam = Params { transform: None, latent: LatentSearch::Adam { steps: ADAM_STEPS }, ..fast.clone() };
    let random = Params { latent: LatentSearch::Adam { steps: 1 }, seeds: 1, ..adam.clone() };
    let all = targets(model, samples, |_| true)?;
    let chosen: Vec<&(String, Target)> = (0..n).map(|i| &all[i * all.len() / n]).collect();
    let mut rows = Vec::new();
    let mut deltas = Vec::new();
    for (start, params) in STARTS.into_iter().zip([fast, adam, random]) {
        let params = Params { fine_tune: Some(tune.clone()), ..params };
        let mut row = Row::default();
        for (name, target) in &chosen {
            let solution = tuned(model, &lanes, &params, target, &work.join(format!("{start}-{name}")))?;
            row.add(model, &params, target, &solution)?;
            let lpips = solution.fine_tuned.as_ref().and_then(|t| t.as_ref().ok()).map(|t| t.rendered.lpips);
            eprintln!("{start} {name}: LPIPS {:.4} -> {lpips:.4?}", solution.seeds[solution.best].lpips);
            if start == STARTS[0] {
                // Stored without loss, for the codecs to be measured against.
                let exact = Params { fine_tune: Some(FineTune { delta: DeltaCodec::Float32, ..tune.clone() }), ..params.clone() };
                let solution = tuned(model, &lanes, &exact, target, &work.join(format!("{start}-{name}")))?;
                deltas.extend(solution.fine_tuned.and_then(Result::ok).map(|tuned| tuned.delta));
            }
        }
        rows.push((start, row));
    }
    let mut text = format!(
        "# Fine-tuning and editing, measured\n\nWritten by `make bench-editing`; model {}, {n} samples, profile `fast`; Adam takes \
        {ADAM_STEPS} steps from 18 starts. Fine-tuning:\n\n```json\n{}\n```\n\n",
        model.reference.name,
        serde_json::to_string(tune)?
    );
    text += &measures(&rows);
    let exact: Vec<&Delta> = deltas.iter().collect();
    text += &format!("\n## Weight deltas\n\nOf the {} generators tuned from the full method's answers:\n\n", exact.len());
    text += &deltas::table(&model.model, &exact)?;
    text +=
        "\nIn the shapes of BigGAN-deep-256: one generator with random weights, 20 steps towards another image of its own:\n\n";
    text += &deltas::biggan_256()?;
    Ok(text)
}

/// A line for each measure, a column for each start.
fn measures(rows: &[(&str, Row)]) -> String {
    let mut text = format!("| mean of the images | {} |\n", rows.iter().map(|(start, _)| *start).collect::<Vec<_>>().join(" | "));
    text += &format!("|---|{}\n", "---|".repeat(rows.len()));
    let mut line = |name: &str, value: &dyn Fn(&Row) -> String| {
        text += &format!("| {name} | {} |\n", rows.iter().map(|(_, row)| value(row)).collect::<Vec<_>>().join(" | "));
    };
    let mean = |row: &Row, sum: f64| format!("{:.4}", sum / row.images as f64);
    let part = |a: usize, of: usize| format!("{:.1} %", 100.0 * a as f64 / of as f64);
    line("LPIPS of the transformed target, weighted as in the loss: before", &|r| mean(r, r.weighted[0]));
    line("after", &|r| mean(r, r.weighted[1]));
    line("images in which it falls by at least half", &|r| format!("{} of {}", r.halved, r.images));
    line("LPIPS in the target's frame, inside the box: before", &|r| mean(r, r.lpips[0]));
    line("after", &|r| mean(r, r.lpips[1]));
    line("of the target itself, transformed and back", &|r| mean(r, r.floor));
    line("L1 there: before", &|r| mean(r, r.l1[0]));
    line("after", &|r| mean(r, r.l1[1]));
    line("edits to another class that the classifier takes for that class: without fine-tuning", &|r| part(r.agreed[0], r.edits));
    line("with it", &|r| part(r.agreed[1], r.edits));
    line("generators that were kept", &|r| format!("{} of {}", r.kept, r.images));
    line("bytes of a delta", &|r| format!("{:.0}", r.bytes as f64 / r.kept as f64));
    text
}

fn written(delta: &Delta) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    delta.write("benchmark", &mut bytes)?;
    Ok(bytes)
}

/// Searches, or goes on from a search that was saved, and tunes.
fn tuned(model: &LoadedModel, lanes: &Lanes, params: &Params, target: &Target, saved: &Path) -> Result<Solution> {
    let mut projection = Projection::new(params, &model.model, &model.statistics, vec![target.shallow_clone()]);
    if let Some(checkpoint) = std::fs::read(saved).ok().and_then(|bytes| postcard::from_bytes::<Checkpoint>(&bytes).ok()) {
        projection.resume(0, checkpoint)?;
    } else {
        while projection.stage(0).is_some_and(|stage| stage != "fine_tune") {
            projection.step(lanes)?;
        }
        std::fs::write(saved, postcard::to_stdvec(projection.checkpoint(0))?)?;
    }
    while !projection.finished() {
        projection.step(lanes)?;
    }
    Ok(projection.finish(lanes)?.remove(0)?)
}

impl Row {
    fn add(&mut self, model: &LoadedModel, params: &Params, target: &Target, solution: &Solution) -> Result<()> {
        let best = &solution.seeds[solution.best];
        let tuned: Option<&Tuned> = solution.fine_tuned.as_ref().and_then(|tuned| tuned.as_ref().ok());
        let after = tuned.map_or((best.l1, best.lpips), |t| (t.rendered.l1, t.rendered.lpips));
        self.images += 1;
        self.l1 = [self.l1[0] + best.l1, self.l1[1] + after.0];
        self.lpips = [self.lpips[0] + best.lpips, self.lpips[1] + after.1];
        self.floor += floor(model, params, target, solution);
        // What was not kept changed nothing.
        let weighted = tuned.map_or((1.0, 1.0), |t| t.lpips);
        self.weighted = [self.weighted[0] + weighted.0, self.weighted[1] + weighted.1];
        self.halved += usize::from(weighted.1 <= weighted.0 / 2.0);
        let base = &*model.model.generator;
        let (edits, agreed) = edits(model, base, &best.z, &best.c)?;
        self.edits += edits;
        self.agreed[0] += agreed;
        if let Some(tuned) = tuned {
            let generator = base.replicate(Device::Cpu);
            tuned.delta.apply(&*generator);
            self.agreed[1] += self::edits(model, &*generator, &tuned.delta.z, &tuned.delta.c)?.1;
            self.kept += 1;
            self.bytes += written(&tuned.delta)?.len();
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
