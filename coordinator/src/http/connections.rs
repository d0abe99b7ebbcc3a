//! Connections of the API (*io*): limits their number and their time, so that slow or many clients keep no other client out.

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

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most connections; more are closed at once.
    pub all: usize,
    /// Most connections of one address.
    pub of_one: usize,
    /// Longest time for the head of a request, for its body, and between two requests.
    pub ask: Duration,
}

impl Default for Limits {
    /// Half of the files that a process may open by default, and half of that for one address: a proxy is one address.
    fn default() -> Limits {
        Limits { all: 512, of_one: 256, ask: Duration::from_secs(20) }
    }
}

/// Longest time for the body of a request.
#[derive(Clone, Copy)]
pub(super) struct BodyTime(pub(super) Duration);

/// Serves `routes` until it is dropped. Open connections then end with their current answer.
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
            request.extensions_mut().insert(BodyTime(limits.ask));
            routes.call(request)
        });
        let connection = http.serve_connection(TokioIo::new(socket), answer);
        let mut served = served.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            // A slow client, or one that is gone, is not an error.
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

/// A client that is gone is not an error. When this process has too many files open, some are closed soon.
async fn refused(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::error!(%error, "no connection can be accepted; tried again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[derive(Default)]
struct Open(Mutex<HashMap<IpAddr, usize>>);

/// Counts a connection until it is dropped.
struct Place {
    open: Arc<Open>,
    address: IpAddr,
}

impl Place {
    fn take(open: &Arc<Open>, address: IpAddr, limits: Limits) -> Option<Place> {
        let mut counts = open.0.lock().expect("no holder of the lock panics");
        let all: usize = counts.values().sum();
        let of_one = counts.get(&address).copied().unwrap_or(0);
        if all >= limits.all || of_one >= limits.of_one {
            return None;
        }
        counts.insert(address, of_one + 1);
        Some(Place { open: open.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.open.0.lock().expect("no holder of the lock panics");
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
