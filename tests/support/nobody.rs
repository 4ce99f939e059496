//! Runs tests again as an unprivileged user: for root no permission is ever denied.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

const NOBODY: u32 = 65_534;

/// Runs this test binary again as the user nobody, with these arguments, if this process is root: at least one test
/// must run, and all must pass. Otherwise does nothing and returns false.
pub fn again_as_nobody(arguments: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The binary itself may lie in a folder that other users cannot enter.
    let (copy, own) = (scratch.path().join("test"), scratch.path().join("own"));
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    fs::create_dir(&own).unwrap();
    chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new(copy);
    command.args(arguments).arg("--nocapture").env("TMPDIR", &own).current_dir(&own).uid(NOBODY).gid(NOBODY);
    let output = command.output().unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "as nobody: {printed}\n{errors}");
    assert!(!printed.contains("test result: ok. 0 passed"), "no test ran as nobody: {printed}");
    eprintln!("as nobody: {}", printed.lines().rfind(|line| line.starts_with("test result")).unwrap_or_default());
    true
}
