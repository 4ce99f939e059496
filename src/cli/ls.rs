//! `ls`: lists the members of an archive.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use chrono_tz::Tz;
use clap::Args;
use serde::Serialize;

use super::documents::{self, PathFields};
use super::render::{self, Format};
use super::{Context, select};
use crate::archive::members::Event;
use crate::browse::{Globs, OpenArchive, Selection};
use crate::clock::Timestamp;
use crate::error::{ErrorKind, Result};
use crate::member::{FileTime, Member, MemberKind};
use crate::schedule::parse_when;

#[derive(Args)]
pub struct LsArgs {
    /// A schedule (its newest good archive), an archive (@17), or any tar file
    what: OsString,
    /// Only these and what lies below
    path: Vec<PathBuf>,
    /// With kind, mode, owner, size and time
    #[arg(short, long)]
    long: bool,
    /// This archive of the schedule: @17
    #[arg(long, value_name = "@RUN", conflicts_with = "at")]
    archive: Option<String>,
    /// The newest archive made by then: 2026-11-20, "2026-11-20 14:00", yesterday, 3d
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
}

pub fn cmd_ls(context: &Context, args: &LsArgs) -> Result<u8> {
    let at = args.at.as_deref().map(|text| parse_when(text, context.zone, context.now())).transpose()?;
    let archive = select::archive(context, &args.what, args.archive.as_deref(), at)?;
    let paths = args.path.iter().map(|path| archive.member_path(path)).collect::<Result<Vec<_>>>()?;
    let selection = Selection::new(paths, Globs::parse(&[])?, Globs::parse(&[])?);
    let mut members = Vec::new();
    let mut lines = Lines::new();
    let is_damaged = visit(context, &archive, &selection, |member, digest| {
        if context.format == Format::Json {
            members.push(MemberDocument::new(member, digest, &context.zone));
            return Ok(());
        }
        if args.long { lines.put(&long_line(member, &context.zone)) } else { lines.put(&short_line(member)) }
    })?;
    lines.finish()?;
    let missing = selection.missing();
    if !missing.is_empty() {
        return Err(archive.not_found(missing));
    }
    if context.format == Format::Json {
        render::print_json(&members)?;
    }
    Ok(if is_damaged { ErrorKind::Damage.exit_code() } else { 0 })
}

/// Passes the selected members to `list`: from the catalog with their digests if it holds this archive, otherwise from
/// the file. Returns whether the archive is damaged or has members that were refused.
fn visit(
    context: &Context,
    archive: &OpenArchive,
    selection: &Selection,
    mut list: impl FnMut(&Member, Option<[u8; 32]>) -> Result<()>,
) -> Result<bool> {
    let known = archive.catalog_members(&mut |_, entry| {
        if selection.selects(&entry.member.path) { list(&entry.member, entry.content_digest) } else { Ok(()) }
    })?;
    if known {
        return Ok(false);
    }
    let mut is_damaged = false;
    let mut members = archive.members(selection, 2)?;
    while let Some(event) = members.next()? {
        match event {
            Event::Member(entry) if selection.selects(&entry.member.path) => {
                if entry.has_bad_time {
                    context.warn(&format!("{}: its time is broken: that of the header is shown", entry.member.path));
                }
                list(&entry.member, None)?;
            }
            Event::Member(_) => {}
            Event::Refused { name, reason } => {
                is_damaged = true;
                context.warn(&format!("{}: refused: {reason}", render::printable(&name)));
            }
            Event::Damaged { after, reason, .. } => {
                is_damaged = true;
                let place = after.map_or_else(String::new, |path| format!(" after {path}"));
                context.warn(&format!("{} is damaged{place}: {reason}", archive.path().display()));
            }
            Event::Undecodable { reason } => {
                is_damaged = true;
                context.warn(&format!("{} is damaged: {reason}", archive.path().display()));
            }
        }
    }
    Ok(is_damaged)
}

/// Lines to standard output, written about 64 KiB at a time.
struct Lines(Vec<u8>);

impl Lines {
    fn new() -> Lines {
        Lines(Vec::new())
    }

