//! `cat`: writes members of an archive to standard output.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::{Context, render, select};
use crate::browse;
use crate::error::Result;
use crate::schedule::parse_when;

#[derive(Args)]
pub struct CatArgs {
    /// A schedule (its newest good archive), an archive (@17), or any tar file
    what: OsString,
    /// Files: names in the archive, or original absolute paths
    #[arg(required = true)]
    path: Vec<PathBuf>,
    /// This archive of the schedule: @17
    #[arg(long, value_name = "@RUN", conflicts_with = "at")]
    archive: Option<String>,
    /// The newest archive made by then: 2026-11-20, "2026-11-20 14:00", yesterday, 3d
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
}

pub fn cmd_cat(context: &Context, args: &CatArgs) -> Result<u8> {
    let at = args.at.as_deref().map(|text| parse_when(text, context.zone, context.now())).transpose()?;
    let archive = select::archive(context, &args.what, args.archive.as_deref(), at)?;
    // Locked only while it writes: the handler of signals may print the document of an error.
    let mut stdout = io::stdout();
    for path in &args.path {
        let path = archive.member_path(path)?;
        let mut is_closed = false;
        let written = browse::read_file(&archive, &path, &mut |bytes| {
            render::reserve_stdout();
            stdout.write_all(bytes).map_err(|e| {
                is_closed = e.kind() == io::ErrorKind::BrokenPipe;
                render::unwritable(e)
            })
        });
        if is_closed {
            // The reader closed the pipe: it has read enough.
            return Ok(0);
        }
        written?;
    }
    render::print_bytes(&[])?;
    Ok(0)
}
