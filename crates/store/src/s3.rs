//! A bucket as a store: S3, and servers with its API.
//!
//! The SDK retries transient failures; what still fails gets the [`ErrorKind`] that callers act on. Objects larger than a part
//! go through `multipart.rs`.

use std::pin::Pin;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::operation::put_object::{PutObjectError, PutObjectOutput};
use aws_sdk_s3::primitives::ByteStreamError;
use aws_sdk_s3::types::ServerSideEncryption;
use bytes::{Bytes, BytesMut};

use crate::error::{ErrorKind, Failure, Result};
use crate::url::BucketOptions;
use crate::{ObjectInfo, PIECE, Page, PutNew, Replace};

/// Retries of `put_new` and `replace` while the server handles another request for the key, and of a range whose connection broke. The pause
/// doubles each time.
pub(crate) const RETRIES: u32 = 6;
pub(crate) const PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a request, unless the URL sets `timeout`.
const ANSWER: u32 = 30;
/// An operation with all its retries takes this many times as long at most.
const RETRIED: u32 = 4;
/// Bytes of a request that are sent within the usual time. For each [`PIECE`] of a larger one it is four times as long.
const SMALL: usize = 1 << 20;

// Each request of the SDK is boxed where it is sent: its future is so deep that the compiler's limit would be exceeded in callers.

type PutAnswer = std::result::Result<PutObjectOutput, SdkError<PutObjectError, HttpResponse>>;

#[derive(Clone, Debug)]
pub(crate) struct S3 {
    pub(crate) client: Client,
    pub(crate) bucket: String,
    /// Whether parts get checksums.
    pub(crate) checksums: bool,
    pub(crate) encryption: Option<ServerSideEncryption>,
    pub(crate) kms_key: Option<String>,
    /// Longest wait for the answer to a small request.
    answer: Duration,
}

impl S3 {
    pub(crate) async fn new(bucket: String, options: BucketOptions) -> Result<S3> {
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
        if let Some(region) = options.region {
            loader = loader.region(Region::new(region));
        } else if options.endpoint.is_some() {
            // Most other servers accept any region.
            loader = loader.region(Region::from_static("us-east-1"));
        }
        if options.anonymous {
            loader = loader.no_credentials();
        }
        let shared = loader.load().await;
        if shared.region().is_none() {
            let problem = "the bucket's region is unknown: append ?region=… to the URL, or set AWS_REGION";
            return Err(Failure::new(ErrorKind::InvalidUrl, problem));
        }
        let path_style = options.path_style.unwrap_or(options.endpoint.is_some());
        let answer = Duration::from_secs(options.timeout.unwrap_or(ANSWER).into());
        let mut config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(path_style).timeout_config(limits(answer));
        if let Some(endpoint) = options.endpoint {
            config = config.endpoint_url(endpoint);
        }
        if options.checksums_when_required {
            config = config
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        }
        Ok(S3 {
            client: Client::from_conf(config.build()),
            bucket,
            checksums: !options.checksums_when_required,
            encryption: options.sse.as_deref().map(ServerSideEncryption::from),
            kms_key: options.kms_key,
            answer,
        })
    }

    pub(crate) async fn get(&self, key: &str, max_bytes: u64) -> Result<Bytes> {
        let mut answer = Box::pin(self.client.get_object().bucket(&self.bucket).key(key).send()).await?;
        let size = size(answer.content_length());
        if size > max_bytes {
            return Err(Failure::too_large(size, max_bytes));
        }
        let mut bytes = BytesMut::with_capacity(usize::try_from(size).unwrap_or(0));
        while let Some(part) = answer.body.next().await {
            bytes.extend_from_slice(&part?);
            if bytes.len() as u64 > max_bytes {
                return Err(Failure::too_large(bytes.len() as u64, max_bytes));
            }
        }
        Ok(bytes.freeze())
    }

