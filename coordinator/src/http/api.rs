//! The API: JSON in and out, described by `/openapi.json`.

use std::convert::Infallible;
use std::sync::LazyLock;

use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::{Extension, Json, Router, middleware};
use futures_util::{Stream, stream};
use proto::Event;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Access;
use super::changes::Who;
use super::door::{self, Door};
use crate::audit;
use crate::outcomes::Outcomes;
use crate::service::Refusal;
use client::api::{
    Backlog, Change, ErrorAnswer, FailureGroup, ImagePage, ImageQuery, LogEntry, LogQuery, Note, Outage, RedriveRequest,
    RunRequest, RunStatus, WorkerStatus,
};

/// Failures of a reason that are shown.
pub(super) const EXAMPLES: usize = 10;

#[derive(OpenApi)]
#[openapi(
    info(title = "basin coordinator", version = "1", description = "Submit, watch, change, redrive and delete runs."),
    components(responses(ErrorAnswer)),
    modifiers(&BearerToken)
)]
struct Description;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        openapi.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// Refusals of every request that needs a token.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
enum Refused {
    #[response(status = 401)]
    NoToken(#[ref_response] ErrorAnswer),
    #[response(status = 403)]
    Forbidden(#[ref_response] ErrorAnswer),
    #[response(status = 429)]
    TooMany(#[ref_response] ErrorAnswer),
    #[response(status = 503)]
    Unavailable(#[ref_response] ErrorAnswer),
}

fn open_routes() -> OpenApiRouter<Door> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(leader))
        .routes(routes!(description))
}

fn guarded_routes() -> OpenApiRouter<Door> {
    OpenApiRouter::new()
        .routes(routes!(runs, submit))
        .routes(routes!(run, change, delete))
        .routes(routes!(redrive))
        .routes(routes!(images))
        .routes(routes!(failures))
        .routes(routes!(workers))
        .routes(routes!(backlog))
        .routes(routes!(outages))
        .routes(routes!(log))
        .routes(routes!(events))
        .routes(routes!(metrics))
}

pub(super) fn router(door: &Door) -> Router<Door> {
    let guarded = guarded_routes().layer(middleware::from_fn_with_state(door.clone(), door::guard));
    open_routes().merge(guarded).into()
}

/// A JSON body. One that is not valid is refused as everything else is.
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

type Answer<T> = Result<Json<T>, Refusal>;

/// Say whether this process makes progress
#[utoipa::path(
    get, path = "/healthz",
    responses(
        (status = 200, description = "It makes progress, or stands by", content_type = "text/plain", body = str),
        (status = 503, description = "It is stuck and must be restarted", content_type = "text/plain", body = str)
    )
)]
async fn healthz(State(door): State<Door>) -> (StatusCode, String) {
    match door.handle.stuck() {
        None => (StatusCode::OK, "alive\n".into()),
        Some(since) => (StatusCode::SERVICE_UNAVAILABLE, format!("stuck: no turn of the main loop for {} s\n", since.as_secs())),
    }
}

/// Say whether this coordinator is active or the standby: `acting` or `standby`
///
/// A standby is ready, too: otherwise a platform would not let it wait. Use `/leader` to find the active one.
#[utoipa::path(get, path = "/readyz", responses((status = 200, description = "Ready", content_type = "text/plain", body = str)))]
async fn readyz(State(door): State<Door>) -> &'static str {
    if door.handle.leads() { "acting\n" } else { "standby\n" }
}

/// Say whether this coordinator is the active one, for load balancers
#[utoipa::path(
    get, path = "/leader",
    responses(
        (status = 200, description = "It acts", content_type = "text/plain", body = str),
        (status = 503, description = "It stands by", content_type = "text/plain", body = str)
    )
)]
async fn leader(State(door): State<Door>) -> (StatusCode, &'static str) {
    if door.handle.leads() { (StatusCode::OK, "acting\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "standby\n") }
}

/// Describe this API
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, description = "OpenAPI", content_type = "application/json", body = Object)))]
async fn description() -> impl IntoResponse {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let description = open_routes().merge(guarded_routes()).into_openapi();
        description.to_pretty_json().expect("a description serialises")
    });
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str())
}

/// List all runs
#[utoipa::path(
    get, path = "/v1/runs", security(("token" = [])),
    responses((status = 200, description = "The runs", body = Vec<RunStatus>), Refused)
)]
async fn runs(State(door): State<Door>) -> Answer<Vec<RunStatus>> {
    Ok(Json(door.handle.runs().await?))
}

