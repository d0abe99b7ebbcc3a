//! What should be done: data set minus done. Pure.

use std::collections::HashMap;

use proto::keys::Marker;
use proto::{Box2d, Failure, FailureReason, Job, RunRecord, keys};
use sha2::{Digest, Sha256};

use crate::dataset::{ClassIndex, DatasetImage, Entry};
use crate::summary::SuperClasses;

/// What all jobs of a run have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// The run.
    pub record: RunRecord,
    /// The model's classes.
    pub classes: Vec<String>,
    /// Super-class of each; empty: the model has none.
    pub super_classes: Vec<String>,
}

/// An image that is to be projected: what its job says beside the run's.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Key in the data set.
    pub image: String,
    /// What the store says of its bytes.
    pub identity: String,
    /// Index into the model's classes.
    pub class: u32,
    /// Box of the object in pixels; `None`: the whole image.
    pub bbox: Option<Box2d>,
    /// Everything random of this image follows from it.
    pub seed: u64,
}

/// Where the seeds of images come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seeds {
    /// The run's.
    pub run: u64,
    /// By image, what a redrive put in its place.
    pub redriven: HashMap<String, u64>,
}

impl Seeds {
    /// Of an image: differs between images, and does not depend on which others there are.
    pub fn of(&self, image: &str) -> u64 {
        image_seed(*self.redriven.get(image).unwrap_or(&self.run), image)
    }
}

/// Seed of an image, where `seed` stands for the run.
pub fn image_seed(seed: u64, image: &str) -> u64 {
    let digest = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(image.as_bytes()).finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("eight bytes"))
}

impl RunSpec {
    /// The job of an image.
    pub fn job(&self, planned: &Planned) -> Job {
        let run = &self.record;
        Job {
            run: run.name.clone(),
            image: planned.image.clone(),
            identity: planned.identity.clone(),
            dataset: run.dataset.clone(),
            class: planned.class,
            class_name: self.classes[planned.class as usize].clone(),
            bbox: planned.bbox,
            model: run.model.clone(),
            model_digest: run.model_digest.clone(),
            params: run.params.clone(),
            seed: planned.seed,
        }
    }

    /// Super-class of each class, by name.
    pub fn super_class_of(&self) -> SuperClasses {
        self.classes.iter().cloned().zip(self.super_classes.iter().cloned()).collect()
    }
}

/// The work that is left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be published, by image.
    pub images: Vec<Planned>,
    /// Images that can be no job.
    pub failures: Vec<Failure>,
    /// Images that have a result already.
    pub settled: Vec<Planned>,
    /// How many more have one, and could be no job any more.
    pub settled_bad: usize,
    /// How many images have a failure already.
    pub settled_failed: usize,
    /// Those failures, where the caller knows them.
    pub settled_failures: Vec<Failure>,
}

impl Plan {
    /// Images that have a result or a failure already.
    pub fn skipped(&self) -> usize {
        self.settled.len() + self.settled_bad + self.settled_failed
    }

    /// Images that have a failure, or will have.
    pub fn failed(&self) -> usize {
        self.settled_failed + self.failures.len()
    }

    /// Images of the run.
    pub fn total(&self) -> usize {
        self.images.len() + self.failures.len() + self.skipped()
    }
}

/// Plans `entries` without the images at the places in `settled`, which have that marker.
pub fn plan(entries: Vec<Entry>, spec: &RunSpec, settled: &HashMap<String, Marker>, seeds: &Seeds) -> Plan {
    let classes = ClassIndex::new(&spec.classes);
    let mut plan = Plan::default();
    for entry in entries {
        let marker = settled.get(&keys::place(entry.image()));
        match (planned(entry, &classes, spec, seeds), marker) {
            (_, Some(Marker::Failure)) => plan.settled_failed += 1,
            (Ok(planned), Some(Marker::Result)) => plan.settled.push(planned),
            (Err(_), Some(Marker::Result)) => plan.settled_bad += 1,
            (Ok(planned), None) => plan.images.push(planned),
            (Err(failure), None) => plan.failures.push(failure),
        }
    }
    plan
}

