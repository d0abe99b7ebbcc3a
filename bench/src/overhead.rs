//! What a fleet adds to the projection itself: images through coordinator, RabbitMQ, worker and an S3 server, in turns with the same
//! images projected in this process alone.
//!
//! A shared machine varies by more than the few per cent that are measured. So the parts are counted, too: CPU time of everything except the
//! device threads, and the time for which the devices are idle.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use engine::{Devices, LoadedModel};
use harness::{Process, RabbitMq};
use projector::{Lanes, Target};
use proto::{Params, ResultRecord, keys};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::Store;
use tokio::runtime::Runtime;

use crate::bucket::Bucket;
use crate::cases::{median, project};
use crate::page::Record;
use crate::process::{cpu_seconds, thread_seconds};
use crate::samples;
use crate::services::{Coordinator, copy_model, start};

/// Threads of a worker that compute; `Projection` has them too.
const DEVICES: [&str; 2] = ["project", "device-"];
const SAMPLES: &str = "samples";

#[derive(clap::Args)]
pub struct Workload {
    /// Turns that count; one more comes first.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Images of a turn.
    #[arg(long, default_value_t = 2)]
    images: usize,
    /// Devices, as in `basin-worker`.
    #[arg(long, default_value = "cpu,cpu")]
    devices: Devices,
    /// Parameters, as JSON; by default the profile `fast`.
    #[arg(long, value_parser = Params::from_json)]
    params: Option<Params>,
}

/// One turn through the fleet; seconds of one image.
#[derive(Serialize, Deserialize)]
struct Turn {
    seconds: f64,
    /// In which no device works on it.
    idle: f64,
    /// CPU time of coordinator, broker, worker outside of its device threads, and S3 server.
    cpu: [f64; 4],
}

#[derive(Serialize, Deserialize)]
pub struct Overhead {
    images: usize,
    devices: String,
    /// Seconds of an image in each turn, projected in this process.
    alone: Vec<f64>,
    fleet: Vec<Turn>,
}

/// Measures in turns, alone and through the fleet.
pub fn run(model: &LoadedModel, samples: &Path, load: &Workload) -> Result<Overhead> {
    let lanes = Lanes::new(&model.model, &load.devices.0);
    let params = load.params.clone().unwrap_or_else(Params::fast);
    let targets = samples::targets(model, samples, |_| true)?;
    ensure!(targets.len() >= load.images, "{} has only {} images", samples.display(), targets.len());
    let targets: Vec<Target> = targets.into_iter().map(|(_, target)| target).collect();
    let runtime = Runtime::new().context("cannot start threads")?;
    let fleet = runtime.block_on(Fleet::start(samples, &load.devices.to_string()))?;
    let (mut alone, mut turns) = (Vec::new(), Vec::new());
    // The first turn loads models and opens connections, and does not count.
    for turn in 0..=load.turns {
        let seconds = project_alone(model, &lanes, &params, &targets[..load.images])?;
        let through = runtime.block_on(fleet.turn(&format!("turn-{turn}"), &params, load.images))?;
        eprintln!("an image takes {seconds:.3} s alone, {:.3} s in the fleet", through.seconds);
        if turn > 0 {
            alone.push(seconds);
            turns.push(through);
        }
    }
    Ok(Overhead { images: load.images, devices: load.devices.to_string(), alone, fleet: turns })
}

fn project_alone(model: &LoadedModel, lanes: &Lanes, params: &Params, targets: &[Target]) -> Result<f64> {
    let started = Instant::now();
    for target in targets {
        let target = Target { image: target.image.copy(), mask: None, ..target.shallow_clone() };
        project(model, lanes, params, vec![target], None)?;
    }
    Ok(started.elapsed().as_secs_f64() / targets.len() as f64)
}

impl Record for Overhead {
    const NAME: &'static str = "fleet-overhead";
    const PAGE: &'static str = include_str!("../pages/fleet-overhead.md");

