//! The running method as a stepping machine over several images: `step`, `checkpoint`, `finish`.
//!
//! Images advance side by side and never influence each other: each has its own state and its own random numbers, so the projection
//! of an image does not depend on the others. Between two steps the caller may stop, save or preview.

use proto::{Descent, History, Params, SeedResult, Stage, Transform};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::cma::Cma;
use crate::fine_tune::{self, Dropped, Tuned, Tuning};
use crate::lanes::{DeviceError, Lanes, Model, Pictures, Request, Response, Transforms, Work};
use crate::latent_search::{self, ClassVectors, Found, LatentSearch, Rows};
use crate::mask::{self, ObjectStatistics};
use crate::target::Target;
use crate::transform_search::TransformSearch;
use crate::{latent, starts, transform};

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
    Latent(Box<LatentSearch>),
}

/// How far a projection has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProjectionProgress {
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
    /// The class that the answer's seed started from.
    pub class: i64,
    /// phi*; `None` without stage one.
    pub transform: Option<Transform>,
    /// The seed with the smallest training loss (Algorithm 1, line 23).
    pub best: usize,
    /// z of all seeds within the limit, `[seed][latent_dim]`.
    pub z: Rows,
    /// Class vectors of all seeds, `[seed][embed_dim]`.
    pub c: Rows,
    /// Distances of all seeds.
    pub seeds: Vec<SeedResult>,
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

/// The loss of an image became infinite or undefined in every lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the loss is not finite in any lane")]
pub struct Diverged;

/// The checkpoint belongs to another model or other parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the checkpoint does not fit this model and these parameters")]
pub struct Mismatch;

/// An image and how far it is.
struct Image {
    target: Target,
    /// Embedding of its class.
    embedding: Vec<f32>,
    search: Checkpoint,
    /// Renders the best lane of the last step of the search.
    glimpse: Option<Request>,
    /// Fine-tuning, once the search is finished.
    tuning: Option<Tuning>,
}

/// Projects images under the same parameters.
pub struct Projection {
    params: Params,
    images: Vec<Image>,
}

impl Projection {
    /// Starts every image. `statistics` say where the generator has its objects.
    ///
    /// The caller checks that every target has the generator's resolution and one of its classes.
    pub fn new(params: &Params, model: &Model, statistics: &ObjectStatistics, targets: Vec<Target>) -> Projection {
        let shape =
            Shape { latent_dim: model.generator.latent_dim() as usize, resolution: model.generator.resolution() as usize };
        let image = |target: Target| {
            let embedding = Vec::try_from(model.generator.embed(target.class)).expect("an embedding is a vector of floats");
            let each = starts::classes(params, model, &target);
            let search = start(params, statistics, shape, &target, class_vectors(params, &embedding, each.as_ref()));
            Image { target, embedding, search, glimpse: None, tuning: None }
        };
        Projection { params: params.clone(), images: targets.into_iter().map(image).collect() }
    }

    /// State of the search of an image.
    pub fn checkpoint(&self, image: usize) -> &Checkpoint {
        &self.images[image].search
    }

    /// Restores an image's state. Fails if its sizes differ.
    pub fn resume(&mut self, image: usize, checkpoint: Checkpoint) -> Result<(), Mismatch> {
        let image = &mut self.images[image];
        if checkpoint.shape != image.search.shape {
            return Err(Mismatch);
        }
        (image.search, image.tuning) = (checkpoint, None);
        Ok(())
    }

    /// Sets an image's transform and skips stage one.
    ///
    /// # Panics
    /// After the image's first step.
    pub fn fix_transform(&mut self, image: usize, transform: Transform) {
        let Image { search, embedding, .. } = &mut self.images[image];
        assert_eq!(search.lane_steps, 0, "the image has been stepped");
        search.transform = Some(transform);
        let c = class_vectors(&self.params, embedding, None);
        search.stage = Search::Latent(latent_search(&self.params, search.shape, c, None, &mut search.rng));
    }

