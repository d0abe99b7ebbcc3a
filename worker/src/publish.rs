//! Solved images become objects (*io*): data first, the commit marker last, then the event, then the acknowledgement.

use std::collections::HashMap;

use projector::Solution;
use proto::keys::{Item, Marker};
use proto::{Event, FailureReason, ObjectRef, ResultRecord, SeedResult, What, chain, hex_sha256, keys};
use queue::{Channel, Queue};
use store::{PutNew, Runs, Store};
use tokio::sync::mpsc;

use crate::fate::{self, Fate};
use crate::fetch::reject;
use crate::project::{Done, Released, Saved, Solved};
use crate::{Config, Error, codec};

/// Publishes until the devices' thread ends.
pub async fn run(config: Config, queue: Queue, runs: Runs, mut done: mpsc::Receiver<Done>) -> Result<(), Error> {
    while let Some(done) = done.recv().await {
        match done {
            Done::Solved(solved) => {
                let results = runs.of(&solved.job.run)?;
                publish(&config, &queue, &results, *solved).await?;
            }
            Done::Saved(Saved { run, image, attempt, checkpoint }) => {
                let results = runs.of(&run)?;
                let saved = save(&results, &image, &attempt, checkpoint).await;
                // The next one may succeed; only time is lost until then.
                forgive(saved)?;
            }
            Done::Released(released) => {
                let Released { delivery, job, attempt, checkpoint, queued } = *released;
                let results = runs.of(&job.run)?;
                forgive(save(&results, &job.image, &attempt, checkpoint).await)?;
                queue.publish(Channel::Events, Event::about(&job, &config.name, What::Released { queued }).encode()).await?;
                if queued {
                    delivery.release().await?;
                } else {
                    delivery.ack().await?;
                }
            }
        }
    }
    Ok(())
}

/// A checkpoint is progress: the attempt counts no longer as one that never ended.
async fn save(results: &Store, image: &str, attempt: &str, checkpoint: Vec<u8>) -> Result<(), store::Error> {
    results.put(&keys::checkpoint(image), checkpoint).await?;
    results.delete(&keys::attempt(image, attempt)).await
}

fn forgive(saved: Result<(), store::Error>) -> Result<(), store::Error> {
    match saved {
        Err(error) if error.is_retryable() => {
            tracing::warn!(error = chain(&error), "a checkpoint could not be written");
            Ok(())
        }
        other => other,
    }
}

async fn publish(config: &Config, queue: &Queue, results: &Store, solved: Solved) -> Result<(), Error> {
    let Solved { delivery, job, id, attempt, model, pixels, solution, seconds } = solved;
    let solution = match solution {
        Ok(solution) => solution,
        Err(error) => {
            let message = format!("image {}: {error}", job.image);
            results.delete(&keys::attempt(&job.image, &attempt)).await?;
            reject(config, queue, results, delivery, &job, (FailureReason::Diverged, message)).await?;
            return Ok(());
        }
    };
    let record = ResultRecord {
        format: 1,
        job: id.clone(),
        image: job.image.clone(),
        identity: job.identity.clone(),
        class: job.class,
        class_name: job.class_name.clone(),
        bbox: job.bbox,
        model,
        params: job.params.clone(),
        seed: job.seed,
        version: config.version.clone(),
        transform: solution.transform.clone(),
        best: solution.best,
        seeds: solution
            .seeds
            .iter()
            .map(|s| SeedResult { loss: s.loss, inverted_loss: s.inverted_loss, l1: s.l1, l2: s.l2, lpips: s.lpips })
            .collect(),
        lane_steps: solution.lane_steps,
        seconds,
        attempt,
        objects: vec![],
    };
    let encode = move || objects(&pixels, &solution, record);
    let (objects, record) = tokio::task::spawn_blocking(encode).await.expect("encoding does not panic");
    match commit(results, objects, &record).await {
        Ok(()) => {}
        Err(error) if fate::results(&error) == Fate::Retry => {
            delivery.retry().await?;
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    let SeedResult { loss, l1, lpips, .. } = *record.best_seed();
    let what = What::Succeeded { loss, seconds, lane_steps: record.lane_steps, l1, lpips };
    queue.publish(Channel::Events, Event::about(&job, &config.name, what).encode()).await?;
    delivery.ack().await?;
    Ok(())
}

async fn commit(results: &Store, objects: Vec<(Item, Vec<u8>)>, record: &ResultRecord) -> Result<(), store::Error> {
    let (image, attempt) = (&record.image, &record.attempt);
    let marker = keys::marker(image, Marker::Result);
    // Somebody else's result of the same job is as good as ours, and comes first.
    if !results.exists(&marker).await? {
        for (item, bytes) in objects {
            results.put(&keys::item(image, attempt, item), bytes).await?;
        }
        let bytes = serde_json::to_vec_pretty(record).expect("a record serialises");
        if results.put_new(&marker, bytes).await? == PutNew::Exists && !is_ours(results, &marker, attempt).await? {
            for item in Item::ALL {
                results.delete(&keys::item(image, attempt, item)).await?;
            }
        }
    }
    results.delete(&keys::checkpoint(image)).await?;
    results.delete(&keys::attempt(image, attempt)).await
}

/// Whether the marker is this attempt's, whose first request may have succeeded without an answer.
async fn is_ours(results: &Store, marker: &str, attempt: &str) -> Result<bool, store::Error> {
    let there = results.get(marker).await?;
    Ok(serde_json::from_slice::<ResultRecord>(&there).is_ok_and(|record| record.attempt == attempt))
}

/// All objects of the attempt, and the record that names them.
fn objects(target: &[f32], solution: &Solution, mut record: ResultRecord) -> (Vec<(Item, Vec<u8>)>, ResultRecord) {
    let png = |pixels: &[f32]| codec::encode_png(pixels, record.model.resolution);
    let history = serde_json::to_vec(&solution.history).expect("curves serialise");
    let objects = vec![
        (Item::Projection, projection(solution, &record)),
        (Item::Target, png(target)),
        (Item::Transformed, png(&solution.transformed)),
        (Item::Generated, png(&solution.generated)),
        (Item::Inverted, png(&solution.inverted)),
        (Item::History, history),
    ];
    record.objects = objects
        .iter()
        .map(|(item, bytes)| ObjectRef { file: item.file().into(), size: bytes.len() as u64, sha256: hex_sha256(bytes) })
        .collect();
    (objects, record)
}

/// `projection.safetensors`: z `[seeds, z]`, c `[seeds, embed]`, losses `[seeds]`, all float32; the rest is JSON in the metadata.
fn projection(solution: &Solution, record: &ResultRecord) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView};
    let bytes = |rows: &[&[f32]]| -> Vec<u8> { rows.iter().flat_map(|r| r.iter()).flat_map(|v| v.to_le_bytes()).collect() };
    let seeds = solution.seeds.len();
    let z = bytes(&solution.seeds.iter().map(|s| s.z.as_slice()).collect::<Vec<_>>());
    let c = bytes(&solution.seeds.iter().map(|s| s.c.as_slice()).collect::<Vec<_>>());
    let losses: Vec<f32> = solution.seeds.iter().map(|s| s.loss as f32).collect();
    let losses = bytes(&[&losses]);
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::F32, shape, data).expect("the size fits the shape");
    let tensors = [
        ("z", view(vec![seeds, solution.seeds[0].z.len()], &z)),
        ("c", view(vec![seeds, solution.seeds[0].c.len()], &c)),
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
