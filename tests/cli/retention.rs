//! `prune`, `pin`, `forget`, `delete --with-archives`: which archives are removed.

use std::fs;

use crate::environment::TestHome;
use crate::trust::{archives, home_with_history};

#[test]
fn prune_prints_the_rule_and_refuses_to_remove_over_half() {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs;09:00;docs", "--keep-all"]).ok();
    for _ in 0..5 {
        let _ = home.run(&["run", "docs", "-q"]).ok();
    }
    let _ = home.run(&["pin", "@2"]).ok();
    let _ = home.run(&["pin", "@77"]).fails(10, &["@77"]);
    let _ = home.run(&["edit", "docs", "--keep-last", "1"]).ok();
    let said = home.run(&["prune", "--dry-run"]).ok();
    let line = |run: &str| said.stdout.lines().find(|line| line.starts_with(run)).unwrap().to_owned();
    assert!(line("@5").contains("stays\tnewest good, newest whole, last"), "{said:?}");
    assert!(line("@2").contains("stays\tpinned"), "{said:?}");
    assert!(line("@1").contains("goes\tno rule keeps it"), "{said:?}");
    assert_eq!(archives(&home).len(), 5, "a dry run");
    let _ = home.run(&["prune"]).fails(1, &["over half", "--yes"]);
    assert_eq!(archives(&home).len(), 5);
    let _ = home.run(&["prune", "docs", "--yes"]).ok();
    let left: Vec<i64> = archives(&home).iter().map(|archive| archive["run"].as_i64().unwrap()).collect();
    assert_eq!(left, [5, 2]);
    assert_eq!(home.archive_files().len(), 2);
    let _ = home.run(&["forget", "@2"]).fails(1, &["pinned", "--off"]);
    let _ = home.run(&["pin", "@2", "--off"]).ok();
    let _ = home.run(&["forget", "@2"]).ok();
    let _ = home.run(&["forget", "@5"]).fails(1, &["newest good", "--force"]);
    let _ = home.run(&["forget", "17"]).fails(2, &["@17"]);
    let _ = home.run(&["edit", "docs", "--keep-last", "0"]).fails(2, &["keeps nothing"]);
}

#[test]
fn prune_finishes_an_interrupted_prune() {
    let home = home_with_history();
    let connection = rusqlite::Connection::open(home.path("backup.db")).unwrap();
    connection.execute("UPDATE archive SET state = 'deleting' WHERE run_id = 1", []).unwrap();
    let _ = home.run(&["prune", "--dry-run"]).ok();
    assert_eq!(home.archive_files().len(), 4);
    let stuck = home.path("backups/docs").join(&home.archive_files()[0]);
    let away = home.path("away");
    fs::rename(&stuck, &away).unwrap();
    fs::create_dir(&stuck).unwrap();
    let _ = home.run(&["edit", "photos", "--keep-last", "1"]).ok();
    let _ = home.run(&["prune", "--yes"]).fails(1, &["remove", &stuck.display().to_string()]);
    assert_eq!(home.archive_files().len(), 2, "the others are pruned all the same");
    fs::remove_dir(&stuck).unwrap();
    fs::rename(&away, &stuck).unwrap();
    let said = home.run(&["prune"]).ok();
    assert!(said.stderr.contains("removed 1 archive"), "{said:?}");
    assert_eq!(home.archive_files().len(), 2);
    let _ = home.run(&["rescan"]).ok();
    assert_eq!(archives(&home).len(), 2);
}

#[test]
fn the_first_prune_of_a_name_that_came_back_needs_a_yes() {
    let home = home_with_history();
    let _ = home.run(&["delete", "docs"]).ok();
    let _ = home.run(&["create", "docs;09:00;docs", "--keep-last", "1"]).ok();
    let before = archives(&home).len();
    let of_docs = home.run(&["--json", "backups", "docs"]).ok().json().as_array().unwrap().len();
    assert_eq!(of_docs, 2);
    let words = ["would remove 1 archive", "since its name came back", "--yes"];
    let refused = home.run(&["prune", "docs"]).fails(1, &words);
    assert!(refused.stdout.is_empty());
    let planned = home.run(&["--json", "prune", "docs", "-n"]).ok().json();
    assert_eq!((&planned[0]["over_half"], &planned[0]["needs_yes"]), (&false.into(), &true.into()));
    assert_eq!(archives(&home).len(), before);
    let _ = home.run(&["prune", "docs", "--yes"]).ok();
    assert_eq!(archives(&home).len(), before - 1);
    // The yes counts for later prunes, too.
    let _ = home.run(&["run", "docs"]).ok();
    assert_eq!(archives(&home).len(), before - 1);
}

#[test]
fn deleting_a_schedule_with_its_archives_is_all_or_nothing() {
    let home = home_with_history();
    let _ = home.run(&["pin", "@1"]).ok();
    let _ = home.run(&["delete", "docs", "--with-archives", "--yes"]).fails(1, &["@1 of docs is pinned", "--off"]);
    let _ = home.run(&["pin", "@1", "--off"]).ok();
    std::fs::rename(home.path("backups"), home.path("away")).unwrap();
    let _ = home.run(&["delete", "docs", "--with-archives", "--yes"]).fails(1, &["archive folder"]);
    std::fs::rename(home.path("away"), home.path("backups")).unwrap();
    assert!(home.run(&["list"]).ok().stdout.contains("docs"));
    assert_eq!((archives(&home).len(), home.archive_files().len()), (4, 4));
    let said = home.run(&["delete", "docs", "--with-archives", "--yes"]).ok();
    assert!(said.stderr.contains("deleted docs and 2 archives"), "{said:?}");
    assert_eq!((archives(&home).len(), home.archive_files().len()), (2, 2));
}
