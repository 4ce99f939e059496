//! The folders that a restore is working in. Each is finished, its mode and times last, when nobody works in it any
//! more: whoever lets go of it last does that.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::shared::Shared;
use crate::archive::extract::{self, Powers, Target};
use crate::member::{Member, MemberKind, MemberPath};

/// An open folder beneath the target.
pub(super) struct Folder {
    pub handle: Arc<OwnedFd>,
    /// What is made in it may inherit rights that the archive does not give.
    pub lends_rights: bool,
    path: Option<MemberPath>,
    finish: Finish,
    shared: Arc<Shared>,
    powers: Powers,
}

/// What a folder gets in the end.
enum Finish {
    Nothing,
    /// What the archive says.
    Member(Box<Member>),
    /// What it had: it was finished already, now or by an earlier restore.
    Again(Box<rustix::fs::Stat>),
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        let result = match &self.finish {
            Finish::Nothing => return,
            Finish::Member(_) if self.shared.is_abandoned() => return,
            Finish::Member(member) => extract::finish(&*self.handle, member, self.powers),
            Finish::Again(stat) => extract::leave_as_was(&*self.handle, stat).map(|()| extract::Shortfall::default()),
        };
        match result {
            Ok(shortfall) => self.shared.fell_short(path, shortfall),
            Err(error) => self.shared.failed(path, &error),
        }
    }
}

/// Why something cannot be made at its place.
pub(super) enum Obstacle {
    /// A link or a file stands where a folder must be: `path`.
    InTheWay(MemberPath),
    Io(io::Error),
}

impl From<io::Error> for Obstacle {
    fn from(error: io::Error) -> Self {
        Obstacle::Io(error)
    }
}

/// The way from the target to where the restore is working.
pub(super) struct Tree {
    target: Option<Target>,
    levels: Vec<(MemberPath, Option<Arc<Folder>>)>,
    root: Option<Arc<Folder>>,
    shared: Arc<Shared>,
    powers: Powers,
    dry: bool,
}

impl Tree {
    /// Starts at the target; without one, in a dry run, nothing exists yet.
    pub fn new(target: Option<Target>, shared: Arc<Shared>, powers: Powers, dry: bool) -> Tree {
        let root = target.as_ref().map(|target| {
            let (handle, shared) = (target.root(), shared.clone());
            Arc::new(Folder { handle, lends_rights: true, path: None, finish: Finish::Nothing, shared, powers })
        });
        Tree { target, levels: Vec::new(), root, shared, powers, dry }
    }

    /// Returns the folder that holds `path`, and makes it where it is missing; nothing where it would be missing in a
    /// dry run.
    pub fn folder_of(&mut self, path: &MemberPath) -> Result<Option<Arc<Folder>>, Obstacle> {
        match path.parent() {
            Some(parent) => self.enter(&parent),
            None => {
                self.levels.clear();
                Ok(self.root.clone())
            }
        }
    }

    fn enter(&mut self, path: &MemberPath) -> Result<Option<Arc<Folder>>, Obstacle> {
        while self.levels.last().is_some_and(|(level, _)| !is_at_or_below(path, level)) {
            self.levels.pop();
        }
        let mut current = self.levels.last().map_or_else(|| self.root.clone(), |(_, folder)| folder.clone());
        let reached = self.levels.last().map_or(0, |(level, _)| level.as_bytes().len() + 1);
        let bytes = path.as_bytes();
        let ends = (reached..bytes.len()).filter(|&at| bytes[at] == b'/').chain([bytes.len()]);
        for end in ends.collect::<Vec<_>>() {
            if end < reached {
                break;
            }
            let level = MemberPath::parse(&bytes[..end]).map_err(|e| io::Error::other(e.to_string()))?;
            current = match current {
                Some(folder) => self.step(&folder, &level)?,
                None => None,
            };
            self.levels.push((level, current.clone()));
        }
        Ok(current)
    }

