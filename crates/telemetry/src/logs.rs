//! Log events on standard error: as text, or as JSON with the ids of their trace.

use std::fmt;
use std::io::IsTerminal;

use opentelemetry::trace::TraceContextExt;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Text, or JSON if `BASIN_LOG_FORMAT=json`.
pub fn layer<S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync>() -> Box<dyn Layer<S> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if std::env::var("BASIN_LOG_FORMAT").is_ok_and(|format| format == "json") {
        layer.json().flatten_event(true).map_event_format(Traced).boxed()
    } else {
        layer.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed()
    }
}

/// Whether a log event may come from the sending of logs, which would then never end.
pub fn is_of_export(target: &str) -> bool {
    let library = target.split("::").next().unwrap_or_default();
    ["h2", "hyper", "hyper_util", "tonic", "tower", "ureq", "ureq_proto", "rustls"].contains(&library)
        || library.starts_with("opentelemetry")
}

/// A JSON line with the ids of its trace and span.
struct Traced<F>(F);

impl<S, N, F> FormatEvent<S, N> for Traced<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &tracing::Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let now = opentelemetry::Context::current();
        let ids = now.span().span_context().clone();
        match line.strip_prefix('{') {
            Some(rest) if ids.is_valid() => {
                write!(writer, "{{\"trace_id\":\"{}\",\"span_id\":\"{}\",{rest}", ids.trace_id(), ids.span_id())
            }
            _ => writer.write_str(&line),
        }
    }
}
