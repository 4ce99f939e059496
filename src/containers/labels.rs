//! Labels of containers: whether a run stops the container, and what it executes in it. A label decides about its own
//! container, and about nothing else.

use super::container::Labels;

/// Prefix of this program's labels.
const OURS: &str = "backup-manager.";
/// Prefix of the labels of docker-volume-backup, which are understood, too.
const THEIRS: &str = "docker-volume-backup.";
/// Value of docker-volume-backup's stop label, unless the schedule has another one.
pub const DEFAULT_STOP_LABEL: &str = "true";
/// Labels of docker-volume-backup for steps between reading and the end, of which this program has none.
const NOT_CARRIED: [&str; 6] = ["copy-pre", "copy-post", "process-pre", "process-post", "prune-pre", "prune-post"];

/// Whether a run stops a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stopping {
    /// It goes on running.
    #[default]
    No,
    /// It is stopped while the source is read.
    WhileRead,
    /// It is stopped and stays so (`stop-during-backup-no-restart` of docker-volume-backup).
    ForGood,
}

/// What the labels of a container ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Instructions {
    pub(super) stopping: Stopping,
    /// Words of the command before reading.
    pub(super) exec_before: Option<Vec<String>>,
    /// Words of the command after reading.
    pub(super) exec_after: Option<Vec<String>>,
    pub(super) exec_user: Option<String>,
    /// The schedules that it belongs to; `None` for those whose source it mounts.
    pub(super) schedules: Option<Vec<String>>,
    /// Labels of docker-volume-backup that nothing corresponds to.
    pub(super) not_carried: Vec<String>,
}

impl Instructions {
    /// Reads the labels of a container; `None` if none is for this program.
    ///
    /// Errors: the label that is unknown or has an invalid value, with the reason.
    pub(super) fn parse(labels: &Labels, stop_label: &str) -> Result<Option<Instructions>, String> {
        let mut found = Instructions::default();
        let mut is_labelled = false;
        for (label, value) in labels {
            let known = match (label.strip_prefix(OURS), label.strip_prefix(THEIRS)) {
                (Some(name), _) => found.read_ours(name, value),
                (None, Some(name)) => found.read_theirs(name, value, stop_label),
                (None, None) => continue,
            };
            known.map_err(|reason| format!("its label {label}=\"{value}\" {reason}"))?;
            is_labelled = true;
        }
        let exec_label = labels.get("docker-volume-backup.exec-label");
        if stop_label != DEFAULT_STOP_LABEL && exec_label.is_some_and(|value| value != stop_label) {
            (found.exec_before, found.exec_after) = (None, None);
        }
        Ok(is_labelled.then_some(found))
    }

    /// Returns whether a run does anything with the container.
    pub(super) fn asks_for_anything(&self) -> bool {
        self.stopping != Stopping::No || self.exec_before.is_some() || self.exec_after.is_some()
    }

    fn read_ours(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "stop" => match value.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" => self.stopping = Stopping::WhileRead,
                "false" | "0" | "no" => {}
                _ => return Err("is neither true nor false".to_owned()),
            },
            "exec-before" => self.exec_before = Some(words(value)?),
            "exec-after" => self.exec_after = Some(words(value)?),
            "exec-user" => self.exec_user = Some(value.to_owned()).filter(|user| !user.is_empty()),
            "schedule" => self.schedules = Some(value.split(',').map(|name| name.trim().to_owned()).collect()),
            _ => {
                let known = "stop, exec-before, exec-after, exec-user, schedule";
                return Err(format!("is unknown; there are {OURS}{{{known}}}"));
            }
        }
        Ok(())
    }

    /// Ours win where both are given.
    fn read_theirs(&mut self, name: &str, value: &str, stop_label: &str) -> Result<(), String> {
        match name {
            "stop-during-backup" if value == stop_label && self.stopping == Stopping::No => {
                self.stopping = Stopping::WhileRead;
            }
            "stop-during-backup-no-restart" if value == stop_label => self.stopping = Stopping::ForGood,
            "archive-pre" | "exec-pre" if self.exec_before.is_none() => self.exec_before = Some(words(value)?),
            "archive-post" | "exec-post" if self.exec_after.is_none() => self.exec_after = Some(words(value)?),
            "user" if self.exec_user.is_none() => {
                self.exec_user = Some(value.to_owned()).filter(|user| !user.is_empty())
            }
            step if NOT_CARRIED.contains(&step) => self.not_carried.push(format!("{THEIRS}{step}")),
            _ => {}
        }
        Ok(())
    }
}

