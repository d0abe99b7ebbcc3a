//! The coordinator through its front doors, as one program that is linked once.

mod browser;
mod dashboard;
mod lead;
mod operators;
mod security;
mod service;
mod verify;
mod webdataset;
mod world;
