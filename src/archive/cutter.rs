//! Where an archive is cut into chunks: by the members' own paths and sizes, so that one new file moves one cut, not
//! all.

use crate::member::MemberPath;
use crate::schedule::Compression;

/// No chunk grows beyond this by another member, and pieces of large files are cut at its multiples.
pub const LARGEST_CONTENT: u64 = 4 << 20;

/// Decides before which members a chunk ends.
#[derive(Clone, Debug)]
pub struct Cutter {
    half_target: u64,
    held: u64,
}

impl Cutter {
    /// Makes a cutter for archives of this compression: smaller chunks re-encode less next time, larger ones pack
    /// better.
    pub fn new(compression: Compression) -> Self {
        let target: u64 = match compression {
            Compression::None => 128 << 10,
            Compression::Gzip(_) => 512 << 10,
            Compression::Zstd(_) => 3 << 19,
        };
        Cutter { half_target: target / 2, held: 0 }
    }

    /// Counts a member of `entry_bytes` and returns whether the chunk ends before it.
    pub fn cuts_before(&mut self, path: &MemberPath, entry_bytes: u64) -> bool {
        let cut = self.held > 0
            && (self.held.saturating_add(entry_bytes) > LARGEST_CONTENT
                || self.held >= self.half_target && self.path_is_chosen(path, entry_bytes));
        self.held = if cut { entry_bytes } else { self.held.saturating_add(entry_bytes) };
        cut
    }

    /// Starts a new chunk whatever comes.
    pub fn cut(&mut self) {
        self.held = 0;
    }

    /// The larger a member, the likelier: on average one of the members that make up half a target is chosen.
    fn path_is_chosen(&self, path: &MemberPath, entry_bytes: u64) -> bool {
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
        let mut cutter = Cutter::new(Compression::None);
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
        assert!(!cutter.cuts_before(&path, LARGEST_CONTENT - 1));
        assert!(!cutter.cuts_before(&path, 1));
        assert!(cutter.cuts_before(&path, 1));
        assert!(cutter.cuts_before(&path, u64::MAX));
        cutter.cut();
        assert!(!cutter.cuts_before(&path, u64::MAX), "the first of a chunk never ends it");
    }
}
