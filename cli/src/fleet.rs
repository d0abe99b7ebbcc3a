//! What a person says to a fleet: through the coordinator's API, or to its home directly.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use client::api::{Change, RedriveRequest, RunRequest, SAME_SETTINGS};
use futures_util::{StreamExt, stream};
use proto::{ModelManifest, RunState, RunningSha256, keys};
use results::run::ABANDONED;
use results::webdataset::{self, Cut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use store::{ErrorKind, Object, Store, Upload};

use crate::asked::Asked;
use crate::watch::{duration, short};

/// Objects that are copied at a time, of at most so many bytes; larger ones go piece by piece.
const COPIES: usize = 16;
const PIECE: u64 = 8 << 20;
/// How often the coordinator is asked by who watches or waits, and how long an answer may take.
pub const EVERY: Duration = Duration::from_secs(1);
pub const LIMIT: Duration = Duration::from_secs(10);
/// Who waits bears a silence of this length.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where the coordinator is.
#[derive(Clone, clap::Args)]
pub struct Coordinator {
    /// URL of the coordinator.
    #[arg(long, env = "BASIN_COORDINATOR_URL", value_name = "URL", default_value = "http://127.0.0.1:8470")]
    pub coordinator: String,
    /// File with the coordinator's token. BASIN_TOKEN holds the token itself.
    #[arg(long, env = "BASIN_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Options of `basin submit`.
#[derive(clap::Args)]
pub struct Submit {
    /// Folder or bucket of the images, as the workers see it.
    dataset: String,
    /// Name of the run: letters, digits, `-`, `_`, `.`.
    #[arg(long)]
    name: String,
    /// Name of a model in the fleet's home (see `basin push`).
    #[arg(long)]
    model: String,
    #[command(flatten)]
    asked: Asked,
    /// Runs of higher priority come first.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    priority: i32,
    /// Start at most this many jobs each minute.
    #[arg(long, value_name = "N", value_parser = rate)]
    per_minute: Option<f64>,
    /// Wait until the run is finished, showing how it goes.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    coordinator: Coordinator,
}

/// Options of `basin runs`.
#[derive(clap::Args)]
pub struct Runs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    coordinator: Coordinator,
}

#[derive(clap::Subcommand)]
enum What {
    /// List all runs.
    List,
    /// Show a run, with its errors by class.
    Show { run: String },
    /// Wait until a run is finished, showing how it goes. A coordinator that goes away is waited for, five minutes at most.
    Wait { run: String },
    /// Hand out no more jobs; workers save and give back what they hold.
    Pause { run: String },
    /// Go on with a paused run.
    Resume { run: String },
    /// As `pause`, for good.
    Cancel { run: String },
    /// Change the priority.
    Priority {
        run: String,
        #[arg(allow_hyphen_values = true)]
        priority: i32,
    },
    /// Start at most so many jobs each minute; 0 lifts the limit.
    Rate {
        run: String,
        #[arg(value_parser = rate)]
        per_minute: f64,
    },
    /// Try failures of a finished run again: a short form of `basin redrive`.
    Retry {
        run: String,
        /// Only of this class (may be given several times).
        #[arg(long)]
        class: Vec<String>,
        /// Only with this reason, such as `bad_image` (may be given several times).
        #[arg(long)]
        reason: Vec<String>,
    },
}

/// Options of `basin redrive`.
#[derive(clap::Args)]
pub struct Redrive {
    /// The run, which must be finished.
    run: String,
    /// Conditions joined by commas, all of which an image must meet (given several times: one of them). Fields: class, reason,
    /// image (in which `*` stands for anything, and `\*` for a star), loss, inverted_loss, l1, l2, lpips. Operators: = != < <= > >=.
    /// A value with a comma stands in double quotes, as JSON has them. Left out: all failures.
    #[arg(long = "where", value_name = "CONDITIONS")]
    wheres: Vec<String>,
    /// Project them with another seed: results too, which else would come out the same. They are deleted first.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    #[command(flatten)]
    coordinator: Coordinator,
}

/// Options of `basin export`.
#[derive(clap::Args)]
pub struct Export {
    /// Folder or bucket of the run (in a fleet's home: `<home>/runs/<run>`).
    run: String,
    /// Folder or bucket for the export, which holds nothing else.
    #[arg(long, value_name = "URL")]
    out: String,
    /// The form.
    #[arg(long, value_enum, default_value_t = Format::Webdataset)]
    format: Format,
    /// Images in a shard, at most. A shard has 256 MiB at most in any case.
    #[arg(long, value_name = "N")]
    shard_images: Option<NonZeroUsize>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// Tar files with six members for each image, two more after fine-tuning, one more for a mask.
    Webdataset,
}

/// Options of `basin push`.
#[derive(clap::Args)]
pub struct Push {
    /// Model folder.
    model: PathBuf,
    /// The fleet's home.
    #[arg(long, env = "BASIN_HOME_URL", value_name = "URL")]
    home: String,
}

/// Options of `basin copy`.
#[derive(clap::Args)]
pub struct Copy {
    /// Folder or bucket to read.
    from: String,
    /// Folder or bucket to write.
    to: String,
}

/// Options of `basin verify`.
#[derive(clap::Args)]
pub struct Verify {
    /// Folder or bucket of the run (in a fleet's home: `<home>/runs/<run>`).
    out: String,
    /// Read every object and compare its digest, instead of its size only; and every record with the run's tables.
    #[arg(long)]
    deep: bool,
}

/// Options of `basin doctor`.
#[derive(clap::Args)]
pub struct Doctor {
    /// Folder or bucket.
    store: String,
}

/// Options of `basin simulate`.
#[derive(clap::Args)]
pub struct Simulate {
    /// Images of the run.
    #[arg(long, default_value_t = 1_281_167)]
    images: usize,
    /// Images that all workers hold at a time.
    #[arg(long, default_value_t = 1000)]
    slots: usize,
    /// Seconds that one image takes in its slot.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Equal parts into which images and workers are cut, each with a coordinator and a queue of its own; one is simulated.
    #[arg(long, default_value_t = 1, value_name = "N")]
    partitions: usize,
}

/// Dollars for a million requests that write or list, and that read (S3 standard, us-east-1).
const REQUEST_PRICE: (f64, f64) = (5.0, 0.4);

/// `basin simulate`.
pub fn simulate(args: &Simulate) -> anyhow::Result<ExitCode> {
    use coordinator::simulate::{REQUESTS, Simulation, simulate};
    if args.images == 0 || args.slots == 0 || args.partitions == 0 || !(args.seconds.is_finite() && args.seconds > 0.0) {
        bail!("images, slots, seconds and partitions must be above 0");
    }
    let (part, slots) = (args.images.div_ceil(args.partitions), args.slots.div_ceil(args.partitions));
    let m = simulate(&Simulation { images: part, slots, seconds: args.seconds });
    let (images, run) = (part as f64, m.run_seconds);
    let cpu = (m.planning + m.driving).as_secs_f64();
    if args.partitions > 1 {
        say!("one of {} partitions of {} images, {} at a time:", args.partitions, args.images, args.slots);
    }
    say!("{part} images, {slots} at a time, {} s each", args.seconds);
    say!("the run takes             {:.1} h, {:.1} images/s", run / 3600.0, images / run);
    say!("planning                  {:.2} s", m.planning.as_secs_f64());
    let share = 100.0 * cpu / run;
    say!(
        "handing out, taking in    {:.2} s on one thread: {share:.2} % of it, {:.0} images/s at most",
        m.driving.as_secs_f64(),
        images / m.driving.as_secs_f64()
    );
    if let Some(peak) = m.peak {
        say!("peak memory               {:.0} MB, {:.0} bytes for each image", peak as f64 / 1e6, peak as f64 / images);
    }
    say!("queue                     {:.1} messages/s, {:.1} MB in all", m.messages as f64 / run, m.bytes as f64 / 1e6);
    let (writes, reads) = (images * REQUESTS.0 as f64, images * REQUESTS.1 as f64);
    let cost = (writes * REQUEST_PRICE.0 + reads * REQUEST_PRICE.1) / 1e6;
    say!("store                     {:.0} writes/s, {:.0} reads/s; requests cost about ${cost:.0}", writes / run, reads / run);
    if args.partitions > 1 {
        let n = args.partitions as f64;
        say!(
            "all partitions            {:.1} images/s, {:.1} messages/s, {:.0} writes/s, {:.0} reads/s; requests cost about ${:.0}",
            n * images / run,
            n * m.messages as f64 / run,
            n * writes / run,
            n * reads / run,
            n * cost
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Jobs each minute.
fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0).ok_or_else(|| "it is no number of at least 0".into())
}

/// `basin submit`.
pub fn submit(args: Submit) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.coordinator)?;
    let request = RunRequest {
        name: args.name.clone(),
        dataset: absolute(&args.dataset)?,
        annotations: args.asked.annotations.clone(),
        model: args.model,
        profile: None,
        params: Some(args.asked.params()?),
        seed: args.asked.seed,
        limit: args.asked.limit(),
        priority: args.priority,
        per_minute: args.per_minute,
    };
    say!("{}", hand_in(&client, &request)?);
    if args.wait { wait(&args.coordinator, &[args.name]) } else { Ok(ExitCode::SUCCESS) }
}

