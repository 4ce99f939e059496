//! Reads the catalog of the base ahead of the walk, on a thread of its own.

use crossbeam_channel::Sender;

use super::Base;
use crate::chunk::BaseChunk;
use crate::error::Result;

/// Chunks of the base in order, with their members.
pub type Page = Vec<BaseChunk>;

/// Members that one page should hold, about. Chunks of a large file hold none.
const PAGE_MEMBERS: u64 = 1_000;
/// Chunks of the first page, when it is not known how many members they hold, and of any page.
const FIRST_PAGE_CHUNKS: u64 = 8;
const MAX_PAGE_CHUNKS: u64 = 64;

/// Sends all chunks of the base that hold members, in order, until the receiver is dropped. The first chunk of an
/// archive holds its global header, and the last one its end marks.
pub fn read_pages(base: &Base<'_>, pages: &Sender<Page>) -> Result<()> {
    let end = base.chunks.saturating_sub(1);
    let (mut next, mut limit) = (1, FIRST_PAGE_CHUNKS);
    while next < end {
        let page = (base.pages)(next, limit.min(end - next) as u32)?;
        let Some(last) = page.last() else { break };
        next = last.chunk.sequence + 1;
        let members: usize = page.iter().map(|chunk| chunk.members.len()).sum();
        let members_per_chunk = (members / page.len()).max(1) as u64;
        limit = (PAGE_MEMBERS / members_per_chunk).clamp(1, MAX_PAGE_CHUNKS);
        if pages.send(page).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
