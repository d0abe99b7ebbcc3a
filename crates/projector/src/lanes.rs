//! Lanes over devices. A lane is an (image, seed) pair: one row of a batch.
//!
//! Each device is a thread with its own copy of the model. The lanes of one image are cut into blocks of a size that depends on
//! their number alone; on CPUs a block always fills one batch (the last one is padded by repeating a lane), whatever else is
//! computed and on however many devices. So the kernels see the same shapes and the answer is the same, bit for bit, on one device or
//! three, for one image or eight. A GPU needs larger batches: there the lanes of several images that do the same work fill one
//! together, and answers are the same up to rounding. Nothing random happens here.

use std::any::Any;
use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use proto::{Precision, Transform};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::descent::{self, AdamState};
use crate::generator::Generator;
use crate::loss::{self, LossTarget};
use crate::nn::encoder::Encoder;
use crate::nn::lpips::Lpips;
use crate::target::Target;
use crate::{mask, transform};

/// Lanes in one batch on a CPU core, where larger batches are not faster.
pub const CPU_BLOCK: usize = 9;

/// Lanes in one batch on a GPU at first: halved as often as its memory is too small for them.
pub const GPU_BLOCK: usize = 256;

/// A generator and its perceptual network.
pub struct Model {
    /// G.
    pub generator: Box<dyn Generator>,
    /// Feature network of the loss.
    pub lpips: Lpips,
    /// Guesses z, if there is one.
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

/// What to compute for the lanes of one image.
#[derive(Clone, Debug)]
pub struct Request {
    /// Starts, one for each lane, each `latent_dim` long.
    pub z: Vec<Vec<f32>>,
    /// Class embeddings, one for each lane; `None`: the embedding of the image's class.
    pub c: Option<Vec<Vec<f32>>>,
    /// The transforms of the target.
    pub transforms: Transforms,
    /// The work.
    pub work: Work,
    /// Whether it is done in float32, whatever the method's precision.
    pub exact: bool,
}

/// The transforms of a request's lanes.
#[derive(Clone, Debug)]
pub enum Transforms {
    /// No stage one: the image as it is.
    None,
    /// The same for all lanes.
    Shared(Transform),
    /// One for each lane.
    Each(Vec<Transform>),
}

/// Kinds of work.
#[derive(Clone, Debug)]
pub enum Work {
    /// Adam on z and c.
    Descend {
        /// Gradient steps.
        steps: u32,
        /// Moments to go on with; `None`: zero.
        adam: Option<AdamState>,
        /// Whether the inverted loss is taken at every step, and its minimum returned.
        track_inverted: bool,
        /// Whether the loss of every step is returned.
        record: bool,
    },
    /// The losses at z and c.
    Evaluate,
    /// The loss and its gradient at z and c.
    Gradient,
    /// Losses, metrics and images at z and c.
    Render,
    /// What the model's encoder makes of the target under the transform, and c: in the place of z.
    Encode,
}

/// What came of a request. All vectors have one entry for each lane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// z after the work, not clamped.
    pub z: Vec<Vec<f32>>,
    /// c after the work.
    pub c: Vec<Vec<f32>>,
    /// Loss against the transformed target at these z (clamped) and c.
    pub loss: Vec<f64>,
    /// Inverted loss inside the box at these z and c; its minimum over the steps where that was asked for.
    pub inverted: Vec<f64>,
    /// Adam's moments after a descent.
    pub adam: Option<AdamState>,
    /// Loss before each step of a descent, `[lane][step]`.
    pub curves: Vec<Vec<f32>>,
    /// Gradients `[z | c]`, for `Work::Gradient`.
    pub gradient: Vec<Vec<f32>>,
    /// For `Work::Render`.
    pub rendered: Vec<Rendered>,
}

