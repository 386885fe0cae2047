//! Client sessions: which commands of which client were applied, and with what result, so that a retry is answered and not
//! applied again.
//!
//! The table is replicated state. It changes only by entries of the log, in their order; its bound is in the entries
//! that register sessions; it is saved and restored with the state machine. So every replica has the same table at the
//! same index.
//!
//! Invariants: a command is applied at most once for each (session, series); a session's id is never used again, so a
//! session that was evicted can't come back with its history forgotten; nothing here grows without a bound.

mod encoding;
#[cfg(test)]
mod tests;

use crate::error::RequestError;
use bytes::Bytes;
use longboat_raft::{Index, SessionId, plant};
use std::collections::BTreeMap;

/// Most sessions that a group may be told to keep.
pub const SESSIONS_LIMIT: u32 = 65_536;
/// Results that a session keeps until its client acknowledges them. A command beyond that is refused.
pub const SESSION_WINDOW: usize = 64;
/// Bytes of kept results in a group, beyond which the sessions that were not used for longest are evicted.
pub const SESSION_RESULT_BYTES_MAX: u64 = 64 << 20;

/// What a call to the table itself is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionAnswer {
    /// The session is there, under this id.
    Registered(SessionId),
    /// The session is gone.
    Closed {
        /// Whether it was there before.
        existed: bool,
    },
}

/// What is to be done with a command of a session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Apply it, and keep its result.
    Apply,
    /// It was applied: this was its result.
    Answered(Bytes),
    /// The session is not known.
    Expired,
    /// The client has its result.
    Acknowledged,
    /// Too many results are kept, or the number is not one that the session can have now.
    Window,
}

impl Verdict {
    /// How a command that is not applied is refused.
    pub(crate) fn error(&self) -> RequestError {
        match self {
            Self::Expired => RequestError::SessionExpired,
            Self::Acknowledged => RequestError::SessionAnswered,
            Self::Window => RequestError::SessionWindow,
            Self::Apply | Self::Answered(_) => unreachable!("not a refusal"),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Session {
    /// The index of its last entry.
    used: Index,
    /// The client has the results through this number; they are not kept.
    responded_to: u64,
    /// Encoded results of the commands after that which were applied.
    results: BTreeMap<u64, Bytes>,
}

impl Session {
    fn result_bytes(&self) -> u64 {
        self.results.values().map(|bytes| bytes.len() as u64).sum()
    }
}

/// The sessions of one group. A group without sessions has no table: all functions that change it take the place of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionTable {
    sessions: BTreeMap<SessionId, Session>,
    /// The same sessions in the order in which they would be evicted. An entry uses one session, so indexes differ.
    by_use: BTreeMap<Index, SessionId>,
    result_bytes: u64,
}

impl SessionTable {
    /// The number of sessions.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The entry at `index` registers a session; its id is returned. Beyond `sessions_max` those not used for longest go.
    pub(crate) fn register(table: &mut Option<Box<Self>>, index: Index, sessions_max: u32) -> SessionId {
        let table = table.get_or_insert_default();
        let id = SessionId(index.0);
        table.sessions.insert(id, Session { used: index, ..Session::default() });
        table.by_use.insert(index, id);
        let max = sessions_max.clamp(1, SESSIONS_LIMIT) as usize;
        if !plant::is("sessions-unbounded") {
            while table.sessions.len() > max {
                table.evict_oldest();
            }
        }
        id
    }

    /// The session ends. Returns whether it was there.
    pub(crate) fn close(slot: &mut Option<Box<Self>>, id: SessionId) -> bool {
        let Some(table) = slot else { return false };
        let existed = table.remove(id);
        if table.is_empty() {
            *slot = None;
        }
        existed
    }

    /// The entry at `index` is the command `series` of a session. What comes of it is the same on every replica.
    pub(crate) fn propose(
        table: &mut Option<Box<Self>>,
        index: Index,
        id: SessionId,
        series: u64,
        responded_to: u64,
    ) -> Verdict {
        let Some(table) = table else { return Verdict::Expired };
        let Some(session) = table.sessions.get_mut(&id) else { return Verdict::Expired };
        table.by_use.remove(&session.used);
        if !plant::is("session-use-not-counted") {
            session.used = index;
        }
        table.by_use.insert(session.used, id);
        // A client that has the results of commands that it is yet to send is mistaken.
        if responded_to >= series {
            return Verdict::Window;
        }
        if responded_to > session.responded_to {
            let kept = session.results.split_off(&(responded_to + 1));
            let gone = std::mem::replace(&mut session.results, kept);
            table.result_bytes -= gone.values().map(|bytes| bytes.len() as u64).sum::<u64>();
            session.responded_to = responded_to;
        }
        if series <= session.responded_to {
            return Verdict::Acknowledged;
        }
        if let Some(bytes) = session.results.get(&series) {
            return Verdict::Answered(bytes.clone());
        }
        if session.results.len() >= SESSION_WINDOW { Verdict::Window } else { Verdict::Apply }
    }

    /// Keeps the result of a command for which the verdict was to apply it.
    pub(crate) fn keep_result(table: &mut Option<Box<Self>>, id: SessionId, series: u64, result: Bytes) {
        let Some(table) = table else { return };
        let Some(session) = table.sessions.get_mut(&id) else { return };
        table.result_bytes += result.len() as u64;
        if let Some(old) = session.results.insert(series, result) {
            table.result_bytes -= old.len() as u64;
        }
        // The session itself was just used, so it is the last to go, and stays.
        while table.result_bytes > SESSION_RESULT_BYTES_MAX && table.sessions.len() > 1 {
            table.evict_oldest();
        }
    }

    fn evict_oldest(&mut self) {
        if let Some((_, id)) = self.by_use.pop_first()
            && let Some(session) = self.sessions.remove(&id)
        {
            self.result_bytes -= session.result_bytes();
        }
    }

    fn remove(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions.remove(&id) else { return false };
        self.by_use.remove(&session.used);
        self.result_bytes -= session.result_bytes();
        true
    }
}
