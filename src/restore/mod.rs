//! Restoring: members of an archive back into the file system, beneath a target and nowhere else (I11).
//!
//! One thread parses the archive in order, makes folders and links and decides what happens to each member; several
//! write small files. Folders get their mode and times last. A restore that was cut off is finished by running it
//! again: whatever stands at its place with the right size and time is whole.

mod decide;
mod report;
mod shared;
mod tree;
mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use self::shared::{Shared, tell};
use self::tree::{Folder, Obstacle, Tree};
use self::write::{FileJob, Unwritten};
use crate::archive::members::{Entry, Event, Members};
use crate::browse::{OpenArchive, Selection};
use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::confined::{self, ConfinedFolder, NewEntry, Privileges};
use crate::error::{Error, ErrorKind, Result};
use crate::member::{Member, MemberKind, MemberPath};
use crate::progress::{Observer, Progress};
pub use report::{Paths, Report};

/// Files up to this many bytes are handed to other threads whole.
const MOST_HANDED_OVER: u64 = 1 << 20;
/// Bytes of a larger file that are read at a time.
const PIECE_BYTES: usize = 1 << 18;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Hard links whose first name was not restored; more are a trap for memory.
const MOST_LINKS_WAITING: usize = 1 << 20;
/// Bytes of their names.
const MOST_LINKS_BYTES: usize = 256 << 20;

/// What happens to what stands at a member's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// It stays; if it is not what the archive has, that is a conflict.
    #[default]
    Never,
    /// It is replaced if its kind, size or time differs.
    IfChanged,
    /// It is replaced.
    Always,
}

/// How to restore.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder to restore into; made if it is missing.
    pub to: PathBuf,
    /// What happens to what stands there.
    pub overwrite: Overwrite,
    /// Leading components taken off every name.
    pub strip: usize,
    /// The first component becomes this, before any is taken off.
    pub rename_root: Option<Vec<u8>>,
    /// Writes nothing.
    pub dry_run: bool,
    /// Gives setuid and setgid bits and capabilities back.
    pub setuid: bool,
    /// Makes devices (root only).
    pub devices: bool,
    /// Opens folders component by component, as on systems without `openat2`.
    pub without_openat2: bool,
    /// Waits in the end until everything is on disk.
    pub sync: bool,
    /// Threads that decode, and as many that write.
    pub threads: usize,
}

