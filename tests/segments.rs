//! Archives in segments: the program reads them as it reads whole ones, without a database, and so do the two lines of
//! shell in their index. A segment that is missing, short, zeroed or swapped is found and named by both.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use backup_manager::archive::cksum::Crc;
use backup_manager::archive::content::Content;
use backup_manager::archive::index::Index;
use backup_manager::archive::members::{Event, Members};
use backup_manager::archive::reader::ArchiveReader;
use backup_manager::archive_name::ArchiveName;
use backup_manager::browse::{OpenArchive, Selection};
use backup_manager::cancel::CancelToken;
use backup_manager::error::ErrorKind;
use backup_manager::maintenance::verify::{Findings, verify_file};
use backup_manager::schedule::Compression;
use support::archive::make;
use support::random::Random;
use support::seed::seed;
use support::segments::{name, segment_names, split};

const FORMATS: [Compression; 3] = [Compression::None, Compression::Gzip(6), Compression::Zstd(3)];

/// Names of schedules that a shell could take for something else.
const NAMES: [&str; 6] =
    ["docs", "Büro 2", "#a", "it's \"$(touch PWNED)\" `id`", "a  b * ?", "ü' && touch PWNED && 'x"];

fn make_source(folder: &Path) -> PathBuf {
    let source = folder.join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    for i in 0..80_u64 {
        fs::write(source.join(format!("sub/{i:03}")), format!("{i} ").repeat(i as usize * 60)).unwrap();
    }
    let noise: Vec<u8> = (0..5_000_001_u64).map(|i| ((i * i) >> 7) as u8).collect();
    fs::write(source.join("large"), noise).unwrap();
    symlink("sub/001", source.join("link")).unwrap();
    source
}

/// A whole archive, and the same one in segments in the folder `stored`.
struct Pair {
    folder: tempfile::TempDir,
    whole: PathBuf,
    index: PathBuf,
    segments: Vec<PathBuf>,
}

impl Pair {
    fn new(compression: Compression, schedule: &str, random: &mut Random) -> Pair {
        let folder = tempfile::tempdir().unwrap();
        let source = make_source(folder.path());
        let whole = make(&source, folder.path(), compression).path;
        let archive = name(schedule, compression.extension());
        let stored = folder.path().join("stored");
        let index = split(&whole, &stored, &archive, 60, random);
        let segments = segment_names(&archive).iter().map(|name| stored.join(name)).collect();
        Pair { folder, whole, index, segments }
    }

    fn verify(&self) -> Findings {
        verify_file(&self.index, 2, &CancelToken::new()).unwrap()
    }
}

/// Ways to damage a segment, each with words of the messages that must name it.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Missing,
    Short,
    Zeroed,
    Swapped,
    Link,
}

const DAMAGES: [Damage; 5] = [Damage::Missing, Damage::Short, Damage::Zeroed, Damage::Swapped, Damage::Link];

impl Damage {
    /// Damages the first of `segments`, and for a swap the second one too.
    fn apply(self, segments: &[PathBuf]) {
        let path = &segments[0];
        let length = fs::metadata(path).unwrap().len();
        match self {
            Damage::Missing => fs::remove_file(path).unwrap(),
            Damage::Short => OpenOptions::new().write(true).open(path).unwrap().set_len(length / 3).unwrap(),
            Damage::Zeroed => fs::write(path, vec![0; length as usize]).unwrap(),
            Damage::Swapped => {
                let aside = path.with_extension("aside");
                fs::rename(path, &aside).unwrap();
                fs::rename(&segments[1], path).unwrap();
                fs::rename(aside, &segments[1]).unwrap();
            }
            Damage::Link => {
                let aside = path.with_extension("aside");
                fs::rename(path, &aside).unwrap();
                symlink(aside, path).unwrap();
            }
        }
    }

    fn word(self) -> &'static str {
        match self {
            Damage::Missing => "is missing",
            Damage::Short => "it was cut off",
            Damage::Zeroed | Damage::Swapped => "its bytes are not those that were written (",
            Damage::Link => "is a symbolic link",
        }
    }
}

/// What a reader reports of an archive as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Whole,
    /// Some members are lost or damaged.
    Damaged,
    /// Any member may be wrong.
    Unvouched,
}

