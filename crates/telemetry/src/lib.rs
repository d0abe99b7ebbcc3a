//! Logs on standard error, and traces and metrics to an OTLP receiver if one is configured.
//!
//! Telemetry never changes a result. A receiver that is away or slow does not delay a job: what does not fit into the SDK's
//! queues is dropped, and the end of a process waits for it no longer than [`PATIENCE`]. [`trace`] makes spans, a [`Metric`] is a
//! name with its instrument, `export` sends, `logs` writes. No other crate uses the OpenTelemetry crates.

mod export;
mod logs;
mod metric;
pub mod trace;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub use metric::{Instrument, Metric};

/// How long the end of a process waits for its last telemetry to be sent.
pub const PATIENCE: Duration = Duration::from_secs(2);

static MEASURES: AtomicBool = AtomicBool::new(false);

/// Whether metrics are sent. If not, skip measurements that cost something.
pub fn measures() -> bool {
    MEASURES.load(Ordering::Relaxed)
}

/// Sends the remaining telemetry when dropped, within [`PATIENCE`].
#[derive(Default)]
#[must_use = "dropping it sends the remaining telemetry"]
pub struct Guard {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
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
/// `debug`, `coordinator=debug,info`; default: `default`). Traces and metrics of `service` go to `OTEL_EXPORTER_OTLP_ENDPOINT`, or
/// to the endpoint of a signal's own variable, or nowhere if neither is set.
///
/// Call it before any metric is recorded: an earlier metric never records anything.
pub fn init(service: &'static str, default: &str) -> Guard {
    let (guard, failure) = match export::start(service) {
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
    let filter = EnvFilter::try_from_env("BASIN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // Spans are for traces and do not belong in the log.
    let filter = filter.add_directive(format!("{}=off", trace::TARGET).parse().expect("a directive"));
    tracing_subscriber::registry().with(traced).with(logs::layer().with_filter(filter)).init();
    if let Some(error) = failure {
        tracing::warn!(error, "cannot start telemetry; none is sent");
    }
    guard
}
