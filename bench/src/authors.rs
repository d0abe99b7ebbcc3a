//! The authors' code against ours: the same torch, checkpoint, images, schedule and number of seeds, one image at a time, in turns.
//!
//! `bench/authors/pix2latent.py` drives their optimiser classes from the checkout of `--checkout`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use engine::{Devices, LoadedModel};
use projector::{Lanes, Target, mask};
use proto::{LastDescent, LatentSearch, Params, Precision, Told};
use results::bootstrap::{Interval, interval};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::cases::project;
use crate::flop::{self, matrix_rate};
use crate::page::{Machine, Page, Record, number, with_interval};
use crate::process::peak_megabytes;
use crate::samples::targets;

#[derive(clap::Args)]
pub struct Args {
    /// Checkout of minyoungg/pix2latent, branch master.
    #[arg(long)]
    checkout: PathBuf,
    /// Python with the packages of bench/authors/requirements.txt.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Devices of both sides: `auto`, or a list such as `cpu,cpu` or `cuda:0`. The authors' code takes one thread for each CPU device.
    #[arg(long, default_value = "auto")]
    devices: Devices,
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
    /// Model folder.
    #[arg(skip)]
    pub model: PathBuf,
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

/// Figures of both sides.
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
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Sides<T> {
    theirs: T,
    ours: T,
}

/// Measures both sides in turns, one image at a time.
pub fn run(model: &LoadedModel, samples: &Path, args: &Args) -> Result<Comparison> {
    let devices = &args.devices.0;
    let gpu = devices.iter().any(|device| matches!(device, Device::Cuda(_)));
    let params = params(model, args);
    let all = chosen(model, samples, args.images.into())?;

    let file = std::env::temp_dir().join(format!("basin-authors-{}.safetensors", std::process::id()));
    write_targets(model, &params, &all, &file)?;
    let mut theirs = Authors::start(args, &file)?;
    let lanes = Lanes::new(&model.model, devices);
    let warm_up = Params { latent: LatentSearch::Adam { steps: 2 }, ..params.clone() };
    project(model, &lanes, &warm_up, vec![all[0].1.shallow_clone()], None)?;

    let mut images = Vec::new();
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
        lane_step_gflop: flop::of_model(model, &args.model)? / 1e9,
        matrix_gflops: matrix_rate(devices, Precision::Fp32)? / 1e9,
        peak_megabytes: Sides { theirs: Some(their_peak), ours: our_peak },
        images,
    })
}

fn params(model: &LoadedModel, args: &Args) -> Params {
    // The rule of CMA-ES, which the authors' code leaves to pycma.
    let seeds = 4 + (3.0 * (model.model.generator.latent_dim() as f64).ln()) as u32;
    let Args { generations, steps, final_steps, .. } = *args;
    let latent =
        LatentSearch::BasinCma { generations, steps, final_steps, told: Told::Sampled, sigma: 1.0, last: LastDescent::Fresh };
    Params { transform: None, latent, seeds, ..Params::pix2latent() }
}

