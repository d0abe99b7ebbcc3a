//! The HTTP interface (*io*): JSON in and out, described by `openapi.json`; and the doors to it and to the dashboard.
//!
//! Everything but `/healthz`, `/readyz` and the description needs a token, as `Authorization: Bearer …` or by a session.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, FromRequest, Path, Query as FromQuery, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, stream};
use proto::{Event, What};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;

use crate::auth::{Gate, Limiter, Role};
use crate::connections::{self, Limits};
use crate::dashboard::{self, Elsewhere};
use crate::outcomes::Outcomes;
use crate::service::{Handle, Refusal};
use client::api::{Change, FailureGroup, ImagePage, RedriveRequest, RunRequest, RunStatus};

/// The description of this interface.
pub const OPENAPI: &str = include_str!("openapi.json");

/// Largest request, in bytes, and how long it may take to come.
const MAX_BODY: usize = 1 << 20;
const BODY: Duration = Duration::from_secs(20);
/// Requests of one address: each second in the long run, and at once. A grid of images asks for some hundred pictures.
const REQUESTS: (f64, f64) = (200.0, 2000.0);
/// Wrong tokens of one address.
const TRIES: (f64, f64) = (0.2, 20.0);
/// Failures of a kind that are shown.
const EXAMPLES: usize = 10;

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
            Refusal::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status(), Json(json!({ "error": self.message() }))).into_response()
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

/// What all answers need: the service, and who may ask it.
#[derive(Clone)]
pub struct Door {
    pub(crate) handle: Handle,
    pub(crate) gate: Arc<Gate>,
    pub(crate) elsewhere: Arc<Elsewhere>,
    requests: Arc<Mutex<Limiter>>,
    tries: Arc<Mutex<Limiter>>,
    clock: Instant,
}

impl Door {
    fn now(&self) -> f64 {
        self.clock.elapsed().as_secs_f64()
    }

    /// Counts a try at a token.
    pub(crate) fn count_try(&self, who: IpAddr) -> Result<(), Refusal> {
        let mut tries = self.tries.lock().expect("nobody panics with it");
        let many = || Refusal::TooMany("too many wrong tokens from this address: wait a minute".into());
        tries.take(who, self.now()).then_some(()).ok_or_else(many)
    }

    /// What whoever asks may do, if it is enough.
    fn role(&self, request: &Request) -> Result<Role, Denied> {
        let wanted = if matches!(*request.method(), Method::GET | Method::HEAD) { Role::View } else { Role::Operate };
        match self.gate.role(request.headers()) {
            Some(role) if role >= wanted => Ok(role),
            Some(_) => Err(Denied::Refused(Refusal::Forbidden("this token lets you look, and change nothing".into()))),
            None if self.gate.is_open() => {
                Err(Denied::Refused(Refusal::Forbidden("without a token only localhost is served: use http://127.0.0.1".into())))
            }
            // A right token is never refused: only wrong ones count.
            None if Gate::shows_one(request.headers()) => match self.count_try(address(request)) {
                Ok(()) => Err(Denied::Unknown),
                Err(refusal) => Err(Denied::Refused(refusal)),
            },
            None => Err(Denied::Unknown),
        }
    }
}

enum Denied {
    Unknown,
    Refused(Refusal),
}

/// Who asks.
#[derive(Clone, Copy)]
pub(crate) struct Who(pub(crate) IpAddr);

/// On a listener that does not say so, all are one.
fn address(request: &Request) -> IpAddr {
    let known = request.extensions().get::<ConnectInfo<SocketAddr>>();
    known.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(address)| address.ip())
}

/// All routes.
pub fn router(handle: Handle, gate: Gate, elsewhere: Elsewhere) -> Router {
    let limiter = |(per_second, burst)| Arc::new(Mutex::new(Limiter::new(per_second, burst)));
    let (requests, tries) = (limiter(REQUESTS), limiter(TRIES));
    let (gate, elsewhere) = (Arc::new(gate), Arc::new(elsewhere));
    let door = Door { handle, gate, elsewhere, requests, tries, clock: Instant::now() };
    let guarded = Router::new()
        .route("/v1/runs", get(runs).post(submit))
        .route("/v1/runs/{run}", get(run).patch(change))
        .route("/v1/runs/{run}/redrive", post(redrive))
        .route("/v1/runs/{run}/images", get(images))
        .route("/v1/runs/{run}/failures", get(failures))
        .route("/v1/workers", get(workers))
        .route("/v1/backlog", get(backlog))
        .route("/v1/events", get(events))
        .layer(middleware::from_fn_with_state(door.clone(), guard));
    Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI)))
        .merge(guarded)
        .merge(dashboard::router(&door))
        .fallback(async || Refusal::NotFound("there is no such thing: /openapi.json describes what there is".into()))
        .method_not_allowed_fallback(async || {
            let error = json!({ "error": "that cannot be done here: /openapi.json describes what can" });
            (StatusCode::METHOD_NOT_ALLOWED, Json(error))
        })
        .layer(middleware::map_response(dashboard::protect))
        .layer(middleware::from_fn_with_state(door.clone(), limit))
        .with_state(door)
}

