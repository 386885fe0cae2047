//! Takes frames of raft messages apart.

use super::*;
use bytes::Bytes;
use longboat_raft::{
    Body, ChangeError, Forwards, GroupEpoch, GroupId, Index, LogPos, Message, RefusedReason, ReplicaId, Run, Term,
    TransferAnswer,
};
use smallvec::SmallVec;

/// A message that arrived, with what its carrier added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The group that it belongs to.
    pub group: GroupId,
    /// The epoch that the sender's group is in.
    pub epoch: GroupEpoch,
    /// The message.
    pub message: Message,
}

/// The messages of a frame, in the order of their sending. Ends after the first error.
#[derive(Debug)]
pub struct Messages<F = fn(GroupId) -> bool> {
    frame: Bytes,
    /// Where the next record starts.
    at: usize,
    /// Where the records end.
    records_end: usize,
    /// Where the next run of the tail starts.
    tail_at: usize,
    /// Commits left of a packed record.
    commits_left: u32,
    state: State,
    wanted: F,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unopened,
    Open,
    Over,
}

/// The messages of a frame, sharing its memory.
pub fn messages(frame: Bytes) -> Messages {
    messages_for(frame, |_| true)
}

/// Those messages of a frame that are for wanted groups. The others' runs are skipped unread.
pub fn messages_for<F: FnMut(GroupId) -> bool>(frame: Bytes, wanted: F) -> Messages<F> {
    Messages { frame, at: 0, records_end: 0, tail_at: 0, commits_left: 0, state: State::Unopened, wanted }
}

/// Calls `visit` with the group of each message of a frame, without decoding the messages. A group may come several times.
///
/// # Errors
/// When the bytes are not a frame of messages. `visit` may have been called by then.
pub fn for_each_group(frame: &Bytes, mut visit: impl FnMut(GroupId)) -> Result<(), WireError> {
    let records_end = open(frame)?;
    let mut rest = Fields(&frame[BODY_HEADER_BYTES..records_end]);
    while !rest.0.is_empty() {
        if rest.0[0] == kind::COMMITS {
            let count = commits_header(&mut rest)?;
            for commit in rest.take(count as usize * COMMIT_BYTES)?.chunks_exact(COMMIT_BYTES) {
                visit(GroupId(Fields(commit).u64()?));
            }
        } else {
            let header = Header::read(&mut rest)?;
            rest.take(header.len)?;
            visit(header.group);
        }
    }
    Ok(())
}

/// Checks the body's header; returns where the records end.
fn open(frame: &[u8]) -> Result<usize, WireError> {
    let mut fields = Fields(frame);
    let (kind, version) = (fields.u8()?, fields.u8()?);
    if version != WIRE_VERSION {
        return Err(WireError::Version { found: version });
    }
    if kind != BODY_MESSAGES {
        return Err(WireError::Kind { what: "body", kind });
    }
    fields.u16()?;
    let (records, tail) = (fields.u32()? as usize, fields.u32()? as usize);
    fields.u32()?;
    let records_end = BODY_HEADER_BYTES + records;
    if frame.len() != records_end + tail {
        return Err(WireError::Truncated { needed: records_end + tail, available: frame.len() });
    }
    Ok(records_end)
}

/// Reads the header of packed commits; returns their count.
fn commits_header(fields: &mut Fields<'_>) -> Result<u32, WireError> {
    fields.u32()?;
    let count = fields.u32()?;
    if count == 0 {
        return Err(WireError::Malformed("empty record of commits"));
    }
    let needed = count as usize * COMMIT_BYTES;
    if fields.0.len() < needed {
        return Err(WireError::Truncated { needed, available: fields.0.len() });
    }
    Ok(count)
}

fn forwards(fields: &mut Fields<'_>) -> Result<Forwards, WireError> {
    Ok(Forwards { start: fields.u64()?, commands: fields.u64()?, changes: fields.u64()? })
}

/// A record's header.
struct Header {
    kind: u8,
    flags: u8,
    count: u16,
    len: usize,
    group: GroupId,
    epoch: GroupEpoch,
    from: ReplicaId,
    to: ReplicaId,
    term: Term,
}

impl Header {
    fn read(fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let mut fields = Fields(fields.take(RECORD_HEADER_BYTES)?);
        Ok(Self {
            kind: fields.u8()?,
            flags: fields.u8()?,
            count: fields.u16()?,
            len: fields.u32()? as usize,
            group: GroupId(fields.u64()?),
            epoch: GroupEpoch(fields.u64()?),
            from: ReplicaId(fields.u64()?),
            to: ReplicaId(fields.u64()?),
            term: Term(fields.u64()?),
        })
    }
}

impl<F: FnMut(GroupId) -> bool> Iterator for Messages<F> {
    type Item = Result<Incoming, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Over {
            return None;
        }
        let next = self.advance().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.state = State::Over;
        }
        next
    }
}

