//! The registry of planted bugs: deliberate violations of safety rules, for tests of the tests.
//!
//! Each rule and guard has one, next to its code: `if plant::is("name") { .. }`. Without the feature `plant` the
//! question is a constant `false` and the planted code is not in the build.

/// Every planted bug: its name, and what it breaks.
pub const ALL: &[(&str, &str)] = &[
    ("ack-before-durable", "append and vote answers leave before what they rest on is durable"),
    ("duplicate-append-acked-in-flight", "an append whose entries are still in flight is acknowledged at once"),
    ("request-vote-before-durable", "RequestVote leaves before the candidate's term and own vote are durable"),
    ("vote-lost-on-recycle", "a group's newest term and vote are dropped when their journal segment is recycled"),
    ("reopen-without-rewrite", "a reopened journal trusts its last record without writing and syncing it again"),
    (
        "former-transfer-ends-a-later-one",
        "the end of an earlier transfer to a follower is taken for that of the later one",
    ),
    (
        "recorded-snapshot-discarded",
        "files that a durable record names go because a leader sent the same snapshot in vain",
    ),
    ("chunk-from-anybody", "a chunk of a snapshot is taken from a host that does not send that"),
    ("stop-taken-for-a-failure", "a recovery that ends because its replica stops counts as a failed state machine"),
    (
        "install-without-files",
        "a replica without state begins again from a snapshot that was refused, so that it has no files",
    ),
    ("storage-opened-while-in-use", "storage is opened although a former life of the replica may be at work on it"),
    ("started-while-closing", "a replica whose storage was opened while its host closed is started"),
    ("save-behind-its-storage", "a state is saved or sent as one of an earlier index than it is of"),
    ("last-command-after-its-snapshot", "a snapshot asks for commands after its index that storage has"),
    ("wait-without-state", "a replica that lost its state says that it has applied what it was handed before"),
    ("panic-leaves-its-group", "a broken assertion over one group stops its apply worker"),
    ("effects-joined-over-a-cut", "what a segment's footer says of a group leaves out where its log was cut"),
    ("archive-recycled-before-flush", "an archived segment's file is used again before what let it go is durable"),
    ("archived-segment-lost-from-list", "a settled segment that is kept is not in the list of those that are"),
    ("remnants-dropped", "what is left of a nearly empty archived segment is let go instead of moved"),
    ("unmovable-segment-chosen-again", "an archived segment that can't be emptied is chosen again and again"),
    ("moved-rows-hide-the-rest", "what was moved out of an archived segment hides what is still to be moved"),
    ("archived-files-stay-open", "files of archived segments that nobody reads stay open"),
    ("sums-without-opening", "checksums of a record are the same for every opening of a store"),
    ("commit-old-term-by-counting", "a leader commits entries of an earlier term by counting replicas"),
    ("aba-token", "a completed write marks overwritten indexes as durable without regard to later tail cuts"),
    ("apply-before-durable", "committed entries are applied before they are durable locally"),
    ("own-log-never-decides", "a leader whose own log is all that a majority lacks is not told when it is durable"),
    (
        "ack-asks-for-no-disk",
        "an acknowledgement that came before the own disk was done does not have the worker woken for it",
    ),
    ("durable-without-a-wake", "a worker whose replicas wait for the disk is not woken when it is done"),
    (
        "quiesce-without-match",
        "a group falls silent although a follower's log or commit index differs from the leader's",
    ),
    ("quiesce-before-commit-durable", "a replica falls silent before its commit index is durable"),
    ("started-before-a-tombstone", "a group's new replica starts while the data of the one before it is being removed"),
    (
        "word-of-the-gone-never-ages",
        "a leader is silent without a member whose host has started something since it was gone",
    ),
    (
        "gone-believed-of-anybody",
        "a host's word that a replica has stopped counts although the replica lives elsewhere",
    ),
    ("beats-while-the-disk-hangs", "a host whose disk hangs goes on beating"),
    (
        "relief-ends-at-the-bound",
        "replicas let go of log in memory down to the bound, though clients are refused until it is well below",
    ),
    ("refused-without-a-look", "a client that is refused for want of memory has no worker look for some"),
    (
        "sender-from-anywhere",
        "a message counts although its sender lives on another host than the one that it came from",
    ),
    ("superseded-believed-of-anybody", "a replica stops by the word of any host that its history has ended"),
    ("other-epoch-is-heard", "a message of another history of its group counts"),
    ("beat-hash-ignored", "hosts do not compare who is silent between them"),
    ("gone-notice-dropped", "a replica that stops on a live host tells nobody"),
    ("slow-rounds-suspect-nobody", "a host whose polling thread is always late suspects nobody"),
    ("suspected-leader-kept", "a follower whose leader's host is suspected goes on to believe in that leader"),
    ("pre-candidate-falls-silent", "a follower that agreed to fall silent does so although it campaigns meanwhile"),
    (
        "suspicion-missed-while-agreeing",
        "a follower that falls silent does not ask whether its leader's host is suspected",
    ),
    ("payload-to-witness", "a leader sends a witness the payloads of commands"),
    ("witness-ahead-of-leader", "a witness is sent entries that are not on the leader's own disk"),
    ("majority-of-witnesses", "witnesses alone may be a majority, which has no payloads"),
    ("stripped-run-taken", "a replica with a state machine takes a run whose payloads are gone"),
    ("witness-for-a-while", "a witness that was removed, or a replica that is named one, becomes the other kind"),
    ("witness-campaigns", "a witness campaigns and leads"),
    ("two-changes-in-flight", "a leader proposes a membership change before the one before it is in effect"),
    ("promoted-before-caught-up", "a non-voting member becomes a voter although it lags"),
    ("expected-term-ignored", "a proposal is appended in another term than the one that it was meant for"),
    ("transfer-to-a-laggard", "the target of a transfer is told to campaign before its log is complete"),
    ("any-answer-answers-a-transfer", "an answer to an earlier question for a transfer is taken for one to a later"),
    ("preferred-before-caught-up", "leadership is handed to the preferred replica although it lags"),
    ("preferred-without-back-off", "handing over to the preferred replica is tried again at once"),
    ("removed-told-too-early", "a removed replica is told to go before a majority knows that it was removed"),
    ("campaign-without-snapshot", "a replica that lost its snapshot campaigns"),
    ("campaign-behind-the-machine", "a replica campaigns with a log that ends before what its state machine has"),
    ("ack-after-losing-log", "a replica whose log lost entries goes on acknowledging"),
    ("vote-after-losing-log", "a replica whose log lost entries goes on voting"),
    (
        "lost-log-takes-old-snapshot",
        "a replica that lost entries goes on from a snapshot older than what it acknowledged",
    ),
    ("two-votes-in-a-term", "a replica votes for a second candidate in the same term"),
    ("vote-for-an-older-log", "a replica votes for a candidate whose log is older than its own"),
    ("own-vote-before-durable", "a candidate counts its own vote before that is durable"),
    ("own-entry-before-durable", "a leader counts its own entries before they are durable"),
    ("later-vote-counts", "a candidate counts a vote of a later term"),
    ("ack-of-an-earlier-term", "a leader counts an acknowledgement of an earlier term"),
    ("two-of-five", "less than a majority commits"),
    ("joint-by-one-half", "one half of a joint configuration decides alone"),
    ("leave-joint-twice", "a joint configuration is left twice"),
    ("new-leader-ignores-tail", "a new leader does not count its uncommitted tail as pending changes"),
    ("campaign-before-change-in-effect", "a replica campaigns with a committed change not in effect"),
    ("commit-not-saved", "the commit index is not saved with what is made durable"),
    ("silent-leader-is-heard", "who can't campaign believes in a silent leader for ever, and votes for nobody"),
    ("leader-with-a-hung-disk-stays", "a leader whose disk hangs goes on leading although others could"),
    ("promotion-forgets-the-store", "a promotion overwrites what is recorded of the member with what it does not say"),
    ("given-up-reads-kept", "questions for an index that nobody waits for any more are kept"),
    ("removed-id-returns", "a removed id becomes a member again"),
    ("removed-is-heard", "a removed replica's later term disturbs who hears its leader"),
    ("non-voter-unseats", "a candidate that is no voter unseats a leader"),
    ("disruptor-is-helped", "check-quorum does not keep votes back while the leader is heard"),
    ("pre-candidate-not-told", "a pre-candidate of an earlier term does not learn the term"),
    ("transfer-asks-first", "the target of a transfer asks for pre-votes, which nobody gives"),
    ("append-without-predecessor", "an append goes out although its predecessor's term is not known"),
    ("term-zero-matches", "an append after a place of term zero matches"),
    ("commit-past-the-known", "a follower commits entries that it does not know to be the leader's"),
    ("heartbeat-commits-too-much", "a heartbeat names more than its addressee acknowledged"),
    ("lost-appends-forgotten", "a heartbeat's answer does not make the leader try again"),
    ("stale-rejection-moves-back", "a late rejection of what was acknowledged moves a member back"),
    ("snapshot-cuts-suffix", "a snapshot of what is in the log cuts off what comes after"),
    ("snapshot-ends-at-a-conflict", "a snapshot that ends at an entry of another term counts as known"),
    ("snapshot-demotes", "a snapshot makes a voter non-voting"),
    ("snapshot-without-voters", "a snapshot whose membership contradicts itself is installed"),
    ("restore-drops-joint", "a snapshot's joint configuration loses its outgoing half"),
    ("change-id-of-snapshot", "a restored membership's change id is the snapshot's index"),
    ("read-before-own-commit", "a leader serves reads before it committed in its own term"),
    ("read-joins-a-running-round", "a read is confirmed by a round that began before it arrived"),
    ("forward-of-another-term-appended", "a leader appends what was forwarded to the leader of another term"),
    ("closed-forward-appended", "a leader appends a forwarded run that it has closed"),
    ("closed-at-the-commit-index", "a leader that closes forwarded proposals forgets its uncommitted entries"),
    ("closed-by-another-terms-leader", "a leader closes proposals that were forwarded to the leader of another term"),
    ("closed-before-it-was-handed", "a closed proposal counts as lost before the log through its end was handed out"),
    ("cut-chunk-waits", "a chunk whose place a later leader's log does not reach is waited for"),
    (
        "life-from-the-clock",
        "two lives of a replica that begin at one moment of its host's clock name their proposals alike",
    ),
    ("closing-of-another-life", "what a leader says of another life's proposals is taken to be of this one's"),
    ("lost-forward-not-asked-about", "nobody asks what became of a forwarded proposal"),
    ("unsent-forward-waits", "a forwarded proposal that the transport did not take counts as under way"),
    ("any-answer-answers-a-read", "an answer to an earlier read is taken for one to a later"),
    ("waiters-counted-too-early", "who begins to wait while a result is written is not woken"),
    ("waker-forgotten", "a future that waits for a request is not woken"),
    ("resolved-twice", "a later outcome takes the place of the first"),
    ("session-retry-applied", "a command of a session that is in the log twice is applied twice"),
    ("evicted-session-applied", "a retry in a session that was evicted is applied"),
    ("sessions-unbounded", "no session is evicted"),
    ("session-use-not-counted", "the session that was registered first is evicted, however often it is used"),
    ("unknown-outcome-sent-again", "a client without a session sends a command again that may have been applied"),
    ("sessions-not-saved", "snapshots lack the table of sessions"),
    ("view-published-late", "clients learn of a result before lookups see its effect"),
    ("disk-entry-applied-twice", "an on-disk state machine is fed entries again that it has"),
    ("metadata-snapshot-trusted", "a snapshot without state restores storage that lacks entries"),
    ("storage-not-synced", "a snapshot without state is made although the storage is not durable"),
    ("storage-behind-its-snapshot", "a replica begins with storage that lacks entries which the log no longer has"),
    ("task-during-recover", "entries are applied while the state machine is being replaced"),
    ("older-snapshot-recovered", "a state machine is replaced by an older state than it has"),
    ("failed-stream-unreported", "a leader is not told that a snapshot did not arrive"),
    ("recover-before-record", "a state machine recovers from a snapshot whose record is not durable"),
    ("overtaken-save-recorded", "a save that an install has overtaken is recorded"),
    ("orphans-kept", "snapshots that no record names stay"),
    (
        "behind-stops-the-replica",
        "an older snapshot that lost storage can't go on from counts as a failed state machine",
    ),
    ("stream-beside-a-removal", "a snapshot is received or saved while one of its index is still being removed"),
    ("stray-snapshot-kept", "a snapshot that was received for a replica that has stopped stays"),
    ("overlap-puts-back-a-failure", "the index of a failed save is put back as that of the last request"),
    ("packed-though-longer", "a payload is compressed although that makes it longer"),
    ("unpacked-without-bound", "memory is taken for whatever a compressed payload says that it stands for"),
    ("hanging-group-not-busy", "a group whose call hangs is given more to do by the worker's next thread"),
    ("replaced-runner-goes-on", "a thread whose call hung goes on with the worker that another thread has taken over"),
    ("stream-while-streaming", "a second view of a state machine is sent while one is"),
    ("stale-stream-taken", "a snapshot of what is here already is received"),
    ("dropped-taken-for-refused", "what a receiver without room drops ends the transfer"),
    ("older-stream-replaces", "a stream of an older snapshot takes the place of a newer one"),
    ("invalid-file-taken", "a received file that is not what was announced is handed to raft"),
    ("install-without-its-log", "a leader lets go of the entries that a running install will need"),
    ("save-not-stopped", "a save goes on after a stop request"),
    ("block-checksum-ignored", "a block of a snapshot is recovered whatever its checksum"),
    ("damage-taken-for-a-version", "a snapshot whose version a flipped bit has changed stops its replica"),
    ("broken-not-set-aside", "a damaged snapshot keeps its name"),
    ("snapshot-slot-not-checked", "a snapshot request takes the place of one that waits"),
    ("witness-saves", "a witness is asked for a snapshot"),
    ("unchanged-state-saved", "a snapshot is saved although nothing was applied since the last request"),
    ("failed-save-counts", "a request after a failed save is ignored"),
    ("export-ignored", "an export is ignored when nothing was applied since the last request"),
    ("export-recorded", "an export is recorded as the group's own snapshot, and the log goes"),
    ("overhead-wraps", "a log that is shorter than what is to be kept is truncated"),
    ("compaction-index-not-checked", "a request may let the log go past its snapshot"),
    ("pin-ignored", "log goes that a reader has pinned"),
    ("older-log-not-kept", "log goes that an older snapshot needs"),
    ("fallback-without-its-log", "an older snapshot is used without what the log has after it"),
    ("state-lost-not-seen", "a state machine is used although no snapshot could be recovered"),
    ("saves-unbounded", "a host saves as many snapshots at once as are due"),
    ("install-acked-before-its-record", "an install is acknowledged before its record is durable"),
    ("nothing-applied-saved", "a replica that has applied nothing saves that"),
    ("two-overrides-taken", "a request says both what of the log stays and where it ends"),
    ("save-while-saving", "a replica's state is saved twice at once"),
    ("import-not-here", "a replica is imported on a host that the member list does not name for it"),
    ("import-removed-id", "an id that was removed comes back by an import"),
    ("import-moved-id", "an import moves a replica to another host under its id"),
    ("import-epoch-not-raised", "an import goes on in an epoch that its group was in before"),
    ("damaged-import-left-out", "one damaged export of several is left out, and the others are imported"),
    ("abort-not-seen", "a save goes on although it was aborted"),
    ("rolled-back-host-is-believed", "a host that starts anew is not asked whether it has all that it had"),
    ("held-frames-are-lost", "what a host said before it had shown its store is thrown away when it has"),
    ("doubt-ends-with-a-connection", "a host that fell behind itself is believed when it connects again"),
    ("rolled-back-and-unaware", "a host with an older copy of its directory says that it has all that it had"),
    ("asked-for-another-store", "a wiped host takes a question about its former store to be about the one that it has"),
    ("wiped-host-is-believed", "a host that lost its store goes on with the replicas that it had"),
    ("commands-fill-the-disk", "clients' commands are taken whatever is left on the disk"),
    ("export-directory-made", "an export makes the directory that it is given"),
    ("imported-mark-ignored", "an on-disk state machine goes on from its own storage after an import"),
    ("export-metadata-not-compared", "an export is taken for good with another one's metadata"),
];

