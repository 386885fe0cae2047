//! What clients in sessions wait for, and what becomes of it.

use super::{Clients, Request};
use crate::machine::{Add, Ledger};
use crate::sessions::{Act, Made, Sent};
use longboat_engine::GroupShared;
use longboat_raft::{GroupId, HostId, ProposeOptions, SessionCall, Time};
use longboat_rsm::retry::ClientSession;
use longboat_rsm::{Pending, RequestError, SessionAnswer};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A request of a client that works in a session.
#[derive(Debug)]
pub(super) enum InSession {
    Register { client: usize, pending: Pending<SessionAnswer> },
    Close { pending: Pending<SessionAnswer> },
    Attempt { sent: Sent, pending: Pending<u64> },
}

impl Clients {
    /// The client with this number does what it is to do, through the replica of its group on `host`.
    pub(crate) fn act(
        &mut self,
        host: HostId,
        shared: &GroupShared,
        client: usize,
        act: Act,
        padding: usize,
        by: Time,
    ) {
        let group = shared.group;
        match act {
            Act::Nothing => {}
            Act::Register => {
                let call = SessionCall::Register { sessions_max: shared.sessions_max };
                if let Ok(pending) = shared.enqueue_session_call::<Ledger>(call, by) {
                    self.sessions.registers(client);
                    self.wait(host, group, Request::Session(InSession::Register { client, pending }));
                }
            }
            Act::Close(session) => {
                if let Ok(pending) = shared.enqueue_session_call::<Ledger>(SessionCall::Close { session }, by) {
                    self.sessions.closes(client);
                    self.wait(host, group, Request::Session(InSession::Close { pending }));
                }
            }
            Act::Begin => {
                let serial = self.next_serial;
                let floor = self.oracle.write_begins(group, serial, None);
                if let Some(open) = self.sessions.begin(client, serial, padding, floor) {
                    self.next_serial += 1;
                    self.attempt(host, shared, client, open, by);
                }
            }
            Act::Send(open) => self.attempt(host, shared, client, open, by),
        }
    }

    fn attempt(&mut self, host: HostId, shared: &GroupShared, client: usize, open: usize, by: Time) {
        let (sent, command, call) = self.sessions.send(client, open);
        let command = Add { serial: command.serial, padding: command.padding };
        let left = match call {
            Some(call) => shared.enqueue_in_session::<Ledger>(call, &command, by),
            None => shared
                .enqueue::<Ledger>(std::iter::once(command), ProposeOptions::default(), by)
                .map(|mut parts| parts.pop().expect("one command, one part")),
        };
        match left {
            Ok((completion, slots)) => {
                let pending = Pending::new(completion, slots.start);
                self.wait(host, shared.group, Request::Session(InSession::Attempt { sent, pending }));
            }
            Err(error) => {
                self.outcomes.requests += 1;
                self.attempt_failed(shared.group, sent, &error);
            }
        }
    }

    pub(super) fn attempt_failed(&mut self, group: GroupId, sent: Sent, error: &RequestError) {
        self.outcomes.errors += 1;
        if self.sessions.failed(sent, error) == Made::NeverApplied {
            self.oracle.write_refused(group, sent.serial, error);
        }
    }

    /// The host that was to answer has lost its memory.
    pub(super) fn lost(&mut self, group: GroupId, request: &InSession) {
        match request {
            InSession::Register { client, .. } => self.sessions.registered(*client, None),
            InSession::Attempt { sent, .. } => self.attempt_failed(group, *sent, &RequestError::OutcomeUnknown),
            InSession::Close { .. } => {}
        }
    }

    /// Returns whether the outcome is open.
    pub(super) fn look_in_session(&mut self, group: GroupId, asked: &mut InSession, cx: &mut Context<'_>) -> bool {
        match asked {
            InSession::Register { client, pending } => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(SessionAnswer::Registered(id))) => {
                    self.outcomes.sessions += 1;
                    self.sessions.registered(*client, Some(ClientSession::new(id)));
                }
                Poll::Ready(answer) => self.not_as_asked(group, answer, Some(*client)),
            },
            InSession::Close { pending } => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(SessionAnswer::Closed { .. })) => {}
                Poll::Ready(answer) => self.not_as_asked(group, answer, None),
            },
            InSession::Attempt { sent, pending } => match Pin::new(pending).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(position)) => {
                    self.outcomes.attempts += 1;
                    if let Some(floor) = self.sessions.answered(*sent) {
                        self.oracle.write_done(group, sent.serial, position, floor);
                    }
                }
                Poll::Ready(Err(error)) => self.attempt_failed(group, *sent, &error),
            },
        }
        false
    }

    fn not_as_asked(&mut self, group: GroupId, answer: Result<SessionAnswer, RequestError>, client: Option<usize>) {
        match answer {
            Ok(answer) => self.oracle.violate(format!("group {group}: {answer:?} is no answer to what was asked")),
            Err(_) => self.outcomes.errors += 1,
        }
        if let Some(client) = client {
            self.sessions.registered(client, None);
        }
    }
}
