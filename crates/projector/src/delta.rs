//! Weight deltas: the change theta - theta_0 that fine-tuning made, as a small file.
//!
//! The file is a safetensors file in one zstd frame, so `zstd -d` and any safetensors reader open it. Each changed weight of the
//! generator has tensors under its name, in the code that meets the tolerance:
//!
//! | code | tensors | value |
//! |---|---|---|
//! | `float32`, `bfloat16` | `<name>` of that type | the tensor |
//! | `int8` | `<name>` int8, as the weight; `<name>.scale` float32 `[rows]` | `scale[row] * q` |
//! | `int4` | `<name>` uint8 `[(n + 1) / 2]`, two values in a byte, the first in the low half; `<name>.scale` | `scale[row] * (q - 8)` |
//! | `low_rank` | `<name>.u` bfloat16 `[rows, rank]`, `<name>.v` bfloat16 `[rank, columns]` | `u v` |
//!
//! A weight `[rows, ...]` counts as a matrix `[rows, columns]`. The file also has `z` and `c`; its one metadata entry holds the
//! digest of the model, the transform, and each layer's code and shape.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::io::{self, Read, Write};

use proto::{DeltaCodec, Transform};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::generator::Generator;

/// Key of the metadata entry.
const ABOUT: &str = "basin delta";
/// zstd's default level. Higher levels do not help, because the data is nearly noise.
const LEVEL: i32 = 3;
/// Largest integer of each code that `auto` tries, the coarsest first; up to 7 fits four bits.
const LEVELS: [u8; 10] = [1, 2, 3, 5, 7, 11, 15, 31, 63, 127];
/// Parts of the largest value of a row that are tried as the largest that is represented: the fewer levels, the more pays off.
const RANGES: [f64; 6] = [1.0, 0.8, 0.65, 0.5, 0.4, 0.3];

/// A generator's change for one image.
#[derive(Debug)]
pub struct Delta {
    layers: Vec<Layer>,
    /// z within the limit, `[latent_dim]`.
    pub z: Vec<f32>,
    /// Class embedding, `[embed_dim]`.
    pub c: Vec<f32>,
    /// phi*, if there was a stage one.
    pub transform: Option<Transform>,
}

#[derive(Debug)]
struct Layer {
    name: String,
    shape: Vec<i64>,
    code: Code,
}

/// All tensors are on the CPU.
#[derive(Debug)]
enum Code {
    /// Float or bfloat16, in the weight's shape.
    Plain(Tensor),
    /// Integers `[rows, columns]` of kind int8 within +-`level`, and scales `[rows]`.
    Integers { q: Tensor, scale: Tensor, level: u8 },
    /// bfloat16 `[rows, rank]` and `[rank, columns]`.
    LowRank { u: Tensor, v: Tensor },
}

/// The metadata entry.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    format: u32,
    /// Digest of the model.
    model: String,
    transform: Option<Transform>,
    layers: BTreeMap<String, Described>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    code: String,
    shape: Vec<i64>,
}

