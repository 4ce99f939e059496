-- The whole store. States are words with a CHECK, times are UTC milliseconds since 1970 (`_at_ms`), paths are bytes.
-- A released migration never changes; see CONTRIBUTING.md for how to add the next one.

PRAGMA application_id = 0x424B4D47;
PRAGMA user_version = 1;

-- One row: who this database is.
CREATE TABLE instance (
    id                INTEGER PRIMARY KEY CHECK (id = 1),
    uuid              TEXT    NOT NULL,
    service_zone      TEXT,              -- zone that the last service used for schedules without one
    imported_text     BLOB,              -- what `serve --import` applied last
    imported_at_ms    INTEGER,
    import_error      TEXT               -- why the text file as it stands now is not applied
) STRICT;

INSERT INTO instance (id, uuid) VALUES (1, lower(hex(randomblob(16))));

CREATE TABLE setting (
    name              TEXT    PRIMARY KEY,
    value             TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- Processes that claim runs. Alive is who holds the lock of the worker file, not who has a row here.
CREATE TABLE worker (
    uuid              TEXT    PRIMARY KEY,
    role              TEXT    NOT NULL CHECK (role IN ('service', 'command')),
    pid               INTEGER NOT NULL,
    host              TEXT    NOT NULL,
    started_at_ms     INTEGER NOT NULL,
    stop_requested    TEXT    CHECK (stop_requested IN ('drain', 'now'))
) STRICT, WITHOUT ROWID;

CREATE TABLE schedule (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    name              TEXT    NOT NULL UNIQUE,
    position          INTEGER NOT NULL,  -- order in `list`
    source            BLOB    NOT NULL,  -- as written
    cadence           TEXT,              -- null after a rescan
    zone              TEXT,              -- null: the service's
    compression       TEXT    NOT NULL,
    excludes          TEXT    NOT NULL,  -- JSON
    retention         TEXT    NOT NULL,  -- JSON
    catch_up          TEXT    NOT NULL CHECK (catch_up IN ('latest', 'skip')),
    verify            INTEGER NOT NULL CHECK (verify IN (0, 1)),
    enabled           INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    handled_until_ms  INTEGER NOT NULL,  -- every occurrence up to here is a run or counted in one
    next_due_at_ms    INTEGER,
    accepted_at_ms    INTEGER,           -- the next run may find the source emptied or shrunken
    created_at_ms     INTEGER NOT NULL,
    edited_at_ms      INTEGER NOT NULL,
    deleted_at_ms     INTEGER
) STRICT;

CREATE INDEX schedule_due ON schedule (next_due_at_ms)
    WHERE enabled = 1 AND deleted_at_ms IS NULL AND next_due_at_ms IS NOT NULL;
CREATE INDEX schedule_position ON schedule (position) WHERE deleted_at_ms IS NULL;

CREATE TABLE run (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    schedule_id       INTEGER NOT NULL REFERENCES schedule (id),
    trigger           TEXT    NOT NULL CHECK (trigger IN ('schedule', 'manual', 'rescan')),
    scheduled_for_ms  INTEGER,
    coalesced         INTEGER NOT NULL DEFAULT 0 CHECK (coalesced >= 0), -- further occurrences it stands for
    state             TEXT    NOT NULL CHECK (state IN
                          ('queued', 'running', 'succeeded', 'incomplete', 'failed', 'cancelled', 'missed')),
    attempt           INTEGER NOT NULL DEFAULT 0,  -- only rises: the fence, and part of temporary names
    tries             INTEGER NOT NULL DEFAULT 0,  -- the budget used up
    worker            TEXT,
    verify            INTEGER NOT NULL DEFAULT 1 CHECK (verify IN (0, 1)),
    reread            INTEGER NOT NULL DEFAULT 0 CHECK (reread IN (0, 1)),
    not_before_ms     INTEGER NOT NULL,
    queued_at_ms      INTEGER NOT NULL,
    started_at_ms     INTEGER,
    finished_at_ms    INTEGER,
    cancel_requested_at_ms INTEGER,
    members           INTEGER NOT NULL DEFAULT 0,
    files             INTEGER NOT NULL DEFAULT 0,
    content_bytes     INTEGER NOT NULL DEFAULT 0,
    archive_bytes     INTEGER NOT NULL DEFAULT 0,
    problems          INTEGER NOT NULL DEFAULT 0,
    losses            INTEGER NOT NULL DEFAULT 0,
    notes             TEXT,
    acknowledged_at_ms INTEGER,          -- its problems are known
    superseded_by     INTEGER REFERENCES run (id),
    error             TEXT,
    CHECK ((trigger = 'schedule') = (scheduled_for_ms IS NOT NULL)),
    CHECK ((state = 'running') <= (worker IS NOT NULL)),
    CHECK ((state IN ('queued', 'running')) = (finished_at_ms IS NULL))
) STRICT;

CREATE UNIQUE INDEX run_occurrence ON run (schedule_id, scheduled_for_ms) WHERE trigger = 'schedule';
CREATE UNIQUE INDEX run_one_running ON run (schedule_id) WHERE state = 'running';
CREATE UNIQUE INDEX run_one_queued ON run (schedule_id) WHERE state = 'queued';
CREATE INDEX run_claimable ON run (not_before_ms, id) WHERE state = 'queued';
CREATE INDEX run_of_schedule ON run (schedule_id, id);

CREATE TABLE attempt (
    run_id            INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    attempt           INTEGER NOT NULL,
    worker            TEXT    NOT NULL,
    pid               INTEGER NOT NULL,
    started_at_ms     INTEGER NOT NULL,
    ended_at_ms       INTEGER,
    outcome           TEXT    NOT NULL CHECK (outcome IN
                          ('running', 'succeeded', 'incomplete', 'failed', 'cancelled', 'interrupted', 'recovered')),
    error             TEXT,
    PRIMARY KEY (run_id, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE run_problem (
    run_id            INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    sequence          INTEGER NOT NULL,
    path              BLOB    NOT NULL,
    kind              TEXT    NOT NULL,
    reason            TEXT    NOT NULL,
    PRIMARY KEY (run_id, sequence)
) STRICT, WITHOUT ROWID;

-- One physical file. Archives that are hard links of each other share it.
CREATE TABLE archive_file (
    id                INTEGER PRIMARY KEY,
    device            INTEGER,
    inode             INTEGER,
    size              INTEGER,
    digest            BLOB,
    codec             TEXT    NOT NULL CHECK (codec IN ('none', 'gzip', 'zstd')),
    level             INTEGER NOT NULL,
    padded            INTEGER NOT NULL DEFAULT 0 CHECK (padded IN (0, 1)),
    verified_at_ms    INTEGER,
    health            TEXT    NOT NULL CHECK (health IN ('unproven', 'good', 'damaged', 'missing'))
) STRICT;

-- What a run made. Visible is only what is complete.
CREATE TABLE archive (
    run_id            INTEGER PRIMARY KEY REFERENCES run (id),
    schedule_id       INTEGER NOT NULL REFERENCES schedule (id),
    archive_file_id   INTEGER NOT NULL REFERENCES archive_file (id),
    state             TEXT    NOT NULL CHECK (state IN ('writing', 'sealed', 'complete', 'deleting')),
    file_name         TEXT    NOT NULL UNIQUE,  -- below the archive folder: docs/docs-20261123T023000Z-17.tar
    temporary_name    TEXT,                     -- in the same folder, until the file is in place
    suspect           INTEGER NOT NULL DEFAULT 0 CHECK (suspect IN (0, 1)),
    acknowledged      INTEGER NOT NULL DEFAULT 0 CHECK (acknowledged IN (0, 1)),
    pinned            INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1)),
    source_root       BLOB    NOT NULL,         -- resolved
    scan_started_at_ms INTEGER NOT NULL,
    created_at_ms     INTEGER NOT NULL,         -- the time in its name
    incomplete        INTEGER NOT NULL DEFAULT 0 CHECK (incomplete IN (0, 1)),
    members           INTEGER NOT NULL DEFAULT 0,
    files             INTEGER NOT NULL DEFAULT 0,
    content_bytes     INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX archive_of_schedule ON archive (schedule_id, run_id);
CREATE INDEX archive_of_file ON archive (archive_file_id);
CREATE INDEX archive_unfinished ON archive (state) WHERE state <> 'complete';

-- An independently decodable span. Its identity is the row, not the digest.
CREATE TABLE chunk (
    id                INTEGER PRIMARY KEY,
    stored_length     INTEGER NOT NULL,
    stored_digest     BLOB    NOT NULL,
    content_length    INTEGER NOT NULL,
    content_digest    BLOB    NOT NULL,
    read_started_at_ms INTEGER NOT NULL,
    proved_at_ms      INTEGER
) STRICT;

CREATE TABLE archive_chunk (
    archive_file_id   INTEGER NOT NULL REFERENCES archive_file (id),
    sequence          INTEGER NOT NULL,
    chunk_id          INTEGER NOT NULL REFERENCES chunk (id),
    stored_offset     INTEGER NOT NULL,
    PRIMARY KEY (archive_file_id, sequence)
) STRICT, WITHOUT ROWID;

CREATE INDEX archive_chunk_of_chunk ON archive_chunk (chunk_id);

-- Written once a chunk: archives that share the chunk share its members.
CREATE TABLE member (
    chunk_id          INTEGER NOT NULL REFERENCES chunk (id) ON DELETE CASCADE,
    ordinal           INTEGER NOT NULL,
    path              BLOB    NOT NULL,
    kind              TEXT    NOT NULL CHECK (kind IN
                          ('file', 'folder', 'symlink', 'hardlink', 'fifo', 'char', 'block')),
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
    content_offset    INTEGER NOT NULL,   -- of the first header block, in the chunk's content
    changed_while_read INTEGER NOT NULL CHECK (changed_while_read IN (0, 1)),
    PRIMARY KEY (chunk_id, ordinal)
) STRICT, WITHOUT ROWID;

CREATE TABLE drill (
    id                INTEGER PRIMARY KEY,
    schedule_id       INTEGER NOT NULL REFERENCES schedule (id),
    run_id            INTEGER NOT NULL,
    started_at_ms     INTEGER NOT NULL,
    finished_at_ms    INTEGER,
    outcome           TEXT    NOT NULL CHECK (outcome IN ('running', 'passed', 'failed')),
    files             INTEGER NOT NULL DEFAULT 0,
    content_bytes     INTEGER NOT NULL DEFAULT 0,
    error             TEXT
) STRICT;

CREATE INDEX drill_of_schedule ON drill (schedule_id, id);
