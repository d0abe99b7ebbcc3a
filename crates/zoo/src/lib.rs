//! Networks that others published: where they are ([`published`]), how to get them ([`mod@fetch`]), how they become a model folder
//! ([`mod@convert`]), and what the classes of those that were trained on ImageNet are called ([`categories`]).

pub mod categories;
pub mod convert;
pub mod fetch;
pub mod published;
