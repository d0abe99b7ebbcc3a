//! Plans a run: the images of the data set without those that are finished. Pure.

use std::collections::HashMap;

use proto::keys::Marker;
use proto::{
    Box2d, ClassSource, Failure, FailureReason, Job, Mask, MaskSource, ModelManifest, OPEN_CLASS, Params, RunRecord,
    TransformSearch, keys, relaxed,
};
use results::seeds::Seeds;

use dataset::SharedStr;
use dataset::{ClassIndex, DatasetImage, Entry};
use results::summary::SuperClasses;

/// What all jobs of a run have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    pub record: RunRecord,
    pub classes: Vec<String>,
    /// Super-class of each class; empty: the model has none.
    pub super_classes: Vec<String>,
    /// Category of each class; empty: the model does not say.
    pub categories: Vec<String>,
}

/// An image to be projected: what its job says beside the run's record.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Key in the data set.
    pub image: SharedStr,
    /// Identity of its bytes in the store.
    pub identity: SharedStr,
    /// Index into the model's classes; `OPEN_CLASS`: a worker finds it.
    pub class: u32,
    /// Box of the object in pixels; `None`: the whole image.
    pub bbox: Option<Box<Box2d>>,
    pub more: Option<Box<More>>,
    /// All random numbers of this image follow from it.
    pub seed: u64,
}

/// What few jobs have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct More {
    /// The data set's category, for an open class.
    pub category: Option<String>,
    pub mask: Option<Box<Mask>>,
}

impl RunSpec {
    pub fn new(record: RunRecord, model: &ModelManifest) -> RunSpec {
        let ModelManifest { classes, super_classes, categories, .. } = model.clone();
        RunSpec { record, classes, super_classes, categories }
    }

    pub fn job(&self, planned: &Planned) -> Job {
        let run = &self.record;
        let More { category, mask } = planned.more.as_deref().cloned().unwrap_or_default();
        Job {
            run: run.name.clone(),
            image: planned.image.to_string(),
            identity: planned.identity.to_string(),
            dataset: run.dataset.clone(),
            class: planned.class,
            class_name: self.classes.get(planned.class as usize).cloned().unwrap_or_default(),
            category,
            bbox: planned.bbox.as_deref().copied(),
            mask: mask.map(|mask| *mask),
            model: run.model.clone(),
            model_digest: run.model_digest.clone(),
            params: run.params.clone(),
            seed: planned.seed,
            // `Fleet` knows it: an image whose job was never tried again needs no memory for it.
            generation: 0,
        }
    }

    /// Super-class of each class, by name.
    pub fn super_class_of(&self) -> SuperClasses {
        self.classes.iter().cloned().zip(self.super_classes.iter().cloned()).collect()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be projected, by image.
    pub images: Vec<Planned>,
    /// Images that cannot be projected.
    pub failures: Vec<Failure>,
    /// Images that have a result already.
    pub settled: Vec<Planned>,
    /// How many more have a result, and could not be planned now.
    pub settled_bad: usize,
    /// How many images have a failure already.
    pub settled_failed: usize,
    /// Those failures, if the caller knows them.
    pub settled_failures: Vec<Failure>,
    /// By image, its generation where that is not 0.
    pub generations: HashMap<String, u64>,
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

    pub fn total(&self) -> usize {
        self.images.len() + self.failures.len() + self.skipped()
    }
}

/// Plans `entries`. `settled`: places of finished images, and their markers.
pub fn plan(entries: Vec<Entry>, spec: &RunSpec, settled: &HashMap<String, Marker>, seeds: &Seeds) -> Plan {
    let classes = ClassIndex::new(&spec.classes);
    let mut plan = Plan { generations: seeds.generations.clone(), ..Plan::default() };
    for entry in entries {
        let marker = if settled.is_empty() { None } else { settled.get(&keys::place(entry.image())) };
        match (planned(entry, &classes, spec, seeds), marker) {
            (_, Some(Marker::Failure)) => plan.settled_failed += 1,
            (Ok(planned), Some(Marker::Result)) => plan.settled.push(planned),
            (Err(_), Some(Marker::Result)) => plan.settled_bad += 1,
            (Ok(planned), None) => plan.images.push(planned),
            (Err(failure), None) => {
                let generation = seeds.generation(&failure.image);
                plan.failures.push(Failure { generation, ..failure });
            }
        }
    }
    plan
}

fn planned(entry: Entry, classes: &ClassIndex, spec: &RunSpec, seeds: &Seeds) -> Result<Planned, Failure> {
    let DatasetImage { key, identity, class_name, bbox, mask } = match entry {
        Entry::Image(image) => image,
        Entry::Bad { image, reason, message, class_name } => {
            return Err(Failure::without_job(&image, reason, message.into(), class_name.map(|name| name.to_string())));
        }
    };
    let fail = |reason, message| Failure::without_job(&key, reason, message, Some(class_name.to_string()));
    keys::check_image(&key).map_err(|problem| fail(FailureReason::BadName, format!("the image's name {key:?} {problem}")))?;
    let find = |name: &str| classes.find(name).ok_or_else(|| unknown_class(name, spec));
    let mut category = None;
    let class = match &spec.record.params.object.class {
        ClassSource::Annotation => find(&class_name),
        ClassSource::Fixed { name } => find(name),
        ClassSource::Classifier => Ok(OPEN_CLASS),
        ClassSource::Category => {
            category = spec.categories.iter().find(|known| same(known, &class_name)).cloned();
            category.as_ref().map(|_| OPEN_CLASS).ok_or_else(|| unknown_category(&class_name, spec))
        }
    };
    let class = class.map_err(|message| fail(FailureReason::UnknownClass, message))?;
    let seed = seeds.of(&key);
    let more = (category.is_some() || mask.is_some()).then(|| Box::new(More { category, mask }));
    Ok(Planned { image: key, identity, class, bbox, more, seed })
}

fn same(category: &str, name: &str) -> bool {
    !category.is_empty() && relaxed(category) == relaxed(name)
}

fn unknown_category(name: &str, spec: &RunSpec) -> String {
    let model = &spec.record.model;
    format!("model {model} has no class of category {name:?} (see categories in its model.json)")
}

fn unknown_class(name: &str, spec: &RunSpec) -> String {
    let (classes, model) = (&spec.classes, &spec.record.model);
    let known = if classes.len() <= 20 { classes.join(", ") } else { "see classes in its model.json".into() };
    let kind = spec.categories.iter().any(|category| same(category, name));
    let hint = if kind { "; --class-from category chooses among the classes of this category" } else { "" };
    format!("class {name:?} is not one of the {} classes of model {model} ({known}){hint}", classes.len())
}

/// A note if the run asks for a rotation or perspective, and some images get no transform because they have no box. Pure.
pub fn without_turn(images: &[Planned], params: &Params) -> Option<String> {
    let asked = |t: &TransformSearch| t.generations == 0 && (t.rotation.is_some() || t.perspective);
    if !params.transform.as_ref().is_some_and(asked) {
        return None;
    }
    let is_whole = |planned: &&Planned| match params.object.mask {
        MaskSource::Whole => true,
        MaskSource::Box | MaskSource::Outline => planned.bbox.is_none() && planned.more.as_ref().is_none_or(|m| m.mask.is_none()),
        MaskSource::DetectorBox | MaskSource::DetectorMask | MaskSource::File { .. } => false,
    };
    let whole = images.iter().filter(is_whole).count();
    (whole > 0).then(|| format!("images without a box: {whole}. They get no transform, so no rotation and no perspective"))
}

#[cfg(test)]
pub(crate) mod tests {
    use proto::ModelRef;

