//! Real images of the samples, as targets.

use std::path::Path;

use anyhow::{Context, Result};
use engine::LoadedModel;
use projector::Target;
use proto::Box2d;
use serde::Deserialize;
use tch::Tensor;

#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    annotations: Vec<CocoAnnotation>,
    categories: Vec<CocoCategory>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
}

#[derive(Deserialize)]
struct CocoAnnotation {
    image_id: u64,
    category_id: u64,
    bbox: [f64; 4],
}

#[derive(Deserialize)]
struct CocoCategory {
    id: u64,
    name: String,
}

/// The images whose file's name is `wanted`, in the order of the annotations; the seed is the place in it.
pub fn targets(model: &LoadedModel, samples: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Target)>> {
    let path = samples.join("annotations.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let coco: Coco = serde_json::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    let r = model.reference.resolution;
    let images = coco.images.iter().filter(|i| wanted(&i.file_name)).enumerate();
    images
        .map(|(seed, image)| {
            let found = coco.annotations.iter().find(|a| a.image_id == image.id);
            let annotation = found.with_context(|| format!("{} has no annotation", image.file_name))?;
            let category = coco.categories.iter().find(|c| c.id == annotation.category_id).context("unknown category")?;
            let class = model.manifest.classes.iter().position(|c| *c == category.name).context("a class of another model")?;
            let [x, y, width, height] = annotation.bbox;
            let path = samples.join("images").join(&image.file_name);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let decoded = engine::codec::decode(&bytes, Some(Box2d { x, y, width, height }), r)?;
            let pixels = Tensor::from_slice(&decoded.pixels).view([3, i64::from(r), i64::from(r)]);
            let target = Target { image: pixels, bbox: decoded.bbox, mask: None, class: class as i64, seed: seed as u64 };
            Ok((image.file_name.clone(), target))
        })
        .collect()
}
