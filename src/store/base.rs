//! The base of a run: finding it, holding it while the run refers to it, and reading its chunks and members.

use rusqlite::{OptionalExtension, Row, named_params, params};

use super::Store;
use super::catalog::chunk_rows;
use super::members::member_rows;
use super::rows::{GOOD, JOINED, exactly_one, extent_row};
use super::stored_files::parts_of;
use super::types::{Base, BaseQuery, Claim};
use crate::chunk::BaseChunk;
use crate::clock::Timestamp;
use crate::error::Result;

/// Condition of an archive that no running run refers to.
pub(super) const NOT_HELD: &str =
    "NOT EXISTS (SELECT 1 FROM run WHERE run.state = 'running' AND run.base_run_id = archive.run_id)";

impl Store {
    /// Returns the newest good archive of a schedule that was made in the way of `query`; `None` if there is none, or
    /// if a file of the source changed without its times and nobody has accepted that.
    pub fn find_base(&self, query: &BaseQuery) -> Result<Option<Base>> {
        let origin = &query.origin;
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT archive.*, size, digest, verified_at_ms, \
                         (SELECT losses FROM run WHERE run.id = archive.run_id) AS losses, \
                         (SELECT sequence + chunks FROM span WHERE span.archive_file_id = archive_file.id \
                             ORDER BY sequence DESC LIMIT 1) AS chunks \
                     {JOINED} WHERE archive.schedule_id = :schedule AND {GOOD} AND reuse_off_at_ms IS NULL \
                         AND codec = :codec AND level = :level AND source_root = :source_root \
                         AND root_name = :root_name AND writer_version = :writer_version \
                         AND archive_mode = :archive_mode AND effective_uid = :effective_uid \
                         AND capabilities = :capabilities AND archive.layout = :layout AND chunks IS NOT NULL \
                     ORDER BY archive.run_id DESC LIMIT 1"
                ))?
                .query_row(
                    named_params! {
                        ":schedule": query.schedule,
                        ":codec": query.compression.codec(),
                        ":level": query.compression.level(),
                        ":source_root": query.source_root,
                        ":root_name": origin.root_name.as_bytes(),
                        ":writer_version": origin.writer_version,
                        ":archive_mode": origin.archive_mode,
                        ":effective_uid": origin.effective_uid,
                        ":capabilities": origin.capabilities,
                        ":layout": query.layout.as_str(),
                    },
                    base_row,
                )
                .optional()?
                .map(|base| Ok(Base { parts: parts_of(connection, base.archive_file)?, ..base }))
                .transpose()
        })
    }

    /// Makes an archive the base of a claimed run, so that it is not deleted while the run goes on; returns false if it
    /// is not complete any more.
    pub fn hold_base(&self, claim: &Claim, base: i64) -> Result<bool> {
        self.write_fenced(claim, |transaction| {
            let changed = transaction.execute(
                "UPDATE run SET base_run_id = ?2 WHERE id = ?1 \
                 AND EXISTS (SELECT 1 FROM archive WHERE run_id = ?2 AND state = 'complete')",
                [claim.run(), base],
            )?;
            Ok(changed == 1)
        })
    }

    /// Takes the base from a claimed run. What refers to its chunks must be discarded before.
    pub fn release_base(&self, claim: &Claim) -> Result<()> {
        self.write_fenced(claim, |transaction| {
            transaction.execute("UPDATE run SET base_run_id = NULL WHERE id = ?1", [claim.run()]).map(drop)
        })
    }

    /// Returns up to `limit` chunks of an archive from `sequence` on, in order, with their members.
    pub fn base_chunks(&self, run: i64, sequence: u64, limit: u32) -> Result<Vec<BaseChunk>> {
        let (rows, members) = self.read(|connection| {
            let rows = chunk_rows(connection, run, sequence, limit.into())?;
            let end = rows.last().map_or(sequence, |row| row.chunk.sequence + 1);
            Ok((rows, member_rows(connection, run, sequence, end)?))
        })?;
        let mut members = members.into_iter().peekable();
        let chunks = rows.into_iter().map(|row| {
            let is_here = |(sequence, _): &(u64, _)| *sequence == row.chunk.sequence;
            let members = std::iter::from_fn(|| members.next_if(is_here)).map(|(_, member)| member).collect();
            BaseChunk { id: row.id, chunk: row.chunk, place: row.place, read_started: row.read_started, members }
        });
        Ok(chunks.collect())
    }

    /// Records that chunks of the base of a claimed run were read again by it and are equal; `read_started` is when it
    /// began.
    pub fn mark_reread(&self, claim: &Claim, chunks: &[i64], read_started: Timestamp) -> Result<()> {
        self.write_fenced(claim, |transaction| {
            let mut update = transaction.prepare_cached("UPDATE chunk SET read_started_at_ms = ?2 WHERE id = ?1")?;
            chunks.iter().try_for_each(|id| exactly_one(update.execute([*id, read_started.millis()])?))
        })
    }

    /// Records that a physical file whose time of change moved was read back and is what was written.
    pub fn record_touched(&self, stored_file: i64, modified_ns: i64) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute("UPDATE stored_file SET modified_ns = ?2 WHERE id = ?1", [stored_file, modified_ns])
                .map(drop)
        })
    }

    /// Records that a file of the source changed without its times: until `accept`, no run of the schedule has a base.
    pub fn set_reuse_off(&self, schedule: i64, now: Timestamp) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE schedule SET reuse_off_at_ms = coalesce(reuse_off_at_ms, ?2) WHERE id = ?1",
                    params![schedule, now.millis()],
                )
                .map(drop)
        })
    }
}

fn base_row(row: &Row<'_>) -> rusqlite::Result<Base> {
    Ok(Base {
        run: row.get("run_id")?,
        archive_file: row.get("archive_file_id")?,
        parts: Vec::new(),
        file_name: row.get("file_name")?,
        size: row.get("size")?,
        digest: row.get("digest")?,
        verified_at: row.get::<_, Option<i64>>("verified_at_ms")?.map(Timestamp::from_millis),
        boot_id: row.get("boot_id")?,
        started_at: Timestamp::from_millis(row.get("scan_started_at_ms")?),
        extent: extent_row(row)?,
        chunks: row.get("chunks")?,
        incomplete: row.get("incomplete")?,
        losses: row.get("losses")?,
    })
}
