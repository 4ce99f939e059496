//! What the test programmes share.

pub mod archive;
