//! What a program extracted from an archive.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::SeekFrom;

/// The most differences of one archive that are listed.
const MAX_DIFFERENCES: usize = 6;

/// One path that was extracted.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Kind, size, content, target.
    pub content: String,
    /// Mode and modification time, to the second.
    pub metadata: String,
}

/// The result of one program.
pub struct Extracted {
    pub code: Option<i32>,
    pub errors: String,
    pub tree: BTreeMap<Vec<u8>, Seen>,
}

/// Runs a program that extracts to `to`.
pub fn run(command: &mut Command, to: &Path) -> Extracted {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Extracted { code: output.status.code(), errors, tree: tree(to) }
}

impl Extracted {
    pub fn is_whole(&self) -> bool {
        self.code == Some(0)
    }

    pub fn contents(&self) -> BTreeMap<&[u8], &str> {
        self.tree.iter().map(|(path, seen)| (path.as_slice(), seen.content.as_str())).collect()
    }

    pub fn last_words(&self) -> String {
        let lines: Vec<&str> = self.errors.lines().rev().take(4).collect();
        format!("exit code {:?}: {}", self.code, lines.into_iter().rev().collect::<Vec<_>>().join(" | "))
    }

    /// Returns how this result differs from that of another program, in words.
    pub fn differences(&self, other: &Extracted) -> Vec<String> {
        let mut lines = Vec::new();
        if self.is_whole() != other.is_whole() {
            lines.push(other.last_words());
        }
        for (path, seen) in &self.tree {
            let path_text = path.escape_ascii();
            match other.tree.get(path) {
                None => lines.push(format!("has no {path_text} ({})", seen.content)),
                Some(theirs) if theirs.content != seen.content => {
                    lines.push(format!("{path_text}: {} there, {} here", theirs.content, seen.content));
                }
                Some(_) => {}
            }
        }
        let only_there = other.tree.iter().filter(|(path, _)| !self.tree.contains_key(*path));
        lines.extend(only_there.map(|(path, seen)| format!("only there: {} ({})", path.escape_ascii(), seen.content)));
        lines.truncate(MAX_DIFFERENCES);
        lines
    }

    pub fn metadata_differences(&self, other: &Extracted) -> Vec<String> {
        let pairs = self.tree.iter().filter_map(|(path, seen)| Some((path, seen, other.tree.get(path)?)));
        let differing = pairs.filter(|(_, ours, theirs)| ours.metadata != theirs.metadata);
        differing
            .map(|(path, ours, theirs)| {
                format!("metadata of {}: {} there, {} here", path.escape_ascii(), theirs.metadata, ours.metadata)
            })
            .take(MAX_DIFFERENCES)
            .collect()
    }
}

pub fn tree(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut paths = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                folders.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    let (mut tree, mut first_names) = (BTreeMap::new(), HashMap::new());
    for path in paths {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_owned();
        let stat = path.symlink_metadata().unwrap();
        let mut content = content(&path, &stat);
        if stat.nlink() > 1 && !stat.is_dir() {
            let first = first_names.entry((stat.dev(), stat.ino())).or_insert_with(|| name.escape_ascii().to_string());
            content += &format!(", same as {first}");
        }
        let metadata = if stat.is_symlink() {
            String::new()
        } else {
            format!("{:04o} {}", stat.mode() & 0o7777, if stat.is_dir() { 0 } else { stat.mtime() })
        };
        tree.insert(name, Seen { content, metadata });
    }
    tree
}

fn content(path: &Path, stat: &fs::Metadata) -> String {
    let kind = stat.file_type();
    match () {
        () if kind.is_dir() => "folder".to_owned(),
        () if kind.is_symlink() => format!("link to {}", fs::read_link(path).unwrap().display()),
        () if kind.is_fifo() => "fifo".to_owned(),
        () if kind.is_file() => format!("file of {} bytes, {}", stat.len(), digest(path)),
        () => format!("device {}", if kind.is_char_device() { "c" } else { "b" }) + &format!(" {:x}", stat.rdev()),
    }
}

/// Returns a digest of the blocks that are not zero. Some archives hold files of terabytes, nearly all of it holes.
fn digest(path: &Path) -> String {
    const BLOCK_BYTES: usize = 4096;
    let file = File::open(path).unwrap();
    let mut hasher = blake3::Hasher::new();
    let (mut at, mut block) = (0_u64, [0; BLOCK_BYTES]);
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = data / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
        while at < hole {
            let count = file.read_at(&mut block, at).unwrap();
            if block[..count].iter().any(|&byte| byte != 0) {
                hasher.update(&at.to_le_bytes()).update(&block[..count]);
            }
            at += BLOCK_BYTES as u64;
        }
    }
    hasher.finalize().to_hex()[..12].to_owned()
}
