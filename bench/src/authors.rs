//! The authors' code against ours: the same torch, checkpoint, images, schedule and number of seeds, one image at a time, in turns.
//!
//! `bench/authors/pix2latent.py` drives their optimiser classes from the checkout of `--checkout`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use engine::{Devices, LoadedModel};
use harness::Process;
use projector::{Lanes, Projection, Target, mask};
use proto::{LastDescent, LatentSearch, Params, Precision, Told};
use results::bootstrap::{Interval, interval};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::cases::{mean, median, project};
use crate::flop::{self, matrix_rate};
use crate::page::Record;
use crate::process::peak_megabytes;
use crate::samples::targets;

/// Profiles that have to become as good as the authors' code.
const PROFILES: [&str; 2] = ["fast", "balanced"];

#[derive(clap::Args)]
pub struct AuthorsArgs {
    /// Checkout of minyoungg/pix2latent, branch master.
    #[arg(long)]
    checkout: PathBuf,
    /// Python with the packages of bench/authors/requirements.txt.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Devices of both sides: `auto`, or a list such as `cpu,cpu` or `cuda:0`. The authors' code takes one thread for each CPU device.
    #[arg(long, default_value = "auto")]
    devices: Devices,
    /// Folder with a data set for each kind of images, which nothing is tuned on.
    #[arg(long, default_value = "benchmarks/data")]
    held_out: PathBuf,
    /// Number of images.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    images: u16,
    /// Generations of BasinCMA (paper: 30).
    #[arg(long, default_value_t = 10)]
    generations: u32,
    /// Gradient steps of each generation (paper: 30).
    #[arg(long, default_value_t = 10)]
    steps: u32,
    /// Gradient steps of the last descent (paper: 300).
    #[arg(long, default_value_t = 100)]
    final_steps: u32,
}

/// One image on one side.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Run {
    seconds: f64,
    lane_steps: u64,
    /// One loss for each seed, after the last step.
    losses: Vec<f64>,
}

/// A line of the script's output.
#[derive(Deserialize)]
struct Theirs {
    #[serde(flatten)]
    run: Run,
    /// Peak memory of the process (on a GPU: of the device), bytes.
    peak: f64,
    torch: String,
}

#[derive(Serialize, Deserialize)]
pub struct Comparison {
    model: String,
    devices: String,
    torch: String,
    seeds: u32,
    /// Generations, steps of each, and steps of the last descent.
    schedule: [u32; 3],
    /// By the shapes.
    lane_step_gflop: f64,
    /// GFLOP/s of a product of large matrices on all devices.
    matrix_gflops: f64,
    /// Peak memory of the process; on a GPU only theirs is known.
    peak_megabytes: Sides<Option<f64>>,
    images: Vec<(String, Sides<Run>)>,
    /// Other profiles on the same images, under the same loss.
    profiles: Vec<Profile>,
}

/// How soon a profile is as good as the authors' code in the end, by image.
#[derive(Serialize, Deserialize)]
struct Profile {
    name: String,
    images: Vec<Passing>,
}

/// One image.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Passing {
    /// Seconds until the inverted loss of the best seed was below the final one of the authors' best seed; `None`: it never was.
    passed: Option<f64>,
    /// Seconds of the whole search.
    seconds: f64,
    /// The best seed's inverted loss in the end.
    loss: f64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Sides<T> {
    theirs: T,
    ours: T,
}

