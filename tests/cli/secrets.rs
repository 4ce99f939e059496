//! Secrets that the program stores stay where they are.

use std::fs;

use crate::environment::{TestHome, tar_lists};

#[test]
fn stored_secrets_get_into_no_archive() {
    let home = TestHome::new();
    fs::create_dir(home.path("backup.db.secrets")).unwrap();
    fs::write(home.path("backup.db.secrets/notify-phone"), "hunter2").unwrap();
    let _ = home.run(&["create", ".;02:00;whole_home", "--now"]).ok();
    let members = tar_lists(&home.path("backups/whole_home.tar"));
    assert!(!members.iter().any(|path| path.contains("secrets")), "{members:?}");
}
