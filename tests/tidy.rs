//! Reads the sources and fails on what the rules of the project forbid, with file, line and rule.
//!
//! To let a new top-level module in, give it a layer in [`MODULES`].

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/detector.rs"]
mod detector;
#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/items.rs"]
mod items;
#[path = "tidy/lexer.rs"]
mod lexer;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use circles::circles;
use documents::unknown_names;
use imports::{check_imports, module_of};
use items::{direct_dependencies, locked_packages, long_functions, traits_with_one_implementation};
use lexer::{Lexed, is_word, lex};

/// Every top-level module, its layer, and what it may use in that layer. Imports go down, sideways only as listed here.
const MODULES: &[(&str, u8, &[&str])] = &[
    // Layer 0: values and functions that know no resource.
    ("error", 0, ANY),
    ("clock", 0, ANY),
    ("home", 0, ANY),
    ("owner", 0, ANY),
    ("cancel", 0, ANY),
    ("progress", 0, ANY),
    ("member", 0, ANY),
    ("chunk", 0, ANY),
    ("archive_name", 0, ANY),
    ("schedule", 0, ANY),
    ("words", 0, ANY),
    // Layer 1: one resource each. `durable` replaces files safely for its peers; no others use each other.
    ("durable", 1, &[]),
    ("liveness", 1, &[]),
    ("secrets", 1, &["durable"]),
    ("store", 1, &[]),
    ("source", 1, &[]),
    ("containers", 1, &[]),
    ("archive", 1, &["durable"]),
    ("confined", 1, &["durable"]),
    // Layer 2: where two resources meet.
    ("approval", 2, &[]),
    ("archive_folder", 2, &[]),
    ("import_export", 2, &["approval"]),
    ("browse", 2, &[]),
    ("hooks", 2, &[]),
    // Layer 3: acts.
    ("restore", 3, &[]),
    ("maintenance", 3, &["restore"]),
    ("backup", 3, &["maintenance"]),
    ("health", 3, &[]),
    // Layer 4: the service.
    ("service", 4, &[]),
    // Layer 5: the command line.
    ("cli", 5, ANY),
    ("main", 5, ANY),
];

/// All peers.
const ANY: &[&str] = &["*"];

const MAX_LINES: usize = 800;
/// Files that are longer get a warning.
const MANY_LINES: usize = 450;
const MAX_COLUMNS: usize = 120;

/// Functions that are longer get a warning.
const MANY_FUNCTION_LINES: usize = 45;
/// How many functions may be longer. Lower it whenever one is split.
const MAX_LONG_FUNCTIONS: usize = 8;

/// Each dependency is code that nobody here reviews, and minutes of building: a higher number is a decision of its own.
const MAX_DIRECT_DEPENDENCIES: usize = 37;
const MAX_LOCKED_PACKAGES: usize = 250;

/// Calls that read the system's clock.
const CLOCK_CALLS: &[&str] = &[
    "SystemTime::now",
    "Instant::now",
    "Utc::now",
    "Local::now",
    "OffsetDateTime::now",
    "UNIX_EPOCH.elapsed",
    "clock_gettime",
    "gettimeofday",
];

/// The same in SQL: values, and functions that read the clock if their argument is `'now'` or if they have none.
const CLOCK_VALUES: &[&str] = &["current_timestamp", "current_date", "current_time"];
const CLOCK_FUNCTIONS: &[&str] = &["date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff"];

/// The words that a string of SQL begins with.
const SQL_WORDS: &str = "SELECT INSERT UPDATE DELETE REPLACE PRAGMA CREATE ALTER DROP WITH BEGIN COMMIT ROLLBACK \
                         SAVEPOINT RELEASE VACUUM ATTACH DETACH ANALYZE REINDEX";

/// Names of modules that do not say what the module holds.
const VAGUE_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc"];

/// Macros that must not be committed.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

/// One violation of a rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    rule: String,
}

