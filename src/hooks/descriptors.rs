//! The descriptors that this process has from its parent.

use std::fs;
use std::io;

/// Makes the programs that this process starts inherit no descriptors but the standard streams. A pipe that a
/// background service inherited would have no end as long as the service runs.
pub fn keep_from_children() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<libc::c_int>().ok()) else {
            continue;
        };
        if number > 2 {
            // SAFETY: F_SETFD takes an integer and touches no memory of ours. It closes nothing here, and the
            // descriptors that this program opens have the flag already. One that is closed by now is no error.
            #[allow(unsafe_code, reason = "a safe call takes a descriptor that this program owns, not a number")]
            let _ = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}
