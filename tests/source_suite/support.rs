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

/// Everything a walk needs, with nothing left out to begin with.
pub struct Source {
    pub root: PathBuf,
    pub name: MemberPath,
    pub excludes: Excludes,
    pub patterns: Vec<String>,
    pub own_paths: Vec<PathBuf>,
}

/// What a walk told.
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

    /// Returns the one thing of this path below the root.
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

/// Makes a temporary folder with these files in it; a trailing `/` makes a folder. Each file holds its own path.
pub fn tree(files: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    plant(dir.path(), files);
    dir
}

/// Makes one in memory where the machine offers that: for thousands of files, which a disk is slow to make.
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

/// Runs a program and says whether it succeeded; false too where there is no such program.
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

pub fn mkfifo(path: &Path) {
    assert!(succeeds("mkfifo", &[path.to_str().unwrap()]));
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says visibly that a test did not run: past the test runner, which keeps what the print macros write.
pub fn skip(reason: &str) {
    io::stderr().write_all(format!("skipped: {reason}\n").as_bytes()).unwrap();
}

/// Runs one ignored test of this file in a process of its own, behind `wrapper`; it finds `folder` in `TREE`.
pub fn in_own_process(wrapper: &[&str], test: &str, folder: &Path) {
    let output = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads", "1"])
        .env("TREE", folder)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

/// Returns the folder that `in_own_process` passed on; none when the test is run by hand.
pub fn passed_folder() -> Option<PathBuf> {
    env::var_os("TREE").map(PathBuf::from)
}

/// A mounted file system that goes when this does.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts, or says visibly that it cannot.
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

/// Numbers that are the same for the same seed.
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