    /// Whether every image is finished.
    pub fn finished(&self) -> bool {
        self.images.iter().all(|image| image.finished(&self.params))
    }

    /// Progress over all images.
    pub fn progress(&self) -> ProjectionProgress {
        let losses: Vec<f64> = self.images.iter().map(Image::loss).filter(|loss| loss.is_finite()).collect();
        let per_image = lane_steps(&self.params);
        // An image that ended early needs no more steps.
        let done = |image: &Image| if image.finished(&self.params) { per_image } else { image.lane_steps() };
        ProjectionProgress {
            done: self.images.iter().map(done).sum(),
            total: per_image * self.images.len() as u64,
            loss: losses.iter().sum::<f64>() / losses.len() as f64,
        }
    }

    /// The stage that an image's next step belongs to; `None` when the image is finished.
    pub fn stage(&self, image: usize) -> Option<Stage> {
        let image = &self.images[image];
        match &image.search.stage {
            _ if image.finished(&self.params) => None,
            _ if image.search.finished() => Some(Stage::FineTune),
            Search::Transform(_) => Some(Stage::TransformSearch),
            Search::Latent(search) if search.explores() => Some(Stage::LatentSearch),
            Search::Latent(_) => Some(Stage::FinalDescent),
        }
    }

    /// Smallest loss of an image in its last step; NaN before its first.
    pub fn loss(&self, image: usize) -> f64 {
        self.images[image].loss()
    }

    /// Advances the images that have been started by one generation, or one part of the long descent or of fine-tuning. Images are
    /// started in their order, as soon as the lanes of the others leave room for theirs.
    pub fn step(&mut self, lanes: &Lanes) -> Result<ProjectionProgress, DeviceError> {
        let mut asked = Vec::new();
        let (mut requests, mut transforms) = (Vec::new(), Vec::new());
        let appetites: Vec<Appetite> = self.images.iter().map(|image| image.search.appetite()).collect();
        let admitted = admitted(&appetites, lanes.room());
        for (i, image) in self.images.iter_mut().enumerate().filter(|(i, _)| admitted.contains(i)) {
            if let Some(request) = image.search.ask(&self.params) {
                asked.push((i, passes(&request)));
                transforms.push(request.transforms.clone());
                requests.push((&image.target, request));
            }
        }
        let responses = lanes.run(&self.params, requests)?;
        self.tune(lanes)?;
        for (((i, passes), response), transforms) in asked.into_iter().zip(responses).zip(transforms) {
            let Image { search, embedding, glimpse, .. } = &mut self.images[i];
            *glimpse = Some(best_lane(&response, transforms, &self.params));
            search.tell(&self.params, embedding, &response, passes);
        }
        Ok(self.progress())
    }

    /// A preview of each image: the inverted image of the last step's best lane, `[3, r, r]` flat in [-1, 1]; `None` before the first
    /// step.
    pub fn look(&self, lanes: &Lanes) -> Result<Vec<Option<Vec<f32>>>, DeviceError> {
        let requests = self.images.iter().filter_map(|image| Some((&image.target, image.glimpse.clone()?)));
        let mut responses = lanes.run(&self.params, requests.collect())?.into_iter();
        let mut inverted = || responses.next().map(|mut response| pictures(&mut response, 0).inverted);
        Ok(self.images.iter().map(|image| image.glimpse.as_ref().and_then(|_| inverted())).collect())
    }

