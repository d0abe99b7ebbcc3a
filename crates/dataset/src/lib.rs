//! Reads what a data set holds: which images, of which class, with the object where.
//!
//! [`read`] lists the store and gets one file (*io*); the readers, one file for each layout, are pure functions of that file and the
//! listing. An entry that cannot be used becomes an [`Entry::Bad`] and the others go on; only a file that says nothing at all is an
//! error. Image bytes are not read here.

mod class_index;
mod coco;
mod csv_manifest;
mod entries;
mod folders;
mod segmentation;
mod shared_str;

use std::convert::Infallible;
use std::str::FromStr;

use proto::{Box2d, FailureReason, Mask, Object};
use store::{Skipped, Store};

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
/// Notes that are kept.
const NOTES: usize = 12;
/// Letters of a value that a message repeats.
const CLIP: usize = 160;
/// How COCO names its files; `*` is the name of the images' folder.
const COCO_SHIPPED: (&str, &str) = ("annotations/instances_", ".json");

/// Where the classes and boxes are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Annotations {
    /// `annotations.json`, `manifest.csv` or `annotations/instances_*.json`, whichever there is; else class folders.
    #[default]
    Automatic,
    /// Nowhere: class folders.
    Folders,
    /// A `.json` or `.csv` file: a key of the data set or a path on this machine.
    File(String),
}

impl FromStr for Annotations {
    type Err = Infallible;

    /// `auto`, `none` or a file.
    fn from_str(text: &str) -> Result<Annotations, Infallible> {
        Ok(match text {
            "auto" => Annotations::Automatic,
            "none" => Annotations::Folders,
            file => Annotations::File(file.to_owned()),
        })
    }
}

/// What a data set holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// One for each image, sorted by [`Entry::image`], no two for the same.
    pub entries: Vec<Entry>,
    /// Where they were read from: a file, or `class folders`.
    pub source: String,
    /// What a person should know: images without an object, files that were passed over.
    pub notes: Vec<String>,
}

/// One image of a data set.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// It can be projected.
    Image(DatasetImage),
    /// It cannot.
    Bad {
        /// Its key, or what the data set calls it.
        image: SharedStr,
        /// Kind of the failure.
        reason: FailureReason,
        /// What is wrong, for people.
        message: Box<str>,
        /// Class name, if known.
        class_name: Option<SharedStr>,
    },
}

impl Entry {
    /// Key of the image, or what the data set calls it.
    pub fn image(&self) -> &str {
        match self {
            Entry::Image(image) => &image.key,
            Entry::Bad { image, .. } => image,
        }
    }
}

/// An image that is there, with what to project.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetImage {
    /// In the data set's store.
    pub key: SharedStr,
    /// What the store says of the bytes.
    pub identity: SharedStr,
    /// As the data set writes it.
    pub class_name: SharedStr,
    /// Finite, with an area; in pixels of the image. `None`: the whole image.
    pub bbox: Option<Box<Box2d>>,
    /// Its outline or mask file, if the object is to be read from that.
    pub mask: Option<Box<Mask>>,
}

/// Why a data set cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The store failed; it says at what.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The annotations are on this machine, and reading them failed.
    #[error("cannot read the annotations {file}, which is no key of the data set {dataset} either")]
    File {
        /// The path.
        file: String,
        /// URL of the data set.
        dataset: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// No JSON, or not COCO's.
    #[error("cannot read {file} as COCO annotations (a JSON object with images, annotations and categories)")]
    Json {
        /// The file.
        file: String,
        /// Where and what.
        source: serde_json::Error,
    },
    /// No CSV.
    #[error("cannot read {file} as a CSV manifest")]
    Csv {
        /// The file.
        file: String,
        /// Where and what.
        source: csv::Error,
    },
    /// Readable, but it gives nothing to project.
    #[error("{file} {problem}: {advice}")]
    Unusable {
        /// A file or the data set's URL.
        file: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        advice: String,
    },
}

