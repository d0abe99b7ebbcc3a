//! To come.

pub mod codec;
