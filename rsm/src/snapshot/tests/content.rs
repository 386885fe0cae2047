//! What a snapshot may hold: sessions, compressed state, files, nothing at all; and older ones when the newest is damaged.

use super::*;
use crate::files::{RecoveredFiles, SnapshotFiles};
use crate::machine::{SavePart, SaveView, StorageState};

/// A state machine of parts, as the engine sees it: state, sessions, files. It keeps what it recovered.
#[derive(Clone, Default)]
pub(super) struct Parts {
    pub(super) state: Vec<u8>,
    pub(super) sessions: Vec<u8>,
    pub(super) files: Vec<(u64, Vec<u8>, Vec<u8>)>,
    /// Where the files are that are saved.
    pub(super) dir: PathBuf,
    /// Of an on-disk state machine.
    pub(super) storage: Option<StorageState>,
    pub(super) syncs: usize,
}

impl DynMachine for Parts {
    fn apply_run(&mut self, _: &Run, _: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        unreachable!("nothing is applied here")
    }

    fn lookup(&self, _: Box<dyn AnyReads>) {
        unreachable!("nothing is asked here")
    }

    fn sessions(&self) -> Vec<u8> {
        self.sessions.clone()
    }

    fn restore_sessions(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        self.sessions = bytes.to_vec();
        Ok(())
    }

    fn prepare(&mut self) -> Result<Option<Box<dyn SaveView>>, MachineError> {
        if self.storage.is_none() {
            return Ok(None);
        }
        Ok(Some(Box::new(PartsView { state: self.state.clone(), at: 0 })))
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        // Pieces of uneven sizes, some larger than a block.
        for piece in self.state.chunks(BLOCK_BYTES / 3 + 1) {
            out.write_all(piece)?;
        }
        Ok(())
    }

    fn save_files(&self, files: &mut SnapshotFiles) -> Result<(), MachineError> {
        for (id, bytes, metadata) in &self.files {
            let path = self.dir.join(format!("{id}.data"));
            std::fs::write(&path, bytes)?;
            files.add(*id, path, metadata)?;
        }
        Ok(())
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        self.state.clear();
        input.read_to_end(&mut self.state)?;
        Ok(())
    }

    fn recover_files(&mut self, files: &RecoveredFiles) -> Result<(), MachineError> {
        self.files.clear();
        for file in files.iter() {
            assert_eq!(files.find(file.id()), Some(file));
            let bytes = std::fs::read(file.path())?;
            assert_eq!(bytes.len() as u64, file.bytes());
            self.files.push((file.id(), bytes, file.metadata().to_vec()));
        }
        Ok(())
    }

    fn state_hash(&self) -> Option<u64> {
        None
    }

    fn sync(&mut self) -> Result<(), MachineError> {
        self.syncs += 1;
        if let Some(storage) = &mut self.storage {
            storage.durable = storage.applied;
        }
        Ok(())
    }

    fn storage(&self) -> Option<StorageState> {
        self.storage
    }

    fn resume_at(&mut self, index: Index, last_command: Index) -> Result<(), MachineError> {
        let storage = self.storage.as_mut().expect("an on-disk state machine");
        if storage.last_command < last_command {
            return Err(MachineError::Behind { applied: storage.last_command, needed: last_command });
        }
        storage.applied = index;
        Ok(())
    }
}

struct PartsView {
    state: Vec<u8>,
    at: usize,
}

impl SaveView for PartsView {
    fn write_part(&mut self, out: &mut dyn Write) -> Result<SavePart, MachineError> {
        let end = self.state.len().min(self.at + 100_000);
        out.write_all(&self.state[self.at..end])?;
        self.at = end;
        Ok(if end == self.state.len() { SavePart::Done } else { SavePart::More })
    }
}

/// The machine under a job, and a handle to look at it after.
struct Held(Arc<Mutex<Parts>>);

impl DynMachine for Held {
    fn apply_run(&mut self, run: &Run, results: Option<(&dyn AnyCompletion, u32)>) -> Result<(), MachineError> {
        self.0.lock().apply_run(run, results)
    }

