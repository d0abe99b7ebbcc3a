//! Fetches a file of the register: from its publisher, a mirror or a folder, whole and right or not at all.
//!
//! What has come is in `NAME.part`, and in `NAME.part.from` where it comes from and which version of it that is; so a later
//! attempt, or another process after a crash, goes on where the last one was (RFC 9110: `Range` with `If-Range`). The file gets
//! its name only when its SHA-256 has been checked. `NAME.part` is locked meanwhile: a second process waits, and finds the file
//! done or goes on with it.

use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, StatusCode, header};

use crate::published::{Address, File};

const CHUNK_BYTES: usize = 128 * 1024;
const CONNECT: Duration = Duration::from_secs(30);

/// A file that is there and, as far as is known, right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Where it is.
    pub path: PathBuf,
    /// Its SHA-256, as `sha256sum` prints it.
    pub sha256: String,
    /// Whether the register knows a hash, which is then this one. If not, write this one down.
    pub verified: bool,
}

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Another process fetches the same file.
    Waiting,
    /// So many bytes are there, of so many if the server says so. The number falls if the file has to be fetched from its
    /// beginning.
    Received {
        /// Bytes that are there.
        received: u64,
        /// Bytes of the whole file.
        total: Option<u64>,
    },
    /// The connection failed; it is tried again after the pause.
    Again {
        /// How long.
        pause: Duration,
        /// What failed.
        why: &'a str,
    },
}

/// How long an unreliable server is borne with.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// After an attempt that failed. It doubles with each further one that got no further than those before.
    pub first_pause: Duration,
    /// So many that get no further in a row are enough.
    pub attempts: u32,
    /// How long a server may be silent.
    pub silence: Duration,
}

impl Default for Patience {
    /// Six attempts, a minute of pauses.
    fn default() -> Patience {
        Patience { first_pause: Duration::from_secs(2), attempts: 6, silence: Duration::from_secs(30) }
    }
}

