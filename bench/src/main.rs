//! What is measured: planted targets and the ordering of the methods (`validate`), speed (`speed`), what messages and objects cost a
//! fleet (`fleet`), pages of a large run (`dashboard`), blending (`blend`), the published networks at full size (`networks`).
//!
//! Long work: every finished case is appended to a file under `--work`, and a later start goes on from there.

mod authors;
mod blend;
mod bucket;
mod cases;
mod coordination;
mod dashboard;
mod deltas;
mod editing;
mod fleet;
mod flop;
mod gpu;
mod messages;
mod networks;
mod objects;
mod ordering;
mod overhead;
mod planted;
mod quality;
mod samples;
mod services;
mod speed;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use engine::Devices;

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
    /// Losses of bfloat16 and of cheaper schedules against float32 and the paper's, paired over real images.
    Quality {
        /// The tables.
        #[arg(long, default_value = "docs/quality.md")]
        out: PathBuf,
        /// Real images.
        #[arg(long, default_value_t = 32)]
        real: usize,
        /// Only write the tables, of the variants that are complete.
        #[arg(long)]
        as_it_is: bool,
    },
    /// BigGAN-deep-256 with random weights: seconds per image by precision and lanes, and the share of the device's ceiling.
    Gpu(Box<gpu::Args>),
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
    /// Plans and publishes ImageNet, starts onto 120,000 results, takes in events; needs a RabbitMQ.
    Coordinator {
        /// The table.
        #[arg(long, default_value = "docs/coordinator-speed.md")]
        out: PathBuf,
        /// A little of everything, to see that it works; writes nothing.
        #[arg(long)]
        quick: bool,
    },
    /// What coordinator, RabbitMQ, worker and store add to the projection of an image; needs a RabbitMQ.
    Overhead {
        /// The table.
        #[arg(long, default_value = "docs/fleet-overhead.md")]
        out: PathBuf,
        /// Turns that count; there is one more.
        #[arg(long, default_value_t = 5)]
        turns: usize,
        /// Images of a turn.
        #[arg(long, default_value_t = 2)]
        images: usize,
        /// Where to compute, as in `basin-worker`.
        #[arg(long, default_value = "cpu,cpu")]
        devices: String,
        /// Parameters, as JSON; the profile `fast` if there are none.
        #[arg(long)]
        params: Option<String>,
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
    /// The rate of one CPU device, for `speed`.
    #[command(hide = true)]
    Alone,
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
    let model = || engine::load(&args.model).context("cannot load the model");
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
        Command::Speed { out } => write(&out, speed::run(&model()?, &args.model)?),
        Command::Alone => {
            println!("{}", speed::alone(&model()?)?);
            Ok(())
        }
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
        Command::Quality { out, real, as_it_is } => {
            write(&out, quality::run(&model()?, &args.samples, &args.work, real, as_it_is)?)
        }
        Command::Gpu(asked) => {
            if let Some(folder) = &asked.folder {
                return gpu::write_folder(asked.resolution(), &args.samples, folder);
            }
            let (text, json) = gpu::run(&asked)?;
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
        Command::Coordinator { quick: true, .. } => {
            println!("{}", coordination::run(true)?);
            Ok(())
        }
        Command::Coordinator { out, .. } => write(&out, coordination::run(false)?),
        Command::Overhead { out, turns, images, devices, params } => {
            let params = params.map_or_else(|| Ok(proto::Params::fast()), |json| proto::Params::from_json(&json));
            let extent = overhead::Extent { turns, images, devices, params: params.context("cannot read --params")? };
            write(&out, overhead::run(&model()?, &args.samples, &extent)?)
        }
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