/// Hands in a run; returns what is to be said of it. Handed in twice, as a Job of Kubernetes does whose pod was lost, it is one run.
pub fn hand_in(client: &Client, request: &RunRequest) -> anyhow::Result<String> {
    match client.send::<Value>("POST", "/v1/runs", request) {
        Ok(answer) => Ok(answer["note"].as_str().unwrap_or_default().to_owned()),
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|e| e.status == 409 && e.why.ends_with(SAME_SETTINGS)) => {
            Ok(error.to_string())
        }
        Err(error) => Err(error),
    }
}

/// A folder as the coordinator must name it, who works elsewhere.
pub fn absolute(dataset: &str) -> anyhow::Result<String> {
    if dataset.contains("://") || dataset.starts_with("file:") {
        return Ok(dataset.to_owned());
    }
    let path = std::path::absolute(dataset).with_context(|| format!("cannot make {dataset} absolute"))?;
    Ok(path.to_string_lossy().into_owned())
}

/// `basin runs`.
pub fn runs(args: Runs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.coordinator)?;
    let change = |run: &str, change: Change| -> anyhow::Result<ExitCode> {
        let status: Value = client.send("PATCH", &format!("/v1/runs/{run}"), &change)?;
        print_runs(&[status]);
        Ok(ExitCode::SUCCESS)
    };
    let state = |state| Change { state: Some(state), ..Change::default() };
    match args.what.unwrap_or(What::List) {
        What::List => {
            let all: Vec<Value> = client.get("/v1/runs")?;
            print_runs(&all);
            Ok(ExitCode::SUCCESS)
        }
        What::Show { run } => {
            let status: Value = client.get(&format!("/v1/runs/{run}"))?;
            print_runs(std::slice::from_ref(&status));
            for class in status["classes"].as_array().into_iter().flatten() {
                let real = |key: &str| class[key].as_f64().map_or_else(|| "–".into(), |v| format!("{v:.4}"));
                say!(
                    "  {:24} {:>7} images   loss {}   L1 {}   LPIPS {} ± {}",
                    class["class"].as_str().unwrap_or_default(),
                    class["images"],
                    real("loss"),
                    real("l1"),
                    real("lpips"),
                    real("lpips_standard_error"),
                );
            }
            if let Some(unread) = status["unread"].as_u64().filter(|n| *n > 0) {
                say!("  {unread} results are still being read");
            }
            Ok(ExitCode::SUCCESS)
        }
        What::Wait { run } => wait(&args.coordinator, &[run]),
        What::Pause { run } => change(&run, state(RunState::Paused)),
        What::Resume { run } => change(&run, state(RunState::Running)),
        What::Cancel { run } => change(&run, state(RunState::Cancelled)),
        What::Priority { run, priority } => change(&run, Change { priority: Some(priority), ..Change::default() }),
        What::Rate { run, per_minute } => change(&run, Change { per_minute: Some(per_minute), ..Change::default() }),
        What::Retry { run, class, reason } => {
            redriven(&client, &run, &RedriveRequest { wheres: conditions(&class, &reason), seed: None })
        }
    }
}

