//! Members of archives: their paths and attributes. [`MemberPath`] is the only type for a path in an archive.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::FileType;

use crate::error::{Error, Result};

/// A digest of a path: an archive may have millions of paths, and each may be long.
pub type PathKey = [u8; 16];

/// Returns the digest under which a path is stored.
pub fn path_key(path: &[u8]) -> PathKey {
    let mut key = PathKey::default();
    key.copy_from_slice(&blake3::hash(path).as_bytes()[..16]);
    key
}

/// A path inside an archive: one or more components joined by `/`, none empty, `.` or `..`, no NUL byte, not absolute.
/// Bytes, not text. Ordered component by component, so that a folder comes directly before what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MemberPath(Box<[u8]>);

impl MemberPath {
    /// Checks `bytes` and returns them as a path, without one trailing `/`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let trimmed = bytes.strip_suffix(b"/").unwrap_or(bytes);
        let refuse = |why: &str| {
            Err(Error::usage(format!("\"{}\" is not a path in an archive: {why}", String::from_utf8_lossy(bytes))))
        };
        if trimmed.is_empty() {
            return refuse("it is empty");
        }
        for component in trimmed.split(|&b| b == b'/') {
            match component {
                b"" => return refuse("it is absolute or has an empty component"),
                b"." | b".." => return refuse("it has a component \".\" or \"..\""),
                _ if component.contains(&0) => return refuse("it has a NUL byte"),
                _ => {}
            }
        }
        Ok(MemberPath(trimmed.into()))
    }

    /// Returns the path of `name` in this folder. `name` must be one component. Copies the path but does not check it
    /// again: a walk makes one path per file, and paths may be a megabyte long.
    pub fn child(&self, name: &OsStr) -> Result<Self> {
        let name = name.as_bytes();
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Error::usage(format!("\"{}\" is not a single name", String::from_utf8_lossy(name))));
        }
        let mut joined = Vec::with_capacity(self.0.len() + 1 + name.len());
        joined.extend_from_slice(&self.0);
        joined.push(b'/');
        joined.extend_from_slice(name);
        Ok(MemberPath(joined.into()))
    }

    /// Returns the path of the folder that it lies in; `None` for a single component.
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|&b| b == b'/')?;
        Some(MemberPath(self.0[..slash].into()))
    }

    /// Returns the bytes of the path.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the path as a relative file-system path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Returns the last component.
    pub fn file_name(&self) -> &[u8] {
        self.0.rsplit(|&b| b == b'/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl PartialOrd for MemberPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MemberPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.split(|&b| b == b'/').cmp(other.0.split(|&b| b == b'/'))
    }
}

/// A time of a file: whole seconds since 1970, rounded down and negative before, plus nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileTime {
    /// Seconds since 1970-01-01T00:00:00Z, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberKind {
    /// A regular file with its content.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A further name of a file that comes earlier in the archive.
    HardLink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl MemberKind {
    /// Returns the kind of member that a file of this type becomes; `None` for sockets and unknown types.
    pub fn of_file_type(file_type: FileType) -> Option<MemberKind> {
        match file_type {
            FileType::RegularFile => Some(MemberKind::File),
            FileType::Directory => Some(MemberKind::Folder),
            FileType::Symlink => Some(MemberKind::Symlink),
            FileType::Fifo => Some(MemberKind::Fifo),
            FileType::CharacterDevice => Some(MemberKind::CharDevice),
            FileType::BlockDevice => Some(MemberKind::BlockDevice),
            FileType::Socket | FileType::Unknown => None,
        }
    }
}

/// Extended attributes of a file: names (`user.x`, `system.posix_acl_access`) and values, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs(Vec<Xattr>);

/// Name and value.
type Xattr = (Box<[u8]>, Box<[u8]>);

impl Xattrs {
    /// Returns an empty set of attributes.
    pub const fn new() -> Self {
        Xattrs(Vec::new())
    }

