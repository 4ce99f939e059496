//! Describes a tree of files as text, so that two trees can be compared.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A description of each path below a folder: kind, content, metadata.
pub type Tree = BTreeMap<Vec<u8>, String>;

/// Which parts of the metadata are compared.
#[derive(Clone, Copy)]
pub struct Parts {
    pub owner: bool,
    pub nanoseconds: bool,
    pub xattrs: bool,
    pub folder_times: bool,
}

pub const ALL: Parts = Parts { owner: true, nanoseconds: true, xattrs: true, folder_times: true };

pub fn tree(root: &Path, parts: Parts) -> Tree {
    let mut all = Tree::new();
    let mut first_names = HashMap::new();
    let mut open = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(path) = open.pop() {
        if path.symlink_metadata().unwrap().is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_owned();
        let text = describe(&path, &name, &mut first_names, parts);
        all.insert(name, text);
    }
    all
}

fn describe(path: &Path, name: &[u8], first_names: &mut HashMap<(u64, u64), String>, parts: Parts) -> String {
    let stat = path.symlink_metadata().unwrap();
    let kind = stat.file_type();
    let content = if kind.is_file() {
        format!("file {} {}", stat.len(), blake3::hash(&fs::read(path).unwrap()))
    } else if kind.is_symlink() {
        format!("link {:?}", fs::read_link(path).unwrap())
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else if kind.is_dir() {
        "folder".to_owned()
    } else {
        format!("device {:x}", stat.rdev())
    };
    let mut text = format!("{content} {:o}", stat.mode());
    if parts.owner {
        text += &format!(" {}:{}", stat.uid(), stat.gid());
    }
    if parts.folder_times || !kind.is_dir() {
        text += &format!(" {}.{:09}", stat.mtime(), if parts.nanoseconds { stat.mtime_nsec() } else { 0 });
    }
    if stat.nlink() > 1 && !kind.is_dir() {
        let first = first_names.entry((stat.dev(), stat.ino())).or_insert(String::from_utf8_lossy(name).into_owned());
        text += &format!(" same as {first}");
    }
    if parts.xattrs && !kind.is_symlink() {
        let mut names: Vec<_> = xattr::list(path).map(Iterator::collect).unwrap_or_default();
        names.sort();
        for name in names {
            text += &format!(" {name:?}={:?}", xattr::get(path, &name).unwrap());
        }
    }
    text
}

#[track_caller]
pub fn assert_same(was: &Tree, is: &Tree, what: &str) {
    for (path, text) in was {
        let name = String::from_utf8_lossy(path);
        assert_eq!(Some(text), is.get(path), "{what}: {name}");
    }
    let extra: Vec<_> = is.keys().filter(|path| !was.contains_key(*path)).collect();
    assert!(extra.is_empty(), "{what}: {extra:?} should not exist");
}
