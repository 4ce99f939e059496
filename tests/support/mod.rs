//! What the tests of archives and restores share. Each of them uses a part.
#![allow(dead_code)]

pub mod archive;
pub mod nobody;
pub mod random;
pub mod tree;
