//! Spans, and how a trace goes on in another process.
//!
//! Names and attributes of messages follow the messaging conventions of OpenTelemetry 1.42 to 1.44. Where traces go nowhere, a span
//! is nothing and costs nothing.

use std::collections::BTreeMap;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{Status, TraceContextExt};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// All spans of ours.
pub(crate) const TARGET: &str = "basin_trace";

/// What a message carries of its trace.
pub type Context = BTreeMap<String, String>;

/// Who a message is for, and what it is.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// `rabbitmq`, or our own.
    pub system: &'static str,
    /// The queue, as `jobs`.
    pub queue: &'a str,
    /// Id of its job.
    pub job: &'a str,
    /// Name of its run.
    pub run: &'a str,
    /// Key of its image.
    pub image: &'a str,
}

/// A part of `parent`'s work that begins now, and ends when all clones are dropped.
pub fn child(parent: &Span, name: &str) -> Span {
    span(Some(parent), name, "internal")
}

/// A message is published, as part of `parent` or as the beginning of a trace.
pub fn publish(parent: Option<&Span>, message: &Message) -> Span {
    let span = span(parent, &format!("publish basin.{}", message.queue), "producer");
    describe(&span, message, ("publish", "send"));
    span
}

/// A message is worked on, as part of the trace that it brings.
pub fn process(context: &Context, message: &Message) -> Span {
    let span = span(None, &format!("process basin.{}", message.queue), "consumer");
    // Only a span that is none has no parent.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&Found(context)));
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
    let queue = format!("basin.{}", message.queue);
    if message.system == "rabbitmq" {
        span.set_attribute("messaging.rabbitmq.destination.routing_key", queue.clone());
    }
    span.set_attribute("messaging.system", message.system);
    span.set_attribute("messaging.destination.name", queue);
    span.set_attribute("messaging.operation.name", name);
    span.set_attribute("messaging.operation.type", kind);
    span.set_attribute("messaging.message.id", message.job.to_owned());
    span.set_attribute("basin.job", message.job.to_owned());
    span.set_attribute("basin.run", message.run.to_owned());
    span.set_attribute("basin.image", message.image.to_owned());
}

/// Says more about a span.
pub fn attribute(span: &Span, name: &'static str, value: impl Into<Value>) {
    span.set_attribute(name, value);
}

/// What the span was for went wrong; `reason` is one of few.
pub fn fail(span: &Span, reason: &'static str) {
    span.set_attribute("error.type", reason);
    span.set_status(Status::error(reason));
}

/// An earlier attempt at the same message is somewhere in the trace that it brought.
pub fn redelivered(span: &Span, context: &Context) {
    let origin = TraceContextPropagator::new().extract(&Found(context)).span().span_context().clone();
    if origin.is_valid() {
        span.add_link_with_attributes(origin, vec![KeyValue::new("basin.redelivered", true)]);
    }
}

/// What a message must carry to go on with the span's trace; nothing where there is none.
pub fn context(span: &Span) -> Context {
    let mut context = Context::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut Carried(&mut context));
    context
}

/// Id of the span's trace.
pub fn id(span: &Span) -> Option<String> {
    let context = span.context();
    let ids = context.span().span_context().clone();
    ids.is_valid().then(|| ids.trace_id().to_string())
}

struct Carried<'a>(&'a mut Context);

impl Injector for Carried<'_> {
    fn set(&mut self, name: &str, value: String) {
        if !value.is_empty() {
            self.0.insert(name.into(), value);
        }
    }
}

struct Found<'a>(&'a Context);

impl Extractor for Found<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}
