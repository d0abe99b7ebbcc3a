//! An S3 server in this process: the protocol from s3s, on a free port of the loopback, and one bucket named `bucket` in
//! memory.
//!
//! Not s3s-fs, whose bucket is a directory: two racing `If-None-Match: *` both win, asking for a part of a key answers
//! 500, listings have no ETag, and uploads cannot be listed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use futures_util::stream;
use hyper::body::{Bytes, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3, S3Error, S3Request, S3Response, S3Result, s3_error};
use store::Store;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const BUCKET: &str = "bucket";

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Reply<T> = S3Result<S3Response<T>>;

/// Which requests the server accepts.
pub enum Auth {
    Anonymous,
    /// Access key and secret key.
    Keys(&'static str, &'static str),
}

pub struct Server {
    address: String,
    accepting: JoinHandle<()>,
    memory: Memory,
}

impl Server {
    pub async fn start(auth: Auth) -> Server {
        let memory = Memory::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Server { address, accepting: tokio::spawn(accept(listener, service(auth, memory.clone()))), memory }
    }

    /// A server with a race that some have: it looks whether a key is taken, and writes later.
    pub async fn start_racy() -> Server {
        let server = Server::start(Auth::Anonymous).await;
        server.state().racy = true;
        server
    }

    /// A server that does not know conditions for the replacement of objects, as some do not.
    pub async fn start_careless() -> Server {
        let server = Server::start(Auth::Anonymous).await;
        server.state().careless = true;
        server
    }

    /// What the server holds, and how it behaves.
    pub fn state(&self) -> MutexGuard<'_, ServerState> {
        self.memory.state()
    }

    pub fn port(&self) -> u16 {
        self.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("an address has a port")
    }

    /// A store on this server, without credentials.
    pub async fn store(&self, options: &str) -> Store {
        Store::open(&self.url("bucket/some/prefix", &format!("anonymous=true&{options}"))).await.unwrap()
    }

    /// URL of a store on this server; `options` are joined with '&'.
    pub fn url(&self, place: &str, options: &str) -> String {
        format!("s3://{place}?endpoint=http://{}&{options}", self.address)
    }
}

/// An empty bucket, for a server that handles the requests in its own way.
pub fn bucket() -> S3Service {
    service(Auth::Anonymous, Memory::default())
}

