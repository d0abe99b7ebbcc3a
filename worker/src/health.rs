//! `/healthz` and `/readyz` over HTTP (*io*).

use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Working;

/// A step of the devices that takes longer than this counts as hanging.
const STEP_LIMIT: Duration = Duration::from_secs(600);

/// Serves until the process ends: healthy unless a step of the devices hangs, ready until a shutdown is requested.
pub async fn serve(listener: TcpListener, mut working: watch::Receiver<Working>, shutdown: CancellationToken) {
    // When the devices moved last; `None` while they have nothing to do.
    let (moved, last) = watch::channel(None);
    tokio::spawn(async move {
        while working.changed().await.is_ok() {
            let busy = working.borrow().images > 0;
            moved.send_replace(busy.then(Instant::now));
        }
    });
    let health = async move || {
        if last.borrow().is_some_and(|when: Instant| when.elapsed() > STEP_LIMIT) {
            return (StatusCode::SERVICE_UNAVAILABLE, "no device has finished a step for 10 minutes\n");
        }
        (StatusCode::OK, "alive\n")
    };
    let ready = async move || {
        if shutdown.is_cancelled() { (StatusCode::SERVICE_UNAVAILABLE, "leaving\n") } else { (StatusCode::OK, "ready\n") }
    };
    let router = Router::new().route("/healthz", get(health)).route("/readyz", get(ready));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the health endpoint failed");
    }
}