/// Why a file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Its publisher has no address for it.
    #[error("{name} is not published as one file: {advice}")]
    NoAddress {
        /// The file.
        name: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// A mirror that cannot be read.
    #[error("{mirror} is no mirror: give https://…, http://…, file:///… or a folder")]
    Mirror {
        /// What was given.
        mirror: String,
    },
    /// The server will not give it, however often it is asked.
    #[error("cannot fetch {from}: {why}")]
    Refused {
        /// Its address.
        from: String,
        /// What the server said, and what to do.
        why: String,
    },
    /// The server does not answer, or stops again and again.
    #[error("gave up on {from} after {received} bytes: {why}; what has come is kept: fetch again to go on")]
    GaveUp {
        /// Its address.
        from: String,
        /// Bytes that are there.
        received: u64,
        /// What failed last.
        why: String,
    },
    /// It cannot be the file that is meant.
    #[error("{from} has {bytes} bytes or more, and the file that is meant at most {limit}: nothing of it is kept")]
    TooLarge {
        /// Its address.
        from: String,
        /// Bytes that it has at least.
        bytes: u64,
        /// Bytes that it may have.
        limit: u64,
    },
    /// It came whole and is not the file that is meant.
    #[error(
        "{from} is not the file that is meant, or broke on its way: its SHA-256 is {found}, expected was {expected}; what had come of it was deleted"
    )]
    WrongHash {
        /// Its address.
        from: String,
        /// The digits that are known.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// Its name is taken.
    #[error("{} is there already and is another file: its SHA-256 is {found}, expected was {expected}; move it away", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// The digits that are known.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The disk is full.
    #[error("no space is left for {} after {received} bytes; they are kept: make space and fetch again to go on", path.display())]
    DiskFull {
        /// What was written.
        path: PathBuf,
        /// Bytes that are there.
        received: u64,
    },
    /// A file here cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    Local {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Fetches `file` into the folder `into`, which is made if need be.
///
/// `mirror` is the address of a folder (`https`, `http`, `file`, or a path) that has the file under its name; without one the
/// publisher's address is used. A file that is there already is checked, not fetched.
pub fn fetch(file: &File, mirror: Option<&str>, into: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Fetched, FetchError> {
    fetch_with(file, mirror, into, &Patience::default(), progress)
}

/// [`fetch`] with another patience.
pub fn fetch_with(
    file: &File,
    mirror: Option<&str>,
    into: &Path,
    patience: &Patience,
    progress: &mut dyn FnMut(Progress),
) -> Result<Fetched, FetchError> {
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
    match &source {
        Source::Folder(original) => part.copy(original, progress)?,
        Source::Web(url) => part.download(url, patience, progress)?,
    }
    let found = part.sha256()?;
    let verified = match file.hash.digits() {
        Some(expected) if !found.starts_with(expected) => {
            part.delete()?;
            return Err(FetchError::WrongHash { from: source.to_string(), expected, found });
        }
        known => known.is_some(),
    };
    part.keep(&path)?;
    Ok(Fetched { path, sha256: found, verified })
}

/// The file, if something has its name. It must be the right thing.
fn there(file: &File, path: &Path) -> Result<Option<Fetched>, FetchError> {
    let mut open = match fs::File::open(path) {
        Ok(open) => open,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(local("read", path)(error)),
    };
    let found = sha256(&mut open).map_err(local("read", path))?;
    match file.hash.digits() {
        Some(expected) if !found.starts_with(expected) => Err(FetchError::Taken { path: path.into(), expected, found }),
        known => Ok(Some(Fetched { path: path.into(), sha256: found, verified: known.is_some() })),
    }
}

/// Where to read.
enum Source {
    Web(String),
    Folder(PathBuf),
}

impl Source {
    fn of(file: &File, mirror: Option<&str>) -> Result<Source, FetchError> {
        let Some(mirror) = mirror else {
            return match file.address {
                Address::At(url) => Ok(Source::Web(url.into())),
                Address::Nowhere(advice) => Err(FetchError::NoAddress { name: file.name, advice }),
            };
        };
        match mirror.split_once("://") {
            Some(("http" | "https", _)) => Ok(Source::Web(format!("{}/{}", mirror.trim_end_matches('/'), file.name))),
            Some(("file", folder)) if folder.starts_with('/') => Ok(Source::Folder(Path::new(folder).join(file.name))),
            None if !mirror.is_empty() => Ok(Source::Folder(Path::new(mirror).join(file.name))),
            _ => Err(FetchError::Mirror { mirror: mirror.into() }),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Web(url) => f.write_str(url),
            Source::Folder(path) => path.display().fmt(f),
        }
    }
}

/// What has come so far. Locked; the write position is its end.
struct Part {
    file: fs::File,
    path: PathBuf,
    /// Beside it: the address, and in a second line the version that the server gave it.
    from: PathBuf,
    received: u64,
    limit: u64,
}

/// Why an attempt ended.
enum Failure {
    /// Another may do better.
    Passing(String),
    /// Nothing answers there; if something did before, another attempt may do better.
    Nobody(String),
    Final(FetchError),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Failure {
        Failure::Final(error)
    }
}

impl Part {
    fn open(whole: &Path, limit: u64, progress: &mut dyn FnMut(Progress)) -> Result<Part, FetchError> {
        let path = beside(whole, ".part");
        let from = beside(whole, ".part.from");
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = file.map_err(local("write", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    progress(Progress::Waiting);
                    file.lock().map_err(local("lock", &path))?;
                }
                Err(TryLockError::Error(error)) => return Err(local("lock", &path)(error)),
            }
            // Who held the lock may have given the file its final name.
            let ours = file.metadata().map_err(local("read", &path))?;
            if fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
                let received = file.seek(SeekFrom::End(0)).map_err(local("read", &path))?;
                return Ok(Part { file, path, from, received, limit });
            }
        }
    }

    fn download(&mut self, url: &str, patience: &Patience, progress: &mut dyn FnMut(Progress)) -> Result<(), FetchError> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
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
            let why = match self.attempt(&agent, url, &mut answered, progress) {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Nobody(why)) if !answered => return Err(FetchError::Refused { from: url.into(), why }),
                Err(Failure::Nobody(why) | Failure::Passing(why)) => why,
            };
            if self.received > furthest {
                (furthest, fruitless) = (self.received, 0);
            } else {
                fruitless += 1;
            }
            if fruitless >= patience.attempts {
                return Err(FetchError::GaveUp { from: url.into(), received: self.received, why });
            }
            let pause = patience.first_pause * 2u32.saturating_pow(fruitless.saturating_sub(1));
            progress(Progress::Again { pause, why: &why });
            thread::sleep(pause);
        }
    }

    /// Asks once, for what is missing.
    fn attempt(
        &mut self,
        agent: &ureq::Agent,
        url: &str,
        answered: &mut bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Failure> {
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
                let range = ContentRange::of(response.headers());
                let same = version_of(response.headers()).is_none_or(|now| now == version);
                match range {
                    Some(ContentRange { first: Some(first), total }) if same && first == self.received => total,
                    _ => {
                        self.begin(url, None)?;
                        return Err(Failure::Passing("the server answered with another part than was asked for".into()));
                    }
                }
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => {
                let range = ContentRange::of(response.headers());
                if range.is_some_and(|range| range.total == Some(self.received)) {
                    return Ok(());
                }
                self.begin(url, None)?;
                return Err(Failure::Passing("the server has less than was already there".into()));
            }
            (status, _) => return Err(refusal(url, status)),
        };
        if let Some(bytes) = total.filter(|&bytes| bytes > self.limit) {
            return Err(self.too_large(url, bytes)?.into());
        }
        self.append(&mut response.into_body().into_reader(), url, total, progress)?;
        match total {
            Some(total) if self.received < total => Err(Failure::Passing("the connection was cut".into())),
            _ => Ok(()),
        }
    }

    fn copy(&mut self, original: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), FetchError> {
        let mut open = fs::File::open(original).map_err(local("read", original))?;
        let bytes = open.metadata().map_err(local("read", original))?.len();
        let from = original.display().to_string();
        if bytes > self.limit {
            return Err(self.too_large(&from, bytes)?);
        }
        self.begin(&from, None)?;
        match self.append(&mut open, &from, Some(bytes), progress) {
            Err(Failure::Passing(why) | Failure::Nobody(why)) => Err(FetchError::Refused { from, why }),
            Err(Failure::Final(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    fn append(
        &mut self,
        body: &mut dyn Read,
        from: &str,
        total: Option<u64>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Failure> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            progress(Progress::Received { received: self.received, total });
            let bytes = match body.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(bytes) => bytes,
                Err(error) => return Err(Failure::Passing(error.to_string())),
            };
            self.file.write_all(&chunk[..bytes]).map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    FetchError::DiskFull { path: self.path.clone(), received: self.received }
                }
                _ => local("write", &self.path)(error),
            })?;
            self.received += bytes as u64;
            if self.received > self.limit {
                let bytes = self.received;
                return Err(self.too_large(from, bytes)?.into());
            }
        }
    }

    /// The version of what has come, if it came from there.
    fn version(&self, url: &str) -> Option<String> {
        let text = fs::read_to_string(&self.from).ok()?;
        let (from, version) = text.trim_end().split_once('\n')?;
        (from == url).then(|| version.to_owned())
    }

    /// Begins with nothing. What comes can be gone on with if it has a version.
    fn begin(&mut self, from: &str, version: Option<&str>) -> Result<(), FetchError> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(local("write", &self.path))?;
        self.received = 0;
        match version {
            Some(version) => fs::write(&self.from, format!("{from}\n{version}\n")).map_err(local("write", &self.from)),
            None => remove(&self.from),
        }
    }

    fn too_large(&mut self, from: &str, bytes: u64) -> Result<FetchError, FetchError> {
        self.delete()?;
        Ok(FetchError::TooLarge { from: from.into(), bytes, limit: self.limit })
    }

    fn sha256(&mut self) -> Result<String, FetchError> {
        self.file.rewind().and_then(|()| sha256(&mut self.file)).map_err(local("read", &self.path))
    }

    fn delete(&mut self) -> Result<(), FetchError> {
        remove(&self.path)?;
        remove(&self.from)
    }

    fn keep(&mut self, path: &Path) -> Result<(), FetchError> {
        self.file.sync_all().map_err(local("write", &self.path))?;
        fs::rename(&self.path, path).map_err(local("rename", &self.path))?;
        remove(&self.from)
    }
}