fn service(auth: Auth, memory: Memory) -> S3Service {
    let mut builder = S3ServiceBuilder::new(memory);
    if let Auth::Keys(access, secret) = auth {
        builder.set_auth(SimpleAuth::from_single(access, secret));
    }
    builder.build()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

pub async fn accept<S>(listener: TcpListener, service: S)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
{
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let service = service.clone();
        tokio::spawn(async move {
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<ServerState>>);

#[derive(Default)]
pub struct ServerState {
    objects: BTreeMap<String, Stored>,
    /// Uploads by key and id, in the order in which they are listed.
    pub uploads: BTreeMap<(String, String), PendingUpload>,
    /// Number of uploads that ever began.
    begun: usize,
    /// Whether the server looks whether a key is taken, and writes later.
    racy: bool,
    /// Whether the server ignores `If-Match` for writes.
    careless: bool,
    /// Whether the server answers 403 for an object that does not exist, as S3 does without the permission to list.
    pub hides: bool,
    /// Number of the next answers to reads that break off half-way.
    pub broken_reads: usize,
    /// Whether the server refuses all parts of an upload but the first.
    pub full: bool,
    /// How each write and each upload is to be encrypted, and with which key.
    pub encryption: Vec<(String, String)>,
    /// Checksum of each part.
    pub checksums: Vec<Option<String>>,
}

struct Stored {
    content: Bytes,
    e_tag: ETag,
}

pub struct PendingUpload {
    began: SystemTime,
    parts: BTreeMap<i32, Bytes>,
}

impl ServerState {
    fn insert(&mut self, key: String, content: Bytes) -> Option<ETag> {
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        let e_tag = ETag::Strong(format!("{:016x}", hasher.finish()));
        self.objects.insert(key, Stored { content, e_tag: e_tag.clone() });
        Some(e_tag)
    }

    fn missing(&self) -> S3Error {
        if self.hides { s3_error!(AccessDenied) } else { s3_error!(NoSuchKey) }
    }

    fn encrypt(&mut self, how: Option<ServerSideEncryption>, key: Option<String>) {
        self.encryption.push((how.map_or_else(String::new, |how| how.as_str().to_owned()), key.unwrap_or_default()));
    }
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, ServerState> {
        self.0.lock().unwrap()
    }
}

/// The input of a request, which must be about our bucket.
fn ours<T>(request: S3Request<T>, bucket: impl Fn(&T) -> &String) -> S3Result<T> {
    if bucket(&request.input) == BUCKET { Ok(request.input) } else { Err(s3_error!(NoSuchBucket)) }
}

async fn whole(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let mut body = body.map_or_else(Body::empty, Body::from);
    body.store_all_limited(usize::MAX).await.map_err(|_| s3_error!(IncompleteBody))
}

/// An answer that breaks off after half of the content.
fn broken(content: &Bytes) -> StreamingBlob {
    let half = content.slice(..content.len() / 2);
    StreamingBlob::wrap(stream::iter([Ok(half), Err(std::io::Error::other("the connection breaks"))]))
}

#[async_trait::async_trait]
impl S3 for Memory {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> Reply<PutObjectOutput> {
        let input = ours(request, |input| &input.bucket)?;
        let content = whole(input.body).await?;
        let new = input.if_none_match.is_some();
        self.state().encrypt(input.server_side_encryption, input.ssekms_key_id);
        let taken = |state: &ServerState| new && state.objects.contains_key(&input.key);
        let racy = {
            let state = self.state();
            state.racy && new && !taken(&state)
        };
        if racy {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut state = self.state();
        if !racy && taken(&state) {
            return Err(s3_error!(PreconditionFailed));
        }
        if let Some(condition) = input.if_match.filter(|_| !state.careless) {
            let there = state.objects.get(&input.key).ok_or_else(|| s3_error!(NoSuchKey))?;
            if condition.as_etag() != Some(&there.e_tag) {
                return Err(s3_error!(PreconditionFailed));
            }
        }
        let e_tag = state.insert(input.key, content);
        Ok(S3Response::new(PutObjectOutput { e_tag, ..Default::default() }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> Reply<CreateMultipartUploadOutput> {
        let input = ours(request, |input| &input.bucket)?;
        let mut state = self.state();
        state.encrypt(input.server_side_encryption, input.ssekms_key_id);
        state.begun += 1;
        let id = format!("upload-{}", state.begun);
        state.uploads.insert((input.key, id.clone()), PendingUpload { began: SystemTime::now(), parts: BTreeMap::new() });
        Ok(S3Response::new(CreateMultipartUploadOutput { upload_id: Some(id), ..Default::default() }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> Reply<UploadPartOutput> {
        let input = ours(request, |input| &input.bucket)?;
        let content = whole(input.body).await?;
        let mut state = self.state();
        if state.full && input.part_number > 1 {
            return Err(s3_error!(AccessDenied));
        }
        state.checksums.push(input.checksum_crc32.clone());
        let upload = state.uploads.get_mut(&(input.key, input.upload_id)).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(input.part_number, content);
        let e_tag = Some(ETag::Strong(input.part_number.to_string()));
        Ok(S3Response::new(UploadPartOutput { e_tag, checksum_crc32: input.checksum_crc32, ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Reply<CompleteMultipartUploadOutput> {
        let input = ours(request, |input| &input.bucket)?;
        let name = (input.key, input.upload_id);
        let mut state = self.state();
        let upload = state.uploads.get(&name).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        if !named.iter().filter_map(|part| part.part_number).eq(upload.parts.keys().copied()) {
            return Err(s3_error!(InvalidPart));
        }
        if upload.parts.values().rev().skip(1).any(|part| part.len() < 5 << 20) {
            return Err(s3_error!(EntityTooSmall));
        }
        let content = upload.parts.values().cloned().collect::<Vec<_>>().concat();
        state.uploads.remove(&name);
        let e_tag = state.insert(name.0, content.into());
        Ok(S3Response::new(CompleteMultipartUploadOutput { e_tag, ..Default::default() }))
    }

    async fn abort_multipart_upload(&self, request: S3Request<AbortMultipartUploadInput>) -> Reply<AbortMultipartUploadOutput> {
        let input = ours(request, |input| &input.bucket)?;
        self.state().uploads.remove(&(input.key, input.upload_id)).ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    /// Pages of two.
    async fn list_multipart_uploads(&self, request: S3Request<ListMultipartUploadsInput>) -> Reply<ListMultipartUploadsOutput> {
        let input = ours(request, |input| &input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let after = input.key_marker.map(|key| (key, input.upload_id_marker.unwrap_or_default()));
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state();
        let mut rest = state.uploads.range((start, Bound::Unbounded)).filter(|((key, _), _)| key.starts_with(&prefix));
        let page: Vec<_> = rest.by_ref().take(2).collect();
        let is_truncated = rest.next().is_some();
        let (next_key_marker, next_upload_id_marker) = page.last().map(|(name, _)| (*name).clone()).unzip();
        let uploads = page.into_iter().map(|((key, id), upload)| MultipartUpload {
            key: Some(key.clone()),
            upload_id: Some(id.clone()),
            initiated: Some(upload.began.into()),
            ..Default::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            is_truncated: Some(is_truncated),
            next_key_marker,
            next_upload_id_marker,
            ..Default::default()
        }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> Reply<GetObjectOutput> {
        let input = ours(request, |input| &input.bucket)?;
        let mut state = self.state();
        let Stored { content, e_tag } = state.objects.get(&input.key).ok_or_else(|| state.missing())?;
        if input.if_match.is_some_and(|condition| condition.as_etag() != Some(e_tag)) {
            return Err(s3_error!(PreconditionFailed));
        }
        // Some servers give the checksum of the whole object, whatever is asked for.
        let checksum_crc32 = input.checksum_mode.and(input.range).map(|_| "AAAAAA==".to_owned());
        let range = input.range.map(|range| range.check(content.len() as u64)).transpose()?;
        let content_range = range.as_ref().map(|r| format!("bytes {}-{}/{}", r.start, r.end - 1, content.len()));
        let content = range.map_or_else(|| content.clone(), |r| content.slice(r.start as usize..r.end as usize));
        let (content_length, e_tag) = (Some(content.len() as i64), Some(e_tag.clone()));
        let body = Some(if state.broken_reads > 0 { broken(&content) } else { Body::from(content).into() });
        state.broken_reads = state.broken_reads.saturating_sub(1);
        Ok(S3Response::new(GetObjectOutput { body, content_length, content_range, e_tag, checksum_crc32, ..Default::default() }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> Reply<HeadObjectOutput> {
        let input = ours(request, |input| &input.bucket)?;
        let state = self.state();
        let object = state.objects.get(&input.key).ok_or_else(|| state.missing())?;
        let (content_length, e_tag) = (Some(object.content.len() as i64), Some(object.e_tag.clone()));
        Ok(S3Response::new(HeadObjectOutput { content_length, e_tag, ..Default::default() }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> Reply<DeleteObjectOutput> {
        let input = ours(request, |input| &input.bucket)?;
        self.state().objects.remove(&input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> Reply<ListObjectsV2Output> {
        let input = ours(request, |input| &input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let size = usize::try_from(input.max_keys.unwrap_or(1000)).map_err(|_| s3_error!(InvalidArgument))?;
        // The token is the last key of the page before.
        let start = input.continuation_token.map_or(Bound::Included(prefix.clone()), Bound::Excluded);
        let state = self.state();
        let mut rest = state.objects.range((start, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&prefix));
        let contents: Vec<Object> = rest
            .by_ref()
            .take(size)
            .map(|(key, object)| Object {
                key: Some(key.clone()),
                size: Some(object.content.len() as i64),
                e_tag: Some(object.e_tag.clone()),
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
