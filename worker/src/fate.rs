//! What an error means for its job: the one place that decides. No I/O.

use engine::SupplyError;
use engine::codec::CodecError;
use projector::{DeviceError, Diverged};
use proto::{DecodeError, FailureReason, Stage};
use store::ErrorKind;

use crate::Error;
use crate::outage::Place;

/// After this many attempts (some six minutes) an image whose data do not come from a data set that answers, or whose model is
/// damaged, fails; the next start of its run retries it.
pub const RETRIES: u32 = 13;

/// What becomes of a job after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A store is away, which is nobody's attempt: the job is held until it answers, or goes back uncounted.
    Wait(Place),
    /// It may work next time: the attempt counts, and the job is delivered again.
    Retry(Unavailable),
    /// It can never work: a failure record, then the dead letters.
    Reject(FailureReason),
    /// Only progress is lost: a job in work continues, and one that ends here goes back uncounted.
    Continue,
    /// This machine cannot do such jobs: it goes back uncounted, and the worker exits.
    Release,
    /// The worker exits. The job goes back and the attempt counts, so that one that always ends its worker becomes a dead letter.
    Crash,
}

/// What a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The image or the mask in the data set.
    Image,
    Model,
    /// What the store of the results does not give although it answers.
    Results,
    /// What it does not take although it answers, after the search.
    Upload,
}

impl Unavailable {
    /// The attribute `basin.reason` of `metrics::RETRIES`.
    pub fn as_str(self) -> &'static str {
        match self {
            Unavailable::Image => "image",
            Unavailable::Model => "model",
            Unavailable::Results => "results",
            Unavailable::Upload => Stage::Publish.as_str(),
        }
    }
}

/// Why an attempt at a job ends without a result.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("cannot read the job")]
    Message(#[from] DecodeError),
    #[error(transparent)]
    Model(#[from] SupplyError),
    #[error("image {image} has changed since the run was planned ({planned} then, {found} now)")]
    Changed { image: String, planned: String, found: String },
    #[error(
        "{attempts} attempts at image {image}, on {nodes} nodes, began and neither ended nor saved anything: it seems to kill its \
        worker"
    )]
    Quarantined { image: String, attempts: usize, nodes: usize },
    #[error("class {class} does not exist in the model, which has {classes}")]
    Class { class: u32, classes: usize },
    #[error("cannot read image {image}")]
    Image { image: String, source: store::Error },
    #[error("cannot see the data set {dataset} from this machine: is it mounted, and may this user read it?")]
    Dataset { dataset: String, source: store::Error },
    #[error("this worker must not open the data set of a job")]
    NotAllowed(#[from] store::NotAllowed),
    #[error("the store of the data set {dataset} does not answer")]
    DatasetAway { dataset: String, source: store::Error },
    #[error("{0}")]
    Lacks(proto::Lack),
    #[error("cannot read the mask {mask}")]
    Mask { mask: String, source: store::Error },
    #[error("mask {mask} {source}")]
    DecodeMask { mask: String, source: CodecError },
    #[error("image {image} {source}")]
    Decode { image: String, source: CodecError },
    #[error("cannot read from the store of the results")]
    Results(#[source] store::Error),
    #[error("image {image}: {source}")]
    Diverged { image: String, source: Diverged },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("cannot write the result")]
    Upload(#[source] store::Error),
    #[error("cannot write the checkpoint")]
    Checkpoint(#[source] store::Error),
}

/// Decides. `attempt` is that of the delivery, from 1.
pub fn fate(error: &JobError, attempt: u32) -> Fate {
    // An image that fails for want of its data is retried with its run; what is wrong with the results' store cannot be recorded there.
    let retry = |what| if attempt >= RETRIES { Fate::Reject(FailureReason::Unavailable) } else { Fate::Retry(what) };
    let unread = |source: &store::Error, [missing, name, bytes]: [FailureReason; 3]| match source.kind() {
        ErrorKind::Unavailable | ErrorKind::Changed => retry(Unavailable::Image),
        ErrorKind::NotFound => Fate::Reject(missing),
        ErrorKind::InvalidKey => Fate::Reject(name),
        ErrorKind::TooLarge | ErrorKind::Other => Fate::Reject(bytes),
        // The data set is there and refuses this object, which says nothing about its bytes: the next start of the run retries it.
        ErrorKind::Denied | ErrorKind::NoSpace => Fate::Reject(FailureReason::Unavailable),
        ErrorKind::InvalidUrl => Fate::Reject(FailureReason::BadJob),
    };
    match error {
        JobError::Message(_) | JobError::Lacks(_) => Fate::Reject(FailureReason::BadJob),
        JobError::Model(error) => match error {
            SupplyError::Model { .. }
            | SupplyError::ModelName { .. }
            | SupplyError::Manifest { .. }
            | SupplyError::Weights { .. } => Fate::Reject(FailureReason::BadJob),
            SupplyError::ModelStore { source, .. } => match source.kind() {
                ErrorKind::InvalidKey => Fate::Reject(FailureReason::BadJob),
                ErrorKind::Unavailable | ErrorKind::Changed => Fate::Wait(Place::Store),
                // The fault of neither the images nor this machine: a crash would stop the other runs too.
                ErrorKind::NotFound
                | ErrorKind::TooLarge
                | ErrorKind::InvalidUrl
                | ErrorKind::Denied
                | ErrorKind::NoSpace
                | ErrorKind::Other => retry(Unavailable::Model),
            },
            SupplyError::Damaged { .. } => retry(Unavailable::Model),
            SupplyError::Cache { .. } => Fate::Release,
        },
        JobError::Changed { .. } => Fate::Reject(FailureReason::ChangedImage),
        JobError::Quarantined { .. } => Fate::Reject(FailureReason::Quarantined),
        JobError::Class { .. } => Fate::Reject(FailureReason::UnknownClass),
        JobError::Image { source, .. } => {
            unread(source, [FailureReason::MissingImage, FailureReason::BadName, FailureReason::BadImage])
        }
        // Its list lacks what the coordinator's has: a worker with the right one takes the job.
        JobError::Dataset { .. } | JobError::NotAllowed(_) => Fate::Release,
        JobError::DatasetAway { .. } => Fate::Wait(Place::DataSet),
        JobError::Mask { source, .. } => unread(source, [FailureReason::BadMask; 3]),
        JobError::DecodeMask { .. } => Fate::Reject(FailureReason::BadMask),
        JobError::Decode { source, .. } => Fate::Reject(source.reason()),
        JobError::Results(source) if passes(source) => Fate::Wait(Place::Store),
        JobError::Results(_) => Fate::Release,
        JobError::Diverged { .. } => Fate::Reject(FailureReason::Diverged),
        // It was tried often, while the store answered (`Shared::persist`).
        JobError::Upload(source) if passes(source) => Fate::Retry(Unavailable::Upload),
        JobError::Checkpoint(source) if passes(source) => Fate::Continue,
        // The store takes nothing from anybody: the image has no part in it.
        JobError::Upload(source) | JobError::Checkpoint(source) if refuses(source) => Fate::Release,
        JobError::Device(_) | JobError::Upload(_) | JobError::Checkpoint(_) => Fate::Crash,
    }
}

/// Whether the store of the results refuses every object.
fn refuses(error: &store::Error) -> bool {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::InvalidUrl | ErrorKind::Denied | ErrorKind::NoSpace => true,
        ErrorKind::InvalidKey | ErrorKind::TooLarge | ErrorKind::Changed | ErrorKind::Unavailable | ErrorKind::Other => false,
    }
}

/// Whether the store of the results may work again after a while.
fn passes(error: &store::Error) -> bool {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Changed => true,
        ErrorKind::NotFound
        | ErrorKind::InvalidKey
        | ErrorKind::TooLarge
        | ErrorKind::InvalidUrl
        | ErrorKind::Denied
        | ErrorKind::NoSpace
        | ErrorKind::Other => false,
    }
}

