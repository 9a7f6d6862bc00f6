//! The table of fields.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use mds_types::MemberInfo;
use mds_types::limits::{CLOCK_SKEW_US_MAX, VALUE_BYTES_MAX};

use super::value::{
    ConfigValue, EngineKind, FsyncPolicy, LogFormat, OnRemoved, OnStop, RingModeKind,
};

/// One field, as tools and people see it.
pub struct Field {
    /// The TOML key.
    pub name: &'static str,
    /// What the number or text is: `ms`, `bytes`, `host:port`.
    pub unit: &'static str,
    /// What it is for.
    pub meaning: &'static str,
    /// What goes wrong when it is set badly.
    pub breaks: &'static str,
    pub(super) set: fn(&mut NodeConfig, &str) -> Result<(), String>,
    pub(super) text: fn(&NodeConfig) -> String,
    pub(super) toml: fn(&NodeConfig) -> toml::Value,
}

impl Field {
    /// The environment variable.
    pub fn env(&self) -> String {
        format!("{}{}", super::ENV_PREFIX, self.name.to_uppercase())
    }

    /// The flag, without its dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The value in a configuration, as text.
    pub fn text(&self, config: &NodeConfig) -> String {
        (self.text)(config)
    }

    /// The value in a configuration, as TOML.
    pub fn toml(&self, config: &NodeConfig) -> toml::Value {
        (self.toml)(config)
    }

    /// The default, as text.
    pub fn default_text(&self) -> String {
        self.text(&NodeConfig::default())
    }
}

macro_rules! config_fields {
    ($($name:ident: $type:ty = $default:expr, $unit:literal, $meaning:literal, $breaks:literal;)*) => {
        /// The configuration of one node. See [`FIELDS`] for the same as data.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct NodeConfig {
            $(
                #[doc = $meaning]
                #[doc = ""]
                #[doc = concat!("Unit: ", $unit, ". If set badly: ", $breaks)]
                pub $name: $type,
            )*
        }

        impl Default for NodeConfig {
            fn default() -> Self {
                NodeConfig { $($name: $default,)* }
            }
        }

        /// All fields, in the order people read them.
        pub static FIELDS: &[Field] = &[
            $(Field {
                name: stringify!($name),
                unit: $unit,
                meaning: $meaning,
                breaks: $breaks,
                set: |config, text| {
                    config.$name = <$type as ConfigValue>::parse(text)?;
                    Ok(())
                },
                text: |config| config.$name.text(),
                toml: |config| config.$name.toml(),
            },)*
        ];
    };
}

/// Stands for the host's name in an advertised address.
const HOST: &str = "{host}";

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

