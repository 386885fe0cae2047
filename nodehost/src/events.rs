//! Listeners: told what happens, on a thread of their own.

use longboat_engine::{HostEvent, HostShared, ReplicaEvent};
use longboat_raft::{GroupId, Membership, ReplicaId, Term};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Another leader of a group is known at a replica of this host, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderChange {
    /// The group.
    pub group: GroupId,
    /// The replica on this host.
    pub replica: ReplicaId,
    /// The leader, if one is known.
    pub leader: Option<ReplicaId>,
    /// The term.
    pub term: Term,
}

/// A membership took effect at a replica of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipChange {
    /// The group.
    pub group: GroupId,
    /// The replica on this host.
    pub replica: ReplicaId,
    /// The membership.
    pub membership: Arc<Membership>,
}

/// Is told of leaders and memberships.
///
/// Called on one thread, which is none of the host's workers: a slow listener delays other events and nothing else. Events
/// that find too many waiting are dropped and counted ([`crate::HostInfo::events_dropped`]).
pub trait RaftEventListener: Send + Sync + 'static {
    /// Another leader is known, or none.
    fn leader_changed(&self, change: &LeaderChange) {
        let _ = change;
    }

    /// A membership took effect.
    fn membership_changed(&self, change: &MembershipChange) {
        let _ = change;
    }
}

/// Is told of everything else: replicas that start, stop, are removed or fail, snapshots, hosts, the log store. See
/// [`RaftEventListener`] for when and where.
pub trait SystemEventListener: Send + Sync + 'static {
    /// Something happened.
    fn event(&self, event: &HostEvent);
}

/// Who listens to a host.
#[derive(Clone, Default)]
pub struct Listeners {
    /// Is told of leaders and memberships.
    pub raft: Option<Arc<dyn RaftEventListener>>,
    /// Is told of everything else.
    pub system: Option<Arc<dyn SystemEventListener>>,
}

impl std::fmt::Debug for Listeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (raft, system) = (self.raft.is_some(), self.system.is_some());
        f.debug_struct("Listeners").field("raft", &raft).field("system", &system).finish()
    }
}

impl Listeners {
    /// Starts the thread that calls them; none when nobody listens.
    pub(crate) fn start(self, shared: &Arc<HostShared>) -> std::io::Result<Option<JoinHandle<()>>> {
        if self.raft.is_none() && self.system.is_none() {
            return Ok(None);
        }
        shared.events.listen();
        let host = Arc::downgrade(shared);
        shared.peers.listen(Box::new(move |peer, suspected| {
            if let Some(host) = host.upgrade() {
                let event = if suspected { HostEvent::HostSuspected(peer) } else { HostEvent::HostReturned(peer) };
                host.events.tell(event);
            }
        }));
        let shared = Arc::clone(shared);
        let name = format!("lb{}-events", shared.config.host);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            while let Some(event) = shared.events.next() {
                // What a listener does wrong is its own business.
                if std::panic::catch_unwind(AssertUnwindSafe(|| self.tell(&event))).is_err() {
                    tracing::error!(?event, "an event listener panicked");
                }
            }
        })?;
        Ok(Some(thread))
    }

    fn tell(&self, event: &HostEvent) {
        let HostEvent::Replica { group, replica, what } = event else { return self.tell_system(event) };
        let (group, replica) = (*group, *replica);
        match what {
            ReplicaEvent::LeaderChanged { leader, term } => {
                if let Some(raft) = &self.raft {
                    raft.leader_changed(&LeaderChange { group, replica, leader: *leader, term: *term });
                }
            }
            ReplicaEvent::MembershipChanged(membership) => {
                if let Some(raft) = &self.raft {
                    let membership = Arc::clone(membership);
                    raft.membership_changed(&MembershipChange { group, replica, membership });
                }
            }
            _ => self.tell_system(event),
        }
    }

    fn tell_system(&self, event: &HostEvent) {
        if let Some(system) = &self.system {
            system.event(event);
        }
    }
}
