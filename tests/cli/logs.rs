//! What the log files say, and what they leave out.

use std::fs;

use crate::environment::TestHome;

#[test]
fn each_line_of_the_service_log_about_a_run_names_schedule_run_outcome_file_and_size() {
    let home = TestHome::with_sources(&["docs"]);
    fs::set_permissions(home.path("docs/file.txt"), std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
    fs::write(home.path("docs/other.txt"), "other").unwrap();
    let _ = home.run_unprivileged(&["create", "docs", "--name", "docs", "--cron", "* * * * * *"]).ok();
    let _ = home.run_unprivileged(&["start"]).ok();
    home.wait_until("run", 20, || home.log("backup_service.log").contains("run @1 incomplete"));
    let _ = home.run_unprivileged(&["stop"]).ok();
    let log = home.log("backup_service.log");
    let about: Vec<&str> = log.lines().filter(|line| line.contains("@1 ") || line.contains("@1:")).collect();
    let text = |line: &str| line.splitn(3, ' ').nth(2).unwrap().to_owned();
    assert!(about.iter().all(|line| text(line).starts_with("docs: run @1")), "{log}");
    assert!(text(about[0]).starts_with("docs: run @1 queued: due at "), "{log}");
    assert_eq!(text(about[1]), "docs: run @1 started, attempt 1", "{log}");
    let end = about.iter().map(|line| text(line)).find(|line| line.contains("incomplete")).unwrap();
    let parts = end.strip_prefix("docs: run @1 incomplete: 1 path, docs-").unwrap_or_else(|| panic!("{end}"));
    assert!(parts.contains("Z-1.tar ") && parts.ends_with("KiB"), "{end}");
    let debug = ["Some(", "None", "Queued(", "Coalesced(", "Error {", "Ok("];
    assert!(debug.iter().all(|form| !log.contains(form)), "{log}");
}

#[test]
fn what_monitors_call_writes_no_log_and_what_people_call_does() {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs;09:00;docs"]).ok();
    let before = home.log("backup_manager.log");
    for args in [
        &["status"][..],
        &["--json", "status"],
        &["status", "--service"],
        &["--json", "list"],
        &["--json", "show", "docs"],
        &["--json", "history"],
        &["--json", "backups"],
        &["--json", "next", "docs"],
    ] {
        let said = home.run(args);
        assert!(said.code <= 1, "{said:?}");
    }
    assert_eq!(home.log("backup_manager.log"), before);
    let _ = home.run(&["list"]).ok();
    assert!(home.log("backup_manager.log").ends_with("--> Instruction list\n"));
}
