//! The dashboard (*io*): pages, whose numbers are updated by server-sent events. Nothing comes from any other host.
//!
//! A page is complete without its script; the script updates it, draws the charts and fills the grid of images.

mod pages;

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Form, FromRequestParts, Path, Query as FromQuery, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
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
use store::{ErrorKind, Store};

use super::api::{EXAMPLES, Fields, query};
use super::auth::{Access, Role, secret};
use super::changes::Who;
use super::door::{Client, Door, guard_pages, while_access_lasts};
use super::percent::{decoded, encoded};
use super::session::same;
use crate::clock::now;
use crate::outcomes::Outcomes;
use crate::service::{Handle, Refusal};
use client::api::{Change, ImageQuery, ImageSort, ImageState, LogQuery, RedriveRequest};
use pages::PageFrame;
use pages::image::OneImage;
use pages::images::ImagesPage;
use pages::run::{BY_SUPER_CLASS, RunPage};
use results::RunError;
use results::run;

/// Images with the largest and with the smallest loss on a run's page.
const EXTREMES: usize = 8;
/// Bars of the histogram of losses.
const INTERVALS: usize = 40;
/// Time until a page with a lost connection tries again.
const RETRY: Duration = Duration::from_millis(500);

/// Only content from this server, and no script or style inside a page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
    form-action 'self'; frame-ancestors 'none'";

const ICON: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 32 32\"><path d=\"M2 8q14 34 28 0\" fill=\"none\" \
    stroke=\"#1f5fbf\" stroke-width=\"4\" stroke-linecap=\"round\"/><circle cx=\"16\" cy=\"22\" r=\"4\" fill=\"#b3261e\"/></svg>";

