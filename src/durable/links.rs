//! Hard and symbolic links that replace a name atomically.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::temporary::{TempName, random_name};
use super::{folder_of, naming_error, rename_no_replace, sync_folder};
use crate::error::{Error, Result};

/// Makes `temporary`, an existing file, a further name of `original`, whose path is `path`. `link_name` is an unused
/// name in the same folder, which the file has for a moment.
///
/// Errors: those of `link` (too many links, not permitted, another or an unfit file system); `Busy` if
/// another file has taken the path. Then `temporary` is as it was.
pub fn link_over(original: &File, path: &Path, link_name: &Path, temporary: &Path) -> Result<()> {
    let mut link = TempName { path: link_name.to_owned(), armed: false };
    std::fs::hard_link(path, &link.path).map_err(Error::io("link", path))?;
    link.armed = true;
    let is_same = |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let linked = std::fs::symlink_metadata(&link.path).map_err(Error::io("inspect", &link.path))?;
    if !is_same(linked, original.metadata().map_err(Error::io("inspect", path))?) {
        return Err(Error::busy(format!("another file has taken the place of {}", path.display())));
    }
    std::fs::rename(&link.path, temporary).map_err(Error::io("replace", temporary))?;
    link.armed = false;
    Ok(())
}

/// Makes `link` a symbolic link to `target` by a path relative to the link's folder, atomically, and syncs the folder.
/// Both paths must be absolute or relative to the same folder. An existing symbolic link is replaced; anything else at
/// `link` is left alone and the error is `Busy`.
pub fn symlink_relative(link: &Path, target: &Path) -> Result<()> {
    let relative = relative_path(folder_of(link), target);
    let exists = match std::fs::symlink_metadata(link) {
        Ok(stat) if stat.is_symlink() => true,
        Ok(_) => return Err(naming_error(link)(io::ErrorKind::AlreadyExists.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io("inspect", link)(e)),
    };
    if exists && std::fs::read_link(link).is_ok_and(|current| current == relative) {
        return Ok(());
    }
    let mut temp = TempName { path: folder_of(link).join(random_name()?), armed: false };
    std::os::unix::fs::symlink(&relative, &temp.path).map_err(Error::io("make the link", link))?;
    temp.armed = true;
    if exists {
        std::fs::rename(&temp.path, link).map_err(Error::io("replace the link", link))?;
    } else {
        rename_no_replace(&temp.path, link)?;
    }
    temp.armed = false;
    sync_folder(folder_of(link))
}

/// Returns the path that leads from the folder `from` to `to`.
fn relative_path(from: &Path, to: &Path) -> PathBuf {
    let plain = |path: &Path| -> Vec<OsString> {
        path.components().filter(|c| *c != Component::CurDir).map(|c| c.as_os_str().to_owned()).collect()
    };
    let (from, to) = (plain(from), plain(to));
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(OsString::from(".."), from.len() - common);
    up.chain(to[common..].iter().cloned()).collect()
}
