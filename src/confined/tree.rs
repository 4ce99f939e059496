//! The folders that are open for creating entries in them. A folder gets its metadata, mode and times last, when the
//! last handle to it is dropped, because creating entries changes its times and may need a wider mode.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Stat;
use rustix::io::Errno;

use super::completed_paths::CompletedPaths;
use super::create::{create_folder, create_plain_folder, lock_folder};
use super::inspect::{kind_of, modified_of, set_modified, stat_entry};
use super::metadata::{
    MetadataLoss, Privileges, apply_metadata, clear_inherited_acl, is_unfinished, make_passable, restore_metadata,
};
use super::open::ConfinedFolder;
use crate::error::Error;
use crate::member::{Member, MemberKind, MemberPath};

/// Receives the path of a folder that is closed, and whether it is finished.
pub type OnFinished = Box<dyn Fn(&MemberPath, FolderEnd) + Send + Sync>;

/// How a folder was closed.
#[derive(Debug)]
pub enum FolderEnd {
    /// It has its metadata, except for what was lost of it.
    Finished(MetadataLoss),
    /// Its metadata could not be applied.
    Failed(io::Error),
    /// The work ended early: it does not have its metadata.
    Unfinished,
}

/// What a tree shares with the work that it belongs to.
pub struct TreeContext {
    /// Paths that hold what the archive has, and paths that failed and are not tried again.
    pub completed: Arc<CompletedPaths>,
    /// Set when the work ends early: folders then stay unfinished, so that the next restore recognises them.
    pub is_abandoned: Arc<AtomicBool>,
    /// Called from any thread for each folder whose metadata is applied when the last reference to it is dropped.
    pub on_finished: OnFinished,
    /// What this process may do.
    pub privileges: Privileges,
    /// Nothing is created or changed.
    pub is_dry_run: bool,
}

/// An open folder beneath the confined folder.
pub struct OpenFolder {
    /// The folder.
    pub handle: Arc<OwnedFd>,
    /// The folder may have a default ACL, from which new entries inherit rights that the archive does not grant.
    pub may_have_default_acl: bool,
    /// No other user can enter the folder: it was created by this tree, with [`UNFINISHED_MODE`].
    pub is_private: bool,
    /// `None` for the confined folder itself.
    path: Option<Arc<PathNode>>,
    final_metadata: FinalMetadata,
    context: Arc<TreeContext>,
}

/// A path as a list of components that share their parents. A whole path for each open folder would need quadratic
/// memory: an archive may have thousands of levels.
struct PathNode {
    parent: Option<Arc<PathNode>>,
    name: Box<[u8]>,
}

impl PathNode {
    fn to_path(&self) -> Result<MemberPath, Error> {
        let mut names = vec![&*self.name];
        let mut next = &self.parent;
        while let Some(node) = next {
            names.push(&node.name);
            next = &node.parent;
        }
        names.reverse();
        MemberPath::parse(&names.join(&b'/'))
    }
}

/// The metadata that a folder gets when it is closed.
enum FinalMetadata {
    /// It stays as it is.
    Unchanged,
    /// That of its member in the archive.
    FromMember(Box<Member>),
    /// That which it had: it was finished before, by this restore or an earlier one.
    Previous(Box<Stat>),
}

impl Drop for OpenFolder {
    fn drop(&mut self) {
        let Some(node) = &self.path else { return };
        let result = match &self.final_metadata {
            FinalMetadata::Unchanged => return,
            FinalMetadata::FromMember(_) if self.context.is_abandoned.load(Ordering::SeqCst) => None,
            FinalMetadata::FromMember(member) => Some(apply_metadata(&*self.handle, member, self.context.privileges)),
            FinalMetadata::Previous(stat) => {
                Some(restore_metadata(&*self.handle, stat).map(|()| MetadataLoss::default()))
            }
        };
        let end = match result {
            None => FolderEnd::Unfinished,
            Some(Ok(loss)) => FolderEnd::Finished(loss),
            Some(Err(error)) => FolderEnd::Failed(error),
        };
        // Cannot fail: the components come from a parsed path.
        let Ok(path) = node.to_path() else { return };
        (self.context.on_finished)(&path, end);
    }
}

/// The metadata of its member that a folder gets when it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderMetadata {
    /// All of it.
    All,
    /// The time only: it exists and has the rest.
    Time,
    /// None: it exists and stays as it is.
    Unchanged,
}

