//! A source, its archives, each made with the one before as its base, and a catalog of them in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backup_manager::archive::buffer::Buffer;
use backup_manager::archive::check;
use backup_manager::archive::codec::Decoder;
use backup_manager::archive::padding::Padding;
use backup_manager::archive::reader::ArchiveReader;
use backup_manager::backup::pipeline::{self, Base, PipelineOptions, ReadReason, Rules, WrittenArchive};
use backup_manager::cancel::CancelToken;
use backup_manager::chunk::{BaseChunk, BaseMember, CatalogChunk, Chunk, ChunkRecord, MemberRecord};
use backup_manager::clock::{Clock, ManualClock, Timestamp};
use backup_manager::durable::PendingFile;
use backup_manager::error::Result;
use backup_manager::member::{CatalogMember, FileTime, MemberKind, MemberPath};
use backup_manager::schedule::{Compression, Excludes, Layout};

use crate::support::archive::Silent;

/// The rows, as a database would hold them.
#[derive(Default)]
pub struct Catalog {
    chunks: BTreeMap<i64, ChunkRow>,
    members: BTreeMap<i64, CatalogMember>,
    next: i64,
}

struct ChunkRow {
    chunk: Chunk,
    read_started: Timestamp,
    members: Vec<i64>,
}

impl Catalog {
    fn add(&mut self, record: &CatalogChunk) -> i64 {
        let members = match &record.record {
            ChunkRecord::Reused { id, reread } => {
                if *reread {
                    self.chunks.get_mut(id).unwrap().read_started = record.read_started;
                }
                return *id;
            }
            ChunkRecord::New { members } => members.iter().map(|member| self.member(member)).collect(),
        };
        self.next += 1;
        let row = ChunkRow { chunk: record.chunk, read_started: record.read_started, members };
        self.chunks.insert(self.next, row);
        self.next
    }

    fn member(&mut self, record: &MemberRecord) -> i64 {
        match record {
            MemberRecord::Known(id) => *id,
            MemberRecord::New(member) => {
                self.next += 1;
                let mut member = member.clone();
                member.member.xattrs.clear();
                self.members.insert(self.next, member);
                self.next
            }
        }
    }

    fn base_chunk(&self, place: Chunk, id: i64) -> BaseChunk {
        let row = &self.chunks[&id];
        let member = |&id: &i64| BaseMember { id, entry: self.members[&id].clone() };
        let chunk = Chunk { sequence: place.sequence, offset: place.offset, ..row.chunk };
        BaseChunk {
            id,
            chunk,
            place: None,
            read_started: row.read_started,
            members: row.members.iter().map(member).collect(),
        }
    }
}

/// An archive, and the rows of its chunks.
#[derive(Clone)]
pub struct Made {
    pub path: PathBuf,
    pub written: WrittenArchive,
    pub chunks: Vec<(Chunk, i64)>,
    /// How many chunks were passed to the catalog.
    pub recorded: usize,
    pub started: Timestamp,
}

impl Made {
    pub fn reused(&self) -> u64 {
        self.written.reuse.as_ref().map_or(0, |counts| counts.reused)
    }

    pub fn read(&self, reason: ReadReason) -> u64 {
        self.written.reuse.as_ref().and_then(|counts| counts.read.get(&reason).copied()).unwrap_or(0)
    }

    /// Returns the tar stream without its first chunk, the global header.
    pub fn stream(&self) -> Vec<u8> {
        let reader = ArchiveReader::open(&self.path).unwrap();
        let mut decoder = Decoder::new(reader.codec()).unwrap();
        let (mut stored, mut content) = (Buffer::new(), Buffer::new());
        for (chunk, _) in &self.chunks[1..] {
            stored.clear();
            reader.read_stored(chunk.offset, chunk.stored_length, &mut stored).unwrap();
            decoder.decode(&stored, chunk.content_length, &mut content).unwrap();
        }
        content.to_vec()
    }

    /// Reads the archive back and compares it with its rows.
    pub fn verify(&self) {
        let mut expected = self.chunks.iter().map(|(chunk, _)| Ok(*chunk));
        let (digest, size) = (&self.written.digest, self.written.size);
        check::check_file(&self.path, &mut expected, digest, size, 2, &CancelToken::new()).unwrap();
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub source: PathBuf,
    pub compression: Compression,
    pub padding: Padding,
    pub catalog: Mutex<Catalog>,
    pub archives: Vec<Made>,
    pub clock: ManualClock,
    /// So much the clock is set back when the first chunks of the base were looked up.
    pub sets_clock_back: Duration,
    pub rules: fn(&mut Rules),
    /// Archives may be links of their base.
    pub links: bool,
    pub is_base_damaged: AtomicBool,
}

impl World {
    pub fn new(compression: Compression) -> World {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::create_dir(&source).unwrap();
        World::of(dir, source, compression)
    }

