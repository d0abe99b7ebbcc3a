//! The results of a run: its records in the store, and what is made of them. Never links torch.
//!
//! [`run`] reads and writes what a run's store holds (*io*). [`summary`], [`export`], [`report`] and [`manifest`] are pure: records
//! in, bytes out. [`tables`] writes all of them at the end of a run, [`verify`] proves that a run is complete, and [`webdataset`]
//! takes results out as shards (*io*).

pub mod bootstrap;
pub mod export;
pub mod manifest;
pub mod redrive;
pub mod report;
pub mod run;
pub mod seeds;
pub mod summary;
pub mod tables;
pub mod verify;
pub mod webdataset;

pub use run::RunError;