/// Serves all routes, until it is dropped.
pub async fn serve(listener: TcpListener, handle: Handle, gate: Gate, elsewhere: Elsewhere) -> Infallible {
    connections::serve(listener, router(handle, gate, elsewhere), Limits::default()).await
}

async fn limit(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let who = address(&request);
    request.extensions_mut().insert(Who(who));
    let allowed = door.requests.lock().expect("nobody panics with it").take(who, door.now());
    if !allowed {
        return Refusal::TooMany("too many requests from this address: wait a moment".into()).into_response();
    }
    // Whole, before anybody waits for it.
    let (head, body) = request.into_parts();
    match tokio::time::timeout(BODY, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(head, body.into())).await,
        Ok(Err(_)) => Refusal::Invalid(format!("the request broke off, or has more than {MAX_BODY} bytes")).into_response(),
        Err(_) => Refusal::Invalid(format!("the request did not come within {} s", BODY.as_secs())).into_response(),
    }
}

async fn guard(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    match door.role(&request) {
        Ok(role) => {
            request.extensions_mut().insert(role);
            next.run(request).await
        }
        Err(Denied::Refused(refusal)) => refusal.into_response(),
        Err(Denied::Unknown) => {
            let error = json!({ "error": "show the coordinator's token: Authorization: Bearer …" });
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], Json(error)).into_response()
        }
    }
}

/// As the others, but who is not known may log in.
pub(crate) async fn guard_pages(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    match door.role(&request) {
        Ok(role) => {
            request.extensions_mut().insert(role);
            next.run(request).await
        }
        Err(Denied::Refused(refusal)) => refusal.into_response(),
        Err(Denied::Unknown) if request.method() == Method::GET && wants_page(request.headers()) => {
            let to = request.uri().path_and_query().map_or("/", |to| to.as_str());
            Redirect::to(&format!("/login?to={}", dashboard::encoded(to))).into_response()
        }
        Err(Denied::Unknown) => Refusal::Forbidden("log in first".into()).into_response(),
    }
}

fn wants_page(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|accept| accept.contains("text/html"))
}

/// A standby is ready too, or a platform would never let it wait; it says so.
async fn ready(State(door): State<Door>) -> &'static str {
    if door.handle.leads() { "acting\n" } else { "standby\n" }
}

async fn runs(State(door): State<Door>) -> Result<Json<Vec<RunStatus>>, Refusal> {
    Ok(Json(door.handle.runs().await?))
}

async fn run(State(door): State<Door>, Path(name): Path<String>) -> Result<Json<RunStatus>, Refusal> {
    Ok(Json(door.handle.run(name).await?))
}

async fn submit(State(door): State<Door>, Body(request): Body<RunRequest>) -> Result<Response, Refusal> {
    let note = door.handle.submit(request).await?;
    Ok((StatusCode::CREATED, Json(json!({ "note": note }))).into_response())
}

async fn change(
    State(door): State<Door>,
    Path(name): Path<String>,
    Body(change): Body<Change>,
) -> Result<Json<RunStatus>, Refusal> {
    Ok(Json(door.handle.change(name, change).await?))
}

async fn redrive(
    State(door): State<Door>,
    Path(name): Path<String>,
    Body(which): Body<RedriveRequest>,
) -> Result<Json<serde_json::Value>, Refusal> {
    Ok(Json(json!({ "note": door.handle.redrive(name, which).await? })))
}

async fn images(
    State(door): State<Door>,
    Path(name): Path<String>,
    FromQuery(fields): FromQuery<Vec<(String, String)>>,
) -> Result<Json<ImagePage>, Refusal> {
    let query = dashboard::query(fields).map_err(Refusal::Invalid)?;
    Ok(Json(door.handle.look(name, move |outcomes: &Outcomes| outcomes.page(&query)).await?.1))
}

async fn failures(State(door): State<Door>, Path(name): Path<String>) -> Result<Json<Vec<FailureGroup>>, Refusal> {
    Ok(Json(door.handle.look(name, |outcomes: &Outcomes| outcomes.failure_groups(EXAMPLES)).await?.1))
}

async fn workers(State(door): State<Door>) -> Result<Json<serde_json::Value>, Refusal> {
    Ok(Json(json!(door.handle.workers().await?)))
}

/// For an autoscaler: images that are still to be done.
async fn backlog(State(door): State<Door>) -> Result<Json<serde_json::Value>, Refusal> {
    Ok(Json(json!({ "backlog": door.handle.backlog().await? })))
}

async fn events(State(door): State<Door>) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Refusal> {
    let receiver = door.handle.listen().await?;
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
        What::Succeeded { loss, seconds, lane_steps, l1, lpips, stage_seconds } => {
            let numbers = json!({ "loss": loss, "seconds": seconds, "lane_steps": lane_steps, "l1": l1, "lpips": lpips,
                "stage_seconds": stage_seconds });
            ("succeeded", numbers)
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
