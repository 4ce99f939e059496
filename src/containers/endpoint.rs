//! Where the container engine listens, and connections to it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::error::{Error, Result};

/// Sockets that are tried without `DOCKER_HOST`: those of Docker and of Podman as root.
const DEFAULT_SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
/// Longest time until a connection over TCP is established.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How often a request that can be cancelled checks for that.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long requests may take.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    /// Of a request that is answered at once.
    pub answer: Duration,
    /// Of a stop, which the engine answers when the container has ended: as long as that container may take.
    pub stop: Duration,
}

impl Default for TimeLimits {
    fn default() -> Self {
        TimeLimits { answer: Duration::from_secs(60), stop: Duration::from_secs(600) }
    }
}

/// The address of a container engine or of a proxy in front of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// Plain HTTP over TCP.
    Tcp {
        /// Name or IP address.
        host: String,
        /// Port number.
        port: u16,
    },
}

impl Endpoint {
    /// Parses the value of `DOCKER_HOST`: `unix:///PATH` or `tcp://HOST:PORT`.
    ///
    /// Errors: `Usage` for any other scheme, and for an address without a path or a port.
    pub fn parse(text: &str) -> Result<Endpoint> {
        let invalid = |reason: &str| {
            Error::usage(format!("DOCKER_HOST=\"{text}\" {reason}"))
                .hint("write unix:///var/run/docker.sock or tcp://HOST:PORT")
        };
        if let Some(path) = text.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return Err(invalid("has no absolute path"));
            }
            return Ok(Endpoint::Unix(PathBuf::from(path)));
        }
        let Some(address) = text.strip_prefix("tcp://") else {
            return Err(invalid("is neither a unix socket nor a TCP address"));
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        let Some((host, port)) = address.rsplit_once(':') else { return Err(invalid("has no port")) };
        let port = port.parse().map_err(|_| invalid("has no valid port"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(|c: char| c == '/' || c == '@' || c.is_whitespace() || c.is_control()) {
            return Err(invalid("has no valid host"));
        }
        Ok(Endpoint::Tcp { host: host.to_owned(), port })
    }

    /// Returns the address that `DOCKER_HOST` gives, else the first default socket that exists, else that of Docker.
    ///
    /// Errors: `Usage` if the value of `DOCKER_HOST` is invalid, or asks for TLS, which this program does not have.
    pub fn from_environment() -> Result<Endpoint> {
        let given = std::env::var("DOCKER_HOST").unwrap_or_default();
        if given.is_empty() {
            let found = DEFAULT_SOCKETS.iter().find(|path| Path::new(path).exists());
            return Ok(Endpoint::Unix(PathBuf::from(found.unwrap_or(&DEFAULT_SOCKETS[0]))));
        }
        let endpoint = Endpoint::parse(&given)?;
        let has_tls = std::env::var_os("DOCKER_TLS_VERIFY").is_some_and(|value| !value.is_empty());
        if has_tls && matches!(endpoint, Endpoint::Tcp { .. }) {
            return Err(Error::usage("DOCKER_TLS_VERIFY is set, but TLS to a container engine is not supported")
                .hint("use the unix socket, or a socket proxy in a network of its own"));
        }
        Ok(endpoint)
    }

    /// Connects. Reads and writes fail with [`io::ErrorKind::TimedOut`] once `limit` has passed, and reads with another
    /// kind soon after `cancel` is cancelled.
    pub(super) fn connect<'a>(
        &self,
        clock: &'a dyn Clock,
        limit: Duration,
        cancel: Option<&'a CancelToken>,
    ) -> io::Result<Connection<'a>> {
        let stream = match self {
            Endpoint::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
            Endpoint::Tcp { host, port } => Stream::Tcp(connect_tcp(host, *port, limit)?),
        };
        let ends_at = clock.monotonic().saturating_add(limit);
        Ok(Connection { stream, clock, ends_at, cancel })
    }
}

/// Connects to the first address of the host that accepts.
fn connect_tcp(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit.min(CONNECT_LIMIT)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

/// A connection to an engine, for one request. It ends when its time is over, however slowly bytes arrive.
pub(super) struct Connection<'a> {
    stream: Stream,
    clock: &'a dyn Clock,
    /// By the monotonic clock.
    ends_at: Duration,
    cancel: Option<&'a CancelToken>,
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Connection<'_> {
    /// Returns the IP address of the other end; `None` for a unix socket.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        match &self.stream {
            Stream::Unix(_) => None,
            Stream::Tcp(stream) => stream.peer_addr().ok().map(|address| address.ip()),
        }
    }

    /// Limits the next call of the socket to the time that is left, and to [`POLL_INTERVAL`] if it can be cancelled.
    fn limit(&self) -> io::Result<()> {
        let left = self.ends_at.saturating_sub(self.clock.monotonic());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let limit = Some(if self.cancel.is_some() { left.min(POLL_INTERVAL) } else { left });
        match &self.stream {
            Stream::Unix(stream) => stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit)),
            Stream::Tcp(stream) => stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit)),
        }
    }

    /// Repeats a call of the socket until it does not time out, the time is over, or it is cancelled.
    fn repeat(&mut self, mut call: impl FnMut(&mut Stream) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            if self.cancel.is_some_and(CancelToken::is_cancelled) {
                return Err(io::Error::other("cancelled"));
            }
            self.limit()?;
            match call(&mut self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

impl Read for Connection<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.repeat(|stream| match stream {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        })
    }
}

impl Write for Connection<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.repeat(|stream| match stream {
            Stream::Unix(stream) => stream.write(buffer),
            Stream::Tcp(stream) => stream.write(buffer),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_path_or_a_port() {
        let unix = |path: &str| Endpoint::Unix(PathBuf::from(path));
        let tcp = |host: &str, port| Endpoint::Tcp { host: host.to_owned(), port };
        for (text, parsed) in [
            ("unix:///var/run/docker.sock", unix("/var/run/docker.sock")),
            ("tcp://docker-proxy:2375", tcp("docker-proxy", 2375)),
            ("tcp://[::1]:2375/", tcp("::1", 2375)),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap(), parsed, "{text}");
        }
        for wrong in [
            "",
            "/var/run/docker.sock",
            "unix://docker.sock",
            "ssh://host",
            "https://h:1",
            "tcp://h",
            "tcp://:1",
            "tcp://h:x",
            "tcp://h:70000",
            "tcp://u@h:1",
            "tcp://h/x:1",
            "tcp://h\r\nX:1",
        ] {
            let error = Endpoint::parse(wrong).unwrap_err();
            assert!(error.to_string().contains(wrong) && error.next_step().is_some(), "{error}");
        }
    }
}
