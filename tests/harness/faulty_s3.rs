//! A bucket in this process that has good and bad days: it always fails a few requests, and more when a test says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, Response, StatusCode};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use s3s::Body;
use s3s::service::S3Service;
use tokio::net::TcpListener;

use crate::s3_server::{accept, bucket};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Two of a hundred requests fail.
    Fair,
    /// A third of the requests fail.
    Busy,
    /// Requests are refused: the credentials have expired.
    Expired,
    Full,
    /// No request is served.
    Away,
}

pub struct S3 {
    port: u16,
    state: Arc<Mutex<State>>,
    _runtime: tokio::runtime::Runtime,
}

struct State {
    weather: Weather,
    rng: ChaCha8Rng,
    failures: BTreeMap<&'static str, u64>,
}

/// What happens to a request.
#[derive(Clone, Copy)]
enum Fate {
    Served,
    /// It is not done, and the client is told so.
    Refused(StatusCode, &'static str),
    /// It is done, and the client is told that it is not.
    Denied,
    /// It is done, and the connection is closed without an answer.
    Dropped,
}

impl S3 {
    pub fn start(seed: u64) -> S3 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let state = Arc::new(Mutex::new(State { weather: Weather::Fair, rng, failures: BTreeMap::new() }));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (bucket, shared) = (bucket(), state.clone());
        let service = service_fn(move |request| answer(bucket.clone(), shared.clone(), request));
        runtime.spawn(accept(listener, service));
        S3 { port, state, _runtime: runtime }
    }

    /// URL of a store in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        self.url_through(self.port, prefix)
    }

    /// The same through a proxy on this port.
    pub fn url_through(&self, port: u16, prefix: &str) -> String {
        format!("s3://bucket/{prefix}?endpoint=http://127.0.0.1:{port}&anonymous=true")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How requests fail from now on.
    pub fn set(&self, weather: Weather) {
        self.state.lock().expect("no thread panics").weather = weather;
    }

    /// Failures so far, by kind.
    pub fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().expect("no thread panics").failures.clone()
    }
}

impl State {
    fn decide(&mut self, method: &Method) -> Fate {
        let writes = *method == Method::PUT || *method == Method::POST;
        let rate = if self.weather == Weather::Busy { 0.33 } else { 0.02 };
        let (kind, fate) = match self.weather {
            Weather::Expired => ("credentials expired", Fate::Refused(StatusCode::BAD_REQUEST, "ExpiredToken")),
            Weather::Away => ("away", Fate::Refused(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
            Weather::Full if writes => ("storage full", Fate::Refused(StatusCode::INSUFFICIENT_STORAGE, "XMinioStorageFull")),
            _ if !self.rng.random_bool(rate) => return Fate::Served,
            _ => match self.rng.random_range(0..4) {
                0 => ("slow down", Fate::Refused(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
                1 => ("internal error", Fate::Refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
                2 => ("done, and told otherwise", Fate::Denied),
                _ => ("done, and not answered", Fate::Dropped),
            },
        };
        *self.failures.entry(kind).or_default() += 1;
        fate
    }
}

async fn answer(bucket: S3Service, state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Body>, String> {
    let fate = state.lock().expect("no thread panics").decide(request.method());
    if let Fate::Refused(status, code) = fate {
        return Ok(error(status, code));
    }
    let served = Service::call(&bucket, request).await.map_err(|e| format!("{e:?}"))?;
    match fate {
        Fate::Dropped => Err("the connection breaks".into()),
        Fate::Denied => Ok(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
        _ => Ok(served),
    }
}

fn error(status: StatusCode, code: &str) -> Response<Body> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>so the test wants it</Message></Error>");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}
