//! The rows of the catalog as tables of chunks and members, one row each.

/// Returns a subquery for the chunks of archive files in the catalog of an attached database.
pub fn chunks(database: &str) -> String {
    format!(
        "(SELECT archive_file_id, span.sequence + chunk.id - span.chunk_id AS sequence, chunk.id AS chunk_id, \
         archive_offset + (SELECT coalesce(sum(stored_length), 0) FROM {database}.chunk AS before \
             WHERE before.id >= span.chunk_id AND before.id < chunk.id) AS stored_offset, \
         stored_length, stored_digest, content_length, content_digest FROM {database}.span AS span \
         JOIN {database}.chunk AS chunk ON chunk.id >= span.chunk_id AND chunk.id < span.chunk_id + chunks)"
    )
}

/// Returns a subquery for the members of chunks in the catalog of an attached database.
pub fn members(database: &str) -> String {
    format!(
        "(SELECT chunk_id, ordinal + member.id - member_id AS ordinal, coalesce(sum(entry_bytes) OVER (PARTITION BY \
             chunk_id ORDER BY ordinal, member.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) \
             AS content_offset, member.* FROM {database}.chunk_members AS chunk_members \
         JOIN {database}.member AS member ON member.id >= member_id AND member.id < member_id + members)"
    )
}
