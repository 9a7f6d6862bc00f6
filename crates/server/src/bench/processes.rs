//! Whose processor time counts: which processes on this machine are the servers, and what they have used.
//!
//! **The rule.** The servers are the processes that listen on a target's address, and those of their cluster: every
//! process of the same program that listens itself and shares a TCP connection with one of them, and so on. So all
//! nodes count, not only those that are asked; neither other clusters on the same machine do, nor other clients. It
//! holds for any system whose nodes talk to each other by TCP: replicas of Redis are found as well as members of etcd.
//!
//! All of it is read from `/proc`. The figure is user + system time as the kernel accounts it, in clock ticks of 10 ms
//! on most machines, so a window should last for seconds. A process that ends in the window counts up to the last look
//! at it (there is one each second), one that is started in it from its start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::sockets::{self, Socket};

/// Letters of a command line that a report shows.
const COMMAND_SHOWN_MAX: usize = 120;

/// A process of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Process {
    pid: u32,
    /// The program that it runs: a path, or what else is known.
    program: String,
    command: Vec<String>,
    /// Of its sockets.
    inodes: BTreeSet<u64>,
}

/// Why a process counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Why {
    /// It listens on a target's address.
    Listens,
    /// It is connected to one that does.
    Cluster,
    /// It was named.
    Named,
}

/// Which processes count besides those that are found by the rule.
#[derive(Clone, Debug, Default)]
pub(crate) struct Named {
    pub(crate) pids: Vec<u32>,
    /// Words that command lines begin with, the first without its directory: `mydatastore serve`.
    pub(crate) commands: Vec<Vec<String>>,
}

impl Named {
    fn has(&self, process: &Process) -> bool {
        let begins = |words: &Vec<String>| {
            // Some programs show one text instead of their arguments.
            let shown = process.command.join(" ");
            let mut shown = shown.split(' ').map(str::to_owned).collect::<Vec<_>>();
            if let Some(first) = shown.first_mut() {
                *first = first.rsplit('/').next().unwrap_or_default().to_owned();
            }
            shown.starts_with(words)
        };
        self.pids.contains(&process.pid) || self.commands.iter().any(begins)
    }
}

/// The rule: who are the servers.
fn servers(
    targets: &[SocketAddr],
    named: &Named,
    sockets: &[Socket],
    processes: &[Process],
) -> BTreeMap<u32, Why> {
    let owners: BTreeMap<u64, usize> = (0..processes.len())
        .flat_map(|index| {
            processes[index]
                .inodes
                .iter()
                .map(move |&inode| (inode, index))
        })
        .collect();
    let owner_of = |socket: &Socket| owners.get(&socket.inode).copied();
    let own_ips: BTreeSet<IpAddr> = sockets.iter().map(|socket| socket.local.ip()).collect();
    let is_here = |ip: IpAddr| ip.is_loopback() || own_ips.contains(&ip);
    let is_target = |listening: SocketAddr| {
        targets.iter().any(|target| {
            let ip = target.ip().to_canonical();
            let is_own = listening.ip() == ip || (listening.ip().is_unspecified() && is_here(ip));
            listening.port() == target.port() && is_own
        })
    };
    let mut found = BTreeMap::new();
    let mut to_visit = Vec::new();
    for socket in sockets
        .iter()
        .filter(|socket| socket.is_listening && is_target(socket.local))
    {
        if let Some(index) = owner_of(socket)
            && found.insert(processes[index].pid, Why::Listens).is_none()
        {
            to_visit.push(index);
        }
    }
    let listeners: BTreeSet<usize> = sockets
        .iter()
        .filter(|socket| socket.is_listening)
        .filter_map(owner_of)
        .collect();
    let by_ends: BTreeMap<(SocketAddr, SocketAddr), usize> = sockets
        .iter()
        .filter(|socket| !socket.is_listening)
        .filter_map(|socket| Some(((socket.local, socket.remote), owner_of(socket)?)))
        .collect();
    while let Some(index) = to_visit.pop() {
        let mine = by_ends.iter().filter(|(_, owner)| **owner == index);
        for ((local, remote), _) in mine {
            let Some(&other) = by_ends.get(&(*remote, *local)) else {
                continue;
            };
            let is_alike = processes[other].program == processes[index].program;
            if is_alike && listeners.contains(&other) && !found.contains_key(&processes[other].pid)
            {
                found.insert(processes[other].pid, Why::Cluster);
                to_visit.push(other);
            }
        }
    }
    for process in processes.iter().filter(|process| named.has(process)) {
        found.entry(process.pid).or_insert(Why::Named);
    }
    found
}

