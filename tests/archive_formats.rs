//! Archives of every format: tools can read them, their bytes depend on the source alone, and any damage is found.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use backup_manager::archive::block::END_MARKS;
use backup_manager::archive::buffer::Buffer;
use backup_manager::archive::check::{check_by_trailer, check_chunks};
use backup_manager::archive::foreign::check_tar;
use backup_manager::archive::header;
use backup_manager::archive::padding::Padding;
use backup_manager::archive::reader::ArchiveReader;
use backup_manager::cancel::CancelToken;
use backup_manager::error::ErrorKind;
use backup_manager::member::{FileTime, Member, MemberKind, MemberPath, Xattrs};
use backup_manager::schedule::Compression;

use support::archive::{TestArchive, has_tool, make, make_with, run_tool};

const FORMATS: [Compression; 3] = [Compression::None, Compression::Gzip(6), Compression::Zstd(3)];

/// Each format, without padding and with it.
fn padded_formats() -> impl Iterator<Item = (Compression, Padding)> {
    FORMATS.into_iter().flat_map(|compression| [(compression, Padding::None), (compression, Padding::Blocks)])
}

/// Creates a folder with small files, a large file read in pieces by one thread, and one read by several.
fn make_source(folder: &Path) -> std::path::PathBuf {
    let source = folder.join("source");
    fs::create_dir_all(source.join("sub/empty")).unwrap();
    for i in 0..300 {
        fs::write(source.join(format!("sub/{i:03}")), format!("{i}\n").repeat(i * 40)).unwrap();
    }
    let noise: Vec<u8> = (0..18_000_001u64).map(|i| ((i * i) >> 7) as u8).collect();
    fs::write(source.join("large"), &noise[..9_000_001]).unwrap();
    fs::write(source.join("larger"), &noise).unwrap();
    std::os::unix::fs::symlink("sub/001", source.join("link")).unwrap();
    source
}

fn count_lines(command: &mut Command) -> usize {
    run_tool(command).stdout.split(|&b| b == b'\n').count() - 1
}

#[test]
fn tools_accept_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let source = make_source(folder.path());
    for (compression, padding) in padded_formats() {
        let made = make_with(&source, folder.path(), compression, |job| job.padding = padding);
        assert_eq!((made.written.extent.members, made.written.extent.files, made.written.folders), (306, 302, 3));
        assert_eq!(made.written.problems, []);
        assert_eq!(fs::metadata(&made.path).unwrap().mode() & 0o7777, 0o400);
        made.verify().unwrap();
        for tool in ["tar", "bsdtar"].into_iter().filter(|tool| has_tool(tool)) {
            assert_eq!(count_lines(Command::new(tool).arg("-tf").arg(&made.path)), 306, "{tool} {compression}");
        }
        let testers: &[&str] = match compression {
            Compression::None => &[],
            Compression::Gzip(_) => &["gzip", "pigz"],
            Compression::Zstd(_) => &["zstd"],
        };
        for tool in testers.iter().filter(|tool| has_tool(tool)) {
            run_tool(Command::new(tool).arg("-qt").arg(&made.path));
        }
        if compression != Compression::Zstd(3) {
            let script = "import sys, tarfile\na = tarfile.open(sys.argv[1])\nprint(a.pax_headers['comment'])\n\
                          [print(m.name) for m in a]";
            let out = run_tool(Command::new("python3").args(["-c", script]).arg(&made.path)).stdout;
            let text = String::from_utf8(out).unwrap();
            // Python has the comment of the last global header, which may be padding.
            let comment = text.lines().next().unwrap();
            assert!(comment == "{\"schedule\":\"test\"}" || padding == Padding::Blocks && comment.trim().is_empty());
            assert_eq!(text.lines().count(), 307);
        }
        let extent = check_tar(&made.path).unwrap();
        assert_eq!(extent, made.written.extent);
    }
}

#[test]
fn the_bytes_depend_on_the_source_alone() {
    let folder = tempfile::tempdir().unwrap();
    let source = make_source(folder.path());
    for compression in FORMATS {
        let made: Vec<TestArchive> =
            [1, 2, 7].map(|threads| make_with(&source, folder.path(), compression, |job| job.threads = threads)).into();
        assert!(made.iter().all(|other| other.written == made[0].written), "{compression}");
        let records = |made: &TestArchive| {
            made.records.iter().map(|r| (r.chunk.offset, r.chunk.content_digest)).collect::<Vec<_>>()
        };
        assert!(made.iter().all(|other| records(other) == records(&made[0])));
    }
}

