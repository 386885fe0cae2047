//! The openings of this host's own store, and whether others have seen more of it than it has.
//!
//! A directory that is put back from an earlier copy has the right store id, and has forgotten what its replicas voted for and
//! acknowledged since. Whoever met the host meanwhile knows better. So:
//!
//! - Each opening of the directory has a number greater than all before it, the *incarnation* of the host, and is listed in the file
//!   `openings` with the journal's *place* at that moment, durably, before anybody hears of it.
//! - A host's beats carry the place that is durable. Other hosts remember the incarnation and the greatest place that they heard
//!   of, and ask when it comes in another incarnation: did your store have that opening, and was all of it there when the next one
//!   began? Until the host says that it follows from what they know, they believe nothing that it says ([`crate::liveness`]).
//! - A host that can't say so marks its directory, for good, and serves no more: its replicas are replaced by new ones.
//!
//! Why that finds every copy that matters: what a host says for a replica rests on a record in its journal, and a place counts
//! the records of all groups. In one line of openings places never fall, because a record is lost only while nobody was told that
//! it is durable. A copy that was taken before a place was reached either lacks the opening that reached it, or has it with a
//! later one that began before that place. What a peer misses is at most what became durable since the last beat that it got; if
//! it starts anew itself, what was added to that opening in the last ten seconds before. Openings it never misses.
//!
//! Invariants: incarnations grow, whatever the machine's clock says; a directory that was marked is never served from again.
//!
//! Must not know: who asks, connections, raft.

use crate::stores::PeerFile;
use longboat_logdb::OpenError;
use longboat_raft::{StoreId, crc, plant, sometimes};
use parking_lot::Mutex;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

const FILE: &str = "openings";
const MAGIC: [u8; 8] = *b"LBOPENS1";
/// Openings that are remembered: whoever knows only of an earlier one is answered by what the oldest of these began with.
const OPENINGS_MAX: usize = 1024;
const FRONT_BYTES: usize = 16;
const OPENING_BYTES: usize = 16;

/// One opening of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opening {
    incarnation: u64,
    /// The last record that the journal had.
    began_at: u64,
}

/// What a host knows of another one's store, or of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The store.
    pub store: StoreId,
    /// The opening.
    pub incarnation: u64,
    /// The journal's records through this one were durable in it.
    pub place: u64,
}

/// The openings of this host's store.
pub struct Openings {
    store: StoreId,
    list: Vec<Opening>,
    /// Durable in this opening.
    place: AtomicU64,
    file: PeerFile,
    /// Held while the directory is marked.
    marking: Mutex<()>,
}

impl Openings {
    /// Begins an opening of a store whose journal is at `place`. `incarnation` is taken if it is greater than all before.
    ///
    /// # Errors
    /// When the directory was found to be an older copy of itself, when the file can't be read or written, or is damaged.
    pub fn begin(file: PeerFile, store: StoreId, incarnation: u64, place: u64) -> Result<Self, OpenError> {
        let mut list = Vec::new();
        if let Some(bytes) = file.read_bytes(FILE, (FRONT_BYTES + OPENINGS_MAX * OPENING_BYTES) as u64)? {
            let damaged = || OpenError::Corrupt(format!("{} is damaged", file.path(FILE).display()));
            let (marked, known) = decode(&bytes).ok_or_else(damaged)?;
            if marked {
                return Err(OpenError::RolledBack(file.path("").clone()));
            }
            list = known;
        }
        // A clock that was set back must not make a new life look like an old one.
        let after = list.last().map_or(1, |last: &Opening| last.incarnation + 1);
        list.push(Opening { incarnation: incarnation.max(after), began_at: place });
        list.drain(..list.len().saturating_sub(OPENINGS_MAX));
        file.write(FILE, &encode(false, &list))?;
        Ok(Self { store, list, place: AtomicU64::new(place), file, marking: Mutex::new(()) })
    }

    /// This opening.
    pub fn incarnation(&self) -> u64 {
        self.list.last().expect("it has begun").incarnation
    }

    /// The journal's records through this one are durable.
    pub fn place(&self) -> u64 {
        self.place.load(Ordering::Acquire)
    }

    /// More of the journal is durable.
    pub(crate) fn reached(&self, place: u64) {
        self.place.store(place, Ordering::Release);
    }

    /// Whether this store, as it is, has all that it had when somebody heard this of it. Nothing if that was another store: who
    /// asks that will hear of this one yet.
    pub fn follows(&self, heard: Standing) -> Option<bool> {
        (heard.store == self.store || plant::is("asked-for-another-store")).then(|| self.has(heard))
    }

    fn has(&self, heard: Standing) -> bool {
        if plant::is("rolled-back-and-unaware") {
            return true;
        }
        let at = self.list.partition_point(|o| o.incarnation < heard.incarnation);
        match self.list.get(at) {
            // That opening, and what it had when it ended: what it has now, if it has not.
            Some(o) if o.incarnation == heard.incarnation => {
                heard.place <= self.list.get(at + 1).map_or_else(|| self.place(), |next| next.began_at)
            }
            // Before all that are remembered.
            Some(oldest) if at == 0 => heard.place <= oldest.began_at,
            // There never was one.
            _ => false,
        }
    }

