//! `basin plan`: hours, cost, storage and workers of a run, from measured speed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use coordinator::plan::{RunSpec, plan};
use futures_util::TryStreamExt;
use proto::keys::{Marker, marker_at};
use proto::{ModelManifest, ModelRef, Params, ResultRecord};
use results::format::bytes;
use results::run::{Markers, read_each};
use results::seeds::Seeds;
use results::summary::Summary;
use store::{Allowed, Store};

use crate::capacity::{Estimate, Question};
use crate::project::described;
use crate::run_options::RunOptions;

/// Results whose sizes are averaged.
const SIZED: usize = 50;

#[derive(clap::Args)]
pub struct PlanArgs {
    /// Folder or bucket (s3://bucket/prefix) of the images.
    dataset: String,
    /// Model folder.
    #[arg(long, env = "BASIN_MODEL")]
    model: PathBuf,
    #[command(flatten)]
    options: RunOptions,
    /// Take speed and size of results from this finished run, made with the same model on the same kind of worker. Folder or bucket.
    #[arg(long, value_name = "RESULTS", required_unless_present = "lane_steps_per_second")]
    measured: Option<String>,
    /// Lane-steps a second of one worker, instead of --measured.
    #[arg(long, value_name = "N", conflicts_with = "measured")]
    lane_steps_per_second: Option<f64>,
    /// Number of workers (one for each GPU, or for each group of GPUs that share an image's seeds).
    #[arg(long, value_name = "N", required_unless_present = "deadline", value_parser = clap::value_parser!(u64).range(1..))]
    workers: Option<u64>,
    /// Find the number of workers that finishes the run within this many hours.
    #[arg(long, value_name = "HOURS", conflicts_with = "workers")]
    deadline: Option<f64>,
    /// Price of a worker's hour in dollars. Default: no costs are printed.
    #[arg(long, value_name = "DOLLARS")]
    price: Option<f64>,
    /// Images that a worker projects at one time.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch_images: u32,
    /// Seconds from the start of a worker until it computes.
    #[arg(long, default_value_t = 180.0, value_name = "SECONDS")]
    startup: f64,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write values for the Helm chart to this file.
    #[arg(long, value_name = "FILE")]
    values: Option<PathBuf>,
}

/// Speed and size of results, and their source.
struct Measured {
    rate: f64,
    bytes_per_image: Option<f64>,
    from: String,
}

