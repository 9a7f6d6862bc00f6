//! The server: `INFO`, `CONFIG`, `COMMAND`, `TIME`.
//!
//! Clients and tools ask these to find out what they talk to. What is said is true of this node;
//! settings of Redis that mean nothing here are left out.

use std::fmt::Write as _;

use mds_cluster::Standing;
use mds_types::NodeId;

use super::table::{self, COMMANDS, Found, Spec};
use super::{Call, Planned, REDIS_VERSION, cluster, reply};
use crate::resp::codec::BULK_BYTES_MAX;
use crate::resp::glob;
use crate::resp::reply::Reply;

pub(super) fn time(call: &mut Call<'_>) -> Planned {
    let now_us = call.now.wall_us;
    reply(Reply::Array(vec![
        Reply::string((now_us / 1_000_000).to_string()),
        Reply::string((now_us % 1_000_000).to_string()),
    ]))
}

pub(super) fn config(call: &mut Call<'_>) -> Planned {
    if call.is(1, "GET") {
        call.expect_len(3..)?;
        let patterns: Vec<Vec<u8>> = call
            .command
            .args_from(2)
            .map(<[u8]>::to_ascii_lowercase)
            .collect();
        let found = settings().into_iter().filter(|(name, _)| {
            patterns
                .iter()
                .any(|pattern| glob::matches(pattern, name.as_bytes()))
        });
        let pairs = found.map(|(name, value)| (Reply::text(name), Reply::string(value)));
        return reply(Reply::Map(pairs.collect()));
    }
    if call.is(1, "SET") || call.is(1, "REWRITE") || call.is(1, "RESETSTAT") {
        return Err(
            "ERR only CONFIG GET is supported: `mydatastore config` shows how a node is configured"
                .into(),
        );
    }
    call.unknown_subcommand()
}

