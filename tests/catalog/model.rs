//! Archives as lists of chunks, and the operations of the store that must agree with them.

use std::collections::BTreeMap;

use backup_manager::chunk::{BaseChunk, CatalogChunk, Chunk, ChunkRecord, MemberRecord};
use backup_manager::clock::Timestamp;
use backup_manager::member::{CatalogMember, FileTime, Member, MemberKind, MemberPath, Xattrs};
use backup_manager::schedule::{Cadence, Schedule, ScheduleName};
use backup_manager::store::{
    Claim, ClaimNow, Completed, FoundArchive, Requeue, Role, RunRequest, RunState, Sealed, Store, StoredBytes,
    Watermark, WorkerRow,
};
use chrono_tz::Tz;
use tempfile::TempDir;
use uuid::Uuid;

use crate::random::Random;
use crate::support::{NOW, found, open, query, sealed};

/// A chunk of an archive in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelChunk {
    pub chunk: Chunk,
    pub members: Vec<CatalogMember>,
}

/// A store, and what its archives must hold.
pub struct World {
    pub store: Store,
    _dir: TempDir,
    pub random: Random,
    pub schedules: [i64; 2],
    pub worker: WorkerRow,
    pub archives: BTreeMap<i64, Vec<ModelChunk>>,
    /// Every chunk and member made is different.
    pub made: u64,
}

/// A run that is writing.
struct Writing {
    claim: Claim,
    base: Option<(i64, Vec<BaseChunk>)>,
    records: Vec<CatalogChunk>,
    model: Vec<ModelChunk>,
}

impl World {
    pub fn new(random: Random) -> World {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let store = open(&dir);
        let schedules = ["one", "two"].map(|name| {
            let cadence = Cadence::parse_daily("02:00").unwrap();
            let schedule = Schedule::new(ScheduleName::parse(name).unwrap(), b"source".to_vec(), cadence);
            let watermark = Watermark::starting(&schedule, Tz::UTC, NOW);
            store.create_schedules(&[(schedule, watermark)], NOW).unwrap()[0].0
        });
        let uuid = Uuid::from_u128(7);
        let worker =
            WorkerRow { uuid, role: Role::Command, pid: 7, host: String::new(), started_at: NOW, stop_requested: None };
        World { store, _dir: dir, random, schedules, worker, archives: BTreeMap::new(), made: 0 }
    }

    /// Does one thing at random.
    pub fn step(&mut self) {
        match self.random.below(10) {
            0..5 => self.back_up_both(),
            5 => self.rescan(),
            6 => self.link(),
            _ => self.delete_one(),
        }
    }

    /// Writes archives of both schedules at once, so that their rows lie between each other.
    fn back_up_both(&mut self) {
        let mut writing: Vec<Writing> = [0, 1].map(|at| self.begin(at)).into();
        for run in &mut writing {
            self.plan(run);
        }
        let mut rest: Vec<Vec<CatalogChunk>> = writing.iter().map(|run| run.records.clone()).collect();
        while rest.iter().any(|records| !records.is_empty()) {
            let at = self.random.below(2) as usize;
            let count = (self.random.below(12) as usize).min(rest[at].len());
            let batch: Vec<_> = rest[at].drain(..count).collect();
            self.store.add_chunks(&writing[at].claim, &batch).unwrap();
            if let Some((base, _)) = &writing[at].base {
                assert_eq!(self.store.mark_deleting(&[*base], &[]).unwrap(), 0, "the base of a running run");
            }
        }
        for run in writing {
            self.end(run);
        }
    }

    fn begin(&mut self, schedule: usize) -> Writing {
        let with_base = self.random.below(4) > 0;
        self.begin_with_base(schedule, with_base)
    }

    pub fn claim(&self, schedule: usize) -> Claim {
        let request = RunRequest { verify: true, reread: false };
        let claimed = self.store.claim_now(self.schedules[schedule], request, &self.worker, NOW).unwrap().0;
        let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
        claim
    }

    fn begin_with_base(&mut self, schedule: usize, with_base: bool) -> Writing {
        let claim = self.claim(schedule);
        let base = self.store.find_base(&query(claim.schedule())).unwrap().filter(|_| with_base).map(|base| {
            assert!(self.store.hold_base(&claim, base.run).unwrap());
            let mut chunks = Vec::new();
            loop {
                let page = 1 + self.random.below(if chunks.len() < 1_000 { 5 } else { 500 }) as u32;
                let found = self.store.base_chunks(base.run, chunks.len() as u64, page).unwrap();
                if found.is_empty() {
                    break;
                }
                chunks.extend(found);
            }
            assert_eq!(chunks.len() as u64, base.chunks);
            (base.run, chunks)
        });
        Writing { claim, base, records: Vec::new(), model: Vec::new() }
    }

