-- Commands around runs: what a user set for a schedule, what they printed, and what is to be undone after them.

PRAGMA user_version = 7;

-- A run ends `skipped` if its first command says so. SQLite has no ALTER TABLE for a CHECK, and to build `run` and the
-- tables that refer to it anew would take long with a long history; the rows stay as they are, as the new conditions
-- accept all that the old ones did. This is the way that SQLite's documentation of ALTER TABLE names for it.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, '''cancelled'', ''missed'')', '''cancelled'', ''missed'', ''skipped'')')
    WHERE type = 'table' AND name = 'run';
UPDATE sqlite_schema SET sql = replace(sql, '''interrupted'', ''recovered'')',
        '''interrupted'', ''recovered'', ''skipped'')')
    WHERE type = 'table' AND name = 'attempt';
PRAGMA writable_schema = RESET;

-- Who manages the entry, such as a settings file; null: commands do.
ALTER TABLE schedule ADD COLUMN managed_by TEXT;

-- Why the settings file that the service follows is not applied.
ALTER TABLE instance ADD COLUMN config_error TEXT;

-- Options of what surrounds the runs of a schedule; without a row, the defaults.
CREATE TABLE schedule_hooks (
    schedule_id       INTEGER PRIMARY KEY REFERENCES schedule (id),
    options           TEXT    NOT NULL    -- JSON
) STRICT;

-- Commands around the runs of a schedule. They are in no archive header, and `rescan` makes none.
CREATE TABLE schedule_command (
    schedule_id       INTEGER NOT NULL REFERENCES schedule (id),
    kind              TEXT    NOT NULL CHECK (kind IN ('before', 'after', 'on-success', 'on-failure', 'source')),
    command           TEXT    NOT NULL,
    approval          BLOB,               -- by the token beside the database; null or another one: the command is held
    PRIMARY KEY (schedule_id, kind)
) STRICT, WITHOUT ROWID;

-- Commands that a run executed, and the end of what they printed.
CREATE TABLE command_output (
    run_id            INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    sequence          INTEGER NOT NULL,
    attempt           INTEGER NOT NULL,
    kind              TEXT    NOT NULL CHECK (kind IN
                          ('before', 'after', 'on-success', 'on-failure', 'source', 'exec-before', 'exec-after')),
    container         TEXT,               -- in which it was executed
    started_at_ms     INTEGER NOT NULL,
    ended_at_ms       INTEGER NOT NULL,
    ending            TEXT    NOT NULL CHECK (ending IN ('exited', 'signal', 'time-limit', 'not-started', 'lost')),
    code              INTEGER,            -- exit code or number of the signal
    output            BLOB    NOT NULL,
    PRIMARY KEY (run_id, sequence)
) STRICT, WITHOUT ROWID;

-- What is to be undone: a row is committed before the act that it undoes. It outlives its run and its schedule.
CREATE TABLE duty (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id            INTEGER NOT NULL,
    attempt           INTEGER NOT NULL,
    schedule_name     TEXT    NOT NULL,
    kind              TEXT    NOT NULL CHECK (kind IN ('after', 'start', 'exec-after')),
    subject           TEXT    NOT NULL,   -- JSON
    shared_key        TEXT,               -- of what duties of several runs are about
    state             TEXT    NOT NULL CHECK (state IN ('planned', 'done', 'settled')),
    worker            TEXT,               -- who works on it; null: nobody
    planned_at_ms     INTEGER NOT NULL,
    not_before_ms     INTEGER NOT NULL,
    tries             INTEGER NOT NULL DEFAULT 0,
    error             TEXT
) STRICT;

CREATE INDEX duty_open ON duty (id) WHERE state <> 'settled';
CREATE INDEX duty_settled ON duty (planned_at_ms) WHERE state = 'settled';
CREATE INDEX duty_of_run ON duty (run_id);
