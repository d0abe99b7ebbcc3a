//! Turns training states into a model folder: standing statistics, measurements, files, card.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use engine::calibrate;
use projector::nn::biggan_deep::BigganDeep;
use projector::nn::{Weights, lpips};
use projector::{Generator as _, nn::lpips::Lpips};
use proto::{
    Box2d, ClassifierKind, ClassifierManifest, GeneratorKind, GeneratorManifest, ModelManifest, ObjectsManifest,
    PerceptualManifest,
};
use tch::kind::{FLOAT_CPU, INT64_CPU};
use tch::{Kind, Tensor, no_grad};

use crate::class_variance;
use crate::classifier::{self, Conv, Stack, TrainableClassifier, accuracy};
use crate::data::{CLASSES, SIZE, SUPER_CLASSES, Split};
use crate::folder::{digests, remove, write_json};
use crate::gan::{Average, averaged_generator};
use crate::generator::Config;
use crate::vars::write_safetensors;
use crate::{directions, encoder};

/// Samples of each class for the standing statistics of one truncation, in batches of this many per class.
const STATISTICS_BATCHES: i64 = 2;
const STATISTICS_PER_CLASS: i64 = 32;
/// Generated samples of each class for the measurements.
const MEASURED_PER_CLASS: i64 = 1000;
/// Weight of every channel in LPIPS: makes distances about as large as those of AlexNet with its heads, so that beta = 10 means the
/// same balance with L1.
const HEAD: f64 = 0.1;
/// Brightness above which a pixel belongs to the object, in [-1, 1] (25 of 255).
const OBJECT_THRESHOLD: f64 = -0.8;

/// Measurements of an exported model, for its card.
#[derive(Debug, serde::Serialize)]
pub struct ModelMeasurements {
    /// Share of the real test images that the classifier classifies correctly.
    pub classifier_accuracy: f64,
    /// Share of generated samples that get their intended class.
    pub intended_class: f64,
    pub intended_by_class: Vec<f64>,
    /// Variance within a class of generated pixels over that of real test pixels.
    pub variance_ratio: f64,
    /// Frechet distance of generated samples to the training images in the classifier's features.
    pub frechet_generated: f64,
    /// The same of the test images to the training images.
    pub frechet_test: f64,
}

/// Writes the folder `out` and returns the measurements.
pub fn export(
    config: &Config,
    average: &Average,
    classifier: &TrainableClassifier,
    (train, test): (&Split, &Split),
    out: &Path,
    how: &str,
) -> Result<ModelMeasurements> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut weights = Weights::new(write_perceptual(classifier, classifier.head(), out)?);
    let lpips = Lpips::load(&perceptual_config(classifier::MODEL), &mut weights)?;
    let (weight, bias) = (weights.take_any("classifier.weight", 2)?, weights.take_any("classifier.bias", 1)?);
    let features = |x: &Tensor| lpips.last(x);
    let logits = |x: &Tensor| features(x).flatten(1, -1).linear(&weight, Some(&bias));

    let tensors = with_statistics(config, average)?;
    write_safetensors(&out.join("generator.safetensors"), &tensors)?;
    write_json(&out.join("config.json"), config)?;
    let generator = BigganDeep::load(config, &mut Weights::new(tensors), 1.0)?;

    let classes = config.num_classes;
    let images = no_grad(|| sample(&generator, MEASURED_PER_CLASS, classes));
    let labels = Tensor::arange(classes, INT64_CPU).repeat_interleave_self_int(MEASURED_PER_CLASS, 0, None);
    let hits = batched(&images, |x| logits(x).argmax(-1, false)).eq_tensor(&labels).to_kind(Kind::Double);
    let by_class = hits.view([classes, -1]).mean_dim(&[1i64][..], false, Kind::Double);
    let test_by_class: Vec<i64> = test.by_class().into_iter().flatten().collect();
    let (real, _) = test.batch(&Tensor::from_slice(&test_by_class));
    let pooled = |x: &Tensor| batched(x, |x| features(x).mean_dim(&[2i64, 3][..], false, Kind::Float));
    let whole = Tensor::arange(train.len(), INT64_CPU);
    let train_features: Vec<Tensor> = whole.split(2000, 0).iter().map(|index| pooled(&train.batch(index).0)).collect();
    let train_features = Tensor::cat(&train_features, 0);
    let measured = ModelMeasurements {
        classifier_accuracy: accuracy(logits, test),
        intended_class: hits.mean(Kind::Double).double_value(&[]),
        intended_by_class: Vec::try_from(&by_class)?,
        variance_ratio: class_variance(&images, MEASURED_PER_CLASS) / class_variance(&real, test.len() / classes),
        frechet_generated: frechet(&pooled(&images), &train_features),
        frechet_test: frechet(&pooled(&real), &train_features),
    };

    let name = write_manifest(objects(&images).context("the generator shows no object")?, out)?;
    std::fs::write(out.join("README.md"), card(&name, &measured, how))?;
    Ok(measured)
}

