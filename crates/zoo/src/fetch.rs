//! Fetches a file of the register from its publisher, a mirror or a folder: complete and verified, or not at all.
//!
//! `NAME.part` holds the bytes received so far, and `NAME.part.from` their address and version; so a later attempt, or another
//! process after a crash, continues where the last one stopped (RFC 9110: `Range` with `If-Range`). The file gets its name only
//! after its SHA-256 has been checked. `NAME.part` is locked meanwhile: a second process waits, and then finds the complete file
//! or continues.

use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use proto::RunningSha256;
use ureq::http::{HeaderMap, StatusCode, header};

use crate::published::File;

const CHUNK_BYTES: usize = 128 * 1024;
const CONNECT: Duration = Duration::from_secs(30);

/// A complete file, whose hash was checked if it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub path: PathBuf,
    /// Its SHA-256, as `sha256sum` prints it.
    pub sha256: String,
    /// Whether the register knows the hash. If not, note `sha256` to check later copies.
    pub verified: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownloadProgress<'a> {
    /// Another process fetches the same file.
    Waiting,
    /// Bytes received, and bytes of the whole file if the server states them. `received` falls if the file has to be fetched from
    /// the start.
    Received { received: u64, total: Option<u64> },
    /// The connection failed; the next attempt follows after the pause.
    Again { pause: Duration, why: &'a str },
}

/// Limits for an unreliable server.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Pause after a failed attempt. It doubles after each further attempt that received nothing new.
    pub first_pause: Duration,
    /// Attempts in a row without a new byte, after which the fetch fails.
    pub attempts: u32,
    /// Time without data after which an attempt fails.
    pub silence: Duration,
}

