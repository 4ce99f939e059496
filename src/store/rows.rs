//! Parts of SQL and conversions of rows and values that several files with queries share.

use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, Type, ValueRef};
use uuid::Uuid;

use crate::chunk::Chunk;
use crate::member::{Extent, MemberKind};
use crate::progress::ProblemKind;

/// Condition of a good archive (I8): complete, no shrinking of its source that was not accepted, and verified unless
/// the schedule says no-verify.
pub(super) const GOOD: &str = "(archive.state = 'complete' AND (archive.suspect = 0 OR archive.acknowledged = 1) \
     AND (archive_file.health = 'good' OR (archive_file.health = 'unproven' AND schedule.verify = 0)))";

/// Archives with their physical files and schedules.
pub(super) const JOINED: &str = "FROM archive JOIN archive_file ON archive_file.id = archive.archive_file_id \
     JOIN schedule ON schedule.id = archive.schedule_id";

/// Condition of archives that are not complete. SQLite uses the index of these only for a statement that states its
/// condition.
pub(super) const PENDING: &str = "archive.state <> 'complete'";

/// Restricts `archive_chunk` to the file of the archive of run `?1`.
pub(super) const OF_FILE: &str = "archive_file_id = (SELECT archive_file_id FROM archive WHERE run_id = ?1)";

/// The columns that [`chunk_row`] reads.
pub(super) const CHUNK: &str = "sequence, stored_offset, stored_length, stored_digest, content_length, content_digest";

pub(super) fn chunk_row(row: &Row<'_>) -> rusqlite::Result<Chunk> {
    Ok(Chunk {
        sequence: row.get(0)?,
        offset: row.get(1)?,
        stored_length: row.get(2)?,
        stored_digest: row.get(3)?,
        content_length: row.get(4)?,
        content_digest: row.get(5)?,
    })
}

/// Reads the columns `members`, `files` and `content_bytes`.
pub(super) fn extent_row(row: &Row<'_>) -> rusqlite::Result<Extent> {
    Ok(Extent { members: row.get("members")?, files: row.get("files")?, content_bytes: row.get("content_bytes")? })
}

/// Fails unless exactly one row was changed.
pub(super) fn exactly_one(changed: usize) -> rusqlite::Result<()> {
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}

pub(super) fn parse_uuid(text: &str) -> rusqlite::Result<Uuid> {
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(e)))
}

/// The kinds of members as the database stores them.
const KIND_WORDS: [(MemberKind, &str); 7] = [
    (MemberKind::File, "file"),
    (MemberKind::Folder, "folder"),
    (MemberKind::Symlink, "symlink"),
    (MemberKind::HardLink, "hardlink"),
    (MemberKind::Fifo, "fifo"),
    (MemberKind::CharDevice, "char"),
    (MemberKind::BlockDevice, "block"),
];

pub(super) fn word_of_kind(kind: MemberKind) -> &'static str {
    KIND_WORDS.iter().find(|(other, _)| *other == kind).map_or("file", |(_, word)| word)
}

pub(super) fn kind_of_word(word: &str) -> rusqlite::Result<MemberKind> {
    let found = KIND_WORDS.iter().find(|(_, other)| *other == word);
    found.map(|(kind, _)| *kind).ok_or_else(|| FromSqlError::InvalidType.into())
}

impl FromSql for ProblemKind {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let word = value.as_str()?;
        let all = [
            ProblemKind::Unreadable,
            ProblemKind::Vanished,
            ProblemKind::Changed,
            ProblemKind::Grew,
            ProblemKind::Replaced,
            ProblemKind::Skipped,
            ProblemKind::ChangedWithoutTimes,
        ];
        all.into_iter().find(|kind| kind.as_str() == word).ok_or(FromSqlError::InvalidType)
    }
}
