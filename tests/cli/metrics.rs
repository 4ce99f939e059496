//! `status --prometheus`: the state for Prometheus, and the alert rules over it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::environment::TestHome;

/// Returns whether promtool is installed; says so if it is not.
fn has_promtool() -> bool {
    let found = Command::new("promtool").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: promtool is not installed (Debian: prometheus)");
    }
    found
}

/// Runs promtool with `input`; returns what it printed, and fails if it finds anything wrong.
#[track_caller]
fn promtool(args: &[&str], input: &str) -> String {
    let mut command = Command::new("promtool");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib");
    command.args(args).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8(printed).unwrap();
    assert!(output.status.success(), "{printed}");
    printed
}

/// A home in which one schedule with a difficult name ran, and another one did not.
fn home_with_two_schedules() -> TestHome {
    let home = TestHome::with_sources(&["src", "other"]);
    let _ = home.run(&["create", "src", "--name", "a \"b\" {c}=d,é", "--at", "02:00", "--now"]).ok();
    let _ = home.run(&["create", "other;03:00;idle"]).ok();
    home
}

#[test]
fn the_metrics_of_each_schedule_name_it_and_have_no_timestamps() {
    let home = home_with_two_schedules();
    let metrics = home.run(&["status", "--prometheus"]).ok().stdout;
    for line in [
        r#"backup_manager_schedule_overdue{schedule="a \"b\" {c}=d,é"} 0"#,
        r#"backup_manager_last_run_state{schedule="a \"b\" {c}=d,é",state="succeeded"} 1"#,
        r#"backup_manager_last_run_state{schedule="a \"b\" {c}=d,é",state="failed"} 0"#,
        r#"backup_manager_schedule_enabled{schedule="idle"} 1"#,
        "backup_manager_healthy 0",
        "backup_manager_services 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    assert!(!metrics.contains(r#"backup_manager_last_success_timestamp_seconds{schedule="idle"}"#), "{metrics}");
    for sample in metrics.lines().filter(|line| !line.starts_with('#')) {
        let after_labels = sample.rsplit_once('}').map_or(sample.split_once(' ').unwrap().1, |(_, rest)| rest.trim());
        after_labels.parse::<f64>().unwrap_or_else(|error| panic!("{sample}: {error}"));
    }
}

#[test]
fn a_file_of_metrics_is_replaced_as_a_whole_and_readable_for_all() {
    let home = home_with_two_schedules();
    let (folder, file) = (home.path("collector"), home.path("collector/backup.prom"));
    fs::create_dir(&folder).unwrap();
    let _ = home.run(&["status", "--prometheus", "--out", file.to_str().unwrap()]).ok();
    let (first, inode) = (fs::read_to_string(&file).unwrap(), fs::metadata(&file).unwrap().ino());
    let mut open = fs::File::open(&file).unwrap();
    let printed = home.run(&["status", "--prometheus", "--out", file.to_str().unwrap()]).ok();
    assert_eq!(printed.stdout, "");
    let mut old = String::new();
    std::io::Read::read_to_string(&mut open, &mut old).unwrap();
    assert_eq!(old, first, "a reader of the old file sees all of it");
    let metadata = fs::metadata(&file).unwrap();
    assert_ne!(metadata.ino(), inode, "a new file was renamed over it");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");
    let _ = home.run(&["status", "--prometheus", "--out", folder.to_str().unwrap()]).fails(2, &["is a folder"]);
    let missing = home.path("missing/backup.prom");
    let _ = home.run(&["status", "--prometheus", "--out", missing.to_str().unwrap()]).fails(1, &["missing"]);
    let _ = home.run(&["status", "--out", "x"]).fails(2, &["--prometheus"]);
    let _ = home.run(&["status", "--prometheus", "--json"]).fails(2, &["--json"]);
}

#[test]
fn promtool_accepts_the_metrics_and_each_alert_fires_and_ends() {
    if !has_promtool() {
        return;
    }
    let home = home_with_two_schedules();
    let _ = home.run(&["drill", "0"]).ok();
    let metrics = home.run(&["status", "--prometheus"]).ok().stdout;
    assert_eq!(promtool(&["check", "metrics"], &metrics), "");
    assert!(promtool(&["check", "rules", "alerts.yml"], "").contains("6 rules found"));
    assert!(promtool(&["test", "rules", "alerts_test.yml"], "").contains("SUCCESS"));
}