    /// Returns the value of the attribute `name`.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|(other, _)| **other == *name).map(|(_, value)| &**value)
    }

    /// Sets an attribute. An existing value of the same name is replaced.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.0.binary_search_by(|(other, _)| (**other).cmp(name)) {
            Ok(at) => self.0[at].1 = value.into(),
            Err(at) => self.0.insert(at, (name.into(), value.into())),
        }
    }

    /// Removes all attributes.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the number of attributes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no attributes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns names and values, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Returns the digest that the catalog stores, `None` without attributes: BLAKE3 over length (`u32`, little-endian)
    /// and bytes of each name and value.
    pub fn digest(&self) -> Option<[u8; 32]> {
        if self.is_empty() {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        for bytes in self.iter().flat_map(|(name, value)| [name, value]) {
            hasher.update(&(bytes.len() as u32).to_le_bytes());
            hasher.update(bytes);
        }
        Some(*hasher.finalize().as_bytes())
    }
}

/// A range of bytes. The spans of a sparse file hold its data, and holes lie between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Span {
    /// Returns the offset of the first byte after it.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// How much an archive, a source or a part of one holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Number of members.
    pub members: u64,
    /// Regular files among them, including further names of one file.
    pub files: u64,
    /// Bytes of content of the files, holes included.
    pub content_bytes: u64,
}

/// One member of a tar archive, as its headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name in the archive.
    pub path: MemberPath,
    /// What it is.
    pub kind: MemberKind,
    /// Bytes of content (logical: holes count). Zero for all but files.
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Name of the owner, empty if it has none.
    pub user_name: Box<[u8]>,
    /// Name of the group, empty if it has none.
    pub group_name: Box<[u8]>,
    /// When the content changed last.
    pub modified: FileTime,
    /// Target of a symbolic link, unchanged, or the member path that a hard link names.
    pub link_target: Option<Box<[u8]>>,
    /// Major and minor number of a device.
    pub device_number: Option<(u32, u32)>,
    /// Extended attributes with their names (`user.x`, `system.posix_acl_access`), sorted by name.
    pub xattrs: Xattrs,
}

/// One member as the catalog records it: its headers, its length, and the file it was read from. Its place in an
/// archive is not part of it, because archives share members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogMember {
    /// Its headers.
    pub member: Member,
    /// Bytes of its entry (headers, content, padding) in the chunk in which it starts.
    pub entry_bytes: u64,
    /// Device number of the file it was read from.
    pub device: u64,
    /// Inode number of the file it was read from.
    pub inode: u64,
    /// When the inode of that file changed last.
    pub changed: FileTime,
    /// BLAKE3 of the logical content, for files whose data this member holds.
    pub content_digest: Option<[u8; 32]>,
    /// BLAKE3 over names and values of the extended attributes, if there are any.
    pub xattr_digest: Option<[u8; 32]>,
    /// A later run may take the member as it is if its file did not change. Not so if any problem was recorded for it,
    /// as that it changed while it was read, or if a rescan added it.
    pub is_reusable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_lead_out_of_the_target_are_refused() {
        for bad in [&b""[..], b"/", b"/etc", b"a//b", b"a/../b", b"..", b".", b"./a", b"a/.", b"a\0b"] {
            assert!(MemberPath::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(MemberPath::parse(b"a/b/").unwrap().as_bytes(), b"a/b");
        assert_eq!(MemberPath::parse(b"caf\xe9").unwrap().as_bytes(), b"caf\xe9");
    }

    #[test]
    fn a_folder_comes_directly_before_its_content() {
        let mut paths: Vec<_> =
            ["a-b", "a/z", "a", "a.txt", "a/b/c"].iter().map(|p| MemberPath::parse(p.as_bytes()).unwrap()).collect();
        paths.sort();
        let names: Vec<_> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a", "a/b/c", "a/z", "a-b", "a.txt"]);
    }

    #[test]
    fn a_child_is_one_component_and_has_its_folder_as_parent() {
        let folder = MemberPath::parse(b"a/b").unwrap();
        for bad in ["", ".", "..", "x/y", "/", "x\0"] {
            assert!(folder.child(OsStr::new(bad)).is_err(), "{bad:?}");
        }
        let child = folder.child(OsStr::from_bytes(b"caf\xe9\n")).unwrap();
        assert_eq!(child, MemberPath::parse(b"a/b/caf\xe9\n").unwrap());
        assert_eq!(child.parent(), Some(folder));
        assert_eq!(MemberPath::parse(b"a").unwrap().parent(), None);
    }
}
