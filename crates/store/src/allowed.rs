//! Which stores a process may open because somebody else named them: a client that submits a run, or a job. Links of folders are
//! followed; otherwise pure.
//!
//! A list has store URLs. A place is allowed if it lies under one of them by whole segments, and at the same endpoint: `s3://a/b` allows
//! `s3://a/b/c` and not `s3://a/bc`.

use std::path::{Component, Path, PathBuf, absolute};

use crate::url::{self, Location};
use crate::{Backend, Error, ErrorKind, Failure, Store};

/// Any bucket, in an entry of the list.
const ANY_BUCKET: &str = "s3://*";

/// What may be opened. The default is everything, for a process whose user names the store.
#[derive(Clone, Debug, Default)]
pub struct Allowed(Rule);

#[derive(Clone, Debug, Default)]
enum Rule {
    #[default]
    Everything,
    /// No list: buckets at Amazon's endpoint and at the home's.
    Usual { home_endpoint: Option<String>, folders: bool },
    /// Each has been parsed once. Folders are resolved when something is checked, since a link may be made later.
    Listed(Vec<String>),
}

/// A place that may not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{place} is not allowed: {why}")]
pub struct NotAllowed {
    place: String,
    why: String,
}

/// Where something lies.
enum Place {
    Folder(PathBuf),
    /// The prefix is empty, or ends with '/'. Without a bucket: any.
    Bucket {
        bucket: Option<String>,
        prefix: String,
        endpoint: Option<String>,
    },
}

impl Allowed {
    /// Without a list: buckets at Amazon's endpoint and at that of the `home`, with `folders` also every folder of this machine.
    pub fn without_list(home: &Store, folders: bool) -> Allowed {
        let home_endpoint = match Place::of(home) {
            Place::Bucket { endpoint, .. } => endpoint,
            Place::Folder(_) => None,
        };
        Allowed(Rule::Usual { home_endpoint, folders })
    }

    /// What lies under one of these: `s3://bucket/prefix`, `s3://*` for any bucket, each with `?endpoint=…` unless it is Amazon's, or an
    /// absolute folder. Other options of a bucket do not count.
    pub fn listed(urls: &[String]) -> Result<Allowed, Error> {
        for url in urls {
            let entry = entry(url).map_err(|failure| failure.into_error("allow", url::without_secrets(url)))?;
            let relative = !url.contains("://") && !Path::new(url).is_absolute();
            if matches!(entry, Place::Folder(_)) && relative && !url.starts_with("file:") {
                let failure = Failure::new(ErrorKind::InvalidUrl, "it is a relative path: use an absolute one, or a URL");
                return Err(failure.into_error("allow", url.clone()));
            }
        }
        Ok(Allowed(Rule::Listed(urls.to_vec())))
    }

    /// Refuses a store that may not be opened. Nothing has been read from it yet: opening touches no network.
    pub fn check(&self, store: &Store) -> Result<(), NotAllowed> {
        self.check_place(&Place::of(store), || store.url())
    }

    /// The file without links, if it may be read.
    pub fn file(&self, path: &str) -> Result<PathBuf, NotAllowed> {
        // What cannot be resolved does not exist; reading it says so.
        let real = absolute(path).map_or_else(|_| PathBuf::from(path), url::real);
        self.check_place(&Place::Folder(real.clone()), || format!("the file {path} of this machine"))?;
        Ok(real)
    }

    fn check_place(&self, place: &Place, shown: impl Fn() -> String) -> Result<(), NotAllowed> {
        match self.problem(place) {
            None => Ok(()),
            Some(why) => Err(NotAllowed { place: shown(), why }),
        }
    }

    fn problem(&self, place: &Place) -> Option<String> {
        const ADVICE: &str = "to allow it, add its prefix to --allow-data-set (BASIN_ALLOWED_DATA_SETS; the chart's allowedDataSets) of coordinator and workers";
        match (&self.0, place) {
            (Rule::Everything, _) => None,
            (Rule::Usual { folders: true, .. }, Place::Folder(_)) => None,
            (Rule::Usual { .. }, Place::Folder(_)) => {
                let why = "this coordinator serves other machines, and without a list it opens no folders for them";
                Some(format!("{why}; {ADVICE}"))
            }
            (Rule::Usual { home_endpoint, .. }, Place::Bucket { endpoint, .. }) => {
                let usual = endpoint.is_none() || endpoint == home_endpoint;
                let homes = home_endpoint.as_deref().unwrap_or("Amazon's");
                (!usual).then(|| format!("without a list only the home's endpoint ({homes}) and Amazon's are used; {ADVICE}"))
            }
            (Rule::Listed(urls), place) => {
                let holds = |url: &String| entry(url).is_ok_and(|entry| entry.holds(place));
                let list = || urls.join(", ");
                (!urls.iter().any(holds)).then(|| format!("it lies under none of {}; {ADVICE}", list()))
            }
        }
    }
}