/// Why an entry cannot be created.
#[derive(Debug)]
pub enum CreateError {
    /// This path must be a folder, and is a symbolic link or a file.
    NotAFolder(MemberPath),
    /// The system reports an error.
    Io(io::Error),
}

impl From<io::Error> for CreateError {
    fn from(error: io::Error) -> Self {
        CreateError::Io(error)
    }
}

/// The open folders from the confined folder down to the one in which entries are being created.
pub struct FolderTree {
    root: Option<Arc<OpenFolder>>,
    levels: Vec<(Arc<PathNode>, Option<Arc<OpenFolder>>)>,
    /// Folders that were left while other threads still create entries in them. Held here, so that none of those
    /// threads closes one while the archive returns to it.
    left: HashMap<MemberPath, Arc<OpenFolder>>,
    confined: Option<ConfinedFolder>,
    context: Arc<TreeContext>,
}

impl FolderTree {
    /// Begins without a confined folder: no folder exists yet.
    pub fn new(context: TreeContext) -> FolderTree {
        FolderTree { root: None, levels: Vec::new(), left: HashMap::new(), confined: None, context: Arc::new(context) }
    }

    /// Sets the confined folder. To be called before any folder is entered.
    pub fn set_confined(&mut self, confined: ConfinedFolder) {
        self.root = Some(Arc::new(OpenFolder {
            handle: confined.root(),
            may_have_default_acl: true,
            is_private: false,
            path: None,
            final_metadata: FinalMetadata::Unchanged,
            context: self.context.clone(),
        }));
        self.confined = Some(confined);
    }

    /// Returns whether the tree has a confined folder.
    pub fn has_confined(&self) -> bool {
        self.confined.is_some()
    }

    /// Opens the parent folder of `path`, and creates it if it does not exist. Returns `None` in a dry run if it does
    /// not exist.
    pub fn parent_of(&mut self, path: &MemberPath) -> Result<Option<Arc<OpenFolder>>, CreateError> {
        match path.parent() {
            Some(parent) => self.enter(&parent),
            None => {
                self.leave_below(0)?;
                Ok(self.root.clone())
            }
        }
    }

    fn enter(&mut self, path: &MemberPath) -> Result<Option<Arc<OpenFolder>>, CreateError> {
        let open_levels = self.open_levels(path);
        self.leave_below(open_levels)?;
        let mut current = self.levels.last().map_or_else(|| self.root.clone(), |(_, folder)| folder.clone());
        let bytes = path.as_bytes();
        let ends = (0..bytes.len()).filter(|&at| bytes[at] == b'/').chain([bytes.len()]);
        for end in ends.skip(open_levels).collect::<Vec<_>>() {
            let level = MemberPath::parse(&bytes[..end]).map_err(|e| io::Error::other(e.to_string()))?;
            let node = self.node_below(&level);
            current = match current {
                Some(folder) => self.enter_child(&folder, &level, &node)?,
                None => None,
            };
            self.levels.push((node, current.clone()));
        }
        Ok(current)
    }

    /// Leaves all levels but the first `kept`. A folder that another thread still uses is remembered: if the archive
    /// returns to it, it must not get its metadata in between.
    fn leave_below(&mut self, kept: usize) -> io::Result<()> {
        while self.levels.len() > kept {
            let Some((node, Some(folder))) = self.levels.pop() else { continue };
            if Arc::strong_count(&folder) > 1 {
                // As many as files are in flight, so the map stays small.
                self.left.retain(|_, folder| Arc::strong_count(folder) > 1);
                let path = node.to_path().map_err(|e| io::Error::other(e.to_string()))?;
                self.left.insert(path, folder);
            }
        }
        Ok(())
    }

    /// Returns a folder that was left, is still in use, and is what `stat` describes.
    fn return_to(&self, path: &MemberPath, stat: &Stat) -> io::Result<Option<Arc<OpenFolder>>> {
        let Some(folder) = self.left.get(path).cloned() else { return Ok(None) };
        let open = rustix::fs::fstat(&*folder.handle)?;
        Ok(((open.st_dev, open.st_ino) == (stat.st_dev, stat.st_ino)).then_some(folder))
    }

    /// Returns how many of the open levels lead to `path`.
    fn open_levels(&self, path: &MemberPath) -> usize {
        let names = path.as_bytes().split(|&b| b == b'/');
        self.levels.iter().zip(names).take_while(|((node, _), name)| *node.name == **name).count()
    }

