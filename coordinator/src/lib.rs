//! Decides: what is to be done, and what is known. Never links torch.
//!
//! Data goes one way: [`dataset`] (io) -> [`plan`](mod@plan) (pure) -> [`fleet`] and [`ledger`] (pure), which [`drive`] (io) asks for
//! the jobs to publish and tells the events -> [`results::tables`] (io). [`prepare`](mod@prepare) reads what there is of a run, and
//! [`service`] keeps many runs going. [`api`] and [`dashboard`] let people say which, over [`connections`] (io); [`tally`] (pure) says how
//! they stand.

pub mod api;
pub mod auth;
pub mod capacity;
pub mod connections;
pub mod dashboard;
pub mod desk;
pub mod drive;
mod error;
pub mod fleet;
pub mod home;
pub mod ledger;
pub mod metrics;
pub mod outcomes;
mod pace;
pub mod plan;
pub mod prepare;
pub mod service;
pub mod simulate;
pub mod tally;

pub use error::Error;