/// A lane's pictures and distances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rendered {
    /// G(z, c): `[3, r, r]` flat, in [-1, 1].
    pub generated: Vec<f32>,
    /// The same in the target's frame.
    pub inverted: Vec<f32>,
    /// Inverted image against the target inside the box: sum over channels, mean over pixels.
    pub l1: f64,
    /// As `l1`, squared.
    pub l2: f64,
    /// LPIPS inside the box.
    pub lpips: f64,
}

/// The part of `Params` that every batch needs.
#[derive(Clone, Debug)]
pub struct Method {
    /// The loss.
    pub loss: proto::Loss,
    /// Learning rates and the limit of z.
    pub descent: proto::Descent,
    /// See `proto::TransformSearch`.
    pub align_corners: bool,
    /// How the networks round where a request is not exact.
    pub precision: Precision,
}

/// A device failed; its results are lost and it cannot be trusted further.
#[derive(Debug, thiserror::Error)]
#[error("device {device} failed: {message}")]
pub struct DeviceError {
    /// Name of the device.
    pub device: String,
    /// What libtorch says.
    pub message: String,
}

impl DeviceError {
    /// In the words of CUDA's allocator.
    fn is_out_of_memory(&self) -> bool {
        self.message.contains("out of memory")
    }
}

/// One piece of work for whichever device is free first.
type Job = Box<dyn FnOnce(&Local) + Send>;

/// What the thread of a device has.
struct Local {
    device: Device,
    model: Model,
    /// Generator and perceptual network in bfloat16, made when they are first needed.
    rounded: OnceCell<(Box<dyn Generator>, Lpips)>,
}

