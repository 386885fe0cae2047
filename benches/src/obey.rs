//! The inside of a child process: a line is a call, and its outcome is a line. Futures of the calls are polled by one thread,
//! which sleeps until a line comes or one of them is woken.
//!
//! Must not know: what the lines mean, or who says them.

use crate::cluster::BoxError;
use longboat::RequestError;
use std::collections::HashMap;
use std::io::{BufRead, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Wake, Waker};

/// Lines and wakes that are taken between two looks at what is to be said.
const TURN_MAX: usize = 1024;

enum Heard {
    Line(String),
    Woken(u64),
    End,
}

struct Bell {
    call: u64,
    heard: Sender<Heard>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // Nobody listens any more when the process ends.
        let _ = self.heard.send(Heard::Woken(self.call));
    }
}

/// A call under way: its future ends with the line that is said of it.
pub type Call = Pin<Box<dyn Future<Output = String>>>;

/// The calls under way, and what is said.
pub struct Calls {
    under_way: HashMap<u64, Call>,
    last: u64,
    bell: Sender<Heard>,
    heard: Receiver<Heard>,
    said: std::io::BufWriter<std::io::Stdout>,
}

impl Default for Calls {
    fn default() -> Self {
        let (bell, heard) = channel();
        let lines = bell.clone();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let _ = lines.send(Heard::Line(line));
            }
            let _ = lines.send(Heard::End);
        });
        Self { under_way: HashMap::new(), last: 0, bell, heard, said: std::io::BufWriter::new(std::io::stdout()) }
    }
}

impl Calls {
    /// Says a line, at the latest when nothing is heard any more.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn say(&mut self, line: &str) -> std::io::Result<()> {
        writeln!(self.said, "{line}")
    }

    /// Begins a call.
    ///
    /// # Errors
    /// When it has ended and standard output is closed.
    pub fn begin(&mut self, call: Call) -> Result<(), BoxError> {
        self.last += 1;
        self.under_way.insert(self.last, call);
        self.poll(self.last)
    }

    fn poll(&mut self, number: u64) -> Result<(), BoxError> {
        let Some(call) = self.under_way.get_mut(&number) else { return Ok(()) };
        let waker = Waker::from(Arc::new(Bell { call: number, heard: self.bell.clone() }));
        if let Poll::Ready(line) = call.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.under_way.remove(&number);
            self.say(&line)?;
        }
        Ok(())
    }

    /// Hears lines, each as its words, until standard input ends.
    ///
    /// # Errors
    /// The first that `obey` returns, or that standard output is closed.
    pub fn serve(&mut self, mut obey: impl FnMut(&mut Self, &[&str]) -> Result<(), BoxError>) -> Result<(), BoxError> {
        loop {
            self.said.flush()?;
            let first = self.heard.recv()?;
            let rest: Vec<Heard> = self.heard.try_iter().take(TURN_MAX).collect();
            for heard in std::iter::once(first).chain(rest) {
                match heard {
                    Heard::Line(line) => obey(self, &line.split(' ').collect::<Vec<_>>())?,
                    Heard::Woken(call) => self.poll(call)?,
                    Heard::End => return Ok(()),
                }
            }
        }
    }
}

/// The number at this place of a line.
///
/// # Errors
/// When there is none.
pub fn number(words: &[&str], at: usize) -> Result<u64, BoxError> {
    Ok(words.get(at).ok_or("too few words")?.parse()?)
}

/// `ok` and what it came to, or whether it had no effect, and why.
pub fn said(result: Result<String, RequestError>) -> String {
    match result {
        Ok(what) => format!("ok {what}").trim_end().to_owned(),
        Err(error) if error.may_have_applied() => format!("unknown {error}"),
        Err(error) => format!("none {error}"),
    }
}
