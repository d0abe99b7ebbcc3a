//! What is measured: planted targets and the ordering of the methods (`validate`), speed (`speed`), what messages and objects cost a
//! fleet (`fleet`), pages of a large run (`dashboard`), blending (`blend`), the published networks at full size (`networks`).
//!
//! Long work: every finished case is appended to a file under `--work`, and a later start goes on from there.

mod authors;
mod blend;
mod cases;
mod dashboard;
mod deltas;
mod editing;
mod fleet;
mod flop;
mod messages;
mod networks;
mod objects;
mod ordering;
mod planted;
#[path = "../../tests/harness/rabbitmq.rs"]
mod rabbitmq;
mod samples;
mod speed;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use worker::Devices;

#[derive(Parser)]
#[command(version, about)]
struct Args {
    /// Model folder.
    #[arg(long, default_value = "models/fashion32", global = true)]
    model: PathBuf,
    /// Data set with off-centre images.
    #[arg(long, default_value = "samples", global = true)]
    samples: PathBuf,
    /// Where finished cases are kept.
    #[arg(long, default_value = "docs/validation", global = true)]
    work: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Planted targets, then the ordering of the methods; writes a table.
    Validate {
        /// The table.
        #[arg(long, default_value = "docs/validation.md")]
        out: PathBuf,
        /// Planted targets.
        #[arg(long, default_value_t = 20)]
        planted: usize,
        /// Real images.
        #[arg(long, default_value_t = 32)]
        real: usize,
    },
    /// Lane-steps per second: batched against one by one, frozen weights against not.
    Speed {
        /// The table.
        #[arg(long, default_value = "docs/speed.md")]
        out: PathBuf,
    },
    /// Fine-tuning, editability after it, and the codecs of weight deltas.
    Editing {
        /// The table.
        #[arg(long, default_value = "docs/editing-figures.md")]
        out: PathBuf,
        /// Real images.
        #[arg(long, default_value_t = 16)]
        real: usize,
        /// Parameters of fine-tuning, as JSON.
        #[arg(long)]
        fine_tune: Option<String>,
    },
    /// Seconds per image and final losses against the authors' own code.
    Authors(Box<authors::Args>),
    /// Milliseconds of a Poisson blend.
    Blend,
    /// Messages and objects each second, and what they cost, against the client libraries alone; needs a RabbitMQ.
    Fleet {
        /// The table.
        #[arg(long, default_value = "docs/throughput.md")]
        out: PathBuf,
        /// A little of everything, to see that it works; writes nothing.
        #[arg(long)]
        quick: bool,
    },
    /// Pages of a large run, and what twenty that are open cost.
    Dashboard {
        /// The table.
        #[arg(long, default_value = "docs/dashboard-speed.md")]
        out: PathBuf,
        /// Settled images.
        #[arg(long, default_value_t = 120_000)]
        images: usize,
        /// Seconds that the pages are open.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// The published networks at full size with random weights: files, speed and memory.
    Networks {
        /// The tables.
        #[arg(long, default_value = "docs/networks-figures.md")]
        out: PathBuf,
    },
    /// One task of `networks`, as JSON.
    #[command(hide = true)]
    Network { name: String, task: networks::Task, work: PathBuf },
    /// The part of `fleet` with objects, as lines of JSON.
    #[command(hide = true)]
    Objects {
        endpoint: String,
        #[arg(long)]
        quick: bool,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let model = || worker::load(&args.model).context("cannot load the model");
    let write = |out: &PathBuf, text: String| {
        std::fs::write(out, &text).with_context(|| format!("cannot write {}", out.display()))?;
        println!("{text}");
        Ok(())
    };
    match args.command {
        Command::Validate { out, planted, real } => {
            let model = model()?;
            std::fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
            let lanes = projector::Lanes::new(&model.model, &Devices::automatic().0);
            let planted = planted::run(&model, &lanes, &args.work, planted)?;
            let ordering = ordering::run(&model, &lanes, &args.samples, &args.work, real)?;
            let head = format!(
                "# Validation\n\nWritten by `make validate`; model {} ({}), profile `paper` unless said otherwise.\n\
                Every case is a line in `docs/validation/`; what is there is not run again.\n",
                model.reference.name,
                &model.reference.digest[..12]
            );
            write(&out, format!("{head}\n{planted}\n{ordering}"))
        }
        Command::Speed { out } => write(&out, speed::run(&model()?)?),
        Command::Editing { out, real, fine_tune } => {
            let tune = fine_tune.map(|json| serde_json::from_str(&json)).transpose().context("cannot parse --fine-tune")?;
            // Searches, to go on from: too large to be kept with the cases.
            let work = PathBuf::from("target/editing");
            std::fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
            write(&out, editing::run(&model()?, &args.samples, &work, real, &tune.unwrap_or_default())?)
        }
        Command::Authors(mut asked) => {
            asked.model = args.model.clone();
            let (text, json) = authors::run(&model()?, &args.samples, &asked)?;
            write(&asked.out.with_extension("json"), json)?;
            write(&asked.out, text)
        }
        Command::Blend => {
            println!("{}", blend::run()?);
            Ok(())
        }
        Command::Fleet { quick: true, .. } => {
            println!("{}", fleet::run(true)?);
            Ok(())
        }
        Command::Fleet { out, .. } => write(&out, fleet::run(false)?),
        Command::Dashboard { out, images, seconds } => {
            write(&out, dashboard::run(images, std::time::Duration::from_secs(seconds))?)
        }
        Command::Networks { out } => write(&out, networks::run(&PathBuf::from("target/bench-networks"))?),
        Command::Network { name, task, work } => {
            println!("{}", networks::task(&name, task, &work)?);
            Ok(())
        }
        Command::Objects { endpoint, quick } => {
            let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
            let rows = runtime.block_on(objects::measure(&endpoint, fleet::Extent::new(quick)))?;
            println!("{}", serde_json::to_string(&rows)?);
            Ok(())
        }
    }
}
