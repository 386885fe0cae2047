//! Opening a journal: which segments are needed, what their records say, and where it goes on.
//!
//! The rules that tell a torn tail from damage:
//! - a record is written only after the one before it is durable, so any record, footer or later segment vouches for
//!   all records before it: if one of those can't be read, durable data was damaged. Where its header and directory are right, the
//!   groups whose frames are damaged are quarantined ([`crate::rot`]); else the host is refused;
//! - a bad record that nothing vouches for is the one write that was under way at the crash: it is dropped;
//! - the last valid record is written again with the same bytes and synced before anything else happens, because after
//!   a kill or a failed sync the page cache may show what the disk does not hold.

use crate::archive::{self, Archive};
use crate::codec::Rows;
use crate::effect::{Effect, Tallies};
use crate::fold::Folded;
use crate::format::{
    BLOCK, DIRECTORY_ITEM_BYTES, DirectoryItem, FOOTER_HEADER_BYTES, FOOTER_ITEM_BYTES, FooterHeader, HeaderFault,
    RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader, body_seed, crc, padded,
};
use crate::frame::{self, Frame, FrameFault};
use crate::identity::{LOCK, LOST_AND_FOUND};
use crate::index::{Change, LogIndex};
use crate::kv::{ArchivedRow, Settled};
use crate::rot::{self, Rot};
use crate::segment::{Sealed, Segment, SegmentFile, Window};
use crate::shared::Files;
use crate::{GroupState, OpenError, Update};
use longboat_io::SharedDisk;
use longboat_raft::{GroupId, HostId, StoreId, plant, sometimes};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that are read from a segment at once.
const READ_BYTES: usize = 1 << 20;

/// Whose journal it must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) store: StoreId,
    pub(crate) host: HostId,
}

/// A segment file whose header block is valid.
#[derive(Debug)]
struct Candidate {
    header: SegmentHeader,
    file: SegmentFile,
}

/// The files of a journal, as found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    candidates: Vec<Candidate>,
    blank: Vec<SegmentFile>,
    next_number: u64,
}

/// A journal, replayed.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) index: LogIndex,
    pub(crate) groups: Vec<Folded>,
    pub(crate) files: Files,
    /// The header of the segment that is being written.
    pub(crate) header: SegmentHeader,
    /// Where the next record goes in it.
    pub(crate) position: u64,
    pub(crate) last_seq: u64,
    /// The largest use number that any file has.
    pub(crate) use_number_max: u64,
    /// What must be written again before anything else.
    pub(crate) last_written: Vec<LastWritten>,
    /// What the records of the segment that is being written come to.
    pub(crate) tallies: Tallies,
    /// The block at `position` holds the header of a torn footer.
    pub(crate) torn_footer: bool,
    /// Free files that were given a use after the one that is being written, before the crash.
    pub(crate) prepared: Vec<PathBuf>,
    /// Files that the journal has no use for.
    pub(crate) surplus: Vec<PathBuf>,
    /// What must be durable before the store is anybody's: which groups are quarantined since this opening.
    pub(crate) marks: Vec<Update>,
}

