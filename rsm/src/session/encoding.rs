//! The table of sessions as bytes, in a snapshot. The format is in `docs/snapshot-format.md`.
//!
//! Invariant: equal tables have equal bytes, and only a valid table is read back.

use super::{SESSION_WINDOW, SESSIONS_LIMIT, Session, SessionTable};
use crate::machine::MachineError;
use bytes::Bytes;
use longboat_raft::{Index, SessionId};

const TABLE_VERSION: u32 = 1;

impl SessionTable {
    /// The table as bytes: sessions in the order in which they would be evicted.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.sessions.len() * 28 + self.result_bytes as usize);
        out.extend_from_slice(&TABLE_VERSION.to_le_bytes());
        out.extend_from_slice(&(self.sessions.len() as u32).to_le_bytes());
        for id in self.by_use.values() {
            let session = &self.sessions[id];
            for word in [id.0, session.used.0, session.responded_to] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.extend_from_slice(&(session.results.len() as u32).to_le_bytes());
            for (series, result) in &session.results {
                out.extend_from_slice(&series.to_le_bytes());
                out.extend_from_slice(&(result.len() as u32).to_le_bytes());
                out.extend_from_slice(result);
            }
        }
        out
    }

    /// The table that these bytes stand for.
    ///
    /// # Errors
    /// When they stand for none.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, MachineError> {
        let mut input = Input(bytes);
        let version = input.u32()?;
        if version != TABLE_VERSION {
            return Err(wrong(format!("version {version}, this build reads {TABLE_VERSION}")));
        }
        let count = input.u32()?;
        if count > SESSIONS_LIMIT {
            return Err(wrong(format!("{count} sessions, the limit is {SESSIONS_LIMIT}")));
        }
        let mut table = Self::default();
        for _ in 0..count {
            let (id, used) = (SessionId(input.u64()?), Index(input.u64()?));
            let session = Session { used, ..input.session()? };
            if table.by_use.last_key_value().is_some_and(|(last, _)| *last >= used) {
                return Err(wrong("sessions are not in the order of their use"));
            }
            table.result_bytes += session.result_bytes();
            table.by_use.insert(used, id);
            if table.sessions.insert(id, session).is_some() {
                return Err(wrong("a session is there twice"));
            }
        }
        if input.0.is_empty() { Ok(table) } else { Err(wrong("bytes after the last session")) }
    }

    /// A hash of the table, the same for equal tables.
    pub fn hash(&self) -> u64 {
        // FNV-1a, 64 bit: for comparing replicas, not against an adversary.
        self.encode()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

fn wrong(what: impl Into<String>) -> MachineError {
    MachineError::Sessions(what.into())
}

/// The bytes that are left.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], MachineError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or_else(|| wrong("cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, MachineError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64, MachineError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn session(&mut self) -> Result<Session, MachineError> {
        let mut session = Session { responded_to: self.u64()?, ..Session::default() };
        let count = self.u32()? as usize;
        if count > SESSION_WINDOW {
            return Err(wrong(format!("{count} results of a session, the limit is {SESSION_WINDOW}")));
        }
        let mut before = session.responded_to;
        for _ in 0..count {
            let series = self.u64()?;
            if series <= before {
                return Err(wrong("results of a session are not in order"));
            }
            before = series;
            let bytes = self.u32()? as usize;
            session.results.insert(series, Bytes::copy_from_slice(self.take(bytes)?));
        }
        Ok(session)
    }
}