/// What distinguishes this version of a resource from others, as `If-Range` takes it: a strong entity tag, or else a date.
fn version_of(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    text(header::ETAG).filter(|tag| tag.starts_with('"')).or_else(|| text(header::LAST_MODIFIED))
}

/// `Content-Range`: `bytes 10-99/100`, `bytes 10-99/*` or `bytes */100`.
struct ContentRange {
    first: Option<u64>,
    total: Option<u64>,
}

impl ContentRange {
    fn of(headers: &HeaderMap) -> Option<ContentRange> {
        let (range, total) = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
        let first = range.split_once('-').and_then(|(first, _)| first.parse().ok());
        Some(ContentRange { first, total: total.parse().ok() })
    }
}

fn refusal(url: &str, status: StatusCode) -> Failure {
    let advice = match status.as_u16() {
        404 | 410 => "the file is not there: see the publisher's page whether it has moved, or name a mirror",
        401 | 403 => "the server does not give it to us: fetch it by hand and name its folder as the mirror",
        408 | 425 | 429 | 500.. => return Failure::Passing(format!("the server answers {status}")),
        _ => "the server does not answer as expected: name a mirror",
    };
    Failure::Final(FetchError::Refused { from: url.into(), why: format!("{status}; {advice}") })
}

fn failure(url: &str, error: ureq::Error) -> Failure {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, InvalidData, NetworkUnreachable};
    let why = match &error {
        ureq::Error::HostNotFound => {
            return Failure::Nobody("its host is not known; is there a network? Or name a mirror".into());
        }
        ureq::Error::Io(e) if matches!(e.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable) => {
            return Failure::Nobody(format!("{error}; nothing answers there. Name a mirror"));
        }
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => format!("no secure connection: {error}"),
        ureq::Error::Io(e) if e.kind() == InvalidData => format!("no secure connection: {error}"),
        ureq::Error::RequireHttpsOnly(to) => format!("it is redirected to {to}, which is not secure"),
        ureq::Error::TooManyRedirects | ureq::Error::BadUri(_) | ureq::Error::Http(_) => error.to_string(),
        _ => return Failure::Passing(error.to_string()),
    };
    Failure::Final(FetchError::Refused { from: url.into(), why })
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn remove(path: &Path) -> Result<(), FetchError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(local("delete", path)(error)),
        _ => Ok(()),
    }
}

