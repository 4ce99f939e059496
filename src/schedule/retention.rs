//! The retention policy of a schedule, as a value; `maintenance::retention` decides which archives it keeps.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::when::{format_age, parse_age};
use crate::error::{Error, Result};

/// The rules of a policy: an archive is kept if any rule keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Retention {
    /// Number of newest archives to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u32>,
    /// Number of hours, newest first and without empty ones, of which the newest archive is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u32>,
    /// The same for days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// The same for weeks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// The same for months.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u32>,
    /// The same for years.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yearly: Option<u32>,
    /// Keeps all archives that are at most this much older than the newest good one.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "age_text")]
    pub within: Option<Duration>,
    /// Keeps all archives.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Keeps archives of manual runs that are at most this much older than the newest good one, in addition to the
    /// other rules.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "age_text")]
    pub manual: Option<Duration>,
}

const A_DAY: Duration = Duration::from_secs(86_400);

impl Default for Retention {
    /// Everything within 3 days, daily 7, weekly 4, monthly 6; manual runs 14 days.
    fn default() -> Self {
        Retention {
            daily: Some(7),
            weekly: Some(4),
            monthly: Some(6),
            within: Some(A_DAY * 3),
            manual: Some(A_DAY * 14),
            ..Retention::EMPTY
        }
    }
}

impl Retention {
    /// No rule at all: the start value for the options of a command line. No schedule can have this policy.
    pub const EMPTY: Retention = Retention {
        last: None,
        hourly: None,
        daily: None,
        weekly: None,
        monthly: None,
        yearly: None,
        within: None,
        all: false,
        manual: None,
    };

    /// Returns the policy of command line options: the default if none is given, else exactly the rules given.
    ///
    /// Errors: `Usage` if [`check`](Self::check) refuses it.
    pub fn from_options(options: Retention) -> Result<Self> {
        if options == Retention::EMPTY {
            return Ok(Retention::default());
        }
        options.check()?;
        Ok(options)
    }

    /// Returns whether a rule that `before` has keeps less in this policy, or is not in it.
    pub fn keeps_less_than(&self, before: &Retention) -> bool {
        let counts = self.counts().into_iter().zip(before.counts());
        let is_less = counts.into_iter().any(|((_, count), (_, before))| count < before)
            || self.within < before.within
            || self.manual < before.manual
            || before.all;
        !self.all && is_less
    }

    /// Checks the policy. One that keeps no archive of scheduled runs and one with other rules than "all" besides it
    /// are usage errors.
    pub fn check(&self) -> Result<()> {
        if self.all {
            return match *self == (Retention { all: true, ..Retention::EMPTY }) {
                true => Ok(()),
                false => Err(Error::usage(format!("\"{self}\" keeps all archives, so its other rules have no effect"))
                    .hint("leave out either \"all\" or the others")),
            };
        }
        let kept = self.counts().iter().any(|(_, count)| count.is_some_and(|count| count > 0));
        if kept || self.within.is_some_and(|age| !age.is_zero()) {
            return Ok(());
        }
        let rules = if *self == Retention::EMPTY { "no rule".to_owned() } else { format!("\"{self}\"") };
        Err(Error::usage(format!("{rules} keeps nothing of the scheduled runs"))
            .hint("keep at least one archive: last 1"))
    }

    /// Parses the printed form: `within 3d, daily 7, manual 14d`, or `all`. Any other text is a usage error.
    pub fn parse(text: &str) -> Result<Self> {
        let mut policy = Retention::EMPTY;
        for rule in text.split(',').map(str::trim) {
            let refuse = |why: &str| {
                Error::usage(format!("\"{}\" is not a rule of retention: {why}", rule.escape_debug()))
                    .hint("write rules like \"within 3d, daily 7, weekly 4, monthly 6, manual 14d\", or \"all\"")
            };
            if rule == "all" {
                policy.all = true;
                continue;
            }
            let Some((word, value)) = rule.split_once(' ') else {
                return Err(refuse("it has no number"));
            };
            let count = || value.trim().parse::<u32>().map_err(|_| refuse("its number is not one"));
            let age = || parse_age(value).map_err(|e| refuse(&e.to_string()));
            let is_repeated = match word {
                "last" => policy.last.replace(count()?).is_some(),
                "hourly" => policy.hourly.replace(count()?).is_some(),
                "daily" => policy.daily.replace(count()?).is_some(),
                "weekly" => policy.weekly.replace(count()?).is_some(),
                "monthly" => policy.monthly.replace(count()?).is_some(),
                "yearly" => policy.yearly.replace(count()?).is_some(),
                "within" => policy.within.replace(age()?).is_some(),
                "manual" => policy.manual.replace(age()?).is_some(),
                _ => return Err(refuse("there is no such rule")),
            };
            if is_repeated {
                return Err(refuse("it is given twice"));
            }
        }
        policy.check()?;
        Ok(policy)
    }

