//! Makes trees with every kind of member, and takes snapshots of trees to compare.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, chownat, makedev, mknodat, utimensat};

/// One entry of a tree to make.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The index of its parent among the folders made so far, modulo their number.
    pub parent: usize,
    pub name: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: (i64, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Rights of one more user, as an ACL.
    pub acl_user: Option<u32>,
}

/// What an entry is.
#[derive(Clone, Debug)]
pub enum Kind {
    Folder,
    /// Spans of data (offset, length, seed) in a file of `size` bytes.
    File {
        size: u64,
        spans: Vec<(u64, u64, u8)>,
    },
    Symlink(Vec<u8>),
    /// Another name of one of the files and fifos made so far.
    HardLink(usize),
    Fifo,
    Device(u32, u32),
}

/// Makes a tree in the new folder `root`. Only root may make devices and entries that belong to other users.
pub fn make(root: &Path, entries: &[Entry]) {
    fs::create_dir(root).unwrap();
    let (mut folders, mut files) = (vec![root.to_owned()], Vec::new());
    let mut made = Vec::new();
    for entry in entries {
        let path = folders[entry.parent % folders.len()].join(OsStr::from_bytes(&entry.name));
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match &entry.kind {
            Kind::Folder => {
                fs::create_dir(&path).unwrap();
                folders.push(path.clone());
            }
            Kind::File { size, spans } => {
                make_file(&path, *size, spans);
                files.push(path.clone());
            }
            Kind::Symlink(target) => symlink(OsStr::from_bytes(target), &path).unwrap(),
            Kind::HardLink(_) if files.is_empty() => continue,
            Kind::HardLink(which) => fs::hard_link(&files[which % files.len()], &path).unwrap(),
            Kind::Fifo => {
                mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
                files.push(path.clone());
            }
            Kind::Device(major, minor) => {
                let number = makedev(*major, *minor);
                mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), number).unwrap();
            }
        }
        made.push((path, entry));
    }
    // Times and modes come last, deepest first: making an entry changes the times of its folder.
    for (path, entry) in made.iter().rev() {
        set_metadata(path, entry);
    }
}

fn make_file(path: &Path, size: u64, spans: &[(u64, u64, u8)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for &(offset, length, seed) in spans {
        let length = length.min(size.saturating_sub(offset));
        let bytes: Vec<u8> =
            (0..length).map(|i| (i / 5 + i / 777).wrapping_mul(u64::from(seed) + 1) as u8 | 1).collect();
        file.write_all_at(&bytes, offset).unwrap();
    }
}

fn set_metadata(path: &Path, entry: &Entry) {
    let stat = fs::symlink_metadata(path).unwrap();
    let (is_link, is_folder) = (stat.is_symlink(), stat.is_dir());
    let (uid, gid) = (Some(Uid::from_raw(entry.owner.0)), Some(Gid::from_raw(entry.owner.1)));
    chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    if !is_link {
        // Setting attributes needs write permission.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    for (name, value) in &entry.xattrs {
        // Only files and folders may have `user.` attributes.
        if stat.is_file() || is_folder || !name.starts_with(b"user.") {
            xattr::set(path, OsStr::from_bytes(name), value).unwrap();
        }
    }
    if let Some(user) = entry.acl_user.filter(|_| !is_link) {
        xattr::set(path, "system.posix_acl_access", &acl(entry.mode, user)).unwrap();
        if is_folder {
            xattr::set(path, "system.posix_acl_default", &acl(0o750, user)).unwrap();
        }
    }
    if !is_link {
        fs::set_permissions(path, fs::Permissions::from_mode(entry.mode)).unwrap();
    }
    let time = Timespec { tv_sec: entry.modified.0, tv_nsec: entry.modified.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Returns an ACL as the kernel stores it: that of `mode`, plus `user` and group 12345.
fn acl(mode: u32, user: u32) -> Vec<u8> {
    let no_id = u32::MAX;
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, mode >> 6 & 7, no_id),
        (0x02, 5, user),
        (0x04, 4, no_id),
        (0x08, 6, 12_345),
        (0x10, mode >> 3 & 7, no_id),
        (0x20, mode & 7, no_id),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend((permissions as u16).to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// One entry of a tree, as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: &'static str,
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: (i64, i64),
    pub size: u64,
    pub content: Option<blake3::Hash>,
    pub target: Option<PathBuf>,
    pub device: u64,
    /// Escaped; long values as their hash.
    pub xattrs: BTreeMap<String, String>,
    /// The first path of the same file.
    pub first_name: PathBuf,
    /// It takes less space than its size.
    pub is_sparse: bool,
}

/// Returns everything in a tree, by path relative to its root.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut names = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| relative.join(entry.unwrap().file_name())));
        }
        names.entry((stat.dev(), stat.ino())).or_insert_with(Vec::new).push(relative.clone());
        seen.insert(relative, inspect(&path, &stat));
    }
    for paths in names.values() {
        let first = paths.iter().min().cloned().unwrap_or_default();
        for path in paths {
            if let Some(entry) = seen.get_mut(path) {
                entry.first_name = first.clone();
            }
        }
    }
    seen
}

fn inspect(path: &Path, stat: &fs::Metadata) -> Seen {
    let kind = stat.file_type();
    let kind = match () {
        () if kind.is_dir() => "folder",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_char_device() => "device",
        () => "other",
    };
    let names: Vec<_> = xattr::list(path).unwrap().collect();
    let value = |name: &OsStr| match xattr::get(path, name).unwrap().unwrap_or_default() {
        long if long.len() > 100 => blake3::hash(&long).to_string(),
        value => value.escape_ascii().to_string(),
    };
    Seen {
        kind,
        mode: stat.mode() & 0o7777,
        owner: (stat.uid(), stat.gid()),
        modified: (stat.mtime(), stat.mtime_nsec()),
        size: if kind == "file" { stat.len() } else { 0 },
        content: (kind == "file")
            .then(|| blake3::Hasher::new().update_reader(File::open(path).unwrap()).unwrap().finalize()),
        target: (kind == "symlink").then(|| fs::read_link(path).unwrap()),
        device: if kind == "device" { stat.rdev() } else { 0 },
        xattrs: names.iter().map(|name| (name.as_bytes().escape_ascii().to_string(), value(name))).collect(),
        first_name: PathBuf::new(),
        is_sparse: kind == "file" && stat.blocks() * 512 + 65_536 < stat.len(),
    }
}

/// Compares two trees. Errors: name the first path that differs; `what` is for the message.
pub fn compare(expected: &BTreeMap<PathBuf, Seen>, found: &BTreeMap<PathBuf, Seen>, what: &str) -> Result<(), String> {
    for (path, entry) in expected {
        match found.get(path) {
            None => return Err(format!("{what}: {} is missing", path.display())),
            Some(other) if other != entry => {
                return Err(format!("{what}: {} differs: {other:?}, not {entry:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    match found.keys().find(|path| !expected.contains_key(*path)) {
        Some(extra) => Err(format!("{what}: unexpected: {}", extra.display())),
        None => Ok(()),
    }
}

/// Returns whether this process may set owners and make devices.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
