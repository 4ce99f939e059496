//! What a plan knows of one member.

use super::hard_links::LinkTurn;
use super::reuse::BaseHint;
use crate::source::SourceEntry;

/// An entry that becomes a member.
pub(super) struct PlannedMember {
    pub(super) entry: SourceEntry,
    /// Its turn among the names of its file, if that has several.
    pub(super) turn: Option<LinkTurn>,
    /// The member of the base with its path.
    pub(super) hint: Option<BaseHint>,
}