config_fields! {
    name: String = String::new(), "text",
        "A name for people, in logs, tables and member lists. Empty: the host's name.",
        "Two nodes of one name work, but nobody can tell them apart.";
    data_dir: PathBuf = PathBuf::from("data"), "path",
        "Where this node keeps its identity, log and data. Belongs to one process at a time.",
        "Another directory is another node: this one's data is not found there.";
    engine: EngineKind = EngineKind::Fjall, "fjall|leveldb|memory",
        "The storage engine. A data directory remembers the engine that made it.",
        "Opening a directory with another engine is refused; `memory` keeps nothing over a restart.";
    fsync: FsyncPolicy = FsyncPolicy::Always, "always|interval:MS|os",
        "When a write is on disk: before it is acknowledged, MS milliseconds later, or any time.",
        "With other than `always`, a power failure can take acknowledged writes with it.";
    zone: String = "default".to_owned(), "text",
        "Failure domain (rack, zone): replicas go to distinct zones while there are enough.",
        "One zone name for all: a zone's failure can take all replicas of a key.";
    weight: u32 = 100, "share",
        "Share of the data relative to other nodes; 100 is the norm, 0 holds no data.",
        "Too high for the disk: it fills up first.";
    resp_listen: SocketAddr = local(7101), "ip:port",
        "Where Redis clients connect.",
        "A port in use ends the start; 0.0.0.0 opens the node to the network, without a password.";
    http_listen: SocketAddr = local(8101), "ip:port",
        "Where HTTP clients, the command line and metrics scrapers connect.",
        "A port in use ends the start; 0.0.0.0 opens the node to the network, without a password.";
    peer_listen: SocketAddr = local(9101), "ip:port",
        "Where other nodes connect: TCP for data and Raft, UDP for gossip.",
        "Must not be reachable for strangers: peers trust each other.";
    resp_advertise: String = String::new(), "host:port",
        "The address Redis Cluster clients are told. Empty: resp_listen.",
        "Wrong: Cluster clients are sent to an address they cannot reach.";
    http_advertise: String = String::new(), "host:port",
        "The HTTP address others are told. Empty: http_listen.",
        "Wrong: `mydatastore digest` and dashboards cannot reach this node.";
    peer_advertise: String = String::new(), "host:port",
        "The address other nodes reach this one at. Empty: peer_listen. In it, as in the other two, `{host}` \
         stands for the host's name.",
        "Wrong: the other nodes hold this one for dead.";
    seeds: Vec<String> = Vec::new(), "host:port,...",
        "Peer addresses of some other nodes, to find the cluster by. Its own is ignored.",
        "Empty on all: the nodes never find each other.";
    request_timeout_ms: u32 = 2_000, "ms",
        "How long a request waits for its quorum, unless it says otherwise itself.",
        "Too short: slow disks make writes of unknown outcome. Too long: clients hang.";
    hedge_delay_max_ms: u32 = 50, "ms",
        "After this long at most a read also asks the replicas it had spared; the latency of recent \
         reads decides when exactly.",
        "Too short: more work for each read. Too long: one slow node slows reads.";
    value_bytes_max: u64 = VALUE_BYTES_MAX as u64, "bytes",
        "The largest value that is accepted. At most 16 MiB.",
        "Differing between nodes: a write is accepted or not by chance.";
    pending_requests_max: u32 = 65_536, "requests",
        "Requests being coordinated at a time; more are refused as overload.",
        "Too low: load is shed for nothing. Too high: memory and waiting grow under overload.";
    pending_bytes_max: u64 = 256 * 1024 * 1024, "bytes",
        "Bytes of values among them; more writes are refused as overload.",
        "Below value_bytes_max, large values are never accepted.";
    resp_connections_max: u32 = 10_000, "connections",
        "Redis clients at a time; more are refused.",
        "Beyond the process' limit of open files (`ulimit -n`) accepting fails instead.";
    http_connections_max: u32 = 1_024, "connections",
        "HTTP clients at a time; more wait to be accepted.",
        "Too low: clients that keep connections open shut others out.";
    http_requests_max: u32 = 512, "requests",
        "HTTP data requests at a time; more are answered 503. Health and metrics are not counted.",
        "Too low: load is shed for nothing.";
    cache_bytes_max: u64 = 48 * 1024 * 1024, "bytes",
        "Memory for records that are on disk and are asked for often.",
        "Too low: reads and writes of keys that were not written lately ask the storage engine.";
    hint_bytes_max: u64 = 1024 * 1024 * 1024, "bytes",
        "Disk for the writes that one unreachable replica missed. Full: no more are kept for it.",
        "Too low: a returning replica needs read repair or sync to catch up.";
    hint_age_max_ms: u64 = 3 * 60 * 60 * 1_000, "ms",
        "How long a hint is kept for a replica that does not return.",
        "Too short: a replica that was away longer needs sync to catch up.";
    gossip_probe_ms: u32 = 1_000, "ms",
        "How often gossip probes another node.",
        "Too long: a dead node is noticed late.";
    gossip_suspect_ms: u32 = 2_500, "ms",
        "How long a node that does not answer probes is suspected before it is held for dead.",
        "Too short: a busy node is held for dead. Too long: a dead one is asked in vain.";
    raft_heartbeat_ms: u32 = 100, "ms",
        "How often the Raft leader says that it lives.",
        "Has to be well below raft_election_timeout_ms.";
    raft_election_timeout_ms: u32 = 400, "ms",
        "After how long of silence, up to twice that, the leader is held for dead. Data requests do \
         not wait for it.",
        "Too short: elections without end on a slow network.";
    epoch_interval_ms: u64 = 15 * 60 * 1_000, "ms",
        "How often the Raft leader begins a new epoch, the unit of verification.",
        "Too short: overhead. Too long: more to compare, later collection of tombstones.";
    scrub_interval_ms: u64 = 24 * 60 * 60 * 1_000, "ms",
        "How often a node reads all it holds, compares it with the other replicas, and brings back what \
         was lost on its disk. 0: never.",
        "Too short: the disks are never idle. Too long, or never: what rots is found late, or by a reader.";
    scrub_rows_per_s: u32 = 20_000, "rows/s",
        "How fast it reads for that, at most, records and index rows together. The other replicas read as \
         much to compare.",
        "Too high: requests wait for the disk. Too low: a pass takes longer than scrub_interval_ms.";
    ring_mode: RingModeKind = RingModeKind::Operator, "operator|auto",
        "Who changes the ring: administrators alone, or also the leader, which lets waiting nodes join \
         as they come. All nodes of a cluster should have the same.",
        "`auto`: a node that was started by mistake is given data.";
    remove_after_ms: u64 = 0, "ms",
        "With ring_mode `auto`: a member that has been dead for so long without a break is removed for \
         good, where nothing is lost by it. 0: never.",
        "Too short: a machine that is only being mended is removed, and its data copied anew.";
    on_stop: OnStop = OnStop::Stay, "stay|leave",
        "What a node does on SIGTERM: keeps its place and stops, or leaves the ring first, for good.",
        "`leave`: a restart costs a node its place, and its data directory cannot come back.";
    leave_timeout_ms: u64 = 120_000, "ms",
        "With `on_stop = \"leave\"`: how long it may take; then the node stops all the same.",
        "Too short: a node stops while it is on the ring. Longer than what runs the node waits: it is killed.";
    on_removed: OnRemoved = OnRemoved::Stop, "stop|rejoin",
        "What a node does whose directory the cluster has removed, because it left or was away for too long: says so and stops, or puts \
         its data aside, in `removed-ID` within the directory, and joins as a new node.",
        "`rejoin`: data that only a removed node has is looked for by nobody, and an older `removed-ID` is deleted.";
    max_clock_skew_ms: u64 = CLOCK_SKEW_US_MAX / 1_000, "ms",
        "Writes stamped further ahead of this node's clock are refused. At most 5000.",
        "Below the real skew of the nodes' clocks, good writes are refused: run NTP.";
    profiling: bool = false, "true|false",
        "Whether a profile of processor time may be asked for (`mydatastore profile`).",
        "`true`: whoever reaches the HTTP address can slow this node down a little.";
    log_level: String = "info".to_owned(), "filter",
        "Which log lines are written: error, warn, info, debug or trace of this program, with \
         warnings of its libraries; or a filter such as `warn,mds_cluster=debug,openraft=info`.",
        "Below info, a node's life cannot be followed.";
    log_format: LogFormat = LogFormat::Text, "text|json",
        "Log lines for people or for programs. They go to standard error.",
        "Nothing breaks.";
}

