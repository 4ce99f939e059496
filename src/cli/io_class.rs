//! The I/O class of this process.

use std::io;

/// `IOPRIO_WHO_PROCESS` of ioprio_set(2).
const WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_CLASS_IDLE`, shifted to the bits of the class.
const CLASS_IDLE: libc::c_int = 3 << 13;

/// Sets the idle I/O class for this process and the threads that it starts from now on: they use the disk only when no
/// other process does.
pub fn set_idle() -> io::Result<()> {
    // SAFETY: ioprio_set takes three integers and touches no memory of ours.
    #[allow(unsafe_code, reason = "neither the standard library nor rustix has this call")]
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
