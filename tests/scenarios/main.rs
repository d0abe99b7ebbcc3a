//! The product through its front door: its programs on real images with the bundled model, and fleets with a real broker.

mod crashes;
mod faults;
mod fleet;
mod outages;
mod project;
mod steer;
mod telemetry;
