//! Reads the sources and fails on what the house does not want, with file, line and rule.
//!
//! To let a new top-level module in, give it a floor in [`MODULES`].

#[path = "tidy/detector.rs"]
mod detector;
#[path = "tidy/take_apart.rs"]
mod take_apart;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use take_apart::{Parts, is_word, take_apart};

/// Every top-level module, its floor, and what it may use on that floor. Imports go down, sideways only as said here.
const MODULES: &[(&str, u8, &[&str])] = &[
    // Floor 0: values and functions that know no resource.
    ("error", 0, ANY),
    ("clock", 0, ANY),
    ("home", 0, ANY),
    ("cancel", 0, ANY),
    ("progress", 0, ANY),
    ("member", 0, ANY),
    ("chunk", 0, ANY),
    ("archive_name", 0, ANY),
    ("schedule", 0, ANY),
    // Floor 1: one resource each. `durable` replaces files safely for its neighbours; else they never use each other.
    ("durable", 1, &[]),
    ("liveness", 1, &[]),
    ("store", 1, &[]),
    ("source", 1, &[]),
    ("archive", 1, &["durable"]),
    ("confined", 1, &["durable"]),
    // Floor 2: where two resources meet, for the acts above.
    ("archive_folder", 2, &[]),
    ("import_export", 2, &[]),
    ("browse", 2, &[]),
    // Floor 3: acts.
    ("restore", 3, &[]),
    ("maintenance", 3, &["restore"]),
    ("backup", 3, &["maintenance"]),
    ("health", 3, &[]),
    // Floor 4: the service.
    ("service", 4, &[]),
    // Floor 5: the edge.
    ("cli", 5, ANY),
    ("main", 5, ANY),
];

/// All neighbours.
const ANY: &[&str] = &["*"];

const MOST_LINES: usize = 800;
const MANY_LINES: usize = 500;
const MOST_COLUMNS: usize = 120;

/// Ways to ask the system what time it is.
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

/// The same in SQL: values, and functions that take `'now'` or, given nothing, mean it.
const CLOCK_VALUES: &[&str] = &["current_timestamp", "current_date", "current_time"];
const CLOCK_FUNCTIONS: &[&str] = &["date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff"];

/// What a string of SQL begins with.
const SQL_WORDS: &str = "SELECT INSERT UPDATE DELETE REPLACE PRAGMA CREATE ALTER DROP WITH BEGIN COMMIT ROLLBACK \
                         SAVEPOINT RELEASE VACUUM ATTACH DETACH ANALYZE REINDEX";

const NAMES_THAT_SAY_NOTHING: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc"];

/// Code that must not stay, wherever it stands.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// Returns the byte offsets where `words` stands in `code`, not as a part of longer words.
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