impl NodeConfig {
    /// The name people see: the configured one, else the host's.
    pub fn node_name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        host_name().unwrap_or_else(|| "node".to_owned())
    }

    /// What this node says of itself to others.
    pub fn member_info(&self) -> MemberInfo {
        let advertised = |advertise: &str, listen: SocketAddr| match advertise {
            "" => listen.to_string(),
            given => given.replace(HOST, &host_name().unwrap_or_else(|| "localhost".to_owned())),
        };
        MemberInfo {
            name: self.node_name(),
            peer_addr: advertised(&self.peer_advertise, self.peer_listen),
            resp_addr: advertised(&self.resp_advertise, self.resp_listen),
            http_addr: advertised(&self.http_advertise, self.http_listen),
            zone: self.zone.clone(),
            weight: self.weight,
        }
    }
}

fn host_name() -> Option<String> {
    let mut buffer = [0u8; 256];
    // SAFETY: the buffer is ours, and the length given is one short of its size, so that the last
    // byte stays zero whatever the call does.
    let failed =
        unsafe { libc::gethostname(buffer.as_mut_ptr().cast::<libc::c_char>(), buffer.len() - 1) };
    if failed != 0 {
        return None;
    }
    let end = buffer.iter().position(|&byte| byte == 0)?;
    let name = std::str::from_utf8(&buffer[..end]).ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}
