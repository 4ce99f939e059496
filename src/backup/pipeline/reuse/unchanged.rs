//! The rule by which a member of the base is taken as it is, without reading its file (I13). Pure functions of what the
//! catalog stores, what the system reports now, and the options of the schedule.

use std::time::Duration;

use super::reasons::ReadReason;
use crate::clock::Timestamp;
use crate::member::{CatalogMember, FileTime, MemberKind};
use crate::source::{FileSystem, Stat, Times};

/// A file that changed this short a time before it was read may have changed again afterwards with the same times.
const MARGIN: Duration = Duration::from_secs(2);
/// The same where a server sets the times by its own clock.
const SERVER_MARGIN: Duration = Duration::from_secs(600);

/// After a restart of the machine, files that changed within this time before the run of the base are read: after a
/// power cut new content may have old times.
const RESTART_MARGIN: Duration = Duration::from_secs(7 * 86_400);

/// A reading that is further ahead of the clock was dated by a wrong one.
const MAX_AHEAD: Duration = Duration::from_secs(86_400);

/// A chunk is read again when its last reading is this long ago, plus a part of the spread by its row, so that no run
/// reads everything.
const MIN_PERIOD: Duration = Duration::from_secs(15 * 86_400);
const PERIOD_SPREAD_MS: u64 = 15 * 86_400_000;

/// What applies to all members of a run.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Inode numbers are not compared.
    pub ignores_inode: bool,
    /// Changes of ctime alone are ignored.
    pub ignores_ctime: bool,
    /// The times of every file system are trusted.
    pub trusts_times: bool,
    /// The machine was not restarted since the run of the base.
    pub is_same_boot: bool,
    /// When the run of the base began.
    pub base_started: Timestamp,
    /// When this run began.
    pub now: Timestamp,
    /// Everything is read again.
    pub rereads_all: bool,
}

impl Rules {
    /// Compares what the system reports of an entry, which would become a member of `kind`, with a member of the base
    /// whose chunk was read by a run that started at `read_started`.
    pub fn check_stat(
        &self,
        base: &CatalogMember,
        read_started: Timestamp,
        kind: MemberKind,
        stat: &Stat,
        file_system: &FileSystem,
    ) -> Result<(), ReadReason> {
        let member = &base.member;
        let is_folder = kind == MemberKind::Folder;
        let check = |is_equal: bool, reason| if is_equal { Ok(()) } else { Err(reason) };
        check(member.kind == kind, ReadReason::New)?;
        let has_size = kind == MemberKind::File;
        check(!has_size || member.size == stat.size, ReadReason::SizeOrTime)?;
        check(member.modified == stat.modified, ReadReason::SizeOrTime)?;
        check((member.mode, member.uid, member.gid) == (stat.mode, stat.uid, stat.gid), ReadReason::Owner)?;
        // A hard link has the device number of its carrier.
        check(kind == MemberKind::HardLink || member.device_number == stat.device_number, ReadReason::New)?;
        check(is_folder || self.ignores_ctime || base.changed == stat.changed, ReadReason::CtimeOnly)?;
        check(self.ignores_inode || base.inode == stat.inode, ReadReason::InodeOnly)?;
        check(base.is_reusable, ReadReason::Doubtful)?;
        if is_folder {
            // All that its header holds was compared, and its attributes are.
            return Ok(());
        }
        let margin = match file_system.times {
            Times::Local => MARGIN,
            Times::Server => SERVER_MARGIN,
            Times::Unknown(_) if self.trusts_times => MARGIN,
            Times::Unknown(_) => return Err(ReadReason::FileSystem),
        };
        check(is_older(base.changed, read_started, margin), ReadReason::Recent)?;
        let is_old = || is_older(base.changed, self.base_started, RESTART_MARGIN);
        check(self.is_same_boot || is_old(), ReadReason::Restart)
    }