/// Measures both sides in turns, one image at a time, with the model of `folder`.
pub fn run(model: &LoadedModel, folder: &Path, args: &AuthorsArgs) -> Result<Comparison> {
    let devices = &args.devices.0;
    let gpu = devices.iter().any(|device| matches!(device, Device::Cuda(_)));
    let params = params(model, args);
    let all = chosen(model, &args.held_out, args.images.into())?;

    let file = std::env::temp_dir().join(format!("basin-authors-{}.safetensors", std::process::id()));
    write_targets(model, &params, &all, &file)?;
    let mut theirs = Authors::start(args, folder, &file)?;
    let lanes = Lanes::new(&model.model, devices);
    let warm_up = Params { latent: LatentSearch::Adam { steps: 2 }, ..params.clone() };
    project(model, &lanes, &warm_up, vec![all[0].1.shallow_clone()], None)?;

    let mut images = Vec::new();
    let mut profiles = PROFILES.map(|name| Profile { name: name.into(), images: vec![] });
    let (mut torch, mut their_peak) = (String::new(), 0.0);
    for (i, (name, target)) in all.iter().enumerate() {
        let other = theirs.project(i)?;
        let began = Instant::now();
        let solution = project(model, &lanes, &params, vec![target.shallow_clone()], None)?.remove(0);
        let seconds = began.elapsed().as_secs_f64();
        let losses = solution.seeds.iter().map(|seed| seed.loss).collect();
        let ours = Run { seconds, lane_steps: solution.lane_steps, losses };
        let (their_seeds, seeds) = (other.run.losses.len(), params.seeds);
        ensure!(ours.losses.len() == their_seeds, "the authors' code has {their_seeds} seeds, basin {seeds}");
        eprintln!("{name}: theirs {:.1} s, ours {:.1} s", other.run.seconds, ours.seconds);
        for Profile { name, images } in &mut profiles {
            let passing = pass(model, &lanes, &under(&params.loss, name), target, best(&other.run))?;
            let passed = passing.passed.map_or("never".into(), |seconds| format!("after {seconds:.1} s"));
            eprintln!("    {name}: as good as theirs {passed}, ends after {:.1} s", passing.seconds);
            images.push(passing);
        }
        (torch, their_peak) = (other.torch, other.peak / 1e6);
        images.push((name.clone(), Sides { theirs: other.run, ours }));
    }
    drop(theirs);
    let _ = std::fs::remove_file(&file);
    let our_peak = if gpu { None } else { Some(peak_megabytes(std::process::id())?) };
    Ok(Comparison {
        model: model.reference.name.clone(),
        devices: args.devices.to_string(),
        torch,
        seeds: params.seeds,
        schedule: [args.generations, args.steps, args.final_steps],
        lane_step_gflop: flop::of_model(model, folder)? / 1e9,
        matrix_gflops: matrix_rate(devices, Precision::Fp32)? / 1e9,
        peak_megabytes: Sides { theirs: Some(their_peak), ours: our_peak },
        images,
        profiles: profiles.into(),
    })
}

/// Loss of the best seed.
fn best(run: &Run) -> f64 {
    run.losses.iter().copied().fold(f64::INFINITY, f64::min)
}

/// A profile that minimises `loss`, so that the two can be compared.
fn under(loss: &proto::Loss, profile: &str) -> Params {
    let params = Params::profile(profile).expect("it is one of PROFILES");
    Params { loss: proto::Loss { surround: params.loss.surround, ..loss.clone() }, ..params }
}

