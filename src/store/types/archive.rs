//! Archives, their physical files and what the catalog holds of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::base::Origin;
use super::stored_file::StoredBytes;
use crate::clock::Timestamp;
use crate::member::{CatalogMember, Extent};
use crate::schedule::Layout;
use crate::words::bytes;

/// How far an archive has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveState {
    /// Its file may be partly written, under the temporary name.
    Writing,
    /// Its file is whole and synced, under the temporary or the final name.
    Sealed,
    /// Visible.
    Complete,
    /// Marked for deletion: the file may be removed already, the rows are removed after it.
    Deleting,
}

/// What is known about the bytes of an archive file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Never read back.
    Unverified,
    /// Read back and identical to what was written.
    Good,
    /// Read back and different from what was written.
    Damaged,
    /// The file did not exist when it was last checked.
    Missing,
}

text_enum!(ArchiveState, Writing = "writing", Sealed = "sealed", Complete = "complete", Deleting = "deleting");
text_enum!(Health, Unverified = "unproven", Good = "good", Damaged = "damaged", Missing = "missing");

/// A complete archive.
#[derive(Clone, Debug)]
pub struct Archive {
    /// Number of the run that made it.
    pub run: i64,
    /// Row of its schedule.
    pub schedule_id: i64,
    /// Name of its schedule.
    pub schedule_name: String,
    /// Its file, below the archive folder.
    pub file_name: String,
    /// When it was made: the time in its name.
    pub created_at: Timestamp,
    /// Size of the file in bytes.
    pub size: u64,
    /// BLAKE3 over the digests of its chunks; `None` for an archive of the old system, and for one in segments that a
    /// rescan added without its trailer.
    pub digest: Option<Vec<u8>>,
    /// Row of the physical file; hard-linked archives share it.
    pub archive_file: i64,
    /// How many archives share the physical file, this one included; those being deleted do not count.
    pub names: u64,
    /// What is known about its bytes.
    pub health: Health,
    /// When it was last read back.
    pub verified_at: Option<Timestamp>,
    /// Some source data is missing in it.
    pub incomplete: bool,
    /// Its source shrank by more than half, and nobody accepted that.
    pub suspect: bool,
    /// Never pruned.
    pub pinned: bool,
    /// Made by a run that was started by hand.
    pub manual: bool,
    /// A rescan added it, so that its number may be newer than the archive.
    pub is_rescanned: bool,
    /// Good in the sense of I8.
    pub good: bool,
    /// How it is stored: segmented, its file is an index.
    pub layout: Layout,
    /// Its index and the segments that it has parts of; empty in the whole layout.
    pub files: Vec<FileSpace>,
    /// How much it holds.
    pub extent: Extent,
}

/// The disk space of a file of an archive in segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSpace {
    /// Its row.
    pub stored_file: i64,
    /// Its size in bytes; 0 if it does not exist.
    pub bytes: u64,
    /// Another archive has a part of it, too.
    pub is_shared: bool,
}

impl Archive {
    /// Returns whether the old system made it.
    pub fn is_legacy(&self) -> bool {
        self.digest.is_none() && self.layout == Layout::Whole
    }

    /// Returns what archives have in common that are names of one file. Indexes are files of their own.
    pub fn file_key(&self) -> (i64, Option<i64>) {
        (self.archive_file, Some(self.run).filter(|_| self.layout == Layout::Segmented))
    }

    /// Returns how many of its bytes deleting this archive alone would not free, since other archives have them, too.
    pub fn shared_bytes(&self) -> u64 {
        self.present_bytes().saturating_sub(self.freed_bytes())
    }

    /// Returns how many bytes of disk space deleting this archive alone would free: the last name of a file, and the
    /// last archive with a part of a segment, free it.
    pub fn freed_bytes(&self) -> u64 {
        match self.layout {
            Layout::Whole if self.names > 1 => 0,
            Layout::Whole => self.present_bytes(),
            Layout::Segmented => self.files.iter().filter(|file| !file.is_shared).map(|file| file.bytes).sum(),
        }
    }