/// Show a run
#[utoipa::path(
    get, path = "/v1/runs/{run}", security(("token" = [])), params(("run" = String, Path)),
    responses((status = 200, description = "The run", body = RunStatus), (status = 404, response = ErrorAnswer), Refused)
)]
async fn run(State(door): State<Door>, Path(name): Path<String>) -> Answer<RunStatus> {
    Ok(Json(door.handle.run(name).await?))
}

/// Submit a run
#[utoipa::path(
    post, path = "/v1/runs", security(("token" = [])), request_body = RunRequest,
    responses(
        (status = 201, description = "The run is created", body = Note),
        (status = 409, response = ErrorAnswer), (status = 422, response = ErrorAnswer), Refused
    )
)]
async fn submit(
    State(door): State<Door>,
    who: Who,
    Body(request): Body<RunRequest>,
) -> Result<(StatusCode, Json<Note>), Refusal> {
    let note = door.submit(who, request).await?;
    Ok((StatusCode::CREATED, Json(Note { note })))
}

/// Pause, resume or cancel a run, or change its priority, rate or budget
#[utoipa::path(
    patch, path = "/v1/runs/{run}", security(("token" = [])), params(("run" = String, Path)), request_body = Change,
    responses(
        (status = 200, description = "The run after the change", body = RunStatus),
        (status = 404, response = ErrorAnswer), (status = 409, response = ErrorAnswer), (status = 422, response = ErrorAnswer),
        Refused
    )
)]
async fn change(State(door): State<Door>, who: Who, Path(name): Path<String>, Body(change): Body<Change>) -> Answer<RunStatus> {
    Ok(Json(door.change(who, name, change).await?))
}

/// Delete a run that has ended, with all its objects
///
/// The answer comes when the run is marked. It is listed, with the number of objects deleted so far, until all are gone; then its name is
/// free.
#[utoipa::path(
    delete, path = "/v1/runs/{run}", security(("token" = [])), params(("run" = String, Path)),
    responses(
        (status = 202, description = "The run is being deleted", body = Note),
        (status = 404, response = ErrorAnswer), (status = 409, response = ErrorAnswer), Refused
    )
)]
async fn delete(State(door): State<Door>, who: Who, Path(name): Path<String>) -> Result<(StatusCode, Json<Note>), Refusal> {
    let note = door.delete(who, name).await?;
    Ok((StatusCode::ACCEPTED, Json(Note { note })))
}

/// Redrive images of a finished run: failures with the same seed or another, results with another seed
#[utoipa::path(
    post, path = "/v1/runs/{run}/redrive", security(("token" = [])), params(("run" = String, Path)), request_body = RedriveRequest,
    responses(
        (status = 200, description = "The images are planned again", body = Note),
        (status = 404, response = ErrorAnswer), (status = 409, response = ErrorAnswer), (status = 422, response = ErrorAnswer),
        Refused
    )
)]
async fn redrive(
    State(door): State<Door>,
    who: Who,
    Path(name): Path<String>,
    Body(which): Body<RedriveRequest>,
) -> Answer<Note> {
    Ok(Json(Note { note: door.redrive(who, name, which).await? }))
}

/// List finished images of a run: filtered, sorted, a page at a time
#[utoipa::path(
    get, path = "/v1/runs/{run}/images", security(("token" = [])), params(("run" = String, Path), ImageQuery),
    responses(
        (status = 200, description = "The images", body = ImagePage),
        (status = 404, response = ErrorAnswer), (status = 422, response = ErrorAnswer), Refused
    )
)]
async fn images(State(door): State<Door>, Path(name): Path<String>, Query(fields): Query<Fields>) -> Answer<ImagePage> {
    let query = query(fields)?;
    Ok(Json(door.handle.look(name, move |outcomes: &Outcomes| outcomes.page(&query)).await?.1))
}

/// The fields of a query, as they are in the URL.
pub(super) type Fields = Vec<(String, String)>;

pub(super) fn query(fields: Fields) -> Result<ImageQuery, Refusal> {
    parse_query(fields, &["class", "super_class", "image", "state", "reason", "sort"])
}

/// Empty fields are ignored. `texts`: the fields that are neither numbers nor booleans.
fn parse_query<T: DeserializeOwned>(fields: Fields, texts: &[&str]) -> Result<T, Refusal> {
    let mut object = serde_json::Map::new();
    for (name, text) in fields.into_iter().filter(|(_, text)| !text.is_empty()) {
        let value = match name.as_str() {
            name if texts.contains(&name) => Value::String(text),
            _ => serde_json::from_str(&text)
                .map_err(|_| Refusal::Invalid(format!("{name}={text:?} is not a number, true or false")))?,
        };
        object.insert(name, value);
    }
    serde_json::from_value(object.into()).map_err(|error| Refusal::Invalid(error.to_string()))
}

