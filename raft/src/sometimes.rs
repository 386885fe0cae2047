//! Points that a search through chance must come past: rare states in which bugs hide.
//!
//! `sometimes!("name")` stands where such a state is met. The simulator counts how often, and a campaign that leaves one of them
//! out has not looked there, however many seeds it ran. Names are checked when the code is compiled. Without the feature
//! `sometimes` nothing is counted, and nothing is in the build.

/// Every point: its name, and what happens there.
pub const ALL: &[(&str, &str)] = &[
    ("leader-with-a-hung-disk-makes-way", "a leader whose disk hangs steps down for others who can elect"),
    ("leader-misses-its-quorum", "a leader finds that no majority answered for an election timeout"),
    ("campaign-waits-for-a-change", "a replica may not campaign: a committed membership change is not in effect here"),
    ("pre-vote-lost", "a majority would not vote for a replica that asked first"),
    ("election-lost", "a majority voted against a candidate"),
    ("elected-though-no-voter", "a replica that votes no more is elected to bring the others up to date"),
    ("elected-in-a-joint-configuration", "a leader is elected by both halves of a joint configuration"),
    ("elected-with-an-uncommitted-tail", "a new leader has entries that it does not know to be committed"),
    ("leader-deposed-by-a-later-term", "a leader learns of a later term"),
    ("candidate-begins-anew", "a candidate goes to a later term"),
    ("candidate-ignored", "a candidate of a later term gets no attention"),
    ("stale-leader-is-told-the-term", "a leader of an earlier term speaks to one of a later"),
    ("vote-refused-for-an-older-log", "a candidate's log is older than the voter's"),
    ("vote-refused-for-another", "the vote of this term is given to somebody else"),
    ("non-voter-helps-out", "one that votes no more is to campaign for those who need its log"),
    ("transfer-target-campaigns", "a replica is told to campaign at once"),
    ("append-of-what-is-committed", "an append is late, or sent again"),
    ("append-before-the-first-snapshot", "an append reaches a replica that knows no membership"),
    ("append-beyond-the-log", "an append follows an entry that is missing"),
    ("append-after-a-conflict", "an append follows an entry of another term"),
    ("append-without-room", "a follower has no memory for an append"),
    ("conflicting-tail-cut", "a follower removes entries that are not its leader's"),
    ("tail-cut-while-being-written", "a tail is cut while a write is under way"),
    ("commit-beyond-the-verified", "a leader's commit index goes beyond what is known to be its log"),
    ("stale-snapshot", "a snapshot comes of what is committed already"),
    ("snapshot-of-what-the-log-has", "a snapshot comes of what the log has uncommitted"),
    ("install-of-a-joint-configuration", "a snapshot with a joint configuration is installed"),
    ("install-while-writes-are-under-way", "a snapshot replaces a log of which a part is being written"),
    ("install-over-a-log", "a snapshot replaces a log that is not empty"),
    ("written-entries-overwritten-since", "a write completes of entries that were overwritten meanwhile"),
    ("woken-from-silence", "a silent replica wakes"),
    ("woken-while-falling-silent", "a replica wakes that was asking or had agreed to fall silent"),
    ("leaders-host-suspected-in-silence", "a silent replica hears that its leader's host is suspected"),
    ("one-left-behind-is-back", "the host returns of a member that was left out when the group fell silent"),
    ("fetched-what-is-no-longer-next", "entries read for a follower start where it does not stand any more"),
    ("fetched-what-was-compacted", "entries to be read for a follower are gone"),
    ("follower-fed-from-disk", "a follower needs entries that are not in memory"),
    ("earlier-terms-entries-wait", "a majority has entries of an earlier term only"),
    ("follower-has-room-again", "a follower that had no memory has some"),
    ("follower-needs-its-snapshot-no-more", "a follower that is being sent a snapshot is brought up to date otherwise"),
    ("stale-rejection", "a rejection comes of what was acknowledged since"),
    ("read-before-the-terms-first-commit", "a read reaches a leader that committed nothing in its term"),
    ("read-round-cut-short", "a leader stops leading with reads to confirm"),
    ("forwarded-read-given-up", "a follower's question for an index loses its leader"),
    ("transfer-timed-out", "a transfer takes longer than an election timeout"),
    ("preferred-replica-takes-over", "leadership is handed to the preferred replica"),
    ("proposal-during-a-transfer", "a proposal reaches a leader that hands over"),
    ("forwarded-proposals-refused", "forwarded proposals reach one that can't take them"),
    ("change-refused-while-another-is-under-way", "a membership change is proposed while another is under way"),
    ("leader-enters-a-joint-configuration", "a joint configuration takes effect at a leader"),
    ("leader-removed", "a leader's own removal takes effect"),
    ("learner-promoted-by-itself", "a leader promotes a member that caught up"),
    ("removed-replica-asks-and-is-told", "a replica that does not know of its removal asks for votes"),
    ("forwarded-chunk-refused", "a leader refuses what was forwarded to it, and the clients are told"),
    ("forwarded-run-comes-after-it-was-closed", "a forwarded run reaches its leader when nobody waits for it any more"),
    ("forwarded-chunk-lost", "a leader goes on leading without what was forwarded to it, and the clients are told"),
    ("forwarded-chunk-outlived-by-a-term", "an entry of a later term is committed before forwarded proposals are"),
    ("chunk-covered-by-an-install", "a snapshot is installed over proposals whose clients wait"),
    ("chunk-cut-by-a-later-term", "a later term's entry is committed before the place where a client's was"),
    ("chunk-overwritten-by-another-term", "another term's entry is committed where a client's was"),
    ("proposals-wait-for-the-disk", "a host takes no proposals before its disk is done with those that it has"),
    ("newest-words-sealed-again", "a silent group's newest words are written again, so that their segment may go"),
    ("save-overtaken-by-an-install", "a save ends behind a snapshot that was installed meanwhile"),
    ("payload-unpacked", "a compressed command is applied"),
    ("snapshot-installed", "the record of an installed snapshot is durable"),
    ("stream-replaced-by-a-newer", "a snapshot's transfer is given up for a newer one's"),
    ("snapshot-transfer-stalled", "a snapshot's transfer does not move"),
    ("receiver-without-room", "a host receives as many snapshots as it may, and is asked again"),
    ("store-failed-under-a-host", "a host's store fails and its groups stop"),
    ("host-with-another-store", "a host comes back with another store than it had"),
    (
        "restarted-host-is-asked-what-it-has",
        "a host that starts anew is not believed before it shows that it has what it had",
    ),
    ("host-rolled-back", "a host learns that its directory is an older copy"),
    ("host-wiped", "a host comes back with an empty directory"),
    ("wiped-host-runs-as-before", "a host comes back with an empty directory and the ids that its replicas had"),
    ("host-refused-as-rotten", "a store is not opened because its journal is damaged"),
    ("host-refused-as-an-older-copy", "a store is not opened because it was found to be an older copy"),
    ("snapshot-file-rots", "a byte of a snapshot changes on a disk"),
    ("older-snapshot-used", "the newest snapshot is damaged, and an older one and the log take its place"),
    ("state-lost-with-its-snapshots", "no snapshot of a replica is whole, and it asks its leader for one"),
    ("group-imported", "a group goes on from an export"),
    ("import-with-a-straggler", "a member that an import left out comes back and is told so"),
    ("import-died-half-way", "an import dies, and is made again"),
    ("group-quarantined-as-rotten", "a store opens without a group whose frame is damaged"),
    ("quarantined-replica-replaced", "of a host with damage only what is quarantined is replaced"),
    ("quarantined-replica-not-known", "the damaged frame of a group may have begun its replica"),
    ("rotten-host-opened", "a store is opened whose journal is damaged where nothing needs it"),
    ("disk-has-little-room", "a host refuses clients' commands because its disk is nearly full"),
    ("disk-has-no-room-for-entries", "a host refuses other leaders' entries because its disk is nearly full"),
    ("woken-by-a-digest", "two hosts find that they are silent differently"),
    ("leaders-host-started-anew", "a silent follower hears that its leader's host was started anew"),
    ("told-that-a-replica-is-gone", "a host tells that a replica does not run there"),
    ("reopened-at-a-torn-record", "a journal's last record is torn"),
    ("reopened-at-a-torn-footer", "a journal's last footer is torn"),
    ("reopened-with-a-prepared-segment", "a journal is reopened whose next segment had its header already"),
    ("segment-of-two-openings-replayed", "a segment holds records of several openings of the store"),
    ("segment-file-recycled-often", "a journal's files have been used over and over"),
    ("batch-split-over-records", "a batch is too large for one record"),
    ("settling-taken-back", "a pass of settling does not come to its end"),
    ("settled-in-place", "entries are kept where they are in the journal"),
    ("several-segments-settled-at-once", "a pass settles more than one segment"),
    ("clock-set-on", "a host's clock jumps on"),
    ("clock-set-back", "a host's clock stands still because it was set back"),
    ("process-suspended", "all threads of a host stop for a while"),
    ("connection-reset-in-mid-frame", "frames are lost because their connection breaks"),
    ("slow-link-has-no-room", "a slow link's queue is full"),
    ("clients-refused-for-memory", "a host's memory is full of log, and its clients are refused"),
    ("appends-refused-for-memory", "a host's memory is full of log, and leaders elsewhere are refused"),
    ("archived-segments-freed", "segments that were kept are needed no more"),
];

