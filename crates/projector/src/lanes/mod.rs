//! Lanes over devices. A lane is an (image, seed) pair: one row of a batch.
//!
//! Each device is a thread with its own copy of the model. The lanes of one image are cut into blocks of a size that depends on
//! their number alone; on CPUs a block always fills one batch (the last one is padded by repeating a lane), whatever else is
//! computed and on however many devices. So the kernels see the same shapes and the result is the same, bit for bit, on one device or
//! three, for one image or eight. A GPU needs larger batches: there the lanes of several images that do the same work fill one
//! together, and results are the same up to rounding. Nothing random happens here.

mod blocks;
mod compute;
mod devices;
mod request;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proto::{Params, Precision};
use tch::Device;

use self::blocks::{Piece, cut, join, together};
use self::devices::{Devices, Local};
use crate::target::Target;

pub use self::devices::{DeviceError, Model};
pub use self::request::{Pictures, Rendered, Request, Response, Transforms, Work};
pub(crate) use self::view::View;

/// Lanes in one batch on a CPU core, where larger batches are not faster.
pub const CPU_BLOCK: usize = 9;

/// Lanes in one batch on a GPU at first: halved as often as its memory is too small for them.
pub const GPU_BLOCK: usize = 256;

/// Computes the lanes of requests in batches on devices.
pub struct Lanes {
    devices: Devices,
    /// Lanes in one batch at most.
    block: AtomicUsize,
    /// Whether lanes of several images may be in one batch.
    shared: bool,
}

impl Lanes {
    /// Starts a thread with a copy of `model` for each device. A CPU device is one core.
    pub fn new(model: &Model, devices: &[Device]) -> Lanes {
        match devices.iter().any(|device| matches!(device, Device::Cuda(_))) {
            true => Lanes::shared(model, devices, GPU_BLOCK),
            false => Lanes::with_block(model, devices, CPU_BLOCK),
        }
    }

    /// At most `block` lanes of one image in a batch. Another block means other shapes: the same result up to rounding only.
    pub fn with_block(model: &Model, devices: &[Device], block: usize) -> Lanes {
        Lanes::start(model, devices, block, false)
    }

    /// At most `block` lanes of any images in a batch.
    pub fn shared(model: &Model, devices: &[Device], block: usize) -> Lanes {
        Lanes::start(model, devices, block, true)
    }

    fn start(model: &Model, devices: &[Device], block: usize, shared: bool) -> Lanes {
        assert!(!devices.is_empty() && block > 0, "no device or no lanes");
        Lanes { devices: Devices::start(model, devices), block: block.into(), shared }
    }

    /// Number of devices.
    pub fn devices(&self) -> usize {
        self.devices.len()
    }

    /// Lanes that keep all devices busy: twice as many as they compute at a time, so that none waits for the last batch of another.
    pub fn room(&self) -> usize {
        2 * self.devices() * self.block()
    }

    /// Computes all requests and returns their responses in order.
    pub fn run(&self, params: &Params, requests: Vec<(&Target, Request)>) -> Result<Vec<Response>, DeviceError> {
        let params = Arc::new(params.clone());
        // The flag holds for the whole process, so one exact request keeps all of them in float32.
        kernels::allow_tf32(params.precision == Precision::Tf32 && requests.iter().all(|(_, request)| !request.exact));
        let requests: Vec<(Target, Request)> = requests.into_iter().map(|(t, request)| (t.shallow_clone(), request)).collect();
        loop {
            let block = self.block.load(Ordering::Relaxed);
            match self.run_in(block, &params, &requests) {
                Err(error) if self.shared && block > 1 && error.is_out_of_memory() => {
                    self.block.store(block / 2, Ordering::Relaxed);
                }
                responses => return responses,
            }
        }
    }

    /// Lanes in one batch at most; it falls where a device's memory is too small.
    pub fn block(&self) -> usize {
        self.block.load(Ordering::Relaxed)
    }

    fn run_in(&self, block: usize, params: &Arc<Params>, requests: &[(Target, Request)]) -> Result<Vec<Response>, DeviceError> {
        let (mut lanes_and_blocks, mut pieces) = (Vec::new(), Vec::new());
        for (target, request) in requests {
            let blocks = cut(request, block);
            lanes_and_blocks.push((request.z.len(), blocks.len()));
            for request in blocks {
                pieces.push(Piece { index: pieces.len(), target: target.shallow_clone(), request });
            }
        }
        let batches = match self.shared {
            true => together(pieces, block, self.devices()),
            false => pieces.into_iter().map(|piece| vec![piece]).collect(),
        };
        let works = batches.into_iter().map(|batch| {
            let params = params.clone();
            move |local: &Local| {
                let responses = compute::compute(local, &params, &batch);
                batch.iter().map(|piece| piece.index).zip(responses).collect::<Vec<_>>()
            }
        });
        let mut done: Vec<_> = self.devices.spread(works.collect())?.into_iter().flatten().collect();
        done.sort_by_key(|(index, _)| *index);
        let mut done = done.into_iter().map(|(_, response)| response);
        Ok(lanes_and_blocks.into_iter().map(|(lanes, blocks)| join(done.by_ref().take(blocks).collect(), lanes)).collect())
    }

    /// Does each work on one of the devices in float32, and returns what the works return, in order.
    pub(crate) fn each<T: Send + 'static>(
        &self,
        works: Vec<impl FnOnce(&Model, Device) -> T + Send + 'static>,
    ) -> Result<Vec<T>, DeviceError> {
        kernels::allow_tf32(false);
        self.devices.spread(works.into_iter().map(|work| move |local: &Local| work(&local.model, local.device)).collect())
    }
}
