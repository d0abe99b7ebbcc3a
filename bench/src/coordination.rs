//! The coordinator on a large run: time and memory to plan and publish all jobs, to start again, and to take in events. The broker is a
//! RabbitMQ, the bucket a server in this process; the coordinator is a process of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::body::Bytes;
use coordinator::drive::WINDOW;
use futures_util::{StreamExt, TryStreamExt, stream};
use harness::RabbitMq;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use proto::keys::{Item, Marker};
use proto::{Event, Job, Params, Stage, What, keys};
use queue::{Channel, Queue};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::Store;
use tokio::runtime::Runtime;

use crate::bucket::Bucket;
use crate::page::{Machine, Page, Record};
use crate::process::peak_megabytes;
use crate::services::{Coordinator, copy_model};

/// Images and classes of ImageNet's training set.
const IMAGENET: (usize, usize) = (1_281_167, 1000);
/// Results of the run that is resumed, and its images that are left.
const FINISHED: (usize, usize) = (120_000, 1000);
/// Images with two events each.
const TOLD: usize = 40_000;
/// A `--quick` measurement does a part of everything.
const QUICK: usize = 50;
/// Events published at the same time.
const PUBLISHERS: usize = 256;
/// How often the queue is purged.
const PURGE_EVERY: Duration = Duration::from_secs(1);
/// The attempt that made the results.
const ATTEMPT: &str = "0123456789abcdef";
/// Objects of an attempt beside its record.
const ITEMS: [Item; 6] = [Item::Projection, Item::Target, Item::Transformed, Item::Generated, Item::Inverted, Item::History];
/// Targets: seconds to publish, its megabytes, seconds of a start, events per second.
const BARS: (f64, f64, f64, f64) = (180.0, 400.0, 30.0, 5000.0);

/// The figures of one run.
#[derive(Serialize, Deserialize)]
pub struct Coordination {
    published: Published,
    /// Results that a start finds.
    results: usize,
    starts: Vec<(String, Start)>,
    events: Events,
}

/// The line of the process that plans and publishes.
#[derive(Serialize, Deserialize)]
struct Published {
    images: usize,
    /// Seconds.
    planning: f64,
    publishing: f64,
    peak_megabytes: f64,
}

/// A start onto results.
#[derive(Serialize, Deserialize)]
struct Start {
    /// Seconds until the run's jobs are published.
    seconds: f64,
    /// Seconds until the errors of all results are known.
    known: f64,
    peak_megabytes: f64,
}

/// Events that a coordinator takes in.
#[derive(Serialize, Deserialize)]
struct Events {
    images: usize,
    per_second: f64,
    peak_megabytes: f64,
}

/// Measures; `quick` does a small part of everything.
pub fn run(quick: bool) -> Result<Coordination> {
    let runtime = Runtime::new().context("cannot start threads")?;
    let of = |n: usize| if quick { n.div_ceil(QUICK) } else { n };
    let broker = RabbitMq::start();
    let (bucket, place) = (Bucket::default(), tempfile::tempdir().context("cannot create a folder")?);
    let endpoint = runtime.block_on(bucket.clone().serve())?;
    let url = |prefix: &str| Bucket::url(&endpoint, prefix);

    eprintln!("publishing {} jobs", of(IMAGENET.0));
    fill_imagenet(&bucket, of(IMAGENET.0));
    let published = publish_apart(&runtime, &broker, &url("imagenet"))?;
    bucket.objects().clear();

    let (finished, left) = (of(FINISHED.0), of(FINISHED.1));
    let classes = folders()?;
    eprintln!("writing {finished} results into a folder and into a bucket");
    fill(&bucket, "coco", finished + left, &classes);
    let folder = Home::Folder(place.path().join("home"));
    let in_bucket = Home::Bucket(bucket.clone(), url("home"));
    let mut starts = Vec::new();
    for (name, home) in [("a folder", &folder), ("a bucket", &in_bucket)] {
        let (queue, data) = (broker.url(&format!("prefix={}", name.replace(' ', "-"))), url("coco"));
        let (without, with) = runtime.block_on(restart(home, &queue, &data, (finished, left), &classes))?;
        starts.push((format!("{name}, without a snapshot"), without));
        starts.push((format!("{name}, with a snapshot"), with));
    }

    eprintln!("taking in {} events", 2 * of(TOLD));
    fill(&bucket, "told", of(TOLD) + 1, &classes);
    let home = Home::Folder(place.path().join("told"));
    let events = runtime.block_on(take_in(&home, &broker, &url("told"), of(TOLD)))?;
    Ok(Coordination { published, results: finished, starts, events })
}

impl Record for Coordination {
    const NAME: &'static str = "coordinator-speed";

