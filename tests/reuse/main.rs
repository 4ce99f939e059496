//! Reuse of unchanged chunks (I13): an archive made with a base holds what a run that reads everything would have
//! written, and nothing that did not change is read.

#[path = "../support/loop_mount.rs"]
mod loop_mount;
#[path = "../support/mod.rs"]
mod support;

mod catalog;
mod changes;
mod segmented;
mod series;
mod silent;
