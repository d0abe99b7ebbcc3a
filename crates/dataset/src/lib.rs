//! Reads a data set: its images, their classes and their objects.
//!
//! [`read`] lists the store and gets one file (*io*); the readers, one file for each layout, are pure functions of that file and the
//! listing. An entry that cannot be used becomes an [`Entry::Bad`] and the others are kept; only a file without any usable part is an
//! error. Image bytes are not read here.

mod class_index;
mod coco;
mod csv_manifest;
mod entries;
mod folders;
mod segmentation;
mod shared_str;

use proto::{Box2d, FailureReason, Mask, Object, clipped};
use store::{Allowed, NotAllowed, Skipped, Store};

pub use class_index::ClassIndex;
pub use coco::read_coco;
pub use entries::Listing;
use entries::{Problem, bad, pack};
pub use shared_str::SharedStr;

const COCO: &str = "annotations.json";
const MANIFEST: &str = "manifest.csv";
const IMAGES: &str = "images/";
const CLASS_FOLDERS: &str = "class folders";
const IMAGE_TYPES: &[&str] = &["jpg", "jpeg", "png"];
const NOTES: usize = 12;
/// Characters of a value that a message repeats.
const CLIP: usize = 160;
/// COCO's names of its files; the name of the images' folder stands between the two.
const COCO_SHIPPED: (&str, &str) = ("annotations/instances_", ".json");

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// One for each image, sorted by [`Entry::image`].
    pub entries: Vec<Entry>,
    /// The annotation file, or `class folders`.
    pub source: String,
    /// Sentences for people: images without an object, files that were skipped.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    Image(DatasetImage),
    Bad {
        /// Its key, or its name in the annotations.
        image: SharedStr,
        reason: FailureReason,
        message: Box<str>,
        class_name: Option<SharedStr>,
    },
}

impl Entry {
    /// Key of the image, or its name in the annotations.
    pub fn image(&self) -> &str {
        match self {
            Entry::Image(image) => &image.key,
            Entry::Bad { image, .. } => image,
        }
    }
}

/// An image that exists, with its object.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetImage {
    /// In the data set's store.
    pub key: SharedStr,
    /// The store's identity of the bytes, which changes with them.
    pub identity: SharedStr,
    /// As the data set writes it.
    pub class_name: SharedStr,
    /// In pixels of the image, finite and with an area. `None`: the whole image.
    pub bbox: Option<Box<Box2d>>,
    /// The outline or the mask file, if the run reads objects from those.
    pub mask: Option<Box<Mask>>,
}

/// Why a data set cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The annotations are neither in the data set nor on this machine.
    #[error("cannot read the annotations {file}: the data set {dataset} has no such key, and this machine no readable file")]
    File { file: String, dataset: String, source: std::io::Error },
    #[error("the data set {dataset} has no key {file}, and files of this machine are not read")]
    NotAllowed { file: String, dataset: String, source: NotAllowed },
    #[error("cannot read {file} as COCO annotations (a JSON object with images, annotations and categories)")]
    Json { file: String, source: serde_json::Error },
    #[error("cannot read {file} as a CSV manifest")]
    Csv { file: String, source: csv::Error },
    /// Readable, but without anything to project.
    #[error("{file} {problem}: {advice}")]
    Unusable {
        /// A file or the data set's URL.
        file: String,
        problem: String,
        advice: String,
    },
}

