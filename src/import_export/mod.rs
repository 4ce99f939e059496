//! Import and export of schedules: the old text file, JSON, and the text file that a service follows.

mod change_plan;
mod export;
mod follow;
mod import;

use serde::{Deserialize, Serialize};

use crate::schedule::Schedule;

pub use export::{ExportedText, export_json, export_text};
pub use follow::{TextFileState, follow_text_file};
pub use import::{Imported, import_json, import_text, parse_text};

/// All schedules as a JSON document.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// Version of the format.
    version: u32,
    schedules: Vec<Schedule>,
}

const DOCUMENT_VERSION: u32 = 1;
