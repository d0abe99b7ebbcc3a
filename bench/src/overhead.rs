//! What a fleet adds to the projection itself: images through coordinator, RabbitMQ, worker and an S3 server, in turns with the same
//! images projected in this process with nothing around it.
//!
//! A few per cent are less than what a machine that others use varies by. So what is added is also counted: CPU time of everything that
//! is no device thread, and the time for which the devices have nothing to do.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use engine::{Devices, LoadedModel};
use projector::{Lanes, Target};
use proto::{Params, ResultRecord, keys};
use store::Store;
use tokio::runtime::Runtime;

use crate::bucket::{BUCKET, Bucket};
use crate::cases::{median, project};
use crate::fleet::processor;
use crate::samples;
use crate::services::{Coordinator, Service, copy_model, cpu_seconds, thread_seconds};
use harness::RabbitMq;

/// What is wanted: per cent of the seconds of an image.
const BAR: (f64, f64) = (2.0, 20.0);
/// Threads of a worker that compute; `Projection` has them too.
const DEVICES: [&str; 2] = ["project", "device-"];
const SAMPLES: &str = "samples";

/// What is measured.
pub struct Extent {
    /// Turns.
    pub turns: usize,
    /// Images of a turn, one after another.
    pub images: usize,
    /// As `basin-worker --devices` has it.
    pub devices: String,
    /// Of the images.
    pub params: Params,
}

/// Seconds of one image in a turn through the fleet.
struct Turn {
    seconds: f64,
    /// Of these no device worked on it.
    idle: f64,
    /// CPU time of coordinator, broker, worker outside of its device threads, and S3 server.
    cpu: [f64; 4],
}

/// The table.
pub fn run(model: &LoadedModel, samples: &Path, extent: &Extent) -> Result<String> {
    let devices: Devices = extent.devices.parse().map_err(anyhow::Error::msg)?;
    let lanes = Lanes::new(&model.model, &devices.0);
    let targets = samples::targets(model, samples, |_| true)?;
    ensure!(targets.len() >= extent.images, "the samples are {} images", targets.len());
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
    Ok(table(extent, &alone, &turns)? + EXPLAINED)
}

const EXPLAINED: &str = "
A batch is one image. In the fleet the time of an image is that of a turn, from the start of its first image to the last result that the
coordinator counts, divided by its images. The devices are idle between one batch and the next: from the end of a projection to the
beginning of the next, and at the end of a turn until the coordinator counts it. CPU time of the other parts takes nothing from the devices
where cores are free; where none are, as here, it is their time too: the two together are at most what a fleet adds.
";

/// Seconds of an image.
fn project_alone(model: &LoadedModel, lanes: &Lanes, extent: &Extent, targets: &[Target]) -> Result<f64> {
    let started = Instant::now();
    for target in &targets[..extent.images] {
        let target = Target { image: target.image.copy(), mask: None, ..*target };
        project(model, lanes, &extent.params, vec![target], None)?;
    }
    Ok(started.elapsed().as_secs_f64() / extent.images as f64)
}

fn table(extent: &Extent, alone: &[f64], turns: &[Turn]) -> Result<String> {
    let of = |value: &dyn Fn(&Turn) -> f64| median(turns.iter().map(value).collect());
    let (projection, fleet) = (median(alone.to_vec()), of(&|turn| turn.seconds));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let percent = |seconds: f64| format!("{:.2} %", 100.0 * seconds / projection);
    let idle = of(&|turn| turn.idle);
    let cpu = of(&|turn| turn.cpu.iter().sum::<f64>() / cores as f64);
    let mut text = format!(
        "# What a fleet adds\n\n\
        Written by `make bench-overhead` on {cores} cores of {}: medians of {} turns of {} images, alone and through coordinator, RabbitMQ, \
        worker and an S3 server in memory; devices {}.\n\n\
        | of an image | seconds | of the projection |\n|---|---|---|\n\
        | projection alone | {projection:.3} | |\n\
        | in the fleet | {fleet:.3} | {} more |\n\
        | devices idle | {idle:.4} | {} |\n",
        processor()?,
        extent.turns,
        extent.images,
        extent.devices,
        percent(fleet - projection),
        percent(idle),
    );
    for (i, name) in ["coordinator", "broker", "worker beside its device threads", "S3 server"].into_iter().enumerate() {
        let seconds = of(&|turn| turn.cpu[i]);
        text += &format!("| CPU time of the {name} | {seconds:.4} | {} of {cores} cores |\n", percent(seconds / cores as f64));
    }
    text += &format!(
        "| **idle, and CPU time on all cores** | {:.4} | **{}**; of an image of {} s {:.2} % (wanted: < {} %) |\n",
        idle + cpu,
        percent(idle + cpu),
        BAR.1,
        100.0 * (idle + cpu) / BAR.1,
        BAR.0
    );
    Ok(text)
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
        let url = |prefix: &str| format!("s3://{BUCKET}/{prefix}?endpoint={endpoint}&anonymous=true");
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
            // Of this process, whose lanes are idle meanwhile.
            thread_seconds(std::process::id(), &["tokio"])?,
        ])
    }

    /// Has the images of a turn projected.
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

    /// Seconds of device work of a run's images, by their records.
    fn device_seconds(&self, run: &str) -> Result<f64> {
        let prefix = format!("home/runs/{run}/{}", keys::IMAGES);
        let objects = self.bucket.objects();
        let records = objects.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let records = records.filter(|(key, _)| key.ends_with("/result.json"));
        let seconds = records.map(|(_, bytes)| Ok(serde_json::from_slice::<ResultRecord>(bytes)?.seconds));
        seconds.sum()
    }
}