/// Returns the content of the files that a reader delivers whole, and what it reports.
fn read_all(mut members: Members<'_>) -> (BTreeMap<String, Vec<u8>>, State) {
    let (mut files, mut state) = (BTreeMap::new(), State::Whole);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let entry = match members.next() {
            Ok(None) => return (files, state),
            Ok(Some(Event::Member(entry))) => entry,
            Ok(Some(Event::Undecodable { .. })) => {
                state = State::Unvouched;
                continue;
            }
            Ok(Some(_)) => {
                state = state.max(State::Damaged);
                continue;
            }
            Err(error) => {
                // Neither its beginning nor its trailer can be read.
                assert_eq!(error.kind(), ErrorKind::Damage, "{error}");
                return (files, State::Unvouched);
            }
        };
        let mut content = Vec::new();
        let is_whole = loop {
            match members.read(&mut buffer) {
                Ok(0) => break content.len() as u64 == entry.stored,
                Ok(count) => content.extend(&buffer[..count]),
                Err(_) => break false,
            }
        };
        match is_whole {
            true => drop(files.insert(entry.member.path.to_string(), content)),
            false => state = state.max(State::Damaged),
        }
    }
}

fn read_opened(path: &Path) -> (BTreeMap<String, Vec<u8>>, State) {
    read_all(OpenArchive::from_file(path).unwrap().members(&Selection::everything().unwrap(), 2).unwrap())
}

#[test]
fn an_index_is_read_as_the_whole_archive() {
    let seed = seed();
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    for compression in FORMATS {
        let pair = Pair::new(compression, "Büro 2", &mut random);
        let (whole, segmented) = (ArchiveReader::open(&pair.whole).unwrap(), ArchiveReader::open(&pair.index).unwrap());
        assert_eq!((whole.codec(), whole.size()), (segmented.codec(), segmented.size()));
        assert!(segmented.whole_file().is_none() && segmented.segment_problems().is_empty());
        let facts = |reader: &ArchiveReader| reader.trailer().unwrap().unwrap().facts().clone();
        assert_eq!(facts(&whole), facts(&segmented));
        let (files, state) = read_opened(&pair.whole);
        assert_eq!((files.len(), state), (84, State::Whole));
        assert_eq!(read_opened(&pair.index), (files.clone(), State::Whole), "{compression}");
        // As an archive without a trailer is read.
        let streamed = read_all(Members::new(Content::stream(Arc::new(segmented))));
        assert_eq!(streamed, (files, State::Unvouched), "{compression}");
        let found = pair.verify();
        assert!(found.is_good() && found.bytes == whole.size(), "{found:?}");
    }
}

#[test]
fn ranges_of_a_few_bytes_are_read_as_the_whole_archive() {
    let mut random = Random::new(4);
    for compression in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("a"), "content").unwrap();
        let whole = make(&source, folder.path(), compression).path;
        let ranges = fs::metadata(&whole).unwrap().len() as usize / 2;
        let archive = name("docs", compression.extension());
        let index = split(&whole, &folder.path().join("stored"), &archive, ranges, &mut random);
        let (files, state) = read_opened(&whole);
        assert_eq!((files.len(), state), (2, State::Whole));
        assert_eq!(read_opened(&index), (files.clone(), State::Whole), "{compression}");
        let streamed = read_all(Members::new(Content::stream(Arc::new(ArchiveReader::open(&index).unwrap()))));
        assert_eq!(streamed, (files, State::Unvouched), "{compression}");
    }
}

#[test]
fn the_segments_lie_beside_the_index_not_beside_a_link_to_it() {
    let mut random = Random::new(1);
    let pair = Pair::new(Compression::Gzip(6), "docs", &mut random);
    let link = pair.folder.path().join("docs.tar.gz.index");
    symlink(Path::new("stored").join(pair.index.file_name().unwrap()), &link).unwrap();
    assert_eq!(read_opened(&link), read_opened(&pair.whole));
}

#[test]
fn an_archive_whose_segments_are_removed_meanwhile_is_read_to_its_end() {
    let mut random = Random::new(2);
    for compression in FORMATS {
        let pair = Pair::new(compression, "docs", &mut random);
        let whole = read_opened(&pair.whole);
        let opened = OpenArchive::from_file(&pair.index).unwrap();
        fs::remove_dir_all(pair.index.parent().unwrap()).unwrap();
        assert_eq!(read_all(opened.members(&Selection::everything().unwrap(), 2).unwrap()), whole);
    }
}

