//! The settings file: schedules with all their options as TOML, which `apply` and `serve --config` make those of the
//! database.
//!
//! Each key has the name of the option of `create` and takes the same text, parsed by the same function. The schedules
//! of the file are *managed*: their row has the file and the line, and commands do not change them.

mod export;
mod follow;
mod keys;
mod parse;
mod plan;

pub use export::export_toml;
pub(super) use follow::apply_followed_settings;
pub use follow::{check_owner, names_in_text_file, settings_path};
pub use keys::schedule_keys;
pub use parse::{Entry, parse_settings};
pub use plan::{Difference, EntryChange, Present, Removed, SettingsPlan};
