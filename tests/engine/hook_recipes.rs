//! The recipes of docs/hooks.md with the real programs, where they are installed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use backup_manager::schedule::{Cadence, CommandKind, Hooks, Schedule, ScheduleName};
use backup_manager::store::{Role, RunState};

use crate::hooks::member;
use crate::runs::run_now;
use crate::world::World;

const NOBODY: u32 = 65_534;

/// Runs a program that has to succeed; returns what it prints.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_recipe_for_sqlite_makes_a_consistent_copy_and_removes_it() {
    if !is_installed("sqlite3") {
        eprintln!("skipped: there is no sqlite3");
        return;
    }
    let world = World::new();
    let row = world.schedule("notes", "01:00");
    let database = world.path("notes/notes.db");
    let rows = "CREATE TABLE t (x); INSERT INTO t SELECT value FROM generate_series(1, 5000);";
    output(Command::new("sqlite3").arg(&database).arg(rows));
    let before = "sqlite3 notes/notes.db \".backup notes/copy.db\"".to_owned();
    let after = "rm -f notes/copy.db".to_owned();
    let commands = BTreeMap::from([(CommandKind::Before, before), (CommandKind::After, after)]);
    world.set_hooks(&row, Hooks { commands, ..Hooks::default() });
    let ended = run_now(&world, &world.process(Role::Command), &row);
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.error);
    let archive = world.store.archive(ended.run).unwrap().unwrap();
    let copy = world.path("restored.db");
    fs::write(&copy, member(&world.home.backups().join(&archive.file_name), "notes/copy.db")).unwrap();
    assert_eq!(output(Command::new("sqlite3").arg(&copy).arg("SELECT count(*), sum(x) FROM t")), "5000|12502500");
    assert!(!world.path("notes/copy.db").exists());
}

/// A PostgreSQL server on a socket in a folder, with a database `app`; stopped when dropped.
struct Postgres {
    programs: PathBuf,
    folder: tempfile::TempDir,
}

impl Postgres {
    /// Starts a server; `None` if none is installed.
    fn start() -> Option<Postgres> {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|entry| entry.path().join("bin"));
        let programs = versions.filter(|programs| programs.join("initdb").exists()).max()?;
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let server = Postgres { programs, folder };
        output(server.program("initdb").args(["-U", "app", "--auth=trust", "-D"]).arg(server.data()));
        let options = format!("-k {} -c listen_addresses= -c fsync=off", server.folder.path().display());
        let log = server.folder.path().join("log");
        let start = ["-w", "-o", &options, "start"];
        output(server.program("pg_ctl").arg("-D").arg(server.data()).arg("-l").arg(log).args(start));
        Some(server)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns a program of the server, which refuses to be root.
    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = Command::new("setpriv");
        if rustix::process::geteuid().is_root() {
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        }
        command.arg(program).current_dir(self.folder.path());
        command
    }

    fn sql(&self, database: &str, sql: &str) -> String {
        let options = ["-U", "app", "-d", database, "-Atqc", sql];
        output(Command::new("psql").arg("-h").arg(self.folder.path()).args(options))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.program("pg_ctl").arg("-D").arg(self.data()).args(["-m", "immediate", "stop"]).output();
    }
}

#[test]
fn the_recipe_for_postgresql_is_restored_and_equal() {
    let Some(server) = Postgres::start() else {
        eprintln!("skipped: there is no PostgreSQL");
        return;
    };
    server.sql("postgres", "CREATE DATABASE app");
    server.sql("app", "CREATE TABLE t AS SELECT id, md5(id::text) AS word FROM generate_series(1, 20000) AS id");
    let world = World::new();
    let name = ScheduleName::parse("db").unwrap();
    let row = world.add(Schedule::new(name, b"app.dump".to_vec(), Cadence::parse_daily("03:00").unwrap()));
    let socket = server.folder.path().display();
    world.set_source_command(&row, &format!("pg_dump -Fc -h {socket} -U app app"), false);
    let ended = run_now(&world, &world.process(Role::Command), &row);
    assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.error);
    let archive = world.store.archive(ended.run).unwrap().unwrap();
    let dump = world.path("restored.dump");
    fs::write(&dump, member(&world.home.backups().join(&archive.file_name), "app.dump")).unwrap();
    server.sql("postgres", "CREATE DATABASE restored");
    restore(&server, &dump);
    let digest = "SELECT count(*) || ' ' || md5(string_agg(id || word, ',' ORDER BY id)) FROM t";
    let restored = server.sql("restored", digest);
    assert!(restored.starts_with("20000 "), "{restored}");
    assert_eq!(restored, server.sql("app", digest));

    // A dump that fails keeps nothing, and the last good archive stays.
    world.set_source_command(&row, &format!("pg_dump -Fc -h {socket} -U app no_such_database"), false);
    let failed = run_now(&world, &world.process(Role::Command), &row);
    assert_eq!(failed.state, RunState::Failed);
    assert!(failed.error.unwrap().to_string().contains("\"no_such_database\" does not exist"));
    assert!(world.store.archive(ended.run).unwrap().unwrap().good);
}

fn restore(server: &Postgres, dump: &Path) {
    let options = ["-U", "app", "-d", "restored"];
    output(Command::new("pg_restore").arg("-h").arg(server.folder.path()).args(options).arg(dump));
}
