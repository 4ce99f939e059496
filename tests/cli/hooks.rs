//! Commands around runs: as options, in exports, held until they are approved, and what `history` and `status` show.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use backup_manager::schedule::Compression;
use rusqlite::Connection;
use serde_json::json;

use crate::environment::{Said, TestHome, said};
use crate::support::archive;

const NOBODY: u32 = 65_534;

/// A command that leaves the file `executed` in the home.
const MARK: &str = "touch executed";

fn home_with(options: &[&str]) -> TestHome {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&[&["create", "docs;09:00;docs"], options].concat()).ok();
    home
}

fn hooks_of(home: &TestHome, name: &str) -> serde_json::Value {
    home.run(&["--json", "show", name]).ok().json()["hooks"].clone()
}

fn execute(home: &TestHome, sql: &str) {
    Connection::open(home.path("backup.db")).unwrap().execute_batch(sql).unwrap();
}

/// Checks that a run fails and says how to approve the commands, and that nothing was executed.
#[track_caller]
fn assert_held(home: &TestHome) {
    let next = "next: backup-manager accept docs --commands";
    let failed = home.run(&["run", "docs"]).fails(1, &["commands of docs are held", ": before", next]);
    // A command may contain a password, and what failed stays in the history and in logs.
    let history = home.run(&["--json", "history", "docs"]).stdout;
    assert!(!failed.stderr.contains(MARK) && !history.contains(MARK), "{failed:?} {history}");
    assert!(!home.path("executed").exists() && !home.path("docs/executed").exists());
    assert!(home.archive_files().is_empty(), "an archive was made");
    let status = home.run(&["status"]);
    assert_eq!(status.code, 1, "{status:?}");
    assert!(status.stdout.contains("accept docs --commands`: before") && !status.stdout.contains(MARK), "{status:?}");
    let shown = home.run(&["show", "docs"]).ok().stdout;
    assert!(shown.contains("touch executed (held)") && shown.contains("accept docs --commands"), "{shown}");
    assert_eq!(hooks_of(home, "docs")["held"], json!(["before"]));
}

#[test]
fn options_are_shown_changed_and_removed() {
    let home = home_with(&["--before", "a\nb", "--after", "c", "--hook-time-limit", "90m", "--max-downtime", "20m"]);
    let options = json!({
        "time_limit": "5400s", "keep_capabilities": false, "allow_empty": false, "source_container": null,
        "containers": false, "max_downtime": "1200s", "stop_label": null,
    });
    let expected = json!({ "commands": { "before": "a\nb", "after": "c" }, "options": options, "held": [] });
    assert_eq!(hooks_of(&home, "docs"), expected);
    let shown = home.run(&["show", "docs"]).ok().stdout;
    assert!(shown.contains("before        a\\nb\n") && shown.contains("command limit 5400s\n"), "{shown}");
    assert!(home.run(&["edit", "docs", "--at", "10:00"]).ok().stderr.contains("changed docs"));
    assert_eq!(hooks_of(&home, "docs"), expected, "another option was edited");
    assert!(home.run(&["edit", "docs", "--after", "c"]).ok().stderr.contains("nothing to change"));
    let _ = home
        .run(&["edit", "docs", "--before=", "--on-failure", "d", "--containers", "--stop-label", "x", "--hook-caps"])
        .ok();
    let found = hooks_of(&home, "docs");
    assert_eq!((&found["commands"], &found["held"]), (&json!({ "after": "c", "on-failure": "d" }), &json!([])));
    let shown = home.run(&["show", "docs"]).ok().stdout;
    for words in ["if labelled x, for at most 1200s", "capabilities  kept by commands"] {
        assert!(shown.contains(words), "{shown}");
    }
    let removed = ["--after=", "--on-failure=", "--hook-time-limit=", "--max-downtime=", "--stop-label="];
    let _ = home.run(&[&["edit", "docs", "--containers=false", "--hook-caps=false"], &removed[..]].concat()).ok();
    assert_eq!(home.number("SELECT count(*) FROM schedule_hooks"), 0, "the options are the default");
    assert_eq!(hooks_of(&home, "docs")["commands"], json!({}));
    assert_eq!(home.run(&["status"]).stdout.matches("held").count(), 0);
}

