//! Circles of imports between the parts of one module: part A imports from part B, and B, by way of others, from A.
//!
//! The parts of a module are the files beside its `mod.rs`, and folders, each as a whole. A module's own file is no
//! part: it may use its parts, and they may use what it defines. What it only re-exports counts as the part's.

use std::collections::{BTreeMap, BTreeSet};

use super::lexer::{is_word, lex};
use super::places_of;

/// A module's path without `crate`, such as `["archive", "members"]`; the root of the crate is empty.
type ModulePath = Vec<String>;

/// Returns the circles among `files` below `src/` (paths and texts), each as `MODULE: PART PART...`, in order.
pub fn circles(files: &[(String, String)]) -> Vec<String> {
    let modules: BTreeMap<ModulePath, String> =
        files.iter().filter_map(|(file, text)| Some((path_of(file)?, without_tests(&lex(text).code)))).collect();
    let mut edges: BTreeMap<ModulePath, BTreeSet<(String, String)>> = BTreeMap::new();
    for (module, code) in &modules {
        for imported in imports_of(module, code) {
            let target = resolve(&modules, &imported);
            let shared = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (module.get(shared), target.get(shared)) {
                edges.entry(module[..shared].to_vec()).or_default().insert((from.clone(), to.clone()));
            }
        }
    }
    let named = |module: &ModulePath| if module.is_empty() { "crate".to_owned() } else { module.join("/") };
    edges
        .iter()
        .flat_map(|(module, edges)| {
            groups_in_circles(edges).into_iter().map(move |group| format!("{}: {}", named(module), group.join(" ")))
        })
        .collect()
}

/// Returns the module that a file below `src/` is, or `None` for the roots of the crates.
fn path_of(file: &str) -> Option<ModulePath> {
    let inside = file.strip_prefix("src/")?.strip_suffix(".rs")?;
    let inside = inside.strip_suffix("/mod").unwrap_or(inside);
    (!matches!(inside, "lib" | "main")).then(|| inside.split('/').map(str::to_owned).collect())
}

/// Returns the code before the tests at its end: what tests import makes no circle.
fn without_tests(code: &str) -> String {
    let end = code.match_indices("#[cfg(test)]").find(|(at, attribute)| {
        let rest = code[at + attribute.len()..].trim_start();
        rest.starts_with("mod ") && rest.find('{') < rest.find(';').or(Some(usize::MAX))
    });
    code[..end.map_or(code.len(), |(at, _)| at)].to_owned()
}

/// Returns the paths, from the root of the crate, of all that a module names by `crate::`, `super::` or `self::`.
fn imports_of(module: &[String], code: &str) -> Vec<ModulePath> {
    let parent = &module[..module.len() - 1];
    let roots = [("crate::", &[] as &[String]), ("super::", parent), ("self::", module)];
    let mut found = Vec::new();
    for (root, base) in roots {
        for at in places_of(code, root) {
            branches(&code[at + root.len()..], base, &mut found);
        }
    }
    found
}

/// Adds the paths that the use tree at the start of `rest` names, each below `prefix`; returns what comes after it.
fn branches<'a>(rest: &'a str, prefix: &[String], found: &mut Vec<ModulePath>) -> &'a str {
    if let Some(mut rest) = rest.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            if rest.is_empty() || rest.starts_with('}') {
                return rest.get(1..).unwrap_or_default();
            }
            rest = branches(rest, prefix, found);
            rest = &rest[rest.find([',', '}']).unwrap_or(rest.len())..];
        }
    }
    let end = rest.find(|c| !is_word(Some(c)) && c != '*').unwrap_or(rest.len());
    if end == 0 {
        return rest;
    }
    let mut path = prefix.to_vec();
    path.push(rest[..end].to_owned());
    let rest = &rest[end..];
    match rest.strip_prefix("::") {
        Some(rest) => branches(rest, &path, found),
        None => {
            found.push(path);
            rest
        }
    }
}

/// Returns the module that defines what `path` names, past re-exports.
fn resolve(modules: &BTreeMap<ModulePath, String>, path: &[String]) -> ModulePath {
    let mut path = path.to_vec();
    // Re-exports lead further down at each step, so their number is bounded by the depth of the tree.
    for _ in 0..4 {
        let depth = (0..=path.len()).rev().find(|&depth| modules.contains_key(&path[..depth]));
        let Some(depth) = depth.filter(|&depth| depth < path.len()) else { break };
        let exported = exports_of(&path[..depth], &modules[&path[..depth]], modules);
        let Some(origin) = exported.into_iter().find(|origin| origin.last() == Some(&path[depth])) else {
            return path[..depth].to_vec();
        };
        path = origin;
    }
    let depth = (0..=path.len()).rev().find(|&depth| modules.contains_key(&path[..depth]));
    path[..depth.unwrap_or(0)].to_vec()
}

/// Returns the paths that a module takes from its own parts by `use`.
fn exports_of(module: &[String], code: &str, modules: &BTreeMap<ModulePath, String>) -> Vec<ModulePath> {
    let mut found = Vec::new();
    for at in places_of(code, "use ") {
        let rest = code[at + "use ".len()..].trim_start();
        branches(rest.strip_prefix("self::").unwrap_or(rest), module, &mut found);
    }
    found.retain(|path| path.len() > module.len() + 1 && modules.contains_key(&path[..=module.len()]));
    found
}

/// Returns the groups of nodes that all lead to each other, each in order.
fn groups_in_circles(edges: &BTreeSet<(String, String)>) -> Vec<Vec<String>> {
    let reachable = |start: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start.to_owned()]);
        while let Some(node) = open.pop() {
            let next = edges.iter().filter(|(from, _)| *from == node).map(|(_, to)| to.clone());
            open.extend(next.filter(|to| seen.insert(to.clone())));
        }
        seen
    };
    let nodes: BTreeSet<&String> = edges.iter().map(|(from, _)| from).collect();
    let reached: BTreeMap<&String, BTreeSet<String>> = nodes.iter().map(|&node| (node, reachable(node))).collect();
    let groups: BTreeSet<Vec<String>> = reached
        .iter()
        .filter(|(node, seen)| seen.contains(**node))
        .map(|(node, seen)| seen.iter().filter(|&to| reached.get(to).is_some_and(|back| back.contains(*node))))
        .map(|group| group.cloned().collect())
        .collect();
    groups.into_iter().collect()
}
