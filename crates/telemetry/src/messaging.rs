//! Messages as OpenTelemetry's messaging conventions (1.44) name them: where they go, and the metrics of clients.

use std::time::Duration;

use opentelemetry::KeyValue;

use crate::{Metric, measures};

/// The boundaries that the conventions give for durations, in seconds.
const SECOND_BOUNDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Attributes `messaging.operation.name` (`publish`, `ack`, `nack` or `reject`) and `messaging.operation.type`, and those of all
/// metrics of messages: `messaging.system`, `messaging.destination.name`, `server.address`, `server.port`, and `error.type` after a
/// failure.
pub static OPERATION: Metric = Metric::histogram(
    "messaging.client.operation.duration",
    "s",
    "Duration of messaging operation initiated by a producer or consumer client",
    SECOND_BOUNDS,
);
/// From a delivery until it is settled. `error.type`: `retried`, `rejected` or `dropped`.
pub static PROCESS: Metric =
    Metric::histogram("messaging.process.duration", "s", "Duration of processing operation", SECOND_BOUNDS);
pub static SENT: Metric =
    Metric::counter("messaging.client.sent.messages", "{message}", "Number of messages producer attempted to send to the broker");
pub static CONSUMED: Metric = Metric::counter(
    "messaging.client.consumed.messages",
    "{message}",
    "Number of messages that were delivered to the application",
);

/// The metrics of every process that has a queue.
pub static ALL: [&Metric; 4] = [&OPERATION, &PROCESS, &SENT, &CONSUMED];

/// A queue, as spans and metrics of its messages describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// `rabbitmq` or `basin`.
    pub system: &'static str,
    /// Full name of the queue, such as `basin.jobs`.
    pub name: String,
    /// Host and port of the broker; `None` inside one process.
    pub server: Option<(String, u16)>,
}

impl Destination {
    /// What spans and metrics have in common.
    pub(crate) fn attributes(&self, operation: &'static str) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new("messaging.system", self.system),
            KeyValue::new("messaging.destination.name", self.name.clone()),
            KeyValue::new("messaging.operation.name", operation),
        ];
        if let Some((address, port)) = &self.server {
            attributes.push(KeyValue::new("server.address", address.clone()));
            attributes.push(KeyValue::new("server.port", i64::from(*port)));
        }
        attributes
    }

    /// `messages` were sent, or `failure` kept them back. A failure is one of few values.
    pub fn published(&self, messages: usize, took: Duration, failure: Option<&'static str>) {
        if measures() {
            let mut attributes = self.attributes("publish");
            attributes.extend(failure.map(error_type));
            SENT.add(messages as f64, &attributes);
            attributes.push(KeyValue::new("messaging.operation.type", "send"));
            OPERATION.add(took.as_secs_f64(), &attributes);
        }
    }

    /// A message was delivered.
    pub fn consumed(&self) {
        if measures() {
            CONSUMED.add(1.0, &self.attributes("consume"));
        }
    }

    /// The work on a delivered message ended.
    pub fn processed(&self, took: Duration, failure: Option<&'static str>) {
        if measures() {
            let mut attributes = self.attributes("process");
            attributes.extend(failure.map(error_type));
            PROCESS.add(took.as_secs_f64(), &attributes);
        }
    }

    /// A delivery was settled by `operation`: `ack`, `nack` or `reject`.
    pub fn settled(&self, operation: &'static str, took: Duration, failure: Option<&'static str>) {
        if measures() {
            let mut attributes = self.attributes(operation);
            attributes.push(KeyValue::new("messaging.operation.type", "settle"));
            attributes.extend(failure.map(error_type));
            OPERATION.add(took.as_secs_f64(), &attributes);
        }
    }
}

fn error_type(failure: &'static str) -> KeyValue {
    KeyValue::new("error.type", failure)
}
