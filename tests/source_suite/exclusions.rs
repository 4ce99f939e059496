//! What a schedule excludes, and nothing else.

use std::fs;
use std::os::unix::fs::symlink;

use backup_manager::error::ErrorKind;
use backup_manager::source::check_patterns;

use crate::support::*;

const SIGNATURE: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# more\n";

/// Returns the paths below the root that a walk visits.
fn visited(source: &Source) -> Vec<String> {
    let walked = source.walk();
    assert!(walked.problems.is_empty(), "{:?}", walked.problems);
    walked.paths()[1..].iter().map(|path| path["src/".len()..].to_owned()).collect()
}

#[test]
fn globs_match_as_in_a_gitignore_file() {
    let dir =
        tree(&["a.tmp", "b.txt", "deep/a.tmp", "deep/x/b.txt", "build/out", "src/build/out", "src/build.rs", "[x]"]);
    let cases: &[(&[&str], &[&str])] = &[
        (&["*.tmp"], &["[x]", "b.txt", "build/out", "deep/x/b.txt", "src/build/out", "src/build.rs"]),
        (&["/*.tmp"], &["[x]", "b.txt", "build/out", "deep/a.tmp", "deep/x/b.txt", "src/build/out", "src/build.rs"]),
        (&["build"], &["[x]", "a.tmp", "b.txt", "deep/a.tmp", "deep/x/b.txt", "src/build.rs"]),
        (&["/build"], &["[x]", "a.tmp", "b.txt", "deep/a.tmp", "deep/x/b.txt", "src/build/out", "src/build.rs"]),
        (&["src/build"], &["[x]", "a.tmp", "b.txt", "build/out", "deep/a.tmp", "deep/x/b.txt", "src/build.rs"]),
        (
            &["b.txt/"],
            &["[x]", "a.tmp", "b.txt", "build/out", "deep/a.tmp", "deep/x/b.txt", "src/build/out", "src/build.rs"],
        ),
        (&["**/x/**"], &["[x]", "a.tmp", "b.txt", "build/out", "deep/a.tmp", "src/build/out", "src/build.rs"]),
        (&["deep/**/b.txt"], &["[x]", "a.tmp", "b.txt", "build/out", "deep/a.tmp", "src/build/out", "src/build.rs"]),
        (&["*", "!b.txt", "!/deep"], &["b.txt"]),
        (&["*.tmp", "!/a.tmp", "src", "build"], &["[x]", "a.tmp", "b.txt", "deep/x/b.txt"]),
        (&["\\[x\\]", "[a-d]*", "src"], &[]),
        (&["?.t*"], &["[x]", "build/out", "src/build/out", "src/build.rs"]),
    ];
    for (globs, expected) in cases {
        let all = visited(&Source::at(dir.path()).globs(globs));
        let files: Vec<_> = all.iter().filter(|path| dir.path().join(path).is_file()).collect();
        assert_eq!(files, expected.iter().collect::<Vec<_>>(), "{globs:?}");
    }
}

#[test]
fn a_pattern_in_the_form_that_ls_shows_is_relative_to_the_source() {
    let dir = tree(&["build/out", "deep/build/out", "keep"]);
    let files = |globs: &[&str]| visited(&Source::at(dir.path()).globs(globs));
    assert_eq!(files(&["src/build"]), ["deep", "deep/build", "deep/build/out", "keep"]);
    assert_eq!(
        files(&["src/deep/*", "!src/deep/build"]),
        ["build", "build/out", "deep", "deep/build", "deep/build/out", "keep"]
    );
    assert_eq!(files(&["src/"]).len(), 6, "the source itself is never excluded");
    // If the source holds that name, the pattern means it, as in a .gitignore file.
    fs::create_dir(dir.path().join("src")).unwrap();
    fs::write(dir.path().join("src/build"), "").unwrap();
    assert_eq!(files(&["src/build"]), ["build", "build/out", "deep", "deep/build", "deep/build/out", "keep", "src"]);
}

