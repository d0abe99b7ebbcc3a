//! The networks that find the class and the object in an image, as a model folder has them (*io*).

use std::path::Path;

use projector::nn::efficientnet_lite::{self, EfficientNetLite};
use projector::nn::mask_rcnn::{self, MaskRcnn};
use projector::nn::resnet;
use proto::{ClassifierKind, DetectorKind, ModelManifest, Object};
use tch::Device;

use crate::files::{ModelError, network};

/// The networks that look for class and object; only those that are needed are loaded.
pub struct Finder {
    pub(crate) device: Device,
    pub(crate) classifier: Option<Classifier>,
    pub(crate) detector: Option<MaskRcnn>,
}

pub(crate) enum Classifier {
    ResNext(resnet::Classifier),
    EfficientNetLite(EfficientNetLite),
    /// A layer on the model's perceptual network.
    Perceptual,
}

impl Finder {
    /// Reads from the model folder `dir` what finding the object needs.
    pub fn load(dir: &Path, manifest: &ModelManifest, object: &Object) -> Result<Finder, ModelError> {
        let classes = manifest.classes.len() as i64;
        let classifier = manifest.classifier.as_ref().filter(|_| Needs::of(object).classifier);
        let classifier = classifier.map(|classifier| match classifier.kind {
            ClassifierKind::Perceptual => Ok(Classifier::Perceptual),
            ClassifierKind::ResNext101 => {
                let load = |w: &mut _| resnet::Classifier::load(&resnet::Config::resnext101_32x8d(), classes, w);
                network(dir, &classifier.weights, manifest, load).map(Classifier::ResNext)
            }
            ClassifierKind::EfficientNetLite0 if classes != efficientnet_lite::CLASSES => {
                let problem =
                    format!("has {classes} classes, and its classifier knows ImageNet's {}", efficientnet_lite::CLASSES);
                Err(ModelError::Inconsistent { path: dir.join("model.json"), problem })
            }
            ClassifierKind::EfficientNetLite0 => {
                network(dir, &classifier.weights, manifest, EfficientNetLite::load).map(Classifier::EfficientNetLite)
            }
        });
        let detector = manifest.detector.as_ref().filter(|_| Needs::of(object).detector);
        let detector = detector.map(|detector| match detector.kind {
            DetectorKind::MaskRcnn => {
                let load = |w: &mut _| MaskRcnn::load(&mask_rcnn::Config::coco(), w);
                network(dir, &detector.weights, manifest, load)
            }
        });
        Ok(Finder { device: Device::Cpu, classifier: classifier.transpose()?, detector: detector.transpose()? })
    }

    pub fn replicate(&self, device: Device) -> Finder {
        let classifier = self.classifier.as_ref().map(|classifier| match classifier {
            Classifier::ResNext(net) => Classifier::ResNext(net.replicate(device)),
            Classifier::EfficientNetLite(net) => Classifier::EfficientNetLite(net.replicate(device)),
            Classifier::Perceptual => Classifier::Perceptual,
        });
        Finder { device, classifier, detector: self.detector.as_ref().map(|d| d.replicate(device)) }
    }
}

/// The networks that finding an object takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub classifier: bool,
    pub detector: bool,
}

impl Needs {
    pub fn of(object: &Object) -> Needs {
        Needs { classifier: object.class.is_predicted(), detector: object.mask.is_detected() }
    }
}
