//! Where things are: a lab's directories, files and ports, and what it tells a node.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SettingArgs;
use crate::cli::Failure;
use crate::config::{ConfigValue, EngineKind, FsyncPolicy, NodeConfig, RingModeKind};

/// Nodes of a lab, at most, those that have left included: more are no use on one machine, and ports would collide.
pub(super) const NODES_MAX: u32 = 32;

/// Port of node 0 for Redis clients; node i has the i-th after it.
const RESP_PORT: u16 = 7100;
/// The same for HTTP clients.
const HTTP_PORT: u16 = 8100;
/// The same for other nodes.
const PEER_PORT: u16 = 9100;

/// Added to all ports, at most.
const PORT_OFFSET_MAX: u16 = 50_000;

/// Configuration fields that the lab decides for its nodes. The user's environment must not override
/// them: it would do so for all nodes alike.
pub(super) const OWN_FIELDS: &[&str] = &[
    "name",
    "data_dir",
    "engine",
    "fsync",
    "resp_listen",
    "http_listen",
    "peer_listen",
    "resp_advertise",
    "http_advertise",
    "peer_advertise",
    "seeds",
    "epoch_interval_ms",
    "ring_mode",
    "remove_after_ms",
];

/// How often a lab's epoch advances, milliseconds, unless it is told otherwise: so that one sees it.
const EPOCH_INTERVAL_MS: u64 = 10_000;

/// How often a lab's node reads all it holds, milliseconds: so that one sees it.
const SCRUB_INTERVAL_MS: u64 = 30_000;

/// What a lab is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Settings {
    /// How many nodes.
    pub(super) nodes: u32,
    /// Storage engine.
    pub(super) engine: String,
    /// Replicas.
    pub(super) n: u8,
    /// Read quorum.
    pub(super) r: u8,
    /// Write quorum.
    pub(super) w: u8,
    /// Sync policy.
    pub(super) fsync: String,
    /// Added to all ports.
    pub(super) port_offset: u16,
    /// How often the epoch advances, milliseconds.
    #[serde(default = "epoch_interval_ms")]
    pub(super) epoch_interval_ms: u64,
    /// Who changes the ring.
    #[serde(default = "ring_mode")]
    pub(super) ring_mode: String,
    /// How long a node has to be dead before it is removed by itself, milliseconds; 0: never.
    #[serde(default)]
    pub(super) remove_after_ms: u64,
}

fn ring_mode() -> String {
    RingModeKind::Operator.to_string()
}

fn epoch_interval_ms() -> u64 {
    EPOCH_INTERVAL_MS
}

impl Settings {
    /// What was asked for, on top of what the lab was made of before, if it was.
    pub(super) fn new(asked: &SettingArgs, before: Option<&Settings>) -> Result<Settings, Failure> {
        let or = |asked: &Option<String>, before: &String| asked.clone().unwrap_or(before.clone());
        let settings = match before {
            Some(before) => Settings {
                fsync: or(&asked.fsync, &before.fsync),
                port_offset: asked.port_offset.unwrap_or(before.port_offset),
                epoch_interval_ms: asked.epoch_interval_ms.unwrap_or(before.epoch_interval_ms),
                ring_mode: or(&asked.ring_mode, &before.ring_mode),
                remove_after_ms: asked.remove_after_ms.unwrap_or(before.remove_after_ms),
                ..before.clone()
            },
            None => {
                let nodes = asked.nodes.unwrap_or(3);
                let n = asked.n.unwrap_or(nodes.clamp(1, 3) as u8);
                Settings {
                    nodes,
                    engine: asked.engine.clone().unwrap_or_else(|| "fjall".to_owned()),
                    n,
                    r: asked.r.unwrap_or(n / 2 + 1),
                    w: asked.w.unwrap_or(n / 2 + 1),
                    fsync: asked.fsync.clone().unwrap_or_else(|| "always".to_owned()),
                    port_offset: asked.port_offset.unwrap_or(0),
                    epoch_interval_ms: asked.epoch_interval_ms.unwrap_or(EPOCH_INTERVAL_MS),
                    ring_mode: asked.ring_mode.clone().unwrap_or_else(ring_mode),
                    remove_after_ms: asked.remove_after_ms.unwrap_or(0),
                }
            }
        };
        settings.check_unchanged(asked)?;
        settings.check()?;
        Ok(settings)
    }

    /// What a lab was made of holds for its life.
    fn check_unchanged(&self, asked: &SettingArgs) -> Result<(), Failure> {
        let differs = |flag: &str, asked: Option<String>, made: String| match asked {
            Some(asked) if asked != made => Err(Failure::usage(format!(
                "this lab was made with --{flag} {made}, not {asked}: leave the flag out to resume \
                 it, or choose another --dir"
            ))),
            _ => Ok(()),
        };
        differs(
            "nodes",
            asked.nodes.map(|nodes| nodes.to_string()),
            self.nodes.to_string(),
        )?;
        differs("engine", asked.engine.clone(), self.engine.clone())?;
        differs("n", asked.n.map(|n| n.to_string()), self.n.to_string())?;
        differs("r", asked.r.map(|r| r.to_string()), self.r.to_string())?;
        differs("w", asked.w.map(|w| w.to_string()), self.w.to_string())
    }

