//! The folders that a restore is working in. Each is finished, its mode and times last, when nobody works in it any
//! more: whoever lets go of it last does that.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::shared::Shared;
use crate::confined::{self, ConfinedFolder, Privileges};
use crate::error::Error;
use crate::member::{Member, MemberKind, MemberPath};

/// An open folder beneath the target.
pub(super) struct Folder {
    pub handle: Arc<OwnedFd>,
    /// What is made in it may inherit rights that the archive does not give.
    pub lends_rights: bool,
    /// Nothing for the target itself.
    way: Option<Arc<Way>>,
    finish: Finish,
    shared: Arc<Shared>,
    privileges: Privileges,
}

/// The path of a folder, each level once however many folders lie in it: an archive may have thousands of levels.
struct Way {
    above: Option<Arc<Way>>,
    name: Box<[u8]>,
}

impl Way {
    fn path(&self) -> Result<MemberPath, Error> {
        let mut names = vec![&*self.name];
        let mut at = &self.above;
        while let Some(way) = at {
            names.push(&way.name);
            at = &way.above;
        }
        names.reverse();
        MemberPath::parse(&names.join(&b'/'))
    }
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
        let Some(way) = &self.way else { return };
        let result = match &self.finish {
            Finish::Nothing => return,
            Finish::Member(_) if self.shared.is_abandoned() => return,
            Finish::Member(member) => confined::apply_metadata(&*self.handle, member, self.privileges),
            Finish::Again(stat) => {
                confined::restore_metadata(&*self.handle, stat).map(|()| confined::MetadataLoss::default())
            }
        };
        // It was made of a path.
        let Ok(path) = way.path() else { return };
        match result {
            Ok(loss) => self.shared.fell_short(&path, loss),
            Err(error) => self.shared.failed(&path, &error),
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
    target: Option<ConfinedFolder>,
    levels: Vec<(Arc<Way>, Option<Arc<Folder>>)>,
    root: Option<Arc<Folder>>,
    shared: Arc<Shared>,
    privileges: Privileges,
    dry: bool,
}

impl Tree {
    /// Starts at the target; without one, in a dry run, nothing exists yet.
    pub fn new(target: Option<ConfinedFolder>, shared: Arc<Shared>, privileges: Privileges, dry: bool) -> Tree {
        let root = target.as_ref().map(|target| {
            let (handle, shared) = (target.root(), shared.clone());
            Arc::new(Folder { handle, lends_rights: true, way: None, finish: Finish::Nothing, shared, privileges })
        });
        Tree { target, levels: Vec::new(), root, shared, privileges, dry }
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
        let shared = self.shared_levels(path);
        self.levels.truncate(shared);
        let mut current = self.levels.last().map_or_else(|| self.root.clone(), |(_, folder)| folder.clone());
        let bytes = path.as_bytes();
        let ends = (0..bytes.len()).filter(|&at| bytes[at] == b'/').chain([bytes.len()]);
        for end in ends.skip(shared).collect::<Vec<_>>() {
            let level = MemberPath::parse(&bytes[..end]).map_err(|e| io::Error::other(e.to_string()))?;
            let way = self.way_below(&level);
            current = match current {
                Some(folder) => self.step(&folder, &level, &way)?,
                None => None,
            };
            self.levels.push((way, current.clone()));
        }
        Ok(current)
    }

    /// Returns how many of the levels that are open lead to `path`.
    fn shared_levels(&self, path: &MemberPath) -> usize {
        let names = path.as_bytes().split(|&b| b == b'/');
        self.levels.iter().zip(names).take_while(|((way, _), name)| *way.name == **name).count()
    }

    /// Returns the way to a folder right below the last level.
    fn way_below(&self, path: &MemberPath) -> Arc<Way> {
        Arc::new(Way { above: self.levels.last().map(|(way, _)| way.clone()), name: path.file_name().into() })
    }