pub async fn run(args: PlanArgs) -> anyhow::Result<ExitCode> {
    let positive = |what: &str, value: Option<f64>| match value {
        Some(v) if !(v.is_finite() && v > 0.0) => bail!("{what} is {v}: expected a number > 0"),
        _ => Ok(()),
    };
    positive("--deadline", args.deadline)?;
    positive("--lane-steps-per-second", args.lane_steps_per_second)?;
    positive("--price", args.price)?;
    if !(args.startup.is_finite() && args.startup >= 0.0) {
        bail!("--startup is {}: expected a number ≥ 0", args.startup);
    }
    let params = args.options.params()?;
    let (manifest, reference) = described(&args.model)?;
    if let Some(problem) = manifest.lacks(&params) {
        bail!(problem);
    }
    let lane_steps_per_image = engine::lane_steps(&params);
    if lane_steps_per_image == 0 {
        bail!("the parameters search nothing (latent.method is start): there is nothing to plan");
    }
    let (images, failures, job_bytes) = count(&args, params, &manifest, reference.clone()).await?;
    let measured = match (&args.measured, args.lane_steps_per_second) {
        (Some(results), _) => measure(results, &reference.digest).await?,
        (None, Some(rate)) => Measured { rate, bytes_per_image: None, from: "as given".into() },
        (None, None) => bail!("the speed of a worker is missing: give --measured or --lane-steps-per-second"),
    };
    let question = Question {
        images,
        lane_steps_per_image,
        rate: measured.rate,
        batch_images: args.batch_images,
        bytes_per_image: measured.bytes_per_image,
        job_bytes,
        // Set below, once the number of workers is known.
        window: 0,
        startup: args.startup,
        price: args.price,
    };
    let estimate = match (args.workers, args.deadline) {
        (Some(workers), _) => question.with(workers),
        (None, Some(hours)) => question.within(hours).map_err(|fastest| {
            anyhow::anyhow!("no number of workers finishes within {hours} hours: one batch on each takes {fastest:.2} hours; give a later --deadline or a smaller --batch-images")
        })?,
        (None, None) => bail!("give --workers or --deadline"),
    };
    // Four jobs for each image that the workers can hold; the coordinator's default is enough for a few workers.
    let window = (4 * estimate.workers * u64::from(args.batch_images)).max(1000);
    let estimate = Question { window, ..question.clone() }.with(estimate.workers);
    if args.json {
        let json = serde_json::json!({ "question": question, "estimate": estimate, "window": window, "unusable": failures });
        say!("{}", serde_json::to_string_pretty(&json)?);
    } else {
        show(&args, &question, &estimate, &measured, failures, window);
    }
    if let Some(file) = &args.values {
        std::fs::write(file, values(&args, &question, &estimate, &measured, window))
            .with_context(|| format!("cannot write {}", file.display()))?;
        note!("values for the chart: {}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// How many images can be projected, how many cannot, and the bytes of one job.
async fn count(args: &PlanArgs, params: Params, manifest: &ModelManifest, model: ModelRef) -> anyhow::Result<(u64, usize, u64)> {
    let store = Store::open(&args.dataset).await.context("cannot open the data set")?;
    let read = dataset::read(&store, &args.options.annotations, &params.object, &Allowed::default()).await?;
    let spec = RunSpec::new(args.options.record("plan", store.url(), model, params), manifest);
    let plan = plan(read.entries, &spec, &Default::default(), &Seeds::default());
    let images = args.options.limit().map_or(plan.images.len(), |limit| limit.min(plan.images.len()));
    let Some(first) = plan.images.first() else {
        bail!("none of the {} images of {} can be projected", plan.failures.len(), args.dataset);
    };
    Ok((images as u64, plan.failures.len(), spec.job(first).encode().len() as u64))
}

async fn measure(results: &str, digest: &str) -> anyhow::Result<Measured> {
    let store = Store::open(results).await.context("cannot open --measured")?;
    let bytes = store
        .get(proto::keys::SUMMARY)
        .await
        .with_context(|| format!("{results} has no summary.json: --measured needs a finished run"))?;
    let summary: Summary = serde_json::from_slice(&bytes).with_context(|| format!("summary.json of {results} is damaged"))?;
    if summary.lane_steps == 0 || summary.seconds <= 0.0 {
        bail!("{results} has no results: --measured needs a run with measured images");
    }
    if summary.run.model.digest != digest {
        note!("{results} was made with another model, whose speed may differ");
    }
    let mut places = Markers::list(&store).await?.results;
    places.truncate(SIZED);
    let keys = places.iter().map(|place| marker_at(place, Marker::Result)).collect();
    let records: Vec<(ResultRecord, _)> = read_each(&store, keys).try_collect().await?;
    let sizes: Vec<u64> = records.iter().map(|(record, _)| record.objects.iter().map(|o| o.size).sum()).collect();
    let mean = |sizes: &[u64]| sizes.iter().sum::<u64>() as f64 / sizes.len() as f64;
    Ok(Measured {
        rate: summary.lane_steps as f64 / summary.seconds,
        bytes_per_image: (!sizes.is_empty()).then(|| mean(&sizes)),
        from: format!("{results}: {} images", summary.images.succeeded),
    })
}

fn show(args: &PlanArgs, question: &Question, estimate: &Estimate, measured: &Measured, failures: usize, window: u64) {
    let cannot = if failures > 0 { format!(" ({failures} more cannot be projected)") } else { String::new() };
    say!("images        {} of {}{cannot}", question.images, args.dataset);
    let each = question.lane_steps_per_image;
    say!("work          {each} lane-steps an image, {:.3e} in all", question.images as f64 * each as f64);
    say!(
        "speed         {:.1} lane-steps/s a worker ({}): {:.1} images an hour",
        measured.rate,
        measured.from,
        estimate.images_per_hour
    );
    let idle = args
        .workers
        .filter(|asked| *asked > estimate.workers)
        .map(|asked| format!(" ({} would be idle)", asked - estimate.workers));
    say!("workers       {}{}", estimate.workers, idle.unwrap_or_default());
    say!("time          {:.2} hours", estimate.hours);
    let cost = estimate.cost.map(|cost| format!(", {cost:.2} dollars")).unwrap_or_default();
    say!("worker-hours  {:.2}{cost}", estimate.worker_hours);
    match estimate.storage {
        Some(storage) => say!("storage       {}", bytes(storage)),
        None => say!("storage       unknown without --measured"),
    }
    say!("requests      {:.2e} that write or list, {:.2e} that read", estimate.requests.0, estimate.requests.1);
    say!("queue         {} jobs at a time, {}", estimate.queue_jobs, bytes(estimate.queue_bytes as f64));
    say!("coordinator   {} for the run's images; --window {window}", bytes(estimate.coordinator_bytes));
}

fn values(args: &PlanArgs, question: &Question, estimate: &Estimate, measured: &Measured, window: u64) -> String {
    let price = args.price.map(|price| format!("  workerHourPrice: {price}\n")).unwrap_or_default();
    // KEDA starts one worker per `per_worker` images that are left; the chart requires at least two batches for each.
    let each = (question.images / estimate.workers).clamp(1, u64::from(u32::MAX));
    let least = 2 * u64::from(args.batch_images);
    let per_worker = each.max(least);
    let fewer = if each < least {
        format!(
            "# {each} images a worker are fewer than the two batches that it holds: KEDA will start fewer workers; choose a smaller batch.\n"
        )
    } else {
        String::new()
    };
    let model = Path::new(&args.model).file_name().unwrap_or_default().display();
    format!(
        "# By `basin plan`: {} images of {}, model {model}, {} lane-steps each, {:.1} lane-steps/s a worker\n\
         # ({}): {:.2} hours, {:.1} worker-hours.\n{fewer}\
         coordinator:\n  window: {window}\n{price}workers:\n  maxReplicas: {}\n  batchImages: {}\n  trigger: {{imagesPerWorker: {per_worker}}}\n",
        question.images,
        args.dataset,
        question.lane_steps_per_image,
        measured.rate,
        measured.from,
        estimate.hours,
        estimate.worker_hours,
        estimate.workers,
        args.batch_images
    )
}
