//! Solved images become objects (*io*): data first, the commit marker last, then the event, then the acknowledgement.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::codec::{self, Decoded};
use projector::{Delta, Dropped, Solution, Tuned};
use proto::keys::{Item, Marker};
use proto::{CrashPoint, FineTuned, ObjectRef, ResultRecord, RunningSha256, SeedResult, Stage, What, chain, hex_sha256, keys};
use store::{PutNew, Store};
use telemetry::trace;
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::attempt::{Attempt, Shared, settle};
use crate::fate::{Fate, JobError, fate};
use crate::fetch::Loaded;
use crate::has_result::{has_result, is_late};
use crate::project::{Output, Solved};
use crate::run_control::RunControl;
use crate::{Error, metrics};

/// Limit of the last try to write a result during an outage, when the worker is to leave.
const LAST_TRY: Duration = Duration::from_secs(5);

/// Limit of saving an unfinished image when the worker is to leave.
const LAST_SAVE: Duration = Duration::from_secs(10);

/// Publishes until the devices' thread ends.
pub async fn run(shared: &Shared, outputs: &mut mpsc::Receiver<Output>) -> Result<(), Error> {
    let control = &shared.control;
    while let Some(output) = outputs.recv().await {
        match output {
            Output::Solved(solved) => {
                let attempt = &solved.image.attempt;
                if control.is_closed(&attempt.job.run).await {
                    discard(shared, solved.image.attempt).await?;
                    continue;
                }
                let (span, results) = (attempt.span.span.clone(), attempt.results(shared)?);
                publish(shared, &results, *solved).instrument(span).await?;
            }
            Output::Checkpoint { run, image, attempt, bytes } => {
                // The last sweep of the run may be over; the devices learn of its end within seconds.
                if !control.is_closed(&run).await {
                    save(&shared.runs.of(&run)?, &image, &attempt, bytes).await?;
                }
            }
            Output::Unfinished { attempt, checkpoint, queued } => {
                let results = attempt.results(shared)?;
                let saving = async {
                    if control.is_closed(&attempt.job.run).await {
                        shared.persist(async || forget(&results, &attempt).await).await.map(drop).map_err(Error::from)
                    } else {
                        save(&results, &attempt.job.image, &attempt.name, checkpoint).await
                    }
                };
                // A worker that is to leave must release its jobs in time: progress may be lost, the attempt must not count.
                let limit = if shared.shutdown.is_cancelled() { LAST_SAVE } else { Duration::MAX };
                let saved = tokio::time::timeout(limit, saving).await.unwrap_or(Ok(()));
                attempt.release(shared, queued).await?;
                saved?;
            }
            Output::Returned(attempt) => attempt.release(shared, true).await?,
        }
    }
    Ok(())
}

/// Gives all jobs back that come until the devices' thread ends, after publishing has failed: it was not their fault.
pub async fn give_back(outputs: &mut mpsc::Receiver<Output>) {
    while let Some(output) = outputs.recv().await {
        let attempt = match output {
            Output::Solved(solved) => solved.image.attempt,
            Output::Unfinished { attempt, .. } | Output::Returned(attempt) => *attempt,
            Output::Checkpoint { .. } => continue,
        };
        // It fails only if the queue is closed.
        let _ = attempt.delivery.release().await;
    }
}

/// If the checkpoint cannot be written, only time is lost until the next one.
async fn save(results: &Store, image: &str, attempt: &str, checkpoint: Vec<u8>) -> Result<(), Error> {
    let Err(source) = put_checkpoint(results, image, attempt, checkpoint).await else { return Ok(()) };
    let error = JobError::Checkpoint(source);
    if fate(&error, 1) != Fate::Continue {
        return Err(error.into());
    }
    tracing::warn!(image, error = chain(&error), "the checkpoint is lost");
    metrics::CHECKPOINTS.record(1.0, &[("basin.outcome", "failed")]);
    Ok(())
}

