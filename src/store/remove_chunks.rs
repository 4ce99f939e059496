//! Removing the rows of an archive file in batches; what other archives refer to is kept.

use rusqlite::{OptionalExtension, Transaction, params};

/// Maximum number of rows of the catalog that one transaction writes: with those of run and archive 10,000 (I5).
pub(super) const MAX_BATCH_ROWS: usize = 9_990;

/// Removes up to a batch of the spans of an archive file, with the chunks and members to which nothing else refers;
/// returns whether any span is left. A span is removed last, so that each batch continues where the last one ended.
pub(super) fn remove_batch(transaction: &Transaction<'_>, file: i64) -> rusqlite::Result<bool> {
    let mut rows = 0;
    while rows < MAX_BATCH_ROWS {
        let Some(sequence) = first_span(transaction, file)? else { return Ok(false) };
        for chunk in unshared_chunks(transaction, file, sequence)? {
            if !remove_chunk(transaction, chunk, &mut rows)? {
                return Ok(true);
            }
        }
        rows += transaction
            .prepare_cached("DELETE FROM span WHERE archive_file_id = ?1 AND sequence = ?2")?
            .execute([file, sequence])?;
    }
    Ok(true)
}

fn first_span(transaction: &Transaction<'_>, file: i64) -> rusqlite::Result<Option<i64>> {
    transaction
        .prepare_cached("SELECT sequence FROM span WHERE archive_file_id = ?1 ORDER BY sequence LIMIT 1")?
        .query_row([file], |row| row.get(0))
        .optional()
}

/// Returns the chunks of a span that no other span holds.
fn unshared_chunks(transaction: &Transaction<'_>, file: i64, sequence: i64) -> rusqlite::Result<Vec<i64>> {
    transaction
        .prepare_cached(
            "SELECT chunk.id FROM span CROSS JOIN chunk \
                 ON chunk.id >= span.chunk_id AND chunk.id < span.chunk_id + span.chunks \
             WHERE span.archive_file_id = ?1 AND span.sequence = ?2 AND NOT EXISTS ( \
                 SELECT 1 FROM span AS other INDEXED BY span_of_chunk \
                 WHERE other.chunk_id BETWEEN chunk.id - 255 AND chunk.id AND other.chunk_id + other.chunks > chunk.id \
                     AND NOT (other.archive_file_id = ?1 AND other.sequence = ?2))",
        )?
        .query_map([file, sequence], |row| row.get(0))?
        .collect()
}

/// Removes a chunk with the members that are in no other chunk; returns false if the batch ends before.
fn remove_chunk(transaction: &Transaction<'_>, chunk: i64, rows: &mut usize) -> rusqlite::Result<bool> {
    let runs: Vec<(i64, i64, usize)> = transaction
        .prepare_cached("SELECT ordinal, member_id, members FROM chunk_members WHERE chunk_id = ?1")?
        .query_map([chunk], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (ordinal, member, members) in runs {
        if *rows + members + 2 > MAX_BATCH_ROWS {
            return Ok(false);
        }
        *rows += transaction
            .prepare_cached("DELETE FROM chunk_members WHERE chunk_id = ?1 AND ordinal = ?2")?
            .execute([chunk, ordinal])?;
        *rows += transaction
            .prepare_cached(
                "DELETE FROM member WHERE id >= ?1 AND id < ?1 + ?2 AND NOT EXISTS ( \
                     SELECT 1 FROM chunk_members WHERE member_id BETWEEN member.id - 255 AND member.id \
                     AND member_id + members > member.id)",
            )?
            .execute(params![member, members])?;
    }
    *rows += transaction.prepare_cached("DELETE FROM chunk WHERE id = ?1")?.execute([chunk])?;
    Ok(*rows < MAX_BATCH_ROWS)
}
