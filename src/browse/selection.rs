//! Which members of an archive are selected: by paths, and by globs that include or exclude.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::{Error, Result};
use crate::member::MemberPath;

/// A set of globs. A glob without `/` matches file names, one with `/` matches whole paths.
#[derive(Clone, Debug)]
pub struct Globs {
    names: GlobSet,
    paths: GlobSet,
    count: usize,
}

impl Globs {
    /// Parses globs.
    ///
    /// Errors: `Usage`, which names the invalid glob.
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

    /// Returns whether there are no globs.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns whether a glob matches this path itself.
    pub fn matches(&self, path: &[u8]) -> bool {
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
        let as_path =
            |bytes| std::path::Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes));
        self.names.is_match(as_path(name)) || self.paths.is_match(as_path(path))
    }

    /// Returns whether a glob matches the path or a folder above it.
    fn matches_at_or_above(&self, path: &[u8]) -> bool {
        self.matches(path) || folders_above(path).any(|folder| self.matches(folder))
    }
}

/// Returns the folders above a path.
fn folders_above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at])
}

/// Selects members of an archive.
#[derive(Debug)]
pub struct Selection {
    /// Each path, and whether a member at or below it was found.
    paths: HashMap<Box<[u8]>, (MemberPath, AtomicBool)>,
    includes_descendants: bool,
    include: Globs,
    exclude: Globs,
}

impl Selection {
    /// Selects these paths and everything below them, or everything if there are no paths. Of these, `include` selects
    /// only what matches or lies in a matching folder, and `exclude` removes what matches or lies in a matching folder.
    pub fn new(paths: Vec<MemberPath>, include: Globs, exclude: Globs) -> Selection {
        let paths = paths.into_iter().map(|path| (path.as_bytes().into(), (path, AtomicBool::new(false)))).collect();
        Selection { paths, includes_descendants: true, include, exclude }
    }

    /// Selects everything.
    pub fn everything() -> Result<Selection> {
        Ok(Selection::new(Vec::new(), Globs::parse(&[])?, Globs::parse(&[])?))
    }

    /// Selects exactly these paths and nothing below them.
    pub fn exactly(paths: Vec<MemberPath>) -> Result<Selection> {
        Ok(Selection { includes_descendants: false, ..Selection::new(paths, Globs::parse(&[])?, Globs::parse(&[])?) })
    }

    /// Returns the paths; none if the selection is not limited to paths.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &MemberPath> {
        self.paths.values().map(|(path, _)| path)
    }

    /// Returns whether members below the paths are selected, too.
    pub(super) fn includes_descendants(&self) -> bool {
        self.includes_descendants
    }

    /// Returns whether every member is selected.
    pub fn is_everything(&self) -> bool {
        self.paths.is_empty() && self.include.is_empty() && self.exclude.is_empty()
    }

    /// Returns whether a member is selected, and records which of the paths were found.
    pub fn selects(&self, path: &MemberPath) -> bool {
        let bytes = path.as_bytes();
        let mut is_at_path = self.paths.is_empty();
        let mut check = |at: &[u8]| {
            if let Some((_, found)) = self.paths.get(at) {
                found.store(true, Ordering::Relaxed);
                is_at_path = true;
            }
        };
        check(bytes);
        if self.includes_descendants && !self.paths.is_empty() {
            folders_above(bytes).for_each(check);
        }
        is_at_path
            && (self.include.is_empty() || self.include.matches_at_or_above(bytes))
            && (self.exclude.is_empty() || !self.exclude.matches_at_or_above(bytes))
    }

    /// Returns the paths at or below which no member was found so far.
    pub fn missing(&self) -> Vec<&MemberPath> {
        let missing = self.paths.values().filter(|(_, found)| !found.load(Ordering::Relaxed));
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
    fn paths_select_what_lies_below_them_and_globs_names_or_whole_paths() {
        let globs = |list: &[&str]| Globs::parse(&list.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>()).unwrap();
        let selection = Selection::new(vec![path("a/b"), path("c")], globs(&[]), globs(&["*.o", "a/b/skip"]));
        for (member, is_selected) in
            [("a/b", true), ("a/b/x", true), ("a/bc", false), ("a", false), ("a/b/x.o", false), ("a/b/skip/y", false)]
        {
            assert_eq!(selection.selects(&path(member)), is_selected, "{member}");
        }
        assert_eq!(selection.missing(), [&path("c")]);
        let only = Selection::new(Vec::new(), globs(&["*.txt", "d/**/e"]), globs(&[]));
        for (member, is_selected) in
            [("x/a.txt", true), ("d/1/2/e", true), ("d/1/2/e/f", true), ("d/e", true), ("e", false)]
        {
            assert_eq!(only.selects(&path(member)), is_selected, "{member}");
        }
    }
}