    pub(crate) async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        if bytes.len() > PIECE {
            return self.upload(key.to_owned()).write(bytes).await?.finish().await;
        }
        let size = bytes.len();
        self.send(self.put_request(key, bytes), size).await?;
        Ok(())
    }

    /// Sends a body of `size` bytes.
    pub(crate) fn send(&self, request: PutObjectFluentBuilder, size: usize) -> Pin<Box<dyn Future<Output = PutAnswer> + Send>> {
        let limits = self.limits_of(size);
        Box::pin(async move { request.customize().config_override(limits).send().await })
    }

    /// Time limits of a request with a body of so many bytes.
    pub(crate) fn limits_of(&self, bytes: usize) -> aws_sdk_s3::config::Builder {
        let times = if bytes <= SMALL { 1 } else { 4 * bytes.div_ceil(PIECE) };
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        aws_sdk_s3::Config::builder().timeout_config(limits(self.answer.saturating_mul(times)))
    }

    pub(crate) fn put_request(&self, key: &str, bytes: Bytes) -> PutObjectFluentBuilder {
        let request = self.client.put_object().bucket(&self.bucket).key(key).body(bytes.into());
        request.set_server_side_encryption(self.encryption.clone()).set_ssekms_key_id(self.kms_key.clone())
    }

    pub(crate) async fn put_new(&self, key: &str, bytes: Bytes) -> Result<PutNew> {
        let mut pause = PAUSE;
        for turn in 0.. {
            let request = self.put_request(key, bytes.clone()).if_none_match("*");
            let error = match self.send(request, bytes.len()).await {
                Ok(_) => return Ok(PutNew::Created),
                Err(error) => error,
            };
            match status(&error) {
                Some(412) => return Ok(PutNew::Exists),
                Some(409) if turn < RETRIES => tokio::time::sleep(pause).await,
                _ => return Err(error.into()),
            }
            pause *= 2;
        }
        unreachable!("the last turn returns")
    }

    pub(crate) async fn replace(&self, key: &str, bytes: Bytes, identity: &str) -> Result<Replace> {
        let mut pause = PAUSE;
        for turn in 0.. {
            let request = self.put_request(key, bytes.clone()).if_match(format!("\"{identity}\""));
            let error = match Box::pin(request.send()).await {
                Ok(_) => return Ok(Replace::Replaced),
                Err(error) => error,
            };
            match status(&error) {
                Some(412) => return Ok(Replace::Conflict),
                // The object is gone.
                Some(404) if code(&error) != Some("NoSuchBucket") => return Ok(Replace::Conflict),
                Some(409) if turn < RETRIES => tokio::time::sleep(pause).await,
                _ => return Err(error.into()),
            }
            pause *= 2;
        }
        unreachable!("the last turn returns")
    }

    pub(crate) async fn identity(&self, key: &str) -> Result<Option<String>> {
        match Box::pin(self.client.head_object().bucket(&self.bucket).key(key).send()).await {
            Ok(answer) => Ok(Some(identity(answer.e_tag()))),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) async fn delete(&self, key: &str) -> Result<()> {
        match Box::pin(self.client.delete_object().bucket(&self.bucket).key(key).send()).await {
            // S3 itself does not say so, other servers do.
            Err(error) if code(&error) == Some("NoSuchKey") => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }

    pub(crate) async fn check_writable(&self, prefix: &str) -> Result<()> {
        let key = format!("{prefix}.basin-write-check.tmp");
        self.put(&key, Bytes::from_static(b"basin checks that it can write here\n")).await?;
        self.delete(&key).await?;
        self.check_missing(&key).await
    }

    /// Checks that a missing object is told from a forbidden one: without the permission to list, S3 answers 403 for both, and whoever
    /// looks for a result that is not there yet would take the store for closed.
    async fn check_missing(&self, key: &str) -> Result<()> {
        match self.identity(key).await {
            Err(failure) if failure.kind() == ErrorKind::Denied => {
                let problem = "the server answers 403 for an object that does not exist: allow the action s3:ListBucket on the bucket \
                               (docs/src/reference/stores.md, Rights)";
                Err(Failure::new(ErrorKind::Denied, problem).with_source(failure.into_error("look for", key.to_owned())))
            }
            other => other.map(drop),
        }
    }

    pub(crate) fn walk(&self, prefix: String) -> Walk {
        Walk { bucket: self.clone(), prefix, token: None, last: false }
    }
}

/// Nothing waits for ever: a server that accepts a connection and never answers is an error of kind [`ErrorKind::Unavailable`].
fn limits(answer: Duration) -> TimeoutConfig {
    let limits = TimeoutConfig::builder().connect_timeout(CONNECT.min(answer)).read_timeout(answer);
    limits.operation_timeout(answer.saturating_mul(RETRIED)).build()
}

/// A listing under way.
#[derive(Debug)]
pub(crate) struct Walk {
    bucket: S3,
    prefix: String,
    /// Start of the next page.
    token: Option<String>,
    last: bool,
}

impl Walk {
    pub(crate) async fn page(&mut self, size_limit: usize) -> Result<Page> {
        let mut page = Page { objects: Vec::new(), skipped: Vec::new(), last: self.last };
        if self.last {
            return Ok(page);
        }
        let S3 { client, bucket, .. } = &self.bucket;
        let request = client.list_objects_v2().bucket(bucket).prefix(&self.prefix);
        let request = request.max_keys(i32::try_from(size_limit).unwrap_or(i32::MAX));
        let answer = Box::pin(request.set_continuation_token(self.token.clone()).send()).await?;
        for object in answer.contents() {
            let identity = identity(object.e_tag());
            let key = object.key().unwrap_or_default().to_owned();
            page.objects.push(ObjectInfo { key, size: size(object.size()), identity });
        }
        self.token = answer.next_continuation_token;
        self.last = self.token.is_none();
        page.last = self.last;
        Ok(page)
    }
}

fn identity(e_tag: Option<&str>) -> String {
    e_tag.unwrap_or_default().trim_matches('"').to_owned()
}

pub(crate) fn size(of_answer: Option<i64>) -> u64 {
    of_answer.and_then(|s| u64::try_from(s).ok()).unwrap_or(0)
}

pub(crate) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|r| r.status().as_u16())
}

