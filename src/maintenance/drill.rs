//! Restore tests (verb `drill`): the newest good archive of a schedule is restored into a scratch folder, compared with
//! the catalog, and removed. Only an archive that was restored once is known to be restorable.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::archive_folder;
use crate::browse::{OpenArchive, Selection};
use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::home::Home;
use crate::maintenance::verify;
use crate::member::{CatalogMember, MemberKind, MemberPath};
use crate::progress::{Observer, Problem, Progress};
use crate::restore::{self, Options};
use crate::store::{Archive, Drill, ScheduleRow, Store};

/// Name of the scratch folder in the archive folder, which is used unless another one is given.
const SCRATCH_FOLDER: &str = ".scratch";
/// Bytes of content that one drill restores at most by default.
pub const SAMPLE_BYTES: u64 = 1 << 30;
/// Number of files picked at most from an archive whose content is larger than that.
const MAX_FILES: u64 = 1_000;
/// Bytes that must stay free besides those restored.
const SPARE_BYTES: u64 = 64 << 20;
/// Number of differences reported at most.
const MAX_DIFFERENCES: usize = 20;

/// What drills need besides the home and the database.
pub struct DrillContext<'a> {
    /// The time.
    pub clock: &'a dyn Clock,
    /// Receives progress and notes.
    pub observer: &'a dyn Observer,
    /// Ends the work early.
    pub cancel: &'a CancelToken,
    /// Number of threads that decode.
    pub threads: usize,
    /// Bytes of content restored at most; of a larger archive a sample is restored.
    pub sample_bytes: u64,
    /// Folder to restore into; `None` for one in the archive folder.
    pub scratch: Option<&'a Path>,
}

/// The result of a drill.
#[derive(Clone, Debug)]
pub struct DrillOutcome {
    /// Number of the run whose archive was restored.
    pub run: i64,
    /// Files restored and compared.
    pub files: u64,
    /// Bytes of their content.
    pub content_bytes: u64,
    /// Differences between the restored files and the catalog, in words; empty if the drill passed.
    pub differences: Vec<String>,
}

/// Restores the newest good archive of a schedule, or a sample of it, compares the restored files with the catalog,
/// removes them, and records the result. An archive with differences is also verified, which marks it if it is damaged.
///
/// Errors: `NotFound` if there is no good archive; `Busy` while another drill is running; `DiskFull` if the scratch
/// folder has too little space; `Interrupted` after `cancel`. In these cases nothing is recorded.
pub fn drill(home: &Home, store: &Store, row: &ScheduleRow, context: &DrillContext<'_>) -> Result<DrillOutcome> {
    archive_folder::ensure_ours(home, store)?;
    let archive = store.newest_good(row.id)?.ok_or_else(|| {
        Error::not_found(format!("{} has no good archive", row.schedule.name))
            .hint(format!("make one with `backup-manager run {}`", row.schedule.name))
    })?;
    let scratch = Scratch::open(home, context.scratch)?;
    let sample = Sample::choose(store, &archive, context)?;
    scratch.check_free_space(sample.content_bytes)?;
    let started = context.clock.now();
    let found = restore_and_compare(home, store, &archive, &sample, &scratch, context);
    // Also when it was interrupted.
    scratch.clear()?;
    let outcome = match found {
        Ok(differences) => {
            DrillOutcome { run: archive.run, files: sample.files, content_bytes: sample.content_bytes, differences }
        }
        Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::DiskFull) => return Err(error),
        Err(error) => {
            DrillOutcome { run: archive.run, files: 0, content_bytes: 0, differences: vec![error.to_string()] }
        }
    };
    let error = (!outcome.differences.is_empty()).then(|| outcome.differences.join("; "));
    let drill = Drill {
        run: archive.run,
        started_at: started,
        finished_at: Some(context.clock.now()),
        passed: error.is_none(),
        files: outcome.files,
        content_bytes: outcome.content_bytes,
        error: error.clone(),
    };
    store.record_drill(row.id, &drill)?;
    if error.is_some() {
        let now = context.clock.now();
        verify::verify_archive(home, store, &archive, context.threads, context.cancel, now)?;
        archive_folder::refresh_stable_links(home, store, std::slice::from_ref(row), now)?;
    }
    Ok(outcome)
}

/// Passes everything on but problems: the differences report them.
struct WithoutProblems<'a>(&'a dyn Observer);

