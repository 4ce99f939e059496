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

/// Returns the text of an index, changed, with a digest that is right.
fn rewrite(index: &Path, change: impl FnOnce(String) -> String) -> String {
    let text = change(fs::read_to_string(index).unwrap());
    let body: String = text.split_inclusive('\n').filter(|line| !line.starts_with("# blake3 ")).collect();
    format!("{body}# blake3 {}\n", blake3::hash(body.as_bytes()).to_hex())
}
