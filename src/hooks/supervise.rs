//! Waiting for a command: its output is read all the time, and a time limit or a request to stop ends it.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Signal, WaitOptions, waitpgid};

use super::output::Output;
use super::process_table::ProcessGroup;
use crate::clock::Clock;
use crate::error::{Error, Result};

/// How long a command may take to end after SIGTERM, and after SIGKILL.
pub(super) const KILL_AFTER: Duration = Duration::from_secs(10);
/// How long the output of a command is read after its end: a process that it left may hold it open for ever.
const OUTPUT_AFTER: Duration = Duration::from_secs(1);
/// Time between two looks at a command that prints nothing.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Bytes that one read takes.
const BUFFER: usize = 64 << 10;

/// Where the standard output of a command goes.
pub enum Sink<'a> {
    /// With its standard error into what is kept of its output.
    Keep,
    /// Piece by piece to a function, whose error ends the command.
    To(&'a mut dyn FnMut(&[u8]) -> Result<()>),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Code(i32),
    /// By a signal that this program did not send.
    Signal(i32),
    /// It was ended after this time.
    TimeLimit(Duration),
    /// It was ended because the run was.
    Cancelled,
}

/// One stream of a command; `None` once all its writers have closed it.
struct Stream(Option<std::fs::File>);

impl Stream {
    fn new(pipe: Option<impl Into<OwnedFd>>) -> io::Result<Stream> {
        let Some(pipe) = pipe.map(Into::into) else { return Ok(Stream(None)) };
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        Ok(Stream(Some(pipe.into())))
    }

    /// Reads what there is, once; returns the number of bytes.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(pipe) = &mut self.0 else { return Ok(0) };
        match pipe.read(buffer) {
            Ok(0) => {
                self.0 = None;
                Ok(0)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            read => read,
        }
    }
}

/// Why a command is being ended.
enum Stopping {
    TimeLimit,
    Cancelled,
    /// What reads its output failed.
    Failed(Error),
}

/// A command that runs.
pub(super) struct Supervisor<'a, 'b> {
    child: Child,
    group: Option<ProcessGroup>,
    time_limit: Duration,
    clock: &'a dyn Clock,
    is_cancelled: &'a dyn Fn() -> bool,
    sink: Sink<'b>,
    out: Stream,
    error: Stream,
    output: Output,
    began: Duration,
    /// Why and since when it is being ended.
    stopping: Option<(Stopping, Duration)>,
    is_killed: bool,
    /// How its first process ended, and when.
    exit: Option<(ExitStatus, Duration)>,
}

/// How a command ended, and what it printed.
pub(super) struct Supervised {
    pub(super) ended: Ended,
    pub(super) output: Output,
    /// All writers of its standard output have closed it.
    pub(super) is_output_complete: bool,
}

impl<'a, 'b> Supervisor<'a, 'b> {
    /// Takes over a process that was just started, in a group of its own.
    pub(super) fn new(
        mut child: Child,
        time_limit: Duration,
        clock: &'a dyn Clock,
        is_cancelled: &'a dyn Fn() -> bool,
        sink: Sink<'b>,
    ) -> Result<Self> {
        Ok(Supervisor {
            out: Stream::new(child.stdout.take()).map_err(cannot_watch)?,
            error: Stream::new(child.stderr.take()).map_err(cannot_watch)?,
            group: i32::try_from(child.id()).ok().and_then(ProcessGroup::new),
            child,
            time_limit,
            clock,
            is_cancelled,
            sink,
            output: Output::new(),
            began: clock.monotonic(),
            stopping: None,
            is_killed: false,
            exit: None,
        })
    }

    /// Waits for the command. It has ended when its first process has, plus 1 s for output that still comes; if it was
    /// stopped, when all processes of its group have.
    ///
    /// Errors: of the sink; `Busy` if SIGKILL does not end it, so that it is still running.
    pub(super) fn wait(mut self) -> Result<Supervised> {
        let mut buffer = vec![0; BUFFER];
        loop {
            wait_for_output(&self.out, &self.error).map_err(cannot_watch)?;
            if let Err(why) = self.drain(&mut buffer)
                && self.stopping.is_none()
            {
                self.stop(Stopping::Failed(why));
            }
            let now = self.clock.monotonic();
            if self.exit.is_none() {
                self.exit = self.child.try_wait().map_err(cannot_watch)?.map(|status| (status, now));
            }
            let is_over = match &self.stopping {
                Some((_, since)) => self.is_stopped(now.saturating_sub(*since))?,
                None => self.is_over(now),
            };
            if is_over {
                break;
            }
        }
        let ended = match self.stopping {
            Some((Stopping::Failed(why), _)) => return Err(why),
            Some((Stopping::TimeLimit, _)) => Ended::TimeLimit(self.time_limit),
            Some((Stopping::Cancelled, _)) => Ended::Cancelled,
            None => ended_by(self.exit.map(|(status, _)| status)),
        };
        Ok(Supervised { ended, output: self.output, is_output_complete: self.out.0.is_none() })
    }

