//! Queries that travel together to the state machine.

use crate::completion::{AnyCompletion, Completion, Pending};
use crate::error::RequestError;
use crate::machine::Machine;
use longboat_raft::Index;
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Queries of one group that are answered at one applied index.
pub struct Reads<S: Machine> {
    queries: Vec<S::Query>,
    completion: Arc<Completion<S::Answer>>,
}

impl<S: Machine> Reads<S> {
    /// No queries yet.
    pub fn new() -> Self {
        Self { queries: Vec::new(), completion: Completion::new() }
    }

    /// Adds a query.
    pub fn add(&mut self, query: S::Query) -> Pending<S::Answer> {
        let slot = self.queries.len() as u32;
        self.queries.push(query);
        Pending::new(Arc::clone(&self.completion), slot)
    }

    /// Adds many queries; returns the completion and the number of the first slot.
    pub fn add_many(&mut self, queries: impl IntoIterator<Item = S::Query>) -> (Arc<Completion<S::Answer>>, u32) {
        let first = self.queries.len() as u32;
        self.queries.extend(queries);
        (Arc::clone(&self.completion), first)
    }

    /// Answers each of `reads` with what `answer` says.
    pub(crate) fn answer(
        mut reads: Box<dyn AnyReads>,
        mut answer: impl FnMut(S::Query) -> Result<S::Answer, RequestError>,
    ) {
        let reads: &mut Self =
            reads.as_any_mut().downcast_mut().expect("a group's reads are made by its own typed handle");
        let answers: Vec<_> = std::mem::take(&mut reads.queries).into_iter().map(&mut answer).collect();
        reads.completion.complete(0, answers.into_iter());
    }
}

impl<S: Machine> Default for Reads<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Machine> fmt::Debug for Reads<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads").field("queries", &self.queries.len()).finish()
    }
}

/// Queries whose types the engine does not know.
pub trait AnyReads: Send + fmt::Debug {
    /// The number of queries.
    fn len(&self) -> usize;

    /// Whether there are no queries.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Resolves all of them with an error.
    fn fail(&self, error: &RequestError);

    /// Where the answers go, slot 0 on.
    fn results(&self) -> Arc<dyn AnyCompletion>;

    /// Answers with the applied index alone, where nothing else was asked. Returns whether that was so: then there is
    /// nothing left for the state machine.
    fn answer_applied(&mut self, _applied: Index) -> bool {
        false
    }

    /// For the typed side to find its type again.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// Requests that wait until a state machine has applied far enough, and ask it nothing.
#[derive(Debug)]
pub struct IndexReads {
    count: u32,
    completion: Arc<Completion<Index>>,
}

impl IndexReads {
    /// No requests yet.
    pub fn new() -> Self {
        Self { count: 0, completion: Completion::new() }
    }

    /// Adds a request; returns its slot and what it waits on.
    pub fn add(&mut self) -> (u32, Pending<Index>) {
        let slot = self.count;
        self.count += 1;
        (slot, Pending::new(Arc::clone(&self.completion), slot))
    }
}

impl Default for IndexReads {
    fn default() -> Self {
        Self::new()
    }
}

impl AnyReads for IndexReads {
    fn len(&self) -> usize {
        self.count as usize
    }

    fn fail(&self, error: &RequestError) {
        self.completion.fail(0, self.count, error);
    }

    fn results(&self) -> Arc<dyn AnyCompletion> {
        Arc::clone(&self.completion) as Arc<dyn AnyCompletion>
    }

    fn answer_applied(&mut self, applied: Index) -> bool {
        self.completion.complete(0, (0..self.count).map(|_| Ok(applied)));
        true
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl<S: Machine> AnyReads for Reads<S> {
    fn len(&self) -> usize {
        self.queries.len()
    }

    fn fail(&self, error: &RequestError) {
        self.completion.fail(0, self.queries.len() as u32, error);
    }

    fn results(&self) -> Arc<dyn AnyCompletion> {
        Arc::clone(&self.completion) as Arc<dyn AnyCompletion>
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
