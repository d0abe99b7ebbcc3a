//! The running method as a stepping machine over several images: `step`, `checkpoint`, `finish`.
//!
//! Images advance side by side and never influence each other: each has its own state and its own random numbers, so the projection
//! of an image does not depend on the others. Between two steps the caller may stop, save or preview.

use proto::{ClassStart, Descent, History, Params, Stage, Transform};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::cma::Cma;
use crate::fine_tune::{self, Dropped, Setting, Tuned, Tuning};
use crate::lanes::{DeviceError, Lanes, Method, Model, Request, Response, Transforms, Work};
use crate::latent_search::{self, ClassVectors, LatentSearch, Rows};
use crate::mask::{self, ObjectStatistics};
use crate::target::Target;
use crate::transform_search::TransformSearch;
use crate::{latent, transform};

/// Sizes that a checkpoint must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    latent_dim: usize,
    resolution: usize,
}

/// Steps of fine-tuning in one `step`.
const PART: u32 = 25;

/// State of one image between two steps; serialise it to continue elsewhere. Fine-tuning is not in it, because its weights and
/// moments have three times the generator's size: it starts again after the search.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    shape: Shape,
    rng: ChaCha8Rng,
    stage: Search,
    transform: Option<Transform>,
    transform_history: Vec<f64>,
    lane_steps: u64,
    diverged: bool,
    last_loss: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Search {
    Transform(Box<TransformSearch>),
    Latent(LatentSearch),
}

impl Checkpoint {
    /// Lane-steps done so far.
    pub fn lane_steps(&self) -> u64 {
        self.lane_steps
    }
}

/// Progress of a projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Lane-steps done, over all images.
    pub done: u64,
    /// Lane-steps of the whole projection, over all images.
    pub total: u64,
    /// Mean over the images of the smallest loss in the last step; NaN before the first.
    pub loss: f64,
}

/// The projection of one image.
#[derive(Debug)]
pub struct Solution {
    /// phi*; `None` without stage one.
    pub transform: Option<Transform>,
    /// The seed with the smallest training loss (Algorithm 1, line 23).
    pub best: usize,
    /// Latents and distances of all seeds.
    pub seeds: Vec<Seed>,
    /// G(z*, c*), `[3, r, r]` flat in [-1, 1].
    pub generated: Vec<f32>,
    /// The inverted image, `[3, r, r]` flat in [-1, 1].
    pub inverted: Vec<f32>,
    /// T_phi*(y): the target as the descent saw it.
    pub transformed: Vec<f32>,
    /// Result of fine-tuning; `None` if the parameters do not ask for it.
    pub fine_tuned: Option<Result<Tuned, Dropped>>,
    /// Loss curves of all stages.
    pub history: History,
    /// Lane-steps of the image.
    pub lane_steps: u64,
}

/// One seed's latents and distances; see `proto::SeedResult`.
#[derive(Clone, Debug, PartialEq)]
pub struct Seed {
    /// z within the limit, `[latent_dim]`.
    pub z: Vec<f32>,
    /// Class embedding, `[embed_dim]`.
    pub c: Vec<f32>,
    /// Training loss.
    pub loss: f64,
    /// Loss of the inverted image inside the box.
    pub inverted_loss: f64,
    /// Sum over channels, mean over the box's pixels.
    pub l1: f64,
    /// As `l1`, squared.
    pub l2: f64,
    /// Mean over the box's pixels.
    pub lpips: f64,
}

/// The loss of an image became infinite or undefined in every lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the loss is not finite in any lane")]
pub struct Diverged;

/// The checkpoint belongs to another model or other parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the checkpoint does not fit this model and these parameters")]
pub struct Mismatch;

/// The best lane of an image's last step.
struct Glimpse {
    z: Vec<f32>,
    c: Vec<f32>,
    transforms: Transforms,
}

/// Projects images under the same parameters.
pub struct Projection {
    params: Params,
    method: Method,
    targets: Vec<Target>,
    /// Embedding of each image's class.
    embeddings: Vec<Vec<f32>>,
    images: Vec<Checkpoint>,
    /// State of each image's search, for previews.
    glimpses: Vec<Option<Glimpse>>,
    /// Fine-tuning of images whose search is finished.
    tunings: Vec<Option<Tuning>>,
    per_image: u64,
    limit: f32,
}

