//! Archives side by side with GNU tar, pigz and zstd, on the same files, both ending with the file synced.
//!
//! `cargo bench --bench side_by_side [FOLDER]` measures FOLDER, or a generated tree. The two of each pair run
//! alternately; the table shows the best time of each, and ratios. Peak memory is that of this process, which writes
//! archives in all formats.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use backup_manager::archive::check;
use backup_manager::backup::pipeline::{self, PipelineOptions, WrittenArchive};
use backup_manager::cancel::CancelToken;
use backup_manager::chunk::{CatalogChunk, ChunkRecord};
use backup_manager::clock::{Clock, SystemClock};
use backup_manager::durable::PendingFile;
use backup_manager::member::MemberPath;
use backup_manager::progress::{Observer, Problem, Progress};
use backup_manager::schedule::{Compression, Excludes};

const ROUNDS: usize = 5;

struct Silent;

impl Observer for Silent {
    fn progress(&self, _: &Progress) {}
    fn problem(&self, _: &Problem) {}
    fn note(&self, _: &str) {}
}

fn main() {
    // `cargo bench` adds flags of its own.
    let tree = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).map(PathBuf::from);
    let scratch = tempfile::tempdir_in(std::env::var_os("BENCH_SCRATCH").unwrap_or("target".into())).expect("a folder");
    let tree = tree.unwrap_or_else(|| {
        let tree = scratch.path().join("tree");
        make_tree(&tree);
        tree
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{} on {cores} cores, best of {ROUNDS}", tree.display());
    println!(
        "{:28} {:>9} {:>9} {:>6} {:>6} {:>6} {:>12} {:>12} {:>6}",
        "", "ours s", "peer s", "ratio", "cpu", "cpu", "ours bytes", "peer bytes", "ratio"
    );
    let parent = tree.parent().expect("a folder has a parent").display().to_string();
    let name = tree.file_name().expect("a folder has a name").to_string_lossy().into_owned();
    let only = std::env::var("BENCH_FORMAT").ok();
    for (compression, label, peer) in [
        (Compression::None, "tar", format!("tar -C {parent} -cf - {name}")),
        (Compression::Gzip(6), "tar | pigz -6", format!("tar -C {parent} -cf - {name} | pigz -6")),
        (Compression::Zstd(3), "tar | zstd -3 -T0", format!("tar -C {parent} -cf - {name} | zstd -q -3 -T0")),
    ] {
        if only.as_deref().is_none_or(|only| only == compression.codec()) {
            compare(&tree, scratch.path(), compression, label, &peer, cores);
        }
    }
    println!("peak memory {} MiB", peak_memory_kib() / 1024);
}

fn compare(tree: &Path, scratch: &Path, compression: Compression, label: &str, peer: &str, cores: usize) {
    let (ours_path, peer_path) = (scratch.join("ours"), scratch.join("peer"));
    let (mut ours, mut verified, mut theirs) = (Duration::MAX, Duration::MAX, Duration::MAX);
    let (mut ours_cpu, mut verified_cpu, mut theirs_cpu) = (u64::MAX, u64::MAX, u64::MAX);
    for _ in 0..ROUNDS {
        let (clock, cpu) = (SystemClock::new(), cpu_ticks());
        let (written, records) = archive(tree, &ours_path, compression, cores, &clock);
        let made = clock.monotonic();
        ours_cpu = ours_cpu.min(cpu_ticks().0 - cpu.0);
        let mut expected = records.iter().map(|record| Ok(record.chunk));
        check::check_file(&ours_path, &mut expected, &written.digest, written.size, cores, &CancelToken::new())
            .expect("the archive is whole");
        ours = ours.min(made);
        verified = verified.min(clock.monotonic());
        verified_cpu = verified_cpu.min(cpu_ticks().0 - cpu.0);
        let clock = SystemClock::new();
        let script = format!("set -e -o pipefail; {peer} > {0}; sync {0}", peer_path.display());
        assert!(Command::new("bash").arg("-c").arg(&script).status().expect("bash runs").success());
        theirs = theirs.min(clock.monotonic());
        theirs_cpu = theirs_cpu.min(cpu_ticks().1 - cpu.1);
    }
    let size = |path: &Path| fs::metadata(path).map_or(0, |stat| stat.len());
    let (ours_bytes, peer_bytes) = (size(&ours_path), size(&peer_path));
    let row = |label: &str, time: Duration, cpu: u64| {
        println!(
            "{label:28} {:9.3} {:9.3} {:6.3} {cpu:6} {theirs_cpu:6} {ours_bytes:12} {peer_bytes:12} {:6.3}",
            time.as_secs_f64(),
            theirs.as_secs_f64(),
            time.as_secs_f64() / theirs.as_secs_f64(),
            ours_bytes as f64 / peer_bytes as f64,
        );
    };
    row(label, ours, ours_cpu);
    row(&format!("{label}, verified"), verified, verified_cpu);
}

fn archive(
    tree: &Path,
    path: &Path,
    compression: Compression,
    threads: usize,
    clock: &SystemClock,
) -> (WrittenArchive, Vec<CatalogChunk>) {
    let name = tree.file_name().expect("a folder has a name");
    let root_name = MemberPath::parse(name.as_encoded_bytes()).expect("a file name is a member path");
    let job = PipelineOptions {
        source: tree,
        root_name: &root_name,
        excludes: &Excludes::default(),
        patterns: &[],
        own_paths: &[],
        compression,
        threads,
        comment: "{}",
        run: 1,
        clock,
        observer: &Silent,
        cancel: &CancelToken::new(),
    };
    let mut file = PendingFile::create(path, 0o400).expect("the scratch folder is writable");
    let mut records = Vec::new();
    let written = pipeline::write(&job, &mut file, &mut |batch| {
        // The catalog stores rows, not members; verification needs the chunks only.
        let rows = batch.iter().map(|chunk| (chunk, ChunkRecord::New { members: Vec::new() }));
        records.extend(rows.map(|(chunk, record)| CatalogChunk { record, ..*chunk }));
        Ok(())
    })
    .expect("the tree can be read");
    file.seal().and_then(|sealed| sealed.persist(path, true)).expect("the archive gets its name");
    records.sort_by_key(|record| record.chunk.sequence);
    (written, records)
}

/// Creates 50,000 files of text in 500 folders, 640 MB in all.
fn make_tree(tree: &Path) {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let words: Vec<String> =
        (0..4096).map(|_| (0..2 + random() % 9).map(|_| char::from(b'a' + (random() % 26) as u8)).collect()).collect();
    for folder in 0..500 {
        let folder = tree.join(format!("{folder:03}"));
        fs::create_dir_all(&folder).expect("the scratch folder is writable");
        for file in 0..100 {
            // Many small ones and some large.
            let length = if random() % 10 == 0 { random() % 100_000 } else { random() % 16_000 } as usize;
            let mut text = String::with_capacity(length + 16);
            while text.len() < length {
                let word = (random() % 64 * (random() % 64)) as usize;
                text.push_str(&words[word]);
                text.push(if random() % 12 == 0 { '\n' } else { ' ' });
            }
            fs::write(folder.join(format!("{file:02}.txt")), text).expect("the scratch folder is writable");
        }
    }
}

/// Returns the processor time of this process and of its ended children, in hundredths of a second.
fn cpu_ticks() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat.rsplit(") ").next().unwrap_or("").split(' ').map(|f| f.parse().unwrap_or(0)).collect();
    let sum = |at: usize| fields.get(at).copied().unwrap_or(0) + fields.get(at + 1).copied().unwrap_or(0);
    (sum(11), sum(13))
}

fn peak_memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}