impl Store {
    /// [`Store::open`], if the store is allowed.
    pub async fn open_allowed(url: &str, allowed: &Allowed) -> Result<Result<Store, NotAllowed>, Error> {
        let store = Store::open(url).await?;
        Ok(allowed.check(&store).map(|()| store))
    }
}

impl Place {
    fn of(store: &Store) -> Place {
        match &store.backend {
            Backend::Directory(directory) => Place::Folder(directory.path(&store.prefix)),
            Backend::S3(bucket) => Place::Bucket {
                bucket: Some(bucket.bucket.clone()),
                prefix: store.prefix.clone(),
                endpoint: endpoint(&store.options),
            },
        }
    }

    fn holds(&self, other: &Place) -> bool {
        match (self, other) {
            // A `..` is left only where a part before it does not exist: it may lead anywhere.
            (Place::Folder(entry), Place::Folder(path)) => {
                path.starts_with(entry) && !path.components().any(|part| part == Component::ParentDir)
            }
            (Place::Bucket { bucket, prefix, endpoint }, Place::Bucket { bucket: theirs, prefix: there, endpoint: at }) => {
                endpoint == at && (bucket.is_none() || bucket == theirs) && there.starts_with(prefix)
            }
            _ => false,
        }
    }
}

fn entry(url: &str) -> Result<Place, Failure> {
    let any = url.strip_prefix(ANY_BUCKET).filter(|rest| rest.is_empty() || rest.starts_with('?'));
    let parsed = match any {
        Some(options) => url::parse(&format!("s3://any{options}"))?,
        None => url::parse(url)?,
    };
    Ok(match parsed {
        Location::Directory(path) => Place::Folder(path),
        Location::Bucket { bucket, prefix, options } => {
            Place::Bucket { bucket: any.is_none().then_some(bucket), prefix, endpoint: options.endpoint.as_deref().map(normal) }
        }
    })
}

/// The endpoint in the options of an open store.
fn endpoint(options: &str) -> Option<String> {
    match url::parse(&format!("s3://any{options}")) {
        Ok(Location::Bucket { options, .. }) => options.endpoint.as_deref().map(normal),
        // No store has such options; nothing is allowed there.
        _ => Some(String::new()),
    }
}

