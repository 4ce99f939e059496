//! Archive files that runs share: how they are written, linked, copied and counted.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environment::{TestHome, said};

/// A home with a source of several chunks, and an archive for each of `runs`; before those that are true the source
/// changes.
fn home_with_runs(runs: &[bool]) -> TestHome {
    let home = TestHome::with_sources(&["docs"]);
    for file in 0..20 {
        fs::write(home.path(&format!("docs/{file:02}")), vec![file; 30_000]).unwrap();
    }
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    for (number, is_changed) in runs.iter().enumerate() {
        if *is_changed {
            fs::write(home.path("docs/10"), format!("version {number}")).unwrap();
        }
        let _ = home.run(&["run", "docs"]).ok();
    }
    home
}

/// Returns the paths of the archive files, oldest first.
fn files(home: &TestHome) -> Vec<PathBuf> {
    let folder = home.path("backups/docs");
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| name.to_string_lossy().starts_with("docs-"));
    names.sort();
    names.into_iter().map(|name| folder.join(name)).collect()
}

fn inodes(home: &TestHome) -> Vec<u64> {
    files(home).iter().map(|path| fs::metadata(path).unwrap().ino()).collect()
}

/// What `strace` reported of the calls that change the content of files below the archive folder.
#[derive(Default)]
pub struct Writes {
    /// Paths whose content was synced or became that of another archive.
    synced: BTreeSet<String>,
    violations: Vec<String>,
    /// Calls on archives that were seen.
    seen: usize,
}

impl Writes {
    /// Runs the program and adds its calls.
    pub fn trace(&mut self, home: &TestHome, step: &[&str]) {
        const CALLS: &str = "trace=open,openat,openat2,write,writev,pwrite64,pwritev,pwritev2,truncate,ftruncate,\
                             fallocate,copy_file_range,sendfile,splice,fsync,fdatasync,rename,renameat,renameat2";
        let trace = home.path(".trace");
        let strace = ["strace", "-f", "-y", "-s", "0", "-o", trace.to_str().unwrap(), "-e", CALLS];
        let through = [&strace[..], &[env!("CARGO_BIN_EXE_backup-manager")]].concat();
        let _ = said(&mut home.command_through(&through, step));
        let traced = fs::read_to_string(&trace).unwrap();
        assert!(traced.contains("backup.db"), "{step:?} was not traced: {traced}");
        traced.lines().for_each(|line| self.add(line));
    }

    /// Fails if content was written that had been synced.
    pub fn check(&self) {
        assert!(self.seen > 50, "the calls on archives were not recognised: {}", self.seen);
        assert!(self.violations.is_empty(), "written after it was synced:\n{}", self.violations.join("\n"));
    }

    fn add(&mut self, line: &str) {
        let Some((call, rest)) = line.split_once('(') else { return };
        let call = call.rsplit(' ').next().unwrap_or_default();
        let path = match call {
            "openat" | "open" | "openat2" | "truncate" | "rename" | "renameat" | "renameat2" => quoted(rest).last(),
            _ => rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| path),
        };
        let Some(path) = path.filter(|path| path.contains("backups/docs/")) else { return };
        let path = path.rsplit('/').next().unwrap_or_default().to_owned();
        let is_final = path.starts_with("docs-");
        self.seen += 1;
        match call {
            "fsync" | "fdatasync" => drop(self.synced.insert(path)),
            // A name that takes the place of another one brings synced content with it.
            "rename" | "renameat" | "renameat2" => drop(self.synced.insert(path)),
            "open" | "openat" | "openat2" => {
                let writes = ["O_WRONLY", "O_RDWR", "O_TRUNC"].iter().any(|flag| rest.contains(flag));
                let is_new = rest.contains("O_EXCL");
                if writes && !is_new && (is_final || self.synced.contains(&path)) {
                    self.violations.push(line.to_owned());
                }
            }
            _ if is_final || self.synced.contains(&path) => self.violations.push(line.to_owned()),
            _ => {}
        }
    }
}

fn quoted(text: &str) -> impl DoubleEndedIterator<Item = &str> {
    let parts: Vec<&str> = text.split('"').collect();
    parts.into_iter().skip(1).step_by(2)
}

#[test]
fn a_synced_archive_file_is_never_written_to() {
    let home = home_with_runs(&[false, true, false]);
    if Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_err() {
        eprintln!("skipped: strace is not installed");
        return;
    }
    let mut writes = Writes::default();
    let steps: [&[&str]; 11] = [
        &["run", "docs"],
        &["edit", "docs", "--keep-last", "2"],
        &["run", "docs"],
        &["run", "docs", "--reread"],
        &["verify"],
        &["pin", "@2"],
        &["run", "docs"],
        &["prune", "--yes"],
        &["drill", "docs"],
        &["forget", "@5"],
        &["rescan"],
    ];
    for (number, step) in steps.iter().enumerate() {
        if number % 2 == 0 {
            fs::write(home.path("docs/10"), format!("step {number}")).unwrap();
        }
        writes.trace(&home, step);
    }
    writes.check();
}

