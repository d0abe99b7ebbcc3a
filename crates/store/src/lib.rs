//! Objects by key.
//!
//! A [`Store`] is a clonable handle to a directory or to a bucket, with a prefix, opened from a URL; callers need not know which
//! it is. The back-ends are private, one file each (`directory.rs`, `s3.rs` with `multipart.rs`).
//!
//! Every back-end guarantees:
//! * A reader sees a complete object or none. After `put` returns, the object survives a crash.
//! * Of concurrent [`Store::put_new`] calls for one key, exactly one creates it.
//! * Of concurrent [`Store::replace`] calls with one identity, exactly one replaces the object.
//! * No key, prefix or link leads out of the store.
//!
//! Limits: `get` and `put` hold an object in memory; [`Download`] and [`Upload`] hold a few pieces of it. In a directory a key
//! cannot be both an object and the first part of another (`a` and `a/b`); several processes of one machine may share it, but
//! its links must not change while it is in use.

#![warn(missing_docs)]

mod allowed;
mod directory;
mod error;
mod examine;
mod key;
mod multipart;
mod s3;
mod stream;
mod url;

use std::path::PathBuf;

use bytes::Bytes;

pub use allowed::{Allowed, NotAllowed};
use directory::Directory;
pub use error::{Error, ErrorKind};
use error::{Failure, Result as BackendResult};
pub use stream::{Download, Upload};

/// Bytes of a piece: what is read at a time, and held in memory; also of a part in a bucket.
pub const PIECE: usize = 8 << 20;

/// How often [`Store::update`] tries.
const UPDATES: u32 = 100;

/// Handle to a store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    backend: Backend,
    /// The URL without prefix and options, and without '/' at its end.
    base: String,
    /// Empty, or ends with '/'.
    prefix: String,
    /// Options of the URL with the '?' before them, or empty.
    options: String,
}

#[derive(Clone, Debug)]
enum Backend {
    Directory(Directory),
    S3(s3::S3),
}

/// Where the objects of runs are.
#[derive(Clone, Debug)]
pub enum Runs {
    /// One run has the whole store.
    One(Store),
    /// Each run has `runs/<run>/` in the home of a fleet.
    Home(Store),
}

impl Runs {
    /// The store of a run.
    pub fn of(&self, run: &str) -> Result<Store, Error> {
        match self {
            Runs::One(store) => Ok(store.clone()),
            Runs::Home(home) => home.with_prefix(&format!("runs/{run}")),
        }
    }
}

/// Whether [`Store::put_new`] wrote the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum PutNew {
    /// The given object was written.
    Created,
    /// The key had an object already; it is unchanged.
    Exists,
}

/// Whether [`Store::replace`] wrote the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Replace {
    /// The given object was written.
    Replaced,
    /// The object is another one by now, or is gone; nothing was written.
    Conflict,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectInfo {
    /// Key for [`Store::get`].
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// Changes when the content changes: the ETag, or in a directory size and time of modification.
    pub identity: String,
}

impl Store {
    /// Opens the store at `url`; no file or network is touched yet. `url` is one of
    /// * `/data/x`, `./out`, `file:///data/x`: a directory, created by the first write (in the `file:` form `%XX` stands
    ///   for a byte);
    /// * `s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=eu-west-1`: a bucket, with credentials from the usual
    ///   chain (environment, profile, web identity, machine).
    ///
    /// Options of a bucket, all optional: `endpoint`; `region`; `path_style=true|false` (default: true with an endpoint, else
    /// false); `anonymous=true` sends no credentials; `checksums=when_required` is for servers that do not support the optional
    /// checksums; `sse=AES256` or `sse=aws:kms` (with `kms_key`) makes the server encrypt objects; `timeout` is the number of seconds
    /// until the server must have answered a request (default 30; more for large objects).
    pub async fn open(url: &str) -> Result<Store, Error> {
        let failed = |failure: Failure| failure.into_error("open the store", url::without_secrets(url));
        match url::parse(url).map_err(failed)? {
            url::Location::Directory(root) => {
                let base = url::of_path(&root);
                let backend = Backend::Directory(Directory::new(root));
                Ok(Store { backend, base, prefix: String::new(), options: String::new() })
            }
            url::Location::Bucket { bucket, prefix, options } => Ok(Store {
                base: format!("s3://{bucket}"),
                prefix,
                options: options.to_query(),
                backend: Backend::S3(s3::S3::new(bucket, options).await.map_err(failed)?),
            }),
        }
    }

    /// The part of the store below `prefix`; keys are relative to it.
    pub fn with_prefix(&self, prefix: &str) -> Result<Store, Error> {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let full = self.full_key("open the prefix", prefix)?;
        Ok(Store { prefix: format!("{full}/"), ..self.clone() })
    }

    /// A URL that `open` accepts. It never holds credentials and may be shown.
    pub fn url(&self) -> String {
        format!("{}{}", self.object_url("").trim_end_matches('/'), self.options)
    }