    /// Goes into one folder, which is made if it is missing.
    fn step(&self, parent: &Folder, path: &MemberPath) -> Result<Option<Arc<Folder>>, Obstacle> {
        let name = path.file_name();
        // A file of this name may still be under way.
        let ours = self.shared.is_placed(path);
        match extract::look(&*parent.handle, name)? {
            None if self.dry => Ok(None),
            None => {
                let make = if self.shared.is_owed(path) { extract::make_folder } else { extract::make_plain_folder };
                make(&parent.handle, name)?;
                self.shared.made_folder(path);
                self.open(parent, path, parent.lends_rights, Finish::Nothing).map(Some)
            }
            Some(stat) if extract::kind_of(&stat) == Some(MemberKind::Folder) => {
                // Who comes back to a folder that is finished leaves it as it was.
                let again = ours && !extract::is_unfinished(&stat, stat.st_mode) && !self.dry;
                let finish = if again { Finish::Again(Box::new(stat)) } else { Finish::Nothing };
                self.open(parent, path, true, finish).map(Some)
            }
            Some(_) => Err(Obstacle::InTheWay(path.clone())),
        }
    }

    /// Makes the folder of a member, or goes into the one that stands there. `metadata` says whether it gets what the
    /// member says.
    pub fn make(&mut self, member: &Member, exists: bool, metadata: bool) -> Result<(), Obstacle> {
        let path = &member.path;
        while self.levels.last().is_some_and(|(level, _)| is_at_or_below(level, path)) {
            self.levels.pop();
        }
        let Some(parent) = self.folder_of(path)? else {
            self.levels.push((path.clone(), None));
            return Ok(());
        };
        if self.dry && !exists {
            self.levels.push((path.clone(), None));
            return Ok(());
        }
        if !exists {
            extract::make_folder(&*parent.handle, path.file_name())?;
        }
        let finish = match metadata {
            _ if self.dry => Finish::Nothing,
            true => Finish::Member(Box::new(member.clone())),
            // What is missing in a folder that is as the archive has it does not make it another.
            false => match extract::look(&*parent.handle, path.file_name())? {
                Some(stat) if extract::modified_of(&stat) == member.modified => Finish::Again(Box::new(stat)),
                _ => Finish::Nothing,
            },
        };
        let folder = self.open(&parent, path, exists, finish)?;
        if !exists && parent.lends_rights {
            extract::clear_inherited_acl(&*folder.handle);
        }
        self.levels.push((path.clone(), Some(folder)));
        Ok(())
    }

    fn open(
        &self,
        parent: &Folder,
        path: &MemberPath,
        lends_rights: bool,
        finish: Finish,
    ) -> Result<Arc<Folder>, Obstacle> {
        let Some(target) = &self.target else { return Err(io::Error::other("there is no target").into()) };
        let handle =
            target.folder_in(std::os::fd::AsFd::as_fd(&*parent.handle), path.file_name()).map_err(|e| match e {
                rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => Obstacle::InTheWay(path.clone()),
                e => Obstacle::Io(e.into()),
            })?;
        let handle = Arc::new(handle);
        if !matches!(finish, Finish::Nothing) {
            extract::make_passable(&*handle)?;
        }
        if !self.dry {
            extract::hold(&handle)?;
        }
        let (path, shared, powers) = (Some(path.clone()), self.shared.clone(), self.powers);
        Ok(Arc::new(Folder { handle, lends_rights, path, finish, shared, powers }))
    }

    /// Opens the folder of something that was placed before, for a link to it.
    pub fn look_up_folder_of(&self, path: &MemberPath) -> io::Result<Arc<OwnedFd>> {
        let Some(target) = &self.target else { return Err(io::Error::other("there is no target")) };
        match path.parent() {
            Some(parent) => {
                let open = self.levels.iter().rev().find(|(level, _)| *level == parent);
                match open {
                    Some((_, Some(folder))) => Ok(folder.handle.clone()),
                    _ => target.folder(&parent).map(Arc::new),
                }
            }
            None => Ok(target.root()),
        }
    }

    /// Lets go of all folders and returns the target.
    pub fn leave(mut self) -> Option<Target> {
        while self.levels.pop().is_some() {}
        self.target.take()
    }
}

fn is_at_or_below(path: &MemberPath, folder: &MemberPath) -> bool {
    let rest = path.as_bytes().strip_prefix(folder.as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}
