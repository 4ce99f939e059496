//! The index of an archive in the segmented layout: a text that lists the ranges of segments which, one after the
//! other, are the archive (I14), and the two lines of shell that check and restore it without this program.
//!
//! The first lines begin with `#`. Each line after them is a range: `START LENGTH SEGMENT`, where START counts from 1,
//! as in `tail -c +START`, and the name comes last, because it may hold spaces. The last line is the BLAKE3 digest of
//! all lines before it. There is one form of each index, and a reader accepts no other.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use super::cksum::Cksum;
use crate::archive_name::{ArchiveName, INDEX_SUFFIX, SegmentName};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};

/// What the first line of every index begins with, whatever its version.
pub(super) const MAGIC: &[u8] = b"# backup-manager index ";
const VERSION: &str = "1";
/// Number of lines before the ranges.
const HEADER_LINES: usize = 9;
const DIGEST_WORD: &str = "# blake3 ";
/// Longest line in bytes. Names of schedules have at most 100 bytes, of which quoting makes at most four times as many.
const MAX_LINE_BYTES: u64 = 2048;
/// Largest index in bytes. More could fill memory.
const MAX_INDEX_BYTES: u64 = 256 << 20;
/// An index may have this many ranges, and one for each so many bytes of archive.
const MANY_RANGES: u64 = 10_000;
const BYTES_PER_RANGE: u64 = 32 << 10;

/// The index of an archive in the segmented layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    schedule: String,
    created_at: Timestamp,
    run: i64,
    extension: String,
    members: u64,
    cksum: Cksum,
    /// The names of the segments, each once, in the order of their first ranges.
    segments: Vec<String>,
    numbers: HashMap<String, u32>,
    ranges: Vec<StoredRange>,
}

/// A range; the segment is a position in the list of names, since there may be millions of ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StoredRange {
    segment: u32,
    offset: u64,
    length: u64,
}

/// Bytes of an archive that lie side by side in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexRange<'a> {
    /// File name of the segment, in the folder of the index.
    pub segment: &'a str,
    /// Offset of the first byte in the segment, from 0.
    pub offset: u64,
    /// Number of bytes, at least 1.
    pub length: u64,
}

impl Index {
    /// Returns an index without ranges: of an archive with that many members and that checksum.
    pub fn new(archive: &ArchiveName<'_>, members: u64, cksum: Cksum) -> Self {
        Index {
            schedule: archive.schedule.to_owned(),
            created_at: archive.created_at,
            run: archive.run,
            extension: archive.extension.to_owned(),
            members,
            cksum,
            segments: Vec::new(),
            numbers: HashMap::new(),
            ranges: Vec::new(),
        }
    }

    /// Appends a range of a segment; `offset` counts from 0. It is joined with the one before it if it continues that.
    pub fn push(&mut self, segment: &str, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        let segment = self.number_of(segment);
        match self.ranges.last_mut() {
            Some(last) if last.segment == segment && last.offset + last.length == offset => last.length += length,
            _ => self.ranges.push(StoredRange { segment, offset, length }),
        }
    }

    fn number_of(&mut self, segment: &str) -> u32 {
        if let Some(number) = self.numbers.get(segment) {
            return *number;
        }
        let number = self.segments.len() as u32;
        self.segments.push(segment.to_owned());
        self.numbers.insert(segment.to_owned(), number);
        number
    }

    /// Returns the largest number of ranges that an index of an archive of so many bytes is written with.
    pub fn max_ranges(bytes: u64) -> u64 {
        MANY_RANGES.max(bytes / BYTES_PER_RANGE)
    }

