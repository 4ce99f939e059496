//! The page that `--help` shows: the verbs in groups, the ones that matter most first.

use clap::Command;

/// The verbs in the order in which they are shown.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Most used", &["restore", "run", "status"]),
    ("Schedules", &["create", "list", "show", "edit", "pause", "resume", "delete", "next"]),
    ("Runs and archives", &["history", "backups", "ls", "cat", "find", "diff", "cancel", "accept"]),
    ("Trust", &["verify", "drill", "prune", "pin", "forget", "rescan"]),
    ("Service and settings", &["start", "stop", "serve", "import", "export", "config"]),
];

/// Makes the help page of `command` show its subcommands in groups.
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
    command.help_template(format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n\n{verbs}Options:\n{{options}}{{after-help}}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_verb_stands_in_one_group() {
        let command = crate::cli::Cli::command();
        let visible = command.get_subcommands().filter(|verb| !verb.is_hide_set()).map(Command::get_name);
        let mut visible: Vec<&str> = visible.collect();
        let mut shown: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        visible.sort_unstable();
        shown.sort_unstable();
        assert_eq!(shown, visible);
    }
}
