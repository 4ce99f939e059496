//! Counts of items: long functions, traits with a single implementation, dependencies.

use super::lexer::is_word;
use super::{line_of, places_of};

/// A function that is longer than it should be.
pub struct LongFunction {
    pub line: usize,
    pub name: String,
    /// From the line of `fn` to the closing brace.
    pub lines: usize,
}

/// Returns the functions of more than `max_lines` lines in a source whose strings and comments are blank.
pub fn long_functions(code: &str, max_lines: usize) -> Vec<LongFunction> {
    let lengths = places_of(code, "fn ").filter_map(|at| {
        let name: String = code[at + "fn ".len()..].chars().take_while(|&c| is_word(Some(c))).collect();
        let end = end_of_body(code, at)?;
        let lines = code[at..end].matches('\n').count() + 1;
        Some(LongFunction { line: line_of(code, at), name, lines })
    });
    lengths.filter(|function| function.lines > max_lines).collect()
}

/// Returns the offset of the brace that closes the body of the function at `at`, or `None` if it has no body.
fn end_of_body(code: &str, at: usize) -> Option<usize> {
    let (mut depth, mut nested) = (0, 0);
    for (offset, c) in code[at..].char_indices() {
        match c {
            '(' | '[' if depth == 0 => nested += 1,
            ')' | ']' if depth == 0 => nested -= 1,
            ';' if depth == 0 && nested == 0 => return None,
            '{' => depth += 1,
            '}' if depth == 1 => return Some(at + offset),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Returns the names of the traits that `codes` define and implement for less than two types.
pub fn traits_with_one_implementation(codes: &[String]) -> Vec<String> {
    let traits = codes.iter().flat_map(|code| {
        let names = places_of(code, "trait ").map(|at| &code[at + "trait ".len()..]);
        names.map(|rest| rest.chars().take_while(|&c| is_word(Some(c))).collect::<String>())
    });
    let implementations = |name: &str| -> usize {
        let words = format!("{name} for");
        let generic = format!("{name}<");
        let count = |code: &String| {
            let plain = places_of(code, &words).filter(|&at| in_impl(code, at));
            let with_arguments = places_of(code, &generic).filter(|&at| {
                in_impl(code, at) && code[at..].split('{').next().is_some_and(|head| head.contains(" for "))
            });
            plain.count() + with_arguments.count()
        };
        codes.iter().map(count).sum()
    };
    traits.filter(|name| implementations(name) < 2).collect()
}

/// Returns whether the name at `at` lies in the head of an `impl`.
fn in_impl(code: &str, at: usize) -> bool {
    let start = code[..at].rfind(['{', '}', ';']).map_or(0, |start| start + 1);
    places_of(&code[start..at], "impl").next().is_some()
}

/// Returns the number of direct dependencies that a manifest names, without those for tests and build scripts.
pub fn direct_dependencies(manifest: &str) -> usize {
    let mut in_dependencies = false;
    let mut count = 0;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_dependencies = line == "[dependencies]" || line.ends_with(".dependencies]");
            count += usize::from(line.starts_with("[dependencies."));
        } else if in_dependencies && !line.is_empty() && !line.starts_with('#') {
            count += 1;
        }
    }
    count
}

/// Returns the number of packages in a lock file.
pub fn locked_packages(lock: &str) -> usize {
    lock.lines().filter(|line| line.trim() == "[[package]]").count()
}