    /// Returns the name that the archive would have in the whole layout.
    pub fn archive_name(&self) -> ArchiveName<'_> {
        let Index { schedule, created_at, run, extension, .. } = self;
        ArchiveName { schedule, created_at: *created_at, run: *run, extension }
    }

    /// Returns the number of members of the archive.
    pub fn members(&self) -> u64 {
        self.members
    }

    /// Returns the size of the archive in bytes.
    pub fn bytes(&self) -> u64 {
        self.cksum.bytes
    }

    /// Returns what `cksum` prints for the archive.
    pub fn cksum(&self) -> Cksum {
        self.cksum
    }

    /// Returns the file names of the segments, each once.
    pub fn segments(&self) -> &[String] {
        &self.segments
    }

    /// Returns the ranges, in the order of the archive.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = IndexRange<'_>> {
        let range = |range: &StoredRange| IndexRange {
            segment: &self.segments[range.segment as usize],
            offset: range.offset,
            length: range.length,
        };
        self.ranges.iter().map(range)
    }

    /// Returns the ranges, each with the position of its segment in [`Index::segments`].
    pub(super) fn numbered_ranges(&self) -> impl Iterator<Item = (u32, IndexRange<'_>)> {
        self.ranges.iter().map(|range| range.segment).zip(self.ranges())
    }

    /// Writes the text. Errors: ranges that are not as many bytes as the archive; any error of `out`.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let sum: u64 = self.ranges.iter().map(|range| range.length).sum();
        if sum != self.bytes() {
            let what = format!("the ranges of an index are {sum} bytes, and the archive has {}", self.bytes());
            return Err(io::Error::other(what));
        }
        let mut hasher = blake3::Hasher::new();
        let mut put = |text: &[u8]| {
            hasher.update(text);
            out.write_all(text)
        };
        put(self.header().as_bytes())?;
        for IndexRange { segment, offset, length } in self.ranges() {
            put(format!("{} {length} {segment}\n", offset + 1).as_bytes())?;
        }
        writeln!(out, "{DIGEST_WORD}{}", hasher.finalize().to_hex())
    }

    /// Returns the lines before the ranges.
    fn header(&self) -> String {
        let Index { members, run, cksum, .. } = self;
        let (archive, bytes) = (self.archive_name().file_name(), self.bytes());
        let quoted = format!("'{}{INDEX_SUFFIX}'", archive.replace('\'', r"'\''"));
        let ranges = format!(
            r#"X={quoted}; grep -v '^#' "$X" | while read -r o n f; do tail -c "+$o" "./$f" | head -c "$n"; done"#
        );
        let tar = match self.extension.as_str() {
            "tar.gz" => "tar -xzf -",
            "tar.zst" => "tar --zstd -xf -",
            _ => "tar -xf -",
        };
        format!(
            "# backup-manager index {VERSION}\n# archive {archive}\n# run {run}\n# bytes {bytes}\n\
             # members {members}\n# cksum {cksum}\n\
             # First check, in this folder: the next line must print the two numbers of the line above.\n\
             # {ranges} | cksum\n# {ranges} | {tar}\n"
        )
    }

    /// Reads the index at `path`. Errors: as [`Index::read`]; [`ErrorKind::NotFound`].
    pub fn open(path: &Path) -> Result<Index> {
        let file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::not_found(format!("there is no index {}", path.display())),
            _ => Error::io("open", path)(e),
        })?;
        Index::read(path, BufReader::with_capacity(1 << 17, file))
    }

    /// Reads an index; `path` is for messages.
    ///
    /// Errors: [`ErrorKind::Damage`] names the line that is not as this program writes it; `Failed` for an index of a
    /// newer version, and if it cannot be read.
    pub fn read(path: &Path, source: impl BufRead) -> Result<Index> {
        let mut lines = Lines { path, source: source.take(MAX_INDEX_BYTES), line: String::new(), number: 0 };
        let mut hasher = blake3::Hasher::new();
        let mut header = String::new();
        for _ in 0..HEADER_LINES {
            header.push_str(lines.next()?);
            lines.check_version()?;
        }
        hasher.update(header.as_bytes());
        let mut index = parse_header(&header)
            .filter(|index| index.header() == header)
            .ok_or_else(|| lines.damage("its first lines are not those of an index"))?;
        let mut bytes = 0_u64;
        loop {
            let line = lines.next()?;
            if let Some(digest) = line.strip_prefix(DIGEST_WORD) {
                if digest.trim_end_matches('\n') != hasher.finalize().to_hex().as_str() {
                    return Err(lines.damage("the lines before it are not those that were written"));
                }
                break;
            }
            hasher.update(line.as_bytes());
            index.parse_range(line, &mut bytes).map_err(|what| lines.damage(what))?;
        }
        if bytes != index.bytes() {
            return Err(lines.damage(&format!("its ranges are {bytes} bytes, and the archive has {}", index.bytes())));
        }
        lines.check_end()?;
        Ok(index)
    }

    /// Adds the range of a line and its length to `bytes`. Errors: why it is none.
    fn parse_range(&mut self, line: &str, bytes: &mut u64) -> std::result::Result<(), &'static str> {
        let mut fields = line.trim_end_matches('\n').splitn(3, ' ');
        let mut number = || fields.next().and_then(decimal).filter(|number| *number > 0);
        let (Some(start), Some(length)) = (number(), number()) else {
            return Err("a range is two numbers from 1 and a name");
        };
        let segment = fields.next().unwrap_or_default();
        let offset = start - 1;
        // What a file can hold at most.
        offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok()).ok_or("no file is that large")?;
        *bytes = bytes.checked_add(length).ok_or("no archive is that large")?;
        let is_known = self.numbers.contains_key(segment);
        let is_segment = || {
            let name = SegmentName::parse(segment, &self.schedule);
            name.is_some_and(|name| name.archive.extension == self.extension)
        };
        if !is_known && !is_segment() {
            return Err("it does not end with the name of a segment of this schedule");
        }
        let segment = self.number_of(segment);
        // One form of each index: what lies side by side is one range.
        if self.ranges.last().is_some_and(|last| last.segment == segment && last.offset + last.length == offset) {
            return Err("it continues the range before it");
        }
        self.ranges.push(StoredRange { segment, offset, length });
        Ok(())
    }
}

