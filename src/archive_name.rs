//! The format of archive file names: formatting and parsing.
//!
//! An archive is `docs-20261123T023000Z-17.tar` in the folder of its schedule: schedule, time in UTC, run, extension.
//! Until it is complete it has a temporary name with the attempt and a random number:
//! `.docs-20261123T023000Z-17.tar.1-3f9a0c2e.part`. A renamed file of the old system is
//! `docs-20261123T023000Z-legacy.tar`.
//!
//! In the segmented layout the file of the archive is the index `docs-20261123T023000Z-17.tar.index`, and its run added
//! the segments `docs-20261123T023000Z-17.tar.1.segment`, `.2.segment` and so on.

use chrono::{NaiveDateTime, TimeZone, Utc};

use crate::clock::Timestamp;
use crate::schedule::ScheduleName;

/// The extensions of archive files, each with the name of its codec.
pub const EXTENSIONS: [(&str, &str); 3] = [("tar", "none"), ("tar.gz", "gzip"), ("tar.zst", "zstd")];

/// Run numbers are below this. An archive with a higher number in its name would use up the numbers of later runs.
const RUN_LIMIT: i64 = 1 << 40;

/// What follows the name of an archive in the name of its index.
pub const INDEX_SUFFIX: &str = ".index";

/// What follows the name of an archive and a number in the name of a segment.
pub const SEGMENT_SUFFIX: &str = ".segment";

/// The parts of an archive's file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveName<'a> {
    /// Name of the schedule.
    pub schedule: &'a str,
    /// When the archive was created, to the second.
    pub created_at: Timestamp,
    /// Number of the run, at least 1.
    pub run: i64,
    /// `tar`, `tar.gz` or `tar.zst`.
    pub extension: &'a str,
}

impl<'a> ArchiveName<'a> {
    /// Parses the name of a complete archive in the folder of `schedule`; `None` for any other name.
    pub fn parse(file_name: &'a str, schedule: &'a str) -> Option<Self> {
        let rest = file_name.strip_prefix(schedule)?.strip_prefix('-')?;
        let (stem, extension) = rest.split_once('.')?;
        codec_of(extension)?;
        let (time, run) = stem.split_once('-')?;
        let run = run.parse().ok().filter(|run: &i64| (1..RUN_LIMIT).contains(run))?;
        Some(ArchiveName { schedule, created_at: parse_time(time)?, run, extension })
    }

    /// Returns the file name.
    pub fn file_name(&self) -> String {
        let ArchiveName { schedule, created_at, run, extension } = self;
        format!("{schedule}-{}-{run}.{extension}", created_at.compact_utc())
    }

    /// Parses the name of a complete archive in the folder of any schedule; `None` for any other name.
    pub fn of_file(file_name: &'a str) -> Option<Self> {
        let (stem, _) = EXTENSIONS.iter().find_map(|(extension, _)| {
            file_name.strip_suffix(extension)?.strip_suffix('.').map(|stem| (stem, extension))
        })?;
        let (rest, _run) = stem.rsplit_once('-')?;
        let (schedule, _time) = rest.rsplit_once('-')?;
        ScheduleName::parse(schedule).ok()?;
        // A sign or a leading zero would be another name of the same archive.
        ArchiveName::parse(file_name, schedule).filter(|name| name.file_name() == file_name)
    }

    /// Parses the name of the index of a complete archive in the folder of `schedule`; `None` for any other name.
    pub fn parse_index(file_name: &'a str, schedule: &str) -> Option<Self> {
        ArchiveName::of_file(file_name.strip_suffix(INDEX_SUFFIX)?).filter(|name| name.schedule == schedule)
    }

    /// Returns the file name of its index.
    pub fn index_name(&self) -> String {
        format!("{}{INDEX_SUFFIX}", self.file_name())
    }

    /// Returns the temporary file name of one attempt.
    pub fn temporary_name(&self, attempt: i64, random: u32) -> String {
        temporary_name_of(&self.file_name(), attempt, random)
    }

    /// Returns the temporary file name of its index in one attempt.
    pub fn temporary_index_name(&self, attempt: i64, random: u32) -> String {
        temporary_name_of(&self.index_name(), attempt, random)
    }
}

/// The parts of a segment's file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentName<'a> {
    /// The archive whose run added it.
    pub archive: ArchiveName<'a>,
    /// Its number among the segments of the run, from 1.
    pub number: u32,
}

impl<'a> SegmentName<'a> {
    /// Parses the name of a segment in the folder of `schedule`; `None` for any other name.
    pub fn parse(file_name: &'a str, schedule: &str) -> Option<Self> {
        let (archive, number) = file_name.strip_suffix(SEGMENT_SUFFIX)?.rsplit_once('.')?;
        let archive = ArchiveName::of_file(archive).filter(|archive| archive.schedule == schedule)?;
        let name = SegmentName { archive, number: number.parse().ok()? };
        (name.number > 0 && name.file_name() == file_name).then_some(name)
    }

