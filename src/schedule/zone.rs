//! Time zones by name: the zone of a schedule, and that of the service.

use std::fmt;
use std::str::FromStr;

use chrono_tz::{TZ_VARIANTS, Tz};

use crate::error::{Error, Result};

/// Parses the IANA name of a zone, in any case. An unknown name is a usage error that suggests similar names; it never
/// becomes UTC.
pub fn parse_zone(text: &str) -> Result<Tz> {
    let name = text.trim();
    if let Some(zone) = Tz::from_str(name).ok().or_else(|| Tz::from_str_insensitive(name).ok()) {
        return Ok(zone);
    }
    let similar = similar_names(name);
    let hint = match similar.is_empty() {
        true => "write an IANA name like Europe/Paris or UTC".to_owned(),
        false => format!("did you mean {}?", similar.join(" or ")),
    };
    Err(Error::usage(format!("\"{}\" is not a time zone", name.escape_debug())).hint(hint))
}

/// Returns up to three similar names, mainly by the name of the city.
fn similar_names(name: &str) -> Vec<&'static str> {
    let wanted = name.to_lowercase().replace([' ', '-'], "_");
    let city_of = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let mut scored: Vec<(f64, &'static str)> = TZ_VARIANTS
        .iter()
        .map(|zone| {
            let lower = zone.name().to_lowercase();
            let whole = strsim::jaro_winkler(&wanted, &lower);
            // A wrong region with the right city is the more likely mistake, and many names share a region.
            let city = strsim::jaro_winkler(&city_of(&wanted), &city_of(&lower));
            (city * 0.75 + whole * 0.25, zone.name())
        })
        .filter(|(score, _)| *score > 0.85)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// The source of the service's zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneOrigin {
    /// The environment variable `TZ`.
    Environment,
    /// The setting of the system.
    System,
    /// Neither names a zone; the clock of such a system shows UTC.
    Unset,
}

impl fmt::Display for ZoneOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ZoneOrigin::Environment => "from TZ",
            ZoneOrigin::System => "the system's",
            ZoneOrigin::Unset => "neither TZ nor the system names another",
        })
    }
}

/// The zone of the service, which applies to schedules without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceZone {
    /// The zone.
    pub zone: Tz,
    /// Where it comes from.
    pub origin: ZoneOrigin,
}

/// Determines the service's zone from the value of `TZ`, if it is set, else from the name of the system's zone, if it
/// has one.
///
/// `TZ` may be the name of a zone (`Europe/Paris`, `:Europe/Paris`, a path below `zoneinfo/`) or the system's file; if
/// it is empty, the zone is UTC. A POSIX rule such as `CET-1CEST` is a usage error: it names no place, and only a place
/// has a history of offsets.
pub fn service_zone(tz_env: Option<&str>, localtime: Option<&str>) -> Result<ServiceZone> {
    let Some(value) = tz_env else {
        return system_zone(localtime);
    };
    let name = value.strip_prefix(':').unwrap_or(value);
    if name == "/etc/localtime" {
        return system_zone(localtime);
    }
    let name = name.split_once("/zoneinfo/").map_or(name, |(_, name)| name);
    let zone = match name {
        "" | "UTC0" | "UTC+0" | "UTC-0" => Tz::UTC,
        _ => parse_zone(name).map_err(|unknown| match is_rule(name) {
            true => Error::usage(format!("TZ is \"{value}\", a rule and not the name of a time zone"))
                .hint("set TZ to an IANA name like Europe/Paris"),
            false => Error::usage(format!("TZ is \"{}\", which is not a time zone", value.escape_debug()))
                .hint(unknown.next_step().unwrap_or_default()),
        })?,
    };
    Ok(ServiceZone { zone, origin: ZoneOrigin::Environment })
}

fn system_zone(localtime: Option<&str>) -> Result<ServiceZone> {
    match localtime.filter(|name| !name.is_empty()) {
        None => Ok(ServiceZone { zone: Tz::UTC, origin: ZoneOrigin::Unset }),
        Some(name) => {
            let zone = parse_zone(name).map_err(|_| {
                Error::usage(format!("the system's time zone \"{}\" is unknown", name.escape_debug()))
                    .hint("set TZ to an IANA name like Europe/Paris")
            })?;
            Ok(ServiceZone { zone, origin: ZoneOrigin::System })
        }
    }
}

/// Returns whether `name` looks like a POSIX rule: an abbreviation followed by an offset from UTC.
fn is_rule(name: &str) -> bool {
    let after_letters = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    name.starts_with('<')
        || (name.len() - after_letters.len() >= 3
            && after_letters.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn an_unknown_name_is_an_error_that_suggests_similar_names() {
        for (wrong, near) in [
            ("Paris", "Europe/Paris"),
            ("Europe/Pariss", "Europe/Paris"),
            ("America/New York", "America/New_York"),
            ("Europe/Tokyo", "Asia/Tokyo"),
            ("US/Pasific", "US/Pacific"),
        ] {
            let error = parse_zone(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.next_step().unwrap().contains(near), "{wrong}: {:?}", error.next_step());
        }
        assert!(parse_zone("Qqqq/Zzzz").unwrap_err().next_step().unwrap().contains("IANA"));
        assert!(parse_zone("").is_err());
        assert_eq!(parse_zone("europe/paris").unwrap(), Tz::Europe__Paris);
        for zone in TZ_VARIANTS {
            assert_eq!(parse_zone(zone.name()).unwrap(), zone);
        }
    }

    #[test]
    fn the_zone_of_the_service_comes_from_tz_and_then_from_the_system() {
        let zone = |tz, system| service_zone(tz, system).map(|found| (found.zone.name(), found.origin)).unwrap();
        use ZoneOrigin::{Environment, System, Unset};
        assert_eq!(zone(Some("Europe/Paris"), Some("Asia/Tokyo")), ("Europe/Paris", Environment));
        assert_eq!(zone(Some(":Europe/Paris"), None), ("Europe/Paris", Environment));
        assert_eq!(zone(Some(":/usr/share/zoneinfo/Europe/Paris"), None), ("Europe/Paris", Environment));
        assert_eq!(zone(Some("EST5EDT"), None), ("EST5EDT", Environment));
        for utc in ["", ":", "UTC", "UTC0"] {
            assert_eq!(zone(Some(utc), Some("Asia/Tokyo")), ("UTC", Environment));
        }
        assert_eq!(zone(Some(":/etc/localtime"), Some("Asia/Tokyo")), ("Asia/Tokyo", System));
        assert_eq!(zone(None, Some("Asia/Tokyo")), ("Asia/Tokyo", System));
        assert_eq!(zone(None, None), ("UTC", Unset));
    }

    #[test]
    fn posix_rules_and_unknown_names_are_refused() {
        for rule in ["CET-1CEST", "CET-1CEST,M3.5.0,M10.5.0/3", "<+03>-3", "JST-9"] {
            assert!(service_zone(Some(rule), None).unwrap_err().to_string().contains("a rule"), "{rule}");
        }
        let wrong = service_zone(Some("Europe/Pari"), Some("Asia/Tokyo")).unwrap_err();
        assert!(wrong.next_step().unwrap().contains("Europe/Paris"));
        assert!(service_zone(None, Some("Nowhere/Town")).is_err());
    }
}
