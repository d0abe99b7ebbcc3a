//! Names of objects in the store of a run, and of runs in the home of a fleet.
//!
//! ```text
//! run.json                                     what the run is: data set, model, parameters
//! images/<image>/result.json                   commit marker, written last; names the attempt that made it
//! images/<image>/failure.json                  why there is no result
//! images/<image>/attempt-<id>/projection.safetensors   z, c and losses of all seeds
//! images/<image>/attempt-<id>/target.png       the image in the generator's size
//! images/<image>/attempt-<id>/transformed.png  the target under the transform that was found
//! images/<image>/attempt-<id>/generated.png    the best projection
//! images/<image>/attempt-<id>/inverted.png     the same, back in the target's frame
//! images/<image>/attempt-<id>/history.json     loss curves
//! images/<image>/attempt-<id>/mask.png         if the object is no rectangle: white inside
//! images/<image>/attempt-<id>/tuned.png        after fine-tuning: as inverted.png, of the tuned generator
//! images/<image>/attempt-<id>/delta.safetensors.zst    after fine-tuning: what it added to the weights
//! checkpoints/<image>.checkpoint               state of an unfinished projection
//! attempts/<image>/<id>                        an attempt that has begun, and neither ended nor saved anything yet
//! claims/<image>/<id>                          whether an attempt may still commit: `commits` or `swept`
//! redrives/<n>.json                            images that are projected again
//! snapshot                                     what a coordinator knows of the results, for its next start
//! results.parquet results.csv summary.json report.html manifest.json objects.jsonl.gz
//! ```
//!
//! `<image>` is the image's *place*: its key in the data set with every byte but letters, digits, `.`, `_`, `-` and `/` written
//! as `%XX`, and a part that is too long for a file system shortened and given a digest. The records hold the key itself.
//! Two workers may hold the same job: each writes under an attempt of its own, and the one commit marker says whose counts.
//!
//! A fleet's home holds `index/<run>.json`, `control/<run>.json`, `usage/<run>.json`, `runs/<run>/` (as above), `models/<model>/` and
//! `leader.json`; `notices/<run>/<id>.json`, the notifications that are still to be delivered; and `log/<time>.<action>.<run>.json`,
//! who changed what.

use crate::hex_sha256;

/// What the run is.
pub const RUN: &str = "run.json";
/// Table of all images, as CSV.
pub const RESULTS_CSV: &str = "results.csv";
/// Table of all images, as Parquet.
pub const RESULTS_PARQUET: &str = "results.parquet";
/// The run's summary.
pub const SUMMARY: &str = "summary.json";
/// The run's report.
pub const REPORT: &str = "report.html";
/// A model folder's manifest.
pub const MODEL: &str = "model.json";
/// Prefix of everything that belongs to images.
pub const IMAGES: &str = "images/";
/// Prefix of the checkpoints.
pub const CHECKPOINTS: &str = "checkpoints/";
/// Prefix of the attempts that have begun.
pub const ATTEMPTS: &str = "attempts/";
/// Prefix of what says whether attempts may still commit.
pub const CLAIMS: &str = "claims/";
/// Prefix of the redrives.
pub const REDRIVES: &str = "redrives/";
/// What a coordinator knows of the results, for its next start.
pub const SNAPSHOT: &str = "snapshot";
/// At the place of an export: the run that it was made from.
pub const EXPORT: &str = "export.json";
/// What the run or the export consists of, with digests.
pub const MANIFEST: &str = "manifest.json";
/// The objects of images, with digests: a part of the manifest, one line for each.
pub const OBJECTS: &str = "objects.jsonl.gz";
/// Prefix of the runs' index in a fleet's home.
pub const INDEX: &str = "index/";
/// Prefix of the notifications that are still to be delivered, in a fleet's home.
pub const NOTICES: &str = "notices/";
/// Prefix of the log of changes, in a fleet's home.
pub const LOG: &str = "log/";
/// Which coordinator acts, in a fleet's home.
pub const LEADER: &str = "leader.json";

const ATTEMPT: &str = "attempt-";

/// What ends the work on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// There is a result: the commit marker.
    Result,
    /// There is a failure: why there is no result.
    Failure,
}

