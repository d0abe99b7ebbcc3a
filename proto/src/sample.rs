//! Valid values for the tests and benchmarks of all crates. Each test replaces the fields that it is about.

use crate::{Failure, FailureReason, Job, LatentSearch, ModelRef, Params, ResultRecord, SeedResult, TransformSearch};

/// The bundled model by name.
pub fn model() -> ModelRef {
    ModelRef { name: "fashion32".into(), digest: "ab".repeat(32), resolution: 32 }
}

/// A job for a picture of a bag, all of which is the object.
pub fn job() -> Job {
    let ModelRef { name: model, digest: model_digest, .. } = model();
    Job {
        run: "r".into(),
        image: "Bag/1.png".into(),
        identity: "1".into(),
        dataset: "/data".into(),
        class: 8,
        class_name: "Bag".into(),
        category: None,
        bbox: None,
        mask: None,
        model,
        model_digest,
        params: Params::fast(),
        seed: 7,
        generation: 0,
    }
}

/// The result of a job with these seeds, the first of which is the best. It has no objects.
pub fn result(job: &Job, seeds: Vec<SeedResult>) -> ResultRecord {
    ResultRecord {
        format: 1,
        job: job.id(),
        image: job.image.clone(),
        identity: job.identity.clone(),
        class: job.class,
        class_name: job.class_name.clone(),
        bbox: job.bbox,
        target_bbox: None,
        mask: false,
        found: None,
        model: ModelRef { name: job.model.clone(), digest: job.model_digest.clone(), resolution: 32 },
        params: job.params.clone(),
        seed: job.seed,
        version: "0.1.0".into(),
        transform: None,
        best: 0,
        seeds,
        lane_steps: 100,
        seconds: 1.5,
        attempt: "0f".into(),
        objects: vec![],
        fine_tuned: None,
        trace: None,
        generation: job.generation,
    }
}

/// A failure of an image for which there was no job.
pub fn failure(image: &str, reason: FailureReason, message: &str) -> Failure {
    Failure { format: 1, job: None, image: image.into(), reason, message: message.into(), class_name: None, generation: 0 }
}

/// The paper's method with a transform search of two generations, this latent search and four seeds.
pub fn params(latent: LatentSearch) -> Params {
    let paper = Params::paper();
    let transform = paper.transform.map(|t| TransformSearch { generations: 2, steps: 2, ..t });
    Params { profile: "test".into(), transform, latent, seeds: 4, ..paper }
}
