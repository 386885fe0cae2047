//! The disk and its files as one process sees them.

use super::content::Content;
use super::{SimOp, State, stopped};
use crate::disk::{Disk, DiskFile, DiskLock};
use parking_lot::{Mutex, MutexGuard};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The disk of one process. Dead when the process is.
pub(super) struct SimProcess {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) process: u64,
}

impl fmt::Debug for SimProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimProcess").field("process", &self.process).finish_non_exhaustive()
    }
}

/// The state, if the process is alive and the machine runs.
fn alive(state: &Mutex<State>, process: u64) -> io::Result<MutexGuard<'_, State>> {
    let state = state.lock();
    if state.process != process {
        return Err(io::Error::other("the simulated process was killed"));
    }
    if state.is_stopped() {
        return Err(stopped());
    }
    Ok(state)
}

impl SimProcess {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        alive(&self.state, self.process)
    }

    /// Starts a change of names.
    fn metadata(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state()?;
        state.change()?;
        state.fault(SimOp::Metadata)?;
        Ok(state)
    }

    fn file(&self, state: &mut State, id: u64) -> Box<dyn DiskFile> {
        content(state, id).handles += 1;
        Box::new(SimFile { state: Arc::clone(&self.state), process: self.process, id, refused: None })
    }
}

impl Disk for SimProcess {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.metadata()?.tree.make_dirs(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.state()?.tree.list(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state()?;
        let id = state.tree.file(path)?;
        Ok(self.file(&mut state, id))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.metadata()?;
        let id = state.next_file;
        state.tree.make_file(path, id)?;
        state.next_file += 1;
        let content = Content::new(state.config.sector_bytes);
        state.files.insert(id, content);
        Ok(self.file(&mut state, id))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.metadata()?.tree.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.metadata()?.tree.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.metadata()?.tree.remove_dir(path);
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.state().is_ok_and(|s| s.tree.exists(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.metadata()?;
        state.is_loose |= state.tree.sync(path)?;
        state.drop_unreachable();
        Ok(())
    }

    fn lock_dir(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.state()?;
        if state.locked.iter().any(|p| p == path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.locked.push(path.to_path_buf());
        let (path, process) = (path.to_path_buf(), self.process);
        Ok(Box::new(SimLock { state: Arc::clone(&self.state), process, path }))
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.state()?;
        Ok(state.config.capacity_bytes.saturating_sub(state.used_bytes()))
    }
}

struct SimLock {
    state: Arc<Mutex<State>>,
    process: u64,
    path: PathBuf,
}

impl DiskLock for SimLock {}

impl fmt::Debug for SimLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimLock").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        // A later process may have the directory by now.
        if state.process == self.process {
            state.locked.retain(|p| *p != self.path);
        }
    }
}

/// An open file of one process.
struct SimFile {
    state: Arc<Mutex<State>>,
    process: u64,
    id: u64,
    /// A submitted write that was not taken at all.
    refused: Option<io::Error>,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SimFile {
    fn with<T>(&self, f: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let mut state = alive(&self.state, self.process)?;
        f(&mut state, self.id)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.process == self.process {
            let file = content(&mut state, self.id);
            file.handles -= 1;
            if file.handles == 0 {
                file.forget_submitted();
                state.is_loose = true;
            }
        }
    }
}

/// The content of a file that a living process has open, or that has a name.
fn content(state: &mut State, id: u64) -> &mut Content {
    state.files.get_mut(&id).expect("files stay while a handle or a name leads to them")
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|state, id| Ok(content(state, id).seen().len() as u64))
    }

    fn allocate(&mut self, len: u64) -> io::Result<()> {
        self.with(|state, id| {
            state.change()?;
            state.fault(SimOp::Metadata)?;
            state.room(id, len)?;
            content(state, id).grow(len as usize);
            Ok(())
        })
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|state, id| {
            state.fault(SimOp::Read)?;
            let seen = content(state, id).seen();
            let bytes = usize::try_from(offset).ok().and_then(|at| seen.get(at..at + buf.len()));
            buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.with(|state, id| {
            let runs_on = state.change();
            state.fault(SimOp::Write)?;
            state.room(id, offset + buf.len() as u64)?;
            content(state, id).write(offset as usize, buf);
            runs_on
        })
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.with(|state, id| {
            state.change()?;
            match state.fault(SimOp::Sync) {
                Ok(()) => content(state, id).sync(),
                Err(e) => {
                    content(state, id).fail_sync();
                    return Err(e);
                }
            }
            Ok(())
        })
    }

    fn submit_write_sync(&mut self, offset: u64, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|p| p.len()).sum();
        let taken = self.with(|state, id| {
            let runs_on = state.change();
            state.fault(SimOp::Write)?;
            let fails = state.fault(SimOp::Sync).err().map(|e| e.kind());
            state.room(id, offset + length as u64)?;
            let completes_at = state.completion();
            let content = content(state, id);
            assert!(content.completes_at().is_none(), "a write was submitted before the one before it was polled");
            content.submit(offset as usize, parts, completes_at, fails);
            runs_on
        });
        self.refused = taken.err();
    }

    fn poll_write_sync(&mut self) -> Option<io::Result<()>> {
        if let Some(e) = self.refused.take() {
            return Some(Err(e));
        }
        let polled = self.with(|state, id| {
            let now = state.now;
            Ok(content(state, id).poll(now))
        });
        polled.unwrap_or_else(|e| Some(Err(e)))
    }
}
