-- Archives share chunks and members. A member row knows neither a chunk nor an offset: it is inserted once per change.
-- What refers to a chunk or a member names a run of consecutive ids; those of a new row are never used twice.

PRAGMA user_version = 5;

ALTER TABLE chunk RENAME TO old_chunk;
ALTER TABLE member RENAME TO old_member;
DROP TRIGGER member_added;
DROP TRIGGER member_gone;
DROP INDEX member_of_path;

-- An independently decodable part of an archive file. Its identity is the row, not the digest.
CREATE TABLE chunk (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    stored_length     INTEGER NOT NULL,
    stored_digest     BLOB    NOT NULL,
    content_length    INTEGER NOT NULL,
    content_digest    BLOB    NOT NULL,
    read_started_at_ms INTEGER NOT NULL   -- before its members were read last
) STRICT;

INSERT INTO chunk (id, stored_length, stored_digest, content_length, content_digest, read_started_at_ms)
    SELECT id, stored_length, stored_digest, content_length, content_digest, read_started_at_ms FROM old_chunk;

-- Chunks with consecutive ids that lie side by side in an archive file.
CREATE TABLE span (
    archive_file_id   INTEGER NOT NULL REFERENCES archive_file (id),
    sequence          INTEGER NOT NULL,   -- of its first chunk
    chunk_id          INTEGER NOT NULL,   -- its first chunk
    chunks            INTEGER NOT NULL CHECK (chunks BETWEEN 1 AND 256),
    archive_offset    INTEGER NOT NULL,   -- of its first byte
    bytes             INTEGER NOT NULL,
    PRIMARY KEY (archive_file_id, sequence)
) STRICT, WITHOUT ROWID;

INSERT INTO span (archive_file_id, sequence, chunk_id, chunks, archive_offset, bytes)
    SELECT archive_file_id, sequence, chunk_id, 1, stored_offset, stored_length
    FROM archive_chunk CROSS JOIN old_chunk ON old_chunk.id = chunk_id ORDER BY archive_file_id, sequence;

CREATE INDEX span_of_chunk ON span (chunk_id);

-- What the catalog stores of one entry of a tar file.
CREATE TABLE member (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    path              BLOB    NOT NULL,
    kind              INTEGER NOT NULL CHECK (kind BETWEEN 0 AND 6),
    size              INTEGER NOT NULL,
    mode              INTEGER NOT NULL,
    uid               INTEGER NOT NULL,
    gid               INTEGER NOT NULL,
    user_name         BLOB    NOT NULL,
    group_name        BLOB    NOT NULL,
    modified_s        INTEGER NOT NULL,
    modified_ns       INTEGER NOT NULL,
    changed_s         INTEGER NOT NULL,
    changed_ns        INTEGER NOT NULL,
    device            INTEGER NOT NULL,
    inode             INTEGER NOT NULL,
    device_major      INTEGER,
    device_minor      INTEGER,
    link_target       BLOB,
    xattr_digest      BLOB,
    content_digest    BLOB,
    entry_bytes       INTEGER NOT NULL,   -- in the chunk in which it starts
    is_reusable       INTEGER NOT NULL CHECK (is_reusable IN (0, 1))
) STRICT;

-- Before the rows: they come in the order of paths, and sorting them all would need as much room again.
CREATE INDEX member_of_path ON member (path);

INSERT INTO member (path, kind, size, mode, uid, gid, user_name, group_name, modified_s, modified_ns, changed_s,
        changed_ns, device, inode, device_major, device_minor, link_target, xattr_digest, content_digest, entry_bytes,
        is_reusable)
    SELECT path,
        CASE kind WHEN 'file' THEN 0 WHEN 'folder' THEN 1 WHEN 'symlink' THEN 2 WHEN 'hardlink' THEN 3
            WHEN 'fifo' THEN 4 WHEN 'char' THEN 5 ELSE 6 END,
        size, mode, uid, gid, user_name, group_name, modified_s, modified_ns, changed_s, changed_ns, device, inode,
        device_major, device_minor, link_target, xattr_digest, content_digest,
        coalesce((SELECT next.content_offset FROM old_member AS next
                WHERE next.chunk_id = old_member.chunk_id AND next.ordinal = old_member.ordinal + 1),
            (SELECT content_length FROM old_chunk WHERE old_chunk.id = old_member.chunk_id)) - content_offset,
        0
    FROM old_member ORDER BY chunk_id, ordinal;

-- The members whose headers start in a chunk: runs of consecutive ids.
CREATE TABLE chunk_members (
    chunk_id          INTEGER NOT NULL REFERENCES chunk (id),
    ordinal           INTEGER NOT NULL,   -- of its first member
    member_id         INTEGER NOT NULL,   -- its first member
    members           INTEGER NOT NULL CHECK (members BETWEEN 1 AND 256),
    PRIMARY KEY (chunk_id, ordinal)
) STRICT, WITHOUT ROWID;

-- The rows above were inserted in this order, from the id 1.
INSERT INTO chunk_members (chunk_id, ordinal, member_id, members)
    SELECT chunk_id, ordinal, id,
        (SELECT count(*) FROM old_member AS other WHERE other.chunk_id = first.chunk_id
            AND other.ordinal BETWEEN first.ordinal AND first.ordinal + 255)
    FROM (SELECT chunk_id, ordinal, row_number() OVER (ORDER BY chunk_id, ordinal) AS id FROM old_member) AS first
    WHERE ordinal % 256 = 0;

CREATE INDEX chunk_members_of_member ON chunk_members (member_id);

DROP TABLE path;
DROP TABLE old_member;
DROP TABLE archive_chunk;
DROP TABLE old_chunk;

-- The archive of the same schedule whose chunks a run may refer to. While it runs, that archive is not deleted.
ALTER TABLE run ADD COLUMN base_run_id INTEGER;
-- Why members were read although there was a base: JSON, counts by reason.
ALTER TABLE run ADD COLUMN read_reasons TEXT;

CREATE INDEX run_base ON run (base_run_id) WHERE state = 'running';

-- A file changed without its times: every run reads all files until `accept`.
ALTER TABLE schedule ADD COLUMN reuse_off_at_ms INTEGER;
-- By which facts unchanged files are recognised: JSON.
ALTER TABLE schedule ADD COLUMN reuse TEXT NOT NULL DEFAULT '{}';

-- What must be the same for an archive to be the base of a run; null: it never is.
ALTER TABLE archive ADD COLUMN root_name BLOB;
ALTER TABLE archive ADD COLUMN writer_version INTEGER;
ALTER TABLE archive ADD COLUMN archive_mode INTEGER;
ALTER TABLE archive ADD COLUMN effective_uid INTEGER;
ALTER TABLE archive ADD COLUMN capabilities TEXT;
-- Of the machine when it was made.
ALTER TABLE archive ADD COLUMN boot_id TEXT;

-- When its bytes changed last, in nanoseconds, as sealed.
ALTER TABLE archive_file ADD COLUMN modified_ns INTEGER;
