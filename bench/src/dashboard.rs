//! The dashboard of a large run: how long each page takes, and what twenty that are open cost. One process is coordinator, workers that
//! compute nothing, and browsers; what is measured is all of it together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use client::api::RunRequest;
use client::api::{ImageQuery, ImageState};
use coordinator::auth::Gate;
use coordinator::dashboard::Elsewhere;
use coordinator::service::{Config, Handle, Service};
use proto::keys::{Item, Marker};
use proto::{Event, Job, Params, What, keys};
use queue::{Channel, Queue};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use store::{Runs, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::services::{cpu_seconds, peak_megabytes};

/// Open pages.
const PAGES: usize = 20;
/// A page fetches its larger parts again so often.
const REFRESH: Duration = Duration::from_secs(5);
/// Images settled each second while the pages are open.
const RATE: f64 = 50.0;
/// Askings of each page, one after another.
const ASKED: usize = 20;

/// Measures; the table. `images` are settled before, and `watched` is how long the pages are open.
pub fn run(images: usize, watched: Duration) -> Result<String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start threads")?;
    runtime.block_on(measure(images, watched))
}

async fn measure(images: usize, watched: Duration) -> Result<String> {
    let dir = tempfile::tempdir().context("cannot create a folder")?;
    let later = (watched.as_secs_f64() * RATE) as usize + 1;
    let classes = proto::ModelManifest::parse(&std::fs::read("models/fashion32/model.json")?)?.0.classes;
    // The folders' names.
    let classes: Vec<String> = classes.into_iter().filter(|class| !class.contains('/')).collect();
    for i in 0..images + later {
        let folder = dir.path().join("data").join(&classes[i % classes.len()]);
        if i < classes.len() {
            std::fs::create_dir_all(&folder)?;
        }
        std::fs::write(folder.join(format!("{i:08}.jpg")), "")?;
    }
    let model = dir.path().join("home/models/fashion32");
    std::fs::create_dir_all(&model)?;
    std::fs::copy("models/fashion32/model.json", model.join("model.json"))?;

    let home = Store::open(&dir.path().join("home").to_string_lossy()).await?;
    let queue = Queue::open("embedded:").await?;
    let config =
        Config { home: home.clone(), queue: queue.clone(), window: 1000, version: "bench".into(), worker_hour_price: Some(2.0) };
    let (service, handle) = Service::new(config);
    let (stop, stopped) = watch::channel(false);
    let runtime = tokio::runtime::Handle::current();
    let serving = tokio::task::spawn_blocking(move || runtime.block_on(service.run(stopped)));
    let submitted = Instant::now();
    until(|| async { handle.leads() }).await?;
    handle.submit(request(&dir.path().join("data").to_string_lossy())).await.map_err(|r| anyhow::anyhow!("{}", r.message()))?;
    let planned = submitted.elapsed();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let site =
        tokio::spawn(coordinator::api::serve(listener, handle.clone(), Gate::new(None, None, b"bench"), Elsewhere::default()));

    let settled = Instant::now();
    work(&queue, images, None).await?;
    until(|| async { settled_images(&handle).await >= images }).await?;
    let settled = settled.elapsed();
    let succeeded = ImageQuery { state: Some(ImageState::Succeeded), ..ImageQuery::default() };
    let key = handle.look("large".into(), move |outcomes| outcomes.page(&succeeded).images[0].image.clone()).await;
    let key = key.map_err(|r| anyhow::anyhow!("{}", r.message()))?.1;
    store_result(&Runs::Home(home).of("large")?, &key).await?;

    let mut rows = String::new();
    let class = &classes[0];
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
        for _ in 0..ASKED {
            times.push(first_byte(address, &path).await?);
        }
        times.sort();
        let (median, worst) = (times[ASKED / 2].as_secs_f64() * 1e3, times[ASKED - 1].as_secs_f64() * 1e3);
        rows += &format!("| `{}` | {median:.1} | {worst:.1} |\n", path.split("&offset").next().unwrap_or_default());
    }

    let (ticks, before) = (Arc::new(AtomicUsize::new(0)), cpu_seconds(std::process::id())?);
    let opened = Instant::now();
    let pages: Vec<_> = (0..PAGES).map(|i| tokio::spawn(page(address, i, ticks.clone()))).collect();
    work(&queue, later - 1, Some(RATE)).await?;
    let (seconds, used) = (opened.elapsed().as_secs_f64(), cpu_seconds(std::process::id())? - before);
    pages.iter().for_each(tokio::task::JoinHandle::abort);
    let rate = ticks.load(Ordering::Relaxed) as f64 / PAGES as f64 / seconds;
    let (share, memory) = (used / seconds, peak_megabytes(std::process::id())?);
    site.abort();
    stop.send_replace(true);
    serving.await??;
    Ok(format!(
        "# The dashboard of a large run\n\nWritten by `make bench-dashboard` on {cores} cores. One process is coordinator, workers that compute \
         nothing, and browsers that read sockets; the figures are of all of it together. The run has {all} images in {n} classes; {images} are \
         settled, one in fifty failed.\n\n\
         Planning took {planned:.1} s; {images} events were taken in in {settled:.1} s ({each:.0} each second, with their jobs).\n\n\
         | page, with {images} settled images | first byte, median of {ASKED}, ms | largest, ms |\n|---|---|---|\n{rows}\n\
         {PAGES} pages open for {seconds:.0} s, each fetching its larger parts every {refresh} s, while {RATE} images a second are settled: \
         **{rate:.1} updates a second** to each page, **{share:.2} cores**, {memory:.0} MB at most.\n",
        cores = std::thread::available_parallelism().map_or(1, |n| n.get()),
        all = images + later,
        n = classes.len(),
        planned = planned.as_secs_f64(),
        settled = settled.as_secs_f64(),
        each = images as f64 / settled.as_secs_f64(),
        refresh = REFRESH.as_secs(),
    ))
}

