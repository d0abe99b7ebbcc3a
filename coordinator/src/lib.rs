//! Decides: what is to be done, and what is known. Never links torch.
//!
//! Data goes one way: [`dataset`] (io) -> [`plan`](mod@plan) (pure) -> [`run`] (io: publishes jobs, collects events) -> [`ledger`]
//! (pure) -> [`finish`](mod@finish) (io), which writes what [`summary`], [`export`] and [`report`] (pure) make of the records.

pub mod dataset;
pub mod export;
pub mod finish;
pub mod ledger;
pub mod plan;
pub mod report;
pub mod run;
pub mod summary;
