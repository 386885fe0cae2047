//! The state machine.

use bytes::{BufMut, Bytes, BytesMut};
use longboat::{Codec, CodecError, Commands, DiskMachine, Index, MachineError, Payload, SavePart, StopSignal};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Under which the last command's index is kept. Keys of users begin with another byte.
const APPLIED_KEY: &[u8] = b"\0applied";
/// The first byte of users' keys.
const USER: u8 = 1;
/// Bytes that one part of a snapshot has, about.
const PART_BYTES: usize = 256 << 10;
/// Bytes of a key or value at most.
const ITEM_BYTES_MAX: usize = 1 << 20;
const POINTER: &str = "current";

/// What is replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets a key.
    Set(Bytes, Bytes),
    /// Adds one to the number of a key; one that is not there counts as 0.
    Add(Bytes),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The key was set.
    Set,
    /// The number after the addition.
    Number(u64),
    /// The value is no number; nothing changed.
    NoNumber,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The value of a key.
    Get(Bytes),
    /// All keys and values.
    All,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The value, if the key is there.
    Value(Option<Bytes>),
    /// All keys and values, in order.
    All(Vec<(Bytes, Bytes)>),
}

impl Codec for Change {
    fn encode(&self, out: &mut BytesMut) {
        let (kind, key, value) = match self {
            Self::Set(key, value) => (0, key, &value[..]),
            Self::Add(key) => (1, key, &[][..]),
        };
        out.put_u8(kind);
        out.put_u32_le(key.len() as u32);
        out.put_slice(key);
        out.put_slice(value);
    }

    fn decode(payload: Payload<'_>) -> Result<Self, CodecError> {
        let wrong = || CodecError(format!("{} bytes are no change", payload.len()));
        let (head, rest) = payload.split_at_checked(5).ok_or_else(wrong)?;
        let key_len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (key, value) = rest.split_at_checked(key_len).ok_or_else(wrong)?;
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        match head[0] {
            0 => Ok(Self::Set(key, value)),
            1 => Ok(Self::Add(key)),
            _ => Err(wrong()),
        }
    }
}

/// The state of one replica, in a directory of its own.
#[derive(Debug)]
pub struct DiskKv {
    dir: PathBuf,
    db: Option<Arc<DB>>,
    /// The last command that was applied.
    applied: Index,
}

/// A checkpoint that is being written out.
pub struct View {
    db: Option<DB>,
    dir: PathBuf,
    /// The key at which the next part begins.
    next: Option<Vec<u8>>,
}

impl Drop for View {
    fn drop(&mut self) {
        self.db = None;
        // What can't be removed now goes when the state machine is opened again.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_keep_log_file_num(2);
    options
}

fn failed(error: rocksdb::Error) -> MachineError {
    MachineError::user(error)
}

fn user_key(key: &[u8]) -> Vec<u8> {
    [&[USER], key].concat()
}

fn applied_of(db: &DB) -> Result<Index, MachineError> {
    let Some(bytes) = db.get(APPLIED_KEY).map_err(failed)? else { return Ok(Index::ZERO) };
    let bytes = bytes[..].try_into().map_err(|_| MachineError::user("the applied index is damaged"))?;
    Ok(Index(u64::from_le_bytes(bytes)))
}

impl DiskKv {
    /// The state in this directory, which is made when it is not there. Nothing is opened yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), db: None, applied: Index::ZERO }
    }

    fn db(&self) -> &Arc<DB> {
        self.db.as_ref().expect("opened before anything else is asked")
    }

