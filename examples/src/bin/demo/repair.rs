//! What `make demo-repair` shows: groups that lost two of their three hosts go on, on new ones, from exported snapshots, and
//! replicas that nobody thought would come back are refused.

use crate::cluster::{Cluster, HOSTS};
use crate::load::{self, Load};
use crate::{Options, Progress, directory, plan};
use longboat::{FirstMembers, GroupId, HostId, Import, NodeHostConfig, ReplicaId};
use longboat_examples::client::{Client, Reply};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the clients write before the exports.
const LOAD: Duration = Duration::from_secs(4);
/// Within this time a replica of the former membership has heard that it is one.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
const EXPORT_WITHIN: Duration = Duration::from_secs(30);
/// The hosts, and those that come in the place of 2 and 3.
const OLD: [u64; HOSTS] = [1, 2, 3];
const NEW: [u64; HOSTS] = [1, 4, 5];

/// Returns how many of the writes that were acknowledged before the exports are lost.
pub(crate) fn repair(options: &Options) -> Result<u64, Box<dyn Error>> {
    let start = Instant::now();
    let dir = directory(options)?;
    let mut progress = Progress::new();
    let ports = crate::cluster::ports([1, 2, 3, 4, 5])?;
    progress.say(&format!("starting hosts 1, 2 and 3 with {} groups each", options.groups));
    let mut old = Cluster::start_as(dir.path(), plan(options), None, OLD, ports.clone())?;
    old.wait_ready()?;
    let load = Load::start("r", options.clients, &old.addresses())?;
    std::thread::sleep(LOAD);
    let written = load.finish();
    progress.say(&format!("{} writes acknowledged; host 1 exports a snapshot of every group", load::count(&written)));
    let exports = dir.path().join("exports");
    std::fs::create_dir(&exports)?;
    let exported = export_all(&old, options.groups, &exports)?;
    let bytes = exported.iter().map(|dir| longboat::inspect_snapshot(dir).map(|info| info.file_bytes));
    let bytes: u64 = bytes.sum::<Result<u64, _>>()?;
    progress.say(&format!("{} exports, {bytes} bytes, every byte of them checked", exported.len()));

    progress.say("kill -9 of all hosts; the directory of host 2 is deleted, that of host 3 is thought to be lost, too");
    old.kill(0..HOSTS)?;
    std::fs::remove_dir_all(dir.path().join("host-2"))?;
    let imported = import_all(dir.path(), &exported)?;
    progress.say(&format!("{imported} replicas imported, for hosts 1, 4 and 5; they start"));
    let mut new = Cluster::start_as(dir.path(), plan(options), None, NEW, ports)?;
    let ready = new.wait_ready()?;
    progress.say(&format!("all groups serve after {:.1} s", ready.as_secs_f64()));
    let lost = load::count_lost(&written, &new.addresses())?;
    progress.say(&format!("{lost} of {} writes are missing", load::count(&written)));

    progress.say("host 3 was not lost after all, and starts with what it had");
    let straggler = old.restart_alone(2)?;
    let refused = wait_refused(&straggler, options.groups)?;
    progress.say(&format!("its replicas were told that their history has ended, and stopped: {refused}"));
    let load = Load::start("s", options.clients, &new.addresses())?;
    std::thread::sleep(Duration::from_secs(1));
    let after = load.finish();
    let lost_after = load::count_lost(&after, &new.addresses())?;
    progress.end();
    println!();
    println!("writes before the exports    {}", load::count(&written));
    println!("of these lost                {lost}");
    println!("writes after the repair      {}", load::count(&after));
    println!("of these lost                {lost_after}");
    println!("replicas refused             {refused}");
    println!("time                         {:.0} s", start.elapsed().as_secs_f64());
    Ok(lost + lost_after)
}

/// Every group's state, as of what was acknowledged before.
fn export_all(cluster: &Cluster, groups: u16, to: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut client = Client::connect(cluster.addresses()[0], EXPORT_WITHIN)?;
    let to = to.to_str().ok_or("the directory's name is no text")?;
    let export =
        |group: u16| match client.ask(&[b"LONGBOAT", b"EXPORT", group.to_string().as_bytes(), to.as_bytes()])? {
            Reply::Simple(line) => match line.split_once(" to ") {
                Some((_, dir)) => Ok(PathBuf::from(dir)),
                None => Err(format!("the export of group {group} was answered {line:?}").into()),
            },
            other => Err(format!("the export of group {group} was answered {other:?}").into()),
        };
    (1..=groups).map(export).collect()
}

/// Imports each export on the host of each new member. Returns how many replicas that were.
fn import_all(dir: &Path, exported: &[PathBuf]) -> Result<usize, Box<dyn Error>> {
    let members = FirstMembers::voters(NEW.map(|id| (ReplicaId(id), HostId(id))));
    let mut count = 0;
    for id in NEW {
        let data_dir = dir.join(format!("host-{id}"));
        let config = NodeHostConfig { data_dir, host_id: HostId(id), ..NodeHostConfig::default() };
        let imports = exported.iter().map(|export| Import::new(export, ReplicaId(id), members.clone()));
        count += longboat::import_snapshots(&config, imports)?.len();
    }
    Ok(count)
}

/// Waits until none of the host's replicas runs any more. Returns how many that were.
fn wait_refused(host: &crate::cluster::Alone, groups: u16) -> Result<u16, Box<dyn Error>> {
    let start = Instant::now();
    let mut most = 0;
    loop {
        let running = host.running();
        most = most.max(running.unwrap_or(0));
        if running == Some(0) {
            return Ok(groups);
        }
        if start.elapsed() > REFUSED_WITHIN {
            return Err(format!("{running:?} of {most} replicas of group {} and others still run", GroupId(1)).into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
