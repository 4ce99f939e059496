//! The one parser of tar members: it decides what a catalog, a listing and a restore see. Ours and others': `ustar`,
//! pax, GNU (long names, sparse files, numbers in base 256) and v7.
//!
//! What it yields is safe to name: paths are [`MemberPath`]s. What it cannot trust it refuses by name and goes on.
//! Memory is bounded whatever the archive says.

mod block;
mod names;
mod pax;
mod spans;

use self::block::{Block, Family};
use self::names::{clean_path, link_target};
use self::pax::Pax;
use super::acl;
use super::content::{Content, Missing};
use super::header::BLOCK;
use crate::error::{Error, ErrorKind, Result};
use crate::member::{FileTime, Member, MemberKind, MemberPath, Span};

/// Records of one pax header, in bytes.
pub const MOST_PAX_BYTES: u64 = 8 << 20;
/// A name, in bytes.
pub const MOST_NAME_BYTES: usize = 1 << 20;
/// Bytes of the name that is told of a member that is refused.
const MOST_TOLD: usize = 8192;
/// Folders within folders.
pub const MOST_DEPTH: usize = 8192;
/// Members of an archive.
pub const MOST_MEMBERS: u64 = 50_000_000;

/// One member as the archive has it. Its data comes from [`Members::read`] until the next one is asked for.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What its headers say.
    pub member: Member,
    /// Bytes of data that stand in the archive.
    pub stored: u64,
    /// Where they belong, for a sparse file.
    pub spans: Option<Vec<Span>>,
    /// The chunk that its first header block lies in.
    pub sequence: u64,
    /// Offset of its first header block there.
    pub offset: u64,
    /// The archive named it from the root of the file system; that was taken off.
    pub was_absolute: bool,
}

/// What comes next in an archive.
#[derive(Debug)]
pub enum Event {
    /// A member.
    Member(Box<Entry>),
    /// A member that cannot be trusted, with its name as the archive has it; its data is passed over.
    Refused {
        /// The name, or what there is of it.
        name: Vec<u8>,
        /// What is wrong with it.
        reason: String,
    },
    /// Members may be lost here.
    Damaged {
        /// Chunk where it was noticed; the bytes of an archive without chunks are counted in MiB.
        sequence: u64,
        /// Name of the last member before.
        after: Option<MemberPath>,
        /// What is wrong.
        reason: String,
    },
}

/// Reads the members of an archive in order.
pub struct Members {
    content: Content,
    global: Pax,
    /// Of the current member: data and filling not passed yet.
    data_left: u64,
    padding: u64,
    count: u64,
    last: Option<MemberPath>,
    over: bool,
    begun: bool,
    /// Only parts of the archive are read: no end marks are waited for.
    partial: bool,
    /// Behind damage: whatever is no header is passed over.
    searching: bool,
}

/// Why a header could not be made into a member.
enum Trouble {
    Missing(Missing),
    /// What is wrong, and whether the place of the next header is known.
    Refused(Vec<u8>, String, bool),
}

impl From<Missing> for Trouble {
    fn from(missing: Missing) -> Self {
        Trouble::Missing(missing)
    }
}

/// What stands before the header of a member and belongs to it.
#[derive(Default)]
struct Ahead {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// What is wrong with any of it.
    wrong: Option<String>,
}

impl Members {
    /// Starts at the beginning of an archive, which is read to its end.
    pub fn new(content: Content) -> Members {
        Members::starting(content, false)
    }

    /// Reads the members in some chunks of an archive.
    pub fn partial(content: Content) -> Members {
        Members::starting(content, true)
    }

    fn starting(content: Content, partial: bool) -> Members {
        Members {
            content,
            global: Pax::default(),
            data_left: 0,
            padding: 0,
            count: 0,
            last: None,
            over: false,
            begun: partial,
            partial,
            searching: false,
        }
    }

    /// Returns the comment of the pax global header, if one was met.
    pub fn comment(&self) -> Option<&[u8]> {
        self.global.comment.as_deref()
    }