/// A checkpoint is progress: the attempt no longer counts as one that never ended.
async fn put_checkpoint(results: &Store, image: &str, attempt: &str, checkpoint: Vec<u8>) -> Result<(), store::Error> {
    let size = checkpoint.len();
    results.put(&keys::checkpoint(image), checkpoint).await?;
    metrics::UPLOAD.record(size as f64, &[]);
    metrics::CHECKPOINTS.record(1.0, &[("basin.outcome", "saved")]);
    CrashPoint::CheckpointSaved.pass();
    results.delete(&keys::attempt(image, attempt)).await?;
    CrashPoint::CheckpointCounted.pass();
    Ok(())
}

/// Deletes what an attempt saved at an image whose run has ended.
async fn forget(results: &Store, attempt: &Attempt) -> Result<(), store::Error> {
    results.delete(&keys::checkpoint(&attempt.job.image)).await?;
    results.delete(&keys::attempt(&attempt.job.image, &attempt.name)).await
}

/// Drops a result whose run has ended without it: it would be in none of the run's tables.
async fn discard(shared: &Shared, attempt: Attempt) -> Result<(), Error> {
    let job = &attempt.job;
    tracing::warn!(run = job.run, image = job.image, "the run has ended, or its image was swept: the result is dropped");
    let results = attempt.results(shared)?;
    let forgotten = shared.persist(async || forget(&results, &attempt).await).await;
    attempt.release(shared, false).await?;
    forgotten?;
    Ok(())
}

async fn publish(shared: &Shared, results: &Store, solved: Solved) -> Result<(), Error> {
    let Loaded { mut attempt, model, frame, found, seconds, .. } = solved.image;
    let solution = match solved.solution {
        Ok(solution) => solution,
        Err(source) => {
            let image = attempt.job.image.clone();
            let mark = keys::attempt(&image, &attempt.name);
            if let Err(error) = shared.persist(async || results.delete(&mark).await).await {
                attempt.delivery.release().await?;
                return Err(error.into());
            }
            return settle(shared, vec![attempt], JobError::Diverged { image, source }).await;
        }
    };
    let job = &attempt.job;
    let record = ResultRecord {
        format: 1,
        job: attempt.id.clone(),
        image: job.image.clone(),
        identity: job.identity.clone(),
        class: job.class,
        class_name: job.class_name.clone(),
        bbox: frame.object,
        target_bbox: frame.bbox,
        mask: frame.mask.is_some(),
        found,
        model,
        params: job.params.clone(),
        seed: job.seed,
        version: shared.config.version.clone(),
        transform: solution.transform.clone(),
        best: solution.best,
        seeds: solution.seeds.clone(),
        lane_steps: solution.lane_steps,
        seconds,
        attempt: attempt.name.clone(),
        objects: vec![],
        fine_tuned: solution.fine_tuned.as_ref().map(fine_tuned),
        trace: trace::id(&attempt.span.span),
        generation: job.generation,
    };
    let (run, begun, control) = (job.run.clone(), Instant::now(), &shared.control);
    let publish = async {
        let encode = move || (objects(&frame, solution, &record), record);
        let (objects, mut record) = tokio::task::spawn_blocking(encode).await.expect("encoding does not panic");
        // Held and written again in place during an outage: a finished search is not to be done twice.
        let held = shared.persist(async || commit(results, control, &run, &objects, &mut record).await).await;
        let committed = match held {
            Ok(Some(committed)) => committed,
            Ok(None) => match tokio::time::timeout(LAST_TRY, commit(results, control, &run, &objects, &mut record)).await {
                Ok(Ok(committed)) => committed,
                Ok(Err(_)) | Err(_) => return Ok(End::Left),
            },
            Err(error) => return Err(error),
        };
        Ok(if committed { End::Committed(Box::new(record)) } else { End::Over })
    };
    let record = match publish.instrument(attempt.span.stage(Stage::Publish)).await {
        Ok(End::Committed(record)) => *record,
        Ok(End::Over) => return discard(shared, attempt).await,
        Ok(End::Left) => {
            tracing::warn!(run, image = attempt.job.image, "the worker leaves before the store is back: this result is lost");
            return attempt.release(shared, true).await;
        }
        Err(source) => return settle(shared, vec![attempt], JobError::Upload(source)).await,
    };
    let stage_seconds = attempt.span.stage_seconds();
    attempt.span.add_seconds(Stage::Publish, begun.elapsed().as_secs_f64());
    attempt.span.end_stage(Stage::Publish);
    let SeedResult { loss, l1, lpips, .. } = *record.best_seed();
    metrics::of_result(loss, lpips);
    tracing::info!(run, image = attempt.job.image, loss, lpips, seconds, "projected");
    let what = What::Succeeded { loss, seconds, lane_steps: record.lane_steps, l1, lpips, stage_seconds };
    attempt.tell(shared, what).await?;
    CrashPoint::SuccessTold.pass();
    attempt.delivery.ack().await?;
    CrashPoint::SuccessSettled.pass();
    Ok(())
}

