//! The dashboard (*io*): pages made here, whose numbers follow by server-sent events. Nothing is asked of any other host.
//!
//! A page is whole without its script; the script keeps it fresh, draws the charts and fills the grid of images.

mod edits;
mod pages;
mod traces;

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Form, Path, Query as FromQuery, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use futures_util::{Stream, stream};
use maud::Markup;
use proto::keys::{Item, Marker};
use proto::{History, ResultRecord, RunState, keys};
use serde::Deserialize;
use store::ErrorKind;

use crate::Error;
use crate::api::{Door, Who};
use crate::auth::{Gate, Role};
use crate::outcomes::Outcomes;
use crate::service::{Handle, Refusal};
use client::api::{Change, ImageQuery, ImageSort, ImageState, RedriveRequest};
pub use edits::{EditUrl, Edits};
use pages::{BY_SUPER_CLASS, Frame};
pub(crate) use pages::{decoded, encoded};
use results::RunError;
use results::run;
pub use traces::TraceUrl;

/// Images of a run's page with the largest and with the smallest loss.
const EXTREMES: usize = 8;
/// Bars of the losses' distribution.
const INTERVALS: usize = 40;
/// Failures of a kind that are shown.
const EXAMPLES: usize = 10;
/// After a lost connection a page asks again so soon.
const RETRY: Duration = Duration::from_millis(500);

/// Nothing but what comes from here, and no script or style in a page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
    form-action 'self'; frame-ancestors 'none'";

const ICON: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 32 32\"><path d=\"M2 8q14 34 28 0\" fill=\"none\" \
    stroke=\"#1f5fbf\" stroke-width=\"4\" stroke-linecap=\"round\"/><circle cx=\"16\" cy=\"22\" r=\"4\" fill=\"#b3261e\"/></svg>";

/// The pages and what they need. Those for people who are not logged in are open.
pub(crate) fn router(door: &Door) -> Router<Door> {
    let pages = Router::new()
        .route("/", get(runs))
        .route("/runs/{run}", get(one_run))
        .route("/runs/{run}/images", get(images))
        .route("/runs/{run}/image", get(image))
        .route("/runs/{run}/picture", get(picture))
        .route("/runs/{run}/failures", get(failures_of))
        .route("/runs/{run}/results.csv", get(csv))
        .route("/runs/{run}/results.parquet", get(parquet))
        .route("/runs/{run}/report.html", get(report))
        .route("/runs/{run}/edit", get(edit))
        .route("/runs/{run}/edit/options", get(edit_options))
        .route("/fleet", get(fleet))
        .route("/failures", get(failures))
        .route("/ui/live", get(live))
        .route("/runs/{run}/act", post(act))
        .route("/runs/{run}/redrive", post(redrive))
        .layer(middleware::from_fn_with_state(door.clone(), notes))
        .layer(middleware::from_fn_with_state(door.clone(), crate::api::guard_pages));
    let open = Router::new()
        .route("/login", get(login).post(enter))
        .route("/logout", post(leave))
        .route("/favicon.ico", get(async || asset("image/svg+xml", ICON)))
        .route("/ui/style.css", get(async || asset("text/css", include_str!("style.css"))))
        .route("/ui/live.js", get(async || asset("text/javascript", include_str!("live.js"))))
        .route("/ui/uplot.css", get(async || asset("text/css", include_str!("vendor/uplot.css"))))
        .route("/ui/uplot.js", get(async || asset("text/javascript", include_str!("vendor/uplot.js"))));
    pages.merge(open)
}

/// Other services, if there are any.
#[derive(Clone, Default)]
pub struct Elsewhere {
    /// Where traces are looked at.
    pub traces: Option<TraceUrl>,
    /// What makes edits.
    pub edits: Option<Edits>,
}

/// Headers of every answer. A report has a policy of its own.
pub(crate) async fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let every: [(HeaderName, &str); 4] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in every {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=3600")], text).into_response()
}

/// What went wrong, as a page.
struct Trouble(Refusal);

