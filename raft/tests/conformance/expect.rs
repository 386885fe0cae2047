//! What the scripts expect, taken apart: sections per node, and in them hard states, entries and messages.

use crate::compare::{KINDS, Sent};

/// What one command's output says of one node, in order.
#[derive(Debug, Default)]
pub struct Section {
    pub node: u64,
    pub hard_state: Option<(u64, u64, u64)>,
    pub committed: Vec<(u64, u64, String)>,
    /// Messages that leave the node.
    pub sent: Vec<Sent>,
    /// The batches that an append thread processes.
    pub processed: Vec<Processed>,
}

/// One batch that an append thread processes.
#[derive(Clone, Debug, Default)]
pub struct Processed {
    pub term: u64,
    pub vote: u64,
    pub entries: Vec<(u64, u64, String)>,
    pub has_snapshot: bool,
    /// Whether messages to other nodes wait for it.
    pub has_responses: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Other,
    Entries,
    Committed,
    Messages,
    Processing,
    Responses,
}

/// Takes output apart. `only` is the node that it is about when it has no sections of its own.
pub fn sections(output: &str, only: Option<u64>) -> Result<Vec<Section>, String> {
    let mut sections: Vec<Section> = Vec::new();
    if let Some(node) = only {
        sections.push(Section { node, ..Section::default() });
    }
    let lines: Vec<&str> = output.lines().collect();
    let (mut at, mut part) = (0, Part::Other);
    while at < lines.len() {
        let line = lines[at].trim_start();
        at += 1;
        if let Some(rest) = line.strip_prefix("> ") {
            let node = crate::datadriven::number(rest.split(' ').next().unwrap_or_default())?;
            sections.push(Section { node, ..Section::default() });
            // Messages that arrive were seen when they left.
            part = Part::Other;
            continue;
        }
        let Some(section) = sections.last_mut() else {
            continue;
        };
        match line {
            "Entries:" => part = Part::Entries,
            "CommittedEntries:" => part = Part::Committed,
            "Messages:" => part = Part::Messages,
            "Processing:" => part = Part::Processing,
            "Responses:" => part = Part::Responses,
            _ if line.starts_with("HardState ") => section.hard_state = Some(hard_state(line)?),
            _ if part == Part::Committed && entry(line).is_some() => section.committed.extend(entry(line)),
            _ if is_message(line) => {
                let raw = gather(line, &lines, &mut at);
                take_message(section, part, &raw)?;
            }
            _ => {}
        }
    }
    Ok(sections)
}

/// A message with its continuation lines.
struct Raw {
    line: String,
    entries: Vec<(u64, u64, String)>,
    snapshot: String,
}

fn gather(line: &str, lines: &[&str], at: &mut usize) -> Raw {
    let mut raw = Raw { line: line.to_owned(), entries: Vec::new(), snapshot: String::new() };
    // Responses named with a batch that is only queued leave later: they are skipped with their brackets.
    let responses = line.ends_with("Responses:[");
    let head = line.split(" Responses:[").next().unwrap_or(line).to_owned();
    if let Some(inline) = head.split_once("Entries:[").map(|(_, e)| e) {
        match inline.strip_suffix(']') {
            Some(one) => raw.entries.extend(entry(one)),
            None if inline.is_empty() => {
                while *at < lines.len() && !lines[*at].trim_start().starts_with(']') {
                    raw.entries.extend(entry(lines[*at].trim_start()));
                    *at += 1;
                }
                let closing = lines.get(*at).copied().unwrap_or_default();
                *at += 1;
                if closing.ends_with("Responses:[") {
                    skip_responses(lines, at);
                }
            }
            None => {}
        }
    }
    if lines.get(*at).is_some_and(|l| l.trim_start().starts_with("Snapshot: ")) {
        raw.snapshot = lines[*at].trim_start().to_owned();
        *at += 1;
    }
    if responses {
        skip_responses(lines, at);
    }
    raw.line = head;
    raw
}