    /// Advances fine-tuning of the images whose search had ended before this step.
    fn tune(&mut self, lanes: &Lanes) -> Result<(), DeviceError> {
        if self.params.fine_tune.is_none() {
            return Ok(());
        }
        let due = |i: &usize| self.images[*i].search.finished() && !self.images[*i].finished(&self.params);
        let images: Vec<usize> = (0..self.images.len()).filter(due).collect();
        let begins: Vec<usize> = images.iter().copied().filter(|i| self.images[*i].tuning.is_none()).collect();
        let answers = begins.iter().map(|&i| self.images[i].answer(&self.params)).collect();
        for (&i, response) in begins.iter().zip(lanes.run(&self.params, answers)?) {
            let Image { search, tuning, .. } = &mut self.images[i];
            let (before, best) = latent::least(&response.loss);
            if before.is_finite() {
                let (z, c) = (response.z[best].clone(), response.c[best].clone());
                *tuning = Some(Tuning::new(z, c, search.transform_of(best), before));
            } else {
                search.diverged = true;
            }
        }
        let ready: Vec<usize> = images.into_iter().filter(|i| self.images[*i].tuning.is_some()).collect();
        let works = ready.iter().map(|&i| {
            let (params, target) = (self.params.clone(), self.images[i].target.shallow_clone());
            let tuning = self.images[i].tuning.take().expect("it is ready");
            move |model: &Model, device| fine_tune::advance(model, device, &params, &target, tuning, PART)
        });
        let works = works.collect();
        for (i, tuning) in ready.into_iter().zip(lanes.each(works)?) {
            self.images[i].tuning = Some(tuning);
        }
        Ok(())
    }

    /// Renders and measures the results.
    ///
    /// # Panics
    /// If an image is not finished.
    pub fn finish(mut self, lanes: &Lanes) -> Result<Vec<Result<Solution, Diverged>>, DeviceError> {
        assert!(self.finished(), "step until finished");
        let found = self.images.iter().filter(|image| !image.search.diverged);
        let mut responses = lanes.run(&self.params, found.map(|image| image.answer(&self.params)).collect())?.into_iter();
        let curve = |image: &Image| image.tuning.as_ref().map_or(vec![], |tuning| tuning.curve.clone());
        let steps: Vec<_> = self.images.iter().map(|image| (curve(image), image.lane_steps())).collect();
        let works = self.images.iter_mut().filter(|image| !image.search.diverged).filter_map(|image| {
            let (params, target, tuning) = (self.params.clone(), image.target.shallow_clone(), image.tuning.take()?);
            Some(move |model: &Model, device| fine_tune::finish(model, device, &params, &target, &tuning))
        });
        let mut tuned = lanes.each(works.collect())?.into_iter();
        let solutions = self.images.into_iter().zip(steps).map(|(image, (fine_tune, lane_steps))| {
            if image.search.diverged {
                return Err(Diverged);
            }
            let response = responses.next().expect("one response for each image that has not diverged");
            let solution = solution(&self.params, image, response)?;
            let history = History { fine_tune, ..solution.history };
            Ok(Solution { fine_tuned: tuned.next(), history, lane_steps, ..solution })
        });
        Ok(solutions.collect())
    }
}

impl Image {
    fn finished(&self, params: &Params) -> bool {
        let tuned = || params.fine_tune.is_none() || self.tuning.as_ref().is_some_and(|t| t.finished);
        self.search.diverged || (self.search.finished() && tuned())
    }

    /// Smallest loss in the last step; NaN before the first.
    fn loss(&self) -> f64 {
        self.tuning.as_ref().map_or(self.search.last_loss, Tuning::loss)
    }

    fn lane_steps(&self) -> u64 {
        self.search.lane_steps + self.tuning.as_ref().map_or(0, |t| u64::from(t.steps))
    }

    /// A request that renders all seeds of the search, z within the limit.
    fn answer(&self, params: &Params) -> (&Target, Request) {
        let Found { z, c, transforms, .. } = self.search.result().expect("a finished image that has not diverged has a result");
        let transforms = transforms.clone().map_or(self.search.transform.clone().into(), Transforms::Each);
        let request = Request { z: clamped(z, params), c: c.clone(), transforms, work: Work::Render, adam: None, exact: true };
        (&self.target, request)
    }
}