    /// Returns the node of a folder directly below the last level.
    fn node_below(&self, path: &MemberPath) -> Arc<PathNode> {
        Arc::new(PathNode { parent: self.levels.last().map(|(node, _)| node.clone()), name: path.file_name().into() })
    }

    /// Opens a subfolder, and creates it if it does not exist.
    fn enter_child(
        &self,
        parent: &OpenFolder,
        path: &MemberPath,
        node: &Arc<PathNode>,
    ) -> Result<Option<Arc<OpenFolder>>, CreateError> {
        let (name, completed) = (path.file_name(), &self.context.completed);
        let in_use = |folder| Some(Arc::new(folder));
        // Asked first: this waits for a file of this name that is still being written.
        let is_complete = completed.contains(path);
        match stat_entry(&*parent.handle, name)? {
            None if self.context.is_dry_run => Ok(None),
            None => {
                if completed.is_failed_folder(path) {
                    create_folder(&parent.handle, name)?;
                } else {
                    create_plain_folder(&parent.handle, name)?;
                }
                completed.complete(path);
                self.open(parent, path, node, parent.may_have_default_acl, FinalMetadata::Unchanged).map(in_use)
            }
            Some(stat) if kind_of(&stat) == Some(MemberKind::Folder) => {
                if let Some(folder) = self.return_to(path, &stat)? {
                    return Ok(Some(folder));
                }
                // A folder that is finished already gets back the metadata that it has now. A failed one counts as
                // complete too, but still has exactly the mode of an unfinished folder.
                let is_finished = is_complete && !is_unfinished(&stat, stat.st_mode);
                let final_metadata = if is_finished && !self.context.is_dry_run && self.may_change(&stat) {
                    FinalMetadata::Previous(Box::new(stat))
                } else {
                    FinalMetadata::Unchanged
                };
                self.open(parent, path, node, true, final_metadata).map(in_use)
            }
            Some(_) => Err(CreateError::NotAFolder(path.clone())),
        }
    }

    /// Creates the folder of a member, or opens it if it `exists`. When it is closed, it gets what `metadata` says.
    pub fn create_folder(
        &mut self,
        member: &Member,
        exists: bool,
        metadata: FolderMetadata,
    ) -> Result<(), CreateError> {
        let path = &member.path;
        let parent = self.parent_of(path)?;
        let depth = path.as_bytes().iter().filter(|&&b| b == b'/').count();
        self.leave_below(depth)?;
        let node = self.node_below(path);
        let Some(parent) = parent.filter(|_| !self.context.is_dry_run || exists) else {
            self.levels.push((node, None));
            return Ok(());
        };
        if !exists {
            create_folder(&*parent.handle, path.file_name())?;
        }
        let final_metadata = self.final_metadata(&parent, member, exists, metadata)?;
        let mut folder = self.open(&parent, path, &node, exists, final_metadata)?;
        folder.is_private = !exists;
        if !exists && parent.may_have_default_acl {
            clear_inherited_acl(&*folder.handle);
        }
        self.levels.push((node, Some(Arc::new(folder))));
        Ok(())
    }

    fn final_metadata(
        &self,
        parent: &OpenFolder,
        member: &Member,
        exists: bool,
        metadata: FolderMetadata,
    ) -> io::Result<FinalMetadata> {
        let name = member.path.file_name();
        let Some(mut stat) = stat_entry(&*parent.handle, name)? else { return Ok(FinalMetadata::Unchanged) };
        if self.context.is_dry_run || exists && !self.may_change(&stat) {
            return Ok(FinalMetadata::Unchanged);
        }
        if metadata == FolderMetadata::All {
            // Only the last component: the node keeps the parents, see `PathNode`.
            let path = MemberPath::parse(name).map_err(|e| io::Error::other(e.to_string()))?;
            return Ok(FinalMetadata::FromMember(Box::new(Member { path, ..member.clone() })));
        }
        if metadata == FolderMetadata::Time {
            set_modified(&mut stat, member.modified);
        }
        // A folder that has the time of the archive keeps it, even if entries that were missing are created in it.
        Ok(match modified_of(&stat) == member.modified {
            true => FinalMetadata::Previous(Box::new(stat)),
            false => FinalMetadata::Unchanged,
        })
    }

