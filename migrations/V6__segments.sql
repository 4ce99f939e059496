-- Physical files apart from archives: an archive file is a list of ranges of stored files. In the whole layout it is one
-- stored file, in the segmented layout ranges of segments, which archives share.

PRAGMA user_version = 6;

-- A physical file: a whole archive file, an index, or a segment.
CREATE TABLE stored_file (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    segment_name      TEXT    UNIQUE,     -- below the archive folder; null: of another kind, named by its archives
    temporary_name    TEXT,               -- of a segment, in the same folder, until it has its name
    run_id            INTEGER,            -- that wrote the segment
    state             TEXT    NOT NULL CHECK (state IN ('writing', 'kept', 'deleting', 'gone')),
    size              INTEGER,
    modified_ns       INTEGER,            -- when its bytes changed last, in nanoseconds, as sealed
    device            INTEGER,
    inode             INTEGER,
    verified_at_ms    INTEGER,
    health            TEXT    NOT NULL CHECK (health IN ('unproven', 'good', 'damaged', 'missing')),
    CHECK ((segment_name IS NULL) = (run_id IS NULL))
) STRICT;

INSERT INTO stored_file (id, state, size, modified_ns, device, inode, verified_at_ms, health)
    SELECT id,
        CASE WHEN EXISTS (SELECT 1 FROM archive WHERE archive_file_id = archive_file.id
            AND state IN ('complete', 'deleting')) THEN 'kept' ELSE 'writing' END,
        size, modified_ns, device, inode, verified_at_ms, health
    FROM archive_file;

