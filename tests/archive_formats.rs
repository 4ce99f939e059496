//! Archives of every format: read by other tars, proven, and damaged on purpose.

mod support;

use std::fs;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use backup_manager::archive::proof::prove_by_trailer;
use backup_manager::schedule::Compression;

use support::archive::{make, run_tool};

const FORMATS: [Compression; 3] = [Compression::None, Compression::Gzip(6), Compression::Zstd(3)];

#[test]
fn a_small_tree_is_read_by_other_tars_and_proven() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir_all(source.join("sub/empty")).unwrap();
    for i in 0..300 {
        fs::write(source.join(format!("sub/{i:03}")), format!("{i}\n").repeat(i * 40)).unwrap();
    }
    fs::write(source.join("large"), vec![7; 9_000_001]).unwrap();
    std::os::unix::fs::symlink("sub/001", source.join("link")).unwrap();
    for compression in FORMATS {
        let made = make(&source, folder.path(), compression);
        assert_eq!((made.written.members, made.written.files, made.written.folders), (305, 301, 3));
        assert_eq!(made.written.problems, []);
        made.prove().unwrap();
        let (trailer, digest) = prove_by_trailer(&made.path, 2, &AtomicBool::new(false)).unwrap();
        assert_eq!(digest, made.written.digest);
        assert_eq!(trailer.facts().members, 305);
        for tool in ["tar", "bsdtar"] {
            let out = folder.path().join("out");
            fs::create_dir(&out).unwrap();
            run_tool(Command::new(tool).arg("-xf").arg(&made.path).arg("-C").arg(&out));
            run_tool(Command::new("diff").arg("-r").arg("--no-dereference").arg(&source).arg(out.join("source")));
            fs::remove_dir_all(&out).unwrap();
        }
    }
}