#[test]
fn each_frame_in_the_seek_table_is_one_chunk() {
    for padding in [Padding::None, Padding::Blocks] {
        let folder = tempfile::tempdir().unwrap();
        let source = make_source(folder.path());
        check_seek_table(&make_with(&source, folder.path(), Compression::Zstd(3), |job| job.padding = padding));
    }
}

fn check_seek_table(made: &TestArchive) {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(&made.path).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let end = bytes.len();
    assert_eq!(word(end - 4), 0x8F92_EAB1);
    let frames = word(end - 9) as usize;
    let table = end - 9 - frames * 8;
    assert_eq!((word(table - 8), word(table - 4) as usize), (0x184D_2A5E, frames * 8 + 9));
    let mut offset = 0;
    for (frame, record) in made.records.iter().enumerate() {
        let (stored, content) = (word(table + frame * 8) as usize, word(table + frame * 8 + 4));
        let path = folder.path().join("frame.zst");
        fs::write(&path, &bytes[offset..offset + stored]).unwrap();
        let decoded = run_tool(Command::new("zstd").arg("-dqc").arg(&path)).stdout;
        assert_eq!(decoded.len(), content as usize);
        assert_eq!(Some(*blake3::hash(&decoded).as_bytes()), record.chunk.content_digest);
        offset += stored;
    }
    assert_eq!(frames, made.records.len() + 1);
    let trailer = word(table - 8 - word(table + frames * 8 - 8) as usize);
    assert_eq!(trailer, 0x184D_2A5B, "the last entry is the trailer's frame");
    assert_eq!(offset + word(table + frames * 8 - 8) as usize + 8, table);
}

#[test]
fn members_lie_at_the_offsets_in_the_catalog() {
    for padding in [Padding::None, Padding::Blocks] {
        let folder = tempfile::tempdir().unwrap();
        let source = make_source(folder.path());
        check_offsets(&make_with(&source, folder.path(), Compression::None, |job| job.padding = padding));
    }
}

fn check_offsets(made: &TestArchive) {
    let bytes = fs::read(&made.path).unwrap();
    let mut end = 0;
    for record in &made.records {
        assert_eq!(record.chunk.offset, end, "no gap");
        end += record.chunk.stored_length;
        let mut at = record.chunk.offset as usize;
        for row in record.new_members() {
            assert_eq!(&bytes[at + 257..at + 262], b"ustar", "{}", row.member.path);
            at += row.entry_bytes as usize;
        }
        let is_filled = record.new_members().count() == 0 || at as u64 == record.chunk.end();
        assert!(is_filled, "the entries fill the chunk");
    }
    assert_eq!(bytes[end as usize - 1024..end as usize], END_MARKS);
    assert!(made.records.len() > 10, "small files are cut into chunks, large ones into pieces");
}

#[test]
fn any_flipped_bit_and_any_missing_end_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    (0..40).for_each(|i| fs::write(source.join(format!("{i}")), vec![i as u8; 9_000]).unwrap());
    for (compression, padding) in padded_formats() {
        let made = make_with(&source, folder.path(), compression, |job| job.padding = padding);
        let whole = fs::read(&made.path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&made.path).unwrap();
        let step = (whole.len() / 60).max(1);
        let ends = whole.len().saturating_sub(300)..whole.len();
        for at in (0..whole.len()).step_by(step).chain(ends.step_by(7)) {
            file.write_all_at(&[whole[at] ^ 1 << (at % 8)], at as u64).unwrap();
            let error = made.verify().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damage, "{compression} at {at}: {error}");
            file.write_all_at(&[whole[at]], at as u64).unwrap();
        }
        made.verify().unwrap();
        for cut in (0..whole.len()).step_by(step) {
            file.set_len(cut as u64).unwrap();
            assert_eq!(made.verify().unwrap_err().kind(), ErrorKind::Damage, "{compression} cut to {cut}");
            let own = check_by_trailer(&made.path, 1, &CancelToken::new()).unwrap_err();
            assert_eq!(own.kind(), ErrorKind::Damage, "{compression} cut to {cut}: {own}");
            file.write_all_at(&whole, 0).unwrap();
        }
        file.set_len(whole.len() as u64).unwrap();
        made.verify().unwrap();
    }
}