-- A rescan searches for hard links of one file.
CREATE INDEX stored_file_of_inode ON stored_file (inode, device);
CREATE INDEX stored_file_of_run ON stored_file (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX stored_file_unfinished ON stored_file (state) WHERE state <> 'kept';

-- The stored files of which an archive file holds ranges. One that is part of none is removed.
CREATE TABLE part (
    archive_file_id   INTEGER NOT NULL REFERENCES archive_file (id),
    stored_file_id    INTEGER NOT NULL REFERENCES stored_file (id),
    PRIMARY KEY (archive_file_id, stored_file_id)
) STRICT, WITHOUT ROWID;

INSERT INTO part (archive_file_id, stored_file_id) SELECT id, id FROM archive_file;

CREATE INDEX part_of_stored_file ON part (stored_file_id);

-- A damaged range of a stored file. One that is damaged and has none is damaged as a whole.
CREATE TABLE damage (
    stored_file_id    INTEGER NOT NULL REFERENCES stored_file (id) ON DELETE CASCADE,
    file_offset       INTEGER NOT NULL,
    length            INTEGER NOT NULL CHECK (length > 0),
    found_at_ms       INTEGER NOT NULL,
    PRIMARY KEY (stored_file_id, file_offset)
) STRICT, WITHOUT ROWID;

ALTER TABLE span RENAME TO old_span;
DROP INDEX span_of_chunk;

-- Bytes of an archive file that lie side by side in a stored file: chunks with consecutive ids, or none, as the trailer.
CREATE TABLE span (
    archive_file_id   INTEGER NOT NULL REFERENCES archive_file (id),
    sequence          INTEGER NOT NULL,   -- of its first chunk; without any, of the chunk that would follow
    chunk_id          INTEGER,            -- its first chunk
    chunks            INTEGER NOT NULL CHECK (chunks BETWEEN 0 AND 256),
    archive_offset    INTEGER NOT NULL,   -- of its first byte
    stored_file_id    INTEGER NOT NULL REFERENCES stored_file (id),
    file_offset       INTEGER NOT NULL,   -- of its first byte there
    bytes             INTEGER NOT NULL,
    PRIMARY KEY (archive_file_id, sequence, archive_offset),
    FOREIGN KEY (archive_file_id, stored_file_id) REFERENCES part (archive_file_id, stored_file_id),
    CHECK ((chunks = 0) = (chunk_id IS NULL))
) STRICT, WITHOUT ROWID;

INSERT INTO span (archive_file_id, sequence, chunk_id, chunks, archive_offset, stored_file_id, file_offset, bytes)
    SELECT archive_file_id, sequence, chunk_id, chunks, archive_offset, archive_file_id, archive_offset, bytes
    FROM old_span ORDER BY archive_file_id, sequence;

-- What follows the chunks: the trailer, or all of an archive of the old system.
INSERT INTO span (archive_file_id, sequence, chunk_id, chunks, archive_offset, stored_file_id, file_offset, bytes)
    SELECT id, chunks, NULL, 0, rest, id, rest, size - rest
    FROM (SELECT id, size,
            coalesce((SELECT sequence + chunks FROM old_span WHERE archive_file_id = archive_file.id
                ORDER BY sequence DESC LIMIT 1), 0) AS chunks,
            coalesce((SELECT archive_offset + bytes FROM old_span WHERE archive_file_id = archive_file.id
                ORDER BY sequence DESC LIMIT 1), 0) AS rest
        FROM archive_file)
    WHERE size > rest;

CREATE INDEX span_of_chunk ON span (chunk_id) WHERE chunk_id IS NOT NULL;
CREATE INDEX span_of_stored_file ON span (stored_file_id, archive_file_id, file_offset);

DROP TABLE old_span;
DROP INDEX archive_file_of_inode;
ALTER TABLE archive_file DROP COLUMN device;
ALTER TABLE archive_file DROP COLUMN inode;
ALTER TABLE archive_file DROP COLUMN modified_ns;
ALTER TABLE archive_file DROP COLUMN verified_at_ms;
ALTER TABLE archive_file DROP COLUMN health;

-- The register of the CRC of `cksum` after the stored bytes, from 0, without their length and not inverted; null: it was
-- not computed, as they are in no segment.
ALTER TABLE chunk ADD COLUMN crc INTEGER;
ALTER TABLE archive_file ADD COLUMN crc INTEGER;

-- How the archives of a schedule are stored from the next run on.
ALTER TABLE schedule ADD COLUMN layout TEXT NOT NULL DEFAULT 'whole' CHECK (layout IN ('whole', 'segmented'));
-- Segmented: the file of the archive is an index, which lists the ranges.
ALTER TABLE archive ADD COLUMN layout TEXT NOT NULL DEFAULT 'whole' CHECK (layout IN ('whole', 'segmented'));
ALTER TABLE archive ADD COLUMN index_file_id INTEGER REFERENCES stored_file (id);

CREATE INDEX archive_of_index ON archive (index_file_id) WHERE index_file_id IS NOT NULL;

-- What is known about the bytes of an archive file: the worst of what is known about its parts, and the oldest time.
CREATE VIEW archive_file_health AS
    SELECT archive_file.id AS archive_file_id,
        (SELECT CASE max(CASE stored_file.health WHEN 'good' THEN 0 WHEN 'unproven' THEN 1 WHEN 'missing' THEN 2
                    ELSE CASE WHEN NOT EXISTS (SELECT 1 FROM damage WHERE damage.stored_file_id = stored_file.id)
                            OR EXISTS (SELECT 1 FROM damage CROSS JOIN span INDEXED BY span_of_stored_file
                                ON span.stored_file_id = damage.stored_file_id
                                    AND span.file_offset < damage.file_offset + damage.length
                                    AND span.file_offset + span.bytes > damage.file_offset
                                WHERE damage.stored_file_id = stored_file.id
                                    AND span.archive_file_id = archive_file.id)
                        THEN 3 WHEN stored_file.verified_at_ms IS NULL THEN 1 ELSE 0 END END)
                WHEN 0 THEN 'good' WHEN 1 THEN 'unproven' WHEN 2 THEN 'missing' ELSE 'damaged' END
            FROM part JOIN stored_file ON stored_file.id = part.stored_file_id
            WHERE part.archive_file_id = archive_file.id) AS health,
        (SELECT CASE WHEN count(*) = count(stored_file.verified_at_ms) THEN min(stored_file.verified_at_ms) END
            FROM part JOIN stored_file ON stored_file.id = part.stored_file_id
            WHERE part.archive_file_id = archive_file.id) AS verified_at_ms
    FROM archive_file;

-- What is known about an archive: about its archive file, and about its index if it has one.
CREATE VIEW archive_health AS
    SELECT archive.run_id,
        CASE WHEN index_file.health IN ('damaged', 'missing') THEN index_file.health
            WHEN index_file.health = 'unproven' AND archive_file_health.health = 'good' THEN 'unproven'
            ELSE archive_file_health.health END AS health,
        CASE WHEN index_file.id IS NULL THEN archive_file_health.verified_at_ms
            WHEN index_file.verified_at_ms IS NOT NULL
                THEN min(index_file.verified_at_ms, archive_file_health.verified_at_ms) END AS verified_at_ms
    FROM archive JOIN archive_file_health ON archive_file_health.archive_file_id = archive.archive_file_id
    LEFT JOIN stored_file AS index_file ON index_file.id = archive.index_file_id;
