//! Cuts an archive into chunks by the paths and sizes of its members, so that one new file moves one cut, not all.

use crate::member::MemberPath;
use crate::schedule::{Compression, Layout};

/// The largest content of a chunk in bytes to which another member is added. Pieces of large files are cut at multiples
/// of it.
pub const MAX_CONTENT_BYTES: u64 = 4 << 20;

/// Decides before which members a chunk ends.
#[derive(Clone, Debug)]
pub struct Cutter {
    /// Half of the intended content of a chunk in bytes.
    half_target: u64,
    /// Bytes in the current chunk.
    held: u64,
}

impl Cutter {
    /// Returns a cutter for archives of this compression and layout. Small chunks mean less to encode again next time,
    /// large ones compress better; in segments, what is encoded again is also stored again. Where nothing is compressed
    /// there, each member is a chunk, but one of less than 2 KiB is joined with the next: what is stored again is what
    /// changed.
    pub fn new(compression: Compression, layout: Layout) -> Self {
        let target: u64 = match (compression, layout) {
            (Compression::None, Layout::Segmented) => 4 << 10,
            (Compression::Gzip(_) | Compression::Zstd(_), Layout::Segmented) => 96 << 10,
            (Compression::None, Layout::Whole) => 128 << 10,
            (Compression::Gzip(_), Layout::Whole) => 512 << 10,
            (Compression::Zstd(_), Layout::Whole) => 3 << 19,
        };
        Cutter { half_target: target / 2, held: 0 }
    }

    /// Adds a member of `entry_bytes`. Returns whether the chunk ends before it.
    pub fn cuts_before(&mut self, path: &MemberPath, entry_bytes: u64) -> bool {
        let cut = self.held > 0
            && (self.held.saturating_add(entry_bytes) > MAX_CONTENT_BYTES
                || self.held >= self.half_target && self.is_chosen(path, entry_bytes));
        self.held = if cut { entry_bytes } else { self.held.saturating_add(entry_bytes) };
        cut
    }

    /// Starts a new chunk before the next member.
    pub fn cut(&mut self) {
        self.held = 0;
    }

    /// Returns whether the chunk ends before a member by the hash of its path. The probability grows with its size: on
    /// average one of the members that make up half a target is chosen.
    fn is_chosen(&self, path: &MemberPath, entry_bytes: u64) -> bool {
        if entry_bytes >= self.half_target {
            return true;
        }
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(path.as_bytes()).as_bytes()[..8]);
        let limit = (u128::from(entry_bytes) << 64) / u128::from(self.half_target);
        u128::from(u64::from_le_bytes(first)) < limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(paths: &[String], bytes: u64) -> Vec<String> {
        let mut cutter = Cutter::new(Compression::None, Layout::Whole);
        let chosen = |path: &&String| cutter.cuts_before(&MemberPath::parse(path.as_bytes()).unwrap(), bytes);
        paths.iter().filter(chosen).cloned().collect()
    }

    #[test]
    fn one_new_file_moves_few_cuts_and_chunks_are_near_the_target() {
        let mut paths: Vec<_> = (0..10_000).map(|i| format!("root/{i:05}")).collect();
        let before = cuts(&paths, 4096);
        let mean = 10_000 * 4096 / (before.len() + 1) as u64;
        assert!((96 << 10..160 << 10).contains(&mean), "{mean}");
        paths.insert(5000, "root/04999a".to_owned());
        let after = cuts(&paths, 4096);
        let moved = before.iter().filter(|cut| !after.contains(cut)).count();
        assert!(moved <= 3, "{moved}");
    }

    #[test]
    fn a_chunk_never_grows_beyond_the_limit_by_another_member() {
        let mut cutter = Cutter { half_target: u64::MAX, held: 0 };
        let path = MemberPath::parse(b"p").unwrap();
        assert!(!cutter.cuts_before(&path, MAX_CONTENT_BYTES - 1));
        assert!(!cutter.cuts_before(&path, 1));
        assert!(cutter.cuts_before(&path, 1));
        assert!(cutter.cuts_before(&path, u64::MAX));
        cutter.cut();
        assert!(!cutter.cuts_before(&path, u64::MAX), "the first member of a chunk never ends it");
    }
}
