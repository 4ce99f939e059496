//! Power cuts at random instants: an ext4 image is shut down without writing its journal, mounted again, and recovered.
//! Everything that was acknowledged before must exist.
//!
//! Two controls must lose data, or the test could detect nothing: `synchronous=NORMAL`, and a rename without a sync of
//! its folder. Needs root. `BACKUP_STRESS=full` makes 100 cuts.

#[path = "stress/mod.rs"]
mod stress;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use stress::promises::{Promises, When};
use stress::random::Random;

/// Calls `EXT4_IOC_SHUTDOWN` with `NOLOGFLUSH` when a byte arrives on standard input.
const CUT: &str = "import fcntl, os, struct, sys\n\
                   fd = os.open(sys.argv[1], os.O_RDONLY)\n\
                   print('ready', flush=True)\n\
                   sys.stdin.read(1)\n\
                   fcntl.ioctl(fd, 0x8004587D, struct.pack('I', 2))\n";

/// A disk whose power can be cut.
///
/// Its image stays attached to one loop device for the whole test. A device that is attached again for each mount is
/// released late, and two devices over one image each have a cache of it.
struct Disk {
    folder: tempfile::TempDir,
    device: PathBuf,
}

impl Disk {
    /// Syncs this disk and no other: a control must lose what was not synced, whatever runs at the same time.
    fn sync(&self) {
        assert!(Command::new("sync").arg("-f").arg(self.mount_point()).status().unwrap().success());
    }