/// Images evenly spread over classes, and over centred and off-centre ones.
fn chosen(model: &LoadedModel, samples: &Path, count: usize) -> Result<Vec<(String, Target)>> {
    let all = targets(model, samples, |_| true)?;
    let every = (all.len() / count).max(1);
    let mut chosen: Vec<_> = all.into_iter().step_by(every).take(count).collect();
    ensure!(chosen.len() == count, "{} has only {} images", samples.display(), chosen.len());
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
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Authors {
    fn start(args: &Args, targets: &Path) -> Result<Authors> {
        let cpus = args.devices.0.iter().filter(|device| **device == Device::Cpu).count();
        let device = if cpus > 0 { "cpu".to_owned() } else { args.devices.to_string() };
        let script = Path::new("bench/authors/pix2latent.py");
        ensure!(script.exists(), "there is no {}; start this in the folder of the repository", script.display());
        ensure!(
            args.checkout.join("pix2latent/optimizer").is_dir(),
            "--checkout {} is not a checkout of pix2latent",
            args.checkout.display()
        );
        let mut child = Command::new(&args.python)
            .arg(script)
            .arg("--checkout")
            .arg(&args.checkout)
            .arg("--model")
            .arg(&args.model)
            .args(["--device", &device, "--threads", &cpus.to_string()])
            .arg("--targets")
            .arg(targets)
            .args(["--generations", &args.generations.to_string(), "--steps", &args.steps.to_string()])
            .args(["--final-steps", &args.final_steps.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", args.python.display()))?;
        let ask = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Authors { child, ask, answers })
    }

    fn project(&mut self, image: usize) -> Result<Theirs> {
        writeln!(self.ask, "{image}")
            .and_then(|()| self.ask.flush())
            .context("the authors' code has ended; see its output above")?;
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "the authors' code has ended; see its output above");
        serde_json::from_str(&line).with_context(|| format!("cannot parse the answer of the authors' code: {line:?}"))
    }
}

impl Drop for Authors {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Record for Comparison {
    const NAME: &'static str = "authors";

    fn page(&self, machine: &Machine) -> Page {
        let mean = |run: &Run| run.losses.iter().sum::<f64>() / run.losses.len() as f64;
        let best = |run: &Run| run.losses.iter().copied().fold(f64::INFINITY, f64::min);
        let rate = self.average(&|run| run.lane_steps as f64 / run.seconds);
        let share = |rate: f64| 100.0 * rate * self.lane_step_gflop / self.matrix_gflops;
        let row =
            |name: &str, sides: Sides<f64>, digits| vec![name.into(), number(sides.theirs, digits), number(sides.ours, digits)];
        let peak = self.peak_megabytes;
        let rows = vec![
            row("seconds per image", self.average(&|run| run.seconds), 2),
            row("lane-steps per second", rate, 0),
            row("share of the rate of a matrix product, %", Sides { theirs: share(rate.theirs), ours: share(rate.ours) }, 1),
            vec!["peak memory, MB".into(), number(peak.theirs, 0), number(peak.ours, 0)],
            row("final loss, mean of the seeds", self.average(&mean), 4),
            row("final loss, best seed", self.average(&best), 4),
        ];
        let faster = self.paired(&|sides| sides.theirs.seconds / sides.ours.seconds);
        let difference = |of: &dyn Fn(&Run) -> f64| with_interval(&self.paired(&|s| of(&s.ours) - of(&s.theirs)), 4);
        let [generations, steps, final_steps] = self.schedule;
        Page::new("Against the authors' code")
            .text(&format!(
                "Written by `basin-bench authors` (docs/src/explanation/performance.md says how to set it up) on {machine}: model {}, {} \
                images of `samples/`, BasinCMA {generations} x {steps} + {final_steps} with {} seeds, no transform, no box, one image at a \
                time, theirs and ours in turns, devices {}. Theirs is minyoungg/pix2latent, branch master, in Python on torch {}. Both \
                minimise the same loss with the same learning rates.",
                self.model,
                self.images.len(),
                self.seeds,
                self.devices,
                self.torch
            ))
            .table(&["", "theirs", "ours"], rows)
            .text(&format!(
                "Ours is {:.2} times faster (95 % interval over the images: {:.2} to {:.2}). Difference of the losses (ours minus theirs), \
                paired, with 95 % bootstrap intervals: mean of the seeds {}, best seed {}. A lane-step is {:.3} GFLOP by its shapes; theirs \
                computes more (gradients of weights, unused output channels). A product of large matrices runs at {:.0} GFLOP/s.",
                faster.mean,
                faster.low,
                faster.high,
                difference(&mean),
                difference(&best),
                self.lane_step_gflop,
                self.matrix_gflops
            ))
    }
}

impl Comparison {
    fn average(&self, of: &dyn Fn(&Run) -> f64) -> Sides<f64> {
        let mean = |side: &dyn Fn(&Sides<Run>) -> f64| {
            self.images.iter().map(|(_, sides)| side(sides)).sum::<f64>() / self.images.len() as f64
        };
        Sides { theirs: mean(&|sides| of(&sides.theirs)), ours: mean(&|sides| of(&sides.ours)) }
    }

    fn paired(&self, of: &dyn Fn(&Sides<Run>) -> f64) -> Interval {
        let values: Vec<f64> = self.images.iter().map(|(_, sides)| of(sides)).collect();
        interval(&values).expect("there are images")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_compares_both_sides() {
        let side = |seconds, losses: [f64; 2]| Run { seconds, lane_steps: 1000, losses: losses.into() };
        let sides = || Sides { theirs: side(10.0, [1.0, 2.0]), ours: side(2.5, [1.0, 1.5]) };
        let record = Comparison {
            model: "fashion32".into(),
            devices: "cpu".into(),
            torch: "2.11.0".into(),
            seeds: 2,
            schedule: [10, 10, 100],
            lane_step_gflop: 0.5,
            matrix_gflops: 400.0,
            peak_megabytes: Sides { theirs: Some(1049.0), ours: None },
            images: vec![("a.png".into(), sides()), ("b.png".into(), sides())],
        };
        let record: Comparison = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        let page = record.page(&Machine::here().unwrap()).to_string();
        for line in [
            "| seconds per image | 10.00 | 2.50 |",
            "| lane-steps per second | 100 | 400 |",
            "| share of the rate of a matrix product, % | 12.5 | 50.0 |",
            "| peak memory, MB | 1049 | - |",
            "| final loss, mean of the seeds | 1.5000 | 1.2500 |",
            "Ours is 4.00 times faster (95 % interval over the images: 4.00 to 4.00).",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }
}