impl Default for Patience {
    /// Six attempts with a minute of pauses in all.
    fn default() -> Patience {
        Patience { first_pause: Duration::from_secs(2), attempts: 6, silence: Duration::from_secs(30) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("{name} is not published as one file: {advice}")]
    NoAddress { name: &'static str, advice: &'static str },
    #[error("{mirror} is not a mirror: use https://…, http://…, file:///… or a folder")]
    Mirror { mirror: String },
    /// A retry would not help.
    #[error("cannot fetch {from}: {why}")]
    Refused { from: String, why: String },
    /// The server does not respond, or stopped in every attempt.
    #[error("cannot fetch {from}: gave up after {received} bytes: {why}; they are kept: fetch again to continue")]
    GaveUp { from: String, received: u64, why: String },
    #[error("{from} has at least {bytes} bytes, and the expected file at most {limit}; the bytes received were deleted")]
    TooLarge { from: String, bytes: u64, limit: u64 },
    #[error(
        "{from} is not the expected file, or was damaged in transit: its SHA-256 is {found} instead of {expected}; it was deleted"
    )]
    WrongHash { from: String, expected: &'static str, found: String },
    #[error("{} exists and is another file: its SHA-256 is {found} instead of {expected}; move it away", path.display())]
    Taken { path: PathBuf, expected: &'static str, found: String },
    #[error("no space left for {} after {received} bytes; they are kept: make space and fetch again to continue", path.display())]
    DiskFull { path: PathBuf, received: u64 },
    #[error("cannot {doing} {}", path.display())]
    Local { doing: &'static str, path: PathBuf, source: io::Error },
}

/// Fetches `file` into the folder `into`, and creates the folder if it is missing.
///
/// `mirror` is the address of a folder (`https`, `http`, `file`, or a path) that has the file under its name; without a mirror the
/// publisher's address is used. A file that exists already is checked, not fetched.
pub fn fetch(
    file: &File,
    mirror: Option<&str>,
    into: &Path,
    patience: &Patience,
    progress: &mut dyn FnMut(DownloadProgress),
) -> Result<Fetched, DownloadError> {
    let path = into.join(file.name);
    if let Some(there) = there(file, &path)? {
        return Ok(there);
    }
    let source = Source::of(file, mirror)?;
    fs::create_dir_all(into).map_err(local("make the folder", into))?;
    let mut part = Part::open(&path, file.size.limit(), progress)?;
    if let Some(there) = there(file, &path)? {
        part.delete()?;
        return Ok(there);
    }
    let from = match source {
        Source::Folder(original) => part.copy(&original).map(|()| original.display().to_string())?,
        Source::Web(url) => part.download(&url, patience).map(|()| url)?,
    };
    let found = part.sha256()?;
    let verified = match file.hash.digits() {
        Some(expected) if !found.starts_with(expected) => {
            part.delete()?;
            return Err(DownloadError::WrongHash { from, expected, found });
        }
        known => known.is_some(),
    };
    part.keep(&path)?;
    Ok(Fetched { path, sha256: found, verified })
}

/// The file, if its name exists already. Fails if it is another file.
fn there(file: &File, path: &Path) -> Result<Option<Fetched>, DownloadError> {
    let mut open = match fs::File::open(path) {
        Ok(open) => open,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(local("read", path)(error)),
    };
    let found = sha256(&mut open).map_err(local("read", path))?;
    match file.hash.digits() {
        Some(expected) if !found.starts_with(expected) => Err(DownloadError::Taken { path: path.into(), expected, found }),
        known => Ok(Some(Fetched { path: path.into(), sha256: found, verified: known.is_some() })),
    }
}

enum Source {
    Web(String),
    Folder(PathBuf),
}

impl Source {
    fn of(file: &File, mirror: Option<&str>) -> Result<Source, DownloadError> {
        let Some(mirror) = mirror else {
            let url = file.url().map_err(|advice| DownloadError::NoAddress { name: file.name, advice })?;
            return Ok(Source::Web(url));
        };
        match mirror.split_once("://") {
            Some(("http" | "https", _)) => Ok(Source::Web(format!("{}/{}", mirror.trim_end_matches('/'), file.name))),
            Some(("file", folder)) if folder.starts_with('/') => Ok(Source::Folder(Path::new(folder).join(file.name))),
            None if !mirror.is_empty() => Ok(Source::Folder(Path::new(mirror).join(file.name))),
            _ => Err(DownloadError::Mirror { mirror: mirror.into() }),
        }
    }
}

/// The locked file with the bytes received so far. The write position is its end.
struct Part<'p> {
    file: fs::File,
    path: PathBuf,
    /// The file beside it, with the address and, in a second line, the server's version.
    from: PathBuf,
    received: u64,
    limit: u64,
    progress: &'p mut dyn FnMut(DownloadProgress),
}

enum Failure {
    /// Another attempt may succeed.
    Passing(String),
    /// No server responds. Another attempt may succeed if one did before.
    NoServer(String),
    Final(DownloadError),
}

impl From<DownloadError> for Failure {
    fn from(error: DownloadError) -> Failure {
        Failure::Final(error)
    }
}

impl<'p> Part<'p> {
    fn open(whole: &Path, limit: u64, progress: &'p mut dyn FnMut(DownloadProgress)) -> Result<Part<'p>, DownloadError> {
        let path = whole.with_added_extension("part");
        let from = whole.with_added_extension("part.from");
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = file.map_err(local("write", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    progress(DownloadProgress::Waiting);
                    file.lock().map_err(local("lock", &path))?;
                }
                Err(TryLockError::Error(error)) => return Err(local("lock", &path)(error)),
            }
            // The process that held the lock may have renamed the file.
            let ours = file.metadata().map_err(local("read", &path))?;
            if fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
                let received = file.seek(SeekFrom::End(0)).map_err(local("read", &path))?;
                return Ok(Part { file, path, from, received, limit, progress });
            }
        }
    }

    fn download(&mut self, url: &str, patience: &Patience) -> Result<(), DownloadError> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .tls_config(trust::tls())
            .http_status_as_error(false)
            // An address that promises https keeps it through its redirects.
            .https_only(url.starts_with("https://"))
            .user_agent(concat!("basin/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(patience.silence))
            .build()
            .into();
        let (mut furthest, mut fruitless, mut answered) = (self.received, 0, false);
        loop {
            let why = match self.attempt(&agent, url, &mut answered) {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::NoServer(why)) if !answered => return Err(DownloadError::Refused { from: url.into(), why }),
                Err(Failure::NoServer(why) | Failure::Passing(why)) => why,
            };
            if self.received > furthest {
                (furthest, fruitless) = (self.received, 0);
            } else {
                fruitless += 1;
            }
            if fruitless >= patience.attempts {
                return Err(DownloadError::GaveUp { from: url.into(), received: self.received, why });
            }
            let pause = patience.first_pause * 2u32.saturating_pow(fruitless.saturating_sub(1));
            (self.progress)(DownloadProgress::Again { pause, why: &why });
            thread::sleep(pause);
        }
    }

    /// Requests the missing bytes once.
    fn attempt(&mut self, agent: &ureq::Agent, url: &str, answered: &mut bool) -> Result<(), Failure> {
        let version = self.version(url).filter(|_| self.received > 0);
        let mut request = agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(version) = &version {
            request = request.header(header::RANGE, format!("bytes={}-", self.received)).header(header::IF_RANGE, version);
        }
        let response = request.call().map_err(|error| failure(url, error))?;
        *answered = true;
        let total = match (response.status(), version) {
            (StatusCode::OK, _) => {
                self.begin(url, version_of(response.headers()).as_deref())?;
                response.body().content_length()
            }
            (StatusCode::PARTIAL_CONTENT, Some(version)) => {
                let same = version_of(response.headers()).is_none_or(|now| now == version);
                match content_range(response.headers()) {
                    Some((Some(first), total)) if same && first == self.received => total,
                    _ => {
                        self.begin(url, None)?;
                        return Err(Failure::Passing("the server sent another range than the requested one".into()));
                    }
                }
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => {
                if content_range(response.headers()).is_some_and(|(_, total)| total == Some(self.received)) {
                    return Ok(());
                }
                self.begin(url, None)?;
                return Err(Failure::Passing("the server's file is shorter than the bytes received before".into()));
            }
            (status, _) => return Err(refusal(url, status)),
        };
        self.check_size(url, total.unwrap_or(0))?;
        self.append(&mut response.into_body().into_reader(), url, total)?;
        match total {
            Some(total) if self.received < total => Err(Failure::Passing("the connection was cut".into())),
            _ => Ok(()),
        }
    }

    fn copy(&mut self, original: &Path) -> Result<(), DownloadError> {
        let mut open = fs::File::open(original).map_err(local("read", original))?;
        let bytes = open.metadata().map_err(local("read", original))?.len();
        let from = original.display().to_string();
        self.check_size(&from, bytes)?;
        self.begin(&from, None)?;
        match self.append(&mut open, &from, Some(bytes)) {
            Err(Failure::Passing(why) | Failure::NoServer(why)) => Err(DownloadError::Refused { from, why }),
            Err(Failure::Final(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    fn append(&mut self, body: &mut dyn Read, from: &str, total: Option<u64>) -> Result<(), Failure> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            (self.progress)(DownloadProgress::Received { received: self.received, total });
            let bytes = match body.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(bytes) => bytes,
                Err(error) => return Err(Failure::Passing(error.to_string())),
            };
            self.file.write_all(&chunk[..bytes]).map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    DownloadError::DiskFull { path: self.path.clone(), received: self.received }
                }
                _ => local("write", &self.path)(error),
            })?;
            self.received += bytes as u64;
            self.check_size(from, self.received)?;
        }
    }

    /// Version of the bytes received so far, if they came from `url`.
    fn version(&self, url: &str) -> Option<String> {
        let text = fs::read_to_string(&self.from).ok()?;
        let (from, version) = text.trim_end().split_once('\n')?;
        (from == url).then(|| version.to_owned())
    }

    /// Starts with an empty file. A later attempt can continue only if there is a version.
    fn begin(&mut self, from: &str, version: Option<&str>) -> Result<(), DownloadError> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(local("write", &self.path))?;
        self.received = 0;
        match version {
            Some(version) => fs::write(&self.from, format!("{from}\n{version}\n")).map_err(local("write", &self.from)),
            None => remove(&self.from),
        }
    }

    /// Fails, and deletes what was received, if `bytes` is more than the file can have.
    fn check_size(&mut self, from: &str, bytes: u64) -> Result<(), DownloadError> {
        if bytes <= self.limit {
            return Ok(());
        }
        self.delete()?;
        Err(DownloadError::TooLarge { from: from.into(), bytes, limit: self.limit })
    }

    fn sha256(&mut self) -> Result<String, DownloadError> {
        self.file.rewind().and_then(|()| sha256(&mut self.file)).map_err(local("read", &self.path))
    }

    fn delete(&mut self) -> Result<(), DownloadError> {
        remove(&self.path)?;
        remove(&self.from)
    }

    fn keep(&mut self, path: &Path) -> Result<(), DownloadError> {
        self.file.sync_all().map_err(local("write", &self.path))?;
        fs::rename(&self.path, path).map_err(local("rename", &self.path))?;
        remove(&self.from)
    }
}

