//! Jobs, events and records of workers that compute nothing.

use anyhow::Result;
use harness::RabbitMq;
use lapin::{Connection, ConnectionProperties};
use proto::{Params, Stage, What};
use serde_json::json;

/// The attempt that made the results.
pub const ATTEMPT: &str = "0123456789abcdef";

/// An image that took `seconds`, as many in each stage.
pub fn succeeded(seconds: f64) -> What {
    let stages = [Stage::Fetch, Stage::TransformSearch, Stage::LatentSearch, Stage::FinalDescent];
    let stage_seconds = stages.map(|stage| (stage.as_str().to_owned(), seconds / 4.0)).into();
    What::Succeeded { loss: 1.25, seconds, lane_steps: 28_800, l1: 0.125, lpips: 0.25, stage_seconds }
}

/// A record of 18 seeds, as JSON.
pub fn record(image: &str, class: usize) -> String {
    let seed = json!({ "loss": 1.0, "inverted_loss": 1.0, "l1": 0.5, "l2": 0.25, "lpips": 0.125 });
    json!({
        "format": 1, "job": ATTEMPT, "image": image, "identity": "1", "class": class, "class_name": "Bag", "bbox": null,
        "model": { "name": "fashion32", "digest": ATTEMPT, "resolution": 32 }, "params": Params::paper(), "seed": 0, "version": "bench",
        "transform": null, "best": 0, "seeds": vec![seed; 18], "lane_steps": 28_800, "seconds": 12.0, "attempt": ATTEMPT, "objects": [],
    })
    .to_string()
}

/// A connection of the client library alone.
pub async fn connect(broker: &RabbitMq) -> Result<Connection> {
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", broker.port());
    Ok(Connection::connect(&url, ConnectionProperties::default()).await?)
}
