//! Runs `ls`, `verify` and `restore` of the program, and finds where they contradict each other.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine;
use serde_json::Value;

use crate::extracted::{self, Extracted};

fn program(arguments: &[&str], archive: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["300", env!("CARGO_BIN_EXE_backup-manager"), "--json"]).args(arguments).arg(archive);
    let folder = archive.parent().unwrap();
    command.env_clear().env("TZ", "UTC").env("PATH", "/usr/bin:/bin").current_dir(folder).stdin(Stdio::null());
    command
}

/// Returns whether an exit code means that nothing is damaged or refused.
fn is_whole(code: Option<i32>) -> bool {
    // 3: what the system refused to set, of which `ls` and `verify` know nothing.
    matches!(code, Some(0 | 3))
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// Returns the paths in a list of JSON objects, exact.
fn paths(list: &Value) -> Vec<Vec<u8>> {
    let path = |entry: &Value| match entry["path_b64"].as_str() {
        Some(exact) => base64::engine::general_purpose::STANDARD.decode(exact).unwrap(),
        None => entry["path"].as_str().unwrap_or_default().as_bytes().to_vec(),
    };
    list.as_array().map(|entries| entries.iter().map(path).collect()).unwrap_or_default()
}

/// Restores an archive to `to`. Returns what was restored, and how the verbs contradict each other.
pub fn restore(archive: &Path, to: &Path) -> (Extracted, Vec<String>) {
    let listed = program(&["ls"], archive).output().unwrap();
    let verified = program(&["verify"], archive).output().unwrap();
    let mut restore = program(&["restore", "--devices", "--setuid", "--to"], to);
    restore.arg(archive);
    let report = restore.output().unwrap();
    let extracted = Extracted {
        code: report.status.code(),
        errors: String::from_utf8_lossy(&report.stderr).into_owned() + &shortened(&document(&report)),
        tree: extracted::tree(to),
    };
    let mut found = Vec::new();
    for (verb, output) in [("ls", &listed), ("verify", &verified), ("restore", &report)] {
        if !matches!(output.status.code(), Some(0 | 3 | 4)) {
            let errors = String::from_utf8_lossy(&output.stderr);
            found.push(format!("{verb} ends with {:?}: {}", output.status.code(), errors.trim()));
        }
    }
    let codes = [&listed, &verified, &report].map(|output| output.status.code());
    let [ls_is_whole, verify_is_whole, restore_is_whole] = codes.map(is_whole);
    let (listed, verified) = (document(&listed), document(&verified));
    // `ls` also lists members that a restore refuses for what another member is.
    let may_differ = ls_is_whole && only_refuses_listed(&listed, &verified[0]);
    if verify_is_whole != restore_is_whole || ls_is_whole != verify_is_whole && !may_differ {
        found.push(format!("exit codes of ls, verify and restore: {codes:?}; {}", extracted.last_words()));
    }
    found.extend(compare_lists(&listed, &verified, &document(&report), &extracted));
    (extracted, found)
}

fn only_refuses_listed(listed: &Value, verified: &Value) -> bool {
    let members = paths(listed);
    let is_empty = |name: &str| verified[name].as_array().is_some_and(Vec::is_empty);
    is_empty("structure")
        && is_empty("damaged_members")
        && paths(&verified["refused_members"]).iter().all(|path| members.contains(path))
}

/// Returns the lists of a report that are not empty.
fn shortened(report: &Value) -> String {
    let names = ["conflicts", "refused", "damaged", "failed", "devices", "attributes", "setuid", "undecodable"];
    let lists = names.iter().filter(|name| report[*name]["count"] != 0 && !report[*name].is_null());
    lists.map(|name| format!("\n{name}: {}", report[*name])).collect()
}

fn compare_lists(listed: &Value, verified: &Value, report: &Value, extracted: &Extracted) -> Vec<String> {
    let mut found = Vec::new();
    let as_set = |list: &Value| paths(list).into_iter().collect::<BTreeSet<_>>();
    let refused = as_set(&verified[0]["refused_members"]);
    let refused_by_restore = as_set(&report["refused"]["list"]);
    if refused != refused_by_restore {
        found.push(format!("refused by verify: {refused:?}, by restore: {refused_by_restore:?}"));
    }
    let members = as_set(listed);
    let lists = ["conflicts", "refused", "damaged", "failed", "devices"].map(|name| as_set(&report[name]["list"]));
    // Reports cut long paths.
    let explained = |path: &Vec<u8>| lists.iter().flatten().any(|other| path.starts_with(other));
    let missing = members.iter().filter(|path| !extracted.tree.contains_key(*path) && !explained(path));
    found.extend(missing.map(|path| format!("ls lists {}, and restore leaves it out", path.escape_ascii())));
    for path in extracted.tree.keys() {
        let below = [path.as_slice(), b"/"].concat();
        if !members.contains(path) && !members.iter().any(|member| member.starts_with(&below)) {
            found.push(format!("restore makes {}, which ls does not list", path.escape_ascii()));
        }
    }
    found
}