/// Those that whole simulated worlds catch within few seeds. All others need more than chance to show: scenarios and models
/// catch them.
pub const IN_WORLDS: &[&str] = &[
    "ack-before-durable",
    "duplicate-append-acked-in-flight",
    "request-vote-before-durable",
    "vote-lost-on-recycle",
    "reopen-without-rewrite",
    "commit-old-term-by-counting",
    "aba-token",
    "apply-before-durable",
    "session-retry-applied",
    "evicted-session-applied",
    "sessions-unbounded",
    "session-use-not-counted",
    "sessions-not-saved",
    "unknown-outcome-sent-again",
];

#[cfg(feature = "plant")]
mod active {
    use std::sync::Mutex;
    static ACTIVE: Mutex<Option<String>> = Mutex::new(None);

    /// Plants one bug for the whole process, or none. Panics on a name that is not in [`super::ALL`].
    pub fn set(name: Option<&str>) {
        if let Some(name) = name {
            assert!(super::ALL.iter().any(|(n, _)| *n == name), "no planted bug is called {name}");
        }
        *ACTIVE.lock().expect("no one panics while holding it") = name.map(str::to_owned);
    }

    /// Whether this bug is planted.
    pub fn is(name: &str) -> bool {
        debug_assert!(super::ALL.iter().any(|(n, _)| *n == name), "no planted bug is called {name}");
        ACTIVE.lock().expect("no one panics while holding it").as_deref() == Some(name)
    }
}
#[cfg(feature = "plant")]
pub use active::{is, set};

/// Whether this bug is planted: never, in this build.
#[cfg(not(feature = "plant"))]
#[inline(always)]
pub const fn is(_name: &str) -> bool {
    false
}