#[test]
fn a_source_is_a_path_or_what_a_command_prints() {
    let home = TestHome::with_sources(&["docs"]);
    let create = ["create", "--name", "db", "--at", "03:00"];
    let source = ["--source-command", "pg_dump app", "--source-name", "app.dump"];
    let created = home.run(&[&create[..], &source, &["--source-container", "postgres"]].concat()).ok();
    assert!(
        created.stdout.contains("source: app.dump: what `pg_dump app` prints in container postgres"),
        "{created:?}"
    );
    assert!(!created.stderr.contains("app.dump"), "it is no path that does not exist: {created:?}");
    let shown = home.run(&["show", "db"]).ok().stdout;
    assert!(shown.contains("source        app.dump: what `pg_dump app` prints in container postgres\n"), "{shown}");
    for (words, wrong) in [
        (&["edit", "db", "--path", "docs"][..], "either a path or what --source-command prints"),
        (&["edit", "db", "--source-command="], "has no source"),
        (&["edit", "db", "--source-name", "a/b"], "is not a name for the file"),
        (&["create", "docs;09:00;docs", "--source-command", "x", "--source-name", "y"], "either a path or what"),
        (&["create", "--name", "x", "--at", "03:00", "--source-command", "x"], "--source-name"),
        (&["create", "--name", "x", "--source-command", "x", "--source-name", "x"], "no time is given"),
        (&["create", "--at", "03:00", "--source-command", "x", "--source-name", "x"], "no name is given"),
        (&["create", "--source-command", "x", "--source-name", "x"], "no name is given"),
        (&["create", "docs;09:00;docs", "--source-name", "y"], "--source-name is the name"),
        (&["create", "docs;09:00;docs", "--allow-empty"], "--allow-empty"),
    ] {
        let _ = home.run(words).fails(2, &[wrong]);
    }
    let _ = home.run(&["edit", "db", "--source-name", "b.dump", "--allow-empty"]).ok();
    assert!(
        home.run(&["show", "db"]).ok().stdout.contains("b.dump: what `pg_dump app` prints in container postgres, wh")
    );
    let _ = home.run(&["edit", "db", "--source-command=", "--path", "docs"]).ok();
    assert_eq!(hooks_of(&home, "db")["options"]["source_container"], json!(null));
    let _ = home.run(&["run", "db", "-q"]).ok();
    // A text file knows paths only.
    let _ = home.run(&[&["edit", "db"], &source[..]].concat()).ok();
    fs::write(home.path("in.txt"), "docs;10:00;db\n").unwrap();
    let _ = home.run(&["import", "in.txt"]).fails(2, &["db archives what a command prints", "next:"]);
    assert!(home.run(&["show", "db"]).ok().stdout.contains("app.dump: what"));
}

#[test]
fn unusable_options_are_refused_and_change_nothing() {
    let home = home_with(&["--before", "a"]);
    let long = "x".repeat(70_000);
    for (words, wrong) in [
        (["--before", "  "], "--before: the command is empty"),
        (["--after", &long], "--after: the command has 70000 bytes"),
        (["--hook-time-limit", "0s"], "--hook-time-limit"),
        (["--hook-time-limit", "soon"], "is not a duration"),
        (["--max-downtime", "1y"], "is not a duration"),
        (["--stop-label", "a\nb"], "--stop-label"),
        (["--source-container", "db"], "--source-container"),
    ] {
        let _ = home.run(&[&["edit", "docs"], &words[..]].concat()).fails(2, &[wrong]);
        let _ = home.run(&[&["create", "docs;09:00;new"], &words[..]].concat()).fails(2, &[wrong]);
    }
    assert_eq!(hooks_of(&home, "docs")["commands"], json!({ "before": "a" }));
    assert_eq!(home.run(&["--json", "list"]).ok().json().as_array().unwrap().len(), 1);
}

#[test]
fn commands_need_a_shell() {
    let home = TestHome::with_sources(&["docs"]);
    let program = env!("CARGO_BIN_EXE_backup-manager");
    // In a mount namespace of its own a device is in the place of the shell.
    let hide = "mount --bind /dev/null \"$(readlink -f /bin/sh)\" && exec \"$@\"";
    let without_shell = |args: &[&str]| {
        said(&mut home.command_through(&["unshare", "--mount", "bash", "-c", hide, "bash", program], args))
    };
    let with = without_shell(&["create", "docs;09:00;docs", "--before", "true"]);
    if with.stderr.contains("unshare") {
        eprintln!("left out: no mount namespaces without root");
        return;
    }
    let _ = with.fails(2, &["/bin/sh", "does not exist or is not executable", "next:"]);
    assert!(!home.path("backup.db").exists());
    let _ = without_shell(&["create", "docs;09:00;docs"]).ok();
    let in_container = ["--source-command", "x", "--source-name", "x", "--source-container", "db"];
    let _ = without_shell(&[&["create", "--name", "db", "--at", "03:00"], &in_container[..]].concat()).ok();
}