impl Finding {
    fn new(file: &str, line: usize, rule: String) -> Finding {
        Finding { file: file.to_owned(), line, rule }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// Returns the byte offsets of `words` in `code` where they are not parts of longer words.
fn places_of<'a>(code: &'a str, words: &'a str) -> impl Iterator<Item = usize> + 'a {
    let ends_in_word = is_word(words.chars().next_back());
    code.match_indices(words).map(|(at, _)| at).filter(move |&at| {
        let after = code[at + words.len()..].chars().next();
        let before = code[..at].chars().next_back();
        !(is_word(before) || ends_in_word && is_word(after))
    })
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Checks the rules for every Rust file of the project.
fn check_everywhere(file: &str, text: &str, code: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut report = |line: usize, rule: String| found.push(Finding::new(file, line, rule));
    let lines = text.lines().count();
    if lines > MAX_LINES {
        report(lines, format!("the file has {lines} lines; the limit is {MAX_LINES}"));
    } else if lines > MANY_LINES {
        eprintln!("warning: {file} has {lines} lines, more than {MANY_LINES}");
    }
    for (index, line) in text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > MAX_COLUMNS {
            report(index + 1, format!("the line has {columns} columns; the limit is {MAX_COLUMNS}"));
        }
    }
    for word in UNFINISHED {
        places_of(code, word).for_each(|at| report(line_of(code, at), format!("{word} must not be committed")));
    }
    let path = Path::new(file).with_extension("");
    let parts = path.components().filter_map(|part| part.as_os_str().to_str());
    let named = parts.map(|part| (1, part));
    let declared = VAGUE_NAMES.iter().flat_map(|&name| {
        let declarations = places_of(code, name).filter(|&at| code[..at].ends_with("mod "));
        declarations.map(move |at| (line_of(code, at), name))
    });
    for (line, name) in named.chain(declared).filter(|(_, name)| VAGUE_NAMES.contains(name)) {
        report(line, format!("the module name {name} does not say what the module holds"));
    }
    found
}

/// Checks the rules for one file below `src/`.
fn check_source(file: &str, text: &str) -> Vec<Finding> {
    let Lexed { code, strings } = lex(text);
    let mut found = check_everywhere(file, text, &code);
    found.extend(check_imports(file, &code));
    let (module, _) = module_of(file);
    let mut report = |line: usize, rule: String| found.push(Finding::new(file, line, rule));
    for call in CLOCK_CALLS.iter().filter(|_| module != "clock") {
        for at in places_of(&code, call) {
            report(line_of(&code, at), format!("{call} outside clock: take a Timestamp or a Clock"));
        }
    }
    for at in places_of(&code, "dead_code") {
        let attribute = code[..at].rfind('#').map_or("", |start| &code[start..at]);
        if !attribute.contains(']') && (attribute.contains("allow(") || attribute.contains("expect(")) {
            report(line_of(&code, at), "dead_code is allowed: delete the code instead".to_owned());
        }
    }
    for (line, string) in &strings {
        if let Some(word) = sql_word(string).filter(|_| module != "store") {
            report(*line, format!("SQL ({word}) outside store"));
        }
        check_sql_clock(string).into_iter().for_each(|(below, rule)| report(line + below, rule));
    }
    found
}

/// Returns the word of SQL that a string literal begins with, if any.
fn sql_word(literal: &str) -> Option<&'static str> {
    let inside = literal.trim_start_matches(['r', '#', '"']).trim_start_matches(['\\', ' ', '\n', '\t']);
    SQL_WORDS.split(' ').find(|word| {
        let rest = inside.strip_prefix(word);
        rest.is_some_and(|rest| !is_word(rest.chars().next()))
    })
}

/// Finds SQL that reads the clock: how many lines below the start, and the rule.
fn check_sql_clock(sql: &str) -> Vec<(usize, String)> {
    let lower = sql.to_lowercase();
    let values = CLOCK_VALUES.iter().flat_map(|&value| places_of(&lower, value).map(move |at| (at, value)));
    let functions = CLOCK_FUNCTIONS.iter().flat_map(|&function| {
        let calls = places_of(&lower, function).filter(|&at| {
            let after = lower[at + function.len()..].trim_start();
            let arguments = after.strip_prefix('(').and_then(|rest| rest.split(')').next());
            arguments.is_some_and(|arguments| arguments.trim().is_empty() || arguments.contains("'now'"))
        });
        calls.map(move |at| (at, function))
    });
    let rule = |name: &str| format!("{name} reads the clock in SQL: pass the time as a parameter");
    values.chain(functions).map(|(at, name)| (line_of(&lower, at) - 1, rule(name))).collect()
}

/// Returns those of `files` (paths and texts) that no root reaches by `mod` declarations.
fn unreached(files: &[(String, String)], is_root: impl Fn(&str) -> bool) -> Vec<String> {
    let mut open: Vec<String> = files.iter().map(|(file, _)| file.clone()).filter(|file| is_root(file)).collect();
    let mut reached: BTreeSet<String> = open.iter().cloned().collect();
    while let Some(file) = open.pop() {
        let text = files.iter().find(|(name, _)| *name == file).map_or("", |(_, text)| text);
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
        // The parts of a root or a mod.rs lie beside it; those of any other file lie in a folder of its name.
        let beside = is_root(&file) || file.ends_with("/mod.rs");
        let base = if beside { folder } else { file.trim_end_matches(".rs") };
        for name in declared_modules(text) {
            for part in [format!("{base}/{name}.rs"), format!("{base}/{name}/mod.rs"), format!("{folder}/{name}")] {
                if files.iter().any(|(file, _)| *file == part) && reached.insert(part.clone()) {
                    open.push(part);
                }
            }
        }
    }
    files.iter().map(|(file, _)| file.clone()).filter(|file| !reached.contains(file)).collect()
}

/// Returns what a file declares with `mod name;`, and the file names in its `#[path = "..."]`.
fn declared_modules(text: &str) -> Vec<String> {
    let Lexed { code, strings } = lex(text);
    let named = places_of(&code, "mod ").filter_map(|at| {
        let rest = &code[at + "mod ".len()..];
        let name: String = rest.chars().take_while(|&c| is_word(Some(c))).collect();
        rest[name.len()..].trim_start().starts_with(';').then_some(name)
    });
    let lines: Vec<&str> = code.lines().collect();
    let paths = strings.iter().filter(|(line, _)| lines[line - 1].contains("#[path"));
    named.chain(paths.map(|(_, literal)| literal.trim_matches('"').to_owned())).collect()
}

/// Finds the section sign: what it refers to is either a section of `docs/design.md`, which has a name, or unknown to
/// the reader.
fn check_section_sign(file: &str, text: &str) -> Vec<Finding> {
    let lines = text.lines().enumerate().filter(|(_, line)| line.contains('\u{a7}'));
    let rule = || "a section sign: give the section's name".to_owned();
    lines.map(|(index, _)| Finding::new(file, index + 1, rule())).collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Reads all files with such an extension below a folder of the project: their paths from its root, and their texts.
fn read_all(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("the folders of the project are readable").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let name =
                    path.strip_prefix(root()).expect("the path lies in the project").to_string_lossy().into_owned();
                files.push((name, fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))));
            }
        }
    }
    files.sort();
    files
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn assert_none(findings: Vec<Finding>) {
    let list: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(list.is_empty(), "{} findings:\n{}", list.len(), list.join("\n"));
}

