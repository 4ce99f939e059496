-- What retention waits for, and what the service last did to keep archives, catalog and history in order.

-- The run after which retention would have removed over half of the good archives, and waited for the next good one.
ALTER TABLE schedule ADD COLUMN prune_held_run INTEGER;

CREATE TABLE upkeep (
    task              TEXT    PRIMARY KEY CHECK (task IN ('reverify', 'drill', 'copy', 'history', 'check')),
    done_at_ms        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 3;
