//! Archives in the segmented layout, made from whole ones.

use std::fs;
use std::path::{Path, PathBuf};

use backup_manager::archive::cksum::Crc;
use backup_manager::archive::index::Index;
use backup_manager::archive_name::{ArchiveName, SegmentName};
use backup_manager::clock::Timestamp;

use super::random::Random;

/// Number of segments that [`split`] makes.
pub const SEGMENTS: u32 = 5;

/// Returns the name of the archive of a schedule that [`split`] makes.
pub fn name<'a>(schedule: &'a str, extension: &'a str) -> ArchiveName<'a> {
    ArchiveName { schedule, created_at: Timestamp::from_millis(1_795_401_000_000), run: 17, extension }
}

/// Returns the names of its segments.
pub fn segment_names(archive: &ArchiveName<'_>) -> Vec<String> {
    let segment = |number| SegmentName { archive: ArchiveName { run: 16, ..*archive }, number }.file_name();
    (1..=SEGMENTS).map(segment).collect()
}

/// Splits the bytes of a whole archive into about `ranges` ranges, which lie in five segments in any order and between
/// bytes of other archives, and writes them and their index in `folder`. Returns the path of the index.
pub fn split(whole: &Path, folder: &Path, archive: &ArchiveName<'_>, ranges: usize, random: &mut Random) -> PathBuf {
    let bytes = fs::read(whole).unwrap();
    let names = segment_names(archive);
    let mut segments = vec![Vec::new(); names.len()];
    let mut index = Index::new(archive, 1, Crc::of(&bytes).cksum());
    let mut cuts: Vec<usize> = (1..ranges).map(|_| random.below(bytes.len() as u64) as usize).collect();
    // Each segment holds a range that is not the last one.
    cuts.sort_unstable();
    let mut from = 0;
    for (turn, to) in (0..).zip(cuts.into_iter().chain([bytes.len()])) {
        let chosen = if turn < names.len() { turn } else { random.below(names.len() as u64) as usize };
        let segment: &mut Vec<u8> = &mut segments[chosen];
        segment.extend((0..random.below(600)).map(|n| n as u8));
        index.push(&names[chosen], segment.len() as u64, (to - from) as u64);
        segment.extend(&bytes[from..to]);
        from = to;
    }
    fs::create_dir_all(folder).unwrap();
    names.iter().zip(segments).for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
    let path = folder.join(archive.index_name());
    index.write(&mut fs::File::create(&path).unwrap()).unwrap();
    path
}