/// Writes `perceptual.safetensors` (feature maps, LPIPS' heads, and `more`) and `perceptual.json`; returns the tensors.
pub fn write_perceptual(
    classifier: &TrainableClassifier,
    more: impl IntoIterator<Item = (String, Tensor)>,
    out: &Path,
) -> Result<Vec<(String, Tensor)>> {
    // No human judgements exist for these networks: every channel counts the same.
    let head = |channels: i64| Tensor::full([1, channels, 1, 1], HEAD, FLOAT_CPU);
    let taps = classifier.stack.iter().filter(|conv| conv.tap).enumerate();
    let heads = taps.map(|(k, conv)| (format!("lin{k}.model.1.weight"), head(conv.channels)));
    let tensors: Vec<_> = classifier.features().into_iter().chain(more).chain(heads).collect();
    write_safetensors(&out.join("perceptual.safetensors"), &tensors)?;
    write_json(&out.join("perceptual.json"), &perceptual_config(classifier.stack))?;
    Ok(tensors)
}

/// Writes `model.json` for the files of the folder, and removes directions and encoder of an earlier generator. Returns the model's name.
fn write_manifest(objects: ObjectsManifest, out: &Path) -> Result<String> {
    for file in [directions::FILE].iter().chain(&encoder::FILES) {
        remove(&out.join(file))?;
    }
    let files = ["config.json", "generator.safetensors", "perceptual.json", "perceptual.safetensors"];
    let name = out.file_name().context("the output folder has no name")?.to_string_lossy().into_owned();
    let manifest = ModelManifest {
        format: 1,
        name: name.clone(),
        generator: GeneratorManifest {
            kind: GeneratorKind::BigganDeep,
            config: files[0].into(),
            weights: files[1].into(),
            folded: false,
            truncation: 1.0,
            resolution: SIZE as u32,
        },
        perceptual: PerceptualManifest { config: files[2].into(), weights: files[3].into() },
        classifier: Some(ClassifierManifest { kind: ClassifierKind::Perceptual, weights: files[3].into() }),
        detector: None,
        encoder: None,
        classes: CLASSES.map(String::from).to_vec(),
        categories: vec![],
        super_classes: SUPER_CLASSES.map(String::from).to_vec(),
        directions: None,
        objects,
        sha256: digests(out, &files)?,
    };
    write_json(&out.join("model.json"), &manifest)?;
    Ok(name)
}

fn perceptual_config(stack: Stack) -> lpips::Config {
    let mut layers = Vec::new();
    let mut index = 0;
    for &Conv { channels, pool, tap } in stack {
        layers.push(lpips::Layer::Conv { index, channels, kernel: 3, stride: 1, padding: 1, tap });
        index += 2;
        if pool {
            layers.push(lpips::Layer::MaxPool { kernel: 2, stride: 2, ceil: false });
            index += 1;
        }
    }
    lpips::Config { shift: [0.0; 3], scale: [1.0; 3], layers }
}

/// All tensors of the checkpoint: the averaged weights and, for each truncation 0, 0.02, ..., 1, the statistics of every
/// normalisation under z = truncation * N(0, 1) folded at 2 (as `truncated_noise_sample` upstream).
fn with_statistics(config: &Config, average: &Average) -> Result<Vec<(String, Tensor)>> {
    let (vars, generator) = averaged_generator(config, average)?;
    let labels = Tensor::arange(config.num_classes, INT64_CPU).repeat([STATISTICS_PER_CLASS]);
    let mut tables: BTreeMap<String, [Vec<Tensor>; 2]> = BTreeMap::new();
    for row in 0..config.n_stats {
        let truncation = row as f64 / (config.n_stats - 1) as f64;
        for _ in 0..STATISTICS_BATCHES {
            let z = Tensor::randn([labels.size()[0], config.z_dim], FLOAT_CPU).fmod(2.0) * truncation;
            for (name, mean, variance) in generator.statistics(&z, &labels) {
                let [means, variances] = tables.entry(name).or_default();
                means.push(mean);
                variances.push(variance);
            }
        }
    }
    let mut tensors = vars.tensors();
    for (name, statistics) in tables {
        for (kind, batches) in ["means", "vars"].into_iter().zip(statistics) {
            let rows = Tensor::stack(&batches, 0).view([config.n_stats, STATISTICS_BATCHES, -1]);
            tensors.push((format!("{name}.running_{kind}"), rows.mean_dim(&[1i64][..], false, Kind::Float)));
        }
    }
    Ok(tensors)
}

