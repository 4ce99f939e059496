//! The power goes at a random instant: an ext4 image is shut down without writing its journal, mounted again, and
//! recovered. What was acknowledged before must be there.
//!
//! Two controls must fail, or the programme would see nothing: `synchronous=NORMAL`, and a rename without a sync of
//! its folder. Needs root. `BACKUP_PROVE=full` makes 100 cuts.

#[path = "prove/mod.rs"]
mod prove;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prove::promises::{Promises, When};
use prove::random::Random;

/// `EXT4_IOC_SHUTDOWN` with `NOLOGFLUSH`, once a byte comes.
const CUT: &str = "import fcntl, os, struct, sys\n\
                   fd = os.open(sys.argv[1], os.O_RDONLY)\n\
                   print('ready', flush=True)\n\
                   sys.stdin.read(1)\n\
                   fcntl.ioctl(fd, 0x8004587D, struct.pack('I', 2))\n";

/// A disk whose power can be cut.
///
/// Its image stays attached to one loop device from beginning to end. A device attached anew by each mount is let go
/// of late, and two devices over one image each see what they remember of it.
struct Disk {
    folder: tempfile::TempDir,
    device: PathBuf,
}

impl Disk {
    /// Syncs this disk and no other: a control must lose what nobody synced, whatever runs beside it.
    fn sync(&self) {
        assert!(Command::new("sync").arg("-f").arg(self.mount_point()).status().unwrap().success());
    }

