//! Restores through the library: every format, archives of other tar programs, and hostile archives.

#[path = "../support/mod.rs"]
mod support;

mod batches;
mod damaged_streams;
mod dialects;
mod fidelity;
mod foreign;
mod hostile;
mod interrupted;
mod progress;
mod repeated;
mod tar_file;
mod tree;
