//! Plans a run over a large data set and publishes all of its jobs. `make bench-coordinator` measures it in a process of its own. The
//! class folders are ImageNet's.
//!
//! The driver is the real one, with its window and its confirmations. The results go to the ledger directly, and not through the queue.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coordinator::drive::{Driver, WINDOW};
use coordinator::fleet::Fleet;
use coordinator::plan::RunSpec;
use coordinator::prepare::see;
use coordinator::simulate::{peak, succeeded};
use coordinator::tally::Tally;
use proto::{Control, Event, ModelRef, Params, RunRecord};
use queue::Queue;
use serde_json::json;
use store::{Allowed, Runs, Store};

const CLASSES: u32 = 1000;
const TELL_EVERY: Duration = Duration::from_secs(10);

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dataset, results, queue] = &arguments[..] else { anyhow::bail!("publish DATASET RESULTS QUEUE") };
    let (spec, dataset, results) = (spec(dataset), Store::open(dataset).await?, Store::open(results).await?);
    let run = spec.record.name.clone();
    let started = Instant::now();
    let (plan, _) = see(&spec, None, true, &dataset, &Allowed::default(), &results).await?.plan(&spec, &results).await?;
    let (images, planning) = (plan.images.len(), started.elapsed().as_secs_f64());
    eprintln!("planned {images} images after {planning:.1} s, {:.0} MB at most", peak_megabytes()?);

    let queue = Queue::open(queue).await?;
    let mut driver = Driver::new(queue.clone(), Runs::One(results), WINDOW).await?;
    driver.fleet.add(spec, plan, Control::default(), Tally::default());
    let (started, mut told) = (Instant::now(), Instant::now());
    while !driver.fleet.settled(&run) {
        driver.top_up();
        let happening = driver.wait().await?;
        driver.take(happening)?;
        let now = driver.now();
        finish_all(&mut driver.fleet, now);
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            eprintln!("{} published, {:.0} MB at most", driver.fleet.counted(&run), peak_megabytes()?);
        }
    }
    let publishing = started.elapsed().as_secs_f64();
    ensure!(driver.fleet.counted(&run) == images, "not every image counts");
    drop(driver);
    queue.close().await;
    let peak_megabytes = peak_megabytes()?;
    println!("{}", json!({ "images": images, "planning": planning, "publishing": publishing, "peak_megabytes": peak_megabytes }));
    Ok(())
}

/// Gives the ledger a result of every published job.
fn finish_all(fleet: &mut Fleet, now: f64) {
    for (job, class) in fleet.silent(f64::INFINITY).into_iter().zip((0..CLASSES).cycle()) {
        let (worker, what) = ("bench".into(), succeeded(20.0));
        fleet.apply(&Event { job: job.job, run: job.run, image: job.image, class, generation: 0, worker, what }, now);
    }
}

fn peak_megabytes() -> Result<f64> {
    Ok(peak().context("this system does not report the memory of a process")? as f64 / 1e6)
}

fn spec(dataset: &str) -> RunSpec {
    let model = ModelRef { name: "biggan-deep-256".into(), digest: "0".repeat(64), resolution: 256 };
    let record = RunRecord { annotations: "none".into(), ..RunRecord::new("imagenet", dataset.into(), model, Params::paper()) };
    let classes = (0..CLASSES).map(|class| format!("n{class:08}")).collect();
    RunSpec { record, classes, super_classes: vec![], categories: vec![] }
}
