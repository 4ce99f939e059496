//! `--json`: each verb prints exactly one JSON document, whatever happens.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::environment::{Running, Said, TestHome, said};

/// For each verb, words that make it succeed and words that make it fail, in an order in which each can.
const VERBS: [(&str, &str, &str); 34] = [
    ("create", "create a;09:00;docs b;10:00;more", "create a;24:00;docs"),
    ("list", "list", "list --db missing.db"),
    ("show", "show docs", "show nosuch"),
    ("edit", "edit docs --at 11:00", "edit docs --at 25:00"),
    ("pause", "pause docs more", "pause"),
    ("resume", "resume --all", "resume 7"),
    ("next", "next docs", "next --cron often"),
    ("run", "run docs more", "run docs --frobnicate"),
    ("status", "status --service", "status --db missing.db"),
    ("history", "history", "history @99"),
    ("backups", "backups", "backups nosuch"),
    ("ls", "ls docs", "ls missing.tar"),
    ("cat", "cat docs a/file.txt", "cat docs a/missing.txt"),
    ("find", "find file.txt", "find nothing"),
    ("versions", "versions a/file.txt", "versions a/missing.txt"),
    ("diff", "diff docs", "diff @99"),
    ("restore", "restore docs --to out", "restore docs a/missing.txt --to out"),
    ("verify", "verify", "verify missing.tar"),
    ("drill", "drill docs more", "drill nosuch"),
    ("prune", "prune", "prune nosuch"),
    ("pin", "pin @1", "pin @1 @99"),
    ("forget", "forget @2 --force", "forget @1"),
    ("cancel", "cancel docs", "cancel nosuch"),
    ("accept", "accept docs more", "accept nosuch"),
    ("repair", "repair docs", "repair nosuch"),
    ("rescan", "rescan", "rescan --from-copy missing.db"),
    ("config", "config workers 2", "config workers 0"),
    ("export", "export out.txt", "export out.txt"),
    ("import", "import out.txt", "import bad.txt"),
    ("apply", "apply settings.toml", "apply bad.txt"),
    ("start", "start", "start --workers 0"),
    ("stop", "stop", "stop --db missing.db"),
    ("serve", "serve", "serve --workers 0"),
    ("delete", "delete more --with-archives --yes", "delete docs --with-archives"),
];

fn json(home: &TestHome, words: &str) -> Said {
    home.run(&[&["--json"], &words.split(' ').collect::<Vec<_>>()[..]].concat())
}

/// Checks that stdout is the document of an error, and returns it.
#[track_caller]
fn error_of(said: &Said) -> Value {
    assert_ne!(said.code, 0, "{said:?}");
    let document = said.json();
    let error = &document["error"];
    for field in ["message", "kind"] {
        assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{said:?}");
    }
    assert!(!said.stderr.contains("panicked"), "{said:?}");
    error.clone()
}

#[test]
fn every_verb_prints_one_document_on_success_and_on_failure() {
    let home = TestHome::with_sources(&["a", "b"]);
    fs::write(home.path("bad.txt"), "/a;25:00;hour\n").unwrap();
    fs::write(home.path("settings.toml"), "[schedule.extra]\nsource = \"a\"\nat = \"12:00\"\n").unwrap();
    for (verb, good, wrong) in VERBS {
        match verb {
            "serve" => assert_eq!(serve_and_stop(&home)["service"], "stopped"),
            // Its output is the content.
            "cat" => assert_eq!(json(&home, good).ok().stdout, "content of a\n"),
            "status" => assert_eq!(json(&home, good).json()["healthy"], false),
            _ => assert!(!json(&home, good).ok().json().is_null(), "{verb}"),
        }
        error_of(&json(&home, wrong));
    }
}

#[test]
fn a_time_beyond_the_calendar_is_printed_in_every_zone() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now"]).ok();
    for (mtime, east, west) in [
        ("9223372036854775", "9999-12-31T13:59:59+14:00", "9999-12-30T12:59:59-11:00"),
        ("-9223372036854775", "0000-01-0", "0000-01-0"),
    ] {
        let option = format!("--pax-option=mtime:={mtime}");
        let made = Command::new("tar").args([&option, "-cf", "odd.tar", "a"]).current_dir(home.dir.path()).status();
        assert!(made.unwrap().success());
        for (zone, shown) in [("Pacific/Kiritimati", east), ("Pacific/Pago_Pago", west)] {
            let run = |words: &[&str]| home.run_with(("TZ", zone), words).ok();
            let listed = run(&["--json", "ls", "./odd.tar"]).json();
            assert!(listed[0]["modified"].as_str().unwrap().starts_with(shown), "{zone}: {listed}");
            assert!(run(&["ls", "-l", "./odd.tar"]).stdout.contains("a/file.txt"));
            assert!(run(&["--json", "diff", "./odd.tar", "docs"]).stdout.contains("time"));
        }
    }
}

#[test]
fn the_table_has_every_verb() {
    let help = TestHome::new().run(&["--help"]).ok().stdout;
    let (verbs, _) = help.split_once("\nOptions:").unwrap();
    let listed = verbs.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let listed: BTreeSet<&str> = listed.chain(["versions"]).collect();
    assert_eq!(listed, VERBS.iter().map(|(verb, ..)| *verb).collect());
}