#[test]
fn archives_hold_no_command_and_a_rescan_makes_none() {
    let home = home_with(&["--on-success", "true # a-secret-word", "--containers=false"]);
    let _ = home.run(&["run", "docs", "-q"]).ok();
    let archive = home.path("backups/docs").join(&home.archive_files()[0]);
    let bytes = fs::read(&archive).unwrap();
    let find = |word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
    assert!(find("\"name\":\"docs\"") && !find("a-secret-word") && !find("on-success"));
    let other = TestHome::new();
    fs::create_dir_all(other.path("backups")).unwrap();
    fs::rename(home.path("backups/docs"), other.path("backups/docs")).unwrap();
    let _ = other.run(&["rescan", "-q"]);
    assert_eq!(hooks_of(&other, "docs")["commands"], json!({}));
}

/// Whoever can write archives makes one whose header has a command, with digests that are right.
#[test]
fn a_command_in_a_forged_header_is_never_executed() {
    let hooks = json!({ "commands": { "before": MARK, "after": MARK }, "options": {} });
    let schedule = json!({ "name": "docs", "source": "docs", "cadence": "09:00" });
    for (at, taken_over) in [("header", true), ("schedule", false)] {
        let mut header = json!({ "backup_manager": "0.1.0", "run": 1, "schedule": schedule, "source": "/docs" });
        match at {
            "header" => header["hooks"] = json!({ "docs": hooks }),
            _ => header["schedule"]["hooks"] = hooks.clone(),
        }
        let home = TestHome::with_sources(&["docs"]);
        let folder = home.path("backups/docs");
        fs::create_dir_all(&folder).unwrap();
        let comment = header.to_string();
        let made = archive::make_with(&home.path("docs"), home.dir.path(), Compression::None, |options| {
            options.comment = Box::leak(comment.into_boxed_str());
        });
        fs::rename(made.path, folder.join("docs-20261128T032030Z-1.tar")).unwrap();
        let _ = home.run(&["rescan", "-q"]);
        assert_eq!(home.number("SELECT count(*) FROM archive"), i64::from(taken_over), "in the {at}");
        assert_eq!(home.number("SELECT count(*) FROM schedule_command"), 0);
        if taken_over {
            let _ = home.run(&["resume", "docs"]).ok();
            let _ = home.run(&["run", "docs", "-q"]).ok();
        }
        assert!(!home.path("executed").exists() && !home.path("docs/executed").exists());
    }
}

#[test]
fn commands_of_a_database_that_is_put_back_elsewhere_are_held() {
    let home = home_with(&["--before", MARK]);
    let _ = home.run(&["edit", "docs", "--on-failure", "true"]).ok();
    let other = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["edit", "docs", "--on-failure="]).ok();
    execute(&home, "PRAGMA wal_checkpoint(TRUNCATE)");
    fs::copy(home.path("backup.db"), other.path("backup.db")).unwrap();
    assert_held(&other);
    // Nor does a token of the other home help.
    let _ = other.run(&["create", "docs;10:00;own", "--before", "true"]).ok();
    assert_held(&other);
    let _ = other.run(&["edit", "docs", "--at", "11:00", "--on-failure", "true"]).ok();
    assert_held(&other);
    let accepted = other.run(&["accept", "docs", "--commands"]).ok();
    assert!(accepted.stderr.contains("before: 'touch executed'"), "{accepted:?}");
    assert_eq!(hooks_of(&other, "docs")["held"], json!([]));
    let again = other.run(&["--json", "accept", "docs", "--commands"]).ok();
    assert_eq!(again.json(), json!([{ "name": "docs", "commands": {} }]));
    assert!(!other.run(&["status"]).stdout.contains("its commands are held"));
}

/// A copy of the database lies beside the archives, where others may write.
#[test]
fn a_command_in_a_forged_copy_of_the_database_is_held() {
    for (approval, name) in [("NULL", "null"), ("zeroblob(32)", "of zeros"), ("of_other", "of another schedule")] {
        let home = home_with(&[]);
        let _ = home.run(&["create", "docs;10:00;own", "--before", MARK]).ok();
        let approval = match approval {
            "of_other" => "(SELECT approval FROM schedule_command)",
            given => given,
        };
        execute(&home, &format!("INSERT INTO schedule_command VALUES (1, 'before', '{MARK}', {approval})"));
        eprintln!("approval {name}");
        assert_held(&home);
        assert_eq!(hooks_of(&home, "own")["held"], json!([]), "the commands of this home are not");
    }
}