impl Projection {
    /// Starts every image. `statistics` say where the generator has its objects.
    ///
    /// The caller checks that every target has the generator's resolution and one of its classes.
    pub fn new(params: &Params, model: &Model, statistics: &ObjectStatistics, targets: Vec<Target>) -> Projection {
        let shape =
            Shape { latent_dim: model.generator.latent_dim() as usize, resolution: model.generator.resolution() as usize };
        let embeddings: Vec<Vec<f32>> = targets.iter().map(|t| embedding(model, t)).collect();
        let start = |(t, own): (&Target, &Vec<f32>)| {
            let each = class_starts(params, model, t);
            start(params, statistics, shape, t, class_vectors(params, own, each.as_ref()))
        };
        let images = targets.iter().zip(&embeddings).map(start).collect();
        Projection {
            method: Method {
                loss: params.loss.clone(),
                descent: params.descent.clone(),
                align_corners: params.transform.as_ref().is_some_and(|t| t.align_corners),
                precision: params.precision,
            },
            params: params.clone(),
            glimpses: targets.iter().map(|_| None).collect(),
            tunings: targets.iter().map(|_| None).collect(),
            targets,
            embeddings,
            images,
            per_image: lane_steps(params),
            limit: params.descent.limit as f32,
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// State of the search of an image.
    pub fn checkpoint(&self, image: usize) -> &Checkpoint {
        &self.images[image]
    }

    /// Restores an image's state. Fails if its sizes differ.
    pub fn resume(&mut self, image: usize, checkpoint: Checkpoint) -> Result<(), Mismatch> {
        if checkpoint.shape != self.images[image].shape {
            return Err(Mismatch);
        }
        self.images[image] = checkpoint;
        self.tunings[image] = None;
        Ok(())
    }

    /// Sets an image's transform and skips stage one.
    ///
    /// # Panics
    /// After the image's first step.
    pub fn fix_transform(&mut self, image: usize, transform: Transform) {
        let state = &mut self.images[image];
        assert_eq!(state.lane_steps, 0, "the image has been stepped");
        state.transform = Some(transform);
        state.stage = Search::Latent(latent_search(
            &self.params,
            state.shape,
            class_vectors(&self.params, &self.embeddings[image], None),
            &mut state.rng,
        ));
    }

    /// Whether every image is finished.
    pub fn finished(&self) -> bool {
        (0..self.images.len()).all(|i| self.image_finished(i))
    }

    fn image_finished(&self, image: usize) -> bool {
        let tuned = || self.params.fine_tune.is_none() || self.tunings[image].as_ref().is_some_and(|t| t.finished);
        self.images[image].diverged || (self.images[image].finished() && tuned())
    }

    /// Progress over all images.
    pub fn progress(&self) -> Progress {
        let losses: Vec<f64> = (0..self.images.len()).map(|i| self.loss(i)).filter(|l| l.is_finite()).collect();
        // An image that ended early needs no more steps.
        let done = |i: usize| if self.image_finished(i) { self.per_image } else { self.lane_steps(i) };
        Progress {
            done: (0..self.images.len()).map(done).sum(),
            total: self.per_image * self.images.len() as u64,
            loss: losses.iter().sum::<f64>() / losses.len() as f64,
        }
    }

    /// The stage that an image's next step belongs to; `None` when the image is finished.
    pub fn stage(&self, image: usize) -> Option<Stage> {
        let finished = self.image_finished(image);
        let image = &self.images[image];
        match &image.stage {
            _ if finished => None,
            _ if image.finished() => Some(Stage::FineTune),
            Search::Transform(_) => Some(Stage::TransformSearch),
            Search::Latent(search) if search.explores() => Some(Stage::LatentSearch),
            Search::Latent(_) => Some(Stage::FinalDescent),
        }
    }

    /// Smallest loss of an image in its last step; NaN before its first.
    pub fn loss(&self, image: usize) -> f64 {
        self.tunings[image].as_ref().map_or(self.images[image].last_loss, Tuning::loss)
    }

    fn lane_steps(&self, image: usize) -> u64 {
        self.images[image].lane_steps + self.tunings[image].as_ref().map_or(0, |t| u64::from(t.steps))
    }

    /// Parameters of fine-tuning; `None` without it.
    fn setting(&self) -> Option<Setting> {
        let (method, search) = (self.method.clone(), self.params.transform.clone());
        self.params.fine_tune.clone().map(|tune| Setting { method, tune, search })
    }

    /// Advances every unfinished image by one generation, or one part of the long descent or of fine-tuning.
    pub fn step(&mut self, lanes: &Lanes) -> Result<Progress, DeviceError> {
        let mut asked = Vec::new();
        let (mut requests, mut transforms) = (Vec::new(), Vec::new());
        for (i, image) in self.images.iter_mut().enumerate() {
            if let Some(request) = image.ask(&self.params) {
                asked.push((i, passes(&request)));
                transforms.push(request.transforms.clone());
                requests.push((&self.targets[i], request));
            }
        }
        let responses = lanes.run(&self.method, requests)?;
        self.tune(lanes, &asked)?;
        for (((i, passes), response), transforms) in asked.into_iter().zip(responses).zip(transforms) {
            self.glimpses[i] = Some(Glimpse::of(&response, transforms));
            self.images[i].tell(&self.params, &self.embeddings[i], &response, passes);
        }
        Ok(self.progress())
    }

    /// A preview of each image: the inverted image of the last step's best lane, `[3, r, r]` flat in [-1, 1]; `None` before the first
    /// step.
    pub fn look(&self, lanes: &Lanes) -> Result<Vec<Option<Vec<f32>>>, DeviceError> {
        let seen = self.glimpses.iter().zip(&self.targets).filter_map(|(g, target)| Some((target, g.as_ref()?)));
        let requests = seen.map(|(target, Glimpse { z, c, transforms })| {
            let z: Vec<f32> = z.iter().map(|v| v.clamp(-self.limit, self.limit)).collect();
            (
                target,
                Request { z: vec![z], c: Some(vec![c.clone()]), transforms: transforms.clone(), work: Work::Render, exact: true },
            )
        });
        let mut responses = lanes.run(&self.method, requests.collect())?.into_iter();
        let mut inverted = || responses.next().map(|response| response.rendered.into_iter().next().expect("one lane").inverted);
        Ok(self.glimpses.iter().map(|g| g.as_ref().and_then(|_| inverted())).collect())
    }

    /// Advances fine-tuning of the images that are neither `searching` nor finished.
    fn tune(&mut self, lanes: &Lanes, searching: &[(usize, u64)]) -> Result<(), DeviceError> {
        let Some(setting) = self.setting() else { return Ok(()) };
        let due = |i: &usize| !self.image_finished(*i) && !searching.iter().any(|(s, _)| s == i);
        let images: Vec<usize> = (0..self.images.len()).filter(due).collect();
        let begins: Vec<usize> = images.iter().copied().filter(|i| self.tunings[*i].is_none()).collect();
        let answers = begins.iter().map(|&i| (&self.targets[i], self.images[i].answer(self.limit))).collect();
        for (&i, response) in begins.iter().zip(lanes.run(&self.method, answers)?) {
            let (before, best) = latent::least(&response.loss);
            if before.is_finite() {
                let (z, c) = (response.z[best].clone(), response.c[best].clone());
                self.tunings[i] = Some(Tuning::new(z, c, self.images[i].transform.clone(), before));
            } else {
                self.images[i].diverged = true;
            }
        }
        let ready: Vec<usize> = images.into_iter().filter(|i| self.tunings[*i].is_some()).collect();
        let works = ready.iter().map(|&i| {
            let (setting, target) = (setting.clone(), self.targets[i].shallow_clone());
            let tuning = self.tunings[i].take().expect("it is ready");
            move |model: &Model, device| fine_tune::advance(model, device, &setting, &target, tuning, PART)
        });
        let works = works.collect();
        for (i, tuning) in ready.into_iter().zip(lanes.each(works)?) {
            self.tunings[i] = Some(tuning);
        }
        Ok(())
    }

    /// Renders and measures the results.
    ///
    /// # Panics
    /// If an image is not finished.
    pub fn finish(self, lanes: &Lanes) -> Result<Vec<Result<Solution, Diverged>>, DeviceError> {
        assert!(self.finished(), "step until finished");
        let requests = self.images.iter().zip(&self.targets).filter(|(image, _)| !image.diverged);
        let requests = requests.map(|(image, target)| (target, image.answer(self.limit))).collect();
        let mut responses = lanes.run(&self.method, requests)?.into_iter();
        let lane_steps: Vec<u64> = (0..self.images.len()).map(|i| self.lane_steps(i)).collect();
        let setting = self.setting();
        let curves: Vec<Vec<f64>> = self.tunings.iter().map(|t| t.as_ref().map_or(vec![], |t| t.curve.clone())).collect();
        let works = self.tunings.into_iter().zip(&self.targets).zip(&self.images).filter_map(|((tuning, target), image)| {
            let (setting, target) = (setting.clone()?, target.shallow_clone());
            let tuning = tuning.filter(|_| !image.diverged)?;
            Some(move |model: &Model, device| fine_tune::finish(model, device, &setting, &target, &tuning))
        });
        let mut tuned = lanes.each(works.collect())?.into_iter();
        let align_corners = self.method.align_corners;
        Ok(self
            .images
            .into_iter()
            .zip(&self.targets)
            .zip(curves.into_iter().zip(lane_steps))
            .map(|((image, target), (curve, lane_steps))| {
                if image.diverged {
                    return Err(Diverged);
                }
                let response = responses.next().expect("one response for each image that has not diverged");
                let solution = solution(image, target, response, align_corners)?;
                let history = History { fine_tune: curve, ..solution.history };
                Ok(Solution { fine_tuned: tuned.next(), history, lane_steps, ..solution })
            })
            .collect())
    }
}

impl Glimpse {
    fn of(response: &Response, transforms: Transforms) -> Glimpse {
        let losses = if response.inverted.is_empty() { &response.loss } else { &response.inverted };
        let best = latent::least(losses).1;
        let transforms = match transforms {
            Transforms::Each(each) => Transforms::Shared(each[best].clone()),
            other => other,
        };
        Glimpse { z: response.z[best].clone(), c: response.c[best].clone(), transforms }
    }
}

/// Lane-steps of one image: one forward (and backward) pass of one lane each.
pub fn lane_steps(params: &Params) -> u64 {
    let stage_one = params.transform.as_ref().map_or(0, |t| {
        let dim = transform::Space::new(t).dim();
        let cma = Cma::new(vec![0.0; dim], t.sigma, t.population.map(|p| p as usize));
        u64::from(t.generations) * u64::from(t.steps) * cma.population() as u64
    });
    let tuning = params.fine_tune.as_ref().map_or(0, |tune| u64::from(tune.steps));
    stage_one + latent_search::lane_steps(&params.latent, u64::from(params.seeds)) + tuning
}

/// Passes of one lane in a request.
fn passes(request: &Request) -> u64 {
    match &request.work {
        Work::Descend { steps, .. } => u64::from(*steps),
        Work::Evaluate | Work::Gradient => 1,
        Work::Render | Work::Encode => 0,
    }
}

fn start(params: &Params, statistics: &ObjectStatistics, shape: Shape, target: &Target, c: ClassVectors) -> Checkpoint {
    let mut rng = ChaCha8Rng::seed_from_u64(target.seed);
    let stage = match &params.transform {
        Some(t) => {
            let initial = mask::initial_transform(target.bbox, shape.resolution as i64, statistics, t);
            Search::Transform(Box::new(TransformSearch::new(t, &initial)))
        }
        None => Search::Latent(latent_search(params, shape, c, &mut rng)),
    };
    Checkpoint {
        shape,
        rng,
        stage,
        transform: None,
        transform_history: vec![],
        lane_steps: 0,
        diverged: false,
        last_loss: f64::NAN,
    }
}

fn latent_search(params: &Params, shape: Shape, c: ClassVectors, rng: &mut ChaCha8Rng) -> LatentSearch {
    LatentSearch::new(&params.latent, params.start, params.seeds as usize, shape.latent_dim, c, rng)
}

fn class_vectors<'a>(params: &Params, own: &'a [f32], each: Option<&'a Rows>) -> ClassVectors<'a> {
    let Descent { lr_z, lr_c, .. } = params.descent;
    // Without a rate for z there is nothing to compare with.
    ClassVectors { own, each, rate: if lr_z > 0.0 { (lr_c / lr_z).sqrt() } else { 1.0 } }
}

/// Class vectors that the seeds start with; `None`: that of the image's class. They have random numbers of their own, so that z starts
/// the same with and without them.
fn class_starts(params: &Params, model: &Model, target: &Target) -> Option<Rows> {
    let mut rng = ChaCha8Rng::seed_from_u64(target.seed);
    rng.set_stream(1);
    let (classes, width) = (model.generator.num_classes(), model.generator.embed_dim());
    let mut draw = || match params.class_start {
        ClassStart::Class => None,
        ClassStart::RandomClass => {
            let other = (target.class + rng.random_range(1..classes.max(2))) % classes;
            Some(Vec::try_from(model.generator.embed(other)).expect("an embedding is a vector of floats"))
        }
        ClassStart::Gaussian => Some((0..width).map(|_| rng.sample::<f32, _>(StandardNormal)).collect()),
    };
    (0..params.seeds).map(|_| draw()).collect()
}

fn embedding(model: &Model, target: &Target) -> Vec<f32> {
    Vec::try_from(model.generator.embed(target.class)).expect("an embedding is a vector of floats")
}

impl Checkpoint {
    fn finished(&self) -> bool {
        self.diverged || self.result().is_some()
    }

    fn result(&self) -> Option<(&Rows, Option<&Rows>)> {
        match &self.stage {
            Search::Latent(search) => search.result(),
            Search::Transform(_) => None,
        }
    }

    /// A request that renders all seeds of the search, z within the limit.
    fn answer(&self, limit: f32) -> Request {
        let (z, c) = self.result().expect("a finished image that has not diverged has a result");
        let z = z.iter().map(|z| z.iter().map(|v| v.clamp(-limit, limit)).collect()).collect();
        Request { z, c: c.cloned(), transforms: self.transforms(), work: Work::Render, exact: true }
    }

    fn transforms(&self) -> Transforms {
        self.transform.clone().map_or(Transforms::None, Transforms::Shared)
    }

    fn ask(&mut self, params: &Params) -> Option<Request> {
        if self.diverged {
            return None;
        }
        let transforms = self.transforms();
        match &mut self.stage {
            Search::Transform(search) => {
                let t = params.transform.as_ref().expect("stage one has parameters");
                Some(search.ask(t, self.shape.latent_dim, &mut self.rng))
            }
            Search::Latent(search) => search.ask(&params.latent, transforms, &mut self.rng),
        }
    }

    fn tell(&mut self, params: &Params, c0: &[f32], response: &Response, passes: u64) {
        self.lane_steps += passes * response.z.len() as u64;
        // `Work::Gradient` has no inverted loss.
        let losses = if response.inverted.is_empty() { &response.loss } else { &response.inverted };
        // The encoder's response has no loss.
        if !losses.is_empty() {
            self.last_loss = latent::least(losses).0;
            if !self.last_loss.is_finite() {
                self.diverged = true;
                return;
            }
        }
        match &mut self.stage {
            Search::Transform(search) => {
                let t = params.transform.as_ref().expect("stage one has parameters");
                search.tell(t, response);
                if search.finished(t) {
                    self.transform = Some(search.transform(t));
                    self.transform_history = std::mem::take(&mut search.history);
                    self.stage =
                        Search::Latent(latent_search(params, self.shape, class_vectors(params, c0, None), &mut self.rng));
                }
            }
            Search::Latent(search) => search.tell(&params.latent, response, &mut self.rng),
        }
    }
}

fn solution(image: Checkpoint, target: &Target, response: Response, align_corners: bool) -> Result<Solution, Diverged> {
    let (least, best) = latent::least(&response.loss);
    if !least.is_finite() {
        return Err(Diverged);
    }
    let transformed = match &image.transform {
        Some(t) => transform::apply(&target.image.unsqueeze(0), std::slice::from_ref(t), align_corners),
        None => target.image.shallow_clone(),
    };
    let Search::Latent(search) = image.stage else { unreachable!("a finished image is in stage two") };
    let history = History {
        transform: image.transform_history,
        latent: search.history,
        descent: search.curves.into_iter().map(|c| c.into_iter().map(f64::from).collect()).collect(),
        fine_tune: vec![],
    };
    let rendered = &response.rendered;
    let seeds = (0..response.z.len())
        .map(|i| Seed {
            z: response.z[i].clone(),
            c: response.c[i].clone(),
            loss: response.loss[i],
            inverted_loss: response.inverted[i],
            l1: rendered[i].l1,
            l2: rendered[i].l2,
            lpips: rendered[i].lpips,
        })
        .collect();
    Ok(Solution {
        transform: image.transform,
        best,
        seeds,
        generated: rendered[best].generated.clone(),
        inverted: rendered[best].inverted.clone(),
        transformed: flat(&transformed),
        fine_tuned: None,
        history,
        lane_steps: image.lane_steps,
    })
}

fn flat(t: &Tensor) -> Vec<f32> {
    Vec::try_from(t.contiguous().flatten(0, -1)).expect("a float tensor")
}
