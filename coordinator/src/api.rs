//! The HTTP interface (*io*): JSON in and out, described by `openapi.json`.
//!
//! Everything but `/healthz`, `/readyz` and the description needs the token, as `Authorization: Bearer …`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, stream};
use proto::{Event, What};
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::broadcast::error::RecvError;

use crate::fleet::RunStatus;
use crate::service::{Change, Handle, RedriveRequest, Refusal, RunRequest};

/// The description of this interface.
pub const OPENAPI: &str = include_str!("openapi.json");

/// Largest request, in bytes.
const MAX_BODY: usize = 1 << 20;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, message) = match self {
            Refusal::NotFound(m) => (StatusCode::NOT_FOUND, m),
            Refusal::Conflict(m) => (StatusCode::CONFLICT, m),
            Refusal::Invalid(m) => (StatusCode::UNPROCESSABLE_ENTITY, m),
            Refusal::Unavailable(m) => (StatusCode::SERVICE_UNAVAILABLE, m),
        };
        (status, Json(json!({ "error": message }))).into_response()
    }
}

/// JSON of a request; what is none is refused as everything else is.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, Refusal> {
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Body(body)),
            Err(rejection) => Err(Refusal::Invalid(rejection.body_text())),
        }
    }
}

/// All routes. `token`: what clients must show; `None` lets everybody in.
pub fn router(handle: Handle, token: Option<&str>) -> Router {
    let digest: Option<Arc<[u8]>> = token.map(|t| Sha256::digest(t.as_bytes()).as_slice().into());
    let guarded = Router::new()
        .route("/v1/runs", get(runs).post(submit))
        .route("/v1/runs/{run}", get(run).patch(change))
        .route("/v1/runs/{run}/redrive", post(redrive))
        .route("/v1/workers", get(workers))
        .route("/v1/backlog", get(backlog))
        .route("/v1/events", get(events))
        .layer(middleware::from_fn(move |request, next| check_token(digest.clone(), request, next)));
    Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI)))
        .merge(guarded)
        .fallback(async || Refusal::NotFound("there is no such thing: /openapi.json describes what there is".into()))
        .method_not_allowed_fallback(async || {
            let error = json!({ "error": "that cannot be done here: /openapi.json describes what can" });
            (StatusCode::METHOD_NOT_ALLOWED, Json(error))
        })
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(handle)
}

async fn check_token(wanted: Option<Arc<[u8]>>, request: Request, next: Next) -> Response {
    let Some(wanted) = wanted else { return next.run(request).await };
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    // Digests are compared, so that the time it takes says nothing about the token.
    if shown.is_some_and(|token| Sha256::digest(token.as_bytes()).as_slice() == &*wanted) {
        return next.run(request).await;
    }
    let error = json!({ "error": "show the coordinator's token: Authorization: Bearer …" });
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], Json(error)).into_response()
}

/// A standby is ready too, or a platform would never let it wait; it says so.
async fn ready(State(handle): State<Handle>) -> &'static str {
    if handle.leads() { "acting\n" } else { "standby\n" }
}

async fn runs(State(handle): State<Handle>) -> Result<Json<Vec<RunStatus>>, Refusal> {
    Ok(Json(handle.runs().await?))
}

async fn run(State(handle): State<Handle>, Path(name): Path<String>) -> Result<Json<RunStatus>, Refusal> {
    let found = handle.runs().await?.into_iter().find(|r| r.name == name);
    found.map(Json).ok_or_else(|| Refusal::NotFound(format!("there is no run {name}")))
}

async fn submit(State(handle): State<Handle>, Body(request): Body<RunRequest>) -> Result<Response, Refusal> {
    let note = handle.submit(request).await?;
    Ok((StatusCode::CREATED, Json(json!({ "note": note }))).into_response())
}

async fn change(
    State(handle): State<Handle>,
    Path(name): Path<String>,
    Body(change): Body<Change>,
) -> Result<Json<RunStatus>, Refusal> {
    Ok(Json(handle.change(name, change).await?))
}

async fn redrive(
    State(handle): State<Handle>,
    Path(name): Path<String>,
    Body(which): Body<RedriveRequest>,
) -> Result<Json<serde_json::Value>, Refusal> {
    Ok(Json(json!({ "note": handle.redrive(name, which).await? })))
}

async fn workers(State(handle): State<Handle>) -> Result<Json<serde_json::Value>, Refusal> {
    Ok(Json(json!(handle.workers().await?)))
}

/// For an autoscaler: images that are still to be done.
async fn backlog(State(handle): State<Handle>) -> Result<Json<serde_json::Value>, Refusal> {
    Ok(Json(json!({ "backlog": handle.backlog().await? })))
}

async fn events(State(handle): State<Handle>) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Refusal> {
    let receiver = handle.listen().await?;
    let stream = stream::unfold(receiver, async |mut receiver| {
        loop {
            match receiver.recv().await {
                Ok(event) => return Some((Ok(shown(&event)), receiver)),
                // Who reads slowly misses some; the runs' status is never wrong for it.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Ok(Sse::new(stream.boxed()).keep_alive(KeepAlive::default()))
}

fn shown(event: &Event) -> sse::Event {
    let (kind, what) = match &event.what {
        What::Started => ("started", json!({})),
        What::Succeeded { loss, seconds, lane_steps, l1, lpips } => {
            ("succeeded", json!({ "loss": loss, "seconds": seconds, "lane_steps": lane_steps, "l1": l1, "lpips": lpips }))
        }
        What::Failed { reason, message } => ("failed", json!({ "reason": reason, "message": message })),
        What::Released { queued } => ("released", json!({ "queued": queued })),
        What::Alive(alive) => ("alive", json!(alive)),
    };
    let data = json!({
        "run": event.run, "image": event.image, "job": event.job, "class": event.class, "worker": event.worker, "what": what
    });
    sse::Event::default().event(kind).data(data.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_description_names_every_route() {
        let described: serde_json::Value = serde_json::from_str(super::OPENAPI).expect("the description is JSON");
        let mut described: Vec<&String> = described["paths"].as_object().expect("paths").keys().collect();
        let source = include_str!("api.rs");
        let mut routes: Vec<String> = source
            .lines()
            .filter_map(|line| line.trim().strip_prefix(".route(\"")?.split('"').next())
            .map(str::to_owned)
            .collect();
        routes.sort();
        described.sort();
        assert_eq!(described, routes.iter().collect::<Vec<_>>());
    }
}
