//! Reads what a data set holds: which images, of which class, with the object where. *io*: lists the store and gets one
//! file; the rest are pure functions of that file and the listing.
//!
//! Three layouts:
//! * COCO's JSON, as COCO ships it. One entry for each image, with its largest annotation that is no crowd. `file_name`
//!   is looked for beside the JSON file, in `images/` beside it, in the data set's root and `images/` there, and for
//!   `instances_val2017.json` also in `val2017/`.
//! * A CSV file with the columns `image,class` and, if wanted, `x,y,width,height` (all four empty: the whole image).
//! * Class folders, as ImageNet's: the folder that an image lies in is its class.
//!
//! An entry that cannot be used becomes an [`Entry::Bad`] and the others go on; only a file that says nothing at all is
//! an error. Image bytes are not read here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::str::FromStr;

use proto::{Box2d, ClassSource, FailureReason, Mask, MaskSource, Object, keys, relaxed};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::{Skipped, Store};

use crate::segmentation;
use crate::text::Text;

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
        image: Text,
        /// Kind of the failure.
        reason: FailureReason,
        /// What is wrong, for people.
        message: Box<str>,
        /// Class name, if known.
        class_name: Option<Text>,
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
    pub key: Text,
    /// What the store says of the bytes.
    pub identity: Text,
    /// As the data set writes it.
    pub class_name: Text,
    /// Finite, with an area; in pixels of the image. `None`: the whole image.
    pub bbox: Option<Box<Box2d>>,
    /// Its outline or mask file, if the object is to be read from that.
    pub mask: Option<Box<Mask>>,
}

/// What a data set says of an object: class name (or nothing), box and outline.
type Said = (Text, Option<Box2d>, Option<Mask>);

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
    if listing.0.is_empty() {
        return Err(unusable(&dataset, "holds no files", "name the folder or bucket that holds the images"));
    }
    let mut read = match choose(&listing, annotations, &dataset)? {
        None => read_folders(&dataset, &listing, object)?,
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
    if is_csv(file) { read_csv(file, bytes, listing, object) } else { read_coco(file, bytes, listing, object) }
}

/// Whether an image without a class can be projected.
fn needs_class(object: &Object) -> bool {
    matches!(object.class, ClassSource::Annotation | ClassSource::Category)
}

/// Whether the data set says anything of an image's object that is asked for.
fn needs_object(object: &Object) -> bool {
    needs_class(object) || needs_box(object)
}

/// Whether the data set's boxes say anything that is asked for.
fn needs_box(object: &Object) -> bool {
    matches!(object.mask, MaskSource::Box | MaskSource::Outline)
}

/// Key of the mask of the image `key`, where masks are files.
fn mask_key(object: &Object, key: &str) -> Option<String> {
    let MaskSource::File { pattern } = &object.mask else { return None };
    let (folder, file) = key.rsplit_once('/').map_or(("", key), |(folder, file)| (&key[..=folder.len()], file));
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    Some(pattern.replace("{path}", &format!("{folder}{stem}")).replace("{stem}", stem))
}

/// Key and identity of every object, sorted by key.
#[derive(Debug)]
pub struct Listing(Vec<(Text, Text)>);

impl Listing {
    fn new(mut objects: Vec<(Text, Text)>) -> Listing {
        objects.sort_unstable();
        Listing(objects)
    }

    fn get(&self, key: &str) -> Option<&(Text, Text)> {
        self.0.binary_search_by(|(there, _)| (**there).cmp(key)).ok().map(|at| &self.0[at])
    }

    fn keys(&self) -> impl Iterator<Item = &Text> {
        self.0.iter().map(|(key, _)| key)
    }

    fn has_prefix(&self, prefix: &str) -> bool {
        self.0.get(self.0.partition_point(|(key, _)| **key < *prefix)).is_some_and(|(key, _)| key.starts_with(prefix))
    }
}

impl FromIterator<(String, String)> for Listing {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(objects: T) -> Listing {
        Listing::new(pack(objects))
    }
}