/// The login and the assets are open.
pub(super) fn router(door: &Door) -> Router<Door> {
    let pages = Router::new()
        .route("/", get(runs))
        .route("/runs/{run}", get(one_run))
        .route("/runs/{run}/images", get(images))
        .route("/runs/{run}/image", get(image))
        .route("/runs/{run}/picture", get(picture))
        .route("/runs/{run}/failures", get(failures_of))
        .route("/runs/{run}/log", get(log_of))
        .route("/runs/{run}/results.csv", get(csv))
        .route("/runs/{run}/results.parquet", get(parquet))
        .route("/runs/{run}/report.html", get(report))
        .route("/runs/{run}/edit", get(|door, run, fields| edited(door, run, fields, "")))
        .route("/runs/{run}/edit/options", get(|door, run, fields| edited(door, run, fields, "/options")))
        .route("/fleet", get(fleet))
        .route("/failures", get(failures))
        .route("/ui/live", get(live))
        .route("/runs/{run}/act", post(act))
        .route("/runs/{run}/redrive", post(redrive))
        .layer(middleware::from_fn_with_state(door.clone(), in_time))
        .layer(middleware::from_fn_with_state(door.clone(), notes))
        .layer(middleware::from_fn_with_state(door.clone(), guard_pages));
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

/// Adds headers to every answer. A report has its own policy.
pub(super) async fn protect(mut response: Response) -> Response {
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

/// A refusal as a page.
struct Trouble(Refusal);

impl<E: Into<Refusal>> From<E> for Trouble {
    fn from(error: E) -> Trouble {
        Trouble(error.into())
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let frame = PageFrame { role: Role::View, form_key: String::new(), session: false, note: None, outages: vec![] };
        (self.0.status(), frame.trouble(self.0.message())).into_response()
    }
}

type Answer = Result<Markup, Trouble>;

/// What a page says once after an action: whether it succeeded, and a text.
#[derive(Clone)]
struct ActionNote(Option<(bool, String)>);

/// The frame of the requested page. The guards have put the role and the note into the request.
impl FromRequestParts<Door> for PageFrame {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<PageFrame, Infallible> {
        let role = parts.extensions.get().copied().unwrap_or(Role::View);
        let note = parts.extensions.remove().and_then(|ActionNote(note)| note);
        let outages = if parts.extensions.get::<Role>().is_some() { door.handle.outages() } else { vec![] };
        let form_key = door.gate.form_key(&parts.headers, now()).unwrap_or_default();
        Ok(PageFrame { role, form_key, session: !door.gate.is_open(), note, outages })
    }
}

impl Door {
    /// Redirects to a page that shows the outcome: a reload does not send the form again.
    fn tell(&self, headers: &HeaderMap, to: &str, done: Result<String, Refusal>) -> Response {
        let note = match &done {
            Ok(note) => format!("done/{}", encoded(note)),
            Err(refusal) => format!("refused/{}", encoded(refusal.message())),
        };
        ([(header::SET_COOKIE, self.gate.tell(headers, &note))], Redirect::to(to)).into_response()
    }
}

/// Pages that need the store do not wait for one that is away.
async fn in_time(State(door): State<Door>, request: Request, next: Next) -> Response {
    let away = || Refusal::Unavailable("the store does not answer: try again in a moment".into());
    match tokio::time::timeout(door.handle.patience(), next.run(request)).await {
        Ok(response) => response,
        Err(_) => Trouble(away()).into_response(),
    }
}

/// Gives a note to the page and deletes its cookie. The refresh by the page's script does not get it.
async fn notes(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let own = request.headers().contains_key("x-refresh");
    let told = door.gate.told(request.headers()).filter(|_| !own).and_then(|note| note.split_once('/'));
    let note = told.map(|(how, note)| (how == "done", decoded(note)));
    let forget = note.is_some().then(|| door.gate.forget(request.headers()));
    request.extensions_mut().insert(ActionNote(note));
    let mut response = next.run(request).await;
    let is_page = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    if let Some(forget) = forget.filter(|_| is_page) {
        response.headers_mut().append(header::SET_COOKIE, HeaderValue::from_str(&forget).expect("it is plain text"));
    }
    response
}

async fn runs(State(door): State<Door>, frame: PageFrame) -> Answer {
    Ok(pages::runs::show(&frame, &door.handle.runs().await?))
}

#[derive(Deserialize)]
struct View {
    /// [`BY_SUPER_CLASS`], or absent: by class.
    by: Option<String>,
}

async fn one_run(
    State(door): State<Door>,
    frame: PageFrame,
    Path(run): Path<String>,
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
    // The page is useful without it, too.
    let origin = door.handle.origin(&run).await.ok();
    let best = if status.skipped + status.succeeded >= 2 * EXTREMES { best } else { vec![] };
    let by_super_class = by.as_deref() == Some(BY_SUPER_CLASS) && !status.super_classes.is_empty();
    let page = RunPage { run: &status, origin: origin.as_ref(), by_super_class, losses: &losses, worst: &worst, best: &best };
    Ok(page.show(&frame))
}

async fn images(
    State(door): State<Door>,
    frame: PageFrame,
    Path(run): Path<String>,
    FromQuery(fields): FromQuery<Fields>,
) -> Answer {
    let query = query(fields)?;
    let wanted = query.clone();
    let look = move |outcomes: &Outcomes| (outcomes.page(&wanted), outcomes.class_names());
    let (status, (page, (classes, super_classes))) = door.handle.look(run.clone(), look).await?;
    let tuned = door.handle.origin(&run).await.is_ok_and(|origin| origin.record.params.fine_tune.is_some());
    let (classes, super_classes) = (&classes, &super_classes);
    Ok(ImagesPage { run: &status, query: &query, page: &page, classes, super_classes, tuned }.show(&frame))
}

#[derive(Deserialize)]
struct Key {
    key: String,
}

async fn image(
    State(door): State<Door>,
    frame: PageFrame,
    Path(run): Path<String>,
    FromQuery(Key { key }): FromQuery<Key>,
) -> Answer {
    let wanted = key.clone();
    let (status, row) = door.handle.look(run.clone(), move |outcomes: &Outcomes| outcomes.image(&wanted)).await?;
    let row = row.ok_or_else(|| Refusal::NotFound(format!("image {key:?} is not finished in this run, or not part of it")))?;
    let record = if row.state == ImageState::Succeeded { Some(read(&door.handle, &run, &key).await?) } else { None };
    let trace = record.as_ref().and_then(|(record, _)| door.others.traces.as_ref()?.of(record.trace.as_ref()?));
    let edits = record.is_some() && door.others.edits.is_some();
    let page = OneImage { run: &status, row: &row, record: record.as_ref(), trace: trace.as_deref(), edits };
    Ok(page.show(&frame))
}

/// The record of an image's result, and the store of its objects.
async fn read_record(handle: &Handle, run: &str, image: &str) -> Result<(Store, ResultRecord), Refusal> {
    keys::check_image(image).map_err(|problem| Refusal::Invalid(format!("the image's name {image:?} {problem}")))?;
    let results = handle.results(run)?;
    let record = run::read_json(&results, &keys::marker(image, Marker::Result)).await;
    Ok((results, record.map_err(|error| missing(image, error))?))
}

fn missing(image: &str, error: RunError) -> Refusal {
    match error.is_not_found() {
        true => Refusal::NotFound(format!("image {image:?} has no result in this run")),
        false => error.into(),
    }
}

async fn read(handle: &Handle, run: &str, image: &str) -> Result<(ResultRecord, History), Refusal> {
    let (results, record) = read_record(handle, run, image).await?;
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
    FromQuery(Picture { key, item }): FromQuery<Picture>,
) -> Result<Response, Refusal> {
    let unknown = || Refusal::NotFound(format!("there is no picture {item:?}: use target, transformed, generated or inverted"));
    let item = Item::ALL.into_iter().find(|i| i.file().strip_suffix(".png") == Some(item.as_str())).ok_or_else(unknown)?;
    let (results, record) = read_record(&door.handle, &run, &key).await?;
    // Where fine-tuning did not help, the inverted image is shown instead.
    let item = if record.items().any(|there| there == item) { item } else { Item::Inverted };
    let png = results.get(&keys::item(&key, &record.attempt, item)).await.map_err(|error| missing(&key, error.into()))?;
    Ok(([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=60")], png).into_response())
}

/// `what`: empty for the edited picture, or `/options`.
async fn edited(
    State(door): State<Door>,
    Path(run): Path<String>,
    FromQuery(fields): FromQuery<Fields>,
    what: &'static str,
) -> Result<Response, Refusal> {
    let none = || Refusal::NotFound("the coordinator has no edit service: set BASIN_EDIT_URL".into());
    let edits = door.others.edits.as_ref().ok_or_else(none)?;
    // Refuses an unknown run.
    door.handle.run(run.clone()).await?;
    let (kind, bytes) = edits.ask(&run, what, &fields).await?;
    // A page requests it twice: to see if there is one, and to show it.
    Ok(([(header::CONTENT_TYPE, kind.as_str()), (header::CACHE_CONTROL, "private, max-age=10")], bytes).into_response())
}

async fn failures_of(State(door): State<Door>, frame: PageFrame, Path(run): Path<String>) -> Answer {
    let groups = door.handle.look(run, |outcomes: &Outcomes| outcomes.failure_groups(EXAMPLES)).await?;
    Ok(pages::failures::show(&frame, &[groups], true))
}

async fn log_of(State(door): State<Door>, frame: PageFrame, Path(run): Path<String>) -> Answer {
    // Refuses an unknown run.
    door.handle.run(run.clone()).await?;
    let entries = door.log(&LogQuery { run: Some(run.clone()), limit: 0 }).await?;
    Ok(pages::log::show(&frame, &run, &entries))
}

async fn failures(State(door): State<Door>, frame: PageFrame) -> Answer {
    let mut all = Vec::new();
    for run in door.handle.runs().await?.into_iter().filter(|run| run.failed > 0) {
        all.push(door.handle.look(run.name, |outcomes: &Outcomes| outcomes.failure_groups(EXAMPLES)).await?);
    }
    Ok(pages::failures::show(&frame, &all, false))
}

async fn fleet(State(door): State<Door>, frame: PageFrame) -> Answer {
    let (workers, backlog) = (door.handle.workers().await?, door.handle.backlog().await?);
    Ok(pages::fleet::show(&frame, &workers, backlog))
}

/// The current table; of a closed run the stored one, which has every column.
async fn csv(State(door): State<Door>, Path(run): Path<String>) -> Result<Response, Refusal> {
    if door.handle.run(run.clone()).await?.state.is_closed() {
        return download(&door.handle, &run, keys::RESULTS_CSV, "text/csv").await;
    }
    let text = door.handle.look(run.clone(), |outcomes: &Outcomes| outcomes.csv()).await?.1;
    Ok(attached(&run, keys::RESULTS_CSV, "text/csv", text))
}

async fn parquet(State(door): State<Door>, Path(run): Path<String>) -> Result<Response, Refusal> {
    download(&door.handle, &run, keys::RESULTS_PARQUET, "application/vnd.apache.parquet").await
}

async fn download(handle: &Handle, run: &str, key: &str, kind: &'static str) -> Result<Response, Refusal> {
    Ok(attached(run, key, kind, written_at_the_end(handle, run, key, key).await?))
}

/// Names of runs need no quoting.
fn attached(run: &str, key: &str, kind: &'static str, bytes: impl IntoResponse) -> Response {
    let disposition = format!("attachment; filename=\"{run}-{key}\"");
    ([(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, disposition.as_str())], bytes).into_response()
}

/// `name`: what the refusal calls the object.
async fn written_at_the_end(handle: &Handle, run: &str, key: &str, name: &str) -> Result<Bytes, Refusal> {
    handle.results(run)?.get(key).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Refusal::NotFound(format!("run {run} has no {name} yet: it is written at the end of the run")),
        _ => error.into(),
    })
}

/// The report has its own style and script, so it runs in a sandbox: it has no origin and no cookies.
async fn report(State(door): State<Door>, Path(run): Path<String>) -> Result<Response, Refusal> {
    let bytes = written_at_the_end(&door.handle, &run, keys::REPORT, "report").await?;
    let policy =
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; sandbox allow-scripts";
    Ok(([(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)], bytes).into_response())
}

/// Numbers of all runs and workers, and then those that change, at most a few times each second. Made once for all listeners.
async fn live(
    State(door): State<Door>,
    Extension(access): Extension<Access>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let stream = stream::unfold(door.handle.live()?, async |mut live| {
        let tick = live.next().await?;
        Some((Ok(Event::default().event("tick").retry(RETRY).data(tick)), live))
    });
    Ok(Sse::new(while_access_lasts(access, stream)).keep_alive(KeepAlive::default()))
}

#[derive(Deserialize)]
struct Keyed {
    form_key: String,
}

impl Keyed {
    /// `key`: what the client's forms must have.
    fn check(&self, key: Option<&str>) -> Result<(), Refusal> {
        let stale =
            || Refusal::Forbidden("this form is of another session, or of one that has ended: load the page again".into());
        key.is_some_and(|key| same(&self.form_key, key)).then_some(()).ok_or_else(stale)
    }

    fn check_session(&self, door: &Door, headers: &HeaderMap) -> Result<(), Refusal> {
        self.check(door.gate.form_key(headers, now()).as_deref())
    }
}

#[derive(Deserialize)]
struct Act {
    #[serde(flatten)]
    key: Keyed,
    state: Option<RunState>,
    priority: Option<String>,
    per_minute: Option<String>,
    budget_hours: Option<String>,
}

async fn act(
    State(door): State<Door>,
    who: Who,
    Path(run): Path<String>,
    headers: HeaderMap,
    Form(act): Form<Act>,
) -> Result<Response, Trouble> {
    act.key.check_session(&door, &headers)?;
    let number = |text: &str| Refusal::Invalid(format!("{text:?} is not a number"));
    let priority = act.priority.map(|text| text.parse().map_err(|_| number(&text))).transpose()?;
    let per_minute = act.per_minute.map(|text| text.parse().map_err(|_| number(&text))).transpose()?;
    let budget_hours = act.budget_hours.map(|text| text.parse().map_err(|_| number(&text))).transpose()?;
    let change = Change { state: act.state, priority, per_minute, budget_hours };
    let done = door.change(who, run.clone(), change).await.map(|_| "Run changed.".to_owned());
    Ok(door.tell(&headers, &format!("/runs/{run}"), done))
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

async fn redrive(
    State(door): State<Door>,
    who: Who,
    Path(run): Path<String>,
    headers: HeaderMap,
    Form(form): Form<Redrive>,
) -> Result<Response, Trouble> {
    form.key.check_session(&door, &headers)?;
    let wheres = Some(form.condition).filter(|w| !w.trim().is_empty()).into_iter().collect();
    let number = || Refusal::Invalid(format!("the seed {:?} is not a whole number ≥ 0", form.seed));
    let seed = Some(&form.seed).filter(|s| !s.is_empty()).map(|s| s.parse().map_err(|_| number())).transpose()?;
    let done = door.redrive(who, run.clone(), RedriveRequest { wheres, seed }).await;
    Ok(door.tell(&headers, &format!("/runs/{run}"), done))
}

#[derive(Default, Deserialize)]
struct To {
    #[serde(default)]
    to: String,
}

async fn login(
    State(door): State<Door>,
    headers: HeaderMap,
    frame: PageFrame,
    FromQuery(To { to }): FromQuery<To>,
) -> Result<Response, Trouble> {
    show_login(&door, &headers, frame, &to)
}

fn show_login(door: &Door, headers: &HeaderMap, frame: PageFrame, to: &str) -> Result<Response, Trouble> {
    let (form_key, cookie) = door.gate.login(headers, &random()?);
    let page = PageFrame { form_key, ..frame }.login(to);
    Ok(([(header::SET_COOKIE, cookie)], page).into_response())
}

fn random() -> Result<[u8; 32], Refusal> {
    secret().map_err(|error| Refusal::Unavailable(format!("cannot read /dev/urandom: {error}")))
}

#[derive(Deserialize)]
struct Enter {
    #[serde(flatten)]
    key: Keyed,
    token: String,
    #[serde(default)]
    to: String,
}

async fn enter(
    State(door): State<Door>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    frame: PageFrame,
    Form(form): Form<Enter>,
) -> Result<Response, Trouble> {
    form.key.check(door.gate.login_key(&headers))?;
    match door.gate.enter(form.token.trim(), &headers, &random()?, now()) {
        Some(cookie) => {
            let to = form.to.parse::<Uri>().ok().filter(|uri| {
                uri.authority().is_none() && form.to.starts_with('/') && !form.to.starts_with("//") && !form.to.contains('\\')
            });
            Ok(([(header::SET_COOKIE, cookie)], Redirect::to(if to.is_some() { &form.to } else { "/" })).into_response())
        }
        None => {
            door.count_try(client.0)?;
            let frame = PageFrame { note: Some((false, "This token is wrong.".into())), ..frame };
            Ok((StatusCode::UNAUTHORIZED, show_login(&door, &headers, frame, &form.to)?).into_response())
        }
    }
}

/// A session that has ended is only forgotten.
async fn leave(State(door): State<Door>, headers: HeaderMap, Form(key): Form<Keyed>) -> Result<Response, Trouble> {
    if door.gate.access(&headers, now()).is_some() {
        key.check_session(&door, &headers)?;
    }
    Ok(([(header::SET_COOKIE, door.gate.leave(&headers, now()))], Redirect::to("/login")).into_response())
}