    fn check(&self) -> Result<(), Failure> {
        if self.nodes == 0 || self.nodes > NODES_MAX {
            return Err(Failure::usage(format!(
                "--nodes has to be 1 to {NODES_MAX}"
            )));
        }
        if self.n == 0 || u32::from(self.n) > self.nodes {
            return Err(Failure::usage(format!(
                "--n has to be 1 to the number of nodes, which is {}",
                self.nodes
            )));
        }
        for (flag, quorum) in [("r", self.r), ("w", self.w)] {
            if quorum == 0 || quorum > self.n {
                return Err(Failure::usage(format!(
                    "--{flag} has to be 1 to n, which is {}",
                    self.n
                )));
            }
        }
        if self.epoch_interval_ms == 0 {
            return Err(Failure::usage("--epoch-interval-ms has to be at least 1"));
        }
        if self.port_offset > PORT_OFFSET_MAX {
            return Err(Failure::usage(format!(
                "--port-offset has to be 0 to {PORT_OFFSET_MAX}"
            )));
        }
        self.engine()?;
        self.fsync()?;
        let config = NodeConfig {
            ring_mode: self.ring_mode()?,
            remove_after_ms: self.remove_after_ms,
            ..NodeConfig::default()
        };
        config
            .validate()
            .map_err(|problems| Failure::usage(problems.join("; ")))
    }

    fn engine(&self) -> Result<EngineKind, Failure> {
        EngineKind::parse(&self.engine)
            .map_err(|error| Failure::usage(format!("--engine: {error}")))
    }

    fn fsync(&self) -> Result<FsyncPolicy, Failure> {
        FsyncPolicy::parse(&self.fsync).map_err(|error| Failure::usage(format!("--fsync: {error}")))
    }

    /// Who changes the ring.
    pub(super) fn ring_mode(&self) -> Result<RingModeKind, Failure> {
        RingModeKind::parse(&self.ring_mode)
            .map_err(|error| Failure::usage(format!("--ring-mode: {error}")))
    }

    /// The addresses of a node.
    pub(super) fn addrs(&self, node: u32) -> Addrs {
        // Ports end below 65536: NODES_MAX and PORT_OFFSET_MAX see to that.
        let offset = self.port_offset + node as u16;
        let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port + offset));
        Addrs {
            resp: local(RESP_PORT),
            http: local(HTTP_PORT),
            peer: local(PEER_PORT),
        }
    }

    /// The configuration of a node.
    pub(super) fn node_config(&self, dir: &LabDir, node: u32) -> Result<NodeConfig, Failure> {
        let addrs = self.addrs(node);
        let others = (1..=self.nodes).filter(|&other| other != node);
        Ok(NodeConfig {
            name: format!("node-{node}"),
            data_dir: dir.data(node),
            engine: self.engine()?,
            fsync: self.fsync()?,
            resp_listen: addrs.resp,
            http_listen: addrs.http,
            peer_listen: addrs.peer,
            epoch_interval_ms: self.epoch_interval_ms,
            scrub_interval_ms: SCRUB_INTERVAL_MS,
            profiling: true,
            ring_mode: self.ring_mode()?,
            remove_after_ms: self.remove_after_ms,
            seeds: others
                .map(|other| self.addrs(other).peer.to_string())
                .collect(),
            ..NodeConfig::default()
        })
    }
}

/// The addresses of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Addrs {
    pub(super) resp: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) peer: SocketAddr,
}

impl Addrs {
    /// Names the first port that somebody else listens on.
    pub(super) fn check_free(&self, node: u32) -> Result<(), Failure> {
        let tcp = [
            ("Redis clients", self.resp),
            ("HTTP", self.http),
            ("other nodes", self.peer),
        ];
        let tcp = tcp.map(|(what, addr)| (what, addr, TcpListener::bind(addr).err()));
        let udp = ("gossip (UDP)", self.peer, UdpSocket::bind(self.peer).err());
        for (what, addr, error) in tcp.into_iter().chain([udp]) {
            if let Some(error) = error {
                let port = addr.port();
                return Err(Failure::unavailable(format!(
                    "port {port} on {}, which node {node} needs for {what}, cannot be used: {error}\n\
                     see who has it with `ss -tulpn | grep :{port}`, or choose other ports with \
                     --port-offset",
                    addr.ip()
                )));
            }
        }
        Ok(())
    }
}

/// A lab's directory, absolute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LabDir(PathBuf);

impl LabDir {
    /// The directory of a new or an existing lab.
    pub(super) fn create(dir: &Path) -> Result<LabDir, Failure> {
        std::fs::create_dir_all(dir).map_err(|error| {
            Failure::unavailable(format!(
                "cannot create the directory {}: {error}",
                dir.display()
            ))
        })?;
        LabDir::open(dir)
    }

