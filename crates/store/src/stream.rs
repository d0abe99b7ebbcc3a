//! Uploads and downloads: large objects written and read piece by piece, in bounded memory.

use std::time::SystemTime;

use bytes::Bytes;

use crate::error::{ErrorKind, Failure};
use crate::multipart;
use crate::{Backend, Error, Store, directory};

impl Store {
    /// Starts to write an object. It appears when the upload is finished, and replaces any earlier one.
    pub async fn upload(&self, key: &str) -> Result<Upload, Error> {
        let sending = self.run(Upload::DOING, key, async |full| match &self.backend {
            Backend::Directory(directory) => directory.run(move |d| d.upload(&full)).await.map(Sending::Directory),
            Backend::S3(bucket) => Ok(Sending::S3(Box::new(bucket.upload(full)))),
        });
        Ok(Upload { store: self.clone(), key: key.to_owned(), sending: Some(sending.await?) })
    }

    /// Starts to read an object.
    pub async fn download(&self, key: &str) -> Result<Download, Error> {
        let receiving = self.run(Download::DOING, key, async |full| match &self.backend {
            Backend::Directory(directory) => directory.run(move |d| d.download(&full)).await.map(Receiving::Directory),
            Backend::S3(bucket) => bucket.download(full).await.map(Receiving::S3),
        });
        Ok(Download { store: self.clone(), key: key.to_owned(), receiving: receiving.await? })
    }

    /// Removes the remains of uploads that started before `began_before` (in a directory: that last wrote before it) and were
    /// neither finished nor aborted, such as those of killed processes. Returns their number. An older upload that is still
    /// running fails.
    pub async fn sweep_uploads(&self, began_before: SystemTime) -> Result<usize, Error> {
        let prefix = self.prefix.clone();
        let swept = match &self.backend {
            Backend::Directory(directory) => directory.run(move |d| d.sweep_uploads(&prefix, began_before)).await,
            Backend::S3(bucket) => bucket.sweep_uploads(&prefix, began_before).await,
        };
        self.explain("sweep unfinished uploads to", "", swept)
    }
}

/// An object that is written piece by piece. Made by [`Store::upload`].
///
/// Dropped before it is finished it leaves no object; in a bucket it may leave parts, for [`Upload::abort`] or
/// [`Store::sweep_uploads`] to remove. After an error it has been aborted.
#[derive(Debug)]
pub struct Upload {
    store: Store,
    key: String,
    /// `None` after an error, or after a `write` whose future was dropped.
    sending: Option<Sending>,
}

#[derive(Debug)]
enum Sending {
    Directory(directory::Upload),
    S3(Box<multipart::Upload>),
}

impl Upload {
    const DOING: &str = "write";

    /// Appends to the object. Returns when there is room for more; the bytes may not be stored yet.
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<(), Error> {
        let result = match self.sending.take() {
            Some(Sending::Directory(upload)) => upload.write(bytes.into()).await.map(Sending::Directory),
            Some(Sending::S3(upload)) => upload.write(bytes.into()).await.map(|upload| Sending::S3(Box::new(upload))),
            None => Err(broken_off()),
        };
        self.sending = Some(self.store.explain(Upload::DOING, &self.key, result)?);
        Ok(())
    }

    /// Publishes what was written as the object. When this returns, the object is complete and survives a crash.
    pub async fn finish(self) -> Result<(), Error> {
        let result = match self.sending {
            Some(Sending::Directory(upload)) => upload.finish().await,
            Some(Sending::S3(upload)) => upload.finish().await,
            None => Err(broken_off()),
        };
        self.store.explain(Upload::DOING, &self.key, result)
    }

    /// Cancels the upload and leaves nothing.
    pub async fn abort(self) -> Result<(), Error> {
        let result = match self.sending {
            Some(Sending::S3(upload)) => upload.abort().await,
            // Dropping a temporary file removes it.
            Some(Sending::Directory(_)) | None => Ok(()),
        };
        self.store.explain("cancel writing", &self.key, result)
    }
}

fn broken_off() -> Failure {
    Failure::new(ErrorKind::Other, "this upload was interrupted: start a new one")
}

/// An object that is read piece by piece. Made by [`Store::download`].
///
/// All pieces belong to one object: if it is replaced meanwhile, the rest comes from the old one, or `next` fails with
/// [`ErrorKind::Changed`].
#[derive(Debug)]
pub struct Download {
    store: Store,
    key: String,
    receiving: Receiving,
}

#[derive(Debug)]
enum Receiving {
    Directory(directory::Download),
    S3(multipart::Download),
}

impl Download {
    const DOING: &str = "read";

    /// The next piece, never empty; `None` after the last. Do not call it again after an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let result = match &mut self.receiving {
            Receiving::Directory(download) => download.next().await,
            Receiving::S3(download) => download.next().await,
        };
        self.store.explain(Download::DOING, &self.key, result)
    }
}
