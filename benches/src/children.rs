//! Hosts in processes of their own, as the process that leads them sees them: told what to do line by line, heard line by line.
//!
//! Invariant: however the leading process ends in order, its children end with it. Must not know: what the lines mean.

use crate::cluster::BoxError;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

struct OneChild {
    process: Child,
    input: Option<ChildStdin>,
}

/// The processes of one scenario, by the id of their host.
pub struct Children {
    scenario: &'static str,
    dir: PathBuf,
    all: BTreeMap<u64, OneChild>,
    said: Sender<(u64, String)>,
    heard: Receiver<(u64, String)>,
}

impl Children {
    /// None yet. They are this program, called as `SCENARIO --child ID --dir DIR`.
    pub fn new(scenario: &'static str, dir: &Path) -> Self {
        let (said, heard) = channel();
        Self { scenario, dir: dir.to_path_buf(), all: BTreeMap::new(), said, heard }
    }

    /// Starts one.
    ///
    /// # Errors
    /// When the process can't be started.
    pub fn spawn(&mut self, id: u64) -> Result<(), BoxError> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([self.scenario, "--child", &id.to_string(), "--dir"])
            .arg(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().ok_or("a child without output")?;
        let (input, said) = (process.stdin.take(), self.said.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Nobody listens any more when the leading process ends.
                let _ = said.send((id, line));
            }
        });
        self.all.insert(id, OneChild { process, input });
        Ok(())
    }

    /// Kills one, as a power switch would, and waits until it is gone. What it said before may still be heard.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&mut self, id: u64) -> Result<(), BoxError> {
        let mut child = self.all.remove(&id).ok_or("no such child")?;
        child.process.kill()?;
        child.process.wait()?;
        Ok(())
    }

    /// Says one line, or several, to one.
    ///
    /// # Errors
    /// When it has ended.
    pub fn tell(&mut self, id: u64, line: &str) -> Result<(), BoxError> {
        let child = self.all.get_mut(&id).ok_or("no such child")?;
        let input = child.input.as_mut().ok_or("the child has ended")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// The next line of any of them.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn hear(&self, timeout: Duration) -> Result<(u64, String), RecvTimeoutError> {
        self.heard.recv_timeout(timeout)
    }

    /// The next line, if there is one.
    pub fn heard(&self) -> Option<(u64, String)> {
        self.heard.try_recv().ok()
    }

    /// Waits for a line of each of these that begins with `word`; returns what comes after it. What they say else is dropped.
    ///
    /// # Errors
    /// When one says nothing for too long.
    pub fn await_each(&self, ids: &[u64], word: &str, patience: Duration) -> Result<Vec<String>, BoxError> {
        let mut said: Vec<Option<String>> = vec![None; ids.len()];
        let begun = Instant::now();
        while said.iter().any(Option::is_none) {
            let (id, line) = self.hear(patience.saturating_sub(begun.elapsed()))?;
            if let Some(rest) = line.strip_prefix(word)
                && let Some(at) = ids.iter().position(|i| *i == id)
            {
                said[at] = Some(rest.trim_start().to_owned());
            }
        }
        Ok(said.into_iter().flatten().collect())
    }

    /// Ends all of them in order: without input they close their hosts.
    ///
    /// # Errors
    /// When one did not end well.
    pub fn end(&mut self) -> Result<(), BoxError> {
        self.all.values_mut().for_each(|child| drop(child.input.take()));
        for child in self.all.values_mut() {
            let status = child.process.wait()?;
            if !status.success() {
                return Err(format!("a host ended with {status}").into());
            }
        }
        self.all.clear();
        Ok(())
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in self.all.values_mut() {
            drop(child.input.take());
            let _ = child.process.kill();
            let _ = child.process.wait();
        }
    }
}