enum Content {
    Bytes(Bytes),
    /// Encoded while it is uploaded: stored without loss, it is as large as the generator.
    Delta(Arc<Mutex<Delta>>),
}

impl Content {
    /// Returns its size in bytes and its SHA-256.
    async fn put(&self, results: &Store, key: &str, model: &str) -> Result<(u64, String), store::Error> {
        let delta = match self {
            Content::Bytes(bytes) => {
                results.put(key, bytes.clone()).await?;
                return Ok((bytes.len() as u64, hex_sha256(bytes)));
            }
            Content::Delta(delta) => delta.clone(),
        };
        let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(1);
        let model = model.to_owned();
        let encoding = tokio::task::spawn_blocking(move || {
            let mut to = BufWriter::with_capacity(store::PIECE, Pieces(sender));
            let delta = delta.lock().expect("no thread panics while it holds the lock");
            delta.write(&model, &mut to).and_then(|()| to.flush())
        });
        let mut upload = results.upload(key).await?;
        let (mut size, mut digest) = (0, RunningSha256::default());
        while let Some(piece) = pieces.recv().await {
            size += piece.len() as u64;
            digest.update(&piece);
            upload.write(piece).await?;
        }
        encoding.await.expect("encoding does not panic").expect("the receiver takes all pieces");
        upload.finish().await?;
        Ok((size, digest.hex()))
    }
}

