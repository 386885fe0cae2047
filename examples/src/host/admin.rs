//! What an operator asks of a host: carried out through the public API.

use super::KvHost;
use crate::kv::Kv;
use crate::server::admin::{Admin, Answering, Kind, Said};
use longboat::{
    ChangeError, Changed, ConfigChange, GroupConfig, GroupId, HostId, Membership, Pending, Replica, ReplicaId,
    ReplicaKind, ReplicaStart, RequestError, SnapshotOptions, SnapshotOutcome, TransferError,
};
use std::time::Duration;

impl KvHost {
    pub(super) fn admin(&self, admin: Admin, timeout: Duration) -> Answering {
        match self.begin(admin, timeout) {
            Ok(answering) => answering,
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn replica(&self, group: u64) -> Result<Replica, String> {
        self.host.replica(GroupId(group)).map_err(|error| failed(&error))
    }

    fn begin(&self, admin: Admin, timeout: Duration) -> Result<Answering, String> {
        let changes = |group, change| changed(self.replica(group)?.change_membership(change, timeout));
        match admin {
            Admin::Members { group } => {
                let replica = self.replica(group)?;
                // As of now, wherever it is asked: after an index that the leader names.
                let pending = replica.read_index(timeout).map_err(|error| failed(&error))?;
                Ok(Box::pin(async move {
                    pending.await.map_err(|error| failed(&error))?;
                    Ok(Said::List(members(&replica)))
                }))
            }
            Admin::Transfer { group, to } => {
                let pending = self.replica(group)?.transfer_leader(ReplicaId(to), timeout);
                let pending = pending.map_err(|error| failed(&error))?;
                Ok(Box::pin(async move {
                    let done = pending.await.map_err(|error| failed(&error))?;
                    Ok(Said::Line(format!("OK leader {} in term {}", done.leader, done.term)))
                }))
            }
            Admin::Add { group, replica, host, kind } => {
                let (replica, host, change) = (ReplicaId(replica), HostId(host), ConfigChange::new());
                changes(
                    group,
                    match kind {
                        Kind::Voter => change.add_voter(replica, host),
                        Kind::NonVoting => change.add_non_voting(replica, host),
                        Kind::Witness => change.add_witness(replica, host),
                    },
                )
            }
            Admin::Remove { group, replica } => changes(group, ConfigChange::new().remove(ReplicaId(replica))),
            Admin::Replace { group, old, new, host } => {
                let (old, new, host) = (ReplicaId(old), ReplicaId(new), HostId(host));
                changed(self.replica(group)?.replace_replica(old, new, host, timeout))
            }
            Admin::Join { group, replica, kind } => {
                let at = usize::try_from(group).ok().and_then(|g| g.checked_sub(1));
                let at =
                    at.filter(|at| *at < self.groups.read().len()).ok_or_else(|| format!("ERR no group {group}"))?;
                let config = GroupConfig { replica: ReplicaId(replica), ..self.config(GroupId(group)) };
                if kind == Kind::Witness {
                    self.host.start_witness(ReplicaStart::Join, config).map_err(|error| format!("ERR {error}"))?;
                } else {
                    let started = self.host.start_replica(ReplicaStart::Join, config, Kv::default);
                    self.groups.write()[at] = Some(started.map_err(|error| format!("ERR {error}"))?);
                }
                Ok(Box::pin(std::future::ready(Ok(Said::Line("OK".to_owned())))))
            }
            Admin::Snapshot { group, export_to } => {
                let replica = self.replica(group)?;
                let options = export_to.map_or_else(SnapshotOptions::default, SnapshotOptions::export_to);
                // Of all that was acknowledged before, wherever it was: after an index that the leader names.
                let pending = replica.read_index(timeout).map_err(|error| failed(&error))?;
                Ok(Box::pin(async move {
                    pending.await.map_err(|error| failed(&error))?;
                    let saved = replica.request_snapshot(options, timeout).map_err(|error| failed(&error))?.await;
                    Ok(Said::Line(match saved.map_err(|error| failed(&error))? {
                        SnapshotOutcome::Saved { index } => format!("OK saved at index {index}"),
                        SnapshotOutcome::Exported { index, dir } => format!("OK index {index} to {}", dir.display()),
                        other => format!("OK {other:?}"),
                    }))
                }))
            }
            Admin::Info { group: Some(group) } => {
                let info = self.replica(group)?.info();
                let leader = info.leader.map_or(0, |r| r.0);
                let text = format!(
                    "group:{group}\r\nreplica:{}\r\nleader:{leader}\r\nterm:{}\r\ncommit:{}\r\napplied:{}\r\nfirst:{}\r\n\
                     last:{}\r\nsnapshot:{}\r\n",
                    info.replica,
                    info.term,
                    info.commit,
                    info.applied,
                    info.first_index,
                    info.last_index,
                    info.snapshot_index
                );
                Ok(Box::pin(std::future::ready(Ok(Said::Text(text)))))
            }
            Admin::Info { group: None } => {
                let mut text = String::new();
                crate::server::Shards::info(self, Some("longboat"), &mut text);
                Ok(Box::pin(std::future::ready(Ok(Said::Text(text)))))
            }
        }
    }
}

/// The text of an error reply. As with commands on keys: `TRYAGAIN` had no effect and may succeed a moment later, `UNKNOWN` may have
/// had it, and `ERR` stays refused.
fn failed(error: &RequestError) -> String {
    let kind = match error {
        // A change that was answered is in effect where it was asked for. The leader, or its successor, may be a moment behind.
        RequestError::ConfigRefused(ChangeError::InFlight | ChangeError::AlreadyJoint) => "TRYAGAIN",
        RequestError::TransferFailed(
            TransferError::Busy(_) | TransferError::LostLeadership | TransferError::TooFarBehind { .. },
        ) => "TRYAGAIN",
        RequestError::TransferFailed(TransferError::TimedOut) => "UNKNOWN",
        RequestError::ConfigRefused(_) | RequestError::TransferFailed(_) | RequestError::NotHere(_) => "ERR",
        error if error.may_have_applied() => "UNKNOWN",
        _ => "TRYAGAIN",
    };
    format!("{kind} {error}")
}

fn changed(pending: Result<Pending<Changed>, RequestError>) -> Result<Answering, String> {
    let pending = pending.map_err(|error| failed(&error))?;
    Ok(Box::pin(async move {
        let done = pending.await.map_err(|error| failed(&error))?;
        Ok(Said::Line(format!("OK change {}", done.change_id)))
    }))
}

/// A line a member, and one for the membership itself.
fn members(replica: &Replica) -> Vec<String> {
    let (leader, membership) = (replica.leader().map(|l| l.replica), replica.membership());
    let mut lines = vec![head(&membership)];
    for member in replica.members() {
        let kind = match member.kind {
            ReplicaKind::Voter => "voter",
            ReplicaKind::NonVoting => "nonvoting",
            ReplicaKind::Witness => "witness",
        };
        let leads = if leader == Some(member.replica) { " leader" } else { "" };
        lines.push(format!("replica {} on host {} {kind}{leads}", member.replica, member.host));
    }
    lines
}

fn head(membership: &Membership) -> String {
    let joint = if membership.is_joint() { " joint" } else { "" };
    format!("change {}{joint}", membership.change_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use longboat::Index;

    #[test]
    fn a_refusal_that_passes_says_so_and_one_that_stays_does_too() {
        let r = ReplicaId(4);
        let refused = |why| failed(&RequestError::ConfigRefused(why));
        let transfer = |why| failed(&RequestError::TransferFailed(why));
        assert!(refused(ChangeError::InFlight).starts_with("TRYAGAIN "));
        assert!(refused(ChangeError::AlreadyJoint).starts_with("TRYAGAIN "));
        assert!(refused(ChangeError::Removed(r)).starts_with("ERR "));
        assert!(transfer(TransferError::Busy(r)).starts_with("TRYAGAIN "));
        assert!(transfer(TransferError::LostLeadership).starts_with("TRYAGAIN "));
        assert!(transfer(TransferError::TooFarBehind { matched: Index(1), last: Index(9) }).starts_with("TRYAGAIN "));
        assert!(transfer(TransferError::TimedOut).starts_with("UNKNOWN "), "it may win yet");
        assert!(transfer(TransferError::NotAVoter(r)).starts_with("ERR "));
        assert!(failed(&RequestError::NotHere(GroupId(1))).starts_with("ERR "));
        assert!(failed(&RequestError::NoLeader).starts_with("TRYAGAIN "));
        assert!(failed(&RequestError::OutcomeUnknown).starts_with("UNKNOWN "));
    }
}
