//! Members in the catalog: those of one archive, and the archives that hold a path.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Store;
use super::catalog::chunk_rows;
use super::rows::{FROM_CHUNK, OF_FILE};
use super::types::{CatalogEntry, PathOccurrence};
use crate::chunk::{BaseMember, Chunk};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::member::{CatalogMember, FileTime, Member, MemberKind, MemberPath, Xattrs};

const MEMBER: &str = "member.id, member.path, kind, size, mode, uid, gid, user_name, group_name, modified_s, \
     modified_ns, changed_s, changed_ns, device, inode, device_major, device_minor, link_target, xattr_digest, \
     content_digest, entry_bytes, is_reusable";

/// The members in a row of `chunk_members`.
const MEMBERS_OF_RUN: &str = "member ON member.id >= chunk_members.member_id \
     AND member.id < chunk_members.member_id + chunk_members.members";

/// The rows of `chunk_members` in the chunks of a span from `?2` on and before `?3`.
const RUNS_OF_SPAN: &str = "chunk_members ON chunk_members.chunk_id >= span.chunk_id + max(0, ?2 - span.sequence) \
     AND chunk_members.chunk_id < span.chunk_id + min(span.chunks, ?3 - span.sequence)";

/// Members at a path, with the chunks and the spans that hold them.
const HOLDERS: &str = "member INDEXED BY member_of_path \
     CROSS JOIN chunk_members INDEXED BY chunk_members_of_member \
         ON chunk_members.member_id BETWEEN member.id - 255 AND member.id \
         AND chunk_members.member_id + chunk_members.members > member.id \
     CROSS JOIN span INDEXED BY span_of_chunk \
         ON span.chunk_id BETWEEN chunk_members.chunk_id - 255 AND chunk_members.chunk_id \
         AND span.chunk_id + span.chunks > chunk_members.chunk_id";

/// The position of the chunk of a row of `chunk_members` in the archive file of a span.
const SEQUENCE: &str = "span.sequence + chunk_members.chunk_id - span.chunk_id";

impl Store {
    /// Returns the members of up to `limit` chunks of an archive, from `sequence` on, in order, and the chunk that
    /// follows them if there are more.
    pub fn members(&self, run: i64, sequence: u64, limit: u32) -> Result<(Vec<CatalogEntry>, Option<u64>)> {
        let end = sequence.saturating_add(limit.into());
        self.read(|connection| {
            let chunks: Option<u64> = connection
                .prepare_cached(&format!(
                    "SELECT sequence + chunks FROM span WHERE {OF_FILE} ORDER BY sequence DESC LIMIT 1"
                ))?
                .query_row([run], |row| row.get(0))
                .optional()?;
            let rows = member_rows(connection, run, sequence, end)?;
            let mut place = (0, 0);
            let located = rows.into_iter().map(|(sequence, member)| {
                let offset = if place.0 == sequence { place.1 } else { 0 };
                place = (sequence, offset + member.entry.entry_bytes);
                CatalogEntry { sequence, offset, entry: member.entry }
            });
            Ok((located.collect(), chunks.filter(|chunks| *chunks > end).map(|_| end)))
        })
    }

    /// Returns the members whose headers start in one chunk of an archive, in order.
    pub fn chunk_members(&self, run: i64, sequence: u64) -> Result<Vec<CatalogMember>> {
        let rows = self.read(|connection| member_rows(connection, run, sequence, sequence + 1))?;
        Ok(rows.into_iter().map(|(_, member)| member.entry).collect())
    }