    fn sessions(&self) -> Vec<u8> {
        self.0.lock().sessions()
    }

    fn restore_sessions(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        self.0.lock().restore_sessions(bytes)
    }

    fn prepare(&mut self) -> Result<Option<Box<dyn SaveView>>, MachineError> {
        self.0.lock().prepare()
    }

    fn save(&self, out: &mut dyn Write) -> Result<(), MachineError> {
        self.0.lock().save(out)
    }

    fn save_files(&self, files: &mut SnapshotFiles) -> Result<(), MachineError> {
        self.0.lock().save_files(files)
    }

    fn recover(&mut self, input: &mut dyn Read) -> Result<(), MachineError> {
        self.0.lock().recover(input)
    }

    fn recover_files(&mut self, files: &RecoveredFiles) -> Result<(), MachineError> {
        self.0.lock().recover_files(files)
    }

    fn state_hash(&self) -> Option<u64> {
        self.0.lock().state_hash()
    }

    fn sync(&mut self) -> Result<(), MachineError> {
        self.0.lock().sync()
    }

    fn storage(&self) -> Option<StorageState> {
        self.0.lock().storage()
    }

    fn resume_at(&mut self, index: Index, last_command: Index) -> Result<(), MachineError> {
        self.0.lock().resume_at(index, last_command)
    }

    fn lookup(&self, reads: Box<dyn AnyReads>) {
        self.0.lock().lookup(reads);
    }
}

pub(super) fn save_parts(
    store: &SnapshotStore,
    parts: &Arc<Mutex<Parts>>,
    header: SnapshotHeader,
    export_to: Option<&Path>,
) -> Result<SavedSnapshot, SnapshotError> {
    let shared: SharedMachine = Arc::new(Mutex::new(Box::new(Held(Arc::clone(parts)))));
    let prepared = Prepared::new(&shared, &mut **shared.lock(), header.content)
        .map_err(|e| SnapshotError::Machine(e.to_string()))?;
    let (sender, outcome) = mpsc::channel();
    run(SaveJob::new(SaveTask {
        prepared,
        header,
        replica: REPLICA,
        store: store.clone(),
        export_to: export_to.map(Path::to_owned),
        stop: Arc::default(),
        on_done: Box::new(move |saved| sender.send(saved).unwrap()),
    }));
    outcome.recv().unwrap()
}

pub(super) fn recover_parts(
    store: &SnapshotStore,
    parts: &Arc<Mutex<Parts>>,
    index: u64,
    older: &[u64],
) -> Result<SnapshotMeta, SnapshotError> {
    let (sender, outcome) = mpsc::channel();
    run(RecoverJob::new(RecoverTask {
        machine: Arc::new(Mutex::new(Box::new(Held(Arc::clone(parts))))),
        group: GROUP,
        replica: REPLICA,
        index: Index(index),
        older: older.iter().copied().map(Index).collect(),
        store: store.clone(),
        stop: Arc::default(),
        on_done: Box::new(move |recovered| sender.send(recovered).unwrap()),
    }));
    outcome.recv().unwrap()
}

fn shared(parts: Parts) -> Arc<Mutex<Parts>> {
    Arc::new(Mutex::new(parts))
}

/// Bytes that compress, unlike [`state`].
fn dull(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| ((n / 700) % 11) as u8).collect()
}

pub(super) fn rich(dir: &TempDir) -> Parts {
    Parts {
        state: [dull(BLOCK_BYTES + 1000), state(BLOCK_BYTES + 77), dull(10)].concat(),
        sessions: state(3000),
        files: vec![
            (7, state(BLOCK_BYTES + 5), b"seven".to_vec()),
            (3, Vec::new(), Vec::new()),
            (9, dull(90), vec![9]),
        ],
        dir: dir.path().to_owned(),
        ..Parts::default()
    }
}

