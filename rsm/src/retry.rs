//! What a client does after a failed attempt, without doing a command twice. Pure: no clock, no waiting, no sending.
//!
//! A command whose attempt may have been applied is sent again only within a session, under the same number. The page
//! `docs/sessions.md` says when a client needs that.

use crate::error::RequestError;
use crate::session::SESSION_WINDOW;
use longboat_raft::{SessionCall, SessionId, plant};
use std::collections::BTreeSet;

/// Milliseconds before the first retry; each later one waits twice as long.
pub const BACKOFF_MS_MIN: u64 = 2;
/// Milliseconds before any retry at most: about an election, after which another answer can be expected.
pub const BACKOFF_MS_MAX: u64 = 256;

/// A client's side of a session: numbers its commands and knows which results it has.
#[derive(Debug)]
pub struct ClientSession {
    id: SessionId,
    next: u64,
    /// The results through this number have arrived.
    responded_to: u64,
    /// Results after that which have arrived out of order.
    arrived: BTreeSet<u64>,
}

/// The number of a command in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series(u64);

impl ClientSession {
    /// A session that was just registered.
    pub fn new(id: SessionId) -> Self {
        Self { id, next: 1, responded_to: 0, arrived: BTreeSet::new() }
    }

    /// No session, for code that is written for one: commands without a number, each attempt on its own, and only those that
    /// were certainly not applied may be sent again.
    pub fn noop() -> Self {
        Self::new(SessionId::ZERO)
    }

    /// Whether this is no session.
    pub fn is_noop(&self) -> bool {
        self.id.is_zero()
    }

    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Before the first attempt of a command.
    pub fn attempts(&self) -> Attempts {
        if self.is_noop() { Attempts::without_session() } else { Attempts::in_session() }
    }

    /// A number for a new command. `None` while as many are open as the group keeps results of.
    pub fn begin(&mut self) -> Option<Series> {
        if !self.is_noop() && self.next - self.responded_to > SESSION_WINDOW as u64 {
            return None;
        }
        let series = Series(self.next);
        self.next += 1;
        Some(series)
    }

    /// What an attempt of this command carries, the first as any retry. `None` for no session.
    pub fn call(&self, series: Series) -> Option<SessionCall> {
        let responded_to = self.responded_to.min(series.0 - 1);
        (!self.is_noop()).then_some(SessionCall::Propose { session: self.id, series: series.0, responded_to })
    }

    /// The command's result has arrived, or nobody waits for it any longer: it is not sent again.
    pub fn end(&mut self, series: Series) {
        if series.0 > self.responded_to && !self.is_noop() {
            self.arrived.insert(series.0);
        }
        while self.arrived.remove(&(self.responded_to + 1)) {
            self.responded_to += 1;
        }
    }
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Wait, then send the same command again, under the same number if it has one.
    Retry {
        /// How long to wait.
        after_ms: u64,
    },
    /// Give up: the command was not applied and never will be.
    NotApplied,
    /// Give up: whether the command was or will be applied can't be known.
    Unknown,
}

/// The attempts of one command.
#[derive(Debug)]
pub struct Attempts {
    in_session: bool,
    failed: u32,
    /// Whether an earlier attempt may have been applied.
    may_have_applied: bool,
}

impl Attempts {
    /// Before the first attempt of a command with a number of a session.
    pub fn in_session() -> Self {
        Self { in_session: true, failed: 0, may_have_applied: false }
    }

    /// Before the first attempt of a command without a session.
    pub fn without_session() -> Self {
        Self { in_session: false, failed: 0, may_have_applied: false }
    }

    /// An attempt failed.
    pub fn failed(&mut self, error: &RequestError) -> NextStep {
        self.failed += 1;
        self.may_have_applied |= error.may_have_applied();
        let safe = self.in_session || !self.may_have_applied || plant::is("unknown-outcome-sent-again");
        if safe && is_transient(error) {
            let doubled = BACKOFF_MS_MIN.checked_shl(self.failed.min(32) - 1).unwrap_or(BACKOFF_MS_MAX);
            return NextStep::Retry { after_ms: doubled.min(BACKOFF_MS_MAX) };
        }
        self.give_up()
    }

