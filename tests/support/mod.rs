//! What the tests of archives and restores share.
#![allow(dead_code, reason = "each test uses a part")]

pub mod archive;
pub mod nobody;
pub mod random;
pub mod seed;
pub mod segments;
pub mod tree;
