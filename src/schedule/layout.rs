//! How the archives of a schedule are stored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How archives are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Each is one file, which any tar program reads.
    #[default]
    Whole,
    /// Each is an index, which lists ranges of segments. Archives share the bytes of what did not change.
    Segmented,
}

impl Layout {
    /// Returns the word used in the database, in options and in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Layout::Whole => "whole",
            Layout::Segmented => "segmented",
        }
    }

    /// Returns whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == Layout::default()
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "whole" => Ok(Layout::Whole),
            "segmented" => Ok(Layout::Segmented),
            _ => {
                Err(Error::usage(format!("\"{}\" is not a layout", text.escape_debug()))
                    .hint("write whole or segmented"))
            }
        }
    }
}
