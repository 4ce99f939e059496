//! The container that this program itself runs in, and what of the host is mounted there.

use std::fs;
use std::path::{Path, PathBuf};

use super::container::Container;
use super::engine::Engine;
use crate::error::Result;

/// Digits of a container's id.
const ID_LENGTH: usize = 64;
/// Files that engines create in containers.
const MARKERS: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];

/// The container of this process, if it runs in one.
#[derive(Debug, Default)]
pub struct Own {
    /// As the engine knows it; `None` outside containers, and if the engine does not know it.
    pub(super) container: Option<Container>,
    /// The process runs in a container, whether the engine knows it or not.
    pub(super) is_in_container: bool,
}

/// A folder or file as the host and the engine know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The volume it lies in, and its path there.
    pub(super) volume: Option<(String, PathBuf)>,
    /// Its path on the host; empty if unknown.
    pub(super) path: PathBuf,
}

impl Own {
    /// Finds the container of this process: by the id in its mounts, else by its host name.
    ///
    /// Errors: the engine does not answer as it should.
    pub fn find(engine: &Engine) -> Result<Own> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let id = id_in_mounts(&mounts);
        let is_in_container = id.is_some() || MARKERS.iter().any(|path| Path::new(path).exists());
        if !is_in_container {
            return Ok(Own::default());
        }
        let host_name = || std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
        let container = match id {
            Some(id) => engine.inspect(id)?,
            None => match host_name() {
                // It may be anything, also no name of a container.
                Some(name) => engine.inspect(&name).unwrap_or_default().filter(|found| is_named(found, &name)),
                None => None,
            },
        };
        Ok(Own { container, is_in_container })
    }

    /// Returns what a source consists of: the folder itself, and each mount of our container below it. `None` if it is
    /// not known which mounts there are.
    pub(super) fn places(&self, source: &Path) -> Option<Vec<Place>> {
        let Some(container) = &self.container else {
            return (!self.is_in_container).then(|| on_host(source));
        };
        let source = &fs::canonicalize(source).unwrap_or_else(|_| source.to_owned());
        let mounts = container.mounts.iter();
        let around = mounts.clone().filter(|mount| source.starts_with(&mount.destination));
        // The innermost one hides the others.
        let around = around.max_by_key(|mount| mount.destination.len());
        let inside = mounts.filter(|mount| {
            let destination = Path::new(&mount.destination);
            destination.starts_with(source) && destination != source
        });
        let places = around.into_iter().chain(inside).map(|mount| {
            let below = source.strip_prefix(&mount.destination).unwrap_or(Path::new(""));
            Place::in_mount(&mount.name, &mount.source, below)
        });
        Some(places.collect())
    }
}

/// Returns the places of a path outside containers, where each engine has its own idea of links in it.
fn on_host(source: &Path) -> Vec<Place> {
    let real = fs::canonicalize(source).ok().filter(|real| real != source);
    let paths = std::iter::once(source.to_owned()).chain(real);
    paths.map(|path| Place { volume: None, path }).collect()
}

impl Place {
    /// Returns the place `below` a mount.
    pub(super) fn in_mount(name: &str, source: &str, below: &Path) -> Place {
        let volume = (!name.is_empty()).then(|| (name.to_owned(), below.to_owned()));
        let path =
            if source.is_empty() { PathBuf::new() } else { Path::new(source).join(below).components().collect() };
        Place { volume, path }
    }

    /// Returns whether one of both is part of the other.
    pub(super) fn overlaps(&self, other: &Place) -> bool {
        let nested = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        let volumes = match (&self.volume, &other.volume) {
            (Some((name, path)), Some((other, other_path))) => name == other && nested(path, other_path),
            _ => false,
        };
        let known = !self.path.as_os_str().is_empty() && !other.path.as_os_str().is_empty();
        volumes || known && nested(&self.path, &other.path)
    }
}

/// Returns the id of the container whose files are mounted as `/etc/hostname` or its neighbours.
fn id_in_mounts(mounts: &str) -> Option<&str> {
    let mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        Some((fields.next()?, fields.next()?))
    });
    let names = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
    let mut ids = mounted.filter(|(_, target)| names.contains(target)).filter_map(|(root, _)| {
        root.split('/').find(|part| part.len() == ID_LENGTH && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    });
    ids.next()
}

/// Returns whether a host name is that of the container, not only equal to the name of another one.
fn is_named(container: &Container, host_name: &str) -> bool {
    container.id.starts_with(host_name) || container.config.hostname == host_name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_id_is_read_from_the_mounts() {
        let id = "4f1c".repeat(16);
        let docker = format!(
            "700 690 0:50 / /proc rw - proc proc rw\n\
             712 690 254:0 /var/lib/docker/containers/{id}/resolv.conf /etc/resolv.conf rw - ext4 /dev/vda rw\n\
             713 690 254:0 /var/lib/docker/containers/{id}/hostname /etc/hostname rw - ext4 /dev/vda rw\n"
        );
        assert_eq!(id_in_mounts(&docker), Some(id.as_str()));
        let podman = format!(
            "1 2 0:5 /containers/overlay-containers/{id}/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw\n"
        );
        assert_eq!(id_in_mounts(&podman), Some(id.as_str()));
        assert_eq!(id_in_mounts("29 1 254:0 / / rw - ext4 /dev/vda rw\n"), None);
    }

    fn inside(mounts: &str) -> Own {
        let json = format!(r#"{{"Id": "x", "State": {{}}, "Mounts": {mounts}}}"#);
        Own { container: Some(serde_json::from_str(&json).unwrap()), is_in_container: true }
    }

    #[test]
    fn a_source_is_translated_by_the_innermost_mount_and_those_below_it() {
        let own = inside(
            r#"[{"Type": "bind", "Source": "/srv/data", "Destination": "/app/data"},
                {"Type": "volume", "Name": "photos", "Source": "/v/photos/_data", "Destination": "/app/data/photos"}]"#,
        );
        let photos = |below: &str| Place::in_mount("photos", "/v/photos/_data", Path::new(below));
        assert_eq!(own.places(Path::new("/app/data/photos/2026")).unwrap(), [photos("2026")]);
        let bind = Place::in_mount("", "/srv/data", Path::new(""));
        assert_eq!(own.places(Path::new("/app/data")).unwrap(), [bind, photos("")]);
        assert_eq!(own.places(Path::new("/app/database")).unwrap(), []);
        let unknown = Own { container: None, is_in_container: true };
        assert_eq!(unknown.places(Path::new("/app/data")), None);
    }

    #[test]
    fn places_overlap_by_volume_or_by_path_of_the_host() {
        let place = |name: &str, source: &str, below: &str| Place::in_mount(name, source, Path::new(below));
        let photos = place("photos", "/v/photos/_data", "");
        assert!(photos.overlaps(&place("photos", "", "2026")));
        assert!(photos.overlaps(&place("", "/v/photos", "")));
        assert!(place("", "/srv/data", "app").overlaps(&place("", "/srv/data/app/sub", "")));
        assert!(!place("", "/srv/data", "").overlaps(&place("", "/srv/database", "")));
        assert!(!place("photos", "", "a").overlaps(&place("photos", "", "b")));
        assert!(!place("photos", "", "").overlaps(&place("music", "", "")));
    }
}