/// Blocks that may be in the page cache only.
#[derive(Debug)]
pub(crate) struct LastWritten {
    pub(crate) file: Arc<SegmentFile>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The names in a journal's directory and their numbers, but for the lock and what is the file system's own.
///
/// # Errors
/// When any name is not a segment's: the directory is somebody else's, too.
fn names(disk: &SharedDisk, dir: &Path) -> Result<Vec<(PathBuf, u64)>, OpenError> {
    let ours = |name: &PathBuf| ![LOST_AND_FOUND, LOCK].iter().any(|other| Path::new(other) == name);
    let numbered = |name: PathBuf| match SegmentFile::number(&name) {
        Some(number) => Ok((dir.join(name), number)),
        None => Err(OpenError::Format(format!("{} is not a journal segment", dir.join(name).display()))),
    };
    disk.list(dir)?.into_iter().filter(ours).map(numbered).collect()
}

/// The header of a file; `None` when it was given to no use, or that can't be read any more.
fn header(file: &SegmentFile, owner: Owner) -> Result<Option<SegmentHeader>, OpenError> {
    let mut front = [0; SEGMENT_HEADER_BYTES];
    if file.capacity >= BLOCK {
        file.read_into(&mut front, 0)?;
    }
    let path = file.path.display();
    match SegmentHeader::decode(&front) {
        Ok(header) if (header.store, header.host) == (owner.store, owner.host) => Ok(Some(header)),
        Ok(header) => {
            let why = format!("{path} belongs to store {} of host {}", header.store, header.host);
            Err(OpenError::Format(why))
        }
        Err(HeaderFault::Version(v)) => Err(OpenError::Format(format!("{path} has format version {v}"))),
        Err(HeaderFault::Invalid) => Ok(None),
    }
}

/// Removes what an interrupted first opening left; nothing at all if anything there is not its own.
pub(crate) fn remove_leftovers(disk: &SharedDisk, dir: &Path, owner: Owner) -> Result<(), OpenError> {
    let names = names(disk, dir)?;
    for (path, _) in &names {
        header(&SegmentFile::open(disk, path)?, owner)?;
    }
    for (path, _) in &names {
        disk.remove_file(path)?;
    }
    Ok(())
}

/// Looks at every file's header block.
pub(crate) fn find(disk: &SharedDisk, dir: &Path, owner: Owner) -> Result<Found, OpenError> {
    let mut found = Found { next_number: 1, ..Found::default() };
    for (path, number) in names(disk, dir)? {
        found.next_number = found.next_number.max(number + 1);
        let file = SegmentFile::open(disk, &path)?;
        let header = header(&file, owner)?;
        // There may be more files than a process may have open.
        file.close();
        match header {
            Some(header) => found.candidates.push(Candidate { header, file }),
            None => found.blank.push(file),
        }
    }
    found.candidates.sort_by_key(|c| c.header.use_number);
    Ok(found)
}

/// Whether any file in `dir` was ever given to a segment with a record in it, whoever owns it.
pub(crate) fn holds_records(disk: &SharedDisk, dir: &Path) -> Result<bool, OpenError> {
    for (path, _) in names(disk, dir)? {
        let file = SegmentFile::open(disk, &path)?;
        let mut front = vec![0; BLOCK as usize + RECORD_HEADER_BYTES];
        if file.capacity < 2 * BLOCK {
            continue;
        }
        file.read_into(&mut front, 0)?;
        let Ok(header) = SegmentHeader::decode(&front) else { continue };
        if RecordHeader::decode(&front[BLOCK as usize..], header.seed()).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes out the files of archived segments: each must still have the use that its row says.
pub(crate) fn take_archived(found: &mut Found, rows: Vec<(u64, ArchivedRow)>) -> Result<Archive, OpenError> {
    let take = |(use_number, row): (u64, ArchivedRow)| {
        let at = found.candidates.partition_point(|c| c.header.use_number < use_number);
        let is_it = |c: &Candidate| (c.header.use_number, c.header.use_id) == (use_number, row.use_id);
        if !found.candidates.get(at).is_some_and(is_it) {
            return Err(OpenError::Corrupt(format!("archived segment {use_number} is missing or damaged")));
        }
        let Candidate { header, file } = found.candidates.remove(at);
        let segment = archive::open(Segment::new(Arc::new(file), &header), &row)?;
        Ok((segment, row.live_bytes))
    };
    rows.into_iter().map(take).collect()
}

/// Replays the records after `settled` over the groups of the key-value store.
pub(crate) fn replay(
    found: Found,
    rows: BTreeMap<GroupId, Folded>,
    settled: Settled,
    segment_bytes: u64,
) -> Result<Replayed, OpenError> {
    let mut replay = Replay::new(rows, settled.seq);
    let mut unused: BTreeMap<u64, Candidate> = found.candidates.into_iter().map(|c| (c.header.use_number, c)).collect();
    let use_number_max = unused.last_key_value().map_or(0, |(n, _)| *n);
    let is_first = |c: &&Candidate| (c.header.use_id, c.header.first_seq) == (settled.next_use_id, settled.seq + 1);
    let first = unused.values().find(is_first).map(|c| c.header.use_number);
    let Some(first) = first else {
        return Err(OpenError::Corrupt(format!(
            "no segment starts at record {}, the first one needed",
            settled.seq + 1
        )));
    };
    let mut candidate = unused.remove(&first).expect("just found");
    candidate.file.will_read();
    let mut bytes = 0;
    let header = loop {
        let Candidate { header, file } = candidate;
        if let Some((_, next)) = unused.range(header.use_number..).next() {
            // The journal goes on there, most likely: the disk brings it while this one is looked through.
            next.file.will_read();
        }
        bytes += file.capacity;
        let Some(next_use_id) = replay.segment(header, Arc::new(file))? else { break header };
        let next = unused.values().find(|c| c.header.use_id == next_use_id).map(|c| c.header.use_number);
        candidate = next.and_then(|n| unused.remove(&n)).ok_or_else(|| {
            OpenError::Corrupt(format!("the segment after record {} is missing or damaged", replay.last_seq))
        })?;
        // Segments are found again by the numbers of their uses, which ascend.
        if candidate.header.use_number <= header.use_number {
            let why = format!("use {} of a segment comes after use {}", candidate.header.use_number, header.use_number);
            return Err(OpenError::Corrupt(why));
        }
        if candidate.header.first_seq != replay.last_seq + 1 {
            let why = format!("a segment starts at {}, after record {}", candidate.header.first_seq, replay.last_seq);
            return Err(OpenError::Corrupt(why));
        }
    };
    replay.check_later(&header, unused.values())?;
    replay.check_settled(settled.seq)?;
    replay.index.check().map_err(OpenError::Corrupt)?;
    replay.rot.check_footers()?;
    let later = unused.values().filter(|c| c.header.use_number > header.use_number);
    let prepared = later.map(|c| c.file.path.clone()).collect();
    let mut files = Files { next_number: found.next_number, bytes, ..Files::default() };
    let (blank, surplus) = keep_one(found.blank, segment_bytes);
    for file in blank.into_iter().chain(unused.into_values().map(|c| c.file)) {
        files.bytes += file.capacity;
        files.free.push(Arc::new(file));
    }
    let Replay { index, groups, position, last_seq, last_written, tallies, torn_footer, rot, .. } = replay;
    let marks = rot.marks(groups.iter().map(|g| &g.state));
    Ok(Replayed {
        index,
        groups,
        files,
        header,
        position,
        last_seq,
        use_number_max,
        last_written,
        tallies,
        torn_footer,
        prepared,
        surplus,
        marks,
    })
}

/// Of files that were never used, one of full length is worth keeping. The others are what crashes and full disks left,
/// and to reserve their space now could fail, too.
fn keep_one(mut blank: Vec<SegmentFile>, segment_bytes: u64) -> (Option<SegmentFile>, Vec<PathBuf>) {
    let whole = blank.iter().position(|f| f.capacity >= segment_bytes);
    let kept = whole.map(|at| blank.remove(at));
    (kept, blank.into_iter().map(|f| f.path).collect())
}

/// The replay as far as it has come.
struct Replay {
    index: LogIndex,
    /// By the slots of the index.
    groups: Vec<Folded>,
    last_seq: u64,
    /// The largest "oldest sequence needed" of any record.
    oldest_needed: u64,
    position: u64,
    last_written: Vec<LastWritten>,
    /// What the records of the segment come to.
    tallies: Tallies,
    /// The header of a footer is at `position`, but not all of its list.
    torn_footer: bool,
    rot: Rot,
}

/// A record whose header and directory passed every check.
struct Record {
    header: RecordHeader,
    /// Where every frame is, and the frame, or nothing where that is damaged.
    frames: Vec<(DirectoryItem, Option<Frame>)>,
    /// What is wrong with the first one that is damaged.
    damage: Option<&'static str>,
}

impl Replay {
    fn new(groups: BTreeMap<GroupId, Folded>, settled: u64) -> Self {
        let mut index = LogIndex::default();
        for folded in groups.values() {
            index.load(&folded.state, folded.rows);
        }
        let (last_written, tallies, torn_footer) = (Vec::new(), Tallies::default(), false);
        let groups = groups.into_values().collect();
        Self {
            index,
            groups,
            last_seq: settled,
            oldest_needed: 0,
            position: BLOCK,
            last_written,
            tallies,
            torn_footer,
            rot: Rot::default(),
        }
    }

    /// Replays one segment. Returns the use in which the journal goes on, if this one is sealed.
    fn segment(&mut self, header: SegmentHeader, file: Arc<SegmentFile>) -> Result<Option<u64>, OpenError> {
        let segment = Arc::new(Segment::new(Arc::clone(&file), &header));
        self.index.begin_segment(Arc::clone(&segment));
        self.tallies.clear();
        let mut window = Window::new(&file, READ_BYTES);
        // Until a record comes, the front block and the footer before it are what was written last.
        self.last_written.retain(|w| w.offset != 0);
        self.last_written.drain(..self.last_written.len().saturating_sub(1));
        self.last_written.push(LastWritten { file: Arc::clone(&file), offset: 0, length: BLOCK });
        self.position = BLOCK;
        loop {
            if let Some(footer) = self.footer(&mut window, &segment)? {
                return Ok(Some(footer.next_use_id));
            }
            match read_record(&mut window, self.position, segment.seed, self.last_seq + 1)? {
                Ok(record) => {
                    let length = padded(record.header.length);
                    if let Some(why) = record.damage
                        && !vouched(&mut window, self.position + length, segment.seed)?
                    {
                        self.end_torn(why);
                        return Ok(None);
                    }
                    segment.open_from(self.position, record.header.opening);
                    sometimes!(segment.openings().len() > 1, "segment-of-two-openings-replayed");
                    self.record(&segment, record)?;
                    self.last_written = vec![LastWritten { file: Arc::clone(&file), offset: self.position, length }];
                    self.position += length;
                }
                Err(why) => {
                    self.check_torn(&mut window, segment.seed, why)?;
                    return Ok(None);
                }
            }
        }
    }

    fn record(&mut self, segment: &Segment, record: Record) -> Result<(), OpenError> {
        let seq = record.header.seq;
        let damaged = |why: String| OpenError::Corrupt(format!("record {seq}: {why}"));
        for (at, (item, frame)) in record.frames.iter().enumerate() {
            let group = match frame {
                Some(_) => item.group,
                None => rot::owner(&record.frames, at),
            };
            let slot = self.index.slot_or_insert(group);
            if slot as usize == self.groups.len() {
                self.groups.push(Folded::new(group));
            }
            let folded = &mut self.groups[slot as usize];
            let (effect, change) = match frame {
                Some(frame) => (Effect::from(frame), Change::from(frame)),
                None if plant::is("rotten-frame-passed-over") => continue,
                None => {
                    let effect = self.rot.meet(&folded.state, seq);
                    let change = Change::of_record(effect.record.as_deref());
                    (effect, change)
                }
            };
            if frame.is_some() {
                self.rot.pass(group, &effect);
            }
            folded.apply(&effect).map_err(damaged)?;
            let offset = u32::try_from(self.position).expect("segments are below 4 GiB") + item.offset;
            self.index.apply(slot, &change, offset, item.length).map_err(damaged)?;
            self.tallies.add(slot, effect);
        }
        debug_assert!(segment.first_seq <= seq);
        self.last_seq = seq;
        self.oldest_needed = self.oldest_needed.max(record.header.oldest_needed);
        Ok(())
    }

    /// The footer at the current position, if there is one; then the segment is sealed. One whose list is torn is none:
    /// header and list are one write, and only what comes after it says whether it was the one under way.
    fn footer(&mut self, window: &mut Window<'_>, segment: &Segment) -> Result<Option<FooterHeader>, OpenError> {
        let Some(front) = window.bytes(self.position, FOOTER_HEADER_BYTES as u64)? else { return Ok(None) };
        let Some(footer) = FooterHeader::decode(front, segment.seed) else { return Ok(None) };
        let damaged = |why: &str| OpenError::Corrupt(format!("footer after record {}: {why}", self.last_seq));
        if footer.last_seq != self.last_seq {
            return Err(damaged("it names another last record"));
        }
        if footer.length != footer.bytes() {
            return Err(damaged("its length is not that of its list"));
        }
        let bytes = window.bytes(self.position, footer.length)?.ok_or_else(|| damaged("it reaches beyond its file"))?;
        let openings = segment.openings();
        let room = self.index.footer_bytes() + self.tallies.bytes() + openings.len() * FOOTER_ITEM_BYTES;
        let mut expected = vec![0; room];
        let mut body = self.index.footer(&self.tallies, &openings, &mut expected);
        expected.truncate(body.length);
        let seed = body_seed(segment.seed, footer.opening);
        if footer.body_crc != crc(seed, &bytes[FOOTER_HEADER_BYTES..]) {
            sometimes!("reopened-at-a-torn-footer");
            self.torn_footer = true;
            return Ok(None);
        }
        let found = &bytes[FOOTER_HEADER_BYTES..];
        if found != expected {
            let other = self.rot.other_footer(&self.index, (&footer, found), (&body, &expected));
            body = other.map_err(|why| damaged(&why))?;
        }
        segment.sealed.set(Sealed { offset: self.position, footer }).expect("a segment is replayed once");
        self.index.sealed(&body);
        let (file, length) = (Arc::clone(&segment.file), padded(footer.length));
        self.last_written = vec![LastWritten { file, offset: self.position, length }];
        Ok(Some(footer))
    }

    /// A record could not be read: makes sure that nothing vouches for it.
    fn check_torn(&self, window: &mut Window<'_>, seed: u32, why: &str) -> Result<(), OpenError> {
        if vouched(window, self.position + BLOCK, seed)? {
            let seq = self.last_seq + 1;
            return Err(OpenError::Corrupt(format!("record {seq}: {why}, though later ones were written")));
        }
        self.end_torn(why);
        Ok(())
    }

    /// The journal ends before what is at the current position.
    fn end_torn(&self, why: &str) {
        sometimes!(why != "no header", "reopened-at-a-torn-record");
        tracing::debug!(after = self.last_seq, why, "journal ends here");
    }

    /// Later segments may have been prepared, but nothing can have been written to them.
    fn check_later<'a>(
        &self,
        active: &SegmentHeader,
        others: impl Iterator<Item = &'a Candidate>,
    ) -> Result<(), OpenError> {
        for Candidate { header, file } in others.filter(|c| c.header.use_number > active.use_number) {
            sometimes!("reopened-with-a-prepared-segment");
            let first = file.read(BLOCK, RECORD_HEADER_BYTES)?;
            if header.first_seq > self.last_seq + 1 || RecordHeader::decode(&first, header.seed()).is_some() {
                let (seq, later) = (self.last_seq, header.first_seq);
                return Err(OpenError::Corrupt(format!(
                    "the journal breaks off at record {seq}, but {later} is there"
                )));
            }
        }
        Ok(())
    }

    /// The key-value store must have settled what records say that it had.
    fn check_settled(&self, settled: u64) -> Result<(), OpenError> {
        if settled + 1 < self.oldest_needed {
            let needed = self.oldest_needed - 1;
            return Err(OpenError::Corrupt(format!("the key-value store is settled to {settled}, it was to {needed}")));
        }
        Ok(())
    }
}

/// Whether any block of the segment from this place on begins a record or a footer of its use: it was written when all before it
/// was durable.
fn vouched(window: &mut Window<'_>, mut at: u64, seed: u32) -> Result<bool, OpenError> {
    while let Some(front) = window.bytes(at, RECORD_HEADER_BYTES as u64)? {
        if RecordHeader::decode(front, seed).is_some() || FooterHeader::decode(front, seed).is_some() {
            return Ok(true);
        }
        at += BLOCK;
    }
    Ok(false)
}

/// Reads and checks a whole record. The inner error says why there is no telling what is in it.
fn read_record(
    window: &mut Window<'_>,
    position: u64,
    seed: u32,
    seq: u64,
) -> Result<Result<Record, &'static str>, OpenError> {
    let Some(front) = window.bytes(position, RECORD_HEADER_BYTES as u64)? else { return Ok(Err("the file ends")) };
    let Some(header) = RecordHeader::decode(front, seed) else { return Ok(Err("no header")) };
    let seed = body_seed(seed, header.opening);
    if header.seq != seq || header.front_bytes() > header.length {
        return Err(OpenError::Corrupt(format!("record {seq}: its header is one of record {}", header.seq)));
    }
    let corrupt = |why: &str| OpenError::Corrupt(format!("record {seq}: {why}"));
    let bytes = window.bytes(position, header.length)?.ok_or_else(|| corrupt("it reaches beyond its file"))?;
    let directory = &bytes[RECORD_HEADER_BYTES..header.front_bytes() as usize];
    if crc(seed, directory) != header.directory_crc {
        return Ok(Err("directory checksum mismatch"));
    }
    let mut frames = Vec::with_capacity(header.frames as usize);
    let mut damage = None;
    for item in directory.chunks_exact(DIRECTORY_ITEM_BYTES).map(DirectoryItem::decode) {
        let end = u64::from(item.offset) + u64::from(item.length);
        if end > header.length {
            return Err(corrupt("a frame reaches beyond it"));
        }
        let bytes = &bytes[item.offset as usize..end as usize];
        let frame = Frame::decode(bytes, seed).and_then(|frame| {
            frame::check_runs(&frame, bytes)?;
            Ok(frame)
        });
        match frame {
            Ok(frame) if frame.group == item.group => frames.push((item, Some(frame))),
            Ok(_) => return Err(corrupt("a frame of another group")),
            Err(FrameFault::NotUnderstood(why)) => return Err(OpenError::Format(format!("record {seq}: {why}"))),
            Err(FrameFault::Damaged(why)) => {
                damage = damage.or(Some(why));
                frames.push((item, None));
            }
        }
    }
    Ok(Ok(Record { header, frames, damage }))
}

/// What recovery tells the engine, sorted by group.
pub(crate) fn states(groups: Vec<Folded>) -> Vec<GroupState> {
    let mut states: Vec<GroupState> = groups.into_iter().map(|f| f.state).collect();
    states.sort_unstable_by_key(|s| s.group);
    states
}

/// A group's row of the key-value store as the start of a fold.
pub(crate) fn folded(state: GroupState, rows: Rows) -> Folded {
    Folded { state, rows, reset: false }
}
