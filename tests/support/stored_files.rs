//! What must be true of the rows of physical files.

/// Queries of the rows of physical files that must return no row, at any instant.
pub const NEVER: &[(&str, &str)] = &[
    (
        "the spans of an archive do not follow each other",
        "SELECT archive_file_id FROM (SELECT archive_file_id, archive_offset, sequence, \
             lag(archive_offset + bytes, 1, 0) OVER parts AS end, lag(sequence + chunks, 1, 0) OVER parts AS next \
             FROM span WINDOW parts AS (PARTITION BY archive_file_id ORDER BY sequence)) \
         JOIN archive USING (archive_file_id) \
         WHERE state <> 'deleting' AND (archive_offset <> end OR sequence <> next)",
    ),
    (
        "the spans of an archive do not cover it",
        "SELECT run_id FROM archive JOIN archive_file ON archive_file.id = archive_file_id WHERE state = 'complete' \
         AND size <> (SELECT sum(bytes) FROM span WHERE span.archive_file_id = archive_file.id)",
    ),
    (
        "a span lies outside its stored file",
        "SELECT stored_file_id FROM span JOIN stored_file ON stored_file.id = stored_file_id \
         WHERE file_offset + bytes > size",
    ),
    (
        "a span of a whole file lies elsewhere than in it",
        "SELECT archive_file_id FROM span JOIN stored_file ON stored_file.id = stored_file_id \
         WHERE segment_name IS NULL AND file_offset <> archive_offset",
    ),
    (
        "a span in a stored file that is no part of the archive",
        "SELECT archive_file_id FROM span WHERE (archive_file_id, stored_file_id) NOT IN (SELECT * FROM part)",
    ),
];

/// Queries of the rows of physical files that must return no row after recovery.
pub const NEVER_SETTLED: &[(&str, &str)] = &[
    (
        "a part without a span",
        "SELECT archive_file_id FROM part WHERE (archive_file_id, stored_file_id) NOT IN \
         (SELECT archive_file_id, stored_file_id FROM span)",
    ),
    (
        "a stored file that is part of no archive",
        "SELECT id FROM stored_file WHERE id NOT IN (SELECT stored_file_id FROM part) \
         AND id NOT IN (SELECT index_file_id FROM archive WHERE index_file_id IS NOT NULL)",
    ),
    ("a stored file is unfinished", "SELECT id FROM stored_file WHERE state <> 'kept'"),
];
