//! The records that end a job: a result or a failure. JSON, since people read them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::keys::Item;
use crate::{Box2d, ColourTransform, Job, JobId, ModelRef, Params};

/// `result.json`: the commit marker of a job. It exists if and only if all other objects of the job are in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultRecord {
    /// Version of this format: 1.
    pub format: u32,
    /// Id of the job.
    pub job: JobId,
    /// Key of the image in the data set.
    pub image: String,
    /// See `Job::identity`.
    pub identity: String,
    /// Index of the class.
    pub class: u32,
    /// Name of the class.
    pub class_name: String,
    /// Box of the object in pixels of the image.
    pub bbox: Option<Box2d>,
    /// The same in pixels of `target.png`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bbox: Option<Box2d>,
    /// Whether `mask.png` is there: the object is no rectangle.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mask: bool,
    /// What a worker found in the image, if it was to find the class or the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Found>,
    /// The generator and perceptual network.
    pub model: ModelRef,
    /// What was computed.
    pub params: Params,
    /// Everything random followed from it.
    pub seed: u64,
    /// Version of basin.
    pub version: String,
    /// The transform that stage one found, if there was a stage one.
    pub transform: Option<Transform>,
    /// The answer: index into `seeds` of the smallest training loss (Algorithm 1, line 23).
    pub best: usize,
    /// All seeds.
    pub seeds: Vec<SeedResult>,
    /// Forward and backward passes of one lane.
    pub lane_steps: u64,
    /// Seconds of device work (shared by the images of a batch).
    pub seconds: f64,
    /// The attempt whose objects these are: they are in `attempt-<id>/` beside this record.
    pub attempt: String,
    /// Those objects.
    pub objects: Vec<ObjectRef>,
    /// What fine-tuning came to, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuned: Option<FineTuned>,
    /// Id of the trace of the attempt, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// See `Job::generation`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
}

/// Whether a number need not be written: it is what a reader takes where there is none.
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An object of the winning attempt, so that a reader can tell that it is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Last part of its key.
    pub file: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

impl ResultRecord {
    /// The objects that must be there.
    pub fn items(&self) -> impl Iterator<Item = Item> {
        let tuned = matches!(self.fine_tuned, Some(FineTuned::Kept { .. }));
        Item::ALL.into_iter().filter(move |item| match item {
            Item::Tuned | Item::Delta => tuned,
            Item::Mask => self.mask,
            _ => true,
        })
    }

    /// Whether it came late: it is the result of another job than that with the id `job`, of an earlier generation. Then the image has
    /// another seed by now, and the result of that job takes its place.
    pub fn is_late(&self, job: &str, generation: u64) -> bool {
        self.generation < generation && self.job.as_str() != job
    }

    /// The best seed's numbers.
    pub fn best_seed(&self) -> &SeedResult {
        &self.seeds[self.best]
    }
}

/// What a worker found in an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The classifier's probability of the class, if it was to say one; after `category` among the classes of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// The classes that the seeds started from where several were likely, with their probabilities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub likely: Vec<(String, f64)>,
    /// The detection that was taken; `None`: the whole image, since no detection fits the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection: Option<Detected>,
}

/// A detection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detected {
    /// The detector's label.
    pub label: String,
    /// Confidence of the detection, 0 to 1.
    pub score: f64,
}

/// What fine-tuning came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum FineTuned {
    /// The tuned generator is closer to the target: `tuned.png` and the delta are there.
    Kept {
        /// Adam's steps.
        steps: u32,
        /// Distances of the generator with the stored delta.
        distances: SeedResult,
        /// LPIPS of the transformed target, weighted as in the loss: before it, and of the generator with the stored delta.
        lpips: (f64, f64),
        /// Signal-to-noise ratio between the images of the stored delta and of the change itself, in dB; `None` if they are the same.
        psnr: Option<f64>,
        /// How many layers are stored in which code.
        codes: BTreeMap<String, usize>,
    },
    /// It was no help: the answer is the search's.
    Dropped {
        /// Why.
        why: String,
    },
}

/// phi*: maps the image into the generator's frame. Output to input coordinates in [-1, 1], y downwards:
/// `x_in = (R scale x_out + shift) / (1 + perspective . x_out)`, with the rotation R by `rotation`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transform {
    /// (x, y); above 1 the object becomes smaller.
    pub scale: [f64; 2],
    /// (x, y) in half widths.
    pub shift: [f64; 2],
    /// How far the object in the image is turned clockwise from the generator's, in degrees.
    #[serde(default)]
    pub rotation: f64,
    /// (x, y): how much smaller the image is at the right and lower edge of the generator's frame than in its centre; 0: not at all.
    #[serde(default)]
    pub perspective: [f64; 2],
    /// Colour transforms and their parameters (1 or, for hue, 0 changes nothing).
    pub colour: Vec<(ColourTransform, f64)>,
}

/// Smallest and largest parameters of a transform; the search stays within them.
impl Transform {
    /// Scales. Positive, so that an inverse exists; an object of 1/50 of the frame can still fill it.
    pub const SCALE_LIMITS: (f64, f64) = (0.02, 10.0);
    /// Shifts in half widths. Within them the frame's centre lies in the source, so that no weight map becomes all zero.
    pub const SHIFT_LIMITS: (f64, f64) = (-1.0, 1.0);
    /// Rotations in degrees: half a turn.
    pub const ROTATION_LIMITS: (f64, f64) = (-180.0, 180.0);
    /// Perspective. The whole frame stays in front of the eye.
    pub const PERSPECTIVE_LIMITS: (f64, f64) = (-0.4, 0.4);
    /// Factors of brightness (the authors' branch `legacy`), contrast, saturation and gamma.
    pub const FACTOR_LIMITS: (f64, f64) = (0.667, 1.5);
    /// Hue in turns: a whole turn.
    pub const HUE_LIMITS: (f64, f64) = (-0.5, 0.5);