    /// Estimates the maximum number of archives that are kept at the same time, for a schedule that is due every
    /// `period`; `None` if all are kept forever. An archive kept by several rules is counted several times.
    pub fn max_copies(&self, period: Duration) -> Option<u64> {
        if self.all {
            return None;
        }
        let within = self.within.map_or(0, |age| age.as_secs().div_ceil(period.as_secs().max(1)) + 1);
        let counted: u64 = self.counts().into_iter().map(|(_, count)| u64::from(count.unwrap_or(0))).sum();
        Some(within.saturating_add(counted).max(1))
    }

    fn counts(&self) -> [(&'static str, Option<u32>); 6] {
        [
            ("last", self.last),
            ("hourly", self.hourly),
            ("daily", self.daily),
            ("weekly", self.weekly),
            ("monthly", self.monthly),
            ("yearly", self.yearly),
        ]
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rules = Vec::new();
        if self.all {
            rules.push("all".to_owned());
        }
        rules.extend(self.within.map(|age| format!("within {}", format_age(age))));
        rules.extend(self.counts().into_iter().filter_map(|(word, count)| Some(format!("{word} {}", count?))));
        rules.extend(self.manual.map(|age| format!("manual {}", format_age(age))));
        f.write_str(&rules.join(", "))
    }
}

impl Serialize for Retention {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        Retention::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Retention {
    // The derived implementation accepts every combination of rules, so the policy is checked here.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let policy = Retention::deserialize(deserializer)?;
        policy.check().map_err(serde::de::Error::custom)?;
        Ok(policy)
    }
}

/// Ages have the same form in JSON as on the command line: `"3d"`.
mod age_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(age: &Option<Duration>, to: S) -> std::result::Result<S::Ok, S::Error> {
        age.map(format_age).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| parse_age(&text)).transpose().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn any_option_replaces_the_whole_default() {
        let default = Retention::from_options(Retention::EMPTY).unwrap();
        assert_eq!(default.to_string(), "within 3d, daily 7, weekly 4, monthly 6, manual 14d");
        let last = Retention::from_options(Retention { last: Some(3), ..Retention::EMPTY }).unwrap();
        assert_eq!(last.to_string(), "last 3");
    }

    #[test]
    fn a_policy_that_keeps_nothing_is_refused_in_options_text_and_json() {
        let empty = Retention::EMPTY;
        for nothing in [
            Retention { last: Some(0), ..empty.clone() },
            Retention { within: Some(Duration::ZERO), daily: Some(0), ..empty.clone() },
            Retention { manual: Some(A_DAY), ..empty.clone() },
            Retention { all: true, last: Some(1), ..empty.clone() },
        ] {
            assert_eq!(Retention::from_options(nothing.clone()).unwrap_err().kind(), ErrorKind::Usage);
            assert!(Retention::parse(&nothing.to_string()).is_err());
            let json = serde_json::to_string(&nothing).unwrap();
            assert!(serde_json::from_str::<Retention>(&json).is_err(), "{json}");
        }
        assert!(serde_json::from_str::<Retention>("{}").is_err());
    }

    #[test]
    fn printed_policies_are_parsed_back() {
        for text in
            ["all", "within 36h, last 3", "last 1, hourly 24, daily 7, weekly 4, monthly 6, yearly 2, manual 14d"]
        {
            let policy = Retention::parse(text).unwrap();
            assert_eq!(policy.to_string(), text);
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<Retention>(&json).unwrap(), policy, "{json}");
        }
        assert_eq!(
            serde_json::to_string(&Retention::default()).unwrap(),
            r#"{"daily":7,"weekly":4,"monthly":6,"within":"3d","manual":"14d"}"#
        );
    }

    #[test]
    fn unknown_and_repeated_rules_are_refused() {
        for bad in ["", "daily", "daily x", "daily -1", "fortnightly 3", "daily 7, daily 7", "within 3"] {
            assert!(Retention::parse(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Retention>(r#"{"last":1,"lats":2}"#).is_err());
        assert!(serde_json::from_str::<Retention>(r#"{"within":"3"}"#).is_err());
    }
}
