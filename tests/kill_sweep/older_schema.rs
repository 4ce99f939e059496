//! The rows of the newest schema as older ones stored them.

use crate::stress::catalog::{chunks, members};

/// Returns the rows of a table of a database as they were with schema `version`.
pub fn rows_of(table: &str, database: &str, version: usize) -> String {
    match (table, version) {
        // One row for each physical file.
        ("archive_file", ..6) => format!(
            "(SELECT archive_file.*, device, inode, modified_ns, verified_at_ms, health \
             FROM {database}.archive_file JOIN {database}.part ON archive_file_id = archive_file.id \
             JOIN {database}.stored_file ON stored_file.id = stored_file_id)"
        ),
        ("span", ..6) => format!("(SELECT * FROM {database}.span WHERE chunks > 0)"),
        (_, ..5) => rows_of_schema_4(table, database),
        _ => format!("{database}.{table}"),
    }
}

/// With schema 4, each archive had chunks and members of its own.
fn rows_of_schema_4(table: &str, database: &str) -> String {
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
