//! The published networks at full size with seeded random weights: files, load times, speed and peak memory.
//!
//! Every figure is of a process of its own, this program started again for one task of one network, so that the peak of memory is
//! that task's.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use projector::Generator;
use projector::nn::biggan::Biggan;
use projector::nn::biggan_deep::BigganDeep;
use projector::nn::efficientnet_lite::{self, EfficientNetLite};
use projector::nn::lpips::{self, Layer, Lpips};
use projector::nn::mask_rcnn::{self, MaskRcnn};
use projector::nn::resnet::{self, Classifier};
use projector::nn::{Weights, biggan, biggan_deep};
use proto::{GeneratorKind, GeneratorManifest, MaskMode, ModelManifest, ObjectsManifest, PerceptualManifest};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::deltas::random_weights;
use crate::fleet::processor;
use crate::services::peak_megabytes;

/// Images of a batch through generators and LPIPS.
const BATCH: i64 = 2;
/// Turns of a task; the best counts.
const TURNS: usize = 3;
/// The versions that are installed.
const LIBTORCH: &str = include_str!("../../infra/libtorch/cpu.txt");
/// Classes of the classifier.
const CLASSES: i64 = 1000;
/// The detector's bias for the background, without which its random weights take each proposal for objects of several kinds.
const BACKGROUND: f64 = 14.0;

type Tensors = Vec<(String, Tensor)>;