impl Observer for WithoutProblems<'_> {
    fn progress(&self, progress: &Progress) {
        self.0.progress(progress);
    }

    fn problem(&self, _: &Problem) {}

    fn note(&self, text: &str) {
        self.0.note(text);
    }
}

fn restore_and_compare(
    home: &Home,
    store: &Store,
    archive: &Archive,
    sample: &Sample,
    scratch: &Scratch,
    context: &DrillContext<'_>,
) -> Result<Vec<String>> {
    let opened = OpenArchive::from_catalog(home, store, archive.clone())?;
    let target = scratch.create_target()?;
    let selection = match &sample.paths {
        Some(paths) => Selection::exactly(paths.clone())?,
        None => Selection::everything()?,
    };
    let options = Options { threads: context.threads, ..Options::to(&target) };
    let mut restore_context = restore::RestoreContext {
        clock: context.clock,
        observer: &WithoutProblems(context.observer),
        cancel: context.cancel,
        on_action: &mut |_, _| {},
    };
    let report = restore::restore(&opened, &selection, &options, &mut restore_context)?;
    let (mut differences, reported) = reported_differences(&report);
    let is_root = rustix::process::geteuid().is_root();
    opened.catalog_members(&mut |_, entry| {
        if context.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Interrupted, "the restore test was interrupted"));
        }
        if differences.len() < MAX_DIFFERENCES
            && selection.selects(&entry.member.path)
            && !reported.contains(entry.member.path.as_bytes())
            && let Some(why) = difference(&target, &entry, is_root)?
        {
            differences.push(format!("{}: {why}", entry.member.path));
        }
        Ok(())
    })?;
    differences.truncate(MAX_DIFFERENCES);
    Ok(differences)
}

/// Returns what the restore reported, in words, and the paths it is about. A member that was not restored whole differs
/// in other ways too: each is reported once, for the first reason.
fn reported_differences(report: &restore::Report) -> (Vec<String>, BTreeSet<Box<[u8]>>) {
    let (mut differences, mut reported) = (Vec::new(), BTreeSet::new());
    for paths in [&report.damaged, &report.refused, &report.failed, &report.conflicts] {
        for (path, why) in &paths.list {
            if reported.insert(path.clone()) {
                differences.push(format!("{}: {why}", String::from_utf8_lossy(path)));
            }
        }
    }
    (differences, reported)
}

/// Compares a restored file with its member in the catalog; returns the first difference, in words.
fn difference(target: &Path, entry: &CatalogMember, is_root: bool) -> Result<Option<String>> {
    let member = &entry.member;
    if matches!(member.kind, MemberKind::CharDevice | MemberKind::BlockDevice) {
        return Ok(None);
    }
    let path = target.join(member.path.as_path());
    let found = match fs::symlink_metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some("it was not restored".to_owned())),
        Err(error) => return Err(Error::io("inspect", &path)(error)),
    };
    let kind = found.file_type();
    let is_kind = match member.kind {
        MemberKind::File | MemberKind::HardLink => kind.is_file(),
        MemberKind::Folder => kind.is_dir(),
        MemberKind::Symlink => kind.is_symlink(),
        _ => std::os::unix::fs::FileTypeExt::is_fifo(&kind),
    };
    if !is_kind {
        return Ok(Some("it was restored as something else".to_owned()));
    }
    if member.kind == MemberKind::Symlink {
        let leads_to = fs::read_link(&path).map_err(Error::io("read the link", &path))?;
        let is_same = member.link_target.as_deref() == Some(leads_to.as_os_str().as_bytes());
        return Ok((!is_same).then(|| "it leads elsewhere".to_owned()));
    }
    if found.mode() & 0o777 != member.mode & 0o777 {
        return Ok(Some(format!("its mode is {:o}, not {:o}", found.mode() & 0o777, member.mode & 0o777)));
    }
    let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
    if (seconds, nanoseconds) != (member.modified.seconds, i64::from(member.modified.nanoseconds)) {
        return Ok(Some("its time is another".to_owned()));
    }
    if is_root && (found.uid(), found.gid()) != (member.uid, member.gid) {
        return Ok(Some("its owner is another".to_owned()));
    }
    if member.kind != MemberKind::File {
        return Ok(None);
    }
    content_difference(&path, found.len(), entry)
}

