//! Which commands of schedules may be executed: those that were approved beside this very database, and only for its
//! owner.
//!
//! A database can be put back from a copy, and a copy lies where others may write. A random token beside the database,
//! which no copy and no archive holds, vouches for its commands: each row has the digest of its command keyed with the
//! token. A command without that digest is *held* until `accept NAME --commands`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use crate::error::{Error, Result};
use crate::home::{Home, as_owner};
use crate::schedule::{CommandKind, Hooks, ScheduleName};
use crate::secrets;
use crate::store::{ScheduleHooks, ScheduleRow, Store};
use crate::words::shell_word;

/// Name of the token among the secrets.
const TOKEN: &str = "commands";
/// What is digested begins with this, so that no digest made for another purpose counts.
const DOMAIN: &str = "backup-manager command 1";

/// Returns what surrounds the runs of a schedule, with commands that may be executed now: the one function that a run
/// calls before it executes anything, and whoever settles what a run left to be undone.
///
/// Errors: `Failed` with the next step if commands are held, or if they or containers are set and the database or its
/// folder belongs to another user than that of this process. Schedules without either have no error.
pub fn hooks_to_execute(home: &Home, store: &Store, row: &ScheduleRow) -> Result<Hooks> {
    let found = store.hooks(row.id)?;
    if !found.hooks.commands.is_empty() || found.hooks.options.containers {
        check_owner(store.path(), &row.schedule.name)?;
    }
    let held = held_commands(home, &row.schedule.name, &found)?;
    if held.is_empty() { Ok(found.hooks) } else { Err(held_error(&row.schedule.name, &held)) }
}

/// Returns the commands that are not approved beside this database.
pub fn held_commands(home: &Home, name: &ScheduleName, found: &ScheduleHooks) -> Result<BTreeMap<CommandKind, String>> {
    if found.hooks.commands.is_empty() {
        return Ok(BTreeMap::new());
    }
    let token = read_token(home)?;
    let is_approved = |kind: CommandKind| {
        let expected = token.as_ref().map(|token| digest(token, name, &found.hooks, kind));
        // Compared in constant time.
        let given = found.approvals.get(&kind).and_then(|bytes| <[u8; 32]>::try_from(&bytes[..]).ok());
        matches!((expected, given), (Some(expected), Some(given)) if expected == given)
    };
    let held = found.hooks.commands.iter().filter(|(kind, _)| !is_approved(**kind));
    Ok(held.map(|(kind, command)| (*kind, command.clone())).collect())
}

/// Returns hooks as a user of this machine gave them, with approvals of the commands that `may_approve` names. The
/// first one makes the token.
pub fn approve(
    home: &Home,
    name: &ScheduleName,
    hooks: Hooks,
    may_approve: impl Fn(CommandKind) -> bool,
) -> Result<ScheduleHooks> {
    let kinds: Vec<CommandKind> = hooks.commands.keys().copied().filter(|kind| may_approve(*kind)).collect();
    let mut approvals = BTreeMap::new();
    if !kinds.is_empty() {
        let token = read_or_make_token(home)?;
        approvals.extend(kinds.iter().map(|kind| (*kind, digest(&token, name, &hooks, *kind).as_bytes().to_vec())));
    }
    Ok(ScheduleHooks { hooks, approvals })
}

/// Describes commands for whoever approves them: `before: 'sh x'; after: 'sh y'`, without control characters.
pub fn describe(commands: &BTreeMap<CommandKind, String>) -> String {
    let word = |(kind, command): (&CommandKind, &String)| {
        let escaped: String = command.chars().flat_map(escape_control).collect();
        format!("{kind}: {}", shell_word(&escaped))
    };
    commands.iter().map(word).collect::<Vec<_>>().join("; ")
}

/// Names the kinds of commands: `before, source`. Errors say no more, since they are kept in the history and in logs,
/// and a command may contain a password.
pub fn kinds(commands: &BTreeMap<CommandKind, String>) -> String {
    commands.keys().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ")
}

fn escape_control(c: char) -> Box<dyn Iterator<Item = char>> {
    if c.is_control() { Box::new(c.escape_debug()) } else { Box::new(std::iter::once(c)) }
}

fn held_error(name: &ScheduleName, held: &BTreeMap<CommandKind, String>) -> Error {
    Error::failed(format!(
        "commands of {name} are held, since nobody approved them beside this database (it was put back, or they were \
         imported): {}",
        kinds(held)
    ))
    .hint(format!("backup-manager accept {} --commands", shell_word(name.as_str())))
}

/// Fails unless the database and its folder belong to the effective user. Otherwise whoever owns them would have
/// commands executed with the rights of this process.
fn check_owner(database: &Path, name: &ScheduleName) -> Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    for path in [database, database.parent().unwrap_or(database)] {
        let owner = fs::metadata(path).map_err(Error::io("inspect", path))?.uid();
        if owner != uid {
            return Err(Error::failed(format!(
                "commands and containers of {name} are left alone: {} belongs to uid {owner}, and this process runs as \
                 uid {uid}",
                path.display()
            ))
            .hint(as_owner(owner).replace("...", &format!("run {}", shell_word(name.as_str())))));
        }
    }
    Ok(())
}