fn planned(entry: Entry, classes: &ClassIndex, spec: &RunSpec, seeds: &Seeds) -> Result<Planned, Failure> {
    let fail = |image, reason, message, class_name| Failure { format: 1, job: None, image, reason, message, class_name };
    match entry {
        Entry::Bad { image, reason, message, class_name } => Err(fail(image, reason, message, class_name)),
        Entry::Image(DatasetImage { key, identity, class_name, bbox }) => {
            if let Err(problem) = keys::check_image(&key) {
                let message = format!("the image's name {key:?} {problem}");
                return Err(fail(key, FailureReason::BadName, message, Some(class_name)));
            }
            let Some(class) = classes.find(&class_name) else {
                let message = unknown_class(&class_name, spec);
                return Err(fail(key, FailureReason::UnknownClass, message, Some(class_name)));
            };
            let seed = seeds.of(&key);
            Ok(Planned { image: key, identity, class, bbox, seed })
        }
    }
}

/// Names the classes that there are, if they are few.
fn unknown_class(name: &str, spec: &RunSpec) -> String {
    let (classes, model) = (&spec.classes, &spec.record.model);
    let known = if classes.len() <= 20 { classes.join(", ") } else { "see classes in its model.json".into() };
    format!("class {name:?} is not one of the {} classes of model {model} ({known})", classes.len())
}

#[cfg(test)]
pub(crate) mod tests {
    use proto::Params;

    use super::*;

    pub(crate) fn spec(name: &str) -> RunSpec {
        RunSpec {
            record: RunRecord {
                format: 1,
                name: name.into(),
                dataset: "file:///d".into(),
                annotations: "auto".into(),
                limit: None,
                model: "m".into(),
                model_digest: "0".into(),
                resolution: 32,
                params: Params::fast(),
                seed: 7,
                version: "0".into(),
            },
            classes: vec!["Bag".into(), "Coat".into()],
            super_classes: vec!["thing".into(), "thing".into()],
        }
    }

    fn image(key: &str, class: &str) -> Entry {
        let (key, identity, class_name) = (key.into(), "1".into(), class.into());
        Entry::Image(DatasetImage { key, identity, class_name, bbox: None })
    }

    #[test]
    fn what_is_settled_is_not_planned_again_and_seeds_do_not_depend_on_the_rest() {
        let entries = || vec![image("a.png", "Bag"), image("b.png", "coat"), image("c.png", "Bag")];
        let spec = spec("r");
        let all = plan(entries(), &spec, &HashMap::new(), &Seeds::default());
        assert_eq!(all.images.iter().map(|j| j.class).collect::<Vec<_>>(), [0, 1, 0]);
        let rest = plan(entries(), &spec, &HashMap::from([("b.png".to_owned(), Marker::Failure)]), &Seeds::default());
        assert_eq!((rest.skipped(), rest.failed(), rest.total()), (1, 1, 3));
        assert_eq!(rest.images, [all.images[0].clone(), all.images[2].clone()]);
        let redriven = Seeds { run: 0, redriven: HashMap::from([("b.png".to_owned(), 5)]) };
        let again = plan(entries(), &spec, &HashMap::new(), &redriven);
        let changed = |i: usize| spec.job(&again.images[i]).id() != spec.job(&all.images[i]).id();
        assert_eq!([0, 1, 2].map(changed), [false, true, false]);
        let seeds = all.images.iter().map(|i| spec.job(i).seed).collect::<std::collections::HashSet<_>>();
        assert_eq!(seeds.len(), 3);
    }

    #[test]
    fn an_image_of_an_unknown_class_or_with_a_bad_name_fails_by_itself() {
        let entries = vec![image("a.png", "Shoe"), image("../b.png", "Bag"), image("c.png", "Bag")];
        let plan = plan(entries, &spec("r"), &HashMap::new(), &Seeds::default());
        assert_eq!(plan.images.len(), 1);
        let reasons: Vec<_> = plan.failures.iter().map(|f| f.reason).collect();
        assert_eq!(reasons, [FailureReason::UnknownClass, FailureReason::BadName]);
    }
}