/// `basin redrive`.
pub fn redrive(args: Redrive) -> anyhow::Result<ExitCode> {
    redriven(&Client::new(&args.coordinator)?, &args.run, &RedriveRequest { wheres: args.wheres, seed: args.seed })
}

fn redriven(client: &Client, run: &str, request: &RedriveRequest) -> anyhow::Result<ExitCode> {
    let answer: Value = client.send("POST", &format!("/v1/runs/{run}/redrive"), request)?;
    say!("{}", answer["note"].as_str().unwrap_or_default());
    Ok(ExitCode::SUCCESS)
}

/// One of the classes and one of the reasons; an empty list stands for all.
fn conditions(classes: &[String], reasons: &[String]) -> Vec<String> {
    let alternatives = |field: &str, values: &[String]| -> Vec<Option<String>> {
        let condition = |value: &String| Some(format!("{field}={}", Value::from(value.as_str())));
        if values.is_empty() { vec![None] } else { values.iter().map(condition).collect() }
    };
    let (classes, reasons) = (alternatives("class", classes), alternatives("reason", reasons));
    let pairs = classes.iter().flat_map(|class| reasons.iter().map(move |reason| [class, reason]));
    let joined = pairs.map(|pair| pair.into_iter().flatten().cloned().collect::<Vec<_>>().join(","));
    joined.filter(|text| !text.is_empty()).collect()
}

