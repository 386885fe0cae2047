//! Terms, votes and leadership: paper sections 5.1, 5.2 and 5.4.1.

use crate::cluster::*;
use longboat_raft::*;

#[test]
fn a_group_elects_a_leader_and_replicates() {
    let mut c = Cluster::new(&[1, 2, 3]);
    c.elect(1);
    c.write(1, &["a", "b"]);
    c.write(1, &["c"]);
    for n in 1..=3 {
        assert_eq!(c.node(n).payloads(), ["a", "b", "c"]);
        assert_eq!(c.core(n).commit(), Index(4));
        assert_eq!(c.core(n).leader(), Some(id(1)));
    }
}

#[test]
fn somebody_leads_soon_when_only_time_passes() {
    let mut c = Cluster::new(&[1, 2, 3, 4, 5]);
    c.pass(20 * ELECTION);
    assert_eq!(c.leaders().len(), 1);
}