/// Why a file cannot be read as a delta of this model.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// zstd cannot unpack the file.
    #[error("cannot unpack the delta")]
    Unpack(#[source] io::Error),
    /// The unpacked file is not a safetensors file.
    #[error("the delta is not a safetensors file")]
    Tensors(#[source] safetensors::SafeTensorError),
    /// The contents are not those of a delta of this model: a whole sentence.
    #[error("{0}")]
    Contents(String),
}

impl Delta {
    /// Encodes `theta - theta_0`, given by name in the generator's order. `tolerance` is the largest error of `auto` in each layer:
    /// root of squared error over squared size. Other codecs ignore it.
    pub fn encode(differences: &[(String, Tensor)], codec: &DeltaCodec, tolerance: f64) -> Delta {
        let _no_grad = tch::no_grad_guard();
        let layers = differences.iter().filter(|(_, d)| d.count_nonzero(None).int64_value(&[]) > 0).map(|(name, d)| Layer {
            name: name.clone(),
            shape: d.size(),
            code: encode(d, codec, tolerance),
        });
        let mut layers: Vec<Layer> = layers.collect();
        // The order in a file.
        layers.sort_by(|a, b| a.name.cmp(&b.name));
        Delta { layers, z: vec![], c: vec![], transform: None }
    }

    /// Adds the change to a generator's weights.
    ///
    /// # Panics
    /// If the generator belongs to another model than the one it was encoded or read for.
    pub fn apply(&self, generator: &dyn Generator) {
        let _no_grad = tch::no_grad_guard();
        let mut weights: HashMap<String, Tensor> = generator.weights().into_iter().collect();
        for layer in &self.layers {
            let mut weight = weights.remove(&layer.name).expect("a delta of this model");
            let _ = weight.g_add_(&layer.values().to_device(weight.device()));
        }
    }

    /// Number of layers with each code.
    pub fn codes(&self) -> BTreeMap<&'static str, usize> {
        let mut codes = BTreeMap::new();
        for layer in &self.layers {
            *codes.entry(layer.code.name()).or_insert(0) += 1;
        }
        codes
    }

    /// Writes the file, layer by layer. `model` is the digest of the model that was tuned.
    pub fn write(&self, model: &str, to: impl Write) -> io::Result<()> {
        let floats = |values: &[f32]| Tensor::from_slice(values);
        let mut parts = vec![("z".to_owned(), floats(&self.z)), ("c".to_owned(), floats(&self.c))];
        parts.extend(self.layers.iter().flat_map(Layer::parts));
        let layers = self.layers.iter().map(|layer| {
            let described = Described { code: layer.code.name().to_owned(), shape: layer.shape.clone() };
            (layer.name.clone(), described)
        });
        let about = About { format: 1, model: model.to_owned(), transform: self.transform.clone(), layers: layers.collect() };
        let about = serde_json::to_string(&about).expect("plain data serialises");
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::json!({ ABOUT: about }));
        let mut end = 0;
        for (name, tensor) in &parts {
            let begin = end;
            end += bytes_of(tensor);
            let entry =
                serde_json::json!({ "dtype": dtype(tensor.kind()), "shape": tensor.size(), "data_offsets": [begin, end] });
            header.insert(name.clone(), entry);
        }
        let mut header = serde_json::to_vec(&header).expect("plain data serialises");
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut packed = zstd::Encoder::new(to, LEVEL)?;
        packed.include_checksum(true)?;
        packed.write_all(&(header.len() as u64).to_le_bytes())?;
        packed.write_all(&header)?;
        for (_, tensor) in &parts {
            let mut bytes = vec![0; bytes_of(tensor)];
            tensor.contiguous().view_dtype(Kind::Uint8).copy_data_u8(&mut bytes, bytes_of(tensor));
            packed.write_all(&bytes)?;
        }
        packed.finish()?.flush()
    }

    /// Reads a file for a generator of the model with digest `model`.
    pub fn read(from: impl Read, model: &str, generator: &dyn Generator) -> Result<Delta, DeltaError> {
        let _no_grad = tch::no_grad_guard();
        let weights: HashMap<String, Tensor> = generator.weights().into_iter().collect();
        // Each layer in full and once more in scales, and a header.
        let limit = (1 << 20) + weights.iter().map(|(name, w)| 8 * w.numel() as u64 + 8 * name.len() as u64 + 1024).sum::<u64>();
        let mut bytes = Vec::new();
        let mut unpacked = zstd::Decoder::new(from).map_err(DeltaError::Unpack)?.take(limit + 1);
        unpacked.read_to_end(&mut bytes).map_err(DeltaError::Unpack)?;
        if bytes.len() as u64 > limit {
            let problem = format!("the delta unpacks to more than {limit} bytes, the limit for this model");
            return Err(DeltaError::Contents(problem));
        }
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(DeltaError::Tensors)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(DeltaError::Tensors)?;
        let about = header.metadata().as_ref().and_then(|m| m.get(ABOUT));
        let bad = |problem: String| DeltaError::Contents(format!("the delta's metadata {problem}"));
        let about = about.ok_or_else(|| bad(format!("has no entry {ABOUT:?}: the file is not a delta")))?;
        let about: About = serde_json::from_str(about).map_err(|e| bad(format!("cannot be read: {e}")))?;
        if about.format != 1 {
            return Err(bad(format!("has format {}, and this program reads only 1", about.format)));
        }
        if about.model != model {
            let problem = format!("the delta belongs to the model with digest {}, but this model has {model}", about.model);
            return Err(DeltaError::Contents(problem));
        }
        let mut parts = Parts { left: tensors.tensors().into_iter().collect() };
        let floats = |t: Tensor| Vec::<f32>::try_from(t).expect("a vector of floats");
        let z = floats(parts.take("z", Kind::Float, &[generator.latent_dim()])?);
        let c = floats(parts.take("c", Kind::Float, &[generator.embed_dim()])?);
        let mut layers = Vec::new();
        for (name, Described { code, shape }) in about.layers {
            let weight = weights.get(&name).ok_or_else(|| malformed(&name, "is not a weight of the generator"))?;
            if weight.size() != shape {
                let problem = format!("is for a weight of shape {shape:?}, and the generator's has {:?}", weight.size());
                return Err(malformed(&name, problem));
            }
            let code = parts.code(&name, &code, &shape)?;
            layers.push(Layer { name, shape, code });
        }
        match parts.left.into_keys().next() {
            Some(name) => Err(malformed(&name, "belongs to no layer")),
            None => Ok(Delta { layers, z, c, transform: about.transform }),
        }
    }
}