/// Keys and identities that share their memory.
fn pack(objects: impl IntoIterator<Item = (String, String)>) -> Vec<(Text, Text)> {
    let texts = Text::many(objects.into_iter().flat_map(|(key, identity)| [key, identity]));
    texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
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

/// What is wrong with an entry.
struct Problem {
    reason: FailureReason,
    message: String,
    class_name: Option<Text>,
}

impl Problem {
    fn new(reason: FailureReason, message: impl Into<String>) -> Problem {
        Problem { reason, message: message.into(), class_name: None }
    }

    fn of_class(self, class_name: Text) -> Problem {
        Problem { class_name: Some(class_name), ..self }
    }
}

/// Collects entries, one for each image: an image that comes twice is bad, whatever the two say.
struct Entries<'a> {
    listing: &'a Listing,
    object: &'a Object,
    folders: Vec<String>,
    entries: Vec<Entry>,
    /// By place in the file.
    nameless: BTreeMap<String, Entry>,
}

impl<'a> Entries<'a> {
    /// `file`: where the names are written.
    fn new(file: &str, listing: &'a Listing, object: &'a Object) -> Entries<'a> {
        let beside = file.rfind('/').map_or("", |slash| &file[..=slash]);
        let mut folders = vec![beside.to_owned(), format!("{beside}{IMAGES}"), String::new(), IMAGES.to_owned()];
        folders.extend(shipped_folder(file).map(|folder| format!("{folder}/")));
        folders.extend(shipped_folder(file).map(|folder| format!("{IMAGES}{folder}/")));
        Entries { listing, object, folders, entries: Vec::new(), nameless: BTreeMap::new() }
    }

    /// Key and identity of the image that the data set calls `name`.
    fn find(&self, name: &str) -> Result<(Text, Text), Problem> {
        keys::check_image(name)
            .map_err(|problem| Problem::new(FailureReason::BadName, format!("the image's name {name:?} {problem}")))?;
        let keys = self.folders.iter().map(|folder| format!("{folder}{name}"));
        let (key, identity) = keys.filter_map(|key| self.listing.get(&key)).next().ok_or_else(|| {
            let message = format!("the data set lists {name} but does not hold it");
            Problem::new(FailureReason::MissingImage, message)
        })?;
        keys::check_image(key)
            .map_err(|problem| Problem::new(FailureReason::BadName, format!("the image's key {key:?} {problem}")))?;
        Ok((key.clone(), identity.clone()))
    }

    fn add(&mut self, name: &str, what: Result<Said, Problem>) {
        let entry = match (self.find(name), what) {
            (Ok((key, identity)), Ok((class_name, bbox, mask))) => match self.find_mask(&key) {
                Ok(file) => {
                    let bbox = bbox.filter(|_| needs_box(self.object)).map(Box::new);
                    Entry::Image(DatasetImage { key, identity, class_name, bbox, mask: file.or(mask).map(Box::new) })
                }
                Err(problem) => bad(key, problem.of_class(class_name)),
            },
            (Ok((key, _)), Err(problem)) => bad(key, problem),
            (Err(problem), what) => {
                let class_name = what.map_or_else(|problem| problem.class_name, |(class_name, ..)| Some(class_name));
                bad(name, Problem { class_name, ..problem })
            }
        };
        self.entries.push(entry);
    }

    /// The mask file of the image `key`, where masks are files.
    fn find_mask(&self, key: &str) -> Result<Option<Mask>, Problem> {
        let Some(mask) = mask_key(self.object, key) else { return Ok(None) };
        match self.listing.get(&mask) {
            Some((key, identity)) => Ok(Some(Mask::File { key: key.to_string(), identity: identity.to_string() })),
            None => Err(Problem::new(FailureReason::BadMask, format!("the data set does not hold its mask {mask}"))),
        }
    }

    /// `place`: where in the file it stands.
    fn add_nameless(&mut self, place: String, problem: &str) {
        let entry = bad(&*place, Problem::new(FailureReason::BadName, problem));
        self.nameless.insert(place, entry);
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.nameless.is_empty()
    }

    fn finish(self, source: &str, notes: Vec<String>) -> Dataset {
        let mut entries = self.entries;
        entries.extend(self.nameless.into_values());
        entries.sort_by(|a, b| a.image().cmp(b.image()));
        entries.dedup_by(|again, entry| {
            let twice = again.image() == entry.image();
            if twice {
                let message = format!("{} is listed more than once", entry.image());
                *entry = bad(entry.image(), Problem::new(FailureReason::BadAnnotation, message));
            }
            twice
        });
        Dataset { entries, source: source.to_owned(), notes }
    }
}

