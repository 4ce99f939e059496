//! Archives that other programs made: for each, `ls`, `verify` and `restore` agree with each other, and what is
//! restored is compared with what GNU tar and bsdtar extract (names, kinds, sizes, contents, targets of links).
//!
//! The short form reads a few archives that it makes itself. `BACKUP_CORPORA=DIR cargo test --release --test
//! foreign_corpora -- --nocapture` reads those below DIR, where each folder is one corpus, and prints counts and all
//! differences: the test suites of other tar programs hold hundreds of archives (CONTRIBUTING.md says where from).

#[path = "foreign_corpora/extracted.rs"]
mod extracted;
#[path = "foreign_corpora/program.rs"]
mod program;
#[path = "restore/tar_file.rs"]
mod tar_file;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use extracted::Extracted;
use tar_file::{Block, TarFile};

/// What became of one archive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    AgreesWithBoth,
    AgreesWithGnuTar,
    AgreesWithBsdtar,
    AllRefuse,
    /// The same files as one of them, but only one of the programs reports an error.
    OnlyExitCodeDiffers,
    Differs,
}

impl Class {
    fn words(self) -> &'static str {
        match self {
            Class::AgreesWithBoth => "agree with both",
            Class::AgreesWithGnuTar => "agree with GNU tar",
            Class::AgreesWithBsdtar => "agree with bsdtar",
            Class::AllRefuse => "all refuse",
            Class::OnlyExitCodeDiffers => "the same files, another exit code",
            Class::Differs => "differ",
        }
    }
}

/// The findings of one archive.
struct Judged {
    class: Class,
    /// Differences from the other programs.
    differences: Vec<String>,
    /// Contradictions between `ls`, `verify` and `restore`.
    contradictions: Vec<String>,
}

fn judge(archive: &Path) -> Judged {
    let scratch = tempfile::tempdir().unwrap();
    let unpacked = unpack(archive, scratch.path());
    let (ours, contradictions) = program::restore(&unpacked, &scratch.path().join("ours"));
    let extract = |tool: &str, options: &[&str]| {
        let to = scratch.path().join(tool);
        fs::create_dir(&to).unwrap();
        let mut command = Command::new("timeout");
        command.args(["300", tool]).args(options).arg("-xf").arg(&unpacked).arg("-C").arg(&to);
        extracted::run(&mut command, &to)
    };
    let gnu = extract("tar", &["--numeric-owner"]);
    let bsd = extract("bsdtar", &[]);
    let (class, differences) = compare(&ours, &gnu, &bsd);
    Judged { class, differences, contradictions }
}

