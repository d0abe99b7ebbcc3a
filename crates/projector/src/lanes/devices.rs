//! Threads, one for each device, and the copy of the model that each has.

use std::any::Any;
use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use proto::Precision;
use tch::{Device, Kind};

use crate::generator::Generator;
use crate::nn::encoder::Encoder;
use crate::nn::lpips::Lpips;

/// A generator and its perceptual network.
pub struct Model {
    /// G(z, c).
    pub generator: Box<dyn Generator>,
    /// Feature network of the loss.
    pub lpips: Lpips,
    /// Guesses z from an image and its class vector.
    pub encoder: Option<Encoder>,
}

impl Model {
    /// A copy on a device.
    pub fn replicate(&self, device: Device) -> Model {
        Model {
            generator: self.generator.replicate(device),
            lpips: self.lpips.replicate(device, Kind::Float),
            encoder: self.encoder.as_ref().map(|encoder| encoder.replicate(device)),
        }
    }
}

/// A device failed; its results are lost and it cannot be trusted further.
#[derive(Debug, thiserror::Error)]
#[error("device {device} failed: {message}")]
pub struct DeviceError {
    /// `Cpu` or `Cuda(0)`; `all` if every thread has ended.
    pub device: String,
    /// The message of libtorch's panic.
    pub message: String,
}

impl DeviceError {
    /// Reads the message of CUDA's allocator.
    pub(super) fn is_out_of_memory(&self) -> bool {
        self.message.contains("out of memory")
    }
}

/// Work for the device that is free first.
type Job = Box<dyn FnOnce(&Local) + Send>;

/// What the thread of a device owns.
pub(super) struct Local {
    pub(super) device: Device,
    pub(super) model: Model,
    /// Generator and perceptual network in bfloat16, made when they are first needed.
    rounded: OnceCell<(Box<dyn Generator>, Lpips)>,
}

impl Local {
    /// The networks that compute in this precision.
    pub(super) fn networks(&self, precision: Precision) -> (&dyn Generator, &Lpips) {
        let Model { generator, lpips, .. } = &self.model;
        match precision {
            Precision::Fp32 | Precision::Tf32 => (&**generator, lpips),
            Precision::Bf16 => {
                let round = || {
                    let kind = Kind::BFloat16;
                    tch::no_grad(|| (generator.converted(self.device, kind), lpips.replicate(self.device, kind)))
                };
                let (generator, lpips) = self.rounded.get_or_init(round);
                (&**generator, lpips)
            }
        }
    }
}

/// The devices' threads, and the queue of jobs that they share.
pub(super) struct Devices {
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Devices {
    pub(super) fn start(model: &Model, devices: &[Device]) -> Devices {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let start = |(i, &device): (usize, &Device)| {
            let local = Local { device, model: model.replicate(device), rounded: OnceCell::new() };
            let queue = queue.clone();
            let body = move || {
                // Sums that are split over threads are added in another order: one thread for each device, more devices for more cores.
                tch::set_num_threads(1);
                let next = || queue.lock().expect("no thread panics while it holds the lock").recv();
                while let Ok(job) = next() {
                    job(&local);
                }
            };
            std::thread::Builder::new().name(format!("device-{i}")).spawn(body).expect("a thread can be started")
        };
        let threads = devices.iter().enumerate().map(start).collect();
        Devices { jobs: Some(jobs), threads }
    }

    pub(super) fn len(&self) -> usize {
        self.threads.len()
    }

    /// Does each work on one of the devices, and returns what the works return, in order.
    pub(super) fn spread<T: Send + 'static>(
        &self,
        works: Vec<impl FnOnce(&Local) -> T + Send + 'static>,
    ) -> Result<Vec<T>, DeviceError> {
        let (reply, replies) = mpsc::channel();
        let count = works.len();
        for (index, work) in works.into_iter().enumerate() {
            let reply = reply.clone();
            let job: Job = Box::new(move |local| {
                let done = catch_unwind(AssertUnwindSafe(|| work(local)));
                // The receiver is gone if another device failed first.
                let _ = reply.send((index, done.map_err(|panic| failed(local.device, &*panic))));
            });
            self.jobs.as_ref().expect("open until drop").send(job).map_err(|_| gone())?;
        }
        drop(reply);
        let mut done: Vec<Option<T>> = (0..count).map(|_| None).collect();
        for (index, result) in replies {
            done[index] = Some(result?);
        }
        done.into_iter().collect::<Option<_>>().ok_or_else(gone)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn gone() -> DeviceError {
    DeviceError { device: "all".into(), message: "the device threads have ended".into() }
}

fn failed(device: Device, panic: &(dyn Any + Send)) -> DeviceError {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    DeviceError { device: format!("{device:?}"), message: text.unwrap_or_else(|| "unknown error".into()) }
}