    /// Where a point of the generator's frame lies in the image, both in [-1, 1].
    pub fn point(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let (sin, cos) = self.rotation.to_radians().sin_cos();
        let (sx, sy) = (self.scale[0] * x, self.scale[1] * y);
        let depth = 1.0 + self.perspective[0] * x + self.perspective[1] * y;
        [(cos * sx - sin * sy + self.shift[0]) / depth, (sin * sx + cos * sy + self.shift[1]) / depth]
    }

    /// The transform that changes nothing, without colours.
    pub const IDENTITY: Transform =
        Transform { scale: [1.0, 1.0], shift: [0.0, 0.0], rotation: 0.0, perspective: [0.0, 0.0], colour: vec![] };
}

/// One seed at the end of the search. All distances but `loss` are of the inverted image inside the box, in [-1, 1]
/// (method: the authors' Benchmark).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedResult {
    /// Training loss, with weights 1 and background: of the transformed target, or in the target's frame of the inverted image.
    #[serde(deserialize_with = "null_as_nan")]
    pub loss: f64,
    /// The same loss of the inverted image inside the box.
    #[serde(deserialize_with = "null_as_nan")]
    pub inverted_loss: f64,
    /// Sum over channels, mean over the box's pixels of the absolute difference.
    #[serde(deserialize_with = "null_as_nan")]
    pub l1: f64,
    /// Sum over channels, mean over the box's pixels of the squared difference.
    #[serde(deserialize_with = "null_as_nan")]
    pub l2: f64,
    /// LPIPS under the model's perceptual network, mean over the box's pixels.
    #[serde(deserialize_with = "null_as_nan")]
    pub lpips: f64,
    /// Index of the class that the seed started from; missing: the result's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<u32>,
    /// The seed's own transform; missing: the result's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transform: Option<Transform>,
}

/// JSON has no NaN: a seed that diverged has `null`, and its image has an answer from the others.
fn null_as_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// `failure.json`: why an image has no result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Version of this format: 1.
    pub format: u32,
    /// Id of the job, if there was one.
    pub job: Option<JobId>,
    /// Key of the image in the data set.
    pub image: String,
    /// Kind of the failure.
    pub reason: FailureReason,
    /// The whole chain of errors, for people.
    pub message: String,
    /// Class name, if known.
    pub class_name: Option<String>,
    /// See `Job::generation`. A failure of an earlier generation than its image's does not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
}

impl Failure {
    /// The failure of a job.
    pub fn of(job: &Job, reason: FailureReason, message: String) -> Failure {
        // An open class has no name yet.
        let (image, class_name) = (job.image.clone(), Some(job.class_name.clone()).filter(|name| !name.is_empty()));
        Failure { format: 1, job: Some(job.id()), image, reason, message, class_name, generation: job.generation }
    }

    /// The bytes to be written where this content of `failure.json` is (`None`: no object); `None`: that one is of a later generation
    /// and stays.
    pub fn over(&self, there: Option<&[u8]>) -> Option<Vec<u8>> {
        let there = there.and_then(|bytes| serde_json::from_slice::<Failure>(bytes).ok());
        let later = there.is_some_and(|there| there.generation > self.generation);
        (!later).then(|| serde_json::to_vec_pretty(self).expect("a record serialises"))
    }

    /// The failure of an image whose job is not known.
    pub fn without_job(image: &str, reason: FailureReason, message: String, class_name: Option<String>) -> Failure {
        Failure { format: 1, job: None, image: image.to_owned(), reason, message, class_name, generation: 0 }
    }
}

/// An error with everything that caused it, in one line, for records and logs.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |e| e.source()).map(ToString::to_string) {
        // Some errors repeat their cause in their own text.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// The first `characters` of a text; `…` stands for the rest.
pub fn clipped(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Kinds of failures, by which reports group them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FailureReason {
    /// The image's name cannot be a key.
    BadName,
    /// The data set did not answer for a long time; tried again by the next start.
    Unavailable,
    /// The data set lists the image but the store lacks it.
    MissingImage,
    /// The image is another than when the run was planned.
    ChangedImage,
    /// The bytes are no image that can be read.
    BadImage,
    /// The box has no area inside the image.
    BadBox,
    /// The mask is of another size than the image, has nothing inside, or is not there.
    BadMask,
    /// The class is not one of the model's.
    UnknownClass,
    /// The data set's entry contradicts another one.
    BadAnnotation,
    /// The job is malformed.
    BadJob,
    /// The loss became infinite or undefined.
    Diverged,
    /// Several attempts began and none ended or saved anything: the image kills its worker.
    Quarantined,
}

impl FailureReason {
    /// The reason of that name in JSON, if there is one.
    pub fn named(name: &str) -> Option<FailureReason> {
        serde_json::from_value(name.into()).ok()
    }

    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_diverged_can_be_read_back() {
        let seed = SeedResult {
            loss: f64::NAN,
            inverted_loss: f64::INFINITY,
            l1: 1.5,
            l2: 0.0,
            lpips: 0.25,
            class: None,
            transform: None,
        };
        let json = serde_json::to_string(&seed).expect("plain numbers serialise");
        let read: SeedResult = serde_json::from_str(&json).expect("our own record");
        assert!(read.loss.is_nan() && read.inverted_loss.is_nan() && read.l1 == 1.5, "{json}");
    }
}
