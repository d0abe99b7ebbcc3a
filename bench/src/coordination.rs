//! The coordinator on a large run: time and memory to plan and publish all jobs, to start again, and to take in events. The broker is a
//! RabbitMQ, the bucket a server in this process; the coordinator is a process of its own.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::body::Bytes;
use coordinator::drive::WINDOW;
use futures_util::{StreamExt, TryStreamExt, stream};
use harness::RabbitMq;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use proto::keys::{Item, Marker};
use proto::{Event, Job, Params, What, keys};
use queue::{Channel, Queue};
use serde::{Deserialize, Serialize};
use store::Store;
use tokio::runtime::Runtime;

use crate::bucket::Bucket;
use crate::page::Record;
use crate::process::{answer, neighbour, peak_megabytes};
use crate::services::{Coordinator, classes, copy_model};
use crate::simulated::{ATTEMPT, connect, record, succeeded};

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
const PURGE_EVERY: Duration = Duration::from_secs(1);
/// Objects of an attempt beside its record.
const ITEMS: [Item; 6] = [Item::Projection, Item::Target, Item::Transformed, Item::Generated, Item::Inverted, Item::History];

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

#[derive(Serialize, Deserialize)]
struct Start {
    /// Seconds until the run's jobs are published.
    seconds: f64,
    /// Seconds until the errors of all results are known.
    known: f64,
    peak_megabytes: f64,
}

#[derive(Serialize, Deserialize)]
struct Events {
    images: usize,
    per_second: f64,
    peak_megabytes: f64,
}

pub fn run(quick: bool) -> Result<Coordination> {
    let runtime = Runtime::new().context("cannot start threads")?;
    let of = |n: usize| if quick { n.div_ceil(QUICK) } else { n };
    let broker = RabbitMq::start();
    let (bucket, place) = (Bucket::default(), tempfile::tempdir().context("cannot create a folder")?);
    let endpoint = runtime.block_on(bucket.clone().serve())?;
    let url = |prefix: &str| Bucket::url(&endpoint, prefix);

    eprintln!("publishing {} jobs", of(IMAGENET.0));
    fill(&bucket, of(IMAGENET.0), |i| {
        let class = i * IMAGENET.1 / of(IMAGENET.0);
        format!("imagenet/train/n{class:08}/n{class:08}_{i:08}.JPEG")
    });
    let published = publish_apart(&runtime, &broker, &url("imagenet"))?;
    bucket.objects().clear();

    let (finished, left) = (of(FINISHED.0), of(FINISHED.1));
    let mut classes = classes()?;
    classes.retain(|class| class.bytes().all(|b| b.is_ascii_alphanumeric()));
    eprintln!("writing {finished} results into a folder and into a bucket");
    fill(&bucket, finished + left, |i| format!("coco/{}", image(i, &classes)));
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
    fill(&bucket, of(TOLD) + 1, |i| format!("told/{}", image(i, &classes)));
    let home = Home::Folder(place.path().join("told"));
    let events = runtime.block_on(take_in(&home, &broker, &url("told"), of(TOLD)))?;
    Ok(Coordination { published, results: finished, starts, events })
}

impl Record for Coordination {
    const NAME: &'static str = "coordinator-speed";
    const PAGE: &'static str = include_str!("../pages/coordinator-speed.md");
}

/// Puts empty images into the bucket.
fn fill(bucket: &Bucket, images: usize, key: impl Fn(usize) -> String) {
    bucket.objects().extend((0..images).map(|i| (key(i), Bytes::new())));
}

fn image(i: usize, classes: &[String]) -> String {
    format!("{}/{i:012}.jpg", classes[i % classes.len()])
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
    let results = tempfile::tempdir().context("cannot create a folder")?;
    // It links no torch, as the coordinator.
    let mut child = neighbour("examples/publish")?;
    let published = answer(child.arg(dataset).arg(results.path()).arg(&url));
    purging.abort();
    runtime.block_on(queue.close());
    published.context("publishing failed; make bench-coordinator builds examples/publish")
}

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
            Home::Folder(path) => objects.into_iter().try_for_each(|(key, bytes)| {
                let path = path.join(key);
                let written = std::fs::create_dir_all(path.parent().expect("a key has a folder"))
                    .and_then(|()| std::fs::write(&path, bytes));
                written.with_context(|| format!("cannot write {}", path.display()))
            }),
            Home::Bucket(bucket, _) => {
                bucket.objects().extend(objects.map(|(key, bytes)| (format!("home/{key}"), bytes)));
                Ok(())
            }
        }
    }
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
    let connection = connect(broker).await?;
    let lane = connection.create_channel().await?;
    // Without acknowledgements: workers are not measured.
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut jobs = lane.basic_consume("told.jobs".into(), "bench".into(), options, FieldTable::default()).await?;
    let mut events = Vec::new();
    while events.len() < 2 * images {
        let delivery = jobs.next().await.context("the subscription ended")??;
        let job = Job::decode(&delivery.data)?;
        let event = |what| Event::about(&job, "bench-7f9c4d5b6-x2x8q", what).encode();
        events.extend([event(What::Started), event(succeeded(20.0))]);
    }
    connection.close(200, "OK".into()).await?;
    Ok(events)
}