#[test]
fn patterns_that_matched_nothing_are_reported() {
    let dir = tree(&["a.tmp", "build/out", "keep"]);
    let globs = ["*.tmp", "*.iso", "./build", "!keep", "src/build/", "src/none", "keep/"];
    let walked = Source::at(dir.path()).globs(&globs).walk();
    assert_eq!(walked.summary.unmatched_patterns, ["*.iso", "./build", "keep/", "src/none"]);
    assert_eq!(walked.summary.excluded, 2);
    for (glob, is_useless) in [
        ("./x", true),
        ("../x", true),
        ("~/x", true),
        ("a/../b", true),
        ("'*.tmp'", true),
        ("", true),
        ("*.tmp", false),
        ("!x/**/y", false),
        ("~", false),
        (".hidden", false),
        ("x..", false),
    ] {
        assert_eq!(backup_manager::source::pattern_problem(glob).is_some(), is_useless, "{glob}");
    }
}

#[test]
fn an_excluded_folder_is_not_entered_and_counts_once() {
    let dir = tree(&["keep", "out/a/b/c", "out/d"]);
    let walked = Source::at(dir.path()).globs(&["out/"]).walk();
    assert_eq!(walked.paths(), ["src", "src/keep"]);
    assert_eq!(walked.summary.excluded, 1);
    // The content of an excluded folder cannot be included again.
    assert_eq!(visited(&Source::at(dir.path()).globs(&["out", "!out/d"])), ["keep"]);
    assert_eq!(visited(&Source::at(dir.path()).globs(&["out/*", "!out/d"])), ["keep", "out", "out/d"]);
}

#[test]
fn a_pattern_with_the_path_of_the_source_is_relative_to_the_source() {
    let dir = tree(&["photos/tmp/x", "photos/sub/tmp/y", "photos/z", "photos-old/tmp"]);
    let root = dir.path().canonicalize().unwrap().join("photos");
    symlink(&root, dir.path().join("link")).unwrap();
    let link = dir.path().join("link");
    for spelled in [&root, &link] {
        let glob = format!("{}/tmp", spelled.display());
        assert_eq!(visited(&Source::at(&link).globs(&[&glob])), ["sub", "sub/tmp", "sub/tmp/y", "z"], "{glob}");
        let not = format!("!{}/sub/tmp/y", spelled.display());
        assert_eq!(
            visited(&Source::at(&link).globs(&["y", "tmp/x", "z", &not])),
            ["sub", "sub/tmp", "sub/tmp/y", "tmp"]
        );
        for whole in [format!("{}", spelled.display()), format!("{}/", spelled.display())] {
            let error = Source::at(&link).globs(&[&whole]).try_walk().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(&whole), "{error}");
        }
    }
    // A path with the same prefix is a different path.
    let other = format!("{}-old/tmp", root.display());
    assert_eq!(visited(&Source::at(&root).globs(&[&other])).len(), 6);
}

#[test]
fn lines_of_an_exclude_file_may_be_comments_and_command_line_globs_may_not() {
    let dir = tree(&["#save#", "a", "b", "c "]);
    let mut source = Source::at(dir.path());
    source.patterns = ["\u{feff}a", "# b", "", "   ", "b\r", "!b", "#save#"].map(String::from).to_vec();
    assert_eq!(visited(&source), ["#save#", "b", "c "]);
    assert_eq!(visited(&Source::at(dir.path()).globs(&["#save#", "c\\ "])), ["a", "b"]);
}

#[test]
fn an_error_names_the_invalid_glob() {
    for bad in ["a{b", "x[z-a]"] {
        for good in ["ok", "*.tmp"] {
            let globs = [good.to_owned(), bad.to_owned()];
            let error = check_patterns(&globs).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(&format!("\"{bad}\"")) && error.next_step().is_some(), "{error}");
        }
        let dir = tree(&["f"]);
        assert_eq!(Source::at(dir.path()).globs(&[bad]).try_walk().unwrap_err().kind(), ErrorKind::Usage);
        let mut source = Source::at(dir.path());
        source.patterns = vec![bad.to_owned()];
        assert_eq!(source.try_walk().unwrap_err().kind(), ErrorKind::Usage);
    }
    assert!(check_patterns(&[" ".to_owned()]).is_err());
    assert!(check_patterns(&["*.o".to_owned(), "/x/**".to_owned(), "!y".to_owned()]).is_ok());
}

