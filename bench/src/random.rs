//! Networks in the published shapes with seeded random weights.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use projector::nn::biggan_deep::{BigganDeep, Config};
use projector::nn::lpips::{self, Layer, Lpips};
use projector::nn::{Weights, biggan_deep};
use proto::ModelManifest;
use serde_json::json;
use tch::{Device, Kind, Tensor};

pub type NamedTensors = Vec<(String, Tensor)>;

pub const CLASSES: i64 = 1000;

/// BigGAN-deep of `resolution` pixels and LPIPS-Alex.
pub fn model(resolution: i64) -> Result<projector::Model> {
    let config = biggan_deep(resolution);
    let generator = BigganDeep::load(&config, &mut Weights::new(biggan_deep_weights(&config)), 1.0)?;
    let lpips = Lpips::load(&lpips_config("alex"), &mut Weights::new(lpips_weights("alex")))?;
    Ok(projector::Model { generator: Box::new(generator), lpips, encoder: None })
}

/// The same as a model folder whose first classes are `classes`.
pub fn folder(resolution: i64, classes: &[String], into: &Path) -> Result<()> {
    std::fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    let config = biggan_deep(resolution);
    let path = |name: &str| into.join(name);
    std::fs::write(path("config.json"), serde_json::to_vec(&config)?)?;
    std::fs::write(path("perceptual.json"), serde_json::to_vec(&lpips_config("alex"))?)?;
    write(biggan_deep_weights(&config), &path("generator.safetensors"))?;
    write(lpips_weights("alex"), &path("perceptual.safetensors"))?;
    let names = ["config.json", "perceptual.json", "generator.safetensors", "perceptual.safetensors"];
    let digest = |name| Ok((name, proto::hex_sha256(&std::fs::read(path(name))?)));
    let middle = resolution as f64 / 2.0;
    let manifest: ModelManifest = serde_json::from_value(json!({
        "format": 1,
        "name": format!("random-{resolution}"),
        "generator": {
            "kind": "biggan_deep", "config": "config.json", "weights": "generator.safetensors",
            "truncation": 1.0, "resolution": resolution,
        },
        "perceptual": { "config": "perceptual.json", "weights": "perceptual.safetensors" },
        "classes": (0..CLASSES as usize).map(|i| classes.get(i).cloned().unwrap_or(format!("class {i}"))).collect::<Vec<_>>(),
        "objects": { "center": [middle, middle], "size": [middle, middle] },
        "sha256": names.into_iter().map(digest).collect::<Result<BTreeMap<_, _>>>()?,
    }))?;
    Ok(std::fs::write(path("model.json"), serde_json::to_vec_pretty(&manifest)?)?)
}

/// Writes tensors, views of others included, as a safetensors file.
pub fn write(tensors: NamedTensors, path: &Path) -> Result<()> {
    let tensors: NamedTensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.contiguous())).collect();
    Tensor::write_safetensors(&tensors, path).with_context(|| format!("cannot write {}", path.display()))
}

/// The published configuration of BigGAN-deep for 128, 256 or 512 pixels.
pub fn biggan_deep(resolution: i64) -> biggan_deep::Config {
    let (keep, up) = (|a| (false, a, a), |a, b| (true, a, b));
    let mut layers = vec![keep(16), up(16, 16), keep(16), up(16, 8), keep(8)];
    if resolution > 128 {
        layers.extend([up(8, 8), keep(8)]);
    }
    layers.extend([up(8, 4), keep(4), up(4, 2), keep(2), up(2, 1)]);
    if resolution > 256 {
        layers.extend([keep(1), up(1, 1)]);
    }
    biggan_deep::Config {
        output_dim: resolution,
        z_dim: 128,
        class_embed_dim: 128,
        channel_width: 128,
        num_classes: CLASSES,
        layers,
        attention_layer_position: 8,
        eps: 1e-4,
        n_stats: 51,
    }
}

