//! The HTTP interface (*io*): the API (JSON) and the dashboard (pages).
//!
//! Everything but `/healthz`, `/readyz`, `/leader`, `/openapi.json` and the login needs a token, as `Authorization: Bearer …` or by a
//! session.

pub mod api;
pub mod auth;
mod changes;
pub mod connections;
mod dashboard;
mod door;
mod origin;
pub mod other_services;
mod percent;
pub mod session;

use std::convert::Infallible;

use axum::http::StatusCode;
use axum::{Router, middleware};
use tokio::net::TcpListener;

use crate::service::{Handle, Refusal};
use auth::Gate;
use connections::Limits;
use door::Door;
use other_services::OtherServices;

pub fn router(handle: Handle, gate: Gate, others: OtherServices) -> Router {
    let door = Door::new(handle, gate, others);
    Router::new()
        .merge(api::router(&door))
        .merge(dashboard::router(&door))
        .fallback(async || Refusal::NotFound("there is no such path: see /openapi.json for all paths".into()))
        .method_not_allowed_fallback(async || {
            (StatusCode::METHOD_NOT_ALLOWED, door::error("this path does not allow this method: see /openapi.json"))
        })
        .layer(middleware::from_fn(origin::guard))
        .layer(middleware::map_response(dashboard::protect))
        .layer(middleware::from_fn_with_state(door.clone(), door::limit))
        .with_state(door)
}

/// Serves all routes, until it is dropped.
pub async fn serve(listener: TcpListener, handle: Handle, gate: Gate, others: OtherServices) -> Infallible {
    connections::serve(listener, router(handle, gate, others), Limits::default()).await
}
