//! Large objects in a bucket: sent in parts, read in ranges, a few at a time.
//!
//! An object that fits into one part is one request. S3 accepts at most 10,000 parts of 5 GiB and objects of 5 TiB.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::{Builder, ResponseChecksumValidation};
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::get_object::{GetObjectError, GetObjectOutput};
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use tokio::task::{JoinHandle, JoinSet};

use crate::PIECE;
use crate::error::{ErrorKind, Failure, Result};
use crate::s3::{PAUSE, RETRIES, S3, size, status};

/// Parts sent, or ranges read, at a time.
const IN_FLIGHT: usize = 4;
/// Number of parts after which the part size doubles.
const PARTS_OF_A_SIZE: usize = 1000;

/// Bytes of the next part after `parts`. It grows, so that usual objects need little memory and the largest one still fits.
fn part_bytes(parts: usize) -> usize {
    PIECE << (parts / PARTS_OF_A_SIZE)
}

/// An object being written.
#[derive(Debug)]
pub(crate) struct Upload {
    bucket: S3,
    key: String,
    /// Bytes not sent yet. It may be a full part, because that may be the last.
    buffer: BytesMut,
    /// Upload id, from the server; set when the first part is sent.
    id: Option<String>,
    /// Number of parts started.
    parts: usize,
    sending: JoinSet<Result<CompletedPart>>,
    sent: Vec<CompletedPart>,
}

impl Upload {
    pub(crate) async fn write(mut self, bytes: Bytes) -> Result<Upload> {
        match self.take(bytes).await {
            Ok(()) => Ok(self),
            Err(failure) => Err(self.fail(failure).await),
        }
    }

    pub(crate) async fn finish(mut self) -> Result<()> {
        if self.id.is_none() {
            let size = self.buffer.len();
            self.bucket.send(self.bucket.put_request(&self.key, self.buffer.freeze()), size).await?;
            return Ok(());
        }
        match self.complete().await {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.fail(failure).await),
        }
    }

    pub(crate) async fn abort(mut self) -> Result<()> {
        self.sending.shutdown().await;
        if let Some(id) = &self.id {
            self.bucket.abort_upload(&self.key, id).await?;
        }
        Ok(())
    }

    /// Aborts the upload. What cannot be removed now is left for a sweep.
    async fn fail(self, failure: Failure) -> Failure {
        let _ = self.abort().await;
        failure
    }

    async fn take(&mut self, mut bytes: Bytes) -> Result<()> {
        while self.buffer.len() + bytes.len() > part_bytes(self.parts) {
            let head = bytes.split_to(part_bytes(self.parts) - self.buffer.len());
            let part = if self.buffer.is_empty() {
                head
            } else {
                self.buffer.extend_from_slice(&head);
                std::mem::take(&mut self.buffer).freeze()
            };
            self.send(part).await?;
        }
        self.buffer.extend_from_slice(&bytes);
        Ok(())
    }

    async fn send(&mut self, part: Bytes) -> Result<()> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => self.id.insert(self.bucket.begin_upload(&self.key).await?).clone(),
        };
        if self.sending.len() == IN_FLIGHT {
            self.one_sent().await?;
        }
        self.parts += 1;
        let number = i32::try_from(self.parts).unwrap_or(i32::MAX);
        self.sending.spawn(send_part(self.bucket.clone(), self.key.clone(), id, number, part));
        Ok(())
    }

    async fn one_sent(&mut self) -> Result<()> {
        if let Some(sent) = self.sending.join_next().await {
            self.sent.push(sent.expect("sending does not panic")?);
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<()> {
        let last = std::mem::take(&mut self.buffer).freeze();
        self.send(last).await?;
        while !self.sending.is_empty() {
            self.one_sent().await?;
        }
        self.sent.sort_by_key(CompletedPart::part_number);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(std::mem::take(&mut self.sent))).build();
        let S3 { client, bucket, .. } = &self.bucket;
        let request = client.complete_multipart_upload().bucket(bucket).key(&self.key).set_upload_id(self.id.clone());
        // A server may put the parts together before it answers.
        let limits = self.bucket.limits_of(self.parts * PIECE);
        Box::pin(request.multipart_upload(parts).customize().config_override(limits).send()).await?;
        Ok(())
    }
}

async fn send_part(bucket: S3, key: String, id: String, number: i32, part: Bytes) -> Result<CompletedPart> {
    let request = bucket.client.upload_part().bucket(&bucket.bucket).key(key).upload_id(id).part_number(number);
    let limits = bucket.limits_of(part.len());
    let request = request.set_checksum_algorithm(bucket.checksum_algorithm()).body(part.into());
    let answer = Box::pin(request.customize().config_override(limits).send()).await?;
    let part = CompletedPart::builder().part_number(number);
    Ok(part.set_e_tag(answer.e_tag).set_checksum_crc32(answer.checksum_crc32).build())
}

/// An object being read.
#[derive(Debug)]
pub(crate) struct Download {
    object: Arc<Pinned>,
    /// Offset of the next range.
    at: u64,
    /// Ranges under way, in order.
    ahead: VecDeque<JoinHandle<Result<Bytes>>>,
}

/// An object as it was when its reading began.
#[derive(Debug)]
struct Pinned {
    bucket: S3,
    key: String,
    size: u64,
    e_tag: Option<String>,
}