    /// The directory of an existing lab.
    pub(super) fn open(dir: &Path) -> Result<LabDir, Failure> {
        match dir.canonicalize() {
            Ok(dir) => Ok(LabDir(dir)),
            Err(_) => Err(Failure::usage(format!(
                "there is no lab in {}: `mydatastore lab` makes one; --dir says where",
                dir.display()
            ))),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn state_file(&self) -> PathBuf {
        self.0.join("lab.json")
    }

    /// Held while the state file is read and written.
    pub(super) fn state_lock(&self) -> PathBuf {
        self.0.join("lab.json.lock")
    }

    /// Held as long as a supervisor lives.
    pub(super) fn supervisor_lock(&self) -> PathBuf {
        self.0.join("supervisor.lock")
    }

    pub(super) fn node(&self, node: u32) -> PathBuf {
        self.0.join(format!("node-{node}"))
    }

    pub(super) fn data(&self, node: u32) -> PathBuf {
        self.node(node).join("data")
    }

    pub(super) fn config(&self, node: u32) -> PathBuf {
        self.node(node).join("node.toml")
    }

    pub(super) fn log(&self, node: u32) -> PathBuf {
        self.node(node).join("node.log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_of_default_settings() {
        let settings = Settings::new(&SettingArgs::default(), None).unwrap();
        assert_eq!(
            (settings.nodes, settings.n, settings.r, settings.w),
            (3, 3, 2, 2)
        );
        assert_eq!(settings.addrs(1).resp.to_string(), "127.0.0.1:7101");
        assert_eq!(settings.addrs(2).http.to_string(), "127.0.0.1:8102");
        assert_eq!(settings.addrs(3).peer.to_string(), "127.0.0.1:9103");
        let dir = tempfile::tempdir().unwrap();
        let dir = LabDir::create(dir.path()).unwrap();
        let config = settings.node_config(&dir, 2).unwrap();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.seeds, ["127.0.0.1:9101", "127.0.0.1:9103"]);
        assert_eq!(config.data_dir, dir.path().join("node-2/data"));
    }

    #[test]
    fn one_node_is_a_lab_too() {
        let asked = SettingArgs {
            nodes: Some(1),
            ..SettingArgs::default()
        };
        let settings = Settings::new(&asked, None).unwrap();
        assert_eq!((settings.n, settings.r, settings.w), (1, 1, 1));
    }

    #[test]
    fn what_a_lab_is_made_of_stays() {
        let made = Settings::new(&SettingArgs::default(), None).unwrap();
        let resumed = Settings::new(&SettingArgs::default(), Some(&made)).unwrap();
        assert_eq!(resumed, made);
        let asked = SettingArgs {
            nodes: Some(5),
            ..SettingArgs::default()
        };
        let failure = Settings::new(&asked, Some(&made)).unwrap_err();
        assert!(
            failure.to_string().contains("made with --nodes 3, not 5"),
            "{failure}"
        );
        let asked = SettingArgs {
            fsync: Some("os".to_owned()),
            nodes: Some(3),
            ..SettingArgs::default()
        };
        assert_eq!(Settings::new(&asked, Some(&made)).unwrap().fsync, "os");
        let asked = SettingArgs {
            ring_mode: Some("auto".to_owned()),
            remove_after_ms: Some(20_000),
            ..SettingArgs::default()
        };
        let auto = Settings::new(&asked, Some(&made)).unwrap();
        let resumed = Settings::new(&SettingArgs::default(), Some(&auto)).unwrap();
        assert_eq!(
            (resumed.ring_mode.as_str(), resumed.remove_after_ms),
            ("auto", 20_000)
        );
    }

    #[test]
    fn wrong_settings_are_named() {
        let wrong = |asked: SettingArgs| Settings::new(&asked, None).unwrap_err().to_string();
        let none = SettingArgs::default;
        assert!(
            wrong(SettingArgs {
                nodes: Some(0),
                ..none()
            })
            .contains("--nodes")
        );
        assert!(
            wrong(SettingArgs {
                n: Some(4),
                ..none()
            })
            .contains("--n ")
        );
        assert!(
            wrong(SettingArgs {
                ring_mode: Some("x".into()),
                ..none()
            })
            .contains("--ring-mode")
        );
        assert!(
            wrong(SettingArgs {
                remove_after_ms: Some(20_000),
                ..none()
            })
            .contains("set ring_mode to `auto`")
        );
        assert!(
            wrong(SettingArgs {
                w: Some(4),
                ..none()
            })
            .contains("--w")
        );
        assert!(
            wrong(SettingArgs {
                engine: Some("x".into()),
                ..none()
            })
            .contains("--engine")
        );
        assert!(
            wrong(SettingArgs {
                fsync: Some("x".into()),
                ..none()
            })
            .contains("--fsync")
        );
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let addrs = Addrs {
            resp: free,
            http: addr,
            peer: free,
        };
        let failure = addrs.check_free(2).unwrap_err().to_string();
        let named = format!(
            "port {} on 127.0.0.1, which node 2 needs for HTTP",
            addr.port()
        );
        assert!(failure.starts_with(&named), "{failure}");
    }
}
