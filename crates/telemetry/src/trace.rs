//! Spans, and traces that continue in another process.
//!
//! Names and attributes of messages follow the messaging conventions of OpenTelemetry 1.44. If traces are not sent, spans
//! are disabled and cost nothing.

use std::collections::{BTreeMap, HashMap};

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Status, TraceContextExt};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::messaging::Destination;

/// Target of all our spans.
pub(crate) const TARGET: &str = "basin_trace";

/// A message, as its spans describe it.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub destination: &'a Destination,
    pub job: &'a str,
    pub run: &'a str,
    pub image: &'a str,
}

/// A span for a part of `parent`'s work. It starts now and ends when all clones are dropped.
pub fn child(parent: &Span, name: &str) -> Span {
    span(Some(parent), name, "internal")
}

/// A span for publishing a message, as part of `parent` or as the start of a trace.
pub fn publish(parent: Option<&Span>, message: &Message) -> Span {
    let span = span(parent, &format!("publish {}", message.destination.name), "producer");
    describe(&span, message, ("publish", "send"));
    span
}

/// A span for processing a message, in the trace that its `headers` carry.
pub fn process(headers: &BTreeMap<String, String>, message: &Message) -> Span {
    let span = span(None, &format!("process {}", message.destination.name), "consumer");
    // It fails only for a disabled span.
    let _ = span.set_parent(carried(headers));
    describe(&span, message, ("process", "process"));
    span
}

fn span(parent: Option<&Span>, name: &str, kind: &str) -> Span {
    info_span!(target: TARGET, parent: parent.and_then(Span::id), "basin", otel.name = name, otel.kind = kind)
}

fn describe(span: &Span, message: &Message, (name, kind): (&'static str, &'static str)) {
    if span.is_none() {
        return;
    }
    let destination = message.destination;
    if destination.system == "rabbitmq" {
        span.set_attribute("messaging.rabbitmq.destination.routing_key", destination.name.clone());
    }
    destination.attributes(name).into_iter().for_each(|KeyValue { key, value, .. }| span.set_attribute(key, value));
    span.set_attribute("messaging.operation.type", kind);
    span.set_attribute("messaging.message.id", message.job.to_owned());
    span.set_attribute("basin.job", message.job.to_owned());
    span.set_attribute("basin.run", message.run.to_owned());
    span.set_attribute("basin.image", message.image.to_owned());
}

/// Sets an attribute of a span.
pub fn attribute(span: &Span, name: &'static str, value: impl Into<Value>) {
    span.set_attribute(name, value);
}

/// Marks a span as failed. `reason` is one of few values.
pub fn fail(span: &Span, reason: &'static str) {
    span.set_attribute("error.type", reason);
    span.set_status(Status::error(reason));
}

/// Links a span to the trace of the message's earlier attempt.
pub fn redelivered(span: &Span, headers: &BTreeMap<String, String>) {
    let origin = carried(headers).span().span_context().clone();
    if origin.is_valid() {
        span.add_link_with_attributes(origin, vec![KeyValue::new("basin.redelivered", true)]);
    }
}

/// Headers with which a message continues the span's trace; empty if the span is disabled.
pub fn context(span: &Span) -> BTreeMap<String, String> {
    let mut headers = HashMap::<String, String>::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
    headers.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

fn carried(headers: &BTreeMap<String, String>) -> Context {
    let headers: HashMap<String, String> = headers.clone().into_iter().collect();
    TraceContextPropagator::new().extract(&headers)
}

/// Id of the span's trace; `None` if that is not sent.
pub fn id(span: &Span) -> Option<String> {
    let context = span.context();
    let ids = context.span().span_context().clone();
    (ids.is_valid() && ids.is_sampled()).then(|| ids.trace_id().to_string())
}