/// Serves in the foreground until another process stops it; returns what the service prints.
fn serve_and_stop(home: &TestHome) -> Value {
    let serve = home.command(&["--json", "serve"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut serve = Running(serve);
    home.wait_until("service", 20, || home.run(&["status", "--service"]).code == 0);
    let _ = home.run(&["stop"]).ok();
    let printed = std::io::read_to_string(serve.0.stdout.take().unwrap()).unwrap();
    serde_json::from_str(&printed).unwrap()
}

#[test]
fn wrong_arguments_are_errors_in_json() {
    let home = TestHome::new();
    for (words, part) in [
        ("frobnicate", "unrecognized subcommand"),
        ("list --frobnicate", "--frobnicate"),
        ("list --plain", "cannot be used with"),
        ("run", "required arguments"),
        ("next --count x --at 09:00", "'x'"),
        ("-q -v list", "cannot be used with"),
    ] {
        let refused = json(&home, words);
        let error = error_of(&refused);
        assert_eq!((refused.code, error["kind"].as_str()), (2, Some("usage")), "{refused:?}");
        assert!(error["message"].as_str().unwrap().contains(part), "{refused:?}");
        assert!(!error["hint"].is_null() && refused.stderr.contains("error: "), "{refused:?}");
    }
    let _ = error_of(&json(&home, "list"));
    let _ = error_of(&said(home.command(&["--json"]).env("BACKUP_DB", "x")));
    let _ = error_of(&home.run_with(("BACKUP_DB_FILE", "missing"), &["list", "--json"]));
    // It is a path here.
    assert!(home.run(&["cat", "x.tar", "--", "--json"]).fails(10, &["x.tar"]).stdout.is_empty());
    assert!(json(&home, "--help").ok().stdout.contains("Usage:"));
}

#[test]
fn no_error_follows_content_on_stdout() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now", "-q"]).ok();
    let said = json(&home, "cat docs a/file.txt a/missing.txt").fails(10, &["a/missing.txt"]);
    assert_eq!(said.stdout, "content of a\n");
    let mut full = home.command(&["restore", "docs", "-n", "--to", "out"]);
    let full = full.stdout(fs::OpenOptions::new().write(true).open("/dev/full").unwrap()).output().unwrap();
    assert_eq!(full.status.code(), Some(1), "a plan that could not be printed: {full:?}");
}

#[test]
fn a_failure_with_one_of_several_things_is_an_item_of_the_list() {
    let home = TestHome::with_sources(&["a", "b", "c"]);
    let _ = home.run(&["create", "a;09:00;one", "b;09:00;two", "c;09:00;three", "-q"]).ok();
    let _ = home.run(&["run", "one", "-q"]).ok();
    fs::rename(home.path("b"), home.path("gone")).unwrap();
    let _lock = home.start_run_of_other_worker();
    let ran = json(&home, "run one two three --no-wait");
    let document = ran.json();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!((&document[0]["name"], &document[0]["failure"]["kind"]), (&"one".into(), &"busy".into()));
    assert!(document[0]["failure"]["hint"].is_string());
    assert_eq!((&document[1]["state"], &document[2]["state"]), (&"failed".into(), &"succeeded".into()));
    assert_eq!(error_of(&json(&home, "run one --no-wait"))["kind"], "busy");

    let run = document[2]["run"].as_i64().unwrap();
    let forgotten = json(&home, &format!("forget @99 @{run} --force"));
    assert_eq!(forgotten.code, 10, "{forgotten:?}");
    let document = forgotten.json();
    assert_eq!((&document[0]["name"], &document[0]["failure"]["kind"]), (&"@99".into(), &"not_found".into()));
    assert_eq!((&document[1]["run"], &document[1]["removed"]), (&run.into(), &true.into()));
}

#[test]
fn an_interruption_is_an_error_in_json() {
    let home = TestHome::with_sources(&["a"]);
    let _ = home.run(&["create", "a;09:00;docs", "--now", "-q"]).ok();
    let _lock = home.start_run_of_other_worker();
    for (words, signal, code, kind) in [
        // Handled by the verb, and by none.
        (&["run", "docs"][..], rustix::process::Signal::INT, 130, "interrupted"),
        (&["run", "docs"], rustix::process::Signal::TERM, 143, "terminated"),
        (&["import", "-"], rustix::process::Signal::INT, 130, "interrupted"),
        (&["import", "-"], rustix::process::Signal::TERM, 143, "terminated"),
    ] {
        let mut command = home.command(&[&["--json", "-v"], words].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let _open = child.stdin.take();
        home.wait_until("handlers of signals", 20, || catches(pid, signal) && is_waiting(&home, pid, words[0]));
        rustix::process::kill_process(pid, signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let ended = Said {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code().unwrap_or(-1),
        };
        assert_eq!((ended.code, error_of(&ended)["kind"].as_str()), (code, Some(kind)), "{ended:?}");
    }
}

fn status_line(pid: rustix::process::Pid, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
}

fn catches(pid: rustix::process::Pid, signal: rustix::process::Signal) -> bool {
    let mask = u64::from_str_radix(&status_line(pid, "SigCgt:"), 16).unwrap();
    mask >> (signal.as_raw() - 1) & 1 == 1
}

/// `import` waits for its input; `run` is a worker once it handles signals by itself.
fn is_waiting(home: &TestHome, pid: rustix::process::Pid, verb: &str) -> bool {
    let worker = format!("SELECT count(*) FROM worker WHERE pid = {}", pid.as_raw_nonzero());
    match verb {
        "run" => home.number(&worker) == 1,
        _ => status_line(pid, "State:").starts_with('S'),
    }
}
