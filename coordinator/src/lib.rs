//! To come.

pub mod dataset;
pub mod export;
pub mod report;
pub mod summary;