    fn page(&self, machine: &Machine) -> Page {
        let Published { images, planning, publishing, peak_megabytes } = self.published;
        let total = planning + publishing;
        let jobs = images as f64 / publishing;
        let mut rows = vec![
            vec![
                format!("{images} images listed in the bucket, planned, and their jobs published and confirmed"),
                format!("{total:.0} s: {planning:.0} s and {publishing:.0} s, {jobs:.0} jobs/s"),
                format!("< {:.0} s", BARS.0),
            ],
            vec!["peak memory of that process".into(), format!("{peak_megabytes:.0} MB"), format!("< {:.0} MB", BARS.1)],
        ];
        rows.extend(self.starts.iter().map(|(name, Start { seconds, known, peak_megabytes })| {
            vec![
                format!(
                    "`basin-coordinator` starts onto {} results in {name}, until it publishes the remaining jobs",
                    self.results
                ),
                format!("{seconds:.1} s; all errors known after {known:.1} s; {peak_megabytes:.0} MB"),
                format!("< {:.0} s", BARS.2),
            ]
        }));
        let Events { images, per_second, peak_megabytes } = self.events;
        rows.push(vec![
            format!("events that `basin-coordinator` takes in, two for each of {images} images; {peak_megabytes:.0} MB"),
            format!("{per_second:.0} per second"),
            format!("> {:.0}", BARS.3),
        ]);
        let page = Page::new("The coordinator's speed")
            .text(&format!(
                "Written by `make bench-coordinator` on {machine}. RabbitMQ with one scheduler thread and an S3 server in memory share the \
                cores. Each figure is of one run."
            ))
            .table(&["", "measured", "target"], rows);
        EXPLAINED.iter().fold(page, |page, text| page.text(text))
    }
}

const EXPLAINED: [&str; 2] = [
    "The coordinator's driver publishes the jobs as in a fleet, at most 1,000 at a time and 256 unconfirmed, in a process of its own. There \
    are no workers: the jobs are purged from the queue, and the ledger gets the results without the broker. The last row is with the broker: \
    all jobs are on the queue, workers that compute nothing publish that they start and finish each image, and the time is from the first \
    of these events until the coordinator has counted all.",
    "A run that is resumed has the seven objects of a worker for each result (records of 18 seeds, the rest empty), and all are listed; the \
    data set is in the bucket. The folder was written a moment ago: the system may have it in memory.",
];

/// Class folders as ImageNet's.
fn fill_imagenet(bucket: &Bucket, images: usize) {
    let key = |i: usize| {
        let class = i * IMAGENET.1 / images;
        (format!("imagenet/train/n{class:08}/n{class:08}_{i:08}.JPEG"), Bytes::new())
    };
    bucket.objects().extend((0..images).map(key));
}

/// Class folders of the bundled model's classes.
fn fill(bucket: &Bucket, prefix: &str, images: usize, classes: &[String]) {
    let key = |i: usize| (format!("{prefix}/{}", image(i, classes)), Bytes::new());
    bucket.objects().extend((0..images).map(key));
}

fn image(i: usize, classes: &[String]) -> String {
    format!("{}/{i:012}.jpg", classes[i % classes.len()])
}

/// Classes of the bundled model that can name a folder.
fn folders() -> Result<Vec<String>> {
    let bytes = std::fs::read("models/fashion32/model.json").context("cannot read models/fashion32/model.json")?;
    let classes = proto::ModelManifest::parse(&bytes)?.0.classes;
    Ok(classes.into_iter().filter(|class| class.bytes().all(|b| b.is_ascii_alphanumeric())).collect())
}

/// A child publishes all jobs; they are purged here.
fn publish_apart(runtime: &Runtime, broker: &RabbitMq, dataset: &str) -> Result<Published> {
    let url = broker.url("prefix=publish");
    let queue = runtime.block_on(Queue::open(&url))?;
    let purged = queue.clone();
    let purging = runtime.spawn(async move {
        while purged.purge(Channel::Jobs).await.is_ok() {
            tokio::time::sleep(PURGE_EVERY).await;
        }
    });
    // It links no torch, as the coordinator.
    let program = std::env::current_exe().context("cannot find this program")?.with_file_name("examples/publish");
    let results = tempfile::tempdir().context("cannot create a folder")?;
    let mut child = Command::new(&program);
    child.arg(dataset).arg(results.path()).arg(&url).stderr(Stdio::inherit());
    let output =
        child.output().with_context(|| format!("cannot start {}: make bench-coordinator builds it", program.display()))?;
    purging.abort();
    runtime.block_on(queue.close());
    ensure!(output.status.success(), "publishing failed");
    serde_json::from_slice(&output.stdout).context("cannot parse the output of the child")
}

fn succeeded() -> What {
    let stage_seconds = [Stage::Fetch, Stage::TransformSearch, Stage::LatentSearch, Stage::FinalDescent]
        .map(|stage| (stage.as_str().to_owned(), 5.0))
        .into();
    What::Succeeded { loss: 1.25, seconds: 20.0, lane_steps: 28_800, l1: 0.125, lpips: 0.25, stage_seconds }
}

/// The home of a coordinator.
enum Home {
    Folder(PathBuf),
    Bucket(Bucket, String),
}

impl Home {
    fn url(&self) -> String {
        match self {
            Home::Folder(path) => path.to_string_lossy().into_owned(),
            Home::Bucket(_, url) => url.clone(),
        }
    }

