//! The JSON form of a schedule, in `export --format json` and in the header of every archive. Its field names never
//! change.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{
    CatchUp, Compression, Excludes, Layout, Retention, Reuse, Schedule, ScheduleName, parse_zone, source_problem,
};
use crate::error::{Error, Result};

/// The JSON fields. Only `name` and `source` are required when JSON is read.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScheduleJson {
    name: ScheduleName,
    source: String,
    /// The exact bytes, if they are not UTF-8 and `source` is only an approximation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source_b64: Option<String>,
    #[serde(default)]
    cadence: Option<String>,
    #[serde(default)]
    zone: Option<String>,
    #[serde(default)]
    compression: Option<String>,
    /// Left out where it is the default, so that earlier versions read the rest.
    #[serde(default, skip_serializing_if = "Layout::is_default")]
    layout: Layout,
    #[serde(default)]
    excludes: Excludes,
    #[serde(default)]
    retention: Retention,
    /// Left out where it is the default, so that earlier versions read the rest.
    #[serde(default, skip_serializing_if = "Reuse::is_default")]
    reuse: Reuse,
    #[serde(default)]
    catch_up: CatchUp,
    #[serde(default = "yes")]
    verify: bool,
    #[serde(default = "yes")]
    enabled: bool,
}

fn yes() -> bool {
    true
}

impl From<Schedule> for ScheduleJson {
    fn from(schedule: Schedule) -> Self {
        let (source, source_b64) = match String::from_utf8(schedule.source) {
            Ok(text) => (text, None),
            Err(bytes) => {
                let bytes = bytes.into_bytes();
                (String::from_utf8_lossy(&bytes).into_owned(), Some(STANDARD.encode(&bytes)))
            }
        };
        ScheduleJson {
            name: schedule.name,
            source,
            source_b64,
            cadence: schedule.cadence.map(|cadence| cadence.to_string()),
            zone: schedule.zone.map(|zone| zone.name().to_owned()),
            compression: Some(schedule.compression.to_string()),
            layout: schedule.layout,
            excludes: schedule.excludes,
            retention: schedule.retention,
            reuse: schedule.reuse,
            catch_up: schedule.catch_up,
            verify: schedule.verify,
            enabled: schedule.enabled,
        }
    }
}

impl TryFrom<ScheduleJson> for Schedule {
    type Error = Error;

    fn try_from(json: ScheduleJson) -> Result<Self> {
        let source = match json.source_b64 {
            None => json.source.into_bytes(),
            Some(encoded) => {
                let bytes = STANDARD
                    .decode(&encoded)
                    .map_err(|e| Error::usage(format!("source_b64 of \"{}\" is not base64", json.name)).because(e))?;
                if String::from_utf8_lossy(&bytes) != json.source {
                    return Err(Error::usage(format!("source and source_b64 of \"{}\" differ", json.name))
                        .hint("change both, or leave out source_b64"));
                }
                bytes
            }
        };
        if let Some(problem) = source_problem(&source) {
            return Err(Error::usage(format!("the source of \"{}\" is not usable: {problem}", json.name))
                .hint("name a folder or a file"));
        }
        Ok(Schedule {
            source,
            cadence: json.cadence.map(|text| text.parse()).transpose()?,
            zone: json.zone.map(|text| parse_zone(&text)).transpose()?,
            compression: json.compression.map_or(Ok(Compression::default()), |text| text.parse())?,
            name: json.name,
            layout: json.layout,
            excludes: json.excludes,
            retention: json.retention,
            reuse: json.reuse.check()?,
            catch_up: json.catch_up,
            verify: json.verify,
            enabled: json.enabled,
        })
    }
}
