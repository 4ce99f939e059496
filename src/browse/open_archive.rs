//! An archive opened for looking in: with the catalog where it is known there, else by its trailer, else as it stands.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Selection;
use crate::archive::content::{Content, Plan, PlannedChunk};
use crate::archive::members::Members;
use crate::archive::reader::ArchiveReader;
use crate::archive::trailer::Trailer;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::member::{CatalogMember, Extent, MemberPath};
use crate::store::{self, Archive, Store};

/// Chunks read from the catalog at a time.
const PAGE: u32 = 256;

/// An archive opened for looking in.
pub struct OpenArchive {
    reader: Arc<ArchiveReader>,
    catalog: Option<Catalog>,
    trailer: Option<Trailer>,
    note: Option<String>,
}

/// What the database knows of an archive.
#[derive(Clone)]
struct Catalog {
    store: Store,
    archive: Archive,
}

impl OpenArchive {
    /// Opens any tar file, with no database.
    pub fn from_file(path: &Path) -> Result<OpenArchive> {
        let reader = Arc::new(ArchiveReader::open(path)?);
        let (trailer, note) = match reader.trailer() {
            Ok(trailer) => (trailer, None),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(OpenArchive { reader, catalog: None, trailer, note })
    }

    /// Opens an archive that the database knows.
    pub fn from_catalog(home: &Home, store: &Store, archive: Archive) -> Result<OpenArchive> {
        let mut opened = OpenArchive::from_file(&home.backups().join(&archive.file_name))?;
        // The old system's archives are in the catalog without their members.
        if store.has_chunks(archive.run)? {
            (opened.note, opened.trailer) = (None, None);
            opened.catalog = Some(Catalog { store: store.clone(), archive });
        }
        Ok(opened)
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        self.reader.path()
    }

    /// Returns what is worth saying about how it is read.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Says whether this program made it, so that it has no name twice.
    pub fn is_ours(&self) -> bool {
        self.catalog.is_some() || self.trailer.is_some()
    }

    /// Returns members and bytes of content of the whole archive, where they are known.
    pub fn totals(&self) -> Option<Extent> {
        let catalog = self.catalog.as_ref().map(|catalog| catalog.archive.extent);
        catalog.or_else(|| self.trailer.as_ref().map(|t| t.facts().extent()))
    }

    /// Returns the source that the archive was made of, if it is one of ours.
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

    /// Makes a member's path of what a person wrote: its name in the archive, or the original absolute path.
    ///
    /// Errors: `Usage` for what can be neither.
    pub fn member_path(&self, written: &Path) -> Result<MemberPath> {
        let mut path = written.to_owned();
        if written.is_absolute() {
            let parent = self.source()?.and_then(|source| source.parent().map(Path::to_owned));
            let below = parent.and_then(|parent| written.strip_prefix(parent).ok().map(Path::to_owned));
            path = below.unwrap_or_else(|| written.strip_prefix("/").unwrap_or(written).to_owned());
        }
        // Drops `.` and doubled slashes.
        let plain: PathBuf = path.components().filter(|c| *c != std::path::Component::CurDir).collect();
        MemberPath::parse(plain.as_os_str().as_bytes())
    }

    /// Reads the members that `selection` means, and perhaps others: only the chunks that hold them where the catalog
    /// knows these.
    pub fn members(&self, selection: &Selection, threads: usize) -> Result<Members> {
        let reader = self.reader.clone();
        if let Some(catalog) = &self.catalog {
            if selection.is_everything() {
                return Ok(Members::new(Content::chunks(reader, catalog.whole_plan(), threads)));
            }
            let wanted = catalog.wanted_chunks(selection)?;
            return Ok(Members::partial(Content::chunks(reader, catalog.plan_of(wanted), threads)));
        }
        let Some(trailer) = &self.trailer else { return Ok(Members::new(Content::stream(reader))) };
        let file = reader.file().try_clone().map_err(Error::io("open", reader.path()))?;
        let path = reader.path().to_owned();
        let plan = trailer.entries(file).map(move |chunk| {
            let chunk = chunk.map_err(Error::io("read the trailer of", &path))?;
            Ok(PlannedChunk { chunk, is_jump: false })
        });
        Ok(Members::new(Content::chunks(reader, Box::new(plan), threads)))
    }

    /// Passes what the catalog knows of the members to `visit`, in order, with the chunk each begins in. Returns
    /// whether the catalog knows the archive; if not, nothing was passed.
    pub fn catalog_members(&self, visit: &mut dyn FnMut(u64, CatalogMember) -> Result<()>) -> Result<bool> {
        let Some(catalog) = &self.catalog else { return Ok(false) };
        let mut next = Some(0);
        while let Some(from) = next {
            let (members, behind) = catalog.store.members(catalog.archive.run, from, PAGE)?;
            members.into_iter().try_for_each(|listed| visit(listed.sequence, listed.entry))?;
            next = behind;
        }
        Ok(true)
    }

    /// Returns what the catalog knows of the members that begin in a few chunks from `sequence` on, and the first
    /// chunk behind these; nothing where the catalog does not know the archive.
    pub fn catalog_page(&self, sequence: u64) -> Result<Option<(Vec<store::CatalogEntry>, Option<u64>)>> {
        let page = |catalog: &Catalog| catalog.store.members(catalog.archive.run, sequence, 32);
        self.catalog.as_ref().map(page).transpose()
    }

    /// Returns the error for paths that nothing was found at, with the nearest names.
    pub fn not_found<'a>(&self, missing: impl IntoIterator<Item = &'a MemberPath>) -> Error {
        let missing: Vec<&MemberPath> = missing.into_iter().collect();
        let list: Vec<String> = missing.iter().map(|path| format!("\"{path}\"")).collect();
        let error = Error::not_found(format!("there is no {} in {}", list.join(", no "), self.path().display()));
        let Some(first) = missing.first() else { return error };
        match self.nearest(first) {
            Ok(near) if !near.is_empty() => error.hint(format!("did you mean {}?", near.join(" or "))),
            _ => error.hint(format!("see `backup-manager ls {}`", self.path().display())),
        }
    }