#[test]
fn the_sources_are_tidy() {
    let sources = read_all("src", "rs");
    assert!(sources.iter().any(|(file, _)| file == "src/lib.rs"), "the sources are not in src/");
    assert_none(sources.iter().flat_map(|(file, text)| check_source(file, text)).collect());
}

#[test]
fn tests_and_benches_are_tidy() {
    let files = [read_all("tests", "rs"), read_all("benches", "rs")].concat();
    assert_none(files.iter().flat_map(|(file, text)| check_everywhere(file, text, &lex(text).code)).collect());
}

#[test]
fn migrations_do_not_read_the_clock() {
    let found = read_all("migrations", "sql").into_iter().flat_map(|(file, text)| {
        let rules = check_sql_clock(&text).into_iter();
        rules.map(move |(below, rule)| Finding { file: file.clone(), line: below + 1, rule })
    });
    assert_none(found.collect());
}

#[test]
fn every_file_is_reached_by_mod_declarations() {
    let is_test_root = |file: &str| {
        let inside = file.strip_prefix("tests/").unwrap_or(file);
        !inside.contains('/') || (inside.ends_with("/main.rs") && inside.matches('/').count() == 1)
    };
    let mut left = unreached(&read_all("tests", "rs"), is_test_root);
    left.extend(unreached(&read_all("src", "rs"), |file| file == "src/lib.rs" || file == "src/main.rs"));
    assert!(left.is_empty(), "no mod declaration reaches these, so cargo does not compile them: {left:?}");
    assert!(!read("Cargo.toml").contains("autotests"), "Cargo.toml: autotests would leave tests out");
}