    /// Whether the objects of `other` are also objects of this store.
    pub fn contains(&self, other: &Store) -> bool {
        other.object_url("").starts_with(&self.object_url(""))
    }

    /// Path of the object, if this store is a directory. The file need not exist.
    pub fn local_path(&self, key: &str) -> Option<PathBuf> {
        let full = self.full_key("locate", key).ok()?;
        match &self.backend {
            Backend::Directory(directory) => Some(directory.path(&full)),
            Backend::S3(_) => None,
        }
    }

    /// Reads an object into memory; for large objects use [`Store::download`].
    pub async fn get(&self, key: &str) -> Result<Bytes, Error> {
        self.get_limited(key, u64::MAX).await
    }

    /// Reads an object of at most `max_bytes`; a larger one is an error of kind [`ErrorKind::TooLarge`] and is not read.
    pub async fn get_limited(&self, key: &str, max_bytes: u64) -> Result<Bytes, Error> {
        self.run("read", key, async |full| match &self.backend {
            Backend::Directory(directory) => directory.run(move |d| d.get(&full, max_bytes)).await,
            Backend::S3(bucket) => bucket.get(&full, max_bytes).await,
        })
        .await
    }

    /// Writes an object, and replaces any earlier one.
    pub async fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<(), Error> {
        let bytes = bytes.into();
        self.run("write", key, async move |full| match &self.backend {
            Backend::Directory(directory) => directory.run(move |d| d.put(&full, &bytes)).await,
            Backend::S3(bucket) => bucket.put(&full, bytes).await,
        })
        .await
    }

    /// Writes an object unless the key exists: of concurrent calls, at most one returns [`PutNew::Created`].
    ///
    /// The winner may get `Exists` too, if the response to its first request was lost and the request was repeated. Read the
    /// object and compare where this matters.
    pub async fn put_new(&self, key: &str, bytes: impl Into<Bytes>) -> Result<PutNew, Error> {
        let bytes = bytes.into();
        self.run("create", key, async move |full| match &self.backend {
            Backend::Directory(directory) => directory.run(move |d| d.put_new(&full, &bytes)).await,
            Backend::S3(bucket) => bucket.put_new(&full, bytes).await,
        })
        .await
    }

    /// Writes an object if the one that is there still has this [`ObjectInfo::identity`]: of concurrent calls with one identity, at
    /// most one returns [`Replace::Replaced`]. For small objects, which are sent in one request.
    ///
    /// The winner may get `Conflict`, if the response to its first request was lost and the request was repeated. Read the object
    /// and compare where this matters. In a directory only other calls of `replace` are held off, not `put` and `delete`: an object
    /// that is replaced so should be written in no other way once it exists.
    pub async fn replace(&self, key: &str, bytes: impl Into<Bytes>, identity: &str) -> Result<Replace, Error> {
        let (bytes, identity) = (bytes.into(), identity.to_owned());
        self.run("replace", key, async move |full| match &self.backend {
            Backend::Directory(directory) => directory.run(move |d| d.replace(&full, &bytes, &identity)).await,
            Backend::S3(bucket) => bucket.replace(&full, bytes, &identity).await,
        })
        .await
    }

    /// Changes an object, however many do so at once. `change` gets the content, `None` if there is no object, and returns the new
    /// one, `None` if it is to stay as it is. It is called again when another writer was faster, so that the last call counts.
    /// Returns whether the object was written. See [`Store::replace`] about directories.
    pub async fn update(&self, key: &str, mut change: impl FnMut(Option<&[u8]>) -> Option<Vec<u8>>) -> Result<bool, Error> {
        for _ in 0..UPDATES {
            // First the identity: if the content is a newer one, the replacement fails.
            let identity = self.identity(key).await?;
            let there = match &identity {
                None => None,
                Some(_) => match self.get(key).await {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    there => Some(there?),
                },
            };
            let Some(new) = change(there.as_deref()) else { return Ok(false) };
            let written = match &identity {
                None => self.put_new(key, new).await? == PutNew::Created,
                Some(identity) => self.replace(key, new, identity).await? == Replace::Replaced,
            };
            if written {
                return Ok(true);
            }
        }
        self.explain("change", key, Err(Failure::new(ErrorKind::Unavailable, "other writers were faster each time")))
    }

    /// Whether the key has an object.
    pub async fn exists(&self, key: &str) -> Result<bool, Error> {
        Ok(self.identity(key).await?.is_some())
    }

    /// The object's [`ObjectInfo::identity`]; `None` if there is no object.
    pub async fn identity(&self, key: &str) -> Result<Option<String>, Error> {
        self.run("look for", key, async |full| match &self.backend {
            Backend::Directory(directory) => directory.run(move |d| d.identity(&full)).await,
            Backend::S3(bucket) => bucket.identity(&full).await,
        })
        .await
    }

