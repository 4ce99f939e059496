//! The name of a schedule, which identifies it and is part of file names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A name that is safe in file names and cannot be mistaken for an index, an option or a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScheduleName(String);

impl ScheduleName {
    /// Maximum length in bytes. File names have at most 255 bytes, which must also hold time, run and extension.
    pub const MAX_BYTES: usize = 100;

    /// Parses a name. Any other text is a usage error that names the reason.
    pub fn parse(text: &str) -> Result<Self> {
        match refusal(text) {
            None => Ok(ScheduleName(text.to_owned())),
            Some(reason) => Err(Error::usage(format!("\"{}\" is not a name: {reason}", text.escape_debug()))
                .hint("write a name like docs_morning: it becomes a file name")),
        }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns the reason why `text` is not a valid name; `None` if it is valid.
fn refusal(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("it is empty".to_owned());
    }
    if text.len() > ScheduleName::MAX_BYTES {
        return Some(format!("it has {} bytes, and at most {} are allowed", text.len(), ScheduleName::MAX_BYTES));
    }
    if let Some(found) = text.chars().find(|c| matches!(c, '/' | '\\' | ';')) {
        return Some(format!("it has a \"{found}\""));
    }
    if text.chars().any(char::is_control) {
        return Some("it has a control character".to_owned());
    }
    if let Some(found) = text.chars().next().filter(|c| matches!(c, '.' | '-' | '@')) {
        return Some(format!("it begins with \"{found}\""));
    }
    if text.trim() != text {
        return Some("it begins or ends with a space".to_owned());
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Some("it has only digits, which would be an index".to_owned());
    }
    [".tar", ".tar.gz", ".tar.zst"]
        .iter()
        .find(|ending| text.ends_with(*ending))
        .map(|ending| format!("it ends in \"{ending}\", as archives do"))
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ScheduleName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl TryFrom<String> for ScheduleName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<ScheduleName> for String {
    fn from(name: ScheduleName) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn each_refusal_names_its_reason() {
        let long = "x".repeat(101);
        for (bad, reason) in [
            ("", "empty"),
            (long.as_str(), "101 bytes"),
            ("a/b", "\"/\""),
            ("a\\b", "\"\\\""),
            ("a;b", "\";\""),
            ("a\nb", "control"),
            ("a\u{85}b", "control"),
            (".hidden", "begins with \".\""),
            ("-n", "begins with \"-\""),
            ("@17", "begins with \"@\""),
            (" a", "space"),
            ("a ", "space"),
            ("a\u{3000}", "space"),
            ("007", "digits"),
            ("docs.tar", ".tar"),
            ("docs.tar.gz", ".tar.gz"),
            ("docs.tar.zst", ".tar.zst"),
        ] {
            let error = ScheduleName::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(reason), "{bad:?}: {error}");
            assert!(error.next_step().is_some());
        }
    }

    #[test]
    fn ordinary_names_are_accepted_unchanged() {
        let longest = "é".repeat(50);
        for good in ["docs_morning", "a", "7zip", "Büro 2", "a.tar.xz", "a.b", "a-b@c", longest.as_str()] {
            assert_eq!(ScheduleName::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_name_in_json_passes_the_same_checks() {
        assert!(serde_json::from_str::<ScheduleName>("\"docs\"").is_ok());
        assert!(serde_json::from_str::<ScheduleName>("\"../docs\"").is_err());
    }
}
