//! Reads class folders such as ImageNet's: an image's folder is its class. Pure.

use std::collections::BTreeSet;

use proto::{FailureReason, Object};

use crate::entries::{Annotated, Entries, Listing, Problem, mask_key, needs_class};
use crate::{CLASS_FOLDERS, COCO, Dataset, DatasetError, IMAGE_TYPES, MANIFEST, SharedStr, has_extension, unusable};

/// `dataset` is for messages.
pub fn read_folders(dataset: &str, listing: &Listing, wanted: &Object) -> Result<Dataset, DatasetError> {
    let is_hidden = |key: &str| key.split('/').any(|part| part.starts_with('.') || part == "__MACOSX");
    let (images, others): (Vec<_>, Vec<_>) =
        listing.keys().filter(|key| !is_hidden(key)).partition(|key| has_extension(key, IMAGE_TYPES));
    let advice = format!("put the images into one folder for each class, or add {COCO} (COCO) or {MANIFEST} (image,class)");
    if images.is_empty() {
        return Err(unusable(dataset, "has no .jpg, .jpeg or .png files", advice));
    }
    let masks: BTreeSet<String> = images.iter().filter_map(|key| mask_key(wanted, key)).collect();
    let images: Vec<&SharedStr> = images.into_iter().filter(|key| !masks.contains(&***key)).collect();
    if needs_class(wanted) && images.iter().all(|key| !key.contains('/')) {
        return Err(unusable(dataset, "has images but no annotations and no class folders", advice));
    }
    let mut entries = Entries::new("", listing, wanted);
    for key in images {
        let end = key.rfind('/').or((!needs_class(wanted)).then_some(0));
        let folder = end.map(|end| key.piece(key[..end].rfind('/').map_or(0, |slash| slash + 1)..end));
        let object = folder
            .map(|class_name| Annotated { class_name, bbox: None, mask: None })
            .ok_or_else(|| Problem::new(FailureReason::BadAnnotation, "the image is not in a class folder"));
        entries.add(key, object);
    }
    let mut notes = Vec::new();
    if !others.is_empty() {
        notes.push(format!("{} files were skipped because they are neither .jpg, .jpeg nor .png", others.len()));
    }
    Ok(entries.finish(CLASS_FOLDERS, notes))
}
