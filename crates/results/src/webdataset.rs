//! Exports results as a WebDataset (*io*): tar files of samples, which training programs read as a stream.
//!
//! One shard is in memory at a time. The same run and the same limits make the same bytes: samples in the order of their places,
//! members in the order of their names, no times and no owners.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::{Item, Marker};
use proto::{ResultRecord, RunRecord, hex_sha256, keys};
use serde::{Deserialize, Serialize};
use store::{ErrorKind, Store};

use crate::format;
use crate::manifest::{Lines, Manifest, ObjectEntry};
use crate::run::{self, AT_ONCE, Markers, if_present, read_json, read_run};
use crate::summary::Counts;

/// Extensions of the members' names, sorted, with their items; `None` is the result's record.
const MEMBERS: [(&str, Option<Item>); 9] = [
    ("delta.zst", Some(Item::Delta)),
    ("generated.png", Some(Item::Generated)),
    ("inverted.png", Some(Item::Inverted)),
    ("json", None),
    ("mask.png", Some(Item::Mask)),
    ("safetensors", Some(Item::Projection)),
    ("target.png", Some(Item::Target)),
    ("transformed.png", Some(Item::Transformed)),
    ("tuned.png", Some(Item::Tuned)),
];
/// Bytes of the longest name of a sample, so that its members fit into the 100 of a plain tar header.
const LONGEST: usize = 84;
/// Bytes of a longer name that stand before its digest.
const KEPT: usize = 50;
const BLOCK: u64 = 512;

#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Bytes of a shard, unless a single sample has more.
    pub bytes: u64,
    pub samples: Option<usize>,
}

