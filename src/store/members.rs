//! Members in the catalog: those of one archive, and the archives that hold a path.

use rusqlite::{OptionalExtension, Row, params};

use super::Store;
use super::rows::{CHUNK, OF_FILE, chunk_row, kind_of_word};
use super::types::{CatalogEntry, PathOccurrence};
use crate::chunk::Chunk;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::member::{CatalogMember, FileTime, Member, MemberPath, Xattrs};

const MEMBER: &str = "member.path, kind, size, mode, uid, gid, user_name, group_name, modified_s, modified_ns, \
     changed_s, changed_ns, device, inode, device_major, device_minor, link_target, xattr_digest, \
     content_digest, \
     coalesce((SELECT next.content_offset FROM member AS next WHERE next.chunk_id = member.chunk_id \
         AND next.ordinal = member.ordinal + 1), (SELECT content_length FROM chunk WHERE chunk.id = member.chunk_id)) \
         - member.content_offset AS entry_bytes, \
     1 - changed_while_read";

impl Store {
    /// Returns the members of up to `limit` chunks of an archive, from `sequence` on, in order, and the chunk that
    /// follows them if there are more.
    pub fn members(&self, run: i64, sequence: u64, limit: u32) -> Result<(Vec<CatalogEntry>, Option<u64>)> {
        let chunks = self.chunks(run, sequence, limit.saturating_add(1))?;
        let next = chunks.get(limit as usize).map(|chunk| chunk.sequence);
        let end = next.unwrap_or(i64::MAX as u64);
        let members = self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT sequence, content_offset, {MEMBER} FROM archive_chunk JOIN member USING (chunk_id) \
                     WHERE {OF_FILE} \
                     AND sequence >= ?2 AND sequence < ?3 ORDER BY sequence, ordinal"
                ))?
                .query_map(params![run, sequence, end], |row| {
                    Ok(CatalogEntry { sequence: row.get(0)?, offset: row.get(1)?, entry: member_row(row, 2)? })
                })?
                .collect()
        })?;
        Ok((members, next))
    }

    /// Returns the members whose headers start in one chunk of an archive, in order.
    pub fn chunk_members(&self, run: i64, sequence: u64) -> Result<Vec<CatalogMember>> {
        let (members, _) = self.members(run, sequence, 1)?;
        Ok(members.into_iter().filter(|listed| listed.sequence == sequence).map(|listed| listed.entry).collect())
    }

    /// Returns the path of the last member whose header starts before a chunk of an archive: the file whose content
    /// continues in it.
    pub fn member_before(&self, run: i64, sequence: u64) -> Result<Option<Vec<u8>>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT path FROM archive_chunk JOIN member USING (chunk_id) WHERE {OF_FILE} \
                     AND sequence < ?2 ORDER BY sequence DESC, ordinal DESC LIMIT 1"
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
            let at: Vec<(u64, String)> = connection
                .prepare_cached(&format!(
                    "SELECT sequence, kind FROM member INDEXED BY member_of_path CROSS JOIN archive_chunk \
                     ON archive_chunk.chunk_id = member.chunk_id WHERE {OF_FILE} AND path = ?2 ORDER BY sequence"
                ))?
                .query_map(params![run, path.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let mut chunks: Vec<u64> = at.iter().map(|(sequence, _)| *sequence).collect();
            if below && (at.is_empty() || at.iter().any(|(_, kind)| kind == "folder")) {
                let end = |last: u8| [path.as_bytes(), &[last]].concat();
                let mut statement = connection.prepare_cached(&format!(
                    "SELECT DISTINCT sequence FROM archive_chunk CROSS JOIN member \
                     ON member.chunk_id = archive_chunk.chunk_id WHERE {OF_FILE} AND path >= ?2 AND path < ?3"
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
                    "SELECT min(sequence) FROM archive_chunk WHERE {OF_FILE} AND sequence > ?2 \
                     AND EXISTS (SELECT 1 FROM member WHERE member.chunk_id = archive_chunk.chunk_id)"
                ))?
                .query_row(params![run, sequence], |row| row.get(0))?;
            connection
                .prepare_cached(&format!(
                    "SELECT {CHUNK} FROM archive_chunk JOIN chunk ON chunk.id = chunk_id WHERE {OF_FILE} \
                     AND sequence >= ?2 AND sequence < ?3 ORDER BY sequence"
                ))?
                .query_map(params![run, sequence, end.unwrap_or(i64::MAX as u64)], chunk_row)?
                .collect()
        })
    }

    /// Passes every path of the catalog to `visit`, in byte order. Some of them may be in no complete archive.
    pub fn paths(&self, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT path FROM path")?;
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
                    "SELECT archive.run_id, schedule.name, archive.created_at_ms, {MEMBER} FROM member \
                     JOIN archive_chunk USING (chunk_id) \
                     JOIN archive ON archive.archive_file_id = archive_chunk.archive_file_id \
                     JOIN schedule ON schedule.id = archive.schedule_id \
                     WHERE path = ?1 AND archive.state = 'complete' AND (?2 IS NULL OR archive.schedule_id = ?2) \
                     ORDER BY archive.run_id DESC"
                ))?
                .query_map(params![path.as_bytes(), schedule], |row| {
                    Ok(PathOccurrence {
                        run: row.get(0)?,
                        schedule: row.get(1)?,
                        created_at: Timestamp::from_millis(row.get(2)?),
                        entry: member_row(row, 3)?,
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

fn member_row(row: &Row<'_>, first: usize) -> rusqlite::Result<CatalogMember> {
    let at = |column: usize| first + column;
    let bytes = |column: usize| -> rusqlite::Result<Box<[u8]>> { Ok(row.get_ref(at(column))?.as_blob()?.into()) };
    let path = MemberPath::parse(&bytes(0)?)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(first, rusqlite::types::Type::Blob, Box::new(e)))?;
    let time = |column: usize| -> rusqlite::Result<FileTime> {
        Ok(FileTime { seconds: row.get(at(column))?, nanoseconds: row.get(at(column + 1))? })
    };
    let device: (Option<u32>, Option<u32>) = (row.get(at(14))?, row.get(at(15))?);
    let member = Member {
        path,
        kind: kind_of_word(row.get_ref(at(1))?.as_str()?)?,
        size: row.get::<_, i64>(at(2))?.cast_unsigned(),
        mode: row.get(at(3))?,
        uid: row.get(at(4))?,
        gid: row.get(at(5))?,
        user_name: bytes(6)?,
        group_name: bytes(7)?,
        modified: time(8)?,
        link_target: row.get::<_, Option<Vec<u8>>>(at(16))?.map(Vec::into_boxed_slice),
        device_number: device.0.zip(device.1),
        xattrs: Xattrs::new(),
    };
    Ok(CatalogMember {
        member,
        changed: time(10)?,
        device: row.get::<_, i64>(at(12))?.cast_unsigned(),
        inode: row.get::<_, i64>(at(13))?.cast_unsigned(),
        xattr_digest: row.get(at(17))?,
        content_digest: row.get(at(18))?,
        entry_bytes: row.get(at(19))?,
        is_reusable: row.get(at(20))?,
    })
}