fn bad(image: impl Into<Text>, Problem { reason, message, class_name }: Problem) -> Entry {
    Entry::Bad { image: image.into(), reason, message: message.into(), class_name }
}

/// Checks a box; `size`: width and height of the image, if stated.
fn check_box(bbox: Box2d, size: Option<(f64, f64)>) -> Result<Box2d, Problem> {
    let Box2d { x, y, width, height } = bbox;
    let problem = if ![x, y, width, height].iter().all(|v| v.is_finite()) {
        "is not finite".to_owned()
    } else if width <= 0.0 || height <= 0.0 {
        "has no area".to_owned()
    } else if x + width <= 0.0 || y + height <= 0.0 {
        "lies outside of the image".to_owned()
    } else {
        match size {
            Some((w, h)) if x >= w || y >= h => format!("lies outside of the image of {w} x {h} pixels"),
            _ => return Ok(bbox),
        }
    };
    let message = format!("box (x {x}, y {y}, width {width}, height {height}) {problem}");
    Err(Problem::new(FailureReason::BadBox, message))
}

/// What is read of COCO's JSON. All values are raw: a value of a wrong type spoils its own entry and no other, and
/// outlines are passed over without being stored.
#[derive(Deserialize)]
struct Coco<'a> {
    #[serde(borrow)]
    images: Option<Vec<CocoImage<'a>>>,
    #[serde(borrow)]
    annotations: Option<Vec<CocoAnnotation<'a>>>,
    #[serde(borrow)]
    categories: Option<Vec<CocoCategory<'a>>>,
}

#[derive(Deserialize)]
struct CocoImage<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    file_name: Option<&'a RawValue>,
    #[serde(borrow)]
    width: Option<&'a RawValue>,
    #[serde(borrow)]
    height: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct CocoAnnotation<'a> {
    #[serde(borrow)]
    image_id: Option<&'a RawValue>,
    #[serde(borrow)]
    category_id: Option<&'a RawValue>,
    #[serde(borrow)]
    bbox: Option<&'a RawValue>,
    #[serde(borrow)]
    segmentation: Option<&'a RawValue>,
    #[serde(borrow)]
    iscrowd: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct CocoCategory<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
}

/// Class and box of an image's largest object so far and its place among the annotations, or what is wrong with all of them.
type Largest = Result<(Text, Box2d, usize), Problem>;

