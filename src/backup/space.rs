//! Before a run writes: how much it is going to be, and whether that fits.

use super::{Runner, free_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::member::Extent;
use crate::schedule::Compression;
use crate::source::{self, SourceRoot};
use crate::store::ScheduleRow;

/// What the headers and the padding of a member take in a plain archive, about.
const BYTES_A_MEMBER: u64 = 2_048;

impl Runner {
    /// Estimates the run by the schedule's last archive, else by a walk over its source, and refuses it if the
    /// archive would not fit. What cannot be estimated is not refused: a full disk ends the run cleanly, too.
    ///
    /// Errors: `DiskFull` with both numbers; what a walk finds wrong with the root.
    pub(super) fn expect(&self, row: &ScheduleRow, root: &SourceRoot) -> Result<Extent> {
        let free = free_bytes(self.home.backups())?;
        let last = self.store.newest_good(row.id)?.filter(|last| last.digest.is_some());
        if let Some(last) = &last
            && last.size <= free
        {
            return Ok(last.extent);
        }
        let own_paths = self.home.own_paths();
        let totals = source::scan(&root.walk_options(&row.schedule, &own_paths))?;
        let plain = totals.content_bytes.saturating_add(totals.members.saturating_mul(BYTES_A_MEMBER));
        let needed = match (row.schedule.compression, &last) {
            (Compression::None, _) => Some(plain),
            // Packed as well as last time.
            (_, Some(last)) if last.extent.content_bytes > 0 => {
                let ratio = last.size as f64 / last.extent.content_bytes as f64;
                Some((totals.content_bytes as f64 * ratio) as u64)
            }
            _ => None,
        };
        match needed {
            Some(needed) if needed > free => Err(Error::new(
                ErrorKind::DiskFull,
                format!(
                    "the archive of {} needs about {needed} bytes, and {} has {free} free",
                    row.schedule.name,
                    self.home.backups().display()
                ),
            )
            .hint(
                "free space there, leave more out with --exclude, pack with --compress zstd, or name another folder",
            )),
            _ => Ok(totals),
        }
    }
}