    fn make() -> Option<Disk> {
        let folder = stress::fast_folder();
        let image = folder.path().join("image");
        let disk = attach(&image).map(|device| Disk { folder, device }).filter(|disk| {
            fs::create_dir(disk.mount_point()).unwrap();
            disk.mount()
        });
        let Some(disk) = disk else {
            stress::print("skipped: power cut: no ext4 image can be mounted here; it needs root and a loop device");
            return None;
        };
        fs::write(disk.mount_point().join("marker"), "this disk").unwrap();
        disk.sync();
        Some(disk)
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Mounts it so that nothing is written back because time passes.
    fn mount(&self) -> bool {
        let options = ["-o", "rw,commit=600,noauto_da_alloc"];
        succeeded(Command::new("mount").args(options).arg(&self.device).arg(self.mount_point()))
    }

    fn unmount(&self) {
        let started = Instant::now();
        while !succeeded(Command::new("umount").arg(self.mount_point())) {
            assert!(started.elapsed() < Duration::from_secs(10), "the disk is still busy");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Mounts the disk again as it was when its power was cut: from the image, nothing from memory.
    fn power_on(&self) {
        self.unmount();
        assert!(succeeded(Command::new("blockdev").arg("--flushbufs").arg(&self.device)), "the device is still busy");
        assert!(self.mount(), "the disk cannot be mounted again");
        assert!(self.mount_point().join("marker").exists(), "the disk lost what was on it from the start");
    }

    /// Returns a process that cuts the power of this disk when a byte is written to its standard input.
    fn cutter(&self) -> Child {
        let mut python = Command::new("python3");
        python.args(["-c", CUT]).arg(self.mount_point()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut cutter = python.spawn().expect("python3");
        std::io::Read::read_exact(cutter.stdout.as_mut().unwrap(), &mut [0; 6]).expect("a cutter");
        cutter
    }
}

/// A process that is killed when the power is cut.
struct Working(Child);

impl Drop for Working {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does some work, cuts the power of all disks `rest` later, kills what still works, and mounts the disks again.
fn cut<W>(disks: &[&Disk], rest: Duration, work: impl FnOnce() -> W) {
    let mut cutters: Vec<Child> = disks.iter().map(|disk| disk.cutter()).collect();
    let working = work();
    std::thread::sleep(rest);
    for cutter in &mut cutters {
        cutter.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    }
    for cutter in &mut cutters {
        assert!(cutter.wait().unwrap().success(), "the power was not cut");
    }
    drop(working);
    for disk in disks {
        disk.power_on();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.mount_point()).stderr(Stdio::null()).status();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

fn succeeded(command: &mut Command) -> bool {
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Makes an empty ext4 image and attaches it to a loop device.
fn attach(image: &Path) -> Option<PathBuf> {
    let made = succeeded(Command::new("truncate").args(["-s", "96M"]).arg(image))
        && succeeded(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image));
    let attached = made.then(|| Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok());
    let attached = attached.flatten().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&attached.stdout).trim().into())
}

fn program(home: &Path, command: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_backup-manager"));
    program.args(command).env_clear().env("TZ", "UTC").current_dir(home);
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    program
}

fn succeeds(home: &Path, command: &[&str]) -> bool {
    program(home, command).status().expect("the program").success()
}

/// Opens the database and reads its schema.
fn connect(home: &Path) -> rusqlite::Result<rusqlite::Connection> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = rusqlite::Connection::open_with_flags(home.join("backup.db"), flags)?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

fn number(home: &Path, query: &str) -> u64 {
    let answer = connect(home).and_then(|connection| connection.query_row(query, [], |row| row.get(0)));
    answer.unwrap_or_else(|error| {
        let inspect = "ls -la . ..; df .; touch x; mount | grep disk; losetup";
        let seen = Command::new("sh").args(["-c", inspect]).current_dir(home).output();
        panic!("{error}: {seen:?}")
    })
}

/// One test at a time: unmounting and shutting down one disk makes the kernel write others, too.
static ALONE: Mutex<()> = Mutex::new(());

/// The schedules of the test, with their compression.
const SCHEDULES: [(&str, &str); 3] = [("a", "none"), ("b", "gzip"), ("c", "zstd")];

/// Backups whose disks lose power again and again.
struct Course {
    random: Random,
    /// Database and source.
    disk: Disk,
    /// Archives, on a separate disk, so that a sync of one does not save the other.
    archives: Disk,
    home: PathBuf,
    /// Complete archives that a command reported.
    acknowledged: u64,
    violations: Vec<String>,
}

impl Course {
    fn prepare_home(&self) {
        fs::create_dir_all(self.home.join("docs")).unwrap();
        fs::write(self.home.join("docs/first"), "first").unwrap();
        let _ = std::os::unix::fs::symlink(self.archives.mount_point().join("all"), self.home.join("backups"));
        fs::create_dir_all(self.archives.mount_point().join("all")).unwrap();
        // The program does not sync the home itself.
        self.disk.sync();
        self.archives.sync();
    }

    /// Makes some backups, then cuts the power during or right after one more.
    fn back_up_and_cut(&mut self, at: usize) {
        if !self.home.join("backup.db").exists() {
            self.prepare_home();
        }
        // Cuts also hit the creation of the database and the schedules.
        for (name, format) in SCHEDULES {
            let create = ["create", "docs", "--name", name, "--cron", "0 3 1 1 *", "--compress", format];
            let _ = succeeds(&self.home, &create);
        }
        let content = vec![self.random.next() as u8; self.random.below(300_000)];
        fs::write(self.home.join("docs/changing"), content).unwrap();
        let typical = Instant::now();
        for _ in 0..self.random.below(3) {
            self.acknowledged += u64::from(succeeds(&self.home, &["run", self.random.pick(&SCHEDULES).0]));
        }
        let longest = (typical.elapsed().as_millis() as u64 / 2).max(200);
        // Either right after a backup was acknowledged, or in the middle of several.
        if at.is_multiple_of(2) {
            self.cut_after_a_backup(at.is_multiple_of(4));
        } else {
            let rest = Duration::from_millis(self.random.between(0, longest));
            // The archives' disk may also fail alone, like one that is unplugged.
            let both = [&self.disk, &self.archives];
            let failing = if at % 4 == 1 { &both[..] } else { &both[1..] };
            cut(failing, rest, || Working(program(&self.home, &["run", "--all"]).spawn().expect("the program")));
        }
    }

    /// Cuts the power right after a backup was acknowledged, with or without verification.
    ///
    /// Verification and a new stable link each sync the archives' disk once more, and with one file ext4 writes its
    /// whole journal. Without verification there is neither: renaming the archive into place must have synced
    /// everything by itself.
    fn cut_after_a_backup(&mut self, no_verify: bool) {
        let command = ["run", self.random.pick(&SCHEDULES).0, "--no-verify"];
        let command = if no_verify { &command[..] } else { &command[..2] };
        let (home, acknowledged) = (&self.home, &mut self.acknowledged);
        cut(&[&self.disk, &self.archives], Duration::ZERO, || {
            // Keep another connection open: the last one to close would sync the database once more.
            let open = connect(home).ok();
            *acknowledged += u64::from(succeeds(home, command));
            open
        });
    }

    /// Checks the promises before and after the next command, which recovers.
    fn check_and_recover(&mut self, at: usize) {
        let complete = number(&self.home, "SELECT count(*) FROM archive WHERE state = 'complete'");
        if complete < self.acknowledged {
            let acknowledged = self.acknowledged;
            self.violations.push(format!("cut {at}: {acknowledged} backups were acknowledged, {complete} exist"));
        }
        let mut found = Promises::default().violations(&self.home, When::Always);
        // The disks do not fail at the same instant: if the archives fail first, a run ends whose file cannot be
        // removed. The next run of its schedule removes it.
        found.retain(|why| !(why.starts_with("a file without a row") && why.ends_with(".part")));
        self.violations.extend(found.into_iter().map(|why| format!("cut {at}: {why}")));
        if !succeeds(&self.home, &["run", "--all"]) {
            self.violations.push(format!("cut {at}: the next run fails"));
        }
        let found = Promises::default().violations(&self.home, When::Settled);
        self.violations.extend(found.into_iter().map(|why| format!("cut {at}, recovered: {why}")));
        self.acknowledged = number(&self.home, "SELECT count(*) FROM archive WHERE state = 'complete'");
    }
}

#[test]
fn acknowledged_backups_survive_a_power_cut_and_the_rest_is_recovered() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (Some(disk), Some(archives)) = (Disk::make(), Disk::make()) else { return };
    let (seed, started) = (stress::number("BACKUP_SEED").unwrap_or(1), Instant::now());
    let cuts = if stress::full() { 100 } else { 5 };
    let (home, random) = (disk.mount_point().join("home"), Random::seeded(seed));
    let mut course = Course { random, disk, archives, home, acknowledged: 0, violations: Vec::new() };
    for at in 0..cuts {
        course.back_up_and_cut(at);
        course.check_and_recover(at);
    }
    let Course { acknowledged, violations, .. } = course;
    stress::print(&format!(
        "power cut: {cuts} cuts from seed {seed}, {acknowledged} archives, {} violations, {:.1} s",
        violations.len(),
        started.elapsed().as_secs_f64()
    ));
    assert!(violations.is_empty(), "seed {seed}: {}", violations.join("\n"));
}

/// Commits rows with SQLite alone and cuts the power; returns how many are lost.
fn rows_lost(disk: &Disk, synchronous: &str) -> u64 {
    let path = disk.mount_point().join(format!("{synchronous}.db"));
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n INTEGER); PRAGMA wal_checkpoint;").unwrap();
    disk.sync();
    connection.execute_batch(&format!("PRAGMA synchronous = {synchronous}")).unwrap();
    for n in 0..20 {
        connection.execute("INSERT INTO t VALUES (?1)", [n]).unwrap();
    }
    // The connection must not be closed before the cut: closing it writes a checkpoint.
    cut(&[disk], Duration::ZERO, || connection);
    let found: u64 =
        rusqlite::Connection::open(&path).unwrap().query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
    20 - found
}

/// Renames a file into place, with or without syncing its folder, and cuts the power; returns whether it exists.
fn is_kept(disk: &Disk, name: &str, sync_folder: bool) -> bool {
    let folder = disk.mount_point().join("folder");
    fs::create_dir_all(&folder).unwrap();
    disk.sync();
    let (temporary, last) = (folder.join("temporary"), folder.join(name));
    let mut file = fs::File::create(&temporary).unwrap();
    file.write_all(&[7; 10_000]).and_then(|()| file.sync_all()).unwrap();
    drop(file);
    fs::rename(&temporary, &last).unwrap();
    if sync_folder {
        fs::File::open(&folder).and_then(|folder| folder.sync_all()).unwrap();
    }
    cut(&[disk], Duration::ZERO, || ());
    fs::read(&last).is_ok_and(|bytes| bytes == [7; 10_000])
}

#[test]
fn a_cut_loses_what_was_not_synced_and_nothing_else() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(disk) = Disk::make() else { return };
    assert!(rows_lost(&disk, "NORMAL") > 0, "control: nothing is lost with synchronous=NORMAL");
    assert_eq!(rows_lost(&disk, "FULL"), 0);
    assert!(!is_kept(&disk, "careless", false), "control: a rename is kept without a sync of its folder");
    assert!(is_kept(&disk, "careful", true));
    stress::print("power cut: both controls lose data as they must (synchronous=NORMAL, no folder sync)");
}
