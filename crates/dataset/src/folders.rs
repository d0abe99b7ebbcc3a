//! Reads class folders, as ImageNet's: the folder that an image lies in is its class. Pure.

use std::collections::BTreeSet;

use proto::{FailureReason, Object};

use crate::entries::{Entries, Listing, Problem, mask_key, needs_class};
use crate::{CLASS_FOLDERS, COCO, Dataset, DatasetError, IMAGE_TYPES, MANIFEST, SharedStr, has_extension, unusable};

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
    let images: Vec<&SharedStr> = images.into_iter().filter(|key| !masks.contains(&***key)).collect();
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
