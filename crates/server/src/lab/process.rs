//! Processes, by pidfd: a handle that means one process for ever, even after its number was given to
//! another.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A process that was running when it was found.
#[derive(Debug)]
pub(super) struct Process {
    pid: i32,
    fd: OwnedFd,
}

/// The number of this process.
pub(super) fn own_pid() -> i32 {
    // Linux process numbers are below 2^22.
    std::process::id() as i32
}

impl Process {
    /// The running process of this number, if its command line contains these arguments one after
    /// the other.
    pub(super) fn find(pid: i32, arguments: &[String]) -> Option<Process> {
        if pid <= 0 {
            return None;
        }
        // The handle first, the check second: were the number given to another in between, the
        // handle would be that of the process that has ended.
        let process = Process {
            pid,
            fd: open(pid).ok()?,
        };
        // Empty for a process that has ended and is not yet collected by its parent.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
        let found = words.windows(arguments.len()).any(|window| {
            let mut pairs = window.iter().zip(arguments);
            pairs.all(|(word, argument)| *word == argument.as_bytes())
        });
        (found && !process.wait(Duration::ZERO)).then_some(process)
    }

    /// Its number.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// The handle, which becomes readable when the process ends.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: the descriptor is ours and open; no memory is handed over.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0u32,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for the end of the process, so long at most; whether it has ended.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that a wait never ends a moment early and spins.
            let left_ms = i32::try_from(left.as_micros().div_ceil(1_000)).unwrap_or(i32::MAX);
            let mut waited = libc::pollfd {
                fd: self.fd.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one pollfd, which lives throughout the call.
            match unsafe { libc::poll(&mut waited, 1, left_ms) } {
                0 => return false,
                count if count > 0 => return true,
                // Interrupted by a signal to ourselves.
                _ if left.is_zero() => return false,
                _ => {}
            }
        }
    }

    /// Whether it is stopped by SIGSTOP.
    pub(super) fn is_paused(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The state follows the name, which stands in parentheses and may contain any of them.
        let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
        state.is_some_and(|rest| rest.starts_with('T'))
    }

    /// How it ended, if it has and was a child of this process.
    pub(super) fn collect(pid: i32) -> Option<ExitStatus> {
        let mut status = 0;
        // SAFETY: the status is ours; a number that is no child of ours only gives an error.
        let collected = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) };
        (collected == pid && pid > 0).then(|| ExitStatus::from_raw(status))
    }
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: numbers in, a descriptor or an error out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the system has just given us this descriptor; nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts a process in a session of its own, so that neither Ctrl-C nor the end of a terminal or of
/// this process reaches it. What it prints is added to the log.
pub(super) fn spawn(mut command: Command, log: &Path) -> io::Result<i32> {
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: setsid is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    // The handle that is dropped here neither kills nor waits; `collect` does the latter.
    Ok(command.spawn()?.id() as i32)
}

/// An exit status in words.
pub(super) fn in_words(status: Option<ExitStatus>) -> String {
    match status {
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("with exit code {code}"),
            (None, Some(signal)) => format!("by signal {signal}{}", signal_name(signal)),
            (None, None) => "in an unknown way".to_owned(),
        },
        None => "(how is not known: another process started it)".to_owned(),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGKILL => " (SIGKILL)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGSEGV => " (SIGSEGV)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that does nothing for so many seconds, under a command line like a node's.
    fn idle(seconds: &str) -> (i32, [String; 2]) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sleep");
        command.arg0("serve").arg(seconds);
        let pid = spawn(command, &dir.path().join("log")).unwrap();
        (pid, ["serve".to_owned(), seconds.to_owned()])
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_process_is_paused_resumed_and_killed() {
        let (pid, arguments) = idle("1001");
        let process = Process::find(pid, &arguments).unwrap();
        assert!(!process.wait(Duration::ZERO));
        process.signal(libc::SIGSTOP).unwrap();
        let deadline = Instant::now() + LONG;
        while !process.is_paused() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        process.signal(libc::SIGCONT).unwrap();
        process.signal(libc::SIGKILL).unwrap();
        assert!(process.wait(LONG));
        assert!(
            Process::find(pid, &arguments).is_none(),
            "ended, though not collected"
        );
        assert_eq!(in_words(Process::collect(pid)), "by signal 9 (SIGKILL)");
        assert!(process.signal(libc::SIGKILL).is_err());
    }

    #[test]
    fn a_stranger_is_not_found() {
        let (pid, arguments) = idle("1002");
        assert!(Process::find(pid, &["serve".to_owned(), "1003".to_owned()]).is_none());
        assert!(Process::find(own_pid(), &arguments).is_none());
        for pid in [-1, 0, i32::MAX] {
            assert!(Process::find(pid, &arguments).is_none());
        }
        let process = Process::find(pid, &arguments).unwrap();
        process.signal(libc::SIGKILL).unwrap();
        assert!(process.wait(LONG));
        assert!(Process::collect(pid).is_some());
        assert!(Process::collect(pid).is_none());
    }
}
