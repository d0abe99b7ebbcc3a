//! Logs on standard error; traces, metrics and logs to an OTLP receiver if one is configured; metrics for Prometheus to scrape.
//!
//! Telemetry never changes a result. A receiver that is away or slow does not delay a job: what does not fit into the SDK's
//! queues is dropped, and the end of a process waits for it no longer than [`PATIENCE`]. [`trace`] makes spans, a [`Metric`] is a
//! name with its instrument, [`messaging`] has the metrics of queues, `export` sends, [`scrape()`] shows, `logs` writes. No other crate
//! uses the OpenTelemetry crates.

mod export;
mod logs;
pub mod messaging;
mod metric;
mod resource;
mod scrape;
pub mod trace;
mod watched;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub use metric::{Instrument, Metric};
pub use scrape::{CONTENT_TYPE, scrape};

/// How long the end of a process waits for its last telemetry to be sent.
pub const PATIENCE: Duration = Duration::from_secs(2);

static MEASURES: AtomicBool = AtomicBool::new(false);

/// Whether metrics are sent or scraped. If not, skip measurements that cost something.
pub fn measures() -> bool {
    MEASURES.load(Ordering::Relaxed)
}

/// Sends the remaining telemetry when dropped, within [`PATIENCE`].
#[derive(Default)]
#[must_use = "dropping it sends the remaining telemetry"]
pub struct Guard {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
    /// Runtime of gRPC, independent of the program's own.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The SDK has no time limit for metrics: each provider shuts down on a thread of its own, which is abandoned if late.
        let (running, ended) = std::sync::mpsc::channel::<()>();
        if let Some(traces) = self.traces.take() {
            let running = running.clone();
            std::thread::spawn(move || {
                let _ = traces.shutdown_with_timeout(PATIENCE);
                drop(running);
            });
        }
        if let Some(logs) = self.logs.take() {
            let running = running.clone();
            std::thread::spawn(move || {
                let _ = logs.shutdown_with_timeout(PATIENCE);
                drop(running);
            });
        }
        if let Some(metrics) = self.metrics.take() {
            let running = running.clone();
            std::thread::spawn(move || {
                let _ = metrics.shutdown();
                drop(running);
            });
        }
        drop(running);
        // The channel closes with the last of them.
        let _ = ended.recv_timeout(PATIENCE);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts telemetry. Logs go to standard error as text, or as JSON if `BASIN_LOG_FORMAT=json`; `BASIN_LOG` filters them (`info`,
/// `debug`, `coordinator=debug,info`; default: `default`). Traces, metrics and logs of `service` go to `OTEL_EXPORTER_OTLP_ENDPOINT`,
/// or to the endpoint of a signal's own variable, or nowhere if neither is set.
///
/// Call it before any metric is recorded: an earlier metric never records anything.
pub fn init(service: &'static str, default: &str) -> Guard {
    begin(default, export::start(service, false))
}

/// [`init`] for a process that serves [`scrape()`].
pub fn init_scraped(service: &'static str, default: &str) -> Guard {
    begin(default, export::start(service, true))
}

fn begin(default: &str, started: Result<Guard, Box<dyn std::error::Error + Send + Sync>>) -> Guard {
    let (guard, failure) = match started {
        Ok(guard) => (guard, None),
        Err(error) => (Guard::default(), Some(error)),
    };
    let traced = guard.traces.as_ref().map(|traces| {
        // Our own spans only: the exporter's h2, hyper and tonic have spans, too.
        let filter = Targets::new().with_default(LevelFilter::OFF).with_target(trace::TARGET, LevelFilter::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(traces.tracer("basin"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_filter(filter)
    });
    if let Some(metrics) = &guard.metrics {
        opentelemetry::global::set_meter_provider(metrics.clone());
        MEASURES.store(true, Ordering::Relaxed);
    }
    let sent = guard.logs.as_ref().map(|provider| {
        let by_us = filter_fn(|event| !logs::is_of_export(event.target()));
        opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge::new(provider).with_filter(filter(default).and(by_us))
    });
    tracing_subscriber::registry().with(traced).with(sent).with(logs::layer().with_filter(filter(default))).init();
    if let Some(error) = failure {
        tracing::warn!(error, "cannot start telemetry; none is sent");
    }
    guard
}

/// Which events are logged.
fn filter(default: &str) -> EnvFilter {
    let filter = EnvFilter::try_from_env("BASIN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // Spans are for traces and do not belong in the log.
    filter.add_directive(format!("{}=off", trace::TARGET).parse().expect("a directive"))
}
