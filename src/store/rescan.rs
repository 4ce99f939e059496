//! Adding archives to the catalog from their files: without a claim, and not visible before they are complete.

use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::Store;
use super::insert_chunks::insert_chunks;
use super::remove_chunks::remove_batch;
use super::rows::{PENDING, exactly_one};
use super::stored_files::{
    ArchiveBytes, delete_archive_file, delete_index_file, insert_archive_file, insert_part, insert_rest,
    insert_stored_file, insert_trailer, insert_whole_file, keep_parts, record_archive_file, record_read_health,
    record_whole_file,
};
use super::types::{FoundArchive, FoundRange, FoundTrailer, Health, StoredBytes};
use crate::chunk::CatalogChunk;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::schedule::Layout;

impl Store {
    /// Adopts the identity of the database whose archives lie in the archive folder. The database must be opened again
    /// to use it.
    ///
    /// Errors: `Failed` if the database holds schedules, runs or archives.
    pub fn adopt_identity(&self, identity: Uuid) -> Result<()> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE instance SET uuid = ?1 WHERE NOT EXISTS (SELECT 1 FROM schedule)",
                [identity.to_string()],
            )?;
            exactly_one(changed)
        })
    }

    /// Makes the numbers of new runs start above `number`.
    pub fn raise_run_numbers(&self, number: i64) -> Result<()> {
        self.write(|transaction| {
            let changed =
                transaction.execute("UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = 'run'", [number])?;
            if changed == 0 {
                transaction.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('run', ?1)", [number])?;
            }
            Ok(())
        })
    }

    /// Returns whether the catalog has an archive with this file name in any state, except those partly added.
    pub fn has_archive_file(&self, file_name: &str) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM archive JOIN run ON run.id = run_id WHERE file_name = ?1 \
                     AND NOT (archive.state = 'writing' AND trigger = 'rescan'))",
                )?
                .query_row([file_name], |row| row.get(0))
        })
    }

    /// Returns the row of the physical file that `found` is a hard link of; `None` if no complete archive of the
    /// catalog has that file.
    pub fn shared_file(&self, found: &FoundArchive) -> Result<Option<i64>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT archive_file.id FROM stored_file JOIN part ON part.stored_file_id = stored_file.id \
                     JOIN archive_file ON archive_file.id = part.archive_file_id \
                     JOIN archive ON archive.archive_file_id = archive_file.id \
                     WHERE device = ?1 AND inode = ?2 AND digest = ?3 AND archive.state = 'complete' LIMIT 1",
                )?
                .query_row(params![found.device.cast_signed(), found.inode.cast_signed(), found.digest], |row| {
                    row.get(0)
                })
                .optional()
        })
    }

    /// Begins to add an archive, under the run number in its name if that is free, else under a new one; returns that
    /// number. The rows of an earlier attempt at the same file must be discarded before.
    pub fn begin_adding_archive(&self, found: &FoundArchive, now: Timestamp) -> Result<i64> {
        self.write(|transaction| {
            let run = insert_run(transaction, found, now)?;
            let FoundArchive { size, device, inode, digest, .. } = *found;
            let (file, index) = match found.layout {
                Layout::Whole => {
                    let file = insert_whole_file(transaction, found.codec, 0)?;
                    let stored = StoredBytes { size, device, inode, modified_ns: None };
                    record_whole_file(transaction, file, digest, &stored)?;
                    (file, None)
                }
                Layout::Segmented => {
                    let file = insert_archive_file(transaction, found.codec, 0)?;
                    let bytes = ArchiveBytes { size, digest, crc: None };
                    record_archive_file(transaction, file, &bytes)?;
                    (file, Some(insert_stored_file(transaction)?))
                }
            };
            insert_archive(transaction, found, run, (file, index), "writing")?;
            Ok(run)
        })
    }

    /// Adds chunks with their members to an archive that is being added.
    pub fn add_chunks_of_archive(&self, run: i64, chunks: &[CatalogChunk]) -> Result<()> {
        self.write(|transaction| insert_chunks(transaction, run, chunks))
    }

    /// Adds ranges without chunks to an archive that is being added, the first as number `sequence`.
    pub fn add_ranges_of_archive(&self, run: i64, sequence: u64, ranges: &[FoundRange]) -> Result<()> {
        self.write(|transaction| {
            let file: i64 = transaction.query_row(
                "SELECT archive_file_id FROM archive WHERE run_id = ?1 AND state = 'writing'",
                [run],
                |row| row.get(0),
            )?;
            let mut insert = transaction.prepare_cached(
                "INSERT INTO span (archive_file_id, sequence, chunks, archive_offset, stored_file_id, file_offset, \
                     bytes) VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6)",
            )?;
            for (sequence, range) in (sequence..).zip(ranges) {
                insert_part(transaction, file, range.segment)?;
                insert.execute(params![
                    file,
                    sequence,
                    range.archive_offset,
                    range.segment,
                    range.offset,
                    range.bytes
                ])?;
            }
            Ok(())
        })
    }

    /// Makes an archive visible of which only the ranges were added. Nothing of it counts as verified.
    pub fn finish_adding_ranges(&self, run: i64) -> Result<()> {
        self.write(|transaction| {
            let file = make_visible(transaction, run)?;
            keep_parts(transaction, run, file)
        })
    }

    /// Records the digest of an archive that was added without it.
    pub fn record_digest(&self, archive_file: i64, digest: &[u8; 32]) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE archive_file SET digest = ?2 WHERE id = ?1 AND digest IS NULL",
                    params![archive_file, digest],
                )
                .map(drop)
        })
    }

    /// Makes an archive visible whose chunks are all added and verified; `trailer` is that of one in segments.
    pub fn finish_adding_archive(&self, run: i64, trailer: Option<&FoundTrailer>, now: Timestamp) -> Result<()> {
        self.write(|transaction| {
            let file = make_visible(transaction, run)?;
            match trailer {
                None => insert_rest(transaction, file)?,
                Some(trailer) => insert_found_trailer(transaction, file, trailer)?,
            }
            record_read_health(transaction, run, file, now)?;
            keep_parts(transaction, run, file)
        })
    }

    /// Gives the archive `known`, of which only ranges were added, the chunks that were added as run `added`: what
    /// users decided about it stays. [`Store::discard_partly_added_archives`] then removes `added` with the ranges.
    pub fn finish_adding_chunks(&self, added: i64, known: i64, trailer: &FoundTrailer, now: Timestamp) -> Result<()> {
        self.write(|transaction| {
            let file_of = "SELECT archive_file_id FROM archive WHERE run_id = ?1 AND state = ?2";
            let file: i64 = transaction.query_row(file_of, params![added, "writing"], |row| row.get(0))?;
            let ranges: i64 = transaction.query_row(file_of, params![known, "complete"], |row| row.get(0))?;
            insert_found_trailer(transaction, file, trailer)?;
            transaction.execute(
                "UPDATE archive SET (source_root, incomplete, members, files, content_bytes) = ( \
                     SELECT source_root, incomplete, members, files, content_bytes FROM archive WHERE run_id = ?2) \
                 WHERE run_id = ?1",
                [known, added],
            )?;
            transaction.execute(
                "UPDATE run SET (state, members, files, content_bytes, archive_bytes, problems, losses) = ( \
                     SELECT state, members, files, content_bytes, archive_bytes, problems, losses FROM run \
                     WHERE id = ?2) WHERE id = ?1",
                [known, added],
            )?;
            for (run, file) in [(known, file), (added, ranges)] {
                let changed =
                    transaction.execute("UPDATE archive SET archive_file_id = ?2 WHERE run_id = ?1", [run, file])?;
                exactly_one(changed)?;
            }
            record_read_health(transaction, known, file, now)?;
            keep_parts(transaction, known, file)
        })
    }

    /// Adds an archive that is a hard link of a file in the catalog; returns its run number.
    pub fn add_archive_link(&self, found: &FoundArchive, archive_file: i64, now: Timestamp) -> Result<i64> {
        self.write(|transaction| {
            let run = insert_run(transaction, found, now)?;
            insert_archive(transaction, found, run, (archive_file, None), "complete")?;
            Ok(run)
        })
    }

    /// Adds a segment that was found in the archive folder, or that should be there (`stored` is `None`), if it has no
    /// row; returns its row.
    pub fn add_found_segment(&self, segment_name: &str, run: i64, stored: Option<&StoredBytes>) -> Result<i64> {
        self.write(|transaction| {
            transaction.query_row(
                "INSERT INTO stored_file (segment_name, run_id, state, health, size, modified_ns, device, inode) \
                 VALUES (?1, ?2, 'kept', ?7, ?3, ?4, ?5, ?6) \
                 ON CONFLICT (segment_name) DO UPDATE SET state = 'kept' RETURNING id",
                params![
                    segment_name,
                    run,
                    stored.map(|stored| stored.size),
                    stored.and_then(|stored| stored.modified_ns),
                    stored.map(|stored| stored.device.cast_signed()),
                    stored.map(|stored| stored.inode.cast_signed()),
                    if stored.is_some() { Health::Unverified } else { Health::Missing }.as_str(),
                ],
                |row| row.get(0),
            )
        })
    }

    /// Returns whether the catalog has a segment with this name below the archive folder.
    pub fn has_segment(&self, segment_name: &str) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM stored_file WHERE segment_name = ?1)")?
                .query_row([segment_name], |row| row.get(0))
        })
    }

    /// Removes the archives that earlier rescans began to add and did not finish.
    pub fn discard_partly_added_archives(&self) -> Result<()> {
        loop {
            let is_more = self.write(|transaction| {
                let partly: Option<(i64, i64)> = transaction
                    .query_row(
                        &format!(
                            "SELECT run_id, archive_file_id FROM archive JOIN run ON run.id = run_id \
                             WHERE {PENDING} AND archive.state = 'writing' AND trigger = 'rescan' LIMIT 1"
                        ),
                        [],
                        |row| Ok((row.get(0)?, row.get(1)?)),
                    )
                    .optional()?;
                let Some((run, file)) = partly else { return Ok(false) };
                if !remove_batch(transaction, file)? {
                    let index = transaction.query_row(
                        "DELETE FROM archive WHERE run_id = ?1 RETURNING index_file_id",
                        [run],
                        |row| row.get(0),
                    )?;
                    delete_index_file(transaction, index)?;
                    delete_archive_file(transaction, file)?;
                    transaction.execute("DELETE FROM run WHERE id = ?1", [run])?;
                }
                Ok(true)
            })?;
            if !is_more {
                return Ok(());
            }
        }
    }
}