impl Default for Cut {
    fn default() -> Cut {
        Cut { bytes: 256 << 20, samples: None }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The run cannot be read, or the export's place cannot be written.
    #[error(transparent)]
    Run(#[from] run::RunError),
    #[error("{url} holds no run (there is no run.json)")]
    NoRun { url: String },
    #[error("{out} is inside the run {run}: choose a place outside of it for the export")]
    Inside { out: String, run: String },
    #[error("{out} is not empty and holds no export of this run: choose an empty place")]
    Taken { out: String },
    #[error("{key} is damaged: it differs from the result of {image:?}; basin verify --deep lists all damaged objects")]
    Altered { image: String, key: String },
    #[error("{key} of the result of {image:?} is missing; basin verify lists all missing objects")]
    Missing { image: String, key: String },
}

impl From<store::Error> for ExportError {
    fn from(error: store::Error) -> ExportError {
        ExportError::Run(error.into())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    pub shards: usize,
    pub bytes: u64,
    /// Images of the run; those that succeeded are in the export.
    pub images: Counts,
    /// Whether the run has ended; `None` if its tables do not tell.
    pub ended: Option<bool>,
}

impl Exported {
    /// A warning for people, unless the run has ended.
    pub fn caveat(&self) -> Option<String> {
        let Counts { planned, succeeded, .. } = self.images;
        let planned = planned.map_or(String::new(), |planned| format!(" {planned}"));
        let exported = format!("{succeeded} of its{planned} images have results and are exported");
        match self.ended {
            Some(true) => None,
            Some(false) => Some(format!("the run has not ended: {exported}")),
            None => Some(format!("it is not known whether the run has ended: {exported}")),
        }
    }
}

/// A line of an export's `objects.jsonl.gz`.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    object: &'a ObjectEntry,
    shard: &'a str,
    member: &'a str,
}

struct Member {
    name: String,
    object: ObjectEntry,
    bytes: Bytes,
}

type Sample = Vec<Member>;

/// Writes the run's results to `out`, which holds nothing else: shards, `objects.jsonl.gz`, and last `manifest.json`.
pub async fn export(results: &Store, out: &Store, cut: Cut) -> Result<Exported, ExportError> {
    if results.contains(out) {
        return Err(ExportError::Inside { out: out.url(), run: results.url() });
    }
    let Some(run) = read_run(results).await? else {
        // A missing bucket or folder is an error of its own.
        results.list("")?.next_page().await?;
        return Err(ExportError::NoRun { url: results.url() });
    };
    out.check_writable().await?;
    let claimed = claim(out, &run).await?;
    out.delete(keys::MANIFEST).await?;
    let markers = Markers::list(results).await?;
    let (images, ended) = count_images(&markers, results).await?;
    let names = names(&markers.results);
    let load = |(place, name)| {
        let results = results.clone();
        async move { load(&results, place, name).await }
    };
    let places: Vec<(String, String)> = markers.results.into_iter().zip(names).collect();
    let mut samples = stream::iter(places).map(load).buffered(AT_ONCE);
    let mut exported = Exported { shards: 0, bytes: 0, images, ended };
    let (mut objects, mut lines) = (vec![claimed], Lines::default());
    let mut shard = Shard::default();
    while let Some(sample) = samples.try_next().await? {
        if shard.is_full(&sample, cut) {
            objects.push(std::mem::take(&mut shard).write(&mut exported, &mut lines, out).await?);
        }
        shard.bytes += tar_bytes(&sample);
        shard.samples.push(sample);
    }
    if !shard.samples.is_empty() {
        objects.push(shard.write(&mut exported, &mut lines, out).await?);
    }
    // Shards of an earlier export with other limits.
    for old in out.list("shard-")?.all().await? {
        if is_shard(&old.key) && !objects.iter().any(|o| o.key == old.key) {
            out.delete(&old.key).await?;
        }
    }
    let lines = lines.finish();
    objects.push(ObjectEntry::new(keys::OBJECTS.into(), &lines));
    out.put(keys::OBJECTS, lines).await?;
    out.put(keys::MANIFEST, format::json(&Manifest::new(run, images, objects))).await?;
    Ok(exported)
}

/// The run's images, and whether it has ended: a manifest then counts all of them.
async fn count_images(markers: &Markers, results: &Store) -> Result<(Counts, Option<bool>), ExportError> {
    let (succeeded, failed) = (markers.results.len() as u64, markers.failures.len() as u64);
    let manifest = read_counts(results, keys::MANIFEST).await?;
    // After an earlier end of a run that was resumed.
    let tables = if manifest.is_some() { manifest } else { read_counts(results, keys::SUMMARY).await? };
    let images = Counts { planned: tables.and_then(|t| t.planned), total: succeeded + failed, succeeded, failed };
    let ended = if manifest.is_some() { images.planned.map(|_| images.left() == 0) } else { Some(false) };
    Ok((images, ended))
}

/// The counts in `manifest.json` or `summary.json`; `None` if it is missing or damaged.
async fn read_counts(results: &Store, key: &str) -> Result<Option<Counts>, ExportError> {
    #[derive(Deserialize)]
    struct Counting {
        images: Counts,
    }
    match if_present(read_json::<Counting>(results, key).await) {
        Err(run::RunError::Damaged { .. }) => Ok(None),
        read => Ok(read?.map(|counting| counting.images)),
    }
}

/// Marks a place as this run's export. Only an empty place, or an earlier export of the run, is taken: nothing else is overwritten.
async fn claim(out: &Store, run: &RunRecord) -> Result<ObjectEntry, ExportError> {
    let record = serde_json::to_vec_pretty(run).expect("a record serialises");
    let object = ObjectEntry::new(keys::EXPORT.into(), &record);
    match read_json::<RunRecord>(out, keys::EXPORT).await {
        Ok(there) if there == *run => {}
        Err(error) if error.is_not_found() && out.list("")?.next_page().await?.is_none() => {
            out.put(keys::EXPORT, record).await?;
        }
        Err(run::RunError::Store(error)) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => return Err(ExportError::Taken { out: out.url() }),
    }
    Ok(object)
}

#[derive(Default)]
struct Shard {
    samples: Vec<Sample>,
    /// Bytes of the tar file without its end.
    bytes: u64,
}

impl Shard {
    fn is_full(&self, next: &[Member], cut: Cut) -> bool {
        let bytes = self.bytes + tar_bytes(next) + 2 * BLOCK;
        !self.samples.is_empty() && (bytes > cut.bytes || cut.samples.is_some_and(|n| self.samples.len() >= n))
    }

    async fn write(self, exported: &mut Exported, lines: &mut Lines, out: &Store) -> Result<ObjectEntry, ExportError> {
        let key = shard_name(exported.shards);
        for member in self.samples.iter().flatten() {
            lines.add(&Line { object: &member.object, shard: &key, member: &member.name });
        }
        exported.shards += 1;
        let name = key.clone();
        let made = tokio::task::spawn_blocking(move || {
            let bytes = self.tar();
            (ObjectEntry::new(name, &bytes), bytes)
        });
        let (object, bytes) = made.await.expect("making a shard does not panic");
        exported.bytes += object.size;
        out.put(&key, bytes).await?;
        Ok(object)
    }

    fn tar(self) -> Vec<u8> {
        let takes = "a Vec takes every write, and the names are short";
        let mut tar = tar::Builder::new(Vec::with_capacity((self.bytes + 2 * BLOCK) as usize));
        for Member { name, bytes, .. } in self.samples.into_iter().flatten() {
            let mut header = tar::Header::new_ustar();
            header.set_path(&name).expect(takes);
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_cksum();
            tar.append(&header, bytes.as_ref()).expect(takes);
        }
        tar.into_inner().expect(takes)
    }
}

fn tar_bytes(sample: &[Member]) -> u64 {
    sample.iter().map(|m| BLOCK + m.object.size.next_multiple_of(BLOCK)).sum()
}

/// Reads the members of a sample and compares them with the result.
async fn load(results: &Store, place: String, name: String) -> Result<Sample, ExportError> {
    let read = async |image: &str, key: &str| match results.get(key).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(ExportError::Missing { image: image.into(), key: key.into() }),
        read => Ok(read?),
    };
    let marker = keys::marker_at(&place, Marker::Result);
    let content = read(&place, &marker).await?;
    let parsed = serde_json::from_slice::<ResultRecord>(&content);
    let record = parsed.map_err(|source| run::RunError::Damaged { key: marker.clone(), source })?;
    let image = &record.image;
    let mut members = Vec::with_capacity(MEMBERS.len());
    let there = |item: &Option<Item>| item.is_none_or(|item| record.items().any(|i| i == item));
    for (end, item) in MEMBERS.into_iter().filter(|(_, item)| there(item)) {
        let (object, bytes) = match item {
            None => (ObjectEntry::new(marker.clone(), &content), content.clone()),
            Some(item) => {
                let key = keys::item(image, &record.attempt, item);
                let altered = || ExportError::Altered { image: image.clone(), key: key.clone() };
                let object = ObjectEntry::of(&record).find(|o| o.key == key).ok_or_else(altered)?;
                let bytes = read(image, &key).await?;
                if bytes.len() as u64 != object.size || hex_sha256(&bytes) != object.sha256 {
                    return Err(altered());
                }
                (object, bytes)
            }
        };
        members.push(Member { name: format!("{name}.{end}"), object, bytes });
    }
    Ok(members)
}

fn shard_name(number: usize) -> String {
    format!("shard-{number:06}.tar")
}

fn is_shard(key: &str) -> bool {
    let number = key.strip_prefix("shard-").and_then(|rest| rest.strip_suffix(".tar"));
    number.and_then(|n| n.parse().ok()).is_some_and(|n| shard_name(n) == key)
}

/// Names of the samples: places without their last extension and without dots, which end a name in a WebDataset. A name that would be
/// too long, or the same for several places, contains a digest of the place.
fn names(places: &[String]) -> Vec<String> {
    let plain: Vec<String> = places.iter().map(|place| plain_name(place)).collect();
    let mut count: HashMap<&str, usize> = HashMap::new();
    plain.iter().for_each(|name| *count.entry(name).or_default() += 1);
    let name = |(plain, place): (&String, &String)| {
        if plain.len() <= LONGEST && count[plain.as_str()] == 1 {
            return plain.clone();
        }
        format!("{}%~{}", &plain[..plain.len().min(KEPT)], &hex_sha256(place.as_bytes())[..32])
    };
    plain.iter().zip(places).map(name).collect()
}

fn plain_name(place: &str) -> String {
    let start = place.rfind('/').map_or(0, |slash| slash + 1);
    let end = place[start..].rfind('.').filter(|dot| *dot > 0).map_or(place.len(), |dot| start + dot);
    place[..end].replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_short_names_without_dots_and_no_two_the_same() {
        let long = "x".repeat(120);
        let places = ["Bag/0.png", "Bag/1.jpg", "Bag/1.png", "a.b/c.d.png", "plain", &long].map(str::to_owned);
        let names = names(&places);
        assert_eq!([&names[0], &names[3], &names[4]], ["Bag/0", "a_b/c_d", "plain"]);
        assert!(names[1].starts_with("Bag/1%~") && names[2].starts_with("Bag/1%~"), "{names:?}");
        let different: std::collections::HashSet<&String> = names.iter().collect();
        assert!(different.len() == names.len() && names.iter().all(|n| !n.contains('.') && n.len() <= LONGEST), "{names:?}");
    }
}