    /// Plans the chunks of a run: those of its base, some of them changed or left out, and others between them.
    fn plan(&mut self, run: &mut Writing) {
        let base = run.base.as_ref().map_or(Vec::new(), |(_, chunks)| chunks.clone());
        for chunk in base {
            match self.random.below(8) {
                0 => {}
                1 => {
                    let mut members = Vec::new();
                    for known in &chunk.members {
                        match self.random.below(4) {
                            0 => members.push(MemberRecord::New(self.member())),
                            1 => {}
                            _ => members.push(MemberRecord::Known(known.id)),
                        }
                    }
                    self.put_new(run, members, &chunk);
                }
                choice => {
                    let record = ChunkRecord::Reused { id: chunk.id, reread: choice == 2 };
                    let members = chunk.members.iter().map(|member| member.entry.clone()).collect();
                    put(run, chunk.chunk, record, members);
                }
            }
            if self.random.below(8) == 0 {
                self.put_new_chunk(run);
            }
        }
        for _ in 0..self.random.below(if run.base.is_some() { 3 } else { 300 }) {
            self.put_new_chunk(run);
        }
        if self.random.below(3) == 0 && run.records.len() > 2 {
            // The chunk with the header of a large file comes later than those after it.
            let at = self.random.below(run.records.len() as u64 - 1) as usize;
            let late = run.records.remove(at);
            let to = at + 1 + self.random.below((run.records.len() - at) as u64) as usize;
            run.records.insert(to, late);
        }
    }

    fn put_new_chunk(&mut self, run: &mut Writing) {
        let count = match self.random.below(12) {
            0 if self.random.below(10) == 0 => 300,
            1..4 => 0,
            _ => self.random.below(6),
        };
        let members = (0..count).map(|_| MemberRecord::New(self.member())).collect();
        let none = BaseChunk { id: 0, chunk: self.chunk(), place: None, read_started: NOW, members: Vec::new() };
        self.put_new(run, members, &none);
    }

    fn put_new(&mut self, run: &mut Writing, members: Vec<MemberRecord>, base: &BaseChunk) {
        let entries = members.iter().map(|member| match member {
            MemberRecord::New(member) => member.clone(),
            MemberRecord::Known(id) => base.members.iter().find(|known| known.id == *id).unwrap().entry.clone(),
        });
        let entries = entries.collect();
        let chunk = self.chunk();
        put(run, chunk, ChunkRecord::New { members }, entries);
    }

    /// Ends a run: with its archive, or without it in one of two ways.
    fn end(&mut self, run: Writing) {
        let Writing { claim, model, .. } = run;
        if model.is_empty() || self.random.below(5) == 0 {
            self.store.discard_chunks(&claim).unwrap();
            if self.random.below(2) == 0 {
                self.store.end_without_archive(claim, RunState::Failed, "", NOW).unwrap();
            } else {
                self.store.requeue(claim, Requeue::Refund, "", NOW).unwrap();
            }
            return;
        }
        self.store.seal(&claim, &sealed_with(&model)).unwrap();
        self.complete(claim, Some(NOW), model);
    }

    fn complete(&mut self, claim: Claim, verified_at: Option<Timestamp>, model: Vec<ModelChunk>) {
        let run = claim.run();
        let completed = Completed { verified_at, ..Completed::default() };
        assert_eq!(self.store.complete(claim, &completed, NOW).unwrap(), RunState::Succeeded);
        self.archives.insert(run, model);
    }

    /// Makes an archive that is a hard link of its base, or fails to.
    fn link(&mut self) {
        let run = self.begin(0);
        match run.base {
            Some((base, _)) if self.random.below(4) > 0 => {
                self.store.seal_as_link(&run.claim, &sealed()).unwrap();
                let model = self.archives[&base].clone();
                self.complete(run.claim, None, model);
            }
            Some(_) => {
                self.store.seal_as_link(&run.claim, &sealed()).unwrap();
                self.store.discard_chunks(&run.claim).unwrap();
                self.store.end_without_archive(run.claim, RunState::Failed, "", NOW).unwrap();
            }
            None => self.store.end_without_archive(run.claim, RunState::Failed, "", NOW).unwrap(),
        }
    }

    /// Adds an archive as a rescan does, or a part of it, which the next one discards.
    fn rescan(&mut self) {
        self.store.discard_partly_added_archives().unwrap();
        self.made += 1;
        let mut model: Vec<ModelChunk> = Vec::new();
        for sequence in 0..self.random.below(20) + 1 {
            let offset = model.last().map_or(0, |last| last.chunk.end());
            let chunk = Chunk { sequence, offset, ..self.chunk() };
            let members = (0..self.random.below(4)).map(|_| self.member()).collect();
            model.push(ModelChunk { chunk, members });
        }
        let found = FoundArchive {
            size: sealed_with(&model).size,
            ..found(self.schedules[0], 0, format!("one/found-{}.tar", self.made), self.made)
        };
        let run = self.store.begin_adding_archive(&found, NOW).unwrap();
        for ModelChunk { chunk, members } in &model {
            let record = ChunkRecord::New { members: members.iter().cloned().map(MemberRecord::New).collect() };
            let chunk = CatalogChunk { chunk: *chunk, place: None, read_started: NOW, record };
            self.store.add_chunks_of_archive(run, &[chunk]).unwrap();
        }
        if self.random.below(3) > 0 {
            self.store.finish_adding_archive(run, None, NOW).unwrap();
            self.archives.insert(run, model);
        }
    }