/// Reads a data set, as far as the `object` of each image is to be read from it.
pub async fn read(store: &Store, annotations: &Annotations, object: &Object) -> Result<Dataset, DatasetError> {
    let dataset = store.url();
    let mut lister = store.list("")?;
    let mut objects = Vec::new();
    while let Some(page) = lister.next_page().await? {
        objects.extend(pack(page.into_iter().map(|object| (object.key, object.identity))));
    }
    let listing = Listing::new(objects);
    if listing.is_empty() {
        return Err(unusable(&dataset, "holds no files", "name the folder or bucket that holds the images"));
    }
    let mut read = match choose(&listing, annotations, &dataset)? {
        None => folders::read_folders(&dataset, &listing, object)?,
        Some(file) if listing.get(&file).is_some() => read_file(&file, &store.get(&file).await?, &listing, object)?,
        Some(file) => match tokio::fs::read(&file).await {
            Ok(bytes) => read_file(&file, &bytes, &listing, object)?,
            Err(source) => return Err(DatasetError::File { file, dataset, source }),
        },
    };
    let by_folder = read.source == CLASS_FOLDERS;
    for Skipped { name, why } in lister.skipped() {
        if by_folder && has_extension(name, IMAGE_TYPES) {
            // With annotations, an image that nothing points at is nobody's loss; here it is one of the data set.
            read.entries.push(bad(name.clone(), Problem::new(FailureReason::BadName, format!("it is passed over: {why}"))));
        } else {
            read.notes.push(format!("{:?} is passed over: {why}", clip(name)));
        }
    }
    read.entries.sort_by(|a, b| a.image().cmp(b.image()));
    read.entries.dedup_by(|a, b| a.image() == b.image());
    if read.notes.len() > NOTES {
        let more = read.notes.len() - NOTES;
        read.notes.truncate(NOTES);
        read.notes.push(format!("and {more} more of this kind"));
    }
    Ok(read)
}

fn read_file(file: &str, bytes: &[u8], listing: &Listing, object: &Object) -> Result<Dataset, DatasetError> {
    if is_csv(file) { csv_manifest::read_csv(file, bytes, listing, object) } else { read_coco(file, bytes, listing, object) }
}

/// The file to read the annotations from, or `None` for class folders. `dataset` is for messages.
fn choose(listing: &Listing, annotations: &Annotations, dataset: &str) -> Result<Option<String>, DatasetError> {
    match annotations {
        Annotations::Folders => return Ok(None),
        Annotations::File(file) if !is_csv(file) && !has_extension(file, &["json"]) => {
            return Err(unusable(file, "is neither a .json nor a .csv file", "name COCO annotations or a CSV manifest"));
        }
        Annotations::File(file) => return Ok(Some(file.strip_prefix("./").unwrap_or(file).to_owned())),
        Annotations::Automatic => {}
    }
    let shipped: Vec<&str> = listing.keys().map(|key| &**key).filter(|key| shipped_folder(key).is_some()).collect();
    // Whoever unpacks all annotations but only the validation images means those.
    let with_images: Vec<&str> = shipped
        .iter()
        .filter(|key| shipped_folder(key).is_some_and(|folder| listing.has_prefix(&format!("{folder}/"))))
        .copied()
        .collect();
    let mut found: Vec<&str> = [COCO, MANIFEST].into_iter().filter(|name| listing.get(name).is_some()).collect();
    found.extend(if with_images.is_empty() { shipped } else { with_images });
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

fn is_csv(key: &str) -> bool {
    has_extension(key, &["csv"])
}

fn unusable(file: &str, problem: impl Into<String>, advice: impl Into<String>) -> DatasetError {
    DatasetError::Unusable { file: file.to_owned(), problem: problem.into(), advice: advice.into() }
}

/// The start of a text that may be of any length.
fn clip(text: &str) -> String {
    match text.char_indices().nth(CLIP) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
