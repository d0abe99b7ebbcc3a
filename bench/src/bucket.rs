//! An S3 server with one bucket in memory, for the requests that basin makes. The harness has a faithful one; this one checks nothing, so
//! that a measurement is of the client.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

pub const BUCKET: &str = "bucket";
/// Most objects on a page of a listing, as in S3.
const PAGE: usize = 1000;
const ETAG: &str = "\"0123456789abcdef0123456789abcdef\"";

/// The bucket; clones share it.
#[derive(Clone, Default)]
pub struct Bucket {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
    /// Parts of unfinished objects, by number.
    parts: Arc<Mutex<HashMap<String, BTreeMap<u32, Bytes>>>>,
}

impl Bucket {
    /// Answers requests in this process until the runtime ends; the endpoint's URL.
    pub async fn serve(self) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let router = Router::new().fallback(answer).layer(DefaultBodyLimit::disable()).with_state(self);
        tokio::spawn(async { axum::serve(listener, router).await });
        Ok(endpoint)
    }

    /// URL of a prefix in a bucket that is served at `endpoint`, for clients without credentials.
    pub fn url(endpoint: &str, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}?endpoint={endpoint}&anonymous=true")
    }

    /// The objects by key, to read and write them without requests.
    pub fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock().expect("nothing panics while it holds the lock")
    }

    /// A page of a listing: keys and sizes of what begins with `prefix` and is behind `after`, and whether there is more.
    fn page(&self, prefix: &str, after: Option<&String>, most: usize) -> (Vec<(String, usize)>, bool) {
        let objects = self.objects();
        let from = after.map_or_else(|| prefix.to_owned(), |key| format!("{key}\0"));
        let mut found = objects.range(from..).take_while(|(key, _)| key.starts_with(prefix));
        let page = found.by_ref().take(most).map(|(key, object)| (key.clone(), object.len())).collect();
        (page, found.next().is_some())
    }
}

type Parameters = HashMap<String, String>;

async fn answer(State(bucket): State<Bucket>, Query(query): Query<Parameters>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path().trim_start_matches('/');
    let key = path.strip_prefix(BUCKET).unwrap_or(path).trim_start_matches('/').to_owned();
    match axum::body::to_bytes(body, usize::MAX).await {
        Ok(body) => respond(&bucket, &head.method, key, &query, &head.headers, body),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

fn respond(bucket: &Bucket, method: &Method, key: String, query: &Parameters, headers: &HeaderMap, body: Bytes) -> Response {
    let parts = || bucket.parts.lock().expect("nothing panics while it holds the lock");
    let number = query.get("partNumber").and_then(|number| number.parse().ok());
    match (method.as_str(), number) {
        ("PUT", Some(number)) => {
            parts().entry(key).or_default().insert(number, body);
            [(header::ETAG, ETAG)].into_response()
        }
        ("PUT", None) => {
            let mut objects = bucket.objects();
            if headers.contains_key(header::IF_NONE_MATCH) && objects.contains_key(&key) {
                return StatusCode::PRECONDITION_FAILED.into_response();
            }
            objects.insert(key, body);
            [(header::ETAG, ETAG)].into_response()
        }
        ("POST", _) if query.contains_key("uploads") => {
            xml("<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>".into())
        }
        ("POST", _) => {
            let whole = parts().remove(&key).unwrap_or_default().into_values().collect::<Vec<_>>().concat();
            bucket.objects().insert(key, whole.into());
            xml(format!("<CompleteMultipartUploadResult><ETag>{ETAG}</ETag></CompleteMultipartUploadResult>"))
        }
        ("GET", _) if query.contains_key("list-type") => {
            let most = query.get("max-keys").and_then(|keys| keys.parse().ok()).unwrap_or(PAGE);
            let prefix = query.get("prefix").map_or("", String::as_str);
            xml(listing(bucket.page(prefix, query.get("continuation-token"), most.min(PAGE))))
        }
        ("GET", _) if query.contains_key("uploads") => xml("<ListMultipartUploadsResult></ListMultipartUploadsResult>".into()),
        ("GET" | "HEAD", _) => match bucket.objects().get(&key) {
            Some(object) => ([(header::ETAG, ETAG)], object.clone()).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        ("DELETE", _) => {
            bucket.objects().remove(&key);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => StatusCode::NOT_IMPLEMENTED.into_response(),
    }
}

/// Keys of measurements need no escapes of XML.
fn listing((page, more): (Vec<(String, usize)>, bool)) -> String {
    let mut text = format!("<ListBucketResult><IsTruncated>{more}</IsTruncated>");
    for (key, size) in &page {
        text += &format!("<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{ETAG}</ETag></Contents>");
    }
    if let Some((last, _)) = page.last().filter(|_| more) {
        text += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
    }
    text + "</ListBucketResult>"
}

fn xml(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/xml")], text).into_response()
}