    /// Returns whether a command that nobody stops has ended; begins to stop one whose time is over.
    fn is_over(&mut self, now: Duration) -> bool {
        if let Some((_, at)) = self.exit {
            let is_silent = self.out.0.is_none() && self.error.0.is_none();
            return is_silent || now.saturating_sub(at) >= OUTPUT_AFTER;
        }
        if (self.is_cancelled)() {
            self.stop(Stopping::Cancelled);
        } else if now.saturating_sub(self.began) >= self.time_limit {
            self.stop(Stopping::TimeLimit);
        }
        false
    }

    /// Returns whether a command that is being stopped since `waited` has ended, with all processes of its group.
    fn is_stopped(&mut self, waited: Duration) -> Result<bool> {
        if self.exit.is_some() && !is_group_left(self.group) {
            return Ok(true);
        }
        if !self.is_killed && waited >= KILL_AFTER {
            self.is_killed = true;
            self.signal(Signal::KILL);
        }
        if waited >= KILL_AFTER * 2 {
            return Err(Error::busy("it does not end, not even by SIGKILL"));
        }
        Ok(false)
    }

    /// Reads each stream once, so that neither a time limit nor the other stream waits for one that never pauses.
    fn drain(&mut self, buffer: &mut [u8]) -> Result<()> {
        let failed = |error: io::Error| Error::failed("cannot read the output of a command").because(error);
        let read = self.out.read(buffer).map_err(failed)?;
        match &mut self.sink {
            Sink::Keep => self.output.push(&buffer[..read]),
            // What comes after an error of the sink is dropped.
            Sink::To(write) if read > 0 && self.stopping.is_none() => write(&buffer[..read])?,
            Sink::To(_) => {}
        }
        let read = self.error.read(buffer).map_err(failed)?;
        self.output.push_error(&buffer[..read]);
        Ok(())
    }

    fn stop(&mut self, why: Stopping) {
        self.signal(Signal::TERM);
        self.stopping = Some((why, self.clock.monotonic()));
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            group.signal(signal);
            // A process that is stopped does not handle a signal before it continues.
            group.signal(Signal::CONT);
        }
    }
}

fn cannot_watch(error: io::Error) -> Error {
    Error::failed("cannot watch a command").because(error)
}

/// Returns whether a process of a group is left. Those that became children of this process, as in a container, are
/// waited for, so that no zombies pile up.
fn is_group_left(group: Option<ProcessGroup>) -> bool {
    let Some(group) = group else { return false };
    if let Some(pid) = rustix::process::Pid::from_raw(group.number()) {
        while let Ok(Some(_)) = waitpgid(pid, WaitOptions::NOHANG) {}
    }
    group.is_alive()
}

fn ended_by(status: Option<ExitStatus>) -> Ended {
    let signal = status.and_then(|status| status.signal());
    match (signal, status.and_then(|status| status.code())) {
        (Some(signal), _) => Ended::Signal(signal),
        (None, code) => Ended::Code(code.unwrap_or(-1)),
    }
}

/// Waits until a stream has something to read or has ended, at most [`POLL_INTERVAL`].
fn wait_for_output(out: &Stream, error: &Stream) -> io::Result<()> {
    let open = [&out.0, &error.0].into_iter().flatten();
    let mut polled: Vec<PollFd<'_>> = open.map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)).collect();
    let timeout = Timespec { tv_sec: 0, tv_nsec: POLL_INTERVAL.subsec_nanos().into() };
    match poll(&mut polled, Some(&timeout)) {
        Err(rustix::io::Errno::INTR) => Ok(()),
        polled => Ok(polled.map(drop)?),
    }
}