impl<F: FnMut(GroupId) -> bool> Messages<F> {
    /// The next wanted message, or `None` at a well-formed end.
    fn advance(&mut self) -> Result<Option<Incoming>, WireError> {
        if self.state == State::Unopened {
            self.records_end = open(&self.frame)?;
            self.at = BODY_HEADER_BYTES;
            self.tail_at = self.records_end;
            self.state = State::Open;
        }
        loop {
            if self.commits_left > 0 {
                self.commits_left -= 1;
                if let Some(incoming) = self.commit()? {
                    return Ok(Some(incoming));
                }
            } else if self.at == self.records_end {
                let whole = self.tail_at == self.frame.len();
                return if whole { Ok(None) } else { Err(WireError::Malformed("bytes after the last run")) };
            } else if self.frame[self.at] == kind::COMMITS {
                self.commits_left = commits_header(&mut Fields(&self.frame[self.at..self.records_end]))?;
                self.at += COMMITS_HEADER_BYTES;
            } else if let Some(incoming) = self.record()? {
                return Ok(Some(incoming));
            }
        }
    }

    fn commit(&mut self) -> Result<Option<Incoming>, WireError> {
        let mut fields = Fields(&self.frame[self.at..self.at + COMMIT_BYTES]);
        self.at += COMMIT_BYTES;
        let group = GroupId(fields.u64()?);
        if !(self.wanted)(group) {
            return Ok(None);
        }
        let epoch = GroupEpoch(fields.u64()?);
        let (from, to) = (ReplicaId(fields.u64()?), ReplicaId(fields.u64()?));
        let term = Term(fields.u64()?);
        let body = Body::Commit { commit: Index(fields.u64()?) };
        Ok(Some(Incoming { group, epoch, message: Message { from, to, term, body } }))
    }

    fn record(&mut self) -> Result<Option<Incoming>, WireError> {
        let mut fields = Fields(&self.frame[self.at..self.records_end]);
        let header = Header::read(&mut fields)?;
        let start = self.at + RECORD_HEADER_BYTES;
        fields.take(header.len)?;
        self.at = start + header.len;
        if !(self.wanted)(header.group) {
            self.skip_tail(&header, start)?;
            return Ok(None);
        }
        let body = self.body(&header, start)?;
        let message = Message { from: header.from, to: header.to, term: header.term, body };
        Ok(Some(Incoming { group: header.group, epoch: header.epoch, message }))
    }

    fn body(&mut self, header: &Header, start: usize) -> Result<Body, WireError> {
        let mut fields = Fields(&self.frame[start..start + header.len]);
        let on = |flag: u8| header.flags & flag != 0;
        let body = match header.kind {
            kind::APPEND => {
                let prev = LogPos::new(Term(fields.u64()?), Index(fields.u64()?));
                let commit = Index(fields.u64()?);
                let runs = self.runs(header, start + APPEND_FIXED_BYTES)?;
                return Ok(Body::Append { prev, commit, runs });
            }
            kind::FORWARD => {
                if header.count != 1 {
                    return Err(WireError::Malformed("a forward carries one run"));
                }
                let mut runs = self.runs(header, start)?;
                return Ok(Body::Forward(runs.pop().expect("runs returned as many as the header counts, one")));
            }
            kind::SNAPSHOT => return Ok(Body::Snapshot(Box::new(meta::decode(fields.0)?))),
            kind::WITNESS_SNAPSHOT => return Ok(Body::WitnessSnapshot(Box::new(meta::decode(fields.0)?))),
            kind::APPEND_ACCEPTED => Body::AppendAccepted { matched: Index(fields.u64()?) },
            kind::APPEND_REJECTED => Body::AppendRejected {
                rejected: Index(fields.u64()?),
                hint: LogPos::new(Term(fields.u64()?), Index(fields.u64()?)),
            },
            kind::HEARTBEAT => Body::Heartbeat { commit: Index(fields.u64()?), read_round: fields.u64()? },
            kind::HEARTBEAT_RESPONSE => {
                Body::HeartbeatResponse { read_round: fields.u64()?, overloaded: on(flag::OVERLOADED) }
            }
            kind::APPEND_PAUSED => Body::AppendPaused { matched: Index(fields.u64()?) },
            kind::SNAPSHOT_NEEDED => Body::SnapshotNeeded { at_least: Index(fields.u64()?) },
            kind::REMOVED => Body::Removed { change: Index(fields.u64()?) },
            kind::REQUEST_VOTE => Body::RequestVote {
                pre: on(flag::PRE),
                transfer: on(flag::TRANSFER),
                last: LogPos::new(Term(fields.u64()?), Index(fields.u64()?)),
            },
            kind::VOTE_RESPONSE => Body::VoteResponse { pre: on(flag::PRE), granted: on(flag::GRANTED) },
            kind::READ_INDEX => Body::ReadIndex { context: fields.u64()? },
            kind::READ_INDEX_RESPONSE => {
                let (context, index) = (fields.u64()?, Index(fields.u64()?));
                Body::ReadIndexResponse { context, index: on(flag::SOME).then_some(index) }
            }
            kind::FORWARD_REFUSED => {
                let (first_sequence, count) = (fields.u64()?, fields.u32()?);
                let numbers = fields.u32()?;
                let error = ChangeError::from_parts((numbers >> 8) as u8, fields.u64()?, fields.u64()?);
                let reason = match (numbers & 0xff, error) {
                    (0, _) => RefusedReason::NotLeader,
                    (1, _) => RefusedReason::Busy,
                    (2, Some(error)) => RefusedReason::ConfigChange(error),
                    _ => return Err(WireError::Malformed("reason of a refused forward")),
                };
                Body::ForwardRefused { first_sequence, count, reason }
            }
            kind::CLOSE_FORWARDS => Body::CloseForwards { term: Term(fields.u64()?), forwards: forwards(&mut fields)? },
            kind::FORWARDS_CLOSED => Body::ForwardsClosed {
                term: Term(fields.u64()?),
                forwards: forwards(&mut fields)?,
                end: Index(fields.u64()?),
            },
            kind::TIMEOUT_NOW => Body::TimeoutNow,
            kind::TRANSFER => Body::Transfer { to: ReplicaId(fields.u64()?), question: fields.u64()? },
            kind::TRANSFER_ANSWER => {
                let (to, question) = (ReplicaId(fields.u64()?), fields.u64()?);
                let number = u8::try_from(fields.u64()?).unwrap_or(0);
                let answer = TransferAnswer::from_parts(number, fields.u64()?, fields.u64()?);
                let answer = answer.ok_or(WireError::Malformed("answer to a request for a transfer"))?;
                Body::TransferAnswer { to, question, answer }
            }
            kind::QUIESCE => Body::Quiesce {
                round: fields.u64()?,
                last: LogPos::new(Term(fields.u64()?), Index(fields.u64()?)),
                commit: Index(fields.u64()?),
            },
            kind::QUIESCE_RESPONSE => Body::QuiesceResponse { round: fields.u64()?, agreed: on(flag::GRANTED) },
            kind => return Err(WireError::Kind { what: "message", kind }),
        };
        fields.end()?;
        Ok(body)
    }

