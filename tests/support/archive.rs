//! Archives written by the pipeline, with what it returned.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use backup_manager::archive::check;
use backup_manager::archive::padding::Padding;
use backup_manager::backup::pipeline::{self, PipelineOptions, WrittenArchive};
use backup_manager::cancel::CancelToken;
use backup_manager::chunk::CatalogChunk;
use backup_manager::clock::SystemClock;
use backup_manager::durable::PendingFile;
use backup_manager::error::Result;
use backup_manager::member::MemberPath;
use backup_manager::progress::{Observer, Problem, Progress};
use backup_manager::schedule::{Compression, Layout};

/// An archive and what the pipeline returned for it.
pub struct TestArchive {
    pub path: PathBuf,
    pub written: WrittenArchive,
    /// The chunks and members, as passed to the catalog.
    pub records: Vec<CatalogChunk>,
}

/// An observer that does nothing.
pub struct Silent;

impl Observer for Silent {
    fn progress(&self, _: &Progress) {}
    fn problem(&self, _: &Problem) {}
    fn note(&self, _: &str) {}
}

/// Writes an archive of `source` in `folder`, replacing one of the same format.
pub fn make(source: &Path, folder: &Path, compression: Compression) -> TestArchive {
    make_with(source, folder, compression, |_| {})
}

/// The same with a job that is not the usual one.
pub fn make_with<'a>(
    source: &'a Path,
    folder: &Path,
    compression: Compression,
    change: impl FnOnce(&mut PipelineOptions<'a>),
) -> TestArchive {
    try_make(source, folder, compression, change, &mut |_| Ok(())).unwrap()
}

/// The same with a catalog that may fail.
pub fn try_make<'a>(
    source: &'a Path,
    folder: &Path,
    compression: Compression,
    change: impl FnOnce(&mut PipelineOptions<'a>),
    catalog: &mut dyn FnMut(&[CatalogChunk]) -> Result<()>,
) -> Result<TestArchive> {
    let path = folder.join(format!("archive.{}", compression.extension()));
    let root_name = MemberPath::parse(source.file_name().unwrap().as_encoded_bytes()).unwrap();
    let root_name = Box::leak(Box::new(root_name)); // Leaked: a test may replace it with its own.
    let clock = Box::leak(Box::new(SystemClock::new()));
    let excludes = Box::leak(Box::default());
    let cancel = Box::leak(Box::default());
    let mut job = PipelineOptions {
        source,
        root_name,
        excludes,
        patterns: &[],
        own_paths: &[],
        compression,
        padding: Padding::None,
        layout: Layout::Whole,
        threads: 3,
        comment: "{\"schedule\":\"test\"}",
        base: None,
        run: 17,
        clock,
        observer: &Silent,
        cancel,
    };
    change(&mut job);
    let mut file = PendingFile::create(&path, 0o400)?;
    let mut records = Vec::new();
    let written = pipeline::write(&job, &mut file, &mut |batch| {
        records.extend_from_slice(batch);
        catalog(batch)
    })?;
    let sealed = file.seal()?;
    assert_eq!(sealed.size(), written.size);
    sealed.persist(&path, true)?;
    records.sort_by_key(|record| record.chunk.sequence);
    let sequences: Vec<_> = records.iter().map(|record| record.chunk.sequence).collect();
    assert_eq!(sequences, (0..written.chunks).collect::<Vec<_>>(), "every chunk is reported once");
    Ok(TestArchive { path, written, records })
}

impl TestArchive {
    /// Reads the archive back from disk and compares it with the records.
    pub fn verify(&self) -> Result<()> {
        let mut expected = self.records.iter().map(|record| Ok(record.chunk));
        let (digest, size) = (self.written.digest, self.written.size);
        check::check_file(&self.path, &mut expected, &digest, size, 2, &CancelToken::new())
    }
}

/// Runs a tool that must succeed and print nothing on stderr.
pub fn run_tool(command: &mut Command) -> Output {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && errors.is_empty(), "{command:?}: {}\n{errors}", out.status);
    out
}

/// Returns whether a tool is installed. If not, prints what is skipped.
pub fn has_tool(tool: &str) -> bool {
    let is_installed = Command::new(tool).arg("--version").output().is_ok_and(|out| out.status.success());
    if !is_installed {
        eprintln!("skipped: {tool} is not installed");
    }
    is_installed
}

/// Returns whether the long form of the tests is requested.
pub fn is_long_run() -> bool {
    std::env::var_os("BACKUP_MANAGER_LONG_TESTS").is_some_and(|value| value != "0")
}
