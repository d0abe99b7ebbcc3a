//! Real images of the samples, as targets.

use std::path::Path;

use anyhow::{Context, Result};
use dataset::{ClassIndex, Dataset, Entry};
use engine::LoadedModel;
use projector::Target;
use proto::Params;
use store::{Allowed, Store};
use tch::Tensor;

const IMAGES: &str = "images/";

/// Names and targets of the images whose file name is `wanted`, sorted; the seed is the place in that order.
pub fn targets(model: &LoadedModel, samples: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Target)>> {
    let r = model.reference.resolution;
    let classes = ClassIndex::new(&model.manifest.classes);
    let images = read(samples)?.entries.into_iter().map(|entry| match entry {
        Entry::Image(image) => Ok(image),
        Entry::Bad { image, message, .. } => {
            anyhow::bail!("cannot use {} of {}: {message}", &*image, samples.display())
        }
    });
    let images = images.collect::<Result<Vec<_>>>()?;
    let name = |key: &str| key.strip_prefix(IMAGES).unwrap_or(key).to_owned();
    let images = images.iter().filter(|image| wanted(&name(&image.key))).enumerate();
    images
        .map(|(seed, image)| {
            let class = classes.find(&image.class_name);
            let class = class.with_context(|| format!("the model has no class {}", &*image.class_name))?;
            let path = samples.join(&*image.key);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let decoded = engine::codec::decode(&bytes, image.bbox.as_deref().copied(), r)?;
            let pixels = Tensor::from_slice(&decoded.pixels).view([3, i64::from(r), i64::from(r)]);
            let target =
                Target { image: pixels, bbox: decoded.bbox, mask: None, class: class.into(), likely: vec![], seed: seed as u64 };
            Ok((name(&image.key), target))
        })
        .collect()
}

/// Names of the classes in the annotations, sorted.
pub fn classes(samples: &Path) -> Result<Vec<String>> {
    let names = read(samples)?.entries.into_iter().filter_map(|entry| match entry {
        Entry::Image(image) => Some(image.class_name.to_string()),
        Entry::Bad { .. } => None,
    });
    Ok(names.collect::<std::collections::BTreeSet<_>>().into_iter().collect())
}

fn read(samples: &Path) -> Result<Dataset> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(async {
        let store = Store::open(&samples.to_string_lossy()).await?;
        Ok(dataset::read(&store, "auto", &Params::paper().object, &Allowed::default()).await?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_are_read_in_the_order_of_their_annotations() {
        let samples = harness::root().join("samples");
        let read = read(&samples).unwrap();
        let annotations = std::fs::read(samples.join("annotations.json")).unwrap();
        let annotations: serde_json::Value = serde_json::from_slice(&annotations).unwrap();
        let images = annotations["images"].as_array().unwrap();
        let names: Vec<String> = images.iter().map(|image| format!("{IMAGES}{}", image["file_name"].as_str().unwrap())).collect();
        assert_eq!(read.entries.iter().map(|entry| entry.image()).collect::<Vec<_>>(), names);
        assert!(read.entries.iter().all(|entry| matches!(entry, Entry::Image(image) if image.bbox.is_some())));
    }
}
