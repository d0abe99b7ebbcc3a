//! Edits of projected images (*io*): reads a result, changes its latents, renders, inverts and blends (paper, "Image Edits").

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Cursor;

use bytes::Bytes;
use projector::blend::{self, BlendError, Region};
use projector::delta::DeltaError;
use projector::{Delta, Edit, Generator, edit, transform};
use proto::keys::{self, Item, Marker};
use proto::{FineTuned, ResultRecord, Transform, hex_sha256};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use store::{ErrorKind, Store};
use tch::{Device, Kind, Tensor};

use crate::LoadedModel;
use crate::codec::{self, Bitmap};
use crate::find::bitmap;
use crate::supply::SupplyError;

/// Principal directions that have a name: `pc1` to `pc16`.
const PRINCIPAL: usize = 16;
/// Share of a pixel that must come from inside the generator's image, or it is not blended.
const COVERED: f64 = 0.999;

/// A requested edit. The default changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EditRequest {
    /// Name of another class; `None`: as it is.
    pub class: Option<String>,
    /// Share of that class; 1 replaces the image's own.
    pub strength: f64,
    /// Directions by name, and how far to move z along each.
    pub moves: BTreeMap<String, f64>,
    /// Factor of z.
    pub truncation: f64,
    /// Use the generator that was fitted to the image, if there is one.
    pub fine_tuned: bool,
}

impl Default for EditRequest {
    fn default() -> EditRequest {
        EditRequest { class: None, strength: 1.0, moves: BTreeMap::new(), truncation: 1.0, fine_tuned: true }
    }
}

