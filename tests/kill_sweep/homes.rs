//! Homes to begin from, and the commands that get faults in them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use backup_manager::approval;
use backup_manager::clock::{Clock, SystemClock};
use backup_manager::maintenance;
use backup_manager::schedule::{CommandKind, Hooks, ScheduleName};
use backup_manager::store::ScheduleChanges;
use refinery::Target;
use rusqlite::Connection;

use crate::case::{Scenario, home_and_store};
use crate::fault::{Fault, calls, copy, program, run, run_with_fault, words};
use crate::older_schema;
use crate::state;
use crate::stress::fast_folder;
use crate::stress::promises::column;
use crate::tree::{self, Entry, Kind};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// The target of restores, in the home.
pub const RESTORED: &str = "restored/here";
/// A copy of the database of an older schema, beside it.
pub const OLD: &str = "old.db";

const FORMATS: [&str; 3] = ["none", "gzip", "zstd"];

/// Homes to begin from, and the scenarios in them.
pub struct Homes {
    folder: tempfile::TempDir,
    pub scenarios: Vec<Scenario>,
}

impl Homes {
    pub fn make() -> Homes {
        let mut homes = Homes { folder: fast_folder(), scenarios: Vec::new() };
        homes.backups();
        homes.commands();
        homes.reuses();
        homes.segments();
        homes.repairs();
        homes.compactions();
        homes.texts();
        homes.prunes();
        homes.restores();
        homes.rescans();
        homes.migrations();
        homes.recoveries();
        homes
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a home that is a copy of `model`.
    fn copy_of(&self, model: &str, name: &str) -> PathBuf {
        let home = self.path(name);
        copy(&self.path(model), &home);
        home
    }

    fn backups(&mut self) {
        let empty = self.path("empty");
        fs::create_dir_all(empty.join("docs/below")).unwrap();
        for file in 0..5 {
            fs::write(empty.join(format!("docs/below/file {file}")), vec![file; 3_000]).unwrap();
        }
        for format in FORMATS {
            let first = self.copy_of("empty", &format!("first-{format}"));
            run(&first, &format!("create docs --name docs --at 9:00 --compress {format}"));
            let second = self.copy_of(&format!("first-{format}"), &format!("second-{format}"));
            run(&second, "run docs");
            fs::write(second.join("docs/below/file 1"), "another").unwrap();
            for (kind, home) in [("first backup", first), ("second backup", second)] {
                self.scenarios.push(Scenario::new(kind, format, home, "run docs", state::nothing));
            }
        }
    }

    /// Runs with commands around them.
    fn commands(&mut self) {
        let home = self.copy_of("first-gzip", "commands");
        let (places, store) = home_and_store(&home).expect("a home");
        let name = ScheduleName::parse("docs").unwrap();
        // A command that overlaps with another one of the schedule reports that. What runs in it has the lock, too.
        let text = |kind: CommandKind| {
            let alone = "set -e; exec 9>>alone; flock -n 9 || { echo two are alive >>commands; exit 1; }";
            format!("{alone}; echo {kind} $BACKUP_RUN >>commands; sleep 0.01")
        };
        let kinds = [CommandKind::Before, CommandKind::After, CommandKind::OnSuccess];
        let commands = kinds.into_iter().map(|kind| (kind, text(kind))).collect();
        let hooks = Hooks { commands, ..Hooks::default() };
        let approved = approval::approve(&places, &name, hooks, |_| true).unwrap();
        let changes = ScheduleChanges { hooks: &[(name, approved)], ..ScheduleChanges::default() };
        store.apply_schedules(&changes, SystemClock::new().now()).unwrap();
        drop(store);
        self.scenarios.push(Scenario::new("hooks", "before and after", home, "run docs", state::undone));
    }

    /// Runs with a base that is not the newest archive, so that pruning wants to remove it; it shares chunks with an
    /// older one.
    fn reuses(&mut self) {
        let sizes = [("none", "gzip", 30_000), ("gzip", "zstd", 150_000), ("zstd", "none", 400_000)];
        for (format, other, bytes) in sizes {
            let home = self.home_with_base("unchanged", format, other, bytes).0;
            let unchanged = Scenario::new("unchanged", format, home, "run docs", state::reused);
            self.scenarios.push(unchanged.beside("forget @2", "-2.tar"));
            let (home, source) = self.home_with_base("changed", format, other, bytes);
            run(&home, "edit docs --keep-last 2");
            fs::write(source.join("below/file 09"), "fourth version").unwrap();
            let changed = Scenario::new("changed", format, home, "run docs", state::reused);
            self.scenarios.push(changed.beside("prune --yes", "docs-"));
        }
    }

    /// Returns a home with two archives of one format, then two of another one, and its source, which lies outside of
    /// it: a copy of the source would have other inode numbers.
    fn home_with_base(&self, kind: &str, format: &str, other: &str, bytes: usize) -> (PathBuf, PathBuf) {
        let (home, source) = (self.path(&format!("{kind}-{format}")), self.path(&format!("{kind}-{format}-source")));
        fs::create_dir_all(source.join("below")).unwrap();
        for file in 0..12 {
            fs::write(source.join(format!("below/file {file:02}")), vec![file; bytes]).unwrap();
        }
        fs::write(source.join("large"), vec![1; if format == "none" { 0 } else { 5 << 20 }]).unwrap();
        fs::hard_link(source.join("below/file 03"), source.join("name")).unwrap();
        fs::create_dir(&home).unwrap();
        let create = format!("create {} --name docs --at 9:00 --trust-times --compress {format}", source.display());
        run(&home, &create);
        run_as_if_later(&home);
        fs::write(source.join("below/file 05"), "second version").unwrap();
        run_as_if_later(&home);
        run(&home, &format!("edit docs --compress {other}"));
        run_as_if_later(&home);
        if kind == "changed" {
            // Names of one file would count once for `--keep-last`.
            fs::write(source.join("below/file 07"), "third version").unwrap();
        }
        run_as_if_later(&home);
        run(&home, &format!("edit docs --compress {format}"));
        (home, source)
    }

    /// A schedule whose archives lie in segments: its first archives, one that finds nothing changed, and prunes.
    fn segments(&mut self) {
        let first = self.copy_of("first-gzip", "segments-first");
        let connection = Connection::open(first.join("backup.db")).unwrap();
        connection.execute_batch("UPDATE schedule SET layout = 'segmented'").unwrap();
        drop(connection);
        let second = self.copy_of("segments-first", "segments-second");
        run(&second, "run docs");
        let unchanged = self.copy_of("segments-second", "segments-unchanged");
        fs::write(second.join("docs/below/file 1"), "another").unwrap();
        let prune = self.copy_of("segments-second", "segments-prune");
        for file in 0..3 {
            run(&prune, "run docs");
            fs::write(prune.join(format!("docs/below/file {file}")), format!("another {file}")).unwrap();
        }
        run(&prune, "run docs");
        run(&prune, "edit docs --keep-last 3");
        run(&prune, "create docs --name other --at 9:00");
        for (name, home) in [("first", first), ("second", second), ("unchanged", unchanged)] {
            self.scenarios.push(Scenario::new("segments", name, home, "run docs", state::nothing));
        }
        self.scenarios.push(Scenario::new("segments", "prune", prune.clone(), "prune", state::archives));
        for command in ["forget @1", "delete docs --with-archives --yes"] {
            let scenario = Scenario::new("segments", command, prune.clone(), command, state::complete_archives);
            self.scenarios.push(scenario.then("run other"));
        }
    }

    /// Archives of each layout with a damaged chunk that another archive has, too. In the whole layout the damaged file
    /// has two names.
    fn repairs(&mut self) {
        for layout in ["whole", "segmented"] {
            let home = self.path(&format!("repair-{layout}"));
            fs::create_dir_all(home.join("docs/below")).unwrap();
            for file in 0..12 {
                fs::write(home.join(format!("docs/below/file {file:02}")), vec![file; 60_000]).unwrap();
            }
            run(&home, "create docs --name docs --at 9:00 --trust-times --compress none");
            let connection = Connection::open(home.join("backup.db")).unwrap();
            connection.execute("UPDATE schedule SET layout = ?1", [layout]).unwrap();
            drop(connection);
            run_as_if_later(&home);
            run_as_if_later(&home);
            if layout == "whole" {
                fs::write(home.join("docs/below/file 01"), "another").unwrap();
                run_as_if_later(&home);
            }
            let files = fs::read_dir(home.join("backups/docs")).unwrap().map(|entry| entry.unwrap().path());
            let is_first =
                |path: &PathBuf| ["-1.tar", "-1.tar.1.segment"].iter().any(|end| path.to_string_lossy().ends_with(end));
            let damaged = files.into_iter().find(is_first).expect("the first archive");
            let bytes = fs::read(&damaged).unwrap();
            let at = bytes.windows(1_000).position(|window| window.iter().all(|byte| *byte == 9)).expect("a file");
            let file = fs::OpenOptions::new().write(true).open(&damaged).unwrap();
            file.write_all_at(&[8], at as u64 + 500).unwrap();
            assert_eq!(program(&home, &words("verify")).output().unwrap().status.code(), Some(4));
            if layout == "segmented" {
                // All anew, as the base is damaged.
                run(&home, "run docs");
            }
            let scenario = Scenario::new("repair", layout, home, "repair", state::verified);
            self.scenarios.push(scenario.then("run docs"));
        }
    }

    /// Prunes after which less than half of a segment is used.
    fn compactions(&mut self) {
        for (format, bytes) in [("none", 30_000), ("gzip", 150_000), ("zstd", 400_000)] {
            let (home, source) =
                (self.path(&format!("compaction-{format}")), self.path(&format!("{format}-compacted")));
            fs::create_dir_all(&source).unwrap();
            fs::create_dir(&home).unwrap();
            let write = |file: u8, version: u8| {
                let content: Vec<u8> =
                    (0..bytes).map(|at: u32| (at.wrapping_mul(at) >> 3) as u8 ^ file ^ version).collect();
                fs::write(source.join(format!("file {file:02}")), content).unwrap();
            };
            (0..24).for_each(|file| write(file, 0));
            let options = format!("--trust-times --compress {format} --layout segmented --keep-last 3");
            run(&home, &format!("create {} --name docs --at 9:00 {options}", source.display()));
            run_as_if_later(&home);
            (8..24).for_each(|file| write(file, 100));
            run_as_if_later(&home);
            write(23, 200);
            run_as_if_later(&home);
            run(&home, "edit docs --keep-last 2");
            let planned = program(&home, &words("prune -n")).output().expect("the program");
            assert!(
                String::from_utf8_lossy(&planned.stderr).contains("compaction would free 1 segment"),
                "{planned:?}"
            );
            let prune = Scenario::new("compaction", format, home, "prune --yes", state::compacted);
            self.scenarios.push(prune.then("run docs"));
        }
    }

    fn texts(&mut self) {
        let home = self.copy_of("empty", "texts");
        fs::write(home.join("backup_schedules.txt"), "docs;09:00;one\ndocs;10:00;two\n").unwrap();
        let import = Scenario::new("import", "text", home.clone(), "import", state::schedules);
        self.scenarios.push(import.then("run one"));
        let create = Scenario::new("create", "one", home, "create docs --name one --at 9:00", state::schedules);
        self.scenarios.push(create.then("run one"));
    }

    /// Two of five archives expire; the newest is not good, so that the newest good one is not the newest.
    fn prunes(&mut self) {
        for format in FORMATS {
            let home = self.copy_of(&format!("first-{format}"), &format!("prune-{format}"));
            for _ in 0..4 {
                run(&home, "run docs");
            }
            for file in 0..4 {
                fs::remove_file(home.join(format!("docs/below/file {file}"))).unwrap();
            }
            run(&home, "run docs");
            run(&home, "edit docs --keep-last 2");
            run(&home, "create docs --name other --at 9:00");
            self.scenarios.push(Scenario::new("prune", format, home.clone(), "prune", state::archives));
            for command in ["forget @1", "delete docs --with-archives --yes"] {
                let scenario = Scenario::new("deletion", format, home.clone(), command, state::complete_archives);
                self.scenarios.push(scenario.then("run other"));
            }
        }
    }

    fn restores(&mut self) {
        for format in FORMATS {
            let home = self.path(&format!("restore-{format}"));
            fs::create_dir(&home).unwrap();
            tree::make(&home.join("docs"), &every_kind());
            run(&home, &format!("create docs --name docs --at 9:00 --compress {format}"));
            run(&home, "run docs");
            let command = format!("restore docs --devices --to {RESTORED}");
            self.scenarios.push(Scenario::new("restore", format, home, &command, state::restored));
        }
    }

    /// The database is lost, or older than the last archives, or restored from a copy.
    fn rescans(&mut self) {
        let whole = self.copy_of("first-none", "whole");
        run(&whole, "create docs --name other --at 9:00 --compress gzip");
        run(&whole, "create docs --name third --at 9:00 --compress zstd");
        run(&whole, "run docs other");
        fs::copy(whole.join("backup.db"), whole.join("older.db")).unwrap();
        run(&whole, "run docs third");
        let lost = self.copy_of("whole", "rescan-lost");
        fs::remove_file(lost.join("backup.db")).unwrap();
        let older = self.copy_of("whole", "rescan-older");
        fs::rename(older.join("older.db"), older.join("backup.db")).unwrap();
        let copied = self.copy_of("rescan-older", "rescan-copied");
        let (home, store) = home_and_store(&copied).expect("a store");
        maintenance::copy_database(&home, &store, SystemClock::new().now()).expect("a copy");
        drop(store);
        for (name, home, command) in [
            ("database lost", lost, "rescan"),
            ("older database", older, "rescan"),
            ("from a copy", copied, "rescan --from-copy"),
        ] {
            let scenario = Scenario::new("rescan", name, home, command, state::catalog);
            self.scenarios.push(scenario.then("run docs"));
        }
    }

    /// Databases of each older schema, with the rows that this program wrote.
    fn migrations(&mut self) {
        let newest = embedded::migrations::runner().get_migrations().len();
        for version in 1..newest {
            let home = self.copy_of("whole", &format!("migration-{version}"));
            fs::rename(home.join("backup.db"), home.join("new.db")).unwrap();
            make_old(&home, version);
            fs::remove_file(home.join("new.db")).unwrap();
            fs::copy(home.join("backup.db"), home.join(OLD)).unwrap();
            let scenario = Scenario::new("migration", &format!("from {version}"), home, "list", state::migrated);
            self.scenarios.push(scenario.then("run docs"));
        }
    }

    /// The states that killed backups and prunes leave, one of each that differs in what recovery has to do. Those of a
    /// prune are also recovered by the run of another schedule.
    fn recoveries(&mut self) {
        let mut kinds = BTreeMap::new();
        for (model, command) in [("first-zstd", "run docs"), ("prune-gzip", "prune")] {
            for (call, count) in self.calls_of(model, command) {
                if !["fsync", "renameat2", "pwrite64", "symlink", "symlinkat", "unlink"].contains(&call.as_str()) {
                    continue;
                }
                for n in (1..=count).step_by(if call == "pwrite64" { 7 } else { 1 }) {
                    let home = self.copy_of(model, &format!("{model}-left-{call}-{n}"));
                    run_with_fault(&home, &words(command), &call, n, Fault::Kill);
                    match left_state(&home).filter(|state| command != "prune" || state.contains("deleting")) {
                        Some(state) if !kinds.contains_key(&state) => drop(kinds.insert(state, (home, command))),
                        _ => fs::remove_dir_all(&home).unwrap(),
                    }
                }
            }
        }
        for (left, (home, command)) in kinds {
            if command == "prune" {
                self.scenarios.push(Scenario::new("recovery", &left, home.clone(), "run other", state::nothing));
            }
            self.scenarios.push(Scenario::new("recovery", &left, home, command, state::nothing));
        }
    }

    fn calls_of(&self, model: &str, command: &str) -> Vec<(String, usize)> {
        let home = self.copy_of(model, "scratch");
        let calls = calls(&home, &words(command));
        fs::remove_dir_all(home).unwrap();
        calls
    }
}

/// Makes an archive of `docs`, and what changed just before does not count as recent for the next run.
fn run_as_if_later(home: &Path) {
    run(home, "run docs");
    let connection = Connection::open(home.join("backup.db")).unwrap();
    connection.execute("UPDATE chunk SET read_started_at_ms = read_started_at_ms + 10000", []).unwrap();
}

/// Makes the database of an older schema beside `new.db`, with all of its rows that the old schema has room for.
fn make_old(home: &Path, version: usize) {
    let mut old = Connection::open(home.join("backup.db")).unwrap();
    old.execute_batch("PRAGMA journal_mode = WAL; PRAGMA foreign_keys = OFF").unwrap();
    let target = Target::Version(i32::try_from(version).unwrap());
    embedded::migrations::runner().set_grouped(true).set_target(target).run(&mut old).unwrap();
    old.execute("ATTACH ?1 AS new", [home.join("new.db").display().to_string()]).unwrap();
    old.execute_batch("DELETE FROM instance").unwrap();
    let tables = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' \
                  AND name NOT LIKE 'refinery%'";
    for table in column(&old, tables) {
        let columns = column(&old, &format!("SELECT name FROM pragma_table_info('{table}', 'main')")).join(", ");
        let source = older_schema::rows_of(&table, "new", version);
        old.execute_batch(&format!("INSERT OR IGNORE INTO main.{table} ({columns}) SELECT {columns} FROM {source}"))
            .unwrap();
    }
    old.execute_batch("DETACH new").unwrap();
}

/// Returns a tree with every kind of member, with devices, owners and attributes where they can be set.
fn every_kind() -> Vec<Entry> {
    let mine = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owner = if tree::is_root() { (4_321, 8_765) } else { mine };
    let probe = tempfile::NamedTempFile::new_in(fast_folder().path().parent().unwrap()).unwrap();
    let has_xattrs = xattr::set(probe.path(), "user.note", b"yes").is_ok();
    let xattrs = if has_xattrs { vec![(b"user.note".to_vec(), b"kept".to_vec())] } else { Vec::new() };
    let entry = |parent, name: &str, kind, mode| Entry {
        parent,
        name: name.into(),
        kind,
        mode,
        owner,
        modified: (1_600_000_000 + i64::from(mode), 123_456_789),
        xattrs: if mode & 0o200 == 0 { Vec::new() } else { xattrs.clone() },
        acl_user: (has_xattrs && name == "shared").then_some(1_234),
    };
    let file = |size| Kind::File { size, spans: vec![(0, size, 7)] };
    let sparse = Kind::File { size: 3_000_000, spans: vec![(1_000_000, 5_000, 3)] };
    let mut entries = vec![
        entry(0, "below", Kind::Folder, 0o750),
        entry(1, "shared", Kind::Folder, 0o770),
        entry(1, "closed", Kind::Folder, 0o500),
        entry(0, "nothing", Kind::Folder, 0o711),
        entry(1, "small", file(3_000), 0o640),
        entry(2, "again", Kind::HardLink(0), 0o640),
        entry(2, "mine", file(10), 0o660),
        entry(3, "read only", file(700), 0o400),
        entry(0, "large", file(1_300_000), 0o644),
        entry(0, "holes", sparse, 0o644),
        entry(0, "void", file(0), 0o644),
        entry(1, "link", Kind::Symlink(b"../large".to_vec()), 0o777),
        entry(1, "pipe", Kind::Fifo, 0o622),
    ];
    if tree::is_root() {
        entries.push(entry(1, "device", Kind::Device(4, 64), 0o620));
    }
    entries
}

/// Describes what a killed command left of archives, or returns `None` if nothing.
fn left_state(home: &Path) -> Option<String> {
    let connection = Connection::open(home.join("backup.db")).ok()?;
    let rows = column(
        &connection,
        "SELECT state || '|' || file_name || '|' || coalesce(temporary_name, '') FROM archive ORDER BY run_id",
    );
    let exists = |name: &str| !name.is_empty() && home.join("backups").join(name).exists();
    let word = |is: bool, word: &str| if is { format!(" {word}") } else { String::new() };
    let mut words = Vec::new();
    for row in &rows {
        let parts: Vec<&str> = row.split('|').collect();
        words.push(format!(
            "{}{}{}",
            parts[0],
            word(exists(parts[1]), "in place"),
            word(exists(parts[2]), "temporary")
        ));
    }
    let linked = ["tar.gz", "tar.zst"].iter().any(|end| home.join(format!("backups/docs.{end}")).is_symlink());
    let chunks = !column(&connection, "SELECT id FROM chunk").is_empty();
    (!rows.is_empty()).then(|| words.join(", ") + &word(linked, "linked") + &word(chunks, "with chunks"))
}
