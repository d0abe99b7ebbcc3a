//! The sample data set: real test images as PNG with annotations in COCO's format, half of them centred as in
//! the training data, half smaller, darker and off the centre of a larger canvas, for the transform search.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{GrayImage, Luma};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::data::{CLASSES, SIZE, Split};
use crate::folder::write_json;

/// Width and height of the larger canvas.
const CANVAS: u32 = 64;
/// Width of the image on the canvas, in canvas widths.
const SCALE: std::ops::Range<f64> = 0.5..1.0;
const BRIGHTNESS: std::ops::Range<f64> = 0.6..0.95;
/// The object's box is off the centre by at least this in x or in y, in canvas widths.
const OFF_CENTRE: f64 = 0.08;
/// Pixels brighter than this belong to the object.
const THRESHOLD: u8 = 16;

/// The images of a data set.
#[derive(Clone, Copy, clap::Args)]
pub struct Choice {
    /// Kind of the images; by default half of each.
    #[arg(long, value_enum, default_value_t = SampleKind::Both)]
    kind: SampleKind,
    /// Number of images.
    #[arg(long, default_value_t = 64)]
    number: usize,
    /// Number of images to skip first: the sample data set has the first 64.
    #[arg(long, default_value_t = 0)]
    after: usize,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum SampleKind {
    /// The first half centred, the others not.
    Both,
    /// As in the training data.
    Centred,
    /// Smaller, darker and off the centre of a larger canvas.
    Offcentre,
}

impl Choice {
    fn is_centred(self, n: usize) -> bool {
        match self.kind {
            SampleKind::Both => n < self.number / 2,
            SampleKind::Centred => true,
            SampleKind::Offcentre => false,
        }
    }
}

/// The change of a test image. The image with its border, `SIZE` wide, covers `scale * canvas` pixels from `offset`
/// on (both axes, bilinear), and its grey values are multiplied by `brightness`.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Recipe {
    file_name: String,
    class: &'static str,
    /// In Fashion-MNIST's test set.
    test_index: i64,
    canvas: u32,
    scale: f64,
    /// (x, y) of the image's corner in pixels of the canvas.
    offset: [f64; 2],
    brightness: f64,
    /// Scale, offset and brightness were drawn from it.
    seed: Option<u64>,
}

impl Recipe {
    /// The test image itself.
    fn unchanged(file_name: String, class: &'static str, test_index: i64) -> Recipe {
        let (canvas, scale, offset, brightness) = (SIZE as u32, 1.0, [0.0; 2], 1.0);
        Recipe { file_name, class, test_index, canvas, scale, offset, brightness, seed: None }
    }
}

/// Writes `images/`, `annotations.json` and `recipe.json` under `out`. The same seed writes the same files.
pub fn write(data: &Split, out: &Path, choice: Choice, seed: u64) -> Result<()> {
    let folder = out.join("images");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut images = Vec::new();
    let mut annotations = Vec::new();
    let recipes = recipes_of(data, choice, seed)?;
    for (i, recipe) in recipes.iter().enumerate() {
        let image = render(&pixels(data, recipe.test_index)?, recipe);
        let path = folder.join(&recipe.file_name);
        image.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let id = i + 1;
        let bbox = bright_box(&image).with_context(|| format!("{} has no bright pixel", recipe.file_name))?;
        images.push(CocoImage { id, file_name: recipe.file_name.clone(), width: recipe.canvas, height: recipe.canvas });
        annotations.push(CocoAnnotation {
            id,
            image_id: id,
            category_id: category(recipe.class),
            bbox,
            area: bbox[2] * bbox[3],
            iscrowd: 0,
        });
    }
    let categories = CLASSES.iter().map(|&name| CocoCategory { id: category(name), name }).collect();
    write_json(&out.join("annotations.json"), &Coco { images, annotations, categories })?;
    write_json(&out.join("recipe.json"), &recipes)
}

#[derive(Serialize)]
struct Coco {
    images: Vec<CocoImage>,
    annotations: Vec<CocoAnnotation>,
    categories: Vec<CocoCategory>,
}

#[derive(Serialize)]
struct CocoImage {
    id: usize,
    file_name: String,
    width: u32,
    height: u32,
}

#[derive(Serialize)]
struct CocoAnnotation {
    id: usize,
    image_id: usize,
    category_id: usize,
    bbox: [u32; 4],
    area: u32,
    iscrowd: u8,
}

#[derive(Serialize)]
struct CocoCategory {
    id: usize,
    name: &'static str,
}

/// COCO counts from 1.
fn category(class: &str) -> usize {
    1 + CLASSES.iter().position(|&c| c == class).expect("recipes name classes of the list")
}

/// Chooses the images: the classes in turn, within a class at random, no image twice.
fn recipes_of(data: &Split, choice: Choice, seed: u64) -> Result<Vec<Recipe>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut by_class = data.by_class();
    by_class.iter_mut().for_each(|indices| indices.shuffle(&mut rng));
    let mut recipes = Vec::new();
    for i in 0..choice.number {
        let at = choice.after + i;
        let (class, number) = (at % CLASSES.len(), at / CLASSES.len());
        let test_index = *by_class[class].get(number).with_context(|| format!("too few images of {}", CLASSES[class]))?;
        let centred = choice.is_centred(i);
        let kind = if centred { "centred" } else { "offcentre" };
        let file_name = format!("{}_{number:02}_{kind}.png", slug(CLASSES[class]));
        let recipe = Recipe::unchanged(file_name, CLASSES[class], test_index);
        recipes.push(if centred { recipe } else { displace(recipe, &pixels(data, test_index)?, rng.random()) });
    }
    recipes.sort_by(|a, b| a.file_name.cmp(&b.file_name));
    Ok(recipes)
}