/// The worker's error when the fate is `Release` or `Crash`.
impl From<JobError> for Error {
    fn from(error: JobError) -> Error {
        match error {
            JobError::Results(source) | JobError::Upload(source) | JobError::Checkpoint(source) => Error::Store(source),
            JobError::Model(source) => Error::Models(Box::new(source)),
            JobError::Device(source) => Error::Device(source),
            error => Error::Job(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use ErrorKind::{Changed, Denied, InvalidKey, InvalidUrl, NoSpace, NotFound, Other, TooLarge};
    use FailureReason::{BadBox, BadImage, BadJob, BadMask, BadName, ChangedImage, MissingImage, Quarantined, UnknownClass};
    use Fate::{Continue, Crash, Reject, Release, Retry, Wait};
    use engine::ModelError;
    use proto::{Box2d, Lack, LatentStart, ModelManifest, Params};

    use super::*;

    const AWAY: ErrorKind = ErrorKind::Unavailable;
    const KINDS: [ErrorKind; 9] = [NotFound, TooLarge, InvalidKey, InvalidUrl, Denied, NoSpace, Changed, AWAY, Other];

    fn text() -> String {
        "x".into()
    }

    /// Checks the fate of an error of each kind: at the first attempt, or at any if it is not a retry.
    fn by_kind(error: impl Fn(store::Error) -> JobError, expected: [Fate; 9]) {
        for (kind, expected) in KINDS.into_iter().zip(expected) {
            let error = error(store::Error::example(kind));
            assert_eq!(fate(&error, 1), expected, "{error:?}");
            if !matches!(expected, Retry(_)) {
                assert_eq!(fate(&error, RETRIES), expected, "{error:?}");
            }
        }
    }

    #[test]
    fn what_the_stores_errors_mean_depends_on_what_was_being_done() {
        let image = Retry(Unavailable::Image);
        let [missing, name, bad, mask] = [MissingImage, BadName, BadImage, BadMask].map(Reject);
        let (job, refused) = (Reject(BadJob), Reject(FailureReason::Unavailable));
        by_kind(
            |source| JobError::Image { image: text(), source },
            [missing, bad, name, job, refused, refused, image, image, bad],
        );
        by_kind(|source| JobError::Mask { mask: text(), source }, [mask, mask, mask, job, refused, refused, image, image, mask]);
        let model = Retry(Unavailable::Model);
        by_kind(
            |source| SupplyError::ModelStore { model: text(), source }.into(),
            [model, model, Reject(BadJob), model, model, model, Wait(Place::Store), Wait(Place::Store), model],
        );
        by_kind(|source| JobError::Dataset { dataset: text(), source }, [Release; 9]);
        by_kind(|source| JobError::DatasetAway { dataset: text(), source }, [Wait(Place::DataSet); 9]);
        let (results, out) = (Wait(Place::Store), Release);
        by_kind(JobError::Results, [out, out, out, out, out, out, results, results, out]);
        let upload = Retry(Unavailable::Upload);
        by_kind(JobError::Upload, [out, Crash, Crash, out, out, out, upload, upload, Crash]);
        by_kind(JobError::Checkpoint, [out, Crash, Crash, out, out, out, Continue, Continue, Crash]);
    }

    #[test]
    fn what_does_not_come_is_given_up_after_many_attempts_but_not_in_an_outage_of_a_store() {
        let away = || store::Error::example(AWAY);
        let given_up = Reject(FailureReason::Unavailable);
        for (error, unavailable, last) in [
            (JobError::Image { image: text(), source: away() }, Unavailable::Image, given_up),
            (JobError::Mask { mask: text(), source: away() }, Unavailable::Image, given_up),
            (SupplyError::Damaged { model: text(), problem: text() }.into(), Unavailable::Model, given_up),
            (JobError::Upload(away()), Unavailable::Upload, Retry(Unavailable::Upload)),
        ] {
            assert_eq!(fate(&error, RETRIES - 1), Retry(unavailable), "{error:?}");
            assert_eq!(fate(&error, RETRIES), last, "{error:?}");
        }
        for (error, place) in [
            (SupplyError::ModelStore { model: text(), source: away() }.into(), Place::Store),
            (JobError::Results(away()), Place::Store),
            (JobError::DatasetAway { dataset: text(), source: away() }, Place::DataSet),
        ] {
            assert_eq!(fate(&error, 1000), Wait(place), "{error:?}");
        }
    }

    #[test]
    fn errors_that_are_not_the_stores_have_one_fate() {
        let decode = || DecodeError::Field { message: "job", field: "run", problem: text() };
        let inconsistent = || Box::new(ModelError::Inconsistent { path: "x".into(), problem: text() });
        let bbox = Box2d { x: 0.0, y: 0.0, width: 0.0, height: 0.0 };
        let bad_mask = || CodecError::BadMask { width: 1, height: 1, problem: text() };
        let of_image = |source| JobError::Decode { image: text(), source };
        for (error, expected) in [
            (decode().into(), Reject(BadJob)),
            (JobError::Lacks(lack()), Reject(BadJob)),
            (SupplyError::Model { wanted: text(), loaded: text() }.into(), Reject(BadJob)),
            (SupplyError::ModelName { model: text(), problem: "x" }.into(), Reject(BadJob)),
            (SupplyError::Manifest { model: text(), source: decode() }.into(), Reject(BadJob)),
            (SupplyError::Weights { model: text(), source: inconsistent() }.into(), Reject(BadJob)),
            (SupplyError::Cache { dir: "x".into(), source: io::Error::other("x") }.into(), Release),
            (JobError::Changed { image: text(), planned: text(), found: text() }, Reject(ChangedImage)),
            (JobError::Quarantined { image: text(), attempts: 5, nodes: 2 }, Reject(Quarantined)),
            (JobError::Class { class: 9, classes: 3 }, Reject(UnknownClass)),
            (JobError::DecodeMask { mask: text(), source: CodecError::NotAnImage { found: text() } }, Reject(BadMask)),
            (of_image(CodecError::NotAnImage { found: text() }), Reject(BadImage)),
            (of_image(CodecError::TooLarge { width: 1, height: 1 }), Reject(BadImage)),
            (of_image(CodecError::Broken { format: "PNG", problem: text() }), Reject(BadImage)),
            (of_image(bad_mask()), Reject(BadMask)),
            (of_image(CodecError::BadBox { bbox, width: 1, height: 1, problem: "x" }), Reject(BadBox)),
            (JobError::Diverged { image: text(), source: Diverged }, Reject(FailureReason::Diverged)),
            (DeviceError { device: text(), message: text() }.into(), Crash),
        ] {
            assert_eq!(fate(&error, 1), expected, "{error:?}");
            assert_eq!(fate(&error, RETRIES), expected, "{error:?}");
        }
    }

    /// The bundled model has no encoder.
    fn lack() -> Lack {
        let (manifest, _) = ModelManifest::parse(include_bytes!("../../models/fashion32/model.json")).expect("a model");
        let manifest = ModelManifest { encoder: None, ..manifest };
        let start = LatentStart::ENCODER;
        manifest.lacks(&Params { start, ..Params::paper() }).expect("an encoder is missing")
    }
}
