//! Networks that others published: where they are ([`published`]), how to get them ([`mod@fetch`]), and what the classes of those
//! that were trained on ImageNet are called ([`categories`]).

pub mod categories;
pub mod fetch;
pub mod published;
