//! What the test programmes share. Each of them uses a part of it.
#![allow(dead_code)]

pub mod archive;
pub mod nobody;
pub mod random;
pub mod tree;