/// Settings of Redis that have a meaning here.
fn settings() -> [(&'static str, String); 8] {
    let text = |text: &str| text.to_owned();
    [
        ("appendonly", text("yes")),
        ("cluster-enabled", text("yes")),
        ("databases", text("1")),
        ("maxmemory", text("0")),
        ("maxmemory-policy", text("noeviction")),
        ("proto-max-bulk-len", BULK_BYTES_MAX.to_string()),
        ("save", text("")),
        ("timeout", text("0")),
    ]
}

pub(super) fn command(call: &mut Call<'_>) -> Planned {
    if call.len() == 1 {
        return reply(Reply::Array(COMMANDS.iter().map(describe).collect()));
    }
    let named = |call: &Call<'_>| -> Vec<Option<&'static Spec>> {
        let lookup = |name: &[u8]| match table::find(name) {
            Some(Found::Known(spec)) => Some(spec),
            _ => None,
        };
        match call.len() {
            2 => COMMANDS.iter().map(Some).collect(),
            _ => call.command.args_from(2).map(lookup).collect(),
        }
    };
    if call.is(1, "COUNT") {
        call.expect_len(2..=2)?;
        reply(Reply::Integer(COMMANDS.len() as i64))
    } else if call.is(1, "LIST") {
        call.expect_len(2..=2)?;
        let names = COMMANDS
            .iter()
            .map(|spec| Reply::string(spec.name.to_lowercase()));
        reply(Reply::Array(names.collect()))
    } else if call.is(1, "INFO") {
        let specs = named(call).into_iter();
        reply(Reply::Array(
            specs
                .map(|spec| spec.map_or(Reply::Null, describe))
                .collect(),
        ))
    } else if call.is(1, "DOCS") {
        reply(Reply::Map(
            named(call).into_iter().flatten().map(document).collect(),
        ))
    } else {
        call.unknown_subcommand()
    }
}

/// A command in the ten fields of `COMMAND`.
fn describe(spec: &Spec) -> Reply {
    let (first, last, step) = spec.keys;
    Reply::Array(vec![
        Reply::string(spec.name.to_lowercase()),
        Reply::Integer(spec.arity),
        Reply::Set(spec.flags.iter().map(|flag| Reply::Simple(flag)).collect()),
        Reply::Integer(first),
        Reply::Integer(last),
        Reply::Integer(step),
        Reply::Set(Vec::new()),
        Reply::Array(Vec::new()),
        Reply::Array(Vec::new()),
        Reply::Array(Vec::new()),
    ])
}

fn document(spec: &Spec) -> (Reply, Reply) {
    let fields = vec![
        (Reply::text("summary"), Reply::text(spec.summary)),
        (Reply::text("since"), Reply::text(env!("CARGO_PKG_VERSION"))),
        (Reply::text("group"), Reply::text(spec.group)),
    ];
    (Reply::string(spec.name.to_lowercase()), Reply::Map(fields))
}

/// Writes the fields of a section, one a line.
type Section = fn(&Call<'_>) -> String;

pub(super) fn info(call: &mut Call<'_>) -> Planned {
    let wants = |section: &str| {
        let everything = ["ALL", "EVERYTHING", "DEFAULT"];
        call.len() == 1
            || (1..call.len()).any(|index| {
                call.is(index, section) || everything.iter().any(|word| call.is(index, word))
            })
    };
    let sections: [(&str, Section); 8] = [
        ("Server", server_section),
        ("Clients", clients_section),
        ("Memory", memory_section),
        ("Persistence", persistence_section),
        ("Stats", stats_section),
        ("Replication", replication_section),
        ("Cluster", |_| "cluster_enabled:1\n".to_owned()),
        ("Keyspace", |_| String::new()),
    ];
    let mut text = String::new();
    for (name, fields) in sections {
        if wants(name) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let _ = write!(text, "# {name}\r\n{}", fields(call).replace('\n', "\r\n"));
        }
    }
    reply(Reply::Verbatim(text.into()))
}

fn server_section(call: &Call<'_>) -> String {
    let started_ns = call.shared.started.unwrap_or(call.now).mono_ns;
    let uptime_s = call.now.mono_ns.saturating_sub(started_ns) / 1_000_000_000;
    let (_, port) = cluster::host_and_port(&call.view.my_info.resp_addr);
    format!(
        "redis_version:{REDIS_VERSION}\nmydatastore_version:{}\nredis_mode:cluster\n\
         arch_bits:{}\nrun_id:{}\ntcp_port:{port}\nserver_time_usec:{}\n\
         uptime_in_seconds:{uptime_s}\nuptime_in_days:{}\n",
        env!("CARGO_PKG_VERSION"),
        usize::BITS,
        cluster::long_id(call.view.me),
        call.now.wall_us,
        uptime_s / 86_400,
    )
}

fn clients_section(call: &Call<'_>) -> String {
    format!(
        "connected_clients:{}\nblocked_clients:0\n",
        call.shared.open
    )
}

fn memory_section(_: &Call<'_>) -> String {
    "maxmemory:0\nmaxmemory_policy:noeviction\n".to_owned()
}

fn persistence_section(call: &Call<'_>) -> String {
    let ready = matches!(call.view.standing, Standing::Active | Standing::Waiting);
    format!("loading:{}\naof_enabled:1\n", u8::from(!ready))
}

fn stats_section(call: &Call<'_>) -> String {
    format!(
        "total_connections_received:{}\ntotal_commands_processed:{}\n",
        call.shared.connections, call.shared.commands,
    )
}

/// Every node takes every request, so to a client each is a master.
fn replication_section(call: &Call<'_>) -> String {
    let others = call.view.topology.members.iter().map(|member| member.node);
    let others = others.filter(|node: &NodeId| *node != call.view.me).count();
    format!(
        "role:master\nconnected_slaves:0\nmydatastore_ring_version:{}\nmydatastore_other_nodes:{others}\n\
         mydatastore_epoch:{}\n",
        call.view.topology.version, call.view.epoch,
    )
}
