//! Archives in segments: every verb that takes an archive file takes their index, without a database; `export` writes
//! the whole file of any archive.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::environment::TestHome;
use crate::support::random::Random;
use crate::support::segments::{name, segment_names, split};

/// A home with an archive of `docs`, and that archive in segments in the folder `stored`. The database lies elsewhere.
fn home_and_index(compression: &str) -> (TestHome, PathBuf, PathBuf) {
    let home = TestHome::with_sources(&["docs"]);
    fs::create_dir(home.path("docs/sub")).unwrap();
    for n in 0..40 {
        fs::write(home.path("docs/sub").join(format!("{n}.txt")), format!("{n} ").repeat(n * 400)).unwrap();
    }
    let _ = home.run(&["create", "docs;02:00;docs", "--compress", compression, "--now"]).ok();
    let whole = fs::canonicalize(home.path("backups").join(link_name(&home))).unwrap();
    let extension = whole.to_str().unwrap().split_once(".tar").unwrap().1.to_owned();
    let archive = name("docs", &["tar", &extension].concat()).file_name();
    let archive = backup_manager::archive_name::ArchiveName::of_file(&archive).unwrap();
    let index = split(&whole, &home.path("stored"), &archive, 12, &mut Random::new(7));
    (home, whole, index)
}

fn link_name(home: &TestHome) -> String {
    let names = fs::read_dir(home.path("backups")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names = names.map(|name| name.into_string().unwrap());
    names.find(|name| name.starts_with("docs.tar")).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_verb_takes_an_index_without_a_database() {
    for compression in ["none", "gzip", "zstd"] {
        let (home, whole, index) = home_and_index(compression);
        let elsewhere = TestHome::new();
        let [whole, index] = [text(&whole), text(&index)];
        let list = elsewhere.run(&["ls", index]).ok();
        assert_eq!(list.stdout, elsewhere.run(&["ls", whole]).ok().stdout);
        let same = elsewhere.run(&["cat", index, "docs/sub/7.txt"]).ok().stdout;
        assert_eq!(same, "7 ".repeat(2800));
        assert_eq!(elsewhere.run(&["diff", index, whole]).ok().stdout, "");
        let _ = elsewhere.run(&["verify", index]).ok();
        let _ = elsewhere.run(&["restore", index, "--to", "out"]).ok();
        let restored = fs::read(elsewhere.path("out/docs/sub/39.txt")).unwrap();
        assert_eq!(restored, fs::read(home.path("docs/sub/39.txt")).unwrap());
        assert!(!elsewhere.path("backup.db").exists());
    }
}

#[test]
fn a_missing_segment_is_named_by_verify_restore_and_export() {
    let (home, _, index) = home_and_index("none");
    let segment = index.with_file_name(&segment_names(&name("docs", "tar"))[2]);
    let segment_name = segment.file_name().unwrap().to_str().unwrap().to_owned();
    fs::remove_file(&segment).unwrap();
    let missing = format!("the segment {segment_name} is missing");
    let verified = home.run(&["verify", text(&index)]);
    assert_eq!(verified.code, 4, "{verified:?}");
    assert!(verified.stdout.contains(&missing), "{verified:?}");
    let restored = home.run(&["restore", text(&index), "--to", "out"]);
    assert_eq!(restored.code, 4, "{restored:?}");
    assert!(restored.stderr.contains(&missing), "{restored:?}");
    let _ = home.run(&["export", text(&index), "--to", "out.tar"]).fails(4, &[&missing]);
    assert!(!home.path("out.tar").exists());
    let leftovers = fs::read_dir(home.path("")).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
        name.ends_with(".part")
    });
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn a_hostile_index_is_refused_by_every_verb() {
    let (home, _, index) = home_and_index("gzip");
    let good = fs::read_to_string(&index).unwrap();
    let first_range = good.lines().find(|line| !line.starts_with('#')).unwrap();
    let start = first_range.split(' ').next().unwrap();
    let hostile = |start: &str, with: &str| {
        rewrite(&index, |text| text.replacen(first_range, &first_range.replacen(start, with, 1), 1))
    };
    let texts = [
        good.replace('\n', "\r\n"),
        good[..good.len() - 70].to_owned(),
        hostile(start, "x[$(touch${IFS}PWNED)]"),
        hostile(start, "-1"),
        hostile("docs-", "../docs/docs-"),
        hostile("docs-", "$(id)-"),
    ];
    for text_of_index in texts {
        fs::write(&index, text_of_index).unwrap();
        for verb in ["ls", "verify", "restore", "export"] {
            let to: &[&str] = if matches!(verb, "restore" | "export") { &["--to", "out"] } else { &[] };
            let said = home.run(&[&[verb, text(&index)], to].concat());
            assert_eq!(said.code, 4, "{said:?}");
            assert!([&said.stdout, &said.stderr].iter().any(|text| text.contains(" is damaged in line ")), "{said:?}");
            assert!(!home.path("out").exists() && !home.path("PWNED").exists(), "{verb}");
        }
    }
}

#[test]
fn an_archive_of_any_layout_is_exported_as_one_file() {
    for compression in ["none", "gzip", "zstd"] {
        let (home, whole, index) = home_and_index(compression);
        let bytes = fs::read(&whole).unwrap();
        let run = home.run(&["--json", "backups"]).ok().json()[0]["run"].as_i64().unwrap();
        let named = [format!("@{run}"), format!("docs@{run}"), "docs".to_owned(), text(&whole).to_owned()];
        for (turn, what) in named.iter().chain([&text(&index).to_owned()]).enumerate() {
            let to = format!("out{turn}.tar");
            let said = home.run(&["export", what, "--to", &to]).ok();
            assert!(said.stderr.contains(&format!("wrote {to}")), "{said:?}");
            assert!(fs::read(home.path(&to)).unwrap() == bytes, "{compression} {what}");
            assert_eq!(fs::metadata(home.path(&to)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let json = home.run(&["--json", "export", text(&index), "--to", "json.tar"]).ok().json();
        let printed = std::process::Command::new("cksum").arg(home.path("json.tar")).output().unwrap().stdout;
        let printed = String::from_utf8(printed).unwrap();
        assert!(printed.starts_with(&format!("{} {} ", json["cksum"], json["bytes"])), "{printed} {json}");
        assert_eq!((json["archive"].as_str(), json["file"].as_str()), (Some(text(&index)), Some("json.tar")));
    }
}

#[test]
fn an_export_that_cannot_be_right_writes_nothing() {
    let (home, whole, index) = home_and_index("zstd");
    let _ = home.run(&["export", "docs", "--to", "docs/file.txt"]).fails(2, &["docs/file.txt already exists"]);
    let _ = home.run(&["export", "docs", "--to", "backups/docs/x.tar"]).fails(2, &["archive folder"]);
    let _ = home.run(&["export", "docs", "--to", "no/such/folder"]).fails(1, &["no/such"]);
    let _ = home.run(&["export", "nothing", "--to", "x"]).fails(10, &["nothing"]);
    let _ = home.run(&["export", "docs@999", "--to", "x"]).fails(10, &["@999"]);
    let _ = home.run(&["export", "--to", "x"]).fails(2, &["FILE|ARCHIVE"]);
    let _ = home.run(&["export", "docs", "--to", "x", "--force"]).fails(2, &["--force"]);
    fs::write(home.path("foreign.tar"), [0; 1024]).unwrap();
    let _ = home.run(&["export", "./foreign.tar", "--to", "x"]).fails(1, &["no trailer", "cp"]);
    // A byte in the middle of a chunk.
    fs::set_permissions(&whole, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(&whole).unwrap();
    let place = bytes.len() / 3;
    bytes[place] ^= 1;
    fs::write(&whole, &bytes).unwrap();
    let _ = home.run(&["export", "docs", "--to", "x"]).fails(4, &["damaged in chunk", "not those that were written"]);
    let sum = fs::read_to_string(&index).unwrap();
    let sum = sum.lines().find_map(|line| line.strip_prefix("# cksum ")).unwrap().split(' ').next().unwrap().to_owned();
    let wrong = rewrite(&index, |text| text.replacen(&format!("# cksum {sum} "), "# cksum 17 ", 1));
    fs::write(&index, wrong).unwrap();
    let _ = home.run(&["export", text(&index), "--to", "x"]).fails(4, &["its index says 17 "]);
    let verified = home.run(&["verify", text(&index)]);
    assert!(verified.code == 4 && verified.stdout.contains("its index says 17 "), "{verified:?}");
    assert!(!home.path("x").exists() && !home.path("backups/docs/x.tar").exists());
}

/// A home with the schedules `docs` and `mail` in segments, each with two archives of different content.
fn home_with_segments() -> TestHome {
    let home = TestHome::with_sources(&["docs", "mail"]);
    for name in ["docs", "mail"] {
        let _ =
            home.run(&["create", &format!("{name};02:00;{name}"), "--layout", "segmented", "--keep-last", "9"]).ok();
        let _ = home.run(&["run", name]).ok();
        fs::write(home.path(name).join("more.txt"), "more\n").unwrap();
        let _ = home.run(&["run", name]).ok();
    }
    home
}

#[test]
fn an_index_that_cannot_be_read_is_named_and_fails_no_removal() {
    let home = home_with_segments();
    let segments = |name: &str| home.archive_files().iter().filter(|file| file.starts_with(name)).count();
    let healthy = home.run(&["status"]);
    assert!(!healthy.stdout.contains("an index there cannot be read"), "{healthy:?}");
    fs::write(home.path("backups/docs/docs.index"), "mine\n").unwrap();
    let named = "kept, because an index there cannot be read: the index ";
    let unhealthy = home.run(&["status"]);
    assert_eq!(unhealthy.code, 1);
    assert!(
        unhealthy.stdout.contains(named) && unhealthy.stdout.contains("docs/docs.index is damaged"),
        "{unhealthy:?}"
    );
    assert!(unhealthy.stdout.contains("else move it out of that folder"), "{unhealthy:?}");
    let (docs, mail) = (segments("docs"), segments("mail"));
    let forgotten = home.run(&["forget", "@1"]).ok();
    assert!(
        forgotten.stderr.contains(named) && forgotten.stderr.contains("\n  next: if it is that of an archive"),
        "{forgotten:?}"
    );
    assert_eq!(segments("docs"), docs - 1, "its index only");
    let _ = home.run(&["forget", "@3"]).ok();
    let _ = home.run(&["edit", "mail", "--keep-last", "1"]).ok();
    let _ = home.run(&["prune"]).ok();
    let _ = home.run(&["delete", "mail", "--with-archives", "--yes"]).ok();
    assert_eq!(segments("mail"), 0, "{mail} files before");
    let deleted = home.run(&["delete", "docs", "--with-archives", "--yes"]).ok();
    assert!(deleted.stderr.contains(named), "{deleted:?}");
    assert_eq!(home.run(&["backups", "--all", "--plain"]).stdout, "");
    fs::remove_file(home.path("backups/docs/docs.index")).unwrap();
    let pruned = home.run(&["prune"]).ok();
    assert!(!pruned.stderr.contains("warning"), "{pruned:?}");
    assert_eq!(segments("docs"), 0);
}

#[test]
fn a_removal_that_waits_for_another_process_is_not_called_done() {
    let home = home_with_segments();
    let changing = home.path("backup.db.locks/docs.changes");
    fs::create_dir_all(changing.parent().unwrap()).unwrap();
    let lock = fs::OpenOptions::new().create(true).append(true).open(&changing).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let before = home.archive_files();
    let later = "docs: 1 archive will be removed by the service or the next `backup-manager prune`";
    let said = home.run(&["--json", "forget", "@1"]).ok();
    assert!(said.stderr.contains(later) && said.json()[0]["removed"] == false, "{said:?}");
    let said = home.run(&["forget", "@2", "--force"]).ok();
    assert!(said.stderr.contains(later) && !said.stderr.contains("removed /"), "{said:?}");
    let _ = home.run(&["run", "docs"]).ok();
    let _ = home.run(&["edit", "docs", "--keep-last", "1"]).ok();
    fs::write(home.path("docs/last.txt"), "last\n").unwrap();
    let said = home.run(&["run", "docs"]).ok();
    assert!(said.stderr.contains(later) || said.stdout.contains(later), "retention: {said:?}");
    let said = home.run(&["--json", "delete", "docs", "--with-archives", "--yes"]).ok();
    assert!(said.stderr.contains(later) && said.json()[0]["archives_deleted"] == 0, "{said:?}");
    assert_eq!(said.json()[0]["bytes_deleted"], 0);
    assert!(before.iter().all(|name| home.archive_files().contains(name)));
    drop(lock);
    let said = home.run(&["prune"]).ok();
    assert!(said.stderr.contains("removed 4 archives whose removal was interrupted"), "{said:?}");
    assert!(!home.archive_files().iter().any(|name| name.starts_with("docs")), "{:?}", home.archive_files());
}

/// Returns the names of the links in the archive folder.
fn links(home: &TestHome) -> Vec<String> {
    let entries = fs::read_dir(home.path("backups")).unwrap().map(|entry| entry.unwrap());
    let links = entries.filter(|entry| entry.file_type().unwrap().is_symlink());
    links.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[test]
fn the_layout_of_a_schedule_takes_effect_with_its_next_run() {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs;02:00;docs", "--now"]).ok();
    let layout = |home: &TestHome| home.run(&["--json", "list"]).ok().json()[0]["layout"].as_str().unwrap().to_owned();
    assert_eq!((layout(&home).as_str(), links(&home)), ("whole", vec!["docs.tar".to_owned()]));
    let turns =
        [("segmented", "whole", "docs.tar", "docs.tar.index"), ("whole", "segmented", "docs.tar.index", "docs.tar")];
    for (turn, (new, old, link, new_link)) in turns.into_iter().enumerate() {
        let changed = home.run(&["--json", "edit", "docs", "--layout", new]).ok().json();
        assert_eq!((&changed["changed"], changed["layout"].as_str()), (&true.into(), Some(new)));
        let again = home.run(&["--json", "edit", "docs", "--layout", new]).ok().json();
        assert_eq!(again["changed"], false);
        let shown = home.run(&["show", "docs"]).ok().stdout;
        let pending = format!("\nlayout        {new} from the next run on (@{} is {old})\n", turn + 1);
        assert!(shown.contains(&pending), "{shown}");
        assert_eq!(links(&home), [link]);
        let _ = home.run(&["run", "docs"]).ok();
        assert_eq!(links(&home), [new_link]);
        let shown = home.run(&["show", "docs"]).ok().stdout;
        assert!(shown.contains(&format!("\nlayout        {new}\n")), "{shown}");
        let layouts: Vec<_> = home.run(&["--json", "backups"]).ok().json().as_array().unwrap()[..turn + 2].to_vec();
        assert!(layouts.iter().any(|archive| archive["layout"] == *new), "{layouts:?}");
        let restored = home.run(&["cat", text(&home.path("backups").join(new_link)), "docs/file.txt"]).ok().stdout;
        assert_eq!(restored, "content of docs\n");
    }
    let _ = home.run(&["edit", "docs", "--layout", "halves"]).fails(2, &["\"halves\" is not a layout"]);
}

#[test]
fn the_layout_is_part_of_the_json_of_a_schedule_and_of_its_archives() {
    let home = TestHome::with_sources(&["docs"]);
    let _ = home.run(&["create", "docs;02:00;docs", "--layout", "segmented", "--now"]).ok();
    let lost = home.run(&["export", "schedules.txt"]);
    assert_eq!((lost.code, lost.stderr.contains("without: layout")), (3, true), "{lost:?}");
    let _ = home.run(&["export", "all.json", "--format", "json"]).ok();
    let shown = home.run(&["--json", "show", "docs"]).ok().json();
    assert_eq!((shown["layout"].as_str(), shown["options"]["layout"].as_str()), (Some("segmented"), Some("segmented")));
    let is_segmented = |home: &TestHome| {
        let found = home.run(&["--json", "list"]).ok().json();
        assert_eq!(found[0]["layout"], "segmented", "{found}");
    };
    let other = TestHome::with_sources(&["docs"]);
    let _ = other.run(&["import", text(&home.path("all.json")), "--format", "json"]).ok();
    is_segmented(&other);
    // A name that comes back keeps it, also by the text file.
    let _ = other.run(&["delete", "docs"]).ok();
    let _ = other.run(&["import", text(&home.path("schedules.txt"))]).ok();
    is_segmented(&other);
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(home.path(&format!("backup.db{end}")));
    }
    let _ = home.run(&["rescan"]).ok();
    is_segmented(&home);
}

/// What a verb is to print: its words after `backup-manager`, its exit code, and words in what it prints.
type Expected<'a> = (&'a [&'a str], i32, &'a str);

#[track_caller]
fn check_verbs(home: &TestHome, verbs: &[Expected<'_>]) {
    for (words, code, expected) in verbs {
        let said = home.run(words);
        assert!(
            said.code == *code && [&said.stdout, &said.stderr].iter().any(|text| text.contains(expected)),
            "{said:?}"
        );
        assert!(!said.stderr.contains("panicked"), "{said:?}");
    }
}

/// Uses every verb that reads archives on the schedule `name`, which has two.
fn check_schedule(home: &TestHome, name: &str) {
    check_verbs(
        home,
        &[
            (&["verify", name], 0, "good: "),
            (&["ls", name], 0, "src/more.txt"),
            (&["cat", name, "src/file.txt"], 0, "content of src"),
            (&["find", "more.txt"], 0, "src/more.txt"),
            (&["find", "--versions", "src/file.txt"], 0, "@1"),
            (&["diff", "@1", "@2"], 0, "src/more.txt"),
            (&["diff", name], 0, ""),
            (&["restore", name, "--to", "out"], 0, "restored 3 members"),
            (&["drill", name], 0, "restored and compared"),
            (&["backups", name], 0, ".tar.zst.index"),
            (&["backups"], 0, ".tar.zst.index"),
            (&["backups", "--all"], 0, ".tar.zst.index"),
            (&["show", name], 0, "segmented"),
            (&["export", name, "--to", "out.tar.zst"], 0, "wrote out.tar.zst"),
            (&["export", "@1", "--to", "old.tar.zst"], 0, "wrote old.tar.zst"),
        ],
    );
}

/// Uses every verb on indexes without a database: those of the two archives, and the link to the new one.
fn check_indexes(elsewhere: &TestHome, old: &str, new: &str, link: &str) {
    check_verbs(
        elsewhere,
        &[
            (&["verify", new], 0, "good: "),
            (&["verify", link], 0, "good: "),
            (&["ls", new], 0, "src/more.txt"),
            (&["cat", new, "src/file.txt"], 0, "content of src"),
            (&["diff", old, link], 0, "src/more.txt"),
            (&["restore", link, "--to", "out"], 0, "restored 3 members"),
            (&["export", new, "--to", "out.tar.zst"], 0, "wrote out.tar.zst"),
            (&["find", "more.txt"], 10, "no database in"),
            (&["drill", new], 10, "no database in"),
            (&["backups", new], 10, "no database in"),
        ],
    );
    assert!(!elsewhere.path("backup.db").exists());
}

#[test]
fn every_verb_works_on_schedules_in_segments_of_any_name_and_on_their_indexes() {
    for name in ["docs", "B\u{fc}ro 2", "#a", "it's $(id) \"x\""] {
        let home = TestHome::with_sources(&["src"]);
        let create = ["create", "src", "--name", name, "--at", "02:00", "--compress", "zstd", "--layout", "segmented"];
        let _ = home.run(&create).ok();
        let _ = home.run(&["run", name]).ok();
        fs::write(home.path("src/more.txt"), "more\n").unwrap();
        let _ = home.run(&["run", name]).ok();
        check_schedule(&home, name);
        let archives = home.run(&["--json", "backups", name]).ok().json();
        let [new, old] = [0, 1].map(|at: usize| archives[at]["path"].as_str().unwrap().to_owned());
        let elsewhere = TestHome::new();
        check_indexes(&elsewhere, &old, &new, text(&home.path("backups").join(format!("{name}.tar.zst.index"))));
        let whole = |home: &TestHome| fs::read(home.path("out.tar.zst")).unwrap();
        assert!(whole(&home) == whole(&elsewhere));
        check_by_shell(Path::new(&new), &home);
    }
}

/// Runs the two lines of shell in an index: the check, and the restore.
#[track_caller]
fn check_by_shell(index: &Path, home: &TestHome) {
    let text = fs::read_to_string(index).unwrap();
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# ")).collect();
    let shell = |line: &str| {
        let done = std::process::Command::new("sh").arg("-c").arg(line).current_dir(index.parent().unwrap()).output();
        String::from_utf8(done.unwrap().stdout).unwrap()
    };
    let line = |end: &str| lines.iter().find(|line| line.ends_with(end)).unwrap();
    let sum = lines.iter().find_map(|line| line.strip_prefix("cksum ")).unwrap();
    assert_eq!(shell(line("| cksum")).trim_end(), sum);
    fs::create_dir(home.path("by-hand")).unwrap();
    shell(&format!("{} -C {}", line("-xf -"), home.path("by-hand").display()));
    assert_eq!(fs::read_to_string(home.path("by-hand/src/more.txt")).unwrap(), "more\n");
}

/// Returns the text of an index, changed, with a digest that is right.
fn rewrite(index: &Path, change: impl FnOnce(String) -> String) -> String {
    let text = change(fs::read_to_string(index).unwrap());
    let body: String = text.split_inclusive('\n').filter(|line| !line.starts_with("# blake3 ")).collect();
    format!("{body}# blake3 {}\n", blake3::hash(body.as_bytes()).to_hex())
}
