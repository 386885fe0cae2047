//! The members of a group as they are written on the command line.

use longboat::{FirstMembers, HostId, ReplicaId};
use std::collections::BTreeSet;

/// Reads `ID=HOST[:witness|:non-voting],..`.
pub(crate) fn parse(text: &str) -> Result<FirstMembers, String> {
    let mut seen = BTreeSet::new();
    text.split(',').try_fold(FirstMembers::default(), |members, one| {
        let wrong = || format!("'{one}' is not ID=HOST, ID=HOST:witness or ID=HOST:non-voting");
        let (place, kind) = one.split_once(':').unwrap_or((one, ""));
        let (replica, host) = place.split_once('=').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(wrong);
        let (replica, host) = (ReplicaId(number(replica)?), HostId(number(host)?));
        if !seen.insert(replica) {
            return Err(format!("replica {replica} is there twice"));
        }
        match kind {
            "" => Ok(members.and_voter(replica, host)),
            "witness" => Ok(members.and_witness(replica, host)),
            "non-voting" => Ok(members.and_non_voting(replica, host)),
            _ => Err(wrong()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_with_their_kinds() {
        let expected = FirstMembers::voters([(ReplicaId(1), HostId(1)), (ReplicaId(4), HostId(7))])
            .and_witness(ReplicaId(5), HostId(2))
            .and_non_voting(ReplicaId(6), HostId(3));
        assert_eq!(parse("1=1,4=7,5=2:witness,6=3:non-voting"), Ok(expected));
    }

    #[test]
    fn what_is_no_member_is_named() {
        for wrong in ["", "1", "1=", "=1", "0=1", "1=0", "1=1:leader", "1=1,,2=2", "a=1"] {
            assert!(parse(wrong).is_err_and(|e| e.contains("is not ID=HOST")), "{wrong}");
        }
        assert_eq!(parse("1=1,1=2"), Err("replica 1 is there twice".to_owned()));
    }
}
