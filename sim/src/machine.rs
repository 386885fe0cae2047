//! The state machine of a simulation: a list to which unique serial numbers are appended.
//!
//! An append returns its position and a read the list's length, which makes linearizability checkable as it happens.
//! [`Watched`] shows every applied run to the [`Oracle`].

use crate::board::Board;
use crate::hash::Hash64;
use crate::oracle::Oracle;
use bytes::{BufMut, BytesMut};
use longboat_raft::{GroupId, HostId, Index, Run};
use longboat_rsm::{
    AnyCompletion, AnyReads, Codec, CodecError, Concurrent, DynMachine, Lookups, Machine, MachineError, MachineKind,
    OutputCodec, Payload, SaveView, StateMachine,
};
use std::io;
use std::sync::Arc;

/// Bytes of a snapshot that are written or read at a time.
const PART: usize = 4096;

/// Appends a serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Add {
    /// Never used twice in a simulation.
    pub serial: u64,
    /// Bytes of payload that mean nothing.
    pub padding: usize,
}

impl Codec for Add {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.serial);
        out.put_bytes(self.serial as u8, self.padding);
    }

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        let serial = serial_of(&payload).ok_or_else(|| CodecError(format!("{} bytes", payload.len())))?;
        Ok(Self { serial, padding: payload.len() - 8 })
    }
}

/// The serial number in an encoded [`Add`].
pub fn serial_of(payload: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*payload.first_chunk::<8>()?))
}

/// What a read sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The length of the list.
    pub count: u64,
}

/// What a list comes to besides its serial numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct List {
    chain: u64,
    /// Bytes that a snapshot carries besides the list, so that it travels in several chunks.
    ballast: usize,
}

impl List {
    pub(crate) fn new(ballast: usize) -> Self {
        Self { ballast, ..Self::default() }
    }

    pub(crate) fn add(&mut self, serial: u64) {
        let mut hash = Hash64::new();
        self.chain = hash.word(self.chain).word(serial).value();
    }

    /// The hash of a list of this length.
    pub(crate) fn hash(&self, len: usize) -> u64 {
        let mut hash = Hash64::new();
        hash.word(self.chain).word(len as u64).value()
    }

    pub(crate) fn save(&self, serials: &[u64], out: &mut dyn io::Write) -> Result<(), MachineError> {
        out.write_all(&(serials.len() as u64).to_le_bytes())?;
        for serials in serials.chunks(PART / 8) {
            let words: Vec<u8> = serials.iter().flat_map(|serial| serial.to_le_bytes()).collect();
            out.write_all(&words)?;
        }
        let part = [self.chain as u8; PART];
        for at in (0..self.ballast).step_by(PART) {
            out.write_all(&part[..PART.min(self.ballast - at)])?;
        }
        Ok(())
    }

    /// Becomes what was saved; returns its serial numbers.
    pub(crate) fn recover(&mut self, input: &mut dyn io::Read) -> Result<Vec<u64>, MachineError> {
        let (mut word, mut part) = ([0; 8], [0; PART]);
        input.read_exact(&mut word)?;
        *self = Self::new(self.ballast);
        let (mut serials, mut left) = (Vec::new(), u64::from_le_bytes(word) as usize);
        while left > 0 {
            let words = &mut part[..8 * left.min(PART / 8)];
            input.read_exact(words)?;
            left -= words.len() / 8;
            serials.extend(words.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)));
        }
        serials.iter().for_each(|serial| self.add(*serial));
        let (mut ballast, fill) = (0, [self.chain as u8; PART]);
        loop {
            let count = input.read(&mut part)?;
            ballast += count;
            let is_right = part[..count] == fill[..count];
            if count == 0 && ballast == self.ballast {
                return Ok(serials);
            }
            if count == 0 || !is_right {
                return Err(MachineError::user("the snapshot's ballast is not what was saved"));
            }
        }
    }
}

/// The list.
#[derive(Debug, Default)]
pub struct Ledger {
    serials: Vec<u64>,
    list: List,
}

impl Ledger {
    /// An empty list whose snapshots carry `ballast` bytes besides it.
    pub fn new(ballast: usize) -> Self {
        Self { serials: Vec::new(), list: List::new(ballast) }
    }
}

impl StateMachine for Ledger {
    type Command = Add;
    type Output = u64;
    type Query = ();
    type Answer = Seen;

    fn apply(&mut self, _index: Index, command: Add) -> Result<u64, MachineError> {
        self.serials.push(command.serial);
        self.list.add(command.serial);
        Ok(self.serials.len() as u64)
    }

    fn lookup(&self, _query: ()) -> Result<Seen, MachineError> {
        Ok(Seen { count: self.serials.len() as u64 })
    }

    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        self.list.save(&self.serials, out)
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        self.serials = self.list.recover(input)?;
        Ok(())
    }

    fn session_results() -> Option<OutputCodec<u64>> {
        Some(OutputCodec::new())
    }

    fn state_hash(&self) -> Option<u64> {
        Some(self.list.hash(self.serials.len()))
    }
}

/// A state machine in memory under observation.
pub struct Watched {
    inner: Box<dyn DynMachine>,
    oracle: Arc<Oracle>,
    group: GroupId,
    host: HostId,
}

impl Watched {
    /// A [`Ledger`] for `group` on `host`, or with lookups off views a [`Board`].
    pub fn new(oracle: Arc<Oracle>, group: GroupId, host: HostId, ballast: usize, has_views: bool) -> Self {
        let inner =
            if has_views { Concurrent(Board::new(ballast)).into_dyn() } else { Ledger::new(ballast).into_dyn() };
        Self { inner, oracle, group, host }
    }
}

impl DynMachine for Watched {
    fn kind(&self) -> MachineKind {
        self.inner.kind()
    }

    fn apply_run(&mut self, run: &Run, results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        self.oracle.applying(self.host, self.group, run);
        self.inner.apply_run(run, results)?;
        self.oracle.applied(self.host, self.group, run.last(), self.inner.state_hash());
        Ok(())
    }

    fn lookup(&self, reads: Box<dyn AnyReads>) {
        self.inner.lookup(reads);
    }

    fn lookups(&self) -> Option<Arc<dyn Lookups>> {
        self.inner.lookups()
    }

    fn prepare(&mut self) -> Result<Option<Box<dyn SaveView>>, MachineError> {
        self.inner.prepare()
    }

    fn sessions(&self) -> Vec<u8> {
        self.inner.sessions()
    }

    fn restore_sessions(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        self.inner.restore_sessions(bytes)
    }

    fn save(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        self.inner.save(out)
    }

    fn recover(&mut self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        self.inner.recover(input)?;
        self.oracle.recovered(self.host, self.group, self.inner.state_hash());
        Ok(())
    }

    fn state_hash(&self) -> Option<u64> {
        self.inner.state_hash()
    }
}