impl Local {
    /// The networks that work in this precision.
    fn networks(&self, precision: Precision) -> (&dyn Generator, &Lpips) {
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

/// The devices and their threads.
pub struct Lanes {
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
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

    /// With at most `block` lanes of one image in a batch. Another block means other shapes: the same answer up to rounding only.
    pub fn with_block(model: &Model, devices: &[Device], block: usize) -> Lanes {
        Lanes::start(model, devices, block, false)
    }

    /// With at most `block` lanes of any images in a batch.
    pub fn shared(model: &Model, devices: &[Device], block: usize) -> Lanes {
        Lanes::start(model, devices, block, true)
    }

    fn start(model: &Model, devices: &[Device], block: usize, shared: bool) -> Lanes {
        assert!(!devices.is_empty() && block > 0, "no device or no lanes");
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let threads = devices
            .iter()
            .enumerate()
            .map(|(i, &device)| {
                let local = Local { device, model: model.replicate(device), rounded: OnceCell::new() };
                let queue = queue.clone();
                let body = move || {
                    // Sums that are split over threads are added in another order: one thread for each device, more devices for more cores.
                    tch::set_num_threads(1);
                    serve(&local, &queue);
                };
                std::thread::Builder::new().name(format!("device-{i}")).spawn(body).expect("a thread can be started")
            })
            .collect();
        Lanes { jobs: Some(jobs), threads, block: block.into(), shared }
    }

    /// Number of devices.
    pub fn devices(&self) -> usize {
        self.threads.len()
    }

    /// Computes all requests and returns their outcomes in order.
    pub fn run(&self, method: &Method, requests: Vec<(&Target, Request)>) -> Result<Vec<Outcome>, DeviceError> {
        let method = Arc::new(method.clone());
        // A flag of the whole process: nothing is rounded more than it may be.
        kernels::allow_tf32(method.precision == Precision::Tf32 && requests.iter().all(|(_, request)| !request.exact));
        let requests: Vec<(Target, Request)> = requests.into_iter().map(|(t, request)| (t.shallow_clone(), request)).collect();
        loop {
            let block = self.block.load(Ordering::Relaxed);
            match self.run_in(block, &method, &requests) {
                Err(error) if self.shared && block > 1 && error.is_out_of_memory() => {
                    self.block.store(block / 2, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
    }

    /// Lanes in one batch at most, which falls where a device's memory is too small.
    pub fn block(&self) -> usize {
        self.block.load(Ordering::Relaxed)
    }

    fn run_in(&self, block: usize, method: &Arc<Method>, requests: &[(Target, Request)]) -> Result<Vec<Outcome>, DeviceError> {
        let (mut parts, mut pieces) = (Vec::new(), Vec::new());
        for (target, request) in requests {
            let blocks = cut(request, block);
            parts.push((request.z.len(), blocks.len()));
            pieces.extend(blocks.into_iter().map(|block| (target.shallow_clone(), block)));
        }
        let count = pieces.len();
        let batches = match self.shared {
            true => together(pieces, block, self.devices()),
            false => pieces.into_iter().enumerate().map(|piece| vec![piece]).collect(),
        };
        let works = batches.into_iter().map(|batch| {
            let method = method.clone();
            move |local: &Local| {
                let (places, pieces): (Vec<usize>, Vec<(Target, Request)>) = batch.into_iter().unzip();
                places.into_iter().zip(compute(local, &method, &pieces)).collect::<Vec<_>>()
            }
        });
        let mut done: Vec<Option<Outcome>> = (0..count).map(|_| None).collect();
        for (place, outcome) in self.spread(works.collect())?.into_iter().flatten() {
            done[place] = Some(outcome);
        }
        let mut done = done.into_iter().map(|outcome| outcome.expect("every piece is in one batch"));
        Ok(parts.into_iter().map(|(lanes, blocks)| join(done.by_ref().take(blocks).collect(), lanes)).collect())
    }

    /// Does each work on one of the devices in float32, and returns the answers in order.
    pub(crate) fn each<T: Send + 'static>(
        &self,
        works: Vec<impl FnOnce(&Model, Device) -> T + Send + 'static>,
    ) -> Result<Vec<T>, DeviceError> {
        kernels::allow_tf32(false);
        self.spread(works.into_iter().map(|work| move |local: &Local| work(&local.model, local.device)).collect())
    }

    fn spread<T: Send + 'static>(&self, works: Vec<impl FnOnce(&Local) -> T + Send + 'static>) -> Result<Vec<T>, DeviceError> {
        let (reply, replies) = mpsc::channel();
        let count = works.len();
        for (index, work) in works.into_iter().enumerate() {
            let reply = reply.clone();
            let job: Job = Box::new(move |local| {
                let done = catch_unwind(AssertUnwindSafe(|| work(local)));
                // Nobody waits any more if another device failed first.
                let _ = reply.send((index, done.map_err(|panic| failed(local.device, &*panic))));
            });
            self.jobs.as_ref().expect("open until drop").send(job).map_err(|_| gone())?;
        }
        drop(reply);
        let mut done: Vec<Option<T>> = (0..count).map(|_| None).collect();
        for (index, answer) in replies {
            done[index] = Some(answer?);
        }
        done.into_iter().collect::<Option<_>>().ok_or_else(gone)
    }
}

impl Drop for Lanes {
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

fn serve(local: &Local, queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = match queue.lock().expect("no thread panics while it holds the lock").recv() {
            Ok(job) => job,
            Err(_) => return,
        };
        job(local);
    }
}

/// Cuts a request into blocks of equal size, the last one padded with its last lane.
fn cut(request: &Request, max: usize) -> Vec<Request> {
    let lanes = request.z.len();
    let blocks = lanes.div_ceil(max).max(1);
    let size = lanes.div_ceil(blocks);
    (0..blocks)
        .map(|b| {
            let index: Vec<usize> = (b * size..(b + 1) * size).map(|i| i.min(lanes - 1)).collect();
            let pick = |rows: &[Vec<f32>]| index.iter().map(|&i| rows[i].clone()).collect::<Vec<_>>();
            let work = match &request.work {
                Work::Descend { steps, adam, track_inverted, record } => Work::Descend {
                    steps: *steps,
                    adam: adam.as_ref().map(|a| a.select(&index)),
                    track_inverted: *track_inverted,
                    record: *record,
                },
                other => other.clone(),
            };
            Request {
                z: pick(&request.z),
                c: request.c.as_deref().map(pick),
                transforms: match &request.transforms {
                    Transforms::Each(each) => Transforms::Each(index.iter().map(|&i| each[i].clone()).collect()),
                    other => other.clone(),
                },
                work,
                exact: request.exact,
            }
        })
        .collect()
}

/// An image's block, and its place among all.
type Piece = (usize, (Target, Request));

/// Puts pieces of the same work into batches of at most `block` lanes, and at least one for each device if there are so many.
fn together(pieces: Vec<(Target, Request)>, block: usize, devices: usize) -> Vec<Vec<Piece>> {
    let lanes: usize = pieces.iter().map(|(_, request)| request.z.len()).sum();
    let most = block.min(lanes.div_ceil(devices));
    let mut batches: Vec<Vec<Piece>> = Vec::new();
    for (place, piece) in pieces.into_iter().enumerate() {
        let fits = |batch: &&mut Vec<Piece>| {
            let lanes: usize = batch.iter().map(|(_, (_, request))| request.z.len()).sum();
            batch[0].1.1.does_as(&piece.1) && lanes + piece.1.z.len() <= most
        };
        match batches.iter_mut().find(fits) {
            Some(batch) => batch.push((place, piece)),
            None => batches.push(vec![(place, piece)]),
        }
    }
    batches
}

impl Request {
    /// Whether lanes of both can be rows of one batch.
    fn does_as(&self, other: &Request) -> bool {
        let plain = |transforms: &Transforms| matches!(transforms, Transforms::None);
        let same = match (&self.work, &other.work) {
            (
                Work::Descend { steps, adam, track_inverted, record },
                Work::Descend { steps: other_steps, adam: other_adam, track_inverted: other_track, record: other_record },
            ) => {
                let age = |adam: &Option<AdamState>| adam.as_ref().map(AdamState::steps);
                (steps, age(adam), track_inverted, record) == (other_steps, age(other_adam), other_track, other_record)
            }
            (Work::Evaluate, Work::Evaluate) | (Work::Gradient, Work::Gradient) | (Work::Render, Work::Render) => true,
            _ => false,
        };
        same && self.exact == other.exact && plain(&self.transforms) == plain(&other.transforms)
    }
}

/// Puts blocks together and drops the padding.
fn join(blocks: Vec<Outcome>, lanes: usize) -> Outcome {
    let mut all = Outcome::default();
    let mut adam: Option<AdamState> = None;
    for block in blocks {
        all.z.extend(block.z);
        all.c.extend(block.c);
        all.loss.extend(block.loss);
        all.inverted.extend(block.inverted);
        all.curves.extend(block.curves);
        all.gradient.extend(block.gradient);
        all.rendered.extend(block.rendered);
        adam = match (adam, block.adam) {
            (Some(mut a), Some(b)) => {
                a.extend(b);
                Some(a)
            }
            (a, b) => a.or(b),
        };
    }
    all.z.truncate(lanes);
    all.c.truncate(lanes);
    all.loss.truncate(lanes);
    all.inverted.truncate(lanes);
    all.curves.truncate(lanes);
    all.gradient.truncate(lanes);
    all.rendered.truncate(lanes);
    if let Some(a) = &mut adam {
        a.truncate(lanes);
    }
    all.adam = adam;
    all
}

/// Undoes a batch of several pieces of so many lanes.
fn split(mut all: Outcome, lanes: &[usize]) -> Vec<Outcome> {
    if let [_] = lanes {
        return vec![all];
    }
    fn front<T>(rows: &mut Vec<T>, lanes: usize) -> Vec<T> {
        rows.drain(..lanes.min(rows.len())).collect()
    }
    let mut first = 0;
    let piece = |&n: &usize| {
        let index: Vec<usize> = (first..first + n).collect();
        first += n;
        Outcome {
            z: front(&mut all.z, n),
            c: front(&mut all.c, n),
            loss: front(&mut all.loss, n),
            inverted: front(&mut all.inverted, n),
            curves: front(&mut all.curves, n),
            gradient: front(&mut all.gradient, n),
            rendered: front(&mut all.rendered, n),
            adam: all.adam.as_ref().map(|adam| adam.select(&index)),
        }
    };
    lanes.iter().map(piece).collect()
}

/// The inverted loss: T^-1 of the generated images against the original, inside the box only (method: binarised weights).
struct Inverse {
    target: LossTarget,
    transforms: Option<Vec<Transform>>,
    align_corners: bool,
}

impl Inverse {
    fn images(&self, generated: &Tensor) -> Tensor {
        match &self.transforms {
            Some(transforms) => transform::invert(generated, transforms, self.align_corners),
            None => generated.shallow_clone(),
        }
    }

    fn loss(&self, lpips: &Lpips, generated: &Tensor) -> Tensor {
        self.target.loss(lpips, &self.images(generated))
    }
}

/// What a target's losses are taken against, on a device.
pub(crate) struct View {
    /// `[1, 3, r, r]`
    pub image: Tensor,
    /// `[1, 1, r, r]`: one inside the box, the background's weight outside.
    pub weights: Tensor,
    /// `[1, 1, r, r]`: one inside the box.
    binary: Tensor,
    /// Of the transformed target, with the background's weight: what is minimised.
    pub forward: LossTarget,
    /// Of the inverted image, inside the box.
    inverse: Inverse,
}

impl View {
    pub fn new(model: &Model, device: Device, method: &Method, target: &Target, transforms: &Transforms) -> View {
        let lpips = &model.lpips;
        let image = target.image.to_device(device).unsqueeze(0);
        let binary = mask::of(target, model.generator.resolution()).to_device(device);
        let weights = mask::weights(&binary, method.loss.background);
        let transforms = match transforms {
            Transforms::None => None,
            Transforms::Shared(t) => Some(vec![t.clone()]),
            Transforms::Each(each) => Some(each.clone()),
        };
        let forward = match &transforms {
            None => LossTarget::new(lpips, &method.loss, &image, &weights),
            Some(ts) => LossTarget::new(
                lpips,
                &method.loss,
                &transform::apply(&image, ts, method.align_corners),
                &transform::apply_to_mask(&weights, ts, method.align_corners),
            ),
        };
        let inverse = Inverse {
            target: LossTarget::new(lpips, &method.loss, &image, &binary),
            transforms,
            align_corners: method.align_corners,
        };
        View { image, weights, binary, forward, inverse }
    }

    /// Of several images, each with its number of lanes: everything has a row for each lane.
    fn beside(mut views: Vec<(View, usize)>, transforms: Option<Vec<Transform>>) -> View {
        if views.len() == 1 {
            return views.remove(0).0;
        }
        let rows = |of: &dyn Fn(&View) -> &Tensor| {
            let each: Vec<Tensor> = views.iter().map(|(view, lanes)| loss::rows(of(view), *lanes)).collect();
            Tensor::cat(&each, 0)
        };
        let targets = |of: &dyn Fn(&View) -> &LossTarget| {
            LossTarget::beside(&views.iter().map(|(view, lanes)| (of(view), *lanes)).collect::<Vec<_>>())
        };
        View {
            image: rows(&|view| &view.image),
            weights: rows(&|view| &view.weights),
            binary: rows(&|view| &view.binary),
            forward: targets(&|view| &view.forward),
            inverse: Inverse {
                target: targets(&|view| &view.inverse.target),
                transforms,
                align_corners: views[0].0.inverse.align_corners,
            },
        }
    }

    /// Losses, distances and pictures of generated images `[n, 3, r, r]`.
    pub fn render(&self, lpips: &Lpips, method: &Method, images: &Tensor) -> (Vec<f64>, Vec<f64>, Vec<Rendered>) {
        let inverted = self.inverse.images(images);
        let metrics = proto::Loss { l1: proto::L1Scale::ChannelSum, ..method.loss.clone() };
        let inside = LossTarget::new(lpips, &metrics, &self.image, &self.binary);
        let (l1, distance) = inside.terms(lpips, &inverted);
        let (l1, l2, distance) = (to_numbers(&l1), to_numbers(&inside.squared(&inverted)), to_numbers(&distance));
        let (generated, back) = (to_rows(&images.flatten(1, -1)), to_rows(&inverted.flatten(1, -1)));
        let rendered = generated
            .into_iter()
            .zip(back)
            .enumerate()
            .map(|(i, (generated, inverted))| Rendered { generated, inverted, l1: l1[i], l2: l2[i], lpips: distance[i] })
            .collect();
        (to_numbers(&self.forward.loss(lpips, images)), to_numbers(&self.inverse.loss(lpips, images)), rendered)
    }
}

/// One batch on one device: pieces that do the same work.
fn compute(local: &Local, method: &Method, pieces: &[(Target, Request)]) -> Vec<Outcome> {
    let _no_grad = tch::no_grad_guard();
    let counts: Vec<usize> = pieces.iter().map(|(_, request)| request.z.len()).collect();
    let Local { device, ref model, .. } = *local;
    let first = &pieces[0].1;
    let (generator, lpips) = local.networks(if first.exact { Precision::Fp32 } else { method.precision });
    let z = rows(pieces.iter().flat_map(|(_, request)| &request.z), device);
    let classes = pieces.iter().map(|(target, request)| match &request.c {
        Some(c) => rows(c, device),
        None => generator.embed(target.class).unsqueeze(0).repeat([request.z.len() as i64, 1]),
    });
    let c = Tensor::cat(&classes.collect::<Vec<_>>(), 0);

    let views =
        pieces.iter().map(|(target, request)| (View::new(model, device, method, target, &request.transforms), request.z.len()));
    let transforms = pieces.iter().map(|(_, request)| request.transforms.of_lanes(request.z.len())).collect::<Option<Vec<_>>>();
    let view = View::beside(views.collect(), transforms.map(|each| each.concat()));
    let outcome = work(local, (generator, lpips), method, pieces, &view, (z, c));
    split(outcome, &counts)
}

impl Transforms {
    /// One for each of so many lanes.
    fn of_lanes(&self, lanes: usize) -> Option<Vec<Transform>> {
        match self {
            Transforms::None => None,
            Transforms::Shared(transform) => Some(vec![transform.clone(); lanes]),
            Transforms::Each(each) => Some(each.clone()),
        }
    }
}

/// The moments that the lanes of all pieces go on with.
fn moments(pieces: &[(Target, Request)]) -> Option<AdamState> {
    let each = pieces.iter().map(|(_, request)| match &request.work {
        Work::Descend { adam, .. } => adam.clone(),
        _ => None,
    });
    each.collect::<Option<Vec<_>>>()?.into_iter().reduce(|mut all, next| {
        all.extend(next);
        all
    })
}

/// The work of a batch from z and c on.
fn work(
    Local { device, model, .. }: &Local,
    (generator, lpips): (&dyn Generator, &Lpips),
    method: &Method,
    pieces: &[(Target, Request)],
    view: &View,
    (z, c): (Tensor, Tensor),
) -> Outcome {
    let View { forward, inverse, .. } = view;
    let request = &pieces[0].1;
    match &request.work {
        Work::Descend { steps, track_inverted, record, .. } => {
            let mut least: Option<Tensor> = None;
            let mut losses = Vec::new();
            let mut state = match moments(pieces) {
                Some(adam) => descent::Adam::restore(&adam, *device),
                None => descent::Adam::new(&z, &c),
            };
            let (mut z, mut c) = (z, c);
            for _ in 0..*steps {
                z = descent::clamp(&z, method.descent.limit);
                let (gz, gc, loss, images) = descent::gradient(generator, lpips, forward, &z, &c);
                if *track_inverted {
                    let now = inverse.loss(lpips, &images);
                    least = Some(match least {
                        // `fminimum` would ignore NaN; a lane that diverged must not look good.
                        Some(before) => before.minimum(&now),
                        None => now,
                    });
                }
                if *record {
                    losses.push(loss);
                }
                state.step(&mut z, &mut c, &gz, &gc, &method.descent);
            }
            let images = generator.generate(&descent::clamp(&z, method.descent.limit), &c);
            let loss = forward.loss(lpips, &images);
            let inverted = least.unwrap_or_else(|| inverse.loss(lpips, &images));
            let curves = if losses.is_empty() { vec![] } else { to_rows(&Tensor::stack(&losses, 1)) };
            Outcome {
                z: to_rows(&z),
                c: to_rows(&c),
                loss: to_numbers(&loss),
                inverted: to_numbers(&inverted),
                adam: Some(state.save()),
                curves,
                ..Default::default()
            }
        }
        Work::Evaluate => {
            let images = generator.generate(&descent::clamp(&z, method.descent.limit), &c);
            Outcome {
                loss: to_numbers(&forward.loss(lpips, &images)),
                inverted: to_numbers(&inverse.loss(lpips, &images)),
                z: to_rows(&z),
                c: to_rows(&c),
                ..Default::default()
            }
        }
        Work::Gradient => {
            let z = descent::clamp(&z, method.descent.limit);
            let (gz, gc, loss, _) = descent::gradient(generator, lpips, forward, &z, &c);
            Outcome {
                loss: to_numbers(&loss),
                gradient: to_rows(&Tensor::cat(&[gz, gc], 1)),
                z: to_rows(&z),
                c: to_rows(&c),
                ..Default::default()
            }
        }
        Work::Render => {
            let images = generator.generate(&descent::clamp(&z, method.descent.limit), &c);
            let (loss, inverted, rendered) = view.render(lpips, method, &images);
            Outcome { loss, inverted, rendered, z: to_rows(&z), c: to_rows(&c), ..Default::default() }
        }
        Work::Encode => {
            let encoder = model.encoder.as_ref().expect("the caller checked that the model has an encoder");
            let image = match &request.transforms {
                Transforms::None => view.image.shallow_clone(),
                Transforms::Shared(t) => transform::apply(&view.image, std::slice::from_ref(t), method.align_corners),
                Transforms::Each(each) => transform::apply(&view.image, each, method.align_corners),
            };
            let z = encoder.encode(&image.expand([z.size()[0], -1, -1, -1], false), &c);
            Outcome { z: to_rows(&z), c: to_rows(&c), ..Default::default() }
        }
    }
}

pub(crate) fn rows<'a>(rows: impl IntoIterator<Item = &'a Vec<f32>>, device: Device) -> Tensor {
    let (mut flat, mut count) = (Vec::<f32>::new(), 0);
    for row in rows {
        flat.extend(row);
        count += 1;
    }
    Tensor::from_slice(&flat).view([count, -1]).to_device(device)
}

pub(crate) fn to_rows(t: &Tensor) -> Vec<Vec<f32>> {
    let width = t.size()[1] as usize;
    let flat: Vec<f32> = Vec::try_from(t.to_device(Device::Cpu).contiguous().flatten(0, -1)).expect("a float tensor");
    flat.chunks(width).map(<[f32]>::to_vec).collect()
}

fn to_numbers(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double).to_device(Device::Cpu)).expect("a one-dimensional tensor")
}