/// Sends what is written, piece by piece.
struct Pieces(mpsc::Sender<Vec<u8>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Content of a claim that a worker has made: the attempt may commit.
const COMMITS: &[u8] = b"commits";

/// Makes the attempt one that may commit; `false`: a sweep was faster and deletes its objects, or has done so.
///
/// Worker and sweep create the same key, and exactly one of them does. So there is no moment at which a worker that was stopped
/// could commit a result whose objects are gone (`docs/src/adr/0015`).
async fn claim(results: &Store, image: &str, attempt: &str) -> Result<bool, store::Error> {
    let claim = keys::claim(image, attempt);
    if results.put_new(&claim, COMMITS).await? == PutNew::Created {
        return Ok(true);
    }
    // It may be ours: a first request may have succeeded although its answer was lost.
    Ok(results.get(&claim).await? == COMMITS)
}

async fn delete_objects(results: &Store, image: &str, attempt: &str) -> Result<(), store::Error> {
    for item in Item::ALL {
        results.delete(&keys::item(image, attempt, item)).await?;
    }
    Ok(())
}

/// How publishing a solution ends.
enum End {
    Committed(Box<ResultRecord>),
    /// The run has ended without the result.
    Over,
    /// The worker leaves while the store is away.
    Left,
}

/// Uploads the objects and creates the commit marker. `false`: the run has ended, and nothing of the attempt is left.
async fn commit(
    results: &Store,
    control: &RunControl,
    run: &str,
    objects: &[(Item, Content)],
    record: &mut ResultRecord,
) -> Result<bool, store::Error> {
    let (image, attempt) = (&record.image, &record.attempt);
    let digest = &record.model.digest;
    let marker = keys::marker(image, Marker::Result);
    // Another attempt's result of the same job is as good, and came first.
    if !has_result(results, image, &record.job, record.generation).await? {
        let mut stored = Vec::new();
        for (item, content) in objects {
            let (size, sha256) = content.put(results, &keys::item(image, attempt, *item), digest).await?;
            metrics::UPLOAD.record(size as f64, &[]);
            stored.push(ObjectRef { file: item.file().into(), size, sha256 });
            CrashPoint::ObjectUploaded.pass();
        }
        CrashPoint::ObjectsUploaded.pass();
        record.objects = stored;
        let bytes = serde_json::to_vec_pretty(&record).expect("a record serialises");
        // The run may have ended during the upload. An end after this look is seen by the claim.
        if control.is_closed(run).await || !claim(results, image, attempt).await? {
            delete_objects(results, image, attempt).await?;
            return Ok(false);
        }
        CrashPoint::Claimed.pass();
        if results.put_new(&marker, bytes.clone()).await? == PutNew::Exists {
            let over = |there: Option<&[u8]>| {
                let stays = there.is_some_and(|there| !is_late(there, &record.job, record.generation));
                (!stays).then(|| bytes.clone())
            };
            if !results.update(&marker, over).await? && !is_ours(results, &marker, attempt).await? {
                delete_objects(results, image, attempt).await?;
            }
        }
        CrashPoint::Committed.pass();
        // Last: as long as the claim is there, a sweep lets the objects be.
        results.delete(&keys::claim(image, attempt)).await?;
    }
    results.delete(&keys::checkpoint(image)).await?;
    CrashPoint::CheckpointDeleted.pass();
    results.delete(&keys::attempt(image, attempt)).await?;
    CrashPoint::AttemptDeleted.pass();
    Ok(true)
}

/// Whether the marker is this attempt's: a first request may have succeeded although its answer was lost.
async fn is_ours(results: &Store, marker: &str, attempt: &str) -> Result<bool, store::Error> {
    let there = results.get(marker).await?;
    Ok(serde_json::from_slice::<ResultRecord>(&there).is_ok_and(|record| record.attempt == attempt))
}

fn fine_tuned(outcome: &Result<Tuned, Dropped>) -> FineTuned {
    match outcome {
        Ok(tuned) => FineTuned::Kept {
            steps: tuned.steps,
            distances: tuned.distances.clone(),
            lpips: tuned.lpips,
            psnr: Some(tuned.psnr).filter(|psnr| psnr.is_finite()),
            codes: tuned.delta.codes().into_iter().map(|(code, layers)| (code.to_owned(), layers)).collect(),
        },
        Err(dropped) => FineTuned::Dropped { why: dropped.to_string() },
    }
}

fn objects(target: &Decoded, solution: Solution, record: &ResultRecord) -> Vec<(Item, Content)> {
    let png = |pixels: &[f32]| codec::encode_png(pixels, record.model.resolution);
    let history = serde_json::to_vec(&solution.history).expect("curves serialise");
    let mut objects = vec![
        (Item::Projection, projection(&solution, record)),
        (Item::Target, png(&target.pixels)),
        (Item::Transformed, png(&solution.transformed)),
        (Item::Generated, png(&solution.generated)),
        (Item::Inverted, png(&solution.inverted)),
        (Item::History, history),
    ];
    if let Some(mask) = &target.mask {
        let grey: Vec<f32> = mask.iter().map(|v| 2.0 * v - 1.0).collect();
        objects.push((Item::Mask, png(&grey.repeat(3))));
    }
    let tuned = solution.fine_tuned.and_then(Result::ok);
    if let Some(tuned) = &tuned {
        objects.push((Item::Tuned, png(&tuned.pictures.inverted)));
    }
    let objects = objects.into_iter().map(|(item, bytes)| (item, Content::Bytes(bytes.into())));
    objects.chain(tuned.map(|tuned| (Item::Delta, Content::Delta(Arc::new(Mutex::new(tuned.delta)))))).collect()
}

/// `projection.safetensors`: z `[seeds, z]`, c `[seeds, embed]`, losses `[seeds]`, all float32; the rest is JSON in the metadata.
fn projection(solution: &Solution, record: &ResultRecord) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView};
    let bytes = |rows: &[Vec<f32>]| -> Vec<u8> { rows.iter().flat_map(|r| r.iter()).flat_map(|v| v.to_le_bytes()).collect() };
    let seeds = solution.seeds.len();
    let (z, c) = (bytes(&solution.z), bytes(&solution.c));
    let losses = bytes(&[solution.seeds.iter().map(|s| s.loss as f32).collect()]);
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::F32, shape, data).expect("the size fits the shape");
    let tensors = [
        ("z", view(vec![seeds, solution.z[0].len()], &z)),
        ("c", view(vec![seeds, solution.c[0].len()], &c)),
        ("losses", view(vec![seeds], &losses)),
    ];
    // One entry, since the order of several would differ from run to run.
    let about = serde_json::json!({
        "format": 1,
        "job": record.job,
        "image": record.image,
        "class": record.class_name,
        "best": solution.best,
        "transform": solution.transform,
        "model": record.model.digest,
    });
    let metadata = HashMap::from([("basin projection".to_owned(), about.to_string())]);
    safetensors::serialize(tensors, Some(metadata)).expect("three tensors serialise")
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use std::time::Duration;

    use proto::{Control, Event, History, Job, ModelRef, RunState};
    use queue::{Channel, Consumer, Delivery, Queue};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use store::Runs;

    use super::*;
    use crate::Config;
    use crate::held::HeldJobs;
    use crate::outage::Outages;

    /// A future that is dropped after some polls, as a process that dies at an await.
    struct Mortal<F> {
        life: Pin<Box<F>>,
        polls: u32,
    }

    impl<F: Future> Future for Mortal<F> {
        type Output = Option<F::Output>;

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            if self.polls == 0 {
                return Poll::Ready(None);
            }
            self.polls -= 1;
            self.life.as_mut().poll(context).map(Some)
        }
    }

    fn job() -> Job {
        Job { image: "a/1.png".into(), ..harness::job() }
    }

    fn shared(queue: &Queue, runs: Runs) -> Shared {
        let (outages, shutdown) = (Outages::none(), Default::default());
        let (control, held) = (RunControl::new(&runs), HeldJobs::default());
        Shared { config: Config::default(), queue: queue.clone(), runs, outages, held, control, shutdown }
    }

    /// As the devices' thread sends it. Each attempt has other bytes, so that a mixture would be seen.
    fn solved(shared: &Shared, delivery: Delivery, number: u32) -> Solved {
        let job = Job::decode(delivery.payload()).expect("ours");
        let loss = f64::from(number);
        let pixels = vec![(number % 7) as f32 / 7.0; 3 * 4 * 4];
        let history = History { latent: vec![loss], descent: vec![vec![loss]], ..History::default() };
        let solution = Solution {
            class: 0,
            transform: None,
            best: 0,
            z: vec![vec![loss as f32]],
            c: vec![vec![0.0]],
            seeds: vec![SeedResult { loss, inverted_loss: loss, l1: loss, l2: loss, lpips: loss, class: None, transform: None }],
            generated: pixels.clone(),
            inverted: pixels.clone(),
            transformed: pixels.clone(),
            fine_tuned: None,
            history,
            lane_steps: 1,
        };
        let model = ModelRef { name: "m".into(), digest: "d".into(), resolution: 4 };
        let attempt = Attempt { name: format!("{number:012x}"), ..Attempt::begin(shared, delivery, job) };
        let (found, photo, checkpoint) = (None, None, None);
        let crop = codec::Crop { x: 0, y: 0, side: 4 };
        let frame = Decoded { pixels, bbox: None, mask: None, object: None, crop };
        let image = Loaded { attempt, model, frame, photo, found, likely: vec![], checkpoint, seconds: 1.0, suspect: false };
        Solved { image, solution: Ok(solution) }
    }

    /// Objects of an image without fine-tuning.
    fn untuned_items() -> usize {
        Item::ALL.len() - [Item::Mask, Item::Tuned, Item::Delta].len()
    }

    async fn next(consumer: &mut Consumer) -> Option<Delivery> {
        tokio::time::timeout(Duration::from_millis(1), consumer.next()).await.ok()?.expect("the queue lives")
    }

    #[tokio::test]
    async fn a_result_that_comes_after_the_end_of_its_run_is_dropped() {
        let dir = tempfile::tempdir().expect("writable");
        let home = Store::open(&dir.path().to_string_lossy()).await.expect("a folder");
        let queue = Queue::open("embedded:").await.expect("in memory");
        let mut consumer = queue.consume(Channel::Jobs, 2).await.expect("in memory");
        let mut left = Vec::new();
        for state in [RunState::Running, RunState::Finished, RunState::Cancelled] {
            let control = serde_json::to_vec(&Control { state, ..Control::default() }).expect("a record");
            home.put(&keys::control("r"), control).await.expect("writable");
            queue.publish(Channel::Jobs, job().encode()).await.expect("in memory");
            let shared = shared(&queue, Runs::Home(home.clone()));
            let solved = solved(&shared, next(&mut consumer).await.expect("a job"), 1);
            let (sender, mut receiver) = mpsc::channel(1);
            assert!(sender.send(Output::Solved(Box::new(solved))).await.is_ok(), "it listens");
            drop(sender);
            run(&shared, &mut receiver).await.expect("it goes well");
            let results = home.with_prefix("runs/r").expect("a prefix");
            let objects = results.list("").expect("a prefix").all().await.expect("readable");
            left.push(objects.len());
            for object in objects {
                results.delete(&object.key).await.expect("writable");
            }
        }
        assert_eq!(left, [1 + untuned_items(), 0, 0]);
        assert_eq!(queue.depth(Channel::Events).await.expect("in memory"), 3);
    }

    /// The image was projected again with another seed, and a worker that slept committed the result of the first one.
    #[tokio::test]
    async fn a_late_result_of_another_seed_is_replaced_and_that_of_the_same_job_counts() {
        let dir = tempfile::tempdir().expect("writable");
        let results = Store::open(&dir.path().to_string_lossy()).await.expect("a folder");
        let queue = Queue::open("embedded:").await.expect("in memory");
        let shared = shared(&queue, Runs::One(results.clone()));
        let mut consumer = queue.consume(Channel::Jobs, 2).await.expect("in memory");
        let reseeded = Job { seed: job().seed + 1, generation: 2, ..job() };
        let again = Job { generation: 3, ..reseeded.clone() };
        for (number, job, counts) in [(1, job(), 1), (2, reseeded, 2), (3, job(), 2), (4, again, 2)] {
            queue.publish(Channel::Jobs, job.encode()).await.expect("in memory");
            let solved = solved(&shared, next(&mut consumer).await.expect("a job"), number);
            publish(&shared, &results, solved).await.expect("it goes well");
            let marker = results.get(&keys::marker(&job.image, Marker::Result)).await.expect("a result");
            let record: ResultRecord = serde_json::from_slice(&marker).expect("a record");
            assert_eq!(record.attempt, format!("{counts:012x}"), "after attempt {number}");
            assert!(has_result(&results, &job.image, &job.id(), job.generation).await.expect("readable"));
        }
    }

    /// A worker is stopped before its commit, while the run ends and is swept.
    #[tokio::test]
    async fn an_attempt_that_a_sweep_has_claimed_never_commits_and_one_that_has_claimed_keeps_its_right() {
        let dir = tempfile::tempdir().expect("writable");
        let results = Store::open(&dir.path().to_string_lossy()).await.expect("a folder");
        let queue = Queue::open("embedded:").await.expect("in memory");
        let shared = shared(&queue, Runs::One(results.clone()));
        let mut consumer = queue.consume(Channel::Jobs, 2).await.expect("in memory");
        let image = job().image;
        for (number, there, committed) in [(1, &b"swept"[..], false), (2, COMMITS, true)] {
            queue.publish(Channel::Jobs, job().encode()).await.expect("in memory");
            let solved = solved(&shared, next(&mut consumer).await.expect("a job"), number);
            let claimed = keys::claim(&image, &solved.image.attempt.name);
            results.put(&claimed, there).await.expect("writable");
            publish(&shared, &results, solved).await.expect("it goes well");
            let objects = results.list(keys::IMAGES).expect("a prefix").all().await.expect("readable").len();
            assert_eq!(objects, if committed { 1 + untuned_items() } else { 0 });
            assert_eq!(results.exists(&claimed).await.expect("readable"), !committed, "what a sweep has claimed stays");
        }
    }

    /// A job comes several times to workers that die at any await, two at a time; what was in flight may still be written later.
    #[test]
    fn under_any_schedule_of_deaths_and_repeats_one_whole_result_is_committed_and_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        for seed in 0..300 {
            runtime.block_on(schedule(seed));
        }
    }

    async fn schedule(seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let dir = tempfile::tempdir().expect("writable");
        let results = Store::open(&dir.path().to_string_lossy()).await.expect("a folder");
        let queue = Queue::open("embedded:?delivery_limit=1000").await.expect("in memory");
        for _ in 0..rng.random_range(1..4) {
            queue.publish(Channel::Jobs, job().encode()).await.expect("in memory");
        }
        let shared = shared(&queue, Runs::One(results.clone()));
        let mut attempts = 0;
        loop {
            let mut consumer = queue.consume(Channel::Jobs, 2).await.expect("in memory");
            let (first, second) = (next(&mut consumer).await, next(&mut consumer).await);
            if first.is_none() {
                break;
            }
            let lives = [first, second].into_iter().flatten().map(|delivery| {
                attempts += 1;
                let (shared, results, solved) = (&shared, &results, solved(&shared, delivery, attempts));
                let life = async move { publish(shared, results, solved).await };
                // Later ones live longer, so that it ends.
                Mortal { life: Box::pin(life), polls: rng.random_range(0..40 + 4 * attempts) }
            });
            for ended in futures_util::future::join_all(lives.collect::<Vec<_>>()).await {
                assert!(matches!(ended, None | Some(Ok(()))), "seed {seed}: {ended:?}");
            }
        }
        let marker = results.get(&keys::marker(&job().image, Marker::Result)).await.expect("a result");
        let record: ResultRecord = serde_json::from_slice(&marker).expect("a record");
        for object in &record.objects {
            let item = Item::ALL.into_iter().find(|item| item.file() == object.file).expect("a known file");
            let bytes = results.get(&keys::item(&record.image, &record.attempt, item)).await.expect("it is there");
            assert_eq!(hex_sha256(&bytes), object.sha256, "seed {seed}: {}", object.file);
        }
        assert_eq!(record.objects.len(), untuned_items());
        let mut events = queue.consume(Channel::Events, 100).await.expect("in memory");
        let told = next(&mut events).await.expect("an event");
        assert!(matches!(Event::decode(told.payload()).expect("ours").what, What::Succeeded { .. }), "seed {seed}");
        assert_eq!(queue.depth(Channel::DeadLetters).await.expect("in memory"), 0, "seed {seed}");
    }
}