/// The number of a point. Evaluated when the code is compiled, where a name that is not in [`ALL`] is an error.
pub const fn number(name: &str) -> usize {
    let mut at = 0;
    while at < ALL.len() {
        if equal(ALL[at].0.as_bytes(), name.as_bytes()) {
            return at;
        }
        at += 1;
    }
    panic!("no such point");
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// Whether points are counted in this build.
pub const COUNTED: bool = cfg!(feature = "sometimes");

#[cfg(feature = "sometimes")]
static COUNTS: [std::sync::atomic::AtomicU64; ALL.len()] = [const { std::sync::atomic::AtomicU64::new(0) }; ALL.len()];

/// A point is met.
#[inline(always)]
pub fn met(number: usize) {
    #[cfg(feature = "sometimes")]
    COUNTS[number].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let _ = number;
}

/// How often each point was met in this process, in the order of [`ALL`].
#[cfg(feature = "sometimes")]
pub fn counts() -> Vec<u64> {
    COUNTS.iter().map(|count| count.load(std::sync::atomic::Ordering::Relaxed)).collect()
}

/// Marks a point of [`ALL`](crate::sometimes::ALL), met always or under a condition. The condition is not looked at in builds that
/// count nothing.
#[macro_export]
macro_rules! sometimes {
    ($name:literal) => {
        $crate::sometimes::met(const { $crate::sometimes::number($name) })
    };
    ($condition:expr, $name:literal) => {
        if $crate::sometimes::COUNTED && $condition {
            $crate::sometimes!($name);
        }
    };
}