    fn present_bytes(&self) -> u64 {
        if self.health == Health::Missing { 0 } else { self.size }
    }

    /// Returns the name of its file without the folder, and its size, for log lines.
    pub fn file_and_size(&self) -> String {
        let name = self.file_name.rsplit('/').next().unwrap_or(&self.file_name);
        format!("{name} {}", bytes(self.size))
    }

    /// Returns its schedule, run, file and size, for log lines.
    pub fn describe(&self) -> String {
        format!("{}: run @{}, {}", self.schedule_name, self.run, self.file_and_size())
    }
}

/// The disk space of some archives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// The sizes of all archives.
    pub bytes: u64,
    /// The sizes of their files, each counted once.
    pub disk_bytes: u64,
}

impl Space {
    /// Adds up the space of archives; a file that does not exist needs none on disk.
    pub fn of(archives: &[Archive]) -> Space {
        let whole = archives.iter().filter(|archive| archive.layout == Layout::Whole);
        let files: BTreeMap<i64, u64> = whole.map(|a| (a.archive_file, a.present_bytes())).collect();
        let in_segments = archives.iter().flat_map(|archive| &archive.files);
        let segments: BTreeMap<i64, u64> = in_segments.map(|file| (file.stored_file, file.bytes)).collect();
        Space {
            bytes: archives.iter().map(|archive| archive.size).sum(),
            disk_bytes: files.values().chain(segments.values()).sum(),
        }
    }
}

/// An archive dated further ahead of later ones than this was made under a wrong clock.
pub const MAX_AHEAD: Duration = Duration::from_secs(86_400);

/// What decides which of two archives of a schedule is newer.
#[derive(Clone, Copy, Debug)]
pub struct ArchiveAge {
    /// Number of its run.
    pub run: i64,
    /// The time in its name.
    pub created_at: Timestamp,
    /// Made by the old system: older than any of ours.
    pub is_legacy: bool,
    /// A rescan added it.
    pub is_rescanned: bool,
}

impl From<&Archive> for ArchiveAge {
    fn from(archive: &Archive) -> Self {
        ArchiveAge {
            run: archive.run,
            created_at: archive.created_at,
            is_legacy: archive.is_legacy(),
            is_rescanned: archive.is_rescanned,
        }
    }
}

/// Sorts the archives of one schedule, newest first: by time, then by number.
///
/// Those that this database made are in the order of their numbers even if the clock was set back: each counts as not
/// older than those made before it. A rescanned one with a time beyond that of a later archive that this database made
/// is older than all others: its clock was wrong. If this database made none, as after its loss, most of the others
/// show which clock was wrong.
pub fn sort_newest_first<T>(archives: &mut [T], age_of: impl Fn(&T) -> ArchiveAge) {
    let mut made: Vec<ArchiveAge> = archives.iter().map(&age_of).filter(|a| !a.is_legacy && !a.is_rescanned).collect();
    made.sort_by_key(|age| age.run);
    let last_made = made.last().copied();
    let mut times = BTreeMap::new();
    let mut latest = None;
    for age in made {
        latest = latest.max(Some(age.created_at));
        times.insert(age.run, latest.unwrap_or(age.created_at));
    }
    let ahead_of_most = match last_made {
        None => ahead_of_most(archives.iter().map(&age_of).filter(|age| !age.is_legacy).collect()),
        Some(_) => BTreeSet::new(),
    };
    let is_misdated = |age: &ArchiveAge| {
        let is_ahead_of_last = |last: ArchiveAge| age.run < last.run && is_ahead(age, &last);
        age.is_rescanned && last_made.map_or_else(|| ahead_of_most.contains(&age.run), is_ahead_of_last)
    };
    archives.sort_by_cached_key(|archive| {
        let age = age_of(archive);
        let time = times.get(&age.run).copied().unwrap_or(age.created_at);
        Reverse((!age.is_legacy, !is_misdated(&age), time, age.run))
    });
}