    /// Returns what comes next; nothing at the end of the archive.
    ///
    /// Errors: [`ErrorKind::Failed`] where this is no tar archive or has too many members, and what kept the plan of
    /// chunks from being read.
    #[allow(clippy::should_implement_trait, reason = "its data is read between two calls")]
    pub fn next(&mut self) -> Result<Option<Event>> {
        if self.over {
            return Ok(None);
        }
        let passed = self.content.skip(self.data_left + self.padding);
        let in_data = self.data_left > 0;
        (self.data_left, self.padding) = (0, 0);
        if let Err(missing) = passed {
            // Only filling at the very end may be missing.
            return if in_data || !matches!(missing, Missing::End) { self.interrupted(missing) } else { self.next() };
        }
        let (sequence, offset) = self.content.place();
        let event = match self.header() {
            Ok(None) => {
                self.over = true;
                None
            }
            Ok(Some(mut entry)) => {
                (entry.sequence, entry.offset) = (sequence, offset);
                self.last = Some(entry.member.path.clone());
                Some(Event::Member(entry))
            }
            Err(Trouble::Refused(name, reason, can_go_on)) => {
                if !can_go_on {
                    (self.data_left, self.padding) = (0, 0);
                }
                Some(Event::Refused { name, reason })
            }
            Err(Trouble::Missing(missing)) => return self.interrupted(missing),
        };
        self.begun = true;
        self.count += 1;
        if self.count > MOST_MEMBERS {
            return Err(Error::failed(format!("the archive has more than {MOST_MEMBERS} members"))
                .hint("name the paths that you want"));
        }
        Ok(event)
    }

    /// Reads data of the current member: as many bytes as there are, none at its end. Errors: why they are missing, in
    /// words; whatever else is in the archive can still be read.
    pub fn read(&mut self, out: &mut [u8]) -> std::result::Result<usize, String> {
        let count = usize::try_from(self.data_left).map_or(out.len(), |left| left.min(out.len()));
        if count == 0 {
            return Ok(0);
        }
        match self.content.read(&mut out[..count]) {
            Ok(count) => {
                self.data_left -= count as u64;
                Ok(count)
            }
            Err(missing) => Err(missing.reason()),
        }
    }

    fn interrupted(&mut self, missing: Missing) -> Result<Option<Event>> {
        if let Some(error) = self.content.take_failure() {
            return Err(error);
        }
        let (sequence, _) = self.content.place();
        match missing {
            Missing::End if self.content.jump() => return self.next(),
            Missing::Gap(_) => self.content.resynchronise(),
            Missing::End | Missing::Broken(_) => self.over = true,
        }
        let reason = missing.reason();
        if !self.begun && self.over {
            let file = self.content.path().display();
            return Err(Error::new(ErrorKind::Damage, format!("{file} cannot be read as a tar archive: {reason}"))
                .hint("tar files are read plain, or compressed by gzip or zstd: unpack any other first"));
        }
        Ok(Some(Event::Damaged { sequence, after: self.last.clone(), reason }))
    }

