//! Parts of SQL and conversions of rows and values that several files with queries share.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, Type, ValueRef};
use rusqlite::{Row, ToSql};
use uuid::Uuid;

use crate::member::{Extent, MemberKind};
use crate::progress::ProblemKind;
use crate::schedule::Layout;

/// Condition of a good archive (I8): complete, no shrinking of its source that was not accepted, and verified unless
/// the schedule is `--no-verify`.
pub(super) const GOOD: &str = "(archive.state = 'complete' AND (archive.suspect = 0 OR archive.acknowledged = 1) \
     AND CASE health WHEN 'good' THEN 1 WHEN 'unproven' THEN schedule.verify = 0 ELSE 0 END)";

/// Archives with their archive files, what is known about them, and their schedules.
pub(super) const JOINED: &str = "FROM archive JOIN archive_file ON archive_file.id = archive.archive_file_id \
     JOIN archive_health USING (run_id) JOIN schedule ON schedule.id = archive.schedule_id";

/// Condition of archives that are not complete. SQLite uses the index of these only for a statement that states its
/// condition.
pub(super) const PENDING: &str = "archive.state <> 'complete'";

/// Restricts `span` to the file of the archive of run `?1`.
pub(super) const OF_FILE: &str = "span.archive_file_id = (SELECT archive_file_id FROM archive WHERE run_id = ?1)";

/// Restricts the spans of the archive of run `?1` to the one that holds the chunk `?2` and those after it.
pub(super) const FROM_CHUNK: &str = "span.sequence >= coalesce((SELECT max(first.sequence) FROM span AS first \
     WHERE first.archive_file_id = (SELECT archive_file_id FROM archive WHERE run_id = ?1) \
     AND first.sequence <= ?2), 0)";

/// Condition of a span that holds the chunk `?1`: see [`MAX_RUN`](crate::chunk::MAX_RUN).
pub(super) const HOLDS_CHUNK: &str = "span.chunk_id BETWEEN ?1 - 255 AND ?1 AND span.chunk_id + span.chunks > ?1";

/// Returns the error for a record that does not fit the catalog.
pub(super) fn unfit(what: String) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(what.into())
}

/// Reads the columns `members`, `files` and `content_bytes`.
pub(super) fn extent_row(row: &Row<'_>) -> rusqlite::Result<Extent> {
    Ok(Extent { members: row.get("members")?, files: row.get("files")?, content_bytes: row.get("content_bytes")? })
}

/// Fails unless exactly one row was changed.
pub(super) fn exactly_one(changed: usize) -> rusqlite::Result<()> {
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}

/// The path of a file in the folder of a schedule. Pending archives and segments are renamed and removed by it, also by
/// root with the database of another user, so that it must not lead elsewhere.
pub(super) struct InnerPath(pub(super) String);

impl FromSql for InnerPath {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let path = value.as_str()?;
        let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['/', '\0']);
        match path.split_once('/') {
            Some((folder, name)) if is_name(folder) && is_name(name) => Ok(InnerPath(path.to_owned())),
            _ => Err(FromSqlError::Other(format!("{path:?} does not lie in the folder of a schedule").into())),
        }
    }
}

pub(super) fn parse_uuid(text: &str) -> rusqlite::Result<Uuid> {
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(e)))
}

/// The kinds of members, at the places of the numbers that the database stores.
const KINDS: [MemberKind; 7] = [
    MemberKind::File,
    MemberKind::Folder,
    MemberKind::Symlink,
    MemberKind::HardLink,
    MemberKind::Fifo,
    MemberKind::CharDevice,
    MemberKind::BlockDevice,
];

impl ToSql for MemberKind {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let number = KINDS.iter().position(|kind| kind == self).ok_or_else(|| unfit(format!("{self:?}")))?;
        Ok(ToSqlOutput::from(number as i64))
    }
}

impl FromSql for MemberKind {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        let kind = usize::try_from(number).ok().and_then(|number| KINDS.get(number));
        kind.copied().ok_or(FromSqlError::OutOfRange(number))
    }
}

impl FromSql for Layout {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(|_| FromSqlError::InvalidType)
    }
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