impl<E: Into<Refusal>> From<E> for Trouble {
    fn from(error: E) -> Trouble {
        Trouble(error.into())
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let frame = Frame { role: Role::View, form_key: "", session: false, note: None };
        (self.0.status(), frame.trouble(self.0.message())).into_response()
    }
}

type Answer = Result<Markup, Trouble>;

/// What a page says once, after something was done: whether it went well, and what.
#[derive(Clone, Default)]
struct Note(Option<(bool, String)>);

impl Door {
    fn frame(&self, role: Role, note: Note) -> Frame<'_> {
        Frame { role, form_key: self.gate.form_key(), session: !self.gate.is_open(), note: note.0 }
    }

    /// To a page that tells what was done: a form that is sent again by a reload does nothing twice.
    fn tell(&self, to: &str, done: Result<String, Refusal>) -> Response {
        let note = match &done {
            Ok(note) => format!("done/{}", encoded(note)),
            Err(refusal) => format!("refused/{}", encoded(refusal.message())),
        };
        ([(header::SET_COOKIE, self.gate.tell(&note))], Redirect::to(to)).into_response()
    }
}

/// Gives a page what it is to say, and has it forgotten then. A page's own refresh shows nothing of it.
async fn notes(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let own = request.headers().contains_key("x-refresh");
    let told = door.gate.told(request.headers()).filter(|_| !own).and_then(|note| note.split_once('/'));
    let note = told.map(|(how, note)| (how == "done", decoded(note)));
    let is_told = note.is_some();
    request.extensions_mut().insert(Note(note));
    let mut response = next.run(request).await;
    let is_page = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    if is_told && is_page {
        response.headers_mut().append(header::SET_COOKIE, HeaderValue::from_str(&Gate::forget()).expect("it is plain text"));
    }
    response
}

async fn runs(State(door): State<Door>, Extension(role): Extension<Role>, Extension(note): Extension<Note>) -> Answer {
    Ok(door.frame(role, note).runs(&door.handle.runs().await?))
}

/// How a run is shown.
#[derive(Deserialize)]
struct View {
    /// Whose errors: of classes, or [`BY_SUPER_CLASS`].
    by: Option<String>,
}

async fn one_run(
    State(door): State<Door>,
    Extension(role): Extension<Role>,
    Path(run): Path<String>,
    Extension(note): Extension<Note>,
    FromQuery(View { by }): FromQuery<View>,
) -> Answer {
    let look = |outcomes: &Outcomes| {
        let by_loss = |descending| {
            let state = Some(ImageState::Succeeded);
            let query = ImageQuery { sort: ImageSort::Loss, state, descending, limit: EXTREMES, ..ImageQuery::default() };
            outcomes.page(&query).images
        };
        (outcomes.losses(INTERVALS), by_loss(true), by_loss(false))
    };
    let (status, (losses, worst, best)) = door.handle.look(run.clone(), look).await?;
    // The page is worth much without it, too.
    let origin = door.handle.origin(&run).await.ok();
    let best = if status.skipped + status.succeeded >= 2 * EXTREMES { best } else { vec![] };
    let by_super_class = by.as_deref() == Some(BY_SUPER_CLASS) && !status.super_classes.is_empty();
    Ok(door.frame(role, note).run(&status, origin.as_ref(), by_super_class, &losses, &worst, &best))
}

/// A form sends its empty fields too.
async fn images(
    State(door): State<Door>,
    Extension(role): Extension<Role>,
    Path(run): Path<String>,
    Extension(note): Extension<Note>,
    FromQuery(fields): FromQuery<Vec<(String, String)>>,
) -> Answer {
    let query = query(fields).map_err(Refusal::Invalid)?;
    let asked = query.clone();
    let look = move |outcomes: &Outcomes| (outcomes.page(&asked), outcomes.class_names());
    let (status, (page, (classes, super_classes))) = door.handle.look(run.clone(), look).await?;
    let tuned = door.handle.origin(&run).await.is_ok_and(|origin| origin.record.params.fine_tune.is_some());
    Ok(door.frame(role, note).images(&status, &query, &page, &classes, &super_classes, tuned))
}

