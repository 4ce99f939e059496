//! Notification of the service manager (systemd) over the socket that `NOTIFY_SOCKET` names: see sd_notify(3).

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::error::{Error, Result};

/// The service manager that is notified of state changes, if there is one.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
}

impl ServiceManager {
    /// Connects to the socket `name`: a path, or `@name` for an abstract one. Without a name nothing is notified.
    ///
    /// Errors: `Failed` if the socket is named and cannot be reached.
    pub fn connect(name: Option<&OsStr>) -> Result<ServiceManager> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(ServiceManager::default()) };
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name),
            None => SocketAddr::from_pathname(name),
        };
        let connect = |address: SocketAddr| {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            // A service manager that does not read must not block backups.
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = address.and_then(connect).map_err(|e| {
            Error::failed(format!("cannot reach the service manager at {}", name.to_string_lossy()))
                .because(e)
                .hint("unset NOTIFY_SOCKET if there is no service manager")
        })?;
        Ok(ServiceManager { socket: Some(socket) })
    }

    /// Reports that the service serves.
    pub fn notify_ready(&self) {
        self.notify("READY=1\nSTATUS=serving\n");
    }

    /// Reports that the loop runs. A service that hangs does not report and is restarted (`WatchdogSec=`).
    pub fn notify_alive(&self) {
        self.notify("WATCHDOG=1\n");
    }

    /// Reports that the service drains.
    pub fn notify_stopping(&self) {
        self.notify("STOPPING=1\nSTATUS=stopping: running work may finish\n");
    }

    fn notify(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(state.as_bytes())
        {
            log::debug!("the service manager was not notified of {}: {error}", state.trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 200];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn states_are_sent_to_a_path_and_to_an_abstract_name() {
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
            let service_manager = ServiceManager::connect(Some(address)).unwrap();
            service_manager.notify_ready();
            assert!(receive(&socket).starts_with("READY=1\n"));
            service_manager.notify_alive();
            assert_eq!(receive(&socket), "WATCHDOG=1\n");
            service_manager.notify_stopping();
            assert!(receive(&socket).starts_with("STOPPING=1\n"));
        }
    }

    #[test]
    fn no_socket_is_no_error_and_an_unreachable_socket_is_an_error_with_its_name() {
        ServiceManager::connect(None).unwrap().notify_ready();
        let error = ServiceManager::connect(Some(OsStr::new("/nowhere/notify"))).unwrap_err();
        assert!(error.to_string().contains("/nowhere/notify"), "{error}");
    }
}