#[test]
fn an_export_as_json_carries_commands_and_its_import_holds_them() {
    let home = home_with(&["--before", MARK, "--containers"]);
    let _ = home.run(&["create", "docs;10:00;plain"]).ok();
    let _ = home.run(&["export", "all.json", "--format", "json"]).ok();
    let document: serde_json::Value = serde_json::from_slice(&fs::read(home.path("all.json")).unwrap()).unwrap();
    assert_eq!(document["hooks"]["docs"]["commands"], json!({ "before": MARK }));
    assert_eq!(document["hooks"].as_object().unwrap().len(), 1, "{document}");
    let other = TestHome::with_sources(&["docs"]);
    fs::copy(home.path("all.json"), other.path("all.json")).unwrap();
    let import = ["import", "all.json", "--format", "json"];
    let imported = other.run(&import).ok();
    assert!(imported.stderr.contains("docs has commands, which are held"), "{imported:?}");
    assert_held(&other);
    // Importing what is there already changes nothing and approves nothing.
    let again = other.run(&[&["--json"], &import[..]].concat()).ok().json();
    assert_eq!((&again["unchanged"], &again["with_commands"]), (&json!(2), &json!([])));
    assert_held(&other);
    let _ = other.run(&["accept", "docs", "--commands", "-q"]).ok();
    let again = other.run(&[&["--json"], &import[..]].concat()).ok().json();
    assert_eq!(again["unchanged"], json!(2));
    assert_eq!(hooks_of(&other, "docs")["held"], json!([]), "what was approved stays so");
    for (from, to, wrong) in [
        ("\"docs\": {\n", "\"nobody\": {\n", "\"nobody\", which is no schedule"),
        (MARK, "", "--before: the command is empty"),
        ("\"before\"", "\"begin\"", "begin"),
    ] {
        let text = fs::read_to_string(home.path("all.json")).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(other.path("bad.json"), text.replace(from, to)).unwrap();
        let _ = other.run(&["import", "bad.json", "--format", "json"]).fails(2, &[wrong]);
    }
    assert_eq!(hooks_of(&other, "docs")["commands"], json!({ "before": MARK }));
}

#[test]
fn a_text_file_without_the_commands_is_reported() {
    let home = home_with(&["--before", "a", "--containers"]);
    let source = ["--source-command", "x", "--source-name", "x"];
    let _ = home.run(&[&["create", "--name", "db", "--at", "03:00"], &source[..]].concat()).ok();
    let exported = home.run(&["export"]).fails(
        3,
        &[
            "docs is in the text file without: commands, options of commands and containers",
            "db is not in the text file: its source is what a command prints",
        ],
    );
    assert_eq!(exported.stdout, "docs;09:00;docs\n");
}

#[test]
fn commands_are_executed_for_the_owner_of_the_database_alone() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let own = |path: &Path, uid| chown(path, Some(uid), Some(uid)).unwrap();
    for options in [&["--before", MARK][..], &["--containers"]] {
        let home = home_with(options);
        own(home.dir.path(), NOBODY);
        let _ = home.run(&["run", "docs"]).fails(
            1,
            &["belongs to uid 65534, and this process runs as uid 0", "next: sudo -u '#65534' backup-manager run docs"],
        );
        assert!(home.archive_files().is_empty() && !home.path("executed").exists());
        // Without commands and containers it is nobody's business.
        let _ = home.run(&["edit", "docs", "--before=", "--containers=false"]).ok();
        let _ = home.run(&["run", "docs", "-q"]).ok();
    }
}

#[test]
fn a_name_that_is_created_again_does_not_get_its_commands_back() {
    let home = home_with(&["--before", MARK]);
    let _ = home.run(&["delete", "docs"]).ok();
    let again = home.run(&["create", "docs;09:00;docs"]).ok();
    assert!(again.stderr.contains("the commands and container options that it had are removed"), "{again:?}");
    assert_eq!(hooks_of(&home, "docs")["commands"], json!({}));
}