/// All processes that this user may look into.
fn processes() -> Vec<Process> {
    let own = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != own).filter_map(process).collect()
}

fn process(pid: u32) -> Option<Process> {
    let home = Path::new("/proc").join(pid.to_string());
    let command = std::fs::read(home.join("cmdline")).ok()?;
    let command = command
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty());
    let command: Vec<String> = command
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let program = std::fs::read_link(home.join("exe"))
        .ok()?
        .to_string_lossy()
        .into_owned();
    // A program that was built anew still runs from its old file.
    let program = program.trim_end_matches(" (deleted)").to_owned();
    let inode = |entry: std::io::Result<std::fs::DirEntry>| {
        let link = std::fs::read_link(entry.ok()?.path()).ok()?;
        let link = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        link.parse().ok()
    };
    let inodes = std::fs::read_dir(home.join("fd"))
        .ok()?
        .filter_map(inode)
        .collect();
    Some(Process {
        pid,
        program,
        command,
        inodes,
    })
}

/// What a process has used since its start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Used {
    pub(super) user_us: u64,
    pub(super) system_us: u64,
    /// When it was started, clock ticks after the machine was: with its number, the identity of a process.
    started: u64,
}

impl Used {
    fn since(self, before: Used) -> Used {
        Used {
            user_us: self.user_us.saturating_sub(before.user_us),
            system_us: self.system_us.saturating_sub(before.system_us),
            started: self.started,
        }
    }
}

/// Reads `/proc/PID/stat`.
fn used_in(stat: &str, hertz: u64) -> Option<Used> {
    // The name stands in parentheses, and may contain any of them.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
    let us = |ticks: u64| ticks.saturating_mul(1_000_000) / hertz.max(1);
    // Fields 14, 15 and 22 of proc_pid_stat(5), the first here being field 3.
    Some(Used {
        user_us: us(number(11)?),
        system_us: us(number(12)?),
        started: number(19)?,
    })
}

fn used(pid: u32, hertz: u64) -> Option<Used> {
    used_in(
        &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?,
        hertz,
    )
}

/// Clock ticks a second.
fn hertz() -> u64 {
    // SAFETY: a number in, a number out.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(hertz).unwrap_or(100).max(1)
}

/// What this process itself has used.
pub(super) fn own_us() -> (u64, u64) {
    // SAFETY: zeroes are a valid `rusage`, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    (us(usage.ru_utime), us(usage.ru_stime))
}

/// A server that is watched.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) pid: u32,
    pub(super) command: String,
    pub(super) why: Why,
    first: Used,
    last: Used,
    /// It ended while it was watched.
    pub(super) ended: bool,
}

impl Watched {
    /// What it has used while it was watched.
    pub(super) fn used(&self) -> Used {
        self.last.since(self.first)
    }
}

/// Watches the servers.
#[derive(Debug)]
pub(super) struct Watch {
    targets: Vec<SocketAddr>,
    named: Named,
    hertz: u64,
    watched: Vec<Watched>,
}

impl Watch {
    /// Finds them, and begins to count.
    pub(super) fn begin(targets: Vec<SocketAddr>, named: Named) -> Watch {
        let mut watch = Watch {
            targets,
            named,
            hertz: hertz(),
            watched: Vec::new(),
        };
        watch.find(|used| used);
        watch
    }

    fn find(&mut self, first: impl Fn(Used) -> Used) {
        let sockets = sockets::all();
        let processes = processes();
        for (pid, why) in servers(&self.targets, &self.named, &sockets, &processes) {
            let Some(now) = used(pid, self.hertz) else {
                continue;
            };
            let is_known = |known: &Watched| known.pid == pid && known.last.started == now.started;
            if self.watched.iter().any(is_known) {
                continue;
            }
            let command = processes.iter().find(|process| process.pid == pid);
            let command = command
                .map(|process| process.command.join(" "))
                .unwrap_or_default();
            self.watched.push(Watched {
                pid,
                command: command.chars().take(COMMAND_SHOWN_MAX).collect(),
                why,
                first: first(now),
                last: now,
                ended: false,
            });
        }
    }

    /// Looks at them.
    pub(super) fn look(&mut self) {
        for watched in &mut self.watched {
            match used(watched.pid, self.hertz) {
                Some(now) if now.started == watched.last.started => watched.last = now,
                _ => watched.ended = true,
            }
        }
    }

    /// What was used so far does not count.
    pub(super) fn restart(&mut self) {
        self.look();
        for watched in &mut self.watched {
            watched.first = watched.last;
        }
    }

