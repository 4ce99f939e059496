//! Memory is bounded whatever the source: many files, large ones, holes, and a catalog slower than all the rest.
//!
//! `BACKUP_MANAGER_LONG_TESTS=1` adds a million files and a sparse file of 20 GiB. This is the only test of its file,
//! because the peak is that of the process.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use backup_manager::archive::padding::Padding;
use backup_manager::archive::segment_writer::SegmentFiles;
use backup_manager::backup::pipeline::{self, PipelineOptions, WrittenArchive};
use backup_manager::cancel::CancelToken;
use backup_manager::chunk::CatalogChunk;
use backup_manager::clock::{Clock, SystemClock};
use backup_manager::durable::PendingFile;
use backup_manager::member::MemberPath;
use backup_manager::schedule::{Compression, Excludes, Layout};

use support::archive::{Silent, is_long_run};

/// Compression and layout.
type Format = (Compression, Layout);

/// Writes an archive with a catalog that stops for a while, and removes it.
fn write(source: &Path, scratch: &Path, (compression, layout): Format, pause: Duration) -> WrittenArchive {
    let clock = SystemClock::new();
    let job = PipelineOptions {
        source,
        root_name: &MemberPath::parse(b"source").unwrap(),
        excludes: &Excludes::default(),
        patterns: &[],
        own_paths: &[],
        compression,
        padding: Padding::None,
        layout,
        threads: 2,
        comment: "{}",
        base: None,
        run: 1,
        clock: &clock,
        observer: &Silent,
        cancel: &CancelToken::new(),
    };
    let path = scratch.join("archive");
    let mut calls = 0;
    let catalog = &mut |_: &[CatalogChunk]| {
        calls += 1;
        if calls == 2 {
            wait_while_memory_grows(&clock, pause);
        }
        Ok(())
    };
    let written = match layout {
        Layout::Whole => pipeline::write(&job, &mut PendingFile::create(&path, 0o400).unwrap(), catalog),
        Layout::Segmented => {
            let create = &mut || Ok((1, PendingFile::create(&path, 0o400)?));
            let seal = &mut |_, segment: PendingFile| segment.seal().map(drop);
            pipeline::write_segments(&job, &path, SegmentFiles { create, seal }, catalog)
        }
    };
    written.unwrap()
}

/// Blocks the catalog until the other threads use no more memory.
fn wait_while_memory_grows(clock: &SystemClock, pause: Duration) {
    let (mut peak, mut grown_at) = (peak_mib(), clock.monotonic());
    while clock.monotonic() - grown_at < pause {
        std::thread::yield_now();
        let now = peak_mib();
        if now > peak {
            (peak, grown_at) = (now, clock.monotonic());
        }
    }
}

fn peak_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Environment variable with the format that a child process measures.
const FORMAT: &str = "BACKUP_MANAGER_MEMORY_OF";

/// Each format is measured in its own process: memory that the allocator keeps must not count for the next format.
#[test]
fn memory_is_bounded() {
    if let Ok(format) = std::env::var(FORMAT) {
        let (compression, layout) = format.split_once(' ').unwrap();
        return measure((compression.parse().unwrap(), layout.parse().unwrap()));
    }
    for format in ["none whole", "zstd:3 whole", "gzip:1 whole", "none segmented", "zstd:3 segmented"] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let child = child.args(["--exact", "memory_is_bounded", "--nocapture"]).env(FORMAT, format).output().unwrap();
        println!("{}", String::from_utf8_lossy(&child.stdout));
        assert!(child.status.success(), "{format}: {}", String::from_utf8_lossy(&child.stderr));
    }
}

fn measure(format: Format) {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("source");
    fs::create_dir(&source).unwrap();
    let noise: Vec<u8> =
        (0..(3 << 20) + 40_000u64).map(|i| ((i * i) >> 9) as u8 ^ ((i * i * 31) >> 17) as u8).collect();
    for i in 0..14_000 {
        fs::write(source.join(format!("{i}")), &noise[i..i + if i % 400 == 0 { 3 << 20 } else { 300 }]).unwrap();
    }
    let large = File::create(source.join("large")).unwrap();
    (0..30).for_each(|i| large.write_all_at(&noise[..3 << 20], i * (3 << 20)).unwrap());
    let sparse = File::create(source.join("sparse")).unwrap();
    sparse.set_len(256 << 20).unwrap();
    (0..32).for_each(|i| sparse.write_all_at(&noise[..4096], i * (8 << 20)).unwrap());
    let before = peak_mib();
    let written = write(&source, scratch.path(), format, Duration::from_millis(400));
    assert_eq!((written.extent.members, written.losses), (14_003, 0));
    let peak = peak_mib() - before;
    println!("{format:?}: {peak} MiB");
    // The smallest chunks: their buffers count more than their bytes.
    let limit = if format == (Compression::None, Layout::Segmented) { 40 } else { 56 };
    assert!(peak <= limit, "{format:?} took {peak} MiB");
    if is_long_run() {
        long_run(scratch.path(), before, format);
    }
}

fn long_run(scratch: &Path, before: u64, format: Format) {
    let source = scratch.join("million");
    for folder in 0..1_000 {
        let folder = source.join(format!("{folder}"));
        fs::create_dir_all(&folder).unwrap();
        (0..1_000).for_each(|i| fs::write(folder.join(format!("some file {i}")), b"a few bytes").unwrap());
    }
    let sparse = File::create(source.join("sparse")).unwrap();
    sparse.set_len(20 << 30).unwrap();
    (0..20).for_each(|i| sparse.write_all_at(b"data", i << 30).unwrap());
    let clock = SystemClock::new();
    let written = write(&source, scratch, format, Duration::ZERO);
    assert_eq!(written.extent.files, 1_000_001);
    let peak = peak_mib() - before;
    println!("a million files and 20 GiB of holes, {format:?}: {peak} MiB, {:?}", clock.monotonic());
    assert!(peak <= 96, "{format:?} took {peak} MiB");
}
