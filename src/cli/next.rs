//! `next`: the next times of a schedule, or of a cadence given on the command line.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::render::{self, Format};
use super::{Context, select};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::schedule::{Cadence, parse_since, parse_zone};

#[derive(Args)]
pub struct NextArgs {
    /// Name, or index in `list`; none with --at or --cron
    #[arg(required_unless_present_any = ["at", "cron"])]
    schedule: Option<String>,
    /// Times of day: 09:00 or 09:00,18:30
    #[arg(long, value_name = "HH:MM[,HH:MM]", conflicts_with_all = ["cron", "schedule"])]
    at: Option<String>,
    /// Cron expression: five fields, or six with seconds
    #[arg(long, value_name = "EXPR", conflicts_with = "schedule")]
    cron: Option<String>,
    /// Time zone [default: the schedule's, else the service's]
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
    /// From this time on [default: now]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// How many
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
}

/// What `next --json` prints.
#[derive(Serialize)]
struct NextDocument {
    timezone: &'static str,
    /// RFC 3339, the earliest first.
    next: Vec<String>,
}

pub fn cmd_next(context: &Context, args: &NextArgs) -> Result<u8> {
    let given_zone = args.timezone.as_deref().map(parse_zone).transpose()?;
    let (cadence, zone, first) = match (&args.at, &args.cron, &args.schedule) {
        (Some(at), _, _) => (Cadence::parse_daily(at)?, given_zone.map_or_else(|| context.own_zone(), Ok)?, None),
        (_, Some(cron), _) => (Cadence::parse_cron(cron)?, given_zone.map_or_else(|| context.own_zone(), Ok)?, None),
        (_, _, Some(word)) => {
            let store = context.open()?;
            let row = select::schedule(&store, word)?;
            let Some(cadence) = row.schedule.cadence else {
                return Err(Error::not_found(format!("{} has no times", row.schedule.name))
                    .hint(format!("set them: backup-manager edit {} --at HH:MM", row.schedule.name)));
            };
            let own_zone = given_zone.or(row.schedule.zone);
            let zone = own_zone.map_or_else(|| context.default_zone(&store), Ok)?;
            (cadence, zone, row.schedule.enabled.then_some(row.watermark.handled_until))
        }
        _ => return Err(Error::usage("name a schedule, or a cadence with --at or --cron")),
    };
    let from = match &args.from {
        // A time equal to --from counts.
        Some(text) => parse_since(text, zone, context.now())?.minus(Duration::from_millis(1)),
        None => first.map_or(context.now(), |handled| handled.max(context.now())),
    };
    let times: Vec<String> =
        std::iter::successors(cadence.next_after(zone, from), |at: &Timestamp| cadence.next_after(zone, *at))
            .take(args.count as usize)
            .map(|at| at.rfc3339(&zone))
            .collect();
    if context.format == Format::Json {
        render::print_json(&NextDocument { timezone: zone.name(), next: times })?;
    } else {
        render::print(&times.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    }
    Ok(0)
}
