//! The main help page: the verbs in groups, the most used first.

use clap::Command;

/// The verbs in the order in which the help page lists them.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Most used", &["restore", "run", "status"]),
    ("Schedules", &["create", "list", "show", "edit", "pause", "resume", "delete", "next"]),
    ("Runs and archives", &["history", "backups", "ls", "cat", "find", "diff", "cancel", "accept"]),
    ("Verification and retention", &["verify", "repair", "drill", "prune", "pin", "forget", "rescan"]),
    ("Service and settings", &["start", "stop", "serve", "apply", "import", "export", "config"]),
];

/// Returns `command` with a help page that lists its subcommands in groups.
pub fn grouped(command: Command) -> Command {
    let mut verbs = String::new();
    for (heading, names) in GROUPS {
        verbs += &format!("{heading}:\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            verbs += &format!("  {name:<12} {}\n", about.map(ToString::to_string).unwrap_or_default());
        }
        verbs.push('\n');
    }
    // Else `--keep-last -1` is an unexpected argument "-1" instead of an invalid value.
    command.mut_subcommands(|verb| verb.allow_negative_numbers(true)).help_template(format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n\n{verbs}Options:\n{{options}}{{after-help}}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::path::Path;

    /// Returns the lines in the code blocks of a Markdown file.
    fn code_blocks(markdown: &str) -> String {
        let blocks = markdown.split("\n```").skip(1).step_by(2);
        blocks.collect::<Vec<_>>().join("\n")
    }

    /// Splits a line as a shell does: at spaces outside quotes, up to a comment or a further command.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in line.chars() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '"' | '\'') => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (None, ' ') => words.extend(word.take()),
                (None, '#') if word.is_none() => break,
                (None, '|' | '>' | '&' | ';') => break,
                (_, c) => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        words
    }

    /// Parses each line of `text` that is a command of this program, and returns how many there are.
    fn check(source: &str, text: &str) -> usize {
        let lines = text.lines().map(|line| line.trim().trim_start_matches("$ "));
        let examples: Vec<&str> = lines.filter(|line| line.starts_with("backup-manager ")).collect();
        for example in &examples {
            let parsed = crate::cli::Cli::command().try_get_matches_from(words(example));
            let is_help = |error: &clap::Error| !error.use_stderr();
            assert!(parsed.as_ref().err().is_none_or(is_help), "{source}: {example}: {}", parsed.unwrap_err());
        }
        examples.len()
    }

    #[test]
    fn examples_in_help_pages_and_in_the_documentation_parse() {
        let mut command = grouped(crate::cli::Cli::command());
        command.build();
        check("--help", &command.render_long_help().to_string());
        for verb in command.get_subcommands_mut() {
            let usage = verb.render_usage().to_string();
            let page = verb.render_long_help().to_string().replace(&usage, "");
            check(verb.get_name(), &page);
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (file, count) in [("README.md", 10), ("docs/from-python.md", 5)] {
            let found = check(file, &code_blocks(&std::fs::read_to_string(root.join(file)).unwrap()));
            assert!(found >= count, "{found} examples are found in {file}");
        }
    }

    #[test]
    fn every_verb_is_in_one_group() {
        let command = crate::cli::Cli::command();
        let visible = command.get_subcommands().filter(|verb| !verb.is_hide_set()).map(Command::get_name);
        let mut visible: Vec<&str> = visible.collect();
        let mut shown: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        visible.sort_unstable();
        shown.sort_unstable();
        assert_eq!(shown, visible);
    }
}