    /// The runs of a record whose table of lengths starts at `table`.
    fn runs(&mut self, header: &Header, table: usize) -> Result<SmallVec<[Run; 1]>, WireError> {
        let lengths = self.run_lengths(header, table)?;
        let end = self.at;
        let mut inline_at = lengths.end;
        let mut runs = SmallVec::with_capacity(usize::from(header.count));
        for entry in lengths.step_by(4) {
            let (len, in_tail) = self.run_length(entry);
            let (at, limit) = if in_tail { (self.tail_at, self.frame.len()) } else { (inline_at, end) };
            if len > limit - at {
                return Err(WireError::Truncated { needed: len, available: limit - at });
            }
            let mut bytes = self.frame.slice(at..at + len);
            runs.push(Run::decode(&mut bytes)?);
            if !bytes.is_empty() {
                return Err(WireError::Malformed("bytes after a run"));
            }
            if in_tail {
                self.tail_at += len;
            } else {
                inline_at += len;
            }
        }
        if inline_at != end {
            return Err(WireError::Malformed("bytes after a record's runs"));
        }
        Ok(runs)
    }

    /// Passes over the runs that an unwanted record has in the tail.
    fn skip_tail(&mut self, header: &Header, start: usize) -> Result<(), WireError> {
        let table = match header.kind {
            kind::APPEND => start + APPEND_FIXED_BYTES,
            kind::FORWARD => start,
            _ => return Ok(()),
        };
        for entry in self.run_lengths(header, table)?.step_by(4) {
            let (len, in_tail) = self.run_length(entry);
            if !in_tail {
                continue;
            }
            if len > self.frame.len() - self.tail_at {
                return Err(WireError::Truncated { needed: len, available: self.frame.len() - self.tail_at });
            }
            self.tail_at += len;
        }
        Ok(())
    }

    /// Where a record's table of run lengths lies; the record ends at `self.at`.
    fn run_lengths(&self, header: &Header, table: usize) -> Result<std::ops::Range<usize>, WireError> {
        let count = usize::from(header.count);
        if count > APPEND_RUNS_MAX {
            return Err(WireError::Malformed("count of runs above its bound"));
        }
        let end = table + count * 4;
        if end > self.at {
            return Err(WireError::Truncated { needed: end, available: self.at });
        }
        Ok(table..end)
    }

    fn run_length(&self, entry: usize) -> (usize, bool) {
        let field = u32::from_le_bytes(self.frame[entry..entry + 4].try_into().expect("four bytes"));
        ((field & !RUN_IN_TAIL) as usize, field & RUN_IN_TAIL != 0)
    }
}
