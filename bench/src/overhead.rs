//! What a fleet adds to the projection itself: images through coordinator, RabbitMQ, worker and an S3 server, in turns with the same
//! images projected in this process alone.
//!
//! A shared machine varies by more than the few per cent that are measured. So the parts are counted, too: CPU time of everything except the
//! device threads, and the time for which the devices are idle.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use engine::{Devices, LoadedModel};
use harness::RabbitMq;
use projector::{Lanes, Target};
use proto::{Params, ResultRecord, keys};
use serde::{Deserialize, Serialize};
use store::Store;
use tokio::runtime::Runtime;

use crate::bucket::Bucket;
use crate::cases::{median, project};
use crate::page::{Machine, Page, Record, number};
use crate::process::{cpu_seconds, thread_seconds};
use crate::samples;
use crate::services::{Coordinator, Service, copy_model};

/// Target: at most 2 % of an image of 20 s.
const BAR: (f64, f64) = (2.0, 20.0);
/// Threads of a worker that compute; `Projection` has them too.
const DEVICES: [&str; 2] = ["project", "device-"];
const SAMPLES: &str = "samples";

/// What is measured.
pub struct Extent {
    pub turns: usize,
    /// Images in a turn, projected one after another.
    pub images: usize,
    /// As in `basin-worker --devices`.
    pub devices: String,
    pub params: Params,
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
pub fn run(model: &LoadedModel, samples: &Path, extent: &Extent) -> Result<Overhead> {
    let devices: Devices = extent.devices.parse().map_err(anyhow::Error::msg)?;
    let lanes = Lanes::new(&model.model, &devices.0);
    let targets = samples::targets(model, samples, |_| true)?;
    ensure!(targets.len() >= extent.images, "{} has only {} images", samples.display(), targets.len());
    let targets: Vec<Target> = targets.into_iter().map(|(_, target)| target).collect();
    let runtime = Runtime::new().context("cannot start threads")?;
    let fleet = runtime.block_on(Fleet::start(samples, extent))?;
    let (mut alone, mut turns) = (Vec::new(), Vec::new());
    // The first turn loads models and opens connections, and does not count.
    for turn in 0..=extent.turns {
        let seconds = project_alone(model, &lanes, extent, &targets)?;
        let through = runtime.block_on(fleet.turn(turn, extent))?;
        eprintln!("an image takes {seconds:.3} s alone, {:.3} s in the fleet", through.seconds);
        if turn > 0 {
            alone.push(seconds);
            turns.push(through);
        }
    }
    Ok(Overhead { images: extent.images, devices: extent.devices.clone(), alone, fleet: turns })
}

const EXPLAINED: &str = "A batch is one image. In the fleet, the time of an image is the time of a turn, from the start of its first image to \
    the last result that the coordinator counts, divided by its images. The devices are idle between one batch and the next, and at the \
    end of a turn until the coordinator counts it. CPU time of the other parts takes nothing from the devices while cores are free; \
    without free cores, as here, it is their time, too. The sum of both is an upper limit of what a fleet adds.";

/// Seconds of an image.
fn project_alone(model: &LoadedModel, lanes: &Lanes, extent: &Extent, targets: &[Target]) -> Result<f64> {
    let started = Instant::now();
    for target in &targets[..extent.images] {
        let target = Target { image: target.image.copy(), mask: None, ..*target };
        project(model, lanes, &extent.params, vec![target], None)?;
    }
    Ok(started.elapsed().as_secs_f64() / extent.images as f64)
}

impl Record for Overhead {
    const NAME: &'static str = "fleet-overhead";

    fn page(&self, machine: &Machine) -> Page {
        let of = |value: &dyn Fn(&Turn) -> f64| median(self.fleet.iter().map(value).collect());
        let (projection, fleet) = (median(self.alone.clone()), of(&|turn| turn.seconds));
        let cores = machine.cores as f64;
        let percent = |seconds: f64| format!("{:.2} %", 100.0 * seconds / projection);
        let idle = of(&|turn| turn.idle);
        let added = idle + of(&|turn| turn.cpu.iter().sum::<f64>() / cores);
        let row = |name: &str, seconds: String, share: String| vec![name.into(), seconds, share];
        let mut rows = vec![
            row("projection alone", number(projection, 3), String::new()),
            row("in the fleet", number(fleet, 3), format!("{} more", percent(fleet - projection))),
            row("devices idle", number(idle, 4), percent(idle)),
        ];
        for (i, name) in ["coordinator", "broker", "worker beside its device threads", "S3 server"].into_iter().enumerate() {
            let seconds = of(&|turn| turn.cpu[i]);
            let share = format!("{} of {cores} cores", percent(seconds / cores));
            rows.push(row(&format!("CPU time of the {name}"), number(seconds, 4), share));
        }
        let (limit, image) = BAR;
        let share =
            format!("**{}**; {:.2} % of an image of {image} s (target: < {limit} %)", percent(added), 100.0 * added / image);
        rows.push(row("**idle, and CPU time on all cores**", number(added, 4), share));
        Page::new("What a fleet adds")
            .text(&format!(
                "Written by `make bench-overhead` on {machine}: medians of {} turns of {} images, alone and through coordinator, RabbitMQ, \
                worker and an S3 server in memory; devices {}.",
                self.fleet.len(),
                self.images,
                self.devices
            ))
            .table(&["for one image", "seconds", "of the projection"], rows)
            .text(EXPLAINED)
    }
}

/// The services, and the server that keeps their objects in this process.
struct Fleet {
    broker: RabbitMq,
    bucket: Bucket,
    dataset: String,
    coordinator: Coordinator,
    worker: Service,
    _models: tempfile::TempDir,
}

impl Fleet {
    async fn start(samples: &Path, extent: &Extent) -> Result<Fleet> {
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
        let worker = Service::start("basin-worker", |command| {
            command.args(["--home", &home, "--queue", &queue, "--devices", &extent.devices, "--batch-images", "1"]);
            command.arg("--model-cache").arg(models.path());
        })?;
        Ok(Fleet { broker, bucket, dataset, coordinator, worker, _models: models })
    }

    /// CPU time so far.
    fn cpu(&self) -> Result<[f64; 4]> {
        let worker = self.worker.id();
        Ok([
            cpu_seconds(self.coordinator.id())?,
            self.broker.processes().into_iter().map(cpu_seconds).sum::<Result<f64>>()?,
            cpu_seconds(worker)? - thread_seconds(worker, &DEVICES)?,
            // The S3 server is in this process, whose lanes are idle now.
            thread_seconds(std::process::id(), &["tokio"])?,
        ])
    }

    /// Projects the images of a turn.
    async fn turn(&self, turn: usize, extent: &Extent) -> Result<Turn> {
        let run = format!("turn-{turn}");
        let mut events = self.coordinator.listen().await?;
        self.coordinator.submit(&run, &self.dataset, &extent.params, Some(extent.images)).await?;
        while events.next(&run).await? != "started" {}
        let (cpu, started, mut left) = (self.cpu()?, Instant::now(), extent.images);
        while left > 0 {
            match events.next(&run).await?.as_str() {
                "succeeded" => left -= 1,
                "failed" => bail!("an image of {run} failed"),
                _ => {}
            }
        }
        let (seconds, cpu_after) = (started.elapsed().as_secs_f64(), self.cpu()?);
        let n = extent.images as f64;
        let cpu = std::array::from_fn(|i| (cpu_after[i] - cpu[i]) / n);
        Ok(Turn { seconds: seconds / n, idle: (seconds - self.device_seconds(&run)?) / n, cpu })
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