#[test]
fn a_base_with_all_the_links_that_a_file_may_have_is_copied() {
    let home = home_with_runs(&[false]);
    let (base, names) = (files(&home).remove(0), home.path(".names"));
    fs::create_dir(&names).unwrap();
    // ext4 allows 65,000.
    let is_full = (0..70_000).any(|number| fs::hard_link(&base, names.join(number.to_string())).is_err());
    if !is_full {
        eprintln!("skipped: files may have more than 70,000 links here");
        return;
    }
    let _ = home.run(&["run", "docs"]).ok();
    let of_files = inodes(&home);
    assert_ne!(of_files[0], of_files[1]);
    assert_eq!(fs::read(files(&home).remove(1)).unwrap().len(), fs::read(&base).unwrap().len());
    assert!(home.run(&["history", "@2"]).ok().stdout.contains("taken from @1"));
    // The next one is a link of that file again.
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(inodes(&home)[1..], [of_files[1]; 2]);
}

#[test]
fn the_file_of_another_owner_is_copied() {
    let home = TestHome::with_sources(&["docs"]);
    let protects = fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap_or_default();
    if !rustix::process::geteuid().is_root() || protects.trim() != "1" {
        eprintln!("skipped: this needs root, and links of files of other users must be forbidden");
        return;
    }
    let readable_by_group = |args: &[&str]| {
        let _ = home.run_unprivileged(&["--version"]).ok();
        let mut command = home.command_through(&[home.path(".program").to_str().unwrap()], args);
        said(command.env("BACKUP_GROUP_READ", "1").uid(65_534).gid(65_534)).ok()
    };
    let _ = readable_by_group(&["create", "docs;09:00;docs"]);
    let _ = readable_by_group(&["run", "docs"]);
    let base = files(&home).remove(0);
    assert_eq!(fs::metadata(&base).unwrap().mode() & 0o777, 0o440);
    chown(&base, Some(0), None).unwrap();
    let _ = readable_by_group(&["run", "docs"]);
    let of_files = inodes(&home);
    assert_ne!(of_files[0], of_files[1]);
    assert!(readable_by_group(&["history", "@2"]).stdout.contains("taken from @1"));
}

#[test]
fn five_days_without_a_change_leave_the_older_files_that_keep_last_keeps() {
    let home = home_with_runs(&[false, true, true, false, false, false, false, false]);
    let _ = home.run(&["edit", "docs", "--keep-last", "3"]).ok();
    let _ = home.run(&["prune", "--yes"]).ok();
    let of_files: BTreeSet<u64> = inodes(&home).into_iter().collect();
    assert_eq!(of_files.len(), 3, "each with other content");
    for archive in home.run(&["--json", "backups", "docs"]).ok().json().as_array().unwrap() {
        assert_eq!(archive["health"], "good", "{archive}");
    }
}

#[test]
fn damage_of_a_shared_file_is_reported_of_each_of_its_archives() {
    let home = home_with_runs(&[false, false, true, false, false]);
    let path = files(&home).remove(1);
    let before = fs::metadata(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"?", 200_000).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    let found = home.run(&["verify", "docs"]).fails(4, &[]);
    let printed = format!("{}{}", found.stdout, found.stderr);
    for path in &files(&home)[..2] {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(printed.contains(name), "{name}: {printed}");
    }
    let archives = home.run(&["--json", "backups", "docs"]).ok().json();
    let health: Vec<_> =
        archives.as_array().unwrap().iter().map(|archive| archive["health"].as_str().unwrap()).collect();
    assert_eq!(health, ["good", "good", "good", "damaged", "damaged"]);
}

/// Replaces the archive folder by a copy of it made by `cp` with these options.
fn copy_backups(home: &TestHome, options: &[&str]) {
    let copied = Command::new("cp").args(options).args(["backups", "copied"]).current_dir(home.dir.path()).status();
    assert!(copied.unwrap().success());
    fs::remove_dir_all(home.path("backups")).unwrap();
    fs::rename(home.path("copied"), home.path("backups")).unwrap();
}

#[test]
fn a_copy_of_the_archive_folder_is_verified_file_by_file() {
    for (options, count) in [(&["-a"][..], 2), (&["-rp", "--no-preserve=links"], 4), (&["-rP"], 4)] {
        for is_database_lost in [false, true] {
            let home = home_with_runs(&[false, false, true, false]);
            copy_backups(&home, options);
            if is_database_lost {
                fs::remove_file(home.path("backup.db")).unwrap();
            }
            let _ = home.run(&["rescan"]).ok();
            let of_files: BTreeSet<u64> = inodes(&home).into_iter().collect();
            assert_eq!(of_files.len(), count, "{options:?}");
            let rows = "SELECT count(*) FROM stored_file";
            assert_eq!(home.number(rows), count as i64, "{options:?}, database lost: {is_database_lost}");
            let verified = home.run(&["--json", "verify"]).ok();
            let good = "SELECT count(*) FROM stored_file WHERE health = 'good' AND verified_at_ms IS NOT NULL";
            assert_eq!(home.number(good), count as i64, "{options:?}: {verified:?}");
            // Damage of one copy is that of one archive only.
            let path = files(&home).remove(0);
            damage(&path);
            let damaged = "SELECT count(*) FROM archive JOIN archive_file_health USING (archive_file_id) \
                           WHERE health = 'damaged'";
            let _ = home.run(&["verify"]).fails(4, &[]);
            assert_eq!(home.number(damaged), if count == 2 { 2 } else { 1 }, "{options:?}");
        }
    }
}

fn damage(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(b"?", 200_000).unwrap();
}