#[test]
fn every_damaged_chunk_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let made = make(&make_source(folder.path()), folder.path(), Compression::Gzip(6));
    let file = fs::OpenOptions::new().write(true).open(&made.path).unwrap();
    let broken: Vec<_> = made.records.iter().skip(1).step_by(3).collect();
    for record in &broken {
        file.write_all_at(b"#", record.chunk.offset + record.chunk.stored_length / 2).unwrap();
    }
    let reader = ArchiveReader::open(&made.path).unwrap();
    let mut expected = made.records.iter().map(|record| Ok(record.chunk));
    let mut found = Vec::new();
    let digest = check_chunks(&reader, &mut expected, 3, &CancelToken::new(), &mut |damaged| {
        found.push(damaged.chunk.sequence);
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(digest.unwrap(), made.written.digest, "the digest is that of the expected chunks");
    found.sort();
    assert_eq!(found, broken.iter().map(|record| record.chunk.sequence).collect::<Vec<_>>());
}

#[test]
fn other_tars_are_accepted_only_whole() {
    let folder = tempfile::tempdir().unwrap();
    let source = make_source(folder.path());
    for (name, flag) in [("a.tar", "-cf"), ("a.tar.gz", "-czf")] {
        let path = folder.path().join(name);
        run_tool(Command::new("tar").arg("-C").arg(folder.path()).arg(flag).arg(&path).arg("source"));
        let extent = check_tar(&path).unwrap();
        assert_eq!(extent.members, 306);
        let size = fs::metadata(&path).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        for cut in [size - size / 3, size / 2, 1024, 512, 100, 0] {
            file.set_len(cut).unwrap();
            let error = check_tar(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damage, "{name} cut to {cut}: {error}");
        }
    }
    // Cut exactly after a member, so that only the end marks are missing.
    let path = folder.path().join("b.tar");
    fs::write(source.join("sub/zeros"), vec![0; 4096]).unwrap();
    run_tool(Command::new("tar").arg("-C").arg(source.join("sub")).arg("-cf").arg(&path).arg("zeros"));
    check_tar(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(512 + 4096).unwrap();
    assert!(check_tar(&path).is_err_and(|e| e.to_string().contains("end marks")));
    assert!(check_tar(&source.join("large")).is_err());
    assert_eq!(check_tar(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_refused_member_of_another_tar_is_counted_and_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"content").unwrap();
    let path = folder.path().join("a.tar");
    let transform = "--transform=s,^twin$,../twin,";
    fs::copy(folder.path().join("file"), folder.path().join("twin")).unwrap();
    run_tool(
        Command::new("tar").arg("-C").arg(folder.path()).args(["-Pcf"]).arg(&path).args([transform, "file", "twin"]),
    );
    let extent = check_tar(&path).unwrap();
    assert_eq!((extent.members, extent.files, extent.content_bytes), (2, 1, 7));
}

#[test]
fn a_wrong_checksum_after_the_end_marks_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar.gz");
    fs::write(folder.path().join("file"), b"content").unwrap();
    run_tool(Command::new("tar").arg("-C").arg(folder.path()).arg("-czf").arg(&path).arg("file"));
    check_tar(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // The last eight bytes of a gzip file are the checksum and the length of its content.
    let checksum = bytes.len() - 8;
    bytes[checksum] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(check_tar(&path).unwrap_err().kind(), ErrorKind::Damage);
}

#[test]
fn a_file_over_8_gib_is_listed_with_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.tar");
    let size = (9 << 30) + 5;
    let member = Member {
        path: MemberPath::parse(b"big").unwrap(),
        kind: MemberKind::File,
        size,
        mode: 0o600,
        uid: 0,
        gid: 0,
        user_name: b"root".as_slice().into(),
        group_name: vec![b'g'; 40].into(),
        modified: FileTime::default(),
        link_target: None,
        device_number: None,
        xattrs: Xattrs::new(),
    };
    let mut content = Buffer::new();
    header::append(&mut content, &member, None);
    fs::write(&path, &content[..]).unwrap();
    // The data is one hole.
    let end = content.len() as u64 + size.next_multiple_of(512);
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&END_MARKS, end).unwrap();
    for (tool, flags) in [("tar", "-tvf"), ("bsdtar", "-tvf")] {
        let out = run_tool(Command::new(tool).env("TZ", "UTC").arg(flags).arg(&path)).stdout;
        let line = String::from_utf8(out).unwrap();
        assert!(line.contains(&size.to_string()) && line.contains(&"g".repeat(40)), "{tool}: {line}");
    }
    let script = "import sys, tarfile\nprint([(m.size, m.gname) for m in tarfile.open(sys.argv[1])])";
    let out = run_tool(Command::new("python3").args(["-c", script]).arg(&path)).stdout;
    assert_eq!(String::from_utf8(out).unwrap().trim(), format!("[({size}, '{}')]", "g".repeat(40)));
}
