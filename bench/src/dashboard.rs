//! The dashboard of a large run: the time of each page, and the cost of twenty open pages. One process is coordinator, workers that compute
//! nothing, and browsers; the figures are of all of it together.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use client::api::{ImageQuery, ImageState, RunRequest};
use coordinator::http::auth::Gate;
use coordinator::http::other_services::OtherServices;
use coordinator::notify::Notify;
use coordinator::service::{Config, Service};
use proto::keys::{Item, Marker};
use proto::{Event, Job, Stage, What, keys};
use queue::{Channel, Queue};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Allowed, Runs, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::page::Record;
use crate::process::{cpu_seconds, peak_megabytes};
use crate::services::{classes, copy_model, until};
use crate::simulated::{ATTEMPT, record};

const PAGES: usize = 20;
/// Between two loads of the larger parts of a page.
const REFRESH: Duration = Duration::from_secs(5);
/// Images that finish per second while the pages are open.
const RATE: f64 = 50.0;
/// Requests of each page, one after another.
const REQUESTS: usize = 20;

#[derive(Serialize, Deserialize)]
pub struct Dashboard {
    images: usize,
    /// With a result or a failure, before the pages are measured.
    finished: usize,
    classes: usize,
    planning_seconds: f64,
    /// Until the events of the finished images are taken in.
    events_seconds: f64,
    paths: Vec<PathFigures>,
    open: OpenPages,
}

/// Time to the first byte.
#[derive(Serialize, Deserialize)]
struct PathFigures {
    path: String,
    median_ms: f64,
    largest_ms: f64,
}

/// What the open pages cost together.
#[derive(Serialize, Deserialize)]
struct OpenPages {
    seconds: f64,
    /// Updates that each page receives.
    updates_per_second: f64,
    cores: f64,
    peak_megabytes: f64,
}

/// Measures with `images` finished before; the pages are open for `watched`.
pub fn run(images: usize, watched: Duration) -> Result<Dashboard> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start threads")?;
    runtime.block_on(measure(images, watched))
}

async fn measure(images: usize, watched: Duration) -> Result<Dashboard> {
    let dir = tempfile::tempdir().context("cannot create a folder")?;
    let later = (watched.as_secs_f64() * RATE) as usize + 1;
    let classes = write_files(dir.path(), images + later)?;
    let home = Store::open(&dir.path().join("home").to_string_lossy()).await?;
    copy_model(&home).await?;
    let queue = Queue::open("embedded:").await?;
    let config = Config {
        home: home.clone(),
        queue: queue.clone(),
        allowed: Allowed::default(),
        window: 1000,
        version: "bench".into(),
        worker_hour_price: Some(2.0),
        notify: Notify::nobody(),
        keep_runs: None,
    };
    let (service, handle) = Service::new(config);
    let stop = CancellationToken::new();
    let runtime = tokio::runtime::Handle::current();
    let stopped = stop.clone();
    let serving = tokio::task::spawn_blocking(move || runtime.block_on(service.run(stopped)));
    let submitted = Instant::now();
    until("the coordinator does not lead", async || Ok(handle.leads().then_some(()))).await?;
    let request = RunRequest::new("large", &dir.path().join("data").to_string_lossy(), "fashion32");
    let request = RunRequest { annotations: "none".into(), profile: Some("fast".into()), ..request };
    handle.submit(request).await.map_err(|r| anyhow::anyhow!("{}", r.message()))?;
    let planning_seconds = submitted.elapsed().as_secs_f64();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let gate = Gate::new(None, None, b"bench");
    let site = tokio::spawn(coordinator::http::serve(listener, handle.clone(), gate, OtherServices::default()));

    let begun = Instant::now();
    work(&queue, images, None).await?;
    until("the images are not finished", async || {
        let status = handle.run("large".into()).await.ok();
        Ok(status.filter(|status| status.succeeded + status.failed >= images))
    })
    .await?;
    let events_seconds = begun.elapsed().as_secs_f64();
    let succeeded = ImageQuery { state: Some(ImageState::Succeeded), ..ImageQuery::default() };
    let key = handle.look("large".into(), move |outcomes| outcomes.page(&succeeded).images[0].image.clone()).await;
    let key = key.map_err(|r| anyhow::anyhow!("{}", r.message()))?.1;
    store_result(&Runs::Home(home).of("large")?, &key).await?;

    let paths = measure_paths(address, &classes[0], &key).await?;
    let open = measure_open(address, &queue, later - 1).await?;
    site.abort();
    stop.cancel();
    serving.await??;
    let classes = classes.len();
    Ok(Dashboard { images: images + later, finished: images, classes, planning_seconds, events_seconds, paths, open })
}

/// A data set of empty images in class folders; names of the folders.
fn write_files(dir: &Path, images: usize) -> Result<Vec<String>> {
    let mut classes = classes()?;
    classes.retain(|class| !class.contains('/'));
    for i in 0..images {
        let folder = dir.join("data").join(&classes[i % classes.len()]);
        if i < classes.len() {
            std::fs::create_dir_all(&folder)?;
        }
        std::fs::write(folder.join(format!("{i:08}.jpg")), "")?;
    }
    Ok(classes)
}

