//! Makes members of headers: a header block, and the pax and GNU headers before it that extend it.

use super::blocks::BlockReader;
use super::error::HeaderError;
use super::header_block::HeaderBlock;
use super::names::{MAX_NAME_BYTES, clean_path, link_target};
use super::pax::Pax;
use super::spans;
use crate::archive::acl;
use crate::member::{FileTime, Member, MemberKind, MemberPath, Span};

/// Longest data of one pax header, in bytes. A longer one could fill memory.
const MAX_PAX_BYTES: u64 = 8 << 20;

/// One member as the archive describes it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its headers.
    pub member: Member,
    /// Number of bytes of its data in the archive.
    pub stored: u64,
    /// Where these bytes belong in a sparse file; `None` for any other.
    pub spans: Option<Vec<Span>>,
    /// The chunk that holds its first header block.
    pub sequence: u64,
    /// Offset of its first header block in that chunk.
    pub offset: u64,
    /// The archive has an absolute name, from which the leading `/` was removed.
    pub was_absolute: bool,
    /// The time in its pax header is none, so it has that of its header block.
    pub has_bad_time: bool,
}

/// The headers before a header block that extend it.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// Why the member cannot be trusted, if one of them is wrong.
    error: Option<String>,
}

/// Reads entries one after another.
pub(super) struct EntryReader<'c> {
    pub blocks: BlockReader<'c>,
    /// The last pax global header.
    pub global: Pax,
}

