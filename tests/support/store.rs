//! A store without a home, and archives for it that are in no file.

use std::path::Path;

use backup_manager::clock::Timestamp;
use backup_manager::member::{Extent, MemberPath};
use backup_manager::schedule::{Compression, Layout};
use backup_manager::store::{Access, BaseQuery, Bootstrap, FoundArchive, Origin, Sealed, Store, StoredBytes};
use tempfile::TempDir;

/// 2026-11-23T00:00:00Z.
pub const NOW: Timestamp = Timestamp::from_millis(1_795_392_000_000);

pub fn open(dir: &TempDir) -> Store {
    open_at(&dir.path().join("backup.db"))
}

pub fn open_at(path: &Path) -> Store {
    let bootstrap = Bootstrap { access: Access::Create, file_mode: 0o600, folder_mode: 0o700, notice: |_| () };
    Store::open(path, &bootstrap).unwrap()
}

/// Returns an archive that [`query`] finds.
pub fn sealed() -> Sealed {
    Sealed {
        size: 1,
        digest: [0; 32],
        file: StoredBytes { size: 1, device: 1, inode: 1, modified_ns: Some(0) },
        in_segments: None,
        source_root: b"/source".to_vec(),
        scan_started: NOW,
        extent: Extent::default(),
        incomplete: false,
        boot_id: None,
        origin: Some(origin()),
    }
}

pub fn query(schedule: i64) -> BaseQuery {
    BaseQuery {
        schedule,
        compression: Compression::None,
        layout: Layout::Whole,
        source_root: b"/source".to_vec(),
        origin: origin(),
    }
}

/// Returns a whole archive that a rescan finds: the file with this inode.
pub fn found(schedule: i64, run: i64, file_name: String, inode: u64) -> FoundArchive {
    FoundArchive {
        schedule,
        run,
        file_name,
        created_at: NOW,
        layout: Layout::Whole,
        size: 1,
        digest: Some([1; 32]),
        device: 1,
        inode,
        codec: "none",
        source_root: b"/source".to_vec(),
        incomplete: false,
        extent: Extent::default(),
        problems: 0,
        losses: 0,
    }
}

fn origin() -> Origin {
    Origin {
        root_name: MemberPath::parse(b"source").unwrap(),
        writer_version: 1,
        archive_mode: 0o400,
        effective_uid: 0,
        capabilities: String::new(),
    }
}