    /// Returns whether the chunk of a row must be read again, although nothing indicates a change.
    pub fn is_reread_due(&self, id: i64, read_started: Timestamp) -> bool {
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(&id.to_le_bytes()).as_bytes()[..8]);
        let spread = Duration::from_millis(u64::from_le_bytes(first) % PERIOD_SPREAD_MS);
        // What was read under a clock that was ahead would not be due before that time comes.
        let was_ahead = read_started > self.now.plus(MAX_AHEAD);
        self.rereads_all || was_ahead || self.now > read_started.plus(MIN_PERIOD + spread)
    }
}

/// The parts of a header that are looked up one by one.
#[derive(Clone, Debug, Default)]
pub struct Details {
    pub user_name: Box<[u8]>,
    pub group_name: Box<[u8]>,
    /// The target of a symbolic link, or the carrier of a hard link.
    pub link_target: Option<Box<[u8]>>,
    pub xattr_digest: Option<[u8; 32]>,
}

/// Compares them with a member of the base.
pub fn check_details(base: &CatalogMember, now: &Details) -> Result<(), ReadReason> {
    let member = &base.member;
    if (&member.user_name, &member.group_name) != (&now.user_name, &now.group_name) {
        return Err(ReadReason::Owner);
    }
    if member.link_target != now.link_target {
        return Err(ReadReason::Link);
    }
    if base.xattr_digest != now.xattr_digest {
        return Err(ReadReason::Attributes);
    }
    Ok(())
}

