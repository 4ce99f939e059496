//! A file system in a file, mounted for one test.

#![allow(dead_code, reason = "each test uses a part")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// A mounted file system. Unmounted when dropped, after what was made in it.
pub struct LoopMount {
    dir: tempfile::TempDir,
}

impl LoopMount {
    /// Makes and mounts a file system: `xfs`, `btrfs` or `ext4`. Prints why if that is not possible here.
    pub fn new(kind: &str) -> Option<LoopMount> {
        let mount = LoopMount { dir: tempfile::tempdir().unwrap() };
        let (image, at) = (mount.dir.path().join("image"), mount.dir.path().join("mounted"));
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let options: &[&str] = match kind {
            "xfs" => &["-q", "-m", "reflink=1"],
            "btrfs" => &["-q"],
            _ => &["-q", "-F"],
        };
        let is_made = succeeds(Command::new(format!("mkfs.{kind}")).args(options).arg(&image));
        if is_made && succeeds(Command::new("mount").args(["-o", "loop"]).args([&image, &at])) {
            return Some(mount);
        }
        let reason = format!("skipped: making and mounting {kind} needs root, loop devices and mkfs.{kind}\n");
        std::io::stderr().write_all(reason.as_bytes()).unwrap();
        None
    }

    /// Unmounts it, lets `change` have its image, and mounts it again.
    pub fn change_image(&self, change: impl FnOnce(&Path)) {
        let (image, at) = (self.dir.path().join("image"), self.dir.path().join("mounted"));
        assert!(succeeds(Command::new("umount").arg(&at)), "it is still busy");
        change(&image);
        assert!(succeeds(Command::new("mount").args(["-o", "loop"]).args([&image, &at])), "it is not mounted again");
    }

    /// Returns a new folder in it, to be dropped before the file system.
    pub fn folder(&self) -> tempfile::TempDir {
        tempfile::tempdir_in(self.dir.path().join("mounted")).unwrap()
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        succeeds(Command::new("umount").arg(self.dir.path().join("mounted")));
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Returns how many bytes of a file lie in blocks that other files have, too.
pub fn shared_bytes(path: &Path) -> u64 {
    // Extents are known once they are on disk.
    let output = Command::new("filefrag").args(["-s", "-v", "-b4096"]).arg(path).output().expect("filefrag");
    let text = String::from_utf8(output.stdout).unwrap();
    let shared = text.lines().filter(|line| line.contains("shared"));
    // ext: logical_offset: physical_offset: length: expected: flags
    let blocks = shared.map(|line| line.split(':').nth(3).unwrap().trim().parse::<u64>().unwrap());
    blocks.sum::<u64>() * 4096
}