/// The version of a resource for `If-Range`: a strong entity tag, else a date.
fn version_of(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    text(header::ETAG).filter(|tag| tag.starts_with('"')).or_else(|| text(header::LAST_MODIFIED))
}

/// First byte and size of the whole file in `Content-Range`: `bytes 10-99/100`, `bytes 10-99/*` or `bytes */100`.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-').and_then(|(first, _)| first.parse().ok()), total.parse().ok()))
}

fn refusal(url: &str, status: StatusCode) -> Failure {
    let advice = match status.as_u16() {
        404 | 410 => "the file is gone: look at the publisher's page for its new address, or use a mirror",
        401 | 403 => "the server denies access: fetch the file by hand and use its folder as the mirror",
        408 | 425 | 429 | 500.. => return Failure::Passing(format!("the server responds {status}")),
        _ => "unexpected response: use a mirror",
    };
    Failure::Final(DownloadError::Refused { from: url.into(), why: format!("{status}; {advice}") })
}

fn failure(url: &str, error: ureq::Error) -> Failure {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, InvalidData, NetworkUnreachable};
    let why = match &error {
        ureq::Error::HostNotFound => {
            return Failure::NoServer("unknown host: check the network connection, or use a mirror".into());
        }
        ureq::Error::Io(e) if matches!(e.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable) => {
            return Failure::NoServer(format!("{error}; no server responds: use a mirror"));
        }
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => format!("cannot make a secure connection: {error}"),
        ureq::Error::Io(e) if e.kind() == InvalidData => format!("cannot make a secure connection: {error}"),
        ureq::Error::RequireHttpsOnly(to) => format!("it redirects to {to}, which is not secure"),
        ureq::Error::TooManyRedirects | ureq::Error::BadUri(_) | ureq::Error::Http(_) => error.to_string(),
        _ => return Failure::Passing(error.to_string()),
    };
    Failure::Final(DownloadError::Refused { from: url.into(), why })
}

