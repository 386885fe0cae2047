//! `LONGBOAT`: what an operator may ask of the groups, so that membership and leadership can be tried from redis-cli.
//!
//! Groups are named by their ids, from 1. A change that is asked for here is made through whichever host is asked.

use crate::resp;
use bytes::Bytes;
use std::path::PathBuf;
use std::pin::Pin;

/// What a member is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It votes and has the data.
    Voter,
    /// It has the data and does not vote.
    NonVoting,
    /// It votes and has no data.
    Witness,
}

/// One request of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Who the members of a group are.
    Members {
        /// The group.
        group: u64,
    },
    /// Hands leadership over.
    Transfer {
        /// The group.
        group: u64,
        /// The replica that is to lead.
        to: u64,
    },
    /// Adds a member.
    Add {
        /// The group.
        group: u64,
        /// The new replica.
        replica: u64,
        /// Where it lives.
        host: u64,
        /// What it is.
        kind: Kind,
    },
    /// Starts a replica, on the host that is asked, that joins a group which has added it.
    Join {
        /// The group.
        group: u64,
        /// The replica.
        replica: u64,
        /// What the group has added it as.
        kind: Kind,
    },
    /// Removes a member.
    Remove {
        /// The group.
        group: u64,
        /// The replica.
        replica: u64,
    },
    /// Puts a new replica in the place of another.
    Replace {
        /// The group.
        group: u64,
        /// The replica that goes.
        old: u64,
        /// The one that comes.
        new: u64,
        /// Where it lives.
        host: u64,
    },
    /// Takes a snapshot of a group's replica on the host that is asked, or exports one: all that was acknowledged before.
    Snapshot {
        /// The group.
        group: u64,
        /// The directory to export to; without one the snapshot is the replica's own.
        export_to: Option<PathBuf>,
    },
    /// Figures of one group's replica on the host that is asked, or of the host.
    Info {
        /// The group.
        group: Option<u64>,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// One line.
    Line(String),
    /// A list of lines.
    List(Vec<String>),
    /// A text of many lines.
    Text(String),
}

/// The answer, when it comes; an error is the text of an error reply.
pub type Answering = Pin<Box<dyn Future<Output = Result<Said, String>> + Send>>;

impl Said {
    /// Appends the reply.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Line(line) => resp::write_simple(out, line),
            Self::Text(text) => resp::write_bulk(out, Some(text.as_bytes())),
            Self::List(lines) => {
                resp::write_array(out, lines.len());
                lines.iter().for_each(|line| resp::write_bulk(out, Some(line.as_bytes())));
            }
        }
    }
}

const USAGE: &str = "ERR LONGBOAT takes MEMBERS g, TRANSFER g to, ADD g id host [NONVOTING|WITNESS], \
                     JOIN g id [WITNESS], REMOVE g id, REPLACE g old new host, SNAPSHOT g, EXPORT g dir, or INFO [g]";

/// Reads the arguments after `LONGBOAT`.
///
/// # Errors
/// The text of an error reply.
pub(crate) fn interpret(args: &[Bytes]) -> Result<Admin, String> {
    let Some((name, rest)) = args.split_first() else { return Err(USAGE.to_owned()) };
    let number = |at: usize| -> Result<u64, String> {
        let text = String::from_utf8_lossy(&rest[at]);
        text.parse().map_err(|_| format!("ERR '{}' is not a number", text.escape_debug()))
    };
    let kind = |at: usize| match rest.get(at).map(|word| word.to_ascii_uppercase()).as_deref() {
        None => Ok(Kind::Voter),
        Some(b"NONVOTING") => Ok(Kind::NonVoting),
        Some(b"WITNESS") => Ok(Kind::Witness),
        Some(_) => Err(USAGE.to_owned()),
    };
    match (name.to_ascii_uppercase().as_slice(), rest.len()) {
        (b"MEMBERS", 1) => Ok(Admin::Members { group: number(0)? }),
        (b"TRANSFER", 2) => Ok(Admin::Transfer { group: number(0)?, to: number(1)? }),
        (b"ADD", 3 | 4) => Ok(Admin::Add { group: number(0)?, replica: number(1)?, host: number(2)?, kind: kind(3)? }),
        (b"JOIN", 2 | 3) => Ok(Admin::Join { group: number(0)?, replica: number(1)?, kind: kind(2)? }),
        (b"REMOVE", 2) => Ok(Admin::Remove { group: number(0)?, replica: number(1)? }),
        (b"REPLACE", 4) => Ok(Admin::Replace { group: number(0)?, old: number(1)?, new: number(2)?, host: number(3)? }),
        (b"SNAPSHOT", 1) => Ok(Admin::Snapshot { group: number(0)?, export_to: None }),
        (b"EXPORT", 2) => {
            let dir = std::str::from_utf8(&rest[1]).map_err(|_| "ERR the directory's name is no text".to_owned())?;
            Ok(Admin::Snapshot { group: number(0)?, export_to: Some(PathBuf::from(dir)) })
        }
        (b"INFO", 0) => Ok(Admin::Info { group: None }),
        (b"INFO", 1) => Ok(Admin::Info { group: Some(number(0)?) }),
        _ => Err(USAGE.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &'static str) -> Result<Admin, String> {
        let words: Vec<Bytes> = line.split_whitespace().map(|w| Bytes::from_static(w.as_bytes())).collect();
        interpret(&words)
    }

    #[test]
    fn every_request_is_read_whatever_its_case() {
        assert_eq!(ask("members 3"), Ok(Admin::Members { group: 3 }));
        assert_eq!(ask("TRANSFER 3 2"), Ok(Admin::Transfer { group: 3, to: 2 }));
        let add = |kind| Ok(Admin::Add { group: 1, replica: 4, host: 5, kind });
        assert_eq!(ask("ADD 1 4 5"), add(Kind::Voter));
        assert_eq!(ask("ADD 1 4 5 nonvoting"), add(Kind::NonVoting));
        assert_eq!(ask("ADD 1 4 5 WITNESS"), add(Kind::Witness));
        assert_eq!(ask("join 1 4"), Ok(Admin::Join { group: 1, replica: 4, kind: Kind::Voter }));
        assert_eq!(ask("REMOVE 1 4"), Ok(Admin::Remove { group: 1, replica: 4 }));
        assert_eq!(ask("REPLACE 1 3 4 5"), Ok(Admin::Replace { group: 1, old: 3, new: 4, host: 5 }));
        assert_eq!(ask("snapshot 2"), Ok(Admin::Snapshot { group: 2, export_to: None }));
        assert_eq!(ask("EXPORT 2 /a"), Ok(Admin::Snapshot { group: 2, export_to: Some("/a".into()) }));
        assert_eq!((ask("INFO"), ask("INFO 2")), (Ok(Admin::Info { group: None }), Ok(Admin::Info { group: Some(2) })));
    }

    #[test]
    fn what_is_no_request_is_told_what_there_is() {
        for line in ["", "GO", "MEMBERS", "ADD 1 2", "ADD 1 2 3 LEADER", "REPLACE 1 2 3"] {
            assert_eq!(ask(line), Err(USAGE.to_owned()), "{line}");
        }
        assert_eq!(ask("MEMBERS x"), Err("ERR 'x' is not a number".to_owned()));
    }
}
