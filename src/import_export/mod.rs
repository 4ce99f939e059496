//! Import and export of schedules: the old text file, JSON, the settings file, and the files that a service follows.

mod change_plan;
mod export;
mod follow;
mod followed_file;
mod import;
mod settings;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::schedule::{Hooks, Schedule};

pub use export::{ExportedText, export_json, export_text};
pub use follow::follow_file;
pub use followed_file::{FollowedFile, FollowedKind};
pub use import::{Imported, import_json, import_text, parse_text};
pub use settings::{
    Difference, Entry, EntryChange, Present, Removed, SettingsPlan, check_owner, export_toml, names_in_text_file,
    parse_settings, schedule_keys, settings_path,
};

/// All schedules as a JSON document.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// Version of the format.
    version: u32,
    schedules: Vec<Schedule>,
    /// What surrounds the runs of these schedules, by name. Absent if nothing does, so that earlier versions read the
    /// rest; an import then leaves what there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hooks: Option<BTreeMap<String, Hooks>>,
}

const DOCUMENT_VERSION: u32 = 1;