#[test]
fn all_parts_come_back_for_every_compression() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    let parts = rich(&dir);
    let mut sizes = Vec::new();
    for (index, compression) in [(1, Compression::None), (2, Compression::Lz4), (3, Compression::Zstd)] {
        let saved = save_parts(&store, &shared(parts.clone()), SnapshotHeader { compression, ..header(index) }, None);
        sizes.push(saved.unwrap().bytes);
        assert_eq!(store.verify(GROUP, REPLICA, Index(index)).unwrap().compression, compression);
        let found = shared(Parts::default());
        recover_parts(&store, &found, index, &[]).unwrap();
        let found = found.lock();
        assert!(found.state == parts.state && found.sessions == parts.sessions && found.files == parts.files);
    }
    assert!(sizes[1] + BLOCK_BYTES as u64 / 2 < sizes[0] && sizes[2] + BLOCK_BYTES as u64 / 2 < sizes[0], "{sizes:?}");
    assert_eq!(names(&replica_dir(&dir)), ["snapshot-1", "snapshot-2", "snapshot-3"], "no recovered file stays");
}

#[test]
fn a_flipped_byte_of_a_compressed_file_with_all_parts_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    save_parts(&store, &shared(rich(&dir)), SnapshotHeader { compression: Compression::Zstd, ..header(5) }, None)
        .unwrap();
    let good = std::fs::read(file_path(&dir, 5)).unwrap();
    let mut at = 0;
    while at < good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(file_path(&dir, 5), &bad).unwrap();
        assert!(store.verify(GROUP, REPLICA, Index(5)).is_err(), "byte {at} was read as good");
        // Every byte of the header, then here and there.
        at += if at < 400 { 1 } else { 49_999 };
    }
}

/// Section, length decompressed, bytes in the file.
type Block<'a> = (format::Section, u32, &'a [u8]);

/// A file as a hostile peer would make it: all checksums are right.
fn forged(header: &SnapshotHeader, blocks: &[Block<'_>]) -> Vec<u8> {
    let (mut bytes, layout) = format::encode_header(header, BLOCK_BYTES).unwrap();
    let mut footer = format::Footer::begin(&layout);
    for (section, raw, stored) in blocks {
        let head = format::BlockHeader::of(&layout, footer.blocks, *section, *raw as usize, stored);
        footer.add(&head);
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(stored);
    }
    bytes.extend_from_slice(&footer.encode(&layout));
    bytes
}

#[test]
fn what_a_block_may_decompress_to_is_capped() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    let small = zstd::bulk::compress(&dull(BLOCK_BYTES), 1).unwrap();
    let large = zstd::bulk::compress(&dull(64 * BLOCK_BYTES), 1).unwrap();
    let zipped = SnapshotHeader { compression: Compression::Zstd, ..header(5) };
    let state = format::Section::State;
    let cases: [(&SnapshotHeader, u32, &[u8], bool); 5] = [
        (&zipped, BLOCK_BYTES as u32, &small, true),
        // It says that it is larger than any block, and it is.
        (&zipped, 64 * BLOCK_BYTES as u32, &large, false),
        // It says that it is a block, and is larger.
        (&zipped, BLOCK_BYTES as u32, &large, false),
        (&zipped, BLOCK_BYTES as u32 - 1, &small, false),
        (&header(5), BLOCK_BYTES as u32, &small, false),
    ];
    for (n, (header, raw, stored, good)) in cases.into_iter().enumerate() {
        std::fs::create_dir_all(file_path(&dir, 5).parent().unwrap()).unwrap();
        std::fs::write(file_path(&dir, 5), forged(header, &[(state, raw, stored)])).unwrap();
        assert_eq!(store.verify(GROUP, REPLICA, Index(5)).is_ok(), good, "case {n}");
    }
}