/// Reads COCO's JSON.
pub fn read_coco(file: &str, json: &[u8], listing: &Listing, wanted: &Object) -> Result<Dataset, DatasetError> {
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    let repaired;
    let coco: Coco = match serde_json::from_slice(json) {
        Ok(coco) => coco,
        // Python writes NaN and Infinity, which JSON does not have.
        Err(source) => {
            repaired = nan_to_null(json);
            serde_json::from_slice(&repaired).map_err(|_| DatasetError::Json { file: file.to_owned(), source })?
        }
    };
    let part = |name: &str, advice: &str| unusable(file, format!("has no {name}"), advice);
    let advice = "name COCO's instances file with --annotations, or use class folders or a manifest.csv";
    let images = coco.images.filter(|v| !v.is_empty()).ok_or_else(|| part("images", advice))?;
    let annotations = coco.annotations.ok_or_else(|| part("annotations", advice))?;
    let categories = coco.categories.filter(|v| !v.is_empty()).ok_or_else(|| part("categories", advice))?;

    let mut class_names: HashMap<&str, Result<Text, String>> = HashMap::new();
    for category in &categories {
        let Some(id) = category.id.map(id) else { continue };
        let name = category.name.and_then(text).map(Text::from).ok_or_else(|| format!("category id {id} has no name"));
        class_names
            .entry(id)
            .and_modify(|known| *known = Err(format!("category id {id} is listed more than once")))
            .or_insert(name);
    }
    let mut by_id: HashMap<&str, Vec<usize>> = HashMap::with_capacity(images.len());
    for (i, image) in images.iter().enumerate() {
        by_id.entry(image.id.map_or("", id)).or_default().push(i);
    }

    // Of each image the largest object so far or, as long as there is none that can be used, the first problem.
    let mut objects: Vec<Option<Largest>> = Vec::new();
    objects.resize_with(images.len(), || None);
    let mut strays = BTreeSet::new();
    let no_crowd = |(_, a): &(usize, &CocoAnnotation)| !matches!(a.iscrowd.map(RawValue::get), Some("1" | "true"));
    for (index, annotation) in annotations.iter().enumerate().filter(no_crowd) {
        let Some(image_id) = annotation.image_id.map(id) else {
            strays.insert("none");
            continue;
        };
        let Some(&[i]) = by_id.get(image_id).map(Vec::as_slice) else {
            if !by_id.contains_key(image_id) {
                strays.insert(image_id);
            }
            continue;
        };
        let object = read_object(annotation, &images[i], &class_names).map(|(class, bbox)| (class, bbox, index));
        let better = match (&objects[i], &object) {
            (None, _) | (Some(Err(_)), Ok(_)) => true,
            (Some(Ok((_, best, _))), Ok((_, bbox, _))) => bbox.width * bbox.height > best.width * best.height,
            (Some(_), Err(_)) => false,
        };
        if better {
            objects[i] = Some(object);
        }
    }

    let mut entries = Entries::new(file, listing, wanted);
    let mut without_object = 0;
    for (image, object) in images.iter().zip(objects) {
        let id_text = image.id.map_or("none", id);
        let duplicates = by_id[image.id.map_or("", id)].len();
        let what = if image.id.is_none() {
            Err(Problem::new(FailureReason::BadAnnotation, "the image has no id"))
        } else if duplicates > 1 {
            let message = format!("image id {id_text} is given to {duplicates} images");
            Err(Problem::new(FailureReason::BadAnnotation, message))
        } else if !needs_object(wanted) {
            let class_name = object.and_then(Result::ok).map(|(class_name, ..)| class_name);
            Ok((class_name.unwrap_or_else(|| "".into()), None, None))
        } else if let Some(object) = object {
            object.and_then(|(class_name, bbox, index)| {
                let outline = annotations[index].segmentation.filter(|_| wanted.mask == MaskSource::Outline);
                let size = image.width.and_then(number).zip(image.height.and_then(number));
                let mask = outline.map(|raw| segmentation::read(raw.get(), size)).transpose();
                let bad = |problem: String| Problem::new(FailureReason::BadMask, problem).of_class(class_name.clone());
                let mask = mask.map_err(bad)?.flatten();
                Ok((class_name, Some(bbox), mask))
            })
        } else {
            without_object += 1;
            continue;
        };
        match image.file_name.and_then(text) {
            Some(name) => entries.add(&name, what),
            None => entries.add_nameless(format!("image id {id_text}"), "the image has no file_name"),
        }
    }
    if entries.is_empty() {
        return Err(unusable(file, "annotates none of its images", "name another file with --annotations"));
    }
    let mut notes = Vec::new();
    if without_object > 0 {
        notes.push(format!("{without_object} of {} images have no object (or only crowds)", images.len()));
    }
    if !strays.is_empty() {
        notes.push(format!("annotations of {} image ids that are not listed were passed over", strays.len()));
    }
    Ok(entries.finish(file, notes))
}