/// One that is measured.
#[derive(Clone, Copy)]
enum Network {
    /// Of that many pixels.
    Deep(i64),
    Biggan,
    Lpips(&'static str),
    Classifier,
    Detector,
    Light,
}

/// Name, network and GFLOP of one image forward where they were counted, two for a multiplication with its addition.
type Row = (&'static str, Network, Option<f64>);

/// Generators are measured with it.
const ALEX: Row = ("LPIPS-Alex", Network::Lpips("alex"), Some(1.74));
const NETWORKS: [Row; 10] = [
    ALEX,
    ("LPIPS-VGG", Network::Lpips("vgg16"), Some(40.1)),
    ("LPIPS-Squeeze", Network::Lpips("squeeze"), Some(0.69)),
    ("BigGAN-deep-128", Network::Deep(128), Some(17.9)),
    ("BigGAN-deep-256", Network::Deep(256), Some(58.8)),
    ("BigGAN-deep-512", Network::Deep(512), Some(76.0)),
    ("BigGAN-256", Network::Biggan, Some(153.5)),
    ("ResNeXt-101 32x8d", Network::Classifier, Some(127.4)),
    ("Mask R-CNN", Network::Detector, None),
    ("EfficientNet-Lite0", Network::Light, None),
];

/// What one process does.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Task {
    /// Writes the files.
    Make,
    /// Loads the public checkpoint.
    Load,
    /// Loads the folded file.
    LoadFolded,
    /// The network on its images.
    Forward,
    /// That, and the gradients of z and c, or of the images.
    Backward,
    /// The mask of one object.
    Mask,
}

/// What came of a task.
#[derive(Serialize, Deserialize)]
struct Figure {
    /// Of the best turn.
    seconds: f64,
    /// The most memory that the process held.
    megabytes: f64,
}

/// A network that was loaded.
enum Loaded {
    Deep(BigganDeep),
    Biggan(Biggan),
    Lpips(Lpips),
    Classifier(Classifier),
    Detector(Box<MaskRcnn>),
    Light(EfficientNetLite),
}

/// BigGAN-deep of that many pixels and AlexNet's LPIPS with random weights.
pub fn random_model(resolution: i64) -> Result<projector::Model> {
    let config = biggan_deep(resolution);
    let generator = BigganDeep::load(&config, &mut Weights::new(random_weights(&config)), 1.0)?;
    let lpips = Lpips::load(&perceptual("alex"), &mut Weights::new(ALEX.1.random()))?;
    Ok(projector::Model { generator: Box::new(generator), lpips, encoder: None })
}

/// The same as a model folder with the classes of the bundled model, for programs that read one.
pub fn random_folder(resolution: i64, classes: &[String], into: &Path) -> Result<()> {
    std::fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    let config = biggan_deep(resolution);
    let path = |name: &str| into.join(name);
    std::fs::write(path("config.json"), serde_json::to_vec(&config)?)?;
    std::fs::write(path("perceptual.json"), serde_json::to_vec(&perceptual("alex"))?)?;
    let contiguous = |tensors: Tensors| tensors.into_iter().map(|(name, t)| (name, t.contiguous())).collect::<Tensors>();
    Tensor::write_safetensors(&contiguous(random_weights(&config)), path("generator.safetensors"))?;
    Tensor::write_safetensors(&contiguous(ALEX.1.random()), path("perceptual.safetensors"))?;
    let names = ["config.json", "perceptual.json", "generator.safetensors", "perceptual.safetensors"];
    let digest = |name: &&str| Ok((name.to_string(), proto::hex_sha256(&std::fs::read(path(name))?)));
    let middle = resolution as f64 / 2.0;
    let manifest = ModelManifest {
        format: 1,
        name: format!("random-{resolution}"),
        generator: GeneratorManifest {
            kind: GeneratorKind::BigganDeep,
            config: "config.json".into(),
            weights: "generator.safetensors".into(),
            folded: false,
            truncation: 1.0,
            resolution: resolution as u32,
        },
        perceptual: PerceptualManifest { config: "perceptual.json".into(), weights: "perceptual.safetensors".into() },
        classifier: None,
        detector: None,
        encoder: None,
        classes: (0..CLASSES as usize).map(|i| classes.get(i).cloned().unwrap_or(format!("class {i}"))).collect(),
        categories: vec![],
        super_classes: vec![],
        directions: None,
        objects: ObjectsManifest { center: (middle, middle), size: (middle, middle) },
        sha256: names.iter().map(digest).collect::<Result<_>>()?,
    };
    Ok(std::fs::write(path("model.json"), serde_json::to_vec_pretty(&manifest)?)?)
}

/// The published configuration of BigGAN-deep for 128, 256 or 512 pixels.
pub fn biggan_deep(resolution: i64) -> biggan_deep::Config {
    let (keep, up) = (|a| (false, a, a), |a, b| (true, a, b));
    let mut layers = vec![keep(16), up(16, 16), keep(16), up(16, 8), keep(8)];
    if resolution > 128 {
        layers.extend([up(8, 8), keep(8)]);
    }
    layers.extend([up(8, 4), keep(4), up(4, 2), keep(2), up(2, 1)]);
    if resolution > 256 {
        layers.extend([keep(1), up(1, 1)]);
    }
    biggan_deep::Config {
        output_dim: resolution,
        z_dim: 128,
        class_embed_dim: 128,
        channel_width: 128,
        num_classes: CLASSES,
        layers,
        attention_layer_position: 8,
        eps: 1e-4,
        n_stats: 51,
    }
}

/// The document.
pub fn run(work: &Path) -> Result<String> {
    std::fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    let load = std::fs::read_to_string("/proc/loadavg").context("cannot read how busy the machine is")?;
    let mut files = String::from(
        "| network | public checkpoint, MB | load, s | peak, MB | folded file, MB | load, s | peak, MB |\n|---|---|---|---|---|---|---|\n",
    );
    for (name, network, _) in NETWORKS {
        apart(name, Task::Make, work)?;
        let cells = |folded: bool| -> Result<String> {
            let bytes = std::fs::metadata(file(work, name, folded))?.len();
            let load = apart(name, if folded { Task::LoadFolded } else { Task::Load }, work)?;
            Ok(format!("{:.1} | {:.2} | {:.0}", bytes as f64 / 1e6, load.seconds, load.megabytes))
        };
        let folded = if network.generates() { cells(true)? } else { "- | - | -".into() };
        files += &format!("| {name} | {} | {folded} |\n", cells(false)?);
    }
    let mut speed = String::from(
        "| network | images | forward, s | GFLOP/s | peak, MB | with gradients, s | GFLOP/s | peak, MB |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (name, network, flop) in NETWORKS {
        let ([n, height, width], differentiable) = network.images();
        let cells = |task: Task, flop: Option<f64>| -> Result<String> {
            let Figure { seconds, megabytes } = apart(name, task, work)?;
            let rate = flop.map_or("-".into(), |flop| format!("{:.0}", n as f64 * flop / seconds));
            Ok(format!("{seconds:.3} | {rate} | {megabytes:.0}"))
        };
        // As much again for the gradients; and those of generators go through the perceptual network.
        let perceptual = if network.generates() { ALEX.2 } else { Some(0.0) };
        let gradients = flop.zip(perceptual).map(|(flop, perceptual)| 2.0 * (flop + perceptual));
        let backward = if differentiable { cells(Task::Backward, gradients)? } else { "- | - | -".into() };
        speed += &format!("| {name} | {n} of {width} x {height} | {} | {backward} |\n", cells(Task::Forward, flop)?);
        if matches!(network, Network::Detector) {
            speed += &format!("| - the mask of one object | | {} | - | - | - |\n", cells(Task::Mask, None)?);
        }
    }
    let libtorch = LIBTORCH.lines().find_map(|line| line.strip_prefix("torch==")?.split_whitespace().next());
    Ok(format!(
        "# The published networks at full size, measured\n\n\
        Written by `make bench-networks` on {}: {} cores of {}, {:.0} GB of memory; libtorch {} with {} threads; load\n\
        average at the start {}. The weights are seeded random numbers in the published shapes, and the images are noise. Each figure\n\
        is of a process of its own that does this {TURNS} times: the best time, and the most memory that it ever held. A public\n\
        checkpoint is here a safetensors file of the same tensors, and is in the page cache, as every file.\n\n\
        ## Files\n\n{files}\n\
        ## Speed\n\n\
        Gradients are those of z and c under LPIPS-Alex, or of the images; weights are frozen, as in the search. Generators were loaded\n\
        from the folded file; LPIPS goes forward to its feature maps. GFLOP/s by what the shapes ask for, two for a multiplication with\n\
        its addition.\n\n{speed}",
        date()?,
        std::thread::available_parallelism().map_or(1, usize::from),
        processor()?,
        memory_gigabytes()?,
        libtorch.context("there is no version of torch")?,
        tch::get_num_threads(),
        load.split(' ').next().unwrap_or_default(),
    ))
}

/// A task in a process of its own.
fn apart(name: &str, task: Task, work: &Path) -> Result<Figure> {
    let task = task.to_possible_value().context("every task has a name")?;
    eprintln!("{name}: {}", task.get_name());
    let mut program = Command::new(std::env::current_exe().context("cannot find this program")?);
    let program = program.args(["network", name, task.get_name()]).arg(work).stderr(Stdio::inherit());
    let output = program.output().context("cannot start this program again")?;
    ensure!(output.status.success(), "{name}: {} failed: {}", task.get_name(), output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Does a task in this process, in the folder `work`, and answers with a line of JSON.
pub fn task(name: &str, task: Task, work: &Path) -> Result<String> {
    tch::manual_seed(1);
    let network = NETWORKS.iter().find(|row| row.0 == name).context("there is no such network")?.1;
    let (public, folded) = (file(work, name, false), file(work, name, true));
    let load = || network.load(if network.generates() { &folded } else { &public }, network.generates());
    let images = noise(network.images().0);
    let seconds = match task {
        Task::Make => {
            Tensor::write_safetensors(&network.random(), &public)?;
            let write = |tensors: Tensors| {
                let tensors: Tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.contiguous())).collect();
                Tensor::write_safetensors(&tensors, &folded)
            };
            match network.load(&public, false)? {
                Loaded::Deep(generator) => write(generator.folded())?,
                Loaded::Biggan(generator) => write(generator.folded())?,
                _ => {}
            }
            0.0
        }
        Task::Load => best(|| network.load(&public, false))?,
        Task::LoadFolded => best(|| network.load(&folded, true))?,
        Task::Forward | Task::Backward | Task::Mask => match load()? {
            Loaded::Deep(generator) => generate(&generator, task, work)?,
            Loaded::Biggan(generator) => generate(&generator, task, work)?,
            Loaded::Lpips(lpips) if task == Task::Forward => best(|| Ok(tch::no_grad(|| lpips.features(&images))))?,
            Loaded::Lpips(lpips) => {
                let loss = loss(&lpips, 256);
                descend(&[&images], || loss(&images))?
            }
            Loaded::Classifier(classifier) => best(|| finite(&[classifier.logits(&images)]))?,
            Loaded::Light(classifier) => best(|| finite(&[classifier.logits(&efficientnet_lite::prepare(&images))]))?,
            Loaded::Detector(detector) => {
                let image = images.squeeze_dim(0);
                let detections = detector.detect(&image);
                eprintln!("{name}: {} objects", detections.found.len());
                ensure!(!detections.found.is_empty(), "the detector finds nothing");
                match task {
                    Task::Mask => best(|| finite(&[detector.mask(&detections, 0)]))?,
                    _ => best(|| Ok(detector.detect(&image)))?,
                }
            }
        },
    };
    Ok(serde_json::to_string(&Figure { seconds, megabytes: peak_megabytes(std::process::id())? })?)
}

/// Seconds of the best turn.
fn best<T>(work: impl Fn() -> Result<T>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..TURNS {
        let begun = Instant::now();
        let result = work()?;
        best = best.min(begun.elapsed().as_secs_f64());
        drop(result);
    }
    Ok(best)
}

/// Seconds of a pass forward and backward.
fn descend(of: &[&Tensor], loss: impl Fn() -> Tensor) -> Result<f64> {
    for tensor in of {
        let _ = tensor.set_requires_grad(true);
    }
    best(|| finite(&Tensor::run_backward(&[loss()], of, false, false)))
}

fn generate(generator: &dyn Generator, task: Task, work: &Path) -> Result<f64> {
    let z = Tensor::randn([BATCH, generator.latent_dim()], (Kind::Float, Device::Cpu)).fmod(2.0);
    let c = Tensor::stack(&[generator.embed(1), generator.embed(2)], 0);
    if task == Task::Forward {
        return best(|| Ok(tch::no_grad(|| generator.generate(&z, &c))));
    }
    let Loaded::Lpips(lpips) = ALEX.1.load(&file(work, ALEX.0, false), false)? else { bail!("{} is no LPIPS", ALEX.0) };
    let loss = loss(&lpips, generator.resolution());
    descend(&[&z, &c], || loss(&generator.generate(&z, &c)))
}

/// The loss of images against others: LPIPS with equal weights.
fn loss(lpips: &Lpips, resolution: i64) -> impl Fn(&Tensor) -> Tensor {
    let target = tch::no_grad(|| lpips.features(&noise([BATCH, resolution, resolution])));
    let ones = Tensor::ones([BATCH, 1, resolution, resolution], (Kind::Float, Device::Cpu));
    let weights = lpips.map_weights(&ones, &target, MaskMode::UpsampleFeatures);
    move |images| lpips.distance(images, &target, &weights).sum(Kind::Float)
}

/// Smooth random images in [-1, 1].
fn noise([n, height, width]: [i64; 3]) -> Tensor {
    let small = Tensor::randn([n, 3, height / 16, width / 16], (Kind::Float, Device::Cpu));
    small.upsample_bilinear2d([height, width], false, None, None).tanh()
}

/// Random weights must not make the work another one.
fn finite(tensors: &[Tensor]) -> Result<()> {
    ensure!(tensors.iter().all(|t| t.isfinite().all().int64_value(&[]) == 1), "the random weights give NaN or infinity");
    Ok(())
}

fn file(work: &Path, name: &str, folded: bool) -> PathBuf {
    work.join(format!("{name}{}.safetensors", if folded { "-folded" } else { "" }))
}

fn perceptual(name: &str) -> lpips::Config {
    lpips::Config::named(name).expect("it has that name")
}

fn memory_gigabytes() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read how much memory there is")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("/proc/meminfo has no MemTotal")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1e6)
}