/// `class` and `key` are those of an image with a result.
async fn measure_paths(address: SocketAddr, class: &str, key: &str) -> Result<Vec<PathFigures>> {
    let mut figures = Vec::new();
    for path in [
        "/".to_owned(),
        "/runs/large".into(),
        "/runs/large/images?sort=loss&descending=true".into(),
        format!("/v1/runs/large/images?class={class}&sort=lpips&offset=5000"),
        "/runs/large/failures".into(),
        "/failures".into(),
        "/fleet".into(),
        format!("/v1/runs/large/images?image={}", key.rsplit('/').next().unwrap_or_default()),
        format!("/runs/large/image?key={}", key.replace(' ', "%20")),
    ] {
        let mut times = Vec::new();
        for _ in 0..REQUESTS {
            times.push(first_byte(address, &path).await?);
        }
        times.sort();
        let milliseconds = |i: usize| times[i].as_secs_f64() * 1e3;
        let (median_ms, largest_ms) = (milliseconds(REQUESTS / 2), milliseconds(REQUESTS - 1));
        let path = path.split("&offset").next().unwrap_or_default().to_owned();
        figures.push(PathFigures { path, median_ms, largest_ms });
    }
    Ok(figures)
}

/// The cost of open pages while `images` finish.
async fn measure_open(address: SocketAddr, queue: &Queue, images: usize) -> Result<OpenPages> {
    let (ticks, before) = (Arc::new(AtomicUsize::new(0)), cpu_seconds(std::process::id())?);
    let opened = Instant::now();
    let pages: Vec<_> = (0..PAGES).map(|i| tokio::spawn(page(address, i, ticks.clone()))).collect();
    work(queue, images, Some(RATE)).await?;
    let (seconds, used) = (opened.elapsed().as_secs_f64(), cpu_seconds(std::process::id())? - before);
    pages.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(OpenPages {
        seconds,
        updates_per_second: ticks.load(Ordering::Relaxed) as f64 / PAGES as f64 / seconds,
        cores: used / seconds,
        peak_megabytes: peak_megabytes(std::process::id())?,
    })
}

impl Record for Dashboard {
    const NAME: &'static str = "dashboard-speed";
    const PAGE: &'static str = include_str!("../pages/dashboard-speed.md");

    fn derived(&self) -> Value {
        json!({ "pages": PAGES, "requests": REQUESTS, "refresh": REFRESH.as_secs(), "rate": RATE })
    }
}

/// Stores the objects that the page of an image reads: a record of 18 seeds, and their curves.
async fn store_result(results: &Store, image: &str) -> Result<()> {
    let curve = |steps: u32| (0..steps).map(|step| 4.0 / f64::from(step + 1)).collect::<Vec<_>>();
    let history = json!({ "transform": curve(30), "latent": curve(30), "descent": vec![curve(300); 18] });
    results.put(&keys::item(image, ATTEMPT, Item::History), history.to_string()).await?;
    Ok(results.put(&keys::marker(image, Marker::Result), record(image, 0)).await?)
}

/// Finishes `n` jobs, `rate` per second if it is given.
async fn work(queue: &Queue, n: usize, rate: Option<f64>) -> Result<()> {
    let (mut jobs, mut rng) = (queue.consume(Channel::Jobs, 100).await?, ChaCha8Rng::seed_from_u64(n as u64));
    let started = Instant::now();
    for i in 0..n {
        if let Some(rate) = rate {
            tokio::time::sleep((Duration::from_secs_f64(i as f64 / rate)).saturating_sub(started.elapsed())).await;
        }
        let delivery = jobs.next().await?.context("the queue was closed")?;
        let job = Job::decode(delivery.payload())?;
        let what = if rng.random_bool(0.02) {
            What::Failed { reason: "diverged".into(), message: "made by the benchmark".into() }
        } else {
            let loss = rng.random_range(0.2..4.0);
            let stage_seconds = [(Stage::Fetch, 0.2), (Stage::TransformSearch, 3.0), (Stage::LatentSearch, 9.0)];
            let stage_seconds = stage_seconds.map(|(stage, seconds)| (stage.as_str().to_owned(), seconds)).into();
            What::Succeeded { loss, seconds: 12.2, lane_steps: 28_800, l1: loss / 4.0, lpips: loss / 8.0, stage_seconds }
        };
        queue.publish(Channel::Events, Event::about(&job, "simulated", what).encode()).await?;
        delivery.ack().await?;
    }
    Ok(())
}

/// An open page: it listens to events, and loads itself every [`REFRESH`].
async fn page(address: SocketAddr, i: usize, ticks: Arc<AtomicUsize>) -> Result<()> {
    tokio::spawn(async move {
        tokio::time::sleep(REFRESH.mul_f64(i as f64 / PAGES as f64)).await;
        loop {
            let _ = first_byte(address, "/runs/large").await;
            tokio::time::sleep(REFRESH).await;
        }
    });
    let mut socket = request_page(address, "/ui/live").await?;
    let mut bytes = vec![0; 64 << 10];
    loop {
        let n = socket.read(&mut bytes).await?;
        ensure!(n > 0, "the stream ended");
        let told = bytes[..n].windows(11).filter(|w| w == b"event: tick").count();
        ticks.fetch_add(told, Ordering::Relaxed);
    }
}

async fn request_page(address: SocketAddr, path: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAccept: text/html\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    Ok(socket)
}

/// The time to the first byte of an answer; the rest is read, too.
async fn first_byte(address: SocketAddr, path: &str) -> Result<Duration> {
    let requested = Instant::now();
    let mut socket = request_page(address, path).await?;
    let mut first = [0; 15];
    socket.read_exact(&mut first).await?;
    let took = requested.elapsed();
    ensure!(first.ends_with(b"200 OK"), "the answer to {path} is {}", String::from_utf8_lossy(&first));
    socket.read_to_end(&mut Vec::new()).await?;
    Ok(took)
}
