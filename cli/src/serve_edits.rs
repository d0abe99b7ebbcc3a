//! `basin serve-edits`: edits over HTTP, for the dashboard and for other programs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use coordinator::clock::now;
use coordinator::http::auth::Gate;
use coordinator::http::connections::{self, Limits};
use engine::edit::{EditError, EditRequest};
use engine::editor::{Editor, View};
use engine::{Cache, Models};
use proto::chain;
use serde_json::json;
use store::{Runs, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use worker::shutdown::on_signals;

#[derive(clap::Args)]
pub struct ServeEditsArgs {
    /// Folder or bucket that is a fleet's home; with --model, folder or bucket of one run.
    #[arg(env = "BASIN_HOME_URL")]
    store: String,
    /// Folder of the model that the run used. Without it, models come from the fleet's home.
    #[arg(long, env = "BASIN_MODEL")]
    model: Option<PathBuf>,
    /// Folder in which models of a home are cached; the workers of a machine may share it. Default: basin-models in the folder for
    /// temporary files.
    #[arg(long, env = "BASIN_MODEL_CACHE", value_name = "DIR")]
    model_cache: Option<PathBuf>,
    /// Largest size of the cache in bytes. Models in use are kept even if they exceed it.
    #[arg(long, default_value_t = 20_000_000_000, env = "BASIN_MODEL_CACHE_BYTES", value_name = "N")]
    model_cache_bytes: u64,
    /// File with the token that clients must send. Without it, BASIN_TOKEN holds the token itself.
    #[arg(long, env = "BASIN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Address to listen on. A token is required unless it is a loopback address.
    #[arg(long, default_value = "127.0.0.1:8475", env = "BASIN_LISTEN", value_name = "ADDRESS")]
    listen: SocketAddr,
}

pub async fn run(args: ServeEditsArgs) -> anyhow::Result<ExitCode> {
    let token = client::token(args.token_file.as_deref())?;
    let gate = match &token {
        Some(token) => Gate::new(Some(token), None, &coordinator::http::auth::secret()?),
        None if args.listen.ip().is_loopback() => Gate::local()?,
        None => {
            bail!("--listen {} is open to other machines, so a token is required: set BASIN_TOKEN or --token-file", args.listen)
        }
    };
    let store = Store::open(&args.store).await.context("cannot open the home or run")?;
    let (models, runs) = match args.model {
        Some(dir) => {
            let model = tokio::task::spawn_blocking(move || engine::load(&dir)).await?.context("cannot load the model")?;
            (Models::One(Box::new(model)), Runs::One(store))
        }
        None => {
            let dir = args.model_cache.unwrap_or_else(|| std::env::temp_dir().join("basin-models"));
            (Models::Home { home: store.clone(), cache: Cache { dir, max_bytes: args.model_cache_bytes } }, Runs::Home(store))
        }
    };
    let editor = Editor::new(models, runs);
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let shutdown = CancellationToken::new();
    on_signals(shutdown.clone(), || true).context("cannot listen for signals")?;
    note!("edits are served at http://{}", listener.local_addr()?);
    tokio::select! {
        never = connections::serve(listener, router(editor, gate), Limits::default()) => match never {},
        () = shutdown.cancelled() => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn router(editor: Editor, gate: Gate) -> Router {
    Router::new()
        .route("/v1/runs/{run}/edit", get(picture))
        .route("/v1/runs/{run}/edit/options", get(options))
        .layer(middleware::from_fn_with_state(Arc::new(gate), guard))
        .route("/healthz", get(async || "alive\n"))
        .with_state(editor)
}

async fn guard(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    match gate.role(request.headers(), now()) {
        Some(_) => next.run(request).await,
        None => refused(StatusCode::UNAUTHORIZED, "a token is required: send the header Authorization: Bearer TOKEN"),
    }
}

/// A picture: `image`, `view` (blended, inverted or generated) and the fields of `EditRequest`.
async fn picture(State(editor): State<Editor>, Path(run): Path<String>, Query(fields): Query<Vec<(String, String)>>) -> Response {
    let mut fields = fields;
    let mut take = |name: &str| fields.iter().position(|(n, _)| n == name).map(|at| fields.remove(at).1);
    let Some(image) = take("image") else {
        return refused(StatusCode::UNPROCESSABLE_ENTITY, "the image is missing: add image=KEY");
    };
    let view = take("view").unwrap_or_else(|| "blended".into());
    let Some(view) = View::named(&view) else {
        return refused(StatusCode::UNPROCESSABLE_ENTITY, "unknown view: use blended, inverted or generated");
    };
    let edited = async { editor.picture(named(run)?, image, EditRequest::from_fields(fields)?, view).await };
    match edited.await {
        Ok(png) => ([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "no-store")], png).into_response(),
        Err(error) => failed(&error),
    }
}

/// The edits that are possible for `image`.
async fn options(State(editor): State<Editor>, Path(run): Path<String>, Query(fields): Query<Vec<(String, String)>>) -> Response {
    let [(_, image)] = fields.as_slice() else {
        return refused(StatusCode::UNPROCESSABLE_ENTITY, "expected image=KEY and nothing else");
    };
    let options = async { editor.options(named(run)?, image.clone()).await };
    match options.await {
        Ok(options) => Json(options).into_response(),
        Err(error) => failed(&error),
    }
}

/// A run's name becomes a part of keys, so it is checked first.
fn named(run: String) -> Result<String, EditError> {
    match proto::keys::check_run(&run) {
        Ok(()) => Ok(run),
        Err(problem) => Err(EditError::Request(format!("run {run:?} {problem}"))),
    }
}

fn failed(error: &EditError) -> Response {
    let status = match error {
        EditError::Request(_) => StatusCode::UNPROCESSABLE_ENTITY,
        EditError::NoResult { .. } => StatusCode::NOT_FOUND,
        EditError::OtherModel { .. } => StatusCode::CONFLICT,
        EditError::Store { .. } | EditError::Model { .. } | EditError::Ended => StatusCode::SERVICE_UNAVAILABLE,
        EditError::Damaged { .. } | EditError::Delta { .. } | EditError::Blend(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refused(status, &chain(error))
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}
