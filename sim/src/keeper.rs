//! Whoever looks after the groups' data: exports snapshots, aborts them, compacts logs, pins and reads them.
//!
//! What is checked: an export that was reported is whole and has the state that its group had at its index; entries that a
//! pin holds are read until its lease ends, the replica stops, or a leader's snapshot replaces the log; every request ends.

use crate::client::{Asked, Clients};
use crate::machine::Ledger;
use crate::oracle::Oracle;
use crate::rng::Rng;
use crate::world::World;
use longboat_engine::{
    Compacted, EntryLimits, GroupShared, LogEntries, LogPin, LogRequest, Rare, SnapshotOptions, SnapshotOutcome,
};
use longboat_io::{Clock, SharedDisk};
use longboat_raft::{GroupId, HostId, Index, Time};
use longboat_rsm::snapshot::{SnapshotError, open_export};
use longboat_rsm::{DynMachine, MachineKind, Pending, RequestError, Typed};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

/// Leases of pins last up to so long, in nanoseconds.
const LEASE_NANOS_MAX: u64 = 2_000_000_000;
/// Pins begin at most so many entries before what is applied.
const PINNED_BEHIND: u64 = 30;

/// What the keeper waits for.
#[derive(Debug)]
pub enum Kept {
    /// An export.
    Export(Pending<SnapshotOutcome>),
    /// A compaction.
    Compact(Pending<Compacted>),
    /// A pin.
    Pin {
        /// Where.
        shared: Arc<GroupShared>,
        /// When its lease ends.
        until: Time,
        /// Snapshots that were installed before it was asked for.
        installed: u64,
        /// The outcome.
        pending: Pending<LogPin>,
    },
    /// Entries that a pin holds.
    Read {
        /// The pin, which is not let go while the read is under way.
        pin: Arc<LogPin>,
        /// Where.
        shared: Arc<GroupShared>,
        /// When the pin's lease ends.
        until: Time,
        /// Snapshots that were installed before it was asked for.
        installed: u64,
        /// The outcome.
        pending: Pending<LogEntries>,
    },
}

/// A pin that is held.
#[derive(Debug)]
pub(crate) struct Held {
    host: HostId,
    shared: Arc<GroupShared>,
    until: Time,
    installed: u64,
    pin: Arc<LogPin>,
}

impl Held {
    /// On which host.
    pub(crate) fn host(&self) -> HostId {
        self.host
    }
}

fn installed(shared: &GroupShared) -> u64 {
    shared.published.counters.installed.load(Ordering::Relaxed)
}

impl Clients {
    /// Looks at what the keeper asked for. Returns whether its outcome is open.
    pub(crate) fn look_kept(&mut self, host: HostId, group: GroupId, kept: &mut Kept, cx: &mut Context<'_>) -> bool {
        match kept {
            Kept::Export(pending) => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(SnapshotOutcome::Exported { index, dir })) => {
                    self.outcomes.exports += 1;
                    self.exports.push((host, group, index, dir));
                }
                Poll::Ready(Ok(other)) => self.violate(format!("group {group}: an export came to {other:?}")),
                Poll::Ready(Err(_)) => self.outcomes.errors += 1,
            },
            Kept::Compact(pending) => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(done) => match done {
                    Ok(_) => self.outcomes.compactions += 1,
                    Err(_) => self.outcomes.errors += 1,
                },
            },
            Kept::Pin { shared, until, installed, pending } => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(pin)) => {
                    let (shared, until, installed) = (Arc::clone(shared), *until, *installed);
                    self.held.push(Held { host, shared, until, installed, pin: Arc::new(pin) });
                }
                Poll::Ready(Err(_)) => self.outcomes.errors += 1,
            },
            Kept::Read { pin, shared, until, installed: before, pending } => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(read) => {
                    let index = pin.index();
                    let holds = shared.host.clock.now() < *until && installed(shared) == *before;
                    let first = read.as_ref().map(|read| read.entries.first().map(|e| e.index));
                    match first {
                        Ok(Some(first)) if first == index => self.outcomes.pinned_reads += 1,
                        Err(RequestError::LogRange { .. }) if !holds || shared.refusal().is_some() => {}
                        Err(RequestError::LogRange { .. }) | Ok(_) => {
                            self.violate(format!(
                                "group {group} on host {host}: {index} is pinned and was read as {read:?}"
                            ));
                        }
                        Err(_) => self.outcomes.errors += 1,
                    }
                }
            },
        }
        false
    }

    /// Reads what one of the pins holds.
    fn read_pinned(&mut self, rng: &mut Rng, now: Time, deadline: Time) {
        self.held.retain(|held| held.until > now && held.shared.refusal().is_none());
        if self.held.is_empty() {
            return;
        }
        let at = rng.below(self.held.len() as u64) as usize;
        if rng.chance(200) {
            self.held.swap_remove(at);
            return;
        }
        let held = &self.held[at];
        let (host, shared, pin) = (held.host, Arc::clone(&held.shared), Arc::clone(&held.pin));
        let (until, installed, limits) = (held.until, held.installed, EntryLimits { entries: 3, bytes: 1 << 16 });
        let range = pin.index()..Index(u64::MAX);
        if let Ok(pending) = shared.request(deadline, |reply| Rare::Log(LogRequest::Query(range, limits, reply))) {
            let group = shared.group;
            self.ask(host, group, Asked::Kept(Kept::Read { pin, shared, until, installed, pending }));
        }
    }
}

