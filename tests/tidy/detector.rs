//! Small bad samples: each check must be able to fail.

use super::circles::circles;
use super::documents::unknown_names;
use super::items::{direct_dependencies, locked_packages, long_functions, traits_with_one_implementation};
use super::lexer::lex;
use super::{check_section_sign, check_source, check_sql_clock, unreached};

/// Returns the findings in a sample as `LINE: RULE`.
fn rules(file: &str, text: &str) -> Vec<String> {
    check_source(file, text).into_iter().map(|finding| format!("{}: {}", finding.line, finding.rule)).collect()
}

#[track_caller]
fn assert_found(file: &str, text: &str, line: usize, rule: &str) {
    let found = rules(file, text);
    let hit = found.iter().any(|found| found.starts_with(&format!("{line}: ")) && found.contains(rule));
    assert!(hit, "{file} with {text:?} should break the rule \"{rule}\" in line {line}; found: {found:?}");
}

#[track_caller]
fn assert_tidy(file: &str, text: &str) {
    assert_eq!(rules(file, text), Vec::<String>::new(), "{file}: {text:?}");
}

#[test]
fn bad_imports_are_found() {
    assert_found("src/clock.rs", "\nuse crate::store::Store;\n", 2, "goes up");
    assert_found("src/store/runs.rs", "use crate::archive::x;\n", 1, "sideways");
    assert_found("src/store/runs.rs", "use crate::{\n    error::Error,\n    source::{walk, x},\n};\n", 3, "sideways");
    assert_found("src/store/mod.rs", "fn f() { let _ = crate::backup::run(); }\n", 1, "goes up");
    assert_found("src/import_export.rs", "use super::archive_folder::x;\n", 1, "sideways");
    assert_found("src/backup/part.rs", "use super::super::service::x;\n", 1, "two modules");
    assert_found("src/backup.rs", "use crate::*;\n", 1, "everything");
    assert_found("src/surprise.rs", "fn f() {}\n", 1, "layer");
    assert_found("src/cli/list.rs", "use crate::surprise::x;\n", 1, "layer");
    assert_tidy("src/store/runs.rs", "use crate::{error::{Error, Result}, clock::Timestamp};\nuse crate::store::x;\n");
    assert_tidy("src/store/runs.rs", "// use crate::archive\nconst X: &str = \"crate::archive\";\n");
    assert_tidy("src/backup/mod.rs", "use crate::archive_folder::x;\n");
    assert_tidy("src/service.rs", "use crate::backup::x;\nuse crate::import_export;\n");
    assert_tidy("src/backup.rs", "mod tests {\n    use super::*;\n}\n");
    assert_tidy("src/main.rs", "use backup_manager::cli;\n");
}