fn request(dataset: &str) -> RunRequest {
    RunRequest {
        name: "large".into(),
        dataset: dataset.into(),
        annotations: "none".into(),
        model: "fashion32".into(),
        profile: Some("fast".into()),
        params: None,
        seed: 0,
        limit: None,
        priority: 0,
        per_minute: None,
    }
}

/// What the page of an image reads: a record of 18 seeds, and their curves.
async fn store_result(results: &Store, image: &str) -> Result<()> {
    const ATTEMPT: &str = "0123456789abcdef";
    let (seed, params) = (json!({ "loss": 1.0, "inverted_loss": 1.0, "l1": 0.5, "l2": 0.25, "lpips": 0.125 }), Params::paper());
    let record = json!({
        "format": 1, "job": ATTEMPT, "image": image, "identity": "1", "class": 0, "class_name": "Bag", "bbox": null,
        "model": { "name": "fashion32", "digest": ATTEMPT, "resolution": 32 }, "params": params, "seed": 0, "version": "bench",
        "transform": null, "best": 0, "seeds": vec![seed; 18], "lane_steps": 28_800, "seconds": 12.0, "attempt": ATTEMPT, "objects": [],
    });
    let curve = |steps: u32| (0..steps).map(|step| 4.0 / f64::from(step + 1)).collect::<Vec<_>>();
    let history = json!({ "transform": curve(30), "latent": curve(30), "descent": vec![curve(300); 18] });
    results.put(&keys::item(image, ATTEMPT, Item::History), history.to_string()).await?;
    Ok(results.put(&keys::marker(image, Marker::Result), record.to_string()).await?)
}

async fn settled_images(handle: &Handle) -> usize {
    handle.run("large".into()).await.map_or(0, |status| status.succeeded + status.failed)
}

async fn until<F: Future<Output = bool>>(holds: impl Fn() -> F) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(600);
    while !holds().await {
        ensure!(Instant::now() < end, "the coordinator does not get there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Settles `n` jobs; `rate`: so many each second.
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
            What::Failed { reason: "diverged".into(), message: "as the benchmark wants it".into() }
        } else {
            let loss = rng.random_range(0.2..4.0);
            let stage_seconds = [("fetch", 0.2), ("transform_search", 3.0), ("latent_search", 9.0)];
            let stage_seconds = stage_seconds.map(|(stage, seconds)| (stage.to_owned(), seconds)).into();
            What::Succeeded { loss, seconds: 12.2, lane_steps: 28_800, l1: loss / 4.0, lpips: loss / 8.0, stage_seconds }
        };
        queue.publish(Channel::Events, Event::about(&job, "simulated", what).encode()).await?;
        delivery.ack().await?;
    }
    Ok(())
}

/// As a page: it listens, and fetches itself now and then.
async fn page(address: SocketAddr, i: usize, ticks: Arc<AtomicUsize>) -> Result<()> {
    tokio::spawn(async move {
        tokio::time::sleep(REFRESH.mul_f64(i as f64 / PAGES as f64)).await;
        loop {
            let _ = first_byte(address, "/runs/large").await;
            tokio::time::sleep(REFRESH).await;
        }
    });
    let mut socket = ask(address, "/ui/live").await?;
    let mut bytes = vec![0; 64 << 10];
    loop {
        let n = socket.read(&mut bytes).await?;
        ensure!(n > 0, "the stream ended");
        let told = bytes[..n].windows(11).filter(|w| w == b"event: tick").count();
        ticks.fetch_add(told, Ordering::Relaxed);
    }
}

async fn ask(address: SocketAddr, path: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAccept: text/html\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    Ok(socket)
}

/// The time to the first byte of an answer that is then read to its end.
async fn first_byte(address: SocketAddr, path: &str) -> Result<Duration> {
    let asked = Instant::now();
    let mut socket = ask(address, path).await?;
    let mut first = [0; 15];
    socket.read_exact(&mut first).await?;
    let took = asked.elapsed();
    ensure!(first.ends_with(b"200 OK"), "{path} is answered with {}", String::from_utf8_lossy(&first));
    socket.read_to_end(&mut Vec::new()).await?;
    Ok(took)
}