    fn derived(&self) -> Value {
        let of = |value: &dyn Fn(&Turn) -> f64| median(self.fleet.iter().map(value).collect());
        let cpu = [0, 1, 2, 3].map(|part| of(&|turn| turn.cpu[part]));
        json!({
            "projection": median(self.alone.clone()),
            "in_fleet": of(&|turn| turn.seconds),
            "idle": of(&|turn| turn.idle),
            "cpu": cpu,
            "cpu_of_all": of(&|turn| turn.cpu.iter().sum()),
        })
    }
}

/// The services, and the server that keeps their objects in this process.
struct Fleet {
    broker: RabbitMq,
    bucket: Bucket,
    dataset: String,
    coordinator: Coordinator,
    worker: Process,
    _models: tempfile::TempDir,
}

impl Fleet {
    async fn start(samples: &Path, devices: &str) -> Result<Fleet> {
        let (broker, bucket) = (RabbitMq::start(), Bucket::default());
        let endpoint = bucket.clone().serve().await?;
        let url = |prefix: &str| Bucket::url(&endpoint, prefix);
        let (home, dataset, queue) = (url("home"), url(SAMPLES), broker.url(""));
        copy_model(&Store::open(&home).await?).await?;
        let data = Store::open(&dataset).await?;
        data.put("annotations.json", std::fs::read(samples.join("annotations.json"))?).await?;
        for image in std::fs::read_dir(samples.join("images")).context("cannot read the samples")? {
            let image = image?;
            data.put(&format!("images/{}", image.file_name().to_string_lossy()), std::fs::read(image.path())?).await?;
        }
        let coordinator = Coordinator::start(&home, &queue, coordinator::drive::WINDOW).await?;
        let models = tempfile::tempdir().context("cannot create a folder")?;
        let worker = start("basin-worker", |command| {
            command.args(["--home", &home, "--queue", &queue, "--devices", devices, "--batch-images", "1"]);
            command.arg("--model-cache").arg(models.path());
        })?;
        Ok(Fleet { broker, bucket, dataset, coordinator, worker, _models: models })
    }

    fn cpu(&self) -> Result<[f64; 4]> {
        let worker = self.worker.0.id();
        Ok([
            cpu_seconds(self.coordinator.id())?,
            self.broker.processes().into_iter().map(cpu_seconds).sum::<Result<f64>>()?,
            cpu_seconds(worker)? - thread_seconds(worker, &DEVICES)?,
            // The S3 server is in this process, whose lanes are idle now.
            thread_seconds(std::process::id(), &["tokio"])?,
        ])
    }

    async fn turn(&self, run: &str, params: &Params, images: usize) -> Result<Turn> {
        let mut events = self.coordinator.listen().await?;
        self.coordinator.submit(run, &self.dataset, params, Some(images)).await?;
        while events.next(run).await? != "started" {}
        let (cpu, started, mut left) = (self.cpu()?, Instant::now(), images);
        while left > 0 {
            match events.next(run).await?.as_str() {
                "succeeded" => left -= 1,
                "failed" => bail!("an image of {run} failed"),
                _ => {}
            }
        }
        let (seconds, cpu_after) = (started.elapsed().as_secs_f64(), self.cpu()?);
        let n = images as f64;
        let cpu = std::array::from_fn(|i| (cpu_after[i] - cpu[i]) / n);
        Ok(Turn { seconds: seconds / n, idle: (seconds - self.device_seconds(run)?) / n, cpu })
    }

    /// Seconds of device work of a run's images, from their records.
    fn device_seconds(&self, run: &str) -> Result<f64> {
        let prefix = format!("home/runs/{run}/{}", keys::IMAGES);
        let objects = self.bucket.objects();
        let records = objects.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let records = records.filter(|(key, _)| key.ends_with("/result.json"));
        let seconds = records.map(|(_, bytes)| Ok(serde_json::from_slice::<ResultRecord>(bytes)?.seconds));
        seconds.sum()
    }
}