    /// Writes objects without a store, which is quicker.
    fn put(&self, objects: impl Iterator<Item = (String, Bytes)>) -> Result<()> {
        match self {
            Home::Folder(path) => objects.into_iter().try_for_each(|(key, bytes)| write(&path.join(key), &bytes)),
            Home::Bucket(bucket, _) => {
                bucket.objects().extend(objects.map(|(key, bytes)| (format!("home/{key}"), bytes)));
                Ok(())
            }
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let created = || match File::create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path.parent().expect("a key has a folder"))?;
            File::create(path)
        }
        created => created,
    };
    let written = created().and_then(|mut file| std::io::Write::write_all(&mut file, bytes));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// The objects of all results of a run.
fn results(run: &str, finished: usize, classes: &[String]) -> impl Iterator<Item = (String, Bytes)> {
    let at = move |key: String| format!("runs/{run}/{key}");
    (0..finished).flat_map(move |i| {
        let image = image(i, classes);
        let record = (at(keys::marker(&image, Marker::Result)), record(&image, i % classes.len()).into());
        let items = ITEMS.map(|item| (at(keys::item(&image, ATTEMPT, item)), Bytes::new()));
        items.into_iter().chain([record]).collect::<Vec<_>>()
    })
}

/// A record of 18 seeds.
fn record(image: &str, class: usize) -> String {
    let seed = json!({ "loss": 1.0, "inverted_loss": 1.0, "l1": 0.5, "l2": 0.25, "lpips": 0.125 });
    json!({
        "format": 1, "job": ATTEMPT, "image": image, "identity": "1", "class": class, "class_name": "Bag", "bbox": null,
        "model": { "name": "fashion32", "digest": ATTEMPT, "resolution": 32 }, "params": Params::paper(), "seed": 0, "version": "bench",
        "transform": null, "best": 0, "seeds": vec![seed; 18], "lane_steps": 28_800, "seconds": 12.0, "attempt": ATTEMPT, "objects": [],
    })
    .to_string()
}

/// Starts a coordinator twice onto a run with results: without a snapshot, and with the snapshot of the first start.
async fn restart(
    home: &Home,
    queue: &str,
    dataset: &str,
    (finished, left): (usize, usize),
    classes: &[String],
) -> Result<(Start, Start)> {
    copy_model(&Store::open(&home.url()).await?).await?;
    let first = Coordinator::start(&home.url(), queue, WINDOW).await?;
    first.submit("large", dataset, &Params::paper(), None).await?;
    first.stop()?;
    home.put(results("large", finished, classes))?;
    eprintln!("starting onto {}", home.url());
    let start = async || {
        let started = Instant::now();
        let coordinator = Coordinator::start(&home.url(), queue, WINDOW).await?;
        let status = coordinator.until("large", |status| status.skipped == finished && status.queued != 0).await?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(status.images == finished + left, "the run has {} images instead of {}", status.images, finished + left);
        coordinator.until("large", |status| status.unread == 0).await?;
        let known = started.elapsed().as_secs_f64();
        let peak_megabytes = peak_megabytes(coordinator.id())?;
        coordinator.stop()?;
        eprintln!("{seconds:.1} s, all errors known after {known:.1} s");
        Ok::<_, anyhow::Error>(Start { seconds, known, peak_megabytes })
    };
    Ok((start().await?, start().await?))
}

async fn take_in(home: &Home, broker: &RabbitMq, dataset: &str, images: usize) -> Result<Events> {
    copy_model(&Store::open(&home.url()).await?).await?;
    let url = broker.url("prefix=told");
    let coordinator = Coordinator::start(&home.url(), &url, images).await?;
    coordinator.submit("told", dataset, &Params::paper(), None).await?;
    let queue = Queue::open(&url).await?;
    let events = events(broker, images).await?;
    let started = Instant::now();
    let publish = |event: Vec<u8>| queue.publish(Channel::Events, event);
    stream::iter(events).map(Ok).try_for_each_concurrent(PUBLISHERS, publish).await?;
    let published = started.elapsed().as_secs_f64();
    coordinator.until("told", |status| status.succeeded == images).await?;
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{} events published in {published:.1} s, taken in after {seconds:.1} s", 2 * images);
    let peak_megabytes = peak_megabytes(coordinator.id())?;
    coordinator.stop()?;
    queue.close().await;
    Ok(Events { images, per_second: 2.0 * images as f64 / seconds, peak_megabytes })
}

/// Consumes the jobs and makes the events of their workers: each starts and succeeds.
async fn events(broker: &RabbitMq, images: usize) -> Result<Vec<Vec<u8>>> {
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", broker.port());
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let lane = connection.create_channel().await?;
    // Without acknowledgements: workers are not measured.
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut jobs = lane.basic_consume("told.jobs".into(), "bench".into(), options, FieldTable::default()).await?;
    let mut events = Vec::new();
    while events.len() < 2 * images {
        let delivery = jobs.next().await.context("the subscription ended")??;
        let job = Job::decode(&delivery.data)?;
        let event = |what| Event::about(&job, "bench-7f9c4d5b6-x2x8q", what).encode();
        events.extend([event(What::Started), event(succeeded())]);
    }
    connection.close(200, "OK".into()).await?;
    Ok(events)
}
