//! Bits that flip in files of archives: each is found, every archive with the byte is named, a repair makes good what
//! other archives have undamaged, and the next run makes a good archive.

use std::collections::BTreeSet;
use std::fs;

use backup_manager::chunk::Chunk;
use backup_manager::schedule::Layout;
use backup_manager::store::{Archive, Health};

use crate::random::Random;
use crate::repair::{chunks, repair_all};
use crate::reuse::{run, verify};
use crate::segments::{CODECS, contents, flip, folder, health, index_of, world_in};
use crate::world::World;

/// Bytes of a file in the folder of the schedule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: String,
    start: u64,
    end: u64,
}

/// What an archive consists of.
struct Anatomy {
    archive: Archive,
    /// Its index or whole file, and the ranges of segments.
    places: Vec<Place>,
    chunks: Vec<(Chunk, Place)>,
}

impl Anatomy {
    fn of(world: &World, archive: Archive) -> Anatomy {
        let file = archive.file_name.strip_prefix("docs/").unwrap().to_owned();
        let size = fs::metadata(folder(world).join(&file)).unwrap().len();
        let mut places = vec![Place { file, start: 0, end: size }];
        if archive.layout == Layout::Segmented {
            let index = index_of(world, &archive);
            let place =
                |(file, start, length): (&str, u64, u64)| Place { file: file.to_owned(), start, end: start + length };
            places.extend(index.ranges().map(|range| place((range.segment, range.offset, range.length))));
        }
        // Where the bytes of the archive lie: in the file itself, or in the segments that its index lists.
        let stored = if places.len() > 1 { &places[1..] } else { &places[..] };
        let place_of = |chunk: &Chunk| {
            let mut at = 0;
            for place in stored {
                let length = place.end - place.start;
                if chunk.offset < at + length {
                    let start = place.start + (chunk.offset - at);
                    return Place { file: place.file.clone(), start, end: start + chunk.stored_length };
                }
                at += length;
            }
            panic!("chunk {} lies nowhere", chunk.sequence)
        };
        let chunks = chunks(world, &archive).into_iter().map(|chunk| (chunk, place_of(&chunk))).collect();
        Anatomy { archive, places, chunks }
    }
}

fn is_hit(place: &Place, flips: &BTreeSet<(String, u64)>) -> bool {
    flips.iter().any(|(file, at)| *file == place.file && (place.start..place.end).contains(at))
}

/// Returns whether there are undamaged bytes for each damaged chunk of an archive.
fn is_repairable(archive: &Anatomy, all: &[Anatomy], flips: &BTreeSet<(String, u64)>) -> bool {
    let content = |chunk: &Chunk| (chunk.stored_length, chunk.stored_digest);
    let has_equal = |wanted: &Chunk| {
        let mut others = all.iter().flat_map(|other| &other.chunks);
        others.any(|(chunk, place)| content(chunk) == content(wanted) && !is_hit(place, flips))
    };
    archive.chunks.iter().filter(|(_, place)| is_hit(place, flips)).all(|(chunk, _)| has_equal(chunk))
}

/// Flips some bits of the files of three archives and checks all that follows; returns how many archives were repaired
/// and how many were not.
fn play(layout: Layout, seed: u64) -> (usize, usize) {
    let mut random = Random::new(seed);
    let codec = CODECS[random.below(3) as usize];
    let (world, runner, row) = world_in(layout, codec);
    let mut archives = Vec::new();
    for day in 0..3 {
        fs::write(world.path(&format!("docs/{:03}", day * 100)), format!("day {day}")).unwrap();
        archives.push(Anatomy::of(&world, run(&world, &runner, &row)));
    }
    let files: Vec<(String, u64)> =
        contents(&world).into_iter().map(|(name, bytes)| (name, bytes.len() as u64)).collect();
    let mut flips = BTreeSet::new();
    for _ in 0..=random.below(4) {
        let (file, size) = &files[random.below(files.len() as u64) as usize];
        flips.insert((file.clone(), random.below(*size)));
    }
    let what = format!("seed {seed}, {layout:?}, {codec}: {flips:?}");
    flips.iter().for_each(|(file, at)| flip(&folder(&world).join(file), *at));
    let is_damaged = |anatomy: &Anatomy| anatomy.places.iter().any(|place| is_hit(place, &flips));
    for anatomy in &archives {
        let expected = if is_damaged(anatomy) { Health::Damaged } else { Health::Good };
        assert_eq!(verify(&world, &anatomy.archive), expected, "@{}, {what}", anatomy.archive.run);
    }
    for anatomy in &archives {
        assert_eq!(health(&world, &anatomy.archive) != Health::Good, is_damaged(anatomy), "{what}");
    }
    repair_all(&world, false);
    for anatomy in &archives {
        let expected = if is_repairable(anatomy, &archives, &flips) { Health::Good } else { Health::Damaged };
        assert_eq!(verify(&world, &anatomy.archive), expected, "after the repair, @{}, {what}", anatomy.archive.run);
        assert_eq!(health(&world, &anatomy.archive), expected, "after the repair, @{}, {what}", anatomy.archive.run);
    }
    let newest = run(&world, &runner, &row);
    assert_eq!((newest.health, verify(&world, &newest)), (Health::Good, Health::Good), "{what}");
    let damaged = archives.iter().filter(|anatomy| is_damaged(anatomy));
    let (repaired, left): (Vec<_>, Vec<_>) = damaged.partition(|anatomy| is_repairable(anatomy, &archives, &flips));
    (repaired.len(), left.len())
}

#[test]
fn flipped_bits_are_found_named_and_repaired() {
    let first = std::env::var("BACKUP_MANAGER_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let count = std::env::var("BACKUP_SEEDS").map_or(3, |count| count.parse().expect("a number"));
    let mut total = (0, 0);
    for seed in first..first + count {
        for layout in [Layout::Whole, Layout::Segmented] {
            let (repaired, left) = play(layout, seed);
            total = (total.0 + repaired, total.1 + left);
        }
    }
    println!("{count} seeds: {} archives repaired, {} left damaged", total.0, total.1);
    assert!(total.0 > 0, "nothing was repaired");
}
