//! A directory as a store: a key is the path of a file below the root.
//!
//! Writing goes through a temporary file beside the target, which is synced, renamed and made durable by syncing the
//! directory. `replace` compares and renames under a lock (`flock`) of the object's folder. A temporary file left by a killed
//! process is not an object; a sweep removes it. Links are followed as long as they stay below the root, except that listing
//! does not descend into linked directories.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, ErrorKind as Io, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tempfile::NamedTempFile;

use crate::error::{ErrorKind, Failure, Result};
use crate::key::{self, TEMPORARY_PREFIX, TEMPORARY_SUFFIX};
use crate::{ObjectInfo, PIECE, Page, PutNew, Replace, Skipped};

/// How long a writer waits for another one that replaces an object of the same folder: it may be stopped.
const LOCK_TRIES: u32 = 5000;
const LOCK_PAUSE: Duration = Duration::from_millis(2);
/// Least time between the modifications of an object and of the one that replaces it. File systems round to less.
const LATER: Duration = Duration::from_micros(1);

#[derive(Clone, Debug)]
pub(crate) struct Directory {
    /// Absolute; need not exist yet.
    root: Arc<Path>,
}

impl Directory {
    pub(crate) fn new(root: PathBuf) -> Directory {
        Directory { root: root.into() }
    }

    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Does `work` on a thread that may wait for the disk.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Directory) -> Result<T> + Send + 'static) -> Result<T> {
        let directory = self.clone();
        blocking(move || work(&directory)).await
    }

    pub(crate) fn get(&self, key: &str, max_bytes: u64) -> Result<Bytes> {
        let path = self.find(key)?;
        let size = fs::metadata(&path)?.len();
        if size > max_bytes {
            return Err(Failure::too_large(size, max_bytes));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        File::open(&path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
        match bytes.len() as u64 {
            read if read > max_bytes => Err(Failure::too_large(read, max_bytes)),
            _ => Ok(bytes.into()),
        }
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let (parent, name) = self.place_for(key)?;
        replace(write_temporary(&parent, bytes)?, &parent, name)
    }

    pub(crate) fn put_new(&self, key: &str, bytes: &[u8]) -> Result<PutNew> {
        let (parent, name) = self.place_for(key)?;
        let target = parent.join(name);
        if target.symlink_metadata().is_ok_and(|m| !m.is_dir()) {
            return Ok(PutNew::Exists);
        }
        // Renames without replacing, or links and unlinks where the file system cannot.
        match write_temporary(&parent, bytes)?.persist_noclobber(&target) {
            Ok(_) => {}
            Err(e) if e.error.kind() == Io::AlreadyExists && !target.is_dir() => return Ok(PutNew::Exists),
            Err(e) if e.error.kind() == Io::AlreadyExists => return Err(io::Error::from(Io::IsADirectory).into()),
            Err(e) => return Err(e.error.into()),
        }
        sync_directory(&parent)?;
        Ok(PutNew::Created)
    }

    /// Compares and renames under a lock of the folder. The new file's time of modification is always later than the old one's, so
    /// that no two contents of a key have one identity, however fast they follow each other.
    pub(crate) fn replace(&self, key: &str, bytes: &[u8], expected: &str) -> Result<Replace> {
        if if_there(self.find(key))?.is_none() {
            return Ok(Replace::Conflict);
        }
        let (parent, name) = self.place_for(key)?;
        // Held until the end of this function.
        let folder = File::open(&parent)?;
        lock(&folder)?;
        let there = match self.find(key).and_then(|path| Ok(path.metadata()?)) {
            Err(failure) if failure.kind() == ErrorKind::NotFound => return Ok(Replace::Conflict),
            there => there?,
        };
        if identity(&there)? != expected {
            return Ok(Replace::Conflict);
        }
        let file = write_temporary(&parent, bytes)?;
        let before = there.modified()?;
        if file.as_file().metadata()?.modified()? < before + LATER {
            file.as_file().set_modified(before + LATER)?;
        }
        replace(file, &parent, name)?;
        Ok(Replace::Replaced)
    }

    pub(crate) fn upload(&self, key: &str) -> Result<Upload> {
        let (parent, name) = self.place_for(key)?;
        Ok(Upload { file: create_temporary(&parent)?, name: name.to_owned(), parent })
    }

    pub(crate) fn download(&self, key: &str) -> Result<Download> {
        let file = File::open(self.find(key)?)?;
        let metadata = file.metadata()?;
        Ok(Download { file: file.into(), size: metadata.len(), identity: identity(&metadata)?, at: 0 })
    }

    pub(crate) fn sweep_uploads(&self, prefix: &str, written_before: SystemTime) -> Result<usize> {
        if_there(self.resolve(prefix))?.map_or(Ok(0), |path| sweep(&path, written_before))
    }

    pub(crate) fn identity(&self, key: &str) -> Result<Option<String>> {
        let path = if_there(self.find(key))?;
        Ok(path.map(|path| identity(&path.metadata()?)).transpose()?)
    }

    pub(crate) fn delete(&self, key: &str) -> Result<()> {
        let (parent, name) = key.rsplit_once('/').unwrap_or(("", key));
        let Some(parent) = if_there(self.resolve(parent))? else { return Ok(()) };
        match fs::remove_file(parent.join(name)) {
            Ok(()) => sync_directory(&parent),
            Err(e) if matches!(e.kind(), Io::NotFound | Io::NotADirectory | Io::IsADirectory) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    pub(crate) fn check_writable(&self, prefix: &str) -> Result<()> {
        let (parent, _) = self.place_for(&format!("{prefix}probe"))?;
        write_temporary(&parent, b"basin checks that it can write here\n")?.close()?;
        Ok(())
    }

    pub(crate) fn walk(&self, prefix: String) -> Walk {
        Walk { directory: self.clone(), prefix, progress: Progress::Start }
    }

    /// The file of `key`, links resolved. Anything but a file below the root is `NotFound` or `Denied`.
    fn find(&self, key: &str) -> Result<PathBuf> {
        let path = self.resolve(key)?;
        if path.metadata()?.is_file() { Ok(path) } else { Err(io::Error::from(Io::NotFound).into()) }
    }

    fn resolve(&self, key: &str) -> Result<PathBuf> {
        let root = self.root.canonicalize()?;
        match root.join(key).canonicalize() {
            Ok(path) if path.starts_with(&root) => Ok(path),
            Ok(_) => Err(leads_out()),
            Err(e) if e.kind() == Io::NotADirectory => Err(io::Error::from(Io::NotFound).into()),
            Err(e) => Err(e.into()),
        }
    }

    /// The directory for `key`, created as needed, links resolved; and the file's name in it.
    fn place_for<'k>(&self, key: &'k str) -> Result<(PathBuf, &'k str)> {
        create_directories(&self.root)?;
        let root = self.root.canonicalize()?;
        let mut parent = root.clone();
        let mut parts = key.split('/');
        let name = parts.next_back().expect("split yields at least one part");
        for part in parts {
            let next = parent.join(part);
            if let Err(e) = next.symlink_metadata() {
                if e.kind() != Io::NotFound {
                    return Err(e.into());
                }
                create_directory(&next)?;
            }
            parent = next.canonicalize()?;
            if !parent.starts_with(&root) {
                return Err(leads_out());
            }
        }
        Ok((parent, name))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.expect("file operations do not panic")
}

/// Waits for the lock of a folder, but not for ever. It is free again when the file is closed, also by the end of the process.
fn lock(folder: &File) -> Result<()> {
    for _ in 0..LOCK_TRIES {
        match folder.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    Err(Failure::new(ErrorKind::Unavailable, "another process replaces an object of the same folder, and does not go on"))
}

/// `None` if the file or directory is not found.
fn if_there(path: Result<PathBuf>) -> Result<Option<PathBuf>> {
    match path {
        Err(failure) if failure.kind() == ErrorKind::NotFound => Ok(None),
        path => path.map(Some),
    }
}

/// An object being written.
#[derive(Debug)]
pub(crate) struct Upload {
    file: NamedTempFile,
    parent: PathBuf,
    name: String,
}

impl Upload {
    pub(crate) async fn write(mut self, bytes: Bytes) -> Result<Upload> {
        blocking(move || {
            self.file.write_all(&bytes)?;
            Ok(self)
        })
        .await
    }

    pub(crate) async fn finish(self) -> Result<()> {
        blocking(move || {
            self.file.as_file().sync_all()?;
            replace(self.file, &self.parent, &self.name)
        })
        .await
    }
}

/// An object being read.
#[derive(Debug)]
pub(crate) struct Download {
    file: Arc<File>,
    size: u64,
    identity: String,
    at: u64,
}

impl Download {
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        let (file, at, size) = (self.file.clone(), self.at, self.size);
        let found = self.identity.clone();
        let piece = blocking(move || {
            let mut piece = vec![0; PIECE.min(usize::try_from(size - at).unwrap_or(PIECE))];
            match file.read_exact_at(&mut piece, at) {
                Err(e) if e.kind() == Io::UnexpectedEof => Err(Failure::changed()),
                Err(e) => Err(e.into()),
                // We replace files and never write into them; others may.
                Ok(()) if at + piece.len() as u64 == size && identity(&file.metadata()?)? != found => Err(Failure::changed()),
                Ok(()) => Ok(piece),
            }
        })
        .await?;
        self.at += piece.len() as u64;
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}

/// Removes temporary files below `path`; does not follow links.
fn sweep(path: &Path, written_before: SystemTime) -> Result<usize> {
    let listing = match fs::read_dir(path) {
        Err(e) if matches!(e.kind(), Io::NotFound | Io::PermissionDenied) => return Ok(0),
        listing => listing?,
    };
    let mut swept = 0;
    for entry in listing {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            swept += sweep(&entry.path(), written_before)?;
        } else if entry.file_name().to_str().is_some_and(key::is_temporary) {
            match remove_older(&entry, written_before) {
                Ok(removed) => swept += usize::from(removed),
                // Renamed or removed since.
                Err(e) if e.kind() == Io::NotFound => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(swept)
}

fn remove_older(file: &fs::DirEntry, written_before: SystemTime) -> io::Result<bool> {
    let older = file.metadata()?.modified()? < written_before;
    if older {
        fs::remove_file(file.path())?;
    }
    Ok(older)
}

fn leads_out() -> Failure {
    Failure::new(ErrorKind::Denied, "a link leads out of the store")
}

fn create_directories(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_directories(parent)?;
    }
    create_directory(path)
}

fn create_directory(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        // Another process created it first.
        Err(e) if e.kind() == Io::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) if e.kind() == Io::AlreadyExists => Err(io::Error::from(Io::NotADirectory).into()),
        Err(e) => Err(e.into()),
        Ok(()) => path.parent().map_or(Ok(()), sync_directory),
    }
}

fn create_temporary(parent: &Path) -> Result<NamedTempFile> {
    let file = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .suffix(TEMPORARY_SUFFIX)
        // The umask applies, as for any new file.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(parent)?;
    Ok(file)
}

fn write_temporary(parent: &Path, bytes: &[u8]) -> Result<NamedTempFile> {
    let mut file = create_temporary(parent)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// Renames a synced file to `name`.
fn replace(file: NamedTempFile, parent: &Path, name: &str) -> Result<()> {
    file.persist(parent.join(name)).map_err(|e| e.error)?;
    sync_directory(parent)
}

fn sync_directory(path: &Path) -> Result<()> {
    match File::open(path)?.sync_all() {
        // Some network file systems cannot sync directories.
        Err(e) if !matches!(e.kind(), Io::InvalidInput | Io::Unsupported) => Err(e.into()),
        _ => Ok(()),
    }
}

/// A listing under way, in the order of keys.
#[derive(Debug)]
pub(crate) struct Walk {
    directory: Directory,
    prefix: String,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    Start,
    At(Stack),
    /// A page failed, or its future was dropped.
    Lost,
}

/// The remaining entries of each directory, from the start of the walk down to its position.
type Stack = Vec<std::vec::IntoIter<Entry>>;

#[derive(Debug)]
struct Entry {
    /// A directory's key ends with '/', so that entries sort in the order of keys.
    key: String,
    path: PathBuf,
}

impl Walk {
    pub(crate) async fn page(&mut self, size: usize) -> Result<Page> {
        let prefix = self.prefix.clone();
        let progress = std::mem::replace(&mut self.progress, Progress::Lost);
        let work = move |directory: &Directory| read_page(directory, &prefix, progress, size);
        let (page, stack) = self.directory.run(work).await?;
        self.progress = Progress::At(stack);
        Ok(page)
    }
}

fn read_page(directory: &Directory, prefix: &str, progress: Progress, size: usize) -> Result<(Page, Stack)> {
    let mut page = Page { objects: Vec::new(), skipped: Vec::new(), last: false };
    let root = directory.root.canonicalize()?;
    let mut stack = match progress {
        Progress::At(stack) => stack,
        Progress::Lost => {
            return Err(Failure::new(ErrorKind::Other, "this listing was interrupted: start a new one"));
        }
        Progress::Start => {
            let above = prefix.rfind('/').map_or("", |end| &prefix[..=end]);
            match if_there(directory.resolve(above))? {
                Some(path) => vec![read_directory(above, &path, &mut page)?],
                None => Vec::new(),
            }
        }
    };
    while page.objects.len() < size {
        let Some(entries) = stack.last_mut() else {
            page.last = true;
            break;
        };
        let Some(Entry { key, path }) = entries.next() else {
            stack.pop();
            continue;
        };
        if !key.starts_with(prefix) {
            continue;
        }
        if key.ends_with('/') {
            stack.push(read_directory(&key, &path, &mut page)?);
            continue;
        }
        let name = key.clone();
        match object(&root, key, &path) {
            Ok(Some(object)) => page.objects.push(object),
            Ok(None) => {
                page.skipped.push(Skipped { name, why: "it is not a file, or a link that is broken or leads out of the store" })
            }
            // Deleted since.
            Err(e) if e.kind() == Io::NotFound => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok((page, stack))
}

fn read_directory(key: &str, path: &Path, page: &mut Page) -> Result<std::vec::IntoIter<Entry>> {
    let mut entries = Vec::new();
    let listing = match fs::read_dir(path) {
        Ok(listing) => listing,
        Err(e) if e.kind() == Io::NotFound => return Ok(entries.into_iter()),
        // Such as `lost+found`: the rest of the store can still be listed.
        Err(e) if e.kind() == Io::PermissionDenied && !key.is_empty() => {
            page.skipped.push(Skipped { name: key.to_owned(), why: "no permission to read the folder" });
            return Ok(entries.into_iter());
        }
        Err(e) => return Err(e.into()),
    };
    for entry in listing {
        let entry = entry?;
        let name = match entry.file_name().into_string() {
            Ok(name) => name,
            Err(name) => {
                let name = format!("{key}{}", name.to_string_lossy());
                page.skipped.push(Skipped { name, why: "its name is not UTF-8" });
                continue;
            }
        };
        if key::is_temporary(&name) {
            continue;
        }
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        entries.push(Entry { key: format!("{key}{name}{slash}"), path: entry.path() });
    }
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(entries.into_iter())
}

/// The file at `path` as an object; `None` unless it is a file below the root.
fn object(root: &Path, key: String, path: &Path) -> io::Result<Option<ObjectInfo>> {
    if path.is_symlink() {
        match path.canonicalize() {
            Ok(target) if target.starts_with(root) => {}
            _ => return Ok(None),
        }
    }
    let metadata = path.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(ObjectInfo { key, size: metadata.len(), identity: identity(&metadata)? }))
}

fn identity(metadata: &fs::Metadata) -> io::Result<String> {
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{}-{}.{:09}", metadata.len(), modified.as_secs(), modified.subsec_nanos()))
}