/// Makes an archive visible that is being added; returns its archive file.
fn make_visible(transaction: &rusqlite::Transaction<'_>, run: i64) -> rusqlite::Result<i64> {
    transaction.query_row(
        "UPDATE archive SET state = 'complete' WHERE run_id = ?1 AND state = 'writing' RETURNING archive_file_id",
        [run],
        |row| row.get(0),
    )
}

fn insert_found_trailer(
    transaction: &rusqlite::Transaction<'_>,
    file: i64,
    FoundTrailer { segment, offset, crc }: &FoundTrailer,
) -> rusqlite::Result<()> {
    transaction.execute("UPDATE archive_file SET crc = ?2 WHERE id = ?1", params![file, crc])?;
    insert_part(transaction, file, *segment)?;
    insert_trailer(transaction, file, *segment, *offset)
}

fn insert_run(transaction: &rusqlite::Transaction<'_>, found: &FoundArchive, now: Timestamp) -> rusqlite::Result<i64> {
    let is_taken: bool =
        transaction.query_row("SELECT EXISTS (SELECT 1 FROM run WHERE id = ?1)", [found.run], |row| row.get(0))?;
    let number = (!is_taken && found.run > 0).then_some(found.run);
    transaction.execute(
        "INSERT INTO run (id, schedule_id, trigger, state, not_before_ms, queued_at_ms, started_at_ms, \
             finished_at_ms, members, files, content_bytes, archive_bytes, problems, losses, notes) \
         VALUES (?1, ?2, 'rescan', ?3, ?4, ?4, ?4, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            number,
            found.schedule,
            if found.incomplete { "incomplete" } else { "succeeded" },
            found.created_at.millis(),
            found.extent.members,
            found.extent.files,
            found.extent.content_bytes,
            found.size,
            found.problems,
            found.losses,
            format!("found by a rescan at {}", now.rfc3339(&chrono::Utc)),
        ],
    )?;
    Ok(transaction.last_insert_rowid())
}

fn insert_archive(
    transaction: &rusqlite::Transaction<'_>,
    found: &FoundArchive,
    run: i64,
    (archive_file, index): (i64, Option<i64>),
    state: &str,
) -> rusqlite::Result<()> {
    transaction
        .execute(
            "INSERT INTO archive (run_id, schedule_id, archive_file_id, state, file_name, source_root, \
                 scan_started_at_ms, created_at_ms, incomplete, members, files, content_bytes, layout, index_file_id) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            params![
                run,
                found.schedule,
                archive_file,
                state,
                found.file_name,
                found.source_root,
                found.created_at.millis(),
                found.incomplete,
                found.extent.members,
                found.extent.files,
                found.extent.content_bytes,
                found.layout.as_str(),
                index,
            ],
        )
        .map(drop)
}