fn skip_responses(lines: &[&str], at: &mut usize) {
    let mut depth = 1;
    while *at < lines.len() && depth > 0 {
        let line = lines[*at].trim();
        depth += i32::from(line.ends_with('[')) - i32::from(line.starts_with(']'));
        *at += 1;
    }
}

fn take_message(section: &mut Section, part: Part, raw: &Raw) -> Result<(), String> {
    let (from, to) = ends(&raw.line);
    match part {
        Part::Processing if to == "AppendThread" => {
            section.processed.push(Processed {
                term: field(&raw.line, "Term:")?.unwrap_or(0),
                vote: field(&raw.line, "Vote:")?.unwrap_or(0),
                entries: raw.entries.clone(),
                has_snapshot: !raw.snapshot.is_empty(),
                has_responses: false,
            });
        }
        Part::Messages | Part::Responses if local(from) || local(to) || from == to => {}
        Part::Messages | Part::Responses => {
            let sent = message(raw)?;
            if part == Part::Responses
                && let Some(batch) = section.processed.last_mut()
            {
                batch.has_responses = true;
            }
            section.sent.push(sent);
        }
        _ => {}
    }
    Ok(())
}

fn local(end: &str) -> bool {
    end.ends_with("Thread")
}

fn ends(line: &str) -> (&str, &str) {
    line.split(' ').next().and_then(|e| e.split_once("->")).unwrap_or_default()
}

fn is_message(line: &str) -> bool {
    let mut words = line.split(' ');
    words.next().is_some_and(|w| w.contains("->")) && words.next().is_some_and(|w| w.starts_with("Msg"))
}

/// The message of a line such as `1->2 MsgApp Term:1 Log:1/10 Commit:10 Entries:[1/11 EntryNormal ""]`.
fn message(raw: &Raw) -> Result<Sent, String> {
    let line = raw.line.as_str();
    let (from, to) = ends(line);
    let kind = line.split(' ').nth(1).unwrap_or_default();
    let kind = KINDS.iter().find(|k| **k == kind).ok_or_else(|| format!("message {kind} is not known"))?;
    let log = line.split("Log:").nth(1).and_then(|l| l.split(' ').next()).and_then(|l| l.split_once('/'));
    let (log_term, index) = log.ok_or_else(|| format!("no log position: {line}"))?;
    let hint = line.split("Rejected (Hint: ").nth(1).and_then(|h| h.split(')').next());
    Ok(Sent {
        from: hexadecimal(from)?,
        to: hexadecimal(to)?,
        kind,
        term: field(line, "Term:")?.unwrap_or(0),
        log_term: crate::datadriven::number(log_term)?,
        index: crate::datadriven::number(index)?,
        commit: field(line.split("Entries:").next().unwrap_or_default(), " Commit:")?.unwrap_or(0),
        rejected: hint.map(crate::datadriven::number).transpose()?,
        entries: raw.entries.clone(),
        snapshot: raw.snapshot.clone(),
    })
}

/// The ends of a message are printed in hexadecimal.
fn hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| format!("{text:?} is no node"))
}

fn field(line: &str, name: &str) -> Result<Option<u64>, String> {
    let value = line.split(name).nth(1).and_then(|v| v.split(' ').next());
    value.map(crate::datadriven::number).transpose()
}

fn hard_state(line: &str) -> Result<(u64, u64, u64), String> {
    let get = |name| field(line, name).map(|v| v.unwrap_or(0));
    Ok((get("Term:")?, get("Vote:")?, get("Commit:")?))
}

/// An entry such as `1/11 EntryNormal "x"`. The two kinds of config entry count as one.
pub fn entry(line: &str) -> Option<(u64, u64, String)> {
    let (place, text) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    let (term, index) = place.split_once('/')?;
    let text = text.replace("EntryConfChangeV2", "EntryConfChange");
    if !text.starts_with("Entry") {
        return None;
    }
    Some((index.parse().ok()?, term.parse().ok()?, text.trim().to_owned()))
}
