//! A home of its own for each test, and a program that sees nothing of the machine's settings.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a command printed and how it ended.
#[derive(Debug)]
#[must_use]
pub struct Said {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Said {
    #[track_caller]
    pub fn ok(self) -> Said {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Checks the exit code, that stderr names each of `words`, and that it is an error in our form.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Said {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "\"{word}\" is not in {self:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub struct TestHome {
    pub dir: tempfile::TempDir,
}

impl TestHome {
    pub fn new() -> TestHome {
        TestHome { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A home with these sources, each with one small file.
    pub fn with_sources(names: &[&str]) -> TestHome {
        let home = TestHome::new();
        for name in names {
            fs::create_dir_all(home.path(name)).unwrap();
            fs::write(home.path(name).join("file.txt"), format!("content of {name}\n")).unwrap();
        }
        home
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// The program with nothing in its environment but what a test gives it.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_through(&[env!("CARGO_BIN_EXE_backup-manager")], args)
    }

    /// The same with the default action of SIGHUP: children of a test runner under `nohup` would ignore it.
    pub fn command_with_default_hangup(&self, args: &[&str]) -> Command {
        self.command_through(&["env", "--default-signal=HUP", env!("CARGO_BIN_EXE_backup-manager")], args)
    }

    /// The same as `words` followed by `args`.
    pub fn command_through(&self, words: &[&str], args: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(args);
        command.env_clear().env("TZ", "UTC").current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        said(&mut self.command(args))
    }

    pub fn run_with(&self, variable: (&str, &str), args: &[&str]) -> Said {
        said(self.command(args).env(variable.0, variable.1))
    }

    /// Runs the program without the privileges of root: as `nobody`, who becomes the owner of the home, if the test
    /// runs as root.
    pub fn run_unprivileged(&self, args: &[&str]) -> Said {
        if !rustix::process::geteuid().is_root() {
            return self.run(args);
        }
        const NOBODY: u32 = 65_534;
        let copy = self.path(".program");
        if !copy.exists() {
            // The program itself may lie where nobody else can go.
            fs::copy(env!("CARGO_BIN_EXE_backup-manager"), &copy).unwrap();
            let owned = Command::new("chown").args(["-R", "65534:65534"]).arg(self.dir.path()).status();
            assert!(owned.unwrap().success());
        }
        said(self.command_through(&[copy.to_str().unwrap()], args).uid(NOBODY).gid(NOBODY))
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path("logs").join(name)).unwrap_or_default()
    }

    /// Files below `backups` that are no links, the identity and copies of the database left out.
    pub fn archive_files(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![self.path("backups")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() && entry.file_name() == ".database" => {}
                    kind if kind.is_dir() => folders.push(entry.path()),
                    kind if kind.is_file() => names.push(entry.file_name().into_string().unwrap()),
                    _ => {}
                }
            }
        }
        names.retain(|name| name != ".backup-manager");
        names.sort();
        names
    }

    /// Waits until `done` returns true; for what another process does in its own time.
    #[track_caller]
    pub fn wait_until(&self, what: &str, seconds: u64, mut done: impl FnMut() -> bool) {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < Duration::from_secs(seconds), "no {what} within {seconds} s");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks SQLite itself.
    pub fn query(&self, sql: &str) -> Vec<Vec<rusqlite::types::Value>> {
        let connection = rusqlite::Connection::open(self.path("backup.db")).unwrap();
        let mut statement = connection.prepare(sql).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|at| row.get(at)).collect()).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// Gives the first schedule a running run of another worker, which is alive until the returned lock is dropped.
    pub fn start_run_of_other_worker(&self) -> fs::File {
        let worker = "6f7a1f3e-0c64-4d0b-9d5e-0a5c5d1b7f11";
        let file = fs::File::create(self.path("backup.db.workers").join(worker)).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let insert = format!(
            "INSERT INTO run (schedule_id, trigger, scheduled_for_ms, state, attempt, tries, worker, not_before_ms, \
             queued_at_ms, started_at_ms) VALUES (1, 'schedule', 1000, 'running', 1, 1, '{worker}', 1000, 1000, 1000)"
        );
        let _ = rusqlite::Connection::open(self.path("backup.db")).unwrap().execute(&insert, []).unwrap();
        file
    }

    pub fn number(&self, sql: &str) -> i64 {
        match self.query(sql)[0][0] {
            rusqlite::types::Value::Integer(number) => number,
            ref other => panic!("{other:?}"),
        }
    }
}

impl Drop for TestHome {
    fn drop(&mut self) {
        // A test that failed half-way must not leave its service running.
        if self.path("backup.db").exists() {
            let _ = self.command(&["stop", "--now", "-q"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

pub fn said(command: &mut Command) -> Said {
    let output = command.output().expect("the program starts");
    assert!(!output.stderr.contains(&0x1b), "a terminal would obey: {}", String::from_utf8_lossy(&output.stderr));
    Said {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code().unwrap_or(-1),
    }
}

/// A process that is killed when the test ends.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
pub fn tar_lists(path: &Path) -> Vec<String> {
    let listed = Command::new("tar").arg("-tf").arg(path).output().expect("tar");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect()
}