fn local(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    move |source| FetchError::Local { doing, path: path.into(), source }
}

fn sha256(from: &mut dyn Read) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
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
        let mut part = Part { file, path: "net.pth.part".into(), from: "net.pth.part.from".into(), received: 7, limit: 100 };
        let Err(Failure::Final(error)) = part.append(&mut &[0; 10][..], "there", None, &mut |_| ()) else { panic!("no failure") };
        assert!(matches!(error, FetchError::DiskFull { received: 7, .. }), "{error}");
        assert!(error.to_string().contains("no space is left for net.pth.part after 7 bytes"), "{error}");
    }

    #[test]
    fn what_a_server_says_of_a_range_is_read_or_left() {
        let read = |text: &str| {
            let headers = [(header::CONTENT_RANGE, text.parse().unwrap())].into_iter().collect();
            ContentRange::of(&headers).map(|range| (range.first, range.total))
        };
        assert_eq!(read("bytes 10-99/100"), Some((Some(10), Some(100))));
        assert_eq!(read("bytes 10-99/*"), Some((Some(10), None)));
        assert_eq!(read("bytes */100"), Some((None, Some(100))));
        assert_eq!(read("bytes -5-9/x"), Some((None, None)));
        assert_eq!(read("lines 1-2/3"), None);
    }
}
