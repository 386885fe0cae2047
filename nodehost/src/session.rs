//! Client sessions of a group: a command that is sent again is applied once. `docs/sessions.md` says when that is needed.

use crate::group::Group;
use longboat_raft::{SessionCall, SessionId};
use longboat_rsm::retry::{ClientSession, Series};
use longboat_rsm::{Machine, Pending, RequestError, SessionAnswer};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// A session that is being registered or closed: as [`Pending`], a future and something to wait for.
#[must_use = "a request's outcome is known only to who waits for it"]
#[derive(Debug)]
pub struct PendingSession<T> {
    pending: Pending<SessionAnswer>,
    read: fn(SessionAnswer) -> Option<T>,
}

impl<T> PendingSession<T> {
    /// Blocks until the request is resolved.
    ///
    /// # Errors
    /// Why it did not complete.
    pub fn wait(self) -> Result<T, RequestError> {
        let read = self.read;
        told(self.pending.wait(), read)
    }

    /// Blocks for at most `timeout`; gives itself back when nothing came by then.
    ///
    /// # Errors
    /// `self`, when nothing came in time.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Result<T, RequestError>, Self> {
        let read = self.read;
        match self.pending.wait_timeout(timeout) {
            Ok(answer) => Ok(told(answer, read)),
            Err(pending) => Err(Self { pending, read }),
        }
    }
}

impl<T> Future for PendingSession<T> {
    type Output = Result<T, RequestError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let read = self.read;
        Pin::new(&mut self.pending).poll(cx).map(|answer| told(answer, read))
    }
}

/// An answer to another question than the one that was asked would be a bug here: it tells nothing of what was done.
fn told<T>(
    answer: Result<SessionAnswer, RequestError>,
    read: fn(SessionAnswer) -> Option<T>,
) -> Result<T, RequestError> {
    answer.and_then(|answer| read(answer).ok_or(RequestError::OutcomeUnknown))
}

impl<S: Machine> Group<S> {
    /// Registers a client session. The group keeps [`crate::GroupConfig::sessions_max`] of them and evicts the one that was
    /// not used for longest. An attempt that fails may have registered one that nobody uses: it is evicted in time, and
    /// registering may be tried again at will.
    ///
    /// # Errors
    /// As [`Group::propose`]; [`RequestError::SessionsUnsupported`] where the state machine has no sessions: one on disk, or
    /// one that does not say how results are kept.
    pub fn register_session(&self, timeout: Duration) -> Result<PendingSession<ClientSession>, RequestError> {
        let call = SessionCall::Register { sessions_max: self.shared.sessions_max };
        let read = |answer| match answer {
            SessionAnswer::Registered(id) => Some(ClientSession::new(id)),
            _ => None,
        };
        self.session_call(call, read, timeout)
    }

    /// Proposes a command of a session: the first attempt and any retry of `series` alike, at whichever replica of the
    /// group. However many attempts are in the log, the command is applied once, and each attempt is answered with the
    /// result of that. Without a session ([`ClientSession::noop`]) this is [`Group::propose`].
    ///
    /// When a result has arrived, or the client gives up, it says so with [`ClientSession::end`].
    ///
    /// # Errors
    /// As [`Group::propose`], and [`RequestError::SessionsUnsupported`] as for [`Group::register_session`]. The pending
    /// result is [`RequestError::SessionExpired`] when the session was closed or evicted: then this attempt was not applied.
    pub fn propose_in(
        &self,
        session: &ClientSession,
        series: Series,
        command: S::Command,
        timeout: Duration,
    ) -> Result<Pending<S::Output>, RequestError> {
        let Some(call) = session.call(series) else { return self.propose(command, timeout) };
        let deadline = self.shared.deadline_after(timeout);
        let (completion, slots) = self.shared.enqueue_in_session::<S>(call, &command, deadline)?;
        Ok(Pending::new(completion, slots.start))
    }

    /// Closes a session; resolves with whether the group had it. Commands of it that are still on their way are refused with
    /// [`RequestError::SessionExpired`]. May be tried again at will.
    ///
    /// # Errors
    /// As [`Group::register_session`].
    pub fn close_session(&self, session: SessionId, timeout: Duration) -> Result<PendingSession<bool>, RequestError> {
        let read = |answer| match answer {
            SessionAnswer::Closed { existed } => Some(existed),
            _ => None,
        };
        self.session_call(SessionCall::Close { session }, read, timeout)
    }

    fn session_call<T>(
        &self,
        call: SessionCall,
        read: fn(SessionAnswer) -> Option<T>,
        timeout: Duration,
    ) -> Result<PendingSession<T>, RequestError> {
        let deadline = self.shared.deadline_after(timeout);
        let pending = self.shared.enqueue_session_call::<S>(call, deadline)?;
        Ok(PendingSession { pending, read })
    }
}
