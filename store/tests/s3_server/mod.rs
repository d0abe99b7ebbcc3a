//! A real S3 server in this process: s3s-fs on a free port of the loopback, with one bucket named `bucket`.
//!
//! s3s-fs looks and then writes, so of two racing `If-None-Match: *` both may win; here the writes of a path take turns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Whom the server lets in.
pub enum Auth {
    Anonymous,
    /// Access key and secret key.
    #[allow(dead_code, reason = "not used by each of the test programs")]
    Keys(&'static str, &'static str),
}

/// Runs until dropped.
pub struct Server {
    address: String,
    accepting: JoinHandle<()>,
    _root: TempDir,
}

impl Server {
    pub async fn start(auth: Auth) -> Server {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("bucket")).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        if let Auth::Keys(access, secret) = auth {
            builder.set_auth(SimpleAuth::from_single(access, secret));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accepting = tokio::spawn(accept(listener, builder.build()));
        Server {
            address,
            accepting,
            _root: root,
        }
    }

    /// URL of a store on this server; `options` are joined with '&'.
    pub fn url(&self, place: &str, options: &str) -> String {
        format!("s3://{place}?endpoint=http://{}&{options}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, service: S3Service) {
    let turns: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>> = Arc::default();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (service, turns) = (service.clone(), Arc::clone(&turns));
        let answer = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let turn = Arc::clone(
                turns
                    .lock()
                    .unwrap()
                    .entry(request.uri().path().to_owned())
                    .or_default(),
            );
            let service = service.clone();
            async move {
                let _turn = if request.method() == hyper::Method::PUT {
                    Some(turn.lock().await)
                } else {
                    None
                };
                Service::call(&service, request).await
            }
        });
        tokio::spawn(async move {
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), answer)
                .await;
        });
    }
}
