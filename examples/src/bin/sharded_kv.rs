//! One host of a replicated key-value server that `redis-cli` and `redis-benchmark` can talk to.
//!
//! CRC16 hash slots are spread over the groups, as in Redis cluster; any host serves any key; reads are linearizable.
//! `MSET`, `MGET`, `DEL` and `EXISTS` are per key: each key's part is atomic and linearizable, the whole is not.
//! An error that starts with `TRYAGAIN` had no effect; one that starts with `UNKNOWN` may have had it.

use clap::Parser;
use longboat_examples::host::{KvHost, Settings};
use longboat_examples::server::Server;
use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// One host of a replicated key-value server that speaks RESP, the protocol of Redis.
#[derive(Debug, Parser)]
struct Options {
    /// This host's id: one of the peers'.
    #[arg(long)]
    host_id: u64,
    /// All hosts, this one included, and where each listens for the others.
    #[arg(long, value_name = "ID=ADDRESS,..", value_delimiter = ',', value_parser = peer, required = true)]
    peers: Vec<(u64, SocketAddr)>,
    /// Those of the hosts that have a replica of every group from the start; others join with LONGBOAT JOIN [default: all]
    #[arg(long, value_name = "ID,..", value_delimiter = ',')]
    members: Vec<u64>,
    /// Where clients connect.
    #[arg(long, value_name = "ADDRESS")]
    resp: SocketAddr,
    /// Number of Raft groups; the same on every host, for ever.
    #[arg(long, default_value_t = 64)]
    groups: u16,
    /// Directory for logs and snapshots.
    #[arg(long)]
    data: PathBuf,
    /// Applied entries of a group between snapshots; 0 for none.
    #[arg(long, default_value_t = 100_000)]
    snapshot_entries: u64,
    /// Entries kept behind a snapshot for followers that lag.
    #[arg(long, default_value_t = 10_000)]
    compaction_overhead: u64,
    /// Smallest election timeout.
    #[arg(long, value_name = "MS", default_value_t = 500)]
    election_timeout: u64,
    /// Threads that serve clients.
    #[arg(long, default_value_t = 1)]
    resp_threads: usize,
    /// Die when the process that started this one does.
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

fn peer(text: &str) -> Result<(u64, SocketAddr), String> {
    let (id, address) = text.split_once('=').ok_or("must be ID=ADDRESS")?;
    let id = id.parse().map_err(|error| format!("host id {id}: {error}"))?;
    let address = address.parse().map_err(|error| format!("address {address}: {error}"))?;
    Ok((id, address))
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match serve(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sharded_kv: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), Box<dyn Error>> {
    if options.die_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    let peers: BTreeMap<_, _> = options.peers.iter().copied().collect();
    if peers.len() < options.peers.len() {
        return Err("peers name a host twice".into());
    }
    let host = KvHost::open(&Settings {
        host_id: options.host_id,
        peers,
        members: options.members.iter().copied().collect(),
        groups: options.groups,
        data: options.data.clone(),
        snapshot_entries: options.snapshot_entries,
        compaction_overhead: options.compaction_overhead,
        election_timeout_ms: options.election_timeout,
    })?;
    let server = Server::start(options.resp, options.resp_threads, Arc::new(host))
        .map_err(|error| format!("resp {}: {error}", options.resp))?;
    println!("host {} serves {} groups at {}", options.host_id, options.groups, server.address());
    Ok(server.wait()?)
}