impl EditRequest {
    /// From fields of a query: `class`, `strength`, `truncation`, `fine_tuned`, and `move.<direction>` for each direction.
    pub fn from_fields(fields: Vec<(String, String)>) -> Result<EditRequest, EditError> {
        let bad = |name: &str, value: &str, what: &str| EditError::Request(format!("{name} is {value:?}: expected {what}"));
        let mut request = EditRequest::default();
        for (name, value) in fields {
            let number = || value.parse::<f64>().map_err(|_| bad(&name, &value, "a number"));
            match name.as_str() {
                "class" => request.class = Some(value).filter(|class| !class.is_empty()),
                "strength" => request.strength = number()?,
                "truncation" => request.truncation = number()?,
                "fine_tuned" => request.fine_tuned = value.parse().map_err(|_| bad(&name, &value, "true or false"))?,
                _ => match name.strip_prefix("move.") {
                    Some(direction) => {
                        request.moves.insert(direction.to_owned(), number()?);
                    }
                    None => return Err(EditError::Request(format!("unknown field {name:?}"))),
                },
            }
        }
        Ok(request)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("{0}")]
    Request(String),
    #[error("image {image:?} has no result in {place}")]
    NoResult { image: String, place: String },
    #[error("the result of image {image:?} was made by model {theirs}, and the loaded model is {ours}")]
    OtherModel { image: String, theirs: String, ours: String },
    #[error("{file} of image {image:?} is damaged: {problem}")]
    Damaged { image: String, file: &'static str, problem: String },
    #[error("cannot use the weight delta of image {image:?}")]
    Delta { image: String, source: DeltaError },
    #[error("cannot read the result of image {image:?}")]
    Store { image: String, source: store::Error },
    #[error("cannot load the model of image {image:?}")]
    Model { image: String, source: Box<SupplyError> },
    #[error("the editor failed at this request: its log says why")]
    Ended,
    #[error("cannot blend the edit into the image")]
    Blend(#[from] BlendError),
}

/// The three pictures of an edit, `[3, r, r]` flat in [-1, 1].
pub struct Edited {
    pub generated: Vec<f32>,
    /// The same in the target's frame.
    pub inverted: Vec<f32>,
    /// The same blended into the target.
    pub blended: Vec<f32>,
}

/// A projected image, ready to be edited.
pub struct Projected {
    pub record: ResultRecord,
    pub stored: Stored,
    /// The generator that was fitted to the image, with its delta.
    pub tuned: Option<(Box<dyn Generator>, Delta)>,
}

/// Reads the record of an image's result.
pub(crate) async fn read_record(results: &Store, image: &str) -> Result<ResultRecord, EditError> {
    keys::check_image(image).map_err(|problem| EditError::Request(format!("image {image:?} {problem}")))?;
    let bytes = results.get(&keys::marker(image, Marker::Result)).await.map_err(|source| match source.kind() {
        ErrorKind::NotFound => EditError::NoResult { image: image.to_owned(), place: results.url() },
        _ => EditError::Store { image: image.to_owned(), source },
    })?;
    serde_json::from_slice(&bytes).map_err(|e| damaged(image, Marker::Result.file(), &e))
}

fn damaged(image: &str, file: &'static str, problem: &dyn Display) -> EditError {
    EditError::Damaged { image: image.to_owned(), file, problem: problem.to_string() }
}

/// Directions that requests may name: the model's own, then the principal ones.
pub fn directions(model: &LoadedModel) -> BTreeMap<String, Vec<f32>> {
    let principal = edit::principal(&*model.model.generator, PRINCIPAL).into_iter().enumerate();
    let named = principal.map(|(k, direction)| (format!("pc{}", k + 1), direction));
    named.chain(model.directions.iter().map(|(name, direction)| (name.clone(), direction.clone()))).collect()
}

/// An image's result as the store has it, with all seeds.
pub struct Stored {
    /// The image in the generator's size, `[3, r, r]` flat in [-1, 1].
    pub target: Vec<f32>,
    /// The object's pixels, `[1, 1, r, r]`: one inside.
    pub(crate) inside: Tensor,
    /// One row for each seed, as in `c`.
    pub(crate) z: Vec<Vec<f32>>,
    pub(crate) c: Vec<Vec<f32>>,
}

impl Stored {
    /// Reads what belongs to a record of this model.
    pub(crate) async fn read(record: &ResultRecord, results: &Store, model: &LoadedModel) -> Result<Stored, EditError> {
        let image = record.image.as_str();
        if record.model.digest != model.reference.digest {
            let name = |m: &proto::ModelRef| format!("{} ({})", m.name, m.digest.get(..12).unwrap_or(&m.digest));
            let (theirs, ours) = (name(&record.model), name(&model.reference));
            return Err(EditError::OtherModel { image: image.to_owned(), theirs, ours });
        }
        let r = model.reference.resolution;
        let picture = async |item: Item| {
            let decoded = codec::decode(&read_item(record, results, item).await?, None, r);
            decoded.map(|decoded| decoded.pixels).map_err(|error| damaged(image, item.file(), &error))
        };
        let target = picture(Item::Target).await?;
        let projection = read_item(record, results, Item::Projection).await?;
        let (generator, seeds) = (&*model.model.generator, record.seeds.len());
        let latents = rows(&projection, "z", seeds, generator.latent_dim())
            .and_then(|z| Ok((z, rows(&projection, "c", seeds, generator.embed_dim())?)));
        let (z, c) = latents.map_err(|problem| damaged(image, Item::Projection.file(), &problem))?;
        let inside = match record.mask {
            true => {
                let mask = picture(Item::Mask).await?;
                let r = r as usize;
                Tensor::from_slice(&mask[..r * r]).view([1, 1, r as i64, r as i64]).gt(0.0).to_kind(Kind::Float)
            }
            false => projector::mask::binary(record.target_bbox, r.into()),
        };
        Ok(Stored { target, inside, z, c })
    }
}

/// Reads an object of a result, whole.
async fn read_item(record: &ResultRecord, results: &Store, item: Item) -> Result<Bytes, EditError> {
    let damaged = |problem: &str| damaged(&record.image, item.file(), &problem);
    let bytes = results.get(&keys::item(&record.image, &record.attempt, item)).await.map_err(|source| match source.kind() {
        ErrorKind::NotFound => damaged("it is missing"),
        _ => EditError::Store { image: record.image.clone(), source },
    })?;
    let named = record.objects.iter().find(|object| object.file == item.file());
    match named.is_some_and(|object| object.sha256 == hex_sha256(&bytes)) {
        true => Ok(bytes),
        false => Err(damaged("its SHA-256 is not the one in result.json")),
    }
}

impl Projected {
    /// Reads the result of an image, and its tuned weights if there are any.
    pub async fn read(results: &Store, image: &str, model: &LoadedModel) -> Result<Projected, EditError> {
        Projected::of(read_record(results, image).await?, results, model).await
    }

    /// Reads what belongs to a record.
    pub(crate) async fn of(record: ResultRecord, results: &Store, model: &LoadedModel) -> Result<Projected, EditError> {
        let stored = Stored::read(&record, results, model).await?;
        let generator = &*model.model.generator;
        let tuned = match record.fine_tuned {
            Some(FineTuned::Kept { .. }) => {
                let bytes = read_item(&record, results, Item::Delta).await?;
                let delta = Delta::read(Cursor::new(bytes), &record.model.digest, generator);
                let delta = delta.map_err(|source| EditError::Delta { image: record.image.clone(), source })?;
                let tuned = generator.replicate(Device::Cpu);
                delta.apply(&*tuned);
                Some((tuned, delta))
            }
            _ => None,
        };
        Ok(Projected { record, stored, tuned })
    }

    /// Renders an edit. `directions` are those of the model.
    pub fn edit(
        &self,
        model: &LoadedModel,
        directions: &BTreeMap<String, Vec<f32>>,
        request: &EditRequest,
    ) -> Result<Edited, EditError> {
        let _no_grad = tch::no_grad_guard();
        let Projected { record, stored, tuned } = self;
        let (generator, z, c, transform) = match tuned {
            Some((tuned, delta)) if request.fine_tuned => (&**tuned, &delta.z, &delta.c, delta.transform.as_ref()),
            _ => (&*model.model.generator, &stored.z[record.best], &stored.c[record.best], record.transform.as_ref()),
        };
        let (z, c) = validated(model, directions, request)?.latents(generator, z, c);
        let generated = generator.generate(&z, &c);
        if generated.isfinite().all().int64_value(&[]) == 0 {
            let why = "the edit goes so far that the generator's image is not finite: take smaller values";
            return Err(EditError::Request(why.into()));
        }
        let align_corners = record.params.align_corners();
        let inverted = match transform {
            Some(t) => transform::invert(&generated, std::slice::from_ref(t), align_corners),
            None => generated.shallow_clone(),
        };
        let inverted = floats(&inverted);
        let r = model.reference.resolution as usize;
        let covered = bitmap(&covered(&stored.inside, transform, align_corners).gt(0.5).view([r as i64; 2]));
        let mask: Vec<bool> = covered.inside.iter().map(|&v| v != 0).collect();
        // Without a mask the object is a rectangle.
        let region = if record.mask { Region::Mask(&mask) } else { rectangle(&covered) };
        let blended = blend::blend(&stored.target, &inverted, &region, r, r)?;
        Ok(Edited { generated: floats(&generated), inverted, blended })
    }
}

/// The request in the method's terms, validated.
fn validated(model: &LoadedModel, directions: &BTreeMap<String, Vec<f32>>, request: &EditRequest) -> Result<Edit, EditError> {
    let finite = |what: &str, value: f64| match value.is_finite() && value.abs() <= 1e3 {
        true => Ok(value),
        false => Err(EditError::Request(format!("{what} is {value}: expected a number from -1000 to 1000"))),
    };
    let index = |name: &String| {
        let classes = &model.manifest.classes;
        let unknown = || {
            let (n, some) = (classes.len(), classes[..classes.len().min(20)].join(", "));
            EditError::Request(format!("the model has no class {name:?}; it has {n} classes: {some}"))
        };
        classes.iter().position(|class| class == name).ok_or_else(unknown)
    };
    let class = match &request.class {
        Some(name) => Some((index(name)? as i64, finite("strength", request.strength)?)),
        None => None,
    };
    let moves = request.moves.iter().map(|(name, far)| {
        let direction = directions.get(name).ok_or_else(|| {
            let known = directions.keys().cloned().collect::<Vec<_>>().join(", ");
            EditError::Request(format!("unknown direction {name:?}: the model has {known}"))
        })?;
        Ok((direction.clone(), finite(name, *far)?))
    });
    Ok(Edit { class, moves: moves.collect::<Result<_, EditError>>()?, truncation: finite("truncation", request.truncation)? })
}

/// The object's pixels that the generator's image covers.
fn covered(inside: &Tensor, transform: Option<&Transform>, align_corners: bool) -> Tensor {
    let Some(t) = transform else { return inside.shallow_clone() };
    // Colours have no influence on what is covered.
    let spatial = Transform { colour: vec![], ..t.clone() };
    let seen = transform::invert(&Tensor::ones_like(inside), &[spatial], align_corners);
    inside * seen.gt(COVERED)
}

/// The smallest rectangle that holds what is inside; it is empty if nothing is.
fn rectangle(inside: &Bitmap) -> Region<'static> {
    let sides = inside.extent().map_or([0.0; 4], |b| [b.x, b.y, b.x + b.width, b.y + b.height]);
    let [left, top, right, bottom] = sides.map(|side| side as usize);
    Region::Rectangle { left, top, right, bottom }
}

fn floats(t: &Tensor) -> Vec<f32> {
    Vec::try_from(t.contiguous().flatten(0, -1)).expect("a float tensor")
}

/// A float32 matrix of a safetensors file.
fn rows(bytes: &[u8], name: &str, rows: usize, width: i64) -> Result<Vec<Vec<f32>>, String> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let view = tensors.tensor(name).map_err(|e| e.to_string())?;
    let (width, shape) = (width as usize, view.shape());
    if view.dtype() != safetensors::Dtype::F32 || shape != [rows, width] {
        return Err(format!("{name} is {:?} {shape:?}, not float32 with {rows} rows of {width}", view.dtype()));
    }
    let number = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("four bytes"));
    Ok(view.data().chunks_exact(4 * width).map(|row| row.chunks_exact(4).map(number).collect()).collect())
}
