//! What should be done: data set minus done. Pure.

use std::collections::HashSet;

use proto::{Failure, FailureReason, Job, Params, keys};
use sha2::{Digest, Sha256};

use crate::dataset::{ClassIndex, Entry};

/// What all jobs of a run have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// Name of the run.
    pub name: String,
    /// URL that workers read images from.
    pub dataset: String,
    /// Name of the model.
    pub model: String,
    /// Digest of the model.
    pub model_digest: String,
    /// The model's classes.
    pub classes: Vec<String>,
    /// What to compute.
    pub params: Params,
    /// Everything random follows from it.
    pub seed: u64,
}

/// The work that is left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be published, by image.
    pub jobs: Vec<Job>,
    /// Images that can be no job.
    pub failures: Vec<Failure>,
    /// Images that have a result or a failure already.
    pub skipped: usize,
}

/// Plans `entries` without the images in `settled`, which have a result or a failure.
pub fn plan(entries: &[Entry], spec: &RunSpec, settled: &HashSet<String>) -> Plan {
    let classes = ClassIndex::new(&spec.classes);
    let mut plan = Plan::default();
    for entry in entries {
        if settled.contains(entry.image()) {
            plan.skipped += 1;
            continue;
        }
        let fail = |reason, message: String, class_name: Option<String>| Failure {
            format: 1,
            job: None,
            image: entry.image().to_owned(),
            reason,
            message,
            class_name,
        };
        match entry {
            Entry::Bad { reason, message, class_name, .. } => {
                plan.failures.push(fail(*reason, message.clone(), class_name.clone()));
            }
            Entry::Image(image) => {
                if let Err(problem) = keys::check_image(&image.key) {
                    let message = format!("the image's name {:?} {problem}", image.key);
                    plan.failures.push(fail(FailureReason::BadName, message, Some(image.class_name.clone())));
                    continue;
                }
                let Some(class) = classes.find(&image.class_name) else {
                    let (name, model) = (&image.class_name, &spec.model);
                    let message = format!("class {name:?} is not one of the {} classes of model {model}", spec.classes.len());
                    plan.failures.push(fail(FailureReason::UnknownClass, message, Some(name.clone())));
                    continue;
                };
                plan.jobs.push(Job {
                    run: spec.name.clone(),
                    image: image.key.clone(),
                    identity: image.identity.clone(),
                    dataset: spec.dataset.clone(),
                    class,
                    class_name: spec.classes[class as usize].clone(),
                    bbox: image.bbox,
                    model: spec.model.clone(),
                    model_digest: spec.model_digest.clone(),
                    params: spec.params.clone(),
                    seed: image_seed(spec.seed, &image.key),
                });
            }
        }
    }
    plan
}

/// Seed of an image: differs between images, and does not depend on which others there are.
fn image_seed(seed: u64, key: &str) -> u64 {
    let digest = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(key.as_bytes()).finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::DatasetImage;

    fn spec() -> RunSpec {
        RunSpec {
            name: "r".into(),
            dataset: "file:///d".into(),
            model: "m".into(),
            model_digest: "0".into(),
            classes: vec!["Bag".into(), "Coat".into()],
            params: Params::fast(),
            seed: 7,
        }
    }

    fn image(key: &str, class: &str) -> Entry {
        let (key, identity, class_name) = (key.into(), "1".into(), class.into());
        Entry::Image(DatasetImage { key, identity, class_name, bbox: None })
    }

    #[test]
    fn what_is_settled_is_not_planned_again_and_seeds_do_not_depend_on_the_rest() {
        let entries = [image("a.png", "Bag"), image("b.png", "coat"), image("c.png", "Bag")];
        let all = plan(&entries, &spec(), &HashSet::new());
        assert_eq!(all.jobs.iter().map(|j| j.class).collect::<Vec<_>>(), [0, 1, 0]);
        let rest = plan(&entries, &spec(), &HashSet::from(["b.png".to_owned()]));
        assert_eq!(rest.skipped, 1);
        assert_eq!(rest.jobs, [all.jobs[0].clone(), all.jobs[2].clone()]);
        assert_ne!(all.jobs[0].seed, all.jobs[2].seed);
    }

    #[test]
    fn an_image_of_an_unknown_class_or_with_a_bad_name_fails_by_itself() {
        let entries = [image("a.png", "Shoe"), image("../b.png", "Bag"), image("c.png", "Bag")];
        let plan = plan(&entries, &spec(), &HashSet::new());
        assert_eq!(plan.jobs.len(), 1);
        let reasons: Vec<_> = plan.failures.iter().map(|f| f.reason).collect();
        assert_eq!(reasons, [FailureReason::UnknownClass, FailureReason::BadName]);
    }
}