/// Compares the content of a restored file with its member; returns the difference, in words.
fn content_difference(path: &Path, size: u64, entry: &CatalogMember) -> Result<Option<String>> {
    if size != entry.member.size {
        return Ok(Some(format!("it has {size} bytes, not {}", entry.member.size)));
    }
    let Some(digest) = entry.content_digest else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).map_err(Error::io("open", path))?).map_err(Error::io("read", path))?;
    Ok((*hasher.finalize().as_bytes() != digest).then(|| "its content is another".to_owned()))
}

/// The part of an archive that a drill restores.
struct Sample {
    /// Paths of files spread over the archive; `None` for all of it.
    paths: Option<Vec<MemberPath>>,
    files: u64,
    content_bytes: u64,
}

impl Sample {
    /// Chooses all of an archive that is small enough, else files spread over it, different ones each day.
    fn choose(store: &Store, archive: &Archive, context: &DrillContext<'_>) -> Result<Sample> {
        if archive.extent.content_bytes <= context.sample_bytes {
            return Ok(Sample {
                paths: None,
                files: archive.extent.files,
                content_bytes: archive.extent.content_bytes,
            });
        }
        let step = archive.extent.files.div_ceil(MAX_FILES).max(1);
        let days = context.clock.now().millis().div_euclid(86_400_000).unsigned_abs();
        let mut sample = Sample { paths: None, files: 0, content_bytes: 0 };
        let (mut paths, mut next, mut position) = (Vec::new(), Some(0), days % step);
        while let Some(from) = next {
            let (members, following) = store.members(archive.run, from, 256)?;
            for member in members.into_iter().map(|listed| listed.entry.member) {
                if member.kind != MemberKind::File {
                    continue;
                }
                position += 1;
                if position % step == 0 && sample.content_bytes.saturating_add(member.size) <= context.sample_bytes {
                    sample.content_bytes += member.size;
                    sample.files += 1;
                    paths.push(member.path);
                }
            }
            next = following;
        }
        if paths.is_empty() {
            return Err(Error::failed(format!("no file of @{} is small enough for a drill", archive.run))
                .hint("restore more with --size"));
        }
        sample.paths = Some(paths);
        Ok(sample)
    }
}

/// The folder that drills restore into, locked. Files left in it by a killed drill are removed first.
struct Scratch {
    folder: PathBuf,
    _locked: File,
}

impl Scratch {
    fn open(home: &Home, named: Option<&Path>) -> Result<Scratch> {
        let folder = named.map_or_else(|| home.backups().join(SCRATCH_FOLDER), Path::to_owned);
        durable::make_folder(&folder, home.folder_mode())?;
        let handle = File::open(&folder).map_err(Error::io("open", &folder))?;
        flock(&handle, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::busy(format!("another drill is running in {}", folder.display())).hint("wait until it has ended")
        })?;
        let scratch = Scratch { folder, _locked: handle };
        scratch.clear()?;
        Ok(scratch)
    }

    /// Returns the only path in the folder that drills use. Whatever else is in the folder belongs to the user.
    fn target(&self) -> PathBuf {
        self.folder.join("backup-manager-drill")
    }

    /// Creates the target, which [`clear`](Self::clear) has removed.
    fn create_target(&self) -> Result<PathBuf> {
        let target = self.target();
        durable::make_folder(&target, 0o700)?;
        Ok(target)
    }

    fn clear(&self) -> Result<()> {
        let target = self.target();
        match fs::remove_dir_all(&target) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(_) => {
                // Without root rights nothing can be removed from folders without write permission.
                make_folders_writable(&target)?;
                fs::remove_dir_all(&target).map_err(Error::io("remove", &target))
            }
        }
    }

    fn check_free_space(&self, content_bytes: u64) -> Result<()> {
        let facts = rustix::fs::statvfs(&self.folder)
            .map_err(io::Error::from)
            .map_err(Error::io("inspect the file system of", &self.folder))?;
        let free_bytes = facts.f_bavail.saturating_mul(facts.f_frsize);
        let needed_bytes = content_bytes.saturating_add(content_bytes / 10).saturating_add(SPARE_BYTES);
        if free_bytes >= needed_bytes {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::DiskFull,
            format!("a drill needs {needed_bytes} bytes in {}, and {free_bytes} are free", self.folder.display()),
        )
        .hint("name another folder with --scratch or BACKUP_SCRATCH, or restore less with --size"))
    }
}

fn make_folders_writable(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(Error::io("set the mode of", folder))?;
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_folders_writable(&entry.path())?;
        }
    }
    Ok(())
}
