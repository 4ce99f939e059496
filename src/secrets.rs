//! Secrets: the database and all that is made from it hold only *where* a secret is, never its value.
//!
//! A value is read when it is used, so that one that was replaced works without a restart. Its type has no `Display`
//! and its `Debug` shows nothing, so that no message can hold it by accident.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};

use crate::durable;
use crate::error::{Error, Result};
use crate::home::Home;

/// Most bytes of a secret.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;
/// Modes of the folder and its files. They hold for its owner alone, also where the group may read all else.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretReference {
    /// In a file of the user, by its absolute path.
    File(PathBuf),
    /// In a variable of the environment.
    Environment(String),
    /// In the file of this name in the folder of secrets ([`Home::secrets`]).
    Stored(String),
}

impl SecretReference {
    /// Parses `file:PATH` (absolute), `env:NAME` or `stored:NAME`.
    ///
    /// Errors: `Usage` for anything else. The message does not repeat the text, which may be a secret.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: &str| {
            Error::usage(format!("a reference to a secret is wrong: {reason}"))
                .hint("write file:/PATH, env:NAME or stored:NAME")
        };
        match text.split_once(':') {
            Some(("file", path)) if path.starts_with('/') => Ok(SecretReference::File(path.into())),
            Some(("file", _)) => Err(wrong("its path is not absolute")),
            Some(("env", name)) if !name.is_empty() && !name.contains('=') => {
                Ok(SecretReference::Environment(name.to_owned()))
            }
            Some(("stored", name)) if is_file_name(name) => Ok(SecretReference::Stored(name.to_owned())),
            Some(("env" | "stored", _)) => Err(wrong("its name is not valid")),
            _ => Err(wrong("it names no kind")),
        }
    }

    /// Reads the secret, without the line break at its end.
    ///
    /// Errors: `NotFound` if it does not exist; `Failed` if it cannot be read, is empty, not text, or longer than
    /// [`MAX_SECRET_BYTES`].
    pub fn read(&self, home: &Home) -> Result<SecretString> {
        let value = match self {
            SecretReference::File(path) => read_file(path)?,
            SecretReference::Environment(name) => match std::env::var_os(name).filter(|value| !value.is_empty()) {
                Some(value) => Some(read_value(value.as_encoded_bytes(), Path::new(&format!("${name}")))?),
                None => None,
            },
            SecretReference::Stored(name) => read_file(&stored_path(home, name))?,
        };
        value.ok_or_else(|| {
            Error::not_found(format!("the secret {self} does not exist")).hint(match self {
                SecretReference::File(_) => "create the file, or mount it into the container",
                SecretReference::Environment(_) => "set the variable for the service, too",
                SecretReference::Stored(_) => "set it again: a database that was restored has no secrets",
            })
        })
    }
}

/// The form that [`SecretReference::parse`] reads.
impl fmt::Display for SecretReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretReference::File(path) => write!(f, "file:{}", path.display()),
            SecretReference::Environment(name) => write!(f, "env:{name}"),
            SecretReference::Stored(name) => write!(f, "stored:{name}"),
        }
    }
}

/// Reads the secret that is stored under a name; `None` if there is none.
///
/// Errors: those of [`SecretReference::read`], except `NotFound`.
pub fn read_stored(home: &Home, name: &str) -> Result<Option<SecretString>> {
    read_file(&stored_path(home, name))
}

/// Stores a secret under a name, in place of one that is there. The folder is created if necessary; both belong to the
/// owner of the database and are readable for nobody else.
///
/// Errors: `Usage` if the name is no plain file name; `Failed` if the value is one that [`SecretReference::read`]
/// refuses.
pub fn store(home: &Home, name: &str, secret: &SecretString) -> Result<SecretReference> {
    if !is_file_name(name) {
        return Err(Error::usage("the name of a secret is not a file name").hint("use letters, digits, `-` and `_`"));
    }
    let path = stored_path(home, name);
    check_length(secret.expose_secret().len(), &path)?;
    durable::make_folder(&home.secrets(), FOLDER_MODE)?;
    durable::write_file(&path, secret.expose_secret().as_bytes(), FILE_MODE, true)?;
    Ok(SecretReference::Stored(name.to_owned()))
}

/// Removes a stored secret. One that does not exist is no error.
pub fn remove_stored(home: &Home, name: &str) -> Result<()> {
    durable::remove(&stored_path(home, name))
}

fn stored_path(home: &Home, name: &str) -> PathBuf {
    home.secrets().join(name)
}

