//! Clients that work in sessions and send their commands again and again, and what a group is to make of that.
//!
//! A client may send a command again at any time in a session, also while earlier attempts are on their way, through any host.
//! Without one it does so only when `Attempts` says that it may. [`Table`] says which of the attempts in the log
//! counts: it is written from the description in `docs/sessions.md`, and shares no code with the table of the engine.

use crate::rng::Rng;
use longboat_raft::{GroupId, Index, SessionCall, SessionId};
use longboat_rsm::RequestError;
use longboat_rsm::retry::{Attempts, ClientSession, NextStep, Series};
use std::collections::{BTreeMap, BTreeSet};

/// Results that a session keeps.
const WINDOW: usize = 64;

#[derive(Debug, Default)]
struct Kept {
    used: Index,
    responded_to: u64,
    applied: BTreeSet<u64>,
}

/// The sessions of one group as its log says that they are.
#[derive(Debug, Default)]
pub(crate) struct Table {
    sessions: BTreeMap<SessionId, Kept>,
}

impl Table {
    /// The committed entry at `index`. Returns whether it is a command that is applied.
    pub(crate) fn applies(&mut self, index: Index, call: Option<SessionCall>) -> bool {
        match call {
            None => true,
            Some(SessionCall::Register { sessions_max }) => {
                self.sessions.insert(SessionId(index.0), Kept { used: index, ..Kept::default() });
                while self.sessions.len() > sessions_max as usize {
                    let oldest = self.sessions.iter().min_by_key(|(_, kept)| kept.used).map(|(id, _)| *id);
                    self.sessions.remove(&oldest.expect("there are too many"));
                }
                false
            }
            Some(SessionCall::Close { session }) => {
                self.sessions.remove(&session);
                false
            }
            Some(SessionCall::Propose { session, series, responded_to }) => {
                let Some(kept) = self.sessions.get_mut(&session) else { return false };
                kept.used = index;
                if responded_to >= series {
                    return false;
                }
                kept.responded_to = kept.responded_to.max(responded_to);
                kept.applied.retain(|s| *s > responded_to);
                if series <= kept.responded_to || kept.applied.contains(&series) || kept.applied.len() >= WINDOW {
                    return false;
                }
                kept.applied.insert(series)
            }
        }
    }
}

/// A command that its client has not given up.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) serial: u64,
    pub(crate) padding: usize,
    pub(crate) series: Series,
    /// What it must not come before: what was seen before its first attempt.
    pub(crate) floor: u64,
    attempts: Attempts,
    /// Attempts on their way.
    flying: u32,
    /// It was answered. Sent again it is to be answered alike.
    answered: bool,
    /// It may be sent again.
    again: bool,
}

/// One client of one group.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) group: GroupId,
    without: bool,
    pub(crate) session: Option<ClientSession>,
    registering: bool,
    open: Vec<Open>,
}

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Nothing,
    Register,
    Begin,
    /// This one of its open commands, once more.
    Send(usize),
    Close(SessionId),
}

/// Where an attempt belongs: the client, its session then, and the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) client: usize,
    pub(crate) session: SessionId,
    pub(crate) serial: u64,
}

/// What a client makes of a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// Nothing is known for good.
    Nothing,
    /// No attempt was or will be applied.
    NeverApplied,
}

/// All clients that work in sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) rng: Rng,
    /// Requests in 1,000 that are theirs.
    pub(crate) permille: u32,
    pub(crate) clients: Vec<Client>,
}

impl Sessions {
    /// None, ever.
    pub(crate) fn none() -> Self {
        Self { rng: Rng::new(0), permille: 0, clients: Vec::new() }
    }

    /// Clients of these groups: up to seven each, of which most have sessions. None for a seed of zero.
    pub(crate) fn draw(seed: u64, groups: impl Iterator<Item = GroupId>) -> Self {
        if seed == 0 {
            return Self::none();
        }
        let mut rng = Rng::new(seed);
        let permille = *rng.pick(&[0, 200, 500]);
        let mut clients = Vec::new();
        for group in groups {
            for _ in 0..rng.between(1, 7) {
                let without = rng.chance(250);
                let session = without.then(ClientSession::noop);
                clients.push(Client { group, without, session, registering: false, open: Vec::new() });
            }
        }
        if clients.is_empty() { Self::none() } else { Self { rng, permille, clients } }
    }

