//! Hands small files to the threads that write them, in batches of one folder each: a wake-up a file would cost more
//! than writing it, and two threads that create files in one folder wait for each other.

use std::sync::{Arc, Weak};
use std::thread::Scope;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::state::RestoreState;
use super::write_file::FileJob;
use crate::confined::{OpenFolder, Privileges};
use crate::error::{Error, Result};
use crate::member::{Member, MemberKind, MemberPath};

/// Files up to this many stored bytes are read into memory and written by other threads.
const MAX_SMALL_FILE_BYTES: u64 = 1 << 20;
/// A batch is handed over when it has this many files,
const MAX_BATCH_FILES: usize = 64;
/// or before it would have more bytes than this.
const MAX_BATCH_BYTES: usize = 1 << 18;
/// Batches that wait for each thread: about a folder, so that the next one keeps another thread busy.
const QUEUED_BATCHES: usize = 4;
/// From this size of the files of a batch on, writing their data takes longer than creating them: any thread takes it.
const LARGE_MEAN_BYTES: usize = 1 << 16;

/// A file with its data.
type SmallFile = (FileJob, Vec<u8>);

/// Small files of one folder.
type Batch = Vec<SmallFile>;

/// The queues of the threads that write small files, and the batch that is being filled.
pub(super) struct BatchQueue {
    state: Arc<RestoreState>,
    /// One for each thread.
    writers: Vec<Sender<Batch>>,
    batch: Batch,
    batch_bytes: usize,
    /// The thread that got the last batch, and the folder of that.
    last: Option<(usize, Weak<OpenFolder>)>,
}

impl BatchQueue {
    /// Starts `threads` threads. They end when the queue is dropped.
    ///
    /// Errors: the system starts no thread, as under a limit of processes.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        threads: usize,
        state: &Arc<RestoreState>,
        privileges: Privileges,
    ) -> Result<BatchQueue> {
        let mut writers = Vec::new();
        for _ in 0..threads.max(1) {
            let (sender, receiver) = bounded(QUEUED_BATCHES);
            let state = state.clone();
            let write = move || write_batches(&state, privileges, &receiver);
            std::thread::Builder::new()
                .name("restore".to_owned())
                .spawn_scoped(scope, write)
                .map_err(Error::no_thread)?;
            writers.push(sender);
        }
        Ok(BatchQueue { state: state.clone(), writers, batch: Vec::new(), batch_bytes: 0, last: None })
    }

    /// Returns whether a file is small enough for a batch.
    pub fn is_small(stored_bytes: u64) -> bool {
        stored_bytes <= MAX_SMALL_FILE_BYTES
    }

    /// Hands the batch over unless this member is a further file of its folder. To be called before a member is looked
    /// at: whoever waits for a file of the batch would wait for ever.
    pub fn prepare_for(&mut self, member: &Member) -> Result<()> {
        let Some((job, _)) = self.batch.first() else { return Ok(()) };
        let is_same_folder = folder_part(&job.entry.member.path) == folder_part(&member.path);
        let is_known = || self.batch.iter().any(|(job, _)| job.entry.member.path == member.path);
        if is_same_folder && member.kind == MemberKind::File && !is_known() {
            return Ok(());
        }
        self.hand_over()
    }

    /// Adds a file to the batch.
    pub fn push(&mut self, job: FileJob, data: Vec<u8>) -> Result<()> {
        if self.batch.len() >= MAX_BATCH_FILES || self.batch_bytes + data.len() > MAX_BATCH_BYTES {
            self.hand_over()?;
        }
        self.batch_bytes += data.len();
        self.batch.push((job, data));
        Ok(())
    }

    /// Hands the batch over to a thread: to the one that has the last batch of this folder, else to one that has least
    /// to do.
    pub fn hand_over(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let is_large = std::mem::take(&mut self.batch_bytes) / batch.len().max(1) >= LARGE_MEAN_BYTES;
        let Some((first, _)) = batch.first() else { return Ok(()) };
        // Held weakly: the folder is finished when its last file is.
        let folder = Arc::downgrade(&first.folder);
        let same = self.last.as_ref().filter(|(_, last)| !is_large && last.ptr_eq(&folder));
        let writer = same.map_or_else(|| self.idlest_writer(), |(writer, _)| *writer);
        self.state.completed.begin(batch.iter().map(|(job, _)| &job.entry.member.path));
        self.writers[writer].send(batch).map_err(|_| Error::failed("the threads that write files have ended"))?;
        self.last = Some((writer, folder));
        Ok(())
    }

    /// Returns the first thread after the last one used whose queue is shortest.
    fn idlest_writer(&self) -> usize {
        let next = self.last.as_ref().map_or(0, |(writer, _)| writer + 1);
        let writers = (0..self.writers.len()).map(|at| (next + at) % self.writers.len());
        writers.min_by_key(|&writer| self.writers[writer].len()).unwrap_or(0)
    }
}

fn folder_part(path: &MemberPath) -> &[u8] {
    let bytes = path.as_bytes();
    &bytes[..bytes.len() - path.file_name().len()]
}

fn write_batches(state: &RestoreState, privileges: Privileges, batches: &Receiver<Batch>) {
    for batch in batches {
        let mut written = Vec::with_capacity(batch.len());
        for (job, data) in batch {
            if state.has_fatal() {
                state.abort(&job.entry.member.path, |_| {});
                continue;
            }
            match job.write_whole(privileges, data) {
                Ok(loss) => written.push((job, loss)),
                Err(error) => job.record(state, Err(error)),
            }
        }
        state.complete_all(written.iter().map(|(job, _)| &job.entry.member.path), |report| {
            written.iter().for_each(|(job, loss)| job.count(report, *loss));
        });
    }
}
