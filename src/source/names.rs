//! OwnerNames of owners and groups.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::{PoisonError, RwLock};

/// The names that belong to numeric owners and groups, asked of the system (files, LDAP, whatever it is set up for)
/// once each. May be shared between threads.
#[derive(Debug, Default)]
pub struct OwnerNames {
    users: RwLock<HashMap<u32, Box<[u8]>>>,
    groups: RwLock<HashMap<u32, Box<[u8]>>>,
}

impl OwnerNames {
    /// Makes a store of names that knows none yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the name of the owner `uid`; empty if it has none.
    pub fn user(&self, uid: u32) -> Box<[u8]> {
        cached(&self.users, uid, |uid| uzers::get_user_by_uid(uid).map(|user| user.name().to_owned()))
    }

    /// Returns the name of the group `gid`; empty if it has none.
    pub fn group(&self, gid: u32) -> Box<[u8]> {
        cached(&self.groups, gid, |gid| uzers::get_group_by_gid(gid).map(|group| group.name().to_owned()))
    }
}

fn cached(known: &RwLock<HashMap<u32, Box<[u8]>>>, id: u32, ask: impl Fn(u32) -> Option<OsString>) -> Box<[u8]> {
    if let Some(name) = known.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
        return name.clone();
    }
    // Not under the lock: a directory service may take seconds. Two threads may ask the same.
    let name: Box<[u8]> = ask(id).map(OsString::into_vec).unwrap_or_default().into();
    known.write().unwrap_or_else(PoisonError::into_inner).insert(id, name.clone());
    name
}