/// Every tensor of a public checkpoint, scaled so that activations neither grow nor fade.
pub fn biggan_deep_weights(config: &Config) -> NamedTensors {
    let (ch, cond) = (config.channel_width, config.z_dim + config.class_embed_dim);
    let options = (Kind::Float, Device::Cpu);
    let mut all = NamedTensors::new();
    let spectral = |name: &str, shape: &[i64], scale: f64| {
        let columns = shape[1..].iter().product::<i64>();
        let weight = Tensor::randn(shape, options) / (columns as f64).sqrt();
        // u W v = 1: the weight stays as it is.
        let matrix = weight.view([shape[0], columns]);
        let u = Tensor::ones([shape[0]], options);
        let v = matrix.tr().mv(&u);
        let v = &v / (v.square().sum(Kind::Float) * scale);
        vec![(format!("{name}.weight_orig"), weight), (format!("{name}.weight_u"), u), (format!("{name}.weight_v"), v)]
    };
    let zeros = |name: String, n: i64| (name, Tensor::zeros([n], options));
    all.push(("embeddings.weight".into(), Tensor::randn([config.class_embed_dim, config.num_classes], options) * 0.1));
    all.extend(spectral("generator.gen_z", &[256 * ch, cond], 1.0));
    all.push(zeros("generator.gen_z.bias".into(), 256 * ch));
    let statistics = |name: &str, n: i64| {
        let means = Tensor::zeros([config.n_stats, n], options);
        vec![(format!("{name}.running_means"), means.shallow_clone()), (format!("{name}.running_vars"), means + 1.0)]
    };
    let mut index = 0;
    for (i, &(_, input, output)) in config.layers.iter().enumerate() {
        let (input, output) = (input * ch, output * ch);
        if i == config.attention_layer_position {
            let name = format!("generator.layers.{index}");
            for (part, o, n) in [("theta", 8, 1), ("phi", 8, 1), ("g", 2, 1), ("o_conv", 1, 2)] {
                all.extend(spectral(&format!("{name}.snconv1x1_{part}"), &[input / o, input / n, 1, 1], 1.0));
            }
            all.push((format!("{name}.gamma"), Tensor::ones([1], options) * 0.5));
            index += 1;
        }
        let (name, mid) = (format!("generator.layers.{index}"), input / 4);
        for (j, n) in [input, mid, mid, mid].into_iter().enumerate() {
            let bn = format!("{name}.bn_{j}");
            all.extend(spectral(&format!("{bn}.scale"), &[n, cond], 0.1));
            all.extend(spectral(&format!("{bn}.offset"), &[n, cond], 0.1));
            all.extend(statistics(&bn, n));
        }
        for (j, shape) in [[mid, input, 1], [mid, mid, 3], [mid, mid, 3], [output, mid, 1]].into_iter().enumerate() {
            let conv = format!("{name}.conv_{j}");
            all.extend(spectral(&conv, &[shape[0], shape[1], shape[2], shape[2]], 1.0));
            all.push(zeros(format!("{conv}.bias"), shape[0]));
        }
        index += 1;
    }
    all.push(("generator.bn.weight".into(), Tensor::ones([ch], options) * 0.5));
    all.push(zeros("generator.bn.bias".into(), ch));
    all.extend(statistics("generator.bn", ch));
    all.extend(spectral("generator.conv_to_rgb", &[ch, ch, 3, 3], 1.0));
    all.push(zeros("generator.conv_to_rgb.bias".into(), ch));
    all
}

/// LPIPS of a published name (`alex`, `vgg16`, `squeeze`), with equal weights of the channels.
pub fn lpips_weights(name: &str) -> NamedTensors {
    let mut tensors = seeded::seeded(name);
    let taps = lpips_config(name).layers.into_iter().filter_map(|layer| match layer {
        Layer::Conv { channels, tap: true, .. } | Layer::Fire { channels, tap: true, .. } => Some(channels),
        _ => None,
    });
    let head = |channels| Tensor::ones([1, channels, 1, 1], (Kind::Float, Device::Cpu)) / channels as f64;
    tensors.extend(taps.enumerate().map(|(k, channels)| (format!("lin{k}.model.1.weight"), head(channels))));
    tensors
}

pub fn lpips_config(name: &str) -> lpips::Config {
    lpips::Config::named(name).expect("a published name")
}

/// A perceptual network of one layer with 16 filters.
pub fn small_lpips() -> Result<Lpips> {
    let options = (Kind::Float, Device::Cpu);
    let layers = vec![Layer::Conv { index: 0, channels: 16, kernel: 5, stride: 2, padding: 2, tap: true }];
    let tensors = [
        ("features.0.weight", Tensor::randn([16, 3, 5, 5], options) / 75f64.sqrt()),
        ("features.0.bias", Tensor::zeros([16], options)),
        ("lin0.model.1.weight", Tensor::ones([1, 16, 1, 1], options) * 0.1),
    ];
    let mut weights = Weights::new(tensors.map(|(name, tensor)| (name.to_owned(), tensor)));
    Lpips::load(&lpips::Config { shift: [0.0; 3], scale: [1.0; 3], layers }, &mut weights).context("random filters")
}
