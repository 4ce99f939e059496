//! The root of a schedule's source: its path, and its name in archives.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::WalkOptions;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::member::MemberPath;
use crate::schedule::Schedule;
use crate::words::shell_word;

/// A schedule's source, resolved.
pub struct SourceRoot {
    /// Its absolute path, links resolved.
    pub path: PathBuf,
    /// Its name in the archive.
    pub name: MemberPath,
    /// Lines of the exclude files.
    pub patterns: Vec<String>,
}

impl SourceRoot {
    /// Resolves the source of a schedule and reads its exclude files.
    ///
    /// Errors: `Failed` if the source does not exist, `Usage` if an exclude file cannot be read.
    pub fn find(home: &Home, schedule: &Schedule) -> Result<SourceRoot> {
        let path = home.source_path(&schedule.source);
        let root = fs::canonicalize(&path).map_err(|e| {
            Error::failed(format!("the source {} cannot be opened", path.display())).because(e).hint(format!(
                "mount it, or name another with `backup-manager edit {} --path PATH`",
                shell_word(schedule.name.as_str())
            ))
        })?;
        // The name as written, even if that is a link; `/` and `..` have none.
        let name = path.file_name().or(root.file_name()).map_or(&b"root"[..], |name| name.as_bytes());
        let root_name = MemberPath::parse(name)?;
        let mut patterns = Vec::new();
        for file in &schedule.excludes.files {
            let path = home.source_path(file.as_bytes());
            let text = fs::read_to_string(&path)
                .map_err(|e| Error::usage(format!("the exclude file {} cannot be read", path.display())).because(e))?;
            patterns.extend(
                text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).map(String::from),
            );
        }
        Ok(SourceRoot { path: root, name: root_name, patterns })
    }

    /// Returns the options of a walk over it. The walk skips `own_paths`, the files of the program itself.
    pub fn walk_options<'a>(&'a self, schedule: &'a Schedule, own_paths: &'a [PathBuf]) -> WalkOptions<'a> {
        WalkOptions {
            root: &self.path,
            root_name: &self.name,
            excludes: &schedule.excludes,
            patterns: &self.patterns,
            own_paths,
            syncs: false,
        }
    }
}
