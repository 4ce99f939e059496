//! Settings of the service, and the state of `serve --import` and `serve --config`.

use rusqlite::params;

use super::Store;
use crate::clock::Timestamp;
use crate::error::Result;

/// The text that `serve --import` applied last, and why the present text is not applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The text applied last.
    pub text: Option<Vec<u8>>,
    /// When it was applied.
    pub at: Option<Timestamp>,
    /// Why the present text is not applied.
    pub error: Option<String>,
}

impl Store {
    /// Returns all settings by name.
    pub fn settings(&self) -> Result<Vec<(String, String)>> {
        self.read(|connection| {
            connection
                .prepare("SELECT name, value FROM setting ORDER BY name")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
    }

    /// Sets a setting, or with `None` resets it to its default.
    pub fn set_setting(&self, name: &str, value: Option<&str>) -> Result<()> {
        self.write(|transaction| match value {
            Some(value) => transaction
                .execute(
                    "INSERT INTO setting (name, value) VALUES (?1, ?2) \
                     ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    params![name, value],
                )
                .map(drop),
            None => transaction.execute("DELETE FROM setting WHERE name = ?1", [name]).map(drop),
        })
    }

    /// Returns the state of `serve --import`.
    pub fn imported(&self) -> Result<Imported> {
        self.read(|connection| {
            connection.query_row("SELECT imported_text, imported_at_ms, import_error FROM instance", [], |row| {
                Ok(Imported {
                    text: row.get(0)?,
                    at: row.get::<_, Option<i64>>(1)?.map(Timestamp::from_millis),
                    error: row.get(2)?,
                })
            })
        })
    }

    /// Records the text that `serve --import` has applied.
    pub fn set_imported(&self, text: &[u8], now: Timestamp) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE instance SET imported_text = ?1, imported_at_ms = ?2, import_error = NULL",
                    params![text, now.millis()],
                )
                .map(drop)
        })
    }

    /// Records why the text file is not applied, or with `None` that it is.
    pub fn set_import_error(&self, error: Option<&str>) -> Result<()> {
        self.write(|transaction| transaction.execute("UPDATE instance SET import_error = ?1", [error]).map(drop))
    }

    /// Returns why the settings file that a service follows is not applied; `None` if it is.
    pub fn config_error(&self) -> Result<Option<String>> {
        self.read(|connection| connection.query_row("SELECT config_error FROM instance", [], |row| row.get(0)))
    }

    /// Records why the settings file is not applied, or with `None` that it is.
    pub fn set_config_error(&self, error: Option<&str>) -> Result<()> {
        self.write(|transaction| transaction.execute("UPDATE instance SET config_error = ?1", [error]).map(drop))
    }

    /// Returns the time zone that the last service used for schedules without their own.
    pub fn service_zone(&self) -> Result<Option<String>> {
        self.read(|connection| connection.query_row("SELECT service_zone FROM instance", [], |row| row.get(0)))
    }

    /// Records the time zone that a service uses.
    pub fn set_service_zone(&self, zone: &str) -> Result<()> {
        self.write(|transaction| transaction.execute("UPDATE instance SET service_zone = ?1", [zone]).map(drop))
    }
}