/// Draws scale and brightness, and an offset that keeps the object on the canvas but off its centre.
fn displace(recipe: Recipe, image: &GrayImage, seed: u64) -> Recipe {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let canvas = f64::from(CANVAS);
    let [left, top, width, height] = bright_box(image).unwrap_or([0, 0, SIZE as u32, SIZE as u32]).map(f64::from);
    loop {
        let scale: f64 = round(rng.random_range(SCALE));
        let zoom = scale * canvas / SIZE as f64;
        // Half a canvas pixel of blur, and half of margin.
        let mut offset = |start: f64, length: f64| {
            let (low, high) = (1.0 - start * zoom, canvas - 1.0 - (start + length) * zoom);
            (low <= high).then(|| round(rng.random_range(low..=high)))
        };
        let (Some(x), Some(y)) = (offset(left, width), offset(top, height)) else { continue };
        let off = |offset: f64, start: f64, length: f64| (offset + (start + length / 2.0) * zoom) / canvas - 0.5;
        if off(x, left, width).abs().max(off(y, top, height).abs()) >= OFF_CENTRE {
            let brightness = round(rng.random_range(BRIGHTNESS));
            return Recipe { canvas: CANVAS, scale, offset: [x, y], brightness, seed: Some(seed), ..recipe };
        }
    }
}

/// The recipe has decimals, and its numbers are exactly those.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// `t_shirt_top` of `T-shirt/top`.
fn slug(class: &str) -> String {
    class.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

fn pixels(data: &Split, index: i64) -> Result<GrayImage> {
    let values: Vec<u8> = Vec::try_from(data.images.get(index).view([-1]))?;
    ensure!(values.len() == (SIZE * SIZE) as usize, "image {index} has {} pixels", values.len());
    Ok(GrayImage::from_raw(SIZE as u32, SIZE as u32, values).expect("the length was checked"))
}

fn render(image: &GrayImage, recipe: &Recipe) -> GrayImage {
    let zoom = recipe.scale * f64::from(recipe.canvas) / SIZE as f64;
    let [left, top] = recipe.offset;
    GrayImage::from_fn(recipe.canvas, recipe.canvas, |x, y| {
        let source = |at: u32, offset: f64| (f64::from(at) + 0.5 - offset) / zoom - 0.5;
        let value = bilinear(image, source(x, left), source(y, top)) * recipe.brightness;
        Luma([value.round() as u8])
    })
}

/// Pixels are at whole positions; outside of the image it is dark.
fn bilinear(image: &GrayImage, x: f64, y: f64) -> f64 {
    let (left, top) = (x.floor(), y.floor());
    let at = |x: f64, y: f64| {
        let inside = x >= 0.0 && y >= 0.0 && x < f64::from(image.width()) && y < f64::from(image.height());
        if inside { f64::from(image.get_pixel(x as u32, y as u32).0[0]) } else { 0.0 }
    };
    let across = |y: f64| at(left, y) * (1.0 - (x - left)) + at(left + 1.0, y) * (x - left);
    across(top) * (1.0 - (y - top)) + across(top + 1.0) * (y - top)
}

/// Left, top, width and height of the pixels above the threshold.
fn bright_box(image: &GrayImage) -> Option<[u32; 4]> {
    let bright = || image.enumerate_pixels().filter(|(_, _, p)| p.0[0] > THRESHOLD);
    let (left, right) = (bright().map(|p| p.0).min()?, bright().map(|p| p.0).max()?);
    let (top, bottom) = (bright().map(|p| p.1).min()?, bright().map(|p| p.1).max()?);
    Some([left, top, right - left + 1, bottom - top + 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(size: u32) -> GrayImage {
        GrayImage::from_fn(SIZE as u32, SIZE as u32, |x, y| {
            let start = (SIZE as u32 - size) / 2;
            let inside = |v| (start..start + size).contains(&v);
            Luma([if inside(x) && inside(y) { 200 } else { 0 }])
        })
    }

    fn recipe() -> Recipe {
        Recipe::unchanged("bag_00_centred.png".into(), "Bag", 0)
    }

    #[test]
    fn a_centred_sample_is_the_image_itself() {
        assert_eq!(render(&square(10), &recipe()), square(10));
    }

    #[test]
    fn the_recipe_says_where_the_object_is() {
        let twice = Recipe { canvas: 64, scale: 1.0, offset: [4.0, -6.0], brightness: 0.5, ..recipe() };
        let image = render(&square(10), &twice);
        // Corners 11 and 21, twice as far, moved, and half a source pixel of blur around.
        assert_eq!(bright_box(&image), Some([25, 15, 22, 22]));
        assert_eq!(image.get_pixel(36, 26).0, [100]);
    }

    #[test]
    fn displaced_objects_stay_whole_and_off_the_centre() {
        for seed in 0..200 {
            let image = square(6 + 2 * (seed % 12) as u32);
            let recipe = displace(recipe(), &image, seed);
            assert_eq!(recipe, displace(self::recipe(), &image, seed));
            let [left, top, width, height] = bright_box(&render(&image, &recipe)).unwrap();
            let off = |start: u32, length: u32| (f64::from(start) + f64::from(length) / 2.0 - 32.0).abs() / 64.0;
            assert!(off(left, width).max(off(top, height)) > OFF_CENTRE - 0.02, "{recipe:?}");
            let lit = f64::from(width * height) / (recipe.scale * 2.0 * f64::from(bright_box(&image).unwrap()[2])).powi(2);
            assert!(lit > 0.9, "{recipe:?} cuts the object");
        }
    }

    #[test]
    fn names_are_plain() {
        assert_eq!(slug("T-shirt/top"), "t_shirt_top");
        assert_eq!(slug("Ankle boot"), "ankle_boot");
    }
}