#[test]
fn sections_in_the_wrong_order_or_of_the_wrong_length_are_refused() {
    use format::Section::{FileData, FileHead, Sessions, State};
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    std::fs::create_dir_all(file_path(&dir, 5).parent().unwrap()).unwrap();
    let with_table = SnapshotHeader { session_bytes: 4, ..header(5) };
    let file = [9u64.to_le_bytes(), 5u64.to_le_bytes()].concat();
    let wrong: [&[Block<'_>]; 6] = [
        &[(State, 1, b"s"), (Sessions, 4, b"abcd")],
        &[(FileHead, 16, &file), (FileData, 5, b"fives"), (State, 1, b"s")],
        &[(State, 1, b"s"), (FileData, 5, b"fives")],
        &[(FileHead, 16, &file), (FileData, 4, b"four")],
        &[(FileHead, 15, &file[..15]), (FileData, 5, b"fives")],
        &[(Sessions, 4, b"abcd")],
    ];
    for (n, blocks) in wrong.into_iter().enumerate() {
        std::fs::create_dir_all(file_path(&dir, 5).parent().unwrap()).unwrap();
        std::fs::write(file_path(&dir, 5), forged(&header(5), blocks)).unwrap();
        assert!(recover_parts(&store, &shared(Parts::default()), 5, &[]).is_err(), "case {n}");
    }
    let right: [(SnapshotHeader, &[Block<'_>]); 2] = [
        (
            with_table,
            &[
                (Sessions, 2, b"ab"),
                (Sessions, 2, b"cd"),
                (State, 1, b"s"),
                (FileHead, 16, &file),
                (FileData, 5, b"fives"),
            ],
        ),
        (header(5), &[]),
    ];
    for (header, blocks) in right {
        std::fs::create_dir_all(file_path(&dir, 5).parent().unwrap()).unwrap();
        std::fs::write(file_path(&dir, 5), forged(&header, blocks)).unwrap();
        recover_parts(&store, &shared(Parts::default()), 5, &[]).unwrap();
    }
}

#[test]
fn a_damaged_snapshot_is_set_aside_and_the_next_older_one_used() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    for index in [3, 5, 9] {
        save(&store, index, vec![index as u8; 1000]);
    }
    for index in [9, 5] {
        let mut bytes = std::fs::read(file_path(&dir, index)).unwrap();
        let at = bytes.len() - 100;
        bytes[at] ^= 1;
        std::fs::write(file_path(&dir, index), &bytes).unwrap();
    }
    let found = shared(Parts::default());
    let meta = recover_parts(&store, &found, 9, &[5, 3]).unwrap();
    assert_eq!((meta.pos.index, &found.lock().state), (Index(3), &vec![3; 1000]));
    assert_eq!(names(&replica_dir(&dir)), ["snapshot-3", "snapshot-5.broken"], "one is kept to be looked at");
    assert_eq!(store.list(GROUP, REPLICA).unwrap(), [Index(3)]);
    // A state machine that fails is not the file's fault: nothing is set aside for it.
    assert!(recover(&store, 3, Trouble::Error).is_err());
    assert_eq!(store.list(GROUP, REPLICA).unwrap(), [Index(3)]);
    assert!(matches!(recover_parts(&store, &found, 9, &[]), Err(SnapshotError::Io(_))));
}

fn on_disk(applied: u64, last_command: u64, durable: u64) -> Parts {
    let [applied, last_command, durable] = [applied, last_command, durable].map(Index);
    Parts { storage: Some(StorageState { applied, last_command, durable }), ..Parts::default() }
}

#[test]
fn a_snapshot_without_state_needs_durable_storage_that_is_not_behind_it() {
    let dir = TempDir::new().unwrap();
    let store = real_store(&dir);
    let without_state = SnapshotHeader { content: Content::Metadata, kind: MachineKind::OnDisk, ..header(9) };
    let behind = shared(on_disk(9, 8, 4));
    let saved = save_parts(&store, &behind, without_state.clone(), None).unwrap();
    assert!(saved.bytes < 1000, "{} bytes", saved.bytes);
    assert_eq!(behind.lock().syncs, 1, "the log lets go of what the storage must have then");
    let durable = shared(on_disk(12, 12, 9));
    save_parts(&store, &durable, SnapshotHeader { meta: header(7).meta, ..without_state.clone() }, None).unwrap();
    assert_eq!(durable.lock().syncs, 0, "storage that is durable of its own is not synced");
    assert_eq!(store.verify(GROUP, REPLICA, Index(9)).unwrap().last_command, Index(8));

    let whole = shared(on_disk(8, 8, 8));
    recover_parts(&store, &whole, 9, &[]).unwrap();
    assert_eq!(whole.lock().storage.unwrap().applied, Index(9), "entry 9 is no command");
    let lost = recover_parts(&store, &shared(on_disk(7, 7, 7)), 9, &[]);
    assert!(matches!(&lost, Err(SnapshotError::Behind(text)) if text.contains("full snapshot")), "{lost:?}");
    assert!(save_parts(&store, &shared(Parts::default()), without_state, None).is_err(), "memory is saved whole");
}

#[test]
fn a_live_snapshot_arrives_whole_for_any_chunk_size_without_a_file_at_the_sender() {
    let bytes = state(3 * BLOCK_BYTES + 12_345);
    for (chunk, compression) in [(1000, Compression::None), (64 << 10, Compression::Lz4), (4 << 20, Compression::Zstd)]
    {
        let mut parts = Parts { state: bytes.clone(), ..on_disk(5, 5, 0) };
        let view = parts.prepare().unwrap().unwrap();
        let kind = MachineKind::OnDisk;
        let header = SnapshotHeader { compression, kind, last_command: Index(5), ..header(5) };
        let mut live = LiveSnapshot::new(view, header.clone(), Arc::default()).unwrap();
        let target = TempDir::new().unwrap();
        let receiver = real_store(&target);
        let mut incoming = IncomingSnapshot::begin(&receiver, REPLICA, live.key()).unwrap();
        let mut last = false;
        while let Some(part) = live.next_chunk(chunk).unwrap() {
            assert!(!last && part.data.len() <= chunk && !incoming.is_complete());
            assert!(matches!(incoming.finish(), Err(SnapshotError::Corrupt(_))));
            incoming.append(part.offset, &part.data).unwrap();
            last = part.last;
        }
        assert!(last && incoming.is_complete());
        while incoming.finish().unwrap() != JobState::Done {}
        assert_eq!(receiver.verify(GROUP, REPLICA, Index(5)).unwrap(), header);
        let found = shared(Parts::default());
        recover_parts(&receiver, &found, 5, &[]).unwrap();
        assert!(found.lock().state == bytes);
    }
}

#[test]
fn a_live_snapshot_ends_when_it_is_stopped_or_its_machine_fails() {
    struct Failing(bool);
    impl SaveView for Failing {
        fn write_part(&mut self, out: &mut dyn Write) -> Result<SavePart, MachineError> {
            out.write_all(&[1; 1000])?;
            if self.0 { panic!("out of reach") } else { Ok(SavePart::More) }
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut live = LiveSnapshot::new(Box::new(Failing(false)), header(5), Arc::clone(&stop)).unwrap();
    assert!(live.next_chunk(500).unwrap().is_some());
    stop.store(true, Ordering::Relaxed);
    assert!(matches!(live.next_chunk(1 << 20), Err(SnapshotError::Stopped)));
    let mut live = LiveSnapshot::new(Box::new(Failing(true)), header(5), Arc::default()).unwrap();
    assert!(matches!(live.next_chunk(1 << 20), Err(SnapshotError::Panicked(_))));
}

#[test]
fn a_witness_is_sent_a_snapshot_without_state() {
    let mut outgoing = OutgoingSnapshot::witness(&SnapshotHeader { session_bytes: 77, ..header(5) }).unwrap();
    let target = TempDir::new().unwrap();
    let receiver = real_store(&target);
    let mut incoming = IncomingSnapshot::begin(&receiver, REPLICA, outgoing.key()).unwrap();
    while let Some(part) = outgoing.next_chunk(100).unwrap() {
        incoming.append(part.offset, &part.data).unwrap();
    }
    while incoming.finish().unwrap() != JobState::Done {}
    let found = receiver.verify(GROUP, REPLICA, Index(5)).unwrap();
    assert_eq!((found.content, &found.meta, found.session_bytes), (Content::Witness, &header(5).meta, 0));
    let refused = recover_parts(&receiver, &shared(Parts::default()), 5, &[]);
    assert!(matches!(refused, Err(SnapshotError::Corrupt(_))), "{refused:?}");
}