    fn put(&mut self, line: &[u8]) -> Result<()> {
        self.0.extend_from_slice(line);
        self.0.push(b'\n');
        if self.0.len() > 1 << 16 {
            match io::stdout().lock().write_all(&self.0) {
                // The reader closed the pipe: it has read enough.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
                result => result.map_err(render::unwritable)?,
            }
            self.0.clear();
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        render::print_bytes(&std::mem::take(&mut self.0))
    }
}

fn short_line(member: &Member) -> Vec<u8> {
    let mut line = render::printable_bytes(member.path.as_bytes());
    if member.kind == MemberKind::Folder {
        line.push(b'/');
    }
    line
}

fn long_line(member: &Member, zone: &Tz) -> Vec<u8> {
    let owner = |name: &[u8], id: u32| if name.is_empty() { id.to_string() } else { render::printable(name) };
    let size = match member.device_number {
        Some((major, minor)) => format!("{major},{minor}"),
        None => member.size.to_string(),
    };
    let start = format!(
        "{} {}/{} {size:>12} {} ",
        mode_text(member),
        owner(&member.user_name, member.uid),
        owner(&member.group_name, member.gid),
        render::short_time(timestamp(member.modified), zone)
    );
    let mut line = start.into_bytes();
    line.extend(short_line(member));
    if let Some(target) = &member.link_target {
        line.extend(if member.kind == MemberKind::HardLink { &b" link to "[..] } else { b" -> " });
        line.extend(render::printable_bytes(target));
    }
    line
}

/// Returns the kind and permissions of a member as `ls -l` writes them.
pub fn mode_text(member: &Member) -> String {
    let kind = match member.kind {
        MemberKind::File => '-',
        MemberKind::Folder => 'd',
        MemberKind::Symlink => 'l',
        MemberKind::HardLink => 'h',
        MemberKind::Fifo => 'p',
        MemberKind::CharDevice => 'c',
        MemberKind::BlockDevice => 'b',
    };
    let mode = member.mode;
    let bit = |bit: u32, letter: char| if mode & bit != 0 { letter } else { '-' };
    let run = |bit: u32, special: u32, both: char, only: char| match (mode & bit != 0, mode & special != 0) {
        (true, true) => both,
        (false, true) => only,
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        run(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        run(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        run(0o001, 0o1000, 't', 'T'),
    ]
    .iter()
    .collect()
}

/// Returns the word for a kind of member.
pub fn kind_word(kind: MemberKind) -> &'static str {
    match kind {
        MemberKind::File => "file",
        MemberKind::Folder => "folder",
        MemberKind::Symlink => "symlink",
        MemberKind::HardLink => "hardlink",
        MemberKind::Fifo => "fifo",
        MemberKind::CharDevice => "char",
        MemberKind::BlockDevice => "block",
    }
}

/// Returns the time of a file as an instant.
pub fn timestamp(time: FileTime) -> Timestamp {
    let millis = time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanoseconds / 1_000_000));
    Timestamp::from_millis(millis)
}

/// A member of an archive.
#[derive(Serialize)]
struct MemberDocument {
    /// `path`: its path in the archive.
    #[serde(flatten)]
    path: PathFields,
    kind: &'static str,
    /// Bytes of its content.
    size: u64,
    /// Permissions, octal in four digits.
    mode: String,
    uid: u32,
    gid: u32,
    /// Name of the owner; empty if the archive holds none.
    user: String,
    /// Name of the group; empty if the archive holds none.
    group: String,
    modified: String,
    /// `link_target`: only of links.
    #[serde(flatten)]
    link_target: Option<PathFields>,
    /// Major and minor number; only of devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
    /// Digest of the content; only of files in the catalog.
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

impl MemberDocument {
    fn new(member: &Member, digest: Option<[u8; 32]>, zone: &Tz) -> MemberDocument {
        MemberDocument {
            path: PathFields::new("path", member.path.as_bytes()),
            kind: kind_word(member.kind),
            size: member.size,
            mode: format!("{:04o}", member.mode),
            uid: member.uid,
            gid: member.gid,
            user: String::from_utf8_lossy(&member.user_name).into_owned(),
            group: String::from_utf8_lossy(&member.group_name).into_owned(),
            modified: documents::time(timestamp(member.modified), zone),
            link_target: member.link_target.as_ref().map(|target| PathFields::new("link_target", target)),
            device: member.device_number,
            blake3: digest.map(documents::hex),
        }
    }
}