/// A query from the fields of a URL; empty ones ask for nothing.
pub(crate) fn query(fields: Vec<(String, String)>) -> Result<ImageQuery, String> {
    let mut object = serde_json::Map::new();
    for (name, text) in fields.into_iter().filter(|(_, text)| !text.is_empty()) {
        let value = match name.as_str() {
            "class" | "super_class" | "image" | "state" | "reason" | "sort" => serde_json::Value::String(text),
            _ => {
                serde_json::from_str(&text).map_err(|_| format!("{name}={text:?}: that is neither a number nor true or false"))?
            }
        };
        object.insert(name, value);
    }
    serde_json::from_value(object.into()).map_err(|error| error.to_string())
}

#[derive(Deserialize)]
struct Key {
    key: String,
}

async fn image(
    State(door): State<Door>,
    Extension(role): Extension<Role>,
    Path(run): Path<String>,
    Extension(note): Extension<Note>,
    FromQuery(Key { key }): FromQuery<Key>,
) -> Answer {
    let (status, row) = door
        .handle
        .look(run.clone(), {
            let key = key.clone();
            move |outcomes: &Outcomes| outcomes.image(&key)
        })
        .await?;
    let row = row.ok_or_else(|| Refusal::NotFound(format!("image {key:?} is not settled in this run, or not of it")))?;
    let record = if row.state == ImageState::Succeeded { Some(read(&door.handle, &run, &key).await?) } else { None };
    let trace = record.as_ref().and_then(|(record, _)| door.elsewhere.traces.as_ref()?.of(record.trace.as_ref()?));
    let edits = record.is_some() && door.elsewhere.edits.is_some();
    Ok(door.frame(role, note).image(&status, &row, record.as_ref(), trace.as_deref(), edits))
}

async fn read(handle: &Handle, run: &str, image: &str) -> Result<(ResultRecord, History), Refusal> {
    keys::check_image(image).map_err(|problem| Refusal::Invalid(format!("the image's name {image:?} {problem}")))?;
    let results = handle.results(run)?;
    let record: ResultRecord = run::read_json(&results, &keys::marker(image, Marker::Result)).await?;
    let history = run::read_json(&results, &keys::item(image, &record.attempt, Item::History)).await?;
    Ok((record, history))
}

#[derive(Deserialize)]
struct Picture {
    key: String,
    item: String,
}