    /// Goes into one folder, which is made if it is missing.
    fn step(&self, parent: &Folder, path: &MemberPath, way: &Arc<Way>) -> Result<Option<Arc<Folder>>, Obstacle> {
        let name = path.file_name();
        // A file of this name may still be under way.
        let ours = self.shared.is_placed(path);
        match confined::stat_entry(&*parent.handle, name)? {
            None if self.dry => Ok(None),
            None => {
                let make =
                    if self.shared.is_owed(path) { confined::create_folder } else { confined::create_plain_folder };
                make(&parent.handle, name)?;
                self.shared.made_folder(path);
                self.open(parent, path, way, parent.lends_rights, Finish::Nothing).map(Some)
            }
            Some(stat) if confined::kind_of(&stat) == Some(MemberKind::Folder) => {
                // Who comes back to a folder that is finished leaves it as it was.
                let again = ours && !confined::is_unfinished(&stat, stat.st_mode) && !self.dry;
                let finish = if again { Finish::Again(Box::new(stat)) } else { Finish::Nothing };
                self.open(parent, path, way, true, finish).map(Some)
            }
            Some(_) => Err(Obstacle::InTheWay(path.clone())),
        }
    }

    /// Makes the folder of a member, or goes into the one that stands there. `metadata` says whether it gets what the
    /// member says.
    pub fn make(&mut self, member: &Member, exists: bool, metadata: bool) -> Result<(), Obstacle> {
        let path = &member.path;
        let parent = self.folder_of(path)?;
        let depth = path.as_bytes().iter().filter(|&&b| b == b'/').count();
        self.levels.truncate(depth);
        let way = self.way_below(path);
        let Some(parent) = parent.filter(|_| !self.dry || exists) else {
            self.levels.push((way, None));
            return Ok(());
        };
        if !exists {
            confined::create_folder(&*parent.handle, path.file_name())?;
        }
        let finish = match metadata {
            _ if self.dry => Finish::Nothing,
            // Its path is known by the way.
            true => Finish::Member(Box::new(Member {
                path: MemberPath::parse(path.file_name()).map_err(|e| io::Error::other(e.to_string()))?,
                ..member.clone()
            })),
            // What is missing in a folder that is as the archive has it does not make it another.
            false => match confined::stat_entry(&*parent.handle, path.file_name())? {
                Some(stat) if confined::modified_of(&stat) == member.modified => Finish::Again(Box::new(stat)),
                _ => Finish::Nothing,
            },
        };
        let folder = self.open(&parent, path, &way, exists, finish)?;
        if !exists && parent.lends_rights {
            confined::clear_inherited_acl(&*folder.handle);
        }
        self.levels.push((way, Some(folder)));
        Ok(())
    }

    fn open(
        &self,
        parent: &Folder,
        path: &MemberPath,
        way: &Arc<Way>,
        lends_rights: bool,
        finish: Finish,
    ) -> Result<Arc<Folder>, Obstacle> {
        let Some(target) = &self.target else { return Err(io::Error::other("there is no target").into()) };
        let handle = target.open_folder_in(std::os::fd::AsFd::as_fd(&*parent.handle), path.file_name()).map_err(
            |e| match e {
                rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => Obstacle::InTheWay(path.clone()),
                e => Obstacle::Io(e.into()),
            },
        )?;
        let handle = Arc::new(handle);
        if !matches!(finish, Finish::Nothing) {
            confined::make_passable(&*handle)?;
        }
        if !self.dry {
            confined::lock_folder(&handle)?;
        }
        let (way, shared, privileges) = (Some(way.clone()), self.shared.clone(), self.privileges);
        Ok(Arc::new(Folder { handle, lends_rights, way, finish, shared, privileges }))
    }

    /// Opens the folder of something that was placed before, for a link to it.
    pub fn look_up_folder_of(&self, path: &MemberPath) -> io::Result<Arc<OwnedFd>> {
        let Some(target) = &self.target else { return Err(io::Error::other("there is no target")) };
        match path.parent() {
            Some(parent) => {
                let depth = parent.as_bytes().iter().filter(|&&b| b == b'/').count() + 1;
                let open = (self.shared_levels(&parent) == depth).then(|| &self.levels[depth - 1].1);
                match open {
                    Some(Some(folder)) => Ok(folder.handle.clone()),
                    _ => target.open_folder(&parent).map(Arc::new),
                }
            }
            None => Ok(target.root()),
        }
    }

    /// Lets go of all folders and returns the target.
    pub fn leave(mut self) -> Option<ConfinedFolder> {
        while self.levels.pop().is_some() {}
        self.target.take()
    }
}
