//! An S3 server in this process: the protocol from s3s, on a free port of the loopback, and one bucket named `bucket` in
//! memory.
//!
//! Not s3s-fs, whose bucket is a directory: two racing `If-None-Match: *` both win, asking for a part of a key answers
//! 500, and listings have no ETag.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;
use std::sync::Mutex;
use std::time::SystemTime;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const BUCKET: &str = "bucket";

/// Whom the server lets in.
#[allow(dead_code, reason = "not each test program uses both")]
pub enum Auth {
    Anonymous,
    /// Access key and secret key.
    Keys(&'static str, &'static str),
}

/// Runs until dropped.
pub struct Server {
    address: String,
    accepting: JoinHandle<()>,
}

impl Server {
    pub async fn start(auth: Auth) -> Server {
        Server::serve(auth, Memory::default()).await
    }

    /// A server as some are: it looks whether a key is taken, and writes later.
    #[allow(dead_code, reason = "not each test program uses both")]
    pub async fn start_racy() -> Server {
        Server::serve(Auth::Anonymous, Memory { racy: true, ..Memory::default() }).await
    }

    async fn serve(auth: Auth, memory: Memory) -> Server {
        let mut builder = S3ServiceBuilder::new(memory);
        if let Auth::Keys(access, secret) = auth {
            builder.set_auth(SimpleAuth::from_single(access, secret));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Server { address, accepting: tokio::spawn(accept(listener, builder.build())) }
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
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let service = service.clone();
        tokio::spawn(async move {
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

#[derive(Default)]
struct Memory {
    objects: Mutex<BTreeMap<String, hyper::body::Bytes>>,
    racy: bool,
}

fn check_bucket(bucket: &str) -> S3Result<()> {
    if bucket == BUCKET { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
}

fn e_tag(content: &[u8]) -> Option<ETag> {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    Some(ETag::Strong(format!("{:016x}", hasher.finish())))
}

#[async_trait::async_trait]
impl S3 for Memory {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        check_bucket(&input.bucket)?;
        let mut body = input.body.map_or_else(Body::empty, Body::from);
        let content = body.store_all_limited(usize::MAX).await.map_err(|_| s3_error!(IncompleteBody))?;
        if self.racy && input.if_none_match.is_some() {
            let taken = self.objects.lock().unwrap().contains_key(&input.key);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            if taken {
                return Err(s3_error!(PreconditionFailed));
            }
            let e_tag = e_tag(&content);
            self.objects.lock().unwrap().insert(input.key, content);
            return Ok(S3Response::new(PutObjectOutput { e_tag, ..Default::default() }));
        }
        let mut objects = self.objects.lock().unwrap();
        if input.if_none_match.is_some() && objects.contains_key(&input.key) {
            return Err(s3_error!(PreconditionFailed));
        }
        let e_tag = e_tag(&content);
        objects.insert(input.key, content);
        Ok(S3Response::new(PutObjectOutput { e_tag, ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        check_bucket(&request.input.bucket)?;
        let content = self.objects.lock().unwrap().get(&request.input.key).cloned();
        let content = content.ok_or_else(|| s3_error!(NoSuchKey))?;
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(content.len() as i64),
            e_tag: e_tag(&content),
            body: Some(Body::from(content).into()),
            ..Default::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        check_bucket(&request.input.bucket)?;
        let content = self.objects.lock().unwrap().get(&request.input.key).cloned();
        let content = content.ok_or_else(|| s3_error!(NoSuchKey))?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(content.len() as i64),
            e_tag: e_tag(&content),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        check_bucket(&request.input.bucket)?;
        self.objects.lock().unwrap().remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        check_bucket(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let size = usize::try_from(input.max_keys.unwrap_or(1000)).map_err(|_| s3_error!(InvalidArgument))?;
        // The token is the last key of the page before.
        let start = input.continuation_token.map_or(Bound::Included(prefix.clone()), Bound::Excluded);
        let objects = self.objects.lock().unwrap();
        let mut rest = objects.range((start, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&prefix));
        let contents: Vec<Object> = rest
            .by_ref()
            .take(size)
            .map(|(key, content)| Object {
                key: Some(key.clone()),
                size: Some(content.len() as i64),
                e_tag: e_tag(content),
                last_modified: Some(SystemTime::now().into()),
                ..Default::default()
            })
            .collect();
        let is_truncated = rest.next().is_some();
        let last = contents.last().and_then(|object| object.key.clone());
        Ok(S3Response::new(ListObjectsV2Output {
            contents: Some(contents),
            is_truncated: Some(is_truncated),
            next_continuation_token: last.filter(|_| is_truncated),
            ..Default::default()
        }))
    }
}