    /// Ten seconds after all that was made before: nothing of it is recent.
    pub fn of(dir: tempfile::TempDir, source: PathBuf, compression: Compression) -> World {
        let (catalog, rules) = (Mutex::default(), (|_| {}) as fn(&mut Rules));
        let mut world = World {
            dir,
            source,
            compression,
            padding: Padding::None,
            catalog,
            archives: Vec::new(),
            clock: ManualClock::at(now()),
            sets_clock_back: Duration::ZERO,
            rules,
            links: true,
            is_base_damaged: AtomicBool::new(false),
        };
        world.later();
        world
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.source.join(below)
    }

    /// Lets ten seconds pass since the last change, as far as the program knows.
    pub fn later(&mut self) {
        self.clock = ManualClock::at(now().plus(Duration::from_secs(10)));
    }

    /// Makes an archive with the last one as its base.
    pub fn run(&mut self) -> Made {
        let made = self.try_run().unwrap();
        made.verify();
        self.archives.push(made.clone());
        made
    }

    pub fn try_run(&self) -> Result<Made> {
        self.make(self.archives.last(), self.archives.len())
    }

    /// Makes an archive that reads everything, and forgets it.
    pub fn fresh(&self) -> (Made, Vec<CatalogMember>) {
        let folder = self.dir.path().parent().unwrap();
        let mut other = World::of(tempfile::tempdir_in(folder).unwrap(), self.source.clone(), self.compression);
        other.padding = self.padding;
        let made = other.make(None, 0).unwrap();
        let rows = other.rows(&made);
        // Its folder is removed with `other`.
        let kept = self.dir.path().join("fresh");
        std::fs::rename(&made.path, &kept).unwrap();
        (Made { path: kept, ..made }, rows)
    }

    fn make(&self, base: Option<&Made>, number: usize) -> Result<Made> {
        let path = self.dir.path().join(format!("archive-{number}.{}", self.compression.extension()));
        let name = MemberPath::parse(b"source").unwrap();
        let (excludes, cancel, started) = (Excludes::default(), CancelToken::new(), self.clock.now());
        let link_name = self.dir.path().join("link");
        let reader = base.map(|base| ArchiveReader::open(&base.path).unwrap());
        let pages = |from: u64, limit: u32| {
            self.clock.set(started.minus(self.sets_clock_back));
            Ok(self.page(base.unwrap(), from, limit))
        };
        let mark = |ids: &[i64]| {
            let mut catalog = self.catalog.lock().unwrap();
            ids.iter().for_each(|id| catalog.chunks.get_mut(id).unwrap().read_started = started);
            Ok(())
        };
        let base = base.zip(reader.as_ref()).map(|(base, reader)| self.base(base, reader, &pages, &mark, &link_name));
        let options = PipelineOptions {
            source: &self.source,
            root_name: &name,
            excludes: &excludes,
            patterns: &[],
            own_paths: &[],
            compression: self.compression,
            padding: self.padding,
            layout: Layout::Whole,
            threads: 3,
            comment: &format!("{{\"number\":{number}}}"),
            base: base.as_ref(),
            run: number as i64,
            clock: &self.clock,
            observer: &Silent,
            cancel: &cancel,
        };
        let mut file = PendingFile::create(&path, 0o400)?;
        let mut records = Vec::new();
        let written = pipeline::write(&options, &mut file, &mut |batch| {
            records.extend_from_slice(batch);
            Ok(())
        })?;
        file.seal()?.persist(&path, false)?;
        let chunks = self.record(&records, &written);
        Ok(Made { path, written, chunks, recorded: records.len(), started })
    }