    /// The client's own time is over, or the failure will not pass.
    pub fn give_up(&self) -> NextStep {
        if self.may_have_applied { NextStep::Unknown } else { NextStep::NotApplied }
    }
}

/// Whether another attempt, here or through another host, may fare better.
fn is_transient(error: &RequestError) -> bool {
    matches!(
        error,
        RequestError::Busy
            | RequestError::DiskFull { .. }
            | RequestError::NoLeader
            | RequestError::Dropped
            | RequestError::Timeout { .. }
            | RequestError::OutcomeUnknown
            | RequestError::Stopped
            | RequestError::NotHere(_)
            | RequestError::HostFailed(_)
            | RequestError::MachineFailed { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Stage;

    const TIMEOUT: RequestError = RequestError::Timeout { stage: Stage::Quorum, may_have_applied: true };

    #[test]
    fn without_a_session_a_command_that_may_have_been_applied_is_not_sent_again() {
        let mut attempts = Attempts::without_session();
        assert_eq!(attempts.failed(&RequestError::NoLeader), NextStep::Retry { after_ms: BACKOFF_MS_MIN });
        assert_eq!(attempts.failed(&RequestError::Dropped), NextStep::Retry { after_ms: 2 * BACKOFF_MS_MIN });
        assert_eq!(attempts.failed(&TIMEOUT), NextStep::Unknown);
        assert_eq!(attempts.failed(&RequestError::NoLeader), NextStep::Unknown, "what happened is not forgotten");
    }

    #[test]
    fn in_a_session_it_is_sent_until_the_session_is_lost() {
        let mut attempts = Attempts::in_session();
        for _ in 0..40 {
            let NextStep::Retry { after_ms } = attempts.failed(&TIMEOUT) else { panic!("worth another attempt") };
            assert!((BACKOFF_MS_MIN..=BACKOFF_MS_MAX).contains(&after_ms));
        }
        assert_eq!(attempts.failed(&RequestError::SessionExpired), NextStep::Unknown);
        assert_eq!(Attempts::in_session().failed(&RequestError::SessionExpired), NextStep::NotApplied);
        let refused = RequestError::PayloadTooLarge { bytes: 2, limit: 1 };
        assert_eq!(Attempts::in_session().failed(&refused), NextStep::NotApplied);
    }

    #[test]
    fn a_client_acknowledges_results_without_gaps_and_keeps_to_its_window() {
        let mut session = ClientSession::new(SessionId(9));
        let open: Vec<Series> = std::iter::from_fn(|| session.begin()).collect();
        assert_eq!(open.len(), SESSION_WINDOW);
        session.end(open[1]);
        let call = |session: &ClientSession, n: usize| match session.call(open[n]) {
            Some(SessionCall::Propose { series, responded_to, .. }) => (series, responded_to),
            other => panic!("{other:?}"),
        };
        assert_eq!(call(&session, 2), (3, 0), "the first result is still missing");
        assert_eq!(session.begin(), None);
        session.end(open[0]);
        assert_eq!(call(&session, 2), (3, 2));
        assert_eq!(call(&session, 0), (1, 0), "an old attempt never acknowledges itself");
        assert!(session.begin().is_some() && session.begin().is_some());
        assert_eq!(session.begin(), None);
    }

    #[test]
    fn no_session_has_no_window_and_numbers_nothing() {
        let mut none = ClientSession::noop();
        let open: Vec<Series> = (0..1000).map(|_| none.begin().expect("no window")).collect();
        assert_eq!(none.call(open[999]), None);
        none.end(open[999]);
        assert!(none.arrived.is_empty(), "nothing is kept for a session that is none");
        assert_eq!(none.attempts().failed(&TIMEOUT), NextStep::Unknown);
        assert!(matches!(ClientSession::new(SessionId(1)).attempts().failed(&TIMEOUT), NextStep::Retry { .. }));
    }
}