/// Returns the first names of the paths that `rest` begins with, one or one for each branch of `{...}`, with offsets.
fn first_names(rest: &str) -> Vec<(usize, String)> {
    let name_at = |at: usize| rest[at..].chars().take_while(|&c| is_word(Some(c)) || c == '*').collect::<String>();
    if !rest.starts_with('{') {
        return vec![(0, name_at(0))];
    }
    let (mut depth, mut names, mut expecting) = (0, Vec::new(), false);
    for (at, c) in rest.char_indices() {
        match c {
            '{' => (depth, expecting) = (depth + 1, depth == 0),
            '}' => depth -= 1,
            ',' => expecting = depth == 1,
            c if expecting && !c.is_whitespace() => {
                names.push((at, name_at(at)));
                expecting = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn floor_of(module: &str) -> Option<(u8, &'static [&'static str])> {
    MODULES.iter().find(|(name, ..)| *name == module).map(|&(_, floor, neighbours)| (floor, neighbours))
}

/// Returns the top-level module that a file below `src/` belongs to, and whether it is that module's own file.
fn module_of(file: &str) -> (&str, bool) {
    let inside = file.strip_prefix("src/").unwrap_or(file);
    match inside.split_once('/') {
        Some((folder, rest)) => (folder, rest == "mod.rs"),
        None => (inside.trim_end_matches(".rs"), true),
    }
}

/// Returns the offsets and names of the top-level modules that a file names in its paths.
fn imports_of(code: &str, is_own_file: bool) -> Vec<(usize, String)> {
    let mut imports = Vec::new();
    for root in ["crate::", "backup_manager::", "super::"] {
        for at in places_of(code, root).map(|at| at + root.len()) {
            let names = first_names(&code[at..]).into_iter().map(|(offset, name)| (at + offset, name));
            // In a module's own file `super` is the crate, or the module itself for its tests.
            let counts = |name: &str| root != "super::" || (is_own_file && floor_of(name).is_some());
            imports.extend(names.filter(|(_, name)| counts(name)));
        }
    }
    imports
}

/// Checks the imports of one file below `src/`.
fn check_imports(file: &str, code: &str, found: &mut Vec<Finding>) {
    let (module, is_own_file) = module_of(file);
    let mut tell =
        |at: usize, rule: String| found.push(Finding { file: file.to_owned(), line: line_of(code, at), rule });
    for at in places_of(code, "super::super") {
        tell(at, "an import climbs two modules: write crate::".to_owned());
    }
    if module == "lib" {
        return;
    }
    let Some((floor, neighbours)) = floor_of(module) else {
        tell(0, format!("the module {module} is new: say on which floor it stands (MODULES in tests/tidy.rs)"));
        return;
    };
    for (at, name) in imports_of(code, is_own_file) {
        match floor_of(&name) {
            _ if name == module => {}
            _ if name == "*" => tell(at, "an import of everything (crate::*): name what is used".to_owned()),
            None => tell(at, format!("an import of {name}, which is no module: say on which floor it stands")),
            Some((other, _)) if other > floor => {
                tell(at, format!("an import goes up: {module} (floor {floor}) uses {name} (floor {other})"));
            }
            Some((other, _)) if other == floor && neighbours != ANY && !neighbours.contains(&name.as_str()) => {
                tell(at, format!("an import goes sideways: {module} uses {name}, both on floor {floor}"));
            }
            Some(_) => {}
        }
    }
}

/// Checks what holds for every Rust file of the project.
fn check_everywhere(file: &str, text: &str, code: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut tell = |line: usize, rule: String| found.push(Finding { file: file.to_owned(), line, rule });
    let lines = text.lines().count();
    if lines > MOST_LINES {
        tell(lines, format!("the file has {lines} lines, and {MOST_LINES} are the most"));
    } else if lines > MANY_LINES {
        eprintln!("warning: {file} has {lines} lines, more than {MANY_LINES}");
    }
    for (index, line) in text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > MOST_COLUMNS {
            tell(index + 1, format!("the line has {columns} columns, and {MOST_COLUMNS} are the most"));
        }
    }
    for word in UNFINISHED {
        places_of(code, word).for_each(|at| tell(line_of(code, at), format!("{word} must not stay")));
    }
    let path = Path::new(file).with_extension("");
    let parts = path.components().filter_map(|part| part.as_os_str().to_str());
    let named = parts.map(|part| (1, part));
    let declared = NAMES_THAT_SAY_NOTHING.iter().flat_map(|&name| {
        let declarations = places_of(code, name).filter(|&at| code[..at].ends_with("mod "));
        declarations.map(move |at| (line_of(code, at), name))
    });
    for (line, name) in named.chain(declared).filter(|(_, name)| NAMES_THAT_SAY_NOTHING.contains(name)) {
        tell(line, format!("a module called {name} says nothing of what it holds"));
    }
    found
}

/// Checks one file below `src/`.
fn check_source(file: &str, text: &str) -> Vec<Finding> {
    let Parts { code, strings } = take_apart(text);
    let mut found = check_everywhere(file, text, &code);
    check_imports(file, &code, &mut found);
    let (module, _) = module_of(file);
    let mut tell = |line: usize, rule: String| found.push(Finding { file: file.to_owned(), line, rule });
    for call in CLOCK_CALLS.iter().filter(|_| module != "clock") {
        for at in places_of(&code, call) {
            tell(line_of(&code, at), format!("{call} stands outside clock: take a Timestamp or a Clock"));
        }
    }
    for at in places_of(&code, "dead_code") {
        let attribute = code[..at].rfind('#').map_or("", |start| &code[start..at]);
        if !attribute.contains(']') && (attribute.contains("allow(") || attribute.contains("expect(")) {
            tell(line_of(&code, at), "dead_code is allowed: take out the code instead".to_owned());
        }
    }
    for (line, string) in &strings {
        if let Some(word) = sql_word(string).filter(|_| module != "store") {
            tell(*line, format!("SQL ({word}) stands outside store"));
        }
        check_sql_clock(string).into_iter().for_each(|(below, rule)| tell(line + below, rule));
    }
    found
}

/// Returns the word of SQL that a string literal begins with, if it does.
fn sql_word(literal: &str) -> Option<&'static str> {
    let inside = literal.trim_start_matches(['r', '#', '"']).trim_start_matches(['\\', ' ', '\n', '\t']);
    SQL_WORDS.split(' ').find(|word| {
        let rest = inside.strip_prefix(word);
        rest.is_some_and(|rest| !is_word(rest.chars().next()))
    })
}

/// Finds SQL that asks what time it is: how many lines below the start, and the rule.
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
    let rule = |name: &str| format!("{name} asks the clock in SQL: give the time as a parameter");
    values.chain(functions).map(|(at, name)| (line_of(&lower, at) - 1, rule(name))).collect()
}

