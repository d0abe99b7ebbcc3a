//! Reads COCO's JSON, as COCO ships it. Pure. Each image gets its largest annotation that is not a crowd.

use std::collections::{BTreeSet, HashMap};

use proto::{Box2d, FailureReason, MaskSource, Object, clipped};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::entries::{Annotated, Entries, Listing, Problem, check_box, needs_object};
use crate::{CLIP, Dataset, DatasetError, SharedStr, segmentation, unusable};

/// The parts of COCO's JSON that are read. All values are raw: a value of a wrong type makes only its own entry bad, and outlines are
/// skipped without being stored.
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

/// Class, box and index among the annotations of an image's largest object, or the first problem if no object can be used.
type Largest = Result<(SharedStr, Box2d, usize), Problem>;

/// Name of each category by its id, or its problem.
type ClassNames<'a> = HashMap<&'a str, Result<SharedStr, String>>;

/// Indices of the images by their id; images without an id are under "".
type ById<'a> = HashMap<&'a str, Vec<usize>>;

pub fn read_coco(file: &str, json: &[u8], listing: &Listing, wanted: &Object) -> Result<Dataset, DatasetError> {
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    let repaired;
    let coco: Coco = match serde_json::from_slice(json) {
        Ok(coco) => coco,
        // Python writes NaN and Infinity, which are not JSON.
        Err(source) => {
            repaired = nan_to_null(json);
            serde_json::from_slice(&repaired).map_err(|_| DatasetError::Json { file: file.to_owned(), source })?
        }
    };
    let part = |name: &str| {
        let advice = "name COCO's instances file with --annotations, or use class folders or a manifest.csv";
        unusable(file, format!("has no {name}"), advice)
    };
    let images = coco.images.filter(|v| !v.is_empty()).ok_or_else(|| part("images"))?;
    let annotations = coco.annotations.ok_or_else(|| part("annotations"))?;
    let categories = coco.categories.filter(|v| !v.is_empty()).ok_or_else(|| part("categories"))?;

    let mut by_id: ById = HashMap::with_capacity(images.len());
    for (i, image) in images.iter().enumerate() {
        by_id.entry(image.id.map_or("", id)).or_default().push(i);
    }
    let (largest, strays) = largest_objects(&images, &annotations, &class_names(&categories), &by_id);

    let mut entries = Entries::new(file, listing, wanted);
    let mut without_object = 0;
    for (image, largest) in images.iter().zip(largest) {
        let id_text = image.id.map_or("none", id);
        let duplicates = by_id[image.id.map_or("", id)].len();
        let object = if image.id.is_none() {
            Err(Problem::new(FailureReason::BadAnnotation, "the image has no id"))
        } else if duplicates > 1 {
            Err(Problem::new(FailureReason::BadAnnotation, format!("{duplicates} images have the id {id_text}")))
        } else if !needs_object(wanted) {
            let class_name = largest.and_then(Result::ok).map(|(class_name, ..)| class_name);
            Ok(Annotated { class_name: class_name.unwrap_or_else(|| "".into()), bbox: None, mask: None })
        } else if let Some(largest) = largest {
            largest.and_then(|largest| with_outline(largest, image, &annotations, wanted))
        } else {
            without_object += 1;
            continue;
        };
        match image.file_name.and_then(text) {
            Some(name) => entries.add(&name, object),
            None => entries.add_nameless(format!("image id {id_text}"), "the image has no file_name"),
        }
    }
    if entries.is_empty() {
        return Err(unusable(file, "has no annotation for any of its images", "name another file with --annotations"));
    }
    let mut notes = Vec::new();
    if without_object > 0 {
        notes.push(format!("{without_object} of {} images have no object (or only crowds) and are left out", images.len()));
    }
    if strays > 0 {
        notes.push(format!("annotations of {strays} unknown image ids were skipped"));
    }
    Ok(entries.finish(file, notes))
}

fn class_names<'a>(categories: &[CocoCategory<'a>]) -> ClassNames<'a> {
    let mut names = ClassNames::new();
    for category in categories {
        let Some(id) = category.id.map(id) else { continue };
        let name = category.name.and_then(text).map(SharedStr::from).ok_or_else(|| format!("category id {id} has no name"));
        names.entry(id).and_modify(|known| *known = Err(format!("category id {id} is listed more than once"))).or_insert(name);
    }
    names
}

/// For each image its largest object or, if none can be used, the first problem; and the number of unknown image ids. Crowds do not
/// count.
fn largest_objects(
    images: &[CocoImage],
    annotations: &[CocoAnnotation],
    class_names: &ClassNames,
    by_id: &ById,
) -> (Vec<Option<Largest>>, usize) {
    let mut objects: Vec<Option<Largest>> = images.iter().map(|_| None).collect();
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
        let object = read_object(annotation, &images[i], class_names).map(|(class, bbox)| (class, bbox, index));
        let better = match (&objects[i], &object) {
            (None, _) | (Some(Err(_)), Ok(_)) => true,
            (Some(Ok((_, best, _))), Ok((_, bbox, _))) => bbox.width * bbox.height > best.width * best.height,
            (Some(_), Err(_)) => false,
        };
        if better {
            objects[i] = Some(object);
        }
    }
    (objects, strays.len())
}

/// Adds the object's outline, if the run reads objects from outlines.
fn with_outline(
    (class_name, bbox, index): (SharedStr, Box2d, usize),
    image: &CocoImage,
    annotations: &[CocoAnnotation],
    wanted: &Object,
) -> Result<Annotated, Problem> {
    let outline = annotations[index].segmentation.filter(|_| wanted.mask == MaskSource::Outline);
    let mask = outline.map(|raw| segmentation::read(raw.get(), size(image))).transpose();
    let bad = |problem: String| Problem::new(FailureReason::BadMask, problem).of_class(class_name.clone());
    let mask = mask.map_err(bad)?.flatten();
    Ok(Annotated { class_name, bbox: Some(bbox), mask })
}

/// Width and height of the image, if the file has both.
fn size(image: &CocoImage) -> Option<(f64, f64)> {
    image.width.and_then(number).zip(image.height.and_then(number))
}

fn read_object(annotation: &CocoAnnotation, image: &CocoImage, class_names: &ClassNames) -> Result<(SharedStr, Box2d), Problem> {
    let category = annotation.category_id.map_or("none", id);
    let class_name = match class_names.get(category) {
        Some(Ok(name)) => name,
        Some(Err(problem)) => return Err(Problem::new(FailureReason::BadAnnotation, problem)),
        None => return Err(Problem::new(FailureReason::UnknownClass, format!("the categories have no id {category}"))),
    };
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
    .ok_or_else(|| Problem::new(FailureReason::BadBox, format!("bbox is {}, not four numbers", clipped(bbox, CLIP))));
    let bbox = bbox.and_then(|bbox| check_box(bbox, size(image))).map_err(|problem| problem.of_class(class_name.clone()))?;
    Ok((class_name.clone(), bbox))
}

/// An id as it is written; pandas writes 7 as 7.0.
fn id(raw: &RawValue) -> &str {
    raw.get().strip_suffix(".0").unwrap_or(raw.get())
}

fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// Infinite if it is too large for f64.
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
