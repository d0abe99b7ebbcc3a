//! What the services say about themselves: logs on standard error, and traces and metrics to an OTLP receiver if there is one.
//!
//! Numbers leave sideways here and steer nothing. A receiver that is away or slow costs a job nothing: what does not fit into the
//! SDK's queues is dropped, and the end of a process waits for it no longer than [`PATIENCE`]. [`trace`] makes spans, a
//! [`Metric`] is a name with its instrument, `export` sends, `logs` writes. Nobody else names the OpenTelemetry crates.

mod export;
mod logs;
mod metric;
pub mod trace;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub use metric::{Kind, Metric, prometheus_name};

/// How long the end of a process waits until what it has to say is sent.
pub const PATIENCE: Duration = Duration::from_secs(2);

static MEASURES: AtomicBool = AtomicBool::new(false);

/// Whether metrics go anywhere: what costs something to find out need not be asked for otherwise.
pub fn measures() -> bool {
    MEASURES.load(Ordering::Relaxed)
}

/// Sends what is left when dropped, for no longer than [`PATIENCE`].
#[derive(Default)]
#[must_use = "what is left is sent when it is dropped"]
pub struct Guard {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    /// Where gRPC lives, whatever the program does with its own runtime.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The SDK waits for metrics as long as it likes: so both are told on threads of their own, which are left behind if late.
        let (done, ended) = std::sync::mpsc::channel();
        let deadline = Instant::now() + PATIENCE;
        let mut ends: Vec<Box<dyn FnOnce() + Send>> = vec![];
        if let Some(traces) = self.traces.take() {
            ends.push(Box::new(move || drop(traces.shutdown_with_timeout(PATIENCE))));
        }
        if let Some(metrics) = self.metrics.take() {
            ends.push(Box::new(move || drop(metrics.shutdown())));
        }
        let count = ends.len();
        for end in ends {
            let done = done.clone();
            std::thread::spawn(move || {
                end();
                let _ = done.send(());
            });
        }
        for _ in 0..count {
            let _ = ended.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Begins: logs go to standard error, as text, or as JSON where `BASIN_LOG_FORMAT=json`; `BASIN_LOG` chooses which, as `info`,
/// `debug` or `coordinator=debug,info`, and `default` does where it says nothing. Traces and metrics of `service` go where
/// `OTEL_EXPORTER_OTLP_ENDPOINT` or one of a signal says, and nowhere if none does.
///
/// Before any metric is recorded: one that is older records nothing.
pub fn init(service: &'static str, default: &str) -> Guard {
    let (guard, failure) = match export::start(service) {
        Ok(guard) => (guard, None),
        Err(error) => (Guard::default(), Some(error)),
    };
    let traced = guard.traces.as_ref().map(|traces| {
        // Only our own spans: those of h2, hyper and tonic under the exporter would make spans of their own.
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
    // Spans are for traces; in the log they would be in the way.
    let filter = filter.add_directive(format!("{}=off", trace::TARGET).parse().expect("a directive"));
    tracing_subscriber::registry().with(traced).with(logs::layer().with_filter(filter)).init();
    if let Some(error) = failure {
        tracing::warn!(error, "no telemetry is sent");
    }
    guard
}
