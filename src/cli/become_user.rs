//! Giving up the rights of root.

use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Makes this process one of the user `uid` for good, with the groups of that user; with the group `gid` alone if the
/// system does not know the user.
///
/// The program is not executed again. After that the user could trace the process, and with it use what it has from
/// root: environment, open files, and the terminal in which root types.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let user = uzers::get_user_by_uid(uid);
    let gid = user.as_ref().map_or(gid, uzers::User::primary_group_id);
    let groups: Vec<libc::gid_t> =
        user.and_then(|user| user.groups()).map_or(vec![gid], |groups| groups.iter().map(uzers::Group::gid).collect());
    // The rights to change groups end with the user, which is changed last.
    check(
        // SAFETY: the list is valid for the call, and its length is that of the list.
        #[allow(
            unsafe_code,
            reason = "the safe calls of rustix change one thread, those of the C library the process"
        )]
        unsafe {
            libc::setgroups(groups.len(), groups.as_ptr())
        },
    )?;
    // SAFETY: setgid takes an integer and touches no memory of ours.
    #[allow(unsafe_code, reason = "see setgroups")]
    check(unsafe { libc::setgid(gid) })?;
    // SAFETY: setuid takes an integer and touches no memory of ours.
    #[allow(unsafe_code, reason = "see setgroups")]
    check(unsafe { libc::setuid(uid) })?;
    // The kernel has done it already, unless the system is set to let processes that changed their user be traced.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
