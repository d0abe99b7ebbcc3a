//! Turns files into targets and solutions into pictures: model folders and their cache, decoding, finding objects, edits, films, judges.
//!
//! Everything here is about one image or one model; which images, and what becomes of their results, is the services' business.

pub mod cache;
pub mod calibrate;
mod check;
pub mod codec;
pub mod devices;
pub mod edit;
pub mod editor;
mod files;
pub mod film;
pub mod find;
pub mod finder;
pub mod judge;
pub mod outline;
pub mod recorder;
pub mod self_test;
pub mod supply;
pub mod weights;

pub use cache::Cache;
pub use devices::Devices;
pub use files::{ModelError, read_manifest};
pub use projector::projection::lane_steps;
pub use supply::{Models, SupplyError};
pub use weights::{LoadedModel, load, load_for};