    /// The last look, and one for those that were started meanwhile.
    pub(super) fn end(mut self) -> Vec<Watched> {
        self.look();
        let known_latest = self
            .watched
            .iter()
            .map(|watched| watched.first.started)
            .max();
        // One that was there before and was not found counts from now on, that is with nothing.
        self.find(
            |now| match known_latest.is_some_and(|latest| now.started > latest) {
                true => Used {
                    started: now.started,
                    ..Used::default()
                },
                false => now,
            },
        );
        self.watched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, program: &str, inodes: &[u64]) -> Process {
        Process {
            pid,
            program: format!("/bin/{program}"),
            command: vec![format!("/bin/{program}"), "serve".to_owned()],
            inodes: inodes.iter().copied().collect(),
        }
    }

    fn socket(local: &str, remote: &str, inode: u64) -> Socket {
        Socket {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            is_listening: remote == "0.0.0.0:0",
            inode,
        }
    }

    /// Processes 1, 2, 3 are a cluster, 2 being connected to both others; 4 is one of another cluster; 5 is a client, 6
    /// a client that listens.
    fn machine() -> (Vec<Socket>, Vec<Process>) {
        let nobody = "0.0.0.0:0";
        let sockets = vec![
            socket("127.0.0.1:7101", nobody, 10),
            socket("0.0.0.0:7102", nobody, 20),
            socket("127.0.0.1:7103", nobody, 30),
            socket("127.0.0.1:7201", nobody, 40),
            socket("127.0.0.1:9000", nobody, 60),
            socket("127.0.0.1:7101", "127.0.0.1:5002", 11),
            socket("127.0.0.1:5002", "127.0.0.1:7101", 21),
            socket("127.0.0.1:7103", "127.0.0.1:5003", 31),
            socket("127.0.0.1:5003", "127.0.0.1:7103", 22),
            socket("127.0.0.1:7101", "127.0.0.1:5005", 12),
            socket("127.0.0.1:5005", "127.0.0.1:7101", 51),
            socket("127.0.0.1:7101", "127.0.0.1:5006", 13),
            socket("127.0.0.1:5006", "127.0.0.1:7101", 61),
        ];
        let processes = vec![
            process(1, "db", &[10, 11, 12, 13]),
            process(2, "db", &[20, 21, 22]),
            process(3, "db", &[30, 31]),
            process(4, "db", &[40]),
            process(5, "db", &[51]),
            process(6, "other", &[60, 61]),
        ];
        (sockets, processes)
    }

    #[test]
    fn a_cluster_is_found_by_its_connections() {
        let (sockets, processes) = machine();
        let found = |target: &str, named: &Named| {
            servers(&[target.parse().unwrap()], named, &sockets, &processes)
        };
        let expected = BTreeMap::from([(1, Why::Listens), (2, Why::Cluster), (3, Why::Cluster)]);
        assert_eq!(found("127.0.0.1:7101", &Named::default()), expected);
        let by_two = found("127.0.0.1:7102", &Named::default());
        assert_eq!(by_two.len(), 3, "it listens everywhere");
        assert_eq!(by_two[&2], Why::Listens);
        assert!(
            found("10.0.0.1:7102", &Named::default()).is_empty(),
            "another machine"
        );
        assert!(found("127.0.0.1:1", &Named::default()).is_empty());
        let named = Named {
            pids: vec![6],
            commands: vec![vec!["db".to_owned(), "serve".to_owned()]],
        };
        let all = found("127.0.0.1:7201", &named);
        assert_eq!(all.len(), 6);
        assert_eq!((all[&4], all[&6]), (Why::Listens, Why::Named));
    }

    #[test]
    fn processor_time_is_read_past_any_name() {
        let stat = "42 (a) b) (c) S 1 1 1 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 7 0 8913 1 1 1";
        let expected = Used {
            user_us: 2_500_000,
            system_us: 500_000,
            started: 8_913,
        };
        assert_eq!(used_in(stat, 100), Some(expected));
        assert_eq!(used_in("42 (x) S 1", 100), None);
        assert_eq!(used_in("", 100), None);
    }

    #[test]
    fn a_listening_process_is_watched() {
        let own = used(std::process::id(), hertz()).unwrap();
        assert!(own.started > 0);
        let (user, system) = own_us();
        assert!(user + system > 0);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // This process never counts itself.
        let watch = Watch::begin(vec![listener.local_addr().unwrap()], Named::default());
        assert!(watch.end().is_empty());
        let one = Named {
            pids: vec![1],
            ..Named::default()
        };
        let _ = Watch::begin(Vec::new(), one).end();
    }
}
