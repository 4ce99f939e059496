//! An archive opened for reading: by the catalog if the database knows it, else by its trailer, else as a stream.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::selection::Selection;
use crate::archive::content::{Content, Plan, PlannedChunk};
use crate::archive::members::{Event, Members};
use crate::archive::reader::ArchiveReader;
use crate::archive::trailer::Trailer;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::liveness::SegmentLock;
use crate::member::{CatalogMember, Extent, MemberPath};
use crate::store::{self, Archive, Store};

/// Number of chunks whose members are read from the catalog at a time.
const PAGE_CHUNKS: u32 = 256;
/// The same for a single page that a caller asks for: it needs the members of few chunks.
const SMALL_PAGE_CHUNKS: u32 = 32;
/// How similar a path must be to be suggested; 1 is equal.
const MIN_SIMILARITY: f64 = 0.85;

/// An archive opened for reading.
pub struct OpenArchive {
    reader: Arc<ArchiveReader>,
    catalog: Option<Catalog>,
    trailer: Option<Trailer>,
    note: Option<String>,
    /// Keeps its segments from being removed.
    _lock: Option<SegmentLock>,
}

/// Access to the members of an archive in the database.
#[derive(Clone)]
struct Catalog {
    store: Store,
    archive: Archive,
}

impl OpenArchive {
    /// Opens any tar file, without a database.
    pub fn from_file(path: &Path) -> Result<OpenArchive> {
        let reader = Arc::new(ArchiveReader::open(path)?);
        let (trailer, note) = match reader.trailer() {
            Ok(trailer) => (trailer, None),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(OpenArchive { reader, catalog: None, trailer, note, _lock: None })
    }

    /// Opens an archive of the database.
    pub fn from_catalog(home: &Home, store: &Store, archive: Archive) -> Result<OpenArchive> {
        let lock = SegmentLock::to_read(home, archive.layout, &archive.file_name);
        let mut opened = OpenArchive::from_file(&home.backups().join(&archive.file_name))?;
        opened._lock = lock;
        // Archives of the old system are in the database without their members.
        if store.has_chunks(archive.run)? {
            (opened.note, opened.trailer) = (None, None);
            opened.catalog = Some(Catalog { store: store.clone(), archive });
        }
        Ok(opened)
    }

    /// Returns the reader of its stored bytes.
    pub(super) fn reader(&self) -> &ArchiveReader {
        &self.reader
    }

    /// Returns the archive digest, if the catalog has it.
    pub(super) fn digest(&self) -> Option<[u8; 32]> {
        self.catalog.as_ref()?.archive.digest.as_deref()?.try_into().ok()
    }

    /// Returns its size in bytes.
    pub fn size(&self) -> u64 {
        self.reader.size()
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        self.reader.path()
    }

    /// Returns why its trailer is not used, if it has one that cannot be read.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Returns whether this program wrote it. Such an archive has no two members of one path.
    pub fn is_ours(&self) -> bool {
        self.catalog.is_some() || self.trailer.is_some()
    }

    /// Returns members, files and bytes of content of the whole archive, if the catalog or the trailer has them.
    pub fn totals(&self) -> Option<Extent> {
        let catalog = self.catalog.as_ref().map(|catalog| catalog.archive.extent);
        catalog.or_else(|| self.trailer.as_ref().map(|t| t.facts().extent()))
    }

    /// Returns the path of the source that was archived, if this program wrote the archive.
    pub fn source(&self) -> Result<Option<PathBuf>> {
        if let Some(catalog) = &self.catalog {
            let root = catalog.store.source_root(catalog.archive.run)?;
            return Ok(Some(PathBuf::from(OsStr::from_bytes(&root))));
        }
        if self.trailer.is_none() {
            return Ok(None);
        }
        let mut members = self.members(&Selection::everything()?, 1)?;
        members.next()?;
        let comment: Option<serde_json::Value> =
            members.comment().and_then(|comment| serde_json::from_slice(comment).ok());
        Ok(comment.and_then(|comment| comment["source"].as_str().map(PathBuf::from)))
    }

    /// Converts a path given by the user to a member's path: its name in the archive, or the original absolute path.
    ///
    /// Errors: `Usage` for a path that can be neither.
    pub fn member_path(&self, given: &Path) -> Result<MemberPath> {
        let mut path = given.to_owned();
        if given.is_absolute() {
            let parent = self.source()?.and_then(|source| source.parent().map(Path::to_owned));
            let relative = parent.and_then(|parent| given.strip_prefix(parent).ok().map(Path::to_owned));
            path = relative.unwrap_or_else(|| given.strip_prefix("/").unwrap_or(given).to_owned());
        }
        // Removes `.` and repeated slashes.
        let plain: PathBuf = path.components().filter(|c| *c != std::path::Component::CurDir).collect();
        MemberPath::parse(plain.as_os_str().as_bytes())
            .map_err(|error| error.hint("name it as `backup-manager ls` lists it, or by its original absolute path"))
    }

    /// Reads the members that `selection` selects, and perhaps others: with a catalog, only the chunks that hold
    /// selected members are read, else the whole archive.
    pub fn members(&self, selection: &Selection, threads: usize) -> Result<Members<'static>> {
        let reader = self.reader.clone();
        if let Some(catalog) = &self.catalog {
            if selection.is_everything() {
                return Ok(Members::new(Content::chunks(reader, catalog.whole_plan(), threads)));
            }
            let plan = catalog.plan_of(catalog.selected_chunks(selection)?);
            return Ok(Members::partial(Content::chunks(reader, plan, threads)));
        }
        let Some(trailer) = &self.trailer else { return Ok(Members::new(Content::stream(reader))) };
        let plan = trailer.entries().map(|chunk| Ok(PlannedChunk { chunk: chunk?, is_jump: false }));
        Ok(Members::new(Content::chunks(reader, Box::new(plan), threads)))
    }

