-- Indexes for what read all runs or all physical files.

PRAGMA user_version = 4;

-- Deleting a run searches for the runs that it supersedes.
CREATE INDEX run_superseded_by ON run (superseded_by) WHERE superseded_by IS NOT NULL;
-- Pruning the history searches for runs that ended long ago.
CREATE INDEX run_finished ON run (finished_at_ms) WHERE finished_at_ms IS NOT NULL;
-- `history --since`.
CREATE INDEX run_queued ON run (queued_at_ms);
-- A rescan searches for hard links of one file.
CREATE INDEX archive_file_of_inode ON archive_file (inode, device);
