//! Writing the settings file: what there is, so that applying it changes nothing.

use toml::Value;

use super::keys::{Draft, KEYS, is_keep};
use crate::error::Result;
use crate::schedule::{Hooks, Retention, Schedule};
use crate::store::{ScheduleRow, Store};

/// Formats schedules as a settings file, with what surrounds their runs. Values that a schedule has without the key are
/// left out.
pub fn export_toml(store: &Store, rows: &[ScheduleRow]) -> Result<Vec<u8>> {
    let tables = rows.iter().map(|row| table_of(&row.schedule, &store.hooks(row.id)?.hooks));
    let tables = tables.collect::<Result<Vec<_>>>()?;
    Ok(tables.join("\n").into_bytes())
}

fn table_of(schedule: &Schedule, hooks: &Hooks) -> Result<String> {
    let usual = Draft::default().with_source(schedule.name.clone(), Vec::new())?;
    let mut text = format!("[schedule.{}]\n", key_text(schedule.name.as_str()));
    for key in &KEYS {
        let value = (key.get)(schedule, hooks);
        let is_usual = match is_keep(key.name) {
            // Any rule turns off those that are not given.
            true => schedule.retention == Retention::default() || value == Some(Value::from(false)),
            false => value == (key.get)(&usual, &Hooks::default()),
        };
        if let Some(value) = value.filter(|_| !is_usual) {
            text += &format!("{} = {value}\n", key.name);
        }
    }
    Ok(text)
}

/// Returns a name as a key of TOML, in quotes if necessary. The writer of values may choose forms that no key has.
fn key_text(name: &str) -> String {
    let is_bare = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if is_bare { name.to_owned() } else { format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")) }
}
