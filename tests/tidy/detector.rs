//! Small bad samples: the detector itself must be able to fail.

use super::{check_source, check_sql_clock, forgotten};

/// Returns the findings in a sample as `LINE: RULE`.
fn rules(file: &str, text: &str) -> Vec<String> {
    check_source(file, text).into_iter().map(|finding| format!("{}: {}", finding.line, finding.rule)).collect()
}

#[track_caller]
fn assert_found(file: &str, text: &str, line: usize, rule: &str) {
    let found = rules(file, text);
    let hit = found.iter().any(|found| found.starts_with(&format!("{line}: ")) && found.contains(rule));
    assert!(hit, "{file} with {text:?} should be found for \"{rule}\" in line {line}, but: {found:?}");
}

#[track_caller]
fn assert_tidy(file: &str, text: &str) {
    assert_eq!(rules(file, text), Vec::<String>::new(), "{file}: {text:?}");
}

#[test]
fn the_detector_sees_bad_imports() {
    assert_found("src/clock.rs", "\nuse crate::store::Store;\n", 2, "goes up");
    assert_found("src/store/runs.rs", "use crate::archive::x;\n", 1, "sideways");
    assert_found("src/store/runs.rs", "use crate::{\n    error::Error,\n    source::{walk, x},\n};\n", 3, "sideways");
    assert_found("src/store/mod.rs", "fn f() { let _ = crate::backup::run(); }\n", 1, "goes up");
    assert_found("src/import_export.rs", "use super::archive_folder::x;\n", 1, "sideways");
    assert_found("src/backup/part.rs", "use super::super::service::x;\n", 1, "two modules");
    assert_found("src/backup.rs", "use crate::*;\n", 1, "everything");
    assert_found("src/surprise.rs", "fn f() {}\n", 1, "say on which floor");
    assert_found("src/cli/list.rs", "use crate::surprise::x;\n", 1, "say on which floor");
    assert_tidy("src/store/runs.rs", "use crate::{error::{Error, Result}, clock::Timestamp};\nuse crate::store::x;\n");
    assert_tidy("src/store/runs.rs", "// use crate::archive\nconst X: &str = \"crate::archive\";\n");
    assert_tidy("src/backup/mod.rs", "use crate::archive_folder::x;\n");
    assert_tidy("src/service.rs", "use crate::backup::x;\nuse crate::import_export;\n");
    assert_tidy("src/backup.rs", "mod tests {\n    use super::*;\n}\n");
    assert_tidy("src/main.rs", "use backup_manager::cli;\n");
}

#[test]
fn the_detector_sees_clocks_and_sql_out_of_place() {
    for call in ["SystemTime::now()", "std::time::Instant::now()", "Utc::now()", "chrono::Local::now()"] {
        assert_found("src/backup.rs", &format!("fn f() {{\n    let x = {call};\n}}\n"), 2, "outside clock");
    }
    assert_tidy("src/clock.rs", "fn f() { Instant::now(); }\n");
    for sql in ["\"SELECT 1\"", "\"\\\n   PRAGMA x\"", "r#\"\n  DELETE FROM t\"#", "\"BEGIN\"", "b\"INSERT INTO\""] {
        let text = format!("const X: &str = {sql};\n");
        assert_found("src/cli/list.rs", &text, 1, "outside store");
        assert_tidy("src/store/mod.rs", &text);
    }
    assert_found("src/store/mod.rs", "const X: &str = \"SELECT\n  unixepoch('now')\";\n", 2, "in SQL");
    assert_found("src/store/mod.rs", "const X: &str = \"SELECT CURRENT_TIMESTAMP\";\n", 1, "in SQL");
    for good in ["\"DELETED\"", "\"SELECTED rows\"", "\"Update it\"", "'\"'", "\"CREATE_NEW\""] {
        assert_tidy("src/cli/list.rs", &format!("const X: &str = {good};\n"));
    }
    assert_found("src/store/mod.rs", "const X: &str = \"SELECT julianday()\";\n", 1, "in SQL");
    assert_tidy("src/store/mod.rs", "const X: &str = \"CHECK (stop IN ('drain', 'now')), date(?1), update_time()\";\n");
    assert_eq!(check_sql_clock("CREATE TABLE t (\n  at INTEGER DEFAULT CURRENT_TIMESTAMP\n)")[0].0, 1);
}

#[test]
fn the_detector_sees_length_leftovers_and_names() {
    assert_found("src/clock.rs", &format!("// {}\n", "x".repeat(118)), 1, "121 columns");
    assert_tidy("src/clock.rs", &format!("// {}\n", "é".repeat(117)));
    assert_found("src/clock.rs", &"\n".repeat(801), 801, "801 lines");
    assert_found("src/clock.rs", "fn f() { todo!() }\n", 1, "todo!");
    assert_found("src/clock.rs", "fn f() { unimplemented!() }\n", 1, "unimplemented!");
    assert_found("src/clock.rs", "fn f() { dbg!(1); }\n", 1, "dbg!");
    assert_found("src/clock.rs", "#[allow(dead_code)]\nfn f() {}\n", 1, "dead_code");
    assert_found("src/clock.rs", "#![allow(unused, dead_code)]\n", 1, "dead_code");
    assert_found("src/store/utils.rs", "", 1, "utils");
    assert_found("src/helpers/x.rs", "", 1, "helpers");
    assert_found("src/store/mod.rs", "\nmod common;\n", 2, "common");
    assert_tidy("src/store/mod.rs", "mod common_table;\n#![warn(dead_code)]\n");
}

#[test]
fn the_detector_sees_forgotten_files() {
    let files = [
        ("tests/cli/main.rs", "mod list;\n#[path = \"odd.rs\"]\nmod strange;\n"),
        ("tests/cli/list.rs", "mod part;\n"),
        ("tests/cli/list/part.rs", ""),
        ("tests/cli/odd.rs", ""),
        ("tests/cli/left.rs", ""),
        ("tests/quick.rs", "mod support;\n// mod remark;\nmod inline { }\n"),
        ("tests/support/mod.rs", "mod tree;\n"),
        ("tests/support/tree.rs", ""),
        ("tests/support/remark.rs", ""),
    ]
    .map(|(file, text)| (file.to_owned(), text.to_owned()));
    let is_root = |file: &str| file == "tests/quick.rs" || file == "tests/cli/main.rs";
    assert_eq!(forgotten(&files, is_root), ["tests/cli/left.rs", "tests/support/remark.rs"]);
}