impl Options {
    /// Restores into `to`, replacing nothing.
    pub fn to(to: &Path) -> Options {
        Options {
            to: to.to_owned(),
            overwrite: Overwrite::Never,
            strip: 0,
            rename_root: None,
            dry_run: false,
            setuid: false,
            devices: false,
            without_openat2: false,
            sync: true,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// What a restore does at a path, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes what was not there.
    Create,
    /// Replaces what stands there.
    Replace,
    /// Leaves it: it is what the archive has.
    Keep,
    /// Leaves it: it is something else.
    Conflict,
}

/// What a restore needs besides the archive.
pub struct RestoreContext<'a> {
    /// Where times come from.
    pub clock: &'a dyn Clock,
    /// Who is told of progress and trouble.
    pub observer: &'a dyn Observer,
    /// Ends the work when it becomes true.
    pub cancel: &'a CancelToken,
    /// Is told what happens at each path, beneath the target.
    pub on_action: &'a mut dyn FnMut(Action, &MemberPath),
}

/// Restores what `selection` means.
///
/// Errors: `NotFound` for a path that is not in the archive; `DiskFull`; `Interrupted`; `Damage` for a file that is no
/// archive; `Failed` for a target that cannot be made or written. Trouble with single members is in the report.
pub fn restore(
    archive: &OpenArchive,
    selection: &Selection,
    options: &Options,
    context: &mut RestoreContext<'_>,
) -> Result<Report> {
    raise_open_files();
    let target = open_target(options)?;
    let shared = Arc::new(Shared::new());
    let privileges = Privileges::of_process(options.setuid);
    let tree = Tree::new(target, shared.clone(), privileges, options.dry_run);
    let threads = options.threads.max(1);
    let (jobs, work) = bounded::<(FileJob, Vec<u8>)>(2 * threads);
    let result = std::thread::scope(|scope| {
        for _ in 0..threads {
            let (work, shared) = (work.clone(), shared.clone());
            scope.spawn(move || {
                for (job, data) in work {
                    write_handed_over(&shared, privileges, &job, data);
                }
            });
        }
        drop(work);
        let started = context.clock.monotonic();
        let mut restorer = Restorer {
            archive,
            options,
            context,
            shared: &shared,
            tree,
            privileges,
            jobs,
            links: Vec::new(),
            links_bytes: 0,
            digests: Digests::default(),
            started,
            told_at: started,
        };
        let result = restorer.run(selection);
        if result.is_err() {
            shared.abandon();
        }
        let Restorer { tree, jobs, .. } = restorer;
        drop(jobs);
        result.map(|()| tree)
    });
    // Whatever ended it early, a full disk says more than what followed from it.
    if let Some(fatal) = shared.take_fatal() {
        return Err(fatal);
    }
    if let Some(target) = result?.leave()
        && options.sync
        && !options.dry_run
    {
        target.sync()?;
    }
    if let Some(fatal) = shared.take_fatal() {
        return Err(fatal);
    }
    Ok(shared.take_report())
}

fn write_handed_over(shared: &Shared, privileges: Privileges, job: &FileJob, data: Vec<u8>) {
    if shared.has_fatal() {
        return shared.given_up(&job.entry.member.path, |_| {});
    }
    let mut data = Some(data);
    let result = job.write(privileges, &mut |buffer| match data.take() {
        Some(bytes) if !bytes.is_empty() => {
            *buffer = bytes;
            Ok(true)
        }
        _ => Ok(false),
    });
    job.record(shared, result);
}

/// Opens the target, and makes it if it is missing; nothing where a dry run finds none.
fn open_target(options: &Options) -> Result<Option<ConfinedFolder>> {
    let to = &options.to;
    match std::fs::metadata(to) {
        Ok(stat) if !stat.is_dir() => {
            return Err(Error::failed(format!("{} is not a folder", to.display())).hint("name another with --to"));
        }
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && options.dry_run => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(to).map_err(Error::io("make the target", to))?;
        }
        Err(e) => return Err(Error::io("open the target", to)(e)),
    }
    if !options.dry_run {
        use rustix::fs::Access;
        rustix::fs::access(to, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| {
            Error::failed(format!("the target {} is not writable", to.display()))
                .because(std::io::Error::from(e))
                .hint("name another with --to, or run as its owner")
        })?;
    }
    let target = ConfinedFolder::open(to)?;
    if !options.dry_run {
        confined::lock_folder(&target.root()).map_err(Error::io("clear up in the target", to))?;
    }
    Ok(Some(if options.without_openat2 { target.without_openat2() } else { target }))
}

/// A deep tree needs a descriptor for every folder on the way.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it only very deep trees fail, and say so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The side of a restore that goes through the archive.
struct Restorer<'a, 'c> {
    archive: &'a OpenArchive,
    options: &'a Options,
    context: &'a mut RestoreContext<'c>,
    shared: &'a Arc<Shared>,
    tree: Tree,
    privileges: Privileges,
    jobs: Sender<(FileJob, Vec<u8>)>,
    /// Hard links whose first name does not stand restored: that name in the archive, and the link with its place.
    links: Vec<(MemberPath, Box<Entry>)>,
    links_bytes: usize,
    digests: Digests,
    started: Duration,
    told_at: Duration,
}

/// Content digests that the catalog knows, a few chunks at a time.
#[derive(Default)]
struct Digests {
    of: HashMap<(u64, u64), [u8; 32]>,
    /// Chunks from the first on up to the second are in it.
    known: (u64, u64),
}

impl Digests {
    fn find(&mut self, archive: &OpenArchive, sequence: u64, offset: u64) -> Result<Option<[u8; 32]>> {
        if !(self.known.0..self.known.1).contains(&sequence) {
            let Some((members, behind)) = archive.catalog_page(sequence)? else { return Ok(None) };
            self.known = (sequence, behind.unwrap_or(u64::MAX));
            self.of.clear();
            let known =
                members.into_iter().filter_map(|m| Some(((m.sequence, m.entry.offset), m.entry.content_digest?)));
            self.of.extend(known);
        }
        Ok(self.of.get(&(sequence, offset)).copied())
    }
}

impl Restorer<'_, '_> {
    fn run(&mut self, selection: &Selection) -> Result<()> {
        self.pass(selection, |restorer, members, entry| restorer.member(members, entry))?;
        let missing = selection.missing();
        let has_gaps = self.shared.report(|report| report.damaged.count + report.refused.count > 0);
        if !has_gaps {
            // What was found is restored to the end all the same.
            self.shared.report(|report| report.missing = missing.into_iter().cloned().collect());
            return self.restore_links();
        }
        for path in missing {
            let reason = "it was not found, and parts of the archive are damaged".to_owned();
            tell(self.context.observer, path.as_bytes(), &reason);
            self.shared.report(|report| report.damaged.add(path.as_bytes(), reason));
        }
        self.restore_links()
    }