/// Returns whether `time` is earlier than `limit` by more than `margin`.
fn is_older(time: FileTime, limit: Timestamp, margin: Duration) -> bool {
    let time = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    time + (margin.as_nanos() as i128) < i128::from(limit.millis()) * 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::{Member, MemberPath, Xattrs};

    const DAY_MS: i64 = 86_400_000;
    const READ: Timestamp = Timestamp::from_millis(100 * DAY_MS);
    const LOCAL: FileSystem = FileSystem { times: Times::Local, is_synced: true };

    fn rules() -> Rules {
        Rules {
            ignores_inode: false,
            ignores_ctime: false,
            trusts_times: false,
            is_same_boot: true,
            base_started: READ,
            now: READ,
            rereads_all: false,
        }
    }

    /// A file that changed 3 s before it was read.
    fn stat() -> Stat {
        let changed = FileTime { seconds: READ.millis() / 1000 - 3, nanoseconds: 5 };
        Stat {
            size: 10,
            allocated: 512,
            mode: 0o644,
            uid: 1,
            gid: 2,
            modified: FileTime { seconds: 9, nanoseconds: 9 },
            changed,
            device: 3,
            inode: 4,
            links: 1,
            device_number: None,
        }
    }

    fn row(kind: MemberKind) -> CatalogMember {
        let Stat { size, mode, uid, gid, modified, changed, device, inode, .. } = stat();
        let member = Member {
            path: MemberPath::parse(b"source/file").unwrap(),
            kind,
            size: if kind == MemberKind::File { size } else { 0 },
            mode,
            uid,
            gid,
            user_name: b"user".as_slice().into(),
            group_name: b"group".as_slice().into(),
            modified,
            link_target: None,
            device_number: None,
            xattrs: Xattrs::new(),
        };
        let (content_digest, xattr_digest) = (Some([1; 32]), None);
        CatalogMember {
            member,
            entry_bytes: 1_024,
            device,
            inode,
            changed,
            content_digest,
            xattr_digest,
            is_reusable: true,
        }
    }

    type Change = fn(&mut Rules, &mut CatalogMember, &mut Stat, &mut FileSystem);

    fn check(kind: MemberKind, change: Change) -> Result<(), ReadReason> {
        let (mut rules, mut row, mut stat, mut file_system) = (rules(), row(kind), stat(), LOCAL);
        change(&mut rules, &mut row, &mut stat, &mut file_system);
        rules.check_stat(&row, READ, kind, &stat, &file_system)
    }

    #[test]
    fn each_difference_of_a_file_has_its_reason() {
        use ReadReason::*;
        let file = |change| check(MemberKind::File, change);
        assert_eq!(file(|_, _, _, _| {}), Ok(()));
        assert_eq!(file(|_, _, stat, _| stat.device = 99), Ok(()), "device numbers change with each restart");
        assert_eq!(file(|_, row, _, _| row.member.kind = MemberKind::Symlink), Err(New));
        assert_eq!(file(|_, row, _, _| row.member.kind = MemberKind::HardLink), Err(New));
        assert_eq!(file(|_, _, stat, _| stat.size = 11), Err(SizeOrTime));
        assert_eq!(file(|_, _, stat, _| stat.modified.nanoseconds = 8), Err(SizeOrTime));
        assert_eq!(file(|_, _, stat, _| stat.mode = 0o600), Err(Owner));
        assert_eq!(file(|_, _, stat, _| stat.uid = 0), Err(Owner));
        assert_eq!(file(|_, _, stat, _| stat.gid = 0), Err(Owner));
        assert_eq!(file(|_, _, stat, _| stat.changed.nanoseconds = 4), Err(CtimeOnly));
        assert_eq!(file(|_, _, stat, _| (stat.changed.nanoseconds, stat.inode) = (4, 5)), Err(CtimeOnly));
        assert_eq!(file(|_, _, stat, _| stat.inode = 5), Err(InodeOnly));
        assert_eq!(file(|_, row, _, _| row.is_reusable = false), Err(Doubtful));
        assert_eq!(file(|_, _, stat, _| stat.device_number = Some((1, 1))), Err(New));
    }

    #[test]
    fn a_file_that_changed_shortly_before_it_was_read_is_recent() {
        let at = |milliseconds_before: i64, nanoseconds: u32| -> Result<(), ReadReason> {
            let (mut row, mut stat) = (row(MemberKind::File), stat());
            let millis = READ.millis() - milliseconds_before;
            let changed = FileTime {
                seconds: millis.div_euclid(1000),
                nanoseconds: millis.rem_euclid(1000) as u32 * 1_000_000 + nanoseconds,
            };
            (row.changed, stat.changed) = (changed, changed);
            rules().check_stat(&row, READ, MemberKind::File, &stat, &LOCAL)
        };
        assert_eq!(at(2_001, 0), Ok(()));
        assert_eq!(at(2_000, 0), Err(ReadReason::Recent), "the margin itself counts");
        assert_eq!(at(2_001, 999_999), Ok(()));
        assert_eq!(at(-5_000, 0), Err(ReadReason::Recent), "changed while the run read");
        let future = |_: &mut Rules, row: &mut CatalogMember, stat: &mut Stat, _: &mut FileSystem| {
            let modified = FileTime { seconds: i64::MAX / 2, nanoseconds: 0 };
            (row.member.modified, stat.modified) = (modified, modified);
        };
        assert_eq!(check(MemberKind::File, future), Ok(()), "mtime may lie in the future");
    }

    #[test]
    fn only_trusted_file_systems_are_reused_and_a_server_has_a_longer_margin() {
        let on = |times, trusts| {
            let (mut rules, mut row, mut stat) = (rules(), row(MemberKind::File), stat());
            rules.trusts_times = trusts;
            let mut at = |seconds_before: i64| {
                stat.changed.seconds = READ.millis() / 1000 - seconds_before;
                row.changed = stat.changed;
                rules.check_stat(&row, READ, MemberKind::File, &stat, &FileSystem { times, is_synced: true })
            };
            (at(3), at(599), at(601))
        };
        let (refused, recent) = (Err(ReadReason::FileSystem), Err(ReadReason::Recent));
        assert_eq!(on(Times::Local, false), (Ok(()), Ok(()), Ok(())));
        assert_eq!(on(Times::Server, false), (recent, recent, Ok(())));
        assert_eq!(on(Times::Unknown("tmpfs"), false), (refused, refused, refused));
        assert_eq!(on(Times::Unknown("tmpfs"), true), (Ok(()), Ok(()), Ok(())));
    }

    #[test]
    fn after_a_restart_files_that_changed_in_the_last_week_are_read() {
        let at = |days_before: i64, is_same_boot| {
            let (mut rules, mut row, mut stat) = (rules(), row(MemberKind::File), stat());
            rules.is_same_boot = is_same_boot;
            stat.changed.seconds = READ.millis() / 1000 - days_before * 86_400 - 1;
            row.changed = stat.changed;
            rules.check_stat(&row, READ, MemberKind::File, &stat, &LOCAL)
        };
        assert_eq!(at(6, false), Err(ReadReason::Restart));
        assert_eq!(at(7, false), Ok(()));
        assert_eq!(at(6, true), Ok(()));
    }

    #[test]
    fn options_weaken_what_is_compared() {
        let file = |change| check(MemberKind::File, change);
        assert_eq!(file(|rules, _, stat, _| (rules.ignores_inode, stat.inode) = (true, 5)), Ok(()));
        assert_eq!(file(|rules, _, stat, _| (rules.ignores_ctime, stat.changed.nanoseconds) = (true, 4)), Ok(()));
        let both = |rules: &mut Rules, _: &mut CatalogMember, stat: &mut Stat, _: &mut FileSystem| {
            (rules.ignores_ctime, stat.changed.nanoseconds, stat.inode) = (true, 4, 5);
        };
        assert_eq!(file(both), Err(ReadReason::InodeOnly));
    }

    #[test]
    fn the_header_of_a_folder_is_compared_and_not_its_ctime_nor_its_file_system() {
        let folder = |change| check(MemberKind::Folder, change);
        assert_eq!(folder(|_, _, stat, _| (stat.size, stat.changed.seconds) = (4_096, 1)), Ok(()));
        assert_eq!(folder(|rules, _, _, _| rules.is_same_boot = false), Ok(()));
        assert_eq!(folder(|_, _, _, file_system| file_system.times = Times::Unknown("tmpfs")), Ok(()));
        assert_eq!(folder(|_, _, stat, _| stat.modified.seconds = 1), Err(ReadReason::SizeOrTime));
        assert_eq!(folder(|_, row, _, _| row.is_reusable = false), Err(ReadReason::Doubtful));
    }

    #[test]
    fn names_targets_and_attributes_are_compared() {
        let mut row = row(MemberKind::Symlink);
        row.member.link_target = Some(b"target".as_slice().into());
        row.xattr_digest = Some([1; 32]);
        let same = Details {
            user_name: b"user".as_slice().into(),
            group_name: b"group".as_slice().into(),
            link_target: Some(b"target".as_slice().into()),
            xattr_digest: Some([1; 32]),
        };
        assert_eq!(check_details(&row, &same), Ok(()));
        let unnamed = Details { user_name: Box::default(), ..same.clone() };
        assert_eq!(check_details(&row, &unnamed), Err(ReadReason::Owner), "its user was removed");
        let group = Details { group_name: Box::default(), ..same.clone() };
        assert_eq!(check_details(&row, &group), Err(ReadReason::Owner));
        let other = Details { link_target: Some(b"other".as_slice().into()), ..same.clone() };
        assert_eq!(check_details(&row, &other), Err(ReadReason::Link));
        for xattr_digest in [None, Some([2; 32])] {
            let attributes = Details { xattr_digest, ..same.clone() };
            assert_eq!(check_details(&row, &attributes), Err(ReadReason::Attributes));
        }
    }

    #[test]
    fn chunks_are_due_between_15_and_30_days_evenly() {
        let due = |days: i64, hours: i64| {
            let rules =
                Rules { now: Timestamp::from_millis(READ.millis() + days * DAY_MS + hours * 3_600_000), ..rules() };
            (1..=3_000).filter(|id| rules.is_reread_due(*id, READ)).count()
        };
        assert_eq!((due(15, 0), due(30, 0)), (0, 3_000));
        for day in 15..30 {
            let in_a_day = due(day + 1, 0) - due(day, 0);
            assert!((100..300).contains(&in_a_day), "day {day}: {in_a_day}");
        }
        assert_eq!(due(-1, 0), 0, "the clock was set back a little");
        assert_eq!(due(-1, -1), 3_000, "it was read under a clock that was ahead");
        assert!(Rules { rereads_all: true, ..rules() }.is_reread_due(1, READ));
    }
}