impl EntryReader<'_> {
    /// Reads headers up to and including that of the next member. Returns `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Box<Entry>>, HeaderError> {
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.blocks.next_header()? else { return Ok(None) };
            match block.type_flag() {
                b'x' | b'X' | b'g' => self.read_pax(&block, &mut extensions)?,
                b'L' | b'K' => self.read_long_name(&block, &mut extensions)?,
                // A label of the whole archive.
                b'V' => self.blocks.begin_data(block.size().unwrap_or(0)),
                _ => {
                    if let Some(entry) = self.read_member(&block, std::mem::take(&mut extensions))? {
                        return Ok(Some(entry));
                    }
                }
            }
            // The headers of one member follow each other directly: a gap between them ends it.
            self.blocks.skip_data()?;
        }
    }

    fn read_pax(&mut self, block: &HeaderBlock, extensions: &mut Extensions) -> Result<(), HeaderError> {
        let data = self.read_extension(block, MAX_PAX_BYTES)?;
        let mut pax = Pax::default();
        let result = data.and_then(|records| pax.add(&records, spans::MAX_SPANS));
        match (block.type_flag(), result) {
            (b'g', Ok(())) => {
                // Later ones are padding.
                let comment = self.global.comment.take();
                self.global = pax.into_global();
                self.global.comment = comment.or(self.global.comment.take());
            }
            (b'g', Err(reason)) => return Err(HeaderError::refused(block.name(), reason)),
            (_, Ok(())) => extensions.pax = pax,
            (_, Err(reason)) => extensions.error = Some(reason),
        }
        Ok(())
    }

    fn read_long_name(&mut self, block: &HeaderBlock, extensions: &mut Extensions) -> Result<(), HeaderError> {
        match self.read_extension(block, MAX_NAME_BYTES as u64)? {
            Ok(mut name) => {
                let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
                name.truncate(end);
                match block.type_flag() {
                    b'L' => extensions.long_name = Some(name),
                    _ => extensions.long_link = Some(name),
                }
            }
            Err(reason) => extensions.error = Some(reason),
        }
        Ok(())
    }

    /// Reads the data of a header that extends the next one. The inner error is a reason to refuse that one.
    fn read_extension(&mut self, block: &HeaderBlock, max_bytes: u64) -> Result<Result<Vec<u8>, String>, HeaderError> {
        let Some(size) = block.size() else {
            return Err(HeaderError::refused_without_size(Vec::new(), "a header before it has no valid size"));
        };
        if size > max_bytes {
            self.blocks.begin_data(size);
            return Ok(Err(format!("a header before it is longer than {max_bytes} bytes")));
        }
        Ok(Ok(self.blocks.read_whole_data(size)?))
    }

    /// Makes a member of its header and the headers that extend it. Returns `None` for the root folder of the archive,
    /// which has no name.
    fn read_member(&mut self, block: &HeaderBlock, extensions: Extensions) -> Result<Option<Box<Entry>>, HeaderError> {
        let Extensions { mut pax, long_name, long_link, error } = extensions;
        let name = pax.sparse.name.take().or(pax.path.take()).or(long_name).unwrap_or_else(|| block.name());
        let kind = member_kind(block.type_flag(), &name);
        let Some(stored) = stored_bytes(block, &pax, kind.as_ref().ok()) else {
            return Err(HeaderError::refused_without_size(name, "it has no valid size"));
        };
        self.blocks.begin_data(stored);
        let kind = match (error, kind) {
            (None, Ok(kind)) => kind,
            (Some(reason), _) => return Err(HeaderError::refused(name, reason)),
            (None, Err(reason)) => return Err(HeaderError::refused(name, reason)),
        };
        let (path, was_absolute) = match clean_path(&name) {
            Ok(Some(clean)) => clean,
            Ok(None) if kind == MemberKind::Folder => return Ok(None),
            Ok(None) => return Err(HeaderError::refused(name, "it has no name")),
            Err(reason) => return Err(HeaderError::refused(name, reason)),
        };
        let link = pax.link_path.take().or(long_link).unwrap_or_else(|| block.link_name().to_vec());
        let link_target = match link_target(kind, link) {
            Ok(target) => target,
            Err(reason) => return Err(HeaderError::refused(name, reason)),
        };
        let sparse = std::mem::take(&mut pax.sparse);
        let has_bad_time = pax.has_bad_time;
        let member = Member { link_target, ..self.make_member(block, pax, kind, path, stored) };
        let (spans, sequence, offset) = (None, 0, 0);
        let mut entry = Box::new(Entry { member, stored, spans, sequence, offset, was_absolute, has_bad_time });
        if kind == MemberKind::File {
            let layout = spans::read_layout(&mut self.blocks, block, &sparse, stored);
            if let Some(layout) = layout.map_err(|error| error.with_name(name))? {
                (entry.stored, entry.member.size) = (layout.stored, layout.size);
                entry.spans = Some(layout.spans);
            }
        }
        Ok(Some(entry))
    }

    fn make_member(&self, block: &HeaderBlock, pax: Pax, kind: MemberKind, path: MemberPath, stored: u64) -> Member {
        let id = |own: Option<u64>, global: Option<u64>, in_header: Option<u64>| {
            own.or(global).or(in_header).and_then(|id| u32::try_from(id).ok()).unwrap_or(u32::MAX)
        };
        let name = |own: Option<Vec<u8>>, global: &Option<Vec<u8>>, in_header: &[u8]| -> Box<[u8]> {
            own.or_else(|| global.clone()).unwrap_or_else(|| in_header.to_vec()).into()
        };
        let (user_name, group_name) = block.owner_names();
        let mode = block.mode().map_or(0, |mode| (mode & 0o7777) as u32);
        // The group bits of the mode are the mask of the ACL; some tars write the rights of the group there instead.
        let mask = pax.xattrs.get(acl::ACCESS).and_then(acl::mask);
        let is_device = matches!(kind, MemberKind::CharDevice | MemberKind::BlockDevice);
        Member {
            path,
            kind,
            size: if kind == MemberKind::File { stored } else { 0 },
            mode: mask.map_or(mode, |mask| mode & !0o070 | mask << 3),
            uid: id(pax.uid, self.global.uid, block.uid()),
            gid: id(pax.gid, self.global.gid, block.gid()),
            user_name: name(pax.user_name, &self.global.user_name, user_name),
            group_name: name(pax.group_name, &self.global.group_name, group_name),
            modified: pax
                .modified
                .or(self.global.modified)
                .unwrap_or_else(|| FileTime { seconds: block.modified().unwrap_or(0), nanoseconds: 0 }),
            link_target: None,
            device_number: if is_device { block.device_number() } else { None },
            xattrs: pax.xattrs,
        }
    }
}

/// Returns the number of bytes of data after the header of a member of this kind.
fn stored_bytes(block: &HeaderBlock, pax: &Pax, kind: Option<&MemberKind>) -> Option<u64> {
    // Links, devices, folders and FIFOs have no data whatever their size says: bsdtar, Python and Go read them so too.
    // The folders of GNU dumps do: the names of what lay in them.
    let has_data = matches!(kind, None | Some(MemberKind::File)) || block.type_flag() == b'D';
    let stated = if has_data { pax.size.or_else(|| block.size()) } else { Some(0) };
    stated.filter(|&size| size <= i64::MAX as u64)
}

/// Returns what a member is by the type flag of its header. Errors: why it is refused.
fn member_kind(type_flag: u8, name: &[u8]) -> Result<MemberKind, &'static str> {
    Ok(match type_flag {
        b'1' => MemberKind::HardLink,
        b'2' => MemberKind::Symlink,
        b'3' => MemberKind::CharDevice,
        b'4' => MemberKind::BlockDevice,
        b'5' | b'D' => MemberKind::Folder,
        b'6' => MemberKind::Fifo,
        b'M' | b'N' => return Err("it is part of an archive of several volumes"),
        // Old tars mark folders by the end of their names only.
        _ if name.ends_with(b"/") => MemberKind::Folder,
        _ => MemberKind::File,
    })
}