/// Returns those of `files` (paths and texts) that no root reaches by `mod` declarations.
fn forgotten(files: &[(String, String)], is_root: impl Fn(&str) -> bool) -> Vec<String> {
    let mut open: Vec<String> = files.iter().map(|(file, _)| file.clone()).filter(|file| is_root(file)).collect();
    let mut reached: BTreeSet<String> = open.iter().cloned().collect();
    while let Some(file) = open.pop() {
        let text = files.iter().find(|(name, _)| *name == file).map_or("", |(_, text)| text);
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
        // A root or a mod.rs has its parts beside it; any other file has them in a folder of its own name.
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
    let Parts { code, strings } = take_apart(text);
    let named = places_of(&code, "mod ").filter_map(|at| {
        let rest = &code[at + "mod ".len()..];
        let name: String = rest.chars().take_while(|&c| is_word(Some(c))).collect();
        rest[name.len()..].trim_start().starts_with(';').then_some(name)
    });
    let lines: Vec<&str> = code.lines().collect();
    let paths = strings.iter().filter(|(line, _)| lines[line - 1].contains("#[path"));
    named.chain(paths.map(|(_, literal)| literal.trim_matches('"').to_owned())).collect()
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
            let path = entry.expect("a folder of the project can be read").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let name = path.strip_prefix(root()).expect("it lies in the project").to_string_lossy().into_owned();
                files.push((name, fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))));
            }
        }
    }
    files.sort();
    files
}

fn assert_none(findings: Vec<Finding>) {
    let list: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(list.is_empty(), "{} findings:\n{}", list.len(), list.join("\n"));
}

#[test]
fn the_sources_are_tidy() {
    let sources = read_all("src", "rs");
    assert!(sources.iter().any(|(file, _)| file == "src/lib.rs"), "the sources are not where they should be");
    assert_none(sources.iter().flat_map(|(file, text)| check_source(file, text)).collect());
}

#[test]
fn tests_and_benches_are_tidy() {
    let files = [read_all("tests", "rs"), read_all("benches", "rs")].concat();
    assert_none(files.iter().flat_map(|(file, text)| check_everywhere(file, text, &take_apart(text).code)).collect());
}

#[test]
fn migrations_do_not_ask_the_clock() {
    let found = read_all("migrations", "sql").into_iter().flat_map(|(file, text)| {
        let rules = check_sql_clock(&text).into_iter();
        rules.map(move |(below, rule)| Finding { file: file.clone(), line: below + 1, rule })
    });
    assert_none(found.collect());
}

#[test]
fn no_file_is_forgotten() {
    let is_test_root = |file: &str| {
        let inside = file.strip_prefix("tests/").unwrap_or(file);
        !inside.contains('/') || (inside.ends_with("/main.rs") && inside.matches('/').count() == 1)
    };
    let mut left = forgotten(&read_all("tests", "rs"), is_test_root);
    left.extend(forgotten(&read_all("src", "rs"), |file| file == "src/lib.rs" || file == "src/main.rs"));
    assert!(left.is_empty(), "no mod declaration reaches these, so cargo passes over them: {left:?}");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest can be read");
    assert!(!manifest.contains("autotests"), "Cargo.toml: autotests would let tests be forgotten");
}