fn code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error.as_service_error().and_then(|e| e.code())
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Failure {
        let (kind, detail) = match &error {
            SdkError::ServiceError(service) => {
                let code = service.err().code().unwrap_or("no code");
                of_answer(service.raw().status().as_u16(), code, service.err().message())
            }
            SdkError::TimeoutError(_) | SdkError::ResponseError(_) => {
                (ErrorKind::Unavailable, "the server does not respond, or sends a broken response".into())
            }
            SdkError::DispatchFailure(_) => match credentials_error(&error) {
                Some(CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)) => {
                    (ErrorKind::Denied, "no credentials found (environment, profile, web identity, machine)".into())
                }
                Some(_) => (ErrorKind::Unavailable, "the credentials provider does not respond".into()),
                None => (ErrorKind::Unavailable, "the server cannot be reached".into()),
            },
            _ => (ErrorKind::Other, "cannot send the request".into()),
        };
        Failure::new(kind, detail).with_source(error)
    }
}

fn of_answer(status: u16, code: &str, message: Option<&str>) -> (ErrorKind, String) {
    let answer = match message {
        Some(message) => format!("{status} {code}: {message}"),
        None => format!("{status} {code}"),
    };
    match (status, code) {
        (_, "NoSuchBucket") => (ErrorKind::NotFound, "the bucket does not exist".into()),
        (_, "NoSuchUpload") => (ErrorKind::Unavailable, format!("the upload was swept or is already complete ({answer})")),
        (404, _) => (ErrorKind::NotFound, "not found".into()),
        (_, "KeyTooLongError") => (ErrorKind::InvalidKey, "the key is too long for the server".into()),
        (412, _) => (ErrorKind::Changed, "it was replaced while it was read".into()),
        (401 | 403, _) | (_, "ExpiredToken" | "InvalidToken") => {
            (ErrorKind::Denied, format!("the server denies access ({answer})"))
        }
        (507, _) | (_, "QuotaExceeded" | "XMinioStorageFull") => {
            (ErrorKind::NoSpace, format!("the server has no space left ({answer})"))
        }
        (301 | 307, _) => (ErrorKind::Other, format!("the bucket is in another region: append ?region=… to the URL ({answer})")),
        (501, _) | (_, "XAmzContentSHA256Mismatch") => (
            ErrorKind::Other,
            format!("the server does not support the request; try checksums=when_required in the URL ({answer})"),
        ),
        (408 | 409 | 429 | 500.., _) | (_, "InternalError" | "RequestTimeout" | "SlowDown") => {
            (ErrorKind::Unavailable, format!("the server is unavailable or overloaded ({answer})"))
        }
        _ => (ErrorKind::Other, format!("the server refuses the request ({answer})")),
    }
}

impl From<ByteStreamError> for Failure {
    fn from(error: ByteStreamError) -> Failure {
        Failure::new(ErrorKind::Unavailable, "the connection broke, or the content was damaged in transit").with_source(error)
    }
}

fn credentials_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e CredentialsError> {
    std::iter::successors(Some(error), |e| e.source()).find_map(|e| e.downcast_ref())
}