impl Marker {
    const ALL: [Marker; 2] = [Marker::Result, Marker::Failure];

    /// Last part of the key.
    pub fn file(self) -> &'static str {
        match self {
            Marker::Result => "result.json",
            Marker::Failure => "failure.json",
        }
    }
}

/// An object that an attempt writes before it commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// z, c, transform and losses of all seeds.
    Projection,
    /// The image in the generator's size.
    Target,
    /// The target under the transform that was found.
    Transformed,
    /// The best projection.
    Generated,
    /// The best projection, back in the target's frame.
    Inverted,
    /// Loss curves.
    History,
    /// The object's pixels in the target's frame, white. Only where the object is no rectangle.
    Mask,
    /// The best projection of the fine-tuned generator, back in the target's frame. Only after fine-tuning.
    Tuned,
    /// What fine-tuning added to the generator's weights. Only after fine-tuning.
    Delta,
}

impl Item {
    /// All items, in the order in which they are written.
    pub const ALL: [Item; 9] = [
        Item::Projection,
        Item::Target,
        Item::Transformed,
        Item::Generated,
        Item::Inverted,
        Item::History,
        Item::Mask,
        Item::Tuned,
        Item::Delta,
    ];

    /// Last part of the key.
    pub fn file(self) -> &'static str {
        match self {
            Item::Projection => "projection.safetensors",
            Item::Target => "target.png",
            Item::Transformed => "transformed.png",
            Item::Generated => "generated.png",
            Item::Inverted => "inverted.png",
            Item::History => "history.json",
            Item::Mask => "mask.png",
            Item::Tuned => "tuned.png",
            Item::Delta => "delta.safetensors.zst",
        }
    }
}

/// Key of the marker of `image`.
pub fn marker(image: &str, marker: Marker) -> String {
    marker_at(&place(image), marker)
}

/// Key of the marker at a place.
pub fn marker_at(place: &str, marker: Marker) -> String {
    format!("{IMAGES}{place}/{}", marker.file())
}

/// Prefix of the objects of `image` that `attempt` writes.
pub fn items(image: &str, attempt: &str) -> String {
    format!("{IMAGES}{}/{ATTEMPT}{attempt}/", place(image))
}

/// Key of an object of `image` that `attempt` writes.
pub fn item(image: &str, attempt: &str, item: Item) -> String {
    format!("{}{}", items(image, attempt), item.file())
}

/// Key of the checkpoint of `image`.
pub fn checkpoint(image: &str) -> String {
    format!("{CHECKPOINTS}{}.checkpoint", place(image))
}

/// Prefix of the attempts at `image` that have begun.
pub fn attempts(image: &str) -> String {
    format!("{ATTEMPTS}{}/", place(image))
}

/// Key that says that `attempt` at `image` has begun.
pub fn attempt(image: &str, attempt: &str) -> String {
    format!("{}{ATTEMPT}{attempt}", attempts(image))
}

/// Key that says whether `attempt` at `image` may still commit.
pub fn claim(image: &str, attempt: &str) -> String {
    claim_at(&place(image), attempt)
}

/// Key that says whether `attempt` at a place may still commit.
pub fn claim_at(place: &str, attempt: &str) -> String {
    format!("{CLAIMS}{place}/{ATTEMPT}{attempt}")
}

/// Place and attempt of a key made by [`claim_at`].
pub fn parse_claim(key: &str) -> Option<(&str, &str)> {
    let (place, attempt) = key.strip_prefix(CLAIMS)?.rsplit_once('/')?;
    Some((place, attempt.strip_prefix(ATTEMPT)?))
}

/// What a key under [`IMAGES`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// The marker of the image at a place.
    Marker(&'a str, Marker),
    /// An object of the image at a place, with the attempt that wrote it.
    Item(&'a str, &'a str, Item),
}

