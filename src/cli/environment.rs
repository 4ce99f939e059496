//! Settings in the environment, and those whose value is stored in a file (`NAME_FILE`).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};
use crate::hooks;

/// Parts of names that begin with `BACKUP_` but are no settings: orchestrators inject them for services.
const INJECTED: [&str; 2] = ["_SERVICE_", "_PORT"];
/// All settings.
const SETTINGS: [&str; 16] = [
    "BACKUP_HOME",
    "BACKUP_DB",
    "BACKUP_DIR",
    "BACKUP_LOGS",
    "BACKUP_GROUP_READ",
    "BACKUP_COMPRESS",
    "BACKUP_WORKERS",
    "BACKUP_THREADS",
    "BACKUP_GRACE",
    "BACKUP_NICE",
    "BACKUP_IMPORT",
    "BACKUP_CONFIG",
    "BACKUP_REVERIFY_DAYS",
    "BACKUP_DRILL_DAYS",
    "BACKUP_HISTORY_DAYS",
    "BACKUP_SCRATCH",
];
/// Variables that docker-compose.yml reads and the program does not.
const COMPOSE_VARIABLES: [&str; 2] = ["BACKUP_UID", "BACKUP_GID"];
/// Variables of docker-volume-backup: beginnings of names, or whole ones.
const OF_DOCKER_VOLUME_BACKUP: [&str; 12] = [
    "BACKUP_COMPRESSION",
    "BACKUP_CRON_",
    "BACKUP_EXCLUDE_REGEXP",
    "BACKUP_FROM_SNAPSHOT",
    "BACKUP_SKIP_BACKENDS_FROM_PRUNE",
    "BACKUP_FILENAME",
    "BACKUP_SOURCES",
    "BACKUP_ARCHIVE",
    "BACKUP_RETENTION_DAYS",
    "BACKUP_PRUNING_",
    "BACKUP_STOP_",
    "BACKUP_LATEST_SYMLINK",
];
/// Suffix of a variable that names a file with the value, such as a mounted secret.
const FILE_SUFFIX: &str = "_FILE";

/// Reads the settings given as `NAME_FILE`, and executes this program again in the same process with them as `NAME`.
/// Returns only if there are none, or on an error.
///
/// Errors: `Usage` if a file cannot be read or a setting is given in both forms.
pub fn load_setting_files() -> Result<()> {
    let given = std::env::vars_os().collect();
    let values = read_files(&given)?;
    if values.is_empty() {
        return Ok(());
    }
    // A process cannot safely change its own environment while it may have threads.
    let program = std::env::current_exe().map_err(|e| Error::failed("cannot find this program").because(e))?;
    let mut command = Command::new(program);
    for (name, value) in values {
        command.env_remove(format!("{name}{FILE_SUFFIX}")).env(name, value);
    }
    Err(Error::failed("cannot execute this program again").because(command.args(std::env::args_os().skip(1)).exec()))
}

fn read_files(given: &BTreeMap<OsString, OsString>) -> Result<Vec<(&'static str, OsString)>> {
    let mut values = Vec::new();
    for name in SETTINGS {
        let in_file = format!("{name}{FILE_SUFFIX}");
        let Some(file) = given.get(OsStr::new(&in_file)).filter(|file| !file.is_empty()) else { continue };
        if given.get(OsStr::new(name)).is_some_and(|value| !value.is_empty()) {
            return Err(Error::usage(format!("{name} and {in_file} are both set")).hint("unset one of them"));
        }
        let text = fs::read(Path::new(file)).map_err(|e| {
            Error::usage(format!("{in_file} names {}, which cannot be read", file.to_string_lossy()))
                .because(e)
                .hint(format!("mount that file, or set {name} itself"))
        })?;
        values.push((name, OsStr::from_bytes(text.trim_ascii()).to_owned()));
    }
    Ok(values)
}

/// Fails if a name looks like a setting and is none: a misspelt setting must not be ignored. What commands of runs get
/// is known: they may call this program.
pub fn refuse_unknown_settings(names: impl Iterator<Item = OsString>) -> Result<()> {
    for name in names {
        let name = name.to_string_lossy();
        let ours = name.starts_with("BACKUP_") && !INJECTED.iter().any(|part| name.contains(part));
        // `NAME_FILE` is valid for every setting; with an empty value it counts as not set.
        let setting = name.strip_suffix(FILE_SUFFIX).unwrap_or(&name);
        let is_given = COMPOSE_VARIABLES.contains(&&*name) || hooks::VARIABLES.contains(&&*name);
        if ours && !is_given && OF_DOCKER_VOLUME_BACKUP.iter().any(|begin| name.starts_with(begin)) {
            return Err(Error::usage(format!("{name} is set, which is a setting of docker-volume-backup"))
                .hint("docs/from-docker-volume-backup.md has what corresponds to it; unset it here"));
        }
        if ours && !SETTINGS.contains(&setting) && !is_given {
            return Err(Error::usage(format!("{name} is set, but there is no such setting")).hint(format!(
                "unset it or correct its name; settings are {}, each also as NAME{FILE_SUFFIX}",
                SETTINGS.join(", ")
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_setting_is_refused_and_injected_ones_are_not() {
        let check = |name: &str| refuse_unknown_settings([OsString::from(name)].into_iter());
        for wrong in ["BACKUP_COMPRES", "BACKUP_COMPRES_FILE", "BACKUP_UID_FILE"] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        let fine = ["BACKUP_COMPRESS", "BACKUP_SYSTEM_SERVICE_HOST", "BACKUP_SYSTEM_PORT_80_TCP", "BACKUP_UID", "PATH"];
        assert!(hooks::VARIABLES.iter().all(|name| check(name).is_ok()), "a command may call this program");
        for fine in fine {
            assert!(check(fine).is_ok(), "{fine}");
        }
        assert!(check("BACKUP_DB_FILE").is_ok());
        for theirs in ["BACKUP_CRON_EXPRESSION", "BACKUP_RETENTION_DAYS", "BACKUP_STOP_DURING_BACKUP_LABEL"] {
            let error = check(theirs).unwrap_err();
            let next = error.next_step().unwrap_or_default();
            assert!(error.to_string().contains(theirs) && next.contains("docs/from-docker-volume-backup.md"), "{next}");
        }
    }

    #[test]
    fn a_setting_may_be_stored_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        fs::write(&file, "zstd:7\n").unwrap();
        let mut given = BTreeMap::from([("BACKUP_COMPRESS_FILE".into(), file.clone().into_os_string())]);
        assert_eq!(read_files(&given).unwrap(), [("BACKUP_COMPRESS", OsString::from("zstd:7"))]);
        given.insert("BACKUP_COMPRESS".into(), "gzip".into());
        assert!(read_files(&given).unwrap_err().to_string().contains("both set"));
        given.remove(OsStr::new("BACKUP_COMPRESS"));
        fs::remove_file(&file).unwrap();
        let error = read_files(&given).unwrap_err().to_string();
        assert!(error.contains("BACKUP_COMPRESS_FILE") && error.contains("secret"), "{error}");
    }
}
