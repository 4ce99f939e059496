//! Restoring as a library: every format, every reader of tar, and archives that mean harm.

#[path = "../support/mod.rs"]
mod support;

mod fidelity;
mod foreign;
mod hostile;
mod interrupted;
mod tar_file;
mod tree;