/// A picture of an image that has a result: its key is checked, and the record names the object.
async fn picture(
    State(door): State<Door>,
    Path(run): Path<String>,
    FromQuery(asked): FromQuery<Picture>,
) -> Result<Response, Refusal> {
    let Picture { key, item } = asked;
    keys::check_image(&key).map_err(|problem| Refusal::Invalid(format!("the image's name {key:?} {problem}")))?;
    let known = || Refusal::NotFound(format!("{item:?} is no picture of an image"));
    let item = Item::ALL.into_iter().find(|i| i.file().strip_suffix(".png") == Some(item.as_str())).ok_or_else(known)?;
    let results = door.handle.results(&run)?;
    let missing = |error: RunError| match error.is_not_found() {
        true => Refusal::NotFound(format!("image {key:?} has no result in this run")),
        false => error.into(),
    };
    let record: ResultRecord = run::read_json(&results, &keys::marker(&key, Marker::Result)).await.map_err(missing)?;
    // What fine-tuning did not better stands for itself.
    let item = if record.items().any(|there| there == item) { item } else { Item::Inverted };
    let png = results.get(&keys::item(&key, &record.attempt, item)).await.map_err(|error| missing(error.into()))?;
    Ok(([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=60")], png).into_response())
}

/// An edited picture, from the service that makes them.
async fn edit(
    State(door): State<Door>,
    Path(run): Path<String>,
    FromQuery(fields): FromQuery<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    edited(&door, &run, "", &fields).await
}

async fn edit_options(
    State(door): State<Door>,
    Path(run): Path<String>,
    FromQuery(fields): FromQuery<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    edited(&door, &run, "/options", &fields).await
}

async fn edited(door: &Door, run: &str, what: &'static str, fields: &[(String, String)]) -> Result<Response, Refusal> {
    let none = || Refusal::NotFound("no edit service is known here: see BASIN_EDIT_URL".into());
    let edits = door.elsewhere.edits.as_ref().ok_or_else(none)?;
    // Of a run that there is.
    door.handle.run(run.to_owned()).await?;
    let answered = edits.ask(run, what, fields).await?;
    // A page asks twice: whether there is one, and for the picture.
    Ok(([(header::CONTENT_TYPE, answered.kind.as_str()), (header::CACHE_CONTROL, "private, max-age=10")], answered.bytes)
        .into_response())
}

async fn failures_of(
    State(door): State<Door>,
    Extension(role): Extension<Role>,
    Path(run): Path<String>,
    Extension(note): Extension<Note>,
) -> Answer {
    let groups = door.handle.look(run, |outcomes: &Outcomes| outcomes.failure_groups(EXAMPLES)).await?;
    Ok(door.frame(role, note).failures(&[groups], true))
}

async fn failures(State(door): State<Door>, Extension(role): Extension<Role>, Extension(note): Extension<Note>) -> Answer {
    let mut all = Vec::new();
    for run in door.handle.runs().await?.into_iter().filter(|run| run.failed > 0) {
        all.push(door.handle.look(run.name, |outcomes: &Outcomes| outcomes.failure_groups(EXAMPLES)).await?);
    }
    Ok(door.frame(role, note).failures(&all, false))
}

async fn fleet(State(door): State<Door>, Extension(role): Extension<Role>, Extension(note): Extension<Note>) -> Answer {
    let (workers, backlog) = (door.handle.workers().await?, door.handle.backlog().await?);
    Ok(door.frame(role, note).fleet(&workers, backlog))
}

/// The table as it is now; of a finished run the one that its end wrote, which has every column.
async fn csv(State(door): State<Door>, Path(run): Path<String>) -> Result<Response, Refusal> {
    if is_over(door.handle.run(run.clone()).await?.state) {
        return download(&door.handle, &run, "results.csv", "text/csv").await;
    }
    let text = door.handle.look(run.clone(), |outcomes: &Outcomes| outcomes.csv()).await?.1;
    Ok(attached(&run, "results.csv", "text/csv", text))
}

/// Whether the tables are, or are about to be, in the run's place.
fn is_over(state: RunState) -> bool {
    matches!(state, RunState::Finished | RunState::Cancelled)
}

async fn parquet(State(door): State<Door>, Path(run): Path<String>) -> Result<Response, Refusal> {
    download(&door.handle, &run, "results.parquet", "application/vnd.apache.parquet").await
}

async fn download(handle: &Handle, run: &str, key: &str, kind: &'static str) -> Result<Response, Refusal> {
    let bytes = handle.results(run)?.get(key).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Refusal::NotFound(format!("run {run} has no {key} yet: it is written at its end")),
        _ => Error::from(error).into(),
    })?;
    Ok(attached(run, key, kind, bytes.to_vec()))
}

/// The names of runs need no quoting.
fn attached(run: &str, key: &str, kind: &'static str, bytes: Vec<u8>) -> Response {
    let disposition = format!("attachment; filename=\"{run}-{key}\"");
    ([(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_DISPOSITION, disposition)], bytes).into_response()
}

/// The report holds its own style and script, so it is put into a sandbox: it is of no place, and no cookie is its own.
async fn report(State(door): State<Door>, Path(run): Path<String>) -> Result<Response, Refusal> {
    let bytes = door.handle.results(&run)?.get("report.html").await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Refusal::NotFound(format!("run {run} has no report yet: it is written at its end")),
        _ => Error::from(error).into(),
    })?;
    let policy =
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; sandbox allow-scripts";
    Ok(([(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)], bytes).into_response())
}