/// Splits a command into words as a shell does. Nothing is expanded, and no shell executes it.
fn words(command: &str) -> Result<Vec<String>, String> {
    match shell_words::split(command) {
        Ok(words) if !words.is_empty() => Ok(words),
        Ok(_) => Err("is empty".to_owned()),
        Err(_) => Err("has a quote that is not closed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(labels: &[(&str, &str)], stop_label: &str) -> Result<Option<Instructions>, String> {
        let labels = labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Instructions::parse(&labels, stop_label)
    }

    #[test]
    fn both_families_of_labels_say_the_same() {
        let dump = ["/bin/sh", "-c", "pg_dump \"$DB\" > /dump/x"].map(str::to_owned).to_vec();
        let ours = [
            ("backup-manager.stop", "true"),
            ("backup-manager.exec-before", "/bin/sh -c 'pg_dump \"$DB\" > /dump/x'"),
            ("backup-manager.exec-after", "rm /dump/x"),
            ("backup-manager.exec-user", "postgres"),
            ("backup-manager.schedule", "db, photos"),
        ];
        let theirs = [
            ("docker-volume-backup.stop-during-backup", "true"),
            ("docker-volume-backup.archive-pre", "/bin/sh -c 'pg_dump \"$DB\" > /dump/x'"),
            ("docker-volume-backup.exec-post", "rm /dump/x"),
            ("docker-volume-backup.user", "postgres"),
            ("docker-volume-backup.copy-post", "true"),
        ];
        let expected = Instructions {
            stopping: Stopping::WhileRead,
            exec_before: Some(dump),
            exec_after: Some(vec!["rm".to_owned(), "/dump/x".to_owned()]),
            exec_user: Some("postgres".to_owned()),
            schedules: Some(vec!["db".to_owned(), "photos".to_owned()]),
            not_carried: vec![],
        };
        assert_eq!(parse(&ours, "true").unwrap().unwrap(), expected);
        let not_carried = vec!["docker-volume-backup.copy-post".to_owned()];
        let expected = Instructions { schedules: None, not_carried, ..expected };
        assert_eq!(parse(&theirs, "true").unwrap().unwrap(), expected);
        assert_eq!(parse(&[("com.docker.compose.project", "x")], "true"), Ok(None));
    }

    #[test]
    fn the_value_of_their_stop_label_must_be_equal() {
        let stopping = |label: &str, value: &str, stop_label: &str| {
            parse(&[(&format!("docker-volume-backup.{label}"), value)], stop_label).unwrap().unwrap().stopping
        };
        assert_eq!(stopping("stop-during-backup", "daily", "true"), Stopping::No);
        assert_eq!(stopping("stop-during-backup", "daily", "daily"), Stopping::WhileRead);
        assert_eq!(stopping("stop-during-backup", "true", "daily"), Stopping::No);
        assert_eq!(stopping("stop-during-backup-no-restart", "true", "true"), Stopping::ForGood);
        let exec = [("docker-volume-backup.archive-pre", "true"), ("docker-volume-backup.exec-label", "weekly")];
        assert!(parse(&exec, "daily").unwrap().unwrap().exec_before.is_none());
        assert!(parse(&exec, "weekly").unwrap().unwrap().exec_before.is_some());
        assert!(parse(&exec, "true").unwrap().unwrap().exec_before.is_some());
    }

    #[test]
    fn a_label_that_is_not_understood_is_named() {
        for (label, value) in [
            ("backup-manager.stop", "maybe"),
            ("backup-manager.stopp", "true"),
            ("backup-manager.exec-before", "sh -c 'x"),
            ("backup-manager.exec-after", " "),
        ] {
            let error = parse(&[(label, value)], "true").unwrap_err();
            assert!(error.contains(label) && error.contains(value), "{error}");
        }
    }
}