/// Reads what the lines before the ranges say. They may say more, which the caller compares.
fn parse_header(header: &str) -> Option<Index> {
    let field =
        |word: &str| header.lines().find_map(|line| line.strip_prefix("# ")?.strip_prefix(word)?.strip_prefix(' '));
    let archive = ArchiveName::of_file(field("archive")?)?;
    let (sum, bytes) = field("cksum")?.split_once(' ')?;
    let cksum = Cksum { sum: u32::try_from(decimal(sum)?).ok()?, bytes: decimal(bytes)? };
    Some(Index::new(&archive, decimal(field("members")?)?, cksum))
}

/// Parses a decimal number without a sign or leading zeros.
fn decimal(text: &str) -> Option<u64> {
    let is_plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

/// The lines of an index that is being read.
struct Lines<'a, R> {
    path: &'a Path,
    source: io::Take<R>,
    line: String,
    number: u64,
}

impl<R: BufRead> Lines<'_, R> {
    /// Returns the next line, with its end.
    fn next(&mut self) -> Result<&str> {
        self.number += 1;
        self.line.clear();
        let read = self.source.by_ref().take(MAX_LINE_BYTES).read_line(&mut self.line);
        read.map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => self.damage("it is not text"),
            _ => Error::io("read", self.path)(e),
        })?;
        match self.line.ends_with('\n') {
            true => Ok(&self.line),
            false if self.line.len() as u64 == MAX_LINE_BYTES => Err(self.damage("it is too long")),
            false => Err(self.damage("the index ends here: it was cut off, or is larger than any")),
        }
    }

    fn check_version(&self) -> Result<()> {
        let version = self.line.as_bytes().strip_prefix(MAGIC).map(<[u8]>::trim_ascii_end);
        match version {
            _ if self.number > 1 => Ok(()),
            None => Err(self.damage("it is not the first line of an index")),
            Some(version) if version == VERSION.as_bytes() => Ok(()),
            Some(_) => {
                Err(Error::failed(format!("{} was made by a newer version of this program", self.path.display()))
                    .hint("upgrade, or restore it by the lines of shell in it"))
            }
        }
    }

    fn check_end(&mut self) -> Result<()> {
        let rest = self.source.fill_buf().map_err(Error::io("read", self.path))?.len();
        match rest {
            0 => Ok(()),
            _ => Err(self.damage("other data follows it")),
        }
    }

    fn damage(&self, what: &str) -> Error {
        let message = format!("the index {} is damaged in line {}: {what}", self.path.display(), self.number);
        Error::new(ErrorKind::Damage, message).hint("take a copy of the index, or restore from another archive")
    }
}

#[cfg(test)]
mod tests;
