//! One claimed run, from the source to an archive in its place.

pub mod pipeline;