impl Download {
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.ahead.len() < IN_FLIGHT && self.at < self.object.size {
            self.read_ahead(None);
        }
        let Some(first) = self.ahead.front_mut() else { return Ok(None) };
        let piece = first.await.expect("reading does not panic");
        self.ahead.pop_front();
        piece.map(Some)
    }

    /// Starts to read the next range. `answer`: its response, if it has been requested already.
    fn read_ahead(&mut self, answer: Option<GetObjectOutput>) {
        let range = self.at..self.object.size.min(self.at + PIECE as u64);
        self.at = range.end;
        self.ahead.push_back(tokio::spawn(read(self.object.clone(), range, answer)));
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        for range in &self.ahead {
            range.abort();
        }
    }
}

/// Reads a range. If the connection breaks, it continues from there.
async fn read(object: Arc<Pinned>, range: Range<u64>, mut answer: Option<GetObjectOutput>) -> Result<Bytes> {
    let length = (range.end - range.start) as usize;
    let mut bytes = BytesMut::with_capacity(length);
    let mut pause = PAUSE;
    for turn in 0.. {
        let answer = match answer.take() {
            Some(answer) => answer,
            None => {
                let rest = range.start + bytes.len() as u64..range.end;
                object.bucket.get_range(&object.key, rest, object.e_tag.clone()).await?
            }
        };
        match append(answer.body, &mut bytes, length).await {
            Ok(()) => break,
            Err(failure) if failure.kind() == ErrorKind::Unavailable && turn < RETRIES => tokio::time::sleep(pause).await,
            Err(failure) => return Err(failure),
        }
        pause *= 2;
    }
    Ok(bytes.freeze())
}

/// Appends the body until there are `length` bytes.
async fn append(mut body: ByteStream, bytes: &mut BytesMut, length: usize) -> Result<()> {
    while let Some(some) = body.next().await {
        bytes.extend_from_slice(&some?);
        if bytes.len() > length {
            return Err(Failure::new(ErrorKind::Other, "the server returned more than the requested range"));
        }
    }
    if bytes.len() < length {
        return Err(Failure::new(ErrorKind::Unavailable, "the response ended too early"));
    }
    Ok(())
}

impl S3 {
    pub(crate) fn upload(&self, key: String) -> Upload {
        let (buffer, sending) = Default::default();
        Upload { bucket: self.clone(), key, buffer, id: None, parts: 0, sending, sent: Vec::new() }
    }

    pub(crate) async fn download(&self, key: String) -> Result<Download> {
        let answer = match self.get_range(&key, 0..PIECE as u64, None).await {
            // An empty object has no range.
            Err(error) if status(&error) == Some(416) => None,
            answer => Some(answer?),
        };
        let object = Pinned {
            bucket: self.clone(),
            key,
            size: answer.as_ref().map_or(0, whole_size),
            e_tag: answer.as_ref().and_then(|a| a.e_tag.clone()),
        };
        let mut download = Download { object: object.into(), at: 0, ahead: VecDeque::new() };
        if download.object.size > 0 {
            download.read_ahead(answer);
        }
        Ok(download)
    }

    pub(crate) async fn sweep_uploads(&self, prefix: &str, began_before: SystemTime) -> Result<usize> {
        let began_before = DateTime::from(began_before);
        let (mut key, mut id, mut swept) = (None, None, 0);
        loop {
            let request = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(prefix);
            let page = Box::pin(request.set_key_marker(key).set_upload_id_marker(id).send()).await?;
            for upload in page.uploads() {
                if let (Some(key), Some(id), Some(began)) = (upload.key(), upload.upload_id(), upload.initiated())
                    && *began < began_before
                {
                    swept += usize::from(self.abort_upload(key, id).await?);
                }
            }
            (key, id) = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) || key.is_none() {
                return Ok(swept);
            }
        }
    }

    fn checksum_algorithm(&self) -> Option<ChecksumAlgorithm> {
        self.checksums.then_some(ChecksumAlgorithm::Crc32)
    }

    async fn begin_upload(&self, key: &str) -> Result<String> {
        let request = self.client.create_multipart_upload().bucket(&self.bucket).key(key);
        let request = request.set_server_side_encryption(self.encryption.clone()).set_ssekms_key_id(self.kms_key.clone());
        let answer = Box::pin(request.set_checksum_algorithm(self.checksum_algorithm()).send()).await?;
        answer.upload_id.ok_or_else(|| Failure::new(ErrorKind::Other, "the server gives the upload no name"))
    }

    /// Whether there was such an upload.
    async fn abort_upload(&self, key: &str, id: &str) -> Result<bool> {
        match Box::pin(self.client.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(id).send()).await {
            Err(error) if status(&error) == Some(404) => Ok(false),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(true),
        }
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
        e_tag: Option<String>,
    ) -> std::result::Result<GetObjectOutput, SdkError<GetObjectError, HttpResponse>> {
        let request = self.client.get_object().bucket(&self.bucket).key(key).set_if_match(e_tag);
        let request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        // With a range some servers, S3 among them, give a checksum that is not the range's.
        let unchecked = Builder::new().response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        Box::pin(request.customize().config_override(unchecked).send()).await
    }
}

/// Size of the object that `answer` is a range of.
fn whole_size(answer: &GetObjectOutput) -> u64 {
    let whole = answer.content_range().and_then(|range| range.rsplit_once('/')?.1.parse().ok());
    whole.unwrap_or_else(|| size(answer.content_length()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_object_fits_into_the_parts_that_a_server_takes() {
        let sizes = (0..10_000).map(|parts| part_bytes(parts) as u64);
        assert!(sizes.clone().all(|bytes| (5 << 20..=5 << 30).contains(&bytes)));
        assert!(sizes.sum::<u64>() >= 5 << 40);
    }
}
