//! The engine, step by step: real SQLite, real files, a clock that the test moves.

#[path = "engine/bit_flips.rs"]
mod bit_flips;
#[path = "engine/block_sharing.rs"]
mod block_sharing;
#[path = "engine/claims.rs"]
mod claims;
#[path = "engine/compaction.rs"]
mod compaction;
#[path = "engine/drill.rs"]
mod drill;
#[path = "engine/follow.rs"]
mod follow;
#[path = "engine/follow_settings.rs"]
mod follow_settings;
#[path = "engine/hook_recipes.rs"]
mod hook_recipes;
#[path = "engine/hooks.rs"]
mod hooks;
#[path = "support/loop_mount.rs"]
mod loop_mount;
#[path = "engine/maintenance.rs"]
mod maintenance;
#[path = "engine/orphans.rs"]
mod orphans;
#[path = "support/random.rs"]
mod random;
#[path = "engine/recovery.rs"]
mod recovery;
#[path = "engine/repair.rs"]
mod repair;
#[path = "engine/rescan_segments.rs"]
mod rescan_segments;
#[path = "engine/reuse.rs"]
mod reuse;
#[path = "engine/runs.rs"]
mod runs;
#[path = "engine/segment_ranges.rs"]
mod segment_ranges;
#[path = "engine/segments.rs"]
mod segments;
#[path = "engine/settings_file.rs"]
mod settings_file;
#[path = "engine/shared_files.rs"]
mod shared_files;
#[path = "engine/time.rs"]
mod time;
#[path = "engine/trust.rs"]
mod trust;
#[path = "engine/world.rs"]
mod world;