/// The error of a tensor, of which `problem` says the rest of the sentence.
fn malformed(name: &str, problem: impl Display) -> DeltaError {
    DeltaError::Contents(format!("tensor {name} of the delta {problem}"))
}

impl Layer {
    /// The change of the weight, float32 in its shape.
    fn values(&self) -> Tensor {
        match &self.code {
            Code::Plain(tensor) => tensor.to_kind(Kind::Float),
            Code::Integers { q, scale, .. } => (q.to_kind(Kind::Float) * scale.unsqueeze(1)).view(self.shape.as_slice()),
            Code::LowRank { u, v } => u.to_kind(Kind::Float).matmul(&v.to_kind(Kind::Float)).view(self.shape.as_slice()),
        }
    }

    /// The layer's tensors, as they are stored.
    fn parts(&self) -> Vec<(String, Tensor)> {
        let named = |part: &str, tensor: Tensor| (format!("{}{part}", self.name), tensor);
        match &self.code {
            Code::Plain(tensor) => vec![named("", tensor.shallow_clone())],
            Code::Integers { q, scale, level } => {
                let q = if *level <= 7 { pack(q) } else { q.view(self.shape.as_slice()) };
                vec![named("", q), named(".scale", scale.shallow_clone())]
            }
            Code::LowRank { u, v } => vec![named(".u", u.shallow_clone()), named(".v", v.shallow_clone())],
        }
    }
}

impl Code {
    fn name(&self) -> &'static str {
        match self {
            Code::Plain(tensor) if tensor.kind() == Kind::BFloat16 => "bfloat16",
            Code::Plain(_) => "float32",
            Code::Integers { level: ..=7, .. } => "int4",
            Code::Integers { .. } => "int8",
            Code::LowRank { .. } => "low_rank",
        }
    }
}

/// Tensors of a file that are not read yet.
struct Parts<'a> {
    left: HashMap<String, safetensors::tensor::TensorView<'a>>,
}

impl Parts<'_> {
    fn take(&mut self, name: &str, kind: Kind, shape: &[i64]) -> Result<Tensor, DeltaError> {
        let view = self.left.remove(name).ok_or_else(|| malformed(name, "is missing"))?;
        let found: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
        let expected = dtype(kind);
        if view.dtype() != expected || found != shape {
            return Err(malformed(name, format!("is {:?} {found:?}, not {expected:?} {shape:?}", view.dtype())));
        }
        let tensor = Tensor::from_data_size(view.data(), shape, kind);
        if tensor.is_floating_point() && tensor.isfinite().all().int64_value(&[]) == 0 {
            return Err(malformed(name, "has values that are not finite"));
        }
        Ok(tensor)
    }

    fn code(&mut self, name: &str, code: &str, shape: &[i64]) -> Result<Code, DeltaError> {
        let (rows, columns) = matrix(shape);
        let part = |part: &str| format!("{name}{part}");
        Ok(match code {
            "float32" => Code::Plain(self.take(name, Kind::Float, shape)?),
            "bfloat16" => Code::Plain(self.take(name, Kind::BFloat16, shape)?),
            "int8" => Code::Integers {
                q: self.take(name, Kind::Int8, shape)?.view([rows, columns]),
                scale: self.take(&part(".scale"), Kind::Float, &[rows])?,
                level: 127,
            },
            "int4" => Code::Integers {
                q: unpack(&self.take(name, Kind::Uint8, &[(rows * columns + 1) / 2])?, rows, columns),
                scale: self.take(&part(".scale"), Kind::Float, &[rows])?,
                level: 7,
            },
            "low_rank" => {
                let rank = self.left.get(&part(".u")).and_then(|u| u.shape().get(1)).map_or(0, |r| *r as i64);
                Code::LowRank {
                    u: self.take(&part(".u"), Kind::BFloat16, &[rows, rank])?,
                    v: self.take(&part(".v"), Kind::BFloat16, &[rank, columns])?,
                }
            }
            other => return Err(malformed(name, format!("has the unknown code {other:?}"))),
        })
    }
}

/// Rows and columns of a weight.
fn matrix(shape: &[i64]) -> (i64, i64) {
    let rows = if shape.len() > 1 { shape[0] } else { 1 };
    (rows, shape.iter().product::<i64>() / rows)
}