    /// Marks the directory: it is never opened again.
    ///
    /// # Errors
    /// When the file can't be written. Whoever knows better tells it again next time.
    pub(crate) fn mark(&self) -> io::Result<()> {
        sometimes!("host-rolled-back");
        let _alone = self.marking.lock();
        self.file.write(FILE, &encode(true, &self.list))
    }
}

fn encode(marked: bool, list: &[Opening]) -> Vec<u8> {
    let mut body = u32::from(marked).to_le_bytes().to_vec();
    for opening in list {
        body.extend(opening.incarnation.to_le_bytes());
        body.extend(opening.began_at.to_le_bytes());
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend(crc::crc32c(0, &body).to_le_bytes());
    bytes.append(&mut body);
    bytes
}

fn decode(bytes: &[u8]) -> Option<(bool, Vec<Opening>)> {
    let (sum, body) = bytes.strip_prefix(&MAGIC)?.split_first_chunk::<4>()?;
    if crc::crc32c(0, body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (marked, items) = body.split_first_chunk::<4>()?;
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let items = items.chunks_exact(OPENING_BYTES);
    let whole = items.remainder().is_empty();
    let list = items.map(|i| Opening { incarnation: word(&i[..8]), began_at: word(&i[8..]) }).collect();
    whole.then_some((u32::from_le_bytes(*marked) != 0, list))
}

impl std::fmt::Debug for Openings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Openings").field("newest", &self.list.last()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longboat_io::RealDisk;
    use std::path::Path;
    use std::sync::Arc;

    const STORE: StoreId = StoreId(3);

    fn begin(dir: &Path, incarnation: u64, place: u64) -> Result<Openings, OpenError> {
        Openings::begin(PeerFile::new(Arc::new(RealDisk), dir), STORE, incarnation, place)
    }

    fn heard(incarnation: u64, place: u64) -> Standing {
        Standing { store: STORE, incarnation, place }
    }

    #[test]
    fn incarnations_grow_whatever_the_clock_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let incarnation = |clock| begin(dir.path(), clock, 0).expect("opens").incarnation();
        assert_eq!([500, 500, 20, 900].map(incarnation), [500, 501, 502, 900]);
    }

    #[test]
    fn a_store_follows_from_what_it_was_and_from_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        begin(dir.path(), 10, 0).expect("opens");
        begin(dir.path(), 20, 100).expect("opens");
        let copy = std::fs::read(dir.path().join(FILE)).expect("read");
        let line = begin(dir.path(), 30, 200).expect("opens");
        line.reached(250);
        // What was heard of it in its own line: all of it, each opening through where the next one began.
        for (known, follows) in
            [(heard(10, 100), true), (heard(10, 101), false), (heard(20, 200), true), (heard(20, 201), false)]
        {
            assert_eq!(line.follows(known), Some(follows), "{known:?}");
        }
        assert!(line.has(heard(30, 250)) && !line.has(heard(30, 251)));
        assert!(line.has(heard(5, 0)) && !line.has(heard(5, 1)) && !line.has(heard(25, 0)));
        assert_eq!(line.follows(Standing { store: StoreId(4), ..heard(30, 900) }), None, "that was another one");
        // A copy of the time before the third opening goes another way, however far it comes.
        std::fs::write(dir.path().join(FILE), copy).expect("written");
        let back = begin(dir.path(), 40, 180).expect("opens");
        back.reached(900);
        assert!(!back.has(heard(30, 200)), "an opening that it never had");
        assert!(!back.has(heard(20, 190)), "taken while the second one went on, and that came farther");
        assert!(back.has(heard(20, 180)), "nobody knows more than the copy has");
    }

    #[test]
    fn the_oldest_openings_are_forgotten_and_a_marked_directory_is_not_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let many: Vec<Opening> = (1..=OPENINGS_MAX as u64).map(|n| Opening { incarnation: n, began_at: n }).collect();
        std::fs::write(dir.path().join(FILE), encode(false, &many)).expect("written");
        let openings = begin(dir.path(), 5000, 5000).expect("opens");
        assert_eq!((openings.list.len(), openings.list[0].incarnation), (OPENINGS_MAX, 2));
        openings.mark().expect("marked");
        assert!(matches!(begin(dir.path(), 6000, 6000), Err(OpenError::RolledBack(_))));
    }

    #[test]
    fn damage_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        begin(dir.path(), 10, 0).expect("opens");
        let bytes = std::fs::read(dir.path().join(FILE)).expect("read");
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            std::fs::write(dir.path().join(FILE), &bytes).expect("written");
            assert!(matches!(begin(dir.path(), 20, 0), Err(OpenError::Corrupt(_))), "byte {at}");
        }
    }
}
