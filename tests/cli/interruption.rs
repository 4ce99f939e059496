//! Commands that a signal interrupts.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use crate::environment::TestHome;
use crate::service::send;

#[test]
fn a_verification_that_is_interrupted_between_two_archives_does_not_end_well() {
    const CAPACITY: u64 = 60_000;
    let home = TestHome::with_sources(&["a"]);
    let mut args = vec!["verify".to_owned()];
    let tar = home.path("plain.tar");
    let made = Command::new("tar").arg("-C").arg(home.dir.path()).arg("-cf").arg(&tar).arg("a").status();
    assert!(made.unwrap().success());
    for number in 0..400 {
        let name = format!("{number:0200}.tar");
        fs::hard_link(&tar, home.path(&name)).unwrap();
        args.push(name);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut verifying = home.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It waits for a reader of its results.
    let pipe = verifying.stdout.as_ref().unwrap();
    home.wait_until("full pipe", 20, || rustix::io::ioctl_fionread(pipe).unwrap() > CAPACITY);
    send(verifying.id().into(), rustix::process::Signal::INT);
    let mut results = String::new();
    let _ = verifying.stdout.take().unwrap().read_to_string(&mut results).unwrap();
    let output = verifying.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(results.lines().count() < 400);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("archives not verified"), "{errors}");
}