fn remove(path: &Path) -> Result<(), DownloadError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(local("delete", path)(error)),
        _ => Ok(()),
    }
}

fn local(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DownloadError {
    move |source| DownloadError::Local { doing, path: path.into(), source }
}

/// The SHA-256 of the rest of `from`, as 64 hexadecimal digits.
pub fn sha256(from: &mut dyn Read) -> io::Result<String> {
    let mut digest = RunningSha256::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(digest.hex()),
            bytes => digest.update(&chunk[..bytes]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_what_is_kept() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (path, from) = ("net.pth.part".into(), "net.pth.part.from".into());
        let mut part = Part { file, path, from, received: 7, limit: 100, progress: &mut |_| () };
        let Err(Failure::Final(error)) = part.append(&mut &[0; 10][..], "there", None) else { panic!("no failure") };
        assert!(matches!(error, DownloadError::DiskFull { received: 7, .. }), "{error}");
        assert!(error.to_string().contains("no space left for net.pth.part after 7 bytes"), "{error}");
    }

    #[test]
    fn what_a_server_says_of_a_range_is_read_or_left() {
        let read = |text: &str| content_range(&[(header::CONTENT_RANGE, text.parse().unwrap())].into_iter().collect());
        assert_eq!(read("bytes 10-99/100"), Some((Some(10), Some(100))));
        assert_eq!(read("bytes 10-99/*"), Some((Some(10), None)));
        assert_eq!(read("bytes */100"), Some((None, Some(100))));
        assert_eq!(read("bytes -5-9/x"), Some((None, None)));
        assert_eq!(read("lines 1-2/3"), None);
    }
}
