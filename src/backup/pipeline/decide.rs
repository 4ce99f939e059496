//! The decision whether the members of a plan are taken from the base, and what to make of those that were read.

use super::chunk_builder::{ChunkBuilder, MemberCounts};
use super::planned_member::PlannedMember;
use super::read;
use super::reuse::{Base, BaseHint, BaseRef, Details, ReadReason, check_details};
use super::state::PipelineState;
use crate::member::{MemberKind, MemberPath};
use crate::progress::{Problem, ProblemKind};
use crate::source::{OwnerNames, SourceEntry, Stat};

/// What an entry becomes in this archive.
struct Role {
    kind: MemberKind,
    /// The name that a hard link names.
    carrier: Option<MemberPath>,
}

/// Returns what the members of a plan become if all that carry data are taken from the base. Waits until the names of
/// hard links in earlier plans are decided.
fn roles(members: &[PlannedMember]) -> Vec<Role> {
    let mut roles: Vec<Role> = Vec::with_capacity(members.len());
    for (ordinal, planned) in members.iter().enumerate() {
        let carrier = planned.turn.as_ref().and_then(|turn| {
            // The turn of an earlier name in this plan has not ended: waiting for it would never end.
            let is_earlier_name = |(other, role): &(&PlannedMember, &Role)| {
                role.carrier.is_none() && other.turn.as_ref().is_some_and(|other| other.is_of_same_file(turn))
            };
            let earlier = members[..ordinal].iter().zip(&roles).find(is_earlier_name);
            earlier.map(|(planned, _)| planned.entry.path.clone()).or_else(|| turn.carrier())
        });
        let kind = if carrier.is_some() { MemberKind::HardLink } else { planned.entry.kind };
        roles.push(Role { kind, carrier });
    }
    roles
}

/// Returns whether the members of a plan, which are exactly those of a chunk of the base, are all unchanged; `unit` is
/// that chunk, empty if there is none, and the pieces that follow it. Counts the members by the reasons why they are
/// read.
pub(super) fn are_unchanged(
    state: &PipelineState<'_>,
    names: &OwnerNames,
    members: &[PlannedMember],
    unit: &[BaseRef],
) -> bool {
    let Some(base) = state.base else { return false };
    let roles = roles(members);
    let check = |(planned, role): (&PlannedMember, &Role)| check_stat(base, planned, role);
    let mut checked: Vec<_> = members.iter().zip(&roles).map(check).collect();
    let otherwise = match unit.first() {
        None => ReadReason::Boundaries,
        Some(chunk) if base.rules.is_reread_due(chunk.id, chunk.read_started) => ReadReason::Reread,
        Some(_) if checked.iter().any(Result::is_err) => ReadReason::Neighbour,
        Some(_) => {
            let details = |(planned, role): (&PlannedMember, &Role)| check_rest(names, planned, role);
            let mut rest = members.iter().zip(&roles).map(details).enumerate();
            match rest.find_map(|(ordinal, checked)| checked.err().map(|reason| (ordinal, reason))) {
                None => {
                    state.reads.add_reused(members.len() as u64);
                    return true;
                }
                Some((ordinal, reason)) => checked[ordinal] = Err(reason),
            }
            ReadReason::Neighbour
        }
    };
    checked.into_iter().for_each(|checked| state.reads.add(checked.err().unwrap_or(otherwise)));
    false
}

fn check_stat(base: &Base<'_>, planned: &PlannedMember, role: &Role) -> Result<(), ReadReason> {
    let hint = planned.hint.as_ref().ok_or(ReadReason::New)?;
    let SourceEntry { stat, file_system, .. } = &planned.entry;
    base.rules.check_stat(&hint.entry, hint.read_started, role.kind, stat, file_system)
}

/// Compares what has to be looked up.
fn check_rest(names: &OwnerNames, planned: &PlannedMember, role: &Role) -> Result<(), ReadReason> {
    let hint = planned.hint.as_ref().ok_or(ReadReason::New)?;
    let entry = &planned.entry;
    let link_target = match role.kind {
        MemberKind::Symlink => Some(entry.read_link().map_err(|_| ReadReason::Link)?.into()),
        _ => role.carrier.as_ref().map(|carrier| carrier.as_bytes().into()),
    };
    let xattr_digest = match role.kind {
        // The carrier has the attributes.
        MemberKind::HardLink => None,
        _ => entry.xattrs().map_err(|_| ReadReason::Attributes)?.digest(),
    };
    let user_name = names.user(entry.stat.uid);
    let group_name = names.group(entry.stat.gid);
    check_details(&hint.entry, &Details { user_name, group_name, link_target, xattr_digest })
}

/// Returns the counts of members that are taken from the base.
pub(super) fn counts(members: &[PlannedMember]) -> MemberCounts {
    let mut counts = MemberCounts::default();
    members.iter().filter_map(|planned| planned.hint.as_ref()).for_each(|hint| counts.add(&hint.entry.member));
    counts
}

impl ChunkBuilder<'_, '_> {
    /// Returns the problem of a file whose content is not that in the base although nothing indicates a change; `None`
    /// for all others.
    pub(super) fn silent_change(
        &self,
        entry: &SourceEntry,
        hint: Option<&BaseHint>,
        stat: &Stat,
        digest: [u8; 32],
    ) -> Option<Problem> {
        let (base, hint) = self.state.base.zip(hint)?;
        let known = hint.entry.content_digest.filter(|known| *known != digest)?;
        let checked = base.rules.check_stat(&hint.entry, hint.read_started, MemberKind::File, stat, &entry.file_system);
        checked.ok()?;
        let short = |digest: [u8; 32]| blake3::Hash::from_bytes(digest).to_hex()[..16].to_owned();
        let reason = format!(
            "it changed without its times: its content (BLAKE3 {}) is not that in archive @{} (BLAKE3 {}), but its \
             size, times and inode number are; the disk may have damaged it, or something changed it without the file \
             system",
            short(digest),
            base.run,
            short(known)
        );
        Some(read::problem(entry, ProblemKind::ChangedWithoutTimes, reason))
    }
}