    /// Passes the members in the catalog to `visit`, in the order of the archive, each with the chunk in which it
    /// begins. Returns false, and passes nothing, if the catalog does not have the archive.
    pub fn catalog_members(&self, visit: &mut dyn FnMut(u64, CatalogMember) -> Result<()>) -> Result<bool> {
        let Some(catalog) = &self.catalog else { return Ok(false) };
        let mut next = Some(0);
        while let Some(from) = next {
            let (members, next_page) = catalog.store.members(catalog.archive.run, from, PAGE_CHUNKS)?;
            members.into_iter().try_for_each(|listed| visit(listed.sequence, listed.entry))?;
            next = next_page;
        }
        Ok(true)
    }

    /// Returns the members in the catalog that begin in the chunk `sequence` and a few after it, and the first chunk of
    /// the next page; `None` if the catalog does not have the archive.
    pub fn catalog_page(&self, sequence: u64) -> Result<Option<(Vec<store::CatalogEntry>, Option<u64>)>> {
        let page = |catalog: &Catalog| catalog.store.members(catalog.archive.run, sequence, SMALL_PAGE_CHUNKS);
        self.catalog.as_ref().map(page).transpose()
    }

    /// Returns the error for paths that the archive does not have. Its hint names the most similar paths.
    pub fn not_found<'a>(&self, missing: impl IntoIterator<Item = &'a MemberPath>) -> Error {
        let missing: Vec<&MemberPath> = missing.into_iter().collect();
        let list: Vec<String> = missing.iter().map(|path| format!("\"{path}\"")).collect();
        let error = Error::not_found(format!("there is no {} in {}", list.join(", no "), self.path().display()));
        let Some(first) = missing.first() else { return error };
        match self.similar_paths(first) {
            _ if looks_like_a_pattern(first.as_bytes()) => {
                error.hint("paths are not patterns: `restore` takes those with --include, and `find` searches for them")
            }
            Ok(similar) if !similar.is_empty() => error.hint(format!("did you mean {}?", similar.join(" or "))),
            _ => error.hint(format!("see `backup-manager ls {}`", self.path().display())),
        }
    }

    /// Returns up to three paths of members that are most similar to `path`, or have a similar file name.
    fn similar_paths(&self, path: &MemberPath) -> Result<Vec<String>> {
        let mut similar: Vec<(f64, String)> = Vec::new();
        let searched = path.to_string();
        let name = String::from_utf8_lossy(path.file_name()).into_owned();
        let mut consider = |other: &MemberPath| {
            let text = other.to_string();
            let by_name = strsim::jaro_winkler(&name, &String::from_utf8_lossy(other.file_name()));
            let similarity = strsim::jaro_winkler(&searched, &text).max(by_name);
            if similarity > MIN_SIMILARITY && similar.iter().all(|(_, known)| *known != text) {
                similar.push((similarity, text));
                similar.sort_by(|a, b| b.0.total_cmp(&a.0));
                similar.truncate(3);
            }
        };
        let is_in_catalog = self.catalog_members(&mut |_, entry| {
            consider(&entry.member.path);
            Ok(())
        })?;
        if !is_in_catalog {
            let mut members = self.members(&Selection::everything()?, 2)?;
            while let Some(event) = members.next()? {
                if let Event::Member(entry) = event {
                    consider(&entry.member.path);
                }
            }
        }
        Ok(similar.into_iter().map(|(_, text)| text).collect())
    }
}

impl Catalog {
    fn whole_plan(&self) -> Plan {
        let chunks = self.store.archive_chunks(self.archive.run);
        Box::new(chunks.map(|chunk| Ok(PlannedChunk { chunk: chunk?, is_jump: false })))
    }

    /// Returns the chunks in which selected members begin.
    fn selected_chunks(&self, selection: &Selection) -> Result<Vec<u64>> {
        let mut selected = Vec::new();
        for path in selection.paths() {
            let chunks = self.store.chunks_with_path(self.archive.run, path, selection.includes_descendants())?;
            selected.extend(chunks);
        }
        if selection.paths().len() == 0 {
            let mut next = Some(0);
            while let Some(from) = next {
                let (members, next_page) = self.store.members(self.archive.run, from, PAGE_CHUNKS)?;
                let matching = members.iter().filter(|listed| selection.selects(&listed.entry.member.path));
                selected.extend(matching.map(|listed| listed.sequence));
                next = next_page;
            }
        }
        selected.sort_unstable();
        selected.dedup();
        Ok(selected)
    }

    /// Returns the plan that reads the units which begin with these chunks.
    fn plan_of(&self, first_chunks: Vec<u64>) -> Plan {
        let (store, run) = (self.store.clone(), self.archive.run);
        let mut end = 0;
        Box::new(first_chunks.into_iter().flat_map(move |first| {
            let chunks = match store.chunks_of_unit(run, first) {
                Ok(chunks) => chunks,
                Err(error) => return vec![Err(error)],
            };
            let is_jump = first != end;
            end = chunks.last().map_or(first, |chunk| chunk.sequence) + 1;
            chunks
                .iter()
                .map(|chunk| Ok(PlannedChunk { chunk: *chunk, is_jump: is_jump && chunk.sequence == first }))
                .collect()
        }))
    }
}

/// Returns whether a path holds `*`, `?` or a pair of brackets.
fn looks_like_a_pattern(path: &[u8]) -> bool {
    let has = |wanted: u8| path.contains(&wanted);
    has(b'*') || has(b'?') || (has(b'[') && has(b']'))
}