    fn record(&self, records: &[CatalogChunk], written: &WrittenArchive) -> Vec<(Chunk, i64)> {
        let mut catalog = self.catalog.lock().unwrap();
        let mut chunks: Vec<_> = records.iter().map(|record| (record.chunk, catalog.add(record))).collect();
        if written.is_link {
            assert!(chunks.is_empty(), "a link has the rows of its base");
            chunks = self.archives.last().unwrap().chunks.clone();
        }
        chunks.sort_by_key(|(chunk, _)| chunk.sequence);
        assert!(chunks.iter().map(|(chunk, _)| chunk.sequence).eq(0..written.chunks), "every chunk is reported once");
        chunks
    }

    fn base<'a>(
        &'a self,
        made: &'a Made,
        reader: &'a ArchiveReader,
        pages: &'a (dyn Fn(u64, u32) -> Result<Vec<BaseChunk>> + Sync),
        mark_reread: &'a (dyn Fn(&[i64]) -> Result<()> + Sync),
        link_name: &'a Path,
    ) -> Base<'a> {
        let mut rules = Rules {
            ignores_inode: false,
            ignores_ctime: false,
            trusts_times: false,
            is_same_boot: true,
            base_started: made.started,
            now: self.clock.now(),
            rereads_all: false,
        };
        (self.rules)(&mut rules);
        let trailer = reader.trailer().unwrap().unwrap();
        Base {
            run: trailer.facts().run,
            reader,
            chunks: made.written.chunks,
            size: made.written.size,
            digest: made.written.digest,
            rules,
            pages,
            mark_reread,
            facts: self.links.then(|| trailer.facts().clone()),
            link_name,
            is_damaged: &self.is_base_damaged,
        }
    }

    fn page(&self, made: &Made, from: u64, limit: u32) -> Vec<BaseChunk> {
        let catalog = self.catalog.lock().unwrap();
        let page = made.chunks.iter().filter(|(chunk, _)| chunk.sequence >= from).take(limit as usize);
        page.map(|(chunk, id)| catalog.base_chunk(*chunk, *id)).collect()
    }

    /// Returns the names below the source of the members of each chunk.
    pub fn names(&self, made: &Made) -> Vec<Vec<String>> {
        let catalog = self.catalog.lock().unwrap();
        let name = |member: BaseMember| member.entry.member.path.to_string().replacen("source/", "", 1);
        let names = |&(chunk, id): &(Chunk, i64)| catalog.base_chunk(chunk, id).members.into_iter().map(name).collect();
        made.chunks.iter().map(names).collect()
    }

    /// Returns when the run began that read the chunk of a member, by its name below the source.
    pub fn read_started(&self, made: &Made, name: &str) -> Timestamp {
        let position = self.names(made).iter().position(|names| names.iter().any(|found| found == name));
        let (_, id) = made.chunks[position.expect("the member")];
        self.catalog.lock().unwrap().chunks[&id].read_started
    }

    /// Returns the rows of the members of an archive, in order.
    pub fn rows(&self, made: &Made) -> Vec<CatalogMember> {
        let catalog = self.catalog.lock().unwrap();
        let chunks = made.chunks.iter().map(|(chunk, id)| catalog.base_chunk(*chunk, *id));
        chunks.flat_map(|chunk| chunk.members).map(|member| member.entry).collect()
    }

    /// Asserts that an archive is what a run that reads everything makes of the source now, and so are its rows.
    pub fn assert_as_fresh(&self, made: &Made, what: &str) {
        let fresh = self.fresh();
        self.assert_same(made, &fresh, what);
        std::fs::remove_file(&fresh.0.path).unwrap();
    }

    /// Asserts that an archive holds the same bytes of tar as another one, which may have another codec, and has the
    /// same rows.
    pub fn assert_same(&self, made: &Made, (other, rows): &(Made, Vec<CatalogMember>), what: &str) {
        let (stream, wanted) = (made.stream(), other.stream());
        if stream != wanted {
            let at = stream.iter().zip(&wanted).position(|(a, b)| a != b);
            panic!("{what}: {} and {} bytes that differ at {at:?}", stream.len(), wanted.len());
        }
        // The ctime of a folder is not part of a backup.
        let comparable = |mut row: CatalogMember| {
            if row.member.kind == MemberKind::Folder {
                row.changed = FileTime::default();
            }
            row
        };
        let found = self.rows(made);
        assert_eq!(found.len(), rows.len(), "{what}");
        for (row, expected) in found.into_iter().zip(rows) {
            assert_eq!(comparable(row), comparable(expected.clone()), "{what}");
        }
    }
}

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap())
}

/// Returns the number of names of a file.
pub fn links(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().unwrap().nlink()
}