/// A request that renders the best lane of a response.
fn best_lane(response: &Response, transforms: Transforms, params: &Params) -> Request {
    let losses = if response.inverted.is_empty() { &response.loss } else { &response.inverted };
    let best = latent::least(losses).1;
    let transforms = match (response.transforms.get(best), transforms) {
        (Some(moved), _) => Transforms::Shared(moved.clone()),
        (None, Transforms::Each(each)) => Transforms::Shared(each[best].clone()),
        (None, other) => other,
    };
    let (z, c) = (clamped(&response.z[best..=best], params), Some(vec![response.c[best].clone()]));
    Request { z, c, transforms, work: Work::Render, adam: None, exact: true }
}

/// Takes a lane's pictures out of a response. The lane has the least loss.
fn pictures(response: &mut Response, lane: usize) -> Pictures {
    response.rendered[lane].pictures.take().expect("the lane with the least loss of its block has pictures")
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

/// What an image's search asks for.
#[derive(Clone, Copy, Debug)]
struct Appetite {
    /// Lanes of its next request; 0: it is finished.
    lanes: usize,
    started: bool,
}

/// Indices of the images that may compute: those that have been started, and as many others as there is room for, in their order. At
/// least one.
fn admitted(images: &[Appetite], room: usize) -> Vec<usize> {
    let mut used: usize = images.iter().filter(|image| image.started).map(|image| image.lanes).sum();
    let mut admitted = Vec::new();
    let mut full = false;
    for (i, image) in images.iter().enumerate().filter(|(_, image)| image.lanes > 0) {
        if !image.started {
            full |= used > 0 && used + image.lanes > room;
            if full {
                continue;
            }
            used += image.lanes;
        }
        admitted.push(i);
    }
    admitted
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
    let initial = |t| mask::initial_transform(target.bbox, shape.resolution as i64, statistics, t);
    let stage = match &params.transform {
        Some(t) if t.generations > 0 => Search::Transform(Box::new(TransformSearch::new(t, &initial(t)))),
        // The generator knows whole images as they are. Without an object there is nothing that a transform could bring into place.
        Some(_) if target.bbox.is_none() => Search::Latent(latent_search(params, shape, c, None, &mut rng)),
        Some(t) => {
            let truncated = |multiple| {
                mask::truncated_transform(&initial(t), target.bbox, shape.resolution as i64, statistics, multiple)
                    .filter(|_| t.truncated > 1.0)
            };
            let transforms = starts::transforms(t, &initial(t), truncated, params.seeds, target.seed);
            Search::Latent(latent_search(params, shape, c, Some(transforms), &mut rng))
        }
        None => Search::Latent(latent_search(params, shape, c, None, &mut rng)),
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

fn latent_search(
    params: &Params,
    shape: Shape,
    c: ClassVectors,
    transforms: Option<Vec<Transform>>,
    rng: &mut ChaCha8Rng,
) -> Box<LatentSearch> {
    Box::new(LatentSearch::new(&params.latent, params.start, params.seeds as usize, shape.latent_dim, c, transforms, rng))
}

fn class_vectors<'a>(params: &Params, own: &'a [f32], each: Option<&'a Rows>) -> ClassVectors<'a> {
    let Descent { lr_z, lr_c, .. } = params.descent;
    // Without a rate for z there is nothing to compare with.
    ClassVectors { own, each, rate: if lr_z > 0.0 { (lr_c / lr_z).sqrt() } else { 1.0 } }
}

/// z within the limit.
fn clamped(z: &[Vec<f32>], params: &Params) -> Rows {
    let limit = params.descent.limit as f32;
    z.iter().map(|z| z.iter().map(|v| v.clamp(-limit, limit)).collect()).collect()
}

impl Checkpoint {
    fn finished(&self) -> bool {
        self.diverged || self.result().is_some()
    }

    fn result(&self) -> Option<&Found> {
        match &self.stage {
            Search::Latent(search) => search.result(),
            Search::Transform(_) => None,
        }
    }

    /// The transform of a seed of the result.
    fn transform_of(&self, seed: usize) -> Option<Transform> {
        let own = self.result().and_then(|found| found.transforms.as_ref());
        own.map_or(self.transform.clone(), |each| Some(each[seed].clone()))
    }

    fn appetite(&self) -> Appetite {
        let lanes = match &self.stage {
            _ if self.finished() => 0,
            Search::Transform(search) => search.lanes(),
            Search::Latent(search) => search.lanes(),
        };
        Appetite { lanes, started: self.lane_steps > 0 }
    }

    fn ask(&mut self, params: &Params) -> Option<Request> {
        if self.diverged {
            return None;
        }
        match &mut self.stage {
            Search::Transform(search) => {
                let t = params.transform.as_ref().expect("stage one has parameters");
                Some(search.ask(t, self.shape.latent_dim, &mut self.rng))
            }
            Search::Latent(search) => search.ask(&params.latent, self.transform.clone().into(), &mut self.rng),
        }
    }

    fn tell(&mut self, params: &Params, c0: &[f32], response: &Response, passes: u64) {
        self.lane_steps += passes * response.z.len() as u64;
        // `Work::Gradient` has no inverted loss, and a candidate of stage one no other.
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
                        Search::Latent(latent_search(params, self.shape, class_vectors(params, c0, None), None, &mut self.rng));
                }
            }
            Search::Latent(search) => search.tell(&params.latent, response, &mut self.rng),
        }
    }
}

