//! Commands of client sessions, and calls to a group's table of sessions, as clients leave them in its queue.
//!
//! Invariant: a call to the table is alone in its chunk, which is closed: its answer is of another type than the results of
//! commands. Must not know: what the table does with a call.

use crate::client::{Body, Part};
use crate::queue::{Chunk, Deadlines};
use crate::shared::GroupShared;
use bytes::BytesMut;
use longboat_raft::{ProposeOptions, RunBuilder, SessionCall, Time};
use longboat_rsm::packed::PackedBatch;
use longboat_rsm::snapshot::Compression;
use longboat_rsm::{Completion, Machine, Pending, RequestError, SessionAnswer};
use std::sync::atomic::Ordering;

impl GroupShared {
    /// Leaves a command of a session for a state machine of type `S`, which the replica must have.
    ///
    /// # Errors
    /// As [`GroupShared::enqueue`], and [`RequestError::SessionsUnsupported`] where the state machine has no sessions.
    pub fn enqueue_in_session<S: Machine>(
        &self,
        call: SessionCall,
        command: &S::Command,
        deadline: Time,
    ) -> Result<Part<S::Output>, RequestError> {
        self.check_sessions::<S>()?;
        let mut parts = Vec::with_capacity(1);
        let mut packed = PackedBatch::default();
        if self.entry_compression != Compression::None {
            self.pack_one(&mut packed, &mut BytesMut::new(), command)?;
        }
        {
            let mut slot = self.inbox.lock();
            let inbox = slot.get_or_insert_with(Box::default);
            self.check_room(inbox, 1)?;
            let mark = self.mark(inbox);
            let options = ProposeOptions::default();
            if inbox.chunks.back().is_some_and(|c| c.options != options) {
                self.begin_chunk::<S>(inbox, options);
            }
            let body = match packed.payloads().next() {
                Some((codec, payload)) => Body::Packed(codec, payload),
                None => Body::Plain(command),
            };
            if let Err(error) = self.add::<S>(inbox, body, Some(call), options, deadline, &mut parts) {
                self.rollback(inbox, &mark);
                return Err(error);
            }
        }
        self.tell_worker();
        Ok(parts.pop().expect("one command, one part"))
    }

    /// Leaves a call to the table of sessions: to register a session, or to close one.
    ///
    /// # Errors
    /// As [`GroupShared::enqueue_in_session`].
    pub fn enqueue_session_call<S: Machine>(
        &self,
        call: SessionCall,
        deadline: Time,
    ) -> Result<Pending<SessionAnswer>, RequestError> {
        self.check_sessions::<S>()?;
        let completion = Completion::<SessionAnswer>::new();
        let pending = Pending::new(completion.clone(), 0);
        {
            let mut slot = self.inbox.lock();
            let inbox = slot.get_or_insert_with(Box::default);
            self.check_room(inbox, 1)?;
            let sequence = self.sequence.load(Ordering::Relaxed);
            let mut builder = RunBuilder::new();
            builder.push_session_with(call, sequence, 0, |_| ()).expect("a call to the table has no payload");
            let mut deadlines = Deadlines::default();
            deadlines.note(0, deadline);
            inbox.chunks.push_back(Chunk {
                builder,
                completion,
                first_sequence: sequence,
                deadlines,
                options: ProposeOptions::default(),
                closed: true,
            });
            inbox.entries += 1;
            self.sequence.store(sequence + 1, Ordering::Relaxed);
        }
        self.tell_worker();
        Ok(pending)
    }

    /// A machine without sessions would refuse the entry when it is applied: refused here, it costs the group nothing.
    fn check_sessions<S: Machine>(&self) -> Result<(), RequestError> {
        self.check_open()?;
        if S::session_results().is_none() {
            return Err(RequestError::SessionsUnsupported);
        }
        if self.host.has_no_memory() { Err(RequestError::Busy) } else { Ok(()) }
    }
}