fn date() -> Result<String> {
    let output = Command::new("date").arg("+%Y-%m-%d").output().context("cannot ask for the date")?;
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

impl Network {
    fn generates(self) -> bool {
        matches!(self, Network::Deep(_) | Network::Biggan)
    }

    /// Number, height and width of its images, and whether their gradients are asked for.
    fn images(self) -> ([i64; 3], bool) {
        match self {
            Network::Deep(resolution) => ([BATCH, resolution, resolution], true),
            Network::Biggan | Network::Lpips(_) => ([BATCH, 256, 256], true),
            Network::Detector => ([1, 480, 640], false),
            Network::Classifier | Network::Light => ([1, 375, 500], false),
        }
    }

    /// The tensors of the public checkpoint.
    fn random(self) -> Tensors {
        let fill = |keys: Vec<(String, Vec<i64>)>| -> Tensors {
            let tensor = |name: &str, shape: &[i64]| Tensor::from_slice(&seeded::detector::value(name, shape)).view(shape);
            keys.into_iter().map(|(name, shape)| (name.clone(), tensor(&name, &shape))).collect()
        };
        match self {
            Network::Deep(resolution) => random_weights(&biggan_deep(resolution)),
            Network::Biggan => seeded::seeded("biggan_256"),
            Network::Lpips(name) => {
                let alexnet = || seeded::alexnet().into_iter();
                let tensor =
                    |(name, shape, values): (&str, &[i64], Vec<f32>)| (name.into(), Tensor::from_slice(&values).view(shape));
                let mut tensors: Tensors = if name == "alex" { alexnet().map(tensor).collect() } else { seeded::seeded(name) };
                let taps = perceptual(name).layers.into_iter().filter_map(|layer| match layer {
                    Layer::Conv { channels, tap: true, .. } | Layer::Fire { channels, tap: true, .. } => Some(channels),
                    _ => None,
                });
                let head = |channels| Tensor::ones([1, channels, 1, 1], (Kind::Float, Device::Cpu)) / channels as f64;
                tensors.extend(taps.enumerate().map(|(k, channels)| (format!("lin{k}.model.1.weight"), head(channels))));
                tensors
            }
            Network::Classifier => fill(seeded::detector::classifier(&resnet::Config::resnext101_32x8d(), CLASSES)),
            Network::Detector => {
                let tensors = fill(seeded::detector::mask_rcnn(&mask_rcnn::Config::coco()));
                let bias = tensors.iter().find(|(name, _)| name == "roi_heads.box_predictor.cls_score.bias");
                let _ = bias.expect("the detector has one").1.get(0).fill_(BACKGROUND);
                tensors
            }
            Network::Light => seeded::seeded("efficientnet_lite0"),
        }
    }

    fn load(self, path: &Path, folded: bool) -> Result<Loaded> {
        let mut weights = Weights::new(Tensor::read_safetensors(path)?);
        let loaded = match self {
            Network::Deep(resolution) => {
                let config = biggan_deep(resolution);
                Loaded::Deep(match folded {
                    true => BigganDeep::load_folded(&config, &mut weights)?,
                    false => BigganDeep::load(&config, &mut weights, 1.0)?,
                })
            }
            Network::Biggan => {
                let config = biggan::Config::published(256).context("it is published")?;
                Loaded::Biggan(match folded {
                    true => Biggan::load_folded(&config, &mut weights)?,
                    false => Biggan::load(&config, &mut weights)?,
                })
            }
            Network::Lpips(name) => Loaded::Lpips(Lpips::load(&perceptual(name), &mut weights)?),
            Network::Classifier => {
                Loaded::Classifier(Classifier::load(&resnet::Config::resnext101_32x8d(), CLASSES, &mut weights)?)
            }
            Network::Detector => Loaded::Detector(Box::new(MaskRcnn::load(&mask_rcnn::Config::coco(), &mut weights)?)),
            Network::Light => Loaded::Light(EfficientNetLite::load(&mut weights)?),
        };
        weights.finish()?;
        Ok(loaded)
    }
}
