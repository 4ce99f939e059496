//! The values that the store takes and returns. They know no queries, so that files with queries need not import each
//! other for them.

mod archive;
mod base;
mod claim;
mod hooks;
mod moves;
mod run;
mod schedule;
mod stored_file;

pub use archive::{
    Archive, ArchiveAge, ArchiveState, CatalogEntry, FileSpace, FoundArchive, FoundTrailer, Health, LegacyArchive,
    MAX_AHEAD, PathOccurrence, PendingArchive, Sealed, SealedSegments, Space, sort_newest_first,
};
pub use base::{Base, BaseQuery, Origin};
pub use claim::{Claim, ClaimNow, Completed, EndError, EndResult, Intent, QueueNow, Requeue, Requeued, RunRequest};
pub use hooks::{CommandEnding, CommandOutput, Duty, DutyKind, DutyState, NewDuty, ScheduleHooks};
pub use moves::{CopiedRange, KeptSegment, Moved, StoredTrailer};
pub use run::{Attempt, HistoryFilter, Run, RunCounts, RunState, Trigger};
pub use schedule::{Due, EnqueueOutcome, Managed, Revived, ScheduleChanges, ScheduleRow, Watermark};
pub use stored_file::{
    ChunkDigest, FoundRange, SegmentIntent, SegmentRange, StoredBytes, StoredChunk, StoredFile, StoredPlace,
    StoredRange,
};