fn is_ahead(age: &ArchiveAge, of: &ArchiveAge) -> bool {
    age.created_at.since(of.created_at) > MAX_AHEAD
}

/// Returns the runs of the archives that are dated far ahead of a later one and do not belong to the longest series in
/// which times rise with the numbers. Of several longest series the one that ends first counts: a time that a later
/// archive went back from was the wrong one.
fn ahead_of_most(mut ages: Vec<ArchiveAge>) -> BTreeSet<i64> {
    ages.sort_by_key(|age| age.run);
    // For each length the index of the archive that ends the series of that length first; for each archive the one
    // before it in its series.
    let (mut ends, mut before): (Vec<usize>, Vec<Option<usize>>) = (Vec::new(), Vec::new());
    for (at, age) in ages.iter().enumerate() {
        let length = ends.partition_point(|&end| ages[end].created_at <= age.created_at);
        before.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        match ends.get_mut(length) {
            Some(end) => *end = at,
            None => ends.push(at),
        }
    }
    // Two archives that contradict each other show nothing.
    if ends.len() < 2 {
        return BTreeSet::new();
    }
    let mut ahead = BTreeSet::new();
    let mut next = ends.last().copied();
    while let Some(at) = next {
        next = before[at];
        let from = next.map_or(0, |earlier| earlier + 1);
        ahead.extend(ages[from..at].iter().filter(|age| is_ahead(age, &ages[at])).map(|age| age.run));
    }
    ahead
}

/// An archive that is not visible: being written, or being deleted.
#[derive(Clone, Debug)]
pub struct PendingArchive {
    /// Number of its run.
    pub run: i64,
    /// Row of its schedule.
    pub schedule: i64,
    /// How far it has come.
    pub state: ArchiveState,
    /// Final name, below the archive folder.
    pub file_name: String,
    /// Temporary name, until the file has its final name.
    pub temporary_name: Option<String>,
    /// Size of the file in bytes, once sealed.
    pub size: Option<u64>,
    /// Digest of the file, once sealed.
    pub digest: Option<Vec<u8>>,
    /// How much it holds, once sealed.
    pub extent: Extent,
    /// Some source data is missing in it.
    pub incomplete: bool,
    /// How it is stored: segmented, its file is an index.
    pub layout: Layout,
}

/// The bytes of a sealed archive in segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedSegments {
    /// Value of the POSIX CRC of the archive, see [`crate::archive::cksum`].
    pub crc: u32,
    /// Row of the segment with the trailer.
    pub trailer_segment: i64,
    /// Offset of the trailer in that segment.
    pub trailer_offset: u64,
}

/// What is known about an archive when its file is whole and synced.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Size of the file in bytes.
    pub size: u64,
    /// BLAKE3 over the digests of its chunks.
    pub digest: [u8; 32],
    /// Its file: in the segmented layout its index.
    pub file: StoredBytes,
    /// What else is known of it in the segmented layout; `None` also if it is the archive of the base.
    pub in_segments: Option<SealedSegments>,
    /// The source, resolved.
    pub source_root: Vec<u8>,
    /// When reading the source began.
    pub scan_started: Timestamp,
    /// How much it holds.
    pub extent: Extent,
    /// Some source data is missing in it.
    pub incomplete: bool,
    /// Boot of the machine during which it was made.
    pub boot_id: Option<String>,
    /// How it was made; `None` if that is unknown, and it can be no base.
    pub origin: Option<Origin>,
}

/// An archive of the old system, found under a stable link's name and moved aside.
#[derive(Clone, Debug)]
pub struct LegacyArchive {
    /// Its present file, below the archive folder.
    pub file_name: String,
    /// When the file was last modified.
    pub created_at: Timestamp,
    /// Size of the file in bytes.
    pub size: u64,
    /// Device of the file.
    pub device: u64,
    /// Inode of the file on that device.
    pub inode: u64,
    /// Its compression.
    pub codec: &'static str,
    /// How much it holds.
    pub extent: Extent,
    /// It could be read to its end.
    pub readable: bool,
    /// Its source, as the schedule names it.
    pub source_root: Vec<u8>,
}

