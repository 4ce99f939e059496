//! The source of a schedule that is a command: what it prints is written into a file beside the archive, which is then
//! archived as the one file of the source.

use std::io::Write;
use std::path::Path;

use super::surrounded::Surrounded;
use super::{Failure, Runner};
use crate::archive_folder;
use crate::durable::PendingFile;
use crate::error::{Error, ErrorKind, Result};
use crate::hooks::{Ended, Outcome, Sink};
use crate::member::MemberPath;
use crate::schedule::{CommandKind, Hooks};
use crate::source::SourceRoot;
use crate::store::Intent;
use crate::words::bytes;

/// Bytes that stay free: the database may lie on the same file system.
const RESERVE: u64 = 16 << 20;
/// After how many bytes the free space is looked at.
const CHECK_EVERY: u64 = 4 << 20;

/// What a command has printed, as a file that is removed when this is dropped.
pub(super) struct Spool {
    file: PendingFile,
    size: u64,
}

impl Spool {
    /// Returns the number of bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the file as the source of an archive, in which it is called `name`.
    pub(super) fn as_source(&self, name: &[u8]) -> Result<SourceRoot> {
        Ok(SourceRoot { path: self.file.temp_path().to_owned(), name: MemberPath::parse(name)?, patterns: Vec::new() })
    }
}

impl Runner {
    /// Executes the command of the source, and writes what it prints into a file beside the archive.
    ///
    /// Fails, and keeps nothing, if the command fails, prints nothing although it must not, or leaves a process behind
    /// that may still print, or if the space runs out.
    pub(super) fn spool_source(
        &self,
        surrounded: &Surrounded<'_>,
        intent: &Intent,
        hooks: &Hooks,
    ) -> std::result::Result<Spool, Failure> {
        let monitor = surrounded.monitor;
        monitor.phase("source");
        let path = self.home.backups().join(intent.another_temporary_name());
        let mut file = PendingFile::create_own(&path, 0o600).map_err(Failure::retryable)?;
        let source = self.home.source_path(&surrounded.row.schedule.source);
        let facts = surrounded.starting_facts(&source);
        let (mut size, mut unchecked) = (0, CHECK_EVERY);
        let mut write = |piece: &[u8]| {
            unchecked += piece.len() as u64;
            if unchecked >= CHECK_EVERY {
                unchecked = 0;
                check_space(&path)?;
            }
            size += piece.len() as u64;
            file.file().write_all(piece).map_err(Error::io("write", &path))
        };
        let printed = match &hooks.options.source_container {
            Some(container) => {
                self.print_in_container(container, hooks, &facts, surrounded.context.cancel, &mut write).map(|()| None)
            }
            None => {
                self.run_command(CommandKind::Source, hooks, &facts, Sink::To(&mut write), &|| monitor.is_cancelled())
            }
        };
        let outcome = printed.map_err(|error| match error.kind() {
            ErrorKind::DiskFull | ErrorKind::Interrupted => Failure::retryable(error),
            _ => Failure::permanent(error),
        })?;
        if let Some(outcome) = outcome {
            check_outcome(&outcome)?;
        }
        check_size(size, hooks.options.allow_empty)?;
        Ok(Spool { file, size })
    }
}

fn check_space(path: &Path) -> Result<()> {
    let free = archive_folder::free_bytes(path)?;
    if free >= RESERVE {
        return Ok(());
    }
    let message = format!("only {} are free where {} is written", bytes(free), path.display());
    Err(Error::new(ErrorKind::DiskFull, message)
        .hint("make room; twice the size of the output is needed, uncompressed"))
}

fn check_outcome(outcome: &Outcome) -> std::result::Result<(), Failure> {
    let what = CommandKind::Source.option();
    if let Some(problem) = outcome.problem(what) {
        return Err(match outcome.ended {
            Ended::Cancelled => Failure::retryable(Error::new(ErrorKind::Interrupted, problem)),
            _ => Failure::permanent(Error::failed(problem)),
        });
    }
    if !outcome.is_output_complete {
        let message = format!("{what} has ended, and a process that it left may still print: nothing is kept");
        return Err(Failure::permanent(Error::failed(message).hint("have it wait for its jobs in the background")));
    }
    Ok(())
}

fn check_size(size: u64, allow_empty: bool) -> std::result::Result<(), Failure> {
    if size == 0 && !allow_empty {
        let error = Error::failed(format!("{} has printed nothing", CommandKind::Source.option()));
        return Err(Failure::permanent(error.hint("correct it, or allow that with --allow-empty")));
    }
    Ok(())
}
