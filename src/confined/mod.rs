//! A folder that nothing escapes from: creates files beneath it and never outside it, whatever an archive contains and
//! whatever another process does meanwhile (I11).
//!
//! Folders are opened only relative to an open folder and never through a symbolic link: by `openat2` where the kernel
//! has it, else component by component. Everything is created under a random name in its own folder and renamed, so
//! that an existing file is never written to.

mod compare;
mod completed_paths;
mod create;
mod inspect;
mod metadata;
mod open;
mod tree;

pub use compare::{MetadataDifferences, correct_metadata, metadata_differences};
pub use completed_paths::CompletedPaths;
pub use create::{NewEntry, lock_folder, remove};
pub use inspect::{device_of, is_empty_folder, kind_of, link_target, modified_of, open_file, stat_entry};
pub use metadata::{
    MetadataLoss, PRIVATE_MODE, Privileges, apply_metadata, clear_inherited_acl, is_unfinished, mode_at_creation,
};
pub use open::ConfinedFolder;
pub use tree::{CreateError, FolderEnd, FolderMetadata, FolderTree, OnFinished, OpenFolder, TreeContext};
