//! `basin study bias`: where a data set and a generator have their objects (the paper's Figures 3 and 4).

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use dataset::{DatasetImage, Entry};
use engine::calibrate::Source;
use engine::{Devices, codec};
use proto::{Box2d, ClassSource, MaskSource, Object};
use results::chart::figure::{Panel, histograms};
use results::run::spread;
use serde::Serialize;
use store::{Allowed, Store};

use super::files::{self, Figure};
use super::markdown::{provenance, table};
use super::measured::mean;
use super::page::Provenance;
use crate::models::{SOURCES, can_find, one_of, sample_boxes};
use crate::project::{described, load};

const CELLS: usize = 20;

#[derive(clap::Args)]
pub struct Bias {
    /// Folder or bucket (s3://bucket/prefix) of the images.
    dataset: String,
    /// Model folder.
    #[arg(long, env = "BASIN_MODEL")]
    model: PathBuf,
    /// Folder or bucket (s3://bucket/prefix) for the figure and the numbers.
    #[arg(long, env = "BASIN_OUT")]
    out: String,
    /// COCO JSON or CSV manifest with boxes; `auto` looks for one.
    #[arg(long, default_value = "auto")]
    annotations: String,
    /// How to find the object in a generated image. Default: the model's detector, or `foreground` for a model without one.
    #[arg(long, value_parser = one_of(SOURCES))]
    mask_from: Option<Source>,
    /// Number of images to generate.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Use only this many images, evenly spread over the data set.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Where to compute: `auto`, `cpu` or `cuda:0`.
    #[arg(long, default_value = "auto", env = "BASIN_DEVICES")]
    devices: String,
}

/// `bias.json`.
#[derive(Clone, Debug, Serialize)]
struct BiasNumbers {
    format: u32,
    #[serde(flatten)]
    provenance: Provenance,
    samples: u32,
    /// The way in which objects were found in them.
    found_by: &'static str,
    /// Objects in the data set's images and in the generated ones.
    objects: [usize; 2],
    /// Images of the data set that have no box, or cannot be read.
    without: usize,
    /// In parts of the frame.
    axes: [Axis; 4],
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Axis {
    name: &'static str,
    dataset: Distribution,
    generator: Distribution,
    /// The part that both histograms share: 1 if they are equal, 0 if they do not overlap.
    overlap: f64,
}

/// Numbers from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Distribution {
    mean: f64,
    deviation: f64,
    /// In each of [`CELLS`] equally wide cells.
    counts: Vec<u32>,
}

impl Distribution {
    /// `values` must not be empty.
    fn of(values: &[f64]) -> Distribution {
        let centre = mean(values);
        let squares: Vec<f64> = values.iter().map(|value| (value - centre).powi(2)).collect();
        let mut counts = vec![0; CELLS];
        for value in values {
            counts[((value * CELLS as f64) as usize).min(CELLS - 1)] += 1;
        }
        Distribution { mean: centre, deviation: mean(&squares).sqrt(), counts }
    }

    fn overlap(&self, other: &Distribution) -> f64 {
        let [all, all_others] = [self, other].map(|of| f64::from(of.counts.iter().sum::<u32>()));
        let pairs = self.counts.iter().zip(&other.counts);
        pairs.map(|(&a, &b)| (f64::from(a) / all).min(f64::from(b) / all_others)).sum()
    }
}

/// The distributions of boxes in a frame that is `side` wide and high; neither list may be empty.
fn axes(dataset: &[Box2d], generator: &[Box2d], side: f64) -> [Axis; 4] {
    type Number = fn(&Box2d, f64) -> f64;
    let numbers: [(_, Number); 4] = [
        ("centre x", |b, side| b.x / side + b.width / side / 2.0),
        ("centre y", |b, side| b.y / side + b.height / side / 2.0),
        ("width", |b, side| b.width / side),
        ("height", |b, side| b.height / side),
    ];
    numbers.map(|(name, of)| {
        let distribution = |boxes: &[Box2d]| Distribution::of(&boxes.iter().map(|b| of(b, side)).collect::<Vec<_>>());
        let (dataset, generator) = (distribution(dataset), distribution(generator));
        Axis { name, overlap: dataset.overlap(&generator), dataset, generator }
    })
}