    /// Reads headers up to and with that of the next member.
    fn header(&mut self) -> std::result::Result<Option<Box<Entry>>, Trouble> {
        let mut ahead = Ahead::default();
        loop {
            let Some(block) = self.block()? else { return Ok(None) };
            let size = block.number(124..136);
            match block.type_flag() {
                b'x' | b'X' | b'g' => {
                    let records = self.records(size, MOST_PAX_BYTES)?;
                    let mut pax = Pax::default();
                    let read = records.and_then(|records| pax.add(&records, spans::MOST_SPANS));
                    match (block.type_flag(), read) {
                        (b'g', Ok(())) => self.global = pax.for_all(),
                        (b'g', Err(reason)) => return Err(refused(block.name(), &reason, true)),
                        (_, Ok(())) => ahead.pax = pax,
                        (_, Err(reason)) => ahead.wrong = Some(reason),
                    }
                }
                flag @ (b'L' | b'K') => match self.records(size, MOST_NAME_BYTES as u64)? {
                    Ok(mut name) => {
                        let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
                        name.truncate(end);
                        *(if flag == b'L' { &mut ahead.long_name } else { &mut ahead.long_link }) = Some(name);
                    }
                    Err(reason) => ahead.wrong = Some(reason),
                },
                // A label of the whole archive.
                b'V' => self.pass_over(size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0)),
                _ => {
                    if let Some(entry) = self.member(&block, std::mem::take(&mut ahead))? {
                        return Ok(Some(entry));
                    }
                }
            }
            // What belongs together stands together; a gap in between ends here.
            let (data, padding) = (self.data_left, self.padding);
            (self.data_left, self.padding) = (0, 0);
            self.content.skip(data + padding)?;
        }
    }

    /// Reads the next header block; nothing at the end marks.
    fn block(&mut self) -> std::result::Result<Option<Block>, Trouble> {
        let mut bytes = [0; BLOCK];
        loop {
            match self.content.read_exact(&mut bytes) {
                Ok(()) => {}
                Err(Missing::End) if self.content.jump() => {
                    self.searching = false;
                    continue;
                }
                Err(Missing::End) if self.partial || self.searching => return Ok(None),
                Err(Missing::End) if self.begun => {
                    return Err(Missing::Broken("it ends without end marks: it was cut off".to_owned()).into());
                }
                Err(missing) => return Err(missing.into()),
            }
            if let Some(block) = Block::new(&bytes) {
                self.searching = false;
                return Ok(Some(block));
            }
            if !self.begun && bytes != [0; BLOCK] {
                return Err(Missing::Broken("it does not begin with a header".to_owned()).into());
            }
            match (self.searching, bytes == [0; BLOCK]) {
                (false, true) => return Ok(None),
                (false, false) => {
                    self.searching = true;
                    return Err(Missing::Gap("a header is damaged".to_owned()).into());
                }
                (true, _) => self.content.resynchronise(),
            }
        }
    }

    /// Reads what stands behind a header that speaks of the next one. The inner error makes that one untrusted.
    fn records(
        &mut self,
        size: Option<i64>,
        most: u64,
    ) -> std::result::Result<std::result::Result<Vec<u8>, String>, Trouble> {
        let Some(size) = size.and_then(|size| u64::try_from(size).ok()) else {
            return Err(refused(Vec::new(), "a header before it has no true size", false));
        };
        if size > most {
            self.pass_over(size);
            return Ok(Err(format!("a header before it is longer than {most} bytes")));
        }
        let mut bytes = vec![0; size as usize];
        self.content.read_exact(&mut bytes)?;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(Ok(bytes))
    }

    fn pass_over(&mut self, size: u64) {
        self.data_left = size;
        self.padding = size.checked_next_multiple_of(BLOCK as u64).map_or(0, |end| end - size);
    }

    /// Makes a member of its header and what stands before it; nothing for the folder that all others lie in.
    fn member(&mut self, block: &Block, ahead: Ahead) -> std::result::Result<Option<Box<Entry>>, Trouble> {
        let Ahead { mut pax, long_name, long_link, wrong } = ahead;
        let name = pax.sparse.name.take().or(pax.path.take()).or(long_name).unwrap_or_else(|| block.name());
        let flag = block.type_flag();
        let told = match pax.size {
            Some(size) => Some(size),
            None => block.number(124..136).and_then(|size| u64::try_from(size).ok()),
        };
        // A hard link has no data whatever its size says; GNU tar and Python hold it so too.
        let told = if flag == b'1' { Some(0) } else { told };
        let Some(stored) = told.filter(|&size| size <= i64::MAX as u64) else {
            return Err(refused(name, "it has no true size", false));
        };
        self.pass_over(stored);
        if let Some(reason) = wrong {
            return Err(refused(name, &reason, true));
        }
        let kind = match flag {
            b'1' => MemberKind::HardLink,
            b'2' => MemberKind::Symlink,
            b'3' => MemberKind::CharDevice,
            b'4' => MemberKind::BlockDevice,
            b'5' | b'D' => MemberKind::Folder,
            b'6' => MemberKind::Fifo,
            b'M' | b'N' => return Err(refused(name, "it is part of an archive of several volumes", true)),
            // The oldest tars tell folders by the end of their names.
            0 | b'0' | b'7' if name.ends_with(b"/") => MemberKind::Folder,
            _ => MemberKind::File,
        };
        let (path, was_absolute) = match clean_path(&name) {
            Ok(Some(clean)) => clean,
            Ok(None) if kind == MemberKind::Folder => return Ok(None),
            Ok(None) => return Err(refused(name, "it has no name", true)),
            Err(reason) => return Err(refused(name, &reason, true)),
        };
        let link = pax.link_path.take().or(long_link).unwrap_or_else(|| block.link_name().to_vec());
        let mut entry = self.entry(block, pax, kind, path, stored);
        entry.was_absolute = was_absolute;
        entry.member.link_target = link_target(kind, link).map_err(|reason| refused(name.clone(), &reason, true))?;
        if kind == MemberKind::File {
            self.find_spans(block, &mut entry).map_err(|trouble| match trouble {
                Trouble::Refused(_, reason, can_go_on) => Trouble::Refused(name, reason, can_go_on),
                missing => missing,
            })?;
        }
        Ok(Some(entry.boxed()))
    }

    fn entry(&self, block: &Block, pax: Pax, kind: MemberKind, path: MemberPath, stored: u64) -> Draft {
        let id = |told: Option<u64>, for_all: Option<u64>, field| {
            let header = || block.number(field).and_then(|id| u64::try_from(id).ok());
            told.or(for_all).or_else(header).and_then(|id| u32::try_from(id).ok()).unwrap_or(u32::MAX)
        };
        let (user_name, group_name) = block.owner_names();
        let name = |told: Option<Vec<u8>>, for_all: &Option<Vec<u8>>, header: &[u8]| -> Box<[u8]> {
            told.or_else(|| for_all.clone()).unwrap_or_else(|| header.to_vec()).into()
        };
        let modified = pax
            .modified
            .or(self.global.modified)
            .unwrap_or_else(|| FileTime { seconds: block.number(136..148).unwrap_or(0), nanoseconds: 0 });
        let xattrs = pax.xattrs;
        let mode = block.number(100..108).map_or(0, |mode| (mode & 0o7777) as u32);
        // Some tars write the rights of the group there instead.
        let mask = xattrs.get(acl::ACCESS).and_then(acl::mask);
        let is_device = matches!(kind, MemberKind::CharDevice | MemberKind::BlockDevice);
        let member = Member {
            path,
            kind,
            size: if kind == MemberKind::File { stored } else { 0 },
            mode: mask.map_or(mode, |mask| mode & !0o070 | mask << 3),
            uid: id(pax.uid, self.global.uid, 108..116),
            gid: id(pax.gid, self.global.gid, 116..124),
            user_name: name(pax.user_name, &self.global.user_name, user_name),
            group_name: name(pax.group_name, &self.global.group_name, group_name),
            modified,
            link_target: None,
            device_number: if is_device { block.device_number() } else { None },
            xattrs,
        };
        Draft { member, stored, spans: None, sparse: pax.sparse, was_absolute: false }
    }

    /// Finds out how a file is sparse, if it is.
    fn find_spans(&mut self, block: &Block, draft: &mut Draft) -> std::result::Result<(), Trouble> {
        let wrong = |reason: String| refused(Vec::new(), &reason, true);
        let (spans, size) = if block.type_flag() == b'S' && block.family() == Family::Gnu {
            let size = block.number(483..495).and_then(|size| u64::try_from(size).ok());
            let (mut spans, mut more) = spans::of_header(block).map_err(wrong)?;
            while more {
                let mut extension = [0; BLOCK];
                self.content.read_exact(&mut extension)?;
                more = spans::of_extension(&extension, &mut spans)
                    .map_err(|reason| refused(Vec::new(), &reason, false))?;
            }
            (spans, size)
        } else if draft.sparse.major == Some(1) {
            let mut lost = None;
            let (content, data_left) = (&mut self.content, &mut self.data_left);
            let read = spans::of_data(draft.stored, || {
                let mut bytes = [0; BLOCK];
                content.read_exact(&mut bytes).map_err(|missing| {
                    let reason = missing.reason();
                    lost = Some(missing);
                    reason
                })?;
                *data_left = data_left.saturating_sub(BLOCK as u64);
                Ok(bytes)
            });
            if let Some(missing) = lost {
                return Err(missing.into());
            }
            let (spans, taken) = read.map_err(wrong)?;
            draft.stored = draft.stored.saturating_sub(taken);
            (spans, draft.sparse.real_size)
        } else if draft.sparse.has_map {
            (spans::of_records(&draft.sparse).map_err(wrong)?, draft.sparse.real_size)
        } else {
            return Ok(());
        };
        let size = size.filter(|&size| size <= i64::MAX as u64);
        let size = size.ok_or_else(|| wrong("a sparse file of no true size".to_owned()))?;
        draft.spans = Some(spans::check(spans, size, draft.stored).map_err(wrong)?);
        draft.member.size = size;
        Ok(())
    }
}

/// An entry before its place is known.
struct Draft {
    member: Member,
    stored: u64,
    spans: Option<Vec<Span>>,
    sparse: pax::Sparse,
    was_absolute: bool,
}

impl Draft {
    fn boxed(self) -> Box<Entry> {
        let Draft { member, stored, spans, was_absolute, .. } = self;
        Box::new(Entry { member, stored, spans, sequence: 0, offset: 0, was_absolute })
    }
}

impl Missing {
    fn reason(&self) -> String {
        match self {
            Missing::End => "it ends in the middle: it was cut off".to_owned(),
            Missing::Gap(reason) | Missing::Broken(reason) => reason.clone(),
        }
    }
}

fn refused(mut name: Vec<u8>, reason: &str, can_go_on: bool) -> Trouble {
    name.truncate(MOST_TOLD);
    Trouble::Refused(name, reason.to_owned(), can_go_on)
}