fn read_object(
    annotation: &CocoAnnotation,
    image: &CocoImage,
    class_names: &HashMap<&str, Result<Text, String>>,
) -> Result<(Text, Box2d), Problem> {
    let category = annotation.category_id.map_or("none", id);
    let class_name = match class_names.get(category) {
        Some(Ok(name)) => name,
        Some(Err(problem)) => return Err(Problem::new(FailureReason::BadAnnotation, problem)),
        None => {
            let message = format!("category id {category} is not in the categories");
            return Err(Problem::new(FailureReason::UnknownClass, message));
        }
    };
    let size = image.width.and_then(number).zip(image.height.and_then(number));
    let bbox = annotation.bbox.map_or("none", RawValue::get);
    let values: Vec<Option<&RawValue>> = serde_json::from_str(bbox).unwrap_or_default();
    let bbox = match values[..] {
        // `null` is what NaN was.
        [x, y, width, height] => {
            let [x, y, width, height] = [x, y, width, height].map(|v| v.map_or(Some(f64::NAN), number));
            x.zip(y).zip(width.zip(height)).map(|((x, y), (width, height))| Box2d { x, y, width, height })
        }
        _ => None,
    }
    .ok_or_else(|| Problem::new(FailureReason::BadBox, format!("bbox is {}, not four numbers", clip(bbox))));
    let bbox = bbox.and_then(|bbox| check_box(bbox, size)).map_err(|problem| problem.of_class(class_name.clone()))?;
    Ok((class_name.clone(), bbox))
}

/// The start of a text that may be of any length.
fn clip(text: &str) -> String {
    match text.char_indices().nth(CLIP) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// An id as it is written; pandas writes 7 as 7.0.
fn id(raw: &RawValue) -> &str {
    raw.get().strip_suffix(".0").unwrap_or(raw.get())
}

fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// Infinite if too large for f64.
fn number(raw: &RawValue) -> Option<f64> {
    raw.get().parse().ok()
}

/// Replaces NaN, Infinity and -Infinity outside of strings.
fn nan_to_null(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let mut rest = json;
    let mut in_string = false;
    while let Some((&byte, after)) = rest.split_first() {
        let word = [&b"NaN"[..], b"Infinity", b"-Infinity"].into_iter().find(|w| !in_string && rest.starts_with(w));
        if let Some(word) = word {
            out.extend_from_slice(b"null");
            rest = &rest[word.len()..];
        } else if in_string && byte == b'\\' {
            let length = rest.len().min(2);
            out.extend_from_slice(&rest[..length]);
            rest = &rest[length..];
        } else {
            in_string ^= byte == b'"';
            out.push(byte);
            rest = after;
        }
    }
    out
}

/// Reads a CSV manifest.
pub fn read_csv(file: &str, bytes: &[u8], listing: &Listing, wanted: &Object) -> Result<Dataset, DatasetError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let failed = |source| DatasetError::Csv { file: file.to_owned(), source };
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(bytes);
    let header = reader.byte_headers().map_err(failed)?.clone();
    let column = |name: &str| header.iter().position(|h| h.eq_ignore_ascii_case(name.as_bytes()));
    let advice = "its first line is to be image,class or image,class,x,y,width,height";
    let class = column("class");
    let (Some(image), true) = (column("image"), class.is_some() || !needs_class(wanted)) else {
        return Err(unusable(file, "has no columns image and class", advice));
    };
    let bbox = match ["x", "y", "width", "height"].map(column) {
        [Some(x), Some(y), Some(width), Some(height)] => Some([x, y, width, height]),
        [None, None, None, None] => None,
        _ => return Err(unusable(file, "has only some of the columns x, y, width and height", advice)),
    };
    let mut entries = Entries::new(file, listing, wanted);
    let mut class_names: HashMap<String, Text> = HashMap::new();
    for (i, record) in reader.byte_records().enumerate() {
        let record = record.map_err(failed)?;
        let field = |i: usize| String::from_utf8_lossy(record.get(i).unwrap_or_default()).into_owned();
        let class_name = class.map(field).unwrap_or_default();
        let class_name = class_names.entry(class_name).or_insert_with_key(|name| name.as_str().into()).clone();
        let bbox = bbox.filter(|_| needs_box(wanted)).map(|columns| columns.map(field));
        let bbox = bbox.filter(|values| values.iter().any(|v| !v.is_empty()));
        let what = if class_name.is_empty() && needs_class(wanted) {
            Err(Problem::new(FailureReason::BadAnnotation, "the class is empty"))
        } else {
            bbox.map(|values| read_box(&values).map_err(|problem| problem.of_class(class_name.clone())))
                .transpose()
                .map(|bbox| (class_name.clone(), bbox, None))
        };
        match field(image) {
            // The header is row 1, as in a spreadsheet.
            name if name.is_empty() => entries.add_nameless(format!("row {}", i + 2), "the image has no name"),
            name => entries.add(&name, what),
        }
    }
    if entries.is_empty() {
        return Err(unusable(file, "lists no images", advice));
    }
    Ok(entries.finish(file, Vec::new()))
}