#[test]
fn clocks_and_sql_outside_their_modules_are_found() {
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
fn long_files_and_lines_unfinished_code_and_vague_names_are_found() {
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
fn files_that_no_mod_declaration_reaches_are_found() {
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
    assert_eq!(unreached(&files, is_root), ["tests/cli/left.rs", "tests/support/remark.rs"]);
}

/// Returns the circles among samples, given as paths and texts.
fn circles_of(samples: &[(&str, &str)]) -> Vec<String> {
    circles(&samples.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect::<Vec<_>>())
}

#[test]
fn circles_of_imports_are_found() {
    let direct =
        [("src/a/b.rs", "use super::c::X;"), ("src/a/c.rs", "fn f() { crate::a::b::g() }"), ("src/a/mod.rs", "")];
    assert_eq!(circles_of(&direct), ["a: b c"]);
    let of_three = [
        ("src/a/b.rs", "use super::{c::X, Y};"),
        ("src/a/c.rs", "use crate::{a::{d as e, Z}, other};"),
        ("src/a/d.rs", "use super::b;"),
        ("src/a/mod.rs", "pub struct Y; pub struct Z;"),
        ("src/other.rs", ""),
    ];
    assert_eq!(circles_of(&of_three), ["a: b c d"]);
    let by_re_export = [
        ("src/a/b.rs", "use super::X;"),
        ("src/a/c.rs", "use super::{b, W};"),
        ("src/a/mod.rs", "mod b;\nmod c;\npub use c::{W, X};"),
    ];
    assert_eq!(circles_of(&by_re_export), ["a: b c"]);
    let of_folders = [
        ("src/a/b/mod.rs", "pub mod x;"),
        ("src/a/b/x.rs", "use crate::a::c;"),
        ("src/a/b/y.rs", ""),
        ("src/a/c.rs", "use super::b::y;"),
        ("src/a/mod.rs", ""),
    ];
    assert_eq!(circles_of(&of_folders), ["a: b c"]);
    assert_eq!(circles_of(&[("src/a.rs", "use crate::b::x;"), ("src/b.rs", "use super::a::y;")]), ["crate: a b"]);
    assert_eq!(
        circles_of(&[
            ("src/a/b.rs", "use self::x::X;"),
            ("src/a/b/x.rs", "use super::y::Y;"),
            ("src/a/b/y.rs", "use super::x::X;")
        ]),
        ["a/b: x y"]
    );
}

#[test]
fn a_module_and_its_parts_are_no_circle() {
    let parts = [
        ("src/a/b.rs", "use super::X;\nuse crate::a::{self, f};"),
        ("src/a/mod.rs", "mod b;\npub use b::Y;\npub struct X;\nfn f() { b::g() }"),
    ];
    assert_eq!(circles_of(&parts), Vec::<String>::new());
    let tests = [
        ("src/a/b.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::a::c::x;\n}\n"),
        ("src/a/c.rs", "use super::b::f;"),
        ("src/a/mod.rs", "// use crate::a::b\nconst X: &str = \"super::c::x\";"),
    ];
    assert_eq!(circles_of(&tests), Vec::<String>::new());
}

#[test]
fn long_functions_are_found() {
    let long = "fn short() {}\nimpl X {\n    fn long(at: [u8; 3]) -> u8 {\n        if a { b }\n        c\n    }\n}\n\
                trait T { fn none(&self); }\n";
    let found: Vec<_> =
        long_functions(long, 3).into_iter().map(|found| (found.line, found.name, found.lines)).collect();
    assert_eq!(found, [(3, "long".to_owned(), 4)]);
    assert!(long_functions(long, 4).is_empty());
}

#[test]
fn traits_with_one_implementation_are_found() {
    let found =
        |codes: &[&str]| traits_with_one_implementation(&codes.iter().map(|code| lex(code).code).collect::<Vec<_>>());
    let (one, two) = ("pub trait Clock: Send {}\nimpl Clock for A {}", "impl<'a> Clock for B<'a> {}");
    assert_eq!(found(&[one]), ["Clock"]);
    assert_eq!(found(&[one, "// impl Clock for C\nfn f(clock: &dyn Clock) { for x in y {} }"]), ["Clock"]);
    assert_eq!(found(&[one, two]), Vec::<String>::new());
    assert_eq!(found(&["trait Of<T> {}\nimpl Of<u8> for A {}\nimpl crate::Of<u16> for A {}"]), Vec::<String>::new());
}

#[test]
fn dependencies_are_counted() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na = \"1\"\n# note\nb = { version = \"1\" }\n\n\
                    [target.'cfg(unix)'.dependencies]\nc = \"1\"\n[dependencies.d]\nversion = \"1\"\n\
                    [dev-dependencies]\ne = \"1\"\n";
    assert_eq!(direct_dependencies(manifest), 4);
    assert_eq!(locked_packages("version = 4\n[[package]]\nname = \"a\"\n\n[[package]]\nname = \"b\"\n"), 2);
}

#[test]
fn section_signs_are_found() {
    assert_eq!(check_section_sign("src/x.rs", "//! x\n// see \u{a7}4\n").len(), 1);
    assert!(check_section_sign("src/x.rs", "//! see The store\n").is_empty());
}

#[test]
fn names_of_documents_that_do_not_exist_are_found() {
    let (paths, functions) = (["src/a/b.rs".to_owned()], ["a_run_ends".to_owned()]);
    let unknown = |markdown: &str| unknown_names(markdown, &paths, &functions);
    assert_eq!(unknown("`c.rs` and `a/c.rs`, `c/`; `a_walk_…`\n"), ["c.rs", "a/c.rs", "c/", "a_walk_…"]);
    let good = "`b.rs`, `a/b.rs`, `a/`, `a_run_…`, `VERB.rs`\n\n```\n`c.rs`\n```\n";
    assert_eq!(unknown(good), Vec::<String>::new());
}