/// `basin workers`.
pub fn workers(args: &Coordinator) -> anyhow::Result<ExitCode> {
    let workers: Vec<Value> = Client::new(args)?.get("/v1/workers")?;
    say!("{:32} {:>6} {:>12} {:24} devices", "worker", "images", "lane-steps/s", "run");
    for w in &workers {
        let text = |key: &str| w[key].as_str().unwrap_or_default().to_owned();
        let (name, images, rate) = (text("name"), &w["images"], w["lane_steps_per_second"].as_f64().unwrap_or(0.0));
        say!("{name:32} {images:>6} {rate:>12.0} {:24} {}", text("run"), text("devices"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows runs until they are over, a line for each change. Exit code as `basin project`'s.
pub fn wait(coordinator: &Coordinator, runs: &[String]) -> anyhow::Result<ExitCode> {
    follow(&Client::patient(coordinator, LIMIT)?, runs, EVERY, PATIENCE)
}

fn follow(client: &Client, runs: &[String], every: Duration, patience: Duration) -> anyhow::Result<ExitCode> {
    let mut open: Vec<(&String, String)> = runs.iter().map(|run| (run, String::new())).collect();
    let (mut failed, mut cancelled) = (false, None);
    // When it was heard last, and whether the silence since then was mentioned.
    let (mut heard, mut silent) = (None::<Instant>, false);
    while !open.is_empty() {
        let asked: anyhow::Result<Vec<Value>> = open.iter().map(|(run, _)| client.get(&format!("/v1/runs/{run}"))).collect();
        let statuses = match (asked, heard) {
            (Ok(statuses), _) => statuses,
            // What is wrong from the start, such as the URL or the token, ends it.
            (Err(error), Some(heard)) if may_pass(&error) && heard.elapsed() < patience => {
                if !std::mem::replace(&mut silent, true) {
                    note!("basin: {error:#}; trying again for {}", duration(patience.as_secs_f64()));
                }
                std::thread::sleep(every);
                continue;
            }
            (Err(error), _) => return Err(error),
        };
        (heard, silent) = (Some(Instant::now()), false);
        for ((run, last), status) in open.iter_mut().zip(&statuses) {
            let line = line_of(run, status);
            if line != *last {
                say!("{line}");
                *last = line;
            }
            match status["state"].as_str() {
                Some("finished") => failed |= status["failed"].as_u64().unwrap_or(0) > 0,
                Some("cancelled") => cancelled = Some(*run),
                _ => {}
            }
        }
        let mut over = statuses.iter().map(|status| matches!(status["state"].as_str(), Some("finished" | "cancelled")));
        open.retain(|_| !over.next().unwrap_or(false));
        if !open.is_empty() {
            std::thread::sleep(every);
        }
    }
    match cancelled {
        Some(run) => bail!("run {run} is cancelled"),
        None => Ok(if failed { ExitCode::from(2) } else { ExitCode::SUCCESS }),
    }
}

fn line_of(run: &str, status: &Value) -> String {
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let succeeded = number("skipped") + number("succeeded");
    let (images, failed) = (number("images"), number("failed"));
    if status["state"] == "finished" {
        return format!("run {run} is finished: {succeeded} succeeded, {failed} failed");
    }
    let (started, queued, waiting) = (number("started"), number("queued"), number("waiting"));
    let paused = if status["state"] == "paused" { ", paused" } else { "" };
    let settled = succeeded + failed;
    format!(
        "{run}: {settled}/{images} images ({failed} failed), {started} with workers, {queued} queued, {waiting} waiting{paused}"
    )
}

/// Whether asking again may help: nobody answers, or somebody who cannot now. A coordinator that has just begun does not know its runs.
fn may_pass(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Refused>() {
        Some(refused) => matches!(refused.status, 404 | 429 | 500..),
        None => error.downcast_ref::<serde_json::Error>().is_none(),
    }
}

fn print_runs(runs: &[Value]) {
    let heads = ["priority", "images", "succeeded", "failed", "with workers", "queued", "waiting", "per hour", "time left"];
    let row = |name: &str,
               state: &str,
               [priority, images, succeeded, failed, working, queued, waiting, rate, left]: [&str; 9]| {
        say!(
            "{name:24} {state:10} {priority:>8} {images:>9} {succeeded:>9} {failed:>7} {working:>12} {queued:>7} {waiting:>8} {rate:>8} {left:>10}"
        );
    };
    row("run", "state", heads);
    for run in runs {
        let number = |key: &str| run[key].as_i64().unwrap_or(0);
        let text = |key: &str| number(key).to_string();
        let rate = run["per_hour"].as_f64().map(short).unwrap_or_default();
        let left = run["eta_seconds"].as_f64().map(duration).unwrap_or_default();
        let succeeded = (number("skipped") + number("succeeded")).to_string();
        let [priority, images, failed, working, queued, waiting] =
            ["priority", "images", "failed", "started", "queued", "waiting"].map(text);
        let cells = [&priority, &images, &succeeded, &failed, &working, &queued, &waiting, &rate, &left];
        row(run["name"].as_str().unwrap_or_default(), run["state"].as_str().unwrap_or_default(), cells.map(String::as_str));
        if let Some(problem) = run["problem"].as_str() {
            say!("  cannot go on now: {problem}");
        }
    }
}

/// `basin push`.
pub async fn push(args: Push) -> anyhow::Result<ExitCode> {
    let path = args.model.join("model.json");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (manifest, digest) =
        ModelManifest::parse(&bytes).with_context(|| format!("{} is no model description", path.display()))?;
    keys::check_run(&manifest.name).map_err(|p| anyhow::anyhow!("the model's name {:?} {p}", manifest.name))?;
    let home = Store::open(&args.home).await.context("cannot open --home")?;
    let place = home.with_prefix(&keys::model_prefix(&manifest.name))?;
    let known = match place.get("model.json").await {
        Ok(there) if there == bytes => true,
        Ok(_) => bail!("{} holds another model of this name: give yours another name in model.json", place.url()),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error.into()),
    };
    let mut written = Vec::new();
    for (file, expected) in &manifest.sha256 {
        if is_whole(&place, file, expected).await? {
            continue;
        }
        let path = args.model.join(file);
        let mut upload = place.upload(file).await?;
        let sent = send(&path, &mut upload).await;
        if sent.as_ref().is_ok_and(|digest| digest == expected) {
            upload.finish().await?;
            written.push(file.as_str());
            continue;
        }
        let aborted = upload.abort().await;
        sent?;
        aborted?;
        bail!("{} is not the file that model.json names: it is damaged or was replaced", path.display());
    }
    let (name, digest) = (&manifest.name, &digest[..12]);
    if !known {
        // Last, so that a model is seen whole or not at all.
        place.put("model.json", bytes).await?;
        say!("model {name} ({digest}) is in {}", place.url());
    } else if written.is_empty() {
        say!("model {name} ({digest}) is there already");
    } else {
        say!("model {name} ({digest}) is repaired in {}: {}", place.url(), written.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the object is there and has this SHA-256.
async fn is_whole(place: &Store, key: &str, expected: &str) -> Result<bool, store::Error> {
    let mut download = match place.download(key).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        download => download?,
    };
    let mut digest = RunningSha256::default();
    while let Some(piece) = download.next().await? {
        digest.update(&piece);
    }
    Ok(digest.hex() == expected)
}

/// Writes a file to `upload`; returns its SHA-256.
async fn send(path: &Path, upload: &mut Upload) -> anyhow::Result<String> {
    let reading = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut digest = RunningSha256::default();
    loop {
        let mut piece = Vec::new();
        if (&mut file).take(PIECE).read_to_end(&mut piece).with_context(reading)? == 0 {
            return Ok(digest.hex());
        }
        digest.update(&piece);
        upload.write(piece).await?;
    }
}

/// `basin copy`.
pub async fn copy(args: Copy) -> anyhow::Result<ExitCode> {
    let (from, to) = (Store::open(&args.from).await?, Store::open(&args.to).await?);
    if from.contains(&to) {
        bail!("{} lies inside {}", to.url(), from.url());
    }
    let (mut objects, mut bytes) = (0, 0);
    let mut lister = from.list("")?;
    while let Some(page) = lister.next_page().await? {
        let (small, large): (Vec<&Object>, Vec<&Object>) = page.iter().partition(|object| object.size <= PIECE);
        let copies = small.iter().map(async |object| to.put(&object.key, from.get(&object.key).await?).await);
        let copies: Vec<Result<(), store::Error>> = stream::iter(copies).buffer_unordered(COPIES).collect().await;
        copies.into_iter().collect::<Result<(), _>>()?;
        // One by one: the pieces of one fill the connection.
        for object in large {
            copy_large(&from, &to, &object.key).await?;
        }
        objects += page.len();
        bytes += page.iter().map(|object| object.size).sum::<u64>();
    }
    for skipped in lister.skipped() {
        eprintln!("not copied: {:?}, {}", skipped.name, skipped.why);
    }
    if objects == 0 {
        bail!("there is nothing at {}", from.url());
    }
    say!("copied {objects} objects ({:.1} MB) to {}", bytes as f64 / 1e6, to.url());
    Ok(ExitCode::SUCCESS)
}

async fn copy_large(from: &Store, to: &Store, key: &str) -> Result<(), store::Error> {
    let (mut download, mut upload) = (from.download(key).await?, to.upload(key).await?);
    loop {
        match download.next().await {
            Ok(Some(piece)) => upload.write(piece).await?,
            Ok(None) => return upload.finish().await,
            Err(error) => {
                // What cannot be removed now is swept some day.
                let _ = upload.abort().await;
                return Err(error);
            }
        }
    }
}

/// `basin verify`.
pub async fn verify(args: Verify) -> anyhow::Result<ExitCode> {
    let results = Store::open(&args.out).await?;
    let found = results::verify::verify(&results, args.deep).await?;
    say!("{}: {} images, {} succeeded, {} failed", results.url(), found.images, found.succeeded, found.failed);
    report(&found.problems, "the run is complete and whole")
}

/// `basin export`.
pub async fn export(args: Export) -> anyhow::Result<ExitCode> {
    let (run, out) = (Store::open(&args.run).await?, Store::open(&args.out).await.context("cannot open --out")?);
    let Format::Webdataset = args.format;
    let cut = Cut { samples: args.shard_images.map(Into::into), ..Cut::default() };
    let exported = webdataset::export(&run, &out, cut).await?;
    let (images, shards, megabytes) = (exported.images.succeeded, exported.shards, exported.bytes as f64 / 1e6);
    say!("exported {images} images in {shards} shards ({megabytes:.1} MB) to {}", out.url());
    if let Some(caveat) = exported.caveat() {
        note!("{caveat}");
    }
    Ok(ExitCode::SUCCESS)
}

/// `basin doctor`.
pub async fn doctor(args: Doctor) -> anyhow::Result<ExitCode> {
    let store = Store::open(&args.store).await?;
    let problems = store.examine().await?;
    match store.sweep_uploads(SystemTime::now() - ABANDONED).await {
        Ok(0) => {}
        Ok(uploads) => say!("removed what {uploads} uploads left that were never finished"),
        Err(error) => say!("uploads that were never finished cannot be removed: {error}"),
    }
    report(&problems, "the store does what a fleet needs")
}

fn report(problems: &[String], good: &str) -> anyhow::Result<ExitCode> {
    for problem in problems {
        say!("  {problem}");
    }
    if problems.is_empty() {
        say!("{good}");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::from(2))
}

/// An answer that is none.
#[derive(Debug)]
struct Refused {
    /// As HTTP numbers it.
    status: u16,
    why: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the coordinator refuses: {}", self.why)
    }
}

impl std::error::Error for Refused {}

/// Speaks to the coordinator.
pub struct Client {
    agent: ureq::Agent,
    pub base: String,
    token: Option<String>,
}

/// The token in the file, or in `BASIN_TOKEN`.
pub fn token(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let text = match file {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => std::env::var("BASIN_TOKEN").ok(),
    };
    Ok(text.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
}

impl Client {
    /// For what may take long.
    pub fn new(coordinator: &Coordinator) -> anyhow::Result<Client> {
        Client::patient(coordinator, Duration::from_secs(600))
    }

    /// Waits so long for an answer.
    pub fn patient(coordinator: &Coordinator, limit: Duration) -> anyhow::Result<Client> {
        let token = token(coordinator.token_file.as_deref())?;
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(limit));
        Ok(Client {
            agent: config.build().into(),
            base: coordinator.coordinator.trim_end_matches('/').to_owned(),
            token: token.map(|t| format!("Bearer {t}")),
        })
    }

    /// What is at `path`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("Authorization", token);
        }
        self.read(request.call())
    }

    /// The answer to `body`.
    pub fn send<T: DeserializeOwned>(&self, method: &str, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let url = format!("{}{path}", self.base);
        let mut request = if method == "PATCH" { self.agent.patch(url) } else { self.agent.post(url) };
        if let Some(token) = &self.token {
            request = request.header("Authorization", token);
        }
        self.read(request.send_json(body))
    }

    fn read<T: DeserializeOwned>(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<T> {
        let mut answer = answer.with_context(|| format!("the coordinator at {} does not answer", self.base))?;
        let status = answer.status();
        let text = answer.body_mut().read_to_string().context("the coordinator's answer broke off")?;
        if !status.is_success() {
            let error: Option<String> = serde_json::from_str::<Value>(&text).ok().and_then(|v| Some(v["error"].as_str()?.into()));
            let why = error.unwrap_or_else(|| format!("{status} {text}"));
            return Err(Refused { status: status.as_u16(), why }.into());
        }
        serde_json::from_str(&text).context("the coordinator's answer is not what this version expects")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_coordinator_that_stays_away_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let coordinator = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::new(&Coordinator { coordinator, token_file: None }).unwrap();
        let answering = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 4096]);
            let body = r#"{"state":"running"}"#;
            write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).unwrap();
        });
        let (every, patience) = (Duration::from_millis(10), Duration::from_millis(300));
        let began = Instant::now();
        let error = follow(&client, &["r".into()], every, patience).unwrap_err();
        assert!(format!("{error:#}").contains("does not answer"), "{error:#}");
        assert!((patience..Duration::from_secs(20)).contains(&began.elapsed()), "{:?}", began.elapsed());
        answering.join().unwrap();
        // Who was never there is not waited for.
        let began = Instant::now();
        follow(&client, &["r".into()], every, Duration::from_secs(60)).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[tokio::test]
    async fn a_push_repairs_what_is_damaged_and_leaves_the_rest_and_other_models() {
        let dir = tempfile::tempdir().unwrap();
        let (model, home) = (dir.path().join("model"), dir.path().join("home"));
        fs::create_dir(&model).unwrap();
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fashion32");
        for file in fs::read_dir(&bundled).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), model.join(file.file_name())).unwrap();
        }
        let push = || push(Push { model: model.clone(), home: home.to_str().unwrap().to_owned() });
        let there = home.join("models/fashion32");
        let read = |file: &str| fs::read(there.join(file)).unwrap();
        let written = |file: &str| fs::metadata(there.join(file)).unwrap().modified().unwrap();
        push().await.unwrap();

        let files = ["config.json", "generator.safetensors", "perceptual.json", "perceptual.safetensors", "model.json"];
        let whole = files.map(read);
        let mut damaged = whole[1].clone();
        damaged[5000] ^= 1;
        fs::write(there.join("generator.safetensors"), damaged).unwrap();
        fs::write(there.join("perceptual.json"), "").unwrap();
        fs::remove_file(there.join("config.json")).unwrap();
        let before = ["perceptual.safetensors", "model.json"].map(written);
        push().await.unwrap();
        assert!(files.map(read) == whole);
        assert_eq!(["perceptual.safetensors", "model.json"].map(written), before);

        // A folder that is damaged itself repairs nothing.
        fs::write(there.join("generator.safetensors"), "half").unwrap();
        fs::write(model.join("generator.safetensors"), "other half").unwrap();
        let refused = push().await.unwrap_err().to_string();
        assert!(refused.contains("is not the file that model.json names"), "{refused}");
        assert_eq!(read("generator.safetensors"), b"half");

        let other = String::from_utf8(whole[4].clone()).unwrap().replace("Bag", "Bags");
        fs::write(model.join("model.json"), other).unwrap();
        let refused = push().await.unwrap_err().to_string();
        assert!(refused.contains("another model of this name"), "{refused}");
        assert!(read("model.json") == whole[4]);
    }
}