/// An archive file that a rescan found, described by its own trailer.
#[derive(Clone, Debug)]
pub struct FoundArchive {
    /// Row of its schedule.
    pub schedule: i64,
    /// Run number in its name.
    pub run: i64,
    /// Its file, below the archive folder.
    pub file_name: String,
    /// The time in its name.
    pub created_at: Timestamp,
    /// How it is stored: segmented, its file is an index.
    pub layout: Layout,
    /// Size of the archive in bytes.
    pub size: u64,
    /// BLAKE3 over the digests of its chunks; `None` if its trailer cannot be read.
    pub digest: Option<[u8; 32]>,
    /// Device of the file.
    pub device: u64,
    /// Inode of the file on that device.
    pub inode: u64,
    /// Its compression: none, gzip, zstd.
    pub codec: &'static str,
    /// The source, resolved.
    pub source_root: Vec<u8>,
    /// Some source data is missing in it.
    pub incomplete: bool,
    /// How much it holds.
    pub extent: Extent,
    /// Problems that its run reported.
    pub problems: u64,
    /// Those of them that mean missing data.
    pub losses: u64,
}

/// Where the trailer of an archive in segments lies that a rescan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundTrailer {
    /// Row of the segment.
    pub segment: i64,
    /// Offset in the segment.
    pub offset: u64,
    /// Value of the POSIX CRC of the whole archive.
    pub crc: u32,
}

/// A member of an archive and the chunk that holds its header.
#[derive(Clone, Debug)]
pub struct CatalogEntry {
    /// Position of the chunk in the archive file.
    pub sequence: u64,
    /// Offset of its first header block in the content of the chunk.
    pub offset: u64,
    /// What the catalog stores of it; of extended attributes only the digest.
    pub entry: CatalogMember,
}

/// A path in one archive.
#[derive(Clone, Debug)]
pub struct PathOccurrence {
    /// Number of the run that made the archive.
    pub run: i64,
    /// Name of its schedule.
    pub schedule: String,
    /// When the archive was made.
    pub created_at: Timestamp,
    /// What the catalog stores of the member.
    pub entry: CatalogMember,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    /// Returns the runs, newest first, of archives made on these days, with numbers from 1 on.
    fn newest_first(days: &[i64], is_rescanned: bool) -> Vec<i64> {
        let age = |(at, day): (usize, &i64)| ArchiveAge {
            run: at as i64 + 1,
            created_at: Timestamp::from_millis(day * DAY),
            is_legacy: false,
            is_rescanned,
        };
        let mut ages: Vec<ArchiveAge> = days.iter().enumerate().map(age).collect();
        sort_newest_first(&mut ages, |age| *age);
        ages.iter().map(|age| age.run).collect()
    }

    #[test]
    fn after_a_rescan_archives_of_a_clock_that_was_ahead_are_the_oldest() {
        let rescanned = |days: &[i64]| newest_first(days, true);
        assert_eq!(rescanned(&[1, 2, 3, 4]), [4, 3, 2, 1]);
        assert_eq!(rescanned(&[1, 2, 900, 3]), [4, 2, 1, 3], "between its neighbours");
        assert_eq!(rescanned(&[1, 2, 900, 901, 3, 4, 5]), [7, 6, 5, 2, 1, 4, 3]);
        assert_eq!(rescanned(&[900, 1, 2]), [3, 2, 1], "the first of all");
        assert_eq!(rescanned(&[1, 2, 3, 900]), [4, 3, 2, 1], "nothing contradicts it");
        // An old archive with a high number does not make the others wrong.
        assert_eq!(rescanned(&[100, 101, 102, 5]), [3, 2, 1, 4]);
        assert_eq!(rescanned(&[100, 5]), [1, 2], "by time");
        // A series with gaps of months.
        assert_eq!(rescanned(&[1, 90, 200, 201]), [4, 3, 2, 1]);
        assert_eq!(newest_first(&[1, 900, 2], false), [3, 2, 1], "those that this database made, by number");
    }
}