/// Returns whether a name is one component of a path and not hidden, as temporary files are.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && !name.contains(['/', '\0', '\n'])
}

fn read_file(path: &Path) -> Result<Option<SecretString>> {
    // Without waiting: a pipe that nobody writes to would hold whoever needs the secret for ever.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(Error::io("read the secret in", path)(error.into())),
    };
    let metadata = file.metadata().map_err(Error::io("inspect", path))?;
    if !metadata.is_file() {
        return Err(unusable(path, "it is not a regular file"));
    }
    read_value(file, path).map(Some)
}

/// Reads a secret from an open file, without the line break at its end. `path` names the file in errors.
///
/// Errors: those of [`SecretReference::read`].
pub fn read_value(source: impl Read, path: &Path) -> Result<SecretString> {
    // One that is too long is read far enough to recognise that, with its line break.
    let limit = MAX_SECRET_BYTES + 3;
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit));
    source.take(limit as u64).read_to_end(&mut bytes).map_err(Error::io("read the secret in", path))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| unusable(path, "it is not UTF-8 text"))?;
    let text = without_line_break(text);
    check_length(text.len(), path)?;
    Ok(SecretString::from(text))
}

fn check_length(bytes: usize, path: &Path) -> Result<()> {
    match bytes {
        0 => Err(unusable(path, "it is empty")),
        1..=MAX_SECRET_BYTES => Ok(()),
        _ => Err(unusable(path, &format!("it is longer than {MAX_SECRET_BYTES} bytes"))),
    }
}

fn unusable(path: &Path, reason: &str) -> Error {
    Error::failed(format!("the secret in {} cannot be used: {reason}", path.display()))
}

/// Returns a text without the one line break at its end.
fn without_line_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::error::ErrorKind;
    use crate::home::HomeOptions;

    fn home_in(folder: &Path) -> Home {
        let options = HomeOptions { group_read: true, ..HomeOptions::default() };
        Home::locate(&options, folder).unwrap()
    }

    #[test]
    fn a_stored_secret_is_readable_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let home = home_in(dir.path());
        assert!(read_stored(&home, "token").unwrap().is_none());
        let reference = store(&home, "token", &SecretString::from("first")).unwrap();
        assert_eq!(store(&home, "token", &SecretString::from("second\n")).unwrap(), reference);
        assert_eq!(reference.read(&home).unwrap().expose_secret(), "second");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&home.secrets()), mode(&home.secrets().join("token"))), (0o700, 0o600));
        remove_stored(&home, "token").unwrap();
        remove_stored(&home, "token").unwrap();
        assert_eq!(reference.read(&home).unwrap_err().kind(), ErrorKind::NotFound);
        for name in ["", "../token", ".token", "a/b"] {
            assert!(store(&home, name, &SecretString::from("x")).is_err(), "{name}");
        }
    }

    #[test]
    fn a_reference_reads_as_it_is_written_and_an_error_does_not_repeat_it() {
        for text in ["file:/run/secrets/x", "env:BACKUP_NOTIFY", "stored:notify-phone"] {
            assert_eq!(SecretReference::parse(text).unwrap().to_string(), text);
        }
        for text in ["hunter2", "file:hunter2", "env:", "env:hunter2=x", "stored:../hunter2", "https://hunter2"] {
            let error = SecretReference::parse(text).unwrap_err();
            assert!(!format!("{error}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_file_is_read_at_each_use_and_what_is_no_secret_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = home_in(dir.path());
        let path = dir.path().join("secret");
        let reference = SecretReference::File(path.clone());
        for (content, value) in [("one\n", "one"), ("two\r\n", "two"), ("three\n\n", "three\n"), (" four", " four")] {
            fs::write(&path, content).unwrap();
            assert_eq!(reference.read(&home).unwrap().expose_secret(), value);
        }
        let longest = "x".repeat(MAX_SECRET_BYTES);
        fs::write(&path, format!("{longest}\n")).unwrap();
        assert_eq!(reference.read(&home).unwrap().expose_secret(), longest);
        for wrong in [&b""[..], b"\n", b"hunter2\xff", format!("{longest}x").as_bytes()] {
            fs::write(&path, wrong).unwrap();
            let error = reference.read(&home).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Failed);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(SecretReference::File(pipe).read(&home).unwrap_err().kind(), ErrorKind::Failed);
    }

    #[test]
    fn a_secret_is_not_shown_by_its_debug_form() {
        let secret = read_value(&b"hunter2\n"[..], Path::new("-")).unwrap();
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