/// An endpoint in one form: host in lower case, without the scheme's own port and a '/' at the end.
fn normal(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/').to_ascii_lowercase();
    let (scheme, host) = endpoint.split_once("://").unwrap_or(("", &endpoint));
    let port = match scheme {
        "https" => ":443",
        _ => ":80",
    };
    format!("{scheme}://{}", host.strip_suffix(port).unwrap_or(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn verdict(allowed: &Allowed, url: &str) -> Result<(), String> {
        let opened = Store::open_allowed(url, allowed).await.map_err(|error| error.to_string())?;
        opened.map(drop).map_err(|refusal| refusal.to_string())
    }

    fn listed(urls: &[&str]) -> Allowed {
        Allowed::listed(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>()).expect("a list")
    }

    const REGION: &str = "region=eu-west-1";

    #[tokio::test]
    async fn a_bucket_is_allowed_by_whole_segments_and_at_the_same_endpoint() {
        let list =
            listed(&["s3://a/b", "s3://whole", "s3://*?endpoint=https://own.example:443/", "s3://c?endpoint=http://minio:9000"]);
        for url in [
            "s3://a/b",
            "s3://a/b/",
            "s3://a/b/c",
            "s3://whole/x",
            "s3://anything/x?endpoint=https://OWN.example",
            "s3://c/x?endpoint=http://minio:9000/",
        ] {
            let url = format!("{url}{}{REGION}", if url.contains('?') { '&' } else { '?' });
            assert_eq!(verdict(&list, &url).await, Ok(()), "{url}");
        }
        for url in [
            "s3://a",
            "s3://a/bc",
            "s3://a/c/b",
            "s3://a/b%2F..%2Fc",
            "s3://a/%62/c",
            "s3://wholes",
            "s3://c/x",
            "s3://a/b/c?endpoint=http://evil.example",
            "s3://c/x?endpoint=http://minio:9001",
            "s3://c/x?endpoint=https://minio:9000",
            "s3://c/x?endpoint=http://minio:9000/path",
            "s3://c/x?endpoint=http%3A%2F%2Fevil.example",
            "/data",
        ] {
            let joined = if url.contains('?') { '&' } else { '?' };
            let url = if url.starts_with('/') { url.to_owned() } else { format!("{url}{joined}{REGION}") };
            let why = verdict(&list, &url).await.expect_err(&url);
            for part in
                ["s3://a/b, s3://whole", "--allow-data-set", "BASIN_ALLOWED_DATA_SETS", url.split('?').next().expect("a place")]
            {
                assert!(why.contains(part), "{url} has no {part}: {why}");
            }
        }
        // Not a key of S3 at all.
        assert!(verdict(&list, &format!("s3://a/b/../c?{REGION}")).await.expect_err("a part ..").contains("'..'"));
    }

    #[tokio::test]
    async fn a_folder_is_allowed_by_whole_parts_of_its_real_path() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        for folder in ["data/set", "database", "secret"] {
            std::fs::create_dir_all(path(folder)).expect("writable");
        }
        std::os::unix::fs::symlink(path("secret"), path("data/link")).expect("writable");
        std::os::unix::fs::symlink(path("data"), path("other name")).expect("writable");
        std::fs::write(path("secret/notes.json"), "{}").expect("writable");
        std::os::unix::fs::symlink(path("secret/notes.json"), path("data/notes.json")).expect("writable");
        // The list may name it by a link, too.
        for list in
            [listed(&[&path("data")]), listed(&[&path("other name"), "s3://b"]), listed(&[&format!("file://{}", path("data"))])]
        {
            for place in ["data", "data/set", "data/./set/", "secret/../data/set", "other name/set", "data/new"] {
                assert_eq!(verdict(&list, &path(place)).await, Ok(()), "{place}");
            }
            for place in
                ["database", "secret", "data/link", "data/set/../../secret", "data/none/../../secret", "other name/link", ""]
            {
                assert!(verdict(&list, &path(place)).await.is_err(), "{place}");
            }
            let encoded = format!("file://{}", path("data/%2e%2e/secret"));
            assert!(verdict(&list, &encoded).await.is_err(), "{encoded}");
            assert_eq!(
                list.file(&path("data/set/a.json")).expect("allowed"),
                dir.path().canonicalize().expect("there").join("data/set/a.json")
            );
            for file in ["secret/notes.json", "data/notes.json", "data/../secret/notes.json"] {
                assert!(list.file(&path(file)).is_err(), "{file}");
            }
        }
        assert_eq!(verdict(&listed(&["/"]), &path("secret")).await, Ok(()));
    }

    #[tokio::test]
    async fn without_a_list_only_the_usual_endpoints_are_used_and_folders_of_one_machine() {
        let home = Store::open("s3://basin/home?endpoint=http://s3:8333").await.expect("a URL");
        let (own, all) = (Allowed::without_list(&home, true), Allowed::without_list(&home, false));
        for allowed in [&own, &all] {
            assert_eq!(verdict(allowed, "s3://any/x?endpoint=http://s3:8333/").await, Ok(()));
            assert_eq!(verdict(allowed, "s3://any/x?region=eu-west-1").await, Ok(()));
            for url in ["s3://any/x?endpoint=http://169.254.169.254", "s3://any/x?endpoint=http://evil.example&anonymous=true"] {
                assert!(verdict(allowed, url).await.expect_err(url).contains("http://s3:8333"), "{url}");
            }
        }
        assert_eq!(verdict(&own, "/data").await, Ok(()));
        assert!(verdict(&all, "/data").await.expect_err("a folder").contains("--allow-data-set"));
        assert!(own.file("/data/x.json").is_ok() && all.file("/etc/x.json").is_err());
        let folder = Store::open("/home/basin").await.expect("a folder");
        let foreign = verdict(&Allowed::without_list(&folder, true), "s3://any/x?endpoint=http://s3:8333").await;
        assert!(foreign.expect_err("foreign").contains("Amazon's"));
        assert_eq!(verdict(&Allowed::default(), "s3://any/x?endpoint=http://evil.example").await, Ok(()));
    }

    #[test]
    fn a_list_with_a_relative_path_or_an_unknown_scheme_is_refused() {
        for entry in ["data", "./data", "ftp://host/x", "s3://", "s3://*/x", "s3://a/../b", ""] {
            assert!(Allowed::listed(&[entry.to_owned()]).is_err(), "{entry}");
        }
    }
}
