//! Archives written by other programs, in every format that they support.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use backup_manager::browse::{OpenArchive, read_file};
use backup_manager::cancel::CancelToken;
use backup_manager::error::ErrorKind;
use backup_manager::maintenance::verify::verify_file;
use backup_manager::restore::Options;

use crate::fidelity::restore_all;
use crate::support::archive::run_tool;
use crate::tar_file::TarFile;
use crate::tree::{ALL, Parts, assert_same, tree};

fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    for i in 0..30 {
        fs::write(root.join(format!("sub/{i}")), format!("{i}\n").repeat(i * 300)).unwrap();
    }
    fs::write(root.join("large"), vec![7; 3_000_000]).unwrap();
    fs::hard_link(root.join("sub/1"), root.join("sub/deep/one")).unwrap();
    symlink("sub/1", root.join("link")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    for at in 0..40 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", at * 200_000).unwrap();
    }
    sparse.set_len(9_000_000).unwrap();
}

fn check(source: &Path, file: &Path, parts: Parts, what: &str) {
    let to = tempfile::tempdir().unwrap();
    let report = restore_all(file, &Options { sync: false, ..Options::to(to.path()) }).unwrap();
    assert_eq!(report.outcome(), None, "{what}: {report:?}");
    assert_same(&tree(source, parts), &tree(&to.path().join("source"), parts), what);
}

fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|out| out.status.success());
    if !found {
        eprintln!("skipped: {tool} is not installed");
    }
    found
}

#[test]
fn archives_of_gnu_tar_in_all_its_formats_are_restored() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let plain = Parts { nanoseconds: false, ..ALL };
    for format in ["v7", "oldgnu", "gnu", "ustar", "pax"] {
        let long = source.join("l".repeat(90)).join("o".repeat(90));
        if matches!(format, "gnu" | "pax") {
            fs::create_dir_all(&long).unwrap();
            fs::write(long.join("n".repeat(200)), "long").unwrap();
            symlink("t".repeat(200), long.join("link")).unwrap();
        }
        for sparse in [false, true] {
            if sparse && matches!(format, "v7" | "ustar") {
                continue;
            }
            let file = folder.path().join(format!("{format}.tar"));
            let mut tar = Command::new("tar");
            tar.arg(format!("--format={format}")).arg("--sort=name").arg("-C").arg(folder.path());
            if sparse {
                tar.arg("-S");
            }
            run_tool(tar.arg("-cf").arg(&file).arg("source"));
            let parts = if format == "pax" { ALL } else { plain };
            check(&source, &file, parts, &format!("{format}, sparse {sparse}"));
            if sparse && format == "pax" {
                for version in ["0.0", "0.1", "1.0"] {
                    let file = folder.path().join("versions.tar");
                    let mut tar = Command::new("tar");
                    tar.args(["--format=pax", "-S"]).arg(format!("--sparse-version={version}"));
                    run_tool(tar.arg("-C").arg(folder.path()).arg("-cf").arg(&file).arg("source"));
                    check(&source, &file, ALL, &format!("pax sparse {version}"));
                }
            }
        }
        let _ = fs::remove_dir_all(source.join("l".repeat(90)));
    }
}

#[test]
fn compressed_and_concatenated_archives_are_restored() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let plain = folder.path().join("a.tar");
    run_tool(Command::new("tar").arg("-C").arg(folder.path()).arg("-cf").arg(&plain).arg("source"));
    let parts = Parts { nanoseconds: false, ..ALL };
    for tool in ["gzip", "zstd"] {
        if !has(tool) {
            continue;
        }
        let packed = folder.path().join(format!("a.tar.{tool}"));
        let out = run_tool(Command::new(tool).arg("-c").arg(&plain));
        fs::write(&packed, &out.stdout).unwrap();
        check(&source, &packed, parts, tool);
        let archive = OpenArchive::from_file(&packed).unwrap();
        let mut content = Vec::new();
        let path = archive.member_path(Path::new("source/sub/deep/one")).unwrap();
        read_file(&archive, &path, &mut |bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        assert_eq!(content, fs::read(source.join("sub/1")).unwrap());
    }
}

#[test]
fn archives_of_bsdtar_and_python_are_restored() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let parts = Parts { nanoseconds: false, ..ALL };
    if has("bsdtar") {
        for format in ["pax", "ustar", "gnutar"] {
            let file = folder.path().join("bsd.tar");
            let mut tar = Command::new("bsdtar");
            run_tool(tar.args(["--format", format, "-C"]).arg(folder.path()).arg("-cf").arg(&file).arg("source"));
            check(&source, &file, parts, &format!("bsdtar {format}"));
        }
    }
    if has("python3") {
        for format in ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"] {
            let file = folder.path().join("python.tar");
            let script = format!(
                "import tarfile, sys\n\
                 t = tarfile.open(sys.argv[1], 'w', format=tarfile.{format})\n\
                 t.add(sys.argv[2], 'source')\n\
                 t.close()"
            );
            run_tool(Command::new("python3").args(["-c", &script]).arg(&file).arg(&source));
            check(&source, &file, parts, &format!("python {format}"));
        }
    }
}

#[test]
fn acls_that_other_programs_write_as_text_are_restored() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_tree(&source);
    let set = |args: &[&str], path: &str| {
        let status = Command::new("setfacl").args(args).arg(source.join(path)).status();
        status.is_ok_and(|status| status.success())
    };
    if !set(&["-m", "u:1234:rw,g:55:r"], "sub/3") || !set(&["-d", "-m", "u:1234:rwx,m:rx"], "sub/deep") {
        eprintln!("skipped: ACLs: setfacl is missing or the file system has none");
        return;
    }
    for tool in ["tar", "bsdtar"].into_iter().filter(|tool| has(tool)) {
        let file = folder.path().join(tool);
        let mut command = Command::new(tool);
        command.args(["--format=pax", "--acls", "--no-xattrs", "--numeric-owner", "-C"]).arg(folder.path());
        run_tool(command.arg("-cf").arg(&file).arg("source"));
        check(&source, &file, ALL, tool);
    }
}

#[test]
fn a_damaged_first_header_costs_only_its_own_member() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.tar");
    for count in [1, 4] {
        let tar = TarFile::default().file("first", &vec![b'1'; 5000]).file("second", b"two").folder("third").end();
        let mut bytes = tar.clone();
        (0..count).for_each(|at| bytes[at * 40] += 1);
        fs::write(&file, &bytes).unwrap();
        let to = tempfile::tempdir().unwrap();
        let report = restore_all(&file, &Options { sync: false, ..Options::to(to.path()) }).unwrap();
        assert_eq!((report.outcome(), report.damaged.count), (Some(ErrorKind::Damage), 1), "{report:?}");
        assert_eq!(fs::read(to.path().join("second")).unwrap(), b"two");
        assert!(to.path().join("third").is_dir());
        assert!(!verify_file(&file, 1, &CancelToken::new()).unwrap().is_good());
    }
    fs::write(&file, vec![b'x'; 100_000]).unwrap();
    assert_eq!(restore_all(&file, &Options::to(folder.path())).unwrap_err().kind(), ErrorKind::Damage);
}

#[test]
fn a_pipe_or_a_folder_is_an_error_and_never_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for (path, what) in [(&*fifo, "a pipe or a device"), (folder.path(), "a folder")] {
        let error = restore_all(path, &Options::to(folder.path())).unwrap_err();
        assert!(error.kind() == ErrorKind::Failed && error.to_string().contains(what), "{error}");
        assert!(verify_file(path, 1, &CancelToken::new()).is_err());
    }
}
