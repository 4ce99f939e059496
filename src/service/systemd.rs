//! Who started this process and wants to hear how it goes: systemd, by the socket that `NOTIFY_SOCKET` names.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::error::{Error, Result};

/// Where states are told; nowhere, where nobody asked.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
}

impl ServiceManager {
    /// Connects to the socket of that name, where there is one: a path, or `@name` for an abstract one.
    ///
    /// Errors: `Failed` for a socket that is named and not there.
    pub fn connect(name: Option<&OsStr>) -> Result<ServiceManager> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(ServiceManager::default()) };
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name),
            None => SocketAddr::from_pathname(name),
        };
        let connect = |address: SocketAddr| {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            // A supervisor that does not listen must not hold up backups.
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = address.and_then(connect).map_err(|e| {
            Error::failed(format!("cannot reach the service manager at {}", name.to_string_lossy()))
                .because(e)
                .hint("unset NOTIFY_SOCKET where none is wanted")
        })?;
        Ok(ServiceManager { socket: Some(socket) })
    }

    /// Says that the service serves.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving\n");
    }

    /// Says that the loop came round; what hangs says nothing and is started again (`WatchdogSec=`).
    pub fn alive(&self) {
        self.tell("WATCHDOG=1\n");
    }

    /// Says that the service drains.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping: running work may finish\n");
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(state.as_bytes())
        {
            log::debug!("the service manager was not told {}: {error}", state.trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 200];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn states_are_told_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("@backup-manager-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let sockets = [
            (UnixDatagram::bind(&path), path.as_os_str()),
            (UnixDatagram::bind_addr(&abstract_address), name.as_ref()),
        ];
        for (socket, address) in sockets {
            let socket = socket.unwrap();
            let supervisor = ServiceManager::connect(Some(address)).unwrap();
            supervisor.ready();
            assert!(heard(&socket).starts_with("READY=1\n"));
            supervisor.alive();
            assert_eq!(heard(&socket), "WATCHDOG=1\n");
            supervisor.stopping();
            assert!(heard(&socket).starts_with("STOPPING=1\n"));
        }
    }

    #[test]
    fn nobody_asking_is_fine_and_a_socket_that_is_not_there_is_named() {
        ServiceManager::connect(None).unwrap().ready();
        let error = ServiceManager::connect(Some(OsStr::new("/nowhere/notify"))).unwrap_err();
        assert!(error.to_string().contains("/nowhere/notify"), "{error}");
    }
}