fn solution(params: &Params, image: Image, mut response: Response) -> Result<Solution, Diverged> {
    let (least, best) = latent::least(&response.loss);
    if !least.is_finite() {
        return Err(Diverged);
    }
    let Pictures { generated, inverted } = pictures(&mut response, best);
    let Image { target, search, .. } = image;
    let transform = search.transform_of(best);
    let transformed = match &transform {
        Some(t) => transform::apply(&target.image.unsqueeze(0), std::slice::from_ref(t), params.align_corners()),
        None => target.image.shallow_clone(),
    };
    let classes = starts::classes_of(params, &target);
    let found = search.result();
    let transforms = found.and_then(|found| found.transforms.clone());
    let survivors = found.and_then(|found| found.survivors.clone());
    // The class that a seed of the result started from.
    let class_of = |seed: usize| classes.get(survivors.as_ref().map_or(seed, |first| first[seed])).copied();
    let Search::Latent(latent) = search.stage else { unreachable!("a finished image is in stage two") };
    let history = History {
        transform: search.transform_history,
        latent: latent.history,
        descent: latent.curves.into_iter().map(|c| c.into_iter().map(f64::from).collect()).collect(),
        fine_tune: vec![],
    };
    let mut seeds: Vec<SeedResult> = response.rendered.into_iter().map(|rendered| rendered.distances).collect();
    for (seed, transform) in seeds.iter_mut().zip(transforms.into_iter().flatten()) {
        seed.transform = Some(transform);
    }
    for (i, seed) in seeds.iter_mut().enumerate() {
        seed.class = class_of(i).map(|class| class as u32);
    }
    Ok(Solution {
        class: class_of(best).unwrap_or(target.class),
        transform,
        best,
        z: response.z,
        c: response.c,
        seeds,
        generated,
        inverted,
        transformed: Vec::try_from(transformed.contiguous().flatten(0, -1)).expect("a float tensor"),
        fine_tuned: None,
        history,
        lane_steps: search.lane_steps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_started_in_their_order_as_lanes_become_free() {
        let image = |lanes, started| Appetite { lanes, started };
        let waiting = image(18, false);
        assert_eq!(admitted(&[waiting; 4], 36), [0, 1], "two fit");
        assert_eq!(admitted(&[waiting; 4], 5), [0], "one always computes");
        // The first has halved its seeds twice, the second once: a third fits.
        assert_eq!(admitted(&[image(5, true), image(9, true), waiting, waiting], 36), [0, 1, 2]);
        // A finished image needs nothing, and nobody overtakes one that has to wait.
        assert_eq!(admitted(&[image(0, true), image(18, true), waiting, image(2, false)], 30), [1]);
        // What has been started goes on, even if there is less room now.
        assert_eq!(admitted(&[image(18, true), image(18, true)], 10), [0, 1]);
    }
}
