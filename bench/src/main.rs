//! Measurements. Each command measures one thing and writes its record and page (`page.rs`).
//!
//! Long work resumes: every finished case is appended to a file under `--work`.

mod authors;
mod blend;
mod bucket;
mod cases;
mod codecs;
mod compare;
mod coordination;
mod dashboard;
mod editing;
mod flop;
mod gpu;
mod messages;
mod networks;
mod objects;
mod ordering;
mod overhead;
mod page;
mod planted;
mod process;
mod quality;
mod random;
mod rounding;
mod samples;
mod services;
mod simulated;
mod speed;
mod throughput;
mod validation;
mod variants;
mod yardstick;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use compare::Effort;

/// Folders of intermediate files, too large to be kept with the cases.
const EDITING: &str = "target/editing";
const NETWORKS: &str = "target/bench-networks";

#[derive(Parser)]
#[command(version, about = "Measure basin, and write records and pages")]
struct Args {
    /// Model folder.
    #[arg(long, default_value = "models/fashion32", global = true)]
    model: PathBuf,
    /// Data set with centred and off-centre images.
    #[arg(long, default_value = "samples", global = true)]
    samples: PathBuf,
    /// Folder of finished cases.
    #[arg(long, default_value = "benchmarks/validation", global = true)]
    work: PathBuf,
    /// Folder of records and pages.
    #[arg(long, default_value = "benchmarks", global = true)]
    out: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Search planted transforms and compare the methods: validation.md.
    Validate {
        /// Most planted targets of a kind.
        #[arg(long, default_value_t = 40)]
        planted: usize,
        /// Number of real images.
        #[arg(long, default_value_t = 32)]
        real: usize,
    },
    /// Measure lane-steps per second, batched and one by one, with frozen weights and without: speed.md.
    Speed,
    /// Measure fine-tuning, editability after it, and the codecs of weight deltas: editing-figures.md.
    Editing {
        /// Number of real images.
        #[arg(long, default_value_t = 16)]
        real: usize,
        /// Parameters of fine-tuning, as JSON.
        #[arg(long, value_parser = |json: &str| serde_json::from_str::<proto::FineTune>(json))]
        fine_tune: Option<proto::FineTune>,
    },
    /// Compare seconds per image and final losses with the authors' own code: authors.md.
    Authors(Box<authors::AuthorsArgs>),
    /// Compare the profiles with the paper's, and each without one of its ingredients, paired over real images: quality.md.
    Quality {
        /// Most images of each kind.
        #[arg(long, default_value_t = 64)]
        real: usize,
        /// Folder with a data set for each kind of images, which nothing is tuned on.
        #[arg(long, default_value = "benchmarks/data")]
        held_out: PathBuf,
        /// Folder of a perceptual network that no search minimises.
        #[arg(long, default_value = "models/fashion32-vgg")]
        judge: PathBuf,
        /// Folder of another one, such as ST-LPIPS (`basin models fetch st-lpips-alex`). A table has searches that minimise it.
        #[arg(long, value_name = "FOLDER")]
        second_judge: Option<PathBuf>,
        /// Measure nothing; write the page of the variants that are complete.
        #[arg(long)]
        as_it_is: bool,
        /// Measure only this variant. The page has all that are complete.
        #[arg(long, conflicts_with = "as_it_is")]
        only: Option<String>,
    },
    /// Compare losses of bfloat16 with those of float32, paired over real images: rounding.md.
    Rounding {
        /// Number of real images.
        #[arg(long, default_value_t = 32)]
        real: usize,
    },
    /// Measure BigGAN-deep-256 with random weights by precision and lanes, and the share of the device's best rate: gpu.md.
    Gpu(Box<gpu::GpuArgs>),
    /// Measure a Poisson blend and print milliseconds.
    Blend,
    /// Compare queue and store with the client libraries alone: throughput.md. Needs RabbitMQ.
    Fleet(Quick),
    /// Plan and publish ImageNet, start onto 120,000 results, take in events: coordinator-speed.md. Needs RabbitMQ.
    Coordinator(Quick),
    /// Measure the cost of a fleet for one image: fleet-overhead.md. Needs RabbitMQ.
    Overhead(Box<overhead::Workload>),
    /// Measure the pages of a large run, and twenty open pages: dashboard-speed.md.
    Dashboard {
        /// Number of finished images.
        #[arg(long, default_value_t = 120_000)]
        images: usize,
        /// Seconds for which the pages are open.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Measure files, speed and memory of the published networks at full size with random weights: networks-figures.md.
    Networks,
    /// Print the rate of one CPU device, for `speed`.
    #[command(hide = true)]
    Alone,
    /// Do one task of `networks` and print JSON.
    #[command(hide = true)]
    Network { name: String, task: networks::NetworkTask, work: PathBuf },
    /// Measure the objects of `fleet` and print JSON.
    #[command(hide = true)]
    Objects {
        endpoint: String,
        #[arg(long)]
        quick: bool,
    },
}

#[derive(clap::Args)]
struct Quick {
    /// Do a small part of everything and write nothing.
    #[arg(long)]
    quick: bool,
}

fn main() -> Result<()> {
    let Args { model: folder, samples, work, out, command } = Args::parse();
    let model = || engine::load(&folder).context("cannot load the model");
    match command {
        Command::Validate { planted, real } => {
            page::write(&validation::run(&model()?, &samples, &work, planted, real)?, Some(&out))
        }
        Command::Speed => page::write(&speed::run(&model()?, &folder)?, Some(&out)),
        Command::Editing { real, fine_tune } => {
            let tune = fine_tune.unwrap_or_default();
            page::write(&editing::run(&model()?, &samples, Path::new(EDITING), real, &tune)?, Some(&out))
        }
        Command::Authors(args) => page::write(&authors::run(&model()?, &folder, &args)?, Some(&out)),
        Command::Quality { real, held_out, judge, second_judge, as_it_is, only } => {
            let images = quality::Images { held_out: &held_out, most: real };
            let measured = match (as_it_is, only) {
                (true, _) => quality::Measured::Nothing,
                (false, Some(only)) => quality::Measured::Only(only),
                (false, None) => quality::Measured::Everything,
            };
            let judges = quality::Judges { first: &judge, second: second_judge.as_deref() };
            page::write(&quality::run(&model()?, &judges, &images, &work, measured)?, Some(&out))
        }
        Command::Rounding { real } => page::write(&rounding::run(&model()?, &samples, &work, real)?, Some(&out)),
        Command::Gpu(args) => match &args.folder {
            Some(folder) => random::folder(args.resolution, &samples::classes(&samples)?, folder),
            None => page::write(&gpu::run(&args)?, Some(&out)),
        },
        Command::Blend => blend::run(),
        Command::Fleet(Quick { quick }) => page::write(&throughput::run(quick)?, (!quick).then_some(&*out)),
        Command::Coordinator(Quick { quick }) => page::write(&coordination::run(quick)?, (!quick).then_some(&*out)),
        Command::Overhead(workload) => page::write(&overhead::run(&model()?, &samples, &workload)?, Some(&out)),
        Command::Dashboard { images, seconds } => page::write(&dashboard::run(images, Duration::from_secs(seconds))?, Some(&out)),
        Command::Networks => page::write(&networks::run(Path::new(NETWORKS))?, Some(&out)),
        Command::Alone => {
            println!("{}", speed::alone(&model()?)?);
            Ok(())
        }
        Command::Network { name, task, work } => {
            println!("{}", networks::task(&name, task, &work)?);
            Ok(())
        }
        Command::Objects { endpoint, quick } => {
            let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
            let rows = runtime.block_on(objects::measure(&endpoint, Effort::new(quick)))?;
            println!("{}", serde_json::to_string(&rows)?);
            Ok(())
        }
    }
}
