//! Published networks: the register of their files ([`published`]), the download ([`mod@fetch`]), the conversion into a model folder
//! ([`mod@convert`]), and the names of ImageNet's classes ([`categories`]).

pub mod categories;
pub mod convert;
pub mod fetch;
pub mod published;