#[test]
fn globs_match_names_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tree(&["keep"]);
    fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.tmp")), "x").unwrap();
    fs::write(dir.path().join("line\nbreak.tmp"), "x").unwrap();
    assert_eq!(visited(&Source::at(dir.path()).globs(&["*.tmp"])), ["keep"]);
}

#[test]
fn of_a_cache_folder_only_the_folder_and_its_tag_are_archived() {
    let dir = tree(&["cache/junk", "cache/sub/junk", "plain/f", "wrong/f", "short/f", "linked/f", "piped/f", "aged/f"]);
    let tag = |folder: &str| dir.path().join(folder).join("CACHEDIR.TAG");
    fs::write(tag("cache"), SIGNATURE).unwrap();
    fs::write(tag("aged"), SIGNATURE).unwrap();
    fs::write(tag("wrong"), "Signature: 8a477f597d28d172789f06886806bc56\n").unwrap();
    fs::write(tag("short"), &SIGNATURE[..42]).unwrap();
    symlink("../cache/CACHEDIR.TAG", tag("linked")).unwrap();
    mkfifo(&tag("piped"));
    let mut source = Source::at(dir.path());
    assert_eq!(visited(&source).len(), 8 + 8 + 1 + 6 - 1);
    source.excludes.caches = true;
    let expected = [
        "aged",
        "aged/CACHEDIR.TAG",
        "cache",
        "cache/CACHEDIR.TAG",
        "linked",
        "linked/CACHEDIR.TAG",
        "linked/f",
        "piped",
        "piped/CACHEDIR.TAG",
        "piped/f",
        "plain",
        "plain/f",
        "short",
        "short/CACHEDIR.TAG",
        "short/f",
        "wrong",
        "wrong/CACHEDIR.TAG",
        "wrong/f",
    ];
    assert_eq!(visited(&source), expected);
    // One file in `aged`, a file and a folder in `cache`.
    assert_eq!(source.walk().summary.excluded, 3);
    source.root = dir.path().join("cache");
    assert_eq!(visited(&source), ["CACHEDIR.TAG"]);
}

#[test]
fn of_a_marked_folder_only_the_folder_is_archived() {
    let dir = tree(&["a/.nobackup", "a/f", "b/f", "c/skip me", "c/sub/f", "d/.nobackup/f", "e/x.nobackup"]);
    let mut source = Source::at(dir.path());
    source.excludes.if_present = vec![".nobackup".to_owned(), "skip me".to_owned()];
    assert_eq!(visited(&source), ["a", "b", "b/f", "c", "d", "e", "e/x.nobackup"]);
    assert_eq!(source.walk().summary.excluded, 2 + 2 + 1);
    for bad in ["", "a/b", ".."] {
        source.excludes.if_present = vec![bad.to_owned()];
        assert_eq!(source.try_walk().unwrap_err().kind(), ErrorKind::Usage);
    }
}

#[test]
fn with_one_file_system_a_mount_point_is_archived_without_its_content() {
    let dir = tree(&["a", "mnt/", "z/f"]);
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "none"], &dir.path().join("mnt")) else { return };
    plant(dir.path(), &["mnt/inside/f"]);
    let mut source = Source::at(dir.path());
    assert_eq!(visited(&source), ["a", "mnt", "mnt/inside", "mnt/inside/f", "z", "z/f"]);
    source.excludes.one_file_system = true;
    assert_eq!(visited(&source), ["a", "mnt", "z", "z/f"]);
    // A root that is a mount point itself is on its own file system.
    source.root = dir.path().join("mnt");
    assert_eq!(visited(&source), ["inside", "inside/f"]);
}
