//! The results of a run: its records in the store, and the tables and pages made of them. Never links torch.
//!
//! [`run`] reads and writes a run's records in its store (*io*), and [`walk`] reads all of them one after another. [`summary`],
//! [`export`], [`report`] and [`manifest`] are pure: records in, bytes out, and [`tabulation`] feeds them. [`tables`] writes all of
//! them at the end of a run, [`sweep`](mod@sweep) deletes what lost attempts left, [`verify`] checks that a run is complete, and
//! [`webdataset`] exports results as shards (*io*). [`format`](mod@format), [`html`] and [`chart`] are for every page and text of
//! basin that a person reads.

pub mod bootstrap;
pub mod cell;
pub mod chart;
pub mod export;
pub mod format;
pub mod html;
pub mod manifest;
pub mod redrive;
pub mod report;
pub mod run;
pub mod seeds;
pub mod summary;
pub mod sweep;
pub mod tables;
pub mod tabulation;
pub mod verify;
pub mod walk;
pub mod webdataset;

pub use run::RunError;
