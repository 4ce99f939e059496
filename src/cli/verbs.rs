//! The verbs: their names, help and arguments, and what carries each out.

use clap::Subcommand;

use super::{
    Context, accept, apply, archives, cancel, cat, config, create, delete, diff, drill, edit, export, find, history,
    list, ls, next, prune, repair, rescan, restore, run, serve, start, status, text_file, verify,
};
use crate::error::Result;

/// A verb with its arguments.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// Restore files: from the newest good archive, one of an earlier day, or any tar file
    #[command(alias = "extract")]
    Restore(restore::RestoreArgs),
    /// Back up schedules now, in this process or, with --queue, in the service
    Run(run::RunArgs),
    /// Show the service, running and next runs, and the state of each schedule
    Status(status::StatusArgs),

    /// Add schedules: "PATH;HH:MM;NAME", or PATH --name NAME with --at or --cron
    Create(create::CreateArgs),
    /// List schedules
    List,
    /// Show one schedule in full
    Show(list::ShowArgs),
    /// Change a schedule
    Edit(edit::EditArgs),
    /// Stop a schedule from running until it is resumed
    Pause(edit::PauseArgs),
    /// Resume a paused schedule from now on
    Resume(edit::PauseArgs),
    /// Delete a schedule; its history and archives are kept
    Delete(delete::DeleteArgs),
    /// Print the next times of a schedule or of a cadence
    Next(next::NextArgs),

    /// Cancel the running and the queued run of a schedule, or one run: cancel @17
    Cancel(cancel::CancelArgs),
    /// Accept an emptied or shrunken source, or known problem paths, once
    Accept(accept::AcceptArgs),
    /// List archives
    #[command(alias = "snapshots")]
    Backups(archives::BackupsArgs),
    /// Read archives back from disk and report damage
    #[command(alias = "check")]
    Verify(verify::VerifyArgs),
    /// Replace damaged parts of archives by equal ones of other archives
    Repair(repair::RepairArgs),
    /// Test a restore: restore the newest archives, compare, and remove the result
    Drill(drill::DrillArgs),
    /// Remove archives that no rule keeps
    Prune(prune::PruneArgs),
    /// Keep an archive regardless of the rules: pin @17
    Pin(prune::PinArgs),
    /// Remove one archive now: forget @17
    Forget(prune::ForgetArgs),
    /// List runs, or show one in full: history @17
    History(history::HistoryArgs),
    /// List the members of an archive
    Ls(ls::LsArgs),
    /// Write members of an archive to standard output
    #[command(alias = "dump")]
    Cat(cat::CatArgs),
    /// Find files in all archives by glob, or list the versions of one path
    Find(find::FindArgs),
    /// Same as `find --versions PATH`
    #[command(hide = true)]
    Versions(find::VersionsArgs),
    /// Show what changed between two archives, or an archive and its source
    Diff(diff::DiffArgs),

    /// Start the service in the background
    Start(start::StartArgs),
    /// Stop the service after running work has finished
    Stop(start::StopArgs),
    /// Run the service in the foreground, for containers and systemd
    Serve(serve::ServeArgs),

    /// Make the schedules of a settings file (TOML) those of the database
    Apply(apply::ApplyArgs),
    /// Read schedules from a text file (path;hh:mm;name a line) or from JSON
    Import(text_file::ImportArgs),
    /// Write schedules to a file, or an archive as one tar file
    Export(export::ExportArgs),
    /// Rebuild the catalog from the archive files, or restore a copy of the database
    Rescan(rescan::RescanArgs),
    /// Show or change service settings
    Config(config::ConfigArgs),
}

/// Carries out a verb; returns the exit code.
pub(super) fn run_verb(context: &Context, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Restore(args) => restore::cmd_restore(context, &args),
        Verb::Run(args) => run::cmd_run(context, &args),
        Verb::Status(args) => status::cmd_status(context, &args),
        Verb::Create(args) => create::cmd_create(context, &args),
        Verb::List => list::cmd_list(context),
        Verb::Show(args) => list::cmd_show(context, &args),
        Verb::Edit(args) => edit::cmd_edit(context, &args),
        Verb::Pause(args) => edit::cmd_pause(context, &args, false),
        Verb::Resume(args) => edit::cmd_pause(context, &args, true),
        Verb::Delete(args) => delete::cmd_delete(context, &args),
        Verb::Next(args) => next::cmd_next(context, &args),
        Verb::Cancel(args) => cancel::cmd_cancel(context, &args),
        Verb::Accept(args) => accept::cmd_accept(context, &args),
        Verb::Backups(args) => archives::cmd_backups(context, &args),
        Verb::Verify(args) => verify::cmd_verify(context, &args),
        Verb::Repair(args) => repair::cmd_repair(context, &args),
        Verb::Drill(args) => drill::cmd_drill(context, &args),
        Verb::Prune(args) => prune::cmd_prune(context, &args),
        Verb::Pin(args) => prune::cmd_pin(context, &args),
        Verb::Forget(args) => prune::cmd_forget(context, &args),
        Verb::History(args) => history::cmd_history(context, &args),
        Verb::Ls(args) => ls::cmd_ls(context, &args),
        Verb::Cat(args) => cat::cmd_cat(context, &args),
        Verb::Find(args) => find::cmd_find(context, &args),
        Verb::Versions(args) => find::cmd_find(context, &args.into()),
        Verb::Diff(args) => diff::cmd_diff(context, &args),
        Verb::Start(args) => start::cmd_start(context, &args),
        Verb::Stop(args) => start::cmd_stop(context, &args),
        Verb::Serve(args) => serve::cmd_serve(context, &args),
        Verb::Apply(args) => apply::cmd_apply(context, &args),
        Verb::Import(args) => text_file::cmd_import(context, &args),
        Verb::Export(args) => export::cmd_export(context, &args),
        Verb::Rescan(args) => rescan::cmd_rescan(context, &args),
        Verb::Config(args) => config::cmd_config(context, &args),
    }
}