/// Numbers of all runs and workers, whenever they change, a few times each second at most. Made once for all who listen.
async fn live(State(door): State<Door>) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let stream = stream::unfold(door.handle.live()?, async |mut live| {
        let tick = live.next().await?;
        Some((Ok(Event::default().event("tick").retry(RETRY).data(&*tick)), live))
    });
    Ok(Sse::new(Box::pin(stream)).keep_alive(KeepAlive::default()))
}

/// What every form holds.
#[derive(Deserialize)]
struct Keyed {
    form_key: String,
}

impl Keyed {
    fn check(&self, gate: &Gate) -> Result<(), Refusal> {
        let stale = || Refusal::Forbidden("this form is of another page or of an earlier start: load the page again".into());
        (self.form_key == gate.form_key()).then_some(()).ok_or_else(stale)
    }
}

#[derive(Deserialize)]
struct Act {
    #[serde(flatten)]
    key: Keyed,
    state: Option<RunState>,
    priority: Option<String>,
    per_minute: Option<String>,
}

async fn act(State(door): State<Door>, Path(run): Path<String>, Form(act): Form<Act>) -> Result<Response, Trouble> {
    act.key.check(&door.gate)?;
    let number = |text: &str| Refusal::Invalid(format!("{text:?} is no number"));
    let priority = act.priority.map(|text| text.parse().map_err(|_| number(&text))).transpose()?;
    let per_minute = act.per_minute.map(|text| text.parse().map_err(|_| number(&text))).transpose()?;
    let change = Change { state: act.state, priority, per_minute };
    let done = door.handle.change(run.clone(), change).await.map(|_| "The run is changed.".to_owned());
    Ok(door.tell(&format!("/runs/{run}"), done))
}

#[derive(Deserialize)]
struct Redrive {
    #[serde(flatten)]
    key: Keyed,
    #[serde(default, rename = "where")]
    condition: String,
    #[serde(default)]
    seed: String,
}

async fn redrive(State(door): State<Door>, Path(run): Path<String>, Form(form): Form<Redrive>) -> Result<Response, Trouble> {
    form.key.check(&door.gate)?;
    let wheres = Some(form.condition).filter(|w| !w.trim().is_empty()).into_iter().collect();
    let number = || Refusal::Invalid(format!("{:?} is no seed: a whole number of at least 0", form.seed));
    let seed = Some(&form.seed).filter(|s| !s.is_empty()).map(|s| s.parse().map_err(|_| number())).transpose()?;
    let done = door.handle.redrive(run.clone(), RedriveRequest { wheres, seed }).await;
    Ok(door.tell(&format!("/runs/{run}"), done))
}

#[derive(Default, Deserialize)]
struct To {
    #[serde(default)]
    to: String,
}

async fn login(State(door): State<Door>, FromQuery(To { to }): FromQuery<To>) -> Markup {
    door.frame(Role::View, Note::default()).login(&to)
}

#[derive(Deserialize)]
struct Enter {
    #[serde(flatten)]
    key: Keyed,
    token: String,
    #[serde(default)]
    to: String,
}

async fn enter(State(door): State<Door>, Extension(who): Extension<Who>, Form(form): Form<Enter>) -> Result<Response, Trouble> {
    form.key.check(&door.gate)?;
    match door.gate.enter(form.token.trim()) {
        Some(cookie) => {
            let to = form.to.parse::<Uri>().ok().filter(|uri| {
                uri.authority().is_none() && form.to.starts_with('/') && !form.to.starts_with("//") && !form.to.contains('\\')
            });
            Ok(([(header::SET_COOKIE, cookie)], Redirect::to(if to.is_some() { &form.to } else { "/" })).into_response())
        }
        None => {
            door.count_try(who.0)?;
            let note = Note(Some((false, "That is not the token.".into())));
            Ok((StatusCode::UNAUTHORIZED, door.frame(Role::View, note).login(&form.to)).into_response())
        }
    }
}

async fn leave(State(door): State<Door>, Form(key): Form<Keyed>) -> Result<Response, Trouble> {
    key.check(&door.gate)?;
    Ok(([(header::SET_COOKIE, Gate::leave())], Redirect::to("/login")).into_response())
}