/// Projects one image and looks when its loss passes `bar`. The target's box is the whole image.
fn pass(model: &LoadedModel, lanes: &Lanes, params: &Params, target: &Target, bar: f64) -> Result<Passing> {
    let began = Instant::now();
    let mut projection = Projection::new(params, &model.model, &model.statistics, vec![target.shallow_clone()]);
    let mut passed = None;
    while !projection.finished() {
        projection.step(lanes)?;
        if passed.is_none() && projection.loss(0) < bar {
            passed = Some(began.elapsed().as_secs_f64());
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let solution = projection.finish(lanes)?.remove(0).context("the search diverged")?;
    Ok(Passing { passed, seconds, loss: solution.seeds[solution.best].inverted_loss })
}

fn params(model: &LoadedModel, args: &AuthorsArgs) -> Params {
    // The rule of CMA-ES, which the authors' code leaves to pycma.
    let seeds = 4 + (3.0 * (model.model.generator.latent_dim() as f64).ln()) as u32;
    let AuthorsArgs { generations, steps, final_steps, .. } = *args;
    let latent =
        LatentSearch::BasinCma { generations, steps, final_steps, told: Told::Sampled, sigma: 1.0, last: LastDescent::Fresh };
    Params { transform: None, latent, seeds, ..Params::pix2latent() }
}

/// Images evenly spread over classes, half of them centred. Nothing was tuned on them.
fn chosen(model: &LoadedModel, held_out: &Path, count: usize) -> Result<Vec<(String, Target)>> {
    let mut chosen = Vec::new();
    for (kind, count) in [("centred", count.div_ceil(2)), ("offcentre", count / 2)] {
        let all = targets(model, &held_out.join(kind), |_| true)?;
        ensure!(count <= all.len(), "{} has only {} images of this kind", held_out.join(kind).display(), all.len());
        let wanted: Vec<usize> = (0..count).map(|k| k * all.len() / count).collect();
        chosen.extend(all.into_iter().enumerate().filter(|(i, _)| wanted.contains(i)).map(|(_, image)| image));
    }
    // With a box the authors' code tells CMA-ES the loss with the background, and basin the loss inside the box.
    chosen.iter_mut().for_each(|(_, target)| target.bbox = None);
    Ok(chosen)
}

/// Writes the targets of both sides, as the script reads them.
fn write_targets(model: &LoadedModel, params: &Params, all: &[(String, Target)], file: &Path) -> Result<()> {
    let mut tensors = Vec::new();
    for (i, (_, target)) in all.iter().enumerate() {
        let binary = mask::of(target, model.model.generator.resolution());
        tensors.push((format!("image.{i}"), target.image.contiguous()));
        tensors.push((format!("weight.{i}"), mask::weights(&binary, params.loss.background).squeeze_dim(0).contiguous()));
        tensors.push((format!("class.{i}"), Tensor::from_slice(&[target.class])));
    }
    Tensor::write_safetensors(&tensors, file).with_context(|| format!("cannot write {}", file.display()))
}

/// The script: it reads the number of an image and answers with a line.
struct Authors {
    _child: Process,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Authors {
    fn start(args: &AuthorsArgs, model: &Path, targets: &Path) -> Result<Authors> {
        let cpus = args.devices.0.iter().filter(|device| **device == Device::Cpu).count();
        let device = if cpus > 0 { "cpu".to_owned() } else { args.devices.to_string() };
        let script = Path::new("bench/authors/pix2latent.py");
        ensure!(script.exists(), "there is no {}; start this in the folder of the repository", script.display());
        let checkout = args.checkout.display();
        ensure!(args.checkout.join("pix2latent/optimizer").is_dir(), "--checkout {checkout} is not a checkout of pix2latent");
        let mut command = Command::new(&args.python);
        command.arg(script).args(["--device", &device]);
        for (option, path) in [("--checkout", args.checkout.as_path()), ("--model", model), ("--targets", targets)] {
            command.arg(option).arg(path);
        }
        let AuthorsArgs { generations, steps, final_steps, .. } = *args;
        let numbers =
            [("--threads", cpus as u32), ("--generations", generations), ("--steps", steps), ("--final-steps", final_steps)];
        for (option, number) in numbers {
            command.args([option, &number.to_string()]);
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot start {}", args.python.display()))?;
        let ask = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Authors { _child: Process(child), ask, answers })
    }

    fn project(&mut self, image: usize) -> Result<Theirs> {
        const ENDED: &str = "the authors' code has ended; see its output above";
        writeln!(self.ask, "{image}").and_then(|()| self.ask.flush()).context(ENDED)?;
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, ENDED);
        serde_json::from_str(&line).with_context(|| format!("cannot parse the answer of the authors' code: {line:?}"))
    }
}

impl Record for Comparison {
    const NAME: &'static str = "authors";
    const PAGE: &'static str = include_str!("../pages/authors.md");

    fn derived(&self) -> Value {
        let all = |run: &Run| mean(&run.losses);
        let difference = |of: &dyn Fn(&Run) -> f64| self.paired(&|sides| of(&sides.ours) - of(&sides.theirs));
        json!({
            "seconds": self.average(&|run| run.seconds),
            "rate": self.average(&|run| run.lane_steps as f64 / run.seconds),
            "mean": self.average(&all),
            "best": self.average(&best),
            "faster": self.paired(&|sides| sides.theirs.seconds / sides.ours.seconds),
            "mean_difference": difference(&all),
            "best_difference": difference(&best),
            "passing": self.profiles.iter().map(|profile| self.passing(profile)).collect::<Vec<_>>(),
        })
    }
}

impl Comparison {
    fn passing(&self, Profile { name, images }: &Profile) -> Value {
        let mean = |of: fn(&Passing) -> f64| mean(&images.iter().map(of).collect::<Vec<_>>());
        let pairs = self.images.iter().zip(images);
        // 0 where it never is as good.
        let sooner = pairs.map(|((_, sides), image)| image.passed.map_or(0.0, |seconds| sides.theirs.seconds / seconds));
        let sooner: Vec<f64> = sooner.collect();
        json!({
            "name": name,
            "passed": images.iter().filter(|image| image.passed.is_some()).count(),
            "after": median(images.iter().map(|image| image.passed.unwrap_or(f64::INFINITY)).collect()),
            "least_sooner": sooner.iter().copied().fold(f64::INFINITY, f64::min),
            "sooner": median(sooner),
            "seconds": mean(|image| image.seconds),
            "loss": mean(|image| image.loss),
        })
    }

    fn average(&self, of: &dyn Fn(&Run) -> f64) -> Sides<f64> {
        let side = |pick: fn(&Sides<Run>) -> &Run| mean(&self.images.iter().map(|(_, s)| of(pick(s))).collect::<Vec<_>>());
        Sides { theirs: side(|sides| &sides.theirs), ours: side(|sides| &sides.ours) }
    }

    fn paired(&self, of: &dyn Fn(&Sides<Run>) -> f64) -> Interval {
        let values: Vec<f64> = self.images.iter().map(|(_, sides)| of(sides)).collect();
        interval(&values).expect("there are images")
    }
}