#[test]
fn a_damaged_segment_is_named_and_only_its_members_are_lost() {
    let seed = seed();
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let mut chunked = 0;
    for compression in FORMATS {
        for damage in DAMAGES {
            let pair = Pair::new(compression, "docs", &mut random);
            let (whole, _) = read_opened(&pair.whole);
            damage.apply(&pair.segments);
            let found = pair.verify();
            let names = pair.segments[..2].iter().map(|path| path.file_name().unwrap().to_str().unwrap());
            let names: Vec<&str> = names.take(if let Damage::Swapped = damage { 2 } else { 1 }).collect();
            let is_named = |line: &String| {
                let says_why =
                    [damage.word(), "it was cut off", "the trailer of "].iter().any(|word| line.contains(word));
                says_why && names.iter().any(|name| line.contains(name))
            };
            assert!(!found.is_good(), "{compression} {damage:?}");
            assert!(found.structure.iter().any(is_named), "{compression} {damage:?}: {:?}", found.structure);
            // Chunk by chunk if the trailer is whole, else as a stream, of which nothing counts as whole.
            let (files, state) = read_opened(&pair.index);
            assert!(state > State::Whole, "{compression} {damage:?}");
            chunked += usize::from(state == State::Damaged);
            for (path, content) in files.iter().filter(|_| state == State::Damaged) {
                assert!(whole[path] == *content, "{compression} {damage:?}: {path} is not what was archived");
            }
        }
    }
    eprintln!("{chunked} of {} read chunk by chunk", FORMATS.len() * DAMAGES.len());
}

#[test]
fn a_segment_with_a_damaged_footer_is_named_although_another_one_holds_its_end() {
    for compression in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let whole = make(&make_source(folder.path()), folder.path(), compression).path;
        let bytes = fs::read(&whole).unwrap();
        let archive = name("docs", compression.extension());
        let names = segment_names(&archive);
        let mut index = Index::new(&archive, 1, Crc::of(&bytes).cksum());
        let borders = [0, bytes.len() - 150, bytes.len() - 3, bytes.len()];
        for (name, range) in names.iter().zip(borders.windows(2)) {
            let part = &bytes[range[0]..range[1]];
            index.push(name, 0, part.len() as u64);
            fs::write(folder.path().join(name), part).unwrap();
        }
        let path = folder.path().join(archive.index_name());
        index.write(&mut fs::File::create(&path).unwrap()).unwrap();
        let verify = || verify_file(&path, 2, &CancelToken::new()).unwrap();
        assert!(verify().is_good(), "{compression}");
        fs::write(folder.path().join(&names[1]), [0; 147]).unwrap();
        let structure = verify().structure;
        let is_named = |line: &String| line.contains("the trailer of ") && line.contains(&names[1]);
        assert!(structure.iter().any(is_named), "{compression}: {structure:?}");
    }
}

#[test]
fn an_index_that_is_not_whole_is_not_taken_for_a_tar_file() {
    let mut random = Random::new(3);
    let pair = Pair::new(Compression::None, "docs", &mut random);
    let good = fs::read(&pair.index).unwrap();
    let middle = good.len() / 2;
    let changed = String::from_utf8(good.clone()).unwrap().replace('\n', "\r\n").into_bytes();
    for text in [&b""[..], &good[1..], &good[..middle], &good[..good.len() - 1], &changed, &[0; 4096]] {
        fs::write(&pair.index, text).unwrap();
        let error = ArchiveReader::open(&pair.index).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damage, "{error}");
        assert!(error.to_string().contains("the index "), "{error}");
    }
    // By its content, whatever its name.
    let renamed = pair.index.with_file_name("my copy");
    fs::write(&renamed, &good).unwrap();
    assert_eq!(read_opened(&renamed), read_opened(&pair.whole));
}