/// List failures of a run by reason, with some images of each
#[utoipa::path(
    get, path = "/v1/runs/{run}/failures", security(("token" = [])), params(("run" = String, Path)),
    responses((status = 200, description = "The failures", body = Vec<FailureGroup>), (status = 404, response = ErrorAnswer), Refused)
)]
async fn failures(State(door): State<Door>, Path(name): Path<String>) -> Answer<Vec<FailureGroup>> {
    Ok(Json(door.handle.look(name, |outcomes: &Outcomes| outcomes.failure_groups(EXAMPLES)).await?.1))
}

/// List workers that were heard of in the last minute
#[utoipa::path(
    get, path = "/v1/workers", security(("token" = [])),
    responses((status = 200, description = "The workers", body = Vec<WorkerStatus>), Refused)
)]
async fn workers(State(door): State<Door>) -> Answer<Vec<WorkerStatus>> {
    Ok(Json(door.handle.workers().await?))
}

/// Count images of running runs that are not finished, for an autoscaler
#[utoipa::path(
    get, path = "/v1/backlog", security(("token" = [])),
    responses((status = 200, description = "The number of images", body = Backlog), Refused)
)]
async fn backlog(State(door): State<Door>) -> Answer<Backlog> {
    Ok(Json(Backlog { backlog: door.handle.backlog().await? }))
}

/// List outages of store and broker, which the coordinator waits out
#[utoipa::path(
    get, path = "/v1/outages", security(("token" = [])),
    responses((status = 200, description = "The outages that go on", body = Vec<Outage>), Refused)
)]
async fn outages(State(door): State<Door>) -> Answer<Vec<Outage>> {
    Ok(Json(door.handle.outages()))
}

/// List the newest changes and who made them, the newest first
#[utoipa::path(
    get, path = "/v1/log", security(("token" = [])), params(LogQuery),
    responses((status = 200, description = "The changes", body = Vec<LogEntry>), (status = 422, response = ErrorAnswer), Refused)
)]
async fn log(State(door): State<Door>, Query(fields): Query<Fields>) -> Answer<Vec<LogEntry>> {
    let query = parse_query(fields, &["run"])?;
    Ok(Json(door.log(&query).await?))
}

impl Door {
    /// The newest entries of the log of changes.
    pub(super) async fn log(&self, query: &LogQuery) -> Result<Vec<LogEntry>, Refusal> {
        let Some(home) = self.handle.home() else { return Ok(vec![]) };
        let late = || Refusal::Unavailable("the store does not answer: try again in a moment".into());
        let read = tokio::time::timeout(self.handle.patience(), audit::read(home, query)).await;
        Ok(read.map_err(|_| late())??)
    }
}

/// Show the metrics of this coordinator to Prometheus; a standby has them, too
#[utoipa::path(
    get, path = "/metrics", security(("token" = [])),
    responses(
        (status = 200, description = "Prometheus' text format", content_type = "text/plain", body = str),
        (status = 404, response = ErrorAnswer), Refused
    )
)]
async fn metrics() -> Result<impl IntoResponse, Refusal> {
    let text = tokio::task::spawn_blocking(telemetry::scrape).await.expect("it does not panic");
    let text = text.ok_or_else(|| Refusal::NotFound("this process measures nothing: see OTEL_SDK_DISABLED".into()))?;
    Ok(([(header::CONTENT_TYPE, telemetry::CONTENT_TYPE)], text))
}

/// Listen to events as server-sent events: started, succeeded, failed, released, alive
#[utoipa::path(
    get, path = "/v1/events", security(("token" = [])),
    responses((status = 200, description = "The events", content_type = "text/event-stream", body = str), Refused)
)]
async fn events(
    State(door): State<Door>,
    Extension(access): Extension<Access>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Refusal> {
    let receiver = door.handle.listen().await?;
    let stream = stream::unfold(receiver, async |mut receiver| {
        loop {
            match receiver.recv().await {
                Ok(event) => return Some((Ok(shown(&event)), receiver)),
                // A slow client misses events; the run's status is right nevertheless.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Ok(Sse::new(door::while_access_lasts(access, stream)).keep_alive(KeepAlive::default()))
}

fn shown(event: &Event) -> sse::Event {
    let (kind, what) = match serde_json::to_value(&event.what).expect("plain fields serialise") {
        // As an object and by its kind, `{"failed": {…}}`; what has no fields is the name of its kind.
        Value::Object(what) => what.into_iter().next().expect("it has a kind"),
        kind => (kind.as_str().unwrap_or_default().to_owned(), json!({})),
    };
    let data = json!({
        "run": event.run, "image": event.image, "job": event.job, "class": event.class, "worker": event.worker, "what": what
    });
    sse::Event::default().event(kind).data(data.to_string())
}
