//! Archives of other programs whose compressed stream is damaged, padded or begins unusually. Every verb reads the
//! stream to its end, so none takes a wrong file for a right one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use backup_manager::browse::{OpenArchive, members_by_path, read_file};
use backup_manager::cancel::CancelToken;
use backup_manager::error::{ErrorKind, Result};
use backup_manager::maintenance::verify::verify_file;
use backup_manager::restore::Options;
use backup_manager::schedule::Compression;

use crate::fidelity::restore_all;
use crate::support::archive::make;
use crate::tar_file::TarFile;

/// Content that a codec stores nearly as it is, so that a flipped bit is a wrong byte and not a broken stream.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let step = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(step).take(90_000).collect()
}

fn small_tar() -> Vec<u8> {
    let mut tar = TarFile::default().folder("source/");
    for name in ["a", "b", "c", "d"] {
        tar = tar.file(&format!("source/{name}"), &noise(u64::from(name.as_bytes()[0])));
    }
    tar.end()
}

fn packed(tool: &str, content: &[u8], folder: &Path) -> Vec<u8> {
    let plain = folder.join("plain.tar");
    fs::write(&plain, content).unwrap();
    let Output { status, stdout, .. } = Command::new(tool).arg("-c").arg(&plain).output().unwrap();
    assert!(status.success());
    stdout
}

fn cat(file: &Path, name: &str) -> Result<Vec<u8>> {
    let archive = OpenArchive::from_file(file)?;
    let path = archive.member_path(Path::new(name))?;
    let mut content = Vec::new();
    read_file(&archive, &path, &mut |bytes| {
        content.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(content)
}

/// What the verbs say of a file: whether `restore`, `cat`, `diff` and `verify` each found it whole.
fn verdicts(file: &Path) -> [bool; 4] {
    let to = tempfile::tempdir().unwrap();
    let restored = restore_all(file, &Options { sync: false, ..Options::to(to.path()) });
    let is_good = verify_file(file, 1, &CancelToken::new()).unwrap().is_good();
    let listed = OpenArchive::from_file(file).and_then(|archive| members_by_path(&archive));
    [
        restored.is_ok_and(|report| report.outcome() != Some(ErrorKind::Damage)),
        cat(file, "source/a").is_ok(),
        listed.is_ok(),
        is_good,
    ]
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file.tar.packed");
    (folder, file)
}

#[test]
fn no_flipped_bit_of_a_compressed_archive_of_another_program_goes_unnoticed() {
    let (folder, file) = scratch();
    for tool in ["gzip", "zstd"] {
        let whole = packed(tool, &small_tar(), folder.path());
        fs::write(&file, &whole).unwrap();
        assert_eq!(verdicts(&file), [true; 4], "{tool}");
        for part in 1..40 {
            let mut bytes = whole.clone();
            let at = 40 + (bytes.len() - 40) * part / 40;
            bytes[at] ^= 1 << (part % 8);
            fs::write(&file, &bytes).unwrap();
            assert_eq!(verdicts(&file), [false; 4], "{tool}: bit of byte {at}");
        }
        for cut in [whole.len() - 1, whole.len() - 8, whole.len() / 2] {
            fs::write(&file, &whole[..cut]).unwrap();
            assert_eq!(verdicts(&file), [false; 4], "{tool}: cut to {cut}");
        }
    }
}

#[test]
fn a_wrong_checksum_puts_all_files_in_doubt_and_blames_none() {
    let (folder, file) = scratch();
    for tool in ["gzip", "zstd"] {
        let mut bytes = packed(tool, &small_tar(), folder.path());
        let checksum = bytes.len() - if tool == "gzip" { 8 } else { 4 };
        bytes[checksum] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let to = tempfile::tempdir().unwrap();
        let report = restore_all(&file, &Options { sync: false, ..Options::to(to.path()) }).unwrap();
        let counts = (report.extent.files, report.damaged.count);
        // The decoder of zstd gives out the last block only if the checksum is right.
        assert_eq!(counts, if tool == "zstd" { (2, 1) } else { (4, 0) }, "{report:?}");
        assert!(report.undecodable.as_deref().unwrap().contains("any of the files above may be wrong"), "{report:?}");
        assert_eq!(report.outcome(), Some(ErrorKind::Damage));
        let error = cat(&file, "source/a").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damage);
        assert!(error.to_string().contains("source/a may be wrong"), "{error}");
    }
}

#[test]
fn a_cut_trailer_of_our_own_archive_costs_no_file_and_puts_none_in_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), noise(1)).unwrap();
    for compression in [Compression::Gzip(6), Compression::Zstd(3)] {
        let made = make(&source, folder.path(), compression);
        let whole = fs::read(&made.path).unwrap();
        let trailer = made.records.last().unwrap().chunk.end() as usize;
        let file = folder.path().join("cut");
        for cut in (trailer..whole.len()).step_by(7) {
            fs::write(&file, &whole[..cut]).unwrap();
            assert_eq!(verdicts(&file), [true; 4], "{compression}: {cut} of {} bytes", whole.len());
        }
        // Within the last member and the end marks, each a frame of its own, the archive itself is cut.
        for cut in [trailer - 1, made.records.last().unwrap().chunk.offset as usize - 1] {
            fs::write(&file, &whole[..cut]).unwrap();
            assert!(!verdicts(&file)[3], "{compression}: {cut} of {} bytes", whole.len());
        }
    }
}

#[test]
fn padding_and_further_frames_after_the_end_are_no_damage() {
    let (folder, file) = scratch();
    let tar = small_tar();
    for tool in ["gzip", "zstd"] {
        let whole = packed(tool, &tar, folder.path());
        let (first, second) = tar.split_at(100_000);
        let halves = [packed(tool, first, folder.path()), packed(tool, second, folder.path())].concat();
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..]].concat();
        let mut cases = vec![
            ("zeros", [&whole[..], &[0; 5000]].concat()),
            ("other data after the checksum", [&whole[..], b"garbage"].concat()),
            ("two frames", halves.clone()),
            ("another archive", [&whole[..], &whole].concat()),
        ];
        if tool == "zstd" {
            cases.push(("a skippable frame first", [&skippable[..], &whole].concat()));
            cases.push(("skippable frames between", [&skippable[..], &skippable, &halves, &skippable].concat()));
        }
        for (what, bytes) in cases {
            fs::write(&file, &bytes).unwrap();
            assert_eq!(verdicts(&file), [true; 4], "{tool}: {what}");
            assert_eq!(cat(&file, "source/d").unwrap(), noise(u64::from(b'd')), "{tool}: {what}");
        }
        let broken = [&packed(tool, first, folder.path())[..], b"garbage"].concat();
        fs::write(&file, broken).unwrap();
        assert_eq!(verdicts(&file), [false, true, false, false], "{tool}: other data before the end marks");
    }
}