    /// Returns the file name.
    pub fn file_name(&self) -> String {
        format!("{}.{}{SEGMENT_SUFFIX}", self.archive.file_name(), self.number)
    }

    /// Returns the temporary file name of one attempt.
    pub fn temporary_name(&self, attempt: i64, random: u32) -> String {
        temporary_name_of(&self.file_name(), attempt, random)
    }
}

fn temporary_name_of(file_name: &str, attempt: i64, random: u32) -> String {
    format!(".{file_name}.{attempt}-{random:08x}.part")
}

/// Returns whether `file_name`, in the folder of `schedule`, has the form of the temporary name of an archive, an index
/// or a segment.
pub fn is_temporary_name(file_name: &str, schedule: &str) -> bool {
    let parse = || {
        let rest = file_name.strip_prefix('.')?.strip_suffix(".part")?;
        let (rest, random) = rest.rsplit_once('-')?;
        let (file, attempt) = rest.rsplit_once('.')?;
        let is_ours = ArchiveName::parse(file, schedule).is_some()
            || ArchiveName::parse_index(file, schedule).is_some()
            || SegmentName::parse(file, schedule).is_some();
        is_ours.then_some((attempt, random))
    };
    parse().is_some_and(|(attempt, random)| {
        !attempt.is_empty()
            && attempt.bytes().all(|b| b.is_ascii_digit())
            && random.len() == 8
            && random.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// Returns the new name of a file of the old system; `modified` is its modification time.
pub fn legacy_name(schedule: &str, modified: Timestamp, extension: &str) -> String {
    format!("{schedule}-{}-legacy.{extension}", modified.compact_utc())
}

/// Returns the codec of a file whose name has the form of [`legacy_name`]; `None` for any other name.
pub fn legacy_codec(file_name: &str, schedule: &str) -> Option<&'static str> {
    let rest = file_name.strip_prefix(schedule)?.strip_prefix('-')?;
    let (_, extension) = rest.split_once("-legacy.")?;
    codec_of(extension)
}

fn codec_of(extension: &str) -> Option<&'static str> {
    EXTENSIONS.iter().find(|(known, _)| *known == extension).map(|(_, codec)| *codec)
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let time = NaiveDateTime::parse_from_str(text, "%Y%m%dT%H%M%SZ").ok()?;
    Some(Timestamp::from_datetime(&Utc.from_utc_datetime(&time)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_formatted_name_is_parsed_back(
            schedule in "[a-z0-9._ é-]{1,20}",
            seconds in 0_i64..253_402_300_800,
            run in 1_i64..RUN_LIMIT,
            extension in prop::sample::select(vec!["tar", "tar.gz", "tar.zst"]),
            (attempt, random) in (1_i64..1000, any::<u32>()),
        ) {
            let created_at = Timestamp::from_millis(seconds * 1000);
            let name = ArchiveName { schedule: &schedule, created_at, run, extension };
            let (file_name, temporary) = (name.file_name(), name.temporary_name(attempt, random));
            prop_assert_eq!(ArchiveName::parse(&file_name, &schedule), Some(name));
            prop_assert!(is_temporary_name(&temporary, &schedule));
            let legacy = legacy_name(&schedule, created_at, extension);
            prop_assert!(legacy_codec(&legacy, &schedule).is_some());
            // No name is parsed as one of another kind, or of a schedule with a longer name.
            prop_assert!(!is_temporary_name(&file_name, &schedule) && !is_temporary_name(&legacy, &schedule));
            prop_assert_eq!(ArchiveName::parse(&temporary, &schedule), None);
            prop_assert_eq!(ArchiveName::parse(&legacy, &schedule), None);
            prop_assert_eq!(legacy_codec(&file_name, &schedule), None);
            let longer = format!("{schedule}-x");
            prop_assert_eq!(ArchiveName::parse(&file_name, &longer), None);
        }

        #[test]
        fn names_of_an_index_and_of_a_segment_are_parsed_back(
            schedule in "[a-z#é][a-z0-9._ é#-]{0,20}[a-z]",
            seconds in 0_i64..253_402_300_800,
            (run, number) in (1_i64..RUN_LIMIT, 1_u32..),
            extension in prop::sample::select(vec!["tar", "tar.gz", "tar.zst"]),
        ) {
            let created_at = Timestamp::from_millis(seconds * 1000);
            let archive = ArchiveName { schedule: &schedule, created_at, run, extension };
            let whole = archive.file_name();
            prop_assert_eq!(ArchiveName::of_file(&whole), Some(archive));
            let index = archive.index_name();
            prop_assert_eq!(ArchiveName::parse_index(&index, &schedule), Some(archive));
            let segment = SegmentName { archive, number };
            let file_name = segment.file_name();
            prop_assert_eq!(SegmentName::parse(&file_name, &schedule), Some(segment));
            for temporary in [archive.temporary_index_name(1, 2), segment.temporary_name(1, 2)] {
                prop_assert!(is_temporary_name(&temporary, &schedule));
            }
            // No name is one of another kind.
            for name in [&index, &file_name] {
                prop_assert!(ArchiveName::parse(name, &schedule).is_none() && ArchiveName::of_file(name).is_none());
                prop_assert!(!is_temporary_name(name, &schedule));
                prop_assert_eq!(legacy_codec(name, &schedule), None);
            }
            prop_assert_eq!(SegmentName::parse(&index, &schedule), None);
            prop_assert_eq!(ArchiveName::parse_index(&file_name, &schedule), None);
        }
    }

    #[test]
    fn a_segment_has_one_name_and_no_other_file_is_one() {
        let good = "a b-20261123T023000Z-17.tar.gz.3.segment";
        assert_eq!(SegmentName::parse(good, "a b").unwrap().number, 3);
        for hostile in [
            "../a b-20261123T023000Z-17.tar.gz.3.segment",
            "/a b-20261123T023000Z-17.tar.gz.3.segment",
            "sub/a b-20261123T023000Z-17.tar.gz.3.segment",
            "a b-20261123T023000Z-17.tar.gz.3.segment/",
            "a b-20261123T023000Z-17.tar.gz.0.segment",
            "a b-20261123T023000Z-17.tar.gz.03.segment",
            "a b-20261123T023000Z-17.tar.gz.+3.segment",
            "a b-20261123T023000Z-17.tar.gz.-3.segment",
            "a b-20261123T023000Z-17.tar.gz.4294967296.segment",
            "a b-20261123T023000Z-17.tar.gz..segment",
            "a b-20261123T023000Z-17.tar.gz.segment",
            "a b-20261123T023000Z-+17.tar.gz.3.segment",
            "a b-20261123T023000Z-017.tar.gz.3.segment",
            "a b-2026112T3023000Z-17.tar.gz.3.segment",
            "a b-20261123T023000Z-17.tar.xz.3.segment",
            "a b-20261123T023000Z-17.tar.gz.3.segment ",
            " a b-20261123T023000Z-17.tar.gz.3.segment",
            "a b-20261123T023000Z-17.tar.gz.3.segment\n",
            "a b-20261123T023000Z-17.tar.gz.3.segment\r",
            "a c-20261123T023000Z-17.tar.gz.3.segment",
            "$(id)-20261123T023000Z-17.tar.gz.3.segment",
            "..",
            "",
        ] {
            assert_eq!(SegmentName::parse(hostile, "a b"), None, "{hostile:?}");
        }
        for schedule in ["..", "", "a/b", "-a", " a", "17", "a\n"] {
            assert_eq!(ArchiveName::of_file(&format!("{schedule}-20261123T023000Z-17.tar")), None, "{schedule:?}");
        }
    }

    #[test]
    fn other_names_are_not_archives() {
        let name = ArchiveName::parse("a-b-20261123T023000Z-17.tar.gz", "a-b").unwrap();
        assert_eq!((name.created_at.compact_utc().as_str(), name.run), ("20261123T023000Z", 17));
        for other in [
            "b-20261123T023000Z-17.tar",
            "a-b-20261123T023000Z-legacy.tar",
            "a-b.tar",
            "a-b-x-17.tar",
            "a-b-20261123T023000Z-17.tar.bak",
            "a-b-20261123T023000Z-0.tar",
            ".a-b-20261123T023000Z-17.tar.1-x.part",
        ] {
            assert_eq!(ArchiveName::parse(other, "a-b"), None, "{other}");
        }
    }

    #[test]
    fn other_names_are_not_temporary() {
        for name in [".a-20261123T112156Z-144.tar.1-64051446.part", ".a-20261123T112156Z-9.tar.zst.12-0123abcd.part"] {
            assert!(is_temporary_name(name, "a"), "{name}");
            assert!(!is_temporary_name(name, "b"), "{name}");
        }
        for name in [
            "a-20261123T112156Z-144.tar",
            ".a-20261123T112156Z-144.tar",
            ".a-20261123T112156Z-144.tar.part",
            ".a-20261123T112156Z-x.tar.1-64051446.part",
            ".a-20261123T112156Z-144.txt.1-64051446.part",
            ".a-20261123T112156Z-144.tar.1-6405144g.part",
            ".a-b-20261123T112156Z-144.tar.1-64051446.part",
            ".backup-manager-0123456789abcdef.part",
            ".part",
            "",
        ] {
            assert!(!is_temporary_name(name, "a"), "{name}");
        }
    }
}
