//! Names in documents that must exist: files, folders and tests.

/// Returns the names in backquotes of a Markdown text that look like a source file, a folder or, with `…` at the end,
/// the beginning of a test's name, and that are none of `paths` and none of `functions`.
///
/// A path may be given from any folder on: `tick.rs` and `service/tick.rs` are both `src/service/tick.rs`.
pub fn unknown_names(markdown: &str, paths: &[String], functions: &[String]) -> Vec<String> {
    let prose = markdown.split("```").step_by(2);
    let quoted = prose.flat_map(|text| text.split('`').skip(1).step_by(2));
    let is_path = |name: &str| {
        let below = format!("/{name}");
        let folder = below.strip_suffix('/').map(|_| below.clone());
        paths
            .iter()
            .map(|path| format!("/{path}"))
            .any(|path| path.ends_with(&below) || folder.as_ref().is_some_and(|folder| path.contains(folder.as_str())))
    };
    let is_missing = |name: &&str| {
        let is_plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_./…".contains(c));
        if let Some(start) = name.strip_suffix('…').filter(|_| is_plain) {
            return !functions.iter().any(|function| function.starts_with(start));
        }
        is_plain && (name.ends_with(".rs") || name.ends_with('/')) && !is_path(name)
    };
    quoted.filter(is_missing).map(str::to_owned).collect()
}
