//! Decides: what is to be done, and what is known. Never links torch.
//!
//! Data goes one way: [`dataset`] (io) -> [`plan`](mod@plan) (pure) -> [`fleet`] and [`ledger`] (pure), which [`drive`]
//! (io) asks for the jobs to publish and tells the events -> [`finish`](mod@finish) (io), which writes what [`summary`],
//! [`export`], [`report`] and [`manifest`] (pure) make of the records. [`service`] keeps many runs going, and [`api`] lets people
//! say which, over [`connections`] (io); [`tally`] and [`redrive`] (pure) say how they stand and what is done again. [`webdataset`] (io) takes results out.

pub mod api;
pub mod auth;
pub mod bootstrap;
pub mod capacity;
pub mod connections;
pub mod dashboard;
pub mod dataset;
pub mod desk;
pub mod drive;
pub mod export;
pub mod finish;
pub mod fleet;
pub mod home;
pub mod ledger;
pub mod manifest;
pub mod metrics;
pub mod outcomes;
mod pace;
pub mod plan;
pub mod redrive;
pub mod report;
pub mod run;
mod segmentation;
pub mod service;
pub mod simulate;
pub mod summary;
pub mod tally;
pub mod text;
pub mod verify;
pub mod webdataset;