/// Returns the file itself, or what `bsdcat` makes of a compression that the program does not read.
fn unpack(archive: &Path, scratch: &Path) -> PathBuf {
    let first = fs::read(archive).unwrap();
    let is_read = [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd"].iter().any(|magic| first.starts_with(magic));
    let plain = scratch.join("plain");
    let mut bsdcat = Command::new("bsdcat");
    bsdcat.arg(archive).stdin(Stdio::null()).stdout(File::create(&plain).unwrap()).stderr(Stdio::null());
    if is_read || !bsdcat.status().is_ok_and(|status| status.success()) { archive.to_owned() } else { plain }
}

fn compare(ours: &Extracted, gnu: &Extracted, bsd: &Extracted) -> (Class, Vec<String>) {
    let is_same = |other: &Extracted| ours.contents() == other.contents();
    let agrees = |other: &Extracted| is_same(other) && ours.is_whole() == other.is_whole();
    let class = match (agrees(gnu), agrees(bsd)) {
        (true, true) if ours.tree.is_empty() && !ours.is_whole() => Class::AllRefuse,
        (true, true) => Class::AgreesWithBoth,
        (true, false) => Class::AgreesWithGnuTar,
        (false, true) => Class::AgreesWithBsdtar,
        (false, false) if is_same(gnu) || is_same(bsd) => Class::OnlyExitCodeDiffers,
        (false, false) => Class::Differs,
    };
    let mut differences = Vec::new();
    if matches!(class, Class::OnlyExitCodeDiffers | Class::Differs) {
        for (name, other) in [("GNU tar", gnu), ("bsdtar", bsd)] {
            differences.extend(ours.differences(other).into_iter().map(|line| format!("{name}: {line}")));
        }
        differences.push(format!("ours: {}", ours.last_words()));
    }
    let nearest = if is_same(gnu) { Some(gnu) } else { is_same(bsd).then_some(bsd) };
    if let Some(other) = nearest {
        differences.extend(ours.metadata_differences(other));
    }
    (class, differences)
}

/// Judges all archives in a folder and prints what differs. Returns the contradictions.
fn judge_corpus(name: &str, folder: &Path) -> Vec<String> {
    let mut archives: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    archives.retain(|path| path.is_file());
    archives.sort();
    let (mut counts, mut contradictions) = (BTreeMap::<Class, usize>::new(), Vec::new());
    for archive in &archives {
        let judged = judge(archive);
        *counts.entry(judged.class).or_default() += 1;
        let file = archive.file_name().unwrap().to_string_lossy().into_owned();
        if !judged.differences.is_empty() {
            print(&format!("{name}/{file}: {}", judged.class.words()));
            judged.differences.iter().for_each(|line| print(&format!("    {line}")));
        }
        contradictions.extend(judged.contradictions.iter().map(|line| format!("{name}/{file}: {line}")));
    }
    let counts: Vec<String> = counts.iter().map(|(class, count)| format!("{count} {}", class.words())).collect();
    print(&format!(
        "{name}: {} archives: {}; {} contradictions",
        archives.len(),
        counts.join(", "),
        contradictions.len()
    ));
    contradictions
}

fn print(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Makes archives that each show one thing.
fn make_archives(folder: &Path) {
    let file = || TarFile::default().file("a", b"content of a").folder("d").file("d/b", b"");
    let pax = file().pax(&[("path", "d/\u{e4}".as_bytes()), ("mtime", b"1600000000.5")]).file("replaced", b"by pax");
    // Of the seventh edition of Unix: without a magic number, and with a zero byte for a regular file.
    let v7 = file().block(Block::new(b"d/old", b'\0', 3).with(|block| block[257..].fill(0))).bytes(b"old");
    let cases: [(&str, Vec<u8>); 11] = [
        ("whole", file().symlink("s", "a").hard_link("h", "a").end()),
        ("pax", pax.end()),
        ("v7", v7.end()),
        ("without-end-marks", file().0),
        ("cut", file().file("c", &[7; 2000]).0[..3500].to_vec()),
        ("root-folder-only", TarFile::default().folder("./").end()),
        ("zeros", vec![0; 10_240]),
        ("text", b"This is no tar file.\n".repeat(100)),
        ("outside", file().file("../outside", b"x").end()),
        ("beneath-a-link", file().symlink("s", "/tmp").file("s/x", b"x").end()),
        ("link-to-nothing", file().hard_link("h", "nothing").end()),
    ];
    for (name, bytes) in cases {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

#[test]
fn archives_of_others_give_what_tar_extracts_and_the_verbs_agree() {
    for tool in ["tar", "bsdtar", "bsdcat"] {
        if !Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
            return print(&format!("skipped: {tool} is not installed"));
        }
    }
    let Some(corpora) = std::env::var_os("BACKUP_CORPORA") else {
        let folder = tempfile::tempdir().unwrap();
        make_archives(folder.path());
        assert_eq!(judge_corpus("made here", folder.path()), Vec::<String>::new());
        for name in ["whole", "pax", "v7"] {
            let judged = judge(&folder.path().join(name));
            assert!(judged.class != Class::Differs, "{name}: {:?}", judged.differences);
        }
        return;
    };
    let mut folders: Vec<_> = fs::read_dir(corpora).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let mut contradictions = Vec::new();
    for folder in folders.iter().filter(|path| path.is_dir()) {
        contradictions.extend(judge_corpus(&folder.file_name().unwrap().to_string_lossy(), folder));
    }
    contradictions.iter().for_each(|line| print(line));
    assert!(contradictions.is_empty(), "{} contradictions", contradictions.len());
}
