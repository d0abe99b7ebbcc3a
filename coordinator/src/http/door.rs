//! The guards of the API and of the dashboard: they check the client's role and its number of requests.

use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::HttpBody;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use client::api::ErrorAnswer;
use futures_util::{Stream, StreamExt};

use super::auth::{Access, Gate, Limiter, Role};
use super::connections::BodyTime;
use super::other_services::OtherServices;
use super::percent::encoded;
use crate::clock::now;
use crate::service::{Handle, Refusal};

/// Largest request, in bytes, and the time until it must be complete.
const MAX_BODY: usize = 1 << 20;
const BODY: Duration = Duration::from_secs(20);
/// Requests of one address: each second in the long run, and at once. A grid of images asks for some hundred pictures.
const REQUESTS: (f64, f64) = (200.0, 2000.0);
/// Wrong tokens of one address.
const TRIES: (f64, f64) = (0.2, 20.0);

/// What all handlers need.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) handle: Handle,
    pub(super) gate: Arc<Gate>,
    pub(super) others: Arc<OtherServices>,
    requests: Arc<Mutex<Limiter>>,
    tries: Arc<Mutex<Limiter>>,
    clock: Instant,
}

#[derive(Clone, Copy)]
pub(super) struct Client(pub(super) IpAddr);

impl Door {
    pub(super) fn new(handle: Handle, gate: Gate, others: OtherServices) -> Door {
        let limiter = |(per_second, burst)| Arc::new(Mutex::new(Limiter::new(per_second, burst)));
        let (requests, tries) = (limiter(REQUESTS), limiter(TRIES));
        Door { handle, gate: Arc::new(gate), others: Arc::new(others), requests, tries, clock: Instant::now() }
    }

    fn take(&self, limiter: &Mutex<Limiter>, from: IpAddr) -> bool {
        limiter.lock().expect("no holder of the lock panics").take(from, self.clock.elapsed().as_secs_f64())
    }

    /// Counts a wrong token.
    pub(super) fn count_try(&self, from: IpAddr) -> Result<(), Refusal> {
        let many = || Refusal::TooMany("too many wrong tokens from this address: wait a minute".into());
        self.take(&self.tries, from).then_some(()).ok_or_else(many)
    }

    /// What the client may do, if that allows the request. `None`: there is no token, or a wrong one.
    fn access(&self, request: &Request) -> Result<Option<Access>, Refusal> {
        let wanted = if matches!(*request.method(), Method::GET | Method::HEAD) { Role::View } else { Role::Operate };
        let forbidden = |why: &str| Err(Refusal::Forbidden(why.into()));
        match self.gate.access(request.headers(), now()) {
            Some(access) if access.role >= wanted => Ok(Some(access)),
            Some(_) => forbidden("the read-only token cannot change anything: use the other"),
            None if self.gate.is_open() => forbidden("without a token only localhost is served: use http://127.0.0.1"),
            // A right token is never refused: only wrong ones count, and no session that has ended.
            None if self.gate.guesses(request.headers()) => self.count_try(address(request)).map(|()| None),
            None => Ok(None),
        }
    }
}

impl Refusal {
    pub(super) fn status(&self) -> StatusCode {
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
        (self.status(), error(self.message())).into_response()
    }
}

pub(super) fn error(message: &str) -> Json<ErrorAnswer> {
    Json(ErrorAnswer { error: message.to_owned() })
}

/// A listener that does not know the client's address makes all clients one.
fn address(request: &Request) -> IpAddr {
    let known = request.extensions().get::<ConnectInfo<SocketAddr>>();
    known.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(address)| address.ip())
}

/// Limits the requests of an address, and reads each request completely.
pub(super) async fn limit(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let from = address(&request);
    request.extensions_mut().insert(Client(from));
    if !door.take(&door.requests, from) {
        return Refusal::TooMany("too many requests from this address: wait a moment".into()).into_response();
    }
    let (head, body) = request.into_parts();
    let limit = head.extensions.get::<BodyTime>().map_or(BODY, |BodyTime(limit)| *limit);
    // Before anything of it is read.
    if body.size_hint().lower() > MAX_BODY as u64 {
        let why = error(&format!("the request has more than {MAX_BODY} bytes"));
        return (StatusCode::PAYLOAD_TOO_LARGE, why).into_response();
    }
    match tokio::time::timeout(limit, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(head, body.into())).await,
        Ok(Err(_)) => Refusal::Invalid(format!("the request broke off, or has more than {MAX_BODY} bytes")).into_response(),
        Err(_) => Refusal::Invalid(format!("the request was not complete within {} s", limit.as_secs_f64())).into_response(),
    }
}

/// Ends a stream with the client's session.
pub(super) fn while_access_lasts<S>(access: Access, stream: S) -> impl Stream<Item = S::Item> + Send + use<S>
where
    S: Stream + Send + 'static,
    S::Item: Send,
{
    let end = async move {
        match access.until {
            Some(end) => tokio::time::sleep(Duration::from_secs(end.saturating_sub(now()))).await,
            None => pending().await,
        }
    };
    Box::pin(stream.take_until(Box::pin(end)))
}

/// Adds the client's role to the request.
pub(super) async fn guard(State(door): State<Door>, request: Request, next: Next) -> Response {
    let unknown = |_: &Request| {
        let why = error("send the coordinator's token: Authorization: Bearer …");
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], why).into_response()
    };
    let_in(door, request, next, unknown).await
}

/// As [`guard`], but sends browsers without a session to the login.
pub(super) async fn guard_pages(State(door): State<Door>, request: Request, next: Next) -> Response {
    let unknown = |request: &Request| {
        if request.method() != Method::GET || !wants_page(request.headers()) {
            return Refusal::Forbidden("log in first".into()).into_response();
        }
        let to = request.uri().path_and_query().map_or("/", |to| to.as_str());
        Redirect::to(&format!("/login?to={}", encoded(to))).into_response()
    };
    let_in(door, request, next, unknown).await
}

async fn let_in(door: Door, mut request: Request, next: Next, unknown: impl FnOnce(&Request) -> Response) -> Response {
    match door.access(&request) {
        Ok(Some(access)) => {
            request.extensions_mut().insert(access.role);
            request.extensions_mut().insert(access);
            next.run(request).await
        }
        Ok(None) => unknown(&request),
        Err(refusal) => refusal.into_response(),
    }
}

fn wants_page(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|accept| accept.contains("text/html"))
}