    /// Goes through the archive once.
    fn pass(
        &mut self,
        selection: &Selection,
        mut restore: impl FnMut(&mut Self, &mut Members, Box<Entry>) -> Result<()>,
    ) -> Result<()> {
        let mut members = self.archive.members(selection, self.options.threads)?;
        while let Some(event) = members.next()? {
            if self.context.cancel.is_cancelled() {
                return Err(Error::new(ErrorKind::Interrupted, "the restore was cancelled")
                    .hint("run the same command again: it finishes the rest"));
            }
            if self.shared.has_fatal() {
                return Ok(());
            }
            match event {
                Event::Member(entry) => {
                    if selection.selects(&entry.member.path) {
                        restore(self, &mut members, entry)?;
                    }
                }
                Event::Refused { name, reason } => self.refuse(&name, &reason),
                Event::Damaged { sequence, after, reason } => self.damage(selection, sequence, after, &reason)?,
            }
            self.tell_progress();
        }
        Ok(())
    }

    fn tell_progress(&mut self) {
        let now = self.context.clock.monotonic();
        if now.saturating_sub(self.told_at) < PROGRESS_EVERY {
            return;
        }
        self.told_at = now;
        let done = self.shared.report(|report| report.extent);
        let totals = self.archive.totals();
        self.context.observer.progress(&Progress {
            members: done.members,
            bytes: done.content_bytes,
            members_total: totals.map(|totals| totals.members),
            bytes_total: totals.map(|totals| totals.content_bytes),
            elapsed: now.saturating_sub(self.started),
        });
    }

    fn refuse(&mut self, name: &[u8], reason: &str) {
        tell(self.context.observer, name, &format!("refused: {reason}"));
        self.shared.report(|report| report.refused.add(name, reason.to_owned()));
    }

    /// Names what is lost with a damaged chunk: by the catalog, else by the last member before it.
    fn damage(&mut self, selection: &Selection, sequence: u64, after: Option<MemberPath>, reason: &str) -> Result<()> {
        let mut lost = Vec::new();
        // Behind the end there is no chunk.
        let page = if sequence == u64::MAX { None } else { self.archive.catalog_page(sequence)? };
        if let Some((members, _)) = page {
            let here = members.into_iter().filter(|m| m.sequence == sequence).map(|m| m.entry.member.path);
            lost.extend(here.filter(|path| selection.selects(path)).map(|path| (path, reason.to_owned())));
        } else if let Some(after) = after {
            let reason = format!("{reason}; members that stand behind this one may be lost");
            lost.push((after, reason));
        } else {
            self.shared.report(|report| report.damaged.add(b"", reason.to_owned()));
        }
        for (path, reason) in lost {
            tell(self.context.observer, path.as_bytes(), &format!("damaged: {reason}"));
            self.shared.report(|report| report.damaged.add(path.as_bytes(), reason));
        }
        Ok(())
    }

    /// Restores links whose first name was not meant, or could not be put at its place: the first of them gets the
    /// content, the others become links to it.
    fn restore_links(&mut self) -> Result<()> {
        let mut waiting: HashMap<MemberPath, Vec<Box<Entry>>> = HashMap::new();
        for (first, link) in std::mem::take(&mut self.links) {
            waiting.entry(first).or_default().push(link);
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let selection = Selection::exactly(waiting.keys().cloned().collect())?;
        self.pass(&selection, |restorer, members, mut entry| {
            if entry.member.kind == MemberKind::HardLink {
                return Ok(());
            }
            let Some(links) = waiting.remove(&entry.member.path) else { return Ok(()) };
            let mut links = links.into_iter();
            let Some(first) = links.next() else { return Ok(()) };
            entry.member.path = first.member.path;
            let carrier = entry.member.path.clone();
            restorer.put(members, entry)?;
            links.try_for_each(|link| restorer.link(&carrier, link, None))
        })?;
        for (first, links) in waiting {
            for link in links {
                self.refuse(link.member.path.as_bytes(), &format!("it is a hard link to {first}, which is not there"));
            }
        }
        Ok(())
    }
}
