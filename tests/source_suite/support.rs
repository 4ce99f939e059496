//! Trees on disk, and walks over them.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use backup_manager::error::Result;
use backup_manager::member::MemberPath;
use backup_manager::progress::Problem;
use backup_manager::schedule::Excludes;
use backup_manager::source::{SourceEntry, WalkOptions, WalkSummary, walk};
use tempfile::TempDir;

/// The options of a walk; nothing is excluded by default.
pub struct Source {
    pub root: PathBuf,
    pub name: MemberPath,
    pub excludes: Excludes,
    pub patterns: Vec<String>,
    pub own_paths: Vec<PathBuf>,
}

/// What a walk visited and reported.
#[derive(Debug)]
pub struct Walked {
    pub found: Vec<SourceEntry>,
    pub problems: Vec<Problem>,
    pub summary: WalkSummary,
}

impl Source {
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Source {
            root: root.into(),
            name: MemberPath::parse(b"src").unwrap(),
            excludes: Excludes::default(),
            patterns: Vec::new(),
            own_paths: Vec::new(),
        }
    }

    pub fn globs(mut self, globs: &[&str]) -> Self {
        self.excludes.globs = globs.iter().map(ToString::to_string).collect();
        self
    }

    pub fn options(&self) -> WalkOptions<'_> {
        WalkOptions {
            root: &self.root,
            root_name: &self.name,
            excludes: &self.excludes,
            patterns: &self.patterns,
            own_paths: &self.own_paths,
            syncs: false,
        }
    }

    pub fn try_walk(&self) -> Result<Walked> {
        self.walk_with(|_| ControlFlow::Continue(()))
    }

    pub fn walk(&self) -> Walked {
        self.try_walk().unwrap()
    }

    /// Walks and lets `visit` act in the middle of it.
    pub fn walk_with(&self, mut visit: impl FnMut(&SourceEntry) -> ControlFlow<()>) -> Result<Walked> {
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        let summary = walk(
            &self.options(),
            &mut |one| {
                let flow = visit(&one);
                found.push(one);
                flow
            },
            &mut |problem| problems.push(problem),
        )?;
        Ok(Walked { found, problems, summary })
    }

    /// Returns the entry of this path below the root.
    pub fn find(&self, relative: &str) -> SourceEntry {
        let wanted = format!("{}/{relative}", self.name);
        let found = self.walk().found;
        found.into_iter().find(|found| found.path.to_string() == wanted).unwrap_or_else(|| panic!("no {wanted}"))
    }
}

impl Walked {
    pub fn paths(&self) -> Vec<String> {
        self.found.iter().map(|found| found.path.to_string()).collect()
    }
}

/// Creates a temporary folder with these files in it; a trailing `/` creates a folder. Each file holds its own path.
pub fn tree(files: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    plant(dir.path(), files);
    dir
}

/// Creates such a folder in memory if the machine offers that: thousands of files take long to create on a disk.
pub fn big_tree(files: &[&str]) -> TempDir {
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    plant(dir.path(), files);
    dir
}

pub fn plant(root: &Path, files: &[&str]) {
    for file in files {
        let path = root.join(file);
        if file.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
    }
}

/// Runs a program and returns whether it succeeded; false also if the program does not exist.
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

pub fn mkfifo(path: &Path) {
    assert!(succeeds("mkfifo", &[path.to_str().unwrap()]));
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Reports that a test did not run. Writes to stderr directly, because the test runner captures the print macros.
pub fn skip(reason: &str) {
    io::stderr().write_all(format!("skipped: {reason}\n").as_bytes()).unwrap();
}

/// Runs one ignored test of this binary in a process of its own, started by `wrapper`; `TREE` is set to `folder`.
pub fn in_own_process(wrapper: &[&str], test: &str, folder: &Path) {
    let output = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads", "1"])
        .env("TREE", folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Returns the folder that `in_own_process` passed; `None` if the test was started directly.
pub fn passed_folder() -> Option<PathBuf> {
    env::var_os("TREE").map(PathBuf::from)
}

/// A mounted file system, unmounted on drop.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts, or reports that it cannot.
    pub fn new(args: &[&str], at: &Path) -> Option<Self> {
        let at_text = at.to_str().unwrap();
        let mounted = is_root() && succeeds("mount", &[args, &[at_text]].concat());
        if !mounted {
            skip("mounting needs root and the right to mount");
        }
        mounted.then(|| Mount(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        assert!(succeeds("umount", &[self.0.to_str().unwrap()]));
    }
}

/// A random number generator with a seed.
pub struct Seeded(pub u64);

impl Seeded {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}