#[test]
fn no_import_circle_lies_inside_a_module() {
    let found = circles(&read_all("src", "rs"));
    assert!(found.is_empty(), "these parts import from each other: {found:#?}");
}

#[test]
fn no_trait_has_a_single_implementation() {
    let codes: Vec<String> = read_all("src", "rs").iter().map(|(_, text)| lex(text).code).collect();
    assert_eq!(traits_with_one_implementation(&codes), Vec::<String>::new());
}

#[test]
fn few_functions_are_long() {
    let files = [read_all("src", "rs"), read_all("tests", "rs"), read_all("benches", "rs")].concat();
    let mut count = 0;
    for (file, text) in &files {
        for function in long_functions(&lex(text).code, MANY_FUNCTION_LINES) {
            eprintln!("warning: {file}:{}: {} has {} lines", function.line, function.name, function.lines);
            count += 1;
        }
    }
    assert!(
        count <= MAX_LONG_FUNCTIONS,
        "{count} functions of over {MANY_FUNCTION_LINES} lines; {MAX_LONG_FUNCTIONS} may be"
    );
}

#[test]
fn dependencies_stay_under_their_ceiling() {
    let direct = direct_dependencies(&read("Cargo.toml"));
    let locked = locked_packages(&read("Cargo.lock"));
    assert!(
        direct <= MAX_DIRECT_DEPENDENCIES,
        "{direct} direct dependencies; the ceiling is {MAX_DIRECT_DEPENDENCIES}"
    );
    assert!(locked <= MAX_LOCKED_PACKAGES, "{locked} packages in Cargo.lock; the ceiling is {MAX_LOCKED_PACKAGES}");
}

#[test]
fn the_section_sign_never_appears() {
    let folders = [
        ("src", "rs"),
        ("tests", "rs"),
        ("tests", "sh"),
        ("benches", "rs"),
        ("fuzz/fuzz_targets", "rs"),
        ("migrations", "sql"),
        ("docs", "md"),
    ];
    let mut files: Vec<(String, String)> = folders.iter().flat_map(|(folder, end)| read_all(folder, end)).collect();
    files.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|file| (file.to_owned(), read(file))));
    assert_none(files.iter().flat_map(|(file, text)| check_section_sign(file, text)).collect());
}

#[test]
fn files_and_tests_that_documents_name_exist() {
    let sources = [read_all("src", "rs"), read_all("tests", "rs"), read_all("benches", "rs")].concat();
    let functions: Vec<String> = sources
        .iter()
        .flat_map(|(_, text)| {
            let code = lex(text).code;
            let names = places_of(&code, "fn ").map(|at| code[at + "fn ".len()..].to_owned()).collect::<Vec<_>>();
            names.into_iter().map(|rest| rest.chars().take_while(|&c| is_word(Some(c))).collect())
        })
        .collect();
    let others =
        [read_all("migrations", "sql"), read_all("tests", "snap"), read_all("fuzz/fuzz_targets", "rs")].concat();
    let paths: Vec<String> = sources.iter().chain(&others).map(|(file, _)| file.clone()).collect();
    for document in ["docs/design.md", "CONTRIBUTING.md"] {
        assert_eq!(unknown_names(&read(document), &paths, &functions), Vec::<String>::new(), "{document}");
    }
}
