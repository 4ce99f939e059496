//! The two log files: one for commands, one for the service.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono_tz::Tz;
use log::{Level, LevelFilter};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::render;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::home::{self, Home};
use crate::owner;

/// A log file is rotated when it is longer than this, in bytes.
const MAX_LOG_BYTES: u64 = 5 * 1024 * 1024;
/// Rotated files that are kept.
const KEPT_FILES: u32 = 9;

/// Which log a process writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// `backup_manager.log`.
    Manager,
    /// `backup_service.log`, and stderr if `stderr`.
    Service {
        /// Whether lines are also written to stderr.
        stderr: bool,
    },
}

/// Starts logging.
///
/// Errors: `Failed` if the log folder or file cannot be created or written.
pub fn start(log: Log, home: &Home, zone: Tz, clock: Arc<dyn Clock>, verbose: bool) -> Result<()> {
    let stem = match log {
        Log::Manager => "backup_manager",
        Log::Service { .. } => "backup_service",
    };
    owner::create_folder(home.logs(), home.folder_mode())
        .map_err(|e| unwritable(home.logs(), Error::io("make", home.logs())(e)))?;
    let file = LogFile::open(home.logs(), stem, home.folder_mode(), home.file_mode())?;
    let mut dispatch = fern::Dispatch::new()
        .level(if verbose { LevelFilter::Debug } else { LevelFilter::Info })
        .format(move |out, message, record| {
            let level = match record.level() {
                Level::Error => "Error",
                Level::Warn => "Warning",
                _ => "Info",
            };
            let text = message.to_string().replace('\n', " ");
            out.finish(format_args!("{} {level} {}", clock.now().rfc3339(&zone), render::escape_control(&text)));
        })
        .chain(Box::new(IgnoreErrors(file)) as Box<dyn Write + Send>);
    if log == (Log::Service { stderr: true }) {
        dispatch = dispatch.chain(Box::new(IgnoreErrors(io::stderr())) as Box<dyn Write + Send>);
    }
    dispatch.apply().map_err(|e| Error::failed("cannot start logging").because(e))
}

/// A log file that several processes append to and that any of them rotates when it is long.
struct LogFile {
    folder: PathBuf,
    stem: &'static str,
    folder_mode: u32,
    mode: u32,
    file: File,
}

impl LogFile {
    fn open(folder: &Path, stem: &'static str, folder_mode: u32, mode: u32) -> Result<LogFile> {
        let path = folder.join(format!("{stem}.log"));
        let file = append(&path, mode).map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => Error::failed(format!("the log {} is a symbolic link", path.display()))
                .because(io::Error::other("root follows no link in a folder of another user"))
                .hint(format!("remove the link, or run `{}`", home::as_owner(owner::database_uid().unwrap_or(0)))),
            _ => unwritable(folder, Error::io("write", &path)(e)),
        })?;
        Ok(LogFile { folder: folder.to_owned(), stem, folder_mode, mode, file })
    }

    fn numbered(&self, number: u32) -> PathBuf {
        match number {
            0 => self.folder.join(format!("{}.log", self.stem)),
            n => self.folder.join(format!("{}.{n}.log", self.stem)),
        }
    }

    /// Rotates the file if it is long, unless another process did; then appends to the file that now has its name.
    fn rotate_if_long(&mut self) -> io::Result<()> {
        let path = self.numbered(0);
        let is_ours = |file: &File| -> io::Result<bool> {
            let ours = file.metadata()?;
            Ok(fs::metadata(&path).is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())))
        };
        if self.file.metadata()?.len() >= MAX_LOG_BYTES {
            let lock = File::open(&self.folder)?;
            flock(&lock, FlockOperation::LockExclusive)?;
            if is_ours(&self.file)? {
                for number in (0..KEPT_FILES).rev() {
                    match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        if !is_ours(&self.file)? {
            owner::create_folder(&self.folder, self.folder_mode)?;
            self.file = append(&path, self.mode)?;
        }
        Ok(())
    }
}

/// A writer whose errors lose lines, not the process: fern panics if it can write neither to a log nor to stderr, as
/// when both are on a disk that is full. Lines that cannot be written are written to stderr.
struct IgnoreErrors<W>(W);

impl<W: Write> Write for IgnoreErrors<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.write_all(line).is_err() {
            let _ = io::stderr().write_all(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

fn append(path: &Path, mode: u32) -> io::Result<File> {
    owner::open_or_create(path, OFlags::WRONLY | OFlags::APPEND, mode)
}

fn unwritable(folder: &Path, cause: Error) -> Error {
    home::unwritable("the log folder", folder, "--logs or BACKUP_LOGS", cause)
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A log that cannot be rotated grows: better than losing lines.
        let _ = self.rotate_if_long();
        self.file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_writers_follow_each_others_rotation_and_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = LogFile::open(dir.path(), "x", 0o700, 0o600).unwrap();
        let mut two = LogFile::open(dir.path(), "x", 0o700, 0o600).unwrap();
        one.write_all(&vec![b'a'; MAX_LOG_BYTES as usize]).unwrap();
        two.write_all(b"two\n").unwrap();
        one.write_all(b"one\n").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("x.log")).unwrap(), "two\none\n");
        assert_eq!(fs::metadata(dir.path().join("x.1.log")).unwrap().len(), MAX_LOG_BYTES);
    }

    #[test]
    fn a_log_folder_that_is_removed_is_created_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("logs");
        fs::create_dir(&folder).unwrap();
        let mut log = LogFile::open(&folder, "x", 0o700, 0o600).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        log.write_all(b"line\n").unwrap();
        assert_eq!(fs::read_to_string(folder.join("x.log")).unwrap(), "line\n");
    }
}