/// Returns the keyed digest of a command with what decides about its rights.
fn digest(token: &[u8; 32], name: &ScheduleName, hooks: &Hooks, kind: CommandKind) -> blake3::Hash {
    let options = &hooks.options;
    let rights = if options.keep_capabilities { "keep-capabilities" } else { "" };
    let container = options.source_container.as_deref().filter(|_| kind == CommandKind::Source).unwrap_or_default();
    // Which containers are stopped, and execute commands of their own.
    let (stops, label) = (if options.containers { "containers" } else { "" }, options.stop_label.as_deref());
    let command = hooks.commands.get(&kind).map_or("", String::as_str);
    let mut hasher = blake3::Hasher::new_keyed(token);
    for part in [DOMAIN, name.as_str(), kind.as_str(), command, rights, container, stops, label.unwrap_or_default()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize()
}

/// Reads the token; `None` if there is none, or what is there is none of ours.
fn read_token(home: &Home) -> Result<Option<[u8; 32]>> {
    let Some(text) = secrets::read_stored(home, TOKEN)? else { return Ok(None) };
    Ok(blake3::Hash::from_hex(text.expose_secret()).ok().map(|hash| *hash.as_bytes()))
}

fn read_or_make_token(home: &Home) -> Result<[u8; 32]> {
    if let Some(token) = read_token(home)? {
        return Ok(token);
    }
    let mut token = [0; 32];
    getrandom::fill(&mut token).map_err(|e| Error::failed("no random bytes").because(std::io::Error::other(e)))?;
    let text = blake3::Hash::from_bytes(token).to_hex();
    secrets::store(home, TOKEN, &SecretString::from(text.as_str()))?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::HomeOptions;

    fn name(text: &str) -> ScheduleName {
        ScheduleName::parse(text).unwrap()
    }

    fn home_in(folder: &Path) -> Home {
        Home::locate(&HomeOptions { home: Some(folder.to_owned()), ..HomeOptions::default() }, folder).unwrap()
    }

    fn hooks() -> Hooks {
        let commands = [(CommandKind::Before, "a"), (CommandKind::Source, "b")];
        Hooks { commands: commands.map(|(kind, text)| (kind, text.to_owned())).into(), ..Hooks::default() }
    }

    #[test]
    fn only_what_was_approved_with_this_token_is_not_held() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (home, other) = (home_in(dir.path()), home_in(other.path()));
        let docs = name("docs");
        let approved = approve(&home, &docs, hooks(), |_| true).unwrap();
        let held = |home: &Home, name: &ScheduleName, found: &ScheduleHooks| {
            held_commands(home, name, found).unwrap().into_keys().collect::<Vec<_>>()
        };
        let both = [CommandKind::Before, CommandKind::Source];
        assert_eq!(held(&home, &docs, &approved), []);
        assert_eq!(held(&other, &docs, &approved), both, "there is no token");
        approve(&other, &docs, hooks(), |_| true).unwrap();
        assert_eq!(held(&other, &docs, &approved), both, "another token");
        assert_eq!(held(&home, &name("docs2"), &approved), both, "of another schedule");
        let change = |change: fn(&mut ScheduleHooks)| {
            let mut changed = approved.clone();
            change(&mut changed);
            held(&home, &docs, &changed)
        };
        assert_eq!(change(|found| drop(found.hooks.commands.insert(CommandKind::Before, "c".to_owned()))), both[..1]);
        assert_eq!(change(|found| found.hooks.options.keep_capabilities = true), both);
        assert_eq!(change(|found| found.hooks.options.containers = true), both);
        assert_eq!(change(|found| found.hooks.options.stop_label = Some("all".to_owned())), both);
        assert_eq!(change(|found| found.hooks.options.source_container = Some("db".to_owned())), both[1..]);
        assert_eq!(change(|found| drop(found.approvals.insert(CommandKind::Before, vec![0; 31]))), both[..1]);
        let swapped = change(|found| {
            found.hooks.commands = [(CommandKind::After, "a".to_owned())].into();
            let approval = found.approvals[&CommandKind::Before].clone();
            found.approvals.insert(CommandKind::After, approval);
        });
        assert_eq!(swapped, [CommandKind::After], "approved for another time");
        let some = approve(&home, &docs, hooks(), |kind| kind == CommandKind::Source).unwrap();
        assert_eq!(held(&home, &docs, &some), both[..1]);
    }

    #[test]
    fn a_description_of_commands_has_no_control_characters() {
        let commands = BTreeMap::from([(CommandKind::Before, "a\u{1b}[2J\nb 'c'".to_owned())]);
        assert_eq!(describe(&commands), r"before: 'a\u{1b}[2J\nb '\''c'\'''");
    }
}