    /// Returns whether this process may set mode and times of a folder: nobody but its owner and root may.
    fn may_change(&self, stat: &Stat) -> bool {
        self.context.privileges.is_root || stat.st_uid == self.context.privileges.uid
    }

    fn open(
        &self,
        parent: &OpenFolder,
        path: &MemberPath,
        node: &Arc<PathNode>,
        may_have_default_acl: bool,
        final_metadata: FinalMetadata,
    ) -> Result<OpenFolder, CreateError> {
        let handle = self.confined()?.open_folder_in(parent.handle.as_fd(), path.file_name()).map_err(|e| match e {
            Errno::LOOP | Errno::NOTDIR => CreateError::NotAFolder(path.clone()),
            e => CreateError::Io(e.into()),
        })?;
        let handle = Arc::new(handle);
        if !matches!(final_metadata, FinalMetadata::Unchanged) {
            make_passable(&*handle)?;
        }
        if !self.context.is_dry_run {
            lock_folder(&handle)?;
        }
        let (path, context) = (Some(node.clone()), self.context.clone());
        Ok(OpenFolder { handle, may_have_default_acl, is_private: false, path, final_metadata, context })
    }

    fn confined(&self) -> io::Result<&ConfinedFolder> {
        self.confined.as_ref().ok_or_else(|| io::Error::other("there is no target"))
    }

    /// Opens the parent folder of an entry that was created before, for a hard link to it. Creates nothing.
    pub fn existing_parent_of(&self, path: &MemberPath) -> io::Result<Arc<OwnedFd>> {
        let confined = self.confined()?;
        let Some(parent) = path.parent() else { return Ok(confined.root()) };
        let depth = parent.as_bytes().iter().filter(|&&b| b == b'/').count() + 1;
        let open = (self.open_levels(&parent) == depth).then(|| &self.levels[depth - 1].1);
        match open {
            Some(Some(folder)) => Ok(folder.handle.clone()),
            _ => confined.open_folder(&parent).map(Arc::new),
        }
    }

    /// Closes all folders, from the deepest to the confined folder, and returns that.
    pub fn close(mut self) -> Option<ConfinedFolder> {
        while self.levels.pop().is_some() {}
        self.left.clear();
        self.confined.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::member::{FileTime, Xattrs};

    fn folder(path: &str) -> Member {
        Member {
            path: MemberPath::parse(path.as_bytes()).unwrap(),
            kind: MemberKind::Folder,
            size: 0,
            mode: 0o555,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            user_name: Box::default(),
            group_name: Box::default(),
            modified: FileTime { seconds: 1_000_000, nanoseconds: 0 },
            link_target: None,
            device_number: None,
            xattrs: Xattrs::new(),
        }
    }

    #[test]
    fn a_folder_that_is_left_and_entered_again_while_it_is_in_use_is_finished_once_and_last() {
        let dir = tempfile::tempdir().unwrap();
        let finished = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&finished);
        let context = TreeContext {
            completed: Arc::default(),
            is_abandoned: Arc::default(),
            on_finished: Box::new(move |path, _| record.lock().unwrap().push(path.to_string())),
            privileges: Privileges::of_process(false),
            is_dry_run: false,
        };
        let mut tree = FolderTree::new(context);
        tree.set_confined(ConfinedFolder::open(dir.path()).unwrap());
        let parent_of = |tree: &mut FolderTree, path: &str| {
            tree.parent_of(&MemberPath::parse(path.as_bytes()).unwrap()).unwrap().unwrap()
        };
        tree.create_folder(&folder("d"), false, FolderMetadata::All).unwrap();
        // A thread that still writes d/a, while the archive goes on elsewhere and then returns.
        let writer = parent_of(&mut tree, "d/a");
        drop(parent_of(&mut tree, "elsewhere/x"));
        let again = parent_of(&mut tree, "d/b");
        drop(writer);
        assert!(finished.lock().unwrap().is_empty(), "d/b is still to be created in it");
        create_folder(&*again.handle, b"b").unwrap();
        drop(again);
        tree.close();
        assert_eq!(*finished.lock().unwrap(), ["d"]);
        let stat = stat_entry(rustix::fs::CWD, dir.path().join("d").as_os_str().as_encoded_bytes()).unwrap().unwrap();
        assert_eq!((stat.st_mode & 0o7777, stat.st_mtime), (0o555, 1_000_000));
    }
}
