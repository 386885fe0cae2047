//! Names: which are there, and which a power loss would leave.
//!
//! A change of a directory is durable once that directory was synced; until then a power loss keeps or drops it, each
//! change by itself. A name whose directory did not survive is gone with it.

use super::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

type Names = BTreeMap<PathBuf, Node>;

#[derive(Clone, Debug)]
enum Change {
    Make(PathBuf, Node),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, Node),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    names: Names,
    durable: Names,
    /// Changes of `names` that are not in `durable`, in order.
    pending: Vec<Change>,
}

/// This name and those below it: paths are sorted by their parts, so that they stand together.
fn below<'n>(names: &'n Names, path: &'n Path) -> impl Iterator<Item = &'n PathBuf> {
    let from = (Bound::Included(path), Bound::Unbounded);
    names.range::<Path, _>(from).map(|(p, _)| p).take_while(move |p| p.starts_with(path))
}

impl Change {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Make(path, node) => {
                names.insert(path.clone(), *node);
            }
            Self::Remove(path) => {
                for path in below(names, path).cloned().collect::<Vec<_>>() {
                    names.remove(&path);
                }
            }
            Self::Rename(from, to, node) => {
                let below: Vec<_> = below(names, from).cloned().collect();
                names.insert(to.clone(), *node);
                for path in below {
                    let node = names.remove(&path).expect("just listed");
                    let rest = path.strip_prefix(from).expect("it starts with it");
                    let path = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                    names.insert(path, node);
                }
            }
        }
    }

    /// Whether the change removed what had this path, or a directory above it. A directory that is there now was made later.
    fn takes_away(&self, dir: &Path) -> bool {
        match self {
            Self::Make(..) => false,
            Self::Remove(path) | Self::Rename(path, ..) => dir.starts_with(path),
        }
    }

    /// Whether syncing this directory makes the change durable.
    fn is_of(&self, dir: &Path) -> bool {
        match self {
            Self::Make(path, _) | Self::Remove(path) => path.parent() == Some(dir),
            Self::Rename(from, to, _) => from.parent() == Some(dir) || to.parent() == Some(dir),
        }
    }
}

impl Tree {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    /// A path without a parent is where everything starts; it is always there.
    fn is_root(path: &Path) -> bool {
        path.as_os_str().is_empty() || path.parent().is_none()
    }

    fn is_dir(&self, path: &Path) -> bool {
        Self::is_root(path) || self.names.get(path) == Some(&Node::Dir)
    }

    fn expect_parent(&self, path: &Path) -> io::Result<()> {
        let there = path.parent().is_some_and(|p| self.is_dir(p));
        if there { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        Self::is_root(path) || self.names.contains_key(path)
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(id)) => Ok(*id),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn make_file(&mut self, path: &Path, id: u64) -> io::Result<()> {
        self.expect_parent(path)?;
        if self.exists(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.change(Change::Make(path.to_path_buf(), Node::File(id)));
        Ok(())
    }

    pub(super) fn make_dirs(&mut self, path: &Path) -> io::Result<()> {
        if Self::is_root(path) || self.is_dir(path) {
            return Ok(());
        }
        if self.exists(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if let Some(parent) = path.parent() {
            self.make_dirs(parent)?;
        }
        self.change(Change::Make(path.to_path_buf(), Node::Dir));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = *self.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        self.expect_parent(to)?;
        if self.is_dir(to) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.change(Change::Rename(from.to_path_buf(), to.to_path_buf(), node));
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        self.change(Change::Remove(path.to_path_buf()));
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &Path) {
        if self.names.contains_key(path) {
            self.change(Change::Remove(path.to_path_buf()));
        }
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        if !self.is_dir(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = below(&self.names, path).filter(|p| p.parent() == Some(path));
        Ok(below.filter_map(|p| p.file_name().map(PathBuf::from)).collect())
    }

    /// Makes changes of this directory durable. Returns whether any of them took a name away.
    pub(super) fn sync(&mut self, dir: &Path) -> io::Result<bool> {
        if !self.is_dir(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // What went by this directory's name before it was made is not this directory: it must not take the names with it
        // that are made durable now.
        let mut took = false;
        for change in self.pending.extract_if(.., |c| c.takes_away(dir)) {
            change.apply(&mut self.durable);
            took = true;
        }
        for change in self.pending.extract_if(.., |c| c.is_of(dir)) {
            change.apply(&mut self.durable);
            took |= !matches!(change, Change::Make(..));
        }
        Ok(took)
    }

    pub(super) fn power_loss(&mut self, rng: &mut Rng, survives: u64) {
        for change in self.pending.drain(..) {
            if rng.chance(survives) {
                change.apply(&mut self.durable);
            }
        }
        let reachable = |path: &Path, names: &Names| {
            path.ancestors().skip(1).all(|a| Self::is_root(a) || names.get(a) == Some(&Node::Dir))
        };
        let all = self.durable.clone();
        self.durable.retain(|path, _| reachable(path, &all));
        self.names = self.durable.clone();
    }

    /// The files that a name leads to, now or after a power loss.
    pub(super) fn files(&self) -> BTreeSet<u64> {
        let pending = self.pending.iter().filter_map(|c| match c {
            Change::Make(_, node) | Change::Rename(_, _, node) => Some(node),
            Change::Remove(_) => None,
        });
        let nodes = self.names.values().chain(self.durable.values()).chain(pending);
        nodes.filter_map(|n| if let Node::File(id) = n { Some(*id) } else { None }).collect()
    }

    pub(super) fn file_names(&self) -> Vec<PathBuf> {
        self.names.iter().filter(|(_, n)| matches!(n, Node::File(_))).map(|(p, _)| p.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_removal_does_not_take_newer_durable_names_with_it() {
        let mut tree = Tree::default();
        let (dir, file, done) = (Path::new("a/x.tmp"), Path::new("a/x.tmp/f"), Path::new("a/x"));
        tree.make_dirs(dir).expect("made");
        tree.sync(Path::new("")).expect("synced");
        tree.sync(Path::new("a")).expect("synced");
        tree.remove_dir(dir);
        tree.make_dirs(dir).expect("made");
        tree.make_file(file, 1).expect("made");
        tree.sync(dir).expect("synced");
        tree.rename(dir, done).expect("renamed");
        tree.sync(Path::new("a")).expect("synced");
        tree.power_loss(&mut Rng(1), 0);
        assert_eq!(tree.file(Path::new("a/x/f")).expect("it was synced before it got its name"), 1);
    }
}
