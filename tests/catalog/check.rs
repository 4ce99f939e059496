//! Compares what the store reads with the model.

use std::collections::BTreeSet;

use backup_manager::chunk::Chunk;
use backup_manager::member::{CatalogMember, MemberPath};
use rusqlite::OptionalExtension;

use crate::model::{ModelChunk, World};
use crate::stored_files;

impl World {
    /// Compares every function that reads the catalog with the model.
    pub fn check(&mut self) {
        let runs: Vec<i64> = self.store.archives(None).unwrap().iter().map(|archive| archive.run).collect();
        assert_eq!(runs, self.archives.keys().copied().collect::<Vec<_>>());
        for (run, model) in &self.archives {
            if self.random.below(3) > 0 {
                continue;
            }
            let chunks: Vec<Chunk> = self.store.archive_chunks(*run).map(Result::unwrap).collect();
            assert_eq!(chunks, model.iter().map(|chunk| chunk.chunk).collect::<Vec<_>>());
            let page = 1 + self.random.below(300) as u32;
            let mut next = Some(0);
            let mut found = Vec::new();
            while let Some(from) = next {
                let (members, after) = self.store.members(*run, from, page).unwrap();
                found.extend(members.into_iter().map(|m| (m.sequence, m.offset, m.entry)));
                next = after;
            }
            assert_eq!(found, located(model));
            self.check_chunk(*run, model, self.made % model.len() as u64);
        }
        self.check_path();
        self.check_stored_files();
    }

    fn check_stored_files(&self) {
        let connection = rusqlite::Connection::open(self.store.path()).unwrap();
        let is_settled: bool = connection
            .query_row("SELECT NOT EXISTS (SELECT 1 FROM archive WHERE state = 'writing')", [], |row| row.get(0))
            .unwrap();
        let settled = stored_files::NEVER_SETTLED.iter().filter(|_| is_settled);
        for (what, query) in stored_files::NEVER.iter().chain(settled) {
            let found = connection.query_row(query, [], |row| row.get::<_, i64>(0)).optional().unwrap();
            assert!(found.is_none(), "{what}: {found:?}");
        }
    }

    fn check_chunk(&self, run: i64, model: &[ModelChunk], sequence: u64) {
        let at = sequence as usize;
        assert_eq!(self.store.chunk_members(run, sequence).unwrap(), model[at].members);
        let before = model[..at].iter().rev().find_map(|chunk| chunk.members.last());
        let expected = before.map(|entry| entry.member.path.as_bytes().to_vec());
        assert_eq!(self.store.member_before(run, sequence).unwrap(), expected);
        let unit = model[at..].iter().enumerate().take_while(|(n, chunk)| *n == 0 || chunk.members.is_empty());
        let expected: Vec<Chunk> = unit.map(|(_, chunk)| chunk.chunk).collect();
        assert_eq!(self.store.chunks_of_unit(run, sequence).unwrap(), expected);
    }

    fn check_path(&mut self) {
        let (folder, file) = (self.random.below(5), self.random.below(40));
        let path = MemberPath::parse(format!("source/{folder}/{file}").as_bytes()).unwrap();
        let above = path.parent().unwrap();
        let mut occurrences = Vec::new();
        let mut all = BTreeSet::new();
        for (run, model) in self.archives.iter().rev() {
            let mut holding = BTreeSet::new();
            let mut below = BTreeSet::new();
            for chunk in model {
                for entry in &chunk.members {
                    all.insert(entry.member.path.as_bytes().to_vec());
                    if entry.member.path == path {
                        holding.insert(chunk.chunk.sequence);
                        occurrences.push((*run, entry.inode));
                    }
                    if entry.member.path.parent().as_ref() == Some(&above) {
                        below.insert(chunk.chunk.sequence);
                    }
                }
            }
            let found = self.store.chunks_with_path(*run, &path, false).unwrap();
            assert_eq!(found, holding.into_iter().collect::<Vec<_>>());
            let found = self.store.chunks_with_path(*run, &above, true).unwrap();
            assert_eq!(found, below.into_iter().collect::<Vec<_>>());
        }
        let found = self.store.path_occurrences(&path, None).unwrap();
        let mut found: Vec<_> = found.iter().map(|occurrence| (occurrence.run, occurrence.entry.inode)).collect();
        found.sort_unstable();
        occurrences.sort_unstable();
        assert_eq!(found, occurrences);
        let mut paths = BTreeSet::new();
        self.store.paths(&mut |path| assert!(paths.insert(path.to_vec()))).unwrap();
        assert!(all.is_subset(&paths), "a path is missing");
    }
}

/// Returns the members of an archive with their places.
fn located(model: &[ModelChunk]) -> Vec<(u64, u64, CatalogMember)> {
    let mut found = Vec::new();
    for chunk in model {
        let mut offset = 0;
        for entry in &chunk.members {
            found.push((chunk.chunk.sequence, offset, entry.clone()));
            offset += entry.entry_bytes;
        }
    }
    found
}