/// Reads a key made by [`marker`] or [`item`]. The place is to be compared with what [`place`] makes of an image's key.
pub fn parse(key: &str) -> Option<Kind<'_>> {
    let (place, file) = key.strip_prefix(IMAGES)?.rsplit_once('/')?;
    if let Some(marker) = Marker::ALL.into_iter().find(|m| m.file() == file) {
        return Some(Kind::Marker(place, marker));
    }
    let item = Item::ALL.into_iter().find(|i| i.file() == file)?;
    let (place, attempt) = place.rsplit_once('/')?;
    Some(Kind::Item(place, attempt.strip_prefix(ATTEMPT)?, item))
}

/// Key of the n-th redrive of a run.
pub fn redrive(n: u64) -> String {
    format!("{REDRIVES}{n:06}.json")
}

/// Number of the redrive of a key made by [`redrive`].
pub fn parse_redrive(key: &str) -> Option<u64> {
    key.strip_prefix(REDRIVES)?.strip_suffix(".json")?.parse().ok()
}

/// Key of a run's description in a fleet's home.
pub fn index(run: &str) -> String {
    format!("{INDEX}{run}.json")
}

/// Name of the run of a key made by [`index`].
pub fn parse_index(key: &str) -> Option<&str> {
    key.strip_prefix(INDEX)?.strip_suffix(".json").filter(|run| check_run(run).is_ok())
}

/// Key of what a fleet should do with a run, in its home.
pub fn control(run: &str) -> String {
    format!("control/{run}.json")
}

/// Key of the work that a run has cost, in a fleet's home.
pub fn usage(run: &str) -> String {
    format!("usage/{run}.json")
}

/// Prefix of the notifications of a run that are still to be delivered, in a fleet's home.
pub fn notices(run: &str) -> String {
    format!("{NOTICES}{run}/")
}

/// Key of a notification that is still to be delivered, in a fleet's home.
pub fn notice(run: &str, id: &str) -> String {
    format!("{}{id}.json", notices(run))
}

/// Key of an entry of the log of changes, in a fleet's home: sorted by key, entries are sorted by time. `micros`: since 1970.
pub fn log_entry(micros: u64, action: &str, run: &str) -> String {
    format!("{LOG}{micros:020}.{action}.{run}.json")
}

/// Microseconds since 1970, action and run of a key made by [`log_entry`].
pub fn parse_log_entry(key: &str) -> Option<(u64, &str, &str)> {
    let (micros, rest) = key.strip_prefix(LOG)?.strip_suffix(".json")?.split_once('.')?;
    let (action, run) = rest.split_once('.')?;
    Some((micros.parse().ok()?, action, run))
}

/// Prefix of a model in a fleet's home.
pub fn model_prefix(model: &str) -> String {
    format!("models/{model}")
}

/// Whether `name` can name a run or a model: 1 to 63 letters, digits, `-`, `_` and `.`, no dot at the start.
pub fn check_run(name: &str) -> Result<(), &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    first_problem([
        (name.is_empty() || name.len() > 63, "must have 1 to 63 characters"),
        (name.starts_with('.'), "must not start with a dot"),
        (!name.bytes().all(plain), "may hold letters, digits, '-', '_' and '.' only"),
    ])
}

/// Whether `key` can name an image: not empty, no control characters, no absolute path, no `.` or `..` or empty segment.
pub fn check_image(key: &str) -> Result<(), &'static str> {
    first_problem([
        (key.is_empty(), "is empty"),
        (key.len() > 512, "is longer than 512 bytes"),
        (key.chars().any(char::is_control), "contains a control character"),
        (key.contains('\\'), "contains a backslash"),
        (key.split('/').any(str::is_empty), "has an empty part (starts or ends with '/', or has '//')"),
        (key.split('/').any(|part| part == "." || part == ".."), "contains a '.' or '..' part"),
    ])
}

