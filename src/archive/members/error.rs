//! Reasons for which headers do not become a member.

use crate::archive::content::ReadError;

/// Longest part of a refused member's name that is kept for the report, in bytes.
const MAX_REPORTED_NAME_BYTES: usize = 8192;

/// Why headers could not be made into a member.
pub(super) enum HeaderError {
    /// Bytes of the archive are missing.
    Read(ReadError),
    /// The member cannot be trusted.
    Refused {
        /// Its name as the archive has it, or what there is of it.
        name: Vec<u8>,
        reason: String,
        /// The position of the next header is known.
        can_continue: bool,
    },
}

impl HeaderError {
    /// Refuses a member whose size is known, so that its data can be skipped.
    pub fn refused(name: Vec<u8>, reason: impl Into<String>) -> HeaderError {
        HeaderError::Refused { name: Vec::new(), reason: reason.into(), can_continue: true }.with_name(name)
    }

    /// Refuses a member whose size is not known: the next header is the next block that is one.
    pub fn refused_without_size(name: Vec<u8>, reason: impl Into<String>) -> HeaderError {
        HeaderError::Refused { name: Vec::new(), reason: reason.into(), can_continue: false }.with_name(name)
    }

    /// Sets the name of the member that is refused.
    pub fn with_name(mut self, mut new_name: Vec<u8>) -> HeaderError {
        if let HeaderError::Refused { name, .. } = &mut self {
            new_name.truncate(MAX_REPORTED_NAME_BYTES);
            *name = new_name;
        }
        self
    }
}

impl From<ReadError> for HeaderError {
    fn from(error: ReadError) -> Self {
        HeaderError::Read(error)
    }
}
