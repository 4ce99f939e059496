//! The threads that start child processes. A child inherits the priority, the I/O class and the ambient capabilities
//! of the thread that starts it, so these threads are made before the process lowers its own, and one of them has no
//! ambient capabilities. No code of ours runs in the child.

use std::io;
use std::process::{Child, Command};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::io::Errno;
use rustix::thread::clear_ambient_capability_set;

use super::descriptors::keep_from_children;
use crate::error::{Error, Result};

struct Request {
    command: Command,
    answer: Sender<io::Result<Child>>,
}

/// Starts child processes. Clones share the threads, which end with the last of them.
#[derive(Clone)]
pub struct Starter {
    plain: Sender<Request>,
    privileged: Sender<Request>,
}

impl Starter {
    /// Starts the threads, which must happen before this process lowers its priority. Descriptors that this process
    /// has inherited are kept from all its children.
    pub fn new() -> Result<Starter> {
        Ok(Starter {
            plain: spawn("children", without_ambient_capabilities)?,
            privileged: spawn("children with capabilities", keep_from_children)?,
        })
    }

    /// Starts a process; with the ambient capabilities of this process only if `keeps_capabilities`.
    pub fn start(&self, command: Command, keeps_capabilities: bool) -> io::Result<Child> {
        let thread = if keeps_capabilities { &self.privileged } else { &self.plain };
        let (answer, answered) = bounded(1);
        let is_over = || io::Error::other("the thread that starts processes has ended");
        thread.send(Request { command, answer }).map_err(|_| is_over())?;
        answered.recv().map_err(|_| is_over())?
    }
}

fn without_ambient_capabilities() -> io::Result<()> {
    keep_from_children()?;
    match clear_ambient_capability_set() {
        // A kernel that has none.
        Err(Errno::INVAL) => Ok(()),
        cleared => cleared.map_err(io::Error::from),
    }
}

fn spawn(name: &str, prepare: fn() -> io::Result<()>) -> Result<Sender<Request>> {
    let (sender, requests) = unbounded();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || serve(&requests, prepare))
        .map(|_| sender)
        .map_err(Error::no_thread)
}

fn serve(requests: &Receiver<Request>, prepare: fn() -> io::Result<()>) {
    let prepared = prepare();
    for Request { mut command, answer } in requests {
        let started = match &prepared {
            Ok(()) => command.spawn(),
            Err(error) => Err(io::Error::other(format!("what it must not inherit cannot be dropped: {error}"))),
        };
        // Closes our copy of the file that the child has as its input.
        drop(command);
        let _ = answer.send(started);
    }
}