fn first_problem<const N: usize>(problems: [(bool, &'static str); N]) -> Result<(), &'static str> {
    problems.into_iter().find(|(is_so, _)| *is_so).map_or(Ok(()), |(_, problem)| Err(problem))
}

/// Longest part of a place, and longest place, in bytes: file systems allow 255, S3 1024 with prefix and file.
const LONGEST: (usize, usize) = (160, 640);

/// Where an image's objects are, below a prefix: no two images have the same.
pub fn place(image: &str) -> String {
    let place = image.split('/').map(escape).collect::<Vec<_>>().join("/");
    if place.len() > LONGEST.1 { format!("%~{}", &hex_sha256(image.as_bytes())[..32]) } else { place }
}

/// The image at a place made by [`place`]; `None`: its name is too long to be there.
pub fn image_at(place: &str) -> Option<String> {
    let parts = place.split('/').map(|part| if part == "%" { Some(Vec::new()) } else { unescape(part) });
    String::from_utf8(parts.collect::<Option<Vec<_>>>()?.join(&b'/')).ok()
}

fn unescape(segment: &str) -> Option<Vec<u8>> {
    let mut pieces = segment.split('%');
    let mut out = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        out.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
        out.extend(&piece.as_bytes()[2..]);
    }
    Some(out)
}

fn escape(segment: &str) -> String {
    if segment.is_empty() {
        return "%".into();
    }
    // A part that could be taken for one of our own names, or for a hidden file, has its first letter written as %XX.
    let ours = Marker::ALL.iter().any(|m| m.file() == segment)
        || Item::ALL.iter().any(|i| i.file() == segment)
        || segment.starts_with(ATTEMPT)
        || segment.starts_with('.');
    let mut out = String::with_capacity(segment.len());
    for (i, b) in segment.bytes().enumerate() {
        let plain = b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if plain && !(i == 0 && ours) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    if out.len() > LONGEST.0 {
        out.truncate(100);
        out.push_str("%~");
        out.push_str(&hex_sha256(segment.as_bytes())[..32]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_in_the_run_are_short_and_differ() {
        let long = |n: usize| "语".repeat(n);
        let images = ["a.png", "class 1/b.jpg", "../../etc/passwd", "/x", "a//b", "ümlaut\n.png", "..", "a/./b", "%41", "A", ""];
        let images = images.into_iter().chain(["x/attempt-1", "attempt-1/result.json", "result.json", ".basin-x.tmp", ".hidden"]);
        let images: Vec<String> = images.map(str::to_owned).chain([long(100), long(101), vec![long(60); 9].join("/")]).collect();
        let mut places = std::collections::BTreeSet::new();
        for image in &images {
            let at = place(image);
            assert!(places.insert(at.clone()), "{image:?} shares its place");
            assert_eq!(image_at(&at), (!at.contains("%~")).then(|| image.clone()));
            let markers = Marker::ALL.map(|m| (marker(image, m), Kind::Marker(&at, m)));
            let items = Item::ALL.map(|i| (item(image, "0f", i), Kind::Item(&at, "0f", i)));
            for (key, kind) in markers.into_iter().chain(items) {
                assert!(key.split('/').all(|s| !s.is_empty() && !s.starts_with('.') && s.len() <= 200), "{key}");
                assert!(key.len() < 800 && key.starts_with(IMAGES) && key.bytes().all(|b| (0x21..0x7f).contains(&b)), "{key}");
                assert_eq!(parse(&key), Some(kind));
            }
        }
    }

    #[test]
    fn names_that_are_no_keys_are_named() {
        assert!(check_image("a/b.png").is_ok());
        for bad in ["", "a/../b", "/a", "a/", "a\nb", "a\\b", "."] {
            assert!(check_image(bad).is_err(), "{bad:?}");
        }
        assert!(check_run("coco-val_2017.b").is_ok());
        for bad in ["", ".x", "a/b", "a b", "é", &"x".repeat(64)] {
            assert!(check_run(bad).is_err(), "{bad:?}");
        }
        assert_eq!([1, 2_000_000].map(|n| parse_redrive(&redrive(n))), [Some(1), Some(2_000_000)]);
        assert_eq!(parse_claim(&claim("a/b.png", "0f")), Some(("a/b.png", "0f")));
        assert_eq!(parse_index(&index("r1")), Some("r1"));
        assert_eq!(parse_index("index/a/b.json"), None);
        assert_eq!(parse_log_entry(&log_entry(7, "pause", "r.1")), Some((7, "pause", "r.1")));
        assert!(log_entry(9, "z", "r") < log_entry(10, "a", "r"));
    }
}
