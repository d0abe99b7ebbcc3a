//! The published networks at full size with seeded random weights: files, load times, speed and peak memory.
//!
//! Every figure is of a process of its own, this program started again for one task of one network, so that the peak of memory is
//! that task's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use projector::Generator;
use projector::nn::biggan::Biggan;
use projector::nn::biggan_deep::BigganDeep;
use projector::nn::efficientnet_lite::{self, EfficientNetLite};
use projector::nn::lpips::Lpips;
use projector::nn::mask_rcnn::{self, MaskRcnn};
use projector::nn::resnet::{self, Classifier};
use projector::nn::{Weights, biggan};
use proto::MaskMode;
use seeded::detector;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::compare::best_seconds;
use crate::page::Record;
use crate::process::{answer, peak_megabytes, this_program};
use crate::random::{self, CLASSES, NamedTensors};

/// Images of a batch through generators and LPIPS.
const BATCH: i64 = 2;
/// Turns of a task; the best counts.
const TURNS: usize = 3;
/// The versions that are installed.
const LIBTORCH: &str = include_str!("../../infra/libtorch/cpu.txt");
/// The detector's bias for the background, without which its random weights take each proposal for objects of several kinds.
const BACKGROUND: f64 = 14.0;

#[derive(Clone, Copy)]
enum Network {
    /// BigGAN-deep of that many pixels.
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

/// The task of one process.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum NetworkTask {
    Make,
    Load,
    LoadFolded,
    /// The network on its images.
    Forward,
    /// That, and the gradients of z and c, or of the images.
    Backward,
    /// The mask of one object.
    Mask,
}

#[derive(Serialize, Deserialize)]
struct Figure {
    /// In the best turn.
    seconds: f64,
    /// Peak memory of the process.
    megabytes: f64,
}

enum Loaded {
    Deep(BigganDeep),
    Biggan(Biggan),
    Lpips(Lpips),
    Classifier(Classifier),
    Detector(Box<MaskRcnn>),
    Light(EfficientNetLite),
}

#[derive(Serialize, Deserialize)]
pub struct Networks {
    libtorch: String,
    threads: i32,
    /// Load average of the machine when the measurement starts.
    load_average: String,
    networks: Vec<NetworkFigures>,
}

#[derive(Serialize, Deserialize)]
struct NetworkFigures {
    name: String,
    /// Number, height and width.
    images: [i64; 3],
    public: FileFigures,
    folded: Option<FileFigures>,
    forward: Figure,
    /// For the forward pass of all images, if it was counted.
    forward_gflop: Option<f64>,
    backward: Option<Figure>,
    backward_gflop: Option<f64>,
    mask: Option<Figure>,
}

#[derive(Serialize, Deserialize)]
struct FileFigures {
    megabytes: f64,
    load: Figure,
}

/// Measures all networks; their files go to `work`.
pub fn run(work: &Path) -> Result<Networks> {
    std::fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    let load = std::fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let libtorch = LIBTORCH.lines().find_map(|line| line.strip_prefix("torch==")?.split_whitespace().next());
    Ok(Networks {
        libtorch: libtorch.context("infra/libtorch/cpu.txt names no version of torch")?.into(),
        threads: tch::get_num_threads(),
        load_average: load.split(' ').next().unwrap_or_default().into(),
        networks: NETWORKS.iter().map(|row| measure(row, work)).collect::<Result<_>>()?,
    })
}

fn measure((name, network, gflop): &Row, work: &Path) -> Result<NetworkFigures> {
    apart(name, NetworkTask::Make, work)?;
    let file_figures = |folded: bool| -> Result<FileFigures> {
        let megabytes = std::fs::metadata(file(work, name, folded))?.len() as f64 / 1e6;
        Ok(FileFigures { megabytes, load: apart(name, if folded { NetworkTask::LoadFolded } else { NetworkTask::Load }, work)? })
    };
    let folded = network.generates().then(|| file_figures(true)).transpose()?;
    let (images, differentiable) = network.images();
    // The gradients cost as much again; those of generators go through the perceptual network, too.
    let perceptual = if network.generates() { ALEX.2 } else { Some(0.0) };
    let backward_gflop = gflop.zip(perceptual).map(|(gflop, perceptual)| images[0] as f64 * 2.0 * (gflop + perceptual));
    Ok(NetworkFigures {
        name: (*name).into(),
        images,
        public: file_figures(false)?,
        folded,
        backward: differentiable.then(|| apart(name, NetworkTask::Backward, work)).transpose()?,
        backward_gflop: backward_gflop.filter(|_| differentiable),
        forward: apart(name, NetworkTask::Forward, work)?,
        forward_gflop: gflop.map(|gflop| images[0] as f64 * gflop),
        mask: matches!(network, Network::Detector).then(|| apart(name, NetworkTask::Mask, work)).transpose()?,
    })
}

