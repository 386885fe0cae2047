//! A client that tries again, and never applies a command twice.
//!
//! Invariant: a command of which an attempt may have been applied is sent again only under its own number in the session of
//! that attempt. Which failure allows what is decided by `Attempts`; here is only where to send, and how long to wait.

use crate::group::Group;
use crate::host::NodeHost;
use longboat_raft::GroupId;
use longboat_rsm::retry::{Attempts, ClientSession, NextStep, Series};
use longboat_rsm::{Machine, RequestError};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// How long one attempt may take, as long as nobody says otherwise: longer than an election with the default settings.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a command was given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("given up after {attempts} attempts ({}): {last}", if *may_have_applied { "it may have been applied" } else { "it was not applied and will not be" })]
#[non_exhaustive]
pub struct GaveUp {
    /// Whether one of the attempts may have been, or may still be, applied. If not, the command may be sent anew.
    pub may_have_applied: bool,
    /// How often it was sent.
    pub attempts: u32,
    /// How the last attempt failed.
    #[source]
    pub last: RequestError,
}

/// Sends commands to a group, one at a time, and sends them again as long as that is safe. It waits on the calling thread:
/// make one for each thread that needs one.
///
/// With [`RetryingClient::new`] it works in a session, which it registers when it is first needed and again when it was
/// evicted: then a command is applied exactly once, unless it is given up. With [`RetryingClient::without_session`] a
/// command is sent again only while no attempt may have been applied: at most once.
#[derive(Debug)]
pub struct RetryingClient<S: Machine> {
    /// Where the group has replicas, in this process.
    hosts: Vec<NodeHost>,
    group: GroupId,
    /// Which host is asked next.
    at: usize,
    session: Option<ClientSession>,
    attempt_timeout: Duration,
    machine: PhantomData<fn() -> S>,
}

/// One command on its way.
struct Course {
    attempts: Attempts,
    sent: u32,
    until: Instant,
}

impl Course {
    /// What is to be done after this failure: waits and returns, or gives up.
    fn failed(&mut self, error: RequestError) -> Result<(), GaveUp> {
        self.sent += 1;
        let mut next = self.attempts.failed(&error);
        if let NextStep::Retry { after_ms } = next {
            let left = self.until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                std::thread::sleep(Duration::from_millis(after_ms).min(left));
                return Ok(());
            }
            next = self.attempts.give_up();
        }
        Err(GaveUp { may_have_applied: next == NextStep::Unknown, attempts: self.sent, last: error })
    }
}

impl<S: Machine> RetryingClient<S>
where
    S::Command: Clone,
{
    /// A client with a session, of the group with replicas on these hosts of this process; mostly one.
    ///
    /// # Panics
    /// Without a host.
    pub fn new(hosts: impl IntoIterator<Item = NodeHost>, group: GroupId) -> Self {
        let hosts: Vec<_> = hosts.into_iter().collect();
        assert!(!hosts.is_empty(), "a client of group {group} needs a host to ask");
        Self { hosts, group, at: 0, session: None, attempt_timeout: ATTEMPT_TIMEOUT, machine: PhantomData }
    }

    /// A client without a session.
    ///
    /// # Panics
    /// Without a host.
    pub fn without_session(hosts: impl IntoIterator<Item = NodeHost>, group: GroupId) -> Self {
        Self { session: Some(ClientSession::noop()), ..Self::new(hosts, group) }
    }

    /// How long one attempt may take before the next is made.
    #[must_use]
    pub fn attempt_timeout(self, timeout: Duration) -> Self {
        Self { attempt_timeout: timeout, ..self }
    }

    /// The session that it works in, if it has one now.
    pub fn session(&self) -> Option<&ClientSession> {
        self.session.as_ref()
    }

    /// Has the command applied, and returns its result.
    ///
    /// # Errors
    /// [`GaveUp`] when `timeout` is over or the failure is one that does not pass. It says whether the command may have been
    /// applied.
    pub fn execute(&mut self, command: &S::Command, timeout: Duration) -> Result<S::Output, GaveUp> {
        let until = Instant::now() + timeout;
        let mut course = Course { attempts: Attempts::in_session(), sent: 0, until };
        loop {
            let mut session = match self.session.take() {
                Some(session) => session,
                None => self.register(&mut course)?,
            };
            course.attempts = session.attempts();
            let series = session.begin().expect("one command at a time is within any window");
            let done = self.send(&session, series, command, &mut course);
            // It is not sent again, under this number: whatever of it is still on its way is not applied any more.
            session.end(series);
            match done {
                // Nothing of it was applied in a session that is gone: in another it is a first attempt.
                Err(GaveUp { may_have_applied: false, last: RequestError::SessionExpired, .. })
                    if Instant::now() < until => {}
                done => {
                    let expired = matches!(&done, Err(e) if e.last == RequestError::SessionExpired);
                    self.session = Some(session).filter(|_| !expired);
                    return done;
                }
            }
        }
    }

    /// Closes the session, if there is one. One that is left open is evicted in time.
    ///
    /// # Errors
    /// When that did not succeed within `timeout`.
    pub fn close(mut self, timeout: Duration) -> Result<(), GaveUp> {
        let Some(session) = self.session.take().filter(|s| !s.is_noop()) else { return Ok(()) };
        let mut course = Course { attempts: Attempts::in_session(), sent: 0, until: Instant::now() + timeout };
        loop {
            let closed = self.route(&course).and_then(|(group, left)| group.close_session(session.id(), left)?.wait());
            match closed {
                Ok(_) => return Ok(()),
                Err(error) => self.after(error, &mut course)?,
            }
        }
    }

    fn register(&mut self, course: &mut Course) -> Result<ClientSession, GaveUp> {
        // A registration without an answer leaves a session that nobody uses: trying again is harmless, and no attempt of
        // the command itself was made.
        course.attempts = Attempts::in_session();
        loop {
            match self.route(course).and_then(|(group, left)| group.register_session(left)?.wait()) {
                Ok(session) => return Ok(session),
                Err(error) => {
                    self.after(error, course).map_err(|gave_up| GaveUp { may_have_applied: false, ..gave_up })?;
                }
            }
        }
    }

    fn send(
        &mut self,
        session: &ClientSession,
        series: Series,
        command: &S::Command,
        course: &mut Course,
    ) -> Result<S::Output, GaveUp> {
        loop {
            let sent = self
                .route(course)
                .and_then(|(group, left)| group.propose_in(session, series, command.clone(), left)?.wait());
            match sent {
                Ok(output) => return Ok(output),
                Err(error) => self.after(error, course)?,
            }
        }
    }

    /// The replica to ask, and how long it may take.
    fn route(&self, course: &Course) -> Result<(Group<S>, Duration), RequestError> {
        let left = course.until.saturating_duration_since(Instant::now()).min(self.attempt_timeout);
        Ok((self.hosts[self.at].group::<S>(self.group)?, left))
    }

    /// An attempt failed: another host may fare better.
    fn after(&mut self, error: RequestError, course: &mut Course) -> Result<(), GaveUp> {
        self.at = (self.at + 1) % self.hosts.len();
        course.failed(error)
    }
}
