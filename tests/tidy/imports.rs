//! Imports between the top-level modules: down the layers of `MODULES`, sideways only where it says so.

use super::lexer::is_word;
use super::{ANY, Finding, MODULES, line_of, places_of};

/// Checks the imports of one file below `src/`.
pub fn check_imports(file: &str, code: &str) -> Vec<Finding> {
    let (module, is_own_file) = module_of(file);
    let mut found = Vec::new();
    let mut report = |at: usize, rule: String| found.push(Finding::new(file, line_of(code, at), rule));
    for at in places_of(code, "super::super") {
        report(at, "an import climbs two modules: write crate::".to_owned());
    }
    if module == "lib" {
        return found;
    }
    let Some((layer, peers)) = layer_of(module) else {
        report(0, format!("the module {module} has no layer: give it one in MODULES of tests/tidy.rs"));
        return found;
    };
    for (at, name) in imports_of(code, is_own_file) {
        match layer_of(&name) {
            _ if name == module => {}
            _ if name == "*" => report(at, "an import of everything (crate::*): name what is used".to_owned()),
            None => report(at, format!("an import of {name}, a module that has no layer in MODULES")),
            Some((other, _)) if other > layer => {
                report(at, format!("an import goes up: {module} (layer {layer}) uses {name} (layer {other})"));
            }
            Some((other, _)) if other == layer && peers != ANY && !peers.contains(&name.as_str()) => {
                report(at, format!("an import goes sideways: {module} uses {name}, both in layer {layer}"));
            }
            Some(_) => {}
        }
    }
    found
}

/// Returns the top-level module that a file below `src/` belongs to, and whether it is that module's own file.
pub fn module_of(file: &str) -> (&str, bool) {
    let inside = file.strip_prefix("src/").unwrap_or(file);
    match inside.split_once('/') {
        Some((folder, rest)) => (folder, rest == "mod.rs"),
        None => (inside.trim_end_matches(".rs"), true),
    }
}

fn layer_of(module: &str) -> Option<(u8, &'static [&'static str])> {
    MODULES.iter().find(|(name, ..)| *name == module).map(|&(_, layer, peers)| (layer, peers))
}

/// Returns the offsets and names of the top-level modules that a file names in its paths.
fn imports_of(code: &str, is_own_file: bool) -> Vec<(usize, String)> {
    let mut imports = Vec::new();
    for root in ["crate::", "backup_manager::", "super::"] {
        for at in places_of(code, root).map(|at| at + root.len()) {
            let names = first_names(&code[at..]).into_iter().map(|(offset, name)| (at + offset, name));
            // In a module's own file `super` is the crate, or the module itself for its tests.
            let counts = |name: &str| root != "super::" || (is_own_file && layer_of(name).is_some());
            imports.extend(names.filter(|(_, name)| counts(name)));
        }
    }
    imports
}

/// Returns the first names of the paths that `rest` begins with, with their offsets: one, or one a branch of `{...}`.
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
