//! Solved images become objects (*io*): data first, the commit marker last, then the event, then the acknowledgement.

use std::collections::HashMap;

use projector::Solution;
use proto::{FailureReason, ModelRef, ResultRecord, SeedResult, What, keys};
use queue::{Channel, Queue};
use store::{PutNew, Store};
use tokio::sync::mpsc;

use crate::fate::{self, Fate};
use crate::fetch::{event, reject};
use crate::project::{Done, Released, Solved};
use crate::{Config, Error, codec};

/// Publishes until the devices' thread ends.
pub async fn run(
    config: Config,
    model: ModelRef,
    queue: Queue,
    results: Store,
    mut done: mpsc::Receiver<Done>,
) -> Result<(), Error> {
    while let Some(done) = done.recv().await {
        match done {
            Done::Solved(solved) => publish(&config, &model, &queue, &results, *solved).await?,
            Done::Saved { image, bytes } => results.put(&keys::checkpoint(&image), bytes).await?,
            Done::Released(released) => {
                let Released { delivery, job, id, checkpoint } = *released;
                results.put(&keys::checkpoint(&job.image), checkpoint).await?;
                queue.publish(Channel::Events, event(&config, &job, &id, What::Released).encode()).await?;
                delivery.release().await?;
            }
        }
    }
    Ok(())
}

async fn publish(config: &Config, model: &ModelRef, queue: &Queue, results: &Store, solved: Solved) -> Result<(), Error> {
    let Solved { delivery, job, id, pixels, solution, seconds } = solved;
    let solution = match solution {
        Ok(solution) => solution,
        Err(error) => {
            let message = format!("image {}: {error}", job.image);
            reject(config, queue, results, delivery, &job, &id, FailureReason::Diverged, message).await?;
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
        model: model.clone(),
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
    };
    let size = model.resolution;
    let objects = {
        let (record, image) = (record.clone(), job.image.clone());
        let encode = move || objects(&image, &pixels, &solution, &record, size);
        tokio::task::spawn_blocking(encode).await.expect("encoding does not panic")
    };
    match commit(results, &job.image, objects, &record).await {
        Ok(()) => {}
        Err(error) if fate::results(&error) == Fate::Retry => {
            delivery.retry().await?;
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    let loss = record.best_seed().loss;
    let what = What::Succeeded { loss, seconds, lane_steps: record.lane_steps };
    queue.publish(Channel::Events, event(config, &job, &id, what).encode()).await?;
    delivery.ack().await?;
    Ok(())
}

async fn commit(
    results: &Store,
    image: &str,
    objects: Vec<(String, Vec<u8>)>,
    record: &ResultRecord,
) -> Result<(), store::Error> {
    for (key, bytes) in objects {
        results.put(&key, bytes).await?;
    }
    let bytes = serde_json::to_vec_pretty(record).expect("a record serialises");
    // Somebody else's result of the same job is as good as ours.
    let (PutNew::Created | PutNew::Exists) = results.put_new(&keys::item(image, keys::Item::Result), bytes).await?;
    results.delete(&keys::checkpoint(image)).await
}

/// All objects of an image but the commit marker.
fn objects(image: &str, target: &[f32], solution: &Solution, record: &ResultRecord, size: u32) -> Vec<(String, Vec<u8>)> {
    let png = |pixels: &[f32]| codec::encode_png(pixels, size);
    let history = serde_json::to_vec(&solution.history).expect("curves serialise");
    vec![
        (keys::item(image, keys::Item::Projection), projection(solution, record)),
        (keys::item(image, keys::Item::Target), png(target)),
        (keys::item(image, keys::Item::Transformed), png(&solution.transformed)),
        (keys::item(image, keys::Item::Generated), png(&solution.generated)),
        (keys::item(image, keys::Item::Inverted), png(&solution.inverted)),
        (keys::item(image, keys::Item::History), history),
    ]
}

/// `projection.safetensors`: z `[seeds, z]`, c `[seeds, embed]`, losses `[seeds]`, all float32; metadata says the rest.
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
    let metadata = HashMap::from([
        ("format".to_owned(), "basin projection 1".to_owned()),
        ("job".to_owned(), record.job.to_string()),
        ("image".to_owned(), record.image.clone()),
        ("class".to_owned(), record.class_name.clone()),
        ("best".to_owned(), solution.best.to_string()),
        ("transform".to_owned(), serde_json::to_string(&solution.transform).expect("a transform serialises")),
        ("model".to_owned(), record.model.digest.clone()),
    ]);
    safetensors::serialize(tensors, Some(metadata)).expect("three tensors serialise")
}