    /// Some client, and what it does.
    pub(crate) fn next(&mut self) -> (usize, Act) {
        let at = self.rng.below(self.clients.len() as u64) as usize;
        let client = &self.clients[at];
        let act = match &client.session {
            None if client.registering => Act::Nothing,
            None => Act::Register,
            Some(session) if !session.is_noop() && self.rng.chance(20) => Act::Close(session.id()),
            Some(_) => {
                let again: Vec<usize> = (0..client.open.len()).filter(|i| client.open[*i].again).collect();
                if !again.is_empty() && self.rng.chance(600) { Act::Send(*self.rng.pick(&again)) } else { Act::Begin }
            }
        };
        (at, act)
    }

    /// A new command; nothing if as many are open as may be.
    pub(crate) fn begin(&mut self, at: usize, serial: u64, padding: usize, floor: u64) -> Option<usize> {
        let client = &mut self.clients[at];
        let session = client.session.as_mut()?;
        let series = session.begin()?;
        let attempts = session.attempts();
        let (answered, again) = (false, false);
        client.open.push(Open { serial, padding, series, floor, attempts, flying: 0, answered, again });
        Some(client.open.len() - 1)
    }

    /// An open command is sent: what it is, and where its answer belongs.
    pub(crate) fn send(&mut self, at: usize, open: usize) -> (Sent, &Open, Option<SessionCall>) {
        let client = &mut self.clients[at];
        let session = client.session.as_ref().expect("commands are of a session");
        let open = &mut client.open[open];
        open.flying += 1;
        // Without a session only a failure allows another attempt.
        open.again = !client.without;
        let sent = Sent { client: at, session: session.id(), serial: open.serial };
        (sent, open, session.call(open.series))
    }

    /// An attempt was answered. Returns what the command must not come before; nothing if its client has given it up.
    pub(crate) fn answered(&mut self, sent: Sent) -> Option<u64> {
        let (client, at) = self.find(sent)?;
        let open = &mut client.open[at];
        open.flying -= 1;
        open.answered = true;
        let floor = open.floor;
        // Sometimes it goes on asking, though it was told.
        if client.without || self.rng.chance(500) {
            self.give_up(sent);
        }
        Some(floor)
    }

    /// An attempt failed.
    pub(crate) fn failed(&mut self, sent: Sent, error: &RequestError) -> Made {
        let tired = self.rng.chance(100);
        let Some((client, at)) = self.find(sent) else { return Made::Nothing };
        let open = &mut client.open[at];
        open.flying -= 1;
        let step = open.attempts.failed(error);
        let last = open.flying == 0 && !open.answered;
        let step = if tired && last { open.attempts.give_up() } else { step };
        open.again |= matches!(step, NextStep::Retry { .. });
        let expired = *error == RequestError::SessionExpired;
        if expired {
            // Whatever it had open is given up with it.
            client.session = None;
            client.open.clear();
        } else if step == NextStep::NotApplied || step == NextStep::Unknown {
            self.give_up(sent);
        }
        if step == NextStep::NotApplied && last { Made::NeverApplied } else { Made::Nothing }
    }

    /// Registering has ended.
    pub(crate) fn registered(&mut self, client: usize, session: Option<ClientSession>) {
        let client = &mut self.clients[client];
        client.registering = false;
        client.session = session;
    }

    /// Registering has begun.
    pub(crate) fn registers(&mut self, client: usize) {
        self.clients[client].registering = true;
    }

    /// A session is being closed: its client has no more use for it.
    pub(crate) fn closes(&mut self, client: usize) {
        let client = &mut self.clients[client];
        client.session = None;
        client.open.clear();
    }

    fn find(&mut self, sent: Sent) -> Option<(&mut Client, usize)> {
        let client = &mut self.clients[sent.client];
        client.session.as_ref().filter(|s| s.id() == sent.session)?;
        let at = client.open.iter().position(|o| o.serial == sent.serial)?;
        Some((client, at))
    }

    fn give_up(&mut self, sent: Sent) {
        let Some((client, at)) = self.find(sent) else { return };
        let open = client.open.remove(at);
        if let Some(session) = &mut client.session {
            session.end(open.series);
        }
    }
}
