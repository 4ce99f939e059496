//! The one-line form of a schedule that the old system used: `PATH;HH:MM;NAME`.

use super::cadence::DailyTimes;
use super::name::ScheduleName;
use super::source_problem;
use crate::error::{Error, Result};

/// A parsed `PATH;HH:MM;NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The path, as bytes.
    pub source: Vec<u8>,
    /// One or more times of day, separated by commas.
    pub times: DailyTimes,
    /// The name.
    pub name: ScheduleName,
}

const FORM_HINT: &str = "write \"PATH;HH:MM;NAME\", like \"/home/u/documents;09:00;docs_morning\"";

impl Spec {
    /// Parses `PATH;HH:MM;NAME`, split at the last two `;`: the path may contain more of them. Blanks around time and
    /// name are ignored; blanks in the path are part of it. Each kind of mistake is a usage error with its own reason.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::parse_or_reason(bytes).map_err(|reason| {
            Error::usage(format!("\"{}\" is not a schedule: {reason}", printable(bytes))).hint(FORM_HINT)
        })
    }

    /// Parses like [`parse`](Self::parse); the error is the reason only.
    pub(super) fn parse_or_reason(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut parts = bytes.rsplitn(3, |&b| b == b';');
        let (Some(name), Some(times), Some(source)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(match bytes.contains(&b';') {
                true => "it has only one \";\", so a part is missing".to_owned(),
                false => "it has no \";\", so time and name are missing".to_owned(),
            });
        };
        if let Some(problem) = source_problem(source) {
            return Err(problem.to_owned());
        }
        let times = text_of(times, "time")?;
        let name = text_of(name, "name")?;
        Ok(Spec {
            source: source.to_vec(),
            times: DailyTimes::parse(times).map_err(|e| e.to_string())?,
            name: ScheduleName::parse(name).map_err(|e| e.to_string())?,
        })
    }
}

fn text_of<'a>(part: &'a [u8], what: &str) -> std::result::Result<&'a str, String> {
    let text = std::str::from_utf8(part).map_err(|_| format!("the {what} is not UTF-8"))?;
    match text.trim_matches([' ', '\t']) {
        "" => Err(format!("the {what} is empty")),
        text => Ok(text),
    }
}

/// Returns `bytes` as text for a message: invalid UTF-8 is replaced, control characters are escaped.
pub(super) fn printable(bytes: &[u8]) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    String::from_utf8_lossy(bytes).chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn the_path_may_contain_semicolons_and_any_bytes() {
        let spec = Spec::parse(b"/a;b\xff ;9:05;docs").unwrap();
        assert_eq!(spec.source, b"/a;b\xff ");
        assert_eq!(spec.times.to_string(), "09:05");
        assert_eq!(spec.name.as_str(), "docs");
        let spec = Spec::parse(b"docs; 18:30,9:00,09:00 ; both ").unwrap();
        assert_eq!((spec.times.to_string().as_str(), spec.name.as_str()), ("09:00,18:30", "both"));
    }

    #[test]
    fn each_kind_of_mistake_has_its_own_reason() {
        let mut seen = std::collections::BTreeSet::new();
        for (bad, reason) in [
            (&b""[..], "no \";\""),
            (b"docs", "no \";\""),
            (b"docs;09:00", "only one \";\""),
            (b";09:00;n", "path is empty"),
            (b"a\0b;09:00;n", "NUL"),
            (b"docs;;n", "time is empty"),
            (b"docs;09:00;", "name is empty"),
            (b"docs;0900;n", "no \":\""),
            (b"docs;24:00;n", "0 to 23"),
            (b"docs;12:60;n", "00 to 59"),
            (b"docs;12:5;n", "two digits"),
            (b"docs;012:05;n", "one or two digits"),
            (b"docs;+1:05;n", "numbers"),
            (b"docs;:05;n", "numbers"),
            (b"docs;09:00,;n", "no \":\""),
            (b"docs;09:00;a/b", "\"/\""),
            (b"docs;09:00;17", "digits"),
            (b"docs;09:00;\xff", "name is not UTF-8"),
            (b"docs;\xff;n", "time is not UTF-8"),
        ] {
            let error = Spec::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(reason), "{error}");
            assert!(error.next_step().unwrap().contains("PATH;HH:MM;NAME"));
            seen.insert(reason);
        }
        assert!(seen.len() >= 14);
    }
}
