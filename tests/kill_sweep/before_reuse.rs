//! The rows of the catalog as schema 4 stored them.

use crate::stress::catalog::{chunks, members};

/// Returns the rows of a table of a database as they were with schema 4, in which each archive had members of its own.
pub fn rows_of(table: &str, database: &str) -> String {
    let (chunks, members) = (chunks(database), members(database));
    match table {
        "archive_chunk" => chunks,
        "chunk" => format!("(SELECT *, NULL AS proved_at_ms FROM {database}.chunk)"),
        "path" => format!("(SELECT DISTINCT path FROM {database}.member)"),
        "member" => {
            let columns = "chunk_id, ordinal, path, size, mode, uid, gid, user_name, group_name, modified_s, \
                           modified_ns, changed_s, changed_ns, device, inode, device_major, device_minor, link_target, \
                           xattr_digest, content_digest, content_offset";
            let kind = "CASE kind WHEN 0 THEN 'file' WHEN 1 THEN 'folder' WHEN 2 THEN 'symlink' WHEN 3 THEN 'hardlink' \
                        WHEN 4 THEN 'fifo' WHEN 5 THEN 'char' WHEN 6 THEN 'block' END AS kind";
            format!("(SELECT {columns}, {kind}, 1 - is_reusable AS changed_while_read FROM {members})")
        }
        _ => format!("{database}.{table}"),
    }
}