    use super::*;

    pub(crate) fn spec(name: &str) -> RunSpec {
        let model = ModelRef { name: "m".into(), digest: "0".into(), resolution: 32 };
        RunSpec {
            record: RunRecord { seed: 7, ..RunRecord::new(name, "file:///d".into(), model, Params::fast()) },
            classes: vec!["Bag".into(), "Coat".into()],
            super_classes: vec!["thing".into(), "thing".into()],
            categories: vec!["handbag".into(), String::new()],
        }
    }

    fn image(key: &str, class: &str) -> Entry {
        let (key, identity, class_name) = (key.into(), "1".into(), class.into());
        Entry::Image(DatasetImage { key, identity, class_name, bbox: None, mask: None })
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
        let redriven = Seeds { redriven: HashMap::from([("b.png".to_owned(), 5)]), ..Seeds::default() };
        let again = plan(entries(), &spec, &HashMap::new(), &redriven);
        let changed = |i: usize| spec.job(&again.images[i]).id() != spec.job(&all.images[i]).id();
        assert_eq!([0, 1, 2].map(changed), [false, true, false]);
        let seeds = all.images.iter().map(|i| spec.job(i).seed).collect::<std::collections::HashSet<_>>();
        assert_eq!(seeds.len(), 3);
    }

    #[test]
    fn a_run_is_told_that_images_without_a_box_are_not_turned() {
        let mut spec = spec("r");
        let mut images =
            plan(vec![image("a.png", "Bag"), image("b.png", "Bag")], &spec, &HashMap::new(), &Seeds::default()).images;
        images[1].bbox = Some(Box::new(Box2d { x: 0.0, y: 0.0, width: 9.0, height: 9.0 }));
        assert_eq!(without_turn(&images, &spec.record.params), None, "nobody asked for a rotation");
        spec.record.params.transform.as_mut().expect("fast has one").rotation = Some(30.0);
        let note = |spec: &RunSpec, images| without_turn(images, &spec.record.params);
        assert!(note(&spec, &images).is_some_and(|note| note.starts_with("images without a box: 1.")));
        assert_eq!(note(&spec, &images[1..]), None);
        spec.record.params.object.mask = MaskSource::DetectorBox;
        assert_eq!(note(&spec, &images), None, "a worker finds the boxes");
        spec.record.params.object.mask = MaskSource::Whole;
        assert!(note(&spec, &images).is_some_and(|note| note.starts_with("images without a box: 2.")));
    }

    #[test]
    fn a_class_that_a_worker_finds_is_open_and_changes_no_id_when_it_is_found() {
        let mut spec = spec("r");
        spec.record.params.object.class = ClassSource::Category;
        let entries = vec![image("a.png", "Hand-Bag"), image("b.png", "handbag"), image("c.png", "coat")];
        let plan = plan(entries, &spec, &HashMap::new(), &Seeds::default());
        // "Hand-Bag" is two words, and the coat has no category.
        assert_eq!(plan.failures.iter().map(|f| f.image.as_str()).collect::<Vec<_>>(), ["a.png", "c.png"]);
        let job = spec.job(&plan.images[0]);
        assert_eq!((job.class, job.class_name.as_str(), job.category.as_deref()), (OPEN_CLASS, "", Some("handbag")));
        let found = Job { class: 0, class_name: "Bag".into(), ..job.clone() };
        assert_eq!(found.id(), job.id());
        assert_eq!(Job::decode(&job.encode()).expect("it was encoded here"), job);
        let other = Job { category: Some("bag".into()), ..job.clone() };
        assert_ne!(other.id(), job.id());
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