    /// Returns the path of the last member whose header starts before a chunk of an archive: the file whose content
    /// continues in it.
    pub fn member_before(&self, run: i64, sequence: u64) -> Result<Option<Vec<u8>>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT path FROM span \
                     CROSS JOIN chunk_members ON chunk_members.chunk_id >= span.chunk_id \
                         AND chunk_members.chunk_id < span.chunk_id + min(span.chunks, ?2 - span.sequence) \
                     CROSS JOIN member ON member.id = chunk_members.member_id + chunk_members.members - 1 \
                     WHERE {OF_FILE} AND span.sequence < ?2 \
                     ORDER BY span.sequence DESC, chunk_members.chunk_id DESC, ordinal DESC LIMIT 1"
                ))?
                .query_row(params![run, sequence], |row| row.get(0))
                .optional()
        })
    }

    /// Returns the chunks of an archive that hold headers of members at `path`, and with `below` also below it, in
    /// order.
    pub fn chunks_with_path(&self, run: i64, path: &MemberPath, below: bool) -> Result<Vec<u64>> {
        self.read(|connection| {
            // A path is found by the index over all archives, but the members below it among those of this archive: a
            // folder may hold most members of every archive.
            let at: Vec<(u64, MemberKind)> = connection
                .prepare_cached(&format!("SELECT {SEQUENCE}, kind FROM {HOLDERS} WHERE {OF_FILE} AND path = ?2"))?
                .query_map(params![run, path.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let mut chunks: Vec<u64> = at.iter().map(|(sequence, _)| *sequence).collect();
            if below && (at.is_empty() || at.iter().any(|(_, kind)| *kind == MemberKind::Folder)) {
                let end = |last: u8| [path.as_bytes(), &[last]].concat();
                let mut statement = connection.prepare_cached(&format!(
                    "SELECT DISTINCT {SEQUENCE} FROM span \
                     CROSS JOIN chunk_members ON chunk_members.chunk_id >= span.chunk_id \
                         AND chunk_members.chunk_id < span.chunk_id + span.chunks \
                     CROSS JOIN {MEMBERS_OF_RUN} WHERE {OF_FILE} AND path >= ?2 AND path < ?3"
                ))?;
                let rows = statement.query_map(params![run, end(b'/'), end(b'/' + 1)], |row| row.get(0))?;
                chunks.extend(rows.collect::<rusqlite::Result<Vec<u64>>>()?);
            }
            chunks.sort_unstable();
            chunks.dedup();
            Ok(chunks)
        })
    }

    /// Returns a chunk of an archive and those after it in which no member begins: its last file needs them.
    pub fn chunks_of_unit(&self, run: i64, sequence: u64) -> Result<Vec<Chunk>> {
        self.read(|connection| {
            let end: Option<u64> = connection
                .prepare_cached(&format!(
                    "SELECT {SEQUENCE} FROM span CROSS JOIN {RUNS_OF_SPAN} WHERE {OF_FILE} AND {FROM_CHUNK} \
                     ORDER BY span.sequence, chunk_members.chunk_id LIMIT 1"
                ))?
                .query_row(params![run, sequence + 1, i64::MAX], |row| row.get(0))
                .optional()?;
            let rows = chunk_rows(connection, run, sequence, end.map_or(u64::MAX, |end| end - sequence))?;
            Ok(rows.into_iter().map(|row| row.chunk).collect())
        })
    }

    /// Passes every path of the catalog to `visit`, in byte order. Some of them may be in no complete archive.
    pub fn paths(&self, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT path FROM member GROUP BY path")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                visit(row.get_ref(0)?.as_blob()?);
            }
            Ok(())
        })
    }

    /// Returns the occurrences of a path in complete archives of one schedule or of all, newest first.
    pub fn path_occurrences(&self, path: &MemberPath, schedule: Option<i64>) -> Result<Vec<PathOccurrence>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT archive.run_id, schedule.name, archive.created_at_ms, {MEMBER} FROM {HOLDERS} \
                     CROSS JOIN archive ON archive.archive_file_id = span.archive_file_id \
                     JOIN schedule ON schedule.id = archive.schedule_id \
                     WHERE path = ?1 AND archive.state = 'complete' AND (?2 IS NULL OR archive.schedule_id = ?2) \
                     ORDER BY archive.run_id DESC"
                ))?
                .query_map(params![path.as_bytes(), schedule], |row| {
                    Ok(PathOccurrence {
                        run: row.get(0)?,
                        schedule: row.get(1)?,
                        created_at: Timestamp::from_millis(row.get(2)?),
                        entry: member_row(row, 3)?.entry,
                    })
                })?
                .collect()
        })
    }

    /// Returns the resolved sources of all archives, each once.
    pub fn source_roots(&self) -> Result<Vec<Vec<u8>>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT DISTINCT source_root FROM archive")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
    }

    /// Returns the source of an archive, resolved when it was made.
    pub fn source_root(&self, run: i64) -> Result<Vec<u8>> {
        self.read(|connection| {
            connection.query_row("SELECT source_root FROM archive WHERE run_id = ?1", [run], |row| row.get(0))
        })
    }
}

/// Returns the members whose headers start in the chunks of an archive from `sequence` on and before `end`, in order,
/// each with the position of its chunk.
pub(super) fn member_rows(
    connection: &Connection,
    run: i64,
    sequence: u64,
    end: u64,
) -> rusqlite::Result<Vec<(u64, BaseMember)>> {
    connection
        .prepare_cached(&format!(
            "SELECT {SEQUENCE}, {MEMBER} FROM span CROSS JOIN {RUNS_OF_SPAN} CROSS JOIN {MEMBERS_OF_RUN} \
             WHERE {OF_FILE} AND {FROM_CHUNK} AND span.sequence < ?3 \
             ORDER BY span.sequence, chunk_members.chunk_id, ordinal, member.id"
        ))?
        .query_map(params![run, sequence, end.min(i64::MAX as u64)], |row| Ok((row.get(0)?, member_row(row, 1)?)))?
        .collect()
}

/// Reads the columns [`MEMBER`] from the column `first` on.
fn member_row(row: &Row<'_>, first: usize) -> rusqlite::Result<BaseMember> {
    let at = |column: usize| first + column;
    let bytes = |column: usize| -> rusqlite::Result<Box<[u8]>> { Ok(row.get_ref(at(column))?.as_blob()?.into()) };
    let path = MemberPath::parse(row.get_ref(at(1))?.as_blob()?)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(at(1), rusqlite::types::Type::Blob, Box::new(e)))?;
    let time = |column: usize| -> rusqlite::Result<FileTime> {
        Ok(FileTime { seconds: row.get(at(column))?, nanoseconds: row.get(at(column + 1))? })
    };
    let device: (Option<u32>, Option<u32>) = (row.get(at(15))?, row.get(at(16))?);
    let member = Member {
        path,
        kind: row.get(at(2))?,
        size: row.get::<_, i64>(at(3))?.cast_unsigned(),
        mode: row.get(at(4))?,
        uid: row.get(at(5))?,
        gid: row.get(at(6))?,
        user_name: bytes(7)?,
        group_name: bytes(8)?,
        modified: time(9)?,
        link_target: row.get::<_, Option<Vec<u8>>>(at(17))?.map(Vec::into_boxed_slice),
        device_number: device.0.zip(device.1),
        xattrs: Xattrs::new(),
    };
    let entry = CatalogMember {
        member,
        changed: time(11)?,
        device: row.get::<_, i64>(at(13))?.cast_unsigned(),
        inode: row.get::<_, i64>(at(14))?.cast_unsigned(),
        xattr_digest: row.get(at(18))?,
        content_digest: row.get(at(19))?,
        entry_bytes: row.get(at(20))?,
        is_reusable: row.get(at(21))?,
    };
    Ok(BaseMember { id: row.get(at(0))?, entry })
}