    /// The name of the subdirectory that counts, if there is one.
    fn current(&self) -> io::Result<Option<String>> {
        match fs::read_to_string(self.dir.join(POINTER)) {
            Ok(name) => Ok(Some(name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// From here on this subdirectory counts, also after a power loss.
    fn point_to(&self, name: &str) -> io::Result<()> {
        let next = self.dir.join("current.next");
        let mut file = File::create(&next)?;
        file.write_all(name.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, self.dir.join(POINTER))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes what does not count.
    fn clean(&self, current: &str) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.is_dir() && path.file_name().is_none_or(|name| name != current) {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    /// A name that no subdirectory has.
    fn fresh(&self, what: &str) -> PathBuf {
        (0..).map(|n| self.dir.join(format!("{what}-{n}"))).find(|path| !path.exists()).expect("one of them is free")
    }
}

/// The value of a key, with the changes of the batch that is being made.
struct Pending<'a> {
    db: &'a DB,
    batch: WriteBatch,
    changed: std::collections::BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Pending<'_> {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MachineError> {
        match self.changed.get(key) {
            Some(value) => Ok(Some(value.clone())),
            None => self.db.get(key).map_err(failed),
        }
    }

    fn set(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.batch.put(&key, &value);
        self.changed.insert(key, value);
    }

    fn apply(&mut self, change: Change) -> Result<Done, MachineError> {
        match change {
            Change::Set(key, value) => {
                self.set(user_key(&key), value.to_vec());
                Ok(Done::Set)
            }
            Change::Add(key) => {
                let key = user_key(&key);
                let text = self.value(&key)?.unwrap_or_else(|| b"0".to_vec());
                let number: Option<u64> = std::str::from_utf8(&text).ok().and_then(|t| t.parse().ok());
                let Some(sum) = number.and_then(|n| n.checked_add(1)) else { return Ok(Done::NoNumber) };
                self.set(key, sum.to_string().into_bytes());
                Ok(Done::Number(sum))
            }
        }
    }
}

impl DiskMachine for DiskKv {
    type Command = Change;
    type Output = Done;
    type Query = Question;
    type Answer = Shown;
    type Reader = Arc<DB>;
    type View = View;

    fn open(&mut self, _stop: &StopSignal) -> Result<Index, MachineError> {
        fs::create_dir_all(&self.dir)?;
        let name = match self.current()? {
            Some(name) => name,
            None => {
                self.point_to("state-0")?;
                "state-0".to_owned()
            }
        };
        self.clean(&name)?;
        let db = DB::open(&options(), self.dir.join(name)).map_err(failed)?;
        self.applied = applied_of(&db)?;
        self.db = Some(Arc::new(db));
        Ok(self.applied)
    }

    fn reader(&self) -> Arc<DB> {
        Arc::clone(self.db())
    }

    fn lookup(db: &Arc<DB>, question: Question) -> Result<Shown, MachineError> {
        match question {
            Question::Get(key) => Ok(Shown::Value(db.get(user_key(&key)).map_err(failed)?.map(Bytes::from))),
            Question::All => {
                let mut all = Vec::new();
                for item in db.iterator(IteratorMode::From(&[USER], Direction::Forward)) {
                    let (key, value) = item.map_err(failed)?;
                    all.push((Bytes::copy_from_slice(&key[1..]), Bytes::from(value.into_vec())));
                }
                Ok(Shown::All(all))
            }
        }
    }

    fn apply_batch(
        &mut self,
        commands: &mut Commands<'_, Change>,
        outputs: &mut Vec<Done>,
    ) -> Result<(), MachineError> {
        let db = Arc::clone(self.db());
        let mut pending = Pending { db: &db, batch: WriteBatch::default(), changed: Default::default() };
        for (index, change) in commands {
            outputs.push(pending.apply(change)?);
            self.applied = index;
        }
        // Both or neither: the storage never has a command's effect without its index, or the other way round.
        pending.batch.put(APPLIED_KEY, self.applied.0.to_le_bytes());
        db.write(pending.batch).map_err(failed)
    }

    fn sync(&mut self) -> Result<(), MachineError> {
        self.db().flush_wal(true).map_err(failed)
    }

    fn prepare(&mut self) -> Result<View, MachineError> {
        let dir = self.fresh("view");
        Checkpoint::new(self.db()).and_then(|c| c.create_checkpoint(&dir)).map_err(failed)?;
        let mut view = View { db: None, dir, next: Some(vec![USER]) };
        view.db = Some(DB::open_for_read_only(&Options::default(), &view.dir, false).map_err(failed)?);
        Ok(view)
    }

    /// The applied index, then each key and value after its length.
    fn save_part(view: &mut View, out: &mut dyn Write) -> Result<SavePart, MachineError> {
        let db = view.db.as_ref().expect("open as long as the view lives");
        let from = view.next.take().unwrap_or_default();
        if from == [USER] {
            out.write_all(&applied_of(db)?.0.to_le_bytes())?;
        }
        let mut bytes = 0;
        for item in db.iterator(IteratorMode::From(&from, Direction::Forward)) {
            let (key, value) = item.map_err(failed)?;
            if bytes >= PART_BYTES {
                view.next = Some(key.into_vec());
                return Ok(SavePart::More);
            }
            for part in [&key, &value] {
                out.write_all(&(part.len() as u32).to_le_bytes())?;
                out.write_all(part)?;
                bytes += 4 + part.len();
            }
        }
        Ok(SavePart::Done)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        let mut word = [0; 8];
        input.read_exact(&mut word)?;
        let applied = Index(u64::from_le_bytes(word));
        let dir = self.fresh("state");
        let db = DB::open(&options(), &dir).map_err(failed)?;
        let mut batch = WriteBatch::default();
        let mut unlogged = WriteOptions::default();
        // Made durable by a flush at the end, before anything points to it.
        unlogged.disable_wal(true);
        while let Some(key) = item(input)? {
            let value = item(input)?.ok_or_else(|| MachineError::user("a key without a value"))?;
            batch.put(key, value);
            if batch.size_in_bytes() >= PART_BYTES {
                db.write_opt(std::mem::take(&mut batch), &unlogged).map_err(failed)?;
            }
        }
        batch.put(APPLIED_KEY, applied.0.to_le_bytes());
        db.write_opt(batch, &unlogged).map_err(failed)?;
        db.flush().map_err(failed)?;
        let name = name_of(&dir)?;
        self.point_to(&name)?;
        // Readers of the old state may go on for a moment: its files go when the last one lets go, or at the next start.
        self.db = Some(Arc::new(db));
        self.applied = applied;
        Ok(())
    }
}

fn name_of(dir: &Path) -> Result<String, MachineError> {
    let name = dir.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| MachineError::user("a directory without a name"))
}

/// Bytes after their length; nothing at the end.
fn item(input: &mut dyn Read) -> Result<Option<Vec<u8>>, MachineError> {
    let mut len = [0; 4];
    match input.read(&mut len[..1])? {
        0 => return Ok(None),
        _ => input.read_exact(&mut len[1..])?,
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > ITEM_BYTES_MAX {
        return Err(MachineError::user(format!("a key or value of {len} bytes")));
    }
    let mut bytes = vec![0; len];
    input.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}