impl World {
    /// Does one thing that keepers of data do.
    pub(crate) fn keep(&mut self, host: HostId, shared: &Arc<GroupShared>, deadline: Time) {
        let now = self.around.clock.now();
        let group = shared.group;
        match self.desk.rng.below(6) {
            0 => self.export(host, shared, deadline),
            1 if self.desk.rng.chance(300) => {
                self.say(|_| format!("group {group} on host {host}: snapshots are aborted"));
                shared.abort_snapshots();
            }
            2 => {
                if let Ok(pending) = shared.request(deadline, |reply| Rare::Log(LogRequest::Compact(None, reply))) {
                    self.clients.ask(host, group, Asked::Kept(Kept::Compact(pending)));
                }
            }
            3 => {
                let applied = shared.published.applied.load(Ordering::Relaxed);
                let index = Index(applied.saturating_sub(self.desk.rng.below(PINNED_BEHIND)));
                if index.is_zero() {
                    return;
                }
                let until = now.plus_nanos(1 + self.desk.rng.below(LEASE_NANOS_MAX));
                let installed = installed(shared);
                self.say(|_| format!("group {group} on host {host}: the log is pinned at {index}"));
                let pinned = shared.request(deadline, |reply| Rare::Log(LogRequest::Pin(index, until, reply)));
                if let Ok(pending) = pinned {
                    let shared = Arc::clone(shared);
                    self.clients.ask(host, group, Asked::Kept(Kept::Pin { shared, until, installed, pending }));
                }
            }
            _ => self.clients.read_pinned(&mut self.desk.rng, now, deadline),
        }
    }

    fn export(&mut self, host: HostId, shared: &Arc<GroupShared>, deadline: Time) {
        let dir = format!("/data/exports/{}", self.desk.next_export());
        let disk = self.hosts[host.0 as usize - 1].disk.process();
        // A disk that is full takes no directory either.
        if disk.create_dir_all(Path::new(&dir)).is_err() {
            return;
        }
        self.say(|_| format!("group {} on host {host}: export to {dir}", shared.group));
        if let Ok(pending) = shared.enqueue_snapshot(SnapshotOptions::export_to(dir), deadline) {
            self.clients.ask(host, shared.group, Asked::Kept(Kept::Export(pending)));
        }
    }

    /// Looks at the exports that were reported since the last look.
    pub(crate) fn check_exports(&mut self) {
        for (host, group, index, dir) in self.clients.take_exports() {
            let disk = self.hosts[host.0 as usize - 1].disk.process();
            let checked =
                check_export(&disk, &self.around.oracle, self.around.swarm.ballast, (host, group, index), &dir);
            match checked {
                // The user did not make the name of the directory durable, or the disk can't be read.
                Ok(()) | Err(SnapshotError::Io(_)) => {}
                Err(error) => {
                    self.around.oracle.violate(format!("group {group} on host {host}: export at {index}: {error}"));
                }
            }
            let _ = disk.remove_dir_all(dir.parent().unwrap_or(&dir));
        }
    }
}

fn check_export(
    disk: &SharedDisk,
    oracle: &Oracle,
    ballast: usize,
    (host, group, index): (HostId, GroupId, Index),
    dir: &Path,
) -> Result<(), SnapshotError> {
    let mut reader = open_export(disk, dir)?;
    let header = reader.header().clone();
    if (header.group, header.meta.pos.index) != (group, index) {
        oracle.violate(format!("group {group}: the export at {index} is of {header:?}"));
    }
    // Those in memory write the same, with views or without.
    if header.kind == MachineKind::OnDisk {
        return reader.drain();
    }
    let mut machine = Typed::new(Ledger::new(ballast));
    let sessions = reader.sessions()?;
    let recovered = machine.restore_sessions(&sessions).and_then(|()| machine.recover(&mut reader));
    reader.drain()?;
    match recovered {
        Ok(()) => oracle.at_rest(host, group, index, machine.state_hash()),
        Err(error) => oracle.violate(format!("group {group}: the export at {index} can't be recovered: {error}")),
    }
    Ok(())
}