    /// Returns the member paths most like `path`.
    fn nearest(&self, path: &MemberPath) -> Result<Vec<String>> {
        let mut near: Vec<(f64, String)> = Vec::new();
        let wanted = path.to_string();
        let name = String::from_utf8_lossy(path.file_name()).into_owned();
        let mut consider = |other: &MemberPath| {
            let text = other.to_string();
            let same_name = strsim::jaro_winkler(&name, &String::from_utf8_lossy(other.file_name()));
            let likeness = strsim::jaro_winkler(&wanted, &text).max(same_name);
            if likeness > 0.85 && near.iter().all(|(_, known)| *known != text) {
                near.push((likeness, text));
                near.sort_by(|a, b| b.0.total_cmp(&a.0));
                near.truncate(3);
            }
        };
        let known = self.catalog_members(&mut |_, entry| {
            consider(&entry.member.path);
            Ok(())
        })?;
        if !known {
            let mut members = self.members(&Selection::everything()?, 2)?;
            while let Some(event) = members.next()? {
                if let crate::archive::members::Event::Member(entry) = event {
                    consider(&entry.member.path);
                }
            }
        }
        Ok(near.into_iter().map(|(_, text)| text).collect())
    }
}

impl Catalog {
    fn whole_plan(&self) -> Plan {
        let chunks = self.store.archive_chunks(self.archive.run);
        Box::new(chunks.map(|chunk| Ok(PlannedChunk { chunk: chunk?, is_jump: false })))
    }

    /// Returns the chunks in which wanted members begin.
    fn wanted_chunks(&self, selection: &Selection) -> Result<Vec<u64>> {
        let mut wanted = Vec::new();
        for path in selection.paths() {
            let chunks = self.store.chunks_with_path(self.archive.run, path, selection.includes_descendants())?;
            wanted.extend(chunks);
        }
        if selection.paths().len() == 0 {
            let mut next = Some(0);
            while let Some(from) = next {
                let (members, behind) = self.store.members(self.archive.run, from, PAGE)?;
                let meant = members.iter().filter(|listed| selection.selects(&listed.entry.member.path));
                wanted.extend(meant.map(|listed| listed.sequence));
                next = behind;
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        Ok(wanted)
    }

    fn plan_of(&self, wanted: Vec<u64>) -> Plan {
        let (store, run) = (self.store.clone(), self.archive.run);
        let mut end = 0;
        Box::new(wanted.into_iter().flat_map(move |first| {
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