    /// Deletes an object. Succeeds if it does not exist.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        self.run("delete", key, async |full| match &self.backend {
            Backend::Directory(directory) => directory.run(move |d| d.delete(&full)).await,
            Backend::S3(bucket) => bucket.delete(&full).await,
        })
        .await
    }

    /// Lists the objects whose keys start with `prefix` (which may end within a name), sorted by the bytes of their keys.
    ///
    /// A missing bucket or directory is an error; a prefix without objects is not.
    pub fn list(&self, prefix: &str) -> Result<Lister, Error> {
        key::check_prefix(prefix).map_err(|f| f.into_error("list", self.object_url(prefix)))?;
        let full = format!("{}{prefix}", self.prefix);
        let walk = match &self.backend {
            Backend::Directory(directory) => Walk::Directory(directory.walk(full)),
            Backend::S3(bucket) => Walk::S3(bucket.walk(full)),
        };
        Ok(Lister { store: self.clone(), prefix: prefix.to_owned(), walk, page_size: MAX_PAGE, skipped: Vec::new() })
    }

    /// Writes and removes a small object, to find out before the work whether the store can be written. Creates a missing
    /// directory.
    pub async fn check_writable(&self) -> Result<(), Error> {
        let prefix = self.prefix.clone();
        let result = match &self.backend {
            Backend::Directory(directory) => directory.run(move |d| d.check_writable(&prefix)).await,
            Backend::S3(bucket) => bucket.check_writable(&prefix).await,
        };
        self.explain("write to", "", result)
    }

    /// Does `work` on the full key, and adds the operation and the object to its error.
    async fn run<T>(
        &self,
        doing: &'static str,
        key: &str,
        work: impl AsyncFnOnce(String) -> BackendResult<T>,
    ) -> Result<T, Error> {
        let result = work(self.full_key(doing, key)?).await;
        self.explain(doing, key, result)
    }

    fn full_key(&self, doing: &'static str, key: &str) -> Result<String, Error> {
        let full = format!("{}{key}", self.prefix);
        match key::check(key).and_then(|()| key::check(&full)) {
            Ok(()) => Ok(full),
            Err(failure) => Err(failure.into_error(doing, self.object_url(key))),
        }
    }

    fn object_url(&self, key: &str) -> String {
        format!("{}/{}{key}", self.base, self.prefix)
    }

    fn explain<T>(&self, doing: &'static str, key: &str, result: BackendResult<T>) -> Result<T, Error> {
        result.map_err(|failure| failure.into_error(doing, self.object_url(key)))
    }
}

/// Most objects in a page: the limit of S3.
const MAX_PAGE: usize = 1000;

/// Lists objects page by page. Made by [`Store::list`].
#[derive(Debug)]
pub struct Lister {
    store: Store,
    prefix: String,
    walk: Walk,
    page_size: usize,
    skipped: Vec<Skipped>,
}

#[derive(Debug)]
enum Walk {
    Directory(directory::Walk),
    S3(s3::Walk),
}

/// A page of a back-end's listing.
struct Page {
    /// With full keys.
    objects: Vec<ObjectInfo>,
    skipped: Vec<Skipped>,
    last: bool,
}

impl Lister {
    /// Limits a page to `objects` (1 to 1000; default 1000).
    pub fn with_page_size(self, objects: usize) -> Lister {
        Lister { page_size: objects.clamp(1, MAX_PAGE), ..self }
    }

    /// The next page, never empty; `None` after the last. Do not call it again after an error.
    pub async fn next_page(&mut self) -> Result<Option<Vec<ObjectInfo>>, Error> {
        loop {
            let page = match &mut self.walk {
                Walk::Directory(walk) => walk.page(self.page_size).await,
                Walk::S3(walk) => walk.page(self.page_size).await,
            };
            let page = self.store.explain("list", &self.prefix, page)?;
            self.skipped.extend(page.skipped);
            let mut ours = Vec::with_capacity(page.objects.len());
            for object in page.objects {
                match object.key.strip_prefix(&self.store.prefix).filter(|key| key::check(key).is_ok()) {
                    Some(key) => ours.push(ObjectInfo { key: key.to_owned(), ..object }),
                    None => self.skipped.push(Skipped { name: object.key, why: "its name cannot be a key" }),
                }
            }
            if page.last || !ours.is_empty() {
                return Ok((!ours.is_empty()).then_some(ours));
            }
        }
    }

    /// All objects at once.
    pub async fn all(mut self) -> Result<Vec<ObjectInfo>, Error> {
        let mut all = Vec::new();
        while let Some(page) = self.next_page().await? {
            all.extend(page);
        }
        Ok(all)
    }

    /// Entries passed over so far because they cannot be objects: invalid names, links to directories or out of the store,
    /// devices, unreadable folders.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

/// An entry that a listing passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name; invalid UTF-8 is replaced.
    pub name: String,
    /// The reason, for people.
    pub why: &'static str,
}