impl Bias {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let (manifest, reference) = described(&self.model)?;
        let detector = if manifest.detector.is_some() { Source::DetectorBox } else { Source::Foreground };
        let source = self.mask_from.unwrap_or(detector);
        can_find(source, &manifest)?;
        let devices: Devices = self.devices.parse().map_err(anyhow::Error::msg).context("--devices")?;
        let dataset = Store::open(&self.dataset).await.context("cannot open the data set")?;
        let out = Store::open(&self.out).await.context("cannot open --out")?;
        let resolution = manifest.generator.resolution;
        let (real, without) = boxes(&dataset, &self.annotations, self.limit.map(Into::into), resolution).await?;
        let mask = if source == Source::Foreground { MaskSource::Box } else { MaskSource::DetectorBox };
        let model = load(self.model, Object { class: ClassSource::Annotation, mask }).await?;
        let samples = (self.samples as usize, self.seed);
        let generated = tokio::task::spawn_blocking(move || sample_boxes(&model, &devices, source, samples)).await??;
        let found = BiasNumbers {
            format: 1,
            provenance: Provenance::new(self.dataset, &reference),
            samples: self.samples,
            found_by: match source {
                Source::Foreground => "their difference from the background",
                Source::DetectorBox | Source::DetectorMask => "the model's detector",
            },
            objects: [real.len(), generated.len()],
            without,
            axes: axes(&real, &generated, resolution.into()),
        };
        let alt = "Histograms of the objects' centres and sizes".to_owned();
        let figure = Figure { file: "bias.svg".into(), alt, bytes: drawing(&found).into_bytes() };
        files::write(&out, "bias", &found, &markdown(&found, &figure), &[figure]).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Boxes of a data set in pixels of the generator's frame, and the number of images without one.
async fn boxes(dataset: &Store, annotations: &str, limit: Option<usize>, resolution: u32) -> anyhow::Result<(Vec<Box2d>, usize)> {
    // Images without a class have boxes, too.
    let object = Object { class: ClassSource::Classifier, mask: MaskSource::Box };
    let read = dataset::read(dataset, annotations, &object, &Allowed::default()).await.context("cannot read the data set")?;
    for note in &read.notes {
        note!("{note}");
    }
    let (mut boxes, mut without) = (Vec::new(), 0);
    for entry in spread(read.entries, limit) {
        let Entry::Image(DatasetImage { key, bbox: Some(bbox), .. }) = entry else {
            without += 1;
            continue;
        };
        match codec::decode(&dataset.get(&key).await?, Some(*bbox), resolution) {
            Ok(decoded) => boxes.extend(decoded.bbox),
            Err(error) => {
                note!("{key:?} {error}");
                without += 1;
            }
        }
    }
    if boxes.is_empty() {
        bail!("no image of {} has a box: name a COCO file or a CSV manifest with boxes by --annotations", dataset.url());
    }
    Ok((boxes, without))
}

fn drawing(found: &BiasNumbers) -> String {
    let panels: Vec<Panel> =
        found.axes.iter().map(|axis| Panel { name: axis.name, counts: [&axis.generator.counts, &axis.dataset.counts] }).collect();
    let [real, generated] = found.objects;
    let names = [format!("{}: {generated} objects", found.provenance.model), format!("data set: {real} objects")];
    histograms("Where objects are, and how large, in parts of the frame", [&names[0], &names[1]], &panels)
}

fn markdown(found: &BiasNumbers, figure: &Figure) -> String {
    let BiasNumbers { samples, found_by, objects: [real, generated], without, .. } = found;
    let boxes = format!(
        "{real} of the data set ({without} images have none or cannot be read); {generated} in {samples} generated images, found by \
         {found_by}"
    );
    let mut about = provenance(&found.provenance);
    about.push(vec!["boxes".to_owned(), boxes]);
    let spread = |d: &Distribution| format!("{:.3} ± {:.3}", d.mean, d.deviation);
    let axis =
        |axis: &Axis| vec![axis.name.to_owned(), spread(&axis.dataset), spread(&axis.generator), format!("{:.3}", axis.overlap)];
    format!(
        "# Objects of a data set and of a generator (the paper's Figures 3 and 4)\n\n{}\nIn parts of the frame, which is the square \
         window of an image that a projection sees. Mean and standard deviation; overlap: the part that both histograms share, 1 if they \
         are equal.\n\n{}\n![{}]({})\n",
        table(&["", ""], 2, about),
        table(&["", "data set", "generator", "overlap"], 0, found.axes.iter().map(axis)),
        figure.alt,
        figure.file,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_counts_once_on_each_axis() {
        let square = |x: f64, side: f64| Box2d { x, y: 0.0, width: side, height: side };
        let found = axes(&[square(0.0, 1.0), square(1.0, 1.0)], &[square(0.0, 2.0), square(0.0, 1.0)], 2.0);
        assert_eq!(found.each_ref().map(|axis| axis.overlap), [0.5, 0.5, 0.5, 0.5]);
        let [x, .., height] = &found;
        assert_eq!((x.dataset.mean, x.dataset.deviation), (0.5, 0.25));
        // The whole frame lies in the last cell.
        assert_eq!((height.generator.counts[CELLS - 1], height.generator.counts[CELLS / 2]), (1, 1));
        assert_eq!(x.generator.counts.iter().sum::<u32>(), 2);
    }
}
