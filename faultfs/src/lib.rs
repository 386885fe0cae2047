//! RocksDB over a file system that loses power.
//!
//! Owns the binding to RocksDB's `FaultInjectionTestFS`: what a file or directory got since its last sync is gone when the
//! power returns. The log store's tests run their journal on the simulated disk and RocksDB on this, so that both lose power
//! at one moment. Must not be linked into anything that ships.

use rocksdb::Env;
use std::ptr::NonNull;

#[repr(C)]
struct Handle {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn longboat_power_new() -> *mut Handle;
    fn longboat_power_free(power: *mut Handle);
    fn longboat_power_env(power: *mut Handle) -> *mut librocksdb_sys::rocksdb_env_t;
    fn longboat_power_changes(power: *const Handle) -> u64;
    fn longboat_power_stop_after(power: *mut Handle, changes: u64);
    fn longboat_power_off(power: *mut Handle);
    fn longboat_power_is_off(power: *const Handle) -> bool;
    fn longboat_power_restore(power: *mut Handle, seed: u32) -> bool;
}

/// A file system that RocksDB can be opened on and whose power can be cut.
#[derive(Debug)]
pub struct PowerFs {
    handle: NonNull<Handle>,
}

// SAFETY: every call of the handle takes a lock or is atomic on the other side.
unsafe impl Send for PowerFs {}
// SAFETY: as above.
unsafe impl Sync for PowerFs {}

impl PowerFs {
    /// The machine's file system, with the power on.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: takes nothing; gives a pointer that is owned from here on.
        let handle = NonNull::new(unsafe { longboat_power_new() }).expect("`new` of C++ gives no null");
        Self { handle }
    }

    /// What a database is opened with to be on it.
    #[must_use]
    pub fn env(&self) -> Env {
        // SAFETY: the handle lives; the environment shares the file system and is freed by its own drop.
        unsafe { Env::from_raw(longboat_power_env(self.handle.as_ptr())) }
    }

    /// Calls that changed the disk: files made, renamed or removed, writes, syncs of files and directories.
    #[must_use]
    pub fn changes(&self) -> u64 {
        // SAFETY: the handle lives.
        unsafe { longboat_power_changes(self.handle.as_ptr()) }
    }

    /// Cuts the power when as many changes were made since it was made: the next one and all after it fail.
    pub fn stop_after(&self, changes: u64) {
        // SAFETY: the handle lives.
        unsafe { longboat_power_stop_after(self.handle.as_ptr(), changes) }
    }

    /// Cuts the power now.
    pub fn cut(&self) {
        // SAFETY: the handle lives.
        unsafe { longboat_power_off(self.handle.as_ptr()) }
    }

    /// Whether the power is gone.
    #[must_use]
    pub fn is_off(&self) -> bool {
        // SAFETY: the handle lives.
        unsafe { longboat_power_is_off(self.handle.as_ptr()) }
    }

    /// The power returns, to what was synced and, with a seed above 0, a random part of what was not. All databases on it must
    /// be closed.
    ///
    /// # Panics
    /// The real file system below failed.
    pub fn restore(&self, seed: u32) {
        // SAFETY: the handle lives.
        let restored = unsafe { longboat_power_restore(self.handle.as_ptr(), seed) };
        assert!(restored, "the file system below failed");
    }
}

impl Default for PowerFs {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PowerFs {
    fn drop(&mut self) {
        // SAFETY: the handle lives until here; environments that still use the file system share it.
        unsafe { longboat_power_free(self.handle.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rocksdb::{DB, Options, WriteOptions};

    fn open(fs: &PowerFs, dir: &std::path::Path) -> DB {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_env(&fs.env());
        DB::open(&options, dir).expect("opens")
    }

    #[test]
    fn what_was_synced_survives_and_what_was_not_does_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let fs = PowerFs::new();
        let db = open(&fs, dir.path());
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        db.put_opt(b"synced", b"1", &synced).expect("written");
        db.put(b"unsynced", b"1").expect("written");
        assert!(fs.changes() > 5);
        fs.cut();
        assert!(fs.is_off());
        drop(db);
        fs.restore(0);
        let db = open(&fs, dir.path());
        assert_eq!(db.get(b"synced").expect("read").as_deref(), Some(&b"1"[..]));
        assert_eq!(db.get(b"unsynced").expect("read"), None);
    }

    #[test]
    fn power_that_is_gone_after_some_changes_fails_all_later_ones() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let fs = PowerFs::new();
        let db = open(&fs, dir.path());
        fs.stop_after(fs.changes());
        assert!(db.put(b"a", b"1").is_err());
        assert!(fs.is_off());
        assert!(db.put(b"a", b"1").is_err());
    }
}
