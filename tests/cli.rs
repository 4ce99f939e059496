//! The real program, as a user runs it: arguments in; output, exit code and files out. One file for each verb or
//! family of verbs.

#[path = "cli/archive_files.rs"]
mod archive_files;
#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/block_sharing.rs"]
mod block_sharing;
#[path = "support/catalog.rs"]
mod catalog;
#[path = "cli/compaction.rs"]
mod compaction;
#[path = "cli/environment.rs"]
mod environment;
#[path = "cli/file_systems.rs"]
mod file_systems;
#[path = "cli/full_disk.rs"]
mod full_disk;
#[path = "cli/handover.rs"]
mod handover;
#[path = "cli/hooks.rs"]
mod hooks;
#[path = "cli/interruption.rs"]
mod interruption;
#[path = "cli/json.rs"]
mod json;
#[path = "cli/limits.rs"]
mod limits;
#[path = "cli/logs.rs"]
mod logs;
#[path = "support/loop_mount.rs"]
mod loop_mount;
#[path = "cli/metrics.rs"]
mod metrics;
#[path = "cli/repair.rs"]
mod repair;
#[path = "cli/rescan.rs"]
mod rescan;
#[path = "cli/restore.rs"]
mod restore;
#[path = "cli/retention.rs"]
mod retention;
#[path = "cli/reuse.rs"]
mod reuse;
#[path = "cli/runs.rs"]
mod runs;
#[path = "cli/schedules.rs"]
mod schedules;
#[path = "cli/secrets.rs"]
mod secrets;
#[path = "cli/segments.rs"]
mod segments;
#[path = "cli/service.rs"]
mod service;
#[path = "cli/settings.rs"]
mod settings;
#[path = "cli/snapshots.rs"]
mod snapshots;
#[path = "support/mod.rs"]
mod support;
#[path = "cli/text_file.rs"]
mod text_file;
#[path = "cli/trust.rs"]
mod trust;