/// Shells that run a script, each with the programs that they use.
fn shells(folder: &Path) -> Vec<(&'static str, Vec<String>, PathBuf)> {
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
    let mut found = vec![
        ("bash", words(&["bash", "-c"]), PathBuf::from("/usr/bin:/bin")),
        ("dash", words(&["dash", "-c"]), PathBuf::from("/usr/bin:/bin")),
    ];
    // A folder with nothing but links to the one program, so that no other `tail` is used by mistake.
    for (program, shell) in [("busybox", "sh"), ("toybox", "bash")] {
        let path = ["/usr/bin", "/bin"].map(|bin| Path::new(bin).join(program)).into_iter().find(|path| path.exists());
        let Some(path) = path else { continue };
        let tools = folder.join(program);
        fs::create_dir_all(&tools).unwrap();
        for tool in ["grep", "tail", "head", "tar", "gzip", "gunzip", "zcat"] {
            symlink(&path, tools.join(tool)).unwrap();
        }
        // Debian's busybox has none.
        let cksum = if program == "busybox" { Path::new("/usr/bin/cksum") } else { &path };
        symlink(cksum, tools.join("cksum")).unwrap();
        let shell = match shell {
            "sh" => words(&[path.to_str().unwrap(), "sh", "-c"]),
            // The shell of toybox is unfinished.
            other => words(&[&format!("/bin/{other}"), "-c"]),
        };
        found.push((program, shell, tools));
    }
    found.retain(|(name, words, _)| {
        let is_installed = Command::new(&words[0]).arg("--help").output().is_ok();
        if !is_installed {
            let _ = writeln!(std::io::stderr(), "skipped: {name} is not installed");
        }
        is_installed
    });
    found
}

/// Returns the two lines of shell in an index, the check and the restore, without what makes them comments.
fn lines_of(index: &Path) -> [String; 2] {
    let text = fs::read_to_string(index).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("# X=")).map(|line| format!("X={line}"));
    [lines.next().unwrap(), lines.next().unwrap()]
}

fn run_line((_, words, path): &(&str, Vec<String>, PathBuf), folder: &Path, line: &str) -> Output {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(line).current_dir(folder).env_clear().env("PATH", path);
    command.output().unwrap()
}

#[test]
fn the_lines_of_shell_check_and_restore_in_every_shell_and_under_every_name() {
    let mut random = Random::new(4);
    let tools = tempfile::tempdir().unwrap();
    let shells = shells(tools.path());
    for (turn, compression) in (0..).zip(FORMATS) {
        let pair = Pair::new(compression, "docs", &mut random);
        for schedule in NAMES.into_iter().skip(turn).step_by(FORMATS.len()) {
            let archive = name(schedule, compression.extension());
            let folder = tempfile::tempdir().unwrap();
            let index = split(&pair.whole, folder.path(), &archive, 60, &mut random);
            let expected = Index::open(&index).unwrap().cksum().to_string();
            let [check, restore] = lines_of(&index);
            for shell in &shells {
                let what = format!("{} {compression} {schedule}", shell.0);
                let checked = run_line(shell, folder.path(), &check);
                assert_eq!(String::from_utf8_lossy(&checked.stdout).trim_end(), expected, "{what}: {checked:?}");
                // busybox and toybox have no zstd, and this toybox cannot extract what another tar can.
                if shell.0 == "toybox" || shell.0 == "busybox" && restore.contains("--zstd") {
                    continue;
                }
                let restored = run_line(shell, folder.path(), &restore);
                assert!(restored.status.success(), "{what}: {restored:?}");
                let trees = [pair.folder.path().join("source"), folder.path().join("source")];
                let same = Command::new("diff").arg("-r").arg("--no-dereference").args(&trees).status().unwrap();
                assert!(same.success(), "{what}");
                fs::remove_dir_all(&trees[1]).unwrap();
            }
            assert!(!folder.path().join("PWNED").exists(), "{schedule}");
        }
    }
}

#[test]
fn the_check_line_fails_if_a_segment_is_damaged() {
    let mut random = Random::new(5);
    let tools = tempfile::tempdir().unwrap();
    let shells = shells(tools.path());
    for compression in FORMATS {
        for damage in [Damage::Missing, Damage::Short, Damage::Zeroed, Damage::Swapped] {
            let pair = Pair::new(compression, "Büro 2", &mut random);
            damage.apply(&pair.segments);
            let expected = Index::open(&pair.index).unwrap().cksum().to_string();
            let [check, _] = lines_of(&pair.index);
            for shell in &shells {
                let checked = run_line(shell, pair.index.parent().unwrap(), &check);
                let printed = String::from_utf8_lossy(&checked.stdout).into_owned();
                assert!(printed.split(' ').count() >= 2, "{}: {checked:?}", shell.0);
                assert_ne!(printed.trim_end(), expected, "{} {compression} {damage:?}", shell.0);
            }
        }
    }
}

#[test]
fn the_names_of_the_test_are_those_of_schedules() {
    for schedule in NAMES {
        let archive = name(schedule, "tar.gz");
        assert_eq!(ArchiveName::of_file(&archive.file_name()), Some(archive), "{schedule}");
    }
}