    /// Adds an archive of chunks with very many members.
    pub fn add_large_archive(&mut self, counts: [usize; 2]) {
        let mut run = self.begin(0);
        for count in counts {
            let members = (0..count).map(|_| MemberRecord::New(self.member())).collect();
            let none = BaseChunk { id: 0, chunk: self.chunk(), place: None, read_started: NOW, members: Vec::new() };
            self.put_new(&mut run, members, &none);
        }
        self.finish(run);
    }

    /// Adds two archives with 3,000 chunks of 7 members. The second has every other chunk of the first and every
    /// other member of the rest, so that no ids follow each other.
    pub fn add_scattered_archives(&mut self) {
        let mut run = self.begin(0);
        for _ in 0..3_000 {
            let members = (0..7).map(|_| MemberRecord::New(self.member())).collect();
            let none = BaseChunk { id: 0, chunk: self.chunk(), place: None, read_started: NOW, members: Vec::new() };
            self.put_new(&mut run, members, &none);
        }
        self.finish(run);
        let mut run = self.begin_with_base(0, true);
        let base = run.base.as_ref().map_or(Vec::new(), |(_, chunks)| chunks.clone());
        for (at, chunk) in base.into_iter().enumerate() {
            if at % 2 == 0 {
                let record = ChunkRecord::Reused { id: chunk.id, reread: true };
                let members = chunk.members.iter().map(|member| member.entry.clone()).collect();
                put(&mut run, chunk.chunk, record, members);
            } else {
                let known = [0, 2, 4, 6].map(|at| MemberRecord::Known(chunk.members[at].id));
                self.put_new(&mut run, known.into(), &chunk);
            }
        }
        self.finish(run);
    }

    fn finish(&mut self, run: Writing) {
        self.store.add_chunks(&run.claim, &run.records).unwrap();
        self.store.seal(&run.claim, &sealed_with(&run.model)).unwrap();
        self.complete(run.claim, Some(NOW), run.model);
    }

    fn delete_one(&mut self) {
        let runs: Vec<i64> = self.archives.keys().copied().collect();
        if runs.is_empty() {
            return;
        }
        let run = runs[self.random.below(runs.len() as u64) as usize];
        self.delete(run);
    }

    fn delete(&mut self, run: i64) {
        assert_eq!(self.store.mark_deleting(&[run], &[]).unwrap(), 1);
        self.store.remove_deleted(run).unwrap();
        self.archives.remove(&run);
    }

    pub fn delete_all(&mut self) {
        self.store.discard_partly_added_archives().unwrap();
        while let Some(run) = self.archives.keys().next().copied() {
            self.delete(run);
        }
    }

    fn chunk(&mut self) -> Chunk {
        self.made += 1;
        let digest = *blake3::hash(&self.made.to_le_bytes()).as_bytes();
        let stored_length = 1 + self.random.below(1_000);
        let content_digest = Some(digest);
        Chunk { sequence: 0, offset: 0, stored_length, stored_digest: digest, content_length: 1, content_digest }
    }

    fn member(&mut self) -> CatalogMember {
        self.made += 1;
        let kinds = [MemberKind::File, MemberKind::Folder, MemberKind::Symlink, MemberKind::BlockDevice];
        let path = format!("source/{}/{}", self.random.below(5), self.random.below(40));
        let member = Member {
            path: MemberPath::parse(path.as_bytes()).unwrap(),
            kind: kinds[self.random.below(4) as usize],
            size: self.made,
            mode: 0o644,
            uid: 1,
            gid: 2,
            user_name: Box::from(&b"user"[..]),
            group_name: Box::default(),
            modified: FileTime { seconds: -5, nanoseconds: 6 },
            link_target: None,
            device_number: Some((8, 1)),
            xattrs: Xattrs::new(),
        };
        let entry_bytes = 512 * (1 + self.random.below(4));
        let (content_digest, xattr_digest) = (Some([1; 32]), None);
        let changed = FileTime { seconds: 7, nanoseconds: 8 };
        let is_reusable = self.random.below(2) == 0;
        CatalogMember {
            member,
            entry_bytes,
            device: u64::MAX,
            inode: self.made,
            changed,
            content_digest,
            xattr_digest,
            is_reusable,
        }
    }
}

/// Returns what is sealed of an archive with a trailer.
fn sealed_with(model: &[ModelChunk]) -> Sealed {
    let (size, sealed) = (model.last().map_or(0, |last| last.chunk.end()) + 7, sealed());
    Sealed { size, file: StoredBytes { size, ..sealed.file }, ..sealed }
}

fn put(run: &mut Writing, chunk: Chunk, record: ChunkRecord, members: Vec<CatalogMember>) {
    let offset = run.model.last().map_or(0, |last| last.chunk.end());
    let chunk = Chunk { sequence: run.model.len() as u64, offset, ..chunk };
    run.records.push(CatalogChunk { chunk, place: None, read_started: NOW, record });
    run.model.push(ModelChunk { chunk, members });
}