fn skipped_run(home: &TestHome) -> Said {
    let _ = home.run(&["run", "docs", "-q"]).ok();
    execute(
        home,
        "UPDATE run SET state = 'skipped', error = 'not today' WHERE id = 2; \
         INSERT INTO command_output VALUES (2, 1, 1, 'before', NULL, 1000, 3000, 'exited', 75, \
             CAST('one' || char(10) || char(27) || '[2J two' AS BLOB)); \
         INSERT INTO command_output VALUES (2, 2, 1, 'after', 'app', 3000, 4000, 'signal', 9, x'ff');",
    );
    home.run(&["history", "@2"]).ok()
}

#[test]
fn what_commands_printed_is_in_the_record_of_their_run() {
    let home = home_with(&[]);
    let _ = home.run(&["run", "docs", "-q"]).ok();
    let shown = skipped_run(&home).stdout;
    for words in [
        "run @2 of docs: skipped\n",
        "error      not today\n",
        "command    before: exit code 75 after 2 s\n             | one\n             | \\u{1b}[2J two\n",
        "command    after in app: ended by signal 9 after 1 s\n             | \u{fffd}\n",
    ] {
        assert!(shown.contains(words), "{words:?} is not in {shown}");
    }
    let commands = home.run(&["--json", "history", "@2"]).ok().json()["commands"].clone();
    assert_eq!(commands[0]["output"], json!("one\n\u{1b}[2J two"));
    let (kind, container, ending, code) =
        (&commands[1]["kind"], &commands[1]["container"], &commands[1]["ending"], &commands[1]["code"]);
    assert_eq!((kind, container, ending, code), (&json!("after"), &json!("app"), &json!("signal"), &json!(9)));
    // It is neither the last success nor a failure.
    let status = home.run(&["status"]).stdout;
    assert!(status.contains("docs: last run succeeded") && !status.contains("skipped"), "{status}");
    assert_eq!(home.run(&["--plain", "history", "--status", "skipped"]).ok().stdout.lines().count(), 1);
}

#[test]
fn what_is_still_to_be_undone_makes_status_unhealthy() {
    let home = home_with(&[]);
    let _ = home.run(&["run", "docs", "-q"]).ok();
    let healthy = home.run(&["--json", "status"]).json();
    assert_eq!(healthy["duties"], json!([]));
    execute(
        &home,
        "INSERT INTO duty (run_id, attempt, schedule_name, kind, subject, shared_key, state, planned_at_ms, \
             not_before_ms, tries, error) \
         VALUES (1, 1, 'docs', 'start', '{\"name\":\"app' || char(10) || '\"}', 'app', 'done', 1, 1, 3, 'refused'), \
             (1, 1, 'docs', 'after', 'no JSON', NULL, 'settled', 1, 1, 0, NULL)",
    );
    let status = home.run(&["status"]);
    assert_eq!(status.code, 1, "{status:?}");
    let expected = "! run @1 of docs: the container (unknown) that it stopped was not started yet: refused\n";
    assert!(status.stdout.contains(&expected.replace("(unknown)", "app")), "{status:?}");
    let document = home.run(&["--json", "status"]).json();
    assert_eq!((&document["healthy"], &document["duties"][0]["tries"]), (&json!(false), &json!(3)));
    assert_eq!(document["duties"].as_array().unwrap().len(), 1);
    assert_eq!(home.run(&["--json", "history", "@1"]).ok().json()["duties"][0]["kind"], json!("start"));
    assert!(home.run(&["history", "@1"]).ok().stdout.contains("to undo    run @1"));
    // A run whose worker is alive has not forgotten it.
    let _lock = home.start_run_of_other_worker();
    execute(&home, "UPDATE duty SET worker = '6f7a1f3e-0c64-4d0b-9d5e-0a5c5d1b7f11'");
    assert_eq!(home.run(&["--json", "status"]).json()["duties"], json!([]));
}

#[test]
fn a_deleted_schedule_of_which_something_is_to_be_undone_can_be_approved() {
    let home = home_with(&["--after", "false"]);
    let _ = home.run(&["run", "docs"]);
    let _ = home.run(&["delete", "docs"]).ok();
    fs::remove_file(home.path("backup.db.secrets/commands")).unwrap();
    let accepted = home.run(&["accept", "docs", "--commands"]).ok();
    assert!(accepted.stderr.contains("after: false"), "{accepted:?}");
    execute(&home, "UPDATE duty SET state = 'settled', worker = NULL");
    let _ = home.run(&["accept", "docs", "--commands"]).fails(10, &["there is no schedule"]);
}
