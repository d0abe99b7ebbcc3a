//! `/healthz` and `/readyz` for a platform (*io*).

use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::{Shutdown, Working};

/// A step of the devices that takes longer than this hangs.
const STEP_LIMIT: Duration = Duration::from_secs(600);

/// Answers until the process ends: healthy while the devices' steps go on, ready until a stop is requested.
pub async fn serve(listener: TcpListener, mut working: watch::Receiver<Working>, shutdown: Shutdown) {
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
            return (StatusCode::SERVICE_UNAVAILABLE, "the devices have not moved\n");
        }
        (StatusCode::OK, "alive\n")
    };
    let ready = async move || {
        if shutdown.requested() { (StatusCode::SERVICE_UNAVAILABLE, "leaving\n") } else { (StatusCode::OK, "ready\n") }
    };
    let router = Router::new().route("/healthz", get(health)).route("/readyz", get(ready));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the health endpoint failed");
    }
}