fn read_box(values: &[String; 4]) -> Result<Box2d, Problem> {
    let number = |i: usize| {
        values[i].parse::<f64>().map_err(|_| {
            let name = ["x", "y", "width", "height"][i];
            Problem::new(FailureReason::BadBox, format!("the box's {name} is {:?}, not a number", values[i]))
        })
    };
    check_box(Box2d { x: number(0)?, y: number(1)?, width: number(2)?, height: number(3)? }, None)
}

/// Reads class folders. `dataset` is for messages.
pub fn read_folders(dataset: &str, listing: &Listing, wanted: &Object) -> Result<Dataset, DatasetError> {
    let is_hidden = |key: &str| key.split('/').any(|part| part.starts_with('.') || part == "__MACOSX");
    let (images, others): (Vec<_>, Vec<_>) =
        listing.keys().filter(|key| !is_hidden(key)).partition(|key| has_extension(key, IMAGE_TYPES));
    let advice = format!("put the images into one folder for each class, or add {COCO} (COCO) or {MANIFEST} (image,class)");
    if images.is_empty() {
        return Err(unusable(dataset, "holds no .jpg, .jpeg or .png files", advice));
    }
    let masks: BTreeSet<String> = images.iter().filter_map(|key| mask_key(wanted, key)).collect();
    let images: Vec<&Text> = images.into_iter().filter(|key| !masks.contains(&***key)).collect();
    if needs_class(wanted) && images.iter().all(|key| !key.contains('/')) {
        return Err(unusable(dataset, "has images but no annotations and no class folders", advice));
    }
    let mut entries = Entries::new("", listing, wanted);
    for key in images {
        let end = key.rfind('/').or((!needs_class(wanted)).then_some(0));
        let what = end
            .map(|end| (key.piece(key[..end].rfind('/').map_or(0, |slash| slash + 1)..end), None, None))
            .ok_or_else(|| Problem::new(FailureReason::BadAnnotation, "the image lies in no class folder"));
        entries.add(key, what);
    }
    let mut notes = Vec::new();
    if !others.is_empty() {
        notes.push(format!("{} files that are neither .jpg, .jpeg nor .png were passed over", others.len()));
    }
    Ok(entries.finish(CLASS_FOLDERS, notes))
}

/// Finds a model's class by the name that a data set gives it.
#[derive(Clone, Debug)]
pub struct ClassIndex {
    exact: HashMap<String, Option<u32>>,
    relaxed: HashMap<String, Option<u32>>,
}

impl ClassIndex {
    /// Of the model's classes, in order.
    pub fn new<S: AsRef<str>>(classes: &[S]) -> ClassIndex {
        let index = |name: fn(&str) -> String| {
            let mut map = HashMap::new();
            for (i, class) in (0u32..).zip(classes) {
                // Two classes of one name (ImageNet has some): none of them can be meant by it.
                map.entry(name(class.as_ref())).and_modify(|known| *known = None).or_insert(Some(i));
            }
            map
        };
        ClassIndex { exact: index(str::to_owned), relaxed: index(relaxed) }
    }

    /// The class of exactly this name; else the one whose name differs only in case and in `_`, `-`, `/` and spaces.
    /// `None` if there is none, or more than one.
    pub fn find(&self, name: &str) -> Option<u32> {
        let exact = self.exact.get(name).copied();
        exact.unwrap_or_else(|| self.relaxed.get(&relaxed(name)).copied().flatten())
    }
}
