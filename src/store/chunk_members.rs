//! Members of single chunks, as verification names them.

use rusqlite::{OptionalExtension, Row, params};

use super::Store;
use crate::error::{Error, Result};
use crate::member::{CatalogMember, FileTime, Member, MemberKind, MemberPath};

impl Store {
    /// Returns the members whose headers start in one chunk of an archive, in order. Their extended attributes are not
    /// in the catalog: the list is empty, and `xattr_digest` says whether there are any.
    pub fn chunk_members(&self, run: i64, sequence: u64) -> Result<Vec<CatalogMember>> {
        let rows: Vec<Result<CatalogMember>> = self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT member.* FROM member WHERE chunk_id = (SELECT chunk_id FROM archive_chunk \
                     WHERE archive_file_id = (SELECT archive_file_id FROM archive WHERE run_id = ?1) \
                     AND sequence = ?2) ORDER BY ordinal",
                )?
                .query_map(params![run, sequence], catalog_member)?
                .collect()
        })?;
        rows.into_iter().collect()
    }

    /// Returns the path of the last member whose header starts before a chunk of an archive: the file whose content
    /// goes on in it.
    pub fn member_before(&self, run: i64, sequence: u64) -> Result<Option<Vec<u8>>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT path FROM archive_chunk JOIN member USING (chunk_id) \
                     WHERE archive_file_id = (SELECT archive_file_id FROM archive WHERE run_id = ?1) \
                     AND sequence < ?2 ORDER BY sequence DESC, ordinal DESC LIMIT 1",
                )?
                .query_row(params![run, sequence], |row| row.get(0))
                .optional()
        })
    }
}

fn catalog_member(row: &Row<'_>) -> rusqlite::Result<Result<CatalogMember>> {
    let time = |seconds: &str, nanoseconds: &str| -> rusqlite::Result<FileTime> {
        Ok(FileTime { seconds: row.get(seconds)?, nanoseconds: row.get(nanoseconds)? })
    };
    let bytes = |name: &str| -> rusqlite::Result<Box<[u8]>> { row.get::<_, Vec<u8>>(name).map(Into::into) };
    let number = |name: &str| -> rusqlite::Result<u64> { row.get::<_, i64>(name).map(i64::cast_unsigned) };
    let (path, kind) = (bytes("path")?, row.get::<_, String>("kind")?);
    let (major, minor): (Option<u32>, Option<u32>) = (row.get("device_major")?, row.get("device_minor")?);
    let link_target: Option<Vec<u8>> = row.get("link_target")?;
    let (size, mode, uid, gid) = (number("size")?, row.get("mode")?, row.get("uid")?, row.get("gid")?);
    let (user_name, group_name) = (bytes("user_name")?, bytes("group_name")?);
    let (modified, changed) = (time("modified_s", "modified_ns")?, time("changed_s", "changed_ns")?);
    let (offset, device, inode) = (row.get("content_offset")?, number("device")?, number("inode")?);
    let (content_digest, xattr_digest) = (row.get("content_digest")?, row.get("xattr_digest")?);
    let changed_while_read = row.get("changed_while_read")?;
    let make = || -> Result<CatalogMember> {
        let member = Member {
            path: MemberPath::parse(&path)?,
            kind: kind_of(&kind)?,
            size,
            mode,
            uid,
            gid,
            user_name,
            group_name,
            modified,
            link_target: link_target.map(Into::into),
            device_number: major.zip(minor),
            xattrs: Vec::new(),
        };
        Ok(CatalogMember { member, offset, device, inode, changed, content_digest, xattr_digest, changed_while_read })
    };
    Ok(make())
}

fn kind_of(word: &str) -> Result<MemberKind> {
    Ok(match word {
        "file" => MemberKind::File,
        "folder" => MemberKind::Folder,
        "symlink" => MemberKind::Symlink,
        "hardlink" => MemberKind::HardLink,
        "fifo" => MemberKind::Fifo,
        "char" => MemberKind::CharDevice,
        "block" => MemberKind::BlockDevice,
        _ => return Err(Error::failed(format!("the catalog knows a member of the kind \"{word}\""))),
    })
}