/// Reads a data set; of classes, boxes and masks only those that `object` requests.
///
/// `annotations`: a `.json` or `.csv` file, which is a key of the data set or a path on this machine; `none` for class folders; or `auto`
/// for the file that exists of `annotations.json`, `manifest.csv` and `annotations/instances_*.json`, else class folders. `allowed`: which
/// files of this machine may be read.
pub async fn read(store: &Store, annotations: &str, object: &Object, allowed: &Allowed) -> Result<Dataset, DatasetError> {
    let dataset = store.url();
    let mut lister = store.list("")?;
    let mut objects = Vec::new();
    while let Some(page) = lister.next_page().await? {
        objects.extend(pack(page.into_iter().map(|object| (object.key, object.identity))));
    }
    let listing = Listing::new(objects);
    if listing.is_empty() {
        return Err(unusable(&dataset, "has no files", "name the folder or bucket of the images"));
    }
    let mut read = match choose(&listing, annotations, &dataset)? {
        None => folders::read_folders(&dataset, &listing, object)?,
        Some(file) if listing.get(&file).is_some() => read_file(&file, &store.get(&file).await?, &listing, object)?,
        Some(file) => {
            let path = match allowed.file(&file) {
                Ok(path) => path,
                Err(source) => return Err(DatasetError::NotAllowed { file, dataset, source }),
            };
            match tokio::fs::read(path).await {
                Ok(bytes) => read_file(&file, &bytes, &listing, object)?,
                Err(source) => return Err(DatasetError::File { file, dataset, source }),
            }
        }
    };
    let by_folder = read.source == CLASS_FOLDERS;
    for Skipped { name, why } in lister.skipped() {
        if by_folder && has_extension(name, IMAGE_TYPES) {
            // Without annotations every image belongs to the data set, also one that cannot be read.
            read.entries.push(bad(name.clone(), Problem::new(FailureReason::BadName, format!("the file is skipped: {why}"))));
        } else {
            read.notes.push(format!("{:?} is skipped: {why}", clipped(name, CLIP)));
        }
    }
    read.entries.sort_by(|a, b| a.image().cmp(b.image()));
    read.entries.dedup_by(|a, b| a.image() == b.image());
    if read.notes.len() > NOTES {
        let more = read.notes.len() - NOTES;
        read.notes.truncate(NOTES);
        read.notes.push(format!("and {more} more notes"));
    }
    Ok(read)
}

fn read_file(file: &str, bytes: &[u8], listing: &Listing, object: &Object) -> Result<Dataset, DatasetError> {
    let is_csv = has_extension(file, &["csv"]);
    if is_csv { csv_manifest::read_csv(file, bytes, listing, object) } else { read_coco(file, bytes, listing, object) }
}

/// The annotation file, or `None` for class folders. `dataset` is for messages.
fn choose(listing: &Listing, annotations: &str, dataset: &str) -> Result<Option<String>, DatasetError> {
    match annotations {
        "none" => return Ok(None),
        "auto" => {}
        file if !has_extension(file, &["csv", "json"]) => {
            return Err(unusable(file, "is neither a .json nor a .csv file", "name COCO annotations or a CSV manifest"));
        }
        file => return Ok(Some(file.strip_prefix("./").unwrap_or(file).to_owned())),
    }
    let shipped: Vec<(&str, &str)> = listing.keys().filter_map(|key| Some((&**key, shipped_folder(key)?))).collect();
    // All annotations may be unpacked beside the validation images only.
    let with_images: Vec<&str> =
        shipped.iter().filter(|(_, folder)| listing.has_prefix(&format!("{folder}/"))).map(|(key, _)| *key).collect();
    let mut found: Vec<&str> = [COCO, MANIFEST].into_iter().filter(|name| listing.get(name).is_some()).collect();
    found.extend(if with_images.is_empty() { shipped.into_iter().map(|(key, _)| key).collect() } else { with_images });
    match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.to_owned())),
        _ => Err(unusable(
            dataset,
            format!("has several annotation files ({})", found.join(", ")),
            "name the one to use with --annotations",
        )),
    }
}

/// `val2017` of `annotations/instances_val2017.json`.
fn shipped_folder(key: &str) -> Option<&str> {
    let name = key.strip_prefix(COCO_SHIPPED.0)?.strip_suffix(COCO_SHIPPED.1)?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

fn has_extension(key: &str, extensions: &[&str]) -> bool {
    let file = key.rsplit('/').next().unwrap_or(key);
    file.rsplit_once('.').is_some_and(|(_, found)| extensions.iter().any(|e| found.eq_ignore_ascii_case(e)))
}

fn unusable(file: &str, problem: impl Into<String>, advice: impl Into<String>) -> DatasetError {
    DatasetError::Unusable { file: file.to_owned(), problem: problem.into(), advice: advice.into() }
}