/// `per_class` images of each class, in class order, z as the search draws it.
pub fn sample(generator: &BigganDeep, per_class: i64, classes: i64) -> Tensor {
    let parts: Vec<Tensor> = (0..classes)
        .flat_map(|class| (0..per_class).step_by(250).map(move |start| (class, (per_class - start).min(250))))
        .map(|(class, n)| {
            let z = Tensor::randn([n, generator.latent_dim()], FLOAT_CPU).fmod(2.0);
            generator.generate(&z, &generator.embed(class).unsqueeze(0).repeat([n, 1]))
        })
        .collect();
    Tensor::cat(&parts, 0)
}

fn batched(images: &Tensor, f: impl Fn(&Tensor) -> Tensor) -> Tensor {
    no_grad(|| Tensor::cat(&images.split(500, 0).iter().map(f).collect::<Vec<_>>(), 0))
}

/// `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2)` of features `[n, d]` (Heusel et al. 2017).
fn frechet(a: &Tensor, b: &Tensor) -> f64 {
    let moments = |x: &Tensor| {
        let x = x.to_kind(Kind::Double);
        (x.mean_dim(&[0i64][..], false, Kind::Double), x.tr().cov(1, None::<&Tensor>, None::<&Tensor>))
    };
    let ((m1, c1), (m2, c2)) = (moments(a), moments(b));
    // tr (C1 C2)^1/2 = sum of the roots of the eigenvalues of S C2 S with S = C1^1/2.
    let root = |c: &Tensor| {
        let (values, vectors) = c.linalg_eigh("L");
        vectors.matmul(&values.clamp_min(0.0).sqrt().diag(0)).matmul(&vectors.tr())
    };
    let s = root(&c1);
    let middle = s.matmul(&c2).matmul(&s);
    let cross = (&middle + middle.tr()).linalg_eigvalsh("L").clamp_min(0.0) / 2.0;
    let trace = |c: &Tensor| c.trace().double_value(&[]);
    (&m1 - &m2).square().sum(Kind::Double).double_value(&[]) + trace(&c1) + trace(&c2)
        - 2.0 * cross.sqrt().sum(Kind::Double).double_value(&[])
}

/// Mean centre and size of the boxes around the bright pixels of generated images.
fn objects(images: &Tensor) -> Option<ObjectsManifest> {
    let bright = images.mean_dim(&[1i64][..], false, Kind::Float).gt(OBJECT_THRESHOLD);
    // A picture without a bright pixel counts as a whole frame.
    let frame = Box2d { x: 0.0, y: 0.0, width: images.size()[3] as f64, height: images.size()[2] as f64 };
    let boxes: Vec<_> = bright.unbind(0).iter().map(|inside| calibrate::extent(inside).unwrap_or(frame)).collect();
    calibrate::mean(&boxes)
}

fn card(name: &str, m: &ModelMeasurements, how: &str) -> String {
    let by_class: String =
        CLASSES.iter().zip(&m.intended_by_class).map(|(c, v)| format!("| {c} | {:.1} % |\n", 100.0 * v)).collect();
    format!(
        include_str!("../cards/model.md"),
        name = name,
        how = how,
        by_class = by_class,
        accuracy = 100.0 * m.classifier_accuracy,
        intended = 100.0 * m.intended_class,
        variance = m.variance_ratio,
        frechet_generated = m.frechet_generated,
        frechet_test = m.frechet_test,
    )
}

/// A model folder with random networks.
#[cfg(test)]
pub fn random_model(out: &Path) {
    let config = Config { z_dim: 8, class_embed_dim: 8, channel_width: 4, n_stats: 2, ..crate::generator::fashion32() };
    let mut vars = crate::vars::Vars::default();
    crate::generator::TrainableGenerator::new(&mut vars, &config);
    write_safetensors(&out.join("generator.safetensors"), &with_statistics(&config, &vars.tensors()).unwrap()).unwrap();
    write_json(&out.join("config.json"), &config).unwrap();
    let classifier = TrainableClassifier::new(classifier::MODEL);
    write_perceptual(&classifier, classifier.head(), out).unwrap();
    write_manifest(ObjectsManifest { center: (16.0, 16.0), size: (20.0, 20.0) }, out).unwrap();
}
