//! Connections of the API (*io*): how many there may be, and how long one may take to ask. Who is slow, or many, keeps nobody else out.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What connections may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many there are at most; more are closed at once.
    pub all: usize,
    /// Of one address.
    pub of_one: usize,
    /// How long the head of a request may take, and a connection be idle before the next.
    pub ask: Duration,
}

impl Default for Limits {
    /// Half of the files that a process may open by default, and half of these for one address: a proxy is one.
    fn default() -> Limits {
        Limits { all: 512, of_one: 256, ask: Duration::from_secs(20) }
    }
}

/// Serves `routes` until it is dropped. Connections that are open then end with the answer that they are at.
pub async fn serve(listener: TcpListener, routes: Router, limits: Limits) -> Infallible {
    let open = Arc::new(Open::default());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.ask);
    let routes = TowerToHyperService::new(routes);
    let (_serving, served) = watch::channel(());
    loop {
        let (socket, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                refused(&error).await;
                continue;
            }
        };
        let Some(place) = Place::take(&open, from.ip(), limits) else { continue };
        let routes = routes.clone();
        let answer = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo::<SocketAddr>(from));
            routes.call(request)
        });
        let connection = http.serve_connection(TokioIo::new(socket), answer);
        let mut served = served.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            // A client that is slow, or gone, is no trouble of ours.
            tokio::select! {
                _ = connection.as_mut() => {}
                _ = served.changed() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop(place);
        });
    }
}

/// A client that is gone already is nothing; when this process may open no more files, some are closed soon.
async fn refused(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::error!(%error, "no connection can be accepted; tried again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Connections by address.
#[derive(Default)]
struct Open(Mutex<HashMap<IpAddr, usize>>);

/// Of a connection among the open ones, until it is dropped.
struct Place {
    open: Arc<Open>,
    who: IpAddr,
}

impl Place {
    fn take(open: &Arc<Open>, who: IpAddr, limits: Limits) -> Option<Place> {
        let mut counts = open.0.lock().expect("nobody panics with it");
        let all: usize = counts.values().sum();
        let of_one = counts.get(&who).copied().unwrap_or(0);
        if all >= limits.all || of_one >= limits.of_one {
            return None;
        }
        counts.insert(who, of_one + 1);
        Some(Place { open: open.clone(), who })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.open.0.lock().expect("nobody panics with it");
        if let Some(count) = counts.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.who);
            }
        }
    }
}
