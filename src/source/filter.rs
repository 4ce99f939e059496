//! What is left out of an archive because the schedule says so.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::{Error, Result};
use crate::schedule::Excludes;

/// Checks globs as they stand on the command line, without a source; the error names the one that is wrong.
pub fn check_patterns(globs: &[String]) -> Result<()> {
    compile(globs.iter().map(|glob| from_command_line(glob)), &[]).map(drop)
}

/// Decides by name and path what is left out.
#[derive(Debug)]
pub(super) struct Filter {
    globs: Gitignore,
    /// Leaves out what lies beside a valid `CACHEDIR.TAG`.
    pub(super) caches: bool,
    if_present: Vec<Box<[u8]>>,
}

impl Filter {
    /// Makes the filter of a source at `root`; `lines` are those of the schedule's exclude files.
    pub(super) fn new(root: &Path, excludes: &Excludes, lines: &[String]) -> Result<Self> {
        let resolved = fs::canonicalize(root).ok();
        let roots: Vec<&str> =
            [Some(root), resolved.as_deref()].into_iter().flatten().filter_map(Path::to_str).collect();
        let globs = excludes.globs.iter().map(|glob| from_command_line(glob));
        let lines = lines.iter().map(|line| Ok(Cow::Borrowed(line.trim_start_matches('\u{feff}'))));
        for name in &excludes.if_present {
            if name.contains('/') || matches!(name.as_str(), "" | "." | "..") {
                return Err(Error::usage(format!("\"{name}\" is not the name of a file"))
                    .hint("--exclude-if-present takes a name without a folder"));
            }
        }
        Ok(Filter {
            globs: compile(globs.chain(lines), &roots)?,
            caches: excludes.caches,
            if_present: excludes.if_present.iter().map(|name| name.as_bytes().into()).collect(),
        })
    }

    /// Says whether what lies at this path below the root is left out, with all that is in it.
    pub(super) fn excludes(&self, relative: &[u8], is_folder: bool) -> bool {
        !self.globs.is_empty() && self.globs.matched(Path::new(OsStr::from_bytes(relative)), is_folder).is_ignore()
    }

    /// Says whether a folder's content is left out, given which names it holds.
    pub(super) fn is_marked(&self, holds: impl Fn(&[u8]) -> bool) -> bool {
        self.if_present.iter().any(|name| holds(name))
    }
}

/// In a file `#` begins a comment; who writes it on the command line means the character.
fn from_command_line(glob: &str) -> Result<Cow<'_, str>> {
    match glob.trim() {
        "" => Err(Error::usage("an exclude pattern is empty").hint("leave it out, or write a glob such as *.tmp")),
        _ if glob.starts_with('#') => Ok(Cow::Owned(format!("\\{glob}"))),
        _ => Ok(Cow::Borrowed(glob)),
    }
}

fn compile<'g>(globs: impl Iterator<Item = Result<Cow<'g, str>>>, roots: &[&str]) -> Result<Gitignore> {
    let refuse = |glob: &str, why: String| {
        Error::usage(format!("\"{glob}\" is not an exclude pattern: {why}"))
            .hint("patterns are written as in a .gitignore file; a backslash takes a character as it is")
    };
    let mut builder = GitignoreBuilder::new("");
    for glob in globs {
        let glob = glob?;
        let below = below_root(&glob, roots).ok_or_else(|| refuse(&glob, "it leaves out the whole source".into()))?;
        builder.add_line(None, &below).map_err(|error| refuse(&glob, error.to_string()))?;
    }
    builder.build().map_err(|error| Error::usage("the exclude patterns cannot be used together").because(error))
}

/// Makes a pattern with the source's absolute path one that counts from the source, which is what a leading `/` says.
/// None if nothing but the root is left of it.
fn below_root<'g>(glob: &'g str, roots: &[&str]) -> Option<Cow<'g, str>> {
    let (not, pattern) = glob.strip_prefix('!').map_or(("", glob), |pattern| ("!", pattern));
    for root in roots.iter().filter(|root| root.starts_with('/')) {
        match pattern.strip_prefix(root.trim_end_matches('/')) {
            Some("" | "/") => return None,
            Some(below) if below.starts_with('/') => return Some(Cow::Owned(format!("{not}{below}"))),
            _ => {}
        }
    }
    Some(Cow::Borrowed(glob))
}
