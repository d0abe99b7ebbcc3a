//! `/healthz`, `/readyz` and `/metrics` over HTTP (*io*).

use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Working;
use crate::watchdog::is_hung;

/// Serves until the process ends: healthy unless a step of the devices takes longer than `step_limit`, ready until a shutdown is
/// requested.
pub async fn serve(
    listener: TcpListener,
    working: watch::Receiver<Working>,
    step_limit: Option<Duration>,
    shutdown: CancellationToken,
) {
    let health = async move || {
        if is_hung(&working.borrow(), step_limit) {
            return (StatusCode::SERVICE_UNAVAILABLE, "the devices have not finished a step for too long\n");
        }
        (StatusCode::OK, "alive\n")
    };
    let ready = async move || {
        if shutdown.is_cancelled() { (StatusCode::SERVICE_UNAVAILABLE, "leaving\n") } else { (StatusCode::OK, "ready\n") }
    };
    let router = Router::new().route("/healthz", get(health)).route("/readyz", get(ready)).route("/metrics", get(metrics));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the health endpoint failed");
    }
}

async fn metrics() -> Result<([(header::HeaderName, &'static str); 1], String), StatusCode> {
    // A driver that is asked for its GPUs may be slow.
    let text = tokio::task::spawn_blocking(telemetry::scrape).await.expect("it does not panic");
    text.map(|text| ([(header::CONTENT_TYPE, telemetry::CONTENT_TYPE)], text)).ok_or(StatusCode::NOT_FOUND)
}
