//! The zone of this process: from `TZ`, else from the files of the system.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::schedule::{self, ServiceZone};

/// Folders in the database of zones that repeat its content under other names.
const REPEATED: [&str; 2] = ["posix", "right"];

/// Determines the zone that a service started by this process would use.
///
/// Errors: `Usage` if `TZ` or the system sets a zone whose name is unknown or cannot be found.
pub fn service_zone() -> Result<ServiceZone> {
    let tz = std::env::var_os("TZ").map(|value| value.to_string_lossy().into_owned());
    let is_system = tz.as_deref().is_none_or(|value| value.strip_prefix(':').unwrap_or(value) == "/etc/localtime");
    let system = if is_system { system_name(Path::new("/"))? } else { None };
    schedule::service_zone(tz.as_deref(), system.as_deref())
}

/// Returns the name of the zone of the system whose root folder is `root`; `None` if it sets none.
///
/// A link `etc/localtime` into the database of zones has the name. A copy or a mounted file has none: it is found by
/// its content, since a name in `etc/timezone` may be that of another zone, as in an image whose file was replaced.
fn system_name(root: &Path) -> Result<Option<String>> {
    let localtime = root.join("etc/localtime");
    if let Ok(target) = fs::read_link(&localtime)
        && let Some((_, name)) = target.to_string_lossy().split_once("zoneinfo/")
    {
        return Ok(Some(name.to_owned()));
    }
    let written = fs::read_to_string(root.join("etc/timezone")).ok().map(|text| text.trim().to_owned());
    let Ok(content) = fs::read(&localtime) else {
        let other = || iana_time_zone::get_timezone().ok().filter(|_| root == Path::new("/"));
        return Ok(written.filter(|name| !name.is_empty()).or_else(other));
    };
    let database = root.join("usr/share/zoneinfo");
    let is_same = |name: &String| fs::read(database.join(name)).is_ok_and(|other| other == content);
    match written.filter(is_same).or_else(|| find_by_content(&database, &database, &content)) {
        Some(name) => Ok(Some(name)),
        // The last line of a zone file is its rule as `TZ` has it.
        None if content.ends_with(b"\nUTC0\n") => Ok(Some("UTC".to_owned())),
        None => Err(Error::usage(format!("the name of the time zone in {} is unknown", localtime.display()))
            .hint("set TZ to an IANA name like Europe/Paris")),
    }
}

/// Returns the first name, in order, of a file with this content that is the name of a zone.
fn find_by_content(database: &Path, folder: &Path, content: &[u8]) -> Option<String> {
    let mut entries: Vec<_> = fs::read_dir(folder).ok()?.flatten().collect();
    entries.sort_by_key(|entry| entry.file_name());
    entries.iter().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            let is_repeated = REPEATED.iter().any(|name| entry.file_name() == OsStr::new(name));
            return if is_repeated { None } else { find_by_content(database, &path, content) };
        }
        let name = path.strip_prefix(database).ok()?.to_str()?;
        let is_zone = fs::metadata(&path).is_ok_and(|found| found.len() == content.len() as u64)
            && fs::read(&path).is_ok_and(|other| other == content)
            && schedule::parse_zone(name).is_ok();
        is_zone.then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn system(zones: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        for (name, content) in zones {
            let path = root.path().join("usr/share/zoneinfo").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn a_zone_file_without_a_name_is_found_by_its_content() {
        let zones = [("posix/Europe/Paris", "CET"), ("Europe/Monaco", "CET"), ("Europe/Paris", "CET"), ("UTC", "x")];
        let root = system(&zones);
        let set = |name: &str, content: &str| fs::write(root.path().join("etc").join(name), content).unwrap();
        let name = || system_name(root.path()).unwrap();
        assert_eq!(name(), None, "nothing is set");
        set("timezone", "Asia/Tokyo\n");
        assert_eq!(name().as_deref(), Some("Asia/Tokyo"));
        set("localtime", "CET");
        assert_eq!(name().as_deref(), Some("Europe/Monaco"), "the file is right, not the name of another zone");
        set("timezone", "Europe/Paris\n");
        assert_eq!(name().as_deref(), Some("Europe/Paris"), "the name of the same zone is taken");
        set("localtime", "TZif2\nUTC0\n");
        assert_eq!(name().as_deref(), Some("UTC"));
        set("localtime", "TZif2 of a zone that is not in the database");
        let error = system_name(root.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.next_step().unwrap().contains("set TZ"), "{error}");
    }

    #[test]
    fn a_link_into_the_database_of_zones_is_the_name() {
        let root = system(&[]);
        for target in ["/usr/share/zoneinfo/Asia/Tokyo", "../usr/share/zoneinfo/Asia/Tokyo", "/etc/zoneinfo/Asia/Tokyo"]
        {
            let link = root.path().join("etc/localtime");
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert_eq!(system_name(root.path()).unwrap().as_deref(), Some("Asia/Tokyo"), "{target}");
        }
    }
}
