//! Names of owners and groups.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::{PoisonError, RwLock};

/// The names of numeric owners and groups. Each is looked up once in the system's databases (files, LDAP, whatever is
/// configured) and cached. May be shared between threads.
#[derive(Debug, Default)]
pub struct OwnerNames {
    users: RwLock<HashMap<u32, Box<[u8]>>>,
    groups: RwLock<HashMap<u32, Box<[u8]>>>,
}

impl OwnerNames {
    /// Returns an empty cache.
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

fn cached(cache: &RwLock<HashMap<u32, Box<[u8]>>>, id: u32, look_up: impl Fn(u32) -> Option<OsString>) -> Box<[u8]> {
    if let Some(name) = cache.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
        return name.clone();
    }
    // Not under the lock: a directory service may take seconds. Two threads may look up the same id.
    let name: Box<[u8]> = look_up(id).map(OsString::into_vec).unwrap_or_default().into();
    cache.write().unwrap_or_else(PoisonError::into_inner).insert(id, name.clone());
    name
}
