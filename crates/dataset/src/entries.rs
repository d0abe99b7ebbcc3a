//! Builds the entries of a data set for every reader, matched with the files of the store. Pure.

use std::collections::BTreeMap;

use proto::{Box2d, ClassSource, FailureReason, Mask, MaskSource, Object, keys};

use crate::{Dataset, DatasetImage, Entry, IMAGES, SharedStr, shipped_folder};

/// An object as the annotations describe it.
pub(crate) struct Annotated {
    /// Empty where the annotations have none.
    pub(crate) class_name: SharedStr,
    pub(crate) bbox: Option<Box2d>,
    pub(crate) mask: Option<Mask>,
}

/// Key and identity of every object, sorted by key.
#[derive(Debug)]
pub struct Listing(Vec<(SharedStr, SharedStr)>);

impl Listing {
    pub(crate) fn new(mut objects: Vec<(SharedStr, SharedStr)>) -> Listing {
        objects.sort_unstable();
        Listing(objects)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&(SharedStr, SharedStr)> {
        self.0.binary_search_by(|(there, _)| (**there).cmp(key)).ok().map(|at| &self.0[at])
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &SharedStr> {
        self.0.iter().map(|(key, _)| key)
    }

    pub(crate) fn has_prefix(&self, prefix: &str) -> bool {
        self.0.get(self.0.partition_point(|(key, _)| **key < *prefix)).is_some_and(|(key, _)| key.starts_with(prefix))
    }
}

impl FromIterator<(String, String)> for Listing {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(objects: T) -> Listing {
        Listing::new(pack(objects))
    }
}

/// Keys and identities that share their memory.
pub(crate) fn pack(objects: impl IntoIterator<Item = (String, String)>) -> Vec<(SharedStr, SharedStr)> {
    let texts = SharedStr::many(objects.into_iter().flat_map(|(key, identity)| [key, identity]));
    texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

pub(crate) struct Problem {
    reason: FailureReason,
    message: String,
    class_name: Option<SharedStr>,
}

impl Problem {
    pub(crate) fn new(reason: FailureReason, message: impl Into<String>) -> Problem {
        Problem { reason, message: message.into(), class_name: None }
    }

    pub(crate) fn of_class(self, class_name: SharedStr) -> Problem {
        Problem { class_name: Some(class_name), ..self }
    }
}

/// Collects entries, one for each image; an image that is listed twice is bad, even if both entries are equal.
pub(crate) struct Entries<'a> {
    listing: &'a Listing,
    object: &'a Object,
    folders: Vec<String>,
    entries: Vec<Entry>,
    /// By their place in the file.
    nameless: BTreeMap<String, Entry>,
}

impl<'a> Entries<'a> {
    /// `file`: the annotation file, beside which images are found.
    pub(crate) fn new(file: &str, listing: &'a Listing, object: &'a Object) -> Entries<'a> {
        let beside = file.rfind('/').map_or("", |slash| &file[..=slash]);
        let mut folders = vec![beside.to_owned(), format!("{beside}{IMAGES}"), String::new(), IMAGES.to_owned()];
        folders.extend(shipped_folder(file).into_iter().flat_map(|folder| [format!("{folder}/"), format!("{IMAGES}{folder}/")]));
        Entries { listing, object, folders, entries: Vec::new(), nameless: BTreeMap::new() }
    }

    /// Key and identity of the image with this name in the annotations.
    pub(crate) fn find(&self, name: &str) -> Result<(SharedStr, SharedStr), Problem> {
        let bad_name =
            |what, name: &str, problem| Problem::new(FailureReason::BadName, format!("the image's {what} {name:?} {problem}"));
        keys::check_image(name).map_err(|problem| bad_name("name", name, problem))?;
        let keys = self.folders.iter().map(|folder| format!("{folder}{name}"));
        let (key, identity) = keys.filter_map(|key| self.listing.get(&key)).next().ok_or_else(|| {
            let message = format!("the annotations list {name}, but the data set has no such file");
            Problem::new(FailureReason::MissingImage, message)
        })?;
        keys::check_image(key).map_err(|problem| bad_name("key", key, problem))?;
        Ok((key.clone(), identity.clone()))
    }

    pub(crate) fn add(&mut self, name: &str, object: Result<Annotated, Problem>) {
        let entry = match (self.find(name), object) {
            (Ok((key, identity)), Ok(Annotated { class_name, bbox, mask })) => match self.find_mask(&key) {
                Ok(file) => {
                    let bbox = bbox.filter(|_| needs_box(self.object)).map(Box::new);
                    Entry::Image(DatasetImage { key, identity, class_name, bbox, mask: file.or(mask).map(Box::new) })
                }
                Err(problem) => bad(key, problem.of_class(class_name)),
            },
            (Ok((key, _)), Err(problem)) => bad(key, problem),
            (Err(problem), object) => {
                let class_name = object.map_or_else(|problem| problem.class_name, |object| Some(object.class_name));
                bad(name, Problem { class_name, ..problem })
            }
        };
        self.entries.push(entry);
    }

    /// The mask file of the image `key`, if masks are files.
    pub(crate) fn find_mask(&self, key: &str) -> Result<Option<Mask>, Problem> {
        let Some(mask) = mask_key(self.object, key) else { return Ok(None) };
        match self.listing.get(&mask) {
            Some((key, identity)) => Ok(Some(Mask::File { key: key.to_string(), identity: identity.to_string() })),
            None => Err(Problem::new(FailureReason::BadMask, format!("the data set has no mask {mask}"))),
        }
    }

    /// `place`: the entry's place in the file, for people.
    pub(crate) fn add_nameless(&mut self, place: String, problem: &str) {
        let entry = bad(&*place, Problem::new(FailureReason::BadName, problem));
        self.nameless.insert(place, entry);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.nameless.is_empty()
    }

    pub(crate) fn finish(self, source: &str, notes: Vec<String>) -> Dataset {
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

pub(crate) fn bad(image: impl Into<SharedStr>, Problem { reason, message, class_name }: Problem) -> Entry {
    Entry::Bad { image: image.into(), reason, message: message.into(), class_name }
}

/// Checks a box; `size`: width and height of the image, if stated.
pub(crate) fn check_box(bbox: Box2d, size: Option<(f64, f64)>) -> Result<Box2d, Problem> {
    let Box2d { x, y, width, height } = bbox;
    let problem = if ![x, y, width, height].iter().all(|v| v.is_finite()) {
        "is not finite".to_owned()
    } else if width <= 0.0 || height <= 0.0 {
        "has no area".to_owned()
    } else if x + width <= 0.0 || y + height <= 0.0 {
        "is outside of the image".to_owned()
    } else {
        match size {
            Some((w, h)) if x >= w || y >= h => format!("is outside of the image of {w} x {h} pixels"),
            _ => return Ok(bbox),
        }
    };
    Err(Problem::new(FailureReason::BadBox, format!("box (x {x}, y {y}, width {width}, height {height}) {problem}")))
}

/// Whether the class must be in the data set.
pub(crate) fn needs_class(object: &Object) -> bool {
    matches!(object.class, ClassSource::Annotation | ClassSource::Category)
}

/// Whether the class or the object must be in the data set.
pub(crate) fn needs_object(object: &Object) -> bool {
    needs_class(object) || needs_box(object)
}

/// Whether the data set's boxes are used.
pub(crate) fn needs_box(object: &Object) -> bool {
    matches!(object.mask, MaskSource::Box | MaskSource::Outline)
}

/// Key of the mask of the image `key`, if masks are files.
pub(crate) fn mask_key(object: &Object, key: &str) -> Option<String> {
    let MaskSource::File { pattern } = &object.mask else { return None };
    let (folder, file) = key.rsplit_once('/').map_or(("", key), |(folder, file)| (&key[..=folder.len()], file));
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    Some(pattern.replace("{path}", &format!("{folder}{stem}")).replace("{stem}", stem))
}
