//! Exported snapshots: made in the user's directory, looked at, and refused when any byte of them differs.

use super::content::{Parts, recover_parts, rich, save_parts};
use super::*;

fn exported(dir: &TempDir, to: &TempDir) -> PathBuf {
    let compression = Compression::Lz4;
    let parts = Arc::new(Mutex::new(rich(dir)));
    save_parts(&real_store(dir), &parts, SnapshotHeader { compression, ..header(5) }, Some(to.path())).unwrap();
    to.path().join("snapshot-7-5")
}

fn disk() -> SharedDisk {
    Arc::new(RealDisk)
}

#[test]
fn an_export_has_a_directory_of_its_own_and_leaves_the_store_alone() {
    let (dir, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = exported(&dir, &to);
    assert_eq!(names(to.path()), ["snapshot-7-5"]);
    assert_eq!(names(&path), ["snapshot.bin", "snapshot.meta"]);
    assert!(!dir.path().join("snapshots").exists(), "the store knows nothing of it");
    let found = inspect_export(&disk(), &path);
    assert!(matches!(&found, Err(SnapshotError::Corrupt(what)) if what.contains("session table")), "{found:?}");
    let header = verify_export(&disk(), &path).unwrap();
    assert_eq!((header.group, &header.meta), (GROUP, &super::header(5).meta));
}

#[test]
fn an_inspection_tells_what_is_in_an_export() {
    let (dir, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let parts = Parts { sessions: Vec::new(), ..rich(&dir) };
    let state_bytes = parts.state.len() + parts.files.iter().map(|f| f.1.len() + 16 + f.2.len()).sum::<usize>();
    let saved = save_parts(&real_store(&dir), &Arc::new(Mutex::new(parts)), header(5), Some(to.path())).unwrap();
    let found = inspect_export(&disk(), &to.path().join("snapshot-7-5")).unwrap();
    assert_eq!((found.file_bytes, found.state_bytes, found.sessions), (saved.bytes, state_bytes as u64, 0));
    assert_eq!(
        found.files.iter().map(|f| (f.id, f.bytes)).collect::<Vec<_>>(),
        [(7, BLOCK_BYTES as u64 + 5), (3, 0), (9, 90)]
    );
    assert_eq!(found.header, header(5));
}

#[test]
fn an_export_needs_a_directory_and_replaces_nothing() {
    let (dir, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let parts = Arc::new(Mutex::new(Parts::default()));
    let missing = to.path().join("mistyped");
    let refused = save_parts(&real_store(&dir), &parts, header(5), Some(&missing));
    assert!(matches!(refused, Err(SnapshotError::ExportDirectory(path)) if path == missing));
    assert!(!missing.exists());
    let path = exported(&dir, &to);
    let before = std::fs::read(path.join("snapshot.bin")).unwrap();
    let again = save_parts(&real_store(&dir), &parts, header(5), Some(to.path()));
    assert!(matches!(&again, Err(SnapshotError::Io(e)) if e.kind() == io::ErrorKind::AlreadyExists), "{again:?}");
    assert_eq!(std::fs::read(path.join("snapshot.bin")).unwrap(), before);
    assert_eq!(names(to.path()), ["snapshot-7-5"]);
}

#[test]
fn an_export_with_any_one_byte_flipped_is_refused() {
    let (dir, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    // Small, so that 5,000 positions are most of its bytes; every part and a compressed block are in it.
    let parts = Parts {
        state: [state(2000), vec![7; 3000]].concat(),
        files: vec![(4, state(500), b"four".to_vec())],
        ..rich(&dir)
    };
    let compression = Compression::Zstd;
    let header = SnapshotHeader { compression, ..header(5) };
    save_parts(&real_store(&dir), &Arc::new(Mutex::new(parts)), header, Some(to.path())).unwrap();
    let path = to.path().join("snapshot-7-5");
    verify_export(&disk(), &path).unwrap();
    let files =
        ["snapshot.bin", "snapshot.meta"].map(|name| (path.join(name), std::fs::read(path.join(name)).unwrap()));
    let total = files.iter().map(|f| f.1.len()).sum::<usize>();
    let mut word = 0x2545_f491_4f6c_dd1d_u64;
    for n in 0..5000 {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        let (at, flip) = ((word >> 8) as usize % total, (word as u8).max(1));
        let (file, at) = if at < files[0].1.len() { (&files[0], at) } else { (&files[1], at - files[0].1.len()) };
        let mut bad = file.1.clone();
        bad[at] ^= flip;
        std::fs::write(&file.0, &bad).unwrap();
        assert!(verify_export(&disk(), &path).is_err(), "flip {n}: byte {at} of {} by {flip:#x}", file.0.display());
        std::fs::write(&file.0, &file.1).unwrap();
    }
    verify_export(&disk(), &path).unwrap();
}

#[test]
fn an_export_that_lacks_a_file_or_has_another_ones_is_refused() {
    let (dir, to, other) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = exported(&dir, &to);
    let parts = Arc::new(Mutex::new(Parts::default()));
    save_parts(&real_store(&dir), &parts, header(5), Some(other.path())).unwrap();
    let foreign = other.path().join("snapshot-7-5");
    for name in ["snapshot.bin", "snapshot.meta"] {
        let good = std::fs::read(path.join(name)).unwrap();
        std::fs::copy(foreign.join(name), path.join(name)).unwrap();
        assert!(verify_export(&disk(), &path).is_err(), "{name} of another snapshot");
        std::fs::remove_file(path.join(name)).unwrap();
        assert!(verify_export(&disk(), &path).is_err(), "no {name}");
        std::fs::write(path.join(name), good).unwrap();
    }
    verify_export(&disk(), &path).unwrap();
}

#[test]
fn one_failing_call_fails_the_export_and_leaves_nothing() {
    for call in 0.. {
        let (dir, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let disk = Arc::new(FaultyDisk::fails_once_at(call));
        let store = SnapshotStore::new(Arc::clone(&disk) as SharedDisk, dir.path().join("snapshots"));
        let parts = Arc::new(Mutex::new(Parts { state: state(1000), ..Parts::default() }));
        let outcome = save_parts(&store, &parts, header(5), Some(to.path()));
        if !disk.has_failed() {
            assert!(outcome.is_ok() && call > 8);
            break;
        }
        assert!(outcome.is_err(), "call {call}");
        assert_eq!(names(to.path()), [] as [&str; 0], "call {call}");
    }
}

#[test]
fn recovering_reads_what_an_export_holds() {
    let (dir, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = exported(&dir, &to);
    // What an import does with the file: it becomes a snapshot of the store.
    std::fs::create_dir_all(file_path(&dir, 5).parent().unwrap()).unwrap();
    std::fs::copy(path.join("snapshot.bin"), file_path(&dir, 5)).unwrap();
    let found = Arc::new(Mutex::new(Parts::default()));
    recover_parts(&real_store(&dir), &found, 5, &[]).unwrap();
    assert!(found.lock().state == rich(&dir).state && found.lock().files == rich(&dir).files);
}