    fn make() -> Option<Disk> {
        let folder = prove::fast_folder();
        let image = folder.path().join("image");
        let disk = attach(&image).map(|device| Disk { folder, device }).filter(|disk| {
            fs::create_dir(disk.mount_point()).unwrap();
            disk.mount()
        });
        let Some(disk) = disk else {
            prove::say("skipped: power cut: no ext4 image can be mounted here; it needs root and a loop device");
            return None;
        };
        fs::write(disk.mount_point().join("marker"), "this disk").unwrap();
        disk.sync();
        Some(disk)
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Nothing is written back by the mere passing of time.
    fn mount(&self) -> bool {
        let options = ["-o", "rw,commit=600,noauto_da_alloc"];
        succeeded(Command::new("mount").args(options).arg(&self.device).arg(self.mount_point()))
    }

    fn unmount(&self) {
        let started = Instant::now();
        while !succeeded(Command::new("umount").arg(self.mount_point())) {
            assert!(started.elapsed() < Duration::from_secs(10), "the disk stays busy");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Brings the disk back as it was when its power was cut: from the image, nothing from memory.
    fn come_back(&self) {
        self.unmount();
        assert!(succeeded(Command::new("blockdev").arg("--flushbufs").arg(&self.device)), "the device stays busy");
        assert!(self.mount(), "a disk does not come back");
        assert!(self.mount_point().join("marker").exists(), "a disk came back without what was on it from the start");
    }

    /// Returns a process that cuts the power of this disk when it is told to.
    fn cutter(&self) -> Child {
        let mut python = Command::new("python3");
        python.args(["-c", CUT]).arg(self.mount_point()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut cutter = python.spawn().expect("python3");
        std::io::Read::read_exact(cutter.stdout.as_mut().unwrap(), &mut [0; 6]).expect("a cutter");
        cutter
    }
}

/// A process that goes with the power.
struct Working(Child);

impl Drop for Working {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does some work, cuts the power of all disks `rest` later, drops what still works, and brings the disks back.
fn cut<W>(disks: &[&Disk], rest: Duration, work: impl FnOnce() -> W) {
    let mut cutters: Vec<Child> = disks.iter().map(|disk| disk.cutter()).collect();
    let working = work();
    std::thread::sleep(rest);
    for cutter in &mut cutters {
        cutter.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    }
    for cutter in &mut cutters {
        assert!(cutter.wait().unwrap().success(), "the power stays on");
    }
    drop(working);
    for disk in disks {
        disk.come_back();
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

/// Opens the database and looks into it.
fn connect(home: &Path) -> rusqlite::Result<rusqlite::Connection> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = rusqlite::Connection::open_with_flags(home.join("backup.db"), flags)?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

fn number(home: &Path, question: &str) -> u64 {
    let asked = connect(home).and_then(|connection| connection.query_row(question, [], |row| row.get(0)));
    asked.unwrap_or_else(|error| {
        let look = "ls -la . ..; df .; touch x; mount | grep disk; losetup";
        let seen = Command::new("sh").args(["-c", look]).current_dir(home).output();
        panic!("{error}: {seen:?}")
    })
}

/// One test at a time: unmounting and shutting down one disk makes the kernel write others, too.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn what_was_acknowledged_outlives_a_power_cut_and_the_rest_is_put_right() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Archives and database on disks of their own: what syncs one must not be what saves the other.
    let (Some(disk), Some(archives)) = (Disk::make(), Disk::make()) else { return };
    let seed = prove::number("BACKUP_SEED").unwrap_or(1);
    let cuts = if prove::full() { 100 } else { 5 };
    let (mut random, started) = (Random::seeded(seed), Instant::now());
    let home = disk.mount_point().join("home");
    let names = [("a", "none"), ("b", "gzip"), ("c", "zstd")];
    let mut acknowledged = 0;
    let mut violations = Vec::new();
    for at in 0..cuts {
        if !home.join("backup.db").exists() {
            fs::create_dir_all(home.join("docs")).unwrap();
            fs::write(home.join("docs/first"), "first").unwrap();
            let _ = std::os::unix::fs::symlink(archives.mount_point().join("all"), home.join("backups"));
            fs::create_dir_all(archives.mount_point().join("all")).unwrap();
            // The home itself is not the program's to sync.
            disk.sync();
            archives.sync();
        }
        // Making the database and the schedules is cut, too; what is said to be made must be there.
        for (name, format) in names {
            let _ = succeeds(&home, &["create", "docs", "--name", name, "--cron", "0 3 1 1 *", "--compress", format]);
        }
        fs::write(home.join("docs/changing"), vec![random.next() as u8; random.below(300_000)]).unwrap();
        let typical = Instant::now();
        for _ in 0..random.below(3) {
            acknowledged += u64::from(succeeds(&home, &["run", random.pick(&names).0]));
        }
        let longest = (typical.elapsed().as_millis() as u64 / 2).max(200);
        // Right after a backup was acknowledged, or somewhere in the middle of some.
        if at % 2 == 0 {
            // The proof and a new stable name each sync the archives' disk once more, and with one file ext4 writes
            // its whole journal. Without proof there is neither: placing the archive must have synced all by itself.
            let command = ["run", random.pick(&names).0, "--no-verify"];
            let command = if at % 4 == 0 { &command[..] } else { &command[..2] };
            cut(&[&disk, &archives], Duration::ZERO, || {
                // Another is at the database, as ever: closed by the last, it would be synced once more.
                let beside = connect(&home).ok();
                acknowledged += u64::from(succeeds(&home, command));
                beside
            });
        } else {
            let rest = Duration::from_millis(random.between(0, longest));
            // The archives' disk may also go alone, as one that is pulled out.
            let gone = if at % 4 == 1 { &[&disk, &archives][..] } else { &[&archives][..] };
            cut(gone, rest, || Working(program(&home, &["run", "--all"]).spawn().expect("the program")));
        }
        let complete = number(&home, "SELECT count(*) FROM archive WHERE state = 'complete'");
        if complete < acknowledged {
            violations.push(format!("cut {at}: {acknowledged} backups were acknowledged, {complete} are there"));
        }
        let mut broken = Promises::default().broken(&home, When::Always);
        // The disks do not go at the same instant: with the archives gone first, a run ends whose file nobody can
        // remove. The next run of its schedule does.
        broken.retain(|why| !(why.starts_with("a file without a row") && why.ends_with(".part")));
        violations.extend(broken.into_iter().map(|why| format!("cut {at}: {why}")));
        if !succeeds(&home, &["run", "--all"]) {
            violations.push(format!("cut {at}: the next run fails"));
        }
        let broken = Promises::default().broken(&home, When::Settled);
        violations.extend(broken.into_iter().map(|why| format!("cut {at}, recovered: {why}")));
        acknowledged = number(&home, "SELECT count(*) FROM archive WHERE state = 'complete'");
    }
    prove::say(&format!(
        "power cut: {cuts} cuts from seed {seed}, {acknowledged} archives, {} violations, {:.1} s",
        violations.len(),
        started.elapsed().as_secs_f64()
    ));
    assert!(violations.is_empty(), "seed {seed}: {}", violations.join("\n"));
}

/// Commits rows by SQLite alone and cuts the power; returns how many are lost.
fn rows_lost(disk: &Disk, synchronous: &str) -> u64 {
    let path = disk.mount_point().join(format!("{synchronous}.db"));
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n INTEGER); PRAGMA wal_checkpoint;").unwrap();
    disk.sync();
    connection.execute_batch(&format!("PRAGMA synchronous = {synchronous}")).unwrap();
    for n in 0..20 {
        connection.execute("INSERT INTO t VALUES (?1)", [n]).unwrap();
    }
    // The connection must not tidy up before: its file goes with the disk.
    cut(&[disk], Duration::ZERO, || connection);
    let found: u64 =
        rusqlite::Connection::open(&path).unwrap().query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
    20 - found
}

/// Puts a file in place, with or without syncing its folder, and cuts the power; says whether it is there.
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
fn the_cut_takes_what_was_not_synced_and_only_that() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(disk) = Disk::make() else { return };
    assert!(rows_lost(&disk, "NORMAL") > 0, "control: nothing is lost with synchronous=NORMAL");
    assert_eq!(rows_lost(&disk, "FULL"), 0);
    assert!(!is_kept(&disk, "careless", false), "control: a rename is kept without a sync of its folder");
    assert!(is_kept(&disk, "careful", true));
    prove::say("power cut: both controls fail as they must (synchronous=NORMAL, no folder sync)");
}
