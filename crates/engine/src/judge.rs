//! Judges: how far results are from their targets under a perceptual network that the search did not use (the paper's VGG column).

use std::path::Path;

use projector::loss::LossTarget;
use projector::nn::lpips::{self, Lpips};
use projector::{Generator, lanes, transform};
use proto::{ResultRecord, hex_sha256};
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

impl Judge {
    /// Loads `perceptual.json` and `perceptual.safetensors` of `dir`, whatever else is there, to judge results of `model`.
    pub fn load(dir: &Path, model: &LoadedModel, device: Device) -> Result<Judge, ModelError> {
        let (layers, weights) = (dir.join("perceptual.json"), dir.join("perceptual.safetensors"));
        let (json, bytes) = (read(&layers)?, read(&weights)?);
        let config: lpips::Config = parse(&layers, &json)?;
        let lpips = fit(&weights, |mut tensors| Lpips::load(&config, &mut tensors))?;
        Ok(Judge {
            lpips: lpips.replicate(device, Kind::Float),
            generator: model.model.generator.replicate(device),
            device,
            digest: hex_sha256(&[json, bytes].concat()),
        })
    }

    /// LPIPS of every seed of a result inside its object, as `SeedResult::lpips` is that of the model's own network.
    pub async fn measure(&self, record: &ResultRecord, results: &Store, model: &LoadedModel) -> Result<Vec<f64>, EditError> {
        let stored = Stored::read(record, results, model).await?;
        let _no_grad = tch::no_grad_guard();
        let r = self.generator.resolution();
        let target = Tensor::from_slice(&stored.target).view([1, 3, r, r]).to_device(self.device);
        let inside = stored.inside.to_device(self.device);
        let target = LossTarget::new(&self.lpips, &record.params.loss, &target, &inside);
        let align_corners = record.params.align_corners();
        let rows = |rows: &[Vec<f32>]| Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1]).to_device(self.device);
        let blocks = stored.z.chunks(lanes::CPU_BLOCK).zip(stored.c.chunks(lanes::CPU_BLOCK));
        let distances = blocks.flat_map(|(z, c)| {
            let generated = self.generator.generate(&rows(z), &rows(c));
            let inverted = match &record.transform {
                Some(t) => transform::invert(&generated, std::slice::from_ref(t), align_corners),
                None => generated,
            };
            let distance = target.terms(&self.lpips, &inverted).1;
            Vec::<f64>::try_from(distance.to_kind(Kind::Double).to_device(Device::Cpu)).expect("a vector of numbers")
        });
        Ok(distances.collect())
    }
}