fn encode(difference: &Tensor, codec: &DeltaCodec, tolerance: f64) -> Code {
    let (rows, columns) = matrix(&difference.size());
    let d = difference.to_kind(Kind::Float).reshape([rows, columns]);
    let plain = |kind| Code::Plain(difference.contiguous().to_kind(kind).to_device(tch::Device::Cpu));
    match codec {
        DeltaCodec::Float32 => plain(Kind::Float),
        DeltaCodec::Bfloat16 => plain(Kind::BFloat16),
        DeltaCodec::Int8 => integers(&d, 127).0,
        DeltaCodec::Int4 => integers(&d, 7).0,
        DeltaCodec::LowRank { rank } => low_rank(&d, i64::from(*rank)),
        // The coarsest integers whose error is small enough. Of the codes above the others are finer, or larger for the same
        // image (benchmarks/editing-figures.md).
        DeltaCodec::Auto { .. } => {
            let allowed = tolerance * d.square().sum(Kind::Double).double_value(&[]).sqrt();
            // Errors fall with the level: the first that is good enough.
            let (mut low, mut high) = (0, LEVELS.len());
            let mut found = None;
            while low < high {
                let middle = usize::midpoint(low, high);
                let (code, error) = integers(&d, LEVELS[middle]);
                if error <= allowed {
                    (high, found) = (middle, Some(code));
                } else {
                    low = middle + 1;
                }
            }
            found.unwrap_or_else(|| plain(Kind::BFloat16))
        }
    }
}

/// Integers within +-`level` with a scale for each row, chosen for the smallest squared error; and the root of that error.
fn integers(d: &Tensor, level: u8) -> (Code, f64) {
    let most = f64::from(level);
    let largest = d.abs().amax(&[1i64][..], true).clamp_min(f64::from(f32::MIN_POSITIVE) * 256.0);
    let mut best: Option<(Tensor, Tensor)> = None;
    for range in RANGES {
        let scale: Tensor = &largest * (range / most);
        let error = (quantised(d, &scale, most) * &scale - d).square().sum_dim_intlist(&[1i64][..], true, Kind::Float);
        best = Some(match best {
            Some((kept, least)) => {
                let better = error.lt_tensor(&least);
                (scale.where_self(&better, &kept), error.minimum(&least))
            }
            None => (scale, error),
        });
        // With many levels nothing is won by cutting off the largest.
        if level > 31 {
            break;
        }
    }
    let (scale, error) = best.expect("there is a range");
    let q = quantised(d, &scale, most).to_kind(Kind::Int8).to_device(tch::Device::Cpu);
    let error = error.sum(Kind::Double).double_value(&[]).sqrt();
    (Code::Integers { q, scale: scale.squeeze_dim(1).to_device(tch::Device::Cpu), level }, error)
}

fn quantised(d: &Tensor, scale: &Tensor, most: f64) -> Tensor {
    (d / scale).round().clamp(-most, most)
}

/// The best approximation of a rank (Eckart and Young 1936).
fn low_rank(d: &Tensor, rank: i64) -> Code {
    let (u, s, v) = d.svd(true, true);
    let rank = rank.min(s.size()[0]);
    let root = s.narrow(0, 0, rank).sqrt();
    let half = |t: Tensor| t.contiguous().to_kind(Kind::BFloat16).to_device(tch::Device::Cpu);
    Code::LowRank { u: half(u.narrow(1, 0, rank) * &root), v: half((v.narrow(1, 0, rank) * root).tr()) }
}

/// Two values in a byte, the first in the low half.
fn pack(q: &Tensor) -> Tensor {
    let flat = (q.flatten(0, -1).to_kind(Kind::Int) + 8).to_kind(Kind::Uint8);
    let even = flat.slice(0, 0, None, 2);
    let odd = flat.slice(0, 1, None, 2);
    let odd = odd.constant_pad_nd([0, even.size()[0] - odd.size()[0]]);
    even + odd * 16
}

fn unpack(packed: &Tensor, rows: i64, columns: i64) -> Tensor {
    let (low, high) = (packed.bitwise_and(15), packed.bitwise_right_shift_tensor_scalar(4));
    let flat = Tensor::stack(&[low, high], 1).flatten(0, -1).narrow(0, 0, rows * columns);
    (flat.to_kind(Kind::Int) - 8).to_kind(Kind::Int8).view([rows, columns])
}

fn bytes_of(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

fn dtype(kind: Kind) -> Dtype {
    match kind {
        Kind::Float => Dtype::F32,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int8 => Dtype::I8,
        _ => Dtype::U8,
    }
}