impl Record for Networks {
    const NAME: &'static str = "networks-figures";
    const PAGE: &'static str = include_str!("../pages/networks-figures.md");

    fn derived(&self) -> Value {
        json!({ "turns": TURNS })
    }
}

/// A task in a process of its own.
fn apart(name: &str, task: NetworkTask, work: &Path) -> Result<Figure> {
    let task = task.to_possible_value().context("every task has a name")?;
    eprintln!("{name}: {}", task.get_name());
    answer(this_program()?.args(["network", name, task.get_name()]).arg(work))
}

/// Does a task in this process with the files of `work`; a line of JSON.
pub fn task(name: &str, task: NetworkTask, work: &Path) -> Result<String> {
    tch::manual_seed(1);
    let network = NETWORKS.iter().find(|row| row.0 == name).context("unknown network")?.1;
    let (public, folded) = (file(work, name, false), file(work, name, true));
    let load = || network.load(if network.generates() { &folded } else { &public }, network.generates());
    let images = noise(network.images().0);
    let seconds = match task {
        NetworkTask::Make => {
            random::write(network.random(), &public)?;
            match network.load(&public, false)? {
                Loaded::Deep(generator) => random::write(generator.folded(), &folded)?,
                Loaded::Biggan(generator) => random::write(generator.folded(), &folded)?,
                _ => {}
            }
            0.0
        }
        NetworkTask::Load => best(|| network.load(&public, false))?,
        NetworkTask::LoadFolded => best(|| network.load(&folded, true))?,
        NetworkTask::Forward | NetworkTask::Backward | NetworkTask::Mask => match load()? {
            Loaded::Deep(generator) => generate(&generator, task, work)?,
            Loaded::Biggan(generator) => generate(&generator, task, work)?,
            Loaded::Lpips(lpips) if task == NetworkTask::Forward => best(|| Ok(tch::no_grad(|| lpips.features(&images))))?,
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
                ensure!(!detections.found.is_empty(), "the detector finds no object");
                match task {
                    NetworkTask::Mask => best(|| finite(&[detector.mask(&detections, 0)]))?,
                    _ => best(|| Ok(detector.detect(&image)))?,
                }
            }
        },
    };
    Ok(serde_json::to_string(&Figure { seconds, megabytes: peak_megabytes(std::process::id())? })?)
}

fn best<T>(work: impl Fn() -> Result<T>) -> Result<f64> {
    best_seconds(TURNS, work)
}

/// Seconds of a pass forward and backward.
fn descend(of: &[&Tensor], loss: impl Fn() -> Tensor) -> Result<f64> {
    for tensor in of {
        let _ = tensor.set_requires_grad(true);
    }
    best(|| finite(&Tensor::run_backward(&[loss()], of, false, false)))
}

fn generate(generator: &dyn Generator, task: NetworkTask, work: &Path) -> Result<f64> {
    let z = Tensor::randn([BATCH, generator.latent_dim()], (Kind::Float, Device::Cpu)).fmod(2.0);
    let c = Tensor::stack(&[generator.embed(1), generator.embed(2)], 0);
    if task == NetworkTask::Forward {
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

/// NaN and infinity would change the time.
fn finite(tensors: &[Tensor]) -> Result<()> {
    ensure!(tensors.iter().all(|t| t.isfinite().all().int64_value(&[]) == 1), "the random weights give NaN or infinity");
    Ok(())
}

fn file(work: &Path, name: &str, folded: bool) -> PathBuf {
    work.join(format!("{name}{}.safetensors", if folded { "-folded" } else { "" }))
}

impl Network {
    fn generates(self) -> bool {
        matches!(self, Network::Deep(_) | Network::Biggan)
    }

    /// Number, height and width of its images, and whether gradients are measured.
    fn images(self) -> ([i64; 3], bool) {
        match self {
            Network::Deep(resolution) => ([BATCH, resolution, resolution], true),
            Network::Biggan | Network::Lpips(_) => ([BATCH, 256, 256], true),
            Network::Detector => ([1, 480, 640], false),
            Network::Classifier | Network::Light => ([1, 375, 500], false),
        }
    }

    /// The tensors of the public checkpoint.
    fn random(self) -> NamedTensors {
        match self {
            Network::Deep(resolution) => random::biggan_deep_weights(&random::biggan_deep(resolution)),
            Network::Biggan => seeded::seeded("biggan_256"),
            Network::Lpips(name) => random::lpips_weights(name),
            Network::Classifier => detector::tensors(detector::classifier(&resnet::Config::resnext101_32x8d(), CLASSES)),
            Network::Detector => {
                let tensors = detector::tensors(detector::mask_rcnn(&mask_rcnn::Config::coco()));
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
                let config = random::biggan_deep(resolution);
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
            Network::Lpips(name) => Loaded::Lpips(Lpips::load(&random::lpips_config(name), &mut weights)?),
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
