//! The format of archive file names: formatting and parsing.
//!
//! An archive is `docs-20261123T023000Z-17.tar` in the folder of its schedule: schedule, time in UTC, run, extension.
//! Until it is complete it has a temporary name with the attempt and a random number:
//! `.docs-20261123T023000Z-17.tar.1-3f9a0c2e.part`. A renamed file of the old system is
//! `docs-20261123T023000Z-legacy.tar`.

use chrono::{NaiveDateTime, TimeZone, Utc};

use crate::clock::Timestamp;

/// The extensions of archive files, each with the name of its codec.
pub const EXTENSIONS: [(&str, &str); 3] = [("tar", "none"), ("tar.gz", "gzip"), ("tar.zst", "zstd")];

/// Run numbers are below this. An archive with a higher number in its name would use up the numbers of later runs.
const RUN_LIMIT: i64 = 1 << 40;

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

    /// Returns the temporary file name of one attempt.
    pub fn temporary_name(&self, attempt: i64, random: u32) -> String {
        format!(".{}.{attempt}-{random:08x}.part", self.file_name())
    }
}

/// Returns whether `file_name`, in the folder of `schedule`, has the form of [`ArchiveName::temporary_name`].
pub fn is_temporary_name(file_name: &str, schedule: &str) -> bool {
    let parse = || {
        let rest = file_name.strip_prefix('.')?.strip_suffix(".part")?;
        let (rest, random) = rest.rsplit_once('-')?;
        let (archive, attempt) = rest.rsplit_once('.')?;
        ArchiveName::parse(archive, schedule)?;
        Some((attempt, random))
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
