//! Archives on file systems that know no links and no modes: FAT through the kernel, FAT and exFAT through FUSE.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::environment::{TestHome, tar_lists};

/// A file system made and mounted for a test, taken away at the end.
struct Mounted {
    at: PathBuf,
    device: Option<String>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).stderr(Stdio::null()).status();
        if let Some(device) = &self.device {
            let _ = Command::new("losetup").args(["-d", device]).stderr(Stdio::null()).status();
        }
    }
}

/// Runs a tool; returns what it said where it is there and succeeded.
fn tool(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn mount(kind: &str, image: &Path, at: &Path) -> Option<Mounted> {
    fs::create_dir_all(at).unwrap();
    fs::File::create(image).unwrap().set_len(64 << 20).unwrap();
    let (image, target) = (image.to_str()?, at.to_str()?);
    tool(if kind == "exfat-fuse" { "mkfs.exfat" } else { "mkfs.vfat" }, &[image])?;
    if kind == "fusefat" {
        tool("fusefat", &["-o", "rw+", image, target])?;
        return Some(Mounted { at: at.to_owned(), device: None });
    }
    let device = tool("losetup", &["-f", "--show", image])?;
    let mounted = Mounted { at: at.to_owned(), device: Some(device.clone()) };
    match kind {
        "exfat-fuse" => tool("mount.exfat-fuse", &[&device, target])?,
        _ => tool("mount", &["-t", "vfat", &device, target])?,
    };
    Some(mounted)
}

fn archives_work_on(kind: &str) {
    let home = TestHome::with_sources(&["a"]);
    let backups = home.path("backups");
    let Some(_mounted) = mount(kind, &home.path("image"), &backups) else {
        let reason = format!("skipped: {kind} cannot be made and mounted here\n");
        std::io::stderr().write_all(reason.as_bytes()).unwrap();
        return;
    };
    let _ = home.run(&["create", "a;09:00;docs"]).ok();
    for _ in 0..2 {
        let run = home.run(&["run", "docs"]).ok();
        assert!(run.stderr.contains("no stable link for docs"), "the link that cannot be created is reported: {run:?}");
    }
    let files = home.archive_files();
    assert_eq!(files.len(), 2, "each run has its own, and nothing half written stays: {files:?}");
    for file in files {
        assert!(tar_lists(&backups.join("docs").join(file)).contains(&"a/file.txt".to_owned()));
    }
    assert_eq!(home.run(&["--json", "history", "docs"]).ok().json()[0]["state"], "succeeded");
    // No name may be a link of another one here: what did not change is copied.
    assert!(home.run(&["history", "@2"]).ok().stdout.contains("taken from @1"));
    let _ = home.run(&["verify"]).ok();
}

#[test]
fn archives_may_lie_on_fat() {
    archives_work_on("vfat");
}

#[test]
fn archives_may_lie_on_fat_through_fuse() {
    archives_work_on("fusefat");
}

#[test]
fn archives_may_lie_on_exfat_through_fuse() {
    archives_work_on("exfat-fuse");
}
