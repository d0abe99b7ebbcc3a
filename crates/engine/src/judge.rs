//! Judges: how far results are from their targets under a perceptual network that the search did not use (the paper's VGG column).

use std::path::Path;

use projector::loss::LossTarget;
use projector::nn::lpips::{self, Lpips};
use projector::{Generator, lanes, transform};
use proto::{ResultRecord, Surround, Transform, hex_sha256};
use store::Store;
use tch::{Device, Kind, Tensor};

use crate::LoadedModel;
use crate::edit::{EditError, Stored};
use crate::files::{ModelError, fit, parse, read};

/// A perceptual network, and the generator that results are made again with.
pub struct Judge {
    lpips: Lpips,
    generator: Box<dyn Generator>,
    device: Device,
    /// SHA-256 of the network's files.
    pub digest: String,
}

/// The perceptual network of `perceptual.json` and `perceptual.safetensors` of `dir`, on the CPU, and the SHA-256 of both files.
pub fn network(dir: &Path) -> Result<(Lpips, String), ModelError> {
    let (layers, weights) = (dir.join("perceptual.json"), dir.join("perceptual.safetensors"));
    let (json, bytes) = (read(&layers)?, read(&weights)?);
    let config: lpips::Config = parse(&layers, &json)?;
    let lpips = fit(&weights, |mut tensors| Lpips::load(&config, &mut tensors))?;
    Ok((lpips, hex_sha256(&[json, bytes].concat())))
}

impl Judge {
    /// Loads `perceptual.json` and `perceptual.safetensors` of `dir`, whatever else is there, to judge results of `model`.
    pub fn load(dir: &Path, model: &LoadedModel, device: Device) -> Result<Judge, ModelError> {
        let (lpips, digest) = network(dir)?;
        Ok(Judge {
            lpips: lpips.replicate(device, Kind::Float),
            generator: model.model.generator.replicate(device),
            device,
            digest,
        })
    }

    /// LPIPS of every seed of a result inside its object, as `SeedResult::lpips` is that of the model's own network.
    pub async fn measure(&self, record: &ResultRecord, results: &Store, model: &LoadedModel) -> Result<Vec<f64>, EditError> {
        let stored = Stored::read(record, results, model).await?;
        let _no_grad = tch::no_grad_guard();
        let r = self.generator.resolution();
        let target = Tensor::from_slice(&stored.target).view([1, 3, r, r]).to_device(self.device);
        let inside = stored.inside.to_device(self.device);
        // As the search compared them.
        let surrounded = |inverted: &Tensor| match record.params.loss.surround {
            Surround::Grey => inverted.shallow_clone(),
            Surround::Target => inverted * &inside + &target * (1.0 - &inside),
        };
        let judged = LossTarget::new(&self.lpips, &record.params.loss, &target, &inside);
        let align_corners = record.params.align_corners();
        let rows = |rows: &[Vec<f32>]| Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1]).to_device(self.device);
        let own = |seed: usize| record.seeds[seed].transform.clone().or_else(|| record.transform.clone());
        let transforms: Option<Vec<Transform>> = (0..stored.z.len()).map(own).collect();
        let blocks = stored.z.chunks(lanes::CPU_BLOCK).zip(stored.c.chunks(lanes::CPU_BLOCK)).enumerate();
        let distances = blocks.flat_map(|(block, (z, c))| {
            let generated = self.generator.generate(&rows(z), &rows(c));
            let inverted = match &transforms {
                Some(each) => {
                    let first = block * lanes::CPU_BLOCK;
                    transform::invert(&generated, &each[first..first + z.len()], align_corners)
                }
                None => generated,
            };
            let distance = judged.terms(&self.lpips, &surrounded(&inverted)).1;
            Vec::<f64>::try_from(distance.to_kind(Kind::Double).to_device(Device::Cpu)).expect("a vector of numbers")
        });
        Ok(distances.collect())
    }
}
