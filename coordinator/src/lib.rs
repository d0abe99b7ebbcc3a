//! The coordinator: plans runs, publishes their jobs, records events, writes tables, and serves the API and the dashboard. Never
//! links torch.
//!
//! Data goes one way: [`dataset`] (io) -> [`plan`](mod@plan) (pure) -> [`fleet`] and [`ledger`] (pure), from which [`drive`] (io) takes
//! the jobs to publish and to which it gives the events -> [`results::tables`] (io). [`prepare`] reads a run before it is
//! planned. [`service`] has the loop that drives runs; [`http`] sends requests to it; [`pod_label`] tells Kubernetes who leads, and
//! [`notify`] tells operators what happens. [`tally`] and [`outcomes`] (pure) count results, and [`silence`] (pure) says which jobs the store
//! is asked about.

mod audit;
mod beside;
mod budget;
pub mod clock;
pub mod drive;
mod error;
pub mod fleet;
pub mod http;
pub mod ledger;
pub mod metrics;
pub mod notify;
pub mod outcomes;
pub mod plan;
pub mod pod_label;
pub mod prepare;
pub mod service;
pub mod silence;
pub mod simulate;
pub mod tally;

pub use error::Error;
