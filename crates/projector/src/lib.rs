//! Projects images into class-conditional GANs: the method of Huh et al., "Transforming and Projecting Images into
//! Class-conditional Generative Networks" (ECCV 2020), in the semantics of the authors' code where the paper leaves them open.
//!
//! The crate takes and returns tensors. It uses no files, clock, network or global random numbers. Read in this order:
//! [`projection`] is the method as a whole; `transform_search` and `latent_search` are its two stages; [`cma`], `descent` and
//! [`lbfgs`] are the optimisers; [`fine_tune`] fits the generator to an image, and [`delta`] stores the change; [`lanes`] computes
//! batches on devices, of the [`loss`] and its [`transform`], [`mask`] and networks ([`nn`]).

#![warn(missing_docs)]

pub mod blend;
pub mod cma;
pub mod delta;
mod descent;
pub mod edit;
pub mod fine_tune;
pub mod generator;
pub mod lanes;
pub mod latent;
mod latent_search;
pub mod lbfgs;
pub mod loss;
pub mod mask;
pub mod nn;
pub mod projection;
mod rows;
mod starts;
pub mod target;
pub mod transform;
mod transform_search;

pub use delta::Delta;
pub use edit::Edit;
pub use fine_tune::{Dropped, Tuned};
pub use generator::Generator;
pub use lanes::{DeviceError, Lanes, Model};
pub use mask::ObjectStatistics;
pub use projection::{Checkpoint, Diverged, Projection, ProjectionProgress, Solution};
pub use target::Target;
