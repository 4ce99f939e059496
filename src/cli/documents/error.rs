//! Errors as documents.

use serde::Serialize;

use crate::error::Error;

/// An error.
#[derive(Serialize)]
pub struct ErrorDocument {
    /// What failed, on what and why.
    message: String,
    /// `failed`, `usage`, `incomplete`, `damage`, `database_damage`, `not_found`, `busy`, `interrupted`, `terminated`,
    /// `fenced` or `disk_full`.
    kind: &'static str,
    /// What to do next; absent if there is nothing to advise.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl From<&Error> for ErrorDocument {
    fn from(error: &Error) -> ErrorDocument {
        ErrorDocument {
            message: error.to_string(),
            kind: error.kind().as_str(),
            hint: error.next_step().map(str::to_owned),
        }
    }
}

/// What a verb prints instead of its document if it fails.
#[derive(Serialize)]
pub struct FailureDocument {
    error: ErrorDocument,
}

impl From<&Error> for FailureDocument {
    fn from(error: &Error) -> FailureDocument {
        FailureDocument { error: error.into() }
    }
}

/// What a verb did with one of several things, or why it could not.
#[derive(Serialize)]
#[serde(untagged)]
pub enum ItemDocument<T> {
    /// Its document.
    Done(T),
    /// It could not.
    Failed {
        /// Name of the schedule, or `@17`.
        name: String,
        /// Why.
        failure: ErrorDocument,
    },
}
