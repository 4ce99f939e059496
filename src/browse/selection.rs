//! Which members of an archive are meant: paths, and globs that let in or leave out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::{Error, Result};
use crate::member::MemberPath;

/// Globs that are tried together. Without `/` a glob matches names, with it whole paths.
#[derive(Clone, Debug)]
pub struct Globs {
    names: GlobSet,
    paths: GlobSet,
    count: usize,
}

impl Globs {
    /// Parses globs. Errors: `Usage` names the one that is none.
    pub fn parse(globs: &[String]) -> Result<Globs> {
        let (mut names, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for text in globs {
            let glob = GlobBuilder::new(text.trim_start_matches('/')).literal_separator(true).build().map_err(|e| {
                Error::usage(format!("\"{text}\" is not a glob"))
                    .because(e)
                    .hint("quote it, like '*.txt' or 'docs/**/*.odt'")
            })?;
            if text.contains('/') {
                paths.add(glob)
            } else {
                names.add(glob)
            };
        }
        let built = |set: GlobSetBuilder| set.build().map_err(|e| Error::usage("too many globs").because(e));
        Ok(Globs { names: built(names)?, paths: built(paths)?, count: globs.len() })
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Says whether one matches this very path.
    pub fn matches(&self, path: &[u8]) -> bool {
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
        let as_path =
            |bytes| std::path::Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes));
        self.names.is_match(as_path(name)) || self.paths.is_match(as_path(path))
    }

    /// Says whether one matches the path or a folder it lies in.
    fn matches_at_or_above(&self, path: &[u8]) -> bool {
        self.matches(path) || folders_above(path).any(|folder| self.matches(folder))
    }
}

/// Returns the folders that a path lies in.
fn folders_above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at])
}

/// Which members are meant.
#[derive(Debug)]
pub struct Selection {
    /// With each path whether it was met.
    paths: HashMap<Box<[u8]>, (MemberPath, AtomicBool)>,
    below: bool,
    include: Globs,
    exclude: Globs,
}

impl Selection {
    /// Means these paths with all that lies below them, or everything where there are none, but for what the globs
    /// say: `include` lets only in what matches or lies in what matches, `exclude` leaves such out.
    pub fn new(paths: Vec<MemberPath>, include: Globs, exclude: Globs) -> Selection {
        let paths = paths.into_iter().map(|path| (path.as_bytes().into(), (path, AtomicBool::new(false)))).collect();
        Selection { paths, below: true, include, exclude }
    }

    /// Means everything.
    pub fn everything() -> Result<Selection> {
        Ok(Selection::new(Vec::new(), Globs::parse(&[])?, Globs::parse(&[])?))
    }

    /// Means exactly these paths and nothing below them.
    pub fn exactly(paths: Vec<MemberPath>) -> Result<Selection> {
        Ok(Selection { below: false, ..Selection::new(paths, Globs::parse(&[])?, Globs::parse(&[])?) })
    }

    /// Returns the paths; none where everything is meant.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &MemberPath> {
        self.paths.values().map(|(path, _)| path)
    }

    /// Says whether what lies below the paths is meant, too.
    pub(super) fn includes_descendants(&self) -> bool {
        self.below
    }

    /// Says whether nothing is left out.
    pub fn is_everything(&self) -> bool {
        self.paths.is_empty() && self.include.is_empty() && self.exclude.is_empty()
    }

    /// Says whether a member is meant, and remembers which of the paths were met.
    pub fn selects(&self, path: &MemberPath) -> bool {
        let bytes = path.as_bytes();
        let mut named = self.paths.is_empty();
        let mut meet = |at: &[u8]| {
            if let Some((_, met)) = self.paths.get(at) {
                met.store(true, Ordering::Relaxed);
                named = true;
            }
        };
        meet(bytes);
        if self.below && !self.paths.is_empty() {
            folders_above(bytes).for_each(meet);
        }
        named
            && (self.include.is_empty() || self.include.matches_at_or_above(bytes))
            && (self.exclude.is_empty() || !self.exclude.matches_at_or_above(bytes))
    }

    /// Returns the paths that nothing was found at so far.
    pub fn missing(&self) -> Vec<&MemberPath> {
        let missing = self.paths.values().filter(|(_, met)| !met.load(Ordering::Relaxed));
        let mut missing: Vec<&MemberPath> = missing.map(|(path, _)| path).collect();
        missing.sort();
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> MemberPath {
        MemberPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn paths_mean_what_lies_below_and_globs_names_or_whole_paths() {
        let globs = |list: &[&str]| Globs::parse(&list.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>()).unwrap();
        let selection = Selection::new(vec![path("a/b"), path("c")], globs(&[]), globs(&["*.o", "a/b/skip"]));
        for (member, wanted) in
            [("a/b", true), ("a/b/x", true), ("a/bc", false), ("a", false), ("a/b/x.o", false), ("a/b/skip/y", false)]
        {
            assert_eq!(selection.selects(&path(member)), wanted, "{member}");
        }
        assert_eq!(selection.missing(), [&path("c")]);
        let only = Selection::new(Vec::new(), globs(&["*.txt", "d/**/e"]), globs(&[]));
        for (member, wanted) in [("x/a.txt", true), ("d/1/2/e", true), ("d/1/2/e/f", true), ("d/e", true), ("e", false)]
        {
            assert_eq!(only.selects(&path(member)), wanted, "{member}");
        }
    }
}
