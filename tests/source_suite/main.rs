//! Tests of `source` on real files: order and kinds, exclusions, reading, races, size.

mod exclusions;
mod order;
mod own_files;
mod races;
mod reading;
mod size;
mod support;
